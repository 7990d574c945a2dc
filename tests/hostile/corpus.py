"""The corpus of hostile archives: a table with the name, the defect and the refusal of each."""

from __future__ import annotations

from typing import Final

from tests.hostile import (
    ambiguous_archives,
    hostile_compression,
    hostile_docker_archives,
    hostile_documents,
    hostile_tar,
)
from tests.hostile.archive_parts import Hostile

CORPUS: Final[dict[str, Hostile]] = {
    hostile.name: hostile
    for hostile in [
        *hostile_tar.ALL,
        *ambiguous_archives.ALL,
        *hostile_documents.ALL,
        *hostile_docker_archives.ALL,
        *hostile_compression.ALL,
    ]
}
#: The names of archives that could cost memory or time: each push of them has its own process.
HEAVY: Final = (
    "entries-60,000", "pax-many-keys", "pax-huge", "long-names-in-rows", "size-of-80-bits", "index-100,001",
    "index-huge", "index-items", "index-deep", "manifest-5-mib", "manifest-5-mib-hidden",
    "manifests-8-mib", "manifests-12-mib", "manifests-27,000-layers", "config-9-mib", "docker-config-9-mib",
    "docker-list-5-mib", "gzip-zeros", "gzip-zeros-behind", "gzip-much-behind", "config-deep", "keys-index-large",
    "layer-gzip-members", "name-escapes", "cut-in-body", "pax-many-records-in-all",
)  # fmt: skip
