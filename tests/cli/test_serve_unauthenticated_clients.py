"""`ocistream serve` with a password: clients without it do not block clients with it."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from ocistream import limits
from tests.cli.serving import really_serving
from tests.raw_http import connect
from tests.registry_http import get

pytestmark = pytest.mark.usefixtures("interruptible")


def test_clients_wait_in_a_queue_as_long_as_the_number_of_connections(tmp_path: Path) -> None:
    with really_serving(tmp_path / "store") as (process, host), contextlib.ExitStack() as stack:
        # A stopped process is like a busy one: only the kernel accepts connections.
        process.send_signal(signal.SIGSTOP)
        stack.callback(process.send_signal, signal.SIGCONT)
        for _ in range(limits.MAX_CLIENTS):
            stack.enter_context(connect(host))
        process.send_signal(signal.SIGCONT)
        assert get(host, "/v2/")[0] == 200
