"""How registries are reached: the options of a side, and the `RegistrySettings` and `TlsFiles` of the Python API."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream.api.options import PATH, option
from ocistream.errors import UsageError

if TYPE_CHECKING:
    from ocistream.http.settings import TlsSettings
    from ocistream.registry.configuration import HostRule


#: Headings of --help.
ACCESS: Final = "Registry access"
TLS: Final = "TLS"
_USE_LOGIN: Final = "use `ocistream login`, or OCISTREAM_USERNAME and OCISTREAM_PASSWORD"
_USE_AUTH_FILE: Final = 'use the variable REGISTRY_AUTH_FILE, or credentials = "file:PATH" in [registry."HOST"]'
_FOR_ONE_REGISTRY: Final = 'it is for one registry: use the option, or set it in [registry."HOST"] of the configuration'


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Certificate files (PEM): CAs to trust besides those of the system, a client certificate and its key.

    The key may be in the certificate's file.
    """

    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """How registries are reached, and with which credential: by the command line, or by a `Client` of the Python API.

    `copy` has the options with a `side_help` once more for each side.
    """

    username: str | None = option(
        flags=["-u", "--username"],
        metavar="USER",
        no_default=_USE_LOGIN,
        section=ACCESS,
        help="User name.",
        side_help="User name for the {}.",
    )
    password_stdin: bool = option(
        default=False,
        no_default=_USE_LOGIN,
        section=ACCESS,
        help="Read the password from stdin.",
        side_help="Read the password for the {} from stdin.",
    )
    password_file: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_USE_LOGIN,
        section=ACCESS,
        help="Read the password from FILE.",
        side_help="Read the password for the {} from FILE.",
    )
    authfile: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_USE_AUTH_FILE,
        section=ACCESS,
        help="Read credentials only from FILE (Docker's format).",
        side_help="Read credentials for the {} only from FILE.",
    )
    plain_http: bool = option(
        default=False,
        no_default=_FOR_ONE_REGISTRY,
        section=ACCESS,
        help="Use HTTP (the default for loopback hosts), not HTTPS.",
        side_help="Use HTTP, not HTTPS, for the {}.",
    )
    insecure: bool = option(
        default=False,
        no_default=_FOR_ONE_REGISTRY,
        section=TLS,
        help="Disable certificate verification for the registries of this command.",
        side_help="Disable certificate verification for the {}.",
    )
    ca_cert: str | None = option(
        type=PATH,
        metavar="FILE",
        section=TLS,
        help="Also trust the CAs in FILE (PEM).",
        side_help="Trust the CAs in FILE (PEM) for the {}, not those of --ca-cert.",
    )
    client_cert: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_FOR_ONE_REGISTRY,
        section=TLS,
        help="Client certificate (PEM) for the registries of this command.",
        side_help="Client certificate (PEM) for the {}.",
    )
    client_key: str | None = option(
        type=PATH,
        metavar="FILE",
        no_default=_FOR_ONE_REGISTRY,
        section=TLS,
        help="Key of the client certificate, if it is in another file.",
        side_help="Key of the client certificate for the {}, if it is in another file.",
    )
    cert_dir: str | None = option(
        type=PATH,
        metavar="DIR",
        section=TLS,
        help="Read *.crt, *.cert and *.key from DIR, not from certs.d in ~/.config and /etc.",
    )

    @property
    def has_credential(self) -> bool:
        """Whether an option gives a credential, or a part of one."""
        return self.username is not None or self.password_stdin or self.password_file is not None

    def for_side(self, side: str, own: RegistryOptions) -> RegistryOptions:
        """Return these options, which are for both sides, as the side's `own` ones override them.

        A client certificate comes with its own key: the key for both sides does not belong to it. Credentials are
        not overridden here (`ExplicitCredentials`).
        """
        certificate = (self.client_cert, self.client_key)
        if own.client_cert is not None:
            certificate = (own.client_cert, own.client_key)
        elif own.client_key is not None:
            msg = f"--{side}-client-key needs --{side}-client-cert"
            raise UsageError(msg, hint="name the certificate of that key too; --client-cert belongs to --client-key")
        return replace(
            self,
            plain_http=self.plain_http or own.plain_http,
            insecure=self.insecure or own.insecure,
            ca_cert=self.ca_cert if own.ca_cert is None else own.ca_cert,
            client_cert=certificate[0],
            client_key=certificate[1],
        )

    def tls_settings(self) -> TlsSettings:
        """Return the certificates that the options name, of which the key may be in the certificate's file.

        Raises:
            UsageError: a key has no certificate.
        """
        from ocistream.http.settings import TlsSettings

        if self.client_key and not self.client_cert:
            msg = "--client-key needs --client-cert"
            raise UsageError(msg, hint="name the certificate of that key too")
        directory = TlsSettings()
        if self.cert_dir:
            from ocistream.config.certs_d import read_certs_directory

            directory = read_certs_directory(Path(self.cert_dir))
        return TlsSettings(
            ((self.ca_cert,) if self.ca_cert else ()) + directory.ca_files,
            ((self.client_cert, self.client_key),) if self.client_cert else directory.client_certificates,
            self.insecure,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """Settings of one registry. They override those of the client; None keeps the client's setting."""

    plain_http: bool | None = None
    insecure: bool | None = None
    tls: TlsFiles | None = None

    def to_rule(self) -> HostRule:
        """Return the rule that overrides the configuration of the host."""
        from ocistream.http.settings import HostSettings
        from ocistream.registry.configuration import HostRule

        keys = set()
        tls = RegistryOptions(**asdict(self.tls or TlsFiles())).tls_settings()
        if self.plain_http is not None:
            keys.add("plain-http")
        if self.insecure is not None:
            keys.add("insecure")
        if tls.ca_files:
            keys.add("ca-cert")
        if tls.client_certificates:
            keys.add("client-cert")
        return HostRule(
            HostSettings(
                plain_http=bool(self.plain_http),
                ca_files=tls.ca_files,
                client_certificates=tls.client_certificates,
                explicit_keys=frozenset(keys),
            ),
            insecure=self.insecure,
        )
