"""The same bytes give the same answer from a pipe and from a file: exit codes, images and digests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.hostile.archive_parts import Hostile
from tests.hostile.check import strays
from tests.hostile.corpus import CORPUS, HEAVY
from tests.hostile.unusual_archives import ODD
from tests.registry import Registry
from tests.runner import run_measured

_SEQUENTIAL_RUNNER: Final = Path(__file__).with_name("sequential_runner.py")
#: The layers of a docker-archive have no digests in their names. A pipe hashes each as it arrives and finds wrong ones;
#: `inspect` and `have` read no layer of a file, and `verify` continues after a wrong one.
_HASHED_IN_A_PIPE: Final = {"docker-layers-swapped", "docker-layer-flipped"}
#: The number of archives that one process reads.
_BATCH: Final = 160


class Answer(NamedTuple):
    """The exit code of a run, and its output about images if the code is 0 (for `verify` always)."""

    code: int
    images: Any


class Way(NamedTuple):
    """A command whose input may be a file or a pipe: its arguments, and a function that reads its answer."""

    name: str
    argv: Callable[[str, str, Path], Sequence[str]]
    answer: Callable[[str, str, Path], Any]


def _pushed(out: str, name: str, _: Path) -> object:
    return sorted(line.replace(name, "NAME") for line in out.splitlines())


def _copied(_: str, __: str, folder: Path) -> object:
    return json.loads((folder / "layout/index.json").read_bytes())["manifests"]


def _inspected(out: str, _: str, __: Path) -> object:
    return {key: value for key, value in json.loads(out).items() if key != "location"}


def _verified(out: str, _: str, __: Path) -> object:
    """Return all findings of `verify` except the sizes of wrong blobs, which only archive and manifest claim."""
    found = json.loads(out)
    for key in ("path", "error", "bytes") if not found["ok"] else ("path",):
        found.pop(key, None)
    for key in ("missing", "failures", "omitted"):
        found[key] = sorted(one["digest"] for one in found.get(key, ()))
    return found


def _had(out: str, _: str, __: Path) -> object:
    return sorted(line for line in out.splitlines() if not line.startswith("#"))


_READING: Final = (
    Way("verify --json", lambda end, *_: ["verify", "--json", end], _verified),
    Way("inspect --json", lambda end, *_: ["inspect", "--json", end], _inspected),
    Way("have", lambda end, *_: ["have", end], _had),
)
_MOVING: Final = (
    Way("push", lambda end, name, _: ["push", *_input(end), f"{name}/app:1"], _pushed),
    Way("push --to", lambda end, name, _: ["push", *_input(end), "--to", name], _pushed),
    Way("copy", lambda end, _, folder: ["copy", _place(end), f"oci:{folder}/layout"], _copied),
)


def _input(end: str) -> list[str]:
    return [] if end == "-" else ["-i", end]


def _place(end: str) -> str:
    return "oci-archive:-" if end == "-" else end


def answers(archives: Sequence[Path], ways: Sequence[Way], folder: Path) -> Iterator[tuple[str, str, Answer, Answer]]:
    """Run each way on each archive, from a file and a pipe; yield the names of archive and way, and both answers."""
    with Registry(folder / "registry") as registry:
        runs = [(path, way, kind) for path in archives for way in ways for kind in ("file", "pipe")]
        jobs, places = [], []
        for number, (path, way, kind) in enumerate(runs):
            own, name = folder / str(number), f"{registry.host}/{number}"
            own.mkdir()
            end = str(path) if kind == "file" else "-"
            jobs.append({"argv": way.argv(end, name, own), "stdin": str(path) if kind == "pipe" else ""})
            places.append((name, own))
        done = run_measured(
            [sys.executable, "-P", str(_SEQUENTIAL_RUNNER)],
            stdin="".join(f"{json.dumps(job)}\n" for job in jobs).encode(),
        )
        assert done.code == 0, done.err
        # No wrong content of an archive is stored.
        assert list(strays(folder / "registry")) == []
        found = []
        for (_, way, _), (name, own), ran in zip(runs, places, json.loads(done.out), strict=True):
            says = ran["code"] == 0 or (way.name.startswith("verify") and ran["out"])
            found.append(Answer(ran["code"], way.answer(ran["out"], name, own) if says else None))
    for (path, way, _), file, pipe in zip(runs[::2], found[::2], found[1::2], strict=True):
        yield path.stem, way.name, file, pipe


def _batches(names: Sequence[str]) -> list[list[str]]:
    return [list(names[start : start + _BATCH]) for start in range(0, len(names), _BATCH)]


@pytest.mark.parametrize("way", [*_READING, *_MOVING], ids=lambda way: way.name)
def test_for_an_unusual_archive(way: Way, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.tar" for name in ODD]
    for path, odd in zip(paths, ODD.values(), strict=True):
        path.write_bytes(odd.make())
    (tmp_path / "runs").mkdir()
    wrong = []
    for name, _, file, pipe in answers(paths, [way], tmp_path / "runs"):
        apart = ODD[name].apart.get(way.name)
        if (file.code, pipe.code) != apart if apart else file != pipe:
            wrong.append((name, file, pipe))
    assert wrong == []


@pytest.mark.parametrize(
    ("names", "ways"),
    [
        *((names, _READING) for names in _batches([name for name in CORPUS if name not in HEAVY])),
        (HEAVY, _READING[:1]),
        pytest.param(HEAVY, _READING[1:], marks=pytest.mark.nightly),
    ],
    ids=lambda value: f"{value[0]}...{value[-1]}" if isinstance(value[0], str) else value[0].name,
)
def test_for_a_hostile_archive(
    names: Sequence[str], ways: Sequence[Way], made: Callable[[str], tuple[Hostile, Path]], tmp_path: Path
) -> None:
    """For push and copy, `test_corpus` compares the exit codes of file and pipe with each archive's row."""
    found = {(name, way): ends for name, way, *ends in answers([made(name)[1] for name in names], ways, tmp_path)}
    apart = {key: ends for key, ends in found.items() if ends[0] != ends[1] and key[0] not in _HASHED_IN_A_PIPE}
    assert apart == {}
    for name in _HASHED_IN_A_PIPE & set(names):
        codes = {way: tuple(end.code for end in found[name, way]) for way in ("verify --json", "inspect --json")}
        assert codes == {"verify --json": (5, 5), "inspect --json": (0, 5)}
        assert [answer.code for answer in found[name, "have"]] == [0, 5]
