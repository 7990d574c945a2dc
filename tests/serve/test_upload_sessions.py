"""The embedded registry's upload sessions: shared, abandoned, mounted, and on a disk that is full."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ocistream import files
from ocistream.serve import RefusedError, Registry
from ocistream.serve.uploads import Uploads
from ocistream.stores.layout_directory import LayoutDirectory
from tests.images import digest_of
from tests.pushing import CONTENT, DIGEST, FIRST, SECOND, begin, blobs, closed, is_stored
from tests.talking import Client, connect, read_all


class TestSessions:
    def test_an_upload_says_how_far_it_is(self, ask: Client) -> None:
        location = begin(ask)
        assert ask("GET", location).headers["Range"] == "0-0"
        ask("PATCH", location, FIRST)
        for method in ("GET", "HEAD"):
            answer = ask(method, location)
            assert (answer.status, answer.headers["Range"]) == (204, "0-999")
            assert answer.headers["Location"] == location

    def test_a_cancelled_upload_is_gone_with_its_bytes(self, ask: Client, served: Registry) -> None:
        location = begin(ask)
        ask("PATCH", location, FIRST)
        assert ask("DELETE", location).status == 204
        assert blobs(served) == []
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            assert ask(method, f"{location}?digest={DIGEST}", b"x").status == 404

    def test_an_unknown_upload_is_an_error(self, ask: Client) -> None:
        answer = ask("PATCH", "/v2/app/blobs/uploads/nothing", FIRST)
        assert (answer.status, answer.codes) == (404, ["BLOB_UPLOAD_UNKNOWN"])

    def test_an_upload_belongs_to_its_repository(self, ask: Client) -> None:
        assert ask("PATCH", begin(ask).replace("/app/", "/other/"), FIRST).status == 404

    def test_two_requests_take_turns_with_one_upload(self, ask: Client, served: Registry) -> None:
        location = begin(ask)
        with connect(served.host) as first:
            first.sendall(
                f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + FIRST[:500]
            )
            while ask("GET", location).headers["Range"] != "0-499":
                time.sleep(0.01)
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

    def test_a_request_that_would_wait_too_long_is_told_to_come_again(
        self, ask: Client, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ocistream.serve.uploads._PATIENCE", 0.01)
        location = begin(ask)
        with connect(served.host) as first:
            first.sendall(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n".encode() + FIRST)
            while ask("GET", location).headers["Range"] != "0-999":
                time.sleep(0.01)
            answer = ask("PATCH", location, SECOND)
            assert (answer.status, answer.codes) == (429, ["TOOMANYREQUESTS"])
            assert answer.headers["Retry-After"] == "1"
            first.sendall(SECOND)
            assert first.recv(12) == b"HTTP/1.1 202"
        assert closed(ask, location) == 201

    def test_a_request_that_waited_for_the_end_of_an_upload_is_told_so(self, ask: Client, served: Registry) -> None:
        location = begin(ask)
        with connect(served.host) as first, connect(served.host) as second:
            first.sendall(
                f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n".encode()
            )
            first.sendall(FIRST)
            while ask("GET", location).headers["Range"] != "0-999":
                time.sleep(0.01)
            second.sendall(f"DELETE {location} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            first.sendall(SECOND)
            assert first.recv(12) == b"HTTP/1.1 201"
            assert b"BLOB_UPLOAD_UNKNOWN" in read_all(second)
        assert is_stored(ask)

    def test_abandoned_uploads_are_dropped_and_the_others_kept(
        self, ask: Client, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        abandoned, held = begin(ask), begin(ask)
        with connect(served.host) as connection:
            connection.sendall(
                f"PATCH {held} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + FIRST[:500]
            )
            while ask("GET", held).headers["Range"] != "0-499":
                time.sleep(0.01)
            monkeypatch.setattr("ocistream.limits.UPLOAD_IDLE", -1.0)
            begin(ask)
            monkeypatch.undo()
            assert ask("GET", abandoned).status == 404
            assert ask("GET", held).status == 204
            connection.sendall(FIRST[500:])
            assert connection.recv(12) == b"HTTP/1.1 202"
        assert len(blobs(served)) == 2

    def test_an_upload_that_goes_on_now_and_then_is_not_abandoned(
        self, ask: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [0.0]
        monkeypatch.setattr("ocistream.serve.uploads.time", SimpleNamespace(monotonic=lambda: clock[0]))
        location = begin(ask)
        for clock[0], status in ((3000.0, 202), (6000.0, 202), (9700.0, 404)):
            begin(ask)
            assert ask("PATCH", location, b"more").status == status

    def test_an_upload_that_is_over_cannot_be_held(self, served: Registry) -> None:
        upload = served.uploads.begin("app")
        with served.uploads.hold(upload):
            upload.discard()
        with pytest.raises(RefusedError, match="no upload"), served.uploads.hold(upload):
            pass

    def test_too_many_uploads_are_refused(self, ask: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ocistream.limits.MAX_UPLOADS", 2)
        location = begin(ask)
        begin(ask)
        answer = ask("POST", "/v2/app/blobs/uploads/")
        assert (answer.status, answer.codes) == (429, ["TOOMANYREQUESTS"])
        ask("DELETE", location)
        begin(ask)

    def test_uploads_end_with_the_registry(self, ask: Client, served: Registry) -> None:
        ask("PATCH", begin(ask), FIRST)
        begin(ask)
        assert len(blobs(served)) == 2
        served.stop()
        assert blobs(served) == []

    def test_what_a_killed_registry_left_is_removed_by_the_next_one(self, ask: Client, served: Registry) -> None:
        """What another process is still writing is not: that has its lock."""
        ask("PATCH", begin(ask), FIRST)
        (alive,) = blobs(served)
        for name in (".dead.upload.partial", ".other.partial"):
            (served.layout.path / "blobs/sha256" / name).write_bytes(FIRST)
        with Registry(served.layout.path):
            assert blobs(served) == sorted([alive, ".other.partial"])

    def test_without_locks_it_is_when_it_is_old(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", no_locks)
        layout = LayoutDirectory(tmp_path / "layout")
        folder = tmp_path / "layout/blobs/sha256"
        folder.mkdir(parents=True)
        old, new = folder / ".old.upload.partial", folder / ".new.upload.partial"
        for path in (old, new):
            path.write_bytes(FIRST)
        os.utime(old, (time.time() - 7200,) * 2)
        uploads = Uploads(layout)
        uploads.clean()
        assert list(folder.iterdir()) == [new]
        uploads.begin("app").discard()


class TestMounts:
    @pytest.mark.parametrize("source", ["&from=other", ""])
    def test_a_blob_that_is_there_is_mounted(self, ask: Client, source: str) -> None:
        ask.upload(CONTENT, "other")
        answer = ask("POST", f"/v2/app/blobs/uploads/?mount={DIGEST}{source}")
        assert (answer.status, answer.headers["Location"]) == (201, f"/v2/app/blobs/{DIGEST}")
        assert answer.headers["Docker-Content-Digest"] == DIGEST

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_one_that_is_not_there_is_uploaded(self, ask: Client, algorithm: str) -> None:
        digest = digest_of(CONTENT, algorithm)  # type: ignore[arg-type]
        location = begin(ask, f"?mount={digest}&from=other")
        ask("PATCH", location, CONTENT)
        assert closed(ask, location, digest) == 201


class TestDisk:
    def test_a_full_disk_is_an_error_and_the_upload_can_go_on(
        self, ask: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        location = begin(ask)
        ask("PATCH", location, FIRST)
        write_all = files.write_all

        def fill(file: object, chunk: bytes | memoryview) -> None:
            write_all(file, chunk[:700])  # type: ignore[arg-type]
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(files, "write_all", fill)
            answer = ask("PATCH", location, SECOND)
        assert (answer.status, answer.codes) == (500, ["UNKNOWN"])
        assert ask("GET", location).headers["Range"] == "0-999"
        short = CONTENT[:1500]
        assert closed(ask, location, digest_of(short), short[1000:]) == 201
        assert is_stored(ask, digest_of(short), short)

    def test_what_had_no_room_gives_up_its_own_when_somebody_else_begins(
        self, ask: Client, served: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        starved, other = begin(ask), begin(ask)
        for location in (starved, other):
            assert ask("PATCH", location, FIRST).status == 202

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(files, "write_all", full)
            assert ask("PATCH", starved, SECOND).status == 500
        begin(ask)
        assert ask("GET", starved).status == 404
        assert ask("GET", other).headers["Range"] == "0-999"
        assert len(blobs(served)) == 2

    def test_one_that_went_on_after_all_is_like_any_other(self, ask: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        location = begin(ask)
        with monkeypatch.context() as broken:
            broken.setattr(files, "write_all", lambda *_: os.write(-1, b""))
            assert ask("PATCH", location, FIRST).status == 500
        assert ask("PATCH", location, FIRST).status == 202
        begin(ask)
        assert ask("GET", location).headers["Range"] == "0-999"
