"""What the operator of `serve` should know of names: images that share one, have none, or have one that is not served.

Values in, lines of text out. It must not read anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream.layout.index import called
from ocistream.oci.reference import printable
from ocistream.serve.names import spellings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.serve.names import Spelling

__all__ = ["name_notes", "unnamed", "unnamed_note"]

_MOST_LINES: Final = 10
_MOST_DIGESTS: Final = 3


def name_notes(entries: Sequence[Descriptor], fallback: str) -> list[str]:
    """Return a line for each entry whose name leads to another entry, or cannot be a repository and a tag."""
    served: dict[Spelling, str] = {}
    for entry in entries:
        # As `Repositories` has it: the last one counts.
        served.update(dict.fromkeys(spellings(entry, fallback), entry.digest))
    lines: dict[str, None] = {}
    for entry in entries:
        spelled = spellings(entry, fallback)
        lost = [one for one in spelled if served[one] != entry.digest]
        if lost:
            lines[_shared(entry, lost, [one for one in spelled if one not in lost], served[lost[0]])] = None
        elif not spelled and (name := called(entry)) is not None:
            what = f"{printable(name)!r} is not the name of a repository with a tag"
            lines[f"{what}: {entry.digest} is served by digest only"] = None
    return _at_most(list(lines))


def _shared(entry: Descriptor, lost: Sequence[Spelling], kept: Sequence[Spelling], winner: str) -> str:
    where = f"as {_written(kept[0])}" if kept else "by digest only"
    return (
        f"two images have the name {_written(lost[0])}: {winner} is served under it; {entry.digest} is served {where}"
    )


def unnamed(entries: Sequence[Descriptor]) -> list[Descriptor]:
    """Return the entries without a name whose digest no other entry has a name for, each once."""
    named = {entry.digest for entry in entries if called(entry) is not None}
    return list({entry.digest: entry for entry in entries if entry.digest not in named}.values())


def unnamed_note(digests: Sequence[str], what: str) -> str:
    """Return the line about what has no name."""
    shown = ", ".join(digests[:_MOST_DIGESTS])
    more = len(digests) - _MOST_DIGESTS
    also = f" and {more} more" if more > 0 else ""
    return f"{len(digests)} {what} without a name, served by digest only: {shown}{also}"


def _written(spelling: Spelling) -> str:
    repository, tag = spelling
    return f"{repository}:{tag}"


def _at_most(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], f"and {more} more such images"] if more > 0 else lines
