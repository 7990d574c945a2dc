"""Hostile archives inside gzip and zstd, and hostile layers, which matter when they are decompressed."""

from __future__ import annotations

import gzip
from typing import Final

import zstandard

from tests.hostile.archive_parts import (
    MIB,
    PLAIN,
    Hostile,
    config_of,
    flipped,
    gz_repeated,
    image,
    noise,
    tar,
)
from tests.images import OCI_LAYER

_DEEP: Final = ("--deep",)
_ANEW: Final = ("--compress", "zstd")
_SOUND: Final = tar(*image())


def _unpacked(layer: bytes, kind: str = "gzip") -> bytes:
    """Return an image whose first layer cannot be decompressed."""
    return tar(*image(layers=(layer, gzip.compress(PLAIN[1], mtime=0)), of_layer={"mediaType": f"{OCI_LAYER}+{kind}"}))


def _zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


ARCHIVES: Final = [
    Hostile("gzip-cut", "an archive inside gzip that ends early", lambda: gzip.compress(_SOUND, mtime=0)[:-100]),
    Hostile("gzip-cut-trailer", "an archive inside gzip without its last bytes",
            lambda: gzip.compress(_SOUND, mtime=0)[:-4]),
    Hostile("gzip-checksum", "an archive inside gzip with a wrong checksum",
            lambda: flipped(gzip.compress(_SOUND, mtime=0), -6)),
    Hostile("gzip-garbage-behind", "garbage after an archive inside gzip",
            lambda: gzip.compress(_SOUND, mtime=0) + b"garbage"),
    Hostile("gzip-of-nothing", "nothing inside gzip", lambda: gzip.compress(b"", mtime=0)),
    Hostile("gzip-of-garbage", "garbage inside gzip", lambda: gzip.compress(noise(2000), mtime=0)),
    Hostile("gzip-header-only", "the first bytes of gzip", lambda: b"\x1f\x8b\x08\0"),
    Hostile("gzip-zeros", "256 MiB of zeros inside gzip", lambda: gz_repeated(bytes(MIB), 256)),
    Hostile("gzip-zeros-behind", "1.5 GiB of zeros after an archive, all inside gzip",
            lambda: gzip.compress(_SOUND, mtime=0) + gz_repeated(bytes(MIB), 100) * 15),
    Hostile("gzip-much-behind", "1.5 GiB of other bytes after an archive, all inside gzip",
            lambda: gzip.compress(_SOUND, mtime=0) + gz_repeated(b"x" * MIB, 100) * 15),
    Hostile("zstd-cut", "an archive inside zstd that ends early", lambda: _zstd(_SOUND)[:-100]),
    Hostile("zstd-checksum", "an archive inside zstd with a wrong checksum", lambda: flipped(_zstd(_SOUND), -1)),
    Hostile("zstd-garbage", "garbage after the first bytes of zstd", lambda: b"\x28\xb5\x2f\xfd" + noise(2000)),
    Hostile("zstd-skippable-only", "only a skippable frame",
            lambda: b"\x50\x2a\x4d\x18\x04\0\0\0abcd"),
]  # fmt: skip

LAYERS: Final = [
    Hostile("layer-gzip-cut", "a layer's gzip ends early",
            lambda: _unpacked(gzip.compress(PLAIN[0], mtime=0)[:-9]), options=_ANEW, looked=_DEEP),
    Hostile("layer-gzip-checksum", "a layer's gzip has a wrong checksum",
            lambda: _unpacked(flipped(gzip.compress(PLAIN[0], mtime=0), -6)), options=_ANEW, looked=_DEEP),
    Hostile("layer-gzip-garbage", "a layer's gzip is garbage after its first bytes",
            lambda: _unpacked(b"\x1f\x8b\x08\0" + noise(3000)), options=_ANEW, looked=_DEEP),
    Hostile("layer-gzip-members", "a layer of 50,000 empty members of gzip",
            lambda: _unpacked(gzip.compress(b"", mtime=0) * 50_000 + b"\x1f\x8b"), options=_ANEW, looked=_DEEP),
    Hostile("layer-zstd-cut", "a layer's zstd ends early",
            lambda: _unpacked(_zstd(PLAIN[0])[:-5], "zstd"), options=("--compress", "gzip"), looked=_DEEP),
    Hostile("layer-zstd-garbage", "a layer's zstd is garbage after its first bytes",
            lambda: _unpacked(b"\x28\xb5\x2f\xfd" + noise(3000), "zstd"), options=("--compress", "gzip"), looked=_DEEP),
    Hostile("layer-other", "a layer that does not match its diff_id",
            lambda: tar(*image(config=config_of(PLAIN[::-1]))), code=5, options=_ANEW, looked=_DEEP),
    Hostile("layer-fewer", "a config with fewer layers than its manifest",
            lambda: tar(*image(config=config_of(PLAIN[:1]))), options=_ANEW, looked=_DEEP),
    Hostile("layer-no-diff-ids", "a config without diff_ids",
            lambda: tar(*image(config=config_of(PLAIN, rootfs=None))), options=_ANEW, looked=_DEEP),
]  # fmt: skip

ALL: Final = [*ARCHIVES, *LAYERS]
