"""One blob's way up, whatever happens on it: rungs that are refused, connections that break, sessions that are lost.

The session is opened when the first bytes are there and not before (skopeo#2101). Chunks come verified: if they raise,
the upload is never closed. What was acknowledged is not sent again where the registry can say how far it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import (
    NetworkError,
    OcistreamError,
    RegistryError,
    UnsupportedError,
)
from ocistream.http.bodies import FixedLengthBody
from ocistream.open_uploads import OpenUpload
from ocistream.registry.upload_bodies import UploadBodies
from ocistream.registry.upload_failures import (
    is_content_mismatch,
    is_interruption,
    is_resume_refusal,
    is_session_lost,
    is_transient,
)
from ocistream.registry.upload_methods import ALTERNATIVES, CHUNK, CHUNKED_CODING_REFUSALS, PUT, STREAM, UNSIZED_STREAM
from ocistream.registry.upload_sessions import SessionLostError
from ocistream.sizes import format_size
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from ocistream.http.bodies import StreamedBody
    from ocistream.http.retry import Retries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_methods import UploadMethod
    from ocistream.registry.upload_sessions import UploadSession, UploadSessions
    from ocistream.registry.upload_state import UploadState
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.registry.upload_window import ReplayBuffer
    from ocistream.transfer.interfaces import NewBlob

__all__ = ["BlobUpload"]

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
