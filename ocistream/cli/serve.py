"""`ocistream serve`: a registry on this machine, over a layout directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.cli.options import apply_verbosity, verbosity_options
from ocistream.errors import UnsupportedError, UsageError
from ocistream.reference import printable

if TYPE_CHECKING:
    from ocistream.cli.console import Console
    from ocistream.serve import AccessEntry

#: Docker's own registry listens there.
_DEFAULT_ADDRESS: Final = "127.0.0.1:5000"
_MAX_LOGGED: Final = 2000


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path())
@click.option("--listen", default=_DEFAULT_ADDRESS, show_default=True, metavar="HOST:PORT", help="Port 0 takes any.")
@click.option("--read-only", is_flag=True, help="Refuse every push and delete.")
@verbosity_options
@click.pass_obj
def serve(console: Console, /, path: Path, listen: str, read_only: bool, **options: Any) -> None:
    """Serve the layout directory PATH (default: this one) as a registry, for reading and writing.

    It listens on this machine only, and runs until it is interrupted. The first line on stdout is its address.

    \b
    ocistream serve images/ --listen 127.0.0.1:5000
    docker push 127.0.0.1:5000/app:1
    """
    from ocistream.serve import Registry

    apply_verbosity(console, options)
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        msg = f"malformed address {listen!r}"
        raise UsageError(msg, hint="write HOST:PORT, such as 127.0.0.1:5000 or [::1]:5000")

    if path.is_file():
        msg = f"{path} is a file, and only layout directories can be served"
        raise UnsupportedError(msg, hint=f"`ocistream copy oci-archive:{path} oci:DIR` makes a directory of an archive")

    def log(entry: AccessEntry) -> None:
        text = (
            f"{entry.client} {entry.method} {entry.target}: {entry.status}, {entry.received} B in, {entry.sent} B out"
        )
        if entry.problem:
            text += f" ({entry.problem})"
        console.note(printable(text, _MAX_LOGGED), level=1, **asdict(entry))

    registry = Registry(path, address=(host.strip("[]"), int(port)), read_only=read_only, log=log)
    try:
        click.echo(registry.host)
        registry.serve_forever()
    finally:
        registry.stop()
