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
from ocistream.archive.outputs import ResumableOutput, RewritableOutput, open_file_output
from ocistream.archive.tar_writer import TarWriter
from ocistream.archive.volume_plan import plan_volumes
from ocistream.archive.writer import build_small_files
from ocistream.errors import UnsupportedError, UsageError
from ocistream.layout.index import OCI_LAYOUT, blob_name, build_entries, build_index_json
from ocistream.oci.reference import printable
from ocistream.oci.volumes import checksum_line, checksum_name, parse_template, part_name
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from ocistream.archive.volume_plan import VolumePlan
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.oci.volumes import VolumePart
    from ocistream.streams.chunks import Chunk, Hasher
    from ocistream.transfer.interfaces import Blob

__all__ = ["VolumeSetDestination"]


class _OpenVolume(NamedTuple):
    """A volume that is being written."""

    tar: TarWriter
    output: RewritableOutput


class VolumeSetDestination:
    """Images into as many tars as it takes, none of them larger than so many bytes."""

    concurrent = False
    can_omit_blobs: Literal[True] = True

    def __init__(self, path: Path, size: int, *, mtime: int = 0) -> None:
        """Write files of at most `size` bytes, whose names are `path` with numbers in the place of its `%d`.

        `mtime` (seconds since 1970) stands in every entry. Nothing is opened yet.

        Raises:
            UsageError: the path has no such place, or another one.
        """
        self._directory = path.parent
        self._template = parse_template(path.name)
        self._size = size
        self._mtime = mtime
        self._graph: Graph | None = None
        #: None where there is one volume only, which is an archive as any other.
        self._plan: VolumePlan | None = None
        self._volumes: dict[int, _OpenVolume] = {}
        self._written: set[str] = set()

    def begin(self, graph: Graph) -> None:
        """Decide what goes where.

        Raises:
            UsageError: volumes of this size are too small, or one of their names is that of something else.
            NotFoundError: their folder is not there.
        """
        self._graph = graph
        self._plan = plan_volumes(graph, self._template, self._size)
        self._written.update(manifest.descriptor.digest for manifest in graph.manifests)
        for number in range(self._total):
            path = self._directory / self._template.format_name(number)
            if paths.exists(path) and not paths.is_file(path):
                msg = f"{path} is no file, and a volume would have this name"
                raise UsageError(msg)
        self._open_volume(0)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Say whether the blob was written: the same digest is not stored twice, but for manifests."""
        return descriptor.digest in self._written

    has_manifest = has_blob

    def can_write_early(self) -> bool:
        """Say that what comes before the graph has no place: where it belongs depends on all sizes."""
        return False

    def can_retry(self) -> bool:
        """Say that what was begun is taken back."""
        return True

    def write(self, blob: Blob) -> None:
        """Append a blob to the volume that it belongs in, or its parts to theirs.

        Raises:
            UnsupportedError: it comes before the graph.
        """
        if self._graph is None:
            msg = "the archive's index comes after its layers, so it is not known yet which volumes they belong in"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        digest = blob.descriptor.digest
        pieces = self._plan.parts[digest] if self._plan else ()
        if len(pieces) > 1:
            self._write_parts(blob, pieces)
        else:
            self._open_volume(pieces[0].volume if pieces else 0).tar.add_blob(blob_name(digest), blob)
        self._written.add(digest)

    def commit(self, graph: Graph) -> None:  # noqa: ARG002 - it is the one that was begun with
        """Write the ends of all volumes, then name them."""
        volumes = [self._open_volume(number) for number in range(self._total)]
        for volume in volumes:
            volume.tar.write_end()
            volume.output.sync()
        for volume in volumes:
            volume.output.finish()
        self._report_unrelated_volumes()

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

    def _open_volume(self, number: int) -> _OpenVolume:
        """Give a volume; if it is new, with everything small in it."""
        if number not in self._volumes:
            assert self._graph is not None, "it was begun"  # noqa: S101 - put and commit see to it
            output = open_file_output(self._directory / self._template.format_name(number))
            writer = TarWriter(output, self._mtime)
            self._volumes[number] = _OpenVolume(writer, output)
            writer.add_small("oci-layout", OCI_LAYOUT)
            for name, content in self._build_small_files(number, self._graph):
                writer.add_small(name, content)
            for digest, manifest in {m.descriptor.digest: m for m in self._graph.manifests}.items():
                writer.add_small(blob_name(digest), manifest.raw)
        return self._volumes[number]

    def _build_small_files(self, number: int, graph: Graph) -> Iterable[tuple[str, bytes]]:
        if self._plan is None:
            return build_small_files(graph, build_entries(graph))
        # No manifest.json: Docker could load nothing that lacks a layer.
        return [
            (
                "index.json",
                build_index_json(build_entries(graph), annotations=self._plan.build_annotations(number, graph)),
            )
        ]

    def _write_parts(self, blob: Blob, pieces: Sequence[VolumePart]) -> None:
        """Write a blob in parts, each with what says its digest; what is there of them is not fetched again."""
        if blob.open_at is None and blob.descriptor.size >= limits.MIN_PARTIAL_SIZE:
            # Another run would have to read all of it again.
            self.discard()
        volumes = [self._open_volume(piece.volume) for piece in pieces]
        names = [part_name(blob.descriptor.digest, piece.offset) for piece in pieces]
        hashes: list[Hasher] = [hashlib.sha256() for _ in pieces]
        with contextlib.ExitStack() as stack:
            for volume, name, piece in zip(volumes, names, pieces, strict=True):
                stack.enter_context(volume.tar.roll_back_on_failure())
                volume.output.write(tar.build_header(name, piece.size, self._mtime))
            chunks, position = _remaining_chunks(blob, pieces, volumes, hashes)
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

    def _report_unrelated_volumes(self) -> None:
        """Say which volumes of an earlier and longer set have names that look as if they belonged to this one."""
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            numbers = (self._template.parse_number(entry.name) for entry in entries)
            others = sorted(number for number in numbers if number is not None and number >= self._total)
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                name = printable(str(self._directory / self._template.format_name(others[0])), 1024)
                notices.notify(f"{name}{more} was there before, and is none of the volumes written now ({self._total})")


def _remaining_chunks(
    blob: Blob, pieces: Sequence[VolumePart], volumes: Sequence[_OpenVolume], hashes: Sequence[Hasher]
) -> tuple[Iterator[Chunk], int]:
    """Pass over what is there of a blob's parts, and give the chunks of the rest, and where that begins.

    What is there is hashed when the first of these chunks is asked for.
    """
    held: list[Iterator[Chunk]] = []
    position = 0
    for piece, volume, told in zip(pieces, volumes, hashes, strict=True):
        there = min(volume.output.existing_size(), piece.size) if isinstance(volume.output, ResumableOutput) else 0
        if blob.resume is None or not there or not isinstance(volume.output, ResumableOutput):
            break
        held.append(_hash_chunks(volume.output.read_existing(there) or iter(()), told))
        volume.output.skip_existing(there)
        position += there
        if there < piece.size:
            break
    if blob.resume is None or not position:
        return blob.open(), 0
    return blob.resume(itertools.chain.from_iterable(held), position), position


def _hash_chunks(chunks: Iterable[Chunk], hasher: Hasher) -> Iterator[Chunk]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
