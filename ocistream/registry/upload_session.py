"""Upload sessions of a repository: their HTTP requests, and the session of one upload across requests and runs.

A session is recorded before it is used, so that a later run can resume the upload of a killed process.
"""

from __future__ import annotations

import contextlib
import re
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
from ocistream.registry.repository import read_only_errors
from ocistream.registry.upload_record import SessionLocation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.http.adapter import StreamedBody
    from ocistream.http.response import Response
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.repository import Repository
    from ocistream.registry.upload_record import LockedRecord

_STORED_STATUSES: Final = (200, 201, 202, 204)
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


# -- requests -----------------------------------------------------------------------------------------------


def open_session(repository: Repository, retries: Retries) -> SessionLocation:
    """Open a session. This also fetches the token, before any body is sent.

    Raises:
        NotFoundError: the repository does not exist, and the registry does not create it.
        UnsupportedError: the registry is read-only.
    """
    try:
        with read_only_errors(repository):
            response = repository.request("POST", repository.url("blobs/uploads/"), expected=(202,), retries=retries)
    except NotFoundError as error:
        hint = "create the repository first: some registries do not create it on the first push"
        raise NotFoundError(error.message, codes=error.codes, hint=hint) from error
    return _parse_session(response)


def mount_blob(repository: Repository, digest: str, from_name: str) -> tuple[bool, SessionLocation | None]:
    """Mount a blob from the repository `from_name`; return whether it exists now, and the session opened instead.

    Raises:
        AuthenticationError, NotFoundError, RegistryError: the registry refused.
    """
    url = repository.url(f"blobs/uploads/?mount={digest}&from={quote(from_name, safe='/')}")
    response = repository.request("POST", url, scopes=_scopes_for_mount(repository, from_name), expected=(201, 202))
    if response.status == 201:
        return True, None
    return False, _parse_session(response) if response.header("Location") else None


def has_mountable_blob(repository: Repository, descriptor: Descriptor, from_name: str) -> bool:
    """Return whether the repository `from_name` has a blob; use the same token as a mount.

    Raises:
        AuthenticationError, RegistryError: the registry refused.
    """
    url = f"{repository.endpoint.url}/v2/{from_name}/blobs/{descriptor.digest}"
    response = repository.request("HEAD", url, scopes=_scopes_for_mount(repository, from_name), expected=(200, 404))
    return response.status == 200


def query_session(
    repository: Repository, location: SessionLocation, retries: Retries
) -> tuple[SessionLocation, int | None]:
    """Return where an upload continues, and how many bytes the registry has.

    The number is None if the registry answers without an offset: it does not know the session, or not the request.

    Raises:
        OcistreamError: there was no answer, or one that does not concern the session.
    """
    try:
        response = repository.request("GET", location.url, expected=_OFFSET_STATUSES, retries=retries)
    except NotFoundError:
        return location, None
    except RegistryError as error:
        if error.status in _UNRELATED_STATUSES:
            raise
        return location, None
    return _next_location(location, response), _parse_stored_size(response)


def delete_session(repository: Repository, location: SessionLocation) -> None:
    """Delete a session; if the registry does not support that, leave it to its own clean-up.

    Raises:
        OcistreamError: there was no answer, or one that does not concern the session.
    """
    if _request_once(repository, "DELETE", location.url).status in _LOCATION_CHANGED:
        current = _next_location(location, _request_once(repository, "GET", location.url))
        if current != location:
            _request_once(repository, "DELETE", current.url)


def _scopes_for_mount(repository: Repository, from_name: str) -> tuple[str, ...]:
    # Push first: some token servers grant what the first scope asks for (ggcr, bearer.go).
    return (*repository.scopes, repository_scope(from_name, "pull"))


def _request_once(repository: Repository, method: str, url: str) -> Response:
    """Send a request without retries; raise RegistryError for a status that does not concern the session."""
    response = repository.client.request_once(repository.endpoint, method, url, scopes=repository.scopes)
    if response.status in _UNRELATED_STATUSES:
        msg = f"{method} {redact_url(url)}: answered {response.status}"
        raise RegistryError(msg, status=response.status)
    return response


def _parse_session(response: Response) -> SessionLocation:
    """Return the session that a response opens.

    Raises:
        PermanentNetworkError: the response has no Location.
    """
    location = response.header("Location")
    if not location:
        msg = f"{response.method} {redact_url(response.url)}: the answer has no Location"
        raise PermanentNetworkError(msg)
    min_chunk = response.header("OCI-Chunk-Min-Length") or ""
    return SessionLocation(
        resolve_url(response.url, location), int(min_chunk) if re.fullmatch("[0-9]{1,18}", min_chunk) else 0
    )


def _next_location(location: SessionLocation, response: Response) -> SessionLocation:
    """Return the session for the next request: a response may have a new URL (oras-py#150) or none."""
    return SessionLocation(resolve_url(response.url, response.header("Location") or ""), location.min_chunk)


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


# -- the session of one upload ------------------------------------------------------------------------------


class UploadSession:
    """The session of one upload across requests and runs: where it is, its record on disk, and a spare one.

    `location` is None if no session is open. `is_from_earlier_run` says that an earlier run opened the session.
    Without a `record`, no later run can resume the upload.
    """

    def __init__(self, repository: Repository, record: LockedRecord | None = None) -> None:
        """Load the session that an earlier run recorded, if there is one."""
        self._repository = repository
        self._record = record
        #: A spare session, opened while the registry did not answer about the session; not used so far.
        self._spare: SessionLocation | None = None
        self.location = record.location if record is not None else None
        self.is_from_earlier_run = self.location is not None

    @property
    def is_recorded(self) -> bool:
        """Whether a later run will find this upload."""
        return self.location is not None and self._record is not None and self._record.is_locked

    @property
    def min_chunk(self) -> int:
        """The minimum size in bytes of each chunk but the last."""
        return self.location.min_chunk if self.location is not None else 0

    # -- requests ---------------------------------------------------------------------------------------

    def open(self, retries: Retries) -> None:
        """Open a session, unless one is open.

        Raises:
            NotFoundError: the repository does not exist, and the registry does not create it.
        """
        if self.location is None:
            self._move_to(open_session(self._repository, retries))

    def patch(
        self, body: StreamedBody, span: tuple[int, int] | None, retries: Retries, *, bytes_to_store: float
    ) -> int | None:
        """Send bytes of the blob; return how many the registry says it has.

        `span` is the offset of the first byte and of the byte after the last, if the range must be stated.
        `bytes_to_store` is how many bytes the registry must store before it can respond, infinite if the size is
        unknown. If a body that may end early failed, `body.failure` has the error.

        Raises:
            SessionLostError: the registry does not know the session.
            NetworkError: the request failed, or the registry answered before it had the complete body.
        """
        location = self._current()
        # The form is `0-99`: ACR accepts no other. A stream has no Content-Range (dist-spec#506).
        range_header = {"Content-Range": f"{span[0]}-{span[1] - 1}"} if span else {}
        headers = {**_OCTET_STREAM, **range_header}
        response = self._send("PATCH", location.url, retries, headers, body, bytes_to_store)
        self._move_to(_next_location(location, response))
        return _parse_stored_size(response)

    def put(self, digest: str, retries: Retries, body: StreamedBody | None = None, *, bytes_to_store: float) -> None:
        """Close the session with the blob's digest; a `body` has all of the blob's `bytes_to_store` bytes.

        Raises:
            SessionLostError, NetworkError: as for `patch`.
        """
        url = _add_query(self._current().url, f"digest={digest}")
        self._send("PUT", url, retries, _OCTET_STREAM, body, bytes_to_store)

    def query_offset(self, retries: Retries) -> int | None:
        """Return how many bytes the registry has; None if it does not know or say.

        Without an answer (network down, token expired, server error) the session may still exist. It is given up only
        if the registry opens another session and then still does not answer about this one. Otherwise a registry that
        never answers would make the same command fail for ever.

        Raises:
            OcistreamError: the registry does not answer and opens no other session; or the transfer is cancelled.
        """
        if self.location is None:
            return None
        try:
            location, offset = query_session(self._repository, self.location, retries)
        except CancelledError:
            raise
        except OcistreamError as error:
            self._open_spare(retries, error)
            try:
                location, offset = query_session(self._repository, self.location, retries)
            except CancelledError:
                raise
            except OcistreamError:
                return None
            self.delete_spare()
        # Without an offset the session is unusable: it may have bytes, and new ones would be appended to them.
        if offset is not None:
            self._move_to(location)
        return offset

    def _open_spare(self, retries: Retries, failure: OcistreamError) -> None:
        """Open a spare session, or raise `failure`: it does not show that the first session is lost."""
        # Only a newly opened session shows that the registry works now.
        self.delete_spare()
        try:
            self._spare = open_session(self._repository, retries)
        except CancelledError:
            raise
        except OcistreamError as error:
            raise failure from error

    def _send(
        self,
        method: str,
        url: str,
        retries: Retries,
        headers: Mapping[str, str],
        body: StreamedBody | None,
        bytes_to_store: float,
    ) -> Response:
        """Send a request of the session, and require that the complete body was sent.

        If the source of the body failed, raise its error, not that of the request.
        """
        try:
            response = self._repository.request(
                method,
                url,
                headers=headers,
                body=body,
                expected=_STORED_STATUSES,
                retries=retries,
                bytes_to_store=bytes_to_store,
            )
        except OcistreamError as error:
            if body is not None and body.failure is not None:
                # The source of the body failed; the error of the request is a consequence.
                try:
                    raise body.failure from None
                finally:
                    # The error has frames with the body.
                    body.failure = None
            if not isinstance(error, NotFoundError):
                raise
            raise SessionLostError(error.message, is_sure=not _LOST_CODES.isdisjoint(error.codes)) from error
        if body is not None and not body.is_finished and body.failure is None:
            msg = (
                f"{method} {redact_url(self._current().url)}: answered {response.status} before the "
                "complete request was sent"
            )
            raise NetworkError(msg)
        return response

    # -- another session --------------------------------------------------------------------------------

    def replace(self, location: SessionLocation | None = None) -> None:
        """Delete the session, and continue in `location`, else in the spare session, else in none."""
        location, self._spare = location or self._spare, None
        old, self.location, self.is_from_earlier_run = self.location, None, False
        if location is not None:
            self._move_to(location)
        if old is not None:
            self._delete_quietly(old)

    def reopen(self, retries: Retries) -> None:
        """Open another session, and only then delete this one, in case the registry is down.

        Raises:
            OcistreamError: the registry opens no other session.
        """
        if self._spare is None:
            self._spare = open_session(self._repository, retries)
        self.replace()

    def delete_spare(self) -> None:
        """Delete the spare session, if there is one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._delete_quietly(spare)

    # -- the end ----------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Remove the record: the blob is complete, or the session is deleted."""
        self.location = None
        if self._record is not None:
            self._record.remove()

    def delete(self) -> None:
        """Delete the session, if there is one, and its record.

        Raises:
            OcistreamError: the registry did not delete the session; the record stays.
        """
        if self.location is not None:
            delete_session(self._repository, self.location)
        self.finish()

    def try_delete(self) -> None:
        """Delete the session; if that fails, keep the record, so that the next run deletes or resumes it."""
        try:
            self.delete()
        except OcistreamError:
            self.release()

    def release(self) -> None:
        """Leave the session to a later run."""
        if self._record is not None:
            self._record.release()

    def _current(self) -> SessionLocation:
        assert self.location is not None, "a session is open"  # noqa: S101 - `open` comes first
        return self.location

    def _move_to(self, location: SessionLocation) -> None:
        """Continue at `location`, which is new or comes from a response, and record it."""
        has_changed = location != self.location
        self.location = location
        if has_changed and self._record is not None:
            self._record.write(location)

    def _delete_quietly(self, location: SessionLocation) -> None:
        """Delete a session; if that fails, leave it to the registry's own clean-up."""
        with contextlib.suppress(OcistreamError):
            delete_session(self._repository, location)
