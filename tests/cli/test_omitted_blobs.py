"""Archives that omit blobs: which blobs are omitted and reported, and what a push checks first."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.archives import items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.faulty_auth import Basic
from tests.faulty_registry import FaultyRegistry
from tests.images import Descriptor, Layout, tar_layer, two_platforms
from tests.registry_http import basic, manifest_digest, seed, tags
from tests.runner import Result, ocistream

NOTE = "vnd.ocistream.omitted"


@dataclasses.dataclass(frozen=True)
class Releases:
    """Two releases of an image that share two layers: `near` has both, `far` has only the old one."""

    layout: Layout
    old: Descriptor
    new: Descriptor
    near: FaultyRegistry
    far: FaultyRegistry

    def blobs(self, image: Descriptor) -> set[str]:
        return {blob["digest"] for blob in self.layout.blobs(image)}

    @property
    def shared(self) -> set[str]:
        return self.blobs(self.old) & self.blobs(self.new)

    @property
    def delta(self) -> set[str]:
        """The manifest and the blobs of the new release that the far registry lacks."""
        return self.blobs(self.new) - self.shared | {self.new["digest"]}


@pytest.fixture
def releases(layout: Layout, start: Start) -> Releases:
    """Return the releases in the registries."""
    shared = [tar_layer({"base": b"the same " * 2000}), tar_layer({"lib": b"the same, too " * 1000})]
    old = layout.image([*shared, tar_layer({"app": b"old"})], config={"Cmd": ["old"]})
    new = layout.image([*shared, tar_layer({"app": b"new"})], config={"Cmd": ["new"]})
    found = Releases(layout, old, new, start(), start())
    for image, tag in ((old, "1"), (new, "2")):
        seed(layout, image, found.near.host, "app", tag)
    seed(layout, old, found.far.host, "app", "1")
    return found


@pytest.fixture
def listed(releases: Releases, tmp_path: Path) -> Path:
    """Return the list of the blobs in the far registry."""
    result = succeed("have", f"{releases.far.host}/app")
    path = tmp_path / "have.txt"
    path.write_bytes(result.out)
    return path


@pytest.fixture
def delta(releases: Releases, listed: Path, tmp_path: Path) -> Path:
    """Return an archive of the new release without the blobs of the far registry; clear that registry's requests."""
    archive = tmp_path / "delta.tar"
    assertions.success(pulled(releases, archive, "--have", listed))
    releases.far.requests.clear()
    return archive


def blobs_in(archive: Path) -> set[str]:
    if archive.is_dir():
        return {f"sha256:{path.name}" for path in (archive / "blobs" / "sha256").iterdir()}
    names = [name for name, _ in assertions.entries(archive)]
    return {name.removeprefix("blobs/").replace("/", ":") for name in names if name.startswith("blobs/")}


def said_in(archive: Path) -> str:
    raw = (archive / "index.json").read_bytes() if archive.is_dir() else dict(assertions.entries(archive))["index.json"]
    return str(json.loads(raw).get("annotations", {}).get(NOTE, ""))


def pulled(releases: Releases, archive: Path, *options: str | Path, **run: Any) -> Result:
    """Pull the new release into an archive."""
    return ocistream("pull", f"{releases.near.host}/app:2", "-o", archive, *options, **run)


class TestWrongDigest:
    @pytest.mark.uncounted
    def test_a_wrong_digest_is_refused_before_the_registry_changes(self, releases: Releases, delta: Path) -> None:
        """The registry could mount the omitted blobs from another of its repositories."""
        target = f"{releases.far.host}/other@sha256:{'0' * 64}"
        for argv in (["push", target, "-i", delta], ["push", target], ["copy", delta, target]):
            assertions.failure(ocistream(*argv, stdin=delta), 5, "0" * 64, releases.new["digest"])
        assert releases.far.asked("POST|PUT|PATCH|DELETE") == []
        # With the digest of the image, they are mounted.
        succeed("push", f"{releases.far.host}/other@{releases.new['digest']}", "-i", delta)
        assert len(releases.far.asked("POST", "mount=")) == len(releases.shared)


def test_omitted_layers_are_not_recompressed_and_the_registry_does_not_change(releases: Releases, delta: Path) -> None:
    # The registry has the layers under another name, so that they would be mounted.
    for option in ([], ["--dry-run"]):
        result = ocistream("push", f"{releases.far.host}/other:2", "-i", delta, "--compress", "zstd", *option)
        assertions.failure(result, 8, "must be recompressed, but only the destination has it", "omit --compress")
    assert releases.far.asked("POST|PUT|PATCH|DELETE") == []


class TestOmittedBlobs:
    def test_listed_blobs_are_omitted_and_not_fetched(self, releases: Releases, listed: Path, tmp_path: Path) -> None:
        archive, report = tmp_path / "delta.tar", tmp_path / "result.json"
        result = assertions.success(pulled(releases, archive, "--have", listed, "--result", report))
        assert blobs_in(archive) == releases.delta
        assert result.lines() == [f"{releases.near.host}/app:2@{releases.new['digest']}"]
        for digest in releases.shared:
            assert not releases.near.asked(path=f".*/blobs/{digest}")
        # The index and the report state the reason.
        assert said_in(archive).splitlines() == [f"# have {releases.far.host}/app", *sorted(releases.shared)]
        size = sum(releases.layout.file(digest).stat().st_size for digest in releases.shared)
        assert f"omitted 2 blobs, {size} B: in {releases.far.host}/app, so not copied again\n" in result.err
        written = json.loads(report.read_bytes())
        assert written["bytes"]["omitted"] == size
        left = {blob["digest"]: blob["reason"] for blob in written["blobs"] if blob["status"] == "omitted"}
        assert left == dict.fromkeys(releases.shared, f"in {releases.far.host}/app")
        # Docker cannot load such an archive.
        assert "manifest.json" not in dict(assertions.entries(archive))
        assertions.success(pulled(releases, tmp_path / "again.tar", "--have", listed))
        assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()

    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            *(("--have", value) for value in ("-", "FAR/app", "FAR/app:1", "FOLDER/old.tar", "oci:FOLDER/old")),
            ("--base", "NEAR/app:1"),
        ],
    )
    def test_blobs_of_every_location_are_omitted(
        self, releases: Releases, listed: Path, tmp_path: Path, option: str, value: str
    ) -> None:
        old = f"{releases.near.host}/app:1"
        succeed("pull", old, "-o", tmp_path / "old.tar")
        succeed("pull", old, "-o", f"{tmp_path / 'old'}/")
        for word, text in (("FAR", releases.far.host), ("NEAR", releases.near.host), ("FOLDER", str(tmp_path))):
            value = value.replace(word, text)
        archive = tmp_path / "delta.tar"
        assertions.success(pulled(releases, archive, option, value, stdin=listed if value == "-" else None))
        assert blobs_in(archive) == releases.delta
        assert option == "--have" or said_in(archive).startswith(f"# base {old}\n")

    def test_a_list_of_other_blobs_omits_nothing(self, releases: Releases, tmp_path: Path) -> None:
        (tmp_path / "have.txt").write_text(f"sha256:{'0' * 64}\n")
        result = assertions.success(pulled(releases, tmp_path / "all.tar", "--have", tmp_path / "have.txt"))
        assert "has none of the requested blobs: nothing is omitted" in result.err
        assert blobs_in(tmp_path / "all.tar") == releases.blobs(releases.new) | {releases.new["digest"]}
        assert said_in(tmp_path / "all.tar") == ""

    def test_all_blobs_may_be_omitted(self, releases: Releases, tmp_path: Path) -> None:
        assertions.success(pulled(releases, tmp_path / "none.tar", "--base", f"{releases.near.host}/app:2"))
        assert blobs_in(tmp_path / "none.tar") == {releases.new["digest"]}
        succeed("verify", tmp_path / "none.tar")

    def test_only_selects_the_blobs_of_the_archive(self, releases: Releases, tmp_path: Path) -> None:
        one, *_ = sorted(releases.shared)
        assertions.success(pulled(releases, tmp_path / "one.tar", "--only", one))
        assert blobs_in(tmp_path / "one.tar") == {one, releases.new["digest"]}
        (tmp_path / "list.txt").write_text("\n".join([*releases.shared, f"sha256:{'0' * 64}"]))
        result = assertions.success(pulled(releases, tmp_path / "two.tar", "--only", tmp_path / "list.txt"))
        count = len(releases.shared) + 1
        assert f"list.txt: 1 of its {count} digests are in none of the images" in result.err
        assert blobs_in(tmp_path / "two.tar") == {*releases.shared, releases.new["digest"]}

    @pytest.mark.parametrize(("option", "tag"), [("--have", ""), ("--have", ":1"), ("--base", ":1")])
    def test_copy_asks_registries_too(self, releases: Releases, tmp_path: Path, option: str, tag: str) -> None:
        argv = [f"oci-archive:{tmp_path / 'delta.tar'}", option, f"{releases.far.host}/app{tag}"]
        succeed("copy", f"{releases.near.host}/app:2", *argv)
        assert blobs_in(tmp_path / "delta.tar") == releases.delta

    @pytest.mark.uncounted
    @pytest.mark.parametrize("to", ["oci-archive:{}", "oci:{}:2"])
    def test_blobs_that_precede_the_index_in_a_pipe_are_not_omitted(
        self, releases: Releases, listed: Path, tmp_path: Path, to: str
    ) -> None:
        # The index of `releases.layout` lists no images.
        succeed("copy", f"{releases.near.host}/app:2", f"oci:{tmp_path / 'all'}:2")
        result = succeed(
            *("copy", "-", to.format(tmp_path / "x"), "--have", listed, "--result", tmp_path / "r.json"),
            stdin=tar_of(items_of(Layout(tmp_path / "all"))),
        )
        assert releases.shared <= blobs_in(tmp_path / "x")
        assert said_in(tmp_path / "x") == ""
        assert "omitted" not in result.err
        assert json.loads((tmp_path / "r.json").read_bytes())["bytes"]["omitted"] == 0

    def test_a_layout_lists_the_blobs_that_it_still_lacks(
        self, releases: Releases, listed: Path, tmp_path: Path
    ) -> None:
        assertions.success(pulled(releases, tmp_path / "layout/", "--have", listed, "--format", "oci"))
        assert blobs_in(tmp_path / "layout") == releases.delta
        assert set(said_in(tmp_path / "layout").splitlines()[1:]) == releases.shared
        first, *_ = sorted(releases.shared)
        assertions.success(pulled(releases, tmp_path / "layout", "--only", first))
        assert set(said_in(tmp_path / "layout").splitlines()[1:]) == releases.shared - {first}
        assertions.success(pulled(releases, tmp_path / "layout"))
        assert "annotations" not in json.loads((tmp_path / "layout" / "index.json").read_bytes())

    def test_blobs_of_referrers_are_omitted_too(self, releases: Releases, tmp_path: Path) -> None:
        signature = releases.layout.artifact(b"signed", subject=releases.new)
        seed(releases.layout, signature, releases.near.host, "app")
        assertions.success(pulled(releases, tmp_path / "first.tar"))
        assertions.success(pulled(releases, tmp_path / "delta.tar", "--have", tmp_path / "first.tar"))
        assert blobs_in(tmp_path / "delta.tar") == {releases.new["digest"], signature["digest"]}


class TestRefusals:
    def test_invalid_options_are_refused_before_anything_is_written(self, releases: Releases, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        one, base = f"{releases.near.host}/app:2", ("--base", f"{releases.near.host}/app:1")
        pull, from_stdin = ("pull", one, "-o", "x.tar"), ("--have", "-")
        for argv, code, words in (
            # A docker-archive, a registry and recompressed layers cannot state what is omitted.
            ((*pull, *base, "--format", "docker-archive"), 2, "docker-archive"),
            (("copy", one, f"{releases.far.host}/app:2", *base), 2, "registry"),
            ((*pull, *base, "--compress", "zstd"), 2, "--compress"),
            ((*pull, *from_stdin), 6, "stdin"),
            (("copy", "-", "oci-archive:x.tar", *from_stdin), 2, "both the archive and the list"),
            ((*pull, *from_stdin, "--username", "me", "--password-stdin"), 2, "both the list and the password"),
            ((*pull, "--have", f"{releases.far.host}/app", "--username", "me"), 2, "--username"),
            ((*pull, "--have", "have.txt"), 4, "have.txt"),
            ((*pull, "--have", f"{tmp_path}/have.txt"), 4, "have.txt"),
            ((*pull, "--have", "oci:typo"), 4, "typo"),
            ((*pull, "--have", f"{tmp_path}/other"), 6, "other"),
            ((*pull, "--only", f"sha256:{'0' * 64}"), 4, "0" * 64),
            ((*pull, "--only", "latest"), 4, "latest"),
        ):
            stdin = b"secret" if "--password-stdin" in argv else b""
            result = ocistream(*argv, stdin=stdin, cwd=tmp_path, env={"OCISTREAM_PASSWORD": "secret"})
            assertions.failure(result, code, words)
        assertions.nothing_left(tmp_path, "made", "other", "served-0", "served-1")


class TestCredentials:
    """Credentials of the registries in --have and --base."""

    @pytest.fixture
    def guarded(self, layout: Layout, start: Start) -> tuple[str, str]:
        """Return the same image in two registries that want different passwords."""
        image = layout.image([b"one"])
        hosts = [start(auth=Basic(user, user * 2)).host for user in ("me", "you")]
        for host, user in zip(hosts, ("me", "you"), strict=True):
            seed(layout, image, host, "app", "1", headers=basic(user, user * 2))
        return hosts[0], hosts[1]

    @pytest.mark.parametrize("option", ["--have", "--base"])
    def test_each_side_of_a_copy_has_its_own_credentials(
        self, guarded: tuple[str, str], tmp_path: Path, option: str
    ) -> None:
        near, far = guarded
        names = ("--src-username", "me", "--dest-username", "you")
        secrets = {"OCISTREAM_SRC_PASSWORD": "meme", "OCISTREAM_DEST_PASSWORD": "youyou"}
        copied = ("copy", f"{near}/app:1", f"oci-archive:{tmp_path / 'x.tar'}", *names, option)
        for host in guarded:
            succeed(*copied, f"{host}/app:1", env=secrets)
            assert len(blobs_in(tmp_path / "x.tar")) == 1
        same = {"OCISTREAM_SRC_PASSWORD": "meme", "OCISTREAM_DEST_PASSWORD": "meme"}
        assertions.failure(ocistream(*copied, f"{far}/app:1", env=same), 3, far)

    def test_credentials_of_the_destination_are_not_for_two_registries(
        self, guarded: tuple[str, str], layout: Layout, tmp_path: Path
    ) -> None:
        asked: list[str | Path] = [word for host in guarded for word in ("--have", f"{host}/app")]
        argv = ("copy", layout.path, f"oci-archive:{tmp_path / 'x.tar'}", *asked)
        env = {"OCISTREAM_DEST_PASSWORD": "meme"}
        assertions.failure(ocistream(*argv, "--dest-username", "me", env=env), 2, *guarded)
        assertions.failure(ocistream(*argv, env={**env, "OCISTREAM_DEST_USERNAME": "me"}), 2, *guarded)

    def test_a_password_on_stdin_is_read_once(self, guarded: tuple[str, str], tmp_path: Path) -> None:
        near, _ = guarded
        asked = ("--base", f"{near}/app:1", "--have", f"{near}/app")
        given = ("--username", "me", "--password-stdin")
        argv = ("pull", f"{near}/app:1", "-o", tmp_path / "x.tar", *asked, *given)
        succeed(*argv, stdin=b"meme\n")
        assert len(blobs_in(tmp_path / "x.tar")) == 1


class TestVerify:
    def test_pull_and_verify_count_the_same_omitted_blobs(self, releases: Releases, tmp_path: Path) -> None:
        # The config of the referrer is embedded in its manifest, so an archive always has it.
        referrer = releases.layout.artifact(b"SBOM", subject=releases.new)
        seed(releases.layout, referrer, releases.near.host, "app")
        blobs = {*releases.blobs(releases.new), *releases.blobs(referrer)}
        (tmp_path / "all.txt").write_text("".join(f"{digest}\n" for digest in blobs))
        omitting = assertions.success(pulled(releases, tmp_path / "delta.tar", "--have", tmp_path / "all.txt"))
        (line,) = [line for line in omitting.err.splitlines() if " omitted " in line]
        verified = succeed("verify", tmp_path / "delta.tar")
        assert line.removeprefix("ocistream: ") in verified.lines()
        assert verified.lines()[-1].startswith(f"ok, but incomplete ({len(blobs) - 1} blobs omitted): ")

    @pytest.mark.uncounted
    def test_an_archive_with_omitted_blobs_is_ok(self, releases: Releases, delta: Path) -> None:
        for result in (ocistream("verify", delta), ocistream("verify", stdin=delta)):
            assertions.success(result)
            size = sum(releases.layout.file(digest).stat().st_size for digest in releases.shared)
            assert (
                f"omitted 2 blobs, {size} B: in {releases.far.host}/app, so not copied again\n" in result.out.decode()
            )
            verdict = "ok, but incomplete (2 blobs omitted): OCI archive, 1 image, 1 manifest, 2 blobs"
            assert result.lines()[-1].startswith(verdict)
        found = json.loads(ocistream("verify", "--json", delta).out)
        assert (found["ok"], found["missing"]) == (True, [])
        assert {blob["digest"] for blob in found["omitted"]} == releases.shared
        assert {blob["reason"] for blob in found["omitted"]} == {f"in {releases.far.host}/app"}

    @pytest.mark.uncounted
    def test_a_missing_blob_that_is_not_omitted_is_found(self, releases: Releases, delta: Path, tmp_path: Path) -> None:
        (lost, *_) = sorted(releases.delta - {releases.new["digest"]})
        kept = [(name, raw) for name, raw in assertions.entries(delta) if lost[7:] not in name]
        (tmp_path / "damaged.tar").write_bytes(tar_of(kept))
        result = ocistream("verify", tmp_path / "damaged.tar")
        assert result.code == 6
        assert f"missing {lost}" in result.err

    @pytest.mark.parametrize("nonsense", ["# have x\nsha256:12", 5])
    def test_a_malformed_annotation_is_refused(self, layout: Layout, tmp_path: Path, nonsense: object) -> None:
        layout.image([tar_layer({"a": b"b"})], name="app")
        index = json.loads((layout.path / "index.json").read_bytes())
        index["annotations"] = {NOTE: nonsense}
        (layout.path / "index.json").write_text(json.dumps(index))
        (tmp_path / "odd.tar").write_bytes(tar_of(items_of(layout)))
        for path in (layout.path, tmp_path / "odd.tar"):
            assertions.failure(ocistream("verify", path), 6, NOTE)


class TestPush:
    @pytest.mark.uncounted
    @pytest.mark.parametrize("how", ["file", "pipe", "layout"])
    def test_push_asks_first_and_sends_only_new_blobs(
        self, releases: Releases, listed: Path, tmp_path: Path, how: str
    ) -> None:
        archive = tmp_path / ("delta/" if how == "layout" else "delta.tar")
        assertions.success(
            pulled(releases, archive, "--have", listed, *(["--format", "oci"] if how == "layout" else []))
        )
        releases.far.requests.clear()
        stdin, options = (archive, []) if how == "pipe" else (None, ["-i", str(archive)])
        succeed("push", f"{releases.far.host}/app:2", *options, stdin=stdin)
        assert manifest_digest(releases.far.host, "app", "2") == releases.new["digest"]
        asked = [request.path for request in releases.far.requests]
        first_upload = next(place for place, request in enumerate(releases.far.requests) if request.method == "POST")
        for digest in releases.shared:
            assert any(digest in path for path in asked[:first_upload])

    @pytest.mark.uncounted
    def test_omitted_blobs_that_the_registry_lacks_are_reported_before_anything_is_sent(
        self, releases: Releases, listed: Path, tmp_path: Path, start: Start
    ) -> None:
        empty, archive, layout = start(), tmp_path / "delta.tar", tmp_path / "delta"
        assertions.success(pulled(releases, archive, "--have", listed))
        assertions.success(pulled(releases, layout, "--have", listed, "--format", "oci"))
        for options in (["-i", str(archive)], [], ["-i", str(layout)]):
            result = ocistream("push", f"{empty.host}/app:2", *options, stdin=archive)
            assertions.failure(result, 6, *releases.shared, f"{releases.far.host}/app")
        assert not empty.asked("POST|PUT|PATCH")
        assert tags(empty.host, "app") == []

    @pytest.mark.uncounted
    def test_the_error_lists_only_missing_blobs_with_a_command_that_fetches_them(
        self, releases: Releases, delta: Path, tmp_path: Path, start: Start
    ) -> None:
        other = start()
        there, lost = sorted(releases.shared)
        seed(releases.layout, releases.layout.image([{**self._layer(releases, there)}]), other.host, "app", "x")
        result = ocistream("push", f"{other.host}/app:2", "-i", delta)
        assertions.failure(result, 6, lost)
        assert there not in result.err
        command = result.err.split("`")[1].split()
        assert command[0] == "ocistream"
        command[-1] = str(tmp_path / "missing.tar")
        succeed(*command[1:])
        assert blobs_in(tmp_path / "missing.tar") == {lost, releases.new["digest"]}

    @pytest.mark.uncounted
    @pytest.mark.parametrize(("said", "how"), [("# volume ../../etc/passwd", "file"), ("# volume app.001.tar", "pipe")])
    def test_an_archive_that_refers_to_an_unknown_volume_is_refused_before_anything_is_sent(
        self, releases: Releases, delta: Path, tmp_path: Path, said: str, how: str
    ) -> None:
        items = []
        for name, raw in assertions.entries(delta):
            content = raw
            if name == "index.json":
                index = json.loads(raw)
                index["annotations"][NOTE] = said + index["annotations"][NOTE].partition("/app")[2]
                content = json.dumps(index).encode()
            items.append((name, content))
        (tmp_path / "odd.tar").write_bytes(tar_of(items))
        stdin, options = (tmp_path / "odd.tar", []) if how == "pipe" else (None, ["-i", str(tmp_path / "odd.tar")])
        assertions.failure(
            ocistream("push", f"{releases.far.host}/new:2", *options, stdin=stdin), 6, "is not a volume of this archive"
        )
        assert not releases.far.asked("POST")

    @pytest.mark.uncounted
    def test_the_error_gives_commands_that_a_shell_can_run(
        self, releases: Releases, listed: Path, tmp_path: Path, start: Start
    ) -> None:
        empty = start()
        for name in ("a delta; rm.tar", "missing.tar"):
            assertions.success(pulled(releases, tmp_path / name, "--have", listed))
            result = ocistream("push", f"{empty.host}/app:2", "-i", tmp_path / name)
            assertions.failure(result, 6)
            pull, push = result.err.split("`")[1:]
            # A file that existed before is neither overwritten nor given twice.
            assert shlex.split(push)[-4::2] == ["-i", "-i"]
            assert shlex.split(push)[-3] == str(tmp_path / name)
            assert shlex.split(push)[-1] == shlex.split(pull)[-1] != name

    def test_the_hint_for_a_copy_into_another_archive_suggests_no_push(
        self, releases: Releases, delta: Path, tmp_path: Path
    ) -> None:
        result = ocistream("copy", delta, f"oci-archive:{tmp_path / 'x.tar'}:other:1")
        assertions.failure(result, 6, f"`ocistream pull {releases.near.host}/app:2 -o FILE`", "--have")
        assert "push" not in result.err

    @staticmethod
    def _layer(releases: Releases, digest: str) -> Descriptor:
        layers = releases.layout.read(releases.new["digest"])["layers"]
        return dict(next(layer for layer in layers if layer["digest"] == digest))

    def test_many_missing_blobs_are_listed_one_per_line(self, layout: Layout, tmp_path: Path, start: Start) -> None:
        near, far = start(), start()
        image = layout.image([tar_layer({"n": str(number).encode()}) for number in range(30)])
        seed(layout, image, near.host, "app", "1")
        base = f"{near.host}/app:1"
        succeed("pull", base, "--base", base, "-o", tmp_path / "none.tar")
        result = ocistream("push", f"{far.host}/app:1", "-i", tmp_path / "none.tar", "-q")
        assert result.code == 6
        missing = [line.split()[2] for line in result.err.splitlines() if line.startswith("ocistream: missing ")]
        assert missing == [blob["digest"] for blob in layout.blobs(image)]

    def test_an_index_whose_platform_is_omitted_is_refused(self, layout: Layout, tmp_path: Path, start: Start) -> None:
        near, far = start(), start()
        index = two_platforms(layout)
        seed(layout, index, near.host, "app", "1")
        succeed("pull", f"{near.host}/app:1", "--platform", "linux/arm64/v8", "-o", tmp_path / "a.tar")
        arm = [*("--base", str(tmp_path / "a.tar")), "--platform", "all"]
        succeed("pull", f"{near.host}/app:1", *arm, "-o", tmp_path / "delta.tar")
        assert ocistream("push", f"{far.host}/app:1", "-i", tmp_path / "delta.tar").code == 6


def test_blobs_that_another_tool_omitted_are_asked_for_first_as_well(
    layout: Layout, tmp_path: Path, served: FaultyRegistry
) -> None:
    image = layout.image([tar_layer({"a": b"b"}), tar_layer({"c": b"d"})], name="app")
    (lost, _) = layout.read(image["digest"])["layers"]
    kept = [(name, raw) for name, raw in small_first(layout) if lost["digest"][7:] not in name]
    (tmp_path / "partial.tar").write_bytes(tar_of(kept))
    assertions.failure(ocistream("push", f"{served.host}/app:1", "-i", tmp_path / "partial.tar"), 6, lost["digest"])
    assert not served.asked("POST")
