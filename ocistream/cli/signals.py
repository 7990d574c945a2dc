"""Signals that end a run: raise the first one once in the main thread, at a point where it breaks nothing.

A watcher thread reads signals from a pipe, and ends the process at a second signal if the main thread cannot.
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

__all__ = ["TERMINATION_SIGNALS", "InterruptibleEvent", "SignalHandler"]

#: The signals that end a run.
TERMINATION_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: What the main thread is asked by. It is ignored where nobody handles it, and sent by nobody else unless asked to.
_WAKE_SIGNAL: Final = signal.SIGURG
#: Seconds between two such questions, between two looks at whether what was raised got lost, and between two looks of
#: who waits for something else.
_WAKE_INTERVAL: Final = 0.01
_CHECK_INTERVAL: Final = 0.1
#: Seconds after which another signal is a person's impatience, and no longer the same ^C that came twice (from the
#: terminal, and from a wrapper that passes it on; or from `timeout` and `systemctl`, which send two).
_FORCED_EXIT_AFTER: Final = 0.5
#: Seconds that are given to what is short as a rule, such as clearing up after an error, before it is interrupted.
_CLEANUP_GRACE: Final = 1.0
#: Seconds that are given to settling what can be settled, when the process ends without waiting for anything.
_EXIT_GRACE: Final = 1.0
#: Whose functions are never left in their middle: they hold locks that only they know of, or have made what only they
#: can remove. None of them waits long in the main thread; but see `Stop`.
_UNINTERRUPTIBLE_MODULES: Final = frozenset(
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
_UNINTERRUPTIBLE_FUNCTIONS: Final = frozenset({"__enter__", "__exit__", "__del__"})


class SignalHandler:
    """The signals of one run of `main`, in the main thread.

    `settle` is called, in a thread of its own, before a process is
    ended whose main thread will not do it.
    """

    def __init__(self, settle: Callable[[BaseException], object]) -> None:
        """Begin with none; `begin` makes it listen."""
        self._on_forced_exit = settle
        #: Which came, by either thread that saw it; only the first counts.
        self._received: list[int] = []
        self._received_at: float | None = None
        self._is_enabled = False
        self._raised: BaseException | None = None
        self._report_lock = _thread.allocate_lock()
        self._previous_handlers: dict[int, Any] = {}
        self._writer = -1
        self._main_thread = threading.get_ident()

    def install(self) -> None:
        """Listen, but raise nothing yet. A signal that is ignored (by `nohup`, or in a shell's background) stays so."""
        global _current_handler  # noqa: PLW0603 - the process has one set of signals
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        try:
            _thread.start_new_thread(self._watch_signals, (reader,))
        except RuntimeError:
            # There are to be no more threads here: signals go on to do what they did before.
            os.close(reader)
            os.close(writer)
            return
        self._writer = writer
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _current_handler = self
        self._previous_handlers[_WAKE_SIGNAL] = signal.signal(_WAKE_SIGNAL, self._raise_if_safe)
        for number in TERMINATION_SIGNALS:
            # Who was started by nohup ignores SIGHUP, and goes on to.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)

    @property
    def first_signal(self) -> int | None:
        """The number of the one that came first, if one came."""
        return self._received[0] if self._received else None

    def restore(self) -> None:
        """Have the signals do what they did before."""
        global _current_handler  # noqa: PLW0603 - the process has one set of signals
        self.disable()
        _current_handler = None
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._writer >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._writer)

    def enable(self) -> None:
        """Let the first signal be raised, from now on or when it comes."""
        self._is_enabled = True

    def disable(self) -> None:
        """Let nothing be raised any more."""
        self._is_enabled = False

    def raise_again(self, error: BaseException | None) -> None:
        """Raise it again: it came out where Python can raise nothing."""
        if error is not None and error is self._raised:
            self._raised = None

    def build_error(self) -> BaseException | None:
        """Give the exception that the first signal is, if one came."""
        if self.first_signal is None:
            return None
        return KeyboardInterrupt() if self.first_signal == signal.SIGINT else TerminatedError(128 + self.first_signal)

    def finish(self) -> None:
        """Let nothing be raised any more, since the caller knows how it ended; unless another thread says so already.

        Then that one ends the process, and this does not return.
        """
        self.disable()
        while not self._report_lock.acquire(timeout=_EXIT_GRACE):
            pass

    def check(self) -> None:
        """Raise what is to be raised, if it is asked in the main thread: here it is safe."""
        if threading.get_ident() == self._main_thread and self._is_pending():
            self._raise_error()

    # -- in the main thread ------------------------------------------------------------------------------

    def _is_pending(self) -> bool:
        return self._is_enabled and self.first_signal is not None and self._raised is None

    def _raise_error(self) -> NoReturn:
        error = self._raised = self.build_error()
        assert error is not None  # noqa: S101 - it is due
        raise error

    def _raise_if_safe(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's form
        patient = self._received_at is None or time.monotonic() - self._received_at < _CLEANUP_GRACE
        if self._is_pending() and not _is_unsafe_to_interrupt(frame, patient=patient):
            self._raise_error()

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        self._raise_if_safe(number, frame)

    # -- in the watching thread --------------------------------------------------------------------------

    def _watch_signals(self, reader: int) -> None:
        """Read which signals came, until the other end is closed."""
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        next_nudge = 0.0
        while True:
            if poll.poll(self._poll_timeout()):
                came = os.read(reader, 64)
                if not came:
                    os.close(reader)
                    return
                for number in came:
                    if number in TERMINATION_SIGNALS:
                        self._record_signal(number)
            # The question is a signal as well, and comes back by the pipe.
            if self._is_pending() and (now := time.monotonic()) >= next_nudge:
                next_nudge = now + _WAKE_INTERVAL
                signal.pthread_kill(self._main_thread, _WAKE_SIGNAL)

    def _poll_timeout(self) -> float | None:
        """Say for how many milliseconds to wait for another signal."""
        if self.first_signal is None:
            return None
        return 1000 * (_WAKE_INTERVAL if self._is_pending() else _CHECK_INTERVAL)

    def _record_signal(self, number: int) -> None:
        now = time.monotonic()
        if self._received_at is None:
            self._received_at = now
            self._received.append(number)
        elif now - self._received_at >= _FORCED_EXIT_AFTER:
            # What is to be settled may itself wait for what the main thread holds.
            _thread.start_new_thread(self._force_exit, ())
            time.sleep(_EXIT_GRACE)
            os._exit(128 + self._received[0])

    def _force_exit(self) -> None:
        error = self.build_error()
        if error is not None and self._report_lock.acquire(blocking=False):
            self._on_forced_exit(error)
            os._exit(128 + self._received[0])


class InterruptibleEvent(threading.Event):
    """An event that the main thread can be interrupted in while it waits; in another one `wait` is left whole."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or so many seconds have passed; say whether it is set."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if _current_handler is not None:
                _current_handler.check()
            left = _CHECK_INTERVAL if until is None else until - time.monotonic()
            if super().wait(max(0.0, min(left, _CHECK_INTERVAL))):
                return True
            if until is not None and left <= _CHECK_INTERVAL:
                return False


_current_handler: SignalHandler | None = None


def _is_unsafe_to_interrupt(frame: FrameType | None, *, patient: bool) -> bool:
    """Say whether what is done now had better be done with first; of the `patient`, whatever is short is waited for."""
    if patient and frame is not None:
        # Where an error is being handled, something is cleared up.
        is_between = (
            frame.f_code.co_name in _UNINTERRUPTIBLE_FUNCTIONS or frame.f_globals.get("__name__") == "contextlib"
        )
        if is_between or sys.exc_info()[0] is not None:
            return True
    while frame is not None:
        if frame.f_globals.get("__name__") in _UNINTERRUPTIBLE_MODULES:
            return True
        frame = frame.f_back
    return False
