"""Lists of referrers: the registry's, and the one that clients keep under a tag where it has none (REGISTRIES 31)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocistream import limits
from ocistream.distribution import Repository
from ocistream.errors import ArchiveError, AuthenticationError, RegistryError, UnsupportedError
from ocistream.model import OCI_INDEX, OCI_MANIFEST, Descriptor
from ocistream.referrer_lists import ReferrerList, ReferrerLists
from tests import registry_http
from tests.faults import Action, Drop, Fault, FaultyRegistry, Reply, refusal
from tests.images import Layout, digest_of, small_image
from tests.network import QuickTransport
from tests.registry_http import seed

SUBJECT = digest_of(b"subject")
TAG = SUBJECT.replace(":", "-")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FaultyRegistry]:
    with FaultyRegistry(tmp_path / "served") as registry:
        yield registry


@pytest.fixture
def lists(registry: FaultyRegistry) -> Iterator[ReferrerLists]:
    with QuickTransport() as transport:
        yield ReferrerLists(Repository(transport, registry.host, "app", writes=True))


def no_api(registry: FaultyRegistry, status: int = 404) -> None:
    registry.faults.append(Fault(refusal(status, "NOT_FOUND"), path="/referrers/", times=None))


def entry(name: str, **others: Any) -> dict[str, Any]:
    """Return how a list names a referrer that is only named."""
    raw = name.encode()
    return {"mediaType": OCI_MANIFEST, "digest": digest_of(raw), "size": len(raw), "artifactType": "a/b", **others}


def index_of(*entries: dict[str, Any], **others: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, **others}).encode()


def page(content: bytes, **headers: str) -> Reply:
    return Reply(200, {"Content-Type": OCI_INDEX, **headers}, content)


def described(found: dict[str, Any]) -> Descriptor:
    return Descriptor(found["mediaType"], found["digest"], found["size"], artifact_type=found.get("artifactType"))


class TestReading:
    def test_a_registrys_list_is_read_page_by_page(self, registry: FaultyRegistry, lists: ReferrerLists) -> None:
        link = f'</v2/app/referrers/{SUBJECT}?last=x>; rel="next"'
        replies = [page(index_of(entry("a")), Link=link), page(index_of(entry("b")))]
        registry.faults += [Fault(reply, path="/referrers/") for reply in replies]
        assert [one.digest for one in lists.of(SUBJECT).descriptors] == [entry("a")["digest"], entry("b")["digest"]]
        assert registry.asked(path="/manifests/") == []

    def test_one_that_never_ends_is_read_up_to_a_bound_and_that_is_said(
        self, registry: FaultyRegistry, lists: ReferrerLists, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_PAGES", 3)
        for number in range(5):
            link = f'</v2/app/referrers/{SUBJECT}?last={number}>; rel="next"'
            registry.faults.append(Fault(page(index_of(entry(str(number))), Link=link), path="/referrers/"))
        found = lists.of(SUBJECT)
        assert len(found.descriptors) == 3 == len(registry.asked())
        assert "only 3 are read, on 3 pages" in (found.cut or "")

    def test_one_of_too_many_is_read_no_further(
        self, registry: FaultyRegistry, lists: ReferrerLists, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "MAX_ATTACHED", 1)
        link = f'</v2/app/referrers/{SUBJECT}?last=x>; rel="next"'
        registry.faults.append(Fault(page(index_of(entry("a"), entry("b")), Link=link), path="/referrers/"))
        assert lists.of(SUBJECT).cut
        assert len(registry.asked()) == 1

    def test_one_that_goes_in_a_circle_is_whole_and_each_is_in_it_once(
        self, registry: FaultyRegistry, lists: ReferrerLists
    ) -> None:
        link = f'</v2/app/referrers/{SUBJECT}?last=x>; rel="next"'
        registry.faults.append(Fault(page(index_of(entry("a")), Link=link), path="/referrers/", times=None))
        assert lists.of(SUBJECT) == ReferrerList((described(entry("a")),))
        assert len(registry.asked()) == 2

    def test_one_that_goes_on_elsewhere_is_cut_and_that_is_said(
        self, registry: FaultyRegistry, lists: ReferrerLists
    ) -> None:
        link = '<https://elsewhere.example.com/more?token=secret>; rel="next"'
        registry.faults.append(Fault(page(index_of(entry("a")), Link=link), path="/referrers/"))
        found = lists.of(SUBJECT)
        assert len(found.descriptors) == 1
        assert "elsewhere.example.com" in (found.cut or "")
        assert "secret" not in (found.cut or "")

    def test_a_page_that_breaks_off_is_asked_for_again(self, registry: FaultyRegistry, lists: ReferrerLists) -> None:
        registry.faults.append(Fault(Drop(10), path="/referrers/"))
        assert lists.of(SUBJECT) == ReferrerList()
        assert len(registry.asked("GET", "/referrers/")) == 2

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    def test_a_registry_without_the_api_has_them_under_a_tag(
        self, registry: FaultyRegistry, lists: ReferrerLists, algorithm: Any
    ) -> None:
        no_api(registry)
        subject = digest_of(b"subject", algorithm)
        path = f"/manifests/{algorithm}-{subject.partition(':')[2][:64]}$"
        registry.faults.append(Fault(page(index_of(entry("a"))), "GET", path))
        (found,) = lists.of(subject).descriptors
        assert [found.digest, found.artifact_type] == [entry("a")["digest"], "a/b"]

    def test_where_there_is_no_such_tag_there_are_none(self, registry: FaultyRegistry, lists: ReferrerLists) -> None:
        no_api(registry)
        assert lists.of(SUBJECT) == ReferrerList()

    def test_an_image_under_that_tag_is_no_list(
        self, registry: FaultyRegistry, lists: ReferrerLists, layout: Layout
    ) -> None:
        no_api(registry)
        seed(layout, small_image(layout), registry.host, "app", TAG)
        assert lists.of(SUBJECT) == ReferrerList()

    @pytest.mark.parametrize("status", [404, 405, 501])
    def test_a_registry_that_does_not_know_the_api_is_asked_once(
        self, registry: FaultyRegistry, lists: ReferrerLists, status: int
    ) -> None:
        no_api(registry, status)
        for name in (b"a", b"b", b"c"):
            lists.of(digest_of(name))
        # What may be the server's passing trouble is asked for again, but not for each.
        assert {request.path for request in registry.asked(path="/referrers/")} == {
            f"/v2/app/referrers/{digest_of(b'a')}"
        }
        assert len(registry.asked("GET", "/manifests/")) == 3

    def test_a_bad_request_may_mean_this_digest_alone(self, registry: FaultyRegistry, lists: ReferrerLists) -> None:
        registry.faults.append(Fault(refusal(400, "DIGEST_INVALID"), path="/referrers/"))
        assert lists.of(SUBJECT) == ReferrerList()
        assert lists.of(digest_of(b"other")) == ReferrerList()
        assert len(registry.asked("GET", "/referrers/")) == 2
        assert [request.path for request in registry.asked("GET", "/manifests/")] == [f"/v2/app/manifests/{TAG}"]

    @pytest.mark.parametrize(
        ("action", "error"),
        [
            (refusal(403, "DENIED"), AuthenticationError),
            (refusal(500), RegistryError),
            (refusal(418), RegistryError),
            (page(b"<html>"), ArchiveError),
        ],
    )
    def test_no_other_failure_is_taken_for_an_empty_list(
        self, registry: FaultyRegistry, lists: ReferrerLists, action: Action, error: type[Exception]
    ) -> None:
        registry.faults.append(Fault(action, path="/referrers/", times=None))
        with pytest.raises(error):
            lists.of(SUBJECT)
        assert registry.asked(path="/manifests/") == []


class TestAdding:
    @pytest.fixture(autouse=True)
    def there(self, registry: FaultyRegistry) -> None:
        """Have what is listed in the registry, which refuses an index of what is not there."""
        registry.layout.create()
        for name in ("a", "b", "c"):
            path = registry.layout.blob_path(entry(name)["digest"])
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(name.encode())

    @staticmethod
    def kept(registry: FaultyRegistry) -> Any:
        raw = registry_http.manifest(registry.host, "app", TAG)
        return json.loads(raw) if raw else None

    @staticmethod
    def keep(registry: FaultyRegistry, content: bytes) -> None:
        with registry_http._connection(registry.host) as connection:  # noqa: SLF001 - exactly these bytes
            connection.request("PUT", f"/v2/app/manifests/{TAG}", content, {"Content-Type": OCI_INDEX})
            assert connection.getresponse().status == 201

    def test_a_list_is_begun_where_there_is_none(self, registry: FaultyRegistry, lists: ReferrerLists) -> None:
        lists.add(SUBJECT, [described(entry("a"))])
        assert self.kept(registry) == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry("a")]}

    def test_all_new_ones_are_added_at_once_and_what_is_there_stays(
        self, registry: FaultyRegistry, lists: ReferrerLists
    ) -> None:
        theirs = entry("a", annotations={"by": "others"}, unknown=[1])
        self.keep(registry, index_of(theirs, annotations={"of": "the list"}))
        registry.requests.clear()
        lists.add(SUBJECT, [described(entry(name)) for name in "abc"])
        assert self.kept(registry) == {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [theirs, entry("b"), entry("c")],
            "annotations": {"of": "the list"},
        }
        assert len(registry.asked("PUT")) == 1

    def test_nothing_is_written_where_nothing_is_new(self, registry: FaultyRegistry, lists: ReferrerLists) -> None:
        self.keep(registry, index_of(entry("a"), entry("b")))
        registry.requests.clear()
        lists.add(SUBJECT, [described(entry("b"))])
        assert registry.asked("PUT") == []

    def test_what_else_has_that_tag_is_not_overwritten(
        self, registry: FaultyRegistry, lists: ReferrerLists, layout: Layout
    ) -> None:
        image = small_image(layout)
        seed(layout, image, registry.host, "app", TAG)
        with pytest.raises(UnsupportedError, match=TAG) as caught:
            lists.add(SUBJECT, [described(entry("a"))])
        assert "--no-referrers" in (caught.value.hint or "")
        assert registry_http.manifest_digest(registry.host, "app", TAG) == image["digest"]

    def test_a_list_that_nobody_would_read_is_not_written(
        self, registry: FaultyRegistry, lists: ReferrerLists, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.keep(registry, index_of(entry("a"), entry("b")))
        registry.requests.clear()
        monkeypatch.setattr(limits, "MAX_LISTED", 2)
        with pytest.raises(UnsupportedError, match="too long"):
            lists.add(SUBJECT, [described(entry("c"))])
        assert registry.asked("PUT") == []
