"""How to train, and how far a training has come, as plain data; the generators and buffers that a step depends on beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.common.lost_device import is_lost
from pyro_vae.common.result_table import ResultTable
from pyro_vae.common.sharded import reshard
from pyro_vae.errors import UsageError
from pyro_vae.objectives.scheduled import Scheduled
from pyro_vae.programs.parameters import stored_parameters

from .schedules import Schedule, constant

PLAIN = (int, float, str)


@dataclass(frozen=True)
class TrainingOptions:
    """The arguments of :func:`~pyro_vae.fit` of the same names; a UsageError for no epochs, or no steps that may be bad."""

    epochs: int = 100
    schedule: Schedule = constant
    patience: int | None = None
    seed: int = 0
    bad_steps: int = 1
    scheduled: Sequence[Scheduled] = ()
    on_step: Callable[[float], Any] | None = None
    autotune: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "bad_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")

    def tell_progress(self, done: float) -> None:
        """Tell scheduled objects, and then a function of the user's own, how far training is: `done`, from 0 to 1."""
        for moved in self.scheduled:
            moved.at(done)
        if self.on_step is not None:
            self.on_step(done)


@dataclass
class FitResult(ResultTable):
    """A training run: its history, and how it ended.

    Attributes:
        history: one record an epoch: epoch, step, lr, loss (the objective's, per datum), elbo, reconstruction and kl (nats
            per datum, on the validation rows if there are any), train_elbo; of the same rows (at most 500, where that takes
            draws of its own), active_units and active_units_0.001 (Var_x(E[z | x]) above 0.01 and 0.001), mutual_information
            (nats, a lower bound on I(x; z) and at most log of 200 rows, 32 where q is dear), mutual_information_se and
            kl_per_unit (nats), each None where it
            is not defined, see :func:`~pyro_vae.diagnostics.latent_usage.latents`; seconds; with `aggressive`, whether the
            epoch was, and its inner_steps; and what `on_epoch` returned.
        best_epoch: whose weights the model holds now.
        stopped: why it ended.
        warnings: what was noticed on the way: latents that carry nothing (posterior collapse).
        engine: how steps were computed, and why, a line each.
        exact: whether what the bits depend on (device, threads, torch, engine) was the same wherever it was gone on with.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> result = fit(vae, torch.randn(32, 3), validation=torch.randn(16, 3), epochs=2, verbose=False)
        >>> result.best["epoch"] == result.best_epoch, result.stopped
        (True, '2 epochs done')
        >>> [record["epoch"] for record in result.history], result.best["elbo"] == max(r["elbo"] for r in result.history)
        ([1, 2], True)
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""
    warnings: list[str] = field(default_factory=list)
    engine: str = ""
    exact: bool = True

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch."""
        return next((r for r in self.history if r["epoch"] == self.best_epoch), {})

    def headline(self) -> list[list[str]]:
        """Return how far the training came, and what its best epoch says."""
        best = self.best
        lines = [["training", ""], ["epochs", f"{len(self.history)}, the best {self.best_epoch}"]]
        for name, key in (
            ("ELBO, best epoch", "elbo"),
            ("of training rows", "train_elbo"),
            ("active units", "active_units"),
        ):
            if best.get(key) is not None:
                lines.append([name, f"{best[key]:.3f}" if isinstance(best[key], float) else str(best[key])])
        return [*lines, ["ended", self.stopped], *(["warning", warning] for warning in self.warnings)]

    def columns(self) -> dict[str, Any]:
        """Return the numbers of each epoch; what is no number of its own, such as the KL of each unit, stays in `history`."""
        plain = {key: None for r in self.history for key, v in r.items() if v is None or isinstance(v, PLAIN)}
        kept = [key for key in plain if all(isinstance(r.get(key), (*PLAIN, type(None))) for r in self.history)]
        return {key: [r.get(key) for r in self.history] for key in kept}

    def plot(self) -> Any:
        """Plot the ELBO of training and validation rows after each epoch (a matplotlib figure)."""
        from pyro_vae.plots.figures import training_curve

        return training_curve(self.history)


@dataclass
class EpochPosition:
    """How far training is in an epoch, counted from 1.

    `batches_taken` are those of each shuffled order ("order", and "further" of an aggressive encoder), `generator_states`
    those of the noise and of each order after the last step, none before the epoch's first.
    """

    epoch: int = 1
    loss_sum: Tensor | float = 0.0  # of the epoch's steps so far
    seconds: float = 0.0  # that they took
    skipped_rows: int = 0  # of steps whose loss or a gradient was not finite
    batches_taken: dict[str, int] = field(default_factory=dict)
    generator_states: dict[str, Tensor] = field(default_factory=dict)
    versions: tuple[int, ...] = ()  # of weights and buffers, when these states were noted


@dataclass
class TrainingState:
    """The progress of a training, which a checkpoint saves beside its weights and optimizer."""

    step: int = 0  # steps done, skipped ones too
    updates: int = 0  # of the weights
    bad_steps: int = 0  # that were skipped, in a row
    best_elbo: float = -math.inf  # of the validation rows, in nats per datum; without such rows the newest
    best_tensors: list[Tensor] = field(default_factory=list)  # copies of that epoch's buffers and parameters
    position: EpochPosition = field(default_factory=EpochPosition)
    result: FitResult = field(default_factory=FitResult)

    @property
    def best_weights(self) -> str:
        """Name the weights that the model is left with, for messages."""
        epoch = self.result.best_epoch
        return f"the weights of epoch {epoch}" if epoch else "its starting weights"

    def copy_best(self, tensors: Iterable[Tensor]) -> None:
        """Take what buffers and parameters are now for the best."""
        self.best_tensors = [t.detach().clone() for t in tensors]

    @torch.no_grad()
    def load_best(self, tensors: Iterable[Tensor]) -> None:
        """Make buffers and parameters what they were at the best; buffers alone, where no step had found the parameters.

        Nothing is changed on a device that failed: the error that says so goes on.
        """
        try:
            for tensor, best in zip(tensors, self.best_tensors, strict=False):
                tensor.copy_(best)
        except RuntimeError as error:
            if not is_lost(error):
                raise


def buffers_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """List the buffers of modules, in their order."""
    return [buffer for module in modules for buffer in module.buffers()]


def noise_states(device: torch.device) -> dict[str, Tensor]:
    """Read the states of the global generators: of the CPU, and of a CUDA device."""
    states = {"noise": torch.default_generator.get_state()}
    return states | {"noise.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def load_noise_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the global generators to these states, as far as they are there."""
    if "noise" in states:
        torch.set_rng_state(states["noise"])
    if "noise.cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["noise.cuda"], device)


class PreStepSnapshot:
    """The states of the global generators, and copies of buffers: a step changes both, even if its update is not made."""

    def __init__(self, buffers: Iterable[Tensor], device: torch.device) -> None:
        self.device, self.noise = device, noise_states(device)
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]

    def restore(self) -> None:
        load_noise_states(self.noise, self.device)
        self.restore_buffers()

    def restore_buffers(self) -> None:
        with torch.no_grad():
            for buffer, before in self.buffers:
                buffer.copy_(before)


def named_tensors(modules: list[nn.Module], parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """Name each parameter and buffer of the modules, and parameters of no module as Pyro's parameter store does."""
    tensors: dict[str, Tensor] = {}
    for i, module in enumerate(modules):
        reshard(module)  # else the parameters of sharded networks may be those of a forward pass
        prefix = f"{i}." if len(modules) > 1 else ""
        for named in (module.named_parameters, module.named_buffers):
            tensors |= {prefix + name: tensor for name, tensor in named(remove_duplicate=False)}
    known = {id(tensor) for tensor in tensors.values()}
    names = {id(tensor): name for name, tensor in stored_parameters()}
    loose = [p for p in parameters if id(p) not in known]
    return tensors | {f"param/{names.get(id(p), i)}": p for i, p in enumerate(loose)}
