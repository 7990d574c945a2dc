"""Write a tar from front to back: entries of known size, and entries whose size is known only at their end.

This module knows nothing of images. `outputs` decides where the bytes go.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import tempfile
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.archive import tar
from ocistream.archive.outputs import ResumableOutput, RewritableOutput
from ocistream.errors import IntegrityError, LocalDiskError, OcistreamError
from ocistream.streams import files
from ocistream.streams.chunks import read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import FileIO

    from ocistream.archive.outputs import Output
    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, NewBlob

__all__ = ["TarWriter"]


_SPOOL_FAILED = "cannot keep a layer in a temporary file"


def _open_spool() -> FileIO:
    """Open a temporary file that has no name.

    Raises:
        LocalDiskError: there is no folder for it.
    """
    try:
        return tempfile.TemporaryFile(buffering=0)
    except FileNotFoundError as error:
        # Python has tried all the usual ones, by writing to them.
        msg = f"{_SPOOL_FAILED}: no folder for temporary files can be written to"
        raise LocalDiskError(msg, hint="set TMPDIR, or write to a file and not to a pipe") from error


@contextlib.contextmanager
def _spool_errors() -> Iterator[None]:
    """Say what goes wrong with the temporary file, which is mostly on another disk than what is read or written.

    Raises:
        LocalDiskError: that disk is full, say.
    """
    try:
        yield
    except OSError as error:
        found = files.disk_error(_SPOOL_FAILED, error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = f"free some space in {tempfile.gettempdir()}, or set TMPDIR to a folder that has some"
            found = LocalDiskError(found.message, hint=hint)
        raise found from error


class TarWriter:
    """One tar, written from the front to the back. `mtime` (seconds since 1970) stands in every entry."""

    def __init__(self, output: Output, mtime: int = 0) -> None:
        """Write to `output`."""
        self._output = output
        self._mtime = mtime

    def add(self, name: str, size: int, chunks: Iterable[Chunk]) -> None:
        """Write an entry of `size` bytes.

        If its chunks raise, it is taken back where that is possible; else it stays short, and the archive without an
        end.
        """
        self._add(name, size, lambda: chunks)

    def add_blob(self, name: str, blob: Blob) -> None:
        """Write an entry as `add` does; what is there of it already is not read again, but for what has to be."""
        if blob.open_at is None and blob.descriptor.size >= limits.MIN_PARTIAL_SIZE:
            # Another run would have to read all of it again.
            self.discard()
        self._add(name, blob.descriptor.size, functools.partial(self._remaining_chunks, blob))

    def _add(self, name: str, size: int, chunks: Callable[[], Iterable[Chunk]]) -> None:
        with self.roll_back_on_failure():
            self._output.write(tar.build_header(name, size, self._mtime))
            for chunk in chunks():
                self._output.write(chunk)
            self._output.write(tar.padding(size))

    def _remaining_chunks(self, blob: Blob) -> Iterator[Chunk]:
        """Pass over what is there of a blob that is about to be written, and give the rest of it."""
        output = self._output
        there = min(output.existing_size(), blob.descriptor.size) if isinstance(output, ResumableOutput) else 0
        if not there or not isinstance(output, ResumableOutput):
            return blob.open()
        held = output.read_existing(there)
        if held is not None and blob.resume is not None:
            output.skip_existing(there)
            return blob.resume(held, there)
        if held is None and blob.open_at is not None:
            output.skip_existing(there)
            return blob.open_at(there)
        # What is written is compared with what is there, or dropped.
        return blob.open()

    @property
    def can_roll_back(self) -> bool:
        """Whether nothing is left of an entry whose chunks raised."""
        return isinstance(self._output, RewritableOutput)

    def add_small(self, name: str, content: bytes) -> None:
        """Write an entry that is held."""
        self._output.write(tar.build_header(name, len(content), self._mtime) + content + tar.padding(len(content)))

    def add_new(self, blob: NewBlob, choose_name: Callable[[Descriptor], str | None]) -> Descriptor:
        """Write an entry whose size is known when all of it has passed; `name` then gives its name, or None to drop it.

        Where the output can be written over, the header is; else the bytes wait in a temporary file until then.
        """
        if isinstance(self._output, RewritableOutput):
            return self._add_in_place(blob, choose_name, self._output)
        return self._add_via_spool(blob, choose_name)

    def finish(self) -> None:
        """Write the end of the archive, and let the output make it visible."""
        self.write_end()
        self._output.finish()

    def write_end(self) -> None:
        """Write the end of the archive."""
        self._output.write(tar.END_OF_ARCHIVE)

    def discard(self) -> None:
        """Keep nothing of it."""
        if isinstance(self._output, RewritableOutput):
            self._output.discard()

    def close(self) -> None:
        """Keep what another run can go on with, and drop what was not finished otherwise."""
        self._output.close()

    @contextlib.contextmanager
    def roll_back_on_failure(self) -> Iterator[None]:
        """Leave nothing of what is written within the block, where that is possible, if the block raises."""
        if not isinstance(self._output, RewritableOutput):
            yield
            return
        position = self._output.position()
        try:
            yield
        except IntegrityError:
            self._output.truncate(position)
            raise
        except OcistreamError:
            self._output.rewind(position)
            raise

    def _add_in_place(
        self, blob: NewBlob, choose_name: Callable[[Descriptor], str | None], output: RewritableOutput
    ) -> Descriptor:
        position = output.position()
        # Nor could another run go on in the middle of what is made anew.
        output.discard()
        with self.roll_back_on_failure():
            output.write(bytes(tar.BLOCK_SIZE))
            for chunk in blob.open():
                output.write(chunk)
            descriptor = blob.descriptor()
        if (called := choose_name(descriptor)) is None:
            output.truncate(position)
        else:
            output.write(tar.padding(descriptor.size))
            output.rewrite(position, tar.build_single_block_header(called, descriptor.size, self._mtime))
        return descriptor

    def _add_via_spool(self, blob: NewBlob, choose_name: Callable[[Descriptor], str | None]) -> Descriptor:
        with _spool_errors(), _open_spool() as spool:
            for chunk in blob.open():
                files.write_all(spool, chunk)
            descriptor = blob.descriptor()
            if (called := choose_name(descriptor)) is not None:
                spool.seek(0)
                self._output.write(tar.build_single_block_header(called, descriptor.size, self._mtime))
                for chunk in read_chunks(spool, descriptor.size):
                    self._output.write(chunk)
                self._output.write(tar.padding(descriptor.size))
        return descriptor
