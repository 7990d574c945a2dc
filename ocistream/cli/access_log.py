"""The access log of `ocistream serve`: one line a request, as web servers have it, or as JSON."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode

from ocistream.oci.reference import printable
from ocistream.streams import files, paths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ocistream.serve import AccessLogEntry

__all__ = ["AccessLog", "redact_target"]

_MAX_TARGET: Final = 2000
#: Parameters of the distribution-spec, none of which is a secret.
_PUBLIC_PARAMETERS: Final = frozenset(
    {"artifactType", "digest", "digest-algorithm", "from", "last", "mount", "n", "tag"}
)
_MONTHS: Final = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class AccessLog:
    """Writes a line a request to a file, or to stderr. Safe for several threads."""

    def __init__(self, path: Path | None, *, as_json: bool, report: Callable[[str], None]) -> None:
        """Append to `path`, None for stderr. `tell` is called once, if the log cannot be written to any more.

        Raises:
            NotFoundError, LocalDiskError: the file cannot be opened, or the path is another user's link.
        """
        self._as_json = as_json
        self._report = report
        self._lock = threading.Lock()
        self._failed = False
        if path is None:
            self._descriptor = os.dup(sys.stderr.fileno())
        else:
            target, flags = paths.write_target(path), os.O_NOFOLLOW
            if paths.is_special(path):
                # /dev/stderr leads to something that has no path.
                target, flags = path, 0
            with files.disk_errors(f"cannot open the access log {path}"):
                # Who rotates logs copies and truncates: what is appended then begins at the beginning.
                flags |= os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(target, flags, 0o640)

    def write(self, entry: AccessLogEntry) -> None:
        """Write the line of a request; requests are served whether that can be done or not."""
        line = (_format_json_line(entry) if self._as_json else _format_common_line(entry)).encode() + b"\n"
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError as error:
                if not self._failed:
                    self._report(f"the access log cannot be written to: {error.strerror}")
                self._failed = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _format_common_line(entry: AccessLogEntry) -> str:
    """Write the common log format: host, identity (nobody knows), user, time, request, status, bytes of the body."""
    when = dt.datetime.fromtimestamp(entry.timestamp, dt.UTC).astimezone()
    # Months are English there, whatever the locale.
    stamp = f"{when:%d}/{_MONTHS[when.month - 1]}/{when:%Y:%H:%M:%S %z}"
    request = _escape_quotes(f"{entry.method} {redact_target(entry.target)} {entry.version}")
    user = quote(entry.user, safe="@+") if entry.user else "-"
    return f'{printable(entry.client)} - {user} [{stamp}] "{request}" {entry.status or "-"} {entry.sent or "-"}'


def _format_json_line(entry: AccessLogEntry) -> str:
    when = dt.datetime.fromtimestamp(entry.timestamp, dt.UTC).isoformat(timespec="milliseconds")
    fields = {
        "time": when,
        "client": entry.client,
        "user": entry.user,
        "method": printable(entry.method),
        "target": redact_target(entry.target),
        "status": entry.status,
        "received": entry.received,
        "sent": entry.sent,
        "seconds": round(entry.seconds, 6),
    }
    return json.dumps(fields if entry.problem is None else {**fields, "problem": printable(entry.problem)})


def redact_target(target: str) -> str:
    """Give what was asked for without a value of the query that may be a secret, and without control characters."""
    path, mark, query = target.partition("?")
    # A whole URL may have a user and a password in it.
    path = re.sub(r"\A([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@", r"\1", path)
    if mark:
        shown = [
            (name, value if name in _PUBLIC_PARAMETERS else "...")
            for name, value in parse_qsl(query, keep_blank_values=True)
        ]
        path += f"?{urlencode(shown, safe='/:...')}"
    return printable(path, _MAX_TARGET)


def _escape_quotes(text: str) -> str:
    return printable(text, _MAX_TARGET).replace("\\", "\\\\").replace('"', '\\"')
