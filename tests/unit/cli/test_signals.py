"""After the first signal, the main thread waits for a command that ends, or that delays the exit: with real signals."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ocistream import process_exit
from ocistream.cli import signals
from ocistream.cli.signals import CancelEvent, SignalReceivedError, run_until_signal

pytestmark = pytest.mark.usefixtures("interruptible")

#: Seconds after which a blocked test fails.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def no_uploads() -> None:
    process_exit.reset()


def strike(number: int) -> None:
    os.kill(os.getpid(), number)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in signals.TERMINATION_SIGNALS]


def test_a_command_that_ends_after_a_failure_is_waited_for_and_the_handlers_are_restored() -> None:
    before, cancelled, ended = handlers(), CancelEvent(), []

    def command() -> None:
        # The first of several failing blobs does so.
        cancelled.set()
        strike(signal.SIGINT)
        time.sleep(0.3)
        ended.append(True)

    with pytest.raises(SignalReceivedError):
        run_until_signal(command, cancelled, restores_handlers=True)
    assert ended == [True]
    assert handlers() == before


def test_a_command_is_waited_for_while_an_upload_is_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_GRACE", 0.05)
    upload, cancelled, ended = process_exit.OpenUpload("registry.test", lambda: True), CancelEvent(), []

    def command() -> None:
        strike(signal.SIGTERM)
        cancelled.wait(PATIENCE)
        time.sleep(0.5)
        upload.remove()
        ended.append(True)

    with pytest.raises(SignalReceivedError):
        run_until_signal(command, cancelled, restores_handlers=True)
    assert ended == [True]


def test_a_command_is_waited_for_in_a_block_that_delays_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_GRACE", 0.05)
    cancelled, ended = CancelEvent(), []

    def command() -> None:
        with process_exit.delayed_exit(PATIENCE):
            strike(signal.SIGTERM)
            cancelled.wait(PATIENCE)
            time.sleep(0.5)
            ended.append(True)

    with pytest.raises(SignalReceivedError):
        run_until_signal(command, cancelled, restores_handlers=True)
    assert ended == [True]
