"""Two programs write to one terminal: no line of either is truncated or overwritten."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.archives import items_of, tar_of
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.terminal import Screen, on_terminal
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.runner import command

MIB = 1 << 20
#: A program that reads its input and writes to the terminal: complete lines at random times, and prompts without a
#: newline that stay for a while, as those of ssh.
TALKER = r"""
import os, random, sys, threading, time
rest = random.Random(int(sys.argv[1]))
for number in range(3):
    os.write(2, b"banner %d\n" % number)
os.write(2, b"me@host's password: ")
time.sleep(0.5)
os.write(2, b"\n")
def talk():
    for number in range(30):
        os.write(2, b"permission denied %d\n" % number)
        time.sleep(rest.random() / 5)
talking = threading.Thread(target=talk)
talking.start()
while os.read(0, 1 << 16):
    pass
talking.join()
os.write(2, b"Really delete? [y/N] ")
time.sleep(0.5)
os.write(2, b"\nbye\n")
"""


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with layers of 3 MiB, 2 MiB and a few bytes."""
    return layout.image([3 * MIB, 2 * MIB, b"small"], name="app")


@pytest.mark.parametrize(
    "settings",
    [
        [(40, []), (80, ["-v"]), (200, ["--progress=plain"])],
        pytest.param(
            list(itertools.product([40, 80, 200], [[], ["-v"], ["--progress=plain"]])), marks=pytest.mark.nightly
        ),
    ],
)
def test_no_line_is_truncated_or_overwritten_with_a_second_program(
    registry: FaultyRegistry, settings: Sequence[tuple[int, list[str]]]
) -> None:
    # In parallel: each run takes longer than the time between two progress lines, but little CPU time.
    with ThreadPoolExecutor(len(settings)) as threads:
        list(threads.map(lambda setting: beside_a_program_that_talks(registry, *setting), settings))


def beside_a_program_that_talks(registry: FaultyRegistry, columns: int, options: list[str]) -> None:
    """Pull into `TALKER` on a terminal with this number of columns, and check each line of both programs."""
    seen = on_terminal(
        *("pull", f"{registry.host}/app:1", "--limit-rate=800k", *options),
        piped_into_program=[sys.executable, "-c", TALKER, str(columns)],
        size=(24, columns),
    )
    assert seen.code == 0
    lines = Screen(columns, seen.screen).written
    said = [line for line in lines if line and not line.startswith("ocistream: ")]
    prompts = ["me@host's password:", "Really delete? [y/N]"]
    talk = [*(f"banner {number}" for number in range(3)), *(f"permission denied {number}" for number in range(30))]
    assert sorted(said) == sorted([*talk, *prompts, "bye"])
    ours = [line for line in lines if line.startswith("ocistream: ")]
    whole = [
        r"4 blobs, 5\.2 MB in all",
        r"[0-9.]+ [kM]B of 5\.2 MB, [0-9]+ %, [0-4] of 4 blobs, [0-9.]+ [kM]?B/s(, [0-9]+ s left)?",
        r"copied sha256:[0-9a-f]{64} \([0-9.]+ [kM]?B\)",
        r"copied 4 blobs, 5\.2 MB, in [0-9.]+ s \([0-9.]+ [kM]B/s\)",
    ]
    assert [line for line in ours if not re.fullmatch("ocistream: (" + "|".join(whole) + ")", line)] == []
    (seconds,) = re.findall(r"copied 4 blobs, 5\.2 MB, in ([0-9.]+) s", "\n".join(ours))
    # One line every five seconds.
    assert 1 <= len([line for line in ours if " of 5.2 MB" in line]) <= 1 + float(seconds) / 5
    assert "%|" not in seen.screen


@pytest.mark.parametrize("length", [1, 60, 80])
def test_a_prompt_keeps_its_row_during_a_transfer(registry: FaultyRegistry, length: int) -> None:
    prompt = "?" * length
    asks = f"import os; os.write(2, b'{prompt}')\nwhile os.read(0, 65536): pass"
    seen = on_terminal(
        *("pull", "-v", f"{registry.host}/app:1"), piped_into_program=[sys.executable, "-c", asks], size=(24, 80)
    )
    assert seen.code == 0
    lines = [line for line in Screen(80, seen.screen).written if line]
    assert [line for line in lines if not line.startswith("ocistream: ")] == [prompt]
    assert len([line for line in lines if line.startswith("ocistream: copied sha256:")]) == 4
    assert lines[-1].startswith("ocistream: copied 4 blobs")


def test_no_line_is_printed_during_a_password_prompt_if_the_transfer_waits(registry: FaultyRegistry) -> None:
    asks = (
        "import os, time; os.write(2, b'password: '); time.sleep(6); os.write(2, b'\\n')\nwhile os.read(0, 65536): pass"
    )
    seen = on_terminal(
        *("pull", f"{registry.host}/app:1"), piped_into_program=[sys.executable, "-c", asks], size=(24, 80)
    )
    assert seen.code == 0
    assert seen.screen.startswith("password: \r\n")


def test_no_progress_line_is_printed_with_a_bar(registry: FaultyRegistry, tmp_path: Path) -> None:
    # The pull takes longer than the time between two lines.
    argv = ("pull", f"{registry.host}/app:1", "--limit-rate=800k", "-o", tmp_path / "app.tar")
    seen = on_terminal(*argv, size=(24, 80))
    assert seen.code == 0
    assert "100%|" in seen.screen
    assert re.findall(r"[0-9]+ %, ", seen.screen) == []


def test_a_requested_bar_is_drawn_with_any_second_program(registry: FaultyRegistry) -> None:
    seen = on_terminal(
        *("pull", f"{registry.host}/app:1", "--progress=bar"),
        piped_into_program=[sys.executable, "-c", "import os\nwhile os.read(0, 65536): pass"],
        size=(24, 80),
    )
    assert seen.code == 0
    assert "100%|" in seen.screen


def test_a_pipe_of_two_ocistreams_has_a_bar_by_default(registry: FaultyRegistry, start: Start) -> None:
    seen = on_terminal(
        *("pull", f"{registry.host}/app:1", "--limit-rate=3M"),
        piped_into=["push", f"{start().host}/other:1"],
        size=(24, 80),
    )
    assert seen.code == 0
    assert "%|" in seen.screen
    lines = Screen(80, seen.screen).written
    assert [
        line for line in lines if not re.match(r"ocistream: copied|127\.0\.0\.1:[0-9]+/other:1@sha256:|$", line)
    ] == []


def test_a_prompt_of_the_via_command_is_not_overwritten(registry: FaultyRegistry, start: Start, tmp_path: Path) -> None:
    # Like ssh, it asks at the terminal and reads its input after it is connected.
    remote = tmp_path / "remote"
    remote.write_text(
        "#!/bin/sh\nprintf 'password: ' >/proc/$PPID/fd/2\nsleep 1\necho >/proc/$PPID/fd/2\nexec \"$@\"\n"
    )
    remote.chmod(0o755)
    seen = on_terminal(
        *("copy", f"{registry.host}/app:1", f"{start().host}/other:1", "--via", remote, "--limit-rate=3M"),
        *("--via-program", command()[0]),
        size=(24, 80),
    )
    assert seen.code == 0
    assert seen.screen.count("password: \r\n") == 2
    # The bar is drawn after the prompt.
    assert "%|" in seen.screen.rpartition("password: ")[2]
    lines = Screen(80, seen.screen).lines
    assert lines.count("password:") == 2


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("options", [[], ["--log-format=json"], ["--progress=none"]])
def test_the_receiving_side_of_a_pipe_without_a_terminal_prints_only_its_result(
    served: FaultyRegistry, layout: Layout, options: list[str]
) -> None:
    result = succeed("push", f"{served.host}/app:1", *options, stdin=tar_of(items_of(layout)))
    assert re.fullmatch(r"127\.0\.0\.1:[0-9]+/app:1@sha256:[0-9a-f]{64}", "\n".join(result.lines()))
    assert result.err == ""


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("option", ["-v", "--progress=plain"])
def test_the_receiving_side_of_a_pipe_prints_a_summary_on_request(
    served: FaultyRegistry, layout: Layout, option: str
) -> None:
    result = succeed("push", f"{served.host}/app:1", option, stdin=tar_of(items_of(layout)))
    assert result.err.splitlines()[-1].startswith("ocistream: copied 4 blobs")


@pytest.mark.usefixtures("image")
def test_a_push_from_a_directory_without_a_terminal_prints_a_summary(served: FaultyRegistry, layout: Layout) -> None:
    result = succeed("push", "-i", layout.path, f"{served.host}/app:1", stdin=b"unused")
    assert result.err.startswith("ocistream: copied 4 blobs")
