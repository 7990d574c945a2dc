"""`ocistream sync`: many copies, as a TOML file has them."""

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

from ocistream.cli.console import harmless_json
from ocistream.cli.missing_blobs import explain_for_sync
from ocistream.cli.options import authfile_option, memory_option, transfer_options
from ocistream.cli.progress import counted, human_size, progress
from ocistream.cli.results import check_result, tell_incomplete, tell_left_behind, write_pieces
from ocistream.cli.session import home
from ocistream.cli.sides import hints_for_sync
from ocistream.cli.signals import Stop
from ocistream.cli.standard_streams import read_password_file
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.streams.paths import real_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ocistream.auth.credentials import Keychain
    from ocistream.cli.session import Session
    from ocistream.stores import Surroundings
    from ocistream.sync.plan import Login, Place, Plan, Shard
    from ocistream.sync.run import Outcome


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
def sync(session: Session, file: Path, part: str, *, dry_run: bool) -> None:
    """Copy many images, from anywhere to anywhere, as a TOML FILE has it; only what differs is moved.

    An image that fails does not stop the others: the exit code is then that of the first failure. What was interrupted
    goes on when the same command is run again. docs/sync.md has the file's keys.

    \b
    ocistream sync images.toml
    ocistream sync images.toml --dry-run
    ocistream sync images.toml --shard "$JOB_COMPLETION_INDEX/8" --result result.json
    """
    from ocistream.sync.file import read_plan
    from ocistream.sync.plan import parse_shard
    from ocistream.sync.run import Sync

    shard, plan = parse_shard(part), read_plan(file, home())
    session.rules = plan.registries
    _tell_unused(session, plan)
    _tell_unused_variables(session, plan)
    result = session.options["result"]
    session.check_result_apart(*(place.end for entry in plan.entries for place in (entry.source, *entry.targets)))
    if result is not None:
        if real_path(result) == real_path(file):
            msg = f"--result {printable(str(result), 1024)} is the file that says what is copied"
            raise UsageError(msg, hint="name another file: it would be written over")
        check_result(result)
    around = _Places(session, plan)
    told = _Told(session, dry_run=dry_run, keeps=result is not None)
    is_whole = False
    try:
        with progress(session.options["progress"], session.console) as observer:
            run = Sync(
                around,
                told,
                jobs=session.jobs,
                ahead=session.memory,
                stop=Stop,
                observer=observer,
                check_push=session.check_push,
            )
            run.run(plan, shard, dry_run=dry_run)
        is_whole = True
    finally:
        # What was done is said of a run that was stopped, too.
        if is_whole or told.has_begun:
            told.summarize(shard)
        if result is not None:
            write_pieces(result, told.document(shard, is_whole=is_whole))
    if told.code:
        raise click.exceptions.Exit(told.code)


def _tell_unused(session: Session, plan: Plan) -> None:
    """Say with -v which tables are for registries that no entry names: they may be for mirrors, or misspelt."""
    places = (place for entry in plan.entries for place in (entry.source, *entry.targets))
    named = {place.end.reference.registry.lower() for place in places if place.end.reference}
    for host in plan.registries:
        if host not in named:
            session.console.note(f'[registry."{printable(host)}"]: no entry names this registry', level=1)


def _tell_unused_variables(session: Session, plan: Plan) -> None:
    """Say which variables have no effect. A user name without a registry is for none of the many registries."""
    if not any(name.startswith("OCISTREAM_") for name in os.environ):
        return
    from ocistream.cli.defaults import find
    from ocistream.cli.environment import named_by_registries, tell_unused

    logins = [place.login for entry in plan.entries for place in (entry.source, *entry.targets) if place.login]
    used = {login.password_env for login in logins}
    sources = [rule.credentials for rule in plan.registries.values() if rule.credentials]
    used |= {f"{one.name}_{word}" for one in sources if one.kind == "env" for word in ("USERNAME", "PASSWORD")}
    config = session.options.get("config")
    used |= named_by_registries(find(None if config is None else str(config), os.environ))
    tell_unused(session.console, os.environ, used)
    for variable in (f"OCISTREAM_{side}USERNAME" for side in ("", "SRC_", "DEST_")):
        if os.environ.get(variable) and variable not in used:
            what = f"the variable {variable} has no effect on `ocistream sync`"
            session.console.note(f'{what}: give each registry its credentials in [registry."HOST"] of the sync file')


class _Places:
    """What each place is reached by: one set of connections for each of the file's credentials."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self._session = session
        registries: dict[Login | None, set[str]] = {}
        for entry in plan.entries:
            for place in (entry.source, *entry.targets):
                of_login = registries.setdefault(place.login, set())
                if place.end.reference is not None:
                    of_login.add(place.end.reference.registry)
        # A variable that is not set is found out before anything is done.
        self._known = {login: self._for(login, _secret(login), those) for login, those in registries.items()}

    def __call__(self, place: Place) -> Surroundings:
        return self._known[place.login]

    def _for(self, login: Login | None, secret: str, registries: Collection[str]) -> Surroundings:
        own = functools.partial(self._keychain, login, secret, registries)
        return self._session.surroundings(own=own, hint=hints_for_sync(self._session.options))

    def _keychain(self, login: Login | None, secret: str, registries: Collection[str]) -> Keychain:
        """Give what a place's credentials are found by: those of the file are for the `registries` it names there.

        A mirror of one of them is shown its own, if there are any.
        """
        from ocistream.auth.credentials import Credential, Keychain
        from ocistream.auth.docker_config import named_by

        env, configured = dict(os.environ), self._session.places().credentials
        # A user name that no registry stands beside is for none of a file's many registries.
        nobody: tuple[str, ...] = ()
        auth_file = self._session.given.auth_file("")
        if login is None:
            return Keychain(env, home=home(), named=nobody, configured=configured, auth_file=auth_file)
        if login.auth_file is not None:
            auth_file = login.auth_file, _SYNC_FILE
            return Keychain(env, home=home(), named=nobody, configured=configured, auth_file=auth_file)
        source = login.password_env or str(login.password_file)
        credential = named_by(Credential(login.username, secret, source=source), _SYNC_FILE)
        return Keychain(
            env, home=home(), explicit=credential, named=registries, configured=configured, auth_file=auth_file
        )


def _secret(login: Login | None) -> str:
    if login is None or login.auth_file is not None:
        return ""
    if login.password_file is not None:
        return read_password_file(str(login.password_file), f"{login.where}: password-file")
    secret = os.environ.get(login.password_env)
    if not secret:
        msg = f"{login.where}: password-env names {printable(login.password_env)}, which is not set"
        raise UsageError(msg, hint="export it: the password is taken from there")
    return secret


class _Told:
    """Takes the outcomes: prints a line for each, adds them up, and keeps them for --result if there is one."""

    def __init__(self, session: Session, *, dry_run: bool, keeps: bool) -> None:
        self._session = session
        self._dry_run = dry_run
        self._began = monotonic()
        self._counts: Counter[str] = Counter()
        self._size = self._fetched = 0
        #: What --result has of each, in little room: there may be many thousands.
        self._kept = Kept() if keeps else None
        #: The exit code of the first failure; 0 without any.
        self.code = 0

    def __call__(self, outcome: Outcome) -> None:
        self._counts[outcome.how] += 1
        self._size += outcome.size
        self._fetched += outcome.fetched
        if self._kept is not None:
            self._kept.add(_shown(outcome))
        if outcome.error is not None:
            error = outcome.error
            explain_for_sync(error, outcome.source)
            what = f"{printable(outcome.source)} to {printable(outcome.target)}: {error.what}"
            self._session.console.error(what, hint=error.hint, code=error.exit_code)
            self.code = self.code or error.exit_code
        elif self._dry_run:
            how = "copy" if outcome.how == "to copy" else outcome.how
            self._print(f"{how} {outcome.size} {printable(outcome.source)} {_named(outcome)}")
        else:
            self._print(_named(outcome))
        tell_incomplete(self._session.console, outcome.incomplete)
        tell_left_behind(self._session.console, outcome.left_behind)

    def _print(self, line: str) -> None:
        with self._session.console.aside():
            click.echo(line)

    @property
    def has_begun(self) -> bool:
        """Whether anything has become of an image."""
        return bool(self._counts)

    def summarize(self, shard: Shard) -> None:
        """Say in one line on stderr what all came to."""
        counts, failed, size, fetched = self._counts, self._counts["failed"], self._size, self._fetched
        moved = counted(counts["to copy"] if self._dry_run else counts["copied"], "image")
        parts = [f"{moved}{' to copy' if self._dry_run else ' copied'}, {human_size(size)}"]
        if fetched != size:
            parts[0] += f", of which {human_size(fetched)} {'are' if self._dry_run else 'were'} read"
        parts.append(f"{counts['unchanged']} unchanged")
        if failed:
            parts.append(f"{failed} failed")
        where = f"shard {shard}: " if shard.count > 1 else ""
        self._session.console.note(f"{where}{'; '.join(parts)}; in {monotonic() - self._began:.1f} s")

    def document(self, shard: Shard, *, is_whole: bool) -> Iterator[bytes]:
        """Give the document of --result in pieces; sizes in bytes. `complete` is false of a run that was stopped."""
        before = {"complete": is_whole, "dryRun": self._dry_run, "shard": str(shard)}
        behind = {
            "bytes": {"sent": self._size, "fetched": self._fetched},
            "retried": self._session.retried,
            "seconds": round(monotonic() - self._began, 3),
        }
        yield json.dumps(before, indent=2).removesuffix("\n}").encode() + b',\n  "images": ['
        if self._kept is not None:
            yield from self._kept.pieces()
        yield b"\n  ],\n" + json.dumps(behind, indent=2).removeprefix("{\n").encode() + b"\n"


class Kept:
    """Objects of a list in JSON, compressed: ten thousand images take one megabyte, as objects some twenty."""

    def __init__(self) -> None:
        """Begin with none."""
        self._compressor = zlib.compressobj()
        self._pieces: list[bytes] = []
        self._between = b"\n    "

    def add(self, value: Mapping[str, Any]) -> None:
        """Keep one."""
        if piece := self._compressor.compress(self._between + harmless_json(json.dumps(value)).encode()):
            self._pieces.append(piece)
        self._between = b",\n    "

    def pieces(self) -> Iterator[bytes]:
        """Give them all, with commas between them."""
        decompressor = zlib.decompressobj()
        for piece in (*self._pieces, self._compressor.flush()):
            yield decompressor.decompress(piece)
        yield decompressor.flush()


def _shown(outcome: Outcome) -> dict[str, Any]:
    return {
        "from": outcome.source,
        "to": outcome.target,
        "outcome": outcome.how.replace("to copy", "toCopy"),
        **({"digest": outcome.digest} if outcome.digest else {}),
        **({"error": outcome.error.what, "exitCode": outcome.error.exit_code} if outcome.error else {}),
        **({"missingPlatforms": list(outcome.incomplete[0].missing)} if outcome.incomplete else {}),
        "bytes": outcome.size,
        "seconds": round(outcome.seconds, 3),
    }


def _named(outcome: Outcome) -> str:
    return f"{printable(outcome.target, 1024)}@{outcome.digest}"
