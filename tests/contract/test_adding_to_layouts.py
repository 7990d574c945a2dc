"""Adding images to a layout directory: content is complete before it is named, and several copies may run at once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    LocalDiskError,
    UnsupportedError,
    UsageError,
)
from tests.archives import blob_name
from tests.contract import adapter
from tests.contract.adapter import Blob, Chunk, layout_destination, layout_source
from tests.contract.adapter_types import Piece, Wanted
from tests.contract.image_shapes import named_in, parts_of
from tests.contract.stores import REF_NAME
from tests.contract.test_layouts import copy, listing_of, names_in
from tests.contract.traced_run import leave
from tests.images import Layout, digest_of, small_image, two_platforms
from tests.schemas import validate_layout


def made_of(content: bytes, *, left: int = 0, fails: bool = False) -> Blob:
    """Return a blob; with `fails` its chunks raise before the last `left` bytes."""

    def chunks(offset: int) -> Iterator[Chunk]:
        assert offset == 0
        yield content[: len(content) - left]
        if fails:
            raise IntegrityError("wrong")

    return Blob(Piece("application/octet-stream", digest_of(content), len(content)), chunks)


def open_descriptors(path: Path) -> int:
    """Count the descriptors of this process that refer to `path`."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        # The descriptor of this listing may be closed by now.
        with contextlib.suppress(FileNotFoundError):
            found += link.readlink() == path
    return found


class TestAdding:
    def test_a_corrupt_blob_is_replaced(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        copy(layout.path, tmp_path / "out")
        blob = listing_of(layout.path).blobs[1]
        path = tmp_path / "out" / blob_name(blob.digest)
        content = path.read_bytes()
        for wrong in (content[:-1] + b"\xff", content[:-1], content + b"\0", b""):
            path.write_bytes(wrong)
            done = copy(layout.path, tmp_path / "out")
            assert path.read_bytes() == content
            assert {digest for digest, how in done.outcomes.items() if how == "copied"} == {blob.digest}

    def test_a_corrupt_manifest_is_replaced(self, layout: Layout, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        copy(layout.path, tmp_path / "out")
        path = tmp_path / "out" / blob_name(image["digest"])
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b" ")
        copy(layout.path, tmp_path / "out")
        assert path.read_bytes() == content

    def test_existing_blobs_are_not_written_again(self, layout: Layout, tmp_path: Path) -> None:
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
        # The old image is still stored until `gc` removes it.
        assert out.file(second["digest"]).exists()

    @pytest.mark.parametrize("left", [0, 1])
    def test_a_failure_leaves_no_partial_file(self, tmp_path: Path, left: int) -> None:
        with pytest.raises(IntegrityError):
            layout_destination(tmp_path / "out").write(made_of(bytes(3 << 20), left=left, fails=True))
        assert [name for name in names_in(tmp_path / "out") if name != "oci-layout"] == []

    def test_a_directory_in_the_place_of_a_blob_is_a_disk_error(self, tmp_path: Path) -> None:
        destination = layout_destination(tmp_path / "out")
        (tmp_path / "out" / blob_name(digest_of(b"x")) / "full").mkdir(parents=True)
        with pytest.raises(LocalDiskError, match="cannot write the blob"):
            destination.write(made_of(b"x"))
        assert not list((tmp_path / "out").rglob("*.partial"))

    def test_a_malformed_index_is_not_overwritten(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        (out.path / "index.json").write_bytes(b"{broken")
        with pytest.raises(ArchiveError, match=r"index\.json") as caught:
            copy(layout.path, out.path)
        assert caught.value.exit_code == 6
        assert (out.path / "index.json").read_bytes() == b"{broken"

    def test_an_index_that_would_be_too_large_to_read_is_not_written(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        out = Layout(tmp_path / "out")
        image = small_image(out)
        entry = {**image, "annotations": {REF_NAME: "old", "note": "x" * (limits.MAX_MANIFEST - 500)}}
        before = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
        assert len(before) < limits.MAX_MANIFEST
        (out.path / "index.json").write_bytes(before)
        with pytest.raises(UnsupportedError, match="would be larger"):
            copy(layout.path, out.path)
        assert (out.path / "index.json").read_bytes() == before


class TestConcurrentCopies:
    def test_copies_by_several_processes_at_once_lose_nothing(self, tmp_path: Path) -> None:
        sources = [Layout(tmp_path / f"made-{number}") for number in range(4)]
        for number, source in enumerate(sources):
            layout = small_image(source, config={"Cmd": [str(number)]})
            source.name(layout, *(f"v{number}-{name}" for name in range(5)))
        (tmp_path / "out").mkdir()
        children = []
        for source in sources:
            child = os.fork()
            if not child:
                code = 1
                try:
                    for name in named_in(source):
                        wanted = Wanted(images=(name["annotations"][REF_NAME],))
                        adapter.copy(layout_source(source.path, wanted), layout_destination(tmp_path / "out"))
                    code = 0
                finally:
                    leave(code)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        names = {entry["annotations"][REF_NAME] for entry in named_in(Layout(tmp_path / "out"))}
        assert names == {f"v{number}-{name}" for number in range(4) for name in range(5)}
        assert names_in(tmp_path / "out")[-2:] == ["index.json", "oci-layout"]
        assert validate_layout(tmp_path / "out")

    def test_copies_by_several_threads_into_a_new_directory_all_arrive(self, tmp_path: Path) -> None:
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

    def test_the_first_blobs_of_several_threads_take_one_lock_which_is_released(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        other_thread = threading.Barrier(2)
        locks: list[int] = []
        flock = fcntl.flock

        def waits(descriptor: int, operation: int) -> None:
            if operation & fcntl.LOCK_SH and Path(f"/proc/self/fd/{descriptor}").readlink() == out / "blobs":
                locks.append(descriptor)
                # Give the other thread time to arrive here too.
                with contextlib.suppress(threading.BrokenBarrierError):
                    other_thread.wait(0.5)
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", waits)
        destination = layout_destination(out)
        blobs = [made_of(b"one"), made_of(b"another")]
        threads = [threading.Thread(target=destination.write, args=[blob]) for blob in blobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [(out / blob_name(blob.digest)).read_bytes() for blob in blobs] == [b"one", b"another"]
        assert len(locks) == 1
        destination.close()
        # `gc` removes nothing while the lock is held.
        assert open_descriptors(out / "blobs") == 0


def test_entries_of_another_tool_are_kept(layout: Layout, tmp_path: Path) -> None:
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


def test_an_image_keeps_the_fields_of_its_entry(layout: Layout, tmp_path: Path) -> None:
    layout.name(small_image(layout), "v1")
    copy(layout.path, tmp_path / "out")
    (entry,) = named_in(Layout(tmp_path / "out"))
    assert [entry] == named_in(layout)
    assert entry["platform"] == {"os": "linux", "architecture": "amd64"}
    assert parts_of(Layout(tmp_path / "out")).blobs == parts_of(layout).blobs


class TestUnnamed:
    """Layers whose digest is known only after their last byte."""

    def test_a_layer_gets_its_name_after_its_last_byte(self, tmp_path: Path) -> None:
        destination = layout_destination(tmp_path / "out")
        content = b"content " * 1000
        blob = made_of(content)
        path = Layout(tmp_path / "out").file(blob.digest)
        destination.write_unnamed(blob)
        assert path.read_bytes() == content
        assert names_in(tmp_path / "out" / "blobs" / "sha256") == [blob.digest.partition(":")[2]]
        assert destination.stored([blob.piece])
        # A wrong file is replaced, and a correct one may be written again.
        path.write_bytes(b"wrong")
        for _ in range(2):
            destination.write_unnamed(blob)
            assert destination.stored([blob.piece])
            assert path.read_bytes() == content

    def test_a_failed_layer_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match="wrong"):
            layout_destination(tmp_path / "out").write_unnamed(made_of(b"content " * 1000, left=1, fails=True))
        assert names_in(tmp_path / "out" / "blobs" / "sha256") == []

    @pytest.mark.parametrize("where", ["blobs", "blobs/sha256"])
    def test_a_link_is_not_followed_out_of_the_layout(self, tmp_path: Path, where: str) -> None:
        out = Layout(tmp_path / "out").path
        (tmp_path / "elsewhere").mkdir()
        (out / where).rmdir() if (out / where).exists() else None
        (out / where).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArchiveError, match="symbolic link"):
            layout_destination(out).write_unnamed(made_of(b"content " * 1000))
        assert names_in(tmp_path / "elsewhere") == []

    def test_a_directory_in_its_place_is_a_disk_error(self, tmp_path: Path) -> None:
        content = b"content " * 1000
        out = Layout(tmp_path / "out")
        out.file(digest_of(content)).mkdir(parents=True)
        (out.file(digest_of(content)) / "full").touch()
        with pytest.raises(LocalDiskError, match="cannot write a blob"):
            layout_destination(out.path).write_unnamed(made_of(content))
        assert [path.name for path in (out.path / "blobs" / "sha256").iterdir()] == [
            digest_of(content).partition(":")[2]
        ]


def refs_in(folder: Path) -> list[str]:
    return [entry["annotations"][REF_NAME] for entry in named_in(Layout(folder))]


class TestNames:
    def test_two_images_with_the_same_name_are_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        archive = Layout(tmp_path / "in")
        small_image(archive, name="v1")
        small_image(archive, name="v1", platform="linux/arm64")
        with pytest.raises(UsageError, match="two images have the name 'v1'"):
            copy(archive.path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_image_that_is_listed_twice_under_the_same_name_is_accepted(self, tmp_path: Path) -> None:
        archive = Layout(tmp_path / "in")
        image = small_image(archive)
        archive.name(image, "v1", "v1")
        copy(archive.path, tmp_path / "out")
        assert refs_in(tmp_path / "out") == ["v1"]

    def test_two_images_with_the_same_name_from_another_tool_are_kept(self, layout: Layout, tmp_path: Path) -> None:
        there = Layout(tmp_path / "out")
        small_image(there, name="old")
        small_image(there, name="old", platform="linux/arm64")
        small_image(layout, name="new")
        copy(layout.path, there.path)
        assert refs_in(there.path) == ["old", "old", "new"]
