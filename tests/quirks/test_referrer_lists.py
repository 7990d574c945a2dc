"""How lists of referrers are read and written: requests, pages, limits, and tags of other clients. Statement 59."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from ocistream import limits
from tests import registry_http
from tests.faulty_registry import Action, Drop, Fault, Header, Reply, refusal
from tests.images import OCI_INDEX, OCI_MANIFEST, Descriptor, Layout, digest_of, small_image, two_platforms
from tests.quirks import registry_quirks
from tests.quirks.command_runner import Mover
from tests.quirks.fixture_types import Move, Start
from tests.quirks.quirky_registry import QuirkyRegistry
from tests.quirks.statements import quirk
from tests.registry_http import manifest_digest, seed
from tests.runner import Result
from tests.signed_image import Signed, cosign_signature, cosign_tag, referrer, signed

pytestmark = quirk(59)

#: A registry without the referrers API.
OLD: Final = (registry_quirks.NO_SUBJECT, registry_quirks.no_referrers(404))


def listing(*entries: dict[str, Any], link: str = "") -> Reply:
    """Return a response with a list of referrers."""
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    headers = {"Content-Type": OCI_INDEX, **({"Link": f'<{link}>; rel="next"'} if link else {})}
    return Reply(200, headers, json.dumps(content).encode())


def unknown(count: int) -> list[dict[str, Any]]:
    """Return entries of manifests that do not exist."""
    return [{"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d" % number), "size": 1} for number in range(count)]


def pull(mover: Mover, registry: QuirkyRegistry, *options: str, name: str = "app:1", **expected: Any) -> Result:
    """Pull an image with all its platforms into a layout."""
    out = f"oci:{mover.folder / 'out'}"
    return mover.run("copy", f"{registry.host}/{name}", out, "--platform", "all", *options, **expected)


def left_behind(mover: Mover, registry: QuirkyRegistry, *options: str) -> list[dict[str, Any]]:
    """Pull an image, and return the skipped referrers of the result."""
    document = mover.folder / "result.json"
    pull(mover, registry, "--result", str(document), *options)
    return list(json.loads(document.read_text())["skippedReferrers"])


def blobs(mover: Mover) -> set[str]:
    """Return the digests of all pulled blobs."""
    return {f"sha256:{path.name}" for path in (mover.folder / "out" / "blobs" / "sha256").iterdir()}


@pytest.fixture
def found(layout: Layout) -> Signed:
    return signed(layout)


# Requests -------------------------------------------------------------------------------------------------------


def test_an_image_without_referrers_costs_four_requests(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "1")
    registry.requests.clear()
    pull(mover(), registry)
    asked = sorted((request.method, request.path.rpartition("/")[2]) for request in registry.asked(path="sha256-|ref"))
    tags = [cosign_tag(image, suffix) for suffix in (".att", ".sbom", ".sig")]
    assert asked == [("GET", image["digest"]), *(("HEAD", tag) for tag in tags)]
    registry.requests.clear()
    pull(mover(), registry, "--no-referrers")
    assert registry.asked(path="sha256-|/referrers/") == []


@pytest.mark.parametrize("status", [404, 405, 501])
def test_the_missing_referrers_api_is_requested_once_and_the_tag_for_each_manifest(
    status: int, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start(registry_quirks.NO_SUBJECT, registry_quirks.no_referrers(status))
    seed(layout, two_platforms(layout), registry.host, "app", "1")
    registry.requests.clear()
    pull(mover(), registry)
    asked = registry.asked("GET", "/referrers/")
    # A status that may be temporary is retried, but not for each manifest.
    assert len({request.path for request in asked}) == 1
    assert len(registry.asked("GET", "/manifests/sha256-")) == 3
    assert len(registry.asked("HEAD", "/manifests/sha256-")) == 9


def test_a_400_is_taken_as_the_failure_of_one_digest_only(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    seed(layout, two_platforms(layout), registry.host, "app", "1")
    registry.requests.clear()
    registry.faults = [Fault(refusal(400, "DIGEST_INVALID"), path="/referrers/")]
    pull(mover(), registry)
    assert len(registry.asked("GET", "/referrers/")) == 3
    assert len(registry.asked("GET", "/manifests/sha256-")) == 1


def test_referrers_of_an_image_with_two_names_are_requested_once(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    for tag in "12":
        seed(layout, small_image(layout), registry.host, "app", tag)
    registry.requests.clear()
    used = mover()
    used.run("pull", f"{registry.host}/app:1", f"{registry.host}/app:2", "-o", used.folder / "out.tar")
    assert len(registry.asked(path="/referrers/|sha256-")) == 4


# Lists ----------------------------------------------------------------------------------------------------------


def test_the_archive_does_not_depend_on_pages_and_order_of_the_list(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start()
    found.seed(layout, registry.host, "app", "1")
    listed = [found.listed(layout, one) for one in (found.signature, found.sbom)]
    bare = [{key: one[key] for key in ("mediaType", "digest", "size")} for one in listed]
    path = f"/referrers/{found.image['digest']}"
    next_page = f"/v2/app{path}?last=x"
    used, archives = mover(), []
    lists: list[list[Action]] = [
        [listing(*listed)],
        [listing(*reversed(listed))],
        [listing(*bare)],
        [listing(listed[0], link=next_page), listing(listed[1])],
        [listing(listed[0], link=next_page), listing(*listed, link=next_page)],
        [Drop(10), listing(*listed)],
    ]
    for pages in lists:
        registry.faults = [Fault(page, "GET", path) for page in pages]
        registry.requests.clear()
        used.run("pull", f"{registry.host}/app:1", "-o", used.folder / "out.tar", "--platform", "all")
        assert len(registry.asked("GET", path)) == len(pages)
        archives.append((used.folder / "out.tar").read_bytes())
    assert len(set(archives)) == 1


def test_an_endless_list_is_limited_with_a_notice(start: Start, mover: Move, layout: Layout, found: Signed) -> None:
    registry = start()
    found.seed(layout, registry.host, "app", "1")
    path = f"/referrers/{found.image['digest']}"
    pages = limits.MAX_PAGES
    endless = [listing(found.signature, link=f"/v2/app{path}?last={number}") for number in range(2 * pages)]
    registry.faults = [Fault(page, "GET", path) for page in endless]
    used = mover()
    result = pull(used, registry)
    assert f"only 1 entries on {pages} pages of the list are read" in result.err
    assert len(registry.asked("GET", path)) == pages
    assert found.signature["digest"] in blobs(used)
    assert found.sbom["digest"] not in blobs(used)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (refusal(403, "DENIED"), "403"),
        (refusal(410), "410"),
        (Reply(200, {"Content-Type": "text/html"}, b"<html>"), "HTML"),
    ],
    ids=["403", "410", "HTML"],
)
@pytest.mark.parametrize("path", ["/referrers/", "/manifests/sha256-"])
def test_an_image_is_copied_even_if_its_referrers_cannot_be_listed(
    path: str, action: Action, said: str, start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start()
    found.seed(layout, registry.host, "app", "1")
    registry.faults = [Fault(action, path=path, times=None)]
    used = mover()
    result = pull(used, registry)
    assert found.image["digest"] in blobs(used)
    assert said in result.err or said == "HTML", result.err


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"<html>", "is not valid JSON"), (b"{}", "has no list of manifests"), (b"[]", "is not a JSON object")],
)
def test_a_malformed_list_is_named_and_not_the_image(
    body: bytes, said: str, start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "1")
    registry.faults = [Fault(Reply(200, {"Content-Type": OCI_INDEX}, body), path="/referrers/", times=None)]
    reason = left_behind(mover(), registry)[0]["reason"]
    assert f"the list of referrers of {image['digest']} in {registry.host}/app" in reason
    assert said in reason
    assert "manifest sha256:" not in reason


def test_a_server_error_for_the_list_of_referrers_fails_the_copy(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start()
    found.seed(layout, registry.host, "app", "1")
    registry.faults = [Fault(refusal(500), path=f"/referrers/{found.image['digest']}", times=None)]
    pull(mover(), registry, "-q", code=7, says="500")


def test_wrong_entries_of_a_list_are_skipped_and_reported(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    registry = start()
    found.seed(layout, registry.host, "app", "1")
    stranger = referrer(layout, layout.image([b""]), "a/b", b"of another image")
    plain = layout.artifact(b"of none")
    for one in (stranger, plain):
        seed(layout, one, registry.host, "app")
    (gone,) = unknown(1)
    path = f"/referrers/{found.image['digest']}"
    registry.faults = [Fault(listing(stranger, plain, gone, found.sbom), "GET", path)]
    used = mover()
    left = {one["digest"] for one in left_behind(used, registry)}
    assert left == {stranger["digest"], plain["digest"], gone["digest"]}
    assert not left & blobs(used)
    assert found.sbom["digest"] in blobs(used)


def test_a_repeated_entry_is_requested_once_and_the_report_names_only_some_of_many(
    start: Start, mover: Move, layout: Layout
) -> None:
    registry = start()
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "1")
    gone = unknown(25)
    registry.faults = [Fault(listing(*gone, *gone), path=f"/referrers/{image['digest']}")]
    left = left_behind(mover(), registry)
    assert len(registry.asked("GET", f"/manifests/{gone[0]['digest']}")) == 1
    named = sorted(str(entry["digest"]) for entry in gone)[:10]
    assert [one.get("digest") for one in left] == [*named, None]
    assert [one.get("count") for one in left] == [None] * 10 + [15]


def test_the_number_of_referrers_is_limited(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    image = small_image(layout)
    seed(layout, image, registry.host, "app", "1")
    half = limits.MAX_REFERRERS // 2 + 1
    path = f"/referrers/{image['digest']}"
    many = unknown(2 * half)
    registry.faults = [Fault(listing(*many[:half], link=f"/v2/app{path}?last=x"), path=path)]
    registry.faults += [Fault(listing(*many[half:]), path=path)]
    words = (f"more than {limits.MAX_REFERRERS} referrers are listed", "--no-referrers")
    pull(mover(), registry, code=8, says=words)
    assert registry.asked("GET", f"/manifests/{many[0]['digest']}") == []


def test_the_depth_of_referrers_is_limited(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    top = small_image(layout)
    seed(layout, top, registry.host, "app", "1")
    for number in range(limits.MAX_REFERRER_DEPTH):
        top = referrer(layout, top, "a/b", str(number).encode())
        seed(layout, top, registry.host, "app")
    used = mover()
    pull(used, registry)
    assert top["digest"] in blobs(used)
    seed(layout, referrer(layout, top, "a/b", b"one more"), registry.host, "app")
    pull(used, registry, code=8, says=(f"more than {limits.MAX_REFERRER_DEPTH} levels deep", "--no-referrers"))


@quirk(32)
def test_one_of_two_signatures_with_the_same_tag_is_skipped(start: Start, mover: Move, layout: Layout) -> None:
    registry = start()
    image = small_image(layout)
    made = {}
    for repository in ("a", "b"):
        seed(layout, image, registry.host, repository, "1")
        other = layout.image([repository.encode()])
        made[repository] = seed(layout, cosign_signature(layout, other), registry.host, repository, cosign_tag(image))
    used = mover()
    names = [f"{registry.host}/{repository}:1" for repository in ("b", "a")]
    document = used.folder / "result.json"
    used.run("pull", *names, "-o", f"{used.folder}/out/", "--result", document)
    # The signature beside the image that was named first is kept.
    assert made["b"] in blobs(used)
    assert made["a"] not in blobs(used)
    (left,) = json.loads(document.read_text())["skippedReferrers"]
    assert (left["tag"], left["digest"]) == (cosign_tag(image), made["a"])


# Into a registry ------------------------------------------------------------------------------------------------


def pushed(registry: QuirkyRegistry) -> list[str]:
    """Return the references of the pushed manifests, in order."""
    return [request.path.rpartition("/")[2] for request in registry.asked("PUT", "/manifests/")]


def kept(registry: QuirkyRegistry, subject: str, repository: str = "app") -> list[Descriptor]:
    """Return the list of referrers that clients store under a tag."""
    raw = registry_http.manifest(registry.host, repository, subject.replace(":", "-"))
    return list(json.loads(raw)["manifests"]) if raw else []


def push(mover: Mover, layout: Layout, target: str, *options: str, **expected: Any) -> Result:
    return mover.run("push", target, "-i", layout.path, "--jobs", "1", *options, **expected)


@quirk(31)
def test_an_image_is_pushed_before_its_referrers_and_its_tag_last(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    found.enter(layout, "v1")
    registry = start()
    push(mover(), layout, f"{registry.host}/app:1")
    order = pushed(registry)
    assert order[0] == found.image["digest"]
    assert order.index(found.signature["digest"]) < order.index(found.attestation["digest"])
    assert order[-2:] == [found.cosign_tag, "1"]
    # Existing tags are not written again.
    registry.requests.clear()
    push(mover(), layout, f"{registry.host}/app:1")
    assert not {found.cosign_tag, "1"} & set(pushed(registry))


def test_the_manifest_of_an_image_without_referrers_is_pushed_once(start: Start, mover: Move, layout: Layout) -> None:
    small_image(layout, name="v1")
    registry = start()
    push(mover(), layout, f"{registry.host}/app:1")
    assert pushed(registry) == ["1"]


@quirk(31)
def test_without_the_api_each_list_is_written_once_before_the_tags(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    found.enter(layout, "v1")
    registry = start(*OLD)
    push(mover(), layout, f"{registry.host}/app:1")
    order = pushed(registry)
    assert sorted(order[-4:-2]) == sorted(subject.replace(":", "-") for subject in found.subjects())
    assert order[-2:] == [found.cosign_tag, "1"]
    for subject, referring in found.subjects().items():
        expected = {one["digest"]: found.listed(layout, one) for one in referring}
        assert {one["digest"]: one for one in kept(registry, subject)} == expected
    registry.requests.clear()
    push(mover(), layout, f"{registry.host}/app:1")
    # They are pushed again by digest: the response shows whether the registry lists referrers.
    assert sorted(pushed(registry)) == sorted(one["digest"] for one in found.referrers)


@pytest.mark.parametrize("status", [404, 400])
def test_entries_of_other_clients_in_a_list_are_kept(
    status: int, start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    found.enter(layout, "v1")
    registry = start(registry_quirks.NO_SUBJECT, registry_quirks.no_referrers(status))
    other = layout.artifact(b"of others", kind="application/y", subject=found.image)
    for one in (other, found.signature):
        seed(layout, one, registry.host, "app")
    theirs = [{**other, "annotations": {"by": "others"}, "unknown": [1]}, {**found.signature, "unknown": [2]}]
    tag = found.image["digest"].replace(":", "-")
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": theirs, "annotations": {"of": "the list"}}
    seed(layout, layout.document(document), registry.host, "app", tag)
    push(mover(), layout, f"{registry.host}/app:1")
    raw = registry_http.manifest(registry.host, "app", tag)
    now = json.loads(raw or b"{}")
    # No entry is lost, and none is repeated.
    assert now["manifests"][:2] == theirs
    assert [one["digest"] for one in now["manifests"][2:]] == [found.sbom["digest"]]
    assert now["annotations"] == {"of": "the list"}
    push(mover(), layout, f"{registry.host}/app:1")
    assert registry_http.manifest(registry.host, "app", tag) == raw


def test_an_image_under_the_tag_of_a_list_is_not_overwritten(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    found.enter(layout, "v1")
    registry = start(*OLD)
    other = small_image(layout, config={"Cmd": ["another"]})
    tag = found.image["digest"].replace(":", "-")
    seed(layout, other, registry.host, "app", tag)
    push(mover(), layout, f"{registry.host}/app:1", "-q", code=8, says=(tag, "--no-referrers"))
    assert manifest_digest(registry.host, "app", tag) == other["digest"]


def test_a_referrer_that_was_pushed_but_not_listed_is_listed_by_the_next_run(
    start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    found.enter(layout, "v1")
    registry = start(*OLD)
    tag = found.image["digest"].replace(":", "-")
    registry.faults = [Fault(refusal(400, "MANIFEST_INVALID"), "PUT", f"/manifests/{tag}$")]
    push(mover(), layout, f"{registry.host}/app:1", code=7)
    assert registry_http.tags(registry.host, "app") == []
    push(mover(), layout, f"{registry.host}/app:1")
    assert len(kept(registry, found.image["digest"])) == 2


def test_a_referrer_that_is_copied_by_name_is_listed(start: Start, mover: Move, layout: Layout, found: Signed) -> None:
    registry, origin = start(*OLD), start()
    seed(layout, found.signature, origin.host, "app", "signature")
    mover(env={}).copy(f"{origin.host}/app:signature", f"{registry.host}/app:signature")
    listed = [one["digest"] for one in kept(registry, found.image["digest"])]
    assert listed == [found.signature["digest"]]


@quirk(32)
@pytest.mark.parametrize("says", [True, False], ids=["says its digest", "does not say its digest"])
def test_a_signature_tag_of_the_destination_is_kept_and_reported(
    says: bool, start: Start, mover: Move, layout: Layout, found: Signed
) -> None:
    found.enter(layout, "v1")
    registry = start()
    seed(layout, found.image, registry.host, "app", "0")
    own = seed(layout, layout.artifact(b"signed where it arrived"), registry.host, "app", found.cosign_tag)
    if not says:
        registry.faults = [Fault(Header("Docker-Content-Digest", None), "HEAD", "/manifests/", times=None)]
    result = push(mover(), layout, f"{registry.host}/app:1")
    assert manifest_digest(registry.host, "app", found.cosign_tag) == own
    assert manifest_digest(registry.host, "app", "1") == found.image["digest"]
    assert "not copied: 1 signature; the destination has another one, which stays" in result.err
    # A signature without a tag could not be found, so it is not sent.
    assert registry_http.manifest(registry.host, "app", found.cosign["digest"]) is None
