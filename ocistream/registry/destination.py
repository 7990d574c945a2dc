"""A registry as a sink of images: into which repositories they go. Out of which they come says registry/source.py.

Which URLs and statuses that takes is the business of `distribution` and, for blobs that go up, of `upload` and what is
below that; here is which repository a blob is in, and in what order things become visible.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal

from ocistream import limits, notices
from ocistream.errors import (
    IntegrityError,
    LostBeginningError,
    NetworkError,
    RegistryError,
    UnsupportedError,
)
from ocistream.oci.referrers import listed
from ocistream.registry.existing_images import KnownImages
from ocistream.registry.referrer_tags import HungTags
from ocistream.registry.repository import Repository, is_canonical
from ocistream.registry.uploads import Uploader
from ocistream.streams.chunks import digest_of, gathered, verified
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.http.client import Transport
    from ocistream.oci.descriptor import Descriptor, Manifest
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.omitted_blobs import Reason
    from ocistream.oci.reference import Reference
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.streams.chunks import Chunk
    from ocistream.transfer.interfaces import Source, Unnamed

__all__ = ["RegistrySink"]

#: How many seconds deleting what was not used may take, of all repositories together: nobody is to wait for that.
_CLEAN_UP: Final = 5.0


class RegistrySink:
    """Images into repositories of one registry, each root under the reference that `target` gives it."""

    parallel = True
    gathers: Literal[True] = True
    held = limits.MIB
    ends_in_order: Literal[True] = True

    def __init__(
        self,
        transport: Transport,
        target: Callable[[Root], Reference],
        *,
        early: Reference | None = None,
        mount_from: Sequence[str] = (),
        placed: Callable[[str], Sequence[str]] = lambda _digest: (),
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
        self._placed = placed
        self._transport = transport
        self._target = target
        self._early = early
        self._uploaders: dict[str, tuple[Repository, Uploader]] = {}
        self._hung_tags = HungTags(target, lambda reference: self._repository(reference)[0])
        #: What an archive was made without, and where that is said to be.
        self._left_out: Mapping[str, Reason] = {}
        #: For each digest, the repositories that need it.
        self._needed_in: dict[str, list[str]] = {}
        #: What was asked, or done, about a blob in a repository.
        self._has: dict[tuple[str, str], bool] = {}
        #: How many bytes of each blob an earlier run had sent, by digest.
        self._resumed: dict[str, int] = {}
        #: For each repository, the large images that may be there.
        self._known_images: dict[str, KnownImages] = {}

    def spared(self, graph: Graph) -> Graph:
        """Leave behind what has a tag of cosign's under which the destination has something else."""
        return self._hung_tags.spared(graph)

    def begin(self, graph: Graph) -> None:
        """Find out which repository needs what.

        Raises:
            IntegrityError: a digest was given as the destination's and the image has another.
        """
        for root in graph.roots:
            reference = self._target(root)
            if reference.digest and reference.digest != root.descriptor.digest:
                msg = f"{reference.name}: {reference.digest} was asked for, the image is {root.descriptor.digest}"
                whole = any(index.digest == reference.digest for index in graph.incomplete)
                hint = "the source has only some platforms of this index: leave the digest out" if whole else None
                raise IntegrityError(msg, hint=hint)
        self.expect(graph)

    def expect(self, graph: Graph) -> None:
        """Find out which repository needs what, while it is not known yet what images will be called by digest."""
        self._left_out = graph.left_out
        for root in graph.roots:
            reference = self._target(root)
            self._repository(reference)
            needed = graph.reachable(root)
            self._known_images[reference.repository].expect(graph, needed)
            for digest in needed:
                homes = self._needed_in.setdefault(digest, [])
                if reference.repository not in homes:
                    homes.append(reference.repository)

    def has(self, descriptor: Descriptor) -> bool:
        """Ask, in every repository that needs the blob, whether it is there."""
        return not self._lacking(descriptor)

    def has_manifest(self, descriptor: Descriptor) -> bool:
        """Ask, in every repository that needs the manifest, whether it is there."""
        homes = self._needed_in[descriptor.digest]
        return all(self._uploaders[home][0].has_manifest(descriptor.digest) for home in homes)

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Mount a blob from where another repository of the same registry has it, or may have it."""
        for home in self._lacking(descriptor):
            if not self._uploaders[home][1].mount_from_any(descriptor, self._mountable(descriptor, source, home)):
                return False
            self._has[home, descriptor.digest] = True
        return True

    def could_mount(self, descriptor: Descriptor, source: Source) -> bool:
        """Ask whether a blob is where it could be mounted from, without doing so."""
        return all(
            self._uploaders[home][1].could_mount(descriptor, self._mountable(descriptor, source, home))
            for home in self._lacking(descriptor)
        )

    def _mountable(self, descriptor: Descriptor, source: Source, home: str) -> Sequence[str]:
        """Give the repositories that a blob might be mounted from, the likeliest first.

        Those are the one that it comes from, those that are said to have it where it was left out, and --mount-from's.
        """
        from ocistream.registry.source import RegistrySource

        place = source.home(descriptor.digest) if isinstance(source, RegistrySource) else None
        own = (place[1],) if place and place[0] == self._uploaders[home][0].endpoint.registry else ()
        reason = self._left_out.get(descriptor.digest)
        said = reason.repositories if reason else ()
        return [
            name
            for name in dict.fromkeys((*own, *said, *self._placed(descriptor.digest), *self._mount_from))
            if name != home
        ]

    def put(self, blob: Blob) -> None:
        """Upload a blob to the first repository that needs it, and mount it from there into the others."""
        lacking = self._lacking(blob.descriptor)
        if not lacking:
            # Since `has` was asked, another thread has made the same of some layer that was converted.
            return
        first, *others = lacking
        self._resumed[blob.descriptor.digest] = self._uploaders[first][1].upload(blob)
        self._has[first, blob.descriptor.digest] = True
        for home in others:
            self._share(blob, blob.descriptor, first, home)

    def resumed(self, descriptor: Descriptor) -> int:
        """Return how many bytes of a blob the registry had of an earlier run."""
        return self._resumed.get(descriptor.digest, 0)

    def put_part(self, descriptor: Descriptor, offset: int, part: Blob) -> int:
        """Upload a part of a blob, where one repository alone needs that: others could not be given the same part."""
        lacking = self._lacking(descriptor)
        if len(lacking) != 1:
            return 0 if lacking else descriptor.size
        reached = self._uploaders[lacking[0]][1].upload_part(descriptor, offset, part)
        self._has[lacking[0], descriptor.digest] = reached == descriptor.size
        return reached

    def reached(self, descriptor: Descriptor) -> int:
        """Ask how far the upload is that other parts of a blob have begun."""
        lacking = self._lacking(descriptor)
        return self._uploaders[lacking[0]][1].reached(descriptor) if len(lacking) == 1 else 0

    def put_rest(self, blob: Blob) -> None:
        """Upload the rest of a blob of which an earlier run has begun the upload; the registry checks all of it.

        Raises:
            LostBeginningError: the registry does not have as much of it, or not any more.
        """
        descriptor, start = blob.descriptor, blob.start
        assert blob.open_at is not None, "it is given with the rest of a blob"  # noqa: S101 - see interfaces.GoesOn
        rest = Blob(
            replace(descriptor, size=descriptor.size - start),
            partial(blob.open_at, start),
            replayable=False,
            may_break=blob.may_break,
        )
        if self.put_part(descriptor, start, rest) != descriptor.size:
            msg = f"{descriptor.digest}: the registry does not have the first {start} bytes of it any more"
            raise LostBeginningError(msg, hint="run the same command again: all of it is sent then")

    def takes_early(self) -> bool:
        """Say whether it is known where blobs belong before the graph is."""
        return self._early is not None

    def takes_again(self) -> bool:
        """Say that an upload that failed is never closed, so that another may be begun."""
        return True

    def put_unnamed(self, blob: Unnamed) -> Descriptor:
        """Upload a blob whose digest closes the upload, and mount it into the other repositories that need it."""
        homes = self._needed_in.get(blob.instead_of.digest) if blob.instead_of else None
        first, *others = homes or [self._early_reference().repository]
        self._repository_named(first)
        self._uploaders[first][1].upload(blob)
        descriptor = blob.descriptor()
        self._has[first, descriptor.digest] = True
        for home in others:
            self._share(blob, descriptor, first, home)
        return descriptor

    def recall(self, descriptor: Descriptor) -> bytes:
        """Read small content back that was put early."""
        repository, _ = self._repository(self._early_reference())
        return gathered(verified(repository.blob_chunks(descriptor), descriptor))

    def reread(self, descriptor: Descriptor) -> Iterator[Chunk]:
        """Download a blob that was put early."""
        repository, _ = self._repository(self._early_reference())
        return repository.blob_chunks(descriptor)

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
            and is_canonical(digest)
            # What hangs on it comes before its tag, and it comes before that.
            and digest not in graph.attached
        }
        self._push(graph, tagged)
        by_digest = {manifest.descriptor.digest: manifest for manifest in graph.manifests}
        for place, attached in self._hung_tags.places(graph).items():
            self._tag(
                place, by_digest[attached.descriptor.digest], may_replace=partial(self._hung_tags.may_replace, place)
            )
        for root in graph.roots:
            reference = self._target(root)
            if reference.tag:
                self._tag(reference, by_digest[root.descriptor.digest])
        for home, (_, uploader) in self._uploaders.items():
            # Other uploads to the same repository, of images that are not there yet, are theirs to go on with.
            uploader.settle([digest for digest, homes in self._needed_in.items() if home in homes])

    def close(self) -> None:
        """Drop the upload sessions that registries opened in place of mounts and that were not used."""
        deadline = monotonic() + _CLEAN_UP
        for _, uploader in self._uploaders.values():
            uploader.close(deadline)

    def _push(self, graph: Graph, tagged: set[tuple[str, str]]) -> None:
        """Push manifests by digest, but for those that come with their tags, and list those that refer to others."""
        unlisted: dict[tuple[str, str], list[Descriptor]] = {}
        for manifest in graph.manifests:
            digest = manifest.descriptor.digest
            subject = graph.documents[digest].subject
            for home in self._needed_in[digest]:
                repository, _ = self._uploaders[home]
                if subject is not None:
                    # Even if it is there: the answer says whether the registry lists it.
                    if not _put_referrer(repository, manifest):
                        referrer = listed(manifest.descriptor, graph.documents[digest])
                        unlisted.setdefault((home, subject.digest), []).append(referrer)
                elif (home, digest) not in tagged and repository.digest_of(digest) is None:
                    repository.put_manifest(digest, manifest)
        for (home, digest), referrers in unlisted.items():
            from ocistream.registry.referrers import ReferrerLists

            ReferrerLists(self._uploaders[home][0]).add(digest, referrers)

    def _tag(
        self, reference: Reference, manifest: Manifest, *, may_replace: Callable[[str], bool] = lambda _: True
    ) -> None:
        """Move a tag, unless it is there already: some registries refuse to write a tag twice, even the same.

        Pushed by tag, a manifest gets the digest that is the registry's own choice. If that is another one, the tag
        still gives the same bytes, and they are there under their own digest as well, since `commit` saw to that.

        Raises:
            NetworkError: there is something else by now that it does not replace.
        """
        repository, _ = self._repository(reference)
        tag, digest = reference.tag or "", manifest.descriptor.digest
        present = repository.digest_of(tag)
        if present and present not in {digest, digest_of(manifest.raw)} and not may_replace(present):
            msg = f"{reference.name}: somebody else has written this tag meanwhile"
            raise NetworkError(msg, hint="run it again: what is there stays then, or leave it to them: --no-referrers")
        if present and present not in {digest, digest_of(manifest.raw)}:
            notices.notice(f"{reference.name}: replacing {present}", level=1)
        if present == digest or (not is_canonical(digest) and repository.put_tag(tag, manifest)):
            return
        if present != digest_of(manifest.raw):
            repository.put_manifest(tag, manifest)

    def _share(self, blob: Blob | Unnamed, descriptor: Descriptor, source: str, home: str) -> None:
        uploader = self._uploaders[home][1]
        if not uploader.mount(descriptor, source):
            if not blob.replayable:
                msg = f"{descriptor.digest}: {home} needs it too, and it can neither be mounted nor read again"
                raise NetworkError(msg, hint="push from a file instead of a pipe, or image by image")
            uploader.upload(blob)
        self._has[home, descriptor.digest] = True

    def _lacking(self, descriptor: Descriptor) -> list[str]:
        """Give the repositories that need a blob and do not have it; each is asked once."""
        homes = self._needed_in.get(descriptor.digest)
        if homes is None:
            homes = [self._early_reference().repository]
        for home in homes:
            repository = self._repository_named(home)
            if (home, descriptor.digest) not in self._has and self._known_images[home].have(descriptor):
                self._has[home, descriptor.digest] = True
            self._has_blob(repository, descriptor)
        return [home for home in homes if not self._has[home, descriptor.digest]]

    def _has_blob(self, repository: Repository, descriptor: Descriptor) -> bool:
        """Ask a repository for a blob, once."""
        key = repository.name, descriptor.digest
        if key not in self._has:
            self._has[key] = repository.has_blob(descriptor)
        return self._has[key]

    def _early_reference(self) -> Reference:
        if self._early is None:
            msg = (
                "the archive's index comes after its layers: "
                "the repositories are not known when the layers arrive; nothing was sent"
            )
            one = "one image of it with `ocistream push HOST/REPOSITORY:TAG --image NAME`"
            raise UnsupportedError(msg, hint=f"push from a file instead of a pipe (-i FILE), or push {one}")
        return self._early

    def _repository(self, reference: Reference) -> tuple[Repository, Uploader]:
        if reference.repository not in self._uploaders:
            repository = Repository(self._transport, reference.registry, reference.repository, writes=True)
            self._uploaders[reference.repository] = (repository, Uploader(repository, self._records))
            self._known_images[reference.repository] = KnownImages(
                partial(_is_called, repository), partial(self._has_blob, repository)
            )
        return self._uploaders[reference.repository]

    def _repository_named(self, name: str) -> Repository:
        if name not in self._uploaders:
            self._repository(self._early_reference())
        return self._uploaders[name][0]


def _is_called(repository: Repository, digest: str) -> bool:
    """Say whether a manifest is there, and the registry itself says that it is that one."""
    return repository.digest_of(digest) == digest


def _put_referrer(repository: Repository, manifest: Manifest) -> bool:
    """Push a manifest with a subject; say whether the registry lists it now among what refers to that.

    Raises:
        RegistryError: it does not want it.
    """
    try:
        return bool(repository.put_manifest(manifest.descriptor.digest, manifest))
    except RegistryError as error:
        hint = error.hint or "if it does not take signatures, SBOMs and the like, leave them behind: --no-referrers"
        raise RegistryError(error.what, status=error.status, codes=error.codes, hint=hint) from error
