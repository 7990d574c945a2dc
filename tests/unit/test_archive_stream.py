"""Archives out of a pipe: any order and any dialect gives the same images, and nothing hostile gets through."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pty
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from ocistream.graph import Graph
from ocistream.interfaces import Blob
from ocistream.model import Descriptor, parse_platform
from ocistream.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.stores.archive import ArchiveSink
from ocistream.stores.archive_stream import ArchiveStreamSource, open_stream
from ocistream.stores.index import every_image, images_named
from ocistream.stores.layout import LayoutSink, LayoutSource
from ocistream.stores.outputs import file_output
from ocistream.stream import Chunk, verified
from ocistream.walk import GraphBuilder
from tests.archives import END, Item, Kind, blob_name, items_of, member, padded, pax_header, small_first, tar_of
from tests.contract.shapes import nested_index, parts_of, with_attestation
from tests.docker_archives import archive_of, of_docker_25, saved
from tests.images import OCI_INDEX, Layout, digest_of, small_image, tar_layer, two_platforms
from tests.observers import NothingEarly, Watch


class Pipe(io.RawIOBase):
    """What comes out of a pipe: so many bytes a read, the sizes in turn; an error at the end where `failing`."""

    def __init__(self, content: bytes, sizes: Sequence[int] = (1 << 16,), *, failing: bool = False) -> None:
        self._content = content
        self._sizes = sizes
        self._reads = 0
        self._failing = failing
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._sizes[self._reads % len(self._sizes)])
        self._reads += 1
        part = self._content[self.position : self.position + size]
        if not part and self._failing:
            raise OSError(5, "Input/output error")
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)


class Kept:
    """Keeps what comes early, verified as `transfer` verifies it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.recalled: list[str] = []

    def put(self, blob: Blob) -> None:
        assert not blob.replayable
        assert blob.descriptor.digest not in self.blobs, "the same blob came twice"
        self.blobs[blob.descriptor.digest] = content_of(blob)

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Fail."""
        raise AssertionError(chunks)

    def recall(self, descriptor: Descriptor) -> bytes:
        self.recalled.append(descriptor.digest)
        return self.blobs[descriptor.digest]


def content_of(blob: Blob) -> bytes:
    return b"".join(bytes(chunk) for chunk in verified(blob.open(), blob.descriptor))


@dataclasses.dataclass
class Found:
    """What came out of an archive."""

    graph: Graph
    blobs: dict[str, bytes]
    early: Kept


def found_in(
    archive: bytes | io.RawIOBase,
    *,
    sizes: Sequence[int] = (1 << 16,),
    platforms: PlatformChoice = ALL_PLATFORMS,
    names: Sequence[str] = (),
) -> Found:
    """Read all of an archive as a transfer does."""
    raw = Pipe(archive, sizes) if isinstance(archive, bytes) else archive
    select = images_named(names) if names else every_image
    source = ArchiveStreamSource(io.BufferedReader(raw, 64), select=select, platforms=platforms)
    early = Kept()
    try:
        graph = source.graph(early)
        wanted = [blob for blob in graph.blobs if blob.digest not in early.blobs]
        found = {blob.descriptor.digest: content_of(blob) for blob in source.blobs(wanted)}
    finally:
        source.close()
    needed = {blob.digest for blob in graph.blobs}
    return Found(graph, found | {d: c for d, c in early.blobs.items() if d in needed}, early)


def stored(archive: bytes, path: Path) -> transfer.Report:
    """Copy an archive into a layout, as a transfer does."""
    source = ArchiveStreamSource(io.BufferedReader(Pipe(archive), 1 << 16))
    try:
        return transfer.copy(source, LayoutSink(path), Watch())
    finally:
        source.close()


@functools.cache
def made(folder: Path) -> Layout:
    """Make the images of the property tests, once: an index, a nested one, an attestation, sha512, an empty blob."""
    layout = Layout(folder)
    nested_index(layout, "nested")
    with_attestation(layout, "vouched")
    layout.image([b"", tar_layer({"x": b"y"}), 70_000], name="odd", algorithm="sha512")
    return layout


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a layout that no test may change."""
    return made(tmp_path_factory.mktemp("images") / "layout")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a layout of one small image, which no test may change."""
    layout = Layout(tmp_path_factory.mktemp("small") / "layout")
    small_image(layout, name="v1")
    return layout


def graph_of(layout: Layout, platforms: PlatformChoice = ALL_PLATFORMS) -> Graph:
    return LayoutSource(layout.path, platforms=platforms).graph(NothingEarly())


STRANGERS: Sequence[Item] = (
    ("readme.txt", b"hello"),
    ("repositories", b"{}"),
    ("blobs/sha256/short", b"{}"),
    ("../x/index.json", b"{}"),
    ("/x/index.json", b"{}"),
    ("a" * 200, b"x" * 700),
)
DIRECTORIES: Sequence[Item] = (("blobs", None), ("blobs/sha256", None), ("blobs/sha512", None))
#: Those that can have long names.
DIALECTS: Sequence[Kind] = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
CHOICES = (
    ALL_PLATFORMS,
    PlatformChoice((parse_platform("linux/amd64"),)),
    PlatformChoice((parse_platform("linux/amd64"), parse_platform("linux/arm64"))),
)


class TestAnyArchive:
    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def test_whatever_its_order_and_its_dialect_it_has_the_same_images(
        self, images: Layout, data: st.DataObject
    ) -> None:
        items: list[Item] = data.draw(st.permutations([*items_of(images), *DIRECTORIES]))
        for stranger in data.draw(st.lists(st.sampled_from(STRANGERS), max_size=3)):
            items.insert(data.draw(st.integers(0, len(items))), stranger)
        for again in data.draw(st.lists(st.sampled_from([i for i in items if i[0].startswith("blobs/")]), max_size=3)):
            items.insert(data.draw(st.integers(0, len(items))), again)
        kind = data.draw(st.sampled_from(DIALECTS))
        prefix = data.draw(st.sampled_from(["", "./"]))
        sizes = data.draw(st.lists(st.integers(20, 5000), min_size=1, max_size=4))
        found = found_in(tar_of(items, kind=kind, prefix=prefix), sizes=sizes)
        assert found.graph == graph_of(images)
        assert found.blobs == parts_of(images).blobs

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_a_choice_of_platforms_is_the_same_in_any_order(self, images: Layout, data: st.DataObject) -> None:
        items = data.draw(st.permutations(items_of(images)))
        platforms = data.draw(st.sampled_from(CHOICES))
        select = images_named(["nested"])
        source = LayoutSource(images.path, select=select, platforms=platforms)
        expected = source.graph(NothingEarly())
        found = found_in(tar_of(items), platforms=platforms, names=["nested"])
        assert found.graph == expected
        assert found.blobs.keys() == {blob.digest for blob in expected.blobs}

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_ustar_does_as_well_where_names_are_short(self, small: Layout, data: st.DataObject) -> None:
        items = data.draw(st.permutations(items_of(small)))
        found = found_in(tar_of(items, kind=tarfile.USTAR_FORMAT))
        assert found.graph == graph_of(small)
        assert found.blobs == parts_of(small).blobs

    def test_our_own_order_hands_nothing_over_early(self, images: Layout) -> None:
        assert found_in(tar_of(small_first(images))).early.blobs == {}

    def test_sorted_names_hold_json_and_hand_over_the_rest(self, small: Layout) -> None:
        (image,) = json.loads((small.path / "index.json").read_bytes())["manifests"]
        found = found_in(tar_of(items_of(small)))
        assert set(found.early.blobs) == {layer["digest"] for layer in small.read(image["digest"])["layers"]}
        assert found.early.recalled == []

    def test_json_that_begins_with_space_is_held_too(self, layout: Layout) -> None:
        image = small_image(layout)
        spaced = b"\n\t " + layout.file(image["digest"]).read_bytes()
        layout.name(layout.blob(spaced, image["mediaType"]), "v1")
        layout.file(image["digest"]).unlink()
        items = dict(items_of(layout))
        items["index.json"] = items.pop("index.json")
        assert found_in(tar_of(items.items())).graph == graph_of(layout)

    def test_a_pipe_is_read_to_its_end(self, small: Layout) -> None:
        pipe = Pipe(tar_of(items_of(small)) + bytes(3 << 20))
        found_in(pipe)
        assert pipe.position == len(tar_of(items_of(small))) + (3 << 20)


class TestBudget:
    """What is held before the index comes is bounded; what is over goes to the sink, and is read back."""

    @pytest.mark.parametrize("budget", [0, 1000, 3000])
    def test_what_is_over_it_comes_early_and_is_recalled(
        self, images: Layout, monkeypatch: pytest.MonkeyPatch, budget: int
    ) -> None:
        monkeypatch.setattr(limits, "MAX_HELD_JSON", budget)
        found = found_in(tar_of(items_of(images)))
        assert found.graph == graph_of(images)
        assert found.blobs == parts_of(images).blobs
        assert found.early.recalled
        assert set(found.early.recalled) <= parts_of(images).manifests.keys()

    def test_what_is_used_makes_room(self, images: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = [len(raw) for raw in parts_of(images).manifests.values()]
        monkeypatch.setattr(limits, "MAX_HELD_JSON", max(sizes))
        # Each manifest comes right before what asks for it, so that one at a time has to be held.
        items = dict(items_of(images))
        order = [name for name in small_first(images) if name[0] in map(blob_name, parts_of(images).manifests)]
        first: list[Item] = [("index.json", items.pop("index.json")), *reversed(order)]
        rest = [item for item in items.items() if item not in first]
        assert found_in(tar_of([*first, *rest])).graph == graph_of(images)

    def test_what_fits_in_exactly_is_held_and_held_once(self, images: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        items = items_of(images)
        held = [item for item in items if item[0].startswith("blobs/") and (item[1] or b"").startswith(b"{")]
        monkeypatch.setattr(limits, "MAX_HELD_JSON", sum(len(content or b"") for _, content in held))
        found = found_in(tar_of([*held, *items]))
        assert found.graph == graph_of(images)
        assert not {blob_name(digest) for digest in found.early.blobs} & {name for name, _ in held}

    def test_a_layout_gives_it_back(self, images: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_HELD_JSON", 0)
        report = stored(tar_of(items_of(images)), tmp_path / "out")
        assert parts_of(Layout(tmp_path / "out")) == parts_of(images)
        assert {moved.descriptor.digest for moved in report.blobs} == parts_of(images).blobs.keys()

    def test_a_manifest_that_was_given_back_is_compared_with_a_late_manifest_json(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_HELD_JSON", 0)
        entries = of_docker_25([saved(layout, small_image(layout), "app:1")])
        listed = json.loads(dict(entries)["manifest.json"] or b"")  # type: ignore[arg-type]
        layers = [entry for entry in entries if entry[0] in listed[0]["Layers"]]
        late = [entry for entry in entries if entry[0] in {"manifest.json", "repositories"}]
        first = [entry for entry in entries if entry not in layers and entry not in late]
        assert len(stored(archive_of([*first, *layers, *late]), tmp_path / "out").graph.roots) == 1

    def test_a_config_that_is_not_json_is_called_a_config(self, layout: Layout) -> None:
        image = small_image(layout)
        document = layout.read(image["digest"])
        config = layout.blob(b"not JSON", document["config"]["mediaType"])
        layout.document({**document, "config": config}, name="v1")
        arm = PlatformChoice((parse_platform("linux/arm64"),))
        with pytest.raises(ArchiveError, match=f"{config['digest']} is listed as a config, and is not a JSON object"):
            found_in(tar_of(items_of(layout)), platforms=arm)

    def test_another_archive_cannot(self, small: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_HELD_JSON", 0)
        source = ArchiveStreamSource(io.BufferedReader(Pipe(tar_of(items_of(small)))))
        sink = ArchiveSink(file_output(tmp_path / "a.tar"))
        with pytest.raises(UnsupportedError, match="too many small blobs"):
            transfer.copy(source, sink, Watch())
        sink.close()
        source.close()
        assert list(tmp_path.iterdir()) == []

    def test_json_that_is_larger_than_any_manifest_is_not_held(self, layout: Layout) -> None:
        large = b"{" + b" " * (limits.MAX_MANIFEST - 2) + b"}"
        huge = large + b" "
        layout.image([large, huge], name="v1")
        found = found_in(tar_of(items_of(layout)))
        assert set(found.early.blobs) == {digest_of(huge)}
        assert found.blobs[digest_of(large)] == large


def refused(archive: bytes, path: Path, *kinds: type[OcistreamError]) -> None:
    """Assert that a copy fails with exit 5 or 6, and that nothing is visible but whole blobs."""
    with pytest.raises(kinds or (ArchiveError, IntegrityError)) as caught:
        stored(archive, path)
    assert caught.value.exit_code in {5, 6}
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.name for file in files if file.parent == path} <= {"oci-layout"}
    for file in files:
        if file.parent != path:
            assert digest_of(file.read_bytes(), file.parent.name) == f"{file.parent.name}:{file.name}"  # type: ignore[arg-type]


class TestChanged:
    @pytest.mark.parametrize("order", [items_of, small_first])
    def test_cut_off_at_any_byte_it_is_no_archive(
        self, small: Layout, order: Callable[[Layout], list[Item]], tmp_path: Path
    ) -> None:
        archive = tar_of(order(small))
        for length in {*range(0, len(archive), 131), *range(0, len(archive), 512), len(archive) - 1}:
            refused(archive[:length], tmp_path / "out")

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_one_wrong_bit_in_a_blob_is_found_out(
        self, small: Layout, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        items = data.draw(st.permutations(items_of(small)))
        place = data.draw(st.sampled_from([n for n, item in enumerate(items) if item[0].startswith("blobs/")]))
        name, content = items[place]
        wrong = bytearray(content or b"")
        wrong[data.draw(st.integers(0, len(wrong) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        items[place] = (name, bytes(wrong))
        refused(tar_of(items), tmp_path_factory.mktemp("flipped"))

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_any_other_wrong_bit_changes_nothing_or_is_found_out(self, small: Layout, data: st.DataObject) -> None:
        archive = bytearray(tar_of(data.draw(st.permutations(items_of(small)))))
        archive[data.draw(st.integers(0, len(archive) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        try:
            found = found_in(bytes(archive))
        except (ArchiveError, IntegrityError, UnsupportedError, NotFoundError):
            return
        # The padding, or a name that nothing depends on: what arrived is right all the same.
        assert all(digest_of(content) == digest for digest, content in found.blobs.items())

    def test_a_blob_under_another_ones_digest_is_found_out(self, small: Layout, tmp_path: Path) -> None:
        (image,) = json.loads((small.path / "index.json").read_bytes())["manifests"]
        first, second = (blob_name(layer["digest"]) for layer in small.read(image["digest"])["layers"])
        for order in (items_of(small), small_first(small)):
            items = dict(order)
            items[first], items[second] = items[second], items[first]
            refused(tar_of(items.items()), tmp_path / "out", IntegrityError)

    @pytest.mark.parametrize("early", [True, False])
    def test_a_layer_of_another_size_than_its_manifest_says_is_refused(
        self, layout: Layout, tmp_path: Path, early: bool
    ) -> None:
        document = layout.read(small_image(layout)["digest"])
        document["layers"][0]["size"] += 1
        layout.document(document, name="v1")
        refused(tar_of(items_of(layout) if early else small_first(layout)), tmp_path / "out", IntegrityError)

    def test_a_second_index_is_refused_wherever_it_stands(self, small: Layout, tmp_path: Path) -> None:
        items = small_first(small)
        index = ("index.json", dict(items)["index.json"])
        for place in range(len(items) + 1):
            refused(tar_of([*items[:place], index, *items[place:]]), tmp_path / "out", ArchiveError)

    def test_a_digest_twice_is_checked_each_time(self, small: Layout, tmp_path: Path) -> None:
        for place, order in enumerate((items_of(small), small_first(small))):
            for name, content in order:
                if name.startswith("blobs/") and content:
                    assert found_in(tar_of([*order, (name, content)])).graph == graph_of(small)
                    out = tmp_path / str(place) / name[-4:]
                    wrong = content[:-1] + bytes([content[-1] ^ 1])
                    refused(tar_of([*order, (name, wrong)]), out / "wrong", IntegrityError)
                    refused(tar_of([*order, (name, content + b"x")]), out / "long", ArchiveError)

    def test_blobs_that_are_not_there_are_missed(self, small: Layout, tmp_path: Path) -> None:
        for place, order in enumerate((items_of(small), small_first(small))):
            for name, _ in order:
                if name.startswith("blobs/"):
                    items = [item for item in order if item[0] != name]
                    refused(tar_of(items), tmp_path / str(place) / name[-4:], MissingContentError)

    def test_without_an_index_it_is_no_archive(self, small: Layout, tmp_path: Path) -> None:
        items = [item for item in items_of(small) if item[0] != "index.json"]
        refused(tar_of(items), tmp_path / "out", ArchiveError)
        refused(tar_of([]), tmp_path / "out", ArchiveError)

    @pytest.mark.parametrize("name", ["index.json", "oci-layout"])
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b" " * (limits.MAX_MANIFEST + 1)])
    def test_a_malformed_small_file_is_refused(self, small: Layout, tmp_path: Path, name: str, content: bytes) -> None:
        items = dict(small_first(small)) | {name: content}
        refused(tar_of(items.items()), tmp_path / "out", ArchiveError)


class TestHostile:
    @pytest.mark.parametrize(
        "name",
        [
            "../evil",
            "/tmp/evil",
            "blobs/sha256/../../evil",
            "blobs/sha256/../../../evil",
            "blobs/../evil",
            "./../evil",
            "blobs/sha256/" + "a" * 63 + "/../../evil",
            "evil\n",
        ],
    )
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
    def test_names_that_lead_out_are_passed_over_and_nothing_is_written_there(
        self, small: Layout, tmp_path: Path, name: str, kind: bytes
    ) -> None:
        evil = pax_header(_record("path", name)) + member("x", kind, target="/etc/passwd")
        stored(evil + tar_of(items_of(small)), tmp_path / "a" / "b" / "out")
        assert parts_of(Layout(tmp_path / "a" / "b" / "out")) == parts_of(small)
        assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]
        assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
    @pytest.mark.parametrize("name", ["index.json", "./oci-layout", "blobs/sha256/" + "a" * 64])
    def test_a_link_or_a_device_in_a_files_place_is_refused(
        self, small: Layout, tmp_path: Path, name: str, kind: bytes
    ) -> None:
        for archive in (
            member(name, kind, target="/etc/passwd") + tar_of(items_of(small)),
            tar_of(items_of(small), end=False) + member(name, kind, target="index.json") + END,
        ):
            refused(archive, tmp_path / "out", ArchiveError)

    @pytest.mark.parametrize(
        "evil",
        [
            member("x", tarfile.XHDTYPE, size=limits.MAX_PAX_HEADER + 1),
            member("x", tarfile.XGLTYPE, size=1 << 32),
            member("x", tarfile.GNUTYPE_LONGNAME, size=1 << 30),
            member("x", tarfile.GNUTYPE_LONGLINK, size=limits.MAX_LONG_NAME + 1),
            member("x", tarfile.GNUTYPE_SPARSE),
            pax_header(b"22 GNU.sparse.major=1\n") + member("x", tarfile.REGTYPE),
            pax_header(b"10 size=-1\n") + member("x", tarfile.REGTYPE),
            member("blobs/sha256/" + "a" * 64, tarfile.REGTYPE, size=1 << 60),
            padded(b"\x7fELF"),
        ],
    )
    def test_headers_that_claim_too_much_are_refused(self, small: Layout, tmp_path: Path, evil: bytes) -> None:
        refused(evil + tar_of(items_of(small)), tmp_path / "out", ArchiveError)
        refused(tar_of(small_first(small), end=False) + evil + END, tmp_path / "out", ArchiveError)

    def test_a_claim_of_many_entries_is_refused(
        self, small: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_ENTRIES", 20)
        strangers: list[Item] = [(str(number), b"") for number in range(20)]
        refused(tar_of([*strangers, *items_of(small)]), tmp_path / "out", ArchiveError)

    def test_an_archive_that_is_compressed_is_not_supported(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedError, match="gzip"):
            stored(b"\x1f\x8b\x08" + bytes(1000), tmp_path / "out")


def _record(key: str, value: str) -> bytes:
    """Write a line of a pax header, which counts its own length."""
    text = f" {key}={value}\n".encode()
    size = len(text) + 1
    while len(str(size)) + len(text) != size:
        size += 1
    return str(size).encode() + text


class TestNarrowing:
    def test_held_images_are_found_when_an_index_turns_out_to_be_lacking(self, layout: Layout) -> None:
        lost = layout.index([layout.image([tar_layer({"a": b"b"})], platform="linux/s390x")])
        present = two_platforms(layout)
        outer = layout.index([lost, present], name="v1")
        layout.file(lost["digest"]).unlink()
        found = found_in(tar_of(items_of(layout)), platforms=CHOICES[1])
        amd = layout.read(present["digest"])["manifests"][0]
        assert [manifest.descriptor.digest for manifest in found.graph.manifests] == [amd["digest"]]
        assert found.graph.absent == ()
        assert found.blobs == parts_of(layout, amd).blobs
        assert outer["mediaType"] == OCI_INDEX

    def test_a_platform_that_is_not_there_is_not_found(self, images: Layout) -> None:
        for order in (items_of(images), small_first(images)):
            with pytest.raises(NotFoundError, match="no platform"):
                found_in(tar_of(order), platforms=PlatformChoice((parse_platform("plan9/amd64"),)))

    def test_only_the_images_that_were_named_are_moved(self, images: Layout) -> None:
        for order in (items_of(images), small_first(images)):
            found = found_in(tar_of(order), names=["odd"])
            assert [root.name for root in found.graph.roots] == ["odd"]
            assert len(found.graph.manifests) == 1
            assert found.blobs.keys() == {blob.digest for blob in found.graph.blobs}


class TestFailingInput:
    def test_an_error_of_the_disk_is_one_wherever_it_comes(self, small: Layout) -> None:
        for order in (items_of(small), small_first(small)):
            archive = tar_of(order)
            for length in [*range(0, len(archive), 509), len(archive)]:
                with pytest.raises(LocalDiskError, match="cannot read the archive on stdin: Input/output error"):
                    found_in(Pipe(archive[:length], failing=True))

    def test_what_cannot_be_opened_is_said_with_its_name(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="gone"):
            open_stream(tmp_path / "gone", threading.Event())

    def test_a_fifo_is_read_as_it_comes(self, small: Layout, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        archive = tar_of(items_of(small))
        thread = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(archive))
        thread.start()
        source = ArchiveStreamSource(open_stream(tmp_path / "fifo", threading.Event()))
        transfer.copy(source, LayoutSink(tmp_path / "out"), Watch())
        source.close()
        thread.join()
        assert parts_of(Layout(tmp_path / "out")) == parts_of(small)

    def test_a_terminal_is_not_read(self) -> None:
        ours, theirs = pty.openpty()
        try:
            with pytest.raises(UsageError, match="is a terminal"):
                open_stream(Path(os.ttyname(theirs)), threading.Event())
        finally:
            os.close(ours)
            os.close(theirs)


def test_what_is_needed_is_not_gone_through_for_each_entry(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = 0

    class Needs(dict[str, Descriptor]):
        def __iter__(self) -> Iterator[str]:
            nonlocal walks
            walks += 1
            return super().__iter__()

    begin = GraphBuilder.__init__

    def counted(builder: GraphBuilder, choice: PlatformChoice, *, leaves_referrers: bool) -> None:
        begin(builder, choice, leaves_referrers=leaves_referrers)
        builder.needs = Needs()

    monkeypatch.setattr(GraphBuilder, "__init__", counted)
    layout.index([layout.image([b"%d" % number]) for number in range(50)], name="many")
    for items in (small_first(layout), items_of(layout)):
        assert len(found_in(tar_of(items)).graph.manifests) == 51
    assert walks == 0


def test_memory_does_not_grow_with_the_archive(layout: Layout) -> None:
    # 64 MiB go through in chunks; what is asked of the file at once says how much is held.
    layout.image([64 << 20], name="v1")
    asked: list[int] = []

    class Measured(Pipe):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            asked.append(len(buffer))
            return super().readinto(buffer)

    source = ArchiveStreamSource(io.BufferedReader(Measured(tar_of(items_of(layout)), (1 << 30,))))

    class Counting(Kept):
        def put(self, blob: Blob) -> None:
            self.blobs[blob.descriptor.digest] = b""
            assert sum(len(chunk) for chunk in verified(blob.open(), blob.descriptor)) == blob.descriptor.size

    source.graph(Counting())
    source.close()
    assert max(asked) <= limits.CHUNK
