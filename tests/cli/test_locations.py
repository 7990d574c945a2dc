"""Every form of a location."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archives import small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.serving import serving
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout, digest_of, small_image, two_platforms
from tests.registry_http import manifest, manifest_digest, seed
from tests.runner import Argument, Result, ocistream

Copy = Callable[..., Result]

FULL_NAME = "io.containerd.image.name"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Return a function that runs `copy` in the folder of the layout `made`."""

    def run(*argv: Argument, stdin: bytes | None = None) -> Result:
        return succeed("copy", *argv, stdin=stdin, cwd=tmp_path, env={"HOME": str(tmp_path / "home")})

    return run


# Paths -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("image")
def test_a_name_that_ends_in_a_slash_is_a_layout(copy: Copy, tmp_path: Path) -> None:
    copy("./made", "new/")
    assert (tmp_path / "new/index.json").exists()
    copy("new/", "app.tar")
    succeed("verify", tmp_path / "app.tar")


@pytest.mark.usefixtures("image")
def test_an_archive_named_like_a_compressed_file_is_an_uncompressed_tar_and_this_is_reported(
    copy: Copy, tmp_path: Path
) -> None:
    for name, path in (("app.tar.gz", "app.tar.gz"), ("oci-archive:new.TGZ:app", "new.TGZ")):
        notice = f"{name} is written as an uncompressed tar: only its layers are compressed"
        assert notice in copy("./made", name).err
        assert next(assertions.entries(tmp_path / path))[0] == "oci-layout"
    assert "uncompressed" not in copy("./made", "app.tar").err


@pytest.mark.usefixtures("image")
def test_a_path_to_an_archive_with_a_tag_is_refused(tmp_path: Path) -> None:
    for path in ("./new.tar:1", f"{tmp_path}/new.tar:1"):
        refused = ocistream("copy", "./made", path, cwd=tmp_path)
        assertions.failure(refused, 2, f"ambiguous location '{path}'", f"write oci-archive:{path}")
    assert not list(tmp_path.glob("new*"))
    succeed("copy", "./made", "./old.tar", cwd=tmp_path)
    (tmp_path / "old.tar").rename(tmp_path / "old.tar:1")
    succeed("copy", "./old.tar:1", "./x.tar", cwd=tmp_path)


# Registries --------------------------------------------------------------------------------------------------


def test_a_name_may_have_the_prefix_docker_and_a_tag_and_a_digest(
    served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    seed(layout, image, served.host, "some/app", "latest")
    digest = image["digest"]
    for name in ("some/app", f"some/app@{digest}", f"some/app:latest@{digest}"):
        result = succeed("pull", f"docker://{served.host}/{name}", "-o", tmp_path / "app.tar")
        assert result.out.endswith(f"@{digest}\n".encode())


def test_a_digest_overrides_the_tag(served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path) -> None:
    seed(layout, image, served.host, "app", "1")
    other = seed(layout, two_platforms(layout), served.host, "app", "1")
    served.requests.clear()
    name = f"{served.host}/app:1@{image['digest']}"
    succeed("pull", name, "-o", tmp_path / "app.tar")
    assert assertions.index_of(tmp_path / "app.tar")[0]["digest"] == image["digest"] != other
    assert served.asked("GET", "/manifests/1$") == []


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("nginx", "https://registry-1.docker.io/v2/library/nginx/manifests/latest"),
        ("index.docker.io/org/app", "https://registry-1.docker.io/v2/org/app/manifests/latest"),
        ("docker://nginx", "https://registry-1.docker.io/v2/library/nginx/manifests/latest"),
        ("a.example:8443/x/y/z", "https://a.example:8443/v2/x/y/z/manifests/latest"),
        ("[fd00::1]:5000/x", "https://[fd00::1]:5000/v2/x/manifests/latest"),
    ],
)
def test_short_names_expand_as_with_docker_and_use_https(name: str, url: str, tmp_path: Path) -> None:
    # The proxy does not exist, so no request leaves this machine; the error shows the URL.
    env = {"HTTPS_PROXY": "http://127.0.0.1:1"}
    assertions.failure(ocistream("pull", name, "-o", tmp_path / "x.tar", "--retries=0", env=env), 7, f"GET {url}: ")


# Layouts and archives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["oci:made", "oci:made:app", "./made", "made/../made/", "oci:./made"])
def test_a_layout_is_read(copy: Copy, tmp_path: Path, image: Descriptor, source: str) -> None:
    if source.startswith("made"):
        source = str(tmp_path / source)
    copy(source, "oci:copied:renamed")
    assert assertions.names_in(tmp_path / "copied") == ["renamed"]
    assert assertions.index_of(tmp_path / "copied")[0]["digest"] == image["digest"]


@pytest.mark.parametrize("target", ["oci-archive:x.tar", "./x.tar", "../PARENT/x.tar", "ABSOLUTE/x.tar"])
def test_an_archive_is_written_and_read(copy: Copy, tmp_path: Path, image: Descriptor, target: str) -> None:
    written = target.replace("PARENT", tmp_path.name).replace("ABSOLUTE", str(tmp_path))
    copy("oci:made", written)
    copy(written, "oci:back")
    for name in ("x.tar", "back"):
        assert assertions.index_of(tmp_path / name)[0]["digest"] == image["digest"]


def test_a_name_in_an_archive_is_written_and_selected(copy: Copy, tmp_path: Path, image: Descriptor) -> None:
    del image
    copy("oci:made", "oci-archive:x.tar:a.example/app:2")
    (entry,) = assertions.index_of(tmp_path / "x.tar")
    assert entry["annotations"][FULL_NAME] == "a.example/app:2"
    assert assertions.names_in(tmp_path / "x.tar") == ["2"]
    docker = json.loads(dict(assertions.entries(tmp_path / "x.tar"))["manifest.json"])
    assert docker[0]["RepoTags"] == ["a.example/app:2"]
    for name in ("a.example/app:2", "2"):
        copy(f"oci-archive:x.tar:{name}", "./y.tar")


@pytest.mark.parametrize(
    ("stdin", "stdout"),
    [("-", "oci-archive:-"), ("oci-archive:-", "-"), ("oci-archive:-:app", "oci-archive:-:new"), ("/dev/stdin", "-")],
)
def test_stdin_and_stdout_are_archives(
    copy: Copy, layout: Layout, tmp_path: Path, image: Descriptor, stdin: str, stdout: str
) -> None:
    result = copy(stdin, stdout, stdin=tar_of(small_first(layout)))
    (tmp_path / "y.tar").write_bytes(result.out)
    assert assertions.index_of(tmp_path / "y.tar")[0]["digest"] == image["digest"]
    assert assertions.names_in(tmp_path / "y.tar") == ["new" if stdout.endswith("new") else "app"]


def test_a_file_or_a_directory_may_be_named_dash(copy: Copy, tmp_path: Path) -> None:
    small_image(Layout(tmp_path / "made"), name="app")
    assert copy("oci:made", "./-").lines() != []
    assert (tmp_path / "-").is_file()
    copy("./-", "./copied.tar")
    (tmp_path / "-").unlink()
    assert copy("oci:made", "oci:-").lines() != []
    assert (tmp_path / "-" / "index.json").is_file()
    # A dash alone is still stdout.
    assert copy("oci:made", "-").out.startswith(b"oci-layout")


def test_a_tilde_is_the_home_directory(copy: Copy, tmp_path: Path, image: Descriptor) -> None:
    (tmp_path / "home").mkdir()
    copy("oci:made", "~/x.tar")
    copy("~/x.tar", "oci:~/layout")
    for name in ("x.tar", "layout"):
        assert assertions.index_of(tmp_path / "home" / name)[0]["digest"] == image["digest"]


def test_a_windows_path_is_a_path(copy: Copy, tmp_path: Path, image: Descriptor) -> None:
    copy("oci:made", "C:\\x.tar")
    assert assertions.index_of(tmp_path / "C:\\x.tar")[0]["digest"] == image["digest"]


def test_output_and_input_are_paths_even_if_they_look_like_images(
    served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    seed(layout, image, served.host, "app", "1")
    for name in ("nginx:1", "a.example/nginx"):
        (tmp_path / "a.example").mkdir(exist_ok=True)
        succeed("pull", f"{served.host}/app:1", "-o", name, cwd=tmp_path)
        assert (tmp_path / name).is_file()
        succeed("push", f"{served.host}/new:1", "-i", name, cwd=tmp_path)


def test_output_and_input_accept_transport_prefixes(
    served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    seed(layout, image, served.host, "app", "1")
    for end in ("oci:layout:mine", "oci-archive:x.tar:mine"):
        result = ocistream("pull", f"{served.host}/app:1", "-o", end, cwd=tmp_path)
        assert result.lines() == [f"mine@{image['digest']}"]
        succeed("push", f"{served.host}/{end[:3]}:1", "-i", end, cwd=tmp_path)
    assert assertions.names_in(tmp_path / "layout") == assertions.names_in(tmp_path / "x.tar") == ["mine"]
    assert manifest_digest(served.host, "oci", "1") == image["digest"]


@pytest.mark.parametrize(
    "location", ["oci:made", "oci:./made", "made", "oci-archive:app.tar", "./app.tar", "docker-archive:app.tar"]
)
def test_serve_accepts_every_form_of_a_layout_or_an_archive(
    copy: Copy, layout: Layout, tmp_path: Path, location: str
) -> None:
    index = two_platforms(layout, name="127.0.0.1/app:1")
    copy("oci:made", "./app.tar")
    before = sorted(tmp_path.rglob("*"))
    with serving(location, "--read-only", cwd=tmp_path) as (_, host):
        served = manifest(host, "app", "1")
    # The manifest.json of an archive lists one image for each index.
    children = [index, *layout.read(index["digest"])["manifests"]]
    assert served is not None
    assert digest_of(served) == children[location.startswith("docker-archive:")]["digest"]
    assert sorted(tmp_path.rglob("*")) == before


def test_serve_creates_the_layout_directory_that_a_prefix_names(tmp_path: Path) -> None:
    with serving("oci:new.tar", cwd=tmp_path) as (_, host):
        assert host.startswith("127.0.0.1:")
    assertions.nothing_left(tmp_path, "new.tar")
    assert (tmp_path / "new.tar" / "index.json").is_file()


@pytest.mark.parametrize("location", ["oci:made", "oci:./made", "made", "~/../made"])
def test_rm_and_gc_accept_every_form_of_a_layout(tmp_path: Path, image: Descriptor, location: str) -> None:
    (tmp_path / "home").mkdir()
    for argv in (["rm", location, "app"], ["gc", location, "--older-than=0"]):
        succeed(*argv, cwd=tmp_path, env={"HOME": str(tmp_path / "home")})
    assert assertions.index_of(tmp_path / "made") == []
    assert not Layout(tmp_path / "made").file(image["digest"]).exists()


@pytest.mark.usefixtures("image")
def test_a_command_for_a_layout_or_an_archive_refuses_other_locations(copy: Copy, tmp_path: Path) -> None:
    copy("oci:made:app", "./x.tar")
    before = sorted(tmp_path.rglob("*"))
    registry = "docker://127.0.0.1:1/app:1"
    for argv, code, words in (
        (["gc", "oci-archive:x.tar"], 2, ["archive", "copy SRC oci:DIR"]),
        (["gc", "-"], 2, ["archive"]),
        (["gc", "oci:made:app"], 2, ["write oci:made"]),
        (["gc", registry], 2, ["in a registry"]),
        (["rm", "docker-archive:x.tar", "app"], 2, ["archive"]),
        (["serve", registry], 2, ["in a registry"]),
        (["serve", "oci:made:app"], 2, ["names one image"]),
        (["serve", "oci:x.tar"], 2, ["is a file", "oci-archive:x.tar"]),
        (["serve", "oci-archive:made"], 2, ["is a directory", "oci:made"]),
        (["serve", "oci-archive:none"], 4, ["none: no such file"]),
        (["serve", "none.tgz"], 4, ["no such file", "oci:none.tgz"]),
        (["serve", "x.tar:app"], 2, ["x.tar is the name of an archive"]),
        (["serve", "oci-archive:-"], 2, ["stdin"]),
        (["serve", "127.0.0.1:1/app"], 4, ["not an image"]),
        *(([command, "x.tar:app"], 2, ["oci-archive:x.tar:app"]) for command in ("digest", "inspect", "tags", "have")),
        (["copy", "x.tar:app", "oci:new"], 2, ["oci-archive:x.tar:app"]),
        (["copy", "oci:made:app", "new.tar:app"], 2, ["oci-archive:new.tar:app"]),
        (["push", "-i", registry, "127.0.0.1:1/b:1"], 2, ["in a registry", "copy SRC DST"]),
        (["pull", "127.0.0.1:1/app:1", "-o", registry], 2, ["in a registry", "copy SRC DST"]),
        (["pull", "127.0.0.1:1/app:1", "-o", "oci:new", "--format=docker-archive"], 2, ["contradicts"]),
    ):
        assertions.failure(ocistream(*argv, cwd=tmp_path), code, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_location_with_a_name_limits_the_choice_of_images(
    served: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    for name in ("app", "other"):
        small_image(layout, name=name)
    chosen = ocistream("push", "-i", "oci:made:app", "--image=other", f"{served.host}/x:1", cwd=tmp_path)
    assertions.failure(chosen, 4, "'other'", "its images are: app")
    unnamed = ocistream("push", "-i", "oci:made:app", "--to", served.host, cwd=tmp_path)
    assertions.failure(unnamed, 2, "full name: app")
    assertions.no_image(served)


def test_a_fifo_is_read_and_written_once(copy: Copy, tmp_path: Path, image: Descriptor) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=copy, args=("oci:made", "./fifo"))
    writer.start()
    copy("./fifo", "oci:through")
    writer.join()
    assert assertions.index_of(tmp_path / "through")[0]["digest"] == image["digest"]
    assert (tmp_path / "fifo").is_fifo()


# Invalid locations -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["verify", ""], "malformed location"),
        (["inspect", ""], "malformed location"),
        (["copy", "", "out.tar"], "malformed location"),
        (["copy", "oci:made", ""], "malformed location"),
        (["push", "127.0.0.1:1/app:1", "-i", ""], "--input is empty"),
        (["pull", "127.0.0.1:1/app:1", "-o", ""], "--output is empty"),
        (["verify", "oci-archive:"], "malformed location"),
    ],
)
def test_an_empty_location_is_refused(tmp_path: Path, argv: list[str], words: str) -> None:
    before = sorted(tmp_path.iterdir())
    assertions.failure(ocistream(*argv, cwd=tmp_path), 2, words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("image")
def test_a_file_as_a_layout_or_a_directory_as_an_archive_is_refused_with_a_hint(copy: Copy, tmp_path: Path) -> None:
    copy("oci:made:app", "./x.tar")
    before = (tmp_path / "x.tar").read_bytes()
    for argv, problem, hint in (
        (["verify", "oci:x.tar"], "is a file", "oci-archive:x.tar"),
        (["inspect", "oci:x.tar:app"], "is a file", "oci-archive:x.tar:app"),
        (["copy", "oci:made", "oci:x.tar"], "is a file", "oci-archive:x.tar"),
        (["pull", "127.0.0.1:1/app:1", "-o", "x.tar", "--format", "oci"], "is a file", "oci-archive:x.tar"),
        (["verify", "oci-archive:made"], "is a directory", "oci:made"),
        (["inspect", "docker-archive:made:app"], "is a directory", "oci:made:app"),
        (["copy", "./x.tar", "oci-archive:made"], "is a directory", "oci:made"),
        (["copy", "oci-archive:x.tar", "docker-archive:made:app:1"], "is a directory", "oci:made:app:1"),
    ):
        result = ocistream(*argv, cwd=tmp_path)
        assertions.failure(result, 2, "x.tar" if problem == "is a file" else "made", problem)
        assert result.err.rstrip().endswith(f" {hint}"), result.err
    assert (tmp_path / "x.tar").read_bytes() == before


@pytest.mark.parametrize(
    "argv",
    [["pull", "app.tar:1"], ["push", "app.tar:1"], ["digest", "app.tar:1"], ["copy", "app.tar:1", "out.tar"]]
    + [[name, "app.tar:1"] for name in ("inspect", "tags", "have", "rm")],
)
def test_the_name_of_an_archive_with_a_tag_is_not_an_image_of_docker_hub(argv: list[str], tmp_path: Path) -> None:
    result = ocistream(*argv, cwd=tmp_path, stdin=b"", names={"registry-1.docker.io": None})
    assertions.failure(
        result,
        2,
        "ambiguous name 'app.tar:1': app.tar is the name of an archive",
        "for the image, write docker://app.tar:1; for an archive, oci-archive:app.tar:1 or docker-archive:app.tar:1",
    )
    assert result.connected == {}


@pytest.mark.parametrize("argv", [["inspect", "IMAGES"], ["tags", "IMAGES"], ["rm", "--dry-run", "IMAGES", "app"]])
def test_a_notice_names_the_image_only_if_the_text_could_be_one(
    argv: list[str], layout: Layout, tmp_path: Path
) -> None:
    small_image(layout, name="app")
    (tmp_path / "images").symlink_to(layout.path)
    for text, is_told in (("images", True), ("images/", False), ("./images", False), ("oci:images", False)):
        result = succeed(*[text if word == "IMAGES" else word for word in argv], cwd=tmp_path)
        assert ("for the image, write docker://images" in result.err) == is_told, (text, result.err)
