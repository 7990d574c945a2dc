"""The upload methods (one streamed PATCH, one PUT, chunks), and which one to use for a host.

A method is the user's choice, what this process learned, or the first one of the host's profile. One table has the
methods to try after a refusal. No request is sent here.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.registry.profiles import (
    CHUNK,
    PROFILES_BY_NAME,
    PUT,
    STREAM,
    UNKNOWN_PROFILE,
    find_profile,
    find_profile_by_headers,
)
from ocistream.sizes import parse_size
from ocistream.streams.workers import DEFAULT_JOBS
from ocistream.transfer.interfaces import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ocistream.http.endpoints import Endpoint

#: Statuses by which a server may refuse the chunked transfer coding (RFC 9112, section 6.1). The same method with a
#: Content-Length is tried next.
CHUNKED_CODING_REFUSALS: Final = frozenset({400, 404, 411, 501})

#: Method -> status of the refusal -> the methods to try next, the likeliest first. Other statuses do not depend on
#: the method. CHUNK after CHUNK means half the size.
ALTERNATIVES: Final[Mapping[str, Mapping[int, tuple[str, ...]]]] = MappingProxyType(
    {
        STREAM: {
            404: (PUT, CHUNK),
            405: (PUT,),
            411: (CHUNK, PUT),
            # The body is too large for the registry or a proxy before it (harbor#23015, oras-py#137, nginx).
            413: (CHUNK,),
            # GHCR's answer to a body that is too large (rust-oci-client#35).
            416: (CHUNK, PUT),
            501: (CHUNK, PUT),
        },
        PUT: {
            # Artifactory answers 404 BLOB_UNKNOWN to a PUT with a body (docker/buildx#196).
            404: (STREAM, CHUNK),
            405: (STREAM, CHUNK),
            413: (CHUNK,),
            416: (CHUNK, STREAM),
            501: (STREAM, CHUNK),
        },
        CHUNK: {
            400: (STREAM, PUT),
            404: (STREAM, PUT),
            405: (PUT, STREAM),
            413: (CHUNK,),
            416: (CHUNK, STREAM, PUT),
            501: (STREAM, PUT),
        },
    }
)


@dataclass(frozen=True, slots=True)
class UploadMethod:
    """One upload method. `chunk_size` is the largest chunk in bytes, for CHUNK only."""

    kind: str
    chunk_size: int = 0

    def __str__(self) -> str:
        """Return the form used by `--upload` and `--result`: `stream`, `put`, `chunk=4194304`."""
        return f"{self.kind}={self.chunk_size}" if self.kind == CHUNK else self.kind


def list_alternatives(refused: UploadMethod, status: int, *, is_size_known: bool) -> tuple[str, ...]:
    """List the methods to try after `status` refused one; none if the status does not depend on the method."""
    if is_size_known:
        return ALTERNATIVES[refused.kind].get(status, ())
    if refused.kind == STREAM and status in CHUNKED_CODING_REFUSALS:
        return (CHUNK,)
    # The digest of a recompressed layer is known only at its end, so one PUT is not possible.
    return tuple(kind for kind in ALTERNATIVES[refused.kind].get(status, ()) if kind != PUT)


def parse_upload_method(text: str) -> UploadMethod | None:
    """Parse `stream`, `put`, `chunk=SIZE` such as `chunk=4MiB`, or `auto`, which returns None.

    Raises:
        UsageError: the text has another form, or a chunk would not fit into the upload buffer.
    """
    if text == "auto":
        return None
    kind, equals, size = text.partition("=")
    if kind in {STREAM, PUT} and not equals:
        return UploadMethod(kind)
    count = parse_size(size)
    if kind != CHUNK or not count:
        msg = f"malformed upload method {printable(text)!r}"
        raise UsageError(msg, hint="write auto, stream, put or chunk=SIZE, such as chunk=4MiB")
    if count > limits.UPLOAD_MEMORY:
        msg = f"chunks of {printable(size)} are too large: each is buffered until the registry has it"
        raise UsageError(
            msg, hint=f"use at most chunk={limits.UPLOAD_MEMORY // limits.MIB}MiB; stream has no such limit"
        )
    return UploadMethod(CHUNK, count)


class UploadStrategy:
    """How this run uploads to each host. Safe for several threads.

    `explicit_method` is the user's choice, `jobs` the number of simultaneous uploads.
    """

    def __init__(self, *, explicit_method: UploadMethod | None = None, jobs: int = DEFAULT_JOBS) -> None:
        """Take the user's choices."""
        self._explicit_method = explicit_method
        self._jobs = max(jobs, 1)
        self._hosts: dict[str, HostStrategy] = {}

    @property
    def methods_used(self) -> Mapping[str, str]:
        """The last upload method of each host, as `--upload` writes it."""
        return {name: str(host.method_used) for name, host in [*self._hosts.items()] if host.method_used is not None}

    def host(self, endpoint: Endpoint) -> HostStrategy:
        """Return how this run uploads to the host of an endpoint."""
        if (host := self._hosts.get(endpoint.registry)) is None:
            new = HostStrategy(endpoint, self._explicit_method, self._jobs)
            host = self._hosts.setdefault(endpoint.registry, new)
        return host

    def observe_headers(self, endpoint: Endpoint, header: Callable[[str], str | None]) -> None:
        """Learn from the headers of a response of an endpoint; `header` returns a header by its name."""
        self.host(endpoint).observe_headers(header)


class HostStrategy:
    """How this run uploads to one host. Safe for several threads. Sizes are in bytes.

    `explicit_method` is the user's choice by option or configuration; None to choose automatically. A profile that the
    configuration sets does not change with the headers of the host. `method_used` is the last method that succeeded.
    """

    def __init__(self, endpoint: Endpoint, explicit_method: UploadMethod | None, jobs: int) -> None:
        """Take the settings of the host, the method of the command line, and the number of simultaneous uploads."""
        settings = endpoint.host_settings
        self.explicit_method = explicit_method or (parse_upload_method(settings.upload) if settings.upload else None)
        self.profile = PROFILES_BY_NAME[settings.profile] if settings.profile else find_profile(endpoint.registry)
        self.method_used: UploadMethod | None = None
        #: Whether the host has refused a body of known length in the chunked transfer coding.
        self.has_refused_chunked_coding = False
        self._can_learn_profile = not settings.profile
        self._jobs = jobs
        #: Whether the size is known -> the method that this run found after a refusal.
        self._methods_found: dict[bool, UploadMethod] = {}
        #: Whether a proxy is before the registry: it may refuse a body that is too large only if its length is stated.
        self._is_behind_proxy = False

    def observe_headers(self, header: Callable[[str], str | None]) -> None:
        """Learn from the headers of a response.

        distribution sends neither Server nor Via, so these come from a proxy before it, such as nginx with
        client_max_body_size. The proxy can refuse a body that is too large at once only if its length is stated.
        """
        server = header("Server")
        if (server is not None and not server.startswith("ocistream")) or header("Via") is not None:
            self._is_behind_proxy = True
        if self.profile is UNKNOWN_PROFILE and self._can_learn_profile:
            self.profile = find_profile_by_headers(header) or UNKNOWN_PROFILE

    def replay_buffer_size(self, access: Access, *, is_size_known: bool) -> int:
        """Return how many bytes of one blob may be buffered for sending again.

        A pipe gets all of the memory, 8 MiB: that many bytes may be in socket buffers and in a proxy. A blob that can
        be read again needs one chunk only. With unknown size it may go in chunks, which are buffered; then the
        simultaneous uploads share the memory.
        """
        if access is not Access.REPEATABLE:
            return limits.UPLOAD_MEMORY
        return limits.CHUNK_SIZE if is_size_known else max(limits.CHUNK_SIZE, limits.UPLOAD_MEMORY // (2 * self._jobs))

    def choose_method(self, *, is_size_known: bool, is_small: bool) -> UploadMethod:
        """Return the method to try first for a blob of known or unknown size.

        A small blob is complete before its upload begins, so it needs neither a stream nor an upload that can be
        resumed: one PUT saves a request.
        """
        method = self._methods_found.get(is_size_known) or self._methods_found.get(True)
        if method is not None and (is_size_known or method.kind != PUT):
            return method
        if is_small and PUT in self.profile.methods:
            return UploadMethod(PUT)
        # One PUT needs the digest in advance.
        kind = next((kind for kind in self.profile.methods if is_size_known or kind != PUT), STREAM)
        return (self._chunk_method() if kind == CHUNK else UploadMethod(kind)) or UploadMethod(STREAM)

    def replace_method(
        self,
        refused: UploadMethod,
        status: int,
        *,
        is_size_known: bool,
        body_size: int | None,
        tried: Collection[UploadMethod],
    ) -> UploadMethod | None:
        """Return the method to try after `status` refused a body of `body_size` bytes; None if no method is left.

        Later blobs try it first.
        """
        for kind in list_alternatives(refused, status, is_size_known=is_size_known):
            method = UploadMethod(kind) if kind != CHUNK else self._chunk_method(refused, body_size)
            is_allowed = kind in self.profile.methods or kind == refused.kind
            if is_allowed and method is not None and method not in tried:
                self._methods_found[is_size_known] = method
                return method
        return None

    def can_use_chunked_coding(self, size: int) -> bool:
        """Return whether bodies of known length are sent in the chunked transfer coding.

        This is the case for registries that lose interrupted uploads, and for blobs that are large enough to resume.
        For other registries the length is stated, so that a proxy can refuse a body that is too large at once.
        """
        return (
            size >= limits.MIN_PARTIAL_SIZE
            and self.profile.loses_interrupted_uploads
            and not self._is_behind_proxy
            and not self.has_refused_chunked_coding
        )

    def _chunk_method(self, refused: UploadMethod | None = None, body_size: int | None = None) -> UploadMethod | None:
        """Return chunks that are smaller than the refused body; None if they would be too small to be useful."""
        size = refused.chunk_size if refused is not None and refused.kind == CHUNK else limits.UPLOAD_MEMORY
        size = min(size, self.profile.largest_chunk or size)
        while body_size is not None and size >= body_size > limits.MIN_UPLOAD_CHUNK:
            size //= 2
        return UploadMethod(CHUNK, size) if size >= limits.MIN_UPLOAD_CHUNK else None
