"""Updates of `index.json` by many clients and processes: they are written in groups, and none is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ocistream.serve import AccessLogEntry, image_index
from tests.http_push import entries, image
from tests.images import OCI_MANIFEST, digest_of
from tests.raw_http import Client
from tests.raw_server import eventually
from tests.serve.served_layout import Served, SetLimits, largest_file, locked_by_another_process, renamed

CLIENTS = 20


def numbered(number: int, config: dict[str, Any]) -> bytes:
    """Return a manifest that differs from others only by a number."""
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    return json.dumps({**document, "annotations": {"number": str(number)}}).encode()


@pytest.fixture
def put(ask: Client, served: Served) -> Callable[[int], int]:
    """Return a function that pushes a manifest on a new connection and returns the status."""
    config = image(ask)["config"]

    def push(number: int) -> int:
        with Client(served.host) as client:
            return client("PUT", f"/v2/app/manifests/v{number}", numbered(number, config)).status

    return push


def fill(served: Served, count: int) -> list[str]:
    """Add entries to a layout as another tool does, and return their digests."""
    digests = [digest_of(b"%d" % number) for number in range(count)]
    name = "org.opencontainers.image.ref.name"
    manifests = [
        {"mediaType": OCI_MANIFEST, "digest": digest, "size": 7, "annotations": {name: f"old/app:v{number}"}}
        for number, digest in enumerate(digests)
    ]
    (served.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return digests


def in_parallel(put: Callable[[int], int], count: int = CLIENTS) -> list[int]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(put, range(count)))


class TestMany:
    def test_parallel_pushes_into_a_layout_of_many_images_are_all_listed(
        self, served: Served, put: Callable[[int], int]
    ) -> None:
        old = fill(served, 2_000)
        assert in_parallel(put, 40) == [201] * 40
        listed = entries(served.path)
        assert [entry["digest"] for entry in listed[:2_000]] == old
        names = {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in listed[2_000:]}
        assert names == {f"v{number}" for number in range(40)}
        assert len(listed) == 2_040

    def test_pushes_that_wait_for_the_lock_are_written_together(
        self, ask: Client, served: Served, put: Callable[[int], int]
    ) -> None:
        config = image(ask)["config"]
        stored = [served.blob(digest_of(numbered(number, config))) for number in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool, renamed() as names:
            with locked_by_another_process(served.path):
                answers = [pool.submit(put, number) for number in range(CLIENTS)]
                # A manifest is stored before its entry waits for the lock.
                eventually(lambda: all(path.exists() for path in stored))
                assert not any(answer.done() for answer in answers)
            assert [answer.result() for answer in answers] == [201] * CLIENTS
        assert len(entries(served.path)) == CLIENTS
        assert 1 <= names.count(str(served.path / "index.json")) < CLIENTS

    def test_a_refused_change_does_not_affect_others_in_its_group(
        self, served: Served, put: Callable[[int], int]
    ) -> None:
        def delete(tag: str) -> list[str]:
            with Client(served.host) as client:
                return client("DELETE", f"/v2/app/manifests/{tag}").codes

        with ThreadPoolExecutor(4) as pool:
            with locked_by_another_process(served.path):
                deleted = [pool.submit(delete, tag) for tag in ("none", "nothing")]
                pushed = [pool.submit(put, number) for number in range(2)]
            assert [answer.result() for answer in deleted] == [["MANIFEST_UNKNOWN"]] * 2
            assert [answer.result() for answer in pushed] == [201] * 2
        assert len(entries(served.path)) == 2


def test_a_push_parses_and_formats_only_its_own_entry(
    served: Served, put: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(served, 2_000)
    assert put(0) == 201
    calls: list[object] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(arguments)
            return function(*arguments)

        return call

    for name in ("served_names_of", "canonical_json"):
        monkeypatch.setattr(image_index, name, counted(getattr(image_index, name)))
    assert put(1) == 201
    assert 0 < len(calls) < 10
    assert len(entries(served.path)) == 2_002


class TestLock:
    def test_waiting_for_own_changes_does_not_count_as_waiting_for_the_lock(
        self, put: Callable[[int], int], set_limits: SetLimits
    ) -> None:
        set_limits(LOCK_TIMEOUT=0.0)
        assert in_parallel(put) == [201] * CLIENTS

    def test_a_lock_that_another_process_keeps_is_reported_and_nothing_changes(
        self,
        served: Served,
        put: Callable[[int], int],
        access_log: list[AccessLogEntry],
        set_limits: SetLimits,
    ) -> None:
        set_limits(LOCK_TIMEOUT=0.1)
        with locked_by_another_process(served.path):
            assert in_parallel(put, 3) == [500] * 3
        assert put(9) == 201
        assert len(entries(served.path)) == 1
        problems = [entry.problem for entry in access_log if entry.status == 500]
        assert len(problems) == 3
        assert all("another process held the lock of" in str(problem) for problem in problems)


class TestOthers:
    def test_a_change_by_another_process_is_kept(self, served: Served, put: Callable[[int], int]) -> None:
        assert put(0) == 201
        path = served.path / "index.json"
        other = {"mediaType": OCI_MANIFEST, "digest": digest_of(b"other"), "size": 5}
        path.write_text(json.dumps({"schemaVersion": 2, "manifests": [other, *entries(served.path)]}))
        assert put(1) == 201
        assert entries(served.path)[0] == other
        assert len(entries(served.path)) == 3

    def test_a_change_that_keeps_size_time_and_inode_is_noticed(
        self, served: Served, put: Callable[[int], int]
    ) -> None:
        assert put(0) == 201
        path = served.path / "index.json"
        status = path.stat()
        path.write_bytes(path.read_bytes().replace(b'"v0"', b'"w0"'))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_ino) == (status.st_size, status.st_ino)
        assert put(1) == 201
        assert b'"w0"' in path.read_bytes()
        assert b'"v1"' in path.read_bytes()

    def test_unknown_fields_stay(self, served: Served, put: Callable[[int], int]) -> None:
        path = served.path / "index.json"
        fields = {"schemaVersion": 2, "manifests": [], "annotations": {"by": "others"}, "x-more": [1]}
        path.write_text(json.dumps(fields))
        assert in_parallel(put, 2) == [201] * 2
        assert {**json.loads(path.read_bytes()), "manifests": []} == fields


class TestFailures:
    def test_an_index_that_cannot_be_written_changes_nothing(
        self, ask: Client, served: Served, put: Callable[[int], int]
    ) -> None:
        fill(served, 2_000)
        assert put(0) == 201
        before = (served.path / "index.json").read_bytes()
        digest = entries(served.path)[-1]["digest"]
        # A manifest fits on the disk, the index does not.
        with largest_file(64 << 10):
            assert put(1) == 500
            assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 500
        assert (served.path / "index.json").read_bytes() == before
        # The manifest is still listed, so its blob was not deleted.
        assert ask("GET", f"/v2/app/manifests/{digest}").status == 200
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v0"]
        assert put(1) == 201

    def test_the_number_of_entries_is_limited(
        self, ask: Client, served: Served, put: Callable[[int], int], set_limits: SetLimits
    ) -> None:
        set_limits(MAX_LIST_ENTRIES=3)
        assert [put(number) for number in range(4)] == [201, 201, 201, 400]
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v0", "v1", "v2"]
        assert put(0) == 201
        assert len(entries(served.path)) == 3
