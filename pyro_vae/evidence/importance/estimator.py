r"""log p(x) by importance sampling, streamed over rows and particles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.device import resolve_device
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.given import check_whole
from pyro_vae.common.spread import sharing
from pyro_vae.data.arrays import read_once
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import DeviceError, DeviceLostError, Interrupted, ProcessesError, UnreliableError, UsageError
from pyro_vae.programs.pair import like_parameters, quiet
from pyro_vae.programs.parameters import ParametersRegistered
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.program_ids import ProgramIds
from pyro_vae.programs.reach import check_reach
from pyro_vae.programs.row_coupling import warn_of_guide
from pyro_vae.programs.same_on_ranks import check_same_on_ranks
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.sum_over_codes import codes_of

from .accumulator import RowBlock
from .block_layout import identify, layout_on, open_row_blocks
from .narrowness import look
from .noise import BLOCK, check_noise, row_keys
from .proposals import GUIDE, Proposal
from .result import Evidence
from .row_block_rounds import Filler, run_rounds
from .same_evaluation import programs_of
from .sampler import Sampler
from .target import TargetError
from .weighing import ENGINES, WORTH_FIRST, WeighingEngine


def importance(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    num_samples: int = 1000,
    proposal: Proposal = GUIDE,
    target_se: float | None = None,
    max_samples: int = 100_000,
    rows: range | None = None,
    particles: range | None = None,
    resume: Evidence | None = None,
    strict: bool = False,
    seed: int = 0,
    noise: str = BLOCK,
    chunk_size: int | None = None,
    engine: str = "auto",
    vectorize_particles: bool = True,
    missing: bool = False,
    device: torch.device | str | None = None,
    on_block: Callable[[Sequence[RowBlock], dict[str, Any]], None] | None = None,
    verbose: bool = True,
) -> Evidence:
    r"""log p̂(x_n) = log 1/K Σ_k p(x_n, z_kn) / q(z_kn | x_n) for each row, with its Monte Carlo error; and the ELBO.

    E[p̂] = p(x): exp(log p̂) is unbiased, so log p̂ is a lower bound in expectation that tightens with K. Streamed: memory
    grows with `chunk_size`, not with K · N. Changes no parameter, no module's mode, no optimizer and no global random state.

    Processes that torchrun started, and that all call this with the same arguments, share the blocks, and the particles of the
    last ones; each returns all of the evidence.

    Rows go in blocks of 64 and particles in blocks of 4096 (row, particle) pairs (256 and up to 262,144 on CUDA), each with a
    stream of its own from the seed: the same numbers to the bit, whatever order, process or resumption runs them. Another
    `chunk_size` or a compiled engine runs the same particles in other shapes, and gives the same numbers to rounding (of the
    programs' own dtype).

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`.
        num_samples: K, particles a row.
        proposal: of the particles: the guide, :func:`~pyro_vae.defensive` or :func:`~pyro_vae.widened`. The ELBO is the
            guide's whatever the proposal, from 200 draws of its own where these are not.
        target_se: the Monte Carlo error that each row shall have at most (nats). K is doubled for it, block of rows by block of
            rows, as a pilot run with other draws foretells (:mod:`~pyro_vae.evidence.importance.target`): p̂ stays unbiased.
        max_samples: K at most under `target_se`; rows whose error is above it all the same are flagged.
        rows: which rows of x to run, for a part to be joined with others by :meth:`Evidence.merge`; starts at a multiple of
            64 (256 on CUDA), and stops at one or at the end.
        particles: which of the K particles to run, likewise.
        resume: evidence of the same programs, rows and seed: what it holds is not run again, only what `num_samples`,
            `rows` and `particles` add to it. Saved by an older version, it does not say of which programs it is: a warning
            says so, and neither does the result.
        strict: raise where a row is flagged, in place of handing it out with its flag.
        seed: of the particles.
        noise: "block", rows of a block share a stream; or "row", each row has a stream of its own, of the seed and a
            digest of its x and contexts, and is computed by itself: its log p̂, errors, ESS, k̂ and ELBO are the same bits
            whatever rows stand beside it, in whatever order and batch (on one device; `spread` and the flags that it gives
            are a judgment over all rows). Equal rows then have equal particles: the errors of means count their noise once
            for all of them (``repeats``). The programs run once for each row: 5 times the time for a network of 8 units, 1.6
            times for 784-256 (K = 1,000, CPU). `rows=` may start and stop anywhere.
        chunk_size: (row, particle) pairs that the model is run on at a time, by default a block, or less where a GPU has not
            the memory for it; halved where memory does not suffice. The guide runs on whole blocks.
        engine: what weighs whole blocks: "eager", the programs themselves; "trace", a flat graph of their tensor operations,
            which computes the same bits; "compile", that graph compiled, which computes the same to rounding (evidence's
            ``engine`` says so); "auto", which is one of these by the number of blocks, and that of `resume`, if this is of a
            compiled engine. A trace takes a few tenths of a second, compiling five to thirty. Graphs are checked against the
            programs before they are used; ``engine_note`` says what was made, or why the programs weigh.
        vectorize_particles: as for :func:`~pyro_vae.log_weights`.
        missing: x may hold NaN, for what was not observed: the result is log p(x_obs). Modules that say so
            (:class:`~pyro_vae.models.missing.SkipMissing`) need no word here.
        device: where to compute; None is where the programs' parameters are, or x for programs that no module owns.
            Modules that run are scored in eval mode, and put back after.
        on_block: called after each block of rows with the :class:`~pyro_vae.evidence.importance.accumulator.RowBlock` of
            every block (those to come are empty) and the evidence's other facts, to save them. Of several processes, that
            of rank 0 calls it, every few seconds.
        verbose: a progress bar on a terminal; elsewhere a line of how long is to go, where that is long.

    Raises:
        UsageError: `resume` holds particles of other rows, by their digest, of other programs
            (:class:`~pyro_vae.programs.program_ids.ProgramIds`), or of another seed or proposal.
        SupportError, ShapeError, DataError: x outside the support of the likelihood, of another shape, not finite.
        ProgramError: a pair that has no importance weight for each row; weights that are NaN (row and site are named); invalid
            parameters of a distribution; a guide that never draws some of what p(x, z) allows, unless the proposal is
            defensive.
        Interrupted: Ctrl-C; its ``result``, if not None, is evidence of what is there so far, to ``resume`` from.
        UnreliableError: `strict`, and a row is flagged; its ``result`` is the evidence.
        DeviceError: a device that is not there.
        ProcessesError, DeviceLostError: another process failed, died or did not come; the device failed. Its ``result`` is
            as that of Interrupted.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def prior_as_guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> evidence = importance(model, prior_as_guide, torch.tensor([0.0, 1.0]), num_samples=5000)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor([0.0, 1.0]))
        >>> bool(((evidence.log_px - exact).abs() < 4 * evidence.mc_se).all())
        True
    """
    check_counts(num_samples, max_samples, seed, chunk_size, engine)
    check_noise(noise)
    check_parts(rows=rows, particles=particles)
    target = target_of(target_se, num_samples, max_samples, particles)
    x, *rest = [read_once(a) for a in (x, *context)]
    problem = checked_problem(
        model, guide, (x, *rest), proposal, seed=seed, vectorize=vectorize_particles, missing=missing, device=device
    )
    if noise == BLOCK:
        warn_of_guide(problem)
    ids = RowIds.of(x, *rest)
    size, pairs = layout_on(problem.device, num_samples, resume, noise)
    sampler = Sampler(proposal, seed, 0, pairs, block_rows=size, row_keys=row_keys(noise, ids, problem))
    blocks = open_row_blocks(problem, num_samples, rows, resume, sampler)
    run = [i for i, block in enumerate(blocks) if rows is None or block.rows.start in rows]
    identify(blocks, ids)
    facts = facts_of(problem, sampler, target_se, ids, resume)
    resumed = None if resume is None else resume.engine
    here = sharing()
    asked = {"num_samples": num_samples, "chunk_size": chunk_size, "engine": engine, "max_samples": max_samples}
    check_alike(problem, asked | {"rows": str(rows), "particles": str(particles)}, facts, resume)
    try:
        # nothing is trained: modules need not declare parameters at each block
        with problem.quiet(), ParametersRegistered():
            weighing = WeighingEngine.of(problem, proposal, sampler.pairs, num_samples, sampler.rows)
            sampler.engine, sampler.chunk = weighing, chunk_size or max(1, weighing.chunk() // codes_of(problem.model))
            weighing.choose(engine, whole_pieces([blocks[i] for i in run], particles), resumed)
            facts |= weighing.facts(resumed)
            fill = Filler(sampler, problem, particles, target, here)
            for together in run_rounds(blocks, run, fill, lambda: weighing.facts(resumed), verbose):
                facts |= together
                if on_block is not None and here.leads:
                    on_block(blocks, facts)
            problem.check_files()
            looked_at = [blocks[i] for i in run]
            look(looked_at, len(particles or range(looked_at[0].planned)), proposal, problem, seed)
    except KeyboardInterrupt as signal:
        raise interrupted(blocks, facts, signal) from None
    except (ProcessesError, DeviceLostError) as error:
        with suppress(RuntimeError):  # sums that are on a device that failed
            error.result = so_far(blocks, facts)
        raise
    evidence = Evidence.of(blocks, **facts)
    if strict and len(evidence.flagged):
        raise UnreliableError(evidence.why_flagged(), evidence)
    return evidence


def checked_problem(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    proposal: Proposal,
    *,
    seed: int,
    vectorize: bool,
    missing: bool,
    device: torch.device | str | None,
) -> Problem:
    """Check a pair, its rows and where both are; and that its guide draws all that p(x, z) allows, or the prior helps it."""
    model, guide, args = on_tensors(model, guide, *args)
    place = None if device is None else resolve_device(device)
    args = rows_of(model, guide, *args, missing=missing, device=place, on_disk=True)
    check_device(args[0].device, like_parameters(model, guide))
    with quiet(model, guide, seed=seed, device=args[0].device):
        problem = Problem.checked(model, guide, *args, vectorize=vectorize)
        if not proposal.weight:
            check_reach(problem, proposal.guide(problem.guide))
    return problem


def check_counts(num_samples: int, max_samples: int, seed: int, chunk_size: int | None, engine: str) -> None:
    """Refuse numbers that are none, or below 1, and engines that there are not."""
    check_whole(num_samples=num_samples, max_samples=max_samples, seed=seed, chunk_size=chunk_size)
    if num_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise UsageError(f"num_samples and chunk_size must be at least 1, got {num_samples} and {chunk_size}")
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")


def target_of(
    target_se: float | None, num_samples: int, max_samples: int, particles: range | None
) -> TargetError | None:
    """Return the error that is aimed at; a UsageError where the particles that it takes are given as well."""
    target = None if target_se is None else TargetError(target_se, num_samples, max_samples)
    if target is not None and particles is not None:
        raise UsageError(
            "target_se asks for as many particles as it takes, particles= for some of them: give one of the two"
        )
    return target


def facts_of(
    problem: Problem, sampler: Sampler, target_se: float | None, ids: RowIds, resume: Evidence | None
) -> dict[str, Any]:
    """Say of which programs, data and seed the evidence is; a UsageError where `resume` is of other programs."""
    now = ProgramIds.of(problem)
    return {
        "seed": sampler.seed,
        "proposal": str(sampler.proposal),
        "noise": sampler.by,
        "measure": problem.measure,
        "target_se": target_se,
        "vectorizing": str(problem.vectorizing),
        "data_digest": ids.digest,
        "program_ids": now if resume is None else programs_of([resume], now),
    }


def check_alike(problem: Problem, asked: dict[str, Any], facts: dict[str, Any], resume: Evidence | None) -> None:
    """Refuse processes that do not all ask for the same evidence of the same programs, or go on from other."""
    begun = None if resume is None else tensor_digest({"log_px": resume.log_px, "samples": resume.counts})
    of_draws = {name: facts[name] for name in ("seed", "proposal", "noise", "target_se")}
    check_same_on_ranks(problem, asked | {"resume": begun} | of_draws, facts["program_ids"])


def check_parts(**parts: Any) -> None:
    """Refuse a number of rows or particles, where some of them are asked for by a range."""
    for name, part in parts.items():
        if not isinstance(part, range | None):
            raise UsageError(
                f"{name}={part!r}: wanted a range, {name}=range(start, stop), of those to run; how many particles a row has "
                "is num_samples"
            )


def whole_pieces(blocks: Sequence[RowBlock], particles: range | None) -> int:
    """Count the whole blocks of particles that are to be run, up to as many as matter."""
    missing = (
        block.extent(piece[0]) == block.size
        for block in blocks
        if len(block.rows) == len(blocks[0].rows)
        for piece in block.missing(range(block.planned) if particles is None else particles)
    )
    return sum(islice((whole for whole in missing if whole), WORTH_FIRST))


def check_device(of_data: torch.device, parameter: Tensor | None) -> None:
    """Refuse data on another device than the parameters."""
    if parameter is not None and parameter.device != of_data:
        raise DeviceError(
            f"the data goes to {of_data}, but the model is on {parameter.device}: move it there, vae.to({str(of_data)!r})"
        )


def so_far(blocks: Sequence[RowBlock], facts: dict[str, Any]) -> Evidence | None:
    """Return the evidence of the first rows, as far as all before have particles; None where the first have none."""
    begun = list(takewhile(len, blocks))
    return Evidence.of(begun, **facts) if begun else None


def interrupted(blocks: Sequence[RowBlock], facts: dict[str, Any], signal: KeyboardInterrupt) -> Interrupted:
    """Build the exception that holds the evidence so far."""
    result = so_far(blocks, facts)
    last = "no row" if result is None else f"the rows before {result.row_blocks[-1].rows.stop}"
    return Interrupted.kind(signal)(f"interrupted: {last} have particles; go on with resume=error.result", result)
