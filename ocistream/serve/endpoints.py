"""The endpoints of distribution-spec v1.1: blobs, uploads, manifests, tags, referrers and the catalog.

No part of a path is used before it was checked to be a repository, a tag or a digest.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, cast
from urllib.parse import quote

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, OcistreamError
from ocistream.oci.descriptor import OCI_INDEX
from ocistream.oci.reference import is_digest, is_repository, parse_digest
from ocistream.oci.strict_json import canonical_json
from ocistream.serve.access_control import is_from_web_page
from ocistream.serve.errors import RequestRejectedError
from ocistream.serve.http_handler import AccessLogEntry, FileSection, HTTPRequestHandler, ServerResponse
from ocistream.serve.pagination import paginate_names, paginate_referrers
from ocistream.serve.request import parse_content_range, parse_range_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from ocistream.serve.server import ConnectionServer, Registry
    from ocistream.serve.uploads import Upload

    Endpoints: TypeAlias = Mapping[str, Callable[[], None]]

__all__ = ["RegistryHandler"]

_JSON: Final = {"Content-Type": "application/json"}
_READ_METHODS: Final = frozenset({"GET", "HEAD"})


class RegistryHandler(HTTPRequestHandler):
    """Serves one connection of a `Registry`."""

    #: What `OCI-Chunk-Min-Length` says in the answer that opens an upload, in bytes; None leaves it out.
    chunk_min_length: ClassVar[int | None] = None

    @property
    def registry(self) -> Registry:
        """The registry that this connection belongs to."""
        return cast("ConnectionServer", self.server).registry

    def log_access(self, entry: AccessLogEntry) -> None:
        """Hand the request to the registry's log."""
        if self.registry.log is not None:
            self.registry.log(entry)

    def set_waiting(self, is_waiting: bool) -> None:
        """Let the server cut the connection if the client takes too long."""
        cast("ConnectionServer", self.server).set_waiting(self.request, is_waiting)

    def write_head(self, answer: ServerResponse) -> None:
        """Say of every answer which API it belongs to: Docker's clients look for it."""
        headers = {"Docker-Distribution-Api-Version": "registry/2.0", **answer.headers}
        super().write_head(ServerResponse(answer.status, headers, answer.body))

    def dispatch(self) -> None:
        """Serve the endpoint that the path names.

        Raises:
            RefusedError: there is none (404), or not with this method (405), or a web page asks (403), or the client
                does not know the password (401).
        """
        gate = self.registry.auth
        if is_from_web_page(self.headers, has_password=gate is not None):
            raise RequestRejectedError(403, "DENIED", "this registry does not talk to web pages")
        if gate is not None:
            self.user = gate.authenticate(self.headers.get("Authorization"))
        self.mark_admitted()
        segments, self.parameters = self.parse_target()
        endpoints = self._endpoints(segments)
        where = "here"
        if self.registry.read_only:
            endpoints = {method: serve for method, serve in endpoints.items() if method in _READ_METHODS}
            where = "here: this registry is for reading only"
        serve = endpoints.get(self.command)
        if serve is None:
            allow = {"Allow": ", ".join(endpoints)}
            raise RequestRejectedError(405, "UNSUPPORTED", f"{self.command} is not possible {where}", headers=allow)
        serve()

    def _endpoints(self, segments: list[str]) -> Endpoints:
        """Give what can be done with a path, by method.

        Raises:
            RefusedError: it is none of the API (404), or a part of it is malformed (400).
        """
        match segments:
            case ["", "v2"] | ["", "v2", ""]:
                return _get_and_head(self._get_base)
            case ["", "v2", "_catalog"]:
                return _get_and_head(self._list_repositories)
            case ["", "v2", *rest]:
                return self._repository_endpoints(rest)
        raise _unknown_endpoint_error()

    def _repository_endpoints(self, segments: list[str]) -> Endpoints:
        # From the end: any of these words may be part of a repository's name as well.
        match segments:
            case [*name, "tags", "list"]:
                return _get_and_head(partial(self._list_tags, _parse_repository(name)))
            case [*name, "referrers", digest]:
                return _get_and_head(partial(self._list_referrers, _parse_repository(name), _check_digest(digest)))
            case [*name, "manifests", reference]:
                return self._manifest_endpoints(_parse_repository(name), reference)
            case [*name, "blobs", "uploads"] | [*name, "blobs", "uploads", ""]:
                return {"POST": partial(self._begin_upload, _parse_repository(name))}
            case [*name, "blobs", "uploads", identifier]:
                return self._upload_endpoints(_parse_repository(name), identifier)
            case [*name, "blobs", digest]:
                return self._blob_endpoints(_parse_repository(name), _check_digest(digest))
        raise _unknown_endpoint_error()

    def _get_base(self) -> None:
        self.respond(ServerResponse(200, _JSON, b"{}"))

    def _list_repositories(self) -> None:
        shown, link = paginate_names(self.registry.repositories.list_repositories(), self.parameters)
        self._respond_page("/v2/_catalog", {"repositories": shown}, link)

    # Blobs -------------------------------------------------------------------------------------------------

    def _blob_endpoints(self, repository: str, digest: str) -> Endpoints:
        endpoints = dict(_get_and_head(partial(self._get_blob, digest)))
        endpoints["DELETE"] = partial(self._delete_blob, digest)
        del repository  # Every blob of the layout is visible in all of them.
        return endpoints

    def _get_blob(self, digest: str) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        self._touch_blob(digest)
        with contextlib.ExitStack() as stack:
            try:
                part = stack.enter_context(self.registry.storage.open_blob_section(digest))
            except (NotFoundError, ArchiveError) as error:
                raise _unknown_blob_error(digest) from error
            except IntegrityError as error:
                if self.command == "HEAD":
                    # So that a client that pushes it sends it again.
                    raise _unknown_blob_error(digest) from error
                raise
            self._respond_content(headers, part)

    def _respond_content(self, headers: Mapping[str, str], section: FileSection) -> None:
        tag = headers["ETag"]
        if _matches_etag(tag, self.headers.get("If-None-Match")):
            self.respond(ServerResponse(304, headers))
            return
        # Only a GET has ranges; and only of the same content, if the client says which one it began with.
        wanted = self.headers.get("Range") if self.command == "GET" else None
        if self.headers.get("If-Range", tag).strip() != tag:
            wanted = None
        found = parse_range_header(wanted, section.size)
        if found is None:
            self.respond(ServerResponse(200, headers, section))
            return
        start, count = found
        # The last part is held back until all before it was read, too: so nobody puts a corrupt blob together of parts.
        # Of a very large one that takes too long: whoever puts that together hashes it.
        is_last = start + count == section.size and start <= limits.MAX_VERIFIED_BEFORE_RANGE
        digest = section.digest if is_last else None
        part = replace(section, offset=section.offset + start, size=count, digest=digest, preceding_size=start)
        self.respond(
            ServerResponse(206, {**headers, "Content-Range": f"bytes {start}-{start + count - 1}/{section.size}"}, part)
        )

    def _touch_blob(self, digest: str) -> None:
        """Have `gc` spare what a client that asks, before it pushes, is told is there."""
        if self.command != "GET" and not self.registry.read_only:
            self.registry.storage.touch(digest)

    def _delete_blob(self, digest: str) -> None:
        try:
            self.registry.storage.delete_blob(digest)
        except NotFoundError as error:
            raise _unknown_blob_error(digest) from error
        self.respond(ServerResponse(202))

    # Uploads -----------------------------------------------------------------------------------------------

    def _upload_endpoints(self, repository: str, identifier: str) -> Endpoints:
        find = partial(self.registry.uploads.find, repository, identifier)
        return {
            **_get_and_head(lambda: self._respond_upload(204, find())),
            "PATCH": lambda: self._continue_upload(find()),
            "PUT": lambda: self._finish_upload(find()),
            "DELETE": lambda: self._cancel_upload(find()),
        }

    def _begin_upload(self, repository: str) -> None:
        mounted, digest = self._parameter("mount"), self._parameter("digest")
        if is_digest(mounted):
            # First, so that what is there then stays.
            self._touch_blob(mounted)
            if self.registry.storage.blob_size(mounted) is not None:
                self._respond_created(repository, mounted)
                return
        if digest:
            _check_digest(digest)
            upload = self.registry.uploads.begin(repository, parse_digest(digest).algorithm)
            self._upload_monolithic(upload, digest)
            return
        # What cannot be mounted is uploaded (distribution-spec, "Mounting a blob from another repository").
        algorithm = self._parameter("digest-algorithm") or mounted.partition(":")[0]
        if algorithm not in {"", "sha256", "sha512"}:
            raise RequestRejectedError(400, "DIGEST_INVALID", "the digest algorithm is none of sha256 and sha512")
        upload = self.registry.uploads.begin(repository, algorithm or "sha256")
        self._respond_upload(202, upload)

    def _upload_monolithic(self, upload: Upload, digest: str) -> None:
        with self.registry.uploads.lock(upload):
            try:
                upload.receive(self.read_body, self.buffer)
                upload.finish(digest)
            finally:
                # The client was never told of the session, so nobody can go on with it.
                upload.discard()
        self._respond_created(upload.repository, digest)

    def _continue_upload(self, upload: Upload) -> None:
        with self.registry.uploads.lock(upload):
            self._receive_chunk(upload)
        self._respond_upload(202, upload)

    def _finish_upload(self, upload: Upload) -> None:
        digest = _check_digest(self._parameter("digest"))
        with self.registry.uploads.lock(upload):
            upload.expect_digest(digest)
            self._receive_chunk(upload)
            upload.finish(digest)
        self._respond_created(upload.repository, digest)

    def _cancel_upload(self, upload: Upload) -> None:
        with self.registry.uploads.lock(upload):
            upload.discard()
        self.respond(ServerResponse(204))

    def _receive_chunk(self, upload: Upload) -> None:
        """Append the request's body to an upload, if it belongs there.

        Raises:
            RefusedError: it belongs elsewhere (416), or its range is malformed or not its length (400).
        """
        stated = self.headers.get("Content-Range")
        if stated is not None:
            start, count = parse_content_range(stated)
            if start != upload.offset:
                headers = self._upload_headers(upload)
                what = f"the next byte of the upload is {upload.offset}"
                raise RequestRejectedError(416, "BLOB_UPLOAD_INVALID", what, headers=headers)
            if self.body.size != count:
                raise RequestRejectedError(400, "SIZE_INVALID", "Content-Length is not what Content-Range states")
        upload.receive(self.read_body, self.buffer)

    def _respond_upload(self, status: int, upload: Upload) -> None:
        headers = self._upload_headers(upload)
        if self.command == "POST" and self.chunk_min_length is not None:
            headers["OCI-Chunk-Min-Length"] = str(self.chunk_min_length)
        self.respond(ServerResponse(status, headers))

    def _upload_headers(self, upload: Upload) -> dict[str, str]:
        return {
            "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.identifier}",
            # No byte and one byte look the same: it is how distribution says it.
            "Range": f"0-{max(upload.offset - 1, 0)}",
            "Docker-Upload-UUID": upload.identifier,
        }

    def _respond_created(self, repository: str, digest: str) -> None:
        location = f"/v2/{repository}/blobs/{digest}"
        self.respond(ServerResponse(201, {"Location": location, "Docker-Content-Digest": digest}))

    # Manifests ---------------------------------------------------------------------------------------------

    def _manifest_endpoints(self, repository: str, reference: str) -> Endpoints:
        if ":" in reference:
            _check_digest(reference)
        return {
            **_get_and_head(partial(self._get_manifest, repository, reference)),
            "PUT": partial(self._put_manifest, repository, reference),
            "DELETE": partial(self._delete_manifest, repository, reference),
        }

    def _get_manifest(self, repository: str, reference: str) -> None:
        if is_digest(reference):
            self._touch_blob(reference)
        try:
            stored = self.registry.repositories.find_manifest(repository, reference)
        except IntegrityError as error:
            if self.command == "HEAD":
                what = f"the manifest {reference} in {repository} is corrupt"
                raise RequestRejectedError(404, "MANIFEST_UNKNOWN", what) from error
            raise
        tag = f'"{stored.digest}"'
        headers = {"Content-Type": stored.media_type, "Docker-Content-Digest": stored.digest, "ETag": tag}
        if _matches_etag(tag, self.headers.get("If-None-Match")):
            self.respond(ServerResponse(304, headers))
            return
        with contextlib.ExitStack() as stack:
            answer = ServerResponse(200, headers, stored.raw)
            if answer.size > limits.LARGE_MANIFEST:
                # From its file, since many clients may read it slowly. One that is in no file is in memory anyway.
                with contextlib.suppress(NotFoundError):
                    answer = ServerResponse(
                        200, headers, stack.enter_context(self.registry.storage.open_blob_section(stored.digest))
                    )
            del stored
            self.respond(answer)

    def _put_manifest(self, repository: str, reference: str) -> None:
        with contextlib.ExitStack() as stack:
            slots = self.registry.large_push_slots
            raw = self.read_small_body(limits.MAX_MANIFEST, lambda: stack.enter_context(slots.acquire()))
            self._push_manifest(repository, reference, raw)

    def _push_manifest(self, repository: str, reference: str, raw: bytes | None) -> None:
        if raw is None:
            what = f"a manifest has at most {limits.MAX_MANIFEST} bytes"
            raise RequestRejectedError(413, "MANIFEST_INVALID", what)
        media_type = self.headers.get("Content-Type", "").partition(";")[0].strip()
        hosts = (self.headers.get("Host", ""), self.registry.host)
        # Tags that come with a digest stand for it, whatever its algorithm (distribution-spec, "Pushing Manifests").
        tags = tuple(dict.fromkeys(self.parameters.get("tag", []))) if is_digest(reference) else ()
        pushed = self.registry.repositories.push(repository, reference, raw, media_type, hosts, tags)
        headers = {
            "Location": f"/v2/{repository}/manifests/{pushed.digest}",
            "Docker-Content-Digest": pushed.digest,
        }
        if tags:
            headers["OCI-Tag"] = ", ".join(tags)
        if pushed.subject is not None:
            headers["OCI-Subject"] = pushed.subject
        self.respond(ServerResponse(201, headers))

    def _delete_manifest(self, repository: str, reference: str) -> None:
        self.registry.repositories.delete(repository, reference)
        self.respond(ServerResponse(202))

    # Lists -------------------------------------------------------------------------------------------------

    def _list_tags(self, repository: str) -> None:
        shown, link = paginate_names(self.registry.repositories.list_tags(repository), self.parameters)
        self._respond_page(f"/v2/{repository}/tags/list", {"name": repository, "tags": shown}, link)

    def _list_referrers(self, repository: str, digest: str) -> None:
        # A plus sign in a query is a space, which no media type has: it was one that was not encoded.
        kind = self._parameter("artifactType").replace(" ", "+")
        found = self.registry.repositories.list_referrers(digest)
        if kind:
            found = [entry for entry in found if entry.get("artifactType") == kind]
        shown, last = paginate_referrers(found, self._parameter("last"))
        link = None
        if last:
            link = f"last={last}" + (f"&artifactType={quote(kind, safe='')}" if kind else "")
        headers = {"Content-Type": OCI_INDEX}
        if kind:
            headers["OCI-Filters-Applied"] = "artifactType"
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": shown}
        self._respond_page(f"/v2/{repository}/referrers/{digest}", document, link, headers)

    def _respond_page(
        self, path: str, document: Mapping[str, object], link: str | None, headers: Mapping[str, str] = _JSON
    ) -> None:
        linked = {"Link": f'<{path}?{link}>; rel="next"'} if link else {}
        self.respond(ServerResponse(200, {**headers, **linked}, canonical_json(document)))

    def _parameter(self, name: str) -> str:
        return self.parameters.get(name, [""])[0]


def _get_and_head(serve: Callable[[], None]) -> Endpoints:
    return {"GET": serve, "HEAD": serve}


def _parse_repository(segments: list[str]) -> str:
    name = "/".join(segments)
    if not is_repository(name):
        raise RequestRejectedError(400, "NAME_INVALID", "the repository's name is malformed")
    return name


def _check_digest(text: str) -> str:
    try:
        parse_digest(text)
    except OcistreamError as error:
        raise RequestRejectedError(400, "DIGEST_INVALID", error.message) from error
    return text


def _unknown_endpoint_error() -> RequestRejectedError:
    return RequestRejectedError(404, "UNSUPPORTED", "there is no such endpoint")


def _unknown_blob_error(digest: str) -> RequestRejectedError:
    return RequestRejectedError(404, "BLOB_UNKNOWN", f"there is no blob {digest}")


def _matches_etag(tag: str, header: str | None) -> bool:
    """Say whether an entity tag is among those of `If-None-Match` (RFC 9110, section 13.1.2: compared weakly)."""
    tags = [one.strip().removeprefix("W/") for one in (header or "").split(",")]
    return tag in tags or tags == ["*"]
