"""`ocistream sync`: run the copies that a TOML file lists."""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.cli.console import escape_ci_commands
from ocistream.cli.context import home_directory
from ocistream.cli.error_hints import add_sync_hint
from ocistream.cli.options import authfile_option, memory_option, transfer_options
from ocistream.cli.progress import format_count, format_size, show_progress
from ocistream.cli.registry_options import build_sync_hint_translator
from ocistream.cli.report import (
    check_result_writable,
    report_incomplete_indexes,
    report_skipped_referrers,
    write_result_pieces,
)
from ocistream.cli.signals import InterruptibleEvent
from ocistream.cli.standard_streams import read_password_file
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.streams.paths import real_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ocistream.auth.credentials import Keychain
    from ocistream.cli.context import CommandContext
    from ocistream.locations import OpenContext
    from ocistream.sync.plan import Login, Shard, SyncLocation, SyncPlan
    from ocistream.sync.run import SyncResult

_SYNC_FILE: Final = "the sync file"


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would be copied, with bytes, and write nothing.")
@click.option(
    "--shard",
    "part",
    metavar="I/N",
    default="0/1",
    help="Do only the I-th of N parts, counted from 0; each image is in one of them, by a hash of its name.",
)
@authfile_option
@memory_option
@transfer_options
def sync(context: CommandContext, file: Path, part: str, *, dry_run: bool) -> None:
    """Copy many images, from anywhere to anywhere, as a TOML FILE has it; only what differs is moved.

    An image that fails does not stop the others: the exit code is then that of the first failure. What was interrupted
    goes on when the same command is run again. docs/sync.md has the file's keys.

    \b
    ocistream sync images.toml
    ocistream sync images.toml --dry-run
    ocistream sync images.toml --shard "$JOB_COMPLETION_INDEX/8" --result result.json
    """
    from ocistream.sync.file import read_sync_file
    from ocistream.sync.plan import parse_shard
    from ocistream.sync.run import SyncRun

    shard, plan = parse_shard(part), read_sync_file(file, home_directory())
    context.rule_overrides = plan.registries
    _report_unused_tables(context, plan)
    _warn_unused_variables(context, plan)
    result = context.options["result"]
    context.check_result_path(
        *(place.location for entry in plan.entries for place in (entry.source, *entry.destinations))
    )
    if result is not None:
        if real_path(result) == real_path(file):
            msg = f"--result {printable(str(result), 1024)} is the file that says what is copied"
            raise UsageError(msg, hint="name another file: it would be written over")
        check_result_writable(result)
    around = _OpenContexts(context, plan)
    told = _OutcomeReporter(context, dry_run=dry_run, keeps=result is not None)
    is_whole = False
    try:
        with show_progress(context.options["progress"], context.console) as observer:
            run = SyncRun(
                around,
                told,
                jobs=context.jobs,
                ahead=context.prefetch_memory,
                stop=InterruptibleEvent,
                observer=observer,
                check_push=context.check_push,
            )
            run.run(plan, shard, dry_run=dry_run)
        is_whole = True
    finally:
        # What was done is said of a run that was stopped, too.
        if is_whole or told.has_outcomes:
            told.summarize(shard)
        if result is not None:
            write_result_pieces(result, told.document(shard, is_whole=is_whole))
    if told.exit_code:
        raise click.exceptions.Exit(told.exit_code)


def _report_unused_tables(context: CommandContext, plan: SyncPlan) -> None:
    """Say with -v which tables are for registries that no entry names: they may be for mirrors, or misspelt."""
    places = (place for entry in plan.entries for place in (entry.source, *entry.destinations))
    named = {place.location.reference.registry.lower() for place in places if place.location.reference}
    for host in plan.registries:
        if host not in named:
            context.console.info(f'[registry."{printable(host)}"]: no entry names this registry', level=1)


def _warn_unused_variables(context: CommandContext, plan: SyncPlan) -> None:
    """Say which variables have no effect. A user name without a registry is for none of the many registries."""
    if not any(name.startswith("OCISTREAM_") for name in os.environ):
        return
    from ocistream.cli.settings import find_credential_variables, read_configuration_file, warn_unused_variables

    logins = [place.login for entry in plan.entries for place in (entry.source, *entry.destinations) if place.login]
    used = {login.password_env for login in logins}
    sources = [rule.credentials for rule in plan.registries.values() if rule.credentials]
    used |= {f"{one.name}_{word}" for one in sources if one.kind == "env" for word in ("USERNAME", "PASSWORD")}
    config = context.options.get("config")
    used |= find_credential_variables(read_configuration_file(None if config is None else str(config), os.environ))
    warn_unused_variables(context.console, os.environ, used)
    for variable in (f"OCISTREAM_{side}USERNAME" for side in ("", "SRC_", "DEST_")):
        if os.environ.get(variable) and variable not in used:
            what = f"the variable {variable} has no effect on `ocistream sync`"
            context.console.info(f'{what}: give each registry its credentials in [registry."HOST"] of the sync file')


class _OpenContexts:
    """What each place is reached by: one set of connections for each of the file's credentials."""

    def __init__(self, context: CommandContext, plan: SyncPlan) -> None:
        self._session = context
        registries: dict[Login | None, set[str]] = {}
        for entry in plan.entries:
            for place in (entry.source, *entry.destinations):
                of_login = registries.setdefault(place.login, set())
                if place.location.reference is not None:
                    of_login.add(place.location.reference.registry)
        # A variable that is not set is found out before anything is done.
        self._contexts = {
            login: self._build_context(login, _read_secret(login), those) for login, those in registries.items()
        }

    def __call__(self, place: SyncLocation) -> OpenContext:
        return self._contexts[place.login]

    def _build_context(self, login: Login | None, secret: str, registries: Collection[str]) -> OpenContext:
        own = functools.partial(self._build_keychain, login, secret, registries)
        return self._session.build_open_context(
            build_keychain=own, hint=build_sync_hint_translator(self._session.options)
        )

    def _build_keychain(self, login: Login | None, secret: str, registries: Collection[str]) -> Keychain:
        """Give what a place's credentials are found by: those of the file are for the `registries` it names there.

        A mirror of one of them is shown its own, if there are any.
        """
        from ocistream.auth.credentials import Credential, Keychain
        from ocistream.auth.docker_config import with_named_source

        env, configured = dict(os.environ), self._session.host_rules().credentials
        # A user name that no registry stands beside is for none of a file's many registries.
        nobody: tuple[str, ...] = ()
        auth_file = self._session.explicit_credentials.find_auth_file("")
        if login is None:
            return Keychain(env, home=home_directory(), named=nobody, configured=configured, auth_file=auth_file)
        if login.auth_file is not None:
            auth_file = login.auth_file, _SYNC_FILE
            return Keychain(env, home=home_directory(), named=nobody, configured=configured, auth_file=auth_file)
        source = login.password_env or str(login.password_file)
        credential = with_named_source(Credential(login.username, secret, source=source), _SYNC_FILE)
        return Keychain(
            env,
            home=home_directory(),
            explicit=credential,
            named=registries,
            configured=configured,
            auth_file=auth_file,
        )


def _read_secret(login: Login | None) -> str:
    if login is None or login.auth_file is not None:
        return ""
    if login.password_file is not None:
        return read_password_file(str(login.password_file), f"{login.where}: password-file")
    secret = os.environ.get(login.password_env)
    if not secret:
        msg = f"{login.where}: password-env names {printable(login.password_env)}, which is not set"
        raise UsageError(msg, hint="export it: the password is taken from there")
    return secret


class _OutcomeReporter:
    """Takes the outcomes: prints a line for each, adds them up, and keeps them for --result if there is one."""

    def __init__(self, context: CommandContext, *, dry_run: bool, keeps: bool) -> None:
        self._session = context
        self._dry_run = dry_run
        self._started_at = monotonic()
        self._counts: Counter[str] = Counter()
        self._size = self._fetched = 0
        #: What --result has of each, in little room: there may be many thousands.
        self._results = CompressedJsonList() if keeps else None
        #: The exit code of the first failure; 0 without any.
        self.exit_code = 0

    def __call__(self, outcome: SyncResult) -> None:
        self._counts[outcome.status] += 1
        self._size += outcome.size
        self._fetched += outcome.bytes_read
        if self._results is not None:
            self._results.add(_outcome_json(outcome))
        if outcome.error is not None:
            error = outcome.error
            add_sync_hint(error, outcome.source)
            what = f"{printable(outcome.source)} to {printable(outcome.destination)}: {error.message}"
            self._session.console.error(what, hint=error.hint, code=error.exit_code)
            self.exit_code = self.exit_code or error.exit_code
        elif self._dry_run:
            how = "copy" if outcome.status == "to copy" else outcome.status
            self._print(f"{how} {outcome.size} {printable(outcome.source)} {_format_result(outcome)}")
        else:
            self._print(_format_result(outcome))
        report_incomplete_indexes(self._session.console, outcome.incomplete)
        report_skipped_referrers(self._session.console, outcome.skipped_referrers)

    def _print(self, line: str) -> None:
        with self._session.console.suspend_display():
            click.echo(line)

    @property
    def has_outcomes(self) -> bool:
        """Whether anything has become of an image."""
        return bool(self._counts)

    def summarize(self, shard: Shard) -> None:
        """Say in one line on stderr what all came to."""
        counts, failed, size, fetched = self._counts, self._counts["failed"], self._size, self._fetched
        moved = format_count(counts["to copy"] if self._dry_run else counts["copied"], "image")
        parts = [f"{moved}{' to copy' if self._dry_run else ' copied'}, {format_size(size)}"]
        if fetched != size:
            parts[0] += f", of which {format_size(fetched)} {'are' if self._dry_run else 'were'} read"
        parts.append(f"{counts['unchanged']} unchanged")
        if failed:
            parts.append(f"{failed} failed")
        where = f"shard {shard}: " if shard.count > 1 else ""
        self._session.console.info(f"{where}{'; '.join(parts)}; in {monotonic() - self._started_at:.1f} s")

    def document(self, shard: Shard, *, is_whole: bool) -> Iterator[bytes]:
        """Give the document of --result in pieces; sizes in bytes. `complete` is false of a run that was stopped."""
        before = {"complete": is_whole, "dryRun": self._dry_run, "shard": str(shard)}
        behind = {
            "bytes": {"sent": self._size, "fetched": self._fetched},
            "retried": self._session.retry_count,
            "seconds": round(monotonic() - self._started_at, 3),
        }
        yield json.dumps(before, indent=2).removesuffix("\n}").encode() + b',\n  "images": ['
        if self._results is not None:
            yield from self._results.pieces()
        yield b"\n  ],\n" + json.dumps(behind, indent=2).removeprefix("{\n").encode() + b"\n"


class CompressedJsonList:
    """Objects of a list in JSON, compressed: ten thousand images take one megabyte, as objects some twenty."""

    def __init__(self) -> None:
        """Begin with none."""
        self._compressor = zlib.compressobj()
        self._pieces: list[bytes] = []
        self._separator = b"\n    "

    def add(self, value: Mapping[str, Any]) -> None:
        """Keep one."""
        if piece := self._compressor.compress(self._separator + escape_ci_commands(json.dumps(value)).encode()):
            self._pieces.append(piece)
        self._separator = b",\n    "

    def pieces(self) -> Iterator[bytes]:
        """Give them all, with commas between them."""
        decompressor = zlib.decompressobj()
        for piece in (*self._pieces, self._compressor.flush()):
            yield decompressor.decompress(piece)
        yield decompressor.flush()


def _outcome_json(outcome: SyncResult) -> dict[str, Any]:
    return {
        "from": outcome.source,
        "to": outcome.destination,
        "outcome": outcome.status.replace("to copy", "toCopy"),
        **({"digest": outcome.digest} if outcome.digest else {}),
        **({"error": outcome.error.message, "exitCode": outcome.error.exit_code} if outcome.error else {}),
        **({"missingPlatforms": list(outcome.incomplete[0].missing)} if outcome.incomplete else {}),
        "bytes": outcome.size,
        "seconds": round(outcome.seconds, 3),
    }


def _format_result(outcome: SyncResult) -> str:
    return f"{printable(outcome.destination, 1024)}@{outcome.digest}"
