"""Make a container image of ocistream: an OCI archive with one image for each platform.

    python -m scripts.release.image [--output FILE] [--platform OS/ARCH]... [--zipapp FILE] [BASE]

BASE is any location of an image with Python 3.11 or later and glibc, by default Docker Hub's slim image. One layer is
added to it: ocistream.pyz, and isal and zstandard for the platform, which pip fetches as wheels. The script runs no
program of the image, so one machine makes the image for all platforms. ocistream itself reads BASE and writes the
archive.

The same BASE, wheels and Python give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
_BASE: Final = "docker.io/library/python:3.13-slim"
_PLATFORMS: Final = ("linux/amd64", "linux/arm64")
#: The packages that the zipapp lacks.
_COMPILED: Final = ("isal", "zstandard")
#: The machine's name in wheels, by GOARCH.
_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
#: The user of the image: the usual number for "nonroot", which needs no entry in /etc/passwd.
_USER: Final = 65532
_HOME: Final = "home/ocistream"
_PROGRAM: Final = "usr/local/bin/ocistream"
_PACKAGES: Final = "usr/local/lib/ocistream"
_OCI: Final = "application/vnd.oci.image."
_DOCKER: Final = "application/vnd.docker."
_INDEXES: Final = frozenset({f"{_OCI}index.v1+json", f"{_DOCKER}distribution.manifest.list.v2+json"})


def main(arguments: Sequence[str]) -> int:
    """Make the archive."""
    parser = argparse.ArgumentParser(prog="scripts/image", description="Make a container image of ocistream.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "ocistream-image.tar", metavar="FILE")
    parser.add_argument("--platform", action="append", metavar="OS/ARCH", help=f"default: {' and '.join(_PLATFORMS)}")
    parser.add_argument("--zipapp", type=Path, metavar="FILE", help="default: made by scripts/zipapp")
    parser.add_argument("base", nargs="?", default=_BASE, metavar="BASE", help=f"default: {_BASE}")
    options = parser.parse_args(arguments)
    try:
        _make_image(options)
    except subprocess.CalledProcessError as error:
        # The program has printed its error.
        return error.returncode
    return 0


def _make_image(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zipapp = options.zipapp or _make_zipapp(folder / "ocistream.pyz")
        ocistream = [sys.executable, "-I", str(zipapp)]
        said = subprocess.run([*ocistream, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
        version = said.split()[1]
        chosen = [word for platform in options.platform or _PLATFORMS for word in ("--platform", platform)]
        copy = [*ocistream, "copy", "-q", "--no-referrers"]
        layout = folder / "layout"
        subprocess.run([*copy, *chosen, options.base, f"oci:{layout}:base"], stdout=subprocess.DEVNULL, check=True)
        ImageBuilder(Layout(layout), zipapp.read_bytes(), version, options.base, folder).build()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        target = f"oci-archive:{options.output}:ocistream:{version}"
        subprocess.run([*copy, f"oci:{layout}:ocistream", target], stdout=subprocess.DEVNULL, check=True)
        subprocess.run([*ocistream, "verify", "--deep", options.output], check=True)


def _make_zipapp(path: Path) -> Path:
    line = [sys.executable, "-m", "scripts.release.zipapp", "--output", str(path)]
    subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return path


@dataclass(frozen=True)
class Layout:
    """An OCI layout: reads and writes blobs and the images that index.json lists."""

    path: Path

    def read(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        """Return a JSON blob."""
        document: dict[str, Any] = json.loads(self._blob(descriptor["digest"]).read_bytes())
        return document

    def write(self, content: bytes | dict[str, Any], media_type: str) -> dict[str, Any]:
        """Write a blob and return its descriptor."""
        raw = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self._blob(digest).write_bytes(raw)
        return {"mediaType": media_type, "digest": digest, "size": len(raw)}

    def only_image(self) -> dict[str, Any]:
        """Return the descriptor of the only image."""
        (image,) = json.loads((self.path / "index.json").read_bytes())["manifests"]
        found: dict[str, Any] = image
        return found

    def replace_images(self, descriptor: dict[str, Any], name: str) -> None:
        """Make a descriptor the only image, under a name."""
        named = descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}}
        index = {"schemaVersion": 2, "mediaType": f"{_OCI}index.v1+json", "manifests": [named]}
        (self.path / "index.json").write_text(json.dumps(index))

    def _blob(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")


@dataclass(frozen=True)
class ImageBuilder:
    """Adds the layer with ocistream to each platform of the only image in a layout."""

    layout: Layout
    zipapp: bytes
    version: str
    base: str
    folder: Path

    def build(self) -> None:
        """Write the new image to the layout, and make it the only one."""
        base = self.layout.only_image()
        labels = {
            "org.opencontainers.image.title": "ocistream",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.base.name": self.base,
            "org.opencontainers.image.base.digest": base["digest"],
        }
        if base["mediaType"] not in _INDEXES:
            self.layout.replace_images(self._extend(base, labels), "ocistream")
            return
        index = self.layout.read(base)
        # An attestation is about an image that is not in the new index.
        platforms = [item for item in index["manifests"] if item.get("platform", {}).get("os") != "unknown"]
        manifests = [self._extend(item, labels) | {"platform": item["platform"]} for item in platforms]
        new = {"schemaVersion": 2, "mediaType": base["mediaType"], "manifests": manifests}
        self.layout.replace_images(self.layout.write(new, base["mediaType"]), "ocistream")

    def _extend(self, descriptor: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
        """Return the descriptor of a manifest with one more layer."""
        manifest = self.layout.read(descriptor)
        config = self.layout.read(manifest["config"])
        layer = self._layer(config)
        is_docker = manifest["config"]["mediaType"].startswith(_DOCKER)
        layer_type = f"{_DOCKER}image.rootfs.diff.tar.gzip" if is_docker else f"{_OCI}layer.v1.tar+gzip"
        # Level 9 takes six times as long as level 6 and saves 1 % of the size.
        manifest["layers"].append(self.layout.write(gzip.compress(layer, 6, mtime=0), layer_type))
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        config.setdefault("history", []).append({"created_by": "scripts/image", "comment": f"ocistream {self.version}"})
        settings = config.setdefault("config", {})
        settings["User"] = f"{_USER}:{_USER}"
        settings["WorkingDir"] = f"/{_HOME}"
        settings["Entrypoint"] = ["ocistream"]
        settings["Cmd"] = ["--help"]
        set_here = {"HOME": f"/{_HOME}", "PYTHONPATH": f"/{_PACKAGES}"}
        kept = [entry for entry in settings.get("Env") or [] if entry.partition("=")[0] not in set_here]
        settings["Env"] = kept + [f"{name}={value}" for name, value in set_here.items()]
        settings["Labels"] = (settings.get("Labels") or {}) | labels
        manifest["config"] = self.layout.write(config, manifest["config"]["mediaType"])
        return self.layout.write(manifest, descriptor["mediaType"])

    def _layer(self, config: dict[str, Any]) -> bytes:
        """Return the layer for a platform: a tar file."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            files = {f"{_PACKAGES}/{name}": content for name, content in self._compiled_packages(config)}
            # Docker makes a directory without an entry readable for root only (UnpackLayer in moby's pkg/archive).
            paths = map(PurePosixPath, (_HOME, _PROGRAM, *files))
            for folder in sorted({folder for path in paths for folder in path.parents if folder.name}):
                _add_directory(tar, str(folder), 0)
            _add_directory(tar, _HOME, _USER)
            _add_file(tar, _PROGRAM, self.zipapp, 0o755)
            for path, content in files.items():
                _add_file(tar, path, content, 0o755 if path.endswith(".so") else 0o644)
        return stream.getvalue()

    def _compiled_packages(self, config: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Fetch the wheels that the zipapp lacks, for the platform and Python of an image, and yield their files."""
        python, machine = _python_version(config), _MACHINES.get(config["architecture"])
        if machine is None:
            sys.exit(f"scripts/image: no wheels for linux/{config['architecture']}: use --platform")
        target = self.folder / f"wheels-{machine}"
        tags = (f"manylinux2014_{machine}", f"manylinux_2_17_{machine}", f"manylinux_2_28_{machine}")
        kind = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
        kind += [word for tag in tags for word in ("--platform", tag)]
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "download", "--no-deps", "--dest", str(target), *kind, *_COMPILED], check=True)
        for wheel in sorted(target.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in sorted(archive.namelist()):
                    if not name.endswith("/"):
                        yield name, archive.read(name)


def _python_version(config: dict[str, Any]) -> str:
    """Return the version of the image's Python, from the variable that Python's own images set."""
    for entry in config.get("config", {}).get("Env") or []:
        name, _, value = entry.partition("=")
        if name == "PYTHON_VERSION":
            return ".".join(value.split(".")[:2])
    sys.exit("scripts/image: BASE does not set PYTHON_VERSION: use an image that is made from python:3.13-slim")


def _add_directory(tar: tarfile.TarFile, name: str, owner: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, 0o755, owner, owner
    tar.addfile(entry)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
