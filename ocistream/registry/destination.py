"""A registry as a destination: which repository needs which blob, and the order in which manifests and tags appear.

For a large image that already exists, only a sample of its blobs is checked (distribution-spec,
MANIFEST_BLOB_UNKNOWN).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from ocistream import limits, notices
from ocistream.errors import IntegrityError, NetworkError, PartialBlobLostError, RegistryError, UnsupportedError
from ocistream.oci.descriptor import compute_digest
from ocistream.oci.graph import children_of
from ocistream.oci.referrers import referrer_descriptor
from ocistream.registry.blob_push import BlobPusher
from ocistream.registry.referrers import CosignTags, add_to_fallback_index
from ocistream.registry.repository import Repository, is_canonical_digest
from ocistream.registry.upload_strategy import UploadStrategy
from ocistream.streams.synchronization import Budget
from ocistream.streams.workers import DEFAULT_JOBS, run_each
from ocistream.transfer.interfaces import Access, Traits

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.http.client import HttpClient
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.oci.reference import Reference
    from ocistream.registry.upload_record import UploadRecords
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import NewBlob, Source, VerifiedBlob

#: Blobs of one image that are checked if its manifest exists. Few images have more; the requests take about 50 ms.
_MAX_BLOBS_CHECKED: Final = 24
#: After this many missing blobs in a row, a repository is not asked for small ones.
_MAX_MISSING_BLOBS: Final = 8
#: Seconds for the deletion of unused sessions in all repositories together, so that the run does not end late.
_CLEAN_UP_SECONDS: Final = 5.0


@dataclass(slots=True)
class _LargeImage:
    """An image with more than `_MAX_BLOBS_CHECKED` blobs that a repository may have.

    `blobs` are the digests of its blobs, `sample` those that are asked for. If the repository lacks one of these, or
    the manifest, the image `is_incomplete`.
    """

    pusher: BlobPusher
    digest: str
    blobs: frozenset[str]
    sample: Sequence[Descriptor]
    is_incomplete: bool = False


def _sample_blobs(blobs: Sequence[Descriptor]) -> list[Descriptor]:
    """Return the config, the first and the last layer, and evenly spaced layers between them."""
    config, *layers = blobs
    steps = _MAX_BLOBS_CHECKED - 2
    return [config, *(layers[step * (len(layers) - 1) // steps] for step in range(steps + 1))]


class RegistryDestination:
    """Write images to repositories of one registry, each root under the reference that `target` returns for it.

    `early_target` receives blobs that arrive before the graph is known; without it they are refused. `mount_from` are
    repositories of the registry that may have blobs already. `mount_candidates` returns repositories that have a given
    digest. `strategy` chooses upload methods. `records` stores unfinished uploads, for a later run to resume.
    """

    def __init__(  # noqa: PLR0913 - all but two are options, given by name
        self,
        client: HttpClient,
        target: Callable[[Root], Reference],
        *,
        early_target: Reference | None,
        mount_from: Sequence[str] = (),
        mount_candidates: Callable[[str], Sequence[str]] = lambda _digest: (),
        strategy: UploadStrategy | None = None,
        records: UploadRecords | None = None,
        jobs: int = DEFAULT_JOBS,
        cancelled: threading.Event | None = None,
    ) -> None:
        """Take the target of each root, and the repositories to mount from. Send no request.

        `jobs` requests ask for existing blobs at the same time. `cancelled` stops them; the default is the client's.
        """
        self.traits = Traits(
            concurrent=True,
            keeps_blobs=True,
            early_refusal=_early_refusal if early_target is None else None,
            accepts_parts=True,
            begins_without_writing=True,
            buffer_size=limits.MIB,
        )
        self._jobs = jobs
        self._cancelled = cancelled or client.cancelled
        self._strategy = strategy or UploadStrategy()
        self._records = records
        self._mount_from = tuple(mount_from)
        self._mount_candidates = mount_candidates
        self._client = client
        self._target = target
        self._early_target = early_target
        self._pushers: dict[str, BlobPusher] = {}
        #: For sending bytes of a pipe again. The blobs that move at the same time share it.
        self._replay_memory = Budget(limits.UPLOAD_MEMORY)
        self._cosign_tags = CosignTags(target, lambda reference: self._pusher(reference).repository)
        #: Digests that an archive omits, and the repositories that its annotation names for them.
        self._omitted: Mapping[str, OmissionReason] = {}
        #: Digest -> the repositories that need it.
        self._pushers_by_digest: dict[str, list[BlobPusher]] = {}
        #: Digests of manifests. A registry keeps them apart from blobs.
        self._manifests: set[str] = set()
        #: Digest -> bytes of an unfinished blob that this run has sent, or found.
        self._partial_sizes: dict[str, int] = {}
        #: (Repository, digest) -> a large image that the repository may have; None if that was checked.
        self._large_images: dict[tuple[str, str], _LargeImage | None] = {}

    def expect(self, graph: Graph) -> Graph:
        """Compute which repository needs which digest, before digests of recompressed images are known.

        Return the graph without referrers whose cosign tag has other content at the destination.
        """
        self._assign_digests(graph)
        return self._cosign_tags.skip_conflicting_referrers(graph) if graph.referrers else graph

    def begin(self, graph: Graph) -> None:
        """Compute which repository needs which digest.

        Raises:
            IntegrityError: the destination names a digest, and the image has another one.
        """
        for root in graph.roots:
            reference = self._target(root)
            if reference.digest and reference.digest != root.descriptor.digest:
                msg = f"the image is {root.descriptor.digest}, not {reference.digest} as in the name {reference.name}"
                is_narrowed_index = any(index.digest == reference.digest for index in graph.incomplete_indexes)
                hint = "correct the digest, or push to a tag"
                if is_narrowed_index:
                    hint = "the source has only some platforms of this index: omit the digest"
                raise IntegrityError(msg, hint=hint)
        self._assign_digests(graph)

    def _assign_digests(self, graph: Graph) -> None:
        """Note for each repository which digests of the graph it must have."""
        self._omitted = graph.omitted_from_source
        self._manifests |= {manifest.descriptor.digest for manifest in graph.manifests}
        self._manifests |= {manifest.digest for manifest in graph.absent}
        # A manifest may be a layer of another one. The registry must have it as a blob then.
        self._manifests -= {blob.digest for blob in graph.blobs}
        # Once for each repository, not for each root: an archive may have thousands of images.
        for pusher, digests in self._reachable_by_repository(graph).items():
            for digest in digests:
                pushers = self._pushers_by_digest.setdefault(digest, [])
                if pusher not in pushers:
                    pushers.append(pusher)
            self._add_large_images(pusher, graph, digests)

    def _reachable_by_repository(self, graph: Graph) -> dict[BlobPusher, set[str]]:
        """Return the digests that each repository must have."""
        digests: dict[BlobPusher, set[str]] = {}
        for root in graph.roots:
            digests.setdefault(self._pusher(self._target(root)), set()).update(graph.reachable(root))
        return digests

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:
        """Return the digests of the blobs and manifests that every repository has that needs them.

        With `quick`, a repository that lacks several blobs in a row is not asked for small ones: asking for one takes
        as long as a part of its upload.
        """
        found: set[str] = set()
        self._check_large_images(blobs)

        def ask(blob: Descriptor) -> None:
            pushers = self._pushers_needing(blob.digest)
            if blob.digest in self._manifests:
                is_stored = all(pusher.repository.has_manifest(blob.digest) for pusher in pushers)
            else:
                is_optional = quick and blob.size <= limits.MAX_RESENT_BLOB
                for pusher in pushers:
                    if not is_optional or pusher.missing_count < _MAX_MISSING_BLOBS:
                        pusher.has_blob(blob)
                is_stored = not self._pushers_without(blob)
            if is_stored:
                found.add(blob.digest)

        # A failure is that of this destination: if there are several, the others continue.
        run_each(ask, blobs, jobs=self._jobs, cancelled=self._cancelled, sets_cancelled=False)
        return found

    def partial_size(self, blob: Descriptor, /) -> int:
        """Return how many bytes of a blob its unfinished upload has, if one repository lacks it.

        Parts are sent only once, so several repositories cannot get them.
        """
        if blob.digest not in self._partial_sizes:
            pushers = self._pushers_without(blob)
            size = pushers[0].partial_size(blob.digest) if len(pushers) == 1 else 0
            self._partial_sizes[blob.digest] = size
        return self._partial_sizes[blob.digest]

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Mount a blob from another repository of the same registry; return whether all repositories have it now."""
        return all(
            pusher.mount(descriptor, self._list_mount_names(descriptor, source, pusher))
            for pusher in self._pushers_without(descriptor)
        )

    def can_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Return whether a blob could be mounted. The other repositories are asked by HEAD, which opens no session."""
        return all(
            pusher.can_mount(descriptor, self._list_mount_names(descriptor, source, pusher))
            for pusher in self._pushers_without(descriptor)
        )

    def _list_mount_names(self, descriptor: Descriptor, source: Source, pusher: BlobPusher) -> Sequence[str]:
        """Return the names of the repositories that a blob might be mounted from, the likeliest first.

        The order is: the source repository, repositories that an archive names for an omitted blob, `mount_candidates`,
        `mount_from`.
        """
        from ocistream.registry.source import RegistrySource

        location = source.find_repository(descriptor.digest) if isinstance(source, RegistrySource) else None
        is_same_registry = location is not None and location[0] == pusher.repository.endpoint.registry
        reason = self._omitted.get(descriptor.digest)
        names = (
            *([location[1]] if location and is_same_registry else ()),
            *(reason.repositories if reason else ()),
            *self._mount_candidates(descriptor.digest),
            *self._mount_from,
        )
        return [name for name in dict.fromkeys(names) if name != pusher.repository.name]

    def write(self, blob: VerifiedBlob) -> int:
        """Upload a blob to the first repository that needs it, and mount it from there into the others.

        A part of a blob is kept in an open upload; the registry verifies the complete blob. That needs exactly one
        repository that lacks the blob: the part can be read only once.

        Raises:
            PartialBlobLostError: the registry no longer has the bytes before the rest that the source sends.
        """
        descriptor = blob.descriptor
        pushers = self._pushers_without(descriptor)
        if not pushers:
            # Another thread may have recompressed a layer to the same blob after `stored` did not list it.
            return 0
        if blob.range is None:
            return self._write_to_all(blob, pushers)
        stored = pushers[0].upload(blob).stored if len(pushers) == 1 else 0
        self._partial_sizes[descriptor.digest] = stored
        if blob.range_descriptor is None and stored != descriptor.size:
            msg = f"{descriptor.digest}: the registry has lost its first {blob.start} bytes"
            raise PartialBlobLostError(msg, hint="re-run the command to send the complete blob")
        return 0

    def _write_to_all(self, blob: VerifiedBlob | NewBlob, pushers: Sequence[BlobPusher]) -> int:
        """Upload a blob to the first repository, and mount it from there into the others, or upload it to them too.

        Return how many bytes the first repository had from an earlier run.
        """
        first, *others = pushers
        resumed_size = first.upload(blob).resumed
        descriptor = blob.descriptor
        for pusher in others:
            if pusher.mount_from(descriptor, first.repository.name):
                continue
            if blob.access is not Access.REPEATABLE:
                problem = "also needs this blob, but the blob can neither be mounted nor read again"
                msg = f"{descriptor.digest}: {pusher.repository.name} {problem}"
                hint = "push from a file instead of a pipe or a compressed file, or image by image"
                raise NetworkError(msg, hint=hint)
            pusher.upload(blob)
        return resumed_size

    def discard(self) -> None:
        """Do nothing: an upload of a wrong blob is deleted when it is found to be wrong."""

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Upload a blob whose digest is known only at its end, and mount it into other repositories that need it."""
        self._write_to_all(blob, self._pushers_needing(blob.replaces.digest if blob.replaces else ""))
        return blob.descriptor

    def read(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Download a blob that was written early; the bytes are not verified."""
        return self._pusher(self._early_reference()).repository.download(descriptor).chunks()

    def commit(self, graph: Graph) -> None:
        """Push the manifests, children first, then their referrers, and move the tags last.

        If the registry keeps no list of referrers, they are added to the index that clients keep under a tag. Such
        indexes are never copied, only updated, with all referrers of one subject in one change.

        Raises:
            UnsupportedError: the registry does not accept a manifest's digest algorithm; no tag was moved.
            RegistryError: the registry refused a manifest or a referrer; the tag of its image was not moved.
        """
        children = {child.digest for document in graph.documents.values() for child in document.manifests}
        # A push by tag also stores the manifest under its digest. A child is pushed by digest first, or its parent is
        # refused. So is a manifest whose digest algorithm may not be supported: that must fail before the tag moves.
        tagged = {
            (reference.repository, digest)
            for root in graph.roots
            if (reference := self._target(root)).tag
            and (digest := root.descriptor.digest) not in children
            and is_canonical_digest(digest)
            # Referrers are pushed before the tag, and their subject before them.
            and digest not in graph.referrers
        }
        self._push_manifests(graph, tagged)
        by_digest = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        for tag_reference, referrer in self._cosign_tags.find_tagged_referrers(graph).items():
            self._push_tag(tag_reference, by_digest[referrer.descriptor.digest], is_signature=True)
        for root in graph.roots:
            reference = self._target(root)
            if reference.tag:
                self._push_tag(reference, by_digest[root.descriptor.digest])
        for pusher, digests in self._reachable_by_repository(graph).items():
            # Only sessions of blobs that were written: other images, and other runs without --compress, may still
            # resume their uploads.
            pusher.delete_abandoned_sessions(digests)

    def close(self) -> None:
        """Delete upload sessions that a registry opened instead of a mount and that were not used."""
        deadline = monotonic() + _CLEAN_UP_SECONDS
        for pusher in self._pushers.values():
            pusher.close(deadline)

    def _push_manifests(self, graph: Graph, tagged: set[tuple[str, str]]) -> None:
        """Push manifests by digest, except those in `tagged`, and list referrers whose registry does not list them."""
        unlisted: dict[tuple[Repository, str], list[Descriptor]] = {}
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            subject = graph.documents[digest].subject
            for pusher in self._pushers_by_digest[digest]:
                repository = pusher.repository
                if subject is not None:
                    # Push even an existing manifest: only the answer (OCI-Subject) tells whether the registry lists
                    # it. This also repairs a push that ended before the list was written.
                    if not _push_referrer(repository, manifest):
                        referrer = referrer_descriptor(manifest.descriptor, graph.documents[digest])
                        unlisted.setdefault((repository, subject.digest), []).append(referrer)
                elif (repository.name, digest) not in tagged and repository.find_digest(digest) is None:
                    repository.push_manifest(digest, manifest)
        for (repository, digest), referrers in unlisted.items():
            add_to_fallback_index(repository, digest, referrers)

    def _push_tag(self, reference: Reference, manifest: Manifest, *, is_signature: bool = False) -> None:
        """Move a tag, unless it already refers to the manifest: registries with immutable tags refuse a second write.

        The registry chooses the digest of a manifest that is pushed by tag. If it uses another algorithm, the tag still
        returns the same bytes, and `commit` has stored them under their own digest as well. A registry that can set a
        tag together with a digest keeps the digest.

        Raises:
            NetworkError: another client wrote the tag in the meantime, and its content must not be replaced.
        """
        repository = self._pusher(reference).repository
        tag, digest = reference.tag or "", manifest.descriptor.digest
        own_digests = {digest, compute_digest(manifest.raw)}
        existing = repository.find_digest(tag)
        if existing and existing not in own_digests:
            if is_signature and not self._cosign_tags.can_replace(reference, existing):
                msg = f"{reference.name}: another client changed this tag during the copy"
                raise NetworkError(msg, hint="re-run the command to keep both versions, or use --no-referrers")
            notices.notify(f"{reference.name}: replacing {existing}", level=1)
        if existing == digest:
            return
        if not is_canonical_digest(digest) and repository.push_manifest_with_tag(tag, manifest):
            return
        if existing not in own_digests:
            repository.push_manifest(tag, manifest)

    def _add_large_images(self, pusher: BlobPusher, graph: Graph, needed: set[str]) -> None:
        """Add the large images with digests in `needed`, of which not every blob is asked for."""
        graph_blobs = {blob.digest for blob in graph.blobs}
        for manifest, document in graph.images():
            key = pusher.repository.name, manifest.descriptor.digest
            blobs = {blob.digest: blob for blob in children_of(document) if blob.digest in graph_blobs}
            if key[1] in needed and key not in self._large_images and len(blobs) > _MAX_BLOBS_CHECKED:
                sample = _sample_blobs([*blobs.values()])
                self._large_images[key] = _LargeImage(pusher, key[1], frozenset(blobs), sample)

    def _check_large_images(self, blobs: Sequence[Descriptor]) -> None:
        """Find the large images with these blobs that exist: their other blobs are not asked for.

        An existing manifest does not prove that its blobs exist: a faulty garbage collection may have deleted some, and
        a push must repair that. So a sample of the blobs is checked. If one of them is missing, all others are asked
        for too. A lost layer outside the sample is not noticed; delete the manifest and push again.
        """
        digests = {blob.digest for blob in blobs}
        images = {
            key: image for key, image in self._large_images.items() if image and not digests.isdisjoint(image.blobs)
        }
        self._large_images.update(dict.fromkeys(images))

        def check(image: _LargeImage, blob: Descriptor | None) -> None:
            # After one failure the blobs are asked for one by one.
            if not image.is_incomplete:
                # The registry must report the same digest for the manifest.
                find_digest = image.pusher.repository.find_digest
                exists = image.pusher.has_blob(blob) if blob else find_digest(image.digest) == image.digest
                if not exists:
                    image.is_incomplete = True

        # None is the manifest.
        checks = [partial(check, image, blob) for image in images.values() for blob in (None, *image.sample)]
        run_each(lambda check: check(), checks, jobs=self._jobs, cancelled=self._cancelled, sets_cancelled=False)
        for image in images.values():
            if not image.is_incomplete:
                for digest in image.blobs:
                    image.pusher.exists.setdefault(digest, True)

    def _pushers_without(self, descriptor: Descriptor) -> list[BlobPusher]:
        """Return the repositories that need a blob and are not known to have it."""
        digest = descriptor.digest
        return [pusher for pusher in self._pushers_needing(digest) if not pusher.exists.get(digest)]

    def _pushers_needing(self, digest: str) -> Sequence[BlobPusher]:
        """Return the repositories that need a blob; before the graph is known, that of early blobs."""
        return self._pushers_by_digest.get(digest) or [self._pusher(self._early_reference())]

    def _early_reference(self) -> Reference:
        if self._early_target is None:
            raise _early_refusal()
        return self._early_target

    def _pusher(self, reference: Reference) -> BlobPusher:
        """Return what pushes to the repository of a reference. The same object serves all references of it."""
        name = reference.repository
        if name not in self._pushers:
            repository = Repository(self._client, reference.registry, name, for_push=True)
            self._pushers[name] = BlobPusher(repository, self._strategy, self._records, self._replay_memory)
        return self._pushers[name]


def _early_refusal() -> UnsupportedError:
    """Return the error for a blob whose repository is not known yet."""
    msg = (
        "this archive lists its images only at its end (as `docker save` does), so --to cannot read it from a pipe or "
        "a compressed file; nothing was sent"
    )
    suggestion = "push one image with `ocistream push -i FILE --image NAME HOST/REPOSITORY:TAG`"
    hint = f"decompress it, or save it to a file and push with -i FILE, or {suggestion}"
    return UnsupportedError(msg, hint=hint)


def _push_referrer(repository: Repository, manifest: Manifest) -> bool:
    """Push a manifest with a subject; return whether the registry now lists it as a referrer.

    If the registry refuses it, the image gets no tag: an image without its signatures would be refused later, by the
    cluster that pulls it.
    """
    try:
        return bool(repository.push_manifest(manifest.descriptor.digest, manifest))
    except RegistryError as error:
        hint = error.hint or "if it refuses referrers, use --no-referrers"
        raise RegistryError(error.message, status=error.status, codes=error.codes, hint=hint) from error
