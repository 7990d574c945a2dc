"""OCI archives (a layout in a tar) out: everything small first, so that the other end knows what is coming.

The order is `oci-layout`, `index.json`, `manifest.json`, manifests, configs, layers. The same graph gives the same
bytes. Reading is archive/file.py's and archive/stream.py's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ocistream.archive.tar_writer import TarWriter
from ocistream.layout.index import OCI_LAYOUT, blob_name, docker_manifest_json, entries_of, index_json
from ocistream.oci.omitted_blobs import LEFT_OUT, left_out_text
from ocistream.oci.strict_json import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.archive.outputs import Output
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, Unnamed

__all__ = ["ArchiveSink", "small_files"]


class ArchiveSink:
    """Images into one tar, written from the front to the back."""

    parallel = False
    leaves_out: Literal[True] = True

    def __init__(self, output: Output, *, mtime: int = 0) -> None:
        """Write to `output`; `mtime` (seconds since 1970) stands in every entry."""
        self._tar = TarWriter(output, mtime)
        self._written: set[str] = set()
        self._started = False

    def begin(self, graph: Graph) -> None:
        """Write everything small, unless a blob had to be written before it was known."""
        # A name that cannot be written is found before anything is.
        entries = entries_of(graph)
        self._start()
        for name, content in small_files(graph, entries, self.notes()):
            self._tar.add_small(name, content)
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if digest not in self._written:
                self._written.add(digest)
                self._tar.add_small(blob_name(digest), manifest.raw)

    def notes(self) -> dict[str, str]:
        """Give what its index says beside what was left out: annotations."""
        return {}

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the blob was written: the same digest is not stored twice."""
        return descriptor.digest in self._written

    has_manifest = has

    def put(self, blob: Blob) -> None:
        """Append a blob. If its chunks raise into a pipe, the entry stays short and the archive without an end."""
        self._start()
        digest = blob.descriptor.digest
        self._tar.add_blob(blob_name(digest), blob)
        self._written.add(digest)

    def takes_again(self) -> bool:
        """Say whether what was begun can be taken back: in a file it can."""
        return self._tar.takes_back

    def expect(self, graph: Graph) -> None:
        """Nothing can be written before the layers are known: they come first then, and the index last."""

    def put_unnamed(self, blob: Unnamed) -> Descriptor:
        """Append a blob whose digest and size are known when all of it has passed."""
        self._start()
        descriptor = self._tar.add_unnamed(
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


def small_files(
    graph: Graph, entries: Sequence[Descriptor], notes: Mapping[str, str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Give what stands before the manifests: names and contents.

    `entries` are those of the index, and `notes` annotations of it beside that of what was left out.
    """
    said = {**(notes or {}), **({LEFT_OUT: left_out_text(graph.leaving)} if graph.leaving else {})}
    yield "index.json", index_json(entries, notes=said or None)
    # Docker could load nothing that lacks a layer.
    docker = docker_manifest_json(graph) if not graph.leaving else canonical_json([])
    if docker != canonical_json([]):
        yield "manifest.json", docker
