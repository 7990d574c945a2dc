"""The directory of an OCI image layout (image-spec, image-layout.md): what makes it one, and its `index.json`.

It knows no images, only what lies where. How its blobs lie there is `layout/blobs.py`'s.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.blobs import BlobDirectory, reject_symlink, require_regular_file
from ocistream.layout.index import OCI_LAYOUT, LayoutIndex, build_index_json, check_layout_file, parse_index_json
from ocistream.oci.reference import DIGEST_HEX_LENGTHS
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor

__all__ = ["LayoutDirectory"]


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
