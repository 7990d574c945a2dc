"""`CommandContext`: what shared options, environment and configuration mean to one run of a command.

It creates HTTP clients, credentials, the cache, upload records and open contexts when a command needs them.
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
from ocistream.cli.console import is_pipe
from ocistream.cli.credentials import ExplicitCredentials
from ocistream.cli.registry_options import (
    build_hint_translator,
    build_host_settings_lookup,
    build_http_settings,
    load_host_rules,
    options_for_side,
)
from ocistream.cli.standard_streams import (
    STDIN_HINT,
    is_visible_on_stdout,
    open_stdin,
    open_stdout,
    result_on_stdout_error,
)
from ocistream.errors import UsageError
from ocistream.locations import Location, OpenContext
from ocistream.oci.reference import printable
from ocistream.streams import files
from ocistream.streams.paths import real_path
from ocistream.streams.workers import DEFAULT_JOBS

if TYPE_CHECKING:
    import io
    import threading
    from collections.abc import Callable, Collection, Iterator, Mapping

    from ocistream.auth.credentials import Keychain
    from ocistream.cli.console import Console
    from ocistream.http.client import HttpClient
    from ocistream.http.rate_limits import RateLimits
    from ocistream.http.retry import RetryEvent
    from ocistream.layout.cache import Cache
    from ocistream.oci.reference import Reference
    from ocistream.registry.configuration import HostRule, RegistryConfiguration
    from ocistream.registry.mirrors import RepositoryOpener
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.transfer.recompress import Recompression

__all__ = [
    "PASSWORD_ON_STDIN",
    "CommandContext",
    "home_directory",
]

#: Waits shorter than this (seconds) are only told with -v.
_MIN_REPORTED_WAIT: Final = 5.0
#: What is read from stdin, unless a command says otherwise.
ARCHIVE_INPUT: Final = "archive"
#: Options by which a password comes on stdin.
PASSWORD_ON_STDIN: Final = ("password_stdin", "src_password_stdin", "dest_password_stdin")


@dataclass(slots=True)
class CommandContext:
    """What the shared options come to: the console, and everything a transfer needs of this process."""

    console: Console
    options: Mapping[str, Any]
    cancelled: threading.Event
    #: How often something had to be tried again.
    retry_count: int = 0
    _rate_limits: RateLimits | None = None
    _upload_strategy: UploadStrategy | None = None
    _host_rules: RegistryConfiguration | None = None
    _upload_records: UploadRecords | None = None
    _cache: Cache | None = None
    _explicit_credentials: ExplicitCredentials | None = None
    #: What a file of this run says of registries, by host; it comes before the configuration.
    rule_overrides: Mapping[str, HostRule] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        """How many blobs move at once."""
        return int(self.options["jobs"])

    @property
    def prefetch_memory(self) -> int:
        """How many bytes may be fetched ahead: none where one connection alone may be too fast."""
        return 0 if self.options.get("limit_rate") else int(self.options.get("memory", 0))

    @property
    def upload_strategy(self) -> UploadStrategy:
        """How hosts take uploads, as --upload has it and as was learnt, now and in earlier runs."""
        if self._upload_strategy is None:
            from ocistream.registry.upload_strategy import HostFactsFile, UploadStrategy

            forced, jobs = self.options.get("upload"), int(self.options.get("jobs", 1))
            state = HostFactsFile(_state_directory(), self._report_if_verbose)
            self._upload_strategy = UploadStrategy(
                explicit_method=forced,
                jobs=jobs,
                facts_file=state,
                report=self._report_fallback,
                configured_profile=lambda host: self.host_rules().profile(host),
            )
        return self._upload_strategy

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
    def cached_sizes(self) -> Mapping[str, int]:
        """How many bytes of each blob came from the cache, by digest."""
        return self._cache.bytes_read if self._cache is not None else {}

    def upload_records(self) -> UploadRecords:
        """Give where uploads are remembered that a later run may go on with."""
        if self._upload_records is None:
            from ocistream.registry.upload_records import UploadRecords

            directory = _state_directory()
            self._upload_records = UploadRecords(directory / "uploads" if directory else None, self._report_if_verbose)
        return self._upload_records

    @property
    def explicit_credentials(self) -> ExplicitCredentials:
        """The credentials that the options give."""
        if self._explicit_credentials is None:
            self._explicit_credentials = ExplicitCredentials(self.options, os.environ)
        return self._explicit_credentials

    def build_open_context(
        self,
        side: str = "",
        *,
        registries: Collection[str] = (),
        build_keychain: Callable[[], Keychain] | None = None,
        hint: Callable[[str], str] | None = None,
    ) -> OpenContext:
        """Give what an end may need; `side` is "SRC" or "DEST" where the two ends have credentials of their own.

        `named` are the registries that the command line names there: those that its user name is for. `own` gives
        credentials in the place of the command line's. `hint` names options in hints as the user writes them.
        """
        # One for both: a password can be read from stdin once.
        keychain = functools.cache(build_keychain or functools.partial(self._build_keychain, side, registries))

        @functools.cache
        def transport() -> HttpClient:
            return self._build_transport(keychain(), side, hint)

        @functools.cache
        def mirrors() -> HttpClient:
            # They stand for the registry, and so its side's options hold for them.
            return self._build_transport(keychain(), side, hint, mirrors=True)

        @functools.cache
        def reading() -> RepositoryOpener:
            from ocistream.registry.mirrors import RepositoryOpener

            places, tell = self.host_rules().find_pull_sources, self._report_fallback
            if (cache := self.cache) is None:
                return RepositoryOpener(transport(), mirrors, places, tell)
            from ocistream.layout.cached_repository import CachedRepository

            return RepositoryOpener(transport(), mirrors, places, tell, functools.partial(CachedRepository, cache))

        return OpenContext(
            client=transport,
            stdin=self.open_stdin,
            stdout=self._open_stdout,
            mtime=_read_source_date_epoch(os.environ),
            opener=reading,
            jobs=int(self.options.get("jobs", DEFAULT_JOBS)),
            records=self.upload_records,
            cancelled=self.cancelled,
        )

    def check_push(self, reference: Reference | None) -> None:
        """Make sure that images may be pushed to a place, if it is a registry's.

        Raises:
            AuthenticationError: a configuration forbids it.
        """
        if reference is not None:
            self.host_rules().check_push(reference)

    def host_rules(self) -> RegistryConfiguration:
        """Read the configuration files, ours and containers', once there is something to ask a registry for.

        Raises:
            UsageError: one is malformed.
            NotFoundError: one that was named is not there.
        """
        if self._host_rules is None:
            self._host_rules = load_host_rules(self.options, os.environ, home_directory(), self.rule_overrides)
        return self._host_rules

    def check_result_path(self, *ends: Location) -> None:
        """Refuse a --result that would be written over one of the ends, or between what goes to stdout.

        Raises:
            UsageError: it has the path of one, or leads to our own stdout.
        """
        result = self.options["result"]
        if result is not None and is_visible_on_stdout(result):
            raise result_on_stdout_error(str(result))
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

    def _build_keychain(self, side: str, registries: Collection[str]) -> Keychain:
        from ocistream.auth.credentials import Keychain

        prefix = f"OCISTREAM_{side}" if side else "OCISTREAM"
        return Keychain(
            os.environ,
            home=home_directory(),
            explicit=self.explicit_credentials.find_credential(side),
            prefix=prefix,
            named=registries,
            configured=self.host_rules().credentials,
            auth_file=self.explicit_credentials.find_auth_file(side),
        )

    def _build_transport(
        self, keychain: Keychain, side: str, hint: Callable[[str], str] | None, *, mirrors: bool = False
    ) -> HttpClient:
        from ocistream.http.client import HttpClient

        options = options_for_side(self.options, side)
        settings = replace(
            build_http_settings(options, os.environ), format_hint=hint or build_hint_translator(self.options, side)
        )
        if mirrors:
            from ocistream.registry.mirrors import shorten_timeouts

            settings = shorten_timeouts(settings)
        return HttpClient(
            settings,
            keychain.find,
            hosts=build_host_settings_lookup(options, os.environ, home_directory(), self.host_rules().settings),
            on_retry=self._report_retry,
            cancelled=self.cancelled,
            rate_limits=self.rate_limits,
            upload_strategy=self.upload_strategy,
        )

    @property
    def rate_limits(self) -> RateLimits:
        """What both sides of a copy share: the limits are those of the run."""
        if self._rate_limits is None:
            from ocistream.http.rate_limits import RateLimits

            self._rate_limits = RateLimits(self.options["limit_rate"])
        return self._rate_limits

    def _report_retry(self, retried: RetryEvent) -> None:
        self.retry_count += 1
        where = f"{retried.url}: " if retried.url else ""
        self.console.info(
            f"{where}{retried.reason}; trying again in {retried.wait:.1f} s",
            level=0 if retried.wait >= _MIN_REPORTED_WAIT else 1,
        )

    def _report_if_verbose(self, message: str) -> None:
        self.console.info(message, level=1)

    def _report_fallback(self, message: str, level: int) -> None:
        self.console.info(message, level=level)

    @contextlib.contextmanager
    def open_list(self, path: str) -> Iterator[io.BufferedReader]:
        """Open a list of digests: a file, or stdin (`-`).

        Raises:
            NotFoundError, LocalDiskError: there is none, or it cannot be read.
            UsageError: stdin is closed, a terminal, or has the password.
        """
        what = "the list on stdin" if path == "-" else printable(path, 1024)
        with files.disk_errors(f"cannot read {what}"):
            if path == "-":
                yield self.open_stdin("list", "pipe a list in, or name its file")
                return
            with Path(path).open("rb") as file:
                yield file

    def open_stdin(self, what: str = ARCHIVE_INPUT, hint: str = STDIN_HINT) -> io.BufferedReader:
        """Open stdin to read `what` from it; `instead` is what else can be done.

        Raises:
            UsageError: it is closed, a terminal, or has the password.
        """
        if given := next((name for name in PASSWORD_ON_STDIN if self.options.get(name)), None):
            option = f"--{given.replace('_', '-').removesuffix('stdin')}file"
            msg = f"stdin cannot be both the {what} and the password"
            raise UsageError(msg, hint=f"give {option}, or read the {what} from a file")
        file = open_stdin(what, hint, self.cancelled)
        self.console.other_programs.add_pipe(file.fileno())
        if what == ARCHIVE_INPUT:
            has_terminal = sys.stderr is not None and sys.stderr.isatty()
            is_asked_for_more = (
                self.options.get("progress", "auto") not in {"auto", "none"} or self.console.verbosity > 0
            )
            self.console.is_terse = is_pipe(file.fileno()) and not has_terminal and not is_asked_for_more
        return file

    def _open_stdout(self) -> io.FileIO:
        file = open_stdout()
        self.console.other_programs.add_pipe(file.fileno())
        return file


def _state_directory() -> Path | None:
    from ocistream.registry.upload_strategy import state_directory

    directory = state_directory(os.environ, home_directory() if os.environ.get("HOME") else None)
    if directory is None:
        what = "neither HOME nor XDG_STATE_HOME is set"
        notices.notify(
            f"{what}: no later run can resume an upload of this one, or knows how hosts take uploads", level=1
        )
    return directory


def home_directory() -> Path:
    """Give the user's home directory, or the root where there is none (an empty container)."""
    return Path(os.environ.get("HOME") or "/")


def _read_source_date_epoch(env: Mapping[str, str]) -> int:
    """Read SOURCE_DATE_EPOCH, seconds since 1970.

    Raises:
        UsageError: it is not a number that a tar can hold.
    """
    text = env.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 8**11:
        msg = f"SOURCE_DATE_EPOCH is not a number of seconds: {text[:40]!r}"
        raise UsageError(msg)
    return int(text)
