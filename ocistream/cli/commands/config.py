"""`ocistream config`: show each setting with its origin, or check a configuration file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.api.registries import find_home
from ocistream.cli.entry_point import COMMANDS, load_command
from ocistream.cli.options import RunOptions, command, json_option, options_of
from ocistream.cli.parameter_types import FilePath, empty_value_error, is_path
from ocistream.cli.settings import (
    find_credential_variables,
    list_configurable_options,
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
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.config.toml_files import TomlTable
    from ocistream.registry.configuration import HostRule, RegistryNamespace
    from ocistream.signatures.policy import TrustRule

_BUILT_IN: Final = "built in"
_NUMBER_TYPES: Final = (type(click.INT), type(click.FLOAT))
_ACTIONS: Final = ("show", "check")
_CONFIGURABLE_COMMANDS: Final = tuple(name for name in COMMANDS if name != "config")


def _suggest_action(text: str) -> str:
    """Return what to type for a configuration file, a command or, as with `crane config`, an image."""
    shown = printable(text)
    if text in _CONFIGURABLE_COMMANDS:
        return f"write `ocistream config show {shown}`"
    if text.endswith(".toml") or is_path(text, may_exist=True):
        return f"write `ocistream config check {shown}`"
    return f"write show or check first; `ocistream inspect --raw-config {shown}` prints the config of an image"


@command(
    click.Argument(
        ["action"],
        metavar="{show|check}",
        shell_complete=lambda _context, _parameter, text: [action for action in _ACTIONS if action.startswith(text)],
    ),
    click.Argument(["of"], metavar="[COMMAND|IMAGE|FILE]", required=False, type=FilePath()),
    json_option("Print one JSON document."),
    options_of(RunOptions, "config"),
)
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
    if action not in _ACTIONS:
        msg = f"{printable(action)!r} is neither show nor check"
        raise UsageError(msg, hint=_suggest_action(action))
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
        reference = parse_reference(of.removeprefix("docker://"))
        repository = f"{reference.registry}/{reference.repository}"
        rule = None if table is None else parse_trust_policy(table).find(repository)
        trust = None if rule is None else {rule.prefix: _trust_value(rule)}
        if as_json:
            click.echo(json.dumps({"trust": trust}, indent=2))
        elif trust is None:
            click.echo("# no rule of [trust]: signatures are not checked")
        else:
            click.echo("\n".join(_format_trust(trust)).lstrip())
        return
    if of is not None and of not in _CONFIGURABLE_COMMANDS:
        msg = f"{printable(of)!r} is not a command or an image"
        raise UsageError(msg, hint=f"write an image as HOST/REPO[:TAG]; commands: {', '.join(_CONFIGURABLE_COMMANDS)}")
    table = read_configuration_file(config_file, os.environ)
    warn_unused_variables(console, os.environ, find_credential_variables(table))
    document = _build_document(table, of)
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(_format_document(document)))


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

    for name in _CONFIGURABLE_COMMANDS:
        read_settings(name, load_command(name), table, {})
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


def _build_document(table: TomlTable | None, command_name: str | None) -> dict[str, Any]:
    """Return the settings by our file, by containers' files and by the environment; for all commands, or for one."""
    from ocistream.auth.credentials import Keychain
    from ocistream.config.certs_d import certs_directories, find_certs_directory
    from ocistream.config.config_toml import parse_host_rules, parse_trust_policy
    from ocistream.config.registries_conf import load_namespaces

    home = find_home(os.environ)
    rules = {} if table is None else parse_host_rules(table)
    namespaces = load_namespaces(os.environ, home)
    folders = certs_directories(os.environ, home)
    keychain = Keychain(
        os.environ, home=home, configured=lambda host: rules[host].credentials if host in rules else None
    )
    return {
        "file": None if table is None else table.label,
        "defaults": _default_tables(table, command_name),
        "registries": {
            host: {
                "settings": {} if table is None or host not in rules else _host_settings(table, host, rules[host]),
                "certificates": (directory := find_certs_directory(host, folders)) and str(directory),
                "credentials": keychain.list_places(host),
            }
            for host in _registry_hosts(rules, namespaces, folders)
        },
        "trust": {}
        if table is None
        else {rule.prefix: _trust_value(rule) for rule in parse_trust_policy(table).rules.values()},
        "containers": [{**_namespace_json(namespace), "where": namespace.config_file} for namespace in namespaces],
    }


def _default_tables(table: TomlTable | None, command_name: str | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables of defaults, each with its options, their values and origins."""
    if command_name is not None:
        return {f"defaults.{command_name}": _command_settings(table, command_name)}
    shared: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, dict[str, Any]]] = {}
    for name in _CONFIGURABLE_COMMANDS:
        for key, setting in _command_settings(table, name).items():
            is_own = setting["origin"] == "file" and setting["where"].endswith(f"[defaults.{name}]")
            # A value for one command only, or with another built-in default there, is not a default of all commands.
            if is_own or shared.get(key, setting) != setting:
                others.setdefault(f"defaults.{name}", {})[key] = setting
            else:
                shared[key] = setting
    return {"defaults": shared, **others}


def _command_settings(table: TomlTable | None, name: str) -> dict[str, dict[str, Any]]:
    loaded = load_command(name)
    settings = read_settings(name, loaded, table, os.environ)
    result: dict[str, dict[str, Any]] = {}
    for key, option in list_configurable_options(loaded).items():
        if (setting := settings.get(key)) is not None:
            value = _convert_number(setting.value) if isinstance(option.type, _NUMBER_TYPES) else setting.value
            result[key] = {**dataclasses.asdict(setting), "value": value}
        else:
            value = option.to_info_dict()["default"]
            result[key] = {"value": value or None if option.multiple else value, "origin": _BUILT_IN, "where": None}
    return result


def _registry_hosts(
    rules: Mapping[str, HostRule], namespaces: Iterable[RegistryNamespace], folders: Iterable[Path]
) -> list[str]:
    """List the registries that our file, containers' files or a directory of certificates names."""
    hosts = [*rules, *(namespace.prefix.partition("/")[0] for namespace in namespaces)]
    for directory in folders:
        if os.access(directory, os.R_OK | os.X_OK):
            hosts += sorted(path.name for path in directory.iterdir() if paths.is_directory(path))
    return [host for host in dict.fromkeys(hosts) if _is_registry(host)]


def _host_settings(table: TomlTable, host: str, rule: HostRule) -> dict[str, dict[str, Any]]:
    """Return the settings of a host in our file, with absolute paths."""
    tables = table.table("registry").values
    values = dict(next(values for key, values in tables.items() if parse_registry(key.lower()) == host))
    for certificate, key in rule.settings.client_certificates:
        values["client-cert"] = certificate
        if key is not None:
            values["client-key"] = key
    if "ca-cert" in values:
        values["ca-cert"] = list(rule.settings.ca_files)
    if rule.credentials is not None:
        values["credentials"] = str(rule.credentials)
    return {key: {"value": value, "origin": "file", "where": table.label} for key, value in values.items()}


def _format_document(document: dict[str, Any]) -> Iterator[str]:
    """Return the settings as lines of a configuration file."""
    yield f"# file: {_short_path(document['file'])}" if document["file"] else "# no configuration file found"
    for name, settings in document["defaults"].items():
        yield from ("", f"[{name}]", *_format_settings(settings))
    for host, registry in document["registries"].items():
        yield from ("", f"[registry.{_format_toml(host)}]", *_format_settings(registry["settings"]))
        if registry["certificates"] is not None:
            yield f"# certificates: {_short_path(registry['certificates'])}"
        yield f"# credentials: {_describe_credentials(registry)}"
    yield from _format_trust(document["trust"])
    for namespace in document["containers"]:
        yield from ("", f"# {_short_path(namespace['where'])}")
        yield from (f"#   {key} = {_format_toml(value)}" for key, value in namespace.items() if key != "where")


def _format_settings(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for key, setting in settings.items():
        origin, value = setting["origin"], setting["value"]
        note = origin if origin == _BUILT_IN else f"{origin} {_short_path(setting['where'])}"
        yield f"# {key} is not set   # {note}" if value is None else f"{key} = {_format_toml(value)}   # {note}"


def _describe_credentials(registry: Mapping[str, Any]) -> str:
    """Return the places that have credentials of a host, and the variable of our file that is not set."""
    shown = printable(", else ".join(registry["credentials"]), 1024) or "none"
    kind, _, name = registry["settings"].get("credentials", {"value": ""})["value"].partition(":")
    is_unset = kind == "env" and not os.environ.get(f"{name}_USERNAME")
    return f"{shown} ({name}_USERNAME is not set)" if is_unset else shown


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


def _format_trust(trust: Mapping[str, str | dict[str, object]]) -> Iterator[str]:
    """Return rules as lines of a configuration file. A table without keys of its own comes first."""
    short = [
        f"{_format_toml(prefix)} = {_format_toml(value)}" for prefix, value in trust.items() if isinstance(value, str)
    ]
    yield from ("", "[trust]", *short) if short else ()
    for prefix, value in trust.items():
        if isinstance(value, dict):
            yield from ("", f"[trust.{_format_toml(prefix)}]")
            yield from (f"{key} = {_format_toml(item)}" for key, item in value.items())


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
