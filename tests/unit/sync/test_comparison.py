"""What a sync finds out of an image before it moves."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ocistream.errors import ArchiveError
from ocistream.locations import OpenContext
from ocistream.sync.comparison import ImageComparer, ImageComparison
from ocistream.sync.destination_state import LayoutWriters
from ocistream.sync.file import read_sync_file
from ocistream.sync.plan import EntryCopies
from ocistream.sync.sources import SyncSources


class Source:
    """A source that says whether it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_source_of_which_nothing_can_be_made_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.toml").write_text("[[sync]]\nfrom = 'a.example/b:1'\nto = 'c.example/d'\n")
    (copy,) = EntryCopies(read_sync_file(tmp_path / "x.toml").entries[0], ())
    source, error = Source(), ArchiveError("malformed")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(SyncSources, "open", lambda *_: source)
    monkeypatch.setattr("ocistream.sync.comparison.read_graph", fail)
    looking = ImageComparer(
        lambda _: OpenContext(),
        sources=SyncSources(),
        layouts=LayoutWriters(),
        create_cancel_event=threading.Event,
        check_push=lambda _: None,
    )
    look = ImageComparison(copy)
    look.pending = list(copy.destinations)
    looking.prepare(look)
    assert source.closed == 1
    assert [outcome.error for outcome in look.results] == [error]
