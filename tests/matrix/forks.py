"""A process that has ocistream imported, and forks one that runs it for each line that it reads. Not to be imported.

So each run is a process of its own, with streams, an exit code and a memory of its own, and costs a tenth of what it
costs to start one. It differs from the real command in two things: the waits between tries are noted and not waited,
and names that end in `.test` lead to this machine, or astray where the line says so.

A line is one JSON object (`commands.Forks`); the answer is the exit code, on a line. One that `warms` is run here and
not in a fork: what is made when it is first needed is then there for all.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import socket
from typing import Any

import ocistream
import ocistream.cli
import ocistream.transport

_REFUSALS = {
    "again": (socket.EAI_AGAIN, "Temporary failure in name resolution"),
    "unknown": (socket.EAI_NONAME, "Name or service not known"),
}
_real_resolve = socket.getaddrinfo
_waits: list[float] = []


class Unhurried(ocistream.transport.Transport):
    """A transport that notes its waits."""

    def wait(self, seconds: float) -> None:
        """Note it, and go on at once."""
        _waits.append(seconds)
        super().wait(0)


class Resolver:
    """Leads `NAME.test` to its port on this machine, and the connections that `astray` names elsewhere."""

    def __init__(self, ports: dict[str, int], astray: dict[str, Any] | None) -> None:
        self._ports = ports
        self._astray = astray
        self.asked: dict[str, int] = {}

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = str(host)
        if not name.endswith(".test"):
            return _real_resolve(host, port, *args, **options)
        if port is not None:
            # Not just looked up, but to be connected to.
            count = self.asked[name] = self.asked.get(name, 0) + 1
            port, astray = self._ports[name], self._astray
            if astray and name == astray["host"] and astray["first"] <= count < astray["end"]:
                if astray["how"] in _REFUSALS:
                    raise socket.gaierror(*_REFUSALS[astray["how"]])
                port = astray["port"]
        return _real_resolve("127.0.0.1", port, *args, **options)


def open_streams(line: dict[str, Any]) -> None:
    """Have stdin be a pipe that gives a file, and stdout and stderr files."""
    ours, theirs = os.pipe()
    if not os.fork():
        os.close(ours)
        with open(line["stdin"], "rb") as file, os.fdopen(theirs, "wb") as pipe:  # noqa: PTH123 - less to import
            try:
                pipe.write(file.read())
            except BrokenPipeError:
                # As for any writer whose reader has gone.
                os._exit(1)
        os._exit(0)
    os.close(theirs)
    os.dup2(ours, 0)
    os.close(ours)
    for number, name in ((1, "stdout"), (2, "stderr")):
        opened = os.open(line[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)


def run(line: dict[str, Any]) -> int:
    """Be the command, and give its exit code."""
    open_streams(line)
    os.environ.update(line["env"])
    resolver = Resolver(line["ports"], line["astray"])
    socket.getaddrinfo = resolver
    code = ocistream.cli.main(line["argv"])
    with open(line["notes"], "w") as file:  # noqa: PTH123 - less to import
        json.dump({"waits": _waits, "connected": resolver.asked}, file)
    return code


def run_forked(line: dict[str, Any]) -> int:
    """Have a process of its own be the command, and give its exit code."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        code = run(line)
    finally:
        os._exit(code)


def serve() -> None:
    """Read lines and run them, until there are no more."""
    ocistream.transport.Transport = Unhurried  # type: ignore[misc]
    for module in pkgutil.walk_packages(ocistream.__path__, "ocistream."):
        if module.name != "ocistream.__main__":
            importlib.import_module(module.name)
    lines, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    for text in lines:
        line = json.loads(text)
        answers.write(f"{run(line) if line['warms'] else run_forked(line)}\n")
        answers.flush()


if __name__ == "__main__":
    serve()
