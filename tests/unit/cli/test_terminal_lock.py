"""Whose turn it is to draw on a terminal: one process's at a time."""

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


def test_one_draws_until_it_gives_up(terminal: int) -> None:
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


def test_who_inherits_a_terminal_has_not_inherited_the_turn(terminal: int) -> None:
    copy = os.dup(terminal)
    first, second = TerminalLock(terminal), TerminalLock(copy)
    assert first.acquire()
    assert not second.acquire()
    for turn in (first, second):
        turn.release()
    os.close(copy)


def test_who_has_no_turn_writes_at_the_beginning_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is typed meanwhile, such as ^C, is echoed where the cursor is.
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


def test_two_terminals_have_a_turn_each(terminal: int) -> None:
    ours, theirs = pty.openpty()
    first, second = TerminalLock(terminal), TerminalLock(theirs)
    assert first.acquire()
    assert second.acquire()
    for turn in (first, second):
        turn.release()
    os.close(ours)
    os.close(theirs)


def test_what_is_no_terminal_is_always_ours() -> None:
    reading, writing = os.pipe()
    first, second = TerminalLock(writing), TerminalLock(writing)
    assert first.acquire()
    assert second.acquire()
    assert not is_terminal_locked(writing)
    first.release()
    os.close(reading)
    os.close(writing)
    assert TerminalLock(writing).acquire()
