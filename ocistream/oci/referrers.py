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

#: An annotation of an entry of `index.json`: the name of a referrer with a tag of cosign's, a full name or the tag.
#: With an image's annotations, a referrer would be an image, and `ctr images import` fails to unpack a signature.
REFERRER_NAME: Final = "vnd.ocistream.image.name"
#: The same for the digest of an entry's subject. containerd (2.2 and later), and so Docker, writes it for referrers,
#: and does not make an image of an entry that has it.
SUBJECT: Final = "io.containerd.manifest.subject"

#: The layers of signatures: cosign's payloads, each with its signature in an annotation, and Sigstore bundles.
SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGSTORE_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNATURE_TYPES: Final = frozenset({SIMPLE_SIGNING, SIGSTORE_BUNDLE})

#: What to do with referrers: "copy", "skip", or "list" (as images, to inspect or verify everything).
ReferrerMode: TypeAlias = Literal["copy", "skip", "list"]

#: The suffixes of cosign's tags, and the kinds of the manifests with these tags.
_COSIGN: Final = {".sig": "signature", ".att": "attestation", ".sbom": "SBOM"}
#: A part of an artifact's type, and the kind that people know it by. The first match counts.
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
#: Reasons why a referrer is skipped, as users see them. A registry's list may have entries that are gone or have
#: another subject: clients never clean the lists that they keep.
PLATFORM_FILTERED: Final = "only some platforms of the index were copied (--platform all copies the complete index)"
NOT_EXPORTED: Final = "the source has only some platforms of their index"
EXCLUDED: Final = "--no-referrers"
RECOMPRESSED: Final = "their image was recompressed and has another digest"
NOT_IN_DOCKER_ARCHIVE: Final = "a docker-archive cannot contain them"
NOT_FOUND: Final = "they are listed, but do not exist"
SUBJECT_MISMATCH: Final = "they are listed, but do not name this image as their subject"
UNSUPPORTED_TYPE: Final = "their type is not supported"
DUPLICATE_TAG: Final = "another manifest has the same tag"
TAG_EXISTS: Final = "the destination has another one, which stays"
LISTING_DENIED: Final = "the registry does not list them"
LIST_TRUNCATED: Final = "the list of the registry is too long"
SUBJECT_MISSING: Final = "subject not in the source"
UNREADABLE: Final = "manifest missing or malformed"
#: Lengths of the algorithm and the digest in the tag of a referrers list (distribution-spec, "Referrers Tag Schema").
_TAGGED_ALGORITHM: Final = 32
_TAGGED_HEX: Final = 64
_COSIGN_TAG = re.compile(r"(sha256)-([0-9a-f]{64})(\.(?:sig|att|sbom))\Z")


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to another one, by its subject or by a `tag` of cosign's.

    `subject` is the digest of the other manifest. `descriptor` is as in a referrers list, with artifact type and
    annotations.
    """

    descriptor: Descriptor
    subject: str
    tag: str | None = None

    @property
    def key(self) -> tuple[str, str | None, str]:
        """A unique key of the reference."""
        return self.subject, self.tag, self.descriptor.digest

    @property
    def sort_key(self) -> tuple[str, str]:
        """The sort key for the referrers of one subject, so that the order does not depend on the registry."""
        return self.tag or "", self.descriptor.digest


@dataclass(frozen=True, slots=True)
class SkippedReferrer:
    """A referrer that is not copied, and the reason.

    `kind` is None if the referrers are unknown. `count` is their number if there are too many to name each. `subject`
    is None if it is not known what an entry refers to.
    """

    subject: str | None
    reason: str
    kind: str | None = None
    digest: str | None = None
    tag: str | None = None
    count: int | None = None

    @classmethod
    def from_referrer(cls, referrer: Referrer, reason: str) -> SkippedReferrer:
        """Return the record of a skipped referrer."""
        descriptor = referrer.descriptor
        return cls(
            referrer.subject,
            reason,
            classify_referrer(descriptor.artifact_type, referrer.tag),
            descriptor.digest,
            referrer.tag,
        )


def cosign_tags(digest: str) -> list[str]:
    """Return the tags under which cosign stores referrers of a manifest, or none if the tags would be too long."""
    tags = [digest.replace(":", "-") + suffix for suffix in _COSIGN]
    return tags if all(map(is_tag, tags)) else []


def cosign_subject(tag: str) -> str | None:
    """Return the digest of the manifest that a tag of cosign's belongs to, or None for other tags."""
    match = _COSIGN_TAG.match(tag)
    return f"{match[1]}:{match[2]}" if match else None


def fallback_tag(digest: str) -> str:
    """Return the tag of the referrers list that clients keep for registries without the referrers API."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:_TAGGED_ALGORITHM]}-{encoded[:_TAGGED_HEX]}"


def is_fallback_tag(tag: str) -> bool:
    """Return whether a tag looks like the tag of a referrers list."""
    return is_digest_tag(tag) and cosign_subject(tag) is None


def tagged_subject(tag: str) -> str | None:
    """Return the digest that a tag of cosign's or of a referrers list belongs to, or None for other tags."""
    if (subject := cosign_subject(tag)) is not None:
        return subject
    digest = tag.replace("-", ":", 1)
    return digest if is_fallback_tag(tag) and is_digest(digest) else None


def referrer_descriptor(descriptor: Descriptor, document: Document) -> Descriptor:
    """Return a manifest's descriptor as in a referrers list (distribution-spec, "Listing Referrers").

    It is built from the manifest, because registries omit annotations from their lists. So the same image gives the
    same archive from every registry.
    """
    kind = document.artifact_type or (document.config.media_type if document.config else None)
    return replace(strip_descriptor(descriptor), annotations=document.annotations, artifact_type=kind)


def strip_descriptor(descriptor: Descriptor) -> Descriptor:
    """Return a descriptor without platform, annotations and artifact type, which a list may say wrongly."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


def classify_referrer(artifact_type: str | None, tag: str | None = None) -> str:
    """Return the kind of a referrer by its artifact type, or by its tag of cosign's."""
    if tag is not None and cosign_subject(tag):
        return _COSIGN[tag[tag.rindex(".") :]]
    lowered = (artifact_type or "").lower()
    return next((kind for part, kind in _KIND_BY_TYPE_PART if part in lowered), "artifact")


def is_signature(document: Document) -> bool:
    """Return whether a manifest has signatures that can be checked."""
    return document.config is not None and any(layer.media_type in SIGNATURE_TYPES for layer in document.layers)


def format_kind_counts(kinds: Iterable[str]) -> str:
    """Return the counts as text: `2 signatures, 1 SBOM`."""
    counts = Counter(kinds)
    order = [*dict.fromkeys(_COSIGN.values()), "artifact"]
    return ", ".join(f"{counts[kind]} {kind}{'s' if counts[kind] > 1 else ''}" for kind in order if counts[kind])
