"""Destination for an OCI archive split into volumes: plan from sizes which volume gets each blob, then write.

The same images and volume size give the same plan, and a size that is too small fails before the first byte. All
volumes get their names at the end, in order.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import tarfile
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits, notices
from ocistream.archive.destination import TarDestination, build_small_files
from ocistream.archive.outputs import FileOutput, open_file_output
from ocistream.archive.tar_writer import END_OF_ARCHIVE, TarWriter, build_header, padding
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
from ocistream.transfer.interfaces import Access, Traits
from ocistream.transfer.verified_blobs import require_complete

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.oci.graph import Graph
    from ocistream.streams.chunks import Chunk, Hasher
    from ocistream.transfer.interfaces import VerifiedBlob

#: A blob that needs several volumes starts in the rest of a volume only if that is at least this fraction of it.
#: Starting each large blob in a new volume would waste up to a volume; a smaller part is not worth its entries.
_MIN_PART_FRACTION: Final = 16
#: Sizes from here on do not fit into the octal digits of a tar header.
_MIN_SIZE_OF_LONG_HEADER: Final = 8**11
_PLACEHOLDER_SHA256: Final = "sha256:" + "0" * 64


class VolumePlan(NamedTuple):
    """The number of volumes, and the parts of each blob: one part for a blob stored whole, several for a split blob."""

    template: VolumeTemplate
    total: int
    identity: str
    parts: Mapping[str, Sequence[VolumePart]]

    def describe_volume(self, number: int) -> Volume:
        """Return the description of one volume."""
        continued = {digest: tuple(pieces) for digest, pieces in self.parts.items() if len(pieces) > 1}
        return Volume(number, self.total, self.identity, self.template, continued)

    def build_annotations(self, number: int, graph: Graph) -> dict[str, str]:
        """Return the annotations of a volume's index: its description, and the blobs that it omits."""
        omitted = {
            digest: OmissionReason(VOLUME, self.template.format_name(other_volumes[0]))
            for digest, pieces in self.parts.items()
            if (other_volumes := [piece.volume for piece in pieces if piece.volume != number])
        }
        text = format_omitted({**omitted, **graph.omitted_from_output})
        return {**({OMITTED_ANNOTATION: text} if text else {}), **volume_annotations(self.describe_volume(number))}


def plan_volumes(graph: Graph, template: VolumeTemplate, size: int) -> VolumePlan | None:
    """Decide which volume gets which blob. Return None if the archive fits into one volume.

    Blobs keep their order, and each goes into the first volume with enough space from there on. A better packing would
    mix the layers of many images, and save only a part of a volume.
    """
    packer = _VolumePacker(graph, template)
    if packer.unsplit_size <= size:
        return None
    parts = packer.pack(size)
    if parts is None:
        minimum = packer.find_minimum_size(size)
        msg = f"volumes of {size} bytes are too small: use at least {minimum} bytes"
        raise UsageError(msg, hint=f"at most {limits.MAX_VOLUMES} volumes are written, and each has all manifests")
    total = _count_volumes(parts)
    return VolumePlan(template, total, _compute_identity(graph, template, parts), parts)


def _count_volumes(parts: Mapping[str, Sequence[VolumePart]]) -> int:
    return max((pieces[-1].volume for pieces in parts.values()), default=0) + 1


def _compute_identity(graph: Graph, template: VolumeTemplate, parts: Mapping[str, Sequence[VolumePart]]) -> str:
    """Return a digest of what all volumes of a set share: images, cuts, names, and omitted blobs.

    It prevents mistakes, not attacks: a blob from a forged volume fails its own digest check.
    """
    hasher = hashlib.sha256(f"{template}\n".encode())
    for entry in build_entries(graph):
        hasher.update(canonical_json(entry.to_json()) + b"\n")
    hasher.update(format_omitted(graph.omitted_from_output).encode() + b"\n")
    for digest, pieces in parts.items():
        hasher.update(f"{digest} {[tuple(piece) for piece in pieces]}\n".encode())
    return f"sha256:{hasher.hexdigest()}"


class _VolumePacker:
    """Computes the tar sizes of a graph's blobs, and packs them into volumes."""

    def __init__(self, graph: Graph, template: VolumeTemplate) -> None:
        self._graph = graph
        self._template = template
        self._entries = build_entries(graph)
        manifests = {manifest.descriptor.digest: manifest.descriptor.size for manifest in graph.manifests}
        self._blobs = [
            b for b in graph.blobs if b.digest not in manifests and b.digest not in graph.omitted_from_output
        ]
        self._sizes = [_entry_size(blob_name(blob.digest), blob.size) for blob in self._blobs]
        #: The size of what every volume has, without its index.
        self._fixed_size = _entry_size("oci-layout", len(OCI_LAYOUT)) + len(END_OF_ARCHIVE)
        self._fixed_size += sum(_entry_size(blob_name(digest), size) for digest, size in manifests.items())

        small = sum(_entry_size(name, len(content)) for name, content in build_small_files(graph, self._entries))
        #: The size of the archive without splitting.
        self.unsplit_size = self._fixed_size + small + sum(self._sizes)

    def pack(self, size: int) -> dict[str, list[VolumePart]] | None:
        """Return the parts of each blob, or None if volumes of this size are too small.

        The size of an index depends on the number of volumes, and that number on the size of the index. So space is
        reserved for the largest index of `assumed` volumes, until no more volumes are needed. That wastes some bytes in
        each.
        """
        assumed = 2
        while True:
            parts = self._pack_in_order(size - self._fixed_size - self._largest_index(assumed))
            if parts is None or (count := _count_volumes(parts)) > limits.MAX_VOLUMES:
                return None
            if count <= assumed:
                return parts
            assumed = count

    def find_minimum_size(self, size: int) -> int:
        """Return the smallest size that is large enough. `size` is one that is too small."""
        upper = self.unsplit_size
        while upper - size > 1:
            middle = (size + upper) // 2
            if self.pack(middle) is None:
                size = middle
            else:
                upper = middle
        return upper

    def _largest_index(self, count: int) -> int:
        """Return the largest tar size of the index of one of `count` volumes."""
        # Assume that this volume has no blob, all others have some, and as many blobs as possible are split.
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
            msg = f"the index of a volume would have {size} bytes; the limit is {limits.MAX_MANIFEST}"
            raise UnsupportedError(msg, hint="write fewer images at once")
        return _entry_size("index.json", size)

    def _pack_in_order(self, capacity: int) -> dict[str, list[VolumePart]] | None:
        """Pack the blobs in order into volumes that have `capacity` bytes for them."""
        parts: dict[str, list[VolumePart]] = {}
        volume, free = 0, capacity
        if free < 0:
            return None
        for blob, size in zip(self._blobs, self._sizes, strict=True):
            if size > free and (size <= capacity or free * _MIN_PART_FRACTION < capacity):
                volume, free = volume + 1, capacity
            if size <= free:
                parts[blob.digest] = [VolumePart(volume, 0, blob.size)]
                free -= size
                continue
            pieces = parts[blob.digest] = []
            offset = 0
            while offset < blob.size:
                if volume >= limits.MAX_VOLUMES:
                    return None
                part_size = (free - _part_overhead(blob.digest, offset, free)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
                part_size = min(part_size, blob.size - offset)
                if part_size > 0:
                    pieces.append(VolumePart(volume, offset, part_size))
                    offset += part_size
                    free -= (
                        _part_overhead(blob.digest, offset - part_size, part_size)
                        + part_size
                        + -part_size % tarfile.BLOCKSIZE
                    )
                elif free == capacity:
                    return None
                if offset < blob.size:
                    volume, free = volume + 1, capacity
        return parts


def _entry_size(name: str, size: int) -> int:
    return _header_size(name, size) + size + -size % tarfile.BLOCKSIZE


def _part_overhead(digest: str, offset: int, size: int) -> int:
    """Return the tar bytes of a part of at most `size` bytes beyond its content: its header and its checksum entry."""
    name = part_name(digest, offset)
    return _header_size(name, max(0, size)) + _entry_size(
        checksum_name(name), len(checksum_line(name, _PLACEHOLDER_SHA256))
    )


def _header_size(name: str, size: int) -> int:
    """Return the size of an entry's header. The search for the minimum size asks hundreds of thousands of times.

    All names here are ASCII, so only their length matters, and whether the size needs a header of its own.
    """
    return _cached_header_size(len(name), size if size >= _MIN_SIZE_OF_LONG_HEADER else 0)


@functools.lru_cache(1024)
def _cached_header_size(length: int, size: int) -> int:
    return len(build_header("x" * length, size))


class _OpenVolume(NamedTuple):
    """A volume that is being written."""

    tar: TarWriter
    output: FileOutput


def _early_refusal() -> UnsupportedError:
    """Return the error for a blob that comes before the sizes of all blobs are known."""
    msg = "this archive lists its images only at its end, so --split cannot read it from a pipe or a compressed file"
    return UnsupportedError(msg, hint="decompress it, or save it to a file first")


class VolumeSetDestination(TarDestination):
    """Writes images into as many tars as needed, none larger than a given size.

    All volumes are open until the end, each with its own partial file. So blobs may come in any order, as from a pipe,
    and each volume can be resumed. That needs one file descriptor a volume, hence `limits.MAX_VOLUMES`.
    """

    #: The volume of a blob depends on the sizes of all blobs, so none can be written early.
    traits = Traits(early_refusal=_early_refusal, can_omit=True)

    def __init__(self, path: Path, size: int, *, mtime: int = 0) -> None:
        """Write files of at most `size` bytes. Their names are `path` with a number in place of its `%d`.

        `mtime` is the time of every entry, in seconds since 1970. No file is opened yet.

        Raises:
            UsageError: the path has no `%d`, or another conversion.
        """
        super().__init__()
        self._directory = path.parent
        self._template = parse_template(path.name)
        self._size = size
        self._mtime = mtime
        self._graph: Graph | None = None
        #: None if everything fits into one volume, which is an ordinary archive.
        self._plan: VolumePlan | None = None
        self._volumes: dict[int, _OpenVolume] = {}

    def begin(self, graph: Graph) -> None:
        """Plan the volumes, and open the first one.

        Raises:
            UsageError: volumes of this size are too small, or one of their names is taken by something that is not a
                file.
            NotFoundError: the directory does not exist.
        """
        self._graph = graph
        self._plan = plan_volumes(graph, self._template, self._size)
        self._written.update(manifest.descriptor.digest for manifest in graph.manifests)
        for number in range(self._total):
            path = self._directory / self._template.format_name(number)
            if paths.exists(path) and not paths.is_file(path):
                msg = f"{path} is not a file, but a volume needs this name"
                raise UsageError(msg)
        self._open_volume(0)

    def write(self, blob: VerifiedBlob) -> int:
        """Append a blob to its volume, or its parts to their volumes."""
        require_complete(blob)
        digest = blob.descriptor.digest
        pieces = self._plan.parts[digest] if self._plan else ()
        if len(pieces) > 1:
            self._write_parts(blob, pieces)
        else:
            self._open_volume(pieces[0].volume if pieces else 0).tar.add_blob(blob_name(digest), blob)
        self._written.add(digest)
        return 0

    def commit(self, graph: Graph) -> None:  # noqa: ARG002 - `begin` got the same graph
        """Finish all volumes, then name them.

        All are synced before the first gets its name, and the last volume is named last.
        """
        volumes = [self._open_volume(number) for number in range(self._total)]
        for volume in volumes:
            volume.tar.write_end()
            volume.output.sync()
        for volume in volumes:
            volume.output.finish()
        self._report_unrelated_volumes()

    @property
    def _total(self) -> int:
        return self._plan.total if self._plan else 1

    def _open_volume(self, number: int) -> _OpenVolume:
        """Return a volume. A new volume gets all small files first."""
        if number not in self._volumes:
            assert self._graph is not None, "it was begun"  # noqa: S101 - it refuses early blobs
            output = open_file_output(self._directory / self._template.format_name(number))
            self._outputs.append(output)
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
        # No manifest.json: Docker cannot load an archive that lacks layers.
        return [
            (
                "index.json",
                build_index_json(build_entries(graph), annotations=self._plan.build_annotations(number, graph)),
            )
        ]

    def _write_parts(self, blob: VerifiedBlob, pieces: Sequence[VolumePart]) -> None:
        """Write a blob in parts, each followed by its checksum. Existing bytes are not fetched again."""
        if blob.access is Access.ONCE:
            self.discard()
        volumes = [self._open_volume(piece.volume) for piece in pieces]
        names = [part_name(blob.descriptor.digest, piece.offset) for piece in pieces]
        hashes: list[Hasher] = [hashlib.sha256() for _ in pieces]
        with contextlib.ExitStack() as stack:
            for volume, name, piece in zip(volumes, names, pieces, strict=True):
                stack.enter_context(volume.tar.roll_back_on_failure())
                volume.output.write(build_header(name, piece.size, self._mtime))
            chunks, position = _remaining_chunks(blob, pieces, volumes, hashes)
            number = 0
            for chunk in chunks:
                remaining = memoryview(chunk)
                while remaining:
                    while position >= pieces[number].offset + pieces[number].size:
                        number += 1
                    piece_bytes = remaining[: pieces[number].offset + pieces[number].size - position]
                    hashes[number].update(piece_bytes)
                    volumes[number].output.write(piece_bytes)
                    remaining, position = remaining[len(piece_bytes) :], position + len(piece_bytes)
            for volume, name, piece, hasher in zip(volumes, names, pieces, hashes, strict=True):
                volume.output.write(padding(piece.size))
                volume.tar.add_small(checksum_name(name), checksum_line(name, hasher.hexdigest()))

    def _report_unrelated_volumes(self) -> None:
        """Report volumes of an earlier, longer set, whose names look like volumes of this one.

        They are not removed, because this run did not write them. A push refuses them as volumes of another set.
        """
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            numbers = (self._template.parse_number(entry.name) for entry in entries)
            unrelated = sorted(number for number in numbers if number is not None and number >= self._total)
            if unrelated:
                more = f" and {len(unrelated) - 1} more" if len(unrelated) > 1 else ""
                name = printable(str(self._directory / self._template.format_name(unrelated[0])), 1024)
                them = "them" if more else "it"
                notices.notify(
                    f"{name}{more} existed before and is not one of the new volumes ({self._total}): delete {them}"
                )


def _remaining_chunks(
    blob: VerifiedBlob, pieces: Sequence[VolumePart], volumes: Sequence[_OpenVolume], hashes: Sequence[Hasher]
) -> tuple[Iterator[Chunk], int]:
    """Skip the existing bytes of a blob's parts. Return the chunks of the rest, and the offset where they start.

    Existing bytes are hashed when the first of these chunks is requested.
    """
    existing: list[Iterator[Chunk]] = []
    position = 0
    for piece, volume, hasher in zip(pieces, volumes, hashes, strict=True):
        existing_size = min(volume.output.existing_size(), piece.size)
        if not blob.can_resume or not existing_size:
            break
        existing.append(_hash_chunks(volume.output.skip_existing(existing_size), hasher))
        position += existing_size
        if existing_size < piece.size:
            break
    if not position:
        return blob.open(), 0
    return blob.open(position, itertools.chain.from_iterable(existing)), position


def _hash_chunks(chunks: Iterable[Chunk], hasher: Hasher) -> Iterator[Chunk]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
