"""The files of an OCI image layout (image-spec, image-layout.md): `oci-layout`, `index.json` and `blobs/`.

A blob gets its name only after all its bytes were verified. A caller that relies on an existing blob hashes it again.
Several processes may use one layout at once. This module does not know which image needs which blob.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING, Final

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
from ocistream.layout.index import OCI_LAYOUT, LayoutIndex, build_index_json, check_layout_file, parse_entries
from ocistream.oci.packed_descriptors import PackedDescriptors
from ocistream.oci.reference import DIGEST_HEX_LENGTHS, is_digest, parse_digest
from ocistream.streams import files, partial_files, paths
from ocistream.streams.chunks import Chunk, read_all, read_chunks, verify_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from io import FileIO
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.strict_json import ByteSource
    from ocistream.streams.partial_files import PartialFile
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob

#: Pieces of an index that are written by one system call.
_PIECES_PER_WRITE: Final = 256
_DAMAGED_INDEX_HINT: Final = "the layout is damaged: restore its index.json, or pull the images into a new directory"


class BlobDirectory:
    """The `blobs/` directory of one layout. Safe for several processes at once."""

    def __init__(self, path: Path) -> None:
        """Take the directory of the layout. Nothing is read or created yet."""
        self.path = path
        self._blobs = path / "blobs"
        # A manifest may list ten thousand blobs, and pathlib takes longer to join a path than the kernel to look it up.
        self._folders = {algorithm: self._blobs / algorithm for algorithm in DIGEST_HEX_LENGTHS}

    def blob_path(self, digest: str) -> Path:
        """Return the path of a blob. Symbolic links out of the layout are refused.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
        """
        parsed = parse_digest(digest)
        return self.algorithm_directory(parsed.algorithm) / parsed.hex

    def _locate(self, digest: str) -> str:
        """Return the path of a blob that is only read, as `blob_path`.

        No `Path`: it interns its parts by `sys.intern`. The table of these strings grows with each blob, and Python
        3.12 keeps the strings forever. Clients of `serve` may ask for any number of digests.
        """
        parsed = parse_digest(digest)
        return os.path.join(self.algorithm_directory(parsed.algorithm), parsed.hex)  # noqa: PTH118 - see above

    def algorithm_directory(self, algorithm: str) -> Path:
        """Return the directory for the blobs of one algorithm ("sha256", "sha512"). It may not exist yet.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
        """
        reject_symlink(self._blobs)
        return reject_symlink(self._folders[algorithm])

    def list_blobs(self) -> Iterator[str]:
        """Yield the digests that directory entries are named after. The entries may be files, links or directories."""
        with files.disk_errors(f"cannot read {self.path / 'blobs'}"):
            for algorithm in ("sha256", "sha512"):
                folder = self.algorithm_directory(algorithm)
                names = sorted(entry.name for entry in folder.iterdir()) if paths.is_directory(folder) else []
                yield from (digest for name in names if is_digest(digest := f"{algorithm}:{name}"))

    def list_foreign_files(self) -> Iterator[str]:
        """Yield entries below `blobs/` that are not blobs, as paths in the layout. Unfinished files are not listed."""
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
                    if not is_blob and not entry.name.endswith(partial_files.PARTIAL_SUFFIX):
                        yield f"blobs/{folder.name}/{entry.name}"

    def blob_size(self, digest: str) -> int | None:
        """Return the size in bytes of a blob that exists as a regular file, or None.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
            LocalDiskError: the blob cannot be checked.
        """
        status = self.blob_status(digest)
        return None if status is None else status.st_size

    def blob_status(self, digest: str) -> os.stat_result | None:
        """Return the file status of a blob that exists as a regular file, or None.

        Raises:
            ArchiveError, LocalDiskError: as `blob_size`.
        """
        with files.disk_errors(f"cannot read the blob {digest} in {self.path}"):
            try:
                status = os.lstat(self._locate(digest))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status if stat.S_ISREG(status.st_mode) else None

    def open_blob(self, digest: str) -> FileIO:
        """Open a blob for unbuffered reading.

        Raises:
            NotFoundError: the blob does not exist.
            ArchiveError: the blob is a link or something else that is not a regular file.
            LocalDiskError: the blob cannot be read.
        """
        what = f"the blob {digest} in {self.path}"
        with files.disk_errors(f"cannot read {what}"), require_regular_file(what):
            return files.open_for_reading(self._locate(digest))

    def blob_chunks(self, digest: str, size: int, offset: int = 0) -> Iterator[Chunk]:
        """Yield a blob as unverified chunks from byte `offset`. If it is longer than `size`, one more byte follows."""
        with self.open_blob(digest) as file, files.disk_errors(f"cannot read the blob {digest} in {self.path}"):
            file.seek(offset)
            yield from read_chunks(file, size - offset)
            if file.read(1):
                yield b"\0"

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a small blob, verified.

        Raises:
            NotFoundError, ArchiveError, LocalDiskError: as `open_blob`.
            IntegrityError: the bytes do not match the descriptor.
        """
        chunks = self.blob_chunks(descriptor.digest, descriptor.size)
        return b"".join(bytes(chunk) for chunk in verify_chunks(chunks, descriptor))

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether a complete blob exists: its size and its hash are right. If so, it is touched.

        Hashing costs less than a wrong layer, and exit code 0 promises that all content is verified.
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
        """Set a blob's mtime, by which `gc` finds the least recently used blobs. Errors are ignored.

        The access time is of no use: most file systems are mounted so that reading does not set it.
        """
        with contextlib.suppress(OSError, LocalDiskError):
            os.utime(self._locate(digest), follow_symlinks=False)

    def lock_blobs(self) -> int | None:
        """Take a shared lock that tells `gc` that images are being added. Closing the file descriptor releases it."""
        return files.acquire_shared_lock(self.path / "blobs")

    def is_being_written(self) -> bool:
        """Return whether images are being added. They may need blobs that no image in the index needs yet."""
        return files.is_locked(self.path / "blobs")

    def write_blob(self, digest: str, verified_chunks: Iterable[Chunk]) -> None:
        """Store a blob from verified chunks. The file gets its name after the last chunk.

        Raises:
            LocalDiskError: the disk is full or read-only, or the path cannot be written.
        """
        path = self.blob_path(digest)
        with files.disk_errors(f"cannot write the blob {digest} in {self.path}"):
            # Without parents: a deleted layout must not be created again.
            path.parent.mkdir(exist_ok=True)
            with files.atomic_file_named_later(path.parent, path.name, durable=False) as (file, name):
                writer = files.WritebackWriter(file)
                for chunk in verified_chunks:
                    writer.write(chunk)
                name(path)

    def store_blob(self, blob: VerifiedBlob) -> None:
        """Store a blob; a partial file of an earlier run is resumed, and must have the bytes before `blob.start`."""
        digest = blob.descriptor.digest
        if not blob.start and not blob.is_worth_keeping:
            self.write_blob(digest, blob.open())
            return
        path = self.blob_path(digest)
        with files.disk_errors(f"cannot write the blob {digest} in {self.path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.resumable_file(path, durable=False) as partial:
                remaining = self._remaining_chunks(blob, partial)
                writer = files.WritebackWriter(partial.file)
                for chunk in remaining:
                    writer.write(chunk)

    def find_partial_size(self, digest: str) -> int:
        """Return the size in bytes of a blob's partial file, or 0 if it does not exist."""
        try:
            status = partial_files.resumable_path(self.blob_path(digest)).lstat()
        except (OSError, LocalDiskError):
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    @staticmethod
    def _remaining_chunks(blob: VerifiedBlob, partial: PartialFile) -> Iterator[Chunk]:
        """Seek to the end of the partial file, and return the remaining chunks of the blob."""
        file, size = partial.file, blob.descriptor.size
        partial_size = min(partial.size(), size) if blob.can_resume else 0
        if partial_size < blob.start:
            msg = f"{blob.descriptor.digest}: only {partial_size} of {blob.start} stored bytes are left"
            raise PartialBlobLostError(msg, hint="re-run the command to send the complete blob")
        file.truncate(partial_size)
        file.seek(partial_size)
        if not partial_size:
            return blob.open()
        return blob.open(partial_size, read_chunks(files.OffsetReader(file.fileno(), 0), partial_size))

    def remove_stale(
        self, older_than: float | None = None, *, include_uploads: bool = False, dry_run: bool = False
    ) -> list[int]:
        """Delete files of killed processes that cannot be resumed, and partial files of blobs that exist.

        With `older_than`, partial blobs without progress for that many seconds are deleted too. With `include_uploads`,
        uploads of a killed `serve` are deleted. Return the sizes in bytes of the files that are, or with `dry_run`
        would be, deleted.
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

            deleted = partial_files.remove_stale(folder, is_useless, dry_run=dry_run)
            if older_than is not None:
                deleted |= partial_files.remove_stale(folder, is_left, older_than=older_than, dry_run=dry_run)
            sizes += deleted.values()
        return sizes

    def write_new_blob(self, blob: NewBlob) -> Descriptor:
        """Store a blob whose digest is known only after its last byte. Return its descriptor."""
        folder = self.algorithm_directory("sha256")
        with files.disk_errors(f"cannot write a blob in {self.path}"):
            folder.mkdir(parents=True, exist_ok=True)
            with files.atomic_file_named_later(folder, durable=False) as (file, name):
                for chunk in blob.open():
                    files.write_all(file, chunk)
                descriptor = blob.descriptor
                name(self.blob_path(descriptor.digest))
        return descriptor

    def delete_blob(self, digest: str) -> None:
        """Delete a blob. The caller must know that no image needs it.

        Raises:
            NotFoundError: the blob does not exist.
            LocalDiskError: the blob cannot be deleted.
        """
        with files.disk_errors(f"cannot delete the blob {digest} in {self.path}"):
            self.blob_path(digest).unlink()


def reject_symlink(path: Path) -> Path:
    """Return the path if it is not a symbolic link. It need not exist."""
    if paths.is_link(path):
        msg = f"{path} is a symbolic link, which is not followed out of a layout"
        raise ArchiveError(msg)
    return path


@contextlib.contextmanager
def require_regular_file(what: str) -> Iterator[None]:
    """Convert errors of opening a link, or something else that is not a file, to an ArchiveError."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EINVAL}:
            msg = f"{what} is not a regular file"
            raise ArchiveError(msg) from error
        raise


class LayoutDirectory(BlobDirectory):
    """A layout directory: blobs by digest, and `index.json` under a lock. Safe for several processes at once."""

    def exists(self) -> bool:
        """Return whether the directory is a layout: it has an `oci-layout`, or at least an `index.json`."""
        return paths.exists(self.path / "oci-layout") or paths.exists(self.path / "index.json")

    def is_being_created(self) -> bool:
        """Return whether the first images of the layout are being added, so that it has no index yet."""
        return self.exists() and not paths.exists(self.index_path) and self.is_being_written()

    def check_usable(self) -> None:
        """Check that the directory, if it exists, is a layout or may become one."""
        with files.disk_errors(f"cannot create the layout {self.path}"):
            if not paths.exists(self.path):
                return
            # List first, then check: another process may create the layout between the two.
            others = [entry.name for entry in self.path.iterdir() if not _is_layout_file(entry.name)]
            if others and not self.exists():
                msg = f"{self.path} is not empty and not an OCI layout"
                raise UsageError(
                    msg, hint="name an empty or new directory, or a layout that `ocistream pull -o DIR/` wrote"
                )
        for algorithm in DIGEST_HEX_LENGTHS:
            self.algorithm_directory(algorithm)
        self._check_marker()
        with self.open_index() as raw:
            self.parse_entries(raw, lambda _: None)

    def create(self) -> None:
        """Make the directory a layout without images, unless it is one.

        Raises:
            UsageError: the directory has other contents.
            ArchiveError: a part of the layout is a link.
            LocalDiskError: the layout cannot be created.
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
        """Check that the directory is a layout that can be read.

        Raises:
            NotFoundError: the directory does not exist.
            ArchiveError: the directory is not a layout, or has an unknown version.
        """
        if not paths.is_directory(self.path):
            if paths.exists(self.path):
                msg, hint = f"{self.path} is not a directory", "name the directory that has the index.json"
            else:
                hint = "check the path; relative paths start at the current directory"
                msg = f"{self.path}: no such directory"
            raise NotFoundError(msg, hint=hint)
        if not paths.exists(self.path / "index.json"):
            if self.exists():
                msg = f"{self.path} is an unfinished OCI layout: it has no index.json"
                raise ArchiveError(msg, hint="re-run the command that writes it, such as `ocistream pull`, to resume")
            msg = f"{self.path} is not an OCI layout: it has no index.json"
            hint = "name a directory that `ocistream pull -o DIR/` or `skopeo copy ... oci:DIR` wrote"
            raise ArchiveError(msg, hint=hint)
        self._check_marker()

    def _check_marker(self) -> None:
        marker = self.path / "oci-layout"
        # Some tools do not write `oci-layout`; `index.json` is what matters.
        with (
            files.disk_errors(f"cannot read {marker}"),
            contextlib.suppress(FileNotFoundError),
            require_regular_file(f"{marker}"),
        ):
            with files.open_for_reading(marker) as file:
                # A longer result shows that the file is too large.
                raw = read_all(read_chunks(file, limits.MAX_LAYOUT_FILE + 1))
            with _add_layout_to_errors(self.path):
                check_layout_file(raw)

    def read_index(self) -> LayoutIndex:
        """Return the contents of `index.json`, or an empty index if the file does not exist.

        Raises:
            ArchiveError: the file is malformed, or a link.
            LocalDiskError: the file cannot be read.
        """
        entries = PackedDescriptors()
        with self.open_index() as raw:
            return LayoutIndex(entries, self.parse_entries(raw, entries.append))

    @property
    def index_path(self) -> Path:
        """The path of `index.json`."""
        return self.path / "index.json"

    @contextlib.contextmanager
    def open_index(self) -> Iterator[files.FilePart | None]:
        """Open `index.json` within the block; None if the file does not exist. Only its parts are ever in memory.

        Raises:
            ArchiveError: the file is a link.
            LocalDiskError: the file cannot be read.
        """
        with files.disk_errors(f"cannot read {self.index_path}"), contextlib.ExitStack() as stack:
            part = None
            with contextlib.suppress(FileNotFoundError), require_regular_file(f"{self.index_path}"):
                file = stack.enter_context(files.open_for_reading(self.index_path))
                part = files.FilePart(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            yield part

    def parse_entries(self, raw: ByteSource | None, add: Callable[[Descriptor], object]) -> Mapping[str, str]:
        """Parse an `index.json`, as `layout.index.parse_entries`.

        Raises:
            ArchiveError: the file is malformed.
        """
        with _add_layout_to_errors(self.path, _DAMAGED_INDEX_HINT):
            return parse_entries(raw, add) if raw is not None else {}

    def check_index_size(self, entries: int, size: int) -> None:
        """Check that an `index.json` of this number of entries and bytes can be read again.

        Raises:
            UnsupportedError: the limits allow fewer entries or bytes.
        """
        limit = None
        if size > limits.MAX_MANIFEST:
            limit = f"{limits.MAX_MANIFEST} bytes"
        elif entries > limits.MAX_LIST_ENTRIES:
            limit = f"{limits.MAX_LIST_ENTRIES} entries"
        if limit is not None:
            msg = f"{self.index_path} would be larger than {limit}"
            raise UnsupportedError(msg, hint="use another layout, or remove images from this one")

    def change_index(self, change: Callable[[list[Descriptor]], Sequence[Descriptor]]) -> None:
        """Replace the entries of `index.json` by the result of `change`, under the layout's lock.

        Raises:
            ArchiveError: the existing file is malformed.
            UnsupportedError: the new file would be larger than readers accept.
            LocalDiskError: the file cannot be written.
        """
        with self.lock_index():
            entries: list[Descriptor] = []
            with self.open_index() as previous:
                self.parse_entries(previous, entries.append)
                changed = change(entries)
                raw = build_index_json(changed, previous)
            self.write_index(len(changed), [raw])

    def write_index(self, entries: int, pieces: Iterable[bytes]) -> files.FileState:
        """Replace `index.json` by these pieces, which have so many entries. The caller holds the lock of the index.

        Raises:
            UnsupportedError: the new file would be larger than readers accept.
            LocalDiskError, OSError: the file cannot be written.
        """
        self.sync_blobs()
        remaining, size = iter(pieces), 0
        with files.atomic_file(self.index_path) as file:
            while group := b"".join(itertools.islice(remaining, _PIECES_PER_WRITE)):
                files.write_all(file, group)
                size += len(group)
            self.check_index_size(entries, size)
            return files.file_state(os.fstat(file.fileno()))

    @contextlib.contextmanager
    def lock_index(self) -> Iterator[None]:
        """Lock `index.json` against other processes of ours within the block.

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
def _add_layout_to_errors(layout: Path, hint: str | None = None) -> Iterator[None]:
    """Add the layout's path to errors about its documents, and `hint` to errors without one."""
    try:
        yield
    except ArchiveError as error:
        msg = f"{layout}: {error.message}"
        raise ArchiveError(msg, hint=error.hint or hint) from error


def _is_layout_file(name: str) -> bool:
    """Return whether an entry of this name does not prevent a layout: `blobs`, or a partial file."""
    return name == "blobs" or (name.startswith(".") and name.endswith(partial_files.PARTIAL_SUFFIX))
