"""Hostile archives with a valid tar: wrong index.json, manifests, configs, descriptors and blobs."""

from __future__ import annotations

from typing import Any, Final

from tests.hostile.archive_parts import (
    CONFIG,
    INDEX,
    KIB,
    LAYER,
    LAYERS,
    MANIFEST,
    MIB,
    PLAIN,
    Hostile,
    blob,
    config_of,
    descriptor,
    digest_of,
    flipped,
    image,
    json_of,
    nested,
    noise,
    tar,
    with_other,
)
from tests.images import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

_ESCAPES: Final = "\x1b]0;owned\x07\x1b[2J\r\nocistream: all is well\x9b31m\u202egnp"
_LONG_S: Final = "layer\u017f"
_SOUND: Final = image()[INDEX][1] or b""
_LISTED: Final[dict[str, Any]] = descriptor(image()[MANIFEST][1] or b"", OCI_MANIFEST)


def _index(raw: bytes) -> bytes:
    return tar(*image(raw_index=raw))


def _entry(**fields: Any) -> bytes:
    return tar(*image(entry=fields))


def _layer(**fields: Any) -> bytes:
    return tar(*image(of_layer=fields))


def _manifest(raw: bytes | None = None, **fields: Any) -> bytes:
    return tar(*image(raw_manifest=raw, manifest=fields))


def _listing(manifests: object, **more: Any) -> bytes:
    return _index(json_of({"schemaVersion": 2, "manifests": manifests, **more}))


def _volume(volume: str, parts: str | None = None) -> bytes:
    """Return a volume that omits a layer and says so; `volume` and `parts` are its annotations."""
    notes = {"volume": volume, "parts": parts, "omitted": f"# volume app.1\n{digest_of(LAYERS[0])}"}
    annotations = {f"vnd.ocistream.{key}": text for key, text in notes.items() if text is not None}
    files = image(index={"annotations": annotations})
    return tar(*files[:LAYER], *files[LAYER + 1 :])


def _parts(*lines: str) -> bytes:
    return _volume(f"0 2 {digest_of(b'set')} app.%d", "\n".join((f"# {digest_of(LAYERS[0])}", *lines)))


def _deep(depth: int) -> bytes:
    return _SOUND[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"


def _config(content: bytes, *, first: bool = False) -> bytes:
    """Return an image with another config, which may come before the documents that identify it."""
    files = image(config=content)
    return tar(files[CONFIG], *files[:CONFIG], *files[LAYER:]) if first else tar(*files)


def _spoiled(place: int, *, first: bool = False) -> bytes:
    """Return an image with a bit changed in one of its blobs, which may come first."""
    files = image()
    name, content = files.pop(place)
    files.insert(0 if first else place, (name, flipped(content or b"")))
    return tar(*files)


def _many_layers(manifests: int, each: int) -> bytes:
    """Return manifests with `each` layers of their own, none of which exists."""
    raws = [
        json_of({"schemaVersion": 2, "config": _LISTED, "layers": [
            descriptor(b"%d %d" % (number, place), OCI_LAYER) for place in range(each)
        ]})
        for number in range(manifests)
    ]  # fmt: skip
    listed = [descriptor(raw, OCI_MANIFEST) for raw in raws]
    nest = json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})
    return tar(*image(raw_index=json_of({"manifests": [descriptor(nest, OCI_INDEX)]})), *map(blob, (nest, *raws)))


def _great_manifests(count: int, size: int) -> bytes:
    """Return an index of `count` manifests of `size` bytes each."""
    raws = [json_of({"schemaVersion": 2, "config": descriptor(b"{}", OCI_CONFIG), "layers": [],
                     "annotations": {"x": f"{number}" * size}}) for number in range(count)]  # fmt: skip
    nest = json_of({"schemaVersion": 2, "manifests": [descriptor(raw, OCI_MANIFEST) for raw in raws]})
    files = image(raw_index=json_of({"manifests": [descriptor(nest, OCI_INDEX)]}))
    return tar(*files, blob(nest), *map(blob, raws))


def _within(listed: list[dict[str, Any]]) -> bytes:
    """Return an image within an index that has the entries `listed`."""
    nest = json_of({"schemaVersion": 2, "manifests": listed})
    return tar(*image(raw_index=json_of({"manifests": [descriptor(nest, OCI_INDEX)]})), blob(nest))


def _list_first(raw: bytes) -> bytes:
    """Return an index of a valid image and a manifest; the manifest comes first."""
    nest = json_of({"schemaVersion": 2, "manifests": [_LISTED, descriptor(raw, OCI_MANIFEST)]})
    files = image(raw_index=json_of({"schemaVersion": 2, "manifests": [descriptor(nest, OCI_INDEX)]}))
    return tar(blob(raw), *files, blob(nest))


INDEXES: Final = [
    Hostile("volume-nonsense", "a volume without its number", lambda: _volume("first of two")),
    Hostile("volume-beyond", "the third of two volumes", lambda: _volume(f"2 2 {digest_of(b'')} app.%d")),
    Hostile("volume-of-millions", "one of millions of volumes",
            lambda: _volume(f"0 9999999 {digest_of(b'')} app.%d")),
    Hostile("volume-path", "the names of the volumes are a path",
            lambda: _volume(f"0 2 {digest_of(b'')} ../../etc/%d")),
    Hostile("volume-escapes", "the names of the volumes have terminal control sequences",
            lambda: _volume(f"0 2 {digest_of(b'')} {_ESCAPES}%d")),
    Hostile("parts-nonsense", "the annotation of parts is not a list of parts", lambda: _parts("here and there")),
    Hostile("parts-gap", "there is a gap between two parts", lambda: _parts("0 0 10", "1 11 10")),
    Hostile("parts-overlap", "two parts overlap", lambda: _parts("0 0 10", "1 9 10")),
    Hostile("parts-circle", "a part continues in the same volume", lambda: _parts("0 0 10", "0 10 10")),
    Hostile("parts-negative", "a part has a negative size", lambda: _parts("0 0 -10", "1 -10 20")),
    Hostile("parts-absurd", "a part has more bytes than its blob",
            lambda: _parts("0 0 10", f"1 10 {10**17}")),
    Hostile("parts-huge-number", "the size of a part has 10,000 digits", lambda: _parts("0 0 " + "9" * 10_000)),
    Hostile("parts-thousands", "there are 100,000 parts",
            lambda: _parts(*(f"{number} {number} 1" for number in range(100_000)))),
    Hostile("parts-not-there", "a listed part does not exist",
            lambda: _parts("0 0 10", f"1 10 {len(LAYERS[0]) - 10}"), piped=10),
    Hostile("index-empty", "index.json has no bytes", lambda: _index(b"")),
    Hostile("index-no-json", "index.json is not JSON", lambda: _index(b"manifests: none\n")),
    Hostile("index-cut", "index.json ends in its middle", lambda: _index(_SOUND[:100])),
    Hostile("index-unclosed-string", "index.json ends in a string of a million quotes",
            lambda: _index(b'{"schemaVersion":2,"x":"' + b'\\"' * 1_000_000)),
    Hostile("index-goes-on", "index.json has a second object after the first", lambda: _index(_SOUND + b"{}")),
    Hostile("index-array", "index.json is an array", lambda: _index(b"[" + _SOUND + b"]")),
    Hostile("index-string", "index.json is a string", lambda: _index(json_of("manifests"))),
    Hostile("index-nan", "index.json has a NaN", lambda: _listing([_LISTED], x=float("nan"))),
    Hostile("index-infinity", "index.json has an infinite number", lambda: _index(_SOUND[:-1] + b',"x":1e999}')),
    Hostile("index-digits", "index.json has a number of 10,000 digits",
            lambda: _index(_SOUND[:-1] + b',"x":' + b"9" * 10_000 + b"}")),
    Hostile("index-keys-twice", "index.json has two lists of manifests",
            lambda: _index(_SOUND[:-1] + b',"manifests":[]}')),
    Hostile("index-keys-twice-within", "an entry has two digests",
            lambda: _index(_SOUND.replace(b'"digest":', b'"digest":"' + digest_of(b"").encode() + b'","digest":'))),
    Hostile("index-deep", "index.json has lists in lists, 100,000 deep", lambda: _index(_deep(100_000))),
    Hostile("index-rather-deep", "index.json has lists in lists, 70 deep", lambda: _index(_deep(70))),
    Hostile("index-bom", "index.json begins with a byte order mark", lambda: _index(b"\xef\xbb\xbf" + _SOUND)),
    Hostile("index-utf-16", "index.json is UTF-16", lambda: _index(_SOUND.decode().encode("utf-16"))),
    Hostile("index-latin-1", "index.json has a byte that is not UTF-8",
            lambda: _index(_SOUND.replace(b"app", b"\xff"))),
    Hostile("index-half-pair", "a name has half of a surrogate pair",
            lambda: _index(_SOUND.replace(b'"app"', b'"\\ud800"'))),
    Hostile("index-huge", "index.json is larger than 4 MiB", lambda: _listing([_LISTED], x="x" * 5 * MIB)),
    Hostile("index-items", "index.json has 300,000 empty lists",
            lambda: _index(b'{"schemaVersion":2,"manifests":[' + b"[]," * 300_000 + b"[]]}")),
    Hostile("index-100,001", "index.json lists 100,001 manifests", lambda: _listing([_LISTED] * 100_001)),
    Hostile("index-10,001", "index.json lists 10,001 manifests", lambda: _listing([_LISTED] * 10_001)),
    Hostile("index-object", "the list of manifests is an object", lambda: _listing({"0": _LISTED})),
    Hostile("index-of-numbers", "the list of manifests has numbers", lambda: _listing([1, 2, 3])),
    Hostile("index-of-lists", "the list of manifests has lists", lambda: _listing([[_LISTED]])),
    Hostile("index-without-list", "index.json has no list of manifests", lambda: _index(b'{"schemaVersion":2}')),
    Hostile("index-and-layers", "index.json also has layers", lambda: _listing([_LISTED], layers=[])),
    Hostile("index-and-config", "index.json also has a config", lambda: _listing([_LISTED], config=_LISTED)),
    Hostile("index-is-a-manifest", "the mediaType of index.json is that of a manifest",
            lambda: _listing([_LISTED], mediaType=OCI_MANIFEST)),
    Hostile("index-version-text", "the schemaVersion of index.json is text",
            lambda: _listing([_LISTED], schemaVersion="2")),
    Hostile("index-version-1", "the schemaVersion of index.json is 1", lambda: _listing([_LISTED], schemaVersion=1)),
    Hostile("index-version-true", "the schemaVersion of index.json is true",
            lambda: _listing([_LISTED], schemaVersion=True)),
    Hostile("layout-version", "oci-layout has version 2",
            lambda: tar(*image(layout=b'{"imageLayoutVersion":"2.0.0"}'))),
    Hostile("layout-array", "oci-layout is a list", lambda: tar(*image(layout=b'["1.0.0"]'))),
    Hostile("layout-huge", "oci-layout has 64 KiB", lambda: tar(*image(layout=b" " * 64 * KIB + b"{}"))),
]  # fmt: skip

DESCRIPTORS: Final = [
    Hostile("digest-path", "a digest is a path out of the archive",
            lambda: _entry(digest="sha256:../../../../etc/passwd")),
    Hostile("digest-path-64", "a digest is a path of 64 characters",
            lambda: _entry(digest="sha256:" + "../" * 21 + "x")),
    Hostile("digest-upper-case", "a digest in capitals", lambda: _entry(digest=_LISTED["digest"].upper())),
    Hostile("digest-upper-hex", "a digest with hex in capitals",
            lambda: _entry(digest="sha256:" + _LISTED["digest"][7:].upper())),
    Hostile("digest-short", "a digest of 63 characters", lambda: _entry(digest=_LISTED["digest"][:-1])),
    Hostile("digest-sha512-of-64", "a sha512 of 64 characters", lambda: _entry(digest="sha512:" + "a" * 64)),
    Hostile("digest-empty", "an empty digest", lambda: _entry(digest="")),
    Hostile("digest-number", "a digest that is a number", lambda: _entry(digest=5)),
    Hostile("digest-newline", "a digest with a newline after it", lambda: _entry(digest=_LISTED["digest"] + "\n")),
    Hostile("digest-query", "a digest with a query after it", lambda: _entry(digest=_LISTED["digest"] + "?x=y")),
    Hostile("digest-escapes", "a digest with terminal control sequences", lambda: _entry(digest=_ESCAPES)),
    Hostile("digest-layer-path", "a layer's digest is a path out of the archive",
            lambda: _layer(digest="sha256:../../x")),
    Hostile("digest-config-path", "a config's digest is a path out of the archive",
            lambda: tar(*image(of_config={"digest": "sha256:../../x"}))),
    Hostile("size-claim-negative", "an entry of -1 bytes", lambda: _entry(size=-1)),
    Hostile("size-claim-float", "an entry of 3.5 bytes", lambda: _entry(size=3.5)),
    Hostile("size-claim-whole-float", "an entry whose size has a point", lambda: _entry(size=float(_LISTED["size"]))),
    Hostile("size-claim-string", "an entry whose size is a string", lambda: _entry(size=str(_LISTED["size"]))),
    Hostile("size-claim-true", "an entry whose size is true", lambda: _entry(size=True)),
    Hostile("size-claim-70-bits", "an entry of 2^70 bytes", lambda: _entry(size=1 << 70)),
    Hostile("size-claim-none", "an entry without a size", lambda: _entry(size=None)),
    Hostile("size-claim-exbibyte", "a manifest of an EiB", lambda: _entry(size=1 << 60)),
    Hostile("size-claim-smaller", "a manifest whose listed size is a byte too small",
            lambda: _entry(size=_LISTED["size"] - 1), code=5),
    Hostile("size-claim-larger", "a manifest whose listed size is a byte too large",
            lambda: _entry(size=_LISTED["size"] + 1), code=5),
    Hostile("size-claim-layer-larger", "a layer of an EiB in its manifest", lambda: _layer(size=1 << 60), code=5),
    Hostile("size-claim-layer-smaller", "a layer of a byte in its manifest", lambda: _layer(size=1), code=5),
    Hostile("size-claim-layer-negative", "a layer of -1 bytes in its manifest", lambda: _layer(size=-1)),
    Hostile("size-claim-both", "a layer of two sizes in one manifest",
            lambda: _manifest(layers=[descriptor(LAYERS[0], OCI_LAYER),
                                      descriptor(LAYERS[0], OCI_LAYER, size=7), descriptor(LAYERS[1], OCI_LAYER)])),
    Hostile("type-none", "an entry without a media type", lambda: _entry(mediaType=None)),
    Hostile("type-header", "a media type with an HTTP header after it",
            lambda: _entry(mediaType=OCI_MANIFEST + "\r\nX-Evil: 1")),
    Hostile("type-long", "a media type of 64 KiB", lambda: _entry(mediaType="application/" + "x" * 64 * KIB)),
    Hostile("annotations-list", "annotations that are a list", lambda: _entry(annotations=["x"])),
    Hostile("annotations-numbers", "annotations that are numbers", lambda: _entry(annotations={"x": 1})),
    Hostile("platform-string", "a platform that is a string", lambda: _entry(platform="linux/amd64")),
    Hostile("platform-numbers", "a platform of numbers", lambda: _entry(platform={"os": 1, "architecture": 2})),
]  # fmt: skip

DOCUMENTS: Final = [
    Hostile("manifest-both", "a manifest that is also an index (CVE-2021-41190)", lambda: _manifest(manifests=[])),
    Hostile("manifest-both-as-index", "the same, listed as an index",
            lambda: tar(*image(manifest={"manifests": [], "mediaType": OCI_INDEX}, entry={"mediaType": OCI_INDEX}))),
    Hostile("manifest-other-type", "a manifest with Docker's mediaType, listed with that of OCI",
            lambda: _manifest(mediaType=DOCKER_MANIFEST)),
    Hostile("manifest-as-index", "a manifest that is listed as an index", lambda: _entry(mediaType=OCI_INDEX)),
    Hostile("manifest-version-text", "the schemaVersion of a manifest is text", lambda: _manifest(schemaVersion="2")),
    Hostile("manifest-version-true", "the schemaVersion of a manifest is true", lambda: _manifest(schemaVersion=True)),
    Hostile("manifest-version-float", "the schemaVersion of a manifest is 2.0", lambda: _manifest(schemaVersion=2.0)),
    Hostile("manifest-no-json", "a manifest that is not JSON", lambda: _manifest(noise(500))),
    Hostile("manifest-no-json-first", "a manifest of an index that starts as a list, before the index",
            lambda: _list_first(b"[" * 70)),
    Hostile("manifest-empty-object", "a manifest that is an empty object", lambda: _manifest(b"{}")),
    Hostile("manifest-keys-twice", "a manifest with two configs",
            lambda: _manifest(b'{"config":{},"layers":[],"config":{}}')),
    Hostile("manifest-of-no-bytes", "a manifest of no bytes", lambda: _manifest(b"")),
    Hostile("manifest-5-mib", "a manifest of 5 MiB", lambda: _manifest(annotations={"x": "x" * 5 * MIB})),
    Hostile("manifest-5-mib-hidden", "a manifest of 5 MiB that is listed as one of 500 bytes",
            lambda: tar(*image(manifest={"annotations": {"x": "x" * 5 * MIB}}, entry={"size": 500})), code=5),
    Hostile("manifests-8-mib", "two manifests of 4 MiB; parsing one takes three times as much memory",
            lambda: _great_manifests(2, 4 * MIB - 1000)),
    Hostile("manifests-12-mib", "three manifests of 4 MiB", lambda: _great_manifests(3, 4 * MIB - 1000)),
    Hostile("manifest-layers-object", "layers that are an object", lambda: _manifest(layers={"0": _LISTED})),
    Hostile("manifest-layers-none", "a manifest without layers",
            lambda: _manifest(json_of({"schemaVersion": 2, "config": descriptor(b"{}", OCI_CONFIG)}))),
    Hostile("manifest-config-none", "a manifest without a config", lambda: _manifest(config=None)),
    Hostile("manifest-config-list", "a config that is a list", lambda: _manifest(config=[])),
    Hostile("manifest-10,001-layers", "a manifest of 10,001 layers",
            lambda: _manifest(layers=[descriptor(LAYERS[0], OCI_LAYER)] * 10_001)),
    Hostile("manifests-27,000-layers", "three manifests of 9,000 layers each", lambda: _many_layers(3, 9_000)),
    Hostile("manifest-subject", "the digest of a subject is a path out of the archive",
            lambda: _manifest(subject={**_LISTED, "digest": "sha256:../x"})),
    Hostile("indexes-12-deep", "an image within twelve indexes", lambda: tar(*nested(12))),
    Hostile("config-9-mib", "a config of 9 MiB", lambda: tar(*image(config=config_of(PLAIN, x="x" * 9 * MIB)))),
    Hostile("config-claims-9-mib", "a config that is listed with 9 MiB",
            lambda: tar(*image(of_config={"size": 9 * MIB}))),
    Hostile("two-claims", "one manifest, listed with two sizes",
            lambda: _within([_LISTED, {**_LISTED, "size": 3}])),
    Hostile("two-types", "one manifest, listed as a manifest and as an index",
            lambda: _within([_LISTED, {**_LISTED, "mediaType": OCI_INDEX}])),
]  # fmt: skip

#: Go reads these keys as those of the specifications, and uses the last one.
KEYS: Final = [
    Hostile("keys-layers", "a manifest with layers, and Layers that tools in Go use instead",
            lambda: _manifest(Layers=[descriptor(LAYERS[1], OCI_LAYER)])),
    Hostile("keys-layers-long-s", "the same, with a long s in layers",
            lambda: tar(*image(manifest={_LONG_S: [descriptor(LAYERS[1], OCI_LAYER)]}))),
    Hostile("keys-manifests", "a manifest that is also an index, by Manifests", lambda: _manifest(Manifests=[])),
    Hostile("keys-media-type", "a manifest with another MediaType", lambda: _manifest(MediaType=OCI_INDEX)),
    Hostile("keys-config", "a manifest with a CONFIG", lambda: _manifest(CONFIG=_LISTED)),
    Hostile("keys-layer-digest", "a layer with a Digest",
            lambda: _layer(Digest=digest_of(LAYERS[1]))),
    Hostile("keys-entry-digest", "an entry with a DIGEST", lambda: _entry(DIGEST=digest_of(b""))),
    Hostile("keys-platform", "a platform with an OS",
            lambda: _entry(platform={"os": "linux", "architecture": "amd64", "OS": "windows"})),
    Hostile("keys-index", "index.json with Manifests", lambda: _listing([_LISTED], Manifests=[])),
    Hostile("keys-index-large", "an index.json that is parsed in pieces, with Manifests",
            lambda: _listing([_LISTED] * 1000, Manifests=[])),
    Hostile("keys-layout", "oci-layout with two versions for some tools",
            lambda: tar(*image(layout=b'{"imageLayoutVersion":"1.0.0","ImageLayoutVersion":"2.0.0"}'))),
    Hostile("keys-of-config", "a config with RootFS", lambda: _config(config_of(PLAIN, RootFS={}))),
    Hostile("keys-diff-ids", "a config with Diff_IDs",
            lambda: _config(config_of(PLAIN, rootfs={"type": "layers", "diff_ids": [], "Diff_IDs": []}))),
]  # fmt: skip

CONFIGS: Final = [
    Hostile("config-no-bytes", "a config of no bytes", lambda: _config(b"")),
    Hostile("config-binary", "a config of binary bytes", lambda: _config(bytes(range(256)))),
    Hostile("config-binary-first", "a config of binary bytes, before its manifest",
            lambda: _config(bytes(range(256)), first=True)),
    Hostile("config-array", "a config that is an array", lambda: _config(b"[" + config_of(PLAIN) + b"]")),
    Hostile("config-keys-twice", "a config with two systems", lambda: _config(b'{"os":"linux","os":"windows"}')),
    Hostile("config-keys-twice-first", "a config with two systems, before its manifest",
            lambda: _config(b'{"os":"linux","os":"windows"}', first=True)),
    Hostile("config-deep", "a config with lists in lists, 1,000,000 deep", lambda: _config(b"[" * 1_000_000)),
    Hostile("config-nan", "a config with a NaN", lambda: _config(config_of(PLAIN, x=float("nan")))),
]  # fmt: skip

BLOBS: Final = [
    Hostile("flipped-manifest", "a bit of a manifest is changed", lambda: _spoiled(MANIFEST), code=5),
    Hostile("flipped-config", "a bit of a config is changed", lambda: _spoiled(CONFIG), code=5),
    Hostile("flipped-layer", "a bit of a layer is changed", lambda: _spoiled(LAYER), code=5),
    Hostile("flipped-manifest-first", "a bit of a manifest is changed, and it comes first",
            lambda: _spoiled(MANIFEST, first=True), code=5),
    Hostile("flipped-config-first", "a bit of a config is changed, and it comes first",
            lambda: _spoiled(CONFIG, first=True), code=5),
    Hostile("flipped-layer-first", "a bit of a layer is changed, and it comes first",
            lambda: _spoiled(LAYER, first=True), code=5),
    Hostile("swapped-layers", "two layers under each other's digests",
            lambda: tar(*image()[:LAYER], (image()[LAYER][0], LAYERS[1]), (image()[LAYER + 1][0], LAYERS[0])), code=5),
    Hostile("manifest-missing", "a manifest is missing",
            lambda: tar(*(i for p, i in enumerate(image()) if p != MANIFEST))),
    Hostile("config-missing", "a config is missing", lambda: tar(*(i for p, i in enumerate(image()) if p != CONFIG))),
    Hostile("layer-missing", "a layer is missing", lambda: tar(*image()[:LAYER + 1])),
    Hostile("layer-empty", "a layer has no bytes", lambda: with_other(
        LAYER, lambda name, _: tar((name, b""), end=b"")), code=5),
    Hostile("missing-escapes", "an image's name has terminal control sequences, and its manifest is missing",
            lambda: tar(*image(entry={"annotations": {"org.opencontainers.image.ref.name": _ESCAPES},
                                      "digest": digest_of(b"nothing")})), copied=2),
]  # fmt: skip

ALL: Final = [*INDEXES, *DESCRIPTORS, *DOCUMENTS, *KEYS, *CONFIGS, *BLOBS]
