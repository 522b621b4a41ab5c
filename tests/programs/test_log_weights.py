"""log_w[k, n] = log p(x_n, z_kn) - log q(z_kn | x_n): against hand computation and exact posteriors, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_vae import Bound, ais, decompose, defensive, elbo, gaps, iwae, log_likelihood, log_weights
from pyro_vae.errors import ProgramError
from pyro_vae.programs.plates import find_plates
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64


@pytest.fixture
def vae(device):
    return small_vae(device=device).double()


@pytest.fixture
def x(device):
    return binary(7, device, DOUBLE)


def close(a, b, atol=1e-8):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# the definition


def test_by_hand(vae, x, device):
    """Under the same seed the guide's draw is q.sample(), so every term can be written down."""
    torch.manual_seed(3)
    log_w = log_weights(vae.model, vae.guide, x, num_particles=4)
    torch.manual_seed(3)
    find_plates(vae.model, vae.guide, x)  # draws, too
    q = vae.posterior(x)
    z = q.expand((4, 7)).sample()
    log_p = dist.Normal(0, torch.ones((), dtype=DOUBLE, device=device)).log_prob(z).sum(-1)
    logits = vae.likelihood.net(z)
    log_px = (x * logits.sigmoid().log() + (1 - x) * (-logits).sigmoid().log()).sum(-1)
    log_q = (-0.5 * ((z - q.mean) / q.stddev) ** 2 - q.stddev.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    assert log_w.shape == (4, 7)
    close(log_w, log_px + log_p - log_q)


def check_constant(log_w, log_px):
    close(log_w, log_px.expand_as(log_w))


@pytest.mark.parametrize("vectorized", [True, False])
def test_the_exact_posterior_makes_every_weight_p_of_x(lg, vectorized):
    log_w = log_weights(lg.model, lg.exact_guide, lg.x, num_particles=6, vectorize_particles=vectorized)
    assert log_w.shape == (6, 40)
    check_constant(log_w, lg.log_px(lg.x))
    twin = lg.vae()
    check_constant(log_weights(twin.model, twin.guide, lg.x, num_particles=6), lg.log_px(lg.x))


def test_any_other_guide_does_not(lg):
    with pytest.raises(AssertionError):
        check_constant(log_weights(lg.model, lg.mean_field_guide, lg.x, num_particles=6), lg.log_px(lg.x))


def test_looped_and_vectorized_particles_have_one_distribution(lg):
    """Means of w/p(x), whose expectation is 1 for both, differ by less than 4 standard errors, sqrt(var/K + var/K)."""
    x, k = lg.x[:3], 400
    a, b = (
        (log_weights(lg.model, lg.mean_field_guide, x, num_particles=k, vectorize_particles=v) - lg.log_px(x)).exp()
        for v in (True, False)
    )
    se = ((a.var(0) + b.var(0)) / k).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() < 4 * se).all()


def test_weights_are_unbiased(lg):
    """mean(w / p(x)) is 1 within 4 standard errors, sd / sqrt(K)."""
    ratio = (log_weights(lg.model, lg.mean_field_guide, lg.x, num_particles=5000) - lg.log_px(lg.x)).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 5000**0.5).all()


def test_a_row_has_the_same_weight_alone_and_in_a_batch(lg):
    guide = lg.pinned_guide
    together = log_weights(lg.model, guide, lg.x)
    alone = torch.cat([log_weights(lg.model, guide, row[None]) for row in lg.x], 1)
    close(together, alone, 1e-10)
    order = torch.randperm(len(lg.x))
    close(log_weights(lg.model, guide, lg.x[order]), together[:, order], 1e-10)


# what must not enter: plate sizes and scales; what must: masks and inner plates


def subsampled(lg, size):
    """The same pair, as one minibatch of a data set of `size` rows."""

    def plate(x):
        return pyro.plate("data", size=size, subsample=torch.arange(len(x), device=x.device))

    def model(x):
        with plate(x):
            z = pyro.sample("z", lg.prior())
            pyro.sample("x", lg.likelihood(z), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", lg.normal(lg.exact(x)))

    return model, guide


@pytest.mark.parametrize("vectorized", [True, False])
def test_plate_size_does_not_enter(lg, vectorized):
    log_w = log_weights(*subsampled(lg, 4000), lg.x, num_particles=3, vectorize_particles=vectorized)
    check_constant(log_w, lg.log_px(lg.x))


def test_scaled_log_probs_would_enter(lg):
    """Shows that the test above can fail: Pyro's own sums carry the plate's scale."""
    model, guide = subsampled(lg, 4000)
    q = poutine.trace(guide).get_trace(lg.x)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(lg.x)
    for trace in (p, q):
        trace.compute_log_prob()
    scaled = p.nodes["x"]["log_prob"] + p.nodes["z"]["log_prob"] - q.nodes["z"]["log_prob"]
    with pytest.raises(AssertionError):
        check_constant(scaled[None], lg.log_px(lg.x))


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_poutine_scale_does_not_enter(lg, scale):
    pair = poutine.scale(lg.model, scale=scale), poutine.scale(lg.exact_guide, scale=scale)
    check_constant(log_weights(*pair, lg.x, num_particles=3), lg.log_px(lg.x))


def by_pixels(lg, inner):
    """The same pair, with a plate over pixels instead of to_event: data at -1 and pixels at -2, or the other way round."""
    data_dim, pixel_dim = (-1, -2) if inner == "left" else (-2, -1)

    def latent(name, d, x):  # one scalar site for each latent dimension: nothing may sit to the right of the plates
        return torch.stack([pyro.sample(f"{name}{i}", d(i)) for i in range(lg.latents)], -1)

    def shaped(t):
        return t if data_dim == -1 else t.unsqueeze(-1)

    def model(x):
        data = pyro.plate("data", len(x), dim=data_dim)
        pixels = pyro.plate("pixels", x.shape[1], dim=pixel_dim)
        with data:
            z = latent("z", lambda i: dist.Normal(x.new_zeros(()), x.new_ones(())), x)
            with pixels:
                if data_dim == -1:  # z (..., 1, N, L): pixels come in at -2
                    loc = (lg.mean + z @ lg.a).squeeze(-3).mT if z.dim() > 2 else (lg.mean + z @ lg.a).mT
                    pyro.sample("x", dist.Normal(loc, lg.noise.sqrt()[:, None]), obs=x.T)
                else:
                    loc = (lg.mean + z @ lg.a).squeeze(-2)  # z (..., N, 1, L)
                    pyro.sample("x", dist.Normal(loc, lg.noise.sqrt()), obs=x)

    def guide(x):
        q = lg.mean_field(x)
        sd = q.cov.diagonal().sqrt()
        with pyro.plate("data", len(x), dim=data_dim):
            latent("z", lambda i: dist.Normal(shaped(q.loc[:, i]), sd[i]), x)

    return model, guide


@pytest.mark.parametrize("inner", ["left", "right"])
def test_inner_plates_are_summed(lg, inner):
    """Against the program without inner plates, under the same draws of z."""
    torch.manual_seed(5)
    log_w = log_weights(*by_pixels(lg, inner), lg.x, num_particles=4)
    assert log_w.shape == (4, 40)
    torch.manual_seed(5)
    find_plates(*by_pixels(lg, inner), lg.x)  # draws, too
    q = lg.mean_field(lg.x)
    draws = [dist.Normal(q.loc[:, i], q.cov[i, i].sqrt()).expand((4, 40)) for i in range(2)]
    z = torch.stack([d.sample() for d in draws], -1)
    log_q = sum(d.log_prob(z[..., i]) for i, d in enumerate(draws))
    close(log_w, lg.likelihood(z).log_prob(lg.x) + lg.prior().log_prob(z) - log_q)


@pytest.mark.parametrize("inner", ["left", "right"])
def test_inner_plates_without_particle_vectors(lg, inner):
    log_w = log_weights(*by_pixels(lg, inner), lg.x, num_particles=50, vectorize_particles=False)
    ratio = (log_w - lg.log_px(lg.x)).exp()
    se = ratio.std() / ratio.numel() ** 0.5
    assert log_w.shape == (50, 40) and (ratio.mean() - 1).abs() < 4 * se


def test_masks_are_respected(lg):
    """Rows masked out of the likelihood keep log p(z) - log q(z); pixels masked out drop out of x."""
    guide, keep = lg.pinned_guide, torch.arange(40, device=lg.x.device) % 2 == 0

    def masked(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", lg.prior())
            with poutine.mask(mask=keep):
                pyro.sample("x", lg.likelihood(z), obs=x)

    z = lg.exact(lg.x).loc
    log_px = lg.likelihood(z).log_prob(lg.x)
    close(log_weights(masked, guide, lg.x)[0], log_px * keep + lg.prior().log_prob(z) - z.sum(-1))

    seen = torch.rand(lg.x.shape, device=lg.x.device) < 0.5

    def some_pixels(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", lg.prior())
            pyro.sample("x", dist.Normal(lg.mean + z @ lg.a, lg.noise.sqrt()).mask(seen).to_event(1), obs=x)

    per_pixel = dist.Normal(lg.mean + z @ lg.a, lg.noise.sqrt()).log_prob(lg.x)
    expected = (per_pixel * seen).sum(-1) + lg.prior().log_prob(z) - z.sum(-1)
    close(log_weights(some_pixels, guide, lg.x)[0], expected)


def test_several_latents_and_observations_add_up(lg):
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", lg.prior())
            w = pyro.sample("w", dist.Normal(x.new_zeros(()), x.new_ones(())))
            pyro.deterministic("shown", z * 2, event_dim=1)
            pyro.sample("x", lg.likelihood(z), obs=x)
            pyro.sample("y", dist.Normal(w, x.new_ones(())), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", lg.normal(lg.exact(x)))
            pyro.sample("w", dist.Normal(y / 2, y.new_full((), 0.5**0.5)))

    y = torch.randn(40, dtype=DOUBLE, device=lg.x.device)
    log_w = log_weights(model, guide, lg.x, y, num_particles=3)
    check_constant(log_w, lg.log_px(lg.x) + dist.Normal(y.new_zeros(()), y.new_full((), 2).sqrt()).log_prob(y))


# refusals


def data(x):
    return pyro.plate("data", len(x))


def unit(x):
    return dist.Normal(x.new_zeros(()), x.new_ones(()))


def latent_x(x, **marks):
    z = pyro.sample("z", unit(x), **marks)
    pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x)


def plain_model(x):
    with data(x):
        latent_x(x)


def plain_guide(x):
    with data(x):
        pyro.sample("z", unit(x))


def no_plate(x):
    z = pyro.sample("z", unit(x).expand(x.shape).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def no_plate_guide(x):
    pyro.sample("z", unit(x).expand(x.shape).to_event(1))


def global_model(x):
    g = pyro.sample("g", unit(x))
    with data(x):
        z = pyro.sample("z", unit(x))
        pyro.sample("x", dist.Normal(z + g, 1.0), obs=x)


def global_guide(x):
    pyro.sample("g", unit(x))
    plain_guide(x)


def observed_outside(x):
    with data(x):
        z = pyro.sample("z", unit(x))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.sample("total", dist.Normal(z.sum(), 1.0), obs=x.sum())


def enumerated_model(x):
    with data(x):
        k = pyro.sample("k", dist.Bernoulli(x.new_full((), 0.5)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def enumerated_guide(x):
    with data(x):
        pyro.sample("k", dist.Bernoulli(x.new_full((), 0.5)), infer={"enumerate": "parallel"})


def discrete_model(x):
    with data(x):
        k = pyro.sample("k", dist.Bernoulli(x.new_full((), 0.5)))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def two_latents(x):
    with data(x):
        pyro.sample("y", unit(x))
        latent_x(x)


def two_guided(x):
    plain_guide(x)
    with pyro.plate("other", len(x)):
        pyro.sample("y", unit(x))


def nothing_observed(x):
    with data(x):
        pyro.sample("z", unit(x))


def nothing_drawn(x):
    with data(x):
        pyro.sample("x", unit(x), obs=x)


def two_plates(program, names=("rows", "copies")):
    def inside(x):
        with pyro.plate(names[0], len(x)), pyro.plate(names[1], 1):
            program(x)

    return inside


REFUSED = {
    "no plate": (no_plate, no_plate_guide, "no data plate"),
    "global latent": (global_model, global_guide, "site 'g' lies outside the plate 'data'"),
    "observation outside": (observed_outside, plain_guide, r"site 'total' is observed .* outside of the plate 'data'"),
    "enumerated in the model": (enumerated_model, lambda x: None, "site 'k' of the model is marked for enumeration"),
    "enumerated in the guide": (discrete_model, enumerated_guide, "site 'k' of the .* is marked for enumeration"),
    "latent only in the model": (two_latents, plain_guide, "latent site 'y' is in the model but not in the guide"),
    "latent only in the guide": (plain_model, two_guided, "site 'y' is in the guide but is no latent of the model"),
    "nothing observed": (nothing_observed, plain_guide, "observes nothing"),
    "nothing drawn": (nothing_drawn, lambda x: None, "no latent site: there is nothing to infer"),
    "two plates": (
        two_plates(lambda x: latent_x(x)),
        two_plates(lambda x: pyro.sample("z", unit(x))),
        r"plates \['copies', 'rows'\] each enclose every site.*Name that plate \"data\"",
    ),
}


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("why", REFUSED)
def test_refused_by_name(why, vectorized):
    model, guide, message = REFUSED[why]
    with pytest.raises(ProgramError, match=message):
        log_weights(model, guide, torch.randn(5), num_particles=3, vectorize_particles=vectorized)


@pytest.mark.parametrize(
    "ask",
    [
        lambda *pair: log_likelihood(*pair, num_samples=5, proposal=defensive(), verbose=False),
        lambda *pair: ais(*pair, num_temperatures=2, num_chains=2, verbose=False),
        lambda *pair: log_likelihood(*pair, method="exact"),
        lambda *pair: gaps(*pair, steps=1, num_samples=2, verbose=False),
        decompose,
        Bound(elbo).per_row,
    ],
    ids=["defensive", "ais", "exact", "gaps", "decompose", "bound"],
)
def test_a_model_that_draws_nothing_is_refused_alike(ask):
    with pytest.raises(ProgramError, match="no latent site: there is nothing to infer"):
        ask(nothing_drawn, lambda x: None, torch.randn(5))


def test_of_two_enclosing_plates_the_one_named_data_runs_over_rows():
    names = ("data", "copies")
    model, guide = two_plates(lambda x: latent_x(x), names), two_plates(lambda x: pyro.sample("z", unit(x)), names)
    assert log_weights(model, guide, torch.randn(5), num_particles=3).shape == (3, 5)


@pytest.mark.parametrize("vectorized", [True, False], ids=["probed", "looped"])
def test_a_program_that_does_not_broadcast_is_right_all_the_same(lg, vectorized):
    def guide(x):
        q = lg.exact(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", lg.normal(q))
            assert z.dim() == 2, "no dimension of particles here"

    log_w = log_weights(lg.model, guide, lg.x, num_particles=3, vectorize_particles=vectorized)
    check_constant(log_w, lg.log_px(lg.x))


# bounds


def check_bounds(one_elbo, one_iwae, log_w):
    """Against sums written out in the natural scale."""
    close(one_elbo(log_w), sum(log_w) / len(log_w), 1e-12)
    close(one_iwae(log_w), (sum(log_w.exp()) / len(log_w)).log(), 1e-12)


def test_bounds_by_definition():
    log_w = torch.randn(8, 5, dtype=DOUBLE)
    check_bounds(elbo, iwae, log_w)
    close(iwae(log_w[:1]), elbo(log_w[:1]), 0)
    assert (iwae(log_w) >= elbo(log_w)).all()
    close(iwae(log_w - 5000), iwae(log_w) - 5000)


@pytest.mark.parametrize(
    ("one_elbo", "one_iwae"),
    [
        (elbo, lambda w: w.logsumexp(0)),  # log K forgotten
        (elbo, lambda w: w.logsumexp(1) - math.log(w.shape[1])),  # over rows
        (lambda w: w.mean(1), iwae),  # over rows
        (elbo, lambda w: w.logsumexp(0) - math.log(len(w) + 1)),  # one too many
    ],
)
def test_wrong_bounds_are_caught(one_elbo, one_iwae):
    with pytest.raises(AssertionError):
        check_bounds(one_elbo, one_iwae, torch.randn(8, 5, dtype=DOUBLE))


def plates(vae, x):
    """The run with which log_weights finds its plates; it draws, too, so whoever wants the same noise makes it as well."""
    return find_plates(vae.model, vae.guide, x)


def gradients(vae, loss, first=lambda: None):
    """Of loss() under one seed, parameter by parameter."""
    vae.zero_grad()
    torch.manual_seed(11)
    first()
    value = loss()
    value.backward()
    return value.detach(), [p.grad.clone() for p in vae.parameters()]


def test_the_gradient_is_trace_elbos(vae, x):
    stock = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    ours = gradients(vae, lambda: -elbo(log_weights(vae.model, vae.guide, x, num_particles=4)).sum())
    theirs = gradients(vae, lambda: stock.differentiable_loss(vae.model, vae.guide, x), lambda: plates(vae, x))
    close(ours, theirs, 1e-6)
    other = gradients(vae, lambda: -iwae(log_weights(vae.model, vae.guide, x, num_particles=4)).sum())
    with pytest.raises(AssertionError):
        close(other, theirs, 1e-6)


def test_iwae_is_renyis_bound_at_alpha_0(vae, x):
    stock = RenyiELBO(alpha=0, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    value, grads = gradients(vae, lambda: -iwae(log_weights(vae.model, vae.guide, x, num_particles=4)).sum())
    vae.zero_grad()
    torch.manual_seed(11)
    plates(vae, x)
    loss = stock.loss_and_grads(vae.model, vae.guide, x)
    close(value, torch.tensor(loss, dtype=DOUBLE, device=value.device), 1e-6)
    close(grads, [p.grad for p in vae.parameters()], 1e-6)
