"""Source for an image archive in a regular file: read the headers once by seeking, then each blob in place."""

from __future__ import annotations

import copy
import io
import os
from functools import partial
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive.contents import Extent, check_document_size
from ocistream.archive.source import DOCUMENT_LIMITS, ArchiveSource
from ocistream.archive.tar_reader import TarReader
from ocistream.layout.image_selection import ALL_IMAGES
from ocistream.oci.descriptor import UNKNOWN_MEDIA_TYPE, Descriptor
from ocistream.oci.volumes import parse_checksum_line, part_error, part_name
from ocistream.streams import files
from ocistream.streams.chunks import HashedChunks, read_all, read_chunks, verify_chunks
from ocistream.streams.compression import NONE, describe_layer, detect_codec, is_probably_json
from ocistream.transfer.interfaces import Blob, ByteRange, RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from ocistream.errors import IntegrityError
    from ocistream.layout.image_selection import Selection
    from ocistream.layout.index import LayoutIndex
    from ocistream.oci.graph import Graph
    from ocistream.oci.volumes import Volume, VolumePart
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import EarlyBlobs


class ArchiveFileSource(ArchiveSource):
    """Reads images from a tar file. The entries may have any order, and blobs can be read in parallel."""

    concurrent = True

    def __init__(self, path: Path, selection: Selection = ALL_IMAGES, *, as_docker: bool = False) -> None:
        """Open the file and read its headers.

        Raises:
            NotFoundError: the file does not exist.
            LocalDiskError: the file cannot be read.
            ArchiveError: the archive, or one of its documents, is malformed or truncated.
        """
        super().__init__(str(path), selection, as_docker=as_docker)
        self._what = f"cannot read {path}"
        with files.disk_errors(self._what):
            #: The open archive. Callers read at offsets of their own and do not move its position.
            self.file = io.FileIO(path, "rb")
        try:
            with files.disk_errors(self._what):
                reader = _SeekingTarReader(self.file, str(path))
                for entry in reader:
                    self.contents.add(entry)
                reader.drain()
                self._has_ended = True
                for name, limit in DOCUMENT_LIMITS.items():
                    if (document := self.contents.documents.get(name)) is not None:
                        check_document_size(document, limit)
                        raw = files.FilePart(self.file.fileno(), document.offset, document.size)
                        self._parse_document(document, raw)
        except BaseException:
            self.file.close()
            raise

    def open_images(self, index: LayoutIndex, selection: Selection) -> ArchiveFileSource:
        """Return a source of images of the archive. The caller closes it.

        `index` lists these images, and every possible referrer of them.
        """
        images = copy.copy(self)
        images._chosen_index, images._selection = index, selection  # noqa: SLF001 - same class
        with files.disk_errors(self._what):
            images.file = io.FileIO(os.dup(self.file.fileno()))
        return images

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - a file can be read in any order
        """Return the graph of the selected images. The manifests of a docker-archive are built here."""
        return self._resolve()

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs that exist, in the order of `wanted`.

        Raises:
            IntegrityError: a digest occurs twice, with other bytes the second time.
        """
        self.check_duplicates()
        for descriptor in wanted:
            if (blob := self.blob(descriptor)) is not None:
                yield blob
        if self._selection.all_blobs:
            yield from self.other_blobs({descriptor.digest for descriptor in wanted})

    def check_duplicates(self) -> None:
        """Verify every further entry of a digest, once.

        Raises:
            IntegrityError: an entry has other bytes.
        """
        for digest, extent in tuple(self.contents.duplicate_blobs):
            descriptor = Descriptor(UNKNOWN_MEDIA_TYPE, digest, extent.size)
            for _ in verify_chunks(self._chunks(extent), descriptor):
                pass
        self.contents.duplicate_blobs.clear()

    def blob(self, descriptor: Descriptor) -> Blob | None:
        """Return a blob, or None if the archive does not have it."""
        extent = self.contents.blobs.get(descriptor.digest)
        return None if extent is None else Blob(descriptor, partial(self._chunks, extent))

    def other_blobs(self, digests: AbstractSet[str]) -> Iterator[Blob]:
        """Yield the blobs that are not among `digests`."""
        for digest, extent in self.contents.blobs.items():
            if digest not in digests:
                yield Blob(Descriptor(UNKNOWN_MEDIA_TYPE, digest, extent.size), partial(self._chunks, extent))

    def _open_part(self, volume: Volume, descriptor: Descriptor, part: VolumePart) -> Blob | None:
        if part.volume != volume.number:
            return None
        extent, checksum = self.contents.find_part(volume, descriptor.digest, part)
        check_document_size(checksum, limits.MAX_LAYOUT_FILE)
        line = self._read_extent(checksum)
        part_digest = parse_checksum_line(part_name(descriptor.digest, part.offset), line)

        def opened(offset: int = 0) -> Iterator[Chunk]:
            return self._chunks(extent, max(0, offset - part.offset))

        def raise_corrupt(error: IntegrityError, can_retry: bool) -> None:  # noqa: ARG001 - there is no second copy
            name = volume.template.format_name(part.volume)
            raise part_error(descriptor.digest, part.offset, name, error) from error

        part_range = ByteRange(part.offset, part.offset + part.size, part_digest)
        return RecoverableBlob(descriptor, opened, range=part_range, on_corrupt=raise_corrupt)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        # They refer to this object. Without the cycle, their manifests are freed at once, not at a later collection.
        self._index_walk = self._walk = None

    def _read_extent(self, extent: Extent) -> bytes:
        # Read in one call: a growing buffer is copied, and needs twice the memory.
        with files.disk_errors(self._what):
            raw = os.pread(self.file.fileno(), extent.size, extent.offset)
        return raw if len(raw) == extent.size else read_all(self._chunks(extent))

    def _identify_layer(self, extent: Extent, digest: str | None, diff_id: str) -> Descriptor | None:
        first_bytes = read_all(self._chunks(Extent(extent.offset, min(extent.size, limits.KIB))))
        if is_probably_json(first_bytes):
            return None
        codec = detect_codec(first_bytes)
        # A compressed layer is hashed, unless its name has its digest.
        return describe_layer(digest or (diff_id if codec is NONE else self._hash(extent)), extent.size, codec)

    def _hash(self, extent: Extent) -> str:
        chunks = HashedChunks(self._chunks(extent))
        for _ in chunks:
            pass
        return chunks.digest

    def _chunks(self, extent: Extent, offset: int = 0) -> Iterator[Chunk]:
        file = files.OffsetReader(self.file.fileno(), extent.offset + offset, self._what)
        return read_chunks(file, extent.size - offset)


class _SeekingTarReader(TarReader):
    """Skips bytes without reading them, but checks that the file has them."""

    def __init__(self, file: io.FileIO, what: str) -> None:
        # Unbuffered: the bytes between two headers are skipped, so reading ahead is of no use.
        super().__init__(file, what)
        self._seekable = file
        self._size = os.fstat(file.fileno()).st_size

    def _skip(self, size: int) -> None:
        position = self._file.position + size
        self._file.position = min(position, self._size)
        if position > self._size:
            raise self._truncated_error("in the middle of an entry")
        self._seekable.seek(self._file.position)
