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
from ocistream.http.bodies import Body
from ocistream.open_uploads import LeftOpen
from ocistream.registry.upload_bodies import Bodies
from ocistream.registry.upload_failures import finds_wrong, is_interruption, is_lost, may_pass, refuses_the_earlier
from ocistream.registry.upload_methods import CHUNK, NO_CODING, PUT, REFUSED, STREAM, UNSIZED
from ocistream.registry.upload_sessions import LostError
from ocistream.sizes import human_size
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from ocistream.http.bodies import StreamedBody
    from ocistream.http.retry import Tries
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_methods import Rung
    from ocistream.registry.upload_sessions import Session, Sessions
    from ocistream.registry.upload_state import Ongoing
    from ocistream.registry.upload_strategy import Ladder
    from ocistream.registry.upload_window import Feed
    from ocistream.transfer.interfaces import Unnamed

__all__ = ["Sending"]

#: So much more than before in the registry is progress, after which failures are counted anew.
_PROGRESS: Final = limits.CHUNK
#: To send so many bytes again is worth telling.
_COSTS: Final = limits.MIB
#: A registry that takes a stream, and answers so to a PATCH with a Content-Range, takes no such thing.
_NO_RESUMPTION: Final = frozenset({400, 405, 411, 501})
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

    def __init__(self, sessions: Sessions, blob: Blob | Unnamed, feed: Feed) -> None:
        """Take the blob and its bytes."""
        transport = sessions.repository.transport
        self._sessions = sessions
        self._ladder: Ladder = transport.ladder
        self._blob = blob
        self._feed = feed
        self._ongoing: Ongoing
        self._tries: Tries = transport.tries()
        self._forced = self._ladder.forced(sessions.repository.endpoint.settings.upload)
        self._rung: Rung = self._forced or self._ladder.rung(sessions.host, sized=self._sized)
        self._tried = {self._rung}
        self._bodies = Bodies(self._ladder, sessions.host, blob, feed, self._forced)
        self.acknowledged = 0
        #: The most that the registry ever had when failures were counted anew.
        self._mark = 0
        #: How far this run has sent into this session; the feed forgets that where it is begun again.
        self._sent = 0
        #: The size of the body under way, or 0 where it is not known; None where no body is.
        self._body: int | None = None
        #: How many bytes the registry had of an earlier run.
        self.resumed = 0
        #: A fresh session was not found already; a second time it is the method that is not known.
        self._suspect = False
        #: The body under way goes on with what another has begun, or the whole upload is made of such.
        self._resuming = self._stitched = False
        #: It turned out that this registry's uploads cannot be gone on with.
        self._refuses_to_resume = False
        #: How far an upload may be of which an earlier run has sent the beginning; None where this run sent all of it.
        self._sent_before: int | None = None
        #: By what the way of sending was refused; the same command would be refused again.
        self._refusal: NetworkError | None = None

    @property
    def _sized(self) -> bool:
        return self._feed.size is not None

    def run(self, ongoing: Ongoing) -> None:
        """Have the blob be there, in a session that is open already if there is one.

        An upload that was interrupted is left to a later run, if that may go on with it; another is deleted.

        Raises:
            NetworkError, AuthenticationError: the registry failed or refused.
            UnsupportedError: it was to be one PUT, and its digest is not known before its end.
            OcistreamError: whatever the blob's own chunks raise.
        """
        self._ongoing = ongoing
        left = LeftOpen(
            self._sessions.host, self._is_worth_keeping, stored=self._stored, can_end=lambda: self._bodies.ends_early
        )
        try:
            self._check_way()
            self._take_up()
            while (failure := self._attempt()) is not None:
                self._mend(failure)
        except BaseException as error:
            if error is not self._refusal and is_interruption(error) and self._is_worth_keeping():
                self._ongoing.leave()
                left.stays()
            else:
                left.is_over()
                self._ongoing.abandon()
            raise
        finally:
            self._ongoing.needs_no_other()
        left.is_over()
        self._ongoing.is_over()
        self._ladder.worked(self._sessions.host, self._rung, sized=self._sized)

    def _check_way(self) -> None:
        if self._rung.kind == PUT and not self._sized:
            msg = "a layer that is made on the way cannot be uploaded by one PUT: its digest is known at its end"
            raise UnsupportedError(msg, hint="leave --upload away, or choose stream or chunk=SIZE")

    # -- what an earlier run has begun, and what is left to a later one ----------------------------------

    def _take_up(self) -> None:
        """Go on with what an earlier run has sent, if the registry still has it and says how much that is.

        Raises:
            NetworkError, AuthenticationError: it does not answer this, nor to a new session.
        """
        if not self._ongoing.is_found:
            return
        self._sent_before = self._feed.size
        place = self._ask() if self._resumes else None
        if place is None:
            self._ongoing.begin_anew(self._tries)
            self._sent_before = None
            self._tries.reset()
            self._tell("cannot resume the earlier upload of {blob}: sending all {size} again", self._feed.size or 0)
            return
        self._acknowledge(place)
        self.resumed = place
        if place:
            self._tell(f"resumed {human_size(place)} of {{size}} of {{blob}}", place)

    def _tell(self, what: str, count: int) -> None:
        """Tell what becomes of the upload: always if it concerns a `count` of bytes worth telling, else with -v."""
        if isinstance(self._blob, Blob):
            descriptor = self._blob.descriptor
            text = what.format(blob=descriptor.digest, size=human_size(descriptor.size))
            self._ladder.tell(f"{self._sessions.host}: {text}", 0 if count >= _COSTS else 1)

    def _is_worth_keeping(self) -> bool:
        """Say whether a later run may go on with what was sent so far. Another thread may ask that, at any time."""
        # What is made on the way is not gone on with; what comes from a pipe may come from it again.
        if not self._ongoing.is_remembered or not (self._blob.replayable or isinstance(self._blob, Blob)):
            return False
        if not self._resumes:
            return False
        sent = max(self.acknowledged, self._feed.end)
        return sent >= limits.WORTH_KEEPING or self._ongoing.is_found

    def _stored(self) -> int:
        """Return how many bytes the registry has confirmed; 0 while a request with a body is under way."""
        return self.acknowledged if self._body is None else 0

    # -- what goes well ---------------------------------------------------------------------------------

    def _attempt(self) -> NetworkError | None:
        """Go on with the blob to its end; None if it is there, else what something may be done about."""
        self._body, self._bodies.ends_early, self._bodies.is_coded = None, False, False
        try:
            self._go()
        except NetworkError as error:
            if self._feed.has_failed:
                # What the source of the blob could not mend is not tried again here.
                raise
            return error
        return None

    def _go(self) -> None:
        session = self._ongoing.session
        if session is None:
            session = self._sessions.open(self._tries)
            self._ongoing.moves(session)
        if self._rung.kind == PUT and isinstance(self._blob, Blob) and not self._feed.is_empty:
            self._feed.seek(0)
            self._body = self._blob.descriptor.size
            body = Body(self._feed.send(0), self._body)
            self._sessions.close(session, self._blob.descriptor.digest, self._tries, body, stored=self._body)
            self._feed.run_out()
            return
        while not self._feed.is_empty:
            self._sent = max(self._sent, self._feed.end)
            part = self._bodies.next(self._rung, self.acknowledged, session.min_chunk)
            if part is None:
                break
            session = self._send_part(session, *part)
        self._feed.run_out()
        self._finish(session)

    def _send_part(self, session: Session, body: StreamedBody, span: tuple[int, int] | None) -> Session:
        self._body = span[1] - span[0] if span else self._feed.size or 0
        self._resuming = span is not None and self._rung.kind != CHUNK
        session, stated = self._sessions.patch(session, body, self._tries, span, stored=self._body or math.inf)
        self._ongoing.moves(session)
        self._body, self._bodies.ends_early = None, False
        if body.failure is not None:
            # The request has its proper end all the same: the registry has what was sent.
            sent = self._feed.end
            self.acknowledged = max(self.acknowledged, sent if stated is None else min(stated, sent))
            raise body.failure
        if self._feed.broken is not None:
            self.acknowledged = span[1] if span else self._feed.end
            raise self._feed.broken
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
        is_coded = self._body is not None and self._bodies.is_coded and self._rung.kind != PUT
        if is_coded and status in NO_CODING and not is_lost(failure):
            self._do_without_coding(failure, status)
            return
        if self._refuses_resumption(failure):
            self._refuses_to_resume = True
            if not self._tries.again(failure):
                raise failure
            self._renew(failure)
            return
        if status in {404, 416} and self._body is not None and not is_lost(failure):
            place = self._ask()
        if self._is_refused(failure, status, place):
            self._refusal = failure
            if self._forced is not None:
                failure.hint = f"--upload {self._rung} was asked for; --upload auto finds out what the registry takes"
                raise failure
            if self._step_down(failure, status, place):
                return
            if status == 413:
                failure.hint = _TOO_LARGE_HINT
                raise failure
        if not may_pass(failure) or not self._tries.again(failure):
            raise failure
        self._go_on(failure, place)

    def _do_without_coding(self, failure: NetworkError, status: int) -> None:
        """Continue in the same way with a Content-Length, here and for other blobs."""
        host = self._sessions.host
        self._ladder.refuses_coding(host)
        self._ladder.tell(f"{host}: chunked transfer coding was answered with {status}; now with a Content-Length", 1)
        if (place := self._ask()) is None:
            self._renew(failure)
        else:
            self._acknowledge(place)

    def _refuses_resumption(self, failure: NetworkError) -> bool:
        """Say whether the registry does not take what goes on with an upload, or has put it together wrongly."""
        if not isinstance(failure, RegistryError) or self._refuses_to_resume:
            return False
        if self._sent_before is not None and refuses_the_earlier(failure):
            return True
        if self._body is None:
            return self._stitched and finds_wrong(failure)
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
            if is_lost(failure):
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
        if place is None and self._resumes and not is_lost(failure):
            place = self._ask()
        if place is None or not self._resumes:
            sent = max(self._sent, self._feed.end)
            self._renew(failure)
            self._tell(f"cannot resume the upload of {{blob}}: sending {human_size(sent)} of {{size}} again", sent)
            return
        self._stitched = True
        self._acknowledge(place)
        self._ladder.tell(f"{self._sessions.host}: the upload resumes at byte {place}", 1)

    def _ask(self) -> int | None:
        """Ask the registry how far it is; None where it does not know, or says what cannot be so, or is of no use.

        Raises:
            OcistreamError: it does not answer, and the session may live still.
        """
        found = self._ongoing.ask(self._tries)
        if found is None:
            return None
        session, offset = found
        most = max(self._sent, self._feed.end) if self._sent_before is None else self._sent_before
        if not self.acknowledged <= offset <= most or not (offset > self._feed.end or self._feed.can_give(offset)):
            return None
        self._ongoing.moves(session)
        return offset

    def _renew(self, failure: NetworkError) -> None:
        """Begin again with a new session.

        Raises:
            NetworkError: the beginning of the blob cannot be had again.
        """
        self._ongoing.replace(None)
        self._sent_before = None
        if not self._feed.can_give(0):
            # The next run may as well begin with what this one has come to.
            self._ladder.worked(self._sessions.host, self._rung, sized=self._sized)
            raise NetworkError(failure.what, hint=_PIPE_HINT) from failure
        self._sent = 0
        self.resumed = 0
        # What was come to before is no progress: else a registry that loses each session would be tried for ever.
        self.acknowledged = 0
        self._stitched = False
