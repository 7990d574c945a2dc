"""Source for an image archive in a regular file: read the headers once by seeking, then each blob in place.

The order of entries does not matter, and blobs can be read in parallel.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive.contents import ArchiveContents, Extent, parse_blob_name
from ocistream.archive.docker_archive import (
    ManifestSynthesizer,
    build_docker_graph,
    is_docker_save,
    mark_synthesized,
    parse_manifest_json,
    report_no_manifest_json,
    report_only_in_manifest_json,
)
from ocistream.archive.index_comparison import IndexComparison
from ocistream.archive.tar import TarEntry, TarReader
from ocistream.archive.volume_parts import find_parts
from ocistream.errors import ArchiveError
from ocistream.layout.image_selection import report_duplicate_names
from ocistream.layout.index import ImageSelector, LayoutIndex, check_layout_file, parse_index_json, select_every_image
from ocistream.layout.index_walk import IndexWalk
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, Manifest
from ocistream.oci.digest import compute_digest, size_error
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.oci.volumes import parse_volume
from ocistream.oci.walk import Need, run_walk
from ocistream.streams import files, layer_media_types
from ocistream.streams.chunks import HashedChunks, read_all, read_chunks, verify_chunks
from ocistream.streams.compression import NONE, detect_codec
from ocistream.streams.layer_media_types import is_probably_json
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.archive.docker_archive import DockerImage
    from ocistream.oci.graph import Graph
    from ocistream.oci.referrers import ReferrerMode
    from ocistream.oci.volumes import Volume
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import BlobPart, EarlyBlobs

__all__ = ["ArchiveFileSource"]


class ArchiveFileSource:
    """Reads images from a tar file."""

    concurrent = True

    def __init__(
        self,
        path: Path,
        *,
        select: ImageSelector = select_every_image,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: ReferrerMode = "listed",
        include_unneeded: bool = False,
        as_docker: bool = False,
    ) -> None:
        """Open the file and read its headers.

        With `include_unneeded`, `blobs` also yields blobs that no image needs. With `as_docker`, the images are those
        of `manifest.json`, even if the archive has an `index.json` too.

        Raises:
            NotFoundError: the file does not exist.
            LocalDiskError: the file cannot be read.
            ArchiveError: the archive is malformed or truncated, or its `oci-layout` has an unknown version.
        """
        self._path = path
        self._what = f"cannot read {path}"
        #: The volume that this archive is, or None. Known once the index was read.
        self.volume: Volume | None = None
        #: Layers of a docker-archive, by their names in the tar.
        self._layers: dict[str, Descriptor] = {}
        #: Manifests built for images that only `manifest.json` lists, by digest.
        self.synthesized_manifests: dict[str, bytes] = {}
        self._is_docker_save = False
        self._as_docker = as_docker
        self._select = select
        self._platforms = platforms
        self._referrers: ReferrerMode = referrers
        self._includes_unneeded = include_unneeded
        with files.disk_errors(self._what):
            self._file = io.FileIO(path, "rb")
        try:
            self._contents = self._scan()
            if self._contents.oci_layout is not None:
                check_layout_file(self._read(self._contents.oci_layout, limits.MAX_LAYOUT_FILE))
        except BaseException:
            self._file.close()
            raise

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - a file can be read in any order
        """Return the graph of the selected images. The manifests of a docker-archive are built here."""
        if (docker_graph := self.build_docker_graph()) is not None:
            return docker_graph
        if self._as_docker:
            report_no_manifest_json()
        index = self.read_complete_index()
        walk = IndexWalk(
            index, self._select, self._platforms, self._referrers, image_digests=self.synthesized_manifests
        )
        graph = replace(run_walk(walk.run(), self.read), has_plain_layers=self._is_docker_save)
        graph = mark_synthesized(
            graph, [digest for digest, raw in self.synthesized_manifests.items() if not self._has_content(digest, raw)]
        )
        report_duplicate_names(graph)
        return graph

    def build_docker_graph(self) -> Graph | None:
        """Return the graph of a docker-archive with manifests built here, or None for an OCI archive.

        Raises:
            ArchiveError: the archive is malformed, or its `index.json` has another image under the same name.
        """
        contents = self._contents
        if not contents.is_docker_archive:
            return None
        images = self._read_docker_images()
        comparison = self._compare_indexes(self.read_index().entries if contents.index_json is not None else ())
        comparison.find_only_in_manifest_json(images, by_name=True)
        return build_docker_graph(
            images,
            self._select,
            self._platforms,
            config=self._read_config,
            layer=self._describe_layer,
            manifest=partial(self._find_manifest, comparison),
            is_docker_save=is_docker_save(images, contents),
        )

    def read_complete_index(self) -> LayoutIndex:
        """Read `index.json`, and add the images that only `manifest.json` lists, with manifests built here.

        Raises:
            ArchiveError: a file is malformed, or the two files contradict each other.
        """
        index = self.read_index()
        images = self._read_docker_images()
        self._is_docker_save = is_docker_save(images, self._contents) if images else False
        additional = self._compare_indexes(index.entries).find_only_in_manifest_json(images) if images else []
        if not additional:
            return index
        manifests = ManifestSynthesizer(self._read_config, self._describe_layer)
        added = manifests.build_entries(additional)
        report_only_in_manifest_json(additional)
        self.synthesized_manifests = manifests.manifests
        return LayoutIndex([*index.entries, *added], index.annotations)

    def read_index(self) -> LayoutIndex:
        """Read `index.json`, and set `volume` from its annotations.

        Raises:
            ArchiveError: the file is missing or malformed.
        """
        index = parse_index_json(self._read(self._contents.require_index(), limits.MAX_MANIFEST))
        if index.annotations:
            self.volume = parse_volume(index.annotations)
        return index

    @property
    def is_docker_save(self) -> bool:
        """Whether `docker save` wrote the archive. Known after `read_complete_index`."""
        return self._is_docker_save

    def read(self, need: Need) -> bytes | None:
        """Return a document that a graph needs, or None if the archive does not have it.

        Raises:
            IntegrityError: the document has another size.
        """
        if (synthesized := self.synthesized_manifests.get(need.digest)) is not None:
            return synthesized
        extent = self._contents.blobs.get(need.digest)
        if extent is None:
            return None
        if extent.size != need.descriptor.size:
            raise size_error(need.descriptor, extent.size)
        return self._read(extent, limits.MAX_CONFIG)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs that exist, in the order of `wanted`.

        Raises:
            IntegrityError: a digest occurs twice, with other bytes the second time.
        """
        self.check_duplicates()
        for descriptor in wanted:
            if (blob := self.blob(descriptor)) is not None:
                yield blob
        if self._includes_unneeded:
            yield from self.other_blobs({descriptor.digest for descriptor in wanted})

    def check_duplicates(self) -> None:
        """Verify every further entry of a digest.

        Raises:
            IntegrityError: an entry has other bytes.
        """
        for digest, extent in self._contents.duplicate_blobs:
            descriptor = Descriptor(UNKNOWN_MEDIA_TYPE, digest, extent.size)
            for _ in verify_chunks(self._chunks(extent), descriptor):
                pass

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """Return a blob, or None if the archive does not have it."""
        extent = self._contents.blobs.get(descriptor.digest)
        return None if extent is None else self._blob(descriptor, extent)

    def other_blobs(self, digests: AbstractSet[str]) -> Iterator[Blob]:
        """Yield the blobs that are not among `digests`."""
        for digest, extent in self._contents.blobs.items():
            if digest not in digests:
                yield self._blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, extent.size), extent)

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        """Return the parts of a blob that is split over volumes. Parts in this volume can be opened.

        Raises:
            ArchiveError: a part is missing or has another size.
        """
        if self.volume is None:
            return ()
        return find_parts(self.volume, self._contents, descriptor, self._read, self._chunks)

    def is_missing(self, descriptor: Descriptor) -> bool:
        """Return whether the archive does not have the blob."""
        return descriptor.digest not in self._contents.blobs

    @property
    def file(self) -> io.FileIO:
        """The open archive. Callers read at offsets of their own and do not move its position."""
        return self._file

    @property
    def contents(self) -> ArchiveContents:
        """The entries of the archive."""
        return self._contents

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _has_content(self, digest: str, raw: bytes) -> bool:
        """Return whether the archive has these bytes under their digest."""
        extent = self._contents.blobs.get(digest)
        return extent is not None and extent.size == len(raw) and self._read(extent, limits.MAX_MANIFEST) == raw

    def _read_docker_images(self) -> list[DockerImage]:
        manifest_json = self._contents.manifest_json
        return parse_manifest_json(self._read(manifest_json, limits.MAX_MANIFEST)) if manifest_json is not None else []

    def _compare_indexes(self, entries: Sequence[Descriptor]) -> IndexComparison:
        """Read all manifests below the entries of `index.json` that exist."""
        comparison = IndexComparison(entries)
        run_walk(comparison.run(), self._read_for_comparison)
        return comparison

    def _read_for_comparison(self, need: Need) -> bytes | None:
        extent = self._contents.blobs.get(need.digest)
        if extent is None or extent.size != need.descriptor.size:
            return None
        return self._read(extent, limits.MAX_MANIFEST)

    def _find_manifest(self, comparison: IndexComparison, image: DockerImage) -> Manifest | None:
        """Read the manifest that the archive has of an image of `manifest.json`, or return None."""
        descriptor = comparison.find_manifest(image)
        if descriptor is None:
            return None
        return Manifest(descriptor, self._read(self._contents.blobs[descriptor.digest], limits.MAX_MANIFEST))

    def _read_config(self, name: str) -> bytes:
        name, extent = self._contents.resolve_docker_file(name)
        raw = self._read(extent, limits.MAX_CONFIG)
        if digest := parse_blob_name(name):
            raw = read_all(verify_chunks([raw], Descriptor(UNKNOWN_MEDIA_TYPE, digest, extent.size)))
        self._add_blob_extent(compute_digest(raw), extent)
        return raw

    def _describe_layer(self, name: str, diff_id: str) -> Descriptor:
        """Return the descriptor of a docker-archive's layer.

        The config has the digest of a plain layer. A compressed layer is hashed, unless its name has its digest.
        """
        name, extent = self._contents.resolve_docker_file(name)
        if (descriptor := self._layers.get(name)) is None:
            first_bytes = read_all(self._chunks(Extent(extent.offset, min(extent.size, limits.KIB))))
            if is_probably_json(first_bytes):
                msg = f"{printable(name)} in the archive is no layer"
                raise ArchiveError(msg)
            codec = detect_codec(first_bytes)
            digest = parse_blob_name(name) or (diff_id if codec is NONE else self._hash(extent))
            descriptor = self._layers[name] = Descriptor(
                layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, codec.name), digest, extent.size
            )
            self._add_blob_extent(digest, extent)
        return descriptor

    def _hash(self, extent: Extent) -> str:
        chunks = HashedChunks(self._chunks(extent))
        for _ in chunks:
            pass
        return chunks.digest

    def _add_blob_extent(self, digest: str, extent: Extent) -> None:
        """Add a blob whose name has no digest. If it occurs twice, both entries are verified."""
        if (
            self._contents.blobs.setdefault(digest, extent) != extent
            and (digest, extent) not in self._contents.duplicate_blobs
        ):
            self._contents.duplicate_blobs.append((digest, extent))

    def _scan(self) -> ArchiveContents:
        contents = ArchiveContents(as_docker=self._as_docker)
        with files.disk_errors(self._what):
            reader = _SeekingTarReader(self._file, str(self._path))
            for entry in reader:
                contents.add(entry)
            reader.drain()
        return contents

    def _read(self, extent: TarEntry | Extent, limit: int) -> bytes:
        if extent.size > limit:
            msg = f"the document at byte {extent.offset} of the archive is larger than {limit} bytes"
            raise ArchiveError(msg)
        # Read in one call: a growing buffer is copied, and needs twice the memory.
        with files.disk_errors(self._what):
            raw = os.pread(self._file.fileno(), extent.size, extent.offset)
        return raw if len(raw) == extent.size else read_all(self._chunks(extent))

    def _blob(self, descriptor: Descriptor, extent: Extent) -> Blob:
        chunks = partial(self._chunks, extent)
        return Blob(descriptor, chunks)

    def _chunks(self, extent: TarEntry | Extent, offset: int = 0) -> Iterator[Chunk]:
        with files.disk_errors(self._what):
            yield from read_chunks(
                files.OffsetReader(self._file.fileno(), extent.offset + offset), extent.size - offset
            )


class _SeekingTarReader(TarReader):
    """Skips bytes without reading them, but checks that the file has them."""

    def __init__(self, file: io.FileIO, what: str) -> None:
        # Unbuffered: the bytes between two headers are skipped, so reading ahead is of no use.
        super().__init__(file, what)
        self._seekable = file
        self._size = os.fstat(file.fileno()).st_size

    def _skip(self, size: int) -> None:
        self._position += size
        if self._position > self._size:
            self._position = self._size
            raise self._truncated_error("in the middle of an entry")
        self._seekable.seek(self._position)
