"""What the code knows of options without importing the commands that have them."""

from __future__ import annotations

import click

from ocistream.cli.entry_point import COMMANDS, load_command
from ocistream.cli.settings import _COMMON_OPTIONS, OPTIONS_WITHOUT_DEFAULT, configurable_options, option_name


def test_what_has_no_default_is_an_option_that_there_is() -> None:
    found = {
        option_name(option)
        for name in COMMANDS
        for option in load_command(name).params
        if isinstance(option, click.Option)
    }
    assert set(OPTIONS_WITHOUT_DEFAULT) - {"help"} <= found


def test_options_that_are_known_without_imports_are_some_commands() -> None:
    found = {key for name in COMMANDS if name != "config" for key in configurable_options(load_command(name))}
    assert found >= _COMMON_OPTIONS
