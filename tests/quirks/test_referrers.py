"""Referrers in registries with and without the referrers API: statements 31 and 32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.images import OCI_INDEX, Descriptor, Layout
from tests.quirks import registry_quirks
from tests.quirks.command_runner import run
from tests.quirks.fixture_types import Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry
from tests.quirks.registry_models import KINDS, PASSWORD, USER, Kind
from tests.quirks.statements import quirk
from tests.registry_http import get, manifest, manifest_digest, seed
from tests.signed_image import Signed, cosign_tag, signed

pytestmark = quirk(31, 32)

#: The ways to move an image between registries.
ROUTES: Final = ("copy", "a file", "a pipe")
#: A way, and the status of the referrers API at the source and at the destination.
WAYS: Final = [
    *((route, *statuses) for route in ROUTES for statuses in ((200, 200), (200, 404), (404, 200))),
    *(("copy", *statuses) for statuses in ((200, 400), (400, 200))),
]
#: Registries of many quirks.
_KINDS: Final = [kind for kind in KINDS if kind.name in {"GAR", "GHCR", "ECR", "GitLab", "Harbor", "Nexus"}]


@pytest.fixture
def found(layout: Layout) -> Signed:
    return signed(layout)


def api(status: int) -> tuple[Quirk, ...]:
    """Return the quirks of a registry that answers requests for referrers with this status."""
    return () if status == 200 else (registry_quirks.NO_SUBJECT, registry_quirks.no_referrers(status))


def list_tag(subject: str) -> str:
    """Return the tag of the list of referrers in a registry without the API."""
    return subject.replace(":", "-")


def seed_all(found: Signed, layout: Layout, registry: QuirkyRegistry) -> dict[str, str]:
    """Store the image with its referrers as app:v1; return the digests under tags of cosign."""
    found.seed(layout, registry.host, "app", "v1")
    tagged = {found.cosign_tag: str(found.cosign["digest"])}
    for suffix in (".att", ".sbom"):
        tag = cosign_tag(found.image, suffix)
        tagged[tag] = seed(layout, layout.artifact(suffix.encode(), kind="application/x"), registry.host, "app", tag)
    return tagged


def move(route: str, source: QuirkyRegistry, target: QuirkyRegistry, folder: Path, **env: str) -> None:
    """Move app:v1 with its referrers."""
    one, other = f"{source.host}/app:v1", f"{target.host}/app:v1"
    path = folder / "moved.tar"
    if route == "copy":
        assertions.success(run("copy", one, other, env=env))
    elif route == "a pipe":
        pulled = assertions.success(run("pull", one, env=env))
        assertions.success(run("push", other, stdin=pulled.out, env=env))
    else:
        assertions.success(run("pull", one, "-o", path, env=env))
        assertions.success(run("push", other, "-i", path, env=env))


def listed(registry: QuirkyRegistry, subject: str) -> list[Descriptor]:
    """Return the list of referrers of a manifest: that of the registry, or else an OCI index under a tag."""
    status, raw = get(registry.host, f"/v2/app/referrers/{subject}")
    tagged = manifest(registry.host, "app", list_tag(subject))
    # A registry with the API keeps the list; a second one under a tag would become outdated.
    assert (tagged is None) == (status == 200)
    document = json.loads(raw if tagged is None else tagged)
    assert document["mediaType"] == OCI_INDEX
    return list(document["manifests"])


@pytest.mark.parametrize(("route", "at_source", "at_target"), WAYS)
def test_all_referrers_arrive(
    route: str, at_source: int, at_target: int, start: Start, found: Signed, layout: Layout, tmp_path: Path
) -> None:
    source, target = start(*api(at_source)), start(*api(at_target))
    tagged = seed_all(found, layout, source)
    if at_source != 200:
        for subject, referring in found.subjects().items():
            seed(layout, layout.index(referring), source.host, "app", list_tag(subject))
    move(route, source, target, tmp_path)
    for subject, referring in found.subjects().items():
        expected = {one["digest"]: one["artifactType"] for one in referring}
        assert {one["digest"]: one["artifactType"] for one in listed(target, subject)} == expected
        assert {digest: manifest_digest(target.host, "app", digest) for digest in expected} == {
            digest: digest for digest in expected
        }
    assert {tag: manifest_digest(target.host, "app", tag) for tag in tagged} == tagged
    assert manifest_digest(target.host, "app", "v1") == found.image["digest"]


@pytest.mark.parametrize("kind", _KINDS, ids=str)
def test_referrers_arrive_at_a_registry_with_the_quirks_of(
    kind: Kind, start: Start, found: Signed, layout: Layout, tmp_path: Path
) -> None:
    source = start()
    tagged = seed_all(found, layout, source)
    guard = kind.auth()
    # Quirks with a real wait for each request are left to test_matrix.
    target = start(*(habit for habit in kind.quirks if "once each" not in habit.name), auth=guard)
    login = {"OCISTREAM_DEST_USERNAME": USER, "OCISTREAM_DEST_PASSWORD": PASSWORD} if guard else {}
    move("copy", source, target, tmp_path, **login)
    # Check the registry's layout directly, without its quirks and passwords.
    names = {entry.get("annotations", {}).get("org.opencontainers.image.ref.name") for entry in target.layout.entries()}
    assert {"v1", *tagged} <= names
    held = {path.name for path in (target.layout.path / "blobs/sha256").iterdir()}
    assert {digest[7:] for digest in found.hanging} <= held
    assert (list_tag(found.image["digest"]) in names) == (registry_quirks.NO_SUBJECT in kind.quirks)
