"""What the operator of `serve` should know of names: images that share one, have none, or have one that is not served.

Values in, lines of text out. It must not read anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream.layout.index import entry_name_of
from ocistream.oci.reference import printable
from ocistream.serve.names import served_names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.oci.descriptor import Descriptor
    from ocistream.serve.names import ServedName

__all__ = ["describe_name_conflicts", "describe_unnamed", "find_unnamed_entries"]

_MAX_LINES: Final = 10
_MAX_DIGESTS: Final = 3


def describe_name_conflicts(entries: Sequence[Descriptor], default_repository: str) -> list[str]:
    """Return a line for each entry whose name leads to another entry, or cannot be a repository and a tag."""
    served: dict[ServedName, str] = {}
    for entry in entries:
        # As `Repositories` has it: the last one counts.
        served.update(dict.fromkeys(served_names_of(entry, default_repository), entry.digest))
    lines: dict[str, None] = {}
    for entry in entries:
        spelled = served_names_of(entry, default_repository)
        lost = [one for one in spelled if served[one] != entry.digest]
        if lost:
            lines[_describe_conflict(entry, lost, [one for one in spelled if one not in lost], served[lost[0]])] = None
        elif not spelled and (name := entry_name_of(entry)) is not None:
            what = f"{printable(name)!r} is not the name of a repository with a tag"
            lines[f"{what}: {entry.digest} is served by digest only"] = None
    return _limit_lines(list(lines))


def _describe_conflict(
    entry: Descriptor, lost_names: Sequence[ServedName], kept_names: Sequence[ServedName], winner: str
) -> str:
    where = f"as {_format_name(kept_names[0])}" if kept_names else "by digest only"
    return f"two images have the name {_format_name(lost_names[0])}: {winner} is served under it; {entry.digest} is served {where}"


def find_unnamed_entries(entries: Sequence[Descriptor]) -> list[Descriptor]:
    """Return the entries without a name whose digest no other entry has a name for, each once."""
    named = {entry.digest for entry in entries if entry_name_of(entry) is not None}
    return list({entry.digest: entry for entry in entries if entry.digest not in named}.values())


def describe_unnamed(digests: Sequence[str], what: str) -> str:
    """Return the line about what has no name."""
    shown = ", ".join(digests[:_MAX_DIGESTS])
    more = len(digests) - _MAX_DIGESTS
    also = f" and {more} more" if more > 0 else ""
    return f"{len(digests)} {what} without a name, served by digest only: {shown}{also}"


def _format_name(spelling: ServedName) -> str:
    repository, tag = spelling
    return f"{repository}:{tag}"


def _limit_lines(lines: list[str]) -> list[str]:
    more = len(lines) - _MAX_LINES
    return [*lines[:_MAX_LINES], f"and {more} more such images"] if more > 0 else lines
