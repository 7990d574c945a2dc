"""docker-archives as other tools write them, made from images of a layout with Python's `tarfile` alone.

Each dialect is a list of entries, which a test may reorder, remove or add to; `archive_of` makes the tar. The OCI
manifests that such an archive stands for are computed here too, without ocistream's code.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import zstandard

from tests.archives import END, Kind, padded
from tests.images import Descriptor, Layout


@dataclasses.dataclass(frozen=True)
class Link:
    """A symbolic or hard link, and its target as written in the archive."""

    target: str
    hard: bool = False


#: A name, and the content of a file, a link, or None for a folder.
Entry = tuple[str, bytes | Link | None]


@dataclasses.dataclass(frozen=True)
class Saved:
    """An image as these archives contain it: its config, its plain layers, and its tags as Docker writes them."""

    config: bytes
    layers: tuple[bytes, ...]
    tags: tuple[str, ...] = ()

    @property
    def diff_ids(self) -> list[str]:
        """The diff_ids in the config."""
        return list(json.loads(self.config)["rootfs"]["diff_ids"])


def saved(layout: Layout, image: Descriptor, *tags: str) -> Saved:
    """Read an image of a layout."""
    document = layout.read(image["digest"])
    layers = tuple(plain(layout.file(layer["digest"]).read_bytes()) for layer in document["layers"])
    return Saved(layout.file(document["config"]["digest"]).read_bytes(), layers, tags)


def plain(layer: bytes) -> bytes:
    """Return a layer without its compression."""
    if layer.startswith(b"\x1f\x8b"):
        return gzip.decompress(layer)
    if layer.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(layer)
    return layer


def hex_of(content: bytes) -> str:
    """Return the hex SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def manifest_json(
    images: Sequence[Saved], config: Callable[[Saved], str], layers: Callable[[Saved], list[str]]
) -> Entry:
    """Return the entry of `manifest.json`, which lists the images."""
    listed = [{"Config": config(one), "RepoTags": list(one.tags) or None, "Layers": layers(one)} for one in images]
    return ("manifest.json", json.dumps(listed).encode() + b"\n")


def _id(image: Saved, place: int) -> str:
    """Return the name of a layer's folder: not its digest, and different in each chain of layers."""
    return hex_of(json.dumps([image.diff_ids[: place + 1], place]).encode())


def _of_version_1(folder: str) -> list[Entry]:
    return [(f"{folder}/", None), (f"{folder}/VERSION", b"1.0"), (f"{folder}/json", b'{"id":"%b"}' % folder.encode())]


def _repositories(images: Sequence[Saved]) -> Entry:
    named = {tag.rpartition(":")[0]: {tag.rpartition(":")[2]: _id(one, 0)} for one in images for tag in one.tags}
    return ("repositories", json.dumps(named).encode() + b"\n")


def of_docker(images: Sequence[Saved], *, hard: bool = False) -> list[Entry]:
    """`docker save` of 1.10 to 24: sorted names; a repeated layer is a link to its first occurrence."""
    entries: dict[str, bytes | Link | None] = {}
    first: dict[str, str] = {}
    for image in images:
        for place, layer in enumerate(image.layers):
            folder = _id(image, place)
            entries.update(_of_version_1(folder))
            name = f"{folder}/layer.tar"
            there = first.setdefault(hex_of(layer), name)
            if there == name:
                entries[name] = layer
            else:
                entries[name] = Link(there, hard=True) if hard else Link(f"../{there}")
        entries[f"{hex_of(image.config)}.json"] = image.config
    last = manifest_json(
        images,
        lambda one: f"{hex_of(one.config)}.json",
        lambda one: [f"{_id(one, place)}/layer.tar" for place in range(len(one.layers))],
    )
    return [*sorted(entries.items()), last, _repositories(images)]


def of_docker_with_hard_links(images: Sequence[Saved]) -> list[Entry]:
    """The same, after a tool has replaced equal files with hard links."""
    return of_docker(images, hard=True)


def of_podman(images: Sequence[Saved]) -> list[Entry]:
    """Podman and skopeo: layers named by digest, and links for readers that expect folders."""
    entries: dict[str, bytes | Link | None] = {}
    for image in images:
        for place, layer in enumerate(image.layers):
            folder = _id(image, place)
            entries.setdefault(f"{hex_of(layer)}.tar", layer)
            entries.setdefault(f"{folder}/layer.tar", Link(f"../{hex_of(layer)}.tar"))
            entries.update(dict(_of_version_1(folder)[1:]))
        entries[f"{hex_of(image.config)}.json"] = image.config
    last = manifest_json(
        images, lambda one: f"{hex_of(one.config)}.json", lambda one: [f"{hex_of(layer)}.tar" for layer in one.layers]
    )
    return [*entries.items(), _repositories(images), last]


def of_podman_by_links(images: Sequence[Saved]) -> list[Entry]:
    """The same, but `manifest.json` names the links."""
    entries = [entry for entry in of_podman(images) if entry[0] != "manifest.json"]
    last = manifest_json(
        images,
        lambda one: f"{hex_of(one.config)}.json",
        lambda one: [f"{_id(one, place)}/layer.tar" for place in range(len(one.layers))],
    )
    return [*entries, last]


def packed(layer: bytes) -> bytes:
    """Return a layer as gzip, with other bytes than any other compressor makes."""
    return gzip.compress(layer, 1, mtime=1)


def of_crane(images: Sequence[Saved]) -> list[Entry]:
    """Crane and kaniko (go-containerregistry): layers compressed, a colon in the config's name."""
    entries: dict[str, bytes | Link | None] = {}
    for image in images:
        entries[f"sha256:{hex_of(image.config)}"] = image.config
        entries.update({f"{hex_of(packed(layer))}.tar.gz": packed(layer) for layer in image.layers})
    last = manifest_json(
        images,
        lambda one: f"sha256:{hex_of(one.config)}",
        lambda one: [f"{hex_of(packed(layer))}.tar.gz" for layer in one.layers],
    )
    return [*entries.items(), last]


def of_bazel(images: Sequence[Saved]) -> list[Entry]:
    """Bazel's rules_oci: configs named as in OCI layouts, and layers with names that end in `.tar.gz`."""
    entries: dict[str, bytes | Link | None] = {}
    for image in images:
        entries[f"blobs/sha256/{hex_of(image.config)}"] = image.config
        entries.update({f"blobs/sha256/{hex_of(packed(layer))}.tar.gz": packed(layer) for layer in image.layers})
    first = manifest_json(
        images,
        lambda one: f"blobs/sha256/{hex_of(one.config)}",
        lambda one: [f"blobs/sha256/{hex_of(packed(layer))}.tar.gz" for layer in one.layers],
    )
    return [first, *entries.items()]


def of_stripped_oci(images: Sequence[Saved]) -> list[Entry]:
    """The archive of a newer Docker without its index: plain layers, named by digest."""
    entries: dict[str, bytes | Link | None] = {}
    for image in images:
        for content in (image.config, *image.layers):
            entries[f"blobs/sha256/{hex_of(content)}"] = content
    last = manifest_json(
        images,
        lambda one: f"blobs/sha256/{hex_of(one.config)}",
        lambda one: [f"blobs/sha256/{hex_of(layer)}" for layer in one.layers],
    )
    return [*entries.items(), last]


def of_docker_25(
    images: Sequence[Saved], *, index: Sequence[Saved] | None = None, sources: bool = True, null: bool = False
) -> list[Entry]:
    """Docker 25 and later, with its classic store: plain layers, sorted names, and an index of the tagged images.

    `index` are the images that index.json lists, if not the tagged ones; `null` is how Docker 25.0.0 lists none.
    Without `sources`, manifest.json has no LayerSources.
    """
    entries: dict[str, bytes | Link | None] = {}
    listed: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    for image in images:
        raw = json.dumps(plain_manifest(image), separators=(",", ":")).encode()
        for content in (raw, image.config, *image.layers):
            entries[f"blobs/sha256/{hex_of(content)}"] = content
        found = plain_manifest(image)["layers"]
        listed.append(
            {
                "Config": f"blobs/sha256/{hex_of(image.config)}",
                "RepoTags": list(image.tags) or None,
                "Layers": [f"blobs/sha256/{hex_of(layer)}" for layer in image.layers],
                **({"LayerSources": {layer["digest"]: layer for layer in found}} if sources else {}),
            }
        )
        if index is None or image in index:
            entry = {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": f"sha256:{hex_of(raw)}",
                "size": len(raw),
            }
            described += [
                {
                    **entry,
                    "annotations": {
                        "io.containerd.image.name": f"docker.io/library/{tag}",
                        "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
                    },
                }
                for tag in image.tags
            ]
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": None if null else described,
    }
    last: list[Entry] = [
        ("index.json", json.dumps(document).encode()),
        ("manifest.json", json.dumps(listed).encode() + b"\n"),
        ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
    ]
    tagged = [image for image in images if image.tags]
    return [("blobs/", None), ("blobs/sha256/", None), *sorted(entries.items()), *last] + (
        [_repositories(tagged)] if tagged else []
    )


def with_file(entries: Sequence[Entry], name: str, change: Callable[[Any], Any]) -> list[Entry]:
    """Return the entries with the JSON of one file changed."""
    changed: list[Entry] = []
    for entry, content in entries:
        if entry == name:
            assert isinstance(content, bytes)
            changed.append((entry, json.dumps(change(json.loads(content))).encode()))
        else:
            changed.append((entry, content))
    return changed


#: By name. Some have plain layers under names of their own, so that a push compresses them.
DIALECTS: Final[dict[str, Callable[[Sequence[Saved]], list[Entry]]]] = {
    "docker": of_docker,
    "docker-hard-links": of_docker_with_hard_links,
    "podman": of_podman,
    "podman-links": of_podman_by_links,
    "crane": of_crane,
    "bazel": of_bazel,
    "stripped-oci": of_stripped_oci,
}


def archive_of(
    entries: Iterable[Entry], *, kind: Kind = tarfile.GNU_FORMAT, prefix: str = "", end: bytes = END
) -> bytes:
    """Return the tar of the entries; `prefix` is added before each name, but not before the targets of links."""
    output = io.BytesIO()
    for name, content in entries:
        entry = tarfile.TarInfo(prefix + name)
        entry.mtime = 1_700_000_000
        if content is None:
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        elif isinstance(content, Link):
            entry.type, entry.linkname = tarfile.LNKTYPE if content.hard else tarfile.SYMTYPE, content.target
        else:
            entry.size = len(content)
        output.write(entry.tobuf(kind, "utf-8", "surrogateescape"))
        output.write(padded(content) if isinstance(content, bytes) else b"")
    return output.getvalue() + end


def listed_in(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return the entries of an archive's `manifest.json`."""
    listed: list[dict[str, Any]] = json.loads(files["manifest.json"])
    return listed


def images_in(files: dict[str, bytes]) -> list[Saved]:
    """Return the images of an archive that has no links, after checking the layers against the configs."""
    found = []
    for entry in listed_in(files):
        layers = tuple(files[name] for name in entry["Layers"])
        image = Saved(files[entry["Config"]], layers, tuple(entry["RepoTags"] or ()))
        assert [f"sha256:{hex_of(layer)}" for layer in layers] == image.diff_ids
        found.append(image)
    return found


def plain_manifest(image: Saved) -> dict[str, Any]:
    """Return the OCI manifest of an image with plain layers."""

    def descriptor(kind: str, content: bytes) -> Descriptor:
        return {"mediaType": kind, "digest": f"sha256:{hex_of(content)}", "size": len(content)}

    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", image.config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer) for layer in image.layers],
    }
