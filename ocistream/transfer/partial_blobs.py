"""Archives over a line that may break off: how one says so, and of which blobs it has only what the other side lacks.

The other side has the beginnings of those from an earlier run. The rest of each is called as a part in a volume is,
`parts/ALGORITHM/HEX/OFFSET`, and which there are stands in an annotation of `index.json`, a line `DIGEST OFFSET` for
each; it is there, and empty, where there are none. Text and values only, and the chunks of such a rest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import is_digest, printable
from ocistream.streams.chunks import closing_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.streams.chunks import Chunk

__all__ = ["PARTIAL_BLOBS", "chunks_from", "format_partial_blobs", "parse_partial_blobs"]

#: The annotation of an `index.json` that says it.
PARTIAL_BLOBS: Final = "vnd.ocistream.begun"

_OFFSET: Final = re.compile(r"[1-9][0-9]{0,17}\Z")


def format_partial_blobs(begun: Mapping[str, int]) -> str:
    """Write the annotation's text: digests, and how many bytes the other side has."""
    return "\n".join(f"{digest} {offset}" for digest, offset in sorted(begun.items()))


def parse_partial_blobs(notes: Mapping[str, str]) -> dict[str, int] | None:
    """Read the annotation; None where there is none.

    Raises:
        ArchiveError: it is malformed.
    """
    text = notes.get(PARTIAL_BLOBS)
    if text is None:
        return None
    found: dict[str, int] = {}
    lines = text.split("\n", limits.MAX_RESUMABLE_BLOBS) if text else []
    for line in lines:
        digest, _, offset = line.partition(" ")
        if (
            len(lines) > limits.MAX_RESUMABLE_BLOBS
            or not is_digest(digest)
            or not _OFFSET.match(offset)
            or digest in found
        ):
            msg = f"index.json has a malformed annotation {PARTIAL_BLOBS}: {printable(line, 160)!r}"
            raise ArchiveError(msg)
        found[digest] = int(offset)
    return found


def chunks_from(chunks: Iterator[Chunk], offset: int) -> Iterator[Chunk]:
    """Pass on what comes from `offset` on, in bytes. `chunks` is closed at the end."""
    left = offset
    with closing_chunks(chunks):
        for chunk in chunks:
            if left < len(chunk):
                yield memoryview(chunk)[left:] if left else chunk
            left = max(0, left - len(chunk))
