"""Bodies that arrive fast in small pieces: few reads, no wait after the last byte, and no false stall."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import pytest

from ocistream import limits
from tests.http.fixture_types import ONCE, Run
from tests.http.raw_registry import MANIFESTS, Answer, RawRegistry, answer
from tests.images import OCI_MANIFEST, Layout
from tests.raw_server import Heard

KIB: Final = 1 << 10
PIECE: Final = 16 * KIB


@pytest.fixture(autouse=True)
def always_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat a body as fast after its first 256 KiB, even on a busy machine."""
    monkeypatch.setattr(limits, "MAX_COLLECT_TIME", float("inf"))


def serve(
    raw: RawRegistry, layout: Layout, sizes: Sequence[int], answer_layer: Callable[[bytes], Answer] = answer
) -> None:
    """Give the registry an image with random layers of these sizes, each with its own response."""
    layers = [layout.random_layer(size, seed=number)[0] for number, size in enumerate(sizes)]
    manifest = layout.image(layers, name="app")
    raw.says(MANIFESTS, answer(layout.file(manifest["digest"]).read_bytes(), Content_Type=OCI_MANIFEST))
    config = layout.read(manifest["digest"])["config"]["digest"]
    raw.says(config, answer(layout.file(config).read_bytes()))
    for layer in layers:
        raw.says(layer["digest"], answer_layer(layout.file(layer["digest"]).read_bytes()))


def in_pieces(pieces: Sequence[tuple[int, float]], body: bytes) -> Answer:
    """Return a response whose body is sent in pieces, each with a size and a pause before it; then the rest."""

    def send(connection: socket.socket, _: Heard) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(answer(body, Connection="close").removesuffix(body))
        sent, pause = 0, threading.Event()
        for size, seconds in pieces:
            pause.wait(seconds)
            connection.sendall(body[sent : sent + size])
            sent += size
        connection.sendall(body[sent:])

    return send


def test_a_fast_body_is_read_in_large_pieces(
    raw: RawRegistry, run: Run, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4096 * KIB
    serve(raw, layout, [size], partial(in_pieces, [(PIECE, 0.001)] * (size // PIECE)))
    received: list[int] = []
    receive = socket.socket.recv_into

    def count(self: socket.socket, buffer: memoryview, *arguments: int) -> int:
        received.append(receive(self, buffer, *arguments))
        return received[-1]

    monkeypatch.setattr(socket.socket, "recv_into", count)
    assert run("pull", raw.image, "-o", "app.tar", *ONCE).code == 0
    assert sum(received) > size
    assert len(received) < size / (64 * KIB)


def test_a_connection_is_reused_after_a_body_whose_last_bytes_arrived_together(
    raw: RawRegistry, run: Run, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = socket.socket.recv_into

    def receive_late(self: socket.socket, buffer: memoryview) -> int:
        threading.Event().wait(0.02)
        return receive(self, memoryview(buffer)[: 300 * KIB])

    monkeypatch.setattr(socket.socket, "recv_into", receive_late)
    serve(raw, layout, [500 * KIB, 4 * KIB] * 3)
    assert run("pull", raw.image, "-o", "app.tar", "--jobs=1", "--stall-timeout=5", *ONCE).code == 0
    assert raw.accepted == 1


def test_bytes_that_arrive_slowly_after_a_fast_start_are_not_a_stall(
    raw: RawRegistry, run: Run, layout: Layout
) -> None:
    # The pauses together exceed the stall timeout, and the pieces together are smaller than a read.
    pieces = [(1024 * KIB, 0.0), *[(KIB, 0.15)] * 16]
    serve(raw, layout, [2048 * KIB], partial(in_pieces, pieces))
    assert run("pull", raw.image, "-o", "app.tar", "--stall-timeout=2", *ONCE).code == 0


def test_silence_after_a_fast_start_is_a_stall(raw: RawRegistry, run: Run, layout: Layout) -> None:
    def stop(layer: bytes) -> Answer:
        def send(connection: socket.socket, _: Heard) -> None:
            connection.sendall(answer(layer)[: 1024 * KIB])
            raw.over.wait(60)

        return send

    serve(raw, layout, [2048 * KIB], stop)
    result = run("pull", raw.image, "-o", "app.tar", "--stall-timeout=0.5", *ONCE)
    assert result.code == 7
    assert "timed out" in result.err
