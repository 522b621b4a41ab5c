"""Names to objectives: bounds, gradient estimators, and how the KL is treated; closed tables, as those of the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro.infer import ELBO, TraceEnum_ELBO, config_enumerate

from pyro_vae.errors import UsageError
from pyro_vae.infer import bounds, estimators, terms
from pyro_vae.infer.analytic import analytic_kl
from pyro_vae.infer.handlers import Beta
from pyro_vae.infer.objective import Bound, Term
from pyro_vae.objectives.scheduled import Scheduled


@dataclass(frozen=True)
class ObjectiveSpec:
    """One bound, estimator or treatment of the KL.

    Attributes:
        name: its name.
        make: makes it from its options.
        support: what its value is, or what it needs ("bound", "estimate", "rsample" …).
        formula: in a line.
        options: with their defaults.
        reference: where it comes from.
    """

    name: str
    make: Callable[..., Any]
    support: str
    formula: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""


@dataclass(frozen=True)
class Kl:
    """How the KL is treated: a handler around both programs, terms of the objective, and what moves as training goes on."""

    handler: Beta | None = None
    terms: tuple[Term, ...] = ()
    scheduled: tuple[Scheduled, ...] = ()


@dataclass(frozen=True)
class Objective:
    """What `fit` is told: the loss, the programs to run it on, and what moves as training goes on."""

    elbo: ELBO
    kl: Kl

    def pair(self, vae: Any) -> tuple[Any, Any]:
        """The VAE's programs, under a handler where there is one, every discrete z marked where it is to be summed over."""
        enumerated = isinstance(self.elbo, TraceEnum_ELBO)
        programs = vae.model, config_enumerate(vae.guide, "parallel") if enumerated else vae.guide
        return programs if self.kl.handler is None else self.kl.handler.pair(programs)

    @property
    def scheduled(self) -> tuple[Scheduled, ...]:
        return self.kl.scheduled


def of_weights(make: Callable[..., Any]) -> Callable[..., ELBO]:
    """Maker of a `Bound` from the maker of its function: takes particles, perhaps groups, and the function's options."""

    def objective(
        gradient: Any, added: tuple[Term, ...], particles: int, groups: int | None = None, **options: Any
    ) -> ELBO:
        return Bound(make(**options), particles, estimator=gradient, num_groups=groups, terms=added)

    return objective


def plain(bound: Any) -> Callable[..., ELBO]:
    """Maker of a `Bound` of a function without options."""
    return of_weights(lambda: bound)


def mean_field(gradient: Any, added: tuple[Term, ...], particles: int) -> ELBO:
    if gradient is not estimators.pathwise:
        raise UsageError(
            f"objective 'mean_field_elbo' has its KL in closed form and one gradient, pathwise; got gradient {gradient!r}: "
            "take objective 'elbo' with it."
        )
    return Bound(bounds.elbo, particles, estimator=analytic_kl(), terms=added)


def enumerated(gradient: Any, added: tuple[Term, ...], particles: int) -> ELBO:
    if gradient is not estimators.pathwise or added:
        raise UsageError(
            "objective 'trace_enum' sums latents out: it takes neither --gradient nor added terms of --kl."
        )
    return TraceEnum_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)


def spec(name: str, make: Any, formula: str, reference: str, support: str = "bound", **options: Any) -> ObjectiveSpec:
    return ObjectiveSpec(name, make, support, formula, options, reference)


OBJECTIVES = {
    s.name: s
    for s in (
        spec(
            "elbo",
            plain(bounds.elbo),
            "1/K Σ_k log w_k",
            "Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
            particles=1,
        ),
        spec(
            "mean_field_elbo",
            mean_field,
            "E_q log p(x|z) − KL(q ‖ p), KL in closed form",
            "Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
            particles=1,
        ),
        spec(
            "iwae",
            plain(bounds.iwae),
            "log 1/K Σ_k w_k",
            "Burda, Grosse & Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519",
            particles=5,
        ),
        spec(
            "miwae",
            plain(bounds.miwae),
            "1/M Σ_m log 1/K Σ_k w_mk",
            "Rainforth et al., 2018, https://arxiv.org/abs/1802.04537",
            particles=4,
            groups=4,
        ),
        spec(
            "piwae",
            plain(bounds.piwae),
            "model: iwae of M·K, guide: miwae",
            "Rainforth et al., 2018, https://arxiv.org/abs/1802.04537",
            particles=4,
            groups=4,
        ),
        spec(
            "ciwae",
            of_weights(bounds.ciwae),
            "β elbo + (1 − β) iwae",
            "Rainforth et al., 2018, https://arxiv.org/abs/1802.04537",
            particles=5,
            beta=0.5,
        ),
        spec(
            "renyi",
            of_weights(bounds.renyi),
            "1/(1−α) log 1/K Σ_k w_k^(1−α)",
            "Li & Turner, 2016, https://arxiv.org/abs/1602.02311",
            particles=5,
            alpha=0.5,
        ),
        spec(
            "tvo",
            of_weights(bounds.tvo),
            "Σ_j (β_{j+1} − β_j) E_{π_βj} log w",
            "Masrani, Le & Wood, 2019, https://arxiv.org/abs/1907.00031",
            particles=10,
            partitions=5,
        ),
        spec(
            "jackknife",
            of_weights(bounds.jackknife),
            "Σ_j c_j iwae of K − j",
            "Nowozin, 2018, https://openreview.net/forum?id=HyZoi-WRb",
            "estimate, no bound",
            particles=5,
            order=1,
        ),
        spec(
            "trace_enum",
            enumerated,
            "log w summed over discrete z",
            "Bingham et al., 2019, https://jmlr.org/papers/v20/18-403.html (Pyro's TraceEnum_ELBO)",
            "enumerated z",
            particles=1,
        ),
    )
}

GRADIENTS = {
    s.name: s
    for s in (
        spec(
            "pathwise",
            lambda: estimators.pathwise,
            "∇ F(log w(z_φ(ε)))",
            "Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114",
            "rsample",
        ),
        spec(
            "stl",
            lambda: estimators.stl,
            "path alone, no score",
            "Roeder, Wu & Duvenaud, 2017, https://arxiv.org/abs/1703.09194",
            "rsample",
        ),
        spec(
            "dreg",
            lambda: estimators.dreg,
            "score reparameterised: F_k − F_kk",
            "Tucker, Lawson, Gu & Maddison, 2019, https://arxiv.org/abs/1810.04152",
            "rsample",
        ),
        spec(
            "gdreg",
            lambda: estimators.gdreg,
            "dreg, the prior's parameters too",
            "Bauer & Mnih, 2021, https://arxiv.org/abs/2101.11046",
            "rsample",
        ),
        spec(
            "vimco",
            lambda: estimators.vimco,
            "(F − F_{−k}) ∇ log q(z_k)",
            "Mnih & Rezende, 2016, https://arxiv.org/abs/1602.06725",
            "any z, K ≥ 2",
        ),
        spec(
            "rws",
            lambda: estimators.rws,
            "wake phases: Σ_k w̃_k ∇ log q(z_k)",
            "Bornschein & Bengio, 2015, https://arxiv.org/abs/1406.2751",
            "any z",
        ),
    )
}

LINEAR = ("elbo", "mean_field_elbo")  # objectives that a term may be added to
SCORED = ("vimco", "rws")  # gradients for draws without rsample
SCHEDULES = ("constant", "linear", "cyclical")


def schedule_of(schedule: str, warmup: float, cycles: int) -> Callable[[float], float] | None:
    """Fraction of training done to a multiple of β."""
    if schedule not in SCHEDULES:
        raise UsageError(f"--kl.schedule is one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not 0 < warmup <= 1 or cycles < 1:
        raise UsageError(f"--kl.warmup is a fraction in (0, 1] and --kl.cycles 1 or more, got {warmup} and {cycles}")
    if schedule == "constant":
        return None
    repeats = cycles if schedule == "cyclical" else 1
    return lambda done: 1.0 if done >= 1 else min(1.0, done * repeats % 1 / warmup)


def with_beta(beta: float, schedule: str, warmup: float, cycles: int) -> Kl:
    handler = Beta(beta, schedule_of(schedule, warmup, cycles))
    return Kl(handler, scheduled=(handler,))


def with_capacity(nats: float, gamma: float, warmup: float) -> Kl:
    term = terms.capacity(nats, gamma, schedule_of("linear", warmup, 1))
    return Kl(terms=(term,), scheduled=(term,))


KLS = {
    s.name: s
    for s in (
        spec("plain", Kl, "KL(q ‖ p)", "Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114", "bound"),
        spec(
            "beta",
            with_beta,
            "β KL, with its schedule",
            "Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl",
            "bound for β ≥ 1",
            beta=1.0,
            schedule="constant",
            warmup=0.25,
            cycles=4,
        ),
        spec(
            "free_bits",
            lambda **o: Kl(terms=(terms.free_bits(**o),)),
            "Σ_g max(λ, KL_g)",
            "Kingma et al., 2016, https://arxiv.org/abs/1606.04934",
            nats=0.25,
            per="unit",
        ),
        spec(
            "capacity",
            with_capacity,
            "γ |KL − C|, C rising",
            "Burgess et al., 2018, https://arxiv.org/abs/1804.03599",
            "no bound",
            nats=25.0,
            gamma=10.0,
            warmup=1.0,
        ),
        spec(
            "tc",
            lambda **o: Kl(terms=(terms.total_correlation(**o),)),
            "KL + (β − 1) TC",
            "Chen, Li, Grosse & Duvenaud, 2018, https://arxiv.org/abs/1802.04942",
            "no bound",
            beta=4.0,
            stratified=False,
        ),
        spec(
            "mmd",
            lambda **o: Kl(terms=(terms.mmd(**o),)),
            "KL + λ MMD²(q(z), p(z))",
            "Zhao, Song & Ermon, 2019, https://arxiv.org/abs/1706.02262",
            "no bound",
            weight=10.0,
        ),
    )
}


def make_objective(
    objective: tuple[str, Mapping[str, Any]], gradient: str, kl: tuple[str, Mapping[str, Any]], dataset_size: int
) -> Objective:
    """An objective from the names and options that a config gives, every option read.

    Raises:
        UsageError: what does not go together.
    """
    options = {**kl[1], "dataset_size": dataset_size} if kl[0] == "tc" else kl[1]
    treated = KLS[kl[0]].make(**options)
    if treated.terms and objective[0] not in LINEAR:
        raise UsageError(
            f"--kl {kl[0]} adds a term to the ELBO; objective {objective[0]!r} is no ELBO. Take --objective elbo or "
            "mean_field_elbo, or --kl beta, which any objective takes."
        )
    if objective[0] == "jackknife" and gradient in ("dreg", "gdreg"):
        raise UsageError(
            f"objective 'jackknife' has no second derivative here, which gradient {gradient!r} needs: take 'pathwise'"
        )
    made = OBJECTIVES[objective[0]].make(GRADIENTS[gradient].make(), treated.terms, **objective[1])
    if gradient == "vimco" and made.num_particles < 2:
        raise UsageError("gradient 'vimco' compares particles with one another: --objective.particles 2 or more")
    return Objective(made, treated)
