"""`ocistream config`: what is set, and by what; or whether a configuration file is right."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.cli.defaults import check_all, defaults_of, find, options_of
from ocistream.cli.entry import COMMANDS, load
from ocistream.cli.environment import named_by_registries, tell_unused
from ocistream.cli.options import apply_verbosity, config_option, verbosity_options
from ocistream.cli.session import home
from ocistream.errors import InvalidNameError, NotFoundError, UsageError
from ocistream.oci.reference import parse_registry, printable
from ocistream.streams import paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ocistream.cli.console import Console
    from ocistream.config.toml_files import Table
    from ocistream.registry.locations import HostRule, Namespace

_BUILT_IN: Final = "built in"
#: What `config` is about: itself apart.
_NUMBERS: Final = (type(click.INT), type(click.FLOAT))
_CONFIGURED: Final = tuple(name for name in COMMANDS if name != "config")


@click.command()
@click.argument("action", type=click.Choice(["show", "check"]))
@click.argument("of", metavar="[COMMAND|FILE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON document.")
@config_option
@verbosity_options
@click.pass_obj
def config(
    console: Console, /, *, action: str, of: str | None, as_json: bool, config: Path | None, **options: Any
) -> None:
    """Show what options and registries are set to, and by what; or check a configuration file.

    `show` prints a configuration file that says the same, with where each value came from. With COMMAND, it is what
    holds for that. No secret is shown, and no credential helper is run. `check` looks at the whole of FILE, or of the
    file that counts.

    \b
    ocistream config show
    ocistream config show pull --json
    ocistream config check ./config.toml
    """
    apply_verbosity(console, options)
    if action == "check":
        if as_json:
            msg = "--json is for `config show`"
            raise UsageError(msg)
        _check(console, of, None if config is None else str(config))
        return
    if of is not None and of not in _CONFIGURED:
        msg = f"{printable(of)!r} is no command"
        raise UsageError(msg, hint=f"there are: {', '.join(_CONFIGURED)}")
    table = find(None if config is None else str(config), os.environ)
    tell_unused(console, os.environ, named_by_registries(table))
    shown = _Shown(table, of)
    click.echo(json.dumps(shown.document(), indent=2) if as_json else "\n".join(shown.lines()))


def _check(console: Console, of: str | None, named: str | None) -> None:
    """Check a file, all of it.

    Raises:
        UsageError: something in it is wrong.
        NotFoundError: it is not there.
    """
    if of is not None and named is not None:
        msg = "the file is named twice, by FILE and by --config"
        raise UsageError(msg)
    if of is not None and not paths.exists(of):
        msg = f"{printable(of)}: no such file"
        raise NotFoundError(msg)
    table = find(named if of is None else of, os.environ)
    tell_unused(console, os.environ, named_by_registries(table))
    if table is None:
        console.note("there is no configuration file")
        return
    from ocistream.config.file import host_rules

    check_all(table, {name: load(name) for name in _CONFIGURED})
    host_rules(table, home())
    console.note(f"{table.where} is right")


class _Shown:
    """What is set: by one file, by containers' files and by the environment; for all commands, or for one."""

    def __init__(self, table: Table | None, command: str | None) -> None:
        from ocistream.auth.credentials import Keychain
        from ocistream.config.certs_d import folders
        from ocistream.config.file import host_rules
        from ocistream.config.registries_conf import load_namespaces

        self._table = table
        self._command = command
        self._where = "" if table is None else table.where
        self._commands = {name: load(name) for name in _CONFIGURED}
        self._rules: Mapping[str, HostRule] = {} if table is None else host_rules(table, home())
        self._namespaces = load_namespaces(os.environ, home())
        self._folders = folders(os.environ, home())
        self._keychain = Keychain(os.environ, home=home(), configured=lambda host: self._rule(host).credentials)

    def document(self) -> dict[str, Any]:
        """Give all of it as JSON has it."""
        return {
            "file": self._where or None,
            "defaults": self._defaults(),
            "registries": {
                host: {
                    "settings": {
                        key: {"value": value, "origin": "file", "where": self._where}
                        for key, value in self._of_host(host).items()
                    },
                    "certificates": self._certificates(host),
                    "credentials": self._keychain.sources(host),
                }
                for host in self._hosts()
            },
            "containers": [{**_of_namespace(namespace), "where": namespace.source} for namespace in self._namespaces],
        }

    def lines(self) -> Iterator[str]:
        """Give all of it as a configuration file."""
        yield f"# file: {_shown(self._where)}" if self._where else "# there is no configuration file"
        for table, settings in self._defaults().items():
            yield ""
            yield f"[{table}]"
            for key, setting in settings.items():
                origin, where = setting["origin"], setting["where"]
                note = _BUILT_IN if origin == _BUILT_IN else f"{origin} {_shown(where)}"
                if setting["value"] is None:
                    yield f"# {key} is not set   # {note}"
                else:
                    yield f"{key} = {_toml(setting['value'])}   # {note}"
        for host in self._hosts():
            yield ""
            yield f"[registry.{_toml(host)}]"
            for key, value in self._of_host(host).items():
                yield f"{key} = {_toml(value)}   # file {_shown(self._where)}"
            if (folder := self._certificates(host)) is not None:
                yield f"# certificates: {_shown(folder)}"
            sources = self._keychain.sources(host)
            yield f"# credentials: {printable(', else '.join(sources), 1024) or 'none'}"
        for namespace in self._namespaces:
            yield ""
            yield f"# {_shown(namespace.source)}"
            for key, value in _of_namespace(namespace).items():
                yield f"#   {key} = {_toml(value)}"

    def _defaults(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Give the tables of defaults, each with its options, their values, and where these come from."""
        if self._command is not None:
            return {f"defaults.{self._command}": self._of_command(self._command)}
        shared: dict[str, dict[str, Any]] = {}
        others: dict[str, dict[str, dict[str, Any]]] = {}
        for name in self._commands:
            for key, setting in self._of_command(name).items():
                own = setting["origin"] == "file" and setting["where"].endswith(f"[defaults.{name}]")
                before = shared.get(key, setting)
                # What is said of one command, or is built in otherwise there, is no default of all.
                if own or before != setting:
                    others.setdefault(f"defaults.{name}", {})[key] = setting
                else:
                    shared[key] = setting
        return {"defaults": shared, **others}

    def _of_command(self, name: str) -> dict[str, dict[str, Any]]:
        command = self._commands[name]
        set_here = defaults_of(name, command, self._table, os.environ)
        found: dict[str, dict[str, Any]] = {}
        for key, option in options_of(command).items():
            if (setting := set_here.get(key)) is not None:
                value = _number(setting.value) if isinstance(option.type, _NUMBERS) else setting.value
                found[key] = {"value": value, "origin": setting.origin, "where": setting.where}
            else:
                value = option.to_info_dict()["default"]
                found[key] = {"value": value or None if option.multiple else value, "origin": _BUILT_IN, "where": None}
        return found

    def _hosts(self) -> list[str]:
        """List the registries of which something is said by name: in our file, in containers', or by a folder."""
        found = dict.fromkeys(self._rules)
        for namespace in self._namespaces:
            found[namespace.prefix.partition("/")[0]] = None
        for folder in self._folders:
            if os.access(folder, os.R_OK | os.X_OK):
                found |= dict.fromkeys(sorted(path.name for path in folder.iterdir() if paths.is_directory(path)))
        return list(filter(_is_registry, found))

    def _rule(self, host: str) -> HostRule:
        from ocistream.registry.locations import HostRule

        return self._rules.get(host) or HostRule()

    def _of_host(self, host: str) -> dict[str, Any]:
        """Give what our file says of a host, with its paths as they are meant."""
        if self._table is None or host not in self._rules:
            return {}
        written = self._table.table("registry").values
        values = dict(next(values for key, values in written.items() if parse_registry(key.lower()) == host))
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

    def _certificates(self, host: str) -> str | None:
        from ocistream.config.certs_d import folder_of

        folder = folder_of(host, self._folders)
        return None if folder is None else str(folder)


def _is_registry(name: str) -> bool:
    """Say whether a name is one: `*.DOMAIN` is not, nor are all folders."""
    try:
        return parse_registry(name.lower()) == name
    except InvalidNameError:
        return False


def _number(value: object) -> object:
    """Give a number that was found to be one as it is written in TOML."""
    if not isinstance(value, str):
        return value
    return int(value) if value.isdigit() else float(value)


def _shown(where: str) -> str:
    """Give a file's name for a comment, in the home directory by its short name."""
    own = f"{home()}/"
    return printable(f"~/{where.removeprefix(own)}" if own != "//" and where.startswith(own) else where, 1024)


def _of_namespace(namespace: Namespace) -> dict[str, Any]:
    mirrors = [
        {"location": mirror.location, "pull": mirror.pull, "insecure": bool(mirror.insecure)}
        for mirror in namespace.mirrors
    ]
    said = {
        "prefix": namespace.prefix,
        "location": namespace.location,
        "blocked": namespace.blocked,
        "insecure": namespace.insecure,
        "mirrors": mirrors,
    }
    return {key: value for key, value in said.items() if value}


def _toml(value: object) -> str:
    """Write a value as TOML has it, in one line and with nothing in it that drives a terminal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    return f'"{"".join(map(_escaped, value))}"' if isinstance(value, str) else str(value)


def _escaped(character: str) -> str:
    if character in {'"', "\\"}:
        return f"\\{character}"
    if character.isprintable():
        return character
    # Bytes that are no text have no escape.
    return "\\ufffd" if "\ud800" <= character <= "\udfff" else f"\\U{ord(character):08x}"
