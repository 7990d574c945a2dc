"""Hostile archives with a wrong tar: names, types, sizes, headers, and ends."""

from __future__ import annotations

import tarfile
from typing import Final

from tests.archives import BLOCK, END, blob_name, padded, pax_header, tar_of
from tests.hostile.archive_parts import (
    CONFIG,
    INDEX,
    KIB,
    LAST,
    LAYER,
    LAYERS,
    LAYOUT,
    MANIFEST,
    MIB,
    Hostile,
    base256,
    beside,
    digest_of,
    entry,
    flipped,
    gz,
    image,
    pax,
    record,
    tar,
    with_other,
)

#: Control sequences for a terminal: its title, its colors, and a line that looks like one of ours.
_ESCAPES: Final = "\x1b]0;owned\x07\x1b[2J\r\nocistream: all is well\x9b31m\u202egnp"


def _named(name: str) -> bytes:
    """Return an image whose first layer has another name, from a pax header, which may contain anything."""
    return with_other(LAYER, lambda _, content: pax(("path", name)) + entry("x", content))


def _typed(place: int, kind: bytes, target: str = "") -> bytes:
    """Return an image in which one file has another type."""
    return with_other(place, lambda name, _: entry(name, b"", kind, target=target))


def _sized(size: bytes) -> bytes:
    """Return an image with another size in its first layer's header."""
    return with_other(LAYER, lambda name, content: entry(name, content, size=size))


def _pax_sized(size: str) -> bytes:
    """Return an image with another size in a pax header before its first layer."""
    return with_other(LAYER, lambda name, content: pax(("size", size)) + entry(name, content))


def _sparse(*records: tuple[str, str]) -> bytes:
    """Return an image whose first layer is a sparse file according to pax headers."""
    return with_other(LAYER, lambda name, content: pax(*records) + entry(name, content))


def _cut(at: int) -> bytes:
    """Return the first bytes of a valid archive; `at` counts from its end if negative."""
    return tar(*image())[:at]


def _hidden() -> bytes:
    """Return an image with a link that claims a size: a reader that believes it does not see the second index."""
    second = entry("index.json", b'{"schemaVersion":2,"manifests":[]}')
    return tar(*image(), entry("innocent", second, tarfile.SYMTYPE, target="x"))


def _in_rows(count: int, part: bytes) -> bytes:
    return tar(*image()[:INDEX], part * count, *image()[INDEX:])


_BODY: Final = len(tar(*image()[:LAYER], end=b""))

_LAYER_NAME: Final = blob_name(digest_of(LAYERS[0]))

NAMES: Final = [
    Hostile("name-dot-dot", "a layer as blobs/sha256/../../../etc/cron.d/x",
            lambda: _named("blobs/sha256/../../../etc/cron.d/x")),
    Hostile("name-absolute", "every name begins with /",
            lambda: tar(*((f"/{name}", content) for name, content in image()))),
    Hostile("name-absolute-layer", "a layer as /etc/shadow", lambda: _named("/etc/shadow")),
    Hostile("name-nul", "index.json with a NUL and more after it, in a pax header",
            lambda: with_other(INDEX, lambda _, content: pax(("path", "index.json\0.txt")) + entry("x", content))),
    Hostile("name-nul-beside", "a second index.json for tools in C, whose name continues after a NUL",
            lambda: beside(pax(("path", "index.json\0x")) + entry("x", b"{}"))),
    Hostile("name-nul-of-link", "a link to a layer for tools in C, whose target continues after a NUL",
            lambda: beside(pax(("linkpath", f"{image()[LAYER][0]}\0x")) + entry("x", b"", tarfile.SYMTYPE))),
    Hostile("name-nul-blob", "a layer's name with a NUL after it",
            lambda: _named(f"{_LAYER_NAME}\0/../../../etc/passwd")),
    Hostile("name-newline", "a layer's name with a newline after it", lambda: _named(f"{_LAYER_NAME}\n")),
    Hostile("name-upper-case", "a layer under its digest in capitals", lambda: _named(_LAYER_NAME.upper())),
    Hostile("name-deeper", "a layer as a file within a folder of its own name", lambda: _named(f"{_LAYER_NAME}/layer")),
    Hostile("name-backslashes", "a layer's name with backslashes", lambda: _named(_LAYER_NAME.replace("/", "\\"))),
    Hostile("name-unicode", "a layer's name with a letter that looks like another",
            lambda: _named(_LAYER_NAME.replace("b", "\u0184"))),
    Hostile("name-no-utf-8", "a layer's name with a byte that is not UTF-8", lambda: _named(f"{_LAYER_NAME}\udcff")),
    Hostile("name-trailing-slash", "index.json/ as a regular file",
            lambda: with_other(INDEX, lambda _, content: entry("index.json/", content))),
    Hostile("name-escapes", "a sparse file whose name has terminal control sequences",
            lambda: beside(pax(("path", _ESCAPES)) + entry("x", b"", tarfile.GNUTYPE_SPARSE))),
]  # fmt: skip

TYPES: Final = [
    Hostile("type-index-symlink", "index.json is a symbolic link to /etc/passwd",
            lambda: _typed(INDEX, tarfile.SYMTYPE, "/etc/passwd")),
    Hostile("type-index-hard-link", "index.json is a hard link to /etc/passwd",
            lambda: _typed(INDEX, tarfile.LNKTYPE, "/etc/passwd")),
    Hostile("type-index-fifo", "index.json is a FIFO", lambda: _typed(INDEX, tarfile.FIFOTYPE)),
    Hostile("type-index-device", "index.json is a character device", lambda: _typed(INDEX, tarfile.CHRTYPE)),
    Hostile("type-index-directory", "index.json is a directory", lambda: _typed(INDEX, tarfile.DIRTYPE)),
    Hostile("type-index-unknown", "index.json is of an unknown type", lambda: _typed(INDEX, b"Z")),
    Hostile("type-layout-symlink", "oci-layout is a symbolic link",
            lambda: _typed(LAYOUT, tarfile.SYMTYPE, "/etc/passwd")),
    Hostile("type-manifest-symlink", "a manifest is a symbolic link out of the archive",
            lambda: _typed(MANIFEST, tarfile.SYMTYPE, "../../../../etc/passwd")),
    Hostile("type-config-hard-link", "a config is a hard link to another blob",
            lambda: _typed(CONFIG, tarfile.LNKTYPE, image()[LAYER][0])),
    Hostile("type-layer-symlink", "a layer is a symbolic link to /etc/shadow",
            lambda: _typed(LAYER, tarfile.SYMTYPE, "/etc/shadow")),
    Hostile("type-layer-hard-link", "a layer is a hard link to /etc/shadow",
            lambda: _typed(LAYER, tarfile.LNKTYPE, "/etc/shadow")),
    Hostile("type-layer-block-device", "a layer is a block device", lambda: _typed(LAYER, tarfile.BLKTYPE)),
    Hostile("type-layer-fifo", "a layer is a FIFO", lambda: _typed(LAYER, tarfile.FIFOTYPE)),
    Hostile("type-layer-directory", "a layer is a directory", lambda: _typed(LAYER, tarfile.DIRTYPE)),
    Hostile("type-layer-volume", "a layer continues from another volume", lambda: _typed(LAYER, b"M")),
    Hostile("type-link-with-size", "a link claims a size, to hide a second index.json in it", _hidden),
    Hostile("sparse-old", "a layer is a sparse file of old GNU tar",
            lambda: with_other(LAYER, lambda name, content: entry(name, content, tarfile.GNUTYPE_SPARSE))),
    Hostile("sparse-0.0", "a layer is a sparse file, by pax headers of version 0.0",
            lambda: _sparse(("GNU.sparse.size", "99999999"), ("GNU.sparse.numblocks", "1"),
                            ("GNU.sparse.offset", "0"), ("GNU.sparse.numbytes", "512"))),
    Hostile("sparse-0.1", "a layer is a sparse file, of version 0.1",
            lambda: _sparse(("GNU.sparse.map", "0,1,99999999,1"), ("GNU.sparse.size", "99999999"))),
    Hostile("sparse-1.0", "a layer is a sparse file, of version 1.0, under another name",
            lambda: _sparse(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"),
                            ("GNU.sparse.name", "../../etc/passwd"), ("GNU.sparse.realsize", "99999999999"))),
]  # fmt: skip

SIZES: Final = [
    Hostile("size-negative", "a layer has -512 bytes", lambda: _sized(base256(-512))),
    Hostile("size-of-80-bits", "a layer has 2^80 bytes", lambda: _sized(base256(1 << 80)), piped=5),
    Hostile("size-tebibyte", "a layer has a TiB", lambda: _sized(base256(1 << 40)), piped=5),
    Hostile("size-no-number", "a layer's size is not a number", lambda: _sized(b"0x1f\0")),
    Hostile("size-smaller", "a layer's size is too small: its last bytes become a header",
            lambda: _sized(f"{BLOCK:011o}\0".encode()), code=5),
    Hostile("size-one-short", "a layer's size is a byte too small",
            lambda: _sized(f"{len(LAYERS[0]) - 1:011o}\0".encode()), code=5),
    Hostile("size-one-more", "a layer's size is a byte too large: its padding counts as content",
            lambda: _sized(f"{len(LAYERS[0]) + 1:011o}\0".encode()), code=5),
    Hostile("pax-size-smaller", "a pax header contradicts the size, so that content becomes headers",
            lambda: with_other(LAST, lambda name, content: pax(("size", "512")) + entry(name, content))),
    Hostile("pax-size-larger", "a pax header has a layer of a GiB, which includes the rest of the archive",
            lambda: _pax_sized(str(1 << 30))),
    Hostile("pax-size-tebibyte", "a pax header has a layer of a TiB", lambda: _pax_sized(str(1 << 40)), piped=5),
    Hostile("pax-size-negative", "a pax header has a layer of -1 bytes", lambda: _pax_sized("-1")),
    Hostile("pax-size-float", "a pax header has a layer of 1e3 bytes", lambda: _pax_sized("1e3")),
    Hostile("pax-size-digits", "a pax header has a size in digits of another script",
            lambda: _pax_sized("\u0661\u0662")),
    Hostile("pax-size-20-digits", "a pax header has a size of 20 digits", lambda: _pax_sized("9" * 20)),
    Hostile("pax-size-4000-digits", "a pax header has a size of 4000 digits", lambda: _pax_sized("9" * 4000)),
]  # fmt: skip

HEADERS: Final = [
    Hostile("pax-huge", "a pax header of 2 MiB",
            lambda: beside(pax_header(record("comment", "x" * 2 * MIB)))),
    Hostile("pax-claims-much", "a pax header claims a GiB", lambda: beside(
            entry("pax", b"", tarfile.XHDTYPE, size=base256(1 << 30)))),
    Hostile("pax-many-keys", "a pax header of a MiB of keys, before a layer that is a sparse file",
            lambda: with_other(LAYER, lambda name, _: _many_keys() + entry(name, b"", tarfile.GNUTYPE_SPARSE))),
    Hostile("pax-many-records", "a pax header of a MiB of the smallest records, 26 times, inside gzip",
            lambda: gz([*[pax_header(b"5 a=\n" * 200_000) + entry("x", b"")] * 26, tar(*image())])),
    Hostile("pax-many-records-in-all", "400,000 records in pax headers of 1,000, inside gzip",
            lambda: gz([*[pax_header(b"5 a=\n" * 1_000) + entry("x", b"")] * 400, tar(*image())])),
    Hostile("pax-length-0", "a record of no length", lambda: beside(pax_header(b"0 path=x\n"))),
    Hostile("pax-length-beyond", "a record longer than its header", lambda: beside(pax_header(b"999999 path=x\n"))),
    Hostile("pax-length-short", "a record that ends before its newline", lambda: beside(pax_header(b"8 path=x\n"))),
    Hostile("pax-length-negative", "a record of negative length", lambda: beside(pax_header(b"-9 path=x\n"))),
    Hostile("pax-no-equals-sign", "a record without an equals sign",
            lambda: beside(pax_header(b"9 path x\n") + entry("x", b""))),
    Hostile("pax-path-twice", "two paths in one header",
            lambda: beside(pax_header(record("path", "a") + record("path", "b")))),
    Hostile("pax-global-path", "a layer has its name and a sparse map in a global header only",
            lambda: with_other(LAYER, lambda name, content: pax(("path", name), kind=tarfile.XGLTYPE)
                               + entry("layer", content))),
    Hostile("pax-global-path-beside", "a file that some tools call index.json, by a global header before it",
            lambda: tar(*image()[:LAST], pax(("path", "index.json"), kind=tarfile.XGLTYPE), image()[LAST])),
    Hostile("pax-solaris-path", "a file that some tools call index.json, by a Solaris header before it",
            lambda: beside(pax(("path", "index.json"), kind=tarfile.SOLARIS_XHDTYPE) + entry("x", b"{}"))),
    Hostile("pax-solaris-size", "a file that has content for some tools, by a Solaris header before it",
            lambda: beside(pax(("size", "512"), kind=tarfile.SOLARIS_XHDTYPE) + entry("x", b""))),
    Hostile("pax-global-huge", "a global header claims 512 MiB", lambda: beside(
            entry("pax", b"", tarfile.XGLTYPE, size=base256(512 * MIB)))),
    Hostile("long-name-huge", "a long name of 64 KiB",
            lambda: beside(entry("././@LongLink", b"a/" * 32 * KIB, tarfile.GNUTYPE_LONGNAME))),
    Hostile("long-name-claims-much", "a long name claims a GiB", lambda: beside(
            entry("././@LongLink", b"", tarfile.GNUTYPE_LONGNAME, size=base256(1 << 30)))),
    Hostile("long-name-deep", "a file lies in 2,000 directories",
            lambda: beside(entry("././@LongLink", b"a/" * 2000 + b"x", tarfile.GNUTYPE_LONGNAME), entry("x", b""))),
    Hostile("long-link-huge", "a long link of 64 KiB",
            lambda: beside(entry("././@LongLink", b"a/" * 32 * KIB, tarfile.GNUTYPE_LONGLINK))),
    Hostile("long-names-in-rows", "20,000 long names without an entry",
            lambda: _in_rows(20_000, entry("././@LongLink", b"a\0", tarfile.GNUTYPE_LONGNAME))),
    Hostile("pax-in-rows", "20,000 pax headers before one entry",
            lambda: _in_rows(20_000, pax(("comment", "x")))),
    Hostile("entries-60,000", "more entries than any image has",
            lambda: tar(entry("x", b"") * 60_000, *image())),
    Hostile("checksum-wrong", "a header's checksum is wrong",
            lambda: with_other(INDEX, lambda name, content: flipped(entry(name, content), 140))),
    Hostile("checksum-no-number", "a header's checksum is not a number",
            lambda: with_other(INDEX, lambda name, content: _with(entry(name, content), 148, b"checksum"))),
    Hostile("no-tar", "bytes that are not a tar", lambda: bytes(range(256)) * 40),
    Hostile("empty", "an empty file", lambda: b""),
]  # fmt: skip

ENDS: Final = [
    Hostile("cut-in-first-header", "the archive ends in its first header", lambda: _cut(300)),
    Hostile("cut-in-header", "the archive ends in a layer's header", lambda: _cut(_BODY + 100)),
    Hostile("cut-in-body", "the archive ends in a layer", lambda: _cut(_BODY + BLOCK + 50)),
    Hostile("cut-in-padding", "the archive ends in the padding of its last layer", lambda: _cut(-len(END) - 1)),
    Hostile("cut-before-end", "the archive has no end-of-archive mark", lambda: _cut(-len(END))),
    Hostile("cut-in-end", "half of the end-of-archive mark is missing", lambda: _cut(-BLOCK)),
    Hostile("cut-in-pax", "the archive ends in a pax header",
            lambda: beside(pax_header(record("comment", "x" * 4000)))[:-5000]),
    Hostile("zeros-within", "a block of zeros in the middle of the archive",
            lambda: tar(*image()[:LAYER], bytes(BLOCK), *image()[LAYER:])),
    Hostile("end-within", "an end-of-archive mark before the layers",
            lambda: tar(*image()[:LAYER], END, *image()[LAYER:])),
    Hostile("end-and-more", "a second archive after the end of the first", lambda: tar(*image()) * 2),
    Hostile("end-and-garbage", "a byte after the end", lambda: tar(*image()) + bytes(9000) + b"x"),
    Hostile("end-and-garbage-and-zeros", "a byte after the end, and then more than a chunk of zeros",
            lambda: tar(*image()) + bytes(9000) + b"x" + bytes(MIB)),
    Hostile("nothing-but-zeros", "an archive of zeros only", lambda: bytes(10 * KIB)),
]  # fmt: skip

TWICE: Final = [
    Hostile("index-twice", "two entries have the name index.json", lambda: beside(("index.json", image()[INDEX][1]))),
    Hostile("index-twice-in-disguise", "index.json and ././index.json",
            lambda: beside(("././index.json", b'{"schemaVersion":2,"manifests":[]}'))),
    Hostile("layout-twice", "two entries have the name oci-layout, the first with another version",
            lambda: tar(("oci-layout", b'{"imageLayoutVersion":"1.9.0"}'), *image())),
    Hostile("layout-version-last", "oci-layout has version 9, and comes last",
            lambda: tar(*image()[1:], ("oci-layout", b'{"imageLayoutVersion":"9.0.0"}'))),
    Hostile("layout-no-json-last", "oci-layout is not JSON, and comes last",
            lambda: tar(*image()[1:], ("oci-layout", b"1.0.0"))),
    Hostile("layout-huge-last", "oci-layout has 64 KiB, and comes last",
            lambda: tar(*image()[1:], ("oci-layout", b" " * 64 * KIB + b"{}"))),
    Hostile("index-never", "there is no index.json",
            lambda: tar_of([item for item in image() if item[0] != "index.json"])),
    Hostile("digest-twice", "a digest twice, the second time with other bytes",
            lambda: beside(tar_of([(image()[LAYER][0], flipped(LAYERS[0]))], end=False)), code=5),
    Hostile("digest-twice-first", "a digest twice, the first time with other bytes",
            lambda: tar(*image()[:LAYER], (image()[LAYER][0], flipped(LAYERS[0])), *image()[LAYER:]), code=5),
    Hostile("digest-twice-sizes", "a digest twice, the second time longer",
            lambda: beside((image()[LAYER][0], LAYERS[0] + b"x"))),
    Hostile("manifest-twice", "a manifest twice, the second time with other bytes",
            lambda: beside((image()[MANIFEST][0], flipped(image()[MANIFEST][1] or b""))), code=5),
]  # fmt: skip


def _many_keys() -> bytes:
    """Return a pax header of the maximum size with unknown keys only."""
    records = b"".join(record(f"{number:05x}", "y") for number in range(75_000))
    return entry("pax", records[: MIB // 13 * 13], tarfile.XHDTYPE)


def _with(block: bytes, at: int, content: bytes) -> bytes:
    return block[:at] + content + block[at + len(content) :]


ALL: Final = [*NAMES, *TYPES, *SIZES, *HEADERS, *ENDS, *TWICE]
__all__ = ["ALL", "padded"]
