"""Tests are called by stable words: the processes of a run that is shared out (`pytest -n auto`) must list the same ones."""

import re

import pytest

UNSTABLE = re.compile(r"\b0x[0-9a-f]{6,}|<(function|lambda|bound method|class|[\w.]+ object)\b|\[.*\bNotSet")
NUMBERED = re.compile(r"::test_[a-z]?\d")  # by a row of a table that is elsewhere


def test_no_name_holds_an_address_or_a_number_of_a_table(request):
    names = [item.nodeid for item in request.session.items]
    assert [name for name in names if UNSTABLE.search(name) or NUMBERED.search(name)] == []


def test_nothing_is_parametrised_in_the_order_of_a_set(request):
    for item in request.session.items:
        for mark in item.iter_markers("parametrize"):
            assert not isinstance(mark.args[1], set | frozenset), f"sort what {item.nodeid} goes through"


@pytest.mark.parametrize(
    "value", [lambda: 0, max, {"a": object()}, re.compile("x").search, iter([]), pytest.param(pytest, id="module")]
)
def test_whatever_a_parameter_is_its_word_is_stable(value, request):
    assert not UNSTABLE.search(request.node.nodeid)
