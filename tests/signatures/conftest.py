"""An image, a trusted signer, an untrusted signer, and registries."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import registry_http
from tests.cli.fixture_types import Start
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout
from tests.signatures.fake_sigstore import FakeSigstore
from tests.signed_image import cosign_tag
from tests.signing import Form, Signer, sign, signer


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with the name app:1 in the layout."""
    return layout.image([4_000], name="app:1")


@pytest.fixture
def trusted(tmp_path: Path) -> Signer:
    """Return the signer whose key the user has."""
    return signer(tmp_path / "cosign.pub")


@pytest.fixture
def stranger(tmp_path: Path) -> Signer:
    """Return a signer whose key the user does not have."""
    return signer(tmp_path / "stranger.pub")


@pytest.fixture(scope="session")
def sigstore(tmp_path_factory: pytest.TempPathFactory) -> FakeSigstore:
    """Return the Sigstore whose trusted root the user has."""
    return FakeSigstore(tmp_path_factory.mktemp("sigstore"))


@dataclasses.dataclass(frozen=True)
class Setting:
    """An image in a layout, the registry `served` for it, an empty registry, and two signers."""

    layout: Layout
    image: Descriptor
    trusted: Signer
    stranger: Signer
    served: FaultyRegistry
    other: FaultyRegistry
    form: Form

    def push(self, image: Descriptor, tag: str) -> str:
        """Store an image of the layout in `served` as app:TAG, and return that name."""
        registry_http.seed(self.layout, image, self.served.host, "app", tag)
        return f"{self.served.host}/app:{tag}"

    def sign(self, image: Descriptor, one: Signer) -> None:
        """Sign an image in the layout and in `served`."""
        found = sign(self.form, self.layout, image, one)
        tag = cosign_tag(image) if self.form == "tag" else None
        registry_http.seed(self.layout, found, self.served.host, "app", tag)


@pytest.fixture
def setting(
    layout: Layout,
    image: Descriptor,
    trusted: Signer,
    stranger: Signer,
    start: Start,
    request: pytest.FixtureRequest,
) -> Setting:
    """Return a setting; the parameter is the form of its signatures."""
    return Setting(layout, image, trusted, stranger, start(), start(), getattr(request, "param", "tag"))
