"""Missing data: a likelihood that skips NaN, and a network that sees the mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.distributions.missing import Observed


class SkipMissing(FunctionParts):
    r"""p(x_obs | parents): a likelihood that leaves out the elements of x that are NaN.

    Args:
        likelihood: ``likelihood(*parents)`` is a distribution of elements that are independent given the parents: a
            :class:`~pyro_vae.Conditional` of an elementwise family, a module of one's own, or a lambda.

    Raises:
        ProgramError: a likelihood that does not factorise (a MultivariateNormal, a Multinomial, a mixture of vectors).

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019),
        https://arxiv.org/abs/1812.02633

    Example:
        >>> from pyro_vae import Conditional, MLP, bernoulli
        >>> from pyro_vae.models.missing import SkipMissing
        >>> likelihood = SkipMissing(Conditional(MLP(2, 9), bernoulli))
        >>> likelihood(torch.zeros(5, 2)).log_prob(torch.full((5, 9), torch.nan))
        tensor([0., 0., 0., 0., 0.], grad_fn=...)
    """

    takes_missing = True

    def __init__(self, likelihood: Callable[..., TorchDistributionMixin]) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, *parents: Tensor) -> Observed:
        return Observed(self.likelihood(*parents))


class WithMask(FunctionParts):
    r"""net([x with NaN filled in, mask], *c), the mask being 1 where x is observed: what an encoder sees of missing data.

    Args:
        net: takes 2 d features where x has d. A :class:`~pyro_vae.ConvEncoder` sees the mask as further channels: give it
            ``shape=(2 * channels, height, width)``.
        fill: what stands for NaN: one number, or one for each column ``(d,)``, such as the columns' means.

    References:
        Handling Incomplete Heterogeneous Data using VAEs (Nazabal, Olmos, Ghahramani & Valera, 2020),
        https://arxiv.org/abs/1807.03653

    Example:
        >>> from pyro_vae import Conditional, MLP, normal
        >>> from pyro_vae.models.missing import WithMask
        >>> posterior = Conditional(WithMask(MLP(2 * 9, 2 * 2)), normal)
        >>> posterior(torch.full((5, 9), torch.nan)).event_shape
        torch.Size([2])
    """

    takes_missing = True
    fill: Tensor

    def __init__(self, net: Callable[..., Tensor], fill: float | Tensor = 0.0) -> None:
        super().__init__()
        self.net = net
        # saved with the weights, as the encoder was trained on it
        self.register_buffer("fill", torch.as_tensor(fill, dtype=torch.get_default_dtype()).detach().clone())

    def forward(self, x: Tensor, *c: Tensor) -> Tensor:
        missing = x.isnan()
        return self.net(torch.cat([torch.where(missing, self.fill.to(x), x), (~missing).to(x)], -1), *c)
