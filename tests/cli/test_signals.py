"""Signals and closed pipes: exit codes, messages, and files that are left."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.fixture_types import Start
from tests.cli.signalling import signalled
from tests.faulty_registry import Fault, FaultyRegistry, Stall, too_many_requests
from tests.images import Layout
from tests.registry_http import seed, tags
from tests.runner import Argument, Result, command, ocistream, real, run, started, started_fork

MIB = 1 << 20
#: Signals that end a run, and its exit codes.
ENDED = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
#: How a process starts the command line: as the console script does, and as `python -m ocistream`.
_RUN, _MODULE = "from ocistream.cli import run; run()", "runpy.run_module('ocistream', run_name='__main__')"

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def stalling(start: Start, layout: Layout) -> FaultyRegistry:
    """Return a registry with an image `app:1`, whose first layer stalls in its middle."""
    image = layout.image([3 * MIB, 2 * MIB])
    registry = start()
    seed(layout, image, registry.host, "app", "1")
    layer = layout.read(image["digest"])["layers"][0]["digest"]
    # The client collects up to 64 KiB before it writes them, and the tests wait for 1 MiB.
    registry.faults = [Fault(Stall(after=MIB + MIB // 8), "GET", f"/blobs/{layer}", times=None)]
    return registry


def uncounted() -> dict[str, str | None]:
    """Return an environment without coverage, which imports modules and writes a file when a signal ends a process."""
    return dict.fromkeys(name for name in os.environ if name.startswith("COVERAGE_"))


def stopped(
    registry: FaultyRegistry, number: signal.Signals, *argv: Argument, until: Callable[[], bool] = lambda: True
) -> Result:
    """Run a command, and send it a signal when the transfer has stalled and `until` is true."""
    return signalled(number, *argv, until=lambda: any(request.fault for request in registry.requests) and until())


@pytest.mark.parametrize(("number", "code"), ENDED)
def test_a_stopped_pull_into_a_file_keeps_a_partial_file_and_reports_it(
    stalling: FaultyRegistry, folder: Path, number: signal.Signals, code: int
) -> None:
    partial = folder / ".app.tar.partial"
    pull = ("pull", f"{stalling.host}/app:1", "-o", folder / "app.tar")
    ended = stopped(stalling, number, *pull, until=lambda: _has(partial, MIB))
    assert (ended.code, ended.out) == (code, b"")
    first, second = ended.err.splitlines()
    assert first.startswith("ocistream: error: ")
    assert f"are stored in {partial}: re-run the same command to resume" in second
    assertions.nothing_left(folder, partial.name)


def test_a_stopped_pull_into_a_layout_keeps_partial_blobs(
    stalling: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    folder = tmp_path / "pulled"
    layer = stalling.faults[0].path.rpartition(":")[2]
    partial = folder / "blobs" / "sha256" / f".{layer}.partial"
    # The other layer has 2 MiB: a partial file of it would be kept as well.
    (other,) = (path.name for path in layout.file(f"sha256:{layer}").parent.iterdir() if path.stat().st_size == 2 * MIB)
    pull = ("pull", f"{stalling.host}/app:1", "-o", f"{folder}/")

    def until() -> bool:
        return _has(partial, MIB) and partial.with_name(other).exists()

    ended = stopped(stalling, signal.SIGINT, *pull, until=until)
    assert ended.code == 130
    assert f"are stored in {partial}" in ended.err
    assert not (folder / "index.json").exists()
    assert [path.name for path in folder.rglob(".*")] == [partial.name]
    assert layout.file(f"sha256:{layer}").read_bytes().startswith(partial.read_bytes())


@pytest.mark.parametrize("end", ["app.tar", "pulled/"])
def test_a_pull_that_is_stopped_early_leaves_no_files(stalling: FaultyRegistry, folder: Path, end: str) -> None:
    stalling.faults = [dataclasses.replace(stalling.faults[0], action=Stall(after=1000))]
    pull = ("pull", "--jobs=1", f"{stalling.host}/app:1", "-o", f"{folder}/{end}")
    ended = stopped(stalling, signal.SIGTERM, *pull)
    assert (ended.code, len(ended.err.splitlines())) == (143, 1)
    assertions.no_partial_files(folder)


def _has(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size >= size


@pytest.mark.parametrize(("number", "code"), ENDED[:2])
def test_a_stopped_pull_to_stdout_writes_no_end_of_archive(
    stalling: FaultyRegistry, number: signal.Signals, code: int
) -> None:
    ended = stopped(stalling, number, "pull", f"{stalling.host}/app:1")
    assert ended.code == code
    assert 0 < len(ended.out) < 5 * MIB
    pushed = ocistream("push", f"{stalling.host}/other:1", stdin=ended.out)
    assertions.failure(pushed, 6, "truncated")
    assert tags(stalling.host, "other") == []


def test_an_ignored_hangup_does_not_stop_the_command(stalling: FaultyRegistry, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with started("pull", f"{stalling.host}/app:1", "-o", tmp_path / "app.tar") as process:
            assertions.wait_for(lambda: [request for request in stalling.requests if request.fault])
            process.send_signal(signal.SIGHUP)
            stalling.release()
            assert process.wait(60) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_push_that_waits_for_a_pipe_can_be_stopped(served: FaultyRegistry) -> None:
    with started_fork("push", f"{served.host}/app:1", stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(b"blobs/")
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in {143, -signal.SIGTERM}
    assertions.no_image(served)


@pytest.mark.parametrize(
    "line",
    [
        *("--help", "help pull", "version", "completion bash", "config show"),
        *("inspect HOST/app:1", "inspect oci:made --json", "inspect HOST/app", "have HOST/app", "verify made"),
        *("pull HOST/app:1", "pull HOST/app:1 -o app.tar", "push -i made HOST/new:1", "copy oci:made ./app.tar"),
        *("copy oci:made -", "sync sync.toml", "sync sync.toml --dry-run", "rm made app", "gc made --older-than=0"),
        "serve made --listen=127.0.0.1:0",
    ],
)
def test_a_closed_stdout_ends_every_command_without_a_message(
    served: FaultyRegistry, layout: Layout, tmp_path: Path, line: str
) -> None:
    seed(layout, layout.image([b"layer"], name="app"), served.host, "app", "1")
    layout.blob(b"unneeded", "x/y")
    (tmp_path / "sync.toml").write_text(f'[[sync]]\nfrom = "{served.host}/app:1"\nto = "oci:synced"')
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb"):
        result = ocistream(*line.replace("HOST", served.host).split(), cwd=tmp_path, stdout=write)
    assert result.code == 141
    assert [text for text in result.err.splitlines() if "error" in text or "stdout" in text] == []


@pytest.mark.parametrize(("option", "shown"), [("-v", False), ("-vv", True)])
def test_unraisable_exceptions_are_shown_only_with_vv(option: str, shown: bool, tmp_path: Path) -> None:
    # A library's object does this if a signal arrives during its construction.
    program = """
import sys
from ocistream.cli import main

class HalfMade:
    def __del__(self) -> None:
        raise AttributeError("half made")

code = main(["copy", sys.argv[1], sys.argv[2], sys.argv[3]])
HalfMade()
sys.exit(code)
"""
    line = [sys.executable, "-P", "-c", program, option, str(tmp_path / "nothing.tar"), str(tmp_path / "out.tar")]
    result = run(line)
    assert result.code == 4
    assert ("AttributeError" in result.err) is shown
    assert "Exception ignored" not in result.err


def stopped_again_and_again(process: subprocess.Popen[bytes], first: signal.Signals, others: signal.Signals) -> str:
    """Send a signal, and then others until the process has ended; return what it wrote to stderr."""
    process.send_signal(first)
    while process.poll() is None:
        process.send_signal(others)
    return process.communicate(timeout=60)[1].decode()


@pytest.mark.parametrize(
    ("first", "others", "end"),
    [
        (signal.SIGINT, signal.SIGINT, "app.tar"),
        (signal.SIGINT, signal.SIGTERM, "pulled/"),
        (signal.SIGHUP, signal.SIGINT, "-"),
    ],
)
def test_signals_that_follow_the_first_do_no_harm(
    stalling: FaultyRegistry, folder: Path, first: signal.Signals, others: signal.Signals, end: str
) -> None:
    """A wrapper may forward a signal that the terminal has already sent."""
    stalling.faults = [dataclasses.replace(stalling.faults[0], action=Stall(after=1000))]
    to = end if end == "-" else f"{folder}/{end}"
    with started("pull", "--jobs=1", f"{stalling.host}/app:1", "-o", to, env=uncounted()) as process:
        assertions.wait_for(lambda: [request for request in stalling.requests if request.fault])
        said = stopped_again_and_again(process, first, others)
    # If two signals are pending, either may be handled first.
    number = others if process.returncode == 128 + others else first
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert (process.returncode, said) == (128 + number, f"ocistream: error: {word}\n")
    assertions.no_partial_files(folder)


def test_a_second_signal_during_the_deletion_of_an_upload_does_no_harm(start: Start, layout: Layout) -> None:
    layout.image([300_000], name="app")
    # The upload is too small to be kept, so the client deletes it; the registry never answers that.
    registry = start(Fault(Stall(), "DELETE", times=None))
    # The layer takes seconds at this rate, so the signal arrives during the upload.
    push = ("push", "--jobs=1", "--stall-timeout=1000", "--limit-rate=60k", "-i", layout.path, f"{registry.host}/app:1")
    with started(*push, env=uncounted()) as process:
        assertions.wait_for(lambda: registry.asked("PATCH"))
        process.send_signal(signal.SIGINT)
        assertions.wait_for(lambda: registry.asked("DELETE"))
        said = stopped_again_and_again(process, signal.SIGINT, signal.SIGINT)
    assert (process.returncode, said) == (130, "ocistream: error: interrupted\n")
    assertions.no_image(registry)


@pytest.mark.parametrize(("number", "code"), ENDED)
def test_a_signal_at_the_password_prompt_restores_the_echo(number: signal.Signals, code: int) -> None:
    terminal, theirs = pty.openpty()
    try:
        line = [*command(), "login", "-u", "me", "registry.test"]
        # In its own session the process has no other terminal.
        with subprocess.Popen(
            line, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        ) as process:
            assertions.wait_for(lambda: not termios.tcgetattr(theirs)[3] & termios.ECHO)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (code, b"")
        assert b"Traceback" not in err
        assert termios.tcgetattr(theirs)[3] & termios.ECHO
    finally:
        os.close(terminal)
        os.close(theirs)


def test_a_signal_ends_a_credential_helper(tmp_path: Path) -> None:
    helper, pid = tmp_path / "docker-credential-slow", tmp_path / "pid"
    helper.write_text(f"#!/bin/sh\necho $$ > {pid}.part; mv {pid}.part {pid}; exec sleep 600\n")
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "slow"}')
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DOCKER_CONFIG": str(tmp_path)}
    assert signalled(signal.SIGTERM, "logout", "registry.test", env=env, until=pid.exists).code == 143
    assertions.wait_for(lambda: has_ended(int(pid.read_text())))


def test_a_signal_ends_the_process_that_verifies_signatures(tmp_path: Path) -> None:
    pid, key = tmp_path / "pid", tmp_path / "cosign.pub"
    key.write_text("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n")
    (tmp_path / "cryptography.py").write_text(
        f"import os, time\nopen('{pid}.part', 'w').write(str(os.getpid()))\nos.rename('{pid}.part', '{pid}')\n"
        "time.sleep(600)\n"
    )
    with started("verify", "--key", key, "-", env={"PYTHONPATH": str(tmp_path)}) as process:
        assertions.wait_for(pid.exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assertions.wait_for(lambda: has_ended(int(pid.read_text())))


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, even if no other process has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_signal_ends_a_pull_whose_reader_does_not_read(stalling: FaultyRegistry) -> None:
    stalling.faults = []
    with started_fork("pull", f"{stalling.host}/app:1") as process:
        assert process.stdout.read(1000)
        # Its pipe is full now, or soon.
        assertions.wait_for(lambda: stalling.asked("GET", "/blobs/"))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert process.returncode == 143


def test_a_wait_before_a_retry_can_be_interrupted(stalling: FaultyRegistry, tmp_path: Path) -> None:
    stalling.faults = [Fault(too_many_requests(299), "GET", "/blobs/", times=None)]
    for jobs in (1, 2):
        stalling.requests.clear()
        pull = ("pull", f"--jobs={jobs}", f"{stalling.host}/app:1", "-o", tmp_path / "app.tar")
        ended = stopped(stalling, signal.SIGINT, *pull)
        assert (ended.code, ended.err.splitlines()[-1]) == (130, "ocistream: error: interrupted")


# Any two of these values are together in some run: one function handles all signals.
@pytest.mark.parametrize(
    ("number", "code", "begin", "module", "in_json"),
    [
        (*ENDED[0], _RUN, "click", False),
        (*ENDED[0], _MODULE, "ocistream.cli.console", True),
        (*ENDED[1], _RUN, "ocistream.cli.console", True),
        (*ENDED[1], _MODULE, "click", False),
        (*ENDED[2], _RUN, "ocistream.cli.console", False),
        (*ENDED[2], _MODULE, "click", True),
    ],
)
def test_a_signal_during_the_start_prints_no_traceback(
    number: signal.Signals, code: int, begin: str, module: str, *, in_json: bool
) -> None:
    program = f"""
import os, runpy, sys

class Struck:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})

sys.meta_path.insert(0, Struck())
{begin}
"""
    argv = ["--log-format", "json"] if in_json else []
    result = run([sys.executable, "-P", "-c", program, "--version", *argv])
    assert (result.code, result.out) == (code, b"")
    (said,) = result.err.splitlines()
    word = "interrupted" if number == signal.SIGINT else "terminated"
    if in_json:
        assert json.loads(said) == {"level": "error", "message": word, "exit_code": code}
    else:
        assert said == f"ocistream: error: {word}"


def test_a_second_signal_during_the_start_prints_no_second_line() -> None:
    # The second signal comes between the message and the end of the process.
    program = """
import os, sys

write, written = os.write, []

def write_and_kill(descriptor, data):
    written.append(data)
    write(descriptor, data)
    if len(written) == 1:
        os.kill(os.getpid(), 15)

class Struck:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.write = write_and_kill
            os.kill(os.getpid(), 2)

sys.meta_path.insert(0, Struck())
from ocistream.cli import run
run()
"""
    result = run([sys.executable, "-P", "-c", program, "--version"])
    assert (result.code, result.err) == (130, "ocistream: error: interrupted\n")


# The signals take turns at these places; a nightly run tests each signal at each place.
@pytest.mark.parametrize(
    "first", [0, pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize(("verb", "places"), [("--version", (0, 1, 3, 9, 20, 40)), ("pull", (0, 90, 200))])
def test_a_signal_at_any_import_has_its_exit_code(
    served: FaultyRegistry, layout: Layout, tmp_path: Path, first: int, verb: str, places: tuple[int, ...]
) -> None:
    seed(layout, layout.image([4000]), served.host, "app", "1")
    argv = [verb] if verb == "--version" else [verb, f"{served.host}/app:1", "-o", tmp_path / "app.tar"]
    for turn, place in enumerate(places, first):
        number, code = ENDED[turn % len(ENDED)]
        told = tmp_path / f"struck at {place}"
        strike = {"STRIKE_WITH": str(int(number)), "STRIKE_AT": str(place), "STRIKE_TELLS": str(told)}
        path = str(Path(__file__).with_name("signal_on_import"))
        ended = real(*argv, env={"PYTHONPATH": path, **strike, **uncounted()})
        assert told.exists(), "there are fewer imports than this"
        assert (place, ended.code) == (place, code), ended.err
        assert "Traceback" not in ended.err


def test_a_signal_after_the_end_changes_nothing(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys

set_handler = signal.signal

def set_late(number, handler):
    if handler is signal.SIG_IGN:
        os.kill(os.getpid(), signal.SIGHUP)
    return set_handler(number, handler)

signal.signal = set_late
sys.argv[1:] = ["copy", "oci:{tmp_path}/nowhere", "oci:{tmp_path}/there"]
from ocistream.cli import run
run()
"""
    result = run([sys.executable, "-P", "-c", program])
    assertions.failure(result, 4, "nowhere")


def test_a_signal_between_commit_and_exit_counts() -> None:
    program = """
import os, sys
from ocistream.cli import entry_point, run

invoke = entry_point._invoke

def invoke_and_kill(context):
    invoke(context)
    os.kill(os.getpid(), 15)

entry_point._invoke = invoke_and_kill
sys.argv[1:] = ["completion", "bash"]
run()
"""
    result = run([sys.executable, "-P", "-c", program])
    assert (result.code, result.err) == (143, "ocistream: error: terminated\n")
    assert "complete" in result.out.decode()


def test_a_second_signal_does_not_prevent_the_report_of_the_first() -> None:
    # The first signal is old enough for another one to end a command that is blocked.
    program = """
import os, sys, time
from ocistream.cli import entry_point, run

invoke, report = entry_point._invoke, entry_point._report_error

def invoke_and_kill(context):
    invoke(context)
    os.kill(os.getpid(), 15)
    time.sleep(0.7)

def kill_and_report(console, error):
    os.kill(os.getpid(), 15)
    return report(console, error)

entry_point._invoke, entry_point._report_error = invoke_and_kill, kill_and_report
sys.argv[1:] = ["completion", "bash"]
run()
"""
    result = run([sys.executable, "-P", "-c", program])
    assert (result.code, result.err) == (143, "ocistream: error: terminated\n")
