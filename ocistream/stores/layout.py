"""An OCI image layout in a directory (image-spec, image-layout.md): reading, adding, and the directory itself.

What is in `blobs/` under its final name was verified by whoever wrote it, or so we hope: what a transfer relies on is
hashed again. It may not know where anything came from.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from ocistream import files, limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, UnsupportedError, UsageError
from ocistream.graph import ALL_PLATFORMS, Graph, GraphBuilder, PlatformChoice, Root
from ocistream.interfaces import Blob
from ocistream.reference import parse_digest
from ocistream.stores.index import (
    OCI_LAYOUT,
    Selection,
    entry_for,
    every_image,
    index_json,
    name_of,
    parse_index,
    parse_layout_file,
    roots_of,
)
from ocistream.stream import Chunk, chunks_of, verified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from ocistream.interfaces import Early
    from ocistream.model import Descriptor

__all__ = ["LayoutDirectory", "LayoutSink", "LayoutSource"]


class LayoutDirectory:
    """The directory itself: blobs by digest, and `index.json` under a lock. Safe for several processes at once."""

    def __init__(self, path: Path) -> None:
        """Name the directory; nothing is touched yet."""
        self.path = path

    def exists(self) -> bool:
        """Say whether there is a layout here: an `oci-layout`, or at least an `index.json`."""
        return (self.path / "oci-layout").exists() or (self.path / "index.json").exists()

    def check_free(self) -> None:
        """Make sure that the directory, if it is there, is a layout or may become one.

        Raises:
            UsageError: there are other things in it.
            LocalDiskError: it is no directory, or cannot be read.
        """
        with files.disk_errors(f"cannot create the layout {self.path}"):
            if not self.path.exists():
                return
            # In this order: what another process is making a layout of may become one between the two.
            others = [entry.name for entry in self.path.iterdir() if not _is_ours(entry.name)]
            if others and not self.exists():
                msg = f"{self.path} is not empty and not an OCI layout"
                raise UsageError(msg, hint="name an empty or a new directory")

    def create(self) -> None:
        """Make the directory a layout without images, unless it is one.

        Raises:
            UsageError: there are other things in the directory.
            LocalDiskError: it cannot be made.
        """
        self.check_free()
        with files.disk_errors(f"cannot create the layout {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._real_directory(self.path / "blobs").mkdir(exist_ok=True)
            if not (self.path / "oci-layout").exists():
                with files.atomic_file(self.path / "oci-layout") as file:
                    files.write_all(file, OCI_LAYOUT)

    def check(self) -> None:
        """Make sure that there is a layout to read.

        Raises:
            NotFoundError: there is none.
            ArchiveError: its version is not known.
        """
        if not self.path.is_dir():
            msg = f"{self.path}: no such directory"
            raise NotFoundError(msg)
        if not (self.path / "index.json").exists():
            msg = f"{self.path} is not an OCI layout: it has no index.json"
            raise ArchiveError(msg)
        marker = self.path / "oci-layout"
        # Some tools leave `oci-layout` away; the index is what counts.
        with files.disk_errors(f"cannot read {marker}"), contextlib.suppress(FileNotFoundError), _regular(f"{marker}"):
            parse_layout_file(files.read_bounded(marker, limits.MAX_LAYOUT_FILE))

    def blob_path(self, digest: str) -> Path:
        """Give the path of a blob, after making sure that no symbolic link leads out of the layout on the way.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
        """
        parsed = parse_digest(digest)
        return self.blob_folder(parsed.algorithm) / parsed.hex

    def blob_folder(self, algorithm: str) -> Path:
        """Give the directory of the blobs of one algorithm ("sha256", "sha512"), which may not be there yet.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
        """
        return self._real_directory(self._real_directory(self.path / "blobs") / algorithm)

    def blob_size(self, digest: str) -> int | None:
        """Give the size in bytes of a blob that is there as a regular file, or None.

        Raises:
            ArchiveError: `blobs` or `blobs/<algorithm>` is a link.
            LocalDiskError: it cannot be looked at.
        """
        with files.disk_errors(f"cannot read the blob {digest} in {self.path}"):
            try:
                status = os.lstat(self.blob_path(digest))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open_blob(self, digest: str) -> FileIO:
        """Open a blob for reading, unbuffered.

        Raises:
            NotFoundError: it is not there.
            ArchiveError: it is a link or something else that is no regular file.
            LocalDiskError: it cannot be read.
        """
        what = f"the blob {digest} in {self.path}"
        with files.disk_errors(f"cannot read {what}"), _regular(what):
            return files.open_for_reading(self.blob_path(digest))

    def blob_chunks(self, digest: str, size: int) -> Iterator[Chunk]:
        """Read a blob as unverified chunks; one byte over `size` is read, so that a longer file shows.

        Raises:
            NotFoundError, ArchiveError, LocalDiskError: as `open_blob`.
        """
        with self.open_blob(digest) as file, files.disk_errors(f"cannot read the blob {digest} in {self.path}"):
            yield from chunks_of(file, size)
            if file.read(1):
                yield b"\0"

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """Read a small blob whole, and verify it.

        Raises:
            NotFoundError, ArchiveError, LocalDiskError: as `open_blob`.
            IntegrityError: it is not what the descriptor promises.
        """
        chunks = self.blob_chunks(descriptor.digest, descriptor.size)
        return b"".join(bytes(chunk) for chunk in verified(chunks, descriptor))

    def holds(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there whole: of the right size, and, read through, of the right digest."""
        if self.blob_size(descriptor.digest) != descriptor.size:
            return False
        try:
            for _ in verified(self.blob_chunks(descriptor.digest, descriptor.size), descriptor):
                pass
        except IntegrityError:
            return False
        return True

    def write_blob(self, digest: str, verified_chunks: Iterable[Chunk]) -> None:
        """Store a blob whose chunks raise if they are not what they should be; it gets its name at the very end.

        Raises:
            LocalDiskError: the disk is full, read-only, or otherwise in the way.
        """
        path = self.blob_path(digest)
        with files.disk_errors(f"cannot write the blob {digest} in {self.path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic_file(path) as file:
                for chunk in verified_chunks:
                    files.write_all(file, chunk)

    def delete_blob(self, digest: str) -> None:
        """Remove a blob; who needs it is the caller's concern.

        Raises:
            NotFoundError: it is not there.
            LocalDiskError: it cannot be removed.
        """
        with files.disk_errors(f"cannot delete the blob {digest} in {self.path}"):
            self.blob_path(digest).unlink()

    def entries(self) -> list[Descriptor]:
        """Give what `index.json` lists; nothing where there is none yet.

        Raises:
            ArchiveError: it is malformed, or a link.
            LocalDiskError: it cannot be read.
        """
        raw = self._index()
        return parse_index(raw) if raw is not None else []

    def _index(self) -> bytes | None:
        path = self.path / "index.json"
        with files.disk_errors(f"cannot read {path}"), _regular(f"{path}"):
            try:
                return files.read_bounded(path, limits.MAX_MANIFEST)
            except FileNotFoundError:
                return None

    def change_index(self, change: Callable[[list[Descriptor]], Sequence[Descriptor]]) -> None:
        """Replace `index.json` by what `change` makes of its entries, while no other process of ours does.

        Raises:
            ArchiveError: the present one is malformed.
            UnsupportedError: the new one would be so large that nobody would read it.
            LocalDiskError: it cannot be written.
        """
        path = self.path / "index.json"
        with files.disk_errors(f"cannot write {path}"), files.locked_directory(self.path):
            before = self._index()
            raw = index_json(change(parse_index(before) if before is not None else []), before)
            if len(raw) > limits.MAX_MANIFEST:
                msg = f"{path} would be larger than {limits.MAX_MANIFEST} bytes"
                raise UnsupportedError(msg, hint="use another layout, or drop images from this one")
            with files.atomic_file(path) as file:
                files.write_all(file, raw)

    @staticmethod
    def _real_directory(path: Path) -> Path:
        if path.is_symlink():
            msg = f"{path} is a symbolic link, which is not followed out of a layout"
            raise ArchiveError(msg)
        return path


@contextlib.contextmanager
def _regular(what: str) -> Iterator[None]:
    """Say of a link, or of anything else in a file's place, that the layout is malformed."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EINVAL}:
            msg = f"{what} is not a regular file"
            raise ArchiveError(msg) from error
        raise


def _is_ours(name: str) -> bool:
    """Say whether a directory with an entry of this name may still become a layout: `blobs`, or a partial file."""
    return name == "blobs" or (name.startswith(".") and name.endswith(files.PARTIAL_SUFFIX))


class LayoutSource:
    """Images out of a layout directory."""

    parallel = True

    def __init__(
        self, path: Path, *, select: Selection = every_image, platforms: PlatformChoice = ALL_PLATFORMS
    ) -> None:
        """Open a layout.

        Raises:
            NotFoundError: the directory is not there.
            ArchiveError: it is no layout.
        """
        self._layout = LayoutDirectory(path)
        self._layout.check()
        self._select = select
        self._platforms = platforms

    def graph(self, early: Early) -> Graph:  # noqa: ARG002 - a directory has all its names before its bytes
        """Read `index.json` and every manifest below the chosen images."""
        builder = GraphBuilder(self._platforms)
        for root in self._select(roots_of(self._layout.entries())):
            builder.add_root(root)
        while builder.needs:
            descriptor = next(iter(builder.needs.values()))
            if self._layout.blob_size(descriptor.digest) is None:
                builder.lacks(descriptor.digest)
            else:
                builder.supply(descriptor.digest, self._layout.read_blob(descriptor))
        return builder.graph()

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Give the wanted blobs that are there, in the order in which they are wanted."""
        for descriptor in wanted:
            if self._layout.blob_size(descriptor.digest) is not None:
                yield Blob(descriptor, self._opener(descriptor))

    def close(self) -> None:
        """Nothing is held open."""

    def _opener(self, descriptor: Descriptor) -> Callable[[], Iterator[Chunk]]:
        return lambda: self._layout.blob_chunks(descriptor.digest, descriptor.size)


class LayoutSink:
    """Images into a layout directory, beside those that are there."""

    parallel = True

    def __init__(self, path: Path) -> None:
        """Name the directory; it is made when there is something to put there, and not for an image that is not.

        Raises:
            UsageError: there are other things in the directory.
            LocalDiskError: it is no directory, or cannot be read.
        """
        self._layout = LayoutDirectory(path)
        self._layout.check_free()
        self._created = False

    def begin(self, graph: Graph) -> None:  # noqa: ARG002 - a directory needs to know nothing in advance
        """Make the directory a layout, unless it is one.

        Raises:
            LocalDiskError: it cannot be made.
        """
        self._create()

    def has(self, descriptor: Descriptor) -> bool:
        """Hash what is there under the blob's name; if it is not the blob, it will be written over."""
        return self._layout.holds(descriptor)

    has_manifest = has

    def put(self, blob: Blob) -> None:
        """Write the blob under a temporary name, and rename it once all of it has been verified."""
        if not self._created:
            self._create()
        self._layout.write_blob(blob.descriptor.digest, blob.open())

    def recall(self, descriptor: Descriptor) -> bytes:
        """Read small content back."""
        return self._layout.read_blob(descriptor)

    def commit(self, graph: Graph) -> None:
        """Write the manifests, children first, then `index.json` with the new names in place of their old meaning."""
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            if not self._layout.holds(manifest.descriptor):
                self._layout.write_blob(digest, [manifest.raw])
        self._layout.change_index(lambda entries: merge(entries, graph.roots))

    def close(self) -> None:
        """Nothing is left to drop: a blob that was not finished has gone with its temporary file."""

    def _create(self) -> None:
        self._layout.create()
        self._created = True


def merge(entries: Sequence[Descriptor], roots: Sequence[Root]) -> list[Descriptor]:
    """Add roots to the entries of an index; a name that is there gets its new meaning, the others stay."""
    merged = list(entries)
    for root in roots:
        new = entry_for(root)
        name = name_of(new)
        if name is None:
            merged = [entry for entry in merged if not (name_of(entry) is None and entry.digest == new.digest)]
        else:
            merged = [entry for entry in merged if name_of(entry) != name]
        merged.append(new)
    return merged
