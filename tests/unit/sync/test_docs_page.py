"""The examples in docs/sync.md and `ocistream sync --help` are valid, and the page names every key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from ocistream.cli.entry_point import load_command
from ocistream.sync import file as sync_file
from ocistream.sync.file import read_sync_file
from ocistream.sync.plan import SyncPlan
from tests.docs_examples import code_block

PAGE: Final = (Path(__file__).parents[3] / "docs" / "sync.md").read_text()


def test_the_example_is_a_valid_file(tmp_path: Path) -> None:
    (tmp_path / "images.toml").write_text(code_block(PAGE, "toml", "[[sync]]"))
    plan = read_sync_file(tmp_path / "images.toml")
    assert isinstance(plan, SyncPlan)
    assert len(plan.entries) == 2
    login = plan.entries[0].destinations[0].login
    assert login is not None
    assert login.password_env == "PROD_PASSWORD"


def test_the_help_ends_with_an_example_of_the_file(tmp_path: Path) -> None:
    text, mark, example = (load_command("sync").help or "").partition("# images.toml\n")
    assert "ocistream sync images.toml" in text
    (tmp_path / "images.toml").write_text(mark + example)
    assert len(read_sync_file(tmp_path / "images.toml").entries) == 2


def test_the_table_has_every_key() -> None:
    known: set[str] = set()
    for name in ("_EntryTable", "_DefaultsTable", "_VersionsTable", "_RegistryTable", "_LocationTable"):
        known |= getattr(sync_file, name).keys.keys()
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    for key in known:
        assert re.search(rf"`{key}`|\b{key} = ", rows), key


def test_the_registry_tables_are_valid(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    password = tmp_path / "robot"
    password.touch()
    tables = code_block(PAGE, "toml", "[registry.").replace("/run/secrets/robot", str(password))
    (tmp_path / "images.toml").write_text(code_block(PAGE, "toml", "[[sync]]") + tables)
    plan = read_sync_file(tmp_path / "images.toml")
    assert plan.registries["registry.local:5000"].settings.plain_http
    assert plan.registries["registry.example.com"].settings.ca_files == (str(tmp_path / "ca.pem"),)
    login = plan.entries[0].destinations[1].login
    assert login is not None
    assert (login.username, login.password_file) == ("robot", password)


def test_the_tag_filters_in_the_table_are_valid(tmp_path: Path) -> None:
    cells = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    choices = [row[-1].strip("` ") for row in cells if row[0] == "`tags`" or (len(row) == 2 and "{" in row[-1])]
    assert len(choices) == 5
    for choice in choices:
        (tmp_path / "x.toml").write_text(f"[[sync]]\nfrom = 'a/b'\nto = 'c/d'\ntags = {choice}\n")
        assert read_sync_file(tmp_path / "x.toml").entries[0].tag_filter is not None
