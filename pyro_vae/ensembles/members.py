"""The members of an ensemble, made by one function under a seed each, and seen to be of one architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pyro_vae.common.given import described, whole
from pyro_vae.common.random import seeded
from pyro_vae.errors import UsageError
from pyro_vae.objectives.beta import Beta
from pyro_vae.objectives.scheduled import Scheduled
from pyro_vae.programs.pair import named_owners, programs
from pyro_vae.programs.parameter_kinds import check_values
from pyro_vae.training.arguments import check_pair_of
from pyro_vae.training.engines.scheduled_values import ScheduledValues
from pyro_vae.training.trainer import Trainer
from pyro_vae.training.training_state import buffers_of

Tensors = dict[str, Tensor]


@dataclass(eq=False)
class Member:
    """One model of an ensemble, and its training."""

    seed: int
    pair: Any  # as it was made
    trained: Any  # the same under what weighs its KL
    modules: dict[str, nn.Module]  # by the names under which the programs hold them
    scheduled: list[Scheduled]
    trainer: Trainer | None = None

    def __post_init__(self) -> None:
        self.scheduled_values = ScheduledValues(self.scheduled)

    @property
    def training(self) -> Trainer:
        assert self.trainer is not None
        return self.trainer

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, in the order in which the programs declare it."""
        return self.training.step.parameters

    @property
    def buffers(self) -> list[Tensor]:
        return buffers_of(self.modules.values())

    def named(self) -> Tensors:
        """Name the parameters and buffers of its modules."""
        found: Tensors = {}
        for prefix, module in self.modules.items():
            for listed in (module.named_parameters(), module.named_buffers()):
                found |= {f"{prefix}.{name}".lstrip("."): tensor for name, tensor in listed}
        return found


def check_seeds(seeds: Any) -> list[int]:
    """Return the seeds as whole numbers.

    Raises:
        UsageError: none, one twice, or what is no whole number from 0; says which.

    Example:
        >>> check_seeds(range(3))
        [0, 1, 2]
    """
    if isinstance(seeds, int) or not isinstance(seeds, Iterable) or isinstance(seeds, str):
        hint = f": seeds=range({seeds})" if isinstance(seeds, int) else ""
        raise UsageError(f"seeds must be several whole numbers, such as range(8); got {described(seeds)}{hint}")
    listed = [whole(f"seeds[{i}]", seed, 0) for i, seed in enumerate(seeds)]
    if not listed:
        raise UsageError("seeds is empty: an ensemble has at least one member, such as seeds=range(8)")
    if twice := sorted({seed for seed in listed if listed.count(seed) > 1}):
        raise UsageError(
            f"seeds has {', '.join(map(str, twice))} more than once: these members would be the same run, and their spread no "
            "error. Give each member a seed of its own."
        )
    return listed


def make_members(
    make: Callable[..., Any], seeds: Sequence[int], beta: Any = None, scheduled: Sequence[Scheduled] = ()
) -> list[Member]:
    """Make a member under each seed's own random stream, as ``pyro-vae train --seed`` makes its model.

    Raises:
        UsageError: what is made is no pair, has parameters without values,
            shares parameters with a member before it, or is another architecture.
    """
    if not callable(make):
        raise UsageError(f"make must be a function that makes a new model each time, got {described(make)}")
    pairs, takes_seed = [], wants_seed(make)
    for seed in seeds:
        with seeded(seed):
            pairs.append(make(seed) if takes_seed else make())
        check_pair_of(pairs[-1])
    betas = per_member("beta", beta, len(seeds), (int, float, Beta))
    members = [member(*parts, scheduled) for parts in zip(seeds, pairs, betas, strict=True)]
    for made in members:
        check_values(*made.modules.values())
    for other in members[1:]:
        check_alike(members[0], other)
    for i, other in enumerate(members):
        check_own(other, other.named(), members[:i])
    return members


def wants_seed(make: Callable[..., Any]) -> bool:
    """Return whether the seed is passed: to a parameter without a default, or one called seed."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except ValueError:  # a function of C
        return False
    first = next((p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)), None)
    return first is not None and (first.default is first.empty or first.name == "seed")


def member(seed: int, pair: Any, beta: Any, scheduled: Sequence[Scheduled]) -> Member:
    """Make one member of a pair, under its β if it has one."""
    trained, moved = programs(pair), list(scheduled)
    if beta is not None:
        handler = Beta(beta.beta, beta.schedule) if isinstance(beta, Beta) else Beta(float(beta))
        trained, moved = handler.pair(trained), [handler, *moved]
    return Member(seed, pair, trained, named_owners(pair, *programs(pair)), moved)


def per_member(name: str, given: Any, count: int, kinds: tuple[type, ...] | None = None) -> list[Any]:
    """Return one value a member: of a list as many as there are, of anything else the same for all."""
    values = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(values) != count:
        raise UsageError(
            f"{name} lists {len(values)} values for {count} seeds: give one for each member, or one for all"
        )
    for i, value in enumerate(values):
        if kinds and value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise UsageError(f"{name} of member {i}: wanted {kinds[-1].__name__} or a number, got {described(value)}")
    return values


def check_alike(first: Member, other: Member) -> None:
    """Refuse a member whose parameters or buffers are not those of the first, by name, shape and dtype."""
    a, b = first.named(), other.named()
    who = f"the member of seed {other.seed}"
    for name in [*a, *b]:
        if name not in a or name not in b:
            has, lacks = (who, "the first") if name in b else ("the first", who)
            raise UsageError(f"unlike architectures: {has} has {name!r}, which {lacks} lacks. {SAME}")
        for what, here, there in traits(a[name], b[name]):
            if here != there:
                raise UsageError(
                    f"unlike architectures: {name!r} of {who} has {what} {there}, the first's {here}. {SAME}"
                )


SAME = "All members of an ensemble are of one architecture: train others as ensembles of their own, and compare them."


def traits(a: Tensor, b: Tensor) -> list[tuple[str, Any, Any]]:
    return [
        ("shape", tuple(a.shape), tuple(b.shape)),
        ("dtype", a.dtype, b.dtype),
        ("requires_grad", a.requires_grad, b.requires_grad),
    ]


def check_own(later: Member, tensors: Tensors, before: Sequence[Member]) -> None:
    """Refuse trainable tensors that a member before has, too."""
    for earlier in before:
        held = {id(t) for t in earlier.named().values()} | {id(p) for p in known_parameters(earlier)}
        if shared := [name for name, t in tensors.items() if t.requires_grad and id(t) in held]:
            raise UsageError(
                f"the members of seeds {earlier.seed} and {later.seed} share the parameter {shared[0]!r}: make must build a "
                "new model each time it is called, with parameters in modules of its own (pyro.param has one of a name for "
                "all)."
            )


def known_parameters(member: Member) -> list[Tensor]:
    return [] if member.trainer is None else member.parameters
