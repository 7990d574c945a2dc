"""Measure ocistream and other tools. See scripts/bench."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.data import made
from tests.benchmarks.delta import missing
from tests.benchmarks.jobs import SIZES, Places, jobs
from tests.benchmarks.many_images import many_images
from tests.benchmarks.measurement import FailedError, Run, hash_rate, measured, median
from tests.benchmarks.plots import write_plots
from tests.benchmarks.report import Line, breakdown, line_of, table
from tests.benchmarks.servers import running
from tests.benchmarks.tools import Ocistream, versions
from tests.debian_image import debian_rootfs_image

if TYPE_CHECKING:
    from tests.benchmarks.jobs import Job

_LONG = 20.0
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run every job and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure ocistream and other tools.")
    parser.add_argument("--runs", type=int, help="runs of each command (default: 5; with --quick: 1)")
    parser.add_argument("--quick", action="store_true", help="an eighth of the data; one run takes about 2 minutes")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only jobs whose names match (Python's re)")
    parser.add_argument(
        "--missing", action="store_true", help="instead, measure how much it saves to copy only missing blobs"
    )
    parser.add_argument(
        "--sync", action="store_true", help="instead, sync 1,000 and 10,000 images (with --quick 100 and 1,000)"
    )
    parser.add_argument("--command", metavar="OCISTREAM", help="measure this command, not the source tree")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the results as SVG files in DIR")
    arguments = parser.parse_args()
    command = arguments.command or str(Path(sys.executable).with_name("ocistream"))
    runs = arguments.runs or (1 if arguments.quick else 5)
    if arguments.sync:
        counts = (100, 1_000) if arguments.quick else (1_000, 10_000)
        with tempfile.TemporaryDirectory(prefix="ocistream-bench-") as name:
            for row in many_images(Ocistream(command), Path(name), counts, arguments.only):
                print(row, flush=True)
        return 0
    cache = ROOT / ".cache" / "images"
    cache.mkdir(parents=True, exist_ok=True)
    sizes = {} if arguments.missing else SIZES[arguments.quick]
    images = {name: made(cache, name, of) for name, of in sizes.items()}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="ocistream-bench-") as name, running(Path(name)) as servers:
        folder = Path(name)
        os.environ.update(HOME=str(folder / "home"), XDG_STATE_HOME=str(folder / "state"))
        ours = Ocistream(command)
        for image in () if arguments.missing else images.values():
            measured(ours.push_directory(image, f"{servers.registry}/{image.name}:v1"))
        if arguments.missing:
            layout = debian(cache)
            print(missing(ours, layout, folder, servers, runs) if layout else "", end="")
            return 0
        archive = folder / "big.tar"
        measured(ours.pull_file(f"{servers.registry}/big:v1", archive))
        print(versions(), "", sep="\n")
        places = Places(folder, servers)
        for job in jobs(ours, images, archive, debian(cache), servers):
            if re.search(arguments.only, job.name):
                lines.append(line_of(job, compared(job, places, runs)))
                print(table(lines[-1:], heading=len(lines) == 1), end="", flush=True)
        inspected = [measured(ours.inspect(f"{servers.registry}/one:v1")) for _ in range(5)]
        print("", breakdown(lines, hash_rate(), median(inspected, "cpu")), sep="\n", end="", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    if arguments.plots:
        write_plots(lines, arguments.plots)
    return 0


def debian(cache: Path) -> Path | None:
    """Return the layout of a Debian image; None if it cannot be built here."""
    if not shutil.which("mmdebstrap") or os.geteuid() != 0:
        print("bench: without mmdebstrap or not root: recompression is not measured", file=sys.stderr)
        return None
    return debian_rootfs_image(cache).layout.path


def compared(job: Job, places: Places, runs: int) -> dict[str, list[Run]]:
    """Run each tool `runs` times, in turn, after one run that is not counted. A tool that fails is excluded.

    A tool that takes more than `_LONG` seconds runs only once, because such a time hardly varies.
    """
    found: dict[str, list[Run]] = {name: [] for name in job.works}
    for number in range(runs + 1 if runs > 1 else 1):
        for name, make in job.works.items():
            if name not in found or (found[name] and found[name][-1].seconds > _LONG):
                continue
            place = places.new()
            try:
                work = make(place)
                assert work is not None, "`jobs` excludes tools without work"
                # Write the data of earlier runs to the disk now, not during this run.
                os.sync()
                run = measured(work)
            except FailedError as error:
                del found[name]
                print(f"bench: {job.name}: {name} failed: {error}", file=sys.stderr)
            else:
                if number or runs == 1 or run.seconds > _LONG:
                    found[name].append(run)
            finally:
                places.tidy(place)
    return found


if __name__ == "__main__":
    sys.exit(main())
