"""Tags are selected by Python's regular expressions, and no tag makes that take forever."""

from __future__ import annotations

import itertools
import re

import pytest

from ocistream import limits
from ocistream.errors import NotFoundError, UsageError
from ocistream.sync.tag_regex import regex_filter

TAGS = ["".join(letters) for n in range(1, 5) for letters in itertools.product("ab1", repeat=n)] + ["AB", "1.4", "1-b"]


@pytest.mark.parametrize("pattern", ["a*?b+", "(?i)A[b-d]*", r"\ba\b.*", "(?<=a)b|ab(?<!b)", r"(a|b)\1", "(?>a*)b"])
def test_tags_that_match_completely_are_selected(pattern: str) -> None:
    expected = [tag for tag in TAGS if re.fullmatch(pattern, tag)]
    if expected:
        assert regex_filter(pattern)(TAGS) == expected
    else:
        with pytest.raises(NotFoundError, match="no tag matches the regular expression"):
            regex_filter(pattern)(TAGS)


def test_tags_of_signatures_and_invalid_tags_are_not_selected() -> None:
    assert regex_filter(".*")(["stable", f"sha256-{'a' * 64}.sig", "a" * 129, "\u0660"]) == ["stable"]


def test_an_expression_that_python_warns_about_works() -> None:
    assert regex_filter("[[a]x")(["[x", "ax", "b"]) == ["ax"]


def test_a_match_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_REGEX_SECONDS", 1)
    choose = regex_filter(r"([0-9]+\.?)+-alpine")
    with pytest.raises(UsageError, match="was stopped after 1 seconds: it takes too long for one of the tags"):
        choose(["1" * 128])


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 500, "(?u)a", "a" * 1001])
def test_an_unusable_expression_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        regex_filter(pattern)
