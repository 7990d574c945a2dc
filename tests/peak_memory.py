"""Runs a command and writes its peak memory to a file: `python peak_memory.py REPORT COMMAND...`.

Linux counts in ru_maxrss the memory of a process before its exec, so a child of a large pytest seems as large as
pytest. This program is small and starts the command itself: results below its own 10 MB read as 10 MB, and larger ones
are exact. The command has its stdin, stdout, stderr and exit status; a signal that ends it ends this program too.
"""

import contextlib
import os
import signal
import sys


def main() -> int:
    report, *command = sys.argv[1:]
    child = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGPIPE])
    _, status, usage = os.wait4(child, 0)
    with open(report, "w") as file:  # noqa: PTH123 - pathlib would make this program larger
        file.write(str(usage.ru_maxrss * 1024))
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL's action cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
