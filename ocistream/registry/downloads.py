"""One blob's way down: what breaks goes on by Range, and no answer to that is believed unseen.

What is handed out is not verified; whoever joins the parts does that. Which request it takes is
registry/repository.py's concern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import FinalNetworkError, IntegrityError, NetworkError, RegistryError
from ocistream.http.origins import redacted
from ocistream.oci.reference import is_digest, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ocistream.http.connections import Answer
    from ocistream.http.retry import Tries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk

__all__ = ["Download", "Led", "announces_more", "part_of"]

_LENGTH = re.compile(r"[0-9]{1,19}\Z")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)\Z")


class Download:
    """A blob, to be had by `ask(offset, tries)`: 200 or 206 with it, 416 where there is nothing more.

    `strictly` believes the headers of an answer so far that none of its body is given where they promise something
    else: of use where there is another place to ask.
    """

    def __init__(
        self, ask: Callable[[int, Tries], Answer], url: str, descriptor: Descriptor, *, strictly: bool
    ) -> None:
        """Ask for nothing yet; `url` is for messages."""
        self._ask = ask
        self._url = redacted(url)
        self._descriptor = descriptor
        self._strictly = strictly

    def chunks(self, offset: int, tries: Tries) -> Iterator[Chunk]:
        """Read from byte `offset` on; a connection that breaks is replaced by one that goes on from there.

        A body that is longer than was promised ends soon after that, but not before it shows.

        What somebody has who begins in the middle came in another run, and to fail would not help there. So if the
        registry cannot begin there, the blob is read from its beginning, however long that is; unless `strictly`.

        Raises:
            NotFoundError: it is not there.
            NetworkError: it broke off and trying again did not help.
            IntegrityError: more bytes than the blob has are announced; or, strictly, another size or digest.
        """
        size = self._descriptor.size
        free = 0 if self._strictly else offset
        while True:
            try:
                for chunk in self._chunks_from(offset, tries, free):
                    offset += len(chunk)
                    yield chunk
                    tries.reset()
                    if offset > size:
                        return
            except (RegistryError, FinalNetworkError):
                raise
            except NetworkError as error:
                if not tries.again(error):
                    raise
            else:
                if offset >= size:
                    return
                # A body that ended early without an error, as one of a wrong Content-Length does.
                short = NetworkError(f"GET {self._url}: ended after {offset} of {size} bytes")
                if not tries.again(short):
                    raise short

    def _chunks_from(self, offset: int, tries: Tries, free: int) -> Iterator[Chunk]:
        """Read from byte `offset` on; nothing comes where the registry says that there is nothing more.

        Up to the first `free` bytes may be read for nothing, and some more.
        """
        answer = self._ask(offset, tries)
        if 0 < offset <= free and not _begins_at(answer, offset):
            answer.close()
            answer = self._ask(0, tries)
        if answer.status == 416:
            answer.drain()
            return
        self._check_announced(answer, offset)
        skip = _bytes_to_skip(answer, offset, free + limits.MAX_DISCARD)
        for chunk in answer.chunks():
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            yield chunk[skip:] if skip else chunk
            skip = 0

    def _check_announced(self, answer: Answer, offset: int) -> None:
        """Check the headers of an answer that gives the blob, from byte `offset` on.

        A greater length is always refused: the registry may never send what is beyond the blob, and waiting for it
        helps nobody. A smaller length may be continued by another request.

        Raises:
            IntegrityError: the headers announce more bytes than the blob has; or, `strictly`, another size or digest.
        """
        promised = self._descriptor.digest
        stated = answer.header("Docker-Content-Digest") or ""
        length = answer.header("Content-Length")
        expected = self._descriptor.size - (offset if answer.status == 206 else 0)
        # The same bytes may be called by another algorithm.
        same_kind = is_digest(stated) and stated.partition(":")[0] == promised.partition(":")[0]
        if self._strictly and same_kind and stated != promised:
            what = f"{stated} is announced"
        elif (self._strictly and length is not None and length != str(expected)) or announces_more(answer, expected):
            what = f"{printable(length or '')} bytes are announced, and not {expected}"
        else:
            return
        answer.close()
        msg = f"{promised}: GET {redacted(answer.url)}: {what}"
        raise IntegrityError(msg)


@dataclass(slots=True)
class Led:
    """Where a registry has led whoever asked it for a blob, if it has."""

    url: str | None = None


def part_of(answer: Answer, start: int, view: memoryview, *, whole: bool) -> Generator[int, None, None]:
    """Read what an answer has of a blob, from byte `start` on, into `view`; `whole` says that this is all of it.

    Each time that more of it is there, it gives how many bytes it is by then.

    Raises:
        NetworkError: it is another part, or breaks off.
    """
    if not whole and (answer.status != 206 or not _begins_at(answer, start)):
        answer.close()
        msg = f"GET {redacted(answer.url)}: asked for bytes from {start} on, and got others"
        raise FinalNetworkError(msg)
    if announces_more(answer, len(view)):
        answer.close()
        msg = f"GET {redacted(answer.url)}: asked for {len(view)} bytes, and more are announced"
        raise FinalNetworkError(msg)
    yield from answer.into(view)


def announces_more(answer: Answer, size: int) -> bool:
    """Return whether the Content-Length of an answer is greater than `size`; one that is no number is ignored."""
    length = answer.header("Content-Length") or ""
    return _LENGTH.match(length) is not None and int(length) > size


def _begins_at(answer: Answer, offset: int) -> bool:
    """Say whether an answer to a Range request can be used: it begins where it was asked to, or at the beginning."""
    match = _CONTENT_RANGE.match(answer.header("Content-Range") or "")
    return answer.status == 200 or (answer.status == 206 and match is not None and int(match[1]) == offset)


def _bytes_to_skip(answer: Answer, offset: int, most: int) -> int:
    """Look at an answer that is to give a blob from byte `offset` on: how much of it is known (container-libs#1114).

    Raises:
        FinalNetworkError: it is not what was asked for, or more than `most` bytes would have to be read for nothing.
    """
    where = f"GET {redacted(answer.url)}"
    if answer.status == 206:
        if _begins_at(answer, offset):
            return 0
        answer.close()
        msg = f"{where}: asked for bytes from {offset} on, got {printable(answer.header('Content-Range') or 'others')}"
        raise FinalNetworkError(msg)
    if offset > most:
        answer.close()
        msg = f"{where}: broke off after {offset} bytes, and this registry cannot go on from there"
        raise FinalNetworkError(msg)
    return offset
