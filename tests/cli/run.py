"""The names of tests/runner.py, where the tests of the command line have always found them."""

from tests.runner import (
    TIMEOUT,
    Argument,
    Environment,
    Result,
    command,
    measured,
    measured_pipe,
    ocistream,
    pipe,
    real,
    run,
    run_measured,
    started,
)

__all__ = [
    "TIMEOUT",
    "Argument",
    "Environment",
    "Result",
    "command",
    "measured",
    "measured_pipe",
    "ocistream",
    "pipe",
    "real",
    "run",
    "run_measured",
    "started",
]
