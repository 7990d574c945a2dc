"""Run a command in a worker thread while the main thread waits for signals.

The first signal sets an event, and the command ends in order. If it is blocked, or at a second signal, the main thread
stops waiting for it. No signal handler raises an exception.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from ocistream import process_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import FrameType

#: The C module behind `signal`, whose functions turn each number into an enum. `is_set` is called for each chunk, and
#: that would double its cost.
_signal = __import__("_signal")
#: The signals that end a run.
TERMINATION_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds for the command to end after the first signal, or after the last block that delays the exit.
_GRACE: Final = 1.0
#: Seconds after which a second signal forces the exit. An earlier one may be the same ^C twice (from the terminal, and
#: from a wrapper that passes it on), or from `timeout` and `systemctl`, which send two.
_FORCED_EXIT_AFTER: Final = 0.5
#: Milliseconds between two checks of the grace period.
_CHECK_INTERVAL: Final = 50
#: The byte that a command writes to the pipe at its end. No signal has this number.
_END: Final = 0


class CancelEvent(threading.Event):
    """The event that cancels a command. `is_set` is true as soon as a termination signal is sent to the process.

    Nothing must become visible after the signal, and on a busy machine the main thread may be late. So `is_set` counts
    a signal that the kernel has not delivered yet, or whose number the main thread has not read yet. `wait` returns
    only when the main thread has read the number.
    """

    def __init__(self) -> None:
        """Start without signals."""
        super().__init__()
        self._pipe: int | None = None
        self._numbers: Collection[int] = ()

    def watch(self, pipe: int | None, numbers: Collection[int]) -> None:
        """Watch these signals; `pipe` is where the interpreter writes their numbers, None to stop watching."""
        self._pipe, self._numbers = pipe, numbers

    def is_set(self) -> bool:
        """Return whether the command is cancelled."""
        return super().is_set() or (self._pipe is not None and self._has_signal(self._pipe))

    def _has_signal(self, pipe: int) -> bool:
        # A signal is listed as pending only while it is blocked. Blocked for longer, programs that are started would
        # inherit that.
        mask = _signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        try:
            is_pending = not _signal.sigpending().isdisjoint(self._numbers)
        finally:
            _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        return is_pending or bool(poll.poll(0))


class SignalReceivedError(Exception):
    """A signal has ended the run. `exit_code` is 128 plus the number of the first signal."""

    def __init__(self, number: int) -> None:
        """Store the number of the signal."""
        super().__init__(f"signal {number}")
        self.number = number
        self.exit_code = 128 + number


def run_until_signal(command: Callable[[], None], cancelled: CancelEvent, *, restores_handlers: bool) -> None:
    """Run a command in a worker thread, and raise its exception. Set `cancelled` at the first signal.

    The command may still run when this function raises SignalReceivedError: it is blocked, and the caller ends the
    process. Without `restores_handlers` later signals have no effect, except that a second one ends the process.

    Raises:
        SignalReceivedError: a signal came before the command ended.
    """
    # `--version` does not need it.
    from ocistream.streams.workers import start

    signals = _Signals()
    cancelled.watch(signals.reader, signals.previous_handlers)
    try:
        task = start(command, "command", on_end=signals.report_end)
        if (number := signals.wait_for_end(cancelled)) is not None:
            raise SignalReceivedError(number)
        task.result()
    finally:
        cancelled.watch(None, ())
        signals.close(restores_handlers=restores_handlers)


class _Signals:
    """The termination signals of this process. The interpreter writes their numbers to a pipe."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._first_at = 0.0
        #: Whether the main thread reads the pipe.
        self._is_reading = True
        self._has_ended = False
        self.reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        #: The handlers of the signals that end this process; it may ignore others from its start.
        # A process started by nohup, or in a shell's background, keeps ignoring a signal.
        self.previous_handlers: dict[int, Any] = {
            number: signal.signal(number, self._handle)
            for number in TERMINATION_SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }

    def report_end(self) -> None:
        """Wake the main thread, because the command has ended. Called in the command's thread."""
        os.write(self._writer, bytes([_END]))

    def wait_for_end(self, cancelled: threading.Event) -> int | None:
        """Wait until the command has ended, or is blocked after a signal; return the first signal or None."""
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        # When a block last delayed the exit; 0 before a signal.
        busy_at = 0.0
        timeout: int | None = None
        while True:
            numbers = os.read(self.reader, 64) if poll.poll(timeout) else b""
            now = time.monotonic()
            for number in numbers:
                self._has_ended |= number == _END
                if self._record(number, now):
                    return self._first
            if self._has_ended:
                # A signal that came before the end counts, and its number may come after the byte of the end.
                if not numbers:
                    return self._first
                timeout = 0
            elif self._first is not None:
                if not busy_at or now - self._first_at < process_exit.find_delay():
                    busy_at = now
                cancelled.set()
                if now - busy_at >= _GRACE:
                    return self._first
                timeout = _CHECK_INTERVAL

    def close(self, *, restores_handlers: bool) -> None:
        """Stop reading signals. From now on, a second signal ends the process, unless the handlers are restored."""
        # Signals that follow each other must not end the process before it has reported the first one.
        self._first_at = time.monotonic()
        self._is_reading = False
        signal.set_wakeup_fd(-1)
        if self._has_ended:
            os.close(self.reader)
            os.close(self._writer)
        for number, handler in self.previous_handlers.items() if restores_handlers else ():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _record(self, number: int, now: float) -> bool:
        """Record a signal; return whether it is a second one, which forces the exit."""
        if number not in TERMINATION_SIGNALS:
            return False
        if self._first is None:
            self._first, self._first_at = number, now
        return now - self._first_at >= _FORCED_EXIT_AFTER

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's form
        """Do nothing while the pipe is read. Afterwards, end the process if the final report is blocked."""
        if not self._is_reading and self._record(number, time.monotonic()):
            os._exit(128 + (self._first or number))
