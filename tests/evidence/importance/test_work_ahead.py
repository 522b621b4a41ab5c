"""A GPU has the work of the next block of rows before anything is read of the last: as it runs there, on the CPU."""

from functools import partial

import pytest
import torch

from pyro_vae.errors import Interrupted, ProgramError
from pyro_vae.evidence.importance import sampler
from tests.helpers.bits import same
from tests.helpers.importance import Chain, log_likelihood

PAIR = Chain(256)  # four blocks of rows
run = partial(log_likelihood, PAIR.model, PAIR.guide, PAIR.x, num_samples=140, engine="trace")


class Watched(sampler.OnTheWay):
    """Notes when a block's work is given, and when it is read; ends the run at one of these."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.number = sum(what == "given" for what, _ in Watched.noted)
        self.note("given")

    def wait(self):
        self.note("read")
        return super().wait()

    def note(self, what):
        Watched.noted.append((what, self.number))
        if (what, self.number) == Watched.ends:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(sampler, "computes_behind", lambda device: True)
    monkeypatch.setattr(sampler, "OnTheWay", Watched)
    Watched.noted, Watched.ends = [], None


@pytest.fixture(scope="module")
def eager():
    return log_likelihood(PAIR.model, PAIR.guide, PAIR.x, num_samples=140, engine="eager")


def test_the_next_block_is_given_before_the_last_is_read(eager):
    assert same(run(), eager)
    order = [
        ("given", 0),
        *((what, i + (what == "given")) for i in range(3) for what in ("given", "read")),
        ("read", 3),
    ]
    assert Watched.noted == order


def test_a_block_that_is_under_way_is_shown_without_that_work(eager):
    shown = []

    def look(blocks, facts):
        shown.append([len(block) for block in blocks])
        for block in blocks:
            if len(block):
                assert torch.equal(block.columns()["log_px"], eager.log_px[block.rows.start : block.rows.stop])

    run(on_block=look)
    assert shown == [[140] * (i + 1) + [0] * (3 - i) for i in range(4)]


@pytest.mark.parametrize("ends", [("given", 2), ("read", 0), ("read", 1), ("read", 3)], ids=str)
def test_a_run_that_is_interrupted_goes_on_to_the_same_bits(ends, eager):
    Watched.ends = ends
    with pytest.raises(Interrupted) as stopped:
        run()
    so_far, Watched.ends = stopped.value.result, None
    done = ends[1] if ends[0] == "read" else ends[1] - 1  # blocks that were read
    assert (so_far is None) == (done == 0) and (so_far is None or len(so_far.log_px) == 64 * done)
    assert same(run(resume=so_far), eager)


def test_an_error_in_the_next_block_is_that_error(monkeypatch):
    weigh = sampler.Sampler.from_graph

    def fails(self, sums, problem, block):
        if sums.rows.start == 128:
            raise ProgramError("site 'x'")
        return weigh(self, sums, problem, block)

    monkeypatch.setattr(sampler.Sampler, "from_graph", fails)
    with pytest.raises(ProgramError, match="site 'x'"):
        run()


def test_numbers_read_before_they_are_there_would_be_seen(eager, monkeypatch):
    monkeypatch.setattr(Watched, "wait", lambda self: [torch.zeros_like(t) for t in self.copies])
    assert not same(run(), eager)
