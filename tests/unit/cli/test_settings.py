"""What the code knows of options without importing the commands that have them."""

from __future__ import annotations

from ocistream.cli.settings import _group_options, load_all_options


def test_every_option_of_a_group_is_an_option_of_a_command() -> None:
    assert set(load_all_options()) >= set(_group_options())
