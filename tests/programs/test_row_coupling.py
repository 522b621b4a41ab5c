"""A number that a model reads off all rows (a greatest value, a number of classes) is found, wherever that value stands."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_vae import Bound, check, iwae, log_likelihood, log_weights, quadrature
from pyro_vae.errors import ProgramError
from pyro_vae.programs import among_rows

COUNTS = torch.tensor([2.0, 9.0, 0.0, 4.0, 1.0, 3.0])
LABELS = torch.tensor([1, 2, 0, 1, 0, 1])
SAID = "another log-probability for a row when other rows are passed along"


def binomial_of(total):
    def model(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Binomial(total(x), pyro.sample("z", dist.Beta(2.0, 3.0))), obs=x)

    return model


def of_labels(x, y):
    classes = int(y.max()) + 1
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Beta(2.0, 3.0))
        pyro.sample("y", dist.Categorical(torch.ones(classes) / classes), obs=y)
        pyro.sample("x", dist.Poisson(torch.ones(len(x))), obs=x)


def branching(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Beta(2.0, 3.0))
        pyro.sample("x", dist.Poisson(z * (5 if (x == 0).any() else 9)), obs=x)


def of_sums(x, y):
    longest = x.cumsum(0)[-1] if len(x) > 2 else torch.tensor(20.0)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(pyro.sample("z", dist.Beta(2.0, 3.0)) * longest), obs=x)


def guide(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Beta(2.0 + x, 12.0 - x))


COUPLED = {"greatest": binomial_of(torch.max), "classes": of_labels, "least": branching, "sum of three": of_sums}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("first", range(2))  # the greatest value is in the second row, and in the first
def test_a_model_that_reads_all_rows_is_refused_wherever_they_stand(name, first):
    rows = tuple(torch.cat([a[first:], a[:first]]) for a in (COUNTS, LABELS))
    with pytest.raises(ProgramError, match=SAID):
        log_weights(COUPLED[name], guide, *rows)


def test_each_function_refuses_it():
    model, rows = COUPLED["greatest"], (COUNTS[[1, 0, 2, 3]], LABELS[:4])
    for run in (
        lambda: log_likelihood(model, guide, *rows, num_samples=10, verbose=False),
        lambda: Bound(iwae, 2).loss(model, guide, *rows),
        lambda: quadrature(model, None, *rows),
    ):
        with pytest.raises(ProgramError, match=SAID):
            run()
    assert "rows" in {finding.kind for finding in check(model, guide, *rows).findings}


def test_without_the_parts_the_greatest_value_passes(monkeypatch):
    """As it was: two rows, the greater one first, show nothing, and a row's number depends on the others."""
    monkeypatch.setattr(among_rows, "parts", lambda args: ())
    model, rows = COUPLED["greatest"], (COUNTS[[1, 0, 2]], LABELS[:3])
    together, alone = (
        log_likelihood(model, guide, *(a[part] for a in rows), num_samples=10, verbose=False).log_px[-1]
        for part in (slice(None), slice(1, None))
    )
    assert (together - alone).abs() > 0.5


def test_a_constant_in_its_place_has_the_closed_form():
    exact = torch.as_tensor(stats.betabinom.logpmf(COUNTS.numpy(), 9, 2, 3))
    found = log_weights(binomial_of(lambda x: torch.tensor(9.0)), guide, COUNTS, LABELS)
    torch.testing.assert_close(found[0].double(), exact, atol=1e-5, rtol=0)


def test_steps_up_to_the_longest_row_under_masks_are_of_each_row_alone():
    """A part of the rows has fewer sites; what the others had there is masked, and counts nothing."""
    length, x = torch.tensor([1, 3, 2, 1]), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def stepping(draw):
        def program(x, length):
            with pyro.plate("data", len(x)):
                for t in range(int(length.max())):
                    with poutine.mask(mask=t < length):
                        draw(t, x)

        return program

    def joint(t, x):
        pyro.sample(f"x{t}", dist.Normal(pyro.sample(f"z{t}", dist.Normal(0.0, 1.0)), 1.0), obs=x[:, t])

    programs = stepping(joint), stepping(lambda t, x: pyro.sample(f"z{t}", dist.Normal(x[:, t] / 2, 0.5**0.5)))
    there = torch.arange(3) < length[:, None]
    exact = torch.where(there, torch.distributions.Normal(0.0, 2**0.5).log_prob(x), 0.0).sum(1)
    found = log_likelihood(*programs, x, length, num_samples=2, verbose=False)
    torch.testing.assert_close(found.log_px, exact.double(), atol=1e-5, rtol=0)


LEVELS = torch.linspace(-2, 2, 7)
OF_ROWS = {
    "a mean of latents": lambda z, x: (z + z.mean(-1, keepdim=True), 1.0),
    "a sum that seldom acts": lambda z, x: (z + (z > 4).sum(), 1.0),
    "a scale of all rows": lambda z, x: (z, 1.0 + (x > 1.9).sum()),
    "of each row": lambda z, x: (z, 1.0),
}


def of_rows(name, size=None):
    def model(x):
        with pyro.plate("data", size or len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(*OF_ROWS[name](z, x)), obs=x)

    return model


def own_parameters(x):
    loc = pyro.param("loc", torch.zeros(7))
    with pyro.plate("data", 7):
        pyro.sample("z", dist.Normal(loc, 1.2))


def amortized(x):
    with pyro.plate("data", 7):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


@pytest.mark.parametrize("guide_of", ["AutoNormal", "parameters", "fixed plates"])
@pytest.mark.parametrize("name", OF_ROWS)
def test_a_pair_that_runs_on_all_its_rows_only_is_looked_at_too(name, guide_of):
    """A guide with parameters for each row (AutoNormal), or a plate of fixed size, kept a model from such looks."""
    if guide_of == "fixed plates" and "seldom" in name:
        pytest.skip("a program of a fixed number of rows is not run at far latents")
    model = of_rows(name, 7 if guide_of == "fixed plates" else None)
    guide = {
        "AutoNormal": pyro.infer.autoguide.AutoNormal(model, init_scale=0.8),
        "parameters": own_parameters,
        "fixed plates": amortized,
    }[guide_of]
    if name == "of each row":
        evidence = log_likelihood(model, guide, LEVELS, num_samples=4000, verbose=False)
        sure = torch.ones(7, dtype=torch.bool)  # AutoNormal starts anywhere
        sure[evidence.flagged] = False
        off = (evidence.log_px - dist.Normal(0.0, 2**0.5).log_prob(LEVELS)).abs()
        assert (off < 5 * evidence.mc_se)[sure].all()
        assert sure.any() or guide_of == "AutoNormal"
        return
    with pytest.raises(ProgramError, match="has another log-probability for a row when"):
        log_weights(model, guide, LEVELS)


def test_a_coupled_model_that_does_not_take_latents_a_few_digits_on_is_refused():
    """Whether its difference is one of rounding cannot be asked of it: a scale of 1 - z, of which z is nearly all."""

    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(20.0, 0.05))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(20.0, 0.05))
            assert z.max() <= 1, "beyond the support"
            pyro.sample("x", dist.Normal(z + (x.max() > 0.5), 1.0), obs=x)

    with pytest.raises(ProgramError, match="another log-probability for a row when other rows are passed"):
        log_likelihood(model, prior, torch.linspace(-1.0, 1.0, 40), num_samples=5, verbose=False)
