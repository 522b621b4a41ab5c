"""Whole numbers among the arguments: token ids reach an embedding as they are, counts and pixels reach a network as floats."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import check, fit, log_likelihood, log_weights, simulate
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.diagnostics.predictive_checks import posterior_predictive_check
from pyro_vae.errors import DataError
from pyro_vae.programs.arguments import argument_dtypes
from pyro_vae.programs.problem import rows_of

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.errors.DataConversionWarning")
TOKENS = torch.randint(0, 20, (12, 6), generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """p(z) N(0, 1), tokens of a vocabulary of 20; q reads them through an embedding."""

    def __init__(self, cast=lambda x: x):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.encoder, self.decoder = nn.Embedding(20, 8), nn.Linear(8, 4), nn.Linear(2, 20)
        self.cast = cast

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z).unsqueeze(-2).expand(*z.shape[:-1], x.shape[1], 20)
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("table", self.table)
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(self.table(self.cast(x)).mean(1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


FORMS = {
    "int64": TOKENS,
    "int32": TOKENS.int(),
    "uint8": TOKENS.byte(),
    "numpy": TOKENS.numpy(),
    "numpy uint16": TOKENS.numpy().astype(np.uint16),
    "lists": TOKENS.tolist(),
    "not contiguous": TOKENS.T.contiguous().T,
}


class Items:
    """A data set of rows."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return len(TOKENS)

    def __getitem__(self, i):
        self.reads += 1
        return TOKENS[i].numpy()


@pytest.mark.parametrize("x", FORMS.values(), ids=FORMS)
def test_token_ids_score_as_a_program_that_casts_them_itself(x):
    plain, casting = Tokens(), Tokens(cast=lambda x: x.long())
    right = log_likelihood(casting.model, casting.guide, TOKENS.float(), num_samples=20, verbose=False).log_px
    assert torch.equal(log_likelihood(plain.model, plain.guide, x, num_samples=20, verbose=False).log_px, right)


def test_a_data_set_of_token_ids_is_read_once():
    plain, items = Tokens(), Items()
    assert rows_of(plain.model, plain.guide, items)[0].equal(TOKENS) and items.reads == len(items)


def test_token_ids_train_and_pass_through_every_evaluator():
    pair = Tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(pair, TOKENS, validation=TOKENS.numpy(), epochs=3, batch_size=5, verbose=False, engine="trace")
        assert check(pair.model, pair.guide, TOKENS).ok
        latents(pair.model, pair.guide, TOKENS, num_samples=2)
        assert simulate(pair.model, TOKENS).x.dtype == torch.int64
        posterior_predictive_check(pair.model, pair.guide, TOKENS, num_draws=3)


def test_validation_rows_with_fractions_are_refused():
    with pytest.raises(DataError, match=r"validation x holds fractions.*1 of 12 rows: 3 .* first in column 1"):
        broken = TOKENS.float()
        broken[3, 1] = 0.5
        fit(Tokens(), TOKENS, validation=broken, epochs=1, verbose=False)


# who gets floats


def pair_of(likelihood, encode):
    """A pair of one latent a row, with this likelihood and encoder of x (and contexts)."""

    def model(x, *c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", likelihood(z, *c).to_event(1), obs=x)

    def guide(x, *c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x, *c), 0.7).to_event(1))

    return model, guide


def counts(z, *c):
    return dist.Poisson(z.exp().expand(*z.shape[:-1], 3))


def bits(z, *c):
    return dist.Bernoulli(logits=z.expand(*z.shape[:-1], 3))


LINEAR, TABLE = nn.Linear(3, 1), nn.Embedding(5, 1)
ONE = nn.Linear(1, 1)
X = torch.tensor([[0, 1, 2], [3, 0, 1], [1, 1, 4]])
LABELS = torch.tensor([0, 4, 2])
CHOSEN = {
    "a linear layer": (counts, LINEAR, X, None),
    "a Bernoulli": (bits, lambda x: TABLE(x.long()).mean(-2), X % 2, None),
    "either": (counts, lambda x: x[:, :1] / 2, X, None),
    "an embedding": (counts, lambda x: TABLE(x).mean(-2), X, torch.int64),
    "booleans in an embedding": (lambda z: dist.Categorical(logits=z.expand(*z.shape[:-1], 3)[..., None] * torch.ones(2)),
                                 lambda x: TABLE(x).mean(-2), X > 0, torch.int64),
    "a filled template": (counts, lambda x: torch.full_like(x[:, :1], 0.5) + 0.0, X, torch.int64),
    "large numbers": (counts, lambda x: TABLE(x.long() % 5).mean(-2), X + 2**24, torch.int64),
    "floats": (counts, LINEAR, X.float(), None),
}  # fmt: skip


@pytest.mark.parametrize(("likelihood", "encode", "x", "dtype"), CHOSEN.values(), ids=CHOSEN)
def test_whole_numbers_stay_whole_only_where_the_programs_mean_them_so(likelihood, encode, x, dtype):
    model, guide = pair_of(likelihood, encode)
    assert argument_dtypes(model, guide, x) == (None if dtype is None else (dtype,))
    (rows,) = rows_of(model, guide, x)
    assert rows.dtype == (dtype or torch.float32)
    assert log_likelihood(model, guide, x, num_samples=3, verbose=False).log_px.isfinite().all()


def test_counts_score_as_floats_do_to_the_bit():
    model, guide = pair_of(counts, lambda x: x[:, :1].sqrt() / 2)
    whole, floats = (log_likelihood(model, guide, x, num_samples=5, verbose=False).log_px for x in (X, X.float()))
    assert torch.equal(whole, floats)


def test_where_floats_and_whole_numbers_differ_the_numbers_are_those_of_log_weights():
    model, _ = pair_of(counts, None)

    def prior_of_integers(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full_like(x[:, :1], 0.5) + 0.0, 1.0).to_event(1))

    args = rows_of(model, prior_of_integers, X)
    assert args[0].dtype == torch.int64
    numbers = []
    for x in (args[0], X):
        torch.manual_seed(0)
        with torch.no_grad():
            numbers.append(log_weights(model, prior_of_integers, x))
    assert torch.equal(*numbers)


CONTEXTS = {
    "both as floats": (lambda x, c: LINEAR(x) + ONE(c[..., None]), (torch.float32, torch.float32), X),
    "labels in a table": (lambda x, c: LINEAR(x) + TABLE(c), (None, None), X),
    "both in tables": (lambda x, c: TABLE(x).mean(-2) + TABLE(c), (torch.int64, None), X),
    "x of floats": (lambda x, c: LINEAR(x) + TABLE(c), (None, None), X.float()),
    "x of floats, a label of floats": (lambda x, c: LINEAR(x) + ONE(c[:, None]), (torch.float32, torch.float32), X.float()),
}  # fmt: skip


@pytest.mark.parametrize(("encode", "dtypes", "x"), CONTEXTS.values(), ids=CONTEXTS)
def test_labels_are_tried_beside_x(encode, dtypes, x):
    model, guide = pair_of(counts, encode)
    assert argument_dtypes(model, guide, x, LABELS) in (dtypes, None if not any(dtypes) else dtypes)
    log_likelihood(model, guide, x, LABELS, num_samples=3, verbose=False)


def test_a_trial_leaves_no_trace_and_floats_are_not_tried():
    calls = []

    def encode(x):
        calls.append(x.dtype)
        return TABLE(x).mean(-2) + pyro.param("shift", torch.zeros(1))

    model, guide = pair_of(counts, encode)
    pyro.clear_param_store()
    before = torch.get_rng_state()
    argument_dtypes(model, guide, X)
    assert torch.equal(torch.get_rng_state(), before) and "shift" not in pyro.get_param_store() and calls
    calls.clear()
    argument_dtypes(model, guide, X.float())
    assert calls == []


def test_a_pair_that_runs_on_nothing_says_so_on_the_default():
    def crash(x):
        raise FileNotFoundError("vocabulary.txt")

    model, guide = pair_of(counts, crash)
    assert argument_dtypes(model, guide, X) is None
    with pytest.raises(FileNotFoundError, match="vocabulary"):
        log_likelihood(model, guide, X, verbose=False)


@pytest.mark.parametrize(
    ("likelihood", "dtype"),
    [(counts, torch.int64), (bits, torch.float32), (lambda z: dist.Normal(z.expand(*z.shape[:-1], 3), 1.0), torch.float32)],
    ids=["counts", "bits", "reals"],
)  # fmt: skip
def test_a_template_of_whole_numbers_is_drawn_as_such_where_the_model_draws_them(likelihood, dtype):
    model, _ = pair_of(likelihood, lambda x: TABLE(x.clamp(0, 4).long()).mean(-2))
    drawn = simulate(model, X % 2).x
    assert drawn.dtype == dtype
    assert drawn.equal(simulate(model, (X % 2).float()).x.to(dtype))


class HalfInside(nn.Module):
    """x | z ~ N(z + b, 1), b = 1/2 in half precision; each weight of the guide is p(x)."""

    def __init__(self, dtype):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.slope = nn.Parameter(torch.tensor(0.5))

    def model(self, x, count=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + self.shift.float(), 1.0), obs=x)
            if count is not None:
                pyro.sample("count", dist.Poisson(300.0), obs=count.float())

    def guide(self, x, count=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - self.shift.float()) * self.slope, 0.5**0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x", [torch.tensor([1.2, 300.7, -3.1]), torch.tensor([1, 301, 4097])], ids=["floats", "whole"])
def test_layers_in_half_precision_that_cast_do_not_round_the_data(dtype, x):
    vae, count = HalfInside(dtype), torch.tensor([299, 301, 257])
    exact = dist.Normal(0.5, 2**0.5).log_prob(x.double())
    assert torch.allclose(log_likelihood(vae.model, vae.guide, x, num_samples=2).log_px, exact, rtol=1e-5)
    found = log_likelihood(vae.model, vae.guide, x, count, num_samples=2).log_px
    assert torch.allclose(found, exact + dist.Poisson(300.0).log_prob(count.double()), rtol=1e-5)
