"""Programs that do not broadcast over particles: each number is that of plain runs, one particle at a time."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from pyro_vae import Bound, ais, enumerate_latents, fit, iwae, log_likelihood, log_weights, quadrature
from pyro_vae.errors import ProgramError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.unconstrained import SubstituteLatents
from pyro_vae.programs.vectorize import Grouping, ParticleDistribution, Vectorizing, regroup
from tests.helpers.gaussian import gaussian

ROWS, PARTICLES = 5, 4


class Program(nn.Module):
    """z ~ N(0, I₃), x ~ N(decode(z), 1): a decoder, and an encoder, that name a dimension from the left."""

    plate_size, event_dim = None, 1

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.dec, self.enc = nn.Linear(3, 8), nn.Linear(8, 6)

    def decode(self, z):
        return self.dec(z)

    def encode(self, x):
        return self.enc(x)

    def likelihood(self, h):
        return dist.Normal(h, 1.0).to_event(self.event_dim)

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", self.plate_size or len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decode(z)), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        loc, scale = self.encode(x).chunk(2, -1)
        with pyro.plate("data", self.plate_size or len(x)):
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(1))


class Softmax(Program):
    def decode(self, z):
        return F.softmax(4 * self.dec(z), dim=1)


class Normalised(Program):
    def decode(self, z):
        return self.dec(F.normalize(z))


class BatchNormed(Program):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_mean.copy_(torch.linspace(-1, 1, 8))

    def decode(self, z):
        return self.norm(self.dec(z))


class Viewed(Program):
    """The commonest decoder of images: view, then a transposed convolution."""

    event_dim = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.ConvTranspose2d(2, 1, 2, 2)

    def decode(self, z):
        return self.conv(self.dec(z).view(z.size(0), 2, 2, 2))

    def encode(self, x):
        return self.enc(x.view(len(x), -1)[:, :8])


class Attention(Program):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(2, 1, batch_first=True)

    def decode(self, z):
        tokens = self.dec(z).reshape(z.shape[0], 4, 2)
        return self.attend(tokens, tokens, tokens, need_weights=False)[0].flatten(1)


class Packed(Program):
    """An RNN over packed sequences encodes, one that loops over time decodes."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(3, 4), nn.Linear(4, 2)
        self.rnn = nn.GRU(2, 6, batch_first=True)

    def decode(self, z):
        h, steps = z.new_zeros(z.shape[0], 4), []
        for _ in range(4):
            h = self.cell(z, h)
            steps.append(self.out(h))
        return torch.cat(steps, 1)

    def encode(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x.reshape(len(x), 4, 2), [4] * len(x), batch_first=True)
        return self.rnn(packed)[1][0]


class TwoDimensions(Program):
    """matmul of a transposed latent, z.t(): two dimensions or an error."""

    def decode(self, z):
        return self.dec.weight.mm(z.t()).t() + self.dec.bias


class FixedPlate(Softmax):
    """A plate of as many rows as there are, and a softmax over dim 1: neither a plate of particles nor more rows will do."""

    plate_size = ROWS


class Flat(Program):
    """Two levels of the plate in one dimension, as flattened nested plates have it."""

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            means = self.dec(z).reshape(len(x) * 8)
            pyro.sample("x", dist.Normal(means.reshape(len(x), 8), 1.0).to_event(1), obs=x)


class Inner(Program):
    """A plate within the rows, left of the data's plate, and a latent in it."""

    def model(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            h = F.softmax(self.dec(z).reshape(len(x), 8), dim=1)
            with pyro.plate("inner", 8, dim=-2):
                w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(h.t() + w, 1.0), obs=x.t())

    def guide(self, x):
        loc, scale = self.encode(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(1))
            with pyro.plate("inner", 8, dim=-2):
                pyro.sample("w", dist.Normal(x.t() / 2, 0.7))


CASES = {
    "broadcasts": (Program, "plate"),
    "softmax": (Softmax, "rows"),
    "normalize": (Normalised, "rows"),
    "batchnorm": (BatchNormed, "rows"),
    "view": (Viewed, "rows"),
    "attention": (Attention, "rows"),
    "packed": (Packed, "rows"),
    "transpose": (TwoDimensions, "rows"),
    "fixed_plate": (FixedPlate, "loop"),
    "flattened": (Flat, "rows"),
    "inner_plate": (Inner, "rows"),
}


@pytest.fixture(params=CASES, ids=str)
def case(request, device):
    kind, mode = CASES[request.param]
    program = kind().to(device)
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1)).to(device)
    return program.eval(), images(x) if kind is Viewed else x, mode


def images(x):
    return torch.cat([x, x.flip(1)], 1).reshape(len(x), 1, 4, 4)


def plain(program, x, latents):
    """log p(x, z_k) of plain runs, no plate of particles and no handler but Pyro's own, ``(K, N)``."""
    terms = []
    for k in range(PARTICLES):
        at = {name: value[k] for name, value in latents.items()}
        trace = poutine.trace(poutine.condition(program, at)).get_trace(x)
        trace.compute_log_prob(lambda name, site: site["type"] == "sample" and name in {"x", *latents})
        terms.append(
            sum(s["log_prob"].reshape(-1, len(x)).sum(0) for n, s in trace.nodes.items() if n in {"x", *latents})
        )
    return torch.stack(terms)


def drawn(problem):
    return drawn_of(problem.draw(PARTICLES)[0])


def drawn_of(q):
    return {name: site["value"] for name, site in q.items()}


def squeezed(values):
    """The draws of one particle as a plain run has them: without a dimension for plates that a site does not lie in."""
    return {name: v.squeeze(1) if v.dim() == 4 else v for name, v in values.items()}


def test_the_probe_chooses_the_fastest_way_that_is_right(case):
    program, x, mode = case
    assert Problem.on(program.model, program.guide, x).vectorizing.model == mode


def test_scores_are_those_of_plain_runs(case):
    program, x, _ = case
    problem = Problem.on(program.model, program.guide, x)
    with torch.no_grad(), problem.quiet(0):
        q, p = problem.draw(PARTICLES)
        latents = squeezed({name: site["value"] for name, site in q.items()})
        torch.testing.assert_close(problem.log_prob(p), plain(program.model, x, latents), rtol=1e-5, atol=1e-4)
        guide = sum(problem.score(q).values())
        own = plain(program.guide, x, latents)
    torch.testing.assert_close(guide, own, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["plate", "rows", "loop"])
def test_a_program_that_broadcasts_has_the_same_scores_in_each_mode(mode, device):
    program, x = Inner().to(device), torch.randn(ROWS, 8, device=device)
    program.model = Program.model.__get__(program)
    program.guide = Program.guide.__get__(program)
    problem = Problem.on(program.model, program.guide, x)
    with problem.quiet(0):
        trace = problem.trace(problem.guide, PARTICLES)
        other = replace(problem, vectorizing=Vectorizing(mode, mode))
        for role in (problem.model, problem.guide):
            torch.testing.assert_close(
                other.log_prob(other.sites(role, PARTICLES, trace)),
                problem.log_prob(problem.sites(role, PARTICLES, trace)),
            )


def test_run_as_it_was_before_the_probe_a_softmax_gives_another_number(device):
    """The broken variant: a plate of particles for a program that a plate changes."""
    program, x = Softmax().to(device), torch.randn(ROWS, 8, device=device)
    problem = Problem.on(program.model, program.guide, x)
    with problem.quiet(0):
        trace = problem.trace(problem.guide, PARTICLES)
        right = problem.log_prob(problem.sites(problem.model, PARTICLES, trace))
        plated = replace(problem, vectorizing=Vectorizing())
        wrong = plated.log_prob(plated.sites(plated.model, PARTICLES, trace))
    assert (right - wrong).abs().max() > 0.1


def test_gradients_are_those_of_single_runs(case):
    program, x, _ = case
    problem = Problem.on(program.model, program.guide, x)
    z = {name: value.detach() for name, value in drawn(problem).items()}
    gradients, weight = [], getattr(program, "out", program.dec).weight
    for vectorizing in (problem.vectorizing, Vectorizing("loop", "loop")):
        run = replace(problem, vectorizing=vectorizing)
        log_p = run.log_prob(run.sites(run.model, PARTICLES, SubstituteLatents(z)))
        gradients.append(torch.autograd.grad(log_p.logsumexp(0).sum(), weight)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_bound_is_trained_as_probed(case, device):
    """The loss of IWAE at the draws of its own stream, against log-mean-exp of plain runs at them."""
    program, x, _ = case
    objective = Bound(iwae, PARTICLES)
    objective.per_row(program.model, program.guide, x)
    torch.manual_seed(3)
    loss = objective.loss(program.model, program.guide, x)
    problem = Problem.on(program.model, program.guide, x)
    torch.manual_seed(3)
    with torch.no_grad():
        q, _ = problem.draw(PARTICLES)
        log_w = plain(program.model, x, squeezed(drawn_of(q))) - problem.log_prob(q)
    torch.testing.assert_close(-loss, (log_w.logsumexp(0) - math.log(PARTICLES)).sum(), rtol=1e-4, atol=1e-3)


def test_log_px_is_that_of_the_same_model_written_to_broadcast(device):
    """Quadrature over the real line of a one-dimensional latent, and every estimator, against plain torch."""
    weight = torch.tensor([0.5, -1.0, 0.3], device=device)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, device=device), 1.0).to_event(1))
            pyro.sample("x", dist.OneHotCategorical(probs=F.softmax(2 * z * weight, dim=1)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1, device=device), 1.0).to_event(1))

    x = torch.eye(3, device=device)
    grid = torch.linspace(-8, 8, 2001, dtype=torch.float64, device=device)
    terms = F.log_softmax(2 * grid[:, None] * weight.double(), -1) + dist.Normal(0.0, 1.0).log_prob(grid)[:, None]
    exact = (terms.logsumexp(0) + math.log(16 / 2000)).cpu()
    torch.testing.assert_close(quadrature(model, guide, x).log_px, exact, atol=1e-4, rtol=0)
    options = {"num_samples": 4000, "verbose": False, "device": device}
    for evidence in (
        log_likelihood(model, guide, x, **options),
        log_likelihood(model, guide, x, vectorize_particles=False, **options | {"num_samples": 300}),
        ais(model, guide, x, num_temperatures=10, num_chains=64, verbose=False),
        ais(model, guide, x, start="guide", num_temperatures=10, num_chains=64, verbose=False),
    ):
        assert ((evidence.log_px.cpu() - exact).abs() < 4 * evidence.mc_se.cpu() + 1e-4).all()


def test_enumeration_of_rows(device):
    """Two classes under a program that names a dimension from the left, against the sum by hand."""
    loc = torch.tensor([[-1.0, 0.0], [1.0, 2.0]], device=device)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.3, 0.7], device=device)))
            pyro.sample("x", dist.Normal(k.view(k.size(0), 2).mm(loc), 1.0).to_event(1), obs=x)

    x = torch.randn(ROWS, 2, device=device)
    by_class = dist.Normal(loc, 1.0).log_prob(x[:, None]).sum(-1) + torch.tensor([0.3, 0.7], device=device).log()
    torch.testing.assert_close(enumerate_latents(model, None, x).log_px.float(), by_class.logsumexp(1).cpu())


def test_fit_logs_the_elbo_of_plain_runs_and_trains(device):
    program = Viewed().to(device)
    x = images(torch.randn(40, 8, generator=torch.Generator().manual_seed(1))).to(device)
    run = fit(program, x, epochs=2, verbose=False)
    with torch.no_grad():
        loss = [pyro.infer.Trace_ELBO().loss(program.model, program.guide, x) / len(x) for _ in range(200)]
    loss = torch.tensor(loss)
    assert abs(run.history[-1]["elbo"] + loss.mean()) < 5 * loss.std()


REFUSED = {
    "softmax_over_rows": (
        lambda z, x: F.softmax(z, dim=0),
        "site 'x' of the model has another log-probability for a row",
    ),
    "mean_of_the_batch": (lambda z, x: z - x.mean(0)[:3], "site 'x' of the model"),
    "centred_latents": (lambda z, x: z - z.mean(0), "site 'x' of the model"),
    "noise": (lambda z, x: z + torch.randn_like(z), "draws random numbers outside of pyro.sample"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_programs_without_a_density_for_each_row_are_refused(name, device):
    decode, words = REFUSED[name]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, device=device), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z, x), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.randn(ROWS, 3, device=device)
    for number in (log_weights, lambda *a: log_likelihood(*a, num_samples=5, verbose=False)):
        with pytest.raises(ProgramError, match=words):
            number(model, guide, x)


def test_the_probe_draws_nothing_and_changes_nothing(device):
    program, x = BatchNormed().to(device).train(), torch.randn(ROWS, 8, device=device)
    before, state = program.norm.num_batches_tracked.clone(), torch.get_rng_state()
    problem = Problem(program.model, program.guide, (x,), Problem.on(program.model, program.guide, x).plates)
    torch.set_rng_state(state)
    before = program.norm.num_batches_tracked.clone()
    problem.probed()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(program.norm.num_batches_tracked, before)
    assert program.norm.training


def test_parameters_that_the_probe_makes_are_not_those_of_training(device):
    """Local parameters of as many rows as there are: two rows would make them of another size, for good."""
    pyro.clear_param_store()

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x), device=device))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x = torch.randn(ROWS, device=device)
    assert log_weights(gaussian, guide, x, num_particles=3).shape == (3, ROWS)
    assert pyro.param("loc").shape == (ROWS,)
    pyro.clear_param_store()


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.randn(6, 2), 1.0).to_event(1),
        dist.MultivariateNormal(torch.randn(6, 2), torch.eye(2).expand(6, 2, 2)),
        dist.Gamma(torch.rand(6) + 1, torch.ones(6)),
        dist.LogNormal(torch.randn(6, 3), 1.0).to_event(1),
        dist.Dirichlet(torch.rand(6, 3) + 1),
        dist.Uniform(torch.arange(6.0), torch.arange(6.0) + 2),
        dist.Categorical(logits=torch.randn(6, 4)),
        dist.Bernoulli(probs=torch.rand(6, 3)).to_event(1),
        dist.Normal(torch.randn(6, 2), 1.0).to_event(1).mask(torch.arange(6) > 2),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(6, 2)), dist.Normal(torch.randn(6, 2), 1.0)),
    ],
    ids=[
        "normal",
        "mvn",
        "gamma",
        "lognormal",
        "dirichlet",
        "uniform",
        "categorical",
        "bernoulli",
        "masked",
        "mixture",
    ],
)
def test_a_regrouped_distribution_is_the_same_one(fn):
    plates = Problem.on(*linear(), torch.zeros(2)).plates
    grouping = Grouping(plates, 3)
    made = regroup([fn], grouping)
    assert made.batch_shape == (3, 2) and made.event_shape == fn.event_shape
    value = fn.sample()
    split = grouping.split(value, fn.event_dim)
    torch.testing.assert_close(made.log_prob(split), fn.log_prob(value).reshape(3, 2))
    torch.testing.assert_close(grouping.merge(split, fn.event_dim), value)
    assert made.has_rsample == fn.has_rsample
    assert made.support.check(split).all()
    assert made.sample().shape == made.sample(()).shape == (3, 2, *fn.event_shape)
    one_by_one = regroup([fn.expand((6,)) if fn.batch_shape != (6,) else fn] * 2, Grouping(plates, 1))
    assert one_by_one.batch_shape == (2, 6)
    again = torch.stack([value, value])
    torch.testing.assert_close(one_by_one.log_prob(again), fn.log_prob(value).expand(2, 6))


def test_bounds_of_rows_stay_with_their_rows():
    plates = Problem.on(*linear(), torch.zeros(2)).plates
    made = regroup([dist.Uniform(torch.arange(6.0), torch.arange(6.0) + 2)], Grouping(plates, 3))
    assert isinstance(made, ParticleDistribution)
    assert made.support.lower_bound.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def linear():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    return model, guide
