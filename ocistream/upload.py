"""One blob up into a repository (distribution-spec, "Pushing blobs"): POST, one streamed PATCH, PUT.

It is what docker, skopeo and crane do, and what every registry takes. The session is opened when the first bytes are
there and not before (but for one that a registry opens in place of a mount), and abandoned sessions are deleted.
Chunks come verified: if they raise, the PATCH stays short and the upload is never closed.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

from ocistream.auth import scopes_for
from ocistream.connections import Body, StreamedBody
from ocistream.errors import (
    AuthenticationError,
    FinalNetworkError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    RegistryError,
)
from ocistream.interfaces import Blob
from ocistream.origins import redacted, resolved

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.connections import Answer
    from ocistream.distribution import Repository
    from ocistream.interfaces import Unnamed
    from ocistream.model import Descriptor
    from ocistream.retry import Tries
    from ocistream.stream import Chunk

__all__ = ["Uploader"]

_PATCHED: Final = (200, 201, 202, 204)
_CLOSED: Final = (200, 201, 202, 204)
_OCTETS: Final = {"Content-Type": "application/octet-stream"}


class Uploader:
    """Uploads and mounts into one repository. Safe for several threads, each with blobs of its own."""

    def __init__(self, repository: Repository) -> None:
        """Take the repository to write to."""
        self._repository = repository
        self._transport = repository.transport
        #: Sessions that a registry opened in place of a mount, by digest: a 202 to a mount is an upload.
        self._opened: dict[str, str] = {}

    def mount(self, descriptor: Descriptor, source: str) -> bool:
        """Try to mount a blob from the repository `source` of the same registry.

        Any refusal to do so means a plain upload (ggcr#1404, #1679).

        Raises:
            NetworkError: there was no answer, after all retries.
        """
        query = f"mount={descriptor.digest}&from={quote(source, safe='/')}"
        try:
            answer = self._transport.request(
                self._repository.endpoint,
                "POST",
                self._repository.url(f"blobs/uploads/?{query}"),
                # Push first: some token servers grant what the first scope asks for (ggcr, bearer.go).
                scopes=(*self._repository.scopes, scopes_for(source, "pull")),
                expected=(201, 202),
            )
        except (AuthenticationError, NotFoundError, RegistryError):
            return False
        answer.drain()
        if answer.status == 201:
            return True
        with contextlib.suppress(FinalNetworkError):
            self._opened[descriptor.digest] = _session(answer)
        return False

    def upload(self, blob: Blob | Unnamed) -> None:
        """Send a blob; a failure on the way is tried again from the beginning where the blob can be had again.

        Of a blob that has no name yet, the length is unknown when its PATCH begins, so that goes out in the chunked
        transfer coding, as what Docker's daemon pushes; the digest closes the upload, as ever.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: whatever the blob's own chunks raise, with the session deleted.
        """
        tries = self._transport.tries()
        while (failure := self._attempt(blob, tries)) is not None:
            if not tries.again(failure):
                raise failure

    def close(self) -> None:
        """Delete the sessions that were opened in place of mounts and not used since."""
        # The first that fails ends it: many time-outs are not worth waiting for.
        with contextlib.suppress(OcistreamError):
            while self._opened:
                self._delete(self._opened.popitem()[1])

    def _attempt(self, blob: Blob | Unnamed, tries: Tries) -> NetworkError | None:
        """Send a blob once; None if it is there, else what a new attempt may cure. Other failures are raised."""
        chunks = blob.open()
        try:
            # A slow source must not keep a session waiting until the registry closes it (skopeo#2101).
            first = next(chunks, b"")
            body = _body(blob, itertools.chain([first], chunks)) if first else None
            try:
                self._send_blob(blob, body, tries)
            except NetworkError as error:
                # What the source of the blob could not mend is not tried again here.
                if (body and body.failure) or not _may_pass(error):
                    raise
                if blob.replayable:
                    return error
                if not body or not body.begun:
                    raise
                hint = "what comes from a pipe cannot be sent again: push from a file, or run both sides once more"
                raise NetworkError(error.what, hint=hint) from error
        finally:
            _close(chunks)
        return None

    def _send_blob(self, blob: Blob | Unnamed, body: StreamedBody | None, tries: Tries) -> None:
        location = self._open_session(blob.descriptor if isinstance(blob, Blob) else None, tries)
        try:
            if body is not None:
                answer = self._continue(location, "PATCH", _PATCHED, tries, body)
                location = _next(answer)
            self._finish(blob.descriptor if isinstance(blob, Blob) else blob.descriptor(), location, tries)
        except BaseException:
            self._abandon(location)
            raise

    def _open_session(self, descriptor: Descriptor | None, tries: Tries) -> str:
        """Open a session and give its URL; the token is had here, before any body is sent."""
        if descriptor is not None and (location := self._opened.pop(descriptor.digest, None)) is not None:
            return location
        try:
            answer = self._send("POST", self._repository.url("blobs/uploads/"), (202,), tries)
        except NotFoundError as error:
            hint = "some registries want a repository to be made before the first push to it"
            raise NotFoundError(error.what, hint=hint) from error
        return _session(answer)

    def _finish(self, descriptor: Descriptor, location: str, tries: Tries) -> None:
        try:
            self._continue(_with_query(location, f"digest={descriptor.digest}"), "PUT", _CLOSED, tries)
        except OcistreamError:
            # An answer that was lost: the retry finds no session, since the first try had closed it.
            if not self._is_there(descriptor, tries):
                raise

    def _is_there(self, descriptor: Descriptor, tries: Tries) -> bool:
        try:
            return self._repository.has_blob(descriptor, tries)
        except OcistreamError:
            # What became of the upload is the news, not that asking failed as well.
            return False

    def _continue(
        self, location: str, method: str, expected: tuple[int, ...], tries: Tries, body: StreamedBody | None = None
    ) -> Answer:
        """Send to a session.

        Raises:
            NetworkError: among other reasons, the registry does not know it any more; a new one may be opened.
        """
        try:
            return self._send(method, location, expected, tries, _OCTETS, body)
        except NotFoundError as error:
            if body and body.failure:
                raise
            msg = f"the registry has lost the upload: {error.what}"
            raise NetworkError(msg) from error

    def _send(
        self,
        method: str,
        url: str,
        expected: tuple[int, ...],
        tries: Tries,
        headers: Mapping[str, str] | None = None,
        body: StreamedBody | None = None,
    ) -> Answer:
        answer = self._transport.request(
            self._repository.endpoint,
            method,
            url,
            scopes=self._repository.scopes,
            headers=headers,
            body=body,
            expected=expected,
            tries=tries,
        )
        answer.drain()
        return answer

    def _abandon(self, location: str) -> None:
        """Delete a session that will not be closed; if that fails, the registry's own clean-up has to do."""
        with contextlib.suppress(OcistreamError):
            self._delete(location)

    def _delete(self, location: str) -> None:
        self._transport.request_once(self._repository.endpoint, "DELETE", location, scopes=self._repository.scopes)


def _body(blob: Blob | Unnamed, chunks: Iterator[Chunk]) -> StreamedBody:
    return Body(chunks, blob.descriptor.size) if isinstance(blob, Blob) else StreamedBody(chunks)


def _close(chunks: Iterator[Chunk]) -> None:
    """Let go at once of the connection or file that a generator reads from; an exception would keep it."""
    if (close := getattr(chunks, "close", None)) is not None:
        close()


def _may_pass(error: NetworkError) -> bool:
    """Say whether an upload that failed so is worth another try: a server in trouble, or a connection that broke."""
    if isinstance(error, RegistryError):
        return error.status >= 500 or error.status in {408, 416, 429}
    return not isinstance(error, FinalNetworkError)


def _session(answer: Answer) -> str:
    """Give the URL of the session that an answer opens.

    Raises:
        FinalNetworkError: there is none.
    """
    if not answer.header("Location"):
        msg = f"{answer.method} {redacted(answer.url)}: the answer has no Location"
        raise FinalNetworkError(msg)
    return _next(answer)


def _next(answer: Answer) -> str:
    """Give the URL to go on with: each answer may name another one (oras-py#150), or none where it is the same."""
    return resolved(answer.url, answer.header("Location") or "")


def _with_query(url: str, query: str) -> str:
    """Add to a URL's query and leave what is there byte for byte (as distribution has it with its `_state`)."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=f"{parts.query}&{query}" if parts.query else query))
