"""Errors of the user's own code: shown as they are, with program and site; shape advice only where shape is the matter."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    StandardNormal,
    ais,
    check,
    fit,
    log_likelihood,
    log_weights,
    normal,
    priors,
    simulate,
)
from pyro_vae.common.pyro_private import as_raised
from pyro_vae.errors import DataError, ProgramError, ShapeError
from pyro_vae.likelihoods import student_t
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.user_errors import GUIDE, MODEL, explained

ROWS = torch.linspace(-1, 1, 18).view(6, 3)


class TokenizerError(RuntimeError):
    """Made of two arguments, so that it cannot be made anew of its message."""

    def __init__(self, path, code):
        super().__init__(f"{path}: code {code}")
        self.code = code


def refuse_file(x):
    raise FileNotFoundError(2, "No such file or directory", "tokenizer.json")


def refuse_code(x):
    raise TokenizerError("tokenizer.json", 7)


def refuse_json(x):
    json.loads("{")


def refuse_key(x):
    return {}["vocabulary"]


def refuse_words(x):
    raise ValueError("tokenizer file missing")


class Net(nn.Module):
    """A linear layer, and something of the user's own before it."""

    def __init__(self, first, inputs=3, outputs=4):
        super().__init__()
        self.linear, self.first = nn.Linear(inputs, outputs), first

    def forward(self, x):
        self.first(x)
        return self.linear(x)


def with_encoder(net):
    return VAE(StandardNormal(2), Conditional(MLP(2, 6), normal), Conditional(net, normal))


def with_decoder(net):
    return VAE(StandardNormal(2), Conditional(net, normal), Conditional(MLP(3, 4), normal))


USES = {
    "fit": lambda v, x: fit(v, x, epochs=1, verbose=False),
    "log_weights": lambda v, x: log_weights(v.model, v.guide, x, num_particles=2),
    "log_likelihood": lambda v, x: log_likelihood(v.model, v.guide, x, num_samples=4, verbose=False),
    "ais": lambda v, x: ais(v.model, v.guide, x, num_temperatures=2, num_chains=1),
}
OWN = {
    "missing file": (refuse_file, FileNotFoundError),
    "two arguments": (refuse_code, TokenizerError),
    "bad json": (refuse_json, json.JSONDecodeError),
    "key": (refuse_key, KeyError),
    "value": (refuse_words, ValueError),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(("own", "kind"), OWN.values(), ids=OWN)
def test_an_own_error_of_the_encoder_leaves_as_it_came_with_a_note(use, own, kind):
    with pytest.raises(kind) as caught:
        use(with_encoder(Net(own)), ROWS)
    assert type(caught.value) is kind and "shape" not in str(caught.value).lower()
    (note,) = caught.value.__notes__
    assert note.startswith(f"raised in {GUIDE}, before its first site, on a row of shape (3,)") or "6 rows" in note


@pytest.mark.parametrize("own", ["two arguments", "key"])
def test_an_own_error_of_the_decoder_says_after_which_site(own):
    refuse, kind = OWN[own]
    vae = with_decoder(Net(refuse, 2, 6))
    for use in USES.values():
        with pytest.raises(kind) as caught:
            use(vae, ROWS)
        assert f"raised in {MODEL}, after site 'z'" in caught.value.__notes__[0]
    with pytest.raises(kind) as caught:
        simulate(vae.model, ROWS)
    assert "after site 'z'" in caught.value.__notes__[0]
    (finding,) = [f for f in check(vae.model, vae.guide, ROWS).findings if f.where == "model"]
    assert kind.__name__ in finding.what and "after site 'z'" in finding.what


def test_a_program_that_raises_on_its_second_call_says_so_itself():
    calls = []

    def count(x):
        calls.append(1)
        if len(calls) > 1:
            raise TokenizerError("cache", 2)

    vae = with_encoder(Net(count))
    for use in USES.values():
        calls.clear()
        with pytest.raises(TokenizerError, match="cache: code 2"):
            use(vae, ROWS)
            use(vae, ROWS)


class Cast(nn.Module):
    """A linear layer and what comes after it, which clashes."""

    def __init__(self, before=None, after=None):
        super().__init__()
        self.linear, self.before, self.after = nn.Linear(3, 4), before or (lambda x: x), after or (lambda h: h)

    def forward(self, x):
        return self.after(self.linear(self.before(x)))


KNOWN = {
    "double encoder": (Cast(after=lambda h: h.double()), ProgramError, "Use one dtype"),
    "half input": (Cast(before=lambda x: x.half()), ProgramError, "Use one dtype"),
    "other device": (Cast(before=lambda x: x.to("meta")), ProgramError, "Keep all of a program on one device"),
    "index of floats": (nn.Embedding(4, 4), ProgramError, "must be whole numbers"),
    "more columns": (nn.Linear(5, 4), ShapeError, "Give x the shape that it takes"),
    "view": (Cast(before=lambda x: x.view(-1, 5)), ShapeError, "Give x the shape that it takes"),
    "convolution": (nn.Conv2d(1, 4, 3), ShapeError, "Give x the shape that it takes"),
    "layer norm": (nn.LayerNorm(5), ShapeError, "Give x the shape that it takes"),
    "recurrent": (nn.GRU(5, 4), ShapeError, "Give x the shape that it takes"),
    "added": (Cast(before=lambda x: x + torch.zeros(4)), ShapeError, "Give x the shape that it takes"),
    "joined": (Cast(before=lambda x: torch.cat([x, x[:, 0]], -1)), ShapeError, "as many dimensions each"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(("net", "kind", "advice"), KNOWN.values(), ids=KNOWN)
def test_what_torch_says_is_quoted_whole_with_the_cause(net, kind, advice, use):
    with pytest.raises(kind, match=advice) as caught:
        use(with_encoder(net), ROWS)
    cause = caught.value.__cause__
    assert " ".join(str(cause).split()).rstrip(".") in str(caught.value) and "Trace Shapes" not in str(caught.value)
    if kind is not ShapeError:
        assert "shape that it takes" not in str(caught.value)


def test_reduced_precision_that_an_operation_does_not_have_is_named():
    vae = VAE(priors.StudentT(2), Conditional(MLP(2, 6), normal), Conditional(MLP(3, 4), student_t())).bfloat16()
    with pytest.raises(ProgramError, match=r"not implemented for 'BFloat16'.*fit\(\.\.\., precision=\"bf16\"\)"):
        fit(vae, ROWS.bfloat16(), epochs=1, verbose=False)


def test_an_index_beyond_its_table_is_named_with_the_numbers_given():
    table = nn.Embedding(4, 4)
    labels = torch.tensor([0, 1, 2, 9])
    with pytest.raises(DataError, match=r"index out of range in self.*go from 0 to 9"), explained(GUIDE, labels):
        table(labels)


# event dimensions and columns


class Images(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear = nn.Linear(2, math.prod(outputs))
        self.outputs = outputs

    def forward(self, z):
        return self.linear(z).unflatten(-1, self.outputs)


@pytest.mark.parametrize(
    ("event_dim", "row"), [(1, (1, 4, 8)), (2, (1, 4, 8)), (1, (3, 2, 4, 8))], ids=["vectors", "matrices", "videos"]
)
@pytest.mark.parametrize("use", [USES["fit"], USES["log_weights"]], ids=["fit", "log_weights"])
def test_an_image_decoder_is_told_its_event_dim(event_dim, row, use):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(row), 4))
    decoder = Images((*row[:-1], 2 * row[-1]))
    vae = VAE(StandardNormal(2), Conditional(decoder, normal, event_dim=event_dim), Conditional(encoder, normal))
    x = torch.zeros(5, *row)
    with pytest.raises((ShapeError, ProgramError), match=rf"\.to_event\({len(row) - event_dim}\)"):
        use(vae, x)
    vae.likelihood.event_dim = len(row)
    use(vae, x)


class Regression:
    """y given x and z, with a column or without."""

    def __init__(self, squeeze=False, event=False):
        self.net, self.squeeze, self.event = nn.Linear(2, 1), squeeze, event

    def model(self, y, c):
        pyro.module("net", self.net)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.net(z)
            fn = dist.Normal(loc.squeeze(-1) if self.squeeze else loc, 1.0)
            pyro.sample("y", fn.to_event(1) if self.event else fn, obs=y)

    def guide(self, y, c):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_labels_against_a_column_broadcast_and_are_named():
    y, c = torch.arange(6.0), torch.zeros(6, 1)
    wrong, right, column = Regression(), Regression(squeeze=True), Regression(event=True)
    with pytest.raises(ShapeError, match=r"\(N, 1\) against \(N,\) broadcasts to \(N, N\).*labels\[:, None\]"):
        log_likelihood(wrong.model, wrong.guide, y, c, verbose=False)
    log_likelihood(right.model, right.guide, y, c, num_samples=4, verbose=False)
    log_likelihood(column.model, column.guide, y[:, None], c, num_samples=4, verbose=False)
    with pytest.raises(ShapeError, match=r"obs=x\.reshape\(len\(x\)\)"):
        log_likelihood(right.model, right.guide, y[:, None], c, verbose=False)


@pytest.mark.parametrize(
    "use",
    [
        lambda model, guide: fit((model, guide), ROWS, epochs=1, verbose=False),
        lambda model, guide: log_weights(model, guide, ROWS),
        lambda model, guide: log_likelihood(model, guide, ROWS, num_samples=4, verbose=False),
    ],
    ids=["fit", "log_weights", "log_likelihood"],
)
def test_a_plate_that_draws_batches_of_its_own_is_told_who_draws_them(use):
    """As in Pyro's tutorial of SVI."""

    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1))
            pyro.sample("x", dist.Normal(z[:, None], 1).expand([2, x.shape[1]]).to_event(1), obs=x[rows])

    def guide(x):
        at = pyro.param("at", torch.tensor(0.0))
        with pyro.plate("data", len(x), subsample_size=2):
            pyro.sample("z", dist.Normal(at.expand(2), 1))

    with pytest.raises(ProgramError, match=r"(subsample_size does|Leave subsample_size).*batch_size="):
        use(model, guide)


def test_labels_without_a_column_are_named_where_they_are_joined():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.cat([z, y.expand(*z.shape[:-1], 1) if y.dim() > 1 else y], -1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ShapeError, match=r"context 0 has shape \(1,\).*labels\[:, None\]"):
        log_likelihood(model, guide, ROWS, torch.arange(6.0), verbose=False)
    log_likelihood(model, guide, ROWS, torch.arange(6.0)[:, None], num_samples=4, verbose=False)


# what is no distribution, and what writes into its arguments


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (None, "got NoneType"),
        (torch.zeros(3), "got Tensor"),
        (torch.distributions.Normal(0.0, 1.0), r"got Normal\. Fix: take Pyro's: pyro\.distributions\.Normal"),
        (lambda: torch.zeros(3), "got function"),
    ],
    ids=["none", "tensor", "torch distribution", "function"],
)
@pytest.mark.parametrize("role", ["prior", "likelihood", "posterior"])
def test_a_role_that_returns_no_distribution_is_named(fn, said, role):
    roles = {
        "prior": StandardNormal(2),
        "likelihood": Conditional(MLP(2, 6), normal),
        "posterior": Conditional(MLP(3, 4), normal),
    }
    vae = VAE(**(roles | {role: lambda *given: fn}))
    site = "x" if role == "likelihood" else "z"
    for use in USES.values():
        with pytest.raises(ProgramError, match=rf"site '{site}': wanted a Pyro distribution, {said}"):
            use(vae, ROWS)


WRITES = {
    "item": lambda x: x.__setitem__(0, 0.0),
    "clamp": lambda x: x.clamp_(0, 1),
    "added": lambda x: x.add_(1.0),
    "view": lambda x: x.view(-1).mul_(0.5),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("vae", [with_encoder, with_decoder], ids=["guide", "model"])
def test_a_program_that_writes_into_x_is_refused_and_x_is_as_it_was(write, vae):
    x = ROWS.clone()
    inner = vae(Net(lambda given: None, *((3, 4) if vae is with_encoder else (2, 6))))

    def writing(program):
        def run(x):
            write(x)
            return program(x)

        return run

    pair = (inner.model, writing(inner.guide)) if vae is with_encoder else (writing(inner.model), inner.guide)
    where = "the guide" if vae is with_encoder else "the model"
    for use in (
        lambda: fit(pair, x, epochs=1, verbose=False),
        lambda: log_likelihood(*pair, x, num_samples=4, verbose=False),
        lambda: ais(*pair, x, num_temperatures=2, num_chains=1),
    ):
        with pytest.raises(ProgramError, match=rf"{where}.* writes into x in place.*x = x\.clone\(\)"):
            use()
        assert torch.equal(x, ROWS)
    with pytest.raises(ProgramError, match="writes into x in place"):
        log_weights(*pair, x.clone())


def test_an_argument_within_a_dict_counts_as_well():
    batch = {"image": torch.zeros(3), "text": torch.zeros(3)}
    with pytest.raises(ProgramError, match="writes into x in place"), explained(MODEL, batch):
        batch["text"] += 1
    with pytest.raises(ProgramError, match="writes into context 0 in place"), explained(MODEL, ROWS, batch):
        batch["text"] += 1


def test_an_error_under_two_traces_is_unwrapped_to_the_first():
    first = TokenizerError("a", 1)

    def program():
        raise first

    with pytest.raises((TypeError, RuntimeError)) as caught:
        pyro.poutine.trace(pyro.poutine.trace(program)).get_trace()
    assert as_raised(caught.value) is first
    own = TypeError("of the user's own")
    assert as_raised(own) is own


def test_every_particle_run_is_explained():
    vae = with_encoder(Net(lambda x: None))
    problem = Problem.of(vae.model, vae.guide, ROWS, seed=0)
    vae.posterior.net.first = refuse_key
    with pytest.raises(KeyError) as caught, problem.quiet(0):
        problem.draw(3)
    assert caught.value.__notes__ == [f"raised in {GUIDE}, before its first site, on 6 rows of shape (3,)"]
