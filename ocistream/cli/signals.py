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
#: The signal that wakes the main thread. Its default action is to do nothing, and the kernel sends it only to processes
#: that ask for it.
_WAKE_SIGNAL: Final = signal.SIGURG
#: Seconds between two wake signals; and between two checks for an exception that got lost, or for a signal while the
#: main thread waits.
_WAKE_INTERVAL: Final = 0.01
_CHECK_INTERVAL: Final = 0.1
#: Seconds after which a second signal forces the exit. An earlier one may be the same ^C twice (from the terminal, and
#: from a wrapper that passes it on), or from `timeout` and `systemctl`, which send two.
_FORCED_EXIT_AFTER: Final = 0.5
#: Seconds for code that is usually short, such as cleanup after an error, before it is interrupted.
_CLEANUP_GRACE: Final = 1.0
#: Seconds for the final cleanup when the process exits without the main thread.
_EXIT_GRACE: Final = 1.0
#: Modules whose functions are never interrupted: they hold locks or own files that no other code can release. An
#: exception inside Condition would release a lock that is not held; after one inside `Thread.join`, Python 3.11 and
#: 3.12 consider the thread ended. None of them waits long in the main thread; see `InterruptibleEvent` for long waits.
_UNINTERRUPTIBLE_MODULES: Final = frozenset(
    {
        "_frozen_importlib",
        "_frozen_importlib_external",
        "_weakrefset",
        "importlib._bootstrap",
        "importlib._bootstrap_external",
        "ocistream.streams.partial_files",
        "ocistream.registry.upload_record",
        "queue",
        "threading",
        "weakref",
    }
)
#: Functions that acquire or release a file or lock which no other code knows yet.
_UNINTERRUPTIBLE_FUNCTIONS: Final = frozenset({"__enter__", "__exit__", "__del__"})


class SignalHandler:
    """The signals of one run of `main`; it raises the first signal once, in the main thread.

    Python would raise between any two instructions. So a watcher thread wakes the main thread until it is where an
    exception is safe. If the main thread cannot handle a second signal, `settle` is called in its own thread and the
    process ends.
    """

    def __init__(self, settle: Callable[[BaseException], object]) -> None:
        """Do nothing yet; `install` starts to listen."""
        self._on_forced_exit = settle
        #: The signals received, added by either thread; only the first counts. The kernel does not say which of two
        #: simultaneous signals was first.
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
            # The system allows no more threads: the signals keep their previous effect.
            os.close(reader)
            os.close(writer)
            return
        self._writer = writer
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _current_handler = self
        self._previous_handlers[_WAKE_SIGNAL] = signal.signal(_WAKE_SIGNAL, self._raise_if_safe)
        for number in TERMINATION_SIGNALS:
            # A process started by nohup keeps ignoring SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)

    @property
    def first_signal(self) -> int | None:
        """The number of the first signal received, or None."""
        return self._received[0] if self._received else None

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        global _current_handler  # noqa: PLW0603 - the process has one set of signals
        self.disable()
        _current_handler = None
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._writer >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._writer)

    def enable(self) -> None:
        """Raise the first signal from now on, or when it comes."""
        self._is_enabled = True

    def disable(self) -> None:
        """Raise nothing from now on."""
        self._is_enabled = False

    def raise_again(self, error: BaseException | None) -> None:
        """Allow `error` to be raised again, if it came out where Python cannot raise, such as in `__del__`."""
        if error is not None and error is self._raised:
            self._raised = None

    def build_error(self) -> BaseException | None:
        """Return the exception for the first signal; None without a signal."""
        if self.first_signal is None:
            return None
        return KeyboardInterrupt() if self.first_signal == signal.SIGINT else TerminatedError(128 + self.first_signal)

    def finish(self) -> None:
        """Raise nothing from now on: the caller reports how the run ended.

        If the forced exit reports already, that thread ends the process, and this call does not return.
        """
        self.disable()
        while not self._report_lock.acquire(timeout=_EXIT_GRACE):
            pass

    def check(self) -> None:
        """Raise a pending exception if called in the main thread; the caller is at a safe point."""
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
        """Read the signals from the pipe until its other end is closed."""
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        next_wake = 0.0
        while True:
            if poll.poll(self._poll_timeout()):
                numbers = os.read(reader, 64)
                if not numbers:
                    os.close(reader)
                    return
                for number in numbers:
                    if number in TERMINATION_SIGNALS:
                        self._record_signal(number)
            # The wake signal arrives in the pipe too.
            if self._is_pending() and (now := time.monotonic()) >= next_wake:
                next_wake = now + _WAKE_INTERVAL
                signal.pthread_kill(self._main_thread, _WAKE_SIGNAL)

    def _poll_timeout(self) -> float | None:
        """Return for how many milliseconds to wait for another signal; None without limit."""
        if self.first_signal is None:
            return None
        return 1000 * (_WAKE_INTERVAL if self._is_pending() else _CHECK_INTERVAL)

    def _record_signal(self, number: int) -> None:
        now = time.monotonic()
        if self._received_at is None:
            self._received_at = now
            self._received.append(number)
        elif now - self._received_at >= _FORCED_EXIT_AFTER:
            # In a separate thread: the cleanup may wait for a lock that the main thread holds.
            _thread.start_new_thread(self._force_exit, ())
            time.sleep(_EXIT_GRACE)
            os._exit(128 + self._received[0])

    def _force_exit(self) -> None:
        error = self.build_error()
        if error is not None and self._report_lock.acquire(blocking=False):
            self._on_forced_exit(error)
            os._exit(128 + self._received[0])


class InterruptibleEvent(threading.Event):
    """An event whose `wait` in the main thread a signal can interrupt; other events are not interrupted."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set or `timeout` seconds have passed; return whether it is set."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if _current_handler is not None:
                _current_handler.check()
            remaining = _CHECK_INTERVAL if deadline is None else deadline - time.monotonic()
            if super().wait(max(0.0, min(remaining, _CHECK_INTERVAL))):
                return True
            if deadline is not None and remaining <= _CHECK_INTERVAL:
                return False


_current_handler: SignalHandler | None = None


def _is_unsafe_to_interrupt(frame: FrameType | None, *, patient: bool) -> bool:
    """Return whether an exception at this frame could break something.

    If `patient`, code that is usually short is not interrupted either.
    """
    if patient and frame is not None:
        # While an error is handled, cleanup runs.
        acquires_or_releases = (
            frame.f_code.co_name in _UNINTERRUPTIBLE_FUNCTIONS or frame.f_globals.get("__name__") == "contextlib"
        )
        if acquires_or_releases or sys.exc_info()[0] is not None:
            return True
    while frame is not None:
        if frame.f_globals.get("__name__") in _UNINTERRUPTIBLE_MODULES:
            return True
        frame = frame.f_back
    return False
