"""What a graph needs of a stream and has passed already: it is held, was handed to the sink, or was given before."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ocistream import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ocistream.archive.docker_stream import StreamBuffer
    from ocistream.layout.index_entries import IndexGraphBuilder
    from ocistream.oci.descriptor import Descriptor
    from ocistream.transfer.interfaces import EarlyBlobs

__all__ = ["BufferedManifests"]


class BufferedManifests:
    """Answers the needs of a graph out of what has `passed`; the digests that it takes from there become `given`.

    Every manifest that was supplied is kept, up to a limit: a second graph may be made of the same stream.
    """

    def __init__(
        self,
        buffer: StreamBuffer,
        delivered: set[str],
        *,
        on_recalled: Callable[[str, bytes], None] = lambda _digest, _raw: None,
    ) -> None:
        """Share both with the reader of the stream; `note` is called with what the sink gave back."""
        self._on_recalled = on_recalled
        self._buffer = buffer
        self._delivered = delivered
        self._supplied: dict[str, bytes] = {}
        self._size = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything that was supplied is still kept."""
        return self._size <= limits.MAX_GRAPH_BYTES

    def next_needed(self, builder: IndexGraphBuilder, early_blobs: EarlyBlobs) -> Descriptor | None:
        """Give what is needed and has not passed yet: what hangs on an image is needed when all of that is known."""
        while (needed := builder.next_needed()) is not None:
            if not self._is_available(needed.digest):
                break
            self.supply_buffered(builder, early_blobs)
        return needed

    def supply_buffered(
        self, builder: IndexGraphBuilder, early_blobs: EarlyBlobs, last_digest: str | None = None
    ) -> None:
        """Give the gathering what it needs and has passed already.

        Only what was just `passed`, and what is needed since this was last done, can have become answerable: thousands
        of needs are not gone through again for each entry.
        """
        looked_for = deque([last_digest] if last_digest else [])
        looked_for.extend(builder.new_needs())
        while looked_for:
            found = looked_for.popleft()
            if builder.is_needed(found) and self._is_available(found):
                builder.supply(found, self._take_buffered(builder, found, early_blobs))
                looked_for.extend(builder.new_needs())

    def keep(self, digest: str, raw: bytes) -> None:
        """Keep a manifest that was supplied, unless there are too many of them: then none is kept."""
        self._size += len(raw)
        if self.is_complete:
            self._supplied[digest] = raw
        else:
            self._supplied.clear()

    def add(self, synthesized: Mapping[str, bytes]) -> None:
        """Take manifests that are not in the stream."""
        self._supplied |= synthesized

    def clear(self) -> None:
        """Let go of everything that is kept: no other graph will be made."""
        self._supplied.clear()

    def _is_available(self, digest: str) -> bool:
        return digest in self._buffer.buffered or digest in self._buffer.spilled or digest in self._supplied

    def _take_buffered(self, builder: IndexGraphBuilder, digest: str, early_blobs: EarlyBlobs) -> bytes:
        if digest in self._buffer.buffered:
            if builder.is_config(digest):
                # It is a blob as well, and will be asked for.
                return self._buffer.buffered[digest]
            content = self._buffer.buffered.pop(digest)
            self._buffer.buffered_bytes -= len(content)
            self._delivered.add(digest)
            self.keep(digest, content)
            return content
        if digest in self._supplied:
            return self._supplied[digest]
        raw = early_blobs.read_back(self._buffer.spilled[digest])
        self._on_recalled(digest, raw)
        return raw
