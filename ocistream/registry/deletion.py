"""Delete tags and manifests of a registry (distribution-spec, "Content Management")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ocistream.errors import IntegrityError, NotFoundError, RegistryError, UnsupportedError
from ocistream.http.origins import redact_url
from ocistream.oci.reference import is_digest
from ocistream.registry.repository import Repository, image_not_found_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocistream.oci.reference import Reference
    from ocistream.registry.registries import Registries

#: Statuses of a registry that does not delete. distribution 2.8 answers 400 to a tag, and 405 if it is read-only or its
#: deletion is disabled.
_UNSUPPORTED_STATUSES: Final = frozenset({400, 405, 501})
_REFUSED_HINT: Final = (
    "the registry is read-only, or its deletion is disabled: ask its operator "
    "(distribution, registry:2: REGISTRY_STORAGE_DELETE_ENABLED=true)"
)
_READ_ONLY_HINT: Final = "nothing can be deleted there: ask its operator"
_BY_DIGEST_HINT: Final = "--by-digest deletes its manifest instead, with all tags of that manifest"


@dataclass(frozen=True, slots=True)
class DeletedImage:
    """A tag or manifest that was deleted, and the digest of the manifest.

    `with_all_tags` says that the manifest was deleted, and with it all its tags.
    """

    reference: Reference
    digest: str
    with_all_tags: bool


class ImageDeleter:
    """Deletes images by tag or digest, after checking that all of them exist."""

    def __init__(self, registries: Registries, references: Sequence[Reference], *, by_digest: bool) -> None:
        """Take references with a tag or a digest. With `by_digest`, a tag may be deleted together with its manifest.

        Raises:
            AuthenticationError: the configuration forbids changes of a repository.
        """
        for reference in references:
            registries.rules.check_push(reference)
        self._by_digest = by_digest
        self._images = [
            (reference, Repository(registries.client, reference.registry, reference.repository, for_delete=True))
            for reference in dict.fromkeys(references)
        ]
        #: Repositories and digests of the manifests that were deleted.
        self._deleted: set[tuple[str, str]] = set()

    def find(self) -> list[DeletedImage]:
        """Return what `delete` would delete, and change nothing.

        Raises:
            NotFoundError: an image does not exist.
            IntegrityError: a tag does not have the digest that was given with it.
        """
        return [
            DeletedImage(reference, _find_digest(repository, reference), with_all_tags=reference.tag is None)
            for reference, repository in self._images
        ]

    def delete(self) -> Iterator[DeletedImage]:
        """Delete the images one after the other, and yield each when it is deleted.

        Raises:
            NotFoundError, IntegrityError: see `find`; then nothing was deleted.
            UnsupportedError: the registry does not delete tags, or does not delete.
            AuthenticationError: the registry denies the deletion.
        """
        found = self.find()
        for (_, repository), image in zip(self._images, found, strict=True):
            yield self._delete(repository, image)

    def _delete(self, repository: Repository, image: DeletedImage) -> DeletedImage:
        reference = image.reference
        if (str(repository), image.digest) in self._deleted:
            return replace(image, with_all_tags=True)
        if reference.tag is not None:
            try:
                repository.delete_manifest(reference.tag)
            except RegistryError as error:
                if error.status not in _UNSUPPORTED_STATUSES:
                    raise
                if not self._by_digest:
                    msg = f"{repository.endpoint.registry} does not delete the tag {reference.name} ({error.message})"
                    hint = f"{_BY_DIGEST_HINT}, unless {_REFUSED_HINT}"
                    raise UnsupportedError(msg, hint=_READ_ONLY_HINT if _is_read_only(error) else hint) from error
            else:
                return image
        try:
            repository.delete_manifest(image.digest)
        except RegistryError as error:
            if error.status not in _UNSUPPORTED_STATUSES:
                raise
            msg = f"{repository.endpoint.registry} does not delete {repository}@{image.digest} ({error.message})"
            hint = _READ_ONLY_HINT if _is_read_only(error) else _REFUSED_HINT
            raise UnsupportedError(msg, hint=hint) from error
        self._deleted.add((str(repository), image.digest))
        return replace(image, with_all_tags=True)


def _is_read_only(error: RegistryError) -> bool:
    """Return whether the registry says that it is read-only, as `ocistream serve` does."""
    return "registry is read-only" in error.message


def _find_digest(repository: Repository, reference: Reference) -> str:
    target = reference.tag or reference.target
    digest = repository.find_digest(target)
    if digest is None:
        error = NotFoundError(f"HEAD {redact_url(repository.url(f'manifests/{target}'))}: 404")
        raise image_not_found_error(repository, target, error)
    if not is_digest(digest):
        digest = repository.resolve(target).descriptor.digest
    if reference.digest not in {None, digest}:
        msg = f"{reference.name}: {reference.digest} was requested, but the tag has {digest}"
        raise IntegrityError(msg, hint="the tag was pushed again since: check it before you delete it")
    return digest
