"""The part of the contract that applies to docker-archives: they contain plain images without manifests."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, OcistreamError, UnsupportedError
from tests.contract.adapter import (
    Blob,
    Chunk,
    archive_source,
    bytes_source,
    copy,
    layout_destination,
    layout_source,
)
from tests.contract.adapter_types import EVERYTHING, Listing, Piece, Wanted
from tests.contract.docker_stores import DOCKER_ARCHIVES, DockerArchiveFileStore, several_images
from tests.contract.image_shapes import SHAPES
from tests.contract.stores import (
    DESTINATIONS,
    REF_NAME,
    REPOSITORY,
    SOURCES,
    LayoutStore,
    Store,
    fetched,
    opened,
    store_fixture,
)
from tests.docker_archives import (
    DIALECTS,
    Entry,
    Link,
    Saved,
    archive_of,
    of_bazel,
    of_docker,
    plain_manifest,
    saved,
)
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms

#: The shapes that fit into a docker-archive.
HELD = ("single", "docker", "empty-blob", "no-layers", "many-layers")
LAYER = "application/vnd.oci.image.layer.v1.tar"


class BrokenError(Exception):
    """Raised by the chunks of a blob."""


def images_of(layout: Layout) -> dict[str, Saved]:
    """Return the images of a layout by tag, as an archive shows them."""
    listed = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    return {entry["annotations"][REF_NAME]: saved(layout, entry) for entry in listed}


def seen_as(images: dict[str, Saved]) -> dict[str, bytes]:
    return {tag: json.dumps(plain_manifest(one), separators=(",", ":")).encode() for tag, one in images.items()}


def blobs_of(images: dict[str, Saved]) -> dict[str, bytes]:
    return {digest_of(content): content for one in images.values() for content in (one.config, *one.layers)}


store = store_fixture(DOCKER_ARCHIVES)


def fill(layout: Layout) -> dict[str, Saved]:
    for name in HELD:
        SHAPES[name](layout, name)
    return images_of(layout)


def plainly(layout: Layout, folder: Path) -> Layout:
    """Return a layout with the same images, with plain layers and full names."""
    other = Layout(folder)
    for tag, one in images_of(layout).items():
        document = json.loads(one.config)
        other.document(
            {
                **plain_manifest(one),
                "config": other.blob(one.config, "application/vnd.oci.image.config.v1+json"),
                "layers": [other.blob(layer, "application/vnd.oci.image.layer.v1.tar") for layer in one.layers],
            },
            name=f"docker.io/{REPOSITORY}:{tag}",
        )
        assert document["rootfs"]["diff_ids"] == one.diff_ids
    return other


def listed(layout: Layout) -> Listing:
    return layout_source(layout.path).list()


class TestSource:
    def test_it_lists_every_image_by_its_name_and_configs_first(self, store: Store, layout: Layout) -> None:
        images = fill(layout)
        store.fill(layout)
        listing = store.source().list()
        raw = {manifest.piece.digest: manifest.raw for manifest in listing.manifests}
        assert {name.rpartition(":")[2]: raw[digest] for name, digest in listing.images} == seen_as(images)
        assert {name for name, _ in listing.images} == {f"docker.io/{REPOSITORY}:{tag}" for tag in images}
        digests = [blob.digest for blob in listing.blobs]
        assert {blob.digest: blob.size for blob in listing.blobs} == {d: len(c) for d, c in blobs_of(images).items()}
        assert len(digests) == len(set(digests))
        configs = {digest_of(one.config) for one in images.values()}
        assert set(digests[: len(configs)]) == configs

    def test_the_number_of_images_is_limited(
        self, store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = fill(layout)
        store.fill(layout)
        monkeypatch.setattr(limits, "MAX_IMAGES", len(images))
        assert len(store.source().list().images) == len(images)
        monkeypatch.setattr(limits, "MAX_IMAGES", len(images) - 1)
        with pytest.raises(UnsupportedError, match=f"more than {len(images) - 1} images"):
            store.source().list()

    def test_a_config_of_the_maximum_size_is_not_buffered(
        self, store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        SHAPES["single"](layout, "single")
        images = images_of(layout)
        store.fill(layout)
        size = len(images["single"].config)
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", size - 1)
        monkeypatch.setattr(limits, "MAX_CONFIG", size)
        assert fetched(store.source()) == blobs_of(images)

    def test_all_wanted_blobs_arrive_and_no_others(self, store: Store, layout: Layout) -> None:
        images = fill(layout)
        store.fill(layout)
        blobs = blobs_of(images)
        assert fetched(store.source()) == blobs
        wanted = [piece.digest for piece in store.source().list().blobs[::3]]
        assert fetched(store.source(), 3) == {digest: blobs[digest] for digest in wanted}
        source = store.source()
        source.list()
        assert list(source.blobs([])) == []

    def test_platforms_are_selected_as_in_other_sources(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        assert fetched(store.source("linux/amd64")) == blobs_of(images_of(layout))
        with pytest.raises(NotFoundError, match="linux/s390x"):
            store.source("linux/s390x").list()

    def test_a_missing_layer_is_detected_during_listing(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        store.damage(images_of(layout)["v1"].diff_ids[1], None)
        with pytest.raises(ArchiveError, match="lacks"):
            store.source().list()

    @pytest.mark.parametrize("how", ["flipped", "shorter", "longer"])
    def test_a_wrong_layer_is_detected(self, store: Store, layout: Layout, how: str) -> None:
        small_image(layout, name="v1")
        image = images_of(layout)["v1"]
        content = image.layers[1]
        broken = {
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "shorter": content[:-1],
            "longer": content + b"\0",
        }
        store.fill(layout)
        store.damage(image.diff_ids[1], broken[how])
        with pytest.raises(IntegrityError, match=image.diff_ids[1]):
            fetched(store.source())

    def test_blobs_of_a_file_can_be_read_again_and_concurrently(self, layout: Layout, tmp_path: Path) -> None:
        layout.image([3 << 20, (3 << 20) + 1], name="v1")
        with opened(DockerArchiveFileStore, tmp_path / "store") as store:
            store.fill(layout)
            source = store.source()
            assert source.concurrent
            listing = source.list()
            assert not listing.early
            both = threading.Barrier(2)
            found: dict[str, bytes] = {}

            def read(blob: Blob) -> None:
                next(blob.open(0))
                chunks = blob.open(0)
                first = bytes(next(chunks))
                both.wait(60)
                found[blob.digest] = first + b"".join(map(bytes, chunks))

            blobs = [blob for blob in source.blobs(listing.blobs) if blob.size > 1 << 20]
            threads = [threading.Thread(target=read, args=(blob,)) for blob in blobs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 2
        assert all(digest_of(content) == digest for digest, content in found.items())

    def test_it_can_be_closed_twice_and_at_any_time(self, store: Store, layout: Layout) -> None:
        small_image(layout, name="v1")
        store.fill(layout)
        unread, read = store.source(), store.source()
        unread.close()
        unread.close()
        read.list()
        read.close()
        read.close()

    @pytest.mark.parametrize("kind", DESTINATIONS)
    def test_every_destination_accepts_its_images(
        self, store: Store, layout: Layout, tmp_path: Path, kind: str
    ) -> None:
        images = fill(layout)
        store.fill(layout)
        with opened(DESTINATIONS[kind], tmp_path / "to") as place:
            done = copy(store.source(), place.destination(), compress="none")
            assert place.images() == seen_as(images)
            assert set(blobs_of(images)) <= place.blobs()
            assert done.moved == done.total


class TestDestination:
    def test_everything_is_visible_after_commit_and_nothing_before(
        self, store: Store, layout: Layout, tmp_path: Path
    ) -> None:
        images = fill(layout)
        plain = plainly(layout, tmp_path / "plain")
        listing = listed(plain)
        destination = store.destination()
        assert store.images() == {}
        destination.begin(listing)
        assert store.images() == {}
        for blob in layout_source(plain.path).blobs(listing.blobs):
            assert not destination.stored([blob.piece])
            destination.write(blob)
            assert destination.stored([blob.piece])
        assert store.images() == {}
        destination.commit(listing)
        assert store.images() == seen_as(images)
        assert store.blobs() == set(blobs_of(images))
        destination.close()
        destination.close()
        assert store.images() == seen_as(images)

    def test_close_discards_uncommitted_content(self, store: Store, layout: Layout, tmp_path: Path) -> None:
        fill(layout)
        plain = plainly(layout, tmp_path / "plain")
        listing = listed(plain)
        destination = store.destination()
        destination.begin(listing)
        for blob in layout_source(plain.path).blobs(listing.blobs):
            destination.write(blob)
        destination.close()
        destination.close()
        assert (store.images(), store.blobs()) == ({}, set())

    def test_an_unused_destination_leaves_nothing(self, store: Store) -> None:
        store.destination().close()
        assert (store.images(), store.blobs()) == ({}, set())

    @pytest.mark.parametrize("named", [True, False])
    def test_a_blob_whose_chunks_raise_leaves_nothing(self, store: Store, layout: Layout, named: bool) -> None:
        layout.image([5 << 19], name="v1")
        image = images_of(layout)["v1"]

        def chunks(offset: int) -> Iterator[Chunk]:
            assert offset == 0
            yield image.layers[0][: 1 << 20]
            raise BrokenError

        destination = store.destination()
        blob = Blob(Piece(LAYER, image.diff_ids[0], len(image.layers[0])), chunks)
        with pytest.raises(BrokenError):
            (destination.write if named else destination.write_unnamed)(blob)
        assert store.blobs() == set()
        destination.close()
        assert (store.images(), store.blobs()) == ({}, set())

    @pytest.mark.parametrize("shape", sorted(set(SHAPES) - set(HELD) - {"sha512"}))
    def test_an_unsupported_image_is_refused_before_anything_is_written(
        self, store: Store, layout: Layout, shape: str
    ) -> None:
        SHAPES[shape](layout, "v1")
        listing = listed(layout)
        destination = store.destination()
        for check in (destination.begin, destination.expect):
            with pytest.raises(UnsupportedError):
                check(listing)

    @pytest.mark.parametrize("kind", [*SOURCES, *DOCKER_ARCHIVES])
    def test_it_accepts_images_from_every_source(self, store: Store, layout: Layout, tmp_path: Path, kind: str) -> None:
        images = fill(layout)
        with opened((SOURCES | DOCKER_ARCHIVES)[kind], tmp_path / "from") as origin:
            origin.fill(layout)
            done = copy(origin.source(), store.destination(), rename=full_name, compress="none")
        assert store.images() == seen_as(images)
        assert store.blobs() == set(blobs_of(images))
        assert done.moved == done.total

    @pytest.mark.parametrize("kind", SOURCES)
    def test_a_corrupt_blob_changes_nothing(self, store: Store, layout: Layout, tmp_path: Path, kind: str) -> None:
        image = small_image(layout, name="v1")
        digest = layout.read(image["digest"])["layers"][1]["digest"]
        content = layout.file(digest).read_bytes()
        with opened(SOURCES[kind], tmp_path / "from") as origin:
            origin.fill(layout)
            origin.damage(digest, content[:-1] + bytes([content[-1] ^ 1]))
            destination = store.destination()
            with pytest.raises(OcistreamError):
                copy(origin.source(), destination, compress="none")
            destination.close()
        assert (store.images(), store.blobs()) == ({}, set())

    def test_the_same_layer_in_several_compressions_is_stored_once(self, store: Store, layout: Layout) -> None:
        files = {"a": b"b"}
        for number, packed in enumerate(("gzip", "zstd", "")):
            layout.image([tar_layer(files, compression=packed)], name=f"v{number}")  # type: ignore[arg-type]
        images = images_of(layout)
        copy(layout_source(layout.path), store.destination(), rename=full_name, compress="none")
        assert store.images() == seen_as(images)
        # `files_in` refuses a name that an archive has twice.
        assert store.blobs() == set(blobs_of(images))

    def test_one_platform_of_an_index_can_be_stored(self, store: Store, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        arm = layout.read(index["digest"])["manifests"][1]
        source = layout_source(layout.path, Wanted(("linux/arm64",)))
        copy(source, store.destination(), rename=full_name, compress="none")
        assert store.images() == seen_as({"v1": saved(layout, arm)})


def full_name(name: str) -> str:
    """Return a name as Docker requires it."""
    return f"docker.io/{REPOSITORY}:{name.rpartition(':')[2]}"


def test_the_plain_layouts_of_these_tests_have_the_correct_blobs(layout: Layout, tmp_path: Path) -> None:
    # If `plainly` were wrong, a destination with the same defect would pass.
    images = fill(layout)
    with opened(LayoutStore, tmp_path / "store") as store:
        store.fill(plainly(layout, tmp_path / "plain"))
        listing = store.source().list()
        assert {blob.digest for blob in listing.blobs} == set(blobs_of(images))


def stored(
    entries: Sequence[Entry], how: str, folder: Path, wanted: Wanted = EVERYTHING, compress: str | None = None
) -> Layout:
    """Copy an archive, from a file or a pipe, into a layout; an error must not have made an image visible."""
    out = Path(tempfile.mkdtemp(dir=folder))
    archive = archive_of(entries)
    (folder / "given.tar").write_bytes(archive)
    destination = layout_destination(out)
    try:
        with archive_source(folder / "given.tar", wanted) if how == "file" else bytes_source(archive, wanted) as source:
            copy(source, destination, compress=compress)
    except OcistreamError:
        assert not (out / "index.json").exists()
        raise
    finally:
        destination.close()
    return Layout(out)


def names_in(layout: Layout) -> dict[str, str]:
    """Return the digests in an index.json by name."""
    entries = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    return {entry.get("annotations", {}).get("io.containerd.image.name"): entry["digest"] for entry in entries}


@pytest.fixture
def several(layout: Layout) -> list[Saved]:
    return several_images(layout)


@pytest.fixture(params=["file", "pipe"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestLimits:
    def test_the_names_and_number_of_other_entries_are_limited(
        self, several: list[Saved], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = of_docker(several[:1])
        others: list[Entry] = [(f"{number:0100}", b"") for number in range(20)]
        monkeypatch.setattr(limits, "MAX_NAME_BYTES", 2000)
        assert names_in(stored([*entries, *others], how, tmp_path))
        with pytest.raises(ArchiveError, match="2000 bytes of names"):
            stored([*others, *entries], how, tmp_path)
        monkeypatch.undo()
        monkeypatch.setattr(limits, "MAX_BLOBS", 10)
        with pytest.raises(ArchiveError, match="more than 10 other entries"):
            stored([*others, *entries], how, tmp_path)

    def test_names_that_no_manifest_needs_do_not_count(
        self, several: list[Saved], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = of_docker(several[:1])
        kept = sum(
            len(name) + (len(content.target) if isinstance(content, Link) else 0)
            for name, content in entries
            if content and name[-4:] in {"json", ".tar"} and name[-5:] != "/json"
        )
        monkeypatch.setattr(limits, "MAX_NAME_BYTES", kept)
        assert names_in(stored(entries, how, tmp_path))

    def test_the_total_size_of_manifests_is_limited(
        self, several: list[Saved], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_GRAPH_BYTES", 1500)
        assert names_in(stored(of_docker(several[:1]), how, tmp_path))
        with pytest.raises(ArchiveError, match="more than 1500 bytes in total"):
            stored(of_docker(several), how, tmp_path)


class TestBudget:
    """A pipe buffers JSON up to a total limit; the rest is written, and read back if it is a config."""

    @pytest.mark.parametrize("dialect", ["docker", "crane", "bazel"])
    @pytest.mark.parametrize("compress", [None, "none", "gzip"])
    def test_configs_beyond_the_limit_are_read_back(
        self, dialect: str, compress: str | None, several: list[Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def is_json(entry: Entry) -> bool:
            return isinstance(entry[1], bytes) and entry[1].startswith((b"{", b"["))

        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 1000)
        entries = sorted(DIALECTS[dialect](several), key=is_json, reverse=True)
        filled: list[Entry] = [("stray.json", b'{"x":"%b"}' % (b"y" * 900)), *entries]
        expected = names_in(stored(entries, "file", tmp_path, compress=compress))
        assert names_in(stored(filled, "pipe", tmp_path, compress=compress)) == expected

    def test_their_platforms_are_known(
        self, several: list[Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 10)
        entries = of_docker(several[:2])
        assert names_in(stored(entries, "pipe", tmp_path, Wanted(("linux/arm64",), images=("other",))))
        with pytest.raises(NotFoundError, match="arm64"):
            stored(entries, "pipe", tmp_path, Wanted(("linux/arm64",), images=("app:1",)))

    @pytest.mark.parametrize("dialect", [of_docker, of_bazel])
    def test_json_is_not_a_layer(
        self,
        dialect: Callable[[list[Saved]], list[Entry]],
        several: list[Saved],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(limits, "MAX_BUFFERED_JSON", 10)
        files = dict(dialect(several[:1]))
        (listed,) = json.loads(files["manifest.json"])  # type: ignore[arg-type]
        listed["Layers"][0] = listed["Config"]
        files["manifest.json"] = json.dumps([listed]).encode()
        with pytest.raises(ArchiveError, match="is not a layer"):
            stored([*files.items()], "pipe", tmp_path)

    def test_no_more_is_buffered(self, several: list[Saved], tmp_path: Path) -> None:
        content = b'{"x":"%b"' % (b"y" * limits.MIB)
        strays: list[Entry] = [(f"{number}.json", content + b',"n":%d}' % number) for number in range(10)]
        layout = stored([*strays, *of_docker(several[:1])], "pipe", tmp_path)
        written = [path.read_bytes() for path in layout.path.glob("blobs/sha256/*")]
        assert sum(content.startswith(b'{"x"') for content in written) == 5

    def test_diff_ids_of_a_config_with_a_long_history_are_read(
        self, several: list[Saved], how: str, tmp_path: Path
    ) -> None:
        document = {**json.loads(several[0].config), "history": [{"created_by": "x" * 3000}] * 1500}
        image = dataclasses.replace(several[0], config=json.dumps(document).encode())
        layout = stored(of_docker([image]), how, tmp_path, compress="none")
        assert [layout.read(digest) for digest in set(names_in(layout).values())] == [plain_manifest(image)]
