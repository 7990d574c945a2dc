"""Signatures that skopeo and sigstore-js made are verified, and copied byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import registry_http
from tests.cli import assertions
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.runner import ocistream
from tests.signatures.recording import IDENTITY, ISSUER, Recording, read_recording


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> Recording:
    return read_recording(request.cls.PROGRAM)


@pytest.fixture
def layout(recording: Recording, tmp_path: Path) -> Layout:
    return recording.write(tmp_path / "recorded")


@pytest.fixture
def key(recording: Recording, tmp_path: Path) -> Path:
    """Return the file of the signer's public key."""
    file = tmp_path / "recorded.pub"
    file.write_text(recording.key)
    return file


class TestSkopeo:
    PROGRAM: Final = "skopeo"

    def test_the_signatures_of_an_index_and_its_platforms_are_valid(self, layout: Layout, key: Path) -> None:
        result = assertions.success(ocistream("verify", "--key", key, layout.path))
        assert f"signed: 1 by {key} as registry.example.com/team/app:1" in result.out.decode()

    def test_all_are_copied_through_an_archive_byte_for_byte(
        self,
        recording: Recording,
        layout: Layout,
        key: Path,
        start: Callable[..., FaultyRegistry],
        tmp_path: Path,
    ) -> None:
        source, target, archive = start(), start(), tmp_path / "app.tar"
        digests = {digest: name for name, digest in recording.names.items()}
        for entry in recording.manifests:
            registry_http.seed(layout, entry, source.host, "team/app", digests[entry["digest"]])
        required = ("--require-signature", key)
        assertions.success(ocistream("pull", "--all", *required, f"{source.host}/team/app:1", "-o", archive))
        assertions.success(ocistream("push", *required, f"{target.host}/team/app:1", "-i", archive))
        for name, digest in recording.names.items():
            assert registry_http.manifest_digest(target.host, "team/app", name) == digest

    def test_a_single_platform_has_its_own_signature(self, layout: Layout, key: Path, tmp_path: Path) -> None:
        options = ("--platform", "linux/arm64", "--require-signature", key)
        assertions.success(ocistream("copy", *options, f"oci:{layout.path}:1", f"oci:{tmp_path / 'arm64'}"))
        assertions.success(ocistream("verify", "--key", key, tmp_path / "arm64"))


class TestSigstoreJs:
    PROGRAM: Final = "sigstore-js"
    #: The image of the only invalid bundle, and the reason.
    REFUSED: Final = ("keyless-dsse-no-log", "expected exactly one log entry in bundle")

    def test_bundles_of_each_form(self, recording: Recording, layout: Layout, key: Path, tmp_path: Path) -> None:
        root = tmp_path / "trusted_root.json"
        root.write_text(json.dumps(recording.trusted_root))
        identity = ("--certificate-identity", IDENTITY, "--certificate-oidc-issuer", ISSUER, "--trusted-root", root)
        result = ocistream("verify", "--key", key, *identity, "--json", layout.path)
        document = json.loads(result.out)
        signatures = {item["name"]: item["signature"] for item in document["images"] if item["name"]}
        by_key = {"keys": [str(key)], "identities": []}
        by_identity = {"keys": [], "identities": [{"identity": IDENTITY, "issuer": ISSUER}]}
        refused, reason = self.REFUSED
        assert {name: {**found, "names": None} for name, found in signatures.items()} == {
            name: {**(by_key if name.startswith("key-") else by_identity), "names": None}
            for name in recording.names
            if name != refused
        }
        (problem,) = (item for item in document["damagedImages"] if item["name"] == refused)
        assert reason in problem["signature"]["problem"]
