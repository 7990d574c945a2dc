"""Retries: after which failures, after which wait, and how many."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from ocistream import limits
from ocistream.errors import CancelledError, NetworkError, PermanentNetworkError
from ocistream.http.client import HttpClient
from ocistream.http.response import Response
from ocistream.http.retry import Retries, RetryEvent, parse_retry_after
from ocistream.http.settings import RetryPolicy

URL = "https://user:secret@registry.example/v2/app/blobs/x?sig=secret"


class Waits(HttpClient):
    """A client that records waits instead of waiting."""

    def __init__(self, patience: RetryPolicy) -> None:
        self.patience = patience
        self.waits: list[float] = []
        self.held: list[tuple[str, float]] = []
        self.told: list[RetryEvent] = []
        self.on_retry = self.told.append

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def pause_host(self, url: str, seconds: float) -> None:
        self.held.append((url, seconds))


def count(client: Waits) -> Retries:
    return Retries(client, client.patience)


class Refusal(Response):
    """A response with a given status."""

    def __init__(self, status: int, retry_after: str | None = None) -> None:
        self.url = URL
        self.status = status
        self.said = retry_after
        self.drained = False

    def header(self, name: str) -> str | None:
        return self.said if name == "Retry-After" else None

    def drain(self) -> bytes:
        self.drained = True
        return b""


BROKEN = NetworkError("GET https://registry.example/v2/: connection refused")


@pytest.mark.parametrize("failure", [BROKEN, Refusal(503), Refusal(429, "0")])
@pytest.mark.parametrize("attempts", [1, 2, 6])
def test_the_number_of_attempts_is_limited(failure: NetworkError | Refusal, attempts: int) -> None:
    waits = Waits(RetryPolicy(attempts=attempts))
    tries = count(waits)
    assert [tries.wait_for_retry(failure) for _ in range(attempts)] == [True] * (attempts - 1) + [False]
    assert len(waits.waits) == attempts - 1
    assert not tries.wait_for_retry(failure)


def test_progress_resets_the_number_of_attempts() -> None:
    tries = count(Waits(RetryPolicy(attempts=3)))
    for _ in range(20):
        assert tries.wait_for_retry(BROKEN)
        assert tries.wait_for_retry(BROKEN)
        tries.reset()


def test_a_permanent_error_is_not_retried() -> None:
    waits = Waits(RetryPolicy())
    assert not count(waits).wait_for_retry(PermanentNetworkError("the certificate is not trusted"))
    assert waits.waits == []
    assert waits.told == []


def test_waits_double_up_to_a_limit_with_jitter() -> None:
    patience = RetryPolicy(attempts=9, backoff=1.0, backoff_limit=20.0)
    seen: list[list[float]] = []
    for _ in range(50):
        waits = Waits(patience)
        tries = count(waits)
        while tries.wait_for_retry(BROKEN):
            pass
        seen.append(waits.waits)
    for number, longest in enumerate([1, 2, 4, 8, 16, 20, 20, 20]):
        column = [waits[number] for waits in seen]
        assert longest / 2 <= min(column)
        assert max(column) <= longest
        assert len(set(column)) > 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed_in_seconds_and_as_a_date(status: int, as_date: bool) -> None:
    waits = Waits(RetryPolicy(backoff=0.001))
    said = formatdate(time.time() + 100, usegmt=True) if as_date else "100"
    refused = Refusal(status, said)
    assert count(waits).wait_for_retry(refused)
    assert waits.waits == [pytest.approx(100, abs=30)]
    assert refused.drained


@pytest.mark.parametrize("said", ["0", "1", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_short_retry_after_does_not_shorten_the_backoff(said: str) -> None:
    waits = Waits(RetryPolicy(backoff=8.0))
    assert count(waits).wait_for_retry(Refusal(429, said))
    assert waits.waits[0] >= 4.0


def test_a_retry_after_over_the_limit_is_not_waited_for() -> None:
    waits = Waits(RetryPolicy(retry_after_limit=10.0))
    assert count(waits).wait_for_retry(Refusal(429, "10"))
    refused = Refusal(429, "11")
    assert not count(waits).wait_for_retry(refused)
    # Its body is not drained: the error is built from it.
    assert not refused.drained
    assert waits.waits == [10.0]


def test_only_429_pauses_other_requests_to_the_host() -> None:
    waits = Waits(RetryPolicy())
    assert count(waits).wait_for_retry(Refusal(503, "7"))
    assert count(waits).wait_for_retry(BROKEN)
    assert waits.held == []
    assert count(waits).wait_for_retry(Refusal(429, "7"))
    assert waits.held == [(URL, 7.0)]


def test_each_retry_is_reported_with_its_reason_and_without_secrets() -> None:
    waits = Waits(RetryPolicy())
    tries = count(waits)
    tries.wait_for_retry(Refusal(429, "7"))
    tries.wait_for_retry(BROKEN)
    assert waits.told[0] == RetryEvent("https://registry.example/v2/app/blobs/x?...: answered 429", 7.0, 1, 5)
    assert waits.told[1].message == BROKEN.message
    assert [told.wait for told in waits.told] == waits.waits


def test_a_retry_is_reported_before_the_wait() -> None:
    class Cancelled(Waits):
        def wait(self, seconds: float) -> None:
            raise CancelledError(str(seconds))

    waits = Cancelled(RetryPolicy())
    with pytest.raises(CancelledError):
        count(waits).wait_for_retry(Refusal(500))
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
def test_a_malformed_retry_after_is_ignored(value: str | None) -> None:
    assert parse_retry_after(value) is None


def test_retry_after_is_never_negative() -> None:
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize("value", ["9" * 400, "99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_has_a_maximum(value: str) -> None:
    assert parse_retry_after(value) == limits.MAX_RETRY_AFTER


def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert parse_retry_after(formatdate(time.time() + 1000)) == pytest.approx(1000, abs=60)
    finally:
        monkeypatch.undo()
        time.tzset()
