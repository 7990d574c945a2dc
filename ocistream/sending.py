"""One blob's way up, whatever happens on it: rungs that are refused, connections that break, sessions that are lost.

The session is opened when the first bytes are there and not before (skopeo#2101). Chunks come verified: if they raise,
the upload is never closed. What was acknowledged is not sent again where the registry can say how far it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.bodies import Body, StreamedBody
from ocistream.errors import (
    CancelledError,
    FinalNetworkError,
    NetworkError,
    OcistreamError,
    RegistryError,
    UnsupportedError,
)
from ocistream.interfaces import Blob
from ocistream.rungs import CHUNK, PUT, REFUSED, STREAM, UNSIZED
from ocistream.sessions import LostError

if TYPE_CHECKING:
    from ocistream.interfaces import Unnamed
    from ocistream.ladder import Ladder
    from ocistream.model import Descriptor
    from ocistream.retry import Tries
    from ocistream.rungs import Rung
    from ocistream.sessions import Session, Sessions
    from ocistream.window import Feed

__all__ = ["Sending"]

#: So much more than before in the registry is progress, after which failures are counted anew.
_PROGRESS: Final = limits.CHUNK
#: To send so many bytes again is worth telling.
_COSTS: Final = limits.MIB
#: A registry that takes a stream, and answers so to a PATCH with a Content-Range, takes no such thing.
_NO_RESUMPTION: Final = frozenset({400, 405, 411, 501})
#: What a registry says of an upload whose bytes are not the blob's. Ours were verified.
_WRONG_BYTES: Final = frozenset({"DIGEST_INVALID", "SIZE_INVALID", "BLOB_UPLOAD_INVALID"})
_PIPE_HINT: Final = (
    "what comes from a pipe cannot be sent again: push from a file, or with --upload chunk=8MiB, where each chunk is "
    "kept until the registry has it"
)
_TOO_LARGE_HINT: Final = (
    "the registry, or a proxy before it, bounds the body of a request (nginx: client_max_body_size): raise that, or "
    "try smaller ones with --upload chunk=SIZE"
)


class Sending:
    """One blob on its way into one repository. `acknowledged` is how many bytes of it the registry has."""

    def __init__(self, sessions: Sessions, blob: Blob | Unnamed, feed: Feed, opened: Session | None) -> None:
        """Take the blob, its bytes, and a session if one is open already."""
        transport = sessions.repository.transport
        self._sessions = sessions
        self._ladder: Ladder = transport.ladder
        self._blob = blob
        self._feed = feed
        self._session = opened
        self._tries: Tries = transport.tries()
        self._forced = self._ladder.forced(sessions.repository.endpoint.settings.upload)
        self._rung: Rung = self._forced or self._ladder.rung(sessions.host, sized=self._sized)
        self._tried = {self._rung}
        self.acknowledged = 0
        #: The most that the registry ever had when failures were counted anew.
        self._mark = 0
        #: The size of the body under way, or 0 where it is not known; None where no body is.
        self._body: int | None = None
        #: A fresh session was not found already; a second time it is the method that is not known.
        self._suspect = False
        #: The body under way goes on with what another has begun, or the whole upload is made of such.
        self._resuming = self._stitched = False
        #: It turned out that this registry's uploads cannot be gone on with.
        self._refuses_to_resume = False

    @property
    def _sized(self) -> bool:
        return self._feed.size is not None

    def run(self) -> None:
        """Have the blob be there.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            UnsupportedError: it was to be one PUT, and its digest is not known before its end.
            OcistreamError: whatever the blob's own chunks raise, with the session deleted.
        """
        if self._rung.kind == PUT and not self._sized:
            msg = "a layer that is made on the way cannot be uploaded by one PUT: its digest is known at its end"
            raise UnsupportedError(msg, hint="leave --upload away, or choose stream or chunk=SIZE")
        try:
            while (failure := self._attempt()) is not None:
                self._mend(failure)
        except BaseException:
            if self._session is not None:
                self._sessions.abandon(self._session)
            raise
        self._ladder.worked(self._sessions.host, self._rung, sized=self._sized)

    # -- what goes well ---------------------------------------------------------------------------------

    def _attempt(self) -> NetworkError | None:
        """Go on with the blob to its end; None if it is there, else what something may be done about."""
        self._body = None
        try:
            self._go()
        except NetworkError as error:
            if self._feed.has_failed:
                # What the source of the blob could not mend is not tried again here.
                raise
            return error
        return None

    def _go(self) -> None:
        if self._session is None:
            self._session = self._sessions.open(self._tries)
        if self._rung.kind == PUT and isinstance(self._blob, Blob) and not self._feed.is_empty:
            self._feed.seek(0)
            self._body = self._blob.descriptor.size
            body = Body(self._feed.send(0), self._body)
            self._sessions.close(self._session, self._blob.descriptor.digest, self._tries, body, stored=self._body)
            self._feed.run_out()
            return
        while not self._feed.is_empty and (part := self._next_part()) is not None:
            self._session = self._send_part(self._session, *part)
        self._feed.run_out()
        self._finish(self._session)

    def _next_part(self) -> tuple[StreamedBody, tuple[int, int] | None] | None:
        """Give the next body, and its range where that is to be stated; None where nothing is left to be sent."""
        offset, size = self.acknowledged, self._feed.size
        self._feed.seek(offset)
        if size is not None and offset >= size:
            return None
        most = self._most()
        if most is None and not offset:
            return (StreamedBody(self._feed.send(0)) if size is None else Body(self._feed.send(0), size)), None
        if size is None:
            count = self._feed.fill(offset, most or limits.UPLOAD_MEMORY)
        else:
            count = min(size - offset, most or size)
        if not count:
            return None
        return Body(self._feed.send(offset, count), count), (offset, offset + count)

    def _most(self) -> int | None:
        """Say how large the next body may be; None for any size."""
        largest = self._ladder.profile(self._sessions.host).largest_chunk
        if self._rung.kind != CHUNK:
            return largest if self.acknowledged else None
        least = self._session.min_chunk if self._session else 0
        if least > (limits.UPLOAD_MEMORY if self._sized else self._ladder.window(replayable=self._blob.replayable)):
            # Chunks of which none could be held: then all that is left goes in one.
            return None
        return max(self._rung.size, least)

    def _send_part(self, session: Session, body: StreamedBody, span: tuple[int, int] | None) -> Session:
        self._body = span[1] - span[0] if span else self._feed.size or 0
        self._resuming = span is not None and self._rung.kind != CHUNK
        session, stated = self._sessions.patch(session, body, self._tries, span, stored=self._body or math.inf)
        self._body = None
        end = span[1] if span else self._feed.end
        # Less than was sent may have been taken. But what it had before, it still has (regclient#627), and a Range that
        # stands still says nothing (containers-roadmap#2831).
        if self._resumes and span is not None and stated is not None and self.acknowledged < stated < end:
            if stated - self.acknowledged < _PROGRESS or not self._feed.can_give(stated):
                # A registry that takes next to nothing each time would be sent the rest again and again.
                msg = f"{self._sessions.host} took {stated - span[0]} of {end - span[0]} bytes"
                raise NetworkError(msg)
            end = stated
        self._acknowledge(end)
        return session

    def _finish(self, session: Session) -> None:
        descriptor = self._blob.descriptor if isinstance(self._blob, Blob) else self._blob.descriptor()
        try:
            self._sessions.close(session, descriptor.digest, self._tries, stored=descriptor.size)
        except OcistreamError:
            # An answer that was lost: the retry finds no session, since the first try had closed it.
            if not self._is_there(descriptor):
                raise

    def _is_there(self, descriptor: Descriptor) -> bool:
        try:
            return self._sessions.repository.has_blob(descriptor, self._tries)
        except OcistreamError:
            # What became of the upload is the news, not that asking failed as well.
            return False

    def _acknowledge(self, offset: int) -> None:
        self.acknowledged = offset
        if offset - self._mark >= _PROGRESS:
            self._mark = offset
            self._tries.reset()

    # -- what does not ----------------------------------------------------------------------------------

    def _mend(self, failure: NetworkError) -> None:
        """Make the next attempt a better one.

        Raises:
            NetworkError: there is none.
        """
        status = 404 if isinstance(failure, LostError) else failure.status if isinstance(failure, RegistryError) else 0
        place: int | None = None
        if self._refuses_resumption(failure):
            self._refuses_to_resume = True
            if not self._tries.again(failure):
                raise failure
            self._renew(failure)
            return
        if status in {404, 416} and self._body is not None and not _is_lost(failure):
            place = self._ask()
        if self._is_refused(failure, status, place):
            if self._forced is not None:
                hint = f"--upload {self._rung} was asked for; --upload auto finds out what the registry takes"
                raise _with_hint(failure, hint)
            if self._step_down(failure, status, place):
                return
            if status == 413:
                raise _with_hint(failure, _TOO_LARGE_HINT)
        if not _may_pass(failure) or not self._tries.again(failure):
            raise failure
        self._go_on(failure, place)

    def _refuses_resumption(self, failure: NetworkError) -> bool:
        """Say whether the registry does not take what goes on with an upload, or has put it together wrongly."""
        if not isinstance(failure, RegistryError) or self._refuses_to_resume:
            return False
        if self._body is None:
            return self._stitched and not _WRONG_BYTES.isdisjoint(failure.codes)
        return self._resuming and failure.status in _NO_RESUMPTION

    def _is_refused(self, failure: NetworkError, status: int, place: int | None) -> bool:
        """Say whether it is the way of sending that was refused, and not what happened on it."""
        way = UNSIZED if self._rung.kind == STREAM and not self._sized else self._rung.kind
        if self._body is None or status not in REFUSED[way]:
            return False
        if status == 416:
            # The registry has more than we thought: it was the offset that was wrong.
            return place is None or place == self.acknowledged
        if status == 404 and place is None:
            if _is_lost(failure):
                return False
            suspect, self._suspect = self._suspect, True
            return suspect
        return True

    def _step_down(self, failure: NetworkError, status: int, place: int | None) -> bool:
        """Take another rung; False if there is none."""
        host, before = self._sessions.host, self._rung
        # Another blob may have found it out meanwhile.
        rung: Rung | None = self._ladder.rung(host, sized=self._sized)
        if rung in self._tried:
            rung = self._ladder.below(
                host, before, status, sized=self._sized, body=self._body or None, tried=self._tried
            )
        if rung is None:
            return False
        self._ladder.reach(host, rung, sized=self._sized)
        self._tried.add(rung)
        self._rung = rung
        self._suspect = False
        sent = self._feed.end
        if place is None and PUT not in {before.kind, rung.kind}:
            place = self._ask()
        if place is None or PUT in {before.kind, rung.kind}:
            self._renew(failure)
        else:
            self._acknowledge(place)
        again = sent - self.acknowledged
        self._ladder.tell(
            f"{host}: uploading by {before} was answered with {status}; now by {rung}"
            + (f", and {again} bytes are sent again" if again >= _COSTS else ""),
            0 if again >= _COSTS else 1,
        )
        return True

    @property
    def _resumes(self) -> bool:
        known = self._ladder.profile(self._sessions.host).resumes
        return known and self._rung.kind != PUT and not self._refuses_to_resume

    def _go_on(self, failure: NetworkError, place: int | None) -> None:
        if place is None and self._resumes and not _is_lost(failure):
            place = self._ask()
        if place is None or not self._resumes:
            self._renew(failure)
            return
        self._stitched = True
        self._acknowledge(place)
        self._ladder.tell(f"{self._sessions.host}: the upload goes on at byte {place}", 1)

    def _ask(self) -> int | None:
        """Ask the registry how far it is; None where it does not know, or says what cannot be so, or is of no use."""
        if self._session is None:
            return None
        try:
            session, offset = self._sessions.offset(self._session, self._tries)
        except CancelledError:
            raise
        except OcistreamError:
            return None
        if offset is None:
            # Some bytes may be there all the same, to which others would be appended.
            return None
        if not self.acknowledged <= offset <= self._feed.end or not self._feed.can_give(offset):
            return None
        self._session = session
        return offset

    def _renew(self, failure: NetworkError) -> None:
        """Begin again with a new session.

        Raises:
            NetworkError: the beginning of the blob cannot be had again.
        """
        if self._session is not None:
            self._sessions.abandon(self._session)
        self._session = None
        if not self._feed.can_give(0):
            # The next run may as well begin with what this one has come to.
            self._ladder.worked(self._sessions.host, self._rung, sized=self._sized)
            raise NetworkError(failure.what, hint=_PIPE_HINT) from failure
        # What was come to before is no progress: else a registry that loses each session would be tried for ever.
        self.acknowledged = 0
        self._stitched = False


def _is_lost(error: NetworkError) -> bool:
    return isinstance(error, LostError) and error.is_sure


def _may_pass(error: NetworkError) -> bool:
    """Say whether an upload that failed so is worth another try: a server in trouble, or a connection that broke."""
    if isinstance(error, RegistryError):
        return error.status >= 500 or error.status in {408, 416, 429}
    return not isinstance(error, FinalNetworkError)


def _with_hint(error: NetworkError, hint: str) -> NetworkError:
    if isinstance(error, RegistryError):
        return RegistryError(error.what, status=error.status, codes=error.codes, hint=hint)
    return NetworkError(error.what, hint=hint)
