"""Each rule names existing modules, archives and tests; each hostile archive belongs to a rule."""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
from pathlib import Path
from typing import Final

import pytest

from tests.hostile.corpus import CORPUS
from tests.limits.rules import LIMITS, Limit

_TESTS: Final = Path(__file__).parents[1]
_SECURITY: Final = _TESTS.parent / "SECURITY.md"


def archives_of(rule: Limit) -> set[str]:
    """Return the hostile archives that belong to a rule."""
    return {name for pattern in rule.archives for name in fnmatch.filter(CORPUS, pattern)}


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """Return the names of all functions that a file defines, including those in classes."""
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef))


def numbers_here() -> set[int]:
    """Return the numbers of the rules that the tests of this folder name."""
    found: set[int] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "limit":
                (number,) = node.args
                assert isinstance(number, ast.Constant)
                found.add(int(str(number.value)))
    return found


def test_numbers_have_no_gap() -> None:
    assert list(LIMITS) == list(range(1, len(LIMITS) + 1))


@pytest.mark.parametrize("number", LIMITS)
def test_the_modules_of_a_rule_exist(number: int) -> None:
    for home in LIMITS[number].homes:
        importlib.import_module(f"ocistream.{home}")


@pytest.mark.parametrize("number", LIMITS)
def test_the_archives_and_tests_of_a_rule_exist(number: int) -> None:
    rule = LIMITS[number]
    assert archives_of(rule) or rule.tests or number in numbers_here()
    for pattern in rule.archives:
        assert fnmatch.filter(CORPUS, pattern), pattern
    for test in rule.tests:
        path, _, name = test.partition("::")
        # Unit tests may disappear with their modules.
        assert not path.startswith("unit/"), test
        assert name in names_in(_TESTS / path), test


def test_a_rule_without_an_archive_has_a_test_here_or_several_elsewhere() -> None:
    here = numbers_here()
    assert [n for n, rule in LIMITS.items() if not rule.archives and n not in here and len(rule.tests) < 3] == []


def test_every_hostile_archive_belongs_to_a_rule() -> None:
    assert set(CORPUS) - {name for rule in LIMITS.values() for name in archives_of(rule)} == set()


def test_the_security_policy_has_the_table() -> None:
    """SECURITY.md has a line for each rule, with its modules."""
    written = _SECURITY.read_text()
    for number, rule in LIMITS.items():
        homes = ", ".join(f"`{home}`" for home in rule.homes)
        assert f"| {number} | {rule.text} | {homes} |\n" in written, number
