"""What tests of this folder start from."""

import pytest

from tests.helpers.pictures import with_rendering, without_rendering


@pytest.fixture(scope="module", autouse=True)
def quick(request):
    """No picture is rendered, but in files and tests marked `rendered`; for the fixtures of a file, too."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("rendered") is None:
            without_rendering(patch)
        yield


@pytest.fixture(autouse=True)
def rendered(request, monkeypatch):
    if request.node.get_closest_marker("rendered") is not None:
        with_rendering(monkeypatch)
