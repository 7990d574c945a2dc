"""`ocistream push`: selection of images, blobs that are not sent, and the order of writes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import schemas
from tests.archives import blob_name, items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Give, Start
from tests.cli.forms import both, location
from tests.docker_archives import archive_of, of_docker, saved
from tests.fault_actions import Refuse, Stall, StopReading, WithholdAnswer
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import Descriptor, Layout, small_image, two_platforms
from tests.registry_http import manifest_digest, seed, tags
from tests.runner import forking_command, ocistream, pipe, started_fork

Images = dict[str, Descriptor]

PushLayers = Callable[[list[Descriptor]], list[str]]

MIB = 1 << 20
#: A writer that fails if its output is not read to the end.
WRITER = "import sys, shutil; shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer); sys.stdout.flush()"


@pytest.fixture
def full_names(layout: Layout) -> Images:
    """Return the images of a layout by name, all with full names."""
    images = {"a.example/team/app:1": small_image(layout), "docker.io/library/nginx:2": two_platforms(layout)}
    for name, descriptor in images.items():
        layout.name(descriptor, name)
    return images


@pytest.fixture
def named(layout: Layout, full_names: Images) -> Images:
    """Return the images of a layout by name; the last one has no full name."""
    return {**full_names, "plain": layout.image([b"of its own"], name="plain")}


@pytest.fixture
def archive(layout: Layout, named: Images, tmp_path: Path) -> Path:
    """Return an archive of the `named` images."""
    del named
    path = tmp_path / "all.tar"
    path.write_bytes(tar_of(small_first(layout)))
    return path


# Selection of images ------------------------------------------------------------------------------------------


def test_one_image_is_in_a_registry_even_if_a_path_of_that_name_exists(
    served: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    small_image(layout, name="app")
    (tmp_path / served.host / "app").mkdir(parents=True)
    succeed("push", f"{served.host}/app", "-i", layout.path, cwd=tmp_path)
    refused = ocistream("push", f"{served.host}/app", "--to", served.host, cwd=tmp_path)
    assertions.failure(refused, 2, "is a path", f"-i {served.host}/app --to {served.host}")


@both
def test_foreign_entries_of_an_archive_are_reported(
    served: FaultyRegistry, layout: Layout, give: Give, how: str
) -> None:
    small_image(layout, name="whatever")
    archive = tar_of([*items_of(layout), ("blobs/sha256/abc", b"x"), ("README", b"x")])
    result = assertions.success(give(archive, how, "push", "-v", f"{served.host}/app:1"))
    assert "not used: 1 entry of the archive, such as 'blobs/sha256/abc'" in result.err
    assert "not used: 1 other file of the archive" in result.err


def test_no_request_is_sent_for_corrupt_json_in_a_pipe(served: FaultyRegistry, layout: Layout) -> None:
    image = small_image(layout, name="whatever")
    corrupt = [(f"blobs/sha256/{number:064x}", b'{"number": %d}' % number) for number in range(20)]
    succeed("push", f"{served.host}/app:1", stdin=tar_of([*corrupt, *items_of(layout)]))
    assert manifest_digest(served.host, "app", "1") == image["digest"]
    assert served.asked(path="sha256(:|%3A)0{60}") == []


@pytest.mark.parametrize("how", ["file", "pipe", "layout", "docker-archive"])
def test_an_unnamed_image_beside_a_named_one_requires_a_choice(
    served: FaultyRegistry, layout: Layout, tmp_path: Path, how: str
) -> None:
    image, nameless = small_image(layout, name="whatever"), layout.image([b"nameless"])
    layout.enter(nameless)
    archive = tmp_path / "two.tar"
    archive.write_bytes(tar_of(small_first(layout)))
    unnamed = nameless["digest"]
    if how == "docker-archive":
        images = [saved(layout, image, "whatever:1"), saved(layout, nameless)]
        archive.write_bytes(archive_of(of_docker(images)))
        unnamed = "sha256:"
    given = {"pipe": [], "layout": ["-i", str(layout.path)]}.get(how, ["-i", str(archive)])
    result = ocistream("push", f"{served.host}/app:1", *given, stdin=archive if how == "pipe" else None)
    name = {"pipe": "the archive on stdin", "layout": layout.path}.get(how, archive)
    assertions.failure(result, 2, f": {name} has 2 images\n", "choose one with --image", "whatever", unnamed)
    assertions.no_image(served)


def test_the_hint_suggests_to_only_if_every_image_has_a_full_name(served: FaultyRegistry, layout: Layout) -> None:
    image, other = small_image(layout), layout.image([b"other"])
    layout.name(image, "registry.example.com/a:1")
    layout.name(other, "registry.example.com/b:1")
    argv = ["push", f"{served.host}/app:1", "-i", str(layout.path)]
    assertions.failure(ocistream(*argv), 2, "choose one with --image, or all with --to: registry.example.com/a:1, ")
    layout.name(layout.image([b"third"]), "1")
    assertions.failure(ocistream(*argv), 2, "choose one with --image: registry.example.com/a:1, ")


def test_nothing_is_sent_if_the_index_lists_several_images(served: FaultyRegistry, layout: Layout) -> None:
    layout.name(small_image(layout), "v1")
    layout.name(layout.image([b"another"]), "v2")
    layout.enter(layout.image([b"nameless"]))
    # The index comes first, then the layers: the manifest of the unnamed entry comes after them.
    items = sorted(items_of(layout), key=lambda item: (item[0] != "index.json", (item[1] or b"").startswith(b"{")))
    result = ocistream("push", f"{served.host}/app:1", stdin=tar_of(items))
    assertions.failure(result, 2, "the archive on stdin has 2 images\n", "v1, v2")
    assert served.requests == []


def test_an_unnamed_referrer_beside_an_image_requires_no_choice(served: FaultyRegistry, layout: Layout) -> None:
    image = small_image(layout, name="whatever")
    layout.enter(layout.artifact(b"signature", subject=image))
    succeed("push", f"{served.host}/app:1", "-i", layout.path)
    assert manifest_digest(served.host, "app", "1") == image["digest"]


@pytest.mark.uncounted
def test_verbose_reports_the_previous_digest_of_a_moved_tag(served: FaultyRegistry, tmp_path: Path) -> None:
    images = [small_image(one, name="v1") for one in (Layout(tmp_path / "a"), Layout(tmp_path / "b"))]
    other = Layout(tmp_path / "c")
    new = other.image([b"new"], name="v1")
    said = f"{served.host}/app:1: replacing {images[0]['digest']}"
    for folder, expected in (("a", False), ("b", False), ("c", True)):
        result = succeed("push", "-v", f"{served.host}/app:1", "-i", tmp_path / folder)
        assert (said in result.err) == expected
    assert manifest_digest(served.host, "app", "1") == new["digest"]
    for folder, expected in (("a", False), ("b", False), ("c", True)):
        result = succeed("copy", "-v", f"oci:{tmp_path / folder}", f"oci:{tmp_path}/to:name")
        assert (f"name in {tmp_path}/to: replacing {images[0]['digest']}" in result.err) == expected


def test_a_different_name_in_a_second_archive_is_reported(served: FaultyRegistry, tmp_path: Path) -> None:
    for name in ("one", "two"):
        small_image(Layout(tmp_path / name), name=f"r.example/app:{name}")
    result = succeed("push", "--to", served.host, "-i", tmp_path / "one", "-i", tmp_path / "two")
    assert tags(served.host, "app") == ["one"]
    digest = result.lines()[0].partition("@")[2]
    assert (
        f"two archives have the same image, {digest}, with different names: r.example/app:one is used; " in result.err
    )
    assert result.err.count(f"r.example/app:two in {tmp_path}/two is not\n") == 1


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["push", "r.example/app:1"], 2, "has 2 images"),
        (["push", "r.example/app:1", "--image", "other"], 4, "has no image 'other'"),
        (["push", "--to", "r.example"], 2, "has no full name: short"),
    ],
)
@pytest.mark.parametrize(
    ("names", "expected"),
    [("a", "a"), ("ab", "the combination of a and b"), ("aba", "the combination of a and 2 more")],
)
def test_an_error_of_the_selection_names_each_input(
    tmp_path: Path, argv: list[str], code: int, words: str, names: str, expected: str
) -> None:
    for name in "ab":
        made = Layout(tmp_path / name)
        small_image(made, name="r.example/app:1")
        made.image([b"another"], name="short")
    result = ocistream(*argv, *(f"-i{name}" for name in names), cwd=tmp_path)
    assertions.failure(result, code, expected, words)


@pytest.mark.parametrize(
    ("how", "chosen", "name"),
    [
        ("file", "plain", "plain"),
        ("file", "DIGEST", "plain"),
        ("file", "nginx:2", "docker.io/library/nginx:2"),
        ("pipe, index first", "a.example/team/app:1", "a.example/team/app:1"),
        ("layout", "plain", "plain"),
    ],
)
def test_an_image_can_be_chosen_by_its_name_or_digest(
    served: FaultyRegistry, layout: Layout, named: Images, tmp_path: Path, how: str, chosen: str, name: str
) -> None:
    digest = named[name]["digest"]
    end, stdin = location(how, layout, tmp_path)
    argv = ["push", f"{served.host}/app:1", "--image", chosen.replace("DIGEST", digest)]
    result = succeed(*argv, "-i", end, stdin=stdin)
    assert result.lines() == [f"{served.host}/app:1@{digest}"]
    assert manifest_digest(served.host, "app", "1") == digest
    assert tags(served.host, "app") == ["1"]


@pytest.mark.parametrize(("prefix", "before"), [("", ""), ("/a/b/", "a/b/")])
def test_to_pushes_every_image_to_its_own_repository(
    served: FaultyRegistry, full_names: Images, layout: Layout, prefix: str, before: str
) -> None:
    app, nginx = (descriptor["digest"] for descriptor in full_names.values())
    result = succeed("push", "--to", f"{served.host}{prefix}", "-i", layout.path)
    assert result.lines() == [f"{served.host}/{before}team/app:1@{app}", f"{served.host}/{before}nginx:2@{nginx}"]
    assert manifest_digest(served.host, f"{before}team/app", "1") == app
    assert manifest_digest(served.host, f"{before}nginx", "2") == nginx


def test_one_of_many_images_is_pushed_from_a_pipe(served: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
    names = {f"a.example/app:{number}": layout.image([b"x"], config={"Cmd": [f"{number}"]}) for number in range(750)}
    entries = [{**image, "annotations": {"io.containerd.image.name": name}} for name, image in names.items()]
    (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    # With a manifest.json, which is compared with all of the index.
    archive = tmp_path / "many.tar"
    assertions.success(ocistream("copy", f"oci:{layout.path}", archive))
    assertions.success(ocistream("push", f"{served.host}/app:1", "--image", "a.example/app:5", stdin=archive))
    assert manifest_digest(served.host, "app", "1") == names["a.example/app:5"]["digest"]


def test_to_says_that_a_compressed_file_with_a_late_index_must_be_decompressed(
    served: FaultyRegistry, full_names: Images, layout: Layout, tmp_path: Path
) -> None:
    assert full_names
    archive = tmp_path / "exported.tar.gz"
    archive.write_bytes(gzip.compress(tar_of(items_of(layout))))
    result = ocistream("push", "--to", served.host, "-i", archive)
    assertions.failure(result, 8, "a pipe or a compressed file", "decompress it, or save it to a file")
    assert served.requests == []


@pytest.mark.parametrize("options", [[], ["--compress=zstd"], ["--dry-run"]], ids=["", "compress", "dry-run"])
def test_to_refuses_a_pipe_with_a_late_index_before_it_sends(
    served: FaultyRegistry, full_names: Images, layout: Layout, tmp_path: Path, options: list[str]
) -> None:
    app = full_names["a.example/team/app:1"]["digest"]
    archive = tmp_path / "exported.tar"
    archive.write_bytes(tar_of(items_of(layout)))
    result = ocistream("push", "--to", served.host, *options, stdin=archive)
    assertions.failure(result, 8, "lists its images only at its end", "--to", "nothing was sent", "-i FILE", "--image")
    assert served.requests == []
    # Both commands that the hint suggests work.
    succeed("push", f"{served.host}/one:1", "--image", "a.example/team/app:1", stdin=archive)
    assert manifest_digest(served.host, "one", "1") == app
    assert len(ocistream("push", "--to", served.host, "-i", archive).lines()) == 2


@pytest.mark.parametrize("how", ["pipe", "layout"])
def test_to_sends_nothing_if_an_image_has_no_full_name(
    served: FaultyRegistry, layout: Layout, named: Images, archive: Path, how: str
) -> None:
    nameless = layout.image([b"nameless"])
    layout.enter(nameless)
    archive.write_bytes(tar_of(small_first(layout)))
    given = {"pipe": [], "layout": ["-i", str(layout.path)]}[how]
    result = ocistream("push", "--to", served.host, *given, stdin=archive if how == "pipe" else None)
    name = {"pipe": "the archive on stdin"}.get(how, layout.path)
    assertions.failure(
        result,
        2,
        f"2 of 4 images in {name} have no full name: plain, {nameless['digest']}",
        f"`ocistream push --image plain -i {layout.path if given else 'FILE'} {served.host}/REPOSITORY:TAG`",
    )
    assert served.requests == []
    line = result.err.partition("`ocistream ")[2].partition("`")[0].replace("REPOSITORY:TAG", "pasted:1")
    succeed(*shlex.split(line.replace("FILE", str(archive))))
    # The command that the hint suggests works.
    chosen = ["--image", "a.example/team/app:1", "--image", named["docker.io/library/nginx:2"]["digest"]]
    result = ocistream("push", "--to", served.host, *chosen, *given, stdin=archive if how == "pipe" else None)
    assert len(result.lines()) == 2, result.err
    succeed("push", f"{served.host}/nameless:1", "--image", nameless["digest"], "-i", archive)


def test_to_pushes_signatures_and_reports_those_without_an_image(
    served: FaultyRegistry, layout: Layout, full_names: Images, tmp_path: Path
) -> None:
    app = full_names["a.example/team/app:1"]
    signature = layout.artifact(b"signature", kind="application/vnd.example.signature", subject=app)
    lost = layout.artifact(b"lost", kind="application/spdx+json", subject=layout.image([b"elsewhere"]))
    layout.enter(signature, lost)
    result = succeed("push", "--to", served.host, "-i", layout.path, "--result", tmp_path / "result.json")
    assert len(result.lines()) == 2
    assert "not copied: 1 SBOM; subject not in the source" in result.err
    document = json.loads((tmp_path / "result.json").read_text())
    schemas.validate_ours(document, "result")
    assert [one["digest"] for one in document["referrers"]] == [signature["digest"]]
    assert [one["digest"] for one in document["skippedReferrers"]] == [lost["digest"]]


def test_to_pushes_only_the_selected_images(
    served: FaultyRegistry, named: Images, archive: Path, layout: Layout
) -> None:
    layout.name(named["plain"], "a.example/third:3")
    archive.write_bytes(tar_of(small_first(layout)))
    argv = ["--to", served.host, "--image", "nginx:2", "--image", "a.example/third:3"]
    assert len(ocistream("push", *argv, "-i", archive).lines()) == 2
    assert (tags(served.host, "nginx"), tags(served.host, "third"), tags(served.host, "team/app")) == (["2"], ["3"], [])


def test_to_needs_full_names(served: FaultyRegistry, layout: Layout, archive: Path) -> None:
    assertions.failure(ocistream("push", "--to", served.host, "--image", "plain", "-i", archive), 2, "plain", "--image")
    other = Layout(layout.path.with_name("nameless"))
    small_image(other, name="1")
    result = ocistream("push", "--to", served.host, "-i", other.path)
    assertions.failure(
        result, 2, f"no image in {other.path} has a full name: 1", f"push --image 1 -i {other.path} {served.host}/"
    )
    assert "push this one by itself: " in result.err
    assert "select the others" not in result.err
    # With one full name, the error also says how to push that image.
    other.name(other.image([b"named"]), "a.example/app:1")
    result = ocistream("push", "--to", served.host, "-i", other.path)
    assertions.failure(result, 2, "push this one by itself: ", "`; select the others with --image NAME\n")
    assertions.no_image(served)


def test_to_ignores_names_that_are_not_image_names(served: FaultyRegistry, layout: Layout) -> None:
    image = small_image(layout)
    layout.name(image, "Not/A:Name", "a.example/x@sha384:0123", "a.example/app:1")
    result = ocistream("push", "--to", served.host, "-i", layout.path)
    assert result.lines() == [f"{served.host}/app:1@{image['digest']}"], result.err
    for name in ("Not/A:Name", "a.example/x@sha384:0123"):
        assert result.err.count(f"the name '{name}' is not used, because it is not a full name") == 1


def test_to_pushes_all_full_names_of_an_image_selected_by_digest(served: FaultyRegistry, layout: Layout) -> None:
    image = small_image(layout)
    layout.name(image, "plain", "a.example/app:1", "a.example/app:2")
    result = ocistream("push", "--to", served.host, "--image", image["digest"], "-i", layout.path)
    assert result.lines() == [f"{served.host}/app:{tag}@{image['digest']}" for tag in "12"], result.err


def test_to_refuses_two_images_with_one_destination(served: FaultyRegistry, layout: Layout) -> None:
    layout.name(small_image(layout), "a.example/app:1")
    layout.name(two_platforms(layout), "b.example/app:1")
    result = ocistream("push", "--to", served.host, "-i", layout.path)
    assertions.failure(result, 2, "a.example/app:1", "b.example/app:1", f"{served.host}/app:1")
    assertions.no_image(served)


# Blobs that are not sent --------------------------------------------------------------------------------------


class TestSmallBlobsAfterMissingBlobs:
    """After eight missing blobs in a row, push sends small blobs without asking first, and asks for larger ones."""

    @pytest.fixture
    def push(self, served: FaultyRegistry, layout: Layout) -> PushLayers:
        def push_layers(layers: list[Descriptor]) -> list[str]:
            """Push an image with these layers over one connection; return the digests that are asked for."""
            name = f"with-{len(layers)}"
            layout.image(layers, name=name)
            served.requests.clear()
            argv = ["push", f"{served.host}/app:1", "-i", str(layout.path), "--image", name, "--jobs=1"]
            succeed(*argv)
            return [request.path.rpartition("/")[2] for request in served.asked("HEAD", "/blobs/")]

        return push_layers

    def test_small_blobs_are_not_asked_for(self, served: FaultyRegistry, layout: Layout, push: PushLayers) -> None:
        layers = [layout.random_layer(4000, seed=number)[0] for number in range(20)]
        assert len(push(layers)) == 8
        assert len(served.asked("POST", "/uploads/")) == len(served.asked("PUT", "/uploads/")) == 21

    def test_blobs_of_an_interrupted_push_are_not_sent_again(
        self, served: FaultyRegistry, layout: Layout, push: PushLayers
    ) -> None:
        layers = [layout.random_layer(4000, seed=number)[0] for number in range(20)]
        push(layers[:12])
        push(layers)
        # The config and eight layers.
        assert len(served.asked("PUT", "/uploads/")) == 9

    def test_a_larger_blob_is_asked_for(self, served: FaultyRegistry, layout: Layout, push: PushLayers) -> None:
        large = layout.random_layer(100_000)[0]
        push([large])
        asked = push([*(layout.random_layer(4000, seed=number)[0] for number in range(1, 20)), large])
        assert large["digest"] in asked
        assert len(served.asked("PUT", "/uploads/")) == 20

    def test_an_existing_blob_resets_the_count(self, layout: Layout, push: PushLayers) -> None:
        known = layout.random_layer(4000)[0]
        push([known])
        layers = [layout.random_layer(4000, seed=number)[0] for number in range(1, 20)]
        asked = push([*layers[:6], known, *layers[6:]])
        # The config is asked for first.
        assert asked[1:] == [layer["digest"] for layer in [*layers[:6], known, *layers[6:14]]]

    def test_a_blob_that_a_pipe_lacks_is_asked_for(
        self, served: FaultyRegistry, layout: Layout, push: PushLayers
    ) -> None:
        """The archive does not list the blob as omitted."""
        small = layout.random_layer(4000)[0]
        push([small])
        image = layout.image([*(layout.random_layer(4000, seed=number)[0] for number in range(1, 20)), small])
        layout.write_index([image])
        items = [item for item in small_first(layout) if item[0] != blob_name(small["digest"])]
        served.requests.clear()
        succeed("push", f"{served.host}/app:1", "--jobs=1", stdin=tar_of(items))
        assert len(served.asked("HEAD", "/blobs/")) == 9

    def test_all_blobs_that_the_source_lacks_are_asked_for(
        self, served: FaultyRegistry, layout: Layout, push: PushLayers
    ) -> None:
        """The repository has the last blob; the others are mounted."""
        layers = [layout.random_layer(4000, seed=number)[0] for number in range(10)]
        push(layers[9:])
        layout.image(layers[:9], name="base")
        succeed("push", f"{served.host}/base:1", "-i", str(layout.path), "--image", "base")
        image = layout.image(layers)
        layout.write_index([image])
        omitted = {blob_name(layer["digest"]) for layer in layers}
        archive = tar_of(item for item in small_first(layout) if item[0] not in omitted)
        (layout.path.parent / "app.tar").write_bytes(archive)
        argv = ["-i", str(layout.path.parent / "app.tar"), "--mount-from", "base", "--jobs=1"]
        succeed("push", f"{served.host}/app:1", *argv)


def test_one_platform_of_an_index_is_pushed_alone(served: FaultyRegistry, layout: Layout) -> None:
    index = two_platforms(layout, name="multi")
    amd64 = layout.read(index["digest"])["manifests"][0]
    argv = ["push", f"{served.host}/app:1", "-i", str(layout.path), "--platform"]
    succeed(*argv, "linux/amd64")
    assert manifest_digest(served.host, "app", "1") == amd64["digest"]
    assert len(served.asked("PUT", "/manifests/")) == 1
    assertions.failure(ocistream(*argv, "linux/s390x"), 4, "linux/s390x", "linux/arm64")


# Order of writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "foreign"])
def test_blobs_come_before_manifests_children_before_parents_and_tags_last(
    served: FaultyRegistry, layout: Layout, tmp_path: Path, how: str
) -> None:
    inner = two_platforms(layout)
    referrer = layout.artifact(b"statement", subject=inner)
    outer = layout.index([inner, layout.image([b"third"]), referrer], name="nested")
    path = tmp_path / "nested.tar"
    path.write_bytes(tar_of(items_of(layout) if how == "foreign" else small_first(layout)))
    given = ["-i", str(path)] if how == "file" else []
    succeed("push", f"{served.host}/app:1", *given, stdin=path)
    writes = [f"{request.method} {request.path}" for request in served.asked("POST|PATCH|PUT")]
    first_manifest = next(number for number, write in enumerate(writes) if "/manifests/" in write)
    assert all("/blobs/" in write for write in writes[:first_manifest])
    pushed = [write.removeprefix("PUT /v2/app/manifests/") for write in writes[first_manifest:]]
    assert pushed[-1] == "1"
    assert len(pushed) == 6
    children = layout.read(inner["digest"])["manifests"]
    assert max(pushed.index(child["digest"]) for child in children) < pushed.index(inner["digest"])
    assert pushed.index(inner["digest"]) < len(pushed) - 1
    assert manifest_digest(served.host, "app", "1") == outer["digest"]


def test_no_tag_appears_before_all_images_are_complete(
    served: FaultyRegistry, full_names: Images, layout: Layout
) -> None:
    del full_names
    succeed("push", "--to", served.host, "-i", layout.path)
    writes = [request.path for request in served.asked("PUT|PATCH|POST")]
    assert writes[-2:] == ["/v2/team/app/manifests/1", "/v2/nginx/manifests/2"]


def test_if_one_of_two_images_fails_neither_appears(served: FaultyRegistry, layout: Layout, full_names: Images) -> None:
    layout.file(layout.read(full_names["a.example/team/app:1"]["digest"])["layers"][1]["digest"]).unlink()
    assertions.failure(ocistream("push", "--to", served.host, "-i", layout.path), 6)
    assertions.no_image(served)


# Pipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [False, True])
def test_a_pipe_is_read_to_its_end_even_if_no_blob_is_needed(
    served: FaultyRegistry, layout: Layout, tmp_path: Path, present: bool
) -> None:
    image = layout.image([3 * MIB], name="app")
    path = tmp_path / "app.tar"
    # More zeros at the end than a tar with records of 10 KiB has.
    path.write_bytes(tar_of(small_first(layout)) + bytes(5 * MIB))
    if present:
        seed(layout, image, served.host, "app", "1")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    with writer:
        assert writer.stdout
        line = [*forking_command(), "push", f"{served.host}/app:1"]
        done = subprocess.run(line, stdin=writer.stdout, capture_output=True, check=False)
        writer.stdout.close()
        assert writer.wait(60) == 0
    assert done.returncode == 0, done.stderr


def test_push_waits_for_a_slow_writer(served: FaultyRegistry, layout: Layout) -> None:
    image = small_image(layout, name="app")
    content = tar_of(small_first(layout))
    read, write = os.pipe()
    line = [*forking_command(), "push", f"{served.host}/app:1"]
    with subprocess.Popen(line, stdin=read, stdout=subprocess.PIPE) as process:
        os.close(read)
        for start in range(0, len(content), 700):
            os.write(write, content[start : start + 700])
        os.close(write)
        out, _ = process.communicate(timeout=60)
    assert out.decode() == f"{served.host}/app:1@{image['digest']}\n"


@pytest.mark.parametrize("between", [[], [2 * MIB]], ids=["small layers", "a large layer between"])
def test_small_layers_from_a_pipe_do_not_wait_for_each_other(
    served: FaultyRegistry, layout: Layout, between: list[int]
) -> None:
    image = layout.image([b"one", *between, b"two", b"three"], name="app")
    layers = [blob_name(layer["digest"]) for layer in layout.read(image["digest"])["layers"]]
    items = sorted(small_first(layout), key=lambda item: layers.index(item[0]) if item[0] in layers else -1)
    first_layer = hashlib.sha256(b"one").hexdigest()
    served.faults = [Fault(Stall(), "PUT", first_layer)]

    def release_after_the_last_layer() -> None:
        served.wait_for_request("PUT", hashlib.sha256(b"three").hexdigest())
        served.release()

    releasing = threading.Thread(target=release_after_the_last_layer)
    releasing.start()
    result = ocistream("push", f"{served.host}/app:1", "--stall-timeout=5", "--retries=0", stdin=tar_of(items))
    served.release()
    releasing.join()
    assertions.success(result)
    assert manifest_digest(served.host, "app", "1") == image["digest"]


def test_a_small_layer_of_a_pipe_with_a_wrong_size_is_refused(served: FaultyRegistry, layout: Layout) -> None:
    image = layout.image([b"one", b"two"], name="app")
    name = blob_name(layout.read(image["digest"])["layers"][0]["digest"])
    items = [(each, content if each != name else bytes(3 * MIB)) for each, content in small_first(layout)]
    result = ocistream("push", f"{served.host}/app:1", stdin=tar_of(items))
    assertions.failure(result, 5, "sha256:" + hashlib.sha256(b"one").hexdigest())
    assertions.no_image(served)


@pytest.mark.parametrize("options", [{}, {"chunk_min_length": MIB}])
def test_pull_into_push_copies_the_image(start: Start, layout: Layout, options: dict[str, int]) -> None:
    image = layout.image([3 * MIB, b"words"])
    one, two = start(), start(**options)
    seed(layout, image, one.host, "app", "1")
    pull, push = pipe(["pull", f"{one.host}/app:1"], ["push", f"{two.host}/app:1"])
    assert (pull.code, push.code) == (0, 0)
    assert manifest_digest(two.host, "app", "1") == image["digest"]


@pytest.mark.parametrize("cut", [50, 99])
def test_a_truncated_pipe_creates_no_image(start: Start, layout: Layout, cut: int) -> None:
    one, two = start(), start()
    seed(layout, layout.image([2 * MIB, 2 * MIB]), one.host, "app", "1")
    pull, push = pipe(["pull", f"{one.host}/app:1"], ["push", f"{two.host}/app:1"], cut=4 * MIB * cut // 100)
    # Near the end the rest fits into the pipe's buffer, so pull does not see that the reader closed.
    assert pull.code in ({141} if cut < 99 else {0, 141})
    assert push.code == 6
    assert "Traceback" not in pull.err + push.err
    assertions.no_image(two)


def test_the_first_failure_is_reported_and_not_the_cancellation_that_it_causes(
    served: FaultyRegistry, layout: Layout, tmp_path: Path
) -> None:
    layout.image([2 * MIB], name="app")
    archive = tmp_path / "app.tar"
    succeed("copy", f"oci:{layout.path}:app", archive)
    served.faults = [
        # The config comes first. Its upload opens only after the layer's upload began, and is then refused.
        Fault(WithholdAnswer(), "POST", "uploads"),
        Fault(refusal(403, "DENIED"), "PATCH|PUT", "uploads", skip=1, times=None),
    ]
    with started_fork("push", f"{served.host}/app:1", stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(archive.read_bytes()[:-MIB])
        process.stdin.flush()
        served.wait_for_request("PATCH", "uploads")
        served.release()
        # The pipe stays open: the layer's upload ends only when it is cancelled.
        said = process.stderr.read().decode()
        assert process.wait(60) == 3, said
    assert said.startswith(f"ocistream: error: {served.host} refused: "), said
    assert "403 DENIED" in said
    assertions.no_image(served)


@pytest.fixture
def three_layers(layout: Layout, tmp_path: Path) -> Path:
    """An archive with three layers of 2 MiB, which are not buffered, and no small one after them."""
    layout.image([2 * MIB, 2 * MIB + 1, 2 * MIB + 2], name="app")
    archive = tmp_path / "app.tar"
    succeed("copy", f"oci:{layout.path}:app", archive)
    return archive


def test_the_next_layer_of_a_pipe_is_sent_while_the_registry_commits_the_one_before(
    served: FaultyRegistry, three_layers: Path
) -> None:
    served.faults = [Fault(WithholdAnswer(), "PATCH")]
    content = three_layers.read_bytes()
    with started_fork("push", f"{served.host}/app:1", stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(content[: -3 * MIB])
        process.stdin.flush()
        assertions.wait_for(lambda: [request.received > MIB // 2 for request in served.asked("PATCH")] == [True, True])
        assert not served.asked("GET", "uploads"), "the first layer was sent again"
        served.release()
        process.stdin.write(content[-3 * MIB :])
        process.stdin.close()
        assert process.wait(60) == 0, process.stderr.read().decode()
    assert manifest_digest(served.host, "app", "1")


@pytest.mark.parametrize("is_second_started", [False, True])
def test_a_layer_of_a_pipe_that_the_registry_refuses_at_its_end_stops_the_push(
    served: FaultyRegistry, three_layers: Path, is_second_started: bool
) -> None:
    served.faults = [Fault(Refuse(403), "PATCH")]
    size = three_layers.stat().st_size
    with started_fork("push", f"{served.host}/app:1", stdin=subprocess.PIPE) as process:
        assert process.stdin
        # The pipe stays open: in the second layer, or in the third one.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(three_layers.read_bytes()[: size - (MIB if is_second_started else 3 * MIB)])
            process.stdin.flush()
        said = process.stderr.read().decode()
        assert process.wait(60) == 3, said
    assert f"{served.host} refused: " in said
    assertions.no_image(served)


@pytest.mark.parametrize("second", [5, 7])
def test_a_layer_of_a_pipe_is_sent_again_from_its_first_byte_also_after_another_one(
    served: FaultyRegistry, layout: Layout, tmp_path: Path, second: int
) -> None:
    """Both layers fit into the memory for that (8 MiB), or only one of them."""
    layout.image([2 * MIB, second * MIB], name="app")
    archive = tmp_path / "app.tar"
    succeed("copy", f"oci:{layout.path}:app", archive)
    served.faults = [
        Fault(WithholdAnswer(), "PATCH"),
        Fault(StopReading(4 * MIB), "PATCH"),
        Fault(refusal(404, "BLOB_UPLOAD_UNKNOWN"), "GET", "uploads"),
    ]
    with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as cat:
        assert cat.stdout
        with started_fork("push", f"{served.host}/app:1", stdin=cat.stdout.fileno()) as process:
            assertions.wait_for(lambda: [request.received for request in served.asked("PATCH")][:1] == [2 * MIB])
            # The second layer has time to begin, and to fail.
            time.sleep(1)
            served.release()
            assert process.wait(60) == 0, process.stderr.read().decode()
    assert manifest_digest(served.host, "app", "1")
