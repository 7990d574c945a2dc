"""Hostile docker-archives: names and links that lead out or in circles, and wrong lists."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from typing import Any, Final

from tests.hostile.archive_parts import (
    LAYERS,
    MANIFEST,
    MIB,
    PLAIN,
    SOUND_CONFIG,
    Hostile,
    Part,
    blob,
    config_of,
    descriptor,
    entry,
    flipped,
    image,
    json_of,
    tar,
)
from tests.images import OCI_INDEX, OCI_MANIFEST

_CONFIG: Final = "config.json"
_LAYERS: Final = ("one/layer.tar", "two/layer.tar")
_ESCAPES: Final = "\x1b]0;owned\x07\x1b[2J\r\nocistream: all is well"


def _saved(
    *more: Part, first: Part | None = None, config: bytes = SOUND_CONFIG, listed: bytes | None = None, **fields: Any
) -> bytes:
    """Return an archive as Docker saves it; its first layer and its list can be replaced."""
    document = [{"Config": _CONFIG, "RepoTags": ["app:1"], "Layers": list(_LAYERS), **fields}]
    layer: Part = (_LAYERS[0], PLAIN[0]) if first is None else first
    manifest = json_of(document) if listed is None else listed
    return tar(layer, (_LAYERS[1], PLAIN[1]), (_CONFIG, config), *more, ("manifest.json", manifest))


def _listed(raw: bytes) -> bytes:
    return _saved(listed=raw)


def _linked(*targets: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    """Return an archive whose first layer is a link to a link, and so on; `targets` are their targets."""
    names = [_LAYERS[0], *(f"one/{number}" for number in range(1, len(targets)))]
    first, *others = (entry(name, b"", kind, target=to) for name, to in zip(names, targets, strict=True))
    return _saved(*others, ("one/plain.tar", PLAIN[0]), first=first)


def _layers(*names: object) -> bytes:
    return _saved(Layers=list(names))


def _with_diff_ids(diff_ids: Sequence[object]) -> bytes:
    return _saved(config=config_of(PLAIN, rootfs={"type": "layers", "diff_ids": diff_ids}))


_NAMED: Final = {
    "io.containerd.image.name": "docker.io/library/app:1",
    "org.opencontainers.image.ref.name": "1",
}
#: The config of another image of the same layers.
_OTHER: Final = config_of(PLAIN, author="Mallory")


def _path(content: bytes) -> str:
    return blob(content)[0]


def _image_of(config: bytes, *names: str, layers: Sequence[bytes] = LAYERS) -> dict[str, Any]:
    """Return the entry of an image in manifest.json."""
    return {"Config": _path(config), "RepoTags": list(names) or None, "Layers": [_path(layer) for layer in layers]}


def _beside(*listed: object, raw: bytes | None = None, first: bool = False, more: Sequence[Part] = ()) -> bytes:
    """Return an archive whose index.json has one image as app:1; manifest.json says something else."""
    manifest: Part = ("manifest.json", json_of(listed) if raw is None else raw)
    files: list[Part] = [*image(entry={"annotations": _NAMED}), blob(_OTHER), *more]
    return tar(manifest, *files) if first else tar(*files[2:], *files[:2], manifest)


def _platforms() -> bytes:
    """Return an archive whose app:1 is an index of two platforms in index.json, and a third image in manifest.json."""
    made = [(config_of(PLAIN, architecture=name), name) for name in ("amd64", "arm64")]
    found = [(image(config=config), name) for config, name in made]
    entries = [
        descriptor(files[MANIFEST][1] or b"", OCI_MANIFEST, platform={"os": "linux", "architecture": name})
        for files, name in found
    ]
    index = json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    listing = {"schemaVersion": 2, "manifests": [descriptor(index, OCI_INDEX, annotations=_NAMED)]}
    files = {name: content for items, _ in found for name, content in items}
    files["index.json"] = json_of(listing)
    return tar(*files.items(), blob(index), blob(_OTHER), ("manifest.json", json_of([_image_of(_OTHER, "app:1")])))


ALL: Final = [
    Hostile("docker-layer-out", "a layer is ../../../../etc/passwd",
            lambda: _layers("../../../../etc/passwd", _LAYERS[1])),
    Hostile("docker-layer-absolute", "a layer is /etc/passwd", lambda: _layers("/etc/passwd", _LAYERS[1])),
    Hostile("docker-config-out", "the config is /etc/passwd", lambda: _saved(Config="/etc/passwd")),
    Hostile("docker-config-empty", "the config has no name", lambda: _saved(Config="")),
    Hostile("docker-config-escapes", "the config's name has terminal control sequences",
            lambda: _saved(Config=_ESCAPES)),
    Hostile("docker-layer-escapes", "a layer's name has terminal control sequences",
            lambda: _layers(_ESCAPES, _LAYERS[1])),
    Hostile("docker-link-absolute", "a layer is a link to /etc/passwd", lambda: _linked("/etc/passwd")),
    Hostile("docker-link-out", "a layer is a link to ../../../etc/passwd", lambda: _linked("../../../etc/passwd")),
    Hostile("docker-link-chain", "a layer is a link to a link to a layer", lambda: _linked("1", "plain.tar")),
    Hostile("docker-link-loop", "a layer is a link to a link back", lambda: _linked("1", "layer.tar")),
    Hostile("docker-link-itself", "a layer is a link to itself", lambda: _linked("layer.tar")),
    Hostile("docker-hard-link-out", "a layer of a docker-archive is a hard link to /etc/shadow",
            lambda: _linked("/etc/shadow", kind=tarfile.LNKTYPE)),
    Hostile("docker-hard-link-chain", "a layer is a hard link to a hard link",
            lambda: _linked("one/1", "one/plain.tar", kind=tarfile.LNKTYPE)),
    Hostile("docker-link-proc", "a layer is a link to /proc/self/environ", lambda: _linked("/proc/self/environ")),
    Hostile("docker-layer-device", "a layer is a device",
            lambda: _saved(first=entry(_LAYERS[0], b"", tarfile.CHRTYPE))),
    Hostile("docker-layer-directory", "a layer of a docker-archive is a directory",
            lambda: _saved(first=entry(_LAYERS[0], b"", tarfile.DIRTYPE))),
    Hostile("docker-layer-sparse", "a layer is a sparse file",
            lambda: _saved(first=entry(_LAYERS[0], PLAIN[0], tarfile.GNUTYPE_SPARSE))),
    Hostile("docker-layer-twice", "two entries have a layer's name", lambda: _saved((_LAYERS[0], PLAIN[1]))),
    Hostile("docker-layer-is-config", "a layer is the config", lambda: _layers(_CONFIG, _LAYERS[1])),
    Hostile("docker-config-is-layer", "the config is a layer", lambda: _saved(Config=_LAYERS[0])),
    Hostile("docker-layer-missing", "one layer fewer than the config has", lambda: _layers(_LAYERS[0])),
    Hostile("docker-layer-more", "one layer more than the config has", lambda: _layers(*_LAYERS, _LAYERS[0])),
    Hostile("docker-layers-swapped", "layers in another order than in the config",
            lambda: _layers(*reversed(_LAYERS)), code=5),
    Hostile("docker-layer-flipped", "a bit of a plain layer is changed",
            lambda: _saved(first=(_LAYERS[0], flipped(PLAIN[0], 515))), code=5),
    Hostile("docker-diff-ids-path", "a diff_id is a path out of the archive",
            lambda: _with_diff_ids(["sha256:../../x", "sha256:"])),
    Hostile("docker-diff-ids-object", "diff_ids that are numbers", lambda: _with_diff_ids([1, 2])),
    Hostile("docker-config-no-json", "a config that is not JSON", lambda: _saved(config=b"{no")),
    Hostile("docker-config-9-mib", "a config of 9 MiB in a docker-archive",
            lambda: _saved(config=config_of(PLAIN, x="x" * 9 * MIB))),
    Hostile("docker-list-twice", "two entries have the name manifest.json", lambda: _saved(("manifest.json", b"[]"))),
    Hostile("docker-list-object", "manifest.json is an object", lambda: _listed(b'{"Config":"config.json"}')),
    Hostile("docker-list-goes-on", "manifest.json continues after its list", lambda: _listed(b'[],"more":[]')),
    Hostile("docker-list-breaks-out", "manifest.json closes the object that a parser may wrap it in",
            lambda: _listed(b'[]},"x":{"y":[]')),
    Hostile("docker-list-numbers", "manifest.json lists numbers", lambda: _listed(b"[1,2]")),
    Hostile("docker-list-layers-string", "layers that are a string", lambda: _saved(Layers="one/layer.tar")),
    Hostile("docker-list-layers-numbers", "layers that are numbers", lambda: _layers(1, 2)),
    Hostile("docker-list-keys-twice", "two configs in one entry",
            lambda: _listed(b'[{"Config":"a","Config":"config.json","Layers":[]}]')),
    Hostile("docker-list-keys-case", "a Config, and a config that tools in Go use instead",
            lambda: _listed(json_of([{"Config": _CONFIG, "Layers": _LAYERS, "config": "other.json"}]))),
    Hostile("docker-list-5-mib", "manifest.json of 5 MiB", lambda: _saved(x="x" * 5 * MIB)),
    Hostile("docker-list-10,001-layers", "10,001 layers", lambda: _layers(*[_LAYERS[0]] * 10_001)),
    Hostile("docker-list-nan", "manifest.json with a NaN", lambda: _saved(x=float("nan"))),
    Hostile("docker-list-deep", "manifest.json with lists in lists, 100,000 deep",
            lambda: _listed(b"[" * 100_000 + b"]" * 100_000)),
    Hostile("docker-and-index-same-name", "app:1 is one image in index.json, and another one in manifest.json",
            lambda: _beside(_image_of(_OTHER, "app:1"))),
    Hostile("docker-and-index-same-name-first", "the same, with manifest.json at the beginning",
            lambda: _beside(_image_of(_OTHER, "app:1"), first=True)),
    Hostile("docker-and-index-same-name-in-full", "the same, with the full name in manifest.json",
            lambda: _beside(_image_of(_OTHER, "docker.io/library/app:1"))),
    Hostile("docker-and-index-swapped", "manifest.json gives the name to the other one of two images",
            lambda: _beside(_image_of(SOUND_CONFIG), _image_of(_OTHER, "app:1"))),
    Hostile("docker-and-index-name-twice", "manifest.json gives one name to two images",
            lambda: _beside(_image_of(SOUND_CONFIG, "app:1"), _image_of(_OTHER, "app:1"))),
    Hostile("docker-and-index-other-name", "manifest.json lists another image, under another name",
            lambda: _beside(_image_of(_OTHER, "other:1"))),
    Hostile("docker-and-index-no-name", "manifest.json lists another image, without a name",
            lambda: _beside(_image_of(_OTHER))),
    Hostile("docker-and-index-other-layers", "manifest.json gives an image other layers than index.json",
            lambda: _beside(_image_of(SOUND_CONFIG, "app:1", layers=LAYERS[::-1]))),
    Hostile("docker-and-index-no-layers", "manifest.json gives an image no layers",
            lambda: _beside(_image_of(SOUND_CONFIG, "app:1", layers=()))),
    Hostile("docker-and-index-file", "beside an index.json, manifest.json has its config in a separate file",
            lambda: _beside({**_image_of(_OTHER, "app:1"), "Config": _CONFIG}, more=[(_CONFIG, _OTHER)])),
    Hostile("docker-and-index-lacks", "beside an index.json, manifest.json lists an image that does not exist",
            lambda: _beside(_image_of(SOUND_CONFIG, "app:1"), _image_of(b"{}"))),
    Hostile("docker-and-index-platforms", "manifest.json lists an image that is not one of an index's platforms",
            _platforms),
    Hostile("docker-and-index-no-list", "beside an index.json, manifest.json is not a list",
            lambda: _beside(raw=b"{}")),
    Hostile("docker-list-layout", "a docker-archive with an oci-layout of version 9",
            lambda: _saved(("oci-layout", b'{"imageLayoutVersion":"9.0.0"}'))),
    Hostile("docker-nothing-listed", "no manifest.json, and no index.json", lambda: tar((_CONFIG, SOUND_CONFIG))),
]  # fmt: skip
