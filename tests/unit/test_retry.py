"""When something is tried again, how long is waited before, and how often at the most."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocistream import limits
from ocistream.errors import CancelledError, FinalNetworkError, NetworkError
from ocistream.http.retry import Patience, Retried, Tries, retry_after

URL = "https://user:secret@registry.example/v2/app/blobs/x?sig=secret"


class Waits:
    """Notes what it is told to wait for, and does not."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.waits: list[float] = []
        self.held: list[tuple[str, float]] = []
        self.told: list[Retried] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def hold_back(self, url: str, seconds: float) -> None:
        self.held.append((url, seconds))

    def retried(self, retried: Retried) -> None:
        self.told.append(retried)


class Refusal:
    """An answer of some status."""

    url = URL

    def __init__(self, status: int, retry_after: str | None = None) -> None:
        self.status = status
        self.retry_after = retry_after
        self.drained = False

    def header(self, name: str) -> str | None:
        return self.retry_after if name == "Retry-After" else None

    def drain(self) -> None:
        self.drained = True


BROKEN = NetworkError("GET https://registry.example/v2/: connection refused")


@pytest.mark.parametrize("failure", [BROKEN, Refusal(503), Refusal(429, "0")])
@pytest.mark.parametrize("attempts", [1, 2, 6])
def test_the_number_of_tries_is_bounded(failure: NetworkError | Refusal, attempts: int) -> None:
    waits = Waits(Patience(attempts=attempts))
    tries = Tries(waits)
    assert [tries.again(failure) for _ in range(attempts)] == [True] * (attempts - 1) + [False]
    assert len(waits.waits) == attempts - 1
    assert not tries.again(failure)


def test_progress_gives_all_tries_back() -> None:
    tries = Tries(Waits(Patience(attempts=3)))
    for _ in range(20):
        assert tries.again(BROKEN)
        assert tries.again(BROKEN)
        tries.reset()


def test_what_trying_again_does_not_cure_is_not_tried_again() -> None:
    waits = Waits(Patience())
    assert not Tries(waits).again(FinalNetworkError("the certificate is not trusted"))
    assert waits.waits == []
    assert waits.told == []


def test_waits_double_up_to_a_limit_with_jitter() -> None:
    patience = Patience(attempts=9, backoff=1.0, backoff_limit=20.0)
    seen: list[list[float]] = []
    for _ in range(50):
        waits = Waits(patience)
        tries = Tries(waits)
        while tries.again(BROKEN):
            pass
        seen.append(waits.waits)
    for number, longest in enumerate([1, 2, 4, 8, 16, 20, 20, 20]):
        column = [waits[number] for waits in seen]
        assert longest / 2 <= min(column)
        assert max(column) <= longest
        assert len(set(column)) > 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed_whether_seconds_or_a_date(status: int, as_date: bool) -> None:
    waits = Waits(Patience(backoff=0.001))
    said = formatdate(time.time() + 100, usegmt=True) if as_date else "100"
    refused = Refusal(status, said)
    assert Tries(waits).again(refused)
    assert waits.waits == [pytest.approx(100, abs=30)]
    assert refused.drained


@pytest.mark.parametrize("said", ["0", "1", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_registry_that_asks_for_no_wait_gets_the_usual_one(said: str) -> None:
    waits = Waits(Patience(backoff=8.0))
    assert Tries(waits).again(Refusal(429, said))
    assert waits.waits[0] >= 4.0


def test_a_wait_that_is_longer_than_our_patience_is_not_begun() -> None:
    waits = Waits(Patience(retry_after_limit=10.0))
    assert Tries(waits).again(Refusal(429, "10"))
    refused = Refusal(429, "11")
    assert not Tries(waits).again(refused)
    # Its body is still to be read: the error is made of it.
    assert not refused.drained
    assert waits.waits == [10.0]


def test_only_429_holds_others_back_from_the_host() -> None:
    waits = Waits(Patience())
    assert Tries(waits).again(Refusal(503, "7"))
    assert Tries(waits).again(BROKEN)
    assert waits.held == []
    assert Tries(waits).again(Refusal(429, "7"))
    assert waits.held == [(URL, 7.0)]


def test_each_retry_is_told_with_its_reason_and_no_secret() -> None:
    waits = Waits(Patience())
    tries = Tries(waits)
    tries.again(Refusal(429, "7"))
    tries.again(BROKEN)
    assert waits.told[0] == Retried("https://registry.example/v2/app/blobs/x?...", "answered 429", 7.0)
    assert (waits.told[1].url, waits.told[1].reason) == ("", BROKEN.what)
    assert [told.wait for told in waits.told] == waits.waits


def test_it_is_told_before_the_wait() -> None:
    class Cancelled(Waits):
        def wait(self, seconds: float) -> None:
            raise CancelledError(str(seconds))

    waits = Cancelled(Patience())
    with pytest.raises(CancelledError):
        Tries(waits).again(Refusal(500))
    assert len(waits.told) == 1


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "soon",
        "-5",
        "1.5",
        "\xb2",
        "\u0663",
        "99 Foo 2015",
        "Wed, 21 Oct 99999 07:28:00 GMT",
        f"Wed, 21 Oct {'9' * 30} 07:28:00 GMT",
    ],
)
def test_retry_after_that_makes_no_sense_is_as_good_as_absent(value: str | None) -> None:
    assert retry_after(value) is None


def test_retry_after_is_never_negative() -> None:
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize("value", ["9" * 400, "99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_has_an_end(value: str) -> None:
    assert retry_after(value) == limits.MAX_RETRY_AFTER


def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert retry_after(formatdate(time.time() + 1000)) == pytest.approx(1000, abs=60)
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text())
def test_no_value_of_a_header_makes_reading_it_fail(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0.0
