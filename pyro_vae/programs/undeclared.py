"""Find networks that receive a gradient but were never declared to Pyro: SVI would train them never, and silently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.common.sharded import gathered_parameters
from pyro_vae.data.structures import tensors_in

from .check_parameters import trained
from .findings import Finding, run
from .pair import named_owners, owners
from .sites import Program, Site


def find_undeclared(model: Program, guide: Program, batch: tuple[Any, ...]) -> list[Finding]:
    """Find parameters that log p(x, z) or log q(z | x) depend on, and that the programs do not declare to Pyro.

    Runs both programs once, and walks from their log-densities back to the leaves of the autograd graph. What of the batch
    requires a gradient is no parameter; other tensors that are of no module are warned of, for they may be meant.
    """
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN's RNNs have no gradient in eval mode
        q = run("guide", guide, batch)
        p = run("model", poutine.replay(model, trace=q.trace), batch)
        if p.stopped is not None or q.stopped is not None:
            return []
        reached = {r.program: leaves(t for site in r.sites.values() for t in tensors_of(site)) for r in (q, p)}
    known = {id(t) for r in (q, p) for s in r.params.values() for t in given(s)} | {id(t) for t in tensors_in(batch)}
    known |= {
        id(whole) for owner in owners(model, guide) for part, whole in gathered_parameters(owner) if id(part) in known
    }
    unknown = {id(t): (program, t) for program, ts in reversed(list(reached.items())) for t in ts if id(t) not in known}
    names, found = owners_of_parameters(model, guide), dict[tuple[str, str], list[str]]()
    for identity, (where, key) in names.items():
        if identity in unknown:
            found.setdefault((unknown[identity][0], where), []).append(key)
    loose = [of_no_module(program, t) for identity, (program, t) in unknown.items() if identity not in names]
    return [of_module(program, where, keys) for (program, where), keys in found.items()] + loose


def tensors_of(site: Site) -> Iterator[Tensor]:
    """Yield a site's draw, and its log-density where it has one."""
    yield site["value"]
    try:
        yield site["fn"].log_prob(site["value"])
    except (NotImplementedError, ValueError, RuntimeError):  # `check` has other words for what has no density
        return


def leaves(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors that the outputs depend on and that a backward pass would leave a gradient on, each once.

    Example:
        >>> w = torch.ones(2, requires_grad=True)
        >>> [leaf is w for leaf in leaves([(w * 2).exp(), torch.zeros(3)])]
        [True]
    """
    outputs = [t for t in outputs if isinstance(t, Tensor) and t.requires_grad]
    stack: list[Any] = [t.grad_fn for t in reversed(outputs)]
    found, seen = {id(t): t for t in outputs if t.grad_fn is None}, set[Any]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:  # AccumulateGrad: the end of the way
            found.setdefault(id(variable), variable)
        stack += (inner for inner, _ in reversed(node.next_functions))
    return list(found.values())


def given(site: Site) -> Iterator[Tensor]:
    """Yield the tensor of the store behind a parameter site, and the one that was declared (another under a "ghost")."""
    yield trained(site)
    if len(site["args"]) > 1 and isinstance(site["args"][1], Tensor):
        yield site["args"][1]


def owners_of_parameters(*programs: Program) -> dict[int, tuple[str, str]]:
    """Say where each parameter of the programs' modules is: the part of the program that has it, and its name there.

    The part is what pyro.module would be given: ``dec`` for a network of a closure, ``self.dec`` for one of a module whose
    methods the programs are, or ``self.log_scale`` with no name there for a parameter of such a module itself.
    """
    names: dict[int, tuple[str, str]] = {}
    for name, owner in named_owners(*programs).items():
        name = name.partition("#")[0]
        around = name in ("", "self")  # the module whose methods the programs are
        for key, parameter in owner.named_parameters():
            part, _, inner = key.partition(".")
            where = (f"self.{part}", inner) if around else (name, key)
            names.setdefault(id(parameter), where)
    return names


def of_module(program: str, where: str, keys: list[str]) -> Finding:
    """Say that a network, or a single parameter, is trained by nobody."""
    label = re.sub(r"\W+", "_", where.removeprefix("self.")).strip("_")
    if keys == [""]:
        what, fix = f"parameter {label!r}", f"pyro.param({label!r}, {where})"
        return Finding("undeclared", what, TRAINED_BY_NOBODY.format(program, "it"), f"{fix} in the {program}")
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    fix = f'pyro.module("{label}", {where}) in the {program}, or freeze it: requires_grad_(False)'
    what = TRAINED_BY_NOBODY.format(program, f"its {len(keys)} parameters ({shown})")
    return Finding("undeclared", f"module {label!r}", what, fix)


TRAINED_BY_NOBODY = "the {} gives a gradient to {}, but Pyro was not told of it, so nobody trains it"


def of_no_module(program: str, tensor: Tensor) -> Finding:
    """Say that a tensor which no module of the programs has is trained by nobody."""
    parameter = isinstance(tensor, nn.Parameter)
    kind = "parameter" if parameter else "tensor"
    where = f"a {kind} of shape {tuple(tensor.shape)}"
    fix = f"pyro.param in the {program}, or an attribute of a module that is declared, or .detach() it"
    what = TRAINED_BY_NOBODY.format(program, "it")
    return Finding("undeclared", where, what, fix, "error" if parameter else "warning")
