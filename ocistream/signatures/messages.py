"""Read signed messages about an image from untrusted documents, and say why a signature does not count.

cosign stores a signature under a tag: each layer of a manifest is a payload, its annotation the signature. A Sigstore
bundle is the only layer of a referrer. It has the signature of the manifest's bytes, or a DSSE envelope with an in-toto
statement about the manifest. Of its verification material, only the presence of a certificate is read here: the
signers that the user gave decide.
Sources: cosign's specs/SIGNATURE_SPEC.md and specs/BUNDLE_SPEC.md, containers-signature(5), Sigstore's protobuf-specs,
the DSSE protocol, in-toto's statement v1.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import is_digest, printable
from ocistream.oci.referrers import SIGSTORE_BUNDLE
from ocistream.oci.strict_json import check_keys, parse_json

SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
#: The certificate of a keyless signature.
CERTIFICATE_ANNOTATION: Final = "dev.sigstore.cosign/certificate"
_KIND: Final = "cosign container image signature"
#: The other spelling of the same version, inside of bundles.
_BUNDLE_TYPES: Final = frozenset({SIGSTORE_BUNDLE, "application/vnd.dev.sigstore.bundle+json;version=0.3"})
_BUNDLE_FIELDS: Final = frozenset({"mediaType", "verificationMaterial", "messageSignature", "dsseEnvelope"})
_CERTIFICATE_FIELDS: Final = frozenset({"certificate", "x509CertificateChain"})
_MATERIAL_FIELDS: Final = _CERTIFICATE_FIELDS | {"publicKey", "tlogEntries", "timestampVerificationData"}
_HASHES: Final = {"SHA2_256": "sha256", "SHA2_384": "sha384", "SHA2_512": "sha512"}
_STATEMENT: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPES: Final = frozenset({"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"})
_STATEMENT_FIELDS: Final = frozenset({"_type", "subject", "predicateType", "predicate"})
#: The statement that an image is signed. An attestation, such as a scanner's report, may say that the image is bad.
_SIGNED: Final = "https://sigstore.dev/cosign/sign/v1"


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A message about an image, and its signature, which is not verified yet.

    `name` is the image's name in the message, or None. The signer wrote it, so it proves nothing about the registry.
    `is_statement` is whether the message is an in-toto statement, as DSSE encodes it, and not the manifest.
    `is_keyless` is whether a certificate came with the signature, and `bundle` the bundle that has it.
    """

    message: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    name: str | None = None
    is_statement: bool = False
    is_keyless: bool = False
    bundle: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """How many bytes are kept until the signature is verified."""
        return len(self.message) + len(self.signature) + len(self.bundle or b"")


#: The beginning of the reason for a signature by an identity that was not given.
OTHER_IDENTITY: Final = "it is signed by another identity"


class RefusedSignatureError(Exception):
    """The reason why a signature does not count, as text that continues after the name of the image."""


def _other_image_error(digest: object) -> RefusedSignatureError:
    """Return the reason for a message about another image than the one that it was found for."""
    shown = digest if isinstance(digest, str) and is_digest(digest) else printable(str(digest), 80)
    return RefusedSignatureError(f"the signature is for {shown}")


def _decode_base64(text: object, what: str) -> bytes:
    """Return the bytes of standard base64.

    Raises:
        ArchiveError: this is not base64 text, or it is empty.
    """
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        content = b""
    if not content:
        msg = f"{what} is not base64"
        raise ArchiveError(msg)
    return content


def _read_object(fields: object, what: str, *known_keys: str) -> dict[str, Any]:
    """Return a JSON object whose keys every parser reads alike.

    Raises:
        ArchiveError: this is not an object, or a key differs from a known one only in case.
    """
    if not isinstance(fields, dict):
        msg = f"{what} is not an object"
        raise ArchiveError(msg)
    check_keys(fields, frozenset(known_keys), what)
    return fields


def read_payload(payload: bytes, annotation: str, image: str) -> SignedMessage:
    """Return the message of a payload about the image with the digest `image`, and the signature in the annotation.

    Raises:
        RefusedSignatureError: the payload is about another image, or is not a signature.
        ArchiveError: the payload or the annotation is malformed.
    """
    what = "the payload of the signature"
    fields = parse_json(
        payload,
        what,
        limits.MAX_SIGNATURE_PAYLOAD,
        keys=frozenset({"critical"}),
        known_keys=frozenset({"critical", "optional"}),
    )
    critical = _read_object(fields.get("critical"), f"critical in {what}", "identity", "image", "type")
    image_fields = _read_object(critical.get("image"), f"image in {what}", "docker-manifest-digest")
    digest = image_fields.get("docker-manifest-digest")
    if digest != image:
        raise _other_image_error(digest)
    if critical.get("type") != _KIND:
        msg = f"{what} is not of the type {_KIND!r}"
        raise RefusedSignatureError(msg)
    identity = _read_object(critical.get("identity"), f"identity in {what}", "docker-reference")
    name = identity.get("docker-reference")
    signature = _decode_base64(annotation, f"the annotation {SIGNATURE_ANNOTATION}")
    return SignedMessage(payload, signature, name if isinstance(name, str) and name else None)


def read_bundle(bundle: bytes, image: str, manifest: bytes | None) -> SignedMessage:
    """Return the signed message in a bundle about the image with the digest `image`, whose bytes are `manifest`.

    `manifest` is None if the source does not have it.

    Raises:
        RefusedSignatureError: the bundle is about another image, attests something else than a signature, or signs the
            bytes of a manifest that the source does not have.
        ArchiveError: the bundle is malformed.
    """
    what = "the Sigstore bundle"
    fields = parse_json(bundle, what, limits.MAX_SIGNATURE_PAYLOAD, keys=_BUNDLE_FIELDS, known_keys=_BUNDLE_FIELDS)
    if str(fields.get("mediaType")) not in _BUNDLE_TYPES:
        msg = f"{what} is not of version 0.3"
        raise RefusedSignatureError(msg)
    if ("messageSignature" in fields) == ("dsseEnvelope" in fields):
        msg = f"{what} must have either a messageSignature or a dsseEnvelope"
        raise ArchiveError(msg)
    if "messageSignature" in fields:
        signed = _read_message_signature(fields["messageSignature"], manifest)
    else:
        signed = _read_envelope(fields["dsseEnvelope"], image)
    material = _read_object(fields.get("verificationMaterial", {}), "verificationMaterial", *_MATERIAL_FIELDS)
    if _CERTIFICATE_FIELDS & material.keys():
        return replace(signed, is_keyless=True, bundle=bundle)
    return signed


def _read_message_signature(value: object, manifest: bytes | None) -> SignedMessage:
    fields = _read_object(value, "the Sigstore bundle", "messageDigest", "signature")
    if manifest is None:
        msg = "the manifest that it signs is missing"
        raise RefusedSignatureError(msg)
    digest = _read_object(fields.get("messageDigest"), "messageDigest", "algorithm", "digest")
    algorithm = _HASHES.get(str(digest.get("algorithm")))
    if algorithm is None:
        msg = "messageDigest has no known algorithm"
        raise ArchiveError(msg)
    stated = _decode_base64(digest.get("digest"), "messageDigest")
    # Only to say what is wrong: the key's own hash of the bytes decides.
    if hashlib.new(algorithm, manifest).digest() != stated:
        raise _other_image_error(f"{algorithm}:{stated.hex()}")
    return SignedMessage(manifest, _decode_base64(fields.get("signature"), "the signature"))


def _read_envelope(value: object, image: str) -> SignedMessage:
    fields = _read_object(value, "the DSSE envelope", "payload", "payloadType", "signatures")
    if fields.get("payloadType") != _STATEMENT:
        msg = f"the DSSE envelope has a payload of the type {printable(str(fields.get('payloadType')), 80)!r}"
        raise RefusedSignatureError(msg)
    signatures = fields.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        msg = "the DSSE envelope must have exactly one signature"
        raise ArchiveError(msg)
    signature_fields = _read_object(signatures[0], "the signature of the envelope", "sig", "keyid")
    signature = _decode_base64(signature_fields.get("sig"), "the signature")
    payload = _decode_base64(fields.get("payload"), "the payload of the envelope")
    name = _check_statement(payload, image)
    return SignedMessage(encode_envelope(_STATEMENT, payload), signature, name, is_statement=True)


def encode_envelope(kind: str, payload: bytes) -> bytes:
    """Return what the signature of an envelope signs: DSSE's pre-authentication encoding."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def _check_statement(payload: bytes, image: str) -> str | None:
    """Check that a statement says that the image is signed, and return the name in it."""
    what = "the in-toto statement"
    fields = parse_json(
        payload,
        what,
        limits.MAX_SIGNATURE_PAYLOAD,
        keys=_STATEMENT_FIELDS - {"predicate"},
        known_keys=_STATEMENT_FIELDS,
    )
    if str(fields.get("_type")) not in _STATEMENT_TYPES:
        msg = f"{what} has an unknown type"
        raise ArchiveError(msg)
    if fields.get("predicateType") != _SIGNED:
        kind = printable(str(fields.get("predicateType")), 80)
        msg = f"an attestation ({kind}) is not a signature"
        raise RefusedSignatureError(msg)
    subjects = fields.get("subject")
    if not isinstance(subjects, list) or not subjects:
        msg = f"{what} has no subject"
        raise ArchiveError(msg)
    algorithm, _, encoded = image.partition(":")
    named: list[object] = []
    for item in subjects:
        subject = _read_object(item, "a subject", "name", "uri", "digest")
        digests = subject.get("digest")
        stated = digests.get(algorithm) if isinstance(digests, dict) else None
        if stated == encoded:
            name = subject.get("name")
            return name if isinstance(name, str) and name else None
        named.append(stated)
    raise _other_image_error(f"{algorithm}:{named[0]}")
