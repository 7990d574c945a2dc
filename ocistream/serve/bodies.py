"""A request's body, read once and in order: of a stated length, or in HTTP's chunked coding (RFC 9112).

It never reads beyond its end, and it says whether that was reached: a client that goes away in the middle has sent no
body. It may not write anything but what it is told to announce.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from ocistream import limits
from ocistream.serve.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

__all__ = ["ChunkedBody", "SizedBody", "body_of"]

_LENGTH: Final = re.compile(r"[0-9]{1,19}\Z")
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;|\Z)")
#: Trailers are read and thrown away: the end of the body is behind them.
_MAX_TRAILERS: Final = 32


class Stream(Protocol):
    """What of a connection's reading side is used."""

    def readinto1(self, buffer: memoryview, /) -> int:
        """Read what is there, at least one byte, into `buffer`; 0 at the end."""

    def readline(self, limit: int, /) -> bytes:
        """Read a line of at most `limit` bytes."""


class SizedBody:
    """A body of `size` bytes. `received` is how many of them were read so far."""

    def __init__(self, stream: Stream, size: int, announce: Callable[[], None] | None = None) -> None:
        """Read from `stream`; `announce` is called before the first byte, if the client waits for that."""
        self.size: int | None = size
        self.received = 0
        self.finished = size == 0
        self._stream = stream
        self._left = size
        self._announce = announce

    @property
    def left(self) -> int | None:
        """How many bytes are still to come; None where nobody knows."""
        return self._left

    @property
    def awaited(self) -> bool:
        """Whether the client sends the body only when it is told to (RFC 9110, section 10.1.1)."""
        return self._announce is not None

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of `buffer` with what is there, and say how much it was; 0 is the end of the body.

        Raises:
            RefusedError: the client stopped before the end (400).
            OSError: the connection broke.
        """
        if self.finished:
            return 0
        if self._announce is not None:
            self._announce()
            self._announce = None
        return self._read(buffer)

    def _read(self, buffer: memoryview) -> int:
        got = self._read_data(buffer)
        self.finished = self._left == 0
        return got

    def _read_data(self, buffer: memoryview) -> int:
        # One read of the socket at a time: what has arrived is handed on even if the next read fails.
        got = self._stream.readinto1(buffer[: self._left])
        if not got:
            raise RefusedError(400, "SIZE_INVALID", f"the body ended early, after {self.received} bytes")
        self._left -= got
        self.received += got
        return got


class ChunkedBody(SizedBody):
    """A body whose length is not known before its end."""

    def __init__(self, stream: Stream, announce: Callable[[], None] | None = None) -> None:
        """As for a sized one; `size` and `left` are None."""
        super().__init__(stream, 0, announce)
        self.size = None
        self.finished = False
        self._behind_chunk = False

    @property
    def left(self) -> int | None:
        """Nobody knows, unless all of it is there."""
        return 0 if self.finished else None

    def _read(self, buffer: memoryview) -> int:
        if not self._left:
            self._left = self._next_size()
        if not self._left:
            self._skip_trailers()
            self.finished = True
            return 0
        got = self._read_data(buffer)
        # Its end is looked at when more is wanted: what is wrong there takes nothing away from what came before.
        self._behind_chunk = not self._left
        return got

    def _next_size(self) -> int:
        if self._behind_chunk and self._line():
            raise _malformed()
        match = _CHUNK_SIZE.match(self._line())
        if match is None:
            raise _malformed()
        return int(match[1], 16)

    def _skip_trailers(self) -> None:
        for _ in range(_MAX_TRAILERS):
            if not self._line():
                return
        raise _malformed()

    def _line(self) -> bytes:
        line = self._stream.readline(limits.MAX_CHUNK_LINE)
        # Neither end of a line alone is one: a proxy before us may see no end there.
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise _malformed()
        return line[:-2]


def _malformed() -> RefusedError:
    return RefusedError(400, "SIZE_INVALID", "the body's chunks are malformed, or it ended early")


def body_of(headers: Message, stream: Stream, announce: Callable[[], None], version: str) -> SizedBody:
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
    callback = announce if waits else None
    if codings:
        if lengths:
            raise RefusedError(400, "SIZE_INVALID", "both Content-Length and Transfer-Encoding are given")
        if version == "HTTP/1.0":
            # It knows no codings: what passed the request on may have taken the chunks for the body (RFC 9112, 6.1).
            raise RefusedError(400, "SIZE_INVALID", "HTTP/1.0 has no Transfer-Encoding")
        if codings != ["chunked"]:
            raise RefusedError(501, "UNSUPPORTED", "the only transfer coding that is known is chunked")
        return ChunkedBody(stream, callback)
    if len(lengths) > 1 or not all(_LENGTH.match(length) for length in lengths):
        raise RefusedError(400, "SIZE_INVALID", "Content-Length is not one number")
    return SizedBody(stream, int(lengths[0]) if lengths else 0, callback)
