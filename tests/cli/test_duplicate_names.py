"""Two images with one name in an archive or layout are reported, with the image that each tool takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.forms import location
from tests.docker_archives import archive_of, hex_of, of_docker, saved
from tests.images import Descriptor, Layout
from tests.runner import Argument, Result, ocistream

Run = Callable[..., Result]

NAME = "registry.example.com/app:1"
READERS = "skopeo takes the first one, `docker load`, `ctr image import` and `ocistream serve` take the last one"


@pytest.fixture
def images(layout: Layout) -> list[Descriptor]:
    """Return two images with one name."""
    found = [layout.image([b"a" * size]) for size in (100, 200)]
    for image in found:
        layout.name(image, NAME)
    return found


@pytest.fixture(params=["layout", "file", "pipe"])
def run(request: pytest.FixtureRequest, layout: Layout, tmp_path: Path) -> Run:
    """Return a function that runs a command on the layout, which is `{}` in its arguments."""

    def started(*argv: Argument) -> Result:
        end, stdin = location(request.param, layout, tmp_path)
        return ocistream(*(end if word == "{}" else word for word in argv), stdin=stdin)

    return started


def test_every_command_that_reads_the_images_reports_them(images: list[Descriptor], run: Run, tmp_path: Path) -> None:
    said = f"ocistream: 2 images have the name {NAME!r}: {images[0]['digest']}, {images[1]['digest']}; {READERS}\n"
    for argv in (["verify", "{}"], ["inspect", "{}"], ["copy", "{}", f"oci-archive:{tmp_path / 'out.tar'}"]):
        result = assertions.success(run(*argv))
        assert result.err.count(said) == 1


def test_at_most_ten_names_are_reported(images: list[Descriptor], layout: Layout) -> None:
    for number in range(11):
        for image in images:
            layout.name(image, f"registry.example.com/app:more{number}")
    result = succeed("verify", layout.path)
    assert result.err.count("images have the name") == 10
    assert "ocistream: 2 more names belong to several images each\n" in result.err


def test_an_image_that_is_selected_by_its_digest_is_not_reported(
    images: list[Descriptor], layout: Layout, tmp_path: Path
) -> None:
    result = succeed("copy", f"oci:{layout.path}:{images[0]['digest']}", f"oci-archive:{tmp_path / 'out.tar'}")
    assert "have the name" not in result.err


def test_the_image_ids_of_a_docker_archive_are_reported(
    images: list[Descriptor], layout: Layout, tmp_path: Path
) -> None:
    path = tmp_path / "saved.tar"
    both = [saved(layout, image, "app:1") for image in images]
    path.write_bytes(archive_of(of_docker(both)))
    for command in ("verify", "inspect"):
        result = succeed(command, path)
        shown = ", ".join(f"sha256:{hex_of(image.config)}" for image in both)
        assert f"2 images have the name 'docker.io/library/app:1': {shown}; {READERS}" in result.err
