"""How far a transfer has come at any moment: what the renderers of progress show, in numbers and in words."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from ocistream.limits import MAX_CONFIG
from ocistream.sizes import format_size

if TYPE_CHECKING:
    from ocistream.oci.descriptor import Descriptor
    from ocistream.oci.graph import Graph

__all__ = ["ProgressCounter", "ProgressSnapshot", "TransferRate", "format_count", "format_size", "human_duration"]

#: Seconds over which a rate is taken, and between two of its samples.
_RATE_WINDOW: Final = 10.0
_SAMPLE_EVERY: Final = 0.25
#: Seconds without which nobody can say how long the rest takes.
_MIN_RATE_TIME: Final = 1.0
#: No chunk is larger. What counts at once as more than that was there before, and says nothing of how fast it goes.
_LARGEST_CHUNK: Final = MAX_CONFIG


def human_duration(seconds: float) -> str:
    """Write a time that is left for people: `95 s`, `12 min`, `3 h 20 min`, `5 days`; never that there is none."""
    if seconds < 120:
        return f"{max(1, seconds):.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds // 3_600:.0f} h {seconds % 3_600 // 60:.0f} min"
    return f"{seconds / 86_400:.0f} days"


def format_count(number: int, singular: str, plural: str = "") -> str:
    """Write a number of things for people: `1 blob`, `2 blobs`, `2 indexes`."""
    return f"{number} {singular}" if number == 1 else f"{number} {plural or singular + 's'}"


class TransferRate:
    """How many bytes a second flow, over the last ten seconds; what is taken back flowed all the same."""

    def __init__(self) -> None:
        """Begin with the first byte, and not with the wait for it."""
        self._total_bytes = 0
        #: Times in seconds, and how many bytes had flowed by then.
        self._samples: deque[tuple[float, int]] = deque()

    def add_bytes(self, now: float, size: int) -> None:
        """Note that bytes have moved, or been taken back."""
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_EVERY:
            self._samples.append((now, self._total_bytes))
            self._drop_old_samples(now)
        if 0 < size <= _LARGEST_CHUNK:
            self._total_bytes += size

    def is_reliable(self, now: float) -> bool:
        """Say whether bytes have flowed for long enough to tell anything of the future."""
        return bool(self._samples) and now - self._samples[0][0] >= _MIN_RATE_TIME

    def bytes_per_second(self, now: float) -> float:
        """Say how many bytes a second that is."""
        if not self._samples:
            return 0.0
        self._drop_old_samples(now)
        since, before = self._samples[0]
        return (self._total_bytes - before) / max(now - since, _SAMPLE_EVERY)

    def _drop_old_samples(self, now: float) -> None:
        while len(self._samples) > 1 and self._samples[1][0] <= now - _RATE_WINDOW:
            self._samples.popleft()


class _ActiveBlob:
    """A blob that is under way: `moved` is how many of its bytes are, `began` when it was begun (monotonic)."""

    def __init__(self, descriptor: Descriptor, began: float) -> None:
        self.descriptor = descriptor
        self.started_at = began
        self.moved = 0
        self.rate = TransferRate()

    def snapshot(self, now: float) -> tuple[str, int, int, float]:
        size = self.descriptor.size
        return (
            self.descriptor.digest,
            size,
            max(0, min(self.moved, size or self.moved)),
            self.rate.bytes_per_second(now),
        )


class ProgressSnapshot(NamedTuple):
    """How far it is: sizes in bytes, `rate` in bytes a second, `left` in seconds, or None where nobody can say.

    `total` and `blobs` are None before the total is known. `how` counts blobs by what became of them; `under_way` are
    digest (empty where it is not known yet), size, bytes moved and rate of those that move now.
    """

    moved: int
    total: int | None
    rate: float
    seconds_left: float | None
    blob_count: int | None
    outcomes: dict[str, int]
    active_blobs: list[tuple[str, int, int, float]]
    #: How many images are done with, and of how many, where there are many.
    images: tuple[int, int] | None = None

    @property
    def percent(self) -> int:
        """The share of the total that has moved, rounded down: 100 is all of it."""
        return percentage(self.moved, self.total or 0)

    @property
    def done_count(self) -> int:
        """How many blobs are done with, in whichever way."""
        return sum(self.outcomes.values())


def percentage(moved: int, total: int) -> int:
    """Give a share in percent, rounded down."""
    return 100 * moved // total if total else 100


class ProgressCounter:
    """What an observer is told, added up from any thread."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._total: int | None = None
        self._blob_count: int | None = None
        self._moved = 0
        self._outcomes: Counter[str] = Counter()
        self._active_blobs: dict[str, _ActiveBlob] = {}
        self._rate = TransferRate()
        self.has_started = False
        #: How many images are done with, and of how many.
        self.images: tuple[int, int] | None = None

    def planned(self, graph: Graph) -> None:
        """Learn the total."""
        with self._lock:
            self._total, self._blob_count = graph.size, len(graph.blobs)
            self.has_started = True

    def advance(self, size: int, descriptor: Descriptor | None) -> None:
        """Add bytes, or take some back."""
        now = time.monotonic()
        with self._lock:
            self.has_started = True
            self._moved += size
            if descriptor is not None:
                self._rate.add_bytes(now, size)
                under = self._active_blobs.get(descriptor.digest)
                if under is None:
                    under = self._active_blobs[descriptor.digest] = _ActiveBlob(descriptor, now)
                under.moved += size
                under.rate.add_bytes(now, size)

    def done(self, descriptor: Descriptor, how: str) -> float:
        """Be done with a blob; say for how many seconds it was under way."""
        with self._lock:
            self._outcomes[how] += 1
            # One without a digest comes alone, and has one now.
            under = self._active_blobs.pop(descriptor.digest, None) or self._active_blobs.pop("", None)
        return time.monotonic() - under.started_at if under is not None else 0.0

    def snapshot(self) -> ProgressSnapshot:
        """Say how far it is now; no number is beyond its bounds, whatever was counted twice or taken back."""
        now = time.monotonic()
        with self._lock:
            total = self._total
            moved = max(0, self._moved if total is None else min(self._moved, total))
            rate = self._rate.bytes_per_second(now)
            left = None
            if total is not None and ((rate > 0 and self._rate.is_reliable(now)) or moved == total):
                left = (total - moved) / rate if moved < total else 0.0
            under_way = [u.snapshot(now) for u in self._active_blobs.values()]
            return ProgressSnapshot(
                moved, total, rate, left, self._blob_count, dict(self._outcomes), under_way, self.images
            )
