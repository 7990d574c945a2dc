"""Reading from mirrors: what one does wrong costs the way to the next place, and what comes is what was promised."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import pytest

from ocistream.conversion import parse_recompression
from ocistream.errors import (
    AuthenticationError,
    IntegrityError,
    NetworkError,
    NotFoundError,
    OcistreamError,
    RegistryError,
)
from ocistream.interfaces import Sink
from ocistream.mirrored import Readable
from ocistream.model import Descriptor, parse_platform
from ocistream.places import Place
from ocistream.platforms import PlatformChoice
from ocistream.reading import Reading, impatient
from ocistream.reference import parse_reference
from ocistream.retry import Patience
from ocistream.stores.archive import ArchiveSink
from ocistream.stores.docker_archive import DockerArchiveSink
from ocistream.stores.layout import LayoutSink
from ocistream.stores.outputs import file_output, stream_output
from ocistream.stores.registry import RegistrySink
from ocistream.stores.registry_source import RegistrySource
from ocistream.transfer import Report, copy
from ocistream.transport import TransportSettings
from tests.faults import Action, Drop, Fault, Flip, HangUp, Header, Reply, Reset, Resize, Stall, refusal
from tests.faulty_auth import Basic
from tests.images import Descriptor as Document
from tests.images import Layout, digest_of, small_image, tar_layer, two_platforms
from tests.network import CountingRegistry, QuickTransport, blob_of, read_blob, unused_port
from tests.registry_http import manifest_digest, seed

KIB, MIB = 1 << 10, 1 << 20
CONTENT = bytes(range(256)) * (4 * KIB)
Faulty = Callable[..., CountingRegistry]


class Setting:
    """A registry that has an image as `app:1`, its mirrors that have it as `hub/app:1`, and how they are read."""

    def __init__(self, quick: Callable[..., QuickTransport], layout: Layout, faulty: Faulty) -> None:
        self.faulty = faulty
        self.layout = layout
        self.primary = faulty()
        self.holds(small_image(layout))
        (self.blob,) = self.primary.hold(CONTENT)
        self.told: list[tuple[int, str]] = []
        self._quick = quick
        self.transport = quick()
        self.named = parse_reference(f"{self.primary.host}/app:1")

    def holds(self, image: Document) -> None:
        """Put another image into the registry, and into the mirrors to come."""
        self.image = image
        seed(self.layout, image, self.primary.host, "app", "1")
        self.primary.requests.clear()

    def mirror(self, *faults: Fault, lacks: bool = False, **options: object) -> CountingRegistry:
        """Start a mirror with faults."""
        mirror = self.faulty(**options)
        if not lacks:
            auth, mirror.auth = mirror.auth, None
            seed(self.layout, self.image, mirror.host, "hub/app", "1")
            mirror.hold(CONTENT)
            mirror.auth = auth
        mirror.requests.clear()
        mirror.faults += faults
        return mirror

    def reading(
        self, *mirrors: CountingRegistry | str, pull: str = "all", primary: str = "", **options: object
    ) -> Reading:
        """Read from mirrors, by their hosts, and from the registry; `options` are those of the mirrors' transport."""
        hosts = [mirror if isinstance(mirror, str) else mirror.host for mirror in mirrors]
        places = [Place(host, "hub/app", is_mirror=True, pull=pull) for host in hosts]
        places.append(Place(primary or self.primary.host, "app"))
        impatient_one = self._quick(patience=Patience(attempts=2, backoff=0.001, retry_after_limit=1), **options)
        return Reading(
            self.transport, lambda: impatient_one, lambda _: places, lambda text, level: self.told.append((level, text))
        )

    def repository(self, *mirrors: CountingRegistry | str, **options: object) -> Readable:
        return self.reading(*mirrors, **options).repository(self.named)  # type: ignore[arg-type]

    def source(self, *mirrors: CountingRegistry | str, **options: object) -> RegistrySource:
        repository = self.reading(*mirrors, **options).repository  # type: ignore[arg-type]
        return RegistrySource(self.transport, [self.named], repository=repository)

    @property
    def words(self) -> str:
        """What was told that is not only for those who ask for more."""
        return "\n".join(text for level, text in self.told if level == 0)


@pytest.fixture
def setting(quick: Callable[..., QuickTransport], layout: Layout, faulty: Faulty) -> Setting:
    return Setting(quick, layout, faulty)


def paths(registry: CountingRegistry) -> list[str]:
    return [request.path for request in registry.requests]


def move(source: RegistrySource, sink: Sink) -> Report:
    try:
        return copy(source, sink)
    finally:
        sink.close()


def read(repository: Readable, blob: Descriptor) -> bytes:
    return read_blob(repository.blob(blob).open(), blob)


# -- a mirror that works ----------------------------------------------------------------------------------


def test_what_a_mirror_has_is_not_asked_of_the_registry(setting: Setting, tmp_path: Path) -> None:
    mirror = setting.mirror()
    report = move(setting.source(mirror), LayoutSink(tmp_path / "out"))
    assert report.graph.roots[0].descriptor.digest == setting.image["digest"]
    assert setting.primary.requests == []
    assert setting.told == []


def test_the_name_is_the_one_that_the_user_gave(setting: Setting, tmp_path: Path) -> None:
    (root,) = move(setting.source(setting.mirror()), LayoutSink(tmp_path / "out")).graph.roots
    assert root.name == f"{setting.primary.host}/app:1"
    assert root.origin == f"{setting.primary.host}/app"


def test_a_name_stays_even_where_another_location_has_its_image(setting: Setting, tmp_path: Path) -> None:
    place = Place(setting.primary.host, "app")
    reading = Reading(setting.transport, lambda: setting.transport, lambda _: [place])
    reference = parse_reference("elsewhere.example/x/y:1")
    source = RegistrySource(setting.transport, [reference], repository=reading.repository)
    (root,) = move(source, LayoutSink(tmp_path / "out")).graph.roots
    assert root.name == "elsewhere.example/x/y:1"


def test_a_blob_is_mounted_from_the_registry_and_never_from_a_mirror(setting: Setting) -> None:
    mirror = setting.mirror()
    target = parse_reference(f"{setting.primary.host}/copy:1")
    report = move(setting.source(mirror), RegistrySink(setting.transport, lambda _: target))
    assert {moved.how for moved in report.blobs} <= {"mounted", "skipped"}
    source = setting.source(mirror)
    source.graph(None)  # type: ignore[arg-type]
    assert source.home(setting.image["digest"]) == (setting.primary.host, "app")
    assert manifest_digest(setting.primary.host, "copy", "1") == setting.image["digest"]


# -- a mirror that fails ----------------------------------------------------------------------------------

FAILURES: dict[str, Action] = {
    "hangs up": HangUp(),
    "resets": Reset(),
    "answers 500": Reply(500),
    "answers 503": refusal(503, "UNAVAILABLE"),
    "answers 403": refusal(403, "DENIED"),
    "answers 404": refusal(404, "NAME_UNKNOWN"),
    "answers 429": refusal(429, "TOOMANYREQUESTS"),
    "wants to be left alone for an hour": refusal(429, "TOOMANYREQUESTS", Retry_After="3600"),
    "answers nonsense": Reply(200, {"Content-Type": "text/html"}, b"<html>Log in to the hotel's network"),
    "leads elsewhere": Reply(307, {"Location": "ftp://nowhere.example/"}),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_mirror_that_fails_costs_the_way_to_the_registry(what: str, setting: Setting, tmp_path: Path) -> None:
    mirror = setting.mirror(Fault(FAILURES[what], times=None))
    report = move(setting.source(mirror), LayoutSink(tmp_path / "out"))
    assert report.graph.roots[0].descriptor.digest == setting.image["digest"]
    # Whether it was one request or its two tries: it is not asked again for each blob.
    assert 1 <= len(mirror.requests) <= 2
    assert len(setting.told) == 1
    level, text = setting.told[0]
    assert f"the mirror {mirror.host}/hub/app: " in text
    # That a mirror lacks something is nothing unusual.
    assert level == (1 if what == "answers 404" else 0)


def test_a_mirror_that_is_down_costs_the_way_to_the_next_one(setting: Setting) -> None:
    down, second = f"127.0.0.1:{unused_port()}", setting.mirror()
    assert setting.repository(down, second).resolve("1").descriptor.digest == setting.image["digest"]
    assert setting.primary.requests == []
    assert f"the mirror {down}/hub/app: " in setting.words
    assert "connection refused" in setting.words


def test_a_host_that_is_down_is_not_asked_for_another_repository(setting: Setting) -> None:
    mirror = setting.mirror(Fault(HangUp(), times=None))
    reading = setting.reading(mirror)
    for _ in range(3):
        reading.repository(setting.named).resolve("1")
    assert len(mirror.requests) == 2
    assert len(setting.told) == 1


def test_a_mirror_that_stalls_is_left(setting: Setting) -> None:
    mirror = setting.mirror(Fault(Stall(), times=None))
    # The registry has to answer within that time, on a busy machine too.
    found = setting.repository(mirror, stall_timeout=0.4).resolve("1")
    assert found.descriptor.digest == setting.image["digest"]
    assert "timed out" in setting.words


def test_a_mirror_that_wants_a_password_is_not_asked_for_each_blob(setting: Setting, tmp_path: Path) -> None:
    mirror = setting.mirror(auth=Basic("somebody", "else"))
    move(setting.source(mirror), LayoutSink(tmp_path / "out"))
    assert len(mirror.requests) == 1
    assert f"{mirror.host} wants a user name and a password" in setting.words


def test_a_mirror_that_lacks_one_thing_is_asked_for_the_others(setting: Setting, tmp_path: Path) -> None:
    config = setting.layout.read(setting.image["digest"])["config"]["digest"]
    mirror = setting.mirror(Fault(refusal(404, "BLOB_UNKNOWN"), path=config, times=None))
    move(setting.source(mirror), LayoutSink(tmp_path / "out"))
    assert paths(setting.primary) == [f"/v2/app/blobs/{config}"]
    assert setting.words == ""


def test_what_the_registry_itself_says_is_what_counts(setting: Setting) -> None:
    mirror = setting.mirror(lacks=True)
    with pytest.raises(NotFoundError, match=setting.primary.host):
        setting.repository(mirror).resolve("gone")
    setting.primary.faults.append(Fault(refusal(403, "DENIED"), times=None))
    with pytest.raises(AuthenticationError, match=setting.primary.host):
        setting.repository(mirror).resolve("1")


def test_mirrors_have_less_patience_than_the_registry() -> None:
    theirs = impatient(TransportSettings(user_agent="x"))
    ours = TransportSettings()
    assert theirs.user_agent == "x"
    assert theirs.connect_timeout < ours.connect_timeout
    assert theirs.stall_timeout < ours.stall_timeout
    assert 1 < theirs.patience.attempts < ours.patience.attempts
    assert theirs.patience.retry_after_limit < ours.patience.retry_after_limit


def test_who_has_less_patience_already_keeps_it() -> None:
    settings = TransportSettings(connect_timeout=1, stall_timeout=1, patience=Patience(attempts=1, retry_after_limit=1))
    assert impatient(settings) == settings


# -- a mirror that lies -----------------------------------------------------------------------------------


def test_other_bytes_under_an_images_digest_are_not_taken(setting: Setting) -> None:
    mirror = setting.mirror(Fault(Flip(at=1), path="/manifests/", times=None))
    found = setting.repository(mirror).resolve(setting.image["digest"])
    assert digest_of(found.raw) == setting.image["digest"]
    assert f"the mirror {mirror.host}/hub/app: " in setting.words
    assert "the registry sent a manifest with the digest" in setting.words


def test_nor_are_other_bytes_under_the_digest_of_what_an_index_lists(setting: Setting, tmp_path: Path) -> None:
    index = two_platforms(setting.layout)
    setting.holds(index)
    mirror = setting.mirror(Fault(Flip(at=1), path="/manifests/sha256", times=None))
    report = move(setting.source(mirror), LayoutSink(tmp_path / "out"))
    assert report.graph.roots[0].descriptor.digest == index["digest"]
    assert len(mirror.requests) == 2
    assert "the bytes have the digest" in setting.words


ANNOUNCED: dict[str, tuple[Action, str]] = {
    "a shorter body": (Resize(by=-1), "bytes are announced"),
    "a longer body": (Resize(by=1), "bytes are announced"),
    "another digest": (Header("Docker-Content-Digest", f"sha256:{'0' * 64}"), "is announced"),
}


@pytest.mark.parametrize("what", ANNOUNCED)
def test_a_blob_that_is_announced_to_be_another_is_not_begun(what: str, setting: Setting) -> None:
    action, words = ANNOUNCED[what]
    mirror = setting.mirror(Fault(action, path="/blobs/", times=None))
    # Not a byte of it may have been handed on: nobody is there who could read it again.
    assert b"".join(map(bytes, setting.repository(mirror).blob(setting.blob).open())) == CONTENT
    assert words in setting.words
    assert len(mirror.requests) == 1


def test_the_same_blob_by_another_kind_of_digest_is_no_lie(setting: Setting) -> None:
    mirror = setting.mirror(Fault(Header("Docker-Content-Digest", digest_of(CONTENT, "sha512")), path="/blobs/"))
    assert read(setting.repository(mirror), setting.blob) == CONTENT
    assert setting.primary.requests == []


def test_of_the_registry_itself_no_header_is_believed(setting: Setting) -> None:
    setting.primary.faults.append(Fault(Header("Docker-Content-Digest", f"sha256:{'0' * 64}"), path="/blobs/"))
    assert read(setting.repository(f"127.0.0.1:{unused_port()}"), setting.blob) == CONTENT


class TestWrongAtTheEnd:
    """A blob shows only when most of it was handed on that it is not what was promised."""

    def sinks(self, setting: Setting, tmp_path: Path) -> dict[str, Callable[[], Sink]]:
        target = parse_reference(f"{setting.faulty().host}/copy:1")
        return {
            "a layout": lambda: LayoutSink(tmp_path / "layout"),
            "a registry": lambda: RegistrySink(setting.transport, lambda _: target),
            "a file": lambda: ArchiveSink(file_output(tmp_path / "out.tar")),
            "a docker-archive": lambda: DockerArchiveSink(file_output(tmp_path / "docker.tar")),
        }

    @pytest.mark.parametrize("kind", ["a layout", "a registry", "a file"])
    def test_it_is_read_again_from_elsewhere(self, kind: str, setting: Setting, tmp_path: Path) -> None:
        mirror = setting.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
        report = move(setting.source(mirror), self.sinks(setting, tmp_path)[kind]())
        assert {moved.how for moved in report.blobs} == {"copied"}
        assert f"as the mirror {mirror.host}/hub/app gave it; reading it again from elsewhere" in setting.words
        wanted = {blob.digest for blob in report.graph.blobs}
        assert {path.rpartition("/")[2] for path in paths(setting.primary)} == wanted

    def test_what_was_written_of_it_into_a_file_is_gone(self, setting: Setting, tmp_path: Path) -> None:
        outputs = []
        for name, faults in (("good", []), ("bad", [Fault(Flip(at=3), path="/blobs/", times=None)])):
            path = tmp_path / f"{name}.tar"
            move(setting.source(setting.mirror(*faults)), ArchiveSink(file_output(path)))
            outputs.append(path.read_bytes())
        assert outputs[0] == outputs[1]

    @pytest.mark.parametrize("kind", ["a layout", "a registry", "a file", "a docker-archive"])
    def test_so_it_is_where_layers_are_compressed_anew(self, kind: str, setting: Setting, tmp_path: Path) -> None:
        # Where compressed bytes begin, and long before their end: whoever unpacks them stumbles first.
        words = random.Random(0).randbytes(2 * MIB).hex().encode()
        setting.holds(setting.layout.image([tar_layer({"words": words})]))
        mirror = setting.mirror(Fault(Flip(at=20), path="/blobs/", times=None))
        sink = self.sinks(setting, tmp_path)[kind]()
        to = "none" if kind == "a docker-archive" else "zstd"
        try:
            report = copy(setting.source(mirror), sink, recompression=parse_recompression(to))
        finally:
            sink.close()
        assert "converted" in {moved.how for moved in report.blobs}
        assert f"as the mirror {mirror.host}/hub/app gave it" in setting.words

    def test_from_a_pipe_nothing_can_be_taken_back_and_the_mirror_is_named(
        self, setting: Setting, tmp_path: Path
    ) -> None:
        mirror = setting.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
        with FileIO(tmp_path / "pipe", "w") as file, pytest.raises(IntegrityError) as caught:
            move(setting.source(mirror), ArchiveSink(stream_output(file, "to stdout")))
        assert f"as the mirror {mirror.host}/hub/app gave it" in caught.value.what
        assert "--no-mirrors" in (caught.value.hint or "")

    def test_what_an_earlier_run_has_left_goes_on_at_a_mirror_too(self, setting: Setting, tmp_path: Path) -> None:
        layer = setting.layout.image([3 * MIB])
        setting.holds(layer)
        digest = setting.layout.read(layer["digest"])["layers"][0]["digest"]
        held = setting.layout.file(digest).read_bytes()[: MIB + 5]
        # What is there is right; what the first mirror gives of the rest is not, nor is it anew.
        liar, good = setting.mirror(Fault(Flip(at=3), path=f"/blobs/{digest}", times=None)), setting.mirror()
        folder = tmp_path / "out" / "blobs" / "sha256"
        folder.mkdir(parents=True)
        (folder / f".{digest[7:]}.partial").write_bytes(held)
        move(setting.source(good), LayoutSink(tmp_path / "out"))
        (request,) = good.asked("GET", digest)
        assert request.headers["Range"] == f"bytes={len(held)}-"
        (folder / digest[7:]).unlink()
        (folder / f".{digest[7:]}.partial").write_bytes(held)
        move(setting.source(liar, good), LayoutSink(tmp_path / "out"))
        ranges = [request.headers["Range"] for request in liar.asked("GET", digest)]
        assert ranges == [f"bytes={len(held)}-", None]
        assert "reading it again from elsewhere" in setting.words
        assert (folder / digest[7:]).read_bytes() == setting.layout.file(digest).read_bytes()

    def test_if_it_was_the_registry_itself_there_is_nothing_to_begin_anew(
        self, setting: Setting, tmp_path: Path
    ) -> None:
        setting.primary.faults.append(Fault(Flip(at=3), path="/blobs/", times=None))
        mirror = setting.mirror(lacks=True)
        with pytest.raises(IntegrityError, match="the bytes have the digest"):
            move(setting.source(mirror), LayoutSink(tmp_path / "out"))
        assert len({request.path for request in setting.primary.asked(path="/blobs/")}) == len(
            setting.primary.asked(path="/blobs/")
        )

    def test_if_all_of_them_lie_it_ends(self, setting: Setting, tmp_path: Path) -> None:
        setting.primary.faults.append(Fault(Flip(at=3), path="/blobs/", times=None))
        mirrors = [setting.mirror(Fault(Flip(at=5), path="/blobs/", times=None)) for _ in range(2)]
        with pytest.raises(IntegrityError):
            move(setting.source(*mirrors), LayoutSink(tmp_path / "out"))

    def test_a_mirror_that_lied_once_is_not_asked_again(self, setting: Setting, tmp_path: Path) -> None:
        mirror = setting.mirror(Fault(Flip(at=3), path="/blobs/"))
        sink = ArchiveSink(file_output(tmp_path / "out.tar"))
        move(setting.source(mirror), sink)
        assert len(mirror.asked(path="/blobs/")) == 1

    def test_a_config_that_is_needed_early_is_read_again_too(self, setting: Setting) -> None:
        mirror = setting.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
        repository = setting.reading(mirror).repository
        choice = PlatformChoice((parse_platform("linux/amd64"),))
        source = RegistrySource(setting.transport, [setting.named], platforms=choice, repository=repository)
        assert source.graph(None).roots[0].descriptor.digest == setting.image["digest"]  # type: ignore[arg-type]
        assert "reading it again from elsewhere" in setting.words

    def test_progress_counts_it_once(self, setting: Setting, tmp_path: Path) -> None:
        moved = []
        setting.holds(setting.layout.image([2 * MIB]))

        class Counts:
            def planned(self, graph: object) -> None: ...
            def advance(self, size: int, descriptor: Descriptor | None = None) -> None:  # noqa: ARG002 - all count
                moved.append(size)

            def done(self, descriptor: Descriptor, how: str) -> None: ...

        mirror = setting.mirror(Fault(Flip(at=3), path="/blobs/", times=None))
        report = copy(setting.source(mirror), LayoutSink(tmp_path / "out"), Counts())
        assert sum(moved) == sum(blob.size for blob in report.graph.blobs)


# -- a mirror that breaks off -----------------------------------------------------------------------------


def ranges(registry: CountingRegistry) -> list[str | None]:
    return [request.headers.get("Range") for request in registry.requests]


@pytest.mark.parametrize("action", [Drop(after=300_000), Reset(after=300_000), Stall(after=300_000)])
def test_the_registry_goes_on_where_a_mirror_broke_off_for_good(action: Action, setting: Setting) -> None:
    broken = Fault(action, path="/blobs/", times=1)
    mirror = setting.mirror(broken, Fault(HangUp(), path="/blobs/", times=None))
    assert read(setting.repository(mirror, stall_timeout=2.0), setting.blob) == CONTENT
    # What has come is asked for nowhere again.
    (begun,) = ranges(setting.primary)
    assert begun is not None
    assert 0 < int(begun.removeprefix("bytes=").removesuffix("-")) <= 300_000
    assert f"the mirror {mirror.host}/hub/app: " in setting.words


def test_a_mirror_that_broke_off_once_goes_on_itself(setting: Setting) -> None:
    mirror = setting.mirror(Fault(Drop(after=300_000), path="/blobs/"))
    assert read(setting.repository(mirror), setting.blob) == CONTENT
    assert len(mirror.requests) == 2
    assert setting.primary.requests == []
    assert setting.told == []


def test_two_mirrors_and_the_registry_give_one_blob_between_them(setting: Setting) -> None:
    def breaking(after: int) -> CountingRegistry:
        return setting.mirror(Fault(Drop(after), path="/blobs/"), Fault(HangUp(), path="/blobs/", times=None))

    first, second = breaking(300_000), breaking(300_000)
    assert read(setting.repository(first, second), setting.blob) == CONTENT
    # What cannot be told is which of them spoilt it: all that are no registry are suspects.
    assert len(setting.primary.requests) == 1


# -- a registry that fails --------------------------------------------------------------------------------


def test_a_mirror_has_a_second_chance_where_the_registry_cannot_be_reached(setting: Setting) -> None:
    config = blob_of(setting.layout.file(setting.layout.read(setting.image["digest"])["config"]["digest"]).read_bytes())
    mirror = setting.mirror(Fault(HangUp(), path="/blobs/", times=3))
    repository = setting.repository(mirror, primary=f"127.0.0.1:{unused_port()}")
    assert repository.resolve("1").descriptor.digest == setting.image["digest"]
    assert read(repository, config)
    assert "connection refused; trying its mirrors again" in setting.words


def test_but_not_one_that_never_gave_anything(setting: Setting) -> None:
    mirror = setting.mirror(Fault(HangUp(), times=None))
    unreachable = f"127.0.0.1:{unused_port()}"
    with pytest.raises(NetworkError, match=unreachable):
        setting.repository(mirror, primary=unreachable).resolve("1")
    assert len(mirror.requests) == 2


def test_nor_one_that_lied(setting: Setting) -> None:
    repository = setting.repository(mirror := setting.mirror(), primary=f"127.0.0.1:{unused_port()}")
    repository.resolve("1")
    mirror.faults.append(Fault(Flip(at=3), path="/blobs/", times=None))
    blob = repository.blob(setting.blob)
    with pytest.raises(IntegrityError) as caught:
        read_blob(blob.open(), setting.blob)
    assert blob.on_wrong is not None
    blob.on_wrong(caught.value, True)
    with pytest.raises(NetworkError, match="connection refused"):
        read_blob(blob.open(), setting.blob)


def test_what_the_mirror_says_at_last_is_what_is_raised(setting: Setting) -> None:
    repository = setting.repository(mirror := setting.mirror(), primary=f"127.0.0.1:{unused_port()}")
    repository.resolve("1")
    mirror.faults.append(Fault(refusal(503, "UNAVAILABLE"), times=None))
    with pytest.raises(RegistryError, match=mirror.host):
        read(repository, setting.blob)


# -- tags and digests -------------------------------------------------------------------------------------


def test_a_mirror_for_digests_only_gives_what_an_image_needs_and_not_what_its_tag_is(
    setting: Setting, tmp_path: Path
) -> None:
    mirror = setting.mirror()
    move(setting.source(mirror, pull="digest-only"), LayoutSink(tmp_path / "out"))
    assert paths(setting.primary) == ["/v2/app/manifests/1"]
    assert {path.split("/")[4] for path in paths(mirror)} == {"blobs"}


def test_a_mirror_for_tags_only_gives_a_tags_image_whole(setting: Setting, tmp_path: Path) -> None:
    move(setting.source(setting.mirror(), pull="tag-only"), LayoutSink(tmp_path / "out"))
    assert setting.primary.requests == []


def test_a_mirror_for_tags_only_gives_nothing_of_an_image_that_is_named_by_its_digest(
    setting: Setting, tmp_path: Path
) -> None:
    mirror = setting.mirror()
    setting.named = dataclasses.replace(setting.named, digest=setting.image["digest"])
    move(setting.source(mirror, pull="tag-only"), LayoutSink(tmp_path / "out"))
    assert mirror.requests == []


# -- what may be there or not -----------------------------------------------------------------------------


def test_a_tag_that_a_mirror_lacks_may_be_there_in_the_registry(setting: Setting) -> None:
    seed(setting.layout, setting.image, setting.primary.host, "app", "signature")
    repository = setting.repository(setting.mirror())
    assert repository.digest_of("signature") == setting.image["digest"]
    assert repository.digest_of("none") is None
    setting.primary.requests.clear()
    assert repository.digest_of("1") == setting.image["digest"]
    assert setting.primary.requests == []


def test_a_mirror_for_digests_only_is_not_asked_what_a_tag_is(setting: Setting) -> None:
    mirror = setting.mirror()
    repository = setting.repository(mirror, pull="digest-only")
    assert repository.digest_of("1") == repository.digest_of(setting.image["digest"]) == setting.image["digest"]
    assert paths(mirror) == [f"/v2/hub/app/manifests/{setting.image['digest']}"]


# -- lists of tags ----------------------------------------------------------------------------------------


def test_tags_are_the_registrys_whatever_a_mirror_happens_to_hold(setting: Setting) -> None:
    mirror = setting.mirror()
    seed(setting.layout, setting.image, setting.primary.host, "app", "2")
    listed = setting.reading(mirror).tags(setting.named)
    assert (listed.tags, listed.cut) == (("1", "2"), None)
    assert mirror.requests == []


def test_a_mirrors_tags_are_better_than_none_and_not_taken_for_all_of_them(setting: Setting) -> None:
    first, second, unreachable = setting.mirror(lacks=True), setting.mirror(), f"127.0.0.1:{unused_port()}"
    listed = setting.reading(first, second, primary=unreachable).tags(setting.named)
    assert listed.tags == ("1",)
    assert f"the mirror {second.host}/hub/app, which may lack some" in (listed.cut or "")
    assert unreachable in setting.words


def test_a_mirror_for_digests_only_is_not_asked_for_tags(setting: Setting) -> None:
    mirror, unreachable = setting.mirror(), f"127.0.0.1:{unused_port()}"
    with pytest.raises(NetworkError, match=unreachable):
        setting.reading(mirror, primary=unreachable, pull="digest-only").tags(setting.named)
    assert mirror.requests == []


def test_a_repository_that_the_registry_does_not_have_has_no_tags(setting: Setting) -> None:
    mirror = setting.mirror()
    setting.primary.faults.append(Fault(refusal(404, "NAME_UNKNOWN"), times=None))
    with pytest.raises(NotFoundError):
        setting.reading(mirror).tags(setting.named)


def test_a_mirror_that_calls_a_tags_manifest_by_another_digest_than_it_has_is_set_aside(setting: Setting) -> None:
    mirror = setting.mirror(Fault(Flip(20), "GET", "/manifests/1"))
    assert setting.repository(mirror).resolve("1").descriptor.digest == setting.image["digest"]
    assert mirror.host in setting.words
    assert "the registry calls the manifest" in setting.words


def test_of_the_registry_itself_the_bytes_are_believed(setting: Setting) -> None:
    # What else could be? No digest was asked for, and some registries do not say the right one.
    setting.primary.faults.append(Fault(Header("Docker-Content-Digest", "sha256:" + "0" * 64), "GET", "/manifests/1"))
    assert setting.repository().resolve("1").descriptor.digest == setting.image["digest"]


# -- referrers --------------------------------------------------------------------------------------------


@pytest.fixture
def signed(setting: Setting) -> Setting:
    """Return a setting whose image is signed, in the registry."""
    signature = setting.layout.artifact(b"signature", subject=setting.image)
    seed(setting.layout, signature, setting.primary.host, "app")
    setting.primary.requests.clear()
    return setting


def referrers(setting: Setting, *mirrors: CountingRegistry | str, **options: object) -> Sequence[Descriptor]:
    return setting.repository(*mirrors, **options).referrers(setting.image["digest"]).descriptors


def test_a_mirror_without_referrers_says_nothing_of_the_registrys(signed: Setting) -> None:
    assert len(referrers(signed, signed.mirror())) == 1


def test_referrers_of_a_mirror_are_taken(signed: Setting) -> None:
    mirror = signed.mirror()
    seed(signed.layout, signed.layout.artifact(b"signature", subject=signed.image), mirror.host, "hub/app")
    assert len(referrers(signed, mirror)) == 1
    assert signed.primary.requests == []


def test_an_image_can_be_had_of_a_mirror_whose_registry_cannot_be_asked_for_referrers(signed: Setting) -> None:
    unreachable = f"127.0.0.1:{unused_port()}"
    assert referrers(signed, signed.mirror(), primary=unreachable) == ()
    assert unreachable in signed.words


def test_a_registry_that_is_silent_behind_its_mirror_is_asked_once_what_hangs_on_an_image(
    signed: Setting, tmp_path: Path
) -> None:
    # Behind a firewall each question would cost a time-out, and there are four of them for each manifest.
    signed.primary.faults.append(Fault(HangUp(), times=None))
    reading = signed.reading(signed.mirror())
    source = RegistrySource(signed.transport, [signed.named], referrers="along", repository=reading.repository)
    report = move(source, LayoutSink(tmp_path / "out"))
    assert not report.graph.attached
    assert len(signed.primary.requests) == 2, "one question, tried as often as a mirror"
    assert signed.words.count("not known whether the registry has more") == 1


def test_but_where_nobody_could_be_asked_there_is_no_answer(signed: Setting) -> None:
    unreachable = f"127.0.0.1:{unused_port()}"
    with pytest.raises(OcistreamError, match=unreachable):
        referrers(signed, signed.mirror(Fault(HangUp(), times=None)), primary=unreachable)
