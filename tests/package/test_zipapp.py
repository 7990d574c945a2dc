"""The zipapp copies images with a Python without packages, also over TLS, and reports a missing package."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import ocistream
from tests.certificates import make_certificate
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout, small_image
from tests.registry_http import manifest_digest, seed

_SECONDS = 120


def bare(zipapp: Path, *argv: str, folder: Path, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run the zipapp without site-packages, HOME and a folder for temporary files."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment.pop("SSL_CERT_FILE", None)
    environment |= {"HOME": f"{folder}/none", "TMPDIR": f"{folder}/none", **env}
    line = [sys.executable, "-I", "-S", str(zipapp), *argv]
    return subprocess.run(line, input=stdin, capture_output=True, env=environment, timeout=_SECONDS, check=False)


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return a small image."""
    return small_image(layout, name="app")


def test_the_zipapp_runs_with_only_python(zipapp: Path, tmp_path: Path) -> None:
    done = bare(zipapp, "--version", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"ocistream {ocistream.__version__}\n".encode(), b"")
    assert os.access(zipapp, os.X_OK)
    assert zipapp.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_the_zipapp_has_no_compiled_extension(zipapp: Path) -> None:
    names = zipfile.ZipFile(zipapp).namelist()
    assert {name.rpartition(".")[2] for name in names if "/" in name and ".dist-info/" not in name} <= {"py", "pyc"}
    packages = {name.partition("/")[0] for name in names if "/" in name and ".dist-info/" not in name}
    assert packages == {"charset_normalizer", "click", "idna", "ocistream", "requests", "tqdm", "urllib3"}
    licenses = {name.partition("-")[0] for name in names if "/licenses/" in name}
    assert licenses == packages


def test_an_image_is_copied_through_a_pipe_between_registries(
    zipapp: Path, start: Callable[..., FaultyRegistry], layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    here, there = start(), start()
    digest = seed(layout, image, here.host, "app", "1")
    pulled = bare(zipapp, "pull", f"{here.host}/app:1", folder=tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    pushed = bare(zipapp, "push", f"{there.host}/app:2", folder=tmp_path, stdin=pulled.stdout)
    assert (pushed.returncode, pushed.stdout) == (0, f"{there.host}/app:2@{digest}\n".encode())
    assert manifest_digest(there.host, "app", "2") == digest


def test_https_trusts_only_the_given_certificate_authorities(
    zipapp: Path, start: Callable[..., FaultyRegistry], layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    ours = make_certificate(folder(tmp_path, "ours"))
    other = make_certificate(folder(tmp_path, "other"))
    registry = start(tls=ours)
    target = f"localhost:{registry.host.rpartition(':')[2]}/app:1"
    line = ["push", "-i", str(layout.path), target]
    done = bare(zipapp, *line, folder=tmp_path, SSL_CERT_FILE=str(ours.file))
    assert (done.returncode, done.stdout) == (0, f"{target}@{image['digest']}\n".encode())
    for done in (
        bare(zipapp, *line, folder=tmp_path, SSL_CERT_FILE=str(other.file)),
        bare(zipapp, *line, folder=tmp_path),
    ):
        assert done.returncode == 7
        assert b"certificate" in done.stderr


def test_certifi_returns_the_path_of_the_system_certificates(zipapp: Path) -> None:
    # The zipapp replaces certifi by a module that returns the system's path, even if no file exists there.
    script = "import certifi, ssl; assert certifi.where() == ssl.get_default_verify_paths().openssl_cafile"
    line = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(zipapp)!r}); {script}"]
    subprocess.run(line, check=True, timeout=_SECONDS)


@pytest.mark.parametrize(
    "argv", [["copy", "oci:{layout}:app", "oci:{folder}/out:app", "--compress", "zstd"], ["verify", "{folder}/x.zst"]]
)
def test_an_error_without_zstd_names_the_package_to_install(
    zipapp: Path, layout: Layout, image: Descriptor, tmp_path: Path, argv: list[str]
) -> None:
    assert image
    (tmp_path / "x.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    done = bare(zipapp, *(word.format(layout=layout.path, folder=tmp_path) for word in argv), folder=tmp_path)
    assert done.returncode == 8
    assert b"install" in done.stderr
    assert b"zstandard" in done.stderr
    assert b"Traceback" not in done.stderr


def folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir()
    return path
