"""Blobs out of what is at hand: of content that is held, and of a blob at whose beginning somebody has looked."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk

__all__ = ["blob_from_bytes", "peek"]


def blob_from_bytes(descriptor: Descriptor, content: bytes) -> Blob:
    """Give a blob whose content is held."""

    def chunks() -> Iterator[Chunk]:
        yield content

    return Blob(descriptor, chunks)


def peek(blob: Blob) -> tuple[Blob, bytes]:
    """Look at how a blob that can be read once begins, at up to 1 KiB, and give it as if nobody had."""
    chunks = blob.open()
    first = next(chunks, b"")
    whole = itertools.chain([first], chunks) if first else chunks
    return Blob(blob.descriptor, lambda: whole, reopenable=False), bytes(first[: limits.KIB])
