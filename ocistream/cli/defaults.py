"""What options are where the command line does not say: by the environment, else by the configuration file.

`OCISTREAM_<OPTION>` comes before `[defaults.COMMAND]`, that before `[defaults]`. Every value goes through what the
option itself goes through, type and callback, before click sees it as a default: so what is wrong is told as ever, with
the place where it stands. This room is imported only where there is something of the kind (`entry.LazyGroup`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from ocistream.cli.console import Console
from ocistream.cli.session import home
from ocistream.config.file import find_configuration, path_in
from ocistream.errors import NotFoundError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ocistream.config.toml_files import Table

__all__ = [
    "PREFIX",
    "REFUSED",
    "Setting",
    "all_options",
    "check_all",
    "defaults_of",
    "option_name",
    "options_of",
    "prepare",
    "variable_of",
]

PREFIX: Final = "OCISTREAM_"
_ONE_RUN: Final = "it is for one run: give the option"
_WHAT_MOVES: Final = "it decides what moves: give the option"
_OUTPUT: Final = "it decides what is printed: give the option"
_LOGIN: Final = "use `ocistream login`, or OCISTREAM_USERNAME and OCISTREAM_PASSWORD"
_AUTH_FILE: Final = 'use the variable REGISTRY_AUTH_FILE, or credentials = "file:PATH" in [registry."HOST"]'
_OF_ONE_REGISTRY: Final = 'it is for one registry: give the option, or set it in [registry."HOST"] of the configuration'
#: Options that have no default of the user's, and why.
REFUSED: Final = {
    "output": _WHAT_MOVES,
    "input": _WHAT_MOVES,
    "image": _WHAT_MOVES,
    "to": _WHAT_MOVES,
    "tags": _WHAT_MOVES,
    "all-tags": _WHAT_MOVES,
    "via": _WHAT_MOVES,
    "have": _WHAT_MOVES,
    "base": _WHAT_MOVES,
    "only": _WHAT_MOVES,
    "among": _WHAT_MOVES,
    "from-byte": _ONE_RUN,
    "split": _ONE_RUN,
    "result": _ONE_RUN,
    "dry-run": _ONE_RUN,
    "shard": _ONE_RUN,
    "access-log": _OUTPUT,
    "json": _OUTPUT,
    "username": _LOGIN,
    "src-username": _LOGIN,
    "dest-username": _LOGIN,
    "password-stdin": _LOGIN,
    "src-password-stdin": _LOGIN,
    "dest-password-stdin": _LOGIN,
    "password-file": _LOGIN,
    "src-password-file": _LOGIN,
    "dest-password-file": _LOGIN,
    "authfile": _AUTH_FILE,
    "src-authfile": _AUTH_FILE,
    "dest-authfile": _AUTH_FILE,
    "client-cert": _OF_ONE_REGISTRY,
    "client-key": _OF_ONE_REGISTRY,
    "insecure": _OF_ONE_REGISTRY,
    "plain-http": _OF_ONE_REGISTRY,
    **{
        f"{side}-{name}": _OF_ONE_REGISTRY
        for side in ("src", "dest")
        for name in ("client-cert", "client-key", "insecure", "plain-http")
    },
    "config": "a file cannot name another one; the variable OCISTREAM_CONFIG can",
    "help": _ONE_RUN,
}
#: Options that are known to be some command's. Of others that is found out by importing all, which takes 20 ms.
_WIDESPREAD: Final = frozenset(
    {
        "ca-cert",
        "cache",
        "cert-dir",
        "compress",
        "connect-timeout",
        "jobs",
        "limit-rate",
        "log-format",
        "max-ratio",
        "max-requests-per-second",
        "memory",
        "no-mirrors",
        "no-referrers",
        "platform",
        "progress",
        "retries",
        "stall-timeout",
        "upload",
    }
)
#: Options of which the file has paths, relative to its folder.
_PATHS: Final = frozenset({"cache", "ca-cert", "src-ca-cert", "dest-ca-cert", "cert-dir", "tls-cert", "tls-key"})


@dataclass(frozen=True, slots=True)
class Setting:
    """What one option is: `value` as click takes it for a default."""

    value: str | int | bool | list[str]
    #: `file` or `environment`.
    origin: str
    #: The file and its table, or the variable.
    where: str


def prepare(group: click.Context, name: str, command: click.Command, arguments: Sequence[str]) -> None:
    """Give a command its defaults, as it is about to read these arguments, by the `default_map` of its group.

    Raises:
        UsageError: the file is malformed, or a value is none that the option takes.
        NotFoundError: the file that is named is not there.
        LocalDiskError: it cannot be read.
    """
    # What click will find, of which nothing is taken but which file is meant, and whether only help is wanted.
    with click.Context(command, info_name=name, parent=group, resilient_parsing=True) as context:
        given, _, _ = command.make_parser(context).parse_args(args=list(arguments))
        asked = command.get_help_option(context)
    if asked is not None and asked.name in given:
        return
    # What looks at files is told its own faults, and not those of another one.
    table = None if name == "config" else find(given.get("config"), os.environ)
    found = defaults_of(name, command, table, os.environ)
    by_parameter = {option.name: found[key].value for key, option in options_of(command).items() if key in found}
    if name != "config" and (named := os.environ.get(variable_of("config"))):
        by_parameter["config"] = named
    group.default_map = {name: by_parameter}
    if isinstance(group.obj, Console):
        log_format, progress = (given.get(key) or by_parameter.get(key) for key in ("log_format", "progress"))
        group.obj.as_json |= Console.is_json(cast("str | None", log_format), cast("str | None", progress))
        # `config` and `sync` read files that may name further variables: they check the variables themselves.
        if name not in {"config", "sync"} and not _is_quiet(given, by_parameter):
            from ocistream.cli.environment import named_by_registries, tell_unused

            tell_unused(group.obj, os.environ, named_by_registries(table))


def _is_quiet(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Say whether only errors are printed, before the command itself finds out (`options.apply_verbosity`)."""
    return bool(given.get("quiet") or (defaults.get("quiet") and not given.get("verbose")))


def find(given: str | None, env: Mapping[str, str]) -> Table | None:
    """Read the file that --config names, else OCISTREAM_CONFIG, else the one that there is.

    Raises:
        UsageError, NotFoundError, LocalDiskError: as `find_configuration`.
    """
    if given is None and (named := env.get(variable_of("config"))):
        if not exists(named):
            msg = f"{variable_of('config')}: {printable(named)}: no such file"
            raise NotFoundError(msg, hint="correct that variable, or leave it away")
        given = named
    return find_configuration(None if given is None else Path(given), env, home())


def option_name(option: click.Option) -> str:
    """Give an option's long name without its hyphens."""
    return max(option.opts, key=len).lstrip("-")


def variable_of(name: str) -> str:
    """Give the variable of an option."""
    return PREFIX + name.upper().replace("-", "_")


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Give the options of a command that may have a default, by their long names, in the order of --help."""
    found = {option_name(option): option for option in command.params if isinstance(option, click.Option)}
    return {name: option for name, option in found.items() if name not in REFUSED}


def defaults_of(name: str, command: click.Command, table: Table | None, env: Mapping[str, str]) -> dict[str, Setting]:
    """Give what a command's options are by the file and the environment, by their long names.

    Raises:
        UsageError: something there is no option, or has a value that it does not take.
    """
    options, found = options_of(command), {}
    with click.Context(command, info_name=name) as context:
        for key, setting in (*_in_file(name, options, table), *_in_environment(options, env)):
            _check(context, key, options[key], setting)
            found[key] = setting
    return found


def check_all(table: Table, commands: Mapping[str, click.Command]) -> None:
    """Check the whole of `[defaults]`, for every command.

    Raises:
        UsageError: as `defaults_of`.
    """
    for name, command in commands.items():
        defaults_of(name, command, table, {})


def _in_file(name: str, options: Mapping[str, click.Option], table: Table | None) -> Iterator[tuple[str, Setting]]:
    if table is None:
        return
    folder = Path(table.where).parent
    shared = table.table("defaults")
    for key, value in shared.values.items():
        if isinstance(value, dict):
            _check_command(shared, key)
        elif key in options:
            yield key, _setting(shared, key, options[key], folder, f"{table.where} [defaults]")
        elif key not in _WIDESPREAD:
            # It may be another command's.
            _check_known(shared, key, all_options())
    own = shared.table(name)
    for key in own.values:
        _check_known(own, key, options, of=f"`ocistream {name}`")
        yield key, _setting(own, key, options[key], folder, f"{table.where} [defaults.{name}]")


def _in_environment(options: Mapping[str, click.Option], env: Mapping[str, str]) -> Iterator[tuple[str, Setting]]:
    for key, option in options.items():
        variable = variable_of(key)
        if text := env.get(variable):
            yield key, Setting(_of_text(variable, option, text), "environment", variable)


def _check_command(table: Table, key: str) -> None:
    from ocistream.cli.entry import COMMANDS

    if key not in COMMANDS:
        raise table.wrong(key, "is a table, and no command", _nearest(key, COMMANDS))


def _check_known(table: Table, key: str, known: Mapping[str, Any], of: str = "any command") -> None:
    if key in known:
        return
    if key in REFUSED:
        raise table.wrong(key, "has no default", REFUSED[key])
    raise table.wrong(key, f"is no option of {of}", _nearest(key, known))


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key.replace("_", "-").lower().lstrip("-"), known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(known))}"


def all_options() -> dict[str, click.Option]:
    """Return the options of all commands that may have a default, by their long names."""
    from ocistream.cli.entry import COMMANDS, load

    return {key: option for name in COMMANDS for key, option in options_of(load(name)).items()}


def _setting(table: Table, key: str, option: click.Option, folder: Path, where: str) -> Setting:
    value = _of_toml(table, key, option)
    if key in _PATHS and isinstance(value, str) and value:
        value = str(path_in(folder, value, home()))
    return Setting(value, "file", where)


def _of_toml(table: Table, key: str, option: click.Option) -> str | int | bool | list[str]:
    """Take a value of TOML as the command line would have it: a number is what is written, and checked as that."""
    value = table.values[key]
    if option.is_flag:
        return bool(table.flag(key))
    if option.count:
        if isinstance(value, bool) or not isinstance(value, int):
            raise table.wrong(key, "is no whole number")
        return value
    if option.multiple:
        return [_text(table, key, item) for item in (value if isinstance(value, list) else [value])]
    return _text(table, key, value)


def _text(table: Table, key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise table.wrong(key, "is neither a string nor a number")
    return str(value)


def _of_text(variable: str, option: click.Option, text: str) -> str | int | bool | list[str]:
    """Take a variable's value; words of one that repeats have blanks between them."""
    if option.is_flag:
        try:
            return bool(click.BOOL.convert(text, None, None))
        except click.BadParameter as error:
            msg = f"{variable}: {printable(text, 40)!r} is neither true nor false"
            raise UsageError(msg, hint="write 1 or 0") from error
    if option.count:
        # (No `int`, which takes digits of any script.)
        if not (text.isascii() and text.isdigit() and len(text) < 3):
            msg = f"{variable}: {printable(text, 40)!r} is no whole number"
            raise UsageError(msg)
        return int(text)
    return text.split() if option.multiple else text


def _check(context: click.Context, key: str, option: click.Option, setting: Setting) -> None:
    """Have an option look at a value.

    Raises:
        UsageError: it does not take it.
    """
    where = setting.where if setting.origin == "environment" else f"{setting.where} {key}"
    try:
        option.process_value(context, setting.value)
    except click.BadParameter as error:
        msg = f"{where}: {' '.join(error.format_message().split())}"
        raise UsageError(msg) from error
    except UsageError as error:
        msg = f"{where}: {error.what}"
        raise UsageError(msg, hint=error.hint) from error
