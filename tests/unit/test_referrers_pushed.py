"""What hangs on an image, into registries: in which order it is pushed, and listed where the registry cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ocistream.attachments import TAKEN
from ocistream.errors import MissingContentError, NetworkError, RegistryError
from ocistream.graph import Root
from ocistream.interfaces import Unwatched
from ocistream.model import Descriptor
from ocistream.reference import Reference, parse_reference
from ocistream.stores.layout import LayoutSource
from ocistream.stores.registry import RegistrySink
from ocistream.stores.registry_source import RegistrySource
from ocistream.transfer import Report, copy
from tests import registry_http
from tests.faults import Fault, Header, Reply, refusal
from tests.images import Layout, small_image
from tests.network import CountingRegistry, QuickTransport
from tests.registry_http import seed
from tests.signed import Signed, signed

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

#: A registry of before the referrers API, or of those that still have none.
WITHOUT_API = (
    Fault(refusal(404, "NOT_FOUND"), path="/referrers/", times=None),
    Fault(Header("OCI-Subject", None), "PUT", "/manifests/", times=None),
)


@pytest.fixture
def found(layout: Layout) -> Signed:
    made = signed(layout)
    made.enter(layout, "v1")
    return made


def push(layout: Layout, transport: QuickTransport, *names: str) -> Report:
    """Push the image of a layout to each of these, all in one transfer."""
    references = [parse_reference(name) for name in names]
    given: dict[str | None, Reference] = {}

    def target(root: Root) -> Reference:
        return given.setdefault(root.name, references[min(len(given), len(references) - 1)])

    sink = RegistrySink(transport, target)
    try:
        return copy(LayoutSource(layout.path, referrers="along"), sink)
    finally:
        sink.close()


def put(registry: CountingRegistry) -> list[str]:
    """Return under what manifests were put, in order."""
    return [request.path.rpartition("/")[2] for request in registry.asked("PUT", "/manifests/")]


def kept(registry: CountingRegistry, subject: str, repository: str = "app") -> list[dict[str, Any]]:
    raw = registry_http.manifest(registry.host, repository, subject.replace(":", "-"))
    return list(json.loads(raw)["manifests"]) if raw else []


def test_an_image_comes_before_what_hangs_on_it_and_its_tag_at_the_very_end(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    registry = faulty()
    push(layout, quick(), f"{registry.host}/app:1")
    order = put(registry)
    place = order.index
    assert order[0] == found.image["digest"]
    assert place(found.signature["digest"]) < place(found.attestation["digest"])
    assert order[-2:] == [found.cosign_tag, "1"]
    assert found.image["digest"].replace(":", "-") not in order


def test_an_image_without_anything_is_still_put_once(faulty: Faulty, quick: Quick, layout: Layout) -> None:
    registry = faulty()
    small_image(layout, name="v1")
    push(layout, quick(), f"{registry.host}/app:1")
    assert put(registry) == ["1"]


def test_without_the_api_each_list_is_written_once_before_the_tags(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    registry = faulty(*WITHOUT_API)
    push(layout, quick(), f"{registry.host}/app:1")
    order = put(registry)
    lists = [subject.replace(":", "-") for subject in found.subjects()]
    assert sorted(order[-4:-2]) == sorted(lists)
    assert order[-2:] == [found.cosign_tag, "1"]
    for subject, referring in found.subjects().items():
        assert {one["digest"] for one in kept(registry, subject)} == {one["digest"] for one in referring}
        for one in kept(registry, subject):
            (made,) = (other for other in referring if other["digest"] == one["digest"])
            assert one == found.listed(layout, made)


def test_a_second_push_finds_everything_listed_and_writes_no_list(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    registry = faulty(*WITHOUT_API)
    push(layout, quick(), f"{registry.host}/app:1")
    registry.requests.clear()
    push(layout, quick(), f"{registry.host}/app:1")
    # By digest, which is the same thing again, and shows whether the registry lists it.
    assert sorted(put(registry)) == sorted(one["digest"] for one in found.referrers)


def test_what_was_pushed_but_not_listed_is_listed_the_next_time(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    registry = faulty(*WITHOUT_API)
    tag = found.image["digest"].replace(":", "-")
    fault = Fault(refusal(400, "MANIFEST_INVALID"), "PUT", f"/manifests/{tag}$")
    registry.faults.insert(0, fault)
    with pytest.raises(RegistryError):
        push(layout, quick(), f"{registry.host}/app:1")
    assert registry_http.tags(registry.host, "app") == []
    push(layout, quick(), f"{registry.host}/app:1")
    assert len(kept(registry, found.image["digest"])) == 2


def test_every_repository_with_the_image_gets_all_of_it(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    registry = faulty(*WITHOUT_API)
    layout.name(found.image, "v2")
    push(layout, quick(), f"{registry.host}/a:1", f"{registry.host}/b:2")
    for repository, tag in (("a", "1"), ("b", "2")):
        assert len(kept(registry, found.image["digest"], repository)) == 2
        assert found.cosign_tag in registry_http.tags(registry.host, repository)
        assert tag in registry_http.tags(registry.host, repository)


def test_a_registry_that_does_not_take_it_gets_no_image_and_the_way_out_is_said(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    registry = faulty(Fault(refusal(400, "MANIFEST_INVALID"), "PUT", found.signature["digest"], times=None))
    with pytest.raises(RegistryError) as caught:
        push(layout, quick(), f"{registry.host}/app:1")
    assert "--no-referrers" in (caught.value.hint or "")
    assert registry_http.tags(registry.host, "app") == []


def test_a_referrer_that_is_pushed_by_name_is_listed_too(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    """It is an image that somebody asked for, and refers to another all the same."""
    registry, origin = faulty(*WITHOUT_API), faulty()
    seed(layout, found.signature, origin.host, "app", "signature")
    taken = RegistrySource(quick(), [parse_reference(f"{origin.host}/app:signature")], referrers="along")
    copy(taken, RegistrySink(quick(), lambda _: parse_reference(f"{registry.host}/app:signature")))
    assert [one["digest"] for one in kept(registry, found.image["digest"])] == [found.signature["digest"]]


def test_a_tag_that_is_there_is_not_written_again(faulty: Faulty, quick: Quick, layout: Layout, found: Signed) -> None:
    registry = faulty()
    push(layout, quick(), f"{registry.host}/app:1")
    registry.requests.clear()
    push(layout, quick(), f"{registry.host}/app:1")
    assert not {found.cosign_tag, "1"} & set(put(registry))


def test_within_one_registry_its_blobs_are_mounted(faulty: Faulty, quick: Quick, layout: Layout, found: Signed) -> None:
    registry = faulty()
    found.seed(layout, registry.host, "app", "1")
    transport = quick()
    taken = RegistrySource(transport, [parse_reference(f"{registry.host}/app:1")], referrers="along")
    sink = RegistrySink(transport, lambda _: parse_reference(f"{registry.host}/copied:1"))
    report = copy(taken, sink)
    sink.close()
    assert {moved.how for moved in report.blobs} <= {"mounted", "skipped"}
    assert {one.descriptor.digest for one in report.graph.all_attached} == found.hanging


def test_what_has_a_tag_of_cosigns_and_is_not_in_the_archive_cannot_be_tagged(
    faulty: Faulty, quick: Quick, layout: Layout, found: Signed
) -> None:
    registry = faulty()
    push(layout, quick(), f"{registry.host}/app:1")
    layout.file(found.cosign["digest"]).unlink()
    with pytest.raises(MissingContentError, match=found.cosign["digest"]):
        push(layout, quick(), f"{registry.host}/app:2")


class TestTagsOfCosignsThatAreThere:
    @pytest.fixture
    def registry(self, faulty: Faulty) -> CountingRegistry:
        return faulty()

    @pytest.fixture
    def own(self, registry: CountingRegistry, layout: Layout, found: Signed) -> str:
        """Return the digest of what the destination has under the signature's tag."""
        seed(layout, found.image, registry.host, "app", "0")
        made = layout.artifact(b"signed where it arrived")
        return seed(layout, made, registry.host, "app", found.cosign_tag)

    def test_what_the_destination_has_stays_and_that_is_said(
        self, registry: CountingRegistry, quick: Quick, layout: Layout, found: Signed, own: str
    ) -> None:
        report = push(layout, quick(), f"{registry.host}/app:1")
        assert registry_http.manifest_digest(registry.host, "app", found.cosign_tag) == own
        assert registry_http.manifest_digest(registry.host, "app", "1") == found.image["digest"]
        (left,) = report.graph.left_behind
        assert (left.why, left.kind, left.tag) == (TAKEN, "signature", found.cosign_tag)
        assert (left.subject, left.digest) == (found.image["digest"], found.cosign["digest"])
        # All else goes along, and nothing is sent that nobody could find.
        assert {one.descriptor.digest for one in report.graph.all_attached} == found.hanging - {found.cosign["digest"]}
        assert registry_http.manifest(registry.host, "app", found.cosign["digest"]) is None

    @pytest.mark.parametrize("says", [True, False])
    @pytest.mark.parametrize("lost", ["nothing", "a layer", "an annotation"])
    def test_what_has_all_that_is_there_takes_its_place(
        self, registry: CountingRegistry, quick: Quick, layout: Layout, found: Signed, lost: str, says: bool
    ) -> None:
        # The image was signed once more where it comes from: that is another layer, whose annotation is the signature.
        manifest = layout.read(found.cosign["digest"])
        (layer,) = manifest["layers"]
        signed = [{**layer, "annotations": {"dev.cosignproject.cosign/signature": who}} for who in ("a", "b", "c")]
        before = layout.document({**manifest, "layers": signed[:2]})
        after = {"nothing": signed, "a layer": signed[1:], "an annotation": [layer, *signed[1:]]}[lost]
        path = layout.path / "index.json"
        entries = json.loads(path.read_bytes())
        renewed = layout.document({**manifest, "layers": after})
        for entry in entries["manifests"]:
            if entry["digest"] == found.cosign["digest"]:
                entry.update(digest=renewed["digest"], size=renewed["size"])
        path.write_text(json.dumps(entries))
        seed(layout, found.image, registry.host, "app", "0")
        seed(layout, before, registry.host, "app", found.cosign_tag)
        if not says:
            registry.faults.append(Fault(Header("Docker-Content-Digest", None), "HEAD", "/manifests/", times=None))
        report = push(layout, quick(), f"{registry.host}/app:1")
        now = registry_http.manifest_digest(registry.host, "app", found.cosign_tag)
        assert now == (renewed if lost == "nothing" else before)["digest"]
        assert [left.why for left in report.graph.left_behind] == ([] if lost == "nothing" else [TAKEN])

    @pytest.mark.usefixtures("own")
    def test_what_cannot_be_read_there_stays_too(
        self, registry: CountingRegistry, quick: Quick, layout: Layout, found: Signed
    ) -> None:
        registry.faults.append(
            Fault(Reply(200, {}, b"no manifest"), "GET", f"/manifests/{found.cosign_tag}", times=None)
        )
        report = push(layout, quick(), f"{registry.host}/app:1")
        assert [left.why for left in report.graph.left_behind] == [TAKEN]

    def test_where_a_registry_does_not_say_which_it_is_the_tag_is_read(
        self, registry: CountingRegistry, quick: Quick, layout: Layout, found: Signed, own: str
    ) -> None:
        registry.faults.append(Fault(Header("Docker-Content-Digest", None), "HEAD", "/manifests/", times=None))
        report = push(layout, quick(), f"{registry.host}/app:1")
        assert [left.why for left in report.graph.left_behind] == [TAKEN]
        assert registry_http.manifest_digest(registry.host, "app", found.cosign_tag) == own
        report = push(layout, quick(), f"{registry.host}/other:1")
        assert report.graph.left_behind == push(layout, quick(), f"{registry.host}/other:1").graph.left_behind == ()

    def test_each_repository_keeps_its_own_and_the_others_get_it(
        self, registry: CountingRegistry, quick: Quick, layout: Layout, found: Signed, own: str
    ) -> None:
        layout.name(found.image, "v2")
        report = push(layout, quick(), f"{registry.host}/app:1", f"{registry.host}/b:2")
        assert registry_http.manifest_digest(registry.host, "app", found.cosign_tag) == own
        assert registry_http.manifest_digest(registry.host, "b", found.cosign_tag) == found.cosign["digest"]
        assert [left.why for left in report.graph.left_behind] == [TAKEN]
        assert {one.descriptor.digest for one in report.graph.all_attached} == found.hanging

    def test_one_that_is_written_while_the_image_moves_is_not_lost_either(
        self, registry: CountingRegistry, quick: Quick, layout: Layout, found: Signed
    ) -> None:
        made = layout.artifact(b"signed just now")

        class Signer(Unwatched):
            def done(self, descriptor: Descriptor, how: str) -> None:  # noqa: ARG002
                seed(layout, made, registry.host, "app", found.cosign_tag)

        sink = RegistrySink(quick(), lambda _: parse_reference(f"{registry.host}/app:1"))
        with pytest.raises(NetworkError, match="somebody else has written this tag") as caught:
            copy(LayoutSource(layout.path, referrers="along"), sink, Signer(), jobs=1)
        sink.close()
        assert "run it again" in (caught.value.hint or "")
        assert registry_http.tags(registry.host, "app") == [found.cosign_tag]
        assert registry_http.manifest_digest(registry.host, "app", found.cosign_tag) == made["digest"]
