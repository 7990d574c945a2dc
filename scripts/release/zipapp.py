"""Build `ocistream.pyz`, one file that needs only Python.

    python -m scripts.release.zipapp [--output FILE] [WHEEL]

Without WHEEL, the wheel is built first. The file also contains the run-time dependencies, as wheels of pure Python from
pip, except for three:

- zstandard and isal are compiled, and Python cannot import compiled modules from a zip. Most copies decompress no
  layer. If one must, `ocistream.streams.compression` uses zlib instead of isal, and says that zstandard must be
  installed. The file uses both if Python has them. To unpack them at the first start would need a writable and trusted
  directory, and a file for each Python, processor and libc.
- certifi has a file of CAs that OpenSSL cannot read inside a zip. A module of the same name returns the CAs of the
  system, which ocistream trusts anyway.

The same wheels and the same Python give the same bytes. The file contains source code for any Python, and bytecode for
the Python that built it; other versions ignore the bytecode.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import marshal
import subprocess
import sys
import tempfile
import zipfile
from email.parser import BytesParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
#: Packages that the file does not contain; see above.
_EXCLUDED: Final = ("certifi", "zstandard")
_OLDEST: Final = "3.11"
#: Flags of a .pyc: it has the hash of its source, which Python does not check (PEP 552).
_UNCHECKED: Final = (1).to_bytes(4, "little")
#: The earliest time that a zip can have.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_MAIN: Final = """\
import sys

if sys.version_info < (3, 11):
    sys.exit("ocistream: error: Python 3.11 or later is required, but this is " + sys.version.split()[0])

from ocistream.cli import run

run()
"""
_CERTIFI: Final = '''\
"""Replaces certifi, whose file OpenSSL cannot read in a zip: returns the CAs of the system."""

import ssl


def where():
    return ssl.get_default_verify_paths().openssl_cafile


def contents():
    with open(where(), encoding="ascii") as file:
        return file.read()
'''


def main(arguments: Sequence[str]) -> int:
    """Build the file."""
    parser = argparse.ArgumentParser(prog="scripts/zipapp", description="Build one file that needs only Python.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "ocistream.pyz")
    parser.add_argument("wheel", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or _built(Path(folder, "own"))
        wheels = [wheel, *_fetched(wheel, Path(folder, "others"))]
        files = dict(_files(wheels))
    files["__main__.py"] = _MAIN.encode()
    files["certifi.py"] = _CERTIFI.encode()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    _write(options.output, files)
    print(options.output)
    return 0


def _built(folder: Path) -> Path:
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def _fetched(wheel: Path, folder: Path) -> list[Path]:
    """Fetch the dependencies of the wheel, as pure Python for all supported versions."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(name))
    # With a marker: extras, and isal.
    wanted = [text for text in metadata.get_all("Requires-Dist", []) if ";" not in text]
    wanted = [text for text in wanted if not text.startswith(_EXCLUDED)]
    pure = ["--platform", "any", "--implementation", "py", "--abi", "none", "--python-version", _OLDEST]
    _pip("download", "--dest", str(folder), "--only-binary", ":all:", *pure, *wanted)
    return sorted(path for path in folder.glob("*.whl") if not path.name.startswith(_EXCLUDED))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def _files(wheels: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the modules of wheels with their licenses and metadata."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                is_module = name.endswith(".py") and ".data/" not in name
                if is_module or ".dist-info/licenses/" in name or name.endswith(".dist-info/METADATA"):
                    yield name, archive.read(name)


def _write(path: Path, files: dict[str, bytes]) -> None:
    """Write all files, and beside each module its bytecode."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in sorted(files):
            _add(archive, name, files[name])
            if name.endswith(".py") and name != "__main__.py":
                code = compile(files[name], name, "exec", dont_inherit=True, optimize=0)
                hashed = importlib.util.source_hash(files[name])
                _add(archive, f"{name}c", importlib.util.MAGIC_NUMBER + _UNCHECKED + hashed + marshal.dumps(code))
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(b"#!/usr/bin/env python3\n" + content.getvalue())
    temporary.chmod(0o755)
    temporary.replace(path)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
