"""TLS contexts: CA files, client certificates, and the system's CAs."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import UsageError
from ocistream.streams import paths
from ocistream.streams.files import disk_errors

if TYPE_CHECKING:
    from ocistream.http.settings import TlsSettings

#: Bundles of CA certificates of other systems, for a Python that was built elsewhere and looks in the wrong place.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def check_tls_files(settings: TlsSettings) -> None:
    """Load the named files into a context of their own, which takes a megabyte.

    Raises:
        NotFoundError: a file does not exist.
        LocalDiskError: a file cannot be read.
        UsageError: a file has the wrong contents.
    """
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings)


def create_server_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """Return the context of a server with this certificate (PEM, followed by the chain to its CA).

    Raises:
        NotFoundError: a file does not exist.
        LocalDiskError: a file cannot be read.
        UsageError: a file has the wrong contents.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, certificate, key, "certificate", "--tls-key")
    return context


def create_client_context(settings: TlsSettings, bundle: str | None, fallback: str) -> ssl.SSLContext:
    """Return the context of a client.

    It trusts `bundle`, a file or directory, instead of the system's CAs, and `fallback` if there are none. Loading a
    bundle takes some 20 ms and 2 MB, so connections with equal settings share a context.

    Raises:
        NotFoundError, LocalDiskError, UsageError: as `check_tls_files`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        # A trusted certificate may be the registry's own instead of a CA's, as with the Go tools that `certs.d` folders
        # are made for.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        if bundle is None:
            _trust_system_cas(context, fallback)
        else:
            _load_authorities(context, bundle)
    _load(context, settings)
    return context


def _trust_system_cas(context: ssl.SSLContext, fallback: str) -> None:
    context.load_default_certs()
    folder = ssl.get_default_verify_paths().capath
    # OpenSSL loads certificates from a folder on demand, so the count is 0 although the folder has some.
    if context.cert_store_stats()["x509_ca"] or (folder and any(Path(folder).glob("*.[0-9]"))):
        return
    if (path := next((path for path in _BUNDLES if paths.exists(path)), None)) is not None:
        notices.notify(f"no CA certificates where OpenSSL searches: using those in {path}", level=1)
    else:
        path = fallback
        notices.notify(f"the system has no CA certificates: using those of the Python package certifi, {path}", level=1)
    _load_authorities(context, path)


def _load(context: ssl.SSLContext, settings: TlsSettings) -> None:
    for path in settings.ca_files:
        _load_authorities(context, path)
    # OpenSSL shows the last of several certificates with keys of one kind; in a `certs.d` folder the first counts.
    for certificate, key in reversed(settings.client_certificates):
        _load_certificate(context, certificate, key, "client certificate", "--client-key")


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    with disk_errors(f"cannot read the CA certificates in {path}"):
        try:
            if paths.is_directory(path):
                context.load_verify_locations(capath=path)
            else:
                # Open the file first: OpenSSL's error does not say why it cannot be read.
                Path(path).open("rb").close()
                context.load_verify_locations(cafile=path)
        except ssl.SSLError as error:
            msg = f"{path} has no CA certificate, or a malformed one"
            raise UsageError(msg, hint="it must be PEM: -----BEGIN CERTIFICATE-----") from error


def _load_certificate(
    context: ssl.SSLContext, certificate: str, key: str | None, description: str, option: str
) -> None:
    def refuse() -> str:
        # Without this function OpenSSL would ask for the password at the terminal.
        msg = f"the key in {key or certificate} is encrypted, and ocistream cannot ask for its password"
        raise UsageError(msg, hint="decrypt it into a file that only you can read: `openssl pkey -in KEY -out FILE`")

    for path in filter(None, (certificate, key)):
        with disk_errors(f"cannot read the {description} or key {path}"):
            Path(path).open("rb").close()
    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            msg = f"the {description} {certificate} does not belong to the key {key or certificate}"
            raise UsageError(msg) from error
        msg = f"{certificate} is not a {description} with its key" + (f" in {key}" if key else "")
        hint = f"its key must be in the same file, or use {option}; both must be PEM"
        raise UsageError(msg, hint=hint) from error
