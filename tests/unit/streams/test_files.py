"""Files appear complete or not at all, and disk errors become ocistream errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import threading
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.errors import LocalDiskError, NotFoundError, OutputClosedError
from ocistream.notices import set_listener
from ocistream.streams import files, partial_files
from ocistream.streams.files import (
    FilePart,
    WritebackWriter,
    atomic_file,
    atomic_file_named_later,
    disk_errors,
    locked_directory,
    write_all,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_descriptors() -> int:
    return len(names_in(Path("/proc/self/fd")))


class TestAtomicFile:
    def test_an_old_file_stays_until_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"old")
        with atomic_file(path) as file:
            write_all(file, b"new")
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_changes_nothing(self, tmp_path: Path, error: type[BaseException]) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"old")
        before = open_descriptors()

        def fail() -> None:
            with atomic_file(path) as file:
                write_all(file, b"new")
                raise error

        with pytest.raises(error):
            fail()
        assert path.read_bytes() == b"old"
        assert names_in(tmp_path) == ["a"]
        assert open_descriptors() == before

    def test_a_failing_rename_leaves_no_temporary_file(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "full").mkdir(parents=True)
        with pytest.raises(OSError, match="a"), atomic_file(tmp_path / "a") as file:
            write_all(file, b"new")
        assert names_in(tmp_path) == ["a"]

    def test_the_mode_is_that_of_a_new_file(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            with atomic_file(tmp_path / "a"):
                pass
            with atomic_file(tmp_path / "b", mode=0o600):
                pass
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


class TestSpecialFiles:
    def test_a_fifo_is_never_replaced_by_a_file(self, tmp_path: Path) -> None:
        # As root, the same rename would replace /dev/null by a file.
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(OSError, match="not a regular file") as caught, atomic_file(tmp_path / "fifo") as file:
            write_all(file, b"x")
        assert caught.value.errno == errno.EINVAL
        assert (tmp_path / "fifo").is_fifo()
        assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


class TestCleaningUp:
    def test_files_of_threads_that_do_not_end_are_removed(self, tmp_path: Path) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def stall() -> None:
            with contextlib.suppress(FileNotFoundError), atomic_file(tmp_path / "stalled") as file:
                write_all(file, b"half")
                begun.set()
                go_on.wait(60)

        thread = threading.Thread(target=stall)
        thread.start()
        begun.wait(60)
        with atomic_file(tmp_path / "whole"):
            pass
        assert len(names_in(tmp_path)) == 2
        partial_files.clean_up_unfinished()
        assert names_in(tmp_path) == ["whole"]
        go_on.set()
        thread.join()
        assert names_in(tmp_path) == ["whole"]


class TestDiskErrors:
    @pytest.mark.parametrize(
        ("number", "kind", "code", "hint"),
        [
            (errno.ENOENT, NotFoundError, 4, "mkdir -p"),
            (errno.EPIPE, OutputClosedError, 141, None),
            (errno.ENOSPC, LocalDiskError, 9, "free some space"),
            (errno.EDQUOT, LocalDiskError, 9, "quota"),
            (errno.EFBIG, LocalDiskError, 9, "--split"),
            (errno.EROFS, LocalDiskError, 9, "read-only"),
            (errno.EACCES, LocalDiskError, 9, "permissions"),
            (errno.EIO, LocalDiskError, 9, None),
        ],
    )
    def test_each_error_has_its_class_and_hint(
        self, number: int, kind: type[LocalDiskError], code: int, hint: str | None
    ) -> None:
        with pytest.raises(kind, match=r"^cannot write x: ") as caught, disk_errors("cannot write x"):
            raise OSError(number, os.strerror(number))
        assert caught.value.exit_code == code
        assert (hint or "") in (caught.value.hint or "")
        assert (caught.value.hint is None) == (hint is None)

    def test_an_error_without_a_number_keeps_its_message(self) -> None:
        with pytest.raises(LocalDiskError, match="cannot read x: odd"), disk_errors("cannot read x"):
            raise OSError("odd")


class TestLockedDirectory:
    def test_threads_take_turns(self, tmp_path: Path) -> None:
        inside: list[int] = []
        seen: list[int] = []

        def work() -> None:
            for _ in range(50):
                with locked_directory(tmp_path):
                    inside.append(1)
                    seen.append(len(inside))
                    inside.pop()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(seen) == {1}
        assert len(seen) == 200

    @pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX])
    def test_waiting_for_a_lock_has_a_timeout(self, tmp_path: Path, kind: int) -> None:
        """Every process that can read a directory can lock it."""
        said: list[str] = []
        set_listener(lambda message, *, level: said.append(f"{level} {message}"))
        before = open_descriptors()
        theirs = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(theirs, kind)
        with (
            pytest.raises(LocalDiskError, match=f"lock of {re.escape(str(tmp_path))}") as caught,
            locked_directory(tmp_path, 0),
        ):
            pass
        os.close(theirs)
        assert "lslocks" in (caught.value.hint or "")
        assert open_descriptors() == before
        assert said == []

    def test_a_long_wait_is_reported_once_and_ends_with_the_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        theirs = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(theirs, fcntl.LOCK_EX)

        def let_go(_: float) -> None:
            if tries.pop():
                os.close(theirs)

        tries = [True, False, False]
        set_listener(lambda message, *, level: said.append(f"{level} {message}"))
        monkeypatch.setattr("ocistream.limits.LOCK_NOTICE_DELAY", 0)
        monkeypatch.setattr("time.sleep", let_go)
        with locked_directory(tmp_path):
            assert tries == []
        assert said == [f"0 waiting for another process that has the lock of {tmp_path}"]

    def test_an_interrupt_ends_the_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("time.sleep", interrupt)
        with locked_directory(tmp_path), pytest.raises(KeyboardInterrupt), locked_directory(tmp_path):
            pass

    def test_the_lock_leaves_no_file_and_no_descriptor(self, tmp_path: Path) -> None:
        before = open_descriptors()
        with locked_directory(tmp_path):
            pass
        assert names_in(tmp_path) == []
        assert open_descriptors() == before


class Stingy(io.FileIO):
    """A file that writes three bytes at a time."""

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        return super().write(data[:3])


def test_a_chunk_is_written_completely_after_short_writes(tmp_path: Path) -> None:
    with Stingy(tmp_path / "a", "wb") as file:
        write_all(file, memoryview(b"0123456789"))
        write_all(file, b"")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


class TestWritebackWriter:
    SIZE = 2 * limits.WRITEBACK_SIZE + 3 * limits.READ_BUFFER + 17

    def written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None = None) -> list[range]:
        begun = []

        def advise(_fd: int, offset: int, length: int, _advice: int) -> None:
            begun.append(range(offset, offset + length))
            if error is not None:
                raise error

        monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
        content = memoryview(bytes(range(256)) * (self.SIZE // 256) + b"x" * (self.SIZE % 256))
        with io.FileIO(tmp_path / "a", "wb") as file:
            file.write(b"before")
            writer = WritebackWriter(file)
            for start in range(0, self.SIZE, limits.READ_BUFFER):
                writer.write(content[start : start + limits.READ_BUFFER])
        assert (tmp_path / "a").read_bytes() == b"before" + bytes(content)
        return begun

    def test_writeback_is_started_once_for_each_part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = self.written(tmp_path, monkeypatch)
        assert [len(part) for part in begun] == [limits.WRITEBACK_SIZE] * 2
        assert (begun[0].start, begun[0].stop) == (len(b"before"), begun[1].start)

    def test_a_failing_writeback_is_ignored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert len(self.written(tmp_path, monkeypatch, OSError(22, "invalid"))) == 2

    def test_a_missing_posix_fadvise_is_ignored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
        with io.FileIO(tmp_path / "a", "wb") as file:
            WritebackWriter(file).write(bytes(limits.WRITEBACK_SIZE))
        assert (tmp_path / "a").stat().st_size == limits.WRITEBACK_SIZE


def test_a_directory_that_cannot_be_synced_is_ignored(tmp_path: Path) -> None:
    files.sync_directory(tmp_path / "gone")


class TestNamedAtTheEnd:
    def test_a_file_gets_its_name_when_the_block_ends_and_not_before(self, tmp_path: Path) -> None:
        path = tmp_path / "named"
        path.write_bytes(b"old")
        with atomic_file_named_later(tmp_path) as (file, name):
            write_all(file, b"new")
            name(path)
            assert path.read_bytes() == b"old"
            write_all(file, b"er")
        assert path.read_bytes() == b"newer"
        assert names_in(tmp_path) == ["named"]

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_failure_before_or_after_naming_leaves_nothing(self, tmp_path: Path, when: str) -> None:
        before = open_descriptors()

        def fail() -> None:
            with atomic_file_named_later(tmp_path) as (file, name):
                write_all(file, b"new")
                if when == "after":
                    name(tmp_path / "named")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert names_in(tmp_path) == []
        assert open_descriptors() == before

    def test_a_fifo_is_not_replaced(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(OSError, match="not a regular file"), atomic_file_named_later(tmp_path) as (_, name):
            name(tmp_path / "fifo")
        assert names_in(tmp_path) == ["fifo"]

    def test_the_end_of_the_process_removes_it(self, tmp_path: Path) -> None:
        def interrupted() -> None:
            with atomic_file_named_later(tmp_path) as (_, name):
                name(tmp_path / "named")
                partial_files.clean_up_unfinished()

        with pytest.raises(FileNotFoundError):
            interrupted()
        assert names_in(tmp_path) == []


class TestFilePart:
    def test_it_is_read_by_slices_as_bytes_are(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"before 0123456789 after")
        with path.open("rb") as file:
            part = FilePart(file.fileno(), 7, 10)
            expected = b"0123456789"
            assert len(part) == 10
            for span in (slice(None), slice(3), slice(8, None), slice(4, 40), slice(6, 2), slice(20, 30)):
                assert part[span] == expected[span]

    def test_a_file_that_became_shorter_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"0123456789")
        with path.open("rb") as file:
            part = FilePart(file.fileno(), 0, 10)
            os.truncate(path, 5)
            assert part[:5] == b"01234"
            with pytest.raises(LocalDiskError, match="changed"), disk_errors("cannot read a"):
                part[:]
