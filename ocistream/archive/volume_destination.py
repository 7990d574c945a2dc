"""Destination for an OCI archive split into volumes: plan from sizes which volume gets each blob, then write.

The same images and volume size give the same plan. All volumes get their names at the end, in order.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from ocistream import limits, notices
from ocistream.archive import tar
from ocistream.archive.destination import build_small_files
from ocistream.archive.outputs import ResumableOutput, RewritableOutput, open_file_output
from ocistream.archive.tar_writer import TarWriter
from ocistream.errors import UnsupportedError, UsageError
from ocistream.layout.index import OCI_LAYOUT, blob_name, build_entries, build_index_json
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, VOLUME, OmissionReason, format_omitted
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import canonical_json
from ocistream.oci.volumes import (
    Volume,
    VolumePart,
    VolumeTemplate,
    checksum_line,
    checksum_name,
    parse_template,
    part_name,
    volume_annotations,
)
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk, Hasher
    from ocistream.transfer.interfaces import Blob

__all__ = [
    "VolumePlan",
    "VolumeSetDestination",
    "plan_volumes",
]

#: A blob that is to be continued does not begin in less than this part of a volume: another entry for next to nothing.
_MIN_PART_FRACTION: Final = 16
#: What a tar's header has no more room for, in octal digits.
_MIN_SIZE_OF_LONG_HEADER: Final = 8**11
_PLACEHOLDER_SHA256: Final = "sha256:" + "0" * 64


class VolumePlan(NamedTuple):
    """How many volumes there are, and where each blob lies: in one piece under its name, or in several as parts."""

    template: VolumeTemplate
    total: int
    identity: str
    parts: Mapping[str, Sequence[VolumePart]]

    def describe_volume(self, number: int) -> Volume:
        """Describe one of them."""
        continued = {digest: tuple(pieces) for digest, pieces in self.parts.items() if len(pieces) > 1}
        return Volume(number, self.total, self.identity, self.template, continued)

    def build_annotations(self, number: int, graph: Graph) -> dict[str, str]:
        """Give the annotations of a volume's index: what it is, and which blobs it is without."""
        left_out = {
            digest: OmissionReason(VOLUME, self.template.format_name(elsewhere[0]))
            for digest, pieces in self.parts.items()
            if (elsewhere := [piece.volume for piece in pieces if piece.volume != number])
        }
        text = format_omitted({**left_out, **graph.omitted_from_output})
        return {**({OMITTED_ANNOTATION: text} if text else {}), **volume_annotations(self.describe_volume(number))}


def plan_volumes(graph: Graph, template: VolumeTemplate, size: int) -> VolumePlan | None:
    """Decide where the blobs of a graph go; None where its archive fits into one volume as it is.

    Raises:
        UsageError: volumes of this size are too small, or there would be too many.
        UnsupportedError: no reader would take an index that says so much.
    """
    packing = _VolumePacker(graph, template)
    if packing.unsplit_size <= size:
        return None
    places = packing.pack(size)
    if places is None:
        least = packing.find_minimum_size(size)
        msg = f"volumes of {size} bytes are too small: the least that would do is {least} bytes"
        raise UsageError(msg, hint=f"at most {limits.MAX_VOLUMES} are written, and each has all manifests")
    count = _count_volumes(places)
    return VolumePlan(template, count, _compute_identity(graph, template, places), places)


def _count_volumes(parts: Mapping[str, Sequence[VolumePart]]) -> int:
    return max((pieces[-1].volume for pieces in parts.values()), default=0) + 1


def _compute_identity(graph: Graph, template: VolumeTemplate, parts: Mapping[str, Sequence[VolumePart]]) -> str:
    """Give the digest of all that volumes of one set have in common: the images, the cuts, and the names."""
    told = hashlib.sha256(f"{template}\n".encode())
    for entry in build_entries(graph):
        told.update(canonical_json(entry.to_json()) + b"\n")
    told.update(format_omitted(graph.omitted_from_output).encode() + b"\n")
    for digest, pieces in parts.items():
        told.update(f"{digest} {[tuple(piece) for piece in pieces]}\n".encode())
    return f"sha256:{told.hexdigest()}"


class _VolumePacker:
    """The sizes of what a graph needs, as entries of a tar."""

    def __init__(self, graph: Graph, template: VolumeTemplate) -> None:
        self._graph = graph
        self._template = template
        self._entries = build_entries(graph)
        manifests = {manifest.descriptor.digest: manifest.descriptor.size for manifest in graph.manifests}
        self._blobs = [
            b for b in graph.blobs if b.digest not in manifests and b.digest not in graph.omitted_from_output
        ]
        self._sizes = [_entry_size(blob_name(blob.digest), blob.size) for blob in self._blobs]
        #: What every volume has, but for its index.
        self._fixed_size = _entry_size("oci-layout", len(OCI_LAYOUT)) + len(tar.END_OF_ARCHIVE)
        self._fixed_size += sum(_entry_size(blob_name(digest), size) for digest, size in manifests.items())

        small = sum(_entry_size(name, len(content)) for name, content in build_small_files(graph, self._entries))
        #: An archive that is not cut.
        self.unsplit_size = self._fixed_size + small + sum(self._sizes)

    def pack(self, size: int) -> dict[str, list[VolumePart]] | None:
        """Find a place for each blob; None where volumes of this size do not do.

        How large an index is depends on how many volumes there are, and the other way round: so room is left for that
        of as many as it came to, until it does not come to more.
        """
        assumed = 2
        while True:
            places = self._pack_in_order(size - self._fixed_size - self._largest_index(assumed))
            if places is None or (count := _count_volumes(places)) > limits.MAX_VOLUMES:
                return None
            if count <= assumed:
                return places
            assumed = count

    def find_minimum_size(self, size: int) -> int:
        """Find the least size that does, above one that does not."""
        most = self.unsplit_size
        while most - size > 1:
            middle = (size + most) // 2
            if self.pack(middle) is None:
                size = middle
            else:
                most = middle
        return most

    def _largest_index(self, count: int) -> int:
        """Give the most that the index of one of so many volumes takes, as an entry of a tar.

        Raises:
            UnsupportedError: it is more than anybody would read.
        """
        # As if no blob were in it, each of the others had some, and all that can be continued were.
        name = self._template.format_name
        lines = format_omitted(self._graph.omitted_from_output).split("\n") + [blob.digest for blob in self._blobs]
        lines += [f"# {VOLUME} {name(number)}" for number in range(count)]
        largest = sorted(self._blobs, key=lambda blob: -blob.size)[:count]
        total = sum(blob.size for blob in largest)
        pieces = {blob.digest: [VolumePart(count, total, total)] * 2 for blob in largest}
        if largest:
            pieces[largest[0].digest] *= count
        volume = Volume(count, count, _PLACEHOLDER_SHA256, self._template, pieces)
        size = len(
            build_index_json(
                self._entries, annotations={OMITTED_ANNOTATION: "\n".join(lines), **volume_annotations(volume)}
            )
        )
        if size > limits.MAX_MANIFEST:
            msg = f"the index of a volume would have {size} bytes, and nobody reads more than {limits.MAX_MANIFEST}"
            raise UnsupportedError(msg, hint="write fewer images at once")
        return _entry_size("index.json", size)

    def _pack_in_order(self, capacity: int) -> dict[str, list[VolumePart]] | None:
        """Lay the blobs one behind the other into volumes that have so much room for them."""
        places: dict[str, list[VolumePart]] = {}
        volume, free = 0, capacity
        if free < 0:
            return None
        for blob, size in zip(self._blobs, self._sizes, strict=True):
            if size > free and (size <= capacity or free * _MIN_PART_FRACTION < capacity):
                volume, free = volume + 1, capacity
            if size <= free:
                places[blob.digest] = [VolumePart(volume, 0, blob.size)]
                free -= size
                continue
            pieces = places[blob.digest] = []
            offset = 0
            while offset < blob.size:
                if volume >= limits.MAX_VOLUMES:
                    return None
                some = (free - _part_overhead(blob.digest, offset, free)) // tar.BLOCK_SIZE * tar.BLOCK_SIZE
                some = min(some, blob.size - offset)
                if some > 0:
                    pieces.append(VolumePart(volume, offset, some))
                    offset += some
                    free -= _part_overhead(blob.digest, offset - some, some) + some + -some % tar.BLOCK_SIZE
                elif free == capacity:
                    return None
                if offset < blob.size:
                    volume, free = volume + 1, capacity
        return places


def _entry_size(name: str, size: int) -> int:
    return _header_size(name, size) + size + -size % tar.BLOCK_SIZE


def _part_overhead(digest: str, offset: int, size: int) -> int:
    """Give what a part of at most so many bytes takes beside those: its header, and what says its digest."""
    name = part_name(digest, offset)
    return _header_size(name, max(0, size)) + _entry_size(
        checksum_name(name), len(checksum_line(name, _PLACEHOLDER_SHA256))
    )


def _header_size(name: str, size: int) -> int:
    """Give what the header of an entry takes: to find the least size that does, hundreds of thousands are asked for.

    All names are ASCII here, so that only their lengths count, and of sizes those that need a header of their own.
    """
    return _cached_header_size(len(name), size if size >= _MIN_SIZE_OF_LONG_HEADER else 0)


@functools.lru_cache(1024)
def _cached_header_size(length: int, size: int) -> int:
    return len(tar.build_header("x" * length, size))


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
