"""Numbers and sizes as people write them on a command line, and nothing else that Python would take for some."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.reference import printable
from ocistream.sizes import parse_size

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Whole", "memory", "number", "rate"]

#: Digits of 2^63 - 1, above which no size of a file is.
_DIGITS: Final = 19


class Whole(click.IntRange):
    """A whole number in a range. `int` would also take `1_000`, `+5`, ` 5` and digits of any script."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read one; what is none is shown, but not all of it."""
        if isinstance(value, str):
            digits = value.removeprefix("-")
            if not digits.isascii() or not digits.isdigit():
                self._fail(value, "is no whole number", param, ctx)
            if len(digits) > _DIGITS:
                self._fail(value, "is too large", param, ctx)
        return super().convert(value, param, ctx)

    def _fail(self, value: str, why: str, param: click.Parameter | None, ctx: click.Context | None) -> NoReturn:
        self.fail(f"{printable(value, 40)!r} {why}", param, ctx)


def number(_context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Take a number that is one: click lets `nan` through.

    Raises:
        UsageError: it is none.
    """
    if value is not None and math.isnan(value):
        msg = f"{parameter.opts[0]} {value} is no number"
        raise UsageError(msg)
    return value


def rate(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Read bytes in a second as curl's --limit-rate has them: `500k`, `10M`, `1G`.

    Raises:
        UsageError: it is no rate.
    """
    if value is None:
        return None
    size = parse_size(value, fractions=True)
    if not size:
        msg = f"--limit-rate {printable(value, 40)!r} is no rate in bytes a second"
        raise UsageError(msg, hint="such as 500k, 10M or 1G")
    return float(size)


def memory(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int:
    """Read the bytes of --memory.

    Raises:
        UsageError: it is no size, or one that is of no use.
    """
    if value is None:
        return limits.AHEAD_MEMORY
    size = parse_size(value, fractions=True)
    if size is None or not limits.MIB <= size <= limits.MAX_AHEAD_MEMORY:
        msg = f"--memory {printable(value, 40)!r} is no size from 1MiB to {limits.MAX_AHEAD_MEMORY >> 30}GiB"
        raise UsageError(msg, hint="write it as in --memory 64MiB")
    return size
