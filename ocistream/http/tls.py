"""TLS settings and contexts: CA files, client certificates, and the system's CAs."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ocistream import notices
from ocistream.errors import UsageError
from ocistream.streams import paths
from ocistream.streams.files import disk_errors

__all__ = ["TlsContexts", "TlsSettings", "check_tls_files"]

#: Where systems keep their bundle, for a Python that was built for another one and looks in the wrong place.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What holds for the connections to one host; two that are equal share a context."""

    #: Files of CA certificates (PEM), trusted beside the system's.
    ca_files: tuple[str, ...] = ()
    #: Files of client certificates with their keys (PEM), None where the key is in the certificate's file.
    client_certificates: tuple[tuple[str, str | None], ...] = ()
    #: The host's certificate is not looked at.
    insecure: bool = False


def check_tls_files(settings: TlsSettings) -> None:
    """Read the files that are named, so that a wrong one is found before anything moves.

    The system's CAs are not read, which would cost every run that speaks plain HTTP some 20 ms and 2 MB.

    Raises:
        NotFoundError: a file is not there.
        LocalDiskError: it cannot be read.
        UsageError: it is not what it should be.
    """
    if settings.ca_files or settings.client_certificates:
        # An empty context takes a megabyte already.
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings)


def create_server_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """Make the context of a server that shows this certificate (PEM, with what leads to its CA behind it).

    Raises:
        NotFoundError: a file is not there.
        LocalDiskError: it cannot be read.
        UsageError: it is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, certificate, key, "certificate", "--tls-key")
    return context


class TlsContexts:
    """The contexts of one run. Safe for several threads.

    A context is as dear as the CA bundle in it (some 20 ms and 2 MB), so no connection has one of its own.
    """

    def __init__(self, bundle: str | None, fallback: str) -> None:
        """Trust `bundle`, a file or directory, in place of the system's CAs; where there are none, `fallback`."""
        self._bundle = bundle
        self._fallback = fallback
        self._lock = threading.Lock()
        self._contexts: dict[TlsSettings, ssl.SSLContext] = {}

    def load(self, settings: TlsSettings) -> ssl.SSLContext:
        """Give the context for these settings.

        Raises:
            NotFoundError, LocalDiskError, UsageError: as `check`.
        """
        with self._lock:
            if settings not in self._contexts:
                self._contexts[settings] = self._make(settings)
            return self._contexts[settings]

    def _make(self, settings: TlsSettings) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            # A certificate that is named as trusted is trusted, also where it is the registry's own and no CA's: so
            # it is with the tools in Go, for which `certs.d` folders are made.
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
            self._trust_system_cas(context)
        _load(context, settings)
        return context

    def _trust_system_cas(self, context: ssl.SSLContext) -> None:
        if self._bundle is not None:
            _load_authorities(context, self._bundle)
            return
        context.load_default_certs()
        folder = ssl.get_default_verify_paths().capath
        # Of a folder OpenSSL reads what it needs when it needs it: nothing is loaded yet, and yet there is something.
        if context.cert_store_stats()["x509_ca"] or (folder and any(Path(folder).glob("*.[0-9]"))):
            return
        if (path := next((path for path in _BUNDLES if paths.exists(path)), None)) is not None:
            notices.notify(f"no CA certificates where OpenSSL looks: those in {path} are trusted", level=1)
        else:
            path = self._fallback
            notices.notify(
                f"the system has no CA certificates: those of the Python package certifi, {path}, are trusted", level=1
            )
        _load_authorities(context, path)


def _load(context: ssl.SSLContext, settings: TlsSettings) -> None:
    for path in settings.ca_files:
        _load_authorities(context, path)
    # Of several with keys of one kind OpenSSL shows the last; in a folder the first one counts.
    for certificate, key in reversed(settings.client_certificates):
        _load_certificate(context, certificate, key, "client certificate", "--client-key")


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    with disk_errors(f"reading CA certificates from {path}"):
        try:
            if paths.is_directory(path):
                context.load_verify_locations(capath=path)
            else:
                # OpenSSL says of a file only that it does not like it.
                Path(path).open("rb").close()
                context.load_verify_locations(cafile=path)
        except ssl.SSLError as error:
            msg = f"{path} holds no CA certificate, or a malformed one"
            raise UsageError(msg, hint="it is to be PEM: -----BEGIN CERTIFICATE-----") from error


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str | None, what: str, option: str) -> None:
    def refuse() -> str:
        # Without this OpenSSL would ask at the terminal.
        msg = f"the key in {key or certificate} is encrypted, and nobody can be asked for its password"
        raise UsageError(msg, hint="decrypt it into a file that only you can read: `openssl pkey -in KEY -out FILE`")

    for path in filter(None, (certificate, key)):
        with disk_errors(f"reading the {what} or key {path}"):
            Path(path).open("rb").close()
    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            msg = f"the {what} {certificate} does not belong to the key {key or certificate}"
            raise UsageError(msg) from error
        msg = f"{certificate} is no {what} with its key" + (f" in {key}" if key else "")
        hint = f"both are to be PEM; the key may be in the certificate's file, else name it with {option}"
        raise UsageError(msg, hint=hint) from error
