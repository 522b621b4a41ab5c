r"""`Bound`: any bound with any gradient estimator as one of Pyro's ELBO objectives; per row, whatever the plates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.buffers import buffers_restored
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.problem import Problem, summing_marks
from pyro_vae.programs.proposal_guide import as_trained, refuse_unweighed
from pyro_vae.programs.sites import Program
from pyro_vae.programs.summed_out import as_enumerated

from .bounds import elbo
from .enumerated_run import EnumeratedRun, check_enumerable, codes_of
from .gradient_estimators import BoundFunction, Estimator, guide_bound, pathwise
from .particles import Draw, ParticleRun, check_inner_plates

Term = Callable[[Draw], Tensor]


class Bound(ELBO):
    r"""loss = −Σ_n s_n F(log w_·n), with F a bound on log p(x_n) and log w_kn = log p(x_n, z_kn) − log q(z_kn | x_n).

    The bound is of each row by itself; s_n is what a row counts (N / B under a subsampled plate, 1 otherwise), so mini-batch
    losses are unbiased and the bound stays one. Handlers that weigh some sites (β on the latents) change log w.

    Discrete latents that the pair marks for enumeration (``infer={"enumerate": "parallel"}``) are summed over: of the model
    alone inside p(x, z), under any bound; in the guide too by ``Bound(elbo)``, each code weighed by q(code | x).

    What the guide *observes* (a head that is trained along, ``pyro.factor``) is no part of log w. Its log q is added to the
    loss as ``Trace_ELBO`` adds it, Σ log q(y) beside −Σ_n s_n F whatever the bound, a mean over particles, and differentiated
    as it stands: a factor of −α log q(y) in the guide trains q(y). :meth:`per_row` is the bound alone. A guide of points
    (AutoDelta) or of rounded draws (straight-through relaxed) trains, and has no `per_row`.

    Works in stock :class:`pyro.infer.SVI`, in :func:`~pyro_vae.fit`, and called as a module: ``Bound(iwae)(model, guide)(x)``.

    Args:
        bound: a function of log weights, ``(K, N)`` → ``(N,)``, such as :func:`~pyro_vae.elbo`, :func:`~pyro_vae.iwae` or
            ``renyi(0.5)``; ``(M, K, N)`` → ``(N,)`` with `num_groups`.
        num_particles: K.
        estimator: of the gradient: ``pathwise``, ``stl``, ``dreg``, ``gdreg``, ``vimco``, ``rws`` or ``analytic_kl``.
        num_groups: M, for ``miwae`` and ``piwae``: M · K particles a row.
        terms: functions of the draw, each ``(N,)`` in nats, that are added to the bound, such as ``free_bits(0.5)``.
        vectorize_particles: run both programs once for all particles, in the way that a probe of the first batch finds to mean
            the same (:class:`~pyro_vae.programs.problem.Problem`); False runs them M · K times.

    Raises:
        UsageError: fewer than one particle or group; particles that memory has no room for.
        ProgramError: a pair without a log weight for each row, a site that the estimator cannot treat (it names the site
            and what can), a bound of the wrong shape, or NaN weights (where validation is on).

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, iwae, dreg
        >>> vae = VAE(StandardNormal(2), Conditional(MLP(2, 9), bernoulli), Conditional(MLP(9, 2 * 2), normal))
        >>> objective = Bound(iwae, num_particles=8, estimator=dreg)
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
        >>> x = torch.ones(5, 9)
        >>> svi.step(x) > 0, objective.per_row(vae.model, vae.guide, x).shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        bound: BoundFunction = elbo,
        num_particles: int = 1,
        *,
        estimator: Estimator = pathwise,
        num_groups: int | None = None,
        terms: Sequence[Term] = (),
        vectorize_particles: bool = True,
    ) -> None:
        for name, value in (("num_particles", num_particles), ("num_groups", 1 if num_groups is None else num_groups)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number from 1, got {value!r}")
        if not callable(bound) or isinstance(bound, type):
            hint = f": make one first, {bound.__name__}(...)" if isinstance(bound, type) else ""
            raise UsageError(f"a bound is a function of log weights, such as elbo or iwae; got {bound!r}{hint}")
        if not callable(estimator):
            raise UsageError(f"an estimator is an object such as dreg or stl, from pyro_vae; got {estimator!r}")
        if terms and getattr(estimator, "detached", False):
            raise UsageError(
                f"estimator {estimator!r} draws without a path to the guide, so added terms would not train it: take another."
            )
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.bound, self.estimator, self.num_groups, self.terms = bound, estimator, num_groups, tuple(terms)
        self.known: Problem | None = None  # its guide is what the guide proposes
        self.written: tuple[Program, Program, int] | None = (
            None  # the pair that it was made of, and how many arguments it took
        )

    def __repr__(self) -> str:
        groups = f", num_groups={self.num_groups}" if self.num_groups else ""
        name = getattr(self.bound, "__name__", repr(self.bound))
        return f"Bound({name}, num_particles={self.num_particles}{groups}, estimator={self.estimator!r})"

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """−Σ_n s_n F_n, a number without a gradient."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, and add its gradient to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, whose ``backward()`` leaves the estimator's gradient on the parameters."""
        value, surrogate, draw = self.estimate(model, guide, args, kwargs)
        # the value of the bound, the gradient of the surrogate
        rows = surrogate if value is surrogate else surrogate + (value - surrogate).detach()
        loss = -(rows * draw.first.by_row(draw.first.scales.outer)).sum()
        observed = draw.log_q_observed()  # no part of a weight: of the loss alone
        return loss if observed is None else loss + observed

    def per_row(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """F of each row (with the added terms), ``(N,)``, nats; without a gradient, without s_n, and of q's latents alone."""
        with torch.no_grad(), without_validation():
            refuse_unweighed(self.problem(model, guide, args, kwargs).guide)
            draw = self.draw(model, guide, args, kwargs, validated=True)
            self.check_weights(draw)
            return self.evaluate(draw)[0]

    def estimate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Draw]:
        """Return each row's bound, the surrogate to differentiate in its place, and the draw that both were made of."""
        draw = self.checked_draw(model, guide, args, kwargs)
        return *self.evaluate(draw), draw

    def evaluate(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return each row's bound, and the surrogate to differentiate in its place."""
        if self.bound is not elbo:
            check_inner_plates(draw.first, self.bound)
        value, surrogate = self.estimator(draw, self.bound)
        for per_row in (value, surrogate):
            self.check_bound(draw.log_w, per_row)
        plain = draw.plain() if self.terms else draw
        for added in (term(plain) for term in self.terms):
            same, value = value is surrogate, value + added
            surrogate = value if same else surrogate + added
        return value, surrogate

    def draw(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        validated: bool = False,
    ) -> Draw:
        """Draw the particles in one run of the programs, or in one for each; a value to be read is `validated`."""
        known = self.problem(model, guide, args, kwargs)
        problem = replace(known, guide=as_trained(known.guide), args=args, kwargs=kwargs)
        detached = getattr(self.estimator, "detached", False)
        weighable = getattr(self.estimator, "weighable", False) or guide_bound(self.bound) is not self.bound
        total = self.num_particles * (self.num_groups or 1)
        sizes = [total] if self.vectorize_particles else [1] * total
        if (codes := codes_of(problem.guide)) is not None:
            return Draw([EnumeratedRun(problem, size, validated=validated, codes=codes) for size in sizes])
        return Draw([ParticleRun(problem, size, detached, weighable, validated) for size in sizes], self.num_groups)

    def checked_draw(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draw:
        """Draw; where validation is on, check that the weights are numbers and the bound has the right shape."""
        if not is_validation_enabled():
            return self.draw(model, guide, args, kwargs)
        try:
            draw = self.draw(model, guide, args, kwargs)
            self.check_weights(draw)
        except ProgramError:
            raise
        except ValueError:  # torch's, of a parameter or a value: names the tensor, not the site and the row
            with without_validation(), torch.no_grad():
                self.check_weights(self.draw(model, guide, args, kwargs, validated=True))
            raise
        log_w = draw.log_w.detach()
        for some in (log_w, torch.cat([log_w, log_w[..., :1]], -1)):  # where K = N, one shape says nothing
            self.check_bound(some, self.bound(some))
        return draw

    def check_bound(self, log_w: Tensor, value: Any) -> None:
        """Refuse a bound that is not one number a row."""
        form = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        if form != f"shape {(log_w.shape[-1],)}":
            raise ProgramError(
                f"{self!r}: log weights of shape {tuple(log_w.shape)} gave a bound of {form}; wanted one number a row, "
                f"({log_w.shape[-1]},). Reduce over particles only, with torch's functions."
            )

    def problem(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """Find where the pair keeps its rows, and how its particles run, once: on a first batch, whose memory is measured."""
        if self.known is None or self.written != (model, guide, len(args)):
            # draws of its own would shift those that follow, and batch statistics are those of the steps
            with torch.random.fork_rng(devices=cuda_devices(args)), buffers_restored(model, guide):
                problem = summing_marks(
                    lambda p, q: Problem.unprobed(p, q, args, kwargs),
                    (model, guide),
                    lambda: as_enumerated(model, guide, args, kwargs),
                ).probed(self.vectorize_particles)
                check_enumerable(problem.guide, self.bound, self.estimator, self.terms)
                self.check_memory(replace(problem, guide=as_trained(problem.guide)))
            self.known, self.written = problem.over(), (model, guide, len(args))  # without the batch
        return self.known

    def check_memory(self, problem: Problem) -> None:
        """Refuse more particles than there is memory for, before anything is run with them."""
        particles = self.num_particles * (self.num_groups or 1)
        if particles < 64 or (free := free_bytes(problem.args)) is None:
            return
        one, rows = saved_bytes(problem, 1)
        each = saved_bytes(problem, 2)[0] - one if self.vectorize_particles else one  # what is saved once is saved once
        needed = one + (particles - 1) * each
        if needed > free:
            fit, few = int(rows * free / needed), int(particles * free / needed)
            smaller = f"batches of {fit} rows or fewer (batch_size={fit}, --batch-size {fit}), or " if fit else ""
            raise UsageError(
                f"{particles} particles of {rows} rows need about {needed / 2**30:.1f} GiB for their gradients, and "
                f"{free / 2**30:.1f} GiB are free. Rows are independent of one another: take {smaller}{few} particles or fewer."
            )

    def check_weights(self, draw: Draw) -> None:
        """Name the row and the particle of a NaN weight."""
        nan = draw.terms.log_w.isnan()
        if nan.any():
            if self.known is not None:
                refuse_unweighed(self.known.guide)  # points and rounded draws train, and have no density: that is why
            particle, row = nan.nonzero()[0].tolist()
            raise ProgramError(
                f"log w is NaN for row {row} of the batch, particle {particle} ({int(nan.any(0).sum())} of {nan.shape[1]} "
                "rows in all): model or guide put out parameters that are not finite, or x holds NaN. Look at that row."
            )

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:  # Pyro's abstract method
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


def cuda_devices(args: tuple[Any, ...]) -> list[torch.device]:
    """Return the GPUs that the data is on."""
    return list({a.device for a in args if isinstance(a, Tensor) and a.device.type == "cuda"})


def saved_bytes(problem: Problem, particles: int) -> tuple[int, int]:
    """Measure what autograd saves for so many particles a row (storages, parameters aside), and count the rows."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        log_w = ParticleRun(problem, particles).terms.log_w
        log_w.sum()
    return sum(saved.values()), log_w.shape[-1]


def free_bytes(args: tuple[Any, ...]) -> int | None:
    """Return the free memory of the device that the data is on, or None where the system does not tell."""
    if devices := cuda_devices(args):
        return torch.cuda.mem_get_info(devices[0])[0]
    try:
        with open("/proc/meminfo") as lines:  # what caches hold is free, too
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
