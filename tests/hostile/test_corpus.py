"""The command refuses every hostile archive with one line, in little memory, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.hostile.archive_parts import MIB, Hostile
from tests.hostile.check import WAYS, Way, each_way, one_by_one
from tests.hostile.corpus import CORPUS, HEAVY

#: The number of archives that one process reads.
_BATCH: Final = 175
_NAMES: Final = list(CORPUS)
#: From a file, most archives have the same outcome for a registry and a layout: one of these ways is nightly, in turn.
_NIGHTLY_WAYS: Final = {
    name: ("file", "copy")[turn % 2] for turn, (name, one) in enumerate(CORPUS.items()) if one.code == one.from_copy
}
#: The memory of a push from a file and from a pipe is measured in turn; the nightly run measures both.
_PUSHES: Final = WAYS[:2]
_MEASURED: Final = {name: _PUSHES[turn % 2] for turn, name in enumerate(HEAVY)}
_BATCHES: Final = [_NAMES[start : start + _BATCH] for start in range(0, len(_NAMES), _BATCH)]


def test_the_corpus_has_at_least_sixty_archives() -> None:
    assert len(CORPUS) >= 60
    assert {code for one in CORPUS.values() for code in (one.code, one.from_pipe, one.from_verify)} == {5, 6, 10}
    assert len({one.what for one in CORPUS.values()}) == len(CORPUS)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["some", "all"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("names", _BATCHES, ids=lambda names: f"{names[0]}...{names[-1]}")
def test_each_archive_is_refused_in_each_way_and_nothing_is_written(
    names: list[str], way: Way, every: bool, made: Callable[[str], tuple[Hostile, Path]], tmp_path: Path
) -> None:
    # The test below checks the measured ones, with the same assertions.
    chosen = [name for name in names if every or (way.name != _NIGHTLY_WAYS.get(name) and way != _MEASURED.get(name))]
    assert list(one_by_one([made(name) for name in chosen], tmp_path, way)) == []


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["one way", "both"])
@pytest.mark.parametrize("name", HEAVY)
def test_archives_that_could_cost_memory_cost_little_in_their_own_process(
    name: str, every: bool, made: Callable[[str], tuple[Hostile, Path]], tmp_path: Path
) -> None:
    hostile, path = made(name)
    for taken in each_way(hostile, path, tmp_path, _PUSHES if every else [_MEASURED[name]]):
        assert taken.wrong == (), (taken.way, taken.result.err)
    assert path.stat().st_size < 64 * MIB
