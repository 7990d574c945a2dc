"""Lists of images in files, as k3s and RKE2 publish them (`pull --images`): one image per line, # for comments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.cli.parameter_types import parse_image
from ocistream.errors import InvalidNameError, UsageError
from ocistream.locations import Location
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from ocistream.cli.context import CommandContext

__all__ = ["read_image_list"]


def read_image_list(context: CommandContext, path: str, hint: str) -> list[Location]:
    """Return the images of a list in a file or on stdin (`-`); `hint` says how to use a file in place of an image.

    Raises:
        UsageError: a line is malformed, the list is empty or too long, or stdin is unusable.
        NotFoundError, LocalDiskError: the file cannot be read.
    """
    label = "the list on stdin" if path == "-" else printable(path, 1024)
    images: list[Location] = []
    with context.open_list(path) as file:
        number = 0
        while raw := file.readline(limits.MAX_IMAGE_LIST_LINE + 1):
            number += 1
            if len(raw) > limits.MAX_IMAGE_LIST_LINE or number > limits.MAX_IMAGE_LIST_LINES:
                msg = f"{label}, line {number}: this is not a list of images"
                raise UsageError(msg, hint="write one image per line")
            text = _parse_line(raw, f"{label}, line {number}", first=number == 1)
            if text:
                images.append(_parse_image(text, f"{label}, line {number}", hint))
    if not images:
        msg = f"{label} has no images"
        raise UsageError(msg, hint="write one image per line")
    return images


def _parse_line(raw: bytes, where: str, *, first: bool) -> str:
    """Return the line without its comment; "" if nothing is left."""
    try:
        line = raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        msg = f"{where}: this is not text in UTF-8"
        raise UsageError(msg, hint="write one image per line") from error
    return line.partition("#")[0].strip()


def _parse_image(text: str, where: str, hint: str) -> Location:
    if len(text.split()) > 1:
        msg = f"{where}: {printable(text)!r} is more than one word"
        raise InvalidNameError(msg, hint="write one image per line")
    try:
        return Location("docker", text, reference=parse_image(text, hint))
    except InvalidNameError as error:
        raise InvalidNameError(f"{where}: {error.message}", hint=error.hint) from error
