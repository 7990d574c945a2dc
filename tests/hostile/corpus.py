"""The corpus of hostile archives: a table, each with a name, what is wrong with it, and how it is refused."""

from __future__ import annotations

from typing import Final

from tests.hostile import compressed, differing, in_docker, in_documents, in_tar
from tests.hostile.pieces import Hostile

CORPUS: Final[dict[str, Hostile]] = {
    hostile.name: hostile
    for hostile in [*in_tar.ALL, *differing.ALL, *in_documents.ALL, *in_docker.ALL, *compressed.ALL]
}
