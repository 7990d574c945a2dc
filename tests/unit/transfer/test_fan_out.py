"""Several destinations at once: a reader starts a blob again, and the source then gives wrong bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ocistream.errors import IntegrityError, NetworkError
from ocistream.oci.descriptor import Descriptor, compute_digest
from ocistream.oci.graph import Graph
from ocistream.streams.chunks import Chunk
from ocistream.transfer.fan_out import FanOutBranch, FanOutDestination
from ocistream.transfer.interfaces import RecoverableBlob, VerifiedBlob
from ocistream.transfer.verified_blobs import use_verified
from tests.unit.transfer.memory_destination import Memory

CONTENT = b"first half, second half"
BLOB = Descriptor("application/octet-stream", compute_digest(CONTENT), len(CONTENT))
GRAPH = Graph((), (), (BLOB,))


class Restarting(Memory):
    """A destination that reads the first chunk of a blob `restarts` times before a complete blob."""

    def __init__(self, restarts: int = 0, resumed: int = 0) -> None:
        super().__init__()
        self.restarts = restarts
        self.resumed = resumed

    def write(self, blob: VerifiedBlob) -> int:
        assert blob.range is None
        while self.restarts:
            self.restarts -= 1
            next(blob.open())
        super().write(blob)
        return self.resumed


def test_wrong_bytes_for_a_reader_that_starts_again_are_reported_to_the_source() -> None:
    opened: list[int] = []
    told: list[bool] = []

    def chunks(offset: int = 0) -> Iterator[Chunk]:
        assert not offset
        opened.append(len(opened))
        # The first reading is shared; the second belongs to the reader that starts again.
        content = b"wrong half, wrong half." if len(opened) == 2 else CONTENT
        yield from (content[:11], content[11:])

    def on_corrupt(_error: IntegrityError, can_retry: bool) -> None:
        told.append(can_retry)

    plain, restarting = Restarting(), Restarting(1)
    fan = FanOutDestination([FanOutBranch(plain), FanOutBranch(restarting)], threading.Event())
    fan.begin(fan.expect(GRAPH))
    use_verified(RecoverableBlob(BLOB, chunks, on_corrupt=on_corrupt), fan.write, can_retry=True)
    assert told == [True]
    assert [branch.failure for branch in fan.branches] == [None, None]
    assert plain.blobs == restarting.blobs == {BLOB.digest: CONTENT}
    assert len(opened) == 3


def test_the_only_destination_that_lacks_a_blob_says_how_much_of_it_was_resumed() -> None:
    complete, lacking = Restarting(), Restarting(resumed=11)
    complete.blobs[BLOB.digest] = CONTENT
    fan = FanOutDestination([FanOutBranch(complete), FanOutBranch(lacking)], threading.Event())
    fan.begin(fan.expect(GRAPH))
    fan.stored([BLOB])
    blob = RecoverableBlob(BLOB, lambda _offset=0: iter([CONTENT]))
    assert use_verified(blob, fan.write, can_retry=True) == 11


def test_a_destination_that_stops_reading_delays_no_other_one() -> None:
    is_written = threading.Event()

    class Signalling(Memory):
        def write(self, blob: VerifiedBlob) -> int:
            super().write(blob)
            is_written.set()
            return 0

    class Pausing(Memory):
        def write(self, blob: VerifiedBlob) -> int:
            chunks = blob.open()
            next(chunks)
            del chunks
            assert is_written.wait(10)
            return super().write(blob)

    signalling, pausing = Signalling(), Pausing()
    fan = FanOutDestination([FanOutBranch(signalling), FanOutBranch(pausing)], threading.Event())
    fan.begin(fan.expect(GRAPH))
    blob = RecoverableBlob(BLOB, lambda _offset=0: iter([CONTENT[:11], CONTENT[11:]]))
    use_verified(blob, fan.write, can_retry=True)
    assert signalling.blobs == pausing.blobs == {BLOB.digest: CONTENT}


def test_a_source_that_fails_for_one_reader_alone_still_serves_the_others() -> None:
    opened: list[int] = []

    # The first reading is shared; the second belongs to the reader that starts again.
    def chunks(offset: int = 0) -> Iterator[Chunk]:
        assert not offset
        number = len(opened)
        opened.append(number)
        yield CONTENT[:11]
        if number:
            raise NetworkError("the second connection broke")
        yield CONTENT[11:]

    plain, restarting = Restarting(), Restarting(1)
    fan = FanOutDestination([FanOutBranch(plain), FanOutBranch(restarting)], threading.Event())
    fan.begin(fan.expect(GRAPH))
    with pytest.raises(NetworkError, match="the second connection broke"):
        use_verified(RecoverableBlob(BLOB, chunks), fan.write, can_retry=True)
    assert plain.blobs == {BLOB.digest: CONTENT}


def test_the_shared_reading_ends_when_all_readers_read_for_themselves() -> None:
    closed: list[int] = []
    closed_before_the_end: list[bool] = []

    def chunks(offset: int = 0) -> Iterator[Chunk]:
        assert not offset
        try:
            yield CONTENT[:11]
            yield CONTENT[11:]
        finally:
            closed.append(1)

    class Leaving(Memory):
        def write(self, blob: VerifiedBlob) -> int:
            next(blob.open())
            own = blob.open()
            next(own)
            barrier.wait(10)
            closed_before_the_end.append(bool(closed))
            for _ in own:
                pass
            return 0

    barrier = threading.Barrier(2)
    fan = FanOutDestination([FanOutBranch(Leaving()), FanOutBranch(Leaving())], threading.Event())
    fan.begin(fan.expect(GRAPH))
    use_verified(RecoverableBlob(BLOB, chunks), fan.write, can_retry=True)
    assert closed_before_the_end == [True, True]
