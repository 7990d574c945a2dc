"""The stores that the contract is checked with, each in a folder of its own.

`fill` writes images, and `images` and `blobs` read them, without ocistream, so that a defect of a destination cannot
hide behind the same defect of a source.
"""

from __future__ import annotations

import abc
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from tests import registry_http
from tests.archives import blob_name, check_blobs, files_in, index_in, items_of, small_first, tar_of
from tests.contract import adapter
from tests.contract.adapter import Destination, Source
from tests.contract.adapter_types import ReferrerChoice, Wanted
from tests.contract.pipes import Pipe
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor as Document
from tests.images import Layout, digest_of
from tests.volume_archives import TEMPLATE, Cut, read_volumes

REPOSITORY = "made/app"
COSIGN_NAME = "vnd.ocistream.image.name"
REF_NAME = "org.opencontainers.image.ref.name"


def fetched(source: Source, step: int = 1) -> dict[str, bytes]:
    """Read every `step`-th blob, including the early ones."""
    listing = source.list()
    wanted = listing.blobs[::step]
    found = {piece.digest: listing.early[piece.digest] for piece in wanted if piece.digest in listing.early}
    for blob in source.blobs([piece for piece in wanted if piece.digest not in found]):
        assert blob.digest not in found, "a blob was delivered twice"
        found[blob.digest] = blob.content()
    return found


class Store(abc.ABC):
    """One kind of store. Images are named by tags: the last part of an image's full name.

    `close` closes the sources and destinations that are still open.
    """

    #: Whether each blob costs a request.
    is_remote: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()

    @abc.abstractmethod
    def fill(self, layout: Layout) -> None:
        """Write every image of `layout` into the store."""

    @abc.abstractmethod
    def damage(self, digest: str, content: bytes | None) -> None:
        """Replace the bytes of a blob or manifest that `fill` wrote, or remove it."""

    @abc.abstractmethod
    def images(self) -> dict[str, bytes]:
        """Return the manifest bytes of every visible image, by name."""

    @abc.abstractmethod
    def blobs(self) -> set[str]:
        """Return the digests of all visible blobs and manifests, and check their bytes."""

    def layout(self, folder: Path) -> Layout:
        """Return the visible content as a layout, which may be created in `folder`."""
        for name, content in self._layout_files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return Layout(folder)

    def referrers(self, subject: str) -> list[Document]:
        """Return the referrers of a manifest, as listed by `index.json` or the registry."""
        return _referring(self._layout_files(), subject)

    def cosign_tags(self) -> dict[str, str]:
        """Return the digests by tag of cosign; in a layout or archive such an entry is not an image."""
        found = {}
        for entry in index_in(self._layout_files()):
            annotations = entry.get("annotations", {})
            if COSIGN_NAME in annotations:
                assert REF_NAME not in annotations
                found[annotations[COSIGN_NAME].rpartition(":")[2]] = entry["digest"]
        return found

    def _layout_files(self) -> dict[str, bytes]:
        """Return the visible files of the layout."""
        raise NotImplementedError

    @abc.abstractmethod
    def _open_source(self, wanted: Wanted) -> Source: ...

    @abc.abstractmethod
    def _open_destination(self) -> Destination: ...

    def source(self, *platforms: str, asked: bool = True, referrers: ReferrerChoice = "list") -> Source:
        """Open the store to read all its images."""
        source = self._open_source(Wanted(platforms, asked, referrers))
        self._stack.callback(source.close)
        return source

    def destination(self) -> Destination:
        """Open the store to write images."""
        destination = self._open_destination()
        self._stack.callback(destination.close)
        return destination

    def close(self) -> None:
        """Close everything that was opened."""
        self._stack.close()


class LayoutStore(Store):
    """A layout directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "layout"

    def fill(self, layout: Layout) -> None:
        for name, content in items_of(layout):
            (self._path / name).parent.mkdir(parents=True, exist_ok=True)
            (self._path / name).write_bytes(content or b"")

    def damage(self, digest: str, content: bytes | None) -> None:
        path = self._path / blob_name(digest)
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    def layout(self, folder: Path) -> Layout:  # noqa: ARG002 - it is one
        return Layout(self._path)

    def _open_source(self, wanted: Wanted) -> Source:
        return adapter.layout_source(self._path, wanted)

    def _open_destination(self) -> Destination:
        return adapter.layout_destination(self._path)

    def images(self) -> dict[str, bytes]:
        return _named(self._files())

    def blobs(self) -> set[str]:
        return check_blobs(self._files())

    def _layout_files(self) -> dict[str, bytes]:
        return self._files()

    def _files(self) -> dict[str, bytes]:
        files = [path for path in self._path.rglob("*") if path.is_file()]
        return {str(path.relative_to(self._path)): path.read_bytes() for path in files}


class ArchiveFileStore(Store):
    """A tar file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "images.tar"
        self._items: dict[str, bytes | None] = {}

    def fill(self, layout: Layout) -> None:
        self._items = dict(items_of(layout))
        self._write()

    def damage(self, digest: str, content: bytes | None) -> None:
        if content is None:
            del self._items[blob_name(digest)]
        else:
            self._items[blob_name(digest)] = content
        self._write()

    def _open_source(self, wanted: Wanted) -> Source:
        return adapter.archive_source(self._path, wanted)

    def _open_destination(self) -> Destination:
        return adapter.archive_destination(self._path)

    def images(self) -> dict[str, bytes]:
        return _named(files_in(self._path.read_bytes())) if self._path.exists() else {}

    def blobs(self) -> set[str]:
        return check_blobs(files_in(self._path.read_bytes())) if self._path.exists() else set()

    def _layout_files(self) -> dict[str, bytes]:
        return files_in(self._path.read_bytes())

    def _write(self) -> None:
        self._path.write_bytes(tar_of(self._items.items()))


class VolumesStore(Store):
    """Three volumes with some blobs cut into parts. Written volumes have three times the smallest size."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder / "volumes"
        self._folder.mkdir()
        self._cut: Cut | None = None

    def fill(self, layout: Layout) -> None:
        self._cut = Cut(layout, 3)
        for number, (name, content) in enumerate(items_of(layout)):
            if not name.startswith("blobs/"):
                continue
            digest = name.removeprefix("blobs/").replace("/", ":")
            self._cut.whole[digest] = number % 3
            size = len(content or b"")
            if number % 2 and size > 2:
                self._cut.pieces[digest] = [(0, 0, 1), (1, 1, size // 2), (2, 1 + size // 2, size - 1 - size // 2)]
        self._cut.write(self._folder)

    def damage(self, digest: str, content: bytes | None) -> None:
        assert self._cut is not None
        self._cut.damaged[digest] = content
        self._cut.write(self._folder)

    def _open_source(self, wanted: Wanted) -> Source:
        return adapter.volumes_source(sorted(self._folder.glob("*.tar"), reverse=True), wanted)

    def _open_destination(self) -> Destination:
        return adapter.volumes_destination(self._folder / TEMPLATE, 3)

    def images(self) -> dict[str, bytes]:
        return _named(self._layout_files()) if self._paths() else {}

    def blobs(self) -> set[str]:
        return check_blobs(self._layout_files()) if self._paths() else set()

    def _layout_files(self) -> dict[str, bytes]:
        return read_volumes(self._paths())

    def _paths(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*.tar") if not path.name.startswith("."))


class PipeStore(Store):
    """A real pipe with a tar whose small files come first."""

    index_last: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._items: dict[str, bytes | None] = {}
        self._pipe = Pipe(self._stack)

    def fill(self, layout: Layout) -> None:
        self._items = dict(items_of(layout) if self.index_last else small_first(layout))

    def damage(self, digest: str, content: bytes | None) -> None:
        if content is None:
            del self._items[blob_name(digest)]
        else:
            self._items[blob_name(digest)] = content

    def _open_source(self, wanted: Wanted) -> Source:
        return adapter.pipe_source(self._pipe.opened_to_read(tar_of(self._items.items())), wanted)

    def _open_destination(self) -> Destination:
        return adapter.pipe_destination(self._pipe.opened_to_write())

    def images(self) -> dict[str, bytes]:
        return _named(self._pipe.whole())

    def blobs(self) -> set[str]:
        return check_blobs(self._pipe.whole())

    def _layout_files(self) -> dict[str, bytes]:
        return self._pipe.whole()


class IndexLastPipeStore(PipeStore):
    """A real pipe with a tar whose names are sorted, so that blobs come before the index."""

    index_last: ClassVar[bool] = True


class RegistryStore(Store):
    """A registry behind a real socket."""

    is_remote: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "registry"
        self._registry = self._stack.enter_context(FaultyRegistry(self._path))

    def fill(self, layout: Layout) -> None:
        for entry in json.loads((layout.path / "index.json").read_bytes())["manifests"]:
            tag = entry.get("annotations", {}).get(REF_NAME)
            registry_http.seed(layout, entry, self._registry.host, REPOSITORY, tag)

    def damage(self, digest: str, content: bytes | None) -> None:
        path = self._path / blob_name(digest)
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    def _open_source(self, wanted: Wanted) -> Source:
        tags = [tag for tag in self._tags() if wanted.referrers == "list" or "-" not in tag]
        return adapter.registry_source([f"{self._repository}:{tag}" for tag in tags], wanted)

    def _open_destination(self) -> Destination:
        return adapter.registry_destination(self._repository)

    def images(self) -> dict[str, bytes]:
        found = {tag: registry_http.manifest(self._registry.host, REPOSITORY, tag) for tag in self._tags()}
        return {tag: raw for tag, raw in found.items() if raw is not None}

    def blobs(self) -> set[str]:
        files = [path for path in (self._path / "blobs").rglob("*") if path.is_file()]
        return check_blobs({str(path.relative_to(self._path)): path.read_bytes() for path in files})

    def referrers(self, subject: str) -> list[Document]:
        _, raw = registry_http.get(self._registry.host, f"/v2/{REPOSITORY}/referrers/{subject}")
        return list(json.loads(raw)["manifests"])

    def cosign_tags(self) -> dict[str, str]:
        return {tag: digest_of(raw) for tag, raw in self.images().items() if tag.endswith((".sig", ".att", ".sbom"))}

    def layout(self, folder: Path) -> Layout:  # noqa: ARG002 - its directory is one
        return Layout(self._path)

    def _tags(self) -> Sequence[str]:
        return registry_http.tags(self._registry.host, REPOSITORY)

    @property
    def _repository(self) -> str:
        return f"{self._registry.host}/{REPOSITORY}"


SOURCES: dict[str, type[Store]] = {
    "layout": LayoutStore,
    "archive-file": ArchiveFileStore,
    "volumes": VolumesStore,
    "archive-pipe": PipeStore,
    "archive-pipe-index-last": IndexLastPipeStore,
    "registry": RegistryStore,
}
#: Destinations that accept blobs before the images are known, and recompressed layers.
DESTINATIONS: dict[str, type[Store]] = {
    "layout": LayoutStore,
    "archive-file": ArchiveFileStore,
    "archive-pipe": PipeStore,
    "registry": RegistryStore,
}
#: The same, and one that must know all sizes first.
ALL_DESTINATIONS: dict[str, type[Store]] = {**DESTINATIONS, "volumes": VolumesStore}


@contextlib.contextmanager
def opened(kind: type[Store], folder: Path) -> Iterator[Store]:
    """Create a store in `folder`, and close it at the end."""
    store = kind(folder)
    try:
        yield store
    finally:
        store.close()


def store_fixture(kinds: dict[str, type[Store]]) -> Callable[..., Iterator[Store]]:
    """Return a fixture: an empty store of each kind."""

    @pytest.fixture(params=kinds)
    def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
        with opened(kinds[request.param], tmp_path / "store") as made:
            yield made

    return store


def way_fixture(ways: Sequence[tuple[str, str]]) -> Callable[..., Iterator[tuple[Store, Store]]]:
    """Return a fixture: for each way an empty store to read from and one to write to."""

    @pytest.fixture(params=ways, ids="-to-".join)
    def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
        source, destination = request.param
        with (
            opened(SOURCES[source], tmp_path / "from") as origin,
            opened(ALL_DESTINATIONS[destination], tmp_path / "store") as made,
        ):
            yield origin, made

    return way


def _referring(files: dict[str, bytes], subject: str) -> list[Document]:
    found = []
    for entry in index_in(files):
        about = json.loads(files[blob_name(entry["digest"])]).get("subject", {})
        if about.get("digest") == subject:
            found.append(entry)
    return found


def _named(files: dict[str, bytes]) -> dict[str, bytes]:
    if "index.json" not in files:
        return {}
    entries = [entry for entry in index_in(files) if REF_NAME in entry.get("annotations", {})]
    found = {entry["annotations"][REF_NAME]: files[blob_name(entry["digest"])] for entry in entries}
    for entry in entries:
        assert digest_of(files[blob_name(entry["digest"])], entry["digest"].partition(":")[0]) == entry["digest"]
    return found
