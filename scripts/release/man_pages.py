"""Man pages, made from the same objects as `--help`: one for `ocistream`, one for each command.

    python -m scripts.release.man_pages DIR

The build of a wheel writes them (`scripts.release.hatch_build`), so no copy can be out of date. A page has the version
and no date: the same sources give the same bytes. The format is man(7), in ASCII.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

import ocistream
from ocistream.cli.entry_point import COMMANDS, cli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["ENVIRONMENT", "EXIT_CODES", "pages", "write"]

#: As in docs/errors.md; `ocistream.errors` defines the codes.
EXIT_CODES: Final = {
    "0": "success: the result is complete and verified",
    "1": "any error without its own code",
    "2": "wrong usage; a malformed name; a terminal or a closed stream in place of an archive; "
    "an error in a configuration or sync file",
    "3": "authentication or permission; a missing credential file",
    "4": "the image, repository, platform, file, directory or command of `--via` does not exist",
    "5": "a size or digest is wrong; an image has no valid signature, or the configuration rejects it",
    "6": "an invalid, truncated or malicious archive; an image with blobs that are neither in the archive nor at the "
    "destination",
    "7": "the network or the registry failed after all retries; rate limited; `serve` cannot listen on its port",
    "8": "valid, but not supported",
    "9": "the local disk: full, read-only, no permission; stdout is closed or cannot be written",
    "10": "incomplete: push the remaining volumes of the split archive",
    "129": "SIGHUP",
    "130": "SIGINT (Ctrl-C)",
    "141": "broken pipe: the reader closed stdout (no message is printed)",
    "143": "SIGTERM",
}
#: Every environment variable that ocistream reads.
ENVIRONMENT: Final = {
    "OCISTREAM_USERNAME, OCISTREAM_PASSWORD": "The credential for the registry that the command names.",
    "OCISTREAM_SRC_USERNAME, OCISTREAM_SRC_PASSWORD": "The same for the source of `copy`.",
    "OCISTREAM_DEST_USERNAME, OCISTREAM_DEST_PASSWORD": "The same for the destination of `copy`.",
    "OCISTREAM_CONFIG": "The configuration file, as with `--config`.",
    "OCISTREAM_CACHE": "A directory, as with `--cache`.",
    "OCISTREAM_JOBS": "The default of `--jobs`. Most other options have such a variable too.",
    "DOCKER_AUTH_CONFIG": "Credentials, as JSON in the format of Docker's file.",
    "REGISTRY_AUTH_FILE": "A file of credentials, as for Podman.",
    "DOCKER_CONFIG": "The directory of Docker's config.json.",
    "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY": "Proxies, and the hosts that need no proxy.",
    "SSL_CERT_FILE, SSL_CERT_DIR": "CA certificates to trust, instead of those of the system.",
    "NO_COLOR": "With any value: print no colors.",
    "SOURCE_DATE_EPOCH": "The modification time of archive entries, in seconds since 1970.",
    "XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR": "Directories of configuration, state and Podman's credentials.",
}
_FILES: Final = {
    "~/.config/ocistream/config.toml, /etc/ocistream/config.toml": "Options, registries, mirrors and trust.",
    "~/.docker/config.json": "Credentials; `ocistream login` stores them here.",
    "~/.config/containers/registries.conf, /etc/containers/registries.conf": "Mirrors, as for Podman.",
    "certs.d/HOST[:PORT]/ in /etc/containers, /etc/docker, ~/.config/containers, ~/.config/docker": "Certificates.",
    "~/.local/state/ocistream": "Records of interrupted uploads.",
}
#: Characters that have a meaning in roff, or that roff prints as another character.
_SPECIAL: Final = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
)


def pages() -> Mapping[str, str]:
    """Return every page by its file name."""
    group = cli.make_context("ocistream", [], resilient_parsing=True)
    made = {"ocistream.1": "\n".join(_overview(group)) + "\n"}
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None, name  # noqa: S101 - COMMANDS has only commands
        context = click.Context(command, parent=group, info_name=name)
        made[f"ocistream-{name}.1"] = "\n".join(_command(command, context)) + "\n"
    return made


def write(folder: Path) -> None:
    """Write every page into a folder; create the folder if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        folder.joinpath(name).write_text(text, encoding="ascii")


def _overview(context: click.Context) -> Iterator[str]:
    text, examples = _parts(cli.help or "")
    yield from _head("ocistream", "copy container images as streams")
    yield from _synopsis("ocistream", ["COMMAND", "[OPTIONS]", "..."])
    yield from _section("DESCRIPTION", text)
    yield ".SH COMMANDS"
    for name, (_, line) in COMMANDS.items():
        yield from [".TP", rf"\fBocistream\-{_plain(name)}\fR(1)", _text(line)]
    yield from _options(cli, context)
    yield from _table("EXIT STATUS", EXIT_CODES)
    yield from _table("ENVIRONMENT", ENVIRONMENT)
    yield from _table("FILES", _FILES)
    yield from _examples(examples)
    yield from _see_also(f"ocistream-{name}" for name in COMMANDS)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    text, examples = _parts(command.help or "")
    name = context.info_name or ""
    yield from _head(f"ocistream-{name}", COMMANDS[name][1].rstrip("."))
    yield from _synopsis(f"ocistream {name}", command.collect_usage_pieces(context))
    yield from _section("DESCRIPTION", text)
    yield from _options(command, context)
    yield from _examples(examples)
    yield from _section("EXIT STATUS", ["See ocistream(1), also for environment variables."])
    yield from _see_also(["ocistream"])


def _head(name: str, line: str) -> Iterator[str]:
    yield f'.TH {_plain(name.upper())} 1 "" "ocistream {ocistream.__version__}" "ocistream"'
    yield ".SH NAME"
    yield rf"{_plain(name)} \- {_plain(line)}"


def _synopsis(name: str, pieces: Iterable[str]) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    yield " ".join([rf"\fB{_plain(name)}\fR", *map(_plain, pieces)])


def _section(title: str, paragraphs: Iterable[str]) -> Iterator[str]:
    yield f".SH {title}"
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        yield _text(paragraph)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    yield ".SH OPTIONS"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            spelled, text = record
            yield from [".TP", ", ".join(_spelling(spelling) for spelling in spelled.split(", ")), _text(text)]


def _spelling(text: str) -> str:
    option, _, value = text.partition(" ")
    return rf"\fB{_plain(option)}\fR" + (rf" \fI{_plain(value)}\fR" if value else "")


def _table(title: str, rows: Mapping[str, str]) -> Iterator[str]:
    yield f".SH {title}"
    for name, text in rows.items():
        yield from [".TP", rf"\fB{_plain(name)}\fR", _text(text)]


def _examples(lines: Iterable[str]) -> Iterator[str]:
    yield from [".SH EXAMPLES", ".nf", *(_safe(_plain(line)) for line in lines), ".fi"]


def _see_also(names: Iterable[str]) -> Iterator[str]:
    yield ".SH SEE ALSO"
    yield ",\n".join(rf"\fB{_plain(name)}\fR(1)" for name in names)


def _parts(text: str) -> tuple[list[str], list[str]]:
    """Split the help of a command into paragraphs and lines of examples, which click does not wrap.

    An empty line separates two paragraphs of examples.
    """
    paragraphs: list[str] = []
    examples: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text).strip()):
        if paragraph.startswith("\b"):
            examples += ["", *(line.strip() for line in paragraph.splitlines()[1:])]
        else:
            paragraphs.append(" ".join(paragraph.split()))
    return paragraphs, examples[1:]


def _text(text: str) -> str:
    """Return filled text; text in backquotes is bold."""
    made = "".join(rf"\fB{_plain(part)}\fR" if odd else _plain(part) for part, odd in _quoted(text))
    # Only for readers of the source: roff fills lines itself.
    lines = textwrap.wrap(made, 79, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(_safe, lines))


def _quoted(text: str) -> Iterator[tuple[str, bool]]:
    parts = text.split("`")
    for number, part in enumerate(parts):
        yield part, bool(number % 2)


def _safe(line: str) -> str:
    """Escape a line that roff would read as a request."""
    return rf"\&{line}" if line.startswith(".") else line


def _plain(text: str) -> str:
    return " ".join(text.split("\n")).translate(_SPECIAL)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
