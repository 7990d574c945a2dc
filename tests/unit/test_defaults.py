"""What the code knows of options without importing the commands that have them."""

from __future__ import annotations

import click

from ocistream.cli.defaults import _WIDESPREAD, REFUSED, option_name, options_of
from ocistream.cli.entry import COMMANDS, load


def test_what_has_no_default_is_an_option_that_there_is() -> None:
    found = {
        option_name(option) for name in COMMANDS for option in load(name).params if isinstance(option, click.Option)
    }
    assert set(REFUSED) - {"help"} <= found


def test_options_that_are_known_without_imports_are_some_commands() -> None:
    found = {key for name in COMMANDS if name != "config" for key in options_of(load(name))}
    assert found >= _WIDESPREAD
