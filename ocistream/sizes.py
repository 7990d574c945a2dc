"""Parse and format sizes in bytes, and format counts. Input uses powers of 1024, output uses powers of 1000."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,3}))? ?((?:[kmg](?:i?b)?|b)?)\Z", re.IGNORECASE | re.ASCII)
_BITS: Final = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30}


def parse_size(text: str, *, fractions: bool = False) -> int | None:
    """Return the number of bytes, rounded down; None if the text is not a size.

    K, M and G may be followed by `B` or `iB`, in any case. `fractions` allows `1.5M`.
    """
    match = _SIZE.match(text)
    if match is None or (match[2] and not fractions):
        return None
    thousandths = int(match[1]) * 1000 + int((match[2] or "").ljust(3, "0"))
    return (thousandths << _BITS[match[3][:1].lower()]) // 1000


def format_size(size: float) -> str:
    """Return a size for humans: `12.3 MB`, in powers of 1000 as registries and disks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_count(number: int, singular: str, plural: str = "") -> str:
    """Return a number of things for people: `1 blob`, `2 blobs`, `2 indexes`."""
    return f"{number} {singular}" if number == 1 else f"{number} {plural or singular + 's'}"
