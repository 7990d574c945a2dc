"""CONTRIBUTING.md names modules that exist, and describes packages as their docstrings do."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PRODUCT: Final = ROOT / "ocistream"
PAGE: Final = (ROOT / "CONTRIBUTING.md").read_text()


def test_each_path_exists() -> None:
    paths = set(re.findall(r"`([\w./-]+/[\w.-]+|\w+\.(?:py|md|toml))`", PAGE))
    names = {path.name for path in PRODUCT.rglob("*.py")}
    missing = {
        path
        for path in paths
        if not ((ROOT / path).exists() or (PRODUCT / path).exists() or path in names or path.startswith("dist/"))
    }
    assert missing == set()


def test_the_packages_are_described_as_in_their_docstrings() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| `", PAGE, re.MULTILINE))
    packages = {path.parent.name for path in PRODUCT.glob("*/__init__.py")}
    assert packages <= set(rows)
    for package in packages:
        docstring = ast.get_docstring(ast.parse((PRODUCT / package / "__init__.py").read_text())) or ""
        assert rows[package] == docstring.splitlines()[0]


def test_the_page_is_at_most_12_kib() -> None:
    assert len(PAGE.encode()) <= 12 * 1024
