"""The quirks of registries in uploads, as values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Final

from tests.faulty_auth import Bearer
from tests.quirks.quirky_registry import UPLOAD, Outward, Quirk, QuirkyHandler, changed, refused, relocating
from tests.registry import Answer

_OUR_PREFIX: Final = re.compile(r"/artifacts-uploads/namespaces/p/repositories/(.+)/uploads/([0-9a-f-]{36})")
#: A signature in a query: encoding it again would change it.
SIGNATURE: Final = "sig=a%2Fb%3D+c~"


def _stated(handler: QuirkyHandler) -> int:
    return int(handler.headers.get("Content-Length", "0"))


def _from_our_prefix(handler: QuirkyHandler) -> None:
    handler.path = _OUR_PREFIX.sub(r"/v2/\1/blobs/uploads/\2", handler.path)


def _new_state(handler: QuirkyHandler, location: str) -> str:
    """Add a state to an upload's query, a different one each time, and record it."""
    memory = handler.registry.memory
    with handler.registry.lock:
        memory["states"] = memory.get("states", 0) + 1
        match = UPLOAD.match(location)
        assert match is not None
        memory["state", match[2]] = state = f"_state=n{memory['states']}-x%2By+z~%3D%3D"
    return f"{location}?{state}"


def _check_state(handler: QuirkyHandler) -> Answer | None:
    match = UPLOAD.match(handler.path)
    state = handler.registry.memory.get(("state", match[2])) if match else None
    query = handler.path.partition("?")[2]
    if state is None or query == state or query.startswith(f"{state}&"):
        return None
    return refused(400, "BLOBUPLOAD_INVALID", "this is not the upload's last state")


def _on_patch(change: Callable[[QuirkyHandler, str], str | None]) -> Outward:
    """Return a function that changes the Range of the response to a PATCH."""

    def outward(handler: QuirkyHandler, answer: Answer) -> Answer:
        if handler.command != "PATCH" or "Range" not in answer.headers:
            return answer
        return changed(answer, Range=change(handler, answer.headers["Range"]))

    return outward


def _first_range(handler: QuirkyHandler, present: str) -> str:
    with handler.registry.lock:
        kept: str = handler.registry.memory.setdefault(("range", handler.path.partition("?")[0]), present)
    return kept


def _backwards(_: QuirkyHandler, present: str) -> str:
    return f"0-{int(present.partition('-')[2]) // 2}"


def _only_the_last(handler: QuirkyHandler, present: str) -> str:
    return f"0-{_stated(handler) - 1}" if _stated(handler) else present


def _without_range(handler: QuirkyHandler, answer: Answer) -> Answer:
    return changed(answer, Range="0--1" if handler.command == "POST" else None) if "Range" in answer.headers else answer


def answering(method: str, status: int) -> Quirk:
    """Return a quirk that replaces the status of successful requests of an upload."""

    def outward(handler: QuirkyHandler, answer: Answer) -> Answer:
        good = handler.command == method and "uploads/" in handler.path and 200 <= answer.status < 300
        return dataclasses.replace(answer, status=status) if good else answer

    return Quirk(f"{method} is answered by {status}", outward=outward)


def no_larger_than(size: int, status: int, method: str = ".*", *, chunks_only: bool = False) -> Quirk:
    """Return a quirk that refuses larger bodies; with `chunks_only`, only those of a PATCH with a Content-Range."""

    def inward(handler: QuirkyHandler) -> Answer | None:
        judged = re.fullmatch(method, handler.command) and (not chunks_only or "Content-Range" in handler.headers)
        if not judged or _stated(handler) <= size:
            return None
        if status == 413:
            return Answer(413, {"Content-Type": "text/html"}, b"<h1>413 Request Entity Too Large</h1>")
        return refused(status, "REQUESTED_RANGE_NOT_SATISFIABLE", f"the request body exceeds the limit of {size} bytes")

    return Quirk(f"{'chunks' if chunks_only else method} of at most {size} bytes, else {status}", inward=inward)


def chunks_of_at_least(size: int) -> Quirk:
    """Return a quirk that requires a minimum size of chunks, except the last one."""

    def inward(handler: QuirkyHandler) -> Answer | None:
        if handler.command != "PATCH" or "Content-Range" not in handler.headers:
            return None
        upload = ("short", handler.path.partition("?")[0])
        with handler.registry.lock:
            if handler.registry.memory.get(upload):
                return refused(416, "BLOBUPLOAD_INVALID", "the chunk before was too short")
            handler.registry.memory[upload] = _stated(handler) < size
        return None

    def outward(handler: QuirkyHandler, answer: Answer) -> Answer:
        opened = handler.command == "POST" and answer.status == 202
        return changed(answer, OCI_Chunk_Min_Length=str(size)) if opened else answer

    return Quirk(f"chunks of at least {size} bytes", inward=inward, outward=outward)


def _no_chunks(handler: QuirkyHandler) -> Answer | None:
    if handler.command == "PATCH" and "Content-Range" in handler.headers:
        return refused(400, "UNSUPPORTED", "chunked uploads are not supported")
    return None


def _no_single_put(handler: QuirkyHandler) -> Answer | None:
    whole = handler.command == "PUT" and UPLOAD.match(handler.path) and "Content-Range" not in handler.headers
    return refused(404, "BLOB_UNKNOWN") if whole and _stated(handler) else None


def refusing(method: str, status: int) -> Quirk:
    """Return the quirk of a registry without this method of uploads."""

    def inward(handler: QuirkyHandler) -> Answer | None:
        return refused(status) if handler.command == method and UPLOAD.match(handler.path) else None

    return Quirk(f"{method} of an upload is answered by {status}", inward=inward)


def _expire(handler: QuirkyHandler, answer: Answer) -> Answer:
    auth = handler.registry.auth
    if handler.command == "PATCH" and isinstance(auth, Bearer):
        with handler.registry.lock:
            if not handler.registry.memory.get("expired"):
                auth.expire()
            handler.registry.memory["expired"] = True
    return answer


def _to_storage(handler: QuirkyHandler, location: str) -> str:
    return f"{handler.registry.memory['storage']}{location}?{SIGNATURE}"


ABSOLUTE: Final = Quirk(
    "Location is absolute", outward=relocating(lambda handler, location: handler.registry.url + location)
)
RELATIVE: Final = Quirk(
    "Location is relative to the request", outward=relocating(lambda _, location: location.rpartition("/")[2])
)
OTHER_PREFIX: Final = Quirk(
    "uploads have another prefix",
    inward=_from_our_prefix,
    outward=relocating(
        lambda _, location: UPLOAD.sub(r"/artifacts-uploads/namespaces/p/repositories/\1/uploads/\2", location)
    ),
)
STATE: Final = Quirk("a state in the query", inward=_check_state, outward=relocating(_new_state))
NO_LATER_LOCATION: Final = Quirk(
    "no Location after the first",
    outward=lambda handler, answer: changed(answer, Location=None) if handler.command == "PATCH" else answer,
)
NO_UUID: Final = Quirk("no Docker-Upload-UUID", outward=lambda _, answer: changed(answer, Docker_Upload_UUID=None))
STALLED_RANGE: Final = Quirk("Range stalls after the first chunk", outward=_on_patch(_first_range))
BACKWARD_RANGE: Final = Quirk("Range goes backwards", outward=_on_patch(_backwards))
LAST_RANGE: Final = Quirk("Range is the last chunk's", outward=_on_patch(_only_the_last))
NO_RANGE: Final = Quirk("no Range, and 0--1 of nothing", outward=_without_range)
NO_CHUNKS: Final = Quirk("no chunks", inward=_no_chunks)
NO_SINGLE_PUT: Final = Quirk("no blob in one PUT", inward=_no_single_put)
TOKENS_END: Final = Quirk("all tokens end with the first PATCH", outward=_expire)
UPLOADS_ELSEWHERE: Final = Quirk("uploads are on another host", elsewhere=True, outward=relocating(_to_storage))


# Quirks of the second server ------------------------------------------------------------------------------------


def _one_mechanism(handler: QuirkyHandler) -> Answer | None:
    """Refuse requests that the query alone does not authorize, as S3 does."""
    if "Authorization" in handler.headers:
        text = b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
        return Answer(400, {"Content-Type": "application/xml"}, text)
    query = handler.path.partition("?")[2]
    return None if SIGNATURE in query else Answer(403, {"Content-Type": "application/xml"}, b"<Error/>")


STORAGE: Final = Quirk(
    "storage that refuses Authorization",
    inward=_one_mechanism,
    outward=relocating(lambda _, location: f"{location}?{SIGNATURE}"),
)


# Lost responses -------------------------------------------------------------------------------------------------


def losing_answer(method: str, path: str = "") -> Quirk:
    """Return a quirk that closes the connection once instead of answering a request that was processed."""

    def outward(handler: QuirkyHandler, answer: Answer) -> Answer:
        if handler.command == method and re.search(path, handler.path) and 200 <= answer.status < 300:
            with handler.registry.lock:
                is_first = not handler.registry.memory.get(("lost", method))
                handler.registry.memory["lost", method] = True
            if is_first:
                handler.hang_up()
        return answer

    return Quirk(f"the answer to a {method} is lost", outward=outward)
