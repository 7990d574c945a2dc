"""Checks of what recompression may change in an image, without ocistream's code."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import zstandard

from tests import schemas
from tests.archives import files_in
from tests.images import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFESTS,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Layout,
    digest_of,
    tar_layer,
)

VOUCHES_FOR: Final = "vnd.docker.reference.digest"
CODECS: Final = ("gzip", "zstd", "none")
SUFFIXES: Final = {
    OCI_LAYER: {"none": "", "gzip": "+gzip", "zstd": "+zstd"},
    DOCKER_LAYER: {"none": "", "gzip": ".gzip", "zstd": ".zstd"},
}
LAYERS: Final = {family + suffix: name for family, of in SUFFIXES.items() for name, suffix in of.items()}
_IMAGES: Final = {OCI_CONFIG, DOCKER_CONFIG}
_OF_OCI: Final = {DOCKER_MANIFEST: OCI_MANIFEST, DOCKER_LIST: OCI_INDEX, DOCKER_CONFIG: OCI_CONFIG}


def plain(content: bytes) -> bytes:
    """Return a layer without its compression, which its first bytes identify."""
    if content.startswith(b"\x1f\x8b"):
        return gzip.decompress(content)
    if content.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True).read()
    return content


def codec_of(content: bytes) -> str:
    """Return the compression of a layer."""
    return {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(content[:2], "none")


def unpacked(archive: bytes, folder: Path) -> Layout:
    """Unpack a tar into a layout in `folder`."""
    for name, content in files_in(archive).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return Layout(folder)


def named(layout: Layout) -> dict[str, Descriptor]:
    """Return the named entries of index.json by tag."""
    entries = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    key = "org.opencontainers.image.ref.name"
    return {entry["annotations"][key]: entry for entry in entries if key in entry.get("annotations", {})}


def without(fields: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


class Comparison:
    """Compares images before and after; `became` then has the new digest of each manifest, by its old digest."""

    def __init__(self, before: Layout, after: Layout, codec: str, *, may_stay: Callable[[bytes], bool]) -> None:
        """`may_stay` returns whether a layer with this content may stay unconverted."""
        self.before = before
        self.after = after
        self.codec = codec
        self.may_stay = may_stay
        self.became: dict[str, str] = {}

    def check(self, old: Descriptor, new: Descriptor) -> None:
        """Assert that a manifest or index has become the expected one."""
        raw = self.after.file(new["digest"]).read_bytes()
        assert digest_of(raw, new["digest"].partition(":")[0]) == new["digest"]
        assert len(raw) == new["size"]
        self.became[old["digest"]] = new["digest"]
        before, after = self.before.read(old["digest"]), json.loads(raw)
        assert after.get("mediaType", new["mediaType"]) == new["mediaType"]
        if new["mediaType"] == OCI_INDEX:
            schemas.validate(raw, "index")
        elif new["mediaType"] == OCI_MANIFEST and after["layers"]:
            # The schema requires a layer, the specification does not.
            schemas.validate(raw, "manifest")
        if "manifests" in before:
            self._check_index(before, after)
        elif before["config"]["mediaType"] in _IMAGES:
            self._check_image(before, after)
        changed = before.get("subject", {}).get("digest") in {o for o, n in self.became.items() if o != n}
        if before.get("config", {}).get("mediaType") not in {*_IMAGES, None} and not changed:
            assert raw == self.before.file(old["digest"]).read_bytes()
        if raw == self.before.file(old["digest"]).read_bytes():
            # A registry answers a request by tag with a sha256 digest.
            assert new["digest"] in {old["digest"], digest_of(raw)}

    def _check_index(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        assert without(after, "manifests", "mediaType") == without(before, "manifests", "mediaType")
        for old, new in zip(before["manifests"], after["manifests"], strict=True):
            self.check(old, new)
            dropped = ("mediaType", "digest", "size", "annotations")
            assert without(new, *dropped) == without(old, *dropped)
        for old, new in zip(before["manifests"], after["manifests"], strict=True):
            annotations = dict(old.get("annotations", {}))
            if (vouched := annotations.get(VOUCHES_FOR)) is not None:
                annotations[VOUCHES_FOR] = self.became[vouched]
            assert new.get("annotations", {}) == annotations
        assert after["mediaType"] in {before["mediaType"], _OF_OCI.get(before["mediaType"])}
        kinds = {entry["mediaType"] for entry in after["manifests"]}
        assert after["mediaType"] == OCI_INDEX or kinds <= {DOCKER_LIST, DOCKER_MANIFEST}

    def _check_image(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        rewritten = ("layers", "mediaType", "config")
        assert without(after, *rewritten) == without(before, *rewritten)
        assert without(after["config"], "mediaType") == without(before["config"], "mediaType")
        config = json.loads(self.after.file(after["config"]["digest"]).read_bytes())
        diff_ids = config["rootfs"]["diff_ids"]
        pairs = zip(before["layers"], after["layers"], diff_ids, strict=True)
        changed = [self._check_layer(old, new, diff_id) for old, new, diff_id in pairs]
        leaves = any(changed) and self.codec == "zstd"
        expected = _OF_OCI.get(before["mediaType"], before["mediaType"]) if leaves else before["mediaType"]
        assert after["mediaType"] == expected
        if after["mediaType"] == OCI_MANIFEST and before["mediaType"] == DOCKER_MANIFEST:
            assert after["config"]["mediaType"] == OCI_CONFIG
            assert all(layer["mediaType"].startswith(OCI_LAYER) for layer in after["layers"])
        else:
            assert after["config"]["mediaType"] == before["config"]["mediaType"]
            families = [
                [layer["mediaType"].startswith(DOCKER_LAYER) for layer in document["layers"]]
                for document in (before, after)
            ]
            assert families[0] == families[1]

    def _check_layer(self, old: Descriptor, new: Descriptor, diff_id: str) -> bool:
        content = self.after.file(new["digest"]).read_bytes()
        algorithm = new["digest"].partition(":")[0]
        assert hashlib.new(algorithm, content).hexdigest() == new["digest"].partition(":")[2]
        assert len(content) == new["size"]
        # The config's diff_id, verified by other code than wrote it.
        assert f"sha256:{hashlib.sha256(plain(content)).hexdigest()}" == diff_id
        assert without(new, "mediaType", "digest", "size") == without(old, "mediaType", "digest", "size")
        if new["digest"] == old["digest"]:
            stays = LAYERS.get(old["mediaType"], self.codec) == self.codec
            assert stays or self.may_stay(content), old
            return False
        assert LAYERS[new["mediaType"]] == codec_of(content) == self.codec
        return True


def compare(
    before: Layout, after: Layout, codec: str, *, may_stay: Callable[[bytes], bool] = lambda _: False
) -> dict[str, str]:
    """Assert that one layout's named images have become those of another; return each manifest's new digest by old."""
    old, new = named(before), named(after)
    assert set(old) == set(new)
    comparison = Comparison(before, after, codec, may_stay=may_stay)
    # Subjects come before their referrers.
    for name in sorted(old, key=lambda name: "subject" in before.read(old[name]["digest"])):
        comparison.check(old[name], new[name])
    return comparison.became


def stray_blobs(layout: Layout) -> set[str]:
    """Return the blobs of a layout that no image needs."""
    found = {f"{path.parent.name}:{path.name}" for path in (layout.path / "blobs").glob("*/*")}
    todo = list(json.loads((layout.path / "index.json").read_bytes())["manifests"])
    while todo:
        descriptor = todo.pop()
        if descriptor["digest"] in found:
            found.remove(descriptor["digest"])
        if descriptor["mediaType"] in MANIFESTS:
            document = layout.read(descriptor["digest"])
            config = [document["config"]] if "config" in document else []
            todo += [*document.get("manifests", []), *config, *document.get("layers", [])]
    return found


def all_kinds(layout: Layout, **options: Any) -> Descriptor:
    """Write an image with one layer of each compression."""
    files = {f"file-{kind}": kind.encode() * 3000 for kind in CODECS}
    layers = [
        tar_layer({"gzip": files["file-gzip"]}),
        tar_layer({"zstd": files["file-zstd"]}, compression="zstd"),
        tar_layer({"none": files["file-none"]}, compression=""),
    ]
    return layout.image(layers, **options)
