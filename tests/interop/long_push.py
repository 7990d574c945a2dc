"""A push that takes longer than the minute that a token is valid; it mostly waits, so it can run beside other tests."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.archives import small_first, tar_of
from tests.certificates import Certificate
from tests.images import Layout
from tests.peers import docker_registry
from tests.runner import started_fork
from tests.token_server import User, token_server

MIB: Final = 1 << 20
USER: Final = "ada"
PASSWORD: Final = "lovelace: the 1st"
LOGIN: Final = {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": PASSWORD}
#: Duration of the push in seconds: distribution tolerates clocks that differ by a minute.
_LONG: Final = 67.0


@dataclasses.dataclass(frozen=True)
class Lasted:
    """The result of the push, and the requests that the registry and the token server received."""

    code: int
    errors: str
    tags: Mapping[str, str]
    granted: int
    refused: Sequence[str]


def push_for_long(folder: Path, certificate: Certificate) -> Lasted:
    """Push through a slow pipe, with tokens that are valid for a minute."""
    layout = Layout(folder / "made")
    layout.image([4 * MIB, 4 * MIB], name="v1")
    archive = tar_of(small_first(layout))
    pieces = [archive[start : start + MIB // 8] for start in range(0, len(archive), MIB // 8)]
    with (
        token_server(certificate, users={USER: User(PASSWORD)}, lifetime=0, expires_in=60) as tokens,
        docker_registry(folder / "registry", auth=tokens) as registry,
    ):
        with started_fork("push", f"{registry.host}/app:v1", stdin=subprocess.PIPE, env=LOGIN) as process:
            assert process.stdin is not None
            for piece in pieces[:-1]:
                process.stdin.write(piece)
                process.stdin.flush()
                time.sleep(_LONG / len(pieces))
            process.stdin.write(pieces[-1])
            _, errors = process.communicate()
        granted = len([request for request in tokens.requests if request.status == 200])
        refused = [request for request in registry.requests() if request.endswith(" 401")]
        return Lasted(process.returncode, errors.decode(), registry.tags("app"), granted, refused)
