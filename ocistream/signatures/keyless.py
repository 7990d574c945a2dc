"""Verify keyless signatures with the package `sigstore`: by certificates for identities, and entries of a log.

Only the process of `ocistream.signatures.verifier` imports this module. With a given trusted root, the package asks no
server: a bundle has the certificate, and the proof that the log has its signature.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from cryptography.hazmat import asn1
from cryptography.x509 import (
    ObjectIdentifier,
    RFC822Name,
    SubjectAlternativeName,
    UniformResourceIdentifier,
    UnrecognizedExtension,
)
from sigstore.errors import Error, VerificationError
from sigstore.models import Bundle, ClientTrustConfig, TrustedRoot
from sigstore.verify import Verifier
from sigstore.verify.policy import AllOf, AnyOf, Identity, OIDCIssuer, OIDCIssuerV2

from ocistream.signatures.messages import OTHER_IDENTITY, encode_envelope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.x509 import Certificate
    from sigstore.verify.policy import VerificationPolicy

_ISSUER: Final = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
#: What a trusted root must have. The package misses a log of certificates only when it verifies a signature.
_REQUIRED_FIELDS: Final = {
    "certificateAuthorities": "no certificate authority",
    "tlogs": "no log of signatures",
    "ctlogs": "no log of certificates",
}


def load_verifier(trusted_root: str, identities: Sequence[tuple[str, str]]) -> KeylessVerifier | str:
    """Return a verifier for identities, each with its issuer, or the problem of the trusted root."""
    try:
        document = json.loads(trusted_root)
        if isinstance(document, dict):
            for field, problem in _REQUIRED_FIELDS.items():
                if not document.get(field):
                    return f"it has {problem} ({field})"
        return KeylessVerifier(_parse_trusted_root(document), identities)
    except json.JSONDecodeError:
        return "it is not JSON"
    except (ValueError, RecursionError):
        return "it is not a trusted root of Sigstore"
    except Error as error:
        return str(error)


class KeylessVerifier:
    """Finds which of some identities have signed a message, by one trusted root."""

    def __init__(self, trusted_root: TrustedRoot, identities: Sequence[tuple[str, str]]) -> None:
        """Take identities, each with its issuer.

        Raises:
            Error: the trusted root has no certificate authority or no log.
        """
        self._verifier = Verifier(trusted_root=trusted_root)
        self._policies = [_build_policy(identity, issuer) for identity, issuer in identities]

    def find_identities(self, bundle: bytes, message: bytes, *, is_statement: bool) -> list[int] | str:
        """Return the numbers of the identities that have signed a message, or the problem of its bundle."""
        policy = _AnyIdentity(self._policies)
        try:
            parsed = Bundle.from_json(_add_default_values(bundle))
            if is_statement:
                signed = encode_envelope(*self._verifier.verify_dsse(parsed, policy))
                if signed != message:
                    return "its bundle has two statements"
            else:
                self._verifier.verify_artifact(message, parsed, policy)
        except _OtherIdentityError as error:
            return f"{OTHER_IDENTITY}: {error}"
        except Exception as error:  # noqa: BLE001 - a hostile bundle raises errors of many packages
            # The package's own data types follow the name of a wrong field and what is wrong.
            reason = " ".join(str(error).partition(" [type=")[0].split()) or type(error).__name__
            return f"its certificate or log entry is not valid: {reason}"
        return policy.found


def _add_default_values(bundle: bytes) -> str:
    """Return a bundle with the fields that the package requires, and that other programs omit if they are 0 or empty.

    The first entry of a log has the number 0 and no other hashes (ProtoJSON, "Presence and default values").
    """
    fields = json.loads(bundle)
    for entry in _list_objects(fields["verificationMaterial"].setdefault("tlogEntries", [])):
        entry.setdefault("logIndex", "0")
        for proof in _list_objects(entry.get("inclusionProof")):
            proof.setdefault("logIndex", "0")
            proof.setdefault("hashes", [])
    return json.dumps(fields)


def _list_objects(value: object) -> list[dict[str, object]]:
    """Return the JSON objects among the values of a list, or the value itself if it is one."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]


class _OtherIdentityError(VerificationError):
    """The certificate is valid, and for another identity, which is the message."""


class _AnyIdentity:
    """A policy that remembers which of several policies have accepted a certificate."""

    def __init__(self, policies: Sequence[VerificationPolicy]) -> None:
        self._policies = policies
        self.found: list[int] = []

    def verify(self, cert: Certificate) -> None:
        """Raise an error if no policy accepts a certificate."""
        for number, policy in enumerate(self._policies):
            try:
                policy.verify(cert)
            except VerificationError:
                continue
            self.found.append(number)
        if not self.found:
            raise _OtherIdentityError(_describe(cert))


def _build_policy(identity: str, issuer: str) -> VerificationPolicy:
    # Older certificates have the issuer only in the first form, and the package's own `issuer` knows no other.
    return AllOf([Identity(identity=identity), AnyOf([OIDCIssuerV2(issuer), OIDCIssuer(issuer)])])


def _describe(certificate: Certificate) -> str:
    """Return the identity and the issuer in a certificate, for a message."""
    names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    found = [*names.get_values_for_type(RFC822Name), *names.get_values_for_type(UniformResourceIdentifier)]
    issuers = [
        asn1.decode_der(str, extension.value.value)
        for extension in certificate.extensions
        if extension.oid == _ISSUER and isinstance(extension.value, UnrecognizedExtension)
    ]
    return f"{', '.join(found)} ({', '.join(issuers)})"


def _parse_trusted_root(document: object) -> TrustedRoot:
    # The class of a trusted root reads only files. This file was read before, and may be a pipe.
    config = {
        "mediaType": ClientTrustConfig.ClientTrustConfigType.CONFIG_0_1.value,
        "trustedRoot": document,
        "signingConfig": {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"},
    }
    return ClientTrustConfig.from_json(json.dumps(config)).trusted_root
