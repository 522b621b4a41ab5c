"""Discrete sites summed out of a joint: the same number as adding up the codes by hand, for programs of many kinds."""

from itertools import product

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine

from pyro_vae import Bound, ais, bracket, iwae, log_likelihood, log_weights, quadrature, sum_out
from pyro_vae.errors import ProgramError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sum_over_codes import SummedOut
from tests.helpers.classes import CENTRES, SIGMA, WEIGHTS, A, log_joint_mixed, rows_mixed

N = 4
X = torch.tensor([-1.0, 0.2, 1.5, 3.0])
Z = torch.tensor([0.3, -0.8, 1.1, 0.4])


def categorical(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        z = pyro.sample("z", dist.Normal(y - 1.0, 1.0 + 0.5 * y))
        pyro.sample("x", dist.Normal(z * (1 + y), 0.7), obs=x)


def last(x):
    """z comes first, y depends on it."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        y = pyro.sample("y", dist.Bernoulli(torch.sigmoid(z)))
        pyro.sample("x", dist.Normal(z + 3 * y, 1.0), obs=x)


def two_sites(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.3))
        k = pyro.sample("k", dist.Categorical(torch.stack([1 + y, 2 - y, 1 + 0 * y], -1)))
        z = pyro.sample("z", dist.Normal(k - y, 1.0))
        pyro.sample("x", dist.StudentT(4.0, z + y * k, 1.0), obs=x)


def vector(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(torch.tensor([0.2, 0.7, 0.5])).to_event(1))
        z = pyro.sample("z", dist.Normal(y.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z + y[..., 0], 1.0), obs=x)


def one_hot(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])))
        z = pyro.sample("z", dist.Normal((y * torch.tensor([0.0, 1.0, 2.0])).sum(-1), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def own_family(x):
    """Families that are not made again from their parameters: the distribution of all codes is asked."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(3)))
        z = pyro.sample("z", dist.Gumbel(y * 1.0, 1.0 + y))
        pyro.sample("x", dist.Cauchy(z - y, 1.0), obs=x)


def two_observed(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(y + z, 1.0), obs=x)
        pyro.sample("b", dist.Normal(y - z, 2.0), obs=x.flip(0) if len(x) == 1 else 2 * x)


def stiff(x):
    """Knows rows in the first dimension only: particles must be rows, or runs of their own."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(2)))
        z = pyro.sample("z", dist.Normal(y * 1.0, 1.0))
        h = torch.nn.functional.softmax(torch.stack([z, y.to(z)], 1), 1)
        pyro.sample("x", dist.Normal(h[:, 0] * 3, 1.0), obs=x)


def seldom(x):
    """y is there in two rows of four."""
    there = torch.arange(len(x)) % 2 == 0 if len(x) % 2 == 0 else torch.ones(len(x), dtype=torch.bool)
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=there):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        z = pyro.sample("z", dist.Normal(torch.where(there, y, 0) * 1.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


PROGRAMS = [categorical, last, two_sites, vector, one_hot, own_family, two_observed, stiff, seldom]
VALUES = {"y": [torch.tensor(v) for v in range(3)], "k": [torch.tensor(v) for v in range(3)]}
VALUES |= {"vector": [torch.tensor(v, dtype=torch.float32) for v in product((0, 1), repeat=3)]}
CODES = {
    "categorical": {"y": VALUES["y"]},
    "last": {"y": [torch.tensor(0.0), torch.tensor(1.0)]},
    "two_sites": {"y": [torch.tensor(0.0), torch.tensor(1.0)], "k": VALUES["k"]},
    "vector": {"y": VALUES["vector"]},
    "one_hot": {"y": list(torch.eye(3))},
    "own_family": {"y": VALUES["y"]},
    "two_observed": {"y": VALUES["y"]},
    "stiff": {"y": VALUES["y"][:2]},
    "seldom": {"y": VALUES["y"]},
}


def log_prob(program, values, x):
    """log p of all sites at these values, by row."""
    trace = poutine.trace(poutine.condition(program, data=values)).get_trace(x)
    trace.compute_log_prob()
    return sum(s["log_prob"] for n, s in trace.nodes.items() if s["type"] == "sample" and n != "data")


def by_hand(program, z, x):
    """log Σ_y p(x, y, z), each code in turn."""
    codes = CODES[program.__name__]
    terms = [
        log_prob(program, {"z": z} | {n: v.expand(len(x), *v.shape) for n, v in zip(codes, at, strict=True)}, x)
        for at in product(*codes.values())
    ]
    return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_the_sum_over_codes_is_that_by_hand(program):
    marginal, _ = sum_out(program, None, X)
    assert isinstance(marginal, SummedOut)
    if program is seldom:  # in the rows without y a sum by hand would count it three times
        exact = torch.where(
            torch.arange(N) % 2 == 0, by_hand(program, Z, X), by_hand(program, Z, X) - torch.tensor(3.0).log()
        )
    else:
        exact = by_hand(program, Z, X)
    assert torch.allclose(log_prob(marginal, {"z": Z}, X), exact, atol=1e-5)


def draws_y(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.4, 0.3, 0.3])))
        pyro.sample("z", dist.Normal(x / 2 + y - 1, 1.0))


def test_particles_of_every_mode_get_the_same_weights():
    """A plate, K · N rows, one run each: log w at the guide's own draws, against the sum by hand."""
    for program, modes in ((categorical, {"plate"}), (stiff, {"rows", "loop"})):
        pair = sum_out(program, lambda x: normal_guide(x), X)
        problem = Problem.of(*pair, X, seed=0)
        assert problem.vectorizing.model in modes
        with problem.quiet(0, 1):
            q, p = problem.draw(5)
            joint = problem.log_prob(p)
        exact = torch.stack([by_hand(program, z, X) for z in q["z"]["value"]])
        assert torch.allclose(joint, exact, atol=1e-4)


def normal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.5))


def test_a_guides_site_is_summed_out_of_its_density():
    _, guide = sum_out(categorical, draws_y, X)
    weights = torch.tensor([0.4, 0.3, 0.3]).log()
    exact = torch.stack([w + dist.Normal(X / 2 + y - 1, 1.0).log_prob(Z) for y, w in enumerate(weights)]).logsumexp(0)
    assert torch.allclose(log_prob(guide, {"z": Z}, X), exact, atol=1e-5)


def test_collapsed_weights_vary_less_and_mean_the_same():
    plain = log_weights(categorical, draws_y, X, num_particles=20_000).double()
    collapsed = log_weights(*sum_out(categorical, draws_y, X), X, num_particles=20_000).double()
    assert (collapsed.exp().var(0) <= plain.exp().var(0) * 1.05).all()
    se = (collapsed.exp().var(0) + plain.exp().var(0)).div(20_000).sqrt()
    assert ((collapsed.exp().mean(0) - plain.exp().mean(0)).abs() < 4 * se).all()


# --- a stranger's program, without marks -------------------------------------------------------------------------------------


def mixed(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(CENTRES[y], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ A.T, SIGMA).to_event(1), obs=x)


def drawn(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(3)))
        pyro.sample("z", dist.Normal(0.5 * CENTRES[y] + 0.5 * x @ torch.linalg.pinv(A).T, 1.1).to_event(1))


def test_evaluators_of_continuous_latents_sum_out_what_they_cannot_walk_on():
    x = rows_mixed(3)
    exact = log_joint_mixed(x.double()).logsumexp(-1)
    annealed = ais(mixed, drawn, x, start="guide", num_temperatures=6, num_chains=16, leapfrog_steps=2, verbose=False)
    assert ((annealed.log_px - exact).abs() < 4 * annealed.mc_se).all()
    ends = bracket(mixed, drawn, x, num_temperatures=6, num_chains=16, leapfrog_steps=2, num_samples=500, verbose=False)
    assert ((ends.lower - exact).abs() < 4 * ends.lower_se).all() and (ends.upper - exact > -4 * ends.upper_se).all()
    assert (quadrature(mixed, None, x[:1], tol=1e-3).log_px - exact[:1]).abs().max() < 1e-3
    assert log_likelihood(mixed, None, x[:1], method="exact").method.startswith("quadrature")


# --- refusals ----------------------------------------------------------------------------------------------------------------


def many(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(200)))
        k = pyro.sample("k", dist.Categorical(torch.ones(51)))
        z = pyro.sample("z", dist.Normal((y + k) * 1.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def other_observation(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x + y)


def other_values(x):
    """Rows of other numbers of trials."""
    with pyro.plate("data", len(x)):
        n = torch.where(x.detach() > 1, 3.0, 2.0) if len(x) > 4 else 2 * torch.ones(len(x))
        y = pyro.sample("y", Trials(n))
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Trials(dist.Binomial):
    def __init__(self, n):
        super().__init__(n, probs=0.4 * torch.ones_like(n), validate_args=False)

    def enumerate_support(self, expand=True):
        return torch.arange(3.0).reshape(3, 1)

    def expand(self, batch_shape, _instance=None):
        return self


def reads_masked(x):
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=torch.zeros(len(x), dtype=torch.bool)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(3 * y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def pixels(x):
    with pyro.plate("data", len(x), dim=-2):
        y = pyro.sample("y", dist.Bernoulli(torch.full((1,), 0.5)))
        z = pyro.sample("z", dist.Normal(y, 1.0))
        with pyro.plate("pixels", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.unsqueeze(-1).expand(-1, 3))


def invalid(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.2 + 0.3 * x.abs(), validate_args=False))
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def absent(x):
    """Attend-Infer-Repeat: an object that is not there has no place, so that its density is 1 over the whole line."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand(y.shape).mask(y))
        pyro.sample("x", dist.Normal(z * y, 1.0), obs=x)


def absent_by_handler(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5))
        with poutine.mask(mask=y > 0):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * y, 1.0), obs=x)


def absent_in_an_event(x):
    """A later row alone is masked, in one entry of its event."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5))
        there = torch.stack([torch.ones_like(x), ((x < 2.5) | (y > 0)).to(x)], -1) > 0
        z = pyro.sample("z", dist.Normal(torch.zeros_like(there, dtype=x.dtype), 1.0).mask(there).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def seen_under_one_code(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand(y.shape).mask(y), obs=x)


REFUSED = {
    "absent-under-a-code": (absent, "'z' has another mask for another value of y"),
    "absent-by-handler": (absent_by_handler, "'z' has another mask"),
    "absent-in-an-event": (absent_in_an_event, "'z' has another mask"),
    "seen-under-one-code": (seen_under_one_code, "'x' has another mask"),
    "too-many-codes": (many, r"10200 codes in all \('y' 200, 'k' 51\).*10000"),
    "observation-by-code": (other_observation, "'x' observes another value"),
    "values-by-row": (other_values, r"'y': the probabilities of its 3 values add up to"),
    "masked-values-read": (reads_masked, "'z' reads the value of y"),
    "plate-within-a-row": (pixels, r"'x' lies in a plate of size 3 within a row"),
    "invalid-probabilities": (invalid, r"'y'.*Bernoulli.*\[5\]"),
}


@pytest.mark.parametrize(("program", "match"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_the_site(program, match):
    with pytest.raises(ProgramError, match=match):
        sum_out(program, None, torch.linspace(-1, 3, 6))


def counts(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Poisson(2.0))
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def counts_guide(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Poisson(2.0))
        pyro.sample("z", dist.Normal(y, 1.0))


def test_a_site_without_a_list_is_refused_where_latents_move():
    assert sum_out(counts, None, X)[0] is counts
    with pytest.raises(ProgramError, match=r"site 'y' is discrete \(Poisson\)"):
        ais(counts, counts_guide, X, verbose=False)


def test_a_pair_without_anything_else_is_left_alone():
    def discrete(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("y", dist.Bernoulli(0.5)), 1.0), obs=x)

    assert sum_out(discrete, discrete, X) == (discrete, discrete)


def test_marks_of_both_programs_are_trained_by_the_elbo_alone():
    marked = poutine.infer_config(draws_y, config_fn=lambda site: {"enumerate": "parallel"})
    assert Bound(num_particles=3).per_row(categorical, marked, X).shape == (N,)
    with pytest.raises(ProgramError, match="marked for enumeration"):
        Bound(iwae, 3).per_row(categorical, marked, X)
