"""Certificates, created in each run: for registries, for clients, and for signing tokens."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime as dt
import functools
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

#: The names in a certificate, unless the caller gives others.
NAMES = ("localhost", "registry.test", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """An RSA key and its certificate.

    `file` and `key_file` are PEM files; if it is self-signed, `file` is also the bundle of authorities that trusts it.
    """

    file: Path
    key_file: Path
    x5c: str
    _key: rsa.RSAPrivateKey = dataclasses.field(repr=False)
    _certificate: x509.Certificate = dataclasses.field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Return the RS256 signature of a message (RFC 7518, section 3.3)."""
        return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())

    def issue(
        self,
        folder: Path,
        *,
        names: Sequence[str] = NAMES,
        days: tuple[int, int] = (-1, 1),
        common_name: str = "issued",
    ) -> Certificate:
        """Make a certificate that this one issues; `days` are the start and the end of its validity, from now."""
        return _make(folder, common_name, names, days, issuer=self)

    def encrypted_key(self, path: Path, password: bytes = b"secret") -> Path:
        """Write the key, encrypted with a password."""
        path.write_bytes(_pem(self._key, serialization.BestAvailableEncryption(password)))
        return path


def make_certificate(folder: Path, common_name: str = "localhost") -> Certificate:
    """Write a self-signed certificate, valid for a day: `certificate.pem` and `key.pem` in `folder`."""
    return _make(folder, common_name, NAMES, (-1, 1), issuer=None)


@functools.cache
def _key(owner: str) -> rsa.RSAPrivateKey:
    """Return the key of this owner; make it on first use, because that takes long."""
    del owner
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _make(
    folder: Path, common_name: str, names: Sequence[str], days: tuple[int, int], *, issuer: Certificate | None
) -> Certificate:
    folder.mkdir(parents=True, exist_ok=True)
    # Authorities of different names or folders must not have the same key: one would be trusted for the other.
    key = _key("issued" if issuer else f"{common_name} in {folder.name}")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer._certificate.subject if issuer else subject)  # noqa: SLF001 - of the same class
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), critical=True
        )
        .sign(issuer._key if issuer else key, hashes.SHA256())  # noqa: SLF001 - the same
    )
    file = folder / "certificate.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file = folder / "key.pem"
    key_file.touch(mode=0o600)
    key_file.write_bytes(_pem(key, serialization.NoEncryption()))
    x5c = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
    return Certificate(file, key_file, x5c, key, certificate)


def _general(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _pem(key: rsa.RSAPrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
