"""Behaviour of the tests' registry that the conformance cases do not cover, tested by raw HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import OCI_INDEX, OCI_MANIFEST, Layout, digest_of, small_image
from tests.raw_http import Client, connect, converse
from tests.registry import Registry
from tests.registry_http import seed

CONTENT = bytes(range(256))
DIGEST = digest_of(CONTENT)
BLOB = f"/v2/app/blobs/{DIGEST}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Return an empty registry."""
    with Registry(tmp_path / "served") as registry:
        yield registry


@pytest.fixture
def ask(registry: Registry) -> Iterator[Client]:
    """Return a client with a connection to the registry."""
    with Client(registry.host) as client:
        yield client


@pytest.mark.parametrize(
    ("stated", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("bytes=250-", 250, 255),
        ("bytes=-3", 253, 255),
        ("bytes=9-999", 9, 255),
    ],
)
def test_a_range_of_a_blob(ask: Client, stated: str, first: int, last: int) -> None:
    ask.upload(CONTENT)
    answer = ask("GET", BLOB, headers={"Range": stated})
    assert (answer.status, answer.body) == (206, CONTENT[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/256"
    head = ask("HEAD", BLOB, headers={"Range": stated})
    assert (head.status, head.headers["Content-Length"]) == (200, "256")


def test_a_range_beyond_the_end(ask: Client) -> None:
    ask.upload(CONTENT)
    answer = ask("GET", BLOB, headers={"Range": "bytes=256-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */256")


def test_a_blob_exists_only_in_repositories_that_it_was_pushed_to_or_mounted_in(ask: Client) -> None:
    ask.upload(CONTENT)
    other = f"/v2/other/blobs/{DIGEST}"
    assert ask("GET", other).status == 404
    assert ask("POST", f"/v2/other/blobs/uploads/?mount={DIGEST}&from=nowhere").status == 202
    assert ask("GET", other).status == 404
    assert ask("POST", f"/v2/other/blobs/uploads/?mount={DIGEST}&from=app").status == 201
    assert ask("GET", other).body == CONTENT
    assert ask("DELETE", other).status == 202
    assert (ask("GET", other).status, ask("GET", BLOB).status) == (404, 200)


def test_a_manifest_exists_only_in_repositories_that_it_was_pushed_to(
    ask: Client, registry: Registry, layout: Layout
) -> None:
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "1")
    assert ask("GET", f"/v2/app/manifests/{image['digest']}").status == 200
    assert ask("GET", f"/v2/app/blobs/{image['digest']}").status == 404
    assert ask("GET", f"/v2/other/manifests/{image['digest']}").status == 404
    raw = layout.file(image["digest"]).read_bytes()
    assert ask.upload(raw, "other") == image["digest"]
    assert ask("GET", f"/v2/other/blobs/{image['digest']}").body == raw
    assert ask("GET", f"/v2/other/manifests/{image['digest']}").status == 404
    answer = ask("PUT", "/v2/other/manifests/1", raw, {"Content-Type": OCI_MANIFEST})
    assert (answer.status, set(answer.codes)) == (400, {"MANIFEST_BLOB_UNKNOWN"})
    assert len(answer.json()["errors"]) == 3


def test_content_of_the_layout_exists_in_every_repository(layout: Layout) -> None:
    image = small_image(layout, name="registry.example/team/app:1")
    with Registry(layout.path) as registry, Client(registry.host) as ask:
        assert ask("GET", f"/v2/any/manifests/{image['digest']}").headers["Content-Type"] == OCI_MANIFEST
        assert ask("GET", "/v2/team/app/tags/list").json() == {"name": "team/app", "tags": ["1"]}
        assert ask("GET", "/v2/_catalog").json() == {"repositories": ["team/app"]}


def test_the_content_type_is_the_media_type_of_the_manifest(ask: Client) -> None:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    for stated, status in ((OCI_INDEX, 201), (OCI_MANIFEST, 400), ("", 201)):
        answer = ask("PUT", "/v2/app/manifests/1", json.dumps(document).encode(), {"Content-Type": stated})
        assert answer.status == status
    assert ask("GET", "/v2/app/manifests/1").headers["Content-Type"] == OCI_INDEX


def test_lists_are_paginated(ask: Client, registry: Registry, layout: Layout) -> None:
    image = small_image(layout)
    for tag in "edcba":
        seed(layout, image, registry.host, "app", tag)
    found = [layout.artifact(b"%d" % number, subject=image)["digest"] for number in range(5)]
    for digest in found:
        seed(layout, {"digest": digest, "mediaType": OCI_MANIFEST}, registry.host, "app")
    registry.page_size = 2
    for target, member, expected in (
        ("/v2/app/tags/list", "tags", list("abcde")),
        (f"/v2/app/referrers/{image['digest']}", "manifests", found),
    ):
        pages, following = [], target
        while following:
            answer = ask("GET", following)
            pages.append([entry if isinstance(entry, str) else entry["digest"] for entry in answer.json()[member]])
            following = answer.headers.get("Link", "").partition(">")[0].lstrip("<")
        assert pages == [expected[:2], expected[2:4], expected[4:]]


def test_expect_100_continue(registry: Registry) -> None:
    head = "Host: x\r\nContent-Length: 256\r\nExpect: 100-continue\r\n\r\n"
    with connect(registry.host) as connection:
        connection.sendall(f"POST /v2/app/blobs/uploads/?digest={DIGEST} HTTP/1.1\r\n{head}".encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(CONTENT)
        assert connection.recv(1000).startswith(b"HTTP/1.1 201 ")
    refused = converse(registry.host, f"PATCH /v2/app/blobs/uploads/none HTTP/1.1\r\n{head}".encode())
    assert refused.startswith(b"HTTP/1.1 404 ")


def test_a_refusal_arrives_even_if_the_body_was_not_read(ask: Client, registry: Registry) -> None:
    answer = ask("PATCH", "/v2/app/blobs/uploads/none", bytes(3 << 20))
    assert answer.refusal == (404, ["BLOB_UPLOAD_UNKNOWN"])
    assert answer.headers["Connection"] == "close"
    with Client(registry.host) as other:
        assert other("PATCH", "/v2/app/blobs/uploads/none", bytes(1000)).headers["Connection"] is None
        assert other("GET", "/v2/").status == 200
