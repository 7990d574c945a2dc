"""What it saves to ship only what is missing: a Debian image's next release over a slow line, in bytes and seconds."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.measurement import MIB, Command, measured
from tests.images import Layout, tar_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.measurement import Work
    from tests.benchmarks.servers import Servers
    from tests.benchmarks.tools import Ocistream

__all__ = ["missing"]

#: Bytes a second of the line: a hundred megabits.
LINE = 12_500_000
#: What is new in the second release, in bytes.
NEW = 5 * MIB
_LINK = Path(__file__).with_name("slow_link.py")


@dataclass
class _Way:
    """One way to do it: the work, given the far repository and the command that leads over the line."""

    name: str
    work: Callable[[str, list[str]], Work]
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def missing(ours: Ocistream, debian: Path, folder: Path, servers: Servers, runs: int) -> str:
    """Ship the second release so often in each way, in turn; give a table of medians."""
    old, new = _releases(debian, folder / "releases")
    near = f"{servers.registry}/releases"
    for layout, tag in ((old, "v1"), (new, "v2")):
        measured([[Command(ours.run("push", f"{near}:{tag}", "-i", str(layout)))]])
    ways = _ways(ours, f"{near}:v2", folder)
    for number in itertools.count():
        if number > runs:
            break
        for place, way in enumerate(ways):
            far = f"{servers.other}/way{place}-{number}"
            measured([[Command(ours.run("push", f"{far}:v1", "-i", str(old)))]])
            count = folder / f"count{place}-{number}"
            os.sync()
            run = measured(way.work(far, [sys.executable, "-I", "-S", str(_LINK), str(LINE), str(count)]))
            if number:
                # The first one does not count.
                way.sizes.append(sum(map(int, count.read_text().split())))
                way.seconds.append(run.seconds)
    first = statistics.median(ways[0].seconds)
    rows = ["| way | MB over the line | seconds | of the whole |", "| --- | --- | --- | --- |"]
    for way in ways:
        size, seconds = statistics.median(way.sizes), statistics.median(way.seconds)
        rows.append(f"| {way.name} | {size / 1e6:.1f} | {seconds:.2f} | {seconds / first:.2f} |")
    return "\n".join([*rows, ""])


def _ways(ours: Ocistream, source: str, folder: Path) -> list[_Way]:
    def pull(*options: str) -> Command:
        return Command(ours.run("pull", source, *options))

    def whole(far: str, line: list[str]) -> Work:
        return [[pull(), Command((*line, *ours.run("push", f"{far}:v2")))]]

    def delta(far: str, line: list[str]) -> Work:
        have = folder / "have.txt"
        listing = Command((*line, *ours.run("have", far)), stdout=have)
        return [[listing], [pull("--have", str(have)), Command((*line, *ours.run("push", f"{far}:v2")))]]

    def via(far: str, line: list[str]) -> Work:
        path = str(Path(ours.run("copy")[0]).parent)
        env = {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
        return [[Command(ours.run("copy", source, f"{far}:v2", "--via", shlex.join(line)), env)]]

    return [
        _Way("pull \\| push: all of it", whole),
        _Way("have, then pull --have \\| push", delta),
        _Way("copy --via", via),
    ]


def _releases(debian: Path, folder: Path) -> tuple[Path, Path]:
    """Make the second release beside the first: the last layer is another one."""
    (entry,) = json.loads((debian / "index.json").read_bytes())["manifests"]
    layout = Layout(folder)
    (folder / "blobs" / "sha256").mkdir()
    for blob in (debian / "blobs" / "sha256").iterdir():
        # Links would lead out of the layout.
        os.link(blob, folder / "blobs" / "sha256" / blob.name)
    layers = layout.read(entry["digest"])["layers"]
    layout.image([*layers[:-1], tar_layer({"opt/new": os.urandom(NEW)})], name="v2")
    return debian, folder
