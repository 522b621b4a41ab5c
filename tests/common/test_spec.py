"""One form of row for every table that a config chooses from."""

import inspect

import pytest

from pyro_vae.common.spec import REQUIRED, Spec
from pyro_vae.runs.registry import TABLES


def test_a_spec_takes_keywords_alone():
    with pytest.raises(TypeError, match="positional"):
        Spec(dict, "formula", "real")
    kinds = {p.kind for p in inspect.signature(Spec).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_options_are_read_off_the_maker_unless_they_are_given():
    def make(dim, posterior, components=5, *, learned=False):
        return dim, posterior, components, learned

    assert Spec(make=make, formula="", support="any").options == {"components": 5, "learned": False}
    given = {"dim": REQUIRED}
    assert Spec(make=make, formula="", support="any", options=given).options == given
    assert Spec(make=make, formula="", support="any", options={}).options == {}


def test_features_are_a_number_or_follow_from_the_options():
    one = Spec(make=dict, formula="", support="", options={}, features=2)
    many = Spec(make=dict, formula="", support="", options={}, features=lambda num_classes: num_classes)
    assert one.num_features() == 2 and many.num_features(num_classes=7) == 7


@pytest.mark.parametrize("role", TABLES)
def test_every_table_is_names_to_specs_whose_options_their_makers_take(role):
    for name, spec in TABLES[role].items():
        assert isinstance(spec, Spec), name
        parameters = inspect.signature(spec.make).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert takes_any or {*spec.options, *spec.needs} <= parameters.keys(), name
        assert (spec.features is not None) == (role == "likelihood"), name
