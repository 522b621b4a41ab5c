"""`fit_ensemble`: trains several models of one architecture at once, a seed each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import UsageError
from pyro_vae.objectives.beta import Beta
from pyro_vae.objectives.scheduled import Scheduled, scheduled_numbers
from pyro_vae.programs.structured import refuse_structure
from pyro_vae.training.arguments import check_flags, check_functions, check_schedule, check_validation, objective_of
from pyro_vae.training.batch_source import Transform
from pyro_vae.training.mkl_threads import all_threads
from pyro_vae.training.optimizers import MakeOptimizer, optimizer_of
from pyro_vae.training.schedules import Schedule, constant
from pyro_vae.training.training_rows import RowOptions, parts_of
from pyro_vae.training.training_state import TrainingOptions

from .ensemble import Ensemble
from .job import EnsembleJob
from .members import check_seeds, make_members, per_member
from .report import EnsembleReporter

ENGINES = ("auto", "trace", "compile", "eager")


@suggest_keywords
def fit_ensemble(
    make: Callable[..., Any],
    x: Any,
    *context: Any,
    seeds: Iterable[int] = range(8),
    validation: Any = None,
    objective: ELBO | type[ELBO] | None = None,
    optimizer: MakeOptimizer | PyroOptim | Sequence[MakeOptimizer | PyroOptim] | None = None,
    beta: float | Beta | Sequence[float | Beta] | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    drop_last: bool = False,
    schedule: Schedule = constant,
    patience: int | None = None,
    transform: Transform | None = None,
    device: torch.device | str | None = None,
    missing: bool = False,
    standardize: bool = False,
    engine: str = "auto",
    scheduled: Sequence[Scheduled] = (),
    on_epoch: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
    verbose: bool = True,
) -> Ensemble:
    r"""Train M models of one architecture at once: each as :func:`~pyro_vae.fit` would train it alone under its seed.

    One member's step, traced into a flat graph, is mapped over all members' parameters, batches and noise by ``torch.vmap``:
    a matrix product of all members costs little more than one's own at small batches. Each member has its own starting
    weights, order of the rows, binarization and noise, those of ``fit(make(), x, seed=seed)``: on the CPU the same numbers,
    so that its gradients are those of the lone run to rounding. Noise whose distribution depends on parameters (of a
    gamma, say) is drawn for all members at once, equal in law.

    Before the graph is used, and in the last epoch, every member's loss, gradients and batch statistics are checked against
    its own programs; in the other epochs one member's, in turn. A pair that cannot be mapped (the reason is in
    :attr:`FitResult.engine`) is trained one member after the other, with the same seeds and the same result. A member that
    diverges is frozen and named, and the others go on.

    On a GPU, from 100 epochs on, what is logged is computed of all members at once, too, to rounding, and compared in the same
    way with what each logs alone; where programs are found to have changed since, a warning names the epochs.

    Args:
        make: makes a new model each time: a :class:`VAE`, any object with ``model`` and ``guide``, or a tuple of programs. It
            is called under the random stream of each seed, and is given the seed if it takes one (a parameter without a
            default, or one called ``seed``).
        x, context, validation, objective, epochs, batch_size, drop_last, schedule, patience, transform, device, missing,
            standardize, scheduled, verbose: as for :func:`~pyro_vae.fit`, the same for all members.
        seeds: of the members, each another.
        optimizer: Adam, as for :func:`~pyro_vae.fit`, for all members, or a list with one for each, such as
            ``[adam(lr) for lr in rates]``. Another optimizer trains one member after the other.
        beta: weight of the KL, for all or a list with one for each: a number, or a :class:`~pyro_vae.Beta` with a schedule.
        engine: "trace" runs the common graph as it is, "compile" puts it through Inductor, "auto" chooses by the number of
            steps; "eager" trains one member after the other, as their programs run.
        on_epoch: called with each member's record of each epoch, which has its ``seed``; a member is done where it raises
            :class:`~pyro_vae.StopTraining`.

    Returns:
        An :class:`Ensemble` of the members, each holding its own best weights.

    Raises:
        UsageError: no seeds, or one twice; members that share parameters, or are of unlike architectures (the message names
            member and parameter).
        DivergedError: all members diverged.
        ProgramError: programs that change while they are trained together in a way that the graph cannot follow.
        DataError, SupportError, ShapeError, DeviceError, DeviceMemoryError, Interrupted: as :func:`~pyro_vae.fit`.

    References:
        Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (Lakshminarayanan, Pritzel & Blundell,
        2017), https://arxiv.org/abs/1612.01474

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal
        >>> def make():
        ...     return VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> ensemble = fit_ensemble(make, torch.randn(64, 3), seeds=[0, 1, 2], epochs=2, verbose=False)
        >>> len(ensemble), ensemble.seeds, type(ensemble[2]).__name__, len(ensemble.results[2].history)
        (3, (0, 1, 2), 'VAE', 2)
    """
    check_flags(drop_last=drop_last, missing=missing, standardize=standardize, verbose=verbose)
    check_functions(transform=transform, on_epoch=on_epoch)
    check_validation(validation)
    check_schedule(schedule)
    scheduled_numbers(scheduled)
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")
    epochs = whole("epochs", epochs, 1)
    patience = None if patience is None else whole("patience", patience, 1)
    options = TrainingOptions(epochs, schedule, patience)
    members = make_members(make, check_seeds(seeds), beta, scheduled)
    makers = [optimizer_of(given) for given in per_member("optimizer", optimizer, len(members))]
    if transform is not None:
        refuse_structure(x, "fit_ensemble with a transform")
    given = None if objective is None else objective_of(objective)
    job = EnsembleJob(members, makers, given, options, engine, device, standardize)
    beside = parts_of(validation, 1 + len(context))
    job.load((x, *context), RowOptions(beside, batch_size, transform, drop_last, missing, on_disk=False))
    with all_threads(), EnsembleReporter(epochs, verbose, on_epoch) as report:
        return job.run(report)
