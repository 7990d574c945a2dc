"""Retry policy: how often a failed request is retried, the backoff, and Retry-After."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Protocol

from ocistream import limits
from ocistream.errors import NetworkError, PermanentNetworkError, RegistryError
from ocistream.http.origins import redact_url

__all__ = ["Retries", "RetryEvent", "RetryPolicy", "parse_retry_after"]


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """One failure that is about to be tried again: where (a redacted URL), why, and after how many seconds."""

    url: str
    reason: str
    wait: float


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on trying. Times are in seconds."""

    #: How often one piece of work is tried at the most.
    attempts: int = 6
    #: The first wait; it doubles up to `backoff_limit`, with jitter.
    backoff: float = 0.4
    backoff_limit: float = 20.0
    #: The longest `Retry-After` that is obeyed.
    retry_after_limit: float = 300.0


class RetryableResponse(Protocol):
    """An answer that may be a better one the next time."""

    url: str
    status: int

    def header(self, name: str) -> str | None:
        """Give a header's value, or None."""

    def drain(self) -> None:
        """Read the body, so that the connection can be used again."""


class RetryContext(Protocol):
    """Who waits, and keeps others from asking the same host in the meantime: the transport."""

    retry_policy: RetryPolicy

    def wait(self, seconds: float) -> None:
        """Sleep; raises CancelledError when the transfer is cancelled in the meantime."""

    def pause_host(self, url: str, seconds: float) -> None:
        """Let nobody else ask this URL's host for so long."""

    def report_retry(self, retried: RetryEvent) -> None:
        """Tell whoever wants to know."""


class Retries:
    """Counts the tries of one piece of work, however many requests it takes, and waits between them."""

    def __init__(self, waits: RetryContext, attempts: int | None = None) -> None:
        """Begin with none used up of so many `attempts`, by default of those that patience has."""
        self._context = waits
        self._attempts = waits.retry_policy.attempts if attempts is None else attempts
        self._used = 0

    def reset(self) -> None:
        """Forget the failures, since there was progress."""
        self._used = 0

    def wait_for_retry(self, failure: RetryableResponse | NetworkError) -> bool:
        """Say whether to try again, after having waited; False once all tries are used up, or where it is no use.

        An answer's body is drained if there is another try.
        """
        self._used += 1
        if isinstance(failure, PermanentNetworkError):
            return False
        if self._used >= self._attempts:
            self._pause_limited_host(failure)
            return False
        if isinstance(failure, NetworkError):
            # A registry's answer to a body that cannot be sent again as it was: whoever made it goes on from elsewhere.
            stated = failure.retry_after if isinstance(failure, RegistryError) else None
        else:
            stated = parse_retry_after(failure.header("Retry-After"))
        if stated is not None and stated > self._context.retry_policy.retry_after_limit:
            # Nor is the work to be begun anew before that.
            self._used = self._attempts
            return False
        # Who answers "Retry-After: 0" again and again is not to use up all tries in no time.
        wait = max(stated or 0.0, self._backoff())
        if isinstance(failure, NetworkError):
            self._context.report_retry(RetryEvent("", failure.message, wait))
        else:
            failure.drain()
            if failure.status == HTTPStatus.TOO_MANY_REQUESTS:
                self._context.pause_host(failure.url, wait)
            self._context.report_retry(RetryEvent(redact_url(failure.url), f"answered {failure.status}", wait))
        self._context.wait(wait)
        return True

    def _pause_limited_host(self, failure: RetryableResponse | NetworkError) -> None:
        """Have others obey what a host has asked for, though this work does not ask it again."""
        if not isinstance(failure, NetworkError) and failure.status == HTTPStatus.TOO_MANY_REQUESTS:
            stated = parse_retry_after(failure.header("Retry-After"))
            if stated is not None and stated <= self._context.retry_policy.retry_after_limit:
                self._context.pause_host(failure.url, stated)

    def _backoff(self) -> float:
        patience = self._context.retry_policy
        longest = min(patience.backoff_limit, patience.backoff * 2.0 ** (self._used - 1))
        # Jitter: many clients that failed together are not to come back together.
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret # nosec B311


def parse_retry_after(value: str | None) -> float | None:
    """Read a Retry-After header, seconds or a date, as seconds from now; None where it is absent or makes no sense.

    What is more than `MAX_RETRY_AFTER` is that.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), limits.MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # Without a zone it is UTC all the same (RFC 9110, section 5.6.7).
    seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    return min(max(0.0, seconds), limits.MAX_RETRY_AFTER)
