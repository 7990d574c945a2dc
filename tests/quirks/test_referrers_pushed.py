"""Referrers in several repositories, and tags of cosign that other clients write. Statement 59, and 32."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from ocistream import limits
from tests import registry_http
from tests.faulty_registry import Action, Fault, Header, Reply, refusal
from tests.images import OCI_INDEX, OCI_MANIFEST, Layout, digest_of, small_image
from tests.quirks import registry_quirks
from tests.quirks.command_runner import Mover
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import Quirk, QuirkyRegistry
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed
from tests.signed_image import Signed, cosign_tag, referrer, signed

pytestmark = quirk(59)

OLD: Final = (registry_quirks.NO_SUBJECT, registry_quirks.no_referrers(404))


@pytest.fixture
def found(layout: Layout) -> Signed:
    made = signed(layout)
    made.enter(layout, "v1")
    return made


def push(mover: Mover, layout: Layout, target: str, *options: str, **expected: Any) -> list[dict[str, Any]]:
    """Push the layout's image, and return the skipped referrers of the result."""
    document = mover.folder / "result.json"
    document.unlink(missing_ok=True)
    arguments = ["push", target, "-i", str(layout.path), "--jobs", "1", "--result", str(document)]
    mover.run(*arguments, *options, **expected)
    return list(json.loads(document.read_text())["skippedReferrers"]) if document.exists() else []


def kept(registry: QuirkyRegistry, subject: str, repository: str) -> set[str]:
    """Return the digests of the list of referrers that clients store under a tag."""
    raw = registry_http.manifest(registry.host, repository, subject.replace(":", "-"))
    return {entry["digest"] for entry in json.loads(raw)["manifests"]} if raw else set()


def test_each_repository_is_asked_for_its_referrers(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    image = small_image(layout)
    sbom = referrer(layout, image, "application/spdx+json", b"parts")
    for repository in ("a", "b"):
        seed(layout, image, registry.host, repository, "1")
    seed(layout, sbom, registry.host, "b")
    empty = Reply(
        200,
        {"Content-Type": OCI_INDEX},
        json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode(),
    )
    registry.faults = [Fault(empty, path="/v2/a/referrers/", times=None)]
    registry.requests.clear()
    used = mover()
    names = [f"{registry.host}/{repository}:1" for repository in ("a", "b")]
    used.run("pull", *names, "-o", f"{used.folder}/out/")
    assert (used.folder / "out" / "blobs" / "sha256" / sbom["digest"][7:]).exists()
    (layer,) = layout.read(sbom["digest"])["layers"]
    assert [request.path for request in registry.asked("GET", layer["digest"])] == [f"/v2/b/blobs/{layer['digest']}"]


def test_a_signature_tag_that_refers_to_the_image_itself_is_ignored(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "1")
    seed(layout, image, registry.host, "app", cosign_tag(image))
    used = mover()
    used.run("pull", f"{registry.host}/app:1", "-o", f"{used.folder}/out/")
    entries = json.loads((used.folder / "out" / "index.json").read_text())["manifests"]
    assert {entry["digest"] for entry in entries} == {image["digest"]}


@pytest.mark.parametrize("jobs", [1, 4])
def test_jobs_limits_the_simultaneous_requests_for_referrers(
    jobs: int, start: Start, mover: Move, tap: Any, layout: Layout
) -> None:
    registry = start()
    children = [layout.image([b"%d" % number], platform=f"linux/{number}") for number in range(20)]
    seed(layout, layout.index(children), registry.host, "app", "1")
    second = tap(registry.host)
    out = f"oci:{mover().folder / 'out'}"
    mover().run("copy", f"{second.host}/app:1", out, "--platform", "all", "--jobs", str(jobs))
    assert 1 <= second.connections <= jobs + 1


def test_an_image_under_the_tag_of_a_list_is_not_a_list(start: Start, mover: Move, layout: Layout) -> None:
    registry = start(*OLD)
    image, other = small_image(layout), small_image(layout, config={"Cmd": ["another"]})
    seed(layout, image, registry.host, "app", "1")
    seed(layout, other, registry.host, "app", image["digest"].replace(":", "-"))
    used = mover()
    used.run("pull", f"{registry.host}/app:1", "-o", f"{used.folder}/out/")
    assert not (used.folder / "out" / "blobs" / "sha256" / other["digest"][7:]).exists()


def test_a_referrer_of_an_unsupported_media_type_is_skipped_and_reported(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start()
    found.seed(layout, registry.host, "app", "1")
    kind = "application/vnd.oci.artifact.manifest.v1+json"
    withdrawn = json.dumps({"mediaType": kind, "subject": found.image}).encode()
    digest = digest_of(withdrawn)
    entry = {"mediaType": kind, "digest": digest, "size": len(withdrawn)}
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    listing = Reply(200, {"Content-Type": OCI_INDEX}, json.dumps(content).encode())
    registry.faults = [
        Fault(listing, path=f"/referrers/{found.image['digest']}"),
        Fault(Reply(200, {"Content-Type": kind}, withdrawn), path=f"/manifests/{digest}"),
    ]
    used = mover()
    document = used.folder / "result.json"
    used.run("pull", f"{registry.host}/app:1", "-o", f"{used.folder}/out/", "--result", document)
    assert [left["digest"] for left in json.loads(document.read_text())["skippedReferrers"]] == [digest]


@quirk(32)
@pytest.mark.parametrize(
    "answer",
    [refusal(404, "MANIFEST_UNKNOWN"), Reply(200, {"Content-Type": OCI_MANIFEST}, b"{")],
    ids=["none", "broken"],
)
def test_a_signature_tag_without_a_valid_manifest_is_reported(
    answer: Action, start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start()
    found.seed(layout, registry.host, "app", "1")
    tag = found.cosign_tag
    registry.faults = [Fault(answer, "GET", f"/manifests/{tag}", times=None)]
    used = mover()
    document = used.folder / "result.json"
    used.run("pull", f"{registry.host}/app:1", "-o", f"{used.folder}/out/", "--result", document)
    (left,) = json.loads(document.read_text())["skippedReferrers"]
    assert (left["tag"], left["kind"]) == (tag, "signature")


def test_every_repository_with_the_image_gets_its_referrers(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start(*OLD)
    index = layout.path / "index.json"
    document = json.loads(index.read_text())
    names = ("old.example/a:1", "old.example/b:2")
    entries = [
        {**found.image, "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}
        for name in names
    ]
    index.write_text(json.dumps({**document, "manifests": [*entries, *document["manifests"][1:]]}))
    mover().run("push", "--to", registry.host, "-i", layout.path)
    for repository, tag in (("a", "1"), ("b", "2")):
        expected = {found.signature["digest"], found.sbom["digest"]}
        assert kept(registry, found.image["digest"], repository) == expected
        assert set(registry_http.tags(registry.host, repository)) >= {found.cosign_tag, tag}


@quirk(17)
def test_the_blobs_of_referrers_are_mounted_within_one_registry(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start(registry_quirks.only_in("app"))
    found.seed(layout, registry.host, "app", "1")
    registry.requests.clear()
    mover().copy(f"{registry.host}/app:1", f"{registry.host}/copied:1")
    assert registry.asked("PATCH|PUT", "/blobs/") == []
    for one in (*found.referrers, found.cosign):
        assert registry_http.manifest(registry.host, "copied", one["digest"]) is not None


def test_a_list_beyond_the_limit_is_not_written(start: Start, mover: Move, layout: Layout, found: Signed) -> None:
    registry = start(*OLD)
    many = [
        {"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d" % number), "size": 1}
        for number in range(limits.MAX_LIST_ENTRIES)
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": many}).encode()
    tag = found.image["digest"].replace(":", "-")
    registry.faults = [Fault(Reply(200, {"Content-Type": OCI_INDEX}, raw), "GET", f"/manifests/{tag}$", times=None)]
    push(mover(), layout, f"{registry.host}/app:1", code=8, says=("too long", "--no-referrers"))
    assert registry.asked("PUT", f"/manifests/{tag}$") == []


# Tags of cosign in the destination ------------------------------------------------------------------------------


@quirk(32)
@pytest.mark.parametrize("says", [True, False], ids=["says its digest", "does not say its digest"])
@pytest.mark.parametrize("lost", ["nothing", "a layer", "an annotation"])
def test_a_signature_that_contains_the_existing_one_replaces_it(
    lost: str, says: bool, start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    # The source has one more signature of the image: another layer, whose annotation is the signature.
    registry = start()
    manifest = layout.read(found.cosign["digest"])
    (layer,) = manifest["layers"]
    made = [{**layer, "annotations": {"dev.cosignproject.cosign/signature": who}} for who in ("a", "b", "c")]
    before = layout.document({**manifest, "layers": made[:2]})
    after = {"nothing": made, "a layer": made[1:], "an annotation": [layer, *made[1:]]}[lost]
    renewed = layout.document({**manifest, "layers": after})
    index = layout.path / "index.json"
    document = json.loads(index.read_text())
    for entry in document["manifests"]:
        if entry["digest"] == found.cosign["digest"]:
            entry.update(digest=renewed["digest"], size=renewed["size"])
    index.write_text(json.dumps(document))
    seed(layout, found.image, registry.host, "app", "0")
    seed(layout, before, registry.host, "app", found.cosign_tag)
    if not says:
        registry.faults = [Fault(Header("Docker-Content-Digest", None), "HEAD", "/manifests/", times=None)]
    left = push(mover(), layout, f"{registry.host}/app:1")
    expected = renewed if lost == "nothing" else before
    assert manifest_digest(registry.host, "app", found.cosign_tag) == expected["digest"]
    assert len(left) == (0 if lost == "nothing" else 1)


@quirk(32)
def test_a_signature_tag_that_cannot_be_read_is_not_overwritten(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start()
    seed(layout, found.image, registry.host, "app", "0")
    own = seed(layout, layout.artifact(b"signed where it arrived"), registry.host, "app", found.cosign_tag)
    registry.faults = [Fault(Reply(200, {}, b"no manifest"), "GET", f"/manifests/{found.cosign_tag}", times=None)]
    (left,) = push(mover(), layout, f"{registry.host}/app:1")
    assert (left["tag"], left["digest"]) == (found.cosign_tag, found.cosign["digest"])
    registry.faults = []
    assert manifest_digest(registry.host, "app", found.cosign_tag) == own


@quirk(32)
def test_a_signature_written_during_the_copy_is_not_overwritten(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    made = layout.artifact(b"signed just now")

    def sign(handler: Any, answer: Any) -> Any:
        """Write the signature's tag when the image itself is pushed, before the tags."""
        if handler.command == "PUT" and handler.path.endswith(f"/manifests/{found.image['digest']}"):
            seed(layout, made, handler.registry.host, "app", found.cosign_tag)
        return answer

    registry = start(Quirk("another client signs", outward=sign))
    words = ("another client changed this tag during the copy", "re-run the command")
    push(mover(), layout, f"{registry.host}/app:1", code=7, says=words)
    assert registry_http.tags(registry.host, "app") == [found.cosign_tag]
    assert manifest_digest(registry.host, "app", found.cosign_tag) == made["digest"]


def test_if_the_registry_refuses_a_referrer_no_tag_is_written_and_the_error_suggests_an_option(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    refuses = Fault(refusal(400, "MANIFEST_INVALID"), "PUT", found.signature["digest"], times=None)
    registry = start(Quirk("refuses signatures", (refuses,)))
    push(mover(), layout, f"{registry.host}/app:1", code=7, says="--no-referrers")
    assert registry_http.tags(registry.host, "app") == []
