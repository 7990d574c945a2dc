"""Download one blob: resume with Range after a broken connection, and check the headers of every answer.

The bytes are not verified here; the caller verifies them.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from ocistream import limits
from ocistream.errors import (
    AuthenticationError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    PermanentNetworkError,
    RegistryError,
)
from ocistream.http.origins import redact_url
from ocistream.oci.reference import is_digest, printable
from ocistream.streams.chunks import chunks_from

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ocistream.http.response import Response
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository
    from ocistream.streams.chunks import Chunk

#: For a body that every attempt cut at the same byte.
_DAMAGE_HINT: Final = "every try ended at this byte: the blob is probably damaged, ask the registry's operator"
_LENGTH = re.compile(r"[0-9]{1,19}\Z")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)\Z")


class BlobDownload:
    """The download of one blob.

    `strict` refuses a response whose headers promise another size or digest, before its body is read. Use it for
    mirrors, where another location can be asked; the headers of the registry itself are not trusted. Retries stay below
    the verification: its hash covers the joined stream of all responses.
    """

    def __init__(self, repository: Repository, descriptor: Descriptor, *, strict: bool) -> None:
        """Send no request yet."""
        self._repository = repository
        self._url = repository.url(f"blobs/{descriptor.digest}")
        self._descriptor = descriptor
        self._strict = strict
        #: The URL to which the registry redirected the last request for a range, or None.
        self._range_url: str | None = None

    def chunks(self, offset: int = 0) -> Iterator[Chunk]:
        """Yield the blob's bytes from byte `offset` on; replace a broken connection by a Range request.

        The iterator ends after the first chunk beyond the blob's size, so that the caller sees an excess.

        If the registry cannot start at `offset`, the blob is read from byte 0, and its first `offset` bytes are
        dropped, however many they are: to run the command again would not help. After a failure inside this run, and
        with `strict`, at most `MAX_DISCARD` more bytes are dropped, because a retry or another mirror may help.

        Raises:
            NotFoundError: the registry does not have the blob.
            NetworkError: the download failed, and retries did not help.
            IntegrityError: the headers announce more bytes than the blob has; or, with `strict`, another size or
                digest.
        """
        repository = self._repository
        size, retries = self._descriptor.size, repository.client.start_retries(repository.endpoint)
        resumed_size = 0 if self._strict else offset
        #: Where the body ended at the previous attempt.
        failed_at = -1
        while True:
            has_answered = False
            try:
                chunks = self._request_chunks(offset, retries, resumed_size)
                has_answered = True
                for chunk in chunks:
                    offset += len(chunk)
                    yield chunk
                    retries.reset()
                    if offset > size:
                        return
            except (RegistryError, PermanentNetworkError):
                raise
            except NetworkError as error:
                failure = error
            else:
                if offset >= size:
                    return
                # The body ended early without an error, as it does with a wrong Content-Length.
                failure = NetworkError(f"GET {redact_url(self._url)}: ended after {offset} of {size} bytes")
            if not retries.wait_for_retry(failure):
                if has_answered and failed_at == offset:
                    failure.hint = failure.hint or _DAMAGE_HINT
                raise failure
            failed_at = offset

    def fetch_range(self, start: int, end: int, buffers: Iterator[memoryview]) -> Generator[int, None, None]:
        """Read the bytes `start` to `end` (excluded) into `buffers`, as `Response.read_into` does; do not retry.

        All ranges of a blob go directly to the URL to which the registry redirected the first one: a redirect would
        cost a request for each. After a failure the registry is asked again. `chunks` always asks the registry, because
        a signed URL may have expired since.

        Raises:
            NotFoundError: the registry does not have the blob.
            NetworkError: the request failed, the registry does not support Range, or the body breaks off.
        """
        is_complete = start == 0 and end == self._descriptor.size
        response = self._request_range(start, end, is_complete=is_complete)
        if not is_complete and (response.status != 206 or not _starts_at(response, start)):
            raise _refuse(response, f"the server returned a wrong byte range instead of bytes from {start} on")
        if has_excess_length(response, end - start):
            raise _refuse(response, f"the server announced more than the requested {end - start} bytes")
        yield from response.read_into(end - start, buffers)

    def _request_range(self, start: int, end: int, *, is_complete: bool) -> Response:
        ask = partial(
            self._repository.request,
            "GET",
            headers={} if is_complete else {"Range": f"bytes={start}-{end - 1}"},
            expected=(200,) if is_complete else (200, 206),
            read=None,
        )
        endpoint, client = self._repository.endpoint, self._repository.client
        if (url := self._range_url) is not None:
            try:
                return ask(url, retries=client.start_retries(endpoint, attempts=1))
            except OcistreamError as error:
                self._range_url = None
                if not _is_expired_redirect(error):
                    # The registry would redirect to the same URL again.
                    raise
        response = ask(self._url, retries=client.start_retries(endpoint, attempts=1))
        # Do not keep the end of a chain: each redirect must be checked against the one before it.
        self._range_url = response.url if response.hops == 1 else None
        return response

    def _request(self, offset: int, retries: Retries) -> Response:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        expected = (200, 206, 416) if offset else (200,)
        return self._repository.request(
            "GET", self._url, headers=headers, expected=expected, retries=retries, read=None
        )

    def _request_chunks(self, offset: int, retries: Retries, resumed_size: int) -> Iterator[Chunk]:
        """Request the bytes from `offset` on, and return them; none after status 416.

        At most the `resumed_size` bytes of an earlier run, and `MAX_DISCARD` more, may be read again and dropped.
        """
        response = self._request(offset, retries)
        # A server without ranges should ignore Range; some answer 416 instead.
        max_offset = resumed_size + (limits.MAX_DISCARD if response.status == 416 else 0)
        if 0 < offset <= max_offset and not _starts_at(response, offset):
            response.close()
            response = self._request(0, retries)
        if response.status == 416:
            response.drain()
            return iter(())
        self._check_headers(response, offset)
        if response.status == 206:
            if not _starts_at(response, offset):
                found = printable(response.header("Content-Range") or "no Content-Range")
                problem = f"the server returned a wrong byte range instead of bytes from {offset} on: {found}"
                raise _refuse(response, problem)
            return response.chunks()
        if offset > resumed_size + limits.MAX_DISCARD:
            raise _refuse(response, f"cut after {offset} bytes, and this registry cannot resume")
        # Skip the bytes that are already known (container-libs#1114).
        return chunks_from(response.chunks(), offset) if offset else response.chunks()

    def _check_headers(self, response: Response, offset: int) -> None:
        """Check the headers of a response with the blob's bytes from `offset` on.

        A greater length is always refused: the registry may never send the excess, and the client would wait for it. A
        smaller length is accepted; another request reads the rest.

        Raises:
            IntegrityError: the headers announce more bytes than the blob has; or, with `strict`, another size or
                digest.
        """
        expected_digest = self._descriptor.digest
        stated_digest = response.header("Docker-Content-Digest") or ""
        length = response.header("Content-Length")
        expected = self._descriptor.size - (offset if response.status == 206 else 0)
        # A registry may report the digest by another algorithm for the same bytes.
        is_same_algorithm = (
            is_digest(stated_digest) and stated_digest.partition(":")[0] == expected_digest.partition(":")[0]
        )
        if self._strict and is_same_algorithm and stated_digest != expected_digest:
            problem = f"{stated_digest} is announced"
        elif (self._strict and length is not None and length != str(expected)) or has_excess_length(response, expected):
            problem = f"{printable(length or '')} bytes are announced instead of {expected}"
        else:
            return
        response.close()
        msg = f"{expected_digest}: GET {redact_url(response.url)}: {problem}"
        raise IntegrityError(msg)


def raise_corrupt_blob(repository: str, error: IntegrityError, can_retry: bool = False) -> NoReturn:  # noqa: ARG001 - there is no second copy
    """Name the repository in the error of a corrupt blob or manifest, and say what to do.

    Raises:
        IntegrityError: always.
    """
    if not error.digest or error.hint:
        raise error
    message = f"{repository}: the registry sent wrong bytes: {error.message}"
    hint = (
        "re-run the command; if the error repeats, ask the registry's operator to delete the damaged blob, then push "
        "the image again"
    )
    raise IntegrityError(message, digest=error.digest, hint=hint) from error


def _is_expired_redirect(error: OcistreamError) -> bool:
    """Return whether the error is the answer of an expired signed URL."""
    if isinstance(error, RegistryError):
        return error.status in {401, 403, 410}
    return isinstance(error, AuthenticationError | NotFoundError)


def has_excess_length(response: Response, size: int) -> bool:
    """Return whether a response's Content-Length is greater than `size`; a value that is not a number is ignored."""
    length = response.header("Content-Length") or ""
    return _LENGTH.match(length) is not None and int(length) > size


def _starts_at(response: Response, offset: int) -> bool:
    """Return whether a response to a Range request begins at `offset`, or has the complete blob."""
    match = _CONTENT_RANGE.match(response.header("Content-Range") or "")
    return response.status == 200 or (response.status == 206 and match is not None and int(match[1]) == offset)


def _refuse(response: Response, problem: str) -> PermanentNetworkError:
    """Close a response, and return an error that a retry does not cure."""
    response.close()
    return PermanentNetworkError(f"GET {redact_url(response.url)}: {problem}")
