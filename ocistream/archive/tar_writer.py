"""Write a tar from front to back: entries of known size, and entries whose size is known only at their end.

This module knows nothing of images. `outputs` decides where the bytes go.
"""

from __future__ import annotations

import contextlib
import functools
import tarfile
import tempfile
from typing import TYPE_CHECKING, Final

from ocistream.archive.outputs import FileOutput
from ocistream.errors import IntegrityError, LocalDiskError, OcistreamError
from ocistream.streams import files
from ocistream.streams.chunks import read_chunks
from ocistream.transfer.interfaces import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import FileIO

    from ocistream.archive.outputs import Output
    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob

#: Two blocks of zeros end an archive (POSIX pax, "ustar Interchange Format").
END_OF_ARCHIVE: Final = bytes(2 * tarfile.BLOCKSIZE)


@contextlib.contextmanager
def _open_spool() -> Iterator[FileIO]:
    """Open a temporary file without a name. It is usually on another disk than the input and output.

    Raises:
        LocalDiskError: the file cannot be created or written.
    """
    directory = files.temporary_directory()
    try:
        with tempfile.TemporaryFile(buffering=0, dir=directory) as spool:
            yield spool
    except OSError as error:
        is_missing = directory is not None and isinstance(error, FileNotFoundError)
        reason = f"{directory} does not exist" if is_missing else error.strerror
        msg = f"cannot store a layer in a temporary file: {reason}"
        where = directory or "the directory for temporary files"
        hint = f"free some space in {where}, set TMPDIR to another directory, or write to a file and not to a pipe"
        raise LocalDiskError(msg, hint=hint) from error


class TarWriter:
    """Writes one tar from front to back. `mtime` is the time of every entry, in seconds since 1970."""

    def __init__(self, output: Output, mtime: int = 0) -> None:
        """Write to `output`."""
        self.output = output
        self._mtime = mtime
        #: Whether an entry can be removed again if its chunks raise.
        self.can_roll_back = isinstance(output, FileOutput)

    def add(self, name: str, size: int, chunks: Iterable[Chunk]) -> None:
        """Write an entry of `size` bytes.

        If its chunks raise, the entry is removed if the output allows that. Otherwise the entry stays short, and the
        archive has no end mark.
        """
        self._add(name, size, lambda: chunks)

    def add_blob(self, name: str, blob: VerifiedBlob) -> None:
        """Write an entry as `add` does. Existing bytes are hashed or compared if necessary, but not fetched again."""
        if blob.access is Access.ONCE:
            self.output.discard()
        self._add(name, blob.descriptor.size, functools.partial(self._remaining_chunks, blob))

    def _add(self, name: str, size: int, chunks: Callable[[], Iterable[Chunk]]) -> None:
        with self.roll_back_on_failure():
            self.output.write(build_header(name, size, self._mtime))
            for chunk in chunks():
                self.output.write(chunk)
            self.output.write(padding(size))

    def _remaining_chunks(self, blob: VerifiedBlob) -> Iterator[Chunk]:
        """Skip the existing bytes of a blob, and return the chunks of the rest."""
        output = self.output
        existing_size = min(output.existing_size(), blob.descriptor.size)
        if not blob.can_resume or not existing_size:
            # The output compares the chunks with its existing bytes, or drops these.
            return blob.open()
        return blob.open(existing_size, output.skip_existing(existing_size))

    def add_small(self, name: str, content: bytes) -> None:
        """Write an entry from memory."""
        self.output.write(build_header(name, len(content), self._mtime) + content + padding(len(content)))

    def add_new(self, blob: NewBlob, choose_name: Callable[[Descriptor], str | None]) -> Descriptor:
        """Write an entry whose size is known only at its end.

        `choose_name` returns its name, or None to drop the entry. If the output can be rewritten, the header is written
        last. A pipe needs a temporary file for the entry.
        """
        if isinstance(self.output, FileOutput):
            return self._add_in_place(blob, choose_name, self.output)
        return self._add_via_spool(blob, choose_name)

    def write_end(self) -> None:
        """Write the end mark."""
        self.output.write(END_OF_ARCHIVE)

    @contextlib.contextmanager
    def roll_back_on_failure(self) -> Iterator[None]:
        """Remove what the block wrote if the block raises and the output allows that.

        Corrupt bytes are removed from the partial file. Bytes of an interrupted transfer stay, so that a later run can
        resume.
        """
        if not isinstance(self.output, FileOutput):
            yield
            return
        position = self.output.position()
        try:
            yield
        except IntegrityError:
            self.output.truncate(position)
            raise
        except OcistreamError:
            self.output.rewind(position)
            raise

    def _add_in_place(
        self, blob: NewBlob, choose_name: Callable[[Descriptor], str | None], output: FileOutput
    ) -> Descriptor:
        position = output.position()
        # A later run cannot resume in the middle of an entry of unknown size and digest.
        output.discard()
        with self.roll_back_on_failure():
            output.write(bytes(tarfile.BLOCKSIZE))
            for chunk in blob.open():
                output.write(chunk)
            descriptor = blob.descriptor
        if (name := choose_name(descriptor)) is None:
            output.truncate(position)
        else:
            output.write(padding(descriptor.size))
            output.rewrite(position, build_single_block_header(name, descriptor.size, self._mtime))
        return descriptor

    def _add_via_spool(self, blob: NewBlob, choose_name: Callable[[Descriptor], str | None]) -> Descriptor:
        with _open_spool() as spool:
            for chunk in blob.open():
                files.write_all(spool, chunk)
            descriptor = blob.descriptor
            if (name := choose_name(descriptor)) is not None:
                spool.seek(0)
                self.output.write(build_single_block_header(name, descriptor.size, self._mtime))
                for chunk in read_chunks(spool, descriptor.size):
                    self.output.write(chunk)
                self.output.write(padding(descriptor.size))
        return descriptor


def build_header(name: str, size: int, mtime: int = 0) -> bytes:
    """Return the header of a regular file. Owner, mode and time are fixed, so every machine writes the same bytes.

    `mtime` is in seconds since 1970: `SOURCE_DATE_EPOCH`, or 0. No directory entries are written, for the same reason.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, mtime, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


def build_single_block_header(name: str, size: int, mtime: int) -> bytes:
    """Return a header of one block for any size: one block was reserved before the size was known.

    From 8 GiB on the header has GNU's binary form of numbers, which current tars understand.
    """
    block = build_header(name, size, mtime)
    if len(block) == tarfile.BLOCKSIZE:
        return block
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, mtime, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of an entry of `size` bytes."""
    return bytes(-size % tarfile.BLOCKSIZE)
