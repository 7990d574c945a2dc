"""The one way anything moves: what is wrapped around a blob, the order of things, and how it ends when one fails."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocistream import limits, transfer
from ocistream.ahead import Ahead
from ocistream.errors import (
    ArchiveError,
    CancelledError,
    IntegrityError,
    MissingContentError,
    NetworkError,
    UnsupportedError,
)
from ocistream.graph import Graph
from ocistream.interfaces import Blob, Early, Source
from ocistream.model import Descriptor
from ocistream.stores.layout import LayoutSink, LayoutSource
from ocistream.stream import digest_of
from tests.contract.shapes import named_in, parts_of
from tests.images import Layout, small_image, tar_layer, two_platforms
from tests.observers import Watch

#: Seconds after which a test that hangs fails.
PATIENCE = 60.0


class Memory:
    """A sink that keeps what it is given, and a diary of the order of things; `take` may be replaced."""

    parallel = True

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.diary: list[str] = []
        self.threads: set[int] = set()
        self.take: Callable[[Blob], bytes] = whole

    def begin(self, graph: Graph) -> None:
        assert all(manifest.descriptor.digest in graph.documents for manifest in graph.manifests)
        self.diary.append("begin")

    def has(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs

    has_manifest = has

    def put(self, blob: Blob) -> None:
        self.threads.add(threading.get_ident())
        self.blobs[blob.descriptor.digest] = self.take(blob)
        self.diary.append("put")

    def commit(self, graph: Graph) -> None:
        assert graph.roots
        self.diary.append("commit")

    def close(self) -> None:
        self.diary.append("close")


class Mounting(Memory):
    """A sink that can have some blobs without their bytes."""

    def __init__(self, *mountable: str) -> None:
        super().__init__()
        self.mountable = set(mountable)
        self.sources: list[Source] = []

    def could_mount(self, descriptor: Descriptor, source: Source) -> bool:  # noqa: ARG002 - Mounts' signature
        return descriptor.digest in self.mountable

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        self.sources.append(source)
        return descriptor.digest in self.mountable


class Recalling(Memory):
    """A sink that can give small content back."""

    def recall(self, descriptor: Descriptor) -> bytes:
        return self.blobs[descriptor.digest]


class Wrapped:
    """A layout's images, with some of the source changed."""

    def __init__(self, path: Path, *, parallel: bool = True, early: Callable[[Early], None] = lambda _: None) -> None:
        self._inner = LayoutSource(path)
        self.parallel = parallel
        self.early = early
        self.ended = False

    def graph(self, early: Early) -> Graph:
        self.early(early)
        return self._inner.graph(early)

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        yield from self._inner.blobs(wanted)
        self.ended = True

    def close(self) -> None:
        """Nothing to close."""


def whole(blob: Blob) -> bytes:
    return b"".join(bytes(chunk) for chunk in blob.open())


def descriptor_of(content: bytes, media_type: str = "application/octet-stream") -> Descriptor:
    return Descriptor(media_type, digest_of(content), len(content))


def blob_of(content: bytes) -> Blob:
    return Blob(descriptor_of(content), lambda: iter([content]))


def several_layers(layout: Layout, count: int = 6) -> list[str]:
    """Write an image of layers that are several chunks long; return their digests."""
    image = layout.image([(1 << 20) + number for number in range(count)], name="v1")
    return [layer["digest"] for layer in layout.read(image["digest"])["layers"]]


def config_of(layout: Layout) -> str:
    """Return the digest of the one image's configuration, which is a single chunk."""
    (image,) = named_in(layout)
    return str(layout.read(image["digest"])["config"]["digest"])


class TestOrder:
    def test_blobs_come_between_begin_and_commit_and_neither_end_is_closed(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        sink, watch = Memory(), Watch()
        report = transfer.copy(LayoutSource(layout.path), sink, watch, jobs=1)
        assert sink.diary == ["begin", "put", "put", "put", "commit"]
        assert sink.blobs == parts_of(layout, image).blobs
        assert watch.total == watch.moved == sum(map(len, sink.blobs.values()))
        assert report.graph.size == watch.total
        assert [moved.descriptor for moved in report.blobs] == list(report.graph.blobs)
        assert {moved.how for moved in report.blobs} == {"copied"}
        assert report.seconds >= 0

    def test_roots_can_be_given_other_names(self, layout: Layout) -> None:
        small_image(layout, name="v1")

        def rename(graph: Graph) -> Graph:
            return dataclasses.replace(graph, roots=(dataclasses.replace(graph.roots[0], name="other"),))

        report = transfer.copy(LayoutSource(layout.path), Memory(), Watch(), rename=rename)
        assert [root.name for root in report.graph.roots] == ["other"]

    def test_what_is_there_is_skipped_and_what_can_be_is_mounted(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        document = layout.read(image["digest"])
        config, (first, second) = document["config"], document["layers"]
        sink, watch = Mounting(first["digest"]), Watch()
        sink.blobs[config["digest"]] = b"there"
        source = LayoutSource(layout.path)
        report = transfer.copy(source, sink, watch)
        expected = {config["digest"]: "skipped", first["digest"]: "mounted", second["digest"]: "copied"}
        assert {moved.descriptor.digest: moved.how for moved in report.blobs} == expected == watch.how
        assert watch.moved == watch.total
        assert sink.sources == [source, source]
        assert sink.blobs[config["digest"]] == b"there"

    def test_a_source_is_read_to_its_end_though_nothing_is_wanted(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        for parallel in (True, False):
            sink, source = Memory(), Wrapped(layout.path, parallel=parallel)
            sink.blobs.update(parts_of(layout, image).blobs)
            transfer.copy(source, sink, Watch())
            assert source.ended
            assert sink.diary == ["begin", "commit"]


class TestVerifying:
    def test_a_corrupt_blob_never_reaches_its_end_nor_counts_in_full(self, layout: Layout) -> None:
        (digest,) = several_layers(layout, 1)
        content = layout.file(digest).read_bytes()
        layout.file(digest).write_bytes(content[:-1] + b"\xff")
        sink, watch = Memory(), Watch()
        got: list[int] = []

        def take(blob: Blob) -> bytes:
            got.extend(len(chunk) for chunk in blob.open())
            return b""

        sink.take = take
        sink.blobs[config_of(layout)] = b"there already"
        with pytest.raises(IntegrityError, match=digest):
            transfer.copy(LayoutSource(layout.path), sink, watch)
        assert 0 < sum(got) < len(content)
        assert watch.total is not None
        assert watch.moved < watch.total
        assert digest not in watch.how
        assert "commit" not in sink.diary

    def test_progress_is_taken_back_when_a_blob_is_begun_again(self, layout: Layout) -> None:
        several_layers(layout, 2)
        sink, watch = Memory(), Watch()

        def take(blob: Blob) -> bytes:
            chunks = blob.open()
            next(chunks)
            next(chunks, None)
            next(chunks, None)
            return whole(blob)

        sink.take = take
        transfer.copy(LayoutSource(layout.path), sink, watch, jobs=1)
        assert min(watch.advances) < 0
        assert watch.moved == watch.total
        assert watch.of == {digest: layout.file(digest).stat().st_size for digest in watch.how}

    def test_a_blob_that_the_sink_need_not_read_counts_in_full(self, layout: Layout) -> None:
        several_layers(layout, 2)
        sink, watch = Memory(), Watch()
        sink.take = lambda _: b""
        transfer.copy(LayoutSource(layout.path), sink, watch)
        assert watch.moved == watch.total
        assert set(watch.how.values()) == {"copied"}

    def test_whether_a_blob_can_be_had_again_is_passed_on(self, layout: Layout) -> None:
        sink = Memory()
        seen: list[bool] = []

        def take(blob: Blob) -> bytes:
            seen.append(blob.replayable)
            return whole(blob)

        sink.take = take
        small_image(layout, name="v1")
        once = dataclasses.replace(blob_of(b"once"), replayable=False)
        transfer.copy(Wrapped(layout.path, early=lambda early: early.put(once)), sink, Watch(), jobs=1)
        assert seen == [False, True, True, True]


class TestMissing:
    def test_blobs_that_neither_side_has_are_named_before_anything_is_visible(self, layout: Layout) -> None:
        digests = several_layers(layout, 7)
        for digest in digests:
            layout.file(digest).unlink()
        sink = Memory()
        with pytest.raises(MissingContentError) as caught:
            transfer.copy(LayoutSource(layout.path), sink, Watch())
        assert caught.value.exit_code == 6
        assert all(digest in caught.value.what for digest in digests[:5])
        assert digests[5] not in caught.value.what
        assert "and 2 more" in caught.value.what
        assert "commit" not in sink.diary

    def test_a_manifest_that_neither_side_has_is_missing_too(self, layout: Layout) -> None:
        lost = small_image(layout, name="v1")["digest"]
        layout.file(lost).unlink()
        sink = Memory()
        with pytest.raises(MissingContentError, match=lost):
            transfer.copy(LayoutSource(layout.path), sink, Watch())
        assert "commit" not in sink.diary

    def test_what_the_destination_has_is_not_missed(self, layout: Layout) -> None:
        index = two_platforms(layout, name="v1")
        lost = layout.read(index["digest"])["manifests"][0]["digest"]
        layout.file(lost).unlink()
        sink = Memory()
        sink.blobs[lost] = b""
        report = transfer.copy(LayoutSource(layout.path), sink, Watch())
        assert sink.diary[-1] == "commit"
        assert [manifest.digest for manifest in report.graph.absent] == [lost]


class TestEarly:
    def copy(self, layout: Layout, early: Callable[[Early], None], sink: Memory, watch: Watch) -> transfer.Report:
        return transfer.copy(Wrapped(layout.path, early=early), sink, watch, jobs=1)

    def test_a_blob_that_came_early_is_not_moved_again(self, layout: Layout) -> None:
        content = tar_layer({"a": b"b"})
        image = layout.image([content], name="v1")
        sink, watch = Memory(), Watch()

        def early(into: Early) -> None:
            into.put(blob_of(content))
            into.put(blob_of(content))

        report = self.copy(layout, early, sink, watch)
        assert sink.diary == ["put", "begin", "put", "commit"]
        assert watch.moved == watch.total
        # The report says what it is, which was not known when it came.
        (layer,) = layout.read(image["digest"])["layers"]
        assert [(b.descriptor.digest, b.descriptor.media_type) for b in report.blobs][1:] == [
            (layer["digest"], layer["mediaType"])
        ]

    def test_a_corrupt_one_is_found_out_at_once(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        wrong = Blob(descriptor_of(b"right"), lambda: iter([b"wrong"]))
        sink = Memory()
        with pytest.raises(IntegrityError):
            self.copy(layout, lambda into: into.put(wrong), sink, Watch())
        assert sink.diary == []

    def test_one_of_another_size_than_the_manifests_say_is_refused(self, layout: Layout) -> None:
        image = small_image(layout)
        document = layout.read(image["digest"])
        content = layout.file(document["layers"][0]["digest"]).read_bytes()
        document["layers"][0]["size"] += 1
        layout.document(document, name="v1")
        sink = Memory()
        with pytest.raises(IntegrityError, match=f"expected {len(content) + 1} bytes, got {len(content)}$"):
            self.copy(layout, lambda into: into.put(blob_of(content)), sink, Watch())
        assert "commit" not in sink.diary

    def test_a_sink_that_can_gives_small_content_back(self, layout: Layout) -> None:
        small_image(layout, name="v1")
        found: list[bytes] = []

        def early(into: Early) -> None:
            into.put(blob_of(b"{}"))
            found.append(into.recall(descriptor_of(b"{}")))

        self.copy(layout, early, Recalling(), Watch())
        assert found == [b"{}"]

    def test_with_one_that_cannot_it_is_not_supported(self, layout: Layout) -> None:
        small_image(layout, name="v1")

        def early(into: Early) -> None:
            into.recall(descriptor_of(b"{}"))

        with pytest.raises(UnsupportedError, match="too many small blobs") as caught:
            self.copy(layout, early, Memory(), Watch())
        assert caught.value.exit_code == 8


class Holding(Memory):
    """A sink that takes memory for each blob under way."""

    held = limits.MIB


class TestAhead:
    @pytest.mark.parametrize(
        ("sink", "jobs", "memory"),
        [
            (Memory(), 4, limits.AHEAD_MEMORY),
            (Holding(), 4, limits.AHEAD_MEMORY - 4 * limits.MIB),
            (Holding(), 3, limits.AHEAD_MEMORY - 3 * limits.MIB),
            (Holding(), limits.AHEAD_MEMORY // limits.MIB, None),
            (Memory(), 1, None),
        ],
    )
    def test_what_is_fetched_ahead_makes_way_for_what_the_sink_holds(
        self, layout: Layout, monkeypatch: pytest.MonkeyPatch, sink: Memory, jobs: int, memory: int | None
    ) -> None:
        several_layers(layout, 10)
        given = []

        class Noted(Ahead):
            def __init__(self, connections: int, memory: int, cancelled: threading.Event) -> None:
                given.append(memory)
                super().__init__(connections, memory, cancelled)

        monkeypatch.setattr(transfer, "Ahead", Noted)
        transfer.copy(LayoutSource(layout.path), sink, jobs=jobs)
        assert given == ([] if memory is None else [memory])
        assert len(sink.blobs) == 11


class TestSideBySide:
    @pytest.mark.parametrize(("source", "sink", "jobs"), [(True, True, 1), (True, False, 4), (False, True, 4)])
    def test_where_one_side_cannot_it_all_happens_in_this_thread(
        self, layout: Layout, source: bool, sink: bool, jobs: int
    ) -> None:
        several_layers(layout)
        into = Memory()
        into.parallel = sink
        transfer.copy(Wrapped(layout.path, parallel=source), into, Watch(), jobs=jobs)
        assert into.threads == {threading.get_ident()}

    def test_where_both_can_as_many_blobs_move_at_once_as_there_are_jobs(self, layout: Layout) -> None:
        several_layers(layout, 5)
        sink = Memory()
        together = threading.Barrier(3)

        def take(blob: Blob) -> bytes:
            # The config and five layers: two rounds of three.
            together.wait(PATIENCE)
            return whole(blob)

        sink.take = take
        transfer.copy(LayoutSource(layout.path), sink, Watch(), jobs=3)
        assert len(sink.threads) == 3
        assert threading.get_ident() not in sink.threads
        assert sink.diary == ["begin", *["put"] * 6, "commit"]

    def test_the_first_failure_is_the_one_that_is_reported_and_the_others_stop(self, layout: Layout) -> None:
        several_layers(layout)
        sink = Memory()
        sink.blobs[config_of(layout)] = b"there already"
        cancelled = threading.Event()
        together = threading.Barrier(2)
        stopped: list[BaseException] = []
        leader: list[str] = []

        def take(blob: Blob) -> bytes:
            chunks = blob.open()
            next(chunks)
            if together.wait(PATIENCE) == 0:
                leader.append(blob.descriptor.digest)
                msg = "the first one"
                raise NetworkError(msg)
            cancelled.wait(PATIENCE)
            try:
                for _ in chunks:
                    pass
            except BaseException as error:
                stopped.append(error)
                raise
            return b""

        sink.take = take
        with pytest.raises(NetworkError, match="the first one"):
            transfer.copy(LayoutSource(layout.path), sink, Watch(), jobs=2, cancelled=cancelled)
        assert cancelled.is_set()
        assert [type(error) for error in stopped] == [CancelledError]
        assert sink.diary == ["begin"]

    def test_a_source_that_fails_is_a_failure_too(self, layout: Layout) -> None:
        several_layers(layout)

        class Failing(Wrapped):
            def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
                yield from self._inner.blobs(wanted[:1])
                msg = "no more"
                raise ArchiveError(msg)

        sink = Memory()
        with pytest.raises(ArchiveError, match="no more"):
            transfer.copy(Failing(layout.path), sink, Watch(), jobs=3)
        assert "commit" not in sink.diary

    def test_a_failing_question_is_a_failure_too(self, layout: Layout) -> None:
        several_layers(layout)

        class Asked(Memory):
            def has(self, descriptor: Descriptor) -> bool:
                msg = f"{descriptor.digest}?"
                raise NetworkError(msg)

        with pytest.raises(NetworkError, match=r"\?"):
            transfer.copy(LayoutSource(layout.path), Asked(), Watch())

    def test_an_interruption_stops_every_thread(self, layout: Layout) -> None:
        # In a shell's background Python finds SIGINT ignored, and leaves it so.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        several_layers(layout)
        sink = Memory()
        sink.blobs[config_of(layout)] = b"there already"
        cancelled = threading.Event()
        together = threading.Barrier(3)
        stopped = threading.Semaphore(0)
        main = threading.main_thread()
        assert main is threading.current_thread()

        def take(blob: Blob) -> bytes:
            chunks = blob.open()
            next(chunks)
            if together.wait(PATIENCE) == 0:
                signal.pthread_kill(main.ident or 0, signal.SIGINT)
            cancelled.wait(PATIENCE)
            try:
                return whole(Blob(blob.descriptor, lambda: chunks))
            except CancelledError:
                stopped.release()
                raise

        sink.take = take
        try:
            with pytest.raises(KeyboardInterrupt):
                transfer.copy(LayoutSource(layout.path), sink, Watch(), jobs=3, cancelled=cancelled)
        finally:
            signal.signal(signal.SIGINT, before)
        assert all(stopped.acquire(timeout=PATIENCE) for _ in range(3))
        assert sink.diary == ["begin"]

    def test_a_layout_is_left_clean_by_a_failure(self, layout: Layout, tmp_path: Path) -> None:
        digests = several_layers(layout)
        content = layout.file(digests[3]).read_bytes()
        layout.file(digests[3]).write_bytes(content[:-1] + b"\xff")
        with pytest.raises(IntegrityError):
            transfer.copy(LayoutSource(layout.path), LayoutSink(tmp_path / "out"), Watch(), jobs=4)
        names = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
        wrong = digests[3].partition(":")[2]
        # The others may have got so far that the next run goes on with them, which is no dirt: parts of what is right.
        others = {f".{digest.partition(':')[2]}.partial" for digest in digests} - {f".{wrong}.partial"}
        assert {name for name in names if name.startswith(".")} <= others
        assert "index.json" not in names
        assert wrong not in names
