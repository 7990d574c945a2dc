"""`ocistream serve` with a password: clients without it do not block clients with it."""

from __future__ import annotations

import contextlib
import resource
import signal
from pathlib import Path

import pytest

from ocistream import limits
from tests.cli import assertions
from tests.images import Layout, small_image
from tests.raw_http import connect, flood
from tests.registry_http import get
from tests.runner import ocistream, started

pytestmark = pytest.mark.usefixtures("interruptible")

#: The number of connections that the process may have.
PLACES = 5


def test_a_push_succeeds_while_unauthenticated_clients_use_every_connection(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app")
    env = {"OCISTREAM_PASSWORD": "engine-of-1843"}
    argv: list[str | Path] = ["serve", tmp_path / "store", "--listen=127.0.0.1:0", "--username=ada"]
    with started(*argv, env=env) as process, contextlib.ExitStack() as stack:
        assert process.stdout
        host = process.stdout.readline().decode().strip()
        descriptors = limits.RESERVED_FILE_DESCRIPTORS + 4 * PLACES
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
        for _ in range(PLACES + 2):
            stranger = stack.enter_context(connect(host, receive_buffer=4096))
            flood(stranger, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        push: list[str | Path] = ["push", "-i", layout.path, f"{host}/app:1", "--retries=0"]
        assertions.failure(ocistream(*push), 3)
        assertions.success(ocistream(*push, env={"OCISTREAM_USERNAME": "ada", **env}))


def test_clients_wait_in_a_queue_as_long_as_the_number_of_connections(tmp_path: Path) -> None:
    with started("serve", tmp_path / "store", "--listen=127.0.0.1:0") as process, contextlib.ExitStack() as stack:
        assert process.stdout
        host = process.stdout.readline().decode().strip()
        # A stopped process is like a busy one: only the kernel accepts connections.
        process.send_signal(signal.SIGSTOP)
        stack.callback(process.send_signal, signal.SIGCONT)
        for _ in range(limits.MAX_CLIENTS):
            stack.enter_context(connect(host))
        process.send_signal(signal.SIGCONT)
        assert get(host, "/v2/")[0] == 200
