"""One repository: manifests that are what they say, and downloads that go on where they broke."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from ocistream import limits
from ocistream.errors import (
    ArchiveError,
    AuthenticationError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    PermanentNetworkError,
    RegistryError,
    UnsupportedError,
)
from ocistream.oci.descriptor import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
)
from ocistream.oci.digest import compute_digest
from ocistream.registry.download import BlobRedirect
from ocistream.registry.repository import Repository
from ocistream.streams.chunks import verify_chunks
from tests.faulty_auth import Bearer
from tests.faulty_registry import (
    Action,
    Drop,
    Fault,
    Flip,
    HangUp,
    Header,
    IgnoreRange,
    NoContentLength,
    Reply,
    Reset,
    Resize,
    Stall,
    redirect,
    refusal,
)
from tests.http_doubles import CountingRegistry, Heard, QuickTransport, RawServer, Turn, blob_of, eventually, read_blob
from tests.raw_http import Client

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

MIB = 1 << 20
CONTENT = random.Random(0).randbytes(MIB + 12345)
BLOB = blob_of(CONTENT)
SIZE = len(CONTENT)


@pytest.fixture
def registry(faulty: Faulty) -> CountingRegistry:
    """Return a registry that holds the blob."""
    found = faulty()
    found.hold(CONTENT)
    return found


def repository(transport: QuickTransport, registry: CountingRegistry | RawServer, **options: Any) -> Repository:
    return Repository(transport, registry.host, "app", **options)


def download(transport: QuickTransport, registry: CountingRegistry | RawServer, blob: Descriptor = BLOB) -> bytes:
    """Read a blob as a transfer does, verified."""
    return read_blob(repository(transport, registry).fetch_blob(blob), blob)


def ranges(registry: CountingRegistry) -> list[str | None]:
    """Return the Range of each download, as it came."""
    return [request.headers["Range"] for request in registry.asked("GET", "/blobs/")]


class TestDownloads:
    @pytest.mark.parametrize("content", [b"", b"x", bytes(limits.CHUNK_SIZE), bytes(limits.CHUNK_SIZE + 1)], ids=len)
    def test_of_any_size(self, registry: CountingRegistry, quick: Quick, content: bytes) -> None:
        (blob,) = registry.hold(content)
        assert download(quick(), registry, blob) == content

    def test_sha512_too(self, registry: CountingRegistry, quick: Quick) -> None:
        blob = blob_of(CONTENT, "sha512")
        path = registry.layout.blob_path(blob.digest)
        path.parent.mkdir()
        path.write_bytes(CONTENT)
        assert download(quick(), registry, blob) == CONTENT

    @pytest.mark.parametrize("failure", [Reset(after=limits.CHUNK_SIZE + 5), Stall(after=limits.CHUNK_SIZE + 5)])
    def test_one_that_is_reset_or_stalls_goes_on_after_what_was_handed_out(
        self, registry: CountingRegistry, quick: Quick, failure: Action
    ) -> None:
        registry.faults = [Fault(failure)]
        assert download(quick(stall_timeout=1.0), registry) == CONTENT
        # On a busy machine what comes then may stall as well, by its own.
        assert ranges(registry)[:2] in (
            [None, f"bytes={limits.CHUNK_SIZE}-"],
            [None, f"bytes={limits.CHUNK_SIZE + 5}-"],
        )

    def test_one_that_breaks_before_the_first_byte_begins_again(self, registry: CountingRegistry, quick: Quick) -> None:
        registry.faults = [Fault(Drop(0)), Fault(HangUp())]
        assert download(quick(), registry) == CONTENT
        assert ranges(registry) == [None, None, None]


class TestBeginningInTheMiddle:
    """Somebody holds the beginning, from another run: to fail would fail that command for ever."""

    HELD = 1000

    def rest(self, transport: QuickTransport, registry: CountingRegistry | RawServer) -> bytes:
        chunks = repository(transport, registry).fetch_blob(BLOB, self.HELD)
        return b"".join(bytes(chunk) for chunk in verify_chunks(chunks, BLOB, [CONTENT[: self.HELD]]))

    def test_only_the_rest_is_asked_for(self, registry: CountingRegistry, quick: Quick) -> None:
        assert self.rest(quick(), registry) == CONTENT[self.HELD :]
        assert [request.headers["Range"] for request in registry.requests] == [f"bytes={self.HELD}-"]

    def test_a_registry_without_ranges_has_all_of_it_read_however_long(
        self, registry: CountingRegistry, quick: Quick, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_DISCARD", 100)
        registry.faults = [Fault(IgnoreRange())]
        assert self.rest(quick(), registry) == CONTENT[self.HELD :]
        assert len(registry.requests) == 1

    @pytest.mark.parametrize(
        "fault", [Header("Content-Range", "bytes 0-9/10"), Header("Content-Range", None), refusal(416, "RANGE_INVALID")]
    )
    def test_one_that_cannot_begin_there_is_asked_for_all_of_it(
        self, registry: CountingRegistry, quick: Quick, fault: Action
    ) -> None:
        registry.faults = [Fault(fault)]
        assert self.rest(quick(), registry) == CONTENT[self.HELD :]
        assert [request.headers["Range"] for request in registry.requests] == [f"bytes={self.HELD}-", None]

    def test_what_breaks_after_that_goes_on_where_it_broke(self, registry: CountingRegistry, quick: Quick) -> None:
        registry.faults = [Fault(Drop(5000))]
        assert self.rest(quick(), registry) == CONTENT[self.HELD :]
        assert [request.headers["Range"] for request in registry.requests] == ["bytes=1000-", "bytes=6000-"]

    def test_what_is_broken_then_is_refused_as_ever(self, registry: CountingRegistry, quick: Quick) -> None:
        registry.faults = [Fault(Drop(5000)), Fault(Header("Content-Range", "bytes 0-9/10"))]
        with pytest.raises(PermanentNetworkError, match="asked for bytes from 6000 on"):
            self.rest(quick(), registry)

    def test_where_there_is_another_place_it_is_that_ones_turn(self, registry: CountingRegistry, quick: Quick) -> None:
        registry.faults = [Fault(Header("Content-Range", "bytes 0-9/10"))]
        with pytest.raises(PermanentNetworkError, match="asked for bytes from 1000 on"):
            list(repository(quick(), registry).fetch_blob(BLOB, self.HELD, strict=True))
        assert len(registry.requests) == 1


class TestParts:
    """Bytes of a blob that are asked for beside others, by one request: what is not had so is had otherwise."""

    def part(self, quick: Quick, registry: CountingRegistry | RawServer, start: int, end: int) -> bytes:
        view = memoryview(bytearray(end - start))
        filled = [0, *repository(quick(), registry).fetch_blob_range(BLOB, BlobRedirect(), start, view)]
        assert filled == sorted(filled)
        return bytes(view[: filled[-1]])

    @pytest.mark.parametrize(("start", "end"), [(0, 1), (0, SIZE - 1), (1000, MIB), (SIZE - 1, SIZE), (0, SIZE)])
    def test_just_those_are_asked_for(self, registry: CountingRegistry, quick: Quick, start: int, end: int) -> None:
        assert self.part(quick, registry, start, end) == CONTENT[start:end]
        (request,) = registry.requests
        asked = None if (start, end) == (0, SIZE) else f"bytes={start}-{end - 1}"
        assert request.headers.get("Range") == asked

    @pytest.mark.parametrize(
        "action",
        [refusal(429), refusal(503), refusal(416), HangUp(), Drop(after=1000), Reset(after=1000), IgnoreRange()],
        ids=lambda action: type(action).__name__,
    )
    def test_whatever_comes_in_their_way_is_not_tried_again(
        self, registry: CountingRegistry, quick: Quick, action: Action
    ) -> None:
        registry.faults.append(Fault(action, path="blobs", times=None))
        with pytest.raises(NetworkError):
            self.part(quick, registry, 1000, MIB)
        assert len(registry.requests) == 1

    def test_a_registry_that_wants_a_pause_has_it_from_everybody(
        self, registry: CountingRegistry, quick: Quick
    ) -> None:
        registry.faults.append(Fault(Reply(429, {"Retry-After": "7"}), path="blobs"))
        transport = quick()
        source = repository(transport, registry)
        with pytest.raises(RegistryError):
            source.fetch_blob_range(BLOB, BlobRedirect(), 0, memoryview(bytearray(10)))
        assert transport.waits == []
        assert source.has_blob(BLOB)
        assert transport.waits == [pytest.approx(7, abs=1)]

    @pytest.mark.parametrize("said", ["bytes 0-9/20", "bytes 11-20/30", "bytes */30", "10-19", ""])
    def test_others_than_those_are_refused(self, quick: Quick, said: str) -> None:
        answer = f"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: {said}\r\n\r\n0123456789"
        with (
            RawServer(answer.encode()) as server,
            pytest.raises(PermanentNetworkError, match="asked for bytes from 10 on"),
        ):
            self.part(quick, server, 10, 20)


def silent_after(answer: bytes) -> Turn:
    """Return a turn that sends this, and then waits until the client closes the connection."""

    def turn(connection: socket.socket, _: Heard) -> None:
        connection.sendall(answer)
        connection.recv(1)

    return turn


def whole_part(transport: QuickTransport, registry: RawServer) -> None:
    list(repository(transport, registry).fetch_blob_range(BLOB, BlobRedirect(), 0, memoryview(bytearray(SIZE))))


def manifest_of(transport: QuickTransport, registry: RawServer) -> None:
    repository(transport, registry).fetch_manifest(BLOB)


class TestBodiesThatLie:
    def test_a_bit_that_was_flipped_before_a_break_is_found_in_the_joined_stream(
        self, registry: CountingRegistry, quick: Quick
    ) -> None:
        path = registry.layout.blob_path(BLOB.digest)
        path.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
        registry.faults = [Fault(Drop(limits.CHUNK_SIZE))]
        with pytest.raises(IntegrityError):
            download(quick(), registry)
        assert ranges(registry) == [None, f"bytes={limits.CHUNK_SIZE}-"]

    @pytest.mark.parametrize("by", [1, 3 * MIB])
    @pytest.mark.parametrize("stated", [True, False])
    def test_a_longer_body_is_not_read_to_its_end(
        self, registry: CountingRegistry, quick: Quick, by: int, stated: bool
    ) -> None:
        registry.faults = [Fault(Resize(by, stated))]
        if not stated:
            # What comes after Content-Length belongs to nobody.
            assert download(quick(), registry) == CONTENT
            return
        with pytest.raises(IntegrityError, match=f"{SIZE + by} bytes are announced instead of {SIZE}"):
            next(repository(quick(), registry).fetch_blob(BLOB))
        assert len(registry.requests) == 1
        # Without a length it shows while it comes.
        answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CONTENT + b"x" * by
        with RawServer(answer) as server:
            sizes = [len(chunk) for chunk in repository(quick(), server).fetch_blob(BLOB)]
            assert SIZE < sum(sizes) <= SIZE + limits.READ_BUFFER
            with pytest.raises(IntegrityError, match=f"expected {SIZE} bytes"):
                download(quick(), server)

    @pytest.mark.parametrize("sent", [b"", CONTENT])
    def test_what_is_announced_beyond_the_blob_is_not_waited_for(self, quick: Quick, sent: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE + 1}\r\n\r\n".encode()
        with RawServer(silent_after(head + sent)) as server:
            for read in (download, whole_part, manifest_of):
                with pytest.raises((IntegrityError, PermanentNetworkError), match="announced"):
                    read(quick(), server)
            assert len(server.heard) == 3

    def test_nor_is_it_behind_the_rest_of_the_blob(self, quick: Quick) -> None:
        first = f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n".encode() + CONTENT[:1000]
        rest = f"Content-Range: bytes 1000-{SIZE}/{SIZE + 1}\r\nContent-Length: {SIZE - 999}\r\n\r\n".encode()
        with RawServer(first, silent_after(b"HTTP/1.1 206 Partial Content\r\n" + rest + CONTENT[1000:])) as server:
            with pytest.raises(IntegrityError, match=f"{SIZE - 999} bytes are announced instead of {SIZE - 1000}"):
                download(quick(), server)
            assert len(server.heard) == 2

    def test_one_byte_too_many_is_seen_even_where_a_chunk_ends_before_it(
        self, registry: CountingRegistry, quick: Quick
    ) -> None:
        (blob,) = registry.hold(bytes(2 * limits.CHUNK_SIZE))
        registry.faults = [Fault(Resize(1))]
        with pytest.raises(IntegrityError, match=blob.digest):
            download(quick(), registry, blob)

    @pytest.mark.parametrize("said", ["9" * 5000, "-1", "x", "\xb2"])
    def test_a_length_that_makes_no_sense_is_overlooked(self, quick: Quick, said: str) -> None:
        with RawServer(f"HTTP/1.1 200 OK\r\nContent-Length: {said}\r\n\r\n".encode("latin-1") + CONTENT) as server:
            assert download(quick(), server) == CONTENT

    def test_a_blob_that_is_cut_in_the_registry_is_named_with_both_sizes(
        self, registry: CountingRegistry, quick: Quick
    ) -> None:
        registry.layout.blob_path(BLOB.digest).write_bytes(CONTENT[:5000])
        with pytest.raises(NetworkError, match=f"{BLOB.digest}: ended after 5000 of {SIZE} bytes"):
            download(quick(), registry)
        # 416 is the registry's way to say that this is all.
        assert [request.status for request in registry.requests] == [200, 416, 416, 416]
        assert registry.accepted == 1


class TestRedirectedDownloads:
    def test_parts_that_are_had_one_after_the_other_are_asked_for_where_the_first_was_led(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}?sig=x")
        front = faulty(Fault(there, path="/blobs/", times=None), auth=Bearer())
        assert self.in_parts(quick, front) == CONTENT
        assert len(front.asked("GET", "/blobs/")) == 1 + 1
        assert len(registry.requests) == 4
        assert not any("Authorization" in request.headers for request in registry.requests)

    def test_where_that_has_ended_the_registry_is_asked_once_more(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}?sig=x")
        front = faulty(Fault(there, path="/blobs/", times=None))
        registry.faults = [Fault(refusal(403), skip=2)]
        assert self.in_parts(quick, front) == CONTENT
        assert len(front.asked("GET", "/blobs/")) == 2

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_where_there_is_trouble_the_registry_is_not_asked_once_more(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick, status: int
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}?sig=x")
        front = faulty(Fault(there, path="/blobs/", times=None))
        registry.faults = [Fault(refusal(status), skip=1)]
        with pytest.raises(RegistryError, match=str(status)):
            self.in_parts(quick, front)
        assert (len(front.asked("GET", "/blobs/")), len(registry.requests)) == (1, 2)

    def test_over_several_hosts_each_part_goes_all_the_way(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick
    ) -> None:
        there = redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}")
        between = faulty(Fault(there, path="/blobs/", times=None))
        front = faulty(Fault(redirect(f"{between.url}/v2/app/blobs/x"), path="/blobs/", times=None))
        assert self.in_parts(quick, front) == CONTENT
        assert (len(front.asked("GET", "/blobs/")), len(between.requests)) == (4, 4)

    def in_parts(self, quick: Quick, front: CountingRegistry) -> bytes:
        source, led, content = repository(quick(), front), BlobRedirect(), memoryview(bytearray(SIZE))
        step = SIZE // 4 + 1
        for start in range(0, SIZE, step):
            for _ in source.fetch_blob_range(BLOB, led, start, content[start : start + step]):
                pass
        return bytes(content)

    def test_no_query_of_a_signed_url_is_in_an_error(self, faulty: Faulty, quick: Quick) -> None:
        storage = faulty(Fault(refusal(400), times=None))
        front = faulty(Fault(redirect(f"http://user:secret@{storage.host}/x?sig=secret"), times=None))
        with pytest.raises(RegistryError, match="400") as caught:
            download(quick(), front)
        assert "secret" not in str(caught.value)
        storage.faults = [Fault(HangUp(), times=None)]
        transport = quick()
        with pytest.raises(NetworkError) as broken:
            download(transport, front)
        assert "secret" not in str(broken.value)
        assert "secret" not in str(transport.told)


class TestReuse:
    def test_many_small_blobs_need_one_connection(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        blobs = registry.hold(*(str(number).encode() for number in range(200)))
        source = repository(quick(), registry)
        for blob in blobs:
            assert source.has_blob(blob)
            read_blob(source.fetch_blob(blob), blob)
        assert registry.accepted == 1

    @pytest.mark.parametrize(
        ("failure", "kind"),
        [
            (Flip(SIZE - 1), IntegrityError),
            (Resize(MIB), IntegrityError),
            (refusal(404), NotFoundError),
            (refusal(400), RegistryError),
            (Reply(307, {"Location": "http://[", "Content-Length": "0"}), PermanentNetworkError),
        ],
    )
    def test_one_that_fails_leaves_no_connection_behind(
        self, registry: CountingRegistry, quick: Quick, failure: Action, kind: type[Exception]
    ) -> None:
        registry.faults = [Fault(failure)]
        transport = quick()
        with pytest.raises(kind):
            download(transport, registry)
        transport.close()
        eventually(lambda: registry.open_connections == 0)

    def test_a_reader_that_stops_early_leaves_none_either(self, registry: CountingRegistry, quick: Quick) -> None:
        transport = quick()
        chunks = repository(transport, registry).fetch_blob(BLOB)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        transport.close()
        eventually(lambda: registry.open_connections == 0)


class TestHasBlob:
    def test_it_is_asked_by_head(self, registry: CountingRegistry, quick: Quick) -> None:
        source = repository(quick(), registry)
        assert source.has_blob(BLOB)
        assert not source.has_blob(blob_of(b"missing"))
        assert [request.method for request in registry.requests] == ["HEAD", "HEAD"]

    def test_one_of_another_size_is_not_it(self, registry: CountingRegistry, quick: Quick) -> None:
        other = Descriptor(BLOB.media_type, BLOB.digest, SIZE + 1)
        assert not repository(quick(), registry).has_blob(other)

    def test_one_without_a_size_is(self, registry: CountingRegistry, quick: Quick) -> None:
        registry.faults = [Fault(NoContentLength())]
        assert repository(quick(), registry).has_blob(BLOB)

    def test_one_that_is_elsewhere_is_looked_for_there(
        self, faulty: Faulty, registry: CountingRegistry, quick: Quick
    ) -> None:
        front = faulty(Fault(redirect(f"{registry.url}/v2/app/blobs/{BLOB.digest}")))
        assert repository(quick(), front).has_blob(BLOB)
        assert registry.requests[0].method == "HEAD"

    @pytest.mark.parametrize(("status", "kind"), [(403, AuthenticationError), (400, RegistryError)])
    def test_another_answer_is_no_answer(
        self, registry: CountingRegistry, quick: Quick, status: int, kind: type[Exception]
    ) -> None:
        registry.faults = [Fault(refusal(status))]
        with pytest.raises(kind):
            repository(quick(), registry).has_blob(BLOB)

    @pytest.mark.parametrize(("writes", "scope"), [(False, "repository:app:pull"), (True, "repository:app:pull,push")])
    def test_the_scope_is_that_of_all_work_in_the_repository(
        self, faulty: Faulty, quick: Quick, writes: bool, scope: str
    ) -> None:
        auth = Bearer()
        registry = faulty(auth=auth)
        source = repository(quick(), registry, for_push=writes)
        assert not source.has_blob(BLOB)
        assert not source.has_manifest(BLOB.digest)
        assert [request.scopes for request in auth.requests] == [(scope,)]


# -- manifests -------------------------------------------------------------------------------------------------


def image(media_type: Any = OCI_MANIFEST, **fields: Any) -> bytes:
    """Return a manifest without layers, laid out as nobody does."""
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": compute_digest(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "config": config, "layers": [], **fields}
    return json.dumps({"mediaType": media_type, **document} if media_type else document, indent=7).encode()


def pushed(registry: CountingRegistry, raw: bytes, tag: str = "1") -> str:
    """Push a manifest plainly, and return its digest."""
    registry.hold(b"{}")
    with Client(registry.host) as client:
        digest = client.push(raw, tag)
    registry.requests.clear()
    return digest


class TestManifests:
    @pytest.mark.parametrize("by", ["tag", "digest"])
    def test_exact_bytes_come_with_a_descriptor_made_of_them(self, faulty: Faulty, quick: Quick, by: str) -> None:
        registry = faulty()
        raw = image()
        digest = pushed(registry, raw)
        found = repository(quick(), registry).resolve("1" if by == "tag" else digest)
        assert found == Manifest(Descriptor(OCI_MANIFEST, digest, len(raw)), raw)
        accepted = registry.requests[0].headers["Accept"].split(", ")
        assert {OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST} <= set(accepted)

    def test_a_child_is_asked_for_by_its_digest_and_its_own_type(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        raw = image()
        digest = pushed(registry, raw)
        assert repository(quick(), registry).fetch_manifest(Descriptor(OCI_MANIFEST, digest, len(raw))) == raw
        assert registry.requests[0].headers["Accept"] == OCI_MANIFEST

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_a_digest_in_the_reference_must_match(self, faulty: Faulty, quick: Quick, algorithm: str) -> None:
        registry = faulty(Fault(Reply(200, {"Content-Type": OCI_MANIFEST}, image()), times=None))
        source = repository(quick(), registry)
        digest = compute_digest(image(), algorithm)
        assert source.resolve(digest).descriptor.digest == digest
        other = compute_digest(b"other", algorithm)
        with pytest.raises(IntegrityError, match=other):
            source.resolve(other)

    @pytest.mark.parametrize("said", [image(), b"other"])
    def test_a_registry_may_say_the_algorithm_of_a_tags_digest_and_nothing_else_of_it(
        self, faulty: Faulty, quick: Quick, said: bytes
    ) -> None:
        registry = faulty()
        pushed(registry, image())
        registry.faults = [Fault(Header("Docker-Content-Digest", compute_digest(said, "sha512")), times=None)]
        assert repository(quick(), registry).resolve("1").descriptor.digest == compute_digest(image(), "sha512")

    def test_one_that_is_too_large_is_not_read(self, faulty: Faulty, quick: Quick) -> None:
        body = b" " * (limits.MAX_MANIFEST - len(image())) + image()
        registry = faulty(Fault(Reply(200, {"Content-Type": OCI_MANIFEST}, body)))
        assert repository(quick(), registry).resolve("1").descriptor.size == limits.MAX_MANIFEST
        registry.faults = [Fault(Reply(200, {"Content-Type": OCI_MANIFEST}, b" " + body))]
        with pytest.raises(ArchiveError, match=r"manifest 1 of 127\.0\.0\.1:\d+/app is larger than"):
            repository(quick(), registry).resolve("1")
        registry.faults = [Fault(Reply(200, {"Content-Type": OCI_MANIFEST}, b" " + body))]
        with pytest.raises(ArchiveError, match="is larger than"):
            repository(quick(), registry).fetch_manifest(blob_of(body))
        assert len(registry.requests) == 3


class TestTags:
    def test_what_a_tag_stands_for_is_asked_by_head(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        digest = pushed(registry, image())
        target = repository(quick(), registry)
        assert target.find_digest("1") == digest
        assert target.find_digest("2") is None
        assert target.has_manifest(digest)
        assert not target.has_manifest(compute_digest(b"other"))
        assert {request.method for request in registry.requests} == {"HEAD"}
        assert OCI_INDEX in registry.requests[0].headers["Accept"]
        assert registry.accepted == 2

    def test_a_registry_that_does_not_say_gives_something_not_known(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        digest = pushed(registry, image())
        registry.faults = [Fault(Header("Docker-Content-Digest", None), times=None)]
        target = repository(quick(), registry)
        assert target.find_digest("1") == ""
        assert target.has_manifest(digest)


class TestPuttingManifests:
    def manifest(self, raw: bytes = image(), algorithm: str = "sha256") -> Manifest:
        return Manifest(Descriptor(OCI_MANIFEST, compute_digest(raw, algorithm), len(raw)), raw)

    @pytest.mark.parametrize("by", ["tag", "digest"])
    def test_exact_bytes_go_up_with_their_own_type(self, faulty: Faulty, quick: Quick, by: str) -> None:
        registry = faulty()
        registry.hold(b"{}")
        manifest = self.manifest()
        repository(quick(), registry).push_manifest("1" if by == "tag" else manifest.descriptor.digest, manifest)
        (put,) = registry.requests
        assert put.headers["Content-Type"] == OCI_MANIFEST
        assert registry.layout.blob_path(manifest.descriptor.digest).read_bytes() == manifest.raw

    @pytest.mark.parametrize("failure", [HangUp(), Reset(), refusal(429), refusal(500), refusal(503)])
    def test_it_is_tried_again(self, faulty: Faulty, quick: Quick, failure: Action) -> None:
        registry = faulty(Fault(failure, "PUT", times=3))
        registry.hold(b"{}")
        repository(quick(), registry).push_manifest("1", self.manifest())
        assert len(registry.requests) == 4

    def test_an_answer_that_breaks_off_is_an_answer(self, quick: Quick) -> None:
        with RawServer(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n") as server:
            repository(quick(), server).push_manifest("1", self.manifest())
            assert len(server.heard) == 1

    @pytest.mark.parametrize("status", [200, 201, 202, 204])
    def test_every_kind_of_success_is_one(self, faulty: Faulty, quick: Quick, status: int) -> None:
        repository(quick(), faulty(Fault(Reply(status)))).push_manifest("1", self.manifest())

    def test_a_manifest_by_sha512_may_be_stored_by_another_algorithm(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty(Fault(Reply(201, {"Docker-Content-Digest": compute_digest(image())})))
        repository(quick(), registry).push_manifest("1", self.manifest(algorithm="sha512"))


class TestManifestsBySha512:
    MANIFEST = Manifest(Descriptor(OCI_MANIFEST, compute_digest(image(), "sha512"), len(image())), image())
    DIGEST = MANIFEST.descriptor.digest

    def test_one_that_is_known_by_it_afterwards_is_put(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        registry.hold(b"{}")
        repository(quick(), registry).push_manifest(self.DIGEST, self.MANIFEST)
        assert [request.method for request in registry.requests] == ["PUT"]
        assert registry.layout.blob_path(self.DIGEST).read_bytes() == image()

    @pytest.mark.parametrize("target", ["1", compute_digest(image())])
    def test_a_refusal_of_a_tag_or_of_sha256_has_other_reasons(self, faulty: Faulty, quick: Quick, target: str) -> None:
        registry = faulty(Fault(refusal(400, "DIGEST_INVALID"), "PUT"))
        with pytest.raises(RegistryError, match="DIGEST_INVALID"):
            repository(quick(), registry).push_manifest(target, self.MANIFEST)

    @pytest.mark.parametrize("said", [None, compute_digest(image())])
    def test_whether_a_registry_that_does_not_confirm_its_digest_knows_it_is_asked(
        self, faulty: Faulty, quick: Quick, said: str | None
    ) -> None:
        registry = faulty(Fault(Header("Docker-Content-Digest", said), "PUT"))
        registry.hold(b"{}")
        target = repository(quick(), registry)
        target.push_manifest(self.DIGEST, self.MANIFEST)
        registry.faults = [Fault(Header("Docker-Content-Digest", said), "PUT"), Fault(refusal(404), "HEAD")]
        with pytest.raises(UnsupportedError, match="the registry accepted it, but does not have it under that digest"):
            target.push_manifest(self.DIGEST, self.MANIFEST)

    def test_a_tag_that_is_put_with_it_stands_for_it(self, faulty: Faulty, quick: Quick) -> None:
        registry = faulty()
        registry.hold(b"{}")
        target = repository(quick(), registry)
        assert target.push_manifest_with_tag("1", self.MANIFEST)
        assert target.find_digest("1") == self.DIGEST
        assert target.resolve("1").descriptor == self.MANIFEST.descriptor

    @pytest.mark.parametrize(
        ("said", "done"), [("1", True), ("0,1", True), ("0, 1 ,2", True), (None, False), ("", False), ("10", False)]
    )
    def test_a_tag_that_the_registry_does_not_name_was_overlooked(
        self, faulty: Faulty, quick: Quick, said: str | None, done: bool
    ) -> None:
        registry = faulty(Fault(Header("OCI-Tag", said)))
        registry.hold(b"{}")
        assert repository(quick(), registry).push_manifest_with_tag("1", self.MANIFEST) == done


def test_an_endless_download_is_not_tried_again(quick: Quick) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with RawServer(head + b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * MIB) as server:
        with pytest.raises(PermanentNetworkError) as caught:
            download(quick(), server)
        assert caught.value.exit_code == 7
        assert len(server.heard) == 1
