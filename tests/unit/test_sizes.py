"""Parsing of sizes."""

from __future__ import annotations

import itertools

import pytest

from ocistream.sizes import parse_size

SPELLINGS = [
    pytest.param(f"{unit}{tail}", 1024**power, id=f"{unit}{tail}")
    for (power, units), tail in itertools.product(enumerate(("kK", "mM", "gG"), 1), ("", "b", "B", "ib", "iB"))
    for unit in units
]


@pytest.mark.parametrize(("unit", "factor"), [("", 1), ("b", 1), ("B", 1), *SPELLINGS])
def test_every_spelling_of_a_unit_is_a_power_of_1024(unit: str, factor: int) -> None:
    assert parse_size(f"3{unit}") == parse_size(f"3 {unit}" if unit else "3") == 3 * factor


@pytest.mark.parametrize(("text", "size"), [("1.5M", 1_572_864), ("0.5kiB", 512), ("1.001k", 1025), ("0.999", 0)])
def test_fractions_are_parsed_only_if_allowed(text: str, size: int) -> None:
    assert parse_size(text, fractions=True) == size
    assert parse_size(text) is None


@pytest.mark.parametrize(
    "text",
    ["", "k", "-1", "1T", "1iB", "1i", "1ki", "1  k", "1\n", "1\nk", "1k\n", "٤", "1e3", "1_000", ".5", "1.k", "1kk"],
)
def test_anything_else_is_not_a_size(text: str) -> None:
    assert parse_size(text, fractions=True) is None
