"""Count attempts and wait between them: backoff with jitter, and Retry-After."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import NetworkError, PermanentNetworkError
from ocistream.http.origins import redact_url

if TYPE_CHECKING:
    from ocistream.http.client import HttpClient
    from ocistream.http.response import Response
    from ocistream.http.settings import RetryPolicy


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """A failure that is about to be retried: a message without secrets, and the wait in seconds.

    `count` is the number of this retry, and `limit` that of the last one.
    """

    message: str
    wait: float
    count: int
    limit: int


class Retries:
    """Counts the attempts of one piece of work, over any number of requests, and waits between them."""

    def __init__(self, client: HttpClient, policy: RetryPolicy, attempts: int | None = None) -> None:
        """Allow `attempts` attempts, by default those of the policy."""
        self._client = client
        self._policy = policy
        self._attempts = policy.attempts if attempts is None else attempts
        self._used = 0

    def reset(self) -> None:
        """Forget the failures, because there was progress."""
        self._used = 0

    def wait_for_retry(self, failure: Response | NetworkError) -> bool:
        """Wait and return True if there is another attempt; return False if there is none or a retry is useless.

        The body of a response is drained before another attempt.
        """
        self._used += 1
        if isinstance(failure, PermanentNetworkError):
            return False
        retry_after = failure.retry_after
        if retry_after is not None and retry_after > self._policy.retry_after_limit:
            # The work must not be started again before that time either.
            self._used = self._attempts
            return False
        # The backoff is the minimum: a server that always sends "Retry-After: 0" must not use up all attempts at once.
        wait = max(retry_after or 0.0, self._backoff())
        attempts = self._attempts
        if isinstance(failure, NetworkError):
            message = failure.message
            # One more: servers close idle connections at any time, which is not a failure of the request.
            attempts += failure.has_lost_idle_connection
        else:
            failure.drain()
            message = f"{redact_url(failure.url)}: answered {failure.status}"
            if failure.status == HTTPStatus.TOO_MANY_REQUESTS:
                # Other work must not ask the host either, also if this work has no attempts left.
                self._client.pause_host(failure.url, wait)
        if self._used >= attempts:
            return False
        self._client.on_retry(RetryEvent(message, wait, self._used, attempts - 1))
        self._client.wait(wait)
        return True

    def _backoff(self) -> float:
        longest = min(self._policy.backoff_limit, self._policy.backoff * 2.0 ** (self._used - 1))
        # Jitter: clients that failed at the same time must not retry at the same time.
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret # nosec B311


def parse_retry_after(value: str | None) -> float | None:
    """Return a Retry-After header, seconds or a date, as seconds from now; None if it is absent or malformed.

    The result is at most `MAX_RETRY_AFTER`.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), limits.MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # A date without a time zone is in UTC (RFC 9110, section 5.6.7).
    seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    return min(max(0.0, seconds), limits.MAX_RETRY_AFTER)
