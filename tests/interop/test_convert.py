"""`ocistream copy` converts archives and layouts of skopeo without a registry, also between stdin and stdout.

The config and the layers do not change. Formats with manifests keep the manifest too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.cli import assertions
from tests.images import Layout
from tests.interop.image_contents import Contents, compression_of, in_archive, in_docker_archive, in_layout
from tests.interop.program_image import program_image
from tests.peers import Tools, isolated_tools
from tests.runner import ocistream

NAME: Final = "converted.test/org/app:v1"
#: Each kind as a location of `copy`; a `-` is stdin or stdout.
ENDS: Final = {
    "oci": "oci:{folder}/layout:" + NAME,
    "oci-archive": "oci-archive:{folder}/oci-archive.tar:" + NAME,
    "docker-archive": "docker-archive:{folder}/docker-archive.tar:" + NAME,
    "oci-archive on a pipe": "-",
    "docker-archive on a pipe": "docker-archive:-",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """Return a folder with one image in each kind, as skopeo writes them, and the contents of the image."""
    folder = tmp_path_factory.mktemp("sources")
    made = Layout(folder / "made")
    program_image(made, name="v1")
    (folder / "tools").mkdir()
    with isolated_tools(folder / "tools") as tools:
        for kind, name in (
            ("oci", "layout"),
            ("oci-archive", "oci-archive.tar"),
            ("docker-archive", "docker-archive.tar"),
        ):
            tools.run("skopeo", "copy", f"oci:{made.path}:v1", f"{kind}:{folder / name}:{NAME}")
    return folder, in_layout(made.path)


# tests/cli/test_copy.py and tests/cli/test_docker_archive.py test every pair.
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("oci", "docker-archive on a pipe"),
        ("oci-archive", "docker-archive"),
        ("docker-archive", "oci"),
        ("oci-archive on a pipe", "oci"),
        ("docker-archive on a pipe", "oci-archive"),
        ("docker-archive", "oci-archive on a pipe"),
    ],
)
def test_copy_converts_an_image_of_skopeo_and_skopeo_reads_it(
    source: str, target: str, sources: tuple[Path, Contents], tools: Tools, tmp_path: Path
) -> None:
    folder, made = sources
    convert(source, folder, target, tmp_path)
    found = contents_of(target, tmp_path)
    assert (found.config, found.diff_ids) == (made.config, made.diff_ids)
    if "docker" not in target:
        # Plain layers of a docker-archive are compressed with gzip.
        assert {compression_of(layer) for layer in found.layers} == {"gzip"}
        if "docker" not in source:
            assert found.digest == made.digest
    # In an index made from a docker-archive, skopeo reads the tag as the name; the full name is for containerd.
    kind = target.removesuffix(" on a pipe")
    name = f":{NAME}" if "docker" in target else ":v1" if "docker" in source else ""
    tools.run("skopeo", "copy", f"{kind}:{path_of(target, tmp_path)}{name}", f"oci:{tmp_path / 'back'}:v1")
    assert in_layout(tmp_path / "back").diff_ids == made.diff_ids


def convert(source: str, folder: Path, target: str, into: Path) -> None:
    kind = source.removesuffix(" on a pipe")
    # stdin is the bytes, not the file: ocistream would seek in a file.
    stdin = path_of(source, folder).read_bytes() if source != kind else None
    stdout = path_of(target, into) if target.endswith("pipe") else None
    ends = ENDS[source].format(folder=folder), ENDS[target].format(folder=into)
    assertions.success(ocistream("copy", *ends, stdin=stdin, stdout=stdout))


def path_of(kind: str, folder: Path) -> Path:
    return folder / {"oci": "layout"}.get(kind, f"{kind.removesuffix(' on a pipe')}.tar")


def contents_of(kind: str, folder: Path) -> Contents:
    path = path_of(kind, folder)
    if path.is_dir():
        return in_layout(path)
    return in_docker_archive(path) if kind.startswith("docker") else in_archive(path)
