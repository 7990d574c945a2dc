"""Progress: its totals and rates, and a display that fits any terminal."""

from __future__ import annotations

import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.cli.console import Console
from ocistream.cli.progress import Progress, ProgressSnapshot, TransferRate, format_remaining_time, render_lines
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from ocistream.sizes import format_size
from tests.images import digest_of

MIB = 1 << 20
BLOB = Descriptor("text/plain", digest_of(b"a"), 10 * MIB)
OTHER = Descriptor("text/plain", digest_of(b"b"), 30 * MIB)


class TestTransferRate:
    def test_the_rate_is_that_of_the_last_seconds(self) -> None:
        pace = TransferRate()
        for tenth in range(200):
            pace.add_bytes(tenth / 10, 100_000)
        assert pace.bytes_per_second(20) == pytest.approx(1_000_000, rel=0.05)
        for tenth in range(200, 320):
            pace.add_bytes(tenth / 10, 10_000)
        assert pace.bytes_per_second(32) == pytest.approx(100_000, rel=0.1)

    def test_the_rate_falls_without_data(self) -> None:
        pace = TransferRate()
        assert pace.bytes_per_second(3) == 0
        pace.add_bytes(5, MIB)
        assert pace.bytes_per_second(7) > pace.bytes_per_second(10) > pace.bytes_per_second(1000)
        assert pace.bytes_per_second(1000) < 2000

    def test_resumed_and_subtracted_bytes_do_not_count(self) -> None:
        pace = TransferRate()
        pace.add_bytes(1, 100 * MIB)
        assert pace.bytes_per_second(2) == 0
        pace.add_bytes(2, MIB)
        pace.add_bytes(2.5, -101 * MIB)
        assert pace.bytes_per_second(3) == MIB / 2

    def test_the_number_of_samples_is_limited(self) -> None:
        pace = TransferRate()
        for step in range(100_000):
            pace.add_bytes(step / 100, 1)
        assert len(pace._samples) < 50  # noqa: SLF001 - only a test needs it


class TestSnapshots:
    @pytest.fixture
    def account(self) -> Progress:
        account = Progress(Console())
        account.planned(Graph((), (), (BLOB, OTHER)))
        return account

    def test_a_retry_subtracts_bytes_and_all_numbers_stay_in_range(self, account: Progress) -> None:
        account.advance(9 * MIB, BLOB)
        account.advance(-9 * MIB, BLOB)
        account.advance(-MIB, BLOB)
        state = account.snapshot()
        assert (state.moved, state.percent) == (0, 0)
        assert state.active_blobs == [(BLOB.digest, BLOB.size, 0, state.active_blobs[0][3])]
        account.advance(50 * MIB, BLOB)
        state = account.snapshot()
        assert (state.moved, state.percent, state.seconds_left) == (40 * MIB, 100, 0)
        assert state.active_blobs[0][2] == BLOB.size

    def test_the_last_snapshot_is_complete(self, account: Progress) -> None:
        account.advance(BLOB.size, BLOB)
        account.done(BLOB, "copied")
        account.advance(OTHER.size - 1, None)
        assert account.snapshot().percent == 99
        account.advance(1, None)
        account.done(OTHER, "skipped")
        state = account.snapshot()
        assert (state.moved, state.total, state.percent, state.seconds_left) == (40 * MIB, 40 * MIB, 100, 0)
        assert (state.done_count, state.blob_count, state.active_blobs) == (2, 2, [])
        assert state.status_counts == {"copied": 1, "skipped": 1}

    def test_the_first_bytes_give_no_estimate_of_the_time_left(
        self, account: Progress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        account.advance(MIB, BLOB)
        assert account.snapshot().seconds_left is None
        monkeypatch.setattr(time, "monotonic", lambda: now + 2)
        assert account.snapshot().seconds_left == 2 * 39

    def test_closing_a_display_ends_its_thread_at_once(self) -> None:
        class Rare(Progress):
            interval = 3600.0

        before = threading.enumerate()
        with Rare(Console()):
            (thread,) = set(threading.enumerate()) - set(before)
        thread.join(60)
        assert not thread.is_alive()

    def test_a_layer_whose_digest_is_known_at_the_end_is_done_then(self) -> None:
        account = Progress(Console())
        account.advance(5, Descriptor("text/plain", "", 0))
        state = account.snapshot()
        assert (state.total, state.blob_count, state.active_blobs[0][:3]) == (None, None, ("", 0, 5))
        account.done(BLOB, "copied")
        assert account.snapshot().active_blobs == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h 0 min"), (12_000, "3 h 20 min"),
     (172_800, "2 days")],
)  # fmt: skip
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert format_remaining_time(seconds) == text


SIZES = st.integers(0, 2**62)
STATES = st.builds(
    ProgressSnapshot,
    moved=SIZES,
    total=st.none() | SIZES,
    rate=st.floats(0, 1e15),
    seconds_left=st.none() | st.floats(0, 1e12),
    blob_count=st.none() | st.integers(0, 20_000),
    status_counts=st.dictionaries(st.sampled_from(["copied", "skipped", "mounted", "omitted"]), st.integers(0, 20_000)),
    active_blobs=st.lists(
        st.tuples(st.sampled_from(["", BLOB.digest, OTHER.digest]), SIZES, SIZES, st.floats(0, 1e15)), max_size=20
    ),
)


@given(STATES, st.integers(2, 300), st.integers(1, 60), st.booleans())
def test_the_display_fits_the_terminal(state: ProgressSnapshot, columns: int, lines: int, ascii_only: bool) -> None:
    drawn = render_lines(state, os.terminal_size((columns, lines)), ascii_only=ascii_only)
    assert 1 <= len(drawn) <= min(10, max(1, lines - 1))
    for line in drawn:
        assert len(line) < columns
        assert line.isprintable()
        assert line.isascii() or not ascii_only


def test_everything_fits_80_columns() -> None:
    how = {"copied": 7, "skipped": 3, "mounted": 2, "omitted": 1}
    state = ProgressSnapshot(171 * MIB, 2048 * MIB, 123e6, 16.0, 40, how, [(BLOB.digest, BLOB.size, 4 * MIB, 5e6)])
    blob, counts, total = render_lines(state, os.terminal_size((80, 24)))
    assert blob.startswith(f"{BLOB.digest[7:19]}  40%|")
    assert blob.endswith("| 4.2 MB of 10.5 MB, 5.0 MB/s")
    assert counts == "13 of 40 blobs: 7 copied, 3 skipped, 2 mounted, 1 omitted"
    assert total.startswith("  8%|")
    assert total.endswith("| 179.3 MB of 2.1 GB, 123.0 MB/s, 16 s left")


def test_blobs_without_a_line_are_counted() -> None:
    under_way = [(BLOB.digest, BLOB.size, 0, 0.0)] * 5
    drawn = render_lines(ProgressSnapshot(0, 5, 0, None, 5, {}, under_way), os.terminal_size((80, 6)))
    assert [line.startswith(BLOB.digest[7:19]) for line in drawn] == [True, True, False, False]
    assert drawn[2] == "0 of 5 blobs, 3 more in progress"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_242_880, "5.2 MB"), (2**31, "2.1 GB"), (7.5e12, "7.5 TB")],
)
def test_sizes_are_written_for_people(size: float, text: str) -> None:
    assert format_size(size) == text
