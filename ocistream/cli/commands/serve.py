"""`ocistream serve`: serve a layout directory or an archive as a registry, and write its access log."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode

import click

from ocistream import limits
from ocistream.api.options import TLS, RegistryOptions
from ocistream.cli.options import MESSAGES, SELECTS_OUTPUT, Option, command, options_of
from ocistream.cli.parameter_types import FilePath
from ocistream.errors import NotFoundError, UnsupportedError, UsageError
from ocistream.http.origins import is_loopback
from ocistream.locations import check_path_kind, is_archive_name, parse_local_location, path_of
from ocistream.oci.reference import printable
from ocistream.process_exit import delayed_exit
from ocistream.sizes import format_count
from ocistream.streams import files, paths

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from ocistream.cli.console import Console
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location
    from ocistream.serve import AccessLogEntry, BasicAuth

#: Seconds for the server to stop after a signal.
_STOP_TIMEOUT: Final = 6.0
#: The port of Docker's own registry.
_DEFAULT_ADDRESS: Final = "127.0.0.1:5000"
_MAX_LOGGED: Final = 2000
_MAX_PORT: Final = 65535
_MAX_PORT_DIGITS: Final = 5
_PATH_TYPE: Final = FilePath(path_type=Path)


@command(
    click.Argument(["location_text"], metavar="[PATH]", type=FilePath(), default="."),
    Option(
        ["--listen"],
        default=_DEFAULT_ADDRESS,
        show_default=True,
        metavar="HOST:PORT",
        help="Address to listen on; port 0 chooses one.",
    ),
    Option(["--read-only"], is_flag=True, help="Refuse every push and delete."),
    options_of(
        RegistryOptions,
        "username",
        help_text="Require a login as USER; needed if other machines can connect.",
    ),
    options_of(RegistryOptions, "password_stdin", help_text="Read the password from stdin."),
    options_of(RegistryOptions, "password_file", help_text="Read the password from FILE."),
    Option(["--tls-cert"], type=_PATH_TYPE, metavar="FILE", section=TLS, help="Certificate (PEM)."),
    Option(
        ["--tls-key"],
        type=_PATH_TYPE,
        metavar="FILE",
        section=TLS,
        help="Key (PEM).  [default: in the certificate's file]",
    ),
    Option(
        ["--access-log"],
        type=_PATH_TYPE,
        metavar="FILE",
        not_configurable=SELECTS_OUTPUT,
        section=MESSAGES,
        help="Append one line per request to FILE (- is stderr), or JSON with --log-format json.",
    ),
)
def serve(
    context: CommandContext,
    location_text: str,
    listen: str,
    access_log: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    *,
    read_only: bool,
) -> None:
    """Serve PATH as a registry: a layout directory for pull and push (default: .), an archive for pull.

    The first line on stdout is HOST:PORT; open it in a browser to see the images. Other machines can connect only with
    --listen and a password; TLS is optional. A missing or empty directory becomes an empty layout. A missing PATH that
    ends in .tar (or .tgz, .tar.gz, .tar.zst) is an error. An image registry.example.com/app:1 of PATH is served as
    localhost:5000/app:1 and as localhost:5000/registry.example.com/app:1; an image whose name is only a
    tag, such as 1.0 in images/, as localhost:5000/images:1.0. Stop the server with SIGINT or SIGTERM.

    \b
    ocistream serve images/     # docker push localhost:5000/app:1
    ocistream serve app.tar     # docker pull localhost:5000/app:1
    ocistream serve app.tar --listen 0.0.0.0:5000 --tls-cert cert.pem \\
      -u ada --password-file password
    """
    from ocistream.serve import Registry
    from ocistream.serve.capacity import limit_by_descriptors, raise_descriptor_limit

    console = context.console
    address = _parse_address(listen)
    location = _parse_served_location(location_text)
    path = path_of(location)
    is_new = not paths.exists(path)
    auth = _build_basic_auth(context)
    tls = _build_tls_context(tls_cert, tls_key)
    # A note, not an error: a proxy or a tunnel may add TLS.
    if auth is not None and tls is None and not is_loopback(address[0]):
        console.info("no TLS (--tls-cert): others on the network can read the password and change the data")
    raise_descriptor_limit()
    if (clients := limit_by_descriptors(limits.MAX_CLIENTS)) < limits.MAX_CLIENTS:
        console.info(
            f"at most {format_count(clients, 'client')} connections instead of {limits.MAX_CLIENTS}: "
            "the limit of open files is too low (`ulimit -n`)"
        )
    console.is_server = True
    with ExitStack() as stack:
        log = _build_request_log(console, access_log, stack)
        registry = Registry(
            path,
            address=address,
            read_only=read_only,
            log=log,
            auth=auth,
            tls=tls,
            as_docker=location.kind == "docker-archive",
        )
        stack.callback(registry.stop)
        if is_new:
            console.info(f"created an empty layout in {printable(str(path), 1024)}")
        for line in registry.operator_notices():
            console.info(line)
        click.echo(registry.host)
        registry.start()
        console.cancelled.wait()
        with delayed_exit(_STOP_TIMEOUT):
            registry.stop()


def _parse_address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    hint = "write HOST:PORT, such as 127.0.0.1:5000 or [::1]:5000"
    if not host or not port.isascii() or not port.isdigit():
        msg = f"malformed address {printable(listen)!r}"
        raise UsageError(msg, hint=hint)
    if len(port) > _MAX_PORT_DIGITS or int(port) > _MAX_PORT:
        msg = f"malformed address {printable(listen)!r}: the port is not from 0 to {_MAX_PORT}"
        raise UsageError(msg, hint=hint)
    return host.strip("[]"), int(port)


def _parse_served_location(text: str) -> Location:
    """Parse PATH; raise an error if it can be read only once, or is a missing archive.

    A missing archive would otherwise become an empty layout directory.
    """
    location = parse_local_location(text)
    path = path_of(location)
    hint = "serve needs an archive in a file: clients request blobs in any order"
    if location.is_stream:
        msg = "cannot serve stdin"
        raise UsageError(msg, hint=hint)
    if location.name is not None:
        msg = f"{printable(text)!r} names one image, but serve serves all images of a layout or an archive"
        raise UsageError(msg, hint="omit the name: clients ask for an image by its name")
    if paths.is_special(path):
        msg = f"{path} is neither a directory nor a regular file"
        raise UnsupportedError(msg, hint=hint)
    check_path_kind(location)
    # A dangling link is reported where it is opened.
    is_archive = location.kind != "oci" and (location.kind != "path" or is_archive_name(path.name))
    if is_archive and not paths.exists(path, follow=False):
        msg = f"{path}: no such file"
        raise NotFoundError(msg, hint=f"check the path; for a new layout directory, write oci:{path}")
    if location.kind == "path" and ":" in text and not text.startswith((".", "/", "~")) and not paths.exists(path):
        # `app.tar:1` or `localhost:5000/app` would otherwise become a layout directory of that name.
        msg = f"{printable(text)}: no such file or directory"
        hint = f"serve takes a path, not an image; for a new layout directory, write ./{printable(text)}"
        if "/" in text:
            hint = f"serve takes a path, not an image: run `ocistream copy {printable(text)} oci:DIR`, and serve DIR"
        raise NotFoundError(msg, hint=hint)
    return location


def _build_basic_auth(context: CommandContext) -> BasicAuth | None:
    """Return the check of user and password, or None without --username; raise UsageError if one is missing."""
    from ocistream.serve import BasicAuth

    options = context.registry_options
    if options.username is None:
        option = "--password-stdin" if options.password_stdin else "--password-file"
        if options.password_stdin or options.password_file:
            msg = f"{option} without --username"
            raise UsageError(msg, hint="name the user of that password")
        return None
    password = context.sides[0].read_password() or os.environ.get("OCISTREAM_PASSWORD")
    if not password:
        msg = "--username needs a password"
        raise UsageError(msg, hint="use --password-stdin, --password-file or OCISTREAM_PASSWORD")
    # One user and no htpasswd file: bcrypt would be a dependency, and Python alone checks only unsalted SHA-1.
    return BasicAuth(options.username, password)


def _build_tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    from ocistream.http.tls import create_server_context

    if certificate is None:
        if key is not None:
            msg = "--tls-key without --tls-cert"
            raise UsageError(msg, hint="name the certificate of that key")
        return None
    return create_server_context(str(certificate), str(key) if key is not None else None)


def _build_request_log(console: Console, path: Path | None, stack: ExitStack) -> Callable[[AccessLogEntry], None]:
    """Return the function that logs a request: to the access log, and to stderr with -v."""
    access: AccessLog | None = None
    if path is not None:
        target_path = None if str(path) == "-" else path
        access = AccessLog(target_path, console)
        stack.callback(access.close)

    def log(entry: AccessLogEntry) -> None:
        if access is not None:
            access.write(entry)
        if console.verbosity < 1 and not entry.is_server_fault:
            return
        target = redact_target(entry.target)
        text = f"{entry.client} {entry.method} {target}: {entry.status}, {entry.received} B in, {entry.sent} B out"
        if entry.problem:
            text += f" ({entry.problem})"
        fields = {**asdict(entry), "target": target, "when": entry.timestamp}
        del fields["timestamp"], fields["is_server_fault"]
        # Faults of the server, such as a full disk or a corrupt archive, are printed without -v too.
        console.info(printable(text, _MAX_LOGGED), level=0 if entry.is_server_fault else 1, **fields)

    return log


_MAX_TARGET: Final = 2000
#: Query parameters of the distribution-spec; none is a secret.
_PUBLIC_PARAMETERS: Final = frozenset(
    {"artifactType", "digest", "digest-algorithm", "from", "last", "mount", "n", "tag"}
)


class AccessLog:
    """Writes a line per request to a file or to stderr. Safe for several threads.

    If the log cannot be written any more, the console shows one message.
    """

    def __init__(self, path: Path | None, console: Console) -> None:
        """Append to `path`, None for stderr."""
        self._console = console
        self._failed = False
        if path is None:
            self._descriptor = os.dup(sys.stderr.fileno())
        else:
            target, flags = paths.write_target(path), os.O_NOFOLLOW
            if paths.is_special(path):
                # /dev/stderr may lead to a file without a path.
                target, flags = path, 0
            with files.disk_errors(f"cannot open the access log {path}"):
                # O_APPEND: after a log rotation that truncates the file, new lines start at its beginning.
                flags |= os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(target, flags, 0o640)

    def write(self, entry: AccessLogEntry) -> None:
        """Write the line of a request; a failure does not stop the request."""
        line = (_format_json_line(entry) if self._console.as_json else _format_common_line(entry)).encode() + b"\n"
        with self._console.write_lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError as error:
                if not self._failed:
                    self._console.info(f"cannot write the access log: {error.strerror}")
                self._failed = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _format_common_line(entry: AccessLogEntry) -> str:
    """Return the common log format: host, identity (unknown), user, time, request, status, body bytes."""
    when = dt.datetime.fromtimestamp(entry.timestamp, dt.UTC).astimezone()
    stamp = f"{when:%d/%b/%Y:%H:%M:%S %z}"
    request = _escape_quotes(f"{entry.method} {redact_target(entry.target)} {entry.version}")
    user = quote(entry.user, safe="@+") if entry.user else "-"
    return f'{printable(entry.client)} - {user} [{stamp}] "{request}" {entry.status or "-"} {entry.sent or "-"}'


def _format_json_line(entry: AccessLogEntry) -> str:
    when = dt.datetime.fromtimestamp(entry.timestamp, dt.UTC).isoformat(timespec="milliseconds")
    fields = {
        "time": when,
        "client": entry.client,
        "user": entry.user,
        "method": printable(entry.method),
        "target": redact_target(entry.target),
        "status": entry.status,
        "received": entry.received,
        "sent": entry.sent,
        "seconds": round(entry.seconds, 6),
    }
    return json.dumps(fields if entry.problem is None else {**fields, "problem": printable(entry.problem)})


def redact_target(target: str) -> str:
    """Return the request target without control characters and without query values that may be secret."""
    path, separator, query = target.partition("?")
    # A complete URL may contain a user and a password.
    path = re.sub(r"\A([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@", r"\1", path)
    if separator:
        shown = [
            (name, value if name in _PUBLIC_PARAMETERS else "...")
            for name, value in parse_qsl(query, keep_blank_values=True)
        ]
        path += f"?{urlencode(shown, safe='/:...')}"
    return printable(path, _MAX_TARGET)


def _escape_quotes(text: str) -> str:
    return printable(text, _MAX_TARGET).replace("\\", "\\\\").replace('"', '\\"')
