"""Each request of pull, push and copy, with each fault: absorbed, or the correct exit code with nothing visible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final

import pytest

from tests.matrix.cell_runner import Undisturbed, outcome
from tests.matrix.command_runs import FLOWS, WORKERS, Flow, Stage
from tests.matrix.request_faults import TROUBLES, NotApplicable, Trouble
from tests.matrix.request_rows import Step
from tests.matrix.rules import ABSORBED, expected

#: Faults that are not `everywhere`, and lasting ones, happen to one request in `_SHARE`; in the nightly run, to each.
_SHARE: Final = 8
CASES = [(flow, trouble) for flow in FLOWS for trouble in TROUBLES if flow.meets(trouble)]


@pytest.fixture(scope="session")
def workers() -> Iterator[Executor]:
    """Return threads that run cells in parallel."""
    with ThreadPoolExecutor(WORKERS) as executor:
        yield executor


@pytest.mark.parametrize("every", [_SHARE, pytest.param(1, marks=pytest.mark.nightly)], ids=["some", "all"])
@pytest.mark.parametrize(
    ("flow", "trouble"), [pytest.param(flow, trouble, id=f"{flow.name}, {trouble.name}") for flow, trouble in CASES]
)
def test_each_fault_is_absorbed_or_fails_with_nothing_visible(
    flow: Flow,
    trouble: Trouble,
    every: int,
    stage: Stage,
    peace: Callable[[Flow], Undisturbed],
    workers: Executor,
) -> None:
    undisturbed = peace(flow)
    some = _some(undisturbed.steps, trouble, every)
    steps = undisturbed.steps if trouble.everywhere and not flow.sampled else some
    running: dict[tuple[Step, bool], Future[str]] = {}
    for step in steps:
        for lasting in (False, True) if step in some else (False,):
            if _is_tried(flow, step, trouble, lasting=lasting):
                times = None if lasting else 1
                running[step, lasting] = workers.submit(outcome, stage, flow, undisturbed, step, trouble, times)
    wrong = []
    for (step, lasting), cell in running.items():
        rule, end = expected(step, trouble, lasting=lasting), cell.result()
        if end != rule.ends:
            often = "lasting" if lasting else "once"
            wrong.append(f"{step.registry}: {step.kind}, {often}: {end} instead of {rule.ends}: {rule.why}")
    assert not wrong, "\n".join(wrong)


def _some(steps: Sequence[Step], trouble: Trouble, every: int) -> Sequence[Step]:
    """Return the first request and one in `every`; the choice depends on the fault, so that each request meets some."""
    turn = TROUBLES.index(trouble)
    return [step for number, step in enumerate(steps) if number == 0 or (number + turn) % every == 0]


def _is_tried(flow: Flow, step: Step, trouble: Trouble, *, lasting: bool) -> bool:
    """Return whether a cell is run: a fault that ends the command when it happens once need not be lasting."""
    if isinstance(trouble.means(step), NotApplicable):
        return False
    return not lasting or (flow.endures(trouble) and expected(step, trouble, lasting=False).ends == ABSORBED)


def test_no_cell_is_empty(peace: Callable[[Flow], Undisturbed]) -> None:
    # Each cell has an expected outcome, or a reason why its fault cannot happen.
    for flow, trouble in CASES:
        for step in peace(flow).steps:
            means = trouble.means(step)
            assert means.why if isinstance(means, NotApplicable) else expected(step, trouble, lasting=False).why


def test_each_command_has_its_rows(peace: Callable[[Flow], Undisturbed]) -> None:
    # The rows come from a run, so a missing one would not be noticed.
    kinds = {f"{step.registry} {step.kind}" for flow in FLOWS for step in peace(flow).steps}
    assert kinds >= {
        "source GET token",
        "source GET image by tag",
        "source GET manifest by digest",
        "source GET referrers",
        "source GET config",
        "source GET layer",
        "target HEAD blob",
        "target POST upload",
        "target PATCH upload of a layer",
        "target PUT end of upload",
        "target HEAD manifest by digest",
        "target PUT manifest by digest",
        "target PUT image by tag",
    }
