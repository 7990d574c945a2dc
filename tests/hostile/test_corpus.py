"""The command refuses every hostile archive in one line, in little memory, and writes nothing anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.hostile.archive_parts import MIB, Hostile
from tests.hostile.check import WAYS, Way, each_way, one_by_one
from tests.hostile.corpus import CORPUS, HEAVY

#: So many go through one process.
_BATCH: Final = 175
_NAMES: Final = list(CORPUS)
#: From a file, most archives end alike for a registry and for a layout: one of these ways is nightly, in turn.
_NIGHTLY_WAYS: Final = {
    name: ("file", "copy")[turn % 2] for turn, (name, one) in enumerate(CORPUS.items()) if one.code == one.from_copy
}
#: The memory of a push from a file and from a pipe is measured in turn; the nightly run measures both.
_PUSHES: Final = WAYS[:2]
_MEASURED: Final = {name: _PUSHES[turn % 2] for turn, name in enumerate(HEAVY)}
_BATCHES: Final = [_NAMES[start : start + _BATCH] for start in range(0, len(_NAMES), _BATCH)]


def test_the_corpus_is_as_large_as_it_was_promised_to_be() -> None:
    assert len(CORPUS) >= 60
    assert {code for one in CORPUS.values() for code in (one.code, one.from_pipe, one.from_verify)} == {5, 6, 10}
    assert len({one.what for one in CORPUS.values()}) == len(CORPUS)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["some", "all"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("names", _BATCHES, ids=lambda names: f"{names[0]}...{names[-1]}")
def test_each_is_refused_by_each_way_and_nothing_comes_of_it(
    names: list[str], way: Way, every: bool, made: Callable[[str], tuple[Hostile, Path]], tmp_path: Path
) -> None:
    # Those that are measured are tested below, with the same assertions.
    chosen = [name for name in names if every or (way.name != _NIGHTLY_WAYS.get(name) and way != _MEASURED.get(name))]
    assert list(one_by_one([made(name) for name in chosen], tmp_path, way)) == []


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["one way", "both"])
@pytest.mark.parametrize("name", HEAVY)
def test_what_could_cost_memory_costs_little_in_a_process_of_its_own(
    name: str, every: bool, made: Callable[[str], tuple[Hostile, Path]], tmp_path: Path
) -> None:
    hostile, path = made(name)
    for taken in each_way(hostile, path, tmp_path, _PUSHES if every else [_MEASURED[name]]):
        assert taken.wrong == (), (taken.way, taken.result.err)
    assert path.stat().st_size < 64 * MIB
