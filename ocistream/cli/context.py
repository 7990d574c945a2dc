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
    from ocistream.registry.opener import RepositoryOpener
    from ocistream.registry.upload_records import UploadRecords
    from ocistream.registry.upload_strategy import UploadStrategy
    from ocistream.transfer.recompress import Recompression

__all__ = [
    "PASSWORD_ON_STDIN",
    "CommandContext",
    "home_directory",
]

#: Shorter waits, in seconds, are reported only with -v.
_MIN_REPORTED_WAIT: Final = 5.0
#: Default name, in errors, of the input that is read from stdin.
ARCHIVE_INPUT: Final = "archive"
#: Options that read a password from stdin.
PASSWORD_ON_STDIN: Final = ("password_stdin", "src_password_stdin", "dest_password_stdin")


@dataclass(slots=True)
class CommandContext:
    """The shared options of one run, the console, and the objects a transfer needs, created on first use."""

    console: Console
    options: Mapping[str, Any]
    cancelled: threading.Event
    #: How many requests were retried.
    retry_count: int = 0
    _rate_limits: RateLimits | None = None
    _upload_strategy: UploadStrategy | None = None
    _host_rules: RegistryConfiguration | None = None
    _upload_records: UploadRecords | None = None
    _cache: Cache | None = None
    _explicit_credentials: ExplicitCredentials | None = None
    #: Rules for hosts from the sync file of this run; they override the configuration.
    rule_overrides: Mapping[str, HostRule] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        """How many blobs move at once."""
        return int(self.options["jobs"])

    @property
    def prefetch_memory(self) -> int:
        """Bytes that may be prefetched; 0 with --limit-rate, where one connection may already be too fast."""
        return 0 if self.options.get("limit_rate") else int(self.options.get("memory", 0))

    @property
    def upload_strategy(self) -> UploadStrategy:
        """How hosts take uploads, as --upload says or as this run and earlier runs learnt."""
        if self._upload_strategy is None:
            from ocistream.registry.upload_strategy import HostFactsFile, UploadStrategy

            explicit_method, jobs = self.options.get("upload"), int(self.options.get("jobs", 1))
            facts_file = HostFactsFile(_state_directory(), self._report_if_verbose)
            self._upload_strategy = UploadStrategy(
                explicit_method=explicit_method,
                jobs=jobs,
                facts_file=facts_file,
                report=self._report_fallback,
                configured_profile=lambda host: self.host_rules().profile(host),
            )
        return self._upload_strategy

    @property
    def cache(self) -> Cache | None:
        """The cache of --cache, which is read before registries; None without --cache."""
        if self._cache is None and (path := self.options.get("cache")):
            from ocistream.layout.cache import Cache

            self._cache = Cache(Path(path))
        return self._cache

    @property
    def cached_sizes(self) -> Mapping[str, int]:
        """How many bytes of each blob came from the cache, by digest."""
        return self._cache.bytes_read if self._cache is not None else {}

    def upload_records(self) -> UploadRecords:
        """Return the records of uploads that a later run may resume."""
        if self._upload_records is None:
            from ocistream.registry.upload_records import UploadRecords

            directory = _state_directory()
            self._upload_records = UploadRecords(directory / "uploads" if directory else None, self._report_if_verbose)
        return self._upload_records

    @property
    def explicit_credentials(self) -> ExplicitCredentials:
        """The credentials that options provide."""
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
        """Return what opening a location needs; `side` is "SRC" or "DEST" if the sides have separate credentials.

        `registries` are the registries that the command line names: its user name is for them. `build_keychain`
        replaces the credentials of the command line. `hint` rewrites option names in hints.

        Each side has an HTTP client of its own: a copy may reach one registry in two ways at once.
        """
        # One keychain for both clients: stdin can be read for a password only once.
        keychain = functools.cache(build_keychain or functools.partial(self._build_keychain, side, registries))

        @functools.cache
        def transport() -> HttpClient:
            return self._build_transport(keychain(), side, hint)

        @functools.cache
        def mirrors() -> HttpClient:
            # Mirrors stand in for the registry, so the options of its side apply. Their own client has fewer retries
            # and shorter timeouts, since another place can be asked.
            return self._build_transport(keychain(), side, hint, mirrors=True)

        @functools.cache
        def reading() -> RepositoryOpener:
            from ocistream.registry.opener import RepositoryOpener

            find_sources, report = self.host_rules().find_pull_sources, self._report_fallback
            if (cache := self.cache) is None:
                return RepositoryOpener(transport(), mirrors, find_sources, report)
            from ocistream.layout.cached_repository import CachedRepository

            return RepositoryOpener(
                transport(), mirrors, find_sources, report, functools.partial(CachedRepository, cache)
            )

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
        """Raise AuthenticationError if the configuration forbids a push to `reference`; None is not a registry."""
        if reference is not None:
            self.host_rules().check_push(reference)

    def host_rules(self) -> RegistryConfiguration:
        """Return the rules of the configuration files, ours and containers'.

        The files are read on the first call: a command that contacts no registry does not fail for a malformed file.
        """
        if self._host_rules is None:
            self._host_rules = load_host_rules(self.options, os.environ, home_directory(), self.rule_overrides)
        return self._host_rules

    def check_result_path(self, *locations: Location) -> None:
        """Raise UsageError if --result would overwrite one of the locations, or mix with the output on stdout."""
        result = self.options["result"]
        if result is not None and is_visible_on_stdout(result):
            raise result_on_stdout_error(str(result))
        # A circle of links is reported where the path is opened.
        paths = [
            real_path(location.path) for location in locations if location.path is not None and not location.is_stream
        ]
        if result is not None and real_path(result) in paths:
            msg = f"--result {result} is the archive itself"
            raise UsageError(msg, hint="name another file: it would be written over")

    def recompression(self, default: str | None = None) -> Recompression | None:
        """Return what --compress asks for, else `default`; None where layers stay as they are."""
        option = self.options["compress"]
        text = default if option is None else option
        if text is None:
            return None
        from ocistream.transfer.recompress import parse_recompression

        return parse_recompression(text, int(self.options["max_ratio"]))

    def check_credentials(self, registries: Collection[str]) -> None:
        """Raise UsageError if several registries could ask for the one user name and password given."""
        origin = "--username" if self.options.get("username") is not None else ""
        if not origin and os.environ.get("OCISTREAM_USERNAME"):
            sides = ("OCISTREAM_SRC_USERNAME", "OCISTREAM_DEST_USERNAME")
            origin = "" if any(os.environ.get(name) for name in sides) else "OCISTREAM_USERNAME"
        if origin and len(registries) > 1:
            msg = f"{origin} cannot be for {' and '.join(sorted(registries))} at once"
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
            find_host_settings=build_host_settings_lookup(
                options, os.environ, home_directory(), self.host_rules().settings
            ),
            on_retry=self._report_retry,
            cancelled=self.cancelled,
            rate_limits=self.rate_limits,
            upload_strategy=self.upload_strategy,
        )

    @property
    def rate_limits(self) -> RateLimits:
        """The rate limits of the run, which both sides of a copy share."""
        if self._rate_limits is None:
            from ocistream.http.rate_limits import RateLimits

            self._rate_limits = RateLimits(self.options["limit_rate"])
        return self._rate_limits

    def _report_retry(self, retry: RetryEvent) -> None:
        self.retry_count += 1
        prefix = f"{retry.url}: " if retry.url else ""
        self.console.info(
            f"{prefix}{retry.reason}; trying again in {retry.wait:.1f} s",
            level=0 if retry.wait >= _MIN_REPORTED_WAIT else 1,
        )

    def _report_if_verbose(self, message: str) -> None:
        self.console.info(message, level=1)

    def _report_fallback(self, message: str, level: int) -> None:
        self.console.info(message, level=level)

    @contextlib.contextmanager
    def open_list(self, path: str) -> Iterator[io.BufferedReader]:
        """Open a list of digests: a file, or stdin (`-`).

        Raise NotFoundError or LocalDiskError if it cannot be read, and UsageError if stdin is unusable.
        """
        description = "the list on stdin" if path == "-" else printable(path, 1024)
        with files.disk_errors(f"cannot read {description}"):
            if path == "-":
                yield self.open_stdin("list", "pipe a list in, or name its file")
                return
            with Path(path).open("rb") as file:
                yield file

    def open_stdin(self, what: str = ARCHIVE_INPUT, hint: str = STDIN_HINT) -> io.BufferedReader:
        """Open stdin to read `what` from it; `hint` is for the UsageError if stdin is closed or a terminal.

        The console becomes terse if an archive comes by a pipe and stderr is not a terminal, unless the user asked for
        more output.
        """
        if password_option := next((name for name in PASSWORD_ON_STDIN if self.options.get(name)), None):
            option = f"--{password_option.replace('_', '-').removesuffix('stdin')}file"
            msg = f"stdin cannot be both the {what} and the password"
            raise UsageError(msg, hint=f"give {option}, or read the {what} from a file")
        file = open_stdin(what, hint, self.cancelled)
        self.console.other_programs.add_pipe(file.fileno())
        if what == ARCHIVE_INPUT:
            has_terminal = sys.stderr is not None and sys.stderr.isatty()
            wants_more_output = (
                self.options.get("progress", "auto") not in {"auto", "none"} or self.console.verbosity > 0
            )
            self.console.is_terse = is_pipe(file.fileno()) and not has_terminal and not wants_more_output
        return file

    def _open_stdout(self) -> io.FileIO:
        file = open_stdout()
        self.console.other_programs.add_pipe(file.fileno())
        return file


def _state_directory() -> Path | None:
    from ocistream.registry.upload_strategy import state_directory

    directory = state_directory(os.environ, home_directory() if os.environ.get("HOME") else None)
    if directory is None:
        reason = "neither HOME nor XDG_STATE_HOME is set"
        notices.notify(
            f"{reason}: no later run can resume an upload of this one, or knows how hosts take uploads", level=1
        )
    return directory


def home_directory() -> Path:
    """Return the user's home directory, or the root if HOME is not set (an empty container)."""
    return Path(os.environ.get("HOME") or "/")


def _read_source_date_epoch(env: Mapping[str, str]) -> int:
    """Return SOURCE_DATE_EPOCH, in seconds since 1970; 0 if it is not set.

    The limit is what 11 octal digits of a tar header hold.
    """
    text = env.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 8**11:
        msg = f"SOURCE_DATE_EPOCH is not a number of seconds: {text[:40]!r}"
        raise UsageError(msg)
    return int(text)
