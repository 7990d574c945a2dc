"""Archives as they are written: small entries first, deterministic bytes, readable by other tools."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, LocalDiskError, NotFoundError, OutputClosedError
from tests.archives import END, blob_name, check_blobs, files_in, items_of, member, tar_of, unpack
from tests.contract.adapter import (
    Blob,
    Chunk,
    Source,
    archive_destination,
    archive_source,
    copy,
    layout_source,
    pipe_destination,
)
from tests.contract.adapter_types import Piece
from tests.contract.image_shapes import SHAPES, parts_of
from tests.images import Layout, digest_of, small_image, two_platforms
from tests.peers import need
from tests.schemas import validate_layout


def archive_of(source: Source, path: Path, *, mtime: int = 0) -> bytes:
    """Copy everything into an archive at `path`, and return its bytes."""
    copy(source, archive_destination(path, mtime=mtime))
    source.close()
    return path.read_bytes()


def images_in(path: Path) -> list[str]:
    with archive_source(path) as source:
        return [digest for _, digest in source.list().images]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def every_shape(layout: Layout) -> Layout:
    """Return a layout with an image of each shape, under full names."""
    for name, make in SHAPES.items():
        # The schemas require at least one layer.
        if name != "no-layers":
            make(layout, f"registry.example/{name}:v1")
    return layout


class TestOrder:
    def test_indexes_and_manifests_come_before_blobs(self, layout: Layout, tmp_path: Path) -> None:
        two_platforms(layout, name="registry.example/app:v1")
        files = files_in(archive_of(layout_source(layout.path), tmp_path / "a.tar"))
        listing = layout_source(layout.path).list()
        manifests = [blob_name(manifest.piece.digest) for manifest in listing.manifests]
        blobs = [blob_name(blob.digest) for blob in listing.blobs]
        assert list(files) == ["oci-layout", "index.json", "manifest.json", *manifests, *blobs]
        assert {blob_name(digest) for digest in listing.configs} == set(blobs[:2])

    def test_layers_of_unknown_digest_come_first_and_once(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="registry.example/app:v1")
        source = layout_source(layout.path)
        listing = source.list()
        destination = archive_destination(tmp_path / "a.tar")
        destination.expect(listing)
        for blob in source.blobs(listing.blobs):
            # The same content may come again: two layers may become one.
            for _ in range(2):
                destination.write_unnamed(blob)
                assert destination.stored([blob.piece])
        destination.begin(listing)
        destination.commit(listing)
        files = files_in((tmp_path / "a.tar").read_bytes())
        blobs = [blob_name(blob.digest) for blob in listing.blobs]
        manifests = [blob_name(manifest.piece.digest) for manifest in listing.manifests]
        assert list(files) == ["oci-layout", *blobs, "index.json", "manifest.json", *manifests]
        assert check_blobs(files) == {*parts_of(layout).blobs, *parts_of(layout).manifests}

    def test_early_blobs_and_manifests_come_before_the_index_and_once(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        source = layout_source(layout.path)
        listing = source.list()
        (manifest,) = listing.manifests
        first, *others = source.blobs(listing.blobs)
        destination = archive_destination(tmp_path / "a.tar")
        destination.write(first)
        destination.write(Blob(manifest.piece, lambda _: iter([manifest.raw])))
        destination.begin(listing)
        for blob in others:
            destination.write(blob)
        destination.commit(listing)
        files = files_in((tmp_path / "a.tar").read_bytes())
        early = [blob_name(first.digest), blob_name(manifest.piece.digest)]
        assert list(files)[:4] == ["oci-layout", *early, "index.json"]
        assert check_blobs(files) == {*parts_of(layout).blobs, *parts_of(layout).manifests}


class TestReaders:
    def test_an_archive_is_a_valid_layout(self, every_shape: Layout, tmp_path: Path) -> None:
        archive_of(layout_source(every_shape.path), tmp_path / "a.tar")
        with tarfile.open(tmp_path / "a.tar") as archive:
            unpack(archive, tmp_path / "out")
        assert validate_layout(tmp_path / "out") > 20
        assert parts_of(Layout(tmp_path / "out")) == parts_of(every_shape)

    def test_gnu_tar_reads_every_name(self, layout: Layout, tmp_path: Path) -> None:
        need("tar")
        small_image(layout, name="v1", algorithm="sha512")
        files = files_in(archive_of(layout_source(layout.path), tmp_path / "a.tar"))
        command = ["tar", "-tf", str(tmp_path / "a.tar")]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == list(files)
        assert sum(len(name) > 100 for name in files) == 4

    def test_manifest_json_has_paths_of_entries(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="registry.example/app:v1")
        files = files_in(archive_of(layout_source(layout.path), tmp_path / "a.tar"))
        (entry,) = json.loads(files["manifest.json"])
        assert {entry["Config"], *entry["Layers"]} <= files.keys()
        assert entry["RepoTags"] == ["registry.example/app:v1"]

    def test_an_archive_of_artifacts_has_no_manifest_json(self, layout: Layout, tmp_path: Path) -> None:
        layout.artifact(b"sbom", name="v1")
        assert "manifest.json" not in files_in(archive_of(layout_source(layout.path), tmp_path / "a.tar"))


class TestDeterminism:
    def test_two_runs_and_a_copy_of_the_archive_give_the_same_bytes(self, every_shape: Layout, tmp_path: Path) -> None:
        first = archive_of(layout_source(every_shape.path), tmp_path / "a.tar", mtime=5)
        assert archive_of(layout_source(every_shape.path), tmp_path / "b.tar", mtime=5) == first
        assert archive_of(archive_source(tmp_path / "a.tar"), tmp_path / "c.tar", mtime=5) == first

    @pytest.mark.parametrize("mtime", [0, 1_700_000_000])
    def test_every_entry_has_the_given_time(self, layout: Layout, tmp_path: Path, mtime: int) -> None:
        small_image(layout, name="v1")
        archive = archive_of(layout_source(layout.path), tmp_path / "a.tar", mtime=mtime)
        with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
            assert {entry.mtime for entry in reader} == {mtime}

    def test_a_stream_gets_the_same_bytes_as_a_file(self, every_shape: Layout, tmp_path: Path) -> None:
        expected = archive_of(layout_source(every_shape.path), tmp_path / "a.tar")
        with io.FileIO(tmp_path / "streamed", "wb") as file:
            copy(layout_source(every_shape.path), pipe_destination(file))
        assert (tmp_path / "streamed").read_bytes() == expected


def failing(content: bytes) -> Blob:
    def chunks(offset: int) -> Iterator[Chunk]:
        assert offset == 0
        yield content
        raise IntegrityError("at the end")

    return Blob(Piece("text/plain", digest_of(content), len(content)), chunks)


class TestFailures:
    def test_an_old_file_is_kept_until_the_new_one_is_complete(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        path = tmp_path / "out" / "a.tar"
        path.parent.mkdir()
        path.write_bytes(b"old")
        destination = archive_destination(path)
        destination.begin(layout_source(layout.path).list())
        assert path.read_bytes() == b"old"
        with pytest.raises(IntegrityError):
            destination.write(failing(b"x"))
        destination.close()
        assert names_in(path.parent) == ["a.tar"]
        assert path.read_bytes() == b"old"

    def test_a_directory_that_appears_at_the_output_path_is_a_disk_error(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = tmp_path / "out"
        out.mkdir()
        source = layout_source(layout.path)
        listing = source.list()
        destination = archive_destination(out / "a.tar")
        destination.begin(listing)
        for blob in source.blobs(listing.blobs):
            destination.write(blob)
        (out / "a.tar" / "full").mkdir(parents=True)
        with pytest.raises(LocalDiskError, match=r"cannot write .*a\.tar"):
            destination.commit(listing)
        destination.close()
        assert names_in(out) == ["a.tar"]

    @pytest.mark.parametrize("kind", ["file", "stream"])
    def test_a_failed_sync_is_a_disk_error(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        small_image(layout, name="v1")
        out = tmp_path / "out"
        out.mkdir()

        def failing_sync(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", failing_sync)
        with io.FileIO(tmp_path / "streamed", "wb") as file:
            destination = archive_destination(out / "a.tar") if kind == "file" else pipe_destination(file)
            with pytest.raises(LocalDiskError, match="cannot write"):
                copy(layout_source(layout.path), destination)
            destination.close()
        assert names_in(out) == []

    def test_a_missing_folder_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"a\.tar"):
            archive_destination(tmp_path / "gone" / "a.tar")

    def test_a_stream_gets_no_end_of_archive_after_a_failure(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        with io.FileIO(tmp_path / "streamed", "wb") as file:
            destination = pipe_destination(file)
            destination.begin(layout_source(layout.path).list())
            with pytest.raises(IntegrityError):
                destination.write(failing(b"x" * 512))
            destination.close()
        taken = (tmp_path / "streamed").read_bytes()
        assert taken.endswith(b"x" * 512)
        assert END not in taken[-1536:]

    def test_a_closed_pipe_is_reported_as_closed_output(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        outlet, inlet = os.pipe()
        os.close(outlet)
        with io.FileIO(inlet, "wb") as file, pytest.raises(OutputClosedError) as caught:
            copy(layout_source(layout.path), pipe_destination(file))
        assert caught.value.exit_code == 141


class TestReadingFiles:
    """Cases that only a file can have; the rest is in test_sources.py and test_pipes.py."""

    def test_a_missing_file_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match=r"a\.tar"):
            archive_source(tmp_path / "a.tar")

    def test_a_directory_is_a_disk_error(self, tmp_path: Path) -> None:
        with pytest.raises(LocalDiskError):
            archive_source(tmp_path)

    def test_a_truncated_file_is_refused_on_opening(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        archive = tar_of(items_of(layout))
        path = tmp_path / "a.tar"
        for length in range(0, len(archive), 101):
            path.write_bytes(archive[:length])
            with pytest.raises(ArchiveError, match="is truncated" if length else "is empty"):
                archive_source(path)

    def test_a_size_beyond_the_file_is_detected_without_reading(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(member("a", tarfile.REGTYPE, size=1 << 50) + END)
        with pytest.raises(ArchiveError, match=r"truncated: .* in the middle of an entry"):
            archive_source(tmp_path / "a.tar")

    @pytest.mark.parametrize("name", ["oci-layout", "index.json"])
    def test_a_small_file_that_is_too_large_is_refused(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        items = dict(items_of(layout)) | {name: b" " * (limits.MAX_MANIFEST + 1)}
        (tmp_path / "a.tar").write_bytes(tar_of(items.items()))
        with pytest.raises(ArchiveError, match="of the archive is larger"):
            images_in(tmp_path / "a.tar")

    def test_an_oci_layout_file_is_optional_but_must_be_valid(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        items = dict(items_of(layout))
        del items["oci-layout"]
        largest = b'{"imageLayoutVersion": "1.0.0"}'.ljust(limits.MAX_LAYOUT_FILE)
        for more in ([], [("oci-layout", largest)]):
            (tmp_path / "a.tar").write_bytes(tar_of([*items.items(), *more]))
            assert images_in(tmp_path / "a.tar") == [image["digest"]]
        (tmp_path / "a.tar").write_bytes(tar_of([*items.items(), ("oci-layout", b"{}")]))
        with pytest.raises(ArchiveError, match="oci-layout"):
            images_in(tmp_path / "a.tar")

    def test_a_file_that_shrinks_during_a_read_is_an_integrity_error(self, layout: Layout, tmp_path: Path) -> None:
        layout.image([1 << 20], name="v1")
        path = tmp_path / "a.tar"
        path.write_bytes(tar_of(items_of(layout)))
        with archive_source(path) as source:
            listing = source.list()
            os.truncate(path, 4096)
            _, layer = source.blobs(listing.blobs)
            with pytest.raises(IntegrityError, match="expected"):
                layer.content()
