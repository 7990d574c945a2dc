"""`ocistream have`: the digests of a location, and which of given digests it has."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

import ocistream as package
from ocistream import limits
from tests.archives import items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.forms import FORMS, location
from tests.docker_archives import archive_of, of_docker, saved
from tests.faulty_registry import Fault, FaultyRegistry, Reply, refusal
from tests.images import OCI_LAYER, Descriptor, Layout, digest_of, small_image, two_platforms
from tests.registry_http import seed
from tests.runner import Argument, Result, measured, ocistream

ENDS = [*FORMS, "path", "gzip", "repository"]
OTHER = digest_of(b"nobody has this")


def listed(result: Result, *origins: str) -> set[str]:
    """Return the digests of a list, after a check of its header."""
    assertions.success(result)
    header = [line for line in result.lines() if line.startswith("#")]
    digests = [line for line in result.lines() if not line.startswith("#")]
    assert header == [
        "# ocistream have 1",
        *(f"# origin {origin}" for origin in origins),
        f"# by ocistream {package.__version__}",
        f"# digests {len(digests)}",
    ]
    assert result.lines() == header + digests
    assert digests == sorted(set(digests))
    return set(digests)


def everything(layout: Layout) -> set[str]:
    return {f"sha256:{path.name}" for path in (layout.path / "blobs" / "sha256").iterdir()}


class End:
    """The content of a layout in a location of any kind: its argument, its stdin, and its name in the list."""

    def __init__(self, kind: str, layout: Layout, registry: FaultyRegistry, folder: Path) -> None:
        self.text, self.stdin = location(kind if kind in FORMS else "layout", layout, folder)
        self.origin = self.text
        if kind == "path":
            self.text = str(layout.path)
        elif kind == "gzip":
            self.text = self.origin = str(folder / "x.tar.gz")
            Path(self.text).write_bytes(gzip.compress(tar_of(items_of(layout))))
        elif kind == "repository":
            self.text = self.origin = f"{registry.host}/app"
            for entry in layout.entries:
                tag = entry["annotations"]["org.opencontainers.image.ref.name"]
                seed(layout, entry, registry.host, "app", tag)

    def have(self, *options: Argument) -> Result:
        return ocistream("have", self.text, *options, stdin=self.stdin)


@pytest.mark.parametrize("kind", ENDS)
class TestLocations:
    def test_all_blobs_are_listed(self, kind: str, layout: Layout, served: FaultyRegistry, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        two_platforms(layout, name="both")
        end = End(kind, layout, served, tmp_path)
        assert listed(end.have(), end.origin) == everything(layout)

    def test_missing_blobs_are_not_listed(
        self, kind: str, layout: Layout, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        image = small_image(layout, name="v1")
        gone = layout.read(image["digest"])["layers"][1]["digest"]
        end = End(kind, layout, served, tmp_path)
        if kind == "repository":
            served.layout.delete_blob(gone)
        else:
            layout.file(gone).unlink()
            end = End(kind, layout, served, tmp_path)
        found = listed(end.have(), end.origin)
        assert gone not in found
        assert image["digest"] in found

    def test_among_lists_only_existing_blobs(
        self, kind: str, layout: Layout, served: FaultyRegistry, tmp_path: Path
    ) -> None:
        image = small_image(layout, name="v1")
        asked = [OTHER, *(blob["digest"] for blob in layout.blobs(image)[:2]), image["digest"]]
        (tmp_path / "asked").write_text("\n".join(asked))
        end = End(kind, layout, served, tmp_path)
        assert listed(end.have("--among", tmp_path / "asked"), end.origin) == {*asked[1:]}


class TestRegistries:
    def test_one_image_lists_its_blobs(self, layout: Layout, served: FaultyRegistry) -> None:
        image, other = small_image(layout), layout.image([b"another"])
        for tag, descriptor in (("v1", image), ("v2", other)):
            seed(layout, descriptor, served.host, "app", tag)
        needed = {image["digest"], *(blob["digest"] for blob in layout.blobs(image))}
        assert listed(ocistream("have", f"{served.host}/app:v1"), f"{served.host}/app:v1") == needed
        by_digest = f"{served.host}/app@{image['digest']}"
        assert listed(ocistream("have", by_digest), by_digest) == needed

    def test_a_repository_that_does_not_exist_yet(self, served: FaultyRegistry) -> None:
        result = ocistream("have", f"{served.host}/new")
        assertions.failure(result, 4, f"{served.host}/new not found", "before the first push, copy without --have")

    def test_referrers_are_listed_too(self, layout: Layout, served: FaultyRegistry) -> None:
        image = small_image(layout)
        seed(layout, image, served.host, "app", "v1")
        parts = layout.artifact(b"a list of parts", subject=image)
        seed(layout, parts, served.host, "app")
        assert listed(ocistream("have", f"{served.host}/app"), f"{served.host}/app") == everything(layout)

    def test_no_blob_is_fetched(self, layout: Layout, served: FaultyRegistry) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        served.requests.clear()
        succeed("have", f"{served.host}/app")
        methods = {request.method for request in served.requests if "/blobs/" in request.path}
        assert methods == {"HEAD"}

    def test_more_tags_than_one_batch_are_listed(self, layout: Layout, start: Start, tmp_path: Path) -> None:
        base = layout.blob(b"shared", OCI_LAYER)
        for number in range(70):
            layout.name(layout.image([base, b"%d" % number]), f"app:v{number}")
        shutil.copytree(layout.path, tmp_path / "served-0", copy_function=os.link)
        served = start()
        assert listed(ocistream("have", f"{served.host}/app"), f"{served.host}/app") == everything(layout)
        asked = [request.path for request in served.requests if "/blobs/" in request.path]
        assert len(asked) == len(set(asked))

    def test_an_unreadable_tag_is_reported(self, layout: Layout, served: FaultyRegistry) -> None:
        kept, lost = small_image(layout), layout.image([b"another"])
        for tag, descriptor in (("kept", kept), ("lost", lost)):
            seed(layout, descriptor, served.host, "app", tag)
        served.faults.append(Fault(refusal(404, "MANIFEST_UNKNOWN"), path="/manifests/lost", times=None))
        result = ocistream("have", f"{served.host}/app")
        found = listed(result, f"{served.host}/app")
        assert kept["digest"] in found
        assert lost["digest"] not in found
        assert "app:lost" in result.err

    @pytest.mark.parametrize("end", ["app", "app:v1", f"app@{OTHER}"])
    def test_a_missing_repository_is_not_found(self, end: str, served: FaultyRegistry) -> None:
        served.faults.append(Fault(refusal(404, "NAME_UNKNOWN"), path="/tags/", times=None))
        assertions.failure(ocistream("have", f"{served.host}/{end}"), 4, "app")

    @pytest.mark.parametrize("end", ["app", "app:v1", f"app@{OTHER}"])
    def test_among_of_a_missing_repository_is_empty(self, end: str, served: FaultyRegistry) -> None:
        result = ocistream("have", "--among", "-", f"{served.host}/{end}", stdin=f"{OTHER}\n".encode())
        assert listed(result, f"{served.host}/{end}") == set()

    def test_verbose_reports_a_missing_repository(self, served: FaultyRegistry) -> None:
        result = succeed("have", "-v", "--among", "-", f"{served.host}/app:v1", stdin=f"{OTHER}\n".encode())
        assert "app:v1" in result.err
        assert "it has none of these blobs" in result.err

    def test_mountable_blobs_count(self, layout: Layout, served: FaultyRegistry) -> None:
        seed(layout, small_image(layout), served.host, "base", "1")
        asked = "\n".join(everything(layout)).encode()
        line = ("have", "--among", "-", f"{served.host}/app", "--mount-from")
        assert listed(ocistream(*line, "base", stdin=asked), f"{served.host}/app") == everything(layout)
        assert listed(ocistream(*line, "other", stdin=b"# digests 0\n"), f"{served.host}/app") == set()
        assertions.failure(ocistream("have", f"{served.host}/app", "--mount-from", "base"), 2, "--among")

    def test_a_registry_that_fails_gives_no_list(self, layout: Layout, served: FaultyRegistry) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        served.faults.append(Fault(Reply(500), "HEAD", "/blobs/", times=None, skip=2))
        assertions.failure(ocistream("have", f"{served.host}/app", "--retries", "0"), 7, "500")
        assertions.failure(
            ocistream("have", "--among", "-", f"{served.host}/app", "--retries", "0", stdin=f"{OTHER}\n".encode()), 7
        )

    def test_an_incomplete_list_of_tags_is_reported(self, layout: Layout, served: FaultyRegistry) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        elsewhere = {"Link": '<http://localhost:1/more>; rel="next"'}
        served.faults.append(Fault(Reply(200, elsewhere, b'{"tags": ["v1"]}'), path="/tags/"))
        result = ocistream("have", f"{served.host}/app")
        assert listed(result, f"{served.host}/app") == everything(layout)
        assert "further tags" in result.err


class TestFiles:
    def test_one_image_of_many_lists_its_blobs(self, layout: Layout, tmp_path: Path) -> None:
        image = layout.image([b"one"], name="v1")
        layout.image([b"two"], name="v2")
        needed = {image["digest"], *(blob["digest"] for blob in layout.blobs(image))}
        (tmp_path / "x.tar").write_bytes(tar_of(items_of(layout)))
        for end in (f"oci:{layout.path}:v1", f"oci-archive:{tmp_path / 'x.tar'}:v1"):
            assert listed(ocistream("have", end), end) == needed
            asked = "\n".join(everything(layout)).encode()
            assert listed(ocistream("have", "--among", "-", end, stdin=asked), end) == needed

    @pytest.mark.parametrize("on_stdin", [False, True])
    def test_a_docker_archive_has_configs_and_plain_layers(
        self, on_stdin: bool, layout: Layout, tmp_path: Path
    ) -> None:
        image = saved(layout, small_image(layout), "app:1")
        archive = tmp_path / "docker.tar"
        archive.write_bytes(archive_of(of_docker([image])))
        end = "-" if on_stdin else str(archive)
        found = listed(ocistream("have", end, stdin=archive if on_stdin else None), end)
        assert found == {digest_of(image.config), *image.diff_ids}

    def test_several_locations_are_one_list(self, layout: Layout, served: FaultyRegistry, tmp_path: Path) -> None:
        seed(layout, small_image(layout), served.host, "app", "v1")
        other = Layout(tmp_path / "other")
        small_image(other, annotations={"why": "because"}, name="v2")
        ends = [f"{served.host}/app", f"oci:{other.path}"]
        assert listed(ocistream("have", *ends), *ends) == everything(layout) | everything(other)
        asked = "\n".join([*everything(layout), *everything(other)]).encode()
        found = listed(ocistream("have", *ends, "--among", "-", stdin=asked), *ends)
        assert found == everything(layout) | everything(other)

    def test_links_and_directories_are_not_blobs(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        one, two = (layer["digest"] for layer in layout.read(image["digest"])["layers"])
        layout.file(one).rename(layout.path / "elsewhere")
        layout.file(one).symlink_to(layout.path / "elsewhere")
        layout.file(two).unlink()
        layout.file(two).mkdir()
        expected = everything(layout) - {one, two}
        end = f"oci:{layout.path}"
        assert listed(ocistream("have", end), end) == expected
        asked = "\n".join([*expected, one, two]).encode()
        assert listed(ocistream("have", end, "--among", "-", stdin=asked), end) == expected

    def test_an_unfinished_layout_lists_its_blobs(self, layout: Layout) -> None:
        image = small_image(layout, name="v1")
        (layout.path / "index.json").unlink()
        (layout.path / "oci-layout").unlink()
        end = f"oci:{layout.path}"
        asked = f"{image['digest']}\n{OTHER}\n".encode()
        assert listed(ocistream("have", end, "--among", "-", stdin=asked), end) == {image["digest"]}
        assertions.failure(ocistream("have", end), 6, "index.json")

    @pytest.mark.parametrize("end", ["oci:gone", "./gone.tar"])
    def test_a_missing_location_is_not_found_and_has_no_blobs(self, end: str, tmp_path: Path) -> None:
        assertions.failure(ocistream("have", end, cwd=tmp_path), 4, "gone")
        result = ocistream("have", end, "--among", "-", stdin=OTHER.encode(), cwd=tmp_path)
        assert listed(result, end) == set()

    @pytest.mark.parametrize("cut", [100, 3000, -512])
    def test_a_truncated_archive_gives_no_list(self, cut: int, layout: Layout, tmp_path: Path) -> None:
        small_image(layout, name="v1")
        (tmp_path / "x.tar").write_bytes(tar_of(small_first(layout), end=cut < 0)[:cut])
        assertions.failure(ocistream("have", tmp_path / "x.tar"), 6)
        assertions.failure(ocistream("have", "-", stdin=tmp_path / "x.tar"), 6)


class TestAmongList:
    @pytest.mark.parametrize(
        ("text", "code", "word"),
        [
            (b"", 6, "no digest"),
            (b"nonsense\n", 6, "line 1"),
            (b"# ocistream have 2\n", 8, "format 2"),
            (f"# ocistream have 1\n# digests 2\n{OTHER}\n".encode(), 6, "1 of 2"),
            (b"".join(b"sha256:%064x\n" % n for n in range(limits.MAX_QUERIED_DIGESTS + 1)), 8, "more than"),
        ],
        ids=["empty", "nonsense", "later", "cut", "too many"],
    )
    def test_the_list_must_be_valid(self, text: bytes, code: int, word: str, layout: Layout, tmp_path: Path) -> None:
        (tmp_path / "asked").write_bytes(text)
        assertions.failure(ocistream("have", f"oci:{layout.path}", "--among", tmp_path / "asked"), code, word, "asked")
        result = ocistream("have", f"oci:{layout.path}", "--among", "-", stdin=text)
        assertions.failure(result, code, word, "the list on stdin")

    def test_the_list_must_exist(self, layout: Layout, tmp_path: Path) -> None:
        end = f"oci:{layout.path}"
        assertions.failure(ocistream("have", end, "--among", tmp_path / "gone"), 4, "gone")
        assertions.failure(ocistream("have", end, "--among", tmp_path), 9)

    @pytest.mark.parametrize("ends", [["-", "-"], ["-", "--among", "-"]])
    def test_stdin_is_read_once(self, ends: Sequence[str]) -> None:
        assertions.failure(ocistream("have", *ends, stdin=b""), 2, "twice")

    def test_an_output_is_a_valid_among_list(self, layout: Layout, served: FaultyRegistry) -> None:
        image = small_image(layout, name="v1")
        seed(layout, image, served.host, "app", "v1")
        layout.image([b"more"], name="v2")
        answer = ocistream("have", f"oci:{layout.path}")
        found = listed(ocistream("have", f"{served.host}/app", "--among", "-", stdin=answer.out), f"{served.host}/app")
        assert image["digest"] in found
        assert found < listed(answer, f"oci:{layout.path}")


def many_blobs(layout: Layout, count: int) -> list[Descriptor]:
    return [layout.blob(b"%d" % number, OCI_LAYER) for number in range(count)]


@pytest.mark.parametrize(
    "count", [limits.MAX_BLOBS // 64, pytest.param(limits.MAX_BLOBS - 10, marks=pytest.mark.nightly)]
)
def test_memory_stays_within_the_bound(count: int, layout: Layout, start: Start, tmp_path: Path) -> None:
    blobs = many_blobs(layout, count)
    for first in range(0, len(blobs), 9_000):
        layout.image(blobs[first : first + 9_000], name=f"app:v{first}")
    (tmp_path / "x.tar").write_bytes(tar_of(small_first(layout)))
    shutil.copytree(layout.path, tmp_path / "served-0", copy_function=os.link)
    (tmp_path / "list").write_bytes(ocistream("have", f"oci:{layout.path}").out)
    for line in (
        [f"oci:{layout.path}"],
        [tmp_path / "x.tar"],
        [f"oci:{layout.path}", "--among", tmp_path / "list"],
        [f"{start().host}/app", "--jobs", "8"],
    ):
        result = measured("have", *line)
        assertions.peak(result)
        assert len(result.lines()) > count
