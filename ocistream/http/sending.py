"""Sending a request's body over a socket, with an eye on whether it is answered already.

A proxy that finds a body too large says so at once, and reads or resets the rest: going on would waste it, and what
comes from a pipe could not be sent again. Of an answer that comes early its beginning is read here, with TLS too,
where nothing can be looked at without being taken; who reads the rest gets that first.
"""

from __future__ import annotations

import errno
import io
import select
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

__all__ = ["EarlyResponse", "EarlyResponseError", "PrefixedFile", "send_all"]

#: `HTTP/1.1 413`: so much says whether an answer is the one that counts (RFC 9112, section 4).
_STATUS_LENGTH: Final = 12
_FIRST_DIGIT: Final = slice(9, 10)


class EarlyResponseError(BrokenPipeError):
    """The answer is there before all was sent; to urllib3, as to us, that is a reason to read it and no failure."""


class EarlyResponse:
    """What has come on a connection while a request was sent: `beginning`, of its answer or an interim one."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.beginning = bytearray()
        self.is_final = False

    def has_arrived(self, connection: socket.socket, timeout: float) -> bool:
        """Wait until something can be sent; say whether the answer is there.

        Raises:
            TimeoutError: nothing can be sent for `timeout` seconds, nor has anything come.
        """
        if len(self.beginning) >= _STATUS_LENGTH:
            return self.is_final
        poll = select.poll()
        poll.register(connection, select.POLLIN | select.POLLOUT)
        ready = poll.poll(timeout * 1000)
        if not ready:
            msg = "timed out"
            raise TimeoutError(msg)
        if any(events & select.POLLIN for _, events in ready):
            self._read(connection, timeout)
        return self.is_final

    def _read(self, connection: socket.socket, timeout: float) -> None:
        connection.settimeout(0)
        try:
            self.beginning += connection.recv(_STATUS_LENGTH - len(self.beginning))
        except (ssl.SSLError, OSError):
            # Nothing yet (of TLS it may have been a ticket only), or the connection broke: sending will show.
            pass
        finally:
            connection.settimeout(timeout)
        if len(self.beginning) == _STATUS_LENGTH:
            # Interim answers say nothing about the body.
            self.is_final = self.beginning[_FIRST_DIGIT] != b"1"


def send_all(connection: socket.socket, view: memoryview, timeout: float, early_blobs: EarlyResponse | None) -> None:
    """Send all of `view`; that none of it moves for `timeout` seconds is a failure.

    Raises:
        AnsweredError: the answer is there already; only where `early` watches for it.
        OSError: the connection broke. There may be an answer to read all the same.
    """
    sent = 0
    while sent < len(view):
        if early_blobs is not None and early_blobs.has_arrived(connection, timeout):
            raise EarlyResponseError(errno.EPIPE, "the request was answered before all of it was sent")
        try:
            sent += connection.send(view[sent:])
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise BrokenPipeError(errno.EPIPE, "the other side has closed the connection") from error


class PrefixedFile(io.RawIOBase):
    """A raw file of which the beginning was read already."""

    def __init__(self, beginning: bytes, raw: io.RawIOBase) -> None:
        """Give `beginning` first, then what is in `raw`."""
        super().__init__()
        self._beginning = beginning
        self._raw = raw

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Fill the beginning of `buffer`."""
        if not self._beginning:
            return self._raw.readinto(buffer)
        got = min(len(buffer), len(self._beginning))
        buffer[:got] = self._beginning[:got]
        self._beginning = self._beginning[got:]
        return got

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._raw.fileno()

    def close(self) -> None:
        """Close what is below."""
        self._raw.close()
        super().close()
