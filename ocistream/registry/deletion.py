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


def delete_images(
    registries: Registries, references: Sequence[Reference], *, by_digest: bool, dry_run: bool = False
) -> Iterator[DeletedImage]:
    """Check that all images exist, then delete them one after the other, and yield each when it is deleted.

    With `by_digest`, a tag may be deleted together with its manifest. With `dry_run`, nothing is deleted.

    Raises:
        AuthenticationError: the configuration forbids changes of a repository, or the registry denies the deletion.
        NotFoundError: an image does not exist; then nothing was deleted.
        IntegrityError: a tag does not have the digest that was given with it; then nothing was deleted.
        UnsupportedError: the registry does not delete tags, or does not delete.
    """
    for reference in references:
        registries.rules.check_push(reference)
    found = []
    for reference in dict.fromkeys(references):
        repository = Repository(registries.client, reference.registry, reference.repository, for_delete=True)
        digest = _find_digest(repository, reference)
        found.append((repository, DeletedImage(reference, digest, with_all_tags=reference.tag is None)))
    #: Repositories and digests of the manifests that were deleted.
    deleted: set[tuple[str, str]] = set()
    for repository, image in found:
        key = str(repository), image.digest
        if not dry_run and key not in deleted and not _delete_tag(repository, image.reference, by_digest=by_digest):
            _delete_manifest(repository, image.digest)
            deleted.add(key)
        yield replace(image, with_all_tags=image.with_all_tags or key in deleted)


def _delete_tag(repository: Repository, reference: Reference, *, by_digest: bool) -> bool:
    """Delete a tag; return False if there is none, or if its manifest must be deleted instead."""
    if reference.tag is None:
        return False
    try:
        repository.delete_manifest(reference.tag)
    except RegistryError as error:
        if by_digest and error.status in _UNSUPPORTED_STATUSES:
            return False
        if error.status not in _UNSUPPORTED_STATUSES:
            raise
        hint = f"{_BY_DIGEST_HINT}, unless {_REFUSED_HINT}"
        raise _deletion_error(repository, f"the tag {reference.name}", error, hint) from error
    return True


def _delete_manifest(repository: Repository, digest: str) -> None:
    try:
        repository.delete_manifest(digest)
    except RegistryError as error:
        if error.status not in _UNSUPPORTED_STATUSES:
            raise
        raise _deletion_error(repository, f"{repository}@{digest}", error, _REFUSED_HINT) from error


def _deletion_error(repository: Repository, name: str, error: RegistryError, hint: str) -> UnsupportedError:
    """Return the error of a registry that does not delete."""
    # `ocistream serve` says so.
    is_read_only = "registry is read-only" in error.message
    message = f"{repository.endpoint.registry} does not delete {name} ({error.message})"
    return UnsupportedError(message, hint=_READ_ONLY_HINT if is_read_only else hint)


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
