"""The stored results of a sync, until they are printed."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

from ocistream.cli.commands.sync import CompressedJsonList


def test_the_results_of_many_images_take_little_memory() -> None:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(10_000)]
    tracemalloc.start()
    try:
        kept = CompressedJsonList()
        for number, digest in enumerate(digests):
            name = f"registry.example.com/team/app:{number}"
            kept.add(
                {"from": name, "to": f"mirror.example.com/{name}", "status": "copied", "digest": f"sha256:{digest}"}
            )
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 2_000_000
    found = json.loads(b"[" + b"".join(kept.pieces()) + b"]")
    assert [image["digest"] for image in found] == [f"sha256:{digest}" for digest in digests]
