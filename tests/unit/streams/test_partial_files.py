"""Partial and temporary files of interrupted runs: resumed if that is safe, removed if nobody can use them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, LocalDiskError, NetworkError, OcistreamError
from ocistream.notices import set_listener
from ocistream.streams import partial_files
from ocistream.streams.files import atomic_file, atomic_file_named_later, resumable_file, write_all
from ocistream.streams.partial_files import is_reserved_name, is_temporary_name, remove_stale, target_name

NAME = ".a.partial"
RANDOM = ".a.0123456789ab.partial"


@pytest.fixture(autouse=True)
def everything_is_worth_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept partial files smaller than a megabyte."""
    monkeypatch.setattr(limits, "MIN_PARTIAL_SIZE", 1)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def heard() -> list[tuple[str, int]]:
    """Return a list of all later notices with their levels."""
    said: list[tuple[str, int]] = []
    set_listener(lambda message, *, level: said.append((message, level)))
    return said


def interrupted(path: Path, content: bytes, error: BaseException | None = None) -> None:
    """Write a file that fails after `content`."""
    with contextlib.suppress(BaseException), resumable_file(path) as partial:
        partial.file.seek(0, os.SEEK_END)
        write_all(partial.file, content)
        raise error or NetworkError("it broke off")


class TestResuming:
    @pytest.mark.parametrize(
        "error", [NetworkError("x"), LocalDiskError("x"), OcistreamError("x"), KeyboardInterrupt()]
    )
    def test_an_interrupted_file_is_resumed(self, tmp_path: Path, error: BaseException) -> None:
        interrupted(tmp_path / "a", b"begin", error)
        assert names_in(tmp_path) == [NAME]
        with resumable_file(tmp_path / "a") as partial:
            assert partial.size() == 5
            partial.file.seek(5)
            write_all(partial.file, b"ning")
        assert (tmp_path / "a").read_bytes() == b"beginning"
        assert names_in(tmp_path) == ["a"]

    @pytest.mark.parametrize("error", [IntegrityError("x"), ArchiveError("x")])
    def test_a_wrong_file_is_not_resumed(self, tmp_path: Path, error: OcistreamError) -> None:
        interrupted(tmp_path / "a", b"begin")
        interrupted(tmp_path / "a", b"wrong", error)
        assert names_in(tmp_path) == []

    def test_a_small_partial_file_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MIN_PARTIAL_SIZE", 6)
        interrupted(tmp_path / "a", b"small")
        assert names_in(tmp_path) == []
        interrupted(tmp_path / "a", b"larger")
        assert names_in(tmp_path) == [NAME]

    def test_a_kept_file_is_reported_until_it_is_complete(self, tmp_path: Path) -> None:
        interrupted(tmp_path / "a", b"begin")
        assert partial_files.kept_files()[tmp_path / NAME] == 5
        with resumable_file(tmp_path / "a"):
            pass
        assert tmp_path / NAME not in partial_files.kept_files()

    def test_a_thread_that_does_not_end_leaves_a_partial_file(self, tmp_path: Path) -> None:
        with contextlib.suppress(NetworkError), resumable_file(tmp_path / "a") as partial, atomic_file(tmp_path / "b"):
            write_all(partial.file, b"begin")
            partial_files.clean_up_unfinished()
            assert names_in(tmp_path) == [NAME]
            assert partial_files.kept_files()[tmp_path / NAME] == 5
            raise NetworkError("x")
        assert names_in(tmp_path) == [NAME]

    def test_the_clean_up_ignores_a_file_that_was_just_closed(self, tmp_path: Path) -> None:
        partial = partial_files.create_temporary(tmp_path, "x", 0o644)
        partial.file.close()
        # A signal may arrive between the closing of the file and the end of `close()`.
        partial_files.clean_up_unfinished()
        partial.close()
        assert partial.size() == 0
        assert not partial.has_name()


class TestConcurrentProcesses:
    def test_two_writers_have_separate_files_and_the_last_one_stays(self, tmp_path: Path) -> None:
        with resumable_file(tmp_path / "a") as first:
            write_all(first.file, b"first")
            with resumable_file(tmp_path / "a") as second:
                assert second.path != first.path
                assert second.size() == 0
                assert is_temporary_name(second.path.name, "a")
                write_all(second.file, b"second")
            assert (tmp_path / "a").read_bytes() == b"second"
        assert (tmp_path / "a").read_bytes() == b"first"
        assert names_in(tmp_path) == ["a"]

    def test_a_file_that_is_renamed_while_it_is_opened_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other process renames its file, and so releases the lock, between our opening and our locking of it."""
        (tmp_path / NAME).write_bytes(b"whole")
        real = fcntl.flock

        def flock(descriptor: int, operation: int) -> None:
            if (tmp_path / NAME).exists():
                (tmp_path / NAME).rename(tmp_path / "a")
            real(descriptor, operation)

        monkeypatch.setattr("fcntl.flock", flock)
        with resumable_file(tmp_path / "a") as partial:
            assert is_temporary_name(partial.path.name)
            write_all(partial.file, b"mine")
            assert (tmp_path / "a").read_bytes() == b"whole"

    def test_a_new_file_belongs_to_the_process_that_locks_it_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other process opens and locks our file between our creating and our locking of it."""
        real, theirs = fcntl.flock, list[int]()

        def flock(descriptor: int, operation: int) -> None:
            if not theirs:
                theirs.append(os.open(tmp_path / NAME, os.O_RDWR))
                real(theirs[0], operation)
            real(descriptor, operation)

        monkeypatch.setattr("fcntl.flock", flock)
        with resumable_file(tmp_path / "a") as partial:
            assert is_temporary_name(partial.path.name, "a")
        os.close(theirs[0])
        assert names_in(tmp_path) == [NAME, "a"]

    def test_a_replaced_partial_file_is_not_renamed(self, tmp_path: Path) -> None:
        def replaced() -> None:
            with resumable_file(tmp_path / "a") as partial:
                write_all(partial.file, b"mine")
                partial.path.unlink()
                partial.path.write_bytes(b"another's half")

        with pytest.raises(FileNotFoundError):
            replaced()
        assert names_in(tmp_path) == [NAME]
        assert (tmp_path / NAME).read_bytes() == b"another's half"

    def test_a_replaced_partial_file_is_not_removed_or_reported(self, tmp_path: Path) -> None:
        with contextlib.suppress(IntegrityError), resumable_file(tmp_path / "a") as partial:
            partial.path.unlink()
            partial.path.write_bytes(b"another's half")
            msg = "x"
            raise IntegrityError(msg)
        assert (tmp_path / NAME).read_bytes() == b"another's half"
        assert tmp_path / NAME not in partial_files.kept_files()


class TestUnusablePartialFiles:
    def test_a_file_of_another_user_is_not_resumed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / NAME).write_bytes(b"theirs")
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
        notices = heard()
        with resumable_file(tmp_path / "a") as partial:
            assert partial.path.name != NAME
        assert (tmp_path / NAME).read_bytes() == b"theirs"
        assert "belongs to another user" in notices[0][0]

    def test_a_file_of_another_process_is_reported_with_verbose(self, tmp_path: Path) -> None:
        notices = heard()
        with resumable_file(tmp_path / "a"), resumable_file(tmp_path / "a"):
            pass
        assert [(tmp_path / NAME).name in message for message, _ in notices] == [True]
        assert notices[0][1] == 1

    def test_without_locks_nothing_is_resumed_and_nothing_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("fcntl.flock", flock)
        with resumable_file(tmp_path / "a") as partial:
            (name,) = names_in(tmp_path)
            assert partial.path.name == name != NAME
            remove_stale(tmp_path, is_temporary_name)
            assert names_in(tmp_path) == [name]
        assert names_in(tmp_path) == ["a"]


class TestMode:
    """The result has the mode of a new file, whatever an earlier run has left."""

    @pytest.mark.parametrize("rights", [0o600, 0o666, 0o4777, 0o2770])
    def test_the_mode_is_that_of_this_run(self, tmp_path: Path, rights: int) -> None:
        interrupted(tmp_path / "a", b"begin")
        (tmp_path / NAME).chmod(rights)
        before = os.umask(0o027)
        try:
            with resumable_file(tmp_path / "a") as partial:
                assert partial.size() == 5
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
        assert names_in(tmp_path) == ["a"]

    def test_a_file_whose_mode_cannot_be_set_is_not_resumed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupted(tmp_path / "a", b"begin")

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr("os.fchmod", refuse)
        with resumable_file(tmp_path / "a") as partial:
            assert partial.size() == 0


class TestLongNames:
    @pytest.mark.parametrize("length", [233, 234, 246, 247, 255])
    def test_any_name_that_the_file_system_accepts_works(self, tmp_path: Path, length: int) -> None:
        path = tmp_path / ("x" * length)
        interrupted(path, b"begin")
        with resumable_file(path) as partial, resumable_file(path) as second:
            assert partial.size() == 5
            assert is_temporary_name(second.path.name, path.name)
            assert not is_temporary_name(second.path.name, "y" * length)
        assert names_in(tmp_path) == [path.name]


class TestEndOfTheProcess:
    def test_no_thread_creates_a_file_after_the_final_clean_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partial_files, "_lock", threading.Lock())
        thread = threading.Thread(target=interrupted, args=(tmp_path / "a", b"begin"), daemon=True)
        partial_files.clean_up_unfinished(ends_process=True)
        thread.start()
        thread.join(0.2)
        assert names_in(tmp_path) == []
        partial_files._lock.release()  # noqa: SLF001 - the process does not end here
        thread.join()
        assert names_in(tmp_path) == [NAME]


class TestRemovingStaleFiles:
    def test_only_files_that_nobody_writes_are_removed(self, tmp_path: Path) -> None:
        (tmp_path / RANDOM).write_bytes(b"left")
        with atomic_file_named_later(tmp_path, "a") as (_, name):
            remove_stale(tmp_path, is_temporary_name)
            (present,) = names_in(tmp_path)
            assert present != RANDOM
            name(tmp_path / "a")
        assert names_in(tmp_path) == ["a"]

    def test_only_files_with_matching_names_are_removed(self, tmp_path: Path) -> None:
        names = [".a.partial", ".b.0123456789ab.partial", RANDOM, "a", ".x.upload.partial", "a.0123456789ab.partial"]
        for name in names:
            (tmp_path / name).write_bytes(b"")
        remove_stale(tmp_path, lambda entry: is_temporary_name(entry, "a"))
        assert names_in(tmp_path) == sorted(set(names) - {RANDOM})
        remove_stale(tmp_path, is_temporary_name)
        assert names_in(tmp_path) == sorted(set(names) - {RANDOM, ".b.0123456789ab.partial"})

    def test_only_old_files_are_removed(self, tmp_path: Path) -> None:
        for name, age in (("old", 100), ("new", 10)):
            (tmp_path / name).write_bytes(b"")
            written = (tmp_path / name).stat().st_mtime - age
            os.utime(tmp_path / name, (written, written))
        remove_stale(tmp_path, lambda _: True, older_than=50)
        assert names_in(tmp_path) == ["new"]

    def test_links_and_other_entries_are_not_removed(self, tmp_path: Path) -> None:
        (tmp_path / "kept").write_bytes(b"mine")
        (tmp_path / RANDOM).symlink_to("kept")
        (tmp_path / ".a.111111111111.partial").hardlink_to(tmp_path / "kept")
        os.mkfifo(tmp_path / ".a.222222222222.partial")
        (tmp_path / ".a.333333333333.partial").mkdir()
        before = names_in(tmp_path)
        remove_stale(tmp_path, is_temporary_name)
        assert names_in(tmp_path) == before

    def test_a_file_replaced_before_it_was_locked_is_not_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / NAME).write_bytes(b"left")
        real = fcntl.flock

        def flock(descriptor: int, operation: int) -> None:
            # The previous owner of the lock renamed the file, and the next process has begun.
            (tmp_path / NAME).replace(tmp_path / "a")
            (tmp_path / NAME).write_bytes(b"begun")
            real(descriptor, operation)

        monkeypatch.setattr("fcntl.flock", flock)
        remove_stale(tmp_path, lambda entry: target_name(entry) is not None)
        assert (tmp_path / NAME).read_bytes() == b"begun"
        assert (tmp_path / "a").read_bytes() == b"left"

    def test_a_file_removed_while_it_is_created_is_created_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, swept = fcntl.flock, list[int]()

        def flock(descriptor: int, operation: int) -> None:
            if not swept:
                swept.append(descriptor)
                remove_stale(tmp_path, is_temporary_name)
            real(descriptor, operation)

        monkeypatch.setattr("fcntl.flock", flock)
        with atomic_file(tmp_path / "a") as file:
            write_all(file, b"content")
        assert (tmp_path / "a").read_bytes() == b"content"
        assert names_in(tmp_path) == ["a"]

    def test_a_file_that_is_briefly_locked_by_another_is_created_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, refused = fcntl.flock, list[int]()

        def flock(descriptor: int, operation: int) -> None:
            if not refused:
                refused.append(descriptor)
                raise BlockingIOError
            real(descriptor, operation)

        monkeypatch.setattr("fcntl.flock", flock)
        with atomic_file(tmp_path / "a"):
            pass
        monkeypatch.undo()
        assert refused
        remove_stale(tmp_path, is_temporary_name)
        assert names_in(tmp_path) == ["a"]

    def test_a_file_that_is_always_locked_by_another_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(*_: object) -> None:
            raise BlockingIOError

        monkeypatch.setattr("fcntl.flock", flock)
        with pytest.raises(BlockingIOError), atomic_file(tmp_path / "a"):
            pass


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (".a.partial", "a"),
        (".a.b.partial", "a.b"),
        (RANDOM, None),
        ("a.partial", None),
        ("..partial", None),
        (".a", None),
    ],
)
def test_the_name_of_a_partial_file_contains_the_target_name(entry: str, name: str | None) -> None:
    assert target_name(entry) == name


def test_reserved_names_are_recognized() -> None:
    assert [name for name in (".a.partial", RANDOM, "a.partial", ".a", "a") if is_reserved_name(name)] == [
        ".a.partial",
        RANDOM,
    ]
