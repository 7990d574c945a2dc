"""Option names that the code knows without importing the commands."""

from __future__ import annotations

from ocistream.cli.settings import find_reasons_against_defaults, list_group_option_names


def test_every_option_of_a_group_is_an_option_of_a_command() -> None:
    assert {name for name, reason in find_reasons_against_defaults().items() if not reason} >= list_group_option_names()
