"""ArviZ draws its plots of what Evidence and to_datatree hand it: on Python 3.11 and 3.12."""

import pytest
import torch

from pyro_vae import VAE, Conditional, StandardNormal, log_likelihood, normal, to_datatree
from pyro_vae.models.networks import MLP

try:
    import arviz_plots as azp
    import arviz_stats
except (ImportError, AttributeError) as error:  # AttributeError: its 0.8 beside matplotlib 3.11
    pytest.skip(f"no arviz-plots here that works: {error}", allow_module_level=True)

ROWS = 30


@pytest.fixture(scope="module")
def pairs():
    torch.manual_seed(0)
    posterior = Conditional(MLP(5, 4, (4,)), normal)
    return [VAE(StandardNormal(2), Conditional(MLP(2, 10, (width,)), normal), posterior) for width in (4, 8)]


@pytest.fixture(scope="module")
def x():
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def elpds(pairs, x):
    return [log_likelihood(p.model, p.guide, x, num_samples=200, verbose=False).to_elpd() for p in pairs]


@pytest.fixture(scope="module")
def tree(pairs, x):
    return to_datatree(pairs[0].model, pairs[0].guide, x, draws=50, num_samples=200, strict=False)


def test_khat_of_each_row_is_drawn(elpds, tmp_path):
    azp.plot_khat(elpds[0]).savefig(tmp_path / "khat.png")
    assert (tmp_path / "khat.png").stat().st_size > 1000


def test_models_are_compared_in_a_plot(elpds, tmp_path):
    table = arviz_stats.compare({"a": elpds[0], "b": elpds[1]})
    azp.plot_compare(table).savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["dist", "forest"])
def test_posterior_draws_of_some_rows_are_drawn(tree, kind, tmp_path):
    some = tree.isel(data=slice(0, 2))
    getattr(azp, f"plot_{kind}")(some, var_names=["z"]).savefig(tmp_path / "z.png")
    assert (tmp_path / "z.png").stat().st_size > 1000


def test_predictive_draws_are_drawn_beside_the_data(tree, tmp_path):
    azp.plot_ppc_dist(tree, kind="ecdf").savefig(tmp_path / "ppc.png")
    assert (tmp_path / "ppc.png").stat().st_size > 1000
