"""`ocistream copy` as a converter, without a registry: between every two kinds, stdin and stdout among them.

The config and the layers stay what they are, and among the kinds that have manifests these do too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.images import Layout, digest_of
from tests.interop.image_contents import Contents, compression_of, in_archive, in_docker_archive, in_layout
from tests.interop.program_image import program_image
from tests.peers import Tools, isolated_tools
from tests.runner import ocistream

NAME: Final = "converted.test/org/app:v1"
#: How each kind is written as an end; those with a - are stdin or stdout.
ENDS: Final = {
    "oci": "oci:{folder}/layout:" + NAME,
    "oci-archive": "oci-archive:{folder}/oci-archive.tar:" + NAME,
    "docker-archive": "docker-archive:{folder}/docker-archive.tar:" + NAME,
    "oci-archive on a pipe": "-",
    "docker-archive on a pipe": "docker-archive:-",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """Return a folder with one image in each kind, as skopeo writes them, and what it consists of."""
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


@pytest.mark.parametrize("target", ENDS)
@pytest.mark.parametrize("source", ENDS)
def test_any_kind_becomes_any_other(source: str, target: str, sources: tuple[Path, Contents], tmp_path: Path) -> None:
    folder, made = sources
    convert(source, folder, target, tmp_path)
    found = contents_of(target, tmp_path)
    assert (found.config, found.diff_ids) == (made.config, made.diff_ids)
    if "docker" not in target:
        # Plain layers of a docker-archive become gzip.
        assert {compression_of(layer) for layer in found.layers} == {"gzip"}
        if "docker" not in source:
            assert found.digest == made.digest


def test_there_and_back_again_is_the_same_archive(sources: tuple[Path, Contents], tmp_path: Path) -> None:
    folder, _ = sources
    steps = ["docker-archive", "oci", "docker-archive", "oci-archive", "docker-archive on a pipe"]
    before, source = folder, steps[0]
    written = []
    for number, target in enumerate(steps):
        after = tmp_path / str(number)
        after.mkdir()
        convert(source, before, target, after)
        if target.startswith("docker-archive"):
            written.append(digest_of(path_of(target, after).read_bytes()))
        before, source = after, target
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("target", ["oci-archive", "docker-archive", "oci"])
def test_skopeo_takes_each_of_them_by_its_name(
    target: str, sources: tuple[Path, Contents], tools: Tools, tmp_path: Path
) -> None:
    folder, made = sources
    convert("docker-archive on a pipe", folder, target, tmp_path)
    # In an index the tag is the name that counts for it, the full one is containerd's.
    name = NAME if target == "docker-archive" else "v1"
    tools.run("skopeo", "copy", f"{target}:{path_of(target, tmp_path)}:{name}", f"oci:{tmp_path / 'back'}:v1")
    assert in_layout(tmp_path / "back").diff_ids == made.diff_ids


def convert(source: str, folder: Path, target: str, into: Path) -> None:
    kind = source.removesuffix(" on a pipe")
    # Bytes, not the file itself: what is a file is read as one, by seeking.
    stdin = path_of(source, folder).read_bytes() if source != kind else None
    stdout = path_of(target, into) if target.endswith("pipe") else None
    ends = ENDS[source].format(folder=folder), ENDS[target].format(folder=into)
    result = ocistream("copy", *ends, stdin=stdin, stdout=stdout)
    assert result.code == 0, result.err


def path_of(kind: str, folder: Path) -> Path:
    return folder / {"oci": "layout"}.get(kind, f"{kind.removesuffix(' on a pipe')}.tar")


def contents_of(kind: str, folder: Path) -> Contents:
    path = path_of(kind, folder)
    if path.is_dir():
        return in_layout(path)
    return in_docker_archive(path) if kind.startswith("docker") else in_archive(path)
