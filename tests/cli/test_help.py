"""Help and version: their content, and that they import few modules."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import ocistream as package
from ocistream.cli import COMMANDS
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.registry_http import seed
from tests.runner import ocistream

HEAVY = {"requests", "urllib3", "tqdm", "zstandard", "http.client", "ssl", "ocistream.http.client", "ocistream.serve"}
#: Modules of the standard library that --version does not need.
SLOW = {"hashlib", "ipaddress", "json", "secrets", "tempfile", "pathlib", "traceback"}
#: Modules that neither a plain pull nor a plain push needs.
RARE = {
    "tqdm",
    "zstandard",
    "subprocess",
    "cryptography",
    "sigstore",
    "ocistream.signatures.signers",
    "ocistream.cli.settings",
    "ocistream.streams.compression",
    "ocistream.transfer.recompress",
    "ocistream.auth.credential_helpers",
    "ocistream.transfer.discarded_blobs",
    "ocistream.transfer.verify",
    "ocistream.serve",
    "ocistream.archive.tar_reader",
    "ocistream.registry.mirrors",
    "ocistream.registry.tags",
}
#: Modules that only a pull needs, and those that only a push needs.
PULLING = {"ocistream.registry.source"}
PUSHING = {
    "ocistream.registry.upload",
    "ocistream.registry.upload_session",
    "ocistream.registry.upload_record",
    "ocistream.registry.destination",
}


def imported(*argv: str) -> set[str]:
    """Return the modules that a run imports."""
    line = [sys.executable, "-P", "-X", "importtime", "-m", "ocistream", *argv]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return {row.rpartition("|")[2].strip() for row in done.stderr.splitlines() if row.startswith("import time:")}


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["push", "--help"], ["serve", "--help"]])
def test_help_imports_no_unneeded_module(argv: list[str]) -> None:
    modules = imported(*argv)
    assert "click" in modules
    assert modules & HEAVY == set()


def test_version_imports_no_command() -> None:
    modules = imported("--version")
    assert modules & SLOW == set()
    rooms = {name for name in modules if name.startswith("ocistream.cli.")}
    assert rooms == {f"ocistream.cli.{name}" for name in ("console", "entry_point", "signals")}
    # It starts no worker thread.
    assert "ocistream.streams.workers" not in modules


def test_pull_and_push_import_only_needed_modules(served: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
    seed(layout, layout.image([b"layer"], name="app"), served.host, "app", "1")
    pulled = imported("pull", f"{served.host}/app:1", "-o", f"{tmp_path}/pulled/")
    assert pulled & (RARE | PUSHING) == set()
    assert pulled >= PULLING
    sent = imported("push", "-i", str(layout.path), f"{served.host}/app:2")
    assert sent & (RARE | PULLING) == set()
    assert sent >= PUSHING


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_sync_without_a_policy_imports_no_check_of_signatures(
    served: FaultyRegistry, layout: Layout, tmp_path: Path, options: list[str]
) -> None:
    seed(layout, layout.image([b"layer"]), served.host, "app", "1")
    file = tmp_path / "sync.toml"
    file.write_text(f"[[sync]]\nfrom = '{served.host}/app:1'\nto = '{served.host}/copy'\n")
    modules = imported("sync", str(file), *options)
    assert "ocistream.sync.run" in modules
    assert modules & {"ocistream.signatures.check", "cryptography"} == set()


def test_a_configuration_file_with_defaults_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("OCISTREAM_JOBS", raising=False)
    Layout(tmp_path / "layout").image([b"layer"], name="app")
    verified = ["verify", str(tmp_path / "layout")]
    assert imported(*verified) & {"tomllib", "ocistream.cli.settings"} == set()
    (tmp_path / "ocistream").mkdir()
    (tmp_path / "ocistream/config.toml").write_text("[defaults]\njobs = 8")
    read = imported(*verified)
    assert read >= {"tomllib", "ocistream.cli.settings"}
    # Options of other commands are known without an import of the commands, which all import this module.
    assert "ocistream.cli.transfers" not in read


def test_the_process_exits_without_joining_threads() -> None:
    """At exit Python destroys objects that its threads still use, which sometimes causes a segmentation fault."""
    script = (
        "import atexit, sys; from ocistream.cli import run; "
        "atexit.register(print, 'taken apart'); sys.argv[1:] = ['--version']; run()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ocistream ")
    assert "taken apart" not in done.stdout


def test_version_prints_the_version_of_the_package() -> None:
    result = ocistream("--version")
    assert (result.code, result.out.decode(), result.err) == (0, f"ocistream {package.__version__}\n", "")


def test_python_m_runs_the_command() -> None:
    done = subprocess.run([sys.executable, "-P", "-m", "ocistream", "--version"], capture_output=True, check=True)
    assert done.stdout == ocistream("--version").out


def test_help_lists_every_command() -> None:
    result = succeed("--help")
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line.split()[0])}", result.out.decode(), re.MULTILINE)
    # These two commands are aliases of options.
    for name in ("help", "version"):
        assert f"`ocistream {name}`" in result.out.decode()
    assert ocistream("-h").out == result.out
    assert ocistream("pull", "-h").out == ocistream("pull", "--help").out


def test_without_a_command_help_is_printed_as_an_error() -> None:
    result = ocistream()
    assert (result.code, result.out) == (2, b"")
    assert result.err == ocistream("--help").out.decode()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_every_option(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    result = succeed(name, "--help")
    text = result.out.decode()
    (description, *sections) = re.split(r"^[A-Z][A-Za-z ]*:$", text, flags=re.MULTILINE)
    assert re.search(rf"^  ocistream {name} \S", description, re.MULTILINE)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert options or name == "completion"
    for option in options:
        assert option.help
        assert not option.hidden
        for spelling in option.opts:
            assert spelling in text
    rows = [row for section in sections for row in re.findall(r"^  (\S+)", section, re.MULTILINE)]
    assert all(row.startswith("-") for row in rows), rows


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_fits_80_columns_and_has_two_lines_for_each_option(argv: list[str]) -> None:
    lines = ocistream(*argv, "--help").out.decode().splitlines()
    assert [line for line in lines if len(line) > 80] == []
    help_lines: dict[str, int] = {}
    row = ""
    first_section = next(number for number, line in enumerate(lines) if re.fullmatch(r"\w[\w ]*:", line))
    for line in lines[first_section:]:
        if option := re.match(r"  (-\S.*?)(?:  +(\S)|$)", line):
            row = option[1]
            # A long spelling has its own line.
            help_lines[row] = 0 if option[2] is None else 1
        elif not line.startswith("   "):
            row = ""
        elif row:
            help_lines[row] += 1
    assert any(spellings.endswith("--help") for spellings in help_lines)
    assert {spellings: count for spellings, count in help_lines.items() if not 1 <= count <= 2} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_usage_error_names_the_help_of_its_command(name: str) -> None:
    assertions.failure(ocistream(name, "--no-such-option"), 2, "--no-such-option", f"see `ocistream {name} --help`")
