"""Normalizing flows, from zuko, which is imported only when a flow is built, as p(z) and as q(z | x)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import settings
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import constraints
from torch import Size, Tensor, nn

from pyro_vae.errors import UsageError

KINDS = ("nsf", "maf", "iaf")
MOST = 1_000  # transforms


class FlowDistribution(ZukoToPyro):
    """A zuko flow as a Pyro distribution: ``ZukoToPyro`` with `rsample`, `sample` and a support.

    The log density of a draw is kept with it: an inverse autoregressive flow scores its own draws in one pass. Draws made
    without gradients are scored afresh, for the kept value would have none.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector
    _validate_args = False

    def __call__(self, shape: Any = ()) -> Tensor:
        return self.rsample(Size(shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        flow: Any = self.dist
        x, log_prob = flow.rsample_and_log_prob(Size(sample_shape))
        if torch.is_grad_enabled():
            self.cache[x] = log_prob
        return x

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        return type(self)(self.dist.expand(Size(batch_shape)))


def make_flow(kind: str, dim: int, context: int, transforms: int, hidden: Sequence[int]) -> nn.Module:
    """Build a lazy zuko flow: called with a context ``(*batch, context)``, or None, it returns a distribution over R^dim.

    ``"maf"`` scores in one pass and draws in `dim`; ``"iaf"`` is its inverse; ``"nsf"`` is autoregressive with
    rational-quadratic splines, which act in [−5, 5], so an affine map comes between them and z.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no flow of kind {kind!r}: choose one of {', '.join(KINDS)}")
    if dim < 1 or transforms < 1:
        raise UsageError(f"a flow has at least 1 dimension and 1 transform, got dim={dim}, transforms={transforms}")
    if transforms > MOST:
        raise UsageError(f"a flow of {transforms:,} transforms: at most {MOST:,} are built")
    # importing zuko switches torch's (and so Pyro's) validation off for the whole process: the switch is put back
    with settings.context(validate_distributions_torch=settings.get("validate_distributions_torch")):
        import zuko
    build = zuko.flows.NSF if kind == "nsf" else zuko.flows.MAF
    flow = build(dim, context, transforms=transforms, hidden_features=tuple(hidden))
    steps = list(flow.transform.transforms)
    if kind == "iaf":
        steps = [step.inv for step in reversed(steps)]
    if kind == "nsf":
        affine = zuko.flows.ElementWiseTransform(dim, context, hidden_features=tuple(hidden))
        if not context:
            for parameter in affine.parameters():  # without a context it is two constants: start at the identity
                nn.init.zeros_(parameter)
        steps = [affine, *steps]
    return zuko.flows.Flow(steps, flow.base)
