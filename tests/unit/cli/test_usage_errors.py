"""Options and commands of other tools, and the suggested equivalents."""

from __future__ import annotations

import pytest

from ocistream.cli.entry_point import COMMANDS
from ocistream.cli.usage_errors import suggest_command, suggest_option


@pytest.mark.parametrize(
    ("option", "known", "words"),
    [
        ("--src-creds", ["--username", "--src-username"], "--src-password-file"),
        ("--src-creds", ["--username"], "use --username,"),
        ("--password", ["--username"], "--password-stdin"),
        ("--tls-verify", ["--insecure"], "--insecure disables"),
        ("--creds", ["--insecure"], None),
        ("--tls-verify", ["--username"], None),
        ("--cred", ["--username"], None),
        ("--from-plain-http", ["--src-plain-http"], "use --src-plain-http"),
        ("--to-plain-http", ["--plain-http"], None),
        ("--dest-compress-level", ["--compress"], "--compress gzip:LEVEL"),
    ],
)
def test_an_option_of_another_tool_has_an_equivalent(option: str, known: list[str], words: str | None) -> None:
    found = suggest_option(option, "copy", known)
    assert found is None if words is None else words in str(found)


def test_a_suggested_command_exists() -> None:
    for name in ("cp", "save", "validate", "rmi"):
        assert str(suggest_command(name)).split()[2] in COMMANDS
    assert suggest_command("pull") is suggest_command("frobnicate") is None
