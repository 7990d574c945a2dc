"""An image with two signatures, an SBOM, and an attestation of one signature: every kind of referrer.

One signature has a tag of cosign; everything else has a subject. Made without ocistream's code.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Final

from tests import registry_http
from tests.images import OCI_CONFIG, OCI_MANIFEST, Descriptor, Layout, small_image

SIGNATURE: Final = "application/vnd.cncf.notary.signature"
SBOM: Final = "application/spdx+json"
ATTESTATION: Final = "application/vnd.in-toto+json"
REF_NAME: Final = "org.opencontainers.image.ref.name"
_SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"


@dataclasses.dataclass(frozen=True)
class Signed:
    """An image and its referrers; the attestation refers to the signature."""

    image: Descriptor
    signature: Descriptor
    sbom: Descriptor
    attestation: Descriptor
    cosign: Descriptor

    @property
    def cosign_tag(self) -> str:
        """The tag of cosign's signature."""
        return cosign_tag(self.image)

    @property
    def referrers(self) -> list[Descriptor]:
        """The referrers that name a subject."""
        return [self.signature, self.sbom, self.attestation]

    @property
    def hanging(self) -> set[str]:
        """The digests of all referrers of the image, direct and indirect."""
        return {found["digest"] for found in (*self.referrers, self.cosign)}

    def subjects(self) -> dict[str, list[Descriptor]]:
        """Return the referrers by the digest of their subject."""
        return {self.image["digest"]: [self.signature, self.sbom], self.signature["digest"]: [self.attestation]}

    def enter(self, layout: Layout, name: str | None) -> None:
        """Add the image and its referrers to index.json, as an archive lists them."""
        entries = [{**self.image, **({"annotations": {REF_NAME: name}} if name else {})}]
        entries += [self.listed(layout, referrer) for referrer in self.referrers]
        entries.append({**self.cosign, "annotations": {REF_NAME: self.cosign_tag}})
        layout.enter(*entries)

    @staticmethod
    def listed(layout: Layout, referrer: Descriptor) -> Descriptor:
        """Return the entry of a referrer in a list of referrers."""
        annotations = layout.read(referrer["digest"]).get("annotations")
        return {**referrer, **({"annotations": annotations} if annotations else {})}

    def seed(self, layout: Layout, host: str, repository: str, tag: str) -> None:
        """Push everything to a registry that lists referrers."""
        registry_http.seed(layout, self.image, host, repository, tag)
        for referrer in self.referrers:
            registry_http.seed(layout, referrer, host, repository)
        registry_http.seed(layout, self.cosign, host, repository, self.cosign_tag)


def cosign_tag(image: Descriptor, suffix: str = ".sig") -> str:
    """Return the tag under which cosign stores its data about an image."""
    return str(image["digest"]).replace(":", "-") + suffix


def referrer(layout: Layout, subject: Descriptor, kind: str, content: bytes, **annotations: str) -> Descriptor:
    """Write a manifest that refers to another one."""
    plain = layout.read(layout.artifact(content, kind=kind)["digest"])
    document = {**plain, "subject": {key: subject[key] for key in ("mediaType", "digest", "size")}}
    if annotations:
        document["annotations"] = annotations
    return {**layout.document(document), "artifactType": kind}


def cosign_signature(layout: Layout, image: Descriptor) -> Descriptor:
    """Write a signature as cosign does: a manifest of an image whose layer is not an image layer."""
    payload = json.dumps({"critical": {"image": {"docker-manifest-digest": image["digest"]}}}).encode()
    layer = {**layout.blob(payload, _SIMPLE_SIGNING), "annotations": {"dev.cosignproject.cosign/signature": "MEUC"}}
    config = layout.blob(json.dumps({"rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}).encode(), OCI_CONFIG)
    return layout.document({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]})


def signed(layout: Layout, image: Descriptor | None = None) -> Signed:
    """Write an image, or use the given one, and add all its referrers."""
    subject = image or small_image(layout)
    subject = {key: subject[key] for key in ("mediaType", "digest", "size")}
    signature = referrer(layout, subject, SIGNATURE, b"signed: " + subject["digest"].encode(), signer="me")
    return Signed(
        subject,
        signature,
        referrer(layout, subject, SBOM, b"made of: " + subject["digest"].encode()),
        referrer(layout, signature, ATTESTATION, b"seen: " + signature["digest"].encode()),
        cosign_signature(layout, subject),
    )
