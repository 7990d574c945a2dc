"""Hand out the blobs of a pipe to several threads, in the order of the pipe and in bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import CancelledError, OcistreamError
from ocistream.streams.chunks import check_chunks_size, closing_chunks, read_all
from ocistream.streams.synchronization import wait_until
from ocistream.transfer.verified_blobs import blob_from_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob

#: Large blobs that move at once: one is read, and the destination still commits the others. A fourth one costs memory,
#: and saves nothing at a round trip of 100 ms.
_MAX_LARGE: Final = 3


class PipedBlobs:
    """The blobs of a pipe, as an iterator that several threads share; each thread passes its blobs to `move`.

    Small blobs are buffered, so that several of them move at once. Without this, a distant registry with many small
    layers costs several round trips for each, one after the other. A large blob is read by its own thread. The next
    blob is handed out when the large one was read to its end, not only when the destination has stored it.

    A failure of the pipe, or of a large blob that was not read to its end, ends the iterator and is in `failures`: the
    small blobs that arrived before it still move, so that the next run need not send them again. Any other failure
    stops all threads at once, because one of them may wait for the pipe.
    """

    def __init__(
        self,
        blobs: Iterator[Blob],
        move_blob: Callable[[Blob], None],
        *,
        is_exclusive: Callable[[Blob], bool],
        cancelled: threading.Event,
    ) -> None:
        """Take the blobs of the pipe. `move_blob` moves one. A large blob that `is_exclusive` moves alone."""
        self._blobs = blobs
        self._move_blob = move_blob
        self._is_exclusive = is_exclusive
        self._cancelled = cancelled
        #: The large blobs that were yielded and that no thread has begun to move, by digest.
        self._large: dict[str, _LargeBlob] = {}
        self.failures: list[OcistreamError] = []

    def __iter__(self) -> Iterator[Blob]:
        """Yield the blobs. One thread at a time may request the next one."""
        moving: deque[_LargeBlob] = deque()
        try:
            for blob in self._blobs:
                if blob.range is None and blob.descriptor.size <= limits.MAX_BUFFERED_BLOB:
                    chunks = check_chunks_size(blob.open(), blob.descriptor, 0)
                    yield blob_from_bytes(blob.descriptor, read_all(chunks))
                    continue
                is_exclusive = self._is_exclusive(blob)
                while len(moving) > (0 if is_exclusive else _MAX_LARGE - 1):
                    # The oldest one: its destination has had the most time.
                    wait_until(moving.popleft().ended.wait, self._cancelled)
                if self.failures:
                    return
                if is_exclusive:
                    # In this thread: the others wait for the next blob.
                    self._move_blob(blob)
                    continue
                large = self._large[blob.descriptor.digest] = _LargeBlob(blob)
                moving.append(large)
                yield replace(blob, open=large.open)
                wait_until(large.fully_read.wait, self._cancelled)
                if self.failures:
                    return
        except CancelledError:
            # The reason is the failure of another blob, or the user.
            raise
        except OcistreamError as error:
            self.failures.append(error)

    def move(self, blob: Blob) -> None:
        """Move a blob that was yielded."""
        large = self._large.pop(blob.descriptor.digest, None)
        if large is None:
            self._move_blob(blob)
            return
        try:
            self._move_blob(blob)
        except CancelledError:
            raise
        except OcistreamError as error:
            self.failures.append(error)
            if large.fully_read.is_set():
                # Another thread reads the next blob, and may wait for a long time.
                raise
        finally:
            large.ended.set()
        # After an unexpected exception the pipe is anywhere: it must not be read further.
        large.fully_read.set()


class _LargeBlob:
    """A large blob that moves, with an event for each of two moments."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        #: Set when the blob was read to its end: the next blob can be read from the pipe.
        self.fully_read = threading.Event()
        #: Set when the blob has moved, or failed to.
        self.ended = threading.Event()

    def open(self, offset: int = 0) -> Iterator[Chunk]:
        """Read the blob as its own `open` does, and note when it was read to its end."""
        chunks = self._blob.open(offset)
        with closing_chunks(chunks):
            yield from chunks
        self.fully_read.set()
