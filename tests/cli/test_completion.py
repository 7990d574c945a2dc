"""Completion in real shells on a terminal: type a prefix and press the tab key."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.commands import commands
from tests.peers import need
from tests.runner import forking_command, ocistream

#: Options that start each shell without the user's files, and the line that loads the script. The terminal echoes what
#: is typed, so the prompt is a text that only the shell can have produced.
SHELLS: Final = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(ocistream completion bash)"; PS1=rea"dy>"'),
    "zsh": (["-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(ocistream completion zsh)"; PS1=rea"dy>"'),
    "fish": (
        ["--no-config", "--interactive"],
        'ocistream completion fish | source; function fish_prompt; echo -n rea"dy>"; end',
    ),
}
_SECONDS: Final = 60


def typed(shell: str, folder: Path, dialogue: Sequence[tuple[str, str]]) -> None:
    """Type keys in a shell, wait until the terminal shows the wanted text, and clear the line, for each pair."""
    need(shell)
    options, setup = SHELLS[shell]
    terminal, theirs = pty.openpty()
    (folder / "bin").mkdir()
    program = folder / "bin" / "ocistream"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(forking_command())} "$@"\n')
    program.chmod(0o755)
    # "dumb": no colours and no suggestions. setsid makes the terminal control the shell, and executes the shell.
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb", "HISTFILE": ""}
    line = ["setsid", "--ctty", shell, *options]
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    try:
        os.write(terminal, f"{setup}\n".encode())
        until(terminal, "ready>")
        for keys, wanted in dialogue:
            os.write(terminal, keys.encode())
            until(terminal, wanted)
            # Ctrl-U clears the line.
            os.write(terminal, b"\x15")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def until(terminal: int, wanted: str) -> None:
    """Read until a text is on the screen; fail the test if the shell exits or the time is over."""
    screen = b""
    signal.alarm(_SECONDS)
    try:
        while wanted not in plain(screen):
            screen += os.read(terminal, 1 << 16)
    except OSError:
        pytest.fail(f"the shell exited; its screen: {plain(screen)}")
    finally:
        signal.alarm(0)


def plain(screen: bytes) -> str:
    """Remove the control sequences for the cursor and for colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>(].?|\r|\x08", "", screen.decode(errors="replace"))


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Turn the alarm into a failure."""

    def give_up(*_: object) -> None:
        pytest.fail("the shell does not show the expected text")

    before = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    (tmp_path / "an-archive.tar").touch()
    dialogue = [
        ("ocistream insp\t", "ocistream inspect "),
        ("ocistream pull --plat\t", "ocistream pull --platform "),
        ("ocistream pull --progress js\t", "--progress json "),
        ("ocistream push -i an-arch\t", "-i an-archive.tar "),
        ("ocistream pull --progress=js\t", "--progress=json "),
        ("ocistream push --input=an-arch\t", "--input=an-archive.tar "),
    ]
    typed(shell, tmp_path, dialogue)


def asked(words: str, at: int, **env: str) -> list[str]:
    """Return the answer to bash's completion script."""
    result = succeed(env={"_OCISTREAM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at), **env})
    return result.lines()


def test_every_command_is_offered_and_none_is_imported() -> None:
    assert asked("ocistream ", 1) == [f"plain,{name}" for name in commands()]
    line = [sys.executable, "-P", "-X", "importtime", "-m", "ocistream"]
    env = {**os.environ, "_OCISTREAM_COMPLETE": "bash_complete", "COMP_WORDS": "ocistream pu", "COMP_CWORD": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "plain,pull\nplain,push\n"
    modules = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    assert "ocistream.cli.commands.completion" in modules
    assert (
        modules
        & {"ocistream.cli.commands.pull", "ocistream.cli.commands.push", "ocistream.cli.options", "ocistream.locations"}
        == set()
    )


def test_options_of_the_group_and_of_commands_are_offered() -> None:
    assert asked("ocistream --v", 1) == ["plain,--version"]
    assert asked("ocistream gc --m", 2) == ["plain,--max-size"]


@pytest.mark.uncounted
def test_files_are_offered_for_locations() -> None:
    assert asked("ocistream copy ", 2) == ["file,"]
    assert asked("ocistream verify x", 2) == ["file,x"]
    assert asked("ocistream inspect ./", 2) == ["file,./"]
    assert asked("ocistream pull --jobs ", 3) == [""]


def test_values_after_an_equals_sign_are_completed_in_each_shell() -> None:
    assert asked("ocistream pull --progress = j", 4) == ["plain,json"]
    assert asked("ocistream pull --progress =", 3) == [
        f"plain,{word}" for word in ("auto", "bar", "plain", "json", "none")
    ]
    assert asked("ocistream pull --output = x", 4) == ["file,x"]
    fish = {"_OCISTREAM_COMPLETE": "fish_complete", "COMP_CWORD": "--progress=j"}
    assert asked("ocistream pull --progress=j", 0, **fish) == ["plain,--progress=json"]
    zsh = {"_OCISTREAM_COMPLETE": "zsh_complete"}
    assert asked("ocistream pull --progress=j", 2, **zsh) == ["plain", "--progress=json", "_"]


def test_an_unknown_completion_request_is_an_error() -> None:
    for instruction in ("bash_other", "tcsh_complete", "x"):
        assert ocistream(env={"_OCISTREAM_COMPLETE": instruction}).code == 1


def test_a_stray_completion_variable_does_not_affect_commands() -> None:
    result = ocistream("--version", env={"_OCISTREAM_COMPLETE": "bash_complete"})
    assert result.lines() == ocistream("--version").lines()


def test_an_unsupported_shell_is_an_error() -> None:
    assertions.failure(ocistream("completion", "tcsh"), 2, "bash", "zsh", "fish")
