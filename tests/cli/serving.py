"""Run `ocistream serve`."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

from tests.runner import Argument, Environment, Running, started, started_fork


@contextlib.contextmanager
def serving(*argv: Argument, listen: str = "127.0.0.1:0", **options: Any) -> Iterator[tuple[Running, str]]:
    """Run `ocistream serve` in a fork, and yield the process and the address that it prints."""
    with started_fork("serve", *argv, "--listen", listen, **options) as process:
        yield process, process.stdout.readline().decode().rstrip("\n")


@contextlib.contextmanager
def really_serving(*argv: Argument, env: Environment | None = None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `ocistream serve` in a real process, to measure its memory and descriptors."""
    with started("serve", *argv, "--listen=127.0.0.1:0", env=env) as process:
        assert process.stdout
        yield process, process.stdout.readline().decode().rstrip("\n")


def stop(process: Running) -> str:
    """End a server with SIGTERM, and return its stderr."""
    process.terminate()
    return process.communicate(timeout=60)[1].decode()
