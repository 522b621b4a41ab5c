"""Which entries of x a model observes where: every way of observing x unchanged is found, any other is refused by name."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine

from pyro_vae.errors import ProgramError, ShapeError
from pyro_vae.programs import data_map as data_maps
from pyro_vae.programs import index_map as index_maps
from pyro_vae.programs.data_map import data_map
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.simulate import simulate
from tests.helpers.observed_parts import COV, MEAN, PARTS, SD, D, latent, likelihood, plated

NONE = "observes none of the arguments as it is"
READS = "reads the data's values"


def found(model, *args):
    with quiet(model):
        return data_map(model, args)[0]


@pytest.mark.parametrize("name", PARTS)
def test_all_parts_are_drawn_from_the_joint(name):
    """Mean 3 j within 4 √(c_jj / N), covariance C = diag(s²) + 1 within 4 √((c_ii c_jj + c_ij²) / N), N = 20,000."""
    model, _, shape = PARTS[name]
    x = simulate(model, torch.zeros(20_000, *shape), seed=1).x.reshape(-1, D)
    variances = COV.diagonal()
    assert ((x.mean(0) - MEAN).abs() < 4 * (variances / 20_000).sqrt()).all()
    se = ((variances[:, None] * variances + COV.square()) / 20_000).sqrt()
    assert ((x.T.cov() - COV).abs() < 4 * se).all()
    if name != "exclusive masks":  # z and x belong together
        z = simulate(model, torch.zeros(20_000, *shape), seed=1).latents["z"].reshape(-1, 1)
        assert (((x - MEAN - z) / SD).square().mean(0) - 1).abs().max() < 4 * (2 / 20_000) ** 0.5


def test_columns_in_the_wrong_order_would_be_seen(monkeypatch):
    """The broken variant that numbers entries in reverse."""
    monkeypatch.setattr(index_maps, "decoded", lambda run, args, i, names, numbers, base, unit: dict.fromkeys(
        names, (args[i].numel() - 1 - numbers).reshape(args[i].shape)))  # fmt: skip
    monkeypatch.setattr(data_maps, "check_alike", lambda *_: set())
    model, _, shape = PARTS["backwards"]
    with pytest.raises(ProgramError, match="do not observe the rows of x"):
        simulate(model, torch.zeros(20, *shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_more_entries_than_a_number_of_the_dtype_holds(dtype):
    """3,000 entries: half precision has 1,024 positions between 0 and 1, bfloat16 128; the rest are further digits."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("left", dist.Bernoulli(torch.full((len(x), 60), 0.5)).to_event(1), obs=x[:, :60].flip(-1))
            pyro.sample("right", dist.Bernoulli(torch.full((len(x), 40), 0.5)).to_event(1), obs=x[:, 60:])

    known = found(model, torch.zeros(30, 100, dtype=dtype))
    assert torch.equal(known.sites["left"].of_row, torch.arange(60).flip(0)) and not known.unmapped
    assert torch.equal(known.sites["right"].of_row, torch.arange(60, 100))


@pytest.mark.parametrize(
    "y",
    [
        torch.zeros(300, 2, dtype=torch.int64),
        torch.zeros(300, 2, dtype=torch.bool),
        torch.zeros(300, 2, dtype=torch.uint8),
    ],
    ids=["int64", "bool", "uint8"],
)
def test_labels_are_mapped(y):
    """Parts of a label of whole numbers, converted to the float that the density takes."""

    def model(x, y):
        with plated(x):
            b = pyro.sample("b", dist.Bernoulli(torch.full((len(x),), 0.3)), obs=y[:, 1].float())
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.8])), obs=y[:, 0].long())
            pyro.sample("x", dist.Normal(10.0 * b + 100.0 * c, 1.0), obs=x)

    drawn = simulate(model, torch.zeros(300), y)
    assert drawn.args[1].dtype == y.dtype and drawn.args[1].shape == (300, 2)
    c, b = drawn.args[1].double().T
    assert ((drawn.x - 10 * b - 100 * c).abs() < 6).all() and 0 < b.mean() < c.mean() < 1


def guarded(x):
    """Runs on data in [0, 1] alone."""
    assert ((x >= 0) & (x <= 1)).all(), "pixels"
    with plated(x):
        pyro.sample("x", dist.Bernoulli(torch.full((len(x), 4), 0.5)).to_event(1), obs=x.reshape(-1, 4))


def looked_up(x, tokens):
    """A class that is looked up, by what pyro.sample returns; observed with one dimension less than it comes."""
    table = torch.arange(3.0) * 10
    with plated(x):
        t = pyro.sample("t", dist.Categorical(torch.ones(3)), obs=tokens.squeeze(-1))
        table[tokens]  # fails for numbers that are no class
        pyro.sample("x", dist.Normal(table[t], 1.0), obs=x)


def test_models_that_run_on_some_values_alone():
    assert simulate(guarded, torch.zeros(5, 2, 2)).x.shape == (5, 2, 2)
    drawn = simulate(looked_up, torch.zeros(200), torch.zeros(200, 1, dtype=torch.int64))
    assert ((drawn.x - 10 * drawn.args[1].squeeze(-1)).abs() < 6).all() and drawn.args[1].unique().tolist() == [0, 1, 2]


TRANSFORMED = {
    "scaled": lambda x: 2 * x,
    "negated": lambda x: -x,
    "logarithm": lambda x: (x.abs() + 1).log(),
    "noise added": lambda x: x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "binarized": lambda x: (x > 0.5).float(),
    "floor": torch.floor,
    "rounded": lambda x: x.round(decimals=2),
    "clamped": lambda x: x.clamp(0, 1),
    "one value clamped": lambda x: x.clamp(min=1e-6),
    "absolute": torch.abs,
    "half precision": lambda x: x.half().float(),
    "standardised": lambda x: x - x.mean(0),
    "sorted": lambda x: x.sort(-1).values,
    "summed": lambda x: x.cumsum(-1),
    "fixed": lambda x: torch.zeros(len(x), D),
    "mixed with data of its own": lambda x: torch.cat([x[:, :2], torch.zeros(len(x), 2)], -1),
    "one column repeated": lambda x: x[:, :1].expand(-1, D) + 0.0 * x,
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("template", ["zeros", "data"])
def test_what_is_transformed_is_no_map(name, template):
    x = torch.zeros(6, D) if template == "zeros" else torch.randn(6, D, generator=torch.Generator().manual_seed(0))

    def model(x):
        with plated(x):
            pyro.sample("x", likelihood(latent()), obs=TRANSFORMED[name](x))

    message = (
        "observes what another|observes some of its entries" if name == "one column repeated" else f"site 'x' {NONE}"
    )
    with pytest.raises(ProgramError, match=message):
        simulate(model, x)


def test_a_transform_that_positions_alone_do_not_show_is_caught_by_other_data(monkeypatch):
    """The broken variant that looks at positions alone takes a clamp to [0, 1] for x itself."""

    def model(x):
        with plated(x):
            pyro.sample("x", likelihood(latent()), obs=x.clamp(0, 1))

    assert found(model, torch.zeros(6, D)).unmapped == ("x",)
    monkeypatch.setattr(data_maps, "check_alike", lambda *_: set())
    assert "x" in found(model, torch.zeros(6, D)).sites


def unobserved(x):
    with plated(x):
        pyro.sample("x", likelihood(latent(), slice(3)), obs=x[:, :3])


def covariates(x):
    with plated(x):
        pyro.sample("x", likelihood(latent() + x[:, 3:], slice(3)), obs=x[:, :3])


def overlapping(x):
    with plated(x):
        pyro.sample("a", likelihood(latent(), slice(3)), obs=x[:, :3])
        pyro.sample("b", likelihood(torch.zeros(len(x), 1), slice(2, D)), obs=x[:, 2:])


def rolled(x):
    with plated(x):
        pyro.sample("x", likelihood(latent()), obs=x.roll(1, 0))


def upside_down(x):
    with plated(x):
        pyro.sample("x", likelihood(latent()), obs=x.flip(0))


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as i:
        pyro.sample("x", likelihood(latent()), obs=x[i])


def observed_and_fixed(x):
    with plated(x):
        pyro.sample("x", likelihood(latent()), obs=x)
        pyro.sample("prior sample size", dist.Normal(0.0, 1.0), obs=torch.zeros(len(x)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (unobserved, "entry 3 of each row at no site"),
        (covariates, "entry 3 of each row at no site"),
        (overlapping, "site 'b' observes what another site observes already .'a'; x, entry 2"),
        (rolled, "site 'x': its rows do not observe the rows of x"),
        (upside_down, "site 'x': its rows do not observe the rows of x"),
        (subsampled, f"site 'x' {NONE}|site 'x': its rows do not observe|entry 0 of each row"),
        (observed_and_fixed, f"site 'prior sample size' {NONE}"),
    ],
)
def test_parts_that_leave_x_open_are_refused(model, message):
    with pytest.raises(ProgramError, match=message):
        simulate(model, torch.zeros(6, D))


def test_a_part_of_another_shape_than_is_drawn():
    def model(x):
        with plated(x):
            pyro.sample("x", likelihood(latent()), obs=x[:, :2])

    with pytest.raises(ShapeError, match=r"site 'x' draws \(6, 4\) .* of which it observes \(6, 2\)"):
        simulate(model, torch.zeros(6, D))


def test_one_hot_of_a_label_is_no_label():
    def model(x, y):
        with plated(x):
            pyro.sample("y", dist.OneHotCategorical(torch.ones(3)), obs=F.one_hot(y, 3).float())
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ProgramError, match=f"site 'y' {NONE}"):
        simulate(model, torch.zeros(6), torch.zeros(6, dtype=torch.int64))


def test_the_map_is_of_a_row():
    """Found on 2 rows, it numbers the entries of any number of rows."""
    at = found(PARTS["transposed"][0], torch.zeros(2, D)).sites["x"]
    assert torch.equal(at.numbers(5).reshape(D, 5), torch.arange(5 * D).reshape(5, D).T)


def test_scaled_by_0_is_drawn_as_ever():
    """``poutine.scale`` weighs a loss; the distribution that x is drawn from is what it was."""
    model = PARTS["packed"][0]

    def scaled(x):
        with poutine.scale(scale=torch.zeros(())):
            model(x)

    assert torch.equal(simulate(scaled, torch.zeros(6, D)).x, simulate(model, torch.zeros(6, D)).x)
