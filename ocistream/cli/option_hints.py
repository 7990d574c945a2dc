"""The sides of `copy`, and hints that name the options of a registry as a side or a sync file has them."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from ocistream.api.options import RegistryOptions
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


#: The sides of `copy`: the prefix of their options, and their names.
SIDES: Final = {"src": "source", "dest": "destination"}
#: Options of one registry that a hint may name.
_OPTION_IN_HINT: Final = re.compile(r"--(plain-http|insecure|ca-cert|client-cert|client-key)\b")
#: A command to run now, not a mention of stored logins that are ignored.
_LOGIN_IN_HINT: Final = re.compile(r"(?:^|; `)ocistream login [^\s`]+")
#: The place of the options of one registry.
SYNC_FILE_TABLE: Final = '[registry."HOST"] of the sync file'


def describe_unused_side_options(side: str) -> str | None:
    """Return a note on unused options of a side ("src", "dest") that is not a registry; None if none.

    Defaults are for all runs, and are not mentioned.
    """
    context = click.get_current_context()
    names = [f"{side}_{field.name}" for field in fields(RegistryOptions)]
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if not given:
        return None
    shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    return f"{shown} {'has' if len(given) == 1 else 'have'} no effect: the {SIDES[side]} is not in a registry"


def build_hint_translator(options: RegistryOptions, side: str) -> Callable[[str], str]:
    """Return a function that renames the options in a hint for one side of `copy`; `options` are for both sides."""

    def rename(match: re.Match[str]) -> str:
        if match[1] == "plain-http" and options.plain_http:
            (other,) = set(SIDES) - {side}
            return f"--plain-http (--{other}-plain-http is for the {SIDES[other]} alone)"
        return f"--{side}-{match[1]}"

    return (lambda hint: _OPTION_IN_HINT.sub(rename, hint)) if side else str


def build_sync_hint_translator(options: RegistryOptions) -> Callable[[str], str]:
    """Return a function that replaces the options in a hint by the keys of a sync file's registry table."""

    def named(hint: str) -> str:
        if options.plain_http and "--plain-http" in hint:
            return hint.replace("--plain-http", f"--plain-http (or set plain-http = false in {SYNC_FILE_TABLE})")
        matches = list(_OPTION_IN_HINT.finditer(hint))
        if not matches:
            return hint
        # Insert the table after the last key and its value; the rest of the hint may name other ways.
        end = matches[-1].end()
        end += len(" FILE") if hint.startswith(" FILE", end) else 0
        keys = _OPTION_IN_HINT.sub(r"\1", hint[:end])
        return f"{keys} ({'a key' if len(matches) == 1 else 'keys'} of {SYNC_FILE_TABLE}){hint[end:]}"

    return named


def add_login_options(hint: str, auth_file: Path | None, options: RegistryOptions) -> str:
    """Add the options that the login needs too to a hint that says to log in.

    `auth_file` replaces all stored logins, so that another login has no effect; `options` are those of the registry.
    """
    added = [f"--{name.replace('_', '-')}" for name in ("plain_http", "insecure") if getattr(options, name)]
    added += [
        f"--{name} {shlex.quote(printable(str(path), 1024))}"
        for name, path in (
            ("authfile", auth_file),
            ("ca-cert", options.ca_cert),
            ("client-cert", options.client_cert),
            ("client-key", options.client_key),
        )
        if path
    ]
    return _LOGIN_IN_HINT.sub(lambda match: " ".join([match[0], *added]), hint)
