"""Archives that other tools write, of one image or of two, each written once for the run."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.images import Descriptor, Layout
from tests.interop.program_image import program_image
from tests.peers import Containerd, Dockerd, Tools

#: The full names of the images.
APP: Final = "written.test/org/app:v1"
WEB: Final = "written.test/org/web:v2"


class Bench:
    """The tools that write archives. Each daemon and each image store gets its images when it is first used."""

    def __init__(self, folder: Path, tools: Tools) -> None:
        """Store all files below `folder`."""
        self.folder = folder
        #: Returns a fixture of the running test.
        self.fixture: Callable[[str], Any]
        self._tools = tools

    @functools.cached_property
    def app(self) -> tuple[Layout, Descriptor]:
        """The first image, named v1 in its layout."""
        layout = Layout(self.folder / "app")
        return layout, program_image(layout, name="v1")

    @functools.cached_property
    def web(self) -> tuple[Layout, Descriptor]:
        """The second image, named v2 in its layout. It shares all layers but one with the first."""
        layout = Layout(self.folder / "web")
        return layout, program_image(layout, name="v2", greeting="goodbye\n")

    @functools.cached_property
    def tools(self) -> Tools:
        """The tools, with both images in the storage of podman and buildah."""
        for archive in self._both("oci-archive"):
            self._tools.run("podman", "load", "--input", archive)
        return self._tools

    @functools.cached_property
    def docker(self) -> Dockerd:
        """Docker's daemon with both images."""
        daemon: Dockerd = self.fixture("docker_daemon")
        for archive in self._both("docker-archive"):
            daemon.docker("load", stdin=archive)
        return daemon

    @functools.cached_property
    def containerd(self) -> Containerd:
        """Return containerd with both images."""
        daemon: Containerd = self.fixture("containerd_daemon")
        for layout, name in ((self.app[0], APP), (self.web[0], WEB)):
            archive = tar_of(layout.path, self.folder / f"{layout.path.name}-for-containerd.tar", ".")
            base = f"--base-name={name.rpartition(':')[0]}"
            daemon.ctr("images", "import", "--snapshotter=native", base, archive)
        return daemon

    @functools.cached_property
    def copied(self) -> Path:
        """The first image in a layout that skopeo wrote."""
        self.skopeo(APP, f"oci:{self.folder / 'copied'}:v1")
        return self.folder / "copied"

    def skopeo(self, name: str, target: str) -> None:
        """Copy one of the images with skopeo."""
        layout, tag = (self.app[0], "v1") if name == APP else (self.web[0], "v2")
        self._tools.run("skopeo", "copy", f"oci:{layout.path}:{tag}", target)

    def umoci(self, *arguments: str | Path) -> None:
        """Run umoci, which needs no storage."""
        self._tools.run("umoci", *arguments)

    def _both(self, kind: str) -> list[Path]:
        archives = {name: self.folder / f"{kind}-{place}.tar" for place, name in enumerate((APP, WEB))}
        for name, archive in archives.items():
            self.skopeo(name, f"{kind}:{archive}:{name}")
        return list(archives.values())


Write = Callable[[Bench, Path], object]


def tar_of(folder: Path, archive: Path, *names: str) -> Path:
    """Write `names` of a folder into an archive with `tar`."""
    subprocess.run(["tar", "--create", "--file", archive, "--directory", folder, *names], check=True)
    return archive


def _skopeo(kind: str) -> Write:
    return lambda bench, to: bench.skopeo(APP, f"{kind}:{to}:{APP}")


def _podman(kind: str) -> Write:
    return lambda bench, to: bench.tools.run("podman", "save", f"--format={kind}", "--output", to, APP)


def _buildah(kind: str) -> Write:
    return lambda bench, to: bench.tools.run("buildah", "push", "--quiet", APP, f"{kind}:{to}:{APP}")


def _umoci(bench: Bench, to: Path) -> None:
    folder = bench.folder / "umoci"
    bench.skopeo(APP, f"oci:{folder}:v1")
    bench.umoci("config", "--image", f"{folder}:v1", "--config.label=changed=yes")
    bench.umoci("gc", "--layout", folder)
    tar_of(folder, to, "oci-layout", "index.json", "blobs")


def _skopeos_of_both(bench: Bench, to: Path) -> None:
    for name in (APP, WEB):
        bench.skopeo(name, f"oci:{bench.folder / 'both'}:{name}")
    tar_of(bench.folder / "both", to, ".")


#: Writers of APP with its manifest.
OCI_WRITERS: Final[Mapping[str, Write]] = {
    "skopeo-oci": _skopeo("oci-archive"),
    "podman-oci": _podman("oci-archive"),
    "buildah-oci": _buildah("oci-archive"),
    "umoci-in-a-tar": _umoci,
    "containerd": lambda bench, to: bench.containerd.ctr("images", "export", to, APP),
    "layout-with-dots": lambda bench, to: tar_of(bench.copied, to, "."),
    "layout-without-dots": lambda bench, to: tar_of(bench.copied, to, "blobs", "index.json", "oci-layout"),
}
#: Writers of APP as a docker-archive, which has no manifest.
DOCKER_WRITERS: Final[Mapping[str, Write]] = {
    "skopeo-docker": _skopeo("docker-archive"),
    "podman-docker": _podman("docker-archive"),
    "buildah-docker": _buildah("docker-archive"),
    "docker-save": lambda bench, to: bench.docker.docker("save", "--output", to, APP),
}
#: Writers of APP and WEB into one archive.
WRITERS_OF_BOTH: Final[Mapping[str, Write]] = {
    "docker-save-of-both": lambda bench, to: bench.docker.docker("save", "--output", to, APP, WEB),
    "podman-docker-of-both": lambda bench, to: bench.tools.run("podman", "save", "-m", "--output", to, APP, WEB),
    "containerd-of-both": lambda bench, to: bench.containerd.ctr("images", "export", to, APP, WEB),
    "layout-of-both": _skopeos_of_both,
}
_ALL: Final = {**OCI_WRITERS, **DOCKER_WRITERS, **WRITERS_OF_BOTH}


def written(bench: Bench, writer: str) -> Path:
    """Return the archive of one of the writers. The caller must not write to it."""
    archive = bench.folder / f"{writer}.tar"
    if not archive.exists():
        _ALL[writer](bench, archive)
    return archive
