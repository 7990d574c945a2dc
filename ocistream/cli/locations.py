"""Names as they are typed: what is a path and no image, and what is an image although it looks like something else.

`app.tar`, `layout` and `localhost:5000` are images of Docker Hub by the rules of names, and hardly ever meant as such.
Where the run then fails, that is said in the line of what to do.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from ocistream.errors import InvalidNameError
from ocistream.notices import add_failure_hint
from ocistream.oci.reference import parse_reference, printable
from ocistream.stores import parse_location

if TYPE_CHECKING:
    from ocistream.oci.reference import Reference
    from ocistream.stores import Location

__all__ = ["parse_image", "parse_location_argument"]

#: Words before a colon that say that this is no image in a registry, and how a path begins.
_NOT_AN_IMAGE: Final = re.compile(r"(?:oci|oci-archive|docker-archive):|-\Z|\.{0,2}/|~/")
_ARCHIVE_SUFFIX: Final = re.compile(r"\.(?:tar|tgz|tzst|zip|tar\.[a-z0-9]+)\Z")
#: `HOST[:PORT]` alone. There is no repository with a dot in Docker Hub's library.
_HOST: Final = re.compile(r"(?:localhost|[^.:/@]+(?:\.[^.:/@]+)+)(?::[0-9]+)?\Z")


def parse_image(text: str, hint: str) -> Reference:
    """Parse an image's name where nothing but a registry's can stand; `instead` is what to do with a file.

    Raises:
        InvalidNameError: it is malformed, or a path.
    """
    if not text:
        msg = "malformed image name '': there is nothing in it"
        raise InvalidNameError(msg, hint="is the variable empty that it was to come from?")
    if _NOT_AN_IMAGE.match(text):
        msg = f"{printable(text)!r} is a file or directory, and no image in a registry"
        raise InvalidNameError(msg, hint=hint)
    reference = parse_reference(text)
    _advise_ambiguous_name(text, reference)
    return reference


def parse_location_argument(text: str) -> Location:
    """Parse an end, and keep it in mind if it is an image only by the rules.

    Raises:
        InvalidNameError, UnsupportedError: as `parse_end` has it.
    """
    end = parse_location(text)
    if end.reference is not None:
        _advise_ambiguous_name(text, end.reference, may_be_path=end.is_repository)
    return end


def _advise_ambiguous_name(text: str, reference: Reference, *, may_be_path: bool = False) -> None:
    if "/" in text:
        return
    taken = f"{printable(text)} is taken for the image {reference.name}"
    if _ARCHIVE_SUFFIX.search(text) or (may_be_path and os.path.exists(text)):  # noqa: PTH110 - it never raises
        add_failure_hint(f"{taken}: the file or directory is written ./{printable(text)}")
    elif _HOST.match(text):
        add_failure_hint(f"{taken}: one in that registry is written {printable(text)}/REPOSITORY[:TAG]")
