"""The package as a type checker sees it from outside: it says that it is typed, and what it offers is."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import ocistream
from tests.images import Layout, small_image

pytest.importorskip("mypy", reason="mypy belongs to the lint extra")

USER = """\
from typing import assert_type

import ocistream

assert_type(ocistream.__version__, str)

around = ocistream.Surroundings()
source = ocistream.open_source(ocistream.parse_end("oci:build:app"), around, ocistream.Want())
sink = ocistream.open_sink(ocistream.parse_end("oci-archive:app.tar"), around)
try:
    report = ocistream.copy(source, sink, recompression=ocistream.parse_recompression("zstd"))
except ocistream.OcistreamError as error:
    assert_type(error.exit_code, int)
else:
    assert_type(report, ocistream.Report)
    assert_type(report.graph.roots[0].descriptor, ocistream.Descriptor)
finally:
    sink.close()
    source.close()
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


def test_each_public_name_is_there_and_no_other_is_promised() -> None:
    assert all(getattr(ocistream, name) is not None for name in ocistream.__all__)
    assert dir(ocistream) == sorted(ocistream.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ocistream.nothing


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    script = "import sys, ocistream; print([name for name in sys.modules if name.startswith('ocistream.')])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_user_of_the_package_converts_an_image(tmp_path: Path) -> None:
    small_image(Layout(tmp_path / "build"), name="app")
    result = subprocess.run([sys.executable, "-c", USER], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "app.tar").stat().st_size > 0
