"""`ocistream sync` of an incomplete image: the run and its --dry-run fail and report which platforms are complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.sync_files import entry, sync_file
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout, two_platforms
from tests.runner import Argument, Result, ocistream

Sync = Callable[..., Result]


@pytest.fixture
def index(layout: Layout) -> Descriptor:
    return two_platforms(layout, name="app:1")


@pytest.fixture(params=["layout", "archive", "registry"])
def sync(request: pytest.FixtureRequest, layout: Layout, served: FaultyRegistry, tmp_path: Path) -> Sync:
    """Return a function that copies the layout's image to a destination of each kind, with these keys and options."""
    target = {"layout": f"oci:{tmp_path / 'out'}", "archive": f"{tmp_path / 'out.tar'}"}

    def run(*options: Argument, **keys: str) -> Result:
        to = target.get(request.param, f"{served.host}/app:1")
        return ocistream("sync", sync_file(tmp_path, entry(f"oci:{layout.path}:app:1", to, **keys)), *options)

    return run


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_missing_platform_is_an_error(index: Descriptor, sync: Sync, layout: Layout, options: list[str]) -> None:
    arm = layout.read(index["digest"])["manifests"][1]
    layout.file(arm["digest"]).unlink()
    result = sync(*options, platforms='["linux/arm64"]')
    assert result.code == 6
    said = f"app:1 for linux/arm64/v8 is incomplete: neither the source nor the destination has {arm['digest']}"
    assert (
        f": {said}\n  complete platforms: linux/amd64; `ocistream inspect {layout.path}` lists the missing blobs"
        in result.err
    )
    # The platform that exists can be copied.
    assertions.success(sync(*options, platforms='["linux/amd64"]'))


def test_a_missing_platform_is_an_error_for_each_destination(index: Descriptor, layout: Layout, tmp_path: Path) -> None:
    layout.file(layout.read(index["digest"])["manifests"][1]["digest"]).unlink()
    to = (f"oci:{tmp_path / name}" for name in ("one", "two"))
    text = entry(f"oci:{layout.path}:app:1", *to, platforms='["linux/arm64"]')
    result = ocistream("sync", sync_file(tmp_path, text))
    assert result.code == 6
    assert result.err.count(": app:1 for linux/arm64/v8 is incomplete: ") == 2


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_missing_layer_is_an_error(index: Descriptor, sync: Sync, layout: Layout, options: list[str]) -> None:
    image = layout.read(index["digest"])["manifests"][0]
    layer = layout.read(image["digest"])["layers"][1]["digest"]
    layout.file(layer).unlink()
    result = sync(*options)
    assert result.code == 6
    assert f"incomplete: neither the source nor the destination has {layer}\n" in result.err
    assert "  get the complete image, or select a complete platform with `platforms`\n" in result.err
