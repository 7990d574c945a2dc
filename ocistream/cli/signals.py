"""Signals that end a run: the first one is raised once, where nothing is torn by it; others cannot do harm any more.

An exception that a handler raises comes out between any two instructions: within a `finally`, or where a Condition has
its lock and does not know it yet; and a second one comes out of whatever clears up after the first. So a handler raises
where that is safe, and else a thread asks the main thread, by another signal, until it stands somewhere safe. That
thread reads from a pipe which signals came, so that even a main thread that is deep in a library's call is no hindrance
to the last resort: who asks again later, as people do who wait, ends the process.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn

from ocistream.errors import TerminatedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

__all__ = ["ENDING", "Interruption", "Stop"]

#: The signals that end a run.
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: What the main thread is asked by. It is ignored where nobody handles it, and sent by nobody else unless asked to.
_NUDGE: Final = signal.SIGURG
#: Seconds between two such questions, between two looks at whether what was raised got lost, and between two looks of
#: who waits for something else.
_NUDGE_EVERY: Final = 0.01
_LOOK_EVERY: Final = 0.1
#: Seconds after which another signal is a person's impatience, and no longer the same ^C that came twice (from the
#: terminal, and from a wrapper that passes it on; or from `timeout` and `systemctl`, which send two).
_IMPATIENT_AFTER: Final = 0.5
#: Seconds that are given to what is short as a rule, such as clearing up after an error, before it is interrupted.
_SHORTLY: Final = 1.0
#: Seconds that are given to settling what can be settled, when the process ends without waiting for anything.
_LAST_MOMENTS: Final = 1.0
#: Whose functions are never left in their middle: they hold locks that only they know of, or have made what only they
#: can remove. None of them waits long in the main thread; but see `Stop`.
_WHOLE: Final = frozenset(
    {
        "_frozen_importlib",
        "_frozen_importlib_external",
        "_weakrefset",
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "ocistream.streams.partial_files",
        "ocistream.registry.upload_records",
        "queue",
        "threading",
        "weakref",
    }
)
#: Where a file or a lock has been taken, or is being let go, and nobody else knows it yet.
_BRIEF: Final = frozenset({"__enter__", "__exit__", "__del__"})


class Interruption:
    """The signals of one run of `main`, in the main thread.

    `settle` is called, in a thread of its own, before a process is
    ended whose main thread will not do it.
    """

    def __init__(self, settle: Callable[[BaseException], object]) -> None:
        """Begin with none; `begin` makes it listen."""
        self._settle = settle
        #: Which came, by either thread that saw it; only the first counts.
        self._came: list[int] = []
        self._since: float | None = None
        self._may_raise = False
        self._raised: BaseException | None = None
        self._telling = _thread.allocate_lock()
        self._before: dict[int, Any] = {}
        self._writer = -1
        self._main = threading.get_ident()

    def begin(self) -> None:
        """Listen, but raise nothing yet. A signal that is ignored (by `nohup`, or in a shell's background) stays so."""
        global _current  # noqa: PLW0603 - signals are the process's
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            _thread.start_new_thread(self._watch, (reader,))
        except RuntimeError:
            # There are to be no more threads here: signals go on to do what they did before.
            os.close(reader)
            os.close(writer)
            return
        self._writer = writer
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _current = self
        self._before[_NUDGE] = signal.signal(_NUDGE, self._strike)
        for number in ENDING:
            # Who was started by nohup ignores SIGHUP, and goes on to.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._arrives)

    @property
    def first(self) -> int | None:
        """The number of the one that came first, if one came."""
        return self._came[0] if self._came else None

    def end(self) -> None:
        """Have the signals do what they did before."""
        global _current  # noqa: PLW0603 - the same
        self.hold()
        _current = None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._writer >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._writer)

    def allow(self) -> None:
        """Let the first signal be raised, from now on or when it comes."""
        self._may_raise = True

    def hold(self) -> None:
        """Let nothing be raised any more."""
        self._may_raise = False

    def lost(self, error: BaseException | None) -> None:
        """Raise it again: it came out where Python can raise nothing."""
        if error is not None and error is self._raised:
            self._raised = None

    def error(self) -> BaseException | None:
        """Give the exception that the first signal is, if one came."""
        if self.first is None:
            return None
        return KeyboardInterrupt() if self.first == signal.SIGINT else TerminatedError(128 + self.first)

    def conclude(self) -> None:
        """Let nothing be raised any more, since the caller knows how it ended; unless another thread says so already.

        Then that one ends the process, and this does not return.
        """
        self.hold()
        while not self._telling.acquire(timeout=_LAST_MOMENTS):
            pass

    def check(self) -> None:
        """Raise what is to be raised, if it is asked in the main thread: here it is safe."""
        if threading.get_ident() == self._main and self._is_due():
            self._raise()

    # -- in the main thread ------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        return self._may_raise and self.first is not None and self._raised is None

    def _raise(self) -> NoReturn:
        error = self._raised = self.error()
        assert error is not None  # noqa: S101 - it is due
        raise error

    def _strike(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's form
        patient = self._since is None or time.monotonic() - self._since < _SHORTLY
        if self._is_due() and not _is_delicate(frame, patient=patient):
            self._raise()

    def _arrives(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
        self._strike(number, frame)

    # -- in the watching thread --------------------------------------------------------------------------

    def _watch(self, reader: int) -> None:
        """Read which signals came, until the other end is closed."""
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        next_nudge = 0.0
        while True:
            if poll.poll(self._pause()):
                came = os.read(reader, 64)
                if not came:
                    os.close(reader)
                    return
                for number in came:
                    if number in ENDING:
                        self._arrived(number)
            # The question is a signal as well, and comes back by the pipe.
            if self._is_due() and (now := time.monotonic()) >= next_nudge:
                next_nudge = now + _NUDGE_EVERY
                signal.pthread_kill(self._main, _NUDGE)

    def _pause(self) -> float | None:
        """Say for how many milliseconds to wait for another signal."""
        if self.first is None:
            return None
        return 1000 * (_NUDGE_EVERY if self._is_due() else _LOOK_EVERY)

    def _arrived(self, number: int) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._came.append(number)
        elif now - self._since >= _IMPATIENT_AFTER:
            # What is to be settled may itself wait for what the main thread holds.
            _thread.start_new_thread(self._leave, ())
            time.sleep(_LAST_MOMENTS)
            os._exit(128 + self._came[0])

    def _leave(self) -> None:
        error = self.error()
        if error is not None and self._telling.acquire(blocking=False):
            self._settle(error)
            os._exit(128 + self._came[0])


class Stop(threading.Event):
    """An event that the main thread can be interrupted in while it waits; in another one `wait` is left whole."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or so many seconds have passed; say whether it is set."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if _current is not None:
                _current.check()
            left = _LOOK_EVERY if until is None else until - time.monotonic()
            if super().wait(max(0.0, min(left, _LOOK_EVERY))):
                return True
            if until is not None and left <= _LOOK_EVERY:
                return False


_current: Interruption | None = None


def _is_delicate(frame: FrameType | None, *, patient: bool) -> bool:
    """Say whether what is done now had better be done with first; of the `patient`, whatever is short is waited for."""
    if patient and frame is not None:
        # Where an error is being handled, something is cleared up.
        is_between = frame.f_code.co_name in _BRIEF or frame.f_globals.get("__name__") == "contextlib"
        if is_between or sys.exc_info()[0] is not None:
            return True
    while frame is not None:
        if frame.f_globals.get("__name__") in _WHOLE:
            return True
        frame = frame.f_back
    return False
