"""Measure how much it saves to copy only missing blobs: the next release of a Debian image over a slow connection."""

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

#: Bytes per second of the connection: 100 Mbit/s.
LINE = 12_500_000
#: Bytes that are new in the second release.
NEW = 5 * MIB
_LINK = Path(__file__).with_name("slow_link.py")


@dataclass
class _Way:
    """One way to copy: its work, for a remote repository and the command that runs programs over the connection."""

    name: str
    work: Callable[[str, list[str]], Work]
    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def missing(ours: Ocistream, debian: Path, folder: Path, servers: Servers, runs: int) -> str:
    """Copy the second release in each way, in turn, `runs` times; return a table of medians."""
    old, new = _releases(debian, folder / "releases")
    near = f"{servers.registry}/releases"
    for layout, tag in ((old, "v1"), (new, "v2")):
        measured([[Command(ours.run("push", f"{near}:{tag}", "-i", str(layout)))]])
    ways = _ways(ours, f"{near}:v2", folder)
    for number in itertools.count():
        if number > runs:
            break
        for place, way in enumerate(ways):
            remote = f"{servers.other}/way{place}-{number}"
            measured([[Command(ours.run("push", f"{remote}:v1", "-i", str(old)))]])
            count = folder / f"count{place}-{number}"
            os.sync()
            run = measured(way.work(remote, [sys.executable, "-I", "-S", str(_LINK), str(LINE), str(count)]))
            if number:
                # The first run is not counted.
                way.sizes.append(sum(map(int, count.read_text().split())))
                way.seconds.append(run.seconds)
    first = statistics.median(ways[0].seconds)
    rows = ["| way | MB sent | seconds | relative time |", "| --- | --- | --- | --- |"]
    for way in ways:
        size, seconds = statistics.median(way.sizes), statistics.median(way.seconds)
        rows.append(f"| {way.name} | {size / 1e6:.1f} | {seconds:.2f} | {seconds / first:.2f} |")
    return "\n".join([*rows, ""])


def _ways(ours: Ocistream, source: str, folder: Path) -> list[_Way]:
    def pull(*options: str) -> Command:
        return Command(ours.run("pull", source, *options))

    def whole(remote: str, line: list[str]) -> Work:
        return [[pull(), Command((*line, *ours.run("push", f"{remote}:v2")))]]

    def delta(remote: str, line: list[str]) -> Work:
        have = folder / "have.txt"
        listing = Command((*line, *ours.run("have", remote)), stdout=have)
        return [[listing], [pull("--have", str(have)), Command((*line, *ours.run("push", f"{remote}:v2")))]]

    def via(remote: str, line: list[str]) -> Work:
        path = str(Path(ours.run("copy")[0]).parent)
        env = {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
        return [[Command(ours.run("copy", source, f"{remote}:v2", "--via", shlex.join(line)), env)]]

    return [
        _Way("pull \\| push of everything", whole),
        _Way("have, then pull --have \\| push", delta),
        _Way("copy --via", via),
    ]


def _releases(debian: Path, folder: Path) -> tuple[Path, Path]:
    """Return the layouts of the first and the second release, which differ in the last layer."""
    (entry,) = json.loads((debian / "index.json").read_bytes())["manifests"]
    layout = Layout(folder)
    (folder / "blobs" / "sha256").mkdir()
    for blob in (debian / "blobs" / "sha256").iterdir():
        # Hard links: ocistream does not follow symbolic links out of a layout.
        os.link(blob, folder / "blobs" / "sha256" / blob.name)
    layers = layout.read(entry["digest"])["layers"]
    layout.image([*layers[:-1], tar_layer({"opt/new": os.urandom(NEW)})], name="v2")
    return debian, folder
