"""`ocistream gc`: unneeded blobs are deleted, needed ones stay, and parallel processes lose nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.serving import serving
from tests.faulty_registry import Fault, FaultyRegistry, Stall
from tests.images import Descriptor, Layout, two_platforms
from tests.registry_http import seed
from tests.runner import Argument, Result, Running, ocistream, started_fork

KIB = 1 << 10
DAY = 86_400


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image that the layout names."""
    return layout.image([b"needed", 8 * KIB], name="app")


@pytest.fixture
def stray(layout: Layout, image: Descriptor) -> list[str]:
    """Return blobs of 10 KiB that no image needs; the first one was used most recently."""
    digests = [str(layout.blob(bytes([number]) * 10 * KIB, "x/y")["digest"]) for number in range(4)]
    for number, digest in enumerate(digests):
        age(layout, digest, DAY * (number + 1))
    for digest in needed(layout, image):
        age(layout, digest, 10 * DAY)
    return digests


def age(layout: Layout, digest: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(layout.file(digest), (then, then))


def needed(layout: Layout, image: Descriptor) -> set[str]:
    return {image["digest"], *(blob["digest"] for blob in layout.blobs(image))}


def there(path: Path) -> set[str]:
    files = (path / "blobs" / "sha256").iterdir()
    return {f"sha256:{file.name}" for file in files if not file.name.startswith(".")}


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in (path / "blobs" / "sha256").iterdir())


def gc(layout: Layout, *argv: Argument) -> Result:
    return succeed("gc", layout.path, *argv)


def test_unneeded_blobs_are_deleted_and_printed(layout: Layout, image: Descriptor, stray: list[str]) -> None:
    result = gc(layout)
    assert result.lines() == sorted(stray)
    assert there(layout.path) == needed(layout, image)
    assert "deleted 4 blobs, 41.0 kB" in result.err
    assert gc(layout).lines() == []


def test_a_dry_run_prints_the_same_and_deletes_nothing(layout: Layout, stray: list[str]) -> None:
    before = there(layout.path)
    for argv in ([], ["--max-size=0"]):
        result = gc(layout, "--dry-run", *argv)
        assert result.lines() == sorted(stray)
        assert "would delete 4 blobs" in result.err
    assert there(layout.path) == before


def test_max_size_deletes_the_least_recently_used_blobs(layout: Layout, image: Descriptor, stray: list[str]) -> None:
    total = size_of(layout.path)
    assert gc(layout, "--max-size", f"{total}").lines() == []
    assert gc(layout, "--max-size", f"{total - 1}").lines() == [stray[3]]
    assert gc(layout, "--max-size", f"{total - 30 * KIB}").lines() == sorted(stray[1:3])
    assert there(layout.path) == {*needed(layout, image), stray[0]}


def test_needed_blobs_stay_for_every_max_size(layout: Layout, image: Descriptor, stray: list[str]) -> None:
    result = gc(layout, "--max-size", "1k")
    assert result.lines() == sorted(stray)
    assert there(layout.path) == needed(layout, image)
    assert re.search(r": (\S+ kB) remain, which is more than --max-size: images need \1$", result.err, re.MULTILINE)


def test_recently_used_blobs_stay_without_max_size(layout: Layout, stray: list[str]) -> None:
    age(layout, stray[0], 0)
    result = gc(layout)
    assert result.lines() == sorted(stray[1:])
    said = "no image needs 10.2 kB of these, but they were used in the last hour"
    assert said in result.err
    assert "with --older-than 0" in result.err
    assert "within --older-than: " in gc(layout, "--older-than=30m").err
    assert gc(layout, "--older-than", "0").lines() == [stray[0]]


def test_older_than_changes_the_age(layout: Layout, stray: list[str]) -> None:
    assert gc(layout, "--older-than=3d", "--max-size=0").lines() == sorted(stray[2:])
    assert gc(layout, "--older-than=36h").lines() == [stray[1]]


def test_children_of_indexes_and_referrers_are_needed(layout: Layout) -> None:
    index = two_platforms(layout, name="multi")
    subject = layout.image([b"signed"])
    layout.artifact(b"signature", subject=subject, name="signature")
    before = there(layout.path)
    assert gc(layout, "--older-than=0").lines() == []
    assert {index["digest"], subject["digest"]} <= before == there(layout.path)


@pytest.mark.parametrize("damage", ["is no JSON", "has other bytes"])
def test_an_unreadable_manifest_prevents_deletion(
    layout: Layout, image: Descriptor, stray: list[str], damage: str
) -> None:
    path = layout.file(image["digest"])
    if damage == "has other bytes":
        path.write_bytes(path.read_bytes()[:-1] + b" ")
    else:
        content = b"{" + b" " * 20
        manifest = layout.blob(content, image["mediaType"])
        raw = (layout.path / "index.json").read_text().replace(image["digest"], manifest["digest"])
        (layout.path / "index.json").write_text(raw)
    before = there(layout.path)
    assertions.failure(ocistream("gc", layout.path, "--max-size=0"), 6, "nothing was deleted")
    assert there(layout.path) == before >= set(stray)


@pytest.mark.parametrize("place", ["a link", "a broken link", "a directory"])
def test_another_file_in_place_of_a_manifest_prevents_deletion(
    layout: Layout, image: Descriptor, stray: list[str], tmp_path: Path, place: str
) -> None:
    path = layout.file(image["digest"])
    path.rename(tmp_path / "elsewhere")
    if place == "a directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / ("elsewhere" if place == "a link" else "nowhere"))
    before = there(layout.path)
    assertions.failure(ocistream("gc", layout.path, "--max-size=0"), 6, "is a link or another special file")
    assert there(layout.path) == before >= set(stray)


def test_a_missing_manifest_does_not_prevent_deletion(layout: Layout, image: Descriptor) -> None:
    below = needed(layout, image) - {image["digest"]}
    layout.file(image["digest"]).unlink()
    assert gc(layout, "--older-than=0").lines() == sorted(below)


def test_foreign_files_stay(layout: Layout, stray: list[str], tmp_path: Path) -> None:
    folder = layout.path / "blobs" / "sha256"
    (folder / "README").write_text("mine")
    (folder / ("0" * 64)).mkdir()
    (folder / ("1" * 64)).symlink_to(tmp_path)
    assert gc(layout, "--older-than=0").lines() == sorted(stray)
    assert {"README", "0" * 64, "1" * 64} <= {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("stray")
def test_old_partial_blobs_are_deleted(layout: Layout) -> None:
    folder = layout.path / "blobs" / "sha256"
    old, young, killed = (
        folder / name for name in (f".{'a' * 64}.partial", f".{'b' * 64}.partial", ".x.0123456789ab.partial")
    )
    for path in (old, young, killed):
        path.write_bytes(b"part")
    os.utime(old, (1, 1))
    assert "would delete 2 unfinished files, 8 B" in gc(layout, "--dry-run").err
    assert old.exists()
    assert killed.exists()
    assert "deleted 2 unfinished files, 8 B" in gc(layout).err
    assert [path.exists() for path in (old, young, killed)] == [False, True, False]
    assert "deleted 1 unfinished file, 4 B" in gc(layout, "--older-than=0").err
    assert not young.exists()


def test_uploads_of_a_killed_server_are_deleted(layout: Layout) -> None:
    with serving(layout.path) as (server, host):
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("POST", "/v2/app/blobs/uploads/")
        with connection.getresponse() as answer:
            answer.read()
            place = str(answer.headers["Location"])
        connection.request("PATCH", place.removeprefix(f"http://{host}"), body=b"part")
        with connection.getresponse() as answer:
            assert answer.status == 202
        session = next(path for path in (layout.path / "blobs" / "sha256").iterdir() if ".upload." in path.name)
        assert "unfinished" not in gc(layout, "--older-than=0").err
        assert session.exists()
        server.kill()
        server.wait(60)
    connection.close()
    assert "deleted 1 unfinished file, 4 B" in gc(layout, "--older-than=0").err
    assert not session.exists()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["gc"], 2, "DIR"),
        (["gc", "gone"], 4, "gone"),
        (["gc", "."], 6, "not an OCI layout"),
        (["gc", "made", "--max-size", "much"], 2, "--max-size"),
        (["gc", "made", "--older-than", "1y"], 2, "--older-than"),
    ],
)
def test_invalid_options_are_refused(layout: Layout, tmp_path: Path, argv: list[str], code: int, words: str) -> None:
    assert layout.path == tmp_path / "made"
    assertions.failure(ocistream(*argv, cwd=tmp_path), code, words)


# Parallel processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def registry(served: FaultyRegistry, layout: Layout) -> Iterator[FaultyRegistry]:
    """Return a registry that has an image as `app:1` and stalls in its last layer."""
    image = layout.image([b"first", 2048 * KIB])
    seed(layout, image, served.host, "app", "1")
    served.requests.clear()
    last = layout.read(image["digest"])["layers"][-1]["digest"]
    served.faults = [Fault(Stall(after=1024 * KIB), "GET", f"/blobs/{last}")]
    yield served
    served.release()


@contextlib.contextmanager
def stalled_pull(registry: FaultyRegistry, target: Path) -> Iterator[Running]:
    """Pull into a layout in a fork; yield it when the last layer stalls, and the config and the first layer arrived."""
    with started_fork("pull", f"{registry.host}/app:1", "--no-referrers", "--jobs=1", "-o", f"{target}/") as process:
        assertions.wait_for(lambda: any(request.fault for request in registry.requests) and len(there(target)) == 2)
        yield process


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("argv", "has_index"),
    [([], True), (["--max-size=0"], True), ([], False), (["--max-size=0"], False), (["--older-than=0"], False)],
)
def test_a_pull_into_the_same_layout_loses_nothing(
    registry: FaultyRegistry, tmp_path: Path, argv: list[str], *, has_index: bool
) -> None:
    target = tmp_path / "out"
    with stalled_pull(registry, target) as process:
        if has_index:
            # It lists no images yet, so no blob is needed.
            (target / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
        result = succeed("gc", target, *argv)
        assert result.lines() == []
        assert "deleted 0 blobs, 0 B; " in result.err
        registry.release()
        assert process.wait(60) == 0
    succeed("verify", target)


def test_without_an_index_nothing_is_deleted_after_the_first_pull(registry: FaultyRegistry, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with stalled_pull(registry, target) as process:
        process.kill()
        process.wait(60)
    assertions.failure(ocistream("gc", target, "--older-than=0"), 6, "it has no index.json")
    assert len(there(target)) == 2


def test_an_index_that_becomes_malformed_during_a_pull_is_named(registry: FaultyRegistry, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with stalled_pull(registry, target) as process:
        (target / "index.json").write_text("{")
        registry.release()
        assert process.wait(60) == 6
        assert f": {target}: index.json is not valid JSON: ".encode() in process.stderr.read()


@pytest.mark.uncounted
def test_blobs_that_a_pull_found_count_as_used(registry: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
    target = Layout(tmp_path / "out")
    first = layout.read(str(assertions.index_of(registry.layout.path)[0]["digest"]))["layers"][0]["digest"]
    found = str(target.blob(layout.file(first).read_bytes(), "x/y")["digest"])
    age(target, found, 10 * DAY)
    with stalled_pull(registry, target.path) as process:
        result = succeed("gc", target.path)
        assert found not in result.lines()
        registry.release()
        assert process.wait(60) == 0
    succeed("verify", target.path)


def test_a_pull_whose_blob_was_removed_names_no_image(registry: FaultyRegistry, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with stalled_pull(registry, target) as process:
        (target / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
        assert len(ocistream("gc", target, "--older-than=0").lines()) == 2
        registry.release()
        assert process.wait(60) == 9
        assert f"was removed from {target} during the copy".encode() in process.stderr.read()
    assert assertions.index_of(target) == []
    succeed("pull", f"{registry.host}/app:1", "-o", f"{target}/")
    succeed("verify", target)


@pytest.mark.uncounted
def test_a_pull_continues_if_its_cached_blobs_are_deleted(registry: FaultyRegistry, tmp_path: Path) -> None:
    registry.faults = []
    pull = ["pull", f"{registry.host}/app:1", "--no-referrers", "--cache", f"{tmp_path}/cache", "-o"]
    succeed(*pull, tmp_path / "x")
    result = ocistream("gc", tmp_path / "cache", "--max-size=0")
    assert len(result.lines()) == 4
    assert there(tmp_path / "cache") == set()
    succeed(*pull, tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert len(there(tmp_path / "cache")) == 4


@pytest.mark.parametrize(("verb", "names"), [("gc", []), ("rm", ["app"])])
def test_a_file_is_not_a_layout(tmp_path: Path, verb: str, names: list[str]) -> None:
    (tmp_path / "app").write_bytes(b"")
    assertions.failure(ocistream(verb, "./app", *names, cwd=tmp_path), 4, "app is not a directory")
