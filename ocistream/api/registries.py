"""Helpers for users of the Python API: open registries without the command line.

This module reads no configuration file, mirror list or certs.d directory.
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ocistream.auth.credentials import Keychain
from ocistream.http.client import HttpClient
from ocistream.http.settings import HttpSettings
from ocistream.locations import OpenContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.auth.docker_config import Credential

__all__ = ["create_context"]


def create_context(
    settings: HttpSettings | None = None,
    *,
    credential: Credential | None = None,
    environment: Mapping[str, str] | None = None,
) -> OpenContext:
    """Create a context that can open locations in registries.

    `credential` is sent to every registry that asks for one; to copy between two registries, create a context for each.
    Without it, credentials come from where the command line finds them: OCISTREAM_USERNAME and the like, Docker's and
    Podman's files, and helpers. `environment` replaces the process's environment for that, and for SSL_CERT_FILE if the
    settings name no CAs.

    No configuration file is read, no mirror is used, and no proxies but those of the settings. Connections stay open
    until `context.client().close()`.
    """
    variables = os.environ if environment is None else environment
    settings = settings or HttpSettings()
    if settings.ca_file is None:
        settings = replace(settings, ca_file=variables.get("SSL_CERT_FILE") or None)

    @functools.cache
    def transport() -> HttpClient:
        keychain = Keychain(variables, home=Path(variables.get("HOME") or "/"), explicit=credential)
        return HttpClient(settings, keychain.find)

    return OpenContext(client=transport)
