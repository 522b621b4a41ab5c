"""Semi-amortized posterior: q(z | x) that starts at the encoder's output and is refined for each row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.distributions.features import check_sizes
from pyro_vae.errors import UsageError

MAX_NORM = 5.0  # longest gradient of a row


class SemiAmortized(FunctionParts):
    r"""q(z | x) whose features are refined, row by row, by `steps` of gradient ascent on the row's ELBO.

        h_0 = net(x),   h_{t+1} = h_t + lr ∇_h [log p(x | z) + log p(z) − log q_h(z)],  z ~ q_{h_t}  (one draw a step)

    A row's gradient longer than 5 is cut to that length: under a sharp likelihood the steps would run away.
    First order only: the encoder is trained as if h_T − h_0 were constant, and no gradient goes through the refinement to
    likelihood or prior (Kim et al. backpropagate through it). The refined q is a proper q(z | x), given the draws that
    refined it: bounds and importance weights hold. It costs `steps` decoder passes a call, evaluation included, and draws
    from torch's global generator.

    Args:
        posterior: a Conditional (its net gives h) whose family is reparameterised.
        likelihood: as the VAE's.
        prior: as the VAE's.
        steps: how many.
        lr: their size.

    References:
        Semi-Amortized Variational Autoencoders (Kim et al., 2018), https://arxiv.org/abs/1802.02550

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> prior, likelihood = StandardNormal(2), Conditional(MLP(2, 9), bernoulli)
        >>> q = SemiAmortized(Conditional(MLP(9, 2 * 2), normal), likelihood, prior, steps=2)
        >>> VAE(prior, likelihood, q).posterior(torch.ones(5, 9)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self,
        posterior: Conditional,
        likelihood: Callable[..., TorchDistributionMixin],
        prior: Callable[..., TorchDistributionMixin],
        steps: int = 5,
        lr: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(posterior, Conditional):
            raise UsageError(f"SemiAmortized refines the features of a Conditional, got {type(posterior).__name__}")
        check_sizes(0, steps=steps)
        self.posterior, self.likelihood, self.prior = posterior, likelihood, prior
        self.steps, self.lr = steps, lr

    def elbo(self, h: Tensor, x: Tensor, *context: Tensor) -> Tensor:
        """log p(x | z) + log p(z) − log q_h(z), for one draw of z each row."""
        q = self.posterior.distribution(h)
        if not q.has_rsample:
            name = getattr(self.posterior.family, "__name__", self.posterior.family)
            raise UsageError(
                f"SemiAmortized needs a reparameterised family, got {name}: refine a normal, or train {name} as is"
            )
        z = q.rsample()
        return self.likelihood(z, *context).log_prob(x) + self.prior(*context).log_prob(z) - q.log_prob(z)

    def forward(self, x: Tensor, *context: Tensor) -> TorchDistributionMixin:
        start = self.posterior.net(x, *context)
        h = start.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                h.requires_grad_()
                (grad,) = torch.autograd.grad(self.elbo(h, x, *context).sum(), h)
                h = (h + self.lr * (MAX_NORM / grad.norm(dim=-1, keepdim=True)).clamp(max=1.0) * grad).detach()
        return self.posterior.distribution(start + (h - start.detach()))  # the value of h, the gradient of the encoder

    def extra_repr(self) -> str:
        return f"steps={self.steps}, lr={self.lr}"
