"""How each host takes uploads: what the user says, what was learnt in this run or an earlier one, else its profile.

One ladder serves all uploads of a transfer, from any thread, so that what one blob finds out the others need not. It
sends nothing: `ocistream.registry.upload` tells it what was refused and what went well.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.registry.learnt_hosts import Facts, State
from ocistream.registry.profiles import UNKNOWN, Profile, profile_by_answer, profile_of
from ocistream.registry.upload_methods import CHUNK, PUT, REFUSED, STREAM, UNSIZED, Rung, parse_rung

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["Ladder"]

#: How many blobs move at once where nobody says otherwise.
_JOBS: Final = 4


class Ladder:
    """The rungs of every host. Safe for several threads. Sizes are in bytes."""

    def __init__(
        self,
        *,
        forced: Rung | None = None,
        jobs: int = _JOBS,
        state: State | None = None,
        tell: Callable[[str, int], None] = lambda _message, _level: None,
        configured: Callable[[str], Profile | None] = lambda _host: None,
    ) -> None:
        """Take what the user forces, how many blobs move at once, and where facts are kept.

        `configured` gives what kind of registry a host is, where the user has said so: its answers are not asked then.
        `tell` is told what becomes of uploads, with the verbosity from which on it is worth saying.
        """
        self.tell = tell
        self._configured = configured
        self._forced = forced
        self._jobs = max(jobs, 1)
        self._state = state or State(None)
        self._lock = threading.Lock()
        self._profiles: dict[str, Profile] = {}
        self._kept: dict[str, Facts] | None = None
        #: Host and whether sizes are known -> the rung that was come to in this run.
        self._reached: dict[tuple[str, bool], Rung] = {}
        self._used: dict[str, str] = {}
        #: Hosts that have refused the chunked transfer coding.
        self._uncoded: set[str] = set()

    @property
    def used(self) -> Mapping[str, str]:
        """How blobs were uploaded last, by host, as `--upload` has it."""
        return dict(self._used)

    def window(self, *, replayable: bool, sized: bool) -> int:
        """Say how much of one blob may be held: what can be read once only comes from one pipe, which has it all.

        What can be read again needs next to nothing: more than that is lost in the kernel, where a connection breaks.
        Of unknown size, it is compressed meanwhile, and may have to go up in chunks, which are held.
        """
        if not replayable:
            return limits.UPLOAD_MEMORY
        return limits.CHUNK if sized else max(limits.CHUNK, limits.UPLOAD_MEMORY // (2 * self._jobs))

    def profile(self, host: str) -> Profile:
        """Give what is known of a host."""
        with self._lock:
            if host not in self._profiles:
                self._profiles[host] = self._configured(host) or profile_of(host)
            return self._profiles[host]

    def saw(self, host: str, header: Callable[[str], str | None]) -> None:
        """Look at an answer of a host: some say what they are. `header` gives a header by its name.

        A registry that loses broken uploads sends neither Server nor Via: these come from a proxy before it, such as
        nginx with its client_max_body_size. It refuses a body that is too large at once only if its length is stated.
        """
        server = header("Server")
        if (server is not None and not server.startswith("ocistream")) or header("Via") is not None:
            self._uncoded.add(host)
        if (
            self.profile(host) is UNKNOWN
            and self._configured(host) is None
            and (shown := profile_by_answer(header)) is not None
        ):
            with self._lock:
                self._profiles[host] = shown

    def forced(self, configured: str | None) -> Rung | None:
        """Give what the user wants, by option or in the configuration of a host, or None: then it is found out.

        Raises:
            UsageError: the configuration is malformed.
        """
        return self._forced or (parse_rung(configured) if configured else None)

    def rung(self, host: str, *, sized: bool) -> Rung:
        """Say where to begin with a blob, of which the size is known or not."""
        learnt = self._facts(host)
        with self._lock:
            reached = self._reached.get((host, sized)) or (None if sized else self._reached.get((host, True)))
        found = reached or _parsed(learnt.sized if sized else learnt.unsized or learnt.sized)
        if found is None or (found.kind == PUT and not sized):
            # Without its digest a blob has no PUT of its own.
            found = self._first(host, sized=sized)
        return found

    def below(
        self, host: str, refused: Rung, status: int, *, sized: bool, body: int | None, tried: Collection[Rung]
    ) -> Rung | None:
        """Say what to try when a way was refused with this status, for a body of so many bytes; None if nothing."""
        way = UNSIZED if refused.kind == STREAM and not sized else refused.kind
        allowed = self.profile(host).rungs
        for kind in REFUSED[way].get(status, ()):
            rung = Rung(kind) if kind != CHUNK else self._chunk(host, refused, body)
            if rung is None or rung in tried or (kind == PUT and not sized):
                continue
            if kind in allowed or kind == refused.kind:
                return rung
        return None

    def is_coded(self, host: str, size: int) -> bool:
        """Return whether bodies of known length are sent to a host in the chunked transfer coding.

        That is so for blobs of a `size` that is worth keeping (`Profile.loses_broken`).
        """
        return size >= limits.WORTH_KEEPING and self.profile(host).loses_broken and host not in self._uncoded

    def refuses_coding(self, host: str) -> None:
        """Send every body of known length to this host with a Content-Length from now on."""
        self._uncoded.add(host)

    def reach(self, host: str, rung: Rung, *, sized: bool) -> None:
        """Have every blob after this one begin here."""
        with self._lock:
            self._reached[host, sized] = rung

    def worked(self, host: str, rung: Rung, *, sized: bool) -> None:
        """Keep for the next run how a blob was uploaded, or forget what is no news any more."""
        with self._lock:
            self._used[host] = str(rung)
            found_out = self._reached.get((host, sized)) == rung
        if not found_out or self._forced:
            return
        first = self._first(host, sized=sized) == rung
        facts = self._facts(host)
        fact = "" if first else str(rung)
        news = replace(facts, sized=fact) if sized else replace(facts, unsized=fact)
        if (news.sized, news.unsized) != (facts.sized, facts.unsized):
            with self._lock:
                self._known()[host] = news
            self._state.keep(host, news if news.sized or news.unsized else None)

    def _first(self, host: str, *, sized: bool) -> Rung:
        """Give the rung to begin with where nothing was learnt."""
        kind = next((kind for kind in self.profile(host).rungs if sized or kind != PUT), STREAM)
        return (self._chunk(host) if kind == CHUNK else Rung(kind)) or Rung(STREAM)

    def _chunk(self, host: str, refused: Rung | None = None, body: int | None = None) -> Rung | None:
        """Give chunks that are smaller than what was refused; None where those would be too small to be of any use."""
        size = refused.size if refused is not None and refused.kind == CHUNK else limits.UPLOAD_MEMORY
        size = min(size, self.profile(host).largest_chunk or size)
        while body is not None and size >= body > limits.MIN_UPLOAD_CHUNK:
            size //= 2
        return Rung(CHUNK, size) if size >= limits.MIN_UPLOAD_CHUNK else None

    def _facts(self, host: str) -> Facts:
        with self._lock:
            return self._known().get(host, Facts())

    def _known(self) -> dict[str, Facts]:
        if self._kept is None:
            self._kept = self._state.facts()
        return self._kept


def _parsed(text: str) -> Rung | None:
    """Read a rung out of the state file, which anybody may have edited: what could not have been learnt is no fact."""
    rung = None
    with contextlib.suppress(UsageError):
        # More than UPLOAD_MEMORY is malformed.
        rung = parse_rung(text) if text else None
    return None if rung is not None and rung.kind == CHUNK and rung.size < limits.MIN_UPLOAD_CHUNK else rung
