"""Request bodies that are produced while they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ocistream.errors import OcistreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.streams.chunks import Chunk


class StreamedBody:
    """A request body that is produced while it is sent. Its length is not stated, but for a `FixedLengthBody`.

    It has `__iter__` and no `read`, because http.client sends anything with `read` in pieces of 16 KiB. `is_started`
    says whether any chunk was requested: then the body cannot be sent again. `is_finished` says whether the body was
    sent completely; an early response prevents that. `failure` is the exception that the chunks raised, if any.

    If the chunks fail, the body is ended properly (`can_end_early`). Then the registry responds and knows what it has
    received, so the upload can be resumed or deleted. After a broken request, distribution 2.8 neither finds an upload
    nor allows its deletion.
    """

    can_end_early: ClassVar[bool] = True

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        """Use these chunks."""
        self._chunks = chunks
        self.is_started = False
        self.is_finished = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks, and record start, end and failure."""
        self.is_started = True
        try:
            yield from self._chunks
            self.is_finished = True
        except OcistreamError as error:
            self.failure = error
            if not self.can_end_early:
                raise
        except (OSError, ValueError) as error:
            self.failure = error
            # Otherwise it would be treated as a failure of the network.
            if not self.can_end_early:
                raise BodyError from error


class FixedLengthBody(StreamedBody):
    """A request body whose length is stated.

    If its chunks fail, the request breaks off, because it cannot end short. A stated length lets a proxy refuse a layer
    that is too large before a byte of it is sent.
    """

    can_end_early: ClassVar[bool] = False

    def __init__(self, chunks: Iterator[Chunk], length: int) -> None:
        """Use these chunks of `length` bytes in total."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Return the length in bytes, which becomes the Content-Length."""
        return self._length


class BodyError(Exception):
    """Carries an exception of a body's chunks through the libraries."""
