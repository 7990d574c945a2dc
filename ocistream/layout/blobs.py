"""The blobs of a layout (image-spec, image-layout.md): files under `blobs/`, named by their digests, whole or begun.

A file gets its name when all of it is there and was verified. What lies under one is what it is called, or so we hope:
who relies on it hashes it again. It is not known here which image needs what; that is for `index.json` to say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, LocalDiskError, PartialBlobLostError
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, is_digest, parse_digest
from ocistream.streams import files, partial_files, paths
from ocistream.streams.chunks import Chunk, read_chunks, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.partial_files import PartialFile
    from ocistream.transfer.interfaces import Blob, NewBlob

__all__ = ["BlobDirectory", "reject_symlink", "require_regular_file"]


class BlobDirectory:
    """The folders below `blobs/` of one layout. Safe for several processes at once."""

    def __init__(self, path: Path) -> None:
        """Name the directory of the layout; nothing is touched yet."""
        self.path = path

    def blob_path(self, digest: str) -> Path:
        """Give the path of a blob, after making sure that no symbolic link leads out of the layout on the way.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
        """
        parsed = parse_digest(digest)
        return self.algorithm_directory(parsed.algorithm) / parsed.hex

    def algorithm_directory(self, algorithm: str) -> Path:
        """Give the directory of the blobs of one algorithm ("sha256", "sha512"), which may not be there yet.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
        """
        return reject_symlink(reject_symlink(self.path / "blobs") / algorithm)

    def list_blobs(self) -> Iterator[str]:
        """List the digests under which something lies there, whatever else there is."""
        with files.disk_errors(f"cannot read {self.path / 'blobs'}"):
            for algorithm in ("sha256", "sha512"):
                folder = self.algorithm_directory(algorithm)
                names = sorted(entry.name for entry in folder.iterdir()) if paths.is_directory(folder) else []
                yield from (digest for name in names if is_digest(digest := f"{algorithm}:{name}"))

    def list_foreign_files(self) -> Iterator[str]:
        """List what lies where only blobs do and is none, by its path within the layout; unfinished files are not."""
        top = self.path / "blobs"
        with files.disk_errors(f"cannot read {top}"):
            for folder in sorted(top.iterdir()) if paths.is_directory(top) else ():
                if not paths.is_directory(folder) or paths.is_link(folder):
                    yield f"blobs/{folder.name}"
                    continue
                for entry in sorted(folder.iterdir()):
                    is_blob = (
                        is_digest(f"{folder.name}:{entry.name}") and paths.is_file(entry) and not paths.is_link(entry)
                    )
                    if not is_blob and not entry.name.endswith(files.PARTIAL_SUFFIX):
                        yield f"blobs/{folder.name}/{entry.name}"

    def blob_size(self, digest: str) -> int | None:
        """Give the size in bytes of a blob that is there as a regular file, or None.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
            LocalDiskError: it cannot be looked at.
        """
        status = self.blob_status(digest)
        return None if status is None else status.st_size

    def blob_status(self, digest: str) -> os.stat_result | None:
        """Return what the file system says of a blob that exists as a regular file, or None.

        Raises:
            ArchiveError, LocalDiskError: as `blob_size`.
        """
        with files.disk_errors(f"cannot read the blob {digest} in {self.path}"):
            try:
                parsed = parse_digest(digest)
                # No `Path`: it keeps each of its words by `sys.intern`, and Python 3.12 keeps those for ever. Strangers
                # may ask for any number.
                status = os.lstat(os.path.join(self.algorithm_directory(parsed.algorithm), parsed.hex))  # noqa: PTH118
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status if stat.S_ISREG(status.st_mode) else None

    def open_blob(self, digest: str) -> FileIO:
        """Open a blob for reading, unbuffered.

        Raises:
            NotFoundError: it is not there.
            ArchiveError: it is a link or something else that is no regular file.
            LocalDiskError: it cannot be read.
        """
        what = f"the blob {digest} in {self.path}"
        with files.disk_errors(f"cannot read {what}"), require_regular_file(what):
            return files.open_for_reading(self.blob_path(digest))

    def blob_chunks(self, digest: str, size: int, offset: int = 0) -> Iterator[Chunk]:
        """Read a blob as unverified chunks, from byte `offset` on; a byte after `size` shows that it is longer.

        Raises:
            NotFoundError, ArchiveError, LocalDiskError: as `open_blob`.
        """
        with self.open_blob(digest) as file, files.disk_errors(f"cannot read the blob {digest} in {self.path}"):
            file.seek(offset)
            yield from read_chunks(file, size - offset)
            if file.read(1):
                yield b"\0"

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Read a small blob whole, and verify it.

        Raises:
            NotFoundError, ArchiveError, LocalDiskError: as `open_blob`.
            IntegrityError: it is not what the descriptor promises.
        """
        chunks = self.blob_chunks(descriptor.digest, descriptor.size)
        return b"".join(bytes(chunk) for chunk in verify_chunks(chunks, descriptor))

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there whole: of the right size, and, read through, of the right digest.

        If so, it is in use from now on.
        """
        if self.blob_size(descriptor.digest) != descriptor.size:
            return False
        self.touch(descriptor.digest)
        try:
            for _ in verify_chunks(self.blob_chunks(descriptor.digest, descriptor.size), descriptor):
                pass
        except IntegrityError:
            return False
        return True

    def touch(self, digest: str) -> None:
        """Note that a blob is of use now, by its file's mtime: `gc` drops by that what nobody has used for long.

        (Most file systems are mounted so that they note no reading.) Whoever may not do it leaves it.
        """
        with contextlib.suppress(OSError, LocalDiskError):
            os.utime(self.blob_path(digest), follow_symlinks=False)

    def lock_blobs(self) -> int | None:
        """Show others that images are being added, until what is given is closed (`streams.files.shared_lock`)."""
        return files.acquire_shared_lock(self.path / "blobs")

    def is_being_written(self) -> bool:
        """Say whether images are being added, which may need blobs that no image in the index does yet."""
        return files.is_locked(self.path / "blobs")

    def write_blob(self, digest: str, verified_chunks: Iterable[Chunk]) -> None:
        """Store a blob whose chunks raise if they are not what they should be; it gets its name at the very end.

        Raises:
            LocalDiskError: the disk is full, read-only, or otherwise in the way.
        """
        path = self.blob_path(digest)
        with files.disk_errors(f"cannot write the blob {digest} in {self.path}"):
            # Without parents: a layout that is gone is not made again.
            path.parent.mkdir(exist_ok=True)
            with files.atomic_file_named_later(path.parent, path.name, durable=False) as (file, name):
                writer = files.WritebackWriter(file)
                for chunk in verified_chunks:
                    writer.write(chunk)
                name(path)

    def store_blob(self, blob: Blob) -> None:
        """Store a verified blob; what an earlier run has left of it is gone on with.

        Raises:
            LostBeginningError: its source is without the beginning, and so much of it is not here.
            LocalDiskError: the disk is full, read-only, or otherwise in the way.
        """
        digest, size = blob.descriptor.digest, blob.descriptor.size
        if not blob.offset and (blob.open_at is None or size < limits.MIN_PARTIAL_SIZE):
            self.write_blob(digest, blob.open())
            return
        path = self.blob_path(digest)
        with files.disk_errors(f"cannot write the blob {digest} in {self.path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.resumable_file(path, durable=False) as partial:
                rest = self._remaining_chunks(blob, partial)
                writer = files.WritebackWriter(partial.file)
                for chunk in rest:
                    writer.write(chunk)

    def find_partial_size(self, digest: str) -> int:
        """Say how many bytes an interrupted run has left of a blob, as its file has it; 0 where there is none."""
        try:
            status = partial_files.resumable_path(self.blob_path(digest)).lstat()
        except (OSError, LocalDiskError):
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    @staticmethod
    def _remaining_chunks(blob: Blob, partial: PartialFile) -> Iterator[Chunk]:
        """Go to where a blob is to be written on, and give what is left of it."""
        file, size = partial.file, blob.descriptor.size
        held = 0 if blob.resume is None else min(partial.size(), size)
        if held < blob.offset:
            msg = f"{blob.descriptor.digest}: only {held} bytes of it are there, and {blob.offset} were"
            raise PartialBlobLostError(msg, hint="run the same command again: all of it is sent then")
        file.truncate(held)
        file.seek(held)
        if not held or blob.resume is None:
            return blob.open()
        return blob.resume(read_chunks(files.OffsetReader(file.fileno(), 0), held), held)

    def remove_stale(
        self, older_than: float | None = None, *, include_uploads: bool = False, dry_run: bool = False
    ) -> list[int]:
        """Remove what killed processes have left that is of no use: what nobody can go on with, parts of blobs there.

        With `older_than`, parts of blobs too that nobody has gone on with for so many seconds; with `sessions`, what a
        `serve` that was killed has of uploads. Given are the sizes in bytes of what went, or with `dry_run` would go.
        """
        sizes = [*partial_files.remove_stale(self.path, partial_files.is_temporary_name, dry_run=dry_run).values()]
        for algorithm in DIGEST_HEX_LENGTHS:
            folder = self.algorithm_directory(algorithm)

            def is_part(entry: str, algorithm: str = algorithm) -> bool:
                name = partial_files.target_name(entry)
                return name is not None and is_digest(f"{algorithm}:{name}")

            def is_useless(entry: str, folder: Path = folder) -> bool:
                name = partial_files.target_name(entry)
                return partial_files.is_temporary_name(entry) or (is_part(entry) and paths.exists(folder / f"{name}"))

            def is_left(entry: str) -> bool:
                return is_part(entry) or (include_uploads and partial_files.is_upload_name(entry))

            gone = partial_files.remove_stale(folder, is_useless, dry_run=dry_run)
            if older_than is not None:
                gone |= partial_files.remove_stale(folder, is_left, older_than=older_than, dry_run=dry_run)
            sizes += gone.values()
        return sizes

    def write_new_blob(self, blob: NewBlob) -> Descriptor:
        """Store a blob whose digest is known when all of it has passed, and give its promise.

        Raises:
            LocalDiskError: the disk is full, read-only, or otherwise in the way.
        """
        folder = self.algorithm_directory("sha256")
        with files.disk_errors(f"cannot write a blob in {self.path}"):
            folder.mkdir(parents=True, exist_ok=True)
            with files.atomic_file_named_later(folder, durable=False) as (file, name):
                for chunk in blob.open():
                    files.write_all(file, chunk)
                descriptor = blob.descriptor()
                name(self.blob_path(descriptor.digest))
        return descriptor

    def delete_blob(self, digest: str) -> None:
        """Remove a blob; who needs it is the caller's concern.

        Raises:
            NotFoundError: it is not there.
            LocalDiskError: it cannot be removed.
        """
        with files.disk_errors(f"cannot delete the blob {digest} in {self.path}"):
            self.blob_path(digest).unlink()


def reject_symlink(path: Path) -> Path:
    """Give a path back that is no symbolic link, or not there.

    Raises:
        ArchiveError: it is one.
    """
    if paths.is_link(path):
        msg = f"{path} is a symbolic link, which is not followed out of a layout"
        raise ArchiveError(msg)
    return path


@contextlib.contextmanager
def require_regular_file(what: str) -> Iterator[None]:
    """Say of a link, or of anything else in a file's place, that the layout is malformed."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EINVAL}:
            msg = f"{what} is not a regular file"
            raise ArchiveError(msg) from error
        raise
