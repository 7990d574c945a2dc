"""One session of requests for all hosts: send one request, and read the body of its response.

No redirects, retries or credentials here, and no cookies, netrc or environment variables.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
from typing import TYPE_CHECKING, Final, cast

import requests
import urllib3.exceptions

from ocistream import limits
from ocistream.errors import CancelledError, NetworkError, OcistreamError, PermanentNetworkError
from ocistream.http.adapter import Adapter, EndlessResponseError
from ocistream.http.errors import describe_cause, network_error
from ocistream.http.origins import Origin, redact_url
from ocistream.http.rate_limits import BlockingThrottle
from ocistream.streams.memory import ReadBuffers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from ocistream.http.adapter import BoundedResponse, Route
    from ocistream.http.rate_limits import RateLimits, Throttle
    from ocistream.http.settings import HttpSettings
    from ocistream.streams.chunks import Chunk

__all__ = ["FixedLengthBody", "Response", "Session", "StreamedBody"]


#: What a request without a response raises. http.client raises ValueError for what it cannot send.
_FAILURES: Final = (
    requests.RequestException,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)


class StreamedBody:
    """A request body that is produced while it is sent. Its length is not known in advance.

    It has `__iter__` and no `read`, because http.client sends anything with `read` in pieces of 16 KiB. `is_started`
    says whether any chunk was requested: then the body cannot be sent again. `is_finished` says whether the body was
    sent completely; an early response prevents that. `failure` is the exception that the chunks raised, if any.

    With `ends_early` a body whose chunks fail is ended properly. Then the registry responds and knows what it has
    received, so the upload can be resumed or deleted. After a broken request, distribution 2.8 neither finds an upload
    nor allows its deletion.
    """

    def __init__(self, chunks: Iterator[Chunk], *, ends_early: bool = False) -> None:
        """Use these chunks."""
        self._chunks = chunks
        self._ends_early = ends_early
        self.is_started = False
        self.is_finished = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks, and record start, end and failure."""
        self.is_started = True
        try:
            yield from self._chunks
            self.is_finished = True
        except OcistreamError as error:
            self.failure = error
            if not self._ends_early:
                raise
        except (OSError, ValueError) as error:
            self.failure = error
            # Otherwise it would be treated as a failure of the network.
            if not self._ends_early:
                raise _BodyError from error


class FixedLengthBody(StreamedBody):
    """A request body of known length.

    If its chunks fail, the request breaks off, because it cannot end short. A stated length lets a proxy refuse a layer
    that is too large before a byte of it is sent.
    """

    def __init__(self, chunks: Iterator[Chunk], length: int) -> None:
        """Use these chunks of `length` bytes in total."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Return the length in bytes, which becomes the Content-Length."""
        return self._length


class _BodyError(Exception):
    """Carries an exception of a body's chunks through the libraries."""


class Session(requests.Session):
    """A session of requests that sends one request at a time, and adds nothing to it. Safe for several threads."""

    def __init__(self, settings: HttpSettings, rate_limits: RateLimits, sleep: Callable[[float], None]) -> None:
        """Make no connection yet. `sleep` waits for a number of seconds where the rate is limited, and may raise."""
        super().__init__()
        # Without the environment no netrc replaces a Bearer header. Proxies are in the settings.
        self.trust_env = False
        upload = _blocking(rate_limits.upload, _without_cancellation(sleep))
        self._adapter = Adapter(settings, rate_limits.socket_buffer, upload)
        self.mount("https://", self._adapter)
        self.mount("http://", self._adapter)
        self.is_external = self._adapter.is_external
        # A CDN that gzips a blob breaks its length and digest (quay#1310).
        self._default_headers = {"User-Agent": settings.user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
        self._format_hint = settings.format_hint
        self._download_throttle = _blocking(rate_limits.download, sleep)
        self._read_buffers = ReadBuffers()
        self._answered: set[Origin] = set()

    def resolve_redirects(self, *_arguments: object, **_options: object) -> Iterator[requests.Response]:
        """Follow no redirect: requests would read the redirect's body completely, and check no target."""
        return iter(())

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | StreamedBody | None,
        route: Route,
        timeout: tuple[float, float],
    ) -> Response:
        """Send a request and wait for the head of the response, whatever its status.

        `timeout` is the time to connect, and the time to wait for data while reading, in seconds. Addresses behind a
        proxy are not checked.

        Raises:
            NetworkError: there is no response.
            PermanentNetworkError: the host has an address that is not allowed, or a retry is useless for another
                reason.
            UnsupportedError: the proxy is of an unsupported kind.
            Exception: exceptions of a `StreamedBody`'s chunks are raised unchanged.
        """
        # `prepare` would decode and encode the URL, which may be signed, and look for cookies and a netrc.
        request = requests.PreparedRequest()
        request.method, request.url, request.body = method, url, body or None  # type: ignore[assignment]
        all_headers = {**self._default_headers, **headers}
        if isinstance(body, bytes | FixedLengthBody) or (body is None and method not in {"GET", "HEAD"}):
            all_headers["Content-Length"] = str(len(body)) if body is not None else "0"
        request.headers = all_headers  # type: ignore[assignment] # no header has two spellings here
        try:
            response = self.send(
                request,
                stream=True,
                timeout=timeout,
                proxies={},
                allow_redirects=False,
                route=route,
            )
        except _BodyError as error:
            raise cast("Exception", error.__cause__) from None
        except EndlessResponseError as error:
            msg = f"{method} {redact_url(url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except (
            requests.RequestException,
            http.client.HTTPException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
        ) as error:
            raise self._convert_error(method, url, error) from error
        self._answered.add(route.origin)
        return Response(response, method, url, self._adapter, self._read_buffers, self._download_throttle)

    def handshake(self, url: str, timeout: float) -> None:
        """Open a TLS connection to the host of an https URL, through the same proxy, and close it again.

        The certificate is not checked, no client certificate is shown, and no request is sent.

        Raises:
            NetworkError: the handshake failed.
            UnsupportedError: the proxy is of an unsupported kind.
        """
        try:
            self._adapter.handshake(Origin.from_url(url), timeout)
        except (
            requests.RequestException,
            http.client.HTTPException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
        ) as error:
            raise self._convert_error("TLS with", url, error) from error

    def _convert_error(self, method: str, url: str, error: Exception) -> NetworkError:
        converted = network_error(method, url, error, known=Origin.from_url(url) in self._answered)
        converted.hint = converted.hint and self._format_hint(converted.hint)
        return converted


def _blocking(throttle: Throttle | None, sleep: Callable[[float], None]) -> BlockingThrottle | None:
    return BlockingThrottle(throttle, sleep) if throttle else None


def _without_cancellation(sleep: Callable[[float], None]) -> Callable[[float], None]:
    """Return a sleep that does not raise: a cancelled request ends where its body ends, not in the middle."""

    def wait(seconds: float) -> None:
        with contextlib.suppress(CancelledError):
            sleep(seconds)

    return wait


class Response:
    """A response of requests whose body has not been read yet."""

    def __init__(
        self,
        response: requests.Response,
        method: str,
        url: str,
        adapter: Adapter,
        read_buffers: ReadBuffers,
        throttle: BlockingThrottle | None,
    ) -> None:
        """Read the body into `read_buffers`, at the rate that `throttle` allows."""
        self._response = response
        self._adapter = adapter
        self._raw = cast("BoundedResponse", response.raw)
        self._read_buffers = read_buffers
        self._throttle = throttle
        #: Bytes of the body received so far.
        self._received = 0
        self._error_body: bytes | None = None
        self.method = method
        self.url = url
        self.status: int = response.status_code
        #: The body, after `load`.
        self.content = b""
        #: How many redirects were followed to get this response.
        self.hops = 0

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None."""
        values = self._raw.fields.get(name.lower())
        return ", ".join(values) if values is not None else None

    def challenges(self) -> Sequence[str]:
        """Return the values of all WWW-Authenticate headers."""
        return self._raw.fields.get("www-authenticate", [])

    def chunks(self) -> Iterator[Chunk]:
        """Yield the body in chunks of whatever has arrived; a chunk is valid until the next one is requested.

        Raises:
            NetworkError: the body broke off or stalled. It is permanent if the body never ends.
        """
        with contextlib.closing(self), self._borrow_buffers() as buffers:
            # At the end no further buffer is needed. If the body is short, one more read reports that.
            while self._raw.missing or not self._raw.isclosed():
                buffer = next(buffers)
                if not (count := self._fill(buffer)):
                    return
                yield buffer[:count]

    def read_into(self, view: memoryview) -> Generator[int, None, None]:
        """Read the body into `view`; yield the total number of bytes read, each time that it grows.

        Raises:
            NetworkError: the body broke off, stalled, or is longer than `view`. It is permanent if the body never ends.
        """
        filled = 0
        with contextlib.closing(self):
            while filled < len(view) and (count := self._fill(view[filled:])):
                filled += count
                yield filled
            # Read up to the end of the body, so that the connection can be reused.
            if filled == len(view) and self._fill(memoryview(bytearray(1))):
                msg = f"{self.method} {redact_url(self.url)}: asked for {filled} bytes, and got more"
                raise NetworkError(msg)

    def read(self, limit: int) -> bytes:
        """Return a small body, cut to `limit` + 1 bytes: a longer result shows that the body is too long.

        Raises:
            NetworkError: the body broke off.
        """
        content = bytearray()
        self._append_to(content, limit)
        return bytes(content[: limit + 1])

    def load(self, limit: int) -> None:
        """Read a small body into `content`, as `read` does."""
        self.content = self.read(limit)

    def read_error_body(self) -> bytes:
        """Return the body of an error as far as it can be read: the status counts even if the body breaks off."""
        if self._error_body is None:
            content = bytearray()
            with contextlib.suppress(NetworkError):
                self._append_to(content, limits.MAX_ERROR_BODY)
            self._error_body = bytes(content[: limits.MAX_ERROR_BODY])
        return self._error_body

    def drain(self) -> None:
        """Read a small body so that the connection can be reused."""
        self.read_error_body()

    def close(self) -> None:
        """Keep the connection for other requests if the body was read to its end; else close it."""
        self._adapter.release(self._response)

    def _borrow_buffers(self) -> contextlib.AbstractContextManager[Iterator[memoryview]]:
        if self._raw.length is not None and self._raw.length <= limits.MIN_READ:
            # A small body needs no large buffers, and most often one read.
            size = max(self._raw.length, 1)
            return contextlib.nullcontext(memoryview(bytearray(size)) for _ in itertools.count())
        return self._read_buffers.borrow()

    def _append_to(self, content: bytearray, limit: int) -> None:
        length = self._raw.length
        size = min(limit if length is None else length, limit, limits.MIN_READ - 1) + 1
        buffer = memoryview(bytearray(size))
        with contextlib.closing(self):
            while len(content) <= limit and (count := self._fill(buffer)):
                content += buffer[:count]

    def _fill(self, view: memoryview) -> int:
        """Read a piece of the body into the beginning of `view` and return its size in bytes; 0 at the end."""
        raw = self._raw
        max_size = min(len(view), raw.read_size if self._throttle is None else self._throttle.piece_size)
        min_size = min(max_size, limits.MIN_READ)
        filled = 0
        try:
            while filled < min_size and (count := raw.readinto(view[filled:max_size])):
                filled += count
        except EndlessResponseError as error:
            msg = f"{self.method} {redact_url(self.url)}: {error}"
            raise PermanentNetworkError(msg) from None
        except (http.client.HTTPException, OSError, ValueError) as error:
            # http.client raises ValueError for a malformed chunk size.
            msg = f"{self.method} {redact_url(self.url)}: the answer broke off: {describe_cause(error)}"
            raise NetworkError(msg) from error
        if not filled and raw.missing:
            came = f"{self._received} bytes came, {raw.missing} more were promised"
            msg = f"{self.method} {redact_url(self.url)}: the answer broke off: {came}"
            raise NetworkError(msg)
        self._received += filled
        if self._throttle is not None and filled:
            self._throttle.spend(filled)
        return filled
