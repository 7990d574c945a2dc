"""Push archives that other tools wrote, from a file and from a pipe, plain and compressed.

The registry then has the layers of the image, and a manifest of the archive keeps its digest.
"""

from __future__ import annotations

import gzip
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
import zstandard

from tests.cli import assertions
from tests.hostile.corpus import CORPUS
from tests.images import Layout, tar_layer, two_platforms
from tests.interop.foreign_writers import APP, DOCKER_WRITERS, OCI_WRITERS, WEB, WRITERS_OF_BOTH, Bench, written
from tests.interop.image_contents import (
    compression_of,
    entries_of,
    in_archive,
    in_docker_archive,
    in_layout,
    in_registry,
)
from tests.peers import Dockerd, DockerRegistry, Tools, docker_registry
from tests.registry_http import seed
from tests.runner import ocistream

WRAPPINGS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "in gzip": lambda archive: gzip.compress(archive, compresslevel=1),
    "in zstd": zstandard.compress,
}


@pytest.fixture(scope="module")
def shared_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Return a docker-registry for all tests of this module; each test uses its own repositories."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def pushed_both_ways(archive: Path, name: str, *options: str) -> None:
    """Push an archive to NAME:file from a file, and to NAME:pipe from a pipe."""
    # stdin is the bytes, not the file: ocistream would seek in a file.
    for result in (
        ocistream("push", *options, f"{name}:file", "-i", archive),
        ocistream("push", *options, f"{name}:pipe", stdin=archive.read_bytes()),
    ):
        assert result.code == 0, result.err


# -- one image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", OCI_WRITERS)
def test_an_oci_archive_keeps_its_manifest(
    writer: str, bench: Bench, shared_registry: DockerRegistry, tmp_path: Path
) -> None:
    archive = written(bench, writer)
    pushed_both_ways(archive, f"{shared_registry.host}/{tmp_path.name}")
    (entry,) = entries_of(archive)
    assert shared_registry.tags(tmp_path.name) == {"file": entry["digest"], "pipe": entry["digest"]}
    pushed = in_registry(shared_registry, tmp_path.name, "pipe")
    assert pushed == in_archive(archive)
    assert pushed.diff_ids == in_layout(bench.app[0].path).diff_ids


@pytest.fixture(scope="module")
def of_docker_archives() -> dict[str, str]:
    """Return a place for the digest of the first docker-archive."""
    return {}


@pytest.mark.parametrize("writer", DOCKER_WRITERS)
def test_docker_archives_of_all_writers_become_the_same_image(
    writer: str, of_docker_archives: dict[str, str], bench: Bench, shared_registry: DockerRegistry, tmp_path: Path
) -> None:
    archive = written(bench, writer)
    pushed_both_ways(archive, f"{shared_registry.host}/{tmp_path.name}")
    tags = shared_registry.tags(tmp_path.name)
    assert tags["file"] == tags["pipe"] == of_docker_archives.setdefault("digest", tags["file"])
    pushed, made = in_registry(shared_registry, tmp_path.name, "pipe"), in_layout(bench.app[0].path)
    assert (pushed.config, pushed.diff_ids) == (made.config, made.diff_ids)
    assert in_docker_archive(archive).diff_ids == made.diff_ids
    assert {compression_of(layer) for layer in pushed.layers} == {"gzip"}


# The tests above push each writer's plain archive. Decompression does not depend on the writer.
@pytest.mark.parametrize(
    ("writer", "wrapping"),
    [
        ("skopeo-oci", "in gzip"),
        ("docker-save", "in zstd"),
        *(
            pytest.param(writer, wrapping, marks=pytest.mark.nightly)
            for writer, wrapping in zip([*OCI_WRITERS, *DOCKER_WRITERS], itertools.cycle(WRAPPINGS), strict=False)
        ),
    ],
)
def test_a_compressed_archive_is_pushed(
    writer: str, wrapping: str, bench: Bench, shared_registry: DockerRegistry, tmp_path: Path
) -> None:
    archive = written(bench, writer)
    result = ocistream(
        "push", f"{shared_registry.host}/{tmp_path.name}:pipe", stdin=WRAPPINGS[wrapping](archive.read_bytes())
    )
    assert result.code == 0, result.err
    pushed, made = in_registry(shared_registry, tmp_path.name, "pipe"), in_layout(bench.app[0].path)
    assert pushed.diff_ids == made.diff_ids
    if writer in OCI_WRITERS:
        assert pushed == in_archive(archive)


def test_a_layout_of_skopeo_keeps_its_manifest(bench: Bench, shared_registry: DockerRegistry, tmp_path: Path) -> None:
    assertions.success(ocistream("push", f"{shared_registry.host}/{tmp_path.name}:v1", "-i", bench.copied))
    pushed = in_registry(shared_registry, tmp_path.name, "v1")
    assert pushed == in_layout(bench.copied)
    assert pushed.diff_ids == in_layout(bench.app[0].path).diff_ids


def test_an_index_in_an_archive_of_skopeo_keeps_all_its_images(
    layout: Layout, shared_registry: DockerRegistry, tools: Tools, tmp_path: Path
) -> None:
    index = two_platforms(layout, name="v1")
    tools.run("skopeo", "copy", "--all", f"oci:{layout.path}:v1", f"oci-archive:{tmp_path / 'skopeo.tar'}:v1")
    pushed_both_ways(tmp_path / "skopeo.tar", f"{shared_registry.host}/{tmp_path.name}")
    assert shared_registry.tags(tmp_path.name) == {"file": index["digest"], "pipe": index["digest"]}
    children = {child["digest"] for child in layout.read(index["digest"])["manifests"]}
    assert shared_registry.manifests(tmp_path.name) == {index["digest"], *children}


def test_an_image_that_buildah_built_keeps_its_manifest(
    shared_registry: DockerRegistry, tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "words").write_bytes(b"anchor " * 1000)
    container = tools.run("buildah", "from", "scratch").stdout.strip()
    tools.run("buildah", "copy", "--quiet", container, tmp_path / "words", "/opt/words")
    tools.run("buildah", "commit", "--quiet", container, "localhost/built:v1")
    archive = tmp_path / "buildah.tar"
    tools.run("buildah", "push", "--quiet", "localhost/built:v1", f"oci-archive:{archive}:v1")
    pushed_both_ways(archive, f"{shared_registry.host}/{tmp_path.name}")
    (entry,) = entries_of(archive)
    assert shared_registry.tags(tmp_path.name) == {"file": entry["digest"], "pipe": entry["digest"]}


def test_docker_pulls_back_the_same_image_that_it_saved(
    layout: Layout, shared_registry: DockerRegistry, docker_daemon: Dockerd, tmp_path: Path
) -> None:
    name, again = f"{shared_registry.host}/{tmp_path.name}:saved", f"{shared_registry.host}/{tmp_path.name}:pipe"
    shared = tar_layer({"etc/motd": b"twice\n"})
    image = layout.image([shared, tar_layer({"bin/a": b"b" * 9000}), shared])
    seed(layout, image, shared_registry.host, tmp_path.name, "saved")
    docker_daemon.docker("pull", name)
    docker_daemon.docker("save", "--output", tmp_path / "saved.tar", name)
    with tarfile.open(tmp_path / "saved.tar") as archive:
        assert "manifest.json" in archive.getnames(), "`docker save` no longer writes the old format"
        assert "index.json" not in archive.getnames(), "`docker save` no longer writes the old format"
        assert any(member.issym() for member in archive), "`docker save` no longer writes a link for a repeated layer"
    pushed_both_ways(tmp_path / "saved.tar", f"{shared_registry.host}/{tmp_path.name}")
    docker_daemon.docker("pull", again)
    wanted = ("inspect", "--format", "{{.Id}} {{json .RootFS.Layers}} {{json .Config.Cmd}}")
    assert docker_daemon.docker(*wanted, again).stdout == docker_daemon.docker(*wanted, name).stdout


# -- several images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("writer", "wanted"), list(zip(WRITERS_OF_BOTH, itertools.cycle([APP, WEB]), strict=False)))
def test_image_selects_one_of_several_images_by_its_name(
    writer: str, wanted: str, bench: Bench, shared_registry: DockerRegistry, tmp_path: Path
) -> None:
    name = f"{shared_registry.host}/{tmp_path.name}:pipe"
    assertions.success(ocistream("push", f"--image={wanted}", name, stdin=written(bench, writer).read_bytes()))
    made = in_layout((bench.app if wanted == APP else bench.web)[0].path)
    pushed = in_registry(shared_registry, tmp_path.name, "pipe")
    assert (pushed.config, pushed.diff_ids) == (made.config, made.diff_ids)


@pytest.mark.parametrize("writer", WRITERS_OF_BOTH)
def test_several_images_are_pushed_under_their_full_names(writer: str, bench: Bench, registry: DockerRegistry) -> None:
    result = assertions.success(ocistream("push", "-i", written(bench, writer), "--to", f"{registry.host}/mirror"))
    for (layout, _), name in ((bench.app, "org/app:v1"), (bench.web, "org/web:v2")):
        repository, _, tag = f"mirror/{name}".partition(":")
        (digest,) = registry.tags(repository).values()
        assert f"{registry.host}/mirror/{name}@{digest}" in result.lines()
        pushed, made = in_registry(registry, repository, tag), in_layout(layout.path)
        assert (pushed.config, pushed.diff_ids) == (made.config, made.diff_ids)
    assert len(result.lines()) == 2
    assert registry.repositories() == ["mirror/org/app", "mirror/org/web"]


# -- archives that tools read differently -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["docker-and-index-same-name", "docker-and-index-other-name"])
def test_an_archive_that_skopeo_reads_as_two_different_images_is_refused(
    name: str, tools: Tools, tmp_path: Path
) -> None:
    archive = tmp_path / "given.tar"
    archive.write_bytes(CORPUS[name].make())
    configs = [
        json.loads(tools.run("skopeo", "inspect", "--config", f"{transport}:{archive}").stdout)
        for transport in ("oci-archive", "docker-archive")
    ]
    assert [config.get("author") for config in configs] == [None, "Mallory"]
    for result in (ocistream("verify", archive), ocistream("verify", stdin=archive.read_bytes())):
        assert (result.code, result.out) == (6, b"")
