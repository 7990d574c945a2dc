"""Check that the config of an image is valid JSON before its last byte is passed on.

Configs of other artifacts (charts, signatures) are not checked.
"""

from __future__ import annotations

import io
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.documents import check_config
from ocistream.oci.graph import is_image
from ocistream.streams.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, VerifiedBlob

_JSON_OBJECT_START: Final = re.compile(rb"[ \t\n\r]*+\{")


#: Of all transfers of the process, one at a time buffers a large config.
_large_configs: Final = Budget(1)


class ConfigChecker:
    """The configs of images in a graph. Each is buffered completely to be parsed, large ones one at a time."""

    def __init__(self) -> None:
        """Start without configs."""
        self.digests: set[str] = set()
        self._not_json: set[str] = set()

    def find_configs(self, graph: Graph) -> None:
        """Find the configs of a graph."""
        self.digests = {
            document.config.digest for _, document in graph.images() if document.config and is_image(document)
        }

    def watch_early(self, blob: Blob) -> Blob:
        """Return a blob that comes before the graph, with chunks that note whether it may be a config."""
        return (
            replace(blob, open=partial(self._watch_chunks, blob)) if blob.descriptor.size <= limits.MAX_CONFIG else blob
        )

    def check_early(self, descriptor: Descriptor) -> None:
        """Refuse a blob that came before the graph, if it is a config but does not start as JSON.

        Most early JSON is buffered until the graph is known, and then parsed. What did not fit into the buffer is not
        read again.
        """
        if descriptor.digest in self.digests and descriptor.digest in self._not_json:
            raise not_json_error(descriptor)

    def _watch_chunks(self, blob: Blob, offset: int = 0) -> Iterator[Chunk]:
        chunks = blob.open(offset)
        beginning = next(chunks, b"")
        if not can_be_json_object(beginning):
            self._not_json.add(blob.descriptor.digest)
        if beginning:
            yield beginning
        yield from chunks

    def reserve_memory(self, descriptor: Descriptor) -> AbstractContextManager[object]:
        """Return a context that waits until a config of this size may be buffered."""
        return _large_configs.reserve() if descriptor.size > limits.MAX_JSON_UNSPLIT else nullcontext()


def with_config_check(blob: VerifiedBlob) -> VerifiedBlob:
    """Return a config whose chunks raise ArchiveError if it is malformed.

    The error comes before the last chunk, so a malformed config is never completed at the destination. A config whose
    beginning cannot be read is not checked, nor one above `limits.MAX_PARSED_CONFIG`.
    """
    if blob.descriptor.size > limits.MAX_PARSED_CONFIG:
        return blob

    def opened(offset: int = 0, stored: Iterable[Chunk] | None = None) -> Iterator[Chunk]:
        if offset and stored is None:
            return blob.open(offset)
        content = io.BytesIO()
        beginning = None if stored is None else _record_chunks(stored, content)
        return _check_chunks(blob, blob.open(offset, beginning), content)

    return replace(blob, open=opened)


def _check_chunks(blob: Blob, chunks: Iterator[Chunk], content: io.BytesIO) -> Iterator[Chunk]:
    """Pass on all chunks but the last; pass on the last if they, after what `content` has, are a valid config."""
    last = b""
    for chunk in chunks:
        if last:
            yield last
        last = bytes(chunk)
        content.write(last)
    check_config(content.getvalue(), f"the config {blob.descriptor.digest}")
    if last:
        yield last


def _record_chunks(chunks: Iterable[Chunk], content: io.BytesIO) -> Iterator[Chunk]:
    for chunk in chunks:
        content.write(chunk)
        yield chunk


def can_be_json_object(beginning: Chunk) -> bool:
    """Return whether a blob that begins with these bytes may be a JSON object, such as a config or a manifest."""
    return _JSON_OBJECT_START.match(beginning) is not None


def not_json_error(descriptor: Descriptor) -> ArchiveError:
    """Return the error for a config that does not start as a JSON object."""
    return ArchiveError(f"the config {descriptor.digest} is not valid JSON: it does not begin as an object")
