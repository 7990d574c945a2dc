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
    from ocistream.registry.upload_strategy import UploadStrategy

__all__ = [
    "SessionLostError",
    "UploadSession",
    "UploadSessions",
    "UploadState",
    "delete_abandoned_sessions",
]

_PATCHED_STATUSES: Final = (200, 201, 202, 204)
_CLOSED_STATUSES: Final = (200, 201, 202, 204)
#: The spec's status is 204; docker's older API description has 202.
_OFFSET_STATUSES: Final = (200, 202, 204)
#: Statuses that concern the client's rights or the server's health; the session may still exist.
_UNRELATED_STATUSES: Final = frozenset({401, 403, 407, 408, 429, *range(500, 600)} - {501})
#: Statuses after which GET returns a new Location. distribution 3 answers 416 to a Location whose offset is too small.
_LOCATION_CHANGED: Final = frozenset({400, 409, 416})
_OCTET_STREAM: Final = {"Content-Type": "application/octet-stream"}
#: `0-99`, or the form of RFC 9110: `bytes=0-99`.
_RANGE: Final = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})\Z")
#: Error codes for a session that no longer exists. distribution 2.8 answers INVALID if a broken upload has more bytes
#: than its Location says.
_LOST_CODES: Final = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"})


class SessionLostError(NetworkError):
    """The registry answered 404 to a request of a session. `is_sure` says that the session itself is unknown.

    Otherwise the method may be refused: some registries answer 404 to methods that they do not support.
    """

    def __init__(self, reason: str, *, is_sure: bool) -> None:
        """Take the failed request, and whether the session is certainly unknown."""
        super().__init__(f"the registry has lost the upload: {reason}")
        self.is_sure = is_sure


@dataclass(frozen=True, slots=True)
class UploadSession:
    """The URL of the next request of an upload, and the minimum size in bytes of each chunk but the last."""

    location: str
    min_chunk: int = 0


class UploadSessions:
    """The upload sessions of one repository. Safe for several threads."""

    def __init__(self, repository: Repository, strategy: UploadStrategy) -> None:
        """Take the repository to write to, and what is known of its registry's uploads."""
        self.repository = repository
        self.strategy = strategy
        self._client = repository.client

    @property
    def host(self) -> str:
        """The registry, as `HOST[:PORT]`."""
        return self.repository.endpoint.registry

    def open(self, retries: Retries) -> UploadSession:
        """Open a session. This also fetches the token, before any body is sent.

        Raises:
            NotFoundError: the repository does not exist, and the registry does not create it.
        """
        try:
            response = self._request("POST", self.repository.url("blobs/uploads/"), (202,), retries)
        except NotFoundError as error:
            hint = "some registries want a repository to be made before the first push to it"
            raise NotFoundError(error.message, codes=error.codes, hint=hint) from error
        return _parse_session(response)

    def mount(self, digest: str, source: str) -> tuple[bool, UploadSession | None]:
        """Mount a blob from another repository; return whether it exists now, and the session opened instead.

        Raises:
            AuthenticationError, NotFoundError, RegistryError: the registry refused.
        """
        response = self._client.request(
            self.repository.endpoint,
            "POST",
            self.repository.url(f"blobs/uploads/?mount={digest}&from={quote(source, safe='/')}"),
            scopes=self._scopes_for_mount(source),
            expected=(201, 202),
        )
        response.drain()
        if response.status == 201:
            return True, None
        return False, _parse_session(response) if response.header("Location") else None

    def has_blob_in(self, descriptor: Descriptor, source: str) -> bool:
        """Return whether another repository has a blob; use the same token as a mount.

        Raises:
            AuthenticationError, RegistryError: the registry refused.
        """
        response = self._client.request(
            self.repository.endpoint,
            "HEAD",
            f"{self.repository.endpoint.url}/v2/{source}/blobs/{descriptor.digest}",
            scopes=self._scopes_for_mount(source),
            expected=(200, 404),
        )
        response.drain()
        return response.status == 200

    def patch(
        self,
        session: UploadSession,
        body: StreamedBody,
        retries: Retries,
        span: tuple[int, int] | None = None,
        *,
        stored_size: float,
    ) -> tuple[UploadSession, int | None]:
        """Send a part of a blob, or all of it; return the next session and how many bytes the registry says it has.

        `span` is the offset of the first byte and of the byte after the last, if the range must be stated.
        `stored_size` is the size in bytes, infinite if unknown. If a body that may end early failed, `body.failure` has
        the error.

        Raises:
            SessionLostError: the registry does not know the session.
            NetworkError: the request failed, or the registry answered before it had the complete body.
        """
        # The form is `0-99`: ACR accepts no other. A stream has no Content-Range (dist-spec#506).
        range_header = {"Content-Range": f"{span[0]}-{span[1] - 1}"} if span else {}
        headers = {**_OCTET_STREAM, **range_header}
        response = self._send_to_session(
            session, "PATCH", session.location, _PATCHED_STATUSES, retries, headers, body, stored_size
        )
        return _next_session(session, response), _parse_stored_size(response)

    def close(
        self,
        session: UploadSession,
        digest: str,
        retries: Retries,
        body: StreamedBody | None = None,
        *,
        stored_size: float,
    ) -> None:
        """Close a session with the blob's digest, and with all of its bytes if there is a body of `stored_size` bytes.

        Raises:
            SessionLostError, NetworkError: as for `patch`.
        """
        location = _add_query(session.location, f"digest={digest}")
        self._send_to_session(session, "PUT", location, _CLOSED_STATUSES, retries, _OCTET_STREAM, body, stored_size)

    def query_offset(self, session: UploadSession, retries: Retries) -> tuple[UploadSession, int | None]:
        """Return where an upload continues, and how many bytes the registry has.

        The number is None if the registry answers without an offset: it does not know the session, or not the request.

        Raises:
            OcistreamError: there was no answer, or one that does not concern the session.
        """
        try:
            response = self._request("GET", session.location, _OFFSET_STATUSES, retries)
        except NotFoundError:
            return session, None
        except RegistryError as error:
            if error.status in _UNRELATED_STATUSES:
                raise
            return session, None
        return _next_session(session, response), _parse_stored_size(response)

    def try_delete(self, session: UploadSession) -> None:
        """Delete a session; if that fails, leave it to the registry's own clean-up."""
        with contextlib.suppress(OcistreamError):
            self.delete(session)

    def delete(self, session: UploadSession) -> None:
        """Delete a session; if the registry does not support that, leave it to its own clean-up.

        Raises:
            OcistreamError: there was no answer, or one that does not concern the session.
        """
        if self._request_once("DELETE", session.location).status in _LOCATION_CHANGED:
            current = _next_session(session, self._request_once("GET", session.location))
            if current != session:
                self._request_once("DELETE", current.location)

    def _request_once(self, method: str, url: str) -> Response:
        response = self._client.request_once(self.repository.endpoint, method, url, scopes=self.repository.scopes)
        if response.status in _UNRELATED_STATUSES:
            msg = f"{method} {redact_url(url)}: answered {response.status}"
            raise RegistryError(msg, status=response.status)
        return response

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
        stored_size: float,
    ) -> Response:
        try:
            response = self._request(method, url, expected, retries, headers, body, stored_size)
        except OcistreamError as error:
            if body is not None and body.failure is not None:
                # The source of the body failed; the error of the request is a consequence.
                raise body.failure from None
            if not isinstance(error, NotFoundError):
                raise
            raise SessionLostError(error.message, is_sure=not _LOST_CODES.isdisjoint(error.codes)) from error
        if body is not None and not body.is_finished and body.failure is None:
            msg = f"{method} {redact_url(session.location)}: answered {response.status} before all of it was sent"
            raise NetworkError(msg)
        return response

    def _request(
        self,
        method: str,
        url: str,
        expected: tuple[int, ...],
        retries: Retries,
        headers: Mapping[str, str] | None = None,
        body: StreamedBody | None = None,
        stored_size: float = 0,
    ) -> Response:
        response = self._client.request(
            self.repository.endpoint,
            method,
            url,
            scopes=self.repository.scopes,
            headers=headers,
            body=body,
            expected=expected,
            retries=retries,
            stored=stored_size,
        )
        response.drain()
        return response


def _parse_session(response: Response) -> UploadSession:
    """Return the session that a response opens.

    Raises:
        PermanentNetworkError: the response has no Location.
    """
    location = response.header("Location")
    if not location:
        msg = f"{response.method} {redact_url(response.url)}: the answer has no Location"
        raise PermanentNetworkError(msg)
    min_chunk = response.header("OCI-Chunk-Min-Length") or ""
    return UploadSession(
        resolve_url(response.url, location), int(min_chunk) if re.fullmatch("[0-9]{1,18}", min_chunk) else 0
    )


def _next_session(session: UploadSession, response: Response) -> UploadSession:
    """Return the session for the next request: a response may have a new URL (oras-py#150) or none."""
    return UploadSession(resolve_url(response.url, response.header("Location") or ""), session.min_chunk)


def _parse_stored_size(response: Response) -> int | None:
    """Return how many bytes the registry reports, or None. distribution reports no bytes as `0-0`."""
    match = _RANGE.match((response.header("Range") or "").strip())
    if match is None:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0


def _add_query(url: str, query: str) -> str:
    """Add to a URL's query and keep the existing query byte for byte (distribution's `_state`)."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=f"{parts.query}&{query}" if parts.query else query))


class UploadState:
    """One upload across requests and runs. `session` is None if no session is open.

    `is_from_earlier_run` says that an earlier run opened the session. A new blob, whose digest is not known yet, cannot
    be resumed, but is recorded so that a later run can delete its session.
    """

    def __init__(self, sessions: UploadSessions, records: UploadRecords, descriptor: Descriptor | None) -> None:
        """Load the session that an earlier run left of a blob, if there is one."""
        repository = sessions.repository
        self._sessions = sessions
        self._records = records
        self.session: UploadSession | None = None
        #: A session opened as a replacement while the registry did not answer about `session`; not used so far.
        self._spare: UploadSession | None = None
        # Do not record sessions of registries that cannot report an offset (GAR, ECR).
        can_resume = sessions.strategy.profile(sessions.host).can_resume
        digest, size = (descriptor.digest, descriptor.size) if descriptor is not None else ("", 0)
        key = UploadKey(repository.endpoint.registry, repository.name, digest, size)
        self._locked_record: LockedRecord | None = records.lock(key) if can_resume else None
        record = self._locked_record.record if self._locked_record is not None else None
        if record is not None and self._can_store(record.location):
            self.session = UploadSession(record.location, record.min_chunk)
        self.is_from_earlier_run = self.session is not None

    @property
    def is_recorded(self) -> bool:
        """Whether a later run will find this upload."""
        return self.session is not None and self._locked_record is not None and self._locked_record.is_locked

    def query_offset(self, retries: Retries) -> tuple[UploadSession, int] | None:
        """Return where the upload continues and how many bytes the registry has; None if it does not know or say.

        Without an answer (network down, token expired, server error) the session may still exist. It is given up only
        if the registry opens another session and then still does not answer about this one. Otherwise a registry that
        never answers would make the same command fail for ever.

        Raises:
            OcistreamError: the registry does not answer and opens no other session; or the transfer is cancelled.
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
        # Without an offset the session is unusable: it may have bytes, and new ones would be appended to them.
        return None if offset is None else (session, offset)

    def _open_spare(self, retries: Retries, silence: OcistreamError) -> None:
        """Open a replacement session, or raise `silence`: this failure does not show that the first session is lost."""
        # Only a newly opened session shows that the registry works now.
        self.delete_spare()
        try:
            self._spare = self._sessions.open(retries)
        except CancelledError:
            raise
        except OcistreamError as error:
            raise silence from error

    def move_to(self, session: UploadSession) -> None:
        """Continue at `session`, which is new or comes from a response, and record it."""
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
        """Delete the session, and continue with another one, with the spare one, or with none."""
        session, self._spare = session or self._spare, None
        old_session, self.session, self.is_from_earlier_run = self.session, None, False
        if session is not None:
            self.move_to(session)
        if old_session is not None:
            self._sessions.try_delete(old_session)

    def reopen(self, retries: Retries) -> None:
        """Open another session, and only then delete this one, in case the registry is down.

        Raises:
            OcistreamError: the registry opens no other session.
        """
        if self._spare is None:
            self._spare = self._sessions.open(retries)
        self.replace(None)

    def _can_store(self, location: str) -> bool:
        repository = self._sessions.repository
        return can_store_location(location, repository.endpoint.url, repository.name)

    def delete_spare(self) -> None:
        """Delete the replacement session, if there is one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._sessions.try_delete(spare)

    def finish(self) -> None:
        """Remove the record: the blob is complete, or the session is deleted."""
        self.session = None
        if self._locked_record is not None:
            self._locked_record.remove()

    def delete(self) -> None:
        """Delete the session, if there is one, and its record.

        Raises:
            OcistreamError: the registry did not delete the session; the record stays.
        """
        if self.session is not None:
            self._sessions.delete(self.session)
        self.finish()

    def try_delete(self) -> None:
        """Delete the session; if that fails, keep the record, so that the next run deletes or resumes it."""
        try:
            self.delete()
        except OcistreamError:
            self.release()

    def release(self) -> None:
        """Leave the session to a later run."""
        if self._locked_record is not None:
            self._locked_record.release()


def delete_abandoned_sessions(sessions: UploadSessions, records: UploadRecords, digests: Collection[str]) -> None:
    """Delete the sessions that earlier runs left of these blobs, which now exist, and all old ones.

    If a deletion fails, the record stays for the next run. A server error (5xx) ends only this deletion; any other
    failure ends all. distribution needs a delete permission that push tokens often lack.

    Raises:
        OcistreamError: the registry does not answer, or denies the deletion.
    """
    endpoint = sessions.repository.endpoint
    for locked_record in records.lock_abandoned(endpoint.registry, sessions.repository.name, digests):
        try:
            if locked_record.record is not None and can_store_location(
                locked_record.record.location, endpoint.url, sessions.repository.name
            ):
                sessions.delete(UploadSession(locked_record.record.location))
            locked_record.remove()
        except RegistryError as error:
            if error.status < 500:
                raise
        finally:
            locked_record.release()
