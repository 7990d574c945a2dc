"""What hangs on images in registries: found with few requests, in one order, and said where it cannot go along."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from ocistream.attachments import CUT, DISOWNED, GONE, HIDDEN, NARROWED, SAME_TAG, UNKNOWN_KIND
from ocistream.errors import NetworkError, UnsupportedError
from ocistream.graph import Graph
from ocistream.model import parse_platform
from ocistream.platforms import ALL_PLATFORMS, PlatformChoice
from ocistream.reference import parse_reference
from ocistream.stores.archive import ArchiveSink
from ocistream.stores.outputs import file_output
from ocistream.stores.registry_source import RegistrySource
from ocistream.transfer import copy
from tests import registry_http
from tests.faults import Fault, Reply, refusal
from tests.images import OCI_INDEX, OCI_MANIFEST, Layout, digest_of, small_image, two_platforms
from tests.network import CountingRegistry, QuickTransport
from tests.observers import NothingEarly
from tests.registry_http import seed
from tests.signed import Signed, cosign_signature, cosign_tag, referrer, signed

Faulty = Callable[..., CountingRegistry]
Quick = Callable[..., QuickTransport]

NO_API = Fault(refusal(404, "NOT_FOUND"), path="/referrers/", times=None)


def source(transport: QuickTransport, *names: str, platforms: PlatformChoice = ALL_PLATFORMS) -> RegistrySource:
    references = [parse_reference(name) for name in names]
    return RegistrySource(transport, references, platforms=platforms, referrers="along")


def graph_of(transport: QuickTransport, *names: str, platforms: PlatformChoice = ALL_PLATFORMS) -> Graph:
    return source(transport, *names, platforms=platforms).graph(NothingEarly())


def found_in(graph: Graph) -> set[tuple[str, str, str | None]]:
    return {(one.subject, one.descriptor.digest, one.tag) for one in graph.all_attached}


def listing(*entries: dict[str, Any]) -> Reply:
    """Answer with a list of referrers."""
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return Reply(200, {"Content-Type": OCI_INDEX}, json.dumps(content).encode())


class TestRequests:
    def test_a_plain_image_costs_four_more(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        image = small_image(layout)
        seed(layout, image, registry.host, "app", "1")
        registry.requests.clear()
        graph_of(quick(), f"{registry.host}/app:1")
        asked = sorted((request.method, request.path.rpartition("/")[2]) for request in registry.requests)
        tags = [cosign_tag(image, suffix) for suffix in (".att", ".sbom", ".sig")]
        assert asked == [("GET", "1"), ("GET", image["digest"]), *(("HEAD", tag) for tag in tags)]

    def test_without_the_api_it_is_asked_for_once_and_the_lists_tag_each_time(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty(NO_API)
        seed(layout, two_platforms(layout), registry.host, "app", "1")
        registry.requests.clear()
        graph_of(quick(), f"{registry.host}/app:1")
        assert len(registry.asked("GET", "/referrers/")) == 1
        assert len(registry.asked("GET", "/manifests/sha256-")) == 3
        assert len(registry.asked("HEAD", "/manifests/sha256-")) == 9

    def test_two_names_of_one_image_are_asked_about_once(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        for tag in "12":
            seed(layout, small_image(layout), registry.host, "app", tag)
        registry.requests.clear()
        graph_of(quick(), f"{registry.host}/app:1", f"{registry.host}/app:2")
        assert len(registry.asked(path="/referrers/|sha256-")) == 4

    def test_nothing_is_asked_where_it_is_to_be_left(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        signed(layout).seed(layout, registry.host, "app", "1")
        registry.requests.clear()
        reference = parse_reference(f"{registry.host}/app:1")
        RegistrySource(quick(), [reference], referrers="left").graph(NothingEarly())
        assert len(registry.requests) == 1

    def test_so_many_questions_are_asked_at_a_time_as_there_are_jobs(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        children = [layout.image([b"%d" % number], platform=f"linux/{number}") for number in range(20)]
        seed(layout, layout.index(children), registry.host, "app", "1")
        before = registry.accepted
        reference = parse_reference(f"{registry.host}/app:1")
        RegistrySource(quick(), [reference], referrers="along", jobs=1).graph(NothingEarly())
        assert registry.accepted == before + 1

    def test_one_that_fails_stops_whatever_else_the_transfer_does(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        index = two_platforms(layout)
        seed(layout, index, registry.host, "app", "1")
        # The first question is asked alone.
        last = max(index["digest"], *(child["digest"] for child in layout.read(index["digest"])["manifests"]))
        registry.faults.append(Fault(refusal(500), path=f"/referrers/{last}", times=None))
        transport = quick()
        with pytest.raises(NetworkError):
            graph_of(transport, f"{registry.host}/app:1")
        assert transport.cancelled.is_set()


class TestFinding:
    def test_the_same_archive_comes_of_it_in_whatever_order_it_is_listed(
        self, faulty: Faulty, quick: Quick, layout: Layout, tmp_path: Path
    ) -> None:
        registry = faulty()
        found = signed(layout)
        found.seed(layout, registry.host, "app", "1")
        archives = []
        for number, order in enumerate(([found.signature, found.sbom], [found.sbom, found.signature])):
            path = f"/referrers/{found.image['digest']}"
            registry.faults.append(Fault(listing(*(found.listed(layout, one) for one in order)), path=path))
            target = tmp_path / f"{number}.tar"
            copy(source(quick(), f"{registry.host}/app:1"), ArchiveSink(file_output(target)))
            archives.append(target.read_bytes())
        assert archives[0] == archives[1]

    def test_what_a_registry_leaves_out_of_its_list_makes_no_difference(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        found = signed(layout)
        found.seed(layout, registry.host, "app", "1")
        expected = graph_of(quick(), f"{registry.host}/app:1").attached
        bare = [{key: one[key] for key in ("mediaType", "digest", "size")} for one in (found.signature, found.sbom)]
        registry.faults.append(Fault(listing(*bare), path=f"/referrers/{found.image['digest']}"))
        assert graph_of(quick(), f"{registry.host}/app:1").attached == expected

    def test_each_repository_is_asked_what_it_has(self, faulty: Faulty, quick: Quick, layout: Layout) -> None:
        registry = faulty()
        image = small_image(layout)
        sbom = referrer(layout, image, "application/spdx+json", b"parts")
        for repository in ("a", "b"):
            seed(layout, image, registry.host, repository, "1")
        path = f"/v2/b/referrers/{image['digest']}"
        seed(layout, sbom, registry.host, "b")
        registry.faults.append(Fault(listing(), path=f"/v2/a/referrers/{image['digest']}", times=None))
        graph = graph_of(quick(), f"{registry.host}/a:1", f"{registry.host}/b:1")
        assert found_in(graph) == {(image["digest"], sbom["digest"], None)}
        assert registry.asked(path=path)
        # And that is where its blobs come from.
        taken = source(quick(), f"{registry.host}/a:1", f"{registry.host}/b:1")
        taken.graph(NothingEarly())
        (layer,) = layout.read(sbom["digest"])["layers"]
        assert taken.home(layer["digest"]) == (registry.host, "b")

    def test_of_two_repositories_with_other_signatures_one_tag_cannot_hold_both(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout)
        for repository in ("a", "b"):
            seed(layout, image, registry.host, repository, "1")
            other = layout.image([repository.encode()])
            seed(layout, cosign_signature(layout, other), registry.host, repository, cosign_tag(image))
        made = {name: registry_http.manifest_digest(registry.host, name, cosign_tag(image)) for name in "ab"}
        for first, second in ("ab", "ba"):
            graph = graph_of(quick(), f"{registry.host}/{first}:1", f"{registry.host}/{second}:1")
            # The one beside the image that was named first.
            assert found_in(graph) == {(image["digest"], made[first], cosign_tag(image))}
            (left,) = graph.left_behind
            assert (left.why, left.tag, left.digest) == (SAME_TAG, cosign_tag(image), made[second])

    def test_a_tag_that_leads_back_to_its_image_ends_nowhere_else(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout)
        seed(layout, image, registry.host, "app", "1")
        seed(layout, image, registry.host, "app", cosign_tag(image))
        graph = graph_of(quick(), f"{registry.host}/app:1")
        assert found_in(graph) == {(image["digest"], image["digest"], cosign_tag(image))}
        assert len(graph.manifests) == 1


class TestLeavingBehind:
    @pytest.fixture
    def registry(self, faulty: Faulty) -> CountingRegistry:
        return faulty()

    @pytest.fixture
    def found(self, registry: CountingRegistry, layout: Layout) -> Signed:
        made = signed(layout)
        made.seed(layout, registry.host, "app", "1")
        return made

    def left(self, transport: QuickTransport, registry: CountingRegistry) -> set[tuple[str, str | None]]:
        graph = graph_of(transport, f"{registry.host}/app:1")
        return {(left.why, left.digest) for left in graph.left_behind}

    def test_what_is_listed_and_not_there(self, registry: CountingRegistry, quick: Quick, found: Signed) -> None:
        registry.faults.append(Fault(refusal(404, "MANIFEST_UNKNOWN"), path=f"/manifests/{found.sbom['digest']}"))
        assert self.left(quick(), registry) == {(GONE, found.sbom["digest"])}

    def test_a_signatures_tag_whose_manifest_does_not_exist(
        self, registry: CountingRegistry, quick: Quick, found: Signed
    ) -> None:
        tag = found.cosign_tag
        registry.faults.append(Fault(refusal(404, "MANIFEST_UNKNOWN"), "GET", path=f"/manifests/{tag}", times=None))
        graph = graph_of(quick(), f"{registry.host}/app:1")
        assert {(left.why, left.tag, left.kind) for left in graph.left_behind} == {(GONE, tag, "signature")}

    def test_what_is_listed_and_says_otherwise(
        self, registry: CountingRegistry, quick: Quick, layout: Layout, found: Signed
    ) -> None:
        stranger = referrer(layout, layout.image([b""]), "a/b", b"of another image")
        plain = layout.artifact(b"of none")
        for one in (stranger, plain):
            seed(layout, one, registry.host, "app")
        registry.faults.append(Fault(listing(stranger, plain), path=f"/referrers/{found.image['digest']}"))
        assert self.left(quick(), registry) == {(DISOWNED, stranger["digest"]), (DISOWNED, plain["digest"])}

    def test_what_is_of_a_kind_that_cannot_be_carried(
        self, registry: CountingRegistry, quick: Quick, found: Signed
    ) -> None:
        kind = "application/vnd.oci.artifact.manifest.v1+json"
        withdrawn = json.dumps({"mediaType": kind, "subject": found.image}).encode()
        digest = registry.hold(withdrawn)[0].digest
        entry = {"mediaType": kind, "digest": digest, "size": len(withdrawn)}
        registry.faults += [
            Fault(listing(entry), path=f"/referrers/{found.image['digest']}"),
            Fault(Reply(200, {"Content-Type": kind}, withdrawn), path=f"/manifests/{digest}"),
        ]
        assert self.left(quick(), registry) == {(UNKNOWN_KIND, digest)}

    def test_an_index_that_is_cut_down_leaves_its_own_and_asks_for_no_more(
        self, registry: CountingRegistry, quick: Quick, layout: Layout
    ) -> None:
        index = two_platforms(layout)
        whole, arm = signed(layout, index), signed(layout, layout.read(index["digest"])["manifests"][1])
        whole.seed(layout, registry.host, "app", "2")
        arm.seed(layout, registry.host, "app", "arm")
        registry.requests.clear()
        choice = PlatformChoice((parse_platform("linux/arm64"),))
        graph = graph_of(quick(), f"{registry.host}/app:2", platforms=choice)
        assert {one[1] for one in found_in(graph)} == arm.hanging
        assert {(left.why, left.kind) for left in graph.left_behind} == {(NARROWED, "SBOM"), (NARROWED, "signature")}
        assert {left.digest or left.tag for left in graph.left_behind} == {
            whole.signature["digest"],
            whole.sbom["digest"],
            whole.cosign_tag,
        }
        assert registry.asked("GET", f"/manifests/{whole.signature['digest']}") == []

    @pytest.mark.parametrize("path", ["/referrers/", "/manifests/sha256-"])
    @pytest.mark.parametrize(
        ("reply", "said"),
        [
            (refusal(403, "DENIED"), "403"),
            (refusal(410), "410"),
            (Reply(200, {"Content-Type": "text/html"}, b"<html>"), "JSON|HTML or XML, and no manifest"),
        ],
    )
    def test_what_the_registry_does_not_tell_does_not_stop_the_image(
        self, registry: CountingRegistry, quick: Quick, found: Signed, path: str, reply: Reply, said: str
    ) -> None:
        registry.faults.append(Fault(reply, path=path, times=None))
        graph = graph_of(quick(), f"{registry.host}/app:1")
        assert [root.descriptor.digest for root in graph.roots] == [found.image["digest"]]
        (left,) = graph.left_behind
        assert left.why.startswith(HIDDEN)
        assert re.search(said, left.why)
        assert left.kind is None

    def test_a_registry_that_fails_stops_it(self, registry: CountingRegistry, quick: Quick, found: Signed) -> None:
        registry.faults.append(Fault(refusal(500), path=f"/referrers/{found.image['digest']}", times=None))
        with pytest.raises(NetworkError):
            graph_of(quick(), f"{registry.host}/app:1")


class TestBounds:
    def test_they_hang_on_each_other_only_so_deep(
        self, faulty: Faulty, quick: Quick, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_ATTACHED_DEPTH", 2)
        registry = faulty()
        top = small_image(layout)
        seed(layout, top, registry.host, "app", "1")
        for number in range(3):
            top = referrer(layout, top, "a/b", str(number).encode())
            seed(layout, top, registry.host, "app")
            if number == 1:
                assert len(found_in(graph_of(quick(), f"{registry.host}/app:1"))) == 2
        with pytest.raises(UnsupportedError, match="more than 2 deep") as caught:
            graph_of(quick(), f"{registry.host}/app:1")
        assert "--no-referrers" in (caught.value.hint or "")

    def test_there_are_only_so_many(
        self, faulty: Faulty, quick: Quick, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = faulty()
        signed(layout).seed(layout, registry.host, "app", "1")
        monkeypatch.setattr(limits, "MAX_ATTACHED", 4)
        assert len(found_in(graph_of(quick(), f"{registry.host}/app:1"))) == 4
        monkeypatch.setattr(limits, "MAX_ATTACHED", 3)
        with pytest.raises(UnsupportedError, match="more than 3"):
            graph_of(quick(), f"{registry.host}/app:1")

    def test_all_that_is_listed_counts_whatever_comes_of_it(
        self, faulty: Faulty, quick: Quick, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = faulty()
        image = small_image(layout)
        seed(layout, image, registry.host, "app", "1")
        gone = [{"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d" % n), "size": 1} for n in range(4)]
        fault = Fault(listing(*gone), path="/referrers/", times=None)
        registry.faults.append(fault)
        monkeypatch.setattr(limits, "MAX_ATTACHED", 4)
        assert len(graph_of(quick(), f"{registry.host}/app:1").left_behind) == 4
        monkeypatch.setattr(limits, "MAX_ATTACHED", 3)
        registry.requests.clear()
        with pytest.raises(UnsupportedError, match="more than 3 signatures, SBOMs and the like are listed") as caught:
            graph_of(quick(), f"{registry.host}/app:1")
        assert "--no-referrers" in (caught.value.hint or "")
        assert not registry.asked("GET", f"/manifests/{gone[0]['digest']}")

    def test_what_is_listed_twice_is_asked_for_once_and_of_many_alike_a_few_are_named(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        image = small_image(layout)
        seed(layout, image, registry.host, "app", "1")
        gone = [{"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d" % n), "size": 1} for n in range(25)]
        registry.faults.append(Fault(listing(*gone, *gone), path="/referrers/", times=None))
        registry.requests.clear()
        left = graph_of(quick(), f"{registry.host}/app:1").left_behind
        assert len(registry.asked("GET", f"/manifests/{gone[0]['digest']}")) == 1
        named = sorted(str(entry["digest"]) for entry in gone)[:10]
        assert [one.digest for one in left] == [*named, None]
        assert [one.count for one in left] == [None] * 10 + [15]

    def test_of_a_list_that_is_not_read_to_its_end_that_is_said(
        self, faulty: Faulty, quick: Quick, layout: Layout
    ) -> None:
        registry = faulty()
        found = signed(layout)
        found.seed(layout, registry.host, "app", "1")
        content = listing(found.signature)
        link = {"Link": '<https://elsewhere.example.com/more>; rel="next"'}
        reply = Reply(200, {**content.headers, **link}, content.body)
        registry.faults.append(Fault(reply, path=f"/referrers/{found.image['digest']}"))
        graph = graph_of(quick(), f"{registry.host}/app:1")
        assert found.signature["digest"] in {one[1] for one in found_in(graph)}
        (left,) = graph.left_behind
        assert (left.subject, left.kind, left.digest) == (found.image["digest"], None, None)
        assert left.why.startswith(CUT)
        assert "elsewhere.example.com" in left.why
