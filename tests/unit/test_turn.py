"""Whose turn it is to draw on a terminal: one process's at a time."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator

import pytest

from ocistream.cli.console import Console
from ocistream.cli.terminal_lock import Turn, is_drawn_on


@pytest.fixture
def terminal() -> Iterator[int]:
    """Return a descriptor of a terminal."""
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def test_one_draws_until_it_gives_up(terminal: int) -> None:
    first, second = Turn(terminal), Turn(terminal)
    assert not is_drawn_on(terminal)
    assert first.take()
    assert first.take()
    assert not second.take()
    assert is_drawn_on(terminal)
    first.give_up()
    assert not is_drawn_on(terminal)
    assert second.take()
    second.give_up()


def test_who_inherits_a_terminal_has_not_inherited_the_turn(terminal: int) -> None:
    copy = os.dup(terminal)
    first, second = Turn(terminal), Turn(copy)
    assert first.take()
    assert not second.take()
    for turn in (first, second):
        turn.give_up()
    os.close(copy)


def test_who_has_no_turn_writes_at_the_beginning_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is typed meanwhile, such as ^C, is echoed where the cursor is.
    ours, theirs = pty.openpty()
    other = Turn(theirs)
    assert other.take()
    monkeypatch.setattr("ocistream.cli.console._is_drawn_on", lambda: is_drawn_on(theirs))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        Console().error("interrupted")
        said = os.read(ours, 1000)
    assert said == b"\r\x1b[2Kocistream: error: interrupted\r\n"
    other.give_up()
    os.close(ours)


def test_two_terminals_have_a_turn_each(terminal: int) -> None:
    ours, theirs = pty.openpty()
    first, second = Turn(terminal), Turn(theirs)
    assert first.take()
    assert second.take()
    for turn in (first, second):
        turn.give_up()
    os.close(ours)
    os.close(theirs)


def test_what_is_no_terminal_is_always_ours() -> None:
    reading, writing = os.pipe()
    first, second = Turn(writing), Turn(writing)
    assert first.take()
    assert second.take()
    assert not is_drawn_on(writing)
    first.give_up()
    os.close(reading)
    os.close(writing)
    assert Turn(writing).take()
