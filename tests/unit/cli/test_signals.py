"""Where the first signal comes out, and that it comes out once: in this process, with real signals."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType
from typing import Self

import pytest

from ocistream import open_uploads
from ocistream.cli.signals import InterruptibleEvent, SignalHandler
from ocistream.errors import TerminatedError
from ocistream.notices import set_listener
from ocistream.streams.workers import run_each, run_in_thread, wait_for_threads
from tests.cli import assertions

pytestmark = pytest.mark.usefixtures("interruptible")


def settle(_: BaseException) -> None:
    pytest.fail("nobody was impatient")


class Asked:
    """One that listens, and how often this thread was asked to raise what has come."""

    def __init__(self) -> None:
        self.interruption = SignalHandler(settle)
        self.times = 0

    def __enter__(self) -> Self:
        self.interruption.install()
        self._strike = signal.getsignal(signal.SIGURG)
        signal.signal(signal.SIGURG, self._counted)
        return self

    def __exit__(self, *_: object) -> None:
        self.interruption.restore()

    def _counted(self, number: int, frame: FrameType | None) -> None:
        self.times += 1
        assert callable(self._strike)
        self._strike(number, frame)

    def more(self, times: int = 3) -> None:
        """Wait until this thread was asked some more times."""
        until = self.times + times
        assertions.wait_for(lambda: self.times >= until)


@pytest.fixture
def asked() -> Iterator[Asked]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGURG)]
    with Asked() as asked:
        yield asked
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGURG)]
    assert after == before


def of_module(name: str, work: Callable[[], None]) -> Callable[[], None]:
    """Give a function that does some work as if another module had it."""
    return FunctionType(_work_it.__code__, {"__name__": name, "_work": work})


def _work_it() -> None:
    _work()


def _work() -> None:
    """Stand for the work, for which `of_module` puts another in its place."""


def test_nothing_is_raised_where_a_lock_may_be_left_behind(asked: Asked) -> None:
    passed = []

    def within() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        asked.more()
        passed.append(True)

    def work() -> None:
        of_module("threading", within)()
        asked.more()

    asked.interruption.enable()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert passed == [True]


def test_what_clears_up_is_let_finish_and_is_not_waited_for_without_end(asked: Asked) -> None:
    cleared = []

    def fail() -> None:
        try:
            int("none")
        except ValueError:
            os.kill(os.getpid(), signal.SIGTERM)
            asked.more()
            cleared.append(True)
            asked.more(10_000)

    asked.interruption.enable()
    with pytest.raises(TerminatedError) as raised:
        fail()
    assert cleared == [True]
    assert raised.value.exit_code == 143


def test_it_is_raised_once_and_others_are_none(asked: Asked) -> None:
    asked.interruption.enable()
    with pytest.raises(TerminatedError) as raised:
        _strike_until_raised(asked, signal.SIGHUP)
    assert raised.value.exit_code == 129
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
        InterruptibleEvent().wait(0.05)
    assert asked.interruption.first_signal == signal.SIGHUP


def test_one_that_came_out_where_nothing_can_be_raised_comes_again(asked: Asked) -> None:
    asked.interruption.enable()
    with pytest.raises(KeyboardInterrupt) as raised:
        _strike_until_raised(asked, signal.SIGINT)
    asked.interruption.raise_again(ValueError("another"))
    InterruptibleEvent().wait(0)
    asked.interruption.raise_again(raised.value)
    with pytest.raises(KeyboardInterrupt):
        asked.more()


def _allow(asked: Asked) -> None:
    asked.interruption.enable()
    asked.more(1000)


def _strike_until_raised(asked: Asked, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    asked.more(1000)


def test_nothing_is_raised_before_it_is_allowed_nor_behind_the_end(asked: Asked) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assertions.wait_for(lambda: asked.interruption.first_signal)
    InterruptibleEvent().wait(0)
    assert asked.times == 0
    with pytest.raises(KeyboardInterrupt):
        _allow(asked)
    assert isinstance(asked.interruption.build_error(), KeyboardInterrupt)


def test_it_comes_out_of_a_wait_that_would_be_long(asked: Asked) -> None:
    def wait() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        InterruptibleEvent().wait(1000)

    asked.interruption.enable()
    with pytest.raises(KeyboardInterrupt):
        of_module("threading", wait)()


def test_a_wait_in_another_thread_is_left_whole(asked: Asked) -> None:
    stop, results = InterruptibleEvent(), []
    thread = threading.Thread(target=lambda: results.append(stop.wait(1000)))
    thread.start()

    def within() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        # The other one looks at it meanwhile.
        asked.more(30)

    def work() -> None:
        of_module("threading", within)()
        asked.more()

    asked.interruption.enable()
    with pytest.raises(KeyboardInterrupt):
        work()
    stop.set()
    thread.join()
    assert results == [True]


def test_threads_get_to_clear_up_behind_an_interrupted_wait_for_them(asked: Asked) -> None:
    stop, cleared = InterruptibleEvent(), []
    barrier = threading.Barrier(2)

    def work(_: int) -> None:
        if barrier.wait() == 0:
            os.kill(os.getpid(), signal.SIGINT)
        threading.Event.wait(stop)
        # It takes a moment.
        hashlib.sha256(bytes(20_000_000)).digest()
        cleared.append(True)

    asked.interruption.enable()
    with pytest.raises(KeyboardInterrupt):
        run_each(work, range(2), jobs=2, cancelled=stop)
    assert cleared == [True, True]


def test_threads_that_are_done_before_all_of_them_have_begun_do_not_hide_it(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def start_and_wait(thread: threading.Thread) -> None:
        # As where this thread does not get to run for a while. It is not interrupted in `join`.
        start(thread)
        thread.join()

    def strike(number: int, frame: FrameType | None) -> None:
        """Ask for nothing meanwhile."""

    def work(number: int) -> None:
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
            assertions.wait_for(lambda: asked.interruption.first_signal is not None)

    monkeypatch.setattr(threading.Thread, "start", start_and_wait)
    signal.signal(signal.SIGURG, strike)
    asked.interruption.enable()
    with pytest.raises(KeyboardInterrupt):
        run_each(work, range(2), jobs=2, cancelled=InterruptibleEvent())


def test_who_asks_again_is_not_kept_waiting_by_what_does_not_end() -> None:
    program = """
import os, time
from ocistream.cli.signals import InterruptibleEvent, SignalHandler

handler = SignalHandler(lambda error: os.write(2, repr(error).encode()))
handler.install()
handler.enable()
try:
    print("waits", flush=True)
    InterruptibleEvent().wait()
finally:
    print("clears up", flush=True)
    while True:
        time.sleep(0.01)
"""
    line = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "clears up\n"

        def is_over() -> bool:
            process.send_signal(signal.SIGINT)
            return process.poll() is not None

        assertions.wait_for(is_over)
        assert process.returncode == 143
        assert process.communicate()[1] == "TerminatedError('terminated')"


class TestWorkApart:
    """What `apart` does in a thread of its own is not torn by a signal, and has time to end in order."""

    def test_its_result_and_its_failure_are_the_callers(self) -> None:
        cancelled = InterruptibleEvent()
        assert run_in_thread(lambda: threading.current_thread() is threading.main_thread(), cancelled) is False

        def fail() -> None:
            raise TerminatedError

        with pytest.raises(TerminatedError):
            run_in_thread(fail, cancelled)
        assert not cancelled.is_set()

    def test_a_signal_cancels_it_and_waits_for_its_end(self, asked: Asked) -> None:
        cancelled, ended = InterruptibleEvent(), threading.Event()

        def work() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            cancelled.wait()
            ended.set()

        asked.interruption.enable()
        with pytest.raises(TerminatedError):
            run_in_thread(work, cancelled)
        assert ended.is_set()

    def test_a_signal_that_comes_when_it_has_ended_counts(self, asked: Asked) -> None:
        def work() -> None:
            os.kill(os.getpid(), signal.SIGINT)

        asked.interruption.enable()
        with pytest.raises(KeyboardInterrupt):
            run_in_thread(work, InterruptibleEvent())

    @pytest.mark.parametrize("can_end", [True, False])
    def test_work_that_does_not_end_is_given_up_later_while_an_upload_can_be_ended(
        self, monkeypatch: pytest.MonkeyPatch, can_end: bool
    ) -> None:
        said: list[str] = []

        def hear(message: str, *, level: int) -> None:
            assert level == 0
            said.append(message)

        set_listener(hear)
        monkeypatch.setattr("ocistream.streams.workers._CLEANUP_TIMEOUT", 0.1)
        monkeypatch.setattr("ocistream.streams.workers._NOTICE_DELAY", 0.2)
        monkeypatch.setattr("ocistream.streams.workers._UPLOAD_CLEANUP_TIMEOUT", 0.6)
        open_uploads.reset()
        left = open_uploads.OpenUpload("registry.test", lambda: True, can_end=lambda: can_end)
        for_ever = threading.Event()
        thread = threading.Thread(target=for_ever.wait, daemon=True)
        thread.start()
        wait_for_threads([thread], threading.Event())
        assert thread.is_alive()
        for_ever.set()
        assert bool(said) == can_end
        left.remove()
