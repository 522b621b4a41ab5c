"""What is computed in an evaluation of a run, and how: the options of `evaluate_run`, and of `pyro-vae evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from pyro_vae.common.given import described, positive, whole
from pyro_vae.errors import UsageError
from pyro_vae.evidence.importance.noise import NOISES
from pyro_vae.training.arguments import check_flags

from .evaluations import PROPOSALS, SPLITS

Method = Literal["importance", "auto", "exact", "annealing"]
ProposalName = Literal["guide", "defensive", "widened"]
WHOLE = ("rows", "num_samples", "max_samples", "num_chains", "num_temperatures", "chunk_size", "seed")
CHUNK = 16_384  # (row, chain) pairs that are annealed at a time
LEAST_OF = {"rows": None, "seed": 0}  # rows are told how many there are
NAMED = {"method": get_args(Method), "proposal": tuple(PROPOSALS), "noise": NOISES}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is computed in an evaluation, and how; what is of another kind is refused by a UsageError.

    Parameters
    ----------
    split
        test, validation or train.
    rows
        Score only the first so many rows.
    method
        auto: exact where the model allows it (closed form, enumeration, quadrature), else importance sampling. annealing: AIS
        from the guide, for rows whose weights have too heavy a tail.
    proposal
        What the samples are drawn from: the guide, a tenth of them from the prior, or the guide with its scales times 1.5.
    num_samples
        K: importance samples a row.
    target_se
        Double K, up to --max-samples, as a pilot run says it takes for a Monte Carlo error of at most this in every row (nats).
    max_samples
        K at most under --target-se; rows that it does not suffice for are flagged.
    num_chains
        Of each row, under --method annealing.
    num_temperatures
        From the guide to the posterior, likewise.
    chunk_size
        Of annealing, (row, chain) pairs at a time, on a random stream of their own: what processes share. Fewer than the
        chains cut these.
    seed
        Of the importance samples, or chains.
    noise
        block: rows of a block share a stream. row: each row has a stream of its own, and its number is the same bits
        whatever rows are scored beside it; slower.
    resume
        Go on from the samples that an earlier evaluation left in the folder (an interrupted one does), and keep them.
    strict
        Exit 5, once all is written, if a row's estimate is not to be believed.
    """

    split: str = "test"
    rows: int | None = None
    method: Method = "importance"
    proposal: ProposalName = "guide"
    num_samples: int = 5000
    target_se: float | None = None
    max_samples: int = 100_000
    num_chains: int = 16
    num_temperatures: int = 100
    chunk_size: int = CHUNK
    seed: int = 0
    noise: Literal["block", "row"] = "block"
    resume: Annotated[bool, Parameter(negative=())] = False
    strict: Annotated[bool, Parameter(negative=())] = False

    def __post_init__(self) -> None:
        for name in WHOLE:
            if (given := getattr(self, name)) is not None or name != "rows":
                least = LEAST_OF.get(name, 1)
                object.__setattr__(self, name, whole(name, given, least))  # numpy's whole numbers are none of JSON's
        if self.target_se is not None:
            object.__setattr__(self, "target_se", positive("target_se", self.target_se))
        for name, known in NAMED.items():
            if (given := getattr(self, name)) not in list(known):
                raise UsageError(f"no {name} {described(given)}; take one of {', '.join(known)}")
        if not isinstance(self.split, str):
            raise UsageError(f"no split {described(self.split)}; take one of {', '.join(SPLITS)}")
        check_flags(resume=self.resume, strict=self.strict)


def check_used(options: EvaluationOptions) -> None:
    """Refuse options that the method would not look at, so that none is taken for one that counted."""
    of = dict.fromkeys(("num_chains", "num_temperatures", "chunk_size"), "annealing")
    if options.method == "exact":
        of |= dict.fromkeys(("proposal", "target_se", "noise", "resume"), "importance")
    for name, method in of.items():
        if options.method != method and getattr(options, name) != getattr(EvaluationOptions(), name):
            flag = name.replace("_", "-")
            raise UsageError(
                f"--{flag} is of --method {method}, and the method is {options.method}: leave one of them out"
            )
    if options.target_se is None and options.max_samples != EvaluationOptions().max_samples:
        raise UsageError(
            "--max-samples is of --target-se, which is not asked for: say --num-samples for so many samples a row"
        )
