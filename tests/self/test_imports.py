"""The tests' own registry shares no code with the product, and only tests of `serve` import `serve`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parents[1]
#: The modules of the registries with faults or quirks.
APART: Final = (
    "registry/*.py",
    "fault_actions.py",
    "faulty_registry.py",
    "faulty_auth.py",
    "quirks/quirky_registry.py",
    "quirks/registry_models.py",
    "quirks/registry_quirks.py",
    "quirks/upload_quirks.py",
)
#: The tests of `ocistream serve`.
OF_SERVE: Final = (
    "cli/test_index_entries.py",
    "conformance/",
    "contract/test_durability.py",
    "fuzz/targets/registries.py",
    "interop/test_copy.py",
    "interop/test_serve",
    "serve/",
    "unit/",
)


def imported(path: Path) -> Iterator[str]:
    """Return the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative imports are not supported here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_the_registries_of_the_tests_do_not_import_the_product() -> None:
    files = [path for pattern in APART for path in TESTS.glob(pattern)]
    assert len(files) > len(APART)
    assert [(path.name, name) for path in files for name in imported(path) if name.startswith("ocistream")] == []


def test_the_registry_of_the_tests_imports_only_the_standard_library() -> None:
    known = {"tests", *sys.stdlib_module_names}
    for path in (TESTS / "registry").glob("*.py"):
        assert {name.partition(".")[0] for name in imported(path)} <= known
        assert [name for name in imported(path) if name.startswith("tests.") and "tests.registry" not in name] == []


def test_only_tests_of_serve_import_serve() -> None:
    users = {
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        # The search is faster than parsing each file.
        if re.search(r"ocistream\.serve|from ocistream import", path.read_text())
        and any(name.startswith("ocistream.serve") for name in imported(path))
    }
    assert [user for user in sorted(users) if not user.startswith(OF_SERVE)] == []
