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
from pyro_vae.training.engines.inductor import as_found, compiler
from pyro_vae.training.engines.scheduled_values import ScheduledValues
from pyro_vae.training.engines.traced import ACCELERATORS, TracedEngine
from pyro_vae.training.step import EagerEngine, Step

from .by_hand import ByHand
from .cases import COMPONENTS, FLOW_HIDDEN, PIXELS, Case

Run = Callable[[int], Any]
Peer = Callable[[Case, Tensor], Run]
OURS = "pyro_vae"


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


def ours(case: Case, x: Tensor, engine: str) -> Run:
    """What `fit` does at each step."""
    vae = vae_of(case).to(x.device)
    step = Step(vae.model, vae.guide, objective_of(case), adam())
    step.engine = (
        EagerEngine(step)
        if engine == "eager"
        else TracedEngine(step, [vae], ScheduledValues(), ACCELERATORS.get(engine), engine)
    )
    batch = batches(x, case.batch)

    def run(steps: int) -> None:
        for _ in range(steps):
            step(batch())
        if getattr(step.engine, "eager_reason", None):
            raise RuntimeError(step.explain())

    return run


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


def numpyro_scan(case: Case, x: Tensor) -> Run:
    """NumPyro's SVI, steps within one compiled loop over data on the device."""
    from .numpyro_peer import scan

    return scan(case, x)


def pythae_trainer(case: Case, x: Tensor) -> Run:
    """pythae's own trainer on its VAE of the same layers."""
    from .pythae_peer import trainer

    return trainer(case, x)


def peers(case: Case, device: torch.device) -> dict[str, Peer]:
    """Everybody who can run the case here, ours first."""
    found: dict[str, Peer] = {f"{OURS} {engine}": partial(ours, engine=engine) for engine in ("eager", "trace")}
    found |= {"PyTorch, Adam": by_hand, "PyTorch, fused Adam": partial(by_hand, fused=True)}
    if compiler() or device.type == "cuda":
        found |= {f"{OURS} compile": partial(ours, engine="compile")}
        found |= {"PyTorch, compiled, fused Adam": partial(by_hand, fused=True, compiled=True)}
    if device.type == "cuda":
        found |= {f"{OURS} graph": partial(ours, engine="graph")}
    found |= {"Pyro": stock, "Pyro, no validation": partial(stock, validate=False)}
    found |= {"Pyro, no validation, fused Adam": partial(stock, validate=False, fused=True)}
    if case.kind == "elbo" and importlib.util.find_spec("numpyro"):
        found |= {"NumPyro, scan": numpyro_scan}
    if case.kind == "elbo" and importlib.util.find_spec("pythae"):
        found |= {"pythae": pythae_trainer}
    return found
