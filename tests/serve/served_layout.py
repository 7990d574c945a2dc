"""An embedded registry over a layout directory, and changes of its environment: limits, disk space, locks."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ocistream.serve import Registry
from tests.certificates import Certificate

#: Sets numbers of `ocistream.limits` by name: `set_limits(MAX_CLIENTS=3)`.
SetLimits = Callable[..., None]
#: Locks a directory until stdin ends.
_LOCK: Final = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


class Served:
    """A registry that serves the layout directory `path`; `options` are those of `Registry`."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.registry = Registry(path, **options)
        self.host = self.registry.host

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        return self.path / "blobs" / digest.replace(":", "/")

    def stop(self) -> None:
        self.registry.stop()

    def __enter__(self) -> Self:
        self.registry.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def server_tls(certificate: Certificate) -> ssl.SSLContext:
    """Return the TLS context of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.file, certificate.key_file)
    return context


@contextlib.contextmanager
def soft_limit(kind: int, value: int) -> Iterator[None]:
    """Lower a limit of this process (`resource.RLIMIT_...`) within the block."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def largest_file(size: int) -> contextlib.AbstractContextManager[None]:
    """Limit all files of this process to `size` bytes within the block: a write fails as on a full disk."""
    return soft_limit(resource.RLIMIT_FSIZE, size)


@contextlib.contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    """Have another process hold the lock of a layout directory within the block."""
    argv = [sys.executable, "-c", _LOCK, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"locked\n"
        yield
        process.stdin.close()


@dataclasses.dataclass
class _Renames:
    """The new names of renamed files, from Python's audit events."""

    active: bool = False
    names: list[str] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_renames: Final = _Renames()
_hooked: Final = threading.Event()


def _note_rename(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename" and _renames.active:
        with _renames.lock:
            _renames.names.append(str(arguments[1]))


@contextlib.contextmanager
def renamed() -> Iterator[list[str]]:
    """Yield the list of paths to which this process renames files within the block."""
    if not _hooked.is_set():
        # A hook cannot be removed.
        sys.addaudithook(_note_rename)
        _hooked.set()
    _renames.names.clear()
    _renames.active = True
    try:
        yield _renames.names
    finally:
        _renames.active = False
