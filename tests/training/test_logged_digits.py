"""The ELBO that `fit` logs is scored in float64 where terms cancel, as evidence is: of users' own float32 programs, too."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import fit, log_likelihood

LARGE = {
    "negative binomial": lambda h: dist.NegativeBinomial(torch.tensor(1e5), logits=h / 10 - 9),
    "binomial": lambda h: dist.Binomial(10**6, logits=h / 10 - 9),
    "gamma-Poisson": lambda h: dist.GammaPoisson(torch.tensor(1e5), (8 - h / 10).exp()),
}


class Program(nn.Module):
    """Two latents that hardly vary under the guide, so that draws add no noise to the reconstruction; 5 counts."""

    def __init__(self, family):
        super().__init__()
        self.family, self.decoder, self.encoder = LARGE[family], nn.Linear(2, 5), nn.Linear(5, 2)

    def loc(self, x):
        return self.encoder((x - 20) / 10)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.family(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 1e-4).to_event(1))


@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("family", LARGE)
def test_history_holds_the_wide_number(family, objective):
    """To 1e-3 nats a row; the float32 score of the same rows is further off. Its ELBO is that of evidence, within 5 errors."""
    torch.manual_seed(0)
    program = Program(family)
    x = torch.poisson(torch.full((64, 5), 20.0))
    run = fit((program.model, program.guide), x, validation=x, objective=objective, epochs=1, verbose=False)
    with torch.no_grad():
        narrow = program.family(program.decoder(program.loc(x)))
        wide = program.double().family(program.decoder(program.loc(x.double())))
        program.float()
        if family == "binomial":
            wide = dist.Binomial(torch.tensor(1e6, dtype=torch.float64), logits=wide.logits)
        else:
            wide = type(wide)(*(p.double() for p in parameters(wide)))
        exact, in_float32 = (d.log_prob(v).sum(-1).mean().item() for d, v in ((wide, x.double()), (narrow, x)))
    logged = run.history[0]
    assert abs(logged["reconstruction"] - exact) < 1e-3 < abs(in_float32 - exact)
    assert logged["elbo"] == logged["train_elbo"] == pytest.approx(logged["reconstruction"] - logged["kl"], abs=1e-9)
    evidence = log_likelihood(program.model, program.guide, x, num_samples=1000, verbose=False)
    noise = 2**-0.5 * 2**0.5 / 64**0.5  # of log q alone: ½ ε² of two latents
    assert abs(logged["elbo"] - evidence.elbo.mean().item()) < 5 * noise


def parameters(d):
    return (d.concentration, d.rate) if isinstance(d, dist.GammaPoisson) else (d.total_count, d.probs)
