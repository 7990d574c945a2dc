"""Changes of `index.json` by many clients of the embedded registry: written in groups, durable, and none is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ocistream import files, limits
from ocistream.errors import LocalDiskError
from ocistream.model import Descriptor
from ocistream.serve import AccessEntry, Registry
from ocistream.serve.commit_queue import CommitQueue, Outcome
from ocistream.stores.layout_directory import LayoutDirectory
from tests.images import OCI_MANIFEST, Layout, digest_of, small_image
from tests.pushing import entries, image
from tests.talking import Client

CLIENTS = 20
#: Holds the lock of a directory until its stdin ends.
HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    """Have another process hold the lock of a layout within the block."""
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"locked\n"
        yield
        process.stdin.close()


def numbered(number: int, config: dict[str, Any]) -> bytes:
    """Return a manifest that differs from others by a number only."""
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    return json.dumps({**document, "annotations": {"number": str(number)}}).encode()


@pytest.fixture
def put(ask: Client, served: Registry) -> Callable[[int], int]:
    """Return a function that pushes a manifest on a connection of its own, and gives the status."""
    config = image(ask)["config"]

    def push(number: int) -> int:
        with Client(served.host) as client:
            return client("PUT", f"/v2/app/manifests/v{number}", numbered(number, config)).status

    return push


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of files that are written from now on."""
    written: list[Path] = []
    original = files.atomic_file

    def noted(path: Path, *, mode: int = 0o644) -> contextlib.AbstractContextManager[Any]:
        written.append(path)
        return original(path, mode=mode)

    monkeypatch.setattr(files, "atomic_file", noted)
    return written


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Return the list of changes that are queued from now on."""
    changes: list[Outcome] = []
    original = CommitQueue.submit

    def noted(queue: CommitQueue[Any], change: Outcome) -> None:
        changes.append(change)
        original(queue, change)

    monkeypatch.setattr(CommitQueue, "submit", noted)
    return changes


def fill(served: Registry, count: int) -> list[str]:
    """Enter images into a layout as another tool does, and return their digests."""
    digests = [digest_of(b"%d" % number) for number in range(count)]
    name = "org.opencontainers.image.ref.name"
    manifests = [
        {"mediaType": OCI_MANIFEST, "digest": digest, "size": 7, "annotations": {name: f"old/app:v{number}"}}
        for number, digest in enumerate(digests)
    ]
    (served.layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return digests


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_parallel(put: Callable[[int], int], count: int = CLIENTS) -> list[int]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(put, range(count)))


class TestMany:
    def test_parallel_pushes_into_a_layout_of_many_images_are_all_entered(
        self, served: Registry, put: Callable[[int], int]
    ) -> None:
        old = fill(served, 2_000)
        assert in_parallel(put, 40) == [201] * 40
        listed = entries(served)
        assert [entry["digest"] for entry in listed[:2_000]] == old
        names = {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in listed[2_000:]}
        assert names == {f"v{number}" for number in range(40)}
        assert len(listed) == 2_040

    def test_pushes_that_wait_for_another_process_are_written_together(
        self, served: Registry, put: Callable[[int], int], writes: list[Path], queued: list[Outcome]
    ) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            with locked_by_another_process(served.layout.path):
                answers = [pool.submit(put, number) for number in range(CLIENTS)]
                wait_until(lambda: len(queued) == CLIENTS)
                assert not any(answer.done() for answer in answers)
            assert [answer.result() for answer in answers] == [201] * CLIENTS
        assert len(entries(served)) == CLIENTS
        assert 1 <= writes.count(served.layout.path / "index.json") < CLIENTS

    def test_a_refusal_among_them_is_nobody_elses(self, served: Registry, put: Callable[[int], int]) -> None:
        def delete(tag: str) -> list[str]:
            with Client(served.host) as client:
                return client("DELETE", f"/v2/app/manifests/{tag}").codes

        with ThreadPoolExecutor(4) as pool:
            with locked_by_another_process(served.layout.path):
                deleted = [pool.submit(delete, tag) for tag in ("none", "nothing")]
                pushed = [pool.submit(put, number) for number in range(2)]
            assert [answer.result() for answer in deleted] == [["MANIFEST_UNKNOWN"]] * 2
            assert [answer.result() for answer in pushed] == [201] * 2
        assert len(entries(served)) == 2

    def test_deletes_that_wait_for_another_process_are_written_together_too(
        self, served: Registry, put: Callable[[int], int], writes: list[Path], queued: list[Outcome]
    ) -> None:
        assert in_parallel(put, 8) == [201] * 8
        writes.clear()
        queued.clear()

        def delete(number: int) -> int:
            with Client(served.host) as client:
                return client("DELETE", f"/v2/app/manifests/v{number}").status

        with ThreadPoolExecutor(8) as pool:
            with locked_by_another_process(served.layout.path):
                answers = [pool.submit(delete, number) for number in range(8)]
                wait_until(lambda: len(queued) == 8)
            assert [answer.result() for answer in answers] == [202] * 8
        assert entries(served) == []
        assert 1 <= writes.count(served.layout.path / "index.json") < 8


class TestLock:
    def test_waiting_for_our_own_changes_is_not_waiting_for_another_process(
        self, put: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "LOCK_TIME", 0.0)
        assert in_parallel(put) == [201] * CLIENTS

    def test_another_process_that_keeps_the_lock_is_named_and_nothing_is_changed(
        self,
        served: Registry,
        put: Callable[[int], int],
        access_log: list[AccessEntry],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(limits, "LOCK_TIME", 0.1)
        with locked_by_another_process(served.layout.path):
            assert in_parallel(put, 3) == [500] * 3
        assert put(9) == 201
        assert len(entries(served)) == 1
        problems = [entry.problem for entry in access_log if entry.status == 500]
        assert len(problems) == 3
        assert all("another process has the lock" in str(problem) for problem in problems)


class TestOthers:
    def test_a_change_by_another_process_is_kept(self, served: Registry, put: Callable[[int], int]) -> None:
        assert put(0) == 201
        other = Descriptor(OCI_MANIFEST, digest_of(b"other"), 5)
        LayoutDirectory(served.layout.path).change_index(lambda listed: [other, *listed])
        assert put(1) == 201
        assert entries(served)[0]["digest"] == other.digest
        assert len(entries(served)) == 3

    def test_one_that_leaves_the_size_the_time_and_the_inode_is_kept_too(
        self, served: Registry, put: Callable[[int], int]
    ) -> None:
        assert put(0) == 201
        path = served.layout.path / "index.json"
        status = path.stat()
        path.write_bytes(path.read_bytes().replace(b'"v0"', b'"w0"'))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_ino) == (status.st_size, status.st_ino)
        assert put(1) == 201
        assert b'"w0"' in path.read_bytes()
        assert b'"v1"' in path.read_bytes()

    def test_fields_of_others_stay(self, served: Registry, put: Callable[[int], int]) -> None:
        path = served.layout.path / "index.json"
        fields = {"schemaVersion": 2, "manifests": [], "annotations": {"by": "others"}, "x-more": [1]}
        path.write_text(json.dumps(fields))
        assert in_parallel(put, 2) == [201] * 2
        assert {**json.loads(path.read_bytes()), "manifests": []} == fields


class TestCost:
    def test_the_index_is_not_parsed_again_for_what_we_wrote(
        self, ask: Client, served: Registry, put: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parsed: list[bytes | None] = []
        original = LayoutDirectory.parsed_index

        def counted(layout: LayoutDirectory, raw: bytes | None) -> Any:
            parsed.append(raw)
            return original(layout, raw)

        monkeypatch.setattr(LayoutDirectory, "parsed_index", counted)
        for number in range(5):
            assert put(number) == 201
            assert ask("GET", f"/v2/app/manifests/v{number}").status == 200
        assert len(parsed) <= 1
        small_image(Layout(served.layout.path), name="app:other")
        assert ask("GET", "/v2/app/manifests/other").status == 200
        assert len(parsed) <= 2


class TestFailures:
    def test_an_index_that_cannot_be_written_leaves_everything_as_it_was(
        self, ask: Client, served: Registry, put: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert put(0) == 201
        before = (served.layout.path / "index.json").read_bytes()
        digest = entries(served)[0]["digest"]
        original = files.atomic_file

        def full(path: Path, *, mode: int = 0o644) -> contextlib.AbstractContextManager[Any]:
            if path.name == "index.json":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(path, mode=mode)

        with monkeypatch.context() as patch:
            patch.setattr(files, "atomic_file", full)
            assert put(1) == 500
            assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 500
        assert (served.layout.path / "index.json").read_bytes() == before
        # The manifest that is still listed was not deleted.
        assert ask("GET", f"/v2/app/manifests/{digest}").status == 200
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v0"]
        assert put(1) == 201

    def test_no_more_entries_are_written_than_can_be_read_again(
        self, ask: Client, served: Registry, put: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_LISTED", 3)
        assert [put(number) for number in range(4)] == [201, 201, 201, 400]
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v0", "v1", "v2"]
        assert put(0) == 201
        assert len(entries(served)) == 3


class TestQueue:
    def test_a_commit_that_fails_fails_for_its_group_and_not_for_the_next(self) -> None:
        groups: list[int] = []

        def commit(take: Callable[[], Any]) -> None:
            groups.append(len(take()))
            if len(groups) == 1:
                msg = "full"
                raise LocalDiskError(msg)

        queue: CommitQueue[Outcome] = CommitQueue(commit)
        with pytest.raises(LocalDiskError, match="full"):
            queue.submit(Outcome())
        queue.submit(Outcome())
        assert groups == [1, 1]
