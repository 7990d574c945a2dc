"""The blob cache: a failing disk prevents caching, but never the transfer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import pytest

from ocistream import notices
from ocistream.archive.destination import ArchiveDestination
from ocistream.archive.outputs import open_file_output
from ocistream.errors import IntegrityError
from ocistream.layout import directory as blob_folders
from ocistream.layout.cache import Cache, CachedRepository
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.reference import parse_reference
from ocistream.registry.registries import ReadableRepository, Registries
from ocistream.registry.source import RegistrySource
from ocistream.streams import files
from ocistream.streams.chunks import read_chunks
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import Destination
from tests.faulty_registry import Fault, Flip
from tests.http_doubles import CountingRegistry, QuickTransport
from tests.images import Layout
from tests.registry_http import seed

MIB = 1 << 20


class Setting:
    """A registry that has an image as `app:1`, and a cache."""

    def __init__(self, transport: QuickTransport, registry: CountingRegistry, layout: Layout, folder: Path) -> None:
        self.transport = transport
        self.registry = registry
        self.image = layout.image([2 * MIB, b"small", b""], name=None)
        self.blobs = [blob["digest"] for blob in layout.read(self.image["digest"])["layers"]]
        seed(layout, self.image, registry.host, "app", "1")
        self.folder = folder
        self.cache = Cache(folder / "cache")

    def pull(self, sink: Destination, cache: Cache | None = None, *, ahead: int = 0, jobs: int = 1) -> Cache:
        """Copy the image, with a cache object that knows nothing of earlier runs."""
        cache = cache or Cache(self.folder / "cache")

        def before(repository: ReadableRepository) -> ReadableRepository:
            return CachedRepository(cache, repository)

        self.registry.requests.clear()
        reference = parse_reference(f"{self.registry.host}/app:1")
        source = RegistrySource(Registries(lambda: self.transport, cache=before), [reference])
        try:
            Copy(source, sink, prefetch_memory=ahead, jobs=jobs).run()
        finally:
            sink.close()
        return cache

    def archive(self, *, ahead: int = 0, jobs: int = 1) -> bytes:
        path = self.folder / "x.tar"
        self.pull(ArchiveDestination(open_file_output(path)), ahead=ahead, jobs=jobs)
        return path.read_bytes()

    def file(self, digest: str) -> Path:
        return self.folder / "cache" / "blobs" / "sha256" / digest[7:]


@pytest.fixture
def setting(
    quick: Callable[..., QuickTransport], faulty: Callable[..., CountingRegistry], layout: Layout, tmp_path: Path
) -> Setting:
    return Setting(quick(), faulty(), layout, tmp_path)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Return the list of notices with their levels."""
    found: list[tuple[int, str]] = []
    monkeypatch.setattr(notices, "_listeners", [])
    notices.set_listener(lambda message, *, level: found.append((level, message)))
    return found


def fetched(setting: Setting) -> list[str]:
    return [request.path.rpartition("/")[2] for request in setting.registry.asked("GET", "/(blobs|manifests)/")]


def test_a_full_disk_is_reported_once_and_the_transfer_continues(
    setting: Setting, said: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = setting.archive()
    for path in (setting.folder / "cache" / "blobs" / "sha256").iterdir():
        path.unlink()
    write, room = files.write_all, [MIB]

    def bounded(file: FileIO, chunk: bytes | memoryview) -> None:
        if "/cache/" in str(Path(f"/proc/self/fd/{file.fileno()}").readlink()):
            room[0] -= len(chunk)
            if room[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, chunk)

    monkeypatch.setattr(files, "write_all", bounded)
    assert setting.archive() == plain
    assert [(level, "No space left" in text) for level, text in said] == [(0, True)]
    # Blobs cached before remain; no unfinished file does.
    left = {path.name for path in (setting.folder / "cache").rglob("*") if path.is_file()}
    assert left & {digest[7:] for digest in setting.blobs} == set()
    assert setting.image["digest"][7:] in left
    assert not any(name.startswith(".") for name in left)


def test_a_disk_error_at_the_end_of_a_file_does_not_fail_the_transfer(
    setting: Setting, said: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def failing(path: Path, target: Path) -> Path:
        if target.parent.name == "sha256":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    setting.archive()
    assert len(said) == 1
    assert list((setting.folder / "cache" / "blobs" / "sha256").iterdir()) == []


def test_a_blob_evicted_before_it_is_read_is_fetched(setting: Setting) -> None:
    plain = setting.archive()

    class Forgetful(Cache):
        def has_blob(self, descriptor: Descriptor) -> bool:
            is_there = super().has_blob(descriptor)
            setting.file(descriptor.digest).unlink(missing_ok=True)
            return is_there

    path = setting.folder / "y.tar"
    setting.pull(ArchiveDestination(open_file_output(path)), Forgetful(setting.folder / "cache"))
    assert path.read_bytes() == plain
    assert set(setting.blobs) <= set(fetched(setting))
    assert setting.archive() == plain
    assert fetched(setting) == []


def test_after_a_read_error_in_the_cache_the_registry_sends_the_rest(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = setting.archive()

    def failing(file: FileIO, size: int) -> Iterator[memoryview]:
        seen = 0
        for chunk in read_chunks(file, size):
            if seen == MIB:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            seen += len(chunk)
            yield chunk

    monkeypatch.setattr(blob_folders, "read_chunks", failing)
    assert setting.archive() == plain
    (request,) = setting.registry.asked("GET", "/blobs/")
    assert request.headers["Range"] == f"bytes={MIB}-"


def test_a_valid_cached_blob_stays_if_the_registry_sends_wrong_bytes(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting.archive()
    content = setting.file(setting.blobs[0]).read_bytes()
    left = iter([MIB])

    def failing_once(file: FileIO, size: int) -> Iterator[memoryview]:
        seen, end = 0, next(left, None) if size > MIB else None
        for chunk in read_chunks(file, size):
            if seen == end:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            seen += len(chunk)
            yield chunk

    monkeypatch.setattr(blob_folders, "read_chunks", failing_once)
    setting.registry.faults = [Fault(Flip(5), "GET", setting.blobs[0], times=None)]
    with pytest.raises(IntegrityError):
        setting.archive()
    assert setting.file(setting.blobs[0]).read_bytes() == content
