"""A process that has ocistream imported and forks a child for each command line that it reads. Not to be imported.

Each line is one JSON object (`running.Server`), and the answer to it is the exit code, on a line. A run differs from
the real command in two things: the waits between tries are recorded and not slept, and the host names of `names`
resolve to the addresses that the line gives, while connections to these addresses lead to this machine.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
from typing import Any

import ocistream
import ocistream.cli
import ocistream.transport

_waits: list[float] = []


class Unhurried(ocistream.transport.Transport):
    """A transport that records its waits and does not sleep."""

    def wait(self, seconds: float) -> None:
        _waits.append(seconds)
        super().wait(0)


def give_addresses(names: dict[str, str]) -> None:
    """Resolve each name to its address, which may be anywhere, and connect to this machine instead."""
    resolve, connect, peer = socket.getaddrinfo, socket.socket.connect, socket.socket.getpeername
    addresses = set(names.values())
    peers: dict[Any, tuple[str, int]] = {}

    def resolved(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if str(host) not in names:
            return resolve(host, port, *args, **options)
        found = resolve("127.0.0.1", port, *args, **options)
        return [(*entry[:4], (names[str(host)], *entry[4][1:])) for entry in found]

    def connected(self: socket.socket, address: Any) -> None:
        is_ours = isinstance(address, tuple) and address[0] in addresses
        connect(self, ("127.0.0.1", *address[1:]) if is_ours else address)
        # Known by this end's address, since TLS makes another object of the same connection.
        own = self.getsockname()
        peers.pop(own, None)
        if is_ours:
            peers[own] = address

    def peer_of(self: socket.socket) -> Any:
        return peers.get(self.getsockname(), peer(self))

    socket.getaddrinfo = resolved
    socket.socket.connect = connected  # type: ignore[method-assign,assignment]
    socket.socket.getpeername = peer_of  # type: ignore[method-assign,assignment]


def run(line: dict[str, Any], stdin: int, stdout: int) -> int:
    """Be the command, and return its exit code."""
    if line["stdin"]:
        stdin = os.open(line["stdin"], os.O_RDONLY)
    stderr = os.open(line["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number, opened in enumerate((stdin, stdout, stderr)):
        os.dup2(opened, number)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(line["env"])
    os.chdir(line["cwd"])
    if line["names"]:
        give_addresses(line["names"])
    code = ocistream.cli.main(line["argv"])
    with open(line["waits"], "w") as file:  # noqa: PTH123 - less to import
        json.dump(_waits, file)
    return code


def copied(source: int, target: str | None = None, *, into: int | None = None) -> None:
    """Copy a pipe into a file, or a file into a pipe; the reader of that may go."""
    file = into if into is not None else os.open(str(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        while piece := os.read(source, 1 << 20):
            left = memoryview(piece)
            while left:
                left = left[os.write(file, left) :]
    except BrokenPipeError:
        pass


def forked(task: Any, *closed: int) -> int:
    """Run a task in a child of its own, without these descriptors, and return the child's number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        for descriptor in closed:
            os.close(descriptor)
        code = task() or 0
    finally:
        os._exit(code)


def run_forked(line: dict[str, Any]) -> int:
    """Run the command in a child, with pipes for stdin and stdout, and return its exit code."""
    given, wanted = os.pipe()
    out, written = os.pipe()
    content = os.open(line["given"], os.O_RDONLY)
    feeder = forked(lambda: copied(content, into=wanted), given, out, written)
    drain = forked(lambda: copied(out, line["stdout"]), given, wanted, written, content)
    command = forked(lambda: run(line, given, written), wanted, out, content)
    for descriptor in (given, wanted, out, written, content):
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    os.waitpid(feeder, 0)
    os.waitpid(drain, 0)
    return code


def serve() -> None:
    """Read lines and run them, until there are no more."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    ocistream.transport.Transport = Unhurried  # type: ignore[misc]
    for module in pkgutil.walk_packages(ocistream.__path__, "ocistream."):
        if module.name != "ocistream.__main__":
            importlib.import_module(module.name)
    lines, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    gc.collect()
    gc.freeze()
    for text in lines:
        answers.write(f"{run_forked(json.loads(text))}\n")
        answers.flush()


if __name__ == "__main__":
    serve()
