"""Run `push`, `pull` and `copy` as a user does, with one home directory, on files and pipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.archives import files_in
from tests.cli import assertions
from tests.runner import Argument, Environment, Result, ocistream

How = Literal["file", "pipe"]
WAYS: Final[tuple[How, ...]] = ("file", "pipe")
both_ways = pytest.mark.parametrize("how", WAYS)


def run(
    *argv: Argument,
    stdin: bytes | Path | None = None,
    env: Environment | None = None,
    cwd: Path | None = None,
    names: Mapping[str, int | str | None] | None = None,
) -> Result:
    """Run a command line; pauses between attempts are recorded and not slept."""
    return ocistream(*argv, stdin=stdin, env=env, cwd=cwd, names=names, no_waits=True)


@dataclasses.dataclass(frozen=True)
class Mover:
    """Runs commands with the same home directory, environment and options; `folder` is for archives.

    A command must end with exit code `code`. If that is not 0, stderr must have one or two lines that contain all of
    `says`.
    """

    folder: Path
    env: Mapping[str, str]
    options: tuple[Argument, ...] = ()
    names: Mapping[str, int | str | None] = dataclasses.field(default_factory=dict)

    def run(
        self, *argv: Argument, stdin: bytes | Path | None = None, code: int = 0, says: str | tuple[str, ...] = ()
    ) -> Result:
        """Run any command, without the options."""
        result = run(*argv, stdin=stdin, env=self.env, names=self.names or None)
        if code:
            # Notices of long waits and of repeated bytes are not the failure.
            beside = ("; retrying in ", " bytes are sent again")
            lines = [line for line in result.err.splitlines() if not any(text in line for text in beside)]
            # An archive that went to stdout cannot be taken back.
            out = b"" if argv[0] == "pull" and "-o" not in argv else result.out
            failed = dataclasses.replace(result, err="\n".join(lines), out=out)
            assertions.failure(failed, code, *((says,) if isinstance(says, str) else says))
        else:
            assertions.success(result)
        return result

    def push(
        self,
        archive: bytes,
        image: str,
        how: How = "file",
        *options: Argument,
        code: int = 0,
        says: str | tuple[str, ...] = (),
    ) -> Result:
        """Push the one image of an archive to `image`."""
        if how == "pipe":
            return self.run("push", image, *self.options, *options, stdin=archive, code=code, says=says)
        path = self.folder / "pushed.tar"
        path.write_bytes(archive)
        return self.run("push", image, "-i", path, *self.options, *options, code=code, says=says)

    def pull(
        self, image: str, how: How = "file", *options: Argument, code: int = 0, says: str | tuple[str, ...] = ()
    ) -> dict[str, bytes]:
        """Pull `image` with all its platforms, and return the files of the archive: none if it fails."""
        path = self.folder / "pulled.tar"
        path.unlink(missing_ok=True)
        output: list[Argument] = ["-o", path] if how == "file" else []
        result = self.run("pull", image, "--platform", "all", *output, *self.options, *options, code=code, says=says)
        if code:
            assert not path.exists()
            return {}
        return files_in(path.read_bytes() if how == "file" else result.out)

    def copy(
        self, source: str, target: str, *options: Argument, code: int = 0, says: str | tuple[str, ...] = ()
    ) -> Result:
        """Copy an image between registries or repositories, as the same user on both sides."""
        user = {name: value for name, value in self.env.items() if name in {"OCISTREAM_USERNAME", "OCISTREAM_PASSWORD"}}
        sides = {
            name.replace("OCISTREAM", f"OCISTREAM_{side}"): value
            for name, value in user.items()
            for side in ("SRC", "DEST")
        }
        env = {name: value for name, value in self.env.items() if name not in user}
        used = dataclasses.replace(self, env={**env, **sides})
        return used.run("copy", source, target, *self.options, *options, code=code, says=says)
