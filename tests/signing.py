"""Signatures of images as cosign and Sigstore's clients make them, made without ocistream's code.

The layouts and fields are those of cosign's specs/SIGNATURE_SPEC.md and specs/BUNDLE_SPEC.md.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from tests.images import OCI_CONFIG, OCI_EMPTY, OCI_MANIFEST, Descriptor, Layout
from tests.signed_image import cosign_tag

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
ANNOTATION: Final = "dev.cosignproject.cosign/signature"
IN_TOTO: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
SIGN_V1: Final = "https://sigstore.dev/cosign/sign/v1"
CRITICAL_TYPE: Final = "cosign container image signature"

Kind = Literal["p256", "p384", "p384-sha256", "p521", "rsa", "rsa1024", "ed25519"]
#: The forms of a signature: under cosign's tag, and two forms of bundles.
Form = Literal["tag", "dsse", "message"]
FORMS: Final[tuple[Form, ...]] = ("tag", "dsse", "message")
_Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclasses.dataclass(frozen=True)
class Signer:
    """A private key, and the file of its public key."""

    private: _Private
    path: Path
    hash: hashes.HashAlgorithm

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            return self.private.sign(message, ec.ECDSA(self.hash))
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, padding.PKCS1v15(), self.hash)
        return self.private.sign(message)


def signer(path: Path, kind: Kind = "p256") -> Signer:
    """Make a key pair, and write the public key to a file."""
    private = _generate(kind)
    path.write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return Signer(private, path, hashes.SHA384() if kind == "p384" else hashes.SHA256())


def _generate(kind: Kind) -> _Private:
    curves: dict[str, ec.EllipticCurve] = {
        "p256": ec.SECP256R1(),
        "p384": ec.SECP384R1(),
        "p384-sha256": ec.SECP384R1(),
        "p521": ec.SECP521R1(),
    }
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind in curves:
        return ec.generate_private_key(curves[kind])
    # The tests need a short key.
    size = 1024 if kind == "rsa1024" else 2048
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


def payload(digest: str, name: str = "registry.example.com/app", *, kind: str = CRITICAL_TYPE) -> bytes:
    """Return the payload that cosign signs."""
    document = {
        "critical": {
            "identity": {"docker-reference": name},
            "image": {"docker-manifest-digest": digest},
            "type": kind,
        },
        "optional": None,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def tag_signature(
    layout: Layout, signatures: Sequence[tuple[bytes, bytes]], *, annotations: Mapping[str, str] | None = None
) -> Descriptor:
    """Write a signature image of payloads and their signatures."""
    layers = [
        {
            **layout.blob(content, SIMPLE_SIGNING),
            "annotations": {ANNOTATION: base64.b64encode(signature).decode(), **(annotations or {})},
        }
        for content, signature in signatures
    ]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}}).encode()
    return layout.document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": layout.blob(config, OCI_CONFIG),
            "layers": layers,
        }
    )


def sign_with_tag(
    layout: Layout, image: Descriptor, *signers: Signer, name: str = "registry.example.com/app"
) -> Descriptor:
    """Sign an image as cosign does by default, and add the signature to index.json under its tag."""
    content = payload(image["digest"], name)
    signature = tag_signature(layout, [(content, one.sign(content)) for one in signers])
    enter(layout, signature, cosign_tag(image))
    return signature


def sign(form: Form, layout: Layout, image: Descriptor, one: Signer) -> Descriptor:
    """Sign an image in one of the forms, and add the signature to index.json."""
    if form == "tag":
        return sign_with_tag(layout, image, one)
    if form == "dsse":
        return bundle_referrer(layout, image, bundle(dsseEnvelope=envelope(statement(image["digest"]), one)))
    content = bundle(messageSignature=message_signature(manifest_of(layout, image), one))
    return bundle_referrer(layout, image, content)


def statement(digest: str, *, predicate_type: str = SIGN_V1) -> bytes:
    """Return the in-toto statement that cosign signs in a bundle."""
    algorithm, _, encoded = digest.partition(":")
    document = {
        "_type": STATEMENT,
        "subject": [{"digest": {algorithm: encoded}}],
        "predicateType": predicate_type,
        "predicate": {},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def envelope(content: bytes, one: Signer, *, kind: str = IN_TOTO) -> dict[str, Any]:
    """Return a DSSE envelope."""
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(content), content)
    return {
        "payload": _text(content),
        "payloadType": kind,
        "signatures": [{"sig": _text(one.sign(encoded))}],
    }


def message_signature(manifest: bytes, one: Signer) -> dict[str, Any]:
    """Return the signature of a manifest's bytes."""
    return {
        "messageDigest": {"algorithm": "SHA2_256", "digest": _text(hashlib.sha256(manifest).digest())},
        "signature": _text(one.sign(manifest)),
    }


def bundle(**content: Any) -> bytes:
    """Return a bundle with `dsseEnvelope` or `messageSignature`."""
    material = {"publicKey": {"hint": "bm9ib2R5"}, "tlogEntries": []}
    return json.dumps({"mediaType": BUNDLE, "verificationMaterial": material, **content}).encode()


def bundle_referrer(layout: Layout, image: Descriptor, content: bytes) -> Descriptor:
    """Write a bundle as a referrer of an image, and enter the referrer into index.json."""
    found = layout.document(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": BUNDLE,
            "config": layout.blob(b"{}", OCI_EMPTY),
            "layers": [layout.blob(content, BUNDLE)],
            "subject": {key: image[key] for key in ("mediaType", "digest", "size")},
        }
    )
    enter(layout, found)
    return {**found, "artifactType": BUNDLE}


def enter(layout: Layout, found: Descriptor, name: str | None = None) -> None:
    """Add an entry to index.json."""
    entry = {key: found[key] for key in ("mediaType", "digest", "size")}
    if name is not None:
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    layout.enter(entry)


def manifest_of(layout: Layout, image: Descriptor) -> bytes:
    """Return the bytes of a manifest."""
    return layout.file(cast("str", image["digest"])).read_bytes()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
