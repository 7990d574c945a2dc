"""The first signal cancels the command, and the main thread does not wait for a blocked one: with real signals."""

from __future__ import annotations

import os
import signal
import threading
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


def test_the_command_runs_in_another_thread_and_its_failure_is_raised() -> None:
    threads: list[threading.Thread] = []
    run_until_signal(lambda: threads.append(threading.current_thread()), CancelEvent(), restores_handlers=True)
    assert threads != [threading.main_thread()]

    def fail() -> None:
        raise ValueError("reason")

    with pytest.raises(ValueError, match="reason"):
        run_until_signal(fail, CancelEvent(), restores_handlers=True)


@pytest.mark.parametrize("number", signals.TERMINATION_SIGNALS)
def test_the_first_signal_cancels_the_command_and_waits_for_its_end(number: int) -> None:
    before, cancelled, ended = handlers(), CancelEvent(), []

    def command() -> None:
        strike(number)
        ended.append(cancelled.wait(PATIENCE))

    with pytest.raises(SignalReceivedError) as raised:
        run_until_signal(command, cancelled, restores_handlers=True)
    assert (raised.value.number, raised.value.exit_code) == (number, 128 + number)
    assert ended == [True]
    assert handlers() == before


def test_a_command_that_ends_after_a_failure_is_waited_for() -> None:
    cancelled, ended = CancelEvent(), []

    def command() -> None:
        # The first of several failing blobs does so.
        cancelled.set()
        strike(signal.SIGINT)
        time.sleep(0.3)
        ended.append(True)

    with pytest.raises(SignalReceivedError):
        run_until_signal(command, cancelled, restores_handlers=True)
    assert ended == [True]


def test_a_failure_after_a_signal_is_its_consequence() -> None:
    cancelled = CancelEvent()

    def command() -> None:
        strike(signal.SIGTERM)
        cancelled.wait(PATIENCE)
        raise ValueError("broken pipe")

    with pytest.raises(SignalReceivedError):
        run_until_signal(command, cancelled, restores_handlers=True)


def test_a_blocked_command_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_GRACE", 0.05)
    released = CancelEvent()

    def command() -> None:
        strike(signal.SIGTERM)
        released.wait(PATIENCE)

    with pytest.raises(SignalReceivedError):
        run_until_signal(command, CancelEvent(), restores_handlers=True)
    released.set()


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


def test_a_second_signal_ends_the_wait_for_an_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_FORCED_EXIT_AFTER", 0.1)
    monkeypatch.setattr(process_exit, "END_REQUEST_TIMEOUT", PATIENCE)
    process_exit.OpenUpload("registry.test", lambda: True, can_end=lambda: True)
    released, cancelled = threading.Event(), CancelEvent()

    def command() -> None:
        strike(signal.SIGHUP)
        cancelled.wait(PATIENCE)
        while not released.wait(0.05):
            strike(signal.SIGINT)

    with pytest.raises(SignalReceivedError) as raised:
        run_until_signal(command, cancelled, restores_handlers=False)
    released.set()
    assert raised.value.number == signal.SIGHUP
