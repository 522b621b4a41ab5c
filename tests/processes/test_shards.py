"""Training in shards: the same bits on one process and on several; what takes no shards is refused by name."""

import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_vae import MLP, VAE, Aggressive, Bound, Conditional, StandardNormal, bernoulli, elbo, fit, normal
from pyro_vae.common.parts_of_rows import PartsOfRows
from pyro_vae.common.processes import Processes
from pyro_vae.common.random import seeded
from pyro_vae.errors import NoWeightError, OtherMaskError, ProgramError, UsageError
from pyro_vae.objectives.kl_terms import mmd
from pyro_vae.training import shard_checks
from pyro_vae.training.gradient_tree import SumOverProcesses, Sums, TreeSum, tree_sum
from pyro_vae.training.shards import Shards, refuse_other_losses
from pyro_vae.training.shuffle import ELBO_NOISE, NOISE
from pyro_vae.training.trainer import Trainer
from tests.helpers.environment import HEAVY

from . import sharded, trained
from .launch import launch

CASES = [*trained.CASES, *(trained.HEAVY_CASES if HEAVY else ())]
pytestmark = pytest.mark.usefixtures(
    "one_thread"
)  # as each of several processes has: others add products in another order


@pytest.fixture(scope="module")
def left(tmp_path_factory, one_thread):
    """Files of each case, trained by one process and by two (four)."""
    worlds = (2, 4) if HEAVY else (2,)
    folders = {world: tmp_path_factory.mktemp(f"{world}") for world in (1, *worlds)}
    sharded.begun(folders[2] / "whole")
    for world in worlds:
        launch(world, "tests.processes.trained:leave", folders[world], *CASES, seconds=1500 if HEAVY else 400)
    for name in CASES:
        trained.write(folders[1] / f"{name}-0", *trained.train(name))
    trained.leave_untreed(folders[1] / "untreed-0")
    trained.leave_doubted(folders[1], 0)
    trained.leave_at_limit(folders[1], 0)
    return folders


def test_sums_in_the_order_of_a_process_have_other_bits(left):
    """As a plain all_reduce of each process's own sum has."""
    with pytest.raises(AssertionError):
        trained.assert_same(left[1] / "untreed-0", left[2] / "untreed-0")
    trained.assert_same(left[2] / "untreed-0", left[2] / "untreed-1")


def test_what_processes_do_not_agree_on_is_named(left):
    for name in ("well", "all"):
        assert sorted(path.name for path in left[2].glob(f"{name}-*")) == [f"{name}-0", f"{name}-1"]


def test_a_checkpoint_of_networks_sharded_over_two_processes_is_that_of_whole_ones(left, tmp_path):
    """Each told to stop, and gone on with by two processes: one that they began, and one that a whole network began."""
    sharded.train(sharded.small(), tmp_path)
    wanted = sharded.tensors_of(tmp_path)
    for name in ("parted", "whole"):
        found = sharded.tensors_of(left[2] / name)
        assert found.keys() == wanted.keys() and [n for n in wanted if not torch.equal(found[n], wanted[n])] == []
    assert any(name.startswith("optimizer/") for name in wanted)


def test_an_error_on_one_rank_leaves_the_last_checkpoint_and_says_on_all_how_to_go_on(left, tmp_path):
    how = r"with: fit\(.*newest\(\)\) \(on any number of processes\)$"
    for rank, said in enumerate(
        (
            r"^ProcessesError: rank 0 waited at .*: rank 1 ended with ArithmeticError: enough",
            "^ArithmeticError: enough\n",
        )
    ):
        told = (left[2] / f"failed-{rank}.txt").read_text()
        assert re.search(said, told), told
        assert re.search(
            rf"\nrank {rank} of 2 stopped after step 6\. The last checkpoint so far is of step 4; go on .*{how}", told
        )
    sharded.train(sharded.small(), tmp_path)
    sharded.train(sharded.small(), left[2] / "failed")  # one process, and a whole network
    wanted, found = sharded.tensors_of(tmp_path), sharded.tensors_of(left[2] / "failed")
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.skipif(not HEAVY, reason="four processes")
@pytest.mark.parametrize("name", CASES)
def test_four_processes_leave_the_bits_of_one(name, left):
    for rank in (0, 3):
        trained.assert_same(left[1] / f"{name}-0", left[4] / f"{name}-{rank}")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_leave_the_bits_of_one(name, left):
    if name == "stopped":  # by rank 1, of two
        assert trained.read(left[2] / "stopped-0")[1]["stopped"] == "enough"
    trained.assert_same(left[1] / f"{name}-0", left[2] / f"{name}-0")
    trained.assert_same(left[2] / f"{name}-0", left[2] / f"{name}-1")


def test_a_graph_that_fails_on_one_process_is_traced_anew_and_then_left_by_all_at_the_same_steps(left):
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        trained.assert_same(left[1] / "doubted-0", left[world] / f"doubted-{rank}")
        engine = (left[world] / f"doubted-{rank}.txt").read_text()
        assert engine.count("traced anew") == engine.count("eager from here on") == 1
    with pytest.raises(AssertionError):  # without doubts
        trained.assert_same(left[1] / "doubted-0", left[1] / "trace-0")


def test_processes_with_graphs_of_other_kinds_come_to_their_limit_at_the_step_of_one(left):
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        trained.assert_same(left[1] / "limit-0", left[world] / f"limit-{rank}")
        assert "more than 1 kinds of batch" in (left[world] / f"limit-{rank}.txt").read_text()


def digits(count):
    return trained.ROWS[:count].bernoulli(generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_shards_noise_is_of_its_own_stream(engine):
    """One step by hand: the loss of each shard under its stream."""
    vae, x = trained.small(), digits(24)
    pair, losses = (vae.model, vae.guide), []
    for number, part in enumerate(x.tensor_split(4)):
        with seeded(5, NOISE, 1, 0, number):
            losses.append(-Trace_ELBO().differentiable_loss(vae.model, vae.guide, part).detach().double())
    run = fit(pair, x, batch_size=24, epochs=1, shards=4, seed=5, engine=engine, verbose=False)
    assert run.history[0]["loss"] == pytest.approx(-float(sum(losses)) / 24, rel=1e-6)


def test_the_elbo_of_rows_in_parts_is_that_by_hand_each_under_its_stream():
    vae, rows = trained.small(), digits(30)
    run = fit(vae, rows, validation=rows[:21], batch_size=30, epochs=1, shards=4, seed=5, verbose=False)
    vae.eval()
    for name, some, size in (("elbo", rows[:21], 6), ("train_elbo", rows, 8)):
        total = 0.0
        for number, part in enumerate(some.split(size)):
            with seeded(5, ELBO_NOISE, number), torch.no_grad():
                q = vae.posterior(part)
                z = q.rsample()
                log_w = vae.likelihood(z).log_prob(part) + vae.prior().log_prob(z) - q.log_prob(z)
            total += log_w.double().sum().item()
        assert run.history[0][name] == pytest.approx(total / len(some), rel=1e-6)


def test_rows_are_cut_by_the_number_of_shards_alone():
    assert [PartsOfRows(8).size(rows, 2000) for rows in (1, 8, 9, 16_000, 16_001)] == [1, 1, 2, 2000, 2000]
    assert PartsOfRows().size(9, 2000) == 2000


def test_an_error_of_a_part_is_raised_as_the_one_that_it_is_of_the_first_part_that_had_one():
    def part(i):
        if i in (2, 3):
            raise (OtherMaskError if i == 2 else ValueError)(f"in part {i}")
        return {"number": torch.tensor([i])}

    with pytest.raises(NoWeightError, match=r"^in part 2$") as raised:
        PartsOfRows(4, (1,), "numbers", (NoWeightError, ValueError))(5, part)
    assert type(raised.value) is NoWeightError and isinstance(raised.value.__cause__, OtherMaskError)
    with pytest.raises(ValueError, match=r"^in part 3$"):  # in no word of another's
        PartsOfRows(4, (1,), "numbers", (OtherMaskError,))(5, lambda i: part(max(3, i)))
    assert len(PartsOfRows(4, (1,), "numbers", (ValueError,))(2, part)) == 2


def test_a_tree_holds_what_is_not_associative():
    values = torch.randn(16, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(16)
    tree, halves = TreeSum(), [TreeSum(), TreeSum()]
    for i, value in enumerate(values):
        for t in (tree, halves[i // 8]):
            t.add(Sums(value, [value.clone(), None if i % 3 else value.clone()]))
    both = halves[0].total.add(halves[1].total)
    assert torch.equal(tree.total.loss, both.loss) and not torch.equal(tree.total.loss, sum(values))
    assert all(map(torch.equal, tree.total.gradients, both.gradients))


def test_gradients_laid_out_in_rows_come_back_with_their_dtypes_and_what_is_missing():
    parameters = [
        torch.zeros(3),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(1),
        torch.zeros((), dtype=torch.bfloat16),
    ]
    gradients = [torch.randn(3), torch.randn(2, 2).double().T, None, torch.tensor(2.5).bfloat16()]
    total = SumOverProcesses(parameters)
    total.lay_out(total.filled(gradients))
    assert [(of.dtype, of.numel()) for of in total.rows] == [
        (torch.float32, 4),
        (torch.float64, 4),
        (torch.bfloat16, 1),
    ]
    back = list(total.views())
    assert back[2].item() == 0.0
    for i in (0, 1, 3):
        assert back[i].dtype == gradients[i].dtype and torch.equal(back[i], gradients[i])


def test_what_has_no_gradient_adds_nothing_not_even_a_sign():
    signed, total = torch.tensor([-0.0, 1.0]), SumOverProcesses([torch.zeros(2)])
    total.lay_out(total.filled([None]))
    for some in ([total.rows[0][0], signed], [signed, total.rows[0][0]]):
        added = tree_sum(torch.stack(some))
        assert torch.equal(added, signed) and added.signbit().tolist() == [True, False]


def test_rows_are_added_as_a_tree_adds_leaves():
    values = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    tree = TreeSum()
    for value in values:
        tree.add(Sums(value[0].double(), [value.clone()]))
    assert not torch.equal(sum(values), tree.total.gradients[0])
    assert torch.equal(tree_sum(values.clone()), tree.total.gradients[0])


def test_a_gradient_that_two_parameters_have_between_them_is_added_once_to_each():
    def model(x):
        a, b = (pyro.param(name, torch.zeros(1)) for name in "ab")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + a + b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    ends = []
    for engine in ("eager", "trace"):
        pyro.clear_param_store()
        fit((model, guide), torch.arange(16.0), batch_size=16, epochs=3, shards=8, engine=engine, verbose=False)
        a, b = (pyro.param(name).detach() for name in "ab")
        assert torch.equal(a, b)
        ends.append(a.clone())
    assert torch.equal(*ends) and ends[0] > 0


def test_batches_of_all_sizes_are_cut_evenly():
    shards = Shards(8, 0, Processes(1, 4))
    for rows in range(1, 20):
        sizes = [len(part[0]) for part in shards.of((torch.arange(rows),))]
        assert sum(sizes) == rows and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert list(shards.own) == [2, 3]


@pytest.mark.parametrize(
    ("shards", "options", "said"),
    [
        (3, {}, "power of two: 2, 4"),
        (0, {}, "shards"),
        (64, {}, "shards=64 with batches of 32 rows leaves shards without rows: take shards=32 at most"),
        (2, {"aggressive": Aggressive()}, "shards=2 with aggressive"),
    ],
)
def test_shards_that_cannot_be_are_refused(shards, options, said):
    with pytest.raises(UsageError, match=said):
        fit(trained.small(), digits(64), batch_size=32, epochs=1, shards=shards, verbose=False, **options)


@pytest.mark.parametrize(
    ("shards", "world", "said"), [(1, 2, "take shards=2"), (4, 3, "start 2 or 4"), (2, 8, "take shards=8")]
)
def test_processes_that_shards_cannot_be_shared_by_are_refused(shards, world, said, monkeypatch):
    monkeypatch.setattr(shard_checks, "sharing", lambda: Processes(0, world))
    with pytest.raises(UsageError, match=said):
        shard_checks.resolve_shards(shards, 32, 0)


def with_batch_norm():
    decoder = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 64))
    return VAE(StandardNormal(4), Conditional(decoder, bernoulli), Conditional(MLP(64, 8, (16,)), normal)), {}


def counting():
    """A decoder that counts the rows it saw, in a buffer."""

    class Counting(torch.nn.Linear):
        def __init__(self):
            super().__init__(4, 64)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, z):
            if self.training:
                self.seen += len(z)
            return super().forward(z)

    return VAE(StandardNormal(4), Conditional(Counting(), bernoulli), Conditional(MLP(64, 8, (16,)), normal)), {}


def subsampled():
    """A plate of all rows, of which a batch is a subsample: a shard's rows would be scaled by N over their own number."""
    vae = trained.small()

    def model(x):
        pyro.module("vae", vae)
        with pyro.plate("data", 64, subsample=torch.arange(len(x)), dim=-1):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", 64, subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("z", vae.posterior(x))

    return (model, guide), {}


def with_global():
    def model(x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(64), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Bernoulli(logits=theta).to_event(1), obs=x)

    def guide(x):
        pyro.sample("theta", dist.Normal(pyro.param("loc", torch.zeros(64)), 1.0).to_event(1))

    return (model, guide), {}


def with_term(term):
    return trained.small(), {"objective": Bound(elbo, terms=[term])}


COUPLED = {
    "batch norm": (with_batch_norm, "BatchNorm1d takes the statistics of the whole batch"),
    "a buffer": (counting, "buffer"),
    "a subsampled plate": (subsampled, "its loss or gradient is not the sum of its parts"),
    "global": (with_global, "theta"),
    "mmd": (lambda: with_term(mmd(10.0)), "of the whole batch"),
    "renyi": (lambda: (trained.small(), {"objective": RenyiELBO(num_particles=2)}), "gradients of its own"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_what_couples_the_rows_of_a_batch_is_refused_by_name(name):
    make, said = COUPLED[name]
    pair, options = make()
    with pytest.raises(ProgramError, match=said):
        fit(pair, digits(64), batch_size=32, epochs=1, shards=2, verbose=False, **options)


@pytest.mark.parametrize("name", ["batch norm", "a buffer"])
def test_rows_coupled_in_training_mode_alone_are_refused_whatever_mode_the_model_was_left_in(name):
    make, said = COUPLED[name]
    vae, options = make()
    with pytest.raises(ProgramError, match=said):
        fit(vae.eval(), digits(64), batch_size=32, epochs=1, shards=2, verbose=False, **options)
    assert not any(module.training for module in vae.modules())


def test_rounding_of_products_is_no_coupling():
    run = fit(trained.small(), digits(64), batch_size=32, epochs=1, shards=2, precision="bf16", verbose=False)
    whole = fit(trained.small(), digits(64), batch_size=32, epochs=1, precision="bf16", verbose=False)
    assert run.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=0.05)


@pytest.mark.parametrize("loss", [1.001, float("nan"), float("inf")])
def test_processes_with_other_losses_of_one_shard_are_refused(loss):
    with pytest.raises(UsageError, match=r"the loss of the first shard must be the same on each rank: rank 2 has"):
        refuse_other_losses([1.0, 1.0 + 1e-6, loss, 1.0])
    refuse_other_losses([float("nan"), float("nan")])  # a step that diverges, on all


def test_steps_of_shards_are_those_by_hand_with_contexts_masks_and_a_last_batch_of_fewer_rows_than_shards(monkeypatch):
    """A dictionary of observations, one of them masked, under AdamW."""
    made = torch.Generator().manual_seed(1)
    a, offset = torch.randn(2, 26, generator=made)
    b, taken, update = torch.poisson(torch.ones(26), generator=made), [], Trainer.update

    def model(x, offset):
        w = pyro.param("w", torch.tensor(0.3))
        with pyro.plate("data", len(offset)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(w * z + offset, 1.0), obs=x["a"])
            pyro.sample("b", dist.Poisson((w * z).exp()).mask(x["b"] < 2), obs=x["b"])

    def guide(x, offset):
        s = pyro.param("s", torch.tensor(0.7))
        with pyro.plate("data", len(offset)):
            pyro.sample("z", dist.Normal(s * (x["a"] - offset), 0.9))

    def noted(trainer, rows, *more):
        taken.append((trainer.state.position.epoch, trainer.state.step, rows.clone()))
        return update(trainer, rows, *more)

    monkeypatch.setattr(Trainer, "update", noted)
    decayed = partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1)
    pyro.clear_param_store()
    options = {"batch_size": 8, "epochs": 2, "shards": 4, "seed": 7, "optimizer": decayed, "verbose": False}
    run = fit((model, guide), {"a": a, "b": b}, offset, **options)
    w, s = (torch.tensor(start, requires_grad=True) for start in (0.3, 0.7))
    optimizer, losses = decayed([s, w]), {1: 0.0, 2: 0.0}
    for epoch, step, rows in taken:
        optimizer.zero_grad()
        for number, part in enumerate(rows.tensor_split(4)):
            with seeded(7, NOISE, epoch, step, number):
                q = dist.Normal(s * (a[part] - offset[part]), 0.9)
                z = q.rsample()
            log_b = torch.where(b[part] < 2, dist.Poisson((w * z).exp()).log_prob(b[part]), 0.0)
            log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(w * z + offset[part], 1.0).log_prob(a[part]) + log_b
            loss = (q.log_prob(z) - log_p).sum()
            loss.backward()
            losses[epoch] += loss.item()
        optimizer.step()
    assert [len(rows) for *_, rows in taken] == 2 * [8, 8, 8, 2] and (b >= 2).any()
    assert [record["loss"] for record in run.history] == pytest.approx([losses[1] / 26, losses[2] / 26], rel=1e-5)
    assert [pyro.param(name).item() for name in "ws"] == pytest.approx([w.item(), s.item()], rel=1e-5)
