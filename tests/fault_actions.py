"""Faults of requests and responses, as data. `tests.faulty_registry` carries them out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import TypeAlias

from tests.registry import RefusedError


@dataclasses.dataclass(frozen=True)
class HangUp:
    """Close the connection without a response; the request's body is not read."""


@dataclasses.dataclass(frozen=True)
class Reset:
    """Reset the connection (RST): without a response, or `after` so many bytes of the response's body."""

    after: int | None = None


@dataclasses.dataclass(frozen=True)
class Drop:
    """Close the connection properly `after` so many bytes of the response's body, whatever Content-Length says."""

    after: int


@dataclasses.dataclass(frozen=True)
class Stall:
    """Send nothing, before the response or `after` so many bytes of its body, then continue.

    The pause ends after `seconds`, with `FaultyRegistry.release`, or when the registry stops.
    """

    seconds: float | None = None
    after: int | None = None


@dataclasses.dataclass(frozen=True)
class WithholdAnswer:
    """Process the request, and send the response only after `FaultyRegistry.release`."""


@dataclasses.dataclass(frozen=True)
class Refuse:
    """Process the request, but answer with this status."""

    status: int


@dataclasses.dataclass(frozen=True)
class Reply:
    """Answer with this response instead; the request's body is not read."""

    status: int
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


def refusal(status: int, code: str = "UNKNOWN", message: str = "no", **headers: str) -> Reply:
    """Answer with an error body of the distribution-spec; `Retry_After="1"` sets a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = RefusedError(status, code, message).body()
    return Reply(status, {"Content-Type": "application/json", **named}, body)


def too_many_requests(retry_after: float | None = None, *, as_date: bool = False) -> Reply:
    """Answer 429; `retry_after` is in seconds, and with `as_date` the header has a date."""
    if retry_after is None:
        return refusal(429, "TOOMANYREQUESTS")
    stated = formatdate(time.time() + retry_after, usegmt=True) if as_date else f"{retry_after:g}"
    return refusal(429, "TOOMANYREQUESTS", Retry_After=stated)


def redirect(url: str, status: int = 307) -> Reply:
    """Send the client to `url`, absolute or relative."""
    return Reply(status, {"Location": url})


@dataclasses.dataclass(frozen=True)
class Flip:
    """Flip the lowest bit of the byte at offset `at` of the response's body."""

    at: int


@dataclasses.dataclass(frozen=True)
class Resize:
    """Send a body that is `by` bytes longer (shorter if negative); Content-Length says so only if `stated`."""

    by: int
    stated: bool = True


@dataclasses.dataclass(frozen=True)
class NoContentLength:
    """Omit Content-Length: the response's body ends with the connection."""


@dataclasses.dataclass(frozen=True)
class IgnoreRange:
    """Answer a request for a part of a blob with 200 and the complete blob."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Change one header of the response: set a value, compute it from the present one, or remove the header."""

    name: str
    value: str | Callable[[str], str] | None


@dataclasses.dataclass(frozen=True)
class StopReading:
    """Close the connection (with `reset`, reset it) `after` so many bytes of the request's body."""

    after: int
    reset: bool = False


@dataclasses.dataclass(frozen=True)
class PauseReading:
    """Stop reading the request's body `after` so many bytes; close the connection when the next request comes.

    `FaultyRegistry.release` ends the pause too.
    """

    after: int


@dataclasses.dataclass(frozen=True)
class FlipReceived:
    """Flip the lowest bit of the byte at offset `at` of the request's body, as it is read."""

    at: int


@dataclasses.dataclass(frozen=True)
class EndTokens:
    """Expire every token issued so far, just before a token is checked; use it with `Fault.before_auth`."""


@dataclasses.dataclass(frozen=True)
class Gzip:
    """Compress the response's body in transit, as a proxy might."""


Action: TypeAlias = (
    HangUp
    | Reset
    | Drop
    | Stall
    | WithholdAnswer
    | Refuse
    | Reply
    | Flip
    | Resize
    | NoContentLength
    | IgnoreRange
    | Header
    | StopReading
    | PauseReading
    | FlipReceived
    | EndTokens
    | Gzip
)
