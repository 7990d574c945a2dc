"""The remote command: it can be stopped before it is started."""

from __future__ import annotations

import threading

import pytest

from ocistream.errors import NotFoundError
from ocistream.remote.command import RemoteCommand


@pytest.fixture
def far() -> RemoteCommand:
    """Return one that is not started, and does not tell what is said."""
    return RemoteCommand(lambda _: None, threading.Event())


def test_what_was_not_started_is_abandoned_without_a_word(far: RemoteCommand) -> None:
    far.stop()
    with pytest.raises(NotFoundError, match="cannot run no-such-command: no such command"):
        far.start(["no-such-command"])
    far.stop()
