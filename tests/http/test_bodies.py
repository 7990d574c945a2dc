"""Bodies of requests: their length, a failing source, slow servers, and early responses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.faulty_registry import Fault, FaultyRegistry, Stall
from tests.http.fixture_types import ONCE, Run
from tests.http.raw_registry import MANIFESTS, Answer, RawRegistry, answer, read_body
from tests.images import Layout
from tests.raw_server import Heard, eventually

MIB: Final = 1 << 20
ACCEPTED: Final = answer(status="202 Accepted", Location="/v2/app/blobs/uploads/session", Connection="close")
REFUSED: Final = answer(
    b'{"errors": [{"code": "DENIED", "message": "too early"}]}', "403 Forbidden", Content_Type="application/json"
)
PROCESSING: Final = b"HTTP/1.1 102 Processing\r\nX-Progress: 1\r\n\r\n"
#: With these options the size of a layer is known or unknown before it is sent.
SIZES: Final = {"known": (), "unknown": ("--compress=zstd",)}


@pytest.fixture
def empty(raw: RawRegistry) -> RawRegistry:
    """Return a registry without blobs and manifests."""
    raw.says("/blobs/", answer(status="404 Not Found"), method="HEAD")
    raw.says(MANIFESTS, answer(status="404 Not Found"), method="HEAD")
    return raw


def large(layout: Layout, size: int = 8 * MIB) -> Path:
    """Write an image with one incompressible layer into the layout, and return the layer's file."""
    layer, _ = layout.random_layer(size, seed=1)
    layout.image([layer], name="app")
    return layout.file(layer["digest"])


def for_layers(of_layer: Answer) -> Answer:
    """Return a response to uploads: `of_layer` for large bodies and those of unknown size; others are accepted."""

    def turn(connection: socket.socket, heard: Heard) -> None:
        if heard.headers["Transfer-Encoding"] or int(heard.headers["Content-Length"] or 0) > MIB // 2:
            assert callable(of_layer)
            of_layer(connection, heard)
        else:
            read_body(connection, heard)
            connection.sendall(ACCEPTED)

    return turn


@pytest.mark.parametrize("size", SIZES)
def test_a_body_has_a_content_length_if_its_size_is_known(
    empty: RawRegistry, run: Run, layout: Layout, size: str
) -> None:
    file = large(layout, MIB)
    received = bytearray()

    def read(connection: socket.socket, heard: Heard) -> None:
        read_body(connection, heard, received)
        connection.sendall(ACCEPTED)

    empty.says("/uploads/", for_layers(read), method="PATCH")
    assert run("push", empty.image, "-i", layout.path, *SIZES[size], *ONCE).code == 0
    sent = empty.asked("PATCH")
    if size == "known":
        assert bytes(received) == file.read_bytes()
        assert {request.headers.get("transfer-encoding") for request in sent} == {None}
    else:
        assert received.endswith(b"\r\n0\r\n\r\n")
        assert "chunked" in {request.headers.get("transfer-encoding") for request in sent}


@pytest.mark.parametrize("size", SIZES)
def test_a_corrupt_source_never_becomes_a_blob(empty: RawRegistry, run: Run, layout: Layout, size: str) -> None:
    file = large(layout)
    content = file.read_bytes()
    file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    received = bytearray()
    over = threading.Event()

    def read(connection: socket.socket, heard: Heard) -> None:
        read_body(connection, heard, received)
        over.set()

    empty.says("/uploads/", for_layers(read), method="PATCH")
    result = run("push", empty.image, "-i", layout.path, *SIZES[size], "--plain-http", "--retries=1")
    # This is not a network failure, so there is no retry.
    assert result.code == 5, result.err
    assert over.wait(60)
    assert len(received) < len(content)
    assert empty.asked("PUT", MANIFESTS) == []
    # Only the config may have been closed.
    assert len(empty.asked("PUT", "/uploads/")) <= 1
    if size == "known":
        # The body is incomplete, so its connection is not reused.
        broken = empty.asked("PATCH")[-1].connection
        assert [request.method for request in empty.requests if request.connection == broken][-1] == "PATCH"


def test_a_slow_server_does_not_time_out_while_bytes_move(empty: RawRegistry, run: Run, layout: Layout) -> None:
    large(layout, 4 * MIB)

    def slowly(connection: socket.socket, heard: Heard) -> None:
        left, pause = int(heard.headers["Content-Length"]), threading.Event()
        while left:
            # Together the pauses take longer than a stall may.
            pause.wait(0.15)
            left -= len(connection.recv(min(left, MIB // 4)))
        connection.sendall(ACCEPTED)

    empty.limit_receive_buffers(128 << 10)
    empty.says("/uploads/", for_layers(slowly), method="PATCH")
    assert run("push", empty.image, "-i", layout.path, "--stall-timeout=2", *ONCE).code == 0


def test_a_server_that_does_not_read_times_out(empty: RawRegistry, run: Run, layout: Layout) -> None:
    large(layout)

    def silent(*_: object) -> None:
        empty.over.wait(60)

    empty.limit_receive_buffers(128 << 10)
    empty.says("/uploads/", for_layers(silent), method="PATCH")
    assertions.failure(run("push", empty.image, "-i", layout.path, "--stall-timeout=0.3", *ONCE), 7, "timed out")


def test_the_response_to_a_large_body_may_take_longer_than_the_stall_timeout(
    start: Callable[..., FaultyRegistry], run: Run, layout: Layout
) -> None:
    """A registry may have to read the complete blob again before it answers the closing request."""
    file = large(layout)
    # 8 MiB extend the timeout by two seconds.
    registry = start(Fault(Stall(2.5), "PUT", file.name))
    assert run("push", f"{registry.host}/app:1", "-i", layout.path, "--stall-timeout=1.5", "--retries=0").code == 0


@pytest.mark.parametrize("reads", [False, True], ids=["reads nothing", "reads on"])
@pytest.mark.parametrize("interim", [b"", PROCESSING * 2], ids=["at once", "after interim responses"])
@pytest.mark.parametrize("size", SIZES)
def test_a_response_before_the_end_of_a_body_stops_the_body(
    empty: RawRegistry, run: Run, layout: Layout, size: str, interim: bytes, reads: bool
) -> None:
    large(layout)
    ended, waited = threading.Event(), list[bool]()

    def refuse(connection: socket.socket, heard: Heard) -> None:
        connection.sendall(interim + REFUSED)
        if reads:
            connection.shutdown(socket.SHUT_WR)
            read_body(connection, heard)
        else:
            # The server does not read the rest of the body.
            waited.append(ended.wait(20))

    empty.limit_receive_buffers(128 << 10)
    empty.says("/uploads/", for_layers(refuse), method="PATCH")
    result = run("push", empty.image, "-i", layout.path, *SIZES[size], "--jobs=1", *ONCE)
    assertions.failure(result, 3, "DENIED: too early")
    ended.set()
    if not reads:
        # The response ended the command, long before the stall timeout.
        eventually(lambda: bool(waited))
        assert waited == [True]
    # The connection has an incomplete body, so it is not reused.
    refused = empty.asked("PATCH")[-1].connection
    assert [request.method for request in empty.requests if request.connection == refused][-1] == "PATCH"


@pytest.mark.parametrize("interim", [PROCESSING, b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_interim_response_does_not_stop_a_body(empty: RawRegistry, run: Run, layout: Layout, interim: bytes) -> None:
    file = large(layout)
    received = bytearray()

    def read(connection: socket.socket, heard: Heard) -> None:
        connection.sendall(interim)
        read_body(connection, heard, received)
        connection.sendall(ACCEPTED)

    empty.says("/uploads/", for_layers(read), method="PATCH")
    assert run("push", empty.image, "-i", layout.path, *ONCE).code == 0
    assert bytes(received) == file.read_bytes()
