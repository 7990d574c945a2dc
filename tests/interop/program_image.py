"""A small image that runs: `cat` of this machine with its libraries, made without a line of ocistream."""

from __future__ import annotations

import functools
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.images import Descriptor, Layout, tar_layer
from tests.peers import STOP_TIMEOUT, Tools, need

#: What the image prints when it is run.
GREETING: Final = "hello\n"
#: Podman wants to raise these limits, which not every root may; runc works with any cgroups.
_PODMAN_RUN: Final = (
    "run",
    "--rm",
    "--network=none",
    "--runtime=runc",
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1024:1024",
)
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def program_image(layout: Layout, *, name: str | None = None, greeting: str = GREETING, mark: str = "") -> Descriptor:
    """Write an image that prints `greeting`, of five gzip layers.

    All but one are the same for all images with the same `mark`: a daemon does not unpack again what it has. What is
    printed lies in two layers, so that it says too whether they were laid over each other in their order; and one layer
    stands there twice, as those of empty steps do, for which older `docker save` writes a link.
    """
    libraries, program = _program(mark)
    note = tar_layer({"etc/mark": mark.encode()})
    return layout.image(
        [libraries, note, program, tar_layer({"etc/motd": greeting.encode()}), note],
        name=name,
        platform=f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}",
        config={"Cmd": ["/bin/cat", "/etc/motd"]},
    )


def image_of_programs(layout: Layout, *programs: str) -> Descriptor:
    """Write an image of one layer: `programs` of this machine in /bin, and their libraries."""
    need("ldd", *programs)
    files = {f"bin/{name}": Path(str(shutil.which(name))) for name in programs}
    content = {name: path.read_bytes() for name, path in files.items()}
    for path in files.values():
        content |= _libraries(path)
    return layout.image([tar_layer(content)])


def podman_run(tools: Tools, name: str) -> str:
    """Have podman run an image that is in its storage, and return what that prints."""
    printed = tools.run("podman", *_PODMAN_RUN, name).stdout
    # What watched over the container cleans up after it, and may not have ended in folders that the test deletes.
    deadline = time.monotonic() + STOP_TIMEOUT
    while any(str(tools.runroot) in _command_line(process) for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "podman does not end"
        time.sleep(0.02)
    return printed


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


@functools.cache
def _program(mark: str) -> tuple[bytes, bytes]:
    """Return the layers with the libraries and with the program."""
    need("cat", "ldd")
    program = Path(str(shutil.which("cat")))
    libraries = _libraries(program)
    marked = mark.encode()
    return (
        tar_layer({**libraries, "etc/motd": b"covered\n", "etc/first": marked}),
        tar_layer({"bin/cat": program.read_bytes(), "etc/second": marked}),
    )


def _libraries(program: Path) -> dict[str, bytes]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return {path.removeprefix("/"): Path(path).read_bytes() for path in re.findall(r"(/\S+) \(0x", listed)}
