"""Match regular expressions in linear time, so that an untrusted tag cannot stall the match.

Python's parser is used; it is private to `re`, and tests check it for each Python version. Python's matcher can take
exponential time, and re2 is compiled for one machine. Unsupported: back-references, atomic groups, possessive repeats.
"""

from __future__ import annotations

import re
import warnings
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["compile_full_match"]

#: The parser's nodes have no types.
_Node: TypeAlias = Any
_WORD: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_CATEGORIES: Final[dict[object, Callable[[str], bool]]] = {
    ops.CATEGORY_DIGIT: lambda c: c in "0123456789",
    ops.CATEGORY_NOT_DIGIT: lambda c: c not in "0123456789",
    ops.CATEGORY_SPACE: lambda c: c in " \t\n\r\f\v",
    ops.CATEGORY_NOT_SPACE: lambda c: c not in " \t\n\r\f\v",
    ops.CATEGORY_WORD: _WORD.__contains__,
    ops.CATEGORY_NOT_WORD: lambda c: c not in _WORD,
}


def compile_full_match(pattern: str) -> Callable[[str], bool]:
    """Return a function that says whether an expression (Python's syntax, ASCII) matches a complete text.

    Raises:
        UsageError: the expression is malformed, or has a back-reference. The returned function raises UsageError if a
            match needs too many steps.
    """
    try:
        with warnings.catch_warnings():
            # A user cannot act on warnings about syntax that later Python versions read differently.
            warnings.simplefilter("ignore", FutureWarning)
            parsed = parser.parse(pattern, re.ASCII)
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        msg = f"malformed regular expression {printable(pattern)!r}: {printable(str(error))}"
        raise UsageError(msg) from error
    _check_supported(parsed, pattern)
    flags = parsed.state.flags

    def matches(text: str) -> bool:
        try:
            return _Matcher(pattern, text, flags).matches(parsed)
        except RecursionError as error:
            msg = f"regular expression {printable(pattern)!r} has groups too deep within each other"
            raise UsageError(msg) from error

    return matches


def _check_supported(parsed: _Node, pattern: str) -> None:
    """Refuse operations that depend on how an earlier part matched: the matcher follows all ways at once."""
    for op, argument in parsed:
        if op not in _STEPS:
            msg = f"regular expression {printable(pattern)!r}: it has {str(op).lower().replace('_', ' ')}"
            raise UsageError(msg, hint="references to groups, atomic groups and possessive repeats are not supported")
        for part in _nested_parts(op, argument):
            _check_supported(part, pattern)


def _nested_parts(op: object, argument: _Node) -> Sequence[_Node]:
    if op is ops.BRANCH:
        return list(argument[1])
    if op in {ops.MAX_REPEAT, ops.MIN_REPEAT}:
        return [argument[2]]
    if op is ops.SUBPATTERN:
        return [argument[3]]
    return [argument[1]] if op in {ops.ASSERT, ops.ASSERT_NOT} else []


class _Matcher:
    """Matches one text. Each step takes the set of positions where it may start, and returns those where it may end."""

    def __init__(self, pattern: str, text: str, flags: int) -> None:
        self._pattern = pattern
        self._text = text
        self._flags = flags
        self._steps = 0

    def matches(self, parsed: _Node) -> bool:
        return len(self._text) in self.find_ends(parsed, {0})

    def find_ends(self, parsed: _Node, starts: set[int]) -> set[int]:
        for op, argument in parsed:
            if not starts:
                break
            self._steps += len(starts)
            if self._steps > limits.MAX_REGEX_STEPS:
                msg = f"regular expression {printable(self._pattern)!r} takes too long for {printable(self._text)!r}"
                raise UsageError(msg, hint="have fewer repeats within repeats")
            starts = _STEPS[op](self, op, argument, starts)
        return starts

    def match_character(self, op: object, argument: _Node, starts: set[int]) -> set[int]:
        text = self._text
        return {
            position + 1 for position in starts if position < len(text) and self._is_in(op, argument, text[position])
        }

    def _is_in(self, op: object, argument: _Node, character: str) -> bool:
        forms = {character}
        if self._flags & re.IGNORECASE:
            # Some characters have several letters in the other case. These are not ASCII.
            forms = {form for form in (character.lower(), character.upper()) if len(form) == 1} or forms
        if op is ops.ANY:
            return character != "\n" or bool(self._flags & re.DOTALL)
        if op is not ops.IN:
            return any(ord(form) == argument for form in forms) is (op is ops.LITERAL)
        negated = argument[0][0] is ops.NEGATE
        return any(_is_item_match(item, form) for item in argument[negated:] for form in forms) is not negated

    def match_branch(self, _op: object, argument: _Node, starts: set[int]) -> set[int]:
        return set().union(*(self.find_ends(branch, starts) for branch in argument[1]))

    def match_group(self, _op: object, argument: _Node, starts: set[int]) -> set[int]:
        _, added, removed, parsed = argument
        outer_flags = self._flags
        self._flags = (outer_flags | added) & ~removed
        try:
            return self.find_ends(parsed, starts)
        finally:
            self._flags = outer_flags

    def match_repeat(self, _op: object, argument: _Node, starts: set[int]) -> set[int]:
        minimum, maximum, parsed = argument
        # More repeats than characters repeat an empty match, which does not change the result.
        bound = len(self._text) + 1
        for _ in range(min(int(minimum), bound)):
            starts = self.find_ends(parsed, starts)
        positions, new = set(starts), starts
        for _ in range(min(int(maximum) - int(minimum), bound)):
            new = self.find_ends(parsed, new) - positions
            if not new:
                break
            positions |= new
        return positions

    def match_lookaround(self, op: object, argument: _Node, starts: set[int]) -> set[int]:
        direction, parsed = argument

        def sees(position: int) -> bool:
            if direction > 0:
                return bool(self.find_ends(parsed, {position}))
            minimum, maximum = parsed.getwidth()
            return any(
                position in self.find_ends(parsed, {position - width})
                for width in range(minimum, min(maximum, position) + 1)
            )

        return {position for position in starts if sees(position) is (op is ops.ASSERT)}

    def match_anchor(self, _op: object, anchor: object, starts: set[int]) -> set[int]:
        text = self._text
        is_multiline = bool(self._flags & re.MULTILINE)

        def is_there(position: int) -> bool:
            if anchor in {ops.AT_BEGINNING, ops.AT_BEGINNING_STRING}:
                return position == 0 or (is_multiline and anchor is ops.AT_BEGINNING and text[position - 1] == "\n")
            if anchor is ops.AT_END_STRING:
                return position == len(text)
            if anchor is ops.AT_END:
                return position == len(text) or (text[position] == "\n" and (is_multiline or position == len(text) - 1))
            is_boundary = (position > 0 and text[position - 1] in _WORD) != (
                position < len(text) and text[position] in _WORD
            )
            return is_boundary is (anchor is ops.AT_BOUNDARY)

        return {position for position in starts if is_there(position)}


def _is_item_match(item: tuple[_Node, _Node], character: str) -> bool:
    op, argument = item
    if op is ops.LITERAL:
        return ord(character) == int(argument)
    if op is ops.RANGE:
        return bool(argument[0] <= ord(character) <= argument[1])
    return _CATEGORIES[argument](character)


_STEPS: Final[dict[object, Callable[[_Matcher, object, _Node, set[int]], set[int]]]] = {
    ops.LITERAL: _Matcher.match_character,
    ops.NOT_LITERAL: _Matcher.match_character,
    ops.ANY: _Matcher.match_character,
    ops.IN: _Matcher.match_character,
    ops.BRANCH: _Matcher.match_branch,
    ops.SUBPATTERN: _Matcher.match_group,
    ops.MAX_REPEAT: _Matcher.match_repeat,
    ops.MIN_REPEAT: _Matcher.match_repeat,
    ops.ASSERT: _Matcher.match_lookaround,
    ops.ASSERT_NOT: _Matcher.match_lookaround,
    ops.AT: _Matcher.match_anchor,
}
