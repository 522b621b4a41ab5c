"""gradient_report: against closed forms and a plain loop, and nothing it runs on is changed."""

import json
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

from pyro_vae import MLP, VAE, Bound, Conditional, StandardNormal, dreg, elbo, iwae, normal, pathwise, priors, stl
from pyro_vae.common.random import seeded
from pyro_vae.diagnostics.gradient_noise import gradient_report
from pyro_vae.errors import UsageError
from pyro_vae.plots import figures
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import small_vae

F64 = {"dtype": torch.float64}


class Mean(nn.Module):
    """p(z) = N(0, 1), p(x | z) = N(z + shift, 1), q(z | x) = N(loc, 1/2): one row, one latent; Gaussian gradients."""

    def __init__(self, loc=0.7, shift=0.2):
        super().__init__()
        self.loc, self.shift, self.unused = (nn.Parameter(torch.tensor([v], **F64)) for v in (loc, shift, 1.0))

    def model(self, x):
        pyro.module("mean", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, **F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("mean", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 0.5**0.5).to_event(1))


def test_mean_and_variance_of_a_linear_gaussian_in_closed_form():
    """z = loc + ε/√2. ELBO: d/dloc = (x − shift − z) − z, mean x − shift − 2 loc, variance 4/2; d/dshift varies by 1/2.

    STL's adds d/dz (ε²/2 terms) = 2 (z − loc) to it: no variance at all, as 2 loc and the guide's precision 2 cancel.
    """
    x, draws = torch.tensor([[1.5]], **F64), 300
    objectives = {"pathwise": Bound(elbo), "stl": Bound(elbo, estimator=stl)}
    report = gradient_report(Mean(), x, objectives=objectives, draws=draws, reference_draws=1)
    truth = {"encoder": (1.5 - 0.2 - 2 * 0.7, 2.0), "decoder": (1.5 - 0.2 - 0.7, 0.5)}
    for part, (mean, variance) in truth.items():
        stats = report["pathwise"][part]
        assert stats.mean.shape == (1,)
        assert abs(stats.mean - mean) < 4 * (variance / draws) ** 0.5
        assert abs(stats.variance - variance) < 4 * variance * (2 / draws) ** 0.5
        torch.testing.assert_close(stats.snr, stats.mean.abs() / stats.variance.sqrt())
    torch.testing.assert_close(report["stl"]["encoder"].mean, torch.tensor([truth["encoder"][0]], **F64))
    assert report["stl"]["encoder"].variance < 1e-20
    torch.testing.assert_close(report["stl"]["decoder"].mean, report["pathwise"]["decoder"].mean)


normal_vae = partial(small_vae, likelihood=normal, features=2, width=3, hidden=4, seed=0)


def by_loop(vae, x, objective, parameters, draws, block):
    """Gradients one by one, by way of .backward()."""
    rows = []
    for i in range(draws):
        vae.zero_grad()
        with seeded(0, block, i):
            (-objective.differentiable_loss(vae.model, vae.guide, x)).backward()
        rows.append(torch.cat([p.grad.flatten() for p in parameters]).double())
    vae.zero_grad()
    return torch.stack(rows)


@pytest.mark.parametrize("other", [False, True])
def test_against_a_plain_loop(other):
    vae, x = normal_vae(), torch.randn(6, 3)
    objective = Bound(iwae, 4, estimator=dreg)
    reference = Bound(iwae, 16) if other else None
    report = gradient_report(vae, x, objectives=[objective], draws=12, reference=reference, reference_draws=9)
    for part, module in (("encoder", vae.posterior), ("decoder", vae.likelihood)):
        parameters = list(module.parameters())
        rows = by_loop(vae, x, objective, parameters, 12, block=0)
        towards = by_loop(vae, x, reference or objective, parameters, 9, block=1).mean(0)
        stats = report[repr(objective)][part]
        torch.testing.assert_close(stats.mean, rows.mean(0))
        torch.testing.assert_close(stats.variance, rows.var(0))
        cosines = torch.nn.functional.cosine_similarity(rows, towards[None], dim=1)
        assert math.isclose(stats.cosine, cosines.mean(), rel_tol=1e-9)
        assert math.isclose(stats.cosine_se, cosines.std() / 12**0.5, rel_tol=1e-9)
        s, snr = stats.summary(), rows.mean(0).abs() / rows.std(0)
        assert math.isclose(s["snr_mean"], snr[rows.var(0) > 0].mean(), rel_tol=1e-9)
        assert s["coordinates"] == rows.shape[1]


def state(vae):
    """Everything that a report must leave as it was."""
    store = pyro.get_param_store()
    return [p.detach().clone() for p in vae.parameters()] + [b.clone() for b in vae.buffers()], (
        [p.grad for p in vae.parameters()],
        [m.training for m in vae.modules()],
        sorted(store.keys()),
    )


def test_nothing_is_changed():
    """No parameter, buffer, .grad, mode or random state; batch statistics and dropout are still."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 2 * 3, (4,)), normal), Conditional(encoder, normal))
    x = torch.randn(6, 3)
    vae.model(x)  # declares the parameters
    vae.likelihood.net[0].weight.grad = torch.ones_like(vae.likelihood.net[0].weight)
    (tensors, rest), random = state(vae), torch.get_rng_state()
    first, again = (
        gradient_report(vae, x, objectives={"a": Bound(iwae, 2), "b": Trace_ELBO()}, draws=3) for _ in range(2)
    )
    assert torch.equal(random, torch.get_rng_state())
    after, rest_after = state(vae)
    assert all(torch.equal(a, b) for a, b in zip(tensors, after, strict=True))
    assert all(a is b for a, b in zip(rest[0], rest_after[0], strict=True)) and rest[1:] == rest_after[1:]
    assert str(first) == str(again)
    other = gradient_report(vae, x, objectives={"a": Bound(iwae, 2), "b": Trace_ELBO()}, draws=3, seed=1)
    assert str(other) != str(first)


def test_on_a_device(device):
    """Draws there follow the seed, and its random state is left alone."""
    vae, x = normal_vae().to(device), torch.randn(6, 3, device=device)
    objectives = {"dreg": Bound(iwae, 3, estimator=dreg)}
    before = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    a, b = (gradient_report(vae, x, objectives=objectives, draws=3) for _ in range(2))
    after = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    assert torch.equal(before, after)
    torch.testing.assert_close(a["dreg"]["encoder"].mean, b["dreg"]["encoder"].mean)
    assert a["dreg"]["encoder"].mean.device.type == device.type


def test_objectives_are_drawn_on_the_same_noise():
    vae, x = normal_vae(), torch.randn(6, 3)
    a, b = (
        gradient_report(vae, x, objectives=o, draws=4)
        for o in ({"iwae": Bound(iwae, 2)}, {"first": Bound(elbo, 3), "iwae": Bound(iwae, 2), "again": Bound(iwae, 2)})
    )
    for name in ("iwae", "again"):
        assert torch.equal(a["iwae"]["encoder"].mean, b[name]["encoder"].mean)


def test_shared_parameters_are_the_encoders():
    """A VampPrior holds the posterior; its pseudo-inputs are the model's alone."""
    q = Conditional(MLP(3, 4, (4,)), normal)
    vae = VAE(priors.VampPrior(q, 5, 3), Conditional(MLP(2, 6, (4,)), normal), q)
    report = gradient_report(vae, torch.randn(6, 3), objectives=[Bound(elbo)], draws=2)
    count = {part: len(stats.mean) for part, stats in report[repr(Bound(elbo))].items()}
    shared = sum(p.numel() for p in q.parameters())
    every = sum(p.numel() for p in vae.parameters())
    assert count == {"encoder": shared, "decoder": every - shared}


def test_programs_with_params_of_pyros():
    """A tuple of programs, a constrained parameter, and a part without any."""
    truth = LinearGaussian()

    def guide(x):
        scale = pyro.param("scale", torch.ones(2, **F64), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(truth.exact(x).loc, scale).to_event(1))

    report = gradient_report((truth.model, guide), truth.x, objectives={"elbo": Bound(elbo)}, draws=5)
    assert {part: len(s.mean) for part, s in report["elbo"].items()} == {"encoder": 2, "decoder": 0}
    assert "decoder            0/0          -" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["objectives"]["elbo"]["decoder"]["snr_mean"] is None


def test_table_and_dict_hold_the_same_numbers():
    vae, x = normal_vae(), torch.randn(6, 3)
    report = gradient_report(
        vae, x, objectives={"iwae": Bound(iwae, 2), "dreg": Bound(iwae, 2, estimator=dreg)}, draws=6
    )
    told = json.loads(json.dumps(report.to_dict()))
    assert told["draws"] == 6 and told["rows"] == 6 and math.isclose(told["snr_floor"], (2 / (6 * math.pi)) ** 0.5)
    for name, parts in told["objectives"].items():
        for part, s in parts.items():
            row = next(r for r in str(report).splitlines() if r.startswith(name) and part in r)
            for value in (
                f"{s['variance']:.3g}",
                f"{s['snr_mean']:.3f}",
                f"{s['snr_median']:.3f}",
                f"{s['cosine']:.3f}",
            ):
                assert value in row


def test_snr_floor_is_what_no_signal_shows():
    """A guide at the optimum of the ELBO: its pathwise gradient has mean 0."""
    x = torch.tensor([[1.5]], **F64)
    vae, draws = Mean(loc=(1.5 - 0.2) / 2), 16
    values = [
        gradient_report(vae, x, objectives={"e": Bound(elbo)}, draws=draws, reference_draws=1, seed=s)["e"][
            "encoder"
        ].snr
        for s in range(40)
    ]
    floor = math.sqrt(2 / (math.pi * draws))
    assert abs(torch.cat(values).mean() - floor) < 4 * floor * 0.76 / 40**0.5  # |t|'s coefficient of variation is 0.76


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objectives": []}, "at least one objective"),
        ({"objectives": [Bound(elbo), Bound(elbo)]}, "another name"),
        ({"objectives": {"r": RenyiELBO(alpha=0, num_particles=2)}}, "'r'.*RenyiELBO.*Trace_ELBO"),
        ({"objectives": [Bound(elbo)], "draws": 1}, "2 draws"),
        ({"objectives": [Bound(elbo)], "reference_draws": 0}, "got draws=200 and 0"),
    ],
)
def test_errors(options, said):
    with pytest.raises(UsageError, match=said):
        gradient_report(normal_vae(), torch.randn(6, 3), **options)


def test_programs_without_parameters():
    truth = LinearGaussian()
    with pytest.raises(UsageError, match="no parameters"):
        gradient_report((truth.model, truth.exact_guide), truth.x, objectives=[Bound(elbo)])


def test_the_picture_shows_its_numbers(tmp_path):
    vae, x = normal_vae(), torch.randn(6, 3)
    reports = {
        k: gradient_report(
            vae, x, objectives={e.name: Bound(iwae, k, estimator=e) for e in (pathwise, dreg)}, draws=4
        ).to_dict()
        for k in (1, 4, 16)
    }
    fig = figures.signal_to_noise(reports)
    assert [ax.get_title() for ax in fig.axes] == ["encoder", "decoder"]
    line = next(line for line in fig.axes[0].get_lines() if line.get_label() == "dreg")
    assert list(line.get_xdata()) == [1, 4, 16]
    assert list(line.get_ydata()) == [reports[k]["objectives"]["dreg"]["encoder"]["snr_mean"] for k in (1, 4, 16)]
    assert len(figures.save(fig, tmp_path / "a.png").read_bytes()) > 3000
