"""encode, decode and score of a VAE as functions of tensors alone, for other programs: the noise of a draw is an input.

    encode:  x -> E[z | x]
    decode:  z -> E[x | z]
    score:   x, noise -> log_w[k, n] = log p(x_n, z_kn) − log q(z_kn | x_n),  log_px[n] = log 1/K Σ_k exp log_w[k, n]

with z_kn what q(z | x_n) makes of standard normal noise_kn. Outside the support of p(x | z), where the programs refuse rows,
log_w and log_px are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_vae.common.counted import counted
from pyro_vae.errors import UsageError
from pyro_vae.models import usage
from pyro_vae.models.decoding import decoded, means_of
from pyro_vae.programs.pair import like_parameters, quiet
from pyro_vae.runs.load import Run

FEW, FEW_PARTICLES = 5, 3  # of the example at which each program is traced, and compared with the run's own
MANY = 13  # rows, and particles, of a larger one
DRAWS = 200  # of the model, among which extreme values are looked for
BEYOND = 100  # times the greatest of these
FAR = 5.0  # standard deviations of the prior, or so, at which codes are extreme
ROWS, PARTICLES = "rows", "particles"
LEADING = {  # dimensions of any size, of what is called so
    "x": (ROWS,),
    "z": (ROWS,),
    "noise": (PARTICLES, ROWS),
    "log_w": (PARTICLES, ROWS),
    "log_px": (ROWS,),
}
TOLERANCE = 1e-5  # relative to the number, of 1 where it is smaller
GAP = 3  # every third element is left out of the example of a run with missing values
NOT_ONE = "draws of its posterior are not made of one standard normal a latent"


class NoFormError(UsageError):
    """A part that cannot be written as a function of tensors: names it."""


class GivenNoise(TorchFunctionMode):
    """Let the one draw of standard normals inside be what is given."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise, self.draws = noise, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.normal_:
            self.draws += 1
            if args[0].shape != self.noise.shape:
                raise NoFormError(NOT_ONE)
            return self.noise
        return function(*args, **(kwargs or {}))


class Encode(nn.Module):
    """x ``(N, *event)`` -> E[z | x] ``(N, latents)``."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.vae.posterior(x).mean
        return mean


class Decode(Encode):
    """z ``(N, latents)`` -> E[x | z] ``(N, *event)``."""

    def forward(self, z: Tensor) -> Tensor:
        mean: Tensor = self.vae.likelihood(z).mean
        return mean


class Score(Encode):
    """x ``(N, *event)``, noise ``(K, N, latents)`` -> log_w ``(K, N)``, and log_px ``(N,)`` in float64.

    `stand_in` ``(*event)`` is a row within the support, scored in the place of those that are not, which are NaN then.
    """

    stand_in: Tensor

    def __init__(self, vae: Any, stand_in: Tensor) -> None:
        super().__init__(vae)
        self.register_buffer("stand_in", stand_in.clone())

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z, q = self.draw(x, noise)
        p, log_prior = self.vae.likelihood(z), self.vae.prior().log_prob(z)
        inside = p.support.check(x)
        rows = inside.expand(log_prior.shape).all(0)[(..., *(None,) * (x.dim() - 1))]
        with (
            torch.enable_grad()
        ):  # without it a Bernoulli is scored in pieces, whose count would be that of the example
            log_p = p.log_prob(
                torch.where(rows, x, self.stand_in)
            )  # a class that is none would be looked up in a table
        log_w = (log_prior + log_p - q.log_prob(z)).detach()
        log_w = torch.where(inside, log_w, math.nan)
        particles = torch.ones_like(log_w[:, 0], dtype=torch.float64).sum()
        return log_w, log_w.double().logsumexp(0) - particles.log()

    def draw(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Any]:
        """Return what q(z | x) makes of the noise, and q."""
        q = self.vae.posterior(x)
        with GivenNoise(noise):
            return q.rsample(noise.shape[:1]), q


@dataclass(frozen=True)
class TensorProgram:
    """A function of tensors, what it takes and gives by name, and an example of both from the run's own programs.

    Attributes:
        module: the function.
        inputs, outputs: of an example, by names of LEADING; an output is what the run's model and guide say.
        extreme: another example, at the edges of what there may be.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    extreme: TensorProgram | None = None

    def cases(self) -> Iterator[tuple[str, TensorProgram]]:
        """Yield what each form of it is checked on, and how that is called: the example, other sizes of it, and the extreme."""
        for rows in (FEW, 2, 1, MANY):
            yield counted(rows, "row"), self.of(ROWS, rows)
        if any(PARTICLES in LEADING[name] for name in self.inputs):
            for particles in (1, MANY):
                yield counted(particles, "particle"), self.of(PARTICLES, particles)
        if self.extreme is not None:
            yield f"{self.extreme.size} extreme rows", self.extreme

    @property
    def size(self) -> int:
        """Rows of the example."""
        name, tensor = next(iter(self.inputs.items()))
        return tensor.shape[LEADING[name].index(ROWS)]

    def of(self, dimension: str, size: int) -> TensorProgram:
        """Return the same with an example of so many rows or particles: the first, and all over again where there are more."""
        taken = dict(self.all())
        for name, tensor in taken.items():
            if dimension in LEADING[name]:
                at = LEADING[name].index(dimension)
                taken[name] = tensor.index_select(at, torch.arange(size) % tensor.shape[at])
        if "log_px" in taken:
            taken["log_px"] = taken["log_w"].double().logsumexp(0) - math.log(len(taken["log_w"]))
        inputs, outputs = ({name: taken[name] for name in names} for names in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs)

    def all(self) -> Iterator[tuple[str, Tensor]]:
        """Yield inputs, then outputs."""
        yield from self.inputs.items()
        yield from self.outputs.items()

    def check(self, got: Mapping[str, Tensor], where: str) -> None:
        """Refuse results that are other numbers than the run's programs give.

        Raises:
            NoFormError: some are; says by how much.
        """
        for name, want in self.outputs.items():
            value, want = got[name].double(), want.double()
            apart = (value - want).abs() / want.abs().clamp(min=1)
            same = (value == want) | (value.isnan() & want.isnan()) | (apart <= TOLERANCE)
            if value.shape != want.shape or not same.all():
                raise NoFormError(f"{name} is another number {where} than in the run's programs, by {apart.max():.2g}")


def tensor_programs(run: Run) -> Iterator[tuple[str, Callable[[], TensorProgram]]]:
    """Yield encode, decode and score of a run, each by a function that makes it.

    Raises:
        UsageError: a model of another kind than the VAE.
        NoFormError: when it is made: a posterior without a mean, or whose draws are not made of one standard normal a latent.
    """
    if run.config.model != "vae":
        raise UsageError(
            f"model {run.config.model!r} has another graph than p(z) p(x | z), whose encode, decode and score these are: "
            "export is of model 'vae'"
        )
    x, extreme = example_rows(run), extreme_rows(run)
    yield "encode", lambda: make_encode(run.vae, x, extreme)
    yield "decode", lambda: make_decode(run.vae, x)
    yield "score", lambda: make_score(run.vae, x, extreme)


def example_rows(run: Run) -> Tensor:
    """Draw rows of the model, which lie in its support; of a run with missing values, with some."""
    like = like_parameters(run.vae)
    x = usage.sample(run.vae, FEW, seed=0).to(torch.float32 if like is None else like.dtype)
    if run.config.missing:
        x = x.masked_fill((torch.arange(x.numel()) % GAP == 0).reshape(x.shape), math.nan)
    return x


def extreme_rows(run: Run) -> Tensor | None:
    """Make rows at the edges of what the model draws, as far as they lie in the support of its likelihood.

    They are the least and the greatest value of each element among 200 draws, a hundred times the greatest, zeros and ones, and
    the draws with the least and the greatest sum. Of a run with missing values the first of them is there twice more: with
    nothing observed, and with its first element alone.
    """
    like = like_parameters(run.vae)
    drawn = usage.sample(run.vae, DRAWS, seed=2).to(torch.float32 if like is None else like.dtype)
    low, high, sums = drawn.amin(0), drawn.amax(0), drawn.flatten(1).sum(1)
    edges = [
        drawn[sums.argmin()],
        drawn[sums.argmax()],
        low,
        high,
        BEYOND * high,
        torch.zeros_like(low),
        torch.ones_like(low),
    ]
    rows = torch.stack(edges)
    with quiet(run.vae, seed=0):
        z = usage.sample(run.vae, len(rows), seed=3, site=run.vae.code_site)
        inside = run.vae.likelihood(z).support.check(rows).reshape(len(rows), -1).all(1)
    rows = rows[inside]
    if not len(rows):
        return None
    if run.config.missing:
        gaps = torch.full_like(rows[:2], math.nan)
        gaps[1].view(-1)[0] = rows[0].reshape(-1)[0]
        rows = torch.cat([rows, gaps])
    return rows


def make_encode(vae: Any, x: Tensor, extreme: Tensor | None = None) -> TensorProgram:
    """Make encode; its example is what :func:`~pyro_vae.encode` gives."""
    program = TensorProgram(Encode(vae).eval(), {"x": x}, {"z": usage.encode(vae, x)})
    if extreme is None:
        return program
    return replace(program, extreme=replace(program, inputs={"x": extreme}, outputs={"z": usage.encode(vae, extreme)}))


def make_decode(vae: Any, x: Tensor) -> TensorProgram:
    """Make decode; its example is of draws of the prior, and what :func:`~pyro_vae.reconstruct` would show of them."""
    z = usage.sample(vae, FEW, seed=1, site=vae.code_site)
    far = torch.stack([torch.full_like(z[0], FAR), torch.full_like(z[0], -FAR), torch.zeros_like(z[0])])
    module, made = Decode(vae).eval(), []
    for codes in (z, far):
        with quiet(vae, seed=0):
            means = means_of(decoded(vae.model, (x[: len(codes)],), {vae.code_site: codes}), None, vae.data_site)
        if means.isnan().all():
            raise NoFormError("its likelihood has no mean: x are classes")
        made.append(TensorProgram(module, {"z": codes}, {"x": means}))
    return replace(made[0], extreme=made[1])


def make_score(vae: Any, x: Tensor, extreme: Tensor | None = None) -> TensorProgram:
    """Make score; its example is of the pair's own densities, a particle at a time.

    Raises:
        NoFormError: draws of the posterior are not made of one standard normal a latent.
    """
    score = Score(vae, x[0]).eval()
    with quiet(vae, seed=0):
        q = vae.posterior(x)
        if not q.has_rsample:
            raise NoFormError("draws of its posterior are no function of noise")
        noise = torch.randn(FEW_PARTICLES, *q.batch_shape, *q.event_shape, dtype=x.dtype)
        with GivenNoise(noise) as given:
            q.rsample(noise.shape[:1])
        if given.draws != 1:
            raise NoFormError(NOT_ONE)
        z = score.draw(x, noise)[0]
    if not torch.equal(z, drawn_again(score, x, noise)):
        raise NoFormError("draws of its posterior take more noise than standard normals")
    program = TensorProgram(score, {"x": x, "noise": noise}, weights_of(vae, x, z))
    if extreme is None:
        return program
    noise = noise.index_select(1, torch.arange(len(extreme)) % len(x))
    with quiet(vae, seed=0):
        z = score.draw(extreme, noise)[0]
    inputs = {"x": extreme, "noise": noise}
    return replace(program, extreme=replace(program, inputs=inputs, outputs=weights_of(vae, extreme, z)))


def weights_of(vae: Any, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Return what score is to give at particles z ``(K, N, latents)``, by the pair's own densities."""
    log_w = torch.stack([log_weights(vae, x, particle) for particle in z])
    return {"log_w": log_w, "log_px": log_w.double().logsumexp(0) - math.log(len(log_w))}


def drawn_again(score: Score, x: Tensor, noise: Tensor) -> Tensor:
    """Draw of the same noise once more, from another random stream."""
    with quiet(score.vae, seed=1):
        return score.draw(x, noise)[0]


def log_weights(vae: Any, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) − log q(z | x) of the model and the guide as they are written, ``(N,)``."""
    at = {vae.code_site: z}
    with quiet(vae, seed=0):
        p, q = (poutine.trace(poutine.condition(program, data=at)).get_trace(x) for program in (vae.model, vae.guide))
        p.compute_log_prob()
        q.compute_log_prob()
    terms = [p.nodes[name]["log_prob"] for name in (vae.code_site, vae.data_site)]
    total: Tensor = sum(terms) - q.nodes[vae.code_site]["log_prob"]
    return total
