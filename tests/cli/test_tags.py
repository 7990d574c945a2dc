"""Repositories: `inspect` and `tags` list the tags, and `copy` copies all or some of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.forms import FORMS, location
from tests.faulty_registry import Fault, FaultyRegistry, Reply, refusal
from tests.images import Descriptor, Layout, small_image
from tests.registry_http import manifest_digest, seed, tags
from tests.runner import ocistream
from tests.schemas import validate_ours

Images = dict[str, Descriptor]

TAGS = ["1.0", "1.1", "1.1-rc1", "2.0", "latest"]


@pytest.fixture
def images(served: FaultyRegistry, layout: Layout) -> Images:
    """Fill the repository `app` and return the image of each tag; two tags have the same image."""
    made = {tag: small_image(layout, annotations={"tag": tag}) for tag in TAGS}
    made["latest"] = made["2.0"]
    for tag, image in made.items():
        seed(layout, image, served.host, "app", tag)
    return made


@pytest.mark.usefixtures("images")
class TestTags:
    @pytest.mark.parametrize("command", ["tags", "inspect"])
    def test_tags_are_printed_one_per_line(self, served: FaultyRegistry, command: str) -> None:
        result = ocistream(command, f"{served.host}/app")
        assert (result.code, sorted(result.lines()), result.err) == (0, TAGS, "")

    def test_json_is_that_of_inspect(self, served: FaultyRegistry) -> None:
        result = ocistream("tags", f"{served.host}/app", "--json")
        document = json.loads(result.out)
        validate_ours(document, "inspect")
        assert document == json.loads(ocistream("inspect", f"{served.host}/app", "--json").out)

    @pytest.mark.parametrize("form", [[], ["--json"]])
    def test_an_incomplete_list_is_printed_and_has_an_exit_code(self, served: FaultyRegistry, form: list[str]) -> None:
        elsewhere = {"Link": '<http://localhost:1/more>; rel="next"'}
        served.faults.append(Fault(Reply(200, elsewhere, b'{"tags": ["1", "2"]}'), path="/tags/list"))
        result = ocistream("tags", f"{served.host}/app", *form)
        assert result.code == 8
        assert "has further tags: the list continues at http://localhost:1/more" in result.err
        if form:
            document = json.loads(result.out)
            validate_ours(document, "inspect")
            assert (document["tags"], document["complete"]) == (["1", "2"], False)
        else:
            assert result.lines() == ["1", "2"]

    def test_a_location_with_one_image_is_refused(self, served: FaultyRegistry, layout: Layout) -> None:
        small_image(layout, name="v1")
        for end in (f"{served.host}/app:1.0", f"oci:{layout.path}:v1"):
            assertions.failure(ocistream("tags", end), 2, "is one image")

    @pytest.mark.parametrize("command", ["tags", "inspect"])
    def test_a_missing_repository_is_an_error(self, served: FaultyRegistry, command: str) -> None:
        assertions.failure(ocistream(command, f"{served.host}/gone"), 4, "gone not found")

    @pytest.mark.parametrize("command", ["tags", "inspect"])
    def test_a_repository_without_tags_prints_no_lines(self, served: FaultyRegistry, command: str) -> None:
        served.faults.append(Fault(Reply(200, {}, b'{"tags": null}'), path="/tags/list"))
        result = ocistream(command, f"{served.host}/app")
        assert (result.code, result.out) == (0, b"")
        assert (f"{served.host}/app has no tags" in result.err) == (command == "inspect")


@pytest.mark.parametrize("how", FORMS)
def test_names_of_an_archive_are_listed(layout: Layout, tmp_path: Path, how: str) -> None:
    small_image(layout, name="v1")
    small_image(layout, name="example.com/app:2", annotations={"a": "b"})
    small_image(layout, annotations={"c": "d"})
    end, stdin = location(how, layout, tmp_path)
    assert ocistream("tags", end, stdin=stdin).lines() == ["v1", "example.com/app:2"]
    document = json.loads(ocistream("tags", end, "--json", stdin=stdin).out)
    validate_ours(document, "inspect")
    assert document == {"location": end, "names": ["v1", "example.com/app:2"]}


@pytest.mark.usefixtures("images")
class TestInspect:
    def test_three_similar_tags_are_suggested_for_a_missing_one(self, served: FaultyRegistry, layout: Layout) -> None:
        for tag in ("3.10.1", "3.10.2", "3.10.3", "3.10.4"):
            seed(layout, small_image(layout), served.host, "app", tag)
        result = ocistream("inspect", f"{served.host}/app:3.10.")
        assertions.failure(result, 4, "did you mean 3.10.")
        assert result.err.count(" or 3.10.") == 2

    def test_tags_as_json(self, served: FaultyRegistry) -> None:
        document = json.loads(ocistream("inspect", "--json", f"docker://{served.host}/app").out)
        assert sorted(document.pop("tags")) == TAGS
        assert document == {
            "location": f"docker://{served.host}/app",
            "repository": f"{served.host}/app",
            "complete": True,
        }

    def test_a_truncated_list_is_reported(self, served: FaultyRegistry) -> None:
        elsewhere = {"Link": '<http://localhost:1/more>; rel="next"'}
        served.faults.append(Fault(Reply(200, elsewhere, b'{"tags": ["a"]}'), path="/tags/", times=None))
        result = ocistream("inspect", f"{served.host}/app")
        assert (result.code, result.out) == (0, b"a\n")
        assert "localhost:1" in result.err
        assert json.loads(ocistream("inspect", "--json", f"{served.host}/app").out)["complete"] is False


class TestCopy:
    def test_all_tags_are_copied_unchanged(self, served: FaultyRegistry, other: FaultyRegistry, images: Images) -> None:
        result = succeed("copy", "--all-tags", f"{served.host}/app", f"{other.host}/mirror/app")
        assert result.lines() == [f"{other.host}/mirror/app:{tag}@{images[tag]['digest']}" for tag in TAGS]
        assert {tag: manifest_digest(other.host, "mirror/app", tag) for tag in tags(other.host, "mirror/app")} == {
            tag: image["digest"] for tag, image in images.items()
        }

    @pytest.mark.parametrize(
        ("globs", "chosen"),
        [
            (["1.*"], ["1.0", "1.1", "1.1-rc1"]),
            (["1.*", "!*-rc*"], ["1.0", "1.1"]),
            (["!*-rc*"], ["1.0", "1.1", "2.0", "latest"]),
            (["?.0", "latest"], ["1.0", "2.0", "latest"]),
            (["[!1]*"], ["2.0", "latest"]),
        ],
    )
    @pytest.mark.usefixtures("images")
    def test_globs_select_tags(
        self, served: FaultyRegistry, other: FaultyRegistry, globs: list[str], chosen: list[str]
    ) -> None:
        options = [text for glob in globs for text in ("--tags", glob)]
        succeed("copy", *options, f"{served.host}/app", f"{other.host}/app")
        assert sorted(tags(other.host, "app")) == chosen

    def test_through_an_archive_and_back(
        self, served: FaultyRegistry, other: FaultyRegistry, images: Images, tmp_path: Path
    ) -> None:
        archive = tmp_path / "app.tar"
        succeed("copy", "--all-tags", f"{served.host}/app", f"oci-archive:{archive}")
        succeed("copy", "--tags", "!latest", archive, f"{other.host}/back")
        assert {tag: manifest_digest(other.host, "back", tag) for tag in tags(other.host, "back")} == {
            tag: image["digest"] for tag, image in images.items() if tag != "latest"
        }

    @pytest.mark.usefixtures("images")
    def test_the_same_tags_give_the_same_archive(self, served: FaultyRegistry, tmp_path: Path) -> None:
        one, two = tmp_path / "1.tar", tmp_path / "2.tar"
        succeed("copy", "--all-tags", f"{served.host}/app", one)
        backwards = json.dumps({"tags": TAGS[::-1]}).encode()
        served.faults.append(Fault(Reply(200, {}, backwards), path="/tags/"))
        succeed("copy", "--all-tags", f"{served.host}/app", two)
        assert one.read_bytes() == two.read_bytes()

    @pytest.mark.usefixtures("images")
    def test_no_tag_is_copied_if_one_fails(self, served: FaultyRegistry, other: FaultyRegistry) -> None:
        served.faults.append(Fault(refusal(404, "MANIFEST_UNKNOWN"), path="/manifests/2.0", times=None))
        result = ocistream("copy", "--all-tags", f"{served.host}/app", f"{other.host}/app")
        assert result.code == 4
        assert "app:2.0 not found" in result.err
        assert "--tags '!2.0'" in result.err
        assert tags(other.host, "app") == []

    def test_two_images_that_would_get_one_tag_are_refused(self, layout: Layout, other: FaultyRegistry) -> None:
        for host in ("one.example", "two.example"):
            small_image(layout, name=f"{host}/app:1", annotations={"of": host})
        result = ocistream("copy", "--all-tags", f"oci:{layout.path}", f"{other.host}/app")
        assert result.code == 2
        assert "one.example/app:1 and two.example/app:1 would both become" in result.err
        assert tags(other.host, "app") == []

    def test_a_short_name_has_a_tag_too(self, layout: Layout, other: FaultyRegistry, tmp_path: Path) -> None:
        names = {name: small_image(layout, name=name, annotations={"of": name}) for name in ("app:1", "app:2")}
        succeed("copy", "--all-tags", layout.path, f"oci:{tmp_path}/copy")
        assert assertions.names_in(tmp_path / "copy") == [*names]
        succeed("copy", "--tags", "2", layout.path, f"{other.host}/app")
        assert tags(other.host, "app") == ["2"]
        assert manifest_digest(other.host, "app", "2") == names["app:2"]["digest"]

    @pytest.mark.uncounted
    @pytest.mark.parametrize("how", ["layout", "file", "pipe, index first"])
    def test_an_image_without_a_tag_is_an_error(
        self, layout: Layout, other: FaultyRegistry, tmp_path: Path, how: str
    ) -> None:
        image, nameless = self.one_without_a_name(layout)
        source, stdin = location(how, layout, tmp_path)
        name = {"layout": layout.path, "file": tmp_path / "x.tar"}.get(how, "the archive on stdin")
        result = ocistream("copy", "--all-tags", source, f"{other.host}/app", stdin=stdin)
        assertions.failure(
            result, 2, f"1 of 2 images in {name} has no tag: {nameless['digest']}", f":DIGEST {other.host}/app:"
        )
        assert tags(other.host, "app") == []
        result = ocistream("copy", "--all-tags", source, f"oci:{tmp_path}/copy", stdin=stdin)
        assertions.failure(result, 2, nameless["digest"], "omit --all-tags")
        assert not (tmp_path / "copy").exists()
        # The commands that the hints suggest work.
        result = ocistream("copy", f"oci:{layout.path}:{nameless['digest']}", f"{other.host}/app:nameless")
        assert result.lines() == [f"{other.host}/app:nameless@{nameless['digest']}"], result.err
        succeed("copy", source, f"oci:{tmp_path}/copy", stdin=stdin)
        assert {entry["digest"] for entry in assertions.index_of(tmp_path / "copy")} == {
            image["digest"],
            nameless["digest"],
        }

    def test_an_image_without_a_tag_is_reported_with_patterns(self, layout: Layout, other: FaultyRegistry) -> None:
        image, nameless = self.one_without_a_name(layout)
        result = ocistream("copy", "--tags", "*", f"oci:{layout.path}", f"{other.host}/app")
        assert result.lines() == [f"{other.host}/app:1@{image['digest']}"], result.err
        assert result.err.count(f"{nameless['digest']} is skipped: it has no tag, and --tags copies tags only\n") == 1

    @staticmethod
    def one_without_a_name(layout: Layout) -> tuple[Descriptor, Descriptor]:
        """Add an image with a name and an image without a name to index.json."""
        image, nameless = small_image(layout, name="1"), layout.image([b"nameless"])
        layout.write_index([nameless, *layout.entries])
        return image, nameless

    @pytest.mark.usefixtures("images")
    @pytest.mark.parametrize(
        ("glob", "shown"), [("9*", "the tags are: 1.0, 1.1, 1.1-rc1, 2.0, latest"), ("!*", "the tags are")]
    )
    def test_a_pattern_without_a_match_is_an_error(
        self, served: FaultyRegistry, other: FaultyRegistry, glob: str, shown: str
    ) -> None:
        result = ocistream("copy", "--tags", glob, f"{served.host}/app", f"{other.host}/app")
        assert result.code == 4
        assert shown in result.err

    @pytest.mark.parametrize(
        ("source", "destination", "named"),
        [
            ("{one}/app:1.0", "{two}/app", "app:1.0"),
            ("{one}/app@sha256:" + "0" * 64, "{two}/app", "@sha256"),
            ("{one}/app", "{two}/app:1.0", "app:1.0"),
            ("oci:{path}:name", "{two}/app", ":name"),
            ("{one}/app", "oci:{path}:name", ":name"),
        ],
    )
    def test_a_location_of_one_image_is_refused(
        self, served: FaultyRegistry, other: FaultyRegistry, tmp_path: Path, source: str, destination: str, named: str
    ) -> None:
        ends = [end.format(one=served.host, two=other.host, path=tmp_path / "x") for end in (source, destination)]
        result = ocistream("copy", "--all-tags", *ends)
        assert result.code == 2
        assert named in result.err
        assert served.requests == other.requests == []

    @pytest.mark.usefixtures("images")
    def test_a_truncated_list_is_not_copied(self, served: FaultyRegistry, other: FaultyRegistry) -> None:
        elsewhere = {"Link": '<http://localhost:1/more>; rel="next"'}
        served.faults.append(Fault(Reply(200, elsewhere, b'{"tags": ["1.0"]}'), path="/tags/"))
        result = ocistream("copy", "--all-tags", f"{served.host}/app", f"{other.host}/app")
        assert result.code == 8
        assert other.requests == []

    def test_referrer_tags_need_their_own_pattern(
        self, served: FaultyRegistry, other: FaultyRegistry, images: Images, layout: Layout
    ) -> None:
        # The signature of an image that does not exist, so it is not copied as a referrer.
        orphan = f"sha256-{'1' * 64}.sig"
        seed(layout, images["1.0"], served.host, "app", orphan)
        succeed("copy", "--all-tags", f"{served.host}/app", f"{other.host}/app")
        assert sorted(tags(other.host, "app")) == TAGS
        succeed("copy", "--tags", "sha256-*", f"{served.host}/app", f"{other.host}/signed")
        assert tags(other.host, "signed") == [orphan]
