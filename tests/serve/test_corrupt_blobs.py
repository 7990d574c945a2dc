"""Corrupt blobs in a served directory: they are never sent completely, and a push replaces them."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocistream.serve import AccessLogEntry
from tests.http_push import image
from tests.images import Layout, digest_of, two_platforms
from tests.raw_http import Client
from tests.raw_server import eventually
from tests.serve.served_layout import Served, SetLimits

MIB = 1 << 20
CONTENT = os.urandom(MIB)
DIGEST = digest_of(CONTENT)
TARGET = f"/v2/app/blobs/{DIGEST}"


@pytest.fixture
def again(ask: Client, served: Served, access_log: list[AccessLogEntry]) -> Iterator[Client]:
    """Return a connection to a registry that was restarted over a layout with an image whose layer is `CONTENT`."""
    ask.push(image(ask, CONTENT), "v1")
    served.stop()
    with Served(served.path, log=access_log.append) as registry, Client(registry.host) as client:
        yield client


def path_of(served: Served, digest: str = DIGEST) -> Path:
    return served.path / "blobs" / digest.replace(":", "/")


def corrupt(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(ask: Client, **headers: str) -> bytes:
    """Read the blob; the connection must end too early. Return the bytes that arrived."""
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask("GET", TARGET, headers=headers)
    ask.connection.close()
    return caught.value.partial


class TestReading:
    def test_a_corrupt_blob_is_cut_off_and_a_push_replaces_it(
        self, served: Served, again: Client, access_log: list[AccessLogEntry]
    ) -> None:
        document = again("GET", "/v2/app/manifests/v1").body
        corrupt(path_of(served))
        assert again("HEAD", TARGET).status == 200
        assert len(cut_off(again)) < len(CONTENT)
        eventually(lambda: any("digest mismatch: expected" in (entry.problem or "") for entry in access_log))
        assert next(entry for entry in access_log if "digest mismatch" in (entry.problem or "")).is_server_fault
        # The registry now knows that the blob is corrupt.
        assert again("GET", TARGET).status == 500
        assert again("GET", TARGET, headers={"Range": "bytes=0-9"}).status == 500
        answer = again("HEAD", TARGET)
        assert answer.status == 404
        assert again("POST", f"/v2/new/blobs/uploads/?mount={DIGEST}&from=app").status == 202
        assert again("PUT", "/v2/app/manifests/v2", document).refusal == (400, ["MANIFEST_BLOB_UNKNOWN"])
        again.upload(CONTENT)
        assert again("HEAD", TARGET).status == 200
        assert again("GET", TARGET).body == CONTENT
        again.push(document, "v2")

    def test_the_end_of_a_corrupt_blob_is_cut_off_too(self, served: Served, again: Client) -> None:
        corrupt(path_of(served))
        # The registry cannot know this before it has read the complete blob.
        assert again("GET", TARGET, headers={"Range": "bytes=0-9"}).body == CONTENT[:10]
        assert cut_off(again, Range=f"bytes={MIB // 2 + 1}-") != CONTENT[MIB // 2 + 1 :]
        assert again("HEAD", TARGET).status == 404

    def test_corruption_after_a_successful_check_is_noticed(self, served: Served, again: Client) -> None:
        assert again("GET", TARGET).body == CONTENT
        corrupt(path_of(served))
        cut_off(again)
        assert again("HEAD", TARGET).status == 404

    def test_a_blob_repaired_by_another_process_is_served(self, served: Served, again: Client) -> None:
        corrupt(path_of(served))
        cut_off(again)
        path_of(served).unlink()
        path_of(served).write_bytes(CONTENT)
        assert again("HEAD", TARGET).status == 200
        assert again("GET", TARGET).body == CONTENT


class TestSizes:
    def test_an_empty_file_is_refused_at_once(self, served: Served, again: Client) -> None:
        path_of(served).write_bytes(b"")
        assert again("HEAD", TARGET).status == 404
        assert again("GET", TARGET).status == 500
        again.upload(CONTENT)
        assert again("GET", TARGET).body == CONTENT

    def test_a_changed_size_is_refused_at_once(self, served: Served, again: Client) -> None:
        assert again("GET", TARGET).body == CONTENT
        path_of(served).write_bytes(CONTENT[:-1])
        assert again("HEAD", TARGET).status == 404
        again.upload(CONTENT)
        assert again("HEAD", TARGET).status == 200

    def test_a_size_that_contradicts_a_pushed_manifest_causes_a_check(self, served: Served, again: Client) -> None:
        document = again("GET", "/v2/app/manifests/v1").body
        path_of(served).write_bytes(CONTENT[:-1])
        assert again("HEAD", TARGET).status == 200
        assert again("PUT", "/v2/app/manifests/v2", document).refusal == (400, ["MANIFEST_BLOB_UNKNOWN"])
        assert again("HEAD", TARGET).status == 404
        again.upload(CONTENT)
        again.push(document, "v2")

    def test_a_manifest_with_a_wrong_size_is_refused_and_the_blob_stays(self, again: Client) -> None:
        document = again("GET", "/v2/app/manifests/v1").json()
        document["layers"][0]["size"] += 1
        refused = again("PUT", "/v2/app/manifests/v2", json.dumps(document).encode())
        assert refused.refusal == (400, ["MANIFEST_INVALID"])
        assert again("GET", TARGET).body == CONTENT


class TestManifests:
    def test_a_corrupt_manifest_fails_for_get_and_is_unknown_for_head(self, served: Served, again: Client) -> None:
        answer = again("GET", "/v2/app/manifests/v1")
        digest = answer.headers["Docker-Content-Digest"]
        corrupt(path_of(served, digest))
        for reference in ("v1", digest) * 2:
            assert again("GET", f"/v2/app/manifests/{reference}").status == 500
            assert again("HEAD", f"/v2/app/manifests/{reference}").status == 404
        again.push(answer.body, "v1")
        for reference in ("v1", digest):
            assert again("GET", f"/v2/app/manifests/{reference}").body == answer.body
            assert again("HEAD", f"/v2/app/manifests/{reference}").status == 200


def test_an_index_with_a_corrupt_platform_is_served_unchanged(layout: Layout) -> None:
    index = two_platforms(layout, name="app:v1")
    child = layout.read(index["digest"])["manifests"][0]["digest"]
    config = layout.read(child)["config"]["digest"]
    layout.file(config).write_bytes(b"")
    with Served(layout.path) as registry, Client(registry.host) as ask:
        assert ask("GET", f"/v2/app/blobs/{config}").status == 500
        assert ask("GET", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == index["digest"]


def test_only_the_last_checks_are_remembered(served: Served, again: Client, set_limits: SetLimits) -> None:
    set_limits(MAX_CACHED_BLOB_CHECKS=1)
    corrupt(path_of(served))
    cut_off(again)
    assert again("HEAD", TARGET).status == 404
    assert again("GET", f"/v2/app/blobs/{digest_of(b'{}')}").body == b"{}"
    assert again("HEAD", TARGET).status == 200
    cut_off(again)
    assert again("HEAD", TARGET).status == 404
