"""The images of the benchmarks: layouts that are created once, in a cache directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks.measurement import MIB

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Image", "made"]

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Image:
    """A layout with one image named v1. `size` is the total size of its layers, in bytes."""

    name: str
    layout: Path
    layers: tuple[str, ...]
    size: int


def made(cache: Path, name: str, sizes: list[int]) -> Image:
    """Return an image with incompressible layers of these sizes, in bytes; create it if it does not exist."""
    layout = cache / f"{name}-{len(sizes)}x{sizes[0]}"
    if not (layout / "index.json").exists():
        shutil.rmtree(layout, ignore_errors=True)
        _make(layout, sizes)
    manifest = json.loads(_blob(layout, json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]))
    layers = [layer["digest"] for layer in manifest["layers"]]
    return Image(name, layout, tuple(layers), sum(sizes))


def _blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def _make(layout: Path, sizes: list[int]) -> None:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    layers = [_layer(blobs, size) for size in sizes]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": put(json.dumps(config).encode(), _CONFIG),
        "layers": layers,
    }
    entry = put(json.dumps(manifest).encode(), _MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _layer(blobs: Path, size: int) -> dict[str, object]:
    hasher = hashlib.sha256()
    path = blobs / "unfinished"
    with path.open("wb") as file:
        left = size
        while left:
            chunk = os.urandom(min(left, MIB))
            hasher.update(chunk)
            file.write(chunk)
            left -= len(chunk)
    path.rename(blobs / hasher.hexdigest())
    return {"mediaType": _LAYER, "digest": f"sha256:{hasher.hexdigest()}", "size": size}
