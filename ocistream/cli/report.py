"""What a transfer prints and writes when it is done: result lines on stdout, a JSON document, a last line on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ocistream import files
from ocistream.cli.progress import human_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocistream.cli.console import Console
    from ocistream.graph import Root
    from ocistream.transfer import Report

__all__ = ["print_results", "summarize", "write_result"]


def print_results(report: Report, label: Callable[[Root], str]) -> None:
    """Print one line an image, `NAME@sha256:...`, on stdout."""
    for root in report.graph.roots:
        click.echo(f"{label(root)}@{root.descriptor.digest}")


def summarize(console: Console, report: Report) -> None:
    """Say in one line on stderr what was moved and how fast."""
    sizes = {
        how: sum(m.descriptor.size for m in report.blobs if m.how == how) for how in ("copied", "skipped", "mounted")
    }
    counts = {how: sum(1 for m in report.blobs if m.how == how) for how in sizes}
    rate = sizes["copied"] / report.seconds if report.seconds else 0.0
    parts = [
        f"{counts['copied']} blobs, {human_size(sizes['copied'])}, in {report.seconds:.1f} s ({human_size(rate)}/s)"
    ]
    parts += [f"{counts[how]} {how} ({human_size(sizes[how])})" for how in ("mounted", "skipped") if counts[how]]
    if report.graph.foreign:
        parts.append(f"{len(report.graph.foreign)} foreign layers left where they are")
    console.note("moved " + "; ".join(parts))


def write_result(path: Path, report: Report, label: Callable[[Root], str], *, retried: int) -> None:
    """Write the JSON document of --result: names, digests, sizes in bytes, what became of each blob, seconds.

    Raises:
        LocalDiskError: it cannot be written.
    """
    by_digest = {moved.descriptor.digest: moved.how for moved in report.blobs}
    document = {
        "images": [
            {
                "name": label(root),
                "digest": root.descriptor.digest,
                "mediaType": root.descriptor.media_type,
                "size": sum(blob.size for blob in report.graph.blobs if blob.digest in reachable),
            }
            for root in report.graph.roots
            for reachable in [report.graph.reachable(root)]
        ],
        "manifests": [
            _descriptor(m.descriptor.media_type, m.descriptor.digest, m.descriptor.size) for m in report.graph.manifests
        ],
        "blobs": [
            {**_descriptor(b.media_type, b.digest, b.size), "how": by_digest[b.digest]} for b in report.graph.blobs
        ],
        "foreign": [_descriptor(b.media_type, b.digest, b.size) for b in report.graph.foreign],
        "bytes": {how: _total(report, how) for how in ("copied", "skipped", "mounted")},
        "retried": retried,
        "seconds": round(report.seconds, 3),
    }
    with files.disk_errors(f"cannot write {path}"), files.atomic_file(path) as file:
        files.write_all(file, json.dumps(document, indent=2).encode() + b"\n")


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _total(report: Report, how: str) -> int:
    return sum(moved.descriptor.size for moved in report.blobs if moved.how == how)
