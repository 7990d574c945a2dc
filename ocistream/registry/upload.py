"""Upload one blob, or one part of a blob: retry, resume, and change the method when the registry refuses one.

The session is opened when the first bytes are there (skopeo#2101). If the verified chunks raise, the upload is
never closed. After a failure, the registry is asked how many bytes it has before anything is sent again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import (
    AuthenticationError,
    CancelledError,
    IntegrityError,
    LocalDiskError,
    NetworkError,
    OcistreamError,
    PermanentNetworkError,
    RegistryError,
    TerminatedError,
    TruncatedError,
    UnsupportedError,
)
from ocistream.http.connections import FixedLengthBody, StreamedBody
from ocistream.open_uploads import OpenUpload
from ocistream.registry.upload_bodies import ReplayBuffer, UploadBodies
from ocistream.registry.upload_methods import ALTERNATIVES, CHUNK, CHUNKED_CODING_REFUSALS, PUT, STREAM, UNSIZED_STREAM
from ocistream.registry.upload_sessions import SessionLostError
from ocistream.sizes import format_size
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_methods import UploadMethod
    from ocistream.registry.upload_sessions import UploadSession, UploadSessions, UploadState
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.transfer.interfaces import NewBlob

__all__ = [
    "BlobUpload",
    "find_stored_size",
    "is_content_mismatch",
    "is_interruption",
    "is_resume_refusal",
    "is_session_lost",
    "is_transient",
    "upload_part",
]

#: What a registry that does not take it says of anything sent to an upload which an earlier run has begun.
_RESUME_REFUSALS: Final = frozenset({400, 405, 409, 410, 411, 412, 422, 501})
#: What a registry says of an upload whose bytes are not the blob's. Ours were verified.
_MISMATCH_CODES: Final = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"})
#: What is said of who asks, by a registry, by the storage that it leads to or a proxy, and not of what is sent.
_AUTH_STATUSES: Final = frozenset({401, 403, 407})
_INTERRUPTIONS: Final = (
    AuthenticationError,
    CancelledError,
    KeyboardInterrupt,
    LocalDiskError,
    NetworkError,
    TerminatedError,
    TruncatedError,
)


def is_interruption(error: BaseException) -> bool:
    """Say whether an upload may be gone on with after this: it was stopped, and nothing was found wrong with it.

    Whether the way of sending was refused cannot be seen by an error alone; `ocistream.registry.upload` knows.
    """
    if isinstance(error, NetworkError) and is_session_lost(error):
        return False
    if isinstance(error, RegistryError) and not is_transient(error):
        return error.status in _AUTH_STATUSES
    return isinstance(error, _INTERRUPTIONS)


def is_session_lost(error: NetworkError) -> bool:
    """Say whether it is sure that the registry does not know the session any more."""
    return isinstance(error, SessionLostError) and error.is_sure


def is_transient(error: NetworkError) -> bool:
    """Say whether an upload that failed so is worth another try: a server in trouble, or a connection that broke."""
    if isinstance(error, RegistryError):
        return error.status >= 500 or error.status in {408, 416, 429}
    return not isinstance(error, PermanentNetworkError)


def is_content_mismatch(error: RegistryError) -> bool:
    """Say whether a registry finds that the bytes it has are not the blob's."""
    return not _MISMATCH_CODES.isdisjoint(error.codes)


def is_resume_refusal(error: RegistryError) -> bool:
    """Say whether a registry may be refusing to go on with what an earlier run has sent."""
    return error.status in _RESUME_REFUSALS


#: So much more than before in the registry is progress, after which failures are counted anew.
_MIN_PROGRESS: Final = limits.CHUNK_SIZE
#: To send so many bytes again is worth telling.
_MIN_REPORTED: Final = limits.MIB
#: A registry that takes a stream, and answers so to a PATCH with a Content-Range, takes no such thing.
_CONTENT_RANGE_REFUSALS: Final = frozenset({400, 405, 411, 501})
_PIPE_HINT: Final = (
    "what comes from a pipe cannot be sent again: push from a file, or with --upload chunk=8MiB, where each chunk is "
    "kept until the registry has it"
)
_TOO_LARGE_HINT: Final = (
    "the registry, or a proxy before it, bounds the body of a request (nginx: client_max_body_size): raise that, or "
    "try smaller ones with --upload chunk=SIZE"
)


class BlobUpload:
    """One blob on its way into one repository. `acknowledged` is how many bytes of it the registry has."""

    def __init__(self, sessions: UploadSessions, blob: Blob | NewBlob, buffer: ReplayBuffer) -> None:
        """Take the blob and its bytes."""
        transport = sessions.repository.client
        self._sessions = sessions
        self._strategy: UploadStrategy = transport.upload_strategy
        self._blob = blob
        self._buffer = buffer
        self._state: UploadState
        self._retries: Retries = transport.start_retries()
        self._explicit_method = self._strategy.explicit_method(sessions.repository.endpoint.settings.upload)
        self._method: UploadMethod = self._explicit_method or self._strategy.choose_method(
            sessions.host, is_size_known=self._is_size_known
        )
        self._tried_methods = {self._method}
        self._bodies = UploadBodies(self._strategy, sessions.host, blob, buffer, self._explicit_method)
        self.acknowledged = 0
        #: The most that the registry ever had when failures were counted anew.
        self._progress_mark = 0
        #: How far this run has sent into this session; the feed forgets that where it is begun again.
        self._sent_bytes = 0
        #: The size of the body under way, or 0 where it is not known; None where no body is.
        self._body_size: int | None = None
        #: How many bytes the registry had of an earlier run.
        self.resumed_size = 0
        #: A fresh session was not found already; a second time it is the method that is not known.
        self._is_session_suspect = False
        #: The body under way goes on with what another has begun, or the whole upload is made of such.
        self._is_body_resuming = self._is_upload_resumed = False
        #: It turned out that this registry's uploads cannot be gone on with.
        self._is_resume_disabled = False
        #: How far an upload may be of which an earlier run has sent the beginning; None where this run sent all of it.
        self._earlier_size: int | None = None
        #: By what the way of sending was refused; the same command would be refused again.
        self._refusal: NetworkError | None = None

    @property
    def _is_size_known(self) -> bool:
        return self._buffer.size is not None

    def run(self, state: UploadState) -> None:
        """Have the blob be there, in a session that is open already if there is one.

        An upload that was interrupted is left to a later run, if that may go on with it; another is deleted.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            UnsupportedError: it was to be one PUT, and its digest is not known before its end.
            OcistreamError: whatever the blob's own chunks raise.
        """
        self._state = state
        left = OpenUpload(
            self._sessions.host,
            self._is_worth_resuming,
            stored=self._confirmed_bytes,
            can_end=lambda: self._bodies.can_end_early,
        )
        try:
            self._check_method()
            self._resume_earlier_run()
            while (failure := self._attempt()) is not None:
                self._recover(failure)
        except BaseException as error:
            if error is not self._refusal and is_interruption(error) and self._is_worth_resuming():
                self._state.release()
                left.leave_open()
            else:
                left.remove()
                self._state.try_delete()
            raise
        finally:
            self._state.delete_spare()
        left.remove()
        self._state.finish()
        self._strategy.record_success(self._sessions.host, self._method, is_size_known=self._is_size_known)

    def _check_method(self) -> None:
        if self._method.kind == PUT and not self._is_size_known:
            msg = "a layer that is made on the way cannot be uploaded by one PUT: its digest is known at its end"
            raise UnsupportedError(msg, hint="leave --upload away, or choose stream or chunk=SIZE")

    # -- what an earlier run has begun, and what is left to a later one ----------------------------------

    def _resume_earlier_run(self) -> None:
        """Go on with what an earlier run has sent, if the registry still has it and says how much that is.

        Raises:
            NetworkError, AuthenticationError: it does not answer this, nor to a new session.
        """
        if not self._state.is_from_earlier_run:
            return
        self._earlier_size = self._buffer.size
        place = self._query_offset() if self._can_resume else None
        if place is None:
            self._state.reopen(self._retries)
            self._earlier_size = None
            self._retries.reset()
            self._report("cannot resume the earlier upload of {blob}: sending all {size} again", self._buffer.size or 0)
            return
        self._acknowledge(place)
        self.resumed_size = place
        if place:
            self._report(f"resumed {format_size(place)} of {{size}} of {{blob}}", place)

    def _report(self, what: str, count: int) -> None:
        """Tell what becomes of the upload: always if it concerns a `count` of bytes worth telling, else with -v."""
        if isinstance(self._blob, Blob):
            descriptor = self._blob.descriptor
            text = what.format(blob=descriptor.digest, size=format_size(descriptor.size))
            self._strategy.report(f"{self._sessions.host}: {text}", 0 if count >= _MIN_REPORTED else 1)

    def _is_worth_resuming(self) -> bool:
        """Say whether a later run may go on with what was sent so far. Another thread may ask that, at any time."""
        # What is made on the way is not gone on with; what comes from a pipe may come from it again.
        if not self._state.is_recorded or not (self._blob.reopenable or isinstance(self._blob, Blob)):
            return False
        if not self._can_resume:
            return False
        sent = max(self.acknowledged, self._buffer.end)
        return sent >= limits.MIN_PARTIAL_SIZE or self._state.is_from_earlier_run

    def _confirmed_bytes(self) -> int:
        """Return how many bytes the registry has confirmed; 0 while a request with a body is under way."""
        return self.acknowledged if self._body_size is None else 0

    # -- what goes well ---------------------------------------------------------------------------------

    def _attempt(self) -> NetworkError | None:
        """Go on with the blob to its end; None if it is there, else what something may be done about."""
        self._body_size, self._bodies.can_end_early, self._bodies.has_chunked_coding = None, False, False
        try:
            self._send()
        except NetworkError as error:
            if self._buffer.has_source_failed:
                # What the source of the blob could not mend is not tried again here.
                raise
            return error
        return None

    def _send(self) -> None:
        session = self._state.session
        if session is None:
            session = self._sessions.open(self._retries)
            self._state.move_to(session)
        if self._method.kind == PUT and isinstance(self._blob, Blob) and not self._buffer.is_empty:
            self._buffer.seek(0)
            self._body_size = self._blob.descriptor.size
            body = FixedLengthBody(self._buffer.read(0), self._body_size)
            self._sessions.close(
                session, self._blob.descriptor.digest, self._retries, body, stored_size=self._body_size
            )
            self._buffer.check_end()
            return
        while not self._buffer.is_empty:
            self._sent_bytes = max(self._sent_bytes, self._buffer.end)
            part = self._bodies.build_next(self._method, self.acknowledged, session.min_chunk)
            if part is None:
                break
            session = self._send_body(session, *part)
        self._buffer.check_end()
        self._finish(session)

    def _send_body(self, session: UploadSession, body: StreamedBody, span: tuple[int, int] | None) -> UploadSession:
        self._body_size = span[1] - span[0] if span else self._buffer.size or 0
        self._is_body_resuming = span is not None and self._method.kind != CHUNK
        session, stated = self._sessions.patch(
            session, body, self._retries, span, stored_size=self._body_size or math.inf
        )
        self._state.move_to(session)
        self._body_size, self._bodies.can_end_early = None, False
        if body.failure is not None:
            # The request has its proper end all the same: the registry has what was sent.
            sent = self._buffer.end
            self.acknowledged = max(self.acknowledged, sent if stated is None else min(stated, sent))
            raise body.failure
        if self._buffer.truncation is not None:
            self.acknowledged = span[1] if span else self._buffer.end
            raise self._buffer.truncation
        end = span[1] if span else self._buffer.end
        # Less than was sent may have been taken. But what it had before, it still has (regclient#627), and a Range that
        # stands still says nothing (containers-roadmap#2831).
        if self._can_resume and span is not None and stated is not None and self.acknowledged < stated < end:
            if stated - self.acknowledged < _MIN_PROGRESS or not self._buffer.can_seek(stated):
                # A registry that takes next to nothing each time would be sent the rest again and again.
                msg = f"{self._sessions.host} took {stated - span[0]} of {end - span[0]} bytes"
                raise NetworkError(msg)
            end = stated
        self._acknowledge(end)
        return session

    def _finish(self, session: UploadSession) -> None:
        descriptor = self._blob.descriptor if isinstance(self._blob, Blob) else self._blob.descriptor()
        try:
            self._sessions.close(session, descriptor.digest, self._retries, stored_size=descriptor.size)
        except OcistreamError:
            # An answer that was lost: the retry finds no session, since the first try had closed it.
            if not self._has_blob(descriptor):
                raise

    def _has_blob(self, descriptor: Descriptor) -> bool:
        try:
            return self._sessions.repository.has_blob(descriptor, self._retries)
        except OcistreamError:
            # What became of the upload is the news, not that asking failed as well.
            return False

    def _acknowledge(self, offset: int) -> None:
        self.acknowledged = offset
        if offset - self._progress_mark >= _MIN_PROGRESS:
            self._progress_mark = offset
            self._retries.reset()

    # -- what does not ----------------------------------------------------------------------------------

    def _recover(self, failure: NetworkError) -> None:
        """Make the next attempt a better one.

        Raises:
            NetworkError: there is none.
        """
        status = (
            404
            if isinstance(failure, SessionLostError)
            else failure.status
            if isinstance(failure, RegistryError)
            else 0
        )
        place: int | None = None
        is_coded = self._body_size is not None and self._bodies.has_chunked_coding and self._method.kind != PUT
        if is_coded and status in CHUNKED_CODING_REFUSALS and not is_session_lost(failure):
            self._retry_without_chunked_coding(failure, status)
            return
        if self._is_resume_refused(failure):
            self._is_resume_disabled = True
            if not self._retries.wait_for_retry(failure):
                raise failure
            self._restart(failure)
            return
        if status in {404, 416} and self._body_size is not None and not is_session_lost(failure):
            place = self._query_offset()
        if self._is_method_refused(failure, status, place):
            self._refusal = failure
            if self._explicit_method is not None:
                failure.hint = f"--upload {self._method} was asked for; --upload auto finds out what the registry takes"
                raise failure
            if self._change_method(failure, status, place):
                return
            if status == 413:
                failure.hint = _TOO_LARGE_HINT
                raise failure
        if not is_transient(failure) or not self._retries.wait_for_retry(failure):
            raise failure
        self._resume(failure, place)

    def _retry_without_chunked_coding(self, failure: NetworkError, status: int) -> None:
        """Continue in the same way with a Content-Length, here and for other blobs."""
        host = self._sessions.host
        self._strategy.disable_chunked_coding(host)
        self._strategy.report(
            f"{host}: chunked transfer coding was answered with {status}; now with a Content-Length", 1
        )
        if (place := self._query_offset()) is None:
            self._restart(failure)
        else:
            self._acknowledge(place)

    def _is_resume_refused(self, failure: NetworkError) -> bool:
        """Say whether the registry does not take what goes on with an upload, or has put it together wrongly."""
        if not isinstance(failure, RegistryError) or self._is_resume_disabled:
            return False
        if self._earlier_size is not None and is_resume_refusal(failure):
            return True
        if self._body_size is None:
            return self._is_upload_resumed and is_content_mismatch(failure)
        return self._is_body_resuming and failure.status in _CONTENT_RANGE_REFUSALS

    def _is_method_refused(self, failure: NetworkError, status: int, offset: int | None) -> bool:
        """Say whether it is the way of sending that was refused, and not what happened on it."""
        way = UNSIZED_STREAM if self._method.kind == STREAM and not self._is_size_known else self._method.kind
        if self._body_size is None or status not in ALTERNATIVES[way]:
            return False
        if status == 416:
            # The registry has more than we thought: it was the offset that was wrong.
            return offset is None or offset == self.acknowledged
        if status == 404 and offset is None:
            if is_session_lost(failure):
                return False
            suspect, self._is_session_suspect = self._is_session_suspect, True
            return suspect
        return True

    def _change_method(self, failure: NetworkError, status: int, offset: int | None) -> bool:
        """Take another rung; False if there is none."""
        host, before = self._sessions.host, self._method
        # Another blob may have found it out meanwhile.
        rung: UploadMethod | None = self._strategy.choose_method(host, is_size_known=self._is_size_known)
        if rung in self._tried_methods:
            rung = self._strategy.choose_next_method(
                host,
                before,
                status,
                is_size_known=self._is_size_known,
                body_size=self._body_size or None,
                tried=self._tried_methods,
            )
        if rung is None:
            return False
        self._strategy.set_method(host, rung, is_size_known=self._is_size_known)
        self._tried_methods.add(rung)
        self._method = rung
        self._is_session_suspect = False
        sent = self._buffer.end
        if offset is None and PUT not in {before.kind, rung.kind}:
            offset = self._query_offset()
        if offset is None or PUT in {before.kind, rung.kind}:
            self._restart(failure)
        else:
            self._acknowledge(offset)
        again = sent - self.acknowledged
        self._strategy.report(
            f"{host}: uploading by {before} was answered with {status}; now by {rung}"
            + (f", and {again} bytes are sent again" if again >= _MIN_REPORTED else ""),
            0 if again >= _MIN_REPORTED else 1,
        )
        return True

    @property
    def _can_resume(self) -> bool:
        known = self._strategy.profile(self._sessions.host).can_resume
        return known and self._method.kind != PUT and not self._is_resume_disabled

    def _resume(self, failure: NetworkError, offset: int | None) -> None:
        if offset is None and self._can_resume and not is_session_lost(failure):
            offset = self._query_offset()
        if offset is None or not self._can_resume:
            sent = max(self._sent_bytes, self._buffer.end)
            self._restart(failure)
            self._report(f"cannot resume the upload of {{blob}}: sending {format_size(sent)} of {{size}} again", sent)
            return
        self._is_upload_resumed = True
        self._acknowledge(offset)
        self._strategy.report(f"{self._sessions.host}: the upload resumes at byte {offset}", 1)

    def _query_offset(self) -> int | None:
        """Ask the registry how far it is; None where it does not know, or says what cannot be so, or is of no use.

        Raises:
            OcistreamError: it does not answer, and the session may live still.
        """
        found = self._state.query_offset(self._retries)
        if found is None:
            return None
        session, offset = found
        most = max(self._sent_bytes, self._buffer.end) if self._earlier_size is None else self._earlier_size
        if not self.acknowledged <= offset <= most or not (offset > self._buffer.end or self._buffer.can_seek(offset)):
            return None
        self._state.move_to(session)
        return offset

    def _restart(self, failure: NetworkError) -> None:
        """Begin again with a new session.

        Raises:
            NetworkError: the beginning of the blob cannot be had again.
        """
        self._state.replace(None)
        self._earlier_size = None
        if not self._buffer.can_seek(0):
            # The next run may as well begin with what this one has come to.
            self._strategy.record_success(self._sessions.host, self._method, is_size_known=self._is_size_known)
            raise NetworkError(failure.message, hint=_PIPE_HINT) from failure
        self._sent_bytes = 0
        self.resumed_size = 0
        # What was come to before is no progress: else a registry that loses each session would be tried for ever.
        self.acknowledged = 0
        self._is_upload_resumed = False


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
