"""The ends of a transfer: how they are written, and which kind of store each one opens."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream.archive.file_source import ArchiveFileSource
from ocistream.archive.stream_source import ArchiveStreamSource
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    InvalidNameError,
    LocalDiskError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from ocistream.http.client import HttpClient, HttpSettings
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.source import LayoutSource
from ocistream.locations import Location, OpenContext, Selection, open_destination, open_source, parse_location
from ocistream.oci.descriptor import Descriptor, parse_platform
from ocistream.oci.platforms import PlatformChoice
from ocistream.oci.reference import parse_reference
from ocistream.registry.destination import RegistryDestination
from ocistream.registry.source import RegistrySource
from ocistream.streams.chunks import Chunk
from ocistream.transfer import copy as transfer
from ocistream.transfer.interfaces import Blob
from tests.archives import files_in, items_of, tar_of
from tests.contract.image_shapes import parts_of
from tests.images import Layout, small_image, two_platforms
from tests.observers import Watch
from tests.registry import Registry


class TestParsing:
    @pytest.mark.parametrize(
        "text",
        [
            "nginx",
            "org/app:1",
            "docker://r.example/a:1",
            "localhost:5000/a",
            "r.example/a@sha256:" + "0" * 64,
            "docker:1",
        ],
    )
    def test_a_name_is_an_image_in_a_registry(self, text: str) -> None:
        whole = text in {"nginx", "localhost:5000/a"}
        assert parse_location(text) == Location("docker", text, reference=parse_reference(text), is_repository=whole)

    @pytest.mark.parametrize(
        ("text", "kind", "path", "name"),
        [
            ("oci:dir", "oci", "dir", None),
            ("oci:dir/a:v1", "oci", "dir/a", "v1"),
            ("oci:dir:", "oci", "dir", None),
            ("oci:dir:r.example/app:v1", "oci", "dir", "r.example/app:v1"),
            ("oci-archive:a.tar", "oci-archive", "a.tar", None),
            ("oci-archive:/a.tar:v1", "oci-archive", "/a.tar", "v1"),
            ("docker-archive:a.tar:app:v1", "docker-archive", "a.tar", "app:v1"),
        ],
    )
    def test_a_transport_is_told_by_its_prefix(self, text: str, kind: str, path: str, name: str | None) -> None:
        assert parse_location(text) == Location(kind, text, path=Path(path), name=name)

    @pytest.mark.parametrize("text", [".", "..", "./a", "../a:v1", "/a", "/", "C:\\a"])
    def test_what_looks_like_a_path_is_one(self, text: str) -> None:
        assert parse_location(text) == Location("path", text, path=Path(text))

    def test_the_home_directory_is_expanded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        assert parse_location("~").path == Path("/home/somebody")
        assert parse_location("~/a").path == Path("/home/somebody/a")
        assert parse_location("oci:~/a:v1").path == Path("/home/somebody/a")

    def test_a_home_directory_that_nobody_has_is_malformed(self) -> None:
        with pytest.raises(InvalidNameError, match="home directory") as caught:
            parse_location("oci:~nobody-is-called-that/a")
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("text", "is_stream"),
        [("-", True), ("oci-archive:-", True), ("oci-archive:-:v1", True), ("oci:-", False), ("./-", False)],
    )
    def test_a_dash_is_a_stream_where_one_can_be(self, text: str, is_stream: bool) -> None:
        assert parse_location(text).is_stream is is_stream

    @pytest.mark.parametrize("text", ["a", "a.tar", "r.example/app:v1", "docker://r.example/a"])
    def test_behind_an_option_a_bare_word_is_a_path(self, text: str) -> None:
        assert parse_location(text, bare_is_path=True) == Location("path", text, path=Path(text))

    @pytest.mark.parametrize("text", ["", "oci:", "oci-archive::v1", "NGINX", "https://r.example/a", "a b", "~user/a"])
    def test_anything_else_is_malformed(self, text: str) -> None:
        with pytest.raises(InvalidNameError, match="malformed"):
            parse_location(text)

    @pytest.mark.parametrize("text", ["docker-daemon:app:v1", "containers-storage:app", "sif:a.sif", "ostree:app"])
    def test_a_transport_of_other_tools_is_not_supported(self, text: str) -> None:
        with pytest.raises(UnsupportedError, match="not supported") as caught:
            parse_location(text)
        assert caught.value.exit_code == 8


@pytest.fixture
def around() -> Iterator[OpenContext]:
    """Return surroundings without streams, and with a transport to loopback."""
    transport = HttpClient(HttpSettings(), lambda *_: None)

    def none() -> io.FileIO:
        raise AssertionError("a stream was opened")

    yield OpenContext(lambda: transport, none, none, mtime=7)
    transport.close()


@pytest.fixture
def archive(layout: Layout, tmp_path: Path) -> Path:
    """Return an archive of two images, v1 and v2."""
    small_image(layout, name="v1")
    two_platforms(layout, name="v2")
    path = tmp_path / "images.tar"
    path.write_bytes(tar_of(items_of(layout)))
    return path


class TestSources:
    def names(self, text: str, around: OpenContext, want: Selection | None = None) -> list[str | None]:
        """Copy what an end has into memory that is forgotten, and return the names."""
        source = open_source(parse_location(text), around, want or Selection())
        try:
            return [root.name for root in source.resolve(_Forget()).roots]
        finally:
            source.close()

    def test_a_path_is_what_is_found_there(self, layout: Layout, archive: Path, around: OpenContext) -> None:
        for path, kind in ((layout.path, LayoutSource), (archive, ArchiveFileSource)):
            source = open_source(parse_location(str(path)), around, Selection())
            source.close()
            assert type(source) is kind
            assert self.names(str(path), around) == ["v1", "v2"]

    def test_a_name_behind_it_chooses_an_image(self, layout: Layout, archive: Path, around: OpenContext) -> None:
        assert self.names(f"oci:{layout.path}:v2", around) == ["v2"]
        assert self.names(f"oci-archive:{archive}:v1", around) == ["v1"]
        with pytest.raises(NotFoundError, match="v3"):
            self.names(f"oci:{layout.path}:v3", around)

    def test_a_platform_is_chosen(self, layout: Layout, archive: Path, around: OpenContext) -> None:
        want = Selection(platforms=PlatformChoice((parse_platform("linux/amd64"),)))
        for text in (f"oci:{layout.path}:v2", f"oci-archive:{archive}:v2"):
            source = open_source(parse_location(text), around, want)
            graph = source.resolve(_Forget())
            source.close()
            assert len(graph.manifests) == 1

    def test_a_dash_is_stdin_whatever_is_called_so(
        self, archive: Path, around: OpenContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "-").mkdir()
        streaming = OpenContext(around.client, lambda: io.BufferedReader(io.FileIO(archive)), around.stdout)
        for text in ("-", "oci-archive:-"):
            source = open_source(parse_location(text), streaming, Selection())
            assert type(source) is ArchiveStreamSource
            source.close()
            assert self.names(text, streaming) == ["v1", "v2"]

    def test_a_fifo_is_a_stream(self, archive: Path, around: OpenContext, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        thread = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(archive.read_bytes()))
        thread.start()
        assert self.names(str(tmp_path / "fifo"), around) == ["v1", "v2"]
        thread.join()

    def test_an_image_is_in_its_registry(self, around: OpenContext, archive: Path, layout: Layout) -> None:
        assert archive.exists()
        with Registry(layout.path) as registry:
            layout.name(small_image(layout), f"{registry.host}/app:v1")
            source = open_source(parse_location(f"{registry.host}/app:v1"), around, Selection())
            assert type(source) is RegistrySource
            assert [root.name for root in source.resolve(_Forget()).roots] == [f"{registry.host}/app:v1"]

    def test_what_is_not_there_is_not_found(self, around: OpenContext, tmp_path: Path) -> None:
        for text in (str(tmp_path / "gone"), f"oci:{tmp_path}/gone", f"oci-archive:{tmp_path}/gone"):
            with pytest.raises(NotFoundError, match="gone") as caught:
                open_source(parse_location(text), around, Selection())
            assert caught.value.exit_code == 4

    def test_a_directory_that_is_no_layout_is_refused(self, around: OpenContext, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match="not an OCI layout"):
            open_source(parse_location(str(tmp_path)), around, Selection())

    @pytest.mark.parametrize("prefix", ["/", "oci:/", "oci-archive:/"])
    def test_a_path_that_the_disk_cannot_have_is_its_error(self, around: OpenContext, prefix: str) -> None:
        end = parse_location(prefix + "a" * 300)
        with pytest.raises(LocalDiskError, match="too long") as caught:
            open_source(end, around, Selection())
        assert caught.value.exit_code == 9
        with pytest.raises(LocalDiskError, match="too long"):
            open_destination(end, around)


class TestRepeatedBlobs:
    def test_a_blob_that_stands_twice_in_a_file_is_checked_twice(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        items = items_of(layout)
        name, content = next((name, content) for name, content in items if name.startswith("blobs/") and content)
        for again, good in ((content, True), (content[:-1] + bytes([content[-1] ^ 1]), False)):
            path = tmp_path / f"{good}.tar"
            path.write_bytes(tar_of([*items, (name, again)]))
            source, sink = ArchiveFileSource(path), LayoutDestination(tmp_path / f"{good}")
            if good:
                transfer.copy(source, sink, Watch())
            else:
                with pytest.raises(IntegrityError):
                    transfer.copy(source, sink, Watch())
            assert (tmp_path / f"{good}" / "index.json").exists() is good
            source.close()


class TestSinks:
    def copied(self, layout: Layout, end: Location, around: OpenContext) -> None:
        sink = open_destination(end, around)
        try:
            transfer.copy(LayoutSource(layout.path), sink, Watch())
        finally:
            sink.close()

    @pytest.mark.parametrize("text", ["{}/out/", "oci:{}/out", "oci:{}/out:v9"])
    def test_a_directory_is_a_layout(self, layout: Layout, around: OpenContext, tmp_path: Path, text: str) -> None:
        small_image(layout, name="v1")
        self.copied(layout, parse_location(text.format(tmp_path)), around)
        assert parts_of(Layout(tmp_path / "out")) == parts_of(layout)

    def test_one_that_is_there_is_a_layout_without_saying_so(
        self, layout: Layout, around: OpenContext, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        sink = open_destination(parse_location(str(tmp_path / "out")), around)
        assert type(sink) is LayoutDestination
        (tmp_path / "out" / "other").touch()
        with pytest.raises(UsageError):
            open_destination(parse_location(str(tmp_path / "out")), around)
        assert layout.path.is_dir()

    @pytest.mark.parametrize("text", ["{}/a.tar", "oci-archive:{}/a.tar"])
    def test_any_other_path_is_an_archive(self, layout: Layout, around: OpenContext, tmp_path: Path, text: str) -> None:
        small_image(layout, name="v1")
        self.copied(layout, parse_location(text.format(tmp_path)), around)
        assert "index.json" in files_in((tmp_path / "a.tar").read_bytes())

    def test_a_link_is_followed_to_the_archive_it_means(
        self, layout: Layout, around: OpenContext, tmp_path: Path
    ) -> None:
        small_image(layout, name="v1")
        (tmp_path / "real.tar").write_bytes(b"old")
        (tmp_path / "a.tar").symlink_to("real.tar")
        self.copied(layout, parse_location(str(tmp_path / "a.tar")), around)
        assert (tmp_path / "a.tar").is_symlink()
        assert "index.json" in files_in((tmp_path / "real.tar").read_bytes())

    def test_what_is_no_file_is_written_as_it_is(self, layout: Layout, around: OpenContext, tmp_path: Path) -> None:
        # A FIFO of the test's own: a mistake here, made as root, must not replace a device of the machine's.
        small_image(layout, name="v1")
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(fifo.read_bytes()), daemon=True)
        reader.start()
        self.copied(layout, parse_location(str(fifo)), around)
        reader.join()
        assert fifo.is_fifo()
        assert "index.json" in files_in(found[0])

    def test_a_dash_is_stdout_whatever_is_called_so(
        self, layout: Layout, around: OpenContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "-").mkdir()
        small_image(layout, name="v1")
        with io.FileIO(tmp_path / "stdout", "wb") as stdout:
            streaming = OpenContext(around.client, around.stdin, lambda: stdout, mtime=around.mtime)
            self.copied(layout, parse_location("-"), streaming)
        self.copied(layout, parse_location(str(tmp_path / "file")), around)
        assert (tmp_path / "stdout").read_bytes() == (tmp_path / "file").read_bytes()

    def test_an_image_goes_into_its_registry(self, layout: Layout, around: OpenContext, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        with Registry(tmp_path / "registry") as registry:
            end = parse_location(f"{registry.host}/app:v9")
            assert type(open_destination(end, around)) is RegistryDestination
            self.copied(layout, end, around)
        made = Layout(tmp_path / "registry")
        assert made.file(image["digest"]).read_bytes() == layout.file(image["digest"]).read_bytes()


class _Forget:
    """Reads what comes early, and forgets it."""

    accepts_early = True

    def write(self, blob: Blob, *, can_be_plain_layer: bool = False) -> None:  # noqa: ARG002 - all are forgotten
        for _ in blob.open():
            pass

    def write_new(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Fail."""
        raise AssertionError(chunks)

    def read_back(self, descriptor: object) -> bytes:
        raise AssertionError(descriptor)
