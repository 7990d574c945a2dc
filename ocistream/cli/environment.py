"""Find the `OCISTREAM_*` variables that are set and have no effect: misspelt ones, and options without a variable.

The value of a variable is never printed: it may be a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocistream.cli.defaults import OPTIONS_WITHOUT_DEFAULT, VARIABLE_PREFIX, load_all_options, variable_name
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ocistream.cli.console import Console
    from ocistream.config.toml_files import TomlTable

__all__ = ["find_credential_variables", "warn_unused_variables"]

_CREDENTIAL_VARIABLES: Final = frozenset(
    f"{VARIABLE_PREFIX}{side}{word}" for side in ("", "SRC_", "DEST_") for word in ("USERNAME", "PASSWORD")
)
#: Variables of the project's tests.
_TEST_VARIABLES: Final = frozenset({f"{VARIABLE_PREFIX}FUZZ_SEED", f"{VARIABLE_PREFIX}TEST_MACHINE"})
#: Kubernetes sets these in each container for a Service whose name begins with "ocistream".
_KUBERNETES_VARIABLE: Final = re.compile(
    rf"{VARIABLE_PREFIX}(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z"
)


def warn_unused_variables(console: Console, env: Mapping[str, str], used: Collection[str] = ()) -> None:
    """Print one line for each variable that is set and has no effect; `used` are variables that a file names."""
    names = [name for name, value in env.items() if name.startswith(VARIABLE_PREFIX) and value]
    for line in _describe_unused(sorted(names), used):
        console.info(line)


def find_credential_variables(table: TomlTable | None) -> set[str]:
    """Return the variables that `credentials = "env:PREFIX"` names in the tables of registries."""
    # A malformed table is reported by the commands that need it.
    registries = None if table is None else table.values.get("registry")
    tables = registries.values() if isinstance(registries, dict) else ()
    sources = [values.get("credentials") for values in tables if isinstance(values, dict)]
    prefixes = [text.removeprefix("env:") for text in sources if isinstance(text, str) and text.startswith("env:")]
    return {f"{prefix}_{word}" for prefix in prefixes for word in ("USERNAME", "PASSWORD")}


def _describe_unused(names: Collection[str], used: Collection[str]) -> Iterator[str]:
    ours = _CREDENTIAL_VARIABLES | _TEST_VARIABLES | {variable_name("config"), *used}
    left = [name for name in names if name not in ours and not _KUBERNETES_VARIABLE.match(name)]
    if not left:
        return
    refused = {variable_name(key): why for key, why in OPTIONS_WITHOUT_DEFAULT.items()}
    known = {variable_name(key) for key in load_all_options()}
    for name in left:
        if name in refused:
            yield f"the variable {name} has no effect: {refused[name]}"
        elif name not in known:
            yield f"the variable {printable(name)} has no effect: {_suggest_variable(name, {*known, *ours} - _TEST_VARIABLES)}"


def _suggest_variable(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    # The common beginning would make any two of them alike.
    words = sorted(one.removeprefix(VARIABLE_PREFIX) for one in known)
    close = get_close_matches(name.removeprefix(VARIABLE_PREFIX).upper(), words, n=1, cutoff=0.7)
    return f"did you mean {VARIABLE_PREFIX}{close[0]}?" if close else "ocistream does not know it"
