"""Self-signed certificates, made anew for each run: for registries that speak TLS and for signing tokens."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID


@dataclasses.dataclass(frozen=True)
class Certificate:
    """An RSA key and its self-signed certificate, valid for a day, for 127.0.0.1, localhost and registry.test.

    `file` and `key_file` are PEM files; `file` is also the bundle of authorities that trusts it.
    """

    file: Path
    key_file: Path
    x5c: str
    _key: rsa.RSAPrivateKey = dataclasses.field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Sign as RS256 does (RFC 7518, section 3.3)."""
        return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def make_certificate(folder: Path) -> Certificate:
    """Write `certificate.pem` and `key.pem` into `folder`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    addresses: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.DNSName("registry.test"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file = folder / "key.pem"
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    x5c = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
    return Certificate(file, key_file, x5c, key)
