"""Source that reads several archives and layouts of the same images as one: volumes, or archives sent separately.

Each blob comes from the first input that has it, or is assembled from its parts in several volumes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

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

JoinedInput: TypeAlias = "ArchiveFileSource | LayoutSource"


def open_joined_source(paths: Sequence[tuple[Path, str]], selection: Selection) -> JoinedSource:
    """Open archives in files, and layout directories. Each path comes with its name for errors.

    Raises:
        UsageError: there are too many inputs.
        NotFoundError, ArchiveError, LocalDiskError: an input cannot be read.
    """
    if len(paths) > limits.MAX_INPUTS:
        msg = f"{len(paths)} archives and layouts; at most {limits.MAX_INPUTS} can be combined"
        raise UsageError(msg)
    inputs: list[tuple[str, JoinedInput]] = []
    try:
        for path, text in paths:
            with files.disk_errors(f"cannot open {printable(text)}"):
                inputs.append((text, LayoutSource(path) if is_directory(path) else ArchiveFileSource(path)))
    except BaseException:
        for _, source in inputs:
            source.close()
        raise
    return JoinedSource(inputs, selection)


class JoinedSource:
    """Reads images from several archives and layouts as one source.

    One walk reads the manifests of all inputs. Joining the graphs of the inputs would keep the manifests of each volume
    in memory. All inputs must list the selected images.
    """

    concurrent = True
    may_lack_blobs = True

    def __init__(self, inputs: Sequence[tuple[str, JoinedInput]], selection: Selection) -> None:
        """Take open inputs, each with its name for errors. `close` closes them."""
        self._inputs = inputs
        self._selection = selection
        #: The digests that the index of each input lists.
        self._listed_digests: list[set[str]] = []
        #: The selected images, as the indexes list them.
        self._chosen: Sequence[Root] = ()
        #: One input for each volume of the set that was given, by volume number.
        self._volumes: dict[int, ArchiveFileSource] = {}
        #: The names of these inputs, by the names that the set has for the volumes. Files may have been renamed.
        self._names: dict[str, str] = {}

    @property
    def inputs(self) -> list[JoinedInput]:
        """The archives and layouts."""
        return [source for _, source in self._inputs]

    def resolve(self, early_blobs: EarlyBlobs) -> Graph:  # noqa: ARG002 - files and directories can be read in any order
        """Read all indexes, and every manifest below the selected images from the first input that has it.

        Raises:
            ArchiveError: the inputs have different images, or are volumes of different sets.
        """
        entries: list[Descriptor] = []
        entries_by_digest: dict[str, Descriptor] = {}
        annotations: list[Mapping[str, str]] = []
        volumes: list[tuple[str, Volume, set[str]]] = []
        for text, source in self._inputs:
            index = self._read_index(text, source)
            self._report_unused_names(text, index.entries, entries)
            entries += [entry for entry in index.entries if entry.digest not in entries_by_digest]
            for entry in index.entries:
                entries_by_digest.setdefault(entry.digest, entry)
            digests = {entry.digest for entry in index.entries}
            self._listed_digests.append(digests)
            annotations.append(index.annotations)
            if isinstance(source, ArchiveFileSource) and source.volume is not None:
                volumes.append((text, source.volume, digests))
                self._add_volume(text, source, source.volume)
        self._check_one_set(volumes, entries_by_digest)
        if len(entries) > limits.MAX_LIST_ENTRIES:
            msg = f"together the archives list more than {limits.MAX_LIST_ENTRIES} images"
            raise ArchiveError(msg)
        names = [printable(text, 1024) for text, _ in self._inputs]
        shown = " and ".join(names if len(names) <= 2 else [names[0], f"{len(names) - 1} more"])
        selection = replace(self._selection, select=self._select, where=f"the combination of {shown}")
        walk = IndexWalk(LayoutIndex(entries, {}), selection)
        graph = run_walk(walk.run(), self._read)
        report_duplicate_names(graph)
        self._check_same_images()
        is_saved = any(isinstance(source, ArchiveFileSource) and source.is_docker_save for source in self.inputs)
        return replace(graph, has_plain_layers=is_saved, omitted_from_source=self._find_omitted(graph, annotations))

    def blobs(self, wanted: Sequence[Descriptor]) -> Iterator[Blob]:
        """Yield the wanted blobs that exist, in the order of `wanted`.

        Raises:
            IntegrityError: a digest occurs twice in an archive, with other bytes the second time.
        """
        yielded: dict[int, set[str]] = {}
        for _, source in self._inputs:
            if isinstance(source, ArchiveFileSource):
                source.check_duplicates()
        for descriptor in wanted:
            for number, (_, source) in enumerate(self._inputs):
                if (blob := source.blob(descriptor)) is not None:
                    yielded.setdefault(number, set()).add(descriptor.digest)
                    yield RecoverableBlob(descriptor, blob.open, on_corrupt=partial(self._raise_damaged, number))
                    break
            else:
                parts = self.parts(descriptor)
                if parts and all(part.blob for part in parts):
                    opened = partial(_assemble, parts)
                    yield RecoverableBlob(descriptor, opened, on_corrupt=partial(self._raise_damaged_part, parts))
        if self._selection.all_blobs:
            for number, (_, source) in enumerate(self._inputs):
                yield from source.other_blobs(yielded.get(number, set()))

    def is_absent(self, descriptor: Descriptor) -> bool:
        """Return whether no input has the blob, and some of its parts are missing."""
        if not all(source.is_absent(descriptor) for _, source in self._inputs):
            return False
        parts = self.parts(descriptor)
        return not parts or not all(part.blob for part in parts)

    def parts(self, descriptor: Descriptor) -> Sequence[BlobPart]:
        """Return the parts of a blob that is split over volumes. Parts in the given volumes can be opened.

        Raises:
            ArchiveError: a part is missing or has another size.
        """
        merged: Sequence[BlobPart] = ()
        for source in self._volumes.values():
            parts = source.parts(descriptor)
            # Each part comes from the one volume that has it.
            merged = [other if other.blob else part for part, other in zip(merged or parts, parts, strict=True)]
        return merged

    def stored_size(self, digest: str) -> int | None:
        """Return the size of a blob in the first input that has it, or None."""
        sizes = (source.stored_size(digest) for _, source in self._inputs)
        return next((size for size in sizes if size is not None), None)

    def close(self) -> None:
        """Close all inputs."""
        for _, source in self._inputs:
            source.close()

    def _raise_damaged(self, number: int, error: IntegrityError, again: bool) -> None:  # noqa: ARG002 - there is no second copy
        raise _damaged_error(self._inputs[number][0], error)

    def _raise_damaged_part(self, parts: Sequence[BlobPart], error: IntegrityError, again: bool) -> None:  # noqa: ARG002 - the same
        """Raise an error that names the volume with the damaged part of an assembled blob."""
        for part in parts:
            if part.blob is not None and _is_corrupt(part.blob):
                raise _damaged_error(self._names.get(part.volume, part.volume), error)
        raise error

    def _read(self, need: Need) -> bytes | None:
        """Return a document from the first input that has it."""
        documents = (source.read(need) for source in self.inputs)
        return next((raw for raw in documents if raw is not None), None)

    # -- checks that the inputs belong together ----------------------------------------------------------

    @staticmethod
    def _read_index(text: str, source: JoinedInput) -> LayoutIndex:
        if isinstance(source, LayoutSource):
            return source.layout.read_index()
        if source.contents.is_docker_archive:
            msg = f"{printable(text)} is a docker-archive, but only OCI archives and layouts can be combined"
            raise UsageError(msg, hint="use a separate command for this archive")
        try:
            index = source.read_complete_index()
        except ArchiveError as error:
            if error.message.startswith(label := f"{printable(text, 1024)}: "):
                raise
            raise ArchiveError(f"{label}{error.message}", hint=error.hint) from error
        if source.synthesized_manifests:
            msg = f"{printable(text)} has images that only its manifest.json lists"
            raise UsageError(msg, hint="name this archive alone: it cannot be combined with others")
        return index

    @staticmethod
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

    def _add_volume(self, text: str, source: ArchiveFileSource, volume: Volume) -> None:
        if volume.number in self._volumes:
            notices.notify(f"{printable(text)} is {volume} again", level=1)
        else:
            self._volumes[volume.number] = source
            self._names[volume.name] = text

    @staticmethod
    def _check_one_set(volumes: Sequence[tuple[str, Volume, set[str]]], entries: Mapping[str, Descriptor]) -> None:
        """Check that all volumes are of one set, and agree on it. The set of most volumes is the expected one.

        Each volume comes with its name for errors, and the digests that its index lists.
        """
        if not volumes:
            return
        identity, _ = Counter(volume.identity for _, volume, _ in volumes).most_common(1)[0]
        first_text, first_volume, first_digests = next(each for each in volumes if each[1].identity == identity)
        for text, volume, digests in volumes:
            if volume.identity != identity:
                actual = f"{volume} of {_describe_images(digests, entries)}"
                expected = f"{printable(first_text)} is {first_volume} of {_describe_images(first_digests, entries)}"
                msg = f"{printable(text)} does not belong to the others: it is {actual}; in another set, {expected}"
                others = sum(other.identity == volume.identity for _, other, _ in volumes)
                hint = f"omit or delete {printable(text)}: it is of another `pull --split`"
                if others > 1:
                    hint = f"name the volumes of one set: {others} of these are of another `pull --split`"
                raise ArchiveError(msg, hint=hint)
            if volume[1:] != first_volume[1:] or digests != first_digests:
                msg = f"{printable(text)} claims to be of the same set as {printable(first_text)}, but they differ"
                raise ArchiveError(msg)

    def _select(self, roots: Sequence[Root], where: str) -> Sequence[Root]:
        """Select images, and remember them: the graph may have one platform's manifest in place of an index."""
        try:
            self._chosen = self._selection.select(roots, where)
        except UsageError as error:
            if not set.intersection(*self._listed_digests):
                # The combination is impossible, whichever image is chosen. Images of one name differ by their digests.
                has_names = len({root.name for root in roots}) == len(roots)
                images = roots if has_names else [replace(root, name=None) for root in roots]
                error.hint = f"{_ONE_SET_HINT}; their images: {format_image_names(images)}"
            raise
        return self._chosen

    def _check_same_images(self) -> None:
        for (text, _), digests in zip(self._inputs, self._listed_digests, strict=True):
            for root in self._chosen:
                if root.descriptor.digest not in digests:
                    name = printable(root.name or "an image")
                    msg = f"{printable(text)} does not list {name} ({root.descriptor.digest}), but another archive does"
                    raise ArchiveError(msg, hint=_ONE_SET_HINT)

    def _find_omitted(self, graph: Graph, annotations: Sequence[Mapping[str, str]]) -> dict[str, OmissionReason]:
        """Return the reasons of omitted blobs that no input has. Blobs of given volumes are missing, not omitted."""
        missing = {blob.digest for blob in graph.blobs if self.is_absent(blob)}
        given_volumes = {source.volume.name for source in self._volumes.values() if source.volume}
        omitted: dict[str, OmissionReason] = {}
        for annotation in annotations:
            for digest, reason in parse_omitted(annotation.get(OMITTED_ANNOTATION, ""), missing).items():
                omitted.setdefault(digest, reason)
        for blob in [blob for blob in graph.blobs if blob.digest in omitted]:
            reason = omitted[blob.digest]
            if reason.kind == VOLUME and reason.name in given_volumes:
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


def _damaged_error(text: str, error: IntegrityError) -> IntegrityError:
    path = printable(text, 1024)
    hint = f"{path} is damaged, or changed during the run: check it with `ocistream verify {path}`"
    return IntegrityError(error.message, hint=hint)


def _describe_images(digests: set[str], entries: Mapping[str, Descriptor]) -> str:
    """Return the name of the first image of an archive, and the number of the others."""
    names = sorted(image_name_of(entries[digest]) or digest for digest in digests) or ["no image"]
    return printable(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
