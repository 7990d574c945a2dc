"""Parse a request strictly (RFC 9112): its head, target and host, byte ranges, and body (sized or chunked).

A request that a proxy could read differently is refused. A body never reads beyond its end. `RequestRejectedError` is
the error response of the distribution-spec.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote

from ocistream import limits
from ocistream.errors import RegistryError
from ocistream.oci.strict_json import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from io import BufferedIOBase


class RequestRejectedError(RegistryError):
    """An error response for the client. The registry's HTTP handler catches it.

    `headers` are added to the response. The body has one error for each of `details`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Reject with an HTTP status and a code of distribution-spec, "Error Codes"."""
        super().__init__(message, status=status, codes=(code,))
        self.details = tuple(details)
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the JSON of distribution-spec, "Error Codes"."""
        error: dict[str, Any] = {"code": self.codes[0], "message": self.message}
        errors = [{**error, "detail": detail} for detail in self.details] or [error]
        return canonical_json({"errors": errors})


#: Method, target of visible characters and version, separated by one space (RFC 9112, section 3). HTTP/0.9 has no
#: version.
_REQUEST_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) (HTTP/([0-9])\.[0-9])\r\n\Z")

#: A name directly followed by a colon, then any characters except control characters; a tab is allowed.
_HEADER_LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\Z")
#: As in Python's http.client.
_MAX_HEADERS: Final = 100
#: Headers that decide what a request means. If one were repeated, two readers could use different lines.
_UNREPEATABLE_HEADERS: Final = frozenset(
    {
        "authorization",
        "content-length",
        "content-range",
        "content-type",
        "expect",
        "host",
        "if-range",
        "range",
        "sec-fetch-site",
    }
)


def read_request_line(stream: BufferedIOBase) -> tuple[str, str, str]:
    """Return method, target and version, such as HTTP/1.1.

    Clients whose base URL ends with a slash send a target with two at its beginning: these are returned as one.

    Raises:
        RequestRejectedError: the line is malformed (400) or too long (414), or its version is not 1.x (505).
    """
    line = stream.readline(limits.MAX_REQUEST_LINE + 1)
    if len(line) > limits.MAX_REQUEST_LINE:
        raise RequestRejectedError(414, "UNSUPPORTED", f"the URL has more than {limits.MAX_REQUEST_LINE} bytes")
    match = _REQUEST_LINE.match(line.decode("latin-1"))
    if match is None:
        raise RequestRejectedError(400, "UNSUPPORTED", "the request's first line is malformed")
    method, target, version, major = match.groups()
    if major != "1":
        raise RequestRejectedError(505, "UNSUPPORTED", "this version of HTTP is not supported")
    return method, f"/{target.lstrip('/')}" if target.startswith("//") else target, version


def read_headers(stream: BufferedIOBase) -> dict[str, str]:
    """Read the header lines, up to the empty line after them. Return the values by the name in lower case.

    The values of a repeated header are joined by commas (RFC 9110, section 5.2).

    Raises:
        RequestRejectedError: a line is not a header, or repeats one that must be unique; the head ends early (400); or
            it is too long (431).
    """
    headers: dict[str, str] = {}
    remaining, lines = limits.MAX_REQUEST_HEAD, 0
    while (line := stream.readline(remaining + 1)) != b"\r\n":
        remaining, lines = remaining - len(line), lines + 1
        if remaining < 0 or lines > _MAX_HEADERS:
            message = f"the headers have more than {limits.MAX_REQUEST_HEAD} bytes or {_MAX_HEADERS} lines"
            raise RequestRejectedError(431, "UNSUPPORTED", message)
        if not line.endswith(b"\n"):
            raise RequestRejectedError(400, "UNSUPPORTED", "the request ended before its headers did")
        # Other readers do not end a line at LF alone, so they would read it together with the next line.
        if not line.endswith(b"\r\n"):
            raise RequestRejectedError(400, "UNSUPPORTED", "a line among the headers does not end with CRLF")
        if not _HEADER_LINE.match(line[:-2]):
            raise RequestRejectedError(400, "UNSUPPORTED", "malformed header line")
        name, _, value = line.decode("latin-1").partition(":")
        name, value = name.lower(), value.strip(" \t\r\n")
        if name in headers and name in _UNREPEATABLE_HEADERS:
            raise RequestRejectedError(400, "UNSUPPORTED", f"the header {name} is given twice")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


_MAX_PARAMETERS: Final = 32
#: Scheme and authority of a target that is a complete URL, as proxies send it.
_ABSOLUTE_TARGET: Final = re.compile(r"(https?)://([^/?]*)", re.IGNORECASE)
#: Host and port as in a URL, without a user. The header `Host` may have an empty host.
_AUTHORITY: Final = re.compile(
    r"(?:(?:[0-9a-z._~-]|%[0-9a-f]{2})*|\[[0-9a-f:.]+(?:%25[0-9a-z._~-]+)?\])(?::[0-9]{0,5})?\Z"
)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def split_target(target: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the decoded segments of a target's path, and the parameters of its query.

    The path is split before it is decoded, so an encoded slash stays within its segment.

    Raises:
        RequestRejectedError: the query has too many parameters (400).
    """
    path, _, query = target.partition("?")
    if origin := _ABSOLUTE_TARGET.match(path):
        path = path[origin.end() :]
    try:
        parameters = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise RequestRejectedError(400, "UNSUPPORTED", "the query has too many parameters") from error
    return [unquote(segment) for segment in path.split("/")], parameters


def check_host(headers: Mapping[str, str], target: str, version: str) -> None:
    """Check that a request names one host: in the header `Host`, and in the target if that is a complete URL.

    `version` is the request's, such as HTTP/1.1. `read_headers` rejects a second header `Host`.

    Raises:
        RequestRejectedError: the host is missing or malformed, or header and target differ (400).
    """
    host, origin = headers.get("host"), _ABSOLUTE_TARGET.match(target)
    if host is None and version != "HTTP/1.0":
        raise RequestRejectedError(400, "UNSUPPORTED", "the header Host is missing")
    host = None if host is None else host.lower()
    if host is not None and not _AUTHORITY.match(host):
        raise RequestRejectedError(400, "UNSUPPORTED", "the header Host is malformed")
    if origin is None:
        return
    scheme, authority = origin[1].lower(), origin[2].lower()
    if not authority or not _AUTHORITY.match(authority):
        raise RequestRejectedError(400, "UNSUPPORTED", "the host in the request's URL is malformed")
    if host is not None and _remove_default_port(host, scheme) != _remove_default_port(authority, scheme):
        raise RequestRejectedError(400, "UNSUPPORTED", "the request's URL and the header Host name different hosts")


def _remove_default_port(authority: str, scheme: str) -> str:
    return authority.removesuffix(_DEFAULT_PORTS[scheme]).removesuffix(":")


#: 19 digits are enough for any file size; more would only cost time.
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})\Z")
#: distribution-spec, "Pushing a blob in chunks": not `bytes 0-99/100`, as elsewhere in HTTP.
_CONTENT_RANGE: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,19})\Z")


def parse_range_header(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte and the number of bytes of a range, for a blob of `size` bytes.

    None means the complete blob: the header is missing, malformed, or asks for several ranges (RFC 9110, section 14.2).

    Raises:
        RequestRejectedError: the range has no byte of the blob (416).
    """
    match = _RANGE.match(header.replace(" ", "")) if header else None
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last), size - 1) + 1 if last else size
        if last and int(last) < start:
            return None
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        raise RequestRejectedError(
            416,
            "UNSUPPORTED",
            f"the blob has {size} bytes, none of them in that range",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop - start


def parse_content_range(header: str) -> tuple[int, int]:
    """Return the first byte and the number of bytes of a chunk's `Content-Range`.

    Raises:
        RequestRejectedError: the header is malformed (400).
    """
    match = _CONTENT_RANGE.match(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise RequestRejectedError(400, "BLOB_UPLOAD_INVALID", "Content-Range must be <first byte>-<last byte>")
    return int(match[1]), int(match[2]) - int(match[1]) + 1


_CONTENT_LENGTH: Final = re.compile(r"[0-9]{1,19}\Z")
_CHUNK_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;|\Z)")
#: Trailers are read and ignored: the end of the body follows them.
_MAX_TRAILERS: Final = 32


class RequestBody:
    """A request body of `size` bytes, or in the chunked coding if `size` is None.

    `received` counts the bytes read so far.
    """

    def __init__(
        self, stream: BufferedIOBase, size: int | None, send_continue: Callable[[], None] | None = None
    ) -> None:
        """Read from `stream`; call `send_continue` before the first byte, if the client waits for it."""
        self.size = size
        self.received = 0
        self.is_finished = size == 0
        self._stream = stream
        #: How many bytes of the body, or of the present chunk, are still to come.
        self._remaining = size or 0
        self._send_continue = send_continue

    @property
    def remaining(self) -> int | None:
        """How many bytes are still to come; None if unknown."""
        return self._remaining if self.size is not None or self.is_finished else None

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1)."""
        return self._send_continue is not None

    def readinto(self, buffer: memoryview) -> int:
        """Read what has arrived into the beginning of `buffer`; return the number of bytes, 0 at the end.

        Raises:
            RequestRejectedError: the client stopped before the end (400), or the chunks are malformed (400).
            OSError: the connection broke.
        """
        if not self.is_finished and self._send_continue is not None:
            self._send_continue()
            self._send_continue = None
        if not self.is_finished and not self._remaining:
            self._begin_chunk()
        if self.is_finished:
            return 0
        # Only one read of the socket: the bytes that have arrived are used even if the next read fails.
        count = self._stream.readinto1(buffer[: self._remaining])
        if not count:
            raise RequestRejectedError(400, "SIZE_INVALID", f"the body ended early, after {self.received} bytes")
        self._remaining -= count
        self.received += count
        self.is_finished = self.size is not None and not self._remaining
        return count

    def _begin_chunk(self) -> None:
        # The end of the previous chunk is checked only now: an error there must not discard its bytes.
        if self.received and self._read_line():
            raise _malformed_body_error()
        match = _CHUNK_SIZE.match(self._read_line())
        if match is None:
            raise _malformed_body_error()
        self._remaining = int(match[1], 16)
        if not self._remaining:
            self._skip_trailers()
            self.is_finished = True

    def _skip_trailers(self) -> None:
        for _ in range(_MAX_TRAILERS):
            if not self._read_line():
                return
        raise _malformed_body_error()

    def _read_line(self) -> bytes:
        line = self._stream.readline(limits.MAX_CHUNK_LINE)
        # CR or LF alone does not end a line: a proxy before us may not end the line there.
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise _malformed_body_error()
        return line[:-2]


def _malformed_body_error() -> RequestRejectedError:
    return RequestRejectedError(400, "SIZE_INVALID", "the body's chunks are malformed, or it ended early")


def open_request_body(
    headers: Mapping[str, str], stream: BufferedIOBase, send_continue: Callable[[], None], version: str
) -> RequestBody:
    """Return the body that a request's headers announce, or an empty one.

    `send_continue` sends the interim response to `Expect: 100-continue`. `version` is the request's, such as HTTP/1.1.
    A wrong guess about the end would turn part of a body into the next request.

    Raises:
        RequestRejectedError: the end of the body is ambiguous (400), or its coding is unknown (501).
    """
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    callback = send_continue if headers.get("expect", "").lower() == "100-continue" else None
    if coding is not None:
        if length is not None:
            raise RequestRejectedError(400, "SIZE_INVALID", "both Content-Length and Transfer-Encoding are given")
        if version == "HTTP/1.0":
            # HTTP/1.0 has no transfer codings: a proxy may have read the chunks as the body (RFC 9112, section 6.1).
            raise RequestRejectedError(400, "SIZE_INVALID", "HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != "chunked":
            raise RequestRejectedError(501, "UNSUPPORTED", "the only supported transfer coding is chunked")
        return RequestBody(stream, None, callback)
    if length is not None and not _CONTENT_LENGTH.match(length):
        raise RequestRejectedError(400, "SIZE_INVALID", "Content-Length is not one number")
    return RequestBody(stream, int(length or 0), callback)
