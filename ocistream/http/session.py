"""One session of requests for all hosts: send one request, and wait for the head of its response.

No redirects, retries or credentials here, and no cookies, netrc or environment variables.
"""

from __future__ import annotations

import functools
import http.client
from typing import TYPE_CHECKING, ClassVar, Final, cast

import requests
import urllib3.exceptions

from ocistream.errors import NetworkError, OcistreamError, PermanentNetworkError
from ocistream.http.adapter import Adapter
from ocistream.http.errors import network_error
from ocistream.http.origins import Origin, redact_url
from ocistream.http.rate_limits import BlockingThrottle
from ocistream.http.response import EndlessResponseError, Response
from ocistream.notices import add_failure_hint
from ocistream.oci.reference import printable
from ocistream.streams.memory import ReadBuffers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.http.adapter import Route
    from ocistream.http.response import BoundedResponse
    from ocistream.http.settings import HttpSettings
    from ocistream.streams.chunks import Chunk

#: What a request without a response raises. http.client raises ValueError for what it cannot send.
_FAILURES: Final = (
    requests.RequestException,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)


class StreamedBody:
    """A request body that is produced while it is sent. Its length is not stated, but for a `FixedLengthBody`.

    It has `__iter__` and no `read`, because http.client sends anything with `read` in pieces of 16 KiB. `is_started`
    says whether any chunk was requested: then the body cannot be sent again. `is_finished` says whether the body was
    sent completely; an early response prevents that. `failure` is the exception that the chunks raised, if any.

    If the chunks fail, the body is ended properly (`can_end_early`). Then the registry responds and knows what it has
    received, so the upload can be resumed or deleted. After a broken request, distribution 2.8 neither finds an upload
    nor allows its deletion.
    """

    can_end_early: ClassVar[bool] = True

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        """Use these chunks."""
        self._chunks = chunks
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
            if not self.can_end_early:
                raise
        except (OSError, ValueError) as error:
            self.failure = error
            # Otherwise it would be treated as a failure of the network.
            if not self.can_end_early:
                raise _BodyError from error


class FixedLengthBody(StreamedBody):
    """A request body whose length is stated.

    If its chunks fail, the request breaks off, because it cannot end short. A stated length lets a proxy refuse a layer
    that is too large before a byte of it is sent.
    """

    can_end_early: ClassVar[bool] = False

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

    def __init__(self, settings: HttpSettings, sleep: Callable[[float], None]) -> None:
        """Make no connection yet. `sleep` waits for a number of seconds where the rate is limited, and may raise."""
        super().__init__()
        # Without the environment no netrc replaces a Bearer header. Proxies are in the settings.
        self.trust_env = False
        self._adapter = Adapter(settings, sleep)
        self.mount("https://", self._adapter)
        self.mount("http://", self._adapter)
        self.external: Mapping[str, bool] = self._adapter.external
        # A CDN that gzips a blob breaks its length and digest (quay#1310).
        self._default_headers = {"User-Agent": settings.user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
        self._format_hint = settings.format_hint
        self._sleep = sleep
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
        """Send a request and return its response, with any status, as soon as the head has arrived.

        `timeout` is the time to connect, and the time to wait for data while reading, in seconds. Addresses behind a
        proxy are not checked.

        Raises:
            NetworkError: no response arrived.
            PermanentNetworkError: the host has an address that is not allowed, or a retry is useless for another
                reason.
            UnsupportedError: the proxy is of an unsupported kind.
            Exception: exceptions of a `FixedLengthBody`'s chunks are raised unchanged. A body that can end early keeps
                them in `failure`.
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
        except _FAILURES as error:
            raise self._convert_error(method, url, error, route.tls.ca_files) from error
        self._answered.add(route.origin)
        release = functools.partial(self._adapter.release, response)
        raw = cast("BoundedResponse", response.raw)
        if "content-encoding" in raw.fields and method == "GET":
            # Not an error: storage may call the compression of a layer its coding, and send the layer as it is.
            cause = f"{printable(Origin.from_url(url).host)} sent a Content-Encoding, which changes blobs"
            add_failure_hint(f"{cause}: check its proxy, or ask its operator")
        throttle = BlockingThrottle(route.limits.download, self._sleep) if route.limits.download else None
        return Response(raw, method, url, route.origin, release, self._read_buffers, throttle)

    def handshake(self, url: str, timeout: float) -> None:
        """Open a TLS connection to the host of an https URL, through the same proxy, and close it again.

        The certificate is not checked, no client certificate is shown, and no request is sent.

        Raises:
            NetworkError: the handshake failed.
            UnsupportedError: the proxy is of an unsupported kind.
        """
        try:
            self._adapter.handshake(Origin.from_url(url), timeout)
        except _FAILURES as error:
            raise self._convert_error("TLS with", url, error) from error

    def _convert_error(self, method: str, url: str, error: Exception, ca_files: Sequence[str] = ()) -> NetworkError:
        known = Origin.from_url(url) in self._answered
        converted = network_error(method, url, error, known=known, ca_files=ca_files)
        converted.hint = converted.hint and self._format_hint(converted.hint)
        return converted
