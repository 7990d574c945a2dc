"""Download one blob: resume with Range after a broken connection, and check the headers of every answer.

The bytes are not verified here; the caller verifies them. `registry.repository` builds the requests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import IntegrityError, NetworkError, PermanentNetworkError, RegistryError
from ocistream.http.origins import redact_url
from ocistream.oci.reference import is_digest, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from ocistream.http.connections import Response
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.streams.chunks import Chunk

__all__ = ["BlobDownload", "BlobRedirect", "has_excess_length", "read_range"]

_LENGTH = re.compile(r"[0-9]{1,19}\Z")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)\Z")


class BlobDownload:
    """A blob, to be had by `ask(offset, tries)`: 200 or 206 with it, 416 where there is nothing more.

    `strictly` believes the headers of an answer so far that none of its body is given where they promise something
    else: of use where there is another place to ask.
    """

    def __init__(
        self, request: Callable[[int, Retries], Response], url: str, descriptor: Descriptor, *, strict: bool
    ) -> None:
        """Ask for nothing yet; `url` is for messages."""
        self._request = request
        self._url = redact_url(url)
        self._descriptor = descriptor
        self._strict = strict

    def chunks(self, offset: int, retries: Retries) -> Iterator[Chunk]:
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
        free = 0 if self._strict else offset
        while True:
            try:
                for chunk in self._read_from(offset, retries, free):
                    offset += len(chunk)
                    yield chunk
                    retries.reset()
                    if offset > size:
                        return
            except (RegistryError, PermanentNetworkError):
                raise
            except NetworkError as error:
                if not retries.wait_for_retry(error):
                    raise
            else:
                if offset >= size:
                    return
                # A body that ended early without an error, as one of a wrong Content-Length does.
                short = NetworkError(f"GET {self._url}: ended after {offset} of {size} bytes")
                if not retries.wait_for_retry(short):
                    raise short

    def _read_from(self, offset: int, retries: Retries, discardable: int) -> Iterator[Chunk]:
        """Read from byte `offset` on; nothing comes where the registry says that there is nothing more.

        Up to the first `free` bytes may be read for nothing, and some more.
        """
        answer = self._request(offset, retries)
        if 0 < offset <= discardable and not _starts_at(answer, offset):
            answer.close()
            answer = self._request(0, retries)
        if answer.status == 416:
            answer.drain()
            return
        self._check_headers(answer, offset)
        skip = _bytes_to_skip(answer, offset, discardable + limits.MAX_DISCARD)
        for chunk in answer.chunks():
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            yield chunk[skip:] if skip else chunk
            skip = 0

    def _check_headers(self, response: Response, offset: int) -> None:
        """Check the headers of an answer that gives the blob, from byte `offset` on.

        A greater length is always refused: the registry may never send what is beyond the blob, and waiting for it
        helps nobody. A smaller length may be continued by another request.

        Raises:
            IntegrityError: the headers announce more bytes than the blob has; or, `strictly`, another size or digest.
        """
        promised = self._descriptor.digest
        stated = response.header("Docker-Content-Digest") or ""
        length = response.header("Content-Length")
        expected = self._descriptor.size - (offset if response.status == 206 else 0)
        # The same bytes may be called by another algorithm.
        same_kind = is_digest(stated) and stated.partition(":")[0] == promised.partition(":")[0]
        if self._strict and same_kind and stated != promised:
            what = f"{stated} is announced"
        elif (self._strict and length is not None and length != str(expected)) or has_excess_length(response, expected):
            what = f"{printable(length or '')} bytes are announced, and not {expected}"
        else:
            return
        response.close()
        msg = f"{promised}: GET {redact_url(response.url)}: {what}"
        raise IntegrityError(msg)


@dataclass(slots=True)
class BlobRedirect:
    """Where a registry has led whoever asked it for a blob, if it has."""

    url: str | None = None


def read_range(response: Response, start: int, view: memoryview, *, is_complete: bool) -> Generator[int, None, None]:
    """Read what an answer has of a blob, from byte `start` on, into `view`; `whole` says that this is all of it.

    Each time that more of it is there, it gives how many bytes it is by then.

    Raises:
        NetworkError: it is another part, or breaks off.
    """
    if not is_complete and (response.status != 206 or not _starts_at(response, start)):
        response.close()
        msg = f"GET {redact_url(response.url)}: asked for bytes from {start} on, and got others"
        raise PermanentNetworkError(msg)
    if has_excess_length(response, len(view)):
        response.close()
        msg = f"GET {redact_url(response.url)}: asked for {len(view)} bytes, and more are announced"
        raise PermanentNetworkError(msg)
    yield from response.read_into(view)


def has_excess_length(response: Response, size: int) -> bool:
    """Return whether the Content-Length of an answer is greater than `size`; one that is no number is ignored."""
    length = response.header("Content-Length") or ""
    return _LENGTH.match(length) is not None and int(length) > size


def _starts_at(response: Response, offset: int) -> bool:
    """Say whether an answer to a Range request can be used: it begins where it was asked to, or at the beginning."""
    match = _CONTENT_RANGE.match(response.header("Content-Range") or "")
    return response.status == 200 or (response.status == 206 and match is not None and int(match[1]) == offset)


def _bytes_to_skip(response: Response, offset: int, most: int) -> int:
    """Look at an answer that is to give a blob from byte `offset` on: how much of it is known (container-libs#1114).

    Raises:
        FinalNetworkError: it is not what was asked for, or more than `most` bytes would have to be read for nothing.
    """
    where = f"GET {redact_url(response.url)}"
    if response.status == 206:
        if _starts_at(response, offset):
            return 0
        response.close()
        msg = (
            f"{where}: asked for bytes from {offset} on, got {printable(response.header('Content-Range') or 'others')}"
        )
        raise PermanentNetworkError(msg)
    if offset > most:
        response.close()
        msg = f"{where}: broke off after {offset} bytes, and this registry cannot go on from there"
        raise PermanentNetworkError(msg)
    return offset
