"""`fit`: raises the ELBO of any model and guide on data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.data.lazy_rows import any_lazy
from pyro_vae.objectives.scheduled import Scheduled
from pyro_vae.programs.pair import move, owners, programs
from pyro_vae.programs.parameter_kinds import check_values
from pyro_vae.programs.structured import on_tensors, refuse_structure
from pyro_vae.programs.support import takes_missing
from pyro_vae.training.engines.autotune import check_autotune, choose_by_timing, never_compiled
from pyro_vae.training.engines.choose import choose_engine, choose_whole_steps
from pyro_vae.training.engines.scheduled_values import ScheduledValues

from .aggressive_inference import Aggressive, AggressiveInference
from .arguments import (
    check_choices,
    check_flags,
    check_functions,
    check_pair_of,
    check_schedule,
    check_validation,
)
from .batch_source import Transform
from .before_training import examine, print_notes
from .callbacks import TrainingCallback, check_callbacks
from .checkpoint_state import SavedState, identity, restore
from .mkl_threads import all_threads
from .optimizers import optimizer_of
from .pair_as_trained import pair_as_trained
from .precision import precision_of, remarks
from .reporter import Reporter
from .schedules import Schedule, constant
from .shard_checks import check_alike, check_resumed, check_shards, resolve_shards
from .sharded_networks import absence_named, engine_of_sharded, in_step
from .standardize import standardize_model
from .step import MakeOptimizer, Step
from .trainer import Trainer
from .training_rows import RowOptions, parts_of, training_data
from .training_state import FitResult, TrainingOptions


@suggest_keywords
def fit(
    vae: Any,
    x: Any,
    *context: Any,
    validation: Any = None,
    objective: ELBO | type[ELBO] | None = None,
    optimizer: MakeOptimizer | torch.optim.Optimizer | PyroOptim | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    drop_last: bool = False,
    shards: int = 1,
    schedule: Schedule = constant,
    patience: int | None = None,
    aggressive: Aggressive | None = None,
    transform: Transform | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    missing: bool = False,
    standardize: bool = False,
    engine: str = "auto",
    precision: str = "float32",
    autotune: bool = False,
    scheduled: Sequence[Scheduled] = (),
    on_step: Callable[[float], Any] | None = None,
    on_epoch: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
    bad_steps: int = 1,
    callbacks: Sequence[TrainingCallback] = (),
    resume: SavedState | None = None,
    fork: bool = False,
    verbose: bool = True,
) -> FitResult:
    """Raise the ELBO of a model and guide on data, by stochastic variational inference.

    After every epoch the true ELBO = E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)) is logged in nats per datum, whatever loss was
    trained, and what the latents carry: active units, I(x; z), the KL of each (see :class:`FitResult`). With validation rows,
    the weights of the best validation ELBO are kept; without, the last.

    Sites outside the data plate, θ, are parameters of the data set: a batch of B of N rows counts them with weight B/N, so
    that N/B times its loss is an unbiased estimate of the data set's, KL(q(θ) ‖ p(θ)) counted once
    (:class:`~pyro_vae.objectives.count_once.CountOnce`; objectives that are sums of terms, as Trace_ELBO). Logged is the ELBO
    of all N rows, over N as ``elbo`` and ``kl``, and whole as ``elbo_data_set`` with its error and ``kl_global``; that of
    validation rows is E_q(θ) of their own terms alone, a lower bound in expectation on their log p(x | X) under q(θ).

    Args:
        vae: a :class:`VAE`, any object with ``model`` and ``guide``, or a tuple ``(model, guide)`` of Pyro programs.
        x: data ``(N, *event)``: a tensor, an array, anything :func:`~pyro_vae.data.as_rows` takes; rows that stay on disk
            (:class:`~pyro_vae.data.Stored`), shuffled in blocks, a window of them in memory; a sparse matrix of scipy or an
            AnnData, made dense a batch at a time (:class:`~pyro_vae.data.sparse.SparseRows`); or several with N rows
            each in a dict, a named tuple or a ``PackedSequence``, which the programs take as such
            (:func:`~pyro_vae.data.structures.is_structure`). Whole numbers stay whole where the programs want them so, as an
            embedding does (:func:`~pyro_vae.programs.arguments.argument_dtypes`).
        *context: what the programs take beside x, each with N rows.
        validation: x to validate on, or a tuple ``(x, *context)``.
        objective: any :class:`pyro.infer.ELBO`, or such a class without options; ``Trace_ELBO()`` by default. Where its loss
            is a tuple, as of ``ReweightedWakeSleep``, the first (wake-theta, the negative bound) is logged.
        optimizer: parameters to a torch optimizer, such as ``adam(lr=1e-3)`` or ``functools.partial(torch.optim.SGD, lr=0.1)``.
            Also a torch optimizer of all parameters of the programs, and ``pyro.optim.Adam({"lr": 1e-3})``, of which the torch
            optimizer is taken.
        epochs: passes over the data.
        batch_size: rows a step, 128 (or N, if smaller) by default; a shorter last batch is used, too.
        drop_last: leave that shorter last batch of each epoch out, other rows each time: for programs that do not run on it,
            such as batch normalisation on one row.
        shards: parts of each batch, a power of two, whose gradients are added up in one order: the same bits on 1, 2, ...
            processes that torchrun starts. Each part has noise of its own; 1 is a whole batch, in one process.
        schedule: fraction of training done to a multiple of the learning rate, such as ``warmup(cosine)``.
        patience: stop after this many epochs without a better validation ELBO; None never stops early. Epochs in which what
            `scheduled` moves (β in a warm-up) is not yet what it ends with do not count; the best weights may be theirs.
        aggressive: an :class:`~pyro_vae.training.aggressive_inference.Aggressive` encoder, that catches up before each update
            of the model, against posterior collapse; None is ordinary training.
        transform: ``transform(x_batch, generator)`` makes each training batch, such as :func:`~pyro_vae.binarize` (dynamic
            binarization). Validation rows are taken as they are: fix them once.
        device: where to train; None is where the model is. Data that takes more than half of a GPU's free memory stays on the
            host, and each batch is sent while the step before it runs.
        seed: of order, binarization and noise; the global random state is left as it was.
        missing: x may hold NaN, for what was not observed. Modules that declare it, such as
            :class:`~pyro_vae.models.missing.SkipMissing`, do not need it.
        standardize: have the networks of a VAE see x in standard units, (x − mean) / std of each element over the training
            rows, while its densities stay those of x, the Jacobian in log p(x). The units are buffers of the model, set before
            the first step (a model that has some keeps them); ``vae.standardize(x)`` does the same, as before weights are
            loaded. Elements that are no real numbers to the likelihood stay as they are; NaN counts in neither mean nor std.
        engine: how each step's loss and gradients are computed, with the same results but for rounding. "eager" runs the
            programs; "trace" a flat graph of their tensor operations, made once for each kind of batch; "compile" puts that
            through Inductor (needs a C++ compiler, takes 10 to 30 seconds once); "graph" replays it as a CUDA graph; "auto"
            chooses by the device and the number of steps. Under torch's Adam or AdamW (without amsgrad, maximize) a graph
            holds the whole step, rows, transform and update, and "graph" replays 16 of them at a time. Each graph is checked
            against eager when it is made and at each epoch; :attr:`FitResult.engine` has the reason where a step runs eager.
        precision: "tf32" multiplies matrices with factors of 10 bits while training, on CUDA, where that is several times as
            fast; "bf16" multiplies within linear and convolutional layers in bfloat16, of 8 bits; the rest is float32, and so
            is what is logged and evaluated. A note says where either gains nothing: on a CPU, "tf32" is the same to the bit.
        autotune: have torch's compiler choose among kernels for matrix products by timing them, on CUDA with triton, in engines
            that compile ("compile", "graph", "auto"). Its cache on disk keeps the times (in the folder TORCHINDUCTOR_CACHE_DIR,
            else torchinductor_USER among temporary files): a later run does not time again. Where timing fails, the library's
            kernels stay, and :attr:`FitResult.engine` says so.
        scheduled: objects that change as training goes on, such as a :class:`~pyro_vae.Beta` or a ``capacity`` with a schedule:
            their ``at`` is told the fraction of training done, 0 to 1, before each step, and every engine follows their
            numbers (:class:`~pyro_vae.objectives.scheduled.Scheduled`).
        on_step: called with the same fraction, after them. As it may change any number of the programs, no step is traced.
        on_epoch: called with each epoch's record; what it returns joins the record. Training ends, as after its last epoch,
            where it raises :class:`~pyro_vae.StopTraining`, as a :class:`~pyro_vae.TimeBudget` does.
        bad_steps: stop at this many steps in a row whose loss or gradient is not finite; those before are skipped, with the
            weights as they were.
        callbacks: called between steps and epochs, each a :class:`~pyro_vae.training.trainer.TrainingCallback`, such as a
            :class:`~pyro_vae.runs.checkpointer.Checkpointer`, that saves the training's whole state before the first step,
            every few minutes, at an interruption and at the end.
        resume: a state that was saved (``checkpointer.newest()``): continue there, in the middle of an epoch if need be, to the
            same bits as without the interruption (on CUDA with deterministic algorithms), with all other arguments as they
            were. On another device, number of threads, version of torch, engine or precision, a note says that the bits may
            differ, and :attr:`FitResult.exact` is False. So it is with `autotune`: kernels that are chosen by other times round
            otherwise, and the bits are the same if torch's cache of the times is.
        fork: accept other arguments and data: weights, optimizer and history are taken over.
        verbose: a progress bar on a terminal, elsewhere how long it will take and a line an epoch (standard error).

    Returns:
        A :class:`FitResult`; the model itself is trained in place.

    Raises:
        DataError, SupportError, ShapeError: data that cannot be used or has no likelihood, before anything is trained.
        ProgramError: programs that :func:`~pyro_vae.check` finds at odds with each other; lesser findings are printed.
        DeviceError: a device that is not there.
        DivergedError: losses or gradients that are not finite, by step and rows; the best weights so far are restored.
        CheckpointError: `resume` is of another run; the message lists what differs.
        DeviceMemoryError: a batch that the device does not hold, and that cannot be computed in parts: where the loss is a sum
            over rows it is, with the same gradient and law (:mod:`~pyro_vae.training.micro_batches`), and `engine` says so.
        Interrupted: Ctrl-C; the best weights so far are restored.

    References:
        Stochastic Variational Inference (Hoffman, Blei, Wang & Paisley, 2013), https://arxiv.org/abs/1206.7051

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> run = fit(vae, torch.randn(64, 3), epochs=2, verbose=False)
        >>> sorted(run.history[-1])
        ['active_units', 'active_units_0.001', 'elbo', 'epoch', 'kl', 'kl_per_unit', 'loss', 'lr', 'mutual_information',
         'mutual_information_se', 'reconstruction', 'seconds', 'step', 'train_elbo']
    """
    check_pair_of(vae)
    check_flags(drop_last=drop_last, missing=missing, standardize=standardize, autotune=autotune, fork=fork)
    check_flags(verbose=verbose)
    check_functions(transform=transform, on_step=on_step, on_epoch=on_epoch)
    check_validation(validation)
    check_schedule(schedule)
    check_choices(engine, precision, device, aggressive, resume)
    epochs, bad_steps = whole("epochs", epochs, 1), whole("bad_steps", bad_steps, 1)
    patience = None if patience is None else whole("patience", patience, 1)
    model, guide = programs(vae)
    modules = owners(vae, model, guide)
    check_values(*modules)
    check_callbacks(callbacks)
    engine = engine_of_sharded(modules, engine, aggressive=aggressive, shards=shards != 1, autotune=autotune)
    together = in_step(modules, callbacks, resume is not None)
    if transform is not None:
        refuse_structure(x, "fit with a transform")
    model, guide, args = on_tensors(model, guide, x, *context)
    model_device = move(modules, device)
    beside = parts_of(validation, 1 + len(context))
    rows = RowOptions(beside, batch_size, transform, drop_last, missing or takes_missing(vae, model, guide))
    data = training_data(model, guide, args, rows, model_device, aggressive is not None)
    if standardize:
        standardize_model(modules, data.train)
    check_autotune(autotune, engine, shards, data.device)
    options = TrainingOptions(epochs, schedule, patience, seed, bad_steps, scheduled, on_step, bool(autotune))
    in_shards = resolve_shards(shards, data.batch_size, seed, aggressive) if together is None else None
    looked_at = bad_steps > 1 or bool(callbacks) or resume is not None  # by others, between two steps
    immediate = looked_at or aggressive is not None or in_shards is not None or any_lazy(*data.train)
    model, guide, trained = pair_as_trained(model, guide, objective, data, seed)
    step = Step(model, guide, trained, optimizer_of(optimizer), immediate, precision_of(precision))
    step.shards, step.in_step = in_shards, together
    verbose = verbose and step.here.leads
    scheduled_values = ScheduledValues(scheduled, on_step is not None)
    planned_steps = epochs * data.steps_per_epoch
    step.engine, step.engine_reason = choose_engine(engine, step, modules, scheduled_values, planned_steps, data.device)
    catch_up = None if aggressive is None else AggressiveInference(aggressive, step)
    whole_steps = choose_whole_steps(step.engine, data, options, planned_steps, catch_up)
    choose_by_timing(step.engine, options)
    trainer = Trainer(step, modules, data, options, callbacks, catch_up, whole_steps)
    check_alike(step, partial(identity, trainer), trainer.named_tensors)
    check_resumed(step.here, resume)
    notes = remarks(precision, data.device) + never_compiled(step, options, whole_steps is None) + examine(trainer)
    check_shards(step, trainer.metrics.first(data.batch_size), options)
    print_notes(notes if verbose else ())
    with all_threads(), absence_named(step.here), Reporter(epochs, verbose, on_epoch) as reporter:
        if resume is not None:
            restore(trainer, resume, fork)
        return trainer.run(reporter)
