"""Rows that stay on the host: the same batches, one ahead of the step, from a thread that ends with the run."""

import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch

from pyro_vae import binarize
from pyro_vae import fit as fit_
from pyro_vae.errors import DivergedError, Interrupted
from pyro_vae.training import batch_source
from pyro_vae.training.batch_source import Resident, Streamed, choose_batch_source, conversion_device
from pyro_vae.training.shuffle import ShuffledBatches
from tests.helpers.small import small_vae

fit = partial(fit_, verbose=False, epochs=3, batch_size=8, seed=5, engine="eager")
CPU = torch.device("cpu")
ROWS = torch.rand(43, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def streamed(monkeypatch):
    """Has `fit` leave its rows on the host; lists what was fetched, by which thread."""
    fetched = []

    class Noted(Streamed):
        def gather(self, rows):
            fetched.append((threading.current_thread().name, rows.tolist()))
            return super().gather(rows)

    monkeypatch.setattr(
        sys.modules["pyro_vae.training.training_rows"],
        "choose_batch_source",
        lambda data, device: (data, Noted(data, device)),
    )
    return fetched


def alive():
    return [t for t in threading.enumerate() if t.name.startswith("pyro_vae-rows")]


def test_a_run_from_the_host_is_the_run_from_the_device_to_the_bit(request):
    at_home = small_vae(seed=0)
    a = fit(at_home, ROWS, validation=ROWS[:9].round(), transform=binarize)
    fetched = request.getfixturevalue("streamed")
    sent = small_vae(seed=0)
    b = fit(sent, ROWS, validation=ROWS[:9].round(), transform=binarize)
    assert [r["loss"] for r in a.history] == [r["loss"] for r in b.history]
    assert all(torch.equal(v, sent.state_dict()[n]) for n, v in at_home.state_dict().items())
    assert [name.startswith("pyro_vae-rows") for name, _ in fetched] == [False, True, True, True, True, True] * 3
    assert not alive()


def test_a_memory_mapped_file_is_streamed_as_it_is(tmp_path, streamed):
    np.save(tmp_path / "x.npy", ROWS.round().numpy())
    held, mapped = small_vae(seed=0), small_vae(seed=0)
    fit(held, ROWS.round())
    fit(mapped, np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert all(torch.equal(v, mapped.state_dict()[n]) for n, v in held.state_dict().items())


def test_labels_come_along():
    of = Streamed((ROWS, torch.arange(43)), CPU)
    order = ShuffledBatches(43, 8, seed=0)
    for rows in order.one_pass():
        x, y = of.fetch(rows, order.next_rows)
        assert torch.equal(y, rows) and torch.equal(x, ROWS[rows])
    assert len(rows) == 3 and of.upcoming is None
    of.close()


def test_another_batch_than_was_announced_is_fetched():
    of = Streamed((ROWS,), CPU)
    first, second, third = torch.arange(40).split(20)[0], torch.arange(7), torch.arange(3, 9)
    of.fetch(first, second)
    assert torch.equal(of.fetch(third)[0], ROWS[3:9])
    of.close()


@pytest.mark.parametrize("trouble", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_trouble_in_the_thread_is_the_runs_and_the_thread_ends(trouble, monkeypatch, streamed):
    gather = Streamed.gather

    def third(self, rows):
        if len(streamed) == 3:
            raise trouble
        return gather(self, rows)

    monkeypatch.setattr(Streamed, "gather", third)
    with pytest.raises(Interrupted if isinstance(trouble, KeyboardInterrupt) else OSError):
        fit(small_vae(seed=0), ROWS, transform=binarize)
    assert not alive()


def test_a_bad_row_from_the_host_is_named(streamed):
    vae = small_vae(seed=0)
    x = ROWS.round()

    def spoil(record):
        x[11, 2] = float("nan")  # after it was checked

    with pytest.raises(DivergedError, match="on rows 11"):
        fit(vae, x, on_epoch=spoil)


def test_rows_go_to_the_device_if_they_take_half_of_its_memory_at_most(monkeypatch):
    device = torch.device("meta")
    monkeypatch.setattr(batch_source, "free_bytes", lambda _: 2.0 * ROWS.nbytes)
    assert isinstance(choose_batch_source((ROWS,), device)[1], Resident)
    monkeypatch.setattr(batch_source, "free_bytes", lambda _: 2.0 * ROWS.nbytes - 1)
    data, kept = choose_batch_source((ROWS,), device)
    assert isinstance(kept, Streamed) and data[0] is ROWS and (kept.device, kept.rows_device) == (device, CPU)
    kept.close()
    assert isinstance(choose_batch_source((ROWS,), CPU)[1], Resident)


def test_what_may_not_fit_on_a_gpu_is_converted_on_the_host():
    cuda = torch.device("cuda", 0)
    assert conversion_device(ROWS, cuda) == conversion_device([[1.0]], cuda) == CPU
    assert conversion_device(ROWS, CPU) == CPU and conversion_device(ROWS, None) is None
    assert conversion_device(torch.empty(1, device="meta"), torch.device("meta")) == torch.device("meta")


def test_an_order_knows_what_comes_and_gives_several_at_once():
    order, again = ShuffledBatches(43, 8, seed=3), ShuffledBatches(43, 8, seed=3)
    one_by_one = list(again.one_pass())
    batches = order.one_pass()
    assert order.next_rows is None and torch.equal(next(batches), one_by_one[0])
    assert torch.equal(order.next_rows, one_by_one[1])
    assert torch.equal(order.next_batches(3), torch.stack(one_by_one[1:4])) and order.taken == 1
    assert order.full_left == 4
    order.taken += 3
    assert order.full_left == 1 and len(order.next_batches(1)[0]) == 8  # then an uneven one
    assert [b.tolist() for b in batches] == [b.tolist() for b in one_by_one[4:]]
    assert order.next_rows is None and order.taken == 0
