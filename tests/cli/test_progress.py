"""Progress on stderr: a bar, lines, JSON events or nothing, whose numbers are right from the first to the last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream.cli.progress import human_size
from tests.archives import items_of, small_first, tar_of
from tests.cli import expect
from tests.cli.run import ocistream, started
from tests.cli.terminal import on_terminal
from tests.faults import Drop, Fault, FaultyRegistry, Stall
from tests.images import Descriptor, Layout
from tests.registry_http import seed

MIB = 1 << 20


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with layers of 3 MiB, 2 MiB and a few bytes."""
    return layout.image([3 * MIB, 2 * MIB, b"small"], name="app")


@pytest.fixture
def total(layout: Layout, image: Descriptor) -> int:
    """Return the sizes of all blobs of the image together."""
    manifest = layout.read(image["digest"])
    return sum(blob["size"] for blob in [manifest["config"], *manifest["layers"]])


@pytest.fixture
def registry(served: FaultyRegistry, layout: Layout, image: Descriptor) -> FaultyRegistry:
    """Return a registry that holds the image as `app:1`."""
    seed(layout, image, served.host, "app", "1")
    return served


def events(*argv: object, stdin: bytes | None = None) -> list[dict[str, Any]]:
    """Run with progress as JSON, and return everything that was said on stderr."""
    result = ocistream(*map(str, argv), "--progress", "json", stdin=stdin)
    expect.success(result)
    return expect.json_lines(result.err)


def check(lines: list[dict[str, Any]], total: int, how: set[str]) -> None:
    """Check that totals are stated first, that bytes get there and no further, and what became of each blob."""
    first, *rest = [line for line in lines if "event" in line]
    assert (first["event"], first["total"], first["blobs"]) == ("planned", total, 4)
    blobs = [line for line in rest if line["event"] == "blob"]
    assert {line["how"] for line in blobs} == how
    assert sum(line["size"] for line in blobs) == total
    moved = [line for line in rest if line["event"] == "progress"]
    assert {line["total"] for line in moved} == {total}
    assert max(line["bytes"] for line in moved) == moved[-1]["bytes"] == total


def test_json_is_one_object_a_line_and_adds_up(registry: FaultyRegistry, total: int, tmp_path: Path) -> None:
    image = f"{registry.host}/app:1"
    for target in (tmp_path / "app.tar", f"{tmp_path}/layout/"):
        lines = events("pull", image, "-o", target)
        check(lines, total, {"copied"})
        assert lines[0]["images"] == [{"name": image, "digest": expect.index_of(tmp_path / "app.tar")[0]["digest"]}]
        assert lines[-1]["message"].startswith("moved 4 blobs")


def test_what_is_there_already_counts_as_moved(
    registry: FaultyRegistry, layout: Layout, total: int, tmp_path: Path
) -> None:
    events("pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/layout/")
    check(events("pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/layout/"), total, {"skipped"})
    check(events("push", "-i", layout.path, f"{registry.host}/app:2"), total, {"skipped"})


def test_a_pipe_adds_up_whatever_comes_first_in_it(
    served: FaultyRegistry, start: Callable[..., FaultyRegistry], layout: Layout, total: int
) -> None:
    check(events("push", f"{served.host}/app:1", stdin=tar_of(small_first(layout))), total, {"copied"})
    # Blobs that come before the index are moved before the total is known.
    lines = events("push", f"{start().host}/app:1", stdin=tar_of(items_of(layout)))
    done = [line for line in lines if line.get("event") == "progress"]
    assert done[-1] == {"event": "progress", "bytes": total, "total": total}


def test_a_download_that_is_begun_again_is_not_counted_twice(
    registry: FaultyRegistry, start: Callable[..., FaultyRegistry], total: int, tmp_path: Path
) -> None:
    registry.faults = [Fault(Drop(MIB + 17), "GET", "/blobs/", times=2)]
    check(events("pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar"), total, {"copied"})
    other = start(Fault(Drop(0), "PATCH", larger_than=MIB))
    check(events("push", "-i", tmp_path / "app.tar", f"{other.host}/app:1"), total, {"copied"})


def test_an_image_without_blobs_of_its_own_has_a_total_too(
    served: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    seed(layout, layout.index([]), served.host, "empty", "1")
    (first, last) = events("pull", f"{served.host}/empty:1", "--platform=all", "-o", tmp_path / "empty.tar")
    assert (first["total"], first["blobs"]) == (0, 0)
    assert last["message"].startswith("moved 0 blobs")


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(registry: FaultyRegistry, tmp_path: Path) -> None:
    seen = on_terminal("pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar", streams=["stderr"])
    assert seen.code == 0
    assert "%|" in seen.screen
    assert "/5.24M" in seen.screen
    last = seen.screen.rstrip("\r\n").rpartition("\r")[2].strip()
    assert last.startswith("ocistream: moved 4 blobs")


def test_messages_do_not_tear_the_bar(registry: FaultyRegistry, tmp_path: Path) -> None:
    seen = on_terminal("pull", "-v", f"{registry.host}/app:1", "-o", tmp_path / "app.tar", streams=["stderr"])
    copied = [line for line in seen.screen.replace("\r", "\n").splitlines() if "copied sha256:" in line]
    assert len(copied) == 4
    assert all(line.startswith("ocistream: copied sha256:") for line in copied)


@pytest.mark.parametrize("kind", ["auto", "plain", "json", "none"])
def test_where_there_is_no_terminal_there_are_no_control_characters(
    registry: FaultyRegistry, tmp_path: Path, kind: str
) -> None:
    result = ocistream("pull", "-v", f"{registry.host}/app:1", f"--progress={kind}", "-o", tmp_path / "app.tar")
    expect.success(result)
    assert all(character.isprintable() or character == "\n" for character in result.err)


def test_a_bar_can_be_had_without_a_terminal(registry: FaultyRegistry, tmp_path: Path) -> None:
    result = ocistream("pull", f"{registry.host}/app:1", "--progress=bar", "-o", tmp_path / "app.tar")
    expect.success(result)
    assert "/5.24M" in result.err


def test_a_bar_knows_what_came_before_its_total(served: FaultyRegistry, layout: Layout, image: Descriptor) -> None:
    del image
    argv = ["push", f"{served.host}/app:1", "--progress=bar"]
    result = ocistream(*argv, stdin=tar_of(items_of(layout)))
    expect.success(result)
    assert "100%" in result.err


def test_a_bar_that_never_came_to_be_leaves_only_the_error(served: FaultyRegistry, tmp_path: Path) -> None:
    argv = ["pull", f"{served.host}/gone:1", "--progress=bar"]
    expect.failure(ocistream(*argv, "-o", tmp_path / "x.tar"), 4, "gone:1")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_242_880, "5.2 MB"), (2**31, "2.1 GB"), (7.5e12, "7.5 TB")],
)
def test_sizes_are_written_for_people(size: float, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize("kind", ["plain", "none"])
def test_a_terminal_need_not_get_a_bar(registry: FaultyRegistry, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "app.tar"
    seen = on_terminal("pull", f"{registry.host}/app:1", f"--progress={kind}", "-o", target, streams=["stderr"])
    assert seen.screen.startswith("ocistream: moved 4 blobs")
    assert len(seen.screen.splitlines()) == 1


def test_a_line_every_few_seconds_says_how_much_and_how_long(
    registry: FaultyRegistry, total: int, tmp_path: Path
) -> None:
    registry.faults = [Fault(Stall(seconds=5.2, after=2 * MIB), "GET", "/blobs/", skip=1)]
    argv = ["pull", f"{registry.host}/app:1", "--jobs=1", "--progress=plain", "--log-format=json"]
    with started(*argv, "-o", tmp_path / "app.tar") as process:
        assert process.stderr
        (line,) = expect.json_lines(process.stderr.readline().decode())
    assert line["total"] == total
    assert 2 * MIB < line["bytes"] < total
    assert " MB of 5.2 MB, " in line["message"]
    assert line["message"].endswith(" s left")
