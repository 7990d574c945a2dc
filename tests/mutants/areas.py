"""The areas of the report, and why some mutants survive."""

from __future__ import annotations

import re
from typing import Final

#: Area -> a regular expression for the paths of its modules. The first match applies.
_AREAS: Final = {
    "serve": r"/serve/",
    "sync": r"/sync/|cli/commands/sync",
    "command line": r"/cli/",
    "Python API": r"/api/",
    "auth and configuration": r"/(auth|config)/",
    "upload": r"/registry/(upload|replay_buffer|profiles|blob_push)|/process_exit",
    "HTTP": r"/http/|/transfer/prefetch",
    "registry": r"/registry/",
    "remote command": r"/remote/",
    "cache and gc": r"/layout/(cache|cached_repository|gc|removal)",
    "volumes": r"/archive/(volume|joined)|/oci/volumes",
    "recompression": r"/transfer/(recompress)|/streams/compression",
    "archives and layouts": r"/(archive|layout)/",
    "transfer and documents": "",
}

#: Parts of a survivor's line -> why no test notices the mutant.
SURVIVING_FOR_A_REASON: Final[tuple[tuple[str, str], ...]] = (
    ("in  @dataclass(frozen=True, slots=True)", "no code assigns to the fields of these values"),
    ("True  ->  False  in  for (text, _), digests in zip(self._inputs", "both always have the same length"),
    ("F_SETPIPE_SZ, limits.PIPE_SIZE)  ->  pass", "a larger pipe only saves time"),
    ("enlarge_pipe(", "a larger pipe only saves time"),
    (
        "limit_rate <= _MAX_BUFFER * _PIECES_PER_SECOND  ->  (limit_rate)",
        "a large socket buffer changes no promised rate",
    ),
    (
        "references if has_room else _ManifestReferences(subject, None)",
        "a cache: what it lacks is read again, with the same answer",
    ),
    (
        "complete and references.manifest_types is None  ->  (references",
        "a cache: what it lacks is read again, with the same answer",
    ),
    ("len(_interned_strings) >= limits.MAX_INTERNED_STRINGS", "limits memory: the strings are the same"),
    ("monotonic() >= deadline  ->  False", "saves time: the next run deletes what is left"),
    ("_kept_sizes.clear()  ->  pass", "a process runs one command line and ends with it"),
    ("number is None or not number < volume.total  ->  (number is None or not", "number is None if volume is None"),
    (
        'entry.kind not in {"file", "link"} or posixpath.basename(path) in _DOCKER_V1_FIL  ->  (is_oci or posixpath',
        "directories and devices have no content: manifest.json must not name them in either case",
    ),
    (
        "or self._methods_found.get(True)  ->  (self._methods_found.get(is_size_known))",
        "saves a refused request while another upload still tries the method that it found",
    ),
    ("signal.SIG_DFL if handler is None else handler", "a process runs one command line and ends with it"),
)


def area_of(path: str) -> str:
    """Return the area that a module belongs to."""
    return next(area for area, modules in _AREAS.items() if re.search(modules, path))
