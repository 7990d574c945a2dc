"""`ocistream config`: show each setting with its origin, or check a configuration file."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.api.registries import find_home
from ocistream.cli.entry_point import COMMANDS, load_command
from ocistream.cli.options import RunOptions, command, group_options, json_option
from ocistream.cli.parameter_types import FilePath, empty_value_error, is_path
from ocistream.cli.settings import (
    check_all_defaults,
    configurable_options,
    find_credential_variables,
    read_configuration_file,
    read_settings,
    warn_unused_variables,
)
from ocistream.errors import InvalidNameError, NotFoundError, OcistreamError, UsageError
from ocistream.locations import is_missing_image, parse_location
from ocistream.oci.reference import parse_reference, parse_registry, printable
from ocistream.signatures.signers import Identity, PublicKey
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.config.toml_files import TomlTable
    from ocistream.registry.configuration import HostRule, RegistryNamespace
    from ocistream.signatures.policy import TrustRule

_BUILT_IN: Final = "built in"
_NUMBER_TYPES: Final = (type(click.INT), type(click.FLOAT))
_CONFIGURABLE_COMMANDS: Final = tuple(name for name in COMMANDS if name != "config")


class _Action(click.Choice[str]):
    """Whether to show or to check; an error says what to type for a file, a command or an image in its place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the action."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            msg = f"{printable(str(value))!r} is neither show nor check"
            raise UsageError(msg, hint=_suggest_action(str(value))) from error


def _suggest_action(text: str) -> str:
    """Return what to type for a configuration file, a command or, as with `crane config`, an image."""
    shown = printable(text)
    if text in _CONFIGURABLE_COMMANDS:
        return f"write `ocistream config show {shown}`"
    if text.endswith(".toml") or is_path(text, may_exist=True):
        return f"write `ocistream config check {shown}`"
    return f"write show or check first; `ocistream inspect --raw-config {shown}` prints the config of an image"


@command
@click.argument("action", type=_Action(["show", "check"]))
@click.argument("of", metavar="[COMMAND|IMAGE|FILE]", required=False, type=FilePath())
@json_option("Print one JSON document.")
@group_options(RunOptions, "config")
def config(context: CommandContext, *, action: str, of: str | None, as_json: bool) -> None:
    """Show the effective settings, or check a configuration file.

    `show` prints the settings of all commands, or of one COMMAND, in the form of a configuration file, with the origin
    of each value. It prints no secret and runs no credential helper. `show IMAGE` prints which signatures an image in a
    registry needs. `check` checks FILE, or the configuration file that the other commands read.

    The configuration file ([defaults] jobs = 8) and variables (OCISTREAM_JOBS=8) set the defaults of most options. An
    option overrides its variable, and a variable overrides the file.

    \b
    ocistream config show
    ocistream config show pull --json
    ocistream config show registry.example.com/app:1
    ocistream config check ./config.toml
    """
    console = context.console
    config_file = None if context.run_options.config is None else str(context.run_options.config)
    if action == "check":
        if as_json:
            msg = "--json is only for `config show`"
            raise UsageError(msg)
        if of == "":
            raise empty_value_error("FILE")
        _check_file(console, of, config_file)
        return
    if of is not None and is_missing_image(parse_location(of, bare_is_path=True)):
        from ocistream.config.config_toml import parse_trust_policy

        table = read_configuration_file(config_file, os.environ)
        rule = None if table is None else parse_trust_policy(table).find(_repository_of(of))
        setting = {"trust": None if rule is None else {rule.prefix: _trust_value(rule)}}
        click.echo(json.dumps(setting, indent=2) if as_json else "\n".join(_format_trust(rule)))
        return
    if of is not None and of not in _CONFIGURABLE_COMMANDS:
        msg = f"{printable(of)!r} is not a command or an image"
        raise UsageError(msg, hint=f"write an image as HOST/REPO[:TAG]; commands: {', '.join(_CONFIGURABLE_COMMANDS)}")
    table = read_configuration_file(config_file, os.environ)
    warn_unused_variables(console, os.environ, find_credential_variables(table))
    view = _SettingsView(table, of)
    click.echo(json.dumps(view.document(), indent=2) if as_json else "\n".join(view.lines()))


def _check_file(console: Console, of: str | None, config_file: str | None) -> None:
    """Check a complete configuration file; raise UsageError for the first error."""
    if of is not None and config_file is not None:
        msg = "FILE and --config both name the file"
        raise UsageError(msg)
    if of is not None and not paths.exists(of):
        msg = f"{printable(of)}: no such file"
        raise NotFoundError(msg)
    table = read_configuration_file(config_file if of is None else of, os.environ)
    warn_unused_variables(console, os.environ, find_credential_variables(table))
    if table is None:
        console.info("no configuration file found")
        return
    from ocistream.config.config_toml import parse_host_rules, parse_trust_policy
    from ocistream.http.settings import TlsSettings
    from ocistream.http.tls import check_tls_files

    check_all_defaults(table, {name: load_command(name) for name in _CONFIGURABLE_COMMANDS})
    for host, rule in parse_host_rules(table).items():
        with _name_table(f"{table.label}: [registry.{_format_toml(host)}]"):
            check_tls_files(TlsSettings(rule.settings.ca_files, rule.settings.client_certificates))
    for prefix, trust_rule in parse_trust_policy(table).rules.items():
        with _name_table(f"{table.label}: [trust.{_format_toml(prefix)}]"):
            for signer in trust_rule.signers:
                signer.read()
    console.info(f"{table.label} is valid")


@contextlib.contextmanager
def _name_table(label: str) -> Iterator[None]:
    """Name the table of a configuration file in the error of a file that the table names."""
    try:
        yield
    except OcistreamError as error:
        error.message = f"{label}: {error.message}"
        raise


class _SettingsView:
    """The settings by our file, by containers' files and by the environment; for all commands, or for one."""

    def __init__(self, table: TomlTable | None, command: str | None) -> None:
        from ocistream.auth.credentials import Keychain
        from ocistream.config.certs_d import certs_directories
        from ocistream.config.config_toml import parse_host_rules, parse_trust_policy
        from ocistream.config.registries_conf import load_namespaces

        self._table = table
        self._command = command
        self._file_name = "" if table is None else table.label
        self._commands = {name: load_command(name) for name in _CONFIGURABLE_COMMANDS}
        self._rules: Mapping[str, HostRule] = {} if table is None else parse_host_rules(table)
        self._trust = () if table is None else tuple(parse_trust_policy(table).rules.values())
        self._namespaces = load_namespaces(os.environ, find_home(os.environ))
        self._folders = certs_directories(os.environ, find_home(os.environ))
        self._keychain = Keychain(
            os.environ, home=find_home(os.environ), configured=lambda host: self._host_rule(host).credentials
        )

    def document(self) -> dict[str, Any]:
        """Return the settings as a JSON document."""
        return {
            "file": self._file_name or None,
            "defaults": self._default_tables(),
            "registries": {
                host: {
                    "settings": {
                        key: {"value": value, "origin": "file", "where": self._file_name}
                        for key, value in self._host_settings(host).items()
                    },
                    "certificates": self._certificate_folder(host),
                    "credentials": self._keychain.sources(host),
                }
                for host in self._registry_hosts()
            },
            "trust": {rule.prefix: _trust_value(rule) for rule in self._trust},
            "containers": [
                {**_namespace_json(namespace), "where": namespace.config_file} for namespace in self._namespaces
            ],
        }

    def lines(self) -> Iterator[str]:
        """Return the settings as lines of a configuration file."""
        yield f"# file: {_short_path(self._file_name)}" if self._file_name else "# no configuration file found"
        for table, settings in self._default_tables().items():
            yield ""
            yield f"[{table}]"
            for key, setting in settings.items():
                origin, where = setting["origin"], setting["where"]
                note = _BUILT_IN if origin == _BUILT_IN else f"{origin} {_short_path(where)}"
                if setting["value"] is None:
                    yield f"# {key} is not set   # {note}"
                else:
                    yield f"{key} = {_format_toml(setting['value'])}   # {note}"
        for host in self._registry_hosts():
            yield ""
            yield f"[registry.{_format_toml(host)}]"
            for key, value in self._host_settings(host).items():
                yield f"{key} = {_format_toml(value)}   # file {_short_path(self._file_name)}"
            if (directory := self._certificate_folder(host)) is not None:
                yield f"# certificates: {_short_path(directory)}"
            yield f"# credentials: {self._describe_credentials(host)}"
        # A table without keys of its own comes first.
        for number, rule in enumerate(sorted(self._trust, key=lambda rule: bool(rule.signers))):
            lines = _format_trust(rule)
            yield from ("", *lines) if number == 0 or rule.signers else lines[1:]
        for namespace in self._namespaces:
            yield ""
            yield f"# {_short_path(namespace.config_file)}"
            for key, value in _namespace_json(namespace).items():
                yield f"#   {key} = {_format_toml(value)}"

    def _default_tables(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the tables of defaults, each with its options, their values and origins."""
        if self._command is not None:
            return {f"defaults.{self._command}": self._command_settings(self._command)}
        shared: dict[str, dict[str, Any]] = {}
        others: dict[str, dict[str, dict[str, Any]]] = {}
        for name in self._commands:
            for key, setting in self._command_settings(name).items():
                is_own = setting["origin"] == "file" and setting["where"].endswith(f"[defaults.{name}]")
                shared_setting = shared.get(key, setting)
                # A value for one command only, or with another built-in default there, is not a default of all
                # commands.
                if is_own or shared_setting != setting:
                    others.setdefault(f"defaults.{name}", {})[key] = setting
                else:
                    shared[key] = setting
        return {"defaults": shared, **others}

    def _command_settings(self, name: str) -> dict[str, dict[str, Any]]:
        command = self._commands[name]
        settings = read_settings(name, command, self._table, os.environ)
        result: dict[str, dict[str, Any]] = {}
        for key, option in configurable_options(command).items():
            if (setting := settings.get(key)) is not None:
                value = _convert_number(setting.value) if isinstance(option.type, _NUMBER_TYPES) else setting.value
                result[key] = {"value": value, "origin": setting.origin, "where": setting.where}
            else:
                value = option.to_info_dict()["default"]
                result[key] = {"value": value or None if option.multiple else value, "origin": _BUILT_IN, "where": None}
        return result

    def _registry_hosts(self) -> list[str]:
        """List the registries that our file, containers' files or a directory of certificates names."""
        hosts = dict.fromkeys(self._rules)
        for namespace in self._namespaces:
            hosts[namespace.prefix.partition("/")[0]] = None
        for directory in self._folders:
            if os.access(directory, os.R_OK | os.X_OK):
                hosts |= dict.fromkeys(sorted(path.name for path in directory.iterdir() if paths.is_directory(path)))
        return list(filter(_is_registry, hosts))

    def _host_rule(self, host: str) -> HostRule:
        from ocistream.registry.configuration import HostRule

        return self._rules.get(host) or HostRule()

    def _host_settings(self, host: str) -> dict[str, Any]:
        """Return the settings of a host in our file, with absolute paths."""
        if self._table is None or host not in self._rules:
            return {}
        tables = self._table.table("registry").values
        values = dict(next(values for key, values in tables.items() if parse_registry(key.lower()) == host))
        rule = self._rules[host]
        for certificate, key in rule.settings.client_certificates:
            values["client-cert"] = certificate
            if key is not None:
                values["client-key"] = key
        if "ca-cert" in values:
            values["ca-cert"] = list(rule.settings.ca_files)
        if rule.credentials is not None:
            values["credentials"] = str(rule.credentials)
        return values

    def _describe_credentials(self, host: str) -> str:
        """Return the places that have credentials of a host, and the variable of our file that is not set."""
        shown = printable(", else ".join(self._keychain.sources(host)), 1024) or "none"
        source = self._host_rule(host).credentials
        if source is None or source.kind != "env" or os.environ.get(variable := f"{source.name}_USERNAME"):
            return shown
        return f"{shown} ({variable} is not set)"

    def _certificate_folder(self, host: str) -> str | None:
        from ocistream.config.certs_d import find_certs_directory

        directory = find_certs_directory(host, self._folders)
        return None if directory is None else str(directory)


def _repository_of(image: str) -> str:
    reference = parse_reference(image.removeprefix("docker://"))
    return f"{reference.registry}/{reference.repository}"


def _trust_value(rule: TrustRule) -> str | dict[str, object]:
    """Return a rule as the value of its key in a configuration file."""
    if not rule.signers:
        return "reject" if rule.rejects else "any"
    keys = [signer.file for signer in rule.signers if isinstance(signer, PublicKey)]
    identities = [signer for signer in rule.signers if isinstance(signer, Identity)]
    value: dict[str, object] = {"keys": keys} if keys else {}
    if identities:
        value["identities"] = [{"identity": signer.identity, "issuer": signer.issuer} for signer in identities]
        value["trusted-root"] = identities[0].trusted_root
    return value


def _format_trust(rule: TrustRule | None) -> list[str]:
    """Return a rule as lines of a configuration file."""
    if rule is None:
        return ["# no rule of [trust]: signatures are not checked"]
    value = _trust_value(rule)
    if isinstance(value, dict):
        return [
            f"[trust.{_format_toml(rule.prefix)}]",
            *(f"{key} = {_format_toml(item)}" for key, item in value.items()),
        ]
    return ["[trust]", f"{_format_toml(rule.prefix)} = {_format_toml(value)}"]


def _is_registry(name: str) -> bool:
    """Return whether a name is a registry: `*.DOMAIN` is not, nor is every directory."""
    try:
        return parse_registry(name.lower()) == name
    except InvalidNameError:
        return False


def _convert_number(value: object) -> object:
    """Return a checked value as a number, if it is the text of one."""
    if not isinstance(value, str):
        return value
    return int(value) if value.isdigit() else float(value)


def _short_path(where: str) -> str:
    """Return a path for a comment, with `~` for the home directory."""
    home = f"{find_home(os.environ)}/"
    return printable(f"~/{where.removeprefix(home)}" if home != "//" and where.startswith(home) else where, 1024)


def _namespace_json(namespace: RegistryNamespace) -> dict[str, Any]:
    mirrors = [
        {"location": mirror.location, "pull": mirror.pull_mode, "insecure": bool(mirror.insecure)}
        for mirror in namespace.mirrors
    ]
    values = {
        "prefix": namespace.prefix,
        "location": namespace.location,
        "blocked": namespace.blocked,
        "insecure": namespace.insecure,
        "mirrors": mirrors,
    }
    return {key: value for key, value in values.items() if value}


def _format_toml(value: object) -> str:
    """Return a value as TOML on one line, without characters that control a terminal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_format_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_format_toml(item)}' for key, item in value.items())} }}"
    return f'"{"".join(map(_escape_toml, value))}"' if isinstance(value, str) else str(value)


def _escape_toml(character: str) -> str:
    if character in {'"', "\\"}:
        return f"\\{character}"
    if character.isprintable():
        return character
    # Bytes that are not UTF-8 have no escape in TOML.
    return "\\ufffd" if "\ud800" <= character <= "\udfff" else f"\\U{ord(character):08x}"
