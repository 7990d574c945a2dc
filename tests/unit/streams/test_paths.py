"""Checks of a path: whether something exists there, of which kind, or an ocistream error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ocistream.errors import LocalDiskError, UsageError
from ocistream.streams import paths

EXAMINING: list[Callable[[Path], object]] = [
    paths.exists,
    paths.is_directory,
    paths.is_file,
    paths.is_link,
    paths.is_special,
    paths.status,
]


def test_each_kind_is_distinguished(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("gone")
    told = {
        name: [examine(tmp_path / name) for examine in EXAMINING[:-1]]
        for name in ("", "file", "fifo", "link", "dangling", "gone", "file/below")
    }
    #: exists, is_directory, is_file, is_link, is_special
    assert told == {
        "": [True, True, False, False, False],
        "file": [True, False, True, False, False],
        "fifo": [True, False, False, False, True],
        "link": [True, False, True, True, False],
        "dangling": [False, False, False, True, False],
        "gone": [False, False, False, False, False],
        "file/below": [False, False, False, False, False],
    }
    assert paths.exists(tmp_path / "dangling", follow=False)


@pytest.mark.parametrize("examine", EXAMINING)
@pytest.mark.parametrize("number", [errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO])
def test_a_path_that_cannot_be_examined_is_a_disk_error(
    monkeypatch: pytest.MonkeyPatch, examine: Callable[[Path], object], number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    refused = pytest.raises(LocalDiskError, match=f"^cannot access /somewhere: {os.strerror(number)}")
    with refused, monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        examine(Path("/somewhere"))


def test_a_path_with_a_nul_is_malformed() -> None:
    with pytest.raises(UsageError, match="malformed path"):
        paths.exists("a\0b")


def test_a_text_that_is_too_long_for_a_path_does_not_exist(tmp_path: Path) -> None:
    assert not paths.is_existing_path("a" * 300)
    assert paths.is_existing_path(str(tmp_path))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(LocalDiskError):
        paths.is_existing_path(str(tmp_path / "loop"))


def test_a_path_in_a_deleted_directory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.real_path(tmp_path / "x" / ".." / "y") == tmp_path.resolve() / "y"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(LocalDiskError, match="the working directory was deleted"):
        paths.real_path("x")
