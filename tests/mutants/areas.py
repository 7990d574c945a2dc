"""The areas that the report sums up, and the reasons for which some mutants survive."""

from __future__ import annotations

import re
from typing import Final

#: Area -> a regular expression for the paths of its modules. The first that matches counts.
_AREAS: Final = {
    "serve": r"/serve/",
    "sync": r"/sync/|cli/(sync|split)",
    "command line": r"/cli/",
    "auth and configuration": r"/(auth|config)/",
    "upload": r"/registry/(upload|profiles|learnt_hosts)|/open_uploads",
    "HTTP": r"/http/|/transfer/prefetch",
    "registry": r"/registry/",
    "remote command": r"/remote/",
    "cache and gc": r"/layout/(cache|cached_repository|gc|removal)",
    "volumes": r"/archive/(volume|joined)|/oci/volumes",
    "recompression": r"/transfer/(recompress|rewrite)|/streams/(compression|layer_types)",
    "archives and layouts": r"/(archive|layout|stores)/",
    "transfer and documents": "",
}

#: Parts of a survivor's line -> why no test notices it.
SURVIVING_FOR_A_REASON: Final[tuple[tuple[str, str], ...]] = ()


def area_of(path: str) -> str:
    """Return the area that a module belongs to."""
    return next(area for area, modules in _AREAS.items() if re.search(modules, path))
