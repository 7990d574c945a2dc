"""Realistic images, made when needed: OCI layouts with the same content on every run.

No code of ocistream makes them, so that its defects cannot hide themselves. Descriptors are plain JSON objects, as in
the image-spec.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import zstandard

Descriptor = dict[str, Any]
#: A layer's bytes, the size of an incompressible layer, or the descriptor of a blob that exists already.
Layer = bytes | int | Descriptor
Media = Literal["oci", "docker"]
Algorithm = Literal["sha256", "sha512"]

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
MANIFESTS: Final = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST})

#: The smallest size that `Layer` accepts as a number: gzip's frame around a tar file with one byte in it.
SMALLEST_LAYER: Final = 3072
_MIB: Final = 1 << 20
#: The first bytes of a compressed layer -> the suffix of its OCI media type.
_MAGIC: Final = {b"\x1f\x8b": "+gzip", b"\x28\xb5\x2f\xfd": "+zstd"}
_PLATFORM: Final = ("architecture", "os", "variant")
#: A stored block of deflate has at most this many bytes (RFC 1951, section 3.2.4).
_STORED: Final = 0xFFFF


@dataclasses.dataclass(frozen=True)
class Layout:
    """An OCI layout directory under construction. Methods that return a descriptor have written its blob."""

    path: Path

    def __post_init__(self) -> None:
        (self.path / "blobs").mkdir(parents=True, exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        if not (self.path / "index.json").exists():
            self.write_index([])

    def file(self, digest: str) -> Path:
        """Return the path of the blob or manifest `digest`."""
        algorithm, _, encoded = digest.partition(":")
        return self.path / "blobs" / algorithm / encoded

    def read(self, digest: str) -> Any:
        """Return the JSON of the manifest or configuration `digest`."""
        return json.loads(self.file(digest).read_bytes())

    def blobs(self, image: Descriptor) -> list[Descriptor]:
        """Return the descriptors of the config and of the layers of an image."""
        manifest = self.read(image["digest"])
        return [manifest["config"], *manifest["layers"]]

    @property
    def entries(self) -> list[Descriptor]:
        """The entries of index.json."""
        return list(json.loads((self.path / "index.json").read_bytes())["manifests"])

    def blob(self, content: bytes, media_type: str, *, algorithm: Algorithm = "sha256") -> Descriptor:
        """Write `content` as a blob."""
        digest = digest_of(content, algorithm)
        self._folder(algorithm).joinpath(digest.partition(":")[2]).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def adopt(self, path: Path, media_type: str) -> Descriptor:
        """Move the file `path`, on the same file system, into the layout as a blob."""
        with path.open("rb") as file:
            encoded = hashlib.file_digest(file, "sha256").hexdigest()
        target = self._folder("sha256") / encoded
        path.rename(target)
        return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": target.stat().st_size}

    def random_layer(
        self, size: int, *, seed: object = 0, media: Media = "oci", algorithm: Algorithm = "sha256"
    ) -> tuple[Descriptor, str]:
        """Write a gzip layer of exactly `size` bytes that does not compress; return its diff_id too.

        It is a valid tar file with one file in it. Memory does not grow with `size`.
        """
        whole, inner = hashlib.new(algorithm), hashlib.sha256()
        temporary = self.path / "blobs" / "unfinished"
        with temporary.open("wb") as file:
            for chunk in _stored_gzip(_random_tar(size, seed), size, inner):
                whole.update(chunk)
                file.write(chunk)
        temporary.rename(self._folder(algorithm) / whole.hexdigest())
        kind = (OCI_LAYER + "+gzip") if media == "oci" else (DOCKER_LAYER + ".gzip")
        descriptor = {"mediaType": kind, "digest": f"{algorithm}:{whole.hexdigest()}", "size": size}
        return descriptor, f"sha256:{inner.hexdigest()}"

    def image(
        self,
        layers: Sequence[Layer],
        *,
        name: str | None = None,
        media: Media = "oci",
        platform: str = "linux/amd64",
        algorithm: Algorithm = "sha256",
        config: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
        subject: Descriptor | None = None,
    ) -> Descriptor:
        """Write an image: layers, configuration and manifest; `name` adds it to index.json.

        `platform` is OS/ARCHITECTURE[/VARIANT]; `config` is the runtime part, such as {"Cmd": ["true"]}.
        """
        written = [self._layer(layer, number, media, algorithm) for number, layer in enumerate(layers)]
        os, architecture, *variant = platform.split("/")
        document = {
            "created": "2024-01-01T00:00:00Z",
            "architecture": architecture,
            "os": os,
            **({"variant": variant[0]} if variant else {}),
            "config": dict(config or {"Cmd": ["true"]}),
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in written]},
            "history": [{"created_by": f"layer {number}"} for number in range(len(written))],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST if media == "oci" else DOCKER_MANIFEST,
            "config": self.blob(_json(document), OCI_CONFIG if media == "oci" else DOCKER_CONFIG, algorithm=algorithm),
            "layers": [descriptor for descriptor, _ in written],
            **({"subject": subject} if subject else {}),
            **({"annotations": dict(annotations)} if annotations else {}),
        }
        found = self.document(manifest, name=name, algorithm=algorithm)
        return {**found, "platform": {key: document[key] for key in _PLATFORM if key in document}}

    def index(
        self,
        manifests: Sequence[Descriptor],
        *,
        name: str | None = None,
        media: Media = "oci",
        algorithm: Algorithm = "sha256",
        subject: Descriptor | None = None,
    ) -> Descriptor:
        """Write an index (or Docker's manifest list) of `manifests`, which may be indexes themselves."""
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX if media == "oci" else DOCKER_LIST,
            "manifests": list(manifests),
            **({"subject": subject} if subject else {}),
        }
        return self.document(document, name=name, algorithm=algorithm)

    def artifact(
        self,
        content: bytes,
        *,
        kind: str = "application/vnd.example.sbom.v1+json",
        subject: Descriptor | None = None,
        name: str | None = None,
        algorithm: Algorithm = "sha256",
    ) -> Descriptor:
        """Write an artifact as the image-spec recommends: an empty config, one blob, optionally a subject."""
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": {**self.blob(b"{}", OCI_EMPTY, algorithm=algorithm), "data": "e30="},
            "layers": [self.blob(content, kind, algorithm=algorithm)],
            **({"subject": subject} if subject else {}),
        }
        return {**self.document(document, name=name, algorithm=algorithm), "artifactType": kind}

    def document(
        self, document: Mapping[str, Any], *, name: str | None = None, algorithm: Algorithm = "sha256"
    ) -> Descriptor:
        """Write any manifest, even an invalid one; its media type is its own "mediaType"."""
        descriptor = self.blob(_json(document), document["mediaType"], algorithm=algorithm)
        if name is not None:
            self.name(descriptor, name)
        return descriptor

    def name(self, descriptor: Descriptor, *names: str) -> None:
        """Add `descriptor` to index.json, once under each of `names`."""
        self.enter(*({**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}} for name in names))

    def enter(self, *entries: Descriptor) -> None:
        """Add entries to index.json as they are, without a name or with their own annotations."""
        self.write_index([*self.entries, *entries])

    def clear(self) -> None:
        """Remove all entries from index.json."""
        self.write_index([])

    def write_index(self, manifests: Sequence[Descriptor]) -> None:
        """Write index.json with these entries."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        (self.path / "index.json").write_bytes(_json(document))

    def _folder(self, algorithm: Algorithm) -> Path:
        folder = self.path / "blobs" / algorithm
        folder.mkdir(exist_ok=True)
        return folder

    def _layer(self, layer: Layer, number: int, media: Media, algorithm: Algorithm) -> tuple[Descriptor, str]:
        """Write a layer, if it does not exist, and return its diff_id too."""
        if isinstance(layer, int):
            return self.random_layer(layer, seed=number, media=media, algorithm=algorithm)
        if isinstance(layer, bytes):
            suffix = next((suffix for magic, suffix in _MAGIC.items() if layer.startswith(magic)), "")
            kind = OCI_LAYER + suffix if media == "oci" else DOCKER_LAYER + suffix.replace("+", ".")
            layer = self.blob(layer, kind, algorithm=algorithm)
        return layer, _diff_id(self.file(layer["digest"]))


def digest_of(content: bytes, algorithm: Algorithm = "sha256") -> str:
    """Return the digest of `content` as in descriptors."""
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def tar_layer(files: Mapping[str, bytes], *, compression: Literal["gzip", "zstd", ""] = "gzip") -> bytes:
    """Return a layer with `files` (path -> content), all executable and owned by root."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.mtime = len(content), 0o755, 1_700_000_000
            archive.addfile(entry, io.BytesIO(content))
    raw = output.getvalue()
    if compression == "gzip":
        return gzip.compress(raw, mtime=0)
    return zstandard.compress(raw) if compression == "zstd" else raw


def small_image(layout: Layout, **options: Any) -> Descriptor:
    """Write an image of two small real layers; `options` are those of `Layout.image`."""
    first = tar_layer({"etc/motd": b"hello\n", "etc/hostname": b"ship\n"})
    return layout.image([first, tar_layer({"opt/words": b"anchor " * 1000})], **options)


def two_platforms(layout: Layout, *, media: Media = "oci", name: str | None = None) -> Descriptor:
    """Write an index of linux/amd64 and linux/arm64/v8 images that share their first layer."""
    shared = tar_layer({"etc/motd": b"the same on all\n"})
    images = [
        layout.image([shared, tar_layer({"bin/arch": platform.encode()})], platform=platform, media=media)
        for platform in ("linux/amd64", "linux/arm64/v8")
    ]
    return layout.index(images, media=media, name=name)


def thousands_of_images(layout: Layout) -> None:
    """Write 4,000 images that share their blobs, named registry.example.com/team/app-NUMBER:1."""
    config = layout.blob(b'{"os": "linux", "architecture": "amd64"}', OCI_CONFIG)
    shared = [layout.blob(b"shared %d" % number, f"{OCI_LAYER}+gzip") for number in range(3)]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": shared}
    entries = [
        {
            **layout.document({**document, "annotations": {"number": str(number)}}),
            "annotations": {"org.opencontainers.image.ref.name": f"registry.example.com/team/app-{number}:1"},
        }
        for number in range(4_000)
    ]
    layout.enter(*entries)


def _json(document: Mapping[str, Any]) -> bytes:
    """Format a document as no tool does, to catch code that serializes it again instead of copying its bytes."""
    return json.dumps(document, indent=3, separators=(" ,", ":  ")).encode() + b"\n"


def _diff_id(layer: Path) -> str:
    """Return the digest of a layer without its compression, which its first bytes identify."""
    whole = hashlib.sha256()
    with layer.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        inner: IO[bytes] = file
        if _MAGIC.get(magic[:2]) == "+gzip":
            inner = cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        elif _MAGIC.get(magic) == "+zstd":
            inner = zstandard.ZstdDecompressor().stream_reader(file)
        while chunk := inner.read(_MIB):
            whole.update(chunk)
    return f"sha256:{whole.hexdigest()}"


@functools.cache
def _noise() -> bytes:
    """8 MiB that do not compress: larger than the windows of gzip and of zstd's usual levels."""
    return random.Random(0).randbytes(8 * _MIB)


def _tar_size(size: int) -> int:
    """Return the length of the longest tar file that, stored as gzip with a name, fits into `size` bytes."""
    if size < SMALLEST_LAYER:
        message = f"a layer by size has at least {SMALLEST_LAYER} bytes, not {size}"
        raise ValueError(message)
    length = size // 512 * 512
    while _gzip_frame(length) + 1 > size - length:
        length -= 512
    return length


def _gzip_frame(length: int) -> int:
    """Return the bytes that gzip adds to `length` stored bytes: header, a block header for each 65,535, trailer."""
    return 10 + 5 * -(-length // _STORED) + 8


def _random_tar(size: int, seed: object) -> Iterator[bytes]:
    """Yield a tar file of `_tar_size(size)` bytes: one file of noise that depends on the seed."""
    end = 1024
    left = _tar_size(size) - 512 - end
    entry = tarfile.TarInfo(f"noise-{seed}")
    entry.size, entry.mtime = left, 1_700_000_000
    yield entry.tobuf(tarfile.GNU_FORMAT)
    noise, number = memoryview(_noise()), 0
    while left:
        stamp = hashlib.sha256(f"{seed} {size} {number}".encode()).digest()[:left]
        yield stamp
        start = number * _MIB % len(noise)
        piece = noise[start : start + min(_MIB, left) - len(stamp)]
        yield bytes(piece)
        left -= len(stamp) + len(piece)
        number += 1
    yield bytes(end)


def _stored_gzip(chunks: Iterator[bytes], size: int, inner: Any) -> Iterator[bytes]:
    """Yield `chunks` as a gzip file of exactly `size` bytes, not compressed; `inner` hashes its content."""
    length = _tar_size(size)
    name = bytes(b"-" * (size - length - _gzip_frame(length) - 1)) + b"\0"
    # RFC 1952: magic, deflate, FNAME, no time, no flags, Unix.
    yield b"\x1f\x8b\x08\x08" + bytes(4) + b"\0\x03" + name
    checksum, held, left = 0, bytearray(), length
    for chunk in chunks:
        inner.update(chunk)
        checksum = zlib.crc32(chunk, checksum)
        held += chunk
        while len(held) >= min(_STORED, left) > 0:
            block = bytes(held[:_STORED])
            del held[:_STORED]
            left -= len(block)
            yield struct.pack("<BHH", left == 0, len(block), len(block) ^ _STORED) + block
    yield struct.pack("<II", checksum, length & 0xFFFFFFFF)
