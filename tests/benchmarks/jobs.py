"""The jobs: their names, the commands of each tool, and the ratio that ocistream should reach."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks.measurement import MIB, Command
from tests.benchmarks.tools import Crane, Curl, Ocistream, Skopeo, Tool, one, peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.benchmarks.data import Image
    from tests.benchmarks.measurement import Work
    from tests.benchmarks.servers import Servers

OURS = "ocistream"
_PYTHON = "python -c pass"
_BY_FILE = "ocistream, through a file"
#: Programs that do only a part of the job: they are measured too, but ocistream is not compared with them.
BASELINES = frozenset({Curl.name, _PYTHON, _BY_FILE})
#: The beginning of the names of jobs that measure memory.
MEMORY = "pull | push of "


@dataclass
class Place:
    """The output of one run: a path that does not exist, and a repository that does not exist."""

    out: Path
    repository: str


@dataclass
class Job:
    """One job.

    `goal` is the highest acceptable ratio: our median time divided by that of the fastest peer, or of `against`. If
    `is_goal_in_seconds`, the goal is our median time.
    """

    name: str
    goal: float | None
    works: dict[str, Callable[[Place], Work | None]] = field(default_factory=dict)
    against: str | None = None
    is_goal_in_seconds: bool = False
    #: Bytes that are copied; 0 if a rate would be meaningless.
    size: int = 0
    #: Bytes that ocistream hashes, in all of its processes.
    hashed: int = 0

    @property
    def rivals(self) -> list[str]:
        """The names of the tools that ocistream is compared with."""
        if self.against is not None:
            return [self.against]
        return [name for name in self.works if name != OURS and name not in BASELINES]


class Places:
    """Creates a `Place` for each run, and deletes its contents."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        self._folder = folder
        self._servers = servers
        self._numbers = itertools.count()

    def new(self) -> Place:
        """Return the next place."""
        number = next(self._numbers)
        return Place(self._folder / f"out{number}", f"run{number}")

    def tidy(self, place: Place) -> None:
        """Delete the output of a run."""
        shutil.rmtree(place.out, ignore_errors=True)
        place.out.unlink(missing_ok=True)
        self._servers.forget(place.repository)


def jobs(
    ours: Ocistream, images: dict[str, Image], archive: Path, debian: Path | None, servers: Servers
) -> Iterator[Job]:
    """Yield every job. `archive` has the image "big"; `debian` is a layout with gzip layers."""
    tools: list[Tool] = [ours, *peers()]
    yield from _start(ours, f"{servers.registry}/one:v1")
    big, many = images["big"], images["many"]

    def at(host: str, image: Image) -> str:
        return f"{host}/{image.name}:v1"

    job = partial(_job, tools, archive)

    source = at(servers.registry, big)
    yield job("big: to stdout", 0.70, big, lambda tool, _: tool.pull_stdout(source))
    yield job("big: to stdout, a pipe", 0.60, big, lambda tool, _: _into_cat(tool.pull_stdout(source)))
    tls = at(servers.encrypted, big)
    yield job("big: to stdout, over TLS", 0.95, big, lambda tool, _: tool.pull_stdout(tls, servers.ca))
    yield job("big: to a tar file", 0.70, big, lambda tool, place: tool.pull_file(source, place.out))
    yield job("big: to a directory", 0.90, big, lambda tool, place: tool.pull_directory(source, place.out))

    def target(place: Place) -> str:
        return f"{servers.other}/{place.repository}:v1"

    yield job("big: from a directory", 1.0, big, lambda tool, place: tool.push_directory(big, target(place)))
    yield job("big: from a tar file", 1.0, big, lambda tool, place: tool.push_file(archive, target(place)))
    yield Job(
        "big: from stdin",
        1.1,
        {
            OURS: lambda place: ours.push_stdin(archive, target(place)),
            "ocistream, from the file": lambda place: ours.push_file(archive, target(place)),
        },
        size=big.size,
        hashed=big.size,
    )
    yield job("big: registry to registry", 1.0, big, lambda tool, place: tool.copy(source, target(place)))
    yield from _pipes(ours, source, target, big)

    def limited(image: Image) -> Job:
        slow = at(servers.limited, image)
        title = f"{image.name}: to stdout, limited connections"
        return job(title, 0.15, image, lambda tool, _: tool.pull_stdout(slow))

    yield limited(big)
    yield limited(images["one"])
    slow = at(servers.limited, big)
    title = "big: to a directory, limited connections"
    yield job(title, 0.5, big, lambda tool, place: tool.pull_directory(slow, place.out))

    small = at(servers.registry, many)
    yield job("many: to a directory", 1.3, many, lambda tool, place: tool.pull_directory(small, place.out))
    yield job("many: from a directory", 1.1, many, lambda tool, place: tool.push_directory(many, target(place)))
    yield Job(
        "many: from a directory, all blobs exist",
        0.2,
        {OURS: lambda _: ours.push_directory(many, small)},
        is_goal_in_seconds=True,
    )
    yield from _distant(ours, many, images["layers"], job, servers)
    if debian is not None:
        yield from _recompression(ours, debian)
    for image in sorted(images.values(), key=lambda image: image.size):
        if image.name.startswith(("memory", "big")):
            name = f"{MEMORY}{image.size // MIB} MiB"
            yield Job(name, None, {OURS: partial(_pipe, ours, at(servers.registry, image), target)}, size=image.size)


def _job(
    tools: Sequence[Tool],
    archive: Path,
    name: str,
    goal: float | None,
    image: Image,
    make: Callable[[Tool, Place], Work | None],
) -> Job:
    """Return a job of all tools that can do it."""
    found = Job(name, goal, size=image.size, hashed=image.size)
    for tool in [*tools, Curl(image)]:
        if make(tool, Place(archive, "probe")) is not None:
            found.works[tool.name] = partial(make, tool)
    return found


def _pipe(ours: Ocistream, source: str, target: Callable[[Place], str], place: Place) -> Work:
    return ours.pipe(source, target(place))


def _start(ours: Ocistream, image: str) -> Iterator[Job]:
    """Yield the jobs that only start and ask for little."""
    for name, goal, work in (
        ("--version", 0.06, one(ours.run("")[0], "--version")),
        ("inspect of one image", 0.15, ours.inspect(image)),
    ):
        works: dict[str, Callable[[Place], Work | None]] = {
            OURS: partial(_same, work),
            _PYTHON: partial(_same, one(sys.executable, "-c", "pass")),
        }
        yield Job(name, goal, works, is_goal_in_seconds=True)


def _same(work: Work, _: Place) -> Work:
    return work


def _pipes(
    ours: Ocistream,
    source: str,
    target: Callable[[Place], str],
    image: Image,
    prefix: str = "",
    goals: tuple[float | None, float | None] = (1.2, 0.7),
) -> Iterator[Job]:
    """Compare `pull | push` with a direct copy of each peer, and with its copy through a file."""
    direct: dict[str, Callable[[Place], Work | None]] = {OURS: lambda place: ours.pipe(source, target(place))}
    by_file = dict(direct)
    for tool in (Skopeo(), Crane()):
        if shutil.which(tool.name):
            direct[tool.name] = partial(lambda tool, place: tool.copy(source, target(place)), tool)
            by_file[tool.name] = partial(lambda tool, place: tool.by_file(source, place.out, target(place)), tool)
    by_file[_BY_FILE] = lambda place: [
        *ours.pull_file(source, place.out),
        *ours.push_file(place.out, target(place)),
    ]
    name = f"{prefix}{image.name}: pull | push"
    yield Job(f"{name}; others: a direct copy", goals[0], direct, size=image.size, hashed=2 * image.size)
    yield Job(f"{name}; others: through a file", goals[1], by_file, size=image.size, hashed=2 * image.size)


def _distant(ours: Ocistream, many: Image, layers: Image, job: Callable[..., Job], servers: Servers) -> Iterator[Job]:
    """Yield the jobs with registries that have a long round-trip time."""
    source = f"{servers.distant}/{many.name}:v1"

    def target(place: Place) -> str:
        return f"{servers.other_distant}/{place.repository}:v1"

    yield job("distant, many: to stdout", 0.3, many, lambda tool, _: tool.pull_stdout(source))
    yield job("distant, many: to a directory", 0.8, many, lambda tool, place: tool.pull_directory(source, place.out))
    yield job(
        "distant, many: from a directory", 0.8, many, lambda tool, place: tool.push_directory(many, target(place))
    )
    yield from _pipes(ours, source, target, many, prefix="distant, ", goals=(1.1, None))
    yield from _pipes(ours, f"{servers.distant}/layers:v1", target, layers, prefix="distant, ", goals=(1.1, None))
    yield Job(
        "distant, many: from a directory, all blobs exist",
        0.8,
        {OURS: lambda _: ours.push_directory(many, source)},
        is_goal_in_seconds=True,
    )


def _recompression(ours: Ocistream, debian: Path) -> Iterator[Job]:
    image = f"oci:{debian}:debian"
    works: dict[str, Callable[[Place], Work | None]] = {
        OURS: lambda place: one(*ours.run("copy", "--compress", "zstd", image, f"oci:{place.out}:x"))
    }
    if shutil.which("skopeo"):
        to_zstd = ("--dest-compress", "--dest-compress-format", "zstd")
        works[Skopeo.name] = lambda place: one("skopeo", "copy", "--quiet", *to_zstd, image, f"oci:{place.out}:x")
    yield Job("debian: gzip to zstd", 0.6, works)


def _into_cat(work: Work | None) -> Work | None:
    return [[*pipeline, Command(("cat",))] for pipeline in work] if work is not None else None


#: Bytes of each layer of the images: of a full run (False) and of a quick run (True).
SIZES = {
    False: {
        "big": [512 * MIB] * 4,
        "one": [2048 * MIB],
        "many": [20_000] * 200,
        "layers": [3 * MIB] * 20,
        "memory-64m": [16 * MIB] * 4,
        "memory-512m": [128 * MIB] * 4,
        "memory-4g": [1024 * MIB] * 4,
    },
    True: {
        "big": [64 * MIB] * 4,
        "one": [256 * MIB],
        "many": [20_000] * 200,
        "layers": [3 * MIB] * 20,
        "memory-64m": [16 * MIB] * 4,
    },
}
