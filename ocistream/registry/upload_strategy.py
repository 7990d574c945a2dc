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
#: Seconds by which an entry may lie in the future, after the clock was set back.
_MAX_CLOCK_SKEW: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The upload methods that work for one host, for blobs of known and of unknown size, as `--upload` writes them.

    An empty string means that nothing was learned. `since` is the time in seconds since 1970.
    """

    sized_method: str = ""
    unsized_method: str = ""
    since: float = 0.0


def state_directory(env: Mapping[str, str], home: Path | None) -> Path | None:
    """Return the state directory: `$XDG_STATE_HOME/ocistream`, else `~/.local/state/ocistream` (XDG base directories).

    Return None if the environment has neither variable, as in an empty container.
    """
    base = state_home(env, home)
    return base / "ocistream" if base is not None else None


class HostFactsFile:
    """The file of learned methods. Safe for several processes; `warn` receives the reason if it cannot be used.

    It holds only methods that were found by trying, never those that the user chose. Reading does not renew an entry:
    after `MAX_STATE_AGE` (30 days) the first method is tried again. Other files of the directory are left alone.
    """

    def __init__(
        self,
        directory: Path | None,
        warn: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the directory; None disables the file. Do not read or create it yet."""
        self._directory = directory
        self._warn = warn
        self._now = now

    def read(self) -> dict[str, HostFacts]:
        """Return the learned methods by host."""
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
        """Store what was learned about a host; None removes it. Entries that other processes wrote stay."""
        if self._directory is None or (facts is None and host not in self.read()):
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.locked_directory(self._directory, limits.STATE_LOCK_TIMEOUT):
                facts_by_host = self.read()
                facts_by_host.pop(host, None)
                if facts is not None:
                    facts_by_host[host] = HostFacts(facts.sized_method, facts.unsized_method, self._now())
                newest = sorted(facts_by_host.items(), key=lambda item: item[1].since)[-limits.MAX_STATE_HOSTS :]
                with files.atomic_file(self._directory / _FACTS_FILE, mode=0o600) as file:
                    files.write_all(file, _encode_facts(dict(newest)))
        except (OSError, OcistreamError) as error:
            self._warn(f"what was learnt of {printable(host)} is not kept: {printable(str(error))}")

    def _parse(self, document: Mapping[str, Any]) -> dict[str, HostFacts]:
        hosts = document.get("hosts")
        if document.get("version") != _FACTS_VERSION or not isinstance(hosts, dict):
            return {}
        facts_by_host = {}
        for host, entry in hosts.items():
            with contextlib.suppress(TypeError, ValueError, OverflowError, AttributeError):
                facts = HostFacts(
                    _text_or_empty(entry.get("upload")), _text_or_empty(entry.get("unsized")), float(entry.get("since"))
                )
                if -_MAX_CLOCK_SKEW <= self._now() - facts.since <= limits.MAX_STATE_AGE:
                    facts_by_host[host] = facts
        return facts_by_host


def _text_or_empty(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    return value


def _encode_facts(facts_by_host: Mapping[str, HostFacts]) -> bytes:
    hosts = {
        host: {
            **({"upload": facts.sized_method} if facts.sized_method else {}),
            **({"unsized": facts.unsized_method} if facts.unsized_method else {}),
            "since": round(facts.since),
        }
        for host, facts in sorted(facts_by_host.items())
    }
    return json.dumps({"version": _FACTS_VERSION, "hosts": hosts}, indent=1).encode() + b"\n"


#: Default number of blobs that are uploaded at the same time.
_DEFAULT_JOBS: Final = 4


class UploadStrategy:
    """The upload methods of every host. Safe for several threads. Sizes are in bytes.

    `explicit_method` is the user's choice, `jobs` the number of simultaneous uploads. `configured_profile` returns the
    profile that the user set for a host; its response headers are then ignored. `report(message, level)` receives what
    happens to uploads, with the verbosity from which it is shown.
    """

    def __init__(
        self,
        *,
        explicit_method: UploadMethod | None = None,
        jobs: int = _DEFAULT_JOBS,
        facts_file: HostFactsFile | None = None,
        report: Callable[[str, int], None] = lambda _message, _level: None,
        configured_profile: Callable[[str], RegistryProfile | None] = lambda _host: None,
    ) -> None:
        """Take the user's choices, and the file of learned methods."""
        self.report = report
        self._configured_profile = configured_profile
        self._explicit_method = explicit_method
        self._jobs = max(jobs, 1)
        self._facts_file = facts_file or HostFactsFile(None)
        self._lock = threading.Lock()
        self._profiles: dict[str, RegistryProfile] = {}
        self._facts_by_host: dict[str, HostFacts] | None = None
        #: (Host, whether the size is known) -> the method that this run found.
        self._methods: dict[tuple[str, bool], UploadMethod] = {}
        self._methods_used: dict[str, str] = {}
        #: Hosts that have refused the chunked transfer coding.
        self._hosts_without_chunked_coding: set[str] = set()

    @property
    def methods_used(self) -> Mapping[str, str]:
        """The last upload method of each host, as `--upload` writes it."""
        return dict(self._methods_used)

    def replay_buffer_size(self, *, reopenable: bool, is_size_known: bool) -> int:
        """Return how many bytes of one blob may be buffered for sending again.

        A pipe gets all of the memory, 8 MiB: that many bytes may be in socket buffers and in a proxy. A reopenable blob
        needs one chunk only. With unknown size it may go in chunks, which are buffered; then the simultaneous uploads
        share the memory.
        """
        if not reopenable:
            return limits.UPLOAD_MEMORY
        return limits.CHUNK_SIZE if is_size_known else max(limits.CHUNK_SIZE, limits.UPLOAD_MEMORY // (2 * self._jobs))

    def profile(self, host: str) -> RegistryProfile:
        """Return the profile of a host."""
        with self._lock:
            if host not in self._profiles:
                self._profiles[host] = self._configured_profile(host) or find_profile(host)
            return self._profiles[host]

    def observe_headers(self, host: str, header: Callable[[str], str | None]) -> None:
        """Learn from the headers of a host's response; `header` returns a header by its name.

        distribution sends neither Server nor Via, so these come from a proxy before it, such as nginx with
        client_max_body_size. The proxy can refuse a body that is too large at once only if its length is stated.
        """
        server = header("Server")
        if (server is not None and not server.startswith("ocistream")) or header("Via") is not None:
            self._hosts_without_chunked_coding.add(host)
        if (
            self.profile(host) is UNKNOWN_PROFILE
            and self._configured_profile(host) is None
            and (profile := find_profile_by_headers(header)) is not None
        ):
            with self._lock:
                self._profiles[host] = profile

    def explicit_method(self, configured: str | None) -> UploadMethod | None:
        """Return the method that the user chose by option or configuration; None to choose automatically.

        Raises:
            UsageError: the configuration is malformed.
        """
        return self._explicit_method or (parse_upload_method(configured) if configured else None)

    def choose_method(self, host: str, *, is_size_known: bool) -> UploadMethod:
        """Return the method to try first for a blob of known or unknown size."""
        facts = self._facts_of(host)
        with self._lock:
            current = self._methods.get((host, is_size_known)) or (
                None if is_size_known else self._methods.get((host, True))
            )
        method = current or _parse_learned_method(
            facts.sized_method if is_size_known else facts.unsized_method or facts.sized_method
        )
        if method is None or (method.kind == PUT and not is_size_known):
            # One PUT needs the digest in advance.
            method = self._initial_method(host, is_size_known=is_size_known)
        return method

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
        """Return the method to try after `status` refused a body of `body_size` bytes; None if no method is left."""
        refused_kind = UNSIZED_STREAM if refused.kind == STREAM and not is_size_known else refused.kind
        allowed = self.profile(host).methods
        for kind in ALTERNATIVES[refused_kind].get(status, ()):
            method = UploadMethod(kind) if kind != CHUNK else self._chunk_method(host, refused, body_size)
            if method is None or method in tried or (kind == PUT and not is_size_known):
                continue
            if kind in allowed or kind == refused.kind:
                return method
        return None

    def can_use_chunked_coding(self, host: str, size: int) -> bool:
        """Return whether bodies of known length are sent to a host in the chunked transfer coding.

        This is the case for registries that lose interrupted uploads, and for blobs that are large enough to resume.
        For other registries the length is stated, so that a proxy can refuse a body that is too large at once.
        """
        return (
            size >= limits.MIN_PARTIAL_SIZE
            and self.profile(host).loses_interrupted_uploads
            and host not in self._hosts_without_chunked_coding
        )

    def disable_chunked_coding(self, host: str) -> None:
        """State the length of every body of known length to this host from now on."""
        self._hosts_without_chunked_coding.add(host)

    def set_method(self, host: str, method: UploadMethod, *, is_size_known: bool) -> None:
        """Use this method first for all later blobs."""
        with self._lock:
            self._methods[host, is_size_known] = method

    def record_success(self, host: str, method: UploadMethod, *, is_size_known: bool) -> None:
        """Store for later runs how a blob was uploaded, or remove an entry that equals the default."""
        with self._lock:
            self._methods_used[host] = str(method)
            is_learned = self._methods.get((host, is_size_known)) == method
        if not is_learned or self._explicit_method:
            return
        is_default = self._initial_method(host, is_size_known=is_size_known) == method
        facts = self._facts_of(host)
        learned = "" if is_default else str(method)
        new_facts = replace(facts, sized_method=learned) if is_size_known else replace(facts, unsized_method=learned)
        if (new_facts.sized_method, new_facts.unsized_method) != (facts.sized_method, facts.unsized_method):
            with self._lock:
                self._load_facts()[host] = new_facts
            self._facts_file.write(host, new_facts if new_facts.sized_method or new_facts.unsized_method else None)

    def _initial_method(self, host: str, *, is_size_known: bool) -> UploadMethod:
        """Return the first method of the host's profile."""
        kind = next((kind for kind in self.profile(host).methods if is_size_known or kind != PUT), STREAM)
        return (self._chunk_method(host) if kind == CHUNK else UploadMethod(kind)) or UploadMethod(STREAM)

    def _chunk_method(
        self, host: str, refused: UploadMethod | None = None, body_size: int | None = None
    ) -> UploadMethod | None:
        """Return chunks that are smaller than the refused body; None if they would be too small to be useful."""
        size = refused.chunk_size if refused is not None and refused.kind == CHUNK else limits.UPLOAD_MEMORY
        size = min(size, self.profile(host).largest_chunk or size)
        while body_size is not None and size >= body_size > limits.MIN_UPLOAD_CHUNK:
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
    """Parse a method from the state file; ignore values that ocistream never writes, as the user may edit the file."""
    method = None
    with contextlib.suppress(UsageError):
        # A chunk larger than UPLOAD_MEMORY is malformed.
        method = parse_upload_method(text) if text else None
    return (
        None if method is not None and method.kind == CHUNK and method.chunk_size < limits.MIN_UPLOAD_CHUNK else method
    )
