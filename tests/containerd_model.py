"""A model of the images that containerd makes of an archive's index.json: Debian's versions are older than its rule.

containerd 2.2 and later, and so Docker's containerd image store, makes an image of each entry, under its full name if
it has one and without a name otherwise. It keeps an entry with an annotation for its subject as a referrer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

#: The annotations of an entry that containerd reads.
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
