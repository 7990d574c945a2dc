"""Pushes of one large layer, and the state that an interrupted one leaves at the registry and on disk."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Final

from tests.archives import small_first, tar_of
from tests.faulty_registry import Action, Fault, HangUp, Request, refusal
from tests.images import OCI_MANIFEST, Descriptor, Layout
from tests.quirks.command_runner import How, Mover
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.small_images import MIB, config_of, is_stored, layer_of
from tests.registry_http import manifest_digest, seed
from tests.runner import Result

#: The size of the layer, and the bytes that an interrupted push has sent.
SIZE: Final = 4 * MIB + 5
SENT: Final = 2 * MIB
#: Responses of a registry that is down, or behind a proxy that is.
DOWN: Final[dict[str, Action]] = {
    "hangs up": HangUp(),
    **{str(status): refusal(status) for status in (401, 403, 407, 408, 429, 500, 502, 503, 504)},
}


@dataclasses.dataclass
class Pushes:
    """Pushes of one image to app:v1 at one registry that has everything except the image's only layer.

    So every request about an upload is about the layer.
    """

    registry: QuirkyRegistry
    layout: Layout
    image: Descriptor
    mover: Mover

    def __post_init__(self) -> None:
        self.archive = tar_of(small_first(self.layout))
        bare = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config_of(self.layout, self.image)}
        document = self.layout.document({**bare, "layers": []})
        registry = self.registry
        faults, quirks, registry.faults, registry.quirks = registry.faults, registry.quirks, [], ()
        seed(self.layout, document, registry.host, "app")
        registry.faults, registry.quirks = faults, quirks
        self.registry.requests.clear()

    @property
    def digest(self) -> str:
        """The layer's digest."""
        return str(layer_of(self.layout, self.image)["digest"])

    @property
    def size(self) -> int:
        """The layer's size."""
        return int(layer_of(self.layout, self.image)["size"])

    def push(self, how: How = "file", *options: str, code: int = 0, says: str | tuple[str, ...] = ()) -> Result:
        """Push the image."""
        image = f"{self.registry.host}/app:v1"
        return self.mover.push(self.archive, image, how, "--jobs", "1", *options, code=code, says=says)

    def interrupt(self) -> None:
        """Run a push that fails when the registry has `SENT` bytes of the layer; clear its recorded requests."""
        self.registry.faults = [Fault(refusal(503), "PATCH", skip=SENT // MIB, times=None)]
        self.push("file", "--upload", "chunk=1MiB", "--retries", "0", code=7)
        self.registry.faults = []
        self.registry.requests.clear()

    def uploads(self, method: str = ".*") -> list[Request]:
        """Return the requests about uploads with this method."""
        return self.registry.asked(method, "/blobs/uploads/")

    def methods(self) -> list[str]:
        """Return the methods of the requests about uploads."""
        return [request.method for request in self.uploads()]

    def received(self) -> int:
        """Return how many bytes of the layer the registry received in all requests together."""
        return sum(request.received for request in self.uploads("PATCH|PUT"))

    def ranges(self) -> list[str | None]:
        """Return the Content-Range of each PATCH."""
        return [request.headers["Content-Range"] for request in self.uploads("PATCH")]

    def is_complete(self) -> bool:
        """Return whether the registry has the image with its complete layer."""
        there = manifest_digest(self.registry.host, "app", "v1") == self.image["digest"]
        return there and is_stored(self.registry, self.layout, layer_of(self.layout, self.image))

    def records(self) -> list[Path]:
        """Return the records of interrupted uploads."""
        return sorted((self.mover.folder / "state" / "ocistream" / "uploads").glob("*"))

    def record(self) -> dict[str, Any]:
        """Return the content of the only record."""
        (path,) = self.records()
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def age(self, seconds: float) -> None:
        """Make the only record older, in its content and in its modification time."""
        (path,) = self.records()
        written = self.record()["since"] - seconds
        path.write_text(json.dumps({**self.record(), "since": round(written)}))
        os.utime(path, (written, written))
