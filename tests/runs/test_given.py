"""What verbs on runs are given that is of another kind: refused by name, before a folder is looked at."""

import pytest

from pyro_vae.common.device import resolve_device
from pyro_vae.errors import DeviceError, RunFolderError, UsageError
from pyro_vae.runs.bracket_run import bracket_run
from pyro_vae.runs.gaps_run import gaps_run
from pyro_vae.runs.list_runs import list_runs, summary_of
from pyro_vae.runs.registry import check_names


@pytest.mark.parametrize("device", [True, None, 2.5, [], float("nan"), "gpu"], ids=repr)
def test_a_device_is_a_name(device):
    with pytest.raises(DeviceError, match="is no device"):
        resolve_device(device)


@pytest.mark.parametrize("components", [None, [], "mine", 3], ids=repr)
def test_components_are_parts_by_name(components):
    with pytest.raises(UsageError, match="components are parts by name"):
        check_names(components)


@pytest.mark.parametrize("number", [True, 1.5, "3", float("nan"), float("inf"), []], ids=repr)
@pytest.mark.parametrize("name", ["rows", "steps", "num_temperatures", "num_chains"])
def test_what_counts_is_a_whole_number(name, number):
    look = bracket_run if name.startswith("num") else gaps_run
    with pytest.raises(UsageError, match=f"{name} must be a whole number"):
        look("nowhere", **{name: number})
    if name == "rows":
        with pytest.raises(UsageError, match="rows must be a whole number"):
            bracket_run("nowhere", rows=number)


def test_folders_are_named_by_texts_too(tmp_path):
    assert list_runs(str(tmp_path)) == []
    with pytest.raises(RunFolderError, match="no run folder"):
        summary_of(str(tmp_path / "nowhere"))
