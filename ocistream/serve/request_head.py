"""A request's head as it comes: bounded, whole, and of lines that nobody can read in two ways (RFC 9112, section 5).

`http.client` reads a hundred lines of 64 KiB before it looks at one, takes an end of the connection for the end of the
head, and hands it to the parser of e-mails, for which a line that is no header is where the body begins, and a bare CR
the end of a line. A proxy before us may see other headers then, and another end of the request.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.serve.errors import RequestRejectedError

if TYPE_CHECKING:
    from ocistream.serve.bodies import RequestStream

__all__ = ["RequestHeadReader", "check_request_line"]

#: A method, a target of visible characters and a version, with one space between (RFC 9112, section 3). Of HTTP/0.9
#: the version is missing.
_REQUEST_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/([0-9])\.[0-9]\r\n\Z")

#: A name and a colon right behind it; then anything but control characters, of which a tab is none here.
_HEADER_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\Z")
#: Headers that decide what a request means, and that two readers would take from different lines if there were two.
_UNREPEATABLE_HEADERS: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-range",
        b"content-type",
        b"expect",
        b"host",
        b"if-range",
        b"range",
        b"sec-fetch-site",
    }
)


def check_request_line(line: bytes) -> None:
    """Check the form of a request's first line, which `http.server` splits at any white space.

    Raises:
        RefusedError: it is malformed (400), or of a version before 1.0 (505).
    """
    match = _REQUEST_LINE.match(line)
    if match is None:
        raise RequestRejectedError(400, "UNSUPPORTED", "the request's first line is malformed")
    if match[1] == b"0":
        raise RequestRejectedError(505, "UNSUPPORTED", "this version of HTTP is not supported")


class RequestHeadReader:
    """What `http.client` takes for a connection's reading side while it reads the lines behind the first one."""

    def __init__(self, stream: RequestStream) -> None:
        """Read from `stream`, as far as the empty line."""
        self._stream = stream
        self._left = limits.MAX_REQUEST_HEAD
        self._seen: set[bytes] = set()

    def readline(self, limit: int, /) -> bytes:
        """Read a line.

        Raises:
            RefusedError: it is no header (400), or a second one of a kind of which there must be one (400); or the head
            ends early (400), or is too long (431).
        """
        line = self._stream.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise RequestRejectedError(
                431, "UNSUPPORTED", f"the headers have more than {limits.MAX_REQUEST_HEAD} bytes"
            )
        if not line.endswith(b"\n"):
            raise RequestRejectedError(400, "UNSUPPORTED", "the request ended before its headers did")
        # A line that ends with LF alone has no end for others, and with the next line in it says something else.
        if not line.endswith(b"\r\n"):
            raise RequestRejectedError(400, "UNSUPPORTED", "a line among the headers does not end with CRLF")
        field = line[:-2]
        if field and not _HEADER_LINE.match(field):
            raise RequestRejectedError(400, "UNSUPPORTED", "malformed header line")
        name = field.partition(b":")[0].lower()
        if name in self._seen:
            raise RequestRejectedError(400, "UNSUPPORTED", f"the header {name.decode()} is given twice")
        if name in _UNREPEATABLE_HEADERS:
            self._seen.add(name)
        return line

    def readinto1(self, buffer: memoryview, /) -> int:
        """Read what is there beyond the head: of a request that is refused."""
        return self._stream.readinto1(buffer)
