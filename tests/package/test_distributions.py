"""The files and the metadata of the wheel and the sdist. test_ci_files.py installs the wheel."""

from __future__ import annotations

import re
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import ocistream
from ocistream.cli import COMMANDS
from tests.package.conftest import ROOT, run


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Return the names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> Message:
    """Return the metadata of the wheel."""
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return BytesParser().parsebytes(archive.read(name))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Return the table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_the_wheel_has_only_the_package_and_its_man_pages(names: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ocistream").rglob("*.py")}
    prefix = f"ocistream-{ocistream.__version__}"
    pages = {"ocistream.1", *(f"ocistream-{name}.1" for name in COMMANDS)}
    told = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert names == {
        *modules,
        "ocistream/py.typed",
        *(f"{prefix}.data/data/share/man/man1/{page}" for page in pages),
        *(f"{prefix}.dist-info/{name}" for name in told),
    }


def test_the_sdist_has_the_files_to_build_and_test_it(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive}
    wanted = ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "tox.ini", "scripts/test"]
    wanted += ["ocistream/py.typed", "tests/conftest.py", "scripts/release/hatch_build.py", "docs/api.md"]
    wanted += [".github/workflows/test.yml", ".ci/run", "action.yml", "templates/ocistream.gitlab-ci.yml"]
    assert set(wanted) <= found
    assert not [name for name in found if re.search(r"__pycache__|\.pyc$|^\.(tox|venv|cache)", name)]


def test_the_metadata_describes_the_project(metadata: Message, project: dict[str, Any]) -> None:
    assert metadata["Name"] == "ocistream"
    assert metadata["Version"] == ocistream.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# ocistream")
    required = {Requirement(text) for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text}
    assert required == {Requirement(text) for text in project["dependencies"]}
    # The project has no URL yet.
    assert metadata.get_all("Project-URL") is None


def test_the_classifiers_are_valid_and_name_every_tested_python(project: dict[str, Any]) -> None:
    known = pytest.importorskip("trove_classifiers", reason="hatchling needs it").classifiers
    assert set(project["classifiers"]) <= set(known)
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert re.search(r"python: \[(.*)\]", workflow)[1] == ", ".join(f'"{version}"' for version in named)  # type: ignore[index]


@pytest.mark.parametrize(
    ("implementation", "python", "machine", "is_required"),
    [
        ("CPython", "3.11", "x86_64", True),
        ("CPython", "3.14", "aarch64", True),
        ("CPython", "3.13", "arm64", True),
        # PyPI has no isal wheel for these, and a build needs a compiler.
        ("CPython", "3.15", "x86_64", False),
        ("CPython", "3.13", "ppc64le", False),
        ("PyPy", "3.11", "x86_64", False),
    ],
)
def test_isal_is_required_only_if_it_has_wheels(
    metadata: Message, implementation: str, python: str, machine: str, *, is_required: bool
) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    (marker,) = (requirement.marker for requirement in requirements if requirement.name == "isal")
    assert marker is not None
    environment = {
        "platform_python_implementation": implementation,
        "python_version": python,
        "platform_machine": machine,
    }
    assert marker.evaluate(environment) == is_required


def test_an_older_python_builds_a_wheel_that_pip_refuses_without_a_traceback(tmp_path: Path) -> None:
    code = (
        "import sys, tomllib; sys.version_info = (3, 10, 12); "
        "sys.modules['tomli'] = tomllib; sys.modules['ocistream'] = None; "
        "from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    )
    run(sys.executable, "-c", code, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        assert b"Requires-Python: >=3.11\n" in archive.read(name)
