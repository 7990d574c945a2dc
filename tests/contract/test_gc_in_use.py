"""`gc` removes no blob that another process has used or removed since `gc` read the directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract import traced_run
from tests.images import Layout


@pytest.mark.parametrize("change", [os.utime, os.unlink])
def test_a_blob_that_is_used_or_removed_during_gc_is_not_removed(
    layout: Layout, change: Callable[[Path], None]
) -> None:
    blobs = [layout.file(layout.blob(content, "x/y")["digest"]) for content in (b"one", b"two", b"three")]
    for path in blobs:
        os.utime(path, (1, 1))
    dropped: list[Path] = []

    def meanwhile(event: str, arguments: tuple[Any, ...]) -> None:
        # Before `gc` removes its first blob, another process changes the others.
        if event == "os.remove" and not dropped and Path(arguments[0]) in blobs:
            dropped.append(Path(arguments[0]))
            for path in blobs:
                if path not in dropped:
                    change(path)

    assert traced_run.hooked(["gc", str(layout.path), "--older-than", "1h"], meanwhile) == 0
    left = [path for path in blobs if path.exists()]
    assert len(left) == (2 if change is os.utime else 0)
