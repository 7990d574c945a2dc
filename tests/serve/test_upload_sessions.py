"""Upload sessions: offsets, concurrent requests, idle sessions, mounts, and a full disk."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from tests.http_push import CONTENT, DIGEST, FIRST, SECOND, begin, blobs, closed, is_stored
from tests.images import digest_of
from tests.raw_http import Client, connect, read_all
from tests.raw_server import eventually
from tests.serve.served_layout import Served, SetLimits, largest_file


class TestSessions:
    def test_an_upload_reports_its_offset(self, ask: Client) -> None:
        location = begin(ask)
        assert ask("GET", location).headers["Range"] == "0-0"
        ask("PATCH", location, FIRST)
        for method in ("GET", "HEAD"):
            answer = ask(method, location)
            assert (answer.status, answer.headers["Range"]) == (204, "0-999")
            assert answer.headers["Location"] == location

    def test_a_cancelled_upload_is_removed(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        ask("PATCH", location, FIRST)
        assert ask("DELETE", location).status == 204
        assert blobs(served.path) == []
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            assert ask(method, f"{location}?digest={DIGEST}", b"x").status == 404

    def test_an_unknown_upload_is_an_error(self, ask: Client) -> None:
        assert ask("PATCH", "/v2/app/blobs/uploads/nothing", FIRST).refusal == (404, ["BLOB_UPLOAD_UNKNOWN"])

    def test_an_upload_belongs_to_its_repository(self, ask: Client) -> None:
        assert ask("PATCH", begin(ask).replace("/app/", "/other/"), FIRST).status == 404

    def test_two_requests_to_one_upload_run_one_after_the_other(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        with connect(served.host) as first:
            first.sendall(
                f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + FIRST[:500]
            )
            eventually(lambda: ask("GET", location).headers["Range"] == "0-499")
            statuses: list[int] = []

            def close() -> None:
                with Client(served.host) as other:
                    statuses.append(closed(other, location, body=SECOND))

            second = threading.Thread(target=close)
            second.start()
            first.sendall(FIRST[500:])
            assert first.recv(12) == b"HTTP/1.1 202"
            second.join()
        assert statuses == [201]
        assert is_stored(ask)

    def test_a_request_that_waited_until_the_upload_closed_is_refused(self, ask: Client, served: Served) -> None:
        location = begin(ask)
        with connect(served.host) as first, connect(served.host) as second:
            first.sendall(
                f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n".encode()
            )
            first.sendall(FIRST)
            eventually(lambda: ask("GET", location).headers["Range"] == "0-999")
            second.sendall(f"DELETE {location} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            first.sendall(SECOND)
            assert first.recv(12) == b"HTTP/1.1 201"
            assert b"BLOB_UPLOAD_UNKNOWN" in read_all(second)
        assert is_stored(ask)

    def test_idle_uploads_are_dropped_and_active_ones_kept(
        self, ask: Client, served: Served, set_limits: SetLimits
    ) -> None:
        abandoned, held = begin(ask), begin(ask)
        with connect(served.host) as connection:
            connection.sendall(
                f"PATCH {held} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + FIRST[:500]
            )
            eventually(lambda: ask("GET", held).headers["Range"] == "0-499")
            usual = limits.UPLOAD_IDLE_TIMEOUT
            set_limits(UPLOAD_IDLE_TIMEOUT=-1.0)
            begin(ask)
            set_limits(UPLOAD_IDLE_TIMEOUT=usual)
            assert ask("GET", abandoned).status == 404
            assert ask("GET", held).status == 204
            connection.sendall(FIRST[500:])
            assert connection.recv(12) == b"HTTP/1.1 202"
        assert len(blobs(served.path)) == 2

    def test_an_upload_that_gets_bytes_now_and_then_is_kept(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, skipped = time.monotonic, [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: real() + skipped[0])
        with Client(served.host) as first:
            location = begin(first)
        for skipped[0], status in ((3000.0, 202), (6000.0, 202), (9700.0, 404)):
            # The registry drops idle sessions when it opens a new one.
            with Client(served.host) as ask:
                begin(ask)
                assert ask("PATCH", location, b"more").status == status

    def test_too_many_uploads_are_refused(self, ask: Client, set_limits: SetLimits) -> None:
        set_limits(MAX_UPLOADS=2)
        location = begin(ask)
        begin(ask)
        assert ask("POST", "/v2/app/blobs/uploads/").refusal == (429, ["TOOMANYREQUESTS"])
        ask("DELETE", location)
        begin(ask)

    def test_uploads_without_bytes_do_not_keep_others_from_pushing(self, ask: Client, set_limits: SetLimits) -> None:
        set_limits(MAX_UPLOADS=2)
        started, empty = begin(ask), begin(ask)
        ask("PATCH", started, FIRST)
        set_limits(EMPTY_UPLOAD_TIMEOUT=-1.0)
        assert ask("POST", "/v2/app/blobs/uploads/").status == 202
        assert ask("GET", empty).status == 404
        assert closed(ask, started, body=SECOND) == 201

    def test_uploads_are_removed_when_the_registry_stops(self, ask: Client, served: Served) -> None:
        ask("PATCH", begin(ask), FIRST)
        begin(ask)
        assert len(blobs(served.path)) == 2
        served.stop()
        assert blobs(served.path) == []

    def test_files_of_a_killed_registry_are_removed_by_the_next_one(self, ask: Client, served: Served) -> None:
        """A file that another process is still writing stays: that process holds its lock."""
        ask("PATCH", begin(ask), FIRST)
        (alive,) = blobs(served.path)
        for name in (".dead.upload.partial", ".other.partial"):
            (served.path / "blobs/sha256" / name).write_bytes(FIRST)
        with Served(served.path):
            assert blobs(served.path) == sorted([alive, ".other.partial"])

    def test_without_file_locks_only_old_files_are_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = fcntl.flock

        def no_locks(file: Any, operation: int) -> None:
            """Lock directories only."""
            number = file if isinstance(file, int) else file.fileno()
            if not stat.S_ISDIR(os.fstat(number).st_mode):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            real(number, operation)

        monkeypatch.setattr("fcntl.flock", no_locks)
        folder = tmp_path / "layout/blobs/sha256"
        folder.mkdir(parents=True)
        (tmp_path / "layout/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        old, new = folder / ".old.upload.partial", folder / ".new.upload.partial"
        for path in (old, new):
            path.write_bytes(FIRST)
        os.utime(old, (time.time() - 7200,) * 2)
        with Served(tmp_path / "layout") as registry, Client(registry.host) as ask:
            assert list(folder.iterdir()) == [new]
            ask.upload(CONTENT)
            assert is_stored(ask)


class TestMounts:
    @pytest.mark.parametrize("source", ["&from=other", ""])
    def test_an_existing_blob_is_mounted(self, ask: Client, source: str) -> None:
        ask.upload(CONTENT, "other")
        answer = ask("POST", f"/v2/app/blobs/uploads/?mount={DIGEST}{source}")
        assert (answer.status, answer.headers["Location"]) == (201, f"/v2/app/blobs/{DIGEST}")
        assert answer.headers["Docker-Content-Digest"] == DIGEST

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_a_missing_blob_is_uploaded_in_the_session_of_the_mount(self, ask: Client, algorithm: str) -> None:
        digest = digest_of(CONTENT, algorithm)  # type: ignore[arg-type]
        location = begin(ask, f"?mount={digest}&from=other")
        ask("PATCH", location, CONTENT)
        assert closed(ask, location, digest) == 201


class TestDisk:
    def test_an_upload_can_be_resumed_after_a_full_disk(self, ask: Client) -> None:
        location = begin(ask)
        ask("PATCH", location, FIRST)
        with largest_file(1700):
            answer = ask("PATCH", location, SECOND)
        assert answer.refusal == (500, ["UNKNOWN"])
        assert ask("GET", location).headers["Range"] == "0-999"
        short = CONTENT[:1500]
        assert closed(ask, location, digest_of(short), short[1000:]) == 201
        assert is_stored(ask, digest_of(short), short)

    def test_an_upload_stopped_by_a_full_disk_is_dropped_for_the_next_one(self, ask: Client, served: Served) -> None:
        stopped, other = begin(ask), begin(ask)
        for location in (stopped, other):
            assert ask("PATCH", location, FIRST).status == 202
        with largest_file(1000):
            assert ask("PATCH", stopped, SECOND).status == 500
        begin(ask)
        assert ask("GET", stopped).status == 404
        assert ask("GET", other).headers["Range"] == "0-999"
        assert len(blobs(served.path)) == 2

    def test_an_upload_resumed_after_a_full_disk_is_kept(self, ask: Client) -> None:
        location = begin(ask)
        with largest_file(0):
            assert ask("PATCH", location, FIRST).status == 500
        assert ask("PATCH", location, FIRST).status == 202
        begin(ask)
        assert ask("GET", location).headers["Range"] == "0-999"
