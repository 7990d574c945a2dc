"""Which CAs are trusted on a system without CAs."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ocistream.http import tls
from ocistream.http.settings import TlsSettings
from ocistream.http.tls import create_client_context
from tests.certificates import Certificate


def test_a_bundle_replaces_missing_cas_of_the_system(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setattr(tls, "_BUNDLES", ())
    context = create_client_context(TlsSettings(), None, str(certificate.file))
    assert context.get_ca_certs(binary_form=True) == [base64.b64decode(certificate.x5c)]
    monkeypatch.setattr(tls, "_BUNDLES", (str(tmp_path / "none"), str(certificate.file)))
    assert len(create_client_context(TlsSettings(), None, "").get_ca_certs()) == 1
    (tmp_path / "0a1b2c3d.0").touch()
    assert create_client_context(TlsSettings(), None, "").get_ca_certs() == []
