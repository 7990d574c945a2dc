"""Parse values of arguments and options: image names, locations, numbers, paths, sizes and durations.

The functions reject text that Python's own conversions accept, such as `1_000` or `nan`.
"""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.cli.standard_streams import result_on_stdout_error
from ocistream.errors import InvalidNameError, LocalDiskError, UsageError
from ocistream.locations import (
    check_not_archive,
    check_repository,
    check_transport,
    is_archive_name,
    parse_location,
)
from ocistream.notices import add_failure_hint
from ocistream.oci.reference import DEFAULT_REGISTRY, parse_reference, printable
from ocistream.sizes import parse_size
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.locations import Location
    from ocistream.oci.reference import Reference

#: Transports before a colon that are not registries, and the beginnings of paths.
_NOT_AN_IMAGE: Final = re.compile(r"(?:oci|oci-archive|docker-archive):|-\Z|\.{0,2}/|~/")
#: `HOST` alone. No repository in Docker Hub's library has a dot in its name.
_HOST: Final = re.compile(r"[^.:/@]+(?:\.[^.:/@]+)+\Z")
#: The beginning of a name of Docker Hub that was written in full.
_HUB_HOST: Final = re.compile(r"docker://|[^/]*\.[^/]*/")


def parse_image(text: str, hint: str) -> Reference:
    """Parse an image name where only a registry's image is allowed; `hint` says how to use a file instead."""
    if _NOT_AN_IMAGE.match(text) or is_archive_name(text):
        raise InvalidNameError(describe_path(text), hint=hint)
    return parse_image_name(text)


def describe_missing_key(keys: Sequence[str]) -> str | None:
    """Return a hint if an argument is missing, and the KEY of --require-signature may be that argument; or None."""
    missing = next((key for key in keys if not paths.exists(key)), None)
    if missing is None:
        return None
    shown = printable(missing)
    return f"{shown} was read as the KEY of --require-signature: write --require-signature KEY {shown}"


def describe_path(text: str) -> str:
    """Return the message for a path, or another location outside of registries, in place of an image name."""
    kind = {"oci": "a layout", "oci-archive": "an archive", "docker-archive": "an archive"}
    shown = kind.get(text.partition(":")[0] if ":" in text else "", "a path")
    return f"{printable(text)!r} is {shown}, not the name of an image in a registry"


def parse_image_name(text: str) -> Reference:
    """Parse an image name that does not look like a path."""
    if not text:
        msg = "malformed image name '': it is empty"
        raise InvalidNameError(msg, hint="is a shell variable empty?")
    check_repository(text)
    try:
        reference = parse_reference(text)
    except InvalidNameError:
        check_transport(text)
        raise
    check_not_archive(text, reference)
    _advise_ambiguous_name(text, reference, may_be_path=False)
    return reference


def is_path(text: str, *, may_exist: bool) -> bool:
    """Return whether the text of an argument is a path; with `may_exist`, also if it could be an image's name."""
    if _NOT_AN_IMAGE.match(text) is not None or is_archive_name(text):
        return True
    try:
        return may_exist and paths.is_existing_path(text)
    except LocalDiskError:
        # A name does not have to be a path that this user may read.
        return False


def parse_location_argument(text: str, *, is_remote: bool = False, is_destination: bool = False) -> Location:
    """Parse a location, and prepare a hint if it is an image name without a host."""
    location = parse_location(text, is_remote=is_remote)
    if location.reference is not None:
        may_be_path = not is_remote
        _advise_ambiguous_name(text, location.reference, may_be_path=may_be_path, is_destination=is_destination)
    return location


def describe_layout_image(text: str) -> str | None:
    """Return what to write for an image of an existing layout, if `oci:` was forgotten, as in `layout:app`; or None."""
    path, _, name = text.partition(":")
    with contextlib.suppress(LocalDiskError):
        if name and not text.startswith("docker://") and paths.is_file(Path(path) / "index.json"):
            return f"for the image {printable(name)} of the layout {printable(path)}, write oci:{printable(text)}"
    return None


def _advise_ambiguous_name(text: str, reference: Reference, *, may_be_path: bool, is_destination: bool = False) -> None:
    """Add a hint to a later failure if an image name without a host means an image of Docker Hub.

    By the naming rules it does, and scripts use such names; so it is not an error.
    """
    shown = printable(text)
    if _HOST.match(text):
        no_file = f"no file is called {shown}; " if may_be_path else ""
        meaning = f"{shown} means the image {reference.name}"
        advice = f": write {shown}/REPOSITORY[:TAG] for an image in that registry"
        if is_destination:
            advice = f"; for an image in a registry of that name, write {shown}/REPOSITORY[:TAG]"
            advice += f"; for a new file, write ./{shown} or oci-archive:{shown}"
        add_failure_hint(no_file + meaning + advice)
    elif reference.registry == DEFAULT_REGISTRY and not _HUB_HOST.match(text):
        may_be_path = may_be_path and reference.digest is None
        hint = f"write HOST/{shown} for another registry"
        if layout_hint := describe_layout_image(text):
            hint = layout_hint
        elif may_be_path:
            new_path = f", ./{shown}/ for a directory, or ./{shown} for a file"
            hint += new_path if is_destination else f", or ./{shown} for a path"
        if may_be_path and ":" not in text:
            # Probably the name of a file.
            prefix = f"no file is called {shown}, so it means {reference}"
            add_failure_hint(hint, about=DEFAULT_REGISTRY, prefix=prefix)
        else:
            add_failure_hint(f"{shown} means {reference}; {hint}", about=DEFAULT_REGISTRY)


#: Digits of 2^63 - 1, the largest possible size of a file.
_MAX_DIGITS: Final = 19
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd]?)\Z", re.ASCII)
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


class WholeNumber(click.IntRange):
    """A whole number in a range. `int` would also take `1_000`, `+5`, ` 5` and digits of any script."""

    def _describe_range(self) -> str:
        """Return the range as --help shows it; "" without a maximum."""
        return "" if self.max is None else f"{self.min} to {self.max}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. An error shows the value, shortened."""
        digits = str(value).removeprefix("-")
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS
        lowest, highest = self.min or 0, math.inf if self.max is None else self.max
        if not is_number or not lowest <= int(value) <= highest:
            bounds = f"of at least {lowest}" if self.max is None else f"from {lowest} to {highest}"
            self.fail(f"{printable(str(value), 40)!r} is not a whole number {bounds}", param, ctx)
        return int(value)


class PositiveNumber(click.FloatRange):
    """A number above 0 with a maximum. `nan`, which click accepts, is an error."""

    def _describe_range(self) -> str:
        """Return the range as --help shows it."""
        return f"at most {self.max:g}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. An error shows the value, shortened."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number <= (self.max or math.inf):
            bounds = f"above 0, at most {self.max:g}, without a unit"
            self.fail(f"{printable(str(value), 40)!r} is not a number {bounds}", param, ctx)
        return number


class FilePath(click.Path):
    """The text of a path, or of an image in its place. The shell completes file names; the file need not exist.

    With `path_type`, the value is a path, and an empty one is an error: `Path("")` is the current directory.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text as it is, or the path."""
        if self.type is None:
            return value
        if value == "" and param is not None:
            raise empty_value_error(param.metavar or "" if isinstance(param, click.Argument) else param.opts[-1])
        return super().convert(value, param, ctx)


def empty_value_error(name: str) -> UsageError:
    """Return the error for an option or argument whose value is "" and not a default."""
    return UsageError(f"{name} is empty", hint="is a shell variable unset?")


class ResultPath(FilePath):
    """The path of --result; stdout is an error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. A `Path` drops the `./` of a file called `./-`, so the text is checked."""
        if value == "-":
            raise result_on_stdout_error(value)
        return super().convert(value, param, ctx)


def parse_max_size(text: str) -> int:
    """Return the bytes of --max-size; 0 is allowed."""
    size = parse_size(text, fractions=True)
    if size is None:
        msg = f"--max-size {printable(text, 40)!r} is not a size"
        raise UsageError(msg, hint="such as 500M or 20G")
    return size


def parse_age(text: str) -> float:
    """Return the seconds of --older-than, in seconds, minutes, hours or days: `90`, `30m`, `12h`, `7d`."""
    match = _DURATION.match(text)
    if match is None:
        msg = f"--older-than {printable(text, 40)!r} is not a time"
        raise UsageError(msg, hint="such as 90 (seconds), 30m, 12h or 7d")
    return float(int(match[1]) * _UNIT_SECONDS[match[2]])
