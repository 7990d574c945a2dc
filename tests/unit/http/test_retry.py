"""Retries: what is reported of each, and the forms of Retry-After."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from ocistream import limits
from ocistream.errors import CancelledError, NetworkError
from ocistream.http.client import HttpClient
from ocistream.http.response import Response
from ocistream.http.retry import Retries, RetryEvent, parse_retry_after
from ocistream.http.settings import RetryPolicy

URL = "https://user:secret@registry.example/v2/app/blobs/x?sig=secret"


class Waits(HttpClient):
    """A client that records waits instead of waiting."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.told: list[RetryEvent] = []
        self.on_retry = self.told.append

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def pause_host(self, url: str, seconds: float) -> None:
        """Do nothing."""


class Refusal(Response):
    """A response with status 429."""

    def __init__(self, retry_after: str | None = None) -> None:
        self.url = URL
        self.status = 429
        self.said = retry_after

    def header(self, name: str) -> str | None:
        return self.said if name == "Retry-After" else None

    def drain(self) -> bytes:
        return b""


BROKEN = NetworkError("GET https://registry.example/v2/: connection refused")


@pytest.mark.parametrize("said", ["0", "1", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_short_retry_after_does_not_shorten_the_backoff(said: str) -> None:
    waits = Waits()
    assert Retries(waits, RetryPolicy(backoff=8.0)).wait_for_retry(Refusal(said))
    assert waits.waits[0] >= 4.0


def test_each_retry_is_reported_with_its_reason_and_without_secrets() -> None:
    waits = Waits()
    tries = Retries(waits, RetryPolicy())
    tries.wait_for_retry(Refusal("7"))
    tries.wait_for_retry(BROKEN)
    assert waits.told[0] == RetryEvent("https://registry.example/v2/app/blobs/x?...: answered 429", 7.0, 1, 5)
    assert waits.told[1].message == BROKEN.message
    assert [told.wait for told in waits.told] == waits.waits


def test_a_retry_is_reported_before_the_wait() -> None:
    class Cancelled(Waits):
        def wait(self, seconds: float) -> None:
            raise CancelledError(str(seconds))

    waits = Cancelled()
    with pytest.raises(CancelledError):
        Retries(waits, RetryPolicy()).wait_for_retry(Refusal())
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
