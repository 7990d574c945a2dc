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
from ocistream.layout.index import called, roots_of, subject_of, tag_of
from ocistream.layout.index_referrers import Attaching, Other
from ocistream.oci.documents import parse_document
from ocistream.oci.omitted_blobs import LEFT_OUT, VOLUME, left_out_of
from ocistream.oci.reference import printable
from ocistream.oci.referrers import (
    Referrers,
    cosign_subject,
    is_fallback_tag,
)
from ocistream.streams.chunks import wrong_size
from ocistream.transfer.walk import GraphBuilder

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from ocistream.layout.index import Selection
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.documents import Document
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.platforms import PlatformChoice

__all__ = ["Gathering"]


class Gathering:
    """The graph of the chosen images, and of what hangs on them, while its manifests are still being brought.

    `needed` says which to bring next, once `begin` was told what there is; each is answered by `supply` or `lacks`.
    """

    def __init__(self, select: Selection, platforms: PlatformChoice, referrers: Referrers) -> None:
        """Begin with nothing; `select` chooses among what are images."""
        self._builder = GraphBuilder(platforms, leaves_referrers=referrers == "left")
        self._attaching = Attaching(self._builder, referrers)
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
        self._looking: dict[str, Descriptor] = {}
        self._held: dict[str, bytes] = {}
        self._held_bytes = 0
        #: What the index says of the whole, and of blobs that are not there.
        self._notes: Mapping[str, str] = {}
        self._left_out = ""
        self._new: list[str] = []
        self._has_rest = True
        self._has_told_strays = False
        self._refusal: UsageError | None = None

    def begin(
        self, entries: Sequence[Descriptor], notes: Mapping[str, str] | None = None, images: Container[str] = ()
    ) -> None:
        """Learn what is listed, and choose the images, if that is possible yet; `notes` are the index's, of ours.

        `images` are the digests of entries that are images for certain, even without a name: they were made.

        Raises:
            NotFoundError, UsageError: as the choice has it.
        """
        self._notes = notes or {}
        self._left_out = self._notes.get(LEFT_OUT, "")
        self._all = [replace(root, made=root.descriptor.digest in images) for root in roots_of(entries)]
        if self._referrers == "listed":
            self._has_rest, self._has_told_strays, self._images = False, True, self._all
            self._choose()
            return
        tags = [tag_of(called(root.descriptor)) for root in self._all]
        special = [tag is not None and (is_fallback_tag(tag) or cosign_subject(tag) is not None) for tag in tags]
        if len({root.descriptor.digest for root in self._all}) > 1:
            # Whether an entry without an image's name is an image, its manifest says.
            self._all = [
                root
                if root.made or (root.name and not is_special and subject_of(root.descriptor) is None)
                else replace(root, stray=True)
                for root, is_special in zip(self._all, special, strict=True)
            ]
        self._images = [root for root in self._all if not root.stray]
        others = [
            Other(root, tag if is_special else None)
            for root, tag, is_special in zip(self._all, tags, special, strict=True)
            if root.stray
        ]
        self._attaching.others = others
        self._prospective = {root.descriptor.digest for root in self._selected(self._all) or ()}
        if self._images or not others:
            try:
                self._choose()
            except UsageError as error:
                if not others:
                    raise
                # Said when it is known which of the other entries are images as well.
                self._refusal = error
        for entry in self._attaching.begin():
            self._look_for(entry)

    def needed(self) -> Descriptor | None:
        """Give a manifest (or config) that is needed, or None once the graph is complete."""
        while True:
            if self._builder.needs:
                return next(iter(self._builder.needs.values()))
            if self._looking:
                return next(iter(self._looking.values()))
            if not self._settle():
                return None

    def check_choice(self) -> None:
        """Call before blobs move that come before the graph is complete.

        Raises:
            UsageError: the images that have a name allow no choice, whatever the other entries are.
        """
        if self._refusal is not None:
            raise self._refusal

    def needs(self, digest: str) -> bool:
        """Say whether this is needed."""
        return digest in self._builder.needs or digest in self._looking

    def check_size(self, digest: str, size: int) -> None:
        """Refuse what is needed for an image and has another size, in bytes, than was promised: nobody need read it.

        Raises:
            IntegrityError: it has.
        """
        descriptor = self._builder.needs.get(digest)
        if descriptor is not None and descriptor.size != size:
            raise wrong_size(descriptor, size)

    def wants_config(self, digest: str) -> bool:
        """Say whether a need is an image's config, which the graph counts as a blob."""
        return self._builder.wants_config(digest)

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
        entry = self._looking.pop(digest, None)
        if digest in self._builder.needs:
            self._builder.supply(digest, raw)
            if entry is not None and (document := self._builder.document(digest)) is not None:
                self._note(entry, document)
        elif entry is not None:
            self._hold(digest, raw)
            self._look(entry, raw)
        self._answer()

    def lacks(self, digest: str) -> None:
        """Answer a need by saying that it is not there."""
        self._looking.pop(digest, None)
        if digest in self._builder.needs:
            self._builder.lacks(digest)
        self._answer()

    def give_up(self) -> set[str]:
        """Wait no longer for what may only hang on an image, if all that the chosen ones need is there.

        What was waited for is given: if any of it comes after all, the graph is not the right one.
        """
        if not self._is_chosen or self._builder.needs:
            return set()
        given_up = set(self._looking)
        self._looking.clear()
        return given_up

    def graph(self) -> Graph:
        """Give the graph, once nothing is needed.

        Raises:
            ArchiveError: what is said to have been left out is malformed.
        """
        graph = self._builder.graph()
        if not self._left_out:
            return graph
        left_out = left_out_of(self._left_out, {blob.digest for blob in graph.blobs})
        self._check_volumes({reason.name for reason in left_out.values() if reason.kind == VOLUME})
        return replace(graph, left_out=left_out)

    def _check_volumes(self, names: AbstractSet[str]) -> None:
        """Make sure that what is said to be in other volumes is in volumes of the same archive.

        Nobody need send anything before he knows that the rest of it is nowhere.

        Raises:
            ArchiveError: it is not.
        """
        if not names:
            return
        from ocistream.oci.volumes import volume_of

        volume = volume_of(self._notes)
        for name in names:
            number = volume.template.number(name) if volume is not None else None
            if volume is None or number is None or not number < volume.total:
                msg = f"index.json says that blobs are in {printable(name)!r}, which is no volume of this archive"
                raise ArchiveError(msg)

    # -- choosing images ---------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Choose among what can only be images; what is asked for and is none of them, among all."""
        try:
            chosen = self._select(self._images)
        except (NotFoundError, UsageError):
            others = self._selected(self._all)
            if others is None:
                raise
            chosen = others
        self._is_chosen = True
        self._add(chosen)

    def _add(self, chosen: Sequence[Root]) -> None:
        digests = {root.descriptor.digest for root in chosen}
        self._chosen.update(map(id, chosen))
        self._chosen_digests |= digests
        self._attaching.less(self._chosen, digests)
        for root in chosen:
            self._builder.add_root(root)
        self._answer()

    def _selected(self, roots: Sequence[Root]) -> Sequence[Root] | None:
        try:
            return self._select(roots)
        except (NotFoundError, UsageError):
            return None

    # -- looking at what may hang on them ----------------------------------------------------------------

    def _look_for(self, entry: Descriptor) -> None:
        digest = entry.digest
        could_be = (entry.is_index or entry.is_manifest) and entry.size <= limits.MAX_MANIFEST
        if could_be and not self._attaching.was_noted(digest) and self._builder.document(digest) is None:
            self._looking[digest] = entry
            self._new.append(digest)

    def _look(self, entry: Descriptor, raw: bytes) -> None:
        try:
            document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError):
            # If it turns out that it is to move, that will be said.
            return
        self._note(entry, document)

    def _note(self, entry: Descriptor, document: Document) -> None:
        for child in self._attaching.note(entry, document):
            self._look_for(child)

    def _hold(self, digest: str, raw: bytes) -> None:
        """Keep what cannot be read again, if it may be needed yet.

        Raises:
            ArchiveError: there is too much of it.
        """
        if self._held_bytes + len(raw) > limits.MAX_HELD_JSON:
            if self._is_chosen and digest not in self._prospective:
                return
            msg = f"more than {limits.MAX_HELD_JSON} bytes of manifests that may be images, or hang on one"
            raise ArchiveError(msg, hint="move fewer images at a time")
        self._held[digest] = raw
        self._held_bytes += len(raw)

    def _answer(self) -> None:
        """Give the builder what it needs and is held; what else it needs is new."""
        while new := self._builder.new_needs():
            for digest in new:
                if digest not in self._builder.needs:
                    continue
                if digest in self._held and not self._builder.wants_config(digest):
                    raw = self._held.pop(digest)
                    self._held_bytes -= len(raw)
                    self._builder.supply(digest, raw)
                else:
                    self._new.append(digest)

    # -- what hangs on whom ------------------------------------------------------------------------------

    def _settle(self) -> bool:
        """Take along what hangs on what moves; False once there is nothing new and everything is chosen."""
        if not self._is_chosen:
            self._recognize()
            self._images = [root for root in self._all if not root.stray] or self._all
            self._choose()
            return True
        if self._referrers == "along" and (attestations := self._builder.new_attestations()):
            for attestation, image in attestations:
                self._attaching.claim(attestation, image)
                self._look_for(attestation)
            return True
        if self._attaching.attach_some():
            self._answer()
            return True
        if self._has_rest:
            self._has_rest = False
            if self._choose_rest():
                return True
        images = {root.descriptor.digest for root in self._all if not root.stray}
        if not self._has_told_strays and images <= self._chosen_digests:
            self._has_told_strays = True
            self._attaching.leave_strays()
        return False

    def _choose_rest(self) -> bool:
        """Choose again, now that it is known which entries are images; return whether another one was chosen.

        Raises:
            NotFoundError, UsageError: as the choice has it.
        """
        self._recognize()
        known = self._chosen.union(map(id, self._images), map(id, self._attaching.entries()))
        chosen = self._select([root for root in self._all if id(root) in known])
        if new := [root for root in chosen if id(root) not in self._chosen]:
            self._add(new)
        return bool(new)

    def _recognize(self) -> None:
        found = self._attaching.recognize()
        self._all = [found.get(id(root), root) for root in self._all]
