"""The expected outcome of each cell, by reasoning and not by observation: the first matching rule applies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from tests.matrix.request_faults import Trouble
from tests.matrix.request_rows import Step

#: The result is the same as without a fault.
ABSORBED: Final = "+"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One request, one fault, once or lasting."""

    step: Step
    trouble: Trouble
    lasting: bool

    @property
    def in_body(self) -> bool:
        """Whether the fault comes after the headers."""
        return "body" in self.trouble.name or "last byte" in self.trouble.name


@dataclasses.dataclass(frozen=True)
class Rule:
    """`ends` is `ABSORBED`, or an exit code (with nothing visible)."""

    why: str
    holds: Callable[[Cell], bool]
    ends: str


def _sort(*sorts: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.trouble.sort in sorts


def _wrong(*what: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.trouble.sort in {"flipped", "longer"} and cell.step.what in what


def _lasting(cell: Cell) -> bool:
    return cell.lasting and cell.trouble.sort != "token"


RULES: Final = (
    Rule("whose certificate does not verify is told nothing, at no time", _sort("certificate"), "7"),
    Rule(
        "at the beginning of a run it is most likely a mistake of the user's, who need not wait to hear of it",
        lambda cell: cell.trouble.sort in {"unknown", "plain"} and cell.step.first == 1,
        "7",
    ),
    # Wrong content -------------------------------------------------------------------------------------------
    Rule(
        "nobody needs the body of a 401",
        lambda cell: cell.step.before_token and (cell.in_body or cell.trouble.sort in {"flipped", "longer"}),
        ABSORBED,
    ),
    Rule(
        "a token that is not one is as good as one that has ended: another is asked for",
        lambda cell: cell.step.what == "token" and cell.trouble.sort == "flipped",
        ABSORBED,
    ),
    Rule("a token server that speaks no JSON is broken, and would be the next time", _wrong("token"), "7"),
    Rule("what hangs on an image does not stop it where the registry cannot tell", _wrong("referrers"), ABSORBED),
    Rule(
        "what arrives otherwise than it was sent, and was verified before, is refused by the registry",
        lambda cell: cell.trouble.sort == "flipped" and cell.step.method in {"PATCH", "PUT"},
        "7",
    ),
    Rule(
        "no digest is promised of what a tag stands for, so it shows as a digest of a kind that is not known",
        lambda cell: cell.trouble.sort == "flipped" and cell.step.what == "image by tag",
        "8",
    ),
    Rule("no digest is promised of what a tag stands for, so it shows as malformed", _wrong("image by tag"), "6"),
    Rule(
        "bytes that are not what was promised are not requested again: who gave them would give the same",
        _sort("flipped", "longer"),
        "5",
    ),
    # Lasting failures of tokens ------------------------------------------------------------------------------
    Rule(
        "what hangs on an image does not stop it where one may not ask",
        lambda cell: _sort("token")(cell) and cell.lasting and cell.step.what in {"referrers", "signature by tag"},
        ABSORBED,
    ),
    Rule(
        "each new token was taken when the upload was opened: it is the registry that is broken, and not the token",
        lambda cell: _sort("token")(cell) and cell.lasting and cell.step.what.startswith("upload of a "),
        "7",
    ),
    Rule("no token is good enough", lambda cell: _sort("token")(cell) and cell.lasting, "3"),
    # Other faults --------------------------------------------------------------------------------------------
    Rule(
        "what goes on where it broke is shorter each time, until it has no such middle any more",
        lambda cell: cell.lasting and cell.in_body and cell.step.kind in {"GET config", "GET layer"},
        ABSORBED,
    ),
    Rule(
        "so it is with what is sent, where it is enough to be progress",
        lambda cell: cell.lasting and cell.in_body and cell.step.kind == "PATCH upload of a layer",
        ABSORBED,
    ),
    Rule("it does not end, so that has to", _lasting, "7"),
    Rule("it passes", lambda cell: not cell.lasting, ABSORBED),
)


def expected(step: Step, trouble: Trouble, *, lasting: bool) -> Rule:
    """Return the rule for a cell."""
    cell = Cell(step, trouble, lasting)
    return next(rule for rule in RULES if rule.holds(cell))
