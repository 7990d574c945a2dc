"""A machine that fails: Python imports this file first if PYTHONPATH has its folder.

The variable OCISTREAM_TEST_MACHINE is JSON. `at` is "read" or "write". After more than `after` bytes of one file, the
process gets the error `errno`, or `do` happens: "signal", or "shrink", "grow" or "replace" of that file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from typing import Any

_passed: dict[int, int] = {}
_done: list[bool] = []
_preadv = os.preadv
_NOTHING = '{"at": ""}'


def _plan() -> Any:
    """Read the plan at each use, because a fork has its own plan."""
    return json.loads(os.environ.get("OCISTREAM_TEST_MACHINE") or _NOTHING)


def _note(way: str, descriptor: int, count: int) -> None:
    """Count bytes of one file, and do what the plan says: an action once, an error each time from then on."""
    plan = _plan()
    if way != plan["at"]:
        return
    _passed[descriptor] = _passed.get(descriptor, 0) + count
    if _passed[descriptor] <= plan["after"]:
        return
    if "errno" in plan:
        raise OSError(plan["errno"], os.strerror(plan["errno"]))
    if not _done:
        _done.append(True)
        _ACTIONS[plan["do"]](descriptor)


def _signal(_: int) -> None:
    os.kill(os.getpid(), signal.Signals[_plan()["signal"]])


def _shrink(descriptor: int) -> None:
    os.truncate(_path(descriptor), _plan()["after"])


def _grow(descriptor: int) -> None:
    with open(_path(descriptor), "ab") as file:  # noqa: PTH123 - pathlib's open is this one
        file.write(b"more")


def _replace(descriptor: int) -> None:
    path = _path(descriptor)
    other = f"{path}.other"
    with open(other, "wb") as file:  # noqa: PTH123
        file.write(b"something else")
    os.replace(other, path)  # noqa: PTH105


def _path(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115


_ACTIONS = {"signal": _signal, "shrink": _shrink, "grow": _grow, "replace": _replace}


class _FileIO(io.FileIO):
    """A file whose reads and writes can fail."""

    def write(self, data: Any, /) -> int:
        _note("write", self.fileno(), len(data))
        return super().write(data)

    def readinto(self, buffer: Any, /) -> int:
        got = super().readinto(buffer)
        _note("read", self.fileno(), got)
        return got

    def close(self) -> None:
        with contextlib.suppress(ValueError):
            _passed.pop(self.fileno(), None)
        super().close()


def _preadv_noted(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
    got = _preadv(descriptor, buffers, offset, flags)
    _note("read", descriptor, got)
    return got


io.FileIO = _FileIO  # type: ignore[misc]
os.preadv = _preadv_noted
