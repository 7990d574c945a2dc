"""Run the command line as a user does, with its own environment, streams and exit code.

`ocistream`, `pipe` and `started_fork` run forks of a process that has imported ocistream (tests/fork_runner.py), which
is ten times as fast. Runs of `ocistream` and `pipe` share a fork, if the run before left no trace in it. Programs that
start ocistream use `forking_command`. `real`, `measured`, `measured_pipe`, `started` and `run` start the installed
command: for tests of memory, open descriptors, imports and signals at start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final

from tests.fork_runner import Astray, Fork, Request, finish, server

#: Seconds after which a run is killed and its test fails; every run takes much less.
TIMEOUT: Final = 300.0
_PEAK: Final = Path(__file__).with_name("peak_memory.py")
_FORK_CLIENT: Final = Path(__file__).with_name("fork_client.py")
_CHUNK: Final = 1 << 20
#: Variables that Python and its libraries read when a process starts: a fork would ignore them.
_READ_AT_START: Final = ("COVERAGE_", "GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON")

Argument = str | Path
Environment = Mapping[str, str | None]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a process. `code` is negative for a signal. `peak` is the peak memory in bytes, or None.

    Only for forks: `waits` are the pauses before retries, in seconds; `connected` counts connections by name.
    """

    argv: Sequence[str]
    code: int
    out: bytes
    err: str
    peak: int | None = None
    waits: Sequence[float] = ()
    connected: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the lines of stdout."""
        return self.out.decode().splitlines()


def command() -> list[str]:
    """Return the command: the console script of this Python, else `python -m ocistream`."""
    script = Path(sys.executable).with_name("ocistream")
    # -P: do not import modules from the current directory.
    return [str(script)] if script.exists() else [sys.executable, "-P", "-m", "ocistream"]


def forking_command(address: str | None = None) -> list[str]:
    """Return a command like `command` that runs in a fork, for programs that start ocistream.

    `address` is the address of a `fork_runner.Server`.
    """
    # -I and -S: start Python as fast as possible.
    return [sys.executable, "-I", "-S", str(_FORK_CLIENT), address or server().address, *command()]


def ocistream(
    *argv: Argument,
    stdin: bytes | Path | None = None,
    stdout: Path | int | None = None,
    env: Environment | None = None,
    cwd: Path | None = None,
    timeout: float = TIMEOUT,
    no_waits: bool = False,
    names: Mapping[str, int | str | None] | None = None,
    astray: Astray | None = None,
    closed: Sequence[int] = (),
    unprivileged: bool = False,
    deletes_cwd: bool = False,
    machine: Path | None = None,
) -> Result:
    """Run `ocistream *argv` in a fork and return the result; in a new process if `env` has a variable of the start.

    `stdin` is bytes for a pipe, or a file to read from (None: nothing). `stdout` is a file to write to, or a
    descriptor; `Result.out` is then empty. `env` extends the environment of the tests; None removes a variable.
    `no_waits`, `names`, `astray`, `closed`, `unprivileged` and `deletes_cwd` are described in `fork_runner.Request`;
    `machine` is a folder whose `sitecustomize.py` Python imports first.
    """
    if _counts_at_start(env or {}):
        given = (no_waits, names, astray, closed, unprivileged, deletes_cwd, machine)
        assert given == (False, None, None, (), False, False, None), "not in a real process"
        assert not isinstance(stdout, int)
        return real(*argv, stdin=stdin, stdout=stdout, env=env, cwd=cwd, timeout=timeout)
    line = [*command(), *map(str, argv)]
    folder = str(cwd or Path.cwd())
    leads_home = any(isinstance(given, str) for given in (names or {}).values())
    request = Request(
        line,
        _environment(env),
        folder,
        no_waits,
        names,
        astray,
        closed,
        unprivileged,
        deletes_cwd,
        # All other runs change their process permanently.
        shared=not (leads_home or closed or unprivileged or deletes_cwd or machine),
    )
    with contextlib.ExitStack() as stack:
        feed: tuple[int, bytes] | None = None
        if isinstance(stdin, bytes):
            source, writer = os.pipe()
            feed = (writer, stdin)
        else:
            source = os.open(stdin or os.devnull, os.O_RDONLY)
        err, said = os.pipe()
        outputs = [err]
        if isinstance(stdout, int):
            target = os.dup(stdout)
        elif stdout:
            target = os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        else:
            out, target = os.pipe()
            outputs.append(out)
        fork = _forked(stack, request, (source, target, said), machine)
        errors, *result = finish([fork], outputs, feed, timeout)
    return _result(fork, line, b"".join(result), errors)


def real(*argv: Argument, **options: Any) -> Result:
    """Like `ocistream`, but run the installed command in a new process; the options are those of `run`."""
    return run([*command(), *map(str, argv)], **options)


def measured(*argv: Argument, **options: Any) -> Result:
    """Like `real`, and measure the peak memory. Coverage is disabled, because it uses memory."""
    return run_measured([*command(), *map(str, argv)], **options)


def pipe(
    first: Sequence[Argument], second: Sequence[Argument], *, env: Environment | None = None, cut: int | None = None
) -> tuple[Result, Result]:
    """Run `ocistream *first | ocistream *second` as a shell does, in forks; `cut` closes the pipe after those bytes."""
    lines = [[*command(), *map(str, argv)] for argv in (first, second)]
    one, two = (Request(line, _environment(env), str(Path.cwd()), shared=True) for line in lines)
    with contextlib.ExitStack() as stack:
        source, target = os.pipe()
        if cut is not None:
            uncut, (source, rest) = source, os.pipe()
            relay = threading.Thread(target=_relay, args=(os.fdopen(uncut, "rb"), os.fdopen(rest, "wb"), cut))
            stack.callback(relay.join)
            relay.start()
        out, shown = os.pipe()
        (err_of_first, said), (err_of_second, also_said) = os.pipe(), os.pipe()
        left = _forked(stack, one, (os.open(os.devnull, os.O_RDONLY), target, said))
        right = _forked(stack, two, (source, shown, also_said))
        errors, result, other_errors = finish([left, right], [err_of_first, out, err_of_second], None, TIMEOUT)
    return _result(left, lines[0], b"", errors), _result(right, lines[1], result, other_errors)


def measured_pipe(first: Sequence[Argument], second: Sequence[Argument]) -> tuple[Result, Result]:
    """Like `pipe`, but in new processes, and measure the peak memory of both."""
    with contextlib.ExitStack() as stack:
        lines = [[*command(), *map(str, argv)] for argv in (first, second)]
        (one, one_env, one_peak), (two, two_env, two_peak) = (
            stack.enter_context(_measuring(line, None)) for line in lines
        )
        # A full pipe without a reader would block its writer, so stderr goes to files.
        notes = [stack.enter_context(tempfile.TemporaryFile()) for _ in lines]
        left = stack.enter_context(_start(one, subprocess.DEVNULL, subprocess.PIPE, notes[0], one_env, None))
        stack.enter_context(_killed_at_last(left))
        assert left.stdout is not None
        right = stack.enter_context(_start(two, left.stdout, subprocess.PIPE, notes[1], two_env, None))
        stack.enter_context(_killed_at_last(right))
        # Close the pipe here, so that the first command notices when the second one exits.
        left.stdout.close()
        out, _ = right.communicate(timeout=TIMEOUT)
        left.wait(TIMEOUT)
        errors = []
        for note in notes:
            note.seek(0)
            errors.append(note.read().decode(errors="replace"))
        return (
            Result(one, left.returncode, b"", errors[0], one_peak()),
            Result(two, right.returncode, out, errors[1], two_peak()),
        )


@contextlib.contextmanager
def started(
    *argv: Argument, stdin: int = subprocess.DEVNULL, env: Environment | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `ocistream *argv` for the time of the block, for a server or for signals.

    Its stdout and stderr are pipes. At the end of the block it gets SIGTERM if it still runs.
    """
    process = _start([*command(), *map(str, argv)], stdin, subprocess.PIPE, subprocess.PIPE, env, cwd)
    with process, _killed_at_last(process):
        yield process
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=TIMEOUT)


class Running:
    """A run in a fork, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, fork: Fork, stdin: IO[bytes] | None, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self._fork = fork
        self.pid = fork.pid
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr

    @property
    def returncode(self) -> int | Any:
        """The exit code, negative for a signal; None before the end was noticed. It has the type of Popen's."""
        return self._fork.code

    def poll(self) -> int | None:
        """Return the exit code, or None if the run has not ended."""
        while self._fork.code is None and select.select([self._fork], [], [], 0)[0]:
            self._fork.read()
        return self._fork.code

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: the run did not end within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while self._fork.code is None:
            if not select.select([self._fork], [], [], max(0.0, end - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired("ocistream", timeout)
            self._fork.read()
        return self._fork.code

    def communicate(self, timeout: float = TIMEOUT) -> tuple[bytes, bytes]:
        """Close stdin, wait for the end, and return stdout and stderr."""
        if self.stdin:
            self.stdin.close()
        with ThreadPoolExecutor(2) as threads:
            out, err = threads.submit(self.stdout.read), threads.submit(self.stderr.read)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self._fork.kill()
                raise
            return out.result(), err.result()

    def send_signal(self, number: int) -> None:
        """Send a signal to the run, if it has not ended."""
        if self.poll() is None:
            # It may have ended meanwhile, and its server has reaped it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def started_fork(
    *argv: Argument, stdin: int = subprocess.DEVNULL, env: Environment | None = None, cwd: Path | None = None
) -> Iterator[Running]:
    """Like `started`, but in a fork."""
    assert not _counts_at_start(env or {}), "not in a fork"
    line = [*command(), *map(str, argv)]
    with contextlib.ExitStack() as stack:
        feed = None
        if stdin == subprocess.PIPE:
            source, writer = os.pipe()
            feed = stack.enter_context(os.fdopen(writer, "wb"))
        else:
            source = os.open(os.devnull, os.O_RDONLY) if stdin == subprocess.DEVNULL else os.dup(stdin)
        (out, shown), (err, said) = os.pipe(), os.pipe()
        streams = [stack.enter_context(os.fdopen(descriptor, "rb")) for descriptor in (out, err)]
        request = Request(line, _environment(env), str(cwd or Path.cwd()))
        process = Running(_forked(stack, request, (source, shown, said)), feed, *streams)
        yield process
        if process.poll() is None:
            process.terminate()
            process.communicate()


def run(
    line: Sequence[str],
    *,
    stdin: bytes | Path | None = None,
    stdout: Path | None = None,
    env: Environment | None = None,
    cwd: Path | None = None,
    timeout: float = TIMEOUT,
) -> Result:
    """Run any command line and return the result; the arguments are those of `ocistream`."""
    with contextlib.ExitStack() as stack:
        source: int | IO[bytes] = subprocess.DEVNULL
        if isinstance(stdin, bytes):
            source = subprocess.PIPE
        elif stdin is not None:
            source = stack.enter_context(stdin.open("rb"))
        target = stack.enter_context(stdout.open("wb")) if stdout else subprocess.PIPE
        process = stack.enter_context(_start(line, source, target, subprocess.PIPE, env, cwd))
        stack.enter_context(_killed_at_last(process))
        out, err = process.communicate(stdin if isinstance(stdin, bytes) else None, timeout)
    return Result(line, process.returncode, out or b"", err.decode(errors="replace"))


def run_measured(line: Sequence[str], *, env: Environment | None = None, **options: Any) -> Result:
    """Like `run`, and measure the peak memory."""
    with _measuring(line, env) as (wrapped, environment, peak):
        result = run(wrapped, env=environment, **options)
        return dataclasses.replace(result, argv=line, peak=peak())


def _counts_at_start(env: Environment) -> bool:
    """Return whether one of these variables is read when a process starts; the fork server itself has no PYTHON*."""
    return any(
        name.startswith(_READ_AT_START) and not (value is None and name.startswith("PYTHON"))
        for name, value in env.items()
    )


def _environment(env: Environment | None) -> dict[str, str]:
    changed = {**os.environ, **(env or {})}
    return {name: value for name, value in changed.items() if value is not None}


def _forked(stack: contextlib.ExitStack, request: Request, streams: Sequence[int], machine: Path | None = None) -> Fork:
    """Start a run and close the `streams`; the run is killed if the block of `stack` raises."""
    try:
        fork = server(**({} if machine is None else {"PYTHONPATH": str(machine)})).fork(request, streams)
    finally:
        for descriptor in streams:
            os.close(descriptor)
    stack.callback(fork.close)
    stack.push(lambda kind, *_: fork.kill() if kind else None)
    return fork


def _result(fork: Fork, line: Sequence[str], out: bytes, err: bytes) -> Result:
    assert fork.code is not None
    return Result(line, fork.code, out, err.decode(errors="replace"), waits=tuple(fork.waits), connected=fork.connected)


def _relay(source: IO[bytes], target: IO[bytes], limit: int) -> None:
    """Forward `limit` bytes, then close both ends. Either side may close earlier."""
    with contextlib.suppress(BrokenPipeError), source, target:
        while limit and (chunk := source.read(min(limit, _CHUNK))):
            target.write(chunk)
            limit -= len(chunk)


def _start(
    line: Sequence[str],
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    env: Environment | None,
    cwd: Path | None,
) -> subprocess.Popen[bytes]:
    # A new session, so that its children can be killed with it.
    return subprocess.Popen(
        line, stdin=stdin, stdout=stdout, stderr=stderr, env=_environment(env), cwd=cwd, start_new_session=True
    )


@contextlib.contextmanager
def _killed_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the run if the block raises, after a timeout or a failed assertion."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


@contextlib.contextmanager
def _measuring(
    line: Sequence[str], env: Environment | None
) -> Iterator[tuple[list[str], Environment, Callable[[], int]]]:
    """Wrap `line` in peak_memory.py: yield the new line, its environment, and a function that reads the peak."""
    without_coverage = dict.fromkeys(name for name in os.environ if name.startswith("COVERAGE_"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "peak"
        # -I and -S: start Python as fast as possible.
        wrapped = [sys.executable, "-I", "-S", str(_PEAK), str(report), *line]
        yield wrapped, {**without_coverage, **(env or {})}, lambda: int(report.read_text())
