"""`--cache DIR`: cached blobs are not fetched, fetched blobs are stored, and corrupt ones are replaced."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.signalling import signalled
from tests.faulty_registry import Fault, FaultyRegistry, Flip, Header, Stall, refusal
from tests.images import Descriptor, Layout, two_platforms
from tests.registry_http import seed
from tests.runner import Argument, Environment, Result, ocistream, started_fork

MIB: Final = 1 << 20


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image of two layers, one of several chunks."""
    return layout.image([b"small", 2 * MIB])


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the path of a cache that does not exist yet."""
    return tmp_path / "deep" / "cache"


@pytest.fixture
def blobs(layout: Layout, image: Descriptor) -> list[str]:
    """Return the digests of the config and the layers."""
    return [blob["digest"] for blob in layout.blobs(image)]


def pull(registry: FaultyRegistry, *argv: Argument, env: Environment | None = None, name: str = "app:1") -> Result:
    registry.requests.clear()
    return succeed("pull", f"{registry.host}/{name}", "--no-referrers", *argv, env=env)


def fetched(registry: FaultyRegistry) -> list[str]:
    """Return the digests of the requested blobs, and the tags or digests of the requested manifests."""
    return [request.path.rpartition("/")[2] for request in registry.asked("GET", "/(blobs|manifests)/")]


def one_by_one(registry: FaultyRegistry, cache: Path) -> list[Argument]:
    """Return the arguments of a sequential pull, without its destination."""
    return ["pull", f"{registry.host}/app:1", "--no-referrers", "--jobs=1", "--cache", cache, "-o"]


def file_of(cache: Path, digest: str) -> Path:
    return cache / "blobs" / "sha256" / digest[7:]


def files_in(cache: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (cache / "blobs" / "sha256").iterdir()}


# Cached blobs are not fetched ----------------------------------------------------------------------------------


def test_using_a_blob_updates_its_time(
    registry: FaultyRegistry, image: Descriptor, blobs: list[str], cache: Path, tmp_path: Path
) -> None:
    # `gc --older-than` and `--max-size` depend on the last use.
    pull(registry, "--cache", cache, "-o", tmp_path / "first")
    files = [file_of(cache, digest) for digest in (image["digest"], *blobs)]
    for file in files:
        os.utime(file, (1, 1))
    pull(registry, "--cache", cache, "-o", tmp_path / "second")
    assert [file for file in files if file.stat().st_mtime == 1] == []


@pytest.mark.uncounted
def test_a_second_pull_fetches_nothing_and_writes_the_same_bytes(
    registry: FaultyRegistry, image: Descriptor, blobs: list[str], cache: Path
) -> None:
    plain = pull(registry).out
    first = pull(registry, "--cache", cache)
    assert sorted(fetched(registry)) == sorted(["1", *blobs])
    assert files_in(cache) == {image["digest"], *blobs}
    second = pull(registry, "--cache", cache)
    assert fetched(registry) == []
    assert first.out == second.out == plain
    assert [request.method for request in registry.asked(path="/manifests/")] == ["HEAD"]


def test_the_cache_is_a_layout_without_images(registry: FaultyRegistry, cache: Path) -> None:
    pull(registry, "--cache", cache)
    assert assertions.index_of(cache) == []
    succeed("verify", cache)
    assertions.no_partial_files(cache)


@pytest.mark.parametrize("target", ["oci-archive:", "oci:", "docker-archive:", "HOST"])
def test_every_destination_reads_from_the_cache(
    registry: FaultyRegistry, start: Start, cache: Path, tmp_path: Path, target: str
) -> None:
    for name in ("first", "second"):
        registry.requests.clear()
        end = f"{target}{tmp_path / name}" if target != "HOST" else f"{start().host}/new:1"
        argv = ["copy", f"{registry.host}/app:1", end, "--platform=linux/amd64", "--jobs=1", "--no-referrers"]
        succeed(*argv, "--cache", cache)
    assert fetched(registry) == []
    if target == "HOST":
        return
    first, second = tmp_path / "first", tmp_path / "second"
    if target == "oci:":
        assert assertions.index_of(first) == assertions.index_of(second)
    else:
        assert first.read_bytes() == second.read_bytes()


def test_blobs_are_shared_between_images_and_repositories(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, cache: Path, blobs: list[str]
) -> None:
    pull(registry, "--cache", cache)
    layers = layout.read(image["digest"])["layers"]
    other = layout.image([layers[1], b"more"])
    seed(layout, other, registry.host, "other", "2")
    pull(registry, "--cache", cache, name="other:2")
    assert set(fetched(registry)) & set(blobs) == set()
    assert len(fetched(registry)) == 3


def test_manifests_below_an_index_are_cached(
    served: FaultyRegistry, layout: Layout, cache: Path, tmp_path: Path
) -> None:
    seed(layout, two_platforms(layout), served.host, "app", "1")
    for name in ("first", "second"):
        pull(served, "--cache", cache, "--platform=all", "-o", tmp_path / name)
    assert fetched(served) == []
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_referrers_are_listed_but_not_fetched_again(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, cache: Path, tmp_path: Path
) -> None:
    pull = ["pull", f"{registry.host}/app:1", "--cache", str(cache), "-o"]
    succeed(*pull, tmp_path / "unsigned")
    seed(layout, layout.artifact(b"signature", subject=image), registry.host, "app")
    for name in ("first", "second"):
        registry.requests.clear()
        succeed(*pull, tmp_path / name)
    assert registry.asked("GET", "/referrers/")
    assert fetched(registry) == []
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert (tmp_path / "first").read_bytes() != (tmp_path / "unsigned").read_bytes()


# Requests to the registry in spite of the cache ----------------------------------------------------------------


def test_a_moved_tag_is_resolved_by_the_registry(
    registry: FaultyRegistry, layout: Layout, cache: Path, tmp_path: Path
) -> None:
    pull(registry, "--cache", cache)
    moved = layout.image([b"other"])
    seed(layout, moved, registry.host, "app", "1")
    pull(registry, "--cache", cache, "-o", tmp_path / "x.tar")
    assert [entry["digest"] for entry in assertions.index_of(tmp_path / "x.tar")] == [moved["digest"]]


def test_an_image_that_the_registry_refuses_is_not_read_from_the_cache(
    registry: FaultyRegistry, image: Descriptor, cache: Path
) -> None:
    pull(registry, "--cache", cache)
    for status, code, name in ((401, 3, ":1"), (403, 3, f"@{image['digest']}"), (404, 4, ":1")):
        registry.faults = [Fault(refusal(status), path="/manifests/", times=None)]
        assertions.failure(ocistream("pull", f"{registry.host}/app{name}", "--cache", cache), code)


def test_a_registry_that_does_not_answer_head_is_asked_for_the_manifest(registry: FaultyRegistry, cache: Path) -> None:
    plain = pull(registry, "--cache", cache).out
    for answer in (refusal(405), refusal(403), Header("Docker-Content-Digest", None)):
        registry.faults = [Fault(answer, "HEAD", "/manifests/", times=None)]
        assert pull(registry, "--cache", cache).out == plain
        assert fetched(registry) == ["1"]


def test_a_mirror_is_read_through_the_cache(
    registry: FaultyRegistry, start: Start, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    mirror = start()
    seed(layout, image, mirror.host, "hub/app", "1")
    config = tmp_path / "config.toml"
    config.write_text(f'[registry."{registry.host}"]\nmirrors = ["{mirror.host}/hub"]\n')
    mirror.requests.clear()
    plain = pull(registry, "--cache", tmp_path / "cache", "--config", config).out
    assert len(fetched(mirror)) == 4
    mirror.requests.clear()
    assert pull(registry, "--cache", tmp_path / "cache", "--config", config).out == plain
    assert (fetched(mirror), registry.requests) == ([], [])


# Damaged caches -------------------------------------------------------------------------------------------------


DAMAGE: Final[dict[str, Callable[[bytes], bytes]]] = {
    "flipped at its end": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize(
    ("damage", "to"),
    [
        # Only an archive that is written sequentially must detect the damage before it writes the blob.
        *((damage, "-") for damage in (*DAMAGE, "a folder", "a link", "gone")),
        *(("flipped at its end", "FILE"), ("flipped", "DIR/"), ("longer", "DIR/")),
    ],
)
def test_a_damaged_blob_is_fetched_and_replaced(
    registry: FaultyRegistry, cache: Path, tmp_path: Path, blobs: list[str], image: Descriptor, damage: str, to: str
) -> None:
    plain = pull(registry, "--cache", cache).out
    right = {digest: file_of(cache, digest).read_bytes() for digest in (*blobs, image["digest"])}
    for digest, content in right.items():
        path = file_of(cache, digest)
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        elif damage == "a link":
            path.symlink_to(registry.layout.blob_path(digest))
        elif damage != "gone":
            path.write_bytes(DAMAGE[damage](content))
    argv = [] if to == "-" else ["-o", to.replace("FILE", str(tmp_path / "x")).replace("DIR", str(tmp_path / "y"))]
    result = pull(registry, "--cache", cache, "-v", *argv)
    assert sorted(fetched(registry)) == sorted(["1", *blobs])
    if to == "-":
        assert result.out == plain
    if to == "FILE":
        assert (tmp_path / "x").read_bytes() == plain
    if damage.startswith("flipped"):
        assert result.err.count("is corrupt; fetching it") == 4
    if damage != "a folder":
        assert {digest: file_of(cache, digest).read_bytes() for digest in right} == right
        pull(registry, "--cache", cache)
        assert fetched(registry) == []


def test_an_entry_that_is_not_a_file_affects_only_its_own_blob(
    registry: FaultyRegistry, cache: Path, blobs: list[str]
) -> None:
    file_of(cache, blobs[0]).parent.mkdir(parents=True)
    os.mkfifo(file_of(cache, blobs[0]))
    file_of(cache, blobs[1]).mkdir()
    result = pull(registry, "--cache", cache)
    assert all(f"{digest} is not stored in the cache {cache}" in result.err for digest in blobs[:2])
    pull(registry, "--cache", cache)
    assert sorted(fetched(registry)) == sorted(blobs[:2])


def test_corrupt_downloads_are_not_stored(registry: FaultyRegistry, cache: Path, blobs: list[str]) -> None:
    registry.faults = [Fault(Flip(MIB), "GET", blobs[2], times=None)]
    result = ocistream("pull", f"{registry.host}/app:1", "--no-referrers", "--cache", cache)
    assert result.code == 5
    assert blobs[2] not in files_in(cache)
    assertions.no_partial_files(cache)


def test_a_corrupt_manifest_is_not_stored(served: FaultyRegistry, layout: Layout, cache: Path) -> None:
    index = two_platforms(layout)
    seed(layout, index, served.host, "app", "1")
    wrong = layout.read(index["digest"])["manifests"][1]["digest"]
    served.faults = [Fault(Flip(10), "GET", wrong, times=None)]
    result = ocistream("pull", f"{served.host}/app:1", "--platform=all", "--no-referrers", "--cache", cache)
    assert result.code == 5
    assert index["digest"] in files_in(cache)
    assert wrong not in files_in(cache)


def test_a_wrong_descriptor_does_not_damage_a_cached_blob(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, cache: Path, blobs: list[str]
) -> None:
    pull(registry, "--cache", cache)
    liar = layout.image([{**layout.read(image["digest"])["layers"][1], "size": 17}])
    content = file_of(cache, blobs[2]).read_bytes()
    # No registry would accept a push of this image.
    for digest in (liar["digest"], layout.read(liar["digest"])["config"]["digest"]):
        registry.layout.blob_path(digest).write_bytes(layout.file(digest).read_bytes())
    result = ocistream("pull", f"{registry.host}/app@{liar['digest']}", "--no-referrers", "--cache", cache)
    assert result.code == 5
    assert file_of(cache, blobs[2]).read_bytes() == content


def test_from_byte_uses_verified_cached_blobs(registry: FaultyRegistry, cache: Path, blobs: list[str]) -> None:
    whole = pull(registry, "--cache", cache).out
    path = file_of(cache, blobs[2])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    # The start is in the middle of the last layer, whose cached file has the right size but wrong content.
    start = len(whole) - MIB
    assert pull(registry, "--cache", cache, "--from-byte", str(start)).out == whole[start:]
    assert fetched(registry) == [blobs[2]]


# Unusable caches ------------------------------------------------------------------------------------------------


def test_a_directory_with_other_files_is_refused_before_any_request(registry: FaultyRegistry, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "letter").write_text("dear")
    file.write_text("dear")
    for path, words in ((folder, "not an OCI layout"), (file, "is not a directory")):
        result = ocistream("pull", f"{registry.host}/app:1", "--cache", path)
        assertions.failure(result, 2, str(path), words)
    assert registry.requests == []
    assertions.nothing_left(folder, "letter")


@pytest.mark.parametrize("is_there", [False, True])
def test_an_unwritable_cache_is_only_reported(registry: FaultyRegistry, tmp_path: Path, *, is_there: bool) -> None:
    cache = tmp_path / "cache"
    if is_there:
        pull(registry, "--cache", cache)
        for digest in files_in(cache):
            file_of(cache, digest).unlink()
    for path in (tmp_path / "cache" / "blobs" / "sha256", tmp_path / "cache"):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o555)
    name, target = f"{registry.host}/app:1", tmp_path / "x.tar"
    result = succeed("pull", name, "--no-referrers", "--cache", cache, "-o", target, unprivileged=True)
    assert result.err.count("nothing more is stored in the cache") == 1
    assert target.read_bytes() == pull(registry).out


def test_an_unwritable_cache_is_read(registry: FaultyRegistry, cache: Path, blobs: list[str]) -> None:
    plain = pull(registry, "--cache", cache).out
    file_of(cache, blobs[1]).unlink()
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    registry.requests.clear()
    result = ocistream("pull", f"{registry.host}/app:1", "--no-referrers", "--cache", cache, unprivileged=True)
    assert (result.code, result.out, fetched(registry)) == (0, plain, [blobs[1]])


def test_an_unreadable_cache_is_only_reported(registry: FaultyRegistry, cache: Path) -> None:
    plain = pull(registry, "--cache", cache).out
    cache.chmod(0)
    try:
        result = ocistream("pull", f"{registry.host}/app:1", "--no-referrers", "--cache", cache, unprivileged=True)
    finally:
        cache.chmod(0o755)
    assert (result.code, result.out) == (0, plain)
    assert "nothing more is stored in the cache" in result.err


# Parallel and interrupted pulls ---------------------------------------------------------------------------------


@pytest.mark.uncounted
def test_two_parallel_pulls_of_one_image_succeed(
    registry: FaultyRegistry, cache: Path, tmp_path: Path, blobs: list[str], image: Descriptor
) -> None:
    plain = pull(registry).out
    registry.requests.clear()
    # Both pulls stall in the middle of the same blob, after at least one chunk.
    registry.faults = [Fault(Stall(after=MIB), "GET", blobs[2], times=2)]
    argv = one_by_one(registry, cache)
    with started_fork(*argv, tmp_path / "one") as one, started_fork(*argv, tmp_path / "two") as two:
        assertions.wait_for(lambda: len([r for r in registry.asked("GET", blobs[2]) if r.fault]) == 2)
        registry.release()
        assert (one.wait(60), two.wait(60)) == (0, 0)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == plain
    assert files_in(cache) == {*blobs, image["digest"]}
    succeed("verify", cache)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_pull_leaves_no_partial_blob_in_the_cache(
    registry: FaultyRegistry, cache: Path, blobs: list[str], image: Descriptor, tmp_path: Path, number: signal.Signals
) -> None:
    plain = pull(registry).out
    registry.requests.clear()
    registry.faults = [Fault(Stall(after=MIB), "GET", blobs[2])]
    # The earlier blobs have partial files for a moment, too.
    before = [file_of(cache, digest) for digest in blobs[:2]]

    def is_in_the_last_blob() -> bool:
        partial = before[0].parent.glob(".*.partial")
        return all(path.exists() for path in before) and any(path.stat().st_size for path in partial)

    signalled(number, *one_by_one(registry, cache), tmp_path / "x", until=is_in_the_last_blob)
    registry.release()
    assert files_in(cache) - {f"sha256:{path.name}" for path in cache.rglob(".*")} == {*blobs[:2], image["digest"]}
    assert pull(registry, "--jobs=1", "--cache", cache).out == plain
    assert fetched(registry) == [blobs[2]]
    assertions.no_partial_files(cache)


def test_a_resumed_blob_is_not_fetched_again_for_the_cache(
    registry: FaultyRegistry, cache: Path, blobs: list[str], tmp_path: Path
) -> None:
    registry.faults = [Fault(Stall(after=3 * MIB // 2), "GET", blobs[2])]

    def has_enough() -> bool:
        return any(path.stat().st_size > 5 * MIB // 4 for path in tmp_path.glob(".x.partial"))

    signalled(signal.SIGKILL, *one_by_one(registry, cache), tmp_path / "x", until=has_enough)
    registry.release()
    pull(registry, "--jobs=1", "--cache", cache, "-o", tmp_path / "x")
    (request,) = registry.asked("GET", "/blobs/")
    assert request.headers["Range"]
    assert (tmp_path / "x").read_bytes() == pull(registry).out


# Messages --------------------------------------------------------------------------------------------------------


def test_the_bytes_from_the_cache_are_reported(
    registry: FaultyRegistry, cache: Path, layout: Layout, blobs: list[str], tmp_path: Path
) -> None:
    result, path = tmp_path / "result.json", file_of(cache, blobs[2])
    pull(registry, "--cache", cache, "--result", result)
    assert json.loads(result.read_bytes())["cached"] == 0
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = pull(registry, "--cache", cache, "--result", result, "-o", tmp_path / "x").err
    document = json.loads(result.read_bytes())
    sizes = {digest: layout.file(digest).stat().st_size for digest in blobs}
    assert {blob["digest"]: blob.get("cached") for blob in document["blobs"]} == {
        blobs[0]: sizes[blobs[0]],
        blobs[1]: sizes[blobs[1]],
        blobs[2]: None,
    }
    assert document["cached"] == sizes[blobs[0]] + sizes[blobs[1]]
    assert document["bytes"]["copied"] == sum(sizes.values())
    assert " came from the cache" in said
