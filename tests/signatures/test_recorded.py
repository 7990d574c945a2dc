"""Signatures that other programs made, and that they verify: their output was recorded, and each file says how."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests import registry_http
from tests.cli import assertions
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.runner import ocistream

_RECORDED: Final = Path(__file__).parent / "recorded"
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_IDENTITY: Final = "https://ci.example.com/team/app/release.yml@refs/tags/v1"
_ISSUER: Final = "https://token.example.com"


class Recording:
    """A recording, written as a layout. `key` is the file of the public key, `names` the digests by their names."""

    def __init__(self, program: str, folder: Path) -> None:
        self.document: dict[str, Any] = json.loads((_RECORDED / f"{program}.json").read_text())
        self.layout = Layout(folder / "recorded")
        for text in self.document["blobs"]:
            content = text.encode() if text.startswith("{") else base64.b64decode(text)
            self.layout.blob(content, "application/octet-stream")
        index = {"schemaVersion": 2, "manifests": self.document["manifests"]}
        (self.layout.path / "index.json").write_text(json.dumps(index))
        self.key = folder / "recorded.pub"
        self.key.write_text(self.document["key"])
        self.names: dict[str, str] = {
            entry["annotations"][_REF_NAME]: entry["digest"]
            for entry in self.document["manifests"]
            if "annotations" in entry
        }


class TestSkopeo:
    @pytest.fixture
    def recording(self, tmp_path: Path) -> Recording:
        return Recording("skopeo", tmp_path)

    def test_each_signature_of_an_index_and_its_platforms_counts(self, recording: Recording) -> None:
        result = ocistream("verify", "--key", recording.key, recording.layout.path)
        assertions.success(result)
        assert f"signed: 1 by {recording.key} as registry.example.com/team/app:1" in result.out.decode()

    def test_all_cross_an_archive_byte_for_byte(
        self, recording: Recording, start: Callable[..., FaultyRegistry], tmp_path: Path
    ) -> None:
        source, target, archive = start(), start(), tmp_path / "app.tar"
        for entry in recording.document["manifests"]:
            registry_http.seed(recording.layout, entry, source.host, "team/app", entry["annotations"][_REF_NAME])
        required = ("--require-signature", recording.key)
        assertions.success(ocistream("pull", "--all", *required, f"{source.host}/team/app:1", "-o", archive))
        assertions.success(ocistream("push", *required, f"{target.host}/team/app:1", "-i", archive))
        for name, digest in recording.names.items():
            assert registry_http.manifest_digest(target.host, "team/app", name) == digest

    def test_a_single_platform_has_a_signature_of_its_own(self, recording: Recording, tmp_path: Path) -> None:
        copied = tmp_path / "arm64"
        required = ("--require-signature", recording.key)
        source = f"oci:{recording.layout.path}:1"
        assertions.success(ocistream("copy", "--platform", "linux/arm64", *required, source, f"oci:{copied}"))
        assertions.success(ocistream("verify", "--key", recording.key, copied))


class TestSigstoreJs:
    #: The image of the only bundle that does not count, and the reason.
    REFUSED: Final = ("keyless-dsse-no-log", "expected exactly one log entry in bundle")

    def test_bundles_of_each_form(self, tmp_path: Path) -> None:
        recording = Recording("sigstore-js", tmp_path)
        root = tmp_path / "trusted_root.json"
        root.write_text(json.dumps(recording.document["trusted_root"]))
        identity = ("--certificate-identity", _IDENTITY, "--certificate-oidc-issuer", _ISSUER, "--trusted-root", root)
        result = ocistream("verify", "--key", recording.key, *identity, "--json", recording.layout.path)
        document = json.loads(result.out)
        signatures = {item["name"]: item["signature"] for item in document["images"] if item["name"]}
        by_key = {"keys": [str(recording.key)], "identities": []}
        by_identity = {"keys": [], "identities": [{"identity": _IDENTITY, "issuer": _ISSUER}]}
        refused, reason = self.REFUSED
        assert {name: {**found, "names": None} for name, found in signatures.items()} == {
            name: {**(by_key if name.startswith("key-") else by_identity), "names": None}
            for name in recording.names
            if name != refused
        }
        (problem,) = (item for item in document["damagedImages"] if item["name"] == refused)
        assert reason in problem["signature"]["problem"]
