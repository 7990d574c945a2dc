"""A list of short byte strings, and the positions of keys in a list, in a fraction of the memory of a list and a dict.

An archive may have 30,000 blobs, and an index 10,000 images.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

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
