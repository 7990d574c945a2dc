"""The command line: it parses arguments, shows progress, prints results and maps errors to exit codes.

Only this package reads argv, environment variables and the terminal. `run` handles signals before it imports
anything else. A command's modules are imported only when the command is called, so `--version` stays fast.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing is not imported: its import takes longer than this module
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
    """Run the command line in this process, then end the process with the exit code."""
    # Before any other import: Python's own handler would print a traceback of the import and not end with 128 + N.
    for number in _TERMINATION_SIGNALS:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _exit_on_signal)
    import signal

    from ocistream.cli.entry_point import main

    code = main(sys.argv[1:], ends_process=True)
    # The run is over: a late signal must not interrupt Python's shutdown.
    for number in _TERMINATION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The streams are flushed. Do not wait for threads: after a signal, some may be blocked. Python's own shutdown frees
    # objects that such threads use: in about one of a hundred interrupted runs that was a segmentation fault in place
    # of exit code 130. `os._exit` also skips a last garbage collection.
    os._exit(code)


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the handler's form
    """End the process at once: no work has begun."""
    # A second signal must not print a second line.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _TERMINATION_SIGNALS)
    message = "interrupted" if number == _signal.SIGINT else "terminated"
    line = f"ocistream: error: {message}\n"
    if {"json", "--log-format=json", "--progress=json"} & set(sys.argv):
        # `Console.from_arguments` decides this properly, but nothing may be imported from a signal handler here.
        line = f'{{"level": "error", "message": "{message}", "exit_code": {128 + number}}}\n'
    if sys.stderr is not None:
        try:  # noqa: SIM105 - contextlib is not imported yet
            os.write(2, line.encode())
        except OSError:
            pass
    os._exit(128 + number)


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from ocistream.cli import entry_point

    return getattr(entry_point, name)
