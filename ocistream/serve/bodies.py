"""A request's body, read once and in order: of a stated length, or in HTTP's chunked coding (RFC 9112).

It never reads beyond its end, and it says whether that was reached: a client that goes away in the middle has sent no
body. It may not write anything but what it is told to announce.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from ocistream import limits
from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

__all__ = ["ChunkedRequestBody", "SizedRequestBody", "open_request_body"]

_CONTENT_LENGTH: Final = re.compile(r"[0-9]{1,19}\Z")
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;|\Z)")
#: Trailers are read and thrown away: the end of the body is behind them.
_MAX_TRAILERS: Final = 32


class RequestStream(Protocol):
    """What of a connection's reading side is used."""

    def readinto1(self, buffer: memoryview, /) -> int:
        """Read what is there, at least one byte, into `buffer`; 0 at the end."""

    def readline(self, limit: int, /) -> bytes:
        """Read a line of at most `limit` bytes."""


class SizedRequestBody:
    """A body of `size` bytes. `received` is how many of them were read so far."""

    def __init__(self, stream: RequestStream, size: int, send_continue: Callable[[], None] | None = None) -> None:
        """Read from `stream`; `announce` is called before the first byte, if the client waits for that."""
        self.size: int | None = size
        self.received = 0
        self.is_finished = size == 0
        self._stream = stream
        self._remaining = size
        self._send_continue = send_continue

    @property
    def remaining(self) -> int | None:
        """How many bytes are still to come; None where nobody knows."""
        return self._remaining

    @property
    def expects_continue(self) -> bool:
        """Whether the client sends the body only when it is told to (RFC 9110, section 10.1.1)."""
        return self._send_continue is not None

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of `buffer` with what is there, and say how much it was; 0 is the end of the body.

        Raises:
            RefusedError: the client stopped before the end (400).
            OSError: the connection broke.
        """
        if self.is_finished:
            return 0
        if self._send_continue is not None:
            self._send_continue()
            self._send_continue = None
        return self._read(buffer)

    def _read(self, buffer: memoryview) -> int:
        got = self._read_data(buffer)
        self.is_finished = self._remaining == 0
        return got

    def _read_data(self, buffer: memoryview) -> int:
        # One read of the socket at a time: what has arrived is handed on even if the next read fails.
        got = self._stream.readinto1(buffer[: self._remaining])
        if not got:
            raise RequestRejectedError(400, "SIZE_INVALID", f"the body ended early, after {self.received} bytes")
        self._remaining -= got
        self.received += got
        return got


class ChunkedRequestBody(SizedRequestBody):
    """A body whose length is not known before its end."""

    def __init__(self, stream: RequestStream, send_continue: Callable[[], None] | None = None) -> None:
        """As for a sized one; `size` and `left` are None."""
        super().__init__(stream, 0, send_continue)
        self.size = None
        self.is_finished = False
        self._is_at_chunk_end = False

    @property
    def remaining(self) -> int | None:
        """Nobody knows, unless all of it is there."""
        return 0 if self.is_finished else None

    def _read(self, buffer: memoryview) -> int:
        if not self._remaining:
            self._remaining = self._read_chunk_size()
        if not self._remaining:
            self._skip_trailers()
            self.is_finished = True
            return 0
        got = self._read_data(buffer)
        # Its end is looked at when more is wanted: what is wrong there takes nothing away from what came before.
        self._is_at_chunk_end = not self._remaining
        return got

    def _read_chunk_size(self) -> int:
        if self._is_at_chunk_end and self._read_line():
            raise _malformed_body_error()
        match = _CHUNK_SIZE.match(self._read_line())
        if match is None:
            raise _malformed_body_error()
        return int(match[1], 16)

    def _skip_trailers(self) -> None:
        for _ in range(_MAX_TRAILERS):
            if not self._read_line():
                return
        raise _malformed_body_error()

    def _read_line(self) -> bytes:
        line = self._stream.readline(limits.MAX_CHUNK_LINE)
        # Neither end of a line alone is one: a proxy before us may see no end there.
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise _malformed_body_error()
        return line[:-2]


def _malformed_body_error() -> RequestRejectedError:
    return RequestRejectedError(400, "SIZE_INVALID", "the body's chunks are malformed, or it ended early")


def open_request_body(
    headers: Message, stream: RequestStream, send_continue: Callable[[], None], version: str
) -> SizedRequestBody:
    """Give the body that a request's headers announce; one of no bytes where they announce none.

    `announce` sends the interim answer for which a client waits that says `Expect: 100-continue`. `version` is the
    request's, such as HTTP/1.1.

    Raises:
        RefusedError: it cannot be told where the body ends (400), or its coding is not known (501). Guessing would
            make a part of a body the next request.
    """
    lengths = [value.strip() for value in headers.get_all("Content-Length", [])]
    codings = [value.strip().lower() for value in headers.get_all("Transfer-Encoding", [])]
    waits = headers.get("Expect", "").strip().lower() == "100-continue"
    callback = send_continue if waits else None
    if codings:
        if lengths:
            raise RequestRejectedError(400, "SIZE_INVALID", "both Content-Length and Transfer-Encoding are given")
        if version == "HTTP/1.0":
            # It knows no codings: what passed the request on may have taken the chunks for the body (RFC 9112, 6.1).
            raise RequestRejectedError(400, "SIZE_INVALID", "HTTP/1.0 has no Transfer-Encoding")
        if codings != ["chunked"]:
            raise RequestRejectedError(501, "UNSUPPORTED", "the only transfer coding that is known is chunked")
        return ChunkedRequestBody(stream, callback)
    if len(lengths) > 1 or not all(_CONTENT_LENGTH.match(length) for length in lengths):
        raise RequestRejectedError(400, "SIZE_INVALID", "Content-Length is not one number")
    return SizedRequestBody(stream, int(lengths[0]) if lengths else 0, callback)
