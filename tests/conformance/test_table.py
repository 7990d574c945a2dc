"""Every case of the suite has a test."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tests.conformance.cases import CASES, DATA


def names_tested() -> set[str]:
    """Return the names of all cases that have a test in this folder."""
    found: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        module = importlib.import_module(f"tests.conformance.{path.stem}")
        groups = [module, *(value for value in vars(module).values() if isinstance(value, type))]
        for test in [value for group in groups for name, value in vars(group).items() if name.startswith("test_")]:
            marks: list[Any] = list(getattr(test, "pytestmark", []))
            params = [param for mark in marks if mark.name == "parametrize" for param in mark.args[1]]
            marks += [mark for param in params for mark in getattr(param, "marks", ())]
            found |= {str(mark.args[0]) for mark in marks if mark.name == "conformance"}
    return found


def test_every_case_has_a_test() -> None:
    wanted = {*CASES, *(f"Data / {kind}" for kind in DATA)}
    assert sorted(wanted - names_tested()) == []
    assert len(set(CASES)) == len(CASES)
