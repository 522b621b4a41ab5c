"""Shuffling in blocks: a permutation each pass, the same for one seed, resumed to the row; mixed within its windows."""

from itertools import islice

import numpy as np
import pytest
import torch

from pyro_vae.training.block_shuffle import ShuffledBlocks, Windows

EVEN = np.arange(0, 1001, 20)
UNEVEN = np.cumsum([0, *np.random.default_rng(0).integers(1, 40, 50)])


def order(bounds=EVEN, window=200, size=64, seed=3, **options):
    return ShuffledBlocks(bounds, window, size, seed, **options)


@pytest.mark.parametrize(
    "bounds", [EVEN, UNEVEN, np.array([0, 5]), np.arange(9)], ids=["even", "uneven", "one", "rows"]
)
@pytest.mark.parametrize("window", [1, 64, 10_000])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_pass_takes_each_row_once(bounds, window, size):
    batches = list(order(bounds, window, size).one_pass())
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(int(bounds[-1])))
    assert {len(b) for b in batches[:-1]} <= {size}


def test_passes_and_seeds_differ_and_one_seed_is_one_order():
    one, same, other = order(), order(), order(seed=4)
    first, second = torch.cat(list(one.one_pass())), torch.cat(list(one.one_pass()))
    assert torch.equal(first, torch.cat(list(same.one_pass())))
    assert not torch.equal(first, second) and not torch.equal(first, torch.cat(list(other.one_pass())))


@pytest.mark.parametrize("taken", [1, 5, 15, 16, 20])
def test_a_position_is_returned_to_by_the_row(taken):
    one, again = order(), order(seed=9)
    passes = [b for _ in range(2) for b in one.one_pass()]  # 16 batches each
    one = order()
    list(islice((b for _ in range(2) for b in one.one_pass()), taken))
    again.seek(one.taken, one.states())
    rest = [b for _ in range(2) for b in again.one_pass()][: len(passes) - taken]
    assert all(torch.equal(a, b) for a, b in zip(rest, passes[taken:], strict=False)) and len(rest)


def test_a_transform_may_draw_from_the_generator_without_moving_the_order():
    one, other = order(), order()
    plain = [b.tolist() for b in one.one_pass()]
    drawn = []
    for batch in other.one_pass():
        torch.rand(3, generator=other.generator)
        drawn.append(batch.tolist())
    assert plain == drawn


def test_the_last_batch_is_dropped_where_that_is_asked_for():
    batches = list(order(drop_last=True).one_pass())
    assert [len(b) for b in batches] == [64] * 15


def test_the_next_batch_is_the_same_tensor_each_time_it_is_asked_for():
    one = order()
    batches, ahead = one.one_pass(), None
    for batch in batches:
        assert ahead is None or batch is ahead
        ahead = one.next_rows
    assert ahead is None


def test_a_window_holds_whole_blocks_and_mixes_their_rows():
    windows = Windows.drawn(EVEN, 200, seed=0)
    assert windows.ends.tolist() == [200, 400, 600, 800, 1000]
    seen = np.concatenate([windows.rows(w) for w in range(5)])
    blocks = [set((windows.rows(w) // 20).tolist()) for w in range(5)]
    assert all(len(b) == 10 for b in blocks) and not blocks[0] & blocks[1]
    assert (windows.window_of(seen) == np.arange(1000) // 200).all()
    # neighbours of the file are no neighbours of the order: of 1,000 about 2 in a permutation of a window of 200, ±  4 √10
    assert (np.diff(seen) == 1).sum() < 18


def test_batches_of_a_sorted_file_are_as_mixed_as_blocks_of_a_window_allow():
    # the mean of a batch of row numbers, under blocks in a window of 200 of 1,000 rows, is about 500
    means = [float(b.double().mean()) for b in order(size=200).one_pass()]
    spread = np.std(
        [float(np.mean(EVEN[:-1][np.random.default_rng(s).permutation(50)[:10]] + 9.5)) for s in range(500)]
    )
    assert max(abs(m - 499.5) for m in means) < 4 * spread
