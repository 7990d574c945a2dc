"""Tar files around layouts, written and read by Python's `tarfile` alone: what other tools write and read."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from tests.images import MANIFESTS, Descriptor, Layout

#: A name, and the content of a file; None for a folder.
Item = tuple[str, bytes | None]

#: The end of every complete archive (POSIX pax, "ustar Interchange Format").
END: Final = bytes(1024)
BLOCK: Final = 512
_FIRST: Final[tuple[str, ...]] = ("oci-layout", "index.json")
#: One of tarfile's formats.
Kind = Literal[0, 1, 2]


def items_of(layout: Layout) -> list[Item]:
    """Return all files of a layout, sorted by name: `blobs/...` come first, as in the archives of exporters."""
    files = sorted(path for path in layout.path.rglob("*") if path.is_file())
    return [(str(path.relative_to(layout.path)), path.read_bytes()) for path in files]


def small_first(layout: Layout) -> list[Item]:
    """Return the files in the order of our own archives: the small JSON comes first."""
    items = dict(items_of(layout))
    manifests = {blob_name(d["digest"]) for d in _reachable(layout) if d["mediaType"] in MANIFESTS}
    names = [name for name in _FIRST if name in items]
    names += [name for name in items if name in manifests]
    names += [name for name in items if name not in names]
    return [(name, items[name]) for name in names]


def blob_name(digest: str) -> str:
    """Return the path of a blob in a layout."""
    return "blobs/" + digest.replace(":", "/")


def tar_of(items: Iterable[Item], *, kind: Kind = tarfile.PAX_FORMAT, prefix: str = "", end: bool = True) -> bytes:
    """Return a tar file of `items`; `prefix` is added before each name."""
    output = io.BytesIO()
    for name, content in items:
        entry = tarfile.TarInfo(prefix + name)
        if content is None:
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        else:
            entry.size = len(content)
        output.write(entry.tobuf(kind, "utf-8", "surrogateescape"))
        output.write(padded(content or b""))
    return output.getvalue() + (END if end else b"")


def padded(content: bytes) -> bytes:
    """Return `content`, padded with zeros to complete blocks."""
    return content + bytes(-len(content) % BLOCK)


def member(name: str, kind: bytes, *, target: str = "", size: int = 0) -> bytes:
    """Return the header of an entry of any type, as `tarfile` writes it."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, target, size
    return entry.tobuf(tarfile.PAX_FORMAT)


def with_checksum(block: bytes | bytearray) -> bytes:
    """Return a header block with its correct checksum, after a test has changed a field."""
    unsigned = sum(block[:148]) + 8 * ord(" ") + sum(block[156:BLOCK])
    return bytes(block[:148]) + f"{unsigned:06o}\0 ".encode() + bytes(block[156:])


def pax_header(records: bytes, *, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return an extended header around `records`, which may be malformed."""
    return member("pax", kind, size=len(records)) + padded(records)


def files_in(archive: bytes) -> dict[str, bytes]:
    """Return all files of a complete archive, in order."""
    assert archive.endswith(END), "the archive has no end"
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as reader:
        for entry in reader:
            assert entry.isfile(), entry.name
            assert entry.name not in found, f"{entry.name} occurs twice"
            file = reader.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
    return found


def index_in(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return the entries of an archive's index.json."""
    listed: list[dict[str, Any]] = json.loads(files["index.json"])["manifests"]
    return listed


def check_blobs(files: dict[str, bytes]) -> set[str]:
    """Assert that each blob has the digest of its name, and return the digests."""
    found = set()
    for name, content in files.items():
        if name.startswith("blobs/"):
            _, algorithm, encoded = name.split("/")
            assert hashlib.new(algorithm, content).hexdigest() == encoded, f"{name} is corrupt"
            found.add(f"{algorithm}:{encoded}")
    return found


def _reachable(layout: Layout) -> list[Descriptor]:
    index = json.loads((layout.path / "index.json").read_bytes())
    todo: list[Descriptor] = list(index["manifests"])
    found: list[Descriptor] = []
    while todo:
        descriptor = todo.pop()
        found.append(descriptor)
        if descriptor["mediaType"] in MANIFESTS and layout.file(descriptor["digest"]).is_file():
            todo.extend(children_of(layout.read(descriptor["digest"])))
    return found


def children_of(document: dict[str, Any]) -> Sequence[Descriptor]:
    """Return the descriptors of the children of a manifest or index."""
    config = [document["config"]] if "config" in document else []
    return [*document.get("manifests", []), *config, *document.get("layers", [])]


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract a tar that a test made. Filters do not exist before Python 3.11.4; later versions require one."""
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(folder, **options)  # noqa: S202 - the tests made it themselves
