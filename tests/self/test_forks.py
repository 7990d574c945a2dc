"""The runs of the command in forks, as `tests.runner` sees them."""

from __future__ import annotations

import socket

from tests.fork_runner import Fork


def test_a_run_may_end_before_anybody_listens() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b'{"pid": 1}\n{"code": 3}\n')
    fork = Fork(ours)
    assert (fork.code, fork.read()) == (3, False)
    fork.close()
