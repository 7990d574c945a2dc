"""Which links another user may have planted. These tests need no root; tests/cli/test_planted_symlinks.py does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ocistream.errors import LocalDiskError
from ocistream.streams.paths import is_untrusted_link, write_target


def stat_of(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("folder_mode", "folder_owner", "link_owner", "expected"),
    [
        (0o41777, 0, 4321, True),
        (0o41777, 4321, 4321, False),  # the owner of the directory may change anything in it
        (0o41777, 0, 1234, False),  # our own link
        (0o40777, 0, 4321, False),  # without the sticky bit any user might replace any entry
        (0o41775, 0, 4321, False),  # not writable by all users
    ],
)
def test_which_links_may_be_planted(
    monkeypatch: pytest.MonkeyPatch, folder_mode: int, folder_owner: int, link_owner: int, expected: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert is_untrusted_link(stat_of(0o120777, link_owner), stat_of(folder_mode, folder_owner)) is expected


def test_a_planted_link_behind_an_own_link_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    planted, own = shared / "planted", tmp_path / "own"
    planted.symlink_to(tmp_path / "victim")
    own.symlink_to(planted)
    assert write_target(own) == tmp_path / "victim"
    monkeypatch.setattr(
        "ocistream.streams.paths.is_untrusted_link", lambda _link, folder: bool(folder.st_mode & stat.S_ISVTX)
    )
    with pytest.raises(LocalDiskError, match="planted: it is another user's symbolic link"):
        write_target(own)
