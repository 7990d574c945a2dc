"""`ocistream rm`: an image is removed with its referrers; referrers of other images stay."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.images import Descriptor, Layout
from tests.runner import ocistream


def listed(layout: Layout) -> list[str]:
    return [entry["digest"] for entry in layout.entries]


@pytest.fixture
def images(layout: Layout) -> list[Descriptor]:
    """Return the images a:1, b:1 and b:2 of registry.example."""
    return [
        layout.image([name.encode()], config={"Cmd": [name]}, name=f"registry.example/{name}")
        for name in ("a:1", "b:1", "b:2")
    ]


def test_the_usage_line_names_what_a_layout_and_a_registry_take() -> None:
    usage = ocistream("rm", "--help").lines()[0]
    assert usage == "Usage: ocistream rm [OPTIONS] {DIR NAME|TAG|DIGEST... | IMAGE...}"


@pytest.mark.parametrize("name", ["registry.example/a:1", None])
def test_an_image_is_removed_by_name_or_digest(layout: Layout, images: list[Descriptor], name: str | None) -> None:
    digest = images[0]["digest"]
    before = {path.name for path in layout.path.rglob("*")}
    removed = succeed("rm", layout.path, name or digest)
    assert removed.lines() == [f"registry.example/a:1@{digest}"]
    assert "removed 1 image; run `ocistream gc` to delete unused blobs" in removed.err
    assert listed(layout) == [image["digest"] for image in images[1:]]
    assert {path.name for path in layout.path.rglob("*")} == before
    needed = {digest, *(blob["digest"] for blob in layout.blobs(images[0]))}
    assert set(ocistream("gc", layout.path, "--older-than=0").lines()) == needed


def test_several_images_are_removed_or_none(layout: Layout, images: list[Descriptor]) -> None:
    before = (layout.path / "index.json").read_bytes()
    failed = ocistream("rm", layout.path, "registry.example/a:1", "registry.example/none:1")
    assertions.failure(failed, 4, "none:1", "registry.example/b:2")
    assert (layout.path / "index.json").read_bytes() == before
    dry = succeed("rm", layout.path, "registry.example/a:1", "registry.example/b:1", "--dry-run")
    assert len(dry.lines()) == 2
    assert (layout.path / "index.json").read_bytes() == before
    succeed("rm", layout.path, "registry.example/a:1", "registry.example/b:1")
    assert listed(layout) == [images[2]["digest"]]


def test_a_name_of_several_images_is_refused(layout: Layout, images: list[Descriptor]) -> None:
    layout.name(images[1], "registry.example/a:1")
    before = (layout.path / "index.json").read_bytes()
    assertions.failure(
        ocistream("rm", layout.path, "registry.example/a:1"), 2, "2 images", "a digest removes all images that have it"
    )
    assert (layout.path / "index.json").read_bytes() == before


def test_an_exact_name_takes_precedence_over_a_tag_or_a_short_name(layout: Layout, tmp_path: Path) -> None:
    images = {name: layout.image([name.encode()], name=name) for name in ("v1", "docker.io/library/v1:latest")}
    full = layout.image([b"full"])
    names = {"org.opencontainers.image.ref.name": "v1", "io.containerd.image.name": "registry.example/app:v1"}
    layout.write_index([{**full, "annotations": names}, *layout.entries])
    for name, digest in (
        ("v1", images["v1"]["digest"]),
        ("docker.io/library/v1", images["docker.io/library/v1:latest"]["digest"]),
        ("registry.example/app:v1", full["digest"]),
    ):
        copied = succeed("copy", f"oci:{layout.path}:{name}", tmp_path / "copied.tar")
        assert copied.out.decode().endswith(f"@{digest}\n")
    assert ocistream("rm", layout.path, "v1").out.decode() == f"v1@{images['v1']['digest']}\n"
    # Next the short name of a full name matches, and last the tag.
    assert ocistream("rm", layout.path, "v1").lines()[0].startswith("docker.io/library/v1:latest@")
    assert ocistream("rm", layout.path, "v1").lines()[0].startswith("registry.example/app:v1@")


def test_after_rm_gc_reports_recent_blobs_and_how_to_delete_them(layout: Layout, images: list[Descriptor]) -> None:
    succeed("rm", layout.path, "registry.example/a:1")
    kept = succeed("gc", layout.path)
    assert kept.lines() == []
    assert re.search(r"no image needs [\d.]+ k?B of these, .*the last hour: .* --older-than 0$", kept.err, re.MULTILINE)
    assert images[0]["digest"] in ocistream("gc", layout.path, "--older-than", "0").lines()


def test_a_name_removes_itself_and_a_digest_removes_all_names(layout: Layout) -> None:
    image = layout.image([b"x"], name="registry.example/a:1")
    layout.name(image, "registry.example/a:latest", "registry.example/b:latest")
    assertions.failure(ocistream("rm", layout.path, "nothing"), 4)
    succeed("rm", layout.path, "registry.example/a:latest")
    assert listed(layout) == [image["digest"]] * 2
    succeed("rm", layout.path, image["digest"])
    assert listed(layout) == []


def test_referrers_of_a_removed_image_are_removed_recursively(layout: Layout, images: list[Descriptor]) -> None:
    first, second, _ = images
    signature = layout.artifact(b"signature", subject=first)
    of_that = layout.artifact(b"of the signature", subject=signature)
    other = layout.artifact(b"another's", subject=second)
    by_tag = layout.artifact(b"cosign's")
    layout.enter(of_that, signature, other)
    name = f"registry.example/a:{first['digest'].replace(':', '-')}.sig"
    layout.enter({**by_tag, "annotations": {"vnd.ocistream.image.name": name}})
    removed = succeed("rm", layout.path, "registry.example/a:1")
    assert "and 3 that referred to it" in removed.err
    hung = {line.rpartition("@")[2] for line in removed.lines()[1:]}
    assert hung == {signature["digest"], of_that["digest"], by_tag["digest"]}
    assert listed(layout) == [*[image["digest"] for image in images[1:]], other["digest"]]


def test_referrers_of_a_remaining_image_stay(layout: Layout) -> None:
    inner = layout.image([b"inner"])
    signature = layout.artifact(b"signature", subject=inner)
    index = layout.index([inner], name="registry.example/index:1")
    layout.name(inner, "registry.example/inner:1")
    layout.enter(signature)
    succeed("rm", layout.path, "registry.example/inner:1")
    assert listed(layout) == [index["digest"], signature["digest"]]
    # Now its subject is in no remaining image.
    succeed("rm", layout.path, "registry.example/index:1")
    assert listed(layout) == []


def test_named_referrers_and_referrers_without_a_subject_stay(layout: Layout, images: list[Descriptor]) -> None:
    named = layout.artifact(b"sbom", subject=images[0], name="registry.example/sbom:1")
    alone = layout.image([b"nameless"])
    layout.enter(alone)
    succeed("rm", layout.path, "registry.example/a:1")
    assert listed(layout) == [*[one["digest"] for one in images[1:]], named["digest"], alone["digest"]]


def test_a_damaged_image_can_be_removed(layout: Layout, images: list[Descriptor]) -> None:
    layout.file(images[0]["digest"]).write_bytes(b"damaged")
    layout.file(images[1]["digest"]).unlink()
    succeed("rm", layout.path, "registry.example/a:1", "registry.example/b:1")
    assert listed(layout) == [images[2]["digest"]]


def test_only_a_layout_is_accepted(tmp_path: Path) -> None:
    assertions.failure(ocistream("rm", tmp_path / "missing", "x"), 4, "missing")
    assertions.failure(ocistream("rm", tmp_path, "x"), 6, "not an OCI layout")
    assertions.failure(ocistream("rm", tmp_path), 2)
