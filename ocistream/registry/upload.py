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
from ocistream.transfer.interfaces import VerifiedBlob

if TYPE_CHECKING:
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_methods import UploadMethod
    from ocistream.registry.upload_sessions import UploadSession, UploadSessions, UploadState
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

#: Statuses by which a registry may refuse to resume the upload of an earlier run.
_RESUME_REFUSALS: Final = frozenset({400, 405, 409, 410, 411, 412, 422, 501})
#: Error codes for an upload whose bytes do not match the digest. The bytes that this client sent were verified.
_MISMATCH_CODES: Final = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"})
#: Statuses that concern the client's rights, not the content: of the registry, its storage or a proxy.
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
    """Return whether an upload can be resumed after this error: it was stopped, and nothing was found wrong with it.

    The error alone does not tell whether the method was refused; `BlobUpload` knows that.
    """
    if isinstance(error, NetworkError) and is_session_lost(error):
        return False
    if isinstance(error, RegistryError) and not is_transient(error):
        return error.status in _AUTH_STATUSES
    return isinstance(error, _INTERRUPTIONS)


def is_session_lost(error: NetworkError) -> bool:
    """Return whether the registry certainly no longer knows the session."""
    return isinstance(error, SessionLostError) and error.is_sure


def is_transient(error: NetworkError) -> bool:
    """Return whether a failed upload is worth a retry: a server error or a broken connection."""
    if isinstance(error, RegistryError):
        return error.status >= 500 or error.status in {408, 416, 429}
    return not isinstance(error, PermanentNetworkError)


def is_content_mismatch(error: RegistryError) -> bool:
    """Return whether the registry reports that its bytes do not match the blob."""
    return not _MISMATCH_CODES.isdisjoint(error.codes)


def is_resume_refusal(error: RegistryError) -> bool:
    """Return whether the registry may be refusing to resume the upload of an earlier run."""
    return error.status in _RESUME_REFUSALS


#: Bytes of progress after which the retry counter is reset.
_MIN_PROGRESS: Final = limits.CHUNK_SIZE
#: From this many bytes on, sending bytes again is reported without -v.
_MIN_REPORTED: Final = limits.MIB
#: Statuses of a registry that accepts a stream but no PATCH with a Content-Range.
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
    """The upload of one blob to one repository. `acknowledged` is how many bytes the registry has confirmed."""

    def __init__(self, sessions: UploadSessions, blob: VerifiedBlob | NewBlob, buffer: ReplayBuffer) -> None:
        """Take the blob, and the buffer that reads it. Send no request."""
        self._sessions = sessions
        self._strategy = sessions.strategy
        self._blob = blob
        self._buffer = buffer
        self._state: UploadState
        self._retries: Retries = sessions.repository.client.start_retries()
        self._explicit_method = self._strategy.explicit_method(sessions.repository.endpoint.settings.upload)
        self._method: UploadMethod = self._explicit_method or self._strategy.choose_method(
            sessions.host, is_size_known=self._is_size_known
        )
        self._tried_methods = {self._method}
        self._bodies = UploadBodies(self._strategy, sessions.host, blob, buffer, self._explicit_method)
        self.acknowledged = 0
        #: Confirmed bytes when the retry counter was last reset.
        self._progress_mark = 0
        #: How far this run has sent into this session; the buffer loses that when it reads again from byte 0.
        self._sent_bytes = 0
        #: Size of the body being sent, 0 if it is unknown, None if no body is being sent.
        self._body_size: int | None = None
        #: The body of the current request, while no answer to it has failed.
        self._body: StreamedBody | None = None
        #: Bytes that an earlier run had uploaded.
        self.resumed_size = 0
        #: Whether a new session was already answered with 404; at the second 404 the method is refused.
        self._is_session_suspect = False
        #: Whether the current body, or the upload, continues bytes of an earlier request.
        self._is_body_resuming = self._is_upload_resumed = False
        #: Whether the registry refused to resume an upload.
        self._is_resume_disabled = False
        #: Largest offset to accept from a session of an earlier run: the blob's size, not what this run has sent.
        #: None if this run sent all bytes.
        self._earlier_size: int | None = None
        #: The refusal of the method; the same command would be refused again.
        self._refusal: NetworkError | None = None

    @property
    def _is_size_known(self) -> bool:
        return self._buffer.size is not None

    def run(self, state: UploadState) -> None:
        """Upload the blob, in the open session of `state` or a new one.

        An interrupted upload is left to a later run if it can be resumed; otherwise its session is deleted.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            UnsupportedError: one PUT was requested, but the digest is known only at the blob's end.
            OcistreamError: an error of the blob's own chunks.
        """
        self._state = state
        open_upload = OpenUpload(
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
                open_upload.leave_open()
            else:
                open_upload.remove()
                self._state.try_delete()
            raise
        finally:
            self._state.delete_spare()
        open_upload.remove()
        self._state.finish()
        self._strategy.record_success(self._sessions.host, self._method)

    def _check_method(self) -> None:
        if self._method.kind == PUT and not self._is_size_known:
            msg = "a layer that is made on the way cannot be uploaded by one PUT: its digest is known at its end"
            raise UnsupportedError(msg, hint="leave --upload away, or choose stream or chunk=SIZE")

    # -- resuming an earlier run, and leaving a session to a later one -----------------------------------

    def _resume_earlier_run(self) -> None:
        """Resume the session of an earlier run, if the registry still has it and reports its offset.

        The source is read from byte 0 all the same, because the complete blob must be verified.
        """
        if not self._state.is_from_earlier_run:
            return
        self._earlier_size = self._buffer.size
        offset = self._query_offset() if self._can_resume else None
        if offset is None:
            self._state.reopen(self._retries)
            self._earlier_size = None
            self._retries.reset()
            self._report("cannot resume the earlier upload of {blob}: sending all {size} again", self._buffer.size or 0)
            return
        self._acknowledge(offset)
        self.resumed_size = offset
        if offset:
            self._report(f"resumed {format_size(offset)} of {{size}} of {{blob}}", offset)

    def _report(self, message: str, count: int) -> None:
        """Report what happens to the upload; without -v only if `count` bytes are worth it."""
        if isinstance(self._blob, VerifiedBlob):
            descriptor = self._blob.descriptor
            text = message.format(blob=descriptor.digest, size=format_size(descriptor.size))
            self._strategy.report(f"{self._sessions.host}: {text}", 0 if count >= _MIN_REPORTED else 1)

    def _is_worth_resuming(self) -> bool:
        """Return whether a later run can resume this upload. Called by other threads at any time."""
        # A recompressed layer from a pipe cannot be resumed. A blob from a pipe can: the same command mostly produces
        # the same archive, and otherwise the digest does not match and the next run starts at byte 0.
        if not self._state.is_recorded or not (self._blob.reopenable or isinstance(self._blob, VerifiedBlob)):
            return False
        if not self._can_resume:
            return False
        sent = max(self.acknowledged, self._buffer.end)
        return sent >= limits.MIN_PARTIAL_SIZE or self._state.is_from_earlier_run

    def _confirmed_bytes(self) -> int:
        """Return how many bytes the registry has confirmed; 0 if the registry may lose them.

        Distribution 2.8 loses the upload if a body breaks off. A body that was not started, or was sent completely,
        does not break off.
        """
        if self._body_size is None:
            return self.acknowledged
        body = self._body
        return self.acknowledged if body is not None and (body.is_finished or not body.is_started) else 0

    # -- sending ----------------------------------------------------------------------------------------

    def _attempt(self) -> NetworkError | None:
        """Send the rest of the blob; return None on success, or an error that may be recoverable."""
        self._body_size, self._bodies.can_end_early, self._bodies.has_chunked_coding = None, False, False
        try:
            self._send()
        except NetworkError as error:
            # After a failed request, the registry may no longer have what it confirmed before.
            self._body = None
            if self._buffer.has_source_failed:
                # The source has its own retries.
                raise
            return error
        return None

    def _send(self) -> None:
        session = self._state.session
        if session is None:
            session = self._sessions.open(self._retries)
            self._state.move_to(session)
        if self._method.kind == PUT and isinstance(self._blob, VerifiedBlob) and not self._buffer.is_empty:
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
        self._body = body
        self._body_size = span[1] - span[0] if span else self._buffer.size or 0
        self._is_body_resuming = span is not None and self._method.kind != CHUNK
        session, stated = self._sessions.patch(
            session, body, self._retries, span, stored_size=self._body_size or math.inf
        )
        self._state.move_to(session)
        self._body_size, self._bodies.can_end_early = None, False
        if body.failure is not None:
            # The request was ended properly, so the registry has the bytes that were sent.
            sent = self._buffer.end
            self.acknowledged = max(self.acknowledged, sent if stated is None else min(stated, sent))
            raise body.failure
        if self._buffer.truncation is not None:
            self.acknowledged = span[1] if span else self._buffer.end
            raise self._buffer.truncation
        end = span[1] if span else self._buffer.end
        # The registry may have stored less than was sent. It still has the bytes from before (regclient#627), and a
        # Range that does not change proves nothing (containers-roadmap#2831).
        if self._can_resume and span is not None and stated is not None and self.acknowledged < stated < end:
            if stated - self.acknowledged < _MIN_PROGRESS or not self._buffer.can_seek(stated):
                # Count this as a failure, or a registry that stores very little each time would never end the loop.
                msg = f"{self._sessions.host} took {stated - span[0]} of {end - span[0]} bytes"
                raise NetworkError(msg)
            end = stated
        self._acknowledge(end)
        return session

    def _finish(self, session: UploadSession) -> None:
        descriptor = self._blob.descriptor if isinstance(self._blob, VerifiedBlob) else self._blob.descriptor()
        try:
            self._sessions.close(session, descriptor.digest, self._retries, stored_size=descriptor.size)
        except OcistreamError:
            # If the first answer was lost, the retry finds no session, because the first request had closed it.
            if not self._has_blob(descriptor):
                raise

    def _has_blob(self, descriptor: Descriptor) -> bool:
        try:
            return self._sessions.repository.has_blob(descriptor, self._retries)
        except OcistreamError:
            # The caller raises the error of the upload, which matters more.
            return False

    def _acknowledge(self, offset: int) -> None:
        self.acknowledged = offset
        if offset - self._progress_mark >= _MIN_PROGRESS:
            self._progress_mark = offset
            self._retries.reset()

    # -- recovering -------------------------------------------------------------------------------------

    def _recover(self, failure: NetworkError) -> None:
        """Prepare the next attempt, or raise `failure` if there is none."""
        status = (
            404
            if isinstance(failure, SessionLostError)
            else failure.status
            if isinstance(failure, RegistryError)
            else 0
        )
        offset: int | None = None
        has_chunked_coding = (
            self._body_size is not None and self._bodies.has_chunked_coding and self._method.kind != PUT
        )
        if has_chunked_coding and status in CHUNKED_CODING_REFUSALS and not is_session_lost(failure):
            self._retry_without_chunked_coding(failure, status)
            return
        if self._is_resume_refused(failure):
            self._is_resume_disabled = True
            if not self._retries.wait_for_retry(failure):
                raise failure
            self._restart(failure)
            return
        if status in {404, 416} and self._body_size is not None and not is_session_lost(failure):
            offset = self._query_offset()
        if self._is_method_refused(failure, status, offset):
            self._refusal = failure
            if self._explicit_method is not None:
                failure.hint = f"--upload {self._method} was asked for; --upload auto finds out what the registry takes"
                raise failure
            if self._change_method(failure, status, offset):
                return
            if status == 413:
                failure.hint = _TOO_LARGE_HINT
                raise failure
        if not is_transient(failure) or not self._retries.wait_for_retry(failure):
            raise failure
        self._resume(failure, offset)

    def _retry_without_chunked_coding(self, failure: NetworkError, status: int) -> None:
        """Continue with the same method and a Content-Length, for this blob and later ones."""
        host = self._sessions.host
        self._strategy.disable_chunked_coding(host)
        self._strategy.report(
            f"{host}: chunked transfer coding was answered with {status}; now with a Content-Length", 1
        )
        if (offset := self._query_offset()) is None:
            self._restart(failure)
        else:
            self._acknowledge(offset)

    def _is_resume_refused(self, failure: NetworkError) -> bool:
        """Return whether the registry refuses to resume an upload, or has joined its parts wrongly."""
        if not isinstance(failure, RegistryError) or self._is_resume_disabled:
            return False
        if self._earlier_size is not None and is_resume_refusal(failure):
            return True
        if self._body_size is None:
            return self._is_upload_resumed and is_content_mismatch(failure)
        return self._is_body_resuming and failure.status in _CONTENT_RANGE_REFUSALS

    def _is_method_refused(self, failure: NetworkError, status: int, offset: int | None) -> bool:
        """Return whether the registry refused the method itself.

        A 404 to a PATCH may mean the session or the method. An error code (BLOB_UPLOAD_UNKNOWN) decides. Without it,
        the session was asked for its offset: if it exists, the method is refused; if not, a new session is tried once.
        """
        kind = UNSIZED_STREAM if self._method.kind == STREAM and not self._is_size_known else self._method.kind
        if self._body_size is None or status not in ALTERNATIVES[kind]:
            return False
        if status == 416:
            # If the registry has more bytes than expected, the offset was wrong, not the method.
            return offset is None or offset == self.acknowledged
        if status == 404 and offset is None:
            if is_session_lost(failure):
                return False
            was_suspect, self._is_session_suspect = self._is_session_suspect, True
            return was_suspect
        return True

    def _change_method(self, failure: NetworkError, status: int, offset: int | None) -> bool:
        """Switch to another upload method; return False if there is none."""
        host, refused = self._sessions.host, self._method
        # The upload of another blob may have found a better method in the meantime.
        method: UploadMethod | None = self._strategy.choose_method(host, is_size_known=self._is_size_known)
        if method in self._tried_methods:
            method = self._strategy.choose_next_method(
                host,
                refused,
                status,
                is_size_known=self._is_size_known,
                body_size=self._body_size or None,
                tried=self._tried_methods,
            )
        if method is None:
            return False
        self._strategy.set_method(host, method, is_size_known=self._is_size_known)
        self._tried_methods.add(method)
        self._method = method
        self._is_session_suspect = False
        sent = self._buffer.end
        if offset is None and PUT not in {refused.kind, method.kind}:
            offset = self._query_offset()
        if offset is None or PUT in {refused.kind, method.kind}:
            self._restart(failure)
        else:
            self._acknowledge(offset)
        resent = sent - self.acknowledged
        self._strategy.report(
            f"{host}: uploading by {refused} was answered with {status}; now by {method}"
            + (f", and {resent} bytes are sent again" if resent >= _MIN_REPORTED else ""),
            0 if resent >= _MIN_REPORTED else 1,
        )
        return True

    @property
    def _can_resume(self) -> bool:
        profile_allows = self._strategy.profile(self._sessions.host).can_resume
        return profile_allows and self._method.kind != PUT and not self._is_resume_disabled

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
        """Ask the registry for the offset; return None if it is unknown, impossible, or cannot be sent from.

        An offset is accepted only between the bytes that were acknowledged and those that were sent. Some registries
        report an offset that never changes or goes backwards; then the session counts as lost.
        """
        answer = self._state.query_offset(self._retries)
        if answer is None:
            return None
        session, offset = answer
        max_offset = max(self._sent_bytes, self._buffer.end) if self._earlier_size is None else self._earlier_size
        if not self.acknowledged <= offset <= max_offset or not (
            offset > self._buffer.end or self._buffer.can_seek(offset)
        ):
            return None
        self._state.move_to(session)
        return offset

    def _restart(self, failure: NetworkError) -> None:
        """Start again with a new session, or raise if the beginning of the blob cannot be read again."""
        self._state.replace(None)
        self._earlier_size = None
        if not self._buffer.can_seek(0):
            raise NetworkError(failure.message, hint=_PIPE_HINT) from failure
        self._sent_bytes = 0
        self.resumed_size = 0
        # `_progress_mark` stays: reaching the same offset again is no progress, or a registry that loses each session
        # would be retried for ever.
        self.acknowledged = 0
        self._is_upload_resumed = False


def upload_part(
    sessions: UploadSessions, state: UploadState, descriptor: Descriptor, offset: int, part: VerifiedBlob
) -> int:
    """Upload the part of a blob that begins at `offset`, if the blob's upload has reached that offset.

    Return how many bytes of the blob the registry has: its size if it is complete, 0 if the upload cannot stay open.
    The client verifies the part by its own digest; the registry verifies the blob when it closes the upload. A wrong
    part deletes the upload, because the registry may have stored some of its bytes.

    Raises:
        NetworkError, AuthenticationError: the registry failed or refused; the upload can be resumed.
        OcistreamError: an error of the part's own chunks; the session is deleted.
    """
    try:
        stored = _PartUpload(sessions, state, descriptor, offset, part).run()
    except BaseException as error:
        if is_interruption(error):
            state.release()
        else:
            state.try_delete()
        raise
    finally:
        state.delete_spare()
    if stored == descriptor.size:
        state.finish()
    elif stored:
        state.release()
    else:
        state.try_delete()
    return stored


def find_stored_size(sessions: UploadSessions, state: UploadState) -> int:
    """Return how many bytes of a blob the registry has in an upload of earlier runs; the upload does not change.

    Raises:
        NetworkError, AuthenticationError: the registry failed or refused.
    """
    try:
        if not state.is_from_earlier_run:
            state.try_delete()
            return 0
        answer = state.query_offset(sessions.repository.client.start_retries())
        return answer[1] if answer else 0
    finally:
        state.delete_spare()
        state.release()


class _PartUpload:
    def __init__(
        self, sessions: UploadSessions, state: UploadState, descriptor: Descriptor, offset: int, part: VerifiedBlob
    ) -> None:
        self._sessions = sessions
        self._state = state
        self._descriptor = descriptor
        self._offset = offset
        self._part = part
        self._strategy = sessions.strategy
        self._retries = sessions.repository.client.start_retries()
        explicit_method = self._strategy.explicit_method(sessions.repository.endpoint.settings.upload)
        self._method = explicit_method or self._strategy.choose_method(sessions.host, is_size_known=True)

    def run(self) -> int:
        profile = self._strategy.profile(self._sessions.host)
        if self._method.kind == PUT or not profile.can_resume:
            return 0
        stored = self._open_or_resume()
        end = self._offset + self._part.descriptor.size
        if stored is None or not self._state.is_recorded:
            return 0
        if self._offset <= stored < end:
            stored = self._send(stored, end, profile.largest_chunk)
        if stored == self._descriptor.size:
            self._close()
        return stored

    def _open_or_resume(self) -> int | None:
        """Return the offset of the blob's upload, opening one for a first part; None if there is no usable upload."""
        if self._state.is_from_earlier_run and (answer := self._state.query_offset(self._retries)) is not None:
            session, stored = answer
            if stored <= self._descriptor.size:
                self._state.move_to(session)
                return stored
        if self._offset:
            return None
        if self._state.session is not None and self._state.is_from_earlier_run:
            self._state.reopen(self._retries)
        elif self._state.session is None:
            self._state.move_to(self._sessions.open(self._retries))
        return 0

    def _send(self, stored: int, end: int, largest: int | None) -> int:
        max_body = self._method.chunk_size if self._method.kind == CHUNK else largest or end
        window = self._strategy.replay_buffer_size(reopenable=self._part.reopenable, is_size_known=True)
        with ReplayBuffer(self._part, window) as buffer:
            while stored < end:
                session = self._state.session
                if session is None or not buffer.can_seek(stored - self._offset):
                    return 0
                count = min(end - stored, max(max_body, session.min_chunk))
                buffer.seek(stored - self._offset)
                if self._part.is_interruptible and session.min_chunk <= window:
                    # Buffer the body first, so that the source cannot fail in the middle of the request.
                    count = buffer.fill_until_truncated(stored - self._offset, count)
                has_chunked_coding = not self._part.is_interruptible and self._strategy.can_use_chunked_coding(
                    self._sessions.host, end - self._offset
                )
                chunks = buffer.read(stored - self._offset, count)
                body = StreamedBody(chunks, ends_early=True) if has_chunked_coding else FixedLengthBody(chunks, count)
                try:
                    session, stated = self._sessions.patch(
                        session, body, self._retries, (stored, stored + count), stored_size=count
                    )
                except NetworkError as error:
                    if buffer.has_source_failed:
                        raise
                    if (
                        has_chunked_coding
                        and isinstance(error, RegistryError)
                        and error.status in CHUNKED_CODING_REFUSALS
                    ):
                        self._strategy.disable_chunked_coding(self._sessions.host)
                        offset = self._query_offset(self._offset + buffer.end)
                    else:
                        offset = self._recover(error, self._offset + buffer.end)
                    if offset is None:
                        return 0
                    stored = offset
                else:
                    self._state.move_to(session)
                    if body.failure is not None:
                        # The request was ended properly, so the registry has the bytes that were sent.
                        raise body.failure
                    # The registry may have stored less than was sent.
                    took_less = stated is not None and stored < stated < stored + count
                    stored = stated if took_less and stated is not None else stored + count
                    _raise_truncation(buffer)
            buffer.check_end()
        return stored

    def _recover(self, failure: NetworkError, sent: int) -> int | None:
        """Return the offset at which to continue after a failure; None if the registry takes no parts."""
        if not is_transient(failure) and isinstance(failure, RegistryError):
            # The registry may still accept the complete blob.
            return None
        if not is_transient(failure) or not self._retries.wait_for_retry(failure):
            raise failure
        return self._query_offset(sent)

    def _query_offset(self, sent: int) -> int | None:
        """Return the offset of the upload; None if it is unknown, or outside the bytes sent of this part."""
        answer = self._state.query_offset(self._retries)
        if answer is None or not self._offset <= answer[1] <= sent:
            return None
        self._state.move_to(answer[0])
        return answer[1]

    def _close(self) -> None:
        session = self._state.session
        assert session is not None, "what was sent went into it"  # noqa: S101 - see run
        try:
            self._sessions.close(session, self._descriptor.digest, self._retries, stored_size=self._descriptor.size)
        except OcistreamError as error:
            # If the first answer was lost, the retry finds no session, because the first request had closed it.
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
            # The caller raises the error of the upload, which matters more.
            return False


def _raise_truncation(buffer: ReplayBuffer) -> None:
    """Raise the error of the source, after all bytes before it were uploaded."""
    if buffer.truncation is not None:
        raise buffer.truncation
