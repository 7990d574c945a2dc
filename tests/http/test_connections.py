"""Reuse of connections, and TCP keep-alive of idle ones."""

from __future__ import annotations

import gc
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.http.fixture_types import ONCE, Run
from tests.http.raw_registry import LAYERS, MANIFEST, MANIFESTS, RawRegistry, answer, manifest, read_body
from tests.images import OCI_MANIFEST, Layout
from tests.raw_server import Heard, eventually

MIB: Final = 1 << 20


def test_a_connection_is_reused_after_its_response_was_read(raw: RawRegistry, run: Run) -> None:
    # This includes refusals with a body, also before a retry, and responses to HEAD and to an empty POST.
    raw.says("/referrers/", answer(b"x" * 1000, "404 Not Found"))
    raw.says(LAYERS, answer(b"x" * 1000, "503 Service Unavailable"), times=1)
    assert run("pull", raw.image, "-o", "app.tar", "--jobs=1", *ONCE, "--retries=1").code == 0
    assert len(raw.asked(path=LAYERS)) == 2
    assert raw.accepted == 1
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says(MANIFESTS, answer(status="404 Not Found"), method="HEAD")
    assert run("push", raw.image, "-i", "app.tar", "--jobs=1", *ONCE).code == 0
    assert {request.method for request in raw.requests} >= {"GET", "HEAD", "POST", "PUT"}
    assert raw.accepted == 2


def test_a_connection_is_closed_after_a_partly_read_response(raw: RawRegistry, run: Run) -> None:
    raw.says("/referrers/", answer(b"x" * (8 * MIB), "404 Not Found"))
    assert run("inspect", raw.image, *ONCE).code == 0
    first = raw.asked("GET", "/referrers/")[0].connection
    assert [request.connection for request in raw.requests[-1:]] != [first]
    assert raw.accepted == 2


def test_a_body_without_a_length_ends_with_its_connection(raw: RawRegistry, run: Run) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {OCI_MANIFEST}\r\nConnection: close\r\n\r\n".encode()
    raw.says("/manifests/1$", head + MANIFEST)
    assert run("inspect", raw.image, *ONCE).code == 0
    assert raw.accepted == 2


def test_a_reused_connection_that_the_server_has_closed_is_replaced_without_a_retry(raw: RawRegistry, run: Run) -> None:
    def once(connection: socket.socket, _: Heard) -> None:
        connection.sendall(manifest())

    raw.says("/manifests/1$", once)
    # The server has closed the connection long before the next request.
    assert run("inspect", raw.image, "--max-requests-per-second=4", *ONCE).code == 0
    assert raw.accepted == 2


def break_off(*_: object) -> None:
    """Close the connection after the head of a request, without a response."""


def test_a_request_on_an_idle_connection_that_is_closed_meanwhile_is_sent_on_a_new_one(
    raw: RawRegistry, run: Run
) -> None:
    raw.says("", break_off, method="HEAD|PUT", times=1)
    raw.says("/referrers/", break_off, times=1)
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says(MANIFESTS, answer(status="404 Not Found"), method="HEAD")
    assert run("pull", raw.image, "-o", "app.tar", "--jobs=1", *ONCE).code == 0
    assert run("push", raw.image, "-i", "app.tar", "--jobs=1", *ONCE).code == 0
    assert len(raw.asked("GET", "/referrers/")) == 2


def test_a_request_on_a_new_connection_that_is_closed_is_not_repeated(raw: RawRegistry, run: Run) -> None:
    raw.says("/manifests/1$", break_off)
    assert run("inspect", raw.image, *ONCE).code == 7
    assert len(raw.asked("GET", "/manifests/1$")) == 1


def test_a_response_that_has_begun_on_an_idle_connection_is_not_requested_again(raw: RawRegistry, run: Run) -> None:
    def begin(connection: socket.socket, _: Heard) -> None:
        connection.sendall(b"HTTP/1.1 200 O")

    raw.says("/referrers/", begin)
    assert run("inspect", raw.image, *ONCE).code == 7
    assert len(raw.asked("GET", "/referrers/")) == 1


@pytest.mark.parametrize("jobs", [1, 4])
def test_there_are_no_more_connections_than_jobs(raw: RawRegistry, run: Run, layout: Layout, jobs: int) -> None:
    layers = [layout.random_layer(4000, seed=number)[0] for number in range(20)]
    layout.image(layers, name="app")
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says(MANIFESTS, answer(status="404 Not Found"), method="HEAD")
    assert run("push", raw.image, "-i", layout.path, f"--jobs={jobs}", *ONCE).code == 0
    assert len(raw.asked("PUT")) > 20
    assert raw.accepted <= jobs + 1


def sockets_to(port: int) -> list[list[str]]:
    """Return the lines of /proc/net/tcp of connections to a port of this machine, as seen by their clients."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [line for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "01"]


@pytest.mark.parametrize(("path", "code"), [("/never", 0), ("/manifests/1$", 4)], ids=["success", "failure"])
def test_a_finished_command_leaves_no_connection_open(raw: RawRegistry, run: Run, path: str, code: int) -> None:
    raw.says(path, answer(status="404 Not Found"))
    # The garbage collector would close connections that nothing refers to.
    gc.disable()
    try:
        assert run("inspect", raw.image, *ONCE).code == code
        assert sockets_to(int(raw.host.rpartition(":")[2])) == []
    finally:
        gc.enable()


def test_tcp_keep_alive_is_sent_every_minute(raw: RawRegistry, run: Run) -> None:
    """Keep-alive prevents firewalls from forgetting an idle connection. Timer 2 of the kernel is TCP keep-alive."""
    port = int(raw.host.rpartition(":")[2])
    timers: list[tuple[str, float]] = []

    def slowly(connection: socket.socket, _: Heard) -> None:
        def noted() -> bool:
            found = [line[5].split(":") for line in sockets_to(port)]
            timers[:] = [(kind, int(left, 16) / 100) for kind, left in found if kind == "02"]
            return bool(timers)

        eventually(noted)
        connection.sendall(manifest(Connection="close"))

    raw.says("/manifests/1$", slowly)
    assert run("inspect", raw.image, *ONCE).code == 0
    assert all(0 < left <= 60 for _, left in timers)


def test_the_send_buffer_of_the_kernel_is_limited(raw: RawRegistry, run: Run, layout: Layout) -> None:
    """Bytes in the send buffer are lost with the connection; the kernel's default is several megabytes."""
    port = int(raw.host.rpartition(":")[2])
    layer, _ = layout.random_layer(16 * MIB, seed=1)
    layout.image([layer], name="app")
    waiting: list[int] = []

    def stall(connection: socket.socket, heard: Heard) -> None:
        if int(heard.headers["Content-Length"] or 0) < MIB:
            # The config.
            read_body(connection, heard)
            connection.sendall(answer(status="202 Accepted", Location="/v2/app/blobs/uploads/s", Connection="close"))
            return
        # The client ends after the stall timeout.
        while not raw.over.wait(0.05):
            waiting.extend(int(line[4].partition(":")[0], 16) for line in sockets_to(port))
            if not sockets_to(port):
                return

    raw.limit_receive_buffers(64 << 10)
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says("/uploads/", stall, method="PATCH")
    assert run("push", raw.image, "-i", layout.path, "--jobs=1", "--stall-timeout=0.5", *ONCE).code == 7
    assert 0 < max(waiting) < 1.5 * MIB
