"""Destination for a docker-archive, for tools that cannot read OCI archives. Layers must be uncompressed.

`manifest.json` comes last, because a layer's name is known only after it is decompressed.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive.tar_writer import TarWriter
from ocistream.errors import UnsupportedError
from ocistream.layout.index import docker_tag
from ocistream.oci.descriptor import CONFIG_TYPES
from ocistream.oci.graph import is_image
from ocistream.oci.reference import printable
from ocistream.oci.referrers import NOT_IN_DOCKER_ARCHIVE
from ocistream.oci.strict_json import canonical_json
from ocistream.streams import layer_media_types
from ocistream.streams.layer_media_types import is_probably_json
from ocistream.transfer.report import MissingBlobsError

if TYPE_CHECKING:
    from ocistream.archive.outputs import Output
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph, Root
    from ocistream.transfer.interfaces import Blob, NewBlob

__all__ = ["DockerArchiveDestination"]


class DockerArchiveDestination:
    """Writes images into one docker-archive. It takes only plain layers: `transfer` decompresses the others."""

    concurrent = False
    no_referrers_reason = NOT_IN_DOCKER_ARCHIVE

    def __init__(self, output: Output, *, mtime: int = 0) -> None:
        """Write to `output`. `mtime` is the time of every entry, in seconds since 1970."""
        self._tar = TarWriter(output, mtime)
        # Most layers are decompressed on the way, and a later run cannot resume in the middle of one.
        self._tar.discard()
        #: The names of the written entries, by digest.
        self._names: dict[str, str] = {}

    def expect(self, graph: Graph) -> None:
        """Check that this format can hold all images.

        Raises:
            UnsupportedError: a root is an index of several images, or not an image.
        """
        for root in graph.roots:
            _find_image(graph, root)

    def begin(self, graph: Graph) -> None:
        """Check as `expect` does. Entries are written as they arrive."""
        self.expect(graph)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the blob was already written."""
        return descriptor.digest in self._names

    has_manifest = has_blob

    def write(self, blob: Blob) -> None:
        """Append a blob. If its chunks raise into a pipe, the entry stays short and the archive has no end mark."""
        chunks = blob.open()
        first = next(chunks, b"")
        # A blob that comes before its manifest has no known media type: only its bytes show what it is.
        is_config = blob.descriptor.media_type in CONFIG_TYPES or is_probably_json(bytes(first[: limits.KIB]))
        name = _file_name(blob.descriptor.digest, ".json" if is_config else ".tar")
        self._tar.add(name, blob.descriptor.size, itertools.chain([first], chunks))
        self._names[blob.descriptor.digest] = name

    def can_retry(self) -> bool:
        """Return whether an unfinished entry can be removed again: in a file, but not in a pipe."""
        return self._tar.can_roll_back

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Append a layer whose digest and size are known only after its last byte."""
        descriptor = self._tar.add_new(
            blob, lambda stored: None if stored.digest in self._names else _file_name(stored.digest, ".tar")
        )
        self._names.setdefault(descriptor.digest, _file_name(descriptor.digest, ".tar"))
        return descriptor

    def commit(self, graph: Graph) -> None:
        """Write `manifest.json` and the end mark, and make the archive visible under its name.

        Raises:
            UnsupportedError: a layer is compressed and could not be decompressed.
        """
        entries: dict[str, dict[str, object]] = {}
        for root in graph.roots:
            digest, document = _find_image(graph, root)
            entry = entries.setdefault(digest, self._build_entry(document))
            if root.name and (tag := docker_tag(root.name)):
                tags = entry["RepoTags"]
                entry["RepoTags"] = list(dict.fromkeys([*(tags if isinstance(tags, list) else []), tag]))
        self._tar.add_small("manifest.json", canonical_json(list(entries.values())))
        self._tar.finish()

    def close(self) -> None:
        """Remove an archive that was not committed."""
        self._tar.close()

    def _build_entry(self, document: Document) -> dict[str, object]:
        config = document.config
        for layer in document.layers:
            if layer_media_types.codec_name(layer.media_type) != "none":
                msg = f"the layer {layer.digest} is {layer.media_type}, which a docker-archive cannot hold"
                raise UnsupportedError(msg, hint="write an oci-archive: `docker load` takes that too")
        return {
            "Config": self._names[config.digest] if config else "",
            "RepoTags": None,
            "Layers": [self._names[layer.digest] for layer in document.layers],
        }


def _file_name(digest: str, suffix: str) -> str:
    return digest.partition(":")[2] + suffix


def _find_image(graph: Graph, root: Root) -> tuple[str, Document]:
    """Return the manifest digest and the manifest of the one image that a root stands for."""
    name = printable(root.name) if root.name else root.descriptor.digest
    document = graph.documents.get(root.descriptor.digest)
    if document is None:
        raise MissingBlobsError([root.descriptor], graph, is_untouched=True)
    if document.manifests:
        msg = f"{name} is an index of several images, and a docker-archive has one a name"
        raise UnsupportedError(msg, hint="choose one with --platform, such as linux/amd64")
    if not is_image(document):
        msg = f"{name} is no image that a docker-archive can hold"
        raise UnsupportedError(msg, hint="write an oci-archive")
    return root.descriptor.digest, document
