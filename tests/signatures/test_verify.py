"""`verify --key` requires that each image has a valid signature by one of the keys."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import ocistream as api
from tests import registry_http
from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout, two_platforms
from tests.runner import Result, ocistream
from tests.signatures.conftest import Setting
from tests.signed_image import SBOM, cosign_tag, referrer
from tests.signing import (
    FORMS,
    Form,
    Kind,
    Signer,
    bundle,
    bundle_referrer,
    enter,
    envelope,
    manifest_of,
    message_signature,
    payload,
    sign,
    sign_with_tag,
    signer,
    statement,
    tag_signature,
)

KINDS: Final[tuple[Kind, ...]] = ("p256", "p384", "p384-sha256", "rsa", "ed25519")


def verify(layout: Layout, *signers: Signer, options: tuple[str, ...] = ()) -> Result:
    """Verify the layout with the keys of the signers."""
    return ocistream("verify", *keys(*signers), *options, layout.path)


def keys(*signers: Signer) -> list[str | Path]:
    return [argument for one in signers for argument in ("--key", one.path)]


def unsigned(result: Result, *words: str) -> None:
    """Assert that the run failed because of a signature."""
    assert result.code == 5, (result.code, result.err)
    assert "no valid signature" in result.err, result.err
    for word in words:
        assert word in result.err, (word, result.err)
    assert "NOT ok" in result.out.decode()


class TestAccepted:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_signature_of_each_form_by_each_kind_of_key(
        self, layout: Layout, image: Descriptor, tmp_path: Path, form: Form, kind: Kind
    ) -> None:
        one = signer(tmp_path / "one.pub", kind)
        sign(form, layout, image, one)
        result = verify(layout, one)
        assertions.success(result)
        assert f"signed: app:1 by {one.path}" in result.out.decode()

    def test_a_bundle_may_state_a_digest_of_another_hash(
        self, layout: Layout, image: Descriptor, trusted: Signer
    ) -> None:
        manifest = manifest_of(layout, image)
        digest = base64.b64encode(hashlib.sha512(manifest).digest()).decode()
        content = {**message_signature(manifest, trusted), "messageDigest": {"algorithm": "SHA2_512", "digest": digest}}
        bundle_referrer(layout, image, bundle(messageSignature=content))
        assertions.success(verify(layout, trusted))

    @pytest.mark.parametrize("form", FORMS)
    def test_in_an_archive_and_from_a_pipe(
        self, layout: Layout, image: Descriptor, trusted: Signer, tmp_path: Path, form: Form
    ) -> None:
        sign(form, layout, image, trusted)
        archive = tmp_path / "app.tar"
        for items in (items_of(layout), list(reversed(list(items_of(layout))))):
            archive.write_bytes(tar_of(items))
            for result in (
                ocistream("verify", *keys(trusted), archive),
                ocistream("verify", *keys(trusted), stdin=archive),
            ):
                assertions.success(result)
                assert "signed: app:1" in result.out.decode()

    @pytest.mark.parametrize("setting", FORMS, indirect=True)
    def test_in_a_registry(self, setting: Setting) -> None:
        name = setting.push(setting.image, "1")
        setting.sign(setting.image, setting.trusted)
        result = assertions.success(ocistream("verify", *keys(setting.trusted), name))
        assert result.lines()[0] == f"{name}@{setting.image['digest']}"
        refused = ocistream("verify", *keys(setting.stranger), name)
        unsigned(refused, "by another key")
        assert refused.err.count(name) == 1

    def test_one_of_several_keys_is_enough(
        self, layout: Layout, image: Descriptor, trusted: Signer, stranger: Signer
    ) -> None:
        sign_with_tag(layout, image, stranger)
        result = verify(layout, trusted, stranger)
        assertions.success(result)
        assert f"by {stranger.path}" in result.out.decode()

    def test_the_signature_of_an_index_covers_its_manifests(self, layout: Layout, trusted: Signer) -> None:
        index = two_platforms(layout)
        enter(layout, index, "app:1")
        sign_with_tag(layout, index, trusted)
        assertions.success(verify(layout, trusted))

    def test_an_index_whose_manifests_are_all_signed(self, layout: Layout, trusted: Signer) -> None:
        index = two_platforms(layout)
        enter(layout, index, "app:1")
        first, *others = layout.read(index["digest"])["manifests"]
        sign_with_tag(layout, first, trusted)
        unsigned(verify(layout, trusted), "of its manifests")
        for other in others:
            sign_with_tag(layout, other, trusted)
        assertions.success(verify(layout, trusted))

    def test_signatures_and_sboms_need_no_signature(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        sign_with_tag(layout, image, trusted)
        enter(layout, referrer(layout, image, SBOM, b"{}"))
        assertions.success(verify(layout, trusted))


class TestRefused:
    def test_a_bundle_of_an_older_version_is_not_supported(
        self, layout: Layout, image: Descriptor, trusted: Signer, start: Callable[..., FaultyRegistry]
    ) -> None:
        served, older = start(), "application/vnd.dev.sigstore.bundle+json;version=0.2"
        content = bundle(dsseEnvelope=envelope(statement(image["digest"]), trusted), mediaType=older)
        found = layout.read(bundle_referrer(layout, image, content)["digest"])
        found = layout.document(
            {**found, "artifactType": older, "layers": [{**found["layers"][0], "mediaType": older}]}
        )
        registry_http.seed(layout, image, served.host, "app", "1")
        registry_http.seed(layout, found, served.host, "app")
        result = ocistream("verify", *keys(trusted), f"{served.host}/app:1")
        unsigned(result, "its signature has a type that is not supported")

    def test_an_image_without_a_signature_is_named(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        other = layout.image([5_000], name="other:1")
        sign_with_tag(layout, image, trusted)
        result = verify(layout, trusted)
        unsigned(result, "other:1", other["digest"], "it has no signature")
        assert result.lines()[0] == f"app:1@{image['digest']}"
        assert not any(line.startswith("other:1") for line in result.lines())

    def test_a_signature_of_an_empty_file_does_not_cover_a_missing_manifest(
        self, layout: Layout, trusted: Signer
    ) -> None:
        index = two_platforms(layout)
        enter(layout, index, "app:1")
        first, missing = layout.read(index["digest"])["manifests"]
        sign_with_tag(layout, first, trusted)
        bundle_referrer(layout, missing, bundle(messageSignature=message_signature(b"", trusted)))
        layout.file(missing["digest"]).unlink()
        unsigned(verify(layout, trusted), "of its manifests linux/arm64/v8 has none")

    def test_the_document_has_the_result_of_each_image(
        self, layout: Layout, image: Descriptor, trusted: Signer
    ) -> None:
        layout.image([5_000], name="other:1")
        sign_with_tag(layout, image, trusted, name="elsewhere.example.com/app")
        result = verify(layout, trusted, options=("--json",))
        assert result.code == 5
        document: dict[str, Any] = json.loads(result.out)
        assert document["ok"] is False
        assert [item["name"] for item in document["damagedImages"]] == ["other:1"]
        images = [*document["images"], *document["damagedImages"]]
        signatures = {item["name"]: item.get("signature") for item in images}
        assert signatures["app:1"] == {
            "keys": [str(trusted.path)],
            "identities": [],
            "names": ["elsewhere.example.com/app"],
        }
        assert signatures["other:1"] == {"problem": "it has no signature"}
        assert signatures[cosign_tag(image)] is None

    def test_without_a_key_no_signature_is_checked(self, layout: Layout, image: Descriptor) -> None:
        enter(layout, tag_signature(layout, [(payload(image["digest"]), b"wrong")]), cosign_tag(image))
        result = verify(layout, options=("--json",))
        assertions.success(result)
        assert all("signature" not in item for item in json.loads(result.out)["images"])


def test_an_interrupted_call_of_the_python_api_leaves_no_process(
    layout: Layout, image: Descriptor, trusted: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    del image
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes], _: bytes, **__: float) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        api.verify(layout.path, keys=[trusted.path])
    assert started[0].wait(60) == -signal.SIGKILL
