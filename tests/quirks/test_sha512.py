"""Images by sha512: a copy has the same digest, or no tag is written. Statement 63."""

from __future__ import annotations

import pytest

from tests.faulty_registry import Fault, Header, refusal
from tests.images import Layout, small_image
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.statements import quirk

pytestmark = quirk(63)


def written(registry: QuirkyRegistry) -> list[str]:
    """Return the references of the written manifests, in order."""
    return [request.target.rpartition("/")[2] for request in registry.asked("PUT", "/manifests/")]


def test_a_tag_refers_to_a_sha512_digest_if_the_registry_supports_it(start: Start, mover: Move, layout: Layout) -> None:
    one, other, used = start(), start(), mover()
    digest = small_image(layout, name="v1", algorithm="sha512")["digest"]
    for _ in range(2):
        assert used.run("push", f"{one.host}/app:v1", "-i", layout.path).lines() == [f"{one.host}/app:v1@{digest}"]
    assert written(one) == [digest, f"{digest}?tag=v1"]
    assert used.copy(f"{one.host}/app:v1", f"{other.host}/app:v1").lines() == [f"{other.host}/app:v1@{digest}"]
    used.pull(f"{other.host}/app@{digest}")


def test_a_registry_that_ignores_the_tag_parameter_gets_the_manifest_by_tag_once(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry, used = start(), mover()
    registry.faults = [Fault(Header("OCI-Tag", None), "PUT", times=None)]
    digest = small_image(layout, name="v1", algorithm="sha512")["digest"]
    for _ in range(2):
        used.run("push", f"{registry.host}/app:v1", "-i", layout.path)
    assert written(registry) == [digest, f"{digest}?tag=v1", "v1", f"{digest}?tag=v1"]


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ([Fault(refusal(400, "DIGEST_INVALID"), "PUT", "/manifests/sha512:", times=None)], "DIGEST_INVALID"),
        (
            [
                Fault(Header("Docker-Content-Digest", None), "PUT", "/manifests/sha512:"),
                Fault(refusal(404), "HEAD", "/manifests/sha512:", times=None),
            ],
            "does not have it under that digest",
        ),
    ],
    ids=["refused", "lost"],
)
def test_a_registry_without_sha512_is_detected_before_any_tag_is_written(
    faults: list[Fault], says: str, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    layout.name(layout.image([b"first"]), f"{registry.host}/app:v1")
    digest = small_image(layout, name=f"{registry.host}/app:v2", algorithm="sha512")["digest"]
    registry.faults = faults
    mover().run("push", "--to", registry.host, "-i", layout.path, code=8, says=(digest, says))
    assert written(registry) == [digest]
