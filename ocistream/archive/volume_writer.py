"""OCI archives out, cut into volumes: several tars, of which each is a layout that lacks some blobs and says so.

What goes where is archive/volume_plan.py's business. All volumes are written beside their names until each of them is
whole; so what an interruption leaves of any is gone on with, as in a single file. The names come in order: where the
last one is, all are.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from typing import TYPE_CHECKING, Literal, NamedTuple

from ocistream import limits, notices
from ocistream.archive import tar
from ocistream.archive.outputs import Begun, Rewritable, file_output
from ocistream.archive.tar_writer import TarWriter
from ocistream.archive.volume_plan import planned
from ocistream.archive.writer import small_files
from ocistream.errors import UnsupportedError, UsageError
from ocistream.layout.index import OCI_LAYOUT, blob_name, entries_of, index_json
from ocistream.oci.reference import printable
from ocistream.oci.volumes import checksum_line, checksum_name, parse_template, part_name
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ocistream.archive.volume_plan import Plan
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.volumes import Piece
    from ocistream.streams.chunks import Chunk, Hasher
    from ocistream.transfer.interfaces import Blob

__all__ = ["VolumesSink"]


class _Open(NamedTuple):
    """A volume that is being written."""

    tar: TarWriter
    output: Rewritable


class VolumesSink:
    """Images into as many tars as it takes, none of them larger than so many bytes."""

    parallel = False
    leaves_out: Literal[True] = True

    def __init__(self, path: Path, size: int, *, mtime: int = 0) -> None:
        """Write files of at most `size` bytes, whose names are `path` with numbers in the place of its `%d`.

        `mtime` (seconds since 1970) stands in every entry. Nothing is opened yet.

        Raises:
            UsageError: the path has no such place, or another one.
        """
        self._folder = path.parent
        self._template = parse_template(path.name)
        self._size = size
        self._mtime = mtime
        self._graph: Graph | None = None
        #: None where there is one volume only, which is an archive as any other.
        self._plan: Plan | None = None
        self._volumes: dict[int, _Open] = {}
        self._written: set[str] = set()

    def begin(self, graph: Graph) -> None:
        """Decide what goes where.

        Raises:
            UsageError: volumes of this size are too small, or one of their names is that of something else.
            NotFoundError: their folder is not there.
        """
        self._graph = graph
        self._plan = planned(graph, self._template, self._size)
        self._written.update(manifest.descriptor.digest for manifest in graph.manifests)
        for number in range(self._total):
            path = self._folder / self._template.name(number)
            if paths.exists(path) and not paths.is_file(path):
                msg = f"{path} is no file, and a volume would have this name"
                raise UsageError(msg)
        self._volume(0)

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether the blob was written: the same digest is not stored twice, but for manifests."""
        return descriptor.digest in self._written

    has_manifest = has

    def takes_early(self) -> bool:
        """Say that what comes before the graph has no place: where it belongs depends on all sizes."""
        return False

    def takes_again(self) -> bool:
        """Say that what was begun is taken back."""
        return True

    def put(self, blob: Blob) -> None:
        """Append a blob to the volume that it belongs in, or its parts to theirs.

        Raises:
            UnsupportedError: it comes before the graph.
        """
        if self._graph is None:
            msg = "the archive's index comes after its layers, so it is not known yet which volumes they belong in"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        digest = blob.descriptor.digest
        pieces = self._plan.places[digest] if self._plan else ()
        if len(pieces) > 1:
            self._put_parts(blob, pieces)
        else:
            self._volume(pieces[0].volume if pieces else 0).tar.add_blob(blob_name(digest), blob)
        self._written.add(digest)

    def commit(self, graph: Graph) -> None:  # noqa: ARG002 - it is the one that was begun with
        """Write the ends of all volumes, then name them."""
        volumes = [self._volume(number) for number in range(self._total)]
        for volume in volumes:
            volume.tar.end()
            volume.output.settle()
        for volume in volumes:
            volume.output.finish()
        self._tell_strangers()

    def discard(self) -> None:
        """Keep nothing of them for another run."""
        for volume in self._volumes.values():
            volume.tar.discard()

    def close(self) -> None:
        """Drop what was not committed; what the files have of it is kept for another run."""
        with contextlib.ExitStack() as stack:
            for volume in self._volumes.values():
                stack.callback(volume.tar.close)

    @property
    def _total(self) -> int:
        return self._plan.total if self._plan else 1

    def _volume(self, number: int) -> _Open:
        """Give a volume; if it is new, with everything small in it."""
        if number not in self._volumes:
            assert self._graph is not None, "it was begun"  # noqa: S101 - put and commit see to it
            output = file_output(self._folder / self._template.name(number))
            writer = TarWriter(output, self._mtime)
            self._volumes[number] = _Open(writer, output)
            writer.add_small("oci-layout", OCI_LAYOUT)
            for name, content in self._small_files(number, self._graph):
                writer.add_small(name, content)
            for digest, manifest in {m.descriptor.digest: m for m in self._graph.manifests}.items():
                writer.add_small(blob_name(digest), manifest.raw)
        return self._volumes[number]

    def _small_files(self, number: int, graph: Graph) -> Iterable[tuple[str, bytes]]:
        if self._plan is None:
            return small_files(graph, entries_of(graph))
        # No manifest.json: Docker could load nothing that lacks a layer.
        return [("index.json", index_json(entries_of(graph), notes=self._plan.notes(number, graph)))]

    def _put_parts(self, blob: Blob, pieces: Sequence[Piece]) -> None:
        """Write a blob in parts, each with what says its digest; what is there of them is not fetched again."""
        if blob.open_at is None and blob.descriptor.size >= limits.WORTH_KEEPING:
            # Another run would have to read all of it again.
            self.discard()
        volumes = [self._volume(piece.volume) for piece in pieces]
        names = [part_name(blob.descriptor.digest, piece.offset) for piece in pieces]
        hashes: list[Hasher] = [hashlib.sha256() for _ in pieces]
        with contextlib.ExitStack() as stack:
            for volume, name, piece in zip(volumes, names, pieces, strict=True):
                stack.enter_context(volume.tar.taken_back_on_failure())
                volume.output.write(tar.header(name, piece.size, self._mtime))
            chunks, position = _rest_of(blob, pieces, volumes, hashes)
            number = 0
            for chunk in chunks:
                left = memoryview(chunk)
                while left:
                    while position >= pieces[number].offset + pieces[number].size:
                        number += 1
                    some = left[: pieces[number].offset + pieces[number].size - position]
                    hashes[number].update(some)
                    volumes[number].output.write(some)
                    left, position = left[len(some) :], position + len(some)
            for volume, name, piece, told in zip(volumes, names, pieces, hashes, strict=True):
                volume.output.write(tar.padding(piece.size))
                volume.tar.add_small(checksum_name(name), checksum_line(name, told.hexdigest()))

    def _tell_strangers(self) -> None:
        """Say which volumes of an earlier and longer set have names that look as if they belonged to this one."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            numbers = (self._template.number(entry.name) for entry in entries)
            others = sorted(number for number in numbers if number is not None and number >= self._total)
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                name = printable(str(self._folder / self._template.name(others[0])), 1024)
                notices.notice(f"{name}{more} was there before, and is none of the volumes written now ({self._total})")


def _rest_of(
    blob: Blob, pieces: Sequence[Piece], volumes: Sequence[_Open], hashes: Sequence[Hasher]
) -> tuple[Iterator[Chunk], int]:
    """Pass over what is there of a blob's parts, and give the chunks of the rest, and where that begins.

    What is there is hashed when the first of these chunks is asked for.
    """
    held: list[Iterator[Chunk]] = []
    position = 0
    for piece, volume, told in zip(pieces, volumes, hashes, strict=True):
        there = min(volume.output.there(), piece.size) if isinstance(volume.output, Begun) else 0
        if blob.resume is None or not there or not isinstance(volume.output, Begun):
            break
        held.append(_hashed(volume.output.held(there) or iter(()), told))
        volume.output.pass_over(there)
        position += there
        if there < piece.size:
            break
    if blob.resume is None or not position:
        return blob.open(), 0
    return blob.resume(itertools.chain.from_iterable(held), position), position


def _hashed(chunks: Iterable[Chunk], told: Hasher) -> Iterator[Chunk]:
    for chunk in chunks:
        told.update(chunk)
        yield chunk
