"""The ELBO of pairs without a log weight for each row: whatever weighs the sites, it is that of p and q as they are written."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

from pyro_vae import Beta, adam
from pyro_vae.objectives.joint_elbo import AsWritten, elbo_objective, elbo_per_datum
from pyro_vae.training.metrics import true_elbo
from pyro_vae.training.step import Step

LOC = torch.tensor([-1.0, 1.0])
ENUMERATED = {"enumerate": "parallel"}
objective = TraceEnum_ELBO(max_plate_nesting=1)


def data(rows=40, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, generator=generator).to(device) * 2


def mixture(x, size=None, prior=1.0, likelihood=1.0):
    subsample = {} if size is None else {"subsample": torch.arange(len(x), device=x.device)}
    with pyro.plate("data", size or len(x), **subsample):
        with poutine.scale(scale=prior):
            k = pyro.sample("k", dist.Categorical(x.new_ones(2) / 2), infer=ENUMERATED)
        with poutine.scale(scale=likelihood):
            pyro.sample("x", dist.Normal(LOC.to(x)[k], 1.0), obs=x)


def nothing(x):
    pass


def exact(x):
    return (dist.Normal(LOC.to(x), 1.0).log_prob(x[:, None]) - math.log(2)).logsumexp(-1).mean().item()


WEIGHED = {
    "plain": lambda: (mixture, nothing),
    "all": lambda: (poutine.scale(mixture, scale=1 / 200), nothing),
    "likelihood": lambda: (lambda x: mixture(x, likelihood=0.1), nothing),
    "prior": lambda: (lambda x: mixture(x, prior=3.0), nothing),
    "beta": lambda: Beta(0.3).pair((mixture, nothing)),
    "beta-0": lambda: Beta(0.0).pair((mixture, nothing)),
    "nested": lambda: Beta(0.3).pair((poutine.scale(lambda x: mixture(x, likelihood=0.5), scale=7.0), nothing)),
    "tensor": lambda: (lambda x: mixture(x, 1000, *2 * [torch.tensor(0.2)]), nothing),
    "subsampled": lambda: (lambda x: mixture(x, size=1000), nothing),
    "subsampled-scaled": lambda: (poutine.scale(lambda x: mixture(x, size=1000), scale=1e-3), nothing),
}


@pytest.mark.parametrize("kind", WEIGHED)
def test_weights_of_handlers_and_plates_are_not_in_it(kind, device):
    """With nothing drawn the ELBO is log p(x), which two components sum to."""
    x = data(device=device)
    model, guide = WEIGHED[kind]()
    assert elbo_per_datum(objective, model, guide, x) == pytest.approx(exact(x), abs=1e-5)
    step = Step(model, guide, objective, adam())
    assert true_elbo(step, (x,), chunk_size=7)["elbo"] == pytest.approx(exact(x), abs=1e-5)
    if kind in ("all", "tensor", "subsampled", "subsampled-scaled"):  # the objective's own loss holds the weight
        assert -objective.loss(model, guide, x) / len(x) != pytest.approx(exact(x), abs=1e-2)


def test_mixed_weights_are_what_training_refuses_and_logging_does_not():
    with pytest.raises(ValueError, match=r"common poutine\.scale"):
        objective.loss(lambda x: mixture(x, likelihood=0.1), nothing, data())


OWN = [Trace_ELBO(), TraceGraph_ELBO(), TraceEnum_ELBO(strict_enumeration_warning=False)]


@pytest.mark.parametrize("own", OWN, ids=lambda o: type(o).__name__)
def test_sites_that_all_rows_share_count_once(own):
    """mu ~ N(0, 10²), q = N(a, s²): E log p(x | mu) − KL in closed form, over N; also of a part of the rows of N."""
    x, a, s = data(60), 0.4, 0.3

    def model(x, size=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))), poutine.scale(scale=5.0):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(a, s))

    kl = dist.kl.kl_divergence(dist.Normal(a, s), dist.Normal(0.0, 10.0)).item()
    each = (dist.Normal(a, 1.0).log_prob(x) - s * s / 2).mean().item()
    for size in (60, 600):
        draws = torch.tensor([elbo_per_datum(own, lambda x, n=size: model(x, n), guide, x) for _ in range(500)])
        se = draws.std().item() / 500**0.5
        assert abs(draws.mean().item() - (each - kl / size)) < 4 * se
        assert abs(draws.mean().item() - (5 * each - kl / size)) > 40 * se


def test_rows_subsampled_within_a_program_stand_for_all():
    x = data(400)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=100) as rows:
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(LOC[k], 1.0), obs=x[rows])

    draws = torch.tensor([elbo_per_datum(objective, model, nothing, x) for _ in range(400)])
    assert abs(draws.mean().item() - exact(x)) < 4 * draws.std().item() / 20


def test_inner_plates_that_are_subsampled_stand_for_the_whole_row():
    """50 readings a row, of which each run sees 10: on average the log p of all."""
    x = data(200).reshape(4, 50)

    def model(x):
        readings = pyro.plate("readings", 50, subsample_size=10, dim=-1)
        with pyro.plate("data", len(x), dim=-2), readings as seen:
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer=ENUMERATED)
            pyro.sample("x", dist.Normal(LOC[k], 1.0), obs=x[:, seen])

    draws = torch.tensor([elbo_per_datum(TraceEnum_ELBO(max_plate_nesting=2), model, nothing, x) for _ in range(400)])
    assert abs(draws.mean().item() - 50 * exact(x.flatten())) < 4 * draws.std().item() / 20


def test_plates_that_are_loops_and_masks_keep_their_meaning():
    x = data(6)

    def model(x):
        for i in pyro.plate("data", len(x)):
            k = pyro.sample(f"k_{i}", dist.Categorical(torch.ones(2) / 2), infer=ENUMERATED)
            with poutine.mask(mask=bool(i)), poutine.scale(scale=0.5):
                pyro.sample(f"x_{i}", dist.Normal(LOC[k], 1.0), obs=x[i])

    elbo = elbo_per_datum(TraceEnum_ELBO(max_plate_nesting=0), model, nothing, x)
    assert elbo == pytest.approx(5 / 6 * exact(x[1:]), abs=1e-5)


class Doubled(TraceEnum_ELBO):
    def loss(self, *args):
        return 2 * super().loss(*args)


def test_an_objective_of_ones_own_is_not_taken_for_the_elbo():
    x = data()
    assert elbo_per_datum(Doubled(max_plate_nesting=1), mixture, nothing, x) == pytest.approx(exact(x), abs=1e-5)
    assert type(elbo_objective(Doubled(max_plate_nesting=3))) is TraceEnum_ELBO
    assert (
        elbo_objective(objective) is objective and elbo_objective(Doubled(max_plate_nesting=3)).max_plate_nesting == 3
    )


def test_a_variant_without_the_handler_is_found(monkeypatch):
    monkeypatch.setattr(AsWritten, "_pyro_sample", lambda self, msg: None)
    x = data()
    assert elbo_per_datum(objective, *WEIGHED["all"](), x) != pytest.approx(exact(x), abs=1e-2)
