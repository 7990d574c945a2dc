"""A registry as a store: which repository a blob is taken from and put into, and what becomes visible when."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocistream.errors import (
    CancelledError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    RegistryError,
    UnsupportedError,
)
from ocistream.layout.destination import LayoutDestination
from ocistream.layout.index import select_named_images
from ocistream.layout.source import LayoutSource
from ocistream.oci.descriptor import Descriptor, parse_platform
from ocistream.oci.graph import Graph, Root
from ocistream.oci.platforms import PlatformChoice
from ocistream.oci.reference import Reference, parse_reference
from ocistream.oci.referrers import TAG_EXISTS
from ocistream.registry.destination import RegistryDestination
from ocistream.registry.repository import Repository
from ocistream.registry.source import RegistrySource
from ocistream.transfer.blob_writer import BlobWriter
from ocistream.transfer.config_checks import ConfigChecker
from ocistream.transfer.copy import Report, copy
from ocistream.transfer.early_blobs import EarlyBlobWriter
from ocistream.transfer.interfaces import Access, Blob, NewBlob, Source, VerifiedBlob
from tests.faulty_registry import Drop, Fault, FaultyHandler, Flip, HangUp, Header, refusal
from tests.http_doubles import CountingRegistry, QuickTransport, blob_of, eventually
from tests.images import Descriptor as Document
from tests.images import Layout, digest_of, small_image, two_platforms
from tests.observers import NothingEarly
from tests.registry_http import manifest, seed
from tests.signed_image import signed

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]


class Nobody:
    """Watches a transfer, and counts."""

    def __init__(self) -> None:
        self.moved = 0
        self.total = 0

    def planned(self, graph: Graph) -> None:
        self.total = graph.size

    def advance(self, size: int, descriptor: Descriptor | None = None) -> None:  # noqa: ARG002 - all count
        self.moved += size

    def done(self, descriptor: Descriptor, status: str) -> None:
        """Take no note."""


def source(transport: QuickTransport, *names: str, platforms: PlatformChoice | None = None) -> RegistrySource:
    references = [parse_reference(name, default_tag=True) for name in names]
    return RegistrySource(transport, references, platforms=platforms or PlatformChoice())


def sink(transport: QuickTransport, *names: str) -> RegistryDestination:
    """Return a sink that gives these names to the images, one after the other, or one name to all."""
    references = [parse_reference(name) for name in names]
    given: dict[tuple[str | None, str], Reference] = {}

    def target(root: Root) -> Reference:
        return given.setdefault((root.name, root.descriptor.digest), references[min(len(given), len(references) - 1)])

    return RegistryDestination(transport, target)


def move(taken: Source, put: RegistryDestination | LayoutDestination, jobs: int = 4) -> Report:
    try:
        return copy(taken, put, Nobody(), jobs=jobs)
    finally:
        put.close()


def hows(report: Report) -> set[str]:
    return {moved.status for moved in report.blobs}


def blobs_of(layout: Layout, image: Document) -> list[str]:
    """Return the digests of an image's config and layers."""
    document = layout.read(image["digest"])
    return [blob["digest"] for blob in (document["config"], *document["layers"])]


def order(registry: CountingRegistry, method: str = "PUT", path: str = "/manifests/") -> list[str]:
    """Return what was put, in order, as REPOSITORY/REFERENCE."""
    found = [request.path.removeprefix("/v2/") for request in registry.asked(method, path)]
    return [path.replace("manifests/", "") for path in found]


class TestSources:
    def test_an_image_comes_with_everything_below_it(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        index = two_platforms(layout)
        seed(layout, index, registry.host, "app", "1")
        graph = source(quick(), f"{registry.host}/app:1").resolve(NothingEarly())
        (root,) = graph.roots
        assert (root.name, root.descriptor.digest) == (f"{registry.host}/app:1", index["digest"])
        assert root.origin == f"{registry.host}/app"
        children = [child["digest"] for child in layout.read(index["digest"])["manifests"]]
        assert [found.descriptor.digest for found in graph.manifests] == [*children, index["digest"]]
        assert {found.raw for found in graph.manifests} == {
            layout.file(digest).read_bytes() for digest in (*children, index["digest"])
        }
        assert {blob.digest for blob in graph.blobs} == {
            digest for child in children for digest in blobs_of(layout, {"digest": child})
        }

    def test_by_digest_it_has_no_name(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        digest = seed(layout, small_image(layout), registry.host, "app", "1")
        graph = source(quick(), f"{registry.host}/app@{digest}").resolve(NothingEarly())
        assert graph.roots[0].name is None
        assert not registry.asked(path="/manifests/1") or registry.asked("PUT", "/manifests/1")

    def test_by_tag_and_digest_the_digest_counts_and_the_tag_is_its_name(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        digest = seed(layout, small_image(layout), registry.host, "app", "1")
        graph = source(quick(), f"{registry.host}/app:other@{digest}").resolve(NothingEarly())
        assert graph.roots[0].name == f"{registry.host}/app:other"
        assert graph.roots[0].descriptor.digest == digest

    def test_several_images_of_several_repositories_and_registries(
        self, faulty: Faulty, quick: Quick, layout: Layout, tmp_path: Path
    ) -> None:
        one, other = faulty(), faulty()
        first, second = small_image(layout), layout.image([5000])
        seed(layout, first, one.host, "a/b", "1")
        seed(layout, second, other.host, "c", "2")
        taken = source(quick(), f"{one.host}/a/b:1", f"{other.host}/c:2", f"{one.host}/a/b:1")
        report = move(taken, LayoutDestination(tmp_path / "out"))
        assert [root.descriptor.digest for root in report.graph.roots] == [first["digest"], second["digest"]]
        assert {request.path for request in one.asked("GET", "/blobs/")} == {
            f"/v2/a/b/blobs/{digest}" for digest in blobs_of(layout, first)
        }
        for digest in blobs_of(layout, second):
            assert taken.find_repository(digest) == (other.host, "c")
        assert taken.find_repository(blob_of(b"unknown").digest) is None

    def test_two_names_of_one_image_are_two_roots_and_everything_else_is_there_once(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout)
        for tag in "12":
            seed(layout, image, registry.host, "app", tag)
        graph = source(quick(), f"{registry.host}/app:1", f"{registry.host}/app:2").resolve(NothingEarly())
        assert [root.name for root in graph.roots] == [f"{registry.host}/app:1", f"{registry.host}/app:2"]
        assert len(graph.manifests) == 1

    def test_only_the_wanted_platforms_are_asked_for(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        seed(layout, two_platforms(layout), registry.host, "app", "1")
        registry.requests.clear()
        choice = PlatformChoice((parse_platform("linux/arm64"),))
        graph = source(quick(), f"{registry.host}/app:1", platforms=choice).resolve(NothingEarly())
        assert len(graph.manifests) == 1
        assert len(registry.asked("GET", "/manifests/")) == 2
        assert len(registry.asked("GET", "/blobs/")) == 0

    def test_a_smaller_index_has_no_home_and_its_images_have(
        self, faulty: Faulty, quick: Quick, layout: Layout, tmp_path: Path
    ) -> None:
        registry = faulty()
        images = [layout.image([3100 + number], platform=f"linux/{cpu}") for number, cpu in enumerate("abc")]
        seed(layout, layout.index(images), registry.host, "app", "1")
        choice = PlatformChoice((parse_platform("linux/a"), parse_platform("linux/b")))
        taken = source(quick(), f"{registry.host}/app:1", platforms=choice)
        report = move(taken, LayoutDestination(tmp_path / "out"))
        assert len(report.graph.manifests) == 3
        assert taken.find_repository(report.graph.roots[0].descriptor.digest) is None
        assert {blob.digest for blob in report.graph.blobs} == {
            digest for image in images[:2] for digest in blobs_of(layout, image)
        }

    def test_a_single_image_is_held_against_an_explicit_platform_by_its_config(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        seed(layout, small_image(layout), registry.host, "app", "1")
        name = f"{registry.host}/app:1"
        right = PlatformChoice((parse_platform("linux/amd64"),))
        assert len(source(quick(), name, platforms=right).resolve(NothingEarly()).manifests) == 1
        wrong = PlatformChoice((parse_platform("linux/s390x"),))
        with pytest.raises(NotFoundError, match="has no platform linux/s390x"):
            source(quick(), name, platforms=wrong).resolve(NothingEarly())
        registry.faults = [Fault(Flip(3), "GET", "/blobs/")]
        with pytest.raises(IntegrityError):
            source(quick(), name, platforms=right).resolve(NothingEarly())

    def test_a_missing_image_is_named_as_the_user_did(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        with pytest.raises(NotFoundError, match=rf"{registry.host}/app:1 not found"):
            source(quick(), f"{registry.host}/app:1").resolve(NothingEarly())

    def test_a_missing_child_is_absent_and_a_wrong_one_an_error(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        index = two_platforms(layout)
        seed(layout, index, registry.host, "app", "1")
        first, second = (child["digest"] for child in layout.read(index["digest"])["manifests"])
        registry.layout.blob_path(first).unlink()
        graph = source(quick(), f"{registry.host}/app:1").resolve(NothingEarly())
        assert [manifest.digest for manifest in graph.absent] == [first]
        registry.faults = [Fault(Flip(30), "GET", second)]
        with pytest.raises(IntegrityError, match=second):
            source(quick(), f"{registry.host}/app:1").resolve(NothingEarly())

    def test_a_blob_may_be_opened_again(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        image = small_image(layout)
        seed(layout, image, registry.host, "app", "1")
        taken = source(quick(), f"{registry.host}/app:1")
        graph = taken.resolve(NothingEarly())
        for blob in taken.blobs(graph.blobs):
            assert blob.reopenable
            content = layout.file(blob.descriptor.digest).read_bytes()
            assert [b"".join(bytes(chunk) for chunk in blob.open()) for _ in range(2)] == [content] * 2
        taken.close()

    def test_a_pull_of_many_small_blobs_needs_no_more_connections_than_jobs_and_one(
        self, faulty: Faulty, quick: Quick, layout: Layout, tmp_path: Path
    ) -> None:
        registry = faulty()
        layers = [layout.blob(str(number).encode(), "application/x-small") for number in range(200)]
        config = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
        document = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config}
        image = layout.document({**document, "layers": layers})
        seed(layout, image, registry.host, "app", "1")
        registry.accepted = 0
        move(source(quick(), f"{registry.host}/app:1"), LayoutDestination(tmp_path / "out"), jobs=4)
        assert len(registry.asked("GET", "/blobs/")) == 201
        assert registry.accepted <= 5
        other = faulty()
        move(LayoutSource(tmp_path / "out"), sink(quick(), f"{other.host}/app:1"), jobs=4)
        assert len(other.asked("HEAD", "/blobs/")) == len(other.asked("PATCH")) == 201
        assert other.accepted <= 5


@pytest.fixture
def made(layout: Layout) -> Layout:
    """Return a layout with a real image of two layers, named 1."""
    small_image(layout, name="1")
    return layout


def taken_from(layout: Layout) -> LayoutSource:
    return LayoutSource(layout.path)


class TestSinks:
    def test_an_image_that_has_a_tag_in_one_repository_and_none_in_another_is_written_to_both(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout, name="1")
        layout.name(image, "2")
        targets = sink(quick(), f"{registry.host}/a:1", f"{registry.host}/b@{image['digest']}")
        move(taken_from(layout), targets)
        assert sorted(order(registry)) == ["a/1", f"b/{image['digest']}"]

    def test_an_image_that_is_tagged_and_listed_by_an_index_is_there_before_the_index(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout, name="image")
        index = layout.index([image], name="index")
        move(taken_from(layout), sink(quick(), f"{registry.host}/app:image", f"{registry.host}/app:index"))
        assert order(registry) == [f"app/{image['digest']}", "app/image", "app/index"]
        assert manifest(registry.host, "app", "index") == layout.file(index["digest"]).read_bytes()

    def test_manifests_that_the_source_lacks_may_be_in_the_destination(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        index = two_platforms(layout, name="1")
        child = layout.read(index["digest"])["manifests"][0]["digest"]
        seed(layout, index, registry.host, "app", "0")
        layout.file(child).unlink()
        move(taken_from(layout), sink(quick(), f"{registry.host}/app:1"))
        assert manifest(registry.host, "app", "1") == layout.file(index["digest"]).read_bytes()
        # Where the destination has not, the other platform is taken alone.
        other = layout.read(index["digest"])["manifests"][1]["digest"]
        move(taken_from(layout), sink(quick(), f"{(there := faulty()).host}/app:1"))
        assert manifest(there.host, "app", "1") == layout.file(other).read_bytes()


@pytest.mark.usefixtures("separate")
class TestSeveralRepositories:
    def test_what_can_be_had_only_once_cannot(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty(Fault(refusal(405), "POST", "mount=", times=None))
        image = small_image(layout, name="1")
        layout.name(image, "2")
        put = sink(quick(), f"{registry.host}/a:1", f"{registry.host}/b:1")
        with pytest.raises(NetworkError, match="neither be mounted nor read again") as caught:
            move(Once(layout), put, jobs=1)
        assert caught.value.hint
        assert order(registry) == []

    def test_only_the_repositories_that_lack_it_get_it(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        image = small_image(layout, name="1")
        layout.name(image, "2")
        move(taken_from(layout), sink(quick(), f"{registry.host}/b:1"), jobs=1)
        registry.requests.clear()
        move(taken_from(layout), sink(quick(), f"{registry.host}/a:1", f"{registry.host}/b:1"), jobs=1)
        assert {request.path.partition("/blobs/")[0] for request in registry.asked("PATCH|POST")} == {"/v2/a"}
        assert order(registry) == ["a/1"]

    def test_each_image_goes_to_its_own(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        small_image(layout, name="1")
        layout.image([4000], name="2")
        move(taken_from(layout), sink(quick(), f"{registry.host}/a:1", f"{registry.host}/b:2"), jobs=1)
        assert len(registry.asked("PATCH", "/v2/a/")) == 3
        assert len(registry.asked("PATCH", "/v2/b/")) == 2
        assert sorted(order(registry)) == ["a/1", "b/2"]


class Once(LayoutSource):
    """A layout whose blobs can be read once only, as a pipe's."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.path)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        for blob in super().blobs(wanted):
            yield Blob(blob.descriptor, blob.open, access=Access.ONCE)


@pytest.fixture
def separate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an embedded registry keep its repositories apart, as others do: it shows a blob only where it was put."""
    shown: set[tuple[str, str]] = set()
    dispatch = FaultyHandler.dispatch
    transmit = FaultyHandler.transmit

    def hide(handler: FaultyHandler) -> None:
        repository, _, digest = handler.path.removeprefix("/v2/").partition("/blobs/sha256:")
        if handler.command == "HEAD" and digest and (repository, digest) not in shown:
            handler.path = handler.path.replace(digest, "0" * 64)
        dispatch(handler)

    def show(handler: FaultyHandler, answer: object) -> None:
        found = getattr(answer, "headers", {}).get("Location", "")
        repository, _, digest = found.removeprefix("/v2/").partition("/blobs/sha256:")
        if getattr(answer, "status", 0) == 201 and digest:
            shown.add((repository, digest))
        transmit(handler, answer)  # type: ignore[arg-type]

    monkeypatch.setattr(FaultyHandler, "dispatch", hide)
    monkeypatch.setattr(FaultyHandler, "transmit", show)


@pytest.mark.usefixtures("separate")
class TestMounting:
    def test_sessions_that_were_opened_in_its_place_and_not_used_are_deleted(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout)
        seed(layout, image, registry.host, "a", "1")
        registry.faults = [
            Fault(Header("Location", lambda path: path), "POST", "never"),
            Fault(refusal(404), "GET", "/blobs/", times=None),
        ]
        for digest in blobs_of(layout, image):
            registry.layout.blob_path(digest).unlink()
        transport = quick()
        with pytest.raises(NotFoundError):
            move(source(transport, f"{registry.host}/a:1"), sink(transport, f"{registry.host}/b:1"), jobs=1)
        opened = [request for request in registry.asked("POST", "mount=") if request.status == 202]
        eventually(lambda: len(registry.asked("DELETE")) == len(opened) == 3)


class TestFailures:
    @pytest.mark.parametrize("jobs", [1, 4])
    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            (Fault(Flip(100), "GET", "/blobs/", skip=1, times=None), IntegrityError),
            (Fault(refusal(400), "GET", "/blobs/", skip=1, times=None), RegistryError),
            (Fault(HangUp(), "GET", "/blobs/", skip=1, times=None), NetworkError),
        ],
    )
    def test_a_source_that_fails_leaves_no_manifest_and_no_session(
        self, faulty: Faulty, quick: Quick, layout: Layout, fault: Fault, kind: type[OcistreamError], jobs: int
    ) -> None:
        one, other = faulty(), faulty()
        seed(layout, layout.image([300_000, 400_000]), one.host, "a", "1")
        one.faults = [fault]
        transport = quick()
        with pytest.raises(kind) as raised:
            move(source(transport, f"{one.host}/a:1"), sink(transport, f"{other.host}/a:1"), jobs)
        assert order(other) == []
        partial = other.layout.path / "blobs"
        eventually(lambda: all(len(path.name) == 64 for path in partial.glob("*/*")))
        transport.close()
        # The error keeps the frames that raised it: no connection may wait for the garbage collector.
        eventually(lambda: other.open_connections == one.open_connections == 0)
        assert raised.value.__traceback__

    def test_the_tries_of_a_source_are_not_multiplied_by_those_of_the_sink(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        one, other = faulty(), faulty()
        image = layout.image([500_000])
        layer = layout.read(image["digest"])["layers"][0]["digest"]
        seed(layout, image, one.host, "a", "1")
        one.faults = [Fault(Drop(1000), "GET", layer), Fault(HangUp(), "GET", layer, times=None)]
        transport = quick()
        with pytest.raises(NetworkError):
            move(source(transport, f"{one.host}/a:1"), sink(transport, f"{other.host}/a:1"), jobs=1)
        assert len(one.asked("GET", layer)) == 4

    def test_progress_that_is_lost_is_taken_back(self, faulty: Faulty, quick: Quick, made: Layout) -> None:
        registry = faulty(Fault(refusal(503), "PATCH", times=2))
        watcher = Nobody()
        copy(taken_from(made), sink(quick(), f"{registry.host}/app:1"), watcher, jobs=1)
        assert watcher.moved == watcher.total > 0

    def test_a_broken_download_goes_on_without_the_upload_noticing(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        one, other = faulty(), faulty()
        image = layout.image([2_000_000])
        layer = layout.read(image["digest"])["layers"][0]["digest"]
        seed(layout, image, one.host, "a", "1")
        one.faults = [Fault(Drop(600_000), "GET", layer, times=3)]
        transport = quick()
        move(source(transport, f"{one.host}/a:1"), sink(transport, f"{other.host}/a:1"))
        assert [request.headers["Range"] for request in one.asked("GET", layer)] == [
            None,
            "bytes=600000-",
            "bytes=1200000-",
            "bytes=1800000-",
        ]
        assert len(other.asked("PATCH")) == 2
        assert manifest(other.host, "a", "1") == layout.file(image["digest"]).read_bytes()

    def test_a_cancelled_transfer_ends(self, faulty: Faulty, quick: Quick, made: Layout) -> None:
        transport = quick()
        transport.cancelled.set()
        registry = faulty()
        with pytest.raises(CancelledError):
            move(taken_from(made), sink(transport, f"{registry.host}/app:1"))
        assert registry.requests == []


def test_a_signature_that_cannot_go_is_left_where_the_registry_has_the_platforms_that_the_source_lacks(
    faulty: Faulty, quick: Quick, layout: Layout
) -> None:
    registry = faulty()
    index = two_platforms(layout)
    found = signed(layout, index)
    found.enter(layout, "v1")
    own = layout.artifact(b"signed for production")
    seed(layout, own, registry.host, "app", found.cosign_tag)
    _, other = layout.read(index["digest"])["manifests"]
    seed(layout, other, registry.host, "app")
    document = layout.read(other["digest"])
    for gone in (other, document["config"], document["layers"][1]):
        layout.file(gone["digest"]).unlink()
    source = LayoutSource(layout.path, select=select_named_images(["v1"]), referrers="copy")
    report = move(source, sink(quick(), f"{registry.host}/app:1"))
    assert report.graph.roots[0].descriptor.digest == index["digest"]
    assert [(skipped.digest, skipped.reason) for skipped in report.graph.skipped_referrers] == [
        (found.cosign["digest"], TAG_EXISTS)
    ]
    assert found.cosign["digest"] not in {manifest.descriptor.digest for manifest in report.graph.manifests}


def unnamed(content: bytes) -> NewBlob:
    return NewBlob(lambda: iter([content]), lambda: blob_of(content), access=Access.ONCE)


class TestEarlyBlobs:
    """What comes before its index does, from a pipe."""

    def test_they_go_where_the_one_image_goes_and_small_ones_can_be_had_back(
        self, faulty: Faulty, quick: Quick
    ) -> None:
        registry = faulty()
        reference = parse_reference(f"{registry.host}/app:1")
        put = RegistryDestination(quick(), lambda _: reference, early_target=reference)
        content = random.Random(3).randbytes(5000)
        blob = blob_of(content)
        assert put.stored([blob]) == {}
        put.write(VerifiedBlob(blob, lambda: iter([content]), access=Access.ONCE))
        assert put.stored([blob]) == {blob.digest: blob.size}
        early = EarlyBlobWriter(BlobWriter(put, Nobody(), threading.Event()), ConfigChecker(), None, None)
        assert early.accepts_early
        assert early.read_back(blob) == content
        assert len(registry.asked("HEAD")) == 1
        registry.faults = [Fault(Flip(0), "GET")]
        with pytest.raises(IntegrityError):
            early.read_back(blob)

    def test_so_do_those_that_have_no_name_yet(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        reference = parse_reference(f"{registry.host}/app:1")
        put = RegistryDestination(quick(), lambda _: reference, early_target=reference)
        content = random.Random(3).randbytes(5000)
        assert put.write_new(unnamed(content)) == blob_of(content)
        assert put.stored([blob_of(content)]) == {blob_of(content).digest: len(content)}
        # It is known to be there; nobody needs to ask.
        assert registry.asked("HEAD") == []
        assert registry.layout.blob_path(blob_of(content).digest).read_bytes() == content

    def test_what_is_there_by_now_is_not_sent(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        reference = parse_reference(f"{registry.host}/app:1")
        put = RegistryDestination(quick(), lambda _: reference, early_target=reference)
        assert put.stored([blob_of(b"content")]) == {}
        # Another thread has made the same of something else since.
        put.write_new(unnamed(b"content"))
        put.write(VerifiedBlob(blob_of(b"content"), lambda: iter([b"content"])))
        assert len(registry.asked("PATCH")) == 1

    def test_without_such_a_place_they_cannot_be_taken(self, faulty: Faulty, quick: Quick) -> None:
        put = sink(quick(), f"{faulty().host}/app:1")
        with pytest.raises(UnsupportedError, match="their repositories are not known in time"):
            put.write_new(unnamed(b"x"))
        uses: tuple[Callable[[], object], ...] = (lambda: put.stored([blob_of(b"x")]), lambda: put.read(blob_of(b"x")))
        for use in uses:
            with pytest.raises(UnsupportedError, match="their repositories are not known in time") as caught:
                use()
            assert caught.value.exit_code == 8
            assert caught.value.hint


def test_documents_without_a_home_are_never_fetched(faulty: Faulty, quick: Quick, layout: Layout) -> None:
    """Foreign layers: their `urls` lead anywhere (CVE-2020-15157)."""
    elsewhere = faulty()
    registry = faulty()
    layer = layout.blob(b"elsewhere", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    config = layout.blob(b"{}", "application/vnd.docker.container.image.v1+json")
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config,
        "layers": [{**layer, "urls": [f"{elsewhere.url}/layer"]}],
    }
    image = layout.document(document)
    seed(layout, image, registry.host, "app", "1")
    registry.requests.clear()
    transport, target = quick(), faulty()
    target.hold(b"elsewhere")
    move(source(transport, f"{registry.host}/app:1"), sink(transport, f"{target.host}/app:1"))
    assert elsewhere.requests == []
    assert registry.asked(path=layer["digest"]) == target.asked(path=layer["digest"]) == []
    assert json.loads(manifest(target.host, "app", "1") or b"") == document


class TestDigestsByAnotherAlgorithm:
    """The digest that went in comes out, or nothing that has a name does."""

    def test_a_tag_stands_for_it_where_the_registry_can(
        self, faulty: Faulty, quick: Quick, layout: Layout, tmp_path: Path
    ) -> None:
        one, other = faulty(), faulty()
        digest = small_image(layout, name="1", algorithm="sha512")["digest"]
        move(taken_from(layout), sink(quick(), f"{one.host}/app:1"))
        assert [request.target.rpartition("/")[2] for request in one.asked("PUT", "/manifests/")] == [
            digest,
            f"{digest}?tag=1",
        ]
        transport = quick()
        move(source(transport, f"{one.host}/app:1"), sink(transport, f"{other.host}/app:1"))
        report = move(source(transport, f"{other.host}/app:1"), LayoutDestination(tmp_path / "out"))
        assert [root.descriptor.digest for root in report.graph.roots] == [digest]
        assert manifest(other.host, "app", digest) == layout.file(digest).read_bytes()
        assert move(source(transport, f"{other.host}/app@{digest}"), LayoutDestination(tmp_path / "out")).graph.roots

    def test_what_is_there_is_not_sent(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        small_image(layout, name="1", algorithm="sha512")
        move(taken_from(layout), sink(quick(), f"{registry.host}/app:1"))
        registry.requests.clear()
        move(taken_from(layout), sink(quick(), f"{registry.host}/app:1"))
        assert {request.method for request in registry.requests} == {"HEAD"}

    def test_a_tag_that_stands_for_the_same_bytes_by_sha256_is_moved(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout, name="1", algorithm="sha512")
        seed(layout, image, registry.host, "app", "1")
        transport = quick()
        target = Repository(transport, registry.host, "app")
        assert target.find_digest("1") == digest_of(layout.file(image["digest"]).read_bytes())
        move(taken_from(layout), sink(transport, f"{registry.host}/app:1"))
        assert target.find_digest("1") == image["digest"]

    def test_a_registry_that_overlooks_the_tag_gets_it_as_ever_and_once(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty(Fault(Header("OCI-Tag", None), "PUT", times=None))
        image = small_image(layout, name="1", algorithm="sha512")
        content = layout.file(image["digest"]).read_bytes()
        move(taken_from(layout), sink(quick(), f"{registry.host}/app:1"))
        assert order(registry) == [*[f"app/{image['digest']}"] * 2, "app/1"]
        assert manifest(registry.host, "app", "1") == manifest(registry.host, "app", image["digest"]) == content
        assert Repository(quick(), registry.host, "app").find_digest("1") == digest_of(content)
        move(taken_from(layout), sink(quick(), f"{registry.host}/app:1"))
        assert order(registry).count("app/1") == 1

    @pytest.mark.parametrize("listed", [False, True])
    def test_a_registry_that_does_not_know_it_is_found_out_before_any_tag_moves(
        self, faulty: Faulty, quick: Quick, layout: Layout, listed: bool
    ) -> None:
        registry = faulty(Fault(refusal(400, "DIGEST_INVALID"), "PUT", "/manifests/sha512:", times=None))
        small_image(layout, name="first")
        image = small_image(layout, name=None if listed else "second", algorithm="sha512")
        if listed:
            layout.index([image], name="second")
        with pytest.raises(UnsupportedError, match=image["digest"]) as caught:
            move(taken_from(layout), sink(quick(), f"{registry.host}/app:1", f"{registry.host}/app:2"))
        assert caught.value.exit_code == 8
        assert caught.value.hint
        assert order(registry) == [f"app/{image['digest']}"]
        assert registry.layout.repositories() == []
