"""Names: repositories and tags for the entries of a layout, the catalog, pages, and referrers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ocistream.serve import Registry
from tests.images import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, Layout, digest_of, small_image
from tests.raw_http import Client
from tests.registry_http import seed
from tests.schemas import validate
from tests.serve.served_layout import Served, SetLimits

FULL = "io.containerd.image.name"
PLAIN = "org.opencontainers.image.ref.name"
Serve = Callable[..., Client]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that serves one image, listed once with each of the annotations."""
    with ExitStack() as stack:

        def start(*annotations: dict[str, str], directory: str = "images") -> Client:
            layout = Layout(tmp_path / directory)
            image = small_image(layout)
            layout.enter(*({**image, "annotations": each} for each in annotations))
            registry = stack.enter_context(Registry(layout.path, read_only=True))
            return stack.enter_context(Client(registry.host))

        yield start


def catalog(ask: Client) -> list[str]:
    return list(ask("GET", "/v2/_catalog").json()["repositories"])


class TestNames:
    @pytest.mark.parametrize(
        ("annotations", "served_as", "not_as"),
        [
            ({FULL: "quay.io/org/app:v1", PLAIN: "v1"}, ["org/app", "quay.io/org/app"], ["app", "images"]),
            ({FULL: "docker.io/library/app:v1"}, ["library/app", "docker.io/library/app", "app"], []),
            ({FULL: "docker.io/org/app:v1"}, ["org/app", "docker.io/org/app"], ["app"]),
            ({FULL: "quay.io/library/app:v1"}, ["library/app", "quay.io/library/app"], ["app"]),
            ({FULL: "localhost:5000/app:v1"}, ["app"], ["localhost:5000/app", "localhost%3A5000/app"]),
            ({FULL: "[::1]:5000/app:v1"}, ["app"], []),
            ({FULL: "localhost/app:v1"}, ["app", "localhost/app"], []),
            ({FULL: "Nonsense!", PLAIN: "app:v1"}, ["app", "library/app"], []),
            ({PLAIN: "app:v1"}, ["app", "library/app", "docker.io/library/app"], ["images"]),
            ({PLAIN: "quay.io/org/app:v1"}, ["org/app", "quay.io/org/app"], []),
            ({PLAIN: "v1"}, ["images"], ["app", "library/images"]),
        ],
    )
    def test_an_entry_is_served_under_each_spelling_of_its_name(
        self, serve: Serve, annotations: dict[str, str], served_as: list[str], not_as: list[str]
    ) -> None:
        ask = serve(annotations)
        for repository in served_as:
            assert ask("HEAD", f"/v2/{repository}/manifests/v1").status == 200
            assert ask("GET", f"/v2/{repository}/tags/list").json() == {"name": repository, "tags": ["v1"]}
        for repository in not_as:
            assert ask("HEAD", f"/v2/{repository}/manifests/v1").status in {400, 404}
        assert catalog(ask) == served_as[:1]

    @pytest.mark.parametrize("name", ["quay.io/org/app", "org/app"])
    def test_a_name_without_a_tag_is_the_latest(self, serve: Serve, name: str) -> None:
        assert serve({PLAIN: name})("HEAD", "/v2/org/app/manifests/latest").status == 200

    @pytest.mark.parametrize(
        "annotations",
        [
            {},
            {PLAIN: ""},
            {PLAIN: "no name!"},
            {PLAIN: f"quay.io/org/app@{digest_of(b'')}"},
            {FULL: f"quay.io/org/app@{digest_of(b'')}"},
            {"other": "app:v1"},
        ],
    )
    def test_an_entry_without_a_name_is_served_by_its_digest_only(
        self, serve: Serve, annotations: dict[str, str], tmp_path: Path
    ) -> None:
        ask = serve(annotations)
        digest = json.loads((tmp_path / "images/index.json").read_bytes())["manifests"][0]["digest"]
        assert catalog(ask) == []
        assert ask("HEAD", f"/v2/anything/manifests/{digest}").status == 200

    @pytest.mark.parametrize(
        ("directory", "repository"),
        [("images", "images"), ("My Images!", "my-images"), ("a__b.c", "a__b.c"), ("...", "layout"), ("Ä", "layout")],
    )
    def test_a_bare_tag_belongs_to_a_repository_named_like_the_directory(
        self, serve: Serve, directory: str, repository: str
    ) -> None:
        ask = serve({PLAIN: "v1"}, directory=directory)
        assert catalog(ask) == [repository]
        assert ask("HEAD", f"/v2/{repository}/manifests/v1").status == 200

    def test_a_relative_path_gives_the_same_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = Layout(tmp_path / "images")
        small_image(layout, name="v1")
        monkeypatch.chdir(layout.path)
        with Registry(Path()) as registry, Client(registry.host) as ask:
            assert catalog(ask) == ["images"]

    def test_the_later_of_two_entries_with_one_short_name_is_served(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path / "images")
        small_image(layout, name="quay.io/app:v1")
        later = small_image(layout, name="ghcr.io/app:v1", media="docker")
        with Registry(layout.path) as registry, Client(registry.host) as ask:
            found = ask("HEAD", "/v2/app/manifests/v1")
            assert found.headers["Docker-Content-Digest"] == later["digest"]
            assert ask("HEAD", "/v2/quay.io/app/manifests/v1").status == 200

    def test_a_push_replaces_the_entry_served_under_that_name(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path / "images")
        small_image(layout, name="docker.io/library/app:v1")
        small_image(layout, name="docker.io/library/app:v2")
        new = small_image(layout, media="docker")
        with Registry(layout.path) as registry, Client(registry.host) as ask:
            seed(layout, new, registry.host, "app", "v1")
            assert ask("HEAD", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == new["digest"]
            assert ask("HEAD", "/v2/library/app/manifests/v1").status == 404
            assert ask("HEAD", "/v2/library/app/manifests/v2").status == 200


class TestTags:
    @pytest.fixture
    def ask(self, serve: Serve) -> Client:
        return serve(*({FULL: f"quay.io/app:{tag}"} for tag in ("v2", "v10", "V1", "latest", "v1")))

    def test_tags_are_listed_in_the_order_of_the_specification_which_ignores_case(self, ask: Client) -> None:
        answer = ask("GET", "/v2/app/tags/list")
        assert answer.json() == {"name": "app", "tags": ["latest", "V1", "v1", "v10", "v2"]}
        assert answer.headers["Content-Type"] == "application/json"
        assert "Link" not in answer.headers

    def test_an_unknown_repository_has_no_list(self, ask: Client) -> None:
        assert ask("GET", "/v2/other/tags/list").refusal == (404, ["NAME_UNKNOWN"])

    @pytest.mark.parametrize(
        ("query", "tags", "link"),
        [
            ("?n=2", ["latest", "V1"], "?n=2&last=V1"),
            ("?n=2&last=V1", ["v1", "v10"], "?n=2&last=v10"),
            ("?n=2&last=v10", ["v2"], None),
            ("?n=5", ["latest", "V1", "v1", "v10", "v2"], None),
            ("?n=0", [], None),
            ("?last=v1", ["v10", "v2"], None),
            ("?last=nothing", ["V1", "v1", "v10", "v2"], None),
            ("?last=LATEST", ["latest", "V1", "v1", "v10", "v2"], None),
            ("?last=zzz&n=3", [], None),
            ("?n=", ["latest", "V1", "v1", "v10", "v2"], None),
        ],
    )
    def test_pages_are_limited_and_linked(self, ask: Client, query: str, tags: list[str], link: str | None) -> None:
        answer = ask("GET", f"/v2/app/tags/list{query}")
        assert answer.json()["tags"] == tags
        expected = None if link is None else f'</v2/app/tags/list{link}>; rel="next"'
        assert answer.headers["Link"] == expected

    @pytest.mark.parametrize("count", ["-1", "many", "1" * 5000, "1.5"])
    def test_a_malformed_page_size_is_refused(self, ask: Client, count: str) -> None:
        assert ask("GET", f"/v2/app/tags/list?n={count}").refusal == (400, ["UNSUPPORTED"])


def test_the_catalog_has_pages(serve: Serve) -> None:
    ask = serve(*({FULL: f"quay.io/{name}:v1"} for name in ("b/c", "a", "c")))
    first = ask("GET", "/v2/_catalog?n=2")
    assert first.json() == {"repositories": ["a", "b/c"]}
    assert first.headers["Link"] == '</v2/_catalog?n=2&last=b%2Fc>; rel="next"'
    rest = ask("GET", first.headers["Link"].split(">")[0][1:])
    assert rest.json() == {"repositories": ["c"]}
    assert "Link" not in rest.headers


class TestReferrers:
    SUBJECT = digest_of(b"subject")

    def refer(self, ask: Client, reference: str | None = None, **fields: Any) -> str:
        """Push a manifest whose subject is `SUBJECT`."""
        ask.upload(b"{}")
        empty = {"mediaType": OCI_EMPTY, "digest": digest_of(b"{}"), "size": 2}
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": empty,
            "layers": [empty],
            "subject": {"mediaType": OCI_MANIFEST, "digest": self.SUBJECT, "size": 7},
            **fields,
        }
        return ask.push({key: value for key, value in document.items() if value is not None}, reference)

    def list(self, ask: Client, query: str = "") -> list[dict[str, Any]]:
        answer = ask("GET", f"/v2/app/referrers/{self.SUBJECT}{query}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_INDEX)
        validate(answer.body, "index")
        return list(answer.json()["manifests"])

    def test_a_missing_subject_has_no_referrers(self, ask: Client) -> None:
        assert self.list(ask) == []

    def test_referrers_are_described_with_type_and_annotations(self, ask: Client) -> None:
        notes = {"org.example": "value"}
        typed = self.refer(ask, artifactType="application/vnd.example.sbom", annotations=notes)
        by_config = self.refer(ask, "tagged", annotations={})
        index = self.refer(ask, mediaType=OCI_INDEX, manifests=[], config=None, layers=None)
        found = {entry["digest"]: entry for entry in self.list(ask)}
        size = int(ask("HEAD", f"/v2/app/manifests/{typed}").headers["Content-Length"])
        assert found == {
            typed: {
                "mediaType": OCI_MANIFEST,
                "digest": typed,
                "size": size,
                "artifactType": "application/vnd.example.sbom",
                "annotations": notes,
            },
            by_config: {
                "mediaType": OCI_MANIFEST,
                "digest": by_config,
                "size": found[by_config]["size"],
                "artifactType": OCI_EMPTY,
            },
            index: {"mediaType": OCI_INDEX, "digest": index, "size": found[index]["size"]},
        }

    def test_malformed_annotations_are_omitted(self, ask: Client) -> None:
        self.refer(ask, annotations={"a": 1})
        assert "annotations" not in self.list(ask)[0]

    @pytest.mark.parametrize("encoded", ["application/vnd.example.sbom%2Bjson", "application/vnd.example.sbom+json"])
    def test_referrers_are_filtered_by_type(self, ask: Client, encoded: str) -> None:
        wanted = self.refer(ask, artifactType="application/vnd.example.sbom+json")
        self.refer(ask, artifactType="application/vnd.example.signature")
        assert [entry["digest"] for entry in self.list(ask, f"?artifactType={encoded}")] == [wanted]
        assert self.list(ask, "?artifactType=a/b") == []
        answer = ask("GET", f"/v2/app/referrers/{self.SUBJECT}?artifactType=a/b")
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
        assert "OCI-Filters-Applied" not in ask("GET", f"/v2/app/referrers/{self.SUBJECT}").headers

    def test_a_referrer_inside_an_index_is_found(self, ask: Client, served: Served) -> None:
        digest = self.refer(ask, artifactType="a/b")
        size = int(ask("HEAD", f"/v2/app/manifests/{digest}").headers["Content-Length"])
        entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": size}
        ask.push({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}, "sha256-fallback")
        served.stop()
        with Registry(served.path) as again, Client(again.host) as other:
            assert [entry["digest"] for entry in self.list(other)] == [digest]

    def test_deleted_and_damaged_referrers_are_not_listed(self, ask: Client, served: Served) -> None:
        stays = self.refer(ask, artifactType="a/stays")
        deleted = self.refer(ask, artifactType="a/deleted")
        gone = self.refer(ask, artifactType="a/gone")
        damaged = self.refer(ask, artifactType="a/damaged")
        assert len(self.list(ask)) == 4
        ask("DELETE", f"/v2/app/manifests/{deleted}")
        served.blob(gone).unlink()
        assert [entry["digest"] for entry in self.list(ask)] == [stays, damaged]
        served.blob(damaged).write_bytes(b"{}")
        served.stop()
        with Registry(served.path) as again, Client(again.host) as other:
            assert [entry["digest"] for entry in self.list(other)] == [stays]

    def test_many_referrers_are_listed_in_pages_of_the_size_of_a_manifest(
        self, ask: Client, set_limits: SetLimits
    ) -> None:
        digests = [self.refer(ask, artifactType="a/b+c", annotations={"a": str(n) * 900}) for n in range(5)]
        set_limits(MAX_MANIFEST=4096)
        target: str | None = f"/v2/app/referrers/{self.SUBJECT}?artifactType=a/b%2Bc"
        pages: list[list[str]] = []
        while target:
            answer = ask("GET", target)
            assert len(answer.body) <= 4096
            pages.append([entry["digest"] for entry in answer.json()["manifests"]])
            link = answer.headers["Link"]
            target = link.split(">")[0][1:] if link else None
        assert [digest for page in pages for digest in page] == digests
        assert len(pages) > 1
        whole = ask("GET", f"/v2/app/referrers/{self.SUBJECT}")
        assert whole.headers["Link"].endswith(f'?last={pages[0][-1]}>; rel="next"')

    def test_a_referrer_larger_than_a_page_gets_its_own_page(self, ask: Client, set_limits: SetLimits) -> None:
        for number in range(2):
            self.refer(ask, annotations={"a": str(number) * 900})
        set_limits(MAX_MANIFEST=1500)
        assert len(self.list(ask)) == 1
