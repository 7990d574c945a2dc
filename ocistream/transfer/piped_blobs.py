"""Hand out the blobs of a pipe to several threads, in the order of the pipe and in bounded memory."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import CancelledError, OcistreamError
from ocistream.streams.chunks import check_chunks_size, closing_chunks, read_all
from ocistream.transfer.verified_blobs import blob_from_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

#: Large blobs that move at once: one is read, and the destination still commits the other (to the disk, or from the
#: storage of uploads to that of blobs). More would need more memory.
_MAX_LARGE: Final = 2
#: Seconds between two checks whether the transfer was cancelled.
_POLL_INTERVAL: Final = 0.1


class PipedBlobs:
    """The blobs of a pipe, as an iterator that several threads share; each thread passes its blobs to `move`.

    Small blobs are buffered, so that several of them move at once. Without this, a distant registry with many small
    layers costs several round trips for each, one after the other. A large blob is read by its own thread. The next
    blob is handed out when the pipe has passed the large one, not only when the destination has stored it.

    A failure of the pipe or of a large blob ends the iterator and is added to `failures`: the small blobs that arrived
    before it still move, so that the next run need not send them again.
    """

    def __init__(
        self,
        blobs: Iterator[Blob],
        transfer: Callable[[int, Blob], None],
        *,
        is_exclusive: Callable[[Blob], bool],
        cancelled: threading.Event,
    ) -> None:
        """Take the blobs of the pipe. `transfer(concurrency, blob)` moves one; `concurrency` blobs move at once.

        A large blob that `is_exclusive` moves alone.
        """
        self._blobs = blobs
        self._transfer = transfer
        self._is_exclusive = is_exclusive
        self._cancelled = cancelled
        #: Digest of a large blob that moves -> an event that is set when the pipe has passed it.
        self._passed: dict[str, threading.Event] = {}
        self._free_places = threading.Semaphore(_MAX_LARGE)
        self.failures: list[OcistreamError] = []

    def __iter__(self) -> Iterator[Blob]:
        """Yield the blobs. One thread at a time may request the next one."""
        try:
            for blob in self._blobs:
                if blob.range is None and blob.descriptor.size <= limits.MAX_BUFFERED_BLOB:
                    chunks = check_chunks_size(blob.open(), blob.descriptor, 0)
                    yield blob_from_bytes(blob.descriptor, read_all(chunks))
                    continue
                if self._is_exclusive(blob):
                    for _ in range(_MAX_LARGE):
                        self._wait(self._free_places.acquire)
                    # In this thread: the others wait for the next blob.
                    self._transfer(1, blob)
                    self._free_places.release(_MAX_LARGE)
                    continue
                self._wait(self._free_places.acquire)
                passed = self._passed[blob.descriptor.digest] = threading.Event()
                yield replace(blob, open=partial(self._read, blob, passed))
                self._wait(passed.wait)
                if self.failures:
                    return
        except CancelledError:
            # The reason is the failure of another blob, or the user.
            raise
        except OcistreamError as error:
            self.failures.append(error)

    def move(self, concurrency: int, blob: Blob) -> None:
        """Transfer a blob that was yielded; `concurrency` blobs move at once."""
        passed = self._passed.get(blob.descriptor.digest)
        if passed is None:
            self._transfer(concurrency, blob)
            return
        try:
            self._transfer(1, blob)
        except CancelledError:
            raise
        except OcistreamError as error:
            self.failures.append(error)
            if passed.is_set():
                # Another thread reads the next blob, and may wait for a long time.
                raise
        finally:
            self._free_places.release()
        # After an unexpected exception the pipe is anywhere: it must not be read further.
        passed.set()

    def _read(self, blob: Blob, passed: threading.Event, offset: int = 0) -> Iterator[Chunk]:
        chunks = blob.open(offset)
        with closing_chunks(chunks):
            yield from chunks
        passed.set()

    def _wait(self, wait: Callable[..., bool]) -> None:
        while not wait(timeout=_POLL_INTERVAL):
            if self._cancelled.is_set():
                msg = "cancelled"
                raise CancelledError(msg)
