"""The image-spec's documents as values: descriptors, platforms, manifests and indexes, and how they are parsed.

Bytes in, frozen values out. A document is parsed to be understood, never to be written again: what travels is the
`raw` bytes of a `Manifest`. It may not do any I/O.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError, InvalidNameError, OcistreamError, UnsupportedError
from ocistream.reference import is_digest, parse_digest, printable
from ocistream.strict_json import canonical_json, parse_json, passed_over

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Descriptor",
    "Document",
    "Manifest",
    "Platform",
    "parse_descriptor",
    "parse_document",
    "parse_platform",
]

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

#: What a blob is called of which only the digest is known.
UNKNOWN_TYPE: Final = "application/octet-stream"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
#: What `Accept` asks a registry for, the richest first.
ACCEPTED_TYPES: Final = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
#: Documents that hold content in ways this version does not carry; refused rather than half carried.
_UNSUPPORTED_TYPES: Final = {
    "application/vnd.docker.distribution.manifest.v1+json": "a Docker schema 1 manifest",
    "application/vnd.docker.distribution.manifest.v1+prettyjws": "a Docker schema 1 manifest",
    "application/vnd.oci.artifact.manifest.v1+json": "an OCI artifact manifest (withdrawn before image-spec 1.1)",
    "application/vnd.cncf.oras.artifact.manifest.v1+json": "an ORAS artifact manifest",
}
#: Layers that a registry need not hold and that are never fetched from their `urls` (CVE-2020-15157).
_FOREIGN_TYPES: Final = frozenset(
    {
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    }
)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}\Z")
_MAX_SIZE: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture and what narrows them, in the words of Go's GOOS and GOARCH."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        """Give `os/architecture[/variant]`, with `(os_version)` behind the system where there is one."""
        system = f"{self.os}({self.os_version})" if self.os_version else self.os
        return "/".join(part for part in (system, self.architecture, self.variant) if part)

    def covers(self, other: Platform) -> bool:
        """Say whether `other` is what a user means who asks for this platform.

        A variant or version that is not asked for matches any; `arm64` and `arm64/v8`, `arm` and `arm/v7`,
        `amd64` and `amd64/v1` are the same (image-spec, image-index.md, "Platform Variants").
        """
        return (
            (self.os, self.architecture) == (other.os, other.architecture)
            and (not self.variant or _variant(self) == _variant(other))
            and (not self.os_version or self.os_version == other.os_version)
        )

    def prefers(self, other: Platform) -> bool:
        """Say whether `other` is the plain form of this platform, to be taken before its other variants."""
        return _variant(self) == _variant(other)


_DEFAULT_VARIANTS: Final = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


def _variant(platform: Platform) -> str:
    return platform.variant or _DEFAULT_VARIANTS.get(platform.architecture, "")


_ARCHITECTURE_ALIASES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
_PLATFORM = re.compile(r"([a-z0-9]+)(?:\(([A-Za-z0-9._-]+)\))?/([a-z0-9_-]+)(?:/([a-z0-9._-]+))?\Z")


def parse_platform(text: str) -> Platform:
    """Parse `OS/ARCHITECTURE[/VARIANT]`, such as `linux/arm64` or `windows(10.0.17763)/amd64`.

    Raises:
        InvalidNameError: it is not one.
    """
    if not (match := _PLATFORM.match(text)):
        msg = f"malformed platform {printable(text)!r}"
        raise InvalidNameError(msg, hint="write OS/ARCHITECTURE[/VARIANT], such as linux/arm64, or all")
    system, version, architecture, variant = match.groups()
    return Platform(system, _ARCHITECTURE_ALIASES.get(architecture, architecture), variant or "", version or "")


_NO_ANNOTATIONS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A promise: bytes of this media type, digest and size exist somewhere (image-spec, descriptor.md).

    `size` is in bytes. `digest` is `sha256:` or `sha512:` and lower-case hex: it was checked before this was made.
    """

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: _NO_ANNOTATIONS)
    artifact_type: str | None = None
    #: What else stands in the object of an `index.json`, which is written again: others' fields are to stay. As JSON,
    #: since thousands of dicts would be held.
    written: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def is_index(self) -> bool:
        """Whether this promises a list of further manifests."""
        return self.media_type in INDEX_TYPES

    @property
    def is_manifest(self) -> bool:
        """Whether this promises an image manifest, with a config and layers."""
        return self.media_type in MANIFEST_TYPES

    @property
    def is_foreign(self) -> bool:
        """Whether this promises a layer that is distributed elsewhere, and so never moved by us."""
        return self.media_type in _FOREIGN_TYPES

    def to_json(self) -> dict[str, Any]:
        """Give the descriptor as it stands in an `index.json`."""
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        document |= json.loads(self.written) if self.written else {}
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        if self.platform:
            document["platform"] = (document.get("platform") or {}) | _platform_json(self.platform)
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        return document


def _platform_json(platform: Platform) -> dict[str, str]:
    fields = {
        "architecture": platform.architecture,
        "os": platform.os,
        "os.version": platform.os_version,
        "variant": platform.variant,
    }
    return {key: value for key, value in fields.items() if value}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or index as it travels: its descriptor and its exact bytes."""

    descriptor: Descriptor
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Document:
    """What a manifest or index says, as far as moving it needs to know.

    An image manifest has `config` and `layers`; an index has `manifests`, and neither of the others. `subject` is
    what a referrer refers to. Nothing else is kept, since thousands of manifests are held at once.
    """

    media_type: str
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    artifact_type: str | None
    annotations: Mapping[str, str]


def parse_descriptor(fields: object, where: str) -> Descriptor:
    """Check one descriptor of a document; `where` names the place in errors.

    Raises:
        ArchiveError: a field is missing, of a wrong type, or out of range.
        UnsupportedError: the digest's algorithm is not registered.
    """
    if not isinstance(fields, dict):
        msg = f"{where} is not a descriptor"
        raise ArchiveError(msg)
    media_type, digest, size = fields.get("mediaType"), fields.get("digest"), fields.get("size")
    if not isinstance(media_type, str) or not _MEDIA_TYPE.match(media_type):
        msg = f"{where} has no legal mediaType"
        raise ArchiveError(msg)
    if not isinstance(digest, str):
        msg = f"{where} has no digest"
        raise ArchiveError(msg)
    if not is_digest(digest):
        try:
            parse_digest(digest)
        except InvalidNameError as error:
            msg = f"{where}: {error}"
            raise ArchiveError(msg) from error
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        msg = f"{where} has no legal size"
        raise ArchiveError(msg)
    return Descriptor(
        # There are few of them, and tens of thousands of descriptors.
        sys.intern(media_type),
        digest,
        size,
        _parse_platform_fields(fields.get("platform"), where),
        _parse_annotations(fields.get("annotations"), where),
        _optional_text(fields, "artifactType", where),
    )


def _optional_text(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return value or None
    msg = f"{where}: {key} is not a string"
    raise ArchiveError(msg)


def _parse_platform_fields(fields: object, where: str) -> Platform | None:
    if fields is None:
        return None
    if not isinstance(fields, dict):
        msg = f"{where}: platform is not an object"
        raise ArchiveError(msg)
    keys = ("os", "architecture", "variant", "os.version")
    # There are few of these words, and thousands of platforms.
    platform = Platform(*(sys.intern(_optional_text(fields, key, where) or "") for key in keys))
    # Tools that know no platform write an empty one.
    return platform if platform.os and platform.architecture else None


def _parse_annotations(fields: object, where: str) -> Mapping[str, str]:
    if fields is None:
        return _NO_ANNOTATIONS
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        msg = f"{where}: annotations are not a map of strings"
        raise ArchiveError(msg)
    return {sys.intern(key): value for key, value in fields.items()} or _NO_ANNOTATIONS


def parse_document(descriptor: Descriptor, raw: bytes) -> Document:
    """Understand a manifest or index whose bytes were already verified against `descriptor`.

    Raises:
        ArchiveError: it is malformed, or it is not what it was referenced as (CVE-2021-41190).
        UnsupportedError: it is of a kind that is known and not carried.
    """
    what = f"manifest {descriptor.digest}"
    if kind := _UNSUPPORTED_TYPES.get(descriptor.media_type):
        msg = f"{what} is {kind}, which is not supported"
        raise UnsupportedError(msg)
    manifests, layers = Listing("manifests", what), Listing("layers", what, bare=True)
    fields = parse_json(
        raw, what, keys=_FIELDS, convert={"manifests": manifests, "layers": layers, "blobs": passed_over}
    )
    if fields.get("schemaVersion") == 1:
        msg = f"{what} is a Docker schema 1 manifest, which is not supported"
        raise UnsupportedError(msg, hint="push the image again with a current tool to have it converted")
    own_type = _optional_text(fields, "mediaType", what)
    if own_type is not None and own_type != descriptor.media_type:
        msg = f"{what} says it is {printable(own_type)!r} but was referenced as {descriptor.media_type!r}"
        raise ArchiveError(msg)
    if "manifests" in fields and ("layers" in fields or "config" in fields):
        msg = f"{what} claims to be an image and an index at once"
        raise ArchiveError(msg)
    # Something else that an index lists is a leaf, whose bytes are carried as they are.
    known = descriptor.is_index or descriptor.is_manifest
    if not known and fields.keys() & {"config", "layers", "blobs", "manifests"}:
        msg = f"{what} is of the type {descriptor.media_type}, which is not supported"
        raise UnsupportedError(msg)
    config = parse_descriptor(fields.get("config"), f"config of {what}") if descriptor.is_manifest else None
    subject = fields.get("subject")
    return Document(
        descriptor.media_type,
        _bare(config) if config else None,
        layers.found(fields) if descriptor.is_manifest else (),
        manifests.found(fields) if descriptor.is_index else (),
        None if subject is None else parse_descriptor(subject, f"subject of {what}"),
        _optional_text(fields, "artifactType", what),
        # A list of referrers shows them; of anything else, they would be held for nothing.
        _own_annotations(fields) if subject is not None else _NO_ANNOTATIONS,
    )


#: What of a manifest or index is looked at.
_FIELDS: Final = frozenset(
    {
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "manifests",
        "blobs",
        "subject",
        "artifactType",
        "annotations",
    }
)


def _bare(descriptor: Descriptor) -> Descriptor:
    """Drop what nobody asks of a config or layer, and of which there may be megabytes."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


class Listing:
    """Makes descriptors of the elements of a document's list while it is parsed.

    What is wrong with one is said by `found`: whether the list counts at all is known only when the whole document is.
    """

    def __init__(self, key: str, what: str, *, bare: bool = False, written: bool = False) -> None:
        """Name the list and its document. `bare` keeps no annotations, `written` keeps what `to_json` needs."""
        self._key = key
        self._what = what
        self._bare = bare
        self._written = written
        self._wrong: OcistreamError | None = None

    def __call__(self, place: int, item: object) -> Descriptor | None:
        """Make a descriptor of one element, or None where something was wrong."""
        if self._wrong is not None:
            return None
        try:
            if place >= limits.MAX_LISTED:
                msg = f"{self._what} has more than {limits.MAX_LISTED} {self._key}"
                raise ArchiveError(msg)
            descriptor = parse_descriptor(item, f"{self._key}[{place}] of {self._what}")
        except OcistreamError as error:
            self._wrong = error
            return None
        if self._bare:
            return _bare(descriptor)
        return replace(descriptor, written=_others(descriptor, item)) if self._written else descriptor

    def found(self, fields: Mapping[str, Any]) -> tuple[Descriptor, ...]:
        """Give the descriptors that `parse_json` has put into `fields`.

        Raises:
            ArchiveError: there is no such list, it is too long, or one of them is malformed.
            UnsupportedError: the algorithm of a digest is not registered.
        """
        if self._wrong is not None:
            raise self._wrong
        listed = fields.get(self._key)
        # Go writes an empty list as null.
        if listed is None and self._key in fields:
            return ()
        if not isinstance(listed, list):
            msg = f"{self._what} has no list of {self._key}"
            raise ArchiveError(msg)
        return tuple(listed)


def _others(descriptor: Descriptor, item: object) -> bytes | None:
    """Give what stands in an object and not in the descriptor that was made of it."""
    known = descriptor.to_json()
    fields = item if isinstance(item, dict) else {}
    others = {
        key: value
        for key, value in fields.items()
        if key != "annotations" and (key not in known or value != known[key])
    }
    return canonical_json(others) if others else None


def _own_annotations(fields: Mapping[str, Any]) -> Mapping[str, str]:
    """Give a document's own annotations, which nothing that moves it depends on: malformed ones are none."""
    annotations = fields.get("annotations")
    if isinstance(annotations, dict) and all(isinstance(value, str) for value in annotations.values()):
        return annotations
    return _NO_ANNOTATIONS


def platform_of_config(raw: bytes, what: str) -> Platform | None:
    """Read the platform out of an image configuration, or None where it names none.

    Raises:
        ArchiveError: the configuration is malformed.
    """
    fields = parse_json(raw, what, limits.MAX_CONFIG, keys={"os", "architecture", "variant", "os.version"})
    return _parse_platform_fields(fields, what)


def diff_ids_of_config(raw: bytes, what: str) -> tuple[str, ...]:
    """Read the digests of an image's plain layers, bottom first, out of its configuration (image-spec, config.md).

    Raises:
        ArchiveError: there are none, or they are malformed.
    """
    rootfs = parse_json(raw, what, limits.MAX_CONFIG, keys={"rootfs"}, convert={"history": passed_over}).get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    # Go writes an empty list as null.
    if isinstance(rootfs, dict) and listed is None:
        listed = []
    if not isinstance(listed, list) or not all(isinstance(item, str) and is_digest(item) for item in listed):
        msg = f"{what} has no list of diff_ids"
        raise ArchiveError(msg)
    return tuple(listed)


def is_media_type(text: str) -> bool:
    """Say whether this has the form of a media type (RFC 6838, section 4.2)."""
    return _MEDIA_TYPE.match(text) is not None


def media_type_of(raw: bytes, what: str) -> str:
    """Guess the media type of a manifest that came without one, from its shape.

    Raises:
        ArchiveError: it is no manifest.
    """
    fields = outline(raw, what)
    own_type = _optional_text(fields, "mediaType", what)
    if own_type:
        return own_type
    if "manifests" in fields:
        return OCI_INDEX
    if "layers" in fields or "config" in fields:
        return OCI_MANIFEST
    if fields.get("schemaVersion") == 1:
        return "application/vnd.docker.distribution.manifest.v1+json"
    msg = f"{what} is neither a manifest nor an index"
    raise ArchiveError(msg)


def outline(raw: bytes, what: str) -> dict[str, Any]:
    """Parse a manifest of any kind for what it says of itself; its lists are there, with nothing in them.

    Raises:
        ArchiveError: it is no JSON object.
    """
    keys = {"schemaVersion", "mediaType", "config", "layers", "manifests"}
    return parse_json(raw, what, keys=keys, convert={"layers": passed_over, "manifests": passed_over})
