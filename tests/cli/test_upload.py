"""Uploads: --upload, --mount-from, the method for later blobs, and a broken upload from a pipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.faulty_registry import Fault, FaultyRegistry, StopReading, refusal
from tests.images import Descriptor, Layout, tar_layer
from tests.runner import measured, ocistream

MIB = 1 << 20


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own state directory, because ports are reused."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with a layer of 3 MiB."""
    return layout.image([tar_layer({"file": bytes(3 * MIB)}, compression="")], name="v1")


@pytest.fixture
def archive(layout: Layout, image: Descriptor, tmp_path: Path) -> Path:
    """Return an archive of the image."""
    del image
    path = tmp_path / "image.tar"
    succeed("copy", f"oci:{layout.path}:v1", path)
    return path


def bodies(registry: FaultyRegistry) -> list[tuple[str, int | None, str]]:
    return [
        (request.method, request.status, request.headers["Content-Length"])
        for request in registry.asked("PATCH|PUT", "/uploads/")
        if request.headers["Content-Length"] != "0"
    ]


class TestUpload:
    def test_a_malformed_upload_method_is_a_usage_error(self) -> None:
        push, copy = ["push", "localhost:1/app"], ["copy", "./no.tar", "localhost:1/app"]
        for argv, texts in ((push, ("", "x", "chunk", "chunk=0")), (copy, ("chunk=4T", "put=1"))):
            for text in texts:
                result = ocistream(*argv, "--upload", text)
                assert result.code == 2
                assert "chunk=4MiB" in result.err

    def test_chunks_beyond_the_memory_bound_are_refused(self) -> None:
        result = ocistream("push", "localhost:1/app", "--upload", "chunk=1G")
        assert result.code == 2
        assert "at most chunk=8MiB" in result.err

    @pytest.mark.parametrize(
        ("way", "methods", "count"),
        [
            # The config is small.
            ("auto", {"PATCH", "PUT"}, 2),
            ("stream", {"PATCH"}, 2),
            ("put", {"PUT"}, 2),
            ("chunk=1M", {"PATCH"}, 5),
        ],
    )
    def test_blobs_use_the_requested_method(
        self, served: FaultyRegistry, archive: Path, tmp_path: Path, way: str, methods: set[str], count: int
    ) -> None:
        result = tmp_path / "result.json"
        succeed("push", f"{served.host}/app:1", "--upload", way, "--result", result, stdin=archive)
        assert {sent for sent, _, _ in bodies(served)} == methods
        assert len(bodies(served)) == count
        used = {"auto": "stream", "chunk=1M": "chunk=1048576"}.get(way, way)
        assert json.loads(result.read_bytes())["upload"] == {served.host: used}

    def test_copy_uses_the_requested_method(self, served: FaultyRegistry, archive: Path) -> None:
        succeed("copy", archive, f"{served.host}/app:1", "--upload", "put")
        assert {sent for sent, _, _ in bodies(served)} == {"PUT"}


class TestLearning:
    @pytest.fixture
    def bounded(self, start: Start) -> FaultyRegistry:
        """Return a registry that accepts at most 1 MiB per request."""
        return start(Fault(refusal(413), "PATCH|PUT", larger_than=MIB, times=None))

    def test_the_accepted_method_is_not_stored(self, bounded: FaultyRegistry, archive: Path, state: Path) -> None:
        succeed("push", f"{bounded.host}/app:1", stdin=archive)
        assert [path for path in state.rglob("*") if path.is_file()] == []


def sorted_largest(registry: FaultyRegistry) -> str:
    """Return the digest of the largest blob that a registry has."""
    blobs = (registry.layout.path / "blobs").glob("*/*")
    largest = max(blobs, key=lambda path: path.stat().st_size)
    return f"{largest.parent.name}:{largest.name}"


class TestMountFrom:
    @pytest.mark.uncounted
    @pytest.mark.parametrize(("source", "to"), [("base/image", True), ("HOST/base/image", False)])
    def test_existing_blobs_are_mounted_and_reported(
        self, start: Start, archive: Path, layout: Layout, tmp_path: Path, source: str, to: bool
    ) -> None:
        served = start()
        succeed("push", f"{served.host}/base/image:1", stdin=archive)
        before = len(bodies(served))
        named = tmp_path / "named.tar"
        succeed("copy", f"oci:{layout.path}:v1", f"oci-archive:{named}:old.example/app:1")
        target = ["--to", f"{served.host}/mirror"] if to else [f"{served.host}/app:1"]
        result = tmp_path / "result.json"
        mounts = ["--mount-from", source.replace("HOST", served.host), "--result", str(result)]
        succeed("push", *target, *mounts, stdin=named)
        assert len(bodies(served)) == before
        assert {blob["status"] for blob in json.loads(result.read_bytes())["blobs"]} == {"mounted"}
        assert served.asked("POST", "from=base/image")

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("other.example/base", "is not in localhost:1"),
            ("localhost:2/base", "is not in localhost:1"),
            ("localhost/base", "is not in localhost:1"),
            ("localhost:1/", "is not a repository"),
            ("base:1", "is not a repository"),
            ("base@sha256:00", "is not a repository"),
            ("Base", "is not a repository"),
            ("/base", "is not a repository"),
            ("", "is not a repository"),
            ("../base", "is not in localhost:1"),
        ],
    )
    def test_another_registry_or_an_invalid_repository_is_a_usage_error(self, source: str, said: str) -> None:
        arguments = ["copy", "./a", "localhost:1/a"] if ":" in source else ["push", "--to", "localhost:1"]
        result = ocistream(*arguments, "--mount-from", source)
        assert result.code == 2, result.err
        if source != "../base":
            assert said in result.err

    def test_a_destination_outside_a_registry_is_a_usage_error(self, archive: Path, tmp_path: Path) -> None:
        result = ocistream("copy", archive, tmp_path / "out.tar", "--mount-from", "base")
        assert result.code == 2
        assert not (tmp_path / "out.tar").exists()


class TestBrokenPipes:
    def test_a_large_upload_that_is_interrupted_twice_is_resumed_in_bounded_memory(
        self, start: Start, layout: Layout, tmp_path: Path
    ) -> None:
        layout.image([tar_layer({"zeros": bytes(64 * MIB)}, compression="")], name="v1")
        archive = tmp_path / "image.tar"
        succeed("copy", f"oci:{layout.path}:v1", archive)
        served = start(
            Fault(StopReading(24 * MIB, reset=True), "PATCH", larger_than=56 * MIB),
            Fault(StopReading(8 * MIB), "PATCH", larger_than=24 * MIB),
        )
        assertions.peak(measured("push", f"{served.host}/app:1", stdin=archive))
        received = sum(patch.received for patch in served.asked("PATCH") if int(patch.headers["Content-Length"]) > MIB)
        size = served.layout.blob_path(sorted_largest(served)).stat().st_size
        # Stored bytes were not sent again, although the source is a pipe.
        assert received == size
        assert len(served.asked("PATCH", "")) == 3
