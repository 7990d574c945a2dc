"""The annotations of `index.json` that list omitted blobs, with the reason for each, and blobs whose rest follows.

An annotation, not a blob: skopeo and podman would take an artifact for another image, and ask for a tag. Plain lines,
not JSON in JSON: tens of thousands of digests are read one by one. Manifests are never omitted, because they list the
blobs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.errors import ArchiveError, OcistreamError
from ocistream.oci.reference import is_digest, parse_reference, printable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: The name of the annotation.
OMITTED_ANNOTATION: Final = "vnd.ocistream.omitted"

#: The annotation of `index.json` that lists partial blobs. Each line has a digest and a byte offset.
PARTIAL_BLOBS: Final = "vnd.ocistream.partial-blobs"

#: A line that is not blank, without blanks at its beginning.
_LINE: Final = re.compile(r"\S.*")
_OFFSET: Final = re.compile(r"[1-9][0-9]{0,17}\Z")

#: The remote side listed the blob. The name is, for example, a registry's repository.
HAVE: Final = "have"
#: The blob is part of an image that the remote side is known to have.
BASE: Final = "base"
#: The blob was not selected.
NOT_SELECTED: Final = "only"
#: The blob is in another volume of the same archive. The name is the name of that volume.
VOLUME: Final = "volume"

#: Characters of a name that are printed and written.
_MAX_NAME: Final = 512
#: At most this many repositories of a name are parsed.
_MAX_ORIGINS: Final = 8


class OmissionReason(NamedTuple):
    """Why a blob was omitted: one of the kinds above (or of a later version), and a name.

    The name tells where the blob is, so that a push can mount it from there.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        """Return the reason as text, for one blob or many."""
        name = printable(self.name, _MAX_NAME)
        texts = {
            HAVE: f"in {name}",
            BASE: f"in {name}",
            NOT_SELECTED: "not requested",
            VOLUME: f"in the volume {name}",
        }
        return texts.get(self.kind, f"{printable(self.kind)} {name}".rstrip())

    def describe(self) -> str:
        """Return the reason with why the place of the blobs matters, for one blob or many."""
        return f"{self}, so not copied again" if self.kind in {HAVE, BASE} else str(self)

    @property
    def repositories(self) -> tuple[str, ...]:
        """The repositories, without registry, that may have the blob: candidates to mount it from."""
        if self.kind not in {HAVE, BASE}:
            return ()
        repositories: list[str] = []
        # A list may name several repositories.
        for name in self.name.split()[:_MAX_ORIGINS]:
            try:
                reference = parse_reference(name, default_tag=False)
            except OcistreamError:
                continue
            if reference.registry != "docker.io":
                repositories.append(reference.repository)
            else:
                repositories += [reference.repository.removeprefix("library/"), reference.repository]
        return tuple(dict.fromkeys(repositories))


def format_omitted(omitted: Mapping[str, OmissionReason]) -> str:
    """Return the text of the annotation. The same blobs give the same text."""
    lines: list[str] = []
    for reason, digests in sorted(group_by_reason(omitted).items()):
        # A name from a list or an archive must not contain a line break.
        name = printable(reason.name, _MAX_NAME)
        lines += [f"# {reason.kind} {name}".rstrip(), *sorted(digests)]
    return "\n".join(lines)


def parse_omitted(text: str, wanted: Collection[str] | None = None) -> dict[str, OmissionReason]:
    """Return the reasons of the wanted digests, or of all. If a digest occurs twice, the first reason counts.

    Raises:
        ArchiveError: the annotation is malformed.
    """
    omitted: dict[str, OmissionReason] = {}
    reason = OmissionReason("", "")
    # One at a time: there may be tens of thousands.
    for match in _LINE.finditer(text):
        line = match[0].rstrip()
        if line.startswith("#"):
            kind, _, name = line[1:].strip().partition(" ")
            reason = OmissionReason(kind, name.strip())
        elif not is_digest(line):
            msg = (
                f"index.json has an annotation {OMITTED_ANNOTATION} with a line that is not a digest: "
                f"{printable(line)!r}"
            )
            raise ArchiveError(msg)
        elif wanted is None or line in wanted:
            omitted.setdefault(line, reason)
    return omitted


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


def group_by_reason(omitted: Mapping[str, OmissionReason]) -> dict[OmissionReason, list[str]]:
    """Return the digests of each reason."""
    groups: dict[OmissionReason, list[str]] = {}
    for digest, reason in omitted.items():
        groups.setdefault(reason, []).append(digest)
    return groups
