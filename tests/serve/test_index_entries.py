"""What the embedded registry enters into `index.json`, and takes out again, beside others who do the same."""

from __future__ import annotations

import dataclasses
import gc
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ocistream import limits
from ocistream.model import Descriptor
from ocistream.serve import Registry
from ocistream.serve.repositories import Repositories
from ocistream.serve.storage import DirectoryStorage
from tests.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    Layout,
    digest_of,
    small_image,
)
from tests.pushing import entries, image, index_of, untagged
from tests.talking import Client

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


class TestUntagged:
    def test_a_manifest_that_is_pushed_by_digest_survives_a_restart(self, ask: Client, served: Registry) -> None:
        digest = ask.push(image(ask))
        assert untagged(served) == [digest]
        served.stop()
        with Registry(served.layout.path) as again, Client(again.host) as other:
            assert other("GET", f"/v2/app/manifests/{digest}").status == 200

    def test_pushed_twice_it_is_entered_once(self, ask: Client, served: Registry) -> None:
        document = image(ask)
        ask.push(document)
        assert untagged(served) == [ask.push(document)]

    def test_the_images_of_an_index_are_entered_until_the_index_is(self, ask: Client, served: Registry) -> None:
        documents = [image(ask, b"one"), image(ask, b"two")]
        other = ask.push(image(ask, b"other"))
        digests = [ask.push(document) for document in documents]
        assert untagged(served) == [other, *digests]
        inner = ask.push(index_of(*documents))
        assert untagged(served) == [other, inner]
        ask.push(index_of(index_of(*documents)), "v1")
        ask.push(index_of(documents[0]), "v2")
        assert untagged(served) == [other]
        assert ask.push(documents[0]) == digests[0]
        assert untagged(served) == [other]

    def test_one_that_gets_a_tag_is_not_entered_twice(self, ask: Client, served: Registry) -> None:
        document = image(ask)
        ask.push(document)
        ask.push(document, "v1")
        assert len(entries(served)) == 1
        ask.push(document)
        assert untagged(served) == []

    def test_what_is_called_as_cosign_calls_signatures_keeps_its_tag(self, ask: Client, served: Registry) -> None:
        """Such an entry, as a pull into a directory leaves it, has a name, and not an image's."""
        document = image(ask)
        digest, tag = ask.push(document), f"sha256-{'a' * 64}.sig"
        name = f"registry.example.com/app:{tag}"

        def called(listed: list[Descriptor]) -> list[Descriptor]:
            return [dataclasses.replace(entry, annotations={"vnd.ocistream.image.name": name}) for entry in listed]

        served.layout.change_index(called)
        ask.push(document)
        assert len(entries(served)) == 1
        assert ask("GET", f"/v2/app/manifests/{tag}").headers["Docker-Content-Digest"] == digest

    def test_one_image_may_have_many_tags(self, ask: Client, served: Registry) -> None:
        document = image(ask)
        for tag in ("v1", "v1.0", "latest"):
            ask.push(document, tag)
        assert len(entries(served)) == 3
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["latest", "v1", "v1.0"]


class TestDeleting:
    def test_a_deleted_tag_is_gone_and_the_others_stay(self, ask: Client, served: Registry) -> None:
        digest = ask.push(image(ask), "v1")
        ask.push(image(ask), "v2")
        answer = ask("DELETE", "/v2/app/manifests/v1")
        assert (answer.status, answer.body) == (202, b"")
        assert ask("GET", "/v2/app/manifests/v1").status == 404
        assert ask("GET", "/v2/app/manifests/v2").headers["Docker-Content-Digest"] == digest
        assert ask("DELETE", "/v2/app/manifests/v1").codes == ["MANIFEST_UNKNOWN"]
        assert len(entries(served)) == 1

    def test_a_deleted_manifest_is_gone_with_all_its_tags(self, ask: Client, served: Registry) -> None:
        document = image(ask)
        ask.push(document, "v1")
        digest = ask.push(document, "v2")
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 202
        for reference in ("v1", "v2", digest):
            assert ask("GET", f"/v2/app/manifests/{reference}").status == 404
        assert entries(served) == []
        assert ask("HEAD", f"/v2/app/blobs/{digest_of(b'layer')}").status == 200
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 404

    def test_one_without_a_tag_is_deleted_from_anywhere(self, ask: Client, served: Registry) -> None:
        digest = ask.push(image(ask))
        assert ask("DELETE", f"/v2/other/manifests/{digest}").status == 202
        assert entries(served) == []

    def test_what_another_repository_has_stays_there(self, ask: Client) -> None:
        document = image(ask)
        digest = ask.push(document, "v1")
        ask.push(document, "v1", "other")
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 202
        assert ask("GET", "/v2/app/manifests/v1").status == 404
        assert ask("GET", "/v2/other/manifests/v1").json() == document
        answer = ask("DELETE", f"/v2/app/manifests/{digest}")
        assert (answer.status, answer.codes) == (405, ["UNSUPPORTED"])

    def test_an_image_that_an_index_lists_is_not_torn_out_of_it(self, ask: Client) -> None:
        document = image(ask)
        digest = ask.push(document)
        index = ask.push(index_of(document), "v1")
        answer = ask("DELETE", f"/v2/app/manifests/{digest}")
        assert (answer.status, answer.codes) == (405, ["UNSUPPORTED"])
        assert ask("GET", f"/v2/app/manifests/{digest}").status == 200
        assert ask("DELETE", f"/v2/app/manifests/{index}").status == 202
        assert ask("DELETE", f"/v2/app/manifests/{digest}").status == 202
        assert ask("GET", f"/v2/app/manifests/{digest}").status == 404

    def test_a_tag_in_a_layout_without_its_manifest_can_be_deleted(self, ask: Client, served: Registry) -> None:
        served.layout.blob_path(ask.push(image(ask), "v1")).unlink()
        assert ask("DELETE", "/v2/app/manifests/v1").status == 202


class TestOthersAtWork:
    def test_what_another_process_enters_is_seen_at_once(self, ask: Client, served: Registry) -> None:
        assert ask("GET", "/v2/_catalog").json() == {"repositories": []}
        layout = Layout(served.layout.path)
        image = small_image(layout, name="app:v1")
        assert ask("GET", "/v2/app/manifests/v1").headers["Docker-Content-Digest"] == image["digest"]
        assert ask("GET", "/v2/_catalog").json() == {"repositories": ["app"]}

    def test_two_registries_over_one_layout_lose_nothing_of_each_other(self, ask: Client, served: Registry) -> None:
        document = image(ask)
        with Registry(served.layout.path) as second, Client(second.host) as other:
            for number in range(5):
                ask.push(document, f"a{number}")
                other.push(document, f"b{number}")
            tags = [f"{letter}{number}" for letter in "ab" for number in range(5)]
            assert ask("GET", "/v2/app/tags/list").json()["tags"] == tags

    def test_many_clients_push_at_once(self, ask: Client, served: Registry, tmp_path: Path) -> None:
        documents = [image(ask, b"%d" % number) for number in range(16)]

        def push(number: int) -> str:
            with Client(served.host) as client:
                return client.push(documents[number], f"v{number}")

        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(push, range(16)))
        assert {entry["digest"] for entry in entries(served)} == set(digests)
        assert list(tmp_path.rglob(".*")) == []


class TestMuch:
    """An index may list ten thousand others, and a layout have thousands of them."""

    @pytest.fixture(autouse=True)
    def nothing_is_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MAX_LINKED", 0)

    def test_what_is_not_remembered_is_known_all_the_same(self, ask: Client, served: Registry) -> None:
        documents = [image(ask, b"one"), image(ask, b"two")]
        digests = [ask.push(document) for document in documents]
        index = ask.push(index_of(*documents), "v1")
        assert untagged(served) == []
        subject = {key: index_of(documents[0])["manifests"][0][key] for key in ("mediaType", "digest", "size")}
        referrer = ask.push({**index_of(documents[1]), "subject": subject})
        for _ in range(2):
            found = ask("GET", f"/v2/app/referrers/{digests[0]}").json()["manifests"]
            assert [entry["digest"] for entry in found] == [referrer]
        assert ask("DELETE", f"/v2/app/manifests/{digests[0]}").status == 405
        assert ask("DELETE", f"/v2/app/manifests/{index}").status == 202
        assert ask("DELETE", f"/v2/app/manifests/{digests[1]}").status == 405

    def test_what_is_only_listed_takes_no_memory(self, layout: Layout) -> None:
        absent = [
            [{"mediaType": OCI_MANIFEST, "digest": digest_of(b"%d %d" % (n, m)), "size": 1} for m in range(2000)]
            for n in range(20)
        ]
        made = [layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": some}) for some in absent]
        path = layout.path / "index.json"
        path.write_text(json.dumps({"schemaVersion": 2, "manifests": made}))
        repositories = Repositories(DirectoryStorage(layout.path))
        tracemalloc.start()
        try:
            assert repositories.referrers(digest_of(b"nobody")) == []
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 4 << 20
        finally:
            tracemalloc.stop()
