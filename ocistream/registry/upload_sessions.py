"""Upload sessions of one repository: one request each, and the state of one upload across requests and runs.

The record of an upload is written before its session is used, so a killed process can be resumed.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit, urlunsplit

from ocistream.auth.tokens import repository_scope
from ocistream.errors import (
    CancelledError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    PermanentNetworkError,
    RegistryError,
)
from ocistream.http.origins import redact_url, resolve_url
from ocistream.registry.upload_records import UploadKey, UploadRecord, can_store_location

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ocistream.http.connections import Response, StreamedBody
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository
    from ocistream.registry.upload_records import LockedRecord, UploadRecords

__all__ = [
    "SessionLostError",
    "UploadSession",
    "UploadSessions",
    "UploadState",
    "delete_abandoned_sessions",
]

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


class UploadState:
    """One upload. `session` is None where none is open; `is_found` says that an earlier run has opened it."""

    def __init__(self, sessions: UploadSessions, records: UploadRecords, descriptor: Descriptor | None) -> None:
        """Look for what an earlier run has left of a blob; one without a name has none, but is noted as well."""
        repository = sessions.repository
        self._sessions = sessions
        self._records = records
        self.session: UploadSession | None = None
        #: Opened to take the place of one that nobody could be asked about, and not needed so far.
        self._spare: UploadSession | None = None
        # A session of which nobody can say how far it is, or that is its own permission, is not worth a file.
        kept = repository.client.upload_strategy.profile(sessions.host).can_resume
        digest, size = (descriptor.digest, descriptor.size) if descriptor is not None else ("", 0)
        key = UploadKey(repository.endpoint.registry, repository.name, digest, size)
        self._locked_record: LockedRecord | None = records.lock(key) if kept else None
        found = self._locked_record.record if self._locked_record is not None else None
        if found is not None and self._can_store(found.location):
            self.session = UploadSession(found.location, found.min_chunk)
        self.is_from_earlier_run = self.session is not None

    @property
    def is_recorded(self) -> bool:
        """Whether a later run will find it."""
        return self.session is not None and self._locked_record is not None and self._locked_record.is_locked

    def query_offset(self, retries: Retries) -> tuple[UploadSession, int] | None:
        """Ask where it goes on and how many bytes the registry has; None where it knows of none, or does not say.

        Where there is no such answer (the line is down, a token has ended, a server is in trouble) the session may live
        all the same. It is given up only if the registry opens another one, and then still does not speak of this one:
        a registry that never does would else fail the same command for ever.

        Raises:
            OcistreamError: nothing is known of it, and no other is to be had; or the transfer is cancelled.
        """
        if self.session is None:
            return None
        try:
            session, offset = self._sessions.query_offset(self.session, retries)
        except CancelledError:
            raise
        except OcistreamError as error:
            self._open_spare(retries, error)
            try:
                session, offset = self._sessions.query_offset(self.session, retries)
            except CancelledError:
                raise
            except OcistreamError:
                return None
            self.delete_spare()
        # Some bytes may be there all the same where it does not say, to which others would be appended.
        return None if offset is None else (session, offset)

    def _open_spare(self, retries: Retries, silence: OcistreamError) -> None:
        """Open a session for the case that this one is given up.

        Raises:
            OcistreamError: there is none. It is the `silence` that is raised, which says nothing against this one.
        """
        # One that is there already says nothing of how the registry is now.
        self.delete_spare()
        try:
            self._spare = self._sessions.open(retries)
        except CancelledError:
            raise
        except OcistreamError as error:
            raise silence from error

    def move_to(self, session: UploadSession) -> None:
        """Go on at `session`, which was opened just now or is where an answer led."""
        changed = session != self.session
        self.session = session
        if not changed or self._locked_record is None or not self._locked_record.is_locked:
            return
        if not self._can_store(session.location):
            self._locked_record.remove()
            return
        try:
            self._locked_record.write(UploadRecord(session.location, session.min_chunk))
        except OSError as error:
            self._records.discard_unwritable(self._locked_record, error)

    def replace(self, session: UploadSession | None) -> None:
        """Delete the session, and go on with another one, or with none so far."""
        session, self._spare = session or self._spare, None
        before, self.session, self.is_from_earlier_run = self.session, None, False
        if session is not None:
            self.move_to(session)
        if before is not None:
            self._sessions.try_delete(before)

    def reopen(self, retries: Retries) -> None:
        """Open another session, and delete this one once that is there: a registry that is down may have it still.

        Raises:
            OcistreamError: there is no other.
        """
        if self._spare is None:
            self._spare = self._sessions.open(retries)
        self.replace(None)

    def _can_store(self, location: str) -> bool:
        repository = self._sessions.repository
        return can_store_location(location, repository.endpoint.url, repository.name)

    def delete_spare(self) -> None:
        """Delete what was opened to take its place."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._sessions.try_delete(spare)

    def finish(self) -> None:
        """Forget it: the blob is there."""
        self.session = None
        if self._locked_record is not None:
            self._locked_record.remove()

    def delete(self) -> None:
        """Delete the session, if there is one, and forget it.

        Raises:
            OcistreamError: the registry does not answer, or not to this; it is remembered still.
        """
        if self.session is not None:
            self._sessions.delete(self.session)
        self.finish()

    def try_delete(self) -> None:
        """Delete the session; where it may live all the same, the next run for the blob will see to it."""
        try:
            self.delete()
        except OcistreamError:
            self.release()

    def release(self) -> None:
        """Leave the session to a later run."""
        if self._locked_record is not None:
            self._locked_record.release()


def delete_abandoned_sessions(sessions: UploadSessions, records: UploadRecords, digests: Collection[str]) -> None:
    """Delete the sessions that killed runs have left of these blobs, which are there by now, and what is too old.

    One with which the server is in trouble is no reason to leave the others.

    Raises:
        OcistreamError: the registry does not answer, or does not let us. What is left then is found the next time.
    """
    endpoint = sessions.repository.endpoint
    for claim in records.lock_abandoned(endpoint.registry, sessions.repository.name, digests):
        try:
            if claim.record is not None and can_store_location(
                claim.record.location, endpoint.url, sessions.repository.name
            ):
                sessions.delete(UploadSession(claim.record.location))
            claim.remove()
        except RegistryError as error:
            if error.status < 500:
                raise
        finally:
            claim.release()
