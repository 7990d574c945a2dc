"""`ocistream login` and `logout`: store or remove a registry's credential in Docker's file or credential helper."""

from __future__ import annotations

import getpass
import os
import sys
import termios
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ocistream.api.options import RegistryOptions
from ocistream.api.registries import RegistryAccess, find_home
from ocistream.cli.options import RunOptions, command, options_of, tls_options, user_options
from ocistream.errors import AuthenticationError, UsageError
from ocistream.oci.reference import parse_registry
from ocistream.process_exit import called_at_forced_exit

if TYPE_CHECKING:
    from ocistream.auth.credentials import Keychain
    from ocistream.auth.docker_config import Credential
    from ocistream.cli.context import CommandContext

#: Fewer than for a transfer: a person waits at the terminal.
_RETRIES: Final = 2


_authfile_option: Final = options_of(
    RegistryOptions,
    "authfile",
    help_text="Use FILE (Docker's format) instead of ~/.docker/config.json.",
)


@command(
    click.Argument(["registry"], default="docker.io"),
    user_options,
    _authfile_option,
    options_of(RunOptions, "config"),
    tls_options,
)
def login(context: CommandContext, registry: str) -> None:
    """Check a credential for a registry (default: Docker Hub) and store it where `docker login` does.

    \b
    ocistream login -u me --password-stdin registry.example.com < token
    ocistream login -u me --password-file token --authfile ci.json docker.io
    """
    from ocistream.auth.docker_config import Credential

    host = parse_registry(registry)
    keychain = _open_keychain(context)
    option_password = context.sides[0].read_password()
    username = context.registry_options.username or os.environ.get("OCISTREAM_USERNAME") or _prompt("Username: ")
    secret = option_password or os.environ.get("OCISTREAM_PASSWORD") or _prompt("Password: ", secret=True)
    credential = Credential(username, secret, source="the given user name and password")
    is_checked = _check_credential(context, host, credential)
    store = keychain.save(host, credential)
    result = f"logged in to {host}" if is_checked else f"{host} does not ask for credentials: nothing was checked"
    context.console.info(f"{result}; the credential is stored in {store}")


@command(
    click.Argument(["registry"], default="docker.io"),
    _authfile_option,
)
def logout(context: CommandContext, registry: str) -> None:
    """Delete the stored credential of a registry (default: Docker Hub).

    \b
    ocistream logout registry.example.com
    """
    host = parse_registry(registry)
    store = _open_keychain(context).erase(host)
    context.console.info(f"removed the credential of {host} from {store}" if store else f"not logged in to {host}")


def _open_keychain(context: CommandContext) -> Keychain:
    """Return the keychain that stores credentials in the file of --authfile, or where Docker stores them."""
    from ocistream.auth.credentials import Keychain

    path = context.registry_options.authfile
    return Keychain(os.environ, home=find_home(os.environ), auth_file=(Path(path), "--authfile") if path else None)


def _check_credential(context: CommandContext, host: str, credential: Credential) -> bool:
    """Try the credential; return whether the registry asked for it.

    Raise AuthenticationError if the registry refuses the credential.
    """
    asked: list[str] = []

    def find(registry: str, _repository: str) -> Credential | None:
        asked.append(registry)
        return credential if registry == host else None

    options = replace(context.run_options, retries=_RETRIES)
    client = RegistryAccess(options, os.environ, context.access.configuration).create_client(
        context.registry_options, find, cancelled=context.cancelled
    )
    endpoint = client.endpoint(host)
    try:
        client.request(endpoint, "GET", f"{endpoint.url}/v2/")
    except AuthenticationError as error:
        msg = f"{host} refused the user name or the password"
        hint = "check the user name and password; many registries expect an access token instead of the password"
        raise AuthenticationError(msg, hint=hint) from error
    finally:
        client.close()
    return host in asked


def _prompt(prompt: str, *, secret: bool = False) -> str:
    """Ask at the terminal; raise UsageError if there is none or the answer is empty."""
    if not sys.stdin or not sys.stdin.isatty():
        msg = f"no terminal to ask for the {'password' if secret else 'user name'}"
        hint = "use --password-file, --password-stdin or OCISTREAM_PASSWORD"
        hint = hint if secret else f"use --username; for the password, {hint}"
        raise UsageError(msg, hint=hint)
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
        msg = "no input"
        raise UsageError(msg)
    return answer
