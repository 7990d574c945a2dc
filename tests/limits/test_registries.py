"""Hostile responses of registries: they cause no further request, and nothing is written."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream import limits
from tests.certificates import Certificate
from tests.faulty_auth import Basic, Bearer
from tests.faulty_registry import Fault, FaultyRegistry, Header, Reply, redirect, refusal
from tests.hostile.archive_parts import CONFIG, LAYER, LAYERS, MANIFEST, MIB, descriptor, digest_of, image, json_of
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from tests.limits.conftest import Attack
from tests.limits.hosts import public
from tests.limits.rules import limit
from tests.raw_server import names

_CONFIG: Final[dict[str, Any]] = descriptor(image()[CONFIG][1] or b"", OCI_CONFIG)
_LAYER: Final[dict[str, Any]] = descriptor(LAYERS[0], f"{OCI_LAYER}+gzip")


def manifest(**fields: Any) -> bytes:
    """Return the manifest of an image with some fields changed."""
    return json_of({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": [_LAYER], **fields})


def index(listed: object, **fields: Any) -> bytes:
    return json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed, **fields})


def said(attack: Attack, body: bytes, kind: str = OCI_MANIFEST) -> tuple[int, str]:
    """Pull an image whose manifest is `body`; return the exit code and stderr."""
    attack.registry.faults = [Fault(Reply(200, {"Content-Type": kind}, body), "GET", "/manifests/", times=None)]
    code = attack.ocistream(["pull", f"{attack.registry.host}/app:1", "-o", "app.tar", "--platform", "all"])
    assert list(Path().iterdir()) == []
    return code, attack.capsys.readouterr().err


@limit(1)
@pytest.mark.parametrize("field", ["layers", "config", "subject"])
@pytest.mark.parametrize(
    "digest", ["sha256:../../../x", "sha256:" + "A" * 64, "sha256:abc", _LAYER["digest"] + "/../x"]
)
def test_a_malformed_digest_is_never_requested(attack: Attack, field: str, digest: str) -> None:
    lie = {**_LAYER, "digest": digest}
    code, err = said(attack, manifest(**{field: [lie] if field == "layers" else lie}))
    assert code == 6
    assert "malformed digest" in err
    assert {request.path for request in attack.registry.requests} <= {"/v2/", "/v2/app/manifests/1"}


@limit(6)
@pytest.mark.parametrize(
    "body",
    [
        manifest(layers=[_LAYER] * (limits.MAX_LIST_ENTRIES + 1)),
        manifest(config={**_CONFIG, "size": limits.MAX_CONFIG + 1}),
        manifest(annotations={"x": "x" * limits.MAX_MANIFEST}),
        manifest(x=[[]] * limits.MAX_JSON_ITEMS),
    ],
    ids=["layers", "config", "size", "items"],
)
def test_a_manifest_has_the_same_limits_as_in_an_archive(attack: Attack, body: bytes) -> None:
    code, err = said(attack, body)
    assert code == 6
    assert "more than" in err or "larger than" in err


@limit(6)
def test_an_index_that_claims_to_contain_itself_is_refused(attack: Attack) -> None:
    """Digests make circles impossible, even if a registry sends the same document for every digest."""
    code, err = said(attack, index([descriptor(b"itself", OCI_INDEX)]), OCI_INDEX)
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
def test_json_of_a_registry_is_checked_like_that_of_an_archive(attack: Attack, body: bytes) -> None:
    code, err = said(attack, body)
    assert code == 6, err
    # The error for HTML has a hint.
    assert len(err.splitlines()) == 1 + (body == b"<html>")


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
def test_a_document_that_is_an_image_and_an_index_is_refused(attack: Attack, body: bytes, kind: str) -> None:
    code, err = said(attack, body, kind)
    assert code == 6, err


@limit(9)
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_text_of_a_registry_is_printed_as_one_line_without_control_characters(attack: Attack, status: int) -> None:
    words = "\x1b]0;owned\x07\x1b[2J\r\nocistream: all is well\x9b31m\u202egnp\u2028"
    attack.registry.faults = [Fault(refusal(status, words, words), times=None)]
    assert attack.ocistream(["pull", f"{attack.registry.host}/app:1", "-o", "app.tar", "--retries", "0"]) != 0
    lines = attack.capsys.readouterr().err.splitlines()
    assert len(lines) <= 2
    assert all(line.isprintable() for line in lines)


@limit(9)
def test_a_long_error_message_is_shortened(attack: Attack) -> None:
    attack.registry.faults = [Fault(refusal(403, "DENIED", "no " * MIB), times=None)]
    assert attack.ocistream(["pull", f"{attack.registry.host}/app:1", "-o", "app.tar"]) == 3
    assert len(attack.capsys.readouterr().err) < 2000


@limit(10)
def test_a_stated_size_is_not_allocated(attack: Attack) -> None:
    """The manifest states an EiB, and the registry sends a few bytes."""
    files = image()
    for place in (CONFIG, LAYER):
        content = files[place][1] or b""
        path = attack.registry.layout.blob_path(digest_of(content))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    code, err = said(attack, manifest(layers=[{**_LAYER, "size": 1 << 60}]))
    assert code in {4, 5, 7}, err
    assert files[MANIFEST][1]


def in_home(monkeypatch: pytest.MonkeyPatch, folder: Path, **configured: object) -> Path:
    """Give the user a HOME with a configuration of Docker."""
    (folder / ".docker").mkdir(parents=True)
    (folder / ".docker" / "config.json").write_bytes(json_of(configured))
    monkeypatch.setenv("HOME", str(folder))
    return folder


@limit(12)
def test_five_redirects_are_followed_and_another_port_gets_no_credential(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, archive: Path
) -> None:
    monkeypatch.setenv("OCISTREAM_USERNAME", "alice")
    monkeypatch.setenv("OCISTREAM_PASSWORD", "s3cret-pw")
    attack.registry.auth = Basic("alice", "s3cret-pw")
    pull = ["pull", f"{attack.registry.host}/app:1", "-o", "app.tar"]
    attack.registry.faults = [Fault(redirect("/v2/app/manifests/1"), "GET", "/manifests/", times=None)]
    assert attack.ocistream(pull) == 7
    served = [request for request in attack.registry.asked("GET", "/manifests/") if request.fault]
    assert len(served) == 1 + 5
    attack.registry.faults = [Fault(redirect(f"{attack.elsewhere.url}/v2/app/manifests/1"), times=None)]
    assert attack.ocistream(pull) == 4
    assert attack.elsewhere.requests
    assert {request.headers["Authorization"] for request in attack.elsewhere.requests} == {None}
    attack.elsewhere.requests.clear()
    attack.registry.faults = [
        Fault(redirect(f"{attack.elsewhere.url}/v2/app/manifests/1"), "PUT", "/manifests/", times=None)
    ]
    assert attack.ocistream(["push", f"{attack.registry.host}/app:1", "-i", archive]) == 7
    assert attack.registry.asked("PUT", "/manifests/")
    assert attack.elsewhere.requests == []


@limit(12)
@limit(13)
@pytest.mark.parametrize("way", ["redirect", "realm", "Location", "Link"])
def test_https_never_leads_to_http(
    attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Certificate, archive: Path, way: str
) -> None:
    there = f"http://{public('elsewhere', attack.elsewhere)}"
    faults = {
        "redirect": Fault(redirect(f"{there}/v2/app/manifests/1"), "GET|HEAD", "/manifests/", times=None),
        "Location": Fault(Header("Location", f"{there}/v2/app/blobs/uploads/x"), "POST", "/uploads/", times=None),
        "Link": Fault(Header("Link", f'<{there}/v2/app/tags/list?last=v1>; rel="next"'), path="/tags/", times=None),
    }
    auth = Bearer(realm=f"{there}/token") if way == "realm" else None
    with (
        FaultyRegistry(tmp_path / "home", tls=certificate) as home,
        names(monkeypatch, registry="203.0.113.5", elsewhere="203.0.113.6"),
    ):
        name, options = f"{public('registry', home)}/app", ["--ca-cert", certificate.file, "--retries", "0"]
        push, copy = ["push", f"{name}:1", "-i", archive, *options], ["copy", "--all-tags", name, "oci:out", *options]
        if way == "Link":
            assert attack.ocistream(push) == 0
        home.auth, home.faults = auth, [faults[way]] if way in faults else []
        # The next page of a list is requested only from the registry itself.
        assert attack.ocistream(copy if way == "Link" else push) == (8 if way == "Link" else 7)
    assert attack.elsewhere.requests == []


@limit(16)
def test_a_credential_is_sent_only_to_its_own_host_and_netrc_is_not_read(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = base64.b64encode(b"alice:s3cret-pw").decode()
    home = in_home(monkeypatch, tmp_path / "home", auths={attack.elsewhere.host: {"auth": secret}})
    (home / ".netrc").write_text("machine 127.0.0.1 login alice password s3cret-pw\n")
    (home / ".netrc").chmod(0o600)
    attack.registry.auth = attack.elsewhere.auth = Basic("alice", "s3cret-pw")
    assert attack.ocistream(["pull", f"{attack.registry.host}/app:1", "-o", "app.tar"]) == 3
    assert {request.headers["Authorization"] for request in attack.registry.requests} == {None}
    # Here the credential is accepted, and the image does not exist.
    assert attack.ocistream(["pull", f"{attack.elsewhere.host}/app:1", "-o", "app.tar"]) == 4


@limit(16)
@pytest.mark.parametrize("helper", ["evil", "../evil", "/evil", "EVIL", "evil;x"])
def test_a_helper_in_the_current_directory_or_with_an_invalid_name_is_not_run(
    attack: Attack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, helper: str
) -> None:
    in_home(monkeypatch, tmp_path / "home", credsStore=helper)
    ran, programs = tmp_path / "ran", tmp_path / "programs"
    # A helper with a valid name is only in the current directory; one with an invalid name is in PATH.
    for folder in [Path(), *([programs] if helper != "evil" else [])]:
        script = folder / f"docker-credential-{helper}"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f"#!/bin/sh\ntouch {ran}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f".{os.pathsep}{programs}", prepend=os.pathsep)
    attack.registry.auth = Basic("alice", "s3cret-pw")
    assert attack.ocistream(["pull", f"{attack.registry.host}/app:1", "-o", "app.tar"]) in {2, 3}
    assert not ran.exists()


@limit(15)
def test_the_urls_of_a_layer_are_not_requested(attack: Attack) -> None:
    urls = [f"{attack.elsewhere.url}/layer", "file:///etc/passwd"]
    for kind in (_LAYER["mediaType"], "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"):
        code, err = said(attack, manifest(layers=[{**_LAYER, "mediaType": kind, "urls": urls}]))
        assert code == 4, err
    assert attack.elsewhere.requests == []
