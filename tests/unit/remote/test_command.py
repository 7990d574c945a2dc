"""The remote command can be stopped before it is started."""

from __future__ import annotations

import threading

import pytest

from ocistream.errors import NotFoundError
from ocistream.remote.command import RemoteCommand


@pytest.fixture
def far() -> RemoteCommand:
    """Return a command that is not started and discards its messages."""
    return RemoteCommand(lambda _: None, threading.Event())


def test_stopping_a_command_that_was_not_started_does_nothing(far: RemoteCommand) -> None:
    far.stop()
    with pytest.raises(NotFoundError, match="cannot run no-such-command: no such command"):
        far.start(["no-such-command"])
    far.stop()
