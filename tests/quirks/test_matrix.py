"""Every statement has a test, and a pushed image comes back unchanged from a registry with any quirk."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

import pytest

from tests.archives import check_blobs, index_in, small_first, tar_of
from tests.faulty_auth import Bearer
from tests.images import Descriptor, Layout, tar_layer
from tests.quirks.command_runner import WAYS, How, Mover
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry
from tests.quirks.registry_models import ALONE, KINDS, Kind
from tests.quirks.statements import COUNT, quirk

#: More than one of our chunks, and not a multiple of a chunk.
_LAYER: Final = 600_001


def numbers_tested() -> set[int]:
    """Return the numbers of all statements that a test in this folder has."""
    found: set[int] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        module = importlib.import_module(f"tests.quirks.{path.stem}")
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        marks = [mark for test in tests for mark in getattr(test, "pytestmark", [])]
        cases = [case for mark in marks if mark.name == "parametrize" for case in mark.args[1]]
        marks += [mark for case in cases for mark in getattr(case, "marks", ())]
        marks.append(getattr(module, "pytestmark", pytest.mark.quirk()))
        found |= {number for mark in marks if mark.name == "quirk" for number in mark.args}
    return found


def test_every_statement_has_a_test() -> None:
    assert numbers_tested() == {*range(1, COUNT + 1)}


def image_in(layout: Layout) -> tuple[Descriptor, bytes]:
    """Return an index of two small images, one with a layer of several chunks, and its archive."""
    shared = tar_layer({"etc/motd": b"the same on all\n"})
    images = [
        layout.image([shared, _LAYER], platform="linux/amd64"),
        layout.image([shared, tar_layer({"bin/arch": b"arm64"})], platform="linux/arm64/v8", media="docker"),
    ]
    index = layout.index(images, name="app")
    return index, tar_of(small_first(layout))


def there_and_back(registry: QuirkyRegistry, mover: Mover, layout: Layout, how: How) -> None:
    """Push an image and pull it: the result has exactly the pushed blobs."""
    index, archive = image_in(layout)
    image = f"{registry.host}/team/app:v1"
    assert mover.push(archive, image, how).lines() == [f"{image}@{index['digest']}"]
    pulled = mover.pull(image, how)
    (entry,) = index_in(pulled)
    assert (entry["digest"], entry["mediaType"]) == (index["digest"], index["mediaType"])
    assert check_blobs(pulled) == {f"sha256:{path.name}" for path in (layout.path / "blobs/sha256").iterdir()}
    # No upload session remains, except where a token for pushing has no right to delete it.
    if not isinstance(registry.auth, Bearer):
        assert list((registry.layout.path / "blobs").glob("*/.*")) == []


#: Each kind of registry with a file or a pipe in turn, and each quirk that no kind has. The nightly run also has each
#: quirk alone, and the other of file and pipe.
_IN_KINDS: Final = {habit.name for kind in KINDS for habit in kind.quirks}
_TURNS: Final = [
    pytest.param(habit, how, marks=quirk(number) if usual else pytest.mark.nightly, id=f"{number}-{habit}-{how}")
    for turn, (number, habit) in enumerate(ALONE)
    for how, usual in ((WAYS[turn % 2], habit.name not in _IN_KINDS), (WAYS[1 - turn % 2], False))
]
_TURNS_OF_KINDS: Final = [
    pytest.param(kind, how, marks=() if usual else pytest.mark.nightly, id=f"{kind}-{how}")
    for turn, kind in enumerate(KINDS)
    for how, usual in ((WAYS[turn % 2], True), (WAYS[1 - turn % 2], False))
]


@pytest.mark.parametrize(("habit", "how"), _TURNS)
def test_an_image_comes_back_unchanged_from_a_registry_with_one_quirk(
    habit: Quirk, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    there_and_back(start(habit), mover(), layout, how)


@pytest.mark.parametrize(("kind", "how"), _TURNS_OF_KINDS)
def test_an_image_comes_back_unchanged_from_a_registry_with_the_quirks_of(
    kind: Kind, how: How, start: Start, mover: Move, layout: Layout
) -> None:
    there_and_back(start(*kind.quirks, auth=kind.auth()), mover(), layout, how)
