"""With `--require-signature`, pull, push and copy do not create an unsigned image at the destination."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import registry_http
from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import Descriptor, Layout, two_platforms
from tests.runner import Result, ocistream, pipe
from tests.signed_image import cosign_tag
from tests.signing import (
    Signer,
    bundle,
    bundle_referrer,
    enter,
    envelope,
    manifest_of,
    message_signature,
    payload,
    sign_with_tag,
    statement,
    tag_signature,
)

FORMS: Final = ("tag", "dsse", "message")
Sign = Callable[[Descriptor, Signer], None]


@pytest.fixture
def served(start: Callable[..., FaultyRegistry]) -> FaultyRegistry:
    return start()


@pytest.fixture
def other(start: Callable[..., FaultyRegistry]) -> FaultyRegistry:
    return start()


@pytest.fixture
def sign(layout: Layout, served: FaultyRegistry, request: pytest.FixtureRequest) -> Sign:
    """Return a function that signs an image in the layout and in the registry; the parameter is the form."""
    form = getattr(request, "param", "tag")

    def run(image: Descriptor, one: Signer) -> None:
        if form == "tag":
            found, tag = sign_with_tag(layout, image, one), cosign_tag(image)
        else:
            content = (
                bundle(dsseEnvelope=envelope(statement(image["digest"]), one))
                if form == "dsse"
                else bundle(messageSignature=message_signature(manifest_of(layout, image), one))
            )
            found, tag = bundle_referrer(layout, image, content), None
        registry_http.seed(layout, found, served.host, "app", tag)

    return run


@pytest.fixture
def pushed(layout: Layout, image: Descriptor, served: FaultyRegistry) -> Descriptor:
    """Return the image, which the layout and the registry have as app:1."""
    registry_http.seed(layout, image, served.host, "app", "1")
    return image


@pytest.fixture
def index(layout: Layout, served: FaultyRegistry) -> Descriptor:
    """Return an index of two platforms, which the layout and the registry have as app:2."""
    made = two_platforms(layout)
    enter(layout, made, "app:2")
    registry_http.seed(layout, made, served.host, "app", "2")
    return made


def required(one: Signer) -> list[str | Path]:
    return ["--require-signature", one.path]


def refused(result: Result, *words: str) -> None:
    assertions.failure(result, 5, "no valid signature", *words)


def uploads(registry: FaultyRegistry) -> list[str]:
    return [item.method for item in registry.requests if item.method in {"POST", "PUT", "PATCH"}]


class TestBetweenRegistries:
    @pytest.mark.parametrize("sign", FORMS, indirect=True)
    def test_a_signed_image_is_copied_with_its_signature(
        self, served: FaultyRegistry, other: FaultyRegistry, pushed: Descriptor, trusted: Signer, sign: Sign
    ) -> None:
        sign(pushed, trusted)
        assertions.success(ocistream("copy", *required(trusted), f"{served.host}/app:1", f"{other.host}/app:1"))
        assert registry_http.manifest_digest(other.host, "app", "1") == pushed["digest"]
        assertions.success(ocistream("verify", "--key", trusted.path, f"{other.host}/app:1"))

    @pytest.mark.parametrize("sign", FORMS, indirect=True)
    def test_an_image_signed_by_another_key_is_not_uploaded(
        self,
        served: FaultyRegistry,
        other: FaultyRegistry,
        pushed: Descriptor,
        trusted: Signer,
        stranger: Signer,
        sign: Sign,
    ) -> None:
        sign(pushed, stranger)
        result = ocistream("copy", *required(trusted), f"{served.host}/app:1", f"{other.host}/app:1")
        refused(result, f"{served.host}/app:1 ({pushed['digest']})", "by another key")
        assert uploads(other) == []
        assertions.no_image(other)

    def test_an_image_without_a_signature_is_not_uploaded(
        self, served: FaultyRegistry, other: FaultyRegistry, pushed: Descriptor, trusted: Signer
    ) -> None:
        result = ocistream("copy", *required(trusted), f"{served.host}/app:1", f"{other.host}/app:1")
        refused(result, pushed["digest"], "it has no signature")
        assert uploads(other) == []

    def test_one_unsigned_image_of_several_fails_the_pull(
        self, layout: Layout, served: FaultyRegistry, pushed: Descriptor, trusted: Signer, sign: Sign, tmp_path: Path
    ) -> None:
        sign(pushed, trusted)
        registry_http.seed(layout, layout.image([5_000]), served.host, "app", "3")
        result = ocistream(
            "pull", *required(trusted), f"{served.host}/app:1", f"{served.host}/app:3", "-o", tmp_path / "x.tar"
        )
        refused(result, f"{served.host}/app:3")
        assert not (tmp_path / "x.tar").exists()

    def test_without_the_option_no_request_is_added(
        self, served: FaultyRegistry, pushed: Descriptor, tmp_path: Path
    ) -> None:
        del pushed
        served.requests.clear()
        assertions.success(ocistream("pull", "--no-referrers", f"{served.host}/app:1", "-o", tmp_path / "x.tar"))
        assert not [item for item in served.requests if "referrers" in item.path or ".sig" in item.path]


class TestSignaturesThatAreNotCopied:
    def test_signatures_are_checked_with_no_referrers(
        self,
        served: FaultyRegistry,
        other: FaultyRegistry,
        pushed: Descriptor,
        trusted: Signer,
        stranger: Signer,
        sign: Sign,
    ) -> None:
        sign(pushed, trusted)
        route = ("--no-referrers", f"{served.host}/app:1", f"{other.host}/app:1")
        refused(ocistream("copy", *required(stranger), *route), "by another key")
        assert uploads(other) == []
        result = ocistream("copy", *required(trusted), *route)
        assertions.success(result)
        assert "not copied: 1 signature; --no-referrers" in result.err
        assert registry_http.manifest_digest(other.host, "app", cosign_tag(pushed)) is None

    @pytest.mark.parametrize("sign", ["dsse"], indirect=True)
    def test_a_listed_signature_that_cannot_be_read_is_in_the_error(
        self, served: FaultyRegistry, pushed: Descriptor, trusted: Signer, sign: Sign, tmp_path: Path
    ) -> None:
        sign(pushed, trusted)
        pull = ("pull", *required(trusted), f"{served.host}/app:1", "-o", tmp_path / "x.tar")
        _, listed = registry_http.get(served.host, f"/v2/app/referrers/{pushed['digest']}")
        (signature,) = json.loads(listed)["manifests"]
        lost = Fault(refusal(404, "MANIFEST_UNKNOWN"), "GET", signature["digest"], times=None)
        denied = Fault(refusal(403, "DENIED"), "GET", "/referrers/", times=None)
        for fault, words in (
            (lost, "were not read: they are listed, but do not exist\n  copy the image with its signatures again"),
            (denied, "were not read: the registry does not list them: "),
        ):
            served.faults = [fault]
            refused(ocistream(*pull), pushed["digest"], words)

    @pytest.mark.parametrize("sign", FORMS, indirect=True)
    def test_the_signature_of_an_index_is_valid_for_its_platforms(
        self, served: FaultyRegistry, index: Descriptor, trusted: Signer, sign: Sign, tmp_path: Path
    ) -> None:
        pull = ("pull", *required(trusted), "--platform", "linux/arm64", f"{served.host}/app:2")
        refused(ocistream(*pull, "-o", tmp_path / "x.tar"), "it has no signature")
        sign(index, trusted)
        result = ocistream(*pull, "-o", tmp_path / "x.tar")
        assertions.success(result)
        assert "not copied: 1 signature; only some platforms" in result.err

    @pytest.mark.parametrize("sign", FORMS, indirect=True)
    @pytest.mark.parametrize("referrers", [(), ("--no-referrers",)])
    def test_the_signature_of_an_index_in_an_archive_is_valid_for_its_platforms(
        self,
        layout: Layout,
        index: Descriptor,
        trusted: Signer,
        stranger: Signer,
        sign: Sign,
        tmp_path: Path,
        referrers: tuple[str, ...],
    ) -> None:
        sign(index, trusted)
        (tmp_path / "x.tar").write_bytes(tar_of(items_of(layout)))
        for source in (f"oci:{layout.path}", f"oci-archive:{tmp_path / 'x.tar'}"):
            copy = ("copy", *referrers, "--platform", "linux/arm64", source, f"oci:{tmp_path / 'y'}")
            assertions.success(ocistream(*copy, *required(trusted)))
            refused(ocistream(*copy, *required(stranger)), "by another key")
        result = ocistream(
            *("copy", *referrers, "--platform", "linux/arm64", "-", f"oci:{tmp_path / 'y'}", *required(trusted)),
            stdin=tmp_path / "x.tar",
        )
        assertions.success(result)


class TestArchives:
    def test_the_error_for_an_archive_without_signatures_says_how_to_bring_them(
        self, served: FaultyRegistry, pushed: Descriptor, trusted: Signer, sign: Sign, tmp_path: Path
    ) -> None:
        sign(pushed, trusted)
        archive = tmp_path / "x.tar"
        assertions.success(ocistream("pull", "--no-referrers", f"{served.host}/app:1", "-o", archive))
        hint = "\n  if it is signed in its registry, bring the signatures: `ocistream pull --all IMAGE -o FILE`"
        refused(ocistream("push", *required(trusted), f"{served.host}/new:1", "-i", archive), "no signature", hint)
        refused(ocistream("push", *required(trusted), f"{served.host}/new:1", stdin=archive), "no signature", hint)
        verified = ocistream("verify", "--key", trusted.path, archive)
        assert verified.code == 5
        assert hint in verified.err
        assertions.success(ocistream("pull", "--all", f"{served.host}/app:1", "-o", archive))
        assertions.success(ocistream("push", *required(trusted), f"{served.host}/new:1", "-i", archive))

    @pytest.mark.parametrize("sign", FORMS, indirect=True)
    def test_through_an_archive_and_a_pipe(
        self,
        served: FaultyRegistry,
        other: FaultyRegistry,
        pushed: Descriptor,
        trusted: Signer,
        sign: Sign,
        tmp_path: Path,
    ) -> None:
        sign(pushed, trusted)
        archive = tmp_path / "app.tar"
        assertions.success(ocistream("pull", *required(trusted), f"{served.host}/app:1", "-o", archive))
        assertions.success(ocistream("push", *required(trusted), f"{other.host}/file:1", "-i", archive))
        one, two = pipe(
            ["pull", f"{served.host}/app:1"], ["push", *map(str, required(trusted)), f"{other.host}/pipe:1"]
        )
        assertions.success(one)
        assertions.success(two)
        for name in ("file", "pipe"):
            assertions.success(ocistream("verify", "--key", trusted.path, f"{other.host}/{name}:1"))

    @pytest.mark.parametrize("sign", FORMS, indirect=True)
    def test_no_layer_of_an_image_signed_by_another_key_is_uploaded_from_a_pipe(
        self,
        layout: Layout,
        served: FaultyRegistry,
        other: FaultyRegistry,
        pushed: Descriptor,
        trusted: Signer,
        stranger: Signer,
        sign: Sign,
        tmp_path: Path,
    ) -> None:
        sign(pushed, stranger)
        archive = tmp_path / "app.tar"
        assertions.success(ocistream("pull", f"{served.host}/app:1", "-o", archive))
        result = ocistream("push", *required(trusted), f"{other.host}/app:1", stdin=archive)
        refused(result, "by another key")
        # The signatures come before the layers.
        layers = layout.read(pushed["digest"])["layers"]
        assert not [layer for layer in layers if other.layout.blob_path(layer["digest"]).exists()]
        assertions.no_image(other)

    def test_an_archive_with_its_index_last_creates_no_image(
        self, layout: Layout, other: FaultyRegistry, image: Descriptor, trusted: Signer, stranger: Signer
    ) -> None:
        sign_with_tag(layout, image, stranger)
        archive = tar_of(reversed(list(items_of(layout))))
        result = ocistream("push", *required(trusted), f"{other.host}/app:1", stdin=archive)
        refused(result, "by another key")
        assertions.no_image(other)
        assertions.success(ocistream("push", *required(stranger), f"{other.host}/app:1", stdin=archive))
        assert registry_http.manifest_digest(other.host, "app", "1") == image["digest"]

    def test_a_manifest_that_was_replaced_is_not_the_signed_one(
        self, layout: Layout, other: FaultyRegistry, image: Descriptor, trusted: Signer
    ) -> None:
        replaced = layout.image([6_000])
        content = payload(image["digest"])
        enter(layout, tag_signature(layout, [(content, trusted.sign(content))]), cosign_tag(replaced))
        enter(layout, replaced, "app:2")
        archive = tar_of(items_of(layout))
        result = ocistream("push", *required(trusted), "--image", "app:2", f"{other.host}/app:1", stdin=archive)
        refused(result, f"the signature is for {image['digest']}")
        assertions.no_image(other)

    @pytest.mark.parametrize("sign", FORMS, indirect=True)
    def test_the_payloads_of_signatures_are_not_omitted(
        self,
        served: FaultyRegistry,
        other: FaultyRegistry,
        pushed: Descriptor,
        trusted: Signer,
        stranger: Signer,
        sign: Sign,
        tmp_path: Path,
    ) -> None:
        sign(pushed, trusted)
        assertions.success(ocistream("copy", f"{served.host}/app:1", f"{other.host}/app:1"))
        (tmp_path / "have").write_bytes(ocistream("have", f"{other.host}/app:1").out)
        pull = ("pull", "--have", tmp_path / "have", f"{served.host}/app:1", "-o", tmp_path / "app.tar")
        assert "omitted" in ocistream(*pull).err
        push = ("push", f"{other.host}/app:2", "-i", tmp_path / "app.tar")
        refused(ocistream(*push, *required(stranger)), "by another key")
        assert registry_http.manifest_digest(other.host, "app", "2") is None
        assertions.success(ocistream(*push, *required(trusted)))

    def test_all_volumes_of_an_archive_are_checked_together(
        self,
        layout: Layout,
        served: FaultyRegistry,
        other: FaultyRegistry,
        trusted: Signer,
        stranger: Signer,
        sign: Sign,
        tmp_path: Path,
    ) -> None:
        image = layout.image([20_000])
        registry_http.seed(layout, image, served.host, "app", "3")
        sign(image, trusted)
        volumes = tmp_path / "app.%d.tar"
        assertions.success(ocistream("pull", f"{served.host}/app:3", "--split", "12000", "-o", volumes))
        push = ("push", f"{other.host}/app:3", "-i", tmp_path / "app.*.tar")
        refused(ocistream(*push, *required(stranger)), "by another key")
        # The signature is in another volume.
        one = ("push", f"{other.host}/app:3", "-i", tmp_path / "app.1.tar")
        refused(ocistream(*one, *required(trusted)), "the payload of its signature is missing")
        assertions.no_image(other)
        assertions.success(ocistream(*push, *required(trusted)))

    def test_a_docker_archive_has_no_signatures(
        self, layout: Layout, other: FaultyRegistry, image: Descriptor, trusted: Signer, tmp_path: Path
    ) -> None:
        sign_with_tag(layout, image, trusted)
        archive = tmp_path / "app.tar"
        result = ocistream("copy", *required(trusted), layout.path, f"docker-archive:{archive}")
        assertions.success(result)
        assert "not copied: 1 signature" in result.err
        push, reason = ("push", *required(trusted), f"{other.host}/app:1"), "a docker-archive has no manifest"
        refused(ocistream(*push, stdin=archive), f"app:1: no valid signature: {reason}")
        refused(ocistream(*push, "-i", archive), f"app:1: no valid signature: {reason}")
        assertions.no_image(other)

    def test_a_refused_pull_writes_nothing_to_stdout(
        self, served: FaultyRegistry, pushed: Descriptor, trusted: Signer
    ) -> None:
        del pushed
        refused(ocistream("pull", *required(trusted), f"{served.host}/app:1"))

    def test_a_dry_run_checks_signatures(
        self, served: FaultyRegistry, pushed: Descriptor, trusted: Signer, sign: Sign, tmp_path: Path
    ) -> None:
        command = ("pull", "--dry-run", *required(trusted), f"{served.host}/app:1", "-o", tmp_path / "x.tar")
        refused(ocistream(*command))
        sign(pushed, trusted)
        assertions.success(ocistream(*command))
