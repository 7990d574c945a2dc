"""Referrers in registries with and without the referrers API: statements 31 and 32."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli import assertions
from tests.faulty_auth import Auth
from tests.images import OCI_INDEX, Descriptor, Layout, small_image
from tests.quirks import registry_quirks
from tests.quirks.command_runner import run
from tests.quirks.fixture_types import Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry
from tests.quirks.registry_models import KINDS, PASSWORD, USER
from tests.quirks.statements import quirk
from tests.registry_http import get, manifest, manifest_digest, seed
from tests.runner import Result

pytestmark = quirk(31)


_SIGNATURE: Final = "application/vnd.cncf.notary.signature"
_SUFFIXES: Final = ("sig", "att", "sbom")
#: Registries of many quirks, except quirks with a real wait for each request.
_KINDS: Final = [
    (kind.name, [habit for habit in kind.quirks if "once each" not in habit.name], kind.auth)
    for kind in KINDS
    if kind.name in {"GAR", "GHCR", "ECR", "GitLab", "Harbor", "Nexus"}
]
#: The ways to move an image between registries.
ROUTES: Final = pytest.mark.parametrize("route", ["copy", "a file", "a pipe"])
#: The same, with the statuses of registries without the API.
OLD: Final = pytest.mark.parametrize(
    ("route", "status"), [("copy", 404), ("copy", 400), ("a file", 404), ("a pipe", 404)]
)


@dataclasses.dataclass(frozen=True)
class Signed:
    """An image with two signatures and an SBOM that refer to it, and three artifacts under cosign's tags."""

    image: Descriptor
    referring: list[Descriptor]
    tagged: dict[str, Descriptor]

    @property
    def list_tag(self) -> str:
        """The tag of the list of referrers in a registry without the API."""
        return str(self.image["digest"]).replace(":", "-")

    def seed(self, layout: Layout, registry: QuirkyRegistry) -> None:
        """Push everything to a registry as app:v1."""
        seed(layout, self.image, registry.host, "app", "v1")
        for referrer in self.referring:
            seed(layout, referrer, registry.host, "app")
        for tag, artifact in self.tagged.items():
            seed(layout, artifact, registry.host, "app", tag)


@pytest.fixture
def signed(layout: Layout) -> Signed:
    """Return a signed image that no registry has yet."""
    image = small_image(layout)
    subject = {key: image[key] for key in ("mediaType", "digest", "size")}
    referring = [
        layout.artifact(content, kind=kind, subject=subject)
        for kind, content in ((_SIGNATURE, b"one"), (_SIGNATURE, b"two"), ("application/spdx+json", b"sbom"))
    ]
    name = image["digest"].replace(":", "-")
    tagged = {f"{name}.{suffix}": layout.artifact(suffix.encode(), kind="application/x") for suffix in _SUFFIXES}
    return Signed(image, referring, tagged)


@pytest.fixture
def source(start: Start, signed: Signed, layout: Layout) -> QuirkyRegistry:
    """Return a registry with the referrers API that has the signed image."""
    registry = start()
    signed.seed(layout, registry)
    return registry


def old(status: int) -> tuple[Quirk, ...]:
    """Return the quirks of a registry without the referrers API."""
    return registry_quirks.NO_SUBJECT, registry_quirks.no_referrers(status)


def move(route: str, source: QuirkyRegistry, target: QuirkyRegistry, folder: Path, *options: str, **env: str) -> Result:
    """Move app:v1 with its referrers."""
    one, other = f"{source.host}/app:v1", f"{target.host}/app:v1"
    if route == "copy":
        result = run("copy", one, other, *options, env=env)
    elif route == "a pipe":
        first = run("pull", one, *options, env=env)
        assertions.success(first)
        result = run("push", other, *options, stdin=first.out, env=env)
    else:
        path = folder / "moved.tar"
        assertions.success(run("pull", one, "-o", path, *options, env=env))
        result = run("push", other, "-i", path, *options, env=env)
    assertions.success(result)
    return result


def listed(registry: QuirkyRegistry, tag: str) -> list[Descriptor]:
    """Return the entries of the list under a tag, which must be an OCI index."""
    raw = manifest(registry.host, "app", tag)
    document: dict[str, Any] = json.loads(raw or b'{"manifests": [], "mediaType": null}')
    assert raw is None or document["mediaType"] == OCI_INDEX
    return list(document["manifests"])


def digests(entries: list[Descriptor]) -> list[str]:
    return sorted(entry["digest"] for entry in entries)


@quirk(32)
@ROUTES
def test_all_referrers_arrive_at_a_registry_with_the_referrers_api(
    route: str, source: QuirkyRegistry, start: Start, signed: Signed, tmp_path: Path
) -> None:
    target = start()
    move(route, source, target, tmp_path)
    status, raw = get(target.host, f"/v2/app/referrers/{signed.image['digest']}")
    assert status == 200
    assert digests(json.loads(raw)["manifests"]) == digests(signed.referring)
    assert {tag: manifest_digest(target.host, "app", tag) for tag in signed.tagged} == {
        tag: artifact["digest"] for tag, artifact in signed.tagged.items()
    }
    # The registry keeps the list; a second one under a tag would become outdated.
    assert manifest(target.host, "app", signed.list_tag) is None


@OLD
def test_without_the_referrers_api_a_tag_lists_the_referrers(
    route: str, status: int, source: QuirkyRegistry, start: Start, signed: Signed, tmp_path: Path
) -> None:
    target = start(*old(status))
    move(route, source, target, tmp_path)
    found = listed(target, signed.list_tag)
    assert digests(found) == digests(signed.referring)
    assert {entry["artifactType"] for entry in found} == {_SIGNATURE, "application/spdx+json"}
    assert all(manifest_digest(target.host, "app", entry["digest"]) == entry["digest"] for entry in found)
    assert manifest_digest(target.host, "app", "v1") == signed.image["digest"]


@pytest.mark.parametrize("status", [404, 400])
def test_existing_entries_of_the_list_are_kept(
    status: int, source: QuirkyRegistry, start: Start, signed: Signed, layout: Layout, tmp_path: Path
) -> None:
    target = start(*old(status))
    others = [layout.artifact(b"of others", kind="application/y", subject=signed.image), signed.referring[0]]
    seed(layout, signed.image, target.host, "app", "v0")
    for other in others:
        seed(layout, other, target.host, "app")
    seed(layout, layout.index(others), target.host, "app", signed.list_tag)
    move("copy", source, target, tmp_path)
    # No entry is lost, and none is repeated.
    assert digests(listed(target, signed.list_tag)) == digests([others[0], *signed.referring])
    before = manifest(target.host, "app", signed.list_tag)
    move("copy", source, target, tmp_path)
    assert manifest(target.host, "app", signed.list_tag) == before


@OLD
def test_the_list_under_a_tag_is_read_without_the_referrers_api(
    route: str, status: int, start: Start, signed: Signed, layout: Layout, tmp_path: Path
) -> None:
    source, target = start(*old(status)), start()
    signed.seed(layout, source)
    seed(layout, layout.index(signed.referring), source.host, "app", signed.list_tag)
    move(route, source, target, tmp_path)
    _, raw = get(target.host, f"/v2/app/referrers/{signed.image['digest']}")
    assert digests(json.loads(raw)["manifests"]) == digests(signed.referring)


@quirk(32)
@ROUTES
def test_no_referrer_is_copied_with_no_referrers(
    route: str, source: QuirkyRegistry, start: Start, signed: Signed, tmp_path: Path
) -> None:
    target = start()
    move(route, source, target, tmp_path, "--no-referrers")
    _, raw = get(target.host, f"/v2/app/referrers/{signed.image['digest']}")
    assert json.loads(raw)["manifests"] == []
    assert [tag for tag in signed.tagged if manifest(target.host, "app", tag) is not None] == []
    assert manifest_digest(target.host, "app", "v1") == signed.image["digest"]


@quirk(32)
@pytest.mark.parametrize(("name", "quirks", "auth"), _KINDS, ids=[name for name, _, _ in _KINDS])
def test_referrers_arrive_at_a_registry_with_the_quirks_of(
    name: str,
    quirks: list[Quirk],
    auth: Callable[[], Auth | None],
    source: QuirkyRegistry,
    start: Start,
    signed: Signed,
    tmp_path: Path,
) -> None:
    guard = auth()
    target = start(*quirks, auth=guard)
    login = {"OCISTREAM_DEST_USERNAME": USER, "OCISTREAM_DEST_PASSWORD": PASSWORD} if guard else {}
    move("copy", source, target, tmp_path, **login)
    # Check the registry's layout directly, without its quirks and passwords.
    names = {entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in target.layout.entries()}
    assert {"v1", *signed.tagged} <= names
    held = {path.name for path in (target.layout.path / "blobs/sha256").iterdir()}
    assert {entry["digest"][7:] for entry in signed.referring} <= held
    assert (signed.list_tag in names) == (registry_quirks.NO_SUBJECT in quirks), name
