"""One part of a blob on its way up: the upload is left open behind it, for a later run that brings the next part.

The bytes of a part are verified by the digest that is said of it; the whole has nobody seen but the registry, which
checks it when the upload is closed. It can go on only where the registry says how much it has, and where that can be
remembered; where not, all parts have to be sent together, which is `ocistream.registry.upload`'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError, NetworkError, OcistreamError, RegistryError
from ocistream.http.bodies import Body, StreamedBody
from ocistream.registry.upload_failures import is_interruption, may_pass
from ocistream.registry.upload_methods import CHUNK, NO_CODING, PUT
from ocistream.registry.upload_window import Feed

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor
    from ocistream.registry.upload_sessions import Sessions
    from ocistream.registry.upload_state import Ongoing
    from ocistream.transfer.interfaces import Blob

__all__ = ["reached", "send_part"]


def send_part(sessions: Sessions, ongoing: Ongoing, descriptor: Descriptor, offset: int, part: Blob) -> int:
    """Send the part of a blob that begins at `offset`, if that is where its upload has come to, or a part before it.

    Give how many bytes of the blob the registry has then: its size where it is there, 0 where its upload cannot be left
    open.

    Raises:
        NetworkError, AuthenticationError: the registry failed or refused; what was sent can be gone on with.
        OcistreamError: whatever the part's own chunks raise, with the session deleted.
    """
    try:
        reached = _Part(sessions, ongoing, descriptor, offset, part).run()
    except BaseException as error:
        if is_interruption(error):
            ongoing.leave()
        else:
            ongoing.abandon()
        raise
    finally:
        ongoing.needs_no_other()
    if reached == descriptor.size:
        ongoing.is_over()
    elif reached:
        ongoing.leave()
    else:
        ongoing.abandon()
    return reached


def reached(sessions: Sessions, ongoing: Ongoing) -> int:
    """Say how many bytes of a blob the registry has in an upload that earlier runs have begun; it stays as it is.

    Raises:
        NetworkError, AuthenticationError: it does not answer.
    """
    try:
        if not ongoing.is_found:
            ongoing.abandon()
            return 0
        found = ongoing.ask(sessions.repository.transport.tries())
        return found[1] if found else 0
    finally:
        ongoing.needs_no_other()
        ongoing.leave()


class _Part:
    def __init__(self, sessions: Sessions, ongoing: Ongoing, descriptor: Descriptor, offset: int, part: Blob) -> None:
        self._sessions = sessions
        self._ongoing = ongoing
        self._descriptor = descriptor
        self._offset = offset
        self._part = part
        self._ladder = sessions.repository.transport.ladder
        self._tries = sessions.repository.transport.tries()
        forced = self._ladder.forced(sessions.repository.endpoint.settings.upload)
        self._rung = forced or self._ladder.rung(sessions.host, sized=True)

    def run(self) -> int:
        profile = self._ladder.profile(self._sessions.host)
        if self._rung.kind == PUT or not profile.resumes:
            return 0
        reached = self._begin()
        end = self._offset + self._part.descriptor.size
        if reached is None or not self._ongoing.is_remembered:
            return 0
        if self._offset <= reached < end:
            reached = self._send(reached, end, profile.largest_chunk)
        if reached == self._descriptor.size:
            self._close()
        return reached

    def _begin(self) -> int | None:
        """Find where the upload has come to, or open one for a first part; None where there is none."""
        if self._ongoing.is_found and (found := self._ongoing.ask(self._tries)) is not None:
            session, reached = found
            if reached <= self._descriptor.size:
                self._ongoing.moves(session)
                return reached
        if self._offset:
            return None
        if self._ongoing.session is not None and self._ongoing.is_found:
            self._ongoing.begin_anew(self._tries)
        elif self._ongoing.session is None:
            self._ongoing.moves(self._sessions.open(self._tries))
        return 0

    def _send(self, reached: int, end: int, largest: int | None) -> int:
        most = self._rung.size if self._rung.kind == CHUNK else largest or end
        window = self._ladder.window(replayable=self._part.replayable, sized=True)
        with Feed(self._part, window) as feed:
            while reached < end:
                session = self._ongoing.session
                if session is None or not feed.can_give(reached - self._offset):
                    return 0
                count = min(end - reached, max(most, session.min_chunk))
                feed.seek(reached - self._offset)
                if self._part.may_break and session.min_chunk <= window:
                    # No request is begun that might break off in its middle.
                    count = feed.collect(reached - self._offset, count)
                coded = not self._part.may_break and self._ladder.is_coded(self._sessions.host, end - self._offset)
                chunks = feed.send(reached - self._offset, count)
                body = StreamedBody(chunks, ends_early=True) if coded else Body(chunks, count)
                try:
                    session, stated = self._sessions.patch(
                        session, body, self._tries, (reached, reached + count), stored=count
                    )
                except NetworkError as error:
                    if feed.has_failed:
                        raise
                    if coded and isinstance(error, RegistryError) and error.status in NO_CODING:
                        self._ladder.refuses_coding(self._sessions.host)
                        place = self._place(self._offset + feed.end)
                    else:
                        place = self._again(error, self._offset + feed.end)
                    if place is None:
                        return 0
                    reached = place
                else:
                    self._ongoing.moves(session)
                    if body.failure is not None:
                        # The request has its proper end all the same: the registry has what was sent.
                        raise body.failure
                    # Less than was sent may have been taken.
                    took_less = stated is not None and reached < stated < reached + count
                    reached = stated if took_less and stated is not None else reached + count
                    _check_not_broken(feed)
            feed.run_out()
        return reached

    def _again(self, failure: NetworkError, sent: int) -> int | None:
        """Find where to go on after a failure; None where the registry takes no parts.

        Raises:
            NetworkError: it failed too often.
        """
        if not may_pass(failure) and isinstance(failure, RegistryError):
            # Perhaps all of it at once is taken.
            return None
        if not may_pass(failure) or not self._tries.again(failure):
            raise failure
        return self._place(sent)

    def _place(self, sent: int) -> int | None:
        """Ask where the upload resumes; None where that is not known, or not in what was sent of this part."""
        found = self._ongoing.ask(self._tries)
        if found is None or not self._offset <= found[1] <= sent:
            return None
        self._ongoing.moves(found[0])
        return found[1]

    def _close(self) -> None:
        session = self._ongoing.session
        assert session is not None, "what was sent went into it"  # noqa: S101 - see run
        try:
            self._sessions.close(session, self._descriptor.digest, self._tries, stored=self._descriptor.size)
        except OcistreamError as error:
            # An answer that was lost: the retry finds no session, since the first try had closed it.
            if self._is_there():
                return
            if not isinstance(error, RegistryError) or may_pass(error):
                raise
            host = self._sessions.host
            msg = f"{self._descriptor.digest}: its parts, put together by {host}, are not that: {error.what}"
            raise IntegrityError(msg, hint="push all of its volumes together, or verify them together") from error

    def _is_there(self) -> bool:
        try:
            return self._sessions.repository.has_blob(self._descriptor, self._tries)
        except OcistreamError:
            # What became of the upload is the news, not that asking failed as well.
            return False


def _check_not_broken(feed: Feed) -> None:
    """Say that the source has broken off, once all that had come by then is there."""
    if feed.broken is not None:
        raise feed.broken
