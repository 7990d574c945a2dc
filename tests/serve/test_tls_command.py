"""Certificates of the `serve` command."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.raw_http import connect
from tests.runner import ocistream, started

pytestmark = pytest.mark.usefixtures("interruptible")


def test_one_file_with_certificate_and_key_works_and_old_tls_versions_do_not(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.file.read_bytes() + certificate.key_file.read_bytes())
    with started("serve", tmp_path / "layout", "--listen=127.0.0.1:0", "--tls-cert", both) as process:
        assert process.stdout
        host = process.stdout.readline().decode().strip()
        context = ssl.create_default_context(cafile=str(certificate.file))
        with connect(host) as plain, context.wrap_socket(plain, server_hostname="localhost") as secure:
            assert secure.version() in {"TLSv1.2", "TLSv1.3"}
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        with connect(host) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(plain, server_hostname="localhost")


def test_an_unusable_key_is_refused_with_the_reason(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path / "tls")
    other = make_certificate(tmp_path / "other")
    encrypted = certificate.encrypted_key(tmp_path / "encrypted.pem")
    for key, said in ((other.key_file, "does not belong"), (encrypted, "encrypted")):
        result = ocistream(
            *("serve", tmp_path / "layout", "--listen=127.0.0.1:0"), *("--tls-cert", certificate.file, "--tls-key", key)
        )
        assert (result.code, result.out) == (2, b"")
        assert said in result.err
