"""The recording that README shows is of what the script for it types, and any browser takes it."""

from __future__ import annotations

import ast
from typing import Final
from xml.etree import ElementTree as ET

from tests.package.conftest import ROOT

SVG: Final = "{http://www.w3.org/2000/svg}"
PICTURE: Final = ET.parse(ROOT / "docs" / "recording.svg").getroot()  # noqa: S314 - it is our own


def typed() -> list[str]:
    """Return what is typed, out of the source of what films it."""
    for node in ast.parse((ROOT / "scripts" / "release" / "recording.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "SCRIPT":
            assert node.value is not None
            return [line for line, _ in ast.literal_eval(node.value)]
    raise AssertionError


def test_it_shows_what_is_typed() -> None:
    lines = ["".join(text.itertext()) for text in PICTURE.iter(f"{SVG}text")]
    for line in typed():
        assert f"$ {line}" in lines
    assert (PICTURE.findtext(f"{SVG}desc") or "").splitlines() == typed()


def test_each_line_that_is_used_is_there() -> None:
    there = {text.get("id") for text in PICTURE.iter(f"{SVG}text")}
    used = {(use.get("href") or "").removeprefix("#") for use in PICTURE.iter(f"{SVG}use")}
    assert used == there
