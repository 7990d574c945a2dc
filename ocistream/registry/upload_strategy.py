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
    PUT,
    STREAM,
    UNKNOWN_PROFILE,
    RegistryProfile,
    find_profile,
    find_profile_by_headers,
)
from ocistream.sizes import parse_size
from ocistream.transfer.interfaces import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

#: A stream of unknown length, in the chunked transfer coding; registries refuse it in other ways than STREAM.
_UNSIZED_STREAM: Final = "unsized"

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
        # The digest of a recompressed layer is known only at its end, so one PUT is not possible.
        _UNSIZED_STREAM: {400: (CHUNK,), 404: (CHUNK,), 411: (CHUNK,), 413: (CHUNK,), 416: (CHUNK,), 501: (CHUNK,)},
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
    is_unsized = refused.kind == STREAM and not is_size_known
    return ALTERNATIVES[_UNSIZED_STREAM if is_unsized else refused.kind].get(status, ())


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


#: Default number of blobs that are uploaded at the same time.
_DEFAULT_JOBS: Final = 4


class UploadStrategy:
    """The upload methods of every host. Safe for several threads. Sizes are in bytes.

    `explicit_method` is the user's choice, `jobs` the number of simultaneous uploads. `configured_profile` returns the
    profile that the user set for a host; its response headers are then ignored.
    """

    def __init__(
        self,
        *,
        explicit_method: UploadMethod | None = None,
        jobs: int = _DEFAULT_JOBS,
        configured_profile: Callable[[str], RegistryProfile | None] = lambda _host: None,
    ) -> None:
        """Take the user's choices."""
        self._configured_profile = configured_profile
        self._explicit_method = explicit_method
        self._jobs = max(jobs, 1)
        self._profiles: dict[str, RegistryProfile] = {}
        #: (Host, whether the size is known) -> the method that this run found.
        self._methods: dict[tuple[str, bool], UploadMethod] = {}
        self._methods_used: dict[str, str] = {}
        #: Hosts behind a proxy, which may refuse a body that is too large only if its length is stated.
        self._hosts_behind_proxies: set[str] = set()
        self._hosts_refusing_chunked_coding: set[str] = set()

    @property
    def methods_used(self) -> Mapping[str, str]:
        """The last upload method of each host, as `--upload` writes it."""
        return dict(self._methods_used)

    def replay_buffer_size(self, access: Access, *, is_size_known: bool) -> int:
        """Return how many bytes of one blob may be buffered for sending again.

        A pipe gets all of the memory, 8 MiB: that many bytes may be in socket buffers and in a proxy. A blob that can
        be read again needs one chunk only. With unknown size it may go in chunks, which are buffered; then the
        simultaneous uploads share the memory.
        """
        if access is not Access.REPEATABLE:
            return limits.UPLOAD_MEMORY
        return limits.CHUNK_SIZE if is_size_known else max(limits.CHUNK_SIZE, limits.UPLOAD_MEMORY // (2 * self._jobs))

    def profile(self, host: str) -> RegistryProfile:
        """Return the profile of a host."""
        if (profile := self._profiles.get(host)) is None:
            profile = self._profiles.setdefault(host, self._configured_profile(host) or find_profile(host))
        return profile

    def observe_headers(self, host: str, header: Callable[[str], str | None]) -> None:
        """Learn from the headers of a host's response; `header` returns a header by its name.

        distribution sends neither Server nor Via, so these come from a proxy before it, such as nginx with
        client_max_body_size. The proxy can refuse a body that is too large at once only if its length is stated.
        """
        server = header("Server")
        if (server is not None and not server.startswith("ocistream")) or header("Via") is not None:
            self._hosts_behind_proxies.add(host)
        if (
            self.profile(host) is UNKNOWN_PROFILE
            and self._configured_profile(host) is None
            and (profile := find_profile_by_headers(header)) is not None
        ):
            self._profiles[host] = profile

    def explicit_method(self, configured: str | None) -> UploadMethod | None:
        """Return the method that the user chose by option or configuration; None to choose automatically.

        Raises:
            UsageError: the configuration is malformed.
        """
        return self._explicit_method or (parse_upload_method(configured) if configured else None)

    def choose_method(self, host: str, *, is_size_known: bool, is_small: bool) -> UploadMethod:
        """Return the method to try first for a blob of known or unknown size.

        A small blob is complete before its upload begins, so it needs neither a stream nor an upload that can be
        resumed: one PUT saves a request.
        """
        method = self._methods.get((host, is_size_known)) or self._methods.get((host, True))
        if method is None or (method.kind == PUT and not is_size_known):
            if is_small and PUT in self.profile(host).methods:
                return UploadMethod(PUT)
            # One PUT needs the digest in advance.
            method = self._initial_method(host, is_size_known=is_size_known)
        return method

    def choose_next_method(
        self,
        host: str,
        refused: UploadMethod,
        status: int,
        *,
        is_size_known: bool,
        body_size: int | None,
        tried: Collection[UploadMethod],
    ) -> UploadMethod | None:
        """Return the method to try after `status` refused a body of `body_size` bytes; None if no method is left."""
        allowed = self.profile(host).methods
        for kind in list_alternatives(refused, status, is_size_known=is_size_known):
            method = UploadMethod(kind) if kind != CHUNK else self._chunk_method(host, refused, body_size)
            if method is None or method in tried or (kind == PUT and not is_size_known):
                continue
            if kind in allowed or kind == refused.kind:
                return method
        return None

    def can_use_chunked_coding(self, host: str, size: int) -> bool:
        """Return whether bodies of known length are sent to a host in the chunked transfer coding.

        This is the case for registries that lose interrupted uploads, and for blobs that are large enough to resume.
        For other registries the length is stated, so that a proxy can refuse a body that is too large at once.
        """
        return (
            size >= limits.MIN_PARTIAL_SIZE
            and self.profile(host).loses_interrupted_uploads
            and host not in self._hosts_behind_proxies
            and not self.has_refused_chunked_coding(host)
        )

    def has_refused_chunked_coding(self, host: str) -> bool:
        """Return whether a host has refused a body of known length in the chunked transfer coding."""
        return host in self._hosts_refusing_chunked_coding

    def disable_chunked_coding(self, host: str) -> None:
        """State the length of every body of known length to this host from now on."""
        self._hosts_refusing_chunked_coding.add(host)

    def set_method(self, host: str, method: UploadMethod, *, is_size_known: bool) -> None:
        """Use this method first for all later blobs."""
        self._methods[host, is_size_known] = method

    def record_success(self, host: str, method: UploadMethod, *, is_small: bool) -> None:
        """Record how a blob was uploaded, for `methods_used`; small blobs count only if there is no larger one."""
        if is_small:
            self._methods_used.setdefault(host, str(method))
        else:
            self._methods_used[host] = str(method)

    def _initial_method(self, host: str, *, is_size_known: bool) -> UploadMethod:
        """Return the first method of the host's profile."""
        kind = next((kind for kind in self.profile(host).methods if is_size_known or kind != PUT), STREAM)
        return (self._chunk_method(host) if kind == CHUNK else UploadMethod(kind)) or UploadMethod(STREAM)

    def _chunk_method(
        self, host: str, refused: UploadMethod | None = None, body_size: int | None = None
    ) -> UploadMethod | None:
        """Return chunks that are smaller than the refused body; None if they would be too small to be useful."""
        size = refused.chunk_size if refused is not None and refused.kind == CHUNK else limits.UPLOAD_MEMORY
        size = min(size, self.profile(host).largest_chunk or size)
        while body_size is not None and size >= body_size > limits.MIN_UPLOAD_CHUNK:
            size //= 2
        return UploadMethod(CHUNK, size) if size >= limits.MIN_UPLOAD_CHUNK else None
