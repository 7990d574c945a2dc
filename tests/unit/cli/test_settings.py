"""Option names that the code knows without importing the commands."""

from __future__ import annotations

from ocistream.cli.settings import group_option_names, reasons_against_defaults


def test_every_option_of_a_group_is_an_option_of_a_command() -> None:
    assert {name for name, reason in reasons_against_defaults().items() if not reason} >= group_option_names()
