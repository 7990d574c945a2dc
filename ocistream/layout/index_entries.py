"""What an `index.json` lists, sorted: which of its entries are images, and which hang on one and go along with it.

An entry without a name may be either: its manifest says so, by its `subject`. A name that cosign made of a digest says
it too, and under a name made of a digest alone there may be a list of what refers to it. So the manifests of such
entries are needed before the graph is complete, and those that turn out to belong to nothing that moves are dropped
again (`layout/index_referrers.py`). Bytes and values only: whoever reads the layout or archive brings them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError, UsageError
from ocistream.layout.index import build_roots, entry_name_of, subject_of, tag_of
from ocistream.layout.index_referrers import ReferrerCandidate, ReferrerResolver
from ocistream.oci.documents import parse_document
from ocistream.oci.omitted_blobs import OMITTED_ANNOTATION, VOLUME, parse_omitted
from ocistream.oci.reference import printable
from ocistream.oci.referrers import (
    ReferrerMode,
    cosign_subject,
    is_fallback_tag,
)
from ocistream.streams.chunks import size_error
from ocistream.transfer.walk import GraphBuilder

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.layout.index import ImageSelector
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.platforms import PlatformChoice

__all__ = ["IndexGraphBuilder"]


class IndexGraphBuilder:
    """The graph of the chosen images, and of what hangs on them, while its manifests are still being brought.

    `needed` says which to bring next, once `begin` was told what there is; each is answered by `supply` or `lacks`.
    """

    def __init__(self, select: ImageSelector, platforms: PlatformChoice, referrers: ReferrerMode) -> None:
        """Begin with nothing; `select` chooses among what are images."""
        self._builder = GraphBuilder(platforms, leaves_referrers=referrers == "left")
        self._resolver = ReferrerResolver(self._builder, referrers)
        self._select = select
        self._referrers = referrers
        self._all: list[Root] = []
        self._images: list[Root] = []
        #: The very roots that were chosen: two entries may be alike.
        self._chosen: set[int] = set()
        self._chosen_digests: set[str] = set()
        self._is_chosen = False
        #: Digests of what is no image beside others, but would be chosen if all were.
        self._prospective: set[str] = set()
        self._needed_candidates: dict[str, Descriptor] = {}
        self._buffered: dict[str, bytes] = {}
        self._buffered_bytes = 0
        #: What the index says of the whole, and of blobs that are not there.
        self._annotations: Mapping[str, str] = {}
        self._omitted_text = ""
        self._new: list[str] = []
        self._must_choose_again = True
        self._has_reported_strays = False
        self._selection_error: UsageError | None = None

    def begin(
        self,
        entries: Sequence[Descriptor],
        annotations: Mapping[str, str] | None = None,
        image_digests: Container[str] = (),
    ) -> None:
        """Learn what is listed, and choose the images, if that is possible yet; `notes` are the index's, of ours.

        `images` are the digests of entries that are images for certain, even without a name: they were made.

        Raises:
            NotFoundError, UsageError: as the choice has it.
        """
        self._annotations = annotations or {}
        self._omitted_text = self._annotations.get(OMITTED_ANNOTATION, "")
        self._all = [
            replace(root, is_synthesized=root.descriptor.digest in image_digests) for root in build_roots(entries)
        ]
        if self._referrers == "listed":
            self._must_choose_again, self._has_reported_strays, self._images = False, True, self._all
            self._choose()
            return
        tags = [tag_of(entry_name_of(root.descriptor)) for root in self._all]
        special = [tag is not None and (is_fallback_tag(tag) or cosign_subject(tag) is not None) for tag in tags]
        if len({root.descriptor.digest for root in self._all}) > 1:
            # Whether an entry without an image's name is an image, its manifest says.
            self._all = [
                root
                if root.is_synthesized or (root.name and not is_special and subject_of(root.descriptor) is None)
                else replace(root, is_stray=True)
                for root, is_special in zip(self._all, special, strict=True)
            ]
        self._images = [root for root in self._all if not root.is_stray]
        others = [
            ReferrerCandidate(root, tag if is_special else None)
            for root, tag, is_special in zip(self._all, tags, special, strict=True)
            if root.is_stray
        ]
        self._resolver.candidates = others
        self._prospective = {root.descriptor.digest for root in self._try_select(self._all) or ()}
        if self._images or not others:
            try:
                self._choose()
            except UsageError as error:
                if not others:
                    raise
                # Said when it is known which of the other entries are images as well.
                self._selection_error = error
        for entry in self._resolver.begin():
            self._need_candidate(entry)

    def next_needed(self) -> Descriptor | None:
        """Give a manifest (or config) that is needed, or None once the graph is complete."""
        while True:
            if self._builder.needs:
                return next(iter(self._builder.needs.values()))
            if self._needed_candidates:
                return next(iter(self._needed_candidates.values()))
            if not self._take_next_step():
                return None

    def check_choice(self) -> None:
        """Call before blobs move that come before the graph is complete.

        Raises:
            UsageError: the images that have a name allow no choice, whatever the other entries are.
        """
        if self._selection_error is not None:
            raise self._selection_error

    def is_needed(self, digest: str) -> bool:
        """Say whether this is needed."""
        return digest in self._builder.needs or digest in self._needed_candidates

    def check_size(self, digest: str, size: int) -> None:
        """Refuse what is needed for an image and has another size, in bytes, than was promised: nobody need read it.

        Raises:
            IntegrityError: it has.
        """
        descriptor = self._builder.needs.get(digest)
        if descriptor is not None and descriptor.size != size:
            raise size_error(descriptor, size)

    def is_config(self, digest: str) -> bool:
        """Say whether a need is an image's config, which the graph counts as a blob."""
        return self._builder.is_config(digest)

    def document(self, digest: str) -> Document | None:
        """Give what a manifest says that was supplied for an image."""
        return self._builder.document(digest)

    def new_needs(self) -> list[str]:
        """Give the digests that have become needed since this was last asked; some may be answered by now."""
        new, self._new = self._new, []
        return new

    def supply(self, digest: str, raw: bytes) -> None:
        """Answer a need with bytes.

        Raises:
            OcistreamError: as `GraphBuilder.supply` has it; what may only hang on an image is not held to that yet.
        """
        entry = self._needed_candidates.pop(digest, None)
        if digest in self._builder.needs:
            self._builder.supply(digest, raw)
            if entry is not None and (document := self._builder.document(digest)) is not None:
                self._add_document(entry, document)
        elif entry is not None:
            self._buffer(digest, raw)
            self._read_candidate(entry, raw)
        self._supply_buffered()

    def mark_missing(self, digest: str) -> None:
        """Answer a need by saying that it is not there."""
        self._needed_candidates.pop(digest, None)
        if digest in self._builder.needs:
            self._builder.mark_missing(digest)
        self._supply_buffered()

    def skip_candidates(self) -> set[str]:
        """Wait no longer for what may only hang on an image, if all that the chosen ones need is there.

        What was waited for is given: if any of it comes after all, the graph is not the right one.
        """
        if not self._is_chosen or self._builder.needs:
            return set()
        given_up = set(self._needed_candidates)
        self._needed_candidates.clear()
        return given_up

    def build(self) -> Graph:
        """Give the graph, once nothing is needed.

        Raises:
            ArchiveError: what is said to have been left out is malformed.
        """
        graph = self._builder.build()
        if not self._omitted_text:
            return graph
        left_out = parse_omitted(self._omitted_text, {blob.digest for blob in graph.blobs})
        self._check_volumes({reason.name for reason in left_out.values() if reason.kind == VOLUME})
        return replace(graph, omitted_from_source=left_out)

    def _check_volumes(self, names: AbstractSet[str]) -> None:
        """Make sure that what is said to be in other volumes is in volumes of the same archive.

        Nobody need send anything before he knows that the rest of it is nowhere.

        Raises:
            ArchiveError: it is not.
        """
        if not names:
            return
        from ocistream.oci.volumes import parse_volume

        volume = parse_volume(self._annotations)
        for name in names:
            number = volume.template.parse_number(name) if volume is not None else None
            if volume is None or number is None or not number < volume.total:
                msg = f"index.json says that blobs are in {printable(name)!r}, which is no volume of this archive"
                raise ArchiveError(msg)

    # -- choosing images ---------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Choose among what can only be images; what is asked for and is none of them, among all."""
        try:
            chosen = self._select(self._images)
        except (NotFoundError, UsageError):
            others = self._try_select(self._all)
            if others is None:
                raise
            chosen = others
        self._is_chosen = True
        self._add(chosen)

    def _add(self, chosen: Sequence[Root]) -> None:
        digests = {root.descriptor.digest for root in chosen}
        self._chosen.update(map(id, chosen))
        self._chosen_digests |= digests
        self._resolver.remove_chosen(self._chosen, digests)
        for root in chosen:
            self._builder.add_root(root)
        self._supply_buffered()

    def _try_select(self, roots: Sequence[Root]) -> Sequence[Root] | None:
        try:
            return self._select(roots)
        except (NotFoundError, UsageError):
            return None

    # -- looking at what may hang on them ----------------------------------------------------------------

    def _need_candidate(self, entry: Descriptor) -> None:
        digest = entry.digest
        could_be = (entry.is_index or entry.is_manifest) and entry.size <= limits.MAX_MANIFEST
        if could_be and not self._resolver.is_known(digest) and self._builder.document(digest) is None:
            self._needed_candidates[digest] = entry
            self._new.append(digest)

    def _read_candidate(self, entry: Descriptor, raw: bytes) -> None:
        try:
            document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError):
            # If it turns out that it is to move, that will be said.
            return
        self._add_document(entry, document)

    def _add_document(self, entry: Descriptor, document: Document) -> None:
        for child in self._resolver.add_document(entry, document):
            self._need_candidate(child)

    def _buffer(self, digest: str, raw: bytes) -> None:
        """Keep what cannot be read again, if it may be needed yet.

        Raises:
            ArchiveError: there is too much of it.
        """
        if self._buffered_bytes + len(raw) > limits.MAX_BUFFERED_JSON:
            if self._is_chosen and digest not in self._prospective:
                return
            msg = f"more than {limits.MAX_BUFFERED_JSON} bytes of manifests that may be images, or hang on one"
            raise ArchiveError(msg, hint="move fewer images at a time")
        self._buffered[digest] = raw
        self._buffered_bytes += len(raw)

    def _supply_buffered(self) -> None:
        """Give the builder what it needs and is held; what else it needs is new."""
        while new := self._builder.new_needs():
            for digest in new:
                if digest not in self._builder.needs:
                    continue
                if digest in self._buffered and not self._builder.is_config(digest):
                    raw = self._buffered.pop(digest)
                    self._buffered_bytes -= len(raw)
                    self._builder.supply(digest, raw)
                else:
                    self._new.append(digest)

    # -- what hangs on whom ------------------------------------------------------------------------------

    def _take_next_step(self) -> bool:
        """Take along what hangs on what moves; False once there is nothing new and everything is chosen."""
        if not self._is_chosen:
            self._find_images()
            self._images = [root for root in self._all if not root.is_stray] or self._all
            self._choose()
            return True
        if self._referrers == "along" and (attestations := self._builder.new_attestations()):
            for attestation, image in attestations:
                self._resolver.add_attestation(attestation, image)
                self._need_candidate(attestation)
            return True
        if self._resolver.attach_next():
            self._supply_buffered()
            return True
        if self._must_choose_again:
            self._must_choose_again = False
            if self._choose_again():
                return True
        images = {root.descriptor.digest for root in self._all if not root.is_stray}
        if not self._has_reported_strays and images <= self._chosen_digests:
            self._has_reported_strays = True
            self._resolver.skip_strays()
        return False

    def _choose_again(self) -> bool:
        """Choose again, now that it is known which entries are images; return whether another one was chosen.

        Raises:
            NotFoundError, UsageError: as the choice has it.
        """
        self._find_images()
        known = self._chosen.union(map(id, self._images), map(id, self._resolver.listed_roots()))
        chosen = self._select([root for root in self._all if id(root) in known])
        if new := [root for root in chosen if id(root) not in self._chosen]:
            self._add(new)
        return bool(new)

    def _find_images(self) -> None:
        found = self._resolver.find_images()
        self._all = [found.get(id(root), root) for root in self._all]
