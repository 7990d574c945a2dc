"""A request's head as it comes: bounded, whole, and of lines that nobody can read in two ways (RFC 9112, section 5).

`http.client` reads a hundred lines of 64 KiB before it looks at one, takes an end of the connection for the end of the
head, and hands it to the parser of e-mails, for which a line that is no header is where the body begins, and a bare CR
the end of a line. A proxy before us may see other headers then, and another end of the request.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.serve.refusals import RefusedError

if TYPE_CHECKING:
    from ocistream.serve.bodies import Stream

__all__ = ["Head"]

#: A name and a colon right behind it; then anything but control characters, of which a tab is none here.
_FIELD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\Z")


class Head:
    """What `http.client` takes for a connection's reading side while it reads the lines behind the first one."""

    def __init__(self, stream: Stream) -> None:
        """Read from `stream`, as far as the empty line."""
        self._stream = stream
        self._left = limits.MAX_REQUEST_HEAD

    def readline(self, limit: int, /) -> bytes:
        """Read a line.

        Raises:
            RefusedError: it is no header (400), there is no more of it (400), or there was too much (431).
        """
        line = self._stream.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise RefusedError(431, "UNSUPPORTED", f"the headers have more than {limits.MAX_REQUEST_HEAD} bytes")
        if not line.endswith(b"\n"):
            raise RefusedError(400, "UNSUPPORTED", "the request ended before its headers did")
        field = line[:-1].removesuffix(b"\r")
        if field and not _FIELD.match(field):
            raise RefusedError(400, "UNSUPPORTED", "a line among the headers is none")
        return line

    def readinto1(self, buffer: memoryview, /) -> int:
        """Read what is there beyond the head: of a request that is refused."""
        return self._stream.readinto1(buffer)
