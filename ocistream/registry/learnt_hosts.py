"""What is learnt of hosts and kept for the next run: one small file in the state directory, of this user alone.

A convenience and never a need: a file that cannot be read, or is malformed, or cannot be written, is as good as none.
It holds names of hosts and how they take uploads, and no secret. Facts are forgotten when they are old, so that what
has changed meanwhile is found out.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ocistream import limits
from ocistream.errors import OcistreamError
from ocistream.oci.reference import printable
from ocistream.oci.strict_json import parse_json
from ocistream.streams import files
from ocistream.streams.xdg import state_home

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["HostFacts", "HostFactsFile", "state_directory"]

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
