"""Which image other tools read from the archives that ocistream refuses as ambiguous."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.ambiguous_archives import (
    DOCKER,
    OTHER,
    OTHER_CONFIG_DIGEST,
    OTHER_DIGEST,
    REFUSED,
    SOUND,
    SOUND_CONFIG_DIGEST,
    SOUND_DIGEST,
)
from tests.hostile.archive_parts import Hostile, digest_of
from tests.hostile.corpus import CORPUS
from tests.peers import Tools, need

_CASES = [hostile for hostile in CORPUS.values() if hostile.seen is not None]
_IMAGES = {
    SOUND_DIGEST: SOUND,
    SOUND_CONFIG_DIGEST: SOUND,
    OTHER_DIGEST: OTHER,
    OTHER_CONFIG_DIGEST: OTHER,
}
each_case = pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)


def image_in(case: Hostile, folder: Path) -> str:
    """Return the image that a tool extracted."""
    if case in DOCKER:
        (listed,) = json.loads((folder / "manifest.json").read_bytes())
        return _IMAGES[digest_of((folder / listed["Config"]).read_bytes())]
    (listed,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    assert (folder / "blobs" / listed["digest"].replace(":", "/")).is_file()
    return _IMAGES[listed["digest"]]


def extracted(case: Hostile, folder: Path, extract: Callable[[Path, Path], None]) -> str:
    """Extract an archive with a tool; an error of the tool and a layout without an image both count as refused."""
    archive, target = folder / "x.tar", folder / "in" / "x"
    archive.write_bytes(case.make())
    target.mkdir(parents=True)
    try:
        extract(archive, target)
        return image_in(case, target)
    except (subprocess.CalledProcessError, tarfile.TarError, ValueError, OSError, AssertionError):
        return REFUSED
    finally:
        shutil.rmtree(folder / "in")


@each_case
def test_gnu_tar(case: Hostile, tmp_path: Path) -> None:
    need("tar")

    def extract(archive: Path, target: Path) -> None:
        subprocess.run(["tar", "-x", "-f", archive, "-C", target], check=True, capture_output=True)

    assert case.seen is not None
    assert extracted(case, tmp_path, extract) == case.seen.tar


@each_case
def test_pythons_tarfile(case: Hostile, tmp_path: Path) -> None:
    options: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}

    def extract(archive: Path, target: Path) -> None:
        with tarfile.open(archive) as opened:
            # tarfile would write an absolute name outside `target`, into the root directory of this machine.
            members = [member for member in opened if not member.name.startswith("/")]
            opened.extractall(target, members, **options)  # noqa: S202 - the tests made it themselves

    assert case.seen is not None
    assert extracted(case, tmp_path, extract) == case.seen.tarfile


@each_case
def test_skopeo(case: Hostile, tools: Tools, tmp_path: Path) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(case.make())
    what = ["--config", f"docker-archive:{archive}"] if case in DOCKER else [f"oci-archive:{archive}"]
    done = tools.run("skopeo", "inspect", "--raw", *what, check=False)
    seen = _IMAGES[digest_of(done.stdout.encode())] if done.returncode == 0 else REFUSED
    assert case.seen is not None
    assert seen == case.seen.skopeo
