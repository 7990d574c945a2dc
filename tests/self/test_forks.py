"""The fork server that runs the command for `tests.runner`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.fork_runner import Fork, Request, Server, server

#: sitecustomize.py: makes each run leave something in its process.
_LEAVES = """
import os, threading, time
import ocistream.cli.entry_point as entry_point
real = entry_point.main
left = []
def main(arguments, **options):
    code = real(arguments, **options)
    # Not where the server itself runs a few commands, to warm up.
    if "absent" in arguments:
        {leaves}
    return code
entry_point.main = main
"""


def test_a_run_may_end_before_the_client_reads() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b'{"pid": 1}\n{"code": 3}\n')
    fork = Fork(ours)
    assert (fork.code, fork.read()) == (3, False)
    fork.close()


def start(forks: Server, *argv: str, folder: Path, shared: bool = True) -> Fork:
    """Start a run without streams."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return forks.fork(Request(["ocistream", *argv], dict(os.environ), str(folder), shared=shared), [null] * 3)
    finally:
        os.close(null)


def run(forks: Server, *argv: str, folder: Path, shared: bool = True) -> tuple[int, int | None]:
    """Run a command line without streams; return its PID and its exit code."""
    fork = start(forks, *argv, folder=folder, shared=shared)
    while fork.read():
        pass
    fork.close()
    return fork.pid, fork.code


def test_runs_share_a_process_if_allowed(tmp_path: Path) -> None:
    first = run(server(), "--version", folder=tmp_path)
    assert run(server(), "verify", "absent", folder=tmp_path) == (first[0], 4)
    assert run(server(), "--version", folder=tmp_path) == first
    assert run(server(), "--version", folder=tmp_path, shared=False)[0] != first[0]


@pytest.mark.parametrize(
    ("leaves", "is_trace"),
    [
        ("left.append(arguments)", False),
        ("os.open(os.devnull, os.O_RDONLY)", True),
        ("threading.Thread(target=time.sleep, args=(600,), daemon=True).start()", True),
        ("os.fork() or os._exit(0)", True),
    ],
    ids=["nothing", "a descriptor", "a thread", "a process"],
)
def test_a_run_that_leaves_a_trace_ends_its_process(leaves: str, is_trace: bool, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_LEAVES.format(leaves=leaves))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    with contextlib.closing(Server({**environment, "PYTHONPATH": str(tmp_path)})) as forks:
        (first, *codes), (second, *others) = (run(forks, "verify", "absent", folder=tmp_path) for _ in range(2))
    assert codes == others == [4]
    assert (first != second) == is_trace


def test_killing_a_shared_process_ends_its_run_and_the_next_run_gets_a_new_process(tmp_path: Path) -> None:
    fork = start(server(), "serve", str(tmp_path / "store"), "--listen=127.0.0.1:0", folder=tmp_path)
    os.killpg(fork.pid, signal.SIGKILL)
    while fork.read():
        pass
    fork.close()
    assert fork.code == -signal.SIGKILL
    pid, code = run(server(), "--version", folder=tmp_path)
    assert (pid != fork.pid, code) == (True, 0)
