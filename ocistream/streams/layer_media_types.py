"""Media types of image layers: family (OCI or Docker), codec and conversion; detect layers by first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.oci.descriptor import Descriptor
from ocistream.streams.compression import NONE, detect_codec

if TYPE_CHECKING:
    from ocistream.streams.compression import Codec

#: The two families: prefixes of their layers' media types (image-spec, layer.md; Docker's schema 2).
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

#: Family to codec name to suffix. Docker does not define zstd, but some builders write it.
_SUFFIXES: Final = {
    OCI_LAYER: {"none": "", "gzip": "+gzip", "zstd": "+zstd"},
    DOCKER_LAYER: {"none": "", "gzip": ".gzip", "zstd": ".zstd"},
}
_FAMILY_AND_CODEC: Final = {
    family + suffix: (family, name) for family, of in _SUFFIXES.items() for name, suffix in of.items()
}
#: Docker's media types of layers that are distributed elsewhere, and OCI's.
_FOREIGN: Final = {
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}
#: The codecs that Docker's media types define.
DOCKER_CODECS: Final = frozenset({"none", "gzip"})

_TAR_MAGIC: Final = slice(257, 262)


def media_type_family(kind: str) -> str | None:
    """Return the family of an image layer's media type, or None for any other media type."""
    return _FAMILY_AND_CODEC[kind][0] if kind in _FAMILY_AND_CODEC else None


def codec_name(kind: str) -> str | None:
    """Return the codec name of an image layer's media type, or None for any other media type."""
    return _FAMILY_AND_CODEC[kind][1] if kind in _FAMILY_AND_CODEC else None


def layer_media_type(family: str, codec: str) -> str:
    """Return the media type of a layer of a family, compressed with a codec."""
    return family + _SUFFIXES[family][codec]


def describe_layer(digest: str, size: int, codec: Codec) -> Descriptor:
    """Return the descriptor of an OCI layer that is compressed with `codec`."""
    return Descriptor(layer_media_type(OCI_LAYER, codec.name), digest, size)


def to_oci_media_type(kind: str) -> str:
    """Return the OCI media type for a layer's media type; other media types stay the same."""
    if kind in _FAMILY_AND_CODEC:
        return layer_media_type(OCI_LAYER, _FAMILY_AND_CODEC[kind][1])
    return _FOREIGN.get(kind, kind)


def is_probably_layer(beginning: bytes) -> bool:
    """Return whether a blob may be a layer, judged by its first bytes: it is compressed, or a tar."""
    return detect_codec(beginning) is not NONE or beginning[_TAR_MAGIC] == b"ustar" or beginning[:512] == bytes(512)


def is_probably_json(beginning: bytes) -> bool:
    """Return whether a file is JSON and therefore not a layer, judged by its first bytes.

    A tar starts with the name of its first entry, which may start with a brace.
    """
    return beginning[: limits.KIB].lstrip()[:1] == b"{" and not is_probably_layer(beginning)
