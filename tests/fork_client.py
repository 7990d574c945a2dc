"""Runs a command line in a fork of fork_server.py: `python -IS fork_client.py SOCKET PROGRAM ARGUMENT...`.

The run has the streams, environment, working directory and umask of this process. This process forwards signals to the
run, and ends as the run does. It has few imports, so it starts in a tenth of the time of ocistream.
"""

import _signal  # type: ignore[import-not-found] # of CPython; `signal` takes as long as all the others
import _socket
import json
import os
import sys
from array import array

_PASSED_ON = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)


def main(address: str, *argv: str) -> int:
    """Run `argv` to its end; return its exit code, negative for a signal."""
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    server.connect(address)
    server.sendmsg([b"+"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", (0, 1, 2)))])
    umask = os.umask(0)
    request = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd(), "umask": umask}  # noqa: PTH109 - no pathlib
    server.sendall(json.dumps(request).encode() + b"\n")
    # From here on only the run has the streams, so the other sides notice when it closes one.
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    answers = b""
    while got := server.recv(1 << 16):
        *lines, answers = (answers + got).split(b"\n")
        for line in lines:
            news = json.loads(line)
            if "pid" in news:
                _pass_signals_on(news["pid"])
            if "code" in news:
                return int(news["code"])
    return 70


def _pass_signals_on(pid: int) -> None:
    for number in _PASSED_ON:
        _signal.signal(number, lambda number, _: os.kill(pid, number))


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    if code < 0:
        if -code != _signal.SIGKILL:
            _signal.signal(-code, _signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
