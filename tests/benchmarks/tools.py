"""The commands of each tool for each job: ocistream, the installed peers, and curl.

A tool that cannot do a job has no method for the job. Debian has skopeo, but not crane, regctl and oras.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.benchmarks.measurement import Command

if TYPE_CHECKING:
    from pathlib import Path

    from tests.benchmarks.data import Image
    from tests.benchmarks.measurement import Work


def one(*argv: str, stdout: Path | None = None, env: dict[str, str] | None = None) -> Work:
    """Return the work of one process."""
    return [[Command(argv, env or {}, stdout=stdout)]]


class Tool:
    """A tool: its name, and a method for each job. A method returns None if the tool cannot do the job."""

    name = ""

    def pull_stdout(self, reference: str, ca: Path | None = None) -> Work | None:
        """Write an archive to stdout."""
        return None

    def pull_file(self, reference: str, out: Path) -> Work | None:
        """Write an archive to a file."""
        return None

    def pull_directory(self, reference: str, out: Path) -> Work | None:
        """Write a layout directory."""
        return None

    def push_directory(self, image: Image, reference: str) -> Work | None:
        """Push a layout directory."""
        return None

    def push_file(self, archive: Path, reference: str) -> Work | None:
        """Push an OCI archive."""
        return None

    def copy(self, source: str, target: str) -> Work | None:
        """Copy from registry to registry."""
        return None


class Ocistream(Tool):
    """The command under test."""

    name = "ocistream"

    def __init__(self, command: str) -> None:
        self._command = command

    def run(self, verb: str, *arguments: str) -> tuple[str, ...]:
        """Return the arguments of one process."""
        return (self._command, verb, "--quiet", *arguments)

    def pull_stdout(self, reference: str, ca: Path | None = None) -> Work:
        return one(*self.run("pull", reference, *(["--ca-cert", str(ca)] if ca else [])))

    def pull_file(self, reference: str, out: Path) -> Work:
        return one(*self.run("pull", reference, "-o", str(out)))

    def pull_directory(self, reference: str, out: Path) -> Work:
        return one(*self.run("pull", reference, "-o", f"{out}/"))

    def push_directory(self, image: Image, reference: str) -> Work:
        return one(*self.run("push", reference, "-i", str(image.layout)))

    def push_file(self, archive: Path, reference: str) -> Work:
        return one(*self.run("push", reference, "-i", str(archive)))

    def push_stdin(self, archive: Path, reference: str) -> Work:
        """Push an OCI archive from a pipe."""
        return [[Command(("cat", str(archive))), Command(self.run("push", reference))]]

    def pipe(self, source: str, target: str) -> Work:
        """Pull into a pipe, and push from the pipe."""
        return [[Command(self.run("pull", source)), Command(self.run("push", target))]]

    def copy(self, source: str, target: str) -> Work:
        return one(*self.run("copy", source, target))

    def inspect(self, reference: str) -> Work:
        return one(*self.run("inspect", reference))


class Skopeo(Tool):
    name = "skopeo"

    def _copy(self, source: str, target: str) -> Work:
        tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
        return one("skopeo", "--insecure-policy", "copy", "--quiet", *tls, source, target)

    def pull_file(self, reference: str, out: Path) -> Work:
        return self._copy(f"docker://{reference}", f"oci-archive:{out}:v1")

    def pull_directory(self, reference: str, out: Path) -> Work:
        return self._copy(f"docker://{reference}", f"oci:{out}:v1")

    def push_directory(self, image: Image, reference: str) -> Work:
        return self._copy(f"oci:{image.layout}:v1", f"docker://{reference}")

    def push_file(self, archive: Path, reference: str) -> Work:
        return self._copy(f"oci-archive:{archive}", f"docker://{reference}")

    def copy(self, source: str, target: str) -> Work:
        return self._copy(f"docker://{source}", f"docker://{target}")

    def by_file(self, source: str, file: Path, target: str) -> Work:
        """Pull an archive and push the archive."""
        return [*self.pull_file(source, file), *self.push_file(file, target)]


class Crane(Tool):
    """crane. It writes docker-archives, and cannot push an OCI archive."""

    name = "crane"

    def pull_stdout(self, reference: str, ca: Path | None = None) -> Work:
        return one("crane", "pull", reference, "/dev/stdout", env={"SSL_CERT_FILE": str(ca)} if ca else {})

    def pull_file(self, reference: str, out: Path) -> Work:
        return one("crane", "pull", reference, str(out))

    def pull_directory(self, reference: str, out: Path) -> Work:
        return one("crane", "pull", "--format=oci", reference, str(out))

    def push_directory(self, image: Image, reference: str) -> Work:
        return one("crane", "push", str(image.layout), reference)

    def copy(self, source: str, target: str) -> Work:
        return one("crane", "copy", source, target)

    def by_file(self, source: str, file: Path, target: str) -> Work:
        """Pull an archive and push the archive."""
        return [*one("crane", "pull", source, str(file)), *one("crane", "push", str(file), target)]


class Regctl(Tool):
    """regctl (regclient)."""

    name = "regctl"

    def _run(self, *arguments: str, ca: Path | None = None) -> Work:
        host = next(part for part in arguments if part.startswith(("127.", "localhost"))).partition("/")[0]
        tls = f"regcert={ca}" if ca else "tls=disabled"
        return one("regctl", "--host", f"reg={host},{tls}", *arguments)

    def pull_stdout(self, reference: str, ca: Path | None = None) -> Work:
        return self._run("image", "export", reference, ca=ca)

    def pull_file(self, reference: str, out: Path) -> Work:
        return self._run("image", "export", reference, str(out))

    def pull_directory(self, reference: str, out: Path) -> Work:
        return self._run("image", "copy", reference, f"ocidir://{out}:v1")

    def push_directory(self, image: Image, reference: str) -> Work:
        return self._run("image", "copy", f"ocidir://{image.layout}:v1", reference)

    def push_file(self, archive: Path, reference: str) -> Work:
        return self._run("image", "import", reference, str(archive))


class Oras(Tool):
    name = "oras"

    def pull_directory(self, reference: str, out: Path) -> Work:
        return one("oras", "copy", "--from-plain-http", reference, "--to-oci-layout", f"{out}:v1")

    def push_directory(self, image: Image, reference: str) -> Work:
        return one("oras", "copy", "--from-oci-layout", f"{image.layout}:v1", "--to-plain-http", reference)

    def push_file(self, archive: Path, reference: str) -> Work:
        return one("oras", "copy", "--from-oci-layout", f"{archive}:v1", "--to-plain-http", reference)

    def copy(self, source: str, target: str) -> Work:
        return one("oras", "copy", "--from-plain-http", source, "--to-plain-http", target)


class Curl(Tool):
    """Fetch the blobs of an image one after the other over one connection, without hashing or storing them."""

    name = "curl over one connection"

    def __init__(self, image: Image) -> None:
        self._image = image

    def pull_stdout(self, reference: str, ca: Path | None = None) -> Work:
        host, _, repository = reference.rpartition(":")[0].partition("/")
        base = f"{'https' if ca else 'http'}://{host}/v2/{repository}/blobs"
        urls = [f"{base}/{digest}" for digest in self._image.layers]
        return one("curl", "--silent", "--fail", *(["--cacert", str(ca)] if ca else []), *urls)


#: The argument that prints the version of each program.
_VERSIONS = {
    "docker-registry": "--version",
    "skopeo": "--version",
    "crane": "version",
    "regctl": "version",
    "oras": "version",
    "nginx": "-v",
    "curl": "--version",
}


def versions() -> str:
    """Return the number of processors and the versions of all programs, in one line."""
    found = [f"{len(os.sched_getaffinity(0))} processors", f"Python {platform.python_version()}"]
    for name, option in _VERSIONS.items():
        if (path := shutil.which(name)) is not None:
            done = subprocess.run([path, option], capture_output=True, text=True, check=False)
            number = re.search(r"v?[0-9]+\.[0-9]+[0-9.]*", done.stdout + done.stderr)
            found.append(f"{name} {number[0].strip('v.') if number else 'without a version'}")
    return ", ".join(found)


def peers() -> list[Tool]:
    """Return the installed peers."""
    return [tool for tool in (Skopeo(), Crane(), Regctl(), Oras()) if shutil.which(tool.name)]
