"""README and the documents beside it say nothing of the command line that --help does not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

import click

from ocistream.cli import COMMANDS
from ocistream.cli.entry import cli
from tests.package.conftest import ROOT

README: Final = (ROOT / "README.md").read_text()
#: Options of other programs of which README has a command line, and one that is said not to be there.
OTHERS: Final = {"--check", "--htpasswd"}


def options(name: str) -> set[str]:
    """Return how a command's options may be spelled."""
    context = click.Context(cli, info_name="ocistream")
    command = cli.get_command(context, name)
    assert command is not None
    return {spelling for parameter in command.get_params(context) for spelling in parameter.opts}


def invocations() -> Iterator[list[str]]:
    """Give the words behind each `ocistream` in README's blocks of shell and in its text."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [text.replace("\n", " ") for text in re.findall(r"`(ocistream [^`]+)`", README)]
    for line in lines:
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if word == "ocistream":
                rest = words[at + 1 :]
                end = next((n for n, other in enumerate(rest) if other in {"|", ">", "&&"}), len(rest))
                yield rest[:end]


def test_each_command_in_the_readme_is_one_and_has_the_options_that_are_shown() -> None:
    seen = set()
    for name, *words in invocations():
        if name == "COMMAND":
            continue
        assert name in COMMANDS, name
        seen.add(name)
        shown = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert shown <= options(name), (name, words)
    # logout is named with login, and needs no example.
    assert seen >= set(COMMANDS) - {"logout", "login"}


def test_each_option_that_the_readme_names_is_one() -> None:
    every = {spelling for name in COMMANDS for spelling in options(name)}
    text = re.sub(r"```(?:yaml|toml).*?```|\n\| [^\n]*", "", README, flags=re.DOTALL)
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+[a-z])\b(?![-*])", text))
    scripts = {"--missing"}
    assert named - every - OTHERS - scripts == set()
