"""`copy --via` over a connection that breaks: the same command resumes inside a blob."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archives import check_blobs, files_in
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import Descriptor, Layout
from tests.registry_http import manifest_digest
from tests.remote_link import Line
from tests.runner import Argument, Result, ocistream

MIB = 1 << 20
LAYER = 6 * MIB
#: The number of bytes after which the connection breaks, inside the layer.
CUT = 5 * MIB
#: More than manifests, configs, tar headers and ends, and the smallest part of a blob that is sent.
SMALL = 64 * 1024


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return layout.image([LAYER], name="v1")


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path / "line")


def copy(layout: Layout, destination: Argument, line: Line, *options: Argument) -> Result:
    return ocistream("copy", f"oci:{layout.path}:v1", destination, "--via", line.text, *options)


def cut(layout: Layout, destination: Argument, line: Line, after: int = CUT) -> Result:
    """Copy until the connection breaks."""
    line.breaks_after(after)
    result = copy(layout, destination, line)
    assert result.code == 7, (result.code, result.err)
    assert "was cut off" in result.err
    ((_, asked, _), (_, sent, code)) = line.passed()
    assert asked < SMALL
    assert (sent, code) == (after, 6)
    return result


@contextlib.contextmanager
def wrong(layout: Layout, image: Descriptor, at: int) -> Iterator[None]:
    """Change a byte of the layer temporarily."""
    (layer,) = layout.read(image["digest"])["layers"]
    path = layout.path / "blobs" / "sha256" / str(layer["digest"]).removeprefix("sha256:")
    with path.open("r+b") as file:
        right = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([right[0] ^ 1]), at)
        try:
            yield
        finally:
            os.pwrite(file.fileno(), right, at)


class TestIntoARegistry:
    def test_only_the_rest_is_sent(self, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line) -> None:
        cut(layout, f"{served.host}/app:1", line)
        assertions.no_image(served)
        assert len(line.records()) == 1
        result = assertions.success(copy(layout, f"{served.host}/app:1", line))
        assert "resumes at byte" in result.err
        assert line.sent() <= LAYER - CUT + SMALL
        assert manifest_digest(served.host, "app", "1") == image["digest"]
        assert line.records() == []

    @pytest.mark.parametrize("status", [400, 404, 411, 501])
    def test_a_registry_without_chunked_coding_gets_bodies_with_a_length(
        self, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line, status: int
    ) -> None:
        served.faults = [Fault(refusal(status), "PATCH", times=None, only_chunked_coding=True)]
        assertions.success(copy(layout, f"{served.host}/app:1", line))
        assert manifest_digest(served.host, "app", "1") == image["digest"]
        (body,) = (request for request in served.requests if request.method == "PATCH" and request.status == 202)
        assert int(body.headers["Content-Length"]) == LAYER

    def test_several_interruptions(self, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line) -> None:
        for _ in range(3):
            cut(layout, f"{served.host}/app:1", line, 3 * MIB // 2)
        assertions.success(copy(layout, f"{served.host}/app:1", line))
        assert line.sent() <= LAYER - 3 * (3 * MIB // 2) + 4 * SMALL
        assert manifest_digest(served.host, "app", "1") == image["digest"]

    def test_bytes_that_the_remote_side_lost_are_sent_by_the_same_command(
        self, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line
    ) -> None:
        cut(layout, f"{served.host}/app:1", line)
        line.forgets_before("push")
        result = assertions.success(copy(layout, f"{served.host}/app:1", line))
        assert "sending the complete blob" in result.err
        assert [(verb, code) for verb, _, code in line.passed()] == [("have", 0), ("push", 7), ("have", 0), ("push", 0)]
        assert manifest_digest(served.host, "app", "1") == image["digest"]

    def test_lost_bytes_from_a_pipe_are_sent_by_the_next_command(
        self, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line, tmp_path: Path
    ) -> None:
        cut(layout, f"{served.host}/app:1", line)
        line.forgets_before("push")
        archive = tmp_path / "image.tar"
        succeed("copy", f"oci:{layout.path}:v1", archive)
        from_pipe = ["copy", "-", f"{served.host}/app:1", "--via", line.text]
        result = ocistream(*from_pipe, stdin=archive.read_bytes())
        assert result.code == 7
        assert "re-run the command to send the complete blob" in result.err
        assertions.no_image(served)
        succeed(*from_pipe, stdin=archive.read_bytes())
        assert manifest_digest(served.host, "app", "1") == image["digest"]

    @pytest.mark.parametrize("old", [False, True])
    def test_a_remote_side_without_resume_gets_the_complete_blob(
        self, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line, old: bool
    ) -> None:
        cut(layout, f"{served.host}/app:1", line)
        # The other case: the remote side reports more bytes than the blob has.
        line.edits(r"/^# partial/d" if old else r"s/^\(# partial .*\) .*/\1 99999999999/")
        assertions.success(copy(layout, f"{served.host}/app:1", line))
        assert [(verb, size > LAYER, code) for verb, size, code in line.passed()] == [
            ("have", False, 0),
            ("push", True, 0),
        ]
        assert manifest_digest(served.host, "app", "1") == image["digest"]

    def test_a_remote_side_that_always_reports_loss_gets_the_complete_blob(
        self, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line
    ) -> None:
        (layer,) = layout.read(image["digest"])["layers"]
        line.edits(rf"/^# by/a\# partial {layer['digest']} {CUT}")
        assertions.success(copy(layout, f"{served.host}/app:1", line))
        assert [(verb, code) for verb, _, code in line.passed()] == [("have", 0), ("push", 7), ("have", 0), ("push", 0)]
        assert manifest_digest(served.host, "app", "1") == image["digest"]

    def test_the_default_platform_is_reported_once(self, served: FaultyRegistry, layout: Layout, line: Line) -> None:
        image = layout.image([2 * MIB], platform="linux/amd64")
        layout.index([image, layout.image([b"another"], platform="linux/amd64")], name="v1")
        (layer,) = layout.read(image["digest"])["layers"]
        line.edits(rf"/^# by/a\# partial {layer['digest']} {MIB}")
        result = assertions.success(copy(layout, f"{served.host}/app:1", line, "--platform", "linux/amd64"))
        assert "sending the complete blob" in result.err
        assert result.err.count("linux/amd64 matches linux/amd64; not copied: linux/amd64") == 1


class TestCorruption:
    @pytest.mark.parametrize("where", ["registry", "layout"])
    def test_a_wrong_stored_beginning_is_replaced(
        self, where: str, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line, tmp_path: Path
    ) -> None:
        end = f"{served.host}/app:1" if where == "registry" else f"oci:{tmp_path / 'there'}:v1"
        with wrong(layout, image, MIB):
            cut(layout, end, line)
        result = assertions.success(copy(layout, end, line))
        assert "sending the complete blob" in result.err
        if where == "registry":
            assert manifest_digest(served.host, "app", "1") == image["digest"]
        else:
            succeed("verify", tmp_path / "there")

    @pytest.mark.parametrize(("where", "at"), [("registry", LAYER - 1), ("layout", MIB)])
    def test_a_source_that_is_damaged_meanwhile_completes_no_image(
        self, where: str, at: int, served: FaultyRegistry, layout: Layout, image: Descriptor, line: Line, tmp_path: Path
    ) -> None:
        end = f"{served.host}/app:1" if where == "registry" else f"oci:{tmp_path / 'there'}:v1"
        cut(layout, end, line)
        with wrong(layout, image, at):
            result = copy(layout, end, line)
        assert result.code == 5
        assert "digest mismatch: expected" in result.err
        assert line.sent() < LAYER - CUT + SMALL
        assertions.no_image(served)
        assert not (tmp_path / "there/index.json").exists() or where == "registry"
        # The valid bytes at the destination are not lost.
        assertions.success(copy(layout, end, line))


class TestIntoAnArchive:
    def test_the_next_run_completes_a_partial_archive(
        self, layout: Layout, image: Descriptor, line: Line, folder: Path
    ) -> None:
        end = f"oci-archive:{folder / 'image.tar'}:v1"
        line.breaks_after(CUT)
        broken = copy(layout, end, line)
        assert broken.code == 7, broken.err
        # A remote archive is always written from its beginning, so `have` is not run.
        assert line.passed() == [("copy", CUT, 6)]
        (partial,) = folder.iterdir()
        assert partial.name != "image.tar"
        kept = partial.read_bytes()
        assert CUT - SMALL < len(kept) <= CUT
        again = assertions.success(copy(layout, end, line))
        assert f"remote: {CUT / 1e6:.1f} MB resumed from an earlier run" in again.err
        assertions.nothing_left(folder, "image.tar")
        archive = (folder / "image.tar").read_bytes()
        assert archive.startswith(kept)
        files = files_in(archive)
        assert check_blobs(files) == {image["digest"], *(blob["digest"] for blob in layout.blobs(image))}


class TestIntoALayout:
    def test_only_the_rest_is_sent(self, layout: Layout, image: Descriptor, line: Line, tmp_path: Path) -> None:
        end = f"oci:{tmp_path / 'there'}:v1"
        cut(layout, end, line)
        assertions.success(copy(layout, end, line))
        assert line.sent() <= LAYER - CUT + SMALL
        succeed("verify", tmp_path / "there")
        assert not list((tmp_path / "there").rglob("*.partial"))
        assert image["digest"] in ocistream("inspect", end).out.decode()
