"""The stores that the contract is checked on, each with a place of its own, and what others see there.

`fill` puts images in and `images` and `blobs` look for them without a line of ocistream's stores, so that a mistake
in a sink cannot be hidden by the same mistake in a source.
"""

from __future__ import annotations

import abc
import contextlib
import fcntl
import io
import json
import os
import select
import struct
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from ocistream.attachments import Referrers
from ocistream.errors import UsageError
from ocistream.graph import Graph, Root
from ocistream.interfaces import Blob, Sink, Source
from ocistream.model import Descriptor
from ocistream.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.reference import Reference, parse_reference
from ocistream.stores import Want
from ocistream.stores.archive import ArchiveSink
from ocistream.stores.archive_file import ArchiveFileSource
from ocistream.stores.archive_stream import ArchiveStreamSource
from ocistream.stores.docker_archive import DockerArchiveSink
from ocistream.stores.joined import open_joined
from ocistream.stores.layout import LayoutSink, LayoutSource
from ocistream.stores.outputs import file_output, stream_output
from ocistream.stores.registry import RegistrySink
from ocistream.stores.registry_source import RegistrySource
from ocistream.stores.volume_archive import VolumesSink
from ocistream.stream import Chunk
from tests import registry_http
from tests.archives import END, blob_name, check_blobs, files_in, index_in, items_of, small_first, tar_of
from tests.docker_archives import Saved, archive_of, hex_of, images_in, of_docker, plain_manifest, saved
from tests.images import Descriptor as Document
from tests.images import Layout, digest_of
from tests.network import QuickTransport
from tests.registry import Registry
from tests.volumes import TEMPLATE, Cut, read_volumes

REPOSITORY = "made/app"
HUNG_NAME = "vnd.ocistream.image.name"
REF_NAME = "org.opencontainers.image.ref.name"


class Store(abc.ABC):
    """One kind of place for images. Names are tags: the last part of an image's full name.

    What `source` and `sink` open is closed by `close`, if it was not closed before.
    """

    #: Whether blobs are asked for one by one, over a connection.
    is_remote: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()

    @abc.abstractmethod
    def fill(self, layout: Layout) -> None:
        """Put every image of `layout` in."""

    @abc.abstractmethod
    def damage(self, digest: str, content: bytes | None) -> None:
        """Replace the bytes of a blob or manifest that was put in by `fill`, or remove it."""

    @abc.abstractmethod
    def images(self) -> dict[str, bytes]:
        """Return the manifest's bytes of every image that is visible, by its name."""

    @abc.abstractmethod
    def blobs(self) -> set[str]:
        """Return the digests of all that is visible, after checking that it is what it claims to be."""

    def hanging(self, subject: str) -> list[Document]:
        """Return what refers to a manifest, as an `index.json` or the registry lists it."""
        return _referring(self._files_there(), subject)

    def called(self) -> dict[str, str]:
        """Return what has a tag of cosign's, as digests by the tags; in a layout or archive it is no image."""
        found = {}
        for entry in index_in(self._files_there()):
            annotations = entry.get("annotations", {})
            if HUNG_NAME in annotations:
                assert REF_NAME not in annotations
                found[annotations[HUNG_NAME].rpartition(":")[2]] = entry["digest"]
        return found

    def _files_there(self) -> dict[str, bytes]:
        """Return the files of a layout that is visible."""
        raise NotImplementedError

    @abc.abstractmethod
    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source: ...

    @abc.abstractmethod
    def _open_sink(self) -> Sink: ...

    def source(self, *, platforms: PlatformChoice = ALL_PLATFORMS, referrers: Referrers = "listed") -> Source:
        """Open it to read every image; what hangs on them is one of them, or goes along, or is left."""
        source = self._open_source(platforms, referrers)
        self._stack.callback(source.close)
        return source

    def sink(self) -> Sink:
        """Open it to write."""
        sink = self._open_sink()
        self._stack.callback(sink.close)
        return sink

    def close(self) -> None:
        """Give everything back."""
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

    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source:
        return LayoutSource(self._path, platforms=platforms, referrers=referrers)

    def _open_sink(self) -> Sink:
        return LayoutSink(self._path)

    def images(self) -> dict[str, bytes]:
        return _named(self._files())

    def blobs(self) -> set[str]:
        return check_blobs(self._files())

    def _files_there(self) -> dict[str, bytes]:
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

    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source:
        return ArchiveFileSource(self._path, platforms=platforms, referrers=referrers)

    def _open_sink(self) -> Sink:
        return ArchiveSink(file_output(self._path))

    def images(self) -> dict[str, bytes]:
        return _named(files_in(self._path.read_bytes())) if self._path.exists() else {}

    def blobs(self) -> set[str]:
        return check_blobs(files_in(self._path.read_bytes())) if self._path.exists() else set()

    def _files_there(self) -> dict[str, bytes]:
        return files_in(self._path.read_bytes())

    def _write(self) -> None:
        self._path.write_bytes(tar_of(self._items.items()))


class VolumesStore(Store):
    """Three volumes, of which some blobs go on from one to the next; those that are written are as small as can be."""

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

    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source:
        paths = [(path, str(path)) for path in sorted(self._folder.glob("*.tar"), reverse=True)]
        return open_joined(paths, Want(platforms=platforms, referrers=referrers))

    def _open_sink(self) -> Sink:
        return _SmallVolumesSink(self._folder / TEMPLATE, 1)

    def images(self) -> dict[str, bytes]:
        return _named(self._files_there()) if self._paths() else {}

    def blobs(self) -> set[str]:
        return check_blobs(self._files_there()) if self._paths() else set()

    def _files_there(self) -> dict[str, bytes]:
        return read_volumes(self._paths())

    def _paths(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*.tar") if not path.name.startswith("."))


class _SmallVolumesSink(VolumesSink):
    def begin(self, graph: Graph) -> None:
        with pytest.raises(UsageError) as caught:
            super().begin(graph)
        self._size = int(caught.value.what.split()[-2])
        super().begin(graph)


class _Pipe:
    """A real pipe, with a thread at its other end that writes or reads a tar."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._taken = bytearray()
        self._lock = threading.Lock()
        self._outlet: int | None = None

    def opened_to_read(self, content: bytes) -> io.BufferedReader:
        """Return the end out of which `content` comes."""
        outlet, inlet = os.pipe()
        thread = threading.Thread(target=_feed, args=(inlet, content), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        return io.BufferedReader(io.FileIO(outlet, "rb"))

    def opened_to_write(self) -> io.FileIO:
        """Return the end whose other end `whole` looks at."""
        self._outlet, inlet = os.pipe()
        file = io.FileIO(inlet, "wb")
        thread = threading.Thread(target=self._drain, args=(self._outlet,), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(file.close)
        return file

    def whole(self) -> dict[str, bytes]:
        """Return the files of what came through the pipe, if it has an end: without one it is no archive."""
        while self._outlet is not None:
            with self._lock:
                if not _waiting(self._outlet):
                    taken = bytes(self._taken)
                    return files_in(taken) if taken.endswith(END) else {}
            time.sleep(0.001)
        return {}

    def _drain(self, outlet: int) -> None:
        while True:
            select.select([outlet], [], [])
            with self._lock:
                got = os.read(outlet, 1 << 16)
                self._taken += got
            if not got:
                os.close(outlet)
                return


class PipeStore(Store):
    """A real pipe, with a thread at its other end that writes or reads a tar; everything small comes first."""

    index_last: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._items: dict[str, bytes | None] = {}
        self._pipe = _Pipe(self._stack)

    def fill(self, layout: Layout) -> None:
        self._items = dict(items_of(layout) if self.index_last else small_first(layout))

    def damage(self, digest: str, content: bytes | None) -> None:
        if content is None:
            del self._items[blob_name(digest)]
        else:
            self._items[blob_name(digest)] = content

    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source:
        file = self._pipe.opened_to_read(tar_of(self._items.items()))
        return ArchiveStreamSource(file, platforms=platforms, referrers=referrers)

    def _open_sink(self) -> Sink:
        return ArchiveSink(stream_output(self._pipe.opened_to_write(), "to the pipe"))

    def images(self) -> dict[str, bytes]:
        return _named(self._pipe.whole())

    def blobs(self) -> set[str]:
        return check_blobs(self._pipe.whole())

    def _files_there(self) -> dict[str, bytes]:
        return self._pipe.whole()


class IndexLastPipeStore(PipeStore):
    """A pipe whose tar has its names sorted, so that blobs come before the index."""

    index_last: ClassVar[bool] = True


class RegistryStore(Store):
    """A registry, over a real socket."""

    is_remote: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "registry"
        self._registry = self._stack.enter_context(Registry(self._path))
        self._transport = self._stack.enter_context(QuickTransport())

    def fill(self, layout: Layout) -> None:
        for entry in json.loads((layout.path / "index.json").read_bytes())["manifests"]:
            tag = entry.get("annotations", {}).get(REF_NAME)
            registry_http.seed(layout, entry, self._registry.host, REPOSITORY, tag)

    def damage(self, digest: str, content: bytes | None) -> None:
        path = self._path / blob_name(digest)
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source:
        references = [self._reference(tag) for tag in self._tags() if referrers == "listed" or "-" not in tag]
        return RegistrySource(self._transport, references, platforms=platforms, referrers=referrers)

    def _open_sink(self) -> Sink:
        return RegistrySink(self._transport, self._target, early=self._reference("early"))

    def images(self) -> dict[str, bytes]:
        found = {tag: registry_http.manifest(self._registry.host, REPOSITORY, tag) for tag in self._tags()}
        return {tag: raw for tag, raw in found.items() if raw is not None}

    def blobs(self) -> set[str]:
        files = [path for path in (self._path / "blobs").rglob("*") if path.is_file()]
        return check_blobs({str(path.relative_to(self._path)): path.read_bytes() for path in files})

    def hanging(self, subject: str) -> list[Document]:
        _, raw = registry_http.get(self._registry.host, f"/v2/{REPOSITORY}/referrers/{subject}")
        return list(json.loads(raw)["manifests"])

    def called(self) -> dict[str, str]:
        return {tag: digest_of(raw) for tag, raw in self.images().items() if tag.endswith((".sig", ".att", ".sbom"))}

    def _tags(self) -> Sequence[str]:
        return registry_http.tags(self._registry.host, REPOSITORY)

    def _target(self, root: Root) -> Reference:
        return self._reference((root.name or "").rpartition(":")[2])

    def _reference(self, tag: str) -> Reference:
        return parse_reference(f"{self._registry.host}/{REPOSITORY}:{tag}")


class DockerArchiveFileStore(Store):
    """A tar file as `docker save` wrote it before version 25.

    It holds images only, with plain layers, and no manifest: the one that an image gets is made when it is read, so
    `images` returns what that has to be. Its layers have no digests, and what is lacking or wrong with one may be
    found out with the graph. So it keeps a part of the contract, which is in test_docker_archives.py.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "docker.tar"
        self._images: list[Saved] = []
        self._changed: dict[str, bytes | None] = {}

    def fill(self, layout: Layout) -> None:
        listed = json.loads((layout.path / "index.json").read_bytes())["manifests"]
        self._images = [saved(layout, entry, f"{REPOSITORY}:{entry['annotations'][REF_NAME]}") for entry in listed]
        self._write(self._content())

    def damage(self, digest: str, content: bytes | None) -> None:
        self._changed[digest] = content
        self._write(self._content())

    def _content(self) -> bytes:
        entries = [
            (name, self._changed.get(digest_of(content), content) if isinstance(content, bytes) else content)
            for name, content in of_docker(self._images)
        ]
        return archive_of([entry for entry in entries if entry[1] is not None])

    def _write(self, content: bytes) -> None:
        self._path.write_bytes(content)

    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source:  # noqa: ARG002 - it has none
        return ArchiveFileSource(self._path, platforms=platforms)

    def _open_sink(self) -> Sink:
        return DockerArchiveSink(file_output(self._path))

    def _files(self) -> dict[str, bytes]:
        return files_in(self._path.read_bytes()) if self._path.exists() else {}

    def images(self) -> dict[str, bytes]:
        files = self._files()
        found = images_in(files) if files else []
        named = {tag.rpartition(":")[2]: image for image in found for tag in image.tags}
        return {tag: json.dumps(plain_manifest(image), separators=(",", ":")).encode() for tag, image in named.items()}

    def blobs(self) -> set[str]:
        files = self._files()
        files.pop("manifest.json", None)
        for name, content in files.items():
            assert name.partition(".")[0] == hex_of(content), f"{name} is corrupt"
        return {digest_of(content) for content in files.values()}


class DockerArchivePipeStore(DockerArchiveFileStore):
    """The same through a real pipe: `manifest.json` comes last, and layers before anybody knows whose they are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._pipe = _Pipe(self._stack)

    def _write(self, content: bytes) -> None:
        """Nothing is kept but what `_content` makes."""

    def _open_source(self, platforms: PlatformChoice, referrers: Referrers) -> Source:  # noqa: ARG002 - it has none
        return ArchiveStreamSource(self._pipe.opened_to_read(self._content()), platforms=platforms)

    def _open_sink(self) -> Sink:
        return DockerArchiveSink(stream_output(self._pipe.opened_to_write(), "to the pipe"))

    def _files(self) -> dict[str, bytes]:
        # A plain layer ends as an archive does. Without a list of images there is nothing to be seen.
        files = self._pipe.whole()
        return files if "manifest.json" in files else {}


SOURCES: dict[str, type[Store]] = {
    "layout": LayoutStore,
    "archive-file": ArchiveFileStore,
    "volumes": VolumesStore,
    "archive-pipe": PipeStore,
    "archive-pipe-index-last": IndexLastPipeStore,
    "registry": RegistryStore,
}
#: Sinks that take blobs before the graph, and layers that are compressed anew.
SINKS: dict[str, type[Store]] = {
    "layout": LayoutStore,
    "archive-file": ArchiveFileStore,
    "archive-pipe": PipeStore,
    "registry": RegistryStore,
}
#: Those, and one that has to know all sizes first.
ALL_SINKS: dict[str, type[Store]] = {**SINKS, "volumes": VolumesStore}


#: Stores that keep a part of the contract, as sources and as sinks.
DOCKER_ARCHIVES: dict[str, type[Store]] = {
    "docker-archive-file": DockerArchiveFileStore,
    "docker-archive-pipe": DockerArchivePipeStore,
}


class NothingEarly:
    """For sources that know their graph before any blob: they hand nothing over early."""

    def put(self, blob: Blob) -> None:
        """Fail."""
        raise AssertionError(blob)

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Fail."""
        raise AssertionError(chunks)

    def recall(self, descriptor: Descriptor) -> bytes:
        """Fail."""
        raise AssertionError(descriptor)


@contextlib.contextmanager
def opened(kind: type[Store], folder: Path) -> Iterator[Store]:
    """Make a store in `folder`, and give everything back at the end."""
    store = kind(folder)
    try:
        yield store
    finally:
        store.close()


def _feed(inlet: int, content: bytes) -> None:
    # Whoever reads may have found a mistake, and gone.
    with contextlib.suppress(BrokenPipeError), io.FileIO(inlet, "wb") as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]


def _waiting(outlet: int) -> int:
    """Return how many bytes lie in the pipe."""
    with contextlib.suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(outlet, termios.FIONREAD, bytes(4)))[0])
    return 0


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
