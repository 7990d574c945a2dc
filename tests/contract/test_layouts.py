"""The layout directory: what is there is not believed, what is added is whole, and several may add at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits, transfer
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    LocalDiskError,
    MissingContentError,
    NotFoundError,
    OcistreamError,
    UnsupportedError,
    UsageError,
)
from ocistream.graph import Graph, Root
from ocistream.interfaces import Blob, Unnamed
from ocistream.model import OCI_MANIFEST, Descriptor
from ocistream.stores.index import REF_NAME
from ocistream.stores.layout import LayoutSink, LayoutSource
from ocistream.stores.layout_directory import LayoutDirectory
from ocistream.stream import Chunk, digest_of
from tests.archives import blob_name
from tests.contract.shapes import named_in, parts_of
from tests.images import Layout, small_image, two_platforms
from tests.observers import NothingEarly, Watch
from tests.schemas import validate_layout

ABSENT = "sha256:" + "0" * 64


def copy(source: Path, sink: Path) -> transfer.Report:
    return transfer.copy(LayoutSource(source), LayoutSink(sink), Watch())


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def descriptor_of(content: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", digest_of(content), len(content))


def graph_of(folder: Path) -> Graph:
    return LayoutSource(folder).graph(NothingEarly())


class TestCreating:
    def test_a_new_directory_becomes_a_layout(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        copy(layout.path, tmp_path / "a" / "b")
        assert validate_layout(tmp_path / "a" / "b") == 4

    @pytest.mark.parametrize("there", ["oci-layout", "index.json", "blobs", ".oci-layout.0123456789ab.partial"])
    def test_a_directory_that_was_begun_is_gone_on_with(self, layout: Layout, tmp_path: Path, there: str) -> None:
        small_image(layout, name="v1")
        out = tmp_path / "out"
        out.mkdir()
        if there == "blobs":
            (out / there).mkdir()
        elif there.startswith("."):
            (out / there).write_bytes(b"cut off")
        else:
            shutil.copy(layout.path / there, out)
        copy(layout.path, out)
        assert "v1" in {entry["annotations"][REF_NAME] for entry in named_in(Layout(out))}

    def test_a_directory_of_other_things_is_refused_and_not_touched(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(UsageError, match="not empty and not an OCI layout"):
            copy(layout.path, tmp_path / "out")
        assert names_in(tmp_path / "out") == ["thesis.txt"]

    @pytest.mark.parametrize("name", [".thesis", "thesis.partial", "blobs.txt"])
    def test_what_only_looks_a_little_like_ours_is_not(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).touch()
        with pytest.raises(UsageError):
            copy(layout.path, tmp_path / "out")

    def test_a_file_in_its_place_is_refused(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        (tmp_path / "out").write_text("mine")
        with pytest.raises(LocalDiskError):
            copy(layout.path, tmp_path / "out")
        assert (tmp_path / "out").read_text() == "mine"

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("index.json", b"{"),
            ("index.json", b""),
            ("oci-layout", b"garbage"),
            ("oci-layout", b'{"imageLayoutVersion": "9.0.0"}'),
        ],
    )
    def test_one_that_is_malformed_is_refused_before_anything_is_asked_for(
        self, layout: Layout, name: str, content: bytes
    ) -> None:
        small_image(layout, name="v1")
        (layout.path / name).write_bytes(content)
        with pytest.raises(ArchiveError) as caught:
            LayoutSink(layout.path)
        assert str(layout.path) in caught.value.what
        assert name in caught.value.what

    @pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "index.json", "oci-layout"])
    def test_so_is_one_with_a_link_in_it(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        (layout.path / name).rename(tmp_path / "elsewhere")
        (layout.path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArchiveError, match=re.escape(str(layout.path / name))):
            LayoutSink(layout.path)

    def test_the_marker_of_another_tool_stays_as_it_is(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        before = (out.path / "oci-layout").read_bytes()
        copy(layout.path, out.path)
        assert (out.path / "oci-layout").read_bytes() == before


class TestReading:
    def test_a_directory_that_is_not_there_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="no such directory"):
            LayoutSource(tmp_path / "gone")

    def test_a_directory_without_an_index_is_no_layout(self, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match=r"no index\.json"):
            LayoutSource(tmp_path)

    def test_the_marker_may_be_lacking(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        (layout.path / "oci-layout").unlink()
        assert graph_of(layout.path).roots[0].descriptor.digest == image["digest"]

    @pytest.mark.parametrize("raw", [b"", b"{}", b'{"imageLayoutVersion": "2.0.0"}'])
    def test_another_version_is_refused(self, layout: Layout, raw: bytes) -> None:
        (layout.path / "oci-layout").write_bytes(raw)
        with pytest.raises(ArchiveError, match="oci-layout"):
            LayoutSource(layout.path)

    @pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"manifests": 1}', b" " * (limits.MAX_MANIFEST + 1)])
    def test_a_malformed_index_is_refused(self, layout: Layout, raw: bytes) -> None:
        small_image(layout, name="v1")
        (layout.path / "index.json").write_bytes(raw)
        with pytest.raises(ArchiveError) as caught:
            graph_of(layout.path)
        assert caught.value.exit_code == 6

    def test_a_manifest_that_was_changed_is_refused(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        content = layout.file(image["digest"]).read_bytes()
        layout.file(image["digest"]).write_bytes(content[:-1] + b" ")
        with pytest.raises(IntegrityError, match=image["digest"]):
            graph_of(layout.path)

    def test_a_file_that_grew_is_found_out_after_one_byte(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        blob = graph_of(layout.path).blobs[1]
        with layout.file(blob.digest).open("ab") as file:
            file.write(bytes(1 << 20))
        read = sum(len(chunk) for chunk in LayoutDirectory(layout.path).blob_chunks(blob.digest, blob.size))
        assert read == blob.size + 1


class TestStrangeFiles:
    """A layout from somebody else may hold links, FIFOs and directories in a file's place."""

    @pytest.fixture
    def image(self, layout: Layout) -> Descriptor:
        made = small_image(layout, name="v1")
        return graph_of(layout.path).blobs[1] if made else descriptor_of(b"")

    @pytest.fixture
    def secret(self, layout: Layout, image: Descriptor, tmp_path: Path) -> Path:
        """Move a blob out of the layout; whoever follows a link would find the very bytes it wants."""
        return layout.file(image.digest).rename(tmp_path / "secret")

    def refused(self, layout: Layout, tmp_path: Path, kind: type[OcistreamError] = ArchiveError) -> None:
        with pytest.raises(kind) as caught:
            copy(layout.path, tmp_path / "out")
        assert caught.value.exit_code == 6
        assert "index.json" not in names_in(tmp_path / "out")

    def test_a_link_in_a_blobs_place_is_not_followed(
        self, layout: Layout, image: Descriptor, secret: Path, tmp_path: Path
    ) -> None:
        layout.file(image.digest).symlink_to(secret)
        self.refused(layout, tmp_path, MissingContentError)
        with pytest.raises(ArchiveError, match="not a regular file"):
            LayoutDirectory(layout.path).read_blob(image)
        assert LayoutDirectory(layout.path).blob_size(image.digest) is None

    def test_a_fifo_or_a_directory_in_a_blobs_place_is_not_read(
        self, layout: Layout, image: Descriptor, secret: Path, tmp_path: Path
    ) -> None:
        del secret
        path = layout.file(image.digest)
        os.mkfifo(path)
        self.refused(layout, tmp_path, MissingContentError)
        path.unlink()
        path.mkdir()
        self.refused(layout, tmp_path, MissingContentError)
        with pytest.raises(ArchiveError, match="not a regular file"):
            LayoutDirectory(layout.path).open_blob(image.digest)

    @pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
    def test_a_link_in_a_folders_place_is_refused(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        (layout.path / name).rename(tmp_path / "elsewhere")
        (layout.path / name).symlink_to(tmp_path / "elsewhere")
        self.refused(layout, tmp_path)

    @pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
    def test_nor_is_anything_written_through_it(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        (out.path / "blobs" / "sha256").mkdir()
        (out.path / name).rename(tmp_path / "elsewhere")
        (out.path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArchiveError, match="symbolic link"):
            copy(layout.path, out.path)
        assert names_in(tmp_path / "elsewhere") == []

    @pytest.mark.parametrize("name", ["index.json", "oci-layout"])
    @pytest.mark.parametrize("how", ["link", "directory", "fifo"])
    def test_what_is_no_file_is_refused_in_a_small_files_place(
        self, layout: Layout, tmp_path: Path, name: str, how: str
    ) -> None:
        small_image(layout, name="v1")
        path = layout.path / name
        path.rename(tmp_path / "elsewhere")
        if how == "link":
            path.symlink_to(tmp_path / "elsewhere")
        elif how == "directory":
            path.mkdir()
        else:
            os.mkfifo(path)
        with pytest.raises(ArchiveError, match=f"{name} is not a regular file"):
            graph_of(layout.path)

    def test_a_file_in_a_folders_place_means_that_nothing_is_there(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        shutil.rmtree(layout.path / "blobs")
        (layout.path / "blobs").write_text("no folder")
        self.refused(layout, tmp_path, MissingContentError)

    def test_a_link_is_replaced_by_the_blob_and_not_written_through(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        precious = tmp_path / "precious"
        precious.write_text("mine")
        for blob in graph_of(layout.path).blobs:
            link = out.path / blob_name(blob.digest)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(precious)
        copy(layout.path, out.path)
        assert precious.read_text() == "mine"
        assert validate_layout(out.path) == 4

    def test_a_name_too_long_for_the_disk_is_an_error_of_the_disk(self) -> None:
        directory = LayoutDirectory(Path("/" + "a" * 300))
        with pytest.raises(LocalDiskError, match="too long"):
            directory.blob_size(ABSENT)


class TestAdding:
    def test_a_corrupt_blob_is_written_over(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        copy(layout.path, tmp_path / "out")
        blob = graph_of(layout.path).blobs[1]
        path = tmp_path / "out" / blob_name(blob.digest)
        content = path.read_bytes()
        for wrong in (content[:-1] + b"\xff", content[:-1], content + b"\0", b""):
            path.write_bytes(wrong)
            report = copy(layout.path, tmp_path / "out")
            assert path.read_bytes() == content
            assert {moved.descriptor.digest for moved in report.blobs if moved.how == "copied"} == {blob.digest}

    def test_a_corrupt_manifest_is_written_over(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        copy(layout.path, tmp_path / "out")
        path = tmp_path / "out" / blob_name(image["digest"])
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b" ")
        copy(layout.path, tmp_path / "out")
        assert path.read_bytes() == content

    def test_what_is_there_is_not_written_again(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        copy(layout.path, tmp_path / "out")
        blobs = tmp_path / "out" / "blobs" / "sha256"
        before = {path.name: path.stat().st_ino for path in blobs.iterdir()}
        copy(layout.path, tmp_path / "out")
        assert {path.name: path.stat().st_ino for path in blobs.iterdir()} == before

    def test_names_are_merged(self, layout: Layout, tmp_path: Path) -> None:
        out = Layout(tmp_path / "out")
        first, second = small_image(out, name="kept"), two_platforms(out, name="moved")
        newer = small_image(layout, name="moved", platform="linux/arm64")
        copy(layout.path, out.path)
        entries = {entry["annotations"][REF_NAME]: entry["digest"] for entry in named_in(out)}
        assert entries == {"kept": first["digest"], "moved": newer["digest"]}
        # What the old name meant is still there: `gc` is who removes it.
        assert out.file(second["digest"]).exists()

    @pytest.mark.parametrize("left", [0, 1])
    def test_a_failure_leaves_no_partial_file(self, tmp_path: Path, left: int) -> None:
        content = bytes(3 << 20)

        def chunks() -> Iterator[Chunk]:
            yield content[: len(content) - left]
            raise MemoryError

        sink = LayoutSink(tmp_path / "out")
        with pytest.raises(MemoryError):
            sink.put(Blob(descriptor_of(content), chunks))
        assert [name for name in names_in(tmp_path / "out") if name != "oci-layout"] == []

    def test_a_directory_in_a_blobs_place_is_an_error_of_the_disk(self, tmp_path: Path) -> None:
        sink = LayoutSink(tmp_path / "out")
        (tmp_path / "out" / blob_name(digest_of(b"x")) / "full").mkdir(parents=True)
        with pytest.raises(LocalDiskError, match="cannot write the blob"):
            sink.put(Blob(descriptor_of(b"x"), lambda: iter([b"x"])))
        assert not list((tmp_path / "out").rglob("*.partial"))

    def test_a_malformed_index_is_not_written_over(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        (out.path / "index.json").write_bytes(b"{broken")
        with pytest.raises(ArchiveError, match=r"index\.json") as caught:
            copy(layout.path, out.path)
        assert caught.value.exit_code == 6
        assert (out.path / "index.json").read_bytes() == b"{broken"

    def test_an_index_that_nobody_would_read_is_not_written(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        before = (layout.path / "index.json").read_bytes()
        huge = Descriptor(OCI_MANIFEST, ABSENT, 1, annotations={REF_NAME: "x" * limits.MAX_MANIFEST})
        with pytest.raises(UnsupportedError, match="would be larger"):
            LayoutDirectory(layout.path).change_index(lambda entries: [*entries, huge])
        assert (layout.path / "index.json").read_bytes() == before

    def test_a_change_that_fails_changes_nothing(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        before = (layout.path / "index.json").read_bytes()

        def fail(entries: list[Descriptor]) -> list[Descriptor]:
            raise IntegrityError(str(len(entries)))

        with pytest.raises(IntegrityError, match="1"):
            LayoutDirectory(layout.path).change_index(fail)
        assert (layout.path / "index.json").read_bytes() == before

    def test_a_blob_can_be_deleted(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        blob = graph_of(layout.path).blobs[1]
        directory = LayoutDirectory(layout.path)
        directory.delete_blob(blob.digest)
        assert not layout.file(blob.digest).exists()
        with pytest.raises(NotFoundError, match=blob.digest):
            directory.delete_blob(blob.digest)
        with pytest.raises(NotFoundError, match=blob.digest):
            directory.read_blob(blob)


def _add(folder: Path, first: int, count: int) -> None:
    directory = LayoutDirectory(folder)
    for number in range(first, first + count):
        entry = Descriptor(OCI_MANIFEST, ABSENT, number, annotations={REF_NAME: f"v{number}"})

        def add(entries: list[Descriptor], new: Descriptor = entry) -> list[Descriptor]:
            return [*entries, new]

        directory.change_index(add)


class TestTogether:
    def test_threads_that_change_the_index_at_once_lose_nothing(self, layout: Layout) -> None:
        threads = [threading.Thread(target=_add, args=(layout.path, n * 20, 20)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(entry["size"] for entry in named_in(layout)) == list(range(80))

    def test_nor_do_processes(self, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        # A process that is spawned looks for this module in the path, where importlib's mode does not put it.
        monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=_add, args=(layout.path, n * 20, 20)) for n in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert sorted(entry["size"] for entry in named_in(layout)) == list(range(60))
        assert sorted(path.name for path in layout.path.iterdir()) == ["blobs", "index.json", "oci-layout"]

    def test_copies_into_one_new_directory_at_once_all_arrive(self, tmp_path: Path) -> None:
        made = []
        for number in range(4):
            layout = Layout(tmp_path / f"made-{number}")
            # They share a layer, which all of them write at the same time.
            made.append(small_image(layout, name=f"v{number}", config={"Cmd": [str(number)]}))
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                copy(tmp_path / f"made-{number}", tmp_path / "out")
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        out = Layout(tmp_path / "out")
        assert {entry["digest"] for entry in named_in(out)} == {image["digest"] for image in made}
        assert validate_layout(out.path) == 10


def test_an_index_of_another_tool_keeps_its_entries(layout: Layout, tmp_path: Path) -> None:
    image = small_image(layout)
    entry: dict[str, Any] = {
        **image,
        "platform": {**image["platform"], "os.features": ["win32k"]},
        "artifactType": "application/x",
        "urls": ["https://elsewhere.example"],
        "annotations": {REF_NAME: "theirs", "org.example": "kept"},
    }
    document = {"schemaVersion": 2, "manifests": [entry], "annotations": {"of": "the index"}, "unknown": [1]}
    (layout.path / "index.json").write_text(json.dumps(document))
    other = Layout(tmp_path / "other")
    small_image(other, name="ours")
    copy(other.path, layout.path)
    after = json.loads((layout.path / "index.json").read_bytes())
    assert after["manifests"][0] == entry
    assert {**after, "manifests": [entry]} == document


def test_a_root_keeps_what_its_entry_said(layout: Layout, tmp_path: Path) -> None:
    layout.name(small_image(layout), "v1")
    graph = graph_of(layout.path)
    assert graph.roots == (Root("v1", graph.roots[0].descriptor),)
    copy(layout.path, tmp_path / "out")
    (entry,) = named_in(Layout(tmp_path / "out"))
    assert [entry] == named_in(layout)
    assert entry["platform"] == {"os": "linux", "architecture": "amd64"}
    assert parts_of(Layout(tmp_path / "out")).blobs == parts_of(layout).blobs


def made_of(content: bytes, *, fails: bool = False) -> Unnamed:
    """Return a blob of which the digest is known when all of it was read."""
    whole: list[bool] = []

    def chunks() -> Iterator[Chunk]:
        yield content[:10]
        if fails:
            raise IntegrityError("wrong")
        yield memoryview(content[10:])
        whole.append(True)

    def descriptor() -> Descriptor:
        assert whole, "asked for too early"
        return Descriptor("x/y", digest_of(content), len(content))

    return Unnamed(chunks, descriptor)


class TestUnnamed:
    """Blobs that are made while they move."""

    def test_it_lies_under_its_digest_when_all_of_it_has_passed(self, tmp_path: Path) -> None:
        sink = LayoutSink(tmp_path / "out")
        content = b"content " * 1000
        descriptor = sink.put_unnamed(made_of(content))
        assert (descriptor.digest, descriptor.size) == (digest_of(content), len(content))
        assert Layout(tmp_path / "out").file(descriptor.digest).read_bytes() == content
        assert names_in(tmp_path / "out" / "blobs" / "sha256") == [descriptor.digest.partition(":")[2]]
        assert sink.has(descriptor)
        # What is there and wrong is replaced, what is right may come again.
        Layout(tmp_path / "out").file(descriptor.digest).write_bytes(b"wrong")
        for _ in range(2):
            sink.put_unnamed(made_of(content))
            assert sink.has(descriptor)

    def test_one_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match="wrong"):
            LayoutSink(tmp_path / "out").put_unnamed(made_of(b"content " * 1000, fails=True))
        assert names_in(tmp_path / "out" / "blobs" / "sha256") == []

    def test_the_directory_is_a_layout_once_layers_are_expected(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        LayoutSink(tmp_path / "out").expect(graph_of(layout.path))
        assert LayoutDirectory(tmp_path / "out").exists()
        assert not (tmp_path / "out" / "index.json").exists()

    @pytest.mark.parametrize("where", ["blobs", "blobs/sha256"])
    def test_a_link_is_not_followed_out_of_the_layout(self, tmp_path: Path, where: str) -> None:
        out = Layout(tmp_path / "out").path
        (tmp_path / "elsewhere").mkdir()
        (out / where).rmdir() if (out / where).exists() else None
        (out / where).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArchiveError, match="symbolic link"):
            LayoutSink(out).put_unnamed(made_of(b"content " * 1000))
        assert names_in(tmp_path / "elsewhere") == []

    def test_a_directory_in_its_place_is_an_error_of_the_disk(self, tmp_path: Path) -> None:
        content = b"content " * 1000
        out = Layout(tmp_path / "out")
        out.file(digest_of(content)).mkdir(parents=True)
        (out.file(digest_of(content)) / "full").touch()
        with pytest.raises(LocalDiskError, match="cannot write a blob"):
            LayoutSink(out.path).put_unnamed(made_of(content))
        assert [path.name for path in (out.path / "blobs" / "sha256").iterdir()] == [
            digest_of(content).partition(":")[2]
        ]


def refs_in(folder: Path) -> list[str]:
    return [entry["annotations"][REF_NAME] for entry in named_in(Layout(folder))]


class TestNames:
    def test_two_images_of_one_name_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        archive = Layout(tmp_path / "in")
        small_image(archive, name="v1")
        small_image(archive, name="v1", platform="linux/arm64")
        with pytest.raises(UsageError, match="two images are called 'v1'"):
            transfer.copy(LayoutSource(archive.path), LayoutSink(tmp_path / "out"), Watch())
        assert not (tmp_path / "out").exists()

    def test_one_image_under_one_name_twice_is_not(self, tmp_path: Path) -> None:
        archive = Layout(tmp_path / "in")
        image = small_image(archive)
        archive.name(image, "v1", "v1")
        transfer.copy(LayoutSource(archive.path), LayoutSink(tmp_path / "out"), Watch())
        assert refs_in(tmp_path / "out") == ["v1"]

    def test_what_others_have_called_alike_stays(self, layout: Layout, tmp_path: Path) -> None:
        there = Layout(tmp_path / "out")
        small_image(there, name="old")
        small_image(there, name="old", platform="linux/arm64")
        small_image(layout, name="new")
        transfer.copy(LayoutSource(layout.path), LayoutSink(there.path), Watch())
        assert refs_in(there.path) == ["old", "old", "new"]
