r"""Discrete sites beside continuous ones, summed out inside the joint: p(x, z) = Σ_y p(y) p(z | y) p(x | y, z), row by row.

A program of sites y, z, x is run once on C · N rows, each row under every code of y, and is seen from outside as one of z and x
alone, on N rows: each site is a mixture over codes, of weights p(code | the sites before it). So the log-probabilities of the
sites add up to log Σ_y p(y, z, x), the sites can be drawn, and whatever takes a pair of programs takes this one: importance
sampling, annealing, brackets, gaps, quadrature. A guide's y is summed out likewise: q(z | x) = Σ_y q(y | x) q(z | x, y).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.errors import ProgramError

from .by_code import CodesOnTheRight, mixture_of, of_first_code
from .codes import Codes
from .determinism import identical
from .log_density import log_density
from .masks import mask_of_site
from .pair import unwrapped
from .plates import WITHOUT_SIZE, Plates, frame_of_rows
from .site_rows import frames_of
from .sites import Program, has_density
from .valid_parameters import check_site_parameters
from .vectorize import Grouping, regroup, repeated

NEAR = 1e-4  # nats: what probabilities of all codes may be off from 1, and densities that should not depend on a code


@dataclass(frozen=True)
class SummedOut:
    """A program with some discrete sites summed out: what is left of its sites is seen, each row once."""

    program: Program
    codes: Codes
    plates: Plates

    @property
    def __wrapped__(self) -> Program:  # how modules behind a program are found
        return self.program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with SumOut(self.codes, self.plates):
            return self.program(*repeated(args, len(self.codes)), **kwargs)


class SumOut(Messenger):
    """Show a program of C · N rows, code by code, as one of N rows without the discrete sites; see the module.

    Enter it around the program: it sees what the program's own handlers have done, and those around it see its sites.
    """

    def __init__(
        self, codes: Codes, plates: Plates, complain: Callable[[str], None] | None = None, first: int = 0
    ) -> None:
        super().__init__()
        self.codes, self.plates, self.complain, self.first = codes, plates, complain, first
        self.left, self.right = Grouping(plates, len(codes)), CodesOnTheRight(plates, len(codes))
        self.log_weights: Tensor | None = None  # log p(code, the sites so far), of C · N rows; None before any code
        self.unscored: list[tuple[str, Any, Tensor, Any, bool, bool]] = []  # sites that are no part of it yet
        self.kept: dict[str, dict[str, Any]] = {}
        self.absent: Tensor | None = None  # rows in which a mask takes a discrete site out
        self.shown: dict[str, dict[str, Any]] = {}  # latents as they are seen from outside, N rows each
        self.inside: dict[str, Tensor] = {}  # the same in the program, C · N rows
        self.terms: dict[str, Tensor] = {}  # log-probabilities by site, while somebody complains
        self.shapes: dict[str, tuple[int, ...]] = {}  # batch shapes of the discrete sites, of C · N rows

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            msg["stop"] |= msg["name"] == self.plates.data  # C · N rows are nobody's outside
            return
        if not has_density(msg) or self.plates.data not in frames_of(msg):
            return
        if msg["name"] in self.codes.values and not msg["is_observed"]:
            self.enumerate(msg)
        else:
            self.mix(msg)

    def enumerate(self, msg: Any) -> None:
        """Give a discrete site its codes, and hide it."""
        fn, dim = msg["fn"], self.plates.dim
        rows = next(f.size for f in msg["cond_indep_stack"] if f.name == self.plates.data)
        rows = fn.batch_shape[dim] if rows == WITHOUT_SIZE else rows
        value = self.codes.values[msg["name"]].repeat_interleave(rows // len(self.codes), 0)
        value = value.reshape(len(value), *[1] * (-dim - 1), *fn.event_shape).expand(fn.shape())
        if self.complain is not None or not torch.is_grad_enabled():
            self.check_parameters(msg, value)
        log_prob = scale_and_mask(log_density(fn, value), mask=msg["mask"])
        self.terms[msg["name"]], self.shapes[msg["name"]] = self.by_row(log_prob), tuple(fn.batch_shape)
        if (kept := mask_of_site(msg)) is not True:
            log_prob = log_prob - self.left_out(msg["name"], fn, kept, value)
        total = self.by_row(log_prob)
        if self.complain is not None:
            self.look_at_sum(msg["name"], total)
        self.settle()
        self.log_weights = total if self.log_weights is None else self.log_weights + total
        msg["value"], msg["done"], msg["stop"] = value, True, True

    def check_parameters(self, msg: Any, value: Tensor) -> None:
        """Refuse invalid parameters of a site that nobody outside sees; before it is scored, which may put them right."""
        fn, mask = msg["fn"], msg["mask"]
        mask = self.left.split(mask) if isinstance(mask, Tensor) and mask.dim() else mask
        seen = {**msg, "fn": regroup([fn], self.left), "value": self.left.split(value, fn.event_dim), "mask": mask}
        check_site_parameters({msg["name"]: seen}, self.plates.dim, first=self.first, plates=self.plates)

    def left_out(self, name: str, fn: Any, kept: Any, value: Tensor) -> Tensor:
        """log V for each element that a mask takes out: what is not there has no value, and all of them together weigh 1."""
        absent = ~torch.as_tensor(kept, device=value.device).expand(value.shape)
        share = absent.flatten(value.dim() - fn.event_dim).double().mean(-1) if fn.event_dim else absent.double()
        gone = self.by_row(share) > 0
        self.absent = gone if self.absent is None else self.absent | gone
        return (share * self.codes.elements[name] * math.log(self.codes.sizes[name])).to(torch.get_default_dtype())

    def look_at_sum(self, name: str, log_prob: Tensor) -> None:
        """Complain of values whose probabilities do not add up to 1: they depend on the row, or are not all listed."""
        each = self.left.split(log_prob)
        total = each.logsumexp(0) - math.log(len(self.codes) / self.codes.count(name))
        if self.complain is not None and not bool((total.abs() < NEAR).all()):
            self.complain(
                f"site {name!r}: the probabilities of its {self.codes.count(name)} values add up to "
                f"{total.flatten()[total.abs().argmax()].exp():.6g}, not to 1: other rows have other values"
            )

    def by_row(self, values: Tensor) -> Tensor:
        """Sum the terms of a site over its inner plates, whose dimensions stay, of size 1; not over those that codes are of."""
        kept = {self.plates.dim, *self.codes.within.values()}
        inner = [d for d in range(max(-self.plates.nesting, -values.dim()), 0) if d not in kept]
        return values.sum(inner, keepdim=True) if inner else values

    def mix(self, msg: Any) -> None:
        """Show a site as a mixture over codes, of N rows; itself, before there are any."""
        name, fn = msg["name"], msg["fn"]
        self.refuse_inner(name, fn)
        self.look_at_mask(name, msg)
        self.kept[name] = {key: msg[key] for key in ("fn", "mask", "scale", "cond_indep_stack", "infer")}
        self.settle()
        same = self.log_weights is None or self.beside(msg)
        msg["fn"] = of_first_code(fn, self.left) if same else None
        if msg["fn"] is None:
            weights = torch.zeros(fn.batch_shape, device=self.device) if same else self.log_weights
            assert weights is not None
            msg["fn"] = mixture_of(self.right.split(weights), fn, self.right)
        if isinstance(msg["value"], Tensor):
            msg["value"] = self.of_rows(name, msg["value"], fn.event_dim, "observes another value")
        msg["mask"] = self.weight_of_rows(name, msg["mask"])
        msg["scale"] = self.weight_of_rows(name, msg["scale"])
        msg["infer"] = {key: value for key, value in (msg["infer"] or {}).items() if key != "enumerate"}
        data = frames_of(msg)[self.plates.data]
        if data.full_size not in (None, data.size) and data.size != WITHOUT_SIZE:
            msg["scale"] = msg["scale"] * len(
                self.codes
            )  # each of N rows stands for as many, however many codes it has
        msg["cond_indep_stack"] = tuple(self.frame(frame) for frame in msg["cond_indep_stack"])

    def beside(self, site: Any) -> bool:
        """Return whether a site lies outside of the plates that codes are of: no code of one entry is its own."""
        return not set(self.codes.within) <= set(frames_of(site))

    @property
    def device(self) -> torch.device:
        return next(iter(self.codes.values.values())).device

    def refuse_inner(self, name: str, fn: Any) -> None:
        """Refuse a site whose entries lie in plates of their own: a code is of a row, and weighs all of them at once."""
        batch = fn.batch_shape
        for dim in range(max(-self.plates.nesting, -len(batch)), 0):
            if dim != self.plates.dim and dim not in self.codes.within.values() and batch[dim] > 1:
                raise ProgramError(
                    f"site {name!r} lies in a plate of size {batch[dim]} within a row, beside {', '.join(self.codes.values)}, "
                    "which is summed out of each row as a whole. Declare what belongs to one row with .to_event(1), in the "
                    "place of that plate."
                )

    def look_at_mask(self, name: str, msg: Any) -> None:
        """Complain of a site that is there under one code and not under another: its term is a density of other entries then.

        A latent that is absent (Attend-Infer-Repeat's objects) has density 1 over the whole line, whose sum over codes is no
        density of z; an observation that is absent is no observation.
        """
        if self.complain is None or not isinstance(kept := mask_of_site(msg), Tensor):
            return
        each = self.left.split(kept.expand(msg["fn"].shape()), msg["fn"].event_dim)
        if not all(identical(one, each[0]) for one in each):
            self.complain(f"site {name!r} has another mask for another value of {', '.join(self.codes.values)}")

    def of_rows(self, name: str, values: Tensor, event_dim: int, what: str) -> Tensor:
        """Return the values ``(..., C N, ..., *event)`` of the first code, which are those of all."""
        split = self.left.split(values, event_dim)
        if self.complain is not None and not all(identical(one, split[0]) for one in split):
            self.complain(f"site {name!r} {what} for another value of {', '.join(self.codes.values)}")
        return split[0]

    def weight_of_rows(self, name: str, weight: Any) -> Any:
        """Return a mask, or a scale, of the rows of the first code."""
        if not isinstance(weight, Tensor) or not weight.dim():
            return weight
        return self.of_rows(name, weight, 0, "has another mask or weight")

    def frame(self, frame: CondIndepStackFrame) -> CondIndepStackFrame:
        """Return the data plate, over N rows."""
        if frame.name != self.plates.data or frame.size == WITHOUT_SIZE:
            return frame
        return frame_of_rows(frame, len(self.codes))

    def _pyro_post_sample(self, msg: Any) -> None:
        if (kept := self.kept.pop(msg["name"], None)) is None:
            return
        fn, dim = kept["fn"], self.plates.dim - kept["fn"].event_dim
        each = msg["value"].unsqueeze(dim - 1)
        value = each.expand(*[len(self.codes) if i == each.dim() + dim - 1 else -1 for i in range(each.dim())])
        value = value.flatten(dim - 1, dim)
        latent = not msg["is_observed"]
        if latent:
            self.shown[msg["name"]] = {"value": msg["value"]}
        msg.update(kept, value=value)
        self.inside[msg["name"]] = value
        self.unscored.append((msg["name"], fn, value, kept["mask"], latent, self.beside(msg)))
        if self.complain is not None:
            self.settle()

    def settle(self) -> None:
        """Weigh the codes by the sites since they were weighed last."""
        waiting = self.unscored if self.log_weights is not None or self.complain else ()
        for name, fn, value, mask, latent, beside in waiting:
            if beside and self.complain is None:
                continue
            term = self.by_row(scale_and_mask(log_density(fn, value, latent), mask=mask))
            if self.complain is not None:
                self.terms[name] = term
                self.look(name, term)
            if beside:
                self.look_beside(name, term)
            elif self.log_weights is not None:
                self.log_weights = self.log_weights + term
        self.unscored.clear()

    def look_beside(self, name: str, term: Tensor) -> None:
        """Complain of a site outside of the plate that codes are of, whose density depends on them: they do not come apart."""
        each = self.left.split(term)
        if self.complain is not None and ((each - each[:1]).abs() > NEAR * (1 + each.abs())).any():
            self.complain(
                f"site {name!r} lies outside of the plate {', '.join(map(repr, self.codes.within))} and depends on the value "
                f"of {', '.join(self.codes.values)} in it: entries are summed out one by one"
            )

    def look(self, name: str, term: Tensor) -> None:
        """Complain of a density that reads a discrete value where a mask takes it out."""
        if self.absent is None or self.complain is None:
            return
        each, absent = self.left.split(term), self.left.split(self.absent)[0]
        if (((each - each[:1]).abs() > NEAR * (1 + each.abs())).any(0) & absent).any():
            self.complain(
                f"site {name!r} reads the value of {', '.join(self.codes.values)} in rows where a mask takes its density away"
            )


def codes_of(program: Program) -> int:
    """Count the codes that a program is run under for each of its rows: 1 where nothing is summed out."""
    return next((len(layer.codes) for layer in unwrapped(program) if isinstance(layer, SummedOut)), 1)
