"""The far side's command: whoever is stopped while it is started can end it."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest

from ocistream.errors import NotFoundError
from ocistream.remote.command import RemoteCommand


@pytest.fixture
def far() -> RemoteCommand:
    """Return one that is not started, and does not tell what is said."""
    return RemoteCommand(lambda _: None, threading.Event())


def test_no_signal_comes_out_between_the_process_and_its_name(
    far: RemoteCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python runs handlers in the main thread, and their exceptions come out there (docs.python.org, signal).
    threads = []
    start = subprocess.Popen.__init__

    def noted(*args: Any, **options: Any) -> None:
        threads.append(threading.current_thread())
        start(*args, **options)

    monkeypatch.setattr("subprocess.Popen.__init__", noted)
    far.start([sys.executable, "-c", "import time; time.sleep(600)"])
    far.stop(immediately=True)
    assert threading.main_thread() not in threads
    assert len(threads) == 1
    process = far._process  # noqa: SLF001 - nobody but a test wants to know
    assert process.returncode is not None
    assert process.stdout
    process.stdout.close()


def test_what_was_not_started_is_abandoned_without_a_word(far: RemoteCommand) -> None:
    far.stop()
    with pytest.raises(NotFoundError, match="there is no such command"):
        far.start(["no-such-command"])
    far.stop()
