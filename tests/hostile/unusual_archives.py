"""Unusual but legal archives, and defects that affect no image: a file and a pipe give the same result."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import tarfile
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tests.archives import END, Item, tar_of, with_checksum
from tests.docker_archives import DIALECTS, Saved, archive_of, of_docker_25
from tests.hostile.archive_parts import (
    CONFIG,
    INDEX,
    KIB,
    LAYER,
    LAYERS,
    LAYOUT,
    MANIFEST,
    MIB,
    PLAIN,
    SOUND_CONFIG,
    base256,
    blob,
    config_of,
    descriptor,
    entry,
    image,
    json_of,
    pax,
    tar,
    with_other,
)
from tests.images import OCI_EMPTY, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

#: Exit codes from a file and from a pipe.
Codes = tuple[int, int]
NAME: Final = "org.opencontainers.image.ref.name"


@dataclasses.dataclass(frozen=True)
class Odd:
    """One archive. `apart` has the ways in which a pipe cannot do what a file can, with both exit codes."""

    name: str
    what: str
    make: Callable[[], bytes]
    apart: Mapping[str, Codes] = dataclasses.field(default_factory=dict)


#: `push --to` needs the names and referrers of images before it sends a blob, and a pipe cannot be read again.
_LATE: Final[Mapping[str, Codes]] = {"push --to": (0, 8)}
_REGISTRY: Final = "registry.example.com"

_FULL: Final = f"{_REGISTRY}/team/app:1"
_NAMED: Final = image(entry={"annotations": {NAME: "app", "io.containerd.image.name": _FULL}})
_OTHER_CONFIG: Final = config_of(PLAIN, author="another")
_OTHER: Final = image(config=_OTHER_CONFIG, entry={"annotations": {NAME: f"{_REGISTRY}/team/other:2"}})


_CONFIG: Final = "config.json"
_DOCKER_LISTED: Final = [{"Config": _CONFIG, "RepoTags": [f"{_REGISTRY}/app:1"], "Layers": ["one", "two"]}]


def _order(*places: int) -> bytes:
    return tar(*(_NAMED[place] for place in places))


def _listing(*entries: Mapping[str, object]) -> Item:
    return "index.json", json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)})


def _raw(place: int, files: Sequence[Item] = _NAMED) -> bytes:
    content = files[place][1]
    assert content is not None
    return content


def _listed(files: Sequence[Item], name: str) -> dict[str, object]:
    return descriptor(_raw(MANIFEST, files), OCI_MANIFEST, annotations={NAME: name})


def _two(first: str, second: str) -> bytes:
    """Return an archive of two images with these names."""
    index = _listing(_listed(_NAMED, first), _listed(_OTHER, second))
    return tar(_NAMED[LAYOUT], index, *_NAMED[MANIFEST:], *_OTHER[MANIFEST:LAYER])


def _around(nest: bytes, files: Sequence[Item], *, last: bool) -> bytes:
    """Return an archive of an index and its files, before or after them."""
    index = _listing(descriptor(nest, OCI_INDEX, annotations={NAME: _FULL}))
    return tar(_NAMED[LAYOUT], *([*files, blob(nest), index] if last else [index, blob(nest), *files]))


def _nested(*, last: bool) -> bytes:
    """Return an image within an index that comes first or last."""
    nest = json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {**descriptor(_raw(MANIFEST), OCI_MANIFEST), "platform": {"os": "linux", "architecture": "amd64"}},
        {**descriptor(_raw(MANIFEST, _OTHER), OCI_MANIFEST), "platform": {"os": "linux", "architecture": "arm64"}},
    ]})  # fmt: skip
    return _around(nest, [*_NAMED[MANIFEST:], *_OTHER[MANIFEST:LAYER]], last=last)


def _partial(*, last: bool) -> bytes:
    """Return an index of two platforms, one of which is missing, before or after its image."""
    lacking = descriptor(b"arm64", OCI_MANIFEST, platform={"os": "linux", "architecture": "arm64"})
    there = descriptor(_raw(MANIFEST), OCI_MANIFEST, platform={"os": "linux", "architecture": "amd64"})
    nest = json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [there, lacking]})
    return _around(nest, _NAMED[MANIFEST:], last=last)


def _cache(*, last: bool) -> bytes:
    """Return a cache as BuildKit writes it: an index of layers, before or after them."""
    config = b'{"layers":[]}'
    nest = json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        *(descriptor(layer, f"{OCI_LAYER}+gzip") for layer in LAYERS),
        descriptor(config, "application/vnd.buildkit.cacheconfig.v0"),
    ]})  # fmt: skip
    return _around(nest, [*map(blob, LAYERS), blob(config)], last=last)


def _signed(*, last: bool) -> bytes:
    """Return an image and a listed referrer, which comes before or after the layers."""
    signature = json_of({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.sbom",
        "config": descriptor(b"{}", OCI_EMPTY), "layers": [descriptor(b"sbom", "text/plain")],
        "subject": descriptor(_raw(MANIFEST), OCI_MANIFEST),
    })  # fmt: skip
    index = _listing(_listed(_NAMED, _FULL), descriptor(signature, OCI_MANIFEST))
    more = [blob(signature), blob(b"{}"), blob(b"sbom")]
    start, layers = [_NAMED[LAYOUT], index, _NAMED[MANIFEST], _NAMED[CONFIG]], _NAMED[LAYER:]
    return tar(*start, *(layers + more if last else more + layers))


def _unneeded(content: bytes, wrong: bytes, *, first: bool) -> bytes:
    """Return an image, and wrong bytes under the digest of a blob that no image needs."""
    stray = (blob(content)[0], wrong)
    return tar(stray, *_NAMED) if first else tar(*_NAMED, stray)


def _docker(dialect: str, *tags: str) -> bytes:
    saved = Saved(SOUND_CONFIG, PLAIN, tags)
    return archive_of(DIALECTS[dialect]([saved]))


def _docker_25(*tags: str) -> bytes:
    """Return the output of `docker save` for two images: one has these tags, and index.json lists only that one."""
    other = Saved(_OTHER_CONFIG, PLAIN, ())
    return archive_of(of_docker_25([Saved(SOUND_CONFIG, PLAIN, tags), other], null=not tags))


def _docker_manifest_first() -> bytes:
    entries = DIALECTS["docker"]([Saved(SOUND_CONFIG, PLAIN, (f"{_REGISTRY}/app:1",))])
    return archive_of(sorted(entries, key=lambda one: one[0] != "manifest.json"))


def _docker_listed(*files: Item, listed: Sequence[object]) -> bytes:
    return tar(*files, ("manifest.json", json_of(listed)))


def _spaced() -> bytes:
    """Return an image whose manifest begins with 2 KiB of spaces, and comes first."""
    files = image(raw_manifest=b" " * 2 * KIB + _raw(MANIFEST, image()))
    return tar(files[MANIFEST], *files[:MANIFEST], *files[CONFIG:])


def _signed_checksum() -> bytes:
    block = bytearray(entry("\u00e9", b""))
    block[148:156] = f"{sum(byte - 256 * (byte > 127) for byte in block[:148] + block[156:]) + 256:06o}\0 ".encode()
    return tar(bytes(block), *_NAMED)


ORDERS: Final = [
    Odd("order-ours", "small files first", lambda: _order(0, 1, 2, 3, 4, 5)),
    Odd("order-index-last", "index.json comes last", lambda: _order(0, 2, 3, 4, 5, 1), _LATE),
    Odd("order-layout-last", "oci-layout comes last", lambda: _order(1, 2, 3, 4, 5, 0)),
    Odd("order-backwards", "the layers come first, and the index last", lambda: _order(5, 4, 3, 2, 1, 0), _LATE),
    Odd("order-manifest-last", "the manifest comes last", lambda: _order(0, 1, 3, 4, 5, 2), _LATE),
    Odd("order-config-last", "the config comes last", lambda: _order(0, 1, 2, 4, 5, 3)),
    Odd("order-index-of-index-last", "an index of two platforms, after its manifests", lambda: _nested(last=True),
        _LATE),
    Odd("order-index-of-index-first", "an index of two platforms, before its manifests", lambda: _nested(last=False),
        _LATE),
    Odd("order-partial-index-last", "an index without one of its platforms, after the image",
        lambda: _partial(last=True), _LATE),
    Odd("order-partial-index-first", "an index without one of its platforms, before the image",
        lambda: _partial(last=False), _LATE),
    Odd("order-cache-last", "a BuildKit cache, its index last", lambda: _cache(last=True), _LATE),
    Odd("order-cache-first", "a BuildKit cache, its index first", lambda: _cache(last=False)),
    Odd("order-referrer-first", "a referrer comes before the layers of its image", lambda: _signed(last=False)),
    Odd("order-referrer-last", "a referrer comes after the layers of its image", lambda: _signed(last=True),
        _LATE),
]  # fmt: skip

FORMATS: Final = [
    Odd("format-dot", "names begin with ./, and directories have entries", lambda: tar_of(
        [("", None), ("blobs", None), ("blobs/sha256", None), *_NAMED], prefix="./")),
    Odd("format-gnu", "GNU's headers", lambda: tar_of(_NAMED, kind=tarfile.GNU_FORMAT)),
    Odd("format-ustar", "headers of the older POSIX format", lambda: tar_of(_NAMED, kind=tarfile.USTAR_FORMAT)),
    Odd("format-old-file", "a layer has the type of regular files in old archives",
        lambda: with_other(LAYER, lambda name, content: entry(name, content, tarfile.AREGTYPE), _NAMED)),
    Odd("format-size-of-bytes", "a layer's size is not in octal digits",
        lambda: with_other(LAYER, lambda name, content: entry(name, content, size=base256(len(content))), _NAMED)),
    Odd("format-pax-size", "a pax header repeats the size of a layer",
        lambda: with_other(LAYER, lambda name, content: pax(("size", str(len(content)))) + entry(name, content),
                           _NAMED)),
    Odd("format-comments", "comments in pax headers, for all entries and for one",
        lambda: tar(pax(("comment", "x"), kind=tarfile.XGLTYPE), *_NAMED[:LAYER], pax(("comment", "y")),
                    *_NAMED[LAYER:])),
    Odd("format-signed-checksum", "a checksum of signed bytes", _signed_checksum),
    Odd("format-filled", "a MiB of zeros after the end", lambda: tar(*_NAMED, end=END + bytes(MIB))),
    Odd("format-gzip", "inside gzip", lambda: gzip.compress(tar(*_NAMED), mtime=0)),
    Odd("format-checksum", "the checksum has no NUL", lambda: tar(with_checksum(entry("x", b"")), *_NAMED)),
]  # fmt: skip

CONTENTS: Final = [
    Odd("files-of-others", "files that belong to no image, in all places",
        lambda: tar(("a.txt", b"x"), *_NAMED[:MANIFEST], ("b.json", b"{}"), *_NAMED[MANIFEST:], ("z", b"y" * 5000))),
    Odd("files-above", "a file ../x", lambda: tar(entry("../x", b"x"), *_NAMED)),
    Odd("files-in-blobs", "a file in blobs that is not a blob", lambda: tar(*_NAMED, ("blobs/sha256/x", b"x"))),
    Odd("links", "links that no image needs", lambda: tar(
        entry("a", b"", tarfile.SYMTYPE, target="/etc"), *_NAMED, entry("b", b"", tarfile.LNKTYPE, target="a"))),
    Odd("devices", "a FIFO and a device", lambda: tar(entry("a", b"", tarfile.FIFOTYPE), *_NAMED,
                                                     entry("b", b"", tarfile.CHRTYPE))),
    Odd("layer-twice", "a layer twice", lambda: tar(*_NAMED, _NAMED[LAYER])),
    Odd("manifest-again", "a manifest twice", lambda: tar(_NAMED[MANIFEST], *_NAMED)),
    Odd("layer-listed-twice", "a manifest with one layer twice",
        lambda: tar(*image(layers=(LAYERS[0], LAYERS[0]), config=config_of((PLAIN[0], PLAIN[0]))))),
    Odd("layout-none", "no oci-layout", lambda: tar(*_NAMED[INDEX:])),
    Odd("images-none", "an index.json without images", lambda: tar(_NAMED[LAYOUT], _listing())),
    Odd("images-two", "two images", lambda: _two(f"{_REGISTRY}/a:1", f"{_REGISTRY}/b:2"), _LATE),
    Odd("images-of-one-name", "two images with one name", lambda: _two(f"{_REGISTRY}/a:1", f"{_REGISTRY}/a:1")),
    Odd("names-two", "one image with two names", lambda: tar(
        _NAMED[LAYOUT], _listing(_listed(_NAMED, f"{_REGISTRY}/a:1"), _listed(_NAMED, f"{_REGISTRY}/b:2")),
        *_NAMED[MANIFEST:])),
    Odd("name-none", "an image without a name", lambda: tar(*image(entry={"annotations": {}}))),
    Odd("manifest-spaced", "a manifest that begins with 2 KiB of spaces, before the index", _spaced),
    Odd("both-lists", "an index.json and a manifest.json of the same image", lambda: tar(
        *_NAMED, ("manifest.json", json_of([{"Config": _NAMED[CONFIG][0], "RepoTags": [f"{_REGISTRY}/team/app:1"],
                                           "Layers": [name for name, _ in _NAMED[LAYER:]]}])))),
    Odd("unneeded-layer", "a blob that no image needs", lambda: tar(blob(b"unneeded"), *_NAMED), _LATE),
    Odd("unneeded-json", "a JSON blob that no image needs", lambda: tar(blob(b'{"un":"needed"}'), *_NAMED)),
    Odd("unneeded-json-6-mib", "6 MiB of JSON blobs that no image needs, before the index", lambda: tar(
        *(blob(json_of({"x": str(number) * MIB})) for number in range(7)), *_NAMED), _LATE),
    Odd("unneeded-wrong-last", "a corrupt blob that no image needs, at the end",
        lambda: _unneeded(b"unneeded", b"unn33ded", first=False)),
    Odd("unneeded-wrong-first", "a corrupt blob that no image needs, at the beginning",
        lambda: _unneeded(b"unneeded", b"unn33ded", first=True), _LATE),
    Odd("unneeded-json-wrong-first", "a corrupt JSON blob that no image needs, at the beginning",
        lambda: _unneeded(b'{"un":"needed"}', b'{"un":"n33ded"}', first=True)),
    Odd("unneeded-wrong-6-mib", "a corrupt blob and 6 MiB of JSON, which no image needs, before all other files",
        lambda: tar((blob(b"unneeded")[0], b"unn33ded"), *(blob(json_of({"x": str(n) * (MIB - 8)})) for n in range(6)),
                    *_NAMED[MANIFEST:], *_NAMED[:MANIFEST]), _LATE),
    Odd("unneeded-twice-wrong", "a blob that no image needs, twice, the second time corrupt",
        lambda: tar(*_NAMED, blob(b"unneeded"), (blob(b"unneeded")[0], b"unn33ded"))),
    Odd("config-of-artifact", "an artifact with a config that is not JSON", lambda: tar(*image(
        config=b"binary", of_config={"mediaType": "application/vnd.example.config"}))),
]  # fmt: skip

DOCKER: Final = [
    *(Odd(f"docker-of-{dialect}", f"a docker-archive as {dialect} writes it",
          functools.partial(_docker, dialect, f"{_REGISTRY}/app:1"), _LATE)
      for dialect in DIALECTS),
    Odd("docker-manifest-first", "a docker-archive with manifest.json first", _docker_manifest_first, _LATE),
    Odd("docker-without-name", "a docker-archive of an image without a name", lambda: _docker("docker"),
        {"push --to": (2, 8)}),
    Odd("docker-two-names", "a docker-archive of an image with two names",
        lambda: _docker("docker", f"{_REGISTRY}/a:1", f"{_REGISTRY}/b:1"), _LATE),
    Odd("docker-25", "Docker 25's archive of an image with a name and one without", lambda: _docker_25("app:1"),
        {"push --to": (2, 8)}),
    Odd("docker-25-nameless", "Docker 25's archive of two images without names", _docker_25,
        {"push --to": (2, 8)}),
    Odd("docker-none", "a docker-archive without images", lambda: _docker_listed((_CONFIG, SOUND_CONFIG), listed=[])),
    Odd("docker-unneeded", "a docker-archive with a layer that no image has",
        lambda: _docker_listed(("one", PLAIN[0]), ("two", PLAIN[1]), ("three.tar", PLAIN[0] + bytes(512)),
                               (_CONFIG, SOUND_CONFIG), listed=_DOCKER_LISTED), _LATE),
    Odd("docker-layout", "a docker-archive with an oci-layout",
        lambda: _docker_listed(("one", PLAIN[0]), ("two", PLAIN[1]), (_CONFIG, SOUND_CONFIG), image()[LAYOUT],
                               listed=_DOCKER_LISTED), _LATE),
    Odd("docker-compressed", "a docker-archive with layers inside gzip",
        lambda: _docker_listed(("one", LAYERS[0]), ("two", LAYERS[1]), (_CONFIG, SOUND_CONFIG),
                               listed=_DOCKER_LISTED), _LATE),
]  # fmt: skip

ODD: Final[dict[str, Odd]] = {odd.name: odd for odd in [*ORDERS, *FORMATS, *CONTENTS, *DOCKER]}
