"""Parts of hostile archives: one small image, its files with one of them changed, and raw headers.

Nothing here comes from ocistream, and nothing is written to disk: an archive is the bytes that a function returns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tests.archives import BLOCK, END, Item, blob_name, padded, tar_of, with_checksum
from tests.images import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, tar_layer

KIB: Final = 1 << 10
MIB: Final = 1 << 20
Fields = Mapping[str, Any]
#: Raw bytes, or a name and a file's content.
Part = bytes | Item
#: Makes other bytes from the name and the content of an entry.
Other = Callable[[str, bytes], bytes]

#: The positions of an image's files in its archive, small files first.
LAYOUT, INDEX, MANIFEST, CONFIG, LAYER, LAST = range(6)


class Seen(NamedTuple):
    """Which image other tools see in an archive: "sound", "other", or "refused" for an error."""

    tar: str
    tarfile: str
    skopeo: str


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One archive: `code` is the exit code of its refusal; `piped`, `verified` and `copied` are those that differ.

    `options` are options of `push` and `copy` without which they would not read the defect; `looked` are those of
    `verify`. `seen` says what other tools read.
    """

    name: str
    what: str
    make: Callable[[], bytes]
    code: int = 6
    piped: int | None = None
    verified: int | None = None
    copied: int | None = None
    options: Sequence[str] = ()
    looked: Sequence[str] = ()
    seen: Seen | None = None

    @property
    def from_pipe(self) -> int:
        """The exit code of a push from a pipe."""
        return self.code if self.piped is None else self.piped

    @property
    def from_copy(self) -> int:
        """The exit code of a copy into a layout."""
        return self.code if self.copied is None else self.copied

    @property
    def from_verify(self) -> int:
        """The exit code of `verify`."""
        return self.code if self.verified is None else self.verified


def json_of(document: object) -> bytes:
    """Return a document as JSON, allowing NaN."""
    return json.dumps(document, separators=(",", ":")).encode()


def digest_of(content: bytes) -> str:
    """Return a digest as in descriptors."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def descriptor(content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """Return the descriptor of `content`; `more` may contradict it."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content), **more}


def noise(size: int) -> bytes:
    """Return incompressible bytes, the same for each size."""
    return random.Random(size).randbytes(size)


#: The image's layers, compressed and plain.
PLAIN: Final = (
    tar_layer({"etc/motd": b"ahoy\n"}, compression=""),
    tar_layer({"opt/rope": noise(3000)}, compression=""),
)
LAYERS: Final = (tar_layer({"etc/motd": b"ahoy\n"}), tar_layer({"opt/rope": noise(3000)}))


def config_of(plain: Sequence[bytes], **more: Any) -> bytes:
    """Return the config of an image whose layers unpack to `plain`."""
    diff_ids = [digest_of(layer) for layer in plain]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, **more}
    return json_of(config)


SOUND_CONFIG: Final = config_of(PLAIN)
_SAME: Final[Fields] = {}


def image(
    *,
    layers: Sequence[bytes] = LAYERS,
    config: bytes = SOUND_CONFIG,
    of_config: Fields = _SAME,
    of_layer: Fields = _SAME,
    manifest: Fields = _SAME,
    raw_manifest: bytes | None = None,
    entry: Fields = _SAME,
    index: Fields = _SAME,
    raw_index: bytes | None = None,
    layout: bytes = b'{"imageLayoutVersion":"1.0.0"}',
) -> list[Item]:
    """Return the files of an image; the arguments change fields of descriptors, or complete documents."""
    first, *others = (descriptor(layer, f"{OCI_LAYER}+gzip") for layer in layers)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {**descriptor(config, OCI_CONFIG), **of_config},
        "layers": [{**first, **of_layer}, *others],
        **manifest,
    }
    raw = json_of(document) if raw_manifest is None else raw_manifest
    named = {"org.opencontainers.image.ref.name": "app"}
    listed = {**descriptor(raw, OCI_MANIFEST, annotations=named), **entry}
    listing = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed], **index}
    return [
        ("oci-layout", layout),
        ("index.json", json_of(listing) if raw_index is None else raw_index),
        *(blob(content) for content in (raw, config, *layers)),
    ]


def blob(content: bytes) -> Item:
    """Return a blob with its name."""
    return blob_name(digest_of(content)), content


def tar(*parts: Part, end: bytes = END) -> bytes:
    """Return an archive of raw bytes and of files."""
    return b"".join(part if isinstance(part, bytes) else tar_of([part], end=False) for part in parts) + end


def with_other(place: int, other: Other, files: Sequence[Item] | None = None) -> bytes:
    """Return an image's archive in which `other` makes the entry at one position."""
    parts: list[Part] = list(image() if files is None else files)
    name, content = parts[place]
    assert isinstance(name, str)
    assert isinstance(content, bytes)
    parts[place] = other(name, content)
    return tar(*parts)


def beside(*parts: Part) -> bytes:
    """Return a valid image's archive with more entries after its files."""
    return tar(*image(), *parts)


def flipped(content: bytes, at: int = -20) -> bytes:
    """Return `content` with one bit changed."""
    spoiled = bytearray(content)
    spoiled[at] ^= 1
    return bytes(spoiled)


def entry(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, *, target: str = "", **fields: bytes) -> bytes:
    """Return an entry of any type, even with content that its type must not have.

    `fields` are raw fields of its header: `size` (12 bytes), `magic` (8 bytes), `rest` (167 bytes).
    """
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), target
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    head, block = block[:-BLOCK], block[-BLOCK:]
    for field, (start, length) in {"size": (124, 12), "magic": (257, 8), "rest": (345, 167)}.items():
        if field in fields:
            block[start : start + length] = fields[field].ljust(length, b"\0")
    return bytes(head) + with_checksum(block) + padded(content)


def pax(*records: tuple[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return a pax header of well-formed records with any content."""
    content = b"".join(record(key, value) for key, value in records)
    return entry("pax", content, kind)


def record(key: str, value: str) -> bytes:
    """Return one record, which begins with its own length."""
    rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
    length = next(n for n in itertools.count(len(rest)) if len(str(n)) + len(rest) == n)
    return str(length).encode() + rest


def base256(number: int) -> bytes:
    """Return a number as GNU encodes those that do not fit into octal digits, including negative ones."""
    return (number % (1 << 88) | (0x80 if number >= 0 else 0xFF) << 88).to_bytes(12, "big")


def nested(depth: int) -> list[Item]:
    """Return an image within `depth` nested indexes."""
    files = image()
    raw, media_type = files[MANIFEST][1], OCI_MANIFEST
    assert raw is not None
    for _ in range(depth):
        raw = json_of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(raw, media_type)]})
        media_type = OCI_INDEX
        files.append(blob(raw))
    files[INDEX] = ("index.json", json_of({"schemaVersion": 2, "manifests": [descriptor(raw, media_type)]}))
    return files


def gz_repeated(chunk: bytes, count: int) -> bytes:
    """Return `count` repetitions of a chunk as one gzip stream. The chunk is compressed once."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    # After a full flush, the next block does not refer to earlier ones: each block has the same bytes.
    block = packer.compress(chunk) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(count):
        checksum = zlib.crc32(chunk, checksum)
    # RFC 1952: magic, deflate, no flags, no time, the best compression, Unix.
    header, trailer = b"\x1f\x8b\x08\0" + bytes(4) + b"\x02\x03", struct.pack("<II", checksum, len(chunk) * count)
    return header + block * count + packer.flush() + trailer


def gz(chunks: Iterable[bytes]) -> bytes:
    """Return chunks as one gzip stream, without keeping the uncompressed bytes."""
    output = io.BytesIO()
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for chunk in chunks:
        output.write(packer.compress(chunk))
    return output.getvalue() + packer.flush()
