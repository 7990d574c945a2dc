"""A registry as a destination: which repository needs which blob, and the order in which manifests and tags appear.

For a large image that already exists, only a sample of its blobs is checked (distribution-spec,
MANIFEST_BLOB_UNKNOWN).
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream import limits, notices
from ocistream.errors import IntegrityError, NetworkError, PartialBlobLostError, RegistryError, UnsupportedError
from ocistream.oci.descriptor import compute_digest
from ocistream.oci.graph import children_of
from ocistream.oci.referrers import referrer_descriptor
from ocistream.registry.blob_push import BlobPusher
from ocistream.registry.referrers import CosignTags
from ocistream.registry.repository import Repository, is_canonical_digest
from ocistream.registry.upload_strategy import UploadStrategy
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


class _LargeImage(NamedTuple):
    """The digests of the blobs of an image with more than `_MAX_BLOBS_CHECKED`, and a sample of the blobs."""

    blobs: frozenset[str]
    sample: Sequence[Descriptor]


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
            accepts_early=early_target is not None,
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
        self._cosign_tags = CosignTags(target, lambda reference: self._pusher(reference).repository)
        #: Digests that an archive omits, and the repositories that its annotation names for them.
        self._omitted: Mapping[str, OmissionReason] = {}
        #: Digest -> names of the repositories that need it.
        self._repositories_needing: dict[str, list[str]] = {}
        #: Digests of manifests. A registry keeps them apart from blobs.
        self._manifests: set[str] = set()
        #: (Repository, digest) -> whether the blob exists, from a request or from an upload.
        self._blob_exists: dict[tuple[str, str], bool] = {}
        #: Repository -> number of missing blobs in a row. If two threads count at once, one more blob is asked for.
        self._missing_counts: dict[str, int] = {}
        #: Digest -> bytes of an unfinished blob that this run has sent, or found.
        self._partial_sizes: dict[str, int] = {}
        #: (Repository, digest) -> a large image that the repository may have; None if that was checked.
        self._large_images: dict[tuple[str, str], _LargeImage | None] = {}

    def expect(self, graph: Graph) -> Graph:
        """Compute which repository needs which digest, before digests of recompressed images are known.

        Return the graph without referrers whose cosign tag has other content at the destination.
        """
        self._find_targets(graph)
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
                hint = (
                    "the source has only some platforms of this index: omit the digest"
                    if is_narrowed_index
                    else "correct the digest, or push to a tag"
                )
                raise IntegrityError(msg, hint=hint)
        self._find_targets(graph)

    def _find_targets(self, graph: Graph) -> None:
        self._omitted = graph.omitted_from_source
        self._manifests |= {manifest.descriptor.digest for manifest in graph.manifests}
        self._manifests |= {manifest.digest for manifest in graph.absent}
        # A manifest may be a layer of another one. The registry must have it as a blob then.
        self._manifests -= {blob.digest for blob in graph.blobs}
        # Once for each repository, not for each root: an archive may have thousands of images.
        for repository, digests in self._reachable_by_repository(graph).items():
            for digest in digests:
                names = self._repositories_needing.setdefault(digest, [])
                if repository not in names:
                    names.append(repository)
            self._add_large_images(repository, graph, digests)

    def _reachable_by_repository(self, graph: Graph) -> dict[str, set[str]]:
        """Return the digests that each repository must have, by its name."""
        digests: dict[str, set[str]] = {}
        for root in graph.roots:
            name = self._pusher(self._target(root)).repository.name
            digests.setdefault(name, set()).update(graph.reachable(root))
        return digests

    def stored(self, blobs: Sequence[Descriptor], *, quick: bool = False) -> set[str]:
        """Return the digests of the blobs and manifests that every repository has that needs them.

        With `quick`, a repository that lacks several blobs in a row is not asked for small ones: asking for one takes
        as long as a part of its upload.
        """
        found: set[str] = set()
        self._check_large_images(blobs)

        def ask(blob: Descriptor) -> None:
            if blob.digest in self._manifests:
                names = self._repositories_needing[blob.digest]
                is_stored = all(self._pushers[name].repository.has_manifest(blob.digest) for name in names)
            else:
                self._ask_repositories(blob, quick=quick)
                is_stored = not self._repositories_without(blob)
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
            names = self._repositories_without(blob)
            size = self._pushers[names[0]].partial_size(blob.digest) if len(names) == 1 else 0
            self._partial_sizes[blob.digest] = size
        return self._partial_sizes[blob.digest]

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Mount a blob from another repository of the same registry; return whether all repositories have it now."""
        for name in self._repositories_without(descriptor):
            if not self._pushers[name].mount_from_any(descriptor, self._mount_sources(descriptor, source, name)):
                return False
            self._blob_exists[name, descriptor.digest] = True
        return True

    def can_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Return whether a blob could be mounted. The other repositories are asked by HEAD, which opens no session."""
        return all(
            self._pushers[name].can_mount(descriptor, self._mount_sources(descriptor, source, name))
            for name in self._repositories_without(descriptor)
        )

    def _mount_sources(self, descriptor: Descriptor, source: Source, target_name: str) -> Sequence[str]:
        """Return the repositories that a blob might be mounted from, the likeliest first.

        The order is: the source repository, repositories that an archive names for an omitted blob, --mount-from.
        """
        from ocistream.registry.source import RegistrySource

        location = source.find_repository(descriptor.digest) if isinstance(source, RegistrySource) else None
        source_name = (
            (location[1],)
            if location and location[0] == self._pushers[target_name].repository.endpoint.registry
            else ()
        )
        reason = self._omitted.get(descriptor.digest)
        omitted_from = reason.repositories if reason else ()
        return [
            name
            for name in dict.fromkeys(
                (*source_name, *omitted_from, *self._mount_candidates(descriptor.digest), *self._mount_from)
            )
            if name != target_name
        ]

    def write(self, blob: VerifiedBlob) -> int:
        """Upload a blob to the first repository that needs it, and mount it from there into the others.

        A part of a blob is kept in an open upload; the registry verifies the complete blob. That needs exactly one
        repository that lacks the blob: the part can be read only once.

        Raises:
            PartialBlobLostError: the registry no longer has the bytes before the rest that the source sends.
        """
        descriptor = blob.descriptor
        names = self._repositories_without(descriptor)
        if not names:
            # Another thread may have recompressed a layer to the same blob after `stored` did not list it.
            return 0
        first, *other_names = names
        if blob.range is not None and other_names:
            stored, resumed_size = 0, 0
        else:
            stored, resumed_size = self._pushers[first].upload(blob)
        self._blob_exists[first, descriptor.digest] = stored == descriptor.size
        if blob.range is not None:
            self._partial_sizes[descriptor.digest] = stored
            if blob.range_descriptor is None and stored != descriptor.size:
                msg = f"{descriptor.digest}: the registry has lost its first {blob.start} bytes"
                raise PartialBlobLostError(msg, hint="re-run the command to send the complete blob")
            return 0
        for name in other_names:
            self._mount_or_upload(blob, descriptor, first, name)
        return resumed_size

    def discard(self) -> None:
        """Do nothing: an upload of a wrong blob is deleted when it is found to be wrong."""

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Upload a blob whose digest is known only at its end, and mount it into other repositories that need it."""
        first, *other_names = self._names_needing(blob.replaces.digest if blob.replaces else "")
        self._pushers[first].upload(blob)
        descriptor = blob.descriptor
        self._blob_exists[first, descriptor.digest] = True
        for name in other_names:
            self._mount_or_upload(blob, descriptor, first, name)
        return descriptor

    def read(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Download a blob that was written early; the bytes are not verified."""
        return self._pusher(self._early_reference()).repository.fetch_blob(descriptor)

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
            self._push_tag(
                tag_reference,
                by_digest[referrer.descriptor.digest],
                can_replace=partial(self._cosign_tags.can_replace, tag_reference),
            )
        for root in graph.roots:
            reference = self._target(root)
            if reference.tag:
                self._push_tag(reference, by_digest[root.descriptor.digest])
        for name, digests in self._reachable_by_repository(graph).items():
            # Only sessions of blobs that were written: other images, and other runs without --compress, may still
            # resume their uploads.
            self._pushers[name].delete_abandoned_sessions(digests)

    def close(self) -> None:
        """Delete upload sessions that a registry opened instead of a mount and that were not used."""
        deadline = monotonic() + _CLEAN_UP_SECONDS
        for pusher in self._pushers.values():
            pusher.close(deadline)

    def _push_manifests(self, graph: Graph, tagged: set[tuple[str, str]]) -> None:
        """Push manifests by digest, except those in `tagged`, and list referrers whose registry does not list them."""
        unlisted: dict[tuple[str, str], list[Descriptor]] = {}
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            subject = graph.documents[digest].subject
            for name in self._repositories_needing[digest]:
                repository = self._pushers[name].repository
                if subject is not None:
                    # Push even an existing manifest: only the answer (OCI-Subject) tells whether the registry lists
                    # it. This also repairs a push that ended before the list was written.
                    if not _push_referrer(repository, manifest):
                        referrer = referrer_descriptor(manifest.descriptor, graph.documents[digest])
                        unlisted.setdefault((name, subject.digest), []).append(referrer)
                elif (name, digest) not in tagged and repository.find_digest(digest) is None:
                    repository.push_manifest(digest, manifest)
        for (name, digest), referrers in unlisted.items():
            self._pushers[name].repository.referrers.add_to_fallback_index(digest, referrers)

    def _push_tag(
        self, reference: Reference, manifest: Manifest, *, can_replace: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Move a tag, unless it already refers to the manifest: registries with immutable tags refuse a second write.

        The registry chooses the digest of a manifest that is pushed by tag. If that is another algorithm, the tag still
        returns the same bytes, and `commit` has stored them under their own digest as well.

        Raises:
            NetworkError: another client wrote the tag in the meantime, and its content must not be replaced.
        """
        repository = self._pusher(reference).repository
        tag, digest = reference.tag or "", manifest.descriptor.digest
        own_digests = {digest, compute_digest(manifest.raw)}
        existing = repository.find_digest(tag)
        if existing and existing not in own_digests:
            if not can_replace(existing):
                msg = f"{reference.name}: another client changed this tag during the copy"
                raise NetworkError(msg, hint="re-run the command to keep both versions, or use --no-referrers")
            notices.notify(f"{reference.name}: replacing {existing}", level=1)
        if existing == digest or (not is_canonical_digest(digest) and repository.push_manifest_with_tag(tag, manifest)):
            return
        if existing not in own_digests:
            repository.push_manifest(tag, manifest)

    def _mount_or_upload(self, blob: VerifiedBlob | NewBlob, descriptor: Descriptor, source: str, name: str) -> None:
        pusher = self._pushers[name]
        if not pusher.mount(descriptor, source):
            if blob.access is not Access.REPEATABLE:
                msg = (
                    f"{descriptor.digest}: {name} also needs this blob, but the blob can neither be mounted nor "
                    "read again"
                )
                hint = "push from a file instead of a pipe or a compressed file, or image by image"
                raise NetworkError(msg, hint=hint)
            pusher.upload(blob)
        self._blob_exists[name, descriptor.digest] = True

    def _ask_repositories(self, descriptor: Descriptor, *, quick: bool) -> None:
        """Ask the repositories that need a blob whether they have it; see `stored`."""
        is_optional = quick and descriptor.size <= limits.MAX_RESENT_BLOB
        for name in self._names_needing(descriptor.digest):
            if not is_optional or self._missing_counts.get(name, 0) < _MAX_MISSING_BLOBS:
                self._check_blob(self._pushers[name].repository, descriptor)

    def _add_large_images(self, repository: str, graph: Graph, needed: set[str]) -> None:
        """Add the large images with digests in `needed`, of which not every blob is asked for."""
        graph_blobs = {blob.digest for blob in graph.blobs}
        for manifest, document in graph.images():
            key = repository, manifest.descriptor.digest
            blobs = {blob.digest: blob for blob in children_of(document) if blob.digest in graph_blobs}
            if key[1] in needed and key not in self._large_images and len(blobs) > _MAX_BLOBS_CHECKED:
                self._large_images[key] = _LargeImage(frozenset(blobs), _sample_blobs([*blobs.values()]))

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
        missing: set[tuple[str, str]] = set()

        def check(key: tuple[str, str], blob: Descriptor | None) -> None:
            repository = self._pushers[key[0]].repository
            # After one failure the blobs are asked for one by one.
            if key not in missing:
                # The registry must report the same digest for the manifest.
                exists = self._check_blob(repository, blob) if blob else repository.find_digest(key[1]) == key[1]
                if not exists:
                    missing.add(key)

        checks = [partial(check, key, blob) for key, image in images.items() for blob in (None, *image.sample)]
        run_each(lambda check: check(), checks, jobs=self._jobs, cancelled=self._cancelled, sets_cancelled=False)
        for key, image in images.items():
            if key not in missing:
                for digest in image.blobs:
                    self._blob_exists.setdefault((key[0], digest), True)

    def _check_blob(self, repository: Repository, descriptor: Descriptor) -> bool:
        """Return whether a repository has a blob; send at most one request for each blob."""
        key = repository.name, descriptor.digest
        if key not in self._blob_exists:
            exists = self._blob_exists[key] = repository.has_blob(descriptor)
            self._missing_counts[repository.name] = 0 if exists else self._missing_counts.get(repository.name, 0) + 1
        return self._blob_exists[key]

    def _repositories_without(self, descriptor: Descriptor) -> list[str]:
        """Return the names of repositories that need a blob and are not known to have it."""
        digest = descriptor.digest
        return [name for name in self._names_needing(digest) if not self._blob_exists.get((name, digest))]

    def _names_needing(self, digest: str) -> list[str]:
        """Return the names of the repositories that need a blob; before the graph is known, that of early blobs."""
        if (names := self._repositories_needing.get(digest)) is None:
            reference = self._early_reference()
            self._pusher(reference)
            names = [reference.repository]
        return names

    def _early_reference(self) -> Reference:
        if self._early_target is None:
            msg = (
                "this archive lists its images only at its end (as `docker save` does), so --to cannot read it from a "
                "pipe or a compressed file; nothing was sent"
            )
            suggestion = "push one image with `ocistream push HOST/REPOSITORY:TAG --image NAME`"
            hint = f"decompress it, or save it to a file and push with -i FILE, or {suggestion}"
            raise UnsupportedError(msg, hint=hint)
        return self._early_target

    def _pusher(self, reference: Reference) -> BlobPusher:
        """Return what pushes to the repository of a reference. The same object serves all references of it."""
        name = reference.repository
        if name not in self._pushers:
            repository = Repository(self._client, reference.registry, name, for_push=True)
            self._pushers[name] = BlobPusher(repository, self._strategy, self._records)
        return self._pushers[name]


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
