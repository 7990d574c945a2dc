"""The table of machine faults that pytest prints at the end of a run."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.cli.local_faults.fault_table import COMMANDS

_PROPERTY: Final = "local fault"


def note(request: pytest.FixtureRequest, fault: str, command: str, outcome: object) -> None:
    """Write a cell of the table into a test's report."""
    request.node.user_properties.append((_PROPERTY, (fault, command, str(outcome))))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a line for each fault with a column for each command. A cell is empty if only a nightly run tests it."""
    cells: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == _PROPERTY and report.when == "call":
                    fault, command, said = value
                    cells.setdefault(fault, {})[command] = said if outcome == "passed" else f"FAILED ({said})"
    if not cells:
        return
    terminalreporter.section("faults of this machine: the exit code of each command; unseen: the fault has no effect")
    widths = {
        command: max(len(command), *(len(row.get(command, "")) for row in cells.values())) for command in COMMANDS
    }
    terminalreporter.line(" ".join([" " * 16, *(f"{command:{width}}" for command, width in widths.items())]))
    for fault, row in cells.items():
        line = " ".join([f"{fault:16}", *(f"{row.get(command, ''):{width}}" for command, width in widths.items())])
        terminalreporter.line(line.rstrip())
