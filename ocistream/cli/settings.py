"""Defaults of options: the command line overrides `OCISTREAM_*` variables, and these override the configuration file.

Every value passes the option's own checks. Unknown variables are reported by name only: a value may be secret.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ocistream.api.registries import load_configuration
from ocistream.cli.console import Console
from ocistream.cli.options import CONFIGURATION, OPTION_GROUPS, Option, options_of
from ocistream.config.toml_files import UnknownKeyError, flag, resolve_path
from ocistream.errors import NotFoundError, UsageError
from ocistream.oci.reference import printable
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ocistream.config.toml_files import TomlTable

VARIABLE_PREFIX: Final = "OCISTREAM_"


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of one option, in the form of a default of click."""

    value: str | int | bool | list[str]
    #: `file` or `environment`.
    origin: str
    #: The file and its table, or the variable.
    where: str


def apply_defaults(group_context: click.Context, name: str, command: click.Command, arguments: Sequence[str]) -> None:
    """Set the defaults of a command, before it parses `arguments`, as the `default_map` of the program's context.

    Variables go this way too: each value first passes its option's type and callback, so every error names the
    variable, or the file and the table. click's `auto_envvar_prefix` would create a variable for each option of each
    command.
    """
    # A first parse, only to learn which file --config names, and whether only help is wanted. It has a list for
    # each option with a value (`Option.add_to_parser`).
    with click.Context(command, info_name=name, parent=group_context, resilient_parsing=True) as context:
        given, _, _ = command.make_parser(context).parse_args(args=list(arguments))
        help_option = command.get_help_option(context)
    if help_option is not None and help_option.name in given:
        return
    # If --config names several files, the command reports it (`Option.consume_value`).
    config_file = given["config"][-1] if "config" in given else None
    try:
        # `config` reports the errors of the file it checks, not those of the configured file.
        table = None if name == "config" else read_configuration_file(config_file, os.environ)
    except NotFoundError as error:
        if name == "inspect" and config_file:
            # In skopeo this option prints the config, and the next word is an image.
            error.hint = "--config is ocistream's configuration file; --raw-config prints the config of an image"
        raise
    group_context.meta[CONFIGURATION] = table
    settings = read_settings(name, command, table, os.environ)
    defaults = {option.name: settings[key].value for key, option in _list_own_options(command) if key in settings}
    if name != "config" and (config_variable := os.environ.get(variable_name("config"))):
        defaults["config"] = config_variable
    group_context.default_map = {name: defaults}
    if isinstance(group_context.obj, Console):
        log_format, progress = (given.get(key, [defaults.get(key)])[-1] for key in ("log_format", "progress"))
        group_context.obj.as_json |= Console.is_json(log_format, progress)
        # `config` and `sync` read files that may name further variables: they check the variables themselves.
        is_quiet = given.get("quiet") or (defaults.get("quiet") and not given.get("verbose"))
        if name not in {"config", "sync"} and not is_quiet:
            warn_unused_variables(group_context.obj, os.environ, find_credential_variables(table))
            if "platform" in settings and not (given.get("platforms") or given.get("all_platforms")):
                # Other defaults do not decide what is copied.
                value, where = settings["platform"].value, settings["platform"].where
                shown = ",".join(value) if isinstance(value, list) else str(value)
                group_context.obj.info(f"--platform {printable(shown)} is set by {where}")


def read_configuration_file(explicit: str | None, env: Mapping[str, str]) -> TomlTable | None:
    """Read the file that --config names, else that of OCISTREAM_CONFIG, else the default file if it exists."""
    if explicit is None and (path := env.get(variable_name("config"))):
        if not exists(path):
            msg = f"{variable_name('config')}: {printable(path)}: no such file"
            raise NotFoundError(msg, hint="correct or unset that variable")
        explicit = path
    try:
        return load_configuration(None if explicit is None else Path(explicit), env)
    except UnknownKeyError as error:
        names = _list_configurable_names()
        if not error.is_table and error.key not in names and (close := _find_similar_option(error.key, names)):
            error.hint = f"put options under [defaults]; did you mean {close}?"
        raise


def variable_name(name: str) -> str:
    """Return the environment variable of an option."""
    return VARIABLE_PREFIX + name.upper().replace("-", "_")


def _list_own_options(command: click.Command) -> Iterator[tuple[str, Option]]:
    """Return the options of a command by long name, in the order of --help, but not --help itself."""
    return ((option.long_name[2:], option) for option in command.params if isinstance(option, Option))


def list_configurable_options(command: click.Command) -> dict[str, Option]:
    """Return the options of a command that a variable or the file may set, by long name, in the order of --help."""
    return {name: option for name, option in _list_own_options(command) if not option.not_configurable}


@functools.cache
def find_reasons_against_defaults() -> dict[str, str]:
    """Return the options of all commands by long name: why neither a variable nor the file sets one, "" if they may."""
    from ocistream.cli.entry_point import COMMANDS, load_command

    reasons: dict[str, str] = {}
    for command in map(load_command, COMMANDS):
        for name, option in _list_own_options(command):
            # Of commands with options of one name, one that allows it is enough: --format of `pull`, not of `inspect`.
            reasons[name] = reasons.get(name, option.not_configurable) and option.not_configurable
    return reasons


def read_settings(
    name: str, command: click.Command, table: TomlTable | None, env: Mapping[str, str]
) -> dict[str, Setting]:
    """Return the settings of a command's options from the file and the environment, by long name.

    Every setting has passed the checks of its option.
    """
    options, settings = list_configurable_options(command), {}
    with click.Context(command, info_name=name) as context:
        for key, setting in _read_file_settings(name, options, table):
            settings[key] = _check_setting(context, key, options[key], setting)
        for key, option in options.items():
            if text := env.get(variable := variable_name(key)):
                # Blanks separate the values of an option that repeats.
                setting = Setting(text.split() if option.multiple else text, "environment", variable)
                settings[key] = _check_setting(context, key, option, setting)
    return settings


def _read_file_settings(
    name: str, options: Mapping[str, Option], table: TomlTable | None
) -> Iterator[tuple[str, Setting]]:
    from ocistream.cli.entry_point import COMMANDS

    if table is None:
        return
    shared = table.table("defaults")
    for key, value in shared.values.items():
        if isinstance(value, dict):
            if key not in COMMANDS:
                raise shared.key_error(key, "is a table, not a command", _suggest_name(key, COMMANDS))
        elif key in options:
            yield key, _build_setting(shared, key, options[key], f"{table.label} [defaults]")
        elif key not in list_group_option_names():
            # It may be an option of another command. To import all commands takes 20 ms.
            _check_option_name(shared, key, _list_configurable_names())
    command_table = shared.table(name)
    for key in command_table.values:
        _check_option_name(command_table, key, options, of=f"`ocistream {name}`")
        yield key, _build_setting(command_table, key, options[key], f"{table.label} [defaults.{name}]")


def _check_option_name(table: TomlTable, key: str, known: Collection[str], of: str = "any command") -> None:
    if key in known:
        return
    if reason := find_reasons_against_defaults().get(key):
        raise table.key_error(key, "has no default", reason)
    raise table.key_error(key, f"is not an option of {of}", _suggest_name(key, known))


def _suggest_name(key: str, known: Collection[str]) -> str:
    close = _find_similar_option(key, known)
    return f"did you mean {close}?" if close else f"available: {', '.join(sorted(known))}"


def _find_similar_option(key: str, known: Collection[str]) -> str | None:
    return _find_similar_name(key.replace("_", "-").lower().lstrip("-"), known)


def _find_similar_name(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, known, n=1, cutoff=cutoff)), None)


@functools.cache
def list_group_option_names() -> frozenset[str]:
    """Return the options of all groups that a variable or the file may set, by long name, without any command."""
    return frozenset(
        option.long_name[2:] for group in OPTION_GROUPS for option in options_of(group) if not option.not_configurable
    )


def _list_configurable_names() -> list[str]:
    return [name for name, reason in find_reasons_against_defaults().items() if not reason]


def _build_setting(table: TomlTable, key: str, option: Option, where: str) -> Setting:
    value = _convert_toml_value(table, key, option)
    if isinstance(option.type, click.Path):
        value = [_resolve(table, path) for path in value] if isinstance(value, list) else _resolve(table, str(value))
    return Setting(value, "file", where)


def _resolve(table: TomlTable, path: str) -> str:
    # An empty path stays empty, so that the option can report it.
    return str(resolve_path(table.folder, path, table.home)) if path else ""


def _convert_toml_value(table: TomlTable, key: str, option: Option) -> str | int | bool | list[str]:
    """Return a TOML value as the command line would have it.

    A number becomes text, which the option then checks: click would truncate `jobs = 8.5` to 8.
    """
    value = table.values[key]
    if option.is_flag:
        return flag(table, key, value)
    if option.count:
        if isinstance(value, bool) or not isinstance(value, int):
            raise table.key_error(key, "is not a whole number")
        return value
    if option.multiple:
        return [_convert_to_text(table, key, item) for item in (value if isinstance(value, list) else [value])]
    return _convert_to_text(table, key, value)


def _convert_to_text(table: TomlTable, key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise table.key_error(key, "is neither a string nor a number")
    return str(value)


def _check_setting(context: click.Context, key: str, option: Option, setting: Setting) -> Setting:
    """Check a value with its option's type and callback; raise UsageError that names its origin.

    Return the setting; the text of a variable for a switch or a counter becomes its value.
    """
    where = setting.where if setting.origin == "environment" else f"{setting.where} {key}"
    try:
        value = option.process_value(context, setting.value)
    except (click.BadParameter, UsageError) as error:
        msg = f"{where}: {error.message}"
        raise UsageError(msg, hint=getattr(error, "hint", None)) from error
    return setting if option.has_value else replace(setting, value=value)


_CREDENTIAL_VARIABLES: Final = frozenset(
    f"{VARIABLE_PREFIX}{side}{word}" for side in ("", "SRC_", "DEST_") for word in ("USERNAME", "PASSWORD")
)
#: Variables of the project's tests.
_TEST_VARIABLES: Final = frozenset({f"{VARIABLE_PREFIX}FUZZ_SEED", f"{VARIABLE_PREFIX}TEST_MACHINE"})
#: Kubernetes sets these in each container for a Service whose name begins with "ocistream".
_KUBERNETES_VARIABLE: Final = re.compile(
    rf"{VARIABLE_PREFIX}(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z"
)


def warn_unused_variables(console: Console, env: Mapping[str, str], used: Collection[str]) -> None:
    """Print one line for each variable that is set and has no effect; `used` are variables that a file names."""
    used_variables = _CREDENTIAL_VARIABLES | _TEST_VARIABLES | {variable_name("config"), *used}
    names = {name for name, value in env.items() if name.startswith(VARIABLE_PREFIX) and value}
    unused = [name for name in sorted(names - used_variables) if not _KUBERNETES_VARIABLE.match(name)]
    # The names of all options are known only after an import of all commands.
    reasons = {variable_name(key): reason for key, reason in find_reasons_against_defaults().items()} if unused else {}
    for name in unused:
        reason = reasons.get(name)
        if reason is None:
            known = {variable for variable, reason in reasons.items() if not reason} | used_variables - _TEST_VARIABLES
            # Without the common prefix, which would make any two names similar.
            words = [variable.removeprefix(VARIABLE_PREFIX) for variable in sorted(known)]
            close = _find_similar_name(name.removeprefix(VARIABLE_PREFIX).upper(), words, cutoff=0.7)
            reason = f"did you mean {VARIABLE_PREFIX}{close}?" if close else "ocistream has no such setting"
        if reason:
            console.info(f"the variable {printable(name)} has no effect: {reason}")


def find_credential_variables(table: TomlTable | None) -> set[str]:
    """Return the variables that `credentials = "env:PREFIX"` names in the tables of registries."""
    # A malformed table is reported by the commands that need it.
    registries = None if table is None else table.values.get("registry")
    tables = registries.values() if isinstance(registries, dict) else ()
    sources = [values.get("credentials") for values in tables if isinstance(values, dict)]
    prefixes = [text.removeprefix("env:") for text in sources if isinstance(text, str) and text.startswith("env:")]
    return {f"{prefix}_{word}" for prefix in prefixes for word in ("USERNAME", "PASSWORD")}
