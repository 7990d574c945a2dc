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
from ocistream.archive.writer import small_files
from ocistream.errors import UnsupportedError, UsageError
from ocistream.layout.index import OCI_LAYOUT, blob_name, entries_of, index_json
from ocistream.oci.omitted_blobs import LEFT_OUT, VOLUME, Reason, left_out_text
from ocistream.oci.strict_json import canonical_json
from ocistream.oci.volumes import (
    Piece,
    Template,
    Volume,
    checksum_line,
    checksum_name,
    notes_of,
    part_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ocistream.oci.graph import Graph

__all__ = ["Plan", "planned"]

#: A blob that is to be continued does not begin in less than this part of a volume: another entry for next to nothing.
_WORTH_BEGINNING: Final = 16
#: What a tar's header has no more room for, in octal digits.
_LARGE: Final = 8**11
_SOME_SHA256: Final = "sha256:" + "0" * 64


class Plan(NamedTuple):
    """How many volumes there are, and where each blob lies: in one piece under its name, or in several as parts."""

    template: Template
    total: int
    identity: str
    places: Mapping[str, Sequence[Piece]]

    def volume(self, number: int) -> Volume:
        """Describe one of them."""
        continued = {digest: tuple(pieces) for digest, pieces in self.places.items() if len(pieces) > 1}
        return Volume(number, self.total, self.identity, self.template, continued)

    def notes(self, number: int, graph: Graph) -> dict[str, str]:
        """Give the annotations of a volume's index: what it is, and which blobs it is without."""
        left_out = {
            digest: Reason(VOLUME, self.template.name(elsewhere[0]))
            for digest, pieces in self.places.items()
            if (elsewhere := [piece.volume for piece in pieces if piece.volume != number])
        }
        text = left_out_text({**left_out, **graph.leaving})
        return {**({LEFT_OUT: text} if text else {}), **notes_of(self.volume(number))}


def planned(graph: Graph, template: Template, size: int) -> Plan | None:
    """Decide where the blobs of a graph go; None where its archive fits into one volume as it is.

    Raises:
        UsageError: volumes of this size are too small, or there would be too many.
        UnsupportedError: no reader would take an index that says so much.
    """
    packing = _Packing(graph, template)
    if packing.whole <= size:
        return None
    places = packing.packed(size)
    if places is None:
        least = packing.least(size)
        msg = f"volumes of {size} bytes are too small: the least that would do is {least} bytes"
        raise UsageError(msg, hint=f"at most {limits.MAX_VOLUMES} are written, and each has all manifests")
    count = _count(places)
    return Plan(template, count, _identity(graph, template, places), places)


def _count(places: Mapping[str, Sequence[Piece]]) -> int:
    return max((pieces[-1].volume for pieces in places.values()), default=0) + 1


def _identity(graph: Graph, template: Template, places: Mapping[str, Sequence[Piece]]) -> str:
    """Give the digest of all that volumes of one set have in common: the images, the cuts, and the names."""
    told = hashlib.sha256(f"{template}\n".encode())
    for entry in entries_of(graph):
        told.update(canonical_json(entry.to_json()) + b"\n")
    told.update(left_out_text(graph.leaving).encode() + b"\n")
    for digest, pieces in places.items():
        told.update(f"{digest} {[tuple(piece) for piece in pieces]}\n".encode())
    return f"sha256:{told.hexdigest()}"


class _Packing:
    """The sizes of what a graph needs, as entries of a tar."""

    def __init__(self, graph: Graph, template: Template) -> None:
        self._graph = graph
        self._template = template
        self._entries = entries_of(graph)
        manifests = {manifest.descriptor.digest: manifest.descriptor.size for manifest in graph.manifests}
        self._blobs = [b for b in graph.blobs if b.digest not in manifests and b.digest not in graph.leaving]
        self._sizes = [_entry_size(blob_name(blob.digest), blob.size) for blob in self._blobs]
        #: What every volume has, but for its index.
        self._fixed = _entry_size("oci-layout", len(OCI_LAYOUT)) + len(tar.END)
        self._fixed += sum(_entry_size(blob_name(digest), size) for digest, size in manifests.items())

        small = sum(_entry_size(name, len(content)) for name, content in small_files(graph, self._entries))
        #: An archive that is not cut.
        self.whole = self._fixed + small + sum(self._sizes)

    def packed(self, size: int) -> dict[str, list[Piece]] | None:
        """Find a place for each blob; None where volumes of this size do not do.

        How large an index is depends on how many volumes there are, and the other way round: so room is left for that
        of as many as it came to, until it does not come to more.
        """
        assumed = 2
        while True:
            places = self._in_order(size - self._fixed - self._largest_index(assumed))
            if places is None or (count := _count(places)) > limits.MAX_VOLUMES:
                return None
            if count <= assumed:
                return places
            assumed = count

    def least(self, size: int) -> int:
        """Find the least size that does, above one that does not."""
        most = self.whole
        while most - size > 1:
            middle = (size + most) // 2
            if self.packed(middle) is None:
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
        name = self._template.name
        lines = left_out_text(self._graph.leaving).split("\n") + [blob.digest for blob in self._blobs]
        lines += [f"# {VOLUME} {name(number)}" for number in range(count)]
        largest = sorted(self._blobs, key=lambda blob: -blob.size)[:count]
        total = sum(blob.size for blob in largest)
        pieces = {blob.digest: [Piece(count, total, total)] * 2 for blob in largest}
        if largest:
            pieces[largest[0].digest] *= count
        volume = Volume(count, count, _SOME_SHA256, self._template, pieces)
        size = len(index_json(self._entries, notes={LEFT_OUT: "\n".join(lines), **notes_of(volume)}))
        if size > limits.MAX_MANIFEST:
            msg = f"the index of a volume would have {size} bytes, and nobody reads more than {limits.MAX_MANIFEST}"
            raise UnsupportedError(msg, hint="write fewer images at once")
        return _entry_size("index.json", size)

    def _in_order(self, room: int) -> dict[str, list[Piece]] | None:
        """Lay the blobs one behind the other into volumes that have so much room for them."""
        places: dict[str, list[Piece]] = {}
        volume, free = 0, room
        if free < 0:
            return None
        for blob, size in zip(self._blobs, self._sizes, strict=True):
            if size > free and (size <= room or free * _WORTH_BEGINNING < room):
                volume, free = volume + 1, room
            if size <= free:
                places[blob.digest] = [Piece(volume, 0, blob.size)]
                free -= size
                continue
            pieces = places[blob.digest] = []
            offset = 0
            while offset < blob.size:
                if volume >= limits.MAX_VOLUMES:
                    return None
                some = (free - _around_part(blob.digest, offset, free)) // tar.BLOCK * tar.BLOCK
                some = min(some, blob.size - offset)
                if some > 0:
                    pieces.append(Piece(volume, offset, some))
                    offset += some
                    free -= _around_part(blob.digest, offset - some, some) + some + -some % tar.BLOCK
                elif free == room:
                    return None
                if offset < blob.size:
                    volume, free = volume + 1, room
        return places


def _entry_size(name: str, size: int) -> int:
    return _header_size(name, size) + size + -size % tar.BLOCK


def _around_part(digest: str, offset: int, size: int) -> int:
    """Give what a part of at most so many bytes takes beside those: its header, and what says its digest."""
    name = part_name(digest, offset)
    return _header_size(name, max(0, size)) + _entry_size(checksum_name(name), len(checksum_line(name, _SOME_SHA256)))


def _header_size(name: str, size: int) -> int:
    """Give what the header of an entry takes: to find the least size that does, hundreds of thousands are asked for.

    All names are ASCII here, so that only their lengths count, and of sizes those that need a header of their own.
    """
    return _size_of_header(len(name), size if size >= _LARGE else 0)


@functools.lru_cache(1024)
def _size_of_header(length: int, size: int) -> int:
    return len(tar.header("x" * length, size))
