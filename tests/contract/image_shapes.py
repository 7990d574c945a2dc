"""The shapes of images, and their parts, determined without ocistream's code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Final

from tests.archives import children_of
from tests.images import MANIFESTS, Descriptor, Layout, small_image, tar_layer, two_platforms


def nested_index(layout: Layout, name: str) -> Descriptor:
    inner = two_platforms(layout)
    other = layout.image([tar_layer({"bin/arch": b"riscv"})], platform="linux/riscv64")
    return layout.index([layout.index([inner]), other], name=name)


def artifact(layout: Layout, name: str) -> Descriptor:
    subject = small_image(layout, name=f"{name}-subject")
    return layout.artifact(b"a list of parts", subject=subject, name=name)


def attestation(layout: Layout, image: Descriptor) -> Descriptor:
    """Write an attestation of an image, without a platform, as buildx writes it; return its index entry."""
    document = layout.read(layout.artifact(image["digest"].encode(), kind="application/vnd.in-toto+json")["digest"])
    del document["artifactType"]
    return {
        **layout.document(document),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.digest": image["digest"]},
    }


def with_attestation(layout: Layout, name: str) -> Descriptor:
    """An index as buildx writes it, with an attestation next to the image."""
    image = small_image(layout)
    return layout.index([image, attestation(layout, image)], name=name)


def many_layers(layout: Layout, name: str) -> Descriptor:
    small = [tar_layer({f"file-{number}": bytes([number])}) for number in range(40)]
    # One layer is several chunks long, and one occurs twice.
    return layout.image([*small, (5 << 20) // 2, small[0]], name=name)


SHAPES: Final[dict[str, Callable[[Layout, str], Descriptor]]] = {
    "single": lambda layout, name: small_image(layout, name=name),
    "index": lambda layout, name: two_platforms(layout, name=name),
    "nested-index": nested_index,
    "artifact": artifact,
    "attestation": with_attestation,
    "docker": lambda layout, name: small_image(layout, name=name, media="docker"),
    "docker-list": lambda layout, name: two_platforms(layout, name=name, media="docker"),
    "sha512": lambda layout, name: small_image(layout, name=name, algorithm="sha512"),
    "empty-blob": lambda layout, name: layout.image([b"", tar_layer({"a": b"b"}, compression="zstd")], name=name),
    "no-layers": lambda layout, name: layout.image([], name=name),
    "many-layers": many_layers,
}


@dataclasses.dataclass
class Parts:
    """The parts of images: the bytes of manifests, children first, and the bytes of blobs, by digest."""

    manifests: dict[str, bytes] = dataclasses.field(default_factory=dict)
    blobs: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def add(self, layout: Layout, descriptor: Descriptor) -> None:
        """Add a manifest and everything below it."""
        document = layout.read(descriptor["digest"])
        for child in children_of(document):
            if child["mediaType"] in MANIFESTS:
                self.add(layout, child)
            else:
                self.blobs[child["digest"]] = layout.file(child["digest"]).read_bytes()
        self.manifests[descriptor["digest"]] = layout.file(descriptor["digest"]).read_bytes()


def named_in(layout: Layout) -> list[Descriptor]:
    """Return the entries of a layout's index.json."""
    entries: list[Descriptor] = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    return entries


def parts_of(layout: Layout, *descriptors: Descriptor) -> Parts:
    """Return the parts of some images of a layout, or of all named ones."""
    parts = Parts()
    for descriptor in descriptors or named_in(layout):
        parts.add(layout, descriptor)
    return parts
