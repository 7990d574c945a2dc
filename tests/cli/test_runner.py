"""The runner of the command line, proven to measure and to cut as it says, on processes whose ways are known."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

import ocistream
from tests import runner as run

MIB = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_the_peak_is_the_processs_own_even_when_the_tests_are_large() -> None:
    ballast = bytearray(200 * MIB)
    ballast[::4096] = bytes(len(ballast[::4096]))
    assert 5 * MIB < (run.run_measured(python("pass")).peak or 0) < 20 * MIB


def test_the_peak_counts_memory_that_was_given_back() -> None:
    result = run.run_measured(python(f"x = bytearray({100 * MIB}); x[::4096] = bytes({100 * 256}); del x"))
    assert 100 * MIB < (result.peak or 0) < 130 * MIB


def test_a_measured_process_keeps_its_streams_and_its_status() -> None:
    code = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.stderr.write('seen'); sys.exit(6)"
    result = run.run_measured(python(code), stdin=b"words")
    assert (result.code, result.out, result.err) == (6, b"WORDS", "seen")


def test_a_signal_that_ends_a_measured_process_is_told() -> None:
    result = run.run_measured(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert result.code == -signal.SIGKILL


def test_an_environment_variable_can_be_set_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Let `pipe` run Python code, to test the pipe and not ocistream."""
    monkeypatch.setattr(run, "command", lambda: [sys.executable, "-S", "-c"])


@pytest.mark.usefixtures("code_as_command")
def test_a_pipe_carries_everything_and_measures_both() -> None:
    first, second = run.pipe([WRITER], [COUNTER])
    assert (first.code, second.code, second.out) == (0, 0, b"%d\n" % (4 * MIB))
    assert first.peak
    assert second.peak


@pytest.mark.usefixtures("code_as_command")
def test_a_cut_pipe_ends_for_both() -> None:
    first, second = run.pipe([WRITER], [COUNTER], cut=MIB + 1)
    assert (first.code, second.out) == (-signal.SIGPIPE, b"%d\n" % (MIB + 1))


@pytest.mark.usefixtures("code_as_command")
def test_the_first_sees_the_second_go() -> None:
    first, second = run.pipe([WRITER], ["pass"])
    assert (first.code, second.code) == (-signal.SIGPIPE, 0)


@pytest.mark.usefixtures("code_as_command")
def test_what_is_started_is_ended_with_the_block() -> None:
    with run.started("import time; print('ready', flush=True); time.sleep(600)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    assert process.returncode == -signal.SIGTERM
