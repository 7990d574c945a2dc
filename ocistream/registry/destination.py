"""A registry as a destination: which repository needs which blob, and the order in which manifests and tags appear.

For a large image that already exists, only a sample of its blobs is checked (distribution-spec,
MANIFEST_BLOB_UNKNOWN).
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal

from ocistream import limits, notices
from ocistream.errors import IntegrityError, NetworkError, PartialBlobLostError, RegistryError, UnsupportedError
from ocistream.oci.graph import children_of
from ocistream.oci.referrers import referrer_descriptor
from ocistream.registry.referrers import CosignTags
from ocistream.registry.repository import Repository, is_canonical_digest
from ocistream.registry.uploader import Uploader
from ocistream.streams.chunks import compute_digest, read_all, verify_chunks
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.http.client import HttpClient
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.oci.reference import Reference
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import NewBlob, Source

__all__ = [
    "MAX_BLOBS_CHECKED",
    "ExistingImages",
    "RegistryDestination",
]

#: How many blobs of an image are asked for. Few images have more, and so many take a twentieth of a second.
MAX_BLOBS_CHECKED: Final = 24


class ExistingImages:
    """What one repository has of large images. Safe for several threads."""

    def __init__(self, has_manifest: Callable[[str], bool], has_blob: Callable[[Descriptor], bool]) -> None:
        """Ask by these: whether a manifest is there under its digest, and whether a blob is, which may be cached."""
        self._has_manifest = has_manifest
        self._has_blob = has_blob
        self._images_by_digest: dict[str, _ImageCheck] = {}
        #: By the digest of a blob, the large images that have it.
        self._images_by_blob: dict[str, list[_ImageCheck]] = {}

    def expect(self, graph: Graph, needed: set[str]) -> None:
        """Learn what is to come to this repository: `needed` are the digests. Nothing is asked yet."""
        moved = {blob.digest for blob in graph.blobs}
        for manifest, document in graph.images():
            digest = manifest.descriptor.digest
            blobs = list({blob.digest: blob for blob in children_of(document) if blob.digest in moved}.values())
            if digest not in needed or digest in self._images_by_digest or len(blobs) <= MAX_BLOBS_CHECKED:
                continue
            image = self._images_by_digest[digest] = _ImageCheck(
                [partial(self._has_manifest, digest), *(partial(self._has_blob, blob) for blob in _sample_blobs(blobs))]
            )
            for blob in blobs:
                self._images_by_blob.setdefault(blob.digest, []).append(image)

    def has_blob(self, blob: Descriptor) -> bool:
        """Say whether a blob is one of a large image that is there. If not, nothing is known of it."""
        return any(image.is_stored() for image in self._images_by_blob.get(blob.digest, ()))


class _ImageCheck:
    """Questions, all of which have to be answered with yes. Who wants to know takes part in asking them."""

    def __init__(self, checks: Sequence[Callable[[], bool]]) -> None:
        self._remaining = list(reversed(checks))
        self._running = 0
        self._is_stored = True
        self._condition = threading.Condition()

    def is_stored(self) -> bool:
        """Ask what is left to ask, and wait for what others are asking.

        Raises:
            OcistreamError: there was no answer. To whoever else waits for it that is a no.
        """
        while True:
            with self._condition:
                if not self._remaining or not self._is_stored:
                    # Even where that cannot change the answer: who is told no asks the same questions one by one.
                    self._condition.wait_for(lambda: not self._running)
                    return self._is_stored
                question = self._remaining.pop()
                self._running += 1
            yes = False
            try:
                yes = question()
            finally:
                with self._condition:
                    self._running -= 1
                    if not yes:
                        self._is_stored = False
                    self._condition.notify_all()


def _sample_blobs(blobs: Sequence[Descriptor]) -> list[Descriptor]:
    """Give as many as are asked for: the config, and of the layers the first, the last, and some between them."""
    config, *layers = blobs
    steps = MAX_BLOBS_CHECKED - 2
    return [config, *(layers[step * (len(layers) - 1) // steps] for step in range(steps + 1))]


#: How many seconds deleting what was not used may take, of all repositories together: nobody is to wait for that.
_CLEAN_UP_SECONDS: Final = 5.0


class RegistryDestination:
    """Images into repositories of one registry, each root under the reference that `target` gives it."""

    concurrent = True
    is_incremental: Literal[True] = True
    buffer_size = limits.MIB
    is_cancelled_gracefully: Literal[True] = True

    def __init__(
        self,
        client: HttpClient,
        target: Callable[[Root], Reference],
        *,
        early_target: Reference | None = None,
        mount_from: Sequence[str] = (),
        mount_candidates: Callable[[str], Sequence[str]] = lambda _digest: (),
        records: UploadRecords | None = None,
    ) -> None:
        """Take the way to name things.

        `early` is where blobs go that come before the graph is known; without it they cannot be taken. `mount_from` are
        repositories of the same registry that may have blobs already, and `placed` gives those that have one of a
        digest. `records` is where uploads are remembered, for a
        later run to go on with what this one does not bring to its end.
        """
        self._records = records
        self._mount_from = tuple(mount_from)
        self._mount_candidates = mount_candidates
        self._client = client
        self._target = target
        self._early_target = early_target
        self._uploaders: dict[str, tuple[Repository, Uploader]] = {}
        self._cosign_tags = CosignTags(target, lambda reference: self._repository(reference)[0])
        #: What an archive was made without, and where that is said to be.
        self._omitted: Mapping[str, OmissionReason] = {}
        #: For each digest, the repositories that need it.
        self._repositories_needing: dict[str, list[str]] = {}
        #: What was asked, or done, about a blob in a repository.
        self._blob_exists: dict[tuple[str, str], bool] = {}
        #: How many bytes of each blob an earlier run had sent, by digest.
        self._resumed_sizes: dict[str, int] = {}
        #: For each repository, the large images that may be there.
        self._existing_images: dict[str, ExistingImages] = {}

    def skip_conflicting_referrers(self, graph: Graph) -> Graph:
        """Leave behind what has a tag of cosign's under which the destination has something else."""
        return self._cosign_tags.skip_conflicting_referrers(graph)

    def begin(self, graph: Graph) -> None:
        """Find out which repository needs what.

        Raises:
            IntegrityError: a digest was given as the destination's and the image has another.
        """
        for root in graph.roots:
            reference = self._target(root)
            if reference.digest and reference.digest != root.descriptor.digest:
                msg = f"{reference.name}: {reference.digest} was asked for, the image is {root.descriptor.digest}"
                whole = any(index.digest == reference.digest for index in graph.incomplete_indexes)
                hint = "the source has only some platforms of this index: leave the digest out" if whole else None
                raise IntegrityError(msg, hint=hint)
        self.expect(graph)

    def expect(self, graph: Graph) -> None:
        """Find out which repository needs what, while it is not known yet what images will be called by digest."""
        self._omitted = graph.omitted_from_source
        for root in graph.roots:
            reference = self._target(root)
            self._repository(reference)
            needed = graph.reachable(root)
            self._existing_images[reference.repository].expect(graph, needed)
            for digest in needed:
                homes = self._repositories_needing.setdefault(digest, [])
                if reference.repository not in homes:
                    homes.append(reference.repository)

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Ask, in every repository that needs the blob, whether it is there."""
        return not self._repositories_without(descriptor)

    def has_manifest(self, descriptor: Descriptor) -> bool:
        """Ask, in every repository that needs the manifest, whether it is there."""
        homes = self._repositories_needing[descriptor.digest]
        return all(self._uploaders[home][0].has_manifest(descriptor.digest) for home in homes)

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Mount a blob from where another repository of the same registry has it, or may have it."""
        for home in self._repositories_without(descriptor):
            if not self._uploaders[home][1].mount_from_any(descriptor, self._mount_sources(descriptor, source, home)):
                return False
            self._blob_exists[home, descriptor.digest] = True
        return True

    def can_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Ask whether a blob is where it could be mounted from, without doing so."""
        return all(
            self._uploaders[home][1].can_mount(descriptor, self._mount_sources(descriptor, source, home))
            for home in self._repositories_without(descriptor)
        )

    def _mount_sources(self, descriptor: Descriptor, source: Source, home: str) -> Sequence[str]:
        """Give the repositories that a blob might be mounted from, the likeliest first.

        Those are the one that it comes from, those that are said to have it where it was left out, and --mount-from's.
        """
        from ocistream.registry.source import RegistrySource

        place = source.find_repository(descriptor.digest) if isinstance(source, RegistrySource) else None
        own = (place[1],) if place and place[0] == self._uploaders[home][0].endpoint.registry else ()
        reason = self._omitted.get(descriptor.digest)
        said = reason.repositories if reason else ()
        return [
            name
            for name in dict.fromkeys((*own, *said, *self._mount_candidates(descriptor.digest), *self._mount_from))
            if name != home
        ]

    def write(self, blob: Blob) -> None:
        """Upload a blob to the first repository that needs it, and mount it from there into the others."""
        lacking = self._repositories_without(blob.descriptor)
        if not lacking:
            # Since `has` was asked, another thread has made the same of some layer that was converted.
            return
        first, *others = lacking
        self._resumed_sizes[blob.descriptor.digest] = self._uploaders[first][1].upload(blob)
        self._blob_exists[first, blob.descriptor.digest] = True
        for home in others:
            self._mount_or_upload(blob, blob.descriptor, first, home)

    def resumed_size(self, descriptor: Descriptor) -> int:
        """Return how many bytes of a blob the registry had of an earlier run."""
        return self._resumed_sizes.get(descriptor.digest, 0)

    def write_part(self, descriptor: Descriptor, offset: int, part: Blob) -> int:
        """Upload a part of a blob, where one repository alone needs that: others could not be given the same part."""
        lacking = self._repositories_without(descriptor)
        if len(lacking) != 1:
            return 0 if lacking else descriptor.size
        reached = self._uploaders[lacking[0]][1].upload_part(descriptor, offset, part)
        self._blob_exists[lacking[0], descriptor.digest] = reached == descriptor.size
        return reached

    def stored_size(self, descriptor: Descriptor) -> int:
        """Ask how far the upload is that other parts of a blob have begun."""
        lacking = self._repositories_without(descriptor)
        return self._uploaders[lacking[0]][1].stored_size(descriptor) if len(lacking) == 1 else 0

    def write_rest(self, blob: Blob) -> None:
        """Upload the rest of a blob of which an earlier run has begun the upload; the registry checks all of it.

        Raises:
            LostBeginningError: the registry does not have as much of it, or not any more.
        """
        descriptor, start = blob.descriptor, blob.offset
        assert blob.open_at is not None, "it is given with the rest of a blob"  # noqa: S101 - see interfaces.GoesOn
        rest = Blob(
            replace(descriptor, size=descriptor.size - start),
            partial(blob.open_at, start),
            reopenable=False,
            is_interruptible=blob.is_interruptible,
        )
        if self.write_part(descriptor, start, rest) != descriptor.size:
            msg = f"{descriptor.digest}: the registry does not have the first {start} bytes of it any more"
            raise PartialBlobLostError(msg, hint="run the same command again: all of it is sent then")

    def can_write_early(self) -> bool:
        """Say whether it is known where blobs belong before the graph is."""
        return self._early_target is not None

    def can_retry(self) -> bool:
        """Say that an upload that failed is never closed, so that another may be begun."""
        return True

    def write_new(self, blob: NewBlob) -> Descriptor:
        """Upload a blob whose digest closes the upload, and mount it into the other repositories that need it."""
        homes = self._repositories_needing.get(blob.replaces.digest) if blob.replaces else None
        first, *others = homes or [self._early_reference().repository]
        self._repository_named(first)
        self._uploaders[first][1].upload(blob)
        descriptor = blob.descriptor()
        self._blob_exists[first, descriptor.digest] = True
        for home in others:
            self._mount_or_upload(blob, descriptor, first, home)
        return descriptor

    def read_back(self, descriptor: Descriptor) -> bytes:
        """Read small content back that was put early."""
        repository, _ = self._repository(self._early_reference())
        return read_all(verify_chunks(repository.fetch_blob(descriptor), descriptor))

    def read_blob(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Download a blob that was put early."""
        repository, _ = self._repository(self._early_reference())
        return repository.fetch_blob(descriptor)

    def commit(self, graph: Graph) -> None:
        """Push the manifests, children first and what hangs on them next, and the images' tags at the very end.

        Where the registry keeps no list of what refers to a manifest, what was pushed is added to the one that clients
        keep.

        Raises:
            UnsupportedError: the registry does not know a manifest's digest; no image's tag was moved then.
            RegistryError: it does not want what hangs on an image: without that, the image is not to appear either.
        """
        children = {child.digest for document in graph.documents.values() for child in document.manifests}
        #: What comes with its tag need not be pushed without it before. A child must be, or its parent is refused;
        #: and what may not be known by its digest afterwards must be, or that is found out when the tag has moved.
        tagged = {
            (reference.repository, digest)
            for root in graph.roots
            if (reference := self._target(root)).tag
            and (digest := root.descriptor.digest) not in children
            and is_canonical_digest(digest)
            # What hangs on it comes before its tag, and it comes before that.
            and digest not in graph.referrers
        }
        self._push_manifests(graph, tagged)
        by_digest = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        for place, attached in self._cosign_tags.find_tagged_referrers(graph).items():
            self._push_tag(
                place, by_digest[attached.descriptor.digest], can_replace=partial(self._cosign_tags.can_replace, place)
            )
        for root in graph.roots:
            reference = self._target(root)
            if reference.tag:
                self._push_tag(reference, by_digest[root.descriptor.digest])
        for home, (_, uploader) in self._uploaders.items():
            # Other uploads to the same repository, of images that are not there yet, are theirs to go on with.
            uploader.delete_abandoned_sessions(
                [digest for digest, homes in self._repositories_needing.items() if home in homes]
            )

    def close(self) -> None:
        """Drop the upload sessions that registries opened in place of mounts and that were not used."""
        deadline = monotonic() + _CLEAN_UP_SECONDS
        for _, uploader in self._uploaders.values():
            uploader.close(deadline)

    def _push_manifests(self, graph: Graph, tagged: set[tuple[str, str]]) -> None:
        """Push manifests by digest, but for those that come with their tags, and list those that refer to others."""
        unlisted: dict[tuple[str, str], list[Descriptor]] = {}
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            subject = graph.documents[digest].subject
            for home in self._repositories_needing[digest]:
                repository, _ = self._uploaders[home]
                if subject is not None:
                    # Even if it is there: the answer says whether the registry lists it.
                    if not _push_referrer(repository, manifest):
                        referrer = referrer_descriptor(manifest.descriptor, graph.documents[digest])
                        unlisted.setdefault((home, subject.digest), []).append(referrer)
                elif (home, digest) not in tagged and repository.find_digest(digest) is None:
                    repository.push_manifest(digest, manifest)
        for (home, digest), referrers in unlisted.items():
            from ocistream.registry.referrers import RepositoryReferrers

            RepositoryReferrers(self._uploaders[home][0]).add_to_fallback_index(digest, referrers)

    def _push_tag(
        self, reference: Reference, manifest: Manifest, *, can_replace: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Move a tag, unless it is there already: some registries refuse to write a tag twice, even the same.

        Pushed by tag, a manifest gets the digest that is the registry's own choice. If that is another one, the tag
        still gives the same bytes, and they are there under their own digest as well, since `commit` saw to that.

        Raises:
            NetworkError: there is something else by now that it does not replace.
        """
        repository, _ = self._repository(reference)
        tag, digest = reference.tag or "", manifest.descriptor.digest
        present = repository.find_digest(tag)
        if present and present not in {digest, compute_digest(manifest.raw)} and not can_replace(present):
            msg = f"{reference.name}: somebody else has written this tag meanwhile"
            raise NetworkError(msg, hint="run it again: what is there stays then, or leave it to them: --no-referrers")
        if present and present not in {digest, compute_digest(manifest.raw)}:
            notices.notify(f"{reference.name}: replacing {present}", level=1)
        if present == digest or (not is_canonical_digest(digest) and repository.push_manifest_with_tag(tag, manifest)):
            return
        if present != compute_digest(manifest.raw):
            repository.push_manifest(tag, manifest)

    def _mount_or_upload(self, blob: Blob | NewBlob, descriptor: Descriptor, source: str, home: str) -> None:
        uploader = self._uploaders[home][1]
        if not uploader.mount(descriptor, source):
            if not blob.reopenable:
                msg = f"{descriptor.digest}: {home} needs it too, and it can neither be mounted nor read again"
                raise NetworkError(msg, hint="push from a file instead of a pipe, or image by image")
            uploader.upload(blob)
        self._blob_exists[home, descriptor.digest] = True

    def _repositories_without(self, descriptor: Descriptor) -> list[str]:
        """Give the repositories that need a blob and do not have it; each is asked once."""
        homes = self._repositories_needing.get(descriptor.digest)
        if homes is None:
            homes = [self._early_reference().repository]
        for home in homes:
            repository = self._repository_named(home)
            if (home, descriptor.digest) not in self._blob_exists and self._existing_images[home].has_blob(descriptor):
                self._blob_exists[home, descriptor.digest] = True
            self._check_blob(repository, descriptor)
        return [home for home in homes if not self._blob_exists[home, descriptor.digest]]

    def _check_blob(self, repository: Repository, descriptor: Descriptor) -> bool:
        """Ask a repository for a blob, once."""
        key = repository.name, descriptor.digest
        if key not in self._blob_exists:
            self._blob_exists[key] = repository.has_blob(descriptor)
        return self._blob_exists[key]

    def _early_reference(self) -> Reference:
        if self._early_target is None:
            msg = (
                "the archive's index comes after its layers: "
                "the repositories are not known when the layers arrive; nothing was sent"
            )
            one = "one image of it with `ocistream push HOST/REPOSITORY:TAG --image NAME`"
            raise UnsupportedError(msg, hint=f"push from a file instead of a pipe (-i FILE), or push {one}")
        return self._early_target

    def _repository(self, reference: Reference) -> tuple[Repository, Uploader]:
        if reference.repository not in self._uploaders:
            repository = Repository(self._client, reference.registry, reference.repository, for_push=True)
            self._uploaders[reference.repository] = (repository, Uploader(repository, self._records))
            self._existing_images[reference.repository] = ExistingImages(
                partial(_has_manifest_by_digest, repository), partial(self._check_blob, repository)
            )
        return self._uploaders[reference.repository]

    def _repository_named(self, name: str) -> Repository:
        if name not in self._uploaders:
            self._repository(self._early_reference())
        return self._uploaders[name][0]


def _has_manifest_by_digest(repository: Repository, digest: str) -> bool:
    """Say whether a manifest is there, and the registry itself says that it is that one."""
    return repository.find_digest(digest) == digest


def _push_referrer(repository: Repository, manifest: Manifest) -> bool:
    """Push a manifest with a subject; say whether the registry lists it now among what refers to that.

    Raises:
        RegistryError: it does not want it.
    """
    try:
        return bool(repository.push_manifest(manifest.descriptor.digest, manifest))
    except RegistryError as error:
        hint = error.hint or "if it does not take signatures, SBOMs and the like, leave them behind: --no-referrers"
        raise RegistryError(error.message, status=error.status, codes=error.codes, hint=hint) from error
