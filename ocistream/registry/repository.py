"""One repository in a registry: read and push manifests, check and download blobs, fetch small documents.

Knows URLs, media types and statuses. Manifests are verified here; downloaded blobs are not.
"""

from __future__ import annotations

import contextlib
import re
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.auth.tokens import repository_scope
from ocistream.errors import (
    ArchiveError,
    IntegrityError,
    NotFoundError,
    RegistryError,
    UnsupportedError,
)
from ocistream.http.origins import redact_url, resolve_url
from ocistream.oci.descriptor import (
    ACCEPTED_TYPES,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    UNKNOWN_SIZE,
    Descriptor,
    Manifest,
    compute_digest,
    is_media_type,
)
from ocistream.oci.documents import guess_media_type, parse_outline
from ocistream.oci.reference import is_digest, printable
from ocistream.registry.download import BlobDownload, has_excess_length, raise_corrupt_blob
from ocistream.transfer.interfaces import RecoverableBlob

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.http.client import HttpClient
    from ocistream.http.endpoints import Endpoint
    from ocistream.http.response import Response
    from ocistream.http.retry import Retries
    from ocistream.registry.referrers import ReferrerList

_MANIFEST_TYPES: Final = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST})
_NEXT_LINK = re.compile(r"<([^<>]{1,4096})>\s*;[^,]*\brel=\"?next\b")
_PUSHED_STATUSES: Final = (200, 201, 202, 204)
_DELETED_STATUSES: Final = (200, 202, 204)
#: The digest algorithm that every registry supports for manifests; distribution 2.8 supports no other.
_CANONICAL_ALGORITHM: Final = "sha256"
#: Error codes of a registry that refuses the digest under which a manifest is pushed.
_DIGEST_REFUSAL_CODES: Final = frozenset({"DIGEST_INVALID", "UNSUPPORTED"})
#: The answer of a read-only registry to a push: of `ocistream serve` with UNSUPPORTED, of distribution without a code.
_READ_ONLY_STATUS: Final = 405


class Repository:
    """One repository, for reading and for writing. Safe for several threads.

    `for_push` and `for_delete` request these rights from the first request on, so that one token serves all requests.
    `is_named_by_user` says that the user named the registry, not a configuration; `is_replaceable`, that another
    registry can be asked instead (`HttpClient.endpoint`).
    """

    def __init__(
        self,
        client: HttpClient,
        registry: str,
        name: str,
        *,
        for_push: bool = False,
        for_delete: bool = False,
        is_named_by_user: bool = True,
        is_replaceable: bool = False,
    ) -> None:
        """Take a repository such as `library/nginx` of a registry such as `docker.io`. Send no request."""
        self.client = client
        self.name = name
        self._is_named_by_user = is_named_by_user
        #: False once the registry has shown that it lacks the referrers API, which is then not requested again.
        self.has_referrers_api = True
        self.endpoint: Endpoint = client.endpoint(
            registry, name, is_named_by_user=is_named_by_user, is_replaceable=is_replaceable
        )
        actions = ["pull", *(["push"] if for_push else []), *(["delete"] if for_delete else [])]
        self.scopes = (repository_scope(name, *actions),)
        #: Sends a request to this repository, as `HttpClient.request` does.
        self.request = partial(client.request, self.endpoint, scopes=self.scopes)
        #: A client with push rights may lack read rights (ECR without BatchGetImage): 403 then means "unknown".
        #: If pushes are denied too, the upload fails before the first byte is sent.
        self._head_statuses = (200, 403, 404) if for_push else (200, 404)

    def __str__(self) -> str:
        """Return `registry/name`."""
        return f"{self.endpoint.registry}/{self.name}"

    def reopen(self, *, is_replaceable: bool) -> Repository:
        """Return the same repository for reading, with the time-outs and retries of a replaceable or normal one."""
        registry = self.endpoint.registry
        return Repository(
            self.client, registry, self.name, is_named_by_user=self._is_named_by_user, is_replaceable=is_replaceable
        )

    def url(self, path: str) -> str:
        """Return the URL of a path in this repository, such as `blobs/uploads/`."""
        return f"{self.endpoint.url}/v2/{self.name}/{path}"

    def fetch_document(
        self, url: str, accept: str, size: int = UNKNOWN_SIZE, *, retries: Retries | None = None
    ) -> tuple[Response, bytes]:
        """Fetch a complete document of this repository, with retries; `size` is its expected size in bytes.

        If the document is larger than `MAX_MANIFEST`, return one byte more than that, so that the caller notices.

        Raises:
            NotFoundError: the document does not exist.
            NetworkError: the request failed, and retries did not help.
            IntegrityError: the registry announces more bytes than `size`.
        """

        def read(response: Response) -> None:
            if (
                size != UNKNOWN_SIZE
                and has_excess_length(response, size)
                and not has_excess_length(response, limits.MAX_MANIFEST)
            ):
                # The registry may never send these bytes. The caller reports a document above `MAX_MANIFEST`.
                response.close()
                length = printable(response.header("Content-Length") or "")
                msg = f"GET {redact_url(response.url)}: {length} bytes are announced instead of {size}"
                raise IntegrityError(msg)
            response.read(limits.MAX_MANIFEST)

        response = self.request("GET", url, headers={"Accept": accept}, retries=retries, read=read)
        return response, response.content

    # -- manifests --------------------------------------------------------------------------------------

    def resolve(self, target: str, *, strict: bool = False) -> Manifest:
        """Return the manifest of a tag or a digest: its exact bytes, and a descriptor computed from them.

        `strict` also refuses bytes that do not match the registry's own header. Use it if another location has them
        too.

        Raises:
            NotFoundError: the manifest does not exist.
            IntegrityError: the bytes do not match the requested digest (GHSA-qv35-3gw6-8q4j).
            ArchiveError: the document is not a manifest, or has another type than the registry declares.
        """
        raw, declared, stated_digest = self._fetch_manifest(target, ", ".join(ACCEPTED_TYPES))
        # The digest is computed from the bytes; headers are not trusted (distribution#4895). For a tag, the header
        # only chooses the digest algorithm.
        digest = compute_digest(raw, _algorithm(target if is_digest(target) else stated_digest))
        if is_digest(target) and digest != target:
            msg = f"{self}@{target}: the registry sent a manifest with the digest {digest}"
            raise IntegrityError(msg)
        if strict and is_digest(stated_digest) and digest != stated_digest:
            msg = f"{self}:{target}: the registry says that the digest is {stated_digest}, but it is {digest}"
            raise IntegrityError(msg)
        media_type = determine_media_type(raw, declared, f"manifest {target} of {self}")
        return Manifest(Descriptor(media_type, digest, len(raw)), raw)

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a manifest that another document lists; the caller verifies them.

        Raises:
            NotFoundError: the manifest does not exist.
        """
        return self._fetch_manifest(descriptor.digest, descriptor.media_type, descriptor.size)[0]

    def has_manifest(self, target: str) -> bool:
        """Return whether a manifest exists, by tag or digest."""
        return self.find_digest(target) is not None

    def find_digest(self, target: str) -> str | None:
        """Return the digest of a tag or of an existing manifest; None if it does not exist.

        Return "" if the manifest exists and the registry's answer to HEAD has no digest.
        """
        headers = {"Accept": ", ".join(ACCEPTED_TYPES)}
        url = self.url(f"manifests/{target}")
        response = self.request("HEAD", url, headers=headers, expected=self._head_statuses)
        return (response.header("Docker-Content-Digest") or "") if response.status == 200 else None

    def push_manifest(self, target: str, manifest: Manifest) -> str:
        """Push a manifest's exact bytes under a tag or its digest; return the subject that the registry has recorded.

        That is "" if the manifest has no subject, and if the registry keeps no list of referrers.

        Raises:
            RegistryError: the registry refuses the manifest.
            UnsupportedError: the registry is read-only, or does not support the digest algorithm.
            IntegrityError: the registry reports that it stored other bytes.
        """
        has_other_algorithm = is_digest(target) and not is_canonical_digest(target)
        try:
            response = self._push_manifest(target, manifest)
        except RegistryError as error:
            if has_other_algorithm and error.status < 500 and not _DIGEST_REFUSAL_CODES.isdisjoint(error.codes):
                raise self._unsupported_algorithm_error(target, error.message) from error
            raise
        is_stored = response.header("Docker-Content-Digest") == target
        if has_other_algorithm and not is_stored and not self.has_manifest(target):
            reason = "the registry accepted it, but does not have it under that digest"
            raise self._unsupported_algorithm_error(target, reason)
        return response.header("OCI-Subject") or ""

    def push_manifest_with_tag(self, tag: str, manifest: Manifest) -> bool:
        """Push a manifest by its digest, and set a tag in the same request (distribution-spec, "Pushing Manifests").

        Return whether the registry set the tag. The spec has this after v1.1.1; older registries store the manifest and
        ignore the tag.

        Raises:
            RegistryError: the registry refuses the manifest.
            UnsupportedError: the registry is read-only.
            IntegrityError: the registry reports that it stored other bytes.
        """
        response = self._push_manifest(f"{manifest.descriptor.digest}?tag={tag}", manifest)
        return tag in {name.strip() for name in (response.header("OCI-Tag") or "").split(",")}

    def _push_manifest(self, target: str, manifest: Manifest) -> Response:
        """Push a manifest, and check the digest of what the registry says it stored."""
        with read_only_errors(self):
            headers = {"Content-Type": manifest.descriptor.media_type}
            url = self.url(f"manifests/{target}")
            response = self.request("PUT", url, headers=headers, body=manifest.raw, expected=_PUSHED_STATUSES)
        stored = response.header("Docker-Content-Digest") or ""
        # The registry may use another digest algorithm, but it must have stored the same bytes.
        if is_digest(stored) and stored != compute_digest(manifest.raw, _algorithm(stored)):
            msg = f"{self}: pushed {manifest.descriptor.digest} as {target}, the registry stored {printable(stored)}"
            raise IntegrityError(msg)
        return response

    def delete_manifest(self, target: str) -> None:
        """Delete an existing tag; or, by digest, a manifest and all its tags. Success if it is gone afterwards.

        Raises:
            NotFoundError: the registry says that it does not exist, and still has it.
            AuthenticationError: the registry denies the deletion.
            RegistryError: the registry does not support the deletion.
        """
        try:
            self.request("DELETE", self.url(f"manifests/{target}"), expected=_DELETED_STATUSES)
        except NotFoundError:
            # The answer to an earlier attempt may have been lost.
            if self.has_manifest(target):
                raise

    def _unsupported_algorithm_error(self, digest: str, reason: str) -> UnsupportedError:
        algorithm = _algorithm(digest)
        return UnsupportedError(
            f"{self} does not accept manifests by {algorithm}, so {digest} could not be fetched again ({reason})",
            hint=f"push to a registry that knows {algorithm}, as `ocistream serve` does, or copy to an archive",
        )

    def _fetch_manifest(self, target: str, accept: str, size: int = UNKNOWN_SIZE) -> tuple[bytes, str, str]:
        """Return a manifest's bytes, and the media type and digest in the registry's headers."""
        response, raw = self.fetch_document(self.url(f"manifests/{target}"), accept, size)
        if len(raw) > limits.MAX_MANIFEST:
            msg = f"manifest {target} of {self} is larger than {limits.MAX_MANIFEST} bytes"
            raise ArchiveError(msg)
        media_type = (response.header("Content-Type") or "").partition(";")[0].strip()
        return raw, media_type, response.header("Docker-Content-Digest") or ""

    def list_referrers(self, digest: str) -> ReferrerList:
        """Return the referrers of a manifest.

        Raises:
            AuthenticationError: the registry denies access.
            RegistryError: the registry failed.
            ArchiveError: the list is malformed.
        """
        from ocistream.registry.referrers import list_referrers

        return list_referrers(self, digest)

    # -- blobs ------------------------------------------------------------------------------------------

    def has_blob(self, descriptor: Descriptor, retries: Retries | None = None) -> bool:
        """Return whether a blob exists, by HEAD; with another size it does not count.

        With `UNKNOWN_SIZE` every size is right. `retries` belong to a larger operation.
        """
        url = self.url(f"blobs/{descriptor.digest}")
        response = self.request("HEAD", url, expected=self._head_statuses, retries=retries)
        length = response.header("Content-Length")
        # Some registries omit the length in answers to HEAD (distribution#4895).
        fits = length is None or descriptor.size == UNKNOWN_SIZE or length == str(descriptor.size)
        return response.status == 200 and fits

    def blob(self, descriptor: Descriptor) -> RecoverableBlob:
        """Return a blob; the download starts when the caller opens it."""
        download = self.download(descriptor)
        return RecoverableBlob(
            descriptor,
            download.chunks,
            on_corrupt=partial(raise_corrupt_blob, str(self)),
            fetch_range=download.fetch_range,
        )

    def download(self, descriptor: Descriptor, *, strict: bool = False) -> BlobDownload:
        """Return the download of a blob; `strict` refuses headers that promise another size or digest."""
        return BlobDownload(self, descriptor, strict=strict)


def reject_web_page(raw: bytes, label: str) -> None:
    """Raise ArchiveError if a document of a registry is a web page."""
    if raw.lstrip()[:1] == b"<":
        msg = f"{label} is HTML or XML, not JSON"
        raise ArchiveError(msg, hint="the answer may come from a web server or a login page instead of a registry")


def determine_media_type(raw: bytes, declared: str, label: str) -> str:
    """Return the media type of a manifest: its own field, else the registry's header, else a guess from its shape.

    Raises:
        ArchiveError: the document is malformed, or contradicts the registry's header (CVE-2021-41190).
    """
    reject_web_page(raw, label)
    own_type = parse_outline(raw, label).get("mediaType")
    if isinstance(own_type, str) and own_type:
        if not is_media_type(own_type):
            msg = f"{label} says it is {printable(own_type)!r}, which is not a media type"
            raise ArchiveError(msg)
        if declared in _MANIFEST_TYPES and own_type in _MANIFEST_TYPES and own_type != declared:
            msg = f"{label} was sent as {declared} but says it is {own_type}"
            raise ArchiveError(msg)
        return own_type
    return declared if declared in _MANIFEST_TYPES else guess_media_type(raw, label)


@contextlib.contextmanager
def read_only_errors(repository: Repository) -> Iterator[None]:
    """Convert the refusal of a read-only registry, within a block that opens an upload or pushes a manifest.

    Raises:
        UnsupportedError: the registry does not accept pushes.
    """
    try:
        yield
    except RegistryError as error:
        if error.status != _READ_ONLY_STATUS:
            raise
        msg = f"{repository.endpoint.registry} does not accept pushes ({error.message})"
        hint = "it is read-only, or not a registry: push to another registry, or ask its operator"
        raise UnsupportedError(msg, hint=hint) from error


def is_canonical_digest(digest: str) -> bool:
    """Return whether a digest uses the algorithm that every registry supports for manifests."""
    return digest.startswith(f"{_CANONICAL_ALGORITHM}:")


def _algorithm(digest: str) -> str:
    """Return the algorithm of a digest; if the text is not a digest, the canonical one."""
    return digest.partition(":")[0] if is_digest(digest) else _CANONICAL_ALGORITHM


def next_page_url(response: Response) -> str | None:
    """Return the URL of the next page of a list (RFC 8288), on any host; None on the last page."""
    match = _NEXT_LINK.search(response.header("Link") or "")
    return resolve_url(response.url, match[1]) if match else None


def image_not_found_error(repository: object, target: str, error: NotFoundError) -> NotFoundError:
    """Build an error that names the image as the user wrote it, not the URL."""
    if is_digest(target):
        cause = error.message.replace(target, "…")
        hint = f"the image may have been deleted: `ocistream tags {repository}` lists the tags"
        return NotFoundError(f"{repository}@{target} not found ({cause})", hint=hint)
    return NotFoundError(f"{repository}:{target} not found ({error.message})", hint="check the repository and the tag")
