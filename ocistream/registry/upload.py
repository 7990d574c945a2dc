"""Upload one blob, or a part of one, into one session. `Upload.run` is the state machine.

It resumes or opens a session, sends the bytes by one PUT or by PATCHes, and closes the session with the digest. After a
failed request, `_recover` decides what is sent again. If the verified chunks raise, the session is never closed.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

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
    TruncatedError,
    UnsupportedError,
)
from ocistream.http.adapter import FixedLengthBody, StreamedBody
from ocistream.http.errors import TOO_LARGE_HINT
from ocistream.notices import notify
from ocistream.process_exit import OpenUpload
from ocistream.registry.profiles import CHUNK, PUT
from ocistream.registry.replay_buffer import ReplayBuffer
from ocistream.registry.upload_session import SessionLostError
from ocistream.registry.upload_strategy import CHUNKED_CODING_REFUSALS, UploadMethod, list_alternatives
from ocistream.sizes import format_size
from ocistream.transfer.interfaces import Access

if TYPE_CHECKING:
    from ocistream.registry.repository import Repository
    from ocistream.registry.upload_session import UploadSession
    from ocistream.registry.upload_strategy import HostStrategy
    from ocistream.streams.synchronization import Budget
    from ocistream.transfer.interfaces import NewBlob, VerifiedBlob

#: Bytes of progress after which the retry counter is reset.
_MIN_PROGRESS: Final = limits.CHUNK_SIZE
#: From this many bytes on, sending bytes again is reported without -v.
_MIN_REPORTED: Final = limits.MIB
#: Statuses by which a registry may refuse to resume an upload: one that accepts a stream may refuse a Content-Range.
_RESUME_REFUSALS: Final = frozenset({400, 405, 409, 410, 411, 412, 422, 501})
#: Error codes for an upload whose bytes do not match the digest. The bytes that this client sent were verified.
_MISMATCH_CODES: Final = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"})
#: Statuses that concern the client's rights, not the content: of the registry, its storage or a proxy.
_AUTH_STATUSES: Final = frozenset({401, 403, 407})
#: Errors after which an upload can be resumed, because nothing was found wrong with it.
_INTERRUPTIONS: Final = (
    AuthenticationError,
    CancelledError,
    LocalDiskError,
    NetworkError,
    TruncatedError,
)
_PIPE_HINT: Final = (
    "a pipe cannot be read again: push from a file, or use --upload chunk=8MiB, which buffers "
    "each chunk until the registry has it"
)


class _PartRefusedError(Exception):
    """The registry does not accept this part of a blob; it may still accept the complete blob."""


@dataclass(slots=True)
class _Request:
    """One request with a body.

    `size` is the size of the body in bytes, 0 if it is unknown. `span` is the offset of its first byte and of the byte
    after its last, if the request states them. `hides_known_size` says that it uses the chunked transfer coding
    although its length is known. `is_resuming` says that it continues bytes of an earlier request. `has_failed` says
    that the registry may have lost bytes that it confirmed before.
    """

    body: StreamedBody
    size: int
    span: tuple[int, int] | None = None
    hides_known_size: bool = False
    is_resuming: bool = False
    has_failed: bool = False


class Upload:
    """The upload of one blob, or of a part of one, to one repository. Sizes and offsets are in bytes of the blob.

    `acknowledged` is the offset up to which the registry has confirmed the bytes. `resumed_size` is how many bytes an
    earlier run had uploaded.

    What `_recover` does after a failed request, the first line that applies:

    | failure | next attempt | changes |
    |---|---|---|
    | chunked coding refused | the same method with a Content-Length, from the registry's offset | `_strategy` |
    | resume refused, or parts joined wrongly | after a wait, in a new session | `_is_resume_disabled` |
    | first 404, and the registry has no offset | as after a temporary failure | `_has_excused_404` |
    | method refused | another method, from the registry's offset or 0 | `_method`, `_tried_methods`, `_refusal` |
    | method refused, none is left | as its status says: temporary or permanent | `_refusal` |
    | temporary | after a wait, from the registry's offset; without one, in a new session | `_retries` |
    | permanent, or the user chose the refused method | none: the failure is raised | |

    An offset sets `acknowledged` and `_has_continued`. A new session resets both, `_sent` and `resumed_size`; without
    the first bytes of the content it is not possible.
    """

    def __init__(
        self,
        repository: Repository,
        strategy: HostStrategy,
        session: UploadSession,
        content: VerifiedBlob | NewBlob,
        memory: Budget | None = None,
    ) -> None:
        """Take the session and the bytes to upload; `memory` is for the buffer. Send no request."""
        self._repository = repository
        self._registry = repository.endpoint.registry
        self._strategy = strategy
        self._session = session
        self._content = content
        self._is_size_known = content.end is not None
        #: Whether the content is a complete blob that fits into the buffer, and no earlier run has uploaded some of it.
        self._is_small = (
            self._is_size_known
            and not (content.is_part or session.is_from_earlier_run)
            and content.descriptor.size <= limits.MAX_BUFFERED_BLOB
        )
        self._buffer = ReplayBuffer(
            content, strategy.replay_buffer_size(content.access, is_size_known=self._is_size_known), memory
        )
        self._retries = repository.client.start_retries(repository.endpoint)
        self._method = strategy.explicit_method or self._choose_method()
        #: One PUT is for complete blobs only.
        self._tried_methods = {self._method, *([UploadMethod(PUT)] if content.is_part else [])}
        #: Whether every request must get a proper end even if the source fails: distribution 2.8 neither resumes nor
        #: deletes an upload after a broken request. Then a body states no length, or is buffered before it is sent.
        #: This is for a connection that may break, and for a pipe if the user chose chunks. Another pipe keeps a stated
        #: length, so that a proxy can refuse a layer that is too large before its first byte.
        self._must_end_requests = self._is_size_known and (
            content.access is Access.RESUMABLE
            or (strategy.explicit_method is not None and self._method.kind == CHUNK and content.access is Access.ONCE)
        )
        self.acknowledged = 0
        self.resumed_size = 0
        #: Whether the session was closed with the digest: the registry has verified the complete blob.
        self._is_closed = False
        #: Confirmed bytes when the retry counter was last reset.
        self._progress_mark = 0
        #: How far this run has sent into this session.
        self._sent = 0
        #: The request with a body that is being sent or has failed.
        self._request: _Request | None = None
        #: Whether a new session was already answered with 404; at the second 404 the method is refused.
        self._has_excused_404 = False
        #: Whether this run has continued bytes of an earlier request.
        self._has_continued = False
        #: Whether the registry refused to resume an upload.
        self._is_resume_disabled = False
        #: The refusal of the method; the same command would be refused again.
        self._refusal: NetworkError | None = None

    def run(self) -> int:
        """Upload the content; return how many bytes of the blob the registry has now.

        After a part that is not the last one, the session stays open for the next part. The result is 0 if the registry
        does not accept the part, and less than the part's offset if the bytes before it are missing. An interrupted
        upload is left to a later run if it can be resumed; otherwise its session is deleted.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            UnsupportedError: one PUT was requested, but the digest is known only at the blob's end.
            IntegrityError: the parts of the blob, joined by the registry, are not the blob.
            OcistreamError: an error of the content's own chunks.
        """
        open_upload = OpenUpload(
            self._registry, self._is_worth_resuming, stored_size=self._safe_size, can_end=self._can_end_request
        )
        try:
            with contextlib.closing(self._buffer):
                self._run()
        except BaseException as error:
            if error is not self._refusal and _is_interruption(error) and self._is_worth_resuming():
                self._session.release()
                open_upload.leave_open()
            else:
                open_upload.abandon()
                self._session.try_delete()
                open_upload.remove()
            if isinstance(error, _PartRefusedError):
                return 0
            raise
        finally:
            self._session.delete_spare()
        open_upload.remove()
        if self._is_closed:
            self._session.finish()
            # Small blobs count only if there is no larger one.
            if not self._is_small or self._strategy.method_used is None:
                self._strategy.method_used = self._method
        else:
            self._session.release()
        return self.acknowledged

    def _choose_method(self) -> UploadMethod:
        return self._strategy.choose_method(is_size_known=self._is_size_known, is_small=self._is_small)

    def _run(self) -> None:
        if self._method.kind == PUT and not self._is_size_known:
            msg = "a recompressed layer cannot be uploaded with one PUT: its digest is unknown until its end"
            raise UnsupportedError(msg, hint="omit --upload, or use stream or chunk=SIZE")
        self._begin()
        if self.acknowledged < self._content.start:
            # The part before this one is missing.
            return
        while (failure := self._attempt()) is not None:
            self._recover(failure)
            self._request = None
        if self._content.is_part and not self._is_closed and not self._session.is_recorded:
            # A later Location cannot be stored: the next part would not find the session.
            raise _PartRefusedError

    def _begin(self) -> None:
        """Resume the session of an earlier run; open another one if the registry does not have it or its offset.

        The source of a complete blob is read from its first byte all the same, because it must be verified.
        """
        content, is_from_earlier_run = self._content, self._session.is_from_earlier_run
        offset = self._query_offset() if is_from_earlier_run and self._can_resume else None
        if content.is_part and (not self._can_resume or (offset is None and content.start)):
            raise _PartRefusedError
        if offset is not None:
            self._acknowledge(offset)
            self.resumed_size = offset
            if offset:
                self._report(f"resumed {format_size(offset)} of {{size}} of {{blob}}", offset)
        elif is_from_earlier_run:
            self._session.reopen(self._retries)
            self._retries.reset()
            self._report("cannot resume the earlier upload of {blob}: sending all {size} again", content.end or 0)

    def _report(self, message: str, count: int) -> None:
        """Report what happens to a complete blob; without -v only if `count` bytes are worth it.

        `message` has the placeholders `{blob}` and `{size}`.
        """
        if self._is_size_known and not self._content.is_part:
            blob = self._content.descriptor
            text = message.format(blob=blob.digest, size=format_size(blob.size))
            notify(f"{self._registry}: {text}", level=0 if count >= _MIN_REPORTED else 1)

    @property
    def _can_resume(self) -> bool:
        return self._strategy.profile.can_resume and self._method.kind != PUT and not self._is_resume_disabled

    # -- the state that other threads ask for ------------------------------------------------------------

    def _is_worth_resuming(self) -> bool:
        """Return whether a later run can resume this upload."""
        # A recompressed layer from a pipe cannot be resumed. A blob from a pipe can: the same command mostly produces
        # the same archive, and otherwise the digest does not match and the next run starts at byte 0.
        if not self._session.is_recorded or not (self._content.access is Access.REPEATABLE or self._is_size_known):
            return False
        if not self._can_resume:
            return False
        sent = max(self.acknowledged, self._buffer.end)
        return sent >= limits.MIN_PARTIAL_SIZE or self._session.is_from_earlier_run or self._content.is_part

    def _safe_size(self) -> int:
        """Return how many bytes the registry has confirmed; 0 if the registry may lose them.

        Distribution 2.8 loses the upload if a body breaks off. A body that was not started, or was sent completely,
        does not break off.
        """
        request = self._request
        if request is None:
            return self.acknowledged
        is_safe = not request.has_failed and (request.body.is_finished or not request.body.is_started)
        return self.acknowledged if is_safe else 0

    def _can_end_request(self) -> bool:
        request = self._request
        return request is not None and request.body.can_end_early and not request.has_failed

    # -- sending ----------------------------------------------------------------------------------------

    def _attempt(self) -> NetworkError | None:
        """Send what the registry lacks; return None on success, or an error that may be recoverable."""
        end = self._content.end
        try:
            # The source of a complete blob is always read to its end, to verify it.
            if not self._content.is_part or end is None or self.acknowledged < end:
                self._send()
            if self._content.has_end and not self._is_closed:
                self._close()
        except NetworkError as error:
            if self._request is not None:
                # After a failed request, the registry may no longer have what it confirmed before.
                self._request.has_failed = True
            if self._buffer.has_source_failed:
                # The source has its own retries.
                raise
            return error
        return None

    def _send(self) -> None:
        """Send the content from the acknowledged offset on."""
        # The session is opened when the first bytes are there (skopeo#2101).
        self._buffer.open()
        if self._is_small:
            # All bytes: then the source cannot fail in the middle of a request.
            self._buffer.fill(0, limits.MAX_BUFFERED_BLOB)
        if self._method.kind == CHUNK or self._buffer.can_hold_all:
            # A small window would lose the beginning of the chunk, or of a blob that can be sent again completely.
            self._buffer.reserve(self._repository.client.cancelled)
        self._session.open(self._retries)
        if self._content.is_part and not self._session.is_recorded:
            raise _PartRefusedError
        if self._method.kind == PUT and not self._buffer.is_empty:
            self._put()
            return
        while (request := self._next_request()) is not None:
            self._patch(request)
        self._buffer.check_end()

    def _put(self) -> None:
        """Send the blob and close the session by one request."""
        blob = self._content.descriptor
        self._buffer.load(0)
        self._request = _Request(FixedLengthBody(self._buffer.read(0), blob.size), blob.size)
        self._session.put(blob.digest, self._retries, self._request.body, bytes_to_store=blob.size)
        self._request = None
        self._buffer.check_end()
        self.acknowledged = blob.size
        self._is_closed = True

    def _next_request(self) -> _Request | None:
        """Return the next request, from the acknowledged offset on; None at the content's end.

        Content of known size is streamed, up to the size limit. Its length is stated, unless the registry loses
        interrupted uploads (`can_use_chunked_coding`). Content of unknown size, or whose requests must get a proper
        end, is streamed to its end in the chunked transfer coding, if the method is a stream. Otherwise, or if the host
        refuses that coding, a body is buffered completely before it is sent.
        """
        offset, end = self.acknowledged, self._content.end
        self._buffer.load(offset)
        if self._buffer.is_empty or (end is not None and offset >= end):
            return None
        max_size = self._max_body_size(offset)
        # Whether one body may have all bytes of the blob.
        is_stream = max_size is None and not offset
        hides_known_size = False
        if end is not None and not self._must_end_requests:
            hides_known_size = self._strategy.can_use_chunked_coding(end - self._content.start)
            count = min(end - offset, max_size or end)
        elif is_stream and not (end and self._strategy.has_refused_chunked_coding):
            return _Request(StreamedBody(self._buffer.read(0)), end or 0, hides_known_size=end is not None)
        else:
            # The source must not fail in the middle of a request whose length is stated.
            is_stream = False
            count = self._buffer.fill_until_truncated(offset, max_size or limits.UPLOAD_MEMORY)
            if not count:
                return None
        # The end of the source is requested before the registry answers, so that a pipe can be read on.
        chunks = self._buffer.read(offset, None if offset + count == end else count)
        return _Request(
            StreamedBody(chunks) if hides_known_size else FixedLengthBody(chunks, count),
            count,
            # A stream states no range.
            None if is_stream else (offset, offset + count),
            hides_known_size=hides_known_size,
            is_resuming=offset > 0 and self._method.kind != CHUNK,
        )

    def _max_body_size(self, offset: int) -> int | None:
        """Return the largest size of the next body, or None for no limit."""
        if self._method.kind != CHUNK:
            return self._strategy.profile.largest_chunk if offset else None
        min_chunk = self._session.min_chunk
        if min_chunk > (limits.UPLOAD_MEMORY if self._is_size_known else self._buffer.capacity):
            # The registry's minimum exceeds the largest chunk: send the rest of the blob in one request.
            return None
        return max(self._method.chunk_size, min_chunk)

    def _patch(self, request: _Request) -> None:
        """Send a request of a stream or a chunk, and note how far the registry has the bytes."""
        self._request = request
        try:
            stated = self._session.patch(
                request.body, request.span, self._retries, bytes_to_store=request.size or math.inf
            )
        finally:
            sent = min(self._buffer.end, request.span[1]) if request.span else self._buffer.end
            self._sent = max(self._sent, sent)
        self._request = None
        end = request.span[1] if request.span else self._buffer.end
        if request.body.failure is not None:
            # The request was ended properly, so the registry has the bytes that were sent.
            self.acknowledged = max(self.acknowledged, sent if stated is None else min(stated, sent))
            raise request.body.failure
        if self._buffer.truncation is not None:
            self.acknowledged = end
            raise self._buffer.truncation
        # The registry may have stored less than was sent. It still has the bytes from before (regclient#627), and a
        # Range that does not change proves nothing (containers-roadmap#2831).
        if self._can_resume and request.span and stated is not None and self.acknowledged < stated < end:
            if stated - self.acknowledged < _MIN_PROGRESS or not self._buffer.can_load(stated):
                # Count this as a failure, or a registry that stores very little each time would never end the loop.
                msg = f"{self._registry} accepted {stated - request.span[0]} of {request.size} bytes"
                raise NetworkError(msg)
            end = stated
        self._acknowledge(end)

    def _close(self) -> None:
        """Close the session: the registry verifies the blob and makes it visible."""
        blob = self._content.descriptor
        try:
            self._session.put(blob.digest, self._retries, bytes_to_store=blob.size)
        except OcistreamError as error:
            # If the first answer was lost, the retry finds no session, because the first request had closed it.
            if not self._has_blob():
                if self._content.is_part and isinstance(error, RegistryError) and not _is_transient(error):
                    problem = f"{self._registry} received all parts, but together they have another digest"
                    msg = f"{blob.digest}: {problem}: {error.message}"
                    hint = "push all of its volumes together, or verify them together"
                    raise IntegrityError(msg, hint=hint) from error
                raise
        self._is_closed = True

    def _has_blob(self) -> bool:
        # The caller raises the error of the upload, which matters more.
        with contextlib.suppress(OcistreamError):
            return self._repository.has_blob(self._content.descriptor, self._retries)
        return False

    def _acknowledge(self, offset: int) -> None:
        self.acknowledged = offset
        if offset - self._progress_mark >= _MIN_PROGRESS:
            self._progress_mark = offset
            self._retries.reset()

    # -- after a failure --------------------------------------------------------------------------------

    def _recover(self, failure: NetworkError) -> None:
        """Prepare the next attempt, or raise: only this method decides what is sent again, and from which byte on."""
        status = _status_of(failure)
        request = self._request
        is_session_lost = _is_session_lost(failure)
        hides_known_size = request is not None and request.hides_known_size
        if hides_known_size and status in CHUNKED_CODING_REFUSALS and not is_session_lost:
            self._strategy.has_refused_chunked_coding = True
            message = f"chunked transfer coding was answered with {status}; using Content-Length"
            notify(f"{self._registry}: {message}", level=1)
            self._continue_or_restart(failure, self._query_offset(failure))
            return
        if self._is_resume_refused(failure):
            self._is_resume_disabled = True
            self._wait(failure)
            self._restart(failure)
            return
        offset: int | None = None
        if status in {404, 416} and request is not None and not is_session_lost:
            offset = self._query_offset(failure)
        if self._is_method_refused(failure, status, offset):
            # Without its frames, which have this object and its buffer: the upload may still succeed.
            self._refusal = failure.without_frames()
            is_explicit = self._strategy.explicit_method is not None
            if not is_explicit and self._change_method(failure, status, offset):
                return
            if status == 413 and (not is_explicit or 0 < self._method.chunk_size <= limits.MIN_UPLOAD_CHUNK):
                # `auto` would not try smaller chunks than these.
                failure.hint = f"{TOO_LARGE_HINT}, or use smaller requests with --upload chunk=SIZE"
                self._give_up(failure)
            if is_explicit:
                failure.hint = f"--upload {self._method} was requested; --upload auto finds what the registry accepts"
                self._give_up(failure)
        if not _is_transient(failure):
            self._give_up(failure)
        self._wait(failure)
        self._resume(failure, offset)

    def _wait(self, failure: NetworkError) -> None:
        """Wait for the next attempt, or give up if there is none."""
        if not self._retries.wait_for_retry(failure):
            self._give_up(failure)

    def _give_up(self, failure: NetworkError) -> NoReturn:
        """Raise the failure; or, for a part that the registry refused, `_PartRefusedError`."""
        is_refused_body = self._request is not None and isinstance(failure, RegistryError)
        if self._content.is_part and is_refused_body and not _is_transient(failure):
            raise _PartRefusedError from failure
        raise failure

    def _is_resume_refused(self, failure: NetworkError) -> bool:
        """Return whether the registry refuses to resume an upload, or has joined its parts wrongly."""
        if not isinstance(failure, RegistryError) or self._is_resume_disabled:
            return False
        request = self._request
        is_resuming = self._session.is_from_earlier_run or (request is not None and request.is_resuming)
        if is_resuming and failure.status in _RESUME_REFUSALS:
            return True
        return request is None and self._has_continued and not _MISMATCH_CODES.isdisjoint(failure.codes)

    def _is_method_refused(self, failure: NetworkError, status: int, offset: int | None) -> bool:
        """Return whether the registry refused the method itself.

        A 404 to a PATCH may mean the session or the method. An error code (BLOB_UPLOAD_UNKNOWN) decides. Without it,
        the session was asked for its offset: if it exists, the method is refused; if not, a new session is tried once.
        """
        if self._request is None or not list_alternatives(self._method, status, is_size_known=self._is_size_known):
            return False
        if status == 416:
            # If the registry has more bytes than expected, the offset was wrong, not the method.
            return offset is None or offset == self.acknowledged
        if status == 404 and offset is None:
            if _is_session_lost(failure):
                return False
            had_excused, self._has_excused_404 = self._has_excused_404, True
            return had_excused
        return True

    def _change_method(self, failure: NetworkError, status: int, offset: int | None) -> bool:
        """Switch to another upload method; return False if there is none."""
        refused, body_size = self._method, self._request.size if self._request is not None else 0
        # The upload of another blob may have found a better method in the meantime.
        method: UploadMethod | None = self._choose_method()
        if method in self._tried_methods:
            method = self._strategy.replace_method(
                refused,
                status,
                is_size_known=self._is_size_known,
                body_size=body_size or None,
                tried=self._tried_methods,
            )
        if method is None:
            return False
        self._tried_methods.add(method)
        self._method = method
        self._has_excused_404 = False
        sent = self._buffer.end
        if PUT in {refused.kind, method.kind}:
            offset = None
        elif offset is None:
            offset = self._query_offset(failure)
        self._continue_or_restart(failure, offset)
        resent = sent - self.acknowledged
        notify(
            f"{self._registry}: upload method {refused} was answered with {status}; using {method}"
            + (f", and {resent} bytes are sent again" if resent >= _MIN_REPORTED else ""),
            level=0 if resent >= _MIN_REPORTED else 1,
        )
        return True

    def _resume(self, failure: NetworkError, offset: int | None) -> None:
        """Continue at the registry's offset, or start again. Report which. If `offset` is None, ask the registry."""
        if not self._can_resume:
            offset = None
        elif offset is None and not _is_session_lost(failure):
            offset = self._query_offset(failure)
        sent = self._sent
        self._continue_or_restart(failure, offset)
        if offset is None:
            self._report(f"cannot resume the upload of {{blob}}: sending {format_size(sent)} of {{size}} again", sent)
        else:
            notify(f"{self._registry}: the upload resumes at byte {offset}", level=1)

    def _continue_or_restart(self, failure: NetworkError, offset: int | None) -> None:
        """Continue at an offset of the registry; without one, start again in a new session."""
        if offset is None:
            self._restart(failure)
            return
        # The registry may join the bytes of two requests wrongly.
        self._has_continued = self._has_continued or offset > 0
        self._acknowledge(offset)

    def _query_offset(self, failure: NetworkError | None = None) -> int | None:
        """Ask the registry for the offset; return None if it is unknown or impossible.

        An offset is accepted only between the bytes that were acknowledged and those that were sent; in a session of an
        earlier run, up to the blob's size. Some registries report an offset that never changes or goes backwards; then
        the session counts as lost.

        Raises:
            NetworkError: `failure`, if this run cannot read the bytes from the offset on again; a later run can.
        """
        offset = self._session.query_offset(self._retries)
        is_from_earlier_run = self._session.is_from_earlier_run
        max_offset = self._content.descriptor.size if is_from_earlier_run else self._sent
        if offset is None or not self.acknowledged <= offset <= max_offset:
            return None
        # An offset before the content is a gap between two parts.
        if offset > self._buffer.end or offset < self._content.start or self._buffer.can_load(offset):
            return offset
        if failure is not None and offset:
            # Without the request, the end of this process reports the offset.
            self._request = None
            self._acknowledge(offset)
            raise NetworkError(failure.message, hint=_PIPE_HINT) from failure
        return None

    def _restart(self, failure: NetworkError) -> None:
        """Start again with a new session, or raise if the beginning of the content cannot be sent again."""
        self._session.replace()
        if self._content.start:
            raise _PartRefusedError from failure
        if not self._buffer.can_load(0):
            raise NetworkError(failure.message, hint=_PIPE_HINT) from failure
        # Keep `_progress_mark`: the same offset does not count as progress again. Otherwise a registry that loses every
        # session would be retried for ever.
        self.acknowledged = self._sent = self.resumed_size = 0
        self._has_continued = False


def _is_interruption(error: BaseException) -> bool:
    """Return whether an upload can be resumed after this error, unless the method was refused."""
    if isinstance(error, NetworkError) and _is_session_lost(error):
        return False
    if isinstance(error, RegistryError) and not _is_transient(error):
        return error.status in _AUTH_STATUSES
    return isinstance(error, _INTERRUPTIONS)


def _status_of(failure: NetworkError) -> int:
    """Return the status of the registry's answer; 0 if there was none."""
    if isinstance(failure, RegistryError):
        return failure.status
    return 404 if isinstance(failure, SessionLostError) else 0


def _is_session_lost(error: NetworkError) -> bool:
    """Return whether the registry certainly no longer knows the session."""
    return isinstance(error, SessionLostError) and error.is_sure


def _is_transient(error: NetworkError) -> bool:
    """Return whether a failed upload is worth a retry: a server error or a broken connection."""
    if isinstance(error, RegistryError):
        # 501 means that the server will never support the request (RFC 9110, section 15.6.2).
        return (error.status >= 500 and error.status != 501) or error.status in {408, 416, 429}
    return not isinstance(error, PermanentNetworkError)
