"""Archives cut into volumes, made and read by Python's `tarfile` alone: ocistream's, and those of other tools.

`Cut` makes a set of volumes of a layout. `read_volumes` joins the volumes of a set by their annotations alone, and
checks them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.archives import Item, blob_name, check_blobs, files_in, items_of, tar_of
from tests.images import MANIFESTS, Layout, digest_of

OMITTED: Final = "vnd.ocistream.omitted"
VOLUME: Final = "vnd.ocistream.volume"
PARTS: Final = "vnd.ocistream.parts"
TEMPLATE: Final = "app.%03d.tar"
#: A range of a blob's bytes: its volume, its offset, its size.
Piece = tuple[int, int, int]


@dataclasses.dataclass
class Cut:
    """How a layout is cut into volumes. Blobs without pieces are in the volume of `whole`, or in the first one.

    `notes` override the annotations of each volume's index; None removes one.
    """

    layout: Layout
    total: int
    pieces: dict[str, list[Piece]] = dataclasses.field(default_factory=dict)
    whole: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: dict[str, str | None] = dataclasses.field(default_factory=dict)
    identity: str = digest_of(b"a set of volumes")
    template: str = TEMPLATE
    #: Replacements of blobs, by digest: other bytes, or None to omit the blob.
    damaged: dict[str, bytes | None] = dataclasses.field(default_factory=dict)

    def items(self, number: int) -> list[Item]:
        """Return the entries of a volume."""
        items: list[Item] = []
        after: list[Item] = []
        manifests = self._manifests()
        omitted: dict[int, list[str]] = {}
        for name, content in items_of(self.layout):
            digest = name.removeprefix("blobs/").replace("/", ":")
            if not name.startswith("blobs/") or digest in manifests:
                items += self._item(name, digest, content) if name != "index.json" else []
            elif digest in self.pieces and digest not in self.damaged:
                others = [volume for volume, _, _ in self.pieces[digest] if volume != number]
                omitted.setdefault(others[0] if others else number, []).append(digest)
                for volume, offset, size in self.pieces[digest]:
                    if volume == number:
                        after += part_items(digest, offset, (content or b"")[offset : offset + size])
            elif self.whole.get(digest, 0) == number:
                after += self._item(name, digest, content)
            else:
                omitted.setdefault(self.whole.get(digest, 0), []).append(digest)
        index = json.loads((self.layout.path / "index.json").read_bytes())
        index["annotations"] = self._annotations(number, omitted)
        return [*items, ("index.json", json.dumps(index).encode()), *after]

    def write(self, folder: Path) -> list[Path]:
        """Write all volumes."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / (self.template % number) for number in range(self.total)]
        for number, path in enumerate(paths):
            path.write_bytes(tar_of(self.items(number)))
        return paths

    def _item(self, name: str, digest: str, content: bytes | None) -> list[Item]:
        content = self.damaged.get(digest, content)
        return [] if content is None else [(name, content)]

    def _annotations(self, number: int, omitted: Mapping[int, Sequence[str]]) -> dict[str, str]:
        lines: list[str] = []
        for volume, digests in sorted(omitted.items()):
            lines += [f"# volume {self.template % volume}", *digests]
        parts: list[str] = []
        for digest, pieces in self.pieces.items():
            parts += [f"# {digest}", *(" ".join(map(str, piece)) for piece in pieces)]
        notes: dict[str, str | None] = {
            OMITTED: "\n".join(lines),
            VOLUME: f"{number} {self.total} {self.identity} {self.template}",
            PARTS: "\n".join(parts) if parts else None,
            **self.notes,
        }
        return {key: value for key, value in notes.items() if value is not None}

    def _manifests(self) -> set[str]:
        found: set[str] = set()
        todo = json.loads((self.layout.path / "index.json").read_bytes())["manifests"]
        while todo:
            descriptor = todo.pop()
            if descriptor["mediaType"] in MANIFESTS and self.layout.file(descriptor["digest"]).exists():
                found.add(descriptor["digest"])
                todo += self.layout.read(descriptor["digest"]).get("manifests", ())
        return found


def part_items(digest: str, offset: int, content: bytes) -> list[Item]:
    """Return the entries of a part: the part, and its checksum as `sha256sum` writes it."""
    name = f"parts/{digest.replace(':', '/')}/{offset}"
    return [(name, content), (f"{name}.sha256", f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())]


def notes_in(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the annotations of an index.json."""
    found: dict[str, str] = json.loads(files["index.json"]).get("annotations", {})
    return found


def read_volumes(paths: Sequence[Path]) -> dict[str, bytes]:
    """Return the files of the layout that all volumes of a set make together, in any order of the volumes.

    Check that each volume is a layout by itself, and that it names the volume of each blob that it omits.
    """
    volumes: dict[int, dict[str, bytes]] = {}
    for path in paths:
        files = files_in(path.read_bytes())
        check_blobs(files)
        if VOLUME not in notes_in(files):
            assert len(paths) == 1, path
            return files
        number, total, _, template = notes_in(files)[VOLUME].split(" ", 3)
        assert int(total) == len(paths)
        assert path.name == template % int(number)
        volumes[int(number)] = files
    assert sorted(volumes) == list(range(len(paths)))
    together: dict[str, bytes] = {}
    for files in volumes.values():
        together.update({name: content for name, content in files.items() if not name.startswith("parts/")})
    for digest, pieces in _pieces(volumes[0]).items():
        content = b"".join(_part(volumes[volume], digest, offset, size) for volume, offset, size in pieces)
        assert digest_of(content) == digest
        assert blob_name(digest) not in together
        together[blob_name(digest)] = content
    holders: dict[str, list[int]] = {}
    for which, files in volumes.items():
        for name in files:
            holders.setdefault(name, []).append(which)
    for which, files in volumes.items():
        _check_omitted(files, which, holders, together)
    index = json.loads(together["index.json"])
    del index["annotations"]
    together["index.json"] = json.dumps(index).encode()
    return together


def _pieces(files: Mapping[str, bytes]) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = {}
    digest = ""
    for line in notes_in(files).get(PARTS, "").splitlines():
        if line.startswith("# "):
            digest = line[2:]
            found[digest] = []
        else:
            volume, offset, size = map(int, line.split(" "))
            found[digest].append((volume, offset, size))
    return found


def _part(files: Mapping[str, bytes], digest: str, offset: int, size: int) -> bytes:
    (name, content), (checksum, line) = part_items(digest, offset, files[f"parts/{digest.replace(':', '/')}/{offset}"])
    assert len(content or b"") == size
    assert files[checksum] == line
    return files[name]


def _check_omitted(
    files: Mapping[str, bytes], number: int, holders: Mapping[str, Sequence[int]], together: Mapping[str, bytes]
) -> None:
    """Check a volume's list of omitted blobs; `holders` are the volumes that have a file, by its name."""
    said: dict[str, str] = {}
    reason = ""
    for line in notes_in(files).get(OMITTED, "").splitlines():
        if line.startswith("# "):
            reason = line[2:]
        else:
            said[line] = reason
    template: Any = notes_in(files)[VOLUME].split(" ", 3)[3]
    lacking = {name for name in together if name.startswith("blobs/")} - set(files)
    assert {blob_name(digest) for digest in said} == lacking
    pieces = _pieces(files)
    for digest, why in said.items():
        others = [n for n in holders.get(blob_name(digest), ()) if n != number]
        others += [volume for volume, _, _ in pieces.get(digest, []) if volume != number][:1]
        assert why in {f"volume {template % other}" for other in others}, (digest, why)
