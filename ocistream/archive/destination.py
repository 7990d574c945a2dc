"""Destination for an OCI archive (a layout in a tar): small files first, so that a reader knows early what follows.

The order is `oci-layout`, `index.json`, `manifest.json`, manifests, configs, layers.
The same graph gives the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ocistream.archive.tar_writer import TarWriter
from ocistream.layout.index import OCI_LAYOUT, blob_name, build_entries, build_index_json, build_manifest_json
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, format_omitted
from ocistream.oci.strict_json import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.archive.outputs import Output
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, NewBlob

__all__ = ["ArchiveDestination", "build_small_files"]


class ArchiveDestination:
    """Images into one tar, written from the front to the back."""

    concurrent = False
    can_omit_blobs: Literal[True] = True

    def __init__(self, output: Output, *, mtime: int = 0) -> None:
        """Write to `output`; `mtime` (seconds since 1970) stands in every entry."""
        self._tar = TarWriter(output, mtime)
        self._written: set[str] = set()
        self._started = False

    def begin(self, graph: Graph) -> None:
        """Write everything small, unless a blob had to be written before it was known."""
        # A name that cannot be written is found before anything is.
        entries = build_entries(graph)
        self._start()
        for name, content in build_small_files(graph, entries, self.annotations()):
            self._tar.add_small(name, content)
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if digest not in self._written:
                self._written.add(digest)
                self._tar.add_small(blob_name(digest), manifest.raw)

    def annotations(self) -> dict[str, str]:
        """Give what its index says beside what was left out: annotations."""
        return {}

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob was written: the same digest is not stored twice."""
        return descriptor.digest in self._written

    has_manifest = has_blob

    def write(self, blob: Blob) -> None:
        """Append a blob. If its chunks raise into a pipe, the entry stays short and the archive without an end."""
        self._start()
        digest = blob.descriptor.digest
        self._tar.add_blob(blob_name(digest), blob)
        self._written.add(digest)

    def can_retry(self) -> bool:
        """Say whether what was begun can be taken back: in a file it can."""
        return self._tar.can_roll_back

    def expect(self, graph: Graph) -> None:
        """Nothing can be written before the layers are known: they come first then, and the index last."""

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Append a blob whose digest and size are known when all of it has passed."""
        self._start()
        descriptor = self._tar.add_new(
            blob, lambda found: None if found.digest in self._written else blob_name(found.digest)
        )
        self._written.add(descriptor.digest)
        return descriptor

    def commit(self, graph: Graph) -> None:  # noqa: ARG002 - the graph was written first
        """Write the end of the archive, and let the output make it visible."""
        self._tar.finish()

    def discard(self) -> None:
        """Keep nothing of it for another run."""
        self._tar.discard()

    def close(self) -> None:
        """Drop what was not committed; what a file has of it is kept for another run."""
        self._tar.close()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._tar.add_small("oci-layout", OCI_LAYOUT)


def build_small_files(
    graph: Graph, entries: Sequence[Descriptor], annotations: Mapping[str, str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Give what stands before the manifests: names and contents.

    `entries` are those of the index, and `notes` annotations of it beside that of what was left out.
    """
    said = {
        **(annotations or {}),
        **({OMITTED_ANNOTATION: format_omitted(graph.omitted_from_output)} if graph.omitted_from_output else {}),
    }
    yield "index.json", build_index_json(entries, annotations=said or None)
    # Docker could load nothing that lacks a layer.
    docker = build_manifest_json(graph) if not graph.omitted_from_output else canonical_json([])
    if docker != canonical_json([]):
        yield "manifest.json", docker
