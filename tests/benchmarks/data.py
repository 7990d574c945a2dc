"""The images of the benchmarks: layouts that are created once, in a cache directory."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measurement import MIB
from tests.images import OCI_LAYER, Descriptor, Layout


@dataclass(frozen=True)
class Image:
    """A layout with one image named v1. `size` is the total size of its layers, in bytes."""

    name: str
    layout: Path
    layers: tuple[str, ...]
    size: int


def made(cache: Path, name: str, sizes: list[int]) -> Image:
    """Return an image with incompressible layers of these sizes, in bytes; create it if it does not exist."""
    path = cache / f"{name}-{len(sizes)}x{sizes[0]}"
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        layout = Layout(unfinished)
        layout.image([_layer(layout, size) for size in sizes], name="v1")
        unfinished.rename(path)
    (entry,) = json.loads((path / "index.json").read_bytes())["manifests"]
    layers = [layer["digest"] for layer in Layout(path).read(entry["digest"])["layers"]]
    return Image(name, path, tuple(layers), sum(sizes))


def _layer(layout: Layout, size: int) -> Descriptor:
    path = layout.path / "layer"
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(size - start, MIB)))
    return layout.adopt(path, OCI_LAYER)
