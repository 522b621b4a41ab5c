"""Discrete sites in plates within a row, and in the rows of a data set, summed out: against sums by hand; what is refused."""

import contextlib
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import WholeDataSet, ais, log_likelihood, log_weights, predictive_density, sum_out
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.programs import summed_out

X = torch.tensor([[0.2, 1.4, -0.5], [2.0, 0.1, 0.9]])  # rows of three entries
N, M = X.shape
TOPICS = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
Z = torch.tensor([0.3, -0.8])  # of each row


def entries(x):
    """The plate of entries on the right of the rows'."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", M, dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z + 2 * y, 0.7), obs=x)


def by_entry(x, z):
    each = [dist.Normal(z.unsqueeze(-1) + 2 * y, 0.7).log_prob(x) + math.log(p) for y, p in ((0, 0.7), (1, 0.3))]
    return torch.stack(each).logsumexp(0).sum(-1)


def two_sites(x):
    """A chain of two discrete sites in the entries, on the left of the rows."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("entries", M, dim=-2):
            y = pyro.sample("y", dist.Bernoulli(0.3))
            k = pyro.sample("k", dist.Categorical(torch.stack([1 + y, 2 - y, 1 + 0 * y], -1)))
            pyro.sample("x", dist.Normal(z * y + k, 1.0), obs=x.T)


def by_chain(x, z):
    each = []
    for y, p in ((0, 0.7), (1, 0.3)):
        weights = torch.tensor([1.0 + y, 2 - y, 1]) / 4
        each += [
            dist.Normal(z.unsqueeze(-1) * y + k, 1.0).log_prob(x) + math.log(p) + w.log() for k, w in enumerate(weights)
        ]
    return torch.stack(each).logsumexp(0).sum(-1)


def one_hot(x):
    """An event of the entry, some entries masked."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", M, dim=-1), pyro.poutine.mask(mask=x > 0):
            y = pyro.sample("y", dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])))
            pyro.sample("x", dist.Normal((y * torch.tensor([0.0, 1.0, 2.0])).sum(-1) + z, 1.0), obs=x)


def by_one_hot(x, z):
    each = [dist.Normal(k + z.unsqueeze(-1), 1.0).log_prob(x) + math.log(p) for k, p in enumerate((0.2, 0.5, 0.3))]
    return (torch.stack(each).logsumexp(0) * (x > 0)).sum(-1)


WITHIN = {"entries": (entries, by_entry), "two-sites": (two_sites, by_chain), "one-hot-masked": (one_hot, by_one_hot)}


def normal(x):
    shape = (-1,) if normal.right else (-1, 1)
    with pyro.plate("data", len(x), dim=-1 if normal.right else -2):
        pyro.sample(
            "z", dist.Normal(Z[: len(x)].reshape(shape) if len(x) <= N else torch.zeros(len(x)).reshape(shape), 1e-4)
        )


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.CoupledGuideWarning")  # its z are of a row's place among the rows
@pytest.mark.parametrize("name", WITHIN)
def test_entries_are_summed_out_one_by_one(name):
    """At z that a narrow guide draws: log w + log q − log p(z) is the sum by hand; and by particles, each with its z."""
    program, by_hand = WITHIN[name]
    marginal, _ = sum_out(program, None, X)
    normal.right = name == "two-sites"
    log_w = log_weights(marginal, normal, X, num_particles=2)
    wanted = by_hand(X, Z) + dist.Normal(0.0, 1.0).log_prob(Z)
    at_mean = -(math.log(1e-4) + 0.5 * math.log(2 * math.pi))
    assert ((log_w - wanted + at_mean).abs() < 6).all()  # q's own (z − loc)² / 2 is left
    grid = (torch.arange(400).double() + 0.5) / 400 * 16 - 8
    each = torch.stack([by_hand(X.double(), z.expand(N)) for z in grid]) + dist.Normal(0.0, 1.0).log_prob(
        grid
    ).unsqueeze(-1)
    exact = each.logsumexp(0) + math.log(16 / 400)
    assert (quadrature(program, None, X).log_px - exact).abs().max() < 1e-4
    found = log_likelihood(*sum_out(program, prior(name), X), X, num_samples=500, verbose=False)
    assert ((found.log_px - exact).abs() < 4 * found.mc_se).all()


def prior(name):
    """A guide that draws everything, whose discrete sites are summed out, too."""
    left = name == "two-sites"

    def guide(x):
        with pyro.plate("data", len(x), dim=-1 if left else -2):
            pyro.sample("z", dist.Normal(torch.zeros(()) if left else torch.zeros(1), 1.0))
            with pyro.plate("entries", M, dim=-2 if left else -1):
                if name == "one-hot-masked":
                    with pyro.poutine.mask(mask=x > 0):
                        pyro.sample("y", dist.OneHotCategorical(torch.ones(3)))
                else:
                    pyro.sample("y", dist.Bernoulli(0.5))
                if left:
                    pyro.sample("k", dist.Categorical(torch.ones(3)))

    return guide


def latent_in_the_entries(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("entries", M, dim=-1):
        y = pyro.sample("y", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Normal(3 * y, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_a_latent_of_an_entry_is_a_mixture():
    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("entries", M, dim=-1):
            pyro.sample("z", dist.Normal(0.8 * x, 0.6))

    marginal, _ = sum_out(latent_in_the_entries, None, X)
    found = log_likelihood(marginal, guide, X, num_samples=2000, verbose=False)
    each = [dist.Normal(3.0 * y, 1.25**0.5).log_prob(X) + math.log(p) for y, p in ((0, 0.7), (1, 0.3))]
    assert ((found.log_px - torch.stack(each).logsumexp(0).sum(-1)).abs() < 4 * found.mc_se).all()


# refused


def neighbours(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", M, dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3 * torch.ones(len(x), M)))
            pyro.sample("x", dist.Normal(z + y + y.roll(1, -1), 0.7), obs=x)


def total_outside(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", M, dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3 * torch.ones(len(x), M)))
        pyro.sample("x", dist.Normal(z + y.sum(-1, keepdim=True), 0.7), obs=x[:, :1])


def of_row_and_entry(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.4 * torch.ones(1)))
        with pyro.plate("entries", M, dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3 + 0.2 * c))
            pyro.sample("x", dist.Normal(z + y, 0.7), obs=x)


def many(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", M, dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.ones(200)))
            k = pyro.sample("k", dist.Categorical(torch.ones(51)))
            pyro.sample("x", dist.Normal(z + y - k, 0.7), obs=x)


REFUSED = {
    "neighbours": (neighbours, "site 'x' depends on the values of y in other entries of the plate 'entries'"),
    "outside": (total_outside, "site 'x' lies outside of the plate 'entries' and depends on the value of y"),
    "row-and-entry": (of_row_and_entry, "'c' and 'y' are discrete and lie in different plates"),
    "too-many": (many, "10200 codes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_come_apart_is_refused_by_site(name):
    program, match = REFUSED[name]
    with pytest.raises(ProgramError, match=match):
        sum_out(program, None, X)


def pair_of(values, entries):
    """Entries that interact where one has the first and its neighbour the last of so many values, and nowhere else."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("entries", entries, dim=-1):
                y = pyro.sample("y", dist.Categorical(torch.ones(len(x), entries, values)))
                apart = (y == 0) & (y.roll(1, -1) == values - 1)
                pyro.sample("x", dist.Normal(z + 3.0 * apart, 0.7), obs=x)

    return model


@pytest.mark.parametrize("entries", [2, 3])
@pytest.mark.parametrize("values", [2, 3])
def test_one_row_is_enough_to_see_that_entries_interact(values, entries):
    with pytest.raises(ProgramError, match="depends on the values of y in other entries"):
        sum_out(pair_of(values, entries), None, torch.zeros(1, entries))


def test_one_look_at_one_row_would_not_be(monkeypatch):
    monkeypatch.setattr(summed_out, "LOOKS", 1)
    through = 0
    for values, entries in itertools.product((2, 3, 4, 5), (2, 3)):
        with contextlib.suppress(ProgramError):
            sum_out(pair_of(values, entries), None, torch.zeros(1, entries))
            through += 1
    assert through > 0


def test_unchecked_neighbours_would_be_wrong(monkeypatch):
    """What the check is for: without it, a number comes out, and another one than the sum over all eight codes."""
    monkeypatch.setattr(summed_out, "look_apart", lambda *args: None)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * M)
    log_p = torch.where(every > 0, 0.3, 0.7).log().sum(-1)
    grid = ((torch.arange(2000) + 0.5) / 2000 * 16 - 8).double()
    loc = grid[:, None, None, None] + (every + every.roll(1, -1))[None, :, None]
    each = dist.Normal(loc, 0.7).log_prob(X.double()).sum(-1) + log_p[None, :, None]
    exact = (each.logsumexp(1) + dist.Normal(0.0, 1.0).log_prob(grid)[:, None]).logsumexp(0) + math.log(16 / 2000)
    assert (quadrature(neighbours, None, X).log_px - exact).abs().max() > 0.05


# the rows of a data set

ROWS = torch.tensor([-1.2, 0.4, 2.2, 1.9])


def mixture(x, mark=None):
    """Two components around a centre that all rows share."""
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.4), infer=mark)
        pyro.sample("x", dist.Normal(centre + 2 * y, 0.8), obs=x)


def marked(x):
    mixture(x, {"enumerate": "parallel"})


def centre_guide(x):
    pyro.sample("centre", dist.Normal(0.2, 0.6))


def drawn_guide(x):
    centre_guide(x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(torch.sigmoid(2 * x - 2)))


def of_data_set(x):
    grid = (torch.arange(8000).double() + 0.5) / 8000 * 16 - 8
    each = [dist.Normal(grid + 2 * y, 0.8).log_prob(x.double()[:, None]) + math.log(p) for y, p in ((0, 0.6), (1, 0.4))]
    log_lik = torch.stack(each).logsumexp(0).sum(0)
    return (log_lik + dist.Normal(0.0, 1.0).log_prob(grid)).logsumexp(0) + math.log(16 / 8000)


@pytest.mark.parametrize("name", ["marked", "drawn"])
def test_rows_of_a_data_set_are_summed_out(name):
    """log p(X), the components of all rows summed: 2⁴ codes as a whole, 2 for each row."""
    whole = WholeDataSet(marked, centre_guide) if name == "marked" else WholeDataSet(mixture, drawn_guide)
    rows, exact = whole.rows(ROWS), of_data_set(ROWS)
    pair = (whole.model, whole.guide) if name == "marked" else sum_out(whole.model, whole.guide, *rows)
    found = log_likelihood(*pair, *rows, num_samples=1000, verbose=False)
    assert ((found.log_px - exact).abs() < 4 * found.mc_se).all() and found.mc_se.item() < 0.05
    annealed = ais(
        whole.model, whole.guide, *rows, num_temperatures=5, num_chains=40, leapfrog_steps=2, verbose=False, seed=1
    )
    assert ((annealed.log_px - exact).abs() < 4 * annealed.mc_se).all()


def test_new_rows_are_summed_out_too():
    """log p(x_new | X) under q(centre): the mixture of two normals by hand."""
    found = predictive_density(marked, centre_guide, ROWS, num_samples=4000)
    each = [dist.Normal(0.2 + 2 * y, 1.0).log_prob(ROWS) + math.log(p) for y, p in ((0, 0.6), (1, 0.4))]
    assert ((found.log_px - torch.stack(each).logsumexp(0)).abs() < 4 * found.mc_se).all()


def chained(x):
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.4 * torch.ones(len(x))), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(centre + y + y.roll(1, -1), 0.8), obs=x)


def counted(x):
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(centre + y * len(x) / 4, 0.8), obs=x)


def of_the_set(x):
    pyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
    mixture(x)


def test_two_rows_are_enough_to_see_that_they_interact():
    whole = WholeDataSet(chained, centre_guide)
    with pytest.raises(ProgramError, match="depends on the discrete values of other rows"):
        log_likelihood(whole.model, whole.guide, *whole.rows(ROWS[:2]), num_samples=10, verbose=False)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (chained, "'y': a row's density depends on the discrete values of other rows"),
        (counted, "or on how many rows there are"),
        (of_the_set, "site 'c' is discrete and drawn once for the data set"),
    ],
    ids=["chained", "counted", "of-the-set"],
)
def test_rows_that_do_not_come_apart_are_refused(program, match):
    whole = WholeDataSet(program, centre_guide)
    with pytest.raises(ProgramError, match=match):
        log_likelihood(whole.model, whole.guide, *whole.rows(ROWS), num_samples=10, verbose=False)
