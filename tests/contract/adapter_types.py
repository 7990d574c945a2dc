"""The types that the contract's tests and the adapter share: values only, none of them ocistream's own."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, Literal

#: Values of `Skipped.reason`: only some platforms of the subject are copied; no referrers are wanted; the subject is
#: missing; the referrer is missing; an entry that may be an image is missing; another referrer has the same tag.
NOT_CHOSEN: Final = "not chosen"
NOT_WANTED: Final = "not wanted"
NO_SUBJECT: Final = "no subject"
MISSING: Final = "missing"
UNREADABLE: Final = "unreadable"
SAME_TAG: Final = "same tag"

#: Whether referrers are listed as images of their own, copied with their subjects, or skipped.
ReferrerChoice = Literal["list", "copy", "skip"]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to read: platforms (none: all), and which images. `asked` is False for a default platform.

    `images` are names or digests, or every entry of the index, every image among the entries, or the only image.
    """

    platforms: tuple[str, ...] = ()
    asked: bool = True
    referrers: ReferrerChoice = "list"
    images: tuple[str, ...] | Literal["entries", "images", "only"] = "entries"


EVERYTHING: Final = Wanted()


@dataclasses.dataclass(frozen=True)
class Piece:
    """A descriptor."""

    media_type: str
    digest: str
    size: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A manifest or an index: its bytes, and the digests of the manifests that it lists."""

    piece: Piece
    raw: bytes
    children: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Referrer:
    """A manifest that refers to another one by its subject, or by a tag of cosign."""

    subject: str
    digest: str
    tag: str | None
    artifact_type: str | None
    annotations: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A referrer that is not copied. It has a digest or a tag, depending on the source."""

    subject: str | None
    digest: str | None
    tag: str | None
    kind: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The contents of a source: images (name and digest), manifests (children first), and blobs, each once.

    `absent` are manifests that an index lists and the source lacks. `early` are blobs that the source delivered before
    it knew its images; `unnamed` are those of them whose digest the source did not know.
    """

    images: tuple[tuple[str, str], ...]
    manifests: tuple[Manifest, ...]
    blobs: tuple[Piece, ...]
    configs: frozenset[str]
    absent: tuple[str, ...]
    referrers: tuple[Referrer, ...]
    skipped: tuple[Skipped, ...]
    size: int
    early: dict[str, bytes] = dataclasses.field(default_factory=dict)
    unnamed: frozenset[str] = frozenset()
    #: The stores' own value; only the adapter reads it.
    native: Any = dataclasses.field(default=None, repr=False, compare=False)
