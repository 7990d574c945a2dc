"""The limits of requests and of bytes per second. The waits are recorded and not slept: the clock advances by them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.cli.fixture_types import Start
from tests.faulty_registry import Fault, redirect
from tests.images import Layout
from tests.registry_http import seed
from tests.runner import ocistream

SIZE: Final = 300_000


def waits_of(*argv: object) -> list[float]:
    result = assertions.success(ocistream(*map(str, argv), "--jobs=1", "-q", no_waits=True))
    return [wait for wait in result.waits if wait]


@pytest.mark.parametrize("table", ["", "requests-per-second = 0.001"])
def test_requests_to_each_host_are_evenly_spaced(table: str, start: Start, layout: Layout, tmp_path: Path) -> None:
    registry, storage = start(), start()
    image = layout.image([4000], name="app")
    for one in (registry, storage):
        seed(layout, image, one.host, "app", "1")
        one.requests.clear()
    registry.faults = [Fault(redirect(f"{storage.url}/v2/app/manifests/1"), "GET|HEAD", "/app/manifests/1")]
    config = tmp_path / "config.toml"
    config.write_text(f'[registry."{registry.host}"]\n{table}\n')
    # Two clients read and write, and share the limit.
    names = (f"{registry.host}/app:1", f"{registry.host}/other:1")
    waits = waits_of("copy", *names, "--config", config, "--max-requests-per-second=0.01", "--no-referrers")
    assert len(storage.requests) == 1
    spacing = 1000 if table else 100
    assert waits == pytest.approx([spacing] * (len(registry.requests) - 1), abs=30)


@pytest.mark.parametrize("argv", ["pull HOST/app:1 -o FOLDER/app.tar", "push -i LAYOUT HOST/other:1"])
def test_downloads_and_uploads_are_limited(argv: str, start: Start, layout: Layout, tmp_path: Path) -> None:
    registry = start()
    seed(layout, layout.image([SIZE], name="app"), registry.host, "app", "1")
    for word, place in (("HOST", registry.host), ("FOLDER", tmp_path), ("LAYOUT", layout.path)):
        argv = argv.replace(word, str(place))
    waits = waits_of(*argv.split(), "--limit-rate=10k")
    assert sum(waits) == pytest.approx(SIZE / 10_240, rel=0.1)
    # Each piece is small, so there is no burst.
    assert len(waits) >= SIZE / 640
