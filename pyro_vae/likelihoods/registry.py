"""Likelihood family p(x | z): a function from features, the output of a network, to a distribution over elements.

A family of one's own is a function of this kind:

    >>> import pyro.distributions as dist
    >>> from torch.nn.functional import softplus
    >>> def wide(h):
    ...     loc, scale = h.chunk(2, -1)
    ...     return dist.Cauchy(loc, softplus(scale) + 1e-4)
    >>> wide(torch.zeros(5, 8)).batch_shape
    torch.Size([5, 4])

Every family here keeps to this. Features come part by part, as `chunk` cuts them: n features an element and d elements
are n blocks of d. Whatever must be positive is log(1 + e^h) + 1e-4. Features of ±10⁴ have finite log-probabilities and
gradients, right to 1e-6 of themselves (of 1, where they are smaller), of float32 features too: those whose terms cancel are
scored in float64 (:func:`~pyro_vae.distributions.wide.in_float64`), and so is every family of features in half precision. That
holds for counts and parameters up to 10⁸. One that takes options is a function of them that returns the family.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from pyro_vae.common.picklable import Picklable
from pyro_vae.common.spec import REQUIRED, Spec
from pyro_vae.distributions.conditional import Family
from pyro_vae.distributions.features import at_least
from pyro_vae.distributions.tabular import Columns
from pyro_vae.errors import ShapeError, UsageError

from . import continuous, discrete
from .continuous import SharedNormal
from .ordinal import CumulativeLogit


def columns(spec: Sequence[tuple[Family, int, int]]) -> Family:
    r"""p(y) = Π_b p_b(y_b): a table whose columns have different families; one y is a row (event dim 1).

    Features: each block's, one block after the other. Support: each block's own. Columns without a mean (classes) have NaN.

    Args:
        spec: for each block of columns (family, how many features it takes in all, how many columns it makes).

    Returns:
        A family; a module, so that blocks with parameters of their own (:class:`SharedNormal`) are trained.

    Raises:
        ShapeError: another number of features than the blocks take, or a block that makes other columns than it says.

    Example:
        >>> from pyro_vae.likelihoods import categorical, normal, poisson
        >>> table = columns([(normal, 2 * 3, 3), (categorical(4), 4 * 1, 1), (poisson, 2, 2)])
        >>> row = table(torch.zeros(5, 6 + 4 + 2))
        >>> row.batch_shape, row.event_shape
        (torch.Size([5]), torch.Size([6]))
    """
    return _Columns(spec)


class _Columns(Picklable):
    """The family that :func:`columns` returns."""

    def __init__(self, spec: Sequence[tuple[Family, int, int]]) -> None:
        super().__init__()
        if not spec or any(not isinstance(block, tuple | list) or len(block) != 3 for block in spec):
            raise UsageError(f"columns takes at least one block: [(family, features, width), ...]; got {spec!r}")
        self.families = [family for family, _, _ in spec]
        self.features = [at_least(1, features, "features of a block") for _, features, _ in spec]
        self.widths = [at_least(1, width, "width of a block") for _, _, width in spec]
        self.parametrised = nn.ModuleList(f for f in self.families if isinstance(f, nn.Module))
        names = (getattr(f, "__name__", type(f).__name__) for f in self.families)
        self.__name__ = f"columns({', '.join(f'{n} x {w}' for n, w in zip(names, self.widths, strict=True))})"

    def forward(self, h: Tensor) -> Columns:
        if h.dim() == 0 or h.shape[-1] != sum(self.features):
            raise ShapeError(
                f"{self.__name__} takes {sum(self.features)} features "
                f"({' + '.join(map(str, self.features))}), got an input of shape {tuple(h.shape)}"
            )
        blocks = [f(part) for f, part in zip(self.families, h.split(self.features, -1), strict=True)]
        blocks = [d.to_event(1 - d.event_dim) for d in blocks]
        widths = [d.event_shape[0] for d in blocks]
        if widths != self.widths:
            raise ShapeError(f"{self.__name__}: its blocks make {widths} columns of their features, not {self.widths}")
        return Columns(blocks)

    def part(self, start: int, stop: int) -> tuple[Family, int]:
        """Return the family of these columns alone, of blocks that begin and end there, and how many features it takes.

        Raises:
            UsageError: no block begins, or ends, there.
        """
        ends = list(accumulate(self.widths, initial=0))
        if not {start, stop} <= set(ends) or start >= stop:
            raise UsageError(f"{self.__name__}: its blocks end at columns {ends[1:]}, not at {start} and {stop}")
        chosen = slice(ends.index(start), ends.index(stop))
        blocks = list(zip(self.families, self.features, self.widths, strict=True))[chosen]
        return columns(blocks), sum(self.features[chosen])

    def extra_repr(self) -> str:
        return self.__name__


_PIXELCNN = "Salimans, Karpathy, Chen & Kingma, 2017, https://arxiv.org/abs/1701.05517"
_CONTINUOUS_BERNOULLI = "Loaiza-Ganem & Cunningham, 2019, https://arxiv.org/abs/1907.06845"
_CALIBRATED = "Rybkin, Daniilidis & Levine, 2021, https://arxiv.org/abs/2006.13202"
_LAMBERT = "Lambert, 1992, https://doi.org/10.2307/1269547"
_ORDINAL = "McCullagh, 1980, https://doi.org/10.1111/j.2517-6161.1980.tb01109.x"
_SCVI = "Lopez, Regier, Cole, Jordan & Yosef, 2018, https://doi.org/10.1038/s41592-018-0229-2"

FAMILIES: dict[str, Spec] = {  # the closed table that configs name families from
    "bernoulli": Spec(make=lambda: discrete.bernoulli, features=1, support="0 or 1", formula="s(h)^y (1 - s(h))^(1 - y)"),
    "binomial": Spec(
        make=discrete.binomial, features=1, options={"total_count": REQUIRED},
        support="counts 0..total_count", formula="C(n, y) s(h)^y (1 - s(h))^(n - y)"),
    "categorical": Spec(
        make=discrete.categorical, features=lambda num_classes: num_classes, options={"num_classes": REQUIRED},
        support="classes 0..num_classes - 1", formula="softmax(h)_y"),
    "CumulativeLogit": Spec(
        make=CumulativeLogit, features=1, options={"num_classes": REQUIRED, "dim": REQUIRED},
        support="ordered classes 0..num_classes - 1", formula="s(c_y - h) - s(c_(y - 1) - h), learned cutpoints c an element",
        reference=_ORDINAL),
    "multinomial": Spec(
        make=discrete.multinomial, features=1, options={"total_count": REQUIRED},
        support="counts that sum to total_count", formula="n! prod softmax(h)_i^y_i / y_i!"),
    "discretized_logistic": Spec(
        make=discrete.discretized_logistic, features=2, support="counts 0..levels - 1",
        formula="F(y + 1/2) - F(y - 1/2), F a logistic cdf; the edges take the tails", reference=_PIXELCNN),
    "discretized_logistic_mixture": Spec(
        make=discrete.discretized_logistic_mixture, features=lambda levels=256, components=5: 3 * components,
        support="counts 0..levels - 1", formula="sum_k pi_k discretized_logistic_k(y)", reference=_PIXELCNN),
    "poisson": Spec(make=lambda: discrete.poisson, features=1, support="counts from 0", formula="rate^y exp(-rate) / y!"),
    "negative_binomial": Spec(
        make=lambda: discrete.negative_binomial, features=2,
        support="counts from 0", formula="Gamma(y + r) / (Gamma(r) y!) (r / (r + mu))^r (mu / (r + mu))^y"),
    "zero_inflated_poisson": Spec(
        make=lambda: discrete.zero_inflated_poisson, features=2,
        support="counts from 0", formula="g [y = 0] + (1 - g) poisson(y)", reference=_LAMBERT),
    "zero_inflated_negative_binomial": Spec(
        make=lambda: discrete.zero_inflated_negative_binomial, features=3,
        support="counts from 0", formula="g [y = 0] + (1 - g) negative_binomial(y)", reference=_SCVI),
    "normal": Spec(
        make=lambda: continuous.normal, features=2,
        support="real numbers", formula="N(y; loc, scale^2), loc and scale for each datum"),
    "normal_fixed": Spec(
        make=continuous.normal_fixed, features=1, support="real numbers", formula="N(y; h, scale^2), the scale given"),
    "SharedNormal": Spec(
        make=SharedNormal, features=1, options={"dim": REQUIRED},
        support="real numbers", formula="N(y; h, scale^2), one learned scale an element", reference=_CALIBRATED),
    "laplace": Spec(
        make=lambda: continuous.laplace, features=2, support="real numbers", formula="exp(-|y - loc| / scale) / (2 scale)"
    ),
    "student_t": Spec(
        make=continuous.student_t, features=2, support="real numbers", formula="t_df((y - loc) / scale) / scale"),
    "log_normal": Spec(
        make=lambda: continuous.log_normal, features=2, support="positive numbers", formula="N(log y; loc, scale^2) / y"
    ),
    "gamma": Spec(
        make=lambda: continuous.gamma, features=2, support="positive numbers", formula="b^a y^(a - 1) exp(-b y) / Gamma(a)"
    ),
    "beta": Spec(
        make=lambda: continuous.beta, features=2,
        support="numbers between 0 and 1, both excluded", formula="y^(a - 1) (1 - y)^(b - 1) / B(a, b)"),
    "continuous_bernoulli": Spec(
        make=lambda: continuous.continuous_bernoulli, features=1, support="numbers between 0 and 1, both included",
        formula="h exp(h y) / (exp(h) - 1)", reference=_CONTINUOUS_BERNOULLI),
    "columns": Spec(  # of as many features as its blocks take
        make=columns, features=0, options={"spec": REQUIRED}, support="each column's own", formula="prod_b p_b(y_b)"),
}  # fmt: skip


def fitting(x: Tensor) -> list[str]:
    """Return the names of the families in whose support every row of x lies, ``(N, *event)``; NaN is left out of account.

    Options that bound the support (total_count, num_classes, levels) are set by the largest value of x.

    Example:
        >>> fitting(torch.tensor([[0.0, 0.5], [0.25, 1.0]]))
        ['normal', 'normal_fixed', 'SharedNormal', 'laplace', 'student_t', 'continuous_bernoulli']
    """
    values, rows = x[~x.isnan()].float(), x.reshape(len(x), -1).float()
    if not values.numel():
        return []
    broken, total = values[values != values.round()][:1], rows.sum(1)
    probe = torch.cat([torch.stack(torch.aminmax(values)), broken]).unsqueeze(-1)  # these decide for any interval
    one_total = not len(broken) and bool((total == total[0]).all())
    tried = {"multinomial": (rows[:1], total[0]) if one_total else None, "columns": None}
    cases = {name: tried.get(name, (probe, probe.max())) for name in FAMILIES}
    return [name for name, case in cases.items() if case and _holds(FAMILIES[name], *case)]


def _holds(spec: Spec, x: Tensor, largest: Tensor) -> bool:
    """Return whether the support of a family holds every value, its bounds as wide as the data needs."""
    top = max(1, int(largest))
    bounds = {"total_count": top, "num_classes": top + 1, "levels": top + 1, "dim": x.shape[1]}
    options = {name: bounds[name] for name in spec.options if name in bounds}
    features = spec.num_features(**options) * x.shape[1]
    if max(features, options.get("num_classes", 0) * x.shape[1]) > 100_000:  # classes by the million are no classes
        return False
    return bool(spec.make(**options)(torch.zeros(features)).support.check(x).all())
