"""The outcome of one command with one fault at one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from tests.matrix.command_runs import Flow, Scene, Stage
from tests.matrix.request_faults import RETRY_AFTER, NotApplicable, Trouble
from tests.matrix.request_rows import Step, steps_of
from tests.matrix.rules import ABSORBED
from tests.runner import Result

#: Options for stalled connections: the timeout in seconds, and several retries, because on a busy machine a response in
#: transit may take as long as the timeout.
_STALL: Final = ("--stall-timeout=0.2", "--retries=3")


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """An undisturbed run of a flow: its rows, and the visible state before and afterwards."""

    steps: Sequence[Step]
    before: Mapping[str, str]
    after: Mapping[str, str]


def undisturbed(stage: Stage, flow: Flow) -> Undisturbed:
    """Run a flow without faults."""
    with stage.scene(flow) as scene:
        before = flow.seen(scene)
        ran = scene.run()
        assert ran.code == 0, ran.err
        after = flow.seen(scene)
        assert after != before
        assert set(ran.connected.values()) == {1}, "a registry did not get exactly one connection"
        steps = [
            step
            for name in flow.registries
            for step in steps_of(name, [request for who, request in scene.requests if who == name], stage.contents.kind)
        ]
        order = [(name, stage.contents.kind(request)) for name, request in scene.requests]
    steps.sort(key=lambda step: order.index((step.registry, step.kind)))
    return Undisturbed([step for step in steps if flow.rows(step)], before, after)


def outcome(stage: Stage, flow: Flow, peace: Undisturbed, step: Step, trouble: Trouble, times: int | None) -> str:
    """Return the outcome: absorbed, or the exit code with nothing visible; or a sentence that says what is wrong."""
    means = trouble.means(step)
    if isinstance(means, NotApplicable):
        return ""
    with stage.scene(flow) as scene:
        astray = scene.disturb(step, means, times)
        options = _STALL if trouble.sort == "silent" else ()
        ran = scene.run(*options, astray=astray)
        if wrong := _wrong(scene, peace, trouble, ran) or _untouched(scene, astray is not None, ran, step):
            return f"exit {ran.code}: {wrong}"
        if ran.code == 0:
            return ABSORBED
        scene.calm()
        again = scene.run()
        if again.code != 0 or flow.seen(scene) != peace.after:
            return f"exit {ran.code}, and then the same command without the fault: {again.code}, {again.err}"
        return str(ran.code)


def _wrong(scene: Scene, peace: Undisturbed, trouble: Trouble, ran: Result) -> str | None:
    """Return which promise is broken, or None."""
    try:
        seen = scene.flow.seen(scene)
    except AssertionError as error:
        return str(error)
    if seen != (peace.before if ran.code else peace.after):
        return f"{seen} is visible"
    if ran.code:
        return _badly_told(ran)
    if trouble.name == "429 with Retry-After" and max(ran.waits, default=0.0) < RETRY_AFTER:
        return f"the command waited {ran.waits}"
    if "Traceback" in ran.err:
        return ran.err
    return None


def _badly_told(ran: Result) -> str | None:
    """Return what is wrong with the error message, or None."""
    lines = ran.err.splitlines()
    if not 1 <= len(lines) <= 2 or not lines[0].startswith("ocistream: error: ") or "Traceback" in ran.err:
        return f"the error is {ran.err!r}"
    return None


def _untouched(scene: Scene, led: bool, ran: Result, step: Step) -> str | None:
    """Return a sentence if the fault did not happen, because the cell would then test nothing."""
    registry = scene.registries[step.registry]
    if led:
        happened = ran.connected.get(registry.place, 0) >= (2 if registry.last else 1)
    else:
        happened = any(request.fault is not None for request in registry.requests)
    return None if happened else "the fault did not happen"
