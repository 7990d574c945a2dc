"""`scripts/image` adds ocistream to each platform of a base image, and the program runs without root."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import ocistream
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, small_image, tar_layer
from tests.interop.program_image import podman_run, python_image
from tests.package.conftest import ROOT, run
from tests.peers import Dockerd, Tools
from tests.registry_http import seed

#: The machine of each architecture, in the names of compiled modules.
_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
#: The architecture of this machine.
_THIS: Final = next((name for name, machine in _MACHINES.items() if machine == platform.machine()), platform.machine())


class Archive:
    """The entries of an OCI archive, by name."""

    def __init__(self, path: Path) -> None:
        """Read all entries."""
        with tarfile.open(path) as tar:
            self._entries = {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry)) is not None}

    def manifests(self) -> list[Any]:
        """Return the manifests of the only image's index, each with its platform."""
        (image,) = json.loads(self._entries["index.json"])["manifests"]
        assert image["annotations"]["org.opencontainers.image.ref.name"] == f"ocistream:{ocistream.__version__}"
        return [{**item, **self.document(item)} for item in self.document(image)["manifests"]]

    def document(self, descriptor: dict[str, Any]) -> Any:
        """Return a parsed JSON blob."""
        return json.loads(self.blob(descriptor))

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        return self._entries["blobs/" + descriptor["digest"].replace(":", "/")]

    def files(self, descriptor: dict[str, Any]) -> dict[str, tarfile.TarInfo]:
        """Return the entries of a layer."""
        with tarfile.open(fileobj=io.BytesIO(self.blob(descriptor))) as tar:
            return {entry.name: entry for entry in tar}


@pytest.fixture(scope="module")
def made(zipapp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the archive of an image for two platforms. Its base for this machine is the Python that runs the tests."""
    folder = tmp_path_factory.mktemp("image")
    layout = Layout(folder / "base")
    environment = [f"PYTHON_VERSION={sys.version_info.major}.{sys.version_info.minor}.9", "HOME=/root", "A=b"]
    config = {"Env": environment, "Cmd": ["python3"], "User": "root"}
    images = [
        python_image(layout, environment)
        if name == _THIS
        else layout.image([tar_layer({"etc/base": name.encode()})], platform=f"linux/{name}", config=config)
        for name in _MACHINES
    ]
    layout.index(images, name="base")
    output = folder / "made.tar"
    words: list[str | Path] = ["--output", output, "--zipapp", zipapp, f"oci:{layout.path}:base"]
    run(sys.executable, "-m", "scripts.release.image", *words)
    return output


def test_the_image_has_each_platform_of_the_base_and_one_more_layer(made: Path) -> None:
    archive = Archive(made)
    manifests = archive.manifests()
    assert [manifest["platform"]["architecture"] for manifest in manifests] == list(_MACHINES)
    for manifest in manifests:
        assert len(manifest["layers"]) == len(archive.document(manifest["config"])["rootfs"]["diff_ids"]) == 2
        machine = _MACHINES[manifest["platform"]["architecture"]]
        compiled = [name for name in archive.files(manifest["layers"][1]) if name.endswith(".so")]
        assert compiled
        assert all(f"-{machine}-" in name for name in compiled)


def test_the_image_is_configured_to_run_without_root(made: Path) -> None:
    archive = Archive(made)
    for manifest in archive.manifests():
        settings = archive.document(manifest["config"])["config"]
        assert (settings["User"], settings["Entrypoint"], settings["Cmd"]) == ("65532:65532", ["ocistream"], ["--help"])
        assert settings["WorkingDir"] == "/home/ocistream"
        assert {"A=b", "HOME=/home/ocistream"} <= set(settings["Env"])
        assert settings["Labels"]["org.opencontainers.image.version"] == ocistream.__version__
        files = archive.files(manifest["layers"][1])
        home, program = files["home/ocistream"], files["usr/local/bin/ocistream"]
        assert (home.isdir(), home.uid, home.mode) == (True, 65532, 0o755)
        assert program.mode == 0o755


def test_a_base_of_several_images_is_refused_with_one_error(layout: Layout, tmp_path: Path) -> None:
    for size in (5_000, 6_000):
        layout.image([size], name=f"base:{size}")
    program = tmp_path / "ocistream.py"
    program.write_text("import runpy; runpy.run_module('ocistream', run_name='__main__')")
    words = ["--output", str(tmp_path / "made.tar"), "--zipapp", str(program), f"oci:{layout.path}"]
    argv = [sys.executable, "-m", "scripts.release.image", *words]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("ocistream: error: "), result.stderr
    assert "Traceback" not in result.stderr, result.stderr


def podman_with(archive: Path, tools: Tools) -> Callable[..., str]:
    """Return a function that runs the image of an archive with podman."""
    name = tools.run("podman", "load", "--quiet", "--input", archive).stdout.partition(": ")[2].strip()
    return lambda *arguments, options=(): podman_run(tools, name, *arguments, options=("--network=host", *options))


def docker_with(archive: Path, daemon: Dockerd) -> Callable[..., str]:
    """Return a function that runs the image of an archive with Docker."""
    name = daemon.docker("load", "--quiet", "--input", archive).stdout.partition(": ")[2].strip()

    def run_image(*arguments: str, options: tuple[str, ...] = ()) -> str:
        return daemon.docker("run", "--rm", "--network=host", *options, name, *arguments).stdout

    return run_image


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_engine_loads_the_image_and_its_program_pulls_without_root(
    engine: str,
    made: Path,
    request: pytest.FixtureRequest,
    layout: Layout,
    start: Callable[..., FaultyRegistry],
) -> None:
    if engine == "docker":
        run_image = docker_with(made, request.getfixturevalue("docker_daemon"))
    else:
        run_image = podman_with(made, request.getfixturevalue("tools"))
    registry = start()
    digest = seed(layout, small_image(layout), registry.host, "app", "1")
    script = "import os, isal.isal_zlib, zstandard; print(os.getuid())"
    assert run_image("-c", script, options=("--entrypoint=python3",)) == "65532\n"
    assert run_image("--version") == f"ocistream {ocistream.__version__}\n"
    assert run_image("pull", f"{registry.host}/app:1", "-o", "app.tar") == f"{registry.host}/app:1@{digest}\n"
