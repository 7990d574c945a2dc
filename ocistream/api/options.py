"""The options of a client, of its registries and of a copy, each declared once: name, type, default, bounds and help.

The Python API takes defaults and checks from these declarations. The command line (`ocistream.cli.options`) makes
click's options of them, and reads variables, the configuration file, help and shell completion from those.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.platforms import parse_platform_choice
from ocistream.oci.reference import printable
from ocistream.sizes import parse_size
from ocistream.streams.workers import DEFAULT_JOBS, MAX_JOBS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from ocistream.http.settings import TlsSettings
    from ocistream.registry.upload_strategy import UploadMethod
    from ocistream.signatures.signers import Signer

#: Reasons why neither a variable nor the configuration file sets an option.
FOR_ONE_RUN: Final = "it is for one run: use the option"
SELECTS_CONTENT: Final = "it decides what is copied: use the option"
DECIDES_TRUST: Final = "it decides which signatures are trusted: use the option"
#: Help of --require-signature, and of --key of `verify`.
SIGNED_BY_KEY: Final = "Fail unless each image is signed by one of these public keys (PEM files); repeatable."
#: The type of an option that takes a file or a directory.
PATH: Final = "path"
#: Headings of --help.
SELECTION: Final = "Selection"
SIGNATURES: Final = "Signatures"
OUTPUT: Final = "Output"
PERFORMANCE: Final = "Performance and limits"
ACCESS: Final = "Registry access"
TLS: Final = "TLS"


class WholeRange(NamedTuple):
    """A whole number in a range."""

    lowest: int
    highest: int

    def check(self, name: str, value: object) -> None:
        """Raise UsageError if the value of an option is not in the range."""
        if isinstance(value, bool) or not isinstance(value, int):
            msg = f"--{name} {printable(repr(value))} is not a whole number"
            raise UsageError(msg)
        if not self.lowest <= value <= self.highest:
            msg = f"--{name} {value} is not from {self.lowest} to {self.highest}"
            raise UsageError(msg)


class PositiveRange(NamedTuple):
    """A number above 0. Only the command line enforces `highest`."""

    highest: int

    def check(self, name: str, value: object) -> None:
        """Raise UsageError if the value of an option is not a number above 0."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            msg = f"--{name} {printable(repr(value))} is not a number above 0"
            raise UsageError(msg)


#: What --max-ratio may be.
RATIO_RANGE: Final = WholeRange(1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a field of an options class declares, beside its name, its type and its default."""

    help: str
    #: `WholeRange`, `PositiveRange`, PATH, a tuple of choices, or a function that parses text; None for text and
    #: switches.
    type: object = None
    #: Spellings on the command line, if they are not the field's name.
    flags: Sequence[str] = ()
    metavar: str | None = None
    #: The default as the command line writes it; None if the command line has no default.
    cli_default: object = None
    #: Checks the parsed value.
    check: Callable[[Any], object] | None = None
    #: Why neither a variable nor the configuration file sets the option; "" if they do.
    not_configurable: str = ""
    #: The help of the option's form for one side of `copy`; {} is the side.
    side_help: str = ""
    #: The heading that --help lists the option under.
    section: str = PERFORMANCE


def option(default: object = None, **attributes: Any) -> Any:  # noqa: ANN401 - the types of the declaration and the field
    """Declare an option as a field of a dataclass; its metadata has the `Declaration` with these attributes.

    A boolean field is a switch. A tuple or a sequence is an option that repeats.
    """
    # 0 equals False.
    if default not in {None, False, ()}:
        attributes = {"cli_default": default, **attributes}
    return dataclasses.field(default=default, metadata={"option": Declaration(**attributes)})


_selection: Final = functools.partial(option, section=SELECTION, not_configurable=SELECTS_CONTENT)
_signature: Final = functools.partial(option, section=SIGNATURES, not_configurable=DECIDES_TRUST)


def parse_rate(value: str | float) -> float:
    """Return bytes per second, written as for curl's --limit-rate: `500k`, `10M`, `1G`."""
    size = _parse_bytes(value)
    if not isinstance(size, int | float) or not 0 < size < math.inf:
        msg = f"--limit-rate {printable(str(value), 40)!r} is not a rate in bytes per second"
        raise UsageError(msg, hint="such as 500k, 10M or 1G")
    return float(size)


def parse_memory(value: str | int) -> int:
    """Return the bytes of --memory."""
    size = _parse_bytes(value)
    if not isinstance(size, int) or not limits.MIB <= size <= limits.MAX_PREFETCH_MEMORY:
        msg = f"--memory {printable(str(value), 40)!r} is not a size from 1MiB to {limits.MAX_PREFETCH_MEMORY >> 30}GiB"
        raise UsageError(msg, hint="for example --memory 64MiB")
    return size


def parse_upload(text: str) -> UploadMethod | None:
    """Return the method of --upload; None to choose automatically."""
    # Imported here, because few runs choose a method.
    from ocistream.registry.upload_strategy import parse_upload_method

    return parse_upload_method(text)


def parse_split(value: str | int) -> int:
    """Return the bytes of --split."""
    size = _parse_bytes(value)
    if not isinstance(size, int) or size <= 0:
        msg = f"--split {printable(str(value), 40)!r} is not a size"
        raise UsageError(msg, hint="for example --split 700MiB, or --split 4294967295 (the limit of FAT32)")
    return size


def _parse_bytes(value: object) -> object:
    """Return the number of bytes, an int or a float, that text or a number states; None if the value is neither."""
    if isinstance(value, str):
        return parse_size(value, fractions=True)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _check_compression(text: str | None) -> None:
    if text is not None:
        from ocistream.transfer.recompress import parse_recompression

        parse_recompression(text)


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Options of all requests and transfers of one client, or of one run of the command line."""

    jobs: int = option(DEFAULT_JOBS, type=WholeRange(1, MAX_JOBS), help="Parallel blobs, and connections in total.")
    memory: int = option(
        limits.PREFETCH_MEMORY,
        type=parse_memory,
        cli_default=f"{limits.PREFETCH_MEMORY // limits.MIB}MiB",
        metavar="SIZE",
        help="Buffer for fetching layers over several connections, in total.",
    )
    cache: str | os.PathLike[str] | None = option(
        type=PATH, metavar="DIR", help="Directory for fetched blobs, created if missing; runs may share it."
    )
    retries: int = option(5, type=WholeRange(0, 20), help="Retries of a request.")
    # At most a day, because a socket accepts no more.
    connect_timeout: float = option(15, type=PositiveRange(86_400), metavar="SECONDS", help="Timeout for connecting.")
    stall_timeout: float = option(
        60, type=PositiveRange(86_400), metavar="SECONDS", help="Abort a connection after SECONDS without data."
    )
    limit_rate: float | None = option(
        type=parse_rate,
        metavar="RATE",
        help="Limit bytes per second in each direction, over all connections: 500k (512000), 10M.",
    )
    max_requests_per_second: float | None = option(
        type=PositiveRange(10_000), metavar="N", help="Maximum requests per second to each host; default: no limit."
    )
    upload: UploadMethod | None = option(
        type=parse_upload,
        cli_default="auto",
        metavar="auto|stream|put|chunk=SIZE",
        help="Upload each blob in one PATCH (stream), one PUT, or PATCHes of SIZE.",
    )

    @property
    def prefetch_memory(self) -> int:
        """Bytes that may be prefetched; 0 with a limited rate, for which one connection may already be too fast."""
        return 0 if self.limit_rate else self.memory


def parse_client_options(**values: Any) -> ClientOptions:  # noqa: ANN401 - the types of the fields
    """Return the options after checks of types and bounds. Sizes, rates and the upload method may be text."""
    fields = ClientOptions.__dataclass_fields__
    for name, value in values.items():
        kind = fields[name].metadata["option"].type
        if value is None and fields[name].default is None:
            continue
        if isinstance(kind, WholeRange | PositiveRange):
            kind.check(name.replace("_", "-"), value)
        elif callable(kind):
            values[name] = kind(value)
    return ClientOptions(**values)


_USE_LOGIN: Final = "use `ocistream login`, or OCISTREAM_USERNAME and OCISTREAM_PASSWORD"
_USE_AUTH_FILE: Final = 'use the variable REGISTRY_AUTH_FILE, or credentials = "file:PATH" in [registry."HOST"]'
_FOR_ONE_REGISTRY: Final = 'it is for one registry: use the option, or set it in [registry."HOST"] of the configuration'
_credential: Final = functools.partial(option, section=ACCESS, not_configurable=_USE_LOGIN)
_for_one_registry: Final = functools.partial(option, section=TLS, not_configurable=_FOR_ONE_REGISTRY)


@dataclass(frozen=True, kw_only=True)
class RegistryOptions:
    """How registries are reached, and with which credential: by the command line, or by a `Client` of the Python API.

    `copy` has the options with a `side_help` once more for each side.
    """

    username: str | None = _credential(
        flags=["-u", "--username"],
        metavar="USER",
        help="User name for the command's only registry; with several, it is an error.",
        side_help="User name for the {}.",
    )
    password_stdin: bool = _credential(
        default=False, help="Read the password from stdin.", side_help="Read the password for the {} from stdin."
    )
    password_file: str | None = _credential(
        type=PATH,
        metavar="FILE",
        help="Read the password from FILE.",
        side_help="Read the password for the {} from FILE.",
    )
    authfile: str | None = option(
        type=PATH,
        metavar="FILE",
        not_configurable=_USE_AUTH_FILE,
        section=ACCESS,
        help="Read credentials from FILE instead of Docker's files.",
        side_help="The same as --authfile, for the {}.",
    )
    plain_http: bool = option(
        default=False,
        not_configurable=_FOR_ONE_REGISTRY,
        section=ACCESS,
        help="Use HTTP for all registries. Loopback hosts do not need it.",
        side_help="Use HTTP, not HTTPS, for the {} alone.",
    )
    insecure: bool = _for_one_registry(
        default=False,
        help="Disable certificate verification for the registries of this command.",
        side_help="Disable certificate verification for the {}.",
    )
    ca_cert: str | None = option(
        type=PATH,
        metavar="FILE",
        section=TLS,
        help="Also trust the CAs in FILE (PEM).",
        side_help="Also trust the CAs in FILE (PEM) for the {}; replaces --ca-cert there.",
    )
    client_cert: str | None = _for_one_registry(
        type=PATH,
        metavar="FILE",
        help="Client certificate (PEM) for the registries of this command.",
        side_help="Client certificate (PEM) for the {}.",
    )
    client_key: str | None = _for_one_registry(
        type=PATH,
        metavar="FILE",
        help="Key of the client certificate, if it is in another file.",
        side_help="Key of the client certificate for the {}, if it is in another file.",
    )
    cert_dir: str | None = option(
        type=PATH,
        metavar="DIR",
        section=TLS,
        help="Read *.crt, *.cert and *.key in DIR itself, not in a certs.d/HOST directory below /etc.",
    )

    def load_tls_settings(self) -> TlsSettings:
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


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """Options of one copy, or of another command that reads images."""

    platforms: Sequence[str] = option(
        (),
        flags=["--platform"],
        metavar="OS/ARCH[/VARIANT]|all",
        check=parse_platform_choice,
        section=SELECTION,
        help="Platforms (comma list) or all; repeatable.",
    )
    images: Sequence[str] = _selection(
        (), flags=["--image"], metavar="NAME", help="Image of the archive to push; repeatable with --to."
    )
    all_tags: bool = _selection(
        default=False, help="Copy all tags of a repository, or all tagged images of a layout or archive."
    )
    tags: Sequence[str] = _selection(
        (), metavar="GLOB", help="Copy tags that match (`1.*`) or do not match (`!*-rc*`); repeatable."
    )
    no_referrers: bool = option(
        default=False, section=SELECTION, help="Do not copy referrers (signatures, SBOMs, attestations)."
    )
    #: Files of public keys; each image must be signed by one of them, or by the identity.
    require_signature: Sequence[str] = option((), type=PATH, metavar="KEY", section=SIGNATURES, help=SIGNED_BY_KEY)
    certificate_identity: str | None = _signature(
        metavar="IDENTITY",
        help="Require a keyless signature of this email or URI (or one by a given KEY).",
    )
    certificate_oidc_issuer: str | None = _signature(metavar="URL", help="OIDC issuer; required with the identity.")
    trusted_root: str | None = _signature(
        type=PATH,
        metavar="FILE",
        help="Trusted root (`cosign trusted-root create`), required with the identity; works offline.",
    )
    compress: str | None = option(
        metavar="gzip|zstd|none[:LEVEL]",
        check=_check_compression,
        section=OUTPUT,
        help="Recompress layers (new digests).",
    )
    max_ratio: int = option(
        limits.MAX_RATIO, type=RATIO_RANGE, help="Abort if a layer expands over N-fold and to over 1 GiB."
    )
    #: The maximum size of a volume, in bytes; 0 writes one file.
    split: int = option(
        0,
        type=parse_split,
        metavar="SIZE",
        not_configurable=FOR_ONE_RUN,
        section=OUTPUT,
        help="Write files of at most SIZE, such as 4GiB; %03d in the name becomes 000, 001, ...",
    )
    mount_from: Sequence[str] = option(
        (), metavar="REPO", help="Mount blobs from REPO in the same registry instead of sending them; repeatable."
    )

    def list_signers(self, keys: Sequence[str] = ()) -> list[Signer]:
        """Return the signers, with the owners of further `keys`, one of whom must have signed each image.

        Raises:
            UsageError: the path of a key is empty, or an option of the identity is missing or empty.
        """
        identity = (self.certificate_identity, self.certificate_oidc_issuer, self.trusted_root)
        keys = (*keys, *self.require_signature)
        if not keys and identity == (None, None, None):
            return []
        # Imported here, because few runs check signatures.
        from ocistream.signatures.signers import list_signers

        return list_signers(keys, *identity)
