"""Repositories over a storage: tags, manifests and referrers; pushing and deleting change `index.json`.

A layout is flat: manifests and blobs are visible in every repository by digest, only tags belong to one. If the storage
has only some platforms of an index, a smaller index is served in its place. This module knows nothing of HTTP but error
responses.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from ocistream import limits, notices
from ocistream.errors import ArchiveError, NotFoundError, OcistreamError, UnsupportedError
from ocistream.layout.index import FULL_NAME, REF_NAME, entry_name_of
from ocistream.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Manifest, compute_digest
from ocistream.oci.documents import Document, guess_media_type, parse_document, parse_outline
from ocistream.oci.graph import Root, children_of
from ocistream.oci.reference import is_digest, is_tag, printable
from ocistream.oci.referrers import SUBJECT, referrer_descriptor, tagged_subject
from ocistream.oci.walk import Need, run_walk, walk_images
from ocistream.serve.capacity import remember
from ocistream.serve.image_index import (
    choose_full_name,
    describe_name_conflicts,
    describe_unnamed,
    find_unnamed_entries,
    served_names_of,
)
from ocistream.serve.request import RequestRejectedError
from ocistream.streams.synchronization import Budget
from ocistream.transfer.incomplete_indexes import find_not_exported, limit_to_exported

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocistream.oci.graph import IncompleteIndex
    from ocistream.serve.archive_storage import Storage
    from ocistream.serve.directory_storage import DirectoryStorage
    from ocistream.serve.image_index import ImageIndex

#: Cache sizes: indexes that are known to be complete, and smaller indexes that were built.
_MAX_COMPLETE: Final = 1000
_MAX_SYNTHESIZED: Final = 64


class IncompleteIndexes:
    """Smaller indexes for images whose platforms are not all in the storage. Safe for several threads."""

    def __init__(self, storage: Storage) -> None:
        """Read from `storage` when an index is requested."""
        self._storage = storage
        self._complete: OrderedDict[str, None] = OrderedDict()
        self._synthesized: OrderedDict[str, Manifest] = OrderedDict()

    def find_replacement(self, index: Descriptor) -> Manifest | None:
        """Return the manifest to serve in place of an index with missing platforms; None for any other index.

        An index with a damaged part is served unchanged; the client that requests that part gets the error.
        """
        if index.digest in self._complete:
            return None
        try:
            return self._build_smaller_index(index)
        except OcistreamError:
            return None

    def find_synthesized(self, digest: str) -> Manifest | None:
        """Return a smaller index that was served in place of another one."""
        return self._synthesized.get(digest)

    def _is_missing(self, blob: Descriptor) -> bool:
        """Return whether a blob does not exist. A corrupt blob is not a reason to omit its platform."""
        if self._storage.blob_size(blob.digest) is not None:
            return False
        self._storage.check_not_corrupt(blob.digest)
        return True

    def _read(self, need: Need) -> bytes | None:
        try:
            return self._storage.read_blob(need.descriptor)
        except NotFoundError:
            return None

    def _build_smaller_index(self, index: Descriptor) -> Manifest | None:
        graph = run_walk(walk_images([Root(None, index)]), self._read)
        missing = find_not_exported(graph, self._is_missing)
        exported = limit_to_exported(graph, self._is_missing)
        root = exported.roots[0].descriptor
        if root.digest == index.digest:
            if not missing:
                remember(self._complete, index.digest, None, _MAX_COMPLETE)
            return None
        for incomplete in exported.incomplete_indexes:
            _report_incomplete(incomplete)
        (manifest,) = (item for item in exported.manifests if item.descriptor.digest == root.digest)
        if root.is_index:
            # Clients request it by its digest next, and no blob has it.
            remember(self._synthesized, root.digest, manifest, _MAX_SYNTHESIZED)
        return manifest


def _report_incomplete(incomplete: IncompleteIndex) -> None:
    missing = f"; missing: {', '.join(map(printable, incomplete.missing))}" if incomplete.missing else ""
    platforms = ", ".join(map(printable, incomplete.platforms))
    notices.notify(f"index {incomplete.digest} is incomplete: only {platforms} is served{missing}")


#: How many manifests without a name are read at the start, to tell images from referrers.
_MAX_UNNAMED_READ: Final = 100
#: How many media types are kept: about 200 bytes each.
_MAX_DECLARED_TYPES: Final = 1000
_DOCUMENT_TYPES: Final = INDEX_TYPES | MANIFEST_TYPES


@dataclass(frozen=True, slots=True)
class _ManifestReferences:
    """The references of a manifest: its subject, and the media type of each manifest that it lists, by digest.

    `manifest_types` is None if there are too many to remember.
    """

    subject: str | None = None
    manifest_types: Mapping[str, str] | None = field(default_factory=dict)


#: Shared by the manifests that refer to nothing but blobs: nearly all of thousands of images.
_NO_REFERENCES: Final = _ManifestReferences()


class Repositories:
    """The repositories of one layout. Safe for several threads."""

    def __init__(self, storage: Storage) -> None:
        """Read from `storage` when something is requested."""
        self._storage = storage
        #: Limits how many threads parse manifests at once, because parsing takes much memory.
        self._parse_slots = Budget(limits.MAX_CONCURRENT_PARSES)
        self._incomplete_indexes = IncompleteIndexes(storage)
        # Cached by digest, so the entries stay valid. Unreachable digests are dropped. References that exceed the limit
        # are read again when needed.
        self._references: dict[str, _ManifestReferences] = {}
        self._reference_count = 0
        #: Digest -> the media type that the document states. Parsing a large one costs more than sending it.
        self._declared_types: OrderedDict[str, str | None] = OrderedDict()

    def operator_notices(self) -> list[str]:
        """Return lines for the operator about the images and their names.

        Raises:
            OcistreamError: the index, or a manifest without a name, cannot be read.
        """
        index = self._storage.index()
        lines = [*self._storage.operator_notices(), *describe_name_conflicts(index)]
        unnamed = find_unnamed_entries(index.entries)
        kind = "images or referrers"
        if len(unnamed) <= _MAX_UNNAMED_READ:
            # A signature or an SBOM needs no name.
            unnamed = [
                entry for entry in unnamed if self._read_references(entry.digest, entry.media_type).subject is None
            ]
            kind = "images" if len(unnamed) > 1 else "image"
        if unnamed:
            lines.append(describe_unnamed([entry.digest for entry in unnamed], kind))
        return lines

    def list_tags(self, repository: str) -> list[str]:
        """Return a repository's tags.

        Raises:
            RequestRejectedError: the repository does not exist (404).
        """
        tags = self._storage.index().tags(repository)
        if tags is None:
            raise RequestRejectedError(404, "NAME_UNKNOWN", f"no repository {repository}")
        return tags

    def find_manifest(self, repository: str, reference: str) -> Manifest:
        """Return the manifest of a tag or a digest.

        Raises:
            RequestRejectedError: it does not exist (404).
            OcistreamError: it cannot be read, or is damaged.
        """
        with self._parse_slots.reserve():
            return self._read_manifest(repository, reference)

    def _read_manifest(self, repository: str, reference: str) -> Manifest:
        unknown = RequestRejectedError(404, "MANIFEST_UNKNOWN", f"no manifest {reference} in {repository}")
        try:
            if is_digest(reference):
                if (synthesized := self._incomplete_indexes.find_synthesized(reference)) is not None:
                    return synthesized
                raw = self._read(reference)
                media_type = (
                    self._declared_type(reference, raw)
                    or self._reachable_from(self._storage.index()).get(reference)
                    or _guess_media_type(raw)
                )
                if media_type is None:
                    raise unknown
                return Manifest(Descriptor(media_type, reference, len(raw)), raw)
            entry = self._storage.index().find(repository, reference)
            if entry is None:
                raise unknown
            if entry.size > limits.MAX_MANIFEST:
                msg = f"{reference} in {repository} is larger than {limits.MAX_MANIFEST} bytes"
                raise ArchiveError(msg)
            # A smaller index, if platforms are missing.
            if entry.is_index and (replacement := self._incomplete_indexes.find_replacement(entry)) is not None:
                return replacement
            raw = self._storage.read_blob(entry)
            return Manifest(replace(entry, media_type=self._declared_type(entry.digest, raw) or entry.media_type), raw)
        except NotFoundError as error:
            raise unknown from error

    def _declared_type(self, digest: str, raw: bytes) -> str | None:
        """Return the media type that a document states, if it is one of a manifest or an index."""
        if (known := self._declared_types.get(digest, "")) != "":
            return known
        declared = _read_declared_type(raw)
        remember(self._declared_types, digest, declared, _MAX_DECLARED_TYPES)
        return declared

    def push(
        self,
        repository: str,
        reference: str,
        raw: bytes,
        media_type: str,
        hosts: tuple[str, ...],
        tags: Sequence[str],
    ) -> tuple[str, str | None]:
        """Store a manifest under a tag, or under a digest with `tags` that refer to it.

        Return its digest, and the digest of its subject or None. `media_type` is the client's, "" if it sent none.
        `hosts` are tried in turn for the image's full name.

        Raises:
            RequestRejectedError: the manifest is malformed, of another type, or refers to missing blobs or manifests
                (400).
            LocalDiskError: the manifest cannot be written.
        """
        tags = tags if is_digest(reference) else (reference,)
        if not all(map(is_tag, tags)):
            raise RequestRejectedError(400, "MANIFEST_INVALID", "the reference is neither a tag nor a digest")
        digest = compute_digest(raw, reference.partition(":")[0] if is_digest(reference) else "sha256")
        if is_digest(reference) and reference != digest:
            raise RequestRejectedError(
                400, "DIGEST_INVALID", "the manifest has another digest", details=[{"digest": digest}]
            )
        try:
            with self._parse_slots.reserve():
                entry = Descriptor(media_type or guess_media_type(raw, "the manifest"), digest, len(raw))
                document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError) as error:
            raise RequestRejectedError(400, "MANIFEST_INVALID", error.message) from error
        if entry.media_type not in _DOCUMENT_TYPES:
            raise RequestRejectedError(400, "MANIFEST_INVALID", "the media type is neither a manifest nor an index")
        named_entries = {tag: _with_name(entry, choose_full_name(hosts, repository, tag), tag) for tag in tags}
        layout = self._layout()

        def store() -> None:
            self._check_children(layout, document)
            if not layout.has_blob(entry):
                layout.write_blob(digest, [raw])

        def change(index: ImageIndex) -> ImageIndex:
            # Again under the lock, which `gc` also takes: it may have deleted blobs since.
            store()
            for name, new in (named_entries or {reference: _without_name(entry, document)}).items():
                index = self._add_entry(index, new, repository, name)
            return index

        # Before the change is queued: threads write manifests in parallel, but change the index one by one.
        store()
        self._remember_references(digest, document)
        try:
            layout.update_index(change)
        except UnsupportedError as error:
            raise RequestRejectedError(400, "MANIFEST_INVALID", "the index.json of the registry is full") from error
        return digest, document.subject.digest if document.subject else None

    def delete(self, repository: str, reference: str) -> None:
        """Delete a tag; or, by digest, a manifest and all tags of `repository` that refer to it.

        The manifest's blob is deleted too, unless another image needs it; other blobs stay.

        Raises:
            RequestRejectedError: it does not exist (404), or only another image or repository has it (405).
        """
        if not is_digest(reference):
            self._delete_tag(repository, reference)
            return
        self.find_manifest(repository, reference)
        self._layout().update_index(
            lambda index: self._remove_entries(index, repository, reference),
            # Only after the new `index.json` is durable, and under the same lock: a full disk must not leave an entry
            # without its manifest.
            lambda index: self._delete_unneeded(index, reference),
        )

    def list_referrers(self, subject: str) -> list[dict[str, Any]]:
        """Return the descriptors of all manifests with this subject (distribution-spec, "Listing Referrers").

        They are in the order of `index.json`.
        """
        descriptors = []
        with self._parse_slots.reserve():
            for digest, media_type in self._reachable_from(self._storage.index()).items():
                if self._read_references(digest, media_type, complete=False).subject == subject:
                    # Another process may have deleted the manifest since.
                    with contextlib.suppress(NotFoundError):
                        raw = self._read(digest)
                        descriptor = Descriptor(media_type, digest, len(raw))
                        descriptors.append(referrer_descriptor(descriptor, parse_document(descriptor, raw)).to_json())
        return descriptors

    @staticmethod
    def _check_children(layout: DirectoryStorage, document: Document) -> None:
        """Reject a manifest whose blobs or manifests do not exist: a pull of it would fail.

        The conformance suite calls such manifests sparse, and pushes them only if it is configured to.
        """
        missing: dict[str, None] = {}
        for child in children_of(document):
            if child.is_foreign:
                continue
            size = layout.blob_size(child.digest)
            if size is not None and size != child.size and not layout.is_intact(child.digest):
                size = None
            if size is None:
                missing[child.digest] = None
            elif size != child.size:
                detail = {"digest": child.digest, "size": size}
                raise RequestRejectedError(400, "MANIFEST_INVALID", "a size is wrong", details=[detail])
        if missing:
            details = [{"digest": digest} for digest in missing]
            raise RequestRejectedError(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", details=details)

    def _layout(self) -> DirectoryStorage:
        # An archive is read-only: its registry lets no request through that changes something.
        return cast("DirectoryStorage", self._storage)

    def _add_entry(self, index: ImageIndex, new: Descriptor, repository: str, reference: str) -> ImageIndex:
        """Return the index with a pushed manifest added.

        A manifest without a tag gets an entry too: it may be a referrer, or an image known by its digest. It gets none
        if another entry leads to it, as for the images of an index that was pushed.
        """
        below = self._find_reachable([new])
        unnamed = [
            entry for digest in below for entry in index.entries_with_digest(digest) if entry_name_of(entry) is None
        ]
        replaced = index.entries_named(repository, reference)
        if entry_name_of(new) is None and self._is_needed(index, new.digest, without=unnamed):
            return index.replace(unnamed)
        changed = index.replace([*replaced, *unnamed], [new])
        if index.reachable is not None and not replaced:
            # The new entry leads to all that the removed ones led to.
            changed.reachable = index.reachable | below
        return changed

    def _is_needed(self, index: ImageIndex, digest: str, *, without: Sequence[Descriptor]) -> bool:
        """Return whether an entry leads to a manifest, not counting some entries."""
        # Most manifests are new, and the search through all entries is done once for many of them.
        return digest in self._reachable_from(index) and digest in self._find_reachable(index.replace(without).entries)

    def _delete_tag(self, repository: str, tag: str) -> None:
        def change(index: ImageIndex) -> ImageIndex:
            if not (removed := index.entries_named(repository, tag)):
                raise RequestRejectedError(404, "MANIFEST_UNKNOWN", f"no tag {tag} in {repository}")
            return index.replace(removed)

        self._layout().update_index(change)

    def _remove_entries(self, index: ImageIndex, repository: str, digest: str) -> ImageIndex:
        removed = [
            entry
            for entry in index.entries_with_digest(digest)
            if not (names := served_names_of(entry, index.default_repository))
            or any(path == repository for path, _ in names)
        ]
        if not removed and digest in self._reachable_from(index):
            message = "an index, or a tag of another repository, still needs this manifest: delete that first"
            raise RequestRejectedError(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD, PUT"})
        return index.replace(removed)

    def _delete_unneeded(self, index: ImageIndex, digest: str) -> None:
        """Delete the blob of a manifest that no entry leads to."""
        if digest not in self._reachable_from(index):
            with contextlib.suppress(NotFoundError):
                self._layout().delete_blob(digest)

    def _reachable_from(self, index: ImageIndex) -> dict[str, str]:
        """Return the result of `_find_reachable` for all entries, and forget the references of other manifests."""
        if index.reachable is None:
            index.reachable = reachable = self._find_reachable(index.entries)
            self._references = {digest: self._references[digest] for digest in reachable if digest in self._references}
            self._reference_count = sum(
                len(references.manifest_types or ()) for references in self._references.values()
            )
        return index.reachable

    def _find_reachable(self, entries: Iterable[Descriptor]) -> dict[str, str]:
        """Return digest and media type of every manifest that the entries lead to; the entries come first.

        Below the entries, only manifests that exist are included: an index may list any number of others.
        """
        reachable = {entry.digest: entry.media_type for entry in entries}
        queue = list(reachable.items())
        for digest, media_type in queue:
            for child in (self._read_references(digest, media_type).manifest_types or {}).items():
                if child[0] not in reachable and (
                    child[0] in self._references or self._storage.blob_size(child[0]) is not None
                ):
                    reachable[child[0]] = child[1]
                    queue.append(child)
        return reachable

    def _read_references(self, digest: str, media_type: str, *, complete: bool = True) -> _ManifestReferences:
        """Return the references of a manifest; unless `complete`, its `manifest_types` may be None."""
        references = self._references.get(digest)
        if references is None or (complete and references.manifest_types is None):
            try:
                raw = self._read(digest) if media_type in _DOCUMENT_TYPES else b"{}"
                document = parse_document(Descriptor(media_type, digest, len(raw)), raw)
            except OcistreamError:
                # Missing, malformed or damaged: it has no references. This must not stop the others from being served.
                return _NO_REFERENCES
            references = self._remember_references(digest, document)
        return references

    def _remember_references(self, digest: str, document: Document) -> _ManifestReferences:
        subject = document.subject.digest if document.subject else None
        has_room = self._reference_count + len(document.manifests) <= limits.MAX_CACHED_INDEX_ENTRIES
        manifests = {child.digest: child.media_type for child in document.manifests}
        references = _ManifestReferences(subject, manifests) if subject or manifests else _NO_REFERENCES
        self._reference_count += len(manifests) if has_room else 0
        self._references[digest] = references if has_room else _ManifestReferences(subject, None)
        return references

    def _read(self, digest: str) -> bytes:
        """Read and verify a blob that may be a manifest.

        Raises:
            NotFoundError: it does not exist, or is too large to be a manifest.
            IntegrityError: it is damaged.
        """
        size = self._storage.blob_size(digest)
        if size is None:
            self._storage.check_not_corrupt(digest)
        if size is None or size > limits.MAX_MANIFEST:
            msg = f"no manifest {digest}"
            raise NotFoundError(msg)
        return self._storage.read_blob(Descriptor("application/octet-stream", digest, size))


def _with_name(entry: Descriptor, name: str, tag: str) -> Descriptor:
    """Return a named entry.

    With a tag of cosign's the entry has a subject, so that other tools do not take it for an image.
    """
    subject = tagged_subject(tag)
    annotations = {FULL_NAME: name, REF_NAME: tag, **({SUBJECT: subject} if subject else {})}
    return replace(entry, annotations=annotations)


def _without_name(entry: Descriptor, document: Document) -> Descriptor:
    """Return an entry without a tag; a referrer's has its subject, so that other tools do not take it for an image."""
    subject = document.subject
    return entry if subject is None else replace(entry, annotations={SUBJECT: subject.digest})


def _read_declared_type(raw: bytes) -> str | None:
    """Return the media type that a document states, if it is one of a manifest or an index."""
    try:
        media_type = parse_outline(raw, "the manifest").get("mediaType")
    except ArchiveError:
        return None
    return media_type if isinstance(media_type, str) and media_type in _DOCUMENT_TYPES else None


def _guess_media_type(raw: bytes) -> str | None:
    """Guess the media type of a blob that nothing refers to and that states none; None if it is not a manifest."""
    try:
        if parse_outline(raw, "the manifest").get("schemaVersion") != 2:
            return None
        guessed = guess_media_type(raw, "the manifest")
    except ArchiveError:
        return None
    return guessed if guessed in _DOCUMENT_TYPES else None
