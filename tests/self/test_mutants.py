"""scripts/mutants runs the tests that execute the changed line, in a useful order, and ignores unsound tests."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from coverage import CoverageData

from tests.mutants.__main__ import Judge
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.record import Record

_MODULE = """\
LIMIT = 3


def used(number):
    if (
        number > LIMIT
    ):
        return 1
    return 2


def unused():
    return 1 + 1
"""
#: Test -> its seconds and the lines that it executes.
_TESTS: dict[str, tuple[float, list[int]]] = {
    "tests/test_toy.py::test_slow": (9.0, [1, 4, 5, 6, 9]),
    "tests/test_toy.py::test_quick[1]": (0.1, [1, 4, 5, 6, 8]),
    "tests/test_toy.py::test_quick[2]": (0.1, [1, 4, 5, 6, 8]),
    "tests/test_toy.py::test_import": (0.1, [1, 4, 12]),
}


class ToyShop:
    """A `Workshop` that runs no tests: `failing` tests fail with a mutant, `unsound` ones also without a mutant."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.recorded: list[str] = []
        self.failing: set[str] = set()
        self.unsound: set[str] = set()
        self._changed = False

    def record(self, test_file: str, _: float) -> tuple[list[tuple[str, float]], list[Path]]:
        self.recorded.append(test_file)
        database = self.project / "lines"
        database.unlink(missing_ok=True)
        data = CoverageData(str(database))
        for number, (_, lines) in enumerate(_TESTS.values()):
            data.set_context(str(number))
            data.add_lines({str((self.project / "ocistream/toy.py").resolve()): lines})
        data.close()
        return [(name, seconds) for name, (seconds, _) in _TESTS.items()], [database]

    def restore(self, name: str) -> None:
        (self.project / name).write_text(_MODULE)

    def first_failure(self, tests: Mapping[str, float], _: float) -> str:
        is_changed = (self.project / "ocistream/toy.py").read_text() != _MODULE
        failing = self.failing | self.unsound if is_changed else self.unsound
        return next((test for test in tests if test in failing), "")


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    for name, text in (("ocistream/toy.py", _MODULE), ("tests/test_toy.py", ""), ("tests/helper.py", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return ToyShop(tmp_path)


@pytest.fixture
def record(shop: Any, tmp_path: Path) -> Record:
    record = Record(tmp_path, tmp_path / "record")
    assert list(record.bring_up_to_date([shop])) == ["recorded 1/1 tests/test_toy.py: 4 tests, 9 s"]
    return record


def mutant_of(project: Path, old: str) -> Mutant:
    return next(mutant for mutant in mutants(project, project / "ocistream/toy.py") if mutant.old == old)


def test_tests_that_execute_the_statement_run_with_quick_ones_first_and_similar_ones_last(
    tmp_path: Path, record: Record
) -> None:
    found = [test.name.partition("::")[2] for test in record.tests_for(mutant_of(tmp_path, "number > LIMIT"))]
    assert found == ["test_quick[1]", "test_slow", "test_quick[2]"]


def test_for_a_constant_tests_run_that_execute_a_line_with_its_name(tmp_path: Path, record: Record) -> None:
    found = {test.name.partition("::")[2] for test in record.tests_for(mutant_of(tmp_path, "3"))}
    assert found == {"test_quick[1]", "test_quick[2]", "test_slow"}


def test_only_changed_tests_are_recorded_again(shop: Any, record: Record, tmp_path: Path) -> None:
    def recorded() -> list[str]:
        shop.recorded.clear()
        list(record.bring_up_to_date([shop]))
        return list(shop.recorded)

    (tmp_path / "tests/test_other.py").write_text("")
    assert recorded() == ["tests/test_other.py"]
    (tmp_path / "tests/helper.py").write_text("changed")
    assert recorded() == ["tests/test_other.py", "tests/test_toy.py"]


def test_a_mutant_is_killed_by_a_test_that_passes_without_it(shop: Any, record: Record, tmp_path: Path) -> None:
    judge, mutant = Judge(shop, record, {}), mutant_of(tmp_path, "number > LIMIT")
    assert judge.try_out(mutant, 60).killed_by == ""
    shop.unsound = {"tests/test_toy.py::test_quick[1]"}
    assert judge.try_out(mutant, 60).killed_by == ""
    shop.failing = {"tests/test_toy.py::test_slow"}
    assert judge.try_out(mutant, 60).killed_by == "tests/test_toy.py::test_slow"


def test_a_mutant_that_no_test_executes_survives_at_once(shop: Any, record: Record, tmp_path: Path) -> None:
    assert Judge(shop, record, {}).try_out(mutant_of(tmp_path, "1 + 1"), 60).note == "not executed"
