"""Find the `OCISTREAM_*` variables that are set and have no effect: misspelt ones, and options without a variable.

The value of a variable is never printed: it may be a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocistream.cli.defaults import PREFIX, REFUSED, all_options, variable_of
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ocistream.cli.console import Console
    from ocistream.config.toml_files import Table

__all__ = ["named_by_registries", "tell_unused"]

_CREDENTIALS: Final = frozenset(
    f"{PREFIX}{side}{word}" for side in ("", "SRC_", "DEST_") for word in ("USERNAME", "PASSWORD")
)
#: Variables of the project's tests.
_OF_TESTS: Final = frozenset({f"{PREFIX}FUZZ_SEED", f"{PREFIX}TEST_MACHINE"})
#: Kubernetes sets these in each container for a Service whose name begins with "ocistream".
_OF_KUBERNETES: Final = re.compile(
    rf"{PREFIX}(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z"
)


def tell_unused(console: Console, env: Mapping[str, str], used: Collection[str] = ()) -> None:
    """Print one line for each variable that is set and has no effect; `used` are variables that a file names."""
    names = [name for name, value in env.items() if name.startswith(PREFIX) and value]
    for line in _unused(sorted(names), used):
        console.note(line)


def named_by_registries(table: Table | None) -> set[str]:
    """Return the variables that `credentials = "env:PREFIX"` names in the tables of registries."""
    # A malformed table is reported by the commands that need it.
    registries = None if table is None else table.values.get("registry")
    tables = registries.values() if isinstance(registries, dict) else ()
    sources = [values.get("credentials") for values in tables if isinstance(values, dict)]
    prefixes = [text.removeprefix("env:") for text in sources if isinstance(text, str) and text.startswith("env:")]
    return {f"{prefix}_{word}" for prefix in prefixes for word in ("USERNAME", "PASSWORD")}


def _unused(names: Collection[str], used: Collection[str]) -> Iterator[str]:
    ours = _CREDENTIALS | _OF_TESTS | {variable_of("config"), *used}
    left = [name for name in names if name not in ours and not _OF_KUBERNETES.match(name)]
    if not left:
        return
    refused = {variable_of(key): why for key, why in REFUSED.items()}
    known = {variable_of(key) for key in all_options()}
    for name in left:
        if name in refused:
            yield f"the variable {name} has no effect: {refused[name]}"
        elif name not in known:
            yield f"the variable {printable(name)} has no effect: {_nearest(name, {*known, *ours} - _OF_TESTS)}"


def _nearest(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    # The common beginning would make any two of them alike.
    words = sorted(one.removeprefix(PREFIX) for one in known)
    close = get_close_matches(name.removeprefix(PREFIX).upper(), words, n=1, cutoff=0.7)
    return f"did you mean {PREFIX}{close[0]}?" if close else "ocistream does not know it"
