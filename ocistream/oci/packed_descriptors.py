"""Lists of short byte strings, positions of keys, and entries of an `index.json`, in a fraction of the usual memory.

An archive may have 30,000 blobs, and an index ten thousand entries. Most entries differ only in their digests, sizes
and names.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, overload

from ocistream.oci.descriptor import Descriptor, Platform
from ocistream.oci.documents import parse_entry
from ocistream.oci.strict_json import canonical_json

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

#: Lists into which the hashes are divided, each of which is searched from its beginning.
_BUCKETS: Final = 256


class PackedRecords:
    """A list of byte strings in one buffer."""

    def __init__(self) -> None:
        """Start without records."""
        self._buffer = bytearray()
        self._ends = array("I", [0])

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._ends) - 1

    def append(self, record: bytes) -> None:
        """Append a record."""
        self._buffer += record
        self._ends.append(len(self._buffer))

    def __getitem__(self, position: int) -> bytes:
        """Return one record."""
        return bytes(memoryview(self._buffer)[self._ends[position] : self._ends[position + 1]])


class Positions:
    """The positions of each key in a list, as hashes: some 15 bytes for each instead of 100 in a dict.

    Two keys may have the same hash, so the caller must check what it finds.
    """

    def __init__(self) -> None:
        """Start without keys."""
        #: Of each position, the upper 32 bits of the hash and the position in the lower ones.
        self._buckets: dict[int, array[int]] = {}

    def add(self, key: Hashable, position: int) -> None:
        """Add a position of a key."""
        bucket, upper = self._find_bucket(key)
        bucket.append(upper | position)

    def find(self, key: Hashable) -> list[int]:
        """Return the positions of a key in the order in which they were added, and perhaps positions of others."""
        bucket, upper = self._find_bucket(key)
        return [item ^ upper for item in bucket if item ^ upper < 1 << 32]

    def remove(self, key: Hashable, position: int) -> None:
        """Remove a position of a key."""
        bucket, upper = self._find_bucket(key)
        bucket.remove(upper | position)

    def _find_bucket(self, key: Hashable) -> tuple[array[int], int]:
        number = hash(key)
        bucket = self._buckets.setdefault(number % _BUCKETS, array("Q"))
        return bucket, (number // _BUCKETS & 0xFFFFFFFF) << 32


_T = TypeVar("_T")
#: Kinds of entries that are packed, by a number of one byte. Other entries are kept as JSON.
_MAX_KINDS: Final = 255
_NO_KIND: Final = 255


class _Kind(NamedTuple):
    """What entries have in common; of annotations, the keys."""

    media_type: str
    algorithm: str
    digest_size: int
    platform: Platform | None
    keys: tuple[str, ...]
    artifact_type: str | None
    extra_json: bytes | None


class BuiltSequence(Sequence[_T], ABC):
    """A sequence whose elements are built each time they are read, to save memory."""

    @abstractmethod
    def _build(self, position: int) -> _T:
        """Return an element; the position is valid."""

    @overload
    def __getitem__(self, position: int) -> _T: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[_T]: ...

    def __getitem__(self, position: int | slice) -> _T | Sequence[_T]:
        """Return one element, or several."""
        positions = range(len(self))[position]
        return self._build(positions) if isinstance(positions, int) else list(map(self._build, positions))

    def __iter__(self) -> Iterator[_T]:
        """Yield the elements."""
        return map(self._build, range(len(self)))


class PackedDescriptors(BuiltSequence[Descriptor]):
    """A list of the entries of an `index.json`. One takes some 50 bytes and the values of its annotations."""

    def __init__(self) -> None:
        """Start without entries."""
        #: The kinds of entries and the format of their lines, by number; and the numbers.
        self._kinds: list[tuple[_Kind, bytes]] = []
        self._numbers: dict[_Kind, int] = {}
        #: Of each entry: the number of its kind, its digest, and one JSON value a line: its size and its annotations.
        self._records = PackedRecords()

    def append(self, entry: Descriptor) -> None:
        """Append an entry."""
        algorithm, _, encoded = entry.digest.partition(":")
        keys = tuple(sorted(entry.annotations))
        kind = _Kind(
            *(entry.media_type, algorithm, len(encoded) // 2, entry.platform, keys),
            *(entry.artifact_type, entry.extra_json),
        )
        number = self._numbers.get(kind)
        if number is None and len(self._kinds) < _MAX_KINDS:
            number = self._numbers[kind] = len(self._kinds)
            self._kinds.append((kind, _build_format(entry)))
        if number is None:
            self._records.append(bytes([_NO_KIND]) + canonical_json(entry.to_json()))
        else:
            values = map(canonical_json, (entry.size, *map(entry.annotations.__getitem__, keys)))
            self._records.append(bytes([number]) + bytes.fromhex(encoded) + b"\n".join(values))

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._records)

    def _build(self, position: int) -> Descriptor:
        record = self._records[position]
        if record[0] == _NO_KIND:
            return parse_entry(json.loads(record[1:]))
        kind, _ = self._kinds[record[0]]
        encoded, values = record[1 : 1 + kind.digest_size].hex(), record[1 + kind.digest_size :]
        size, *annotations = json.loads((b"[" + values.replace(b"\n", b",") + b"]").decode())
        return Descriptor(
            kind.media_type,
            f"{kind.algorithm}:{encoded}",
            size,
            kind.platform,
            dict(zip(kind.keys, annotations, strict=True)),
            kind.artifact_type,
            kind.extra_json,
        )

    def line(self, position: int) -> bytes:
        """Return the canonical JSON of one entry."""
        record = self._records[position]
        if record[0] == _NO_KIND:
            return record[1:]
        kind, text = self._kinds[record[0]]
        encoded, values = record[1 : 1 + kind.digest_size].hex(), record[1 + kind.digest_size :]
        return text % (encoded.encode(), *values.split(b"\n"))


def _build_format(entry: Descriptor) -> bytes:
    """Return a format for the canonical JSON of entries of one kind; it needs the digest, the size and annotations."""

    def escape(value: object) -> bytes:
        return canonical_json(value).replace(b"%", b"%%")

    variable = {
        "digest": escape(entry.digest.partition(":")[0] + ":").removesuffix(b'"') + b'%b"',
        "size": b"%b",
        "annotations": b"{" + b",".join(escape(key) + b":%b" for key in sorted(entry.annotations)) + b"}",
    }
    members = (escape(key) + b":" + variable.get(key, escape(value)) for key, value in entry.to_json().items())
    return b"{" + b",".join(members) + b"}"
