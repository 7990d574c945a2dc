"""The session of one upload: which it is now, and what of it is remembered for a run to come.

It is written down when it was opened, whenever it moves, and forgotten when it was closed or deleted. So a process that
is killed at any moment leaves behind where the next one goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import CancelledError, OcistreamError, RegistryError
from ocistream.registry.upload_records import Key, UploadRecord, may_be_kept
from ocistream.registry.upload_sessions import Session

if TYPE_CHECKING:
    from collections.abc import Collection

    from ocistream.http.retry import Tries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_records import Claim, UploadRecords
    from ocistream.registry.upload_sessions import Sessions

__all__ = ["Ongoing", "delete_left_over"]


class Ongoing:
    """One upload. `session` is None where none is open; `is_found` says that an earlier run has opened it."""

    def __init__(self, sessions: Sessions, records: UploadRecords, descriptor: Descriptor | None) -> None:
        """Look for what an earlier run has left of a blob; one without a name has none, but is noted as well."""
        repository = sessions.repository
        self._sessions = sessions
        self._records = records
        self.session: Session | None = None
        #: Opened to take the place of one that nobody could be asked about, and not needed so far.
        self._spare: Session | None = None
        # A session of which nobody can say how far it is, or that is its own permission, is not worth a file.
        kept = repository.transport.ladder.profile(sessions.host).resumes
        digest, size = (descriptor.digest, descriptor.size) if descriptor is not None else ("", 0)
        key = Key(repository.endpoint.registry, repository.name, digest, size)
        self._claim: Claim | None = records.claim(key) if kept else None
        found = self._claim.found if self._claim is not None else None
        if found is not None and self._may_keep(found.location):
            self.session = Session(found.location, found.min_chunk)
        self.is_found = self.session is not None

    @property
    def is_remembered(self) -> bool:
        """Whether a later run will find it."""
        return self.session is not None and self._claim is not None and self._claim.is_held

    def ask(self, tries: Tries) -> tuple[Session, int] | None:
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
            session, offset = self._sessions.offset(self.session, tries)
        except CancelledError:
            raise
        except OcistreamError as error:
            self._open_another(tries, error)
            try:
                session, offset = self._sessions.offset(self.session, tries)
            except CancelledError:
                raise
            except OcistreamError:
                return None
            self.needs_no_other()
        # Some bytes may be there all the same where it does not say, to which others would be appended.
        return None if offset is None else (session, offset)

    def _open_another(self, tries: Tries, silence: OcistreamError) -> None:
        """Open a session for the case that this one is given up.

        Raises:
            OcistreamError: there is none. It is the `silence` that is raised, which says nothing against this one.
        """
        # One that is there already says nothing of how the registry is now.
        self.needs_no_other()
        try:
            self._spare = self._sessions.open(tries)
        except CancelledError:
            raise
        except OcistreamError as error:
            raise silence from error

    def moves(self, session: Session) -> None:
        """Go on at `session`, which was opened just now or is where an answer led."""
        changed = session != self.session
        self.session = session
        if not changed or self._claim is None or not self._claim.is_held:
            return
        if not self._may_keep(session.location):
            self._claim.drop()
            return
        try:
            self._claim.write(UploadRecord(session.location, session.min_chunk))
        except OSError as error:
            self._records.failed(self._claim, error)

    def replace(self, session: Session | None) -> None:
        """Delete the session, and go on with another one, or with none so far."""
        session, self._spare = session or self._spare, None
        before, self.session, self.is_found = self.session, None, False
        if session is not None:
            self.moves(session)
        if before is not None:
            self._sessions.abandon(before)

    def begin_anew(self, tries: Tries) -> None:
        """Open another session, and delete this one once that is there: a registry that is down may have it still.

        Raises:
            OcistreamError: there is no other.
        """
        if self._spare is None:
            self._spare = self._sessions.open(tries)
        self.replace(None)

    def _may_keep(self, location: str) -> bool:
        repository = self._sessions.repository
        return may_be_kept(location, repository.endpoint.url, repository.name)

    def needs_no_other(self) -> None:
        """Delete what was opened to take its place."""
        spare, self._spare = self._spare, None
        if spare is not None:
            self._sessions.abandon(spare)

    def is_over(self) -> None:
        """Forget it: the blob is there."""
        self.session = None
        if self._claim is not None:
            self._claim.drop()

    def delete(self) -> None:
        """Delete the session, if there is one, and forget it.

        Raises:
            OcistreamError: the registry does not answer, or not to this; it is remembered still.
        """
        if self.session is not None:
            self._sessions.delete(self.session)
        self.is_over()

    def abandon(self) -> None:
        """Delete the session; where it may live all the same, the next run for the blob will see to it."""
        try:
            self.delete()
        except OcistreamError:
            self.leave()

    def leave(self) -> None:
        """Leave the session to a later run."""
        if self._claim is not None:
            self._claim.leave()


def delete_left_over(sessions: Sessions, records: UploadRecords, digests: Collection[str]) -> None:
    """Delete the sessions that killed runs have left of these blobs, which are there by now, and what is too old.

    One with which the server is in trouble is no reason to leave the others.

    Raises:
        OcistreamError: the registry does not answer, or does not let us. What is left then is found the next time.
    """
    endpoint = sessions.repository.endpoint
    for claim in records.left_over(endpoint.registry, sessions.repository.name, digests):
        try:
            if claim.found is not None and may_be_kept(claim.found.location, endpoint.url, sessions.repository.name):
                sessions.delete(Session(claim.found.location))
            claim.drop()
        except RegistryError as error:
            if error.status < 500:
                raise
        finally:
            claim.leave()
