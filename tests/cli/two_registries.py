"""Two registries with different connection options, for tests of options that apply to one of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.certificates import Certificate, make_certificate
from tests.cli.fixture_types import Start
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, small_image
from tests.registry_http import seed
from tests.runner import Argument, Result, ocistream

#: Host names that resolve to this machine.
NAMES: Mapping[str, int | None] = {"registry.test": None, "other.test": None}
PASSWORDS = ("first-secret", "second-secret")


class World:
    """A registry with a certificate of its own CA, `registry.test`, and one without TLS, `other.test`.

    Each requires its own user name and password. The first has `app:1`.
    """

    def __init__(self, start: Start, layout: Layout, folder: Path) -> None:
        self.folder = folder
        self.authority = make_certificate(folder / "authority", "an authority")
        self.fake = make_certificate(folder / "fake", "another authority")
        self.start = start
        self.plain = start()
        self.image = small_image(layout, name="app")
        self.layout = layout
        seed(layout, self.image, self.plain.host, "app", "1")
        self.secure = self.start_with_image(tls=self.authority.issue(folder / "server"))
        self.https = self.secure.host.replace("127.0.0.1", "registry.test")
        self.http = self.plain.host.replace("127.0.0.1", "other.test")
        self.secure.auth, self.plain.auth = Basic("me", PASSWORDS[0]), Basic("you", PASSWORDS[1])
        for registry in (self.secure, self.plain):
            registry.requests.clear()
        for name, password in zip(("one", "two"), PASSWORDS, strict=True):
            (folder / name).write_text(f"{password}\n")

    def start_with_image(self, **options: Any) -> FaultyRegistry:
        """Start a registry with these options that has `app:1`."""
        registry = self.start(**options)
        shutil.copytree(self.plain.layout.path, registry.layout.path, dirs_exist_ok=True)
        return registry

    @property
    def ca(self) -> str:
        return f"--ca-cert={self.authority.file}"

    def ca_of(self, side: str, authority: Certificate | None = None) -> str:
        return f"--{side}-ca-cert={(authority or self.authority).file}"

    def credentials(self, secure: str, plain: str) -> list[str]:
        """Return the options with the user of each registry; `secure` and `plain` are the sides of the registries."""
        return [
            f"--{secure}-username=me",
            f"--{secure}-password-file={self.folder / 'one'}",
            f"--{plain}-username=you",
            f"--{plain}-password-file={self.folder / 'two'}",
        ]

    def run(self, *argv: Argument, env: dict[str, str | None] | None = None, **options: Any) -> Result:
        homes: dict[str, str | None] = {
            "HOME": str(self.folder),
            "DOCKER_CONFIG": str(self.folder / "docker"),
            "XDG_CONFIG_HOME": None,
            "SSL_CERT_FILE": None,
        }
        result = ocistream(*argv, env={**homes, **(env or {})}, names=NAMES, **options)
        for password in PASSWORDS:
            assert password not in result.err
            assert password.encode() not in result.out
        return result

    def there(self, *argv: str, credentials: bool = True, **options: Any) -> Result:
        """Copy from the registry with TLS to the one without."""
        shown = self.credentials("src", "dest") if credentials else []
        ends = [f"{self.https}/app:1", f"{self.http}/copied:1"]
        return self.run("copy", *ends, "--retries=0", *shown, *argv, **options)

    def back(self, *argv: str, credentials: bool = True, **options: Any) -> Result:
        """Copy from the registry without TLS to the one with it."""
        shown = self.credentials("dest", "src") if credentials else []
        ends = [f"{self.http}/app:1", f"{self.https}/copied:1"]
        return self.run("copy", *ends, "--retries=0", *shown, *argv, **options)

    def open_both(self) -> None:
        """Disable authentication in both registries."""
        self.secure.auth = self.plain.auth = None
