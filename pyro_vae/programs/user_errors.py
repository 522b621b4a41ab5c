"""Errors of the user's own code, shown as they are: in which program, at which site, on what; and advice where it is known."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.common.memory import out_of_memory
from pyro_vae.common.pyro_private import as_raised, message_at
from pyro_vae.common.torch_private import version
from pyro_vae.data.structures import tensors_in
from pyro_vae.errors import DataError, NoWeightError, ProgramError, PyroVAEError, ShapeError, UsageError

from .one_measure import NO_DENSITY, UNNORMALISED, without_density

Message = Mapping[str, Any]
GUIDE, MODEL = "the guide, q(z | x)", "the model, p(z) p(x | z)"


class SitesReached(Messenger):
    """Notes the last sample site that a program reached, and refuses one without a distribution."""

    last: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if not (callable(msg["fn"]) and hasattr(msg["fn"], "log_prob")):
            raise ProgramError(not_a_distribution(msg))

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            self.last = msg["name"]


def not_a_distribution(msg: Message) -> str:
    """Say what a sample site was given in the place of a distribution."""
    kind = type(msg["fn"])
    fix = "return a distribution from the function that makes it, as in `return dist.Normal(loc, scale).to_event(1)`"
    if kind.__module__.startswith("torch.distributions"):
        fix = f"take Pyro's: pyro.distributions.{kind.__name__}"
    return f"site {msg['name']!r}: wanted a Pyro distribution, got {kind.__name__}. Fix: {fix}."


@contextmanager
def explained(where: str, *args: Any) -> Iterator[None]:
    """Say of an error that a program raises inside which program it was, at which site, and on what rows.

    An error of the user's own leaves as it came, with a note (``error.__notes__``). One of torch's or Pyro's whose cause is
    known (a shape, a dtype, a device) leaves as an error of ours that quotes it whole and says what to do, raised from it.

    Args:
        where: the program.
        *args: what it is run on, x first.

    Raises:
        ProgramError: the program wrote into its arguments, or a site has no distribution.
        ShapeError: shapes that do not fit.

    Example:
        >>> with explained("the model", torch.zeros(1, 3)):
        ...     raise FileNotFoundError("tokenizer.json")
        Traceback (most recent call last):
        FileNotFoundError: tokenizer.json
        raised in the model, before its first site, on a row of shape (3,)
    """
    reached = SitesReached()
    before = versions(args)
    try:
        with reached:
            yield
    except Exception as error:
        raised = as_raised(error)
        better = explanation(raised, where, reached, args)
        if better is not None:
            raise better from raised
        if raised is error:
            raise
        raise raised from raised.__cause__
    refuse_changed(where, args, before)


def versions(args: tuple[Any, ...]) -> list[int]:
    """Count the changes in place of each argument so far."""
    return [0 if t.is_inference() else version(t) for a in args for t in tensors_in(a)]


def refuse_changed(where: str, args: tuple[Any, ...], before: list[int]) -> None:
    """Refuse a program that wrote into an argument: whatever runs after it would be run on other data."""
    if versions(args) == before:
        return
    starts = [len(versions(args[:i])) for i in range(len(args) + 1)]
    changed = next(i for i, a in enumerate(args) if versions((a,)) != before[starts[i] : starts[i + 1]])
    name = "x" if changed == 0 else f"context {changed - 1}"
    raise ProgramError(
        f"{where} writes into {name} in place (x[...] = ..., x.clamp_(), x += ...), so that what runs after it sees other "
        f"data than was passed. Fix: work on a copy, {name.split()[0]} = {name.split()[0]}.clone(), first."
    )


def explanation(error: Exception, where: str, reached: SitesReached, args: tuple[Any, ...]) -> Exception | None:
    """Return an error of ours in its place, where the cause is known; else note on it where it came from, and return None."""
    rows = format_rows_of(args)
    if isinstance(error, DataError | UsageError):  # of a part of ours; it lacks only which program it is in
        return type(error)(f"{where}, {rows}: {error}")
    msg = message_at(error)
    improper = without_density(msg["fn"]) if msg and isinstance(error, NotImplementedError) else None
    if msg and improper in UNNORMALISED:  # it has no draws either
        return NoWeightError(f"site {msg['name']!r} is drawn from {improper}, {NO_DENSITY[improper]}")
    site = (
        f"at site {msg['name']!r}"
        if msg
        else f"after site {reached.last!r}"
        if reached.last
        else "before its first site"
    )
    known = None if isinstance(error, PyroVAEError) or out_of_memory(error) else cause_of(error)
    if known is None:
        error.add_note(f"raised in {where}, {site}, {rows}")
        return None
    kind, advise = known
    said = " ".join(str(error).split())
    return kind(
        f"{where} does not run {rows} ({site}): {type(error).__name__}: {said.rstrip('.')}. {advise(said, msg, args)}"
    )


def format_rows_of(args: tuple[Any, ...]) -> str:
    """Say how many rows of what shape a program was run on."""
    x = next((t for a in args for t in tensors_in(a)), None)
    if x is None or not x.dim():
        return "without rows"
    return f"on {'a row' if len(x) == 1 else f'{len(x)} rows'} of shape {tuple(x.shape[1:])}"


def cause_of(error: Exception) -> tuple[type[PyroVAEError], Advise] | None:
    """Return the class and advice for what torch or Pyro said; None for an error of the user's own."""
    if not isinstance(error, RuntimeError | ValueError | IndexError | TypeError):
        return None
    return next(((kind, advise) for pattern, kind, advise in CAUSES if pattern.search(str(error))), None)


Advise = Callable[[str, Message | None, tuple[Any, ...]], str]


def give_shape(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    return "Give x the shape that it takes."


def declare_event(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    """Count the dimensions that belong to one row: those of the batch shape that no plate declares."""
    if msg is None:
        return "Declare what belongs to one row with .to_event(...)."
    plates = [frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized and frame.dim is not None]
    fn, nesting = msg["fn"], max((-dim for dim in plates), default=1)
    extra = len(fn.batch_shape) - nesting
    if extra <= 0:
        return (
            "Give the distribution one batch entry a row, and the plate the size len(x); values of all rows that the program "
            "holds (poutine.condition, poutine.do, a tensor of the script) are passed as a context, for a part of the rows."
        )
    whole = extra + fn.event_dim
    row = tuple(fn.shape()[-whole:])
    return (
        f"One row of it has shape {row}: declare its dimensions with .to_event({extra}); of a Conditional(net, family), pass "
        f"event_dim={whole}."
    )


def give_column(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    """Name the context without a dimension of columns."""
    flat = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.dim() == 1]
    if not flat:
        return "Give the tensors that are joined as many dimensions each."
    name = "x" if flat[0] == 0 else f"context {flat[0] - 1}"
    short = "x" if flat[0] == 0 else "labels"
    return f"{name} has shape ({len(args[flat[0]])},), one number a row: give it a column, {short}[:, None]."


def one_dtype(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    """Say which dtype x has, and how to have one of all."""
    kinds = ", ".join(dict.fromkeys(str(t.dtype) for a in args for t in tensors_in(a)))
    return (
        f"It was given {kinds}. Use one dtype: module.to(torch.float32), and no .double() or .half() between its parts."
    )


def whole_numbers(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    return "What indexes (an embedding, a table, one_hot) must be whole numbers: pass them as integers, or call .long() there."


def one_device(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    kinds = ", ".join(dict.fromkeys(str(t.device) for a in args for t in tensors_in(a)))
    return (
        f"It was given rows on {kinds}. Keep all of a program on one device: move it with module.to(device) or "
        "fit(..., device=...), and make new tensors where x is (x.new_zeros(...), torch.zeros(..., device=x.device))."
    )


def full_precision(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    return (
        "That operation has no reduced precision: keep the parameters in float32 (module.float()), and ask for bfloat16 "
        'where it is safe, fit(..., precision="bf16").'
    )


def one_plate(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    name = msg["name"] if msg else "data"
    return (
        f"Two plates, or sites, have that name. Make the plate once, plate = pyro.plate({name!r}, len(x)), and enter it where "
        "it is needed; give sites names of their own."
    )


def whole_batch(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    size = found[1] if (found := re.search(r"(\d+) vs \d+", said)) else "k"
    return (
        "A plate of the data that chooses some of the rows it is given is run on one here. fit draws the batches itself, "
        "and log p(x) is of each row: leave subsample_size out, with pyro.plate(name, len(x)): and obs=x, and say "
        f"fit(..., batch_size={size})."
    )


def number_in_table(said: str, msg: Message | None, args: tuple[Any, ...]) -> str:
    spans = [f"{int(t.min())} to {int(t.max())}" for a in args for t in tensors_in(a) if not t.is_floating_point()]
    given = f" (whole numbers given go from {', and from '.join(spans)})" if spans else ""
    return f"An index is larger than its table{given}: make the table (num_embeddings, num_classes) larger, or repair the data."


def advise_on_shapes(data: torch.Size, fn: Any) -> str:
    """Say how to have an observation of one shape and a distribution of another meet; both begin with rows."""
    drawn, row = fn.shape(), tuple(data[1:])
    if len(data) == 1 and len(drawn) == 2:
        return (
            "A column (N, 1) against (N,) broadcasts to (N, N). Drop the column where the distribution is made, "
            "net(z).squeeze(-1), or observe labels[:, None] and declare the column with .to_event(1)."
        )
    if not len(data) and fn.batch_shape:
        return (
            "It is one value for all rows (obs=, poutine.condition): give each row its own, obs=value.expand(len(x)), or "
            "condition within the program, as in `lambda x: poutine.condition(model, data={...: value.expand(len(x))})(x)`."
        )
    if not fn.batch_shape:
        return "It has no entry for each row: give the data plate its size, pyro.plate(name, len(x)), which expands it."
    extra = len(fn.batch_shape) - 1
    if len(data) == len(drawn) and extra and row[0] == 1 and drawn[0] == drawn[1] == data[0]:
        return (
            f"A dimension of one beside the rows broadcasts to (N, N): declare it with .to_event({extra}); of a "
            f"Conditional(net, family), pass event_dim={extra + len(fn.event_shape)}."
        )
    if len(drawn) == 1 and math.prod(row) == 1:
        return "Observe x without its columns of one, obs=x.reshape(len(x)), or declare them with .to_event(...)."
    if data.numel() == math.prod(drawn):
        return f"They hold equally many numbers: reshape one, as in x.reshape(len(x), *{tuple(drawn[1:])})."
    return "Give x the shape of what the likelihood generates."


def any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


CAUSES: tuple[tuple[re.Pattern[str], type[PyroVAEError], Advise], ...] = (
    (
        any_of(r"not implemented for '(BFloat16|Half)'", r"unsupported dtype (BFloat16|Half)"),
        ProgramError,
        full_precision,
    ),
    (
        any_of(
            "on the same device",
            "is not on the expected device",
            "different from other tensors on",
            "meta tensor",
            r"\(torch\.cuda\.\w+\) and \w+ type \(torch\.\w+\)",
            r"\(torch\.\w+\) and \w+ type \(torch\.cuda\.\w+\)",
        ),
        ProgramError,
        one_device,
    ),
    (
        any_of(
            "argument #1 'indices'",
            "used as indices must be",
            "index tensor",
            r"dtype int64 for index",
            "only applicable to (index|integer) tensor",
        ),
        ProgramError,
        whole_numbers,
    ),
    (any_of("index out of range in self", "Class values must be smaller than num_classes"), DataError, number_in_table),
    (
        any_of(
            "same dtype",
            "expected scalar type",
            r"Input type .* should be the same",
            "Found dtype",
            "result type .* can't be cast",
            r"not implemented for '\w+'",
            r"expected \w+ to have dtype",
            "expected m1 and m2",
        ),
        ProgramError,
        one_dtype,
    ),
    (any_of("Multiple sample sites named", "duplicate plate"), ProgramError, one_plate),
    (any_of("subsample_size does not match"), ProgramError, whole_batch),
    (any_of("Shape mismatch inside plate"), ShapeError, declare_event),
    (any_of("same number of dimensions"), ShapeError, give_column),
    (
        any_of(
            "shapes? cannot be multiplied",
            "size mismatch",
            r"size of tensor a .* must match",
            "Sizes of tensors must match",
            "to have .* channels",
            r"shape '.*' is invalid",
            "expected input with shape",
            "must be equal to input_size",
            r"expected size .* (to match|but got)",
            r"expanded size of the tensor",
            "is not broadcastable",
            "not compatible",
            "cannot be broadcast",
            "shape mismatch",
            "values to unpack",
            "dimension out of range",
            "each tensor to be equal size",
            r"number of sizes provided",
            r"expected \d+D",
            "should contain .* elements",
            "kernel size can't be greater",
            "output size is too small",
            "must have the same (size|shape)",
            r"einsum\(\)",
            "vector and (vector|matrix) sizes",
            r"number of dimensions in the tensor input",
            "Expected a .* tensor",
            "only batches of spatial targets",
        ),
        ShapeError,
        give_shape,
    ),
)
