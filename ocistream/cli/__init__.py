"""The command line: it parses arguments, shows progress, prints results and maps errors to exit codes.

Only this package reads argv, environment variables and the terminal. `run` handles signals before it imports
anything else. A command's modules are imported only when the command is called, so `--version` stays fast.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as typing has it, the import of which takes longer than all of this
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

    from ocistream.cli.entry_point import COMMANDS, main

__all__ = ["COMMANDS", "main", "run"]

#: The C module behind `signal`. `signal` itself imports enum first: that takes milliseconds, in which a signal would
#: end the process by default.
_signal = __import__("_signal")
_TERMINATION_SIGNALS = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)


def run() -> NoReturn:
    """Run the command line of this process, and end it."""
    # Before anything else is imported: Python's own handler would print a traceback of the import, and exit codes would
    # not be 128 + N.
    for number in _TERMINATION_SIGNALS:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _exit_on_signal)
    import signal

    from ocistream.cli.entry_point import main

    code = main(sys.argv[1:], ends_process=True)
    # All is said and done; what Python does at exit is not to be torn.
    for number in _TERMINATION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The streams were written out, and no thread is waited for: one of ours stands in a call (the one that watches for
    # signals always does), and what it works with would be taken away beneath it. Now and then that is a segmentation
    # fault in the place of the exit code. To look through all objects for garbage takes time, besides.
    os._exit(code)


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the handler's form
    """End the process where it stands: nothing was begun yet."""
    message = "interrupted" if number == _signal.SIGINT else "terminated"
    line = f"ocistream: error: {message}\n"
    if {"json", "--log-format=json", "--progress=json"} & set(sys.argv):
        # What `Console.from_arguments` would find out; but nothing may be imported from here.
        line = f'{{"level": "error", "message": "{message}", "exit_code": {128 + number}}}\n'
    if sys.stderr is not None:
        try:  # noqa: SIM105 - contextlib is not imported yet
            os.write(2, line.encode())
        except OSError:
            pass
    os._exit(128 + number)


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562)."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from ocistream.cli import entry_point

    return getattr(entry_point, name)
