"""Names to objectives: bounds, gradient estimators, and how the KL is treated; closed tables, as those of the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO, TraceEnum_ELBO, config_enumerate

from pyro_vae.common.spec import Spec
from pyro_vae.errors import UsageError
from pyro_vae.objectives import bounds, gradient_estimators, kl_terms
from pyro_vae.objectives.analytic_kl import analytic_kl
from pyro_vae.objectives.beta import Beta
from pyro_vae.objectives.bound_objective import Bound, Term
from pyro_vae.objectives.jackknife import jackknife
from pyro_vae.objectives.scheduled import Scheduled


@dataclass(frozen=True)
class Kl:
    """A treatment of the KL: a handler around both programs, terms of the objective, and what moves as training goes on."""

    handler: Beta | None = None
    terms: tuple[Term, ...] = ()
    scheduled: tuple[Scheduled, ...] = ()


@dataclass(frozen=True)
class Objective:
    """An objective for `fit`: the loss, the programs to run it on, and what moves as training goes on."""

    elbo: ELBO
    kl: Kl

    def pair(self, vae: Any) -> tuple[Any, Any]:
        """Return the VAE's programs, under the handler if any, every discrete z marked where it is to be summed over."""
        sums_out = isinstance(self.elbo, TraceEnum_ELBO)
        programs = vae.model, config_enumerate(vae.guide, "parallel") if sums_out else vae.guide
        return programs if self.kl.handler is None else self.kl.handler.pair(programs)

    @property
    def scheduled(self) -> tuple[Scheduled, ...]:
        """What training tells how far it is."""
        return self.kl.scheduled


def of_weights(make: Callable[..., Any]) -> Callable[..., ELBO]:
    """Return a maker of a `Bound` from the maker of its function: takes particles, groups, and the function's options."""

    def objective(
        gradient: Any, added: tuple[Term, ...], particles: int, groups: int | None = None, **options: Any
    ) -> ELBO:
        return Bound(make(**options), particles, estimator=gradient, num_groups=groups, terms=added)

    return objective


def mean_field(gradient: Any, added: tuple[Term, ...], particles: int) -> ELBO:
    if gradient is not gradient_estimators.pathwise:
        raise UsageError(
            f"objective 'mean_field_elbo' has its KL in closed form and one gradient, pathwise; got gradient {gradient!r}: "
            "take objective 'elbo' with it."
        )
    return Bound(bounds.elbo, particles, estimator=analytic_kl(), terms=added)


def enumerated(gradient: Any, added: tuple[Term, ...], particles: int) -> ELBO:
    if gradient is not gradient_estimators.pathwise or added:
        raise UsageError(
            "objective 'trace_enum' sums latents out: it takes neither --gradient nor added terms of --kl."
        )
    return TraceEnum_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)


def estimator(name: str) -> Callable[[], Any]:
    """Return a maker of the gradient estimator of that name."""
    return lambda: getattr(gradient_estimators, name)


def table(rows: Mapping[str, tuple[Any, ...]]) -> dict[str, Spec]:
    """Make a table of rows name: (make, support, formula, reference, options); options as of `Spec` where left out."""
    fields = ("make", "support", "formula", "reference", "options")
    return {name: Spec(**dict(zip(fields, row, strict=False))) for name, row in rows.items()}


KINGMA = "Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114"
RAINFORTH = "Rainforth et al., 2018, https://arxiv.org/abs/1802.04537"

OBJECTIVES = table({
    "elbo": (of_weights(lambda: bounds.elbo), "bound", "1/K Σ_k log w_k", KINGMA, {"particles": 1}),
    "mean_field_elbo": (mean_field, "bound", "E_q log p(x|z) − KL(q ‖ p), KL in closed form", KINGMA, {"particles": 1}),
    "iwae": (of_weights(lambda: bounds.iwae), "bound", "log 1/K Σ_k w_k",
             "Burda, Grosse & Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519", {"particles": 5}),
    "miwae": (of_weights(lambda: bounds.miwae), "bound", "1/M Σ_m log 1/K Σ_k w_mk",
              RAINFORTH, {"particles": 4, "groups": 4}),
    "piwae": (of_weights(lambda: bounds.piwae), "bound", "model: iwae of M·K, guide: miwae",
              RAINFORTH, {"particles": 4, "groups": 4}),
    "ciwae": (of_weights(bounds.ciwae), "bound", "β elbo + (1 − β) iwae", RAINFORTH, {"particles": 5, "beta": 0.5}),
    "renyi": (of_weights(bounds.renyi), "bound", "1/(1−α) log 1/K Σ_k w_k^(1−α)",
              "Li & Turner, 2016, https://arxiv.org/abs/1602.02311", {"particles": 5, "alpha": 0.5}),
    "tvo": (of_weights(bounds.tvo), "bound", "Σ_j (β_{j+1} − β_j) E_{π_βj} log w",
            "Masrani, Le & Wood, 2019, https://arxiv.org/abs/1907.00031", {"particles": 10, "partitions": 5}),
    "jackknife": (of_weights(jackknife), "estimate, no bound", "Σ_j c_j iwae of K − j",
                  "Nowozin, 2018, https://openreview.net/forum?id=HyZoi-WRb", {"particles": 5, "order": 1}),
    "trace_enum": (enumerated, "enumerated z", "log w summed over discrete z",
                   "Bingham et al., 2019, https://jmlr.org/papers/v20/18-403.html (Pyro's TraceEnum_ELBO)", {"particles": 1}),
})  # fmt: skip

# name: (needs of z, formula, reference); each is the function of that name
ESTIMATORS = {
    "pathwise": ("rsample", "∇ F(log w(z_φ(ε)))", KINGMA),
    "stl": ("rsample", "path alone, no score", "Roeder, Wu & Duvenaud, 2017, https://arxiv.org/abs/1703.09194"),
    "dreg": ("rsample", "score reparameterised: F_k − F_kk",
             "Tucker, Lawson, Gu & Maddison, 2019, https://arxiv.org/abs/1810.04152"),
    "gdreg": ("rsample", "dreg, the prior's parameters too", "Bauer & Mnih, 2021, https://arxiv.org/abs/2101.11046"),
    "vimco": ("any z, K ≥ 2", "(F − F_{−k}) ∇ log q(z_k)", "Mnih & Rezende, 2016, https://arxiv.org/abs/1602.06725"),
    "rws": ("any z", "wake phases: Σ_k w̃_k ∇ log q(z_k)", "Bornschein & Bengio, 2015, https://arxiv.org/abs/1406.2751"),
}  # fmt: skip
GRADIENTS = table({name: (estimator(name), *row) for name, row in ESTIMATORS.items()})

LINEAR = ("elbo", "mean_field_elbo")  # objectives that a term may be added to
SCORED = ("vimco", "rws")  # gradients for draws without rsample
SCHEDULES = ("constant", "linear", "cyclical")


def schedule_of(schedule: str, warmup: float, cycles: int) -> Callable[[float], float] | None:
    """Return a function from the fraction of training done to a multiple of β; None for a constant one."""
    if schedule not in SCHEDULES:
        raise UsageError(f"--kl.schedule is one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not 0 < warmup <= 1 or cycles < 1:
        raise UsageError(f"--kl.warmup is a fraction in (0, 1] and --kl.cycles 1 or more, got {warmup} and {cycles}")
    if schedule == "constant":
        return None
    repeats = cycles if schedule == "cyclical" else 1
    return lambda done: 1.0 if done >= 1 else min(1.0, done * repeats % 1 / warmup)


def with_beta(beta: float = 1.0, schedule: str = "constant", warmup: float = 0.25, cycles: int = 4) -> Kl:
    """Weigh the KL by β, under a schedule."""
    handler = Beta(beta, schedule_of(schedule, warmup, cycles))
    return Kl(handler, scheduled=(handler,))


def with_capacity(nats: float = 25.0, gamma: float = 10.0, warmup: float = 1.0) -> Kl:
    """Hold the KL to a capacity that rises to so many nats."""
    term = kl_terms.capacity(nats, gamma, schedule_of("linear", warmup, 1))
    return Kl(terms=(term,), scheduled=(term,))


def with_total_correlation(dataset_size: int, beta: float = 4.0, stratified: bool = False) -> Kl:
    """Weigh the total correlation by β."""
    return Kl(terms=(kl_terms.total_correlation(beta, dataset_size, stratified),))


KLS = table({
    "plain": (Kl, "bound", "KL(q ‖ p)", KINGMA, {}),
    "beta": (with_beta, "bound for β ≥ 1", "β KL, with its schedule",
             "Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl"),
    "free_bits": (lambda nats=0.25, per="unit": Kl(terms=(kl_terms.free_bits(nats, per),)), "bound", "Σ_g max(λ, KL_g)",
                  "Kingma et al., 2016, https://arxiv.org/abs/1606.04934"),
    "capacity": (with_capacity, "no bound", "γ |KL − C|, C rising", "Burgess et al., 2018, https://arxiv.org/abs/1804.03599"),
    "tc": (with_total_correlation, "no bound", "KL + (β − 1) TC",
           "Chen, Li, Grosse & Duvenaud, 2018, https://arxiv.org/abs/1802.04942"),
    "mmd": (lambda weight=10.0: Kl(terms=(kl_terms.mmd(weight),)), "no bound", "KL + λ MMD²(q(z), p(z))",
            "Zhao, Song & Ermon, 2019, https://arxiv.org/abs/1706.02262"),
})  # fmt: skip


def make_objective(
    objective: tuple[str, Mapping[str, Any]],
    gradient: str,
    kl: tuple[str, Mapping[str, Any]],
    dataset_size: int,
    terms: tuple[Term, ...] = (),
) -> Objective:
    """Make an objective from a config's names and options, every option read; refuse what does not go together.

    Terms that a model brings, such as a classifier's, come first.
    """
    size = {"dataset_size": dataset_size} if kl[0] == "tc" else {}
    treated = KLS[kl[0]].make(**kl[1], **size)
    if treated.terms and objective[0] not in LINEAR:
        raise UsageError(
            f"--kl {kl[0]} adds a term to the ELBO; objective {objective[0]!r} is no ELBO. Take --objective elbo or "
            "mean_field_elbo, or --kl beta, which any objective takes."
        )
    if objective[0] == "jackknife" and gradient in ("dreg", "gdreg"):
        raise UsageError(
            f"objective 'jackknife' has no second derivative here, which gradient {gradient!r} needs: take 'pathwise'"
        )
    elbo = OBJECTIVES[objective[0]].make(GRADIENTS[gradient].make(), (*terms, *treated.terms), **objective[1])
    if gradient == "vimco" and elbo.num_particles < 2:
        raise UsageError("gradient 'vimco' compares particles with one another: --objective.particles 2 or more")
    return Objective(elbo, treated)
