"""Versions in tags, version ranges, and the selection of tags."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.errors import NotFoundError, UsageError
from ocistream.oci.tag_filters import Version, glob_filter, parse_range, parse_version, version_filter

NUMBERS = st.lists(st.integers(0, 10**12), min_size=1, max_size=4)
#: semver.org, 11.4: "1.0.0-alpha < 1.0.0-alpha.1 < ... < 1.0.0", and other versions.
IN_ORDER = [
    "0.9",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "v1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1",
    "1.0.1",
    "1.9",
    "1.10",
    "2.0-rc1",
    "v2",
    "2.0.0.1",
    "20240101",
]


def version(text: str) -> Version:
    found = parse_version(text)
    assert found is not None
    return found


@given(st.permutations(IN_ORDER))
def test_versions_have_semvers_order(texts: list[str]) -> None:
    assert sorted(texts, key=version) == IN_ORDER


@given(NUMBERS, NUMBERS)
def test_releases_are_ordered_by_their_numbers(one: list[int], other: list[int]) -> None:
    padded = [numbers + [0] * (4 - len(numbers)) for numbers in (one, other)]
    texts = [".".join(map(str, numbers)) for numbers in (one, other)]
    assert (version(texts[0]) < version(texts[1])) == (padded[0] < padded[1])
    assert (version(texts[0]) == version(f"v{texts[1]}")) == (padded[0] == padded[1])


@given(NUMBERS, st.from_regex(r"[0-9A-Za-z-]{1,20}(\.[0-9A-Za-z-]{1,20}){0,2}\Z", fullmatch=True))
def test_a_pre_release_comes_before_its_release_and_after_lower_ones(numbers: list[int], before: str) -> None:
    text = ".".join(map(str, numbers))
    found = version(f"{text}-{before}")
    assert found < version(text)
    if numbers[-1]:
        assert version(".".join(map(str, [*numbers[:-1], numbers[-1] - 1]))) < found


@given(st.text(max_size=30))
def test_any_text_is_a_version_or_none(text: str) -> None:
    found = parse_version(text)
    assert (found is None) == (
        re.fullmatch(r"v?\d{1,18}(\.\d{1,18}){0,3}(-[\dA-Za-z-]+(\.[\dA-Za-z-]+)*)?", text, re.ASCII) is None
    )


@pytest.mark.parametrize(
    "text", ["latest", "1.", "1..2", "V1", "1.2.3.4.5", "1-", "1.2_3", "", "1.2\n", "²", "9" * 19, "1-" + "9" * 5000]
)
def test_other_texts_are_not_versions(text: str) -> None:
    assert parse_version(text) is None


@pytest.mark.parametrize(
    ("bounds", "within", "without"),
    [
        (">=1.4, <2", ["1.4", "1.4.0", "v1.99", "1.10"], ["1.3.9", "2", "2.0.0", "1.5-rc1", "2-rc1", "1.4-rc1"]),
        (">1.4", ["1.4.1", "2"], ["1.4", "v1.4.0"]),
        ("<=1.4,!=1.3", ["1.4", "0.1", "1.3.1"], ["1.3", "1.3.0", "1.5"]),
        ("=1.4", ["1.4", "v1.4.0"], ["1.4.1"]),
        # A bound with a pre-release includes pre-releases, but not those of an excluded release.
        (">=1.4-rc.1, <2", ["1.4-rc.1", "1.4-rc.2", "1.5-beta", "1.4"], ["1.4-beta", "2-rc.1", "2"]),
        (">=1.4, <2-0", ["1.5-rc1", "1.99"], ["2-rc1", "2", "1.4-rc1"]),
    ],
)
def test_a_range_contains_versions_within_all_bounds(bounds: str, within: list[str], without: list[str]) -> None:
    found = parse_range(bounds)
    assert [text for text in within + without if found.contains(version(text))] == within


@pytest.mark.parametrize("text", ["", "1.4", ">=", ">=1.4 <2", "~1.4", "^1", ">=1.4,", ">=latest", "=>1"])
def test_a_malformed_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="malformed version range"):
        parse_range(text)


TAGS = ["latest", "1.9", "1.10", "v1.11", "1.12-rc1", "1.10-alpine", "1.9-alpine", "edge", "2024"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"within": ">=1.10, <2"}, ["1.10", "v1.11"]),
        ({"within": "<2", "latest": 2}, ["1.10", "v1.11"]),
        ({"latest": 1}, ["2024"]),
        ({"suffix": "-alpine"}, ["1.10-alpine", "1.9-alpine"]),
        ({"suffix": "-alpine", "latest": 1}, ["1.10-alpine"]),
        ({"within": ">=1.12-0, <2"}, ["1.12-rc1"]),
    ],
)
def test_tags_are_selected_by_their_versions(options: dict[str, Any], expected: list[str]) -> None:
    choose = version_filter(**options)
    for _ in range(5):
        shuffled = random.sample(TAGS, len(TAGS))
        assert sorted(choose(shuffled)) == sorted(expected)


def test_the_longer_of_two_tags_for_one_version_is_later() -> None:
    assert version_filter(latest=1)(["1.4", "1.4.0", "v1.4"]) == ["1.4.0"]


def test_a_pattern_selects_no_tag_of_a_signature() -> None:
    assert glob_filter(["s*"])(["stable", f"sha256-{'a' * 64}.sig"]) == ["stable"]


@pytest.mark.parametrize("choose", [version_filter(">9999"), glob_filter(["x"])])
def test_an_empty_selection_is_an_error_that_lists_tags(choose: object) -> None:
    assert callable(choose)
    with pytest.raises(NotFoundError, match=r"no tag (is a version >9999|matches .x.)$") as caught:
        choose(TAGS)
    assert "latest" in str(caught.value.hint)
