"""Memory for the blobs of a stream that were read before the graph is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.archive.contents import ArchiveContents
    from ocistream.errors import IntegrityError
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.walk import Need
    from ocistream.streams.compression import Codec

__all__ = ["StreamBuffer"]


class StreamBuffer:
    """The blobs of an archive that were read before its graph is known.

    Manifests that a walk has taken are kept up to a limit: a second graph may be built from the same stream.
    """

    def __init__(self, contents: ArchiveContents) -> None:
        """Buffer blobs of an archive with these contents."""
        self.contents = contents
        #: By digest: JSON in memory, JSON beyond the memory limit that was written to the destination, and the codecs
        #: of compressed blobs that were written there.
        self.buffered: dict[str, bytes] = {}
        self.spilled: dict[str, Descriptor] = {}
        self.codecs: dict[str, Codec] = {}
        #: The total size of the JSON in memory.
        self.buffered_bytes = 0
        #: Blobs that a walk, the destination or the reader of `blobs` has taken.
        self.delivered: set[str] = set()
        #: Blobs whose bytes do not match the digest in their name.
        self.corrupt: dict[str, IntegrityError] = {}
        self._manifests: dict[str, bytes] = {}
        self._manifest_bytes = 0

    @property
    def has_all_manifests(self) -> bool:
        """Whether every manifest that a walk has taken is kept."""
        return self._manifest_bytes <= limits.MAX_GRAPH_BYTES

    def find(self, need: Need) -> bytes | None:
        """Return a document for a walk, or None if it is not in memory."""
        raw = self.buffered.get(need.digest)
        if raw is None:
            return self._manifests.get(need.digest)
        # A config is also a blob of the graph, and a candidate may be a manifest of it: both are needed again.
        if not need.is_config and not need.is_candidate:
            del self.buffered[need.digest]
            self.buffered_bytes -= len(raw)
            self.deliver_manifest(need.digest, raw)
        return raw

    def deliver_manifest(self, digest: str, raw: bytes) -> None:
        """Keep a manifest that a walk takes. If the total is too large, no manifest is kept."""
        self.delivered.add(digest)
        self._manifest_bytes += len(raw)
        if self.has_all_manifests:
            self._manifests[digest] = raw
        else:
            self._manifests.clear()

    def add_synthesized(self, manifests: Mapping[str, bytes]) -> None:
        """Add manifests that are not in the stream."""
        self._manifests |= manifests

    def drop_manifests(self) -> None:
        """Drop the manifests that a walk has taken: no other graph will be built."""
        self._manifests.clear()
