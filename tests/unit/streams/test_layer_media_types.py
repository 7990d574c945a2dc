"""Media types of image layers: which are known, and how they map between Docker and OCI."""

from __future__ import annotations

import pytest

from ocistream.streams import compression
from ocistream.streams.compression import CODECS
from tests.recompression_checks import SUFFIXES

#: Family, codec, and the media type of both in the specifications.
KNOWN = [(family, codec, family + suffix) for family, of in SUFFIXES.items() for codec, suffix in of.items()]


@pytest.mark.parametrize(("family", "codec", "kind"), KNOWN)
def test_a_media_type_has_a_family_and_a_codec(family: str, codec: str, kind: str) -> None:
    assert (compression.media_type_family(kind), compression.codec_name(kind)) == (family, codec)
    assert compression.layer_media_type(family, codec) == kind


def test_every_codec_has_a_name_in_both_families() -> None:
    for family in (compression.OCI_LAYER, compression.DOCKER_LAYER):
        assert len({compression.layer_media_type(family, codec) for codec in CODECS}) == len(CODECS)
    assert set(CODECS) > compression.DOCKER_CODECS == {"none", "gzip"}


@pytest.mark.parametrize("codec", CODECS)
def test_docker_layers_have_oci_media_types(codec: str) -> None:
    oci = compression.layer_media_type(compression.OCI_LAYER, codec)
    assert compression.to_oci_media_type(compression.layer_media_type(compression.DOCKER_LAYER, codec)) == oci
    assert compression.to_oci_media_type(oci) == oci


@pytest.mark.parametrize("suffix", ["", ".gzip"])
def test_dockers_foreign_layers_have_oci_media_types(suffix: str) -> None:
    kind = f"application/vnd.docker.image.rootfs.foreign.diff.tar{suffix}"
    assert compression.to_oci_media_type(kind) == (
        "application/vnd.oci.image.layer.nondistributable.v1.tar" + suffix.replace(".", "+")
    )


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/octet-stream",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar.gzip",
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    ],
)
def test_anything_else_is_not_an_image_layer(kind: str) -> None:
    assert compression.media_type_family(kind) is compression.codec_name(kind) is None
    if "foreign" not in kind:
        assert compression.to_oci_media_type(kind) == kind
