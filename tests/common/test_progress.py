"""Work that is long says once how long it will take."""

import pytest

from pyro_vae.common import progress
from pyro_vae.common.processes import Processes
from pyro_vae.common.progress import Pace, tracked


def clock(*seconds):
    return iter(seconds).__next__


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ((0, 30, 31), [2970, None]),  # a first item of 30 s: nobody waits for the second
        ((0, 1, 1.5, 3, 4), [None, None, 97.0, None]),  # by those after the first, once
        ((0, 0.1, 0.2, 0.3), [None, None, None]),  # too early to tell
        ((0, 0.001, 2.002), [None, None]),  # with less than 15 s to go: not worth a line
    ],
    ids=["long first", "sample", "early", "short"],
)
def test_a_prediction_is_made_once_from_what_was_seen(times, told):
    total = 100 if told[0] or told[-2] else 5
    pace = Pace(total, clock(*times))
    assert [pace.left(done) for done in range(1, len(told) + 1)] == told


def test_off_a_terminal_a_line_says_it(monkeypatch, capsys):
    monkeypatch.setattr(progress, "Pace", lambda total: Pace(total, clock(0, 60, 61, 62)))
    assert list(tracked("abc", "log p(x)")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "log p(x): about 2 min to go (1 of 3 done)\n"
    list(tracked("abc", "log p(x)", shown=False))
    assert capsys.readouterr().err == ""


def test_of_several_processes_the_first_alone_says_it(monkeypatch, capsys):
    monkeypatch.setattr(progress, "Pace", lambda total: Pace(total, clock(0, 60, 61, 62)))
    monkeypatch.setattr(progress, "processes", lambda: Processes(rank=1, world=2))
    assert list(tracked("abc", "log p(x)")) == ["a", "b", "c"] and capsys.readouterr().err == ""
