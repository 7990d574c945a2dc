"""Parse `WWW-Authenticate` headers into challenges (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Challenge", "parse_challenges"]

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
#: The parts of a challenge. At any place that is not a separator one alternative matches, and none reads a character
#: twice: a hostile header takes time linear in its length.
_ITEM: Final = re.compile(
    rf"""
      (?P<name>{_WORD}) [ \t]*+ = [ \t]*+ (?: (?P<word>{_WORD}) | "(?P<quoted>(?:[^"\\]|\\.)*+)" )
    | (?P<scheme>{_WORD}) (?=[ \t,]|\Z) (?![ \t]*+=) (?: [ \t]++ [0-9A-Za-z._~+/-]++ =*+ [ \t]*+ (?=,|\Z) )?
    | (?P<garbage> [^ \t,"\\] (?:[^",\\])*+ | \\.? | "(?:[^"\\]|\\.)*+ (?:"|\\?\Z) )
    """,
    re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge of a 401. `scheme` ("bearer", "basic") and the names of `parameters` are lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """Return all challenges in the values of `WWW-Authenticate` (RFC 9110, section 11.6.1).

    Never raises: unknown parts are skipped, and so is a token68, which neither Basic nor Bearer has. Of two parameters
    with one name the first counts. A missing comma between parameters is accepted.
    """
    challenges: list[Challenge] = []
    for value in values:
        parameters: dict[str, str] | None = None
        for item in _ITEM.finditer(value):
            if item["scheme"]:
                parameters = {}
                challenges.append(Challenge(item["scheme"].lower(), parameters))
            elif item["name"] and parameters is not None:
                text = item["word"] or re.sub(r"\\(.)", r"\1", item["quoted"], flags=re.DOTALL)
                parameters.setdefault(item["name"].lower(), text)
    return challenges
