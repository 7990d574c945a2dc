"""Destination for a docker-archive, for tools that cannot read OCI archives. Layers must be uncompressed.

`manifest.json` comes last, because a layer's name is known only after it is decompressed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive.destination import TarDestination, build_manifest_json
from ocistream.archive.tar_writer import TarWriter
from ocistream.errors import UnsupportedError
from ocistream.oci.descriptor import CONFIG_TYPES
from ocistream.oci.graph import is_image
from ocistream.oci.reference import printable
from ocistream.oci.referrers import NOT_IN_DOCKER_ARCHIVE, PLATFORM_FILTERED, RECOMPRESSED
from ocistream.streams.chunks import peek_chunks
from ocistream.streams.compression import codec_name, is_probably_json
from ocistream.transfer.interfaces import Traits
from ocistream.transfer.report import MissingBlobsError
from ocistream.transfer.verified_blobs import require_complete

if TYPE_CHECKING:
    from ocistream.archive.outputs import Output
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob


class DockerArchiveDestination(TarDestination):
    """Writes images into one docker-archive. It takes only plain layers: `transfer` decompresses the others."""

    def __init__(self, output: Output, *, mtime: int = 0) -> None:
        """Write to `output`. `mtime` is the time of every entry, in seconds since 1970."""
        super().__init__()
        self._outputs.append(output)
        self._tar = TarWriter(output, mtime)
        # An unfinished entry can be removed again from a file, but not from a pipe.
        self.traits = Traits(can_retry=self._tar.can_roll_back)
        # Most layers are decompressed on the way, and a later run cannot resume in the middle of one.
        output.discard()
        #: The names of the written entries, by digest.
        self._names: dict[str, str] = {}

    def expect(self, graph: Graph) -> Graph:
        """Return the graph without referrers, which this format cannot store.

        Raises:
            UnsupportedError: a root is an index of several images, or not an image.
        """
        for root in graph.roots:
            _find_image(graph, root)
        graph = graph.without_referrers(lambda _: True, NOT_IN_DOCKER_ARCHIVE)
        # This format could not store the referrers of other platforms either, nor of layers that stay compressed, so
        # give that reason.
        skipped = (
            replace(referrer, reason=NOT_IN_DOCKER_ARCHIVE)
            if referrer.reason in {PLATFORM_FILTERED, RECOMPRESSED}
            else referrer
            for referrer in graph.skipped_referrers
        )
        return replace(graph, skipped_referrers=tuple(skipped))

    def begin(self, graph: Graph) -> None:
        """Do nothing: entries are written as they arrive."""

    def write(self, blob: VerifiedBlob) -> int:
        """Append a blob. If its chunks raise into a pipe, the entry stays short and the archive has no end mark."""
        require_complete(blob)
        first, chunks = peek_chunks(blob.open())
        # A blob that comes before its manifest has no known media type: only its bytes show what it is.
        is_config = blob.descriptor.media_type in CONFIG_TYPES or is_probably_json(bytes(first[: limits.KIB]))
        name = _file_name(blob.descriptor.digest, ".json" if is_config else ".tar")
        self._tar.add(name, blob.descriptor.size, chunks)
        self._record(blob.descriptor.digest, name)
        return 0

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Append a layer whose digest and size are known only after its last byte."""
        descriptor = self._tar.add_new(
            blob, lambda stored: None if stored.digest in self._written else _file_name(stored.digest, ".tar")
        )
        self._record(descriptor.digest, _file_name(descriptor.digest, ".tar"))
        return descriptor

    def commit(self, graph: Graph) -> None:
        """Write `manifest.json` and the end mark, and make the archive visible under its name.

        Raises:
            UnsupportedError: a layer is compressed and could not be decompressed.
        """
        images = [(root, _find_image(graph, root)) for root in graph.roots]
        for _, digest in images:
            _check_layers(graph.documents[digest])
        self._tar.add_small("manifest.json", build_manifest_json(graph, images, self._names.__getitem__))
        self._tar.write_end()
        self._tar.output.finish()

    def _record(self, digest: str, name: str) -> None:
        self._written.add(digest)
        self._names.setdefault(digest, name)


def _file_name(digest: str, suffix: str) -> str:
    return digest.partition(":")[2] + suffix


def _check_layers(document: Document) -> None:
    for layer in document.layers:
        if codec_name(layer.media_type) != "none":
            msg = f"the layer {layer.digest} is {layer.media_type}, which a docker-archive cannot contain"
            raise UnsupportedError(msg, hint="write an oci-archive: `docker load` reads it too")


def _find_image(graph: Graph, root: Root) -> str:
    """Return the digest of the manifest of the one image of a root."""
    name = printable(root.name) if root.name else root.descriptor.digest
    document = graph.documents.get(root.descriptor.digest)
    if document is None:
        raise MissingBlobsError([root.descriptor], graph, is_untouched=True)
    if document.manifests:
        what = "has several platforms" if len(document.manifests) > 1 else "is an index"
        msg = f"{name} {what}, but a docker-archive has one image per name"
        raise UnsupportedError(msg, hint="choose one with --platform, such as linux/amd64")
    if not is_image(document):
        msg = f"{name} is not an image that a docker-archive can contain"
        raise UnsupportedError(msg, hint="write an oci-archive")
    return root.descriptor.digest
