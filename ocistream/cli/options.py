"""Options of several commands, declared once in a class for each group, and the decorator that makes a command.

`command` takes the arguments and options of a command. It passes the values of all groups as one `CommandContext`, and
the command's own options by name. Options of a single command are declared as an `Option` beside that command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from ocistream import notices
from ocistream.api.options import (
    ACCESS,
    FOR_ONE_RUN,
    OUTPUT,
    PATH,
    PERFORMANCE,
    SELECTION,
    SELECTS_CONTENT,
    SIGNATURES,
    TLS,
    ClientOptions,
    CopyOptions,
    Declaration,
    PositiveRange,
    RegistryOptions,
    WholeRange,
    option,
)
from ocistream.cli.context import CommandContext
from ocistream.cli.parameter_types import FilePath, PositiveNumber, ResultPath, WholeNumber, empty_value_error
from ocistream.cli.sides import SIDES, build_sides
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.streams.memory import return_large_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _typeshed import DataclassInstance

    from ocistream.cli.console import Console

_T = TypeVar("_T")
_Group = TypeVar("_Group", bound="DataclassInstance")

SELECTS_OUTPUT: Final = "it decides what is printed: use the option"
#: The key of the configuration file in the `meta` of click's contexts, if it was read for defaults.
CONFIGURATION: Final = f"{__name__}.configuration"
#: The name of the parameter of --all.
_ALL_PLATFORMS: Final = "all_platforms"
#: The type of an option that counts how often it is given.
_COUNT: Final = "count"


#: The headings of --help, in this order.
MISSING_BLOBS: Final = "Only missing blobs"
MESSAGES: Final = "Messages"
_OTHERS: Final = "Options"
_SECTIONS: Final = (_OTHERS, SELECTION, SIGNATURES, OUTPUT, MISSING_BLOBS, ACCESS, TLS, PERFORMANCE, MESSAGES)


class Option(click.Option):
    """An option of a command.

    `not_configurable` is why neither a variable nor the configuration file may set the option; "" if they may.
    `section` is the heading that --help lists the option under.
    """

    def __init__(self, *arguments: Any, not_configurable: str = "", section: str = _OTHERS, **attributes: Any) -> None:
        """Take the arguments of click, the reason and the heading."""
        super().__init__(*arguments, **attributes)
        self.not_configurable = not_configurable
        self.section = section

    @property
    def long_name(self) -> str:
        """The long form, such as `--output`."""
        return max(self.opts, key=len)

    @property
    def has_value(self) -> bool:
        """Whether a value follows the option on the command line."""
        return not (self.is_flag or self.count)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser collect all values, for `consume_value`."""
        if self.has_value:
            parser.add_option(obj=self, opts=self.opts, dest=self.name, action="append", nargs=self.nargs)
        else:
            super().add_to_parser(parser, ctx)

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> Any:
        """Return the value and its source. Raise UsageError if the value is missing.

        The last value counts, so that a script can append one. But an option without a default decides what is copied,
        where to, and as whom: a second, different value of such an option is reported.
        """
        if self.has_value and self.name in opts:
            values = opts[self.name]
            if not ctx.resilient_parsing:
                for value in values:
                    self._check_value(value, ctx)
                if self.not_configurable and not self.multiple and len(set(values)) > 1:
                    last = printable(values[-1], 1024)
                    notices.notify(f"{self.long_name} is given {len(values)} times: {last}, the last, counts")
            opts = opts if self.multiple else {**opts, self.name: values[-1]}
        return super().consume_value(ctx, opts)

    def _check_value(self, value: str, ctx: click.Context) -> None:
        """Raise UsageError for `--to -i app.tar`, whose value is missing, and for `-o=app.tar`."""
        if value == "" and self.not_configurable and isinstance(self.type, click.Path):
            # The empty value of another option removes its default.
            raise empty_value_error(self.long_name)
        if any(value in parameter.opts for parameter in ctx.command.params):
            msg = f"{self.long_name} requires an argument, but the option {value} follows"
            raise UsageError(msg, hint=f"for a file of that name, write ./{value}")
        short = min(self.opts, key=len)
        if value.startswith("=") and short == "-o":
            shown = printable(value)
            msg = f"{short}{shown} has a = that would be a part of the value"
            raise UsageError(msg, hint=f"write {short} {shown[1:]} or {self.long_name}{shown}")


class Command(click.Command):
    """A command whose --help groups the options under headings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Each error has the context, so that its hint names the command's --help."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options."""
        sections: dict[str, list[tuple[str, str]]] = {section: [] for section in _SECTIONS}
        for parameter in self.get_params(ctx):
            # Arguments have no text of their own. Since version 8.5.1, click has a record of them nevertheless.
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections[parameter.section if isinstance(parameter, Option) else MESSAGES].append(record)
        for section, records in sections.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)


@dataclass(frozen=True, kw_only=True)
class RunOptions(ClientOptions):
    """Options of all requests and transfers of one run."""

    config: Path | None = option(
        type=FilePath(path_type=Path),
        metavar="FILE",
        not_configurable="a file cannot name another one; the variable OCISTREAM_CONFIG can",
        section=ACCESS,
        help="Configuration file.  [default: ~/.config/ocistream/config.toml]",
    )
    no_mirrors: bool = option(
        default=False, section=ACCESS, help="Do not use the mirrors that the configuration or registries.conf names."
    )
    progress: str = option(
        "auto",
        type=click.Choice(["auto", "bar", "plain", "json", "none"]),
        section=MESSAGES,
        help="Progress on stderr; json also writes messages as JSON.",
    )
    result: Path | None = option(
        type=ResultPath(dir_okay=False, path_type=Path),
        not_configurable=FOR_ONE_RUN,
        section=OUTPUT,
        help="Write the result to FILE as JSON.",
    )
    dry_run: bool = option(
        default=False, section=OUTPUT, help="Print `copy SIZE SOURCE NAME@DIGEST` for each image; change nothing."
    )


_omission: Final = functools.partial(option, section=MISSING_BLOBS, not_configurable=SELECTS_CONTENT)


@dataclass(frozen=True, kw_only=True)
class OmissionOptions:
    """Which blobs an archive or layout omits."""

    have: tuple[str, ...] = _omission(
        (),
        type=PATH,
        metavar="FILE|-|LOCATION",
        help="Omit blobs that FILE (from `ocistream have`) lists, or that LOCATION has; repeatable.",
    )
    base: tuple[str, ...] = _omission(
        (), metavar="IMAGE", help="Omit the blobs of IMAGE, a base image that the destination has; repeatable."
    )
    only: tuple[str, ...] = _omission(
        (),
        type=PATH,
        metavar="DIGEST|FILE",
        help="Include only this blob, or those of FILE, to push with an incomplete archive; repeatable.",
    )


@dataclass(frozen=True, kw_only=True)
class MessageOptions:
    """Which messages are printed on stderr, and how."""

    quiet: bool = option(default=False, flags=["-q", "--quiet"], section=MESSAGES, help="Print only errors on stderr.")
    verbose: int = option(
        0, type=_COUNT, flags=["-v", "--verbose"], section=MESSAGES, help="Print more; -vv also prints tracebacks."
    )
    log_format: str | None = option(
        type=click.Choice(["text", "json"]), section=MESSAGES, help="Format of messages on stderr.  [default: text]"
    )

    def apply(self, console: Console, progress: str) -> None:
        """Set what a console prints."""
        source = click.get_current_context().get_parameter_source
        # The command line overrides a default for all runs.
        given = {name for name in ("quiet", "verbose") if source(name) is ParameterSource.COMMANDLINE}
        console.verbosity = -1 if self.quiet and given != {"verbose"} else self.verbose
        console.as_json = console.is_json(self.log_format, progress)


#: The groups. Their options are known without an import of any command.
OPTION_GROUPS: Final = (CopyOptions, OmissionOptions, RunOptions, RegistryOptions, MessageOptions)


def options_of(group: type[DataclassInstance], *names: str, side: str = "", help_text: str = "{}") -> list[Option]:
    """Return options of a group: those with these field names, or all; with `side`, the forms for one side.

    `help_text` replaces the declared help; {} in it is the declared help.
    """
    options: list[Option] = []
    fields = {field.name: field for field in dataclasses.fields(group)}
    for name in names or fields:
        declared: Declaration = fields[name].metadata["option"]
        if side and not declared.side_help:
            continue
        annotation = str(fields[name].type)
        flags = declared.flags or (f"--{name.replace('_', '-')}",)
        attributes: dict[str, Any] = {
            "type": _click_type(declared.type),
            # Not False: click would then take an option whose value begins with a hyphen for a switch.
            "is_flag": annotation == "bool" or None,
            "multiple": annotation.startswith(("tuple", "Sequence")),
            "count": declared.type == _COUNT,
            "metavar": declared.metavar or ("N" if isinstance(declared.type, WholeRange) else None),
            "callback": None if declared.check is None else functools.partial(_check, declared.check),
            "help": help_text.format(declared.help),
            "not_configurable": declared.not_configurable,
            "section": declared.section,
        }
        if declared.cli_default is not None:
            # Otherwise click has defaults of its own, such as False for a switch.
            attributes |= {"default": declared.cli_default, "show_default": True}
        if side:
            flags, attributes["help"] = (f"--{side}-{flags[-1][2:]}",), declared.side_help.format(SIDES[side])
        options.append(Option([*flags, f"{side}_{name}" if side else name], **attributes))
    return options


def _click_type(declared: object) -> Any:
    if isinstance(declared, WholeRange):
        return WholeNumber(declared.lowest, declared.highest)
    if isinstance(declared, PositiveRange):
        return PositiveNumber(0, declared.highest, min_open=True)
    if declared == PATH:
        return FilePath()
    return WholeNumber(min=0) if declared == _COUNT else declared


def _check(check: Callable[[_T], object], _context: click.Context, _parameter: click.Parameter, value: _T) -> _T:
    check(value)
    return value


def command(*parameters: click.Parameter | Sequence[click.Parameter]) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command with these arguments and options, and those of messages.

    The command passes it a `CommandContext`, and the values of its own arguments and options by name.
    """
    listed = [*parameters, options_of(MessageOptions)]
    params = [item for items in listed for item in ([items] if isinstance(items, click.Parameter) else items)]

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.pass_obj
        @functools.wraps(function)
        def run(console: Console, /, **values: Any) -> None:
            context = _build_context(function.__name__, console, values)
            with contextlib.closing(context.access):
                function(context, **values)

        return click.command(cls=Command, params=params)(run)

    return decorate


def _build_context(name: str, console: Console, values: dict[str, Any]) -> CommandContext:
    """Return the context of a command, and remove the values of all groups from the parameters."""
    if values.pop(_ALL_PLATFORMS, False):
        source = click.get_current_context().get_parameter_source("platforms")
        # Platforms of a variable or the file are only a default.
        given = values["platforms"] if source is ParameterSource.COMMANDLINE else ()
        values["platforms"] = ("all", *given)
    run_options = _pop_group(RunOptions, values)
    _pop_group(MessageOptions, values).apply(console, run_options.progress)
    registry_options = _pop_group(RegistryOptions, values)
    own = {side: _pop_group(RegistryOptions, values, side) for side in SIDES if f"{side}_username" in values}
    context = CommandContext(
        command=name,
        console=console,
        run_options=run_options,
        registry_options=registry_options,
        sides=build_sides(registry_options, own),
        copy_options=_pop_group(CopyOptions, values),
        omission_options=_pop_group(OmissionOptions, values),
        configuration=click.get_current_context().meta.get(CONFIGURATION),
    )
    return_large_blocks()
    return context


def _pop_group(group: type[_Group], values: dict[str, Any], side: str = "") -> _Group:
    """Return a group with its values, which are removed; an option that the command lacks has its default."""
    names = {field.name: f"{side}_{field.name}" if side else field.name for field in dataclasses.fields(group)}
    found = {name: values.pop(key) for name, key in names.items() if key in values}
    return group(**{name: value for name, value in found.items() if value is not None})


user_options: Final = (
    *options_of(RegistryOptions, "username", help_text="User name."),
    *options_of(RegistryOptions, "password_stdin", "password_file"),
)
credential_options: Final = (
    *options_of(RegistryOptions, "username"),
    *options_of(RegistryOptions, "password_stdin", help_text="{} Stdin then has no archive and no list."),
    *options_of(RegistryOptions, "password_file", "authfile"),
)
side_options: Final = [option for side in SIDES for option in options_of(RegistryOptions, side=side)]
tls_options: Final = options_of(
    RegistryOptions, "ca_cert", "client_cert", "client_key", "cert_dir", "insecure", "plain_http"
)
network_options: Final = (
    *options_of(RunOptions, "retries", "connect_timeout", "stall_timeout", "limit_rate", "max_requests_per_second"),
    *tls_options,
    *options_of(RunOptions, "config", "no_mirrors"),
)
transfer_options: Final = (
    *options_of(RunOptions, "jobs"),
    *network_options,
    *options_of(RunOptions, "progress", "result"),
)
identity_options: Final = options_of(CopyOptions, "certificate_identity", "certificate_oidc_issuer", "trusted_root")
upload_options: Final = (*options_of(RunOptions, "upload"), *options_of(CopyOptions, "mount_from"))
all_platforms_option: Final = Option(
    ["--all", _ALL_PLATFORMS],
    is_flag=True,
    section=SELECTION,
    help="The same as --platform all.",
    not_configurable=SELECTS_CONTENT,
)


def compression_options(note: str) -> list[Option]:
    """Return --compress, with a note in its help, and --max-ratio."""
    return [*options_of(CopyOptions, "compress", help_text=f"{{}} {note}"), *options_of(CopyOptions, "max_ratio")]


def platform_option(default: str) -> list[Option]:
    """Return --platform; `default` is the default that --help shows."""
    return options_of(CopyOptions, "platforms", help_text=f"{{}}  [default: {default}]")


def json_option(help_text: str) -> Option:
    """Return --json."""
    return Option(["--json", "as_json"], is_flag=True, section=OUTPUT, help=help_text, not_configurable=SELECTS_OUTPUT)
