"""Certificates for the tests of TLS, and configuration that names them."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Final

from tests.certificates import Certificate, make_certificate

#: The exit code of `inspect` when the registry was reached and has no such image.
REACHED: Final = 4


@dataclasses.dataclass(frozen=True)
class Identities:
    """An untrusted authority, a registry's certificate, and the certificates of two clients."""

    authority: Certificate
    server: Certificate
    client: Certificate
    other: Certificate

    @classmethod
    def make(cls, folder: Path) -> Identities:
        authority = make_certificate(folder / "authority", "an authority")
        client, other = (authority.issue(folder / name, common_name=name) for name in ("client", "other"))
        return cls(authority, authority.issue(folder / "server"), client, other)

    @property
    def ca(self) -> str:
        return f"--ca-cert={self.authority.file}"

    @property
    def shown(self) -> list[str]:
        return [f"--client-cert={self.client.file}", f"--client-key={self.client.key_file}"]


def der(certificate: Certificate) -> bytes:
    return base64.b64decode(certificate.x5c)


def client_settings(certificate: Certificate) -> str:
    """Return the lines of the configuration that name a client certificate."""
    return f'client-cert = "{certificate.file}"\nclient-key = "{certificate.key_file}"\n'


def configuration(path: Path, **registries: str) -> str:
    """Write a configuration file with a table for each host, and return the option that names the file."""
    tables = [f'[registry."{host}"]\n{lines}\n' for host, lines in registries.items()]
    path.write_text("".join(tables))
    return f"--config={path}"
