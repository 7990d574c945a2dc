"""The content of a registry after the suite's setup: two images, four tags, referrers of one and of a missing image."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from ocistream import serve
from tests.archives import small_first, tar_of
from tests.images import Descriptor, Layout, digest_of
from tests.raw_http import Client
from tests.registry_http import seed

REPOSITORY: Final = "conformance/app"
OTHER: Final = "conformance/other"
TAGS: Final = ("one", "test0", "test1", "test2")
NOBODY: Final = digest_of(b"nobody has this")
KIND_A: Final = "application/vnd.example.a"
KIND_B: Final = "application/vnd.example.b"


class Registry(Protocol):
    """The interface of a registry that the cases use."""

    def __init__(self, path: Path) -> None:
        """Store all content below `path`."""

    @property
    def host(self) -> str:
        """HOST:PORT."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class World:
    """A registry and its content. `missing` is the digest of a manifest that does not exist and has one referrer.

    If `is_archive`, the registry is read-only.
    """

    ask: Client
    layout: Layout
    images: list[Descriptor]
    referrers: list[Descriptor]
    missing: str
    is_archive: bool

    def manifest(self, number: int) -> dict[str, Any]:
        """Return the manifest of one of the images."""
        document: dict[str, Any] = self.layout.read(self.images[number]["digest"])
        return document

    def config(self, number: int) -> str:
        """Return the digest of an image's config."""
        return str(self.manifest(number)["config"]["digest"])

    @property
    def layer(self) -> str:
        """The digest of the layer of both images."""
        return str(self.manifest(0)["layers"][0]["digest"])


def url(kind: str, reference: str, repository: str = REPOSITORY) -> str:
    """Return the path of a blob, a manifest, its referrers, `tags` or `uploads`."""
    return f"/v2/{repository}/{kind}/{reference}"


def pushed(start: type[Registry], folder: Path, stack: contextlib.ExitStack) -> World:
    """Start a registry and push the content."""
    layout, images, referrers, missing = _made(folder)
    registry = stack.enter_context(start(folder / "served"))
    for image, tags in ((images[0], TAGS[:1]), (images[1], TAGS[1:])):
        for tag in tags:
            seed(layout, image, registry.host, REPOSITORY, tag)
    for referrer in referrers:
        seed(layout, referrer, registry.host, REPOSITORY)
    return World(stack.enter_context(Client(registry.host)), layout, images, referrers, missing, is_archive=False)


def archived(folder: Path, stack: contextlib.ExitStack) -> World:
    """Write the content into an archive and serve the archive."""
    layout, images, referrers, missing = _made(folder)
    layout.name(images[0], *(f"registry.example/{REPOSITORY}:{tag}" for tag in TAGS[:1]))
    layout.name(images[1], *(f"registry.example/{REPOSITORY}:{tag}" for tag in TAGS[1:]))
    layout.enter(*referrers)
    path = folder / "app.tar"
    path.write_bytes(tar_of(small_first(layout)))
    registry = stack.enter_context(serve.Registry(path))
    return World(stack.enter_context(Client(registry.host)), layout, images, referrers, missing, is_archive=True)


def _made(folder: Path) -> tuple[Layout, list[Descriptor], list[Descriptor], str]:
    layout = Layout(folder / "made")
    images = [layout.image([b"the layer"], config={"Cmd": [f"number {number}"]}) for number in range(2)]
    referrers = [
        _referrer(layout, images[0], "a config's type", config=KIND_A),
        _referrer(layout, images[0], "an artifact's type", artifact=KIND_A),
        _referrer(layout, images[0], "another config's type", config=KIND_B),
        _referrer(layout, images[0], "another artifact's type", artifact=KIND_B),
    ]
    index = layout.document(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "artifactType": KIND_B,
            "manifests": [{key: images[1][key] for key in ("mediaType", "digest", "size")}],
            "subject": _bare(images[0]),
            "annotations": {"note": "an index"},
        }
    )
    absent = {"mediaType": images[0]["mediaType"], "digest": digest_of(b"absent"), "size": 6}
    lonely = _referrer(layout, absent, "of what is missing", artifact=KIND_A)
    return layout, images, [*referrers, index, lonely], absent["digest"]


def _referrer(layout: Layout, subject: Descriptor, note: str, *, config: str = "", artifact: str = "") -> Descriptor:
    kind = config or "application/vnd.oci.empty.v1+json"
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        **({"artifactType": artifact} if artifact else {}),
        "config": layout.blob(b"{}", kind),
        "layers": [layout.blob(note.encode(), "application/vnd.example.note")],
        "subject": _bare(subject),
        "annotations": {"note": note},
    }
    return layout.document(document)


def _bare(descriptor: Descriptor) -> Descriptor:
    return {key: descriptor[key] for key in ("mediaType", "digest", "size")}
