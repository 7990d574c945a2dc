"""Choose the upload method of each host: the user's choice, what this or an earlier run learned, or the profile.

Learned methods are stored in a small file of the state directory. An unreadable file is ignored.
No request is sent here.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import OcistreamError, UsageError
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json
from ocistream.registry.profiles import UNKNOWN_PROFILE, RegistryProfile, find_profile, find_profile_by_headers
from ocistream.registry.upload_methods import (
    ALTERNATIVES,
    CHUNK,
    PUT,
    STREAM,
    UNSIZED_STREAM,
    UploadMethod,
    parse_upload_method,
)
from ocistream.streams import files
from ocistream.streams.xdg import state_home

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

__all__ = [
    "HostFacts",
    "HostFactsFile",
    "UploadStrategy",
    "state_directory",
]

_FACTS_FILE: Final = "hosts.json"
_FACTS_VERSION: Final = 1
#: Of clocks that are set back: what was learnt tomorrow was not.
_MAX_CLOCK_SKEW: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What was learnt of one host: how it takes blobs of a known size, and others, as `--upload` has it.

    Either is "" where there is nothing to say. `since` is when, in seconds since 1970.
    """

    sized_method: str = ""
    unsized_method: str = ""
    since: float = 0.0


def state_directory(env: Mapping[str, str], home: Path | None) -> Path | None:
    """Give where state is kept: `$XDG_STATE_HOME/ocistream`, else `~/.local/state/ocistream` (XDG base directories).

    None where the environment says neither: an empty container has nothing to remember.
    """
    base = state_home(env, home)
    return base / "ocistream" if base is not None else None


class HostFactsFile:
    """The file. Safe for several processes; `note` is told why it is of no use, where it is."""

    def __init__(
        self,
        directory: Path | None,
        warn: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Name the directory, or None for nothing to be kept; nothing is read or made yet."""
        self._directory = directory
        self._warn = warn
        self._now = now

    def read(self) -> dict[str, HostFacts]:
        """Read what is known, by host."""
        if self._directory is None:
            return {}
        path = self._directory / _FACTS_FILE
        try:
            raw = files.read_bounded(path, limits.MAX_STATE_FILE)
            return self._parse(parse_json(raw, "the state file", limits.MAX_STATE_FILE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, OcistreamError) as error:
            self._warn(f"{path} is not used: {printable(str(error))}")
            return {}

    def write(self, host: str, facts: HostFacts | None) -> None:
        """Write down what was learnt of a host, or None to forget it. What others wrote meanwhile stays."""
        if self._directory is None or (facts is None and host not in self.read()):
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.locked_directory(self._directory, limits.STATE_LOCK_TIMEOUT):
                known = self.read()
                known.pop(host, None)
                if facts is not None:
                    known[host] = HostFacts(facts.sized_method, facts.unsized_method, self._now())
                newest = sorted(known.items(), key=lambda item: item[1].since)[-limits.MAX_STATE_HOSTS :]
                with files.atomic_file(self._directory / _FACTS_FILE, mode=0o600) as file:
                    files.write_all(file, _encode_facts(dict(newest)))
        except (OSError, OcistreamError) as error:
            self._warn(f"what was learnt of {printable(host)} is not kept: {printable(str(error))}")

    def _parse(self, document: Mapping[str, Any]) -> dict[str, HostFacts]:
        hosts = document.get("hosts")
        if document.get("version") != _FACTS_VERSION or not isinstance(hosts, dict):
            return {}
        found = {}
        for host, entry in hosts.items():
            with contextlib.suppress(TypeError, ValueError, OverflowError, AttributeError):
                facts = HostFacts(
                    _text_or_empty(entry.get("upload")), _text_or_empty(entry.get("unsized")), float(entry.get("since"))
                )
                if -_MAX_CLOCK_SKEW <= self._now() - facts.since <= limits.MAX_STATE_AGE:
                    found[host] = facts
        return found


def _text_or_empty(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    return value


def _encode_facts(known: Mapping[str, HostFacts]) -> bytes:
    hosts = {
        host: {
            **({"upload": facts.sized_method} if facts.sized_method else {}),
            **({"unsized": facts.unsized_method} if facts.unsized_method else {}),
            "since": round(facts.since),
        }
        for host, facts in sorted(known.items())
    }
    return json.dumps({"version": _FACTS_VERSION, "hosts": hosts}, indent=1).encode() + b"\n"


#: How many blobs move at once where nobody says otherwise.
_DEFAULT_JOBS: Final = 4


class UploadStrategy:
    """The rungs of every host. Safe for several threads. Sizes are in bytes."""

    def __init__(
        self,
        *,
        explicit_method: UploadMethod | None = None,
        jobs: int = _DEFAULT_JOBS,
        facts_file: HostFactsFile | None = None,
        report: Callable[[str, int], None] = lambda _message, _level: None,
        configured_profile: Callable[[str], RegistryProfile | None] = lambda _host: None,
    ) -> None:
        """Take what the user forces, how many blobs move at once, and where facts are kept.

        `configured` gives what kind of registry a host is, where the user has said so: its answers are not asked then.
        `tell` is told what becomes of uploads, with the verbosity from which on it is worth saying.
        """
        self.report = report
        self._configured_profile = configured_profile
        self._explicit_method = explicit_method
        self._jobs = max(jobs, 1)
        self._facts_file = facts_file or HostFactsFile(None)
        self._lock = threading.Lock()
        self._profiles: dict[str, RegistryProfile] = {}
        self._facts_by_host: dict[str, HostFacts] | None = None
        #: Host and whether sizes are known -> the rung that was come to in this run.
        self._methods: dict[tuple[str, bool], UploadMethod] = {}
        self._methods_used: dict[str, str] = {}
        #: Hosts that have refused the chunked transfer coding.
        self._hosts_without_chunked_coding: set[str] = set()

    @property
    def methods_used(self) -> Mapping[str, str]:
        """How blobs were uploaded last, by host, as `--upload` has it."""
        return dict(self._methods_used)

    def replay_buffer_size(self, *, reopenable: bool, is_size_known: bool) -> int:
        """Say how much of one blob may be held: what can be read once only comes from one pipe, which has it all.

        What can be read again needs next to nothing: more than that is lost in the kernel, where a connection breaks.
        Of unknown size, it is compressed meanwhile, and may have to go up in chunks, which are held.
        """
        if not reopenable:
            return limits.UPLOAD_MEMORY
        return limits.CHUNK_SIZE if is_size_known else max(limits.CHUNK_SIZE, limits.UPLOAD_MEMORY // (2 * self._jobs))

    def profile(self, host: str) -> RegistryProfile:
        """Give what is known of a host."""
        with self._lock:
            if host not in self._profiles:
                self._profiles[host] = self._configured_profile(host) or find_profile(host)
            return self._profiles[host]

    def observe_headers(self, host: str, header: Callable[[str], str | None]) -> None:
        """Look at an answer of a host: some say what they are. `header` gives a header by its name.

        A registry that loses broken uploads sends neither Server nor Via: these come from a proxy before it, such as
        nginx with its client_max_body_size. It refuses a body that is too large at once only if its length is stated.
        """
        server = header("Server")
        if (server is not None and not server.startswith("ocistream")) or header("Via") is not None:
            self._hosts_without_chunked_coding.add(host)
        if (
            self.profile(host) is UNKNOWN_PROFILE
            and self._configured_profile(host) is None
            and (shown := find_profile_by_headers(header)) is not None
        ):
            with self._lock:
                self._profiles[host] = shown

    def explicit_method(self, configured: str | None) -> UploadMethod | None:
        """Give what the user wants, by option or in the configuration of a host, or None: then it is found out.

        Raises:
            UsageError: the configuration is malformed.
        """
        return self._explicit_method or (parse_upload_method(configured) if configured else None)

    def choose_method(self, host: str, *, is_size_known: bool) -> UploadMethod:
        """Say where to begin with a blob, of which the size is known or not."""
        learnt = self._facts_of(host)
        with self._lock:
            reached = self._methods.get((host, is_size_known)) or (
                None if is_size_known else self._methods.get((host, True))
            )
        found = reached or _parse_learned_method(
            learnt.sized_method if is_size_known else learnt.unsized_method or learnt.sized_method
        )
        if found is None or (found.kind == PUT and not is_size_known):
            # Without its digest a blob has no PUT of its own.
            found = self._initial_method(host, is_size_known=is_size_known)
        return found

    def choose_next_method(
        self,
        host: str,
        refused: UploadMethod,
        status: int,
        *,
        is_size_known: bool,
        body_size: int | None,
        tried: Collection[UploadMethod],
    ) -> UploadMethod | None:
        """Say what to try when a way was refused with this status, for a body of so many bytes; None if nothing."""
        way = UNSIZED_STREAM if refused.kind == STREAM and not is_size_known else refused.kind
        allowed = self.profile(host).methods
        for kind in ALTERNATIVES[way].get(status, ()):
            rung = UploadMethod(kind) if kind != CHUNK else self._chunk_method(host, refused, body_size)
            if rung is None or rung in tried or (kind == PUT and not is_size_known):
                continue
            if kind in allowed or kind == refused.kind:
                return rung
        return None

    def can_use_chunked_coding(self, host: str, size: int) -> bool:
        """Return whether bodies of known length are sent to a host in the chunked transfer coding.

        That is so for blobs of a `size` that is worth keeping (`Profile.loses_broken`).
        """
        return (
            size >= limits.MIN_PARTIAL_SIZE
            and self.profile(host).loses_interrupted_uploads
            and host not in self._hosts_without_chunked_coding
        )

    def disable_chunked_coding(self, host: str) -> None:
        """Send every body of known length to this host with a Content-Length from now on."""
        self._hosts_without_chunked_coding.add(host)

    def set_method(self, host: str, method: UploadMethod, *, is_size_known: bool) -> None:
        """Have every blob after this one begin here."""
        with self._lock:
            self._methods[host, is_size_known] = method

    def record_success(self, host: str, method: UploadMethod, *, is_size_known: bool) -> None:
        """Keep for the next run how a blob was uploaded, or forget what is no news any more."""
        with self._lock:
            self._methods_used[host] = str(method)
            found_out = self._methods.get((host, is_size_known)) == method
        if not found_out or self._explicit_method:
            return
        first = self._initial_method(host, is_size_known=is_size_known) == method
        facts = self._facts_of(host)
        fact = "" if first else str(method)
        news = replace(facts, sized_method=fact) if is_size_known else replace(facts, unsized_method=fact)
        if (news.sized_method, news.unsized_method) != (facts.sized_method, facts.unsized_method):
            with self._lock:
                self._load_facts()[host] = news
            self._facts_file.write(host, news if news.sized_method or news.unsized_method else None)

    def _initial_method(self, host: str, *, is_size_known: bool) -> UploadMethod:
        """Give the rung to begin with where nothing was learnt."""
        kind = next((kind for kind in self.profile(host).methods if is_size_known or kind != PUT), STREAM)
        return (self._chunk_method(host) if kind == CHUNK else UploadMethod(kind)) or UploadMethod(STREAM)

    def _chunk_method(
        self, host: str, refused: UploadMethod | None = None, body: int | None = None
    ) -> UploadMethod | None:
        """Give chunks that are smaller than what was refused; None where those would be too small to be of any use."""
        size = refused.chunk_size if refused is not None and refused.kind == CHUNK else limits.UPLOAD_MEMORY
        size = min(size, self.profile(host).largest_chunk or size)
        while body is not None and size >= body > limits.MIN_UPLOAD_CHUNK:
            size //= 2
        return UploadMethod(CHUNK, size) if size >= limits.MIN_UPLOAD_CHUNK else None

    def _facts_of(self, host: str) -> HostFacts:
        with self._lock:
            return self._load_facts().get(host, HostFacts())

    def _load_facts(self) -> dict[str, HostFacts]:
        if self._facts_by_host is None:
            self._facts_by_host = self._facts_file.read()
        return self._facts_by_host


def _parse_learned_method(text: str) -> UploadMethod | None:
    """Read a rung out of the state file, which anybody may have edited: what could not have been learnt is no fact."""
    rung = None
    with contextlib.suppress(UsageError):
        # More than UPLOAD_MEMORY is malformed.
        rung = parse_upload_method(text) if text else None
    return None if rung is not None and rung.kind == CHUNK and rung.chunk_size < limits.MIN_UPLOAD_CHUNK else rung
