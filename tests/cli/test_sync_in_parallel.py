"""`ocistream sync` copies several images at once: results keep their order, and a failure affects only its image."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.signalling import signalled
from tests.cli.sync_files import entry, sync_file
from tests.faulty_registry import Fault, FaultyRegistry, Stall, refusal
from tests.images import Descriptor, Layout
from tests.registry_http import seed, tags
from tests.runner import ocistream, started_fork


@pytest.fixture
def source(start: Start) -> FaultyRegistry:
    return start()


@pytest.fixture
def layers(source: FaultyRegistry, tmp_path: Path) -> dict[str, Descriptor]:
    """Return the layer of each image, by its tag."""
    layers = {}
    for tag in ("a", "b", "c"):
        layout = Layout(tmp_path / tag)
        layers[tag], _ = layout.random_layer(50_000, seed=tag)
        seed(layout, layout.image([layers[tag]]), source.host, "app", tag)
    return layers


def test_an_image_that_waits_does_not_delay_the_next_one(
    source: FaultyRegistry, target: FaultyRegistry, layers: dict[str, Descriptor], tmp_path: Path
) -> None:
    source.faults.append(Fault(Stall(), method="GET", path=f"/blobs/{layers['a']['digest']}"))
    file = sync_file(tmp_path, entry(f"{source.host}/app", f"{target.host}/app"))
    with started_fork("sync", file) as process:
        assertions.wait_for(lambda: set(tags(target.host, "app")) == {"b", "c"})
        source.release()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    names = [line.partition("@")[0] for line in out.decode().splitlines()]
    assert names == [f"{target.host}/app:{tag}" for tag in ("a", "b", "c")]


def test_with_one_job_images_are_copied_one_by_one(
    source: FaultyRegistry, target: FaultyRegistry, layers: dict[str, Descriptor], tmp_path: Path
) -> None:
    source.faults.append(Fault(Stall(), method="GET", path=f"/blobs/{layers['a']['digest']}"))
    file = sync_file(tmp_path, entry(f"{source.host}/app", f"{target.host}/app"))
    with started_fork("sync", file, "--jobs=1") as process:
        assertions.wait_for(lambda: source.asked("GET", f"/blobs/{layers['a']['digest']}"))
        source.release()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    blobs = [request.target.rpartition("/")[2] for request in source.asked("GET", "/app/blobs/")]
    order = [digest for digest in blobs if digest in {layer["digest"] for layer in layers.values()}]
    assert list(dict.fromkeys(order)) == [layers[tag]["digest"] for tag in ("a", "b", "c")]


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_all_images_that_are_being_copied(
    source: FaultyRegistry, target: FaultyRegistry, layers: dict[str, Descriptor], tmp_path: Path
) -> None:
    for tag in ("a", "b"):
        source.faults.append(Fault(Stall(), method="GET", path=f"/blobs/{layers[tag]['digest']}"))
    file = sync_file(tmp_path, entry(f"{source.host}/app", f"{target.host}/app"))

    def are_both_requested() -> bool:
        return all(source.asked("GET", f"/blobs/{layers[tag]['digest']}") for tag in ("a", "b"))

    ended = signalled(signal.SIGINT, "sync", file, until=are_both_requested)
    source.release()
    assert (ended.code, ended.out) == (130, b""), ended.err
    assert tags(target.host, "app") == []
    succeed("sync", file)
    assert set(tags(target.host, "app")) == {"a", "b", "c"}


def test_the_exit_code_is_that_of_the_first_failed_image_in_order(
    source: FaultyRegistry, target: FaultyRegistry, layers: dict[str, Descriptor], tmp_path: Path
) -> None:
    source.faults += [
        Fault(refusal(403, "DENIED"), method="GET", path=f"/blobs/{layers['b']['digest']}"),
        Fault(refusal(404, "BLOB_UNKNOWN"), method="GET", path=f"/blobs/{layers['a']['digest']}"),
    ]
    result = ocistream("sync", sync_file(tmp_path, entry(f"{source.host}/app", f"{target.host}/app")))
    assert result.code == 4
    errors = [line for line in result.err.splitlines() if " to " in line and ": " in line]
    assert [f"/app:{tag} to " in line for tag, line in zip(("a", "b"), errors, strict=False)] == [True, True]
    assert tags(target.host, "app") == ["c"]


def test_a_blob_that_two_images_need_is_read_once(
    source: FaultyRegistry, target: FaultyRegistry, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "shared")
    layer, _ = layout.random_layer(200_000)
    for number in range(6):
        image = layout.image([layer], annotations={"number": f"{number}"}, config={"Cmd": [f"{number}"]})
        seed(layout, image, source.host, "shared", f"{number}")
    succeed("sync", sync_file(tmp_path, entry(f"{source.host}/shared", f"{target.host}/shared")))
    assert len(source.asked("GET", f"/blobs/{layer['digest']}")) == 1


def test_each_image_of_a_layout_is_visible_when_its_name_is_printed(
    source: FaultyRegistry, layers: dict[str, Descriptor], tmp_path: Path
) -> None:
    source.faults.append(Fault(Stall(), method="GET", path=f"/blobs/{layers['c']['digest']}"))
    out = tmp_path / "out"
    file = sync_file(tmp_path, entry(f"{source.host}/app", f"oci:{out}"))

    def listed() -> set[str]:
        if not (out / "index.json").exists():
            return set()
        entries = json.loads((out / "index.json").read_bytes())["manifests"]
        return {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries}

    with started_fork("sync", file) as process:
        # A waiting image does not delay the finished ones.
        assertions.wait_for(lambda: listed() == {"a", "b"})
        source.release()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert listed() == {"a", "b", "c"}


@pytest.mark.usefixtures("layers")
def test_only_images_beyond_the_limit_of_an_index_fail(source: FaultyRegistry, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "full")
    image = layout.image([3072])
    layout.name(image, *(f"other{number}" for number in range(9_999)))
    file = sync_file(tmp_path, entry(f"{source.host}/app", f"oci:{layout.path}"))
    result = ocistream("sync", file)
    assert result.code == 8
    assert len(result.lines()) == 1
    assert result.err.count("would be larger than 10000 entries") == 2
