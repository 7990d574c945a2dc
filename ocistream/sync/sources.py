"""Open a source that a sync reads repeatedly: a registry, a layout or an archive in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.archive.decompression import is_compressed
from ocistream.errors import NotFoundError, UnsupportedError, UsageError
from ocistream.locations import is_directory, open_source
from ocistream.oci.reference import printable
from ocistream.streams import paths
from ocistream.streams.files import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.locations import Location, OpenContext, Selection
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, Source

__all__ = ["open_rereadable", "read_graph"]


def open_rereadable(location: Location, context: OpenContext, selection: Selection) -> Source:
    """Open a source that can be read repeatedly.

    Raises:
        UsageError: the location can be read only once.
        LocalDiskError: the path is invalid or cannot be read.
        OcistreamError: the source does not exist or is malformed.
    """
    with disk_errors(f"cannot read {printable(location.text)}"):
        if location.path is not None and not is_directory(location):
            if not paths.exists(location.path):
                msg = f"{printable(location.text)}: no such file or directory"
                raise NotFoundError(msg)
            if not paths.is_file(location.path) or is_compressed(location.path):
                kind = "compressed" if paths.is_file(location.path) else "no file"
                msg = f"{printable(location.text)} is {kind}, but must be read repeatedly"
                raise UsageError(msg, hint="decompress it first")
        return open_source(location, context, selection)


def read_graph(source: Source, location: Location) -> Graph:
    """Read the manifests of a source.

    Raises:
        UnsupportedError: the source is a docker-archive.
        OcistreamError: the manifests cannot be read.
    """
    graph = source.resolve(_NoEarlyBlobs())
    # A docker-archive would have to be recompressed each time to compare its digest.
    if graph.synthesized:
        msg = f"{printable(location.text)} is a docker-archive: its digests are unknown before it is compressed"
        raise UnsupportedError(msg, hint="copy it into a layout first: ocistream copy docker-archive:FILE oci:DIR")
    return graph


class _NoEarlyBlobs:
    """The `EarlyBlobs` of sources that can be read repeatedly: their blobs never come before the graph."""

    accepts_early = False

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> None:  # noqa: ARG002 - nothing is written
        raise UnsupportedError(f"{blob.descriptor.digest} comes before its image")

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:  # noqa: ARG002 - the signature of EarlyBlobs
        raise UnsupportedError("a layer comes before its image")

    def read_back(self, descriptor: Descriptor) -> bytes:
        raise UnsupportedError(f"{descriptor.digest} was not buffered")
