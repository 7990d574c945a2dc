"""What `gc` drops: nothing that somebody has taken into use since it was looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream.stores import unneeded
from ocistream.stores.layout_directory import LayoutDirectory
from tests.images import Layout


@pytest.mark.parametrize("change", [os.utime, os.unlink])
def test_what_is_used_or_removed_meanwhile_is_not_dropped(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    first, second = (str(layout.blob(content, "x/y")["digest"]) for content in (b"one", b"two"))
    for digest in (first, second):
        os.utime(layout.file(digest), (1, 1))
    original = LayoutDirectory.entries

    def meanwhile(directory: LayoutDirectory) -> object:
        change(layout.file(first))
        return original(directory)

    monkeypatch.setattr(LayoutDirectory, "entries", meanwhile)
    done = unneeded.collect(LayoutDirectory(layout.path))
    assert (done.dropped, done.size) == ([second], 3)
    assert not layout.file(second).exists()
