"""JSON as strangers write it, refused where two parsers could read it differently; and JSON as we write it.

Bytes in, a dict out. What the fields mean is the caller's concern.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.reference import printable

__all__ = ["canonical_json", "parse_json"]


def canonical_json(document: object) -> bytes:
    """Write one of our own documents: the same input gives the same bytes."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def parse_json(raw: bytes, what: str, limit: int = limits.MAX_MANIFEST) -> dict[str, Any]:
    """Parse a JSON object from a stranger; `what` names it in errors, `limit` is its greatest size in bytes.

    Duplicate keys, NaN and Infinity, halves of surrogate pairs, any encoding but UTF-8, deep nesting and non-objects
    are refused: two parsers that read one document differently are how a signature is made to cover something else.

    Raises:
        ArchiveError: the document is malformed or too large.
    """
    if len(raw) > limit:
        msg = f"{what} is larger than {limit} bytes"
        raise ArchiveError(msg)
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > limits.MAX_JSON_ITEMS:
        msg = f"{what} has more than {limits.MAX_JSON_ITEMS} items"
        raise ArchiveError(msg)
    try:
        text = raw.decode()
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        if "\\u" in text:
            # Half of a surrogate pair cannot be written again, and other parsers read something else in its place.
            canonical_json(document)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else printable(str(error))
        msg = f"{what} is not valid JSON: {reason}"
        raise ArchiveError(msg) from error
    if not isinstance(document, dict):
        msg = f"{what} is not a JSON object"
        raise ArchiveError(msg)
    _check_depth(document, what)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        msg = "a key stands twice in one object"
        raise ValueError(msg)
    return fields


def _no_constant(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        msg = "a number is too large"
        raise ValueError(msg)
    return number


def _check_depth(document: object, what: str) -> None:
    level: list[object] = [document]
    for _ in range(limits.MAX_JSON_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    msg = f"{what} is nested more than {limits.MAX_JSON_DEPTH} deep"
    raise ArchiveError(msg)
