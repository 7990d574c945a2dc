"""One blob up into a repository (distribution-spec, "Pushing blobs"): POST, one streamed PATCH, PUT.

It is what docker, skopeo and crane do, and what every registry takes. The session is opened when the first bytes are
there and not before, and abandoned sessions are deleted. Chunks come verified: if they raise, the PATCH stays short
and the upload is never closed.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from ocistream.errors import FinalNetworkError, NetworkError, OcistreamError, RegistryError
from ocistream.origins import redacted
from ocistream.transport import Body, SizedBody

if TYPE_CHECKING:
    from ocistream.distribution import Repository
    from ocistream.interfaces import Blob
    from ocistream.model import Descriptor
    from ocistream.transport import Answer

__all__ = ["Uploader"]

_PATCHED: Final = (200, 201, 202, 204)
_CLOSED: Final = (200, 201, 202, 204)


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

        Any failure to do so means a plain upload (ggcr#1404, #1679).
        """
        query = f"mount={descriptor.digest}&from={quote(source, safe='/')}"
        try:
            answer = self._repository.transport.request(
                self._repository.endpoint,
                "POST",
                self._repository.url(f"blobs/uploads/?{query}"),
                # Push first: some token servers grant what the first scope asks for (REGISTRIES 18).
                scopes=(*self._repository.scopes, f"repository:{source}:pull"),
                expected=(201, 202),
            )
        except (RegistryError, OcistreamError) as error:
            if isinstance(error, NetworkError) and not isinstance(error, RegistryError):
                raise
            return False
        answer.drain()
        if answer.status == 201:
            return True
        with contextlib.suppress(NetworkError):
            self._opened[descriptor.digest] = _location(answer)
        return False

    def upload(self, blob: Blob) -> None:
        """Send a blob; a failure on the way is tried again from the beginning where the blob can be had again.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            OcistreamError: whatever the blob's own chunks raise, with the session deleted.
        """
        tries = self._transport.tries()
        while True:
            try:
                self._upload_once(blob)
            except FinalNetworkError:
                raise
            except NetworkError as error:
                if isinstance(error, RegistryError) and not _may_pass(error):
                    raise
                if not blob.replayable or not tries.again(error):
                    raise
            else:
                return

    def _upload_once(self, blob: Blob) -> None:
        chunks = iter(blob.open())
        # A slow source must not keep a session waiting until the registry closes it (skopeo#2101).
        first = next(chunks, b"")
        location = self._begin(blob.descriptor)
        try:
            if first:
                rest = itertools.chain([first], chunks)
                body = SizedBody(lambda: rest, blob.descriptor.size)
                answer = self._send(location, "PATCH", body, {"Content-Type": "application/octet-stream"}, _PATCHED)
                location = _location(answer)
            self._finish(blob.descriptor, location)
        except BaseException:
            self._abandon(location)
            raise

    def _begin(self, descriptor: Descriptor) -> str:
        """Open a session and give its URL; the token is had here, before any body is sent."""
        if (location := self._opened.pop(descriptor.digest, None)) is not None:
            return location
        answer = self._send(self._repository.url("blobs/uploads/"), "POST", None, {}, (202,))
        return _location(answer)

    def _finish(self, descriptor: Descriptor, location: str) -> None:
        url = _with_query(location, f"digest={descriptor.digest}")
        try:
            self._send(url, "PUT", None, {"Content-Type": "application/octet-stream"}, _CLOSED)
        except OcistreamError:
            # An answer that was lost: the retry finds no session, since the first try had closed it.
            if not self._repository.has_blob(descriptor):
                raise

    def _send(
        self, url: str, method: str, body: Body | None, headers: dict[str, str], expected: tuple[int, ...]
    ) -> Answer:
        answer = self._transport.request(
            self._repository.endpoint,
            method,
            url,
            scopes=self._repository.scopes,
            headers=headers,
            body=body,
            expected=expected,
        )
        answer.drain()
        return answer

    def _abandon(self, location: str) -> None:
        """Delete a session that will not be closed; if that fails, the registry's own clean-up has to do."""
        with contextlib.suppress(OcistreamError):
            self._transport.request_once(self._repository.endpoint, "DELETE", location, scopes=self._repository.scopes)


def _may_pass(error: RegistryError) -> bool:
    """Say whether an upload that got this answer is worth another try: a lost session, or a server in trouble."""
    return error.status >= 500 or error.status in {408, 416, 429}


def _location(answer: Answer) -> str:
    """Give the URL that an answer says to go on with, resolved against the request's own (REGISTRIES 1).

    Raises:
        NetworkError: there is none.
    """
    location = answer.header("Location")
    if not location:
        msg = f"{answer.method} {redacted(answer.url)}: the answer has no Location"
        raise FinalNetworkError(msg)
    return urljoin(answer.url, location)


def _with_query(url: str, query: str) -> str:
    """Add to a URL's query and leave what is there byte for byte (REGISTRIES 2)."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=f"{parts.query}&{query}" if parts.query else query))
