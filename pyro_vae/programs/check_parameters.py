"""Check parameters: that a gradient reaches each, and that each belongs to one model alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_vae.common.sharded import is_sharded

from .findings import Finding, ProgramTrace, run
from .pair import owners, programs
from .parameters import overlaps, unconstrained
from .sites import Program, Site


def trained(site: Site) -> Tensor:
    """Return the tensor of the store behind a parameter site, which an optimizer is given."""
    return unconstrained(site["value"])


def ghost_training(runs: Sequence[ProgramTrace], *programs: Any) -> dict[str, Finding]:
    """Find parameters that Pyro's store hides behind another module's tensors, by the store's name.

    So it does under ``pyro.module(name, m)``, and for a PyroModule among those of the `programs`: the module's own tensor is
    what runs, and the store's is what is trained.
    """
    owned = {id(p) for module in owners(*programs) for p in module.parameters()}
    ghosts = {}
    for name, site in ((n, s) for r in runs for n, s in r.params.items()):
        own = site["args"][1] if len(site["args"]) > 1 else None
        of_module = "$$$" in name or id(own) in owned
        if isinstance(own, nn.Parameter) and of_module and trained(site) is not own:
            ghosts[name] = ghost(name, own)
    return ghosts


def ghost(name: str, own: nn.Parameter) -> Finding:
    """Say that a module's parameter is not the one that Pyro's store holds under its name."""
    module, declared, key = name.rpartition("$$$")
    under = f"pyro.module({module!r}, ...)" if declared else f"the name {name!r}"
    what = f"Pyro's store holds another tensor under {under}: ghost training of this one"
    fix = "give each instance a name of its own, or pyro.clear_param_store() before it"
    if overlaps(own):
        what, fix = (
            f"{what}, whose entries share their memory (expand)",
            "give each its own: nn.Parameter(p.detach().clone())",
        )
    return Finding("ghost", f"parameter {key!r}", what, fix)


def modules(thing: Any) -> list[nn.Module]:
    """Return the modules of a VAE, a module, or a tuple of programs."""
    return owners(thing) if isinstance(thing, nn.Module) else owners(*programs(thing))


def labelled(owned: list[nn.Module]) -> dict[str, Tensor]:
    """Name the parameters, with the module's class in front where there are several modules."""
    prefixes = [f"{type(m).__name__}{i}." if len(owned) > 1 else "" for i, m in enumerate(owned)]
    return {f"{prefix}{n}": t for prefix, m in zip(prefixes, owned, strict=True) for n, t in m.named_parameters()}


def named_parameters(
    model: Program, guide: Program, runs: Sequence[ProgramTrace], ghosts: dict[str, Finding]
) -> dict[str, Tensor]:
    """Name each tensor to be trained once: the modules' parameters and those that the programs declare."""
    declared = {n: trained(s) for r in runs for n, s in r.params.items() if n not in ghosts}
    named = labelled(owners(model, guide)) | {n.rpartition("$$$")[2]: t for n, t in declared.items()}
    # the gradients of parameters that are sharded over processes come by hooks of torch's, which this does not run
    once = {id(t): n for n, t in reversed(named.items()) if t.requires_grad and not is_sharded(t)}
    return {n: t for n, t in named.items() if once.get(id(t)) == n}


def gradients(
    model: Program, guide: Program, batch: tuple[Any, ...], named: dict[str, Tensor], quiet: bool
) -> list[Finding]:
    """Find parameters that one Trace_ELBO step would leave alone (None, zero), or destroy (not finite)."""
    if not named:
        return []
    try:
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN's RNNs have none in eval mode
            loss = Trace_ELBO().differentiable_loss(model, guide, *batch)
            grads: tuple[Tensor | None, ...] = (None,) * len(named)
            if isinstance(loss, Tensor) and loss.requires_grad:
                grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    except Exception as error:
        what = f"Trace_ELBO has no gradient: {type(error).__name__}: {str(error)[:400]}".rstrip(".")
        return [] if quiet else [Finding("gradient", "model and guide", what, "make Trace_ELBO run on the pair first")]
    return [f for (n, g) in zip(named, grads, strict=True) for f in gradient_of(n, g, quiet)]


def gradient_of(name: str, grad: Tensor | None, quiet: bool) -> Iterator[Finding]:
    where = f"parameter {name!r}"
    grad = grad if grad is None or grad.layout == torch.strided else grad.to_dense()  # of nn.Embedding(sparse=True)
    if grad is None:
        what = "it gets no gradient: the ELBO of this batch does not depend on it"
        fix = "use it in the model or the guide (without .detach() or no_grad), or freeze it: requires_grad_(False)"
        yield Finding("gradient", where, what, fix, "warning")
    elif not quiet and not grad.isfinite().all():
        fix = "bound what the networks put into scales and logits (softplus, clamp), or rescale the data"
        yield Finding("gradient", where, "its gradient is not finite", fix)
    elif not grad.any():
        fix = "see that what it feeds into is used; dead units and layers that start at zero look like this, too"
        yield Finding("gradient", where, "its gradient is all zero on this batch", fix, "warning")


def shared(model: Program, guide: Program, batch: tuple[Any, ...], others: list[Any]) -> Iterator[Finding]:
    """Find parameters that belong to another model too, by identity; and fixed names that two models give to pyro.module."""
    mine = {id(t): n for n, t in labelled(owners(model, guide)).items()}
    for i, other in enumerate(others):
        for name, tensor in labelled(modules(other)).items():
            if id(tensor) in mine:
                kind, where = type(other).__name__, f"parameter {mine[id(tensor)]!r}"
                what = f"it is also {name!r} of others[{i}] ({kind}): training one model changes the other"
                yield Finding("shared", where, what, "copy.deepcopy the part, or build it anew")
        pair = other if isinstance(other, tuple) else (getattr(other, "model", None), getattr(other, "guide", None))
        runs = [run("other", program, batch) for program in pair if callable(program)]
        for found in ghost_training(runs, other).values():
            yield Finding("ghost", f"{found.where} of others[{i}]", found.what, found.fix)
