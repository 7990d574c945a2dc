"""Parse examples in the documents: blocks, commands with their output; and compare output with an example."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its `language`, its `text`, its first `line`, and the `note` in a comment before it."""

    language: str
    text: str
    line: int
    note: str = ""


_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A comment right before a block names the test that runs the block, if it does not run with the others.
_NOTE: Final = re.compile(r"<!-- run by (\S+) -->\n\Z")


def blocks(text: str) -> list[Block]:
    """Return a document's blocks in order."""
    found = []
    for match in _FENCE.finditer(text):
        note = _NOTE.search(text, 0, match.start())
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], line, note[1] if note else ""))
    return found


def code_block(text: str, language: str, word: str) -> str:
    """Return the only block of a document in this language that contains the word."""
    (found,) = [block.text for block in blocks(text) if block.language == language and word in block.text]
    return found


def turns(transcript: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a transcript (after `$`) with its output."""
    for part in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        line, _, rest = part.partition("\n")
        while line.endswith("\\"):
            more, _, rest = rest.partition("\n")
            line = f"{line}\n{more}"
        yield line, rest


#: The parts of an example that may differ from the real output, and the pattern for each.
_VARIES: Final = re.compile(
    r"(?P<any>…)|(?P<hex>(?<![0-9a-f])[0-9a-f]{12,}(?![0-9a-f]))|(?P<number>\d[\d.,]*(?: [kMGT]?B\b)?)|(?P<blank> +)"
)
_AS: Final = {"any": ".*", "hex": "[0-9a-f]+", "number": r"[\d.,]+(?: [kMGT]?B\b)?", "blank": " +"}


def is_like(said: str, shown: str) -> bool:
    """Return whether output matches an example: digests, numbers and sizes may differ, and `…` is anything."""
    pattern, end = "", 0
    shown = shown.strip()
    for match in _VARIES.finditer(shown):
        pattern += re.escape(shown[end : match.start()]) + _AS[str(match.lastgroup)]
        end = match.end()
    return re.fullmatch(pattern + re.escape(shown[end:]), said.strip(), re.DOTALL) is not None
