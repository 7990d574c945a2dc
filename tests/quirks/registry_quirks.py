"""The quirks of registries, except those of uploads, as values."""

from __future__ import annotations

import gzip
import re
import time
import urllib.parse
from email.utils import formatdate
from typing import Final, Literal

from tests.faulty_registry import pieces_of
from tests.quirks.quirky_registry import Inward, Quirk, QuirkyHandler, changed, refused, relocating
from tests.quirks.upload_quirks import SIGNATURE
from tests.registry import Answer

_BLOB: Final = re.compile(r"/v2/.+/blobs/sha[0-9]+:[0-9a-f]+\Z")


# Mounts, cookies ------------------------------------------------------------------------------------------------


def _mount_without_from(handler: QuirkyHandler) -> Answer | None:
    query = urllib.parse.parse_qs(handler.path.partition("?")[2])
    return refused(400) if "mount" in query and "from" not in query else None


def refused_mounts(status: int) -> Quirk:
    """Return the quirk of answering mounts with an error."""
    return Quirk(
        f"mounts are answered by {status}",
        inward=lambda handler: refused(status) if "mount=" in handler.path and handler.command == "POST" else None,
    )


def _mount_to_upload(handler: QuirkyHandler) -> None:
    path, _, query = handler.path.partition("?")
    if handler.command == "POST" and "mount=" in query:
        handler.path = path


def _asked_in_location(handler: QuirkyHandler, location: str) -> str:
    # Another quirk may have changed the path.
    asked = handler.request_now
    query = asked.target.partition("?")[2] if asked else ""
    return f"{location}?{query}" if handler.command == "POST" and "mount=" in query else location


def _cookie_wants_csrf(handler: QuirkyHandler) -> Answer | None:
    changes = handler.command in {"POST", "PUT", "PATCH", "DELETE"}
    return (
        refused(403, "FORBIDDEN", "CSRF token not found in request")
        if changes and "Cookie" in handler.headers
        else None
    )


MOUNT_WANTS_FROM: Final = Quirk("no mount without from", inward=_mount_without_from)
MOUNT_IS_UPLOAD: Final = Quirk(
    "a mount becomes an upload with mount= in its Location",
    inward=_mount_to_upload,
    outward=relocating(_asked_in_location),
)
COOKIES: Final = Quirk(
    "cookies turn on CSRF protection",
    inward=_cookie_wants_csrf,
    outward=lambda _, answer: changed(answer, Set_Cookie="sid=c0ffee; Path=/; HttpOnly"),
)


# Reading --------------------------------------------------------------------------------------------------------


def _to_stored_blob(handler: QuirkyHandler) -> Answer | None:
    path = handler.path.partition("?")[0]
    if handler.command != "GET" or not _BLOB.match(path):
        return None
    return Answer(307, {"Location": f"{handler.registry.memory['storage']}{path}?{SIGNATURE}"})


def _to_relative(handler: QuirkyHandler) -> Answer | None:
    if handler.path.startswith("/stored/"):
        handler.path = handler.path.removeprefix("/stored").partition("?")[0]
        return None
    path = handler.path.partition("?")[0]
    wanted = handler.command == "GET" and _BLOB.match(path)
    return Answer(302, {"Location": f"/stored{path}?{SIGNATURE}"}) if wanted else None


def _compressed(handler: QuirkyHandler, answer: Answer) -> Answer:
    asked = handler.headers.get("Accept-Encoding", "")
    if handler.command != "GET" or answer.status not in {200, 206} or asked == "identity":
        return answer
    body = gzip.compress(b"".join(pieces_of(answer.body)))
    return Answer(answer.status, {**answer.headers, "Content-Encoding": "gzip"}, body)


def _unsized_head(handler: QuirkyHandler, answer: Answer) -> Answer:
    handler.unsized = handler.command == "HEAD"
    return answer


def _wrong_digest(handler: QuirkyHandler, answer: Answer) -> Answer:
    lies = handler.command in {"GET", "HEAD"} and answer.status == 200
    return changed(answer, Docker_Content_Digest=f"sha256:{'0' * 64}") if lies else answer


def _no_parts(handler: QuirkyHandler) -> None:
    del handler.headers["Range"]


def _not_found_in_words(handler: QuirkyHandler, answer: Answer) -> Answer:
    if answer.status != 404 or handler.command == "HEAD":
        return answer
    return refused(404, "UNKNOWN", "unknown: artifact app:1 not found")


def _not_found_as_forbidden(handler: QuirkyHandler, answer: Answer) -> Answer:
    hidden = answer.status == 404 and handler.command in {"GET", "HEAD"}
    return refused(403, "DENIED", "requested access to the resource is denied") if hidden else answer


def _no_looking(handler: QuirkyHandler) -> Answer | None:
    if handler.command != "HEAD":
        return None
    return refused(403, "DENIED", "not authorized to perform ecr:BatchGetImage")


BLOBS_ELSEWHERE: Final = Quirk("blobs are on another host", elsewhere=True, inward=_to_stored_blob)
RELATIVE_REDIRECT: Final = Quirk("blobs are elsewhere on this host", inward=_to_relative)
GZIPS: Final = Quirk("compresses unless identity is asked for", outward=_compressed)
UNSIZED_HEAD: Final = Quirk("HEAD has no Content-Length", outward=_unsized_head)
NO_DIGESTS: Final = Quirk(
    "no Docker-Content-Digest", outward=lambda _, answer: changed(answer, Docker_Content_Digest=None)
)
WRONG_DIGESTS: Final = Quirk("a wrong Docker-Content-Digest", outward=_wrong_digest)
NO_PARTS: Final = Quirk("no ranges", inward=_no_parts)
UNKNOWN_IN_WORDS: Final = Quirk("not found is UNKNOWN in words", outward=_not_found_in_words)
NOT_FOUND_IS_403: Final = Quirk("not found is 403", outward=_not_found_as_forbidden)
NO_LOOKING: Final = Quirk("who may push may not look", inward=_no_looking)


# Manifests, rates -----------------------------------------------------------------------------------------------


def _strict_types(handler: QuirkyHandler) -> Answer | None:
    """Record the Content-Type of each manifest in `memory`, by reference."""
    if handler.command == "PUT" and "/manifests/" in handler.path:
        with handler.registry.lock:
            handler.registry.memory["type", handler.path.rpartition("/")[2]] = handler.headers.get("Content-Type")
    return None


def once_each(name: str, refuse: Inward, *, methods: str = ".*") -> Quirk:
    """Return a quirk that does this to the first request of each method and target."""

    def inward(handler: QuirkyHandler) -> Answer | None:
        key = (name, handler.command, re.sub(r"uploads/.*", "uploads/", handler.path))
        with handler.registry.lock:
            first = not handler.registry.memory.get(key)
            handler.registry.memory[key] = True
        return refuse(handler) if first and re.fullmatch(methods, handler.command) else None

    return Quirk(name, inward=inward)


def _hang_up(handler: QuirkyHandler) -> None:
    handler.hang_up()


#: Methods whose bodies can always be sent again.
_REPEATED: Final = "GET|HEAD|POST|PUT"


def too_many(form: Literal["seconds", "date", "nothing"], *, methods: str = _REPEATED) -> Quirk:
    """Return a quirk that answers each first request with 429, and says in this form how long to wait."""

    def refuse(_: QuirkyHandler) -> Answer:
        waits = {"seconds": {"Retry_After": "7"}, "date": {"Retry_After": formatdate(time.time() + 7, usegmt=True)}}
        return refused(429, "TOOMANYREQUESTS", "slow down", **waits.get(form, {}))

    return once_each(f"429 once each, {form} to wait", refuse, methods=methods)


def in_trouble(status: int, *, methods: str = _REPEATED) -> Quirk:
    """Return a quirk that answers each first request with this error."""
    return once_each(f"{status} once each", lambda _: refused(status, "UNKNOWN"), methods=methods)


def hanging_up(*, methods: str = _REPEATED) -> Quirk:
    """Return a quirk that closes the connection on each first request."""
    return once_each("hangs up once each", _hang_up, methods=methods)


KEEPS_TYPES: Final = Quirk("keeps how manifests were called", inward=_strict_types)
DROPS: Final = hanging_up()
NO_SUBJECT: Final = Quirk("no OCI-Subject", outward=lambda _, answer: changed(answer, OCI_Subject=None))


def no_referrers(status: int) -> Quirk:
    """Return the quirk of a registry without the referrers API."""
    return Quirk(
        f"referrers are answered by {status}",
        inward=lambda handler: refused(status) if "/referrers/" in handler.path else None,
    )


# Blobs of repositories, challenges ------------------------------------------------------------------------------


def only_in(*repositories: str) -> Quirk:
    """Return the quirk that only these repositories have blobs, until blobs are pushed or mounted elsewhere.

    A mount from another repository becomes an upload.
    """

    def inward(handler: QuirkyHandler) -> Answer | None:
        path, _, query = handler.path.partition("?")
        name, _, digest = path.removeprefix("/v2/").rpartition("/blobs/")
        source = urllib.parse.parse_qs(query).get("from", [""])[0]
        if handler.command == "POST" and source and source not in repositories:
            handler.path = path
        if handler.command != "HEAD" or not digest.startswith("sha") or name in repositories:
            return None
        return None if ("has", name, digest) in handler.registry.memory else refused(404, "BLOB_UNKNOWN")

    def outward(handler: QuirkyHandler, answer: Answer) -> Answer:
        if handler.command in {"POST", "PUT"} and answer.status == 201 and "/blobs/uploads/" in handler.path:
            name = handler.path.removeprefix("/v2/").partition("/blobs/")[0]
            query = urllib.parse.parse_qs(handler.path.partition("?")[2])
            digest = (query.get("digest") or query.get("mount") or [""])[0]
            with handler.registry.lock:
                handler.registry.memory["has", name, digest] = True
        return answer

    return Quirk(f"blobs are only in {' and '.join(repositories) or 'no repository'}", inward=inward, outward=outward)


def asking_for(scopes: str) -> Quirk:
    """Return a quirk that adds further scopes to a challenge, before its own."""

    def outward(_: QuirkyHandler, answer: Answer) -> Answer:
        challenge = answer.headers.get("WWW-Authenticate", "")
        return changed(answer, WWW_Authenticate=challenge.replace('scope="', f'scope="{scopes} ') or None)

    return Quirk("asks for more scopes", outward=outward)
