"""A word on the scale of x, where it is far from that which networks start at: by `check`, and before training."""

import copy
import re

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, check, fit, normal
from pyro_vae.likelihoods import log_normal, poisson
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.programs.data_scale import odd_columns, scale_findings
from tests.helpers.small import binary, small_vae

real = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))


def note(x, vae=None):
    vae = vae or small_vae(likelihood=normal, features=2)
    return [finding.line for finding in scale_findings(vae.model, vae.guide, (x,)) if finding.kind == "scale"]


def with_column(values):
    x = real.clone()
    x[:, 2] = values
    return x


TOLD = {
    "large": (1e3 * real, r"columns 0 \(mean .*\), 1 .*6 in all\) of x are out of scale.*standardize=True"),
    "small": (1e-4 * real, "of x are out of scale"),
    "far": (real + 1e4, "of x are out of scale"),
    "one": (with_column(1e6 * real[:, 2]), r"column 2 \(mean .*, std [\d.e+]*\) of x is out of scale"),
    "years": (with_column(1990 + real[:, 2]), r"column 2 \(mean 1\.99e\+03"),
}
SILENT = {
    "standard": real,
    "constant": with_column(1e6),
    "tens": 10 * real + 5,
    "pixels": real.sigmoid(),
}


@pytest.mark.parametrize("kind", TOLD)
def test_columns_out_of_scale_are_named(kind):
    (said,) = note(TOLD[kind][0])
    assert said.startswith("site 'x': ") and re.search(TOLD[kind][1], said), said


@pytest.mark.parametrize("kind", SILENT)
def test_nothing_is_said_of_columns_in_scale(kind):
    assert note(SILENT[kind]) == []


def test_nothing_is_said_of_counts_and_positive_numbers():
    counts = torch.poisson(torch.full((50, 6), 1e4))
    assert note(counts, small_vae(likelihood=poisson)) == []
    assert note(counts + 1, small_vae(likelihood=log_normal, features=2)) == []
    assert note(binary(), small_vae(likelihood=bernoulli)) == []


def test_nothing_is_said_of_a_model_in_units_of_its_own():
    vae = small_vae(likelihood=normal, features=2)
    vae.standardize(1e3 * real)
    assert note(1e3 * real, vae) == []


def test_missing_values_are_left_out():
    x = 1e3 * real
    x[::2, 0] = torch.nan
    vae = VAE(
        StandardNormal(2), SkipMissing(Conditional(MLP(2, 12), normal)), Conditional(WithMask(MLP(12, 4)), normal)
    )
    assert "column" in note(x, vae)[0] and "nan" not in note(x, vae)[0]


def test_programs_that_raise_are_left_to_training():
    assert scale_findings(lambda x: 1 / 0, lambda x: None, (real,)) == []


def test_fit_prints_it_once_and_warns_of_it(capsys):
    x, vae = 1e3 * real, small_vae(likelihood=normal, features=2)
    assert "out of scale" in fit(copy.deepcopy(vae), x, epochs=1, verbose=False).warnings[0]
    fit(copy.deepcopy(vae), x, epochs=1)
    assert capsys.readouterr().err.count("out of scale") == 1
    assert fit(vae, x, epochs=1, standardize=True).warnings == []
    assert "out of scale" not in capsys.readouterr().err


def test_check_warns_of_it():
    vae = small_vae(likelihood=normal, features=2)
    (finding,) = [f for f in check(vae.model, vae.guide, 1e3 * real).findings if f.kind == "scale"]
    assert finding.level == "warning" and "standardize=True" in finding.fix
    assert check(vae.model, vae.guide, real).findings == ()


def test_few_rows_say_little_of_scale():
    vae = small_vae(likelihood=normal, features=2)
    assert not [f for f in check(vae.model, vae.guide, 1e3 * real[:15]).findings if f.kind == "scale"]


def test_of_programs_by_hand_it_says_what_they_can_do():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    (said,) = scale_findings(model, guide, (1e3 * real,))
    assert "standardize x, and count the Jacobian" in said.fix and "fit(" not in said.fix


def test_a_column_of_nothing_is_no_column():
    assert odd_columns(torch.full((5, 1), torch.nan).double()) == ""
    assert odd_columns(dist.Normal(0.0, 1e3).sample((100, 1)).double()) != ""
