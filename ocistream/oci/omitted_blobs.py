"""The annotation of `index.json` that lists omitted blobs, and the reason why each blob was omitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream.errors import ArchiveError, OcistreamError
from ocistream.oci.reference import is_digest, parse_reference, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = [
    "BASE",
    "HAVE",
    "NOT_SELECTED",
    "OMITTED_ANNOTATION",
    "VOLUME",
    "OmissionReason",
    "format_omitted",
    "group_by_reason",
    "parse_omitted",
]

#: The annotation of an `index.json` that says it.
OMITTED_ANNOTATION: Final = "vnd.ocistream.left-out"

#: The other side has said that it has the blob; the name is a registry's repository, say.
HAVE: Final = "have"
#: It is part of an image that the other side is known to have.
BASE: Final = "base"
#: It was not among those that were asked for.
NOT_SELECTED: Final = "only"
#: It is in another volume of the same archive; the name is that one's.
VOLUME: Final = "volume"

#: Characters of a name that are shown, and written.
_MAX_NAME: Final = 512
#: So many of the names in it are looked at.
_MAX_ORIGINS: Final = 8


class OmissionReason(NamedTuple):
    """Why a blob was left out: one of the kinds above (or of a later version's), and the name that goes with it."""

    kind: str
    name: str

    def __str__(self) -> str:
        """Say it, of one blob or of many."""
        name = printable(self.name, _MAX_NAME)
        said = {
            HAVE: f"had by {name}",
            BASE: f"in {name}",
            NOT_SELECTED: "not asked for",
            VOLUME: f"in the volume {name}",
        }
        return said.get(self.kind, f"{printable(self.kind)} {name}".rstrip())

    @property
    def repositories(self) -> tuple[str, ...]:
        """The repositories, without their registry, in which the blob may be: what it could be mounted from."""
        if self.kind not in {HAVE, BASE}:
            return ()
        found: list[str] = []
        # A list may be of several.
        for name in self.name.split()[:_MAX_ORIGINS]:
            try:
                reference = parse_reference(name, default_tag=False)
            except OcistreamError:
                continue
            if reference.registry != "docker.io":
                found.append(reference.repository)
            else:
                found += [reference.repository.removeprefix("library/"), reference.repository]
        return tuple(dict.fromkeys(found))


def format_omitted(left_out: Mapping[str, OmissionReason]) -> str:
    """Write the annotation's text; the same blobs give the same text."""
    lines: list[str] = []
    for reason, digests in sorted(group_by_reason(left_out).items()):
        # A name out of a list or an archive cannot make two lines of it.
        name = printable(reason.name, _MAX_NAME)
        lines += [f"# {reason.kind} {name}".rstrip(), *sorted(digests)]
    return "\n".join(lines)


def parse_omitted(text: str, wanted: Collection[str] | None = None) -> dict[str, OmissionReason]:
    """Read the annotation's text, and give what it says of the wanted digests, or of all; the first reason counts.

    Raises:
        ArchiveError: it is malformed.
    """
    found: dict[str, OmissionReason] = {}
    reason = OmissionReason("", "")
    for line in _iterate_lines(text):
        if line.startswith("#"):
            kind, _, name = line[1:].strip().partition(" ")
            reason = OmissionReason(kind, name.strip())
        elif not is_digest(line):
            msg = (
                f"index.json has an annotation {OMITTED_ANNOTATION} with a line that is no digest: {printable(line)!r}"
            )
            raise ArchiveError(msg)
        elif wanted is None or line in wanted:
            found.setdefault(line, reason)
    return found


def group_by_reason(left_out: Mapping[str, OmissionReason]) -> dict[OmissionReason, list[str]]:
    """Give the digests of each reason."""
    groups: dict[OmissionReason, list[str]] = {}
    for digest, reason in left_out.items():
        groups.setdefault(reason, []).append(digest)
    return groups


def _iterate_lines(text: str) -> Iterator[str]:
    """Go through the lines that are not blank, one at a time: there may be tens of thousands."""
    start = 0
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if line := text[start:end].strip():
            yield line
        start = end + 1
