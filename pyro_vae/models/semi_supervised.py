"""A VAE with classes of which some labels are known, as two Pyro programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.errors import ShapeError
from pyro_vae.programs.parameters import register

from .classes import MISSING, one_hot

SUMMED: Any = {"enumerate": "parallel"}  # over the classes, wherever the label is not there


class SemiSupervised(FunctionParts):
    r"""p(y) p(z) p(x | z, y) with amortized q(y | x) q(z | x, y); the labels y are observed for some rows (M2).

    A label of −1 is missing. Labelled and unlabelled rows come in one batch: log p(x, y) of the former and log p(x) of the
    latter are what every evaluation is of, the missing y summed out, and ``Bound(elbo)`` sums over it under q(y | x). Labels
    train q(y | x) by a term of the objective alone:

        fit(vae, x, y, objective=Bound(elbo, terms=[supervised(100.0)]))

    Args:
        classes: ``classes()`` is p(y), a Categorical over C classes.
        prior: ``prior()`` is p(z).
        likelihood: ``likelihood(z, y)`` is p(x | z, y), y as one-hot vectors ``(*batch, C)``.
        classifier: ``classifier(x)`` is q(y | x), a Categorical.
        posterior: ``posterior(x, y)`` is q(z | x, y).

    Sites are ``"z"``, ``"x"`` and ``"y"``, which is ``"y_observed"`` and ``"y_unobserved"`` where labels are passed; the plate
    is ``"data"``; x has shape ``(N, *event)``, labels are whole numbers ``(N,)``, or left out.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed & Welling, 2014),
        https://arxiv.org/abs/1406.5298

    Example:
        >>> from pyro_vae import SemiSupervised, Classes, StandardNormal, Conditional, MLP, bernoulli, normal, log_likelihood
        >>> vae = SemiSupervised(
        ...     classes=Classes(3),                                                       # p(y)
        ...     prior=StandardNormal(2),                                                  # p(z)
        ...     likelihood=Conditional(MLP(2 + 3, 9), bernoulli),                         # p(x | z, y)
        ...     classifier=lambda x, net=MLP(9, 3): dist.Categorical(logits=net(x)),      # q(y | x)
        ...     posterior=Conditional(MLP(9 + 3, 2 * 2), normal),                         # q(z | x, y)
        ... )
        >>> x, y = torch.ones(4, 9), torch.tensor([0, 2, -1, -1])
        >>> joint = log_likelihood(vae.model, vae.guide, x, y, num_samples=10)            # log p(x, y), log p(x)
        >>> joint.log_px.shape
        torch.Size([4])
    """

    code_site, data_site = "z", "x"  # what encode and sample are of, where no site is named

    def __init__(
        self,
        classes: Callable[[], dist.Categorical],
        prior: Callable[[], TorchDistributionMixin],
        likelihood: Callable[[Tensor, Tensor], TorchDistributionMixin],
        classifier: Callable[[Tensor], dist.Categorical],
        posterior: Callable[[Tensor, Tensor], TorchDistributionMixin],
    ) -> None:
        super().__init__()
        self.classes, self.prior, self.likelihood = classes, prior, likelihood
        self.classifier, self.posterior = classifier, posterior

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """z ~ p(z), y ~ p(y), observed where it is known, x ~ p(x | z, y), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            if y is None:
                y = pyro.sample("y", self.classes(), infer=SUMMED)
            else:
                check_labels(y)
                known: Any = y != MISSING
                labels = torch.where(known, y, 0)
                y = pyro.sample("y", self.classes(), obs=labels, obs_mask=known, infer=SUMMED)
            return pyro.sample("x", self.likelihood(z, self.one_hot(y)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """y ~ q(y | x) where it is not known, z ~ q(z | x, y), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.classifier(x), infer=SUMMED)
            else:
                check_labels(y)
                missing: Any = y == MISSING
                with poutine.mask(mask=missing):
                    drawn = pyro.sample("y_unobserved", self.classifier(x), infer=SUMMED)
                y = torch.where(missing, drawn, y)
            return pyro.sample("z", self.posterior(x, self.one_hot(y)))

    def one_hot(self, y: Tensor) -> Tensor:
        """e_y, ``(*batch, C)``."""
        return one_hot(y, self.classes().logits)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """q(y | x), ``(N, C)``."""
        return self.classifier(x).probs


def check_labels(y: Tensor) -> None:
    """Refuse labels that are no whole number for each row, as one-hot rows are not: they would be broadcast."""
    if y.dim() != 1:
        raise ShapeError(
            f"labels y are whole numbers of shape (N,), -1 where there is none, got shape {tuple(y.shape)}. Of one-hot rows "
            "pass y.argmax(-1)."
        )
