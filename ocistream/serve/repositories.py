"""What a layout holds, seen as repositories: tags, manifests, referrers; and how pushing and deleting change it.

A layout is flat, so every blob and every manifest of it is visible in every repository by its digest; only tags
belong to one. Other processes may change the layout at any time: `index.json` is looked at for each request, and
changed under its lock. HTTP is not known here, but for the refusals.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import ArchiveError, NotFoundError, OcistreamError, UnsupportedError
from ocistream.layout.index import FULL_NAME, REF_NAME, SUBJECT, called
from ocistream.oci.descriptor import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from ocistream.oci.documents import Document, media_type_of, outline, parse_document
from ocistream.oci.graph import children_of
from ocistream.oci.reference import is_digest, is_tag
from ocistream.oci.referrers import listed, tagged_subject
from ocistream.serve.errors import RefusedError
from ocistream.serve.incomplete_indexes import Exported
from ocistream.serve.name_notes import name_notes, unnamed, unnamed_note
from ocistream.serve.names import full_name, spellings
from ocistream.streams.chunks import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocistream.oci.descriptor import Manifest
    from ocistream.serve.storage import Storage

__all__ = ["Pushed", "Repositories", "StoredManifest"]

#: Manifests without a name that are read at the start, to tell images from referrers.
_MOST_READ: Final = 100
_DOCUMENT_TYPES: Final = INDEX_TYPES | MANIFEST_TYPES


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest or index as it is served: its exact bytes, and the media type to serve them as."""

    media_type: str
    digest: str
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a pushed manifest: its digest, and that of its subject if it has one."""

    digest: str
    subject: str | None


@dataclass(frozen=True, slots=True)
class _Links:
    """Where a manifest points: its subject, and the media type behind each manifest that it lists.

    `manifests` is None where those are too many to be remembered.
    """

    subject: str | None = None
    manifests: Mapping[str, str] | None = field(default_factory=dict)


@dataclass(slots=True)
class _Snapshot:
    """What one state of `index.json` says. `reached` is found out when it is first asked for."""

    key: tuple[int, ...]
    entries: list[Descriptor]
    images: dict[str, dict[str, Descriptor]]
    listed: list[str]
    reached: dict[str, str] | None = None


class Repositories:
    """The repositories of one layout. Safe for several threads."""

    def __init__(self, storage: Storage) -> None:
        """Serve from `storage`; it is read when something is asked for."""
        self._storage = storage
        self._fallback = storage.repository
        self._lock = threading.Lock()
        #: Held by each thread that reads and parses manifests beside the layout's lock: they take much memory.
        self._parsing = threading.BoundedSemaphore(limits.MAX_PARSED)
        self._snapshot: _Snapshot | None = None
        self._exported = Exported(storage)
        # By digest, so what is in it stays true; what nothing points to any more is dropped, and what is too much is
        # read again whenever it is wanted.
        self._links: dict[str, _Links] = {}
        self._digests: dict[str, str] = {}
        self._linked = 0

    def names(self) -> list[str]:
        """Give the repositories that have tags, each by the first of its spellings, sorted."""
        return self._now().listed

    def notes(self) -> list[str]:
        """Return what the operator should know of the images and the names under which they are served.

        Raises:
            OcistreamError: the index, or a manifest without a name, cannot be read.
        """
        entries = self._now().entries
        notes = [*self._storage.notes(), *name_notes(entries, self._fallback)]
        nameless = unnamed(entries)
        what = "images or referrers"
        if len(nameless) <= _MOST_READ:
            # A signature or an SBOM needs no name.
            nameless = [entry for entry in nameless if self._links_of(entry.digest, entry.media_type).subject is None]
            what = "images" if len(nameless) > 1 else "image"
        if nameless:
            notes.append(unnamed_note([entry.digest for entry in nameless], what))
        return notes

    def tags(self, repository: str) -> list[str]:
        """Give a repository's tags in ASCII order.

        Raises:
            RefusedError: it has none (404).
        """
        images = self._now().images.get(repository)
        if images is None:
            raise RefusedError(404, "NAME_UNKNOWN", f"there is no repository {repository}")
        return sorted(images)

    def manifest(self, repository: str, reference: str) -> StoredManifest:
        """Give the manifest that a tag or a digest means.

        Raises:
            RefusedError: there is none (404).
            OcistreamError: it is there and cannot be read, or is damaged.
        """
        with self._parsing:
            return self._manifest(repository, reference)

    def _manifest(self, repository: str, reference: str) -> StoredManifest:
        unknown = RefusedError(404, "MANIFEST_UNKNOWN", f"there is no manifest {reference} in {repository}")
        try:
            if is_digest(reference):
                if (made := self._exported.made(reference)) is not None:
                    return StoredManifest(made.descriptor.media_type, reference, made.raw)
                raw = self._read(reference)
                media_type = _own_type(raw) or self._reached(self._now()).get(reference) or _guess(raw)
                if media_type is None:
                    raise unknown
                return StoredManifest(media_type, reference, raw)
            entry = self._now().images.get(repository, {}).get(reference)
            if entry is None:
                raise unknown
            if entry.size > limits.MAX_MANIFEST:
                msg = f"{reference} in {repository} is larger than {limits.MAX_MANIFEST} bytes"
                raise ArchiveError(msg)
            if entry.is_index and (instead := self.instead_of(entry)) is not None:
                return StoredManifest(instead.descriptor.media_type, instead.descriptor.digest, instead.raw)
            raw = self._storage.read_blob(entry)
            return StoredManifest(_own_type(raw) or entry.media_type, entry.digest, raw)
        except NotFoundError as error:
            raise unknown from error

    def instead_of(self, index: Descriptor) -> Manifest | None:
        """Return what is served by tag in place of an index with platforms that are not there; None for any other."""
        return self._exported.instead_of(index)

    def push(
        self,
        repository: str,
        reference: str,
        raw: bytes,
        media_type: str,
        hosts: tuple[str, ...],
        tags: Sequence[str] = (),
    ) -> Pushed:
        """Store a manifest under a tag, or under a digest and these `tags`, which then stand for that digest.

        `media_type` is what the client calls it, "" where it does not say. `hosts` are tried in turn to make its
        full name.

        Raises:
            RefusedError: it is malformed, not what it is called, or lacks something that it refers to (400).
            LocalDiskError: it cannot be written.
        """
        tags = tags if is_digest(reference) else (reference,)
        if not all(map(is_tag, tags)):
            raise RefusedError(400, "MANIFEST_INVALID", "what is neither a tag nor a digest cannot be pushed to")
        digest = digest_of(raw, reference.partition(":")[0] if is_digest(reference) else "sha256")
        if is_digest(reference) and reference != digest:
            raise RefusedError(400, "DIGEST_INVALID", "the manifest has another digest", details=[{"digest": digest}])
        try:
            with self._parsing:
                entry = Descriptor(media_type or media_type_of(raw, "the manifest"), digest, len(raw))
                document = parse_document(entry, raw)
        except (ArchiveError, UnsupportedError) as error:
            raise RefusedError(400, "MANIFEST_INVALID", error.what) from error
        if entry.media_type not in _DOCUMENT_TYPES:
            raise RefusedError(400, "MANIFEST_INVALID", "the media type is none of a manifest or an index")
        named = {tag: _named(entry, full_name(hosts, repository, tag), tag) for tag in tags}

        def store() -> None:
            self._check_children(document)
            if not self._storage.holds(entry):
                self._storage.write_blob(digest, [raw])

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            # Again under the lock, which `gc` has too: blobs may have been deleted since.
            store()
            for name, new in (named or {reference: _unnamed(entry, document)}).items():
                entries = self._with(entries, new, repository, name)
            return entries

        # Before the change is queued: threads write their manifests side by side, the changes are made one by one.
        store()
        try:
            self._storage.change_index(change)
        except UnsupportedError as error:
            raise RefusedError(400, "MANIFEST_INVALID", "the registry's index.json has no room for more") from error
        return Pushed(digest, document.subject.digest if document.subject else None)

    def delete(self, repository: str, reference: str) -> None:
        """Take a tag away; or, by digest, a manifest and all tags of `repository` that mean it.

        The manifest's own blob goes too, unless another image needs it; other blobs stay.

        Raises:
            RefusedError: it is not there (404), or only others have it, so nothing can be taken away (405).
        """
        if not is_digest(reference):
            self._delete_tag(repository, reference)
            return
        self.manifest(repository, reference)
        self._storage.change_index(
            lambda entries: self._without(entries, repository, reference),
            lambda entries: self._delete_unneeded(entries, reference),
        )

    def referrers(self, subject: str) -> list[dict[str, Any]]:
        """Give the descriptors of all manifests whose subject is `subject` (distribution-spec, "Listing Referrers").

        They are in the order of `index.json`.
        """
        with self._parsing:
            return self._referrers(subject)

    def _referrers(self, subject: str) -> list[dict[str, Any]]:
        found = []
        for digest, media_type in self._reached(self._now()).items():
            if self._links_of(digest, media_type, whole=False).subject == subject:
                # Gone since: another process may delete.
                with contextlib.suppress(NotFoundError):
                    raw = self._read(digest)
                    descriptor = Descriptor(media_type, digest, len(raw))
                    found.append(listed(descriptor, parse_document(descriptor, raw)).to_json())
        return found

    def _check_children(self, document: Document) -> None:
        missing: dict[str, None] = {}
        for child in children_of(document):
            if child.is_foreign:
                continue
            size = self._storage.blob_size(child.digest)
            if size is not None and size != child.size and not self._storage.is_right(child.digest):
                size = None
            if size is None:
                missing[child.digest] = None
            elif size != child.size:
                detail = {"digest": child.digest, "size": size}
                raise RefusedError(400, "MANIFEST_INVALID", "a size is wrong", details=[detail])
        if missing:
            details = [{"digest": digest} for digest in missing]
            raise RefusedError(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", details=details)

    def _with(
        self, entries: Sequence[Descriptor], new: Descriptor, repository: str, reference: str
    ) -> list[Descriptor]:
        """Add a pushed manifest to the entries.

        One without a tag has an entry too, since it may be a referrer or an image that is known by its digest; but
        not if another entry leads to it, as is the case for the images of an index once that is pushed.
        """
        below = self._reach([new])
        kept = [
            entry
            for entry in entries
            if (repository, reference) not in spellings(entry, self._fallback)
            and (entry.digest not in below or called(entry))
        ]
        if called(new) is None and new.digest in self._reach(kept):
            return kept
        return [*kept, new]

    def _delete_tag(self, repository: str, tag: str) -> None:
        def change(entries: list[Descriptor]) -> list[Descriptor]:
            kept = [entry for entry in entries if (repository, tag) not in spellings(entry, self._fallback)]
            if len(kept) == len(entries):
                raise RefusedError(404, "MANIFEST_UNKNOWN", f"there is no tag {tag} in {repository}")
            return kept

        self._storage.change_index(change)

    def _without(self, entries: Sequence[Descriptor], repository: str, digest: str) -> list[Descriptor]:
        kept = [entry for entry in entries if entry.digest != digest or not self._belongs(entry, repository)]
        if len(kept) == len(entries) and digest in self._reach(kept):
            what = "an index, or a tag of another repository, still needs this manifest: delete that first"
            raise RefusedError(405, "UNSUPPORTED", what, headers={"Allow": "GET, HEAD, PUT"})
        return kept

    def _delete_unneeded(self, entries: Sequence[Descriptor], digest: str) -> None:
        """Delete the blob of a manifest that no entry leads to."""
        if digest not in self._reach(entries):
            with contextlib.suppress(NotFoundError):
                self._storage.delete_blob(digest)

    def _belongs(self, entry: Descriptor, repository: str) -> bool:
        spelled = spellings(entry, self._fallback)
        return not spelled or any(path == repository for path, _ in spelled)

    def _now(self) -> _Snapshot:
        """Give what `index.json` says at present; it is parsed only if it is another file than the last time."""
        with self._lock:
            key = self._storage.state()
            if self._snapshot is None or self._snapshot.key != key:
                self._snapshot = self._take(key)
            return self._snapshot

    def _take(self, key: tuple[int, ...]) -> _Snapshot:
        entries = self._storage.entries()
        images: dict[str, dict[str, Descriptor]] = {}
        listed: set[str] = set()
        for entry in entries:
            spelled = spellings(entry, self._fallback)
            listed.update(path for path, _ in spelled[:1])
            for path, tag in spelled:
                # Where two entries are served alike, the later one was added later.
                images.setdefault(path, {})[tag] = entry
        return _Snapshot(key, entries, images, sorted(listed))

    def _reached(self, snapshot: _Snapshot) -> dict[str, str]:
        if snapshot.reached is None:
            snapshot.reached = self._reach(snapshot.entries)
            self._links = {digest: self._links[digest] for digest in snapshot.reached if digest in self._links}
            self._linked = sum(len(links.manifests or ()) for links in self._links.values())
            self._digests = {known: known for links in self._links.values() for known in links.manifests or ()}
        return snapshot.reached

    def _reach(self, entries: Iterable[Descriptor]) -> dict[str, str]:
        """Give the digest and media type of every manifest that the entries lead to, themselves first.

        Of what they only lead to, what is there: an index may list any number of others.
        """
        found = {entry.digest: entry.media_type for entry in entries}
        todo = list(found.items())
        for digest, media_type in todo:
            for child in (self._links_of(digest, media_type).manifests or {}).items():
                if child[0] not in found and (child[0] in self._links or self._storage.blob_size(child[0]) is not None):
                    found[child[0]] = child[1]
                    todo.append(child)
        return found

    def _links_of(self, digest: str, media_type: str, *, whole: bool = True) -> _Links:
        """Say where a manifest points; without `whole` the manifests that it lists may be None."""
        links = self._links.get(digest)
        if links is None or (whole and links.manifests is None):
            try:
                raw = self._read(digest) if media_type in _DOCUMENT_TYPES else b"{}"
                document = parse_document(Descriptor(media_type, digest, len(raw)), raw)
            except OcistreamError:
                # Not there, malformed or damaged: it leads nowhere. That is no reason not to serve the others.
                return _Links()
            subject = document.subject.digest if document.subject else None
            has_room = self._linked + len(document.manifests) <= limits.MAX_LINKED
            # Many indexes list the same: one object serves for each digest. (Not by `sys.intern`, see `shared_word`.)
            known = self._digests if has_room else {}
            manifests = {known.setdefault(child.digest, child.digest): child.media_type for child in document.manifests}
            links = _Links(subject, manifests)
            self._linked += len(manifests) if has_room else 0
            self._links[digest] = links if has_room else _Links(subject, None)
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


def _named(entry: Descriptor, name: str, tag: str) -> Descriptor:
    """Name an entry; under a tag of cosign's it is not an image to other tools that read the layout."""
    subject = tagged_subject(tag)
    annotations = {FULL_NAME: name, REF_NAME: tag, **({SUBJECT: subject} if subject else {})}
    return replace(entry, annotations=annotations)


def _unnamed(entry: Descriptor, document: Document) -> Descriptor:
    """Return the entry of a manifest without a tag; a referrer is not an image to other tools that read the layout."""
    subject = document.subject
    return entry if subject is None else replace(entry, annotations={SUBJECT: subject.digest})


def _own_type(raw: bytes) -> str | None:
    """Give the media type that a document claims, if it is one that is served."""
    try:
        own = outline(raw, "the manifest").get("mediaType")
    except ArchiveError:
        return None
    return own if isinstance(own, str) and own in _DOCUMENT_TYPES else None


def _guess(raw: bytes) -> str | None:
    """Tell a manifest to which nothing leads, and which does not say what it is, from a blob such as a config."""
    try:
        if outline(raw, "the manifest").get("schemaVersion") != 2:
            return None
        guessed = media_type_of(raw, "the manifest")
    except ArchiveError:
        return None
    return guessed if guessed in _DOCUMENT_TYPES else None
