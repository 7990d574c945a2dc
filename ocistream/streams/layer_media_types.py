"""Media types of image layers: family (OCI or Docker), codec and conversion; detect layers by first bytes."""

from __future__ import annotations

from typing import Final

from ocistream import limits
from ocistream.streams.compression import NONE, detect_codec

__all__ = [
    "DOCKER_CODECS",
    "DOCKER_LAYER",
    "OCI_LAYER",
    "codec_name",
    "is_probably_json",
    "is_probably_layer",
    "layer_media_type",
    "media_type_family",
    "to_oci_media_type",
]

#: The two families, by what their layers' media types begin with (image-spec, layer.md; Docker's schema 2).
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

#: Family -> name of a codec -> suffix. Docker knows no zstd, but some builders write it all the same.
_SUFFIXES: Final = {
    OCI_LAYER: {"none": "", "gzip": "+gzip", "zstd": "+zstd"},
    DOCKER_LAYER: {"none": "", "gzip": ".gzip", "zstd": ".zstd"},
}
_FAMILY_AND_CODEC: Final = {
    family + suffix: (family, name) for family, of in _SUFFIXES.items() for name, suffix in of.items()
}
#: Docker's names for layers that are distributed elsewhere, and OCI's.
_FOREIGN: Final = {
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}
#: The codecs that Docker's own media types know.
DOCKER_CODECS: Final = frozenset({"none", "gzip"})

_TAR_MAGIC: Final = slice(257, 262)


def media_type_family(kind: str) -> str | None:
    """Give the family of a layer's media type, or None where it is not that of an image layer."""
    return _FAMILY_AND_CODEC[kind][0] if kind in _FAMILY_AND_CODEC else None


def codec_name(kind: str) -> str | None:
    """Give the name of the codec that a layer's media type says, or None where it is not that of an image layer."""
    return _FAMILY_AND_CODEC[kind][1] if kind in _FAMILY_AND_CODEC else None


def layer_media_type(family: str, codec: str) -> str:
    """Give the media type of a layer of a family, compressed with a codec."""
    return family + _SUFFIXES[family][codec]


def to_oci_media_type(kind: str) -> str:
    """Give what OCI calls a layer of this media type; what it has no other name for stays."""
    if kind in _FAMILY_AND_CODEC:
        return layer_media_type(OCI_LAYER, _FAMILY_AND_CODEC[kind][1])
    return _FOREIGN.get(kind, kind)


def is_probably_layer(beginning: bytes) -> bool:
    """Guess from its first bytes whether a blob of which nothing else is known may be a layer: compressed, or a tar."""
    return detect_codec(beginning) is not NONE or beginning[_TAR_MAGIC] == b"ustar" or beginning[:512] == bytes(512)


def is_probably_json(beginning: bytes) -> bool:
    """Guess from its first bytes whether a file of which nothing else is known is JSON, and so certainly no layer.

    (A tar begins with the name of its first entry, and that may well begin with a brace.)
    """
    return beginning[: limits.KIB].lstrip()[:1] == b"{" and not is_probably_layer(beginning)
