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
from ocistream.layout.index_graph import IndexGraphBuilder
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor, Manifest
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.oci.volumes import parse_volume
from ocistream.streams import files, layer_media_types
from ocistream.streams.chunks import HashedChunks, compute_digest, read_all, read_chunks, verify_chunks
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
    """Images out of a tar file."""

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
        """Open the file and read its headers. With `everything`, `blobs` gives those too that no image needs.

        With `as_docker` the images are those of `manifest.json`, if there is one beside an `index.json`.

        Raises:
            NotFoundError: it is not there.
            LocalDiskError: it cannot be read.
            ArchiveError: it is malformed or truncated, or its `oci-layout` is of an unknown version.
        """
        self._path = path
        self._what = f"cannot read {path}"
        #: Which volume it is, if it is one: that is known with its index.
        self.volume: Volume | None = None
        #: Layers of a docker-archive, by their names there.
        self._layers: dict[str, Descriptor] = {}
        #: Manifests that were made of what `manifest.json` alone lists, by digest.
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
        """Read `index.json` and every manifest below the chosen images, or make them of a docker-archive's."""
        if (docker := self.build_docker_graph()) is not None:
            return docker
        if self._as_docker:
            report_no_manifest_json()
        gathering = IndexGraphBuilder(self._select, self._platforms, self._referrers)
        gathering.begin(*self.read_complete_index(), self.synthesized_manifests)
        while (needed := gathering.next_needed()) is not None:
            if not self.supply(gathering, needed):
                gathering.mark_missing(needed.digest)
        graph = replace(gathering.build(), has_plain_layers=self._is_docker_save)
        graph = mark_synthesized(
            graph, [digest for digest, raw in self.synthesized_manifests.items() if not self._has_content(digest, raw)]
        )
        report_duplicate_names(graph)
        return graph

    def build_docker_graph(self) -> Graph | None:
        """Make manifests of the chosen images of a docker-archive; None if it is none.

        Raises:
            ArchiveError: it is malformed, or its `index.json` has another image under the same name.
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
        """Read `index.json`, and add the images that only `manifest.json` lists: their manifests are `made`.

        Raises:
            ArchiveError: one is malformed, or they contradict each other.
        """
        index = self.read_index()
        images = self._read_docker_images()
        self._is_docker_save = is_docker_save(images, self._contents) if images else False
        only = self._compare_indexes(index.entries).find_only_in_manifest_json(images) if images else []
        if not only:
            return index
        manifests = ManifestSynthesizer(self._read_config, self._describe_layer)
        added = manifests.build_entries(only)
        report_only_in_manifest_json(only)
        self.synthesized_manifests = manifests.manifests
        return LayoutIndex([*index.entries, *added], index.annotations)

    def read_index(self) -> LayoutIndex:
        """Read `index.json`, and learn of which volume it is.

        Raises:
            ArchiveError: there is none, or it is malformed.
        """
        found = parse_index_json(self._read(self._contents.require_index(), limits.MAX_MANIFEST))
        if found.annotations:
            self.volume = parse_volume(found.annotations)
        return found

    @property
    def is_docker_save(self) -> bool:
        """Whether `docker save` wrote the archive; known once its images are `listed`."""
        return self._is_docker_save

    def supply(self, builder: IndexGraphBuilder, needed: Descriptor) -> bool:
        """Answer a need of a graph, and say whether that could be done."""
        if (made := self.synthesized_manifests.get(needed.digest)) is not None:
            builder.supply(needed.digest, made)
            return True
        place = self._contents.blobs.get(needed.digest)
        if place is not None:
            builder.check_size(needed.digest, place.size)
            builder.supply(needed.digest, self._read(place, limits.MAX_CONFIG))
        return place is not None

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs that are there, in the order in which they are wanted.

        Raises:
            IntegrityError: a digest that stands twice has other bytes the second time.
        """
        self.check_duplicates()
        for descriptor in wanted:
            if (blob := self.blob(descriptor)) is not None:
                yield blob
        if self._includes_unneeded:
            yield from self.other_blobs({descriptor.digest for descriptor in wanted})

    def check_duplicates(self) -> None:
        """Read what stands there twice.

        Raises:
            IntegrityError: it has other bytes the second time.
        """
        for digest, second in self._contents.duplicate_blobs:
            again = Descriptor(UNKNOWN_MEDIA_TYPE, digest, second.size)
            for _ in verify_chunks(self._chunks(second), again):
                pass

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """Give a blob, if it is there."""
        place = self._contents.blobs.get(descriptor.digest)
        return None if place is None else self._blob(descriptor, place)

    def other_blobs(self, digests: AbstractSet[str]) -> Iterator[Blob]:
        """Give what is there and is none of these."""
        for digest, place in self._contents.blobs.items():
            if digest not in digests:
                yield self._blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, place.size), place)

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        """Give the parts of a blob that is continued from volume to volume, with the way to those that are here.

        Raises:
            ArchiveError: they are not as they should be.
        """
        if self.volume is None:
            return ()
        return find_parts(self.volume, self._contents, descriptor, self._read, self._chunks)

    def is_missing(self, descriptor: Descriptor) -> bool:
        """Say whether the archive has no such blob."""
        return descriptor.digest not in self._contents.blobs

    @property
    def file(self) -> io.FileIO:
        """The open archive, for whoever reads at offsets of its own and leaves its position alone."""
        return self._file

    @property
    def contents(self) -> ArchiveContents:
        """What the archive was seen to contain."""
        return self._contents

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _has_content(self, digest: str, raw: bytes) -> bool:
        """Say whether these bytes are in the archive, under their digest."""
        place = self._contents.blobs.get(digest)
        return place is not None and place.size == len(raw) and self._read(place, limits.MAX_MANIFEST) == raw

    def _read_docker_images(self) -> list[DockerImage]:
        docker = self._contents.manifest_json
        return parse_manifest_json(self._read(docker, limits.MAX_MANIFEST)) if docker is not None else []

    def _compare_indexes(self, entries: Sequence[Descriptor]) -> IndexComparison:
        """Read all manifests that are there below the entries of `index.json`."""
        comparison = IndexComparison(entries)
        todo = list(comparison.needs)
        while todo:
            digest = todo.pop()
            place = self._contents.blobs.get(digest)
            if place is None or place.size != comparison.needs[digest].size:
                del comparison.needs[digest]
            else:
                todo += comparison.supply(digest, self._read(place, limits.MAX_MANIFEST))
        return comparison

    def _find_manifest(self, comparison: IndexComparison, image: DockerImage) -> Manifest | None:
        """Read the manifest that there is of an image of `manifest.json`."""
        descriptor = comparison.find_manifest(image)
        if descriptor is None:
            return None
        return Manifest(descriptor, self._read(self._contents.blobs[descriptor.digest], limits.MAX_MANIFEST))

    def _read_config(self, name: str) -> bytes:
        name, place = self._contents.resolve_docker_file(name)
        raw = self._read(place, limits.MAX_CONFIG)
        if digest := parse_blob_name(name):
            raw = read_all(verify_chunks([raw], Descriptor(UNKNOWN_MEDIA_TYPE, digest, place.size)))
        self._add_blob_extent(compute_digest(raw), place)
        return raw

    def _describe_layer(self, name: str, diff_id: str) -> Descriptor:
        """Say what a layer of a docker-archive is: of a plain one its config has said so, others are hashed."""
        name, place = self._contents.resolve_docker_file(name)
        if (known := self._layers.get(name)) is None:
            beginning = read_all(self._chunks(Extent(place.offset, min(place.size, limits.KIB))))
            if is_probably_json(beginning):
                msg = f"{printable(name)} in the archive is no layer"
                raise ArchiveError(msg)
            codec = detect_codec(beginning)
            digest = parse_blob_name(name) or (diff_id if codec is NONE else self._hash(place))
            known = self._layers[name] = Descriptor(
                layer_media_types.layer_media_type(layer_media_types.OCI_LAYER, codec.name), digest, place.size
            )
            self._add_blob_extent(digest, place)
        return known

    def _hash(self, extent: Extent) -> str:
        raw = HashedChunks(self._chunks(extent))
        for _ in raw:
            pass
        return raw.digest

    def _add_blob_extent(self, digest: str, extent: Extent) -> None:
        """Note where something lies that has no digest in its name. Where it lies twice, both are to be checked."""
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
        # At once: what grows is moved about, and memory holds it twice.
        with files.disk_errors(self._what):
            raw = os.pread(self._file.fileno(), extent.size, extent.offset)
        return raw if len(raw) == extent.size else read_all(self._chunks(extent))

    def _blob(self, descriptor: Descriptor, extent: Extent) -> Blob:
        chunks = partial(self._chunks, extent)
        return Blob(descriptor, chunks, open_at=chunks)

    def _chunks(self, extent: TarEntry | Extent, offset: int = 0) -> Iterator[Chunk]:
        with files.disk_errors(self._what):
            yield from read_chunks(
                files.OffsetReader(self._file.fileno(), extent.offset + offset), extent.size - offset
            )


class _SeekingTarReader(TarReader):
    """Passes over bytes without reading them, but makes sure that they are there."""

    def __init__(self, file: io.FileIO, what: str) -> None:
        # Unbuffered headers: what lies between two of them is passed over, so reading ahead would be for nothing.
        super().__init__(file, what)
        self._seekable = file
        self._size = os.fstat(file.fileno()).st_size

    def _skip(self, size: int) -> None:
        self._position += size
        if self._position > self._size:
            self._position = self._size
            raise self._truncated_error("in the middle of an entry")
        self._seekable.seek(self._position)
