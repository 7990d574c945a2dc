"""What the embedded registry says at its start about names: nothing is served under another name, or none, silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream.errors import NotFoundError
from ocistream.serve import Registry
from tests.archives import small_first, tar_of
from tests.docker_archives import archive_of, of_docker, saved
from tests.images import Descriptor, Layout, small_image
from tests.talking import Client

NAME = "org.opencontainers.image.ref.name"


def start(path: Path) -> list[str]:
    """Start a registry, and return what the operator is told."""
    with Registry(path) as registry:
        return registry.notes()


@pytest.fixture
def archived(tmp_path: Path) -> Callable[[Layout], Path]:
    """Return a function that makes an archive `app.tar` of a layout."""

    def make(layout: Layout) -> Path:
        path = tmp_path / "app.tar"
        path.write_bytes(tar_of(small_first(layout)))
        return path

    return make


def list_images(layout: Layout, *named: tuple[Descriptor, str | None]) -> None:
    """Write an index.json that lists images by these names, which may be the same."""
    manifests = [{**image, "annotations": {NAME: name}} if name else image for image, name in named]
    (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))


def two(layout: Layout) -> tuple[Descriptor, Descriptor]:
    return small_image(layout), layout.image([4000])


@pytest.mark.parametrize("kind", ["archive", "directory"])
def test_of_two_images_with_one_name_it_is_said_which_one_has_it(
    layout: Layout, archived: Callable[[Layout], Path], kind: str
) -> None:
    first, last = two(layout)
    list_images(layout, (first, "registry.example/app:1"), (last, "registry.example/app:1"))
    path = archived(layout) if kind == "archive" else layout.path
    line = f"two images have the name app:1: {last['digest']} is served under it; "
    line += f"{first['digest']} is served by digest only"
    assert start(path) == [line]
    with Registry(path) as registry, Client(registry.host) as ask:
        assert ask("GET", "/v2/app/manifests/1").headers["Docker-Content-Digest"] == last["digest"]
        assert ask("GET", f"/v2/app/manifests/{first['digest']}").status == 200


def test_two_of_different_registries_are_alike_in_short_only(layout: Layout) -> None:
    first, last = two(layout)
    list_images(layout, (first, "a.example/app:1"), (last, "b.example/app:1"))
    line = f"two images have the name app:1: {last['digest']} is served under it; "
    assert start(layout.path) == [f"{line}{first['digest']} is served as a.example/app:1"]


def test_a_docker_archive_is_no_different(layout: Layout, tmp_path: Path) -> None:
    images = [saved(layout, image, "nginx:1") for image in two(layout)]
    (tmp_path / "app.tar").write_bytes(archive_of(of_docker(images)))
    (line,) = start(tmp_path / "app.tar")
    assert line.startswith("two images have the name library/nginx:1: ")


def test_one_image_with_several_names_needs_no_word(layout: Layout) -> None:
    image = small_image(layout)
    list_images(layout, (image, "a.example/app:1"), (image, "b.example/app:1"), (image, "1"), (image, None))
    assert start(layout.path) == []


def test_a_name_that_cannot_be_a_repository_is_said(layout: Layout) -> None:
    image = small_image(layout)
    list_images(layout, (image, "My App!"))
    assert start(layout.path) == [
        f"'My App!' is not the name of a repository with a tag: {image['digest']} is served by digest only"
    ]


def test_the_only_image_of_an_archive_without_a_name_gets_one_which_is_said(
    layout: Layout, archived: Callable[[Layout], Path]
) -> None:
    list_images(layout, (small_image(layout), None))
    assert start(archived(layout)) == ["the image has no name: it is served as app:latest"]


def test_others_without_a_name_are_counted_but_not_what_refers_to_an_image(
    layout: Layout, archived: Callable[[Layout], Path]
) -> None:
    first, last = two(layout)
    signature = layout.artifact(b"signed", subject=first)
    list_images(layout, (first, "app:1"), (signature, None))
    assert start(archived(layout)) == []
    list_images(layout, (first, None), (last, None), (signature, None))
    line = f"2 images without a name, served by digest only: {first['digest']}, {last['digest']}"
    assert start(archived(layout)) == [line]
    assert start(layout.path) == [line]


def test_of_very_many_it_is_not_looked_what_they_are(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocistream.serve.repositories._MOST_READ", 4)
    images = [layout.image([4000 + number]) for number in range(5)]
    list_images(layout, *((image, None) for image in images))
    shown = ", ".join(image["digest"] for image in images[:3])
    assert start(layout.path) == [f"5 images or referrers without a name, served by digest only: {shown} and 2 more"]


def test_no_more_than_ten_lines_are_said(layout: Layout) -> None:
    image = small_image(layout)
    list_images(layout, *((image, f"No {number}") for number in range(13)))
    lines = start(layout.path)
    assert len(lines) == 11
    assert lines[-1] == "and 3 more such images"


def test_an_archive_without_images_is_not_served_and_a_directory_says_so(
    layout: Layout, archived: Callable[[Layout], Path], tmp_path: Path
) -> None:
    list_images(layout)
    with pytest.raises(NotFoundError, match="there is no image in"):
        start(archived(layout))
    assert start(layout.path) == [f"there is no image in {layout.path} yet"]
    assert start(tmp_path / "new") == [f"there is no image in {tmp_path / 'new'} yet"]
