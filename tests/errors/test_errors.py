"""Each common failure has one line that says what failed and one that says what to do; docs/errors.md lists them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.errors.common_failures import FAILURES, SECRETS, Failure, Place

_PAGE: Final = Path(__file__).parents[2] / "docs/errors.md"
_BEGIN: Final = "<!-- tests/errors/common_failures.py: begin -->\n"
_END: Final = "<!-- tests/errors/common_failures.py: end -->\n"
#: Users do not read longer lines.
_LONGEST: Final = 300


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: str(failure.what).replace(" ", "-"))
def test_a_failure_has_a_line_of_error_and_a_line_of_advice(failure: Failure, place: Place) -> None:
    result = failure.happens(place)
    assert result.code == failure.code, result.err
    assert re.fullmatch(failure.pattern, result.err), (failure.pattern, result.err)
    assert result.out == b""
    for line in result.err.replace(str(place.folder), "").splitlines():
        assert len(line) <= _LONGEST
    assert [secret for secret in SECRETS if secret in result.err] == []


def test_docs_errors_has_exactly_this_table() -> None:
    table = _PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]
    head, line, *rows = table.splitlines()
    assert (head, line) == ("| failure | exit code | it says | and what to do |", "| --- | --- | --- | --- |")
    assert rows == [failure.row for failure in FAILURES]


def test_each_failure_has_a_unique_name() -> None:
    assert len({failure.what for failure in FAILURES}) == len(FAILURES) >= 20
