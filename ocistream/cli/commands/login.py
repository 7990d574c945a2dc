"""`ocistream login` and `logout`: store or remove a registry's credential in Docker's file or credential helper."""

from __future__ import annotations

import getpass
import os
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.api.registries import build_host_settings_lookup, load_host_rules
from ocistream.cli.context import home_directory
from ocistream.cli.credentials import ExplicitCredentials
from ocistream.cli.options import apply_verbosity, config_option, tls_options, user_options, verbosity_options
from ocistream.cli.registry_options import build_http_settings
from ocistream.errors import AuthenticationError, UsageError
from ocistream.forced_exit import called_at_forced_exit
from ocistream.oci.reference import parse_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ocistream.auth.credentials import Credential, Keychain
    from ocistream.cli.console import Console

#: Fewer than for a transfer: a person waits at the terminal.
_MAX_ATTEMPTS: Final = 3


_authfile_option: Final = click.option(
    "--authfile", metavar="FILE", help="Keep credentials in FILE, in Docker's format, not in ~/.docker/config.json."
)


@click.command()
@click.argument("registry", default="docker.io")
@user_options
@_authfile_option
@config_option
@tls_options
@verbosity_options
@click.pass_obj
def login(console: Console, /, registry: str, username: str | None, **options: Any) -> None:
    """Check a registry's credential, and keep it where `docker login` would (default: Docker Hub).

    \b
    ocistream login -u me --password-stdin registry.example.com < token
    ocistream login -u me --password-file token --authfile ci.json registry.example.com
    """
    from ocistream.auth.credentials import Credential

    apply_verbosity(console, options)
    host = parse_registry(registry)
    keychain = _open_keychain(options)
    option_password = ExplicitCredentials(options, os.environ).read_password()
    username = username or os.environ.get("OCISTREAM_USERNAME") or _prompt("Username: ")
    secret = option_password or os.environ.get("OCISTREAM_PASSWORD") or _prompt("Password: ", secret=True)
    credential = Credential(username, secret, source="the given user name and password")
    _check_credential(host, credential, options)
    store = keychain.save(host, credential)
    console.info(f"logged in to {host}; the credential is kept in {store}")


@click.command()
@click.argument("registry", default="docker.io")
@_authfile_option
@verbosity_options
@click.pass_obj
def logout(console: Console, /, registry: str, **options: Any) -> None:
    """Forget a registry's credential (default: Docker Hub's).

    \b
    ocistream logout registry.example.com
    """
    apply_verbosity(console, options)
    host = parse_registry(registry)
    store = _open_keychain(options).erase(host)
    console.info(f"removed the credential of {host} from {store}" if store else f"not logged in to {host}")


def _open_keychain(options: Mapping[str, Any]) -> Keychain:
    """Return the keychain that stores credentials in the file of --authfile, or where Docker stores them."""
    from ocistream.auth.credentials import Keychain

    path = options["authfile"]
    if path == "":
        msg = "--authfile is empty"
        raise UsageError(msg, hint="is it a variable that is not set?")
    return Keychain(os.environ, home=home_directory(), auth_file=(Path(path), "--authfile") if path else None)


def _check_credential(host: str, credential: Credential, options: Mapping[str, Any]) -> None:
    """Try the credential; raise AuthenticationError if the registry refuses it."""
    from ocistream.http.client import HttpClient

    client = HttpClient(
        build_http_settings(options, os.environ, attempts=_MAX_ATTEMPTS),
        lambda registry, _: credential if registry == host else None,
        find_host_settings=build_host_settings_lookup(
            os.environ,
            load_host_rules(options.get("config"), os.environ).settings,
            use_certs_d=not options["cert_dir"],
        ),
    )
    endpoint = client.endpoint(host)
    try:
        client.request(endpoint, "GET", f"{endpoint.url}/v2/").drain()
    except AuthenticationError as error:
        msg = f"{host} refused the user name or the password"
        hint = f"are they typed right? many registries want a token in the password's place ({error.message})"
        raise AuthenticationError(msg, hint=hint) from error
    finally:
        client.close()


def _prompt(prompt: str, *, secret: bool = False) -> str:
    """Ask at the terminal; raise UsageError if there is none or the answer is empty."""
    if not sys.stdin or not sys.stdin.isatty():
        msg = "there is no terminal to ask for the user name or the password"
        raise UsageError(
            msg, hint="give --username, and the password with --password-file, --password-stdin or OCISTREAM_PASSWORD"
        )
    if secret:
        attributes = termios.tcgetattr(sys.stdin)
        # An interruption does not wait for `getpass`, which would show again what is typed.
        with called_at_forced_exit(lambda: termios.tcsetattr(sys.stdin, termios.TCSANOW, attributes)):
            try:
                answer = getpass.getpass(prompt, stream=sys.stderr)
            except EOFError:
                answer = ""
    else:
        click.echo(prompt, nl=False, err=True)
        answer = sys.stdin.readline().strip()
    if not answer:
        msg = "nothing was entered"
        raise UsageError(msg)
    return answer
