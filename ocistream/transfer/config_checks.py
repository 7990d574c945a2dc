"""Check that the config of an image is valid JSON before its last byte is passed on.

Configs of other artifacts (charts, signatures) are not checked.
"""

from __future__ import annotations

import io
import re
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.documents import check_config
from ocistream.oci.graph import is_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

__all__ = ["ConfigChecker", "can_be_json_object", "not_json_error", "with_config_check"]

_JSON_OBJECT_START: Final = re.compile(rb"[ \t\n\r]*+\{")


class ConfigChecker:
    """Which blobs of a graph are images' configs; they are held whole to be read, large ones one at a time."""

    def __init__(self) -> None:
        """Know of none yet."""
        self.digests: set[str] = set()
        self._not_json: set[str] = set()
        self._large_config_lock = threading.Lock()

    def find_configs(self, graph: Graph) -> None:
        """Learn which blobs are configs."""
        self.digests = {
            document.config.digest for _, document in graph.images() if document.config and is_image(document)
        }

    def watch_early(self, blob: Blob) -> Blob:
        """Give a blob that comes before the graph, with chunks that take note of whether it may be a config."""
        return (
            replace(blob, open=partial(self._watch_chunks, blob)) if blob.descriptor.size <= limits.MAX_CONFIG else blob
        )

    def check_early(self, descriptor: Descriptor) -> None:
        """Refuse a blob that came before the graph, if it turned out to be a config and is none.

        Raises:
            ArchiveError: it is not even the beginning of JSON. What looks like it is mostly held until the graph is
                known, and read then as all others are; what there was no room for is not read again.
        """
        if descriptor.digest in self.digests and descriptor.digest in self._not_json:
            raise not_json_error(descriptor)

    def _watch_chunks(self, blob: Blob) -> Iterator[Chunk]:
        chunks = blob.open()
        first = next(chunks, b"")
        if not can_be_json_object(first):
            self._not_json.add(blob.descriptor.digest)
        if first:
            yield first
        yield from chunks

    def reserve_memory(self, descriptor: Descriptor) -> AbstractContextManager[object]:
        """Wait until there is room to hold this one, up to the end of the block."""
        return self._large_config_lock if descriptor.size > limits.MAX_JSON_UNSPLIT else nullcontext()


def with_config_check(blob: Blob) -> Blob:
    """Give a config, whose chunks are verified, with chunks that raise ArchiveError where it is malformed.

    It raises before the last chunk, so that a malformed one is never completed anywhere. Not read are one that is begun
    in its middle, of which the beginning is not known here, and one for which there is no room.
    """
    if blob.descriptor.size > limits.MAX_PARSED_CONFIG:
        return blob
    resume = blob.resume

    def opened() -> Iterator[Chunk]:
        return _check_chunks(blob, blob.open(), io.BytesIO())

    def resumed(held: Iterator[Chunk], size: int) -> Iterator[Chunk]:
        assert resume is not None, "it is wrapped only where it is given"  # noqa: S101 - see below
        content = io.BytesIO()
        return _check_chunks(blob, resume(_record_chunks(held, content), size), content)

    return replace(blob, open=opened, resume=None if resume is None else resumed)


def _check_chunks(blob: Blob, chunks: Iterator[Chunk], content: io.BytesIO) -> Iterator[Chunk]:
    """Pass chunks on, all but the last one; and that one too, if they and what is in `content` are a config."""
    last = b""
    for chunk in chunks:
        if last:
            yield last
        last = bytes(chunk)
        content.write(last)
    check_config(content.getvalue(), f"the config {blob.descriptor.digest}")
    if last:
        yield last


def _record_chunks(chunks: Iterator[Chunk], content: io.BytesIO) -> Iterator[Chunk]:
    for chunk in chunks:
        content.write(chunk)
        yield chunk


def can_be_json_object(beginning: Chunk) -> bool:
    """Say whether a blob that begins like this may be a JSON object, such as a config or a manifest."""
    return _JSON_OBJECT_START.match(beginning) is not None


def not_json_error(descriptor: Descriptor) -> ArchiveError:
    """Say that a config is none: it does not even begin as an object does."""
    return ArchiveError(f"the config {descriptor.digest} is not valid JSON: it does not begin as an object")
