"""Find and read `certs.d` directories, which hold the CA and client certificates of each registry.

Only directories are read, as containers-certs.d(5) describes; http/tls.py loads the certificates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import UsageError
from ocistream.http.settings import TlsSettings
from ocistream.oci.reference import printable
from ocistream.streams.files import disk_errors
from ocistream.streams.paths import config_home, is_directory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CA_SUFFIX: Final = ".crt"
_CERTIFICATE_SUFFIX: Final = ".cert"
_KEY_SUFFIX: Final = ".key"
#: Ignored files of a directory that are named in the message.
_MAX_SHOWN: Final = 10


def certs_directories(env: Mapping[str, str], home: Path, etc: Path = Path("/etc")) -> tuple[Path, ...]:
    """Return the `certs.d` directories, in the order in which they are searched.

    The user's directories come before the system's, containers' before Docker's. (A rootless Docker reads
    `docker/certs.d` in the user's configuration.)
    """
    own = config_home(env, home)
    return tuple(base / tool / "certs.d" for base in (own, etc) for tool in ("containers", "docker"))


def read_registry_certs(registry: str, directories: Sequence[Path]) -> TlsSettings:
    """Read the certificates of a registry, from the first directory that has a folder for it, and no other.

    The folder has the registry's name as in the image's name: both have the port, or neither.

    Raises:
        UsageError, LocalDiskError: as for `read_certs_directory`.
    """
    folder = find_certs_directory(registry, directories)
    return TlsSettings() if folder is None else read_certs_directory(folder)


def find_certs_directory(registry: str, directories: Sequence[Path]) -> Path | None:
    """Return the folder of a registry, or None."""
    if registry in {"", ".", ".."} or "/" in registry:
        # The name may come from a redirect, so it must not lead to another directory.
        return None
    for directory in directories:
        folder = directory / registry
        # `Path.is_dir` raises if the name is too long for a file system.
        if os.path.isdir(folder):  # noqa: PTH112 - see above
            if os.access(folder, os.R_OK | os.X_OK):
                return folder
            # A folder that this user cannot read is meant for other users.
            notices.notify(f"{printable(str(folder), 1024)} is not used: this user may not read it", level=1)
    return None


def read_certs_directory(folder: Path) -> TlsSettings:
    """Read one folder of certificates, in the order of the file names.

    Raises:
        UsageError: a client certificate has no key, or a key has no certificate.
        NotFoundError: the folder does not exist.
        LocalDiskError: the folder cannot be read.
    """
    with disk_errors(f"cannot read the certificates in {folder}"):
        files = {path.name: path for path in sorted(folder.iterdir()) if not is_directory(path)}
    client_certificates = []
    for name, path in files.items():
        stem = name.removesuffix(path.suffix)
        if path.suffix == _CERTIFICATE_SUFFIX:
            if stem + _KEY_SUFFIX not in files:
                shown_path = printable(str(path), 400)
                msg = f"{shown_path}: the key of this client certificate, {printable(stem)}{_KEY_SUFFIX}, is missing"
                raise UsageError(msg, hint=f"name CA certificates *{_CA_SUFFIX}")
            client_certificates.append((str(path), str(files[stem + _KEY_SUFFIX])))
        elif path.suffix == _KEY_SUFFIX and stem + _CERTIFICATE_SUFFIX not in files:
            shown_path = printable(str(path), 400)
            msg = (
                f"{shown_path}: the client certificate of this key, {printable(stem)}{_CERTIFICATE_SUFFIX}, is missing"
            )
            raise UsageError(msg)
    if ignored := [
        name for name, path in files.items() if path.suffix not in {_CA_SUFFIX, _CERTIFICATE_SUFFIX, _KEY_SUFFIX}
    ]:
        message = f"{printable(str(folder), 1024)}: {', '.join(map(printable, ignored[:_MAX_SHOWN]))}"
        notices.notify(
            f"{message} not used: only *{_CA_SUFFIX}, *{_CERTIFICATE_SUFFIX} and *{_KEY_SUFFIX} are read", level=1
        )
    authorities = tuple(str(path) for path in files.values() if path.suffix == _CA_SUFFIX)
    return TlsSettings(authorities, tuple(client_certificates))
