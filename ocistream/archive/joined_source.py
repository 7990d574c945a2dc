"""Source that reads several archives and layouts of the same images as one: volumes, or archives sent separately.

Each blob comes from the first input that has it, or is assembled from its parts in several volumes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.archive.file_source import ArchiveFileSource
from ocistream.errors import ArchiveError, IntegrityError, UsageError
from ocistream.layout.image_selection import format_image_names, report_duplicate_names
from ocistream.layout.index import LayoutIndex, entry_name_of, image_name_of
from ocistream.layout.index_walk import IndexWalk
from ocistream.layout.source import LayoutSource
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, VOLUME, OmissionReason, parse_omitted
from ocistream.oci.reference import printable
from ocistream.oci.walk import Need, run_walk
from ocistream.streams import files
from ocistream.streams.chunks import verify_chunks
from ocistream.streams.paths import is_directory
from ocistream.transfer.interfaces import RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ocistream.layout.image_selection import Selection
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.volumes import Volume
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Blob, BlobPart, EarlyBlobs

_ONE_SET_HINT: Final = "several inputs are read as one set: run the command once for each"


def open_joined_source(paths: Sequence[tuple[Path, str]], selection: Selection) -> JoinedSource:
    """Open archives in files, and layout directories. Each path comes with its name for errors.

    Raises:
        UsageError: there are too many inputs.
        NotFoundError, ArchiveError, LocalDiskError: an input cannot be read.
    """
    if len(paths) > limits.MAX_INPUTS:
        msg = f"{len(paths)} archives and layouts; at most {limits.MAX_INPUTS} can be combined"
        raise UsageError(msg)
    inputs: list[_Input] = []
    try:
        for path, text in paths:
            with files.disk_errors(f"cannot open {printable(text)}"):
                inputs.append(_Input(text, LayoutSource(path) if is_directory(path) else ArchiveFileSource(path)))
    except BaseException:
        for item in inputs:
            item.source.close()
        raise
    return JoinedSource(inputs, selection)


@dataclass(slots=True, eq=False)
class _Input:
    """One archive or layout. `text` names it in errors; `digests` and `annotations` are those of its index."""

    text: str
    source: ArchiveFileSource | LayoutSource
    digests: frozenset[str] = frozenset()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def volume(self) -> Volume | None:
        """The volume that it is, once its index was read."""
        return self.source.volume if isinstance(self.source, ArchiveFileSource) else None

    def raise_damaged(self, error: IntegrityError, can_retry: bool) -> None:  # noqa: ARG002 - there is no second copy
        """Raise the error about wrong bytes of this input."""
        path = printable(self.text, 1024)
        hint = f"{path} is damaged, or changed during the run: check it with `ocistream verify {path}`"
        raise IntegrityError(error.message, hint=hint)

    def read_index(self) -> LayoutIndex:
        """Return the index.

        Raises:
            UsageError: an archive of this kind cannot be combined with others.
        """
        source = self.source
        if isinstance(source, LayoutSource):
            return source.layout.read_index()
        if source.contents.is_docker_archive:
            msg = f"{printable(self.text)} is a docker-archive, but only OCI archives and layouts can be combined"
            raise UsageError(msg, hint="use a separate command for this archive")
        try:
            index = source.read_complete_index()
        except ArchiveError as error:
            if error.message.startswith(label := f"{printable(self.text, 1024)}: "):
                raise
            raise ArchiveError(f"{label}{error.message}", hint=error.hint) from error
        if source.synthesized_manifests:
            msg = f"{printable(self.text)} has images that only its manifest.json lists"
            raise UsageError(msg, hint="name this archive alone: it cannot be combined with others")
        return index


class JoinedSource:
    """Reads images from several archives and layouts as one source.

    One walk reads the manifests of all inputs. Joining the graphs of the inputs would keep the manifests of each volume
    in memory. All inputs must list the selected images.
    """

    concurrent = True
    may_lack_blobs = True

    def __init__(self, inputs: Sequence[_Input], selection: Selection) -> None:
        """Take open inputs. `close` closes them."""
        self._inputs = inputs
        self._selection = selection
        #: The selected images, as the indexes list them.
        self._chosen: Sequence[Root] = ()
        #: One input for each volume of the set that was given, by the name that the set has for the volume. The file
        #: may have been renamed.
        self._volumes: dict[str, _Input] = {}

    @property
    def inputs(self) -> list[ArchiveFileSource | LayoutSource]:
        """The archives and layouts."""
        return [item.source for item in self._inputs]

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - files and directories can be read in any order
        """Read all indexes, and every manifest below the selected images from the first input that has it.

        Raises:
            ArchiveError: the inputs have different images, or are volumes of different sets.
        """
        entries: list[Descriptor] = []
        entries_by_digest: dict[str, Descriptor] = {}
        for item in self._inputs:
            index = item.read_index()
            item.digests, item.annotations = frozenset(entry.digest for entry in index.entries), index.annotations
            _report_unused_names(item.text, index.entries, entries)
            entries += [entry for entry in index.entries if entry.digest not in entries_by_digest]
            for entry in index.entries:
                entries_by_digest.setdefault(entry.digest, entry)
            if (volume := item.volume) is not None and self._volumes.setdefault(volume.name, item) is not item:
                notices.notify(f"{printable(item.text)} is {volume} again", level=1)
        self._check_one_set(entries_by_digest)
        if len(entries) > limits.MAX_LIST_ENTRIES:
            msg = f"together the archives list more than {limits.MAX_LIST_ENTRIES} images"
            raise ArchiveError(msg)
        names = [printable(item.text, 1024) for item in self._inputs]
        shown = " and ".join(names if len(names) <= 2 else [names[0], f"{len(names) - 1} more"])
        selection = replace(self._selection, select=self._select, where=f"the combination of {shown}")
        walk = IndexWalk(LayoutIndex(entries, {}), selection)
        graph = run_walk(walk.run(), self._read)
        report_duplicate_names(graph)
        self._check_same_images()
        is_saved = any(isinstance(source, ArchiveFileSource) and source.is_docker_save for source in self.inputs)
        return replace(graph, has_plain_layers=is_saved, omitted_from_source=self._find_omitted(graph))

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs that exist, in the order of `wanted`.

        Raises:
            IntegrityError: a digest occurs twice in an archive, with other bytes the second time.
        """
        yielded: dict[_Input, set[str]] = {item: set() for item in self._inputs}
        for source in self.inputs:
            if isinstance(source, ArchiveFileSource):
                source.check_duplicates()
        for descriptor in wanted:
            for item in self._inputs:
                if (blob := item.source.blob(descriptor)) is not None:
                    yielded[item].add(descriptor.digest)
                    yield RecoverableBlob(descriptor, blob.open, on_corrupt=item.raise_damaged)
                    break
            else:
                if (parts := self._find_all_parts(descriptor)) is not None:
                    opened = partial(_assemble, parts)
                    yield RecoverableBlob(descriptor, opened, on_corrupt=partial(self._raise_damaged_part, parts))
        if self._selection.all_blobs:
            for item in self._inputs:
                yield from item.source.other_blobs(yielded[item])

    def is_absent(self, descriptor: Descriptor) -> bool:
        """Return whether no input has the blob, and some of its parts are missing."""
        is_in_none = all(source.is_absent(descriptor) for source in self.inputs)
        return is_in_none and self._find_all_parts(descriptor) is None

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        """Return the parts of a blob that is split over volumes. Parts in the given volumes can be opened.

        Raises:
            ArchiveError: a part is missing or has another size.
        """
        merged: Sequence[BlobPart] = ()
        for item in self._volumes.values():
            parts = item.source.parts(descriptor)
            # Each part comes from the one volume that has it.
            merged = [other if other.blob else part for part, other in zip(merged or parts, parts, strict=True)]
        return merged

    def stored_size(self, digest: str) -> int | None:
        """Return the size of a blob in the first input that has it, or None."""
        sizes = (source.stored_size(digest) for source in self.inputs)
        return next((size for size in sizes if size is not None), None)

    def close(self) -> None:
        """Close all inputs."""
        for source in self.inputs:
            source.close()

    def _find_all_parts(self, descriptor: Descriptor) -> Sequence[BlobPart] | None:
        """Return the parts of a split blob if all of them are in the given volumes."""
        parts = self.parts(descriptor)
        return parts if parts and all(part.blob for part in parts) else None

    def _raise_damaged_part(self, parts: Sequence[BlobPart], error: IntegrityError, can_retry: bool) -> None:
        """Raise an error that names the volume with the damaged part of an assembled blob."""
        for part in parts:
            if part.blob is not None and _is_corrupt(part.blob):
                self._volumes[part.volume].raise_damaged(error, can_retry)
        raise error

    def _read(self, need: Need) -> bytes | None:
        """Return a document from the first input that has it."""
        documents = (source.read(need) for source in self.inputs)
        return next((raw for raw in documents if raw is not None), None)

    # -- checks that the inputs belong together ----------------------------------------------------------

    def _check_one_set(self, entries: Mapping[str, Descriptor]) -> None:
        """Check that all volumes are of one set, and agree on it. The set of most volumes is the expected one."""
        volumes = [(item, volume) for item in self._inputs if (volume := item.volume) is not None]
        if not volumes:
            return
        identity, _ = Counter(volume.identity for _, volume in volumes).most_common(1)[0]
        first, first_volume = next(each for each in volumes if each[1].identity == identity)
        for item, volume in volumes:
            if volume.identity != identity:
                actual = f"{volume} of {_describe_images(item.digests, entries)}"
                expected = f"{printable(first.text)} is {first_volume} of {_describe_images(first.digests, entries)}"
                text = printable(item.text)
                msg = f"{text} does not belong to the others: it is {actual}; in another set, {expected}"
                others = sum(other.identity == volume.identity for _, other in volumes)
                hint = f"omit or delete {text}: it is of another `pull --split`"
                if others > 1:
                    hint = f"name the volumes of one set: {others} of these are of another `pull --split`"
                raise ArchiveError(msg, hint=hint)
            if volume[1:] != first_volume[1:] or item.digests != first.digests:
                msg = f"{printable(item.text)} claims to be of the same set as {printable(first.text)}, but they differ"
                raise ArchiveError(msg)

    def _select(self, roots: Sequence[Root], where: str) -> Sequence[Root]:
        """Select images, and remember them: the graph may have one platform's manifest in place of an index."""
        try:
            self._chosen = self._selection.select(roots, where)
        except UsageError as error:
            if not frozenset.intersection(*(item.digests for item in self._inputs)):
                # The combination is impossible, whichever image is chosen. Images of one name differ by their digests.
                has_names = len({root.name for root in roots}) == len(roots)
                images = roots if has_names else [replace(root, name=None) for root in roots]
                error.hint = f"{_ONE_SET_HINT}; their images: {format_image_names(images)}"
            raise
        return self._chosen

    def _check_same_images(self) -> None:
        for item in self._inputs:
            for root in self._chosen:
                if root.descriptor.digest not in item.digests:
                    name = printable(root.name or "an image")
                    shown = f"{name} ({root.descriptor.digest})"
                    msg = f"{printable(item.text)} does not list {shown}, but another archive does"
                    raise ArchiveError(msg, hint=_ONE_SET_HINT)

    def _find_omitted(self, graph: Graph) -> dict[str, OmissionReason]:
        """Return the reasons of omitted blobs that no input has. Blobs of given volumes are missing, not omitted."""
        missing = {blob.digest for blob in graph.blobs if self.is_absent(blob)}
        omitted: dict[str, OmissionReason] = {}
        for item in self._inputs:
            for digest, reason in parse_omitted(item.annotations.get(OMITTED_ANNOTATION, ""), missing).items():
                omitted.setdefault(digest, reason)
        for blob in [blob for blob in graph.blobs if blob.digest in omitted]:
            reason = omitted[blob.digest]
            if reason.kind == VOLUME and reason.name in self._volumes:
                # The blob may continue in a volume that was not given.
                missing_volumes = [part.volume for part in self.parts(blob) if part.blob is None]
                if missing_volumes:
                    omitted[blob.digest] = OmissionReason(VOLUME, missing_volumes[0])
                else:
                    del omitted[blob.digest]
        return omitted


def _assemble(parts: Sequence[BlobPart], offset: int = 0) -> Iterator[Chunk]:
    """Read a blob from its parts.

    The first chunk has at least 1 KiB if the blob is not shorter: callers detect the kind of a blob by it.
    """
    chunks = itertools.chain.from_iterable(
        part.blob.open(max(offset, part.offset))
        for part in parts
        if part.blob is not None and offset < part.offset + part.size
    )
    first_chunk = b""
    for chunk in chunks:
        first_chunk += chunk
        if len(first_chunk) >= limits.KIB:
            break
    yield first_chunk
    yield from chunks


def _is_corrupt(part: Blob) -> bool:
    """Read a part, and return whether it does not match its own digest."""
    assert part.range_descriptor is not None, "parts in volumes have digests"  # noqa: S101 - the archive sets them
    try:
        for _ in verify_chunks(part.open(), part.range_descriptor):
            pass
    except IntegrityError:
        return True
    return False


def _report_unused_names(text: str, entries: Sequence[Descriptor], earlier_entries: Sequence[Descriptor]) -> None:
    """Report names that are not used: an image has the names that the first input gives it."""
    names: dict[str, list[str | None]] = {}
    for entry in earlier_entries:
        names.setdefault(entry.digest, []).append(entry_name_of(entry))
    for entry in entries:
        name = entry_name_of(entry)
        if name is not None and name not in names.get(entry.digest, [name]):
            used = ", ".join(printable(used_name) for used_name in names[entry.digest] if used_name)
            notices.notify(
                f"two archives have the same image, {entry.digest}, with different names: "
                f"{used or 'the image without a name'} is used; {printable(name)} in {printable(text)} is not"
            )


def _describe_images(digests: frozenset[str], entries: Mapping[str, Descriptor]) -> str:
    """Return the name of the first image of an archive, and the number of the others."""
    names = sorted(image_name_of(entries[digest]) or digest for digest in digests) or ["no image"]
    return printable(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
