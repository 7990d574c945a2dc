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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ocistream import limits
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

_Item = TypeVar("_Item")

_PROGRAM: Final = "from ocistream.signatures.verifier import main; main()"


class Verdict(NamedTuple):
    """The `signers` that have signed a message, and the `problem` of the signature if the verifier knows it."""

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
        for signer, problem in _Request(contents).run(()).problems:
            raise signer.error(printable(problem))
    return contents


def verify_messages(contents: Mapping[Signer, str], messages: Sequence[SignedMessage]) -> list[Verdict]:
    """Return for each message which of the signers, with the contents of their files, have signed it."""
    return _Request(contents).run(messages).verdicts if messages else []


class _Answer(NamedTuple):
    """What the verifier answers: `problems` of signers' files, or if there are none, a verdict on each message."""

    problems: list[tuple[Signer, str]]
    verdicts: list[Verdict]


class _Request:
    """Signers as the verifier numbers them."""

    def __init__(self, contents: Mapping[Signer, str]) -> None:
        self._contents = contents
        self._keys = [signer for signer in contents if isinstance(signer, PublicKey)]
        #: The identities of each trusted root, by its file.
        self._identities: dict[str, list[Identity]] = {}
        for signer in contents:
            if isinstance(signer, Identity):
                self._identities.setdefault(signer.trusted_root, []).append(signer)

    def run(self, messages: Sequence[SignedMessage]) -> _Answer:
        """Run the verifier, and return its answer.

        Raises:
            UnsupportedError: a package is not installed.
            OcistreamError: the verifier failed.
        """
        request = {
            "keys": [self._contents[key] for key in self._keys],
            "trusted_roots": [
                {
                    "content": self._contents[identities[0]],
                    "identities": [[signer.identity, signer.issuer] for signer in identities],
                }
                for identities in self._identities.values()
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
        answer = _run(json.dumps(request).encode())
        try:
            return self._read_answer(answer, len(messages))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            msg = "signatures cannot be checked: the process that verifies them gave an unexpected answer"
            raise OcistreamError(msg, hint="check the packages cryptography and sigstore") from error

    def _read_answer(self, answer: dict[str, Any], count: int) -> _Answer:
        """Return the answer on `count` messages. JSON of another shape raises one of Python's errors."""
        if (package := _read_text(answer.get(MISSING))) is not None:
            msg = f"signatures cannot be checked: the package {package} is not installed"
            hint = f"install it beside ocistream: `pip install {package}`, or `pipx inject ocistream {package}`"
            raise UnsupportedError(msg, hint=hint)
        roots = list(self._identities.values())
        files: list[Signer] = [*self._keys, *(identities[0] for identities in roots)]
        answers = zip(files, [*answer["keys"], *answer["trusted_roots"]], strict=True)
        problems = [(signer, problem) for signer, text in answers if (problem := _read_text(text)) is not None]
        verdicts = [
            Verdict(
                (
                    *(_find(self._keys, number) for number in verdict["keys"]),
                    *(_find(_find(roots, root), number) for root, number in verdict["identities"]),
                ),
                _read_text(verdict["problem"]),
            )
            for verdict in answer["verdicts"]
        ]
        if len(verdicts) != (0 if problems else count):
            msg = "the number of verdicts is wrong"
            raise ValueError(msg)
        return _Answer(problems, verdicts)


def _find(items: Sequence[_Item], number: int) -> _Item:
    """Return an item by its number. Unlike an index, the number is not negative."""
    return dict(enumerate(items))[number]


def _read_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    msg = "this is not text"
    raise TypeError(msg)


def _run(request: bytes) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with files.disk_errors("cannot start the process that verifies signatures"):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM], stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment
        )
        # A signal ends this process while the other one may still verify.
        with process, called_at_forced_exit(process.kill):
            try:
                output, errors = process.communicate(request, timeout=limits.VERIFIER_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                process.kill()
                msg = f"the process that verifies them was stopped after {limits.VERIFIER_TIMEOUT:g} seconds"
                raise OcistreamError(f"signatures cannot be checked: {msg}") from error
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
    return answer


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
