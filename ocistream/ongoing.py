"""The session of one upload: which it is now, and what of it is remembered for a run to come.

It is written down when it was opened, whenever it moves, and forgotten when it was closed or deleted. So a process that
is killed at any moment leaves behind where the next one goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import NetworkError, OcistreamError
from ocistream.sessions import Session
from ocistream.upload_records import Key, UploadRecord, may_be_kept

if TYPE_CHECKING:
    from collections.abc import Collection

    from ocistream.model import Descriptor
    from ocistream.sessions import Sessions
    from ocistream.upload_records import Claim, UploadRecords

__all__ = ["Ongoing", "delete_left_over"]


class Ongoing:
    """One upload. `session` is None where none is open; `is_found` says that an earlier run has opened it."""

    def __init__(self, sessions: Sessions, records: UploadRecords, descriptor: Descriptor | None) -> None:
        """Look for what an earlier run has left of a blob; one without a name has none, but is noted as well."""
        repository = sessions.repository
        self._sessions = sessions
        self._records = records
        self._endpoint = repository.endpoint
        self.session: Session | None = None
        # A session of which nobody can say how far it is, or that is its own permission, is not worth a file.
        kept = repository.transport.ladder.profile(sessions.host).resumes
        digest, size = (descriptor.digest, descriptor.size) if descriptor is not None else ("", 0)
        key = Key(repository.endpoint.registry, repository.name, digest, size)
        self._claim: Claim | None = records.claim(key) if kept else None
        found = self._claim.found if self._claim is not None else None
        if found is not None and may_be_kept(found.location, self._endpoint.origin):
            self.session = Session(found.location, found.min_chunk)
        self.is_found = self.session is not None

    @property
    def is_remembered(self) -> bool:
        """Whether a later run will find it."""
        return self.session is not None and self._claim is not None and self._claim.is_held

    def moves(self, session: Session) -> None:
        """Go on at `session`, which was opened just now or is where an answer led."""
        changed = session != self.session
        self.session = session
        if not changed or self._claim is None or not self._claim.is_held:
            return
        if not may_be_kept(session.location, self._endpoint.origin):
            self._claim.drop()
            return
        try:
            self._claim.write(UploadRecord(session.location, session.min_chunk))
        except OSError as error:
            self._records.failed(self._claim, error)

    def replace(self, session: Session | None) -> None:
        """Delete the session, and go on with another one, or with none so far."""
        before, self.session, self.is_found = self.session, None, False
        if session is not None:
            self.moves(session)
        if before is not None:
            self._sessions.abandon(before)

    def is_over(self) -> None:
        """Forget it: the blob is there."""
        self.session = None
        if self._claim is not None:
            self._claim.drop()

    def delete(self) -> None:
        """Delete the session, if there is one, and forget it.

        Raises:
            OcistreamError: the registry does not answer.
        """
        if self.session is not None:
            self._sessions.delete(self.session)
        self.is_over()

    def abandon(self) -> None:
        """Delete the session; where the registry does not answer, the next run for the blob will see to it."""
        try:
            self.delete()
        except NetworkError:
            self.leave()
        except OcistreamError:
            self.is_over()

    def leave(self) -> None:
        """Leave the session to a later run."""
        if self._claim is not None:
            self._claim.leave()


def delete_left_over(sessions: Sessions, records: UploadRecords, digests: Collection[str]) -> None:
    """Delete the sessions that killed runs have left of these blobs, which are there by now, and what is too old.

    Raises:
        OcistreamError: the registry does not answer. What is left then is found the next time.
    """
    endpoint = sessions.repository.endpoint
    for claim in records.left_over(endpoint.registry, sessions.repository.name, digests):
        try:
            if claim.found is not None and may_be_kept(claim.found.location, endpoint.origin):
                sessions.delete(Session(claim.found.location))
            claim.drop()
        finally:
            claim.leave()
