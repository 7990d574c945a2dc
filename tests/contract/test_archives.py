"""Archives as they are written: everything small first, the same bytes each time, readable by all."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocistream import limits, transfer
from ocistream.errors import ArchiveError, IntegrityError, LocalDiskError, NotFoundError, OutputClosedError, UsageError
from ocistream.graph import Graph
from ocistream.interfaces import Blob, Recalls, Source, Unnamed
from ocistream.model import Descriptor
from ocistream.stores.archive import ArchiveSink
from ocistream.stores.archive_file import ArchiveFileSource
from ocistream.stores.layout import LayoutSource
from ocistream.stores.outputs import Output, file_output, open_output, stream_output
from ocistream.stream import Chunk, digest_of
from ocistream.walk import GraphBuilder
from tests.archives import END, blob_name, check_blobs, files_in, items_of, member, tar_of, unpack
from tests.contract.shapes import SHAPES, parts_of
from tests.images import OCI_LAYER, Layout, small_image, two_platforms
from tests.observers import NothingEarly, Watch
from tests.peers import need
from tests.schemas import validate_layout


def archive_of(source: Source, path: Path, *, mtime: int = 0) -> bytes:
    """Copy everything into an archive at `path`, and return its bytes."""
    transfer.copy(source, ArchiveSink(file_output(path), mtime=mtime), Watch())
    source.close()
    return path.read_bytes()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def every_shape(layout: Layout) -> Layout:
    """Return a layout with an image of each shape, under full names."""
    for name, make in SHAPES.items():
        # The schemas want a layer at least.
        if name != "no-layers":
            make(layout, f"registry.example/{name}:v1")
    return layout


class TestUnnamed:
    """Blobs of which the digest is known when all of them has passed: they come before the index."""

    def test_they_come_first_and_each_digest_is_there_once(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="registry.example/app:v1")
        source = LayoutSource(layout.path)
        graph = source.graph(NothingEarly())
        sink = ArchiveSink(file_output(tmp_path / "a.tar"))
        sink.expect(graph)
        for blob in source.blobs(graph.blobs):
            found = sink.put_unnamed(Unnamed(blob.open, lambda blob=blob: blob.descriptor))  # type: ignore[misc]
            assert found == blob.descriptor
            assert sink.has(blob.descriptor)
            # The same may come again: two layers may become one.
            sink.put_unnamed(Unnamed(blob.open, lambda blob=blob: blob.descriptor))  # type: ignore[misc]
        sink.begin(graph)
        sink.commit(graph)
        files = files_in((tmp_path / "a.tar").read_bytes())
        expected = [blob_name(blob.digest) for blob in graph.blobs]
        manifests = [blob_name(manifest.descriptor.digest) for manifest in graph.manifests]
        assert list(files) == ["oci-layout", *expected, "index.json", "manifest.json", *manifests]
        assert check_blobs(files) == {*parts_of(layout).blobs, *parts_of(layout).manifests}


class TestContent:
    def test_what_has_to_be_known_first_comes_first(self, layout: Layout, tmp_path: Path) -> None:
        two_platforms(layout, name="registry.example/app:v1")
        files = files_in(archive_of(LayoutSource(layout.path), tmp_path / "a.tar"))
        names = list(files)
        assert names[:3] == ["oci-layout", "index.json", "manifest.json"]
        graph = LayoutSource(layout.path).graph(NothingEarly())
        manifests = [blob_name(manifest.descriptor.digest) for manifest in graph.manifests]
        assert names[3:6] == manifests
        assert [name for name in names[6:8] if b'"rootfs"' in files[name]] == names[6:8]
        assert names[6:] == [blob_name(blob.digest) for blob in graph.blobs]

    def test_it_is_a_valid_layout(self, every_shape: Layout, tmp_path: Path) -> None:
        archive_of(LayoutSource(every_shape.path), tmp_path / "a.tar")
        with tarfile.open(tmp_path / "a.tar") as archive:
            unpack(archive, tmp_path / "out")
        assert validate_layout(tmp_path / "out") > 20
        assert parts_of(Layout(tmp_path / "out")) == parts_of(every_shape)

    def test_gnu_tar_reads_every_name(self, layout: Layout, tmp_path: Path) -> None:
        need("tar")
        small_image(layout, name="v1", algorithm="sha512")
        files = files_in(archive_of(LayoutSource(layout.path), tmp_path / "a.tar"))
        command = ["tar", "-tf", str(tmp_path / "a.tar")]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == list(files)
        assert sum(len(name) > 100 for name in files) == 4

    def test_dockers_manifest_points_into_it(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="registry.example/app:v1")
        files = files_in(archive_of(LayoutSource(layout.path), tmp_path / "a.tar"))
        (entry,) = json.loads(files["manifest.json"])
        assert {entry["Config"], *entry["Layers"]} <= files.keys()
        assert entry["RepoTags"] == ["registry.example/app:v1"]

    def test_where_nothing_runs_there_is_none(self, layout: Layout, tmp_path: Path) -> None:
        layout.artifact(b"sbom", name="v1")
        assert "manifest.json" not in files_in(archive_of(LayoutSource(layout.path), tmp_path / "a.tar"))

    def test_what_is_a_manifest_and_a_layer_is_stored_once(self, layout: Layout, tmp_path: Path) -> None:
        inner = small_image(layout)
        document = layout.read(inner["digest"])
        document["layers"] = [{**inner, "mediaType": OCI_LAYER}]
        layout.index([inner, layout.document(document)], name="v1")
        files = files_in(archive_of(LayoutSource(layout.path), tmp_path / "a.tar"))
        assert blob_name(inner["digest"]) in files

    def test_a_manifest_that_came_early_is_not_stored_again(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        source = LayoutSource(layout.path)
        graph = source.graph(NothingEarly())
        (manifest,) = graph.manifests
        sink = ArchiveSink(file_output(tmp_path / "a.tar"))
        sink.put(Blob(manifest.descriptor, lambda: iter([manifest.raw])))
        sink.begin(graph)
        for blob in source.blobs(graph.blobs):
            sink.put(blob)
        sink.commit(graph)
        assert check_blobs(files_in((tmp_path / "a.tar").read_bytes())) >= {manifest.descriptor.digest}

    def test_an_archive_of_nothing_is_one(self, tmp_path: Path) -> None:
        sink = ArchiveSink(file_output(tmp_path / "a.tar"))
        graph = GraphBuilder().graph()
        sink.begin(graph)
        sink.commit(graph)
        assert list(files_in((tmp_path / "a.tar").read_bytes())) == ["oci-layout", "index.json"]

    def test_blobs_that_came_early_come_before_the_index(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        (tmp_path / "sorted.tar").write_bytes(tar_of(items_of(layout)))
        sink = ArchiveSink(file_output(tmp_path / "a.tar"))
        source = LayoutSource(layout.path)
        graph = source.graph(NothingEarly())
        first, *others = source.blobs(graph.blobs)
        sink.put(first)
        sink.begin(graph)
        for blob in others:
            sink.put(blob)
        sink.commit(graph)
        names = list(files_in((tmp_path / "a.tar").read_bytes()))
        assert names[:3] == ["oci-layout", blob_name(first.descriptor.digest), "index.json"]
        assert not isinstance(sink, Recalls)


class TestDeterminism:
    def test_two_runs_give_the_same_bytes(self, every_shape: Layout, tmp_path: Path) -> None:
        first, again = (
            archive_of(LayoutSource(every_shape.path), tmp_path / name, mtime=5) for name in ("a.tar", "b.tar")
        )
        assert first == again

    def test_so_does_an_archive_that_is_copied(self, every_shape: Layout, tmp_path: Path) -> None:
        first = archive_of(LayoutSource(every_shape.path), tmp_path / "a.tar")
        assert archive_of(ArchiveFileSource(tmp_path / "a.tar"), tmp_path / "b.tar") == first

    def test_every_entry_has_the_time_that_was_given(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        for mtime in (0, 1_700_000_000):
            archive = archive_of(LayoutSource(layout.path), tmp_path / "a.tar", mtime=mtime)
            with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
                assert {entry.mtime for entry in reader} == {mtime}


def failing(content: bytes) -> Blob:
    def chunks() -> Iterator[Chunk]:
        yield content
        raise IntegrityError("at the end")

    return Blob(Descriptor("text/plain", digest_of(content), len(content)), chunks)


class TestFiles:
    def test_an_old_file_stays_until_the_new_one_is_whole(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        path = tmp_path / "out" / "a.tar"
        path.parent.mkdir()
        path.write_bytes(b"old")
        sink = ArchiveSink(file_output(path))
        sink.begin(LayoutSource(layout.path).graph(NothingEarly()))
        assert path.read_bytes() == b"old"
        with pytest.raises(IntegrityError):
            sink.put(failing(b"x"))
        sink.close()
        assert names_in(path.parent) == ["a.tar"]
        assert path.read_bytes() == b"old"

    def test_a_name_that_cannot_be_had_leaves_nothing(self, tmp_path: Path) -> None:
        graph = GraphBuilder().graph()
        sink = ArchiveSink(file_output(tmp_path / "a.tar"))
        sink.begin(graph)
        (tmp_path / "a.tar" / "full").mkdir(parents=True)
        with pytest.raises(LocalDiskError, match=r"cannot write .*a\.tar"):
            sink.commit(graph)
        sink.close()
        assert names_in(tmp_path) == ["a.tar"]

    def test_a_folder_that_is_not_there_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"a\.tar"):
            file_output(tmp_path / "gone" / "a.tar")


class TestStreams:
    def through_a_pipe(self, use: Callable[[Output], None]) -> bytes:
        outlet, inlet = os.pipe()
        taken = bytearray()

        def drain() -> None:
            with io.FileIO(outlet, "rb") as file:
                while part := file.read(1 << 16):
                    taken.extend(part)

        thread = threading.Thread(target=drain)
        thread.start()
        with io.FileIO(inlet, "wb") as file:
            use(stream_output(file, "to stdout"))
        thread.join()
        return bytes(taken)

    def test_a_pipe_gets_the_same_bytes_as_a_file(self, every_shape: Layout, tmp_path: Path) -> None:
        def copy(output: Output) -> None:
            transfer.copy(LayoutSource(every_shape.path), ArchiveSink(output), Watch())

        expected = archive_of(LayoutSource(every_shape.path), tmp_path / "a.tar")
        assert self.through_a_pipe(copy) == expected

    def test_a_pipe_gets_no_end_after_a_failure(self, layout: Layout) -> None:
        small_image(layout, name="v1")

        def fail(output: Output) -> None:
            sink = ArchiveSink(output)
            sink.begin(LayoutSource(layout.path).graph(NothingEarly()))
            with pytest.raises(IntegrityError):
                sink.put(failing(b"x" * 512))
            sink.close()

        taken = self.through_a_pipe(fail)
        assert taken.endswith(b"x" * 512)
        assert END not in taken[-1536:]

    def test_a_reader_that_has_gone_is_known_as_such(self) -> None:
        outlet, inlet = os.pipe()
        os.close(outlet)
        with io.FileIO(inlet, "wb") as file, pytest.raises(OutputClosedError, match="to stdout") as caught:
            stream_output(file, "to stdout").write(b"x")
        assert caught.value.exit_code == 141

    def test_a_full_disk_is_known_as_such(self) -> None:
        output = open_output(Path("/dev/full"))
        with pytest.raises(LocalDiskError, match="No space left") as caught:
            output.write(b"x")
        assert caught.value.exit_code == 9
        output.close()

    def test_whoever_reads_a_fifo_sees_its_end(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        os.mkfifo(tmp_path / "fifo")
        taken: list[bytes] = []
        thread = threading.Thread(target=lambda: taken.append((tmp_path / "fifo").read_bytes()))
        thread.start()
        sink = ArchiveSink(open_output(tmp_path / "fifo"))
        transfer.copy(LayoutSource(layout.path), sink, Watch())
        sink.close()
        thread.join()
        assert taken == [archive_of(LayoutSource(layout.path), tmp_path / "a.tar")]

    def test_something_that_cannot_be_opened_is_an_error_of_the_disk(self, tmp_path: Path) -> None:
        with pytest.raises(LocalDiskError, match="cannot write"):
            open_output(tmp_path)

    def test_a_disk_that_fails_late_is_known_as_such(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        # A descriptor that names a file and cannot be synced.
        with io.FileIO(os.open(tmp_path / "a", os.O_PATH), "wb") as file:
            output = stream_output(file, "to stdout")
            with pytest.raises(LocalDiskError, match="cannot write to stdout"):
                output.finish()

    def test_a_regular_file_behind_stdout_is_fine(self, tmp_path: Path) -> None:
        with io.FileIO(tmp_path / "a", "wb") as file:
            output = stream_output(file, "to stdout")
            output.write(memoryview(b"x" * 10))
            output.finish()
            output.close()
        assert (tmp_path / "a").read_bytes() == b"x" * 10

    def test_a_terminal_gets_no_archive(self) -> None:
        ours, theirs = pty.openpty()
        try:
            with pytest.raises(UsageError, match="is a terminal"):
                open_output(Path(os.ttyname(theirs)))
        finally:
            os.close(ours)
            os.close(theirs)


class TestReadingFiles:
    """What only a file can do is tested here; all else is in the contract and the tests of pipes."""

    def graph(self, path: Path) -> Graph:
        source = ArchiveFileSource(path)
        try:
            return source.graph(NothingEarly())
        finally:
            source.close()

    def test_a_file_that_is_not_there_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"a\.tar"):
            ArchiveFileSource(tmp_path / "a.tar")

    def test_a_directory_is_an_error_of_the_disk(self, tmp_path: Path) -> None:
        with pytest.raises(LocalDiskError):
            ArchiveFileSource(tmp_path)

    def test_a_truncated_file_is_found_out_before_anything_moves(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        archive = tar_of(items_of(layout))
        path = tmp_path / "a.tar"
        for length in range(0, len(archive), 101):
            path.write_bytes(archive[:length])
            with pytest.raises(ArchiveError, match="truncated"):
                ArchiveFileSource(path)

    def test_a_size_beyond_the_file_is_found_out_without_reading(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(member("a", tarfile.REGTYPE, size=1 << 50) + END)
        with pytest.raises(ArchiveError, match=r"truncated: .* in the middle of an entry"):
            ArchiveFileSource(tmp_path / "a.tar")

    @pytest.mark.parametrize("name", ["oci-layout", "index.json"])
    def test_a_small_file_that_is_too_large_is_refused(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        items = dict(items_of(layout)) | {name: b" " * (limits.MAX_MANIFEST + 1)}
        (tmp_path / "a.tar").write_bytes(tar_of(items.items()))
        with pytest.raises(ArchiveError, match="of the archive is larger"):
            self.graph(tmp_path / "a.tar")

    def test_a_marker_is_not_needed_but_believed(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        items = dict(items_of(layout))
        del items["oci-layout"]
        (tmp_path / "a.tar").write_bytes(tar_of(items.items()))
        assert self.graph(tmp_path / "a.tar").roots[0].descriptor.digest == image["digest"]
        largest = b'{"imageLayoutVersion": "1.0.0"}'.ljust(limits.MAX_LAYOUT_FILE)
        (tmp_path / "a.tar").write_bytes(tar_of([*items.items(), ("oci-layout", largest)]))
        assert self.graph(tmp_path / "a.tar").roots[0].descriptor.digest == image["digest"]
        (tmp_path / "a.tar").write_bytes(tar_of([*items.items(), ("oci-layout", b"{}")]))
        with pytest.raises(ArchiveError, match="oci-layout"):
            self.graph(tmp_path / "a.tar")

    def test_a_file_without_an_index_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(tar_of([("readme", b"x")]))
        with pytest.raises(ArchiveError, match=r"neither an index\.json"):
            self.graph(tmp_path / "a.tar")

    def test_a_file_that_shrinks_meanwhile_is_short(self, layout: Layout, tmp_path: Path) -> None:
        layout.image([1 << 20], name="v1")
        path = tmp_path / "a.tar"
        path.write_bytes(tar_of(items_of(layout)))
        source = ArchiveFileSource(path)
        graph = source.graph(NothingEarly())
        os.truncate(path, 4096)
        with pytest.raises(IntegrityError, match="expected"):
            transfer.copy(_With(source, graph), ArchiveSink(file_output(tmp_path / "b.tar")), Watch())
        source.close()
        assert not (tmp_path / "b.tar").exists()


class _With:
    """A source whose graph is known already."""

    parallel = True

    def __init__(self, inner: Source, graph: Graph) -> None:
        self._graph = graph
        self.blobs = inner.blobs
        self.close = inner.close

    def graph(self, early: object) -> Graph:
        assert early is not None
        return self._graph
