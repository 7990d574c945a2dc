"""Measure how `ocistream sync` scales with the number of small images: time and peak memory."""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
from typing import TYPE_CHECKING

from tests.benchmarks.measurement import MIB, Command, measured
from tests.images import Layout
from tests.peers import docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.benchmarks.measurement import Run
    from tests.benchmarks.tools import Ocistream


def many_images(ours: Ocistream, folder: Path, counts: tuple[int, ...], only: str = "") -> Iterator[str]:
    """Sync each source with each destination, first empty and then complete; yield the lines of a table."""
    yield "| sync | " + " | ".join(f"{count:,}: s | CPU s | peak MiB" for count in counts) + " | ratio of CPU s |"
    yield "| --- |" + " --- |" * (3 * len(counts) + 1)
    runs: dict[str, list[Run]] = {}
    for count in counts:
        for name, run in _measure_each(ours, folder / f"{count}", count, only):
            runs.setdefault(name, []).append(run)
            if len(runs[name]) == len(counts):
                yield _format_row(name, runs[name])


def _format_row(name: str, runs: list[Run]) -> str:
    cells = [f"{run.seconds:.1f} | {run.cpu:.1f} | {run.peak / MIB:.1f}" for run in runs]
    return f"| {name} | {' | '.join(cells)} | {runs[-1].cpu / runs[0].cpu:.1f} |"


def _measure_each(ours: Ocistream, folder: Path, count: int, only: str) -> Iterator[tuple[str, Run]]:
    folder.mkdir(parents=True)
    layout = folder / "layout"
    _write_layout(layout, count)
    archive = folder / "images.tar"
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(layout, arcname="")
    sources = {"a layout": f"oci:{layout}", "an archive": f"oci-archive:{archive}"}
    with contextlib.ExitStack() as stack:
        if "registry" in only or not only:
            registry = stack.enter_context(docker_registry(folder / "registry"))
            sources["a registry"] = repository = f"{registry.host}/images"
            # The first sync fills the registry.
            yield from _measure(ours, folder, count, "a layout to a registry", sources["a layout"], repository)
        for name, source in sources.items():
            job = f"{name} to a layout"
            if only in job:
                yield from _measure(ours, folder, count, job, source, f"oci:{folder}/{name.rpartition(' ')[2]}-copy")
    shutil.rmtree(folder)


def _measure(
    ours: Ocistream, folder: Path, count: int, name: str, source: str, destination: str
) -> Iterator[tuple[str, Run]]:
    """Run a sync twice: the second one copies nothing."""
    file, results = folder / "sync.toml", folder / "results"
    file.write_text(f"[[sync]]\nfrom = {json.dumps(source)}\nto = {json.dumps(destination)}\n")
    for state in ("", ", unchanged"):
        run = measured([[Command(ours.run("sync", str(file)), stdout=results)]])
        assert len(results.read_text().splitlines()) == count
        yield f"{name}{state}", run


def _write_layout(path: Path, count: int) -> None:
    """Write images that each have their own layer, config and manifest."""
    layout = Layout(path)
    entries = [
        {
            **layout.image([b"layer %d" % number]),
            "annotations": {"org.opencontainers.image.ref.name": f"v{number}"},
        }
        for number in range(count)
    ]
    # One write for all names.
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
