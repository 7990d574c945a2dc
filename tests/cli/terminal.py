"""Runs ocistream on a terminal: a pty that stands for some or all of its streams."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from typing import Final

from tests.cli.run import TIMEOUT, Argument, command

_SIZE: Final = (24, 100)


@dataclasses.dataclass(frozen=True)
class Seen:
    """How a run ended: `screen` is what appeared on the terminal, echoes included, `out` what its stdout pipe got."""

    code: int
    screen: str
    out: bytes


def on_terminal(
    *argv: Argument,
    streams: Sequence[str] = ("stdin", "stdout", "stderr"),
    dialogue: Sequence[tuple[str, str]] = (),
    env: Mapping[str, str] | None = None,
) -> Seen:
    """Run `ocistream *argv` with a terminal as its `streams`; the others are a pipe (stdout) or nothing.

    `dialogue` is what is typed: each time, once its prompt is on the screen.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *_SIZE, 0, 0))
    process = subprocess.Popen(
        [*command(), *map(str, argv)],
        stdin=theirs if "stdin" in streams else subprocess.DEVNULL,
        stdout=theirs if "stdout" in streams else subprocess.PIPE,
        stderr=theirs if "stderr" in streams else subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        # The terminal is not theirs to control: who asks for a password finds it at stdin.
        start_new_session=True,
    )
    os.close(theirs)
    with os.fdopen(ours, "r+b", buffering=0) as terminal, process:
        screen = b""
        for prompt, answer in dialogue:
            while prompt.encode() not in screen and (shown := _read(terminal.fileno())):
                screen += shown
            terminal.write(answer.encode())
        while shown := _read(terminal.fileno()):
            screen += shown
        out = process.stdout.read() if process.stdout else b""
        return Seen(process.wait(TIMEOUT), screen.decode(), out)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        # EIO: nobody has the other side open any more.
        return b""
