"""Blobs of which the source has only a part: the rest of an interrupted copy, or the parts in some volumes.

Reads and writes the annotation of index.json that lists blobs whose rest follows, and finds the parts in volumes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import is_digest, printable
from ocistream.transfer.report import NeededVolumes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.transfer.interfaces import Blob, Destination, Source

#: The annotation of `index.json` that lists partial blobs. Each line has a digest and a byte offset.
PARTIAL_BLOBS: Final = "vnd.ocistream.partial-blobs"

_OFFSET: Final = re.compile(r"[1-9][0-9]{0,17}\Z")


def format_partial_blobs(offsets: Mapping[str, int]) -> str:
    """Return the annotation's text: digests, and how many bytes the remote side has."""
    return "\n".join(f"{digest} {offset}" for digest, offset in sorted(offsets.items()))


def parse_partial_blobs(annotations: Mapping[str, str]) -> dict[str, int] | None:
    """Return the annotation's entries, digest to byte offset; None if the annotation is missing.

    Raises:
        ArchiveError: the annotation is malformed.
    """
    text = annotations.get(PARTIAL_BLOBS)
    if text is None:
        return None
    offsets: dict[str, int] = {}
    lines = text.split("\n", limits.MAX_RESUMABLE_BLOBS) if text else []
    for line in lines:
        digest, _, offset = line.partition(" ")
        if (
            len(lines) > limits.MAX_RESUMABLE_BLOBS
            or not is_digest(digest)
            or not _OFFSET.match(offset)
            or digest in offsets
        ):
            msg = f"index.json has a malformed annotation {PARTIAL_BLOBS}: {printable(line, 160)!r}"
            raise ArchiveError(msg)
        offsets[digest] = int(offset)
    return offsets


def use_parts(
    source: Source,
    destination: Destination,
    missing: Sequence[Descriptor],
    graph: Graph,
    use: Callable[[Descriptor, Sequence[Blob]], int],
) -> NeededVolumes:
    """Pass the parts that the source has of incomplete blobs to `use`; return the volumes that have the rest.

    `use` gets the parts of one blob, in order, and returns how many bytes of the blob are stored then: it writes the
    parts, or in a dry run only counts them.
    """
    needed: dict[str, None] = {}
    in_order: dict[str, Sequence[str]] = {}
    for blob in missing:
        parts = source.parts(blob)
        if not parts:
            if (reason := graph.omitted_from_source.get(blob.digest)) is not None:
                needed[reason.name] = None
            continue
        available = [part.blob for part in parts if part.blob is not None]
        stored = use(blob, available) if destination.traits.accepts_parts else 0
        missing_parts = [part for part in parts if part.offset + part.size > stored]
        needed.update(dict.fromkeys(part.volume for part in missing_parts))
        if any(part.blob for part in missing_parts):
            # The available part does not follow the stored bytes, so it is of no use yet.
            in_order[blob.digest] = [part.volume for part in missing_parts]
    return NeededVolumes(tuple(sorted(needed)), in_order)
