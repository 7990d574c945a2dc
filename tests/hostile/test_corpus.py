"""Every hostile archive is refused, in a line, within little memory, and nothing comes of it anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.hostile.check import WAYS, Way, each_way, one_by_one
from tests.hostile.corpus import CORPUS
from tests.hostile.pieces import MIB, Hostile

#: So many go through one process.
_BATCH: Final = 50
_NAMES: Final = list(CORPUS)
_BATCHES: Final = [_NAMES[start : start + _BATCH] for start in range(0, len(_NAMES), _BATCH)]
#: Those that could cost memory or time have processes of their own, from a file and from a pipe.
_HEAVY: Final = [
    "entries-60,000", "pax-many-keys", "pax-huge", "long-names-in-rows", "size-of-80-bits", "index-100,001",
    "index-huge", "index-items", "index-deep", "manifest-5-mib", "manifest-5-mib-hidden",
    "manifests-8-mib", "manifests-12-mib", "manifests-27,000-layers", "config-9-mib", "docker-config-9-mib",
    "docker-list-5-mib", "gzip-zeros", "gzip-zeros-behind", "gzip-much-behind", "config-deep", "keys-index-large",
    "layer-gzip-members", "name-escapes", "cut-in-body",
]  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Hostile, Path]]:
    """Return a function that gives an archive of the corpus by its name, and where it lies; each is made once."""
    folder = tmp_path_factory.mktemp("corpus")

    def make(name: str) -> tuple[Hostile, Path]:
        path = folder / f"{name}.tar"
        if not path.exists():
            path.write_bytes(CORPUS[name].make())
        return CORPUS[name], path

    return make


def test_the_corpus_is_as_large_as_it_was_promised_to_be() -> None:
    assert len(CORPUS) >= 60
    assert {code for one in CORPUS.values() for code in (one.code, one.from_pipe, one.from_verify)} == {5, 6}
    assert len({one.what for one in CORPUS.values()}) == len(CORPUS)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("names", _BATCHES, ids=lambda names: f"{names[0]}...{names[-1]}")
def test_each_is_refused_by_each_way_and_nothing_comes_of_it(
    names: list[str], way: Way, made: Callable[[str], tuple[Hostile, Path]], tmp_path: Path
) -> None:
    assert list(one_by_one([made(name) for name in names], tmp_path, way)) == []


@pytest.mark.parametrize("name", _HEAVY)
def test_what_could_cost_memory_costs_little_in_a_process_of_its_own(
    name: str, made: Callable[[str], tuple[Hostile, Path]], tmp_path: Path
) -> None:
    hostile, path = made(name)
    for taken in each_way(hostile, path, tmp_path, WAYS[:2]):
        assert taken.wrong == (), (taken.way, taken.result.err)
    assert path.stat().st_size < 64 * MIB
