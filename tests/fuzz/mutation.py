"""Mutate inputs: bytes, JSON, tar headers. All randomness comes from the given `Random`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from tests.archives import BLOCK, with_checksum

#: The largest input: fuzzing looks for invalid structures, not for large inputs.
MAX_INPUT: Final = 192 * 1024
_NUMBERS: Final = (
    b"0", b"-0", b"-1", b"1", b"00", b"+1", b"255", b"256", b"512", b"65536", b"2147483648", b"4294967295",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"1e400", b"1e5", b"0.5", b"NaN",
    b"-Infinity", b"0x10", b"1_000", "\u0663".encode(), b"9" * 30, b"9" * 5000,
)  # fmt: skip
_BYTES: Final = (b"\0", b"\n", b"\r\n", b"\t", b" ", b"\x7f", b"\x80", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1b[2J")
_WORDS: Final = (*"\u00e9\u2028\u202e\ufeff\U0001f600\ufffd;,=:@#?&", "/../", "..", "./", "//", "%2e%2e%2f", "%00")
_DIGITS: Final = re.compile(rb"[0-9]+")

Bytes = Callable[[Random, bytes, Sequence[bytes]], bytes]


def mutated(rng: Random, data: bytes, tokens: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    """Return `data` with one change or several; `tokens` are words of its format, `others` inputs to splice with."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        if others and rng.random() < 0.06:
            data = _spliced(rng, data, rng.choice(others))
        else:
            data = rng.choice(_CHANGES)(rng, data, tokens)
    return data[:MAX_INPUT]


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    longest = len(data) - start
    return start, start + min(longest, rng.choice((1, 1, 2, 4, 8, 16, 64, 512, longest or 1)))


def _flip(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _overwrite(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.choice((b"\0", b"\xff", b"0", b"7", b" ")) * (end - start) + data[end:]


def _random(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.randbytes(min(end - start, 64)) + data[end:]


def _cut(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _truncate(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 8, 100)) + data[end:]


def _swap(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    one, other = sorted((_span(rng, data), _span(rng, data)))
    if one[1] > other[0]:
        return data
    return data[: one[0]] + data[slice(*other)] + data[one[1] : other[0]] + data[slice(*one)] + data[other[1] :]


def _token(rng: Random, data: bytes, tokens: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    word = rng.choice((rng.choice(tokens or _BYTES), rng.choice(_BYTES), rng.choice(_WORDS).encode()))
    return data[:start] + word + data[end if rng.random() < 0.3 else start :]


def _number(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    found = list(_DIGITS.finditer(data[:MAX_INPUT]))
    if not found:
        return data
    match = rng.choice(found)
    number = rng.choice(_NUMBERS)
    if rng.random() < 0.4 and len(match[0]) < 20:
        number = str(int(match[0]) + rng.choice((-1, 1, 2, -512, 512))).encode()
    return data[: match.start()] + number + data[match.end() :]


def _spliced(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _json(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return json_bytes(rng, json_mutated(rng, document))


def _header(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    places = [at for at in range(0, len(data) - BLOCK + 1, BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not places:
        return data
    at = rng.choice(places)
    return data[:at] + header_mutated(rng, data[at : at + BLOCK]) + data[at + BLOCK :]


def _blocks(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """Move, remove or repeat complete blocks: entries of a tar change places or lose their content."""
    if len(data) < 2 * BLOCK:
        return data
    start = rng.randrange(len(data) // BLOCK) * BLOCK
    end = start + rng.randint(1, 4) * BLOCK
    to = rng.randrange(len(data) // BLOCK) * BLOCK
    rest = data if rng.random() < 0.5 else data[:start] + data[end:]
    return rest[:to] + (data[start:end] if rng.random() < 0.7 else bytes(BLOCK)) + rest[to:]


_CHANGES: Final[tuple[Bytes, ...]] = (
    _flip, _flip, _overwrite, _random, _cut, _truncate, _repeat, _swap, _token, _token, _token, _number, _number,
    _json, _json, _header, _header, _blocks,
)  # fmt: skip

# -- tar ----------------------------------------------------------------------------------------------------

#: name, mode, uid, gid, size, mtime, type, link name, magic, version, major, minor, prefix (POSIX, "ustar").
_FIELDS: Final = (
    (0, 100), (100, 108), (108, 116), (116, 124), (124, 136), (124, 136), (136, 148), (156, 157), (156, 157),
    (157, 257), (257, 263), (263, 265), (329, 337), (337, 345), (345, 500),
)  # fmt: skip
_TYPES: Final = b"0\x001234567xgLKSDMVAX\xff"
_SIZES: Final = (
    b"00000000000\0", b"00000000001\0", b"77777777777\0", b"-0000000001\0", b"           \0", b"\x80" + bytes(11),
    b"\x80" + bytes(3) + b"\xff" * 8, b"\xff" * 12, b"\x80\xff" + bytes(10), b"0000000000z\0", b"12\0 4567890\0",
)  # fmt: skip


def header_mutated(rng: Random, block: bytes) -> bytes:
    """Return a tar header with one field changed, mostly with the correct checksum."""
    start, end = rng.choice(_FIELDS)
    if (start, end) == (156, 157):
        field = bytes([rng.choice(_TYPES)])
    elif (start, end) == (124, 136):
        field = rng.choice(_SIZES)
    else:
        field = rng.choice((rng.randbytes(end - start), bytes(end - start), _NAMES[rng.randrange(len(_NAMES))]))
    changed = block[:start] + field[: end - start].ljust(end - start, b"\0") + block[end:]
    return with_checksum(changed) if rng.random() < 0.95 else changed


_NAMES: Final = (
    b"index.json", b"./index.json", b"oci-layout", b"manifest.json", b"blobs/sha256/" + b"0" * 64, b"../index.json",
    b"/etc/passwd", b"blobs/sha256/../../x", b"blobs/sha512/" + b"f" * 87, b"a" * 155, b"blobs//sha256", b"\xff\xfe",
    b"..", b".", b"././@LongLink", b"blobs", b"\n\x1b[2J",
)  # fmt: skip

# -- JSON ---------------------------------------------------------------------------------------------------

_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**40, 0.5, 1e300, "", " ", "\0", "\ud800", "a\nb",
    "\x1b[31m", "../..", "/", "sha256:", "sha256:" + "0" * 64, "sha256:" + "A" * 64, "sha512:" + "0" * 128,
    "md5:d41d8cd98f00b204e9800998ecf8427e", "\u202e", "x" * 300, [], {}, [[]], {"": ""}, {"a": {"b": []}}, [None],
)  # fmt: skip


def json_mutated(rng: Random, document: Any) -> Any:
    """Return a document with one change; it may share parts with the given one."""
    path, node = [], document
    while isinstance(node, dict | list) and node and rng.random() < 0.85:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        path.append(key)
        node = node[key]
    return _with(document, path, _changed_value(rng, node, document))


def _changed_value(rng: Random, node: Any, document: Any) -> Any:
    if isinstance(node, dict) and node and rng.random() < 0.6:
        changed = dict(node)
        key = rng.choice(list(node))
        match rng.randrange(4):
            case 0:
                del changed[key]
            case 1:
                changed[str(rng.choice(("", key.upper(), key + " ", "\u0130", "x" * 200)))] = changed[key]
            case 2:
                changed[key] = rng.choice(list(node.values()))
            case _:
                changed[key] = rng.choice(_VALUES)
        return changed
    if isinstance(node, list) and node and rng.random() < 0.6:
        return rng.choice((node + node, node[1:], node[::-1], [*node, rng.choice(_VALUES)], node * 50))
    if isinstance(node, str) and rng.random() < 0.6:
        place = rng.randrange(len(node) + 1)
        return node[:place] + rng.choice(("", "\0", "/", "..", "\n", "\u00e9", "x", "+zstd")) + node[place + 1 :]
    if isinstance(node, int) and rng.random() < 0.4:
        return node + rng.choice((-1, 1))
    return document if rng.random() < 0.05 else rng.choice(_VALUES)


def _with(node: Any, path: Sequence[Any], value: Any) -> Any:
    if not path:
        return value
    changed = dict(node) if isinstance(node, dict) else list(node)
    changed[path[0]] = _with(node[path[0]], path[1:], value)
    return changed


def json_bytes(rng: Random, document: Any) -> bytes:
    """Return a document as JSON in a random spelling, sometimes with duplicate keys or deep nesting."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, None, None, 1)))
    if rng.random() < 0.1 and '"' in text:
        # Add a key that may be a duplicate.
        text = text.replace("{", '{"mediaType": 1, "mediaType": 2,', 1) if rng.random() < 0.3 else text
        text = text.replace("{", '{"digest": "x", ', 1)
    if rng.random() < 0.05:
        text = "[" * 70 + text + "]" * 70
    return text.encode("utf-8", "surrogatepass")[:MAX_INPUT]
