"""Parse untrusted JSON, and refuse documents that two parsers could read differently; write canonical JSON.

Large documents are parsed in pieces to bound memory.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

__all__ = ["ItemConverter", "canonical_json", "canonical_json_with_items", "check_keys", "discard_item", "parse_json"]

#: Converts one element of a list to something smaller. It gets the index of the element and its value.
ItemConverter: TypeAlias = "Callable[[int, Any], object]"


def canonical_json(document: object) -> bytes:
    """Return a document that we write as JSON. The same input gives the same bytes."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def canonical_json_with_items(fields: Mapping[str, Any], key: str, items: Iterable[bytes]) -> bytes:
    """Return `fields` as JSON with a list under `key`.

    The items are canonical JSON already, so that thousands of them need not be dicts.
    """
    members = {name: canonical_json(value) for name, value in fields.items() if name != key}
    order = dict.fromkeys((*fields, key))
    joined = b"[" + b",".join(items) + b"]"
    return b"{" + b",".join(canonical_json(name) + b":" + members.get(name, joined) for name in order) + b"}"


def discard_item(index: int, value: object) -> None:
    """Drop an element of a list. Only its existence is kept."""


def parse_json(
    raw: bytes,
    what: str,
    limit: int = limits.MAX_MANIFEST,
    *,
    keys: AbstractSet[str] | None = None,
    known_keys: AbstractSet[str] | None = None,
    convert: Mapping[str, ItemConverter] | None = None,
    max_unsplit: int = limits.MAX_JSON_UNSPLIT,
) -> dict[str, Any]:
    """Parse an untrusted JSON object. `what` names it in errors, `limit` is its maximum size in bytes.

    Duplicate keys, NaN and Infinity, halves of surrogate pairs, encodings other than UTF-8, deep nesting and
    non-objects are refused. A document that two parsers read differently could carry a signature for other content.

    Members of the outermost object other than `keys` are checked and dropped. `known_keys` are all fields of such a
    document (default: `keys`); keys that other tools take for one of them are refused, see `check_keys`. Without both,
    all keys are data, like those of a map. If the value under a key of `convert` is a list, each element is replaced by
    the result of that function.

    A document of more than `max_unsplit` bytes is parsed in pieces, with the same result. Its Python objects would take
    many times its size.

    Raises:
        ArchiveError: the document is malformed or too large.
    """
    if len(raw) > limit:
        msg = f"{what} is larger than {limit} bytes"
        raise ArchiveError(msg)
    if _count_items(raw, 0, len(raw)) > limits.MAX_JSON_ITEMS:
        msg = f"{what} has more than {limits.MAX_JSON_ITEMS} items"
        raise ArchiveError(msg)
    convert = convert or {}
    known_keys = keys if known_keys is None else known_keys
    try:
        if len(raw) > max_unsplit:
            return dict(_PiecewiseParser(raw, keys, known_keys, convert).members())
        document = _parse(raw.decode(), 0)
        if isinstance(document, dict):
            _check_keys(document.keys(), known_keys)
    except (ValueError, RecursionError) as error:
        msg = f"{what} is not valid JSON: {printable(_reason(error))}"
        raise ArchiveError(msg) from error
    except _RefusedError as error:
        msg = f"{what} {error}"
        raise ArchiveError(msg) from error
    if not isinstance(document, dict):
        msg = f"{what} is not a JSON object"
        raise ArchiveError(msg)
    return {
        key: [convert[key](index, item) for index, item in enumerate(value)]
        if key in convert and isinstance(value, list)
        else value
        for key, value in document.items()
        if keys is None or key in keys
    }


def check_keys(fields: Mapping[str, object], known_keys: AbstractSet[str], what: str) -> None:
    """Refuse an object with a key that other tools read as one of `known_keys`, and this module does not.

    Go's encoding/json takes `Layers`, or `layers` with a long s, for `layers`, and the last one counts. With both keys
    in a manifest, skopeo and Docker see another image than a case-sensitive parser. Keys of maps (annotations, labels)
    are data, in Go too.

    Raises:
        ArchiveError: the object has such a key. `what` names the object.
    """
    try:
        _check_keys(fields.keys(), known_keys)
    except _RefusedError as error:
        msg = f"{what} {error}"
        raise ArchiveError(msg) from error


def _check_keys(keys: AbstractSet[str], known_keys: AbstractSet[str] | None) -> None:
    # Nearly all objects have only known keys, so tens of thousands of objects need only this check.
    if known_keys is None or keys <= known_keys:
        return
    for key in keys - known_keys:
        if (name := _names_by_folded(frozenset(known_keys)).get(_folded(key))) is not None:
            msg = f"has the key {printable(key)!r}, which others read as {name!r}"
            raise _RefusedError(msg)


def _folded(key: str) -> str:
    """Return the form in which Go compares keys (encoding/json's foldName: Unicode simple folding).

    Field names are ASCII. Of the other characters only the long s and the Kelvin sign fold to ASCII, and `lower`
    converts the latter.
    """
    return key.replace("\u017f", "s").lower()


@functools.lru_cache(maxsize=32)
def _names_by_folded(known_keys: frozenset[str]) -> Mapping[str, str]:
    return {_folded(name): name for name in known_keys}


class _RefusedError(Exception):
    """The reason why a document that may be valid JSON is refused. The text continues after the document's name."""


def _reason(error: ValueError | RecursionError) -> str:
    """Return the error of a parser in our words: some of Python's texts are advice to Python programmers."""
    text = str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return "a string has half of a surrogate pair"
    # RFC 8259 sets no limit to numbers (section 6), Python sets one to their digits.
    return "a number has too many digits" if text.startswith("Exceeds the limit") else text


def _count_items(raw: bytes, start: int, end: int) -> int:
    return sum(raw.count(mark, start, end) for mark in (b",", b"[", b"{"))


def _parse(text: str, depth: int) -> object:
    """Parse a complete document, or a piece of one at the nesting level `depth`."""
    if text.startswith("\ufeff"):
        raise ValueError(_BYTE_ORDER_MARK)
    value = _DECODER.decode(text)
    if "\\u" in text:
        # Half of a surrogate pair cannot be encoded again, and other parsers replace it.
        canonical_json(value)
    _check_depth(value, limits.MAX_JSON_DEPTH - depth)
    return value


def _build_unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(_DUPLICATE_KEY)
    return fields


_BYTE_ORDER_MARK: Final = "it begins with a byte order mark"
_DUPLICATE_KEY: Final = "a key stands twice in one object"
_UNEXPECTED_END: Final = "it ends too early"


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        msg = "a number is too large"
        raise ValueError(msg)
    return number


#: One decoder for all documents: `json.loads` with these hooks would create one for each piece.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_build_unique_object, parse_constant=_refuse_constant, parse_float=_parse_finite
)


def _check_depth(value: object, max_depth: int) -> None:
    level: list[object] = [value]
    for _ in range(max_depth):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    if any(isinstance(node, dict | list) for node in level):
        msg = f"is nested more than {limits.MAX_JSON_DEPTH} deep"
        raise _RefusedError(msg)


# Possessive, so that a failed match is not tried again with less.
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
#: A string, or a mark between pieces.
_TOKEN: Final = re.compile(_STRING + rb"|[][{},]", re.DOTALL)


def _bracket_pattern(inner: bytes) -> bytes:
    return rb'[\[{](?:[^][{}"]++|' + _STRING + inner + rb")*[]}]"


#: Elements of a list with at most three levels of brackets, each with its comma. Groups are not possessive: before
#: 3.11.5 Python loses parts of the match of such a group (gh-106052). The first byte of each part decides what it is,
#: so nothing is tried for long.
_GROUP: Final = re.compile(
    rb"(?:[ \t\n\r]*+(?:"
    + rb"|".join((_STRING, _bracket_pattern(b"|" + _bracket_pattern(b"|" + _bracket_pattern(b""))), rb'[^][{}",]++'))
    + rb")[ \t\n\r]*+,)*",
    re.DOTALL,
)
_QUOTE: Final = ord('"')
_COMMA: Final = ord(",")
_LIST: Final = ord("[")
_LIST_END: Final = ord("]")
_OBJECT: Final = ord("{")
_OBJECT_END: Final = ord("}")
_OPENING: Final = frozenset((_LIST, _OBJECT))
#: JSON's white space (RFC 8259, section 2). `bytes.strip` removes more by default.
_BLANK: Final = b" \t\n\r"

_Mark: TypeAlias = "re.Match[bytes]"


class _PiecewiseParser:
    """Cuts a document at its brackets and commas, and parses each piece as strictly as a complete document.

    Every byte is parsed, or is a mark between pieces, or white space. With wrong brackets the cuts are wrong too, and
    then some piece is not JSON.
    """

    def __init__(
        self,
        raw: bytes,
        keys: AbstractSet[str] | None,
        known_keys: AbstractSet[str] | None,
        convert: Mapping[str, ItemConverter],
    ) -> None:
        self._raw = raw
        self._keys = keys
        self._known = known_keys
        self._convert = convert
        #: The position after the last token.
        self._position = 0

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield the members of the outermost object in order, or only those under `keys`."""
        mark = self._next_token()
        if self._raw[mark.start()] != _OBJECT or not self._is_blank(0, mark.start()):
            msg = "it does not begin as an object"
            raise ValueError(msg)
        seen: set[str] = set()
        while True:
            start, token = mark.end(), self._next_token()
            if self._raw[token.start()] == _OBJECT_END and not seen and self._is_blank(start, token.start()):
                mark = token
                break
            key = self._parse_key(start, token)
            if key in seen:
                raise ValueError(_DUPLICATE_KEY)
            seen.add(key)
            _check_keys({key}, self._known)
            if len(seen) > limits.MAX_JSON_PIECE_ITEMS:
                raise self._too_large(start)
            value, mark = self._parse_value(key, token.end())
            if self._is_wanted(key):
                yield key, value
            # Free the memory for the next value.
            del value
            if self._raw[mark.start()] != _COMMA:
                break
        if self._raw[mark.start()] != _OBJECT_END or not self._is_blank(mark.end(), len(self._raw)):
            msg = f"it is not one object: see byte {mark.start()}"
            raise ValueError(msg)

    def _is_wanted(self, key: str) -> bool:
        return self._keys is None or key in self._keys

    def _parse_key(self, start: int, token: _Mark) -> str:
        if self._raw[token.start()] != _QUOTE or not self._is_blank(start, token.start()):
            msg = f"a key is expected at byte {start}"
            raise ValueError(msg)
        return str(self._parse_piece(token.start(), token.end(), 1))

    def _parse_value(self, key: str, start: int) -> tuple[object, _Mark]:
        """Parse the value of a key. Return the value and the mark after it."""
        token = self._next_token()
        colon = self._raw.find(b":", start, token.start())
        if colon < 0 or not self._is_blank(start, colon):
            msg = f"a colon is expected at byte {start}"
            raise ValueError(msg)
        convert = self._convert.get(key) if self._is_wanted(key) else discard_item
        if convert and self._raw[token.start()] == _LIST and self._is_blank(colon + 1, token.start()):
            return self._parse_elements(convert, token)
        mark = self._find_end(token)
        return self._parse_piece(colon + 1, mark.start(), 1), mark

    def _parse_elements(self, convert: ItemConverter, mark: _Mark) -> tuple[list[object], _Mark]:
        """Parse the elements of a list after its opening mark. Return the elements and the mark after the list."""
        values: list[object] = []
        while self._raw[mark.start()] != _LIST_END:
            for value in self._parse_group(mark.end()):
                values.append(convert(len(values), value))
            start, mark = self._position, self._find_end(self._next_token())
            if values or self._raw[mark.start()] != _LIST_END or not self._is_blank(start, mark.start()):
                values.append(convert(len(values), self._parse_piece(start, mark.start(), 2)))
            if self._raw[mark.start()] == _OBJECT_END:
                msg = f"a list has the end of an object at byte {mark.start()}"
                raise ValueError(msg)
        after = self._next_token()
        if not self._is_blank(mark.end(), after.start()):
            msg = f"a comma is expected at byte {mark.end()}"
            raise ValueError(msg)
        return values, after

    def _parse_group(self, start: int) -> list[object]:
        """Parse several small elements of a list together, and continue after their last comma.

        Return an empty list if there are none, or if one of them is malformed. Then they are parsed one by one: that
        takes many times as long, but an error names the place.
        """
        self._position = start
        match = _GROUP.match(self._raw, start, start + limits.MAX_JSON_GROUP)
        if match is None or not match[0]:
            return []
        with contextlib.suppress(ValueError, RecursionError, _RefusedError):
            values = _parse(f"[{match[0][:-1].decode()}]", 1)
            if isinstance(values, list):
                self._position = match.end()
                return values
        return []

    def _parse_piece(self, start: int, end: int, depth: int) -> object:
        size, many = end - start, limits.MAX_JSON_PIECE_ITEMS
        # A piece cannot have more items than bytes, so a short piece needs no count.
        if size > limits.MAX_JSON_PIECE or (size > many and _count_items(self._raw, start, end) > many):
            raise self._too_large(start)
        piece = self._raw[start:end]
        if size > limits.MAX_JSON_NON_ASCII_PIECE and (not piece.isascii() or b"\\u" in piece):
            raise self._too_large(start)
        try:
            text = piece.decode()
            # Free the memory for the parsed value.
            del piece
            return _parse(text, depth)
        except ValueError as error:
            msg = f"{_reason(error)}, counted from byte {start}"
            raise ValueError(msg) from error

    @staticmethod
    def _too_large(start: int) -> _RefusedError:
        return _RefusedError(
            f"has a part, at byte {start}, of more than {limits.MAX_JSON_PIECE} bytes "
            f"({limits.MAX_JSON_NON_ASCII_PIECE} if not all of them are ASCII) or {limits.MAX_JSON_PIECE_ITEMS} items"
        )

    def _find_end(self, token: _Mark) -> _Mark:
        """Return the comma or bracket that ends the piece which begins with `token`."""
        depth = 0
        while True:
            byte = self._raw[token.start()]
            if byte in _OPENING:
                depth += 1
                if depth > limits.MAX_JSON_DEPTH:
                    raise RecursionError
            elif byte != _QUOTE:
                if not depth:
                    return token
                if byte != _COMMA:
                    depth -= 1
            token = self._next_token()

    def _next_token(self) -> _Mark:
        token = _TOKEN.search(self._raw, self._position)
        if token is None:
            raise ValueError(_UNEXPECTED_END)
        self._position = token.end()
        return token

    def _is_blank(self, start: int, end: int) -> bool:
        return start == end or not self._raw[start:end].strip(_BLANK)
