"""Recorded signatures, which other programs made and verified; each recorded file says how."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.images import Descriptor, Layout, digest_of

#: The identity of the keyless signatures, and its issuer.
IDENTITY: Final = "https://ci.example.com/team/app/release.yml@refs/tags/v1"
ISSUER: Final = "https://token.example.com"

_FOLDER: Final = Path(__file__).parent / "recorded"
_REF_NAME: Final = "org.opencontainers.image.ref.name"


@dataclasses.dataclass(frozen=True)
class Recording:
    """The entries of an index.json, their blobs by digest, a public key, and a trusted root or None."""

    manifests: list[Descriptor]
    blobs: Mapping[str, bytes]
    key: str
    trusted_root: Any

    @property
    def names(self) -> dict[str, str]:
        """Return the digests of entries by their names."""
        named = (entry for entry in self.manifests if "annotations" in entry)
        return {entry["annotations"][_REF_NAME]: entry["digest"] for entry in named}

    def signed(self, name: str) -> tuple[bytes, bytes]:
        """Return the manifest of an image, and the bundle that refers to it."""
        digest = self.names[name]
        documents = [json.loads(self.blobs[entry["digest"]]) for entry in self.manifests]
        (referrer,) = (found for found in documents if found.get("subject", {}).get("digest") == digest)
        return self.blobs[digest], self.blobs[referrer["layers"][0]["digest"]]

    def write(self, folder: Path) -> Layout:
        """Write a layout."""
        layout = Layout(folder)
        for content in self.blobs.values():
            layout.blob(content, "application/octet-stream")
        (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self.manifests}))
        return layout


def read_recording(program: str) -> Recording:
    """Read the recording of a program."""
    document = json.loads((_FOLDER / f"{program}.json").read_bytes())
    contents = [text.encode() if text.startswith("{") else base64.b64decode(text) for text in document["blobs"]]
    blobs = {digest_of(content): content for content in contents}
    return Recording(document["manifests"], blobs, document["key"], document.get("trusted_root"))
