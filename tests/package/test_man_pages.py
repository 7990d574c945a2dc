"""The man pages are well formed and have the contents of --help."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ocistream import errors
from ocistream.cli import COMMANDS
from ocistream.cli.entry_point import cli, load_command
from ocistream.cli.settings import list_configurable_options, variable_name
from tests.package.conftest import ROOT, run
from tests.peers import need

PAGES = ["ocistream", *(f"ocistream-{name}" for name in COMMANDS)]


@pytest.fixture(scope="module")
def man1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all pages."""
    folder = tmp_path_factory.mktemp("man1")
    run(sys.executable, "-m", "scripts.release.man_pages", folder)
    return folder


def shown(page: Path) -> str:
    """Return the text of a page on a very wide terminal."""
    need("mandoc")
    # mandoc overstrikes bold text with itself, and underlines italics.
    return re.sub(".\b(.)", r"\1", run("mandoc", "-T", "ascii", "-O", "width=1000", page).stdout)


def test_each_command_has_a_page(man1: Path) -> None:
    assert {path.name for path in man1.iterdir()} == {f"{name}.1" for name in PAGES}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed(man1: Path, name: str) -> None:
    need("mandoc", "man")
    path = man1 / f"{name}.1"
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", path], capture_output=True, text=True, check=False)
    # Pages have no date, so that the same sources give the same bytes.
    assert [line for line in lint.stdout.splitlines() if "missing date" not in line] == []
    assert run("man", "--warnings", "--local-file", path).stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_and_every_example_of_the_help(man1: Path, name: str) -> None:
    text = shown(man1 / f"ocistream-{name}.1")
    context = click.Context(cli, info_name="ocistream")
    command = cli.get_command(context, name)
    assert command is not None
    inner = click.Context(command, parent=context, info_name=name)
    for parameter in command.get_params(inner):
        record = parameter.get_help_record(inner)
        if isinstance(parameter, click.Option) and record is not None:
            for words in record:
                assert " ".join(words.replace("`", "").split()) in " ".join(text.split())
    # Each paragraph of examples starts with \b.
    examples = [line.strip() for line in (command.help or "").partition("\b")[2].splitlines() if line.strip("\b ")]
    assert examples
    for line in examples:
        assert line in text


def test_exit_codes_match_the_documents_and_the_errors() -> None:
    table = constant("EXIT_CODES")
    page = (ROOT / "docs/errors.md").read_text()
    rows = dict(re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", page.partition("| exit code | when |")[2], re.MULTILINE))
    assert rows == table
    codes = {
        found.exit_code for name in errors.__all__ if issubclass(found := getattr(errors, name), errors.OcistreamError)
    }
    signals = {129, 130, 141, 143}
    assert codes | signals | {0} == set(map(int, table))


def test_environment_variables_match_the_sources_and_the_documents() -> None:
    named = {name for names in constant("ENVIRONMENT") for name in names.split(", ")}
    sources = "\n".join(path.read_text() for path in (ROOT / "ocistream").rglob("*.py"))
    used = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', sources))
    beginnings = ("OCISTREAM_", "XDG_", "DOCKER_AUTH", "REGISTRY_AUTH", "SSL_", "SOURCE_DATE")
    # Another test checks the variables of options.
    named |= {variable_name(key) for command in COMMANDS for key in list_configurable_options(load_command(command))}
    assert {name for name in used if name.startswith(beginnings)} - {"OCISTREAM_SRC", "OCISTREAM_DEST"} <= named
    texts = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    words = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b(?!\*)", texts))
    assert {name for name in words if name.startswith(("OCISTREAM_", "DOCKER_", "SSL_", "XDG_"))} <= named


def constant(name: str) -> dict[str, str]:
    """Return a table from the source of the generator, which is not installed."""
    tree = ast.parse((ROOT / "scripts" / "release" / "man_pages.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            assert node.value is not None
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    raise AssertionError(name)
