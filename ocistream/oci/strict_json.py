"""Parse untrusted JSON, and refuse documents that two parsers could read differently; write canonical JSON."""

from __future__ import annotations

import codecs
import functools
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

#: Converts one element of a list to something smaller. It gets the index of the element and its value.
ItemConverter: TypeAlias = "Callable[[int, Any], object]"
#: The position of a first byte, and the one after a last byte.
_Span: TypeAlias = tuple[int, int]
#: Bytes of a document in a file that are searched at once.
_WINDOW: Final = 16 * limits.KIB
#: One encoder for all documents: `json.dumps` with these arguments would create one for each.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class ByteSource(Protocol):
    """The bytes of a document, by slices: in memory (`bytes`), or in a file (`files.FilePart`)."""

    def __len__(self) -> int:
        """Return the number of bytes."""

    def __getitem__(self, span: slice, /) -> bytes | memoryview:
        """Return some of the bytes."""


def canonical_json(document: object) -> bytes:
    """Return a document that we write as JSON. The same input gives the same bytes."""
    return _ENCODER.encode(document).encode()


def canonical_json_with_items(fields: Mapping[str, Any], key: str, items: Iterable[bytes]) -> bytes:
    """Return `fields` as JSON with a list under `key`; the items are canonical JSON already."""
    return b"".join(canonical_json_pieces(fields, key, items))


def canonical_json_pieces(fields: Mapping[str, Any], key: str, items: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of `canonical_json_with_items`: thousands of items need not be in memory twice."""
    names = list(dict.fromkeys((*fields, key)))
    members = {name: canonical_json(name) + b":" + canonical_json(fields[name]) for name in fields if name != key}
    head = b"".join(members[name] + b"," for name in names[: names.index(key)])
    tail = b"".join(b"," + members[name] for name in names[names.index(key) + 1 :])
    yield b"".join((b"{", head, canonical_json(key), b":["))
    separator = b""
    for item in items:
        yield separator + item
        separator = b","
    yield b"".join((b"]", tail, b"}"))


def discard_item(index: int, value: object) -> None:
    """Drop an element of a list. Only its existence is kept."""


def parse_json(
    raw: ByteSource,
    what: str,
    limit: int = limits.MAX_MANIFEST,
    *,
    keys: AbstractSet[str] | None = None,
    known_keys: AbstractSet[str] | None = None,
    convert: Mapping[str, ItemConverter] | None = None,
) -> dict[str, Any]:
    """Parse an untrusted JSON object. `what` names it in errors, `limit` is its maximum size in bytes.

    Duplicate keys, NaN and Infinity, halves of surrogate pairs, encodings other than UTF-8, deep nesting and
    non-objects are refused. A document that two parsers read differently could carry a signature for other content.

    Members of the outermost object other than `keys` are checked and dropped. `known_keys` are all fields of such a
    document (default: `keys`); keys that other tools read as one of them are refused, see `check_keys`. Without both,
    all keys are data, like those of a map. If the value under a key of `convert` is a list, each element is replaced by
    the result of that function.

    The lists of a large document that are converted or dropped are parsed a few elements at a time, to save memory. A
    document in a file is read a few times in small pieces.

    Raises:
        ArchiveError: the document is malformed or too large.
    """
    raw = memoryview(raw) if isinstance(raw, bytes) else raw
    if len(raw) > limit:
        msg = f"{what} is larger than {limit} bytes"
        raise ArchiveError(msg)
    if raw[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8:
        msg = f"{what} is not valid JSON: it begins with a byte order mark"
        raise ArchiveError(msg)
    if _count(raw, _MARKS_OF_ITEMS) > limits.MAX_JSON_ITEMS:
        msg = f"{what} has more than {limits.MAX_JSON_ITEMS} items"
        raise ArchiveError(msg)
    convert = convert or {}
    lists: dict[str, list[object]] = {}
    rest = [(0, len(raw))]
    try:
        # So few brackets cannot be nested too deeply.
        if len(raw) > limits.MAX_JSON_UNSPLIT or _count(raw, b"[{") > limits.MAX_JSON_DEPTH:
            rest, lists = _parse_lists(raw, keys, convert)
        document = _parse_part(raw, rest)
        if not isinstance(document, dict):
            msg = f"{what} is not a JSON object"
            raise ArchiveError(msg)
        check_keys(document, keys if known_keys is None else known_keys, what)
    except _RefusedError as error:
        msg = f"{what} {error}"
        raise ArchiveError(msg) from error
    return {
        key: lists[key]
        if key in lists
        else [convert[key](*element) for element in enumerate(value)]
        if key in convert and isinstance(value, list)
        else value
        for key, value in document.items()
        if keys is None or key in keys
    }


def check_keys(fields: Mapping[str, object], known_keys: AbstractSet[str] | None, what: str) -> None:
    """Refuse an object with a key that other tools read as one of `known_keys`, and this module does not.

    Go's encoding/json takes `Layers`, or `layers` with a long s, for `layers`, and the last one counts. With both keys
    in a manifest, skopeo and Docker see another image than a case-sensitive parser. Keys of maps (annotations, labels)
    are data, in Go too: for them, `known_keys` is None.

    Raises:
        ArchiveError: the object has such a key. `what` names the object.
    """
    # Nearly all objects have only known keys, so tens of thousands of objects need only this check.
    if known_keys is None or fields.keys() <= known_keys:
        return
    for key in fields.keys() - known_keys:
        if (name := _names_by_folded(frozenset(known_keys)).get(_folded(key))) is not None:
            msg = f"{what} has the key {printable(key)!r}, which other tools read as {name!r}"
            raise ArchiveError(msg)


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
    """The reason why a document is refused. The text continues after the document's name."""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Credentials are parsed too, so no error shows anything of a document.
        msg = "an object has the same key twice"
        raise ValueError(msg)
    return fields


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        msg = "a number is too large"
        raise ValueError(msg)
    return number


#: One decoder for all documents: `json.loads` with these hooks would create one for each part.
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_constant=_refuse_constant, parse_float=_parse_finite
)
#: A string, or a mark between values. The quote at the end of a string is optional: otherwise each quote within an
#: unterminated string would start another search to the end of the document.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[][{},]', re.DOTALL)
#: A character, or an escape, for which Python needs more than one byte per character of a string.
_WIDE: Final = re.compile(rb"[\xc4-\xff]|\\u(?!00)")
#: An escape in a string. The group is half of a surrogate pair without the other half.
_ESCAPE: Final = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)")
_QUOTE: Final = ord('"')
_COMMA: Final = ord(",")
_LIST: Final = ord("[")
_OPENING: Final = frozenset(b"[{")
_CLOSING: Final = frozenset(b"]}")
#: Each item of a document has one of these before it.
_MARKS_OF_ITEMS: Final = b",[{"


class _Token(NamedTuple):
    """A string, or a mark between values: its nesting level, its first byte, and where it is."""

    depth: int
    mark: int
    start: int
    end: int


def _parse_lists(
    raw: ByteSource, keys: AbstractSet[str] | None, converters: Mapping[str, ItemConverter]
) -> tuple[list[_Span], dict[str, list[object]]]:
    """Parse the lists of a document that are converted or dropped, a few elements at a time.

    Return the spans of the rest, and the lists by key. The rest has the brackets of the lists, and every byte belongs
    to the rest or to one group of elements. So if all of these are valid, the document is valid.
    """
    rest: list[_Span] = []
    lists: dict[str, list[object]] = {}
    elements: list[object] = []
    convert: ItemConverter | None = None
    start, key = 0, _Token(0, 0, 0, 0)
    for token in _outer_tokens(raw):
        if token.depth == 1:
            # The last of these tokens before a value is its key.
            key = token
        elif token.mark == _LIST and key.mark == _QUOTE:
            if len(rest) > limits.MAX_JSON_PART_ITEMS:
                # The rest is refused, and need not be cut further.
                break
            name = _parse_part(raw, [(key.start, key.end)])
            if convert := converters.get(name) if keys is None or name in keys else discard_item:
                rest.append((start, token.end))
                start = token.end
                lists[name] = elements = []
        elif convert:
            is_end = token.mark in _CLOSING
            if is_end or (token.mark == _COMMA and token.start - start >= limits.MAX_JSON_GROUP):
                # A group begins with the comma after the previous one. A 0 replaces the element before the comma.
                group = _parse_part(raw, [(start, token.start)], b"[0" if elements else b"[", b"]")
                for value in group[1:] if elements else group:
                    elements.append(convert(len(elements), value))
                start = token.start
                convert = None if is_end else convert
    return [*rest, (start, len(raw))], lists


def _outer_tokens(raw: ByteSource) -> Iterator[_Token]:
    """Yield the tokens of the outermost object and of its members: those of the nesting levels 1 and 2.

    Before malformed JSON the levels are right: up to there, strings and brackets are those that the parser sees.
    """
    depth = 0
    for mark, start, end in _find_tokens(raw):
        if mark in _OPENING:
            depth += 1
            if depth > limits.MAX_JSON_DEPTH:
                msg = f"is nested too deeply: more than {limits.MAX_JSON_DEPTH} levels"
                raise _RefusedError(msg)
        if 1 <= depth <= 2:
            yield _Token(depth, mark, start, end)
        if mark in _CLOSING:
            depth -= 1
            if depth <= 0:
                # All that follows is refused with the rest.
                break


def _find_tokens(raw: ByteSource) -> Iterator[tuple[int, int, int]]:
    """Yield the first byte of each token, its start and its end. A file is searched in windows."""
    window = len(raw) if isinstance(raw, memoryview) else _WINDOW
    start, size = 0, window
    while start < len(raw):
        text = raw[start : start + size]
        end = 0
        for token in _TOKEN.finditer(text):
            # A string, or an escape in it, may continue behind the window.
            if token.end() > len(text) - 2 and start + len(text) < len(raw):
                break
            end = token.end()
            yield text[token.start()], start + token.start(), start + end
        if start + len(text) == len(raw):
            return
        # A window without any token is read again with the bytes after it.
        start, size = start + end, window if end else 2 * size


def _parse_part(raw: ByteSource, spans: Sequence[_Span], before: bytes = b"", after: bytes = b"") -> Any:  # noqa: ANN401
    """Parse some spans of a document, between `before` and `after`, as one value."""
    part = b"".join((before, *(raw[start:end] for start, end in spans), after))
    if (
        len(part) > limits.MAX_JSON_PART
        or (len(part) > limits.MAX_WIDE_JSON_PART and _WIDE.search(part))
        # A part cannot have more items than bytes, so a short part needs no count.
        or (len(part) > limits.MAX_JSON_PART_ITEMS and _count(part, _MARKS_OF_ITEMS) > limits.MAX_JSON_PART_ITEMS)
    ):
        msg = (
            f"has a part, at byte {spans[0][0]}, of more than {limits.MAX_JSON_PART} bytes "
            f"({limits.MAX_WIDE_JSON_PART} with characters beyond U+00FF) or {limits.MAX_JSON_PART_ITEMS} items"
        )
        raise _RefusedError(msg)
    where = f" (after byte {spans[0][0]})" if spans[0][0] else ""
    try:
        text = part.decode()
        # Free the memory for the value.
        del part
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = _find_byte(spans, len(error.doc[: error.pos].encode()) - len(before))
        line, column = _find_line(raw, place)
        reason = f"{error.msg}: line {line} column {column} (byte {place})"
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 at byte {_find_byte(spans, error.start - len(before))}"
    except ValueError as error:
        # RFC 8259 sets no limit to numbers (section 6), Python sets one to their digits.
        reason = "a number has too many digits" if str(error).startswith("Exceeds the limit") else str(error)
        reason += where
    else:
        # Half of a surrogate pair cannot be encoded again, and other parsers replace it.
        if not ("\\ud" in text or "\\uD" in text) or not any(escape[1] for escape in _ESCAPE.finditer(text)):
            return value
        reason = f"a string has half of a surrogate pair{where}"
    msg = f"is not valid JSON: {printable(reason)}"
    raise _RefusedError(msg)


def _find_byte(spans: Sequence[_Span], index: int) -> int:
    """Return the position in the document of a byte of a part, or of the end of the part."""
    for start, end in spans:
        if index < end - start:
            return start + index
        index -= end - start
    return spans[-1][1]


def _find_line(raw: ByteSource, place: int) -> tuple[int, int]:
    """Return the numbers of the line and of the column of a byte, counted from 1."""
    line, line_start = 1, 0
    for start, text in _read_windows(raw):
        before = text[: max(0, place - start)]
        line += before.count(b"\n")
        line_start = max(line_start, start + before.rfind(b"\n") + 1 if b"\n" in before else 0)
    return line, place - line_start + 1


def _count(raw: ByteSource, marks: bytes) -> int:
    """Return how many of these bytes a document has."""
    return sum(text.count(mark) for _, text in _read_windows(raw) for mark in marks)


def _read_windows(raw: ByteSource) -> Iterator[tuple[int, bytes]]:
    return ((start, bytes(raw[start : start + _WINDOW])) for start in range(0, len(raw), _WINDOW))
