"""An archive in a regular file as the storage of the embedded registry, read-only. Blobs are verified when sent."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from ocistream.archive.decompression import is_compressed
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError
from ocistream.layout.image_selection import ALL_IMAGES
from ocistream.layout.index import REF_NAME, entry_name_of
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION
from ocistream.oci.volumes import VOLUME_ANNOTATION
from ocistream.serve.directory_storage import DirectoryStorage, is_unexpectedly_empty
from ocistream.serve.http_handler import FileSection
from ocistream.serve.image_index import ImageIndex, repository_of_directory
from ocistream.streams.chunks import read_all, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocistream.layout.index import LayoutIndex
    from ocistream.oci.descriptor import Descriptor
    from ocistream.transfer.interfaces import Source

#: The tag of an archive's only image, if it has no name.
_DEFAULT_TAG: Final = "latest"


class ArchiveStorage:
    """An archive in a regular file, whose blobs are read in place. The file stays open, so it may be moved or replaced.

    Manifests are hashed whenever they are read, and blobs whenever they are sent. The manifests of a docker-archive,
    which has none, are synthesized when it is opened.
    """

    def __init__(self, path: Path, *, as_docker: bool) -> None:
        """Read the headers and the index; with `as_docker`, that of a docker-archive.

        Raises:
            NotFoundError: the file does not exist, or has no image.
            LocalDiskError: it cannot be read.
            UnsupportedError: it is compressed, so no part can be read without all bytes before it.
            ArchiveError: it is malformed or truncated, or only a part of an archive.
        """
        if is_compressed(path):
            msg = f"{path} is compressed: its blobs cannot be read in any order"
            raise UnsupportedError(
                msg, hint=f"decompress it first (`gunzip`, `unzstd`), or run `ocistream copy {path} oci:DIR`"
            )
        self._what = f"{path}"
        self.default_repository = repository_of_directory(path.name.removesuffix(".tar"))
        self._source = ArchiveFileSource(path, as_docker=as_docker)
        #: Synthesized manifests, by digest.
        self._synthesized: dict[str, bytes] = {}
        self._operator_notices: list[str] = []
        try:
            self._layout_index = self._read_index()
            self._index = ImageIndex(self._name_only_image([*self._layout_index.entries]), self.default_repository)
        except BaseException:
            self._source.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def operator_notices(self) -> list[str]:
        """Return the line about an image that got its name here."""
        return self._operator_notices

    def index(self) -> ImageIndex:
        """Return the entries of the archive."""
        return self._index

    def open_source(self) -> Source:
        """Return a source of all images, in the open file: another one may have its path now."""
        return self._source.open_images(self._layout_index, ALL_IMAGES)

    def blob_size(self, digest: str) -> int | None:
        """Return a blob's size in bytes, or None."""
        if (synthesized := self._synthesized.get(digest)) is not None:
            return len(synthesized)
        extent = self._source.contents.blobs.get(digest)
        return extent.size if extent else None

    @contextlib.contextmanager
    def open_blob_section(self, digest: str) -> Iterator[FileSection]:
        """Return the section of the archive with the blob, which is verified while it is sent."""
        extent = self._source.contents.blobs.get(digest)
        if extent is None:
            raise self._blob_not_found_error(digest)
        if is_unexpectedly_empty(digest, extent.size):
            msg = f"the blob {digest} in {self._what} is corrupt"
            raise IntegrityError(msg)
        yield FileSection(self._source.file, extent.offset, extent.size, digest)

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, verified."""
        if (synthesized := self._synthesized.get(descriptor.digest)) is not None:
            return synthesized
        blob = self._source.blob(descriptor)
        if blob is None:
            raise self._blob_not_found_error(descriptor.digest)
        return read_all(verify_chunks(blob.open(), descriptor))

    def check_not_corrupt(self, digest: str) -> None:
        """Do nothing: every read of an archive is verified, and no result is stored."""

    def _read_index(self) -> LayoutIndex:
        index = self._source.read_complete_index()
        self._synthesized = self._source.synthesized_manifests
        # A missing blob would be noticed only in the middle of a pull, so an incomplete archive is not served.
        reason = hint = ""
        if VOLUME_ANNOTATION in index.annotations:
            reason = "is one of several volumes"
            hint = (
                "start `ocistream serve DIR` for a new DIR, and push all volumes there: -i 'GLOB' --to localhost:5000"
            )
        elif OMITTED_ANNOTATION in index.annotations:
            reason = "was made without some of its blobs"
            hint = "push it to a registry that has the missing blobs, such as `ocistream serve DIR`"
        if reason:
            msg = f"{self._what} {reason}: the missing blobs could not be served"
            raise ArchiveError(msg, hint=hint)
        return index

    def _name_only_image(self, entries: list[Descriptor]) -> list[Descriptor]:
        """Return the entries; an only image without a name gets one, since clients could pull it by digest only.

        Raises:
            NotFoundError: the archive has no image.
        """
        if not entries:
            # An archive without images is useless: nothing can be pushed to it either.
            raise NotFoundError(f"{self._what} has no images", hint="serve an archive with an image, or a directory")
        if len(entries) != 1 or entry_name_of(entries[0]) is not None:
            return entries
        image = entries[0]
        self._operator_notices.append(
            f"the image has no name: it is served as {self.default_repository}:{_DEFAULT_TAG}"
        )
        return [replace(image, annotations={**image.annotations, REF_NAME: _DEFAULT_TAG})]

    def _blob_not_found_error(self, digest: str) -> NotFoundError:
        return NotFoundError(f"no blob {digest} in {self._what}")


#: What a registry serves. Both classes are safe for several threads.
Storage: TypeAlias = DirectoryStorage | ArchiveStorage
