"""What progress is counted up to, how fast that is, and that what is drawn of it fits any terminal."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream.cli.progress_bar import frame
from ocistream.cli.progress_state import Account, Pace, State, human_size, human_time
from ocistream.oci.descriptor import Descriptor
from ocistream.oci.graph import Graph
from tests.images import digest_of

MIB = 1 << 20
BLOB = Descriptor("text/plain", digest_of(b"a"), 10 * MIB)
OTHER = Descriptor("text/plain", digest_of(b"b"), 30 * MIB)


class TestPace:
    def test_a_rate_is_that_of_the_last_seconds(self) -> None:
        pace = Pace()
        for tenth in range(200):
            pace.note(tenth / 10, 100_000)
        assert pace.rate(20) == pytest.approx(1_000_000, rel=0.05)
        for tenth in range(200, 320):
            pace.note(tenth / 10, 10_000)
        assert pace.rate(32) == pytest.approx(100_000, rel=0.1)

    def test_it_falls_where_nothing_flows(self) -> None:
        pace = Pace()
        assert pace.rate(3) == 0
        pace.note(5, MIB)
        assert pace.rate(7) > pace.rate(10) > pace.rate(1000)
        assert pace.rate(1000) < 2000

    def test_what_was_there_and_what_is_taken_back_does_not_flow(self) -> None:
        pace = Pace()
        pace.note(1, 100 * MIB)
        assert pace.rate(2) == 0
        pace.note(2, MIB)
        pace.note(2.5, -101 * MIB)
        assert pace.rate(3) == MIB / 2

    def test_it_does_not_grow(self) -> None:
        pace = Pace()
        for step in range(100_000):
            pace.note(step / 100, 1)
        assert len(pace._samples) < 50  # noqa: SLF001 - nobody else sees it


class TestAccount:
    @pytest.fixture
    def account(self) -> Account:
        account = Account()
        account.planned(Graph((), (), (BLOB, OTHER)))
        return account

    def test_a_retry_rolls_back_and_no_number_leaves_its_bounds(self, account: Account) -> None:
        account.advance(9 * MIB, BLOB)
        account.advance(-9 * MIB, BLOB)
        account.advance(-MIB, BLOB)
        state = account.state()
        assert (state.moved, state.percent) == (0, 0)
        assert state.under_way == [(BLOB.digest, BLOB.size, 0, state.under_way[0][3])]
        account.advance(50 * MIB, BLOB)
        state = account.state()
        assert (state.moved, state.percent, state.left) == (40 * MIB, 100, 0)
        assert state.under_way[0][2] == BLOB.size

    def test_the_last_state_is_all_of_it(self, account: Account) -> None:
        account.advance(BLOB.size, BLOB)
        account.done(BLOB, "copied")
        account.advance(OTHER.size - 1, None)
        assert account.state().percent == 99
        account.advance(1, None)
        account.done(OTHER, "skipped")
        state = account.state()
        assert (state.moved, state.total, state.percent, state.left) == (40 * MIB, 40 * MIB, 100, 0)
        assert (state.done, state.blobs, state.under_way) == (2, 2, [])
        assert state.how == {"copied": 1, "skipped": 1}

    def test_nothing_is_said_of_the_time_left_by_the_first_bytes(
        self, account: Account, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        account.advance(MIB, BLOB)
        assert account.state().left is None
        monkeypatch.setattr(time, "monotonic", lambda: now + 2)
        assert account.state().left == 2 * 39

    def test_a_layer_that_gets_its_digest_at_the_end_is_done_then(self) -> None:
        account = Account()
        account.advance(5, Descriptor("text/plain", "", 0))
        state = account.state()
        assert (state.total, state.blobs, state.under_way[0][:3]) == (None, None, ("", 0, 5))
        account.done(BLOB, "copied")
        assert account.state().under_way == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h 0 min"), (12_000, "3 h 20 min"),
     (172_800, "2 days")],
)  # fmt: skip
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


SIZES = st.integers(0, 2**62)
STATES = st.builds(
    State,
    moved=SIZES,
    total=st.none() | SIZES,
    rate=st.floats(0, 1e15),
    left=st.none() | st.floats(0, 1e12),
    blobs=st.none() | st.integers(0, 20_000),
    how=st.dictionaries(st.sampled_from(["copied", "skipped", "mounted", "left out"]), st.integers(0, 20_000)),
    under_way=st.lists(
        st.tuples(st.sampled_from(["", BLOB.digest, OTHER.digest]), SIZES, SIZES, st.floats(0, 1e15)), max_size=20
    ),
)


@given(STATES, st.integers(2, 300), st.integers(1, 60), st.booleans())
def test_what_is_drawn_fits(state: State, columns: int, lines: int, ascii_only: bool) -> None:
    drawn = frame(state, os.terminal_size((columns, lines)), ascii_only=ascii_only)
    assert 1 <= len(drawn) <= min(10, max(1, lines - 1))
    for line in drawn:
        assert len(line) < columns
        assert line.isprintable()
        assert line.isascii() or not ascii_only


def test_at_80_columns_all_of_it_is_said() -> None:
    how = {"copied": 7, "skipped": 3, "mounted": 2, "left out": 1}
    state = State(171 * MIB, 2048 * MIB, 123e6, 16.0, 40, how, [(BLOB.digest, BLOB.size, 4 * MIB, 5e6)])
    blob, counts, total = frame(state, os.terminal_size((80, 24)))
    assert blob.startswith(f"{BLOB.digest[7:19]}  40%|")
    assert blob.endswith("| 4.2 MB of 10.5 MB, 5.0 MB/s")
    assert counts == "13 of 40 blobs: 7 copied, 3 skipped, 2 mounted, 1 left out"
    assert total.startswith("  8%|")
    assert total.endswith("| 179.3 MB of 2.1 GB, 123.0 MB/s, 16 s left")


def test_what_has_no_line_is_counted() -> None:
    under_way = [(BLOB.digest, BLOB.size, 0, 0.0)] * 5
    drawn = frame(State(0, 5, 0, None, 5, {}, under_way), os.terminal_size((80, 6)))
    assert [line.startswith(BLOB.digest[7:19]) for line in drawn] == [True, True, False, False]
    assert drawn[2] == "0 of 5 blobs, 3 more under way"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (5_242_880, "5.2 MB"), (2**31, "2.1 GB"), (7.5e12, "7.5 TB")],
)
def test_sizes_are_written_for_people(size: float, text: str) -> None:
    assert human_size(size) == text
