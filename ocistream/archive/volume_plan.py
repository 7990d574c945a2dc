"""Which blob goes into which volume of an archive: all of it is decided before the first byte, from sizes alone.

The blobs come in their order. One that does not fit into what is left of a volume begins the next; one that is larger
than a volume begins where there is room, and goes on in the next. The same images and the same size give the same plan.
Sizes are in bytes.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits
from ocistream.archive import tar
from ocistream.archive.writer import build_small_files
from ocistream.errors import UnsupportedError, UsageError
from ocistream.layout.index import OCI_LAYOUT, blob_name, build_entries, build_index_json
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, VOLUME, OmissionReason, format_omitted
from ocistream.oci.strict_json import canonical_json
from ocistream.oci.volumes import (
    Volume,
    VolumePart,
    VolumeTemplate,
    checksum_line,
    checksum_name,
    part_name,
    volume_annotations,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocistream.oci.graph import Graph

__all__ = ["VolumePlan", "plan_volumes"]

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
