"""Find and read `certs.d` directories, which hold the CA and client certificates of each registry.

Only directories are read, as containers-certs.d(5) describes; http/tls.py loads the certificates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocistream import notices
from ocistream.errors import UsageError
from ocistream.http.tls import TlsSettings
from ocistream.oci.reference import printable
from ocistream.streams.files import disk_errors
from ocistream.streams.paths import is_directory
from ocistream.streams.xdg import config_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["certs_directories", "find_certs_directory", "read_certs_directory", "read_registry_certs"]

_CA_SUFFIX: Final = ".crt"
_CERTIFICATE_SUFFIX: Final = ".cert"
_KEY_SUFFIX: Final = ".key"
#: How many other files of a folder are named.
_MAX_SHOWN: Final = 10


def certs_directories(env: Mapping[str, str], home: Path, etc: Path = Path("/etc")) -> tuple[Path, ...]:
    """Give the `certs.d` directories, the one that is asked first being the first.

    The user's own before the system's, containers' before Docker's. (`docker/certs.d` in the user's configuration is
    what a rootless Docker reads.)
    """
    own = config_home(env, home)
    return tuple(base / tool / "certs.d" for base in (own, etc) for tool in ("containers", "docker"))


def read_registry_certs(registry: str, directories: Sequence[Path]) -> TlsSettings:
    """Read what `certs.d` says of a registry: its folder in the first directory that has one, and in no other.

    The folder is called as the registry is in the image's name: a port is in both or in neither.

    Raises:
        UsageError, LocalDiskError: as `of_folder`.
    """
    folder = find_certs_directory(registry, directories)
    return TlsSettings() if folder is None else read_certs_directory(folder)


def find_certs_directory(registry: str, directories: Sequence[Path]) -> Path | None:
    """Find the one folder that counts for a registry; None where there is none."""
    if registry in {"", ".", ".."} or "/" in registry:
        # A redirect may lead anywhere.
        return None
    for directory in directories:
        folder = directory / registry
        # (`Path.is_dir` raises where a name is too long to be a folder's.)
        if os.path.isdir(folder):  # noqa: PTH112 - see above
            if os.access(folder, os.R_OK | os.X_OK):
                return folder
            # What is closed to this user is not meant for them.
            notices.notify(f"{printable(str(folder), 1024)} is not used: this user may not read it", level=1)
    return None


def read_certs_directory(folder: Path) -> TlsSettings:
    """Read one folder of certificates; its files count in the order of their names.

    Raises:
        UsageError: a client certificate has no key, or a key no certificate.
        NotFoundError: there is no such folder.
        LocalDiskError: it cannot be read.
    """
    with disk_errors(f"reading certificates from {folder}"):
        files = {path.name: path for path in sorted(folder.iterdir()) if not is_directory(path)}
    found = []
    for name, path in files.items():
        stem = name.removesuffix(path.suffix)
        if path.suffix == _CERTIFICATE_SUFFIX:
            if stem + _KEY_SUFFIX not in files:
                where = printable(str(path), 400)
                msg = f"{where}: the key of this client certificate, {printable(stem)}{_KEY_SUFFIX}, is missing"
                raise UsageError(msg, hint=f"certificates of CAs are called *{_CA_SUFFIX}")
            found.append((str(path), str(files[stem + _KEY_SUFFIX])))
        elif path.suffix == _KEY_SUFFIX and stem + _CERTIFICATE_SUFFIX not in files:
            where = printable(str(path), 400)
            msg = f"{where}: the client certificate of this key, {printable(stem)}{_CERTIFICATE_SUFFIX}, is missing"
            raise UsageError(msg)
    if others := [
        name for name, path in files.items() if path.suffix not in {_CA_SUFFIX, _CERTIFICATE_SUFFIX, _KEY_SUFFIX}
    ]:
        what = f"{printable(str(folder), 1024)}: {', '.join(map(printable, others[:_MAX_SHOWN]))}"
        notices.notify(
            f"{what} not used: only *{_CA_SUFFIX}, *{_CERTIFICATE_SUFFIX} and *{_KEY_SUFFIX} are read", level=1
        )
    authorities = tuple(str(path) for path in files.values() if path.suffix == _CA_SUFFIX)
    return TlsSettings(authorities, tuple(found))
