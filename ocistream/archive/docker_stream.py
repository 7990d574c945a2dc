"""Read a docker-archive from a pipe. `manifest.json` usually comes last, so layers are stored before they are known.

An entry that looks like a layer goes to the destination at once. Its name in the tar is matched with its digest when
the graph is built at the end. `stream_source` provides the entries.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.archive.contents import parse_blob_name
from ocistream.archive.docker_archive import ManifestSynthesizer, build_docker_graph, is_docker_save
from ocistream.archive.index_comparison import IndexComparison
from ocistream.archive.streamed_walk import StreamedWalk
from ocistream.errors import ArchiveError, UnsupportedError
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, Manifest
from ocistream.oci.digest import compute_digest
from ocistream.oci.reference import printable
from ocistream.streams import layer_media_types
from ocistream.streams.chunks import read_all
from ocistream.streams.compression import NONE
from ocistream.streams.layer_media_types import is_probably_json, is_probably_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ocistream.archive.docker_archive import DockerImage
    from ocistream.archive.stream_buffer import StreamBuffer
    from ocistream.layout.index import ImageSelector
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph
    from ocistream.oci.platforms import PlatformChoice
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import EarlyBlobs

__all__ = ["READ_FROM_FILE_HINT", "DockerStreamReader"]

READ_FROM_FILE_HINT: Final = "read it from a file instead of a pipe: there the order does not matter"


class DockerStreamReader:
    """Reads the Docker files of an archive from a pipe.

    `images` are those of `manifest.json`, or None until that file was read.
    """

    def __init__(self, buffer: StreamBuffer) -> None:
        """Share `buffer` with the reader of the stream: its memory limit covers the whole archive."""
        self._buffer = buffer
        self.images: list[DockerImage] | None = None
        #: The images of `index.json`, once that file was read.
        self.comparison = IndexComparison(())
        self._comparison_walk = self._walk_comparison()
        self._compared_revision = -1, -1
        self._lists_more_images = False
        #: By name: small JSON in memory, and descriptors of the files that were written to the destination.
        self._documents: dict[str, bytes] = {}
        self._layers: dict[str, Descriptor] = {}
        self._spilled_documents: set[str] = set()

    def add_entry(self, name: str, size: int, chunks: Iterator[Chunk], early_blobs: EarlyBlobs) -> None:
        """Buffer an entry that may be a config, or write one that may be a layer to the destination.

        `size` is the size of the entry in bytes.

        Raises:
            UnsupportedError: there are too many layers.
        """
        first_chunk = bytes(next(chunks, b""))
        content = itertools.chain([first_chunk], chunks)
        if is_probably_json(first_chunk):
            if self._buffer.buffered_bytes + size <= limits.MAX_BUFFERED_JSON:
                self._documents[name] = read_all(content)
                self._buffer.buffered_bytes += size
            elif size <= limits.MAX_CONFIG:
                self._write_layer(name, content, early_blobs)
                self._spilled_documents.add(name)
        elif is_probably_layer(first_chunk) or name.endswith(".tar"):
            self._write_layer(name, content, early_blobs)

    def _write_layer(self, name: str, chunks: Iterator[Chunk], early_blobs: EarlyBlobs) -> None:
        if len(self._layers) >= limits.MAX_LIST_ENTRIES:
            msg = f"more than {limits.MAX_LIST_ENTRIES} layers come before the archive's manifest.json"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        self._layers[name] = early_blobs.write_new(chunks)

    @property
    def is_docker_save(self) -> bool:
        """Whether `docker save` is known to have written the archive."""
        return self.images is not None and is_docker_save(self.images, self._buffer.contents)

    def build_graph(self, select: ImageSelector, platforms: PlatformChoice, early_blobs: EarlyBlobs) -> Graph:
        """Return the graph, after the whole archive was read.

        Raises:
            ArchiveError: a file that `manifest.json` names is missing, or is not a config or layer; or `index.json` has
                another image under the same name.
            NotFoundError, UsageError: the selection of images failed.
        """
        images = self.images or []
        comparison = self._finish_comparison(early_blobs)
        comparison.find_only_in_manifest_json(images, by_name=True)
        return build_docker_graph(
            images,
            select,
            platforms,
            config=partial(self._read_config, early_blobs),
            layer=self._describe_layer,
            manifest=partial(self._find_manifest, comparison, early_blobs),
            is_docker_save=self.is_docker_save,
        )

    # -- comparison with index.json ----------------------------------------------------------------------

    def start_comparison(self, entries: Sequence[Descriptor], find_document: Callable[[str], Document | None]) -> None:
        """Compare with the entries of `index.json`. `find_document` returns a manifest that is already parsed."""
        self.comparison = IndexComparison(entries, find_document)
        self._comparison_walk = self._walk_comparison()

    def _walk_comparison(self) -> StreamedWalk[None]:
        walk = StreamedWalk(self.comparison.run(), lambda need: self._buffer.buffered.get(need.digest))
        walk.answer_found()
        return walk

    def is_needed_for_comparison(self, digest: str, size: int) -> bool:
        """Return whether a blob of `size` bytes is a manifest that the comparison needs."""
        need = self._comparison_walk.needs.get(digest)
        return need is not None and need.descriptor.size == size

    def add_manifest(self, digest: str, raw: bytes) -> None:
        """Pass a manifest to the comparison if it needs the manifest."""
        if (need := self._comparison_walk.needs.get(digest)) is not None:
            self._comparison_walk.answer(need, raw)

    def may_list_more_images(self) -> bool:
        """Return whether `manifest.json` may list images that `index.json` does not, as far as is known now.

        Raises:
            ArchiveError: the two files contradict each other.
        """
        if not self.images:
            return False
        if self._compared_revision != self.comparison.revision:
            self._compared_revision = self.comparison.revision
            self._lists_more_images = bool(self.comparison.find_only_in_manifest_json(self.images))
        return self._lists_more_images

    def find_additional_images(self, early_blobs: EarlyBlobs | None = None) -> list[DockerImage]:
        """Return the images that only `manifest.json` lists, after the whole archive was read.

        Without `early_blobs`, manifests that were written to the destination count as missing.

        Raises:
            ArchiveError: the two files contradict each other.
        """
        return self._finish_comparison(early_blobs).find_only_in_manifest_json(self.images) if self.images else []

    def check_late_manifest_json(self) -> None:
        """Check a `manifest.json` that came after the graph was built.

        The images of `index.json` do not wait for a `manifest.json` after the layers, so it cannot add images.

        Raises:
            ArchiveError: it contradicts `index.json`.
            UnsupportedError: it lists other images.
        """
        if more_images := self.find_additional_images():
            msg = (
                f"manifest.json comes after the layers, and lists the image {printable(more_images[0].config)} as well"
            )
            raise UnsupportedError(msg, hint=READ_FROM_FILE_HINT)

    def synthesize_manifests(
        self, images: Sequence[DockerImage], early_blobs: EarlyBlobs
    ) -> tuple[list[Descriptor], dict[str, bytes]]:
        """Build manifests of images. Return their `index.json` entries, and the manifests by digest."""
        manifests = ManifestSynthesizer(partial(self._read_config, early_blobs), self._describe_layer)
        return manifests.build_entries(images), manifests.manifests

    def _finish_comparison(self, early_blobs: EarlyBlobs | None) -> IndexComparison:
        """Read back the manifests that were written to the destination. The others count as missing."""
        needs = self._comparison_walk.needs
        while needs:
            need = next(iter(needs.values()))
            spilled = self._buffer.spilled.get(need.digest)
            raw = early_blobs.read_back(spilled) if early_blobs is not None and spilled is not None else None
            self._comparison_walk.answer(need, raw)
        return self.comparison

    # -- files that manifest.json names ------------------------------------------------------------------

    def _find_manifest(
        self, comparison: IndexComparison, early_blobs: EarlyBlobs, image: DockerImage
    ) -> Manifest | None:
        """Return the manifest that the archive has of an image of `manifest.json`, or None."""
        descriptor = comparison.find_manifest(image)
        if descriptor is None:
            return None
        raw = self._buffer.buffered.get(descriptor.digest)
        return Manifest(descriptor, early_blobs.read_back(descriptor) if raw is None else raw)

    def _read_config(self, early_blobs: EarlyBlobs, name: str) -> bytes:
        name, extent = self._buffer.contents.resolve_docker_file(name)
        digest = parse_blob_name(name)
        if digest in self._buffer.corrupt:
            raise self._buffer.corrupt[digest]
        raw = self._documents.get(name) if digest is None else self._buffer.buffered.get(digest)
        if raw is not None:
            # The config is also a blob of the graph, and is requested again under its digest.
            self._buffer.buffered[compute_digest(raw)] = raw
            return raw
        if digest is None and name in self._spilled_documents:
            digest = self._layers[name].digest
        elif digest is None or digest not in self._buffer.spilled:
            msg = f"{printable(name)} in the archive is no config, or is larger than {limits.MAX_CONFIG} bytes"
            raise ArchiveError(msg)
        return early_blobs.read_back(Descriptor(UNKNOWN_MEDIA_TYPE, digest, extent.size))

    def _describe_layer(self, name: str, diff_id: str) -> Descriptor:  # noqa: ARG002 - the digest is already known
        name, extent = self._buffer.contents.resolve_docker_file(name)
        digest = parse_blob_name(name)
        descriptor = None if name in self._spilled_documents else self._layers.get(name)
        if (
            digest
            and digest not in self._buffer.spilled
            and not is_probably_json(self._buffer.buffered.get(digest, b""))
        ):
            codec = self._buffer.codecs.get(digest, NONE)
            descriptor = Descriptor(
                layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, codec.name), digest, extent.size
            )
        if descriptor is None:
            msg = f"{printable(name)} in the archive is no layer"
            raise ArchiveError(msg, hint="if it is one, of an uncommon form, read it from a file instead of a pipe")
        return descriptor
