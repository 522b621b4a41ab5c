"""Networks are found wherever a function holds them, by name and in a stable order, and none that it does not."""

import functools
from types import SimpleNamespace

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae.common.closures import held_modules, modules_behind

GLOBAL = nn.Linear(1, 1)
OTHER = nn.Linear(1, 1)
TABLE = {"dec": nn.Linear(1, 1)}


def net():
    return nn.Linear(1, 1)


def names(thing):
    return [name for name, _ in held_modules(thing)]


def closure(inside):
    return lambda z: inside(z)


def default(z, inside=GLOBAL):
    return inside(z)


def only_keyword(z, *, inside=GLOBAL):
    return inside(z)


def positional(inside, z):
    return inside(z)


def reads_global(z):
    return GLOBAL(z)


def calls_another(z):
    return reads_global(z)


def within(z):
    return [GLOBAL(part) for part in z] + [(lambda: GLOBAL(z))()]


def reads_table(z):
    return TABLE["dec"](z)


class Plain:
    def __init__(self, inside):
        self.inside = inside

    def decode(self, z):
        return self.inside(z)

    def __call__(self, z):
        return GLOBAL(z)


class Slotted:
    __slots__ = ("inside",)

    def __init__(self, inside):
        self.inside = inside

    def decode(self, z):
        return self.inside(z)


def wrapped(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


CASES = {
    "a module": (lambda: net(), [""]),
    "a closure": (lambda: closure(net()), ["inside"]),
    "a closure in a closure": (lambda: closure(closure(net())), ["inside"]),
    "a default": (lambda: default, ["inside"]),
    "a keyword default": (lambda: only_keyword, ["inside"]),
    "a partial": (lambda: functools.partial(positional, net()), ["inside"]),
    "a partial's keyword": (lambda: functools.partial(positional, inside=net()), ["inside"]),
    "a bound method": (lambda: net().forward, ["self"]),
    "a method of a plain object": (lambda: Plain(net()).decode, ["self.inside", "GLOBAL"]),
    "a method of an object with slots": (lambda: Slotted(net()).decode, ["self.inside"]),
    "a callable object": (lambda: Plain(None), ["GLOBAL"]),
    "a global": (lambda: reads_global, ["GLOBAL"]),
    "a global of a function that is called": (lambda: calls_another, ["GLOBAL"]),
    "a global of an inner function": (lambda: within, ["GLOBAL"]),
    "a global dict": (lambda: reads_table, ["TABLE['dec']"]),
    "a list": (lambda: closure([torch.zeros(1), net(), net()]), ["inside[1]", "inside[2]"]),
    "a namespace": (lambda: closure(SimpleNamespace(dec=net())), ["inside.dec"]),
    "a decorated function": (lambda: wrapped(closure(net())), ["inside"]),
    "a cached function": (lambda: functools.lru_cache(closure(net())), ["inside"]),
    "under a handler": (lambda: poutine.scale(closure(net()), scale=2.0), ["inside"]),
    "a handler as decorator": (lambda: poutine.mask(mask=True)(closure(net())), ["inside"]),
}


@pytest.mark.parametrize("case", CASES, ids=[c.replace(" ", "-") for c in CASES])
def test_networks_are_found(case):
    make, expected = CASES[case]
    assert names(make()) == expected


def test_an_attribute_of_the_name_of_a_global_is_not_the_global():
    def decode(thing, z):
        return thing.OTHER(z)

    assert names(decode) == []


def test_nothing_is_found_in_libraries_data_and_cells_not_set_yet():
    assert names(pyro.sample) == names(torch.relu) == names(3) == names([1.0] * 10**6) == []
    with_data = list(range(10**5))
    assert names(lambda: with_data[0]) == []
    late = closure(None)
    assert names(late) == []

    def early():
        return inside

    assert names(early) == []
    inside = net()
    assert names(early) == ["inside"]


def test_circles_and_long_chains_end():
    ring = [net()]
    ring.append(ring)
    chain = Plain(net())
    for _ in range(5000):
        chain = Plain(chain)
    assert names(lambda: ring) == ["ring[0]"]
    assert len(names(chain.decode)) == 2  # the network at the end, and the global of __call__


def test_modules_that_a_module_hides_from_torch_are_behind_it():
    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.call, self.part = [net()], closure(net()), net()

    assert [name for name, _ in modules_behind(Hides())] == ["", "layers[0]", "inside"]
