"""Filter tags by a regular expression of the operator, which Python's `re` matches.

`re` may take hours for one tag, and neither a thread nor a signal can stop it. A registry chooses the tags, so they are
matched in a process of their own, whose time the kernel limits.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Final

from ocistream import limits
from ocistream.errors import UsageError
from ocistream.oci.reference import is_digest_tag, is_tag, printable
from ocistream.oci.tag_filters import require_some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.oci.tag_filters import TagFilter

#: The kernel ends the process with SIGXCPU after `seconds` of CPU time, even if ocistream is gone by then.
_PROGRAM: Final = """
import json, re, resource, sys
pattern, tags, seconds = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
matches = re.compile(pattern, re.ASCII).fullmatch
json.dump([tag for tag in tags if matches(tag)], sys.stdout)
"""


def regex_filter(pattern: str) -> TagFilter:
    """Return a filter by a regular expression (Python's syntax, ASCII) that must match the complete tag.

    The filter raises UsageError if the matching takes too long.

    Raises:
        UsageError: the expression is malformed or too long.
    """
    if len(pattern) > limits.MAX_REGEX_LENGTH:
        msg = f"regular expression {printable(pattern)!r} has more than {limits.MAX_REGEX_LENGTH} characters"
        raise UsageError(msg)
    try:
        with warnings.catch_warnings():
            # A user cannot act on warnings about syntax that later Python versions read differently.
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(pattern, re.ASCII)
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        msg = f"malformed regular expression {printable(pattern)!r}: {printable(str(error))}"
        raise UsageError(msg) from error

    def choose(tags: Sequence[str]) -> list[str]:
        matching = _match(pattern, [tag for tag in tags if is_tag(tag) and not is_digest_tag(tag)])
        return require_some(matching, tags, f"matches the regular expression {pattern!r}")

    return choose


def _match(pattern: str, tags: Sequence[str]) -> list[str]:
    """Return the tags that match, in their order."""
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PROGRAM],
        input=json.dumps([pattern, tags, limits.MAX_REGEX_SECONDS]).encode(),
        capture_output=True,
        check=False,
        # A signal from the terminal is for ocistream only.
        start_new_session=True,
    )
    if process.returncode == 0:
        matching: list[str] = json.loads(process.stdout)
        return matching
    problem = f"failed with exit status {process.returncode}"
    if process.returncode in {-signal.SIGXCPU, -signal.SIGKILL}:
        problem = f"was stopped after {limits.MAX_REGEX_SECONDS} seconds: it takes too long for one of the tags"
    msg = f"regular expression {printable(pattern)!r} {problem}"
    raise UsageError(msg, hint="avoid nested repeats such as (a+)+")
