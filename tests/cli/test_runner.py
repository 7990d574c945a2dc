"""The test runner of the command line measures processes and truncates pipes correctly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from coverage import CoverageData

import ocistream
from tests import fork_runner
from tests import runner as run
from tests.cli.serving import really_serving, serving
from tests.images import Layout

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


def descriptors(pid: int) -> list[str]:
    """Return the kinds of the open descriptors of a process."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115 - not a path
    return sorted(link.partition(":")[0] for link in links)


def test_a_fork_has_no_descriptors_of_another_one(tmp_path: Path) -> None:
    with serving(tmp_path) as (first, _), really_serving(tmp_path) as (real, _), serving(tmp_path) as (second, _):
        assert descriptors(first.pid) == descriptors(second.pid)
        # One more than a real process: the fork reports its pauses through it.
        assert len(descriptors(second.pid)) == len(descriptors(real.pid)) + 1
        assert os.getsid(second.pid) == second.pid != os.getsid(first.pid)


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
