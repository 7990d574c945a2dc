"""An archive through a pipe gives the same images in any order and tar dialect, and hostile archives are refused."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    LocalDiskError,
    MissingContentError,
    NotFoundError,
    OcistreamError,
    UnsupportedError,
)
from tests.archives import Item, Kind, blob_name, items_of, small_first, tar_of
from tests.contract.adapter import Source, archive_destination, copy, layout_destination, layout_source, pipe_source
from tests.contract.adapter_types import EVERYTHING, Listing, Wanted
from tests.contract.image_shapes import nested_index, parts_of, with_attestation
from tests.docker_archives import archive_of, of_docker, of_docker_25, saved
from tests.images import OCI_MANIFEST, Layout, digest_of, small_image, tar_layer, two_platforms


class Pipe(io.RawIOBase):
    """A pipe whose reads return `sizes` bytes in turn; with `failing` the last read raises."""

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


def piped(pipe: io.RawIOBase, wanted: Wanted = EVERYTHING) -> Source:
    """Open an archive from a pipe."""
    return pipe_source(io.BufferedReader(pipe, 64), wanted)


@dataclasses.dataclass
class Found:
    """The contents of an archive."""

    listing: Listing
    blobs: dict[str, bytes]

    @property
    def early(self) -> set[str]:
        """The blobs that came before the images were known."""
        return set(self.listing.early)

    def has_all_of(self, layout: Layout, wanted: Wanted = EVERYTHING) -> bool:
        """Return whether images and blobs are the same as those of a layout."""
        expected = layout_source(layout.path, wanted).list()
        found = dataclasses.replace(self.listing, early={}, native=None)
        contents = {blob.digest: layout.file(blob.digest).read_bytes() for blob in expected.blobs}
        return found == dataclasses.replace(expected, native=None) and self.blobs == contents


def found_in(archive: bytes | io.RawIOBase, wanted: Wanted = EVERYTHING, *, sizes: Sequence[int] = (1 << 16,)) -> Found:
    """Read everything in an archive as a copy does."""
    raw = Pipe(archive, sizes) if isinstance(archive, bytes) else archive
    source = piped(raw, wanted)
    try:
        listing = source.list()
        assert not listing.unnamed
        late = [piece for piece in listing.blobs if piece.digest not in listing.early]
        found = {blob.digest: blob.content() for blob in source.blobs(late)}
    finally:
        source.close()
    needed = {piece.digest for piece in listing.blobs}
    return Found(listing, found | {d: content for d, content in listing.early.items() if d in needed})


def store(archive: bytes, path: Path) -> None:
    """Copy an archive into a layout."""
    source = piped(Pipe(archive))
    try:
        copy(source, layout_destination(path))
    finally:
        source.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a layout of many shapes, which no test may change."""
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    nested_index(layout, "nested")
    with_attestation(layout, "attested")
    layout.image([b"", tar_layer({"x": b"y"}), 70_000], name="odd", algorithm="sha512")
    return layout


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a layout of one small image, which no test may change."""
    layout = Layout(tmp_path_factory.mktemp("small") / "layout")
    small_image(layout, name="v1")
    return layout


#: Entries that do not belong to an image archive.
STRANGERS: Final[Sequence[Item]] = (
    ("readme.txt", b"hello"),
    ("repositories", b"{}"),
    ("blobs/sha256/short", b"{}"),
    ("../x/index.json", b"{}"),
    ("/x/index.json", b"{}"),
    ("a" * 200, b"x" * 700),
)
DIRECTORIES: Final[Sequence[Item]] = (("blobs", None), ("blobs/sha256", None), ("blobs/sha512", None))
#: The dialects that can have long names.
DIALECTS: Final[Sequence[Kind]] = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
CHOICES: Final = (EVERYTHING, Wanted(("linux/amd64",)), Wanted(("linux/amd64", "linux/arm64")))


class TestAnyOrder:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_an_archive_has_the_same_images_in_any_order_and_dialect(self, images: Layout, data: st.DataObject) -> None:
        items: list[Item] = data.draw(st.permutations([*items_of(images), *DIRECTORIES]))
        for stranger in data.draw(st.lists(st.sampled_from(STRANGERS), max_size=3)):
            items.insert(data.draw(st.integers(0, len(items))), stranger)
        for again in data.draw(st.lists(st.sampled_from([i for i in items if i[0].startswith("blobs/")]), max_size=3)):
            items.insert(data.draw(st.integers(0, len(items))), again)
        kind = data.draw(st.sampled_from(DIALECTS))
        prefix = data.draw(st.sampled_from(["", "./"]))
        sizes = data.draw(st.lists(st.integers(20, 5000), min_size=1, max_size=4))
        assert found_in(tar_of(items, kind=kind, prefix=prefix), sizes=sizes).has_all_of(images)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_a_choice_of_platforms_is_the_same_in_any_order(self, nested: Layout, data: st.DataObject) -> None:
        items = data.draw(st.permutations(items_of(nested)))
        wanted = data.draw(st.sampled_from(CHOICES))
        assert found_in(tar_of(items), wanted).has_all_of(nested, wanted)

    @settings(max_examples=20, deadline=None)
    @given(data=st.data())
    def test_short_names_work_in_ustar_format(self, small: Layout, data: st.DataObject) -> None:
        items = data.draw(st.permutations(items_of(small)))
        assert found_in(tar_of(items, kind=tarfile.USTAR_FORMAT)).has_all_of(small)

    def test_in_our_own_order_no_blob_comes_early(self, images: Layout) -> None:
        assert found_in(tar_of(small_first(images))).early == set()

    def test_with_sorted_names_layers_come_early_and_json_is_buffered(self, small: Layout) -> None:
        (image,) = json.loads((small.path / "index.json").read_bytes())["manifests"]
        found = found_in(tar_of(items_of(small)))
        assert found.early == {layer["digest"] for layer in small.read(image["digest"])["layers"]}

    def test_json_with_leading_white_space_is_buffered_too(self, layout: Layout) -> None:
        image = small_image(layout)
        spaced = b"\n\t " + layout.file(image["digest"]).read_bytes()
        layout.name(layout.blob(spaced, image["mediaType"]), "v1")
        layout.file(image["digest"]).unlink()
        assert found_in(tar_of(items_of(layout))).has_all_of(layout)

    def test_a_pipe_is_read_to_its_last_byte(self, small: Layout) -> None:
        pipe = Pipe(tar_of(items_of(small)) + bytes(3 << 20))
        found_in(pipe)
        assert pipe.position == len(tar_of(items_of(small))) + (3 << 20)

    def test_a_missing_nested_index_does_not_hide_its_siblings(self, layout: Layout) -> None:
        lost = layout.index([layout.image([tar_layer({"a": b"b"})], platform="linux/s390x")])
        present = two_platforms(layout)
        layout.index([lost, present], name="v1")
        layout.file(lost["digest"]).unlink()
        found = found_in(tar_of(items_of(layout)), Wanted(("linux/amd64",)))
        amd = layout.read(present["digest"])["manifests"][0]
        assert [manifest.piece.digest for manifest in found.listing.manifests] == [amd["digest"]]
        assert found.listing.absent == ()
        assert found.blobs == parts_of(layout, amd).blobs


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return a layout of a nested index, which no test may change."""
    layout = Layout(tmp_path_factory.mktemp("nested") / "layout")
    nested_index(layout, "nested")
    return layout


def test_children_that_come_before_their_index_count_when_manifest_json_is_compared(
    layout: Layout, tmp_path: Path
) -> None:
    two_platforms(layout, name="both")
    destination = archive_destination(tmp_path / "x.tar")
    with layout_source(layout.path) as source:
        copy(source, destination)
    destination.close()
    content = (tmp_path / "x.tar").read_bytes()
    assert b"manifest.json" in content
    with piped(Pipe(content)) as source:
        assert len(source.list().images) == 1


class TestBudget:
    """JSON is buffered until the index comes, up to a total limit; the rest is written early and read back."""

    @pytest.mark.parametrize("budget", [0, 1000, 3000])
    def test_json_beyond_the_limit_comes_early(
        self, images: Layout, monkeypatch: pytest.MonkeyPatch, budget: int
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", budget)
        found = found_in(tar_of(items_of(images)))
        assert found.has_all_of(images)
        json_sizes = {name: len(content) for name, content in items_of(images) if content and content.startswith(b"{")}
        early = {blob_name(digest) for digest in found.early}
        buffered = sum(size for name, size in json_sizes.items() if name.startswith("blobs/") and name not in early)
        assert buffered <= budget
        assert early & {blob_name(digest) for digest in parts_of(images).manifests}

    def test_used_json_is_removed_from_the_buffer(self, images: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = [len(raw) for raw in parts_of(images).manifests.values()]
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", max(sizes))
        # Each manifest comes before its parent, so only one is buffered at a time.
        items = dict(items_of(images))
        order = [name for name in small_first(images) if name[0] in map(blob_name, parts_of(images).manifests)]
        first: list[Item] = [("index.json", items.pop("index.json")), *reversed(order)]
        rest = [item for item in items.items() if item not in first]
        assert found_in(tar_of([*first, *rest])).has_all_of(images)

    def test_repeated_json_that_just_fits_is_buffered_once(
        self, images: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        items = items_of(images)
        buffered = [item for item in items if item[0].startswith("blobs/") and (item[1] or b"").startswith(b"{")]
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", sum(len(content or b"") for _, content in buffered))
        found = found_in(tar_of([*buffered, *items]))
        assert found.has_all_of(images)
        assert not {blob_name(digest) for digest in found.early} & {name for name, _ in buffered}

    def test_a_layout_reads_early_json_back(
        self, images: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 0)
        store(tar_of(items_of(images)), tmp_path / "out")
        assert parts_of(Layout(tmp_path / "out")) == parts_of(images)

    def test_a_manifest_that_was_read_back_is_compared_with_a_late_manifest_json(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 0)
        entries = of_docker_25([saved(layout, small_image(layout), "app:1")])
        listed = json.loads(dict(entries)["manifest.json"] or b"")  # type: ignore[arg-type]
        layers = [entry for entry in entries if entry[0] in listed[0]["Layers"]]
        late = [entry for entry in entries if entry[0] in {"manifest.json", "repositories"}]
        first = [entry for entry in entries if entry not in layers and entry not in late]
        store(archive_of([*first, *layers, *late]), tmp_path / "out")
        assert len(json.loads((tmp_path / "out/index.json").read_bytes())["manifests"]) == 1

    def test_the_number_of_layers_before_manifest_json_is_limited(
        self, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_LIST_ENTRIES", 3)
        # Two layers of an image, and further ones without an image.
        entries = of_docker([saved(layout, small_image(layout))])
        others = [(f"{number}.tar", b"other") for number in range(2)]
        store(archive_of([*others[:1], *entries]), tmp_path / "out")
        with pytest.raises(UnsupportedError, match="more than 3 layers come before"):
            store(archive_of([*others, *entries]), tmp_path / "refused")

    def test_an_archive_cannot_read_early_json_back(
        self, small: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 0)
        source = piped(Pipe(tar_of(items_of(small))))
        destination = archive_destination(tmp_path / "a.tar")
        with pytest.raises(UnsupportedError, match="too many small blobs"):
            copy(source, destination)
        destination.close()
        source.close()
        assert list(tmp_path.iterdir()) == []

    def test_json_beyond_the_size_limit_of_manifests_is_not_buffered(self, layout: Layout) -> None:
        large = b"{" + b" " * (limits.MAX_MANIFEST - 2) + b"}"
        huge = large + b" "
        layout.image([large, huge], name="v1")
        found = found_in(tar_of(items_of(layout)))
        assert found.early == {digest_of(huge)}
        assert found.blobs[digest_of(large)] == large


def refused(archive: bytes, path: Path, *kinds: type[OcistreamError]) -> None:
    """Assert that a copy fails with exit code 5 or 6, and that only complete blobs are visible."""
    with pytest.raises(kinds or (ArchiveError, IntegrityError)) as caught:
        store(archive, path)
    assert caught.value.exit_code in {5, 6}
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {file.name for file in files if file.parent == path} <= {"oci-layout"}
    for file in files:
        if file.parent != path:
            assert digest_of(file.read_bytes(), file.parent.name) == f"{file.parent.name}:{file.name}"  # type: ignore[arg-type]


class TestChanged:
    @pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
    def test_an_oci_layout_file_of_an_unknown_version_is_refused_at_any_place(
        self, small: Layout, tmp_path: Path, place: int
    ) -> None:
        items = [item for item in items_of(small) if item[0] != "oci-layout"]
        items.insert(place % (len(items) + 1), ("oci-layout", b'{"imageLayoutVersion": "9.0.0"}'))
        refused(tar_of(items), tmp_path / "out", ArchiveError)

    @pytest.mark.parametrize("order", [items_of, small_first])
    def test_a_truncated_archive_is_refused(
        self, small: Layout, order: Callable[[Layout], list[Item]], tmp_path: Path
    ) -> None:
        archive = tar_of(order(small))
        for length in {*range(0, len(archive), 131), *range(0, len(archive), 512), len(archive) - 1}:
            refused(archive[:length], tmp_path / "out")

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_one_wrong_bit_in_a_blob_is_detected(
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
    def test_any_other_wrong_bit_changes_nothing_or_is_detected(self, small: Layout, data: st.DataObject) -> None:
        archive = bytearray(tar_of(data.draw(st.permutations(items_of(small)))))
        archive[data.draw(st.integers(0, len(archive) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        try:
            found = found_in(bytes(archive))
        except (ArchiveError, IntegrityError, UnsupportedError, NotFoundError):
            return
        # The bit was in padding, or in a name that does not matter.
        assert all(digest_of(content) == digest for digest, content in found.blobs.items())

    def test_a_blob_under_the_digest_of_another_is_detected(self, small: Layout, tmp_path: Path) -> None:
        (image,) = json.loads((small.path / "index.json").read_bytes())["manifests"]
        first, second = (blob_name(layer["digest"]) for layer in small.read(image["digest"])["layers"])
        for order in (items_of(small), small_first(small)):
            items = dict(order)
            items[first], items[second] = items[second], items[first]
            refused(tar_of(items.items()), tmp_path / "out", IntegrityError)

    @pytest.mark.parametrize("early", [True, False])
    def test_a_layer_with_another_size_than_in_its_manifest_is_refused(
        self, layout: Layout, tmp_path: Path, early: bool
    ) -> None:
        document = layout.read(small_image(layout)["digest"])
        document["layers"][0]["size"] += 1
        layout.document(document, name="v1")
        refused(tar_of(items_of(layout) if early else small_first(layout)), tmp_path / "out", IntegrityError)

    def test_a_second_index_is_refused_at_any_place(self, small: Layout, tmp_path: Path) -> None:
        items = small_first(small)
        index = ("index.json", dict(items)["index.json"])
        for place in range(len(items) + 1):
            refused(tar_of([*items[:place], index, *items[place:]]), tmp_path / "out", ArchiveError)

    @pytest.mark.parametrize("order", [items_of, small_first])
    def test_a_repeated_digest_is_verified_each_time(
        self, small: Layout, order: Callable[[Layout], list[Item]], tmp_path: Path
    ) -> None:
        items = order(small)
        for place, (name, content) in enumerate(items):
            if not name.startswith("blobs/") or not content:
                continue
            # Right after the first, so before an index that comes last; and at the end.
            for at in (place + 1, len(items)):
                out = tmp_path / f"{place}-{at}"
                assert found_in(tar_of([*items[:at], (name, content), *items[at:]])).has_all_of(small)
                for wrong, error in (
                    (content[:-1] + bytes([content[-1] ^ 1]), IntegrityError),
                    (content + b"x", ArchiveError),
                ):
                    refused(tar_of([*items[:at], (name, wrong), *items[at:]]), out, error)

    @pytest.mark.parametrize(
        ("order", "content"),
        [(items_of, b'{"not": "a manifest"}'), (small_first, b'{"not": "a manifest"}'), (items_of, b"no JSON")],
    )
    def test_a_layer_that_the_index_lists_like_a_manifest_arrives(
        self, layout: Layout, order: Callable[[Layout], list[Item]], content: bytes
    ) -> None:
        """An entry without a name may be a referrer. This one is only a layer of the image."""
        image = layout.image([content], name="v1")
        (layer,) = layout.read(image["digest"])["layers"]
        index = json.loads((layout.path / "index.json").read_bytes())
        index["manifests"].append({**layer, "mediaType": OCI_MANIFEST})
        (layout.path / "index.json").write_bytes(json.dumps(index).encode())
        wanted = Wanted(images=("v1",), referrers="copy")
        found = found_in(tar_of(order(layout)), wanted)
        assert found.blobs[layer["digest"]] == content
        assert found.has_all_of(layout, wanted)

    def test_missing_blobs_are_noticed(self, small: Layout, tmp_path: Path) -> None:
        for place, order in enumerate((items_of(small), small_first(small))):
            for name, _ in order:
                if name.startswith("blobs/"):
                    items = [item for item in order if item[0] != name]
                    refused(tar_of(items), tmp_path / str(place) / name[-4:], MissingContentError)

    def test_a_disk_error_at_any_byte_is_reported_as_one(self, small: Layout) -> None:
        for order in (items_of(small), small_first(small)):
            archive = tar_of(order)
            for length in [*range(0, len(archive), 509), len(archive)]:
                with pytest.raises(LocalDiskError, match="cannot read the archive on stdin: Input/output error"):
                    found_in(Pipe(archive[:length], failing=True))
