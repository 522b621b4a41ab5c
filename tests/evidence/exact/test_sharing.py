"""Codes and grid points that rows share: where a program reads a context or x, however rarely, each row has its own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.evidence.exact import joint
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from tests.helpers.oracles import close

D = torch.float64
N = 40
C = torch.linspace(1, 20, N, dtype=D)
GRID = torch.linspace(-9, 9, 50_001, dtype=D).unsqueeze(-1)


def by_grid(log_likelihood):
    """log ∫ N(z; 0, 1) p(x | z) dz for a function of z that gives all rows' log p(x | z)."""
    each = dist.Normal(0.0, 1.0).log_prob(GRID) + log_likelihood(GRID)
    return each.logsumexp(0) + math.log(GRID[1] - GRID[0])


def gated(read):
    """x ~ N(relu(z − 2) read, 1/2) with z ~ N(0, 1): read only where z > 2."""

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(torch.relu(z - 2) * read(x, c), 0.5), obs=x)

    return model


READS = {"context": lambda x, c: c, "x": lambda x, c: (x + 1).square(), "both": lambda x, c: c + x.exp()}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_grid_is_not_shared_where_a_rare_z_reads_the_row(read):
    x = torch.linspace(2, 3, N, dtype=D)
    found = quadrature(gated(read), None, x, C)
    wanted = by_grid(lambda z: dist.Normal(torch.relu(z - 2) * read(x, C), 0.5).log_prob(x))
    close(found.log_px, wanted, 1e-5)
    assert "a grid for each row" in found.how and not len(found.flagged)


def test_a_mask_that_a_rare_z_takes_from_the_context():
    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with poutine.mask(mask=(z < 2) | (c < 10)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.linspace(-1, 6, N, dtype=D)
    found = quadrature(model, None, x, C, tol=1e-2)
    close(found.log_px, by_grid(lambda z: ((z < 2) | (C < 10)) * dist.Normal(z, 1.0).log_prob(x)), 1e-2)
    assert "a grid for each row" in found.how


def test_a_branch_of_python_that_few_points_take():
    """What no probe takes is seen where it is taken: the grid starts again, row by row."""

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            loc = torch.where(z > 3, c, z) if (z > 3).any() else z
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = C + 0.1
    found = quadrature(model, None, x, C, tol=1e-2)
    close(found.log_px, by_grid(lambda z: dist.Normal(torch.where(z > 3, C, z), 1.0).log_prob(x)), 1e-2)


def one_code(read):
    """200 codes, of which number 77, no probe, reads the row."""

    def model(x, c):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.full((200,), 1 / 200, dtype=D)))
            loc = torch.where(k == 77, read(x, c), torch.zeros_like(x))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_codes_are_not_shared_where_one_of_them_reads_the_row(read):
    x = torch.linspace(2, 3, N, dtype=D)
    here, there = dist.Normal(read(x, C), 1.0).log_prob(x), dist.Normal(0.0, 1.0).log_prob(x)
    close(
        enumerate_latents(one_code(read), None, x, C).log_px,
        torch.logaddexp(here, there + math.log(199)) - math.log(200),
    )


def test_a_context_that_is_not_read_is_shared():
    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(c[:1]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = quadrature(model, None, C, C)
    close(found.log_px, dist.Normal(C.new_zeros(()), 2**0.5).log_prob(C), 1e-6)
    assert "one grid for all rows" in found.how


def test_matrices_of_one_row_are_no_others_where_x_is_read():
    """x₂ given x₁ and z is linear in z, and bends in x₁: there is a closed form for each row."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x1", dist.Normal(z, 1.0), obs=x[..., 0])
            pyro.sample("x2", dist.Normal(z + x[..., 0].square(), 1.0), obs=x[..., 1])

    x = torch.stack([C, C.square() + 1], 1)
    both = dist.MultivariateNormal(torch.zeros(2, dtype=D), torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=D))
    close(linear_gaussian(model, None, x).log_px, both.log_prob(torch.stack([C, 0 * C + 1], 1)))


@pytest.mark.parametrize(
    "check",
    [test_a_grid_is_not_shared_where_a_rare_z_reads_the_row, test_codes_are_not_shared_where_one_of_them_reads_the_row],
    ids=["grid", "codes"],
)
def test_without_the_proof_a_few_probes_vouch_for_all(check, monkeypatch):
    monkeypatch.setattr(joint.RowReads, "derived", lambda self, values: False)
    with pytest.raises(AssertionError):
        check(READS["context"])
