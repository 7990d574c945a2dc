"""Stores that implement a part of the contract: archives as `docker save` wrote them before version 25.

They contain images only, with plain layers and without manifests. A source makes the manifest of an image when it reads
the archive, so `images` returns the expected manifest. Layers have no digests, so a source finds a missing or wrong
layer while it lists the images.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tests.archives import END, files_in
from tests.contract import adapter
from tests.contract.adapter import Destination, Source
from tests.contract.adapter_types import Wanted
from tests.contract.pipes import Pipe
from tests.contract.stores import REF_NAME, REPOSITORY, Store
from tests.docker_archives import Saved, archive_of, hex_of, images_in, of_docker, plain_manifest, saved
from tests.images import Layout, digest_of, tar_layer


class DockerArchiveFileStore(Store):
    """A docker-archive in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder / "docker.tar"
        self._images: list[Saved] = []
        self._changed: dict[str, bytes | None] = {}

    def fill(self, layout: Layout) -> None:
        listed = json.loads((layout.path / "index.json").read_bytes())["manifests"]
        self._images = [saved(layout, entry, f"{REPOSITORY}:{entry['annotations'][REF_NAME]}") for entry in listed]
        self._write(self._content())

    def damage(self, digest: str, content: bytes | None) -> None:
        self._changed[digest] = content
        self._write(self._content())

    def _content(self) -> bytes:
        entries = [
            (name, self._changed.get(digest_of(content), content) if isinstance(content, bytes) else content)
            for name, content in of_docker(self._images)
        ]
        return archive_of([entry for entry in entries if entry[1] is not None])

    def _write(self, content: bytes) -> None:
        self._path.write_bytes(content)

    def _open_source(self, wanted: Wanted) -> Source:
        return adapter.archive_source(self._path, wanted)

    def _open_destination(self) -> Destination:
        return adapter.docker_archive_destination(self._path)

    def _files(self) -> dict[str, bytes]:
        return files_in(self._path.read_bytes()) if self._path.exists() else {}

    def images(self) -> dict[str, bytes]:
        files = self._files()
        found = images_in(files) if files else []
        named = {tag.rpartition(":")[2]: image for image in found for tag in image.tags}
        return {tag: json.dumps(plain_manifest(image), separators=(",", ":")).encode() for tag, image in named.items()}

    def blobs(self) -> set[str]:
        files = self._files()
        files.pop("manifest.json", None)
        for name, content in files.items():
            assert name.partition(".")[0] == hex_of(content), f"{name} is corrupt"
        return {digest_of(content) for content in files.values()}


class DockerArchivePipeStore(DockerArchiveFileStore):
    """A docker-archive through a real pipe. Layers come before `manifest.json` assigns them to images."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._pipe = Pipe(self._stack)

    def _write(self, content: bytes) -> None:
        """Do nothing: `_open_source` sends the content."""

    def _open_source(self, wanted: Wanted) -> Source:
        return adapter.pipe_source(self._pipe.opened_to_read(self._content()), wanted)

    def _open_destination(self) -> Destination:
        return adapter.docker_archive_destination(self._pipe.opened_to_write())

    def _files(self) -> dict[str, bytes]:
        # A plain layer ends like an archive, so only the list of images shows that the archive is complete.
        files = self._pipe.whole()
        return files if "manifest.json" in files else {}


DOCKER_ARCHIVES: dict[str, type[Store]] = {
    "docker-archive-file": DockerArchiveFileStore,
    "docker-archive-pipe": DockerArchivePipeStore,
}


def several_images(layout: Layout) -> list[Saved]:
    """Make images with shared and repeated layers, an empty layer, or no layers; with several names, one or none."""
    shared = tar_layer({"etc/motd": b"shared\n"})
    first = layout.image([shared, tar_layer({"a": b"first " * 500}), shared])
    second = layout.image([shared, gzip.compress(END), tar_layer({"{{name}}/b": b"second"})], platform="linux/arm64/v8")
    third = layout.image([], config={"Cmd": ["nothing"]})
    return [
        saved(layout, first, "app:1", "registry.example:5000/team/app:2"),
        saved(layout, second, "docker.io/library/other:latest"),
        saved(layout, third),
    ]
