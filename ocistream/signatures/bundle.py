"""Signatures in Sigstore bundles, which are the only layer of a referrer.

A bundle has the signature of the manifest's bytes, or a DSSE envelope with an in-toto statement about the manifest. Of
its verification material, only the presence of a certificate is read here: the signers that the user gave decide.
Sources: cosign's specs/BUNDLE_SPEC.md, Sigstore's protobuf-specs, the DSSE protocol, in-toto's statement v1.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError
from ocistream.oci.reference import printable
from ocistream.oci.referrers import SIGSTORE_BUNDLE
from ocistream.oci.strict_json import parse_json
from ocistream.signatures.messages import (
    RefusedSignatureError,
    SignedMessage,
    decode_base64,
    other_image_error,
    read_object,
)

#: The other spelling of the same version, inside of bundles.
_BUNDLE_TYPES: Final = frozenset({SIGSTORE_BUNDLE, "application/vnd.dev.sigstore.bundle+json;version=0.3"})
_BUNDLE_FIELDS: Final = frozenset({"mediaType", "verificationMaterial", "messageSignature", "dsseEnvelope"})
_CERTIFICATE_FIELDS: Final = frozenset({"certificate", "x509CertificateChain"})
_MATERIAL_FIELDS: Final = _CERTIFICATE_FIELDS | {"publicKey", "tlogEntries", "timestampVerificationData"}
_MESSAGE_FIELDS: Final = frozenset({"messageDigest", "signature"})
_DIGEST_FIELDS: Final = frozenset({"algorithm", "digest"})
_HASHES: Final = {"SHA2_256": "sha256", "SHA2_384": "sha384", "SHA2_512": "sha512"}
_ENVELOPE_FIELDS: Final = frozenset({"payload", "payloadType", "signatures"})
_SIGNATURE_FIELDS: Final = frozenset({"sig", "keyid"})
_STATEMENT: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPES: Final = frozenset({"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"})
_STATEMENT_FIELDS: Final = frozenset({"_type", "subject", "predicateType", "predicate"})
_SUBJECT_FIELDS: Final = frozenset({"name", "uri", "digest"})
#: The statement that an image is signed. An attestation, such as a scanner's report, may say that the image is bad.
_SIGNED: Final = "https://sigstore.dev/cosign/sign/v1"


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
        signed = _read_message_signature(read_object(fields["messageSignature"], _MESSAGE_FIELDS, what), manifest)
    else:
        signed = _read_envelope(read_object(fields["dsseEnvelope"], _ENVELOPE_FIELDS, "the DSSE envelope"), image)
    material = read_object(fields.get("verificationMaterial", {}), _MATERIAL_FIELDS, "verificationMaterial")
    if _CERTIFICATE_FIELDS & material.keys():
        return replace(signed, is_keyless=True, bundle=bundle)
    return signed


def _read_message_signature(fields: dict[str, Any], manifest: bytes | None) -> SignedMessage:
    if manifest is None:
        msg = "the manifest that it signs is missing"
        raise RefusedSignatureError(msg)
    digest = read_object(fields.get("messageDigest"), _DIGEST_FIELDS, "messageDigest")
    algorithm = _HASHES.get(str(digest.get("algorithm")))
    if algorithm is None:
        msg = "messageDigest has no known algorithm"
        raise ArchiveError(msg)
    stated = decode_base64(digest.get("digest"), "messageDigest")
    # Only to say what is wrong: the key's own hash of the bytes decides.
    if hashlib.new(algorithm, manifest).digest() != stated:
        raise other_image_error(f"{algorithm}:{stated.hex()}")
    return SignedMessage(manifest, decode_base64(fields.get("signature"), "the signature"))


def _read_envelope(fields: dict[str, Any], image: str) -> SignedMessage:
    if fields.get("payloadType") != _STATEMENT:
        msg = f"the DSSE envelope has a payload of the type {printable(str(fields.get('payloadType')), 80)!r}"
        raise RefusedSignatureError(msg)
    signatures = fields.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        msg = "the DSSE envelope must have exactly one signature"
        raise ArchiveError(msg)
    signature = decode_base64(
        read_object(signatures[0], _SIGNATURE_FIELDS, "the signature of the envelope").get("sig"), "the signature"
    )
    payload = decode_base64(fields.get("payload"), "the payload of the envelope")
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
        subject = read_object(item, _SUBJECT_FIELDS, "a subject")
        digests = subject.get("digest")
        stated = digests.get(algorithm) if isinstance(digests, dict) else None
        if stated == encoded:
            name = subject.get("name")
            return name if isinstance(name, str) and name else None
        named.append(stated)
    raise other_image_error(f"{algorithm}:{named[0]}")
