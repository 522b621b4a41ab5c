"""`Problem`: a pair on its rows, the one door to (particles, rows)."""

import ast
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae
from pyro_vae.common.random import seeded
from pyro_vae.errors import DataError, ProgramError, ShapeError, SupportError
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.sites import latent_sites, observed_sites

DOUBLE = torch.float64
SD = 0.8  # of x given z


class Shifted:
    """z ~ N(0, 1), x_d ~ N(z + c, SD²) for d = 1..3; two latents a row, at any dims of the plates."""

    def __init__(self, data_dim=-1, inner=False, sd=None):
        self.data_dim, self.inner, self.sd = data_dim, inner, sd

    def model(self, x, c):
        with pyro.plate("data", len(x), dim=self.data_dim):
            if not self.inner:
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal((z + c)[..., None].expand(*z.shape, 3), SD).to_event(1), obs=x)
                return
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("columns", 3, dim=-3 - self.data_dim):
                rows = x.T if self.data_dim == -1 else x
                pyro.sample("x", dist.Normal(z + self.shaped(c), SD), obs=rows)

    def shaped(self, rows):
        return rows if self.data_dim == -1 else rows[:, None]

    def guide(self, x, c):
        loc, sd = self.posterior(x, c)
        with pyro.plate("data", len(x), dim=self.data_dim):
            pyro.sample("z", dist.Normal(self.shaped(loc), sd if self.sd is None else x.new_tensor(self.sd)))

    def posterior(self, x, c):
        precision = 1 + 3 / SD**2
        return (x - c[:, None]).sum(1) / SD**2 / precision, x.new_tensor(precision**-0.5)

    def log_px(self, x, c):
        cov = SD**2 * torch.eye(3, dtype=x.dtype) + 1
        return dist.MultivariateNormal(torch.zeros(3, dtype=x.dtype), cov).log_prob(x - c[:, None])


@pytest.fixture
def rows():
    with seeded(3):
        return torch.randn(7, 3, dtype=DOUBLE), torch.randn(7, dtype=DOUBLE)


PAIRS = {"one-plate": Shifted(), "inner-left": Shifted(-1, inner=True), "inner-right": Shifted(-2, inner=True)}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_with_the_exact_posterior_every_weight_is_p_of_the_row(pair, rows):
    problem = Problem.of(pair.model, pair.guide, *rows, seed=0)
    with problem.quiet(0, 1):
        terms = problem.log_probs(5)
    assert (problem.plates.dim, len(problem), problem.measure) == (pair.data_dim, 7, "continuous")
    torch.testing.assert_close(terms.log_w, pair.log_px(*rows).expand(5, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_slice_scores_as_the_whole_does(pair, rows):
    """At the same latents each row's terms are the same, whoever is scored beside it."""
    problem = Problem.of(pair.model, pair.guide, *rows, seed=0)
    dim = problem.plates.dim
    with problem.quiet(0, 1):
        q, p = problem.draw(4)
        whole = problem.log_prob(p)
        for part in (slice(0, 3), slice(3, 7), slice(6, 7)):
            some = problem.rows(part)
            values = {"z": q["z"]["value"].movedim(dim, 0)[part].movedim(0, dim)}
            conditioned = some.log_prob(some.sites(some.model, 4, values))
            replayed = some.log_prob(some.sites(some.model, 4, trace_of(values)))
            assert torch.equal(conditioned, whole[:, part]) and torch.equal(replayed, whole[:, part])
    assert [(some.first, len(some)) for some in problem.split(3)] == [(0, 3), (3, 3), (6, 1)]
    assert len(problem.split(0)) == 7 and problem.rows(slice(2, 7)).rows(slice(3, 5)).numbers(torch.ones(2)) == [5, 6]


def trace_of(values):
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return trace


def test_replayed_latents_stay_latent_and_conditioned_ones_are_observed(rows):
    pair = Shifted()
    problem = Problem.of(pair.model, pair.guide, *rows, seed=0)
    with problem.quiet(0):
        trace = problem.trace(problem.guide, 2)
        replayed = problem.sites(problem.model, 2, trace)
        held = problem.sites(problem.model, 2, {"z": trace.nodes["z"]["value"]})
        alone = problem.sites(problem.model)
    assert list(latent_sites(replayed)) == ["z"] and list(observed_sites(replayed)) == ["x"]
    assert list(observed_sites(held)) == ["z", "x"] and not latent_sites(held)
    assert torch.equal(replayed["z"]["value"], held["z"]["value"]) and replayed["z"]["value"].shape == (2, 7)
    assert alone["z"]["value"].shape == (7,)


def test_it_is_the_elbo_of_a_wider_guide(rows):
    """KL(N(m, s²) ‖ posterior) is what the weights lack on average, within 4 standard errors."""
    pair = Shifted(sd=0.9)
    problem = Problem.of(pair.model, pair.guide, *rows, seed=0)
    with problem.quiet(0, 1):
        gap = (pair.log_px(*rows) - problem.log_probs(4000).log_w).mean(1)
    s = pair.posterior(*rows)[1].item()
    exact = math.log(s / 0.9) + 0.5 * (0.9 / s) ** 2 - 0.5
    assert abs(gap.mean() - exact) < 4 * gap.std() / 4000**0.5


def test_units_and_weights_beside_them():
    """A site ``(K, inner, N, event)`` by unit, and ``(K, N)`` weights beside it."""
    plates = Problem.on(PAIRS["inner-left"].model, PAIRS["inner-left"].guide, torch.zeros(4, 3), torch.zeros(4)).plates
    values = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert (plates.particles, plates.leading(values, 1).shape) == (-3, (2, 4, 3, 5))
    assert torch.equal(plates.by_unit(values, 1)[1, 2], values[1, :, 2].flatten())
    assert plates.beside(torch.zeros(2, 4), 1).shape == (2, 1, 4, 1)


# quiet


class Normed(nn.Module):
    """A guide whose batch-norm would change with every run in training mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1)
        self.frozen = nn.Linear(1, 1).eval()

    def guide(self, x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.head(self.drop(self.norm(x))).squeeze(-1), 1.0))


def test_modules_are_in_eval_mode_inside_and_as_they_were_after(rows):
    net, pair = Normed().double().train(), Shifted()
    net.frozen.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    problem = Problem.of(pair.model, net.guide, *rows, seed=0)
    with problem.quiet():
        assert not any(m.training for m in net.modules()) and not torch.is_grad_enabled()
        with pytest.raises(ZeroDivisionError), problem.quiet(0):
            assert not pyro.settings.get("validate_distributions_torch")
            raise ZeroDivisionError
        assert not net.norm.training and not pyro.settings.get("validate_distributions_torch")
        with problem.quiet(0, 1):
            a = problem.log_probs(3).log_w
        with problem.rows(slice(0, 1)).quiet(0, 1):  # batch statistics of one row would be NaN
            assert problem.rows(slice(0, 1)).log_probs(1).log_w.isfinite().all()
        with problem.quiet(0, 1):
            assert torch.equal(problem.log_probs(3).log_w, a)
    assert net.training and net.norm.training and not net.frozen.training and torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_global_random_state_is_left_alone(rows):
    pair = Shifted(sd=0.9)
    before = torch.get_rng_state()
    problem = Problem.of(pair.model, pair.guide, *rows, seed=4)
    assert problem.measure == "continuous"
    with problem.quiet(4, 0):
        first = problem.log_probs(3).log_w
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    with problem.quiet(4, 0):
        again = problem.log_probs(3).log_w
    with problem.quiet(4, 1):
        other = problem.log_probs(3).log_w
    assert torch.equal(first, again) and not torch.equal(first, other)
    with quiet(pair.guide):  # without a seed draws go on where they were
        assert not torch.equal(torch.rand(3), torch.rand(3))


# what is refused


def test_rows_are_checked(rows):
    pair = Shifted()
    x, c = rows

    def bernoulli(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Bernoulli(0.5).expand(x.shape).to_event(1), obs=x)

    with pytest.raises(SupportError, match="'x'"):
        Problem.of(bernoulli, pair.guide, x, c, seed=0)
    with pytest.raises(DataError, match="NaN"):
        Problem.of(pair.model, pair.guide, x.clone().fill_(math.nan), c, seed=0)
    with pytest.raises(ShapeError, match="7 rows, context 0 has 6"):
        Problem.of(pair.model, pair.guide, x, c[:6], seed=0)
    with pytest.raises(ProgramError, match="'z' is in the model but not in the guide"):
        Problem.of(pair.model, lambda x, c: None, x, c, seed=0)
    assert rows_of(pair.model, pair.guide, x.clone().fill_(math.nan), c, missing=True)[0].isnan().all()


def test_a_subsampled_row_count_is_no_row(rows):
    """The rows that a program takes are its arguments'; a latent site of other batch shape is refused by name."""
    x, c = rows

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2, len(x), dtype=DOUBLE), 1.0))

    with pytest.raises((ProgramError, ValueError)):
        Problem.on(Shifted().model, guide, x, c).log_probs(3)


# the one door


def plates_of_particles(source: str) -> list[int]:
    """Lines where `plate(PARTICLES, ...)` or `plate("particles", ...)` is called."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    names = {id(c): c.func.attr if isinstance(c.func, ast.Attribute) else getattr(c.func, "id", "") for c in calls}
    first = {id(c): getattr(c.args[0], "id", getattr(c.args[0], "value", None)) for c in calls}
    return [c.lineno for c in calls if names[id(c)] == "plate" and first[id(c)] in ("PARTICLES", "particles")]


def test_no_other_module_opens_a_plate_of_particles():
    package = Path(pyro_vae.__file__).parent
    found = {path.stem for path in package.rglob("*.py") if plates_of_particles(path.read_text(encoding="utf-8"))}
    assert found == {"problem"}, f"run K particles by Problem.trace, not in {found - {'problem'}}"
    assert plates_of_particles(
        'with pyro.plate("particles", 3, dim=-2), plate(PARTICLES, 3), plate("data", 3): ...'
    ) == [1, 1]
