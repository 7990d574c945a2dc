"""A fake Sigstore without a server: a certificate authority, a log of certificates and a log of signatures.

The formats are those of Fulcio's certificate specification, RFC 6962 (timestamps of certificates, the tree of a log),
Rekor's entries and checkpoints, and Sigstore's protobuf-specs (bundles and trusted roots).
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.signing import BUNDLE, Signer, envelope, message_signature

IDENTITY: Final = "dev@example.com"
ISSUER: Final = "https://accounts.example.com"

_OID: Final = "1.3.6.1.4.1.57264.1"
_TIMESTAMPS: Final = "1.3.6.1.4.1.11129.2.4.2"
#: The host of the log, which clients compare with the name in its checkpoints. Nothing listens on port 9.
_LOG: Final = "127.0.0.1"
_LOG_URL: Final = f"http://{_LOG}:9"
_HASH: Final = ec.ECDSA(hashes.SHA256())
_LIFETIME: Final = dt.timedelta(minutes=10)
#: The number of entries in a log: the signature's entry is the second.
_SIZE: Final = 2


class FakeSigstore:
    """Issues certificates, and makes bundles with entries of its log. `trusted_root` is the file that trusts them."""

    def __init__(self, folder: Path) -> None:
        self._authority_key, self.certificate_log, self._log = (ec.generate_private_key(ec.SECP256R1()) for _ in "123")
        self._start = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=30)
        self._authority = self._make_authority()
        self.trusted_root = folder / "trusted_root.json"
        self.trusted_root.write_text(json.dumps(self.root_document()))

    def root_document(self) -> dict[str, Any]:
        """Return the trusted root."""
        period = {"start": self._start.isoformat().replace("+00:00", "Z")}
        chain = {"certificates": [{"rawBytes": _text(self._authority.public_bytes(Encoding.DER))}]}
        name = {"organization": "example.com", "commonName": "authority"}
        authority = {"subject": name, "uri": "https://ca.example.com", "certChain": chain, "validFor": period}
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [_describe_log(self._log, period)],
            "certificateAuthorities": [authority],
            "ctlogs": [_describe_log(self.certificate_log, period)],
        }

    def bundle(
        self,
        *,
        statement: bytes | None = None,
        manifest: bytes | None = None,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        authority: FakeSigstore | None = None,
        certificate_log: FakeSigstore | None = None,
        logged_after: dt.timedelta = _LIFETIME / 2,
        has_old_issuer: bool = True,
    ) -> dict[str, Any]:
        """Return a bundle that signs a statement or a manifest.

        Another `authority` may issue the certificate, and another `certificate_log` enter it. `logged_after` is the
        time from the certificate to the entry in the log. With `has_old_issuer`, the certificate has both forms of the
        issuer.
        """
        private = ec.generate_private_key(ec.SECP256R1())
        issued = (authority or self).issue(
            private.public_key(), identity, issuer, (certificate_log or self).certificate_log, has_old_issuer
        )
        pem = issued.public_bytes(Encoding.PEM)
        one = Signer(private, self.trusted_root, hashes.SHA256())
        content: dict[str, Any]
        if statement is not None:
            signed = envelope(statement, one)
            content, kind = {"dsseEnvelope": signed}, "dsse"
            spec = {
                "envelopeHash": _hash_of(json.dumps(signed).encode()),
                "payloadHash": _hash_of(statement),
                "signatures": [{"signature": signed["signatures"][0]["sig"], "verifier": _text(pem)}],
            }
        else:
            assert manifest is not None
            signed = message_signature(manifest, one)
            content, kind = {"messageSignature": signed}, "hashedrekord"
            spec = {
                "data": {"hash": _hash_of(manifest)},
                "signature": {"content": signed["signature"], "publicKey": {"content": _text(pem)}},
            }
        body = json.dumps({"apiVersion": "0.0.1", "kind": kind, "spec": spec}).encode()
        logged = issued.not_valid_before_utc + logged_after
        material = {
            "certificate": {"rawBytes": _text(issued.public_bytes(Encoding.DER))},
            "tlogEntries": [self._enter(body, kind, int(logged.timestamp()))],
        }
        return {"mediaType": BUNDLE, "verificationMaterial": material, **content}

    def _make_authority(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        public = self._authority_key.public_key()
        return (
            x509.CertificateBuilder(name, name, public, 1, self._start, self._start + dt.timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._authority_key, hashes.SHA256())
        )

    def issue(
        self,
        public: ec.EllipticCurvePublicKey,
        identity: str,
        issuer: str,
        log: ec.EllipticCurvePrivateKey,
        has_old_issuer: bool,
    ) -> x509.Certificate:
        """Return a certificate for a public key, with a timestamp of a log of certificates."""
        start = self._start + dt.timedelta(days=1)
        name = x509.RFC822Name(identity) if "@" in identity else x509.UniformResourceIdentifier(identity)
        authority = self._authority_key.public_key()
        text = issuer.encode()
        builder = (
            x509.CertificateBuilder(self._authority.subject, x509.Name([]), public, 2, start, start + _LIFETIME)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
            .add_extension(_extension(f"{_OID}.8", _der(0x0C, text)), critical=False)
        )
        if has_old_issuer:
            builder = builder.add_extension(_extension(f"{_OID}.1", text), critical=False)
        # The log signs the certificate without the timestamp.
        unlogged = builder.sign(self._authority_key, hashes.SHA256()).tbs_certificate_bytes
        time = int(start.timestamp()) * 1000
        entry = hashlib.sha256(_spki(authority)).digest() + len(unlogged).to_bytes(3, "big") + unlogged
        signature = log.sign(struct.pack("!BBQH", 0, 0, time, 1) + entry + b"\0\0", _HASH)
        head = struct.pack("!B32sQHBBH", 0, _log_id(log), time, 0, 4, 3, len(signature))
        stamp = head + signature
        timestamps = struct.pack("!HH", len(stamp) + 2, len(stamp)) + stamp
        builder = builder.add_extension(_extension(_TIMESTAMPS, _der(0x04, timestamps)), critical=False)
        return builder.sign(self._authority_key, hashes.SHA256())

    def _enter(self, body: bytes, kind: str, time: int) -> dict[str, Any]:
        """Return the log entry of a signature, with the inclusion promise and the inclusion proof."""
        index, identifier = _SIZE - 1, _log_id(self._log)
        other = hashlib.sha256(b"\0another entry").digest()
        root = hashlib.sha256(b"\1" + other + hashlib.sha256(b"\0" + body).digest()).digest()
        note = f"{_LOG}\n{_SIZE}\n{_text(root)}\n"
        signature = _text(identifier[:4] + self._log.sign(note.encode(), _HASH))
        promise = {"body": _text(body), "integratedTime": time, "logID": identifier.hex(), "logIndex": index}
        canonical = json.dumps(promise, separators=(",", ":"), sort_keys=True).encode()
        return {
            "logIndex": str(index),
            "logId": {"keyId": _text(identifier)},
            "kindVersion": {"kind": kind, "version": "0.0.1"},
            "integratedTime": str(time),
            "inclusionPromise": {"signedEntryTimestamp": _text(self._log.sign(canonical, _HASH))},
            "inclusionProof": {
                "logIndex": str(index),
                "rootHash": _text(root),
                "treeSize": str(_SIZE),
                "hashes": [_text(other)],
                "checkpoint": {"envelope": f"{note}\n— {_LOG} {signature}\n"},
            },
            "canonicalizedBody": _text(body),
        }


def by(sigstore: FakeSigstore, identity: str = IDENTITY, issuer: str = ISSUER) -> tuple[str | Path, ...]:
    """Return the options that require a signature by an identity."""
    return (
        *("--certificate-identity", identity, "--certificate-oidc-issuer", issuer),
        *("--trusted-root", sigstore.trusted_root),
    )


def _describe_log(key: ec.EllipticCurvePrivateKey, period: dict[str, str]) -> dict[str, Any]:
    public = {
        "rawBytes": _text(_spki(key.public_key())),
        "keyDetails": "PKIX_ECDSA_P256_SHA_256",
        "validFor": period,
    }
    return {
        "baseUrl": _LOG_URL,
        "hashAlgorithm": "SHA2_256",
        "publicKey": public,
        "logId": {"keyId": _text(_log_id(key))},
    }


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _extension(oid: str, content: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), content)


def _der(tag: int, content: bytes) -> bytes:
    assert len(content) < 128, "the short form of a length"
    return bytes((tag, len(content))) + content


def _hash_of(content: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()}


def _log_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(_spki(key.public_key())).digest()


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
