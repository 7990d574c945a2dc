"""The public API: it is typed, and the examples in docs/api.md run unchanged."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

import ocistream
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, small_image, two_platforms
from tests.registry_http import seed

pytest.importorskip("mypy", reason="mypy belongs to the lint extra")

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "api.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
USER = """\
from typing import Any, assert_type

import ocistream

assert_type(ocistream.__version__, str)

assert_type(ocistream.inspect("oci:build:app"), dict[str, Any])
with ocistream.Client(jobs=2) as client:
    try:
        result = client.copy("oci:build:app", "oci-archive:app.tar", compress="zstd")
    except ocistream.OcistreamError as error:
        assert_type(error.exit_code, int)
    else:
        assert_type(result, ocistream.CopyResult)
        assert_type(result.blobs[0].descriptor, ocistream.Descriptor)
assert_type(ocistream.verify("app.tar").findings, ocistream.Findings)
assert_type(ocistream.copy(["oci-archive:app.tar"], "oci:out", platforms=["all"]).seconds, float)
"""


#: A user's mistake -> mypy's message about it.
MISTAKES = {
    "wrong: int = ocistream.__version__": 'expression has type "str"',
    'ocistream.copy("app:1", "x", platform="all")': 'Unexpected keyword argument "platform"',
    'ocistream.copy(1, "x")': "has incompatible type",
    'ocistream.Client(credentials="me")': "has incompatible type",
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, list[str]]:
    """Check users' scripts against the installed package with `mypy --strict`; return the errors of each script.

    mypy runs once for all scripts: most of its time goes to the package, and its cache stays for the next run.
    """
    cache = pytestconfig.rootpath / ".cache" / "tests" / "mypy"
    folder = tmp_path_factory.mktemp("scripts")
    scripts = [USER, *EXAMPLES, *(f"{USER}\n{mistake}\n" for mistake in MISTAKES)]
    names = [f"script{number}.py" for number in range(len(scripts))]
    for name, script in zip(names, scripts, strict=True):
        (folder / name).write_text(script)
    options = ["--strict", "--cache-dir", str(cache), "--config-file=", "--no-error-summary"]
    line = [sys.executable, "-m", "mypy", *options, *names]
    lines = subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False).stdout.splitlines()
    found = {
        script: [line for line in lines if line.startswith(f"{name}:") and ": error: " in line]
        for name, script in zip(names, scripts, strict=True)
    }
    assert sum(map(len, found.values())) == sum(": error: " in line for line in lines), lines
    return found


def test_the_package_has_the_py_typed_marker() -> None:
    assert resources.files(ocistream).joinpath("py.typed").is_file()


def test_a_users_script_passes_mypy_strict(errors: dict[str, list[str]]) -> None:
    assert errors[USER] == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_users_mistake_is_found(errors: dict[str, list[str]], mistake: str) -> None:
    (error,) = errors[f"{USER}\n{mistake}\n"]
    assert MISTAKES[mistake] in error


def test_the_public_names_exist_and_dir_lists_no_others() -> None:
    assert all(getattr(ocistream, name) is not None for name in ocistream.__all__)
    assert dir(ocistream) == sorted(ocistream.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ocistream.nothing  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_submodule() -> None:
    script = "import sys, ocistream; print([name for name in sys.modules if name.startswith('ocistream.')])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_user_of_the_package_converts_an_image(tmp_path: Path) -> None:
    small_image(Layout(tmp_path / "build"), name="app")
    result = subprocess.run([sys.executable, "-c", USER], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "app.tar").stat().st_size > 0


def test_the_examples_pass_mypy_strict(errors: dict[str, list[str]]) -> None:
    assert [errors[example] for example in EXAMPLES] == [[]] * len(EXAMPLES)


def test_the_examples_run_one_after_the_other(tmp_path: Path, layout: Layout) -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 5
    said = []
    with FaultyRegistry(tmp_path / "served") as registry:
        seed(layout, two_platforms(layout, name="app"), registry.host, "app", "1")
        for example in EXAMPLES:
            script = example.replace("localhost:5000", registry.host)
            done = subprocess.run(
                [sys.executable, "-P", "-W", "error", "-c", script],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                check=False,
            )
            assert done.returncode == 0, f"{script}\n{done.stderr}"
            said.append(done.stdout)
    copied, pushed, shared, observed, verified = said
    assert re.search(r"app:1@sha256:[0-9a-f]{64}\n\d+ bytes copied\n2 platforms", copied)
    assert re.search(r"^converted sha256:", pushed, re.MULTILINE)
    assert len(shared.splitlines()) == 2
    assert "converted sha256:" in observed
    assert re.search(r"^\d+ \[\] \[\]\n4 ", verified)


def test_the_example_of_the_package_itself_runs(tmp_path: Path, layout: Layout) -> None:
    example = re.search(r"::\n\n((?: {4}.*(?:\n|\Z)|\n)+)", inspect.getdoc(ocistream) or "")
    assert example
    with FaultyRegistry(tmp_path / "served") as registry:
        seed(layout, small_image(layout, name="app"), registry.host, "app", "1")
        script = "import ocistream\n" + inspect.cleandoc(example[1]).replace("localhost:5000", registry.host)
        line = [sys.executable, "-P", "-W", "error", "-c", script]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "app.tar").stat().st_size > 0


def test_the_page_has_the_first_line_of_each_docstring() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.partition("## The names")[2], re.MULTILINE))
    assert set(rows) == set(ocistream.__all__) - {"__version__"}
    for name, text in rows.items():
        assert text == (getattr(ocistream, name).__doc__ or "").strip().splitlines()[0]


@pytest.mark.parametrize(
    ("function", "heading"),
    [(ocistream.copy, "| argument of `copy` | meaning |"), (ocistream.Client, "| setting | meaning |")],
)
def test_the_page_has_every_argument(function: Callable[..., object], heading: str) -> None:
    table = PAGE.partition(heading)[2].partition("\n\n")[0]
    names = [
        name for cell in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(names) == sorted(inspect.signature(function).parameters)
