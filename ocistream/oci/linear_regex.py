"""Match regular expressions in linear time, so that an untrusted tag cannot stall the match.

The syntax is that of Python's `re`, without back-references, atomic groups and possessive repeats.
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

#: What the parser gives has no types.
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
    """Give what says whether an expression (Python's, of ASCII) matches the whole of a text.

    Raises:
        UsageError: it is malformed, or refers to what it has matched before. What is given raises it where an
            expression is so entangled that a text takes too long.
    """
    try:
        with warnings.catch_warnings():
            # What later versions of Python may read differently is no news to whoever runs this.
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
    """Refuse what would have to be followed along one way alone."""
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
    """One text, matched. Each step takes the positions at which it may begin, and gives those at which it may end."""

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
        return {at + 1 for at in starts if at < len(text) and self._is_in(op, argument, text[at])}

    def _is_in(self, op: object, argument: _Node, character: str) -> bool:
        forms = {character}
        if self._flags & re.IGNORECASE:
            # Some have several letters in the other case, which are none of ASCII.
            forms = {form for form in (character.lower(), character.upper()) if len(form) == 1} or forms
        if op is ops.ANY:
            return character != "\n" or bool(self._flags & re.DOTALL)
        if op is not ops.IN:
            return any(ord(form) == argument for form in forms) is (op is ops.LITERAL)
        negated = argument[0][0] is ops.NEGATE
        return any(_is_item_match(item, form) for item in argument[negated:] for form in forms) is not negated

    def match_branch(self, _op: object, argument: _Node, starts: set[int]) -> set[int]:
        return set().union(*(self.find_ends(way, starts) for way in argument[1]))

    def match_group(self, _op: object, argument: _Node, starts: set[int]) -> set[int]:
        _, added, removed, parsed = argument
        before = self._flags
        self._flags = (before | added) & ~removed
        try:
            return self.find_ends(parsed, starts)
        finally:
            self._flags = before

    def match_repeat(self, _op: object, argument: _Node, starts: set[int]) -> set[int]:
        least, most, parsed = argument
        # More often than there are characters, something is repeated that matches nothing: it comes to the same.
        bound = len(self._text) + 1
        for _ in range(min(int(least), bound)):
            starts = self.find_ends(parsed, starts)
        found, new = set(starts), starts
        for _ in range(min(int(most) - int(least), bound)):
            new = self.find_ends(parsed, new) - found
            if not new:
                break
            found |= new
        return found

    def match_lookaround(self, op: object, argument: _Node, starts: set[int]) -> set[int]:
        direction, parsed = argument

        def sees(at: int) -> bool:
            if direction > 0:
                return bool(self.find_ends(parsed, {at}))
            least, most = parsed.getwidth()
            return any(at in self.find_ends(parsed, {at - width}) for width in range(least, min(most, at) + 1))

        return {at for at in starts if sees(at) is (op is ops.ASSERT)}

    def match_anchor(self, _op: object, where: object, starts: set[int]) -> set[int]:
        text = self._text
        lines = bool(self._flags & re.MULTILINE)

        def is_there(at: int) -> bool:
            if where in {ops.AT_BEGINNING, ops.AT_BEGINNING_STRING}:
                return at == 0 or (lines and where is ops.AT_BEGINNING and text[at - 1] == "\n")
            if where is ops.AT_END_STRING:
                return at == len(text)
            if where is ops.AT_END:
                return at == len(text) or (text[at] == "\n" and (lines or at == len(text) - 1))
            edge = (at > 0 and text[at - 1] in _WORD) != (at < len(text) and text[at] in _WORD)
            return edge is (where is ops.AT_BOUNDARY)

        return {at for at in starts if is_there(at)}


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
