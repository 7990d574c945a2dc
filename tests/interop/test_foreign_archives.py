"""Archives and layouts that the tools of others wrote, pushed as they are: the manifest's digest does not change."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest

from tests.images import Descriptor, Layout, small_image, tar_layer, two_platforms
from tests.peers import Containerd, Dockerd, DockerRegistry, Tools
from tests.registry_http import assert_no_image, manifest, manifest_digest, seed
from tests.runner import Result, ocistream

How = Literal["a file", "a pipe"]
both_ways = pytest.mark.parametrize("how", ["a file", "a pipe"])


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return small_image(layout, name="v1")


@pytest.fixture
def push(registry: DockerRegistry) -> Callable[..., Result]:
    """Return a function that pushes a path to team/app:v2 of `registry`, and sees that it went well."""

    def pushed(path: Path, how: How = "a file", *options: str) -> Result:
        name = f"{registry.host}/team/app:v2"
        if how == "a pipe":
            # Bytes, not the file itself: what is a file is read as one, by seeking.
            result = ocistream("push", *options, name, stdin=path.read_bytes())
        else:
            result = ocistream("push", *options, name, "-i", path)
        assert result.code == 0, result.err
        return result

    return pushed


def names_in(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return [member.name.removeprefix("./") for member in tar if member.isreg()]


def digest_in(archive: Path) -> str:
    """Return the digest of the one image that an archive's index names, as its writer made it."""
    with tarfile.open(archive) as tar:
        name = next(name for name in tar.getnames() if name.removeprefix("./") == "index.json")
        content = tar.extractfile(name)
        assert content is not None
        (entry,) = json.loads(content.read())["manifests"]
    return str(entry["digest"])


def tar(layout: Layout, archive: Path, names: Sequence[str]) -> Path:
    subprocess.run(["tar", "--create", "--file", archive, "--directory", layout.path, *names], check=True)
    return archive


@both_ways
def test_an_archive_of_skopeos(
    how: How, layout: Layout, push: Callable[..., Result], registry: DockerRegistry, tools: Tools
) -> None:
    image = layout.image([2_000_000, 1_000_000, 500_000], name="v1")
    archive = tools.folder / "skopeo.tar"
    tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"oci-archive:{archive}:any")
    assert names_in(archive)[-2:] == ["index.json", "oci-layout"], "the index does not come last any more"
    push(archive, how)
    assert registry.tags("team/app") == {"v2": image["digest"]}
    assert manifest_digest(registry.host, "team/app", "v2") == image["digest"]


def test_a_directory_of_skopeos(
    image: Descriptor,
    layout: Layout,
    push: Callable[..., Result],
    registry: DockerRegistry,
    tools: Tools,
    tmp_path: Path,
) -> None:
    tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"oci:{tmp_path / 'copied'}:any/name:7")
    push(tmp_path / "copied")
    assert registry.tags("team/app") == {"v2": image["digest"]}


@both_ways
def test_an_index_with_all_its_images_in_an_archive_of_skopeos(
    how: How, layout: Layout, push: Callable[..., Result], registry: DockerRegistry, tools: Tools
) -> None:
    index = two_platforms(layout, name="v1")
    archive = tools.folder / "skopeo.tar"
    tools.run("skopeo", "copy", "--all", f"oci:{layout.path}:v1", f"oci-archive:{archive}:v1")
    push(archive, how)
    assert registry.tags("team/app") == {"v2": index["digest"]}
    children = {child["digest"] for child in layout.read(index["digest"])["manifests"]}
    assert registry.manifests("team/app") == {index["digest"], *children}


@both_ways
@pytest.mark.usefixtures("image")
def test_an_archive_of_podmans(
    how: How, layout: Layout, push: Callable[..., Result], registry: DockerRegistry, tools: Tools
) -> None:
    archive = tools.folder / "podman.tar"
    tools.run("skopeo", "copy", f"oci:{layout.path}:v1", f"oci-archive:{tools.folder / 'in.tar'}:localhost/app:v1")
    tools.run("podman", "load", "--input", tools.folder / "in.tar")
    tools.run("podman", "save", "--format=oci-archive", "--output", archive, "localhost/app:v1")
    push(archive, how)
    assert registry.tags("team/app") == {"v2": digest_in(archive)}


@both_ways
def test_an_archive_of_an_image_that_buildah_built(
    how: How, push: Callable[..., Result], registry: DockerRegistry, tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "words").write_bytes(b"anchor " * 1000)
    container = tools.run("buildah", "from", "scratch").stdout.strip()
    tools.run("buildah", "copy", "--quiet", container, tmp_path / "words", "/opt/words")
    tools.run("buildah", "commit", "--quiet", container, "localhost/built:v1")
    archive = tmp_path / "buildah.tar"
    tools.run("buildah", "push", "--quiet", "localhost/built:v1", f"oci-archive:{archive}:v1")
    push(archive, how)
    assert registry.tags("team/app") == {"v2": digest_in(archive)}


def test_a_layout_that_umoci_changed(
    image: Descriptor, layout: Layout, push: Callable[..., Result], registry: DockerRegistry, tools: Tools
) -> None:
    tools.run("umoci", "config", "--image", f"{layout.path}:v1", "--tag=changed", "--config.cmd=sh")
    push(layout.path, "a file", "--image=changed")
    (digest,) = registry.tags("team/app").values()
    assert digest != image["digest"]
    entries = json.loads((layout.path / "index.json").read_bytes())["manifests"]
    names = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries}
    assert digest == names["changed"]


@pytest.fixture(scope="module")
def exported(containerd_daemon: Containerd, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return what containerd exported of exported.test/org/app:v1, and the digest that it has there."""
    folder = tmp_path_factory.mktemp("exported")
    layout = Layout(folder / "layout")
    image = small_image(layout, name="v1")
    archive = tar(layout, folder / "in.tar", ["."])
    containerd_daemon.ctr("images", "import", "--snapshotter=native", "--base-name=exported.test/org/app", str(archive))
    containerd_daemon.ctr("images", "export", folder / "out.tar", "exported.test/org/app:v1")
    return folder / "out.tar", image["digest"]


@both_ways
def test_an_archive_of_containerds(
    how: How, exported: tuple[Path, str], push: Callable[..., Result], registry: DockerRegistry
) -> None:
    archive, digest = exported
    push(archive, how)
    assert registry.tags("team/app") == {"v2": digest}


def test_an_archive_of_containerds_goes_under_the_full_name_that_it_has(
    exported: tuple[Path, str], registry: DockerRegistry
) -> None:
    archive, digest = exported
    result = ocistream("push", "-i", archive, "--to", f"{registry.host}/mirror")
    assert result.lines() == [f"{registry.host}/mirror/org/app:v1@{digest}"], result.err
    assert registry.tags("mirror/org/app") == {"v1": digest}


@both_ways
@pytest.mark.parametrize(
    "names", [["."], ["oci-layout", "index.json", "blobs"], ["blobs", "index.json", "oci-layout"]], ids=" ".join
)
def test_a_layout_in_a_plain_tar(
    how: How,
    names: Sequence[str],
    image: Descriptor,
    layout: Layout,
    push: Callable[..., Result],
    registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    archive = tar(layout, tmp_path / "layout.tar", names)
    push(archive, how)
    assert registry.tags("team/app") == {"v2": image["digest"]}


@both_ways
@pytest.mark.usefixtures("image")
def test_a_cut_archive_with_its_index_last_leaves_nothing_visible(
    how: How, layout: Layout, registry: DockerRegistry, tmp_path: Path
) -> None:
    archive = tar(layout, tmp_path / "layout.tar", ["blobs", "index.json", "oci-layout"])
    content = archive.read_bytes()
    archive.write_bytes(content[: content.index(b"index.json") + 700])
    result = (
        ocistream("push", f"{registry.host}/team/app:v2", stdin=archive.read_bytes())
        if how == "a pipe"
        else ocistream("push", f"{registry.host}/team/app:v2", "-i", archive)
    )
    assert result.code == 6
    assert "truncated" in result.err
    assert_no_image(registry)


@both_ways
def test_what_older_dockers_save_is_pushed_and_is_the_same_image_when_it_is_pulled_again(
    how: How,
    push: Callable[..., Result],
    layout: Layout,
    registry: DockerRegistry,
    docker_daemon: Dockerd,
    tmp_path: Path,
) -> None:
    name, again = f"{registry.host}/saved:v1", f"{registry.host}/team/app:v2"
    shared = tar_layer({"etc/motd": b"twice\n"})
    seed(layout, layout.image([shared, tar_layer({"bin/a": b"b" * 9000}), shared]), registry.host, "saved", "v1")
    docker_daemon.docker("pull", name)
    docker_daemon.docker("save", "--output", tmp_path / "saved.tar", name)
    with tarfile.open(tmp_path / "saved.tar") as archive:
        assert "manifest.json" in archive.getnames(), "it is not the old kind any more"
        assert "index.json" not in archive.getnames(), "it is not the old kind any more"
        assert any(member.issym() for member in archive), "the layer that stands there twice is no link any more"
    push(tmp_path / "saved.tar", how)
    docker_daemon.docker("pull", again)
    wanted = ("inspect", "--format", "{{.Id}} {{json .RootFS.Layers}} {{json .Config.Cmd}}")
    assert docker_daemon.docker(*wanted, again).stdout == docker_daemon.docker(*wanted, name).stdout
    document = json.loads(manifest(registry.host, "team/app", "v2") or b"")
    assert {layer["mediaType"].rpartition("+")[2] for layer in document["layers"]} == {"gzip"}


def test_what_older_dockers_save_is_the_same_from_a_file_and_from_a_pipe(
    push: Callable[..., Result], layout: Layout, registry: DockerRegistry, docker_daemon: Dockerd, tmp_path: Path
) -> None:
    name = f"{registry.host}/saved:v1"
    seed(layout, small_image(layout), registry.host, "saved", "v1")
    docker_daemon.docker("pull", name)
    docker_daemon.docker("save", "--output", tmp_path / "saved.tar", name)
    lines = {push(tmp_path / "saved.tar", how).lines()[0] for how in ("a file", "a pipe")}
    assert len(lines) == 1
    (digest,) = registry.tags("team/app").values()
    assert lines == {f"{registry.host}/team/app:v2@{digest}"}
