"""Attacks without the private key, and documents that only look like signatures, are refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any, Final

import pytest

from ocistream import limits
from tests import registry_http
from tests.archives import blob_name, items_of, tar_of
from tests.cli import assertions
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Layout
from tests.runner import Result, ocistream
from tests.signatures.conftest import Setting
from tests.signed_image import cosign_tag
from tests.signing import (
    BUNDLE,
    SIMPLE_SIGNING,
    Signer,
    bundle,
    bundle_referrer,
    enter,
    envelope,
    manifest_of,
    message_signature,
    payload,
    sign_with_tag,
    signer,
    statement,
    tag_signature,
)

SBOM_TYPE: Final = "https://spdx.dev/Document"
FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
ENCRYPTED: Final = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"


def verify(layout: Layout, *keys: Signer) -> Result:
    return ocistream("verify", *(word for key in keys for word in ("--key", key.path)), layout.path)


def refused(result: Result, *words: str) -> None:
    """Assert that the run failed because of a signature, without a traceback."""
    assert result.code == 5, (result.code, result.err)
    assert "no valid signature" in result.err, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err, (word, result.err)


def subject_of(image: Descriptor) -> Descriptor:
    return {key: image[key] for key in ("mediaType", "digest", "size")}


def sign_payload(layout: Layout, image: Descriptor, content: bytes, signature: bytes) -> None:
    """Add a signature of an image with this payload to index.json."""
    enter(layout, tag_signature(layout, [(content, signature)]), cosign_tag(image))


class TestStripping:
    def test_an_image_whose_signature_was_removed(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        sign_with_tag(layout, image, trusted)
        layout.clear()
        layout.name(image, "app:1")
        refused(verify(layout, trusted), "it has no signature")

    def test_a_payload_that_was_removed(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        signature = sign_with_tag(layout, image, trusted)
        removed = layout.read(signature["digest"])["layers"][0]["digest"]
        layout.file(removed).unlink()
        refused(verify(layout, trusted), "the payload of its signature is missing")
        result = ocistream("push", "--require-signature", trusted.path, "127.0.0.1:9/app:1", "-i", layout.path)
        refused(result, "the payload of its signature is missing")

    def test_a_payload_that_was_replaced(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        signature = sign_with_tag(layout, image, trusted)
        replaced = layout.read(signature["digest"])["layers"][0]
        layout.file(replaced["digest"]).write_bytes(b"x" * replaced["size"])
        result = verify(layout, trusted)
        assert result.code == 5
        assert replaced["digest"] in result.err
        assert not any(line.startswith("app:1@") for line in result.lines())

    @pytest.mark.parametrize("last", [False, True])
    def test_a_payload_that_was_removed_from_a_pipe(
        self, layout: Layout, image: Descriptor, trusted: Signer, last: bool, tmp_path: Path
    ) -> None:
        signature = sign_with_tag(layout, image, trusted)
        removed = blob_name(layout.read(signature["digest"])["layers"][0]["digest"])
        items = [item for item in items_of(layout) if item[0] != removed]
        archive = tar_of(reversed(items) if last else items)
        destination = f"oci:{tmp_path / 'x'}"
        result = ocistream("copy", "--require-signature", trusted.path, "-", destination, stdin=archive)
        assert result.code in {5, 6}, result.err
        assert not (tmp_path / "x/index.json").exists()


class TestReplay:
    def test_an_older_signed_image_is_refused_only_by_its_digest(self, setting: Setting, tmp_path: Path) -> None:
        name, newer = setting.push(setting.image, "1"), setting.layout.image([5_000])
        setting.sign(setting.image, setting.trusted)
        pull = ("pull", "--require-signature", setting.trusted.path, "-o", tmp_path / "x.tar")
        assertions.success(ocistream(*pull, name))
        assert ocistream(*pull, f"{name}@{newer['digest']}").code == 4


class TestOtherImages:
    def test_the_signature_of_another_image(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        other = layout.image([5_000])
        content = payload(other["digest"])
        sign_payload(layout, image, content, trusted.sign(content))
        refused(verify(layout, trusted), f"the signature is for {other['digest']}")

    def test_bundles_of_another_image(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        other = layout.image([5_000])
        bundle_referrer(layout, image, bundle(dsseEnvelope=envelope(statement(other["digest"]), trusted)))
        content = message_signature(manifest_of(layout, other), trusted)
        bundle_referrer(layout, image, bundle(messageSignature=content))
        refused(verify(layout, trusted), f"the signature is for {other['digest']}")

    def test_a_message_digest_that_was_adapted(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        other = layout.image([5_000])
        content = message_signature(manifest_of(layout, other), trusted)
        content["messageDigest"] = message_signature(manifest_of(layout, image), trusted)["messageDigest"]
        bundle_referrer(layout, image, bundle(messageSignature=content))
        refused(verify(layout, trusted), "by another key")

    def test_an_attestation_is_not_a_signature(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        attestation = statement(image["digest"], predicate_type=SBOM_TYPE)
        bundle_referrer(layout, image, bundle(dsseEnvelope=envelope(attestation, trusted)))
        refused(verify(layout, trusted), f"an attestation ({SBOM_TYPE}) is not a signature")

    def test_a_payload_of_another_type(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        content = payload(image["digest"], kind="atomic container signature")
        sign_payload(layout, image, content, trusted.sign(content))
        refused(verify(layout, trusted), "is not of the type")

    def test_an_unsigned_image_that_refers_to_a_signed_one(
        self, layout: Layout, image: Descriptor, trusted: Signer, tmp_path: Path
    ) -> None:
        sign_with_tag(layout, image, trusted)
        hidden = layout.image([5_000], subject=subject_of(image))
        enter(layout, hidden)
        refused(verify(layout, trusted), hidden["digest"])
        copy = ("copy", "--require-signature", trusted.path, layout.path)
        refused(ocistream(*copy, f"oci:{tmp_path / 'x'}"), hidden["digest"])
        assert not (tmp_path / "x/index.json").exists()
        assertions.success(ocistream(*copy, "--no-referrers", f"oci:{tmp_path / 'x'}"))

    def test_an_unsigned_image_under_the_tag_of_a_signature(
        self, layout: Layout, image: Descriptor, trusted: Signer
    ) -> None:
        sign_with_tag(layout, image, trusted)
        hidden = layout.image([5_000])
        enter(layout, hidden, cosign_tag(image))
        refused(verify(layout, trusted), hidden["digest"])

    def test_an_empty_index(self, layout: Layout, trusted: Signer) -> None:
        empty = layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
        enter(layout, empty, "app:1")
        refused(verify(layout, trusted), empty["digest"])


class TestImagesDisguisedAsReferrers:
    """A referrer that cannot run needs no signature, so an attacker disguises an image as a referrer."""

    @pytest.fixture
    def disguised(self, layout: Layout, image: Descriptor, request: pytest.FixtureRequest) -> Descriptor:
        """Return an image that refers to another one, with a layer of the parameter's type, or with no layer."""
        layers = [] if request.param is None else [layout.blob(b"x" * 600, request.param)]
        return layout.document(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": layout.blob(b'{"rootfs": {"type": "layers", "diff_ids": []}}', OCI_CONFIG),
                "layers": layers,
                "subject": subject_of(image),
            }
        )

    @pytest.mark.parametrize("disguised", [None, "application/octet-stream", SIMPLE_SIGNING, FOREIGN], indirect=True)
    @pytest.mark.parametrize("name", ["app:2", "tag of a signature", None])
    def test_a_name_needs_a_signature(self, setting: Setting, disguised: Descriptor, name: str | None) -> None:
        setting.layout.clear()
        enter(setting.layout, disguised, cosign_tag(setting.image) if name == "tag of a signature" else name)
        push = ("push", "--require-signature", setting.trusted.path, "-i", setting.layout.path)
        refused(ocistream(*push, f"{setting.other.host}/app:2"), disguised["digest"])
        refused(ocistream(*push, f"{setting.other.host}/app@{disguised['digest']}"), disguised["digest"])
        assertions.no_image(setting.other)
        refused(verify(setting.layout, setting.trusted))

    @pytest.mark.parametrize("disguised", [None], indirect=True)
    def test_a_tag_in_a_registry_needs_a_signature(
        self, setting: Setting, disguised: Descriptor, tmp_path: Path
    ) -> None:
        name, key, other = setting.push(disguised, "2"), setting.trusted.path, setting.other.host
        refused(ocistream("pull", "--require-signature", key, "-o", tmp_path / "x.tar", name), disguised["digest"])
        refused(ocistream("verify", "--key", key, name), disguised["digest"])
        config, file = tmp_path / "config.toml", tmp_path / "sync.toml"
        config.write_text(f'[trust."{other}"]\nkeys = ["{key}"]\n')
        file.write_text(f'[[sync]]\nfrom = "{name.removesuffix(":2")}"\nto = "{other}/app"\ntags = ["2"]\n')
        refused(ocistream("sync", "--config", config, file), disguised["digest"])
        assertions.no_image(setting.other)

    @pytest.mark.parametrize("disguised", [FOREIGN, ENCRYPTED], indirect=True)
    def test_any_layer_of_an_image_makes_a_referrer_an_image(
        self, layout: Layout, image: Descriptor, disguised: Descriptor, trusted: Signer
    ) -> None:
        sign_with_tag(layout, image, trusted)
        enter(layout, disguised)
        refused(verify(layout, trusted), disguised["digest"])

    @pytest.mark.parametrize("name", ["app:2", None])
    def test_an_index_whose_manifests_only_the_destination_has(
        self, setting: Setting, name: str | None, tmp_path: Path
    ) -> None:
        layout, hidden = setting.layout, setting.layout.image([5_000])
        setting.push(hidden, "1")
        layout.file(hidden["digest"]).unlink()
        index = layout.document(
            {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [{**subject_of(hidden), "platform": {"os": "linux", "architecture": "amd64"}}],
                "subject": subject_of(setting.image),
            }
        )
        layout.clear()
        enter(layout, index, name)
        require = ("--require-signature", setting.trusted.path)
        refused(ocistream("push", *require, f"{setting.served.host}/app:2", "-i", layout.path), index["digest"])
        assert registry_http.manifest_digest(setting.served.host, "app", "2") is None
        refused(ocistream("copy", *require, layout.path, f"oci:{tmp_path / 'x'}"), index["digest"])

    def test_a_layout_without_an_image_is_refused(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        layout.clear()
        refused(verify(layout, trusted), "there is no image")
        sign_with_tag(layout, image, trusted)
        refused(verify(layout, trusted), "there is no image")


class TestSeveralSignatures:
    def test_one_good_signature_among_bad_ones_is_enough(
        self, layout: Layout, image: Descriptor, trusted: Signer, stranger: Signer
    ) -> None:
        content, other = payload(image["digest"]), payload(layout.image([5_000])["digest"])
        signatures = [
            (content, stranger.sign(content)),
            (other, trusted.sign(other)),
            (b"not JSON", trusted.sign(b"not JSON")),
            (content, trusted.sign(content)),
        ]
        enter(layout, tag_signature(layout, signatures), cosign_tag(image))
        bundle_referrer(layout, image, b"not JSON either")
        result = verify(layout, trusted)
        assert f"signed: app:1 by {trusted.path}" in result.out.decode()
        assert "app:1" not in result.err

    def test_the_reasons_against_bad_signatures_are_shown(
        self, layout: Layout, image: Descriptor, trusted: Signer, stranger: Signer
    ) -> None:
        sign_with_tag(layout, image, stranger)
        bundle_referrer(layout, image, b"not JSON")
        refused(verify(layout, trusted), "by another key; its signature is malformed")


class TestAlgorithms:
    def test_a_hash_with_the_public_key_as_its_secret(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        content = payload(image["digest"])
        forged = hmac.new(trusted.path.read_bytes(), content, hashlib.sha256).digest()
        sign_payload(layout, image, content, forged)
        refused(verify(layout, trusted), "by another key")

    def test_the_key_in_the_bundle_is_not_used(
        self, layout: Layout, image: Descriptor, trusted: Signer, stranger: Signer
    ) -> None:
        signed = envelope(statement(image["digest"]), stranger)
        signed["signatures"][0]["keyid"] = str(trusted.path)
        key = base64.b64encode(stranger.path.read_bytes()).decode()
        for material in ({"publicKey": {"hint": key}}, {"certificate": {"rawBytes": key}}):
            content = {"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": signed}
            bundle_referrer(layout, image, json.dumps(content).encode())
        refused(verify(layout, trusted), "by another key")

    def test_a_signature_of_the_payload_without_its_type(
        self, layout: Layout, image: Descriptor, trusted: Signer
    ) -> None:
        content = statement(image["digest"])
        signed = envelope(content, trusted)
        signed["signatures"] = [{"sig": base64.b64encode(trusted.sign(content)).decode()}]
        bundle_referrer(layout, image, bundle(dsseEnvelope=signed))
        refused(verify(layout, trusted), "by another key")

    def test_a_document_does_not_choose_the_hash(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        content = message_signature(manifest_of(layout, image), trusted)
        content["messageDigest"] = {"algorithm": "MD5", "digest": base64.b64encode(b"x" * 16).decode()}
        bundle_referrer(layout, image, bundle(messageSignature=content))
        refused(verify(layout, trusted), "no known algorithm")

    @pytest.mark.parametrize("kind", ["p384", "rsa", "ed25519"])
    def test_a_key_of_another_type(
        self, layout: Layout, image: Descriptor, trusted: Signer, tmp_path: Path, kind: Any
    ) -> None:
        sign_with_tag(layout, image, trusted)
        refused(verify(layout, signer(tmp_path / "other.pub", kind)), "by another key")

    def test_a_signature_that_may_be_ed25519ph_says_so(self, layout: Layout, image: Descriptor, tmp_path: Path) -> None:
        sign_with_tag(layout, image, signer(tmp_path / "stranger.pub", "ed25519"))
        words = "by another key, or by a given one with Ed25519ph, which is not supported"
        refused(verify(layout, signer(tmp_path / "cosign.pub", "ed25519")), words)


class TestSizesAndSyntax:
    def test_a_huge_payload_is_not_read(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        content = payload(image["digest"]).ljust(limits.MAX_SIGNATURE_PAYLOAD + 1)
        sign_payload(layout, image, content, trusted.sign(content))
        refused(verify(layout, trusted), f"larger than {limits.MAX_SIGNATURE_PAYLOAD} bytes")

    def test_a_huge_signature_is_not_decoded(self, layout: Layout, image: Descriptor, trusted: Signer) -> None:
        sign_payload(layout, image, payload(image["digest"]), b"x" * limits.MAX_SIGNATURE_PAYLOAD)
        refused(verify(layout, trusted), f"larger than {limits.MAX_SIGNATURE_PAYLOAD} bytes")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b"{}",
            b'{"critical": []}',
            b'{"critical": {"image": {}, "type": "x"}}',
            b'{"critical": {}, "critical": {}}',
            b'{"Critical": {}}',
            b'{"critical": {"image": {"Docker-manifest-digest": "sha256:0"}}}',
            b"\xff",
            b"[" * 1_000,
        ],
    )
    def test_malformed_payloads(self, layout: Layout, image: Descriptor, trusted: Signer, content: bytes) -> None:
        sign_payload(layout, image, content, trusted.sign(content))
        refused(verify(layout, trusted))

    @pytest.mark.parametrize("annotation", ["", "not base64!", "AAAA=AAAA"])
    def test_malformed_signatures(self, layout: Layout, image: Descriptor, trusted: Signer, annotation: str) -> None:
        layer = {
            **layout.blob(payload(image["digest"]), "application/vnd.dev.cosign.simplesigning.v1+json"),
            "annotations": {"dev.cosignproject.cosign/signature": annotation},
        }
        config = layout.blob(b"{}", "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
        enter(layout, layout.document(manifest), cosign_tag(image))
        refused(verify(layout, trusted), "is not base64")

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("bundle", {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1"}),
            ("bundle", {"mediaType": None}),
            ("bundle", {"mediaType": []}),
            ("bundle", {"dsseEnvelope": None}),
            ("bundle", {"dsseEnvelope": []}),
            ("bundle", {"messageSignature": {}}),
            ("bundle", {"DsseEnvelope": {}}),
            ("envelope", {"payload": "!"}),
            ("envelope", {"payload": None}),
            ("envelope", {"payloadType": "text/plain"}),
            ("envelope", {"signatures": []}),
            ("envelope", {"signatures": {}}),
            ("envelope", {"signatures": [{}]}),
            ("envelope", {"signatures": [None]}),
            ("envelope", {"signatures": [{"sig": "AA=="}, {"sig": "AA=="}]}),
            ("statement", {"_type": "https://in-toto.io/Statement/v9"}),
            ("statement", {"_type": []}),
            ("statement", {"predicateType": {}}),
            ("statement", {"subject": []}),
            ("statement", {"subject": {}}),
            ("statement", {"subject": [None]}),
            ("statement", {"subject": [{"digest": []}]}),
            ("statement", {"subject": [{"digest": {"sha512": "0" * 128}}]}),
            ("statement", {"predicateType": None}),
        ],
    )
    def test_malformed_bundles(
        self, layout: Layout, image: Descriptor, trusted: Signer, part: str, change: dict[str, Any]
    ) -> None:
        changes = {part: change}
        signed = json.dumps({**json.loads(statement(image["digest"])), **changes.get("statement", {})}).encode()
        content = {**envelope(signed, trusted), **changes.get("envelope", {})}
        document = {**json.loads(bundle(dsseEnvelope=content)), **changes.get("bundle", {})}
        bundle_referrer(layout, image, json.dumps(document).encode())
        refused(verify(layout, trusted))
