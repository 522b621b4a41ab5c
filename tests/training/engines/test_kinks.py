"""A ReLU at 0, which rounding puts on one side in eager's step and on the other in a graph's, is no other step."""

from functools import partial

import pytest
import torch

from pyro_vae import binarize
from pyro_vae import fit as fit_
from pyro_vae.training.engines.traced import TracedEngine
from pyro_vae.training.engines.verify import is_kink, parts_of_rows
from tests.helpers.environment import HEAVY
from tests.helpers.small import small_vae
from tests.helpers.whole_steps import grey

pytestmark = pytest.mark.usefixtures("examined")
fit = partial(fit_, verbose=False, epochs=3, batch_size=8, seed=5)
EACH, ONE, LOSS = "each row's gradient", "one row's gradient", "one row's loss"

ALL = [(ONE, True), (LOSS, False), (EACH, False)]  # and whether the graph stays
KINDS = {"trace": ALL[::2], "graph": ALL[:2], "single": ALL[::2], "shards": ALL[:2]}  # of each way one that stays
KINDS = dict.fromkeys(KINDS, ALL) if HEAVY else KINDS


def with_kinks():
    """Rows of which one in six is all 1: some in almost every batch, and none in some half or quarter of it."""
    x = grey().round()
    x[(x == 1).all(1)] = 0.0
    x[::6] = 1.0
    return x


@pytest.fixture
def kinks(monkeypatch):
    """Have eager's step differ, from the second epoch on."""
    met = []

    def use(what):
        run, began = TracedEngine.run_eager, []

        def with_kink(self, batch):
            loss, gradients = run(self, batch)
            met.append(began and (batch[0] == 1).all(1).any())
            if began and (what == EACH or (batch[0] == 1).all(1).any()):
                if what == LOSS:
                    return loss * 1.01, gradients
                for p in self.step.parameters:
                    p.grad = p.grad * 1.01
            return loss, [p.grad for p in self.step.parameters]

        monkeypatch.setattr(TracedEngine, "run_eager", with_kink)
        return began.append

    yield use
    assert any(met)


@pytest.mark.parametrize(("engine", "what", "stays"), [(e, *kind) for e in ("trace", "graph") for kind in KINDS[e]])
def test_a_graph_stays_where_rows_alone_differ(engine, what, stays, on_device, kinks):
    x = with_kinks()
    if engine == "graph":
        on_device()
    run = fit(small_vae(seed=0).double(), x, engine=engine, transform=binarize, on_epoch=kinks(what))
    refused = "traced anew" in run.engine or "eager from here on" in run.engine or "no whole steps" in run.engine
    assert refused != stays, run.engine


@pytest.mark.parametrize(("what", "stays"), KINDS["single"])
def test_so_it_does_in_single_steps(what, stays, kinks):
    """Under an optimizer that no whole step holds."""
    sgd = partial(torch.optim.SGD, lr=1e-3)
    run = fit(small_vae(seed=0).double(), with_kinks(), engine="trace", optimizer=sgd, on_epoch=kinks(what))
    assert ("traced anew" in run.engine or "eager from here on" in run.engine) != stays, run.engine


def test_the_run_is_the_one_without_kinks(on_device, kinks):
    """Looks at other rows leave nothing behind: neither weights, nor noise, nor the order."""
    x = with_kinks()
    weights = []
    for began in (lambda record: None, kinks(ONE)):
        on_device()
        vae = small_vae(seed=0).double()
        run = fit(vae, x[:-3], engine="graph", transform=binarize, on_epoch=began)  # an uneven batch would be eager's
        weights.append([p.clone() for p in vae.parameters()])
        assert "traced anew" not in run.engine
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize(("what", "stays"), KINDS["shards"])
def test_so_it_does_in_shards(what, stays, kinks):
    """All of which one graph goes on to compute: its bits are those of the graph of one, kink or not."""
    weights, told = [], []
    for began in (lambda record: None, kinks(what)):
        vae, x = small_vae(seed=0).double(), with_kinks().repeat(2, 1)[:64]
        run = fit(vae, x, engine="trace", batch_size=32, shards=2, transform=binarize, on_epoch=began)
        weights.append([p.clone() for p in vae.parameters()])
        told.append("one after the other" in run.engine)
    assert ("traced anew" in run.engine or "eager from here on" in run.engine) != stays, run.engine
    assert not stays or (all(map(torch.equal, *weights)) and told[0] == told[1])


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 13, 64])
def test_parts_are_of_as_many_rows_and_leave_each_out(rows):
    parts = list(parts_of_rows(rows))
    assert all(len(part) == rows and len(set(part.tolist())) < rows for part in parts)
    assert rows == 1 or all(any(row not in part.tolist() for part in parts) for row in range(rows))
    assert is_kink("its gradient is off by 0.1 of eager's") and not is_kink("its loss is 1") and not is_kink(None)
