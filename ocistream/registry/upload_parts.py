"""One part of a blob on its way up: the upload is left open behind it, for a later run that brings the next part.

The bytes of a part are verified by the digest that is said of it; the whole has nobody seen but the registry, which
checks it when the upload is closed. It can go on only where the registry says how much it has, and where that can be
remembered; where not, all parts have to be sent together, which is `ocistream.registry.upload`'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError, NetworkError, OcistreamError, RegistryError
from ocistream.http.bodies import FixedLengthBody, StreamedBody
from ocistream.registry.upload_failures import is_interruption, is_transient
from ocistream.registry.upload_methods import CHUNK, CHUNKED_CODING_REFUSALS, PUT
from ocistream.registry.upload_window import ReplayBuffer

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_sessions import UploadSessions
    from ocistream.registry.upload_state import UploadState
    from ocistream.transfer.interfaces import Blob

__all__ = ["find_stored_size", "upload_part"]


def upload_part(sessions: UploadSessions, state: UploadState, descriptor: Descriptor, offset: int, part: Blob) -> int:
    """Send the part of a blob that begins at `offset`, if that is where its upload has come to, or a part before it.

    Give how many bytes of the blob the registry has then: its size where it is there, 0 where its upload cannot be left
    open.

    Raises:
        NetworkError, AuthenticationError: the registry failed or refused; what was sent can be gone on with.
        OcistreamError: whatever the part's own chunks raise, with the session deleted.
    """
    try:
        reached = _PartUpload(sessions, state, descriptor, offset, part).run()
    except BaseException as error:
        if is_interruption(error):
            state.release()
        else:
            state.try_delete()
        raise
    finally:
        state.delete_spare()
    if reached == descriptor.size:
        state.finish()
    elif reached:
        state.release()
    else:
        state.try_delete()
    return reached


def find_stored_size(sessions: UploadSessions, state: UploadState) -> int:
    """Say how many bytes of a blob the registry has in an upload that earlier runs have begun; it stays as it is.

    Raises:
        NetworkError, AuthenticationError: it does not answer.
    """
    try:
        if not state.is_from_earlier_run:
            state.try_delete()
            return 0
        found = state.query_offset(sessions.repository.client.start_retries())
        return found[1] if found else 0
    finally:
        state.delete_spare()
        state.release()


class _PartUpload:
    def __init__(
        self, sessions: UploadSessions, state: UploadState, descriptor: Descriptor, offset: int, part: Blob
    ) -> None:
        self._sessions = sessions
        self._state = state
        self._descriptor = descriptor
        self._offset = offset
        self._part = part
        self._strategy = sessions.repository.client.upload_strategy
        self._retries = sessions.repository.client.start_retries()
        forced = self._strategy.explicit_method(sessions.repository.endpoint.settings.upload)
        self._method = forced or self._strategy.choose_method(sessions.host, is_size_known=True)

    def run(self) -> int:
        profile = self._strategy.profile(self._sessions.host)
        if self._method.kind == PUT or not profile.can_resume:
            return 0
        reached = self._open_or_resume()
        end = self._offset + self._part.descriptor.size
        if reached is None or not self._state.is_recorded:
            return 0
        if self._offset <= reached < end:
            reached = self._send(reached, end, profile.largest_chunk)
        if reached == self._descriptor.size:
            self._close()
        return reached

    def _open_or_resume(self) -> int | None:
        """Find where the upload has come to, or open one for a first part; None where there is none."""
        if self._state.is_from_earlier_run and (found := self._state.query_offset(self._retries)) is not None:
            session, reached = found
            if reached <= self._descriptor.size:
                self._state.move_to(session)
                return reached
        if self._offset:
            return None
        if self._state.session is not None and self._state.is_from_earlier_run:
            self._state.reopen(self._retries)
        elif self._state.session is None:
            self._state.move_to(self._sessions.open(self._retries))
        return 0

    def _send(self, reached: int, end: int, largest: int | None) -> int:
        most = self._method.chunk_size if self._method.kind == CHUNK else largest or end
        window = self._strategy.replay_buffer_size(reopenable=self._part.reopenable, is_size_known=True)
        with ReplayBuffer(self._part, window) as feed:
            while reached < end:
                session = self._state.session
                if session is None or not feed.can_seek(reached - self._offset):
                    return 0
                count = min(end - reached, max(most, session.min_chunk))
                feed.seek(reached - self._offset)
                if self._part.is_interruptible and session.min_chunk <= window:
                    # No request is begun that might break off in its middle.
                    count = feed.fill_until_truncated(reached - self._offset, count)
                coded = not self._part.is_interruptible and self._strategy.can_use_chunked_coding(
                    self._sessions.host, end - self._offset
                )
                chunks = feed.read(reached - self._offset, count)
                body = StreamedBody(chunks, ends_early=True) if coded else FixedLengthBody(chunks, count)
                try:
                    session, stated = self._sessions.patch(
                        session, body, self._retries, (reached, reached + count), stored_size=count
                    )
                except NetworkError as error:
                    if feed.has_source_failed:
                        raise
                    if coded and isinstance(error, RegistryError) and error.status in CHUNKED_CODING_REFUSALS:
                        self._strategy.disable_chunked_coding(self._sessions.host)
                        place = self._query_offset(self._offset + feed.end)
                    else:
                        place = self._recover(error, self._offset + feed.end)
                    if place is None:
                        return 0
                    reached = place
                else:
                    self._state.move_to(session)
                    if body.failure is not None:
                        # The request has its proper end all the same: the registry has what was sent.
                        raise body.failure
                    # Less than was sent may have been taken.
                    took_less = stated is not None and reached < stated < reached + count
                    reached = stated if took_less and stated is not None else reached + count
                    _raise_truncation(feed)
            feed.check_end()
        return reached

    def _recover(self, failure: NetworkError, sent: int) -> int | None:
        """Find where to go on after a failure; None where the registry takes no parts.

        Raises:
            NetworkError: it failed too often.
        """
        if not is_transient(failure) and isinstance(failure, RegistryError):
            # Perhaps all of it at once is taken.
            return None
        if not is_transient(failure) or not self._retries.wait_for_retry(failure):
            raise failure
        return self._query_offset(sent)

    def _query_offset(self, sent: int) -> int | None:
        """Ask where the upload resumes; None where that is not known, or not in what was sent of this part."""
        found = self._state.query_offset(self._retries)
        if found is None or not self._offset <= found[1] <= sent:
            return None
        self._state.move_to(found[0])
        return found[1]

    def _close(self) -> None:
        session = self._state.session
        assert session is not None, "what was sent went into it"  # noqa: S101 - see run
        try:
            self._sessions.close(session, self._descriptor.digest, self._retries, stored_size=self._descriptor.size)
        except OcistreamError as error:
            # An answer that was lost: the retry finds no session, since the first try had closed it.
            if self._has_blob():
                return
            if not isinstance(error, RegistryError) or is_transient(error):
                raise
            host = self._sessions.host
            msg = f"{self._descriptor.digest}: its parts, put together by {host}, are not that: {error.message}"
            raise IntegrityError(msg, hint="push all of its volumes together, or verify them together") from error

    def _has_blob(self) -> bool:
        try:
            return self._sessions.repository.has_blob(self._descriptor, self._retries)
        except OcistreamError:
            # What became of the upload is the news, not that asking failed as well.
            return False


def _raise_truncation(buffer: ReplayBuffer) -> None:
    """Say that the source has broken off, once all that had come by then is there."""
    if buffer.truncation is not None:
        raise buffer.truncation
