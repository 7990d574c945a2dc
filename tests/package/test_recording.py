"""docs/recording.svg in README was recorded from the current script."""

from __future__ import annotations

import ast
from typing import Final
from xml.etree import ElementTree as ET

from tests.package.conftest import ROOT

SVG: Final = "{http://www.w3.org/2000/svg}"
PICTURE: Final = ET.parse(ROOT / "docs" / "recording.svg").getroot()  # noqa: S314 - our own file


def typed() -> list[str]:
    """Return the typed lines of `SCRIPT`, from the source of the recorder."""
    for node in ast.parse((ROOT / "scripts" / "release" / "recording.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "SCRIPT":
            assert node.value is not None
            return [line for line, _ in ast.literal_eval(node.value)]
    raise AssertionError


def test_the_recording_shows_the_typed_lines() -> None:
    lines = ["".join(text.itertext()) for text in PICTURE.iter(f"{SVG}text")]
    for line in typed():
        assert f"$ {line}" in lines
    assert (PICTURE.findtext(f"{SVG}desc") or "").splitlines() == typed()


def test_every_referenced_line_exists() -> None:
    there = {text.get("id") for text in PICTURE.iter(f"{SVG}text")}
    used = {(use.get("href") or "").removeprefix("#") for use in PICTURE.iter(f"{SVG}use")}
    assert used == there
