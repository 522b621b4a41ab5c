"""Sites that poutine.do and poutine.condition set: the numbers that they have, and, where they have none, how to go on."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import check, log_likelihood
from pyro_vae.errors import ProgramError, ShapeError

X = torch.tensor([0.3, -1.2, 2.0])


def model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + 1) / 2, 0.8))


def guide_of_all(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x / 3, 1.0))
        pyro.sample("z", dist.Normal((x + a) / 2, 0.8))


ONE = torch.tensor(1.0)
GIVEN = dist.Normal(1.0, 2**0.5).log_prob(X)  # log p(x | a = 1)
BOTH = GIVEN + dist.Normal(0.0, 1.0).log_prob(ONE)


def each_row(x):
    return poutine.condition(model, data={"a": ONE.expand(len(x))})(x)


NUMBERS = {
    "do of a latent that the guide draws": (poutine.do(model, data={"a": ONE}), guide_of_all, GIVEN),
    "do, its draw hidden": (poutine.block(poutine.do(model, data={"a": ONE}), hide=["a"]), guide, GIVEN),
    "do of what rows share": (poutine.block(poutine.do(shared, data={"a": ONE}), hide=["a"]), guide, GIVEN),
    "condition on what rows share": (
        poutine.block(poutine.condition(shared, data={"a": ONE}), hide=["a"]),
        guide,
        GIVEN,
    ),
    "condition in each row": (each_row, guide, BOTH),
}
REFUSED = {
    "do of what rows share": (poutine.do(shared, data={"a": ONE}), guide, ProgramError, "set by poutine.do, .* hide"),
    "do of a latent": (poutine.do(model, data={"a": ONE}), guide, ProgramError, "set by poutine.do, .* hide"),
    "one value": (poutine.condition(model, data={"a": ONE}), guide, ShapeError, "one value for all rows"),
    "all values": (poutine.condition(model, data={"a": torch.ones(3)}), guide, ShapeError, "passed as a context"),
    "shared": (
        poutine.condition(shared, data={"a": ONE}),
        guide,
        ProgramError,
        "observed .* outside of the plate 'data'",
    ),
    "drawn, too": (each_row, guide_of_all, ProgramError, "drawn by the guide, and observed by the model"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_those_of_the_program_as_written(name):
    program, proposal, exact = NUMBERS[name]
    found = log_likelihood(program, proposal, X, num_samples=4000)
    assert ((found.log_px - exact).abs() < 4 * found.mc_se).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_number_is_told_how_to_go_on(name):
    program, proposal, error, said = REFUSED[name]
    with pytest.raises(error, match=said):
        log_likelihood(program, proposal, X)


def test_check_says_that_do_still_draws():
    (finding,) = [f for f in check(poutine.do(model, data={"a": ONE}), guide, X).findings if f.where == "site 'a'"]
    assert "poutine.do still draws it" in finding.fix
