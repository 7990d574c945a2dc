"""`ocistream sync`: run the copies that a TOML file lists."""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import click

from ocistream.api.options import FOR_ONE_RUN, SELECTION, RegistryOptions
from ocistream.api.registries import find_home
from ocistream.cli.console import escape_ci_commands
from ocistream.cli.error_hints import add_sync_hint, describe_hub_destination
from ocistream.cli.options import Option, RunOptions, command, options_of, transfer_options
from ocistream.cli.parameter_types import FilePath
from ocistream.cli.report import report_incomplete_indexes, report_skipped_referrers, write_result_pieces
from ocistream.cli.sides import OPTION_IN_HINT, SYNC_FILE_TABLE, Side
from ocistream.cli.standard_streams import read_password, read_password_file
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.process_exit import delayed_exit
from ocistream.sizes import format_count, format_size
from ocistream.streams.paths import real_path
from ocistream.streams.workers import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ocistream.auth.docker_config import Credential
    from ocistream.cli.context import CommandContext
    from ocistream.locations import OpenContext
    from ocistream.sync.comparison import SyncResult
    from ocistream.sync.plan import Login, Shard, SyncPlan

_SYNC_FILE: Final = "the sync file"
#: Seconds to report the outcomes after a signal.
_REPORT_TIMEOUT: Final = 5.0


@command(
    click.Argument(["file"], metavar="FILE", type=FilePath(path_type=Path)),
    options_of(RunOptions, "dry_run", help_text="Print the images and bytes that would be copied; change nothing."),
    Option(
        ["--shard", "part"],
        metavar="I/N",
        default="0/1",
        not_configurable=FOR_ONE_RUN,
        section=SELECTION,
        help="Copy only part I of N (I is 0 to N-1); a hash of the name assigns each image to a part.",
    ),
    options_of(RegistryOptions, "authfile", help_text="Read credentials from FILE instead of Docker's files."),
    options_of(RunOptions, "memory"),
    transfer_options,
)
def sync(context: CommandContext, file: Path, part: str) -> None:
    """Copy the images that a TOML FILE lists, but only what differs.

    A failure does not stop the other images; the exit code is that of the first failure. Re-run an interrupted command
    to continue. No tag is deleted. Each [[sync]] table of FILE copies a repository or an image; the last example is
    such a file. The project's page docs/sync.md lists all keys.

    \b
    ocistream sync images.toml
    ocistream sync images.toml --dry-run
    ocistream sync images.toml --shard "$JOB_COMPLETION_INDEX/8"

    \b
    # images.toml
    [[sync]]
    from = "nginx"                                     # a repository
    to = ["registry.local:5000/nginx", "oci:images"]
    tags = { versions = ">=1.25, <2", latest = 5 }     # the 5 highest of these
    [[sync]]
    from = "registry.example.com/app:2"
    to = "registry.local:5000/app:2"
    platforms = ["linux/amd64"]                        # default: all
    """
    from ocistream.signatures.policy import TrustPolicy
    from ocistream.sync.comparison import SyncAccess
    from ocistream.sync.file import read_sync_file
    from ocistream.sync.plan import parse_shard
    from ocistream.sync.run import SyncRun

    shard, plan = parse_shard(part), read_sync_file(file, find_home(os.environ))
    context.access.host_rules = plan.registries
    _report_unused_tables(context, plan)
    _warn_unused_variables(context, plan)
    result = context.run_options.result
    context.check_result(*(sync_location.location for sync_location in plan.sync_locations))
    if result is not None and real_path(result) == real_path(file):
        msg = f"--result {printable(str(result), 1024)} is the sync file itself"
        raise UsageError(msg, hint="name another file: this one would be overwritten")
    policy = context.access.load_trust_policy() or TrustPolicy()
    access = SyncAccess(contexts=_build_open_contexts(context, plan), cancelled=context.cancelled, policy=policy)
    reporter = _OutcomeReporter(context)
    is_complete = False
    try:
        with context.console.show_progress(context.run_options.progress) as observer:
            jobs, memory = context.run_options.jobs, context.run_options.prefetch_memory
            run = SyncRun(access, reporter, observer, jobs=jobs, prefetch_memory=memory)
            run_in_thread(
                lambda: run.run(plan, shard, dry_run=context.run_options.dry_run), context.cancelled, abandons=True
            )
        is_complete = True
    finally:
        # A stopped run reports its outcomes too.
        with delayed_exit(_REPORT_TIMEOUT):
            if is_complete or reporter.has_outcomes:
                reporter.summarize(shard)
            if result is not None:
                write_result_pieces(result, reporter.document(shard, is_complete=is_complete))
    if reporter.exit_code:
        raise click.exceptions.Exit(reporter.exit_code)


def _report_unused_tables(context: CommandContext, plan: SyncPlan) -> None:
    """Print with -v which tables are for registries that no entry names: mirrors, or misspelt names."""
    named_registries = {
        sync_location.location.reference.registry.lower()
        for sync_location in plan.sync_locations
        if sync_location.location.reference
    }
    for host in plan.registries:
        if host not in named_registries:
            context.console.info(f'[registry."{printable(host)}"]: no entry names this registry', level=1)


def _warn_unused_variables(context: CommandContext, plan: SyncPlan) -> None:
    """Print which variables have no effect. A user name without a registry is for none of them."""
    if not any(name.startswith("OCISTREAM_") for name in os.environ):
        return
    from ocistream.cli.settings import find_credential_variables, warn_unused_variables

    used_variables = {location.login.password_env for location in plan.sync_locations if location.login}
    sources = [rule.credentials for rule in plan.registries.values() if rule.credentials]
    used_variables |= {
        f"{source.name}_{word}" for source in sources if source.kind == "env" for word in ("USERNAME", "PASSWORD")
    }
    used_variables |= find_credential_variables(context.access.configuration())
    warn_unused_variables(context.console, os.environ, used_variables)
    for variable in (f"OCISTREAM_{side}USERNAME" for side in ("", "SRC_", "DEST_")):
        if os.environ.get(variable) and variable not in used_variables:
            prefix = f"the variable {variable} has no effect on `ocistream sync`"
            context.console.info(f'{prefix}: give each registry its credentials in [registry."HOST"] of the sync file')


def _build_open_contexts(context: CommandContext, plan: SyncPlan) -> dict[Login | None, OpenContext]:
    """Return the open context of each login of the file: one set of connections, which all images share."""
    registries: dict[Login | None, set[str]] = {}
    for sync_location in plan.sync_locations:
        login, reference = sync_location.login, sync_location.location.reference
        named = registries.setdefault(login, set())
        # A user name without a registry (OCISTREAM_USERNAME) is for none of the file's registries.
        if reference is not None and login is not None and login.auth_file is None:
            named.add(reference.registry)
    return {
        login: context.build_open_context(_LoginSide(context.registry_options, login), registries=named)
        for login, named in registries.items()
    }


class _LoginSide(Side):
    """The registries that the file uses one login with. A mirror of them gets its own credential, if it has one."""

    #: The credential is read before the first request, also without a login.
    names_credentials = True

    def __init__(self, options: RegistryOptions, login: Login | None) -> None:
        super().__init__("", options, options, read_password)
        self._login = login
        # It is read before any copy, so that a variable that is not set is reported at once.
        self._secret = _read_secret(login)

    def find_auth_file(self) -> tuple[Path, str] | None:
        if self._login is not None and self._login.auth_file is not None:
            return self._login.auth_file, _SYNC_FILE
        return super().find_auth_file()

    def rename_options(self, hint: str) -> str:
        """Return a hint with the keys of a sync file's registry table in place of its options."""
        if self.shared.plain_http and "--plain-http" in hint:
            return hint.replace("--plain-http", f"--plain-http (or set plain-http = false in {SYNC_FILE_TABLE})")
        matches = list(OPTION_IN_HINT.finditer(hint))
        if not matches:
            return hint
        # Insert the table after the last key and its value; the rest of the hint may name other ways.
        end = matches[-1].end()
        end += len(" FILE") if hint.startswith(" FILE", end) else 0
        keys = OPTION_IN_HINT.sub(r"\1", hint[:end])
        return f"{keys} ({'a key' if len(matches) == 1 else 'keys'} of {SYNC_FILE_TABLE}){hint[end:]}"

    def _read_credential(self) -> Credential | None:
        from ocistream.auth.docker_config import Credential, with_named_source

        if self._login is None or self._login.auth_file is not None:
            return None
        source = self._login.password_env or str(self._login.password_file)
        return with_named_source(Credential(self._login.username, self._secret, source=source), _SYNC_FILE)


def _read_secret(login: Login | None) -> str:
    if login is None or login.auth_file is not None:
        return ""
    if login.password_file is not None:
        return read_password_file(str(login.password_file), f"{login.where}: password-file")
    secret = os.environ.get(login.password_env)
    if not secret:
        msg = f"{login.where}: password-env names {printable(login.password_env)}, which is not set"
        raise UsageError(msg, hint="export it: it must contain the password")
    return secret


class _OutcomeReporter:
    """Prints a line for each outcome, sums them up, and keeps them for --result."""

    def __init__(self, context: CommandContext) -> None:
        self._context = context
        self._dry_run = context.run_options.dry_run
        self._started_at = monotonic()
        self._counts: Counter[str] = Counter()
        self._size = self._fetched = 0
        #: The entries of --result, compressed: there may be many thousands.
        self._results = CompressedJsonList() if context.run_options.result is not None else None
        #: The exit code of the first failure, 0 without one: no order of gravity is defined.
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
            hints = filter(None, (error.hint, describe_hub_destination(error, outcome.destination)))
            # The cause need not name the source again, unless its digest follows in parentheses.
            repeated = f"{outcome.source} "
            cause = error.message if error.message.startswith(f"{repeated}(") else error.message.removeprefix(repeated)
            message = f"{printable(outcome.source)} to {printable(outcome.destination)}: {cause}"
            self._context.console.error(message, hint="; ".join(hints) or None, code=error.exit_code)
            self.exit_code = self.exit_code or error.exit_code
        elif self._dry_run:
            action = "copy" if outcome.status == "to copy" else outcome.status
            self._print(f"{action} {outcome.size} {printable(outcome.source)} {_format_result(outcome)}")
        else:
            self._print(_format_result(outcome))
        report_incomplete_indexes(self._context.console, outcome.incomplete)
        report_skipped_referrers(self._context.console, outcome.skipped_referrers)

    def _print(self, line: str) -> None:
        with self._context.console.suspend_display():
            click.echo(line)

    @property
    def has_outcomes(self) -> bool:
        """Whether there is any outcome."""
        return bool(self._counts)

    def summarize(self, shard: Shard) -> None:
        """Print the summary, one line on stderr."""
        counts, failed, size, fetched = self._counts, self._counts["failed"], self._size, self._fetched
        copied = format_count(counts["to copy"] if self._dry_run else counts["copied"], "image")
        parts = [f"{copied}{' to copy' if self._dry_run else ' copied'}, {format_size(size)}"]
        if fetched != size:
            parts[0] += f"; {format_size(fetched)} {('are' if self._dry_run else 'were')} read from the sources"
        parts.append(f"{counts['unchanged']} unchanged")
        if failed:
            parts.append(f"{failed} failed")
        prefix = f"shard {shard}: " if shard.count > 1 else ""
        self._context.console.info(f"{prefix}{'; '.join(parts)}; in {monotonic() - self._started_at:.1f} s")

    def document(self, shard: Shard, *, is_complete: bool) -> Iterator[bytes]:
        """Return the document of --result in pieces; sizes in bytes. `complete` is false for a stopped run."""
        document = {
            "complete": is_complete,
            "dryRun": self._dry_run,
            "shard": str(shard),
            "images": [],
            "bytes": {"sent": self._size, "fetched": self._fetched},
            "retried": self._context.retry_count,
            "seconds": round(monotonic() - self._started_at, 3),
        }
        head, tail = json.dumps(document, indent=2).encode().split(b"[]")
        yield head + b"["
        if self._results is not None:
            yield from self._results.pieces()
        yield b"\n  ]" + tail + b"\n"


class CompressedJsonList:
    """A JSON list in compressed form: ten thousand images take 1 MB, as Python objects about 20 MB."""

    def __init__(self) -> None:
        """Start with an empty list."""
        self._compressor = zlib.compressobj()
        self._pieces: list[bytes] = []
        self._separator = b"\n    "

    def add(self, value: Mapping[str, Any]) -> None:
        """Append one object."""
        if piece := self._compressor.compress(self._separator + escape_ci_commands(json.dumps(value)).encode()):
            self._pieces.append(piece)
        self._separator = b",\n    "

    def pieces(self) -> Iterator[bytes]:
        """Return the objects as JSON, with commas between them."""
        decompressor = zlib.decompressobj()
        for piece in (*self._pieces, self._compressor.flush()):
            yield decompressor.decompress(piece)
        yield decompressor.flush()


def _outcome_json(outcome: SyncResult) -> dict[str, Any]:
    return {
        "from": outcome.source,
        "to": outcome.destination,
        "status": outcome.status.replace("to copy", "toCopy"),
        **({"digest": outcome.digest} if outcome.digest else {}),
        **({"error": outcome.error.message, "exitCode": outcome.error.exit_code} if outcome.error else {}),
        **({"missingPlatforms": list(outcome.incomplete[0].missing)} if outcome.incomplete else {}),
        "bytes": outcome.size,
        "seconds": round(outcome.seconds, 3),
    }


def _format_result(outcome: SyncResult) -> str:
    return f"{printable(outcome.destination, 1024)}@{outcome.digest}"
