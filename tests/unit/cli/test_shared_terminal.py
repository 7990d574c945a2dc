"""Other programs that may write to the same terminal, and new lines next to their output."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ocistream.cli.console import OtherPrograms, move_to_fresh_line
from tests.cli.terminal import Screen


def test_the_other_end_of_a_pipe_is_foreign_until_an_ocistream_is_found_there() -> None:
    reading, writing = os.pipe()
    first, second = OtherPrograms(), OtherPrograms()
    first.add_pipe(writing)
    assert first.can_write()
    assert first.can_write()
    second.add_pipe(reading)
    assert not second.can_write()
    assert not first.can_write()
    # It stays known after it has ended.
    os.close(reading)
    assert not first.can_write()
    os.close(writing)


def test_two_processes_find_each_other() -> None:
    reading, writing = os.pipe()
    first, second = OtherPrograms(), OtherPrograms()
    first.add_pipe(writing)
    second.add_pipe(reading)
    for _ in range(3):
        first.can_write()
        second.can_write()
    assert not first.can_write()
    assert not second.can_write()
    os.close(reading)
    os.close(writing)


def test_a_socket_has_another_end_and_a_file_has_none(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, (tmp_path / "file").open("wb") as file:
        socketed, filed = OtherPrograms(), OtherPrograms()
        socketed.add_pipe(one.fileno())
        filed.add_pipe(file.fileno())
        assert socketed.can_write()
        assert not filed.can_write()
    # A closed descriptor has no other end either.
    filed.add_pipe(10_000)
    assert not filed.can_write()


def test_a_pipe_without_locks_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    reading, writing = os.pipe()
    first, second = OtherPrograms(), OtherPrograms()
    first.add_pipe(writing)
    second.add_pipe(reading)
    assert first.can_write()
    assert second.can_write()
    os.close(reading)
    os.close(writing)


def test_a_command_may_write_while_it_says_so() -> None:
    reading, writing = os.pipe()
    neighbours, asking = OtherPrograms(), [True]
    neighbours.add_pipe(writing)
    neighbours.add_command(lambda: asking[0])
    assert neighbours.can_write(commands_only=True)
    asking[0] = False
    assert not neighbours.can_write(commands_only=True)
    assert neighbours.can_write()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_line_begins_on_a_new_row_at_any_cursor_position(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    for length in range(columns + 1):
        prompt = "?" * length
        screen = Screen(columns, f"{prompt}{move_to_fresh_line()}a line\r\n")
        assert [line for line in screen.lines if line] == [*filter(None, [prompt]), "a line"]
    # At the beginning of a row the prefix is invisible.
    assert Screen(columns, f"{move_to_fresh_line()}a line\r\n").lines == ["a line", ""]


def test_a_terminal_of_unknown_width_gets_a_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    assert move_to_fresh_line() == "\n"


def test_a_pipe_gets_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> os.terminal_size:
        raise OSError(25, "not a terminal")

    monkeypatch.setattr(os, "get_terminal_size", refuse)
    assert move_to_fresh_line() == ""
