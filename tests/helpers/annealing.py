"""What annealing is checked on, and the checks: of right transitions they pass, of each wrong one they fail."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch

from pyro_vae.evidence.annealing import ais as ais_module
from pyro_vae.evidence.annealing import bracket as module
from tests.helpers.conjugate import GammaPoisson

ais = partial(ais_module.ais, verbose=False)


quick = partial(ais, num_temperatures=4, num_chains=4, leapfrog_steps=3, step_size=0.5)


def drawn(problem, n, seed=0):
    torch.manual_seed(seed)
    return problem.rows(n)


def check_unbiased(ratio):
    """mean(p̂ / p) within 4 SE of 1, SE = sd / √N over rows, whose chains are independent; and an SE that could tell."""
    se = ratio.std() / len(ratio) ** 0.5
    assert (ratio.mean() - 1).abs() < 4 * se, f"the mean is {ratio.mean():.3f} ± {se:.3f}"
    assert se < 0.05


def grouped(x):
    """Two sites of other widths, one in an inner plate, rows in dim -2: log p(x) = Σ_g log N(x_g; 0, 2) per row."""
    with pyro.plate("rows", len(x), dim=-2):
        shift = pyro.sample("shift", dist.Normal(torch.zeros(1, 2).double(), 1.0).to_event(1))
        with pyro.plate("groups", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0 * shift.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def grouped_guide(x):
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("shift", dist.Normal(torch.zeros(1, 2).double(), 1.0).to_event(1))
        with pyro.plate("groups", 3, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def check_frozen(monkeypatch):
    """What the pilot has tuned is what every transition of the weighted run gets."""
    p, tuned, used = GammaPoisson(), [], []

    def pilot(*args, original=ais_module.pilot):
        frozen = original(*args)
        tuned.append(frozen.steps.clone())
        return frozen

    def transition(density, beta, point, step, leapfrogs, original=ais_module.transition):
        used.append(step.clone())
        return original(density, beta, point, step, leapfrogs)

    with monkeypatch.context() as patched:
        patched.setattr(ais_module, "pilot", pilot)
        patched.setattr(ais_module, "transition", transition)
        result = ais(p.model, p.guide, drawn(p, 5), num_temperatures=6, leapfrog_steps=2)
    assert (tuned[0][1:] != tuned[0][:-1]).all()
    assert torch.equal(torch.stack(used), tuned[0][1:]), "not the steps that the pilot has tuned"
    assert torch.equal(result.steps, tuned[0])


QUICK = {
    "num_samples": 50,
    "num_temperatures": 4,
    "num_chains": 4,
    "leapfrog_steps": 3,
    "step_size": 0.4,
    "refresh": 1,
    "verbose": False,
}


bracket = partial(module.bracket, **QUICK)


bdmc = partial(module.bdmc, **QUICK)


def narrow(p, rows, **options):
    """Reverse annealing to a start with lighter tails than the posterior: 1 / p̂ has a finite variance."""
    return bdmc(p.model, p.narrow_guide, drawn(p, 2), num_rows=rows, **options)


def check_upper(p, result):
    """mean(p / p̂_rev) is 1: chains of a row share their start, but rows are independent."""
    check_unbiased((p.log_px(result.x) - result.upper).exp())
