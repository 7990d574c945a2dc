"""A registry with quirks as values: faults, and changes to requests and responses.

`QuirkyRegistry(path, GZIPS, NO_DIGESTS, ...)` has all these quirks at once, as long as it runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from tests.faulty_registry import Action, Fault, FaultyHandler, FaultyRegistry
from tests.registry import Answer, RefusedError

_PIECE = 1 << 16
#: The path of an upload session: its repository and its identifier.
UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([0-9a-f-]{36})")


@dataclasses.dataclass(frozen=True)
class Quirk:
    """One behavior of a registry, or several that belong together.

    `faults` are those of `tests.faulty_registry`. `inward` sees an admitted request, and may change its target and
    headers, or answer it; `outward` returns the response that replaces another. Both may store values in
    `QuirkyRegistry.memory`.
    """

    name: str
    faults: tuple[Fault, ...] = ()
    #: Whether it needs a second server, whose URL is `QuirkyRegistry.memory["storage"]`.
    elsewhere: bool = False
    inward: Callable[[QuirkyHandler], Answer | None] = lambda _: None
    outward: Callable[[QuirkyHandler, Answer], Answer] = lambda _, answer: answer

    def __str__(self) -> str:
        return self.name


Outward = Callable[["QuirkyHandler", Answer], Answer]
Inward = Callable[["QuirkyHandler"], Answer | None]


def refused(status: int, code: str = "UNSUPPORTED", message: str = "not here", **headers: str) -> Answer:
    """Return a refusal with an error body of the distribution-spec."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = RefusedError(status, code, message).body()
    return Answer(status, {"Content-Type": "application/json", **named}, body)


def changed(answer: Answer, **headers: str | None) -> Answer:
    """Return a response with other headers; None removes a header."""
    named = {**answer.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return dataclasses.replace(answer, headers={name: value for name, value in named.items() if value is not None})


def relocating(change: Callable[[QuirkyHandler, str], str]) -> Outward:
    """Return a function that changes the Location of uploads."""

    def outward(handler: QuirkyHandler, answer: Answer) -> Answer:
        location = answer.headers.get("Location", "")
        return changed(answer, Location=change(handler, location)) if UPLOAD.match(location) else answer

    return outward


def always(name: str, action: Action, method: str = ".*", path: str = "", **options: Any) -> Quirk:
    """Return a quirk with the same action for each of these requests."""
    return Quirk(name, (Fault(action, method, path, **{"times": None, **options}),))


class QuirkyRegistry(FaultyRegistry):
    """A registry with `quirks`; `memory` is their state, which `lock` protects."""

    def __init__(self, path: Path, *quirks: Quirk, **options: Any) -> None:
        """Take the options of `FaultyRegistry`."""
        self.quirks: Sequence[Quirk] = quirks
        self.memory: dict[Any, Any] = {}
        self.lock = threading.Lock()
        # Copy the faults: they have counters, and many registries share a quirk.
        faults = [dataclasses.replace(fault) for quirk in quirks for fault in quirk.faults]
        super().__init__(path, *faults, **options)

    @property
    def handler_type(self) -> type[FaultyHandler]:
        return QuirkyHandler


class QuirkyHandler(FaultyHandler):
    """Serves one connection, with the quirks of its registry."""

    @property
    def registry(self) -> QuirkyRegistry:
        return cast("QuirkyRegistry", super().registry)

    #: Whether the response has no Content-Length.
    unsized = False

    def dispatch(self) -> None:
        self.unsized = False
        super().dispatch()

    def serve_well(self) -> None:
        # The last quirk is the outermost, for requests and for responses.
        for quirk in reversed(self.registry.quirks):
            answer = quirk.inward(self)
            if answer is not None:
                self.answer(answer)
                return
        super().serve_well()

    def transmit(self, answer: Answer) -> None:
        for quirk in self.registry.quirks:
            answer = quirk.outward(self, answer)
        super().transmit(answer)

    def stated_size(self, answer: Answer) -> int | None:
        return None if self.unsized else super().stated_size(answer)


class Tap:
    """A proxy that records everything sent to a server: `host` is its address, `heard` the bytes of all clients."""

    def __init__(self, target: str) -> None:
        """Forward to `target`, HOST:PORT."""
        name, _, port = target.rpartition(":")
        self._target = name, int(port)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self._parts: list[bytearray] = []

    @property
    def heard(self) -> bytes:
        """All bytes so far, connection by connection."""
        return b"".join(map(bytes, self._parts))

    @property
    def connections(self) -> int:
        """The number of connections."""
        return len(self._parts)

    def accept(self) -> None:
        """Serve connections until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                heard = bytearray()
                self._parts.append(heard)
                threading.Thread(target=self._serve, args=(connection, heard), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self, connection: socket.socket, heard: bytearray) -> None:
        with connection, contextlib.suppress(OSError), socket.create_connection(self._target) as other:
            back = threading.Thread(target=_relay, args=(other, connection, bytearray()), daemon=True)
            back.start()
            _relay(connection, other, heard)
            back.join()


@contextlib.contextmanager
def tapped(target: str) -> Iterator[Tap]:
    """Run a tap before `target`, HOST:PORT, while the block runs."""
    tap = Tap(target)
    thread = threading.Thread(target=tap.accept, daemon=True)
    thread.start()
    try:
        yield tap
    finally:
        tap.close()
        thread.join()


def _relay(source: socket.socket, target: socket.socket, heard: bytearray) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            heard += piece
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
