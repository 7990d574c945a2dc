"""Small images that run, made of programs of this machine and their libraries, without code of ocistream."""

from __future__ import annotations

import functools
import io
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.images import Descriptor, Layout, tar_layer
from tests.peers import STOP_TIMEOUT, Tools, need

#: The output of the image.
GREETING: Final = "hello\n"
#: Podman would raise these limits, which fails in some containers; runc works with any cgroups.
_PODMAN_RUN: Final = (
    "run",
    "--rm",
    "--runtime=runc",
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1024:1024",
)
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_PLATFORM: Final = f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"
_GLIBC: Final = ("libpthread.so.0", "libdl.so.2", "librt.so.1", "libm.so.6")
#: Parts of Python's library that no program needs.
_LEFT_OUT: Final = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "site-packages", "test", "tkinter"}
)


def program_image(layout: Layout, *, name: str | None = None, greeting: str = GREETING, mark: str = "") -> Descriptor:
    """Write an image that prints `greeting`, of five gzip layers.

    All but one are the same for all images with the same `mark`: a daemon does not unpack a layer that it has. Two
    layers contain the printed file, so the output also shows whether they were applied in order. One layer occurs
    twice, as those of empty build steps do: older `docker save` writes a link for it.
    """
    libraries, program = _program(mark)
    note = tar_layer({"etc/mark": mark.encode()})
    return layout.image(
        [libraries, note, program, tar_layer({"etc/motd": greeting.encode()}), note],
        name=name,
        platform=_PLATFORM,
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


def python_image(layout: Layout, environment: Sequence[str]) -> Descriptor:
    """Write an image of the Python that runs the tests, with environment variables, as a base for `scripts/image`."""
    need("env", "ldd")
    library = Path(sysconfig.get_path("stdlib"))
    program = Path(sys.executable).resolve()
    env = Path(str(shutil.which("env")))
    modules = [
        path
        for path in library.rglob("*")
        if path.suffix in {".py", ".so"} and not _LEFT_OUT & set(path.relative_to(library).parts)
    ]
    content = {str(path)[1:]: path.read_bytes() for path in (program, *modules)}
    for path in (program, env, *(path for path in modules if path.suffix == ".so")):
        content |= _libraries(path)
    # Wheels for Linux may need these parts of glibc, which are in libc.so.6 since 2.34.
    (libc,) = (Path("/", name) for name in content if name.endswith("/libc.so.6"))
    content |= {str(path)[1:]: path.read_bytes() for path in map(libc.with_name, _GLIBC) if path.exists()}
    content |= {f"{program.parent}/python3"[1:]: program.read_bytes(), "usr/bin/env": env.read_bytes()}
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        # In Docker, only root can read a directory that has no entry.
        for folder in sorted({str(parent) for file_name in content for parent in Path(file_name).parents}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for file_name, data in content.items():
            entry = tarfile.TarInfo(file_name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    variables = [f"PATH=/usr/local/bin:{program.parent}", *environment]
    return layout.image([output.getvalue()], platform=_PLATFORM, config={"Env": variables, "User": "root"})


def podman_run(tools: Tools, name: str, *arguments: str, options: Sequence[str] = ("--network=none",)) -> str:
    """Run an image in podman's storage, and return its output."""
    printed = tools.run("podman", *_PODMAN_RUN, *options, name, *arguments).stdout
    # podman's monitor cleans up after the container, and may still use folders that the test deletes.
    deadline = time.monotonic() + STOP_TIMEOUT
    while any(str(tools.runroot) in _command_line(process) for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "podman does not exit"
        time.sleep(0.02)
    return printed


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


@functools.cache
def _program(mark: str) -> tuple[bytes, bytes]:
    """Return the layer with the libraries and the layer with the program."""
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
