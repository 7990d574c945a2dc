"""With `--require-signature`, pull, push and copy do not create an unsigned image at the destination."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import registry_http
from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import Descriptor, two_platforms
from tests.runner import Result, ocistream, pipe
from tests.signatures.conftest import Setting
from tests.signed_image import cosign_tag
from tests.signing import FORMS, Signer, enter, payload, sign_with_tag, tag_signature

in_each_form = pytest.mark.parametrize("setting", FORMS, indirect=True)


@pytest.fixture
def app(setting: Setting) -> str:
    """Return the name of the image in the registry, `HOST/app:1`."""
    return setting.push(setting.image, "1")


@pytest.fixture
def index(setting: Setting) -> Descriptor:
    """Return an index of two platforms, app:2 in the registry and the only image in the layout."""
    setting.layout.clear()
    made = two_platforms(setting.layout, name="app:2")
    setting.push(made, "2")
    return made


def required(one: Signer) -> list[str | Path]:
    return ["--require-signature", one.path]


def refused(result: Result, *words: str) -> None:
    assertions.failure(result, 5, "no valid signature", *words)


def uploads(registry: FaultyRegistry) -> list[str]:
    return [item.method for item in registry.requests if item.method in {"POST", "PUT", "PATCH"}]


class TestBetweenRegistries:
    @in_each_form
    def test_a_signed_image_is_copied_with_its_signature(self, setting: Setting, app: str) -> None:
        setting.sign(setting.image, setting.trusted)
        copied = f"{setting.other.host}/app:1"
        assertions.success(ocistream("copy", *required(setting.trusted), app, copied))
        assert registry_http.manifest_digest(setting.other.host, "app", "1") == setting.image["digest"]
        assertions.success(ocistream("verify", "--key", setting.trusted.path, copied))

    @in_each_form
    def test_an_image_signed_by_another_key_is_not_uploaded(self, setting: Setting, app: str) -> None:
        setting.sign(setting.image, setting.stranger)
        result = ocistream("copy", *required(setting.trusted), app, f"{setting.other.host}/app:1")
        refused(result, f"{app} ({setting.image['digest']})", "by another key")
        assert uploads(setting.other) == []
        assertions.no_image(setting.other)

    def test_an_image_without_a_signature_is_not_uploaded(self, setting: Setting, app: str) -> None:
        result = ocistream("copy", *required(setting.trusted), app, f"{setting.other.host}/app:1")
        refused(result, setting.image["digest"], "it has no signature")
        assert uploads(setting.other) == []

    def test_one_unsigned_image_of_several_fails_the_pull(self, setting: Setting, app: str, tmp_path: Path) -> None:
        setting.sign(setting.image, setting.trusted)
        unsigned = setting.push(setting.layout.image([5_000]), "3")
        result = ocistream("pull", *required(setting.trusted), app, unsigned, "-o", tmp_path / "x.tar")
        refused(result, unsigned)
        assert not (tmp_path / "x.tar").exists()

    def test_without_the_option_no_request_is_added(self, setting: Setting, app: str, tmp_path: Path) -> None:
        setting.served.requests.clear()
        assertions.success(ocistream("pull", "--no-referrers", app, "-o", tmp_path / "x.tar"))
        assert not [item for item in setting.served.requests if "referrers" in item.path or ".sig" in item.path]


class TestSignaturesThatAreNotCopied:
    def test_signatures_are_checked_with_no_referrers(self, setting: Setting, app: str) -> None:
        setting.sign(setting.image, setting.trusted)
        route = ("--no-referrers", app, f"{setting.other.host}/app:1")
        refused(ocistream("copy", *required(setting.stranger), *route), "by another key")
        assert uploads(setting.other) == []
        result = assertions.success(ocistream("copy", *required(setting.trusted), *route))
        assert "not copied: 1 signature; --no-referrers" in result.err
        assert registry_http.manifest_digest(setting.other.host, "app", cosign_tag(setting.image)) is None

    @pytest.mark.parametrize("setting", ["dsse"], indirect=True)
    def test_a_listed_signature_that_cannot_be_read_is_in_the_error(
        self, setting: Setting, app: str, tmp_path: Path
    ) -> None:
        digest = setting.image["digest"]
        setting.sign(setting.image, setting.trusted)
        pull = ("pull", *required(setting.trusted), app, "-o", tmp_path / "x.tar")
        _, listed = registry_http.get(setting.served.host, f"/v2/app/referrers/{digest}")
        (signature,) = json.loads(listed)["manifests"]
        lost = Fault(refusal(404, "MANIFEST_UNKNOWN"), "GET", signature["digest"], times=None)
        denied = Fault(refusal(403, "DENIED"), "GET", "/referrers/", times=None)
        for fault, words in (
            (lost, "were not read: they are listed, but do not exist\n  copy the image with its signatures again"),
            (denied, "were not read: the registry does not list them: "),
        ):
            setting.served.faults = [fault]
            refused(ocistream(*pull), digest, words)

    @in_each_form
    def test_the_signature_of_an_index_is_valid_for_its_platforms(
        self, setting: Setting, index: Descriptor, tmp_path: Path
    ) -> None:
        pull = ("pull", *required(setting.trusted), "--platform", "linux/arm64", f"{setting.served.host}/app:2")
        refused(ocistream(*pull, "-o", tmp_path / "x.tar"), "it has no signature")
        setting.sign(index, setting.trusted)
        result = assertions.success(ocistream(*pull, "-o", tmp_path / "x.tar"))
        assert "not copied: 1 signature; only some platforms" in result.err

    @in_each_form
    @pytest.mark.parametrize("referrers", [(), ("--no-referrers",)])
    def test_the_signature_of_an_index_in_an_archive_is_valid_for_its_platforms(
        self, setting: Setting, index: Descriptor, tmp_path: Path, referrers: tuple[str, ...]
    ) -> None:
        setting.sign(index, setting.trusted)
        archive, destination = tmp_path / "x.tar", f"oci:{tmp_path / 'y'}"
        archive.write_bytes(tar_of(items_of(setting.layout)))
        copy = ("copy", *referrers, "--platform", "linux/arm64")
        for source in (f"oci:{setting.layout.path}", f"oci-archive:{archive}"):
            assertions.success(ocistream(*copy, source, destination, *required(setting.trusted)))
            refused(ocistream(*copy, source, destination, *required(setting.stranger)), "by another key")
        assertions.success(ocistream(*copy, "-", destination, *required(setting.trusted), stdin=archive))


class TestArchives:
    def test_the_error_for_an_archive_without_signatures_says_how_to_bring_them(
        self, setting: Setting, app: str, tmp_path: Path
    ) -> None:
        setting.sign(setting.image, setting.trusted)
        archive = tmp_path / "x.tar"
        assertions.success(ocistream("pull", "--no-referrers", app, "-o", archive))
        hint = "\n  if it is signed in its registry, bring the signatures: `ocistream pull --all IMAGE -o FILE`"
        push = ("push", *required(setting.trusted), f"{setting.served.host}/new:1")
        refused(ocistream(*push, "-i", archive), "no signature", hint)
        refused(ocistream(*push, stdin=archive), "no signature", hint)
        verified = ocistream("verify", "--key", setting.trusted.path, archive)
        assert verified.code == 5
        assert hint in verified.err
        assertions.success(ocistream("pull", "--all", app, "-o", archive))
        assertions.success(ocistream(*push, "-i", archive))

    @in_each_form
    def test_through_an_archive_and_a_pipe(self, setting: Setting, app: str, tmp_path: Path) -> None:
        setting.sign(setting.image, setting.trusted)
        archive, option = tmp_path / "app.tar", required(setting.trusted)
        assertions.success(ocistream("pull", *option, app, "-o", archive))
        assertions.success(ocistream("push", *option, f"{setting.other.host}/file:1", "-i", archive))
        for result in pipe(["pull", app], ["push", *map(str, option), f"{setting.other.host}/pipe:1"]):
            assertions.success(result)
        for name in ("file", "pipe"):
            copied = f"{setting.other.host}/{name}:1"
            assertions.success(ocistream("verify", "--key", setting.trusted.path, copied))

    @in_each_form
    def test_no_layer_of_an_image_signed_by_another_key_is_uploaded_from_a_pipe(
        self, setting: Setting, app: str, tmp_path: Path
    ) -> None:
        setting.sign(setting.image, setting.stranger)
        archive = tmp_path / "app.tar"
        assertions.success(ocistream("pull", app, "-o", archive))
        result = ocistream("push", *required(setting.trusted), f"{setting.other.host}/app:1", stdin=archive)
        refused(result, "by another key")
        # The signatures come before the layers.
        layers = setting.layout.read(setting.image["digest"])["layers"]
        assert not [layer for layer in layers if setting.other.layout.blob_path(layer["digest"]).exists()]
        assertions.no_image(setting.other)

    def test_an_archive_with_its_index_last_creates_no_image(self, setting: Setting) -> None:
        sign_with_tag(setting.layout, setting.image, setting.stranger)
        archive = tar_of(reversed(list(items_of(setting.layout))))
        name = f"{setting.other.host}/app:1"
        refused(ocistream("push", *required(setting.trusted), name, stdin=archive), "by another key")
        assertions.no_image(setting.other)
        assertions.success(ocistream("push", *required(setting.stranger), name, stdin=archive))
        assert registry_http.manifest_digest(setting.other.host, "app", "1") == setting.image["digest"]

    def test_a_manifest_that_was_replaced_is_not_the_signed_one(self, setting: Setting) -> None:
        replaced = setting.layout.image([6_000])
        content = payload(setting.image["digest"])
        signature = tag_signature(setting.layout, [(content, setting.trusted.sign(content))])
        enter(setting.layout, signature, cosign_tag(replaced))
        enter(setting.layout, replaced, "app:2")
        push = ("push", *required(setting.trusted), "--image", "app:2", f"{setting.other.host}/app:1")
        result = ocistream(*push, stdin=tar_of(items_of(setting.layout)))
        refused(result, f"the signature is for {setting.image['digest']}")
        assertions.no_image(setting.other)

    @in_each_form
    def test_the_payloads_of_signatures_are_not_omitted(self, setting: Setting, app: str, tmp_path: Path) -> None:
        setting.sign(setting.image, setting.trusted)
        assertions.success(ocistream("copy", app, f"{setting.other.host}/app:1"))
        (tmp_path / "have").write_bytes(ocistream("have", f"{setting.other.host}/app:1").out)
        pull = ("pull", "--have", tmp_path / "have", app, "-o", tmp_path / "app.tar")
        assert "omitted" in ocistream(*pull).err
        push = ("push", f"{setting.other.host}/app:2", "-i", tmp_path / "app.tar")
        refused(ocistream(*push, *required(setting.stranger)), "by another key")
        assert registry_http.manifest_digest(setting.other.host, "app", "2") is None
        assertions.success(ocistream(*push, *required(setting.trusted)))

    def test_all_volumes_of_an_archive_are_checked_together(self, setting: Setting, tmp_path: Path) -> None:
        image = setting.layout.image([20_000])
        name = setting.push(image, "3")
        setting.sign(image, setting.trusted)
        assertions.success(ocistream("pull", name, "--split", "12000", "-o", tmp_path / "app.%d.tar"))
        push = ("push", f"{setting.other.host}/app:3", "-i")
        refused(ocistream(*push, tmp_path / "app.*.tar", *required(setting.stranger)), "by another key")
        # The signature is in another volume.
        one = ocistream(*push, tmp_path / "app.1.tar", *required(setting.trusted))
        refused(one, "the payload of its signature is missing")
        assertions.no_image(setting.other)
        assertions.success(ocistream(*push, tmp_path / "app.*.tar", *required(setting.trusted)))

    def test_a_docker_archive_has_no_signatures(self, setting: Setting, tmp_path: Path) -> None:
        sign_with_tag(setting.layout, setting.image, setting.trusted)
        archive, option = tmp_path / "app.tar", required(setting.trusted)
        result = assertions.success(ocistream("copy", *option, setting.layout.path, f"docker-archive:{archive}"))
        assert "not copied: 1 signature" in result.err
        push = ("push", *option, f"{setting.other.host}/app:1")
        reason = "app:1: no valid signature: a docker-archive has no manifest"
        refused(ocistream(*push, stdin=archive), reason)
        refused(ocistream(*push, "-i", archive), reason)
        assertions.no_image(setting.other)

    def test_a_refused_pull_writes_nothing_to_stdout(self, setting: Setting, app: str) -> None:
        refused(ocistream("pull", *required(setting.trusted), app))

    def test_a_dry_run_checks_signatures(self, setting: Setting, app: str, tmp_path: Path) -> None:
        command = ("pull", "--dry-run", *required(setting.trusted), app, "-o", tmp_path / "x.tar")
        refused(ocistream(*command))
        setting.sign(setting.image, setting.trusted)
        assertions.success(ocistream(*command))
