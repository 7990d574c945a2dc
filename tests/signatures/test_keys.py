"""A file that is not a usable public key is refused with an error that says what the file is."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.x509.oid import NameOID

from ocistream import limits
from tests.cli import assertions
from tests.images import Descriptor, Layout
from tests.runner import Result, ocistream
from tests.signing import Signer, signer


def verify(layout: Layout, key: Path) -> Result:
    return ocistream("verify", "--key", key, layout.path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "key"


pytestmark = pytest.mark.usefixtures("image")


def test_a_private_key_is_refused(layout: Layout, trusted: Signer, file: Path) -> None:
    file.write_bytes(
        trusted.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    result = verify(layout, file)
    assertions.failure(result, 2, "it is a private key", "keep this file secret")


def test_an_encrypted_key_of_cosign_is_refused(layout: Layout, file: Path) -> None:
    name = "ENCRYPTED SIGSTORE PRIVATE KEY"
    file.write_text(f"-----BEGIN {name}-----\ne30=\n-----END {name}-----\n")
    assertions.failure(verify(layout, file), 2, "it is a private key")


def test_a_certificate_is_refused(layout: Layout, file: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = dt.datetime.now(dt.UTC)
    certificate = x509.CertificateBuilder(name, name, private.public_key(), 1, now, now + dt.timedelta(1))
    file.write_bytes(certificate.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    assertions.failure(verify(layout, file), 2, "it is a certificate", "openssl x509 -pubkey")


def test_another_curve_is_refused(layout: Layout, file: Path) -> None:
    signer(file, "p521")
    assertions.failure(verify(layout, file), 2, "the curve secp521r1 is not supported", "ECDSA P-256")


def test_a_short_rsa_key_is_refused(layout: Layout, file: Path) -> None:
    signer(file, "rsa1024")
    assertions.failure(verify(layout, file), 2, "2048", "1024")


def test_a_key_that_cannot_sign_is_refused(layout: Layout, file: Path) -> None:
    public = x25519.X25519PrivateKey.generate().public_key()
    file.write_bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    assertions.failure(verify(layout, file), 2, "keys of this kind are not supported")


def test_two_keys_in_one_file_are_refused(layout: Layout, trusted: Signer, file: Path) -> None:
    file.write_bytes(trusted.path.read_bytes() * 2)
    assertions.failure(verify(layout, file), 2, "it has 2 PEM blocks", "write each key to its own file")


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_file_without_a_key_is_refused(layout: Layout, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assertions.failure(verify(layout, file), 2, "cannot be used as a key", "use a public key in PEM format")


def test_a_huge_file_is_refused(layout: Layout, file: Path) -> None:
    with file.open("wb") as written:
        written.truncate(1 << 40)
    assertions.failure(verify(layout, file), 2, f"it is larger than {limits.MAX_KEY_FILE} bytes")


def test_a_missing_file_is_reported(layout: Layout, tmp_path: Path) -> None:
    assertions.failure(verify(layout, tmp_path / "absent.pub"), 4, "absent.pub", "no such file")


def test_a_directory_is_refused(layout: Layout, tmp_path: Path) -> None:
    assertions.failure(verify(layout, tmp_path), 2, str(tmp_path), "it is a directory")


def test_without_cryptography_the_hint_says_how_to_install_it(
    layout: Layout, image: Descriptor, trusted: Signer, tmp_path: Path
) -> None:
    del image
    (tmp_path / "path").mkdir()
    (tmp_path / "path/cryptography.py").write_text("raise ImportError\n")
    result = ocistream("verify", "--key", trusted.path, layout.path, env={"PYTHONPATH": str(tmp_path / "path")})
    assertions.failure(result, 8, "cryptography is not installed", "`pip install cryptography`")
