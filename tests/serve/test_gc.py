"""The embedded registry and `gc`: what a client was told is there stays until it has pushed what needs it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream.serve import Registry
from ocistream.serve.storage import DirectoryStorage
from ocistream.stores.layout_directory import LayoutDirectory
from ocistream.stores.unneeded import collect
from tests.images import OCI_CONFIG, OCI_MANIFEST, digest_of
from tests.talking import Client

BLOB = b"{}"
DIGEST = digest_of(BLOB)
CONFIG = {"mediaType": OCI_CONFIG, "digest": DIGEST, "size": len(BLOB)}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": []}


def age(path: Path, digest: str) -> Path:
    """Let a blob be one that nobody has used for decades."""
    file = path / "blobs" / "sha256" / digest.partition(":")[2]
    os.utime(file, (1, 1))
    return file


@pytest.mark.parametrize(
    ("method", "target"), [("HEAD", f"/v2/app/blobs/{DIGEST}"), ("POST", f"/v2/app/blobs/uploads/?mount={DIGEST}")]
)
def test_a_blob_of_which_a_client_asks_is_in_use(ask: Client, served: Registry, method: str, target: str) -> None:
    ask.upload(BLOB)
    age(served.layout.path, DIGEST)
    assert ask(method, target).status in {200, 201}
    assert collect(LayoutDirectory(served.layout.path)).dropped == []
    ask.push(MANIFEST, "v1")


def test_so_is_a_manifest(ask: Client, served: Registry) -> None:
    ask.upload(BLOB)
    digest = ask.push(MANIFEST, "v1")
    served.layout.change_index(lambda _: [])
    file = age(served.layout.path, digest)
    assert ask("HEAD", f"/v2/app/manifests/{digest}").status == 200
    collect(LayoutDirectory(served.layout.path))
    assert file.exists()


def test_what_is_only_read_is_left_as_it_is(ask: Client, served: Registry) -> None:
    ask.upload(BLOB)
    file = age(served.layout.path, DIGEST)
    with Registry(served.layout.path, read_only=True) as registry, Client(registry.host) as other:
        assert other("HEAD", f"/v2/app/blobs/{DIGEST}").status == 200
    assert file.stat().st_mtime == 1


def test_beside_one_that_takes_pushes_what_came_lately_stays_whatever_the_size(tmp_path: Path) -> None:
    path = tmp_path / "layout"
    with Registry(path) as registry, Client(registry.host) as ask:
        ask.upload(BLOB)
        assert collect(LayoutDirectory(path), max_size=0).dropped == []
    # Nobody adds anything to it any more, nor does one who only reads.
    with Registry(path, read_only=True):
        assert collect(LayoutDirectory(path), max_size=0).dropped == [DIGEST]


def test_no_manifest_is_named_whose_blobs_went_meanwhile(
    ask: Client, served: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask.upload(BLOB)
    original = DirectoryStorage.change_index

    def late(storage: DirectoryStorage, change: Callable[..., Any]) -> None:
        # As if `gc` had had the lock before.
        collect(LayoutDirectory(storage.path), older_than=0)
        original(storage, change)

    monkeypatch.setattr(DirectoryStorage, "change_index", late)
    answer = ask("PUT", "/v2/app/manifests/v1", json.dumps(MANIFEST).encode())
    assert (answer.status, answer.codes) == (400, ["MANIFEST_BLOB_UNKNOWN"])
    assert served.layout.entries() == []
