"""Archives in which two common tools see different images, or one tool sees nothing.

Each has a valid image, and another image that some tools take for the archive's. `seen` says what GNU tar 1.34,
Python 3.11's tarfile and skopeo 1.9 read; `tests/interop/test_ambiguous_archives.py` runs them.
"""

from __future__ import annotations

import tarfile
from typing import Final

from tests.archives import BLOCK, padded, with_checksum
from tests.hostile.archive_parts import (
    INDEX,
    LAYER,
    LAYERS,
    MANIFEST,
    PLAIN,
    SOUND_CONFIG,
    Hostile,
    Part,
    Seen,
    beside,
    blob,
    config_of,
    digest_of,
    entry,
    image,
    json_of,
    pax,
    tar,
    with_other,
)
from tests.images import tar_layer

SOUND, OTHER, REFUSED = "sound", "other", "refused"

_MOTD: Final = {"etc/motd": b"mutiny\n"}
_OTHER_IMAGE: Final = image(
    layers=(tar_layer(_MOTD),), config=config_of((tar_layer(_MOTD, compression=""),), author="another")
)
_OTHER_INDEX: Final = _OTHER_IMAGE[INDEX][1] or b""
SOUND_DIGEST: Final = digest_of(image()[MANIFEST][1] or b"")
OTHER_DIGEST: Final = digest_of(_OTHER_IMAGE[MANIFEST][1] or b"")

_CONFIG: Final = "config.json"
_OTHER_CONFIG: Final = config_of(PLAIN, author="another")
SOUND_CONFIG_DIGEST: Final = digest_of(SOUND_CONFIG)
OTHER_CONFIG_DIGEST: Final = digest_of(_OTHER_CONFIG)


def _beside(*parts: Part) -> bytes:
    """Return a valid image, the blobs of another one, and then an entry that some tools take for the other's index."""
    return beside(*_OTHER_IMAGE[MANIFEST:], *parts)


def _named(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    return _beside(entry(name, _OTHER_INDEX, kind))


def _headers(*headers: bytes) -> bytes:
    """Return an archive in which headers give the other index its name."""
    return _beside(*headers, entry("x", _OTHER_INDEX))


def _long(name: str) -> bytes:
    return entry("././@LongLink", f"{name}\0".encode(), tarfile.GNUTYPE_LONGNAME)


def _prefixed(magic: bytes, prefix: bytes, end: bytes = b"") -> bytes:
    """Return an archive in which the header of the other index has a prefix field."""
    rest = prefix.ljust(BLOCK - 345 - len(end), b"\0") + end
    return _beside(entry("index.json", _OTHER_INDEX, magic=magic, rest=rest))


def _hidden(name: str, kind: bytes, before: bytes = b"") -> bytes:
    """Return an archive in which the other index is the content of an entry that is empty for some tools."""
    return _beside(before, entry(name, entry("index.json", _OTHER_INDEX), kind, target="oci-layout"))


def _sized(size: bytes) -> bytes:
    hidden = entry("index.json", _OTHER_INDEX)
    return _beside(entry("innocent", hidden, size=size % len(hidden)))


def _pax_sized(in_pax: int, in_header: int) -> bytes:
    content = entry("index.json", _OTHER_INDEX)
    size = f"{in_header * len(content):011o}\0".encode()
    return _beside(pax(("size", str(in_pax * len(content)))), entry("innocent", content, size=size))


def _link(target: str, name: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    return _beside(entry("d", b"", kind, target=target), entry(name, _OTHER_INDEX))


def _saved(*parts: Part) -> bytes:
    """Return an image as Docker saves it, with more entries before its manifest.json."""
    listed = json_of([{"Config": _CONFIG, "RepoTags": ["app:1"], "Layers": ["one.tar", "two.tar"]}])
    return tar(("one.tar", PLAIN[0]), ("two.tar", PLAIN[1]), *parts, ("manifest.json", listed))


def _bad_time() -> bytes:
    """Return an archive with the other index after a header whose time is not a number."""
    block = entry("x", b"")
    return _beside(with_checksum(block[:136] + b"yesterday\0\0\0" + block[148:]), padded(b""), ("index.json", b"{}"))


NAMES: Final = [
    Hostile("differ-name-slash", "another image's index is a file index.json/",
            lambda: _named("index.json/"), seen=Seen(REFUSED, OTHER, OTHER)),
    Hostile("differ-name-slash-dot", "another image's index is a file index.json/.",
            lambda: _named("index.json/."), seen=Seen(REFUSED, REFUSED, OTHER)),
    Hostile("differ-name-slash-old", "another image's index is index.json/, which is a directory in old archives",
            lambda: _named("index.json/", tarfile.AREGTYPE), seen=Seen(REFUSED, SOUND, REFUSED)),
    Hostile("differ-name-slash-pax", "another image's index is a file index.json/ by its pax header",
            lambda: _headers(pax(("path", "index.json/"))), seen=Seen(REFUSED, OTHER, OTHER)),
    Hostile("differ-name-slash-only", "the only index is a file index.json/",
            lambda: with_other(INDEX, lambda _, content: entry("index.json/", content)),
            seen=Seen(REFUSED, SOUND, SOUND)),
    Hostile("differ-name-slashes", "another image's index is .//index.json",
            lambda: _named(".//index.json"), seen=Seen(OTHER, OTHER, OTHER)),
    Hostile("differ-name-root", "another image's index is /index.json",
            lambda: _named("/index.json"), seen=Seen(OTHER, SOUND, OTHER)),
    Hostile("differ-name-within", "another image's index is x/../index.json",
            lambda: _named("x/../index.json"), seen=Seen(REFUSED, REFUSED, OTHER)),
    Hostile("differ-name-above", "another image's index is ../index.json",
            lambda: _named("../index.json"), seen=Seen(REFUSED, SOUND, REFUSED)),
    Hostile("differ-name-blob", "the only copy of a layer is blobs//sha256/DIGEST",
            lambda: with_other(LAYER, lambda name, content: entry(name.replace("/", "//", 1), content)),
            seen=Seen(SOUND, SOUND, SOUND)),
    Hostile("differ-name-case", "another image's index is INDEX.JSON, which macOS and Windows write to index.json",
            lambda: _named("INDEX.JSON"), seen=Seen(SOUND, SOUND, SOUND)),
    Hostile("differ-name-long-s", "another image's index is index.j\u017fon, which macOS writes to index.json",
            lambda: _named("index.j\u017fon"), seen=Seen(SOUND, SOUND, SOUND)),
    Hostile("differ-name-space", "another image's index ends with a space and a dot, which Windows drops",
            lambda: _named("index.json ."), seen=Seen(SOUND, SOUND, SOUND)),
    Hostile("differ-name-backslash", "another image's index is x\\..\\index.json, a path on Windows",
            lambda: _named("x\\..\\index.json"), seen=Seen(SOUND, SOUND, SOUND)),
]  # fmt: skip

HEADERS: Final = [
    Hostile("differ-pax-long", "a pax header calls another image's index junk, and a long name index.json",
            lambda: _headers(pax(("path", "junk")), _long("index.json")), seen=Seen(SOUND, SOUND, OTHER)),
    Hostile("differ-long-pax", "the same headers in the other order",
            lambda: _headers(_long("index.json"), pax(("path", "junk"))), seen=Seen(SOUND, OTHER, OTHER)),
    Hostile("differ-pax-long-junk", "a pax header calls another image's index index.json, and a long name junk",
            lambda: _headers(pax(("path", "index.json")), _long("junk")), seen=Seen(OTHER, OTHER, SOUND)),
    Hostile("differ-long-twice", "two long names of one entry, the first one index.json",
            lambda: _headers(_long("index.json"), _long("junk")), seen=Seen(SOUND, OTHER, SOUND)),
    Hostile("differ-long-twice-last", "two long names of one entry, the last one index.json",
            lambda: _headers(_long("junk"), _long("index.json")), seen=Seen(OTHER, SOUND, OTHER)),
    Hostile("differ-pax-twice", "two pax headers of one entry, the first one calls it index.json",
            lambda: _headers(pax(("path", "index.json")), pax(("path", "junk"))), seen=Seen(SOUND, OTHER, SOUND)),
    Hostile("differ-pax-twice-last", "two pax headers of one entry, the last one calls it index.json",
            lambda: _headers(pax(("path", "junk")), pax(("path", "index.json"))), seen=Seen(OTHER, SOUND, OTHER)),
    Hostile("differ-pax-empty", "a pax header gives another image's index.json an empty name",
            lambda: _beside(pax(("path", "")), entry("index.json", _OTHER_INDEX)),
            seen=Seen(REFUSED, REFUSED, OTHER)),
    Hostile("differ-prefix-v7", "another image's index has a prefix in a header without magic",
            lambda: _prefixed(bytes(8), b"d"), seen=Seen(OTHER, SOUND, OTHER)),
    Hostile("differ-prefix-gnu", "another image's index has a prefix in a header with GNU's magic",
            lambda: _prefixed(b"ustar  \0", b"d"), seen=Seen(OTHER, SOUND, SOUND)),
    Hostile("differ-prefix-star", "a prefix continues in the field where star has times",
            lambda: _prefixed(b"ustar\x0000", b"d" * 140, b"tar\0"), seen=Seen(SOUND, SOUND, REFUSED)),
    Hostile("differ-size-slash", "another image's index is the content of a file whose name ends with a slash",
            lambda: _hidden("innocent/", tarfile.REGTYPE), seen=Seen(OTHER, SOUND, SOUND)),
    Hostile("differ-size-volume", "another image's index is the content of a volume label, which bsdtar reads",
            lambda: _hidden("innocent", b"V"), seen=Seen(SOUND, SOUND, REFUSED)),
    Hostile("differ-size-hard-link", "another image's index is the content of a hard link, which bsdtar skips",
            lambda: _hidden("innocent", tarfile.LNKTYPE, pax(("comment", "x"))), seen=Seen(OTHER, OTHER, OTHER)),
    Hostile("differ-size-directory", "another image's index is the content of a directory",
            lambda: _hidden("innocent", tarfile.DIRTYPE), seen=Seen(OTHER, OTHER, OTHER)),
    Hostile("differ-size-nul", "another image's index is the content of a file whose size begins with a NUL",
            lambda: _sized(b"\0%010o\0"), seen=Seen(SOUND, OTHER, SOUND)),
    Hostile("differ-size-pax", "a file has a size in its pax header, and none in its own (CVE-2025-62518)",
            lambda: _pax_sized(1, 0), seen=Seen(SOUND, SOUND, SOUND)),
    Hostile("differ-size-pax-0", "a file has no size in its pax header, and one in its own",
            lambda: _pax_sized(0, 1), seen=Seen(OTHER, OTHER, OTHER)),
    Hostile("differ-time", "a time is not a number, at which tarfile stops without an error", _bad_time,
            seen=Seen(REFUSED, SOUND, REFUSED)),
]  # fmt: skip

TYPES: Final = [
    Hostile("differ-type-7", "another image's index is of type 7", lambda: _named("index.json", tarfile.CONTTYPE),
            seen=Seen(OTHER, OTHER, REFUSED)),
    Hostile("differ-type-7-only", "the only index is of type 7",
            lambda: with_other(INDEX, lambda name, content: entry(name, content, tarfile.CONTTYPE)),
            seen=Seen(SOUND, SOUND, REFUSED)),
    Hostile("differ-type-7-blob", "the only copy of a layer is of type 7",
            lambda: with_other(LAYER, lambda name, content: entry(name, content, tarfile.CONTTYPE)),
            seen=Seen(SOUND, SOUND, REFUSED)),
    Hostile("differ-type-directory", "a directory index.json comes after the file",
            lambda: _beside(entry("index.json", b"", tarfile.DIRTYPE)), seen=Seen(REFUSED, SOUND, REFUSED)),
    Hostile("differ-type-blobs", "a link blobs comes after the directory",
            lambda: _beside(entry("blobs", b"", tarfile.SYMTYPE, target="elsewhere")),
            seen=Seen(REFUSED, SOUND, REFUSED)),
    Hostile("differ-type-blob-directory", "a directory has a layer's name",
            lambda: _beside(entry(image()[LAYER][0], b"", tarfile.DIRTYPE)), seen=Seen(SOUND, SOUND, SOUND)),
    Hostile("differ-link-dot", "another image's index is d/index.json, and d a link to .",
            lambda: _link(".", "d/index.json"), seen=Seen(OTHER, OTHER, OTHER)),
    Hostile("differ-link-case", "another image's index is D/index.json, and d a link to .",
            lambda: _link(".", "D/index.json"), seen=Seen(SOUND, SOUND, SOUND)),
    Hostile("differ-link-above", "another image's index is d/../index.json, and d a link",
            lambda: _link("blobs/sha256", "d/../../index.json"), seen=Seen(REFUSED, OTHER, REFUSED)),
    Hostile("differ-link-through", "another image's index is d/../x, and d a link",
            lambda: _link("blobs/sha256", "d/../x"), seen=Seen(REFUSED, SOUND, SOUND)),
    Hostile("differ-link-file", "another image's index has the name of a link to index.json",
            lambda: _link("index.json", "d"), seen=Seen(SOUND, OTHER, SOUND)),
    Hostile("differ-link-hard", "another image's index has the name of a hard link to index.json",
            lambda: _link("index.json", "d", tarfile.LNKTYPE), seen=Seen(SOUND, OTHER, SOUND)),
]  # fmt: skip

#: skopeo reads these as docker-archives, and the config identifies the image.
DOCKER: Final = [
    Hostile("differ-docker-first", "another config is x/../config.json, before the config",
            lambda: _saved(entry(f"x/../{_CONFIG}", _OTHER_CONFIG), (_CONFIG, SOUND_CONFIG)),
            seen=Seen(REFUSED, REFUSED, OTHER)),
    Hostile("differ-docker-slashes", "another config is .//config.json, before the config",
            lambda: _saved(entry(f".//{_CONFIG}", _OTHER_CONFIG), (_CONFIG, SOUND_CONFIG)),
            seen=Seen(SOUND, SOUND, OTHER)),
    Hostile("differ-docker-last", "another config is /config.json, after the config",
            lambda: _saved((_CONFIG, SOUND_CONFIG), entry(f"/{_CONFIG}", _OTHER_CONFIG)),
            seen=Seen(OTHER, SOUND, SOUND)),
    Hostile("differ-docker-after-blob", "another config.json comes after a blob",
            lambda: _saved((_CONFIG, SOUND_CONFIG), blob(LAYERS[0]), (_CONFIG, _OTHER_CONFIG)),
            seen=Seen(OTHER, OTHER, SOUND)),
    Hostile("differ-docker-link", "another config is d/config.json, and d a link to .",
            lambda: _saved((_CONFIG, SOUND_CONFIG), entry("d", b"", tarfile.SYMTYPE, target="."),
                           entry(f"d/{_CONFIG}", _OTHER_CONFIG)),
            seen=Seen(OTHER, OTHER, SOUND)),
    Hostile("differ-docker-list", "another manifest.json is x/../manifest.json, before the first",
            lambda: _saved((_CONFIG, SOUND_CONFIG), ("other.json", _OTHER_CONFIG),
                           entry("x/../manifest.json", json_of([{"Config": "other.json", "RepoTags": ["app:1"],
                                                                 "Layers": ["one.tar", "two.tar"]}]))),
            seen=Seen(REFUSED, REFUSED, OTHER)),
]  # fmt: skip

ALL: Final = [*NAMES, *HEADERS, *TYPES, *DOCKER]
