"""Blobs and manifests that are truncated, damaged, too long, or redirected. Statements 24, 30, 62 and 63."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from tests.archives import check_blobs
from tests.faulty_auth import Bearer
from tests.faulty_registry import (
    Action,
    Drop,
    Fault,
    Flip,
    Gzip,
    HangUp,
    Header,
    IgnoreRange,
    NoContentLength,
    Reply,
    Reset,
    Resize,
    redirect,
    refusal,
)
from tests.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Layout,
    digest_of,
    two_platforms,
)
from tests.quirks import registry_quirks
from tests.quirks.command_runner import How, Mover
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.registry_models import PASSWORD, USER
from tests.quirks.small_images import LAYER, layer_of
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed
from tests.runner import ocistream
from tests.zero_layer_registry import Endless, Image


class Pulls:
    """Pulls of an image with one layer, to which the faults apply."""

    def __init__(self, registry: QuirkyRegistry, mover: Mover, layout: Layout, image: Descriptor) -> None:
        self.registry, self.mover, self.layout = registry, mover, layout
        layer = layer_of(layout, image)
        self.digest, self.size = str(layer["digest"]), int(layer["size"])
        registry.requests.clear()

    def pull(self, *faults: Action | Fault, how: How = "file", code: int = 0, says: str = "", retries: int = 5) -> None:
        """Pull with these faults of the layer, one after the other."""
        self.registry.faults = [
            fault if isinstance(fault, Fault) else Fault(fault, "GET", self.digest) for fault in faults
        ]
        options = ("-q", "--jobs", "1", "--no-referrers", "--retries", str(retries))
        files = self.mover.pull(f"{self.registry.host}/app:v1", how, *options, code=code, says=says)
        if not code:
            check_blobs(files)

    def forever(self, action: Action) -> Fault:
        """Return a permanent fault of the layer."""
        return Fault(action, "GET", self.digest, times=None)

    def ranges(self) -> list[str | None]:
        """Return the Range of each request for the layer."""
        return [request.headers["Range"] for request in self.registry.asked("GET", self.digest)]


@pytest.fixture
def pulls(start: Start, mover: Move, layout: Layout) -> Callable[..., Pulls]:
    """Return a function that starts a registry with the image; its arguments are those of `start`."""

    def make(*quirks: Any) -> Pulls:
        registry = start(*quirks)
        image = layout.image([LAYER], name="app")
        seed(layout, image, registry.host, "app", "v1")
        return Pulls(registry, mover(), layout, image)

    return make


MakePulls = Callable[..., Pulls]


# Broken downloads -----------------------------------------------------------------------------------------------


@quirk(30, 62)
@pytest.mark.parametrize("after", [1, limits.CHUNK_SIZE, limits.CHUNK_SIZE + 1, LAYER - 1])
def test_a_broken_download_resumes_at_the_exact_byte(after: int, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(Drop(after))
    assert used.ranges() == [None, f"bytes={after}-"]


@quirk(24, 62)
@pytest.mark.parametrize(
    "action", [Header("Content-Range", "bytes 0-9/10"), Header("Content-Range", None), refusal(416, "RANGE_INVALID")]
)
def test_a_pull_is_resumed_from_a_registry_without_ranges(action: Action, pulls: MakePulls) -> None:
    used = pulls()
    used.pull()
    whole = (used.mover.folder / "pulled.tar").read_bytes()
    (used.mover.folder / ".pulled.tar.partial").write_bytes(whole[: len(whole) // 2])
    used.registry.requests.clear()
    used.pull(action, retries=0)
    assert [part is None for part in used.ranges()] == [False, True]
    assert (used.mover.folder / "pulled.tar").read_bytes() == whole


@quirk(30, 62)
def test_the_number_of_breaks_is_unlimited_while_there_is_progress(pulls: MakePulls) -> None:
    used = pulls()
    used.pull(*[Drop(50_000)] * 11, retries=1)
    assert used.ranges() == [None, *(f"bytes={number * 50_000}-" for number in range(1, 12))]
    between: list[Action] = [Drop(50_000), refusal(503), HangUp()]
    used.pull(*between * 4, retries=3)


@quirk(24, 62)
def test_after_416_to_a_range_the_complete_blob_is_requested(pulls: MakePulls) -> None:
    used = pulls()
    used.pull(Drop(1000), refusal(416, "RANGE_INVALID"), retries=1)
    assert used.ranges() == [None, "bytes=1000-", None]


@quirk(30, 62)
@pytest.mark.parametrize("failure", [Drop(0), HangUp(), refusal(503)], ids=str)
def test_attempts_without_progress_are_limited(failure: Action, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(Drop(1000), used.forever(failure), code=7, retries=3)
    # The first request made progress; --retries limits the others.
    assert len(used.ranges()) == 1 + 3


@quirk(30, 62)
@pytest.mark.parametrize(
    ("faults", "code", "asked"),
    [([refusal(404, "BLOB_UNKNOWN")], 4, 1), ([Drop(1000), refusal(400)], 7, 2), ([refusal(416)], 7, 1)],
    ids=["missing", "refused in the middle", "416 from the beginning"],
)
def test_a_permanent_failure_is_not_retried(faults: list[Action], code: int, asked: int, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(*faults[:-1], used.forever(faults[-1]), code=code)
    assert len(used.ranges()) == asked


@quirk(24, 62)
@pytest.mark.parametrize(
    ("after", "how"), [(limits.CHUNK_SIZE, "file"), (limits.CHUNK_SIZE * 2 + 7, "file"), (400_000, "pipe")]
)
def test_known_bytes_are_skipped_exactly_if_the_range_is_ignored(after: int, how: How, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(Drop(after), IgnoreRange(), how=how)
    assert [request.status for request in used.registry.asked("GET", used.digest)] == [200, 200]


@quirk(24, 62)
def test_a_download_that_breaks_while_it_skips_known_bytes_continues(pulls: MakePulls) -> None:
    used = pulls(registry_quirks.NO_PARTS)
    used.pull(Drop(300_000), Drop(200_000), Drop(0), Drop(400_000))
    assert len(used.ranges()) == 5


@quirk(24, 62)
@pytest.mark.parametrize(
    "value",
    [
        f"bytes 0-{LAYER - 1}/{LAYER}",
        f"bytes 999-{LAYER - 1}/{LAYER}",
        f"bytes 1001-{LAYER - 1}/{LAYER}",
        f"1000-{LAYER - 1}",
        "bytes */5",
        f"bytes {'9' * 5000}-{'9' * 5001}/*",
        "",
        None,
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_part_with_a_wrong_start_is_refused(value: str | None, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(Drop(1000), Header("Content-Range", value), code=7, says="instead of bytes from 1000 on")
    assert len(used.ranges()) == 2


@quirk(24, 62)
@pytest.mark.parametrize("value", [f"bytes 1000-{LAYER - 1}/*", f"bytes 1000-{LAYER}/{LAYER + 1}"])
def test_the_stated_end_of_a_part_is_ignored(value: str, pulls: MakePulls) -> None:
    pulls().pull(Drop(1000), Header("Content-Range", value))


@quirk(24, 62)
def test_a_part_that_was_not_requested_is_refused(pulls: MakePulls) -> None:
    used = pulls()
    used.pull(used.forever(Reply(206, {"Content-Range": "bytes 0-2/9"}, b"abc")), code=7, says="206")
    assert len(used.ranges()) == 1


# Damaged bodies -------------------------------------------------------------------------------------------------


@quirk(62)
@pytest.mark.parametrize("at", [0, LAYER // 2, LAYER - 1])
def test_a_flipped_bit_is_detected(at: int, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(used.forever(Flip(at)), code=5, says=used.digest)


@quirk(62)
@pytest.mark.parametrize("by", [1, 3 * limits.MIB])
@pytest.mark.parametrize("stated", [True, False])
def test_bytes_beyond_the_blob_s_size_are_not_read(stated: bool, by: int, pulls: MakePulls) -> None:
    used = pulls()
    if stated:
        words = f"{LAYER + by} bytes are announced instead of {LAYER}"
        used.pull(used.forever(Resize(by)), code=5, says=words)
        assert len(used.ranges()) == 1
    else:
        # Bytes after Content-Length are ignored.
        used.pull(Resize(by, stated=False))


@quirk(62)
@pytest.mark.parametrize("stated", [True, False])
def test_the_rest_of_a_truncated_body_is_requested(stated: bool, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(Resize(-1000, stated))
    assert used.ranges() == [None, f"bytes={LAYER - 1000}-"]


@quirk(62)
def test_a_body_without_a_length_is_read_to_its_end(pulls: MakePulls) -> None:
    used = pulls()
    used.pull(NoContentLength())
    assert used.ranges() == [None]


@quirk(22, 62)
def test_a_body_that_a_proxy_compressed_is_rejected(pulls: MakePulls) -> None:
    used = pulls()
    used.registry.faults = [used.forever(Gzip())]
    path = used.mover.folder / "none.tar"
    name = f"{used.registry.host}/app:v1"
    used.mover.run("pull", name, "-q", "-o", path, "--no-referrers", code=5, says=used.digest)


@quirk(20, 62)
def test_a_redirect_target_gets_the_range_but_no_authorization(start: Start, mover: Move, layout: Layout) -> None:
    auth = Bearer({USER: PASSWORD}, anonymous=("pull", "push"))
    storage, front = start(), start(auth=auth)
    image = layout.image([LAYER], name="app")
    seed(layout, image, storage.host, "app", "v1")
    token = auth.token_for("repository:app:pull,push")
    seed(layout, image, front.host, "app", "v1", headers={"Authorization": f"Bearer {token}"})
    digest = layer_of(layout, image)["digest"]
    front.faults = [Fault(redirect(f"{storage.url}/v2/app/blobs/{digest}?sig=x"), path=digest, times=None)]
    storage.faults = [Fault(Drop(1000), "GET", digest, times=2)]
    storage.requests.clear()
    front.requests.clear()
    mover("--jobs", "1", "--no-referrers").pull(f"{front.host}/app:v1")
    asked = storage.asked("GET", digest)
    assert [request.headers["Range"] for request in asked] == [None, "bytes=1000-", "bytes=2000-"]
    plain = {"Accept", "Accept-Encoding", "Host", "User-Agent"}
    assert all(set(request.headers.keys()) - {"Range", "Connection"} == plain for request in asked)
    # A signed URL may expire, so each part is requested from the registry.
    assert len([request for request in front.asked("GET", digest) if request.status == 307]) == 3


@quirk(62)
def test_parts_share_a_signed_url_and_replace_it_when_it_has_expired(tmp_path: Path) -> None:
    uses = 3
    # The registry is so slow that several connections are faster.
    with Endless(0.02, signature_uses=uses) as registry:
        result = ocistream("pull", registry.hold(Image([128 * limits.MIB]), "big"), "-o", tmp_path / "big.tar")
    assert result.code == 0, result.err
    # Without a new signature, or with all parts from the registry, there would be fewer parts.
    assert registry.parts > 10
    assert max(registry.signatures) > uses


# Manifests ------------------------------------------------------------------------------------------------------


def manifest(media_type: Any = OCI_MANIFEST, **fields: Any) -> bytes:
    """Return a manifest without layers, formatted as no tool does."""
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "config": config, "layers": [], **fields}
    return json.dumps({"mediaType": media_type, **document} if media_type else document, indent=7).encode()


def inspected(start: Start, mover: Move, body: bytes, kind: str | None, **expected: Any) -> str:
    """Inspect an image with this manifest, and return stdout."""
    headers = {} if kind is None else {"Content-Type": kind}
    registry = start()
    registry.faults = [Fault(Reply(200, headers, body), "GET", "/manifests/1", times=None)]
    result = mover().run("inspect", f"{registry.host}/app:1", "--json", **expected)
    return result.out.decode()


@quirk(28, 63)
@pytest.mark.parametrize(
    ("declared", "own"),
    [
        (OCI_INDEX, OCI_MANIFEST),
        (OCI_MANIFEST, OCI_INDEX),
        (DOCKER_MANIFEST, OCI_MANIFEST),
        (DOCKER_LIST, DOCKER_MANIFEST),
    ],
)
def test_a_manifest_with_a_contradicting_content_type_is_refused(
    declared: str, own: str, start: Start, mover: Move
) -> None:
    inspected(start, mover, manifest(own), declared, code=6, says="was sent as")


@quirk(63)
@pytest.mark.parametrize(
    "body", [b"", b"<html>sign in</html>", b"[]", b"{", b'{"mediaType": "not one"}', manifest(5), manifest(["x"])]
)
def test_a_document_that_is_not_a_manifest_is_refused(body: bytes, start: Start, mover: Move) -> None:
    inspected(start, mover, body, "text/html", code=6)


@quirk(28, 63)
@pytest.mark.parametrize(
    ("declared", "own", "kind"),
    [
        *((declared, own, OCI_MANIFEST) for declared in ("text/plain", "", None) for own in (OCI_MANIFEST, None)),
        (f"{OCI_MANIFEST}; charset=utf-8", None, OCI_MANIFEST),
        (DOCKER_MANIFEST, None, DOCKER_MANIFEST),
    ],
)
def test_a_manifest_without_a_stated_type_is_recognized_by_its_fields(
    declared: str | None, own: str | None, kind: str, start: Start, mover: Move, layout: Layout
) -> None:
    source, target = start(), start(registry_quirks.KEEPS_TYPES)
    image = layout.image([b"layer"])
    document = layout.read(image["digest"])
    del document["mediaType"]
    bare = layout.blob(json.dumps({**document, **({"mediaType": own} if own else {})}).encode(), OCI_MANIFEST)
    seed(layout, bare, source.host, "app", "v1")
    source.faults = [Fault(Header("Content-Type", declared), "GET", "/manifests/", times=None)]
    mover().copy(f"{source.host}/app:v1", f"{target.host}/app:v1", "--no-referrers")
    assert target.memory["type", "v1"] == kind
    assert manifest_digest(target.host, "app", "v1") == bare["digest"]


@quirk(30, 63)
@pytest.mark.parametrize(
    "failure", [Drop(10), Resize(-10, stated=False), Reset(after=10), HangUp(), refusal(503)], ids=str
)
def test_a_truncated_manifest_is_requested_again(failure: Action, pulls: MakePulls) -> None:
    used = pulls()
    used.pull(Fault(failure, "GET", "/manifests/", times=3), retries=3)
    assert len(used.registry.asked("GET", "/manifests/")) == 4
    used.pull(Fault(failure, "GET", "/manifests/", times=None), code=7, retries=3)
    assert len(used.registry.asked("GET", "/manifests/")) == 8


@quirk(62)
def test_a_manifest_with_a_wrong_content_length_is_refused_at_once(start: Start, mover: Move, layout: Layout) -> None:
    registry, index = start(), two_platforms(layout)
    seed(layout, index, registry.host, "app", "v1")
    child = layout.read(index["digest"])["manifests"][0]["digest"]
    registry.faults = [Fault(Resize(1), "GET", child)]
    mover().pull(f"{registry.host}/app:v1", code=5, says="bytes are announced instead of")


@quirk(57, 63)
@pytest.mark.parametrize("said", [None, "what", "sha384:abc", "itself by sha512", "another by sha512", "another"])
def test_the_digest_that_a_registry_reports_for_a_push_is_compared(
    said: str | None, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = layout.image([b"layer"], name="app")
    stored = {
        "itself by sha512": digest_of(layout.file(image["digest"]).read_bytes(), "sha512"),
        "another by sha512": digest_of(b"other", "sha512"),
        "another": digest_of(b"other"),
    }.get(str(said), said)
    registry.faults = [Fault(Header("Docker-Content-Digest", stored), "PUT", "/manifests/", times=None)]
    arguments = ["push", f"{registry.host}/app:v1", "-i", str(layout.path), "--no-referrers"]
    if str(said).startswith("another"):
        mover().run(*arguments, code=5, says=("the registry stored", str(stored), image["digest"]))
    else:
        assert mover().run(*arguments).lines() == [f"{registry.host}/app:v1@{image['digest']}"]


# Manifests by sha512 --------------------------------------------------------------------------------------------


@quirk(63)
@pytest.mark.parametrize(
    ("faults", "code", "words"),
    [
        ([], 0, ""),
        (
            [Fault(refusal(400, "DIGEST_INVALID"), "PUT", "/manifests/", times=None)],
            8,
            "does not accept manifests by sha512",
        ),
        ([Fault(refusal(400, "UNSUPPORTED"), "PUT", "/manifests/", times=None)], 8, "ocistream serve"),
        ([Fault(refusal(400, "MANIFEST_INVALID"), "PUT", "/manifests/", times=None)], 7, "MANIFEST_INVALID"),
    ],
    ids=["known", "DIGEST_INVALID", "UNSUPPORTED", "another refusal"],
)
def test_a_registry_without_sha512_is_reported(
    faults: list[Fault], code: int, words: str, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = layout.image([b"layer"], name="app", algorithm="sha512")
    registry.faults = list(faults)
    result = mover().run("push", f"{registry.host}/app:v1", "-i", layout.path, code=code, says=words)
    if not code:
        assert result.lines() == [f"{registry.host}/app:v1@{image['digest']}"]
