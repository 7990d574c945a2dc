"""Paths of the XDG Base Directory Specification."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocistream.streams.paths import state_home


@pytest.mark.parametrize(
    ("env", "home", "found"),
    [
        ({"XDG_STATE_HOME": "/x"}, "/home/me", "/x"),
        ({"XDG_STATE_HOME": "/x"}, None, "/x"),
        ({"XDG_STATE_HOME": ""}, "/home/me", "/home/me/.local/state"),
        # The specification: a relative path is invalid and ignored.
        ({"XDG_STATE_HOME": "x"}, "/home/me", "/home/me/.local/state"),
        ({}, "/home/me", "/home/me/.local/state"),
        ({}, None, None),
    ],
)
def test_state_home(env: dict[str, str], home: str | None, found: str | None) -> None:
    assert state_home(env, Path(home) if home else None) == (Path(found) if found else None)
