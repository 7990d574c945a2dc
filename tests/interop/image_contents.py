"""Read an image from a registry, a layout or an archive, without code of ocistream."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zstandard

from tests.images import Descriptor, digest_of
from tests.peers import DockerRegistry
from tests.registry_http import get, manifest

#: Returns a blob's bytes by its digest, or a file's by its name.
Read = Callable[[str], bytes]


@dataclasses.dataclass(frozen=True)
class Contents:
    """A complete image: each blob matches its digest, and the layers match the diff IDs of the config.

    `digest` is the manifest's, or None without a manifest. `config` is the digest of the config, `diff_ids` are
    computed from the layers themselves, and `layers` are the layers' media types.
    """

    digest: str | None
    config: str
    diff_ids: Sequence[str]
    layers: Sequence[str]


def in_registry(registry: DockerRegistry, repository: str, tag: str) -> Contents:
    """Return the image that a registry serves under a tag."""

    def blob(digest: str) -> bytes:
        status, content = get(registry.host, f"/v2/{repository}/blobs/{digest}")
        assert status == 200, digest
        return content

    raw = manifest(registry.host, repository, tag)
    assert raw is not None, f"{repository}:{tag} not found"
    return _contents(raw, blob)


def in_layout(folder: Path) -> Contents:
    """Return the one image of a layout."""
    return _of_index(lambda name: (folder / name).read_bytes())


def in_archive(archive: Path) -> Contents:
    """Return the one image of an OCI archive."""
    with tarfile.open(archive) as tar:
        return _of_index(_reader(tar))


def in_docker_archive(archive: Path) -> Contents:
    """Return the one image of a docker-archive."""
    with tarfile.open(archive) as tar:
        read = _reader(tar)
        (image,) = json.loads(read("manifest.json"))
        config = read(image["Config"])
        diff_ids = [diff_id_of(read(name)) for name in image["Layers"]]
    assert json.loads(config)["rootfs"]["diff_ids"] == diff_ids
    return Contents(None, digest_of(config), diff_ids, [])


def entries_of(archive: Path) -> list[Descriptor]:
    """Return the descriptors in an archive's index.json."""
    with tarfile.open(archive) as tar:
        return list(json.loads(_reader(tar)("index.json"))["manifests"])


def diff_id_of(layer: bytes) -> str:
    """Return the digest of a layer without its compression, which its first bytes show."""
    if layer.startswith(b"\x1f\x8b"):
        layer = gzip.decompress(layer)
    elif layer.startswith(b"\x28\xb5\x2f\xfd"):
        layer = zstandard.ZstdDecompressor().decompressobj().decompress(layer)
    return digest_of(layer)


def compression_of(media_type: str) -> str:
    """Return the compression of a media type, in the words of the command line."""
    found = re.search(r"[+.](gzip|zstd)\Z", media_type)
    return found[1] if found else "none"


def _of_index(read: Read) -> Contents:
    def blob(digest: str) -> bytes:
        return read("blobs/" + digest.replace(":", "/"))

    (entry,) = json.loads(read("index.json"))["manifests"]
    found = _contents(blob(entry["digest"]), blob)
    assert found.digest == entry["digest"]
    return found


def _contents(raw: bytes, blob: Read) -> Contents:
    document: Any = json.loads(raw)
    config = blob(document["config"]["digest"])
    assert digest_of(config) == document["config"]["digest"]
    diff_ids = []
    for layer in document["layers"]:
        content = blob(layer["digest"])
        assert (digest_of(content), len(content)) == (layer["digest"], layer["size"])
        assert compression_of(layer["mediaType"]) == _compression(content)
        diff_ids.append(diff_id_of(content))
    assert json.loads(config)["rootfs"]["diff_ids"] == diff_ids
    return Contents(digest_of(raw), digest_of(config), diff_ids, [layer["mediaType"] for layer in document["layers"]])


def _compression(content: bytes) -> str:
    return {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(content[:2], "none")


def _reader(tar: tarfile.TarFile) -> Read:
    names = {name.removeprefix("./"): name for name in tar.getnames()}

    def read(name: str) -> bytes:
        file = tar.extractfile(names[name])
        assert file is not None, name
        return file.read()

    return read
