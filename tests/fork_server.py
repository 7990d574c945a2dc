"""A process that has ocistream imported and forks for each command line. Run by tests/fork_runner.py, not imported.

Each run is a separate process with its own streams, environment, working directory, exit code and memory, and takes a
tenth of the time of a new Python. The protocol: the client sends one byte with four descriptors (a socket for this run,
stdin, stdout, stderr). Over the run's socket the client sends a line of JSON (`fork_runner.Request` and the umask; keys
with a default may be absent); the server sends lines of JSON: `{"pid"}`, one `{"wait"}` for each pause between
attempts, one `{"connected"}` for each connection to a name of the test, and finally `{"code"}`. Any other process
(fork_client.py) connects to a Unix socket, which is the run's socket, and sends one byte with three descriptors.

A fork costs about as much as a short run: its first write to each page copies the page. So if the byte is `SHARED`, the
run may take place in a fork that has run other command lines (`_work`). A run that leaves a thread, a descriptor or a
child process ends its fork, as each run without `SHARED` does.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import importlib
import io
import json
import marshal
import os
import pkgutil
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self

import ocistream
import ocistream.cli
from ocistream.signatures import verifier, verifier_process
from ocistream.streams import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from threading import Event

_REFUSALS: Final = {
    "again": (socket.EAI_AGAIN, "Temporary failure in name resolution"),
    "unknown": (socket.EAI_NONAME, "Name or service not known"),
}
#: Modules that the command line imports lazily. Imported here, they cost a run no time.
_LAZY: Final = (
    *("email.parser", "encodings.idna", "getpass", "idna", "mimetypes", "netrc", "requests"),
    *("stringprep", "tomllib", "tqdm"),
)
#: A run starts with the first. Only a process of its own imports the second, which would double the size of each fork.
_NEVER_IMPORTED: Final = ("ocistream.__main__", "ocistream.signatures.keyless")
#: From linux/capability.h and linux/prctl.h: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP.
_CAPABILITY_VERSION: Final = 0x20080522
_FILE_CAPABILITIES: Final = (1, 2)
_DROP_FROM_BOUNDING_SET: Final = 24
#: From linux/mman.h, and the size of a huge page on most machines.
_MADV_COLLAPSE: Final = 25
_HUGE_PAGE: Final = 2 << 20
#: The byte of a request whose run may take place in a fork that has run other command lines.
_SHARED: Final = b"="
#: The number of command lines that one fork runs at most.
_RUNS_OF_A_WORKER: Final = 50
#: Seconds that the threads of a run have to end; a fork whose threads take longer ends.
_SETTLING: Final = 0.02
#: Where Linux lists the open descriptors of this process.
_DESCRIPTORS: Final = Path("/proc/self/fd")
_real_resolve = socket.getaddrinfo
_real_sleep = clock.sleep


class Clock:
    """Replaces `clock.sleep`: reports each pause to the client and sleeps if `slow`; otherwise moves the clock on."""

    def __init__(self, tell: socket.socket, *, slow: bool) -> None:
        self._tell, self._slow, self._lock = tell, slow, threading.Lock()

    def sleep(self, seconds: float, cancelled: Event) -> bool:
        """Report the pause, and sleep if `slow`."""
        if seconds > 0:
            _send(self._tell, wait=seconds)
        if self._slow:
            return _real_sleep(seconds, cancelled)
        with self._lock:
            clock.skipped += max(0.0, seconds)
        return _real_sleep(0, cancelled)


class Resolver:
    """Replaces `socket.getaddrinfo`: the test's names resolve to this machine or astray, other `.test` names do not."""

    def __init__(self, tell: socket.socket, names: dict[str, int | str | None], astray: dict[str, Any] | None) -> None:
        self._tell, self._names, self._astray = tell, names, astray
        self._asked: dict[str, int] = {}

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if not name.endswith(".test"):
            return _real_resolve(host, port, *args, **options)
        if name not in self._names:
            raise socket.gaierror(*_REFUSALS["unknown"])
        given = self._names[name]
        if port is not None:
            # A lookup with a port precedes a connection.
            _send(self._tell, connected=name)
            count = self._asked[name] = self._asked.get(name, 0) + 1
            port, astray = (given or port) if not isinstance(given, str) else port, self._astray
            if astray and name == astray["host"] and astray["first"] <= count < astray["end"]:
                if astray["how"] in _REFUSALS:
                    raise socket.gaierror(*_REFUSALS[astray["how"]])
                port = astray["port"]
        found = _real_resolve("127.0.0.1", port, *args, **options)
        return [(*entry[:4], (given, *entry[4][1:])) for entry in found] if isinstance(given, str) else found


class Verifier:
    """Replaces `subprocess.Popen` for the process that verifies signatures: verifies them in this process.

    Each start of that process takes 0.1 to 0.6 seconds. The tests of its memory, network and packages use real runs.
    """

    returncode = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def communicate(self, request: bytes, **_: Any) -> tuple[bytes, bytes]:
        """Return what the process would write to stdout and stderr."""
        return json.dumps(verifier.answer(json.loads(request))).encode(), b""

    def kill(self) -> None:
        """Do nothing: this process ends by itself."""


def _lead_home(addresses: set[str]) -> None:
    """Route connections to these addresses to this machine; `getpeername` returns the original addresses."""
    connect, peer = socket.socket.connect, socket.socket.getpeername
    peers: dict[Any, tuple[str, int]] = {}

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

    socket.socket.connect = connected  # type: ignore[method-assign,assignment]
    socket.socket.getpeername = peer_of  # type: ignore[method-assign,assignment]


def _send(to: socket.socket, **message: Any) -> None:
    # The client may have closed the connection.
    with contextlib.suppress(OSError):
        to.sendall(json.dumps(message).encode() + b"\n")


def _read_line(source: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and (got := source.recv(1 << 16)):
        line += got
    return bytes(line)


def _open_streams(descriptors: list[int], closed: list[int]) -> None:
    """Make these descriptors 0, 1 and 2 and open Python's streams on them; those `closed` are as after `<&-`."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for number, (name, mode) in enumerate((("stdin", "rb"), ("stdout", "wb"), ("stderr", "wb"))):
        ours = getattr(sys, name)
        if number in closed:
            os.close(number)
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
            continue
        raw = open(number, mode, closefd=False)  # noqa: SIM115 - it is the process's
        stream = io.TextIOWrapper(raw, encoding=ours.encoding, errors=ours.errors, line_buffering=ours.line_buffering)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _drop_privileges() -> None:
    """Give up root's privilege to read and write every file, for this process and the programs that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    # For each 32 capabilities: effective, permitted, inheritable.
    sets = ctypes.create_string_buffer(struct.calcsize("6I"))
    failed = libc.capget(header, sets)
    mask = ~sum(1 << number for number in _FILE_CAPABILITIES)
    words = [word & mask if index < 3 else word for index, word in enumerate(struct.unpack("6I", sets.raw))]
    for number in _FILE_CAPABILITIES:
        failed |= libc.prctl(_DROP_FROM_BOUNDING_SET, number, 0, 0, 0)
    failed |= libc.capset(header, struct.pack("6I", *words))
    if failed:
        raise OSError(ctypes.get_errno(), "cannot drop capabilities")


def _set_environment(env: dict[str, str]) -> None:
    """Make this the environment, and write only what differs: each write takes time in a fork."""
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    for name, value in env.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()


def _reset_signals() -> None:
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _close_all_but(kept: Iterable[int]) -> None:
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _prepare(run: socket.socket, descriptors: list[int]) -> dict[str, Any]:
    """Read the request, and set up this process for it, except for the descriptors that it must not have."""
    _reset_signals()
    request: dict[str, Any] = json.loads(_read_line(run))
    _open_streams(descriptors, request.get("closed", []))
    if request.get("unprivileged") and os.geteuid() == 0:
        _drop_privileges()
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    if request.get("deletes_cwd"):
        os.rmdir(request["cwd"])  # noqa: PTH106 - pathlib takes longer
    _set_environment(request["env"])
    clock.sleep, clock.skipped = Clock(run, slow=not request.get("no_waits")).sleep, 0.0
    names = request.get("names")
    socket.getaddrinfo = _real_resolve if names is None else Resolver(run, names, request["astray"])
    sys.argv = request["argv"]
    return request


def _run(run: socket.socket, descriptors: list[int], counted: Counted) -> None:
    """Run the command line; this process ends with it."""
    request = _prepare(run, descriptors)
    _close_all_but([run.fileno()])
    _lead_home({given for given in (request.get("names") or {}).values() if isinstance(given, str)})
    counted.begin(os.environ.get("TESTS_CONTEXT"))
    ocistream.cli.run()


def _work(server: socket.socket, run: socket.socket, descriptors: list[int]) -> None:
    """Run command lines, and send the server the exit code of each; end this process after one that left a trace."""
    for turn in range(_RUNS_OF_A_WORKER):
        _prepare(run, descriptors)
        _close_all_but([server.fileno(), run.fileno()])
        code = ocistream.cli.main(sys.argv[1:])
        run.close()
        if not _forget_run(server) or turn == _RUNS_OF_A_WORKER - 1:
            os._exit(code)
        server.sendall(bytes([code]))
        asked, received, _, _ = socket.recv_fds(server, 1, 4)
        if not asked:
            os._exit(0)
        run, descriptors = socket.socket(fileno=received[0]), received[1:]


def _forget_run(server: socket.socket) -> bool:
    """Close the streams of a run; return whether the run has left this process as it was."""
    _reset_signals()
    null = os.open(os.devnull, os.O_RDWR)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(null, number)
        # Bytes that a stream could not write are lost here, as at the end of a process.
        with contextlib.suppress(OSError):
            getattr(sys, name).close()
    os.close(null)
    os.chdir("/")
    sys.unraisablehook = sys.__unraisablehook__
    until = time.monotonic() + _SETTLING
    while _thread._count():  # noqa: SLF001 - `threading` does not know threads that are about to end
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    gc.collect()
    # The next collection skips the objects of modules that the run imported.
    gc.freeze()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        return False
    # The descriptor that reads the list is in the list.
    return _DESCRIPTORS.exists() and len(os.listdir(_DESCRIPTORS)) == len((0, 1, 2, server.fileno(), "the list"))  # noqa: PTH208 - faster


def _fork(wakeup: tuple[int, int], act: Callable[[], None]) -> int:
    """Fork a process that calls `act`, which ends it; return its PID."""
    child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)
        for descriptor in wakeup:
            os.close(descriptor)
        os.setsid()
        act()
    except BaseException:  # noqa: BLE001 - this process must not become a second server
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(70)


class Forks:
    """The runs and the workers of this server."""

    def __init__(self, selector: selectors.BaseSelector, wakeup: tuple[int, int], counted: Counted) -> None:
        self._selector, self._wakeup, self._counted = selector, wakeup, counted
        #: The socket of each run, by PID.
        self._runs: dict[int, socket.socket] = {}
        #: PIDs of workers that wait, the socket of each worker by PID, and the PID by the socket's descriptor.
        self._idle: list[int] = []
        self._workers: dict[int, socket.socket] = {}
        self._pids: dict[int, int] = {}

    def start(self, run: socket.socket, descriptors: list[int], *, shared: bool) -> None:
        """Start a run, close the descriptors that only the run needs, and send its PID."""
        # Coverage saves its counts at the end of a process.
        if shared and not self._counted.is_counting:
            pid = self._hand_over(run, descriptors) or self._start_worker(run, descriptors)
        else:
            pid = _fork(self._wakeup, lambda: _run(run, descriptors, self._counted))
        for descriptor in descriptors:
            os.close(descriptor)
        self._runs[pid] = run
        _send(run, pid=pid)

    def listen(self, descriptor: int) -> None:
        """Read the exit code of a run from the socket of its worker, if `descriptor` is such a socket."""
        if (pid := self._pids.get(descriptor)) is None:
            return
        code = b""
        # It is reset if the worker was killed before it read its next run.
        with contextlib.suppress(ConnectionResetError):
            code = self._workers[pid].recv(1)
        if code:
            self._idle.append(pid)
            self._end(pid, code[0])
        else:
            self._remove_worker(pid)

    def reap(self) -> None:
        """Send the exit code of each run whose process has ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._end(ended[0], os.waitstatus_to_exitcode(ended[1]))

    def _hand_over(self, run: socket.socket, descriptors: list[int]) -> int | None:
        """Give a run to a worker that waits; return its PID, None if none waits."""
        while self._idle:
            pid = self._idle.pop()
            with contextlib.suppress(OSError):
                socket.send_fds(self._workers[pid], [_SHARED], [run.fileno(), *descriptors])
                return pid
        return None

    def _start_worker(self, run: socket.socket, descriptors: list[int]) -> int:
        ours, theirs = socket.socketpair()
        with theirs:
            pid = _fork(self._wakeup, lambda: _work(theirs, run, descriptors))
        self._workers[pid], self._pids[ours.fileno()] = ours, pid
        self._selector.register(ours, selectors.EVENT_READ)
        return pid

    def _remove_worker(self, pid: int) -> None:
        if pid in self._idle:
            self._idle.remove(pid)
        with self._workers.pop(pid) as ours:
            del self._pids[ours.fileno()]
            self._selector.unregister(ours)

    def _end(self, pid: int, code: int) -> None:
        """Send an exit code; a worker that waits and ends has no run."""
        if (run := self._runs.pop(pid, None)) is not None:
            with run:
                _send(run, code=code)


def _import_all() -> None:
    for module in pkgutil.walk_packages(ocistream.__path__, "ocistream."):
        if module.name not in _NEVER_IMPORTED:
            importlib.import_module(module.name)
    for name in _LAZY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _warm_up() -> None:
    """Run a few commands once: forks inherit compiled patterns, filled caches and specialized bytecode.

    This saves each fork a tenth of its time. The commands leave no state: `main` resets its modules and handlers.
    """
    # Not `ocistream.serve`, which tests must not use as their registry (tests/self/test_imports.py).
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.images import Layout, small_image  # noqa: PLC0415 - the path must not stay
    from tests.registry import Registry  # noqa: PLC0415 - as above

    del sys.path[0]
    hook, null = sys.unraisablehook, os.open(os.devnull, os.O_RDWR)
    kept = [os.dup(number) for number in range(3)]
    for number in range(3):
        os.dup2(null, number)
    with tempfile.TemporaryDirectory() as folder, Registry(Path(folder, "registry")) as registry:
        layout, archive, image = Layout(Path(folder, "layout")), f"{folder}/image.tar", f"{registry.host}/image:1"
        small_image(layout, name="image")
        for argv in (
            *([command, "--help"] for command in ("pull", "push", "copy", "sync", "serve")),
            ["copy", str(layout.path), image],
            ["pull", image, "-o", archive],
            ["push", "-i", archive, image],
            ["inspect", image],
            ["verify", archive],
        ):
            ocistream.cli.main(argv)
    for number, descriptor in enumerate(kept):
        os.dup2(descriptor, number)
    for descriptor in (null, *kept):
        os.close(descriptor)
    sys.unraisablehook = hook
    # Only a process with one thread may fork: worker threads end a little later than their work.
    while _thread._count():  # noqa: SLF001 - `threading` does not know that thread
        time.sleep(0.001)


def _collapse_pages() -> None:
    """Move the memory of this process to huge pages, if Linux supports it (6.1): a fork then copies fewer page tables.

    This saves each fork about a millisecond.
    """
    maps, libc = Path("/proc/self/maps"), ctypes.CDLL(None)
    for line in maps.read_text().splitlines() if maps.exists() else ():
        span, rights, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in span.split("-"))
        first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if rights == "rw-p" and inode == "0" and first < last:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_COLLAPSE)


class Counted:
    """The counts of coverage in forks, in files of a folder until the end: files of coverage take 25 ms or more each.

    In a fork it replaces coverage's data; in the server it adds up the counts of the forks.
    """

    def __init__(self) -> None:
        module = sys.modules.get("coverage")
        self._coverage = module.Coverage.current() if module else None
        self._folder = tempfile.TemporaryDirectory(prefix="counted-")
        if self._coverage is not None:
            # Save the counts of the imports, so that no fork saves them again.
            self._coverage.save()

    @property
    def is_counting(self) -> bool:
        """Whether coverage runs."""
        return self._coverage is not None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing while the block runs."""
        if self._coverage is not None:
            self._coverage.stop()
        yield
        if self._coverage is not None:
            self._coverage.start()

    def begin(self, test: str | None) -> None:
        """Make this process, a fork, save its counts in the form that `end` reads.

        With `test` it saves its own file of coverage: tests/mutants records what each test executes.
        """
        if self._coverage is not None and test:
            self._coverage.switch_context(test)
        elif self._coverage is not None:
            collector = self._coverage._collector  # noqa: SLF001 - there is no other way
            collector.covdata = self
            self._coverage.save = collector.flush_data

    def add_arcs(self, arcs: dict[str, list[tuple[int, int]]]) -> None:
        """Save counts."""
        with open(f"{self._folder.name}/{os.getpid()}", "ab") as file:  # noqa: PTH123 - pathlib takes longer
            marshal.dump({name: list(pairs) for name, pairs in arcs.items()}, file)

    def add_file_tracers(self, _: dict[str, str]) -> None:
        """Do nothing: there are no file tracers."""

    def end(self) -> None:
        """Add all saved counts to coverage's data in this process."""
        together: dict[str, set[tuple[int, int]]] = {}
        for path in Path(self._folder.name).iterdir():
            # The last one may be incomplete, of a fork that was killed.
            with path.open("rb") as file, contextlib.suppress(EOFError, ValueError, TypeError):
                while True:
                    for name, pairs in marshal.load(file).items():  # noqa: S302 - a fork has written it
                        together.setdefault(name, set()).update(pairs)
        if together:
            self._coverage.get_data().add_arcs(together)  # type: ignore[union-attr]
        self._folder.cleanup()


def serve(requests: socket.socket, listener: socket.socket) -> None:
    """Fork for each request, until the client closes its end; also for each connection to `listener`."""
    _import_all()
    replaced = SimpleNamespace(**{**vars(subprocess), "Popen": Verifier})
    verifier_process.subprocess = replaced  # type: ignore[assignment,attr-defined]
    counted = Counted()
    with counted.paused():
        _warm_up()
    # A fork that collects garbage would copy all of these objects.
    gc.collect()
    gc.freeze()
    _collapse_pages()
    wakeup = os.pipe()
    for descriptor in wakeup:
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup[1])
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wakeup[0], selectors.EVENT_READ)
        forks = Forks(selector, wakeup, counted)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            for descriptor in ready:
                forks.listen(descriptor)
            if wakeup[0] in ready:
                os.read(wakeup[0], 4096)
                forks.reap()
            if requests.fileno() in ready:
                asked, received, _, _ = socket.recv_fds(requests, 1, 4)
                if not asked:
                    counted.end()
                    return
                forks.start(socket.socket(fileno=received[0]), received[1:], shared=asked == _SHARED)
            if listener.fileno() in ready:
                run, _ = listener.accept()
                _, received, _, _ = socket.recv_fds(run, 1, 3)
                forks.start(run, received, shared=False)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])))
