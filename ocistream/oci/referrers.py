"""Referrers (signatures, SBOMs, attestations): their tags, kinds, and the reasons for skipping them.

Values and names only. The registry and layout packages find referrers.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocistream.oci.descriptor import Descriptor
from ocistream.oci.reference import is_digest, is_digest_tag, is_tag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocistream.oci.documents import Document

__all__ = [
    "DUPLICATE_TAG",
    "EXCLUDED",
    "LISTING_DENIED",
    "LIST_TRUNCATED",
    "NOT_EXPORTED",
    "NOT_FOUND",
    "NOT_IN_DOCKER_ARCHIVE",
    "PLATFORM_FILTERED",
    "RECOMPRESSED",
    "SUBJECT_MISMATCH",
    "SUBJECT_MISSING",
    "TAG_EXISTS",
    "UNREADABLE",
    "UNSUPPORTED_TYPE",
    "Referrer",
    "ReferrerMode",
    "SkippedReferrer",
    "classify_referrer",
    "cosign_subject",
    "cosign_tags",
    "fallback_tag",
    "format_kind_counts",
    "is_fallback_tag",
    "referrer_descriptor",
    "strip_descriptor",
    "tagged_subject",
]

#: What is done with what hangs on an image: it goes along, or is left behind, or, where all there is is only looked at,
#: it is an image like any other.
ReferrerMode: TypeAlias = Literal["along", "left", "listed"]

#: What cosign puts behind a digest to make a tag of it, and what stands there.
_COSIGN: Final = {".sig": "signature", ".att": "attestation", ".sbom": "SBOM"}
#: A part of an artifact's type -> what people call it. The first that fits counts.
_KIND_BY_TYPE_PART: Final = (
    ("in-toto", "attestation"),
    (".att.", "attestation"),
    ("attestation", "attestation"),
    ("spdx", "SBOM"),
    ("cyclonedx", "SBOM"),
    ("syft", "SBOM"),
    ("sbom", "SBOM"),
    ("signature", "signature"),
    (".sig.", "signature"),
    ("sigstore.bundle", "signature"),
)
#: Why something is left behind, as it is said after `left behind:`.
PLATFORM_FILTERED: Final = "of the index only some platforms were taken (--platform all takes all of it)"
NOT_EXPORTED: Final = "the source has only some platforms of the index that they belong to"
EXCLUDED: Final = "--no-referrers"
RECOMPRESSED: Final = "with its layers compressed anew, their image has another digest"
NOT_IN_DOCKER_ARCHIVE: Final = "a docker-archive has no place for them"
NOT_FOUND: Final = "they are listed, but not there"
SUBJECT_MISMATCH: Final = "they are listed, but do not say themselves that they belong to it"
UNSUPPORTED_TYPE: Final = "they are of a kind that is not supported"
DUPLICATE_TAG: Final = "another one has the same tag"
TAG_EXISTS: Final = "another one is there, and stays (copy --tags 'sha256-*.*' replaces it)"
LISTING_DENIED: Final = "the registry does not tell"
LIST_TRUNCATED: Final = "the registry's list is longer than is read"
SUBJECT_MISSING: Final = "subject not in the source"
UNREADABLE: Final = "manifest missing or malformed"
#: So much of an algorithm's name and of a digest stands in the tag under which referrers are listed.
_TAGGED_ALGORITHM: Final = 32
_TAGGED_HEX: Final = 64
_COSIGN_TAG = re.compile(r"(sha256)-([0-9a-f]{64})(\.(?:sig|att|sbom))\Z")


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that hangs on another one, whose digest is `subject`: by naming it, or by a `tag` of cosign's.

    `descriptor` is as lists of referrers have it, with the artifact's type and annotations.
    """

    descriptor: Descriptor
    subject: str
    tag: str | None = None

    @property
    def key(self) -> tuple[str, str | None, str]:
        """What it is the only one of."""
        return self.subject, self.tag, self.descriptor.digest

    @property
    def sort_key(self) -> tuple[str, str]:
        """By what all that hangs on one subject is sorted, in whatever order a registry lists it."""
        return self.tag or "", self.descriptor.digest


@dataclass(frozen=True, slots=True)
class SkippedReferrer:
    """What hangs on an image and does not go along, and why; of `kind` None nobody knows what there is.

    `count` is how many it stands for, where there are too many to name each. Without a `subject` it is not known what
    the entry refers to.
    """

    subject: str | None
    why: str
    kind: str | None = None
    digest: str | None = None
    tag: str | None = None
    count: int | None = None

    @classmethod
    def from_referrer(cls, attached: Referrer, why: str) -> SkippedReferrer:
        """Leave something behind."""
        descriptor = attached.descriptor
        return cls(
            attached.subject,
            why,
            classify_referrer(descriptor.artifact_type, attached.tag),
            descriptor.digest,
            attached.tag,
        )


def cosign_tags(digest: str) -> list[str]:
    """Give the tags under which cosign keeps what it knows of a manifest; none where they would be too long."""
    tags = [digest.replace(":", "-") + suffix for suffix in _COSIGN]
    return tags if all(map(is_tag, tags)) else []


def cosign_subject(tag: str) -> str | None:
    """Give the digest of what a tag of cosign's stands beside; None for any other tag."""
    match = _COSIGN_TAG.match(tag)
    return f"{match[1]}:{match[2]}" if match else None


def fallback_tag(digest: str) -> str:
    """Give the tag under which clients list what refers to a manifest, where a registry does not."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:_TAGGED_ALGORITHM]}-{encoded[:_TAGGED_HEX]}"


def is_fallback_tag(tag: str) -> bool:
    """Say whether a tag looks like one under which referrers are listed."""
    return is_digest_tag(tag) and cosign_subject(tag) is None


def tagged_subject(tag: str) -> str | None:
    """Return the digest that a tag of cosign's, or of a list of referrers, stands beside; None for any other tag."""
    if (subject := cosign_subject(tag)) is not None:
        return subject
    digest = tag.replace("-", ":", 1)
    return digest if is_fallback_tag(tag) and is_digest(digest) else None


def referrer_descriptor(descriptor: Descriptor, document: Document) -> Descriptor:
    """Give a manifest's descriptor as lists of referrers have it (distribution-spec, "Listing Referrers").

    Made of the manifest itself, it is the same whichever registry it came from.
    """
    kind = document.artifact_type or (document.config.media_type if document.config else None)
    return replace(strip_descriptor(descriptor), annotations=document.annotations, artifact_type=kind)


def strip_descriptor(descriptor: Descriptor) -> Descriptor:
    """Give a descriptor without what some list says of it."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


def classify_referrer(artifact_type: str | None, tag: str | None = None) -> str:
    """Say what people call something of this type, or under this tag of cosign's."""
    if tag is not None and cosign_subject(tag):
        return _COSIGN[tag[tag.rindex(".") :]]
    lowered = (artifact_type or "").lower()
    return next((kind for part, kind in _KIND_BY_TYPE_PART if part in lowered), "artifact")


def format_kind_counts(kinds: Iterable[str]) -> str:
    """Count for people: `2 signatures, 1 SBOM`."""
    counts = Counter(kinds)
    known = [*dict.fromkeys(_COSIGN.values()), "artifact"]
    return ", ".join(f"{counts[kind]} {kind}{'s' if counts[kind] > 1 else ''}" for kind in known if counts[kind])
