"""The endpoints of distribution-spec v1.1: blobs, uploads, manifests, tags, referrers and the catalog.

No part of a path is used before it was checked to be a repository, a tag or a digest.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import re
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ocistream import limits
from ocistream.errors import ArchiveError, IntegrityError, NotFoundError, OcistreamError
from ocistream.oci.descriptor import OCI_INDEX
from ocistream.oci.reference import is_digest, is_repository, parse_digest
from ocistream.oci.strict_json import canonical_json
from ocistream.serve.access_control import is_from_web_page
from ocistream.serve.http_handler import AccessLogEntry, FileSection, HTTPRequestHandler
from ocistream.serve.request import RequestRejectedError, parse_content_range, parse_range_header, split_target
from ocistream.streams.memory import allocate_buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from ocistream.serve.server import Registry
    from ocistream.serve.uploads import Upload

    Endpoints: TypeAlias = Mapping[str, Callable[[], None]]

_JSON: Final = {"Content-Type": "application/json"}
#: The weight of a media type that a client does not accept (RFC 9110, section 12.4.2).
_NO_QUALITY: Final = re.compile(r"q=0(?:\.0{0,3})?\Z")


class RegistryHandler(HTTPRequestHandler):
    """Serves one connection of a `Registry`. Tests subclass it to cause faults; it has no code for faults itself."""

    @property
    def registry(self) -> Registry:
        """The registry of this connection."""
        return self.server.registry

    def log_access(self, entry: AccessLogEntry) -> None:
        """Pass the request to the registry's log."""
        if self.registry.log is not None:
            self.registry.log(entry)

    def dispatch(self) -> None:
        """Serve the endpoint of the path.

        Raises:
            RequestRejectedError: the endpoint does not exist (404), does not support the method (405), the request
                comes from a web page (403), or the password is wrong or missing (401).
        """
        auth = self.registry.auth
        if is_from_web_page(self.headers, has_password=auth is not None):
            raise RequestRejectedError(403, "DENIED", "this registry refuses web pages")
        if auth is not None:
            self.entry.user = auth.authenticate(self.headers.get("authorization"))
        self.mark_admitted()
        segments, self.parameters = split_target(self.target)
        endpoints = self._endpoints(segments)
        place = "here"
        if self.registry.read_only:
            endpoints = {method: serve for method, serve in endpoints.items() if method == "GET"}
            place = "here: this registry is read-only"
        # The response to a HEAD is that to a GET without its body.
        serve = endpoints.get("GET" if self.method == "HEAD" else self.method)
        if serve is None:
            allow = {"Allow": ", ".join(endpoints).replace("GET", "GET, HEAD")}
            raise RequestRejectedError(405, "UNSUPPORTED", f"{self.method} is not possible {place}", headers=allow)
        try:
            serve()
        except IntegrityError as error:
            if self.method != "HEAD":
                raise
            # So a client that pushes the corrupt blob or manifest sends it again.
            raise RequestRejectedError(404, "BLOB_UNKNOWN", error.message) from error

    def _endpoints(self, segments: list[str]) -> Endpoints:
        """Return the functions for a path, by HTTP method.

        Raises:
            RequestRejectedError: the path is not part of the API (404), or a part of it is malformed (400).
        """
        match segments:
            case ["", ""] if self.method in {"GET", "HEAD"} and accepts_html(self.headers.get("accept", "")):
                return {"GET": self._get_page}
            case ["", "v2"] | ["", "v2", ""]:
                return {"GET": self._get_base}
            case ["", "v2", "_catalog"]:
                return {"GET": self._list_repositories}
            case ["", "v2", *rest]:
                return self._repository_endpoints(rest)
        raise _unknown_endpoint_error()

    def _repository_endpoints(self, segments: list[str]) -> Endpoints:
        # Matched from the end, because each of these words may also be part of a repository's name.
        match segments:
            case [*name, "tags", "list"]:
                return {"GET": partial(self._list_tags, _parse_repository(name))}
            case [*name, "referrers", digest]:
                return {"GET": partial(self._list_referrers, _parse_repository(name), _check_digest(digest))}
            case [*name, "manifests", reference]:
                repository = _parse_repository(name)
                if ":" in reference:
                    _check_digest(reference)
                return {
                    "GET": partial(self._get_manifest, repository, reference),
                    "PUT": partial(self._put_manifest, repository, reference),
                    "DELETE": partial(self._delete_manifest, repository, reference),
                }
            case [*name, "blobs", "uploads"] | [*name, "blobs", "uploads", ""]:
                return {"POST": partial(self._begin_upload, _parse_repository(name))}
            case [*name, "blobs", "uploads", identifier]:
                find = partial(self.registry.uploads.find, _parse_repository(name), identifier)
                return {
                    "GET": lambda: self._respond_upload(204, find()),
                    "PATCH": lambda: self._continue_upload(find()),
                    "PUT": lambda: self._finish_upload(find()),
                    "DELETE": lambda: self._cancel_upload(find()),
                }
            case [*name, "blobs", digest]:
                # Every blob of the layout is visible in all repositories.
                _parse_repository(name)
                _check_digest(digest)
                return {"GET": partial(self._get_blob, digest), "DELETE": partial(self._delete_blob, digest)}
        raise _unknown_endpoint_error()

    def _get_base(self) -> None:
        self.respond(200, _JSON, b"{}")

    def _get_page(self) -> None:
        from ocistream.serve.image_page import HEADERS, render_image_page

        if not self.registry.page_slot.take(timeout=limits.PAGE_TIMEOUT):
            raise RequestRejectedError(429, "TOOMANYREQUESTS", "another client still reads this page")
        try:
            host = self.headers.get("host") or self.registry.host
            pieces = self._limit_time(render_image_page(self.registry.storage, host))
            self.respond(200, HEADERS, pieces)
        finally:
            self.registry.page_slot.give_back()

    def _limit_time(self, pieces: Iterator[str]) -> Iterator[bytes]:
        """Yield a text in larger pieces, and let the connection fail if the client takes too long to read them."""
        deadline = time.monotonic() + limits.PAGE_TIMEOUT
        text = io.StringIO()
        for piece in pieces:
            text.write(piece)
            if text.tell() >= limits.MIN_READ:
                self.set_deadline(deadline)
                yield text.getvalue().encode()
                text = io.StringIO()
        self.set_deadline(deadline)
        yield text.getvalue().encode()
        self.set_deadline(None)

    def _list_repositories(self) -> None:
        page, link = _paginate_names(self.registry.storage.index().repositories(), self.parameters)
        self._respond_page("/v2/_catalog", {"repositories": page}, link)

    # Blobs -------------------------------------------------------------------------------------------------

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
                section = stack.enter_context(self.registry.storage.open_blob_section(digest))
            except (NotFoundError, ArchiveError) as error:
                raise _unknown_blob_error(digest) from error
            self._respond_content(headers, section)

    def _respond_content(self, headers: Mapping[str, str], section: FileSection) -> None:
        tag = headers["ETag"]
        if _matches_etag(tag, self.headers.get("if-none-match")):
            self.respond(304, headers)
            return
        # Only a GET may have a range, and only of the content that the client has started to read.
        range_header = self.headers.get("range") if self.method == "GET" else None
        if self.headers.get("if-range", tag) != tag:
            range_header = None
        byte_range = parse_range_header(range_header, section.size)
        if byte_range is None:
            self.respond(200, headers, section)
            return
        start, count = byte_range
        # The last range is sent only after the complete blob was hashed, so that clients do not join corrupt ranges.
        # Ranges in the middle are not verified. For a range far inside a large blob this takes too long: the client
        # must hash it.
        is_last = start + count == section.size and start <= limits.MAX_VERIFIED_BEFORE_RANGE
        digest = section.digest if is_last else None
        part = replace(section, offset=section.offset + start, size=count, digest=digest, preceding_size=start)
        content_range = f"bytes {start}-{start + count - 1}/{section.size}"
        self.respond(206, {**headers, "Content-Range": content_range}, part)

    def _touch_blob(self, digest: str) -> None:
        """Protect a blob from `gc` if a client asks whether it exists before a push."""
        if self.method != "GET" and not self.registry.read_only:
            self.registry.layout.touch(digest)

    def _delete_blob(self, digest: str) -> None:
        try:
            self.registry.layout.delete_blob(digest)
        except NotFoundError as error:
            raise _unknown_blob_error(digest) from error
        self.respond(202)

    # Uploads -----------------------------------------------------------------------------------------------

    def _begin_upload(self, repository: str) -> None:
        mounted, digest = self._parameter("mount"), self._parameter("digest")
        if is_digest(mounted):
            # Touch first, so that `gc` does not delete the blob after the check.
            self._touch_blob(mounted)
            if self.registry.storage.blob_size(mounted) is not None:
                self._respond_created(repository, mounted)
                return
        if digest:
            upload = self.registry.uploads.begin(repository, parse_digest(_check_digest(digest)).algorithm)
            # The client does not know the session.
            self._finish_upload(upload, can_resume=False)
            return
        # If the blob cannot be mounted, start an upload (distribution-spec, "Mounting a blob from another repository").
        algorithm = self._parameter("digest-algorithm") or mounted.partition(":")[0]
        if algorithm not in {"", "sha256", "sha512"}:
            raise RequestRejectedError(400, "DIGEST_INVALID", "the digest algorithm is neither sha256 nor sha512")
        upload = self.registry.uploads.begin(repository, algorithm or "sha256")
        self._respond_upload(202, upload)

    def _continue_upload(self, upload: Upload) -> None:
        with self.registry.uploads.lock(upload):
            self._receive_chunk(upload)
        self._respond_upload(202, upload)

    def _finish_upload(self, upload: Upload, *, can_resume: bool = True) -> None:
        digest = _check_digest(self._parameter("digest"))
        with self.registry.uploads.lock(upload), contextlib.ExitStack() as stack:
            if not can_resume:
                stack.callback(upload.discard)
            upload.expect_digest(digest)
            self._receive_chunk(upload)
            upload.finish(digest)
        self._respond_created(upload.repository, digest)

    def _cancel_upload(self, upload: Upload) -> None:
        with self.registry.uploads.lock(upload):
            upload.discard()
        self.respond(204)

    def _receive_chunk(self, upload: Upload) -> None:
        """Append the request's body to an upload.

        Raises:
            RequestRejectedError: the range starts elsewhere (416), is malformed, or is not the body's length (400).
        """
        content_range = self.headers.get("content-range")
        if content_range is not None:
            start, count = parse_content_range(content_range)
            if start != upload.offset:
                headers = self._upload_headers(upload)
                message = f"the next byte of the upload is {upload.offset}"
                raise RequestRejectedError(416, "BLOB_UPLOAD_INVALID", message, headers=headers)
            if self.body.size != count:
                raise RequestRejectedError(400, "SIZE_INVALID", "Content-Length is not what Content-Range states")
        upload.receive(self.body.readinto, allocate_buffer(self.server.buffer_size()))

    def _respond_upload(self, status: int, upload: Upload) -> None:
        self.respond(status, self._upload_headers(upload))

    def _upload_headers(self, upload: Upload) -> dict[str, str]:
        return {
            "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.identifier}",
            # An empty upload and one byte look the same, as in distribution.
            "Range": f"0-{max(upload.offset - 1, 0)}",
            "Docker-Upload-UUID": upload.identifier,
        }

    def _respond_created(self, repository: str, digest: str) -> None:
        location = f"/v2/{repository}/blobs/{digest}"
        self.respond(201, {"Location": location, "Docker-Content-Digest": digest})

    # Manifests ---------------------------------------------------------------------------------------------

    def _get_manifest(self, repository: str, reference: str) -> None:
        if is_digest(reference):
            self._touch_blob(reference)
        manifest = self.registry.repositories.find_manifest(repository, reference)
        digest = manifest.descriptor.digest
        tag = f'"{digest}"'
        headers = {"Content-Type": manifest.descriptor.media_type, "Docker-Content-Digest": digest, "ETag": tag}
        if _matches_etag(tag, self.headers.get("if-none-match")):
            self.respond(304, headers)
            return
        with contextlib.ExitStack() as stack:
            body: bytes | FileSection = manifest.raw
            if len(manifest.raw) > limits.LARGE_MANIFEST:
                # Send it from its file, because many clients may read it slowly. A synthesized manifest is in memory
                # anyway.
                with contextlib.suppress(NotFoundError):
                    body = stack.enter_context(self.registry.storage.open_blob_section(digest))
            del manifest
            self.respond(200, headers, body)

    def _put_manifest(self, repository: str, reference: str) -> None:
        with contextlib.ExitStack() as stack:
            slots = self.registry.large_push_slots

            def wait_for_slot() -> None:
                if not slots.take(timeout=limits.LARGE_PUSH_QUEUE_TIMEOUT):
                    raise RequestRejectedError(429, "TOOMANYREQUESTS", "too many large manifests are being pushed")
                stack.callback(slots.give_back)

            if (raw := self.read_small_body(limits.MAX_MANIFEST, wait_for_slot)) is None:
                message = f"a manifest has at most {limits.MAX_MANIFEST} bytes"
                raise RequestRejectedError(413, "MANIFEST_INVALID", message)
            self._push_manifest(repository, reference, raw)

    def _push_manifest(self, repository: str, reference: str, raw: bytes) -> None:
        media_type = self.headers.get("content-type", "").partition(";")[0].strip()
        hosts = (self.headers.get("host", ""), self.registry.host)
        # The tags of a push by digest refer to that digest, also if it is not sha256 (distribution-spec, "Pushing
        # Manifests").
        tags = tuple(dict.fromkeys(self.parameters.get("tag", []))) if is_digest(reference) else ()
        digest, subject = self.registry.repositories.push(repository, reference, raw, media_type, hosts, tags)
        headers = {
            "Location": f"/v2/{repository}/manifests/{digest}",
            "Docker-Content-Digest": digest,
        }
        if tags:
            headers["OCI-Tag"] = ", ".join(tags)
        if subject is not None:
            headers["OCI-Subject"] = subject
        self.respond(201, headers)

    def _delete_manifest(self, repository: str, reference: str) -> None:
        self.registry.repositories.delete(repository, reference)
        self.respond(202)

    # Lists -------------------------------------------------------------------------------------------------

    def _list_tags(self, repository: str) -> None:
        page, link = _paginate_names(self.registry.repositories.list_tags(repository), self.parameters)
        self._respond_page(f"/v2/{repository}/tags/list", {"name": repository, "tags": page}, link)

    def _list_referrers(self, repository: str, digest: str) -> None:
        # A plus sign in a query decodes to a space, which no media type has: the client did not encode the plus.
        artifact_type = self._parameter("artifactType").replace(" ", "+")
        referrers = self.registry.repositories.list_referrers(digest)
        if artifact_type:
            referrers = [entry for entry in referrers if entry.get("artifactType") == artifact_type]
        page, last = _paginate_referrers(referrers, self._parameter("last"))
        link = None
        if last:
            link = f"last={last}" + (f"&artifactType={quote(artifact_type, safe='')}" if artifact_type else "")
        headers = {"Content-Type": OCI_INDEX}
        if artifact_type:
            headers["OCI-Filters-Applied"] = "artifactType"
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        self._respond_page(f"/v2/{repository}/referrers/{digest}", document, link, headers)

    def _respond_page(
        self, path: str, document: Mapping[str, object], link: str | None, headers: Mapping[str, str] = _JSON
    ) -> None:
        link_header = {"Link": f'<{path}?{link}>; rel="next"'} if link else {}
        self.respond(200, {**headers, **link_header}, canonical_json(document))

    def _parameter(self, name: str) -> str:
        return self.parameters.get(name, [""])[0]


def accepts_html(accept: str) -> bool:
    """Return whether an `Accept` header names HTML, as those of browsers do. Other clients send at most `*/*`."""
    for item in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        if media_type == "text/html":
            return not any(_NO_QUALITY.match(parameter) for parameter in parameters)
    return False


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
    return RequestRejectedError(404, "UNSUPPORTED", "no such endpoint")


def _unknown_blob_error(digest: str) -> RequestRejectedError:
    return RequestRejectedError(404, "BLOB_UNKNOWN", f"no such blob: {digest}")


def _matches_etag(tag: str, header: str | None) -> bool:
    """Return whether an entity tag is in `If-None-Match` (RFC 9110, section 13.1.2: weak comparison)."""
    tags = [item.strip().removeprefix("W/") for item in (header or "").split(",")]
    return tag in tags or tags == ["*"]


# -- pages ---------------------------------------------------------------------------------------------------

_COUNT: Final = re.compile(r"[0-9]{1,9}\Z")
#: Bytes of the index around a page of referrers.
_INDEX_OVERHEAD: Final = limits.KIB


def _lexical_key(name: str) -> tuple[str, str]:
    return name.lower(), name


def _paginate_names(names: list[str], parameters: Mapping[str, list[str]]) -> tuple[list[str], str | None]:
    """Return up to `n` of the `names` after `last`, and the query of the next page or None.

    The order ignores case (distribution-spec, "Listing Tags").

    Raises:
        RequestRejectedError: `n` is not a number (400).
    """
    last, count = parameters.get("last", [""])[0], parameters.get("n", [""])[0]
    names = sorted(names, key=_lexical_key)
    remaining = names[bisect.bisect_right(names, _lexical_key(last), key=_lexical_key) :] if last else names
    if not count:
        return remaining, None
    if not _COUNT.match(count):
        raise RequestRejectedError(400, "UNSUPPORTED", "n is not a number")
    page = remaining[: int(count)]
    has_more = page and len(page) < len(remaining)
    return page, f"n={int(count)}&last={quote(page[-1], safe='')}" if has_more else None


def _paginate_referrers(
    descriptors: Sequence[Mapping[str, Any]], last: str
) -> tuple[list[Mapping[str, Any]], str | None]:
    """Return the descriptors after the digest `last` that fit into one manifest, at least one.

    Also return the value of `last` for the next page, or None.
    """
    digests = [descriptor["digest"] for descriptor in descriptors]
    start = digests.index(last) + 1 if last in digests else 0
    page: list[Mapping[str, Any]] = []
    size = _INDEX_OVERHEAD
    for descriptor in descriptors[start:]:
        size += len(canonical_json(descriptor)) + 1
        if page and size > limits.MAX_MANIFEST:
            return page, page[-1]["digest"]
        page.append(descriptor)
    return page, None
