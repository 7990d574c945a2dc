"""One repository in a registry: read and push manifests, check and download blobs, fetch small documents.

Knows URLs, media types and statuses. Manifests are verified here; downloaded blobs are not.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.auth.tokens import repository_scope
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OcistreamError,
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
    is_media_type,
)
from ocistream.oci.documents import guess_media_type, parse_outline
from ocistream.oci.reference import is_digest, printable
from ocistream.registry.download import BlobDownload, BlobRedirect, has_excess_length, read_range
from ocistream.streams.chunks import compute_digest
from ocistream.transfer.interfaces import Blob

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from ocistream.http.client import Endpoint, HttpClient
    from ocistream.http.connections import Response
    from ocistream.http.retry import Retries
    from ocistream.streams.chunks import Chunk

__all__ = ["Repository"]

_MANIFEST_TYPES: Final = frozenset({OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST})
_NEXT_LINK = re.compile(r"<([^<>]{1,4096})>\s*;[^,]*\brel=\"?next\b")
_PUSHED_STATUSES: Final = (200, 201, 202, 204)
#: The algorithm of the digest that every registry gives a manifest. distribution 2.8 knows no other.
_CANONICAL_ALGORITHM: Final = "sha256"
#: How a registry says that it does not take a manifest by the digest that it was given.
_DIGEST_REFUSAL_CODES: Final = frozenset({"DIGEST_INVALID", "UNSUPPORTED"})


class Repository:
    """One repository, for reading and for writing. Safe for several threads."""

    def __init__(
        self, client: HttpClient, registry: str, name: str, *, for_push: bool = False, is_explicit: bool = True
    ) -> None:
        """Name a repository such as `library/nginx` in a registry such as `docker.io`.

        `writes` asks for push rights from the first request on, so that one token serves for all of them. `named` says
        that it was the user who named the registry, and no configuration (`Transport.endpoint`).
        """
        self.client = client
        self.name = name
        self.endpoint: Endpoint = client.endpoint(registry, name, named=is_explicit)
        self.scopes = (repository_scope(name, "pull", "push") if for_push else repository_scope(name, "pull"),)
        #: Who may push may not be allowed to look (ECR without BatchGetImage), and then nothing is known to be there;
        #: where pushing is refused as well, that is found out before a byte is sent.
        self._head_statuses = (200, 403, 404) if for_push else (200, 404)

    def __str__(self) -> str:
        """Give `registry/name`."""
        return f"{self.endpoint.registry}/{self.name}"

    def url(self, path: str) -> str:
        """Give the URL of something in this repository, such as `blobs/uploads/`."""
        return f"{self.endpoint.url}/v2/{self.name}/{path}"

    def fetch_document(self, url: str, accept: str, size: int = UNKNOWN_SIZE) -> tuple[Response, bytes]:
        """Get a document of this repository whole, and anew where it breaks off; `size` is what it must have, if known.

        Of one that is longer than `MAX_MANIFEST` there is a byte more than that, by which whoever asked sees it.

        Raises:
            NotFoundError: it is not there.
            NetworkError: trying again did not help.
            IntegrityError: the registry announces more bytes than it must have.
        """
        tries = self.client.start_retries()
        while True:
            answer = self.client.request(
                self.endpoint, "GET", url, scopes=self.scopes, headers={"Accept": accept}, tries=tries
            )
            if (
                size != UNKNOWN_SIZE
                and has_excess_length(answer, size)
                and not has_excess_length(answer, limits.MAX_MANIFEST)
            ):
                # It may never send them. That a document is too large is for the caller to say.
                answer.close()
                length = printable(answer.header("Content-Length") or "")
                msg = f"GET {redact_url(answer.url)}: {length} bytes are announced, and not {size}"
                raise IntegrityError(msg)
            try:
                return answer, answer.read(limits.MAX_MANIFEST)
            except NetworkError as error:
                if not tries.wait_for_retry(error):
                    raise

    # -- manifests --------------------------------------------------------------------------------------

    def resolve(self, target: str, *, strict: bool = False) -> Manifest:
        """Get the manifest that a tag or a digest stands for, as exact bytes with a descriptor made from them.

        `strictly` takes no bytes that are not what the registry itself says they are: where another has them too.

        Raises:
            NotFoundError: it is not there.
            IntegrityError: a digest was asked for and other bytes came (GHSA-qv35-3gw6-8q4j).
            ArchiveError: it is no manifest, or it is not what the registry says it is.
        """
        raw, declared, said = self._fetch_manifest(target, ", ".join(ACCEPTED_TYPES))
        # The bytes are hashed and believed over any header (distribution#4895). Of a tag's digest the registry may
        # say which algorithm it has, and nothing else.
        digest = compute_digest(raw, _algorithm(target if is_digest(target) else said))
        if is_digest(target) and digest != target:
            msg = f"{self}@{target}: the registry sent a manifest with the digest {digest}"
            raise IntegrityError(msg)
        if strict and is_digest(said) and digest != said:
            msg = f"{self}:{target}: the registry calls the manifest {said}, and its digest is {digest}"
            raise IntegrityError(msg)
        media_type = determine_media_type(raw, declared, f"manifest {target} of {self}")
        return Manifest(Descriptor(media_type, digest, len(raw)), raw)

    def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """Get the bytes of a manifest that another document lists; whoever asked verifies them.

        Raises:
            NotFoundError: it is not there.
        """
        return self._fetch_manifest(descriptor.digest, descriptor.media_type, descriptor.size)[0]

    def has_manifest(self, digest: str) -> bool:
        """Say whether a manifest is there."""
        return self.find_digest(digest) is not None

    def find_digest(self, target: str) -> str | None:
        """Ask what a tag stands for, or whether a digest is there; None where it is not.

        A registry that does not say the digest of a tag in answer to HEAD gives "": something, but not known what.
        """
        answer = self.client.request(
            self.endpoint,
            "HEAD",
            self.url(f"manifests/{target}"),
            scopes=self.scopes,
            headers={"Accept": ", ".join(ACCEPTED_TYPES)},
            expected=self._head_statuses,
        )
        answer.drain()
        return (answer.header("Docker-Content-Digest") or "") if answer.status == 200 else None

    def push_manifest(self, target: str, manifest: Manifest) -> str:
        """Push a manifest's exact bytes under a tag or its digest; give the subject that the registry has noted for it.

        That is "" where it has none, and where the registry keeps no list of what refers to a manifest.

        Raises:
            RegistryError: the registry does not want it.
            UnsupportedError: it was pushed by its digest, and the registry does not know that algorithm.
            IntegrityError: the registry says that it stored something else.
        """
        if is_canonical_digest(target) or not is_digest(target):
            return self._push_manifest(target, manifest).header("OCI-Subject") or ""
        try:
            answer = self._push_manifest(target, manifest)
        except RegistryError as error:
            if 400 <= error.status < 500 and not _DIGEST_REFUSAL_CODES.isdisjoint(error.codes):
                raise self._unsupported_algorithm_error(target, error.message) from error
            raise
        if answer.header("Docker-Content-Digest") != target and not self.has_manifest(target):
            raise self._unsupported_algorithm_error(target, "it was taken, and is not there under that digest")
        return answer.header("OCI-Subject") or ""

    def push_manifest_with_tag(self, tag: str, manifest: Manifest) -> bool:
        """Push a manifest by its digest and have a tag point to that (distribution-spec, "Pushing Manifests").

        It says whether the registry did so. The spec has it since after v1.1.1, and who does not know it takes the
        manifest and overlooks the tag.

        Raises:
            RegistryError: the registry does not want it.
            IntegrityError: the registry says that it stored something else.
        """
        answer = self._push_manifest(f"{manifest.descriptor.digest}?tag={tag}", manifest)
        return tag in {name.strip() for name in (answer.header("OCI-Tag") or "").split(",")}

    def _push_manifest(self, target: str, manifest: Manifest) -> Response:
        answer = self.client.request(
            self.endpoint,
            "PUT",
            self.url(f"manifests/{target}"),
            scopes=self.scopes,
            headers={"Content-Type": manifest.descriptor.media_type},
            body=manifest.raw,
            expected=_PUSHED_STATUSES,
        )
        answer.drain()
        stored = answer.header("Docker-Content-Digest") or ""
        # A registry may call by sha256 what is called by sha512 elsewhere, but it must be the same bytes.
        if is_digest(stored) and stored != compute_digest(manifest.raw, _algorithm(stored)):
            msg = f"{self}: pushed {manifest.descriptor.digest} as {target}, the registry stored {printable(stored)}"
            raise IntegrityError(msg)
        return answer

    def _unsupported_algorithm_error(self, digest: str, reason: str) -> UnsupportedError:
        algorithm = _algorithm(digest)
        return UnsupportedError(
            f"{self} does not take manifests by {algorithm}, so {digest} could not be had from there again ({reason})",
            hint=f"push to a registry that knows {algorithm}, as `ocistream serve` does, or copy to an archive",
        )

    def _fetch_manifest(self, target: str, accept: str, size: int = UNKNOWN_SIZE) -> tuple[bytes, str, str]:
        """Get a manifest's bytes, and the media type and the digest that the registry says they have."""
        answer, raw = self.fetch_document(self.url(f"manifests/{target}"), accept, size)
        if len(raw) > limits.MAX_MANIFEST:
            msg = f"manifest {target} of {self} is larger than {limits.MAX_MANIFEST} bytes"
            raise ArchiveError(msg)
        media_type = (answer.header("Content-Type") or "").partition(";")[0].strip()
        return raw, media_type, answer.header("Docker-Content-Digest") or ""

    # -- blobs ------------------------------------------------------------------------------------------

    def has_blob(self, descriptor: Descriptor, retries: Retries | None = None) -> bool:
        """Say whether a blob is there, by HEAD; one of another size is not it. `tries` are those of a larger work.

        Of a descriptor with `UNKNOWN_SIZE` any size is right.
        """
        answer = self.client.request(
            self.endpoint,
            "HEAD",
            self.url(f"blobs/{descriptor.digest}"),
            scopes=self.scopes,
            expected=self._head_statuses,
            tries=retries,
        )
        answer.drain()
        length = answer.header("Content-Length")
        # Some registries leave the length away in answers to HEAD (distribution#4895).
        fits = length is None or descriptor.size == UNKNOWN_SIZE or length == str(descriptor.size)
        return answer.status == 200 and fits

    def blob(self, descriptor: Descriptor) -> Blob:
        """Give a blob, to be downloaded when it is opened."""
        chunks = partial(self.fetch_blob, descriptor)
        return Blob(
            descriptor, chunks, open_at=chunks, fetch_range=partial(self.fetch_blob_range, descriptor, BlobRedirect())
        )

    def fetch_blob(self, descriptor: Descriptor, offset: int = 0, *, strict: bool = False) -> Iterator[Chunk]:
        """Download a blob from byte `offset` on, unverified (`registry.downloads.Download`).

        Raises:
            NotFoundError: it is not there.
            NetworkError: it broke off and trying again did not help.
            IntegrityError: another size or digest was announced, and it was asked for `strictly`.
        """
        url = self.url(f"blobs/{descriptor.digest}")

        def ask(offset: int, tries: Retries) -> Response:
            return self.client.request(
                self.endpoint,
                "GET",
                url,
                scopes=self.scopes,
                headers={"Range": f"bytes={offset}-"} if offset else {},
                expected=(200, 206, 416) if offset else (200,),
                tries=tries,
            )

        return BlobDownload(ask, url, descriptor, strict=strict).chunks(offset, self.client.start_retries())

    def fetch_blob_range(
        self, descriptor: Descriptor, redirect: BlobRedirect, start: int, view: memoryview
    ) -> Generator[int, None, None]:
        """Download a blob's bytes from `start` on into `view`, unverified, by one request that is not tried again.

        Where earlier parts of it were led elsewhere, it is asked for there, as `led` has it, for as long as that goes
        well: to be led there anew costs a request for each part.

        Raises:
            NotFoundError: it is not there.
            NetworkError: it broke off, or the registry gives no parts of blobs.
        """
        end = start + len(view)
        whole = start == 0 and end == descriptor.size

        def ask(url: str) -> Response:
            return self.client.request(
                self.endpoint,
                "GET",
                url,
                scopes=self.scopes,
                headers={} if whole else {"Range": f"bytes={start}-{end - 1}"},
                expected=(200,) if whole else (200, 206),
                tries=self.client.start_retries(attempts=1),
            )

        answer: Response | None = None
        if redirect.url is not None:
            try:
                answer = ask(redirect.url)
            except OcistreamError as error:
                redirect.url = None
                if not _is_expired_redirect(error):
                    # It would be led there again.
                    raise
        if answer is None:
            answer = ask(self.url(f"blobs/{descriptor.digest}"))
            # Of several redirects, each has to be looked at in the light of the one before it.
            redirect.url = answer.url if answer.hops == 1 else None
        return read_range(answer, start, view, is_complete=whole)


def determine_media_type(raw: bytes, declared: str, what: str) -> str:
    """Settle what a manifest is: by its own word, else by the registry's, else by its shape.

    Raises:
        ArchiveError: the document is malformed, or it and the registry contradict each other (CVE-2021-41190).
    """
    if raw.lstrip()[:1] == b"<":
        msg = f"{what} is HTML or XML, and no manifest"
        raise ArchiveError(msg, hint="is it a registry that answers there, or a page to log in at?")
    own = parse_outline(raw, what).get("mediaType")
    if isinstance(own, str) and own:
        if not is_media_type(own):
            msg = f"{what} says it is {printable(own)!r}, which is no media type"
            raise ArchiveError(msg)
        if declared in _MANIFEST_TYPES and own in _MANIFEST_TYPES and own != declared:
            msg = f"{what} was sent as {declared} but says it is {own}"
            raise ArchiveError(msg)
        return own
    return declared if declared in _MANIFEST_TYPES else guess_media_type(raw, what)


def _is_expired_redirect(error: OcistreamError) -> bool:
    """Say whether that is what a signed URL answers when its time is over."""
    if isinstance(error, RegistryError):
        return error.status in {401, 403, 410}
    return isinstance(error, AuthenticationError | NotFoundError)


def is_canonical_digest(digest: str) -> bool:
    """Say whether a digest is of the algorithm by which every registry knows its manifests."""
    return digest.startswith(f"{_CANONICAL_ALGORITHM}:")


def _algorithm(digest: str) -> str:
    """Give the algorithm of a digest; of what is none, the one that every registry knows."""
    return digest.partition(":")[0] if is_digest(digest) else _CANONICAL_ALGORITHM


def next_page_url(response: Response) -> str | None:
    """Give the URL of the next page of a list (RFC 8288), wherever it leads; None on the last one."""
    match = _NEXT_LINK.search(response.header("Link") or "")
    return resolve_url(response.url, match[1]) if match else None


def image_not_found_error(
    repository: object, target: str, error: NotFoundError, *, one_of_many: bool = False
) -> NotFoundError:
    """Say "not found" in the words of a user, who named an image and not a URL, or many of them by their tags."""
    separator = "@" if is_digest(target) else ":"
    hint = None if separator == "@" else "are the repository and the tag spelt right?"
    if one_of_many and hint:
        # Tags whose manifest is gone are usual where somebody has tidied up.
        hint = f"name the others only, or leave it out of all tags: --tags '!{target}'"
    return NotFoundError(f"{repository}{separator}{target} is not there ({error.message})", hint=hint)
