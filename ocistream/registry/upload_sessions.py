"""Upload sessions of one repository, in the distribution-spec's verbs: opened, sent to, asked, closed, deleted.

One request each. `ocistream.registry.upload` decides about blobs that take several requests, and about refusals.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

from ocistream.auth.scopes import repository_scope
from ocistream.errors import NetworkError, NotFoundError, OcistreamError, PermanentNetworkError, RegistryError
from ocistream.http.origins import redact_url, resolve_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.http.bodies import StreamedBody
    from ocistream.http.connections import Response
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository

__all__ = ["SessionLostError", "UploadSession", "UploadSessions"]

_PATCHED_STATUSES: Final = (200, 201, 202, 204)
_CLOSED_STATUSES: Final = (200, 201, 202, 204)
#: The spec's answer to asking is 204; docker's older description of the API has 202.
_OFFSET_STATUSES: Final = (200, 202, 204)
#: Answers that are about us, or about the server, and say nothing of the session: it may live all the same.
_UNRELATED_STATUSES: Final = frozenset({401, 403, 407, 408, 429, *range(500, 600)} - {501})
#: Where more has come than a Location speaks of, distribution 3 does not take it any more (416). Who asks is told the
#: new one.
_LOCATION_CHANGED: Final = frozenset({400, 409, 416})
_OCTET_STREAM: Final = {"Content-Type": "application/octet-stream"}
#: `0-99`, and what RFC 9110 would make of it.
_RANGE: Final = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})\Z")
#: Codes by which a registry says that a session is no more. distribution 2.8 says INVALID where an upload that broke
#: has moved on from what its Location says.
_LOST_CODES: Final = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"})


class SessionLostError(NetworkError):
    """404 in answer to something that was sent to a session. `is_sure` says that it is the session which is not known.

    Otherwise it may be the method: some registries answer 404 to what they do not take.
    """

    def __init__(self, what: str, *, is_sure: bool) -> None:
        """Keep whether it is sure."""
        super().__init__(f"the registry has lost the upload: {what}")
        self.is_sure = is_sure


@dataclass(frozen=True, slots=True)
class UploadSession:
    """Where to go on with an upload, and the least that a chunk must have, in bytes, but for the last one."""

    location: str
    min_chunk: int = 0


class UploadSessions:
    """The sessions of one repository. Safe for several threads."""

    def __init__(self, repository: Repository) -> None:
        """Take the repository to write to."""
        self.repository = repository
        self._client = repository.client

    @property
    def host(self) -> str:
        """The registry, as `HOST[:PORT]`."""
        return self.repository.endpoint.registry

    def open(self, retries: Retries) -> UploadSession:
        """Open a session; the token is had here, before any body is sent.

        Raises:
            NotFoundError: there is no such repository, where it has to be made first.
        """
        try:
            answer = self._request("POST", self.repository.url("blobs/uploads/"), (202,), retries)
        except NotFoundError as error:
            hint = "some registries want a repository to be made before the first push to it"
            raise NotFoundError(error.message, codes=error.codes, hint=hint) from error
        return _parse_session(answer)

    def mount(self, digest: str, source: str) -> tuple[bool, UploadSession | None]:
        """Ask for a blob out of another repository; say whether it is there now, and what was opened in its place.

        Raises:
            AuthenticationError, NotFoundError, RegistryError: it was refused.
        """
        answer = self._client.request(
            self.repository.endpoint,
            "POST",
            self.repository.url(f"blobs/uploads/?mount={digest}&from={quote(source, safe='/')}"),
            scopes=self._scopes_for_mount(source),
            expected=(201, 202),
        )
        answer.drain()
        if answer.status == 201:
            return True, None
        return False, _parse_session(answer) if answer.header("Location") else None

    def has_blob_in(self, descriptor: Descriptor, source: str) -> bool:
        """Ask whether another repository of the registry has a blob, with the token that mounting it would take.

        Raises:
            AuthenticationError, RegistryError: it was refused.
        """
        answer = self._client.request(
            self.repository.endpoint,
            "HEAD",
            f"{self.repository.endpoint.url}/v2/{source}/blobs/{descriptor.digest}",
            scopes=self._scopes_for_mount(source),
            expected=(200, 404),
        )
        answer.drain()
        return answer.status == 200

    def patch(
        self,
        session: UploadSession,
        body: StreamedBody,
        retries: Retries,
        span: tuple[int, int] | None = None,
        *,
        stored_size: float,
    ) -> tuple[UploadSession, int | None]:
        """Send a part of a blob, or all of it; give where to go on, and how many bytes the registry says it has.

        A body that `ends_early` may have failed for all that. `span` is the first byte of the part and the one behind
        its last, where that is to be stated. `stored` is its size in bytes, infinite where that is not known.

        Raises:
            LostError: the session is not known.
            NetworkError: the answer came before all was sent, among other reasons.
        """
        # As `0-99`: ACR takes no other form, and a stream has none (dist-spec#506).
        ranged = {"Content-Range": f"{span[0]}-{span[1] - 1}"} if span else {}
        headers = {**_OCTET_STREAM, **ranged}
        answer = self._send_to_session(
            session, "PATCH", session.location, _PATCHED_STATUSES, retries, headers, body, stored_size
        )
        return _next_session(session, answer), _parse_stored_size(answer)

    def close(
        self,
        session: UploadSession,
        digest: str,
        retries: Retries,
        body: StreamedBody | None = None,
        *,
        stored_size: float,
    ) -> None:
        """Close a session with the blob's digest, and all of its bytes where there is a body; `stored` is its size.

        Raises:
            LostError, NetworkError: as `patch`.
        """
        location = _add_query(session.location, f"digest={digest}")
        self._send_to_session(session, "PUT", location, _CLOSED_STATUSES, retries, _OCTET_STREAM, body, stored_size)

    def query_offset(self, session: UploadSession, retries: Retries) -> tuple[UploadSession, int | None]:
        """Ask how many bytes of an upload the registry has, and where to go on.

        None where it answers and does not say: that it knows no such session (any more), say, or no such question.

        Raises:
            OcistreamError: it does not answer, or something that is not about the session.
        """
        try:
            answer = self._request("GET", session.location, _OFFSET_STATUSES, retries)
        except NotFoundError:
            return session, None
        except RegistryError as error:
            if error.status in _UNRELATED_STATUSES:
                raise
            return session, None
        return _next_session(session, answer), _parse_stored_size(answer)

    def try_delete(self, session: UploadSession) -> None:
        """Delete a session that will not be closed; if that fails, the registry's own clean-up has to do."""
        with contextlib.suppress(OcistreamError):
            self.delete(session)

    def delete(self, session: UploadSession) -> None:
        """Delete a session. Where the registry knows of no such thing, its own clean-up has to do.

        Raises:
            OcistreamError: it does not answer, or something that is not about the session.
        """
        if self._request_once("DELETE", session.location).status in _LOCATION_CHANGED:
            now = _next_session(session, self._request_once("GET", session.location))
            if now != session:
                self._request_once("DELETE", now.location)

    def _request_once(self, method: str, url: str) -> Response:
        answer = self._client.request_once(self.repository.endpoint, method, url, scopes=self.repository.scopes)
        if answer.status in _UNRELATED_STATUSES:
            msg = f"{method} {redact_url(url)}: answered {answer.status}"
            raise RegistryError(msg, status=answer.status)
        return answer

    def _scopes_for_mount(self, source: str) -> tuple[str, ...]:
        # Push first: some token servers grant what the first scope asks for (ggcr, bearer.go).
        return (*self.repository.scopes, repository_scope(source, "pull"))

    def _send_to_session(
        self,
        session: UploadSession,
        method: str,
        url: str,
        expected: tuple[int, ...],
        retries: Retries,
        headers: Mapping[str, str],
        body: StreamedBody | None,
        stored: float,
    ) -> Response:
        try:
            answer = self._request(method, url, expected, retries, headers, body, stored)
        except OcistreamError as error:
            if body is not None and body.failure is not None:
                # Whatever became of the request: it is its source that failed.
                raise body.failure from None
            if not isinstance(error, NotFoundError):
                raise
            raise SessionLostError(error.message, is_sure=not _LOST_CODES.isdisjoint(error.codes)) from error
        if body is not None and not body.is_finished and body.failure is None:
            msg = f"{method} {redact_url(session.location)}: answered {answer.status} before all of it was sent"
            raise NetworkError(msg)
        return answer

    def _request(
        self,
        method: str,
        url: str,
        expected: tuple[int, ...],
        retries: Retries,
        headers: Mapping[str, str] | None = None,
        body: StreamedBody | None = None,
        stored: float = 0,
    ) -> Response:
        answer = self._client.request(
            self.repository.endpoint,
            method,
            url,
            scopes=self.repository.scopes,
            headers=headers,
            body=body,
            expected=expected,
            tries=retries,
            stored=stored,
        )
        answer.drain()
        return answer


def _parse_session(response: Response) -> UploadSession:
    """Give the session that an answer opens.

    Raises:
        FinalNetworkError: there is none.
    """
    location = response.header("Location")
    if not location:
        msg = f"{response.method} {redact_url(response.url)}: the answer has no Location"
        raise PermanentNetworkError(msg)
    least = response.header("OCI-Chunk-Min-Length") or ""
    return UploadSession(resolve_url(response.url, location), int(least) if re.fullmatch("[0-9]{1,18}", least) else 0)


def _next_session(session: UploadSession, response: Response) -> UploadSession:
    """Give where to go on: each answer may name another URL (oras-py#150), or none where it is the same."""
    return UploadSession(resolve_url(response.url, response.header("Location") or ""), session.min_chunk)


def _parse_stored_size(response: Response) -> int | None:
    """Read how many bytes a registry says it has; None where it says nothing. `0-0` is how distribution says none."""
    match = _RANGE.match((response.header("Range") or "").strip())
    if match is None:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0


def _add_query(url: str, query: str) -> str:
    """Add to a URL's query and leave what is there byte for byte (as distribution has it with its `_state`)."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=f"{parts.query}&{query}" if parts.query else query))
