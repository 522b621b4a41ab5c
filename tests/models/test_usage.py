"""encode, reconstruct, sample, interpolate of any programs, by their sites: closed forms, and plain traces at the same seed."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

from pyro_vae import (
    GMVAE,
    Bayesian,
    StandardNormal,
    encode,
    interpolate,
    prior_predictive_check,
    reconstruct,
    sample,
    simulate,
)
from pyro_vae.common.random import seeded
from pyro_vae.errors import DataError, ProgramError, ShapeError, UsageError
from pyro_vae.models import usage
from pyro_vae.programs.at_means import AtMeans
from tests.helpers.bayesian import LocalLatents, NormalMean, Regression
from tests.helpers.classes import CENTRES, A, B, exact_parts, labelled, mixed, rows
from tests.helpers.gaussian import gaussian
from tests.helpers.state_space import LINE, PLANE, hidden_markov, line, plane, ragged
from tests.helpers.two_levels import TwoLevels

DOUBLE = torch.float64
LEVELS = TwoLevels()
X, LENGTHS = ragged(PLANE.draw(4, 5), [5, 2, 4, 1])


def pair_of(thing):
    return thing.model, thing.guide


def trace_of(program, *args, seed):
    """A plain trace, drawn from the stream of a seed."""
    with torch.no_grad(), seeded(seed):
        return poutine.trace(program).get_trace(*args).nodes


# --- closed forms ---------------------------------------------------------------------------------------------------------


def test_codes_of_a_pair_are_its_exact_posterior_means(lg):
    """A hand-written pair, its guide alone, and the class give E[z | x] of the linear-Gaussian model."""
    exact = lg.exact(lg.x).loc
    for program in ((lg.model, lg.exact_guide), lg.exact_guide, lg.vae().guide):
        torch.testing.assert_close(encode(program, lg.x), {"z": exact})
    torch.testing.assert_close(encode((lg.model, lg.exact_guide), lg.x, site="z"), exact)
    assert torch.equal(encode(lg.vae(), lg.x), encode(lg.exact_guide, lg.x)["z"])


def test_reconstructions_of_a_pair_are_means_at_its_codes(lg):
    pair, exact = (lg.model, lg.exact_guide), lg.exact(lg.x).loc
    torch.testing.assert_close(reconstruct(pair, lg.x), {"x": lg.mean + exact @ lg.a})
    assert torch.equal(reconstruct(lg.vae(), lg.x), reconstruct(pair, lg.x, site="x"))
    a, b = lg.x[:4], lg.x[4:8]
    path = interpolate(pair, a, b, steps=3)["x"]
    middle = (exact[:4] + exact[4:8]) / 2
    torch.testing.assert_close(path, lg.mean + torch.stack([exact[:4], middle, exact[4:8]]) @ lg.a)


@pytest.mark.parametrize("posterior", [LEVELS.top_down, LEVELS.bottom_up], ids=["top-down", "bottom-up"])
def test_each_level_has_its_exact_mean(posterior):
    """Both guides are exact and linear, so that the path of means is E[z_l | x] at each level, in whatever order."""
    vae = LEVELS.vae(posterior())
    wanted = {z: LEVELS.given(where, (LEVELS.X, LEVELS.x))[0] for z, where in (("z1", LEVELS.Z1), ("z2", LEVELS.Z2))}
    found = encode(pair_of(vae), LEVELS.x)
    assert found.keys() == wanted.keys()
    for site, exact in wanted.items():
        torch.testing.assert_close(found[site], exact)
        torch.testing.assert_close(encode(vae, LEVELS.x, site=site), exact)
    assert torch.equal(encode(vae, LEVELS.x), found["z1"])


def test_a_level_that_moves_takes_those_below_it_along():
    """Along z2, z1 is at E[z1 | z2]; along z1, x at E[x | z1], whatever z2."""
    vae, a, b = LEVELS.vae(LEVELS.top_down()), LEVELS.x[:3], LEVELS.x[3:6]
    start, end = (encode(pair_of(vae), rows) for rows in (a, b))
    for t, top, low in zip((0.0, 0.5, 1.0), interpolate(vae, a, b, steps=3, site="z2"),
                           interpolate(vae, a, b, steps=3), strict=True):  # fmt: skip
        z2, z1 = (start[z] + t * (end[z] - start[z]) for z in ("z2", "z1"))
        torch.testing.assert_close(top, LEVELS.likelihood(LEVELS.middle(z2).mean).mean)
        torch.testing.assert_close(low, LEVELS.likelihood(z1).mean)


def test_codes_of_sequences_are_smoothed_means_up_to_their_ends():
    """An exact linear guide walks along the chain: E[z_t | x] by Rauch, Tung and Striebel; nothing beyond the end."""
    x, lengths = ragged(LINE.draw(3, 4), [4, 2, 1])
    model = line(4)
    found = torch.stack(list(encode(pair_of(model), x, lengths).values()), 1)
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :n], LINE.smoothed(x[row, :n])[0])
        assert found[row, n:].isnan().all()
    again = reconstruct(pair_of(model), x, lengths)
    assert list(again) == ["x_1", "x_2", "x_3", "x_4"] and again["x_3"][1:].isnan().all()
    torch.testing.assert_close(again["x_2"][:2], found[:2, 1] @ LINE.c.T)


def test_global_sites_have_one_code_for_all_rows():
    """μ of all rows, E[μ | X]; then z of each row given it."""
    oracle = LocalLatents()
    (x,) = oracle.args(6)
    mean = oracle.posterior(x)[0]
    found = encode((oracle.model, oracle.exact_guide), x)
    torch.testing.assert_close(found["mu"], mean)
    torch.testing.assert_close(found["z"], (x + mean) / 2)
    w = Regression()
    y, c = w.args(8)
    loc = w.posterior(y, c)[0]
    torch.testing.assert_close(encode((w.model, w.exact_guide), y, c), {"w": loc})
    torch.testing.assert_close(reconstruct((w.model, w.exact_guide), y, c), {"y": c @ loc})


def test_a_bayesian_model_has_a_code():
    regression = Bayesian(StandardNormal(2), lambda w, c: dist.Normal((w * c).sum(-1), 1.0), StandardNormal(2))
    y, c = torch.zeros(5), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert encode(regression, y, c).shape == (2,) and reconstruct(regression, y, c).shape == (5,)
    drawn = sample(regression, 5, c, seed=4)
    assert torch.equal(drawn, trace_of(poutine.uncondition(regression.model), y, c, seed=4)["x"]["value"])


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal], ids=["normal", "multivariate"])
def test_autoguides_have_the_means_of_what_they_draw(auto):
    """Their draws are auxiliary; of a real site it is the draw itself, of a positive one exp of it, whose mean is another."""

    def model(x, prior):
        mu = pyro.sample("mu", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x, pyro_store = torch.tensor([1.0, 2.0, 6.0]), pyro.get_param_store()
    with pyro_store.scope():
        of_real = lambda x: model(x, dist.Normal(0.0, 1.0))  # noqa: E731
        guide = auto(of_real, init_loc_fn=lambda site: torch.tensor(2.0))
        guide(x)
        torch.testing.assert_close(encode((of_real, guide), x)["mu"], torch.tensor(2.0))
        of_positive = lambda x: model(x, dist.Gamma(2.0, 1.0))  # noqa: E731
        guide = auto(of_positive, init_loc_fn=lambda site: torch.tensor(2.0))
        guide(x)
        with pytest.raises(ProgramError, match=r"site 'mu' .* no straight function of"):
            encode((of_positive, guide), x)
        assert (encode((of_positive, guide), x, num_samples=3)["mu"] > 0).all()


# --- draws ----------------------------------------------------------------------------------------------------------------


def nested():
    """z for each row, and w for each of three parts of it, in a plate inside; x in both."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-1):
                w = pyro.sample("w", dist.Normal(z, 0.5))
                pyro.sample("x", dist.Normal(w, 0.2), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 0.3))
            with pyro.plate("parts", 3, dim=-1):
                pyro.sample("w", dist.Normal(0.5 * (x + z), 0.3))

    return model, guide, (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),)


def of_context():
    """z ~ N(c, 1), x ~ N(z + c, 1/2)."""

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(z + c, 0.5), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - c, 0.3))

    g = torch.Generator().manual_seed(0)
    return model, guide, (torch.randn(4, generator=g), torch.randn(4, generator=g))


def discrete():
    model = hidden_markov()
    return model.model, model.guide, (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double(),)


PROGRAMS = {
    "nested-plates": nested(),
    "context": of_context(),
    "discrete": discrete(),
    "two-levels": (*pair_of(LEVELS.vae(LEVELS.bottom_up())), (LEVELS.x[:4],)),
    "sequence": (*pair_of(plane()), (X, torch.full((4,), 5))),
    "global": (NormalMean().model, NormalMean().guide, NormalMean().args(4)),
    "global-and-local": (LocalLatents().model, LocalLatents().guide, LocalLatents().args(4)),
}


@pytest.mark.parametrize(("model", "guide", "args"), PROGRAMS.values(), ids=PROGRAMS)
def test_draws_are_those_of_a_plain_trace(model, guide, args):
    """Of the guide, and of the model with its observations undone: every site, to the bit."""
    drawn, plain = encode((model, guide), *args, num_samples=1, seed=3), trace_of(guide, *args, seed=3)
    assert set(drawn) == {n for n, s in plain.items() if s["type"] == "sample" and "plate" not in str(type(s["fn"]))
                          and n not in ("data", "parts")}  # fmt: skip
    for site, values in drawn.items():
        assert torch.equal(values[0].to(plain[site]["value"].dtype), plain[site]["value"])
    rows, plain = (
        sample(model, len(args[0]), *args[1:], like=args[0], seed=5),
        trace_of(poutine.uncondition(model), *args, seed=5),
    )
    assert {"x", "x_1", "x_2", "y"} & set(rows)
    for site, values in rows.items():
        assert torch.equal(values, plain[site]["value"]), site


@pytest.mark.parametrize("name", ["nested-plates", "context", "two-levels", "global-and-local"])
def test_draws_of_reconstructions_are_x_given_draws_of_the_guide(name):
    model, guide, args = PROGRAMS[name]
    found = reconstruct((model, guide), *args, num_samples=2, seed=7)
    with torch.no_grad(), seeded(7):
        for k in range(2):
            z = poutine.trace(guide).get_trace(*args)
            plain = poutine.trace(poutine.replay(poutine.uncondition(model), z)).get_trace(*args)
            for site, values in found.items():
                assert torch.equal(values[k], plain.nodes[site]["value"])


@pytest.mark.parametrize(("count", "plate"), [(3, "data"), (5, "data"), (3, "rows")])
def test_rows_come_first_where_another_plate_stands_left_of_them(count, plate):
    """Values ``(units, N)`` of the programs; of as many units as rows they were transposed without a word."""

    def model(x):
        centres(x)
        with pyro.plate(plate, len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("units", 3, dim=-2):
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(w + z[..., 0], 0.1), obs=x.T)

    def centres(x):  # of all rows, in a plate of their own
        with pyro.plate("centres", 2):
            for name in "abcd" if plate == "rows" else "":
                pyro.sample(name, dist.Normal(0.0, 1.0))

    def guide(x):
        centres(x)
        with pyro.plate(plate, len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, :2], 0.1).to_event(1))
            with pyro.plate("units", 3, dim=-2):
                pyro.sample("w", dist.Normal(x.T, 0.1))

    pair, x = (model, guide), torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encode(pair, x)["w"], x) and torch.equal(encode(guide, x, site="w"), x)
    draws = encode(pair, x, site="w", num_samples=2)
    assert draws.shape == (2, count, 3) and ((draws - x).abs() < 0.6).all()
    mean = x + x[:, :1]
    torch.testing.assert_close(reconstruct(pair, x, site="x"), mean)
    torch.testing.assert_close(reconstruct(pair, x), {"x": mean})
    assert ((reconstruct(pair, x, site="x", num_samples=2) - mean).abs() < 1.2).all()
    torch.testing.assert_close(interpolate(pair, x, -x, steps=2)["x"], torch.stack([mean, -mean]))
    drawn, means = (sample(model, count, like=x, mean=m) for m in (False, True))
    torch.testing.assert_close(means["x"], drawn["w"] + drawn["z"][:, :1])
    assert ((drawn["x"] - means["x"]).abs() < 0.5).all()


def test_means_of_samples_are_at_the_same_latents():
    model, _, (x, c) = of_context()
    draws, means = (sample(model, 4, c, like=x, seed=2, mean=mean) for mean in (False, True))
    assert torch.equal(draws["z"], means["z"])
    torch.testing.assert_close(means["x"], means["z"] + c)
    assert torch.equal(sample(model, 4, c, seed=2, site="x"), draws["x"])  # nothing but the number of rows is needed


def test_moments_of_samples_are_the_models():
    """Means of 4,000 sequences' last steps, within 4 standard errors of the Kalman model's; those of first steps are not."""
    n = 4000
    drawn = sample(pair_of(plane()), n, like=X[:1], seed=1)
    mean, cov = PLANE.m, PLANE.p
    for _ in range(X.shape[1] - 1):
        mean, cov = PLANE.a @ mean, PLANE.a @ cov @ PLANE.a.T + PLANE.q
    se = ((PLANE.c @ cov @ PLANE.c.T + PLANE.r).diagonal() / n).sqrt()
    off = lambda x: ((x.mean(0) - PLANE.c @ mean).abs() / se).max()  # noqa: E731
    assert off(drawn["x_5"]) < 4 < off(drawn["x_1"])


def test_a_mask_leaves_out_what_is_beyond_the_end():
    drawn = sample(pair_of(plane()), 4, LENGTHS, like=X)
    there = torch.stack([~drawn[f"x_{t + 1}"].isnan().any(-1) for t in range(5)], 1)
    assert torch.equal(there, torch.arange(5) < LENGTHS[:, None])
    assert torch.equal(drawn["z_2"].isnan().all(-1), LENGTHS < 2)
    codes = encode(
        hidden_markov().guide, X[..., 0], LENGTHS, num_samples=2
    )  # whole numbers, with NaN where there is none
    assert torch.equal(codes["z_5"].isnan(), (LENGTHS < 5).expand(2, -1))


# --- classes --------------------------------------------------------------------------------------------------------------


def test_labels_that_are_known_leave_a_mean():
    """Given all labels nothing is left to draw but z, E[z | x, y] in closed form; without, q(y | x) has no mean."""
    m2, (x, _, y) = labelled(), rows(5)
    exact = exact_parts()[1](x, torch.eye(3)[y]).mean
    torch.testing.assert_close(encode(pair_of(m2), x, y, site="z"), exact)
    torch.testing.assert_close(reconstruct(pair_of(m2), x, y, site="x"), exact @ A.T + B[y])
    with pytest.raises(ProgramError, match=r"site 'y_unobserved' .* has no mean in closed form"):
        encode(pair_of(m2), x, torch.full((5,), -1))
    with pytest.raises(ProgramError, match=r"site 'y' .* has no mean in closed form.*num_samples"):
        encode(pair_of(m2), x)
    assert set(encode(pair_of(m2), x, num_samples=3)) == {"y", "z"}


def test_a_class_beside_z_is_in_the_prior_of_a_mixture():
    vae, (x, *_) = mixed(), rows(5)
    assert isinstance(vae, GMVAE) and encode(vae, x).shape == (5, 2)
    drawn = sample(vae.model, 300, seed=1)
    for y in range(3):
        z = drawn["z"][drawn["y"] == y]
        assert ((z.mean(0) - CENTRES[y]).abs() < 4 / len(z) ** 0.5).all()
    with pytest.raises(ProgramError, match="latent site 'y' is in the model but not in the guide"):
        reconstruct(pair_of(vae), x)


def test_a_discrete_mean_is_no_value_to_go_on_from():
    def guide(x):
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.Bernoulli(torch.sigmoid(x)))
            pyro.sample("z", dist.Normal(2 * s - 1, 1.0))

    with pytest.raises(ProgramError, match=r"site 's' of the guide.* is discrete.*'z' is drawn after it"):
        encode(guide, torch.zeros(3))


# --- missing values, structures -------------------------------------------------------------------------------------------


def test_gaps_beside_ragged_ends_are_no_gaps_of_the_code():
    x, lengths = ragged(PLANE.draw(3, 4), [4, 4, 2], [(0, 1), (2, 0)])
    model = plane(missing=True)
    codes = encode(model, x, lengths)
    assert [codes[f"z_{t}"].isnan().any(-1).tolist() for t in (1, 2, 3, 4)] == [[False] * 3] * 2 + [
        [False, False, True]
    ] * 2
    draws = encode(model, x, lengths, num_samples=2)
    assert torch.equal(draws["z_4"].isnan().any(-1), torch.tensor([[False, False, True]] * 2))


def test_gaps_are_taken_by_what_takes_them_and_refused_by_others(gappy):
    """E[z | x_obs] in closed form, by the class and by its programs; a guide that makes NaN of NaN has no code."""
    vae = gappy.vae(gappy.exact)
    exact = gappy.exact(gappy.gaps).mean
    torch.testing.assert_close(encode(vae, gappy.gaps), exact)
    torch.testing.assert_close(encode(pair_of(vae), gappy.gaps), {"z": exact})
    torch.testing.assert_close(reconstruct(pair_of(vae), gappy.gaps)["x"], gappy.mean + exact @ gappy.a)
    with pytest.raises(DataError, match="x has NaN"):
        encode(half, gappy.gaps[:, 0])
    for use in (encode, reconstruct):
        with pytest.raises(ProgramError, match="where x has missing values"):
            use((vae.model, half), gappy.gaps[:, 0])
    for swap in (1, -1):  # whichever end has them
        with pytest.raises(ProgramError, match="where x has missing values"):
            interpolate((vae.model, half), *(gappy.gaps[:, 0], gappy.gaps[:, 0].nan_to_num(0.0))[::swap])


def test_several_arrays_are_encoded():
    def guide(x):
        with pyro.plate("data", len(x["a"])):
            pyro.sample("z", dist.Normal(x["a"] + x["b"], 1.0))

    x = {"a": torch.ones(3), "b": torch.arange(3.0)}
    assert encode(guide, x)["z"].tolist() == [1.0, 2.0, 3.0]


# --- refused by name ------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """x_t given the x_{t−1} that was observed: no distribution of x given z alone."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z, before = pyro.sample("z", dist.Normal(0.0, 1.0)), 0.0
            for t in range(3):
                before = pyro.sample(f"x_{t}", dist.Normal(z + 0.5 * before, 1.0), obs=x[:, t])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1), 1.0))


def reads_x(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + x.mean(), 1.0), obs=x)


def half(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


def on_sphere(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.ProjectedNormal(torch.zeros(2)))
        pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x)


def to_sphere(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(torch.stack([x.cos(), x.sin()], -1), event_dim=1))


R = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
V = R[:, 0]
WRONG = {
    "reads-x": (lambda: reconstruct((reads_x, half), V), ProgramError, "site 'x': its distribution given the latents"),
    "draws-of-what-reads-x": (
        lambda: reconstruct((reads_x, half), V, num_samples=2),
        ProgramError,
        "site 'x': the model draws another value",
    ),
    "autoregressive": (lambda: reconstruct(Recurrent(), R), ProgramError, "site 'x_1': its distribution given the latents"),
    "line-of-what-reads-x": (lambda: interpolate((reads_x, half), V, V + 1), ProgramError, "site 'x': its distribution"),
    "samples-of-what-reads-x": (lambda: sample(reads_x, 4, like=V), ProgramError, "site 'x': the model draws another value"),
    "rows-unknown": (lambda: sample(plane().model, 3), UsageError, r"like=x"),
    "rows-read": (lambda: sample(reads_x, 3), UsageError, r"site 'x': this model takes more of x"),
    "no-such-latent": (lambda: encode(half, V, site="y"), UsageError, "site 'y' is no latent site of the guide"),
    "no-such-data": (lambda: reconstruct((gaussian, half), V, site="z"), UsageError, "site 'z' is no observed site"),
    "no-such-site": (lambda: sample(gaussian, 3, site="w"), UsageError, "site 'w' is no site of the model"),
    "guide-alone": (lambda: reconstruct(half, V), UsageError, "wanted a model and a guide"),
    "sphere": (lambda: interpolate((on_sphere, to_sphere), V, V + 1), ProgramError, "site 'z': the line .* leaves"),
    "nothing-observed": (lambda: sample(half, 4, like=V), ProgramError, "observe"),
    "no-program": (lambda: encode(3, V), ProgramError, "a int is no Pyro program"),
    "contexts": (lambda: encode(of_context()[1], V, V[:2]), ShapeError, "x has 4 rows, context 0 has 2"),
    "context-of-samples": (lambda: sample(of_context()[0], 3, V), UsageError, "3 samples need a context of as many rows"),
    "no-draws": (lambda: encode(half, V, num_samples=0), UsageError, "num_samples must be at least 1"),
    "ends": (lambda: interpolate((gaussian, half), V, V[:2]), UsageError, "as many rows, got 4 and 2"),
    "heavy-tails": (
        lambda: encode(lambda x: pyro.sample("z", dist.Cauchy(x, 1.0).to_event(1)), V),
        ProgramError,
        "site 'z' .* a .* has no mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("use", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_has_no_meaning_is_refused_by_name(use, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        use()


def test_draws_of_an_autoregressive_model_are_had():
    """Each x_t follows from the x_{t−1} that was drawn, not from the one that was given."""
    found = reconstruct(Recurrent(), R, num_samples=2, seed=1)
    assert torch.equal(found["x_2"], reconstruct(Recurrent(), R, num_samples=2, seed=1)["x_2"])
    assert not torch.equal(found["x_2"][0], R[:, 2])


def test_nothing_is_changed(lg):
    net = nn.Sequential(nn.Linear(5, 2), nn.Dropout()).to(lg.x).train()
    state, store = torch.get_rng_state(), len(pyro.get_param_store())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    first = encode(guide, lg.x)["z"]
    assert torch.equal(first, encode(guide, lg.x)["z"]) and net.training and not first.requires_grad
    sample(lg.model, 3, seed=1), reconstruct((lg.model, guide), lg.x, num_samples=2)
    assert torch.equal(torch.get_rng_state(), state) and len(pyro.get_param_store()) == store


# --- broken variants ------------------------------------------------------------------------------------------------------


def test_draws_in_the_place_of_means_are_not_the_posteriors(lg, monkeypatch):
    monkeypatch.setattr(AtMeans, "_pyro_sample", lambda self, msg: None)
    with pytest.raises(AssertionError):
        test_codes_of_a_pair_are_its_exact_posterior_means(lg)


def test_a_decoder_that_is_not_checked_hands_out_what_follows_from_the_data(monkeypatch):
    monkeypatch.setattr(usage, "check_decoder", lambda *_: None)
    first, other = (reconstruct((reads_x, half), V + shift)["x"] - (V + shift) / 2 for shift in (0.0, 5.0))
    assert not torch.allclose(first, other)  # E[x | z] is another for another batch


FACTORS = {
    "of z": lambda z: pyro.factor("f", -0.5 * z**2),
    "none": lambda z: pyro.factor("f", torch.zeros_like(z)),  # nobody can tell by its class
    "masked": lambda z: poutine.mask(pyro.factor, mask=z > 0)("f", z),
    "Unit": lambda z: pyro.sample("f", pyro.distributions.Unit(z), obs=z.new_zeros(len(z), 0)),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_model_with_a_factor_is_not_sampled(name):
    """exp(-z²/2) beside N(0, 1): z of the model has variance 1/2 before x is seen, and draws of N(0, 1) have 1."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)
            FACTORS[name](z)

    with pytest.raises(ProgramError, match=r"site 'f' of the model is a pyro\.factor.*hide=\['f'\]"):
        sample(model, 10)
    assert sample(poutine.block(model, hide=["f"]), 10, site="x").shape == (10,)


def conditioned(value):
    """z ~ N(0, 1), x ~ N(z, 1), with z observed whatever x is."""
    return poutine.condition(gaussian, data={"z": value})


def test_what_a_model_observes_whatever_x_is_stays_as_it_is():
    """Undone, the condition would be gone, and x about 0."""
    for model in (conditioned(torch.tensor(100.0)), conditioned(torch.full((10,), 100.0))):
        drawn = sample(model, 10)
        assert (drawn["z"] == 100).all() and ((drawn["x"] - 100).abs() < 5).all()
        assert (sample(model, 10, mean=True)["x"] == 100).all()
    assert (sample(gaussian, 10, site="x").abs() < 5).all()


def after_z(name, density):
    """Something beside x, observed as 1, given z."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample(name, density(z), obs=torch.ones(len(x)))

    return model


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (after_z("c", lambda z: dist.Bernoulli(logits=9 * z)), "c"),
        (after_z("y", lambda z: dist.Normal(z, 0.1)), "y"),
        (lambda x: gaussian(torch.zeros(10)), "x"),
    ],
    ids=["event", "measurement", "all-of-x"],
)
def test_what_it_observes_given_latents_is_no_condition_that_running_it_meets(model, name):
    with pytest.raises(ProgramError, match=f"site '{name}' observes the same whatever x is .* of a posterior"):
        sample(model, 10)


def test_a_latent_that_do_sets_is_no_draw_of_its_prior():
    model = poutine.do(gaussian, data={"z": torch.tensor(100.0)})
    for use in (
        lambda: sample(model, 10),
        lambda: simulate(model, V),
        lambda: prior_predictive_check(model, V, num_draws=2),
    ):
        with pytest.raises(ProgramError, match=r"site 'z' of the model is set by poutine\.do.*hide=\['z'\]"):
            use()
    hidden = poutine.block(model, hide=["z"])
    assert ((sample(hidden, 10)["x"] - 100).abs() < 5).all() and ((simulate(hidden, V).x - 100).abs() < 5).all()
