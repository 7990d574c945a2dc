"""Bodies of requests, made while they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import OcistreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.streams.chunks import Chunk

__all__ = ["BodyError", "FixedLengthBody", "StreamedBody"]


class StreamedBody:
    """A request body that is made while it is sent, and whose length nobody knows before.

    It has `__iter__` and no `read`: what can be read is sent 16 KiB at a time. `begun` says whether any of it was asked
    for, after which it cannot be sent again; `ended` says that all of it was, which an early answer prevents. `failure`
    is what its own chunks raised, if they did.

    One that `ends_early` has a proper end all the same then, which is for what is no whole thing by itself: so a
    registry answers, and knows what it has, and its upload can be deleted. (After a request that broke off,
    distribution 2.8 neither knows an upload nor lets anybody delete it.)
    """

    def __init__(self, chunks: Iterator[Chunk], *, ends_early: bool = False) -> None:
        """Keep the chunks."""
        self._chunks = chunks
        self._ends_early = ends_early
        self.is_started = False
        self.is_finished = False
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Chunk]:
        """Send."""
        self.is_started = True
        try:
            yield from self._chunks
            self.is_finished = True
        except OcistreamError as error:
            self.failure = error
            if not self._ends_early:
                raise
        except (OSError, ValueError) as error:
            self.failure = error
            # urllib3 would take it for a failure of the network, or overlook it and wait for an answer.
            if not self._ends_early:
                raise BodyError from error


class FixedLengthBody(StreamedBody):
    """A request body of known length."""

    def __init__(self, chunks: Iterator[Chunk], length: int) -> None:
        """Keep the chunks, and their length in bytes; it must not be 0, which would become chunked encoding."""
        super().__init__(chunks)
        self._length = length

    def __len__(self) -> int:
        """Give the length, which becomes the Content-Length."""
        return self._length


class BodyError(Exception):
    """What a body's chunks raised, on its way past urllib3."""
