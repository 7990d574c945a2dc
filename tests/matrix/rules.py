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
    Rule("the client sends nothing to a server whose certificate is not valid", _sort("certificate"), "7"),
    Rule(
        "at the start of a run the cause is probably a mistake of the user, who should not wait for retries",
        lambda cell: cell.trouble.sort in {"unknown", "plain"} and cell.step.first == 1,
        "7",
    ),
    # Wrong content -------------------------------------------------------------------------------------------
    Rule(
        "the client does not need the body of a 401",
        lambda cell: cell.step.before_token and (cell.in_body or cell.trouble.sort in {"flipped", "longer"}),
        ABSORBED,
    ),
    Rule(
        "an invalid token is like an expired one: the client requests another",
        lambda cell: cell.step.what == "token" and cell.trouble.sort == "flipped",
        ABSORBED,
    ),
    Rule("a token server that does not answer in JSON is broken, and a retry would not help", _wrong("token"), "7"),
    Rule("a failed list of referrers does not stop the copy of the image", _wrong("referrers"), ABSORBED),
    Rule(
        "the registry refuses verified content that changed on the way",
        lambda cell: cell.trouble.sort == "flipped" and cell.step.method in {"PATCH", "PUT"},
        "7",
    ),
    Rule(
        "the client has no digest for a tag, so the changed manifest shows as an unknown digest algorithm",
        lambda cell: cell.trouble.sort == "flipped" and cell.step.what == "image by tag",
        "8",
    ),
    Rule("the client has no digest for a tag, so the changed manifest shows as malformed", _wrong("image by tag"), "6"),
    Rule(
        "the client does not request wrong bytes again: the same source would send the same bytes",
        _sort("flipped", "longer"),
        "5",
    ),
    # Lasting failures of tokens ------------------------------------------------------------------------------
    Rule(
        "referrers that the client may not list do not stop the copy of the image",
        lambda cell: _sort("token")(cell) and cell.lasting and cell.step.what in {"referrers", "signature by tag"},
        ABSORBED,
    ),
    Rule(
        "the registry accepted each new token when it opened the upload, so the registry is broken, not the token",
        lambda cell: _sort("token")(cell) and cell.lasting and cell.step.what.startswith("upload of a "),
        "7",
    ),
    Rule("the registry accepts no token", lambda cell: _sort("token")(cell) and cell.lasting, "3"),
    # Other faults --------------------------------------------------------------------------------------------
    Rule(
        "each retry resumes, so the rest gets shorter until the fault no longer occurs in it",
        lambda cell: cell.lasting and cell.in_body and cell.step.kind in {"GET config", "GET layer"},
        ABSORBED,
    ),
    Rule(
        "each retry resumes the upload, if the registry stored enough of it",
        lambda cell: cell.lasting and cell.in_body and cell.step.kind == "PATCH upload of a layer",
        ABSORBED,
    ),
    Rule("the fault lasts, so the client gives up", _lasting, "7"),
    Rule("a retry succeeds", lambda cell: not cell.lasting, ABSORBED),
)


def expected(step: Step, trouble: Trouble, *, lasting: bool) -> Rule:
    """Return the rule for a cell."""
    cell = Cell(step, trouble, lasting)
    return next(rule for rule in RULES if rule.holds(cell))
