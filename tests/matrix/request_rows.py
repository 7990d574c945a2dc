"""The rows of the matrix: the kinds of requests of a command, from an undisturbed run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from tests.faulty_registry import Fault, Request

_MANIFEST = re.compile(r"/manifests/([^/?]+)")
_BLOB = re.compile(r"/blobs/([a-z0-9]+:[0-9a-f]+)")


@dataclasses.dataclass(frozen=True)
class Contents:
    """The names of blobs in the table: by digest, and by size if the request has only that."""

    by_digest: Mapping[str, str]
    by_size: Mapping[int, str]

    def kind(self, request: Request) -> str:
        """Return the purpose of a request. A new kind of request has its own row, named by its method and path."""
        words = f"{request.method} {self._what(request)}"
        first = "Authorization" not in request.headers and request.path != "/token"
        return f"{words}, before there is a token" if first else words

    def _what(self, request: Request) -> str:
        path = request.path
        if match := _MANIFEST.search(path):
            kinds = {":": "manifest by digest", "-": "signature by tag"}
            return next((kind for mark, kind in kinds.items() if match[1].startswith(f"sha256{mark}")), "image by tag")
        if "/blobs/uploads/" in path:
            has_body = request.headers.get("Content-Length") != "0"
            if "digest" in request.query and not has_body:
                return "end of upload"
            return f"upload of a {self._body(request)}" if request.method in {"PATCH", "PUT"} else "upload"
        if match := _BLOB.search(path):
            return "blob" if request.method == "HEAD" else self.by_digest.get(match[1], "blob")
        return "referrers" if "/referrers/" in path else path.lstrip("/")

    def _body(self, request: Request) -> str:
        return self.by_size.get(int(request.headers.get("Content-Length", "0")), "blob")


@dataclasses.dataclass(frozen=True)
class Step:
    """A row: the requests of one kind to one registry. Sizes are those of the first request's bodies, in bytes.

    `first` is the position of the first request among those to the registry, from 1.
    """

    registry: str
    kind: str
    first: int
    sent: int
    answered: int

    @property
    def method(self) -> str:
        """The method of the request."""
        return self.kind.partition(" ")[0]

    @property
    def before_token(self) -> bool:
        """Whether this request is answered with 401."""
        return self.kind.endswith("before there is a token")

    @property
    def what(self) -> str:
        """The purpose of the request, with or without a token."""
        return self.kind.partition(" ")[2].partition(",")[0]


def steps_of(registry: str, requests: Sequence[Request], kind: Callable[[Request], str]) -> list[Step]:
    """Return the rows of an undisturbed run, in order."""
    found: dict[str, Step] = {}
    for number, request in enumerate(requests, 1):
        sent = int(request.headers.get("Content-Length", "0"))
        found.setdefault(kind(request), Step(registry, kind(request), number, sent, request.answered))
    return list(found.values())


@dataclasses.dataclass
class At(Fault):
    """A fault for the requests of one kind, from any connection."""

    kind: str = ""
    kind_of: Callable[[Request], str] = lambda _: ""
    before_auth: bool = True

    def strikes(self, request: Request) -> bool:
        """Return whether the fault applies to this request, and count it."""
        return self.kind_of(request) == self.kind and super().strikes(request)
