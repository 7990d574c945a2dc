"""Serving an archive file: blobs are read in place, nothing is written, and corrupt content is never sent in full."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ocistream.errors import ArchiveError, NotFoundError, UnsupportedError
from ocistream.serve import AccessLogEntry, Registry
from tests.archives import blob_name, items_of, small_first, tar_of
from tests.docker_archives import archive_of, of_docker, plain_manifest, saved
from tests.images import Layout, digest_of, small_image, two_platforms
from tests.raw_http import Client
from tests.serve.served_layout import SetLimits

MIB = 1 << 20
LATER = b'{"imageLayoutVersion": "2.0.0"}'

Serve = Callable[..., Client]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that serves the bytes of an archive and returns a connection to the registry."""
    with ExitStack() as stack:

        def start(archive: bytes, name: str = "app.tar", log: list[AccessLogEntry] | None = None) -> Client:
            path = tmp_path / name
            path.write_bytes(archive)
            registry = Registry(path, log=log.append if log is not None else None)
            stack.callback(registry.stop)
            registry.start()
            client = Client(registry.host)
            return stack.enter_context(client)

        yield start


class TestReading:
    def test_manifests_are_served_by_tag_and_digest_and_blobs_in_ranges(self, layout: Layout, serve: Serve) -> None:
        image = layout.image([300_000], name="registry.example/team/app:v1")
        ask = serve(tar_of(small_first(layout)))
        raw = layout.file(image["digest"]).read_bytes()
        for reference in ("v1", image["digest"]):
            for repository in ("team/app", "registry.example/team/app"):
                answer = ask("GET", f"/v2/{repository}/manifests/{reference}")
                assert (answer.status, answer.body) == (200, raw)
                assert answer.headers["Content-Type"] == image["mediaType"]
                assert answer.headers["Docker-Content-Digest"] == image["digest"]
        layer = layout.read(image["digest"])["layers"][0]
        content = layout.file(layer["digest"]).read_bytes()
        target = f"/v2/team/app/blobs/{layer['digest']}"
        whole = ask("GET", target)
        assert (whole.status, whole.body, whole.headers["ETag"]) == (200, content, f'"{layer["digest"]}"')
        head = ask("HEAD", target)
        assert (head.status, head.headers["Content-Length"], head.body) == (200, str(layer["size"]), b"")
        part = ask("GET", target, headers={"Range": "bytes=1000-299999"})
        assert (part.status, part.body) == (206, content[1000:300_000])
        assert part.headers["Content-Range"] == f"bytes 1000-299999/{layer['size']}"
        assert ask("GET", target, headers={"Range": "bytes=-5"}).body == content[-5:]
        assert ask("GET", target, headers={"If-None-Match": f'"{layer["digest"]}"'}).status == 304
        assert ask("GET", f"/v2/team/app/blobs/{digest_of(b'none')}").codes == ["BLOB_UNKNOWN"]

    def test_tags_and_repositories_are_listed(self, layout: Layout, serve: Serve) -> None:
        small_image(layout, name="registry.example/team/app:v1")
        layout.image([4000], name="registry.example/team/app:v2")
        two_platforms(layout, name="docker.io/library/nginx:1")
        ask = serve(tar_of(small_first(layout)))
        assert ask("GET", "/v2/team/app/tags/list").json() == {"name": "team/app", "tags": ["v1", "v2"]}
        assert ask("GET", "/v2/team/app/tags/list?n=1").headers["Link"] == (
            '</v2/team/app/tags/list?n=1&last=v1>; rel="next"'
        )
        assert ask("GET", "/v2/_catalog").json() == {"repositories": ["library/nginx", "team/app"]}

    def test_referrers_are_listed(self, layout: Layout, serve: Serve) -> None:
        image = small_image(layout, name="registry.example/app:v1")
        signature = layout.artifact(b"signed", subject=image)
        layout.enter(signature)
        ask = serve(tar_of(small_first(layout)))
        target = f"/v2/app/referrers/{image['digest']}"
        assert [entry["digest"] for entry in ask("GET", target).json()["manifests"]] == [signature["digest"]]
        filtered = ask("GET", f"{target}?artifactType=application/vnd.other")
        assert (filtered.json()["manifests"], filtered.headers["OCI-Filters-Applied"]) == ([], "artifactType")
        assert ask("GET", f"/v2/app/manifests/{signature['digest']}").status == 200

    def test_a_docker_archive_is_served_with_generated_manifests(self, layout: Layout, serve: Serve) -> None:
        image = saved(layout, small_image(layout), "registry.example/team/app:v1", "nginx:1")
        ask = serve(archive_of(of_docker([image])))
        assert ask("GET", "/v2/_catalog").json() == {"repositories": ["library/nginx", "team/app"]}
        answer = ask("GET", "/v2/team/app/manifests/v1")
        assert answer.json() == plain_manifest(image)
        assert ask("GET", f"/v2/nginx/manifests/{digest_of(answer.body)}").body == answer.body
        for blob in (answer.json()["config"], *answer.json()["layers"]):
            assert digest_of(ask("GET", f"/v2/nginx/blobs/{blob['digest']}").body) == blob["digest"]
        assert ask("GET", f"/v2/nginx/referrers/{digest_of(answer.body)}").json()["manifests"] == []

    @pytest.mark.parametrize(("file", "repository"), [("App v1.tar", "app-v1"), ("app.tar", "app"), ("x", "x")])
    def test_an_unnamed_image_is_served_under_the_name_of_the_file(
        self, layout: Layout, serve: Serve, file: str, repository: str
    ) -> None:
        image = small_image(layout)
        layout.enter(image)
        ask = serve(tar_of(small_first(layout)), file)
        assert ask("GET", f"/v2/{repository}/tags/list").json()["tags"] == ["latest"]
        assert digest_of(ask("GET", f"/v2/{repository}/manifests/latest").body) == image["digest"]

    def test_a_bare_tag_is_served_under_the_name_of_the_file(self, layout: Layout, serve: Serve) -> None:
        small_image(layout, name="v1")
        ask = serve(tar_of(small_first(layout)))
        assert ask("GET", "/v2/app/tags/list").json()["tags"] == ["v1"]

    def test_an_archive_is_served_after_its_file_is_replaced(
        self, layout: Layout, serve: Serve, tmp_path: Path
    ) -> None:
        image = small_image(layout, name="v1")
        ask = serve(tar_of(small_first(layout)))
        (tmp_path / "new").write_bytes(b"another")
        (tmp_path / "new").replace(tmp_path / "app.tar")
        config = layout.read(image["digest"])["config"]["digest"]
        assert digest_of(ask("GET", f"/v2/app/blobs/{config}").body) == config


class TestWriting:
    def test_every_write_is_refused(self, layout: Layout, serve: Serve, tmp_path: Path) -> None:
        image = small_image(layout, name="v1")
        archive = tar_of(small_first(layout))
        ask = serve(archive)
        config = layout.read(image["digest"])["config"]["digest"]
        for method, target in [
            ("POST", "/v2/app/blobs/uploads/"),
            ("POST", f"/v2/app/blobs/uploads/?mount={config}&from=other"),
            ("POST", f"/v2/app/blobs/uploads/?digest={digest_of(b'x')}"),
            ("PATCH", "/v2/app/blobs/uploads/id"),
            ("PUT", f"/v2/app/blobs/uploads/id?digest={digest_of(b'x')}"),
            ("DELETE", "/v2/app/blobs/uploads/id"),
            ("PUT", "/v2/app/manifests/v2"),
            ("DELETE", "/v2/app/manifests/v1"),
            ("DELETE", f"/v2/app/manifests/{image['digest']}"),
            ("DELETE", f"/v2/app/blobs/{config}"),
        ]:
            answer = ask(method, target, b"x")
            assert answer.refusal == (405, ["UNSUPPORTED"]), target
            assert "this registry is read-only" in answer.json()["errors"][0]["message"]
        assert ask("GET", "/v2/app/blobs/uploads/id").codes == ["BLOB_UPLOAD_UNKNOWN"]
        assert (tmp_path / "app.tar").read_bytes() == archive
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["app.tar"]


class TestCorruption:
    @pytest.mark.parametrize("wanted", [None, "bytes=0-", "bytes=1000-", "bytes=-5"])
    @pytest.mark.parametrize("size", [4000, MIB])
    def test_a_corrupt_blob_is_never_sent_completely(
        self, layout: Layout, serve: Serve, size: int, wanted: str | None
    ) -> None:
        image = layout.image([size], name="v1")
        layer = layout.read(image["digest"])["layers"][0]
        log: list[AccessLogEntry] = []
        items = dict(small_first(layout))
        name = blob_name(layer["digest"])
        content = items[name]
        assert content is not None
        items[name] = bytes([content[0] ^ 1]) + content[1:]
        ask = serve(tar_of(items.items()), log=log)
        with pytest.raises(http.client.IncompleteRead) as caught:
            ask("GET", f"/v2/app/blobs/{layer['digest']}", headers={"Range": wanted} if wanted else {})
        assert len(caught.value.partial) < layer["size"]
        ask.connection.close()
        assert ask("GET", "/v2/").status == 200
        assert layer["digest"] in (log[0].problem or "")

    def test_the_end_of_a_very_large_blob_is_sent_without_reading_its_beginning(
        self, layout: Layout, serve: Serve, set_limits: SetLimits
    ) -> None:
        layer = layout.read(layout.image([4000], name="v1")["digest"])["layers"][0]
        items = dict(small_first(layout))
        content = bytes(layer["size"])
        items[blob_name(layer["digest"])] = content
        ask = serve(tar_of(items.items()))
        set_limits(MAX_VERIFIED_BEFORE_RANGE=999)
        answer = ask("GET", f"/v2/app/blobs/{layer['digest']}", headers={"Range": "bytes=1000-"})
        assert (answer.status, answer.body) == (206, content[1000:])
        with pytest.raises(http.client.IncompleteRead):
            ask("GET", f"/v2/app/blobs/{layer['digest']}", headers={"Range": "bytes=999-"})

    def test_a_corrupt_manifest_is_not_sent(self, layout: Layout, serve: Serve) -> None:
        image = small_image(layout, name="v1")
        items = dict(small_first(layout))
        name = blob_name(image["digest"])
        items[name] = (items[name] or b"").replace(b"\n ", b"\n\t", 1)
        ask = serve(tar_of(items.items()))
        for reference in ("v1", image["digest"]):
            assert ask("GET", f"/v2/app/manifests/{reference}").status == 500

    def test_a_truncated_archive_ends_the_connection(self, layout: Layout, serve: Serve, tmp_path: Path) -> None:
        image = layout.image([MIB], name="v1")
        layer = layout.read(image["digest"])["layers"][0]
        ask = serve(tar_of(small_first(layout)))
        with (tmp_path / "app.tar").open("r+b") as file:
            file.truncate(MIB // 2)
        for headers in ({}, {"Range": "bytes=0-"}):
            with pytest.raises(http.client.IncompleteRead):
                ask("GET", f"/v2/app/blobs/{layer['digest']}", headers=headers)
            ask.connection.close()


class TestUnsuitableFiles:
    def test_the_error_names_the_reason(self, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        archive = tar_of(small_first(layout))
        path = tmp_path / "app.tar"
        for content, error, match in [
            (gzip.compress(archive), UnsupportedError, "compressed"),
            (archive[:1500], ArchiveError, "truncated|ends"),
            (b"not a tar at all" * 64, ArchiveError, "no tar header"),
            (tar_of([("letter", b"Dear reader")]), ArchiveError, "not an image archive"),
            (tar_of([*items_of(layout), ("oci-layout", b"{}")]), ArchiveError, "twice"),
            (tar_of({**dict(items_of(layout)), "oci-layout": LATER}.items()), ArchiveError, "version '2.0.0'"),
        ]:
            path.write_bytes(content)
            with pytest.raises(error, match=match):
                Registry(path)
        with pytest.raises(NotFoundError):
            Registry(tmp_path / "missing.tar", read_only=True)

    @pytest.mark.parametrize(
        ("note", "text", "match", "hint"),
        [
            (
                "vnd.ocistream.omitted",
                f"# have x\n{digest_of(b'x')}",
                "without some of its blobs",
                "a registry that has",
            ),
            ("vnd.ocistream.volume", f"0 2 {digest_of(b'plan')} app.%03d.tar", "one of several volumes", "all volumes"),
        ],
    )
    def test_an_incomplete_archive_is_refused(
        self, layout: Layout, tmp_path: Path, note: str, text: str, match: str, hint: str
    ) -> None:
        small_image(layout, name="v1")
        items = dict(small_first(layout))
        index = json.loads(items["index.json"] or b"")
        items["index.json"] = json.dumps({**index, "annotations": {note: text}}).encode()
        path = tmp_path / "app.tar"
        path.write_bytes(tar_of(items.items()))
        with pytest.raises(ArchiveError, match=match) as caught:
            Registry(path)
        assert hint in (caught.value.hint or "")
