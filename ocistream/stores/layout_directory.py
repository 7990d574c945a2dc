"""The directory of an OCI image layout (image-spec, image-layout.md): what makes it one, and its `index.json`.

It knows no images, only what lies where. How its blobs lie there is `blob_folders.py`'s.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ocistream import files, limits, paths
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError, UsageError
from ocistream.reference import DIGEST_HEX_LENGTHS
from ocistream.stores.blob_folders import BlobFolders, no_link, regular
from ocistream.stores.index import OCI_LAYOUT, Index, index_json, parse_layout_file, read_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.model import Descriptor

__all__ = ["LayoutDirectory"]


class LayoutDirectory(BlobFolders):
    """The directory itself: blobs by digest, and `index.json` under a lock. Safe for several processes at once."""

    def exists(self) -> bool:
        """Say whether there is a layout here: an `oci-layout`, or at least an `index.json`."""
        return paths.exists(self.path / "oci-layout") or paths.exists(self.path / "index.json")

    def check_free(self) -> None:
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
            others = [entry.name for entry in self.path.iterdir() if not _is_ours(entry.name)]
            if others and not self.exists():
                msg = f"{self.path} is not empty and not an OCI layout"
                raise UsageError(msg, hint="name an empty or a new directory")
        for algorithm in DIGEST_HEX_LENGTHS:
            self.blob_folder(algorithm)
        self._check_marker()
        self.entries()

    def create(self) -> None:
        """Make the directory a layout without images, unless it is one.

        Raises:
            UsageError: there are other things in the directory.
            ArchiveError: something of it is a link.
            LocalDiskError: it cannot be made.
        """
        self.check_free()
        with files.disk_errors(f"cannot create the layout {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            no_link(self.path / "blobs").mkdir(exist_ok=True)
            marker = no_link(self.path / "oci-layout")
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
        with files.disk_errors(f"cannot read {marker}"), contextlib.suppress(FileNotFoundError), regular(f"{marker}"):
            raw = files.read_bounded(marker, limits.MAX_LAYOUT_FILE)
            with _found_in(self.path):
                parse_layout_file(raw)

    def entries(self) -> list[Descriptor]:
        """Give what `index.json` lists; nothing where there is none yet.

        Raises:
            ArchiveError: it is malformed, or a link.
            LocalDiskError: it cannot be read.
        """
        return self.index().entries

    def index(self) -> Index:
        """Give what `index.json` says; nothing where there is none yet.

        Raises:
            ArchiveError: it is malformed, or a link.
            LocalDiskError: it cannot be read.
        """
        return self._parsed(self._index())

    def _parsed(self, raw: bytes | None) -> Index:
        with _found_in(self.path):
            return read_index(raw) if raw is not None else Index([], {})

    def _index(self) -> bytes | None:
        path = self.path / "index.json"
        with files.disk_errors(f"cannot read {path}"), regular(f"{path}"):
            try:
                return files.read_bounded(path, limits.MAX_MANIFEST)
            except FileNotFoundError:
                return None

    def change_index(
        self,
        change: Callable[[list[Descriptor]], Sequence[Descriptor]],
        note: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None,
    ) -> None:
        """Replace `index.json` by what `change` makes of its entries, while no other process of ours does.

        `note` does the same with those annotations of the whole index that are ours; without it they stay.

        Raises:
            ArchiveError: the present one is malformed.
            UnsupportedError: the new one would be so large that nobody would read it.
            LocalDiskError: it cannot be written.
        """
        path = self.path / "index.json"
        with files.disk_errors(f"cannot write {path}"), files.locked_directory(self.path):
            # What the index will name is to be there, whenever the power fails.
            for folder in (self.path / "blobs").glob("sha*"):
                files.sync_directory(folder)
            before = self._index()
            entries, notes = self._parsed(before)
            raw = index_json(change(entries), before, notes=note(notes) if note is not None else None)
            if len(raw) > limits.MAX_MANIFEST:
                msg = f"{path} would be larger than {limits.MAX_MANIFEST} bytes"
                raise UnsupportedError(msg, hint="use another layout, or drop images from this one")
            with files.atomic_file(path) as file:
                files.write_all(file, raw)


@contextlib.contextmanager
def _found_in(layout: Path) -> Iterator[None]:
    """Say in which layout a document is malformed."""
    try:
        yield
    except ArchiveError as error:
        msg = f"{layout}: {error.what}"
        raise ArchiveError(msg, hint=error.hint) from error


def _is_ours(name: str) -> bool:
    """Say whether a directory with an entry of this name may still become a layout: `blobs`, or a partial file."""
    return name == "blobs" or (name.startswith(".") and name.endswith(files.PARTIAL_SUFFIX))
