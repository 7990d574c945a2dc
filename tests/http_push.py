"""Push images and uploads over plain HTTP, and read the layout directory that stores them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, digest_of
from tests.raw_http import Client

#: A blob that is pushed in two parts.
CONTENT = os.urandom(3000)
DIGEST = digest_of(CONTENT)
FIRST, SECOND = CONTENT[:1000], CONTENT[1000:]


def blobs(layout: Path) -> list[str]:
    """Return the names of the files in a layout's `blobs`, including unfinished uploads."""
    return sorted(path.name for path in (layout / "blobs").glob("*/*"))


def begin(ask: Client, query: str = "") -> str:
    """Open an upload session and return its location."""
    answer = ask("POST", f"/v2/app/blobs/uploads/{query}")
    assert (answer.status, answer.body) == (202, b"")
    assert answer.headers["Range"] == "0-0"
    assert answer.headers["Docker-Upload-UUID"] in answer.headers["Location"]
    return answer.headers["Location"]


def closed(ask: Client, location: str, digest: str = DIGEST, body: bytes | None = None) -> int:
    """Close an upload session with its last bytes, and return the status."""
    return ask("PUT", f"{location}?digest={digest}", body).status


def is_stored(ask: Client, digest: str = DIGEST, content: bytes = CONTENT) -> bool:
    answer = ask("GET", f"/v2/app/blobs/{digest}")
    return answer.status == 200 and answer.body == content


def entries(layout: Path) -> list[dict[str, Any]]:
    """Return the descriptors in a layout's index.json."""
    return list(json.loads((layout / "index.json").read_bytes())["manifests"])


def untagged(layout: Path) -> list[str]:
    """Return the digests of the entries of index.json that have no name."""
    return [entry["digest"] for entry in entries(layout) if "annotations" not in entry]


def described(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def image(ask: Client, layer: bytes = b"layer", **fields: Any) -> dict[str, Any]:
    """Push the blobs of an image and return its manifest."""
    ask.upload(b"{}")
    ask.upload(layer)
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(b"{}", OCI_CONFIG),
        "layers": [described(layer, OCI_LAYER)],
        **fields,
    }


def index_of(*documents: dict[str, Any], **fields: Any) -> dict[str, Any]:
    manifests = [described(json.dumps(document).encode(), document["mediaType"]) for document in documents]
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests, **fields}
