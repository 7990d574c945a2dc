"""Registries that say what they should not: nothing is asked for because of it, and nothing comes of it here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream import limits
from tests.faults import Fault, FaultyRegistry, Reply, refusal
from tests.hostile.pieces import CONFIG, LAYER, LAYERS, MANIFEST, MIB, descriptor, digest_of, image, json_of
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from tests.limits.statements import limit

Run = Callable[[Sequence[object]], int]
_CONFIG: Final[dict[str, Any]] = descriptor(image()[CONFIG][1] or b"", OCI_CONFIG)
_LAYER: Final[dict[str, Any]] = descriptor(LAYERS[0], f"{OCI_LAYER}+gzip")


def manifest(**fields: Any) -> bytes:
    """Return an image's manifest, of which fields are changed."""
    return json_of({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": [_LAYER], **fields})


def index(listed: object, **fields: Any) -> bytes:
    return json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed, **fields})


def said(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str], body: bytes, kind: str = OCI_MANIFEST
) -> tuple[int, str]:
    """Pull an image whose manifest is `body`; give the exit code and what was said."""
    registry.faults = [Fault(Reply(200, {"Content-Type": kind}, body), "GET", "/manifests/", times=None)]
    code = ocistream(["pull", f"{registry.host}/app:1", "-o", "app.tar", "--platform", "all"])
    assert list(Path().iterdir()) == []
    return code, capsys.readouterr().err


@limit(1)
@pytest.mark.parametrize("field", ["layers", "config", "subject"])
@pytest.mark.parametrize(
    "digest", ["sha256:../../../x", "sha256:" + "A" * 64, "sha256:abc", _LAYER["digest"] + "/../x"]
)
def test_a_digest_that_is_none_is_never_asked_for(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str], field: str, digest: str
) -> None:
    lie = {**_LAYER, "digest": digest}
    code, err = said(registry, ocistream, capsys, manifest(**{field: [lie] if field == "layers" else lie}))
    assert code == 6
    assert "malformed digest" in err
    assert {request.path for request in registry.requests} <= {"/v2/", "/v2/app/manifests/1"}


@limit(6)
@pytest.mark.parametrize(
    "body",
    [
        manifest(layers=[_LAYER] * (limits.MAX_LISTED + 1)),
        manifest(config={**_CONFIG, "size": limits.MAX_CONFIG + 1}),
        manifest(annotations={"x": "x" * limits.MAX_MANIFEST}),
        manifest(x=[[]] * limits.MAX_JSON_ITEMS),
    ],
    ids=["layers", "config", "size", "items"],
)
def test_a_manifest_has_the_bounds_that_one_in_an_archive_has(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    code, err = said(registry, ocistream, capsys, body)
    assert code == 6
    assert "more than" in err or "larger than" in err


@limit(6)
def test_an_index_that_holds_itself_by_a_lie_is_refused(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """By digest there are no circles, and by a registry that sends the same for every digest there are none either."""
    code, err = said(registry, ocistream, capsys, index([descriptor(b"itself", OCI_INDEX)]), OCI_INDEX)
    assert code == 5
    assert digest_of(b"itself") in err


@limit(7)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"<html>",
        manifest()[:-1],
        manifest()[:-1] + b',"layers":[]}',
        manifest()[:-1] + b',"x":NaN}',
        manifest()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        manifest(layers=[{**_LAYER, "size": -1}]),
        manifest(layers=[{**_LAYER, "size": "5"}]),
        manifest(layers={}),
        manifest(config=5),
    ],
    ids=range(11),
)
def test_json_of_a_registry_is_no_more_believed_than_that_of_an_archive(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    code, err = said(registry, ocistream, capsys, body)
    assert code == 6, err
    assert len(err.splitlines()) == 1


@limit(8)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (manifest(manifests=[]), OCI_MANIFEST),
        (index([], layers=[]), OCI_INDEX),
        (index([], config=_CONFIG), OCI_INDEX),
        (manifest(mediaType=OCI_INDEX), OCI_MANIFEST),
        (manifest(), OCI_INDEX),
    ],
    ids=["manifest", "index", "index and config", "its own word", "the registry's word"],
)
def test_a_document_of_two_kinds_is_refused_whatever_it_is_called(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str], body: bytes, kind: str
) -> None:
    code, err = said(registry, ocistream, capsys, body, kind)
    assert code == 6, err


@limit(9)
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_what_a_registry_says_is_one_line_without_what_drives_a_terminal(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    words = "\x1b]0;owned\x07\x1b[2J\r\nocistream: all is well\x9b31m\u202egnp\u2028"
    registry.faults = [Fault(refusal(status, words, words), times=None)]
    assert ocistream(["pull", f"{registry.host}/app:1", "-o", "app.tar", "--retries", "0"]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2
    assert all(line.isprintable() for line in lines)


@limit(9)
def test_a_long_explanation_is_cut(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.faults = [Fault(refusal(403, "DENIED", "no " * MIB), times=None)]
    assert ocistream(["pull", f"{registry.host}/app:1", "-o", "app.tar"]) == 3
    assert len(capsys.readouterr().err) < 2000


@limit(10)
def test_no_size_that_is_stated_is_allocated(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """An EiB is promised by the manifest, and some bytes come."""
    files = image()
    for place in (CONFIG, LAYER):
        content = files[place][1] or b""
        path = registry.layout.blob_path(digest_of(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    code, err = said(registry, ocistream, capsys, manifest(layers=[{**_LAYER, "size": 1 << 60}]))
    assert code in {4, 5, 7}, err
    assert files[MANIFEST][1]


@limit(15)
def test_a_layer_that_is_said_to_be_elsewhere_is_not_asked_for_there(
    registry: FaultyRegistry, ocistream: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with FaultyRegistry(tmp_path / "elsewhere") as elsewhere:
        urls = [f"{elsewhere.url}/layer", "file:///etc/passwd"]
        foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        for kind in (_LAYER["mediaType"], foreign):
            body = manifest(layers=[{**_LAYER, "mediaType": kind, "urls": urls}])
            code, err = said(registry, ocistream, capsys, body)
            assert code == 4, err
        assert elsewhere.requests == []
