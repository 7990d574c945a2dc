"""The package as a type checker sees it from outside: it says that it is typed, and what it offers is."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import ocistream

pytest.importorskip("mypy", reason="mypy belongs to the lint extra")

USER = """\
from typing import assert_type

import ocistream

assert_type(ocistream.__version__, str)
"""


def check(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Check a user's script, as strictly as can be, against the installed package."""
    path = folder / "script.py"
    path.write_text(script)
    line = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), "--config-file=", str(path)]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)


def test_the_package_says_that_it_is_typed() -> None:
    assert resources.files(ocistream).joinpath("py.typed").is_file()


def test_a_users_script_passes_mypy_strict(tmp_path: Path) -> None:
    result = check(tmp_path, USER)
    assert result.returncode == 0, result.stdout


def test_a_users_mistake_is_found(tmp_path: Path) -> None:
    result = check(tmp_path, USER + "\nwrong: int = ocistream.__version__\n")
    assert result.returncode == 1
    assert 'expression has type "str"' in result.stdout
