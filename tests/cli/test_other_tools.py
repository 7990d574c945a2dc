"""Command lines of skopeo, crane, regctl, oras, docker and podman, and the answers (other_tools.toml)."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.archives import small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.commands import commands
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, small_image, two_platforms
from tests.registry_http import seed
from tests.runner import ocistream

ROWS: Final = tomllib.loads(Path(__file__).with_name("other_tools.toml").read_text())["rows"]
TOOLS: Final = {"skopeo", "crane", "regctl", "oras", "docker", "podman"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRegistry]:
    """Return the registry R of the table."""
    folder = tmp_path_factory.mktemp("served")
    layout = Layout(folder / "layout")
    with FaultyRegistry(folder / "registry") as served:
        for tag, image in (("1", two_platforms(layout)), ("2", small_image(layout))):
            seed(layout, image, served.host, "app", tag)
        yield served


@pytest.mark.parametrize(("line", "code", "words", "verdict"), ROWS, ids=[row[0] for row in ROWS])
def test_a_command_line_of_another_tool_works_or_gets_a_hint_with_the_right_one(
    registry: FaultyRegistry, layout: Layout, tmp_path: Path, line: str, code: int, words: str, verdict: str
) -> None:
    small_image(layout, name="app:1")
    for name in ("app.tar", "b.tar"):
        (tmp_path / name).write_bytes(tar_of(small_first(layout)))
    tool, *argv = (word.replace("R/", f"{registry.host}/") for word in shlex.split(line))
    result = ocistream(*argv, cwd=tmp_path, env={"HOME": str(tmp_path / "home")}, stdin=b"")
    assert (tool in TOOLS, result.code) == (True, code), (result.argv, result.err)
    answer = result.out.decode(errors="replace") + result.err
    assert words.replace("R/", f"{registry.host}/") in answer
    if code:
        assertions.failure(result, code)
    assert verdict in ({"told", "done", "other"} if code else {"done", "other"})


def test_the_table_has_each_tool_and_no_line_twice() -> None:
    assert {row[0].split()[0] for row in ROWS} == TOOLS
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 60


def test_help_and_version_are_commands_too() -> None:
    assert ocistream("help").out == ocistream("--help").out
    assert ocistream("version").out == ocistream("--version").out
    for name in ("help", "version"):
        assert ocistream("help", name).out == ocistream("--help").out
    for name in commands():
        assert ocistream("help", name).out == ocistream(name, "--help").out
    assertions.failure(ocistream("help", "no-such-command"), 2, "no-such-command")


@pytest.mark.parametrize("argv", [["help", "pull", "push"], ["help", "help", "push"], ["version", "push"]])
def test_help_takes_one_command_and_version_none(argv: list[str]) -> None:
    assertions.failure(ocistream(*argv), 2, "extra argument (push)", "`ocistream help [COMMAND]`")
    succeed(*argv[:-1], "--help")
