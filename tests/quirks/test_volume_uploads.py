"""Volumes of an archive that are pushed one by one: uploads of the parts of a blob. Statement 50."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faulty_registry import Fault, Header, refusal
from tests.images import Descriptor, Layout
from tests.quirks.command_runner import Mover
from tests.quirks.fixture_types import Start
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.small_images import MIB, is_stored, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed

pytestmark = quirk(50)


@dataclasses.dataclass
class Volumes:
    """An image with one layer that spans three volumes, and an empty registry."""

    registry: QuirkyRegistry
    layout: Layout
    image: Descriptor
    mover: Mover
    paths: list[Path]

    @property
    def digest(self) -> str:
        """The layer's digest."""
        return str(layer_of(self.layout, self.image)["digest"])

    def push(self, number: int, code: int, says: str = "") -> None:
        """Push one volume."""
        image, path = f"{self.registry.host}/app:v1", self.paths[number]
        self.mover.run("push", image, "-i", path, "--jobs", "1", "--retries", "0", code=code, says=says)

    def push_all(self) -> None:
        """Push the volumes one by one, and assert that the image arrives."""
        for number, code in enumerate((10, 10, 0)):
            self.push(number, code)
        assert manifest_digest(self.registry.host, "app", "v1") == self.image["digest"]
        assert is_stored(self.registry, self.layout, layer_of(self.layout, self.image))

    def records(self) -> list[Path]:
        """Return the records of interrupted uploads."""
        return list((self.mover.folder / "state" / "ocistream" / "uploads").glob("*"))


@pytest.fixture
def volumes(start: Start, mover: Callable[..., Mover], layout: Layout) -> Volumes:
    source, used = start(), mover()
    image = layout.image([5 * MIB], name="app")
    seed(layout, image, source.host, "app", "v1")
    used.run("pull", f"{source.host}/app:v1", "-o", used.folder / "app.%03d.tar", "--split", "2MiB")
    paths = sorted(used.folder.glob("app.*.tar"))
    assert len(paths) == 3
    return Volumes(start(), layout, image, used, paths)


@pytest.mark.parametrize("status", [400, 405])
def test_the_session_of_a_refused_part_is_deleted(status: int, volumes: Volumes) -> None:
    volumes.registry.faults = [Fault(refusal(status, "UNSUPPORTED"), "PATCH", larger_than=MIB)]
    volumes.push(0, 10, "still needed")
    assert [request.method for request in volumes.registry.asked("PATCH|DELETE")][-1] == "DELETE"
    assert volumes.records() == []
    volumes.push_all()


def test_a_part_whose_later_location_cannot_be_stored_is_deleted(volumes: Volumes) -> None:
    # Without its record the next volume cannot continue the session.
    signed = Header("Location", lambda path: f"{path}?sig=0")
    volumes.registry.faults = [Fault(signed, "PATCH", times=None)]
    volumes.push(0, 10, "still needed")
    assert [request.method for request in volumes.registry.asked("PATCH|DELETE")] == ["PATCH", "DELETE"]
    assert volumes.records() == []
    volumes.registry.faults = []
    volumes.push_all()


def test_parts_with_another_digest_together_are_an_integrity_error(volumes: Volumes) -> None:
    volumes.push(0, 10)
    volumes.push(1, 10)
    volumes.registry.faults = [Fault(refusal(400, "DIGEST_INVALID"), "PUT", f"digest={volumes.digest}")]
    volumes.push(2, 5, "received all parts, but together they have another digest")
    assert volumes.records() == []
    volumes.push_all()
