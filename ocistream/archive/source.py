"""Read the images of an archive, in any format and with any way to read its entries.

`ArchiveSource` has the rules. `file_source` reads entries at any offset; `stream_source` reads them in order, and keeps
what may be needed again.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.archive.contents import ArchiveContents, check_document_size, parse_blob_name
from ocistream.archive.docker_archive import (
    ManifestSynthesizer,
    choose_images,
    parse_manifest_json,
    report_only_in_manifest_json,
)
from ocistream.archive.index_comparison import IndexComparison
from ocistream.errors import ArchiveError, IntegrityError
from ocistream.layout.image_selection import report_duplicate_names, select_every_image
from ocistream.layout.index import LayoutIndex, check_layout_file, parse_index_json
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, Manifest, compute_digest, size_error
from ocistream.oci.reference import printable
from ocistream.oci.volumes import Volume, parse_volume
from ocistream.oci.walk import StreamedWalk
from ocistream.streams.chunks import read_all, verify_chunks
from ocistream.transfer.interfaces import BlobPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.archive.contents import Extent
    from ocistream.archive.docker_archive import DockerImage
    from ocistream.archive.tar_reader import TarEntry
    from ocistream.layout.image_selection import Selection
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.oci.strict_json import ByteSource
    from ocistream.oci.volumes import VolumePart
    from ocistream.oci.walk import Need
    from ocistream.transfer.interfaces import Blob, Source


#: The documents of an archive, and the largest size of each in bytes.
DOCUMENT_LIMITS: Final = {
    "oci-layout": limits.MAX_LAYOUT_FILE,
    "index.json": limits.MAX_MANIFEST,
    "manifest.json": limits.MAX_MANIFEST,
}


def list_archives(source: Source) -> Sequence[ArchiveSource]:
    """Return the archives that a source reads."""
    if isinstance(source, ArchiveSource):
        return [source]
    from ocistream.archive.joined_source import JoinedSource

    inputs = source.inputs if isinstance(source, JoinedSource) else ()
    return [archive for archive in inputs if isinstance(archive, ArchiveSource)]


class ArchiveSource(ABC):
    """The images of an archive. A subclass feeds `contents` with entries, and reads them.

    `contents` are the entries so far. `volume` is the volume that this archive is, known once the index was read.
    `synthesized_manifests` are manifests built here for images that only `manifest.json` lists, by digest.
    """

    may_lack_blobs = True

    #: What to do about a layer that is not recognized.
    _no_layer_hint: str | None = None

    def __init__(self, label: str, selection: Selection, *, as_docker: bool) -> None:
        """Take the archive's name in errors, and the selection.

        `as_docker` reads the images of `manifest.json`, even beside an `index.json`.
        """
        self._label = label
        self._selection = selection
        self._as_docker = as_docker
        self.contents = ArchiveContents(as_docker=as_docker)
        #: Whether every entry was added to `contents`.
        self._has_ended = False
        #: What `index.json` and `manifest.json` list, once they were read.
        self._index: LayoutIndex | None = None
        #: The index of the images to read, if a caller has chosen from the complete one.
        self._chosen_index: LayoutIndex | None = None
        self._images: Sequence[DockerImage] | None = None
        self.volume: Volume | None = None
        self.synthesized_manifests: dict[str, bytes] = {}
        #: Those of them that are shown by their image IDs: the archive lacks them, or does not list them.
        self._synthesized: frozenset[str] = frozenset()
        #: Whether some layers of a docker-archive are not stored under the digests under which they were pushed.
        self._has_plain_layers = False
        #: The walk to the graph, and the comparison of `manifest.json` with `index.json`, once they were started.
        self._index_walk: IndexWalk | None = None
        self._walk: StreamedWalk[Graph] | None = None
        self._comparison: IndexComparison | None = None
        #: Layers of a docker-archive, by their names in the tar.
        self._layers: dict[str, Descriptor] = {}

    # -- what a subclass does ------------------------------------------------------------------------------

    @abstractmethod
    def _read_extent(self, extent: Extent) -> bytes | None:
        """Return the bytes of a small entry, or None if they cannot be read any more.

        Raises:
            IntegrityError: the entry is known to be corrupt.
        """

    @abstractmethod
    def _identify_layer(self, extent: Extent, digest: str | None, diff_id: str) -> Descriptor | None:
        """Return the descriptor of a layer that `manifest.json` names, or None if the entry is not a layer.

        `digest` is the digest in the entry's name. If there is none, `diff_id` is the digest of a plain layer.
        """

    # -- documents -----------------------------------------------------------------------------------------

    def _parse_document(self, entry: TarEntry, raw: ByteSource) -> None:
        """Parse `oci-layout`, `index.json` or `manifest.json`.

        Raises:
            ArchiveError: the document is malformed.
        """
        try:
            if entry is self.contents.index_json:
                self._index = parse_index_json(raw)
                self.volume = parse_volume(self._index.annotations) if self._index.annotations else None
            elif entry is self.contents.documents.get("manifest.json"):
                self._images = parse_manifest_json(bytes(raw[:]))
            else:
                check_layout_file(raw)
        except ArchiveError as error:
            error.message = f"{printable(self._label, 1024)}: {error.message}"
            error.hint = error.hint or "the archive is damaged: copy or pull it again"
            raise

    def _read_document(self, extent: Extent, limit: int) -> bytes | None:
        check_document_size(extent, limit)
        return self._read_extent(extent)

    @property
    def is_docker_save(self) -> bool:
        """Whether `docker save` is known to have written the archive.

        It alone lists `LayerSources`, or writes `repositories`. From a pipe this may be known only after the graph.
        """
        return bool(self._images) and (
            self.contents.has_repositories_file or any(image.has_layer_sources for image in self._images or ())
        )

    def read(self, need: Need) -> bytes | None:
        """Return a document that a graph needs, or None if the archive does not have it.

        Raises:
            IntegrityError: the document has another size, or is known to be corrupt.
        """
        if (synthesized := self.synthesized_manifests.get(need.digest)) is not None:
            return synthesized
        extent = self.contents.blobs.get(need.digest)
        if extent is None:
            return None
        if extent.size != need.descriptor.size:
            raise size_error(need.descriptor, extent.size)
        return self._read_document(extent, limits.MAX_CONFIG)

    def is_absent(self, descriptor: Descriptor) -> bool | None:
        """Return whether the archive does not have the blob, or None before the whole archive was read."""
        return descriptor.digest not in self.contents.blobs if self._has_ended else None

    def stored_size(self, digest: str) -> int | None:
        """Return the size of a blob's entry, or None if there was none so far."""
        extent = self.contents.blobs.get(digest)
        return extent.size if extent is not None else None

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        """Return the parts of a blob that is split over volumes. Parts in this volume can be opened, if it is a file.

        Raises:
            ArchiveError: a part is missing or has another size.
        """
        volume = self.volume
        if volume is None:
            return ()
        parts = volume.parts.get(descriptor.digest, ())
        if parts and sum(part.size for part in parts) != descriptor.size:
            msg = f"{volume}: its parts of {descriptor.digest} do not add up to {descriptor.size} bytes"
            raise ArchiveError(msg)
        name_of = volume.template.format_name
        return [
            BlobPart(part.offset, part.size, name_of(part.volume), self._open_part(volume, descriptor, part))
            for part in parts
        ]

    def _open_part(self, volume: Volume, descriptor: Descriptor, part: VolumePart) -> Blob | None:  # noqa: ARG002 - for files
        """Return the part of a blob that this volume has, with a digest of its own; None if it cannot be opened."""
        return None

    # -- the graph, after every entry was added --------------------------------------------------------------

    def _resolve(self) -> Graph:
        """Return the graph of the selected images. Manifests of images that only `manifest.json` lists are built here.

        Raises:
            ArchiveError: the archive is malformed, or its `index.json` and `manifest.json` contradict each other.
            NotFoundError, UsageError: the selection of images failed.
        """
        index = self._chosen_index or self.read_complete_index()
        if self._as_docker and not self.contents.is_docker_archive:
            notices.notify("the archive has no manifest.json: reading the images of its index.json", level=1)
        if self._walk is None or index is not self._index:
            self._walk = self._start_walk(index)
        return self._complete(self._walk.finish(self.read))

    def read_complete_index(self) -> LayoutIndex:
        """Return `index.json`, and add the images that only `manifest.json` lists, with manifests built here.

        Of a docker-archive, return the entries that the selected images would have.

        Raises:
            ArchiveError: a file is missing or malformed, or the two files contradict each other.
        """
        if not self.contents.is_docker_archive:
            self.contents.require_index(self._label)
        index, images = self._index or LayoutIndex([], {}), self._images
        if not images and not self.contents.is_docker_archive:
            return index
        comparison, manifests = self._finish_comparison(), ManifestSynthesizer(self)
        if self.contents.is_docker_archive:
            comparison.find_only_in_manifest_json(images or (), by_name=True)
            entries = choose_images(images or (), self._selection, manifests)
            self._has_plain_layers = manifests.has_plain_layers
            existing = manifests.existing
            index = LayoutIndex([], {})
        elif additional := comparison.find_only_in_manifest_json(images or ()):
            entries = manifests.build_entries(additional)
            report_only_in_manifest_json(self._label, additional, manifests)
            # A manifest that is built here may exist, though `index.json` does not list it.
            existing = {digest for digest, raw in manifests.manifests.items() if self._peek(digest, len(raw)) == raw}
        else:
            return index
        self.synthesized_manifests = manifests.manifests
        self._synthesized = frozenset(manifests.manifests) - existing
        return LayoutIndex([*index.entries, *entries], index.annotations)

    def _start_walk(self, index: LayoutIndex) -> StreamedWalk[Graph]:
        """Select images of an index, and start the walk to everything that they need."""
        selection = self._selection
        if self.contents.is_docker_archive:
            # Only the selected images have entries.
            selection = replace(selection, select=select_every_image)
        self._index_walk = IndexWalk(index, selection, image_digests=self.synthesized_manifests)
        return StreamedWalk(self._index_walk.run(), self.read)

    def _complete(self, graph: Graph) -> Graph:
        """Add to a graph what the archive says about all images, and report names that several images have."""
        roots = tuple(
            # The annotations of such an entry are not in the archive.
            replace(
                root,
                descriptor=replace(root.descriptor, annotations={}),
                is_synthesized=root.descriptor.digest in self._synthesized,
            )
            if root.is_synthesized
            else root
            for root in graph.roots
        )
        plain = self._has_plain_layers or self.is_docker_save
        synthesized = self._synthesized.intersection(graph.documents)
        graph = replace(graph, roots=roots, synthesized=synthesized, has_plain_layers=plain)
        report_duplicate_names(graph)
        return graph

    # -- comparison of manifest.json with index.json ---------------------------------------------------------

    def _start_comparison(self, find: Callable[[Need], bytes | None]) -> IndexComparison:
        """Start to compare with the manifests below `index.json`. `find` returns a manifest if it is in memory."""
        entries = self._index.entries if self._index is not None else ()
        self._comparison = IndexComparison(entries, self._find_document, find)
        return self._comparison

    def _finish_comparison(self) -> IndexComparison:
        """Read the rest of the manifests below `index.json`. Manifests that cannot be read count as missing."""
        comparison = self._comparison or self._start_comparison(lambda _need: None)
        comparison.finish(lambda need: self._peek(need.digest, need.descriptor.size))
        return comparison

    def _find_document(self, digest: str) -> Document | None:
        """Return a manifest that the walk to the graph has parsed, or None."""
        return self._index_walk.document(digest) if self._index_walk is not None else None

    def _peek(self, digest: str, size: int) -> bytes | None:
        """Return a manifest, or None if the archive does not have it, or it is known to be corrupt."""
        extent = self.contents.blobs.get(digest)
        if extent is not None and extent.size == size:
            with contextlib.suppress(IntegrityError):
                return self._read_document(extent, limits.MAX_MANIFEST)
        return None

    # -- files that manifest.json names ------------------------------------------------------------------------

    def read_config(self, name: str) -> bytes:
        """Return a config. It becomes a blob of the archive."""
        name, extent = self.contents.resolve_docker_file(name)
        raw = self._read_document(extent, limits.MAX_CONFIG)
        if raw is None:
            msg = f"{printable(name)} in the archive is not a config, or is larger than {limits.MAX_CONFIG} bytes"
            raise ArchiveError(msg)
        if digest := parse_blob_name(name):
            raw = read_all(verify_chunks([raw], Descriptor(UNKNOWN_MEDIA_TYPE, digest, extent.size)))
        self.contents.add_blob(compute_digest(raw), extent)
        return raw

    def describe_layer(self, name: str, diff_id: str) -> Descriptor:
        """Return the descriptor of a layer. It becomes a blob of the archive."""
        name, extent = self.contents.resolve_docker_file(name)
        if (descriptor := self._layers.get(name)) is None:
            descriptor = self._identify_layer(extent, parse_blob_name(name), diff_id)
            if descriptor is None:
                msg = f"{printable(name)} in the archive is not a layer"
                raise ArchiveError(msg, hint=self._no_layer_hint)
            self._layers[name] = descriptor
            self.contents.add_blob(descriptor.digest, extent)
        return descriptor

    def find_manifest(self, image: DockerImage) -> Manifest | None:
        """Return the manifest that `index.json` lists for an image of `manifest.json`, or None."""
        descriptor = self._finish_comparison().find_manifest(image)
        raw = self._peek(descriptor.digest, descriptor.size) if descriptor is not None else None
        return Manifest(descriptor, raw) if descriptor is not None and raw is not None else None
