"""copy(source, sink): the one way anything moves.

Here, and only here, are verifying, counting and cancelling wrapped around a blob, and here is the order of things:
the graph, what is there already, the blobs, then what makes them visible. It knows no store, no terminal, no network.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import limits
from ocistream.ahead import Ahead
from ocistream.asking import Asking
from ocistream.attachments import CONVERTED
from ocistream.blobs import held, peeked
from ocistream.configs import Configs, checked
from ocistream.errors import ArchiveError, IntegrityError, UnsupportedError
from ocistream.hashing import processors
from ocistream.interfaces import (
    Blob,
    HasNoPlace,
    Holds,
    Keeps,
    LeavesOut,
    MayHaveToWait,
    Recalls,
    Spares,
    TakesAgain,
    TakesUnnamed,
    Unnamed,
    Unwatched,
)
from ocistream.model import Descriptor
from ocistream.report import Moved, Report
from ocistream.rereading import until_right
from ocistream.shortfall import ShortfallError
from ocistream.stream import Tally, counted, gathered, stoppable, wrong_size
from ocistream.watching import Watched
from ocistream.workers import DEFAULT_JOBS, each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ocistream.conversion import Conversion, Recompression
    from ocistream.graph import Graph
    from ocistream.interfaces import Observer, Sink, Source
    from ocistream.left_out import Reason
    from ocistream.shortfall import NeededVolumes
    from ocistream.stream import Chunk

__all__ = ["Report", "copy"]

#: How many blobs move at once where layers are compressed anew.
_CONVERTING_JOBS = 2


def copy(  # noqa: PLR0913 - all but two are options, given by name
    source: Source,
    sink: Sink,
    observer: Observer | None = None,
    *,
    jobs: int = DEFAULT_JOBS,
    ahead: int = limits.AHEAD_MEMORY,
    cancelled: threading.Event | None = None,
    rename: Callable[[Graph], Graph] | None = None,
    leave_out: Callable[[Graph], Mapping[str, Reason]] | None = None,
    recompression: Recompression | None = None,
    bare_layers: Recompression | None = None,
) -> Report:
    """Move everything that `source` has been asked for into `sink`, and make it visible only when all of it is there.

    `jobs` bounds how many blobs move at once, where both sides allow it, and over how many connections they come;
    `ahead` is how many bytes those may fetch before they are wanted, 0 for one connection a blob. `cancelled` is set
    when the transfer fails, so that whatever else waits on it stops waiting. `rename` may give the roots other names,
    and `leave_out` says of which blobs, by digest, what is written is to be without, and why.
    With `recompression` the layers of images are compressed anew on the way, where they are not so already;
    `bare_layers` is what then holds, if nothing else does, for archives that never compress theirs (`docker save`'s).
    Both ends are left open.

    Raises:
        OcistreamError: whatever went wrong first; nothing new is visible in the sink then.
    """
    transfer = _Transfer(source, sink, observer or Unwatched(), jobs, cancelled or threading.Event())
    transfer.ahead = ahead
    transfer.leave_out = leave_out
    transfer.bare_layers = bare_layers
    if recompression is not None:
        transfer.conversion = _conversion(recompression)
    try:
        return transfer.run(rename)
    except (IntegrityError, ArchiveError):
        if isinstance(sink, Keeps):
            sink.discard()
        raise


def _conversion(want: Recompression) -> Conversion:
    # Not at the top: hardly any transfer compresses anew, and each would pay for importing it.
    from ocistream.conversion import Conversion

    return Conversion(want)


class _Transfer:
    """The state of one copy."""

    def __init__(self, source: Source, sink: Sink, observer: Observer, jobs: int, cancelled: threading.Event) -> None:
        self._source = source
        self._sink = sink
        self._observer = observer
        self._jobs = jobs
        self._cancelled = cancelled
        self._moved: dict[str, Moved] = {}
        #: How many blobs move at once, and how many bytes may be fetched before they are wanted.
        self._at_once = 1
        self.ahead = 0
        self.leave_out: Callable[[Graph], Mapping[str, Reason]] | None = None
        self._lock = threading.Lock()
        #: What is to be compressed anew, if anything is.
        self.conversion: Conversion | None = None
        self.bare_layers: Recompression | None = None
        self._bare: Conversion | None = None
        self._layers: dict[str, Descriptor] = {}
        #: Configs that are read to check layers by them.
        self._configs: set[str] = set()
        self._of_images = Configs()
        #: Layers that are called what is asked for: they have to be so.
        self._kept: set[str] = set()

    def run(self, rename: Callable[[Graph], Graph] | None) -> Report:
        began = time.monotonic()
        graph = self._source.graph(self)
        if graph.bare:
            self.conversion = self._of_bare_layers()
        if rename is not None:
            graph = rename(graph)
        graph = source = self._leaving(self._less_what_cannot_go_along(graph))
        self._of_images.find(graph)
        self._observer.planned(graph)
        if self._converts(graph):
            self._unnamed_sink().expect(graph)
        else:
            self._sink.begin(graph)
        for blob in graph.blobs if graph.leaving else ():
            if blob.digest in graph.leaving:
                self._note(blob, "left out")
        asking = Asking(self._source, self._sink, self._note, jobs=self._jobs, cancelled=self._cancelled)
        missing, waiting = asking.missing_and_others(graph, self._waiting(graph))
        self._check_convertible()
        # Of a layer that is compressed anew, nobody knows yet what it becomes.
        asking.take([blob for blob in waiting if blob.digest not in self._layers])
        # A config that is there is read all the same: it says what the layers have to be.
        wanted = [blob for blob in waiting if blob.digest not in self._moved or blob.digest in self._configs]
        # Even where nothing is wanted any more, a pipe is read to its end.
        wanted = self._put_manifests_wanted_as_blobs(graph, wanted)
        self._put_all(wanted)
        needed = self._part_by_part(missing, graph) if missing else None
        missing = [blob for blob in missing if blob.digest not in self._moved]
        if lacking := [*missing, *(blob for blob in wanted if blob.digest not in self._moved)]:
            raise ShortfallError(lacking, graph, is_untouched=False, needed=needed)
        origins: Mapping[str, str] = {}
        if self._layers and self.conversion is not None:
            for blob in graph.blobs:
                # One that came early was not seen for what it is.
                if blob.digest in self._configs and not self.conversion.knows_config(blob.digest):
                    self.conversion.note_config(blob.digest, self.recall(blob))
            graph, origins = self.conversion.rewritten(graph)
            self._sink.begin(graph)
        self._sink.commit(graph)
        return Report(graph, source, self._became(graph), time.monotonic() - began, origins)

    def _check_convertible(self) -> None:
        """Refuse to compress anew what the source was made without: only the sink has it."""
        for digest in self._layers:
            moved = self._moved.get(digest)
            if moved is not None and moved.how in {"skipped", "mounted"}:
                msg = f"{digest} is to be compressed anew, and only the destination has it"
                raise UnsupportedError(msg, hint="leave --compress away: some layers were left out here")

    def _leaving(self, graph: Graph) -> Graph:
        """Decide what is left out on purpose."""
        if self.leave_out is None:
            return graph
        if not isinstance(self._sink, LeavesOut):
            msg = "nothing can be left out of this destination"
            raise UnsupportedError(msg, hint="write an OCI archive or a layout")
        leaving = self.leave_out(graph)
        # What came before the graph was known is written by now, whatever the other side has.
        left = [b.digest for b in graph.blobs if b.digest in leaving and b.digest not in self._moved]
        return replace(graph, leaving={digest: leaving[digest] for digest in left})

    def _became(self, graph: Graph) -> list[Moved]:
        """Say what became of each blob of what was written."""
        made = {}
        if self.conversion is not None:
            made = {done.result.digest: done for digest in self._layers if (done := self.conversion.done(digest))}
        # Of what came early, only the digest was known: what the graph says of a blob is shown.
        return [
            Moved(blob, "converted", made[blob.digest].source.digest)
            if blob.digest in made
            else replace(self._moved[blob.digest], descriptor=blob)
            for blob in graph.blobs
        ]

    # -- what a source may do with blobs that come before the graph (interfaces.Early) -------------------

    def put(self, blob: Blob) -> None:
        """Move a blob right now, or read it to its end where the sink has it."""
        blob = self._of_images.noting(blob)
        if self.conversion is not None:
            blob, beginning = peeked(blob)
            if self.conversion.takes(beginning):
                self._convert(blob, self.conversion)
                return
        if blob.descriptor.digest in self._moved or self._sink.has(blob.descriptor):
            self._pass_over(blob)
        else:
            self._put(blob)

    def put_unnamed(self, chunks: Iterator[Chunk]) -> Descriptor:
        """Move a layer of which no digest is known right now, compressed anew where that is asked for."""
        from ocistream import layers
        from ocistream.compression import codec_of

        conversion = self._of_bare_layers()
        blob, beginning = peeked(Blob(Descriptor(layers.OCI, "", 0), lambda: chunks, replayable=False))
        if conversion is not None and conversion.takes_layer(beginning):
            return self._convert(blob, conversion, known=False)
        passing = functools.partial(self._observer.advance, descriptor=blob.descriptor)
        raw = Tally(counted(stoppable(blob.open(), self._cancelled), passing))
        kind = layers.media_type(layers.OCI, codec_of(beginning).name)
        descriptor = self._unnamed_sink().put_unnamed(
            Unnamed(lambda: raw, lambda: Descriptor(kind, raw.digest, raw.size), replayable=False)
        )
        self._note(descriptor, "copied", descriptor.size)
        return descriptor

    def takes_early(self) -> bool:
        """Say whether blobs may come before the graph."""
        return not isinstance(self._sink, MayHaveToWait) or self._sink.takes_early()

    def recall(self, descriptor: Descriptor) -> bytes:
        """Have the sink give back what it was given."""
        if not isinstance(self._sink, Recalls):
            msg = f"{descriptor.digest}: too many small blobs come before the archive's index to hold all of them"
            raise UnsupportedError(msg, hint="read it from a file instead of a pipe")
        return self._sink.recall(descriptor)

    # -- the steps ---------------------------------------------------------------------------------------

    def _converts(self, graph: Graph) -> bool:
        """Find out which layers are to be compressed anew, and whether there are any."""
        if self.conversion is None:
            return False
        # What came early was taken as it looked, and may have been of another compression than it is called.
        self._layers = {
            digest: layer
            for digest, layer in self.conversion.layers_of(graph).items()
            if digest not in self._moved or self.conversion.done(digest)
        }
        self._configs = self.conversion.configs_of(graph)
        self._kept = self.conversion.kept_of(graph)
        return bool(self._layers)

    def _less_what_cannot_go_along(self, graph: Graph) -> Graph:
        """Leave behind what hangs on an image where there is no place for it, or where it would hang on nothing.

        The place may be that of something else.
        """
        if isinstance(self._sink, HasNoPlace):
            graph = graph.without_attached(lambda _: True, self._sink.no_place)
        if graph.attached and self.conversion is not None and self._converts(graph):
            changed = self.conversion.changed(graph, self._layers)
            graph = graph.without_attached(
                lambda attached: attached.subject in changed or attached.descriptor.digest in changed, CONVERTED
            )
        if graph.attached and isinstance(self._sink, Spares):
            graph = self._sink.spared(graph)
        return graph

    def _of_bare_layers(self) -> Conversion | None:
        """Give what holds for layers of an archive that never compresses its own.

        It is not for other blobs, before the graph has said that this is such an archive: a stray file in an OCI
        archive may look as if it were.
        """
        if self._bare is None and self.bare_layers is not None:
            self._bare = _conversion(self.bare_layers)
        return self.conversion or self._bare

    def _unnamed_sink(self) -> TakesUnnamed:
        if not isinstance(self._sink, TakesUnnamed):
            msg = "layers cannot be compressed anew on the way to this destination"
            raise UnsupportedError(msg)
        return self._sink

    def _waiting(self, graph: Graph) -> list[Descriptor]:
        """List the blobs that have not come early.

        Raises:
            IntegrityError: one that has come is not of the size that the manifests give it.
            ArchiveError: one that has come is an image's config, and no JSON.
        """
        waiting: list[Descriptor] = []
        for blob in graph.blobs:
            moved = self._moved.get(blob.digest)
            if blob.digest in graph.leaving:
                continue
            if moved is None:
                waiting.append(blob)
            elif moved.how == "converted" and blob.digest not in self._layers:
                msg = f"{blob.digest} looked like a layer, and was compressed anew, before it was known to be none"
                raise UnsupportedError(msg, hint="read the archive from a file instead of a pipe")
            elif moved.descriptor.size != blob.size:
                raise wrong_size(blob, moved.descriptor.size)
            else:
                self._of_images.check_early(blob)
        return waiting

    def _put_manifests_wanted_as_blobs(self, graph: Graph, wanted: list[Descriptor]) -> list[Descriptor]:
        """Put what is a manifest and some other manifest's layer or config, from the bytes that are held anyway."""
        raws = {manifest.descriptor.digest: manifest.raw for manifest in graph.manifests}
        for descriptor in wanted:
            if descriptor.digest in raws:
                self._put(held(descriptor, raws[descriptor.digest]))
        return [descriptor for descriptor in wanted if descriptor.digest not in raws]

    def _put_all(self, wanted: list[Descriptor]) -> None:
        jobs = self._jobs if self._source.parallel and self._sink.parallel else 1
        # Each one that is compressed takes its own memory, and by itself more than one core.
        jobs = min(jobs, _CONVERTING_JOBS) if self._layers else jobs
        self._at_once = min(jobs, len(wanted))
        blobs = self._source.blobs(wanted)
        memory = self.ahead - (self._sink.held * self._at_once if isinstance(self._sink, Holds) else 0)
        if not (memory > 0 and self._source.parallel and self._jobs > 1) or self._layers:
            self._put_each(blobs, jobs)
            return
        with closing(Ahead(self._jobs, memory, self._cancelled)) as ahead:
            self._put_each(ahead.ordered(blobs) if jobs == 1 else ahead.side_by_side(blobs), jobs)

    def _put_each(self, blobs: Iterator[Blob], jobs: int) -> None:
        for blob in blobs:
            if blob.descriptor.digest not in self._configs:
                blobs = itertools.chain([blob], blobs)
                break
            # They come first where blobs are read side by side. Each is held whole, and may have megabytes.
            self._put_one(blob)
        each(self._put_one, blobs, jobs=jobs, cancelled=self._cancelled)

    def _put_one(self, blob: Blob) -> None:
        digest = blob.descriptor.digest
        if blob.start:
            self._put_rest(blob)
        elif digest in self._layers and self.conversion is not None:
            self._convert(blob, self.conversion)
        elif digest in self._configs:
            self._put_config(blob)
        elif self.conversion is not None and self.conversion.has_made(digest):
            # It was asked for before it was there.
            self._pass_over(blob)
        elif digest in self._kept and self.conversion is not None:
            # It is looked at how it begins, and so not begun in the middle.
            self._put(replace(blob, open=functools.partial(self.conversion.as_called, blob), open_at=None))
        elif digest in self._of_images.digests:
            with self._of_images.turn(blob.descriptor):
                self._put(blob, checked)
        else:
            self._put(blob)

    def _put_rest(self, blob: Blob) -> None:
        """Put what the source has of a blob where the sink has the beginning.

        Raises:
            UnsupportedError: it has to be read from its beginning.
        """
        # Hardly any archive goes on with blobs.
        from ocistream.beginnings import put_rest

        digest = blob.descriptor.digest
        if digest in {*self._layers, *self._configs, *self._kept, *self._of_images.digests}:
            msg = f"{digest}: only the end of it comes, and all of it is to be read here"
            raise UnsupportedError(msg)
        watched = Watched(self._observer, blob.descriptor, self._cancelled)
        put_rest(self._sink, blob, watched)
        self._note(blob.descriptor, "copied", watched.seen, resumed=watched.resumed)

    def _part_by_part(self, missing: Sequence[Descriptor], graph: Graph) -> NeededVolumes:
        """Put what there is of blobs that have the rest of their parts in other volumes; say which those are."""
        # Hardly any archive is cut into volumes.
        from ocistream.part_by_part import PartByPart

        parts = PartByPart(self._source, self._sink, self._observer, self._note, self._cancelled)
        return parts.put(missing, graph)

    def _pass_over(self, blob: Blob) -> None:
        """Read a blob to its end that the sink has."""

        def read(checked: Blob) -> None:
            for _ in stoppable(checked.open(), self._cancelled):
                pass

        until_right(blob, read, again=True)
        if blob.descriptor.digest not in self._moved:
            self._note(blob.descriptor, "skipped")

    def _put_config(self, blob: Blob) -> None:
        """Read a config, to check layers by it, and put it where it is not there yet.

        It is held; no graph has one of more than `limits.MAX_CONFIG`.
        """
        descriptor = blob.descriptor
        content = until_right(blob, lambda checked: gathered(stoppable(checked.open(), self._cancelled)), again=True)
        if self.conversion is not None:
            self.conversion.note_config(descriptor.digest, content)
        if descriptor.digest not in self._moved:
            self._put(held(descriptor, content))

    def _convert(self, blob: Blob, conversion: Conversion, *, known: bool = True) -> Descriptor:
        """Put what a layer becomes; the chunks of the layer itself are verified, counted and can be stopped.

        Without `known` its descriptor says nothing. The layer's own, with size and digest, is given back.
        """
        watched = Watched(self._observer, blob.descriptor, self._cancelled)

        def convert(checked: Blob) -> Descriptor:
            chunks = watched.blob(checked).open
            recoded = conversion.recoded(chunks, blob.descriptor if known else None, replayable=blob.replayable)
            self._unnamed_sink().put_unnamed(recoded.unnamed())
            return recoded.converted.source

        source = until_right(blob, convert, again=self._takes_again) if known else convert(blob)
        self._note(source, "converted", watched.seen)
        return source

    def _put(self, blob: Blob, read: Callable[[Blob], Blob] = lambda verified: verified) -> None:
        """Put a blob whose chunks are verified, `read`, counted and can be stopped, in this order from the inside."""
        watched = Watched(self._observer, blob.descriptor, self._cancelled)
        until_right(
            blob,
            lambda right: self._sink.put(watched.blob(read(right))),
            again=self._takes_again,
            beside=self._at_once < processors(),
        )
        self._note(blob.descriptor, "copied", watched.seen, resumed=watched.resumed)

    @functools.cached_property
    def _takes_again(self) -> bool:
        return isinstance(self._sink, TakesAgain) and self._sink.takes_again()

    def _note(self, descriptor: Descriptor, how: str, seen: int = 0, *, resumed: int = 0) -> None:
        with self._lock:
            self._moved[descriptor.digest] = Moved(descriptor, how, resumed=resumed)
        # What was not read through counts as moved all the same, so that the total is reached.
        self._observer.advance(descriptor.size - seen)
        self._observer.done(descriptor, how)
