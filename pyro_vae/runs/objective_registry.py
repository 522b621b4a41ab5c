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


OBJECTIVES: dict[str, Spec] = {
    "elbo": Spec(
        make=of_weights(lambda: bounds.elbo), support="bound", formula="1/K Σ_k log w_k", options={"particles": 1},
        reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
    ),
    "mean_field_elbo": Spec(
        make=mean_field, support="bound", formula="E_q log p(x|z) − KL(q ‖ p), KL in closed form", options={"particles": 1},
        reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
    ),
    "iwae": Spec(
        make=of_weights(lambda: bounds.iwae), support="bound", formula="log 1/K Σ_k w_k", options={"particles": 5},
        reference="Burda, Grosse & Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519",
    ),
    "miwae": Spec(
        make=of_weights(lambda: bounds.miwae), support="bound", formula="1/M Σ_m log 1/K Σ_k w_mk",
        options={"particles": 4, "groups": 4}, reference="Rainforth et al., 2018, https://arxiv.org/abs/1802.04537",
    ),
    "piwae": Spec(
        make=of_weights(lambda: bounds.piwae), support="bound", formula="model: iwae of M·K, guide: miwae",
        options={"particles": 4, "groups": 4}, reference="Rainforth et al., 2018, https://arxiv.org/abs/1802.04537",
    ),
    "ciwae": Spec(
        make=of_weights(bounds.ciwae), support="bound", formula="β elbo + (1 − β) iwae",
        options={"particles": 5, "beta": 0.5}, reference="Rainforth et al., 2018, https://arxiv.org/abs/1802.04537",
    ),
    "renyi": Spec(
        make=of_weights(bounds.renyi), support="bound", formula="1/(1−α) log 1/K Σ_k w_k^(1−α)",
        options={"particles": 5, "alpha": 0.5}, reference="Li & Turner, 2016, https://arxiv.org/abs/1602.02311",
    ),
    "tvo": Spec(
        make=of_weights(bounds.tvo), support="bound", formula="Σ_j (β_{j+1} − β_j) E_{π_βj} log w",
        options={"particles": 10, "partitions": 5}, reference="Masrani, Le & Wood, 2019, https://arxiv.org/abs/1907.00031",
    ),
    "jackknife": Spec(
        make=of_weights(bounds.jackknife), support="estimate, no bound", formula="Σ_j c_j iwae of K − j",
        options={"particles": 5, "order": 1}, reference="Nowozin, 2018, https://openreview.net/forum?id=HyZoi-WRb",
    ),
    "trace_enum": Spec(
        make=enumerated, support="enumerated z", formula="log w summed over discrete z", options={"particles": 1},
        reference="Bingham et al., 2019, https://jmlr.org/papers/v20/18-403.html (Pyro's TraceEnum_ELBO)",
    ),
}  # fmt: skip

# name: (needs of z, formula, reference); each is the function of that name
ESTIMATORS = {
    "pathwise": ("rsample", "∇ F(log w(z_φ(ε)))", "Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114"),
    "stl": ("rsample", "path alone, no score", "Roeder, Wu & Duvenaud, 2017, https://arxiv.org/abs/1703.09194"),
    "dreg": (
        "rsample", "score reparameterised: F_k − F_kk",
        "Tucker, Lawson, Gu & Maddison, 2019, https://arxiv.org/abs/1810.04152",
    ),
    "gdreg": ("rsample", "dreg, the prior's parameters too", "Bauer & Mnih, 2021, https://arxiv.org/abs/2101.11046"),
    "vimco": ("any z, K ≥ 2", "(F − F_{−k}) ∇ log q(z_k)", "Mnih & Rezende, 2016, https://arxiv.org/abs/1602.06725"),
    "rws": (
        "any z", "wake phases: Σ_k w̃_k ∇ log q(z_k)", "Bornschein & Bengio, 2015, https://arxiv.org/abs/1406.2751",
    ),
}  # fmt: skip
GRADIENTS = {
    name: Spec(make=estimator(name), support=support, formula=formula, reference=reference)
    for name, (support, formula, reference) in ESTIMATORS.items()
}

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
    handler = Beta(beta, schedule_of(schedule, warmup, cycles))
    return Kl(handler, scheduled=(handler,))


def with_capacity(nats: float = 25.0, gamma: float = 10.0, warmup: float = 1.0) -> Kl:
    term = kl_terms.capacity(nats, gamma, schedule_of("linear", warmup, 1))
    return Kl(terms=(term,), scheduled=(term,))


def with_total_correlation(dataset_size: int, beta: float = 4.0, stratified: bool = False) -> Kl:
    return Kl(terms=(kl_terms.total_correlation(beta, dataset_size, stratified),))


KLS: dict[str, Spec] = {
    "plain": Spec(
        make=Kl, support="bound", formula="KL(q ‖ p)", options={},
        reference="Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
    ),
    "beta": Spec(
        make=with_beta, support="bound for β ≥ 1", formula="β KL, with its schedule",
        reference="Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl",
    ),
    "free_bits": Spec(
        make=lambda nats=0.25, per="unit": Kl(terms=(kl_terms.free_bits(nats, per),)),
        support="bound", formula="Σ_g max(λ, KL_g)",
        reference="Kingma et al., 2016, https://arxiv.org/abs/1606.04934",
    ),
    "capacity": Spec(
        make=with_capacity, support="no bound", formula="γ |KL − C|, C rising",
        reference="Burgess et al., 2018, https://arxiv.org/abs/1804.03599",
    ),
    "tc": Spec(
        make=with_total_correlation, support="no bound", formula="KL + (β − 1) TC",
        reference="Chen, Li, Grosse & Duvenaud, 2018, https://arxiv.org/abs/1802.04942",
    ),
    "mmd": Spec(
        make=lambda weight=10.0: Kl(terms=(kl_terms.mmd(weight),)), support="no bound", formula="KL + λ MMD²(q(z), p(z))",
        reference="Zhao, Song & Ermon, 2019, https://arxiv.org/abs/1706.02262",
    ),
}  # fmt: skip


def make_objective(
    objective: tuple[str, Mapping[str, Any]], gradient: str, kl: tuple[str, Mapping[str, Any]], dataset_size: int
) -> Objective:
    """Make an objective from the names and options that a config gives, every option read.

    Raises:
        UsageError: what does not go together.
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
    elbo = OBJECTIVES[objective[0]].make(GRADIENTS[gradient].make(), treated.terms, **objective[1])
    if gradient == "vimco" and elbo.num_particles < 2:
        raise UsageError("gradient 'vimco' compares particles with one another: --objective.particles 2 or more")
    return Objective(elbo, treated)
