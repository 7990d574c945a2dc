"""Check the types of the Python API's arguments, and bring lists and paths to one form.

An argument of a wrong type is a UsageError that names the argument. The value is not shown: it may be a secret.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from ocistream.errors import UsageError
from ocistream.oci.descriptor import Platform
from ocistream.oci.reference import Reference

_OBSERVER_METHODS: Final = ("planned", "advance", "done")


def check_type(name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    """Raise UsageError if the value of an argument has none of the types. True and False are not numbers."""
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise _wrong_type(name, value, expected)


def check_texts(**arguments: object) -> None:
    """Check arguments that are text or None."""
    for name, value in arguments.items():
        if value is not None:
            check_type(name, value, str, "text")


def check_switches(**arguments: object) -> None:
    """Check arguments that are True or False. Text such as "false" must not switch something on."""
    for name, value in arguments.items():
        check_type(name, value, bool, "True or False")


def check_environment(value: object) -> None:
    """Check the variables that replace those of the process."""
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for item in value.items() for text in item):
        raise _wrong_type("environment", value, "a mapping of text to text")


def check_credentials(value: object) -> None:
    """Check the credentials of a client."""
    from ocistream.auth.docker_config import Credential

    expected = "a Credential, a mapping of hosts to Credentials, or a function"
    if value is not None and not callable(value):
        check_type("credentials", value, (Credential, Mapping), expected)
    for host, credential in value.items() if isinstance(value, Mapping) else ():
        check_type("credentials", host, str, expected)
        check_type("credentials", credential, Credential, expected)


def check_call(cancelled: object, observer: object = None) -> None:
    """Check the event that cancels a call, and its observer."""
    if cancelled is not None and not callable(getattr(cancelled, "is_set", None)):
        raise _wrong_type("cancelled", cancelled, "a threading.Event")
    if observer is not None and not all(callable(getattr(observer, method, None)) for method in _OBSERVER_METHODS):
        raise _wrong_type("observer", observer, "an object with the methods planned, advance and done")


def list_texts(name: str, value: object) -> tuple[str, ...]:
    """Return an argument that is one text, or several."""
    return tuple(_text(name, item) for item in _list(name, value, str, "text, or several texts"))


def list_paths(name: str, value: object) -> tuple[str, ...]:
    """Return an argument that is the path of one file, or of several."""
    paths = _list(name, value, (str, os.PathLike), "a path, or several paths")
    return tuple(require_path(name, path) for path in paths)


def list_images(value: object) -> list[str | Reference]:
    """Return the argument of `delete`: one image, or several, each as text or as a `Reference`."""
    images = _list("images", value, (str, Reference), "an image, or several images")
    return [item if isinstance(item, Reference) else _text("images", item) for item in images]


def list_platforms(name: str, value: object) -> tuple[str, ...]:
    """Return an argument that is one platform, or several, each as text or as a `Platform`."""
    platforms = []
    for item in _list(name, value, (str, Platform), "a platform, or several platforms"):
        if isinstance(item, Platform):
            check_texts(os=item.os, architecture=item.architecture, variant=item.variant, os_version=item.os_version)
        platforms.append(str(item) if isinstance(item, Platform) else _text(name, item))
    return tuple(platforms)


def require_path(name: str, value: object) -> str:
    """Return an argument that is a path. Paths are text, not bytes."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise _wrong_type(name, value, "a path")
    if "\0" in path:
        msg = f"`{name}` has a null character, which no path has"
        raise UsageError(msg)
    return path


def optional_path(name: str, value: object) -> str | None:
    """Return an argument that is a path or None."""
    return None if value is None else require_path(name, value)


def _list(name: str, value: object, types: type | tuple[type, ...], expected: str) -> Iterable[object]:
    if isinstance(value, types):
        return [value]
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise _wrong_type(name, value, expected)
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "text")
    return value


def _wrong_type(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"`{name}` must be {expected}, not {type(value).__name__}")
