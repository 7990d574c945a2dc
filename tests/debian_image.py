"""A real image of about 60 MB: a Debian root file system by mmdebstrap, in four gzip layers."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from tests.images import OCI_LAYER, Descriptor, Layout
from tests.peers import need

#: The image's name in its layout's index.json.
NAME = "debian"
#: With this package the compressed root file system has about 60 MB.
_PACKAGES = "python3-minimal"
_LAYERS = 4


@dataclasses.dataclass(frozen=True)
class DebianImage:
    """A layout with one image, which prints /etc/debian_version when it is run."""

    layout: Layout
    manifest: Descriptor


def debian_rootfs_image(cache: Path) -> DebianImage:
    """Return the image below `cache`. The first use makes it: 15 seconds, as root, from Debian's archive."""
    suite = _suite()
    finished = cache / f"debian-{suite}-{_PACKAGES}"
    if not finished.exists():
        need("mmdebstrap", root=True)
        unfinished = cache / f"unfinished-{os.getpid()}"
        try:
            _make(Layout(unfinished), suite)
            unfinished.rename(finished)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    (entry,) = json.loads((finished / "index.json").read_bytes())["manifests"]
    return DebianImage(Layout(finished), entry)


def _suite() -> str:
    """Return this machine's release: its keys and mirrors are configured."""
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        if release["ID"] == "debian" and "VERSION_CODENAME" in release:
            return release["VERSION_CODENAME"]
    return "stable"


def _mirrors(suite: str) -> list[str]:
    """Return the mirror of `suite` that this machine's apt uses; if it has none, mmdebstrap uses its default."""
    listed = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(RELEASE) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return [line.split()[2] for line in listed.splitlines() if line.startswith(f"{suite} main ")][:1]


def _make(layout: Layout, suite: str) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=essential", f"--include={_PACKAGES}", suite, "-"]
    # The epoch becomes the files' time, so the same packages give the same image.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    log = layout.path / "mmdebstrap.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*command, *_mirrors(suite)], stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        layers = _split(process.stdout, [layout.path / f"layer-{number}" for number in range(_LAYERS)])
    if process.returncode:
        pytest.fail(f"mmdebstrap: exit {process.returncode}\n{log.read_text()}", pytrace=False)
    log.unlink()
    written = [layout.adopt(layer, f"{OCI_LAYER}+gzip") for layer in layers]
    layout.image(written, name=NAME, config={"Cmd": ["cat", "/etc/debian_version"]})


def _split(rootfs: IO[bytes], paths: Sequence[Path]) -> Sequence[Path]:
    """Distribute a root file system over gzip layers: folders and links in the first, files over the others."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(tarfile.open(fileobj=rootfs, mode="r|"))
        layers = [stack.enter_context(_writer(path)) for path in paths]
        home: dict[str, tarfile.TarFile] = {}
        for member in source:
            layer = layers[0]
            if member.isreg():
                layer = home[member.name] = min(layers[1:], key=lambda one: one.offset)
            elif member.islnk():
                # A hard link must be in the layer of its target.
                layer = home[member.linkname]
            layer.addfile(member, source.extractfile(member) if member.isreg() else None)
        # Read the pipe to its end: mmdebstrap fails if it closes early.
        while rootfs.read(1 << 20):
            pass
    return paths


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[tarfile.TarFile]:
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as inner,
        tarfile.open(fileobj=inner, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        yield archive
