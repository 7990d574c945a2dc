"""Answers with bounds on what comes before and beside their bodies, where http.client has none."""

from __future__ import annotations

import http
import http.client
import io
import time
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.http.sending import PrefixedFile

if TYPE_CHECKING:
    import socket

    from _typeshed import WriteableBuffer

__all__ = ["BoundedResponse", "EndlessResponseError"]

#: Interim answers (RFC 9110, section 15.2) before the one that counts; few servers send even one.
_MAX_INTERIM: Final = 10
#: All lines of an answer, in bytes: interim answers, headers, and what stands between the chunks of its body and
#: behind them. Of headers alone most clients and proxies take no more than 64 KiB.
_MAX_LINE_BYTES: Final = 256 * limits.KIB
#: So many bytes of further lines does each byte of a body allow for: a chunk of one byte needs three.
_LINE_BYTES_PER_BODY_BYTE: Final = 16


class EndlessResponseError(Exception):
    """An answer that would never end; no `OSError`, since urllib3 would count it among those to try again."""


class BoundedResponse(http.client.HTTPResponse):
    """http.client's answer, with bounds on what comes in lines, where http.client has none, or none for their sum.

    Relied on: `response_class` of a connection; that `fp` is the buffered file from which every line of an answer is
    read by `readline` and its body by `read`, in a tunnel's answer too; and that `begin` reads a head, over any number
    of `100 Continue`, unless `headers` says that one was read.
    """

    fp: _BoundedReader

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        *,
        beginning: bytes = b"",
        is_last: bool = False,
    ) -> None:
        """Read from a socket of which the `beginning` of the answer was read already.

        `is_last` says that it came before all of the request was sent: then it is the connection's last one.
        """
        super().__init__(sock, debuglevel, method)
        raw = self.fp.detach()
        self.fp = _BoundedReader(_SocketReader(PrefixedFile(beginning, raw) if beginning else raw))
        self._is_last = is_last
        #: TLS gives 16 KiB at a time: those are gathered below Python.
        self._fills_buffer = hasattr(sock, "version")

    def begin(self) -> None:
        """Read the head of the answer that counts."""
        super().begin()
        # To http.client an interim answer other than 100 is the answer, and the answer that of the next request.
        while 100 < self.status < 200 and self.status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        if self._is_last:
            # The other side still waits for the rest of the request.
            self.will_close = True
        self.fp.raw.end_head()
        self.fp.allows_short_reads = not (self.chunked or self._fills_buffer)

    @property
    def read_size(self) -> int:
        """How many bytes it is of use to ask for at once: where all of them are waited for, not too many."""
        return limits.READ_BUFFER if not self.isclosed() and self.fp.allows_short_reads else limits.CHUNK_SIZE

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read some of the body, 0 at its end; over TCP as much as has come, so that it need not be waited for.

        It may end early: then `missing` bytes of it were promised.
        """
        return super().readinto(buffer)

    @property
    def missing(self) -> int:
        """How many bytes are still to come, or were when the other side closed; 0 where nobody has said."""
        return self.length or 0

    def _read_next_chunk_size(self) -> int:
        try:
            size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        except ValueError:
            msg = "what stands between two chunks of the answer's body is no size"
            raise ConnectionError(msg) from None
        if size < 0:
            msg = "a chunk of the answer's body has a negative size"
            raise EndlessResponseError(msg)
        return size


class _SocketReader(io.RawIOBase):
    """What a socket gives. A head, from its first byte to its end, has `limits.HEAD_TIME` seconds.

    A byte now and then is no stall, and would keep a connection for as long as the other side likes.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self._deadline: float | None = None
        self.is_head = True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        count = self._raw.readinto(buffer)
        if self.is_head:
            now = time.monotonic()
            if self._deadline is None:
                self._deadline = now + limits.RESPONSE_HEAD_TIMEOUT
            elif now > self._deadline:
                msg = f"the head of the answer took more than {limits.RESPONSE_HEAD_TIMEOUT:g} s"
                raise TimeoutError(msg)
        return count

    def restart_head(self) -> None:
        """Begin anew: an interim answer is over, and the one that counts may take its time to begin."""
        self._deadline = None

    def end_head(self) -> None:
        """Be no more than what is below: a body takes the time that it takes."""
        self.is_head = False
        self.readinto = self._raw.readinto  # type: ignore[method-assign]

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedReader(io.BufferedReader):
    """What a server sends of one answer."""

    raw: _SocketReader

    def __init__(self, raw: _SocketReader) -> None:
        super().__init__(raw)
        self._heads = 0
        self._line_bytes_left = _MAX_LINE_BYTES
        #: Whether less than was asked for is given where it would have to be waited for.
        self.allows_short_reads = False

    def readline(self, size: int | None = -1) -> bytes:
        most = self._line_bytes_left + 1
        line = super().readline(most if size is None or size < 0 else min(size, most))
        self._line_bytes_left -= len(line)
        if self._line_bytes_left < 0:
            msg = f"more than {_MAX_LINE_BYTES} bytes of headers, or between the chunks of the answer's body"
            raise EndlessResponseError(msg)
        if self.raw.is_head and line in {b"\r\n", b"\n"}:
            self._heads += 1
            self.raw.restart_head()
            if self._heads > _MAX_INTERIM + 1:
                msg = f"more than {_MAX_INTERIM} interim answers"
                raise EndlessResponseError(msg)
        return line

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            # What is read here has a size, unless it is a chunk of a negative one: that would be all there is to come.
            msg = "a chunk of the answer's body has a negative size"
            raise EndlessResponseError(msg)
        content = super().read(size)
        self._count_body(len(content))
        return content

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count = super().readinto1(buffer) if self.allows_short_reads else super().readinto(buffer)
        self._count_body(count)
        return count

    def _count_body(self, count: int) -> None:
        self._line_bytes_left = min(self._line_bytes_left + _LINE_BYTES_PER_BODY_BYTE * count, _MAX_LINE_BYTES)
