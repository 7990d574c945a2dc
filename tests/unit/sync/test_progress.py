"""All transfers of a sync, shown as one: the total is that of all images, whatever becomes of them."""

from __future__ import annotations

from os import terminal_size
from typing import Any

import pytest

from ocistream.cli.progress import Progress
from ocistream.cli.progress_bar import render_lines
from ocistream.oci.descriptor import Descriptor
from ocistream.sync.progress import ImageProgress, SyncProgress

LAYER = "application/vnd.oci.image.layer.v1.tar"


def blob(number: int, size: int) -> Descriptor:
    return Descriptor(LAYER, f"sha256:{number:064x}", size)


class Image:
    """As much of a graph as is looked at."""

    def __init__(self, *blobs: Descriptor) -> None:
        self.blobs = blobs
        self.size = sum(b.size for b in blobs)
        self.roots = ()


@pytest.fixture
def shown() -> Progress:
    return Progress()


@pytest.fixture
def whole(shown: Progress) -> SyncProgress:
    found: Any = shown
    return SyncProgress(found)


def move(whole: SyncProgress, image: Any, *, only: int | None = None, known: bool = True) -> None:
    one = ImageProgress(whole, *((image.size, len(image.blobs)) if known else (0, 0)))
    one.planned(image)
    for part in image.blobs[:only]:
        one.advance(part.size, part)
        one.done(part, "copied")
    one.close()


def test_the_total_is_there_before_the_first_byte(whole: SyncProgress, shown: Progress) -> None:
    images = [Image(blob(1, 100), blob(2, 200)), Image(blob(3, 700))]
    whole.add_expected(1000, 3)
    assert (shown.snapshot().total, shown.snapshot().blob_count) == (1000, 3)
    for image in images:
        move(whole, image)
        assert (shown.snapshot().total, shown.snapshot().blob_count) == (1000, 3)
    assert (shown.snapshot().moved, shown.snapshot().done_count) == (1000, 3)


def test_what_failed_is_not_waited_for(whole: SyncProgress, shown: Progress) -> None:
    failing, other = Image(blob(1, 100), blob(2, 200)), Image(blob(3, 700))
    whole.add_expected(1000, 3)
    move(whole, failing, only=1)
    assert (shown.snapshot().total, shown.snapshot().blob_count) == (800, 2)
    move(whole, other)
    assert (shown.snapshot().moved, shown.snapshot().total) == (800, 800)


def test_an_image_that_nobody_had_looked_into_adds_to_it(whole: SyncProgress, shown: Progress) -> None:
    whole.add_expected(0, 0)
    assert shown.snapshot().total is None
    move(whole, Image(blob(1, 100)), known=False)
    move(whole, Image(blob(2, 50)), known=False)
    assert (shown.snapshot().moved, shown.snapshot().total, shown.snapshot().blob_count) == (150, 150, 2)


def test_the_bar_says_how_many_images_are_done(whole: SyncProgress, shown: Progress) -> None:
    whole.add_expected(1000, 3)
    move(whole, Image(blob(1, 100), blob(2, 200)))
    whole.report_images(1, 2)
    assert render_lines(shown.snapshot(), terminal_size((100, 24)))[0] == "2 of 3 blobs: 2 copied, 1 of 2 images"
