"""docker-archives on the command line: push and copy archives of `docker save`, and write archives for old daemons."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests import schemas
from tests.archives import END, files_in
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Give
from tests.cli.forms import both
from tests.docker_archives import (
    DIALECTS,
    Saved,
    archive_of,
    hex_of,
    images_in,
    listed_in,
    of_docker,
    of_podman,
    plain,
    saved,
)
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms
from tests.registry_http import get, manifest, manifest_digest, seed
from tests.runner import ocistream


@pytest.fixture
def images(layout: Layout) -> list[Saved]:
    """Return two images that share a layer; the first has it twice, and two names."""
    shared = tar_layer({"etc/motd": b"shared\n"})
    first = layout.image([shared, tar_layer({"a": b"first " * 500}), shared])
    second = layout.image([shared, tar_layer({"b": b"second"})], platform="linux/arm64/v8")
    return [saved(layout, first, "app:1", "a.example:5000/team/app:2"), saved(layout, second, "other:latest")]


@pytest.fixture
def one(images: list[Saved]) -> Saved:
    return images[0]


def blob(host: str, repository: str, digest: str) -> bytes:
    """Fetch a blob from a registry, and check it."""
    status, content = get(host, f"/v2/{repository}/blobs/{digest}")
    assert status == 200, (digest, status)
    assert digest_of(content) == digest
    return content


def pushed(host: str, repository: str, tag: str, image: Saved) -> list[str]:
    """Assert that a registry has the image with the layers that its config lists; return the layers' media types."""
    document = json.loads(manifest(host, repository, tag) or b"{}")
    schemas.validate(document, "manifest")
    assert blob(host, repository, document["config"]["digest"]) == image.config
    assert document["config"]["size"] == len(image.config)
    contents = [blob(host, repository, layer["digest"]) for layer in document["layers"]]
    assert [layer["size"] for layer in document["layers"]] == [len(content) for content in contents]
    assert [f"sha256:{hex_of(plain(content))}" for content in contents] == image.diff_ids
    return [layer["mediaType"] for layer in document["layers"]]


# Read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_read_from_a_file_and_from_a_pipe(
    served: FaultyRegistry, images: list[Saved], dialect: str, give: Give
) -> None:
    one = images[0]
    archive = archive_of(DIALECTS[dialect]([one]))
    lines = []
    for how in ("file", "pipe"):
        result = assertions.success(give(archive, how, "push", f"{served.host}/{how}:1"))
        kinds = set(pushed(served.host, how, "1", one))
        assert kinds == {f"application/vnd.oci.image.layer.v1.tar{'+gzip' if dialect != 'stripped-oci' else ''}"}
        lines.append(result.lines()[0].rpartition("@")[2])
    assert set(lines) == {manifest_digest(served.host, how, "1") for how in ("file", "pipe")}
    assert len(set(lines)) == 1
    result = succeed("copy", "docker-archive:-", "docker-archive:-", stdin=archive_of(DIALECTS[dialect](images)))
    assert read_back(result.out) == images


@both
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_the_archive_may_be_compressed(
    served: FaultyRegistry, one: Saved, how: str, pack: Callable[[bytes], bytes], give: Give
) -> None:
    assertions.success(give(archive_of(of_docker([one])), "file", "push", f"{served.host}/plain:1"))
    assertions.success(give(pack(archive_of(of_docker([one]))), how, "push", f"{served.host}/packed:1"))
    assert manifest_digest(served.host, "packed", "1") == manifest_digest(served.host, "plain", "1")


@pytest.mark.parametrize(("compress", "suffix"), [("gzip:9", "+gzip"), ("zstd", "+zstd"), ("none", "")])
def test_layers_are_compressed_as_requested(
    served: FaultyRegistry, one: Saved, compress: str, suffix: str, give: Give
) -> None:
    found = set()
    for how in ("file", "pipe"):
        archive = archive_of(of_docker([one]))
        result = assertions.success(give(archive, how, "push", f"{served.host}/{how}:1", "--compress", compress))
        # The image had no digest before.
        assert "became" not in result.err
        assert set(pushed(served.host, how, "1", one)) == {f"application/vnd.oci.image.layer.v1.tar{suffix}"}
        found.add(manifest_digest(served.host, how, "1"))
    assert len(found) == 1


def test_to_pushes_every_image_from_a_file(served: FaultyRegistry, images: list[Saved], give: Give) -> None:
    result = assertions.success(give(archive_of(of_docker(images)), "file", "push", "--to", f"{served.host}/mirror"))
    places = [
        ("mirror/app", "1", images[0]),
        ("mirror/team/app", "2", images[0]),
        ("mirror/other", "latest", images[1]),
    ]
    for repository, tag, image in places:
        pushed(served.host, repository, tag, image)
    assert [line.partition("@")[0] for line in result.lines()] == [
        f"{served.host}/{name}:{tag}" for name, tag, _ in places
    ]


def test_to_refuses_a_docker_archive_from_a_pipe(served: FaultyRegistry, images: list[Saved], give: Give) -> None:
    result = give(archive_of(of_docker(images)), "pipe", "push", "--to", served.host)
    assertions.failure(result, 8, "save it to a file and push with -i FILE", "nothing was sent")
    assertions.no_image(served)
    assert served.requests == []


@both
def test_one_of_several_images_is_selected_by_name(
    served: FaultyRegistry, images: list[Saved], how: str, give: Give
) -> None:
    archive = archive_of(of_podman(images))
    target = f"{served.host}/app:1"
    assertions.failure(give(archive, how, "push", target), 2, "--image", "docker.io/library/app:1")
    assertions.failure(
        give(archive, how, "push", target, "--image", "nowhere"), 4, "nowhere", "docker.io/library/app:1"
    )
    assertions.no_image(served)
    assertions.success(give(archive, how, "push", target, "--image", "other"))
    pushed(served.host, "app", "1", images[1])


@pytest.mark.parametrize(
    "source", ["given.tar", "docker-archive:given.tar", "oci-archive:given.tar", "docker-archive:-"]
)
def test_a_docker_archive_is_copied_into_a_layout(one: Saved, source: str, tmp_path: Path) -> None:
    (tmp_path / "given.tar").write_bytes(archive_of(of_docker([one])))
    stdin = (tmp_path / "given.tar").read_bytes() if source.endswith("-") else None
    succeed("copy", f"./{source}" if ":" not in source else source, "oci:out", stdin=stdin, cwd=tmp_path)
    schemas.validate_layout(tmp_path / "out")
    assert assertions.names_in(tmp_path / "out") == ["1", "2"]
    found = Layout(tmp_path / "out")
    image = saved(found, assertions.index_of(found.path)[0])
    assert (image.config, image.layers) == (one.config, one.layers)


def test_a_push_needs_no_temporary_space(served: FaultyRegistry, one: Saved, tmp_path: Path) -> None:
    archive = archive_of(of_docker([one]))
    nowhere = str(tmp_path / "nowhere")
    succeed("push", f"{served.host}/app:1", stdin=archive, env={"TMPDIR": nowhere})
    pushed(served.host, "app", "1", one)


# Write -------------------------------------------------------------------------------------------------------


def read_back(content: bytes) -> list[Saved]:
    """Read a docker-archive as other tools do, and check that the name of each file is its digest."""
    files = files_in(content)
    for name, found in files.items():
        assert name == "manifest.json" or name.partition(".")[0] == hex_of(found), name
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert {entry.mtime for entry in archive} == {0}
        assert {entry.mode for entry in archive} == {0o644}
    return images_in(files)


@pytest.fixture
def registry(served: FaultyRegistry, layout: Layout) -> FaultyRegistry:
    """Return a registry with images of every kind of layers and manifests."""
    files = {"a": b"the same in all\n"}
    seed(layout, layout.image([tar_layer(files), tar_layer({"b": b"c" * 9000})]), served.host, "app", "gzip")
    zstd = [tar_layer(files, compression="zstd"), tar_layer({"d": b"e"}, compression="zstd")]
    seed(layout, layout.image(zstd), served.host, "app", "zstd")
    seed(layout, layout.image([tar_layer(files, compression=""), END]), served.host, "app", "plain")
    docker = [tar_layer(files), tar_layer({"f": b"g"})]
    seed(layout, layout.image(docker, media="docker"), served.host, "library/docker", "1")
    seed(layout, two_platforms(layout), served.host, "app", "index")
    seed(layout, layout.artifact(b"no image"), served.host, "app", "artifact")
    return served


KINDS = [("app", "gzip"), ("app", "zstd"), ("app", "plain"), ("library/docker", "1")]


def as_saved(registry: FaultyRegistry, repository: str, tag: str, name: str | None = None) -> Saved:
    """Return an image of the registry as a docker-archive must contain it."""
    document = json.loads(manifest(registry.host, repository, tag) or b"")
    layers = tuple(plain(blob(registry.host, repository, layer["digest"])) for layer in document["layers"])
    config = blob(registry.host, repository, document["config"]["digest"])
    return Saved(config, layers, (name or f"{registry.host}/{repository}:{tag}",))


def test_pull_writes_the_same_to_a_file_and_to_a_pipe(registry: FaultyRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/app:gzip"
    succeed("pull", "--format", "docker-archive", name, "-o", tmp_path / "out.tar")
    content = (tmp_path / "out.tar").read_bytes()
    assert read_back(content) == [as_saved(registry, "app", "gzip")]
    result = succeed("pull", "--format", "docker-archive", name)
    assert result.out == content
    assertions.nothing_left(tmp_path, "made", "out.tar", "served-0")


def test_shared_layers_are_stored_once(registry: FaultyRegistry, tmp_path: Path) -> None:
    names = [f"{registry.host}/{repository}:{tag}" for repository, tag in KINDS]
    succeed("pull", "--format", "docker-archive", *names, names[0], "-o", tmp_path / "out.tar")
    content = (tmp_path / "out.tar").read_bytes()
    expected = [as_saved(registry, repository, tag) for repository, tag in KINDS]
    assert read_back(content) == expected
    different = {part for image in expected for part in (image.config, *image.layers)}
    assert len(files_in(content)) == len(different) + 1
    assert len(different) < sum(len(image.layers) + 1 for image in expected)


@pytest.mark.parametrize(
    ("name", "tag"),
    [("nginx", "nginx:latest"), ("docker.io/library/nginx:1", "nginx:1"), ("a.example:5000/b/c:d", None)],
)
def test_copy_names_the_image_as_docker_shows_it(layout: Layout, name: str, tag: str | None, tmp_path: Path) -> None:
    small_image(layout, name="v1")
    succeed("copy", layout.path, f"docker-archive:out.tar:{name}", cwd=tmp_path)
    (image,) = read_back((tmp_path / "out.tar").read_bytes())
    assert image.tags == (tag or name,)


def test_the_printed_digest_is_that_in_the_registry_and_the_image_id_that_in_the_archive(
    registry: FaultyRegistry, tmp_path: Path
) -> None:
    repository, tag = "app", "gzip"
    place, archive, path = f"{registry.host}/{repository}", tmp_path / "out.tar", tmp_path / "result.json"
    digest = manifest_digest(registry.host, repository, tag)
    image_id = json.loads(manifest(registry.host, repository, tag) or b"")["config"]["digest"]
    pull = ["pull", "--format=docker-archive", f"{place}:{tag}", "--result", str(path)]
    for argv, line, name in (
        ([*pull, "-o", str(archive)], f"{place}:{tag}", f"{place}:{tag}"),
        (pull, None, f"{place}:{tag}"),
        # Under its new name the image has no digest.
        (["copy", *pull[2:], f"docker-archive:{archive}:other:1"], place, "docker.io/library/other:1"),
    ):
        result = succeed(*argv)
        if line is not None:
            assert result.lines() == [f"{line}@{digest}"]
        assert f"ocistream: {name}: image ID {image_id}\n" in result.err
        document = json.loads(path.read_text())
        schemas.validate_ours(document, "result")
        (found,) = document["images"]
        assert (found["digest"], found["imageId"], "from" in found) == (digest, image_id, False)
        assert found["name"] == (line or name)
        assert document["manifests"] == []
    (listed,) = listed_in(files_in(archive.read_bytes()))
    assert listed["Config"] == f"{image_id.partition(':')[2]}.json"


@both
def test_verify_and_inspect_show_the_image_id_that_docker_shows(images: list[Saved], tmp_path: Path, how: str) -> None:
    (tmp_path / "saved.tar").write_bytes(archive_of(of_docker(images)))
    given: dict[str, Any] = {"stdin": tmp_path / "saved.tar"} if how == "pipe" else {}
    path = "-" if how == "pipe" else tmp_path / "saved.tar"
    ids = [f"sha256:{hex_of(image.config)}" for image in images]
    names = ["docker.io/library/app:1", "a.example:5000/team/app:2", "docker.io/library/other:latest"]
    expected = list(zip(names, [ids[0], *ids], strict=True))
    verified = succeed("verify", path, **given)
    assert verified.lines()[:3] == [f"{name} image ID {image_id}" for name, image_id in expected]
    # Two configs and three layers, and no manifest.
    assert "2 blobs" not in verified.lines()[3]
    assert ", 5 blobs, " in verified.lines()[3]
    found = json.loads(ocistream("verify", path, "--json", **given).out)["images"]
    assert found == [{"name": name, "imageId": image_id} for name, image_id in expected]
    found = json.loads(ocistream("inspect", path, "--json", **given).out)["images"]
    assert [(image["name"], image["imageId"], "digest" in image) for image in found] == [
        (name, image_id, False) for name, image_id in expected
    ]
    shown = ocistream("inspect", path, **given)
    assert f"  image ID {ids[1]}" in shown.lines()
    # The archive has no index.json, and so no annotations.
    assert not any("indexAnnotations" in image for image in found)
    assert "org.opencontainers.image.ref.name" not in shown.out.decode()


def test_a_copy_between_docker_archives_prints_no_digest(images: list[Saved], tmp_path: Path) -> None:
    source, path = tmp_path / "saved.tar", tmp_path / "result.json"
    source.write_bytes(archive_of(of_docker(images[1:])))
    result = succeed("copy", source, f"docker-archive:{tmp_path}/out.tar:new:1", "--result", path)
    image_id = f"sha256:{hex_of(images[1].config)}"
    assert result.lines() == [f"docker.io/library/new:1 image ID {image_id}"]
    assert image_id not in result.err
    document = json.loads(path.read_text())
    schemas.validate_ours(document, "result")
    assert (document["images"][0]["imageId"], "digest" in document["images"][0]) == (image_id, False)


def test_an_image_without_a_name_for_docker_is_reported(layout: Layout, tmp_path: Path) -> None:
    image = small_image(layout, name="v1")
    other = layout.image([tar_layer({"x": b"y"})])
    layout.name(other, "app:1", "app")
    end = f"docker-archive:{tmp_path / 'out.tar'}"
    for argv, nameless in (
        (["copy", f"oci:{layout.path}:v1", end], "v1"),
        (["copy", f"oci:{layout.path}:{image['digest']}", end], "v1"),
        (["copy", f"oci:{layout.path}:v1", f"{end}:app:1"], None),
        # The image has a name for Docker too, but another one was selected.
        (["copy", f"oci:{layout.path}:app", end], "app"),
        (["copy", f"oci:{layout.path}:app:1", end], None),
    ):
        result = succeed(*argv)
        said = [line for line in result.err.splitlines() if "docker-archive:FILE:NAME" in line]
        assert len(said) == (nameless is not None), (argv, result.err)
        assert not said or f"{nameless} is not a name for Docker" in said[0]
        (listed,) = listed_in(files_in((tmp_path / "out.tar").read_bytes()))
        assert (listed["RepoTags"] is None) == (nameless is not None)


@pytest.mark.parametrize("name", ["Upper", "app@sha256:" + "0" * 64, "app:1@sha256:" + "0" * 64])
def test_a_name_that_docker_does_not_take_is_refused(served: FaultyRegistry, name: str, tmp_path: Path) -> None:
    result = ocistream("copy", f"{served.host}/app:gzip", f"docker-archive:out.tar:{name}", cwd=tmp_path)
    assertions.failure(result, 2, name)
    assert served.requests == []


def test_layers_of_a_docker_archive_are_uncompressed(registry: FaultyRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/app:gzip"
    for compress in ("gzip", "zstd:3"):
        registry.requests.clear()
        result = ocistream("copy", name, "docker-archive:out.tar", "--compress", compress, cwd=tmp_path)
        assertions.failure(result, 2, "layers of a docker-archive cannot be compressed", "--compress")
        result = ocistream(
            "pull", name, "--format=docker-archive", "-o", "out.tar", "--compress", compress, cwd=tmp_path
        )
        assertions.failure(result, 2, "layers of a docker-archive cannot be compressed", "--compress")
        assert registry.requests == []
    succeed("copy", name, "docker-archive:out.tar", "--compress", "none", cwd=tmp_path)
    assert read_back((tmp_path / "out.tar").read_bytes()) == [as_saved(registry, "app", "gzip")]


def test_an_index_is_refused_and_one_of_its_images_is_written(
    registry: FaultyRegistry, layout: Layout, folder: Path
) -> None:
    name = f"{registry.host}/app:index"
    pull = ["pull", name, "--format=docker-archive", "-o", str(folder / "out.tar")]
    for argv in (
        ["copy", name, f"docker-archive:{folder}/out.tar", "--platform=all"],
        [*pull, "--platform=all"],
        [*pull, "--platform=linux/amd64", "--platform=linux/arm64"],
    ):
        assertions.failure(ocistream(*argv), 8, "index", "--platform")
        assertions.nothing_left(folder)
    succeed("copy", name, f"docker-archive:{folder}/out.tar", "--platform", "linux/arm64")
    arm = json.loads(manifest(registry.host, "app", "index") or b"")["manifests"][1]
    assert read_back((folder / "out.tar").read_bytes()) == [saved(layout, arm, name)]


def test_copy_selects_the_platform_of_this_machine_as_pull_does(
    registry: FaultyRegistry, layout: Layout, folder: Path
) -> None:
    name = f"{registry.host}/app:index"
    copied = ocistream("copy", name, f"docker-archive:{folder}/copied.tar")
    pulled = ocistream("pull", name, "--format=docker-archive", "-o", folder / "pulled.tar")
    assert copied.code == pulled.code == 0, copied.err
    assert (folder / "copied.tar").read_bytes() == (folder / "pulled.tar").read_bytes()
    layout.index([small_image(layout, platform="plan9/mips")], name="other")
    assertions.failure(ocistream("copy", f"oci:{layout.path}:other", f"docker-archive:{folder}/x"), 4, "plan9/mips")
    assert not (folder / "x").exists()


def test_a_config_with_other_layers_leaves_no_file(layout: Layout, folder: Path) -> None:
    image = small_image(layout)
    document = layout.read(image["digest"])
    config = layout.read(document["config"]["digest"])
    config["rootfs"]["diff_ids"].reverse()
    changed = layout.blob(json.dumps(config).encode(), document["config"]["mediaType"])
    layout.document({**document, "config": changed}, name="v1")
    result = ocistream("copy", f"oci:{layout.path}:v1", f"docker-archive:{folder}/out.tar")
    assertions.failure(result, 5, "the config of its image says")
    assertions.nothing_left(folder)


@both
def test_the_printed_digest_of_an_image_without_a_tag_exists(
    images: list[Saved], how: str, served: FaultyRegistry, tmp_path: Path
) -> None:
    archive = archive_of(of_docker([images[0], dataclasses.replace(images[1], tags=())]))
    (tmp_path / "two.tar").write_bytes(archive)
    source, stdin = (tmp_path / "two.tar", None) if how == "file" else ("docker-archive:-", archive)
    result = succeed("copy", "--tags", "*", source, f"{served.host}/app", stdin=stdin)
    assert len(result.lines()) == 2
    (skipped,) = [line for line in result.err.splitlines() if "is skipped: it has no tag, and --tags copies" in line]
    digest = next(word for word in skipped.split() if word.startswith("sha256:"))
    assertions.failure(ocistream("copy", "--all-tags", source, f"{served.host}/app", stdin=stdin), 2, digest)
    copied = ocistream("copy", f"docker-archive:{tmp_path}/two.tar:{digest}", f"{served.host}/app:3", "--compress=none")
    assert copied.lines() == [f"{served.host}/app:3@{digest}"]
