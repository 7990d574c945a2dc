"""The session of one upload: which it is now, and what of it is remembered for a run to come.

It is written down when it was opened, whenever it moves, and forgotten when it was closed or deleted. So a process that
is killed at any moment leaves behind where the next one goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import CancelledError, OcistreamError, RegistryError
from ocistream.registry.upload_records import UploadKey, UploadRecord, can_store_location
from ocistream.registry.upload_sessions import UploadSession

if TYPE_CHECKING:
    from collections.abc import Collection

    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_records import LockedRecord, UploadRecords
    from ocistream.registry.upload_sessions import UploadSessions

__all__ = ["UploadState", "delete_abandoned_sessions"]


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
