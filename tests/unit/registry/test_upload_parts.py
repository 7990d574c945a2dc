"""A blob that comes part by part, in several runs: what is sent, where it goes on, and what is left when it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocistream import open_uploads
from ocistream.errors import IntegrityError, NetworkError, RegistryError
from ocistream.layout.source import LayoutSource
from ocistream.oci.reference import parse_reference
from ocistream.registry.blob_push import BlobPusher
from ocistream.registry.destination import RegistryDestination
from ocistream.registry.profiles import CHUNK, PROFILES_BY_NAME, PUT, RegistryProfile
from ocistream.registry.repository import Repository
from ocistream.registry.upload_record import UploadRecords
from ocistream.registry.upload_strategy import UploadMethod, UploadStrategy
from ocistream.streams.chunks import Chunk, verify_chunks
from ocistream.transfer.interfaces import ByteRange, VerifiedBlob
from tests.faulty_registry import Action, Fault, HangUp, Reply, refusal
from tests.http_doubles import CountingRegistry, QuickTransport, blob_of
from tests.images import Layout
from tests.observers import NothingEarly
from tests.unit.registry.test_uploader import (
    BLOB,
    CONTENT,
    MIB,
    Faulty,
    Quick,
    Source,
    is_clean,
    is_stored,
    methods,
)

#: Where the parts begin, and where the last one ends.
CUTS = [0, MIB, 3 * MIB, len(CONTENT)]


def part(number: int, chunks: Callable[[], Iterator[Chunk]]) -> VerifiedBlob:
    """Return one of the parts as a destination gets it."""
    begin, end = CUTS[number], CUTS[number + 1]
    return VerifiedBlob(BLOB, chunks, range=ByteRange(begin, end, blob_of(CONTENT[begin:end]).digest))


class Runs:
    """One run after the other, with the same folder of records."""

    def __init__(self, folder: Path, registry: CountingRegistry, quick: Quick) -> None:
        self.folder = folder
        self.registry = registry
        self.quick = quick
        #: What the parts are, where they are not what they should be.
        self.wrong: dict[int, bytes] = {}
        self.forced: UploadMethod | None = None
        #: What the registry is taken for.
        self.known: RegistryProfile | None = None

    def uploader(self) -> BlobPusher:
        transport: QuickTransport = self.quick(
            ladder=UploadStrategy(explicit_method=self.forced, configured_profile=lambda _: self.known)
        )
        return BlobPusher(
            Repository(transport, self.registry.host, "app", for_push=True),
            transport.upload_strategy,
            UploadRecords(self.folder),
        )

    def put(self, number: int) -> int:
        """Send a part, in a run of its own; return how much is there."""
        self.registry.requests.clear()
        begin, end = CUTS[number], CUTS[number + 1]
        promised = blob_of(CONTENT[begin:end])
        content = self.wrong.get(number, CONTENT[begin:end])
        chunks = (content[:1000], content[1000:])
        return self.uploader().upload(part(number, lambda: verify_chunks(iter(chunks), promised))).stored

    def received(self) -> int:
        return sum(request.received for request in self.registry.requests)

    def records(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.exists() else []


@pytest.fixture
def runs(faulty: Faulty, quick: Quick, tmp_path: Path) -> Runs:
    return Runs(tmp_path / "uploads", faulty(), quick)


class TestInOrder:
    def test_each_is_sent_once_and_the_last_one_closes_the_upload(self, runs: Runs) -> None:
        assert runs.put(0) == CUTS[1]
        assert methods(runs.registry) == ["POST", "PATCH"]
        assert runs.put(1) == CUTS[2]
        assert methods(runs.registry) == ["GET", "PATCH"]
        (patch,) = runs.registry.asked("PATCH")
        assert patch.headers["Content-Range"] == f"{CUTS[1]}-{CUTS[2] - 1}"
        assert runs.put(2) == CUTS[3]
        assert methods(runs.registry) == ["GET", "PATCH", "PUT"]
        assert runs.received() == CUTS[3] - CUTS[2]
        assert is_stored(runs.registry)
        assert is_clean(runs.registry)
        assert runs.records() == []

    def test_by_chunks_too(self, runs: Runs) -> None:
        runs.forced = UploadMethod(CHUNK, MIB)
        assert [runs.put(number) for number in range(3)] == CUTS[1:]
        assert len(runs.registry.asked("PATCH")) == 2
        assert is_stored(runs.registry)

    def test_where_the_chunked_coding_is_refused_they_have_a_length(self, runs: Runs) -> None:
        # The embedded registry takes a range only with a length. The first part has no range.
        runs.known = PROFILES_BY_NAME["distribution"]
        assert runs.put(0) == CUTS[1]
        (coded,) = runs.registry.asked("PATCH")
        assert (coded.status, coded.headers["Transfer-Encoding"]) == (202, "chunked")
        for number, end in list(enumerate(CUTS[1:]))[1:]:
            assert runs.put(number) == end
            coded, sized = runs.registry.asked("PATCH")
            assert (coded.status, coded.headers["Transfer-Encoding"]) == (400, "chunked")
            assert sized.headers["Content-Length"] == str(end - CUTS[number])
        assert is_stored(runs.registry)

    def test_one_that_is_there_is_not_sent_again(self, runs: Runs) -> None:
        runs.put(0)
        runs.put(1)
        for number in (0, 1):
            assert runs.put(number) == CUTS[2]
            assert runs.received() == 0
        assert runs.put(2) == CUTS[3]
        assert is_stored(runs.registry)

    def test_what_comes_whole_after_all_goes_on_there(self, runs: Runs) -> None:
        runs.put(0)
        runs.registry.requests.clear()
        runs.uploader().upload(Source().blob)
        assert runs.received() == CUTS[3] - CUTS[1]
        assert is_stored(runs.registry)
        assert runs.records() == []


class TestOutOfOrder:
    def test_how_far_it_is_can_be_asked_and_changes_nothing(self, runs: Runs) -> None:
        assert runs.uploader().partial_size(BLOB.digest) == 0
        assert methods(runs.registry) == []
        runs.put(0)
        for _ in range(2):
            runs.registry.requests.clear()
            assert runs.uploader().partial_size(BLOB.digest) == CUTS[1]
            assert methods(runs.registry) == ["GET"]
        runs.registry.faults = [Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "GET", "/uploads/")]
        assert runs.uploader().partial_size(BLOB.digest) == 0
        assert [runs.put(number) for number in range(1, 3)] == CUTS[2:]
        assert is_stored(runs.registry)

    def test_a_later_part_waits_and_nothing_is_opened_for_it(self, runs: Runs) -> None:
        for number in (2, 1):
            assert runs.put(number) == 0
            assert methods(runs.registry) == []
            assert runs.records() == []

    def test_one_that_leaves_a_gap_waits_and_the_upload_stays(self, runs: Runs) -> None:
        runs.put(0)
        assert runs.put(2) == CUTS[1]
        assert methods(runs.registry) == ["GET"]
        assert runs.put(1) == CUTS[2]
        assert runs.put(2) == CUTS[3]
        assert is_stored(runs.registry)

    def test_a_session_that_is_gone_is_begun_anew_by_the_first_alone(self, runs: Runs) -> None:
        runs.put(0)
        gone = [Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "GET", "/uploads/")]
        runs.registry.faults = list(gone)
        assert runs.put(1) == 0
        assert runs.records() == []
        runs.put(0)
        runs.registry.faults = list(gone)
        assert runs.put(0) == CUTS[1]
        assert [runs.put(1), runs.put(2)] == CUTS[2:]
        assert is_stored(runs.registry)


class TestWhatCannotBe:
    @pytest.mark.parametrize("number", range(3))
    def test_a_wrong_part_ends_the_upload(self, runs: Runs, number: int) -> None:
        for before in range(number):
            runs.put(before)
        begin, end = CUTS[number], CUTS[number + 1]
        runs.wrong[number] = CONTENT[begin : end - 1] + bytes([CONTENT[end - 1] ^ 1])
        with pytest.raises(IntegrityError, match=blob_of(CONTENT[begin:end]).digest):
            runs.put(number)
        assert runs.records() == []
        assert not is_stored(runs.registry)
        runs.wrong.clear()
        assert [runs.put(each) for each in range(3)] == CUTS[1:]
        assert is_stored(runs.registry)

    def test_parts_that_are_right_and_make_another_blob_are_refused_by_the_registry(self, runs: Runs) -> None:
        runs.put(0)
        runs.put(1)
        other = bytes(CUTS[3] - CUTS[2])
        with pytest.raises(
            IntegrityError, match=rf"{BLOB.digest}: \S+ received all parts, but together they have another digest"
        ):
            runs.uploader().upload(part(2, lambda: iter([other])))
        assert not is_stored(runs.registry)
        assert runs.records() == []
        assert is_clean(runs.registry)

    def test_where_nothing_is_remembered_nothing_is_begun(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        repository = Repository(quick(), registry.host, "app", for_push=True)
        first = part(0, lambda: iter([CONTENT[: CUTS[1]]]))
        assert BlobPusher(repository, records=UploadRecords(None)).upload(first).stored == 0
        assert not registry.asked("PATCH")
        assert is_clean(registry)

    def test_nor_by_one_put(self, runs: Runs) -> None:
        runs.forced = UploadMethod(PUT)
        assert runs.put(0) == 0
        assert methods(runs.registry) == []
        assert runs.records() == []

    def test_one_that_is_too_large_goes_in_chunks(self, runs: Runs) -> None:
        runs.registry.faults = [Fault(refusal(413), "PATCH", larger_than=MIB, times=None)]
        assert [runs.put(number) for number in range(3)] == CUTS[1:]
        assert is_stored(runs.registry)

    @pytest.mark.parametrize("status", [400, 405])
    def test_a_registry_that_takes_no_parts_is_left_as_it_was(self, runs: Runs, status: int) -> None:
        runs.registry.faults = [Fault(refusal(status, "UNSUPPORTED"), "PATCH")]
        assert runs.put(0) == 0
        assert runs.records() == []
        assert is_clean(runs.registry)


class TestFailures:
    @pytest.mark.parametrize("failure", [HangUp(), Reply(503)])
    @pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
    def test_what_passes_is_tried_again(self, runs: Runs, failure: Action, method: str) -> None:
        for number in range(3):
            runs.registry.faults = [Fault(failure, method)]
            assert runs.put(number) == CUTS[number + 1]
        assert is_stored(runs.registry)

    def test_a_first_part_whose_session_is_lost_begins_again(self, runs: Runs) -> None:
        runs.registry.faults = [Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "PATCH")]
        assert runs.put(0) == CUTS[1]
        assert len(runs.registry.asked("POST")) == 2
        runs.registry.faults = [Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "PATCH")]
        assert runs.put(1) == 0
        assert runs.records() == []
        assert is_clean(runs.registry)

    def test_an_interruption_is_reported(self, runs: Runs) -> None:
        runs.put(0)
        runs.registry.faults = [Fault(Reply(503), "PATCH", skip=1, times=100)]
        runs.forced = UploadMethod(CHUNK, MIB)
        open_uploads.reset()
        with pytest.raises(NetworkError):
            runs.put(1)
        assert open_uploads.count_unconfirmed() == {runs.registry.host: 1}

    def test_what_does_not_pass_leaves_the_upload_to_the_next_run(self, runs: Runs) -> None:
        runs.put(0)
        runs.registry.faults = [Fault(Reply(503), "PATCH", times=100)]
        with pytest.raises(NetworkError):
            runs.put(1)
        assert len(runs.records()) == 1
        runs.registry.faults = []
        assert [runs.put(1), runs.put(2)] == CUTS[2:]
        assert is_stored(runs.registry)

    def test_a_refusal_of_the_end_is_no_wrong_blob(self, runs: Runs) -> None:
        runs.put(0)
        runs.put(1)
        runs.registry.faults = [Fault(Reply(503), "PUT", times=100)]
        with pytest.raises(RegistryError):
            runs.put(2)
        runs.registry.faults = []
        assert runs.put(2) == CUTS[3]
        assert is_stored(runs.registry)


def test_a_lost_answer_to_the_end_is_absorbed(runs: Runs, loses_answers: list[str]) -> None:
    runs.put(0)
    runs.put(1)
    loses_answers.append("PUT")
    assert runs.put(2) == CUTS[3]
    assert is_stored(runs.registry)
    assert runs.records() == []


def test_several_repositories_get_no_parts(faulty: Faulty, quick: Quick, layout: Layout, tmp_path: Path) -> None:
    registry = faulty()
    layout.name(layout.image([CONTENT]), "a", "b")
    graph = LayoutSource(layout.path).resolve(NothingEarly())
    sink = RegistryDestination(
        quick(),
        lambda root: parse_reference(f"{registry.host}/{root.name}:1"),
        records=UploadRecords(tmp_path / "records"),
    )
    sink.begin(graph)
    (blob,) = (blob for blob in graph.blobs if blob.digest == BLOB.digest)
    beginning = ByteRange(0, MIB, blob_of(CONTENT[:MIB]).digest)
    sink.write(VerifiedBlob(blob, lambda *_: iter([CONTENT[:MIB]]), range=beginning))
    assert sink.stored([blob], partial=True) == {}
    assert not registry.asked("PATCH")
    sink.close()
