"""Media types, platforms, descriptors, and manifests with their exact bytes, as immutable values; digests in memory.

`streams.chunks` verifies streams.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ocistream.errors import IntegrityError, InvalidNameError
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

#: The media type of a blob whose digest alone is known.
UNKNOWN_MEDIA_TYPE: Final = "application/octet-stream"
#: The size of a descriptor that was made from a digest alone.
UNKNOWN_SIZE: Final = -1

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
#: The `Accept` header for registries, OCI types first.
ACCEPTED_TYPES: Final = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
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


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture and an optional variant, in Go's GOOS and GOARCH terms."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        """Return `os/architecture[/variant]`, with `(os_version)` after the system if there is one."""
        system = f"{self.os}({self.os_version})" if self.os_version else self.os
        return "/".join(part for part in (system, self.architecture, self.variant) if part)

    def matches(self, other: Platform) -> bool:
        """Return whether a user who asks for this platform accepts `other`.

        A variant or version that this platform does not name matches any. `arm64` and `arm64/v8`, `arm` and `arm/v7`,
        `amd64` and `amd64/v1` are the same (image-spec, image-index.md, "Platform Variants").
        """
        return (
            (self.os, self.architecture) == (other.os, other.architecture)
            and (not self.variant or _variant(self) == _variant(other))
            and (not self.os_version or self.os_version == other.os_version)
        )

    def has_same_variant(self, other: Platform) -> bool:
        """Return whether `other` has the same variant. Such a platform is preferred to other variants that match."""
        return _variant(self) == _variant(other)


_DEFAULT_VARIANTS: Final = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


def _variant(platform: Platform) -> str:
    return platform.variant or _DEFAULT_VARIANTS.get(platform.architecture, "")


_ARCHITECTURE_ALIASES: Final = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
_PLATFORM = re.compile(r"([a-z0-9]+)(?:\(([A-Za-z0-9._-]+)\))?/([a-z0-9_-]+)(?:/([a-z0-9._-]+))?\Z")


def parse_platform(text: str) -> Platform:
    """Parse `OS/ARCHITECTURE[/VARIANT]`, such as `linux/arm64` or `windows(10.0.17763)/amd64`.

    Raises:
        InvalidNameError: the text is not a platform.
    """
    if not (match := _PLATFORM.match(text)):
        msg = f"malformed platform {printable(text)!r}"
        known = text in {*_ARCHITECTURE_ALIASES, *_ARCHITECTURE_ALIASES.values()}
        example = f"linux/{_ARCHITECTURE_ALIASES.get(text, text)}" if known else "linux/arm64"
        raise InvalidNameError(msg, hint=f"write OS/ARCHITECTURE[/VARIANT], such as {example}, or all")
    system, version, architecture, variant = match.groups()
    return Platform(system, _ARCHITECTURE_ALIASES.get(architecture, architecture), variant or "", version or "")


_NO_ANNOTATIONS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Media type, digest and size of content (image-spec, descriptor.md).

    `size` is in bytes. `digest` is `sha256:` or `sha512:` and lower-case hex. The caller has checked the digest.
    """

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: _NO_ANNOTATIONS)
    artifact_type: str | None = None
    #: The other fields of an entry of `index.json`, as JSON. That file is the one document that is written again, and
    #: other tools' fields must survive. JSON, because thousands of dicts would take too much memory.
    extra_json: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def is_index(self) -> bool:
        """Whether the media type is that of an index or of a Docker manifest list."""
        return self.media_type in INDEX_TYPES

    @property
    def is_manifest(self) -> bool:
        """Whether the media type is that of an image manifest, with a config and layers."""
        return self.media_type in MANIFEST_TYPES

    @property
    def is_foreign(self) -> bool:
        """Whether this is a layer that is distributed elsewhere. Such layers are never copied."""
        return self.media_type in _FOREIGN_TYPES

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor as an entry of `index.json`."""
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        document |= json.loads(self.extra_json) if self.extra_json else {}
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
    """A manifest or index: its descriptor and its exact bytes."""

    descriptor: Descriptor
    raw: bytes = field(repr=False)


def is_media_type(text: str) -> bool:
    """Return whether the text has the form of a media type (RFC 6838, section 4.2)."""
    return _MEDIA_TYPE.match(text) is not None


def compute_digest(content: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of small content in memory."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def check_content(descriptor: Descriptor, content: bytes) -> None:
    """Check the size and the digest of small content.

    Raises:
        IntegrityError: the content does not match the descriptor.
    """
    if len(content) != descriptor.size:
        raise size_error(descriptor, len(content))
    actual = compute_digest(content, descriptor.digest.partition(":")[0])
    if actual != descriptor.digest:
        raise digest_error(descriptor.digest, actual)


def digest_error(expected: str, actual: str) -> IntegrityError:
    """Return the error for bytes with another digest than the descriptor's."""
    return IntegrityError(f"digest mismatch: expected {expected}, got {actual}", digest=expected)


def size_error(descriptor: Descriptor, size: int) -> IntegrityError:
    """Return the error for a blob of the wrong size, of which `size` bytes were read."""
    more = "or more " if size > descriptor.size else ""
    msg = f"{descriptor.digest}: expected {descriptor.size} bytes, got {size} {more}".rstrip()
    return IntegrityError(msg, digest=descriptor.digest)
