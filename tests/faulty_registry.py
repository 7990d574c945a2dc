"""A registry with faults, passwords and tokens as data, with TLS, and with a record of every request.

`FaultyRegistry` is the registry of `tests.registry`. It carries out the action of a `Fault` on the requests that the
fault matches, and answers all other requests correctly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import os
import re
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from tests.fault_actions import (
    Action,
    Drop,
    EndTokens,
    Flip,
    FlipReceived,
    Gzip,
    HangUp,
    Header,
    IgnoreRange,
    NoContentLength,
    PauseReading,
    Refuse,
    Reply,
    Reset,
    Resize,
    Stall,
    StopReading,
    WithholdAnswer,
    redirect,
    refusal,
    too_many_requests,
)
from tests.faulty_auth import Auth, Bearer, Denied
from tests.registry import Answer, Body, Handler, Part, Registry

if TYPE_CHECKING:
    from tests.certificates import Certificate

__all__ = [
    "Action",
    "Drop",
    "EndTokens",
    "Fault",
    "FaultyHandler",
    "FaultyRegistry",
    "Flip",
    "FlipReceived",
    "Gzip",
    "HangUp",
    "Header",
    "IgnoreRange",
    "NoContentLength",
    "PauseReading",
    "Refuse",
    "Reply",
    "Request",
    "Reset",
    "Resize",
    "Stall",
    "StopReading",
    "WithholdAnswer",
    "pieces_of",
    "redirect",
    "refusal",
    "too_many_requests",
]

_PIECE = 1 << 16
#: Seconds that bytes sent before a reset have to reach the client's machine.
_FLUSH_TIMEOUT = 5.0


@dataclasses.dataclass
class Fault:
    """`action` is done to requests with this method and with `path` (searched for in path and query).

    Both patterns are regular expressions. The first `skip` matches are spared; then the fault applies `times` times
    (None: always). `larger_than` spares requests whose Content-Length is not larger. With `before_auth` it also applies
    to requests that may be answered with 401, otherwise only to those that would be served. With `only_chunked_coding`
    it spares requests whose body has a Content-Length.
    """

    action: Action
    method: str = ".*"
    path: str = ""
    times: int | None = 1
    skip: int = 0
    larger_than: int = -1
    before_auth: bool = False
    only_chunked_coding: bool = False

    def strikes(self, request: Request) -> bool:
        """Return whether the fault applies to this request, and count it."""
        if not re.fullmatch(self.method, request.method) or not re.search(self.path, request.target):
            return False
        if int(request.headers.get("Content-Length", "0")) <= self.larger_than or self.times == 0:
            return False
        if self.only_chunked_coding and request.headers.get("Transfer-Encoding") != "chunked":
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclasses.dataclass
class Request:
    """A recorded request. `status` is None until it is answered, `received` grows as its body is read.

    `answered` is the intended size of the response's body.

    `certificate` is the client's certificate in TLS, or None.
    """

    method: str
    target: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    handler: dataclasses.InitVar[FaultyHandler]
    status: int | None = None
    answered: int = 0
    fault: Action | None = None

    def __post_init__(self, handler: FaultyHandler) -> None:
        self._body: Body = handler.body
        connection = handler.connection
        self.certificate = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLSocket) else None

    @property
    def received(self) -> int:
        """The number of bytes of the body that were read."""
        return self._body.received


class FaultyRegistry(Registry):
    """A registry with faults; `requests` has every request in order of arrival."""

    def __init__(
        self,
        path: Path,
        *faults: Fault,
        auth: Auth | None = None,
        tls: Certificate | None = None,
        client_authority: Certificate | None = None,
        asks_only: bool = False,
        chunk_min_length: int | None = None,
        receive_buffer: int = 1 << 20,
        **options: Any,
    ) -> None:
        """Take the options of `Registry`, and what is special about this one.

        With `client_authority` a client must send a certificate of that authority; with `asks_only` it may.

        `receive_buffer` is how many bytes the kernel may buffer per connection (SO_RCVBUF). A reset loses them. The
        machine's default is up to 32 MiB on some machines, more than ocistream keeps of a pipe.
        """
        self._receive_buffer = receive_buffer
        self.faults = list(faults)
        self.auth = auth
        self.requests: list[Request] = []
        self.released = threading.Event()
        self._record = threading.Condition()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if tls and self._tls:
            self._tls.load_cert_chain(tls.file, tls.key_file)
        if client_authority and self._tls:
            self._tls.load_verify_locations(client_authority.file)
            self._tls.verify_mode = ssl.CERT_OPTIONAL if asks_only else ssl.CERT_REQUIRED
            if not asks_only:
                # In TLS 1.3 a client may send its request before it reads the refusal, and the reset that follows an
                # unread request may arrive first.
                self._tls.maximum_version = ssl.TLSVersion.TLSv1_2
        self.chunk_min_length = chunk_min_length
        super().__init__(path, **options)

    @property
    def handler_type(self) -> type[FaultyHandler]:
        """The class that serves a connection; a subclass may use another one."""
        return FaultyHandler

    @property
    def url(self) -> str:
        """The registry's URL: `http://127.0.0.1:PORT`."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def asked(self, method: str = ".*", path: str = "") -> list[Request]:
        """Return the requests with this method and with `path` in path and query (regular expressions)."""
        return [
            request
            for request in self.requests
            if re.fullmatch(method, request.method) and re.search(path, request.target)
        ]

    def release(self) -> None:
        """End every `Stall` and `PauseReading`, including later ones."""
        with self._record:
            self.released.set()
            self._record.notify_all()

    def wait_for_request(self, method: str, path: str) -> None:
        """Wait for a request with this method and path (regular expressions), or for `release`."""
        with self._record:
            self._record.wait_for(lambda: bool(self.asked(method, path)) or self.released.is_set())

    def wait_for_next_request(self) -> None:
        """Wait for a request after those recorded so far."""
        with self._record:
            count = len(self.requests)
            self._record.wait_for(lambda: len(self.requests) > count or self.released.is_set())

    def stop(self) -> None:
        self.release()
        super().stop()

    def admit(self, connection: socket.socket) -> socket.socket:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        if self._tls is None:
            return connection
        # The connection's thread does the handshake, because a client may be slow.
        return self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    def note(self, request: Request) -> None:
        """Record a request."""
        with self._record:
            self.requests.append(request)
            self._record.notify_all()

    def fault_for(self, request: Request, *, before_auth: bool) -> Action | None:
        """Return the action of the first fault that applies to a request."""
        with self._record:
            for fault in self.faults:
                if fault.before_auth == before_auth and fault.strikes(request):
                    request.fault = fault.action
                    return fault.action
        return None


class FaultyHandler(Handler):
    """Serves one connection, correctly or with a fault."""

    action: Action | None = None
    request_now: Request | None = None

    @property
    def registry(self) -> FaultyRegistry:
        return cast("FaultyRegistry", super().registry)

    def dispatch(self) -> None:
        segments, parameters = self.target()
        self.action = None
        self.request_now = Request(self.command, self.path, "/".join(segments), parameters, self.headers, handler=self)
        self.registry.note(self.request_now)
        auth = self.registry.auth
        struck, answered = self._strike(before_auth=True)
        if answered:
            return
        try:
            # Other faults apply only to requests that would be served, so that a 401 does not use them up.
            self.path = auth.admit(self.request_now, self.registry.url) if auth else self.path
        except Denied as denied:
            self.answer(denied.answer)
            return
        if not struck and self._strike(before_auth=False)[1]:
            return
        if auth and auth.is_token_endpoint(self.request_now):
            self.answer(auth.token(self.request_now, self.read_small_body(_PIECE) or b""))
        else:
            self.serve_well()

    def _strike(self, *, before_auth: bool) -> tuple[bool, bool]:
        """Carry out the fault of this request; return whether there is one, and whether the request is answered."""
        assert self.request_now is not None
        self.action = self.registry.fault_for(self.request_now, before_auth=before_auth)
        match self.action:
            case HangUp():
                self.hang_up()
            case Reset(None):
                self.reset()
            case Stall(seconds, None):
                self.registry.released.wait(seconds)
            case IgnoreRange():
                del self.headers["Range"]
            case EndTokens():
                assert isinstance(self.registry.auth, Bearer)
                self.registry.auth.expire()
            case Reply(status, headers, body):
                self.answer(Answer(status, headers, body))
                return True, True
        return self.action is not None, False

    def serve_well(self) -> None:
        """Answer without a fault."""
        super().dispatch()

    def read_body(self, buffer: memoryview) -> int:
        before = self.body.received
        match self.action:
            case StopReading(after, reset):
                if before >= after:
                    self.reset() if reset else self.hang_up()
                buffer = buffer[: after - before]
            case PauseReading(after):
                if before >= after:
                    self.registry.wait_for_next_request()
                    self.hang_up()
                buffer = buffer[: after - before]
        got = super().read_body(buffer)
        if isinstance(self.action, FlipReceived) and before <= self.action.at < before + got:
            buffer[self.action.at - before] ^= 1
        return got

    def transmit(self, answer: Answer) -> None:
        match self.action:
            case Header(name, value):
                headers = dict(answer.headers)
                present = headers.pop(name, "")
                if value is not None:
                    headers[name] = value if isinstance(value, str) else value(present)
                answer = dataclasses.replace(answer, headers=headers)
            case Gzip():
                body = gzip.compress(b"".join(pieces_of(answer.body)))
                answer = Answer(answer.status, {**answer.headers, "Content-Encoding": "gzip"}, body)
            case WithholdAnswer():
                self.registry.released.wait()
            case Refuse(status):
                answer = Answer(status, {}, b"")
            case NoContentLength() | Resize(stated=False):
                # No response can follow one that does not end where it says.
                self.close_connection = True
        if self.request_now is not None:
            self.request_now.status = answer.status
            self.request_now.answered = 0 if self.command == "HEAD" else answer.size
        super().transmit(answer)

    def stated_size(self, answer: Answer) -> int | None:
        size = super().stated_size(answer)
        match self.action:
            case NoContentLength():
                return None
            case Resize(by, True) if size is not None:
                return size + by
        return size

    def write_body(self, body: bytes | Part) -> None:
        if not isinstance(self.action, Reset | Drop | Stall | Flip | Resize):
            super().write_body(body)
            return
        for piece in self._spoiled(pieces_of(body), self.action):
            self.wfile.write(piece)

    def _spoiled(self, pieces: Iterator[bytes], action: Reset | Drop | Stall | Flip | Resize) -> Iterator[bytes]:
        """Yield a body's pieces as the action wants them to arrive."""
        match action:
            case Reset(after) | Drop(after) if after is not None:
                yield from _cut(pieces, after)[0]
                self.reset() if isinstance(action, Reset) else self.end_well()
            case Stall(seconds, after) if after is not None:
                first, rest = _cut(pieces, after)
                yield from first
                self.registry.released.wait(seconds)
                yield from rest
            case Flip(at):
                first, rest = _cut(pieces, at)
                yield from first
                for piece in rest:
                    yield bytes([piece[0] ^ 1]) + piece[1:]
                    break
                yield from rest
            case Resize(by):
                body = b"".join(pieces)
                yield body[:by] if by < 0 else body + b"x" * by
            case _:
                yield from pieces

    def hang_up(self) -> NoReturn:
        """Close the connection, without a response or in the middle of one."""
        self.close_connection = True
        raise ConnectionAbortedError

    def end_well(self) -> NoReturn:
        """Close the connection; in TLS send close_notify too, so that the reader knows that nothing more will come."""
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.settimeout(0)
            with contextlib.suppress(OSError):
                self.connection.unwrap()
        self.hang_up()

    def reset(self) -> NoReturn:
        """Reset the connection after the bytes sent so far have reached the client."""
        self.close_connection = True
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        while _unacknowledged(self.connection) and time.monotonic() < deadline:
            time.sleep(0.001)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Close at once: with a shutdown first, as the server does it, the client would see a proper end.
        os.close(self.connection.detach())
        raise ConnectionAbortedError


def _unacknowledged(connection: socket.socket) -> int:
    return struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]  # type: ignore[no-any-return]


def pieces_of(body: bytes | Part) -> Iterator[bytes]:
    """Yield a response's body in pieces."""
    if isinstance(body, bytes):
        yield body
        return
    body.file.seek(body.offset)
    left = body.size
    while left:
        piece = body.file.read(min(_PIECE, left))
        yield piece
        left -= len(piece)


def _cut(pieces: Iterator[bytes], count: int) -> tuple[Iterator[bytes], Iterator[bytes]]:
    """Split after `count` bytes. Exhaust the first part before the second."""
    left = [count]
    held: list[bytes] = []

    def first() -> Iterator[bytes]:
        for piece in pieces:
            yield piece[: left[0]]
            if len(piece) > left[0]:
                held.append(piece[left[0] :])
                return
            left[0] -= len(piece)

    def rest() -> Iterator[bytes]:
        yield from held
        yield from pieces

    return first(), rest()
