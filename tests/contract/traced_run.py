"""Runs the command in a fork of the test's process, and observes its requests to the operating system.

Only functions of `os` and events of `sys.addaudithook` are observed, so this does not depend on ocistream's structure.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from posix import _exit
from typing import Any, Final, NoReturn

import ocistream
from ocistream.cli import main

#: The audited events that change or read a folder.
STEPS: Final = frozenset({"open", "fcntl.flock", "os.rename", "os.remove", "os.mkdir", "os.scandir"})

#: Whether tests/mutants records what each test executes.
_RECORDS: Final = "TESTS_LINES" in os.environ
#: A run starts with the first. A copy never imports the second; its packages are not always installed.
_NEVER_IMPORTED: Final = ("ocistream.__main__", "ocistream.signatures.keyless")


@dataclasses.dataclass(frozen=True)
class Synced:
    """A file or folder, identified by its inode, was synced with this size."""

    inode: int
    size: int


@dataclasses.dataclass(frozen=True)
class Named:
    """A file got its final name."""

    inode: int
    path: Path


Event = Synced | Named


@functools.cache
def _import_all() -> None:
    """Import every module of ocistream that a copy may import, so that forks need not import them."""
    for module in pkgutil.walk_packages(ocistream.__path__, "ocistream."):
        if module.name not in _NEVER_IMPORTED:
            importlib.import_module(module.name)


def run(argv: list[str], *, prepare: Callable[[], None] = lambda: None) -> int:
    """Run the command in a fork, after `prepare`; return its exit code, or minus the number of a signal."""
    _import_all()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        # Other threads of the tests' process may have been inside C code: do not collect their objects.
        gc.freeze()
        if not _RECORDS:
            sys.settrace(None)
            threading.settrace(None)
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 - it stays open until the fork ends
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - the same
        # The tests may run in the background of a shell, where SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        code = main(argv)
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """End a fork. Coverage replaces `os._exit`, and would write its data again for each fork."""
    if _RECORDS:
        os._exit(code)
    _exit(code)


def ended(argv: list[str], folder: Path, step: int, by: signal.Signals) -> int:
    """Run the command, which gets a signal before step number `step` in `folder`."""
    left = iter(range(step, -1, -1))

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        # The argument for an open file is its descriptor.
        is_step = event in STEPS and (isinstance(arguments[0], int) or str(arguments[0]).startswith(f"{folder}"))
        if is_step and next(left, None) == 0:
            os.kill(os.getpid(), by)

    return hooked(argv, count)


def hooked(argv: list[str], hook: Callable[[str, tuple[Any, ...]], None]) -> int:
    """Run the command with an audit hook."""
    return run(argv, prepare=lambda: sys.addaudithook(hook))


def watched(argv: list[str], notes: Path) -> list[Event]:
    """Run the command, which must succeed; return the synced and named files in order. `notes` is a temporary file."""

    def prepare() -> None:
        file = notes.open("w", buffering=1)
        watch(lambda event: print(json.dumps([type(event).__name__, *map(str, vars(event).values())]), file=file))

    assert run(argv, prepare=prepare) == 0
    kinds: dict[str, Callable[..., Event]] = {
        "Synced": lambda inode, size: Synced(int(inode), int(size)),
        "Named": lambda inode, path: Named(int(inode), Path(path)),
    }
    return [kinds[kind](*values) for kind, *values in map(json.loads, notes.read_text().splitlines())]


def watch(note: Callable[[Event], None], replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Call `note` for each file that is synced or named, from any thread; `replace` replaces functions of `os`."""

    def syncing(real: Callable[[Any], None]) -> Callable[[Any], None]:
        def sync(descriptor: Any) -> None:
            real(descriptor)
            status = os.fstat(descriptor)
            note(Synced(status.st_ino, status.st_size))

        return sync

    def naming(real: Callable[..., None]) -> Callable[..., None]:
        def name(source: Any, target: Any, **options: Any) -> None:
            inode = os.stat(source, dir_fd=options.get("src_dir_fd"), follow_symlinks=False).st_ino
            real(source, target, **options)
            note(Named(inode, Path(target)))

        return name

    for function in ("fsync", "fdatasync"):
        replace(os, function, syncing(getattr(os, function)))
    for function in ("rename", "replace", "link"):
        replace(os, function, naming(getattr(os, function)))
