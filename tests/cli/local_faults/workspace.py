"""The files of a run: an image in a registry, in a layout and in a file, and a disk to write to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.archives import check_blobs, files_in, small_first, tar_of
from tests.cli import assertions
from tests.cli.local_faults.fault_table import (
    COMMANDS,
    COPY_DIR,
    COPY_FILE,
    MIB,
    PULL_DIR,
    PULL_FILE,
    PULL_OUT,
    PUSH_DIR,
    PUSH_FILE,
    PUSH_IN,
)
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.registry_http import seed

#: A partial file of at least this size may be kept, to be resumed.
_KEPT: Final = MIB
_TARGETS: Final = {
    PULL_FILE: "out.tar",
    COPY_FILE: "out.tar",
    PULL_OUT: "out.tar",
    PULL_DIR: "out",
    COPY_DIR: "out",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """`file` and the layout `made` have the image `digest`, `registry` has it as app:1, and `target` is empty."""

    registry: FaultyRegistry
    target: FaultyRegistry
    made: Path
    file: Path
    disk: Path
    digest: str
    sound: Mapping[Path, bytes]

    def argv(self, name: str) -> list[str]:
        """Return a command's arguments."""
        known = {
            "HOST": self.registry.host,
            "TO": self.target.host,
            "MADE": str(self.made),
            "FILE": str(self.file),
            "DISK": str(self.disk),
        }
        line = COMMANDS[name]
        for word, meant in known.items():
            line = line.replace(word, meant)
        return line.split()

    def restore(self) -> None:
        """Restore the image's files."""
        for path, content in self.sound.items():
            if path.read_bytes() != content:
                path.write_bytes(content)

    def shown(self, name: str) -> str | None:
        """Return the digest of the image at a command's destination; None if there is none."""
        if name in {PUSH_FILE, PUSH_DIR, PUSH_IN}:
            listed = json.loads((self.target.layout.path / "index.json").read_bytes())["manifests"]
            return str(listed[0]["digest"]) if listed else None
        if name not in _TARGETS:
            return None
        path = self.disk / _TARGETS[name]
        if name == PULL_OUT:
            return self.digest if path.exists() and path.read_bytes().endswith(bytes(1024)) else None
        if not path.exists() or (path.is_dir() and not (path / "index.json").exists()):
            return None
        return str(assertions.index_of(path)[0]["digest"])

    def check_done(self, name: str) -> None:
        """Assert that a command's work is done and complete."""
        if name not in _TARGETS:
            assert self.shown(name) == (self.digest if name.startswith("push") else None)
            return
        assert self.shown(name) == self.digest
        path = self.disk / _TARGETS[name]
        if path.is_file():
            assert len(check_blobs(files_in(path.read_bytes()))) == 4
            return
        blobs = list((path / "blobs").glob("*/[0-9a-f]*"))
        assert len(blobs) >= 4
        assert all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs)

    def strays(self, *, done: bool = False) -> list[str]:
        """Return the partial files on the disk and in the registry that cannot be resumed.

        If the work is `done`, return all of them. A registry keeps an upload session while the client has its record.
        """
        found = [path for folder in (self.disk, self.target.layout.path) for path in folder.rglob(".*.partial")]
        sessions = [path for path in found if path.name.endswith(".upload.partial")]
        if done or len(sessions) > len(self.remembered()):
            return [str(path) for path in found]
        return [str(path) for path in found if path not in sessions and path.stat().st_size < _KEPT]

    def remembered(self) -> list[Path]:
        """Return the records of uploads to the target that can be resumed."""
        state = Path.home() / ".local" / "state" / "ocistream" / "uploads"
        records = list(state.rglob("*")) if state.is_dir() else []
        return [path for path in records if path.is_file() and self.target.host in path.read_text()]


def place_of(registry: FaultyRegistry, target: FaultyRegistry, layout: Layout, folder: Path, command: str) -> Place:
    """Make a place with an image of a large and a small layer; the registry has it if the command names it."""
    image = layout.image([2 * MIB, b"small"], name="app")
    if "HOST" in COMMANDS[command]:
        seed(layout, image, registry.host, "app", "1")
    file, disk = folder / "app.tar", folder / "disk"
    file.write_bytes(tar_of(small_first(layout)))
    disk.mkdir()
    files = [file, *(path for path in layout.path.rglob("*") if path.is_file())]
    return Place(
        registry, target, layout.path, file, disk, image["digest"], {path: path.read_bytes() for path in files}
    )
