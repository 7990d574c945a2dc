"""Numbers as people write them on a command line: digits, and nothing else that Python would take for some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.reference import printable

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Whole"]

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
