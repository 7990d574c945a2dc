"""`copy --via`: a remote ocistream reports missing blobs, and only these are sent."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ocistream as package
from tests.archives import items_of, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.signalling import signalled
from tests.docker_archives import archive_of, of_docker, saved
from tests.fault_actions import Flip
from tests.faulty_registry import Fault, FaultyRegistry, Reply, refusal
from tests.images import Descriptor, Layout, digest_of, small_image, two_platforms
from tests.registry_http import manifest_digest, seed, tags
from tests.runner import Argument, Result, forking_command, ocistream

Fake = Callable[..., str]

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Images:
    """Two versions of an image in a local registry; the second has one more layer."""

    registry: FaultyRegistry
    layout: Layout
    first: Descriptor
    second: Descriptor
    more: str

    @property
    def v1(self) -> str:
        return f"{self.registry.host}/app:v1"

    @property
    def v2(self) -> str:
        return f"{self.registry.host}/app:v2"


@pytest.fixture
def images(start: Start, layout: Layout) -> Images:
    registry = start()
    base, _ = layout.random_layer(MIB, seed=1)
    more, _ = layout.random_layer(MIB // 2, seed=2)
    first, second = layout.image([base, b"one"]), layout.image([base, b"one", more])
    for tag, image in (("v1", first), ("v2", second)):
        seed(layout, image, registry.host, "app", tag)
    return Images(registry, layout, first, second, str(more["digest"]))


@pytest.fixture
def there(start: Start, images: Images) -> FaultyRegistry:  # noqa: ARG001 - starts first
    """Return the registry of the remote side."""
    return start()


def remote(folder: Path, ocistream: list[str]) -> str:
    """Return a --via command that runs the appended command with this ocistream in its PATH."""
    folder.mkdir()
    script = folder / "ocistream"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(ocistream)} "$@"\n')
    script.chmod(0o755)
    return f"env PATH={folder}:{os.environ['PATH']}"


@pytest.fixture
def far(tmp_path: Path) -> str:
    """Return a --via command that runs the appended command with the tested ocistream in its PATH."""
    return remote(tmp_path / "bin", forking_command())


@pytest.fixture
def faked(tmp_path: Path) -> Fake:
    """Return a function that makes a --via command whose ocistream is a shell script."""

    def make(**verbs: str) -> str:
        folder = tmp_path / "fake"
        folder.mkdir(exist_ok=True)
        script = folder / "ocistream"
        cases = "".join(f"{verb}) {text}\n;;\n" for verb, text in verbs.items())
        script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/said\ncase $1 in\n{cases}esac\n')
        script.chmod(0o755)
        return f"env PATH={folder}:{os.environ['PATH']}"

    return make


def said(tmp_path: Path) -> list[str]:
    """Return the command lines of the fake remote side."""
    return (tmp_path / "fake" / "said").read_text().splitlines()


def remote_error(message: object, code: object, status: int = 3) -> str:
    """Return the shell script of a remote side that prints an error as JSON and exits."""
    error = json.dumps({"level": "error", "message": message, "hint": "free some", "exit_code": code})
    return f"head -c 10000 >/dev/null; echo {shlex.quote(error)} >&2; exit {status}"


OTHER_IMAGE = f"echo app@{digest_of(b'other')}"
NOTHING = 'cat >/dev/null; echo "# ocistream have 1"; echo "# digests 0"'


def copy(source: Argument, destination: Argument, via: str, *options: Argument, **kwargs: Any) -> Result:
    return ocistream("copy", source, destination, "--via", via, *options, **kwargs)


def failed(result: Result, code: int, *words: str) -> None:
    """Assert that a run failed with one error, which other messages may precede."""
    assert result.code == code, (result.code, result.err)
    assert result.out == b""
    lines = result.err.splitlines()
    errors = [line for line in lines if line.startswith("ocistream: error: ")]
    assert len(errors) == 1, result.err
    assert lines.index(errors[0]) >= len(lines) - 2
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err, (word, result.err)


def uploaded(registry: FaultyRegistry) -> int:
    """Return how many bytes of blobs a registry received."""
    return sum(request.received for request in registry.requests if "/uploads/" in request.path)


class TestSentBlobs:
    @pytest.mark.uncounted
    def test_an_image_arrives_unchanged_and_only_missing_blobs_are_sent(
        self, images: Images, there: FaultyRegistry, far: str, tmp_path: Path
    ) -> None:
        result = copy(images.v1, f"{there.host}/app:v1", far)
        assert result.lines() == [f"{there.host}/app:v1@{images.first['digest']}"], result.err
        assert manifest_digest(there.host, "app", "v1") == images.first["digest"]
        there.requests.clear()
        images.registry.requests.clear()
        result = assertions.success(copy(images.v2, f"{there.host}/app:v2", far, "--result", tmp_path / "r.json"))
        assert manifest_digest(there.host, "app", "v2") == images.second["digest"]
        config = images.layout.read(images.second["digest"])["config"]
        assert uploaded(there) == MIB // 2 + config["size"]
        # The other blobs are not fetched either.
        fetched = {r.path.rpartition("/")[2] for r in images.registry.requests if "/blobs/" in r.path}
        assert fetched == {images.more, config["digest"]}
        document = json.loads((tmp_path / "r.json").read_text())
        assert document["bytes"]["omitted"] == MIB + 3
        assert document["images"][0]["digest"] == images.second["digest"]
        assert f"omitted 2 blobs, 1.0 MB: in {there.host}/app" in result.err
        there.requests.clear()
        assertions.success(copy(images.v2, f"{there.host}/app:v2", far))
        assert uploaded(there) == 0
        assert {request.method for request in there.requests} == {"HEAD"}

    @pytest.mark.uncounted
    def test_a_layout_gets_only_missing_blobs(self, images: Images, far: str, tmp_path: Path) -> None:
        succeed("copy", images.v1, f"oci:{tmp_path}/out:v1")
        images.registry.requests.clear()
        result = assertions.success(copy(images.v2, f"{tmp_path}/out/", far))
        assert [line.rpartition("@")[2] for line in result.lines()] == [images.second["digest"]]
        assert images.second["digest"] in {entry["digest"] for entry in assertions.index_of(tmp_path / "out")}
        fetched = [r for r in images.registry.requests if "/blobs/" in r.path and r.method == "GET"]
        assert len(fetched) == 2
        succeed("verify", "--deep", tmp_path / "out")

    def test_an_archive_gets_all_blobs(self, images: Images, far: str, tmp_path: Path) -> None:
        assertions.success(copy(images.v2, f"oci-archive:{tmp_path}/out.tar:app", far))
        assert assertions.names_in(tmp_path / "out.tar") == ["app"]
        succeed("verify", tmp_path / "out.tar")

    @pytest.mark.uncounted
    @pytest.mark.parametrize("kind", ["layout", "pipe"])
    def test_an_index_arrives_from_a_layout_or_a_pipe(
        self, kind: str, layout: Layout, start: Start, far: str, tmp_path: Path
    ) -> None:
        there = start()
        image = two_platforms(layout, name="both")
        source, stdin = (f"oci:{layout.path}", None) if kind == "layout" else ("-", tar_of(items_of(layout)))
        name, report = f"{there.host}/app:1", tmp_path / "r.json"
        for _ in range(2):
            result = copy(source, name, far, "--result", report, stdin=stdin)
            assert result.lines() == [f"{name}@{image['digest']}"], result.err
        assert manifest_digest(there.host, "app", "1") == image["digest"]
        children = [layout.read(child["digest"]) for child in layout.read(image["digest"])["manifests"]]
        layers = {layer["digest"]: layer["size"] for child in children for layer in child["layers"]}
        # If the index is last in a pipe, the layers are sent before the remote side can be asked.
        sent = 0 if kind == "layout" else sum(layers.values())
        assert json.loads(report.read_text())["bytes"]["copied"] == sent

    def test_an_image_of_a_docker_archive_arrives(self, layout: Layout, start: Start, far: str, tmp_path: Path) -> None:
        there = start()
        archive = tmp_path / "x.tar"
        archive.write_bytes(archive_of(of_docker([saved(layout, small_image(layout), "app:1")])))
        for _ in range(2):
            result = copy(archive, f"{there.host}/app:1", far)
            assert result.lines() == [f"{there.host}/app:1@{manifest_digest(there.host, 'app', '1')}"], result.err

    @pytest.mark.uncounted
    def test_referrers_are_sent_too(self, images: Images, there: FaultyRegistry, far: str) -> None:
        parts = images.layout.artifact(b"a list of parts", subject=images.first)
        seed(images.layout, parts, images.registry.host, "app")
        assertions.success(copy(images.v1, f"{there.host}/app:v1", far))
        assert manifest_digest(there.host, "app", parts["digest"]) == parts["digest"]

    def test_mountable_blobs_are_not_sent(self, images: Images, there: FaultyRegistry, far: str) -> None:
        seed(images.layout, images.first, there.host, "base", "1")
        absent = Fault(refusal(404, "BLOB_UNKNOWN"), "HEAD", path="/v2/app/blobs/", times=None)
        there.faults.append(absent)
        there.requests.clear()
        assertions.success(copy(images.v2, f"{there.host}/app:v2", far, "--mount-from", "base"))
        assert uploaded(there) < MIB
        assert any("mount=" in request.target and "from=base" in request.target for request in there.requests)


class TestMessages:
    @pytest.mark.uncounted
    def test_remote_messages_have_a_prefix(self, images: Images, there: FaultyRegistry, far: str) -> None:
        # The remote side copied what this side sent, so only this side reports it.
        assertions.success(quiet := copy(images.v1, f"{there.host}/app:v0", far))
        assert [line for line in quiet.err.splitlines() if "remote: " in line] == []
        # The registry lacks a layer and the config of the second version.
        result = copy(images.v2, f"{there.host}/app:v2", far, "-v")
        lines = result.err.splitlines()
        for side in ("", "remote: "):
            (summary,) = (line for line in lines if re.match(rf"ocistream: {side}copied [0-9]+ blobs?, ", line))
            assert summary.startswith(f"ocistream: {side}copied 2 blobs, 525.0 kB, in ")
        assert copy(images.v1, f"{there.host}/app:v1", far, "-q").err == ""

    @pytest.mark.uncounted
    def test_remote_messages_have_a_side_in_json(self, images: Images, there: FaultyRegistry, far: str) -> None:
        result = copy(images.v1, f"{there.host}/app:v1", far, "--log-format", "json", "--progress", "json", "-v")
        assertions.success(result)
        objects = assertions.json_lines(result.err)
        sides = {side: [o for o in objects if o.get("side") == side] for side in ("remote", None)}
        assert len(sides["remote"]) + len(sides[None]) == len(objects)
        for found in sides.values():
            assert [o for o in found if str(o.get("message", "")).startswith("copied 3 blobs")]
            events = {o.get("event") for o in found} - {None}
            assert events == {"planned", "progress", "blob"}

    def test_a_different_version_is_reported(self, images: Images, faked: Fake) -> None:
        via = faked(
            have='cat >/dev/null; echo "# ocistream have 1"; echo "# by ocistream 9.9"; echo "# digests 0"',
            push=f"cat >/dev/null; echo app@{images.first['digest']}",
        )
        result = assertions.success(copy(images.v1, "registry.local/app:v1", via))
        assert f"the remote side has ocistream 9.9, this side has {package.__version__}" in result.err

    def test_remote_messages_cannot_control_the_terminal(self, images: Images, faked: Fake) -> None:
        via = faked(
            have=f"printf 'Welcome\\033[2J\\n' >&2; head -c 200000 /dev/zero | tr '\\0' a >&2; echo >&2; {NOTHING}",
            push=f'cat >/dev/null; printf "%s\\n" \'{{"level": "info", "message": "a\\u001b[2J\\nb"}}\' >&2; '
            f"echo app@{images.first['digest']}; echo '{'[' * 50_000}' >&2",
        )
        result = assertions.success(copy(images.v1, "registry.local/app:v1", via))
        assert "ocistream: remote: Welcome?[2J\n" in result.err
        assert "ocistream: remote: a?[2J?b\n" in result.err
        assert "\033" not in result.err
        assert max(map(len, result.err.splitlines())) < 70_000

    def test_options_that_are_passed_to_the_remote_side(self, images: Images, faked: Fake, tmp_path: Path) -> None:
        via = faked(have=NOTHING, push=f"cat >/dev/null; echo app@{images.first['digest']}")
        options = ["--upload", "chunk=1MiB", "--mount-from", "base", "--plain-http", "--limit-rate", "1G", "-v"]
        options += ["--retries", "2", "--via-program", "ocistream"]
        assertions.success(copy(images.v1, "docker://registry.local/app:v1", via, *options))
        asked, pushed = said(tmp_path)
        common = (
            "--plain-http --retries 2 --connect-timeout 15 --stall-timeout 60 --mount-from base --log-format json -v"
        )
        assert asked == f"have --among - registry.local/app {common}"
        upload = "--upload chunk=1048576 --limit-rate 1073741824 --progress none"
        assert pushed == f"push registry.local/app:v1 {common} {upload}"

    @pytest.mark.parametrize(
        ("given", "passed"),
        [
            ([], ""),
            (["--insecure"], "--insecure "),
            (["--dest-plain-http", "--dest-insecure"], "--plain-http --insecure "),
            (["--src-plain-http", "--src-insecure"], ""),
        ],
    )
    def test_options_of_the_destination_are_passed_to_the_remote_side(
        self, images: Images, faked: Fake, tmp_path: Path, given: list[str], passed: str
    ) -> None:
        via = faked(have=NOTHING, push=f"cat >/dev/null; echo app@{images.first['digest']}")
        assertions.success(copy(images.v1, "docker://registry.local/app:v1", via, *given))
        asked, pushed = said(tmp_path)
        assert asked.startswith(f"have --among - registry.local/app {passed}--retries ")
        assert pushed.startswith(f"push registry.local/app:v1 {passed}--retries ")


class TestRefusals:
    @pytest.mark.parametrize(
        "end",
        [
            "oci:my layout",
            "oci:$HOME/x",
            "oci:~/x",
            "oci:a;b",
            "oci:a'b",
            "oci:a*",
            "oci:-{a,b}",
            "oci:a\nb",
            "[::1]/a:1",
        ],
    )
    def test_a_name_that_a_shell_might_interpret_is_refused(self, end: str, tmp_path: Path) -> None:
        result = copy("registry.local/app:1", end, f"touch {tmp_path}/ran")
        assertions.failure(result, 2, "to the remote side: a shell there might interpret it")
        assert not (tmp_path / "ran").exists()

    def test_a_program_that_a_shell_might_interpret_is_refused(self, tmp_path: Path) -> None:
        result = copy("registry.local/app:1", "oci:x", f"touch {tmp_path}/ran", "--via-program", "a;b")
        assertions.failure(result, 2, "'a;b'")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("end", ["-", "out.tar/../x", "./out", "docker-archive:x.tar", "oci-archive:-"])
    def test_an_ambiguous_or_unsupported_destination_is_refused(self, end: str, tmp_path: Path) -> None:
        result = copy("registry.local/app:1", end, f"touch {tmp_path}/ran")
        assert result.code == 2, result.err
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "options",
        [
            ["--dest-username", "me"],
            ["--dest-password-stdin"],
            ["--dest-password-file", "x"],
            ["--dest-authfile", "x"],
            ["--dest-ca-cert", "x"],
            ["--dest-client-cert", "x"],
            ["--dest-client-key", "x"],
            ["--compress", "zstd"],
            ["--have", "x"],
            ["--base", "x"],
            ["--only", digest_of(b"x")],
            ["--all-tags"],
            ["--tags", "1.*"],
        ],
        ids=lambda options: str(options[0]),
    )
    def test_options_without_meaning_on_the_remote_side_are_refused(self, options: list[str], tmp_path: Path) -> None:
        result = copy("registry.local/app:1", "oci:x", f"touch {tmp_path}/ran", *options, stdin=b"secret")
        assertions.failure(result, 2, options[0], "--via")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("via", ["", "  ", "ssh 'host", "''"])
    def test_an_invalid_command_is_refused(self, via: str) -> None:
        assertions.failure(copy("registry.local/app:1", "oci:x", via), 2, "--via")

    def test_a_password_in_a_command_is_not_shown(self, images: Images, tmp_path: Path) -> None:
        for via in ("sshpass -p hunter2 'ssh", "sh -c 'exit 1' hunter2", "env -u hunter2 false"):
            result = copy(images.v1, f"oci:{tmp_path}/x", via, "-v")
            assert result.code in {2, 7}
            assert "hunter2" not in result.err


class TestFailures:
    @pytest.mark.parametrize(
        ("via", "code", "words"),
        [
            ("no-such-command", 4, ["no-such-command"]),
            ("./", 9, []),
            ("env --", 4, ["no-such-program", "--via-program"]),
            (
                "sh -c 'echo ssh: refused >&2; exit 255'",
                7,
                ["could not connect: ssh: refused", "check the host and the command of --via"],
            ),
            ("sh -c 'kill -9 $$'", 7, ["signal 9"]),
            ("sh -c 'echo no such pod >&2; exit 1'", 7, ["no such pod", "exit status 1", "appends its own command"]),
            ("sh -c 'echo executable file not found in PATH >&2; exit 1'", 4, ["--via-program"]),
            ("true", 6, ["the list of the remote side has no digests and no `# digests` line"]),
            ("echo Welcome", 6, ["line 1", "Welcome", "greeting"]),
            ("echo '# ocistream have 2'", 8, ["format 2"]),
        ],
    )
    def test_a_failing_connection_is_explained(self, via: str, code: int, words: list[str], images: Images) -> None:
        program = ["--via-program", "no-such-program"] if "env" in via else []
        via = via.replace("echo '#", "sh -c 'echo \"#").replace("have 2'", "have 2\"'")
        result = copy(images.v1, "registry.local/app:v1", via, *program)
        assertions.failure(result, code, *words)

    @pytest.mark.parametrize(
        ("have", "push", "code", "words"),
        [
            # The list is malformed: this is reported instead of the broken pipe.
            ("cat >/dev/null; echo Welcome; yes", "", 6, ["'Welcome' is not a digest"]),
            # An earlier version of ocistream.
            (remote_error("No such command 'have'.", 2), "", 8, ["No such command 'have'", "same version"]),
            # The remote error is shown with any exit status of the connection.
            *(
                (NOTHING, remote_error("disk full", 9, status), 9, ["the remote side failed: disk full", "free some"])
                for status in (9, 1)
            ),
            (NOTHING, remote_error([], []), 7, ["exit status 3"]),
            (NOTHING, """echo '{"level": "error"}' >&2; exit 3""", 7, ["exit status 3"]),
            (NOTHING, "echo '{}' >&2; exit 3", 7, ["exit status 3"]),
            (NOTHING, "head -c 100 >/dev/null; echo app@DIGEST", 7, ["ended before it had the complete archive"]),
            # The remote side wrote another image, or none.
            *((NOTHING, f"cat >/dev/null; {printed}", 5, ["DIGEST"]) for printed in ("", OTHER_IMAGE, "echo app")),
        ],
    )
    def test_a_failing_remote_side_is_an_error(
        self, have: str, push: str, code: int, words: list[str], images: Images, faked: Fake
    ) -> None:
        digest = images.second["digest"]
        result = copy(images.v2, "registry.local/app:v2", faked(have=have, push=push.replace("DIGEST", digest)))
        assertions.failure(result, code, *(word.replace("DIGEST", digest) for word in words))

    def test_a_command_that_does_not_forward_stdin_is_reported(
        self, images: Images, there: FaultyRegistry, far: str
    ) -> None:
        folder = shlex.split(far)[1].removeprefix("PATH=").partition(":")[0]
        via = """sh -c 'exec "$0" "$@" </dev/null'"""
        result = copy(images.v1, f"{there.host}/app:v1", via, "--via-program", f"{folder}/ocistream")
        failed(result, 6, "the remote side failed", "docker exec -i")

    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            (Fault(refusal(401, "UNAUTHORIZED"), times=None), 3),
            (Fault(Reply(500), "PUT", path="/manifests/", times=None), 7),
        ],
        ids=["asking", "a manifest"],
    )
    def test_errors_of_the_remote_registry_have_their_exit_codes(
        self, fault: Fault, code: int, images: Images, there: FaultyRegistry, far: str
    ) -> None:
        there.faults.append(fault)
        result = copy(images.v2, f"{there.host}/app:v2", far, "--retries", "0")
        failed(result, code, "the remote side failed: ", there.host)
        there.faults.clear()
        assert tags(there.host, "app") == []

    def test_a_failure_of_the_source_makes_nothing_visible(
        self, images: Images, there: FaultyRegistry, far: str
    ) -> None:
        images.registry.faults.append(Fault(Flip(MIB // 4), path=f"/blobs/{images.more}", times=None))
        result = copy(images.v2, f"{there.host}/app:v2", far)
        failed(result, 5, images.more)
        # The remote side's error about the truncated stream is not shown.
        assert "remote" not in result.err
        assert tags(there.host, "app") == []
        images.registry.faults.clear()
        there.requests.clear()
        assertions.success(copy(images.v2, f"{there.host}/app:v2", far))
        # Blobs that arrived completely are not sent again.
        assert uploaded(there) < MIB

    def test_the_remote_error_after_a_local_failure_is_not_shown(self, images: Images, faked: Fake) -> None:
        images.registry.faults.append(Fault(Flip(MIB // 4), path=f"/blobs/{images.more}", times=None))
        via = faked(have=NOTHING, push="cat >/dev/null; echo it has no end >&2; echo what now >&2; exit 6")
        assertions.failure(copy(images.v2, "registry.local/app:v2", via), 5, images.more)

    def test_a_remote_side_that_claims_blobs_that_it_lacks_is_an_error(
        self, images: Images, there: FaultyRegistry, far: str, faked: Fake
    ) -> None:
        digests = [blob["digest"] for blob in images.layout.read(images.second["digest"])["layers"]]
        real = shlex.split(far)[1].removeprefix("PATH=").partition(":")[0]
        via = faked(have="cat >/dev/null; printf '%s\\n' " + " ".join(digests), push=f'exec {real}/ocistream "$@"')
        result = copy(images.v2, f"{there.host}/app:v2", via)
        failed(
            result,
            6,
            " are missing: they were omitted from the archive on stdin (in ",
            "the remote side listed these blobs, but does not have them now: re-run the command",
        )
        assert tags(there.host, "app") == []

    def test_a_damaged_remote_blob_is_sent_again(self, images: Images, far: str, tmp_path: Path) -> None:
        end = f"oci:{tmp_path / 'there'}"
        assertions.success(copy(images.v1, f"{end}:v1", far))
        base = images.layout.read(images.first["digest"])["layers"][0]["digest"]
        path = tmp_path / "there" / "blobs" / "sha256" / base[7:]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assertions.success(copy(images.v2, f"{end}:v2", far))
        assert digest_of(path.read_bytes()) == base

    def test_remote_events_may_have_any_fields(self, images: Images, faked: Fake) -> None:
        events = r"""echo '{"event": "x", "self": 1, "side": 2}' >&2; head -c 200000 /dev/zero | tr '\0' a >&2"""
        result = copy(
            images.v1, "registry.local/app:v1", faked(have=f"cat >/dev/null; {events}; exit 9"), "--progress", "json"
        )
        said_lines = [json.loads(line) for line in result.err.splitlines()]
        assert {"event": "x", "self": 1, "side": "remote"} in said_lines
        assert "Traceback" not in result.err

    def test_long_remote_output_is_truncated(self, images: Images, faked: Fake) -> None:
        via = faked(have="cat >/dev/null; head -c 60000 /dev/zero | tr '\\0' a >&2; exit 9")
        result = copy(images.v1, "registry.local/app:v1", via)
        failed(result, 7, "aaaa")
        assert len(result.err) < 5000


class TestInterruption:
    @pytest.mark.usefixtures("interruptible")
    # One signal for each command is enough: they do not depend on each other.
    @pytest.mark.parametrize(("number", "verb"), [(signal.SIGINT, "have"), (signal.SIGTERM, "push")])
    def test_nothing_is_left_running(
        self, verb: str, number: signal.Signals, images: Images, faked: Fake, tmp_path: Path
    ) -> None:
        hangs = f"echo $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; exec sleep 600"
        via = faked(**{"have": NOTHING, verb: hangs})
        # Only this process gets the signal; a terminal would send it to both.
        argv = ["copy", images.v2, "registry.local/app:v2", "--via", via]
        ended = signalled(number, *argv, until=(tmp_path / "pid").exists)
        assert (ended.code, ended.out) == (128 + number, b"")
        assert "Traceback" not in ended.err
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
