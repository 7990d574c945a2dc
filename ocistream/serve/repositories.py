"""Repositories over a storage: tags, manifests and referrers; pushing and deleting change `index.json`.

A layout is flat: manifests and blobs are visible in every repository by digest, only tags belong to one.
This module knows nothing of HTTP but error responses.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, OcistreamError, UnsupportedError
from ocistream.layout.index import FULL_NAME, REF_NAME, SUBJECT, entry_name_of
from ocistream.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from ocistream.oci.documents import Document, guess_media_type, parse_document, parse_outline
from ocistream.oci.graph import children_of
from ocistream.oci.reference import is_digest, is_tag
from ocistream.oci.referrers import referrer_descriptor, tagged_subject
from ocistream.serve.errors import RequestRejectedError
from ocistream.serve.image_names import (
    choose_full_name,
    describe_name_conflicts,
    describe_unnamed,
    find_unnamed_entries,
    served_names_of,
)
from ocistream.serve.incomplete_indexes import IncompleteIndexes
from ocistream.streams.chunks import compute_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocistream.oci.descriptor import Manifest
    from ocistream.serve.storage import Storage

__all__ = ["PushResult", "Repositories", "StoredManifest"]

#: Manifests without a name that are read at the start, to tell images from referrers.
_MAX_UNNAMED_READ: Final = 100
_DOCUMENT_TYPES: Final = INDEX_TYPES | MANIFEST_TYPES


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest or index as it is served: its exact bytes, and the media type to serve them as."""

    media_type: str
    digest: str
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PushResult:
    """What became of a pushed manifest: its digest, and that of its subject if it has one."""

    digest: str
    subject: str | None


@dataclass(frozen=True, slots=True)
class _ManifestReferences:
    """Where a manifest points: its subject, and the media type behind each manifest that it lists.

    `manifests` is None where those are too many to be remembered.
    """

    subject: str | None = None
    manifest_types: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(slots=True)
class _Snapshot:
    """What one state of `index.json` says. `reached` is found out when it is first asked for."""

    version: tuple[int, ...]
    entries: list[Descriptor]
    images: dict[str, dict[str, Descriptor]]
    repositories: list[str]
    reachable: dict[str, str] | None = None


class Repositories:
    """The repositories of one layout. Safe for several threads."""

    def __init__(self, storage: Storage) -> None:
        """Serve from `storage`; it is read when something is asked for."""
        self._storage = storage
        self._default_repository = storage.default_repository
        self._lock = threading.Lock()
        #: Held by each thread that reads and parses manifests beside the layout's lock: they take much memory.
        self._parse_slots = threading.BoundedSemaphore(limits.MAX_CONCURRENT_PARSES)
        self._snapshot: _Snapshot | None = None
        self._incomplete_indexes = IncompleteIndexes(storage)
        # By digest, so what is in it stays true; what nothing points to any more is dropped, and what is too much is
        # read again whenever it is wanted.
        self._references: dict[str, _ManifestReferences] = {}
        self._shared_digests: dict[str, str] = {}
        self._reference_count = 0

    def list_repositories(self) -> list[str]:
        """Give the repositories that have tags, each by the first of its spellings, sorted."""
        return self._current_snapshot().repositories

    def operator_notices(self) -> list[str]:
        """Return what the operator should know of the images and the names under which they are served.

        Raises:
            OcistreamError: the index, or a manifest without a name, cannot be read.
        """
        entries = self._current_snapshot().entries
        notes = [*self._storage.operator_notices(), *describe_name_conflicts(entries, self._default_repository)]
        nameless = find_unnamed_entries(entries)
        what = "images or referrers"
        if len(nameless) <= _MAX_UNNAMED_READ:
            # A signature or an SBOM needs no name.
            nameless = [
                entry for entry in nameless if self._read_references(entry.digest, entry.media_type).subject is None
            ]
            what = "images" if len(nameless) > 1 else "image"
        if nameless:
            notes.append(describe_unnamed([entry.digest for entry in nameless], what))
        return notes

    def list_tags(self, repository: str) -> list[str]:
        """Give a repository's tags in ASCII order.

        Raises:
            RefusedError: it has none (404).
        """
        images = self._current_snapshot().images.get(repository)
        if images is None:
            raise RequestRejectedError(404, "NAME_UNKNOWN", f"there is no repository {repository}")
        return sorted(images)

    def find_manifest(self, repository: str, reference: str) -> StoredManifest:
        """Give the manifest that a tag or a digest means.

        Raises:
            RefusedError: there is none (404).
            OcistreamError: it is there and cannot be read, or is damaged.
        """
        with self._parse_slots:
            return self._read_manifest(repository, reference)

    def _read_manifest(self, repository: str, reference: str) -> StoredManifest:
        unknown = RequestRejectedError(404, "MANIFEST_UNKNOWN", f"there is no manifest {reference} in {repository}")
        try:
            if is_digest(reference):
                if (made := self._incomplete_indexes.find_synthesized(reference)) is not None:
                    return StoredManifest(made.descriptor.media_type, reference, made.raw)
                raw = self._read(reference)
                media_type = (
                    _read_declared_type(raw)
                    or self._reachable_from_snapshot(self._current_snapshot()).get(reference)
                    or _guess_media_type(raw)
                )
                if media_type is None:
                    raise unknown
                return StoredManifest(media_type, reference, raw)
            entry = self._current_snapshot().images.get(repository, {}).get(reference)
            if entry is None:
                raise unknown
            if entry.size > limits.MAX_MANIFEST:
                msg = f"{reference} in {repository} is larger than {limits.MAX_MANIFEST} bytes"
                raise ArchiveError(msg)
            if entry.is_index and (instead := self.find_replacement(entry)) is not None:
                return StoredManifest(instead.descriptor.media_type, instead.descriptor.digest, instead.raw)
            raw = self._storage.read_blob(entry)
            return StoredManifest(_read_declared_type(raw) or entry.media_type, entry.digest, raw)
        except NotFoundError as error:
            raise unknown from error

    def find_replacement(self, index: Descriptor) -> Manifest | None:
        """Return what is served by tag in place of an index with platforms that are not there; None for any other."""
        return self._incomplete_indexes.find_replacement(index)

    def push(
        self,
        repository: str,
        reference: str,
        raw: bytes,
        media_type: str,
        hosts: tuple[str, ...],
        tags: Sequence[str] = (),
    ) -> PushResult:
        """Store a manifest under a tag, or under a digest and these `tags`, which then stand for that digest.

        `media_type` is what the client calls it, "" where it does not say. `hosts` are tried in turn to make its
        full name.

        Raises:
            RefusedError: it is malformed, not what it is called, or lacks something that it refers to (400).
            LocalDiskError: it cannot be written.
        """
        tags = tags if is_digest(reference) else (reference,)
        if not all(map(is_tag, tags)):
            raise RequestRejectedError(
                400, "MANIFEST_INVALID", "what is neither a tag nor a digest cannot be pushed to"
            )
        digest = compute_digest(raw, reference.partition(":")[0] if is_digest(reference) else "sha256")
        if is_digest(reference) and reference != digest:
            raise RequestRejectedError(
                400, "DIGEST_INVALID", "the manifest has another digest", details=[{"digest": digest}]
            )
        try:
            with self._parse_slots:
                entry = Descriptor(media_type or guess_media_type(raw, "the manifest"), digest, len(raw))
                document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError) as error:
            raise RequestRejectedError(400, "MANIFEST_INVALID", error.message) from error
        if entry.media_type not in _DOCUMENT_TYPES:
            raise RequestRejectedError(400, "MANIFEST_INVALID", "the media type is none of a manifest or an index")
        named = {tag: _with_name(entry, choose_full_name(hosts, repository, tag), tag) for tag in tags}

        def store() -> None:
            self._check_children(document)
            if not self._storage.has_blob(entry):
                self._storage.write_blob(digest, [raw])

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            # Again under the lock, which `gc` has too: blobs may have been deleted since.
            store()
            for name, new in (named or {reference: _without_name(entry, document)}).items():
                entries = self._add_entry(entries, new, repository, name)
            return entries

        # Before the change is queued: threads write their manifests side by side, the changes are made one by one.
        store()
        try:
            self._storage.change_index(change)
        except UnsupportedError as error:
            raise RequestRejectedError(
                400, "MANIFEST_INVALID", "the registry's index.json has no room for more"
            ) from error
        return PushResult(digest, document.subject.digest if document.subject else None)

    def delete(self, repository: str, reference: str) -> None:
        """Take a tag away; or, by digest, a manifest and all tags of `repository` that mean it.

        The manifest's own blob goes too, unless another image needs it; other blobs stay.

        Raises:
            RefusedError: it is not there (404), or only others have it, so nothing can be taken away (405).
        """
        if not is_digest(reference):
            self._delete_tag(repository, reference)
            return
        self.find_manifest(repository, reference)
        self._storage.change_index(
            lambda entries: self._remove_entries(entries, repository, reference),
            lambda entries: self._delete_unneeded(entries, reference),
        )

    def list_referrers(self, subject: str) -> list[dict[str, Any]]:
        """Give the descriptors of all manifests whose subject is `subject` (distribution-spec, "Listing Referrers").

        They are in the order of `index.json`.
        """
        with self._parse_slots:
            return self._find_referrers(subject)

    def _find_referrers(self, subject: str) -> list[dict[str, Any]]:
        found = []
        for digest, media_type in self._reachable_from_snapshot(self._current_snapshot()).items():
            if self._read_references(digest, media_type, complete=False).subject == subject:
                # Gone since: another process may delete.
                with contextlib.suppress(NotFoundError):
                    raw = self._read(digest)
                    descriptor = Descriptor(media_type, digest, len(raw))
                    found.append(referrer_descriptor(descriptor, parse_document(descriptor, raw)).to_json())
        return found

    def _check_children(self, document: Document) -> None:
        missing: dict[str, None] = {}
        for child in children_of(document):
            if child.is_foreign:
                continue
            size = self._storage.blob_size(child.digest)
            if size is not None and size != child.size and not self._storage.is_intact(child.digest):
                size = None
            if size is None:
                missing[child.digest] = None
            elif size != child.size:
                detail = {"digest": child.digest, "size": size}
                raise RequestRejectedError(400, "MANIFEST_INVALID", "a size is wrong", details=[detail])
        if missing:
            details = [{"digest": digest} for digest in missing]
            raise RequestRejectedError(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", details=details)

    def _add_entry(
        self, entries: Sequence[Descriptor], new: Descriptor, repository: str, reference: str
    ) -> list[Descriptor]:
        """Add a pushed manifest to the entries.

        One without a tag has an entry too, since it may be a referrer or an image that is known by its digest; but
        not if another entry leads to it, as is the case for the images of an index once that is pushed.
        """
        below = self._find_reachable([new])
        kept = [
            entry
            for entry in entries
            if (repository, reference) not in served_names_of(entry, self._default_repository)
            and (entry.digest not in below or entry_name_of(entry))
        ]
        if entry_name_of(new) is None and new.digest in self._find_reachable(kept):
            return kept
        return [*kept, new]

    def _delete_tag(self, repository: str, tag: str) -> None:
        def change(entries: list[Descriptor]) -> list[Descriptor]:
            kept = [
                entry for entry in entries if (repository, tag) not in served_names_of(entry, self._default_repository)
            ]
            if len(kept) == len(entries):
                raise RequestRejectedError(404, "MANIFEST_UNKNOWN", f"there is no tag {tag} in {repository}")
            return kept

        self._storage.change_index(change)

    def _remove_entries(self, entries: Sequence[Descriptor], repository: str, digest: str) -> list[Descriptor]:
        kept = [entry for entry in entries if entry.digest != digest or not self._is_in_repository(entry, repository)]
        if len(kept) == len(entries) and digest in self._find_reachable(kept):
            what = "an index, or a tag of another repository, still needs this manifest: delete that first"
            raise RequestRejectedError(405, "UNSUPPORTED", what, headers={"Allow": "GET, HEAD, PUT"})
        return kept

    def _delete_unneeded(self, entries: Sequence[Descriptor], digest: str) -> None:
        """Delete the blob of a manifest that no entry leads to."""
        if digest not in self._find_reachable(entries):
            with contextlib.suppress(NotFoundError):
                self._storage.delete_blob(digest)

    def _is_in_repository(self, entry: Descriptor, repository: str) -> bool:
        spelled = served_names_of(entry, self._default_repository)
        return not spelled or any(path == repository for path, _ in spelled)

    def _current_snapshot(self) -> _Snapshot:
        """Give what `index.json` says at present; it is parsed only if it is another file than the last time."""
        with self._lock:
            key = self._storage.index_version()
            if self._snapshot is None or self._snapshot.version != key:
                self._snapshot = self._take_snapshot(key)
            return self._snapshot

    def _take_snapshot(self, key: tuple[int, ...]) -> _Snapshot:
        entries = self._storage.list_entries()
        images: dict[str, dict[str, Descriptor]] = {}
        listed: set[str] = set()
        for entry in entries:
            spelled = served_names_of(entry, self._default_repository)
            listed.update(path for path, _ in spelled[:1])
            for path, tag in spelled:
                # Where two entries are served alike, the later one was added later.
                images.setdefault(path, {})[tag] = entry
        return _Snapshot(key, entries, images, sorted(listed))

    def _reachable_from_snapshot(self, snapshot: _Snapshot) -> dict[str, str]:
        if snapshot.reachable is None:
            snapshot.reachable = self._find_reachable(snapshot.entries)
            self._references = {
                digest: self._references[digest] for digest in snapshot.reachable if digest in self._references
            }
            self._reference_count = sum(len(links.manifest_types or ()) for links in self._references.values())
            self._shared_digests = {
                known: known for links in self._references.values() for known in links.manifest_types or ()
            }
        return snapshot.reachable

    def _find_reachable(self, entries: Iterable[Descriptor]) -> dict[str, str]:
        """Give the digest and media type of every manifest that the entries lead to, themselves first.

        Of what they only lead to, what is there: an index may list any number of others.
        """
        found = {entry.digest: entry.media_type for entry in entries}
        todo = list(found.items())
        for digest, media_type in todo:
            for child in (self._read_references(digest, media_type).manifest_types or {}).items():
                if child[0] not in found and (
                    child[0] in self._references or self._storage.blob_size(child[0]) is not None
                ):
                    found[child[0]] = child[1]
                    todo.append(child)
        return found

    def _read_references(self, digest: str, media_type: str, *, complete: bool = True) -> _ManifestReferences:
        """Say where a manifest points; without `whole` the manifests that it lists may be None."""
        links = self._references.get(digest)
        if links is None or (complete and links.manifest_types is None):
            try:
                raw = self._read(digest) if media_type in _DOCUMENT_TYPES else b"{}"
                document = parse_document(Descriptor(media_type, digest, len(raw)), raw)
            except OcistreamError:
                # Not there, malformed or damaged: it leads nowhere. That is no reason not to serve the others.
                return _ManifestReferences()
            subject = document.subject.digest if document.subject else None
            has_room = self._reference_count + len(document.manifests) <= limits.MAX_CACHED_INDEX_ENTRIES
            # Many indexes list the same: one object serves for each digest. (Not by `sys.intern`, see `shared_word`.)
            known = self._shared_digests if has_room else {}
            manifests = {known.setdefault(child.digest, child.digest): child.media_type for child in document.manifests}
            links = _ManifestReferences(subject, manifests)
            self._reference_count += len(manifests) if has_room else 0
            self._references[digest] = links if has_room else _ManifestReferences(subject, None)
        return links

    def _read(self, digest: str) -> bytes:
        """Read what may be a manifest, verified.

        Raises:
            NotFoundError: it is not there, or too large to be one.
            IntegrityError: it is damaged.
        """
        size = self._storage.blob_size(digest)
        if size is None:
            self._storage.check_not_corrupt(digest)
        if size is None or size > limits.MAX_MANIFEST:
            msg = f"there is no manifest {digest}"
            raise NotFoundError(msg)
        return self._storage.read_blob(Descriptor("application/octet-stream", digest, size))


def _with_name(entry: Descriptor, name: str, tag: str) -> Descriptor:
    """Name an entry; under a tag of cosign's it is not an image to other tools that read the layout."""
    subject = tagged_subject(tag)
    annotations = {FULL_NAME: name, REF_NAME: tag, **({SUBJECT: subject} if subject else {})}
    return replace(entry, annotations=annotations)


def _without_name(entry: Descriptor, document: Document) -> Descriptor:
    """Return the entry of a manifest without a tag; a referrer is not an image to other tools that read the layout."""
    subject = document.subject
    return entry if subject is None else replace(entry, annotations={SUBJECT: subject.digest})


def _read_declared_type(raw: bytes) -> str | None:
    """Give the media type that a document claims, if it is one that is served."""
    try:
        own = parse_outline(raw, "the manifest").get("mediaType")
    except ArchiveError:
        return None
    return own if isinstance(own, str) and own in _DOCUMENT_TYPES else None


def _guess_media_type(raw: bytes) -> str | None:
    """Tell a manifest to which nothing leads, and which does not say what it is, from a blob such as a config."""
    try:
        if parse_outline(raw, "the manifest").get("schemaVersion") != 2:
            return None
        guessed = guess_media_type(raw, "the manifest")
    except ArchiveError:
        return None
    return guessed if guessed in _DOCUMENT_TYPES else None
