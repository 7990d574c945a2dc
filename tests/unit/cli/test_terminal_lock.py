"""The lock for drawing on a terminal: one process at a time."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator

import pytest

from ocistream.cli.console import Console, TerminalLock, is_terminal_locked


@pytest.fixture
def terminal() -> Iterator[int]:
    """Return a descriptor of a terminal."""
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def test_one_process_draws_until_it_releases_the_lock(terminal: int) -> None:
    first, second = TerminalLock(terminal), TerminalLock(terminal)
    assert not is_terminal_locked(terminal)
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    assert is_terminal_locked(terminal)
    first.release()
    assert not is_terminal_locked(terminal)
    assert second.acquire()
    second.release()


def test_a_duplicated_descriptor_does_not_have_the_lock(terminal: int) -> None:
    copy = os.dup(terminal)
    first, second = TerminalLock(terminal), TerminalLock(copy)
    assert first.acquire()
    assert not second.acquire()
    for turn in (first, second):
        turn.release()
    os.close(copy)


def test_without_the_lock_an_error_starts_at_the_beginning_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Typed characters, such as ^C, are echoed at the cursor.
    ours, theirs = pty.openpty()
    other = TerminalLock(theirs)
    assert other.acquire()
    monkeypatch.setattr("ocistream.cli.console.is_terminal_locked", lambda _: is_terminal_locked(theirs))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        Console().error("interrupted")
        said = os.read(ours, 1000)
    assert said == b"\r\x1b[2Kocistream: error: interrupted\r\n"
    other.release()
    os.close(ours)


def test_two_terminals_have_separate_locks(terminal: int) -> None:
    ours, theirs = pty.openpty()
    first, second = TerminalLock(terminal), TerminalLock(theirs)
    assert first.acquire()
    assert second.acquire()
    for turn in (first, second):
        turn.release()
    os.close(ours)
    os.close(theirs)


def test_a_pipe_needs_no_lock() -> None:
    reading, writing = os.pipe()
    first, second = TerminalLock(writing), TerminalLock(writing)
    assert first.acquire()
    assert second.acquire()
    assert not is_terminal_locked(writing)
    first.release()
    os.close(reading)
    os.close(writing)
    assert TerminalLock(writing).acquire()
