"""One source into several sinks: each blob is read once, and each sink fails for itself."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ocistream import transfer
from ocistream.errors import CancelledError, IntegrityError, NetworkError
from ocistream.fanout import Branch, FanOut
from ocistream.graph import Graph, Root
from ocistream.interfaces import Blob
from ocistream.model import Descriptor
from ocistream.walk import GraphBuilder

CHUNK = 1000


def of(content: bytes, media_type: str = "application/vnd.oci.image.layer.v1.tar") -> Descriptor:
    return Descriptor(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


class Source:
    """An image of some layers, whose chunks are all read into one buffer; it counts what is opened."""

    parallel = True

    def __init__(self, *layers: bytes, wrong: bytes | None = None) -> None:
        self.contents = {of(layer).digest: layer for layer in (*layers, b"{}")}
        self.layers = layers
        self.wrong = wrong
        self.opened: list[str] = []

    def graph(self, _: Any) -> Graph:
        layers = ",".join(
            f'{{"mediaType":"{d.media_type}","digest":"{d.digest}","size":{d.size}}}' for d in map(of, self.layers)
        )
        config = of(b"{}")
        raw = (
            '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":'
            f'"application/vnd.oci.image.config.v1+json","digest":"{config.digest}","size":2}},"layers":[{layers}]}}'
        ).encode()
        root = of(raw, "application/vnd.oci.image.manifest.v1+json")
        builder = GraphBuilder()
        builder.add_root(Root("app", root))
        builder.supply(root.digest, raw)
        return builder.graph()

    def blobs(self, wanted: Any) -> Iterator[Blob]:
        for descriptor in wanted:
            yield Blob(descriptor, functools.partial(self._open, descriptor))

    def _open(self, descriptor: Descriptor) -> Iterator[memoryview]:
        self.opened.append(descriptor.digest)
        content = self.contents[descriptor.digest]
        if content == self.wrong:
            content = bytes(len(content))
        buffer = bytearray(CHUNK)
        for start in range(0, len(content), CHUNK):
            piece = content[start : start + CHUNK]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
            buffer[:] = b"x" * CHUNK

    def close(self) -> None:
        pass


@dataclasses.dataclass
class Sink:
    """Keeps what it gets; `before(sink, number)` is called with the number of each chunk, before that is taken."""

    before: Callable[[Sink, int], None] = lambda _sink, _number: None
    has_already: tuple[bytes, ...] = ()
    again: bool = False
    parallel: bool = True
    fails_in: str = ""
    stored: dict[str, bytes] = dataclasses.field(default_factory=dict)
    committed: bool = False

    def _step(self, name: str) -> None:
        if self.fails_in == name:
            msg = f"no {name}"
            raise NetworkError(msg)

    def begin(self, _: Graph) -> None:
        self._step("begin")
        self.stored = {of(content).digest: content for content in self.has_already}

    def has(self, descriptor: Descriptor) -> bool:
        self._step("has")
        return descriptor.digest in self.stored

    has_manifest = has

    def put(self, blob: Blob) -> None:
        self._step("put")
        content = b""
        for _ in range(2 if self.again else 1):
            content = b""
            for number, chunk in enumerate(blob.open()):
                self.before(self, number)
                content += chunk
        self.stored[blob.descriptor.digest] = content

    def takes_again(self) -> bool:
        return True

    def commit(self, _: Graph) -> None:
        self._step("commit")
        self.committed = True

    def close(self) -> None:
        pass


LAYERS = [bytes([number]) * (CHUNK * 20 + number) for number in range(6)]


def fan_out(source: Source, *sinks: Sink) -> tuple[FanOut, transfer.Report]:
    stop = threading.Event()
    fan = FanOut([Branch(sink) for sink in sinks], stop)
    return fan, transfer.copy(source, fan, cancelled=stop)


def test_each_blob_is_read_once_and_arrives_everywhere() -> None:
    source, sinks = Source(*LAYERS), [Sink(), Sink(), Sink()]
    fan, _ = fan_out(source, *sinks)
    assert sorted(source.opened) == sorted(source.contents)
    for sink, branch in zip(sinks, fan.branches, strict=True):
        assert sink.stored == source.contents
        assert sink.committed
        assert branch.sent == sum(map(len, LAYERS)) + 2
    assert fan.fetched == sum(map(len, LAYERS)) + 2


def test_what_one_has_goes_to_the_others_alone() -> None:
    source = Source(*LAYERS)
    sinks = [Sink(has_already=(LAYERS[0], LAYERS[1])), Sink(has_already=(LAYERS[0], LAYERS[2]))]
    fan, _ = fan_out(source, *sinks)
    assert of(LAYERS[0]).digest not in source.opened
    assert len(source.opened) == len(set(source.opened)) == len(LAYERS)
    total = sum(map(len, LAYERS)) + 2
    assert [total - branch.sent for branch in fan.branches] == [sum(map(len, sink.has_already)) for sink in sinks]
    for sink in sinks:
        assert sink.stored == source.contents


def test_what_a_sink_does_not_need_does_not_go_there() -> None:
    source, all_of_it, some = Source(*LAYERS), Sink(), Sink()
    stop = threading.Event()
    last = of(LAYERS[-1]).digest

    def less(graph: Graph) -> Graph:
        return dataclasses.replace(graph, blobs=tuple(blob for blob in graph.blobs if blob.digest != last))

    transfer.copy(source, FanOut([Branch(all_of_it), Branch(some, less)], stop), cancelled=stop)
    assert all_of_it.stored == source.contents
    assert some.stored == {digest: content for digest, content in source.contents.items() if digest != last}


def fails(_sink: Sink, number: int) -> None:
    if number == 7:
        msg = "it is full"
        raise NetworkError(msg)


def test_a_sink_that_fails_is_left_behind_and_the_others_go_on() -> None:
    source, good, bad = Source(*LAYERS), Sink(), Sink(before=fails)
    fan, _ = fan_out(source, bad, good)
    assert [str(branch.failure) for branch in fan.branches] == ["it is full", "None"]
    assert good.stored == source.contents
    assert good.committed
    assert not bad.committed
    assert set(bad.stored) <= {of(b"{}").digest}
    assert sorted(source.opened) == sorted(source.contents)


@pytest.mark.parametrize("step", ["begin", "has", "put", "commit"])
@pytest.mark.parametrize("others_have", [(), (b"{}", *LAYERS)])
def test_wherever_it_fails(step: str, others_have: tuple[bytes, ...]) -> None:
    source, good, bad = Source(*LAYERS), Sink(has_already=others_have), Sink(fails_in=step)
    fan, _ = fan_out(source, bad, good)
    assert [str(branch.failure) for branch in fan.branches] == [f"no {step}", "None"]
    assert good.stored == source.contents
    assert good.committed
    assert not bad.committed


@pytest.mark.parametrize("step", ["begin", "has", "put", "commit"])
def test_if_it_is_the_only_one_it_is_over_at_once(step: str) -> None:
    with pytest.raises(NetworkError, match=f"no {step}"):
        fan_out(Source(*LAYERS), Sink(fails_in=step))


def test_who_waits_for_a_sink_can_be_stopped() -> None:
    stop, release, ended = threading.Event(), threading.Event(), threading.Event()
    waited: list[bool] = []

    def hangs(_sink: Sink, _number: int) -> None:
        stop.set()
        waited.append(release.wait(30))
        ended.set()

    sinks = [Sink(), Sink(before=hangs)]
    with pytest.raises(CancelledError):
        transfer.copy(Source(LAYERS[0]), FanOut([Branch(sink) for sink in sinks], stop), jobs=1, cancelled=stop)
    release.set()
    assert ended.wait(30)
    assert waited[0]


def test_when_the_last_one_fails_it_is_over() -> None:
    source, sinks = Source(*LAYERS), [Sink(before=fails), Sink(before=fails)]
    with pytest.raises(NetworkError, match="it is full"):
        fan_out(source, *sinks)
    assert not any(sink.committed for sink in sinks)


def test_bytes_that_are_wrong_are_nobodys_failure_and_nobodys_blob() -> None:
    source, sinks = Source(*LAYERS, wrong=LAYERS[3]), [Sink(), Sink()]
    stop = threading.Event()
    fan = FanOut([Branch(sink) for sink in sinks], stop)
    with pytest.raises(IntegrityError, match=of(LAYERS[3]).digest):
        transfer.copy(source, fan, cancelled=stop)
    assert [branch.failure for branch in fan.branches] == [None, None]
    for sink in sinks:
        assert of(LAYERS[3]).digest not in sink.stored
        assert not sink.committed


def test_one_that_begins_anew_reads_by_itself() -> None:
    source, plain, again = Source(*LAYERS), Sink(), Sink(again=True)
    fan, _ = fan_out(source, plain, again)
    assert plain.stored == again.stored == source.contents
    # Once for both, and once more for the one.
    assert fan.fetched == 2 * (sum(map(len, LAYERS)) + 2)
    assert sorted(source.opened) == sorted([*source.contents, *source.contents])


def test_a_stopped_transfer_stops_all() -> None:
    stop = threading.Event()
    source = Source(*LAYERS)
    sinks = [Sink(), Sink(before=lambda _sink, _number: stop.set())]
    with pytest.raises(CancelledError):
        transfer.copy(source, FanOut([Branch(sink) for sink in sinks], stop), cancelled=stop)
    assert not any(sink.committed for sink in sinks)
