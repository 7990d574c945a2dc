"""The storage of the tests' registry: an OCI layout directory, and upload sessions as hidden files in it.

Tests read this directory to check what was pushed, and remove or change files of a running registry. So every request
reads the directory again, and memory has only the state that a layout cannot store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.registry.http_messages import RefusedError

Entry = dict[str, Any]

_REF_NAME: Final = "org.opencontainers.image.ref.name"
#: The annotations that may have the name of an entry; the first one counts.
_NAMES: Final = ("io.containerd.image.name", _REF_NAME, "vnd.ocistream.image.name")
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_PIECE: Final = 1 << 20
#: Seconds that a request waits for another request to the same upload session.
_PATIENCE: Final = 5.0


class Contents:
    """An OCI layout directory as repositories with tags, manifests and blobs.

    As in other registries, a repository shows only the blobs and manifests that were pushed or mounted into it.
    What was in the directory before, and what a test adds to it, is shown in all repositories.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        #: The repositories into which a blob or a manifest was pushed or mounted, by digest.
        self._blobs: dict[str, set[str]] = {}
        self._manifests: dict[str, set[str]] = {}
        #: The media type of each pushed manifest, by digest.
        self._types: dict[str, str] = {}
        self.create()

    def create(self) -> None:
        """Create an empty layout if there is none."""
        (self.path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        if not (self.path / "index.json").exists():
            self._write([])

    def blob_path(self, digest: str) -> Path:
        """Return the file of a blob."""
        algorithm, _, encoded = digest.partition(":")
        return self.path / "blobs" / algorithm / encoded

    def has_blob(self, repository: str | None, digest: str) -> bool:
        """Return whether a repository has a blob; None means any repository."""
        return self._has(self._blobs, repository, digest)

    def has_manifest(self, repository: str, digest: str) -> bool:
        """Return whether a repository has a manifest."""
        return self._has(self._manifests, repository, digest)

    def has(self, repository: str, digest: str) -> bool:
        """Return whether a repository has a blob or a manifest. An index may list both, as build caches do."""
        return self.has_manifest(repository, digest) or self.has_blob(repository, digest)

    def add_blob(self, repository: str, digest: str, file: Path | None = None) -> None:
        """Show a blob in a repository; `file`, if given, becomes the blob."""
        with self._lock:
            self._add(self._blobs, repository, digest)
            if file is not None:
                self.blob_path(digest).parent.mkdir(exist_ok=True)
                file.replace(self.blob_path(digest))

    def delete_blob(self, digest: str, repository: str | None = None) -> None:
        """Delete a blob from one repository or from all."""
        with self._lock:
            if repository is None:
                self._blobs.pop(digest, None)
                self._manifests.pop(digest, None)
            self._delete(self._blobs, repository, digest)

    def _is_known(self, digest: str) -> bool:
        return digest in self._blobs or digest in self._manifests

    def _has(self, shown: Mapping[str, set[str]], repository: str | None, digest: str) -> bool:
        there = shown.get(digest, set())
        is_shown = repository in there or (repository is None and there) or not self._is_known(digest)
        return bool(is_shown) and self.blob_path(digest).exists()

    def _add(self, shown: dict[str, set[str]], repository: str, digest: str) -> None:
        # What was in the directory before stays visible in all repositories.
        if self._is_known(digest) or not self.blob_path(digest).exists():
            shown.setdefault(digest, set()).add(repository)

    def _delete(self, shown: dict[str, set[str]], repository: str | None, digest: str) -> None:
        left = shown.pop(digest, set()) - {repository}
        if left:
            shown[digest] = left
        elif not self._is_known(digest):
            self.blob_path(digest).unlink(missing_ok=True)

    # Manifests and tags ------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Return the descriptors in index.json."""
        found: list[Entry] = json.loads((self.path / "index.json").read_bytes())["manifests"]
        return found

    def repositories(self) -> list[str]:
        """Return the names of the repositories that have tags, sorted."""
        return sorted({names[0][0] for names in map(self._names, self.entries()) if names})

    def tags(self, repository: str) -> dict[str, Entry]:
        """Return the descriptor of each tag of a repository."""
        pairs = [(name, entry) for entry in self.entries() for name in self._names(entry)]
        return {tag: entry for (path, tag), entry in pairs if path == repository}

    def manifest(self, repository: str, reference: str) -> tuple[str, str, bytes] | None:
        """Return the media type, the digest and the bytes of a manifest; None if the repository does not have it."""
        entry: Entry = {"digest": reference}
        if not _DIGEST.fullmatch(reference):
            entry = self.tags(repository).get(reference, {})
        digest = entry.get("digest", "")
        if not digest or (digest == reference and not self.has_manifest(repository, digest)):
            return None
        with contextlib.suppress(FileNotFoundError):
            raw = self.blob_path(digest).read_bytes()
            media_type = self._types.get(digest) or entry.get("mediaType") or _type_of(raw) or self._known().get(digest)
            return (media_type, digest, raw) if media_type else None
        return None

    def put_manifest(self, repository: str, digest: str, raw: bytes, media_type: str, names: Mapping[str, str]) -> None:
        """Store a manifest; `names` has the full name of each tag."""
        descriptor = {"mediaType": media_type, "digest": digest, "size": len(raw)}
        with self._lock:
            self._add(self._manifests, repository, digest)
            path = self.blob_path(digest)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(raw)
            self._types[digest] = media_type
            annotated = [{_NAMES[0]: name, _REF_NAME: tag} for tag, name in names.items()]
            kept = [
                entry
                for entry in self.entries()
                if not any((repository, tag) in self._names(entry) for tag in names)
                and (self._names(entry) or entry["digest"] != digest)
            ]
            # A layout lists a manifest without a tag only if no other entry contains it.
            new = [{**descriptor, "annotations": each} for each in annotated]
            if not new and digest not in self._below(kept):
                new = [descriptor]
            below = self._below(new) if new else {}
            kept = [entry for entry in kept if self._names(entry) or entry["digest"] not in below]
            self._write([*kept, *new])

    def delete_tag(self, repository: str, tag: str) -> bool:
        """Delete a tag, and return whether it existed. The manifest stays."""
        with self._lock:
            entries = self.entries()
            kept = [entry for entry in entries if (repository, tag) not in self._names(entry)]
            self._write(kept)
        return len(kept) < len(entries)

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Delete a manifest and its tags from one repository."""
        with self._lock:
            kept = []
            for entry in self.entries():
                paths = {path for path, _ in self._names(entry)}
                if entry["digest"] != digest or (paths and repository not in paths):
                    kept.append(entry)
            self._write(kept)
            if not any(entry["digest"] == digest for entry in kept):
                self._delete(self._manifests, repository, digest)

    def referrers(self, repository: str, subject: str) -> list[Entry]:
        """Return the descriptors of the manifests of a repository that have this subject."""
        found = []
        for digest, media_type in self._known().items():
            if not self.has_manifest(repository, digest):
                continue
            raw = self.blob_path(digest).read_bytes()
            document = _parsed(raw)
            if (document.get("subject") or {}).get("digest") != subject:
                continue
            kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
            more = {"artifactType": kind, "annotations": document.get("annotations")}
            descriptor = {"mediaType": media_type, "digest": digest, "size": len(raw)}
            found.append(descriptor | {key: value for key, value in more.items() if value})
        return found

    def _known(self) -> dict[str, str]:
        """Return the media type of each manifest that was pushed or that the layout lists, directly or in an index."""
        return {**self._below(self.entries()), **self._types}

    def _below(self, entries: list[Entry]) -> dict[str, str]:
        found: dict[str, str] = {}
        todo = list(entries)
        for entry in todo:
            if entry["digest"] not in found and self.blob_path(entry["digest"]).exists():
                found[entry["digest"]] = entry.get("mediaType", _MANIFEST)
                if "index" in found[entry["digest"]] or "manifest.list" in found[entry["digest"]]:
                    todo += _parsed(self.blob_path(entry["digest"]).read_bytes()).get("manifests") or []
        return found

    def _names(self, entry: Entry) -> list[tuple[str, str]]:
        """Return each repository and tag of an entry of index.json.

        `HOST/PATH:TAG` is in PATH and in HOST/PATH; a bare tag is in the repository named like the directory.
        """
        annotations = entry.get("annotations") or {}
        name = next((annotations[key] for key in _NAMES if annotations.get(key)), "")
        path, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            return [(self.path.name, name)] if name and not colon else []
        host, _, rest = path.partition("/")
        if rest and (re.search("[.:]", host) or host == "localhost"):
            return [(rest, tag), (path, tag)]
        return [(path, tag), (f"library/{path}", tag), (f"docker.io/library/{path}", tag)]

    def _write(self, entries: list[Entry]) -> None:
        with self._lock:
            document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}
            new = self.path / ".index.json"
            new.write_text(json.dumps(document))
            new.replace(self.path / "index.json")


def _parsed(raw: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        document = json.loads(raw)
        if isinstance(document, dict):
            return document
    return {}


def _type_of(raw: bytes) -> str | None:
    """Return the media type in a manifest, or the type that its members imply; None for other content."""
    document = _parsed(raw) if raw[:1] == b"{" else {}
    if document.get("schemaVersion") != 2:
        return None
    guessed = _INDEX if "manifests" in document else _MANIFEST if "layers" in document else None
    return document.get("mediaType") or guessed


class Upload:
    """One upload session; `offset` is the number of stored bytes."""

    def __init__(self, folder: Path, repository: str) -> None:
        self.identifier = str(uuid.uuid4())
        self.repository = repository
        self.path = folder / f".{self.identifier}.upload.partial"
        self.path.touch()
        self._lock = threading.Lock()

    @property
    def offset(self) -> int:
        """The number of stored bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other requests from changing the session during the block."""
        if not self._lock.acquire(timeout=_PATIENCE):
            raise RefusedError(429, "TOOMANYREQUESTS", "another request writes to this upload")
        try:
            if not self.path.exists():
                raise unknown_upload()
            yield
        finally:
            self._lock.release()

    def receive(self, read: Callable[[memoryview], int], buffer: memoryview) -> None:
        """Append the bytes that `read` writes into `buffer`, until it returns 0."""
        with self.path.open("ab", buffering=0) as file:
            while got := read(buffer):
                file.write(buffer[:got])

    def digest(self, algorithm: str) -> str:
        """Return the digest of the stored bytes."""
        with self.path.open("rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


class Uploads:
    """The upload sessions of a registry."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._uploads: dict[str, Upload] = {}

    def begin(self, repository: str) -> Upload:
        """Open a session."""
        upload = Upload(self._contents.path / "blobs" / "sha256", repository)
        self._uploads[upload.identifier] = upload
        return upload

    def find(self, repository: str, identifier: str) -> Upload:
        """Return a session of a repository.

        Raises:
            RefusedError: the session does not exist (404).
        """
        upload = self._uploads.get(identifier)
        if upload is None or upload.repository != repository:
            raise unknown_upload()
        return upload

    def append(self, upload: Upload, read: Callable[[memoryview], int]) -> None:
        """Append the body of a request."""
        upload.receive(read, memoryview(bytearray(_PIECE)))

    def finish(self, upload: Upload, digest: str) -> None:
        """End a session and make a blob of its bytes.

        Raises:
            RefusedError: the bytes have another digest (400).
        """
        try:
            if upload.digest(digest.partition(":")[0]) != digest:
                raise RefusedError(400, "DIGEST_INVALID", "the bytes have another digest")
            self._contents.add_blob(upload.repository, digest, upload.path)
        finally:
            self.discard(upload)

    def discard(self, upload: Upload) -> None:
        """End a session and delete its bytes."""
        self._uploads.pop(upload.identifier, None)
        upload.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End all sessions."""
        for upload in list(self._uploads.values()):
            self.discard(upload)


def unknown_upload() -> RefusedError:
    """Return the refusal for a session that does not exist."""
    return RefusedError(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
