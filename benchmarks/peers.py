"""Who is timed. A peer is a function ``(case, data) -> run``, and ``run(steps)`` makes that many training steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyro_vae import MLP, VAE, Bound, Conditional, StandardNormal, adam, bernoulli, iwae, normal, posteriors, priors
from pyro_vae.common.inductor import as_found, compiler
from pyro_vae.training.precision import precision_of
from pyro_vae.training.step import Step

from .by_hand import ByHand
from .cases import COMPONENTS, FLOW_HIDDEN, PIXELS, Case
from .timing import Run
from .turns import FitInTurns
from .whole_step import whole_step

Peer = Callable[[Case, Tensor], Run]
OURS, TF32, LOGGED, AUTOTUNED = "pyro_vae", ", TF32", ", with its log", ", autotuned"  # in the names of peers


def batches(x: Tensor, size: int) -> Callable[[], Tensor]:
    """Random rows of device-resident data, without end."""
    order, at = torch.randperm(len(x), device=x.device), 0

    def following() -> Tensor:
        nonlocal order, at
        if at + size > len(x):
            order, at = torch.randperm(len(x), device=x.device), 0
        at += size
        return x.index_select(0, order[at - size : at])

    return following


def by_hand(case: Case, x: Tensor, fused: bool = False, compiled: bool = False) -> Run:
    """A plain loop: forward, backward, step."""
    model = ByHand(case).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused or None)
    loss_of = torch.compile(model) if compiled else model
    batch = batches(x, case.batch)

    def run(steps: int) -> None:
        with as_found():  # torch's first compilation switches distribution validation off
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                loss_of(batch()).backward()
                optimizer.step()

    return run


def vae_of(case: Case) -> VAE:
    """The case in our parts."""
    net = partial(MLP, hidden=(case.hidden,), activation=nn.Softplus)
    posterior: Any = Conditional(net(PIXELS, 2 * case.latent), normal)
    if case.kind == "flow":
        flow = partial(posteriors.FlowPosterior, transforms=2, context_features=FLOW_HIDDEN, hidden=(FLOW_HIDDEN,))
        posterior = flow(net(PIXELS, FLOW_HIDDEN), case.latent)
    prior = priors.VampPrior(posterior, COMPONENTS, PIXELS) if case.kind == "vamp" else StandardNormal(case.latent)
    return VAE(prior, Conditional(net(case.latent, PIXELS), bernoulli), posterior)


def objective_of(case: Case) -> Any:
    return Bound(iwae, case.particles) if case.kind == "iwae" else Trace_ELBO()


def ours(
    case: Case, x: Tensor, engine: str, logged: bool = False, precision: str = "float32", autotune: bool = False
) -> FitInTurns:
    """The public `fit`, epoch after epoch on resident rows; with what it logs after each, or without."""
    rows = x[: case.steps * case.batch]
    return FitInTurns(
        vae_of(case).to(x.device),
        rows,
        min(case.batch, len(rows)),
        objective_of(case),
        logged,
        engine=engine,
        precision=precision,
        autotune=autotune,
        optimizer=adam(),
    )


def stock(case: Case, x: Tensor, validate: bool = True, fused: bool = False) -> Run:
    """Pyro's own SVI on the same programs; `fused` puts its ELBO on one torch optimizer."""
    vae, batch = vae_of(case).to(x.device), batches(x, case.batch)
    if fused:
        step = Step(vae.model, vae.guide, objective_of(case), adam())

        def update() -> Any:
            vae.zero_grad(set_to_none=True)
            step.objective.loss_and_grads(vae.model, vae.guide, batch())
            step.optimizer.step()

        step(batch())
    else:
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective_of(case))

        def update() -> Any:
            svi.step(batch())

    def run(steps: int) -> None:
        with pyro.validation_enabled(validate):
            for _ in range(steps):
                update()

    return run


def numpyro_scan(case: Case, x: Tensor, precision: str | None = None) -> Run:
    """NumPyro's SVI, steps within one compiled loop over data on the device."""
    from .numpyro_peer import scan

    return scan(case, x, precision)


def pythae_trainer(case: Case, x: Tensor) -> Run:
    """pythae's own trainer on its VAE of the same layers."""
    from .pythae_peer import trainer

    return trainer(case, x)


def peers(case: Case, device: torch.device) -> dict[str, Peer]:
    """Everybody who can run the case here, ours first."""
    found = on_cuda(case) if device.type == "cuda" else on_cpu()
    found |= {"PyTorch, fused Adam": partial(by_hand, fused=True)}
    found |= {"Pyro": stock, "Pyro, no validation, fused Adam": partial(stock, validate=False, fused=True)}
    if case.kind == "elbo" and importlib.util.find_spec("numpyro"):
        found |= {"NumPyro, scan": numpyro_scan}
        if device.type == "cuda":  # on a CPU both multiply in float32
            found |= {"NumPyro, scan": partial(numpyro_scan, precision="float32")}
            found |= {f"NumPyro, scan{TF32}": numpyro_scan} if case.batch >= 128 else {}
    if case.kind == "elbo" and device.type == "cpu" and importlib.util.find_spec("pythae"):
        found |= {"pythae": pythae_trainer}
    return found


def on_cpu() -> dict[str, Peer]:
    found: dict[str, Peer] = {f"{OURS} {engine}": partial(ours, engine=engine) for engine in ("eager", "trace")}
    found |= {"PyTorch, Adam": by_hand, "Pyro, no validation": partial(stock, validate=False)}
    if compiler():
        found |= {f"{OURS} compile": partial(ours, engine="compile")}
        found |= {f"{OURS} compile{LOGGED}": partial(ours, engine="compile", logged=True)}
        found |= {"PyTorch, compiled, fused Adam": partial(by_hand, fused=True, compiled=True)}
        found |= {"PyTorch, whole step compiled": whole_step}
    return found


def on_cuda(case: Case) -> dict[str, Peer]:
    """At float32, and plain sizes at TF32, too: what is compiled is compiled for each, which takes most of the minutes."""
    found: dict[str, Peer] = {}
    plain = case.kind == "elbo" and case.batch >= 128
    for suffix, name in (("", "float32"), (TF32, "tf32")) if plain else (("", "float32"),):
        found |= {f"{OURS} auto{suffix}": partial(ours, engine="auto", precision=name)}
        hand = partial(whole_step, precision=precision_of(name))
        found |= {f"PyTorch, whole step captured{suffix}": partial(hand, compiled=False)}
        if importlib.util.find_spec("triton"):
            if plain:
                found |= {
                    f"{OURS} auto{AUTOTUNED}{suffix}": partial(ours, engine="auto", precision=name, autotune=True)
                }
            found |= {f"PyTorch, whole step compiled and captured{suffix}": hand}
    return found | ({f"{OURS} auto{LOGGED}": partial(ours, engine="auto", logged=True)} if plain else {})
