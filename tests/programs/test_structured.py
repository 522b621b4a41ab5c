"""Rows in dicts, tuples and packed sequences give the numbers that the same programs give on plain tensors."""

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from pyro_vae import ais, bdmc, check, fit, gaps, log_likelihood, log_weights, simulate
from pyro_vae.data.structures import is_structure, lay_out
from pyro_vae.diagnostics.elbo_decomposition import decompose
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.diagnostics.predictive_checks import posterior_predictive_check
from pyro_vae.errors import DataError, ProgramError, ShapeError, UsageError
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.programs.structured import on_tensors
from tests.helpers.environment import HEAVY

N = 7
IMAGE = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(N, generator=torch.Generator().manual_seed(1))


class Views(NamedTuple):
    image: torch.Tensor
    text: torch.Tensor


class Two(nn.Module):
    """Two views of one latent; `take` gives them of x."""

    def __init__(self, take):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(1, 3)
        self.take = take

    def model(self, *args):
        pyro.module(f"decoder of {id(self)}", self.decoder)
        image, text = self.take(*args)
        with pyro.plate("data", len(image)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("image", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=image)
            pyro.sample("text", dist.Normal(z[..., 0], 0.5), obs=text)

    def guide(self, *args):
        pyro.module(f"encoder of {id(self)}", self.encoder)
        image, text = self.take(*args)
        loc, log_scale = self.encoder(torch.cat([image, text[:, None]], -1)).chunk(2, -1)
        with pyro.plate("data", len(image)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


FORMS = {
    "dict": ({"image": IMAGE, "text": TEXT}, lambda x: (x["image"], x["text"])),
    "dict of arrays": ({"text": TEXT.numpy(), "image": IMAGE.tolist()}, lambda x: (x["image"], x["text"])),
    "tuple": ((IMAGE, TEXT), lambda x: x),
    "named tuple": (Views(IMAGE, TEXT), lambda x: (x.image, x.text)),
    "nested": ({"views": Views(IMAGE, TEXT), "more": {}}, lambda x: (x["views"].image, x["views"].text)),
}
NUMBERS = {
    "log_likelihood": lambda m, g, *x: log_likelihood(m, g, *x, num_samples=9, verbose=False).log_px,
    "quadrature": lambda m, g, *x: quadrature(m, g, *x).log_px,
    "ais": lambda m, g, *x: ais(m, g, *x, num_temperatures=2, num_chains=2).log_px,
    "gaps": lambda m, g, *x: gaps(m, g, *x, num_samples=9, steps=2).log_px,
    "bdmc": lambda m, g, *x: bdmc(m, g, *x, num_temperatures=2, num_chains=2, step_size=0.5).gap,
    "decompose": lambda m, g, *x: torch.tensor(decompose(m, g, *x, num_samples=3).kl.value),
    "latents": lambda m, g, *x: latents(m, g, *x, num_samples=3).kl_per_unit,
}
PLAIN = Two(lambda image, text: (image, text))


@pytest.fixture(scope="module")
def right():
    return {name: number(PLAIN.model, PLAIN.guide, IMAGE, TEXT) for name, number in NUMBERS.items()}


LAID_OUT = ("dict of arrays", "nested")  # with all that the others have
LONG = ("ais", "bdmc", "quadrature")  # each form is laid out before any of these begins


@pytest.mark.parametrize(
    ("form", "number"), [(f, n) for f in FORMS for n in NUMBERS if HEAVY or n not in LONG or f in LAID_OUT]
)
def test_the_numbers_are_those_of_plain_tensors(form, number, right):
    (x, take), pair = FORMS[form], Two(FORMS[form][1])
    if number == "latents" and not all(isinstance(t, torch.Tensor) for t in take(x)):
        pytest.skip("latents takes tensors")
    assert torch.equal(NUMBERS[number](pair.model, pair.guide, x), right[number])


@pytest.mark.parametrize(("x", "take"), FORMS.values(), ids=FORMS)
def test_training_is_that_of_plain_tensors(x, take):
    pairs = [Two(take), Two(PLAIN.take)]
    histories = [
        fit(pair, *args, validation=args if len(args) > 1 else args[0], epochs=3, batch_size=3, verbose=False).history
        for pair, args in zip(pairs, [(x,), (IMAGE, TEXT)], strict=True)
    ]
    for epoch in (0, 2):
        one, other = (h[epoch] for h in histories)
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-5)
    for a, b in zip(pairs[0].parameters(), pairs[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_what_is_drawn_has_the_form_of_the_template():
    x, take = FORMS["named tuple"]
    drawn = simulate(Two(take).model, x, seed=3)
    plain = simulate(PLAIN.model, IMAGE, TEXT, seed=3)
    assert isinstance(drawn.x, Views)
    assert torch.equal(drawn.x.image, plain.args[0]) and torch.equal(drawn.x.text, plain.args[1])


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_check_and_log_weights_take_them(form):
    x, take = FORMS[form]
    pair = Two(take)
    assert check(pair.model, pair.guide, x).ok
    torch.manual_seed(0)
    one = log_weights(pair.model, pair.guide, x, num_particles=3)
    torch.manual_seed(0)
    assert torch.equal(one, log_weights(PLAIN.model, PLAIN.guide, IMAGE, TEXT, num_particles=3))


def test_a_context_may_be_a_dict():
    pair = Two(lambda image, c: (image, c["text"]))
    one = log_likelihood(pair.model, pair.guide, IMAGE, {"text": TEXT}, num_samples=4, verbose=False).log_px
    right = log_likelihood(PLAIN.model, PLAIN.guide, IMAGE, TEXT, num_samples=4, verbose=False).log_px
    assert torch.equal(one, right)
    fit(pair, IMAGE, {"text": TEXT}, validation=(IMAGE, {"text": TEXT}), epochs=1, verbose=False)


def test_whole_numbers_in_a_dict_reach_a_table():
    table = nn.Embedding(5, 1)
    labels = torch.arange(N) % 5

    def model(x):
        with pyro.plate("data", len(x["image"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x["image"])

    def guide(x):
        pyro.module(f"table {id(table)}", table)
        with pyro.plate("data", len(x["label"])):
            pyro.sample("z", dist.Normal(table(x["label"]), 1.0).to_event(1))

    for x in ({"image": IMAGE, "label": labels}, {"label": labels.numpy(), "image": IMAGE.numpy()}):
        assert log_likelihood(model, guide, x, num_samples=3, verbose=False).log_px.isfinite().all()
        fit((model, guide), x, epochs=1, verbose=False)


# packed sequences

SEQUENCES = [torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for n in (3, 5, 1, 4, 2)]


class Recurrent(nn.Module):
    """One latent a sequence, that a GRU reads; each entry is N(z, 1)."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.gru, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 2)

    def model(self, x):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        observed = (torch.arange(padded.shape[1]) < lengths[:, None])[..., None].expand(padded.shape)
        with pyro.plate("data", len(padded)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = z[..., None].expand(*z.shape[:-1], *padded.shape[1:])
            pyro.sample("x", dist.Normal(loc, 1.0).mask(observed).to_event(2), obs=padded)

    def guide(self, x):
        pyro.module(f"recurrent {id(self)}", self)
        _, h = self.gru(x)
        loc, log_scale = self.head(h[-1]).chunk(2, -1)
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def exact(sequence):
    n = sequence.numel()
    cov = torch.eye(n, dtype=torch.float64) + 1
    return dist.MultivariateNormal(torch.zeros(n, dtype=torch.float64), cov).log_prob(sequence.flatten().double())


def test_packed_sequences_score_each_row_by_itself():
    pair, packed = Recurrent(), pack_sequence(SEQUENCES, enforce_sorted=False)
    right = torch.stack([exact(s) for s in SEQUENCES])
    assert torch.allclose(quadrature(pair.model, pair.guide, packed).log_px.double(), right, atol=1e-4)
    result = log_likelihood(pair.model, pair.guide, packed, num_samples=4000, verbose=False)
    assert ((result.log_px - right).abs() < 4 * result.mc_se + 1e-4).all()


def test_packed_sequences_train():
    pair, packed = Recurrent(), pack_sequence(SEQUENCES, enforce_sorted=False)
    run = fit(pair, packed, validation=packed, epochs=5, batch_size=2, verbose=False)
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]
    assert check(pair.model, pair.guide, packed).ok


def test_a_packed_sequence_comes_back_as_it_was():
    packed = pack_sequence(SEQUENCES, enforce_sorted=False)
    layout, tensors = lay_out(packed, "x")
    again = layout.restore(tuple(tensors))
    assert isinstance(again, PackedSequence) and all(torch.equal(a, b) for a, b in zip(packed, again, strict=True))
    some = layout.restore(tuple(t[torch.tensor([1, 2])] for t in tensors))
    assert torch.equal(pad_packed_sequence(some, batch_first=True)[0][0], SEQUENCES[1])


# what is refused


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        ({"image": IMAGE, "text": TEXT[:3]}, ShapeError, r"x\['image'\] of 7 rows, x\['text'\] of 3 rows"),
        ({"image": IMAGE, "text": ["a"] * N}, DataError, r"x\['text'\].* wanted real numbers"),
        ({"image": IMAGE, "beta": 0.5}, ShapeError, r"x\['beta'\] is a single number"),
        ({"image": IMAGE, "text": TEXT / 0}, DataError, r"x\['text'\] has infinite values"),
        ({}, ShapeError, "holds nothing"),
    ],
    ids=["rows", "words", "number", "infinite", "nothing"],
)
def test_parts_that_are_no_rows_are_named(x, error, said):
    pair = Two(lambda x: (x["image"], x["text"]))
    for use in (
        lambda: log_likelihood(pair.model, pair.guide, x, verbose=False),
        lambda: fit(pair, x, epochs=1, verbose=False),
        lambda: simulate(pair.model, x),
    ):
        with pytest.raises(error, match=said):
            use()


def test_validation_rows_of_another_form_are_refused():
    x, take = FORMS["dict"]
    for other in ({"text": TEXT, "image": IMAGE}, {"image": IMAGE}, IMAGE, (IMAGE, TEXT)):
        with pytest.raises(UsageError, match="same keys in the same order"):
            fit(Two(take), x, validation=other, epochs=1, verbose=False)


def test_what_needs_one_array_says_so():
    x, take = FORMS["dict"]
    pair = Two(take)
    with pytest.raises(UsageError, match="a predictive check takes x as one array, and got a dict"):
        posterior_predictive_check(pair.model, pair.guide, x)
    with pytest.raises(UsageError, match="fit with a transform takes x as one array"):
        fit(pair, x, transform=lambda x, generator: x, epochs=1, verbose=False)


def test_lists_and_tuples_of_rows_are_rows_as_before():
    rows = [IMAGE[0].numpy(), IMAGE[1].numpy()]
    assert not is_structure(rows) and not is_structure(tuple(rows)) and not is_structure(((0, 1), (1, 0)))
    assert is_structure((IMAGE, TEXT)) and is_structure((IMAGE, {"text": TEXT})) and not is_structure((IMAGE, TEXT[:3]))
    model, guide, args = on_tensors(PLAIN.model, PLAIN.guide, IMAGE, TEXT)
    assert model == PLAIN.model and guide == PLAIN.guide and args == (IMAGE, TEXT)


def test_an_error_in_a_structured_program_is_its_own():
    pair = Two(lambda x: (x["image"], x["txt"]))
    with pytest.raises(KeyError, match="txt") as caught:
        log_likelihood(pair.model, pair.guide, {"image": IMAGE, "text": TEXT}, verbose=False)
    assert "the guide" in caught.value.__notes__[0]

    def writes(x):
        x["text"] += 1
        return x["image"], x["text"]

    pair = Two(writes)
    with pytest.raises(ProgramError, match="in place"):
        log_likelihood(pair.model, pair.guide, {"image": IMAGE.clone(), "text": TEXT.clone()}, verbose=False)
