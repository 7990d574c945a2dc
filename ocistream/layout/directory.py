"""The files of an OCI image layout (image-spec, image-layout.md): `oci-layout`, `index.json` and `blobs/`.

A blob gets its name only after all of it was verified; a caller that relies on an existing blob hashes it again.
Several processes may use one layout at once. This module does not know which image needs which blob.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    LocalDiskError,
    NotFoundError,
    PartialBlobLostError,
    UnsupportedError,
    UsageError,
)
from ocistream.layout.index import OCI_LAYOUT, LayoutIndex, build_index_json, check_layout_file, parse_index_json
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, is_digest, parse_digest
from ocistream.streams import files, partial_files, paths
from ocistream.streams.chunks import Chunk, read_chunks, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from io import FileIO
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.partial_files import PartialFile
    from ocistream.transfer.interfaces import Blob, NewBlob

__all__ = [
    "BlobDirectory",
    "LayoutDirectory",
    "reject_symlink",
    "require_regular_file",
]


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


class LayoutDirectory(BlobDirectory):
    """The directory itself: blobs by digest, and `index.json` under a lock. Safe for several processes at once."""

    def exists(self) -> bool:
        """Say whether there is a layout here: an `oci-layout`, or at least an `index.json`."""
        return paths.exists(self.path / "oci-layout") or paths.exists(self.path / "index.json")

    def check_usable(self) -> None:
        """Make sure that the directory, if it is there, is a layout or may become one.

        Raises:
            UsageError: there are other things in it.
            ArchiveError: what there is of a layout is malformed, of a version that is not known, or a link.
            LocalDiskError: it is no directory, or cannot be read.
        """
        with files.disk_errors(f"cannot create the layout {self.path}"):
            if not paths.exists(self.path):
                return
            # In this order: what another process is making a layout of may become one between the two.
            others = [entry.name for entry in self.path.iterdir() if not _is_layout_file(entry.name)]
            if others and not self.exists():
                msg = f"{self.path} is not empty and not an OCI layout"
                raise UsageError(msg, hint="name an empty or a new directory")
        for algorithm in DIGEST_HEX_LENGTHS:
            self.algorithm_directory(algorithm)
        self._check_marker()
        self.list_entries()

    def create(self) -> None:
        """Make the directory a layout without images, unless it is one.

        Raises:
            UsageError: there are other things in the directory.
            ArchiveError: something of it is a link.
            LocalDiskError: it cannot be made.
        """
        self.check_usable()
        with files.disk_errors(f"cannot create the layout {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            reject_symlink(self.path / "blobs").mkdir(exist_ok=True)
            marker = reject_symlink(self.path / "oci-layout")
            if not paths.exists(marker):
                with files.atomic_file(marker) as file:
                    files.write_all(file, OCI_LAYOUT)

    def check(self) -> None:
        """Make sure that there is a layout to read.

        Raises:
            NotFoundError: there is none.
            ArchiveError: its version is not known.
        """
        if not paths.is_directory(self.path):
            if paths.exists(self.path):
                msg, hint = f"{self.path} is no directory", "name the directory that has the index.json"
            else:
                hint = "is the path right? a relative one begins in the folder that you are in"
                msg = f"{self.path}: no such directory"
            raise NotFoundError(msg, hint=hint)
        if not paths.exists(self.path / "index.json"):
            msg = f"{self.path} is not an OCI layout: it has no index.json"
            hint = "name the directory that `ocistream pull -o DIR/` or `skopeo copy ... oci:DIR` has written"
            raise ArchiveError(msg, hint=hint)
        self._check_marker()

    def _check_marker(self) -> None:
        marker = self.path / "oci-layout"
        # Some tools leave `oci-layout` away; the index is what counts.
        with (
            files.disk_errors(f"cannot read {marker}"),
            contextlib.suppress(FileNotFoundError),
            require_regular_file(f"{marker}"),
        ):
            raw = files.read_bounded(marker, limits.MAX_LAYOUT_FILE)
            with _add_layout_to_errors(self.path):
                check_layout_file(raw)

    def list_entries(self) -> list[Descriptor]:
        """Give what `index.json` lists; nothing where there is none yet.

        Raises:
            ArchiveError: it is malformed, or a link.
            LocalDiskError: it cannot be read.
        """
        return self.read_index().entries

    def read_index(self) -> LayoutIndex:
        """Give what `index.json` says; nothing where there is none yet.

        Raises:
            ArchiveError: it is malformed, or a link.
            LocalDiskError: it cannot be read.
        """
        return self.parse_index(self.read_raw_index())

    @property
    def index_path(self) -> Path:
        """The path of `index.json`."""
        return self.path / "index.json"

    def read_raw_index(self) -> bytes | None:
        """Return the bytes of `index.json`, or None if the file does not exist.

        Raises:
            ArchiveError: it is a link.
            LocalDiskError: it cannot be read.
        """
        with files.disk_errors(f"cannot read {self.index_path}"), require_regular_file(f"{self.index_path}"):
            try:
                return files.read_bounded(self.index_path, limits.MAX_MANIFEST)
            except FileNotFoundError:
                return None

    def parse_index(self, raw: bytes | None) -> LayoutIndex:
        """Return what the bytes of an `index.json` say.

        Raises:
            ArchiveError: they are malformed.
        """
        with _add_layout_to_errors(self.path):
            return parse_index_json(raw) if raw is not None else LayoutIndex([], {})

    def check_index_size(self, entries: int, size: int) -> None:
        """Make sure that an `index.json` of so many entries and bytes can be read again.

        Raises:
            UnsupportedError: it has too many of either.
        """
        limit = None
        if size > limits.MAX_MANIFEST:
            limit = f"{limits.MAX_MANIFEST} bytes"
        elif entries > limits.MAX_LIST_ENTRIES:
            limit = f"{limits.MAX_LIST_ENTRIES} entries"
        if limit is not None:
            msg = f"{self.index_path} would be larger than {limit}"
            raise UnsupportedError(msg, hint="use another layout, or drop images from this one")

    def change_index(self, change: Callable[[list[Descriptor]], Sequence[Descriptor]]) -> None:
        """Replace the entries of `index.json` by what `change` makes of them, while no other process of ours does.

        Raises:
            ArchiveError: the present one is malformed.
            UnsupportedError: the new one would be so large that nobody would read it.
            LocalDiskError: it cannot be written.
        """
        self.change_index_and_annotations(change, None)

    def change_index_and_annotations(
        self,
        change: Callable[[list[Descriptor]], Sequence[Descriptor]],
        change_annotations: Callable[[Mapping[str, str]], Mapping[str, str]] | None,
    ) -> None:
        """Do as `change_index` does, and replace our annotations of the whole index by what `note` makes of them.

        Without `note` the annotations stay.

        Raises:
            ArchiveError, UnsupportedError, LocalDiskError: as `change_index`.
        """
        with self.lock_index():
            before = self.read_raw_index()
            entries, notes = self.parse_index(before)
            changed = change(entries)
            raw = build_index_json(
                changed, before, annotations=change_annotations(notes) if change_annotations is not None else None
            )
            self.check_index_size(len(changed), len(raw))
            self.sync_blobs()
            with files.atomic_file(self.index_path) as file:
                files.write_all(file, raw)

    @contextlib.contextmanager
    def lock_index(self) -> Iterator[None]:
        """Keep other processes of ours from changing `index.json` within the block.

        Raises:
            LocalDiskError: another process keeps the lock, or the block raises an `OSError`.
        """
        with files.disk_errors(f"cannot write {self.index_path}"), files.locked_directory(self.path):
            yield

    def sync_blobs(self) -> None:
        """Make the names of blobs durable, before an `index.json` that names them is written."""
        for folder in (self.path / "blobs").glob("sha*"):
            files.sync_directory(folder)


@contextlib.contextmanager
def _add_layout_to_errors(layout: Path) -> Iterator[None]:
    """Say in which layout a document is malformed."""
    try:
        yield
    except ArchiveError as error:
        msg = f"{layout}: {error.message}"
        raise ArchiveError(msg, hint=error.hint) from error


def _is_layout_file(name: str) -> bool:
    """Say whether a directory with an entry of this name may still become a layout: `blobs`, or a partial file."""
    return name == "blobs" or (name.startswith(".") and name.endswith(files.PARTIAL_SUFFIX))
