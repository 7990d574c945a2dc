"""The columns of the matrix: faults that any request may meet, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, TypeAlias

from tests.faulty_registry import (
    Action,
    Drop,
    EndTokens,
    Flip,
    FlipReceived,
    PauseReading,
    Reset,
    Resize,
    Stall,
    StopReading,
    refusal,
    too_many_requests,
)
from tests.matrix.request_rows import Step

#: Seconds of Retry-After: few enough to wait without a notice, and more than the first waits of our own.
RETRY_AFTER: Final = 3.0


@dataclasses.dataclass(frozen=True)
class Led:
    """The connection of the request fails or is rerouted: `how` is as in `fork_runner.Astray`.

    `port` names one of the ports of `command_runs.Elsewhere`.
    """

    how: str
    port: str = ""


@dataclasses.dataclass(frozen=True)
class NotApplicable:
    """The fault cannot happen to this request, and why."""

    why: str


Means: TypeAlias = Action | Led | NotApplicable


@dataclasses.dataclass(frozen=True)
class Trouble:
    """A column: `means` returns what is done to a request. Faults of one `sort` should have the same outcome.

    A fault that `lasts` is also tested as a lasting one: of faults with the same outcome for the same reason, one is
    enough. A `sample` represents its sort for a command whose parts are tested with all faults. A fault with
    `everywhere` happens to every request, the others to some: they follow the rule of another one, or of all
    connections.
    """

    name: str
    sort: str
    means: Callable[[Step], Means]
    lasts: bool = False
    sample: bool = False
    everywhere: bool = False


NO_BODY: Final = NotApplicable("neither the request nor its response has a body")
NO_ANSWER_BODY: Final = NotApplicable("the response has no body")
NO_TOKEN: Final = NotApplicable("the request is sent without a token")


def _reset(place: Callable[[int], int]) -> Callable[[Step], Means]:
    def means(step: Step) -> Means:
        if step.sent:
            return StopReading(place(step.sent), reset=True)
        return Reset(place(step.answered)) if step.answered else NO_BODY

    return means


def _stalled(step: Step) -> Means:
    if step.sent:
        return PauseReading(step.sent // 2)
    return Stall(after=step.answered // 2) if step.answered else NO_BODY


def _flipped(step: Step) -> Means:
    if step.sent:
        return FlipReceived(step.sent // 2)
    return Flip(step.answered // 2) if step.answered else NO_BODY


def _of_answer(action: Callable[[int], Action]) -> Callable[[Step], Means]:
    return lambda step: action(step.answered) if step.answered else NO_ANSWER_BODY


def _always(action: Means) -> Callable[[Step], Means]:
    return lambda _: action


def _token_ends(step: Step) -> Means:
    return NO_TOKEN if step.before_token or step.what == "token" else EndTokens()


TROUBLES: Final = (
    Trouble("connection refused", "broken", _always(Led("port", "closed")), lasts=True),
    Trouble("reset before the headers", "broken", _always(Reset()), sample=True),
    Trouble(
        "reset in the middle of the body",
        "broken",
        _reset(lambda size: size // 2),
        lasts=True,
        sample=True,
        everywhere=True,
    ),
    Trouble("reset at the last byte", "broken", _reset(lambda size: size - 1)),
    Trouble("truncated body", "broken", _of_answer(lambda size: Drop(size // 2))),
    Trouble("stall before the headers", "silent", _always(Stall()), lasts=True),
    Trouble("stall in the body", "silent", _stalled, sample=True),
    Trouble("408", "busy", _always(refusal(408))),
    Trouble("429", "busy", _always(too_many_requests())),
    Trouble("429 with Retry-After", "busy", _always(too_many_requests(RETRY_AFTER))),
    Trouble("500", "busy", _always(refusal(500))),
    Trouble("502", "busy", _always(refusal(502))),
    Trouble("503", "busy", _always(refusal(503)), lasts=True, sample=True, everywhere=True),
    Trouble("one flipped byte", "flipped", _flipped, sample=True, everywhere=True),
    Trouble("a longer body", "longer", _of_answer(lambda _: Resize(1)), everywhere=True),
    Trouble("the token has just ended", "token", _token_ends, lasts=True, sample=True, everywhere=True),
    Trouble("DNS does not answer", "broken", _always(Led("again"))),
    Trouble("DNS knows no such name", "unknown", _always(Led("unknown")), lasts=True),
    Trouble("TLS breaks off", "broken", _always(Led("port", "hangs up"))),
    Trouble("TLS is answered in plain HTTP", "plain", _always(Led("port", "plain"))),
    Trouble("another's certificate", "certificate", _always(Led("port", "other"))),
)
