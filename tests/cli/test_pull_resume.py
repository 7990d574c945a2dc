"""Resume an interrupted pull with the same command, and pull the rest of an archive with --from-byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.signalling import signalled
from tests.faulty_registry import Drop, Fault, FaultyRegistry, Reply, Reset, Stall
from tests.images import OCI_MANIFEST, Descriptor, Layout
from tests.peers import need
from tests.runner import Argument, Result, ocistream, started_fork

MIB: Final = 1 << 20
SIZES: Final = [3 * MIB, 2 * MIB + 1000, 1 * MIB]
#: Where a pull stalls: the number of the layer, and the bytes of it that arrived.
HALTS: Final = [(0, 1 * MIB + 1), (2, 1 * MIB - 1)]

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image of three layers."""
    return layout.image(SIZES)


@pytest.fixture
def layers(layout: Layout, image: Descriptor) -> list[str]:
    """Return the digests of the image's layers."""
    return [layer["digest"] for layer in layout.read(image["digest"])["layers"]]


@pytest.fixture
def whole(registry: FaultyRegistry, tmp_path: Path) -> bytes:
    """Return the image's archive as an uninterrupted run writes it."""
    path = tmp_path / "undisturbed.tar"
    succeed("pull", f"{registry.host}/app:1", "-o", path)
    registry.requests.clear()
    return path.read_bytes()


def pull(registry: FaultyRegistry, *argv: Argument, env: dict[str, str] | None = None) -> Result:
    registry.requests.clear()
    return ocistream("pull", f"{registry.host}/app:1", *argv, env=env)


def asked(registry: FaultyRegistry, layers: list[str]) -> dict[int, list[str | None]]:
    """Return the Range headers of the requests for each layer, by the layer's number."""
    found: dict[int, list[str | None]] = {}
    for request in registry.asked("GET", "/blobs/"):
        digest = request.path.rpartition("/")[2]
        if digest in layers:
            found.setdefault(layers.index(digest), []).append(request.headers["Range"])
    return found


def halting(registry: FaultyRegistry, layer: str, after: int) -> None:
    registry.faults = [Fault(Stall(after=after), "GET", f"/blobs/{layer}")]


def kill(registry: FaultyRegistry, *argv: Argument, until: Callable[[], bool]) -> None:
    """Pull until a blob has stalled and `until` is true, then send SIGKILL."""

    def has_stalled() -> bool:
        return any(request.fault for request in registry.requests) and until()

    signalled(signal.SIGKILL, "pull", f"{registry.host}/app:1", *argv, until=has_stalled)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def held_of(layers: list[str], archive: bytes, size: int) -> dict[int, list[str | None]]:
    """Return the Range headers that a resumed pull must send, if the partial archive has `size` bytes."""
    expected: dict[int, list[str | None]] = {}
    for number, digest in enumerate(layers):
        begin = archive.index(f"blobs/sha256/{digest[7:]}".encode().ljust(100, b"\0")) + 512
        held = min(max(0, size - begin), SIZES[number])
        if held < SIZES[number]:
            expected[number] = [f"bytes={held}-" if held else None]
    return expected


# Pull into a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "after"), HALTS)
def test_a_killed_pull_into_a_file_is_resumed(
    registry: FaultyRegistry, layers: list[str], whole: bytes, folder: Path, layer: int, after: int
) -> None:
    halting(registry, layers[layer], after)
    partial = folder / ".app.tar.partial"
    # An incomplete chunk is lost.
    there = sum(SIZES[:layer]) + after - 2 * 262_144
    kill(registry, "-o", folder / "app.tar", until=lambda: size_of(partial) >= there)
    assertions.nothing_left(folder, ".app.tar.partial")
    size = size_of(partial)
    assertions.success(pull(registry, "-o", folder / "app.tar"))
    assert (folder / "app.tar").read_bytes() == whole
    assert asked(registry, layers) == held_of(layers, whole, size)
    assertions.nothing_left(folder, "app.tar")


def test_an_error_before_the_first_blob_keeps_the_partial_file(
    registry: FaultyRegistry, whole: bytes, folder: Path
) -> None:
    partial = folder / ".app.tar.partial"
    partial.write_bytes(whole[: 2 * MIB])
    registry.faults = [Fault(Reply(200, {"Content-Type": OCI_MANIFEST}, b'{"layers": 1}'), "GET", "/manifests/")]
    assertions.failure(pull(registry, "-o", folder / "app.tar"), 6)
    assert partial.read_bytes() == whole[: 2 * MIB]
    result = assertions.success(pull(registry, "-o", folder / "app.tar"))
    assert "resumed from an earlier run" in result.err
    assert (folder / "app.tar").read_bytes() == whole


@pytest.mark.parametrize("fault", [Reset(after=1_500_000), Drop(1_500_000)])
def test_a_network_failure_keeps_the_partial_file_and_reports_its_path(
    registry: FaultyRegistry, layers: list[str], whole: bytes, folder: Path, fault: Reset | Drop
) -> None:
    registry.faults = [Fault(fault, "GET", f"/blobs/{layers[1]}", times=None)]
    failed = pull(registry, "-o", folder / "app.tar", "--retries", "0")
    assertions.failure(failed, 7, f"are stored in {folder}/.app.tar.partial: re-run the same command to resume")
    registry.faults = []
    size = size_of(folder / ".app.tar.partial")
    result = pull(registry, "-o", folder / "app.tar", "-v", "--result", folder / "result.json", "--progress=plain")
    assertions.success(result)
    assert (folder / "app.tar").read_bytes() == whole
    assert asked(registry, layers) == held_of(layers, whole, size)
    document = json.loads((folder / "result.json").read_bytes())
    by_digest = {blob["digest"]: blob.get("resumed", 0) for blob in document["blobs"]}
    assert by_digest[layers[0]] == SIZES[0]
    assert 0 < by_digest[layers[1]] < SIZES[1]
    assert by_digest[layers[2]] == 0
    assert document["resumed"] == sum(by_digest.values())
    assert f"resumed {layers[1]} after" in result.err
    assert "resumed from an earlier run" in result.err
    assert "discarded" not in result.err


def test_bytes_of_another_archive_are_discarded_and_this_is_reported(
    registry: FaultyRegistry, whole: bytes, folder: Path
) -> None:
    """The partial file is of the same image under another name: index.json differs."""
    (folder / ".app.tar.partial").write_bytes(whole[: 2 * MIB].replace(b"app:1", b"app:2"))
    result = assertions.success(pull(registry, "-o", folder / "app.tar"))
    assert (folder / "app.tar").read_bytes() == whole
    message = "app.tar: discarded 2.1 MB that an earlier run stored: they are not part of this archive"
    assert message in result.err


@pytest.mark.usefixtures("layers")
def test_progress_of_a_resumed_pull_reaches_the_total(registry: FaultyRegistry, whole: bytes, folder: Path) -> None:
    (folder / ".app.tar.partial").write_bytes(whole[: len(whole) // 2])
    result = assertions.success(pull(registry, "-o", folder / "app.tar", "--progress", "json"))
    events = [event for event in assertions.json_lines(result.err) if event.get("event") == "progress"]
    assert events[-1]["bytes"] == events[-1]["total"] == sum(event["size"] for event in _blobs(result))


def _blobs(result: Result) -> list[dict[str, int]]:
    return [event for event in assertions.json_lines(result.err) if event.get("event") == "blob"]


def test_recompression_does_not_skip_the_bytes_of_an_earlier_pull(registry: FaultyRegistry, folder: Path) -> None:
    """The layers are gzip already: their first bytes are checked, although the partial file has them."""
    assertions.success(pull(registry, "--compress=gzip", "-o", folder / "app.tar"))
    undisturbed = (folder / "app.tar").read_bytes()
    (folder / "app.tar").unlink()
    (folder / ".app.tar.partial").write_bytes(undisturbed[: len(undisturbed) // 2])
    assertions.success(pull(registry, "--compress=gzip", "-o", folder / "app.tar"))
    assert (folder / "app.tar").read_bytes() == undisturbed
    assertions.nothing_left(folder, "app.tar")


def test_a_pull_onto_a_full_disk_is_resumed_when_there_is_space(
    registry: FaultyRegistry, layers: list[str], whole: bytes, tmp_path: Path
) -> None:
    need("mount", root=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], check=True)
    try:
        for end in ("app.tar", "layout/"):
            registry.faults = []
            failed = pull(registry, "--jobs=1", "-o", f"{disk}/{end}")
            assertions.failure(
                failed, 9, "No space left on device", "free some space", "re-run the same command to resume"
            )
            subprocess.run(["mount", "-o", "remount,size=32m", disk], check=True)
            assertions.success(pull(registry, "-o", f"{disk}/{end}"))
            assert list(asked(registry, layers).values()) != [[None], [None], [None]]
            assertions.no_partial_files(disk)
            if end == "app.tar":
                assert (disk / "app.tar").read_bytes() == whole
                (disk / "app.tar").unlink()
                subprocess.run(["mount", "-o", "remount,size=5m", disk], check=True)
        succeed("verify", disk / "layout")
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("kind", ["hard link", "fifo"])
def test_a_foreign_file_with_the_name_of_the_partial_file_is_not_changed(
    registry: FaultyRegistry, whole: bytes, folder: Path, tmp_path: Path, kind: str
) -> None:
    precious, partial = tmp_path / "precious", folder / ".app.tar.partial"
    precious.write_bytes(whole[: 2 * MIB])
    if kind == "fifo":
        os.mkfifo(partial)
    else:
        partial.hardlink_to(precious)
    result = assertions.success(pull(registry, "-o", folder / "app.tar"))
    assert f"cannot resume {partial}" in result.err
    assert (folder / "app.tar").read_bytes() == whole
    assert precious.read_bytes() == whole[: 2 * MIB]
    assertions.nothing_left(folder, ".app.tar.partial", "app.tar")


# Pull into a directory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "after"), HALTS)
def test_a_killed_pull_into_a_directory_is_resumed_in_each_blob(
    registry: FaultyRegistry, layers: list[str], folder: Path, layer: int, after: int
) -> None:
    out = folder / "out"
    halting(registry, layers[layer], after)
    partial = out / "blobs" / "sha256" / f".{layers[layer][7:]}.partial"
    others = [out / "blobs" / "sha256" / digest[7:] for digest in layers[:layer]]

    def has_come() -> bool:
        return partial.exists() and size_of(partial) > after - 262_144 * 2 and all(map(Path.exists, others))

    kill(registry, "--jobs=1", "-o", f"{out}/", until=has_come)
    assert not (out / "index.json").exists()
    size = size_of(partial)
    assertions.success(pull(registry, "--jobs=1", "-o", f"{out}/"))
    expected: dict[int, list[str | None]] = {number: [None] for number in range(layer, len(layers))}
    expected[layer] = [f"bytes={size}-" if size else None]
    assert asked(registry, layers) == expected
    assertions.no_partial_files(folder)
    succeed("verify", out)


def test_a_pull_resumes_several_blobs_at_once(registry: FaultyRegistry, layers: list[str], folder: Path) -> None:
    out = folder / "out"
    registry.faults = [Fault(Stall(after=600_000), "GET", f"/blobs/{layer}") for layer in layers]
    partials = [out / "blobs" / "sha256" / f".{digest[7:]}.partial" for digest in layers]
    kill(registry, "-o", f"{out}/", until=lambda: all(size_of(partial) >= 524_288 for partial in partials))
    expected = {number: [f"bytes={size_of(partial)}-"] for number, partial in enumerate(partials)}
    assertions.success(pull(registry, "-o", f"{out}/"))
    assert asked(registry, layers) == expected
    assertions.no_partial_files(folder)
    succeed("verify", out)


# --from-byte -----------------------------------------------------------------------------------------------------


@pytest.fixture
def spots(layers: list[str], whole: bytes) -> Iterator[int]:
    """Return first bytes: in headers, in blobs, and at the ends of both."""
    begin = [whole.index(f"blobs/sha256/{digest[7:]}".encode().ljust(100, b"\0")) for digest in layers]
    inside = begin[1] + 512 + 1_000_000
    return iter([1, begin[0] + 100, begin[1] - 1, inside, begin[2] + 512, len(whole)])


def test_from_byte_writes_and_requests_only_the_rest(
    registry: FaultyRegistry, layers: list[str], whole: bytes, spots: Iterator[int]
) -> None:
    for spot in spots:
        result = assertions.success(pull(registry, "--from-byte", str(spot)))
        assert result.out == whole[spot:], spot
        assert asked(registry, layers) == held_of(layers, whole, spot), spot


def test_a_first_byte_beyond_the_end_is_an_error_with_the_length(
    registry: FaultyRegistry, layers: list[str], whole: bytes
) -> None:
    assertions.failure(pull(registry, "--from-byte", str(len(whole) + 1)), 2, f"{len(whole)} bytes")
    assert asked(registry, layers) == {}


@pytest.mark.parametrize("argv", [["--compress=zstd"], ["--format=docker-archive"]])
def test_from_byte_works_with_generated_archives_too(registry: FaultyRegistry, argv: list[str]) -> None:
    whole = pull(registry, *argv).out
    assert len(whole) > MIB
    for spot in (len(whole) // 2, len(whole)):
        result = assertions.success(pull(registry, *argv, "--from-byte", str(spot)))
        assert result.out == whole[spot:], spot
    assertions.failure(pull(registry, *argv, "--from-byte", str(len(whole) + 1)), 2, f"{len(whole)} bytes")


def test_a_first_byte_must_be_a_number_of_digits_within_the_limit_of_files() -> None:
    for number in ("1_000", " 5", "5 ", "+5", "\u0663", "1e3", "", "-", "9" * 5000, "x" * 5000):
        result = ocistream("pull", "registry.invalid/app:1", "--from-byte", number)
        assertions.failure(result, 2, "--from-byte")
        assert len(result.err) < 200


def test_from_byte_writes_into_a_fifo(registry: FaultyRegistry, whole: bytes, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with started_fork("pull", f"{registry.host}/app:1", "--from-byte", "1000", "-o", folder / "fifo") as process:
        assert (folder / "fifo").read_bytes() == whole[1000:]
        assert process.wait(60) == 0


def test_from_byte_is_refused_for_files_and_layouts(registry: FaultyRegistry, folder: Path) -> None:
    (folder / "there.tar").write_bytes(b"there")
    for argv in (["-o", "app.tar"], ["-o", "there.tar"], ["-o", "out/"], ["-o", "x", "--format=oci"]):
        result = ocistream("pull", f"{registry.host}/app:1", "--from-byte", "0", *argv, cwd=folder)
        assertions.failure(result, 2, "--from-byte", "files and layouts resume by themselves")
    assert ocistream("pull", f"{registry.host}/app:1", "--from-byte", "-1").code == 2
    assertions.nothing_left(folder, "there.tar")
    assert (folder / "there.tar").read_bytes() == b"there"
