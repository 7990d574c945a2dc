"""Run credential helpers (`docker-credential-NAME`) to get, store and erase credentials.

Time and output of a helper are bounded, and its output is never shown.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from select import PIPE_BUF
from subprocess import DEVNULL, PIPE
from typing import IO, TYPE_CHECKING, Final, cast

from ocistream.errors import ArchiveError, AuthenticationError, UsageError
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json
from ocistream.process_exit import called_at_forced_exit

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Maximum size of a helper's output in bytes.
MAX_HELPER_OUTPUT: Final = 64 * 1024
#: Timeout of a helper in seconds, including the time in which a user types a passphrase.
HELPER_TIMEOUT: Final = 30.0
#: The name becomes part of a program's name.
_NAME: Final = re.compile(r"[a-z0-9-]+\Z")
#: The only error text that all helpers share (docker-credential-helpers, credentials/error.go).
_NOT_FOUND: Final = b"credentials not found in native keychain"


@dataclass(frozen=True, slots=True)
class CredentialHelper:
    """A credential helper. `env` is its environment, with the PATH to find it; `configured_in` is for errors."""

    name: str
    env: Mapping[str, str] = field(repr=False)
    configured_in: str

    def __post_init__(self) -> None:
        """Refuse a name that could lead to another program.

        Raises:
            UsageError: the name is not `[a-z0-9-]+`.
        """
        if not _NAME.match(self.name):
            msg = f"{self.configured_in}: {printable(self.name)!r} is not the name of a credential helper"
            raise UsageError(
                msg, hint="after docker-credential-, only lower-case letters, digits and hyphens are allowed"
            )

    @property
    def program(self) -> str:
        """The name of the program, without a path."""
        return f"docker-credential-{self.name}"

    def get(self, server: str) -> tuple[str, str] | None:
        """Return user name and secret for `server`; None if the helper has none.

        Raises:
            AuthenticationError: the helper is missing, failed, timed out, or returned malformed output.
        """
        status, output = self._run("get", server.encode())
        if status and _NOT_FOUND in output:
            return None
        if status:
            raise self._error(f"exit status {status} of get")
        try:
            fields = parse_json(output, "its answer", MAX_HELPER_OUTPUT)
        except ArchiveError as error:
            # Without its cause, which contains the output.
            raise self._error(error.message) from None
        username, secret = fields.get("Username", ""), fields.get("Secret", "")
        if not isinstance(username, str) or not isinstance(secret, str):
            raise self._error("its output has no user name and secret")
        return (username, secret) if username or secret else None

    def store(self, server: str, username: str, secret: str) -> None:
        """Store a user name and a secret for `server` in the helper.

        Raises:
            AuthenticationError: as `get`.
        """
        self._run_or_fail("store", json.dumps({"ServerURL": server, "Username": username, "Secret": secret}).encode())

    def erase(self, server: str) -> None:
        """Remove `server` from the helper.

        Raises:
            AuthenticationError: as `get`.
        """
        self._run_or_fail("erase", server.encode())

    def _run_or_fail(self, verb: str, request: bytes) -> None:
        status, _ = self._run(verb, request)
        if status:
            raise self._error(f"exit status {status} of {verb}")

    def _error(self, reason: str) -> AuthenticationError:
        msg = f"credential helper {self.program} failed: {reason}"
        return AuthenticationError(msg, hint=f"install or repair the helper, or remove it from {self.configured_in}")

    def _run(self, verb: str, request: bytes) -> tuple[int, bytes]:
        """Run the helper to its end; return its exit status and output."""
        # A relative entry of PATH would run a program from the working directory.
        entries = [entry for entry in self.env.get("PATH", "").split(os.pathsep) if Path(entry).is_absolute()]
        path = shutil.which(self.program, path=os.pathsep.join(entries))
        if path is None:
            raise self._error("it is not in PATH")
        deadline = time.monotonic() + HELPER_TIMEOUT
        try:
            process = subprocess.Popen(
                [path, verb], bufsize=0, env=dict(self.env), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
            )
        except OSError as error:
            raise self._error(error.strerror or "it cannot be run") from error
        with process, called_at_forced_exit(process.kill):
            try:
                output = _exchange(process, request, deadline)
                if len(output) > MAX_HELPER_OUTPUT:
                    raise self._error(f"its output is larger than {MAX_HELPER_OUTPUT} bytes")
                return process.wait(max(0.0, deadline - time.monotonic())), output
            except (TimeoutError, subprocess.TimeoutExpired):
                raise self._error(f"no answer within {HELPER_TIMEOUT:g} seconds") from None
            finally:
                process.kill()


def _exchange(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes:
    """Write `request` and return the output, cut to one byte more than its limit. Raise TimeoutError at `deadline`.

    `Popen.communicate` also has a timeout, but would store any amount of output.
    """
    stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    output = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(stdin, selectors.EVENT_WRITE)
        waiting.register(stdout, selectors.EVENT_READ)
        while len(output) <= MAX_HELPER_OUTPUT:
            ready = [key.fileobj for key, _ in waiting.select(max(0.0, deadline - time.monotonic()))]
            if not ready:
                raise TimeoutError
            if stdin in ready:
                try:
                    # A pipe that select calls writable takes PIPE_BUF bytes without blocking.
                    request = request[stdin.write(request[:PIPE_BUF]) :]
                except BrokenPipeError:
                    request = b""  # some helpers reply without reading their input
                if not request:
                    waiting.unregister(stdin)
                    stdin.close()
            if stdout in ready:
                part = stdout.read(MAX_HELPER_OUTPUT + 1 - len(output))
                if not part:
                    break
                output += part
    return output
