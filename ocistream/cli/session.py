"""What the shared options come to: the console, and everything that a command needs of this process.

Here the environment is looked at; the standard streams are opened by `cli/standard_streams.py`, when they are asked
for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocistream import notices
from ocistream.cli.credentials import GivenCredentials
from ocistream.cli.network_options import host_settings, load_places, network_settings
from ocistream.cli.shared_terminal import is_pipe
from ocistream.cli.sides import hints_for, options_of
from ocistream.cli.standard_streams import (
    INSTEAD_OF_STDIN,
    is_seen_on_stdout,
    opened_stdin,
    opened_stdout,
    result_on_stdout,
)
from ocistream.errors import UsageError
from ocistream.oci.reference import printable
from ocistream.stores import End, Surroundings
from ocistream.streams import files
from ocistream.streams.paths import real_path
from ocistream.streams.workers import DEFAULT_JOBS

if TYPE_CHECKING:
    import io
    import threading
    from collections.abc import Callable, Collection, Iterator, Mapping

    from ocistream.auth.credentials import Keychain
    from ocistream.cli.console import Console
    from ocistream.http.client import Transport
    from ocistream.http.rate_limits import Pace
    from ocistream.http.retry import Retried
    from ocistream.layout.cache import Cache
    from ocistream.oci.reference import Reference
    from ocistream.registry.locations import HostRule, Places
    from ocistream.registry.open_repository import Reading
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.registry.upload_strategy import Ladder
    from ocistream.transfer.recompress import Recompression

__all__ = [
    "PASSWORD_ON_STDIN",
    "Session",
    "home",
]

#: Waits shorter than this (seconds) are only told with -v.
_WORTH_TELLING: Final = 5.0
#: What is read from stdin, unless a command says otherwise.
ARCHIVE: Final = "archive"
#: Options by which a password comes on stdin.
PASSWORD_ON_STDIN: Final = ("password_stdin", "src_password_stdin", "dest_password_stdin")


@dataclass(slots=True)
class Session:
    """What the shared options come to: the console, and everything a transfer needs of this process."""

    console: Console
    options: Mapping[str, Any]
    cancelled: threading.Event
    #: How often something had to be tried again.
    retried: int = 0
    _pace: Pace | None = None
    _ladder: Ladder | None = None
    _places: Places | None = None
    _records: UploadRecords | None = None
    _cache: Cache | None = None
    _given: GivenCredentials | None = None
    #: What a file of this run says of registries, by host; it comes before the configuration.
    rules: Mapping[str, HostRule] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        """How many blobs move at once."""
        return int(self.options["jobs"])

    @property
    def memory(self) -> int:
        """How many bytes may be fetched ahead: none where one connection alone may be too fast."""
        return 0 if self.options.get("limit_rate") else int(self.options.get("memory", 0))

    @property
    def ladder(self) -> Ladder:
        """How hosts take uploads, as --upload has it and as was learnt, now and in earlier runs."""
        if self._ladder is None:
            from ocistream.registry.learnt_hosts import State
            from ocistream.registry.upload_strategy import Ladder

            forced, jobs = self.options.get("upload"), int(self.options.get("jobs", 1))
            state = State(_state_directory(), self._tell_if_asked)
            self._ladder = Ladder(
                forced=forced,
                jobs=jobs,
                state=state,
                tell=self._tell_fall_back,
                configured=lambda host: self.places().profile(host),
            )
        return self._ladder

    @property
    def cache(self) -> Cache | None:
        """What stands before registries, by --cache; None where there is none, or no such option.

        Raises:
            UsageError, ArchiveError: the directory has other things in it, or is no sound layout.
        """
        if self._cache is None and (path := self.options.get("cache")):
            from ocistream.layout.cache import Cache

            self._cache = Cache(Path(path))
        return self._cache

    @property
    def cached(self) -> Mapping[str, int]:
        """How many bytes of each blob came from the cache, by digest."""
        return self._cache.given if self._cache is not None else {}

    def records(self) -> UploadRecords:
        """Give where uploads are remembered that a later run may go on with."""
        if self._records is None:
            from ocistream.registry.upload_records import UploadRecords

            directory = _state_directory()
            self._records = UploadRecords(directory / "uploads" if directory else None, self._tell_if_asked)
        return self._records

    @property
    def given(self) -> GivenCredentials:
        """The credentials that the options give."""
        if self._given is None:
            self._given = GivenCredentials(self.options, os.environ)
        return self._given

    def surroundings(
        self,
        side: str = "",
        *,
        named: Collection[str] = (),
        own: Callable[[], Keychain] | None = None,
        hint: Callable[[str], str] | None = None,
    ) -> Surroundings:
        """Give what an end may need; `side` is "SRC" or "DEST" where the two ends have credentials of their own.

        `named` are the registries that the command line names there: those that its user name is for. `own` gives
        credentials in the place of the command line's. `hint` names options in hints as the user writes them.
        """
        # One for both: a password can be read from stdin once.
        keychain = functools.cache(own or functools.partial(self._keychain, side, named))

        @functools.cache
        def transport() -> Transport:
            return self._transport(keychain(), side, hint)

        @functools.cache
        def mirrors() -> Transport:
            # They stand for the registry, and so its side's options hold for them.
            return self._transport(keychain(), side, hint, mirrors=True)

        @functools.cache
        def reading() -> Reading:
            from ocistream.registry.open_repository import Reading

            places, tell = self.places().of, self._tell_fall_back
            if (cache := self.cache) is None:
                return Reading(transport(), mirrors, places, tell)
            from ocistream.layout.cached_repository import CachedRepository

            return Reading(transport(), mirrors, places, tell, functools.partial(CachedRepository, cache))

        return Surroundings(
            transport=transport,
            stdin=self.stdin,
            stdout=self._stdout,
            mtime=_source_date(os.environ),
            reads=reading,
            jobs=int(self.options.get("jobs", DEFAULT_JOBS)),
            records=self.records,
            cancelled=self.cancelled,
        )

    def check_push(self, reference: Reference | None) -> None:
        """Make sure that images may be pushed to a place, if it is a registry's.

        Raises:
            AuthenticationError: a configuration forbids it.
        """
        if reference is not None:
            self.places().check_push(reference)

    def places(self) -> Places:
        """Read the configuration files, ours and containers', once there is something to ask a registry for.

        Raises:
            UsageError: one is malformed.
            NotFoundError: one that was named is not there.
        """
        if self._places is None:
            self._places = load_places(self.options, os.environ, home(), self.rules)
        return self._places

    def check_result_apart(self, *ends: End) -> None:
        """Refuse a --result that would be written over one of the ends, or between what goes to stdout.

        Raises:
            UsageError: it has the path of one, or leads to our own stdout.
        """
        result = self.options["result"]
        if result is not None and is_seen_on_stdout(result):
            raise result_on_stdout(str(result))
        # Links that lead round in a circle are found out where the path is opened.
        paths = [real_path(end.path) for end in ends if end.path is not None and not end.is_stream]
        if result is not None and real_path(result) in paths:
            msg = f"--result {result} is the archive itself"
            raise UsageError(msg, hint="name another file: it would be written over")

    def recompression(self, default: str | None = None) -> Recompression | None:
        """Give what --compress asks for, or what `default` says; None where layers stay as they are.

        Raises:
            UsageError: it is malformed.
        """
        asked = self.options["compress"]
        text = default if asked is None else asked
        if text is None:
            return None
        from ocistream.transfer.recompress import parse_recompression

        return parse_recompression(text, int(self.options["max_ratio"]))

    def check_credentials(self, registries: Collection[str]) -> None:
        """Refuse one user name and password where several registries might ask: which one is it for?

        Raises:
            UsageError: there are several, and one name for all of them was given.
        """
        given = "--username" if self.options.get("username") is not None else ""
        if not given and os.environ.get("OCISTREAM_USERNAME"):
            sides = ("OCISTREAM_SRC_USERNAME", "OCISTREAM_DEST_USERNAME")
            given = "" if any(os.environ.get(name) for name in sides) else "OCISTREAM_USERNAME"
        if given and len(registries) > 1:
            msg = f"{given} cannot be for {' and '.join(sorted(registries))} at once"
            hint = "use `ocistream login` for each"
            if "src_username" in self.options:
                hint += ", or --src-username and --dest-username, or OCISTREAM_SRC_USERNAME and OCISTREAM_DEST_USERNAME"
            raise UsageError(msg, hint=hint)

    def _keychain(self, side: str, named: Collection[str]) -> Keychain:
        from ocistream.auth.credentials import Keychain

        prefix = f"OCISTREAM_{side}" if side else "OCISTREAM"
        return Keychain(
            os.environ,
            home=home(),
            explicit=self.given.of(side),
            prefix=prefix,
            named=named,
            configured=self.places().credentials,
            auth_file=self.given.auth_file(side),
        )

    def _transport(
        self, keychain: Keychain, side: str, hint: Callable[[str], str] | None, *, mirrors: bool = False
    ) -> Transport:
        from ocistream.http.client import Transport

        options = options_of(self.options, side)
        settings = replace(network_settings(options, os.environ), hint=hint or hints_for(self.options, side))
        if mirrors:
            from ocistream.registry.open_repository import impatient

            settings = impatient(settings)
        return Transport(
            settings,
            keychain.find,
            hosts=host_settings(options, os.environ, home(), self.places().settings),
            on_retry=self._tell_retry,
            cancelled=self.cancelled,
            pace=self.pace,
            ladder=self.ladder,
        )

    @property
    def pace(self) -> Pace:
        """What both sides of a copy share: the limits are those of the run."""
        if self._pace is None:
            from ocistream.http.rate_limits import Pace

            self._pace = Pace(self.options["limit_rate"])
        return self._pace

    def _tell_retry(self, retried: Retried) -> None:
        self.retried += 1
        where = f"{retried.url}: " if retried.url else ""
        self.console.note(
            f"{where}{retried.reason}; trying again in {retried.wait:.1f} s",
            level=0 if retried.wait >= _WORTH_TELLING else 1,
        )

    def _tell_if_asked(self, message: str) -> None:
        self.console.note(message, level=1)

    def _tell_fall_back(self, message: str, level: int) -> None:
        self.console.note(message, level=level)

    @contextlib.contextmanager
    def opened_list(self, path: str) -> Iterator[io.BufferedReader]:
        """Open a list of digests: a file, or stdin (`-`).

        Raises:
            NotFoundError, LocalDiskError: there is none, or it cannot be read.
            UsageError: stdin is closed, a terminal, or has the password.
        """
        what = "the list on stdin" if path == "-" else printable(path, 1024)
        with files.disk_errors(f"cannot read {what}"):
            if path == "-":
                yield self.stdin("list", "pipe a list in, or name its file")
                return
            with Path(path).open("rb") as file:
                yield file

    def stdin(self, what: str = ARCHIVE, instead: str = INSTEAD_OF_STDIN) -> io.BufferedReader:
        """Open stdin to read `what` from it; `instead` is what else can be done.

        Raises:
            UsageError: it is closed, a terminal, or has the password.
        """
        if given := next((name for name in PASSWORD_ON_STDIN if self.options.get(name)), None):
            option = f"--{given.replace('_', '-').removesuffix('stdin')}file"
            msg = f"stdin cannot be both the {what} and the password"
            raise UsageError(msg, hint=f"give {option}, or read the {what} from a file")
        file = opened_stdin(what, instead, self.cancelled)
        self.console.neighbours.add_pipe(file.fileno())
        if what == ARCHIVE:
            has_terminal = sys.stderr is not None and sys.stderr.isatty()
            is_asked_for_more = (
                self.options.get("progress", "auto") not in {"auto", "none"} or self.console.verbosity > 0
            )
            self.console.is_terse = is_pipe(file.fileno()) and not has_terminal and not is_asked_for_more
        return file

    def _stdout(self) -> io.FileIO:
        file = opened_stdout()
        self.console.neighbours.add_pipe(file.fileno())
        return file


def _state_directory() -> Path | None:
    from ocistream.registry.learnt_hosts import state_directory

    directory = state_directory(os.environ, home() if os.environ.get("HOME") else None)
    if directory is None:
        what = "neither HOME nor XDG_STATE_HOME is set"
        notices.notice(
            f"{what}: no later run can resume an upload of this one, or knows how hosts take uploads", level=1
        )
    return directory


def home() -> Path:
    """Give the user's home directory, or the root where there is none (an empty container)."""
    return Path(os.environ.get("HOME") or "/")


def _source_date(env: Mapping[str, str]) -> int:
    """Read SOURCE_DATE_EPOCH, seconds since 1970.

    Raises:
        UsageError: it is not a number that a tar can hold.
    """
    text = env.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 8**11:
        msg = f"SOURCE_DATE_EPOCH is not a number of seconds: {text[:40]!r}"
        raise UsageError(msg)
    return int(text)
