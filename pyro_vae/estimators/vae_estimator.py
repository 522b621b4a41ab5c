"""A VAE as an estimator of scikit-learn: in its pipelines, searches and data frames, with log p(x) as the score of a row."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from sklearn.base import BaseEstimator, DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from pyro_vae.common.flagged import is_loose
from pyro_vae.common.given import described, whole
from pyro_vae.common.pyro_private import forget_store
from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import FlaggedWarning, UsageError
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.log_likelihood import log_likelihood
from pyro_vae.models.usage import encode, sample
from pyro_vae.programs.pair import owners, programs
from pyro_vae.training.fit import fit
from pyro_vae.training.optimizers import adam

from .parts import build, decode, has_real_elements

SCORES, DRAWS = 1, 2  # of the fitted seed: streams of log p(x), and of samples


class VAEEstimator(TransformerMixin, DensityMixin, BaseEstimator):
    r"""p(x) = ∫ p(x | z) N(z; 0, I) dz fitted to a table: codes E[z | x], log p(x) of each row, samples.

    ``score_samples`` is importance-sampled log p(x) in nats, a lower bound in expectation, with noise of the row's own
    (``noise="row"``): a row has the same number whatever rows are scored beside it. :meth:`evidence` has it with its errors
    and flags; where more than a tenth of the rows is flagged, ``score_samples`` and ``score`` warn.

    Args:
        latent_dim: how many latents.
        hidden: widths of the hidden layers of encoder and decoder.
        likelihood: p(x_j | z): the name of a family without options of :mod:`pyro_vae.likelihoods` ("normal", "student_t",
            "bernoulli", "poisson", …), or such a family itself (``binomial(16)``).
        objective: what is trained: a :class:`pyro.infer.ELBO`, as :class:`~pyro_vae.Bound`; None is the ELBO.
        epochs, batch_size, learning_rate: of Adam; a batch has no more rows than there are.
        num_samples: K, particles a row, of log p(x).
        standardize: let the networks see columns of real numbers in standard units; log p(x) stays that of X as given.
        make: ``make(n_features)`` builds a VAE, or any model and guide of one array of rows, in the place of `latent_dim`,
            `hidden` and `likelihood`: a function of a module, not a lambda, where it shall be pickled.
        random_state: of starting weights, order of rows and noise, in training and after: a whole number, a
            ``RandomState``, or None for another each time that it is fitted.
        verbose: report on training.

    Attributes:
        vae_: the trained model, for all else that pyro_vae does.
        history_: what :class:`~pyro_vae.FitResult` has of each epoch.
        seed_: the whole number that `random_state` gave.
        n_features_in_, feature_names_in_: of X.

    Raises:
        ValueError: by scikit-learn, of an X that is no finite table; or, as a UsageError, of arguments that cannot be used.
        SupportError: X outside the support of the likelihood: counts for ``"poisson"``, 0 and 1 for ``"bernoulli"``.

    References:
        Scikit-learn: Machine Learning in Python (Pedregosa et al., 2011), https://jmlr.org/papers/v12/pedregosa11a.html

    Example:
        >>> import numpy as np
        >>> from pyro_vae import VAEEstimator
        >>> X = np.random.default_rng(0).normal(size=(60, 3))
        >>> estimator = VAEEstimator(hidden=(8,), epochs=3, num_samples=50).fit(X)
        >>> estimator.transform(X).shape, estimator.sample(5).shape
        ((60, 2), (5, 3))
        >>> evidence = estimator.evidence(X)    # what score_samples are of, with their errors and flags
        >>> bool(evidence.log_px[7] == estimator.evidence(X[7:8]).log_px[0])
        True
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        hidden: Sequence[int] = (64,),
        likelihood: str | Callable[[Tensor], Any] = "normal",
        objective: ELBO | None = None,
        epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        num_samples: int = 200,
        standardize: bool = True,
        make: Callable[[int], Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.latent_dim, self.hidden, self.likelihood, self.objective = latent_dim, hidden, likelihood, objective
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.num_samples, self.standardize, self.make = num_samples, standardize, make
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any = None) -> VAEEstimator:
        """Train on the rows of X, ``(n_samples, n_features)``; y is not looked at."""
        rows = validate_data(self, X, dtype=np.float64)
        whole("num_samples", self.num_samples, 1)
        check_rate(self.learning_rate)
        if not isinstance(self.standardize, bool | np.bool_):
            raise UsageError(f"standardize must be True or False, got {described(self.standardize)}")
        self.seed_ = seed_of(self.random_state)
        x = torch.tensor(rows)
        with seeded(self.seed_):
            vae = build(self, x.shape[1])
        x = x.to(dtype_of(vae))
        run = fit(
            vae,
            x,
            objective=self.objective,
            optimizer=adam(lr=self.learning_rate),
            epochs=self.epochs,
            batch_size=min(whole("batch_size", self.batch_size, 1), len(x)),
            seed=self.seed_,
            standardize=bool(self.standardize) and has_real_elements(vae, x),
            verbose=bool(self.verbose),
        )
        self.vae_, self.history_, self._row = vae, run.history, x[:1].clone()
        self._code_shape = tuple(self._codes(self._row).shape[1:])
        return self

    def transform(self, X: Any) -> np.ndarray:
        """E[z | x] of each row, ``(n_samples, latent_dim)``."""
        codes = self._codes(self._rows(X))
        return codes.reshape(len(codes), -1).numpy()

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """E[x | z] of each row of codes, ``(n_samples, n_features)``."""
        check_is_fitted(self)
        codes = torch.tensor(check_array(Z, dtype=np.float64, ensure_min_samples=0)).to(self._row)
        width = len(self.get_feature_names_out())
        if codes.shape[1] != width:
            raise UsageError(f"codes of shape {tuple(codes.shape)}: wanted (rows, {width}), as transform has them")
        return decode(self.vae_, codes.reshape(len(codes), *self._code_shape), self._row).numpy()

    def evidence(self, X: Any) -> Evidence:
        """log p(x) of each row with its Monte Carlo error, ELBO, ESS and k̂: what ``score_samples`` is of."""
        rows, (model, guide) = self._rows(X), programs(self.vae_)
        seed = stream(self.seed_, SCORES)
        return log_likelihood(
            model, guide, rows, method="importance", num_samples=self.num_samples, seed=seed, noise="row", verbose=False
        )

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) of each row, ``(n_samples,)``, in nats; low for outliers."""
        evidence = self.evidence(X)
        if is_loose(evidence.summary()):
            warnings.warn(evidence.why_flagged(), FlaggedWarning, stacklevel=2)
        return evidence.log_px.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log p(x) over the rows, in nats per row: higher is better."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Draw x ~ p(x), ``(n_samples, n_features)``; without a `random_state` the same rows each time."""
        check_is_fitted(self)
        seed = stream(self.seed_, DRAWS) if random_state is None else seed_of(random_state)
        x = sample(self.vae_, n_samples, like=self._row, seed=seed)
        return only(x, "sample").cpu().numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Name the columns of :meth:`transform`: z0, z1, …"""
        check_is_fitted(self)
        return np.array([f"z{i}" for i in range(int(np.prod(self._code_shape)))], dtype=object)

    def _rows(self, X: Any) -> Tensor:
        """Check rows as scikit-learn does, of the columns that were fitted."""
        check_is_fitted(self)
        return torch.tensor(validate_data(self, X, reset=False, dtype=np.float64)).to(self._row.dtype)

    def _codes(self, x: Tensor) -> Tensor:
        """E[z | x] on the CPU."""
        return only(encode(self.vae_, x), "transform").cpu()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "vae_")

    def __getstate__(self) -> dict[str, Any]:
        for module in owners(*programs(self.vae_)) if hasattr(self, "vae_") else ():
            forget_store(module)
        state: dict[str, Any] = super().__getstate__()
        return state


def seed_of(random_state: Any) -> int:
    """Return a whole number for what scikit-learn takes as a ``random_state``: itself, if it is one."""
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        return whole("random_state", int(random_state), 0)
    if isinstance(random_state, bool | np.bool_):
        raise UsageError(f"random_state must be a whole number from 0, a RandomState or None, got {random_state!r}")
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


def check_rate(learning_rate: Any) -> None:
    """Refuse a learning rate that is no finite number above 0.

    Raises:
        UsageError: it is none.
    """
    if (
        isinstance(learning_rate, bool)
        or not isinstance(learning_rate, int | float | np.number)
        or not 0 < learning_rate < math.inf
    ):
        raise UsageError(f"learning_rate must be a finite number above 0, got {described(learning_rate)}")


def dtype_of(vae: Any) -> torch.dtype:
    """Return the dtype of a model's parameters."""
    kinds = [p.dtype for m in owners(*programs(vae)) for p in m.parameters() if p.is_floating_point()]
    return kinds[0] if kinds else torch.float64


def only(values: Any, what: str) -> Tensor:
    """Return the values of the one site that is meant; refuse several."""
    if isinstance(values, dict):
        if len(values) != 1:
            raise UsageError(
                f"{what}: the model has {', '.join(map(repr, values))}, and an estimator has one table. Let the model say "
                'which is meant: code_site, data_site = "z", "x"; or use pyro_vae.encode and sample on estimator.vae_.'
            )
        values = next(iter(values.values()))
    tensor: Tensor = values.detach()
    return tensor
