"""Image archives in a regular file: its headers are read once, by seeking, then every blob is at hand.

So the order of the entries does not matter here, and blobs can be read side by side.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive.docker_images import (
    Manifests,
    docker_graph,
    is_saved,
    less_made,
    parse_manifest_json,
    tell_no_list,
    tell_only_there,
)
from ocistream.archive.entries import Contents, Place, blob_digest
from ocistream.archive.index_comparison import Comparison
from ocistream.archive.tar import Entry, TarReader
from ocistream.archive.volume_parts import parts_in
from ocistream.errors import ArchiveError
from ocistream.layout.all_images import tell_same_names
from ocistream.layout.index import Index, Selection, every_image, parse_layout_file, read_index
from ocistream.layout.index_entries import Gathering
from ocistream.oci.descriptor import UNKNOWN_TYPE, Descriptor, Manifest
from ocistream.oci.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.oci.reference import printable
from ocistream.oci.volumes import volume_of
from ocistream.streams import files, layer_types
from ocistream.streams.chunks import Tally, chunks_of, digest_of, gathered, verified
from ocistream.streams.compression import NONE, codec_of
from ocistream.streams.layer_types import looks_like_document
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.archive.docker_images import Listed
    from ocistream.oci.graph import Graph
    from ocistream.oci.referrers import Referrers
    from ocistream.oci.volumes import Volume
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Early, Part

__all__ = ["ArchiveFileSource"]


class ArchiveFileSource:
    """Images out of a tar file."""

    parallel = True

    def __init__(
        self,
        path: Path,
        *,
        select: Selection = every_image,
        platforms: PlatformChoice = ALL_PLATFORMS,
        referrers: Referrers = "listed",
        everything: bool = False,
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
        self.made: dict[str, bytes] = {}
        self._is_saved = False
        self._as_docker = as_docker
        self._select = select
        self._platforms = platforms
        self._referrers: Referrers = referrers
        self._everything = everything
        with files.disk_errors(self._what):
            self._file = io.FileIO(path, "rb")
        try:
            self._contents = self._scan()
            if self._contents.layout is not None:
                parse_layout_file(self._read(self._contents.layout, limits.MAX_LAYOUT_FILE))
        except BaseException:
            self._file.close()
            raise

    def graph(self, early: Early) -> Graph:  # noqa: ARG002 - a file can be read in any order
        """Read `index.json` and every manifest below the chosen images, or make them of a docker-archive's."""
        if (docker := self.docker_graph()) is not None:
            return docker
        if self._as_docker:
            tell_no_list()
        gathering = Gathering(self._select, self._platforms, self._referrers)
        gathering.begin(*self.listed(), self.made)
        while (needed := gathering.needed()) is not None:
            if not self.supply(gathering, needed):
                gathering.lacks(needed.digest)
        graph = replace(gathering.graph(), bare=self._is_saved)
        graph = less_made(graph, [digest for digest, raw in self.made.items() if not self._holds(digest, raw)])
        tell_same_names(graph)
        return graph

    def docker_graph(self) -> Graph | None:
        """Make manifests of the chosen images of a docker-archive; None if it is none.

        Raises:
            ArchiveError: it is malformed, or its `index.json` has another image under the same name.
        """
        contents = self._contents
        if not contents.is_docker_archive:
            return None
        images = self._docker_images()
        comparison = self._compared(self.index().entries if contents.index is not None else ())
        comparison.only_in_manifest_json(images, by_name=True)
        return docker_graph(
            images,
            self._select,
            self._platforms,
            config=self._config,
            layer=self._layer,
            manifest=partial(self._manifest, comparison),
            saved=is_saved(images, contents),
        )

    def listed(self) -> Index:
        """Read `index.json`, and add the images that only `manifest.json` lists: their manifests are `made`.

        Raises:
            ArchiveError: one is malformed, or they contradict each other.
        """
        index = self.index()
        images = self._docker_images()
        self._is_saved = is_saved(images, self._contents) if images else False
        only = self._compared(index.entries).only_in_manifest_json(images) if images else []
        if not only:
            return index
        manifests = Manifests(self._config, self._layer)
        added = manifests.entries(only)
        tell_only_there(only)
        self.made = manifests.raw
        return Index([*index.entries, *added], index.notes)

    def index(self) -> Index:
        """Read `index.json`, and learn of which volume it is.

        Raises:
            ArchiveError: there is none, or it is malformed.
        """
        found = read_index(self._read(self._contents.required_index(), limits.MAX_MANIFEST))
        if found.notes:
            self.volume = volume_of(found.notes)
        return found

    @property
    def is_saved(self) -> bool:
        """Whether `docker save` wrote the archive; known once its images are `listed`."""
        return self._is_saved

    def supply(self, gathering: Gathering, needed: Descriptor) -> bool:
        """Answer a need of a graph, and say whether that could be done."""
        if (made := self.made.get(needed.digest)) is not None:
            gathering.supply(needed.digest, made)
            return True
        place = self._contents.blobs.get(needed.digest)
        if place is not None:
            gathering.check_size(needed.digest, place.size)
            gathering.supply(needed.digest, self._read(place, limits.MAX_CONFIG))
        return place is not None

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs that are there, in the order in which they are wanted.

        Raises:
            IntegrityError: a digest that stands twice has other bytes the second time.
        """
        self.check_repeated()
        for descriptor in wanted:
            if (blob := self.blob(descriptor)) is not None:
                yield blob
        if self._everything:
            yield from self.others({descriptor.digest for descriptor in wanted})

    def check_repeated(self) -> None:
        """Read what stands there twice.

        Raises:
            IntegrityError: it has other bytes the second time.
        """
        for digest, second in self._contents.repeated:
            again = Descriptor(UNKNOWN_TYPE, digest, second.size)
            for _ in verified(self._chunks(second), again):
                pass

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """Give a blob, if it is there."""
        place = self._contents.blobs.get(descriptor.digest)
        return None if place is None else self._blob(descriptor, place)

    def others(self, digests: AbstractSet[str]) -> Iterator[Blob]:
        """Give what is there and is none of these."""
        for digest, place in self._contents.blobs.items():
            if digest not in digests:
                yield self._blob(Descriptor(UNKNOWN_TYPE, digest, place.size), place)

    def parts(self, descriptor: Descriptor) -> Sequence[Part]:
        """Give the parts of a blob that is continued from volume to volume, with the way to those that are here.

        Raises:
            ArchiveError: they are not as they should be.
        """
        if self.volume is None:
            return ()
        return parts_in(self.volume, self._contents, descriptor, self._read, self._chunks)

    def lacks(self, descriptor: Descriptor) -> bool:
        """Say whether the archive has no such blob."""
        return descriptor.digest not in self._contents.blobs

    @property
    def file(self) -> io.FileIO:
        """The open archive, for whoever reads at offsets of its own and leaves its position alone."""
        return self._file

    @property
    def contents(self) -> Contents:
        """What the archive was seen to contain."""
        return self._contents

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _holds(self, digest: str, raw: bytes) -> bool:
        """Say whether these bytes are in the archive, under their digest."""
        place = self._contents.blobs.get(digest)
        return place is not None and place.size == len(raw) and self._read(place, limits.MAX_MANIFEST) == raw

    def _docker_images(self) -> list[Listed]:
        docker = self._contents.docker
        return parse_manifest_json(self._read(docker, limits.MAX_MANIFEST)) if docker is not None else []

    def _compared(self, entries: Sequence[Descriptor]) -> Comparison:
        """Read all manifests that are there below the entries of `index.json`."""
        comparison = Comparison(entries)
        todo = list(comparison.needs)
        while todo:
            digest = todo.pop()
            place = self._contents.blobs.get(digest)
            if place is None or place.size != comparison.needs[digest].size:
                del comparison.needs[digest]
            else:
                todo += comparison.supply(digest, self._read(place, limits.MAX_MANIFEST))
        return comparison

    def _manifest(self, comparison: Comparison, image: Listed) -> Manifest | None:
        """Read the manifest that there is of an image of `manifest.json`."""
        descriptor = comparison.manifest_of(image)
        if descriptor is None:
            return None
        return Manifest(descriptor, self._read(self._contents.blobs[descriptor.digest], limits.MAX_MANIFEST))

    def _config(self, name: str) -> bytes:
        name, place = self._contents.resolve(name)
        raw = self._read(place, limits.MAX_CONFIG)
        if digest := blob_digest(name):
            raw = gathered(verified([raw], Descriptor(UNKNOWN_TYPE, digest, place.size)))
        self._lies_at(digest_of(raw), place)
        return raw

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        """Say what a layer of a docker-archive is: of a plain one its config has said so, others are hashed."""
        name, place = self._contents.resolve(name)
        if (known := self._layers.get(name)) is None:
            beginning = gathered(self._chunks(Place(place.offset, min(place.size, limits.KIB))))
            if looks_like_document(beginning):
                msg = f"{printable(name)} in the archive is no layer"
                raise ArchiveError(msg)
            codec = codec_of(beginning)
            digest = blob_digest(name) or (diff_id if codec is NONE else self._hashed(place))
            known = self._layers[name] = Descriptor(
                layer_types.media_type(layer_types.OCI, codec.name), digest, place.size
            )
            self._lies_at(digest, place)
        return known

    def _hashed(self, place: Place) -> str:
        raw = Tally(self._chunks(place))
        for _ in raw:
            pass
        return raw.digest

    def _lies_at(self, digest: str, place: Place) -> None:
        """Note where something lies that has no digest in its name. Where it lies twice, both are to be checked."""
        if self._contents.blobs.setdefault(digest, place) != place and (digest, place) not in self._contents.repeated:
            self._contents.repeated.append((digest, place))

    def _scan(self) -> Contents:
        contents = Contents(as_docker=self._as_docker)
        with files.disk_errors(self._what):
            reader = _SeekingReader(self._file, str(self._path))
            for entry in reader:
                contents.add(entry)
            reader.drain()
        return contents

    def _read(self, place: Entry | Place, limit: int) -> bytes:
        if place.size > limit:
            msg = f"the document at byte {place.offset} of the archive is larger than {limit} bytes"
            raise ArchiveError(msg)
        # At once: what grows is moved about, and memory holds it twice.
        with files.disk_errors(self._what):
            raw = os.pread(self._file.fileno(), place.size, place.offset)
        return raw if len(raw) == place.size else gathered(self._chunks(place))

    def _blob(self, descriptor: Descriptor, place: Place) -> Blob:
        chunks = partial(self._chunks, place)
        return Blob(descriptor, chunks, open_at=chunks)

    def _chunks(self, place: Entry | Place, offset: int = 0) -> Iterator[Chunk]:
        with files.disk_errors(self._what):
            yield from chunks_of(files.Window(self._file.fileno(), place.offset + offset), place.size - offset)


class _SeekingReader(TarReader):
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
            raise self._truncated("in the middle of an entry")
        self._seekable.seek(self._position)
