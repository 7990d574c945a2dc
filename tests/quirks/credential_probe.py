"""Which credential a command sends for a repository, as seen by a registry that refuses them all."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tests.quirks.command_runner import run
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.runner import Result

#: The key of Docker Hub in Docker's files and helpers.
HUB: Final = "https://index.docker.io/v1/"
#: Passwords for tests in which they do not matter: in a file, and in a helper.
SECRET: Final = "secret"
KEPT: Final = "kept"
#: A helper that stores what it gets in a file beside it, and logs each call with its input.
STORE: Final = f"""#!{sys.executable} -IS
import json, pathlib, sys
kept = pathlib.Path(__file__).with_suffix(".json")
entries = json.loads(kept.read_text()) if kept.exists() else {{}}
question = sys.stdin.read()
with open(__file__ + ".calls", "a") as calls:
    print(sys.argv[1], question, file=calls)
if sys.argv[1] == "get":
    if question not in entries:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps(entries[question]))
elif sys.argv[1] == "store":
    entry = json.loads(question)
    entries[entry["ServerURL"]] = entry
else:
    del entries[question]
kept.write_text(json.dumps(entries))
"""


def encoded(user: str, password: str) -> str:
    """Return the `auth` of an entry in Docker's files."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def entry(user: str, password: str = SECRET) -> dict[str, str]:
    """Return an entry of `auths`."""
    return {"auth": encoded(user, password)}


def write(path: Path, document: object) -> None:
    """Write a text, or a document as JSON, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


@dataclasses.dataclass
class UserHome:
    """A user's home directory, with a `bin` for credential helpers."""

    path: Path
    bin: Path

    def __post_init__(self) -> None:
        self.bin.mkdir()
        self.path.mkdir()
        self.docker = self.path / ".docker" / "config.json"
        self.podman = self.path / ".config" / "containers" / "auth.json"

    def helper(self, name: str, script: str = STORE) -> Path:
        """Create a credential helper."""
        program = self.bin / f"docker-credential-{name}"
        program.write_text(script)
        program.chmod(0o755)
        return program

    def keep(self, name: str, server: str, user: str, secret: str = KEPT) -> None:
        """Store a credential in a helper."""
        kept = self.bin / f"docker-credential-{name}.json"
        entries = json.loads(kept.read_text()) if kept.exists() else {}
        entries[server] = {"ServerURL": server, "Username": user, "Secret": secret}
        kept.write_text(json.dumps(entries))

    def kept(self, name: str) -> dict[str, dict[str, str]]:
        """Return the credentials that a helper stores."""
        document: dict[str, dict[str, str]] = json.loads((self.bin / f"docker-credential-{name}.json").read_text())
        return document

    def calls(self, name: str) -> list[str]:
        """Return the calls of a helper."""
        calls = self.bin / f"docker-credential-{name}.calls"
        return calls.read_text().splitlines() if calls.exists() else []


@dataclasses.dataclass
class Home(UserHome):
    """A home directory, and a registry that refuses every password."""

    registry: QuirkyRegistry
    env: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.config = self.path / ".config" / "ocistream" / "config.toml"
        self.host = self.registry.host
        self.port = int(self.host.rpartition(":")[2])

    def run(self, *argv: str, env: Mapping[str, str | None] | None = None, **options: Any) -> Result:
        """Run a command as the user."""
        home = {"HOME": str(self.path), "PATH": f"{self.bin}:/usr/bin:/bin", "XDG_RUNTIME_DIR": None}
        return run(*argv, env={**home, **self.env, **(env or {})}, **options)

    def shown(self, name: str = "", *options: str, env: Mapping[str, str | None] | None = None) -> str | None:
        """Inspect a repository, and return USER:PASSWORD as the registry received it, or None."""
        self.registry.requests.clear()
        self.run("inspect", name or f"{self.host}/org/app", *options, env=env)
        assert self.registry.requests, "no request was sent"
        seen = {request.headers["Authorization"] for request in self.registry.requests} - {None}
        if not seen:
            return None
        (shown,) = seen
        return base64.b64decode(shown.removeprefix("Basic ")).decode(errors="surrogateescape")

    def user(self, name: str = "", env: Mapping[str, str | None] | None = None) -> str | None:
        """Return the user of `shown`."""
        shown = self.shown(name, env=env)
        return None if shown is None else shown.partition(":")[0]
