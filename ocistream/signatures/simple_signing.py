"""Signatures as cosign stores them under a tag: each layer of a manifest is a payload, its annotation the signature.

Sources: cosign's specs/SIGNATURE_SPEC.md; containers-signature(5) for the payload.
"""

from __future__ import annotations

from typing import Final

from ocistream import limits
from ocistream.oci.strict_json import parse_json
from ocistream.signatures.messages import (
    RefusedSignatureError,
    SignedMessage,
    decode_base64,
    other_image_error,
    read_object,
)

SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
#: The certificate of a keyless signature.
CERTIFICATE_ANNOTATION: Final = "dev.sigstore.cosign/certificate"
_KIND: Final = "cosign container image signature"
_PAYLOAD_FIELDS: Final = frozenset({"critical", "optional"})
_CRITICAL_FIELDS: Final = frozenset({"identity", "image", "type"})
_IMAGE_FIELDS: Final = frozenset({"docker-manifest-digest"})
_IDENTITY_FIELDS: Final = frozenset({"docker-reference"})


def read_payload(payload: bytes, annotation: str, image: str) -> SignedMessage:
    """Return the message of a payload about the image with the digest `image`, and the signature in the annotation.

    Raises:
        RefusedSignatureError: the payload is about another image, or is not a signature.
        ArchiveError: the payload or the annotation is malformed.
    """
    what = "the payload of the signature"
    fields = parse_json(
        payload, what, limits.MAX_SIGNATURE_PAYLOAD, keys=frozenset({"critical"}), known_keys=_PAYLOAD_FIELDS
    )
    critical = read_object(fields.get("critical"), _CRITICAL_FIELDS, f"critical in {what}")
    digest = read_object(critical.get("image"), _IMAGE_FIELDS, f"image in {what}").get("docker-manifest-digest")
    if digest != image:
        raise other_image_error(digest)
    if critical.get("type") != _KIND:
        msg = f"{what} is not of the type {_KIND!r}"
        raise RefusedSignatureError(msg)
    name = read_object(critical.get("identity"), _IDENTITY_FIELDS, f"identity in {what}").get("docker-reference")
    signature = decode_base64(annotation, f"the annotation {SIGNATURE_ANNOTATION}")
    return SignedMessage(payload, signature, name if isinstance(name, str) and name else None)
