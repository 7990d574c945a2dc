"""`ocistream pull`: outputs, selection of platforms, and existing files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.faulty_registry import Fault, FaultyRegistry, Stall, refusal
from tests.images import Descriptor, Layout, small_image, two_platforms
from tests.registry_http import seed
from tests.runner import Argument, ocistream, started_fork


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return a small image."""
    return small_image(layout)


@pytest.fixture
def index(layout: Layout) -> Descriptor:
    """Return an index of linux/amd64 and linux/arm64/v8."""
    return two_platforms(layout)


@pytest.fixture
def registry(served: FaultyRegistry, layout: Layout, image: Descriptor, index: Descriptor) -> FaultyRegistry:
    """Return a registry that has the image as `app:1` and the index as `multi:1`."""
    seed(layout, image, served.host, "app", "1")
    seed(layout, index, served.host, "multi", "1")
    served.requests.clear()
    return served


def pull(registry: FaultyRegistry, *argv: Argument) -> list[str]:
    """Pull from the registry, with its host before known names. Return the result lines."""
    there = {"app:1", "multi:1", "gone:1"}
    result = succeed("pull", *(f"{registry.host}/{word}" if word in there else word for word in argv))
    return result.lines()


def digests_in(target: Path) -> list[str]:
    return [str(entry["digest"]) for entry in assertions.index_of(target)]


# Outputs ---------------------------------------------------------------------------------------------------


def test_output_is_a_layout_for_a_directory_and_a_tar_otherwise(
    registry: FaultyRegistry, image: Descriptor, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for end, is_layout in (("new/", True), ("deep/er/", True), ("empty", True), ("new/again/../", True), ("x", False)):
        pull(registry, "app:1", "-o", f"{tmp_path}/{end}")
        assert (tmp_path / end).is_dir() == is_layout
        assert digests_in(tmp_path / end) == [image["digest"]]


def test_format_overrides_the_path(registry: FaultyRegistry, image: Descriptor, tmp_path: Path) -> None:
    pull(registry, "app:1", "--format=oci", "-o", tmp_path / "plain")
    assert digests_in(tmp_path / "plain") == [image["digest"]]
    assert (tmp_path / "plain").is_dir()
    pull(registry, "app:1", "--format=oci-archive", "-o", tmp_path / "x.tar")
    (tmp_path / "directory").mkdir()
    result = ocistream(
        "pull", f"{registry.host}/app:1", "--format=oci-archive", "-o", tmp_path / "directory"
    )  # fmt: skip
    assertions.failure(result, 2, "directory")
    assertions.nothing_left(tmp_path / "directory")


def test_several_images_in_one_archive_share_blobs(
    registry: FaultyRegistry, layout: Layout, tmp_path: Path, image: Descriptor
) -> None:
    manifest = layout.read(image["digest"])
    shared = manifest["layers"][0]
    second = layout.image([shared, b"of its own"])
    seed(layout, second, registry.host, "second", "2")
    registry.requests.clear()
    for end in ("both.tar", "both/"):
        lines = pull(registry, "app:1", f"{registry.host}/second:2", "app:1", "-o", f"{tmp_path}/{end}")
        assert lines == [f"{registry.host}/app:1@{image['digest']}", f"{registry.host}/second:2@{second['digest']}"]
        assert digests_in(tmp_path / end) == [image["digest"], second["digest"]]
        assert assertions.names_in(tmp_path / end) == ["1", "2"]
    assert len(registry.asked("GET", f"/blobs/{shared['digest']}")) == 2


# Existing outputs --------------------------------------------------------------------------------------------


def test_a_file_that_is_not_an_archive_is_replaced_with_a_notice(registry: FaultyRegistry, tmp_path: Path) -> None:
    target, name = tmp_path / "notes.txt", f"{registry.host}/app:1"
    for content, is_reported in ((b"my notes", True), (b"", False)):
        target.write_bytes(content)
        result = succeed("pull", name, "-o", target)
        said = f"ocistream: replaced {target}, which was not an archive\n"
        assert (said in result.err) is is_reported
    # An archive is replaced by a newer one without a notice, a compressed one too.
    assert "replaced" not in ocistream("pull", name, "-o", target).err
    target.write_bytes(gzip.compress(target.read_bytes()))
    assert "replaced" not in ocistream("pull", name, "-o", target).err


def test_a_pull_into_a_layout_keeps_its_images_and_fetches_no_blob_twice(
    registry: FaultyRegistry, tmp_path: Path, image: Descriptor, index: Descriptor
) -> None:
    target = tmp_path / "layout"
    pull(registry, "app:1", "-o", f"{target}/")
    assert len(registry.asked("GET", "/blobs/")) == 3
    registry.requests.clear()
    pull(registry, "app:1", "-o", target)
    assert registry.asked("GET", "/blobs/") == []
    assert digests_in(target) == [image["digest"]]
    pull(registry, "multi:1", "--platform=all", "-o", target)
    assert digests_in(target) == [image["digest"], index["digest"]]


def test_blobs_of_a_failed_pull_into_a_layout_are_not_fetched_again(
    registry: FaultyRegistry, layout: Layout, tmp_path: Path, image: Descriptor
) -> None:
    last = layout.blobs(image)[-1]["digest"]
    registry.faults = [Fault(refusal(500), "GET", f"/blobs/{last}", times=None)]
    target = f"{tmp_path}/layout/"
    result = ocistream("pull", f"{registry.host}/app:1", "--retries=0", "--jobs=1", "-o", target)
    assertions.failure(result, 7, last)
    assert not (tmp_path / "layout" / "index.json").exists()
    registry.faults = []
    registry.requests.clear()
    pull(registry, "app:1", "-o", target)
    assert [request.path for request in registry.asked("GET", "/blobs/")] == [f"/v2/app/blobs/{last}"]


def test_a_pull_of_a_missing_image_creates_no_layout(registry: FaultyRegistry, tmp_path: Path) -> None:
    target = tmp_path / "layout"
    assertions.failure(ocistream("pull", f"{registry.host}/gone:1", "-o", f"{target}/"), 4)
    assert not target.exists()


# Platforms -----------------------------------------------------------------------------------------------------


def test_platform_all_keeps_the_index_byte_for_byte(
    registry: FaultyRegistry, layout: Layout, index: Descriptor, tmp_path: Path
) -> None:
    for argv in (
        ["--platform=all"],
        ["--all"],
        ["--platform", "linux/amd64", "--platform", "linux/arm64"],
        ["--platform", "linux/amd64,linux/arm64"],
    ):
        pull(registry, "multi:1", *argv, "-o", tmp_path / "x.tar")
        assert digests_in(tmp_path / "x.tar") == [index["digest"]]
        content = dict(assertions.entries(tmp_path / "x.tar"))[f"blobs/sha256/{index['digest'][7:]}"]
        assert content == layout.file(index["digest"]).read_bytes()


def test_all_overrides_a_default_and_contradicts_a_platform(
    registry: FaultyRegistry, index: Descriptor, tmp_path: Path
) -> None:
    target = tmp_path / "x.tar"
    line = ["pull", f"{registry.host}/multi:1", "--all", "-o", str(target)]
    assertions.failure(ocistream(*line, "--platform=linux/amd64"), 2, "all already includes 'linux/amd64'")
    succeed(*line, env={"OCISTREAM_PLATFORM": "linux/amd64"})
    assert digests_in(target) == [index["digest"]]


def test_a_malformed_list_of_platforms_is_refused(registry: FaultyRegistry, index: Descriptor, tmp_path: Path) -> None:
    assert index["digest"]
    for wanted in ("linux/amd64,", ",", "linux/amd64,,linux/arm64", "linux/amd64 linux/arm64"):
        line = ["pull", f"{registry.host}/multi:1", "--platform", wanted, "-o", tmp_path / "x.tar"]
        assertions.failure(ocistream(*line), 2, "malformed platform")


def test_the_default_platform_accepts_an_image_without_an_index(
    registry: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    foreign = layout.image([b"layer"], platform="plan9/mips")
    artifact = layout.artifact(b"words", subject=foreign)
    for name, descriptor in (("foreign", foreign), ("artifact", artifact)):
        seed(layout, descriptor, registry.host, name, "1")
        pull(registry, f"{registry.host}/{name}:1", "-o", tmp_path / "x.tar")
        assert digests_in(tmp_path / "x.tar") == [descriptor["digest"]]


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs_bounds_the_parallel_blobs(registry: FaultyRegistry, layout: Layout, tmp_path: Path, jobs: int) -> None:
    seed(layout, layout.image([f"layer {number}".encode() for number in range(6)]), registry.host, "many", "1")
    registry.requests.clear()
    registry.faults = [Fault(Stall(), "GET", "/blobs/", times=None)]
    target = f"{tmp_path}/layout/"
    with started_fork("pull", f"{registry.host}/many:1", f"--jobs={jobs}", "-o", target) as process:
        assertions.wait_for(lambda: len(registry.asked("GET", "/blobs/")) >= jobs)
        # No request is answered, so another job would have had the time to send one.
        assertions.wait_for(lambda: registry.asked("GET", "/blobs/")[-1].fault)
        assert len(registry.asked("GET", "/blobs/")) == jobs
        registry.release()
        assert process.wait(60) == 0
    assert len(registry.asked("GET", "/blobs/")) == 7
