"""Corrupt blobs in a directory that the embedded registry serves: never given out complete, and replaced by a push."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits, notices
from ocistream.serve import AccessEntry, Registry
from ocistream.serve.blob_checks import BlobChecks
from ocistream.stream import verified
from tests.images import Layout, digest_of, two_platforms
from tests.pushing import image
from tests.talking import Client

MIB = 1 << 20
CONTENT = os.urandom(MIB)
DIGEST = digest_of(CONTENT)
TARGET = f"/v2/app/blobs/{DIGEST}"


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Return what the operator of the registry is told from now on."""
    lines: list[str] = []

    def listener(message: str, *, level: int) -> None:
        if level == 0:
            lines.append(message)

    notices.listen(listener)
    yield lines
    # Others are told nothing.
    notices.listen(lambda *_args, **_options: None)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the digests of blobs that are hashed while they are sent from now on."""
    digests: list[str] = []

    def noted(chunks: Any, descriptor: Any, *more: Any) -> Any:
        digests.append(descriptor.digest)
        return verified(chunks, descriptor, *more)

    monkeypatch.setattr("ocistream.serve.exchange.verified", noted)
    return digests


@pytest.fixture
def again(ask: Client, served: Registry, access_log: list[AccessEntry]) -> Iterator[Client]:
    """Return a connection to a registry that was started over a layout with `CONTENT` and an image."""
    ask.push(image(ask, CONTENT), "v1")
    served.stop()
    with Registry(served.layout.path, log=access_log.append) as registry, Client(registry.host) as client:
        yield client


def path_of(served: Registry, digest: str = DIGEST) -> Path:
    return served.layout.path / "blobs" / digest.replace(":", "/")


def corrupt(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def broken_off(ask: Client, **headers: str) -> bytes:
    """Return what comes of the blob until the connection ends too early."""
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask("GET", TARGET, headers=headers)
    ask.connection.close()
    return caught.value.partial


def wait_for(problem: str, access_log: list[AccessEntry]) -> AccessEntry:
    """Return the first logged request with this problem; the client may know of the end before it is logged."""
    while True:
        for entry in list(access_log):
            if problem in (entry.problem or ""):
                return entry


class TestReading:
    def test_a_corrupt_blob_breaks_off_and_then_a_push_replaces_it(
        self, served: Registry, again: Client, access_log: list[AccessEntry], said: list[str]
    ) -> None:
        document = again("GET", "/v2/app/manifests/v1").body
        corrupt(path_of(served))
        assert again("HEAD", TARGET).status == 200
        assert len(broken_off(again)) < len(CONTENT)
        assert wait_for("the bytes have the digest", access_log).is_ours
        assert len(said) == 1
        assert DIGEST in said[0]
        assert "corrupt" in said[0]
        # From now on it is known.
        assert again("GET", TARGET).status == 500
        assert again("GET", TARGET, headers={"Range": "bytes=0-9"}).status == 500
        answer = again("HEAD", TARGET)
        assert answer.status == 404
        assert again("POST", f"/v2/new/blobs/uploads/?mount={DIGEST}&from=app").status == 202
        refused = again("PUT", "/v2/app/manifests/v2", document)
        assert (refused.status, refused.codes) == (400, ["MANIFEST_BLOB_UNKNOWN"])
        again.upload(CONTENT)
        assert again("HEAD", TARGET).status == 200
        assert again("GET", TARGET).body == CONTENT
        again.push(document, "v2")
        assert len(said) == 1

    def test_so_does_one_of_which_the_end_is_asked_for(self, served: Registry, again: Client) -> None:
        corrupt(path_of(served))
        # Nobody can know before all of it is read.
        assert again("GET", TARGET, headers={"Range": "bytes=0-9"}).body == CONTENT[:10]
        assert broken_off(again, Range=f"bytes={MIB // 2 + 1}-") != CONTENT[MIB // 2 + 1 :]
        assert again("HEAD", TARGET).status == 404

    def test_a_file_that_was_found_right_is_hashed_once(
        self, served: Registry, again: Client, hashed: list[str]
    ) -> None:
        for _ in range(2):
            assert again("GET", TARGET).body == CONTENT
            # This changes its mtime, so that `gc` spares it.
            assert again("HEAD", TARGET).status == 200
            assert again("GET", TARGET, headers={"Range": "bytes=9-"}).body == CONTENT[9:]
        assert hashed == [DIGEST]
        path_of(served).write_bytes(CONTENT)
        assert again("GET", TARGET).body == CONTENT
        assert hashed == [DIGEST] * 2

    def test_nor_is_one_that_was_uploaded(self, ask: Client, hashed: list[str]) -> None:
        ask.upload(CONTENT)
        assert ask("GET", TARGET).body == CONTENT
        assert hashed == []

    def test_one_that_becomes_corrupt_after_it_was_found_right_is_noticed(
        self, served: Registry, again: Client
    ) -> None:
        assert again("GET", TARGET).body == CONTENT
        corrupt(path_of(served))
        broken_off(again)
        assert again("HEAD", TARGET).status == 404

    def test_one_that_is_mended_by_others_is_served(self, served: Registry, again: Client) -> None:
        corrupt(path_of(served))
        broken_off(again)
        path_of(served).unlink()
        path_of(served).write_bytes(CONTENT)
        assert again("HEAD", TARGET).status == 200
        assert again("GET", TARGET).body == CONTENT


class TestSizes:
    def test_an_empty_file_is_known_at_once(self, served: Registry, again: Client, said: list[str]) -> None:
        path_of(served).write_bytes(b"")
        assert again("HEAD", TARGET).status == 404
        assert again("GET", TARGET).status == 500
        assert len(said) == 1
        again.upload(CONTENT)
        assert again("GET", TARGET).body == CONTENT

    def test_another_size_than_that_of_a_blob_that_was_right_is_known_at_once(
        self, served: Registry, again: Client
    ) -> None:
        assert again("GET", TARGET).body == CONTENT
        path_of(served).write_bytes(CONTENT[:-1])
        assert again("HEAD", TARGET).status == 404
        again.upload(CONTENT)
        assert again("HEAD", TARGET).status == 200

    def test_another_one_than_a_pushed_manifest_says_is_looked_into(self, served: Registry, again: Client) -> None:
        document = again("GET", "/v2/app/manifests/v1").body
        path_of(served).write_bytes(CONTENT[:-1])
        assert again("HEAD", TARGET).status == 200
        refused = again("PUT", "/v2/app/manifests/v2", document)
        assert (refused.status, refused.codes) == (400, ["MANIFEST_BLOB_UNKNOWN"])
        assert again("HEAD", TARGET).status == 404
        again.upload(CONTENT)
        again.push(document, "v2")

    def test_if_the_blob_is_right_the_manifest_is_wrong(self, again: Client) -> None:
        document = again("GET", "/v2/app/manifests/v1").json()
        document["layers"][0]["size"] += 1
        refused = again("PUT", "/v2/app/manifests/v2", json.dumps(document).encode())
        assert (refused.status, refused.codes) == (400, ["MANIFEST_INVALID"])
        assert again("GET", TARGET).body == CONTENT


class TestManifests:
    def test_a_corrupt_one_is_an_error_to_those_who_read_it_and_unknown_to_those_who_push_it(
        self, served: Registry, again: Client, said: list[str]
    ) -> None:
        answer = again("GET", "/v2/app/manifests/v1")
        digest = answer.headers["Docker-Content-Digest"]
        corrupt(path_of(served, digest))
        for reference in ("v1", digest) * 2:
            assert again("GET", f"/v2/app/manifests/{reference}").status == 500
            assert again("HEAD", f"/v2/app/manifests/{reference}").status == 404
        assert len(said) == 1
        again.push(answer.body, "v1")
        for reference in ("v1", digest):
            assert again("GET", f"/v2/app/manifests/{reference}").body == answer.body
            assert again("HEAD", f"/v2/app/manifests/{reference}").status == 200


def test_a_platform_that_is_corrupt_is_not_taken_for_one_that_is_missing(layout: Layout) -> None:
    index = two_platforms(layout, name="app:v1")
    child = layout.read(index["digest"])["manifests"][0]["digest"]
    config = layout.read(child)["config"]["digest"]
    layout.file(config).write_bytes(b"")
    with Registry(layout.path) as registry, Client(registry.host) as ask:
        assert ask("GET", f"/v2/app/blobs/{config}").status == 500
        assert ask("GET", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == index["digest"]


def test_only_so_many_results_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CHECKED_BLOBS", 2)
    checks = BlobChecks()
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    digests = [digest_of(b"%d" % number) for number in range(3)]
    for digest in digests:
        checks.note(digest, path.stat(), is_right=True)
    checks.note(digests[2], path.stat(), is_right=True)
    assert [checks.is_right(digest, path.stat()) for digest in digests] == [False, True, True]
