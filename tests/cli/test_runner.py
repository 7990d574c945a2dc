"""The test runner of the command line measures processes and truncates pipes correctly."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coverage import CoverageData

import ocistream
from tests import fork_runner
from tests import runner as run
from tests.faulty_registry import Fault, FaultyRegistry, too_many_requests
from tests.fork_runner import Astray
from tests.http_doubles import unused_port
from tests.images import Layout
from tests.registry_http import seed

MIB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_the_peak_is_that_of_the_process_even_if_the_tests_use_much_memory() -> None:
    ballast = bytearray(200 * MIB)
    ballast[::4096] = bytes(len(ballast[::4096]))
    assert 5 * MIB < (run.run_measured(python("pass")).peak or 0) < 20 * MIB


def test_the_peak_counts_memory_that_was_freed() -> None:
    result = run.run_measured(python(f"x = bytearray({100 * MIB}); x[::4096] = bytes({100 * 256}); del x"))
    assert 100 * MIB < (result.peak or 0) < 130 * MIB


def test_a_measured_process_keeps_its_streams_and_its_status() -> None:
    code = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.stderr.write('seen'); sys.exit(6)"
    result = run.run_measured(python(code), stdin=b"words")
    assert (result.code, result.out, result.err) == (6, b"WORDS", "seen")


def test_a_signal_that_ends_a_measured_process_is_reported() -> None:
    result = run.run_measured(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert result.code == -signal.SIGKILL


def test_an_environment_variable_can_be_set_and_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "1")
    code = "import os; print(os.environ.get('GONE'), os.environ.get('SET'))"
    assert run.run(python(code), env={"GONE": None, "SET": "2"}).out == b"None 2\n"


def test_ocistream_is_the_installed_command(tmp_path: Path) -> None:
    result = run.ocistream("--version", cwd=tmp_path)
    assert (result.code, result.err) == (0, "")
    assert ocistream.__version__ in result.out.decode()


WRITER = """
import os, signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
for _ in range(64): os.write(1, bytes(65536))
"""
COUNTER = """
import sys
total = 0
while chunk := sys.stdin.buffer.read(65536): total += len(chunk)
print(total)
"""


@pytest.fixture
def code_as_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a pipe's processes run Python code, to test the pipe and not ocistream."""
    monkeypatch.setattr(run, "command", lambda: [sys.executable, "-S", "-c"])


@pytest.mark.usefixtures("code_as_command")
def test_a_pipe_passes_all_bytes_and_both_processes_are_measured() -> None:
    first, second = run.measured_pipe([WRITER], [COUNTER])
    assert (first.code, second.code, second.out) == (0, 0, b"%d\n" % (4 * MIB))
    assert first.peak
    assert second.peak


@pytest.mark.usefixtures("code_as_command")
def test_a_truncated_pipe_ends_both_processes() -> None:
    first, second = run.measured_pipe([WRITER], [COUNTER], cut=MIB + 1)
    assert (first.code, second.out) == (-signal.SIGPIPE, b"%d\n" % (MIB + 1))


@pytest.mark.usefixtures("code_as_command")
def test_the_writer_notices_that_the_reader_exits() -> None:
    first, second = run.measured_pipe([WRITER], ["pass"])
    assert (first.code, second.code) == (-signal.SIGPIPE, 0)


@pytest.mark.usefixtures("code_as_command")
def test_a_started_process_is_terminated_at_the_end_of_the_block() -> None:
    with run.started("import time; print('ready', flush=True); time.sleep(600)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    assert process.returncode == -signal.SIGTERM


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["pull", "--help"], ["verify", "x.tar"], ["pul"]])
def test_a_fork_ends_as_a_real_process_does(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
    forked, real = run.ocistream(*argv, cwd=tmp_path), run.real(*argv, cwd=tmp_path)
    assert forked == real


def test_a_fork_has_only_the_given_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCISTREAM_LOG_FORMAT", "json")
    assert run.ocistream("verify", tmp_path / "absent").err.startswith("{")
    assert run.ocistream("verify", tmp_path / "absent", env={"OCISTREAM_LOG_FORMAT": None}).err.startswith("ocistream")
    monkeypatch.delenv("OCISTREAM_LOG_FORMAT")
    assert run.ocistream("verify", tmp_path / "absent").err.startswith("ocistream")


def test_a_variable_that_python_reads_at_start_needs_a_new_process(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(77)")
    assert run.ocistream("--version", env={"PYTHONPATH": str(tmp_path)}).code == 77


@pytest.fixture
def archive(layout: Layout, tmp_path: Path) -> Path:
    layout.image([8 * MIB], name="app")
    assert run.ocistream("copy", layout.path, tmp_path / "app.tar").code == 0
    return tmp_path / "app.tar"


def test_a_fork_reads_a_pipe_or_a_file_and_writes_a_pipe_or_a_file(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for stdin in (content, archive):
        assert b"ok: OCI archive" in run.ocistream("verify", stdin=stdin).out
    piped = run.ocistream("copy", archive, "-")
    assert piped.out == content
    assert run.ocistream("copy", archive, "-", stdout=tmp_path / "out").out == b""
    assert (tmp_path / "out").read_bytes() == content


def test_a_fork_that_reads_nothing_does_not_block_the_writer() -> None:
    assert run.ocistream("--version", stdin=bytes(8 * MIB)).code == 0


@pytest.mark.parametrize("umask", [0o027, 0o022])
def test_a_fork_has_the_umask_of_the_tests(umask: int, layout: Layout, tmp_path: Path) -> None:
    layout.image([10_000], name="app")
    before = os.umask(umask)
    try:
        run.ocistream("copy", layout.path, tmp_path / "x.tar")
    finally:
        os.umask(before)
    assert (tmp_path / "x.tar").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(("number", "argv"), [(0, ["verify"]), (1, ["copy", "LAYOUT", "-"]), (2, ["--version"])])
def test_a_fork_with_a_closed_stream_ends_as_a_real_process_does(number: int, argv: list[str], layout: Layout) -> None:
    layout.image([b"layer"], name="app")
    argv = [word.replace("LAYOUT", str(layout.path)) for word in argv]
    forked = run.ocistream(*argv, closed=[number])
    real = run.run(["sh", "-c", f'exec "$@" {number}>&-', "-", *run.command(), *argv])
    assert (forked.code, forked.out, forked.err) == (real.code, real.out, real.err)
    assert forked.code == (0 if number == 2 else 2)


def test_a_fork_without_privileges_cannot_read_every_file(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    result = run.ocistream("verify", closed / "x", unprivileged=True)
    assert (result.code, os.strerror(errno.EACCES) in result.err) == (9, True)


def test_a_fork_can_delete_its_working_directory(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    assert run.ocistream("--version", cwd=tmp_path / "gone", deletes_cwd=True).code == 0
    assert not (tmp_path / "gone").exists()


def test_a_pipe_of_forks_can_be_truncated(archive: Path) -> None:
    first, second = run.pipe(["copy", archive, "-"], ["verify"])
    assert (first.code, second.code) == (0, 0)
    assert b"ok: OCI archive" in second.out
    first, second = run.pipe(["copy", archive, "-"], ["verify"], cut=MIB)
    assert (first.code, second.code) == (141, 6)
    first, second = run.pipe(["copy", archive, "-"], ["--version"])
    assert (first.code, second.code) == (141, 0)


def test_a_program_starts_a_fork_as_it_does_a_real_process(archive: Path, tmp_path: Path) -> None:
    os.link(archive, tmp_path / "here.tar")
    env = {"OCISTREAM_LOG_FORMAT": "json"}
    for argv in (["copy", "-q", "here.tar", "-"], ["verify", "absent.tar"]):
        forked, real = (
            run.run([*start, *argv], stdin=archive, cwd=tmp_path, env=env)
            for start in (run.forking_command(), run.command())
        )
        assert (forked.code, forked.out, forked.err) == (real.code, real.out, real.err)


def test_a_program_ends_a_fork_as_it_does_a_real_process(tmp_path: Path) -> None:
    line = [*run.forking_command(), "serve", str(tmp_path), "--listen=127.0.0.1:0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.terminate()
        # The fork has closed its stdout, too.
        assert process.stdout.read() == b""
    assert process.returncode == 128 + signal.SIGTERM


def test_a_program_that_starts_a_fork_sees_it_stop_reading() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as pipe:
        line = [*run.forking_command(), "--version"]
        with subprocess.Popen(line, stdin=read, stdout=subprocess.DEVNULL):
            os.close(read)
        with pytest.raises(BrokenPipeError):
            pipe.write(b"x")


def test_a_running_fork_can_be_written_to_polled_and_terminated(archive: Path, tmp_path: Path) -> None:
    with run.started_fork("verify", stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(archive.read_bytes())
        assert process.poll() is None
        out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"ok: OCI archive" in out
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        with run.started_fork("serve", tmp_path / "store", "--listen=127.0.0.1:0") as server:
            assert server.stdout.readline().startswith(b"127.0.0.1:")
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(0)
            server.send_signal(number)
            assert server.wait() == code
    with run.started_fork("serve", tmp_path / "store", "--listen=127.0.0.1:0") as server:
        assert server.stdout.readline()
    assert server.returncode == 128 + signal.SIGTERM


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[fork_runner.Fork]:
    """Start a fork that runs until it gets a signal, and wait for its first line."""
    reader, writer = os.pipe()
    nothing = os.open(os.devnull, os.O_RDWR)
    line = ["ocistream", "serve", str(folder), "--listen=127.0.0.1:0"]
    fork = fork_runner.server().fork(
        fork_runner.Request(line, dict(os.environ), str(folder)), [nothing, writer, nothing]
    )
    os.close(writer)
    os.close(nothing)
    try:
        with os.fdopen(reader, "rb") as said:
            assert said.readline()
            yield fork
    finally:
        fork.kill()
        while fork.code is None:
            fork.read()
        fork.close()


def descriptors(pid: int) -> list[str]:
    """Return the kinds of the open descriptors of a process."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115 - not a path
    return sorted(link.partition(":")[0] for link in links)


def test_a_signal_that_ends_a_fork_is_reported(tmp_path: Path) -> None:
    with serving(tmp_path) as fork:
        os.kill(fork.pid, signal.SIGTERM)
        while fork.read():
            pass
        assert fork.code == 128 + signal.SIGTERM
    with serving(tmp_path) as fork:
        pass
    assert fork.code == -signal.SIGKILL


def test_a_fork_has_no_descriptors_of_another_one(tmp_path: Path) -> None:
    with serving(tmp_path) as first, run.started("serve", tmp_path, "--listen=127.0.0.1:0") as real:
        assert real.stdout
        assert real.stdout.readline()
        with serving(tmp_path) as second:
            assert descriptors(first.pid) == descriptors(second.pid)
            # One more than a real process: the fork reports its pauses through it.
            assert len(descriptors(second.pid)) == len(descriptors(real.pid)) + 1
            assert os.getsid(second.pid) == second.pid != os.getsid(first.pid)


def test_the_pauses_of_a_fork_are_reported_and_can_be_skipped(
    start: Callable[..., FaultyRegistry], layout: Layout, tmp_path: Path
) -> None:
    registry = start(Fault(too_many_requests(retry_after=60), "GET|HEAD", "/manifests/"))
    seed(layout, layout.image([10_000]), registry.host, "app", "1")
    result = run.ocistream("pull", f"{registry.host}/app:1", "-o", tmp_path / "x.tar", no_waits=True)
    assert (result.code, result.waits) == (0, (60.0,))


def test_a_test_sets_the_addresses_of_host_names_in_a_fork(
    start: Callable[..., FaultyRegistry], layout: Layout, tmp_path: Path
) -> None:
    registry = start()
    seed(layout, layout.image([10_000]), registry.host, "app", "1")
    port = int(registry.host.rpartition(":")[2])

    def pull(name: str, astray: Astray | None = None) -> run.Result:
        argv = ["pull", f"{name}/app:1", "-o", str(tmp_path / "x.tar"), "--plain-http", "--retries=1"]
        return run.ocistream(*argv, names={"registry.test": port}, astray=astray, no_waits=True)

    assert pull("registry.test").code == 0
    unknown = pull("other.test")
    assert (unknown.code, unknown.connected) == (7, {})
    once = pull("registry.test", Astray("registry.test", first=1, times=1, how="again"))
    assert (once.code, once.connected, len(once.waits)) == (0, {"registry.test": 2}, 1)
    for_ever = pull("registry.test", Astray("registry.test", first=1, times=None, how="port", port=unused_port()))
    assert (for_ever.code, for_ever.connected) == (7, {"registry.test": 2})


def test_a_fork_runs_the_sitecustomize_of_a_test(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import ocistream\nocistream.__version__ = '7.7.7'\n")
    assert run.ocistream("--version", machine=tmp_path).lines() == ["ocistream 7.7.7"]
    assert run.ocistream("--version").lines() == [f"ocistream {ocistream.__version__}"]


def test_branches_of_forks_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COVERAGE_PROCESS_START", str(Path(__file__).parents[2] / "pyproject.toml"))
    monkeypatch.setenv("COVERAGE_FILE", str(tmp_path / "counted"))
    for argv in (["verify", "absent"], ["rm", "absent", "a"]):
        run.ocistream(*argv, cwd=tmp_path)

    def counted() -> list[int]:
        (file,) = tmp_path.glob("counted.*")
        data = CoverageData(str(file))
        data.read()
        folder = Path(ocistream.__file__).parent / "cli" / "commands"
        return [len(data.lines(str(folder / name)) or ()) for name in ("verify.py", "rm.py")]

    imports = counted()
    fork_runner.server().close()
    after = counted()
    assert all(now > before > 0 for now, before in zip(after, imports, strict=True)), (imports, after)
