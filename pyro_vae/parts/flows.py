"""Normalizing flows, from zuko, as p(z) and as q(z | x).

Importing zuko switches torch's distribution validation off for the whole process. It is imported only when a flow is
built, and the switch is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from pyro import settings
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import constraints
from torch import Size, Tensor, nn

from pyro_vae.errors import UsageError

KINDS = ("nsf", "maf", "iaf")


def import_zuko() -> ModuleType:
    """Import zuko, and leave torch's (and so Pyro's) distribution validation as it was before."""
    with settings.context(validate_distributions_torch=settings.get("validate_distributions_torch")):
        import zuko
    return zuko


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
    zuko = import_zuko()
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


class FlowPrior(nn.Module):
    r"""p(z) = N(f(z); 0, I) |det ∂f/∂z|, f an autoregressive flow; support R^dim, event shape ``(dim,)``.

    Any context is ignored. With dim = 1 there is nothing to condition on: each step is a map of one number.

    Args:
        dim: number of latents.
        kind: ``"nsf"`` (splines, and an affine map for scale), ``"maf"`` (affine steps), or ``"iaf"`` (slow as a prior).
        transforms: steps, in alternating order of the latents.
        hidden: widths of each step's network.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    Example:
        >>> prior = FlowPrior(4, kind="maf", hidden=(16,))
        >>> prior().event_shape, prior().expand((7, 5)).sample().shape
        (torch.Size([4]), torch.Size([7, 5, 4]))
    """

    def __init__(self, dim: int, kind: str = "nsf", transforms: int = 3, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.dim, self.kind = dim, kind
        self.flow = make_flow(kind, dim, 0, transforms, hidden)

    def forward(self, *context: Tensor) -> FlowDistribution:
        return FlowDistribution(self.flow())

    def extra_repr(self) -> str:
        return f"dim={self.dim}, kind={self.kind!r}"


class FlowPosterior(nn.Module):
    r"""q(z | x) = N(f_h(z); 0, I) |det ∂f_h/∂z| with h = net(x, \*c); support R^dim, reparameterised.

    Args:
        net: maps x and any contexts to `context_features` features, ``(*batch, context_features)``.
        dim: number of latents.
        kind: ``"iaf"`` draws and scores its own draws in one pass, which is all that an ELBO or importance weights ask for;
            ``"maf"`` and ``"nsf"`` draw in `dim` passes.
        transforms: steps, in alternating order of the latents.
        context_features: width of what `net` puts out.
        hidden: widths of each step's network.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), https://arxiv.org/abs/1606.04934
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Example:
        >>> from pyro_vae import MLP
        >>> posterior = FlowPosterior(MLP(784, 32), 4, context_features=32, hidden=(16,))
        >>> q = posterior(torch.zeros(5, 784))
        >>> q.batch_shape, q.event_shape, q.rsample((7,)).shape
        (torch.Size([5]), torch.Size([4]), torch.Size([7, 5, 4]))
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        dim: int,
        kind: str = "iaf",
        transforms: int = 3,
        context_features: int = 64,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if context_features < 1:
            raise UsageError(f"context_features must be at least 1, got {context_features}; without, see FlowPrior")
        self.net, self.dim, self.kind = net, dim, kind
        self.flow = make_flow(kind, dim, context_features, transforms, hidden)

    def forward(self, *parents: Tensor) -> FlowDistribution:
        return FlowDistribution(self.flow(self.net(*parents)))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, kind={self.kind!r}"
