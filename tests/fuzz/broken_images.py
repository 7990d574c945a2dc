"""Make invalid images: documents are changed in one place, and all digests above them are recomputed.

So the code that reads the changed place must find the error, not the check of a digest.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, Final

import zstandard

from tests import images
from tests.archives import END, Item, Kind, member, padded, pax_header, tar_of
from tests.docker_archives import DIALECTS, Link, Saved
from tests.fuzz.mutation import header_mutated, json_bytes, json_mutated
from tests.images import Descriptor

_LAYER: Final = tar_of([("etc/", None), ("etc/motd", b"hello\n")])
_LAYERS: Final = (
    (images.OCI_LAYER + "+gzip", gzip.compress(_LAYER, mtime=0)),
    (images.OCI_LAYER + "+zstd", zstandard.ZstdCompressor().compress(_LAYER)),
    (images.OCI_LAYER, _LAYER),
)
_REF_NAME: Final = "org.opencontainers.image.ref.name"
#: Names in index.json; the last one is a tag of cosign.
_IMAGE_NAMES: Final = (
    "1",
    "latest",
    "example.com/app:1",
    "docker.io/library/app:1",
    "",
    "../x",
    "a/b/c",
    "sha256-{}.sig",
)


class Made:
    """A layout in memory; each document is changed with the probability `wrong`."""

    def __init__(self, rng: Random, wrong: float = 0.12) -> None:
        self.blobs: dict[str, bytes] = {}
        self.entries: list[Descriptor] = []
        self._rng = rng
        self._wrong = wrong

    def image(self) -> Descriptor:
        """Add an image, and return the descriptor of its manifest."""
        rng = self._rng
        chosen = [rng.choice(_LAYERS) for _ in range(rng.choice((1, 1, 2, 3)))]
        diff_id = images.digest_of(_LAYER)
        config: dict[str, Any] = {
            "architecture": rng.choice(("amd64", "arm64", "arm")),
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _ in chosen]},
        }
        kind = rng.choice((images.OCI_MANIFEST, images.OCI_MANIFEST, images.DOCKER_MANIFEST))
        document = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": self._document(config, images.OCI_CONFIG),
            "layers": [self._blob(content, of) for of, content in chosen],
        }
        found = self._document(document, kind)
        return {**found, "platform": {key: config[key] for key in ("architecture", "os")}}

    def index(self, manifests: Sequence[Descriptor]) -> Descriptor:
        """Add an index of manifests."""
        document = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": list(manifests)}
        return self._document(document, images.OCI_INDEX)

    def referrer(self, subject: Descriptor) -> Descriptor:
        """Add an artifact that refers to `subject`."""
        kind = "application/vnd.example.sbom.v1+json"
        document = {
            "schemaVersion": 2,
            "mediaType": images.OCI_MANIFEST,
            "artifactType": kind,
            "config": self._blob(b"{}", images.OCI_EMPTY),
            "layers": [self._blob(b"sbom", kind)],
            "subject": {key: value for key, value in subject.items() if key != "platform"},
        }
        return self._document(document, images.OCI_MANIFEST)

    def name(self, descriptor: Descriptor, name: str | None) -> None:
        """Add a descriptor to index.json."""
        named = {"annotations": {_REF_NAME: name}} if name is not None else {}
        self.entries.append({**descriptor, **named})

    def items(self) -> list[Item]:
        """Return the files of the layout: small ones first, or in any order."""
        rng = self._rng
        index = self._changed({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": self.entries})
        first: list[Item] = [
            ("oci-layout", json_bytes(rng, self._changed({"imageLayoutVersion": "1.0.0"}))),
            ("index.json", json_bytes(rng, index)),
        ]
        found: list[Item] = [("blobs/" + digest.replace(":", "/"), raw) for digest, raw in self.blobs.items()]
        found = first + found if rng.random() < 0.5 else found + first
        if rng.random() < 0.3:
            rng.shuffle(found)
        if rng.random() < 0.1:
            found.insert(rng.randrange(len(found) + 1), rng.choice(found))
        if rng.random() < 0.1:
            del found[rng.randrange(len(found))]
        return found

    def _changed(self, document: Any) -> Any:
        return json_mutated(self._rng, document) if self._rng.random() < self._wrong else document

    def _document(self, document: Any, kind: str) -> Descriptor:
        changed = self._changed(document)
        raw = json.dumps(document).encode() if changed is document else json_bytes(self._rng, changed)
        return self._changed_descriptor(self._blob(raw, kind))

    def _blob(self, content: bytes, kind: str) -> Descriptor:
        algorithm: images.Algorithm = "sha512" if self._rng.random() < 0.05 else "sha256"
        digest = images.digest_of(content, algorithm)
        self.blobs[digest] = content
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def _changed_descriptor(self, descriptor: Descriptor) -> Descriptor:
        if self._rng.random() > self._wrong / 2:
            return descriptor
        changed = json_mutated(self._rng, descriptor)
        return changed if isinstance(changed, dict) else descriptor


def layout_items(rng: Random) -> list[Item]:
    """Return the files of a layout with images, indexes and referrers."""
    made = Made(rng, rng.choice((0.0, 0.05, 0.15, 0.3)))
    for _ in range(rng.choice((1, 1, 1, 2))):
        image = made.image()
        if rng.random() < 0.4:
            image = made.index([image, made.image()] if rng.random() < 0.7 else [image])
            while rng.random() < 0.3:
                image = made.index([image])
        made.name(
            image, rng.choice(_IMAGE_NAMES).format(str(image.get("digest"))[7:71]) if rng.random() < 0.9 else None
        )
        if rng.random() < 0.3:
            made.name(made.referrer(image), None)
        if rng.random() < 0.2:
            made.name(made.image(), _IMAGE_NAMES[-1].format(str(image.get("digest"))[7:71]))
    return made.items()


def docker_items(rng: Random) -> list[tuple[str, bytes | Link | None]]:
    """Return the entries of a docker-archive of a random dialect."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [images.digest_of(_LAYER)]},
    }
    wrong = rng.random() < 0.4
    raw = json_bytes(rng, json_mutated(rng, config)) if wrong else json.dumps(config).encode()
    image = Saved(raw, (_LAYER,), rng.choice(((), ("app:1",), ("example.com/app:1", "b"), ("../x:1",))))
    try:
        entries = DIALECTS[rng.choice(sorted(DIALECTS))]([image])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        entries = DIALECTS["docker"]([Saved(json.dumps(config).encode(), (_LAYER,), ("app:1",))])
    changed: list[tuple[str, bytes | Link | None]] = []
    for name, content in entries:
        what = content
        if name in {"manifest.json", "repositories"} and isinstance(content, bytes) and rng.random() < 0.5:
            what = json_bytes(rng, json_mutated(rng, json.loads(content)))
        elif isinstance(content, Link) and rng.random() < 0.2:
            what = Link(rng.choice(("../x", "/etc/passwd", name, "..", "", "a" * 300)), hard=rng.random() < 0.5)
        changed.append((name, what))
    if rng.random() < 0.3:
        rng.shuffle(changed)
    return changed


def tar_with_faults(rng: Random, items: Iterable[tuple[str, bytes | Link | None]]) -> bytes:
    """Return a tar of `items`, with extended headers of all kinds and some invalid headers."""
    kind: Kind = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    prefix = rng.choice(("", "", "", "./", "/", ".//"))
    parts = []
    for name, content in items:
        if rng.random() < 0.04:
            parts.append(_extended(rng))
        if isinstance(content, Link):
            block = member(prefix + name, tarfile.LNKTYPE if content.hard else tarfile.SYMTYPE, target=content.target)
        else:
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content or b"")
            info.type = tarfile.REGTYPE if content is not None else tarfile.DIRTYPE
            try:
                block = info.tobuf(kind, "utf-8", "surrogateescape")
            except ValueError:
                block = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if rng.random() < 0.04 and len(block) == 512:
            block = header_mutated(rng, block)
        parts += [block, padded(content) if isinstance(content, bytes) else b""]
    end = rng.choice((END, END, END, END, b"", END[:512], END * 20, END + b"x", END + END[:100]))
    return b"".join(parts) + end


def _extended(rng: Random) -> bytes:
    """Return an extended header for the next entry."""
    if rng.random() < 0.3:
        kind = rng.choice((tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK))
        name = rng.choice((b"index.json\0", b"a" * 5000, b"", b"blobs/sha256/\xff\0x", b"../../x\0"))
        return member("././@LongLink", kind, size=len(name)) + padded(name)
    pairs = [
        (b"path", rng.choice((b"index.json", b"../x", b"", b"\xff", b"x" * 300))),
        (b"size", rng.choice((b"0", b"1", b"-1", b"", b"9" * 19, b"9" * 30, b"1.5", b" 3", b"\xd9\xa3"))),
        (b"linkpath", b"../index.json"),
        (b"GNU.sparse.major", b"1"),
        (b"mtime", b"NaN"),
        (b"comment", b"a=b\nc"),
    ]
    records = b"".join(_record(rng, key, value) for key, value in rng.sample(pairs, rng.randint(1, 3)))
    kind = tarfile.XGLTYPE if rng.random() < 0.3 else tarfile.XHDTYPE
    return pax_header(records, kind=kind)


def _record(rng: Random, key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    length += len(str(length)) != len(str(size))
    if rng.random() < 0.1:
        length += rng.choice((-1, 1, -length, 1000, 10**18))
    return b"%d %b=%b\n" % (length, key, value)
