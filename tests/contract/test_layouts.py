"""A layout directory: how it is created, and how an untrusted one is read."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    LocalDiskError,
    MissingContentError,
    NotFoundError,
    OcistreamError,
    UsageError,
)
from tests.archives import blob_name
from tests.contract import adapter
from tests.contract.adapter import Copied, layout_destination, layout_source
from tests.contract.adapter_types import Listing
from tests.contract.image_shapes import named_in
from tests.contract.stores import REF_NAME
from tests.images import Layout, small_image
from tests.schemas import validate_layout


def copy(source: Path, destination: Path) -> Copied:
    return adapter.copy(layout_source(source), layout_destination(destination))


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def listing_of(folder: Path) -> Listing:
    return layout_source(folder).list()


class TestCreating:
    def test_a_new_directory_becomes_a_layout(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        copy(layout.path, tmp_path / "a" / "b")
        assert validate_layout(tmp_path / "a" / "b") == 4

    @pytest.mark.parametrize("there", ["oci-layout", "index.json", "blobs", ".oci-layout.0123456789ab.partial"])
    def test_an_unfinished_layout_is_completed(self, layout: Layout, tmp_path: Path, there: str) -> None:
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

    def test_a_directory_of_other_files_is_refused_and_unchanged(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(UsageError, match="not empty and not an OCI layout"):
            copy(layout.path, tmp_path / "out")
        assert names_in(tmp_path / "out") == ["thesis.txt"]

    @pytest.mark.parametrize("name", [".thesis", "thesis.partial", "blobs.txt"])
    def test_names_that_resemble_those_of_a_layout_are_other_files(
        self, layout: Layout, tmp_path: Path, name: str
    ) -> None:
        small_image(layout, name="v1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).touch()
        with pytest.raises(UsageError):
            copy(layout.path, tmp_path / "out")

    def test_a_file_at_the_path_of_the_directory_is_refused(self, layout: Layout, tmp_path: Path) -> None:
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
    def test_a_malformed_layout_is_refused_on_opening(self, layout: Layout, name: str, content: bytes) -> None:
        small_image(layout, name="v1")
        (layout.path / name).write_bytes(content)
        with pytest.raises(ArchiveError) as caught:
            layout_destination(layout.path)
        assert str(layout.path) in caught.value.message
        assert name in caught.value.message

    @pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "index.json", "oci-layout"])
    def test_a_layout_with_a_link_in_it_is_refused_on_opening(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        (layout.path / name).rename(tmp_path / "elsewhere")
        (layout.path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArchiveError, match=re.escape(str(layout.path / name))):
            layout_destination(layout.path)

    def test_the_oci_layout_file_of_another_tool_is_unchanged(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        before = (out.path / "oci-layout").read_bytes()
        copy(layout.path, out.path)
        assert (out.path / "oci-layout").read_bytes() == before


class TestReading:
    def test_a_missing_directory_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="no such directory"):
            layout_source(tmp_path / "gone")

    def test_a_directory_without_an_index_is_not_a_layout(self, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match=r"no index\.json"):
            layout_source(tmp_path)

    def test_the_oci_layout_file_may_be_missing(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        (layout.path / "oci-layout").unlink()
        assert [digest for _, digest in listing_of(layout.path).images] == [image["digest"]]

    @pytest.mark.parametrize("raw", [b"", b"{}", b'{"imageLayoutVersion": "2.0.0"}'])
    def test_another_version_is_refused(self, layout: Layout, raw: bytes) -> None:
        (layout.path / "oci-layout").write_bytes(raw)
        with pytest.raises(ArchiveError, match="oci-layout"):
            layout_source(layout.path)

    @pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"manifests": 1}', b" " * (limits.MAX_MANIFEST + 1)])
    def test_a_malformed_index_is_refused(self, layout: Layout, raw: bytes) -> None:
        small_image(layout, name="v1")
        (layout.path / "index.json").write_bytes(raw)
        with pytest.raises(ArchiveError) as caught:
            listing_of(layout.path)
        assert caught.value.exit_code == 6

    def test_only_one_byte_beyond_the_size_of_a_blob_is_read(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        source = layout_source(layout.path)
        piece = source.list().blobs[1]
        with layout.file(piece.digest).open("ab") as file:
            file.write(bytes(1 << 20))
        (blob,) = source.blobs([piece])
        assert sum(map(len, blob.open(0))) == piece.size + 1


class TestStrangeFiles:
    """A hostile layout may have links, FIFOs and directories instead of files."""

    @pytest.fixture
    def blob(self, layout: Layout) -> Path:
        """Return the file of a blob."""
        small_image(layout, name="v1")
        return layout.file(listing_of(layout.path).blobs[1].digest)

    @pytest.fixture
    def secret(self, blob: Path, tmp_path: Path) -> Path:
        """Move the blob out of the layout, so that a followed link would find the correct bytes."""
        return blob.rename(tmp_path / "secret")

    def refused(self, layout: Layout, tmp_path: Path, kind: type[OcistreamError] = ArchiveError) -> None:
        with pytest.raises(kind) as caught:
            copy(layout.path, tmp_path / "out")
        assert caught.value.exit_code == 6
        assert "index.json" not in names_in(tmp_path / "out")

    @pytest.mark.parametrize("how", ["link", "fifo", "directory"])
    def test_anything_but_a_file_in_the_place_of_a_blob_is_not_read(
        self, layout: Layout, blob: Path, secret: Path, tmp_path: Path, how: str
    ) -> None:
        if how == "link":
            blob.symlink_to(secret)
        elif how == "fifo":
            os.mkfifo(blob)
        else:
            blob.mkdir()
        self.refused(layout, tmp_path, MissingContentError)

    @pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
    def test_a_link_in_the_place_of_a_folder_is_refused(self, layout: Layout, tmp_path: Path, name: str) -> None:
        small_image(layout, name="v1")
        (layout.path / name).rename(tmp_path / "elsewhere")
        (layout.path / name).symlink_to(tmp_path / "elsewhere")
        self.refused(layout, tmp_path)

    @pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
    def test_nothing_is_written_through_a_link_to_a_folder(self, layout: Layout, tmp_path: Path, name: str) -> None:
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
    def test_anything_but_a_file_in_the_place_of_a_small_file_is_refused(
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
            listing_of(layout.path)

    def test_with_a_file_in_the_place_of_a_folder_its_blobs_are_missing(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        shutil.rmtree(layout.path / "blobs")
        (layout.path / "blobs").write_text("no folder")
        self.refused(layout, tmp_path, MissingContentError)

    def test_a_link_is_replaced_by_the_blob_and_its_target_is_unchanged(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        precious = tmp_path / "precious"
        precious.write_text("mine")
        for blob in listing_of(layout.path).blobs:
            link = out.path / blob_name(blob.digest)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(precious)
        copy(layout.path, out.path)
        assert precious.read_text() == "mine"
        assert validate_layout(out.path) == 4
