"""Entries of `index.json`: added and removed by pushes and deletes, while other processes change the file."""

from __future__ import annotations

import gc
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ocistream.serve import Registry
from tests.http_push import entries, image, index_of, untagged
from tests.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    Layout,
    digest_of,
    small_image,
)
from tests.raw_http import Client
from tests.serve.served_layout import Served, SetLimits

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


class TestUntagged:
    def test_a_manifest_pushed_by_digest_survives_a_restart(self, ask: Client, served: Served) -> None:
        digest = ask.push(image(ask))
        assert untagged(served.path) == [digest]
        served.stop()
        with Registry(served.path) as again, Client(again.host) as other:
            assert other("GET", f"/v2/app/manifests/{digest}").status == 200

    def test_a_manifest_pushed_twice_is_listed_once(self, ask: Client, served: Served) -> None:
        document = image(ask)
        ask.push(document)
        assert untagged(served.path) == [ask.push(document)]

    def test_manifests_of_an_index_are_listed_until_the_index_is(self, ask: Client, served: Served) -> None:
        documents = [image(ask, b"one"), image(ask, b"two")]
        other = ask.push(image(ask, b"other"))
        digests = [ask.push(document) for document in documents]
        assert untagged(served.path) == [other, *digests]
        inner = ask.push(index_of(*documents))
        assert untagged(served.path) == [other, inner]
        ask.push(index_of(index_of(*documents)), "v1")
        ask.push(index_of(documents[0]), "v2")
        assert untagged(served.path) == [other]
        assert ask.push(documents[0]) == digests[0]
        assert untagged(served.path) == [other]

    def test_a_manifest_that_gets_a_tag_is_not_listed_twice(self, ask: Client, served: Served) -> None:
        document = image(ask)
        ask.push(document)
        ask.push(document, "v1")
        assert len(entries(served.path)) == 1
        ask.push(document)
        assert untagged(served.path) == []

    def test_an_entry_with_the_name_of_a_cosign_signature_keeps_its_tag(self, ask: Client, served: Served) -> None:
        """A pull into a directory leaves such an entry: the name is not that of an image."""
        document = image(ask)
        digest, tag = ask.push(document), f"sha256-{'a' * 64}.sig"
        name = f"registry.example.com/app:{tag}"

        named = [{**entry, "annotations": {"vnd.ocistream.image.name": name}} for entry in entries(served.path)]
        (served.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": named}))
        ask.push(document)
        assert len(entries(served.path)) == 1
        assert ask("GET", f"/v2/app/manifests/{tag}").headers["Docker-Content-Digest"] == digest

    def test_one_image_may_have_many_tags(self, ask: Client, served: Served) -> None:
        document = image(ask)
        for tag in ("v1", "v1.0", "latest"):
            ask.push(document, tag)
        assert len(entries(served.path)) == 3
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["latest", "v1", "v1.0"]


class TestDeleting:
    def test_a_deleted_tag_is_gone_and_the_others_stay(self, ask: Client, served: Served) -> None:
        digest = ask.push(image(ask), "v1")
        ask.push(image(ask), "v2")
        answer = ask("DELETE", "/v2/app/manifests/v1")
        assert (answer.status, answer.body) == (202, b"")
        assert ask("GET", "/v2/app/manifests/v1").status == 404
        assert ask("GET", "/v2/app/manifests/v2").headers["Docker-Content-Digest"] == digest
        assert ask("DELETE", "/v2/app/manifests/v1").codes == ["MANIFEST_UNKNOWN"]
        assert len(entries(served.path)) == 1

    def test_a_deleted_manifest_is_gone_with_all_its_tags(self, ask: Client, served: Served) -> None:
        document = image(ask)
        ask.push(document, "v1")
        digest = ask.push(document, "v2")
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 202
        for reference in ("v1", "v2", digest):
            assert ask("GET", f"/v2/app/manifests/{reference}").status == 404
        assert entries(served.path) == []
        assert ask("HEAD", f"/v2/app/blobs/{digest_of(b'layer')}").status == 200
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 404

    def test_an_untagged_manifest_is_deleted_from_any_repository(self, ask: Client, served: Served) -> None:
        digest = ask.push(image(ask))
        assert ask("DELETE", f"/v2/other/manifests/{digest}").status == 202
        assert entries(served.path) == []

    def test_a_manifest_stays_in_other_repositories(self, ask: Client) -> None:
        document = image(ask)
        digest = ask.push(document, "v1")
        ask.push(document, "v1", "other")
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 202
        assert ask("GET", "/v2/app/manifests/v1").status == 404
        assert ask("GET", "/v2/other/manifests/v1").json() == document
        assert ask("DELETE", f"/v2/app/manifests/{digest}").refusal == (405, ["UNSUPPORTED"])

    def test_a_manifest_listed_by_an_index_cannot_be_deleted(self, ask: Client) -> None:
        document = image(ask)
        digest = ask.push(document)
        index = ask.push(index_of(document), "v1")
        assert ask("DELETE", f"/v2/app/manifests/{digest}").refusal == (405, ["UNSUPPORTED"])
        assert ask("GET", f"/v2/app/manifests/{digest}").status == 200
        assert ask("DELETE", f"/v2/app/manifests/{index}").status == 202
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 202
        assert ask("GET", f"/v2/app/manifests/{digest}").status == 404

    def test_a_tag_whose_manifest_is_missing_can_be_deleted(self, ask: Client, served: Served) -> None:
        served.blob(ask.push(image(ask), "v1")).unlink()
        assert ask("DELETE", "/v2/app/manifests/v1").status == 202


class TestConcurrency:
    def test_an_entry_by_another_process_is_served_at_once(self, ask: Client, served: Served) -> None:
        assert ask("GET", "/v2/_catalog").json() == {"repositories": []}
        layout = Layout(served.path)
        image = small_image(layout, name="app:v1")
        assert ask("GET", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == image["digest"]
        assert ask("GET", "/v2/_catalog").json() == {"repositories": ["app"]}

    def test_two_registries_over_one_layout_lose_no_push(self, ask: Client, served: Served) -> None:
        document = image(ask)
        with Registry(served.path) as second, Client(second.host) as other:
            for number in range(5):
                ask.push(document, f"a{number}")
                other.push(document, f"b{number}")
            tags = [f"{letter}{number}" for letter in "ab" for number in range(5)]
            assert ask("GET", "/v2/app/tags/list").json()["tags"] == tags

    def test_many_clients_push_at_once(self, ask: Client, served: Served, tmp_path: Path) -> None:
        documents = [image(ask, b"%d" % number) for number in range(16)]

        def push(number: int) -> str:
            with Client(served.host) as client:
                return client.push(documents[number], f"v{number}")

        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(push, range(16)))
        assert {entry["digest"] for entry in entries(served.path)} == set(digests)
        assert list(tmp_path.rglob(".*")) == []


class TestLargeIndexes:
    """An index may list ten thousand manifests, and a layout may contain thousands of indexes."""

    @pytest.fixture(autouse=True)
    def no_cache(self, set_limits: SetLimits) -> None:
        set_limits(MAX_CACHED_INDEX_ENTRIES=0)

    def test_links_that_are_not_cached_are_still_found(self, ask: Client, served: Served) -> None:
        documents = [image(ask, b"one"), image(ask, b"two")]
        digests = [ask.push(document) for document in documents]
        index = ask.push(index_of(*documents), "v1")
        assert untagged(served.path) == []
        subject = {key: index_of(documents[0])["manifests"][0][key] for key in ("mediaType", "digest", "size")}
        referrer = ask.push({**index_of(documents[1]), "subject": subject})
        for _ in range(2):
            found = ask("GET", f"/v2/app/referrers/{digests[0]}").json()["manifests"]
            assert [entry["digest"] for entry in found] == [referrer]
        assert ask("DELETE", f"/v2/app/manifests/{digests[0]}").status == 405
        assert ask("DELETE", f"/v2/app/manifests/{index}").status == 202
        assert ask("DELETE", f"/v2/app/manifests/{digests[1]}").status == 405

    @pytest.mark.uncounted
    def test_entries_that_are_only_listed_take_little_memory(self, layout: Layout) -> None:
        absent = [
            [{"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d %d" % (n, m)), "size": 1} for m in range(2000)]
            for n in range(2)
        ]
        made = [layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": some}) for some in absent]
        path = layout.path / "index.json"
        path.write_text(json.dumps({"schemaVersion": 2, "manifests": made}))
        with Registry(layout.path) as registry, Client(registry.host) as ask:
            tracemalloc.start()
            try:
                assert ask("GET", f"/v2/app/referrers/{digest_of(b'nobody')}").json()["manifests"] == []
                gc.collect()
                assert tracemalloc.get_traced_memory()[0] < 256 << 10
            finally:
                tracemalloc.stop()
