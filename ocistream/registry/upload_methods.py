"""The methods of uploading a blob (one streamed PATCH, one PUT, chunks), and which to try after a refusal.

Values and one table. `registry.upload_strategy` chooses a method and `registry.upload` uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALTERNATIVES",
    "CHUNK",
    "CHUNKED_CODING_REFUSALS",
    "PUT",
    "STREAM",
    "UNSIZED_STREAM",
    "UploadMethod",
    "parse_upload_method",
]

#: POST, one PATCH without a Content-Range, PUT without a body: what docker, skopeo and crane do.
STREAM: Final = "stream"
#: POST, one PUT with the digest and the body.
PUT: Final = "put"
#: POST, PATCHes that state their range and length, each to the Location of the answer before, PUT without a body.
CHUNK: Final = "chunk"
#: A stream of unknown length, in the chunked transfer coding; registries refuse it in other ways than STREAM.
UNSIZED_STREAM: Final = "unsized"

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
        UNSIZED_STREAM: {400: (CHUNK,), 404: (CHUNK,), 411: (CHUNK,), 413: (CHUNK,), 416: (CHUNK,), 501: (CHUNK,)},
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
        msg = f"malformed way to upload {printable(text)!r}"
        raise UsageError(msg, hint="write auto, stream, put or chunk=SIZE, as in chunk=4MiB")
    if count > limits.UPLOAD_MEMORY:
        msg = f"chunks of {printable(size)} are too large: each is held until the registry has taken it"
        raise UsageError(msg, hint=f"at most chunk={limits.UPLOAD_MEMORY // limits.MIB}MiB; stream has no such bound")
    return UploadMethod(CHUNK, count)
