"""What can be done to a request or its response, as data. `tests.faulty_registry` does it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import TypeAlias

from tests.registry import RefusedError


@dataclasses.dataclass(frozen=True)
class HangUp:
    """Close the connection without an answer; the request's body is not read."""


@dataclasses.dataclass(frozen=True)
class Reset:
    """Reset the connection (RST): without an answer, or `after` so many bytes of the answer's body."""

    after: int | None = None


@dataclasses.dataclass(frozen=True)
class Drop:
    """Close the connection properly `after` so many bytes of the answer's body, whatever Content-Length says."""

    after: int


@dataclasses.dataclass(frozen=True)
class Stall:
    """Fall silent, before the answer or `after` so many bytes of its body, then go on.

    It ends after so many seconds, or with `faults.FaultyRegistry.release`, or when the registry stops.
    """

    seconds: float | None = None
    after: int | None = None


@dataclasses.dataclass(frozen=True)
class WithholdAnswer:
    """Process the request, and send the answer only after `FaultyRegistry.release`."""


@dataclasses.dataclass(frozen=True)
class Refuse:
    """Process the request, and answer with this status all the same."""

    status: int


@dataclasses.dataclass(frozen=True)
class Reply:
    """Answer with this instead; the request's body is not read."""

    status: int
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


def refusal(status: int, code: str = "UNKNOWN", message: str = "no", **headers: str) -> Reply:
    """Answer with an error body of the distribution-spec; `Retry_After="1"` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = RefusedError(status, code, message).body()
    return Reply(status, {"Content-Type": "application/json", **named}, body)


def too_many_requests(retry_after: float | None = None, *, as_date: bool = False) -> Reply:
    """Answer 429; `retry_after` is in seconds, and a date says it where `as_date`."""
    if retry_after is None:
        return refusal(429, "TOOMANYREQUESTS")
    stated = formatdate(time.time() + retry_after, usegmt=True) if as_date else f"{retry_after:g}"
    return refusal(429, "TOOMANYREQUESTS", Retry_After=stated)


def redirect(url: str, status: int = 307) -> Reply:
    """Send the client to `url`, absolute or relative."""
    return Reply(status, {"Location": url})


@dataclasses.dataclass(frozen=True)
class Flip:
    """Flip the lowest bit of one byte of the answer's body, `at` so many bytes from its start."""

    at: int


@dataclasses.dataclass(frozen=True)
class Resize:
    """Send a body that is `by` bytes longer, or shorter where negative, and say so; or not, where not `stated`."""

    by: int
    stated: bool = True


@dataclasses.dataclass(frozen=True)
class NoContentLength:
    """Leave out Content-Length: the answer's body ends with the connection."""


@dataclasses.dataclass(frozen=True)
class IgnoreRange:
    """Answer 200 with all of a blob to a request for a part of it."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Change one header of the answer: give it another value, compute that from the present one, or drop it."""

    name: str
    value: str | Callable[[str], str] | None


@dataclasses.dataclass(frozen=True)
class StopReading:
    """Hang up, by a reset where it says so, `after` so many bytes of the request's body."""

    after: int
    reset: bool = False


@dataclasses.dataclass(frozen=True)
class PauseReading:
    """Read no more of the request's body, `after` so many bytes of it, until its client comes back; then hang up.

    To come back is to make another request. `faults.FaultyRegistry.release` ends it as well.
    """

    after: int


@dataclasses.dataclass(frozen=True)
class FlipReceived:
    """Flip the lowest bit of one byte of the request's body, `at` so many bytes from its start, when it is read."""

    at: int


@dataclasses.dataclass(frozen=True)
class EndTokens:
    """End every token that was given out so far, just before one is looked at; of use with `Fault.before_auth`."""


@dataclasses.dataclass(frozen=True)
class Gzip:
    """Compress the answer's body on the way, as a proxy might."""


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
