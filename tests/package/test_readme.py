"""README and docs name only commands and options that exist, and every link has a target."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

import click

from ocistream.cli import COMMANDS
from ocistream.cli.entry_point import cli
from tests.package.conftest import ROOT

README: Final = (ROOT / "README.md").read_text()
PAGES: Final = "\n".join([README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))])
#: Options of other programs in the documents, an option that the documents call missing, and a placeholder.
OTHERS: Final = {
    *("--check", "--find-links", "--htpasswd", "--new-bundle-format", "--no-index", "--option", "--out"),
    "--with-default-services",
}


def options(name: str) -> set[str]:
    """Return all spellings of a command's options."""
    context = click.Context(cli, info_name="ocistream")
    command = cli.get_command(context, name)
    assert command is not None
    return {spelling for parameter in command.get_params(context) for spelling in parameter.opts}


def invocations() -> Iterator[list[str]]:
    """Yield the words after each `ocistream` in shell blocks and in the text."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGES, re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [text.replace("\n", " ") for text in re.findall(r"`(ocistream [^`]+)`", PAGES)]
    for line in lines:
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if word == "ocistream":
                rest = words[at + 1 :]
                end = next((n for n, other in enumerate(rest) if other in {"|", ">", "&&"}), len(rest))
                yield rest[:end]


def test_shown_commands_and_their_options_exist() -> None:
    seen = set()
    for name, *words in invocations():
        if name == "COMMAND":
            continue
        assert name in COMMANDS, name
        seen.add(name)
        shown = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert shown <= options(name), (name, words)
    # login and logout need no example.
    assert seen >= set(COMMANDS) - {"logout", "login"}


def test_named_options_exist() -> None:
    every = {spelling for name in COMMANDS for spelling in options(name)}
    text = re.sub(r"```(?:yaml|toml).*?```|\n\| [^\n]*", "", PAGES, flags=re.DOTALL)
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+[a-z])\b(?![-*])", text))
    scripts = {"--missing", "--plots", "--quick", "--runs"}
    assert named - every - OTHERS - scripts == set()


def test_the_table_of_commands_matches_the_help() -> None:
    table = README.partition("\n| command | does |\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", table, re.MULTILINE)
    assert rows == [(name, line) for name, (_, line) in COMMANDS.items()]


def test_each_link_has_a_target() -> None:
    for page in (ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), (page.name, target)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
                names = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert anchor in names, (page.name, target)
