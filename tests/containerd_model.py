"""Which images containerd makes of an archive's index.json, as a model: Debian's versions are older than its rule.

containerd 2.2 and later, and with it Docker's containerd image store, make an image of each entry, under its full name
if it has one and without a name otherwise; an entry that says what it refers to is kept as a referrer, not an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

#: The annotations that containerd reads of an entry.
NAME: Final = "io.containerd.image.name"
SUBJECT: Final = "io.containerd.manifest.subject"


def images_of(entries: Sequence[dict[str, Any]]) -> list[tuple[str | None, str]]:
    """Return the images that containerd makes of the entries of an index.json: names (None for none) and digests."""
    found = []
    for entry in entries:
        annotations = entry.get("annotations") or {}
        if SUBJECT not in annotations:
            found.append((annotations.get(NAME), entry["digest"]))
    return found
