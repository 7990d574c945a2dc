"""Regular expressions match what Python's do, and no text makes them slow."""

from __future__ import annotations

import itertools
import re

import pytest

from ocistream.errors import UsageError
from ocistream.oci.linear_regex import compile_full_match

PATTERNS = [
    "",
    "a",
    "[^a]",
    ".",
    "a|b|",
    "a*",
    "a*?b+",
    "(a|ab)(c|bcd)?",
    "(?:a*)*",
    "(?:a|b)*abb",
    "a{2}",
    "a{2,3}",
    "a{,2}b{1,}",
    "(?:a?){3}a{3}",
    "^a$",
    r"\Aab\Z",
    r"\d+",
    r"\D*",
    r"\w-\W?",
    r"\s*a\S",
    r"\ba\b.*",
    r"a\Bb",
    "(?=a).*b",
    "(?!a).*b",
    "(?<=a)b|ab(?<!b)|a(?<=a)b",
    "(?i)A[b-d]*",
    "(?i:A)b",
    "(?-i:a)B*",
    "[a-b0-1-]*",
    "(?x) a  b # words",
    "(?s).a",
    "(?P<name>a)b",
    "a{100}",
]
TEXTS = ["".join(letters) for n in range(5) for letters in itertools.product("ab1-", repeat=n)] + [
    "AB",
    "aC",
    "abbabb",
    "\n",
    "a\n",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_matches_what_python_does(pattern: str) -> None:
    expected = re.compile(pattern, re.ASCII)
    matches = compile_full_match(pattern)
    assert [t for t in TEXTS if matches(t)] == [t for t in TEXTS if expected.fullmatch(t)]


@pytest.mark.parametrize(
    "pattern", [r"([0-9]+\.?)+-alpine", "(a|a)*b", "(1*)*x", "1*1*1*1*1*1*1*1*x", r"(?:(?:1|11)+)+(?=y)"]
)
def test_no_text_makes_it_slow(pattern: str) -> None:
    # With `re`, this does not come to an end.
    assert not compile_full_match(pattern)("1" * 128)


def test_an_expression_that_takes_too_long_is_said_to() -> None:
    with pytest.raises(UsageError, match="takes too long"):
        compile_full_match("(((1?){128}){128}){128}")("1" * 128)


@pytest.mark.parametrize(
    "pattern", ["(", "a{99999999999}", "(" * 3000 + ")" * 3000, r"(a)\1", "(?>a*)b", "a*+b", "(a)?(?(1)b|c)", "(?u)a"]
)
def test_what_cannot_be_used_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="regular expression"):
        compile_full_match(pattern)


def test_groups_too_deep_within_each_other_are_said_to_be() -> None:
    matches = compile_full_match("(a|" * 200 + "b" + ")" * 200)
    with pytest.raises(UsageError, match="too deep"):
        matches("b")


def test_a_letter_that_has_several_in_the_other_case_is_none_of_ascii() -> None:
    assert not compile_full_match("(?i)a")("\N{LATIN SMALL LETTER SHARP S}")
