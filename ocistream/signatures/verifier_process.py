"""Verify signatures in a process of its own, which has the packages that a copy has no memory for.

The signer alone decides the algorithm and the hash: a document that came with an image has no say in them.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream.errors import OcistreamError, UnsupportedError
from ocistream.oci.reference import printable
from ocistream.process_exit import called_at_forced_exit
from ocistream.signatures.signers import Identity, PublicKey
from ocistream.signatures.verifier import MISSING
from ocistream.streams import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ocistream.signatures.messages import SignedMessage
    from ocistream.signatures.signers import Signer

_PROGRAM: Final = "from ocistream.signatures.verifier import main; main()"


class Verdict(NamedTuple):
    """The `signers` that have signed a message, and the `problem` of the certificate that came with the signature."""

    signers: tuple[Signer, ...]
    problem: str | None


def load_signers(signers: Iterable[Signer]) -> dict[Signer, str]:
    """Read and check the files of signers. Return the content of the file of each signer.

    Raises:
        UsageError: a file has another content than one public key of a supported kind, or a trusted root.
        UnsupportedError: a package is not installed.
        NotFoundError, LocalDiskError: a file cannot be read.
    """
    contents = {signer: signer.read() for signer in signers}
    if contents:
        request = _Request(contents)
        answer = request.run(())
        for key, problem in zip(request.keys, answer["keys"], strict=True):
            if problem is not None:
                raise key.error(problem)
        for identities, problem in zip(request.identities.values(), answer["trusted_roots"], strict=True):
            if problem is not None:
                raise identities[0].error(printable(problem))
    return contents


def verify_messages(contents: Mapping[Signer, str], messages: Sequence[SignedMessage]) -> list[Verdict]:
    """Return for each message which of the signers, with the contents of their files, have signed it."""
    if not messages:
        return []
    request = _Request(contents)
    roots = list(request.identities.values())
    return [
        Verdict(
            (
                *(request.keys[number] for number in verdict["keys"]),
                *(roots[root][number] for root, number in verdict["identities"]),
            ),
            verdict["problem"],
        )
        for verdict in request.run(messages)["verdicts"]
    ]


class _Request:
    """Signers as the verifier numbers them."""

    def __init__(self, contents: Mapping[Signer, str]) -> None:
        self._contents = contents
        self.keys = [signer for signer in contents if isinstance(signer, PublicKey)]
        #: The identities of each trusted root, by its file.
        self.identities: dict[str, list[Identity]] = {}
        for signer in contents:
            if isinstance(signer, Identity):
                self.identities.setdefault(signer.trusted_root, []).append(signer)

    def run(self, messages: Sequence[SignedMessage]) -> dict[str, Any]:
        """Run the verifier, and return its answer."""
        request = {
            "keys": [self._contents[key] for key in self.keys],
            "trusted_roots": [
                {
                    "content": self._contents[identities[0]],
                    "identities": [[signer.identity, signer.issuer] for signer in identities],
                }
                for identities in self.identities.values()
            ],
            "messages": [
                {
                    "signature": _encode(message.signature),
                    "message": _encode(message.message),
                    "bundle": None if message.bundle is None else _encode(message.bundle),
                    "is_statement": message.is_statement,
                }
                for message in messages
            ],
        }
        return _run(json.dumps(request).encode())


def _run(request: bytes) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with files.disk_errors("cannot start the process that verifies signatures"):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM], stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment
        )
        # A signal ends this process while the other one may still verify.
        with process, called_at_forced_exit(process.kill):
            try:
                output, errors = process.communicate(request)
            except BaseException:  # Ctrl-C included: the caller of the Python API may go on
                process.kill()
                raise
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError as error:
        code = process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        reason = printable(errors.decode(errors="replace").strip().rpartition("\n")[2])
        msg = f"signatures cannot be checked: the process that verifies them {how}{reason and f': {reason}'}"
        raise OcistreamError(msg) from error
    if (package := answer.get(MISSING)) is not None:
        msg = f"signatures cannot be checked: the package {package} is not installed"
        hint = f"install it beside ocistream: `pip install {package}`, or `pipx inject ocistream {package}`"
        raise UnsupportedError(msg, hint=hint)
    return answer


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
