"""`gc` and a running registry: a blob stays after a client was told that it exists."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.http_push import entries
from tests.images import OCI_CONFIG, OCI_MANIFEST, digest_of
from tests.raw_http import Client, connect, read_all
from tests.raw_server import eventually
from tests.runner import ocistream
from tests.serve.served_layout import Served, locked_by_another_process

BLOB = b"{}"
DIGEST = digest_of(BLOB)
CONFIG = {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": len(BLOB)}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": []}


def age(file: Path) -> Path:
    """Set the time of last use of a blob's file to decades ago."""
    os.utime(file, (1, 1))
    return file


def collect(path: Path, *options: str) -> list[str]:
    """Run `gc` and return the digests that it deleted."""
    result = assertions.success(ocistream("gc", path, *options))
    return result.lines()


@pytest.mark.parametrize(
    ("method", "target"), [("HEAD", f"/v2/app/blobs/{DIGEST}"), ("POST", f"/v2/app/blobs/uploads/?mount={DIGEST}")]
)
def test_gc_spares_a_blob_that_a_client_asked_about(ask: Client, served: Served, method: str, target: str) -> None:
    ask.upload(BLOB)
    unused = ask.upload(b"unused")
    for digest in (DIGEST, unused):
        age(served.blob(digest))
    assert ask(method, target).status in {200, 201}
    assert collect(served.path) == [unused]
    ask.push(MANIFEST, "v1")


def test_gc_spares_a_manifest_that_a_client_asked_about(ask: Client, served: Served) -> None:
    ask.upload(BLOB)
    digest = ask.push(MANIFEST, "v1")
    (served.path / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    file = age(served.blob(digest))
    assert ask("HEAD", f"/v2/app/manifests/{digest}").status == 200
    collect(served.path)
    assert file.exists()


def test_a_read_only_registry_does_not_record_use(ask: Client, served: Served) -> None:
    ask.upload(BLOB)
    file = age(served.blob(DIGEST))
    with Served(served.path, read_only=True) as registry, Client(registry.host) as other:
        assert other("HEAD", f"/v2/app/blobs/{DIGEST}").status == 200
    assert file.stat().st_mtime == 1


def test_gc_max_size_spares_recent_blobs_of_a_running_registry(tmp_path: Path) -> None:
    path = tmp_path / "layout"
    with Served(path) as registry, Client(registry.host) as ask:
        ask.upload(BLOB)
        assert collect(path, "--max-size=0") == []
    # A read-only registry adds no blobs.
    with Served(path, read_only=True):
        assert collect(path, "--max-size=0") == [DIGEST]


def test_a_manifest_whose_blob_is_deleted_meanwhile_is_refused(served: Served, ask: Client) -> None:
    ask.upload(BLOB)
    content = json.dumps(MANIFEST).encode()
    head = (
        f"PUT /v2/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with connect(served.host) as connection:
        with locked_by_another_process(served.path):
            connection.sendall(head.encode() + content)
            # The registry has checked the manifest and waits for the lock, which `gc` holds while it deletes.
            eventually(served.blob(digest_of(content)).exists)
            served.blob(DIGEST).unlink()
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"MANIFEST_BLOB_UNKNOWN" in answer
    assert entries(served.path) == []
