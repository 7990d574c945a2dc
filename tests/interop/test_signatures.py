"""Signatures that OpenSSL makes, in cosign's format: copied between registries and archives, and required.

Debian's skopeo and podman are built without these checks, so OpenSSL is the other implementation.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests import registry_http
from tests.cli import assertions
from tests.images import Descriptor, Layout
from tests.peers import DockerRegistry, need
from tests.runner import Result, ocistream, pipe
from tests.signed_image import cosign_tag
from tests.signing import ANNOTATION, Signer, payload, sign_with_tag, signer, tag_signature

#: Options of OpenSSL for each kind of key.
_GENERATE: Final = {
    "p256": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "p384": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "rsa": ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"),
    "ed25519": ("-algorithm", "ED25519"),
}
_HASH: Final = {"p256": "-sha256", "p384": "-sha384", "rsa": "-sha256"}


@dataclasses.dataclass(frozen=True)
class OpenSsl:
    """OpenSSL with a key pair of one kind."""

    folder: Path
    kind: str

    @property
    def public(self) -> Path:
        """The file of the public key."""
        return self.folder / "cosign.pub"

    def generate(self) -> None:
        """Generate the key pair."""
        self._run("genpkey", *_GENERATE[self.kind], "-out", "cosign.key")
        self._run("pkey", "-in", "cosign.key", "-pubout", "-out", "cosign.pub")

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        (self.folder / "message").write_bytes(message)
        if self.kind == "ed25519":
            self._run("pkeyutl", "-sign", "-rawin", "-inkey", "cosign.key", "-in", "message", "-out", "signature")
        else:
            self._run("dgst", _HASH[self.kind], "-sign", "cosign.key", "-out", "signature", "message")
        return (self.folder / "signature").read_bytes()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Fail unless the signature is valid."""
        (self.folder / "message").write_bytes(message)
        (self.folder / "signature").write_bytes(signature)
        if self.kind == "ed25519":
            options = ("-verify", "-rawin", "-pubin", "-inkey", "cosign.pub", "-in", "message")
            self._run("pkeyutl", *options, "-sigfile", "signature")
        else:
            self._run("dgst", _HASH[self.kind], "-verify", "cosign.pub", "-signature", "signature", "message")

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(params=list(_GENERATE))
def openssl(request: pytest.FixtureRequest, tmp_path: Path) -> OpenSsl:
    need("openssl")
    made = OpenSsl(tmp_path, request.param)
    made.generate()
    return made


@pytest.fixture
def signed(openssl: OpenSsl, layout: Layout, registry: DockerRegistry) -> Descriptor:
    """Return a signed image, which the registry has as team/app:1."""
    image = layout.image([40_000])
    registry_http.seed(layout, image, registry.host, "team/app", "1")
    content = payload(image["digest"], f"{registry.host}/team/app:1")
    signature = tag_signature(layout, [(content, openssl.sign(content))])
    registry_http.seed(layout, signature, registry.host, "team/app", cosign_tag(image))
    return image


def done(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def test_a_signature_is_verified_and_copied(
    openssl: OpenSsl,
    signed: Descriptor,
    registry: DockerRegistry,
    other_registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    source, required = f"{registry.host}/team/app:1", ["--require-signature", str(openssl.public)]
    verified = done(ocistream("verify", "--key", openssl.public, source))
    assert f"signed: {source} by {openssl.public} as {source}" in verified.lines()
    done(ocistream("copy", *required, source, f"{other_registry.host}/copied/app:1"))
    archive = tmp_path / "app.tar"
    done(ocistream("pull", *required, source, "-o", archive))
    done(ocistream("verify", "--key", openssl.public, archive))
    done(ocistream("push", *required, f"{other_registry.host}/pushed/app:1", "-i", archive))
    for result in pipe(["pull", *required, source], ["push", *required, f"{other_registry.host}/piped/app:1"]):
        done(result)
    for repository in ("copied/app", "pushed/app", "piped/app"):
        assert other_registry.tags(repository)["1"] == signed["digest"]
        manifest = registry_http.manifest(other_registry.host, repository, cosign_tag(signed))
        assert manifest is not None
        (layer,) = json.loads(manifest)["layers"]
        status, content = registry_http.get(other_registry.host, f"/v2/{repository}/blobs/{layer['digest']}")
        assert status == 200
        openssl.verify(content, base64.b64decode(layer["annotations"][ANNOTATION]))


class TestUnsignedImagesAreNotCopied:
    @pytest.fixture(params=["unsigned", "by another key", "replaced"])
    def image(
        self, request: pytest.FixtureRequest, layout: Layout, registry: DockerRegistry, trusted: Signer, tmp_path: Path
    ) -> Descriptor:
        """Return an image, app:1 in the registry, that the signer of the required key did not sign."""
        image = layout.image([40_000])
        registry_http.seed(layout, image, registry.host, "app", "1")
        if request.param == "by another key":
            signature = sign_with_tag(layout, image, signer(tmp_path / "stranger.pub"))
            registry_http.seed(layout, signature, registry.host, "app", cosign_tag(image))
        elif request.param == "replaced":
            genuine = payload(layout.image([30_000])["digest"])
            signature = tag_signature(layout, [(genuine, trusted.sign(genuine))])
            registry_http.seed(layout, signature, registry.host, "app", cosign_tag(image))
        return image

    @pytest.fixture
    def trusted(self, tmp_path: Path) -> Signer:
        return signer(tmp_path / "trusted.pub")

    @pytest.mark.parametrize("where", ["pull", "push"])
    def test_through_a_pipe(
        self, where: str, image: Descriptor, registry: DockerRegistry, other_registry: DockerRegistry, trusted: Signer
    ) -> None:
        required = ["--require-signature", str(trusted.path)]
        one, two = pipe(
            ["pull", *(required if where == "pull" else []), f"{registry.host}/app:1"],
            ["push", *(required if where == "push" else []), f"{other_registry.host}/app:1"],
        )
        refused = one if where == "pull" else two
        assert refused.code == 5, refused.err
        assert image["digest"] in refused.err
        assert other_registry.tags("app") == {}
        assert other_registry.manifests("app") == set()

    def test_by_copy(
        self, image: Descriptor, registry: DockerRegistry, other_registry: DockerRegistry, trusted: Signer
    ) -> None:
        result = ocistream(
            *("copy", "--require-signature", trusted.path, f"{registry.host}/app:1", f"{other_registry.host}/app:1")
        )
        assertions.failure(result, 5, image["digest"], "no valid signature")
        assert other_registry.repositories() == []
