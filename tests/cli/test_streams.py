"""The contents of stdout and stderr. An archive is never written to or read from a terminal."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.terminal import on_terminal
from tests.faulty_registry import Fault, FaultyRegistry, redirect, refusal
from tests.images import OCI_LAYER, Layout, small_image, two_platforms
from tests.registry_http import seed, tags
from tests.runner import command, ocistream, real, run, started_fork


@pytest.fixture
def registry(served: FaultyRegistry, layout: Layout) -> FaultyRegistry:
    """Return a registry that has `app:1`, and `multi:1` of two platforms."""
    seed(layout, small_image(layout, name="app"), served.host, "app", "1")
    seed(layout, two_platforms(layout, name="multi"), served.host, "multi", "1")
    return served


@pytest.mark.uncounted
def test_stdout_has_only_the_archive(registry: FaultyRegistry, dev_stdout: Path, tmp_path: Path) -> None:
    image = f"{registry.host}/app:1"
    succeed("pull", image, "-o", tmp_path / "app.tar")
    archive = (tmp_path / "app.tar").read_bytes()
    assert real("pull", image).out == archive
    for argv in (
        ["pull", image, "-o", str(dev_stdout)],
        ["pull", image, "-o", "oci-archive:-"],
        ["pull", image, "--format", "oci-archive", "-vv"],
        ["copy", "--platform=all", image, "-"],
    ):
        assert ocistream(*argv).out == archive, argv


def test_a_redirected_stdout_is_not_replaced(registry: FaultyRegistry, dev_stdout: Path, tmp_path: Path) -> None:
    """`pull -o /dev/stdout > app.tar` writes into the file that the shell opened: it must not be replaced."""
    target = tmp_path / "app.tar"
    succeed("pull", f"{registry.host}/app:1", "-o", dev_stdout, stdout=target)
    assert dev_stdout.is_symlink()
    assert [name for name, _ in assertions.entries(target)][:2] == ["oci-layout", "index.json"]
    assertions.nothing_left(tmp_path, "app.tar", "made", "served-0", "stdout")


def test_stdout_has_only_result_lines_otherwise(registry: FaultyRegistry, tmp_path: Path) -> None:
    app, multi = f"{registry.host}/app:1", f"{registry.host}/multi:1"
    for argv, count in (
        (["pull", app, multi, "-o", f"{tmp_path}/both.tar", "-vv"], 2),
        (["pull", app, "-o", f"{tmp_path}/layout/", "--progress=json"], 1),
        (["push", "-i", f"{tmp_path}/layout", f"{registry.host}/other:1", "--log-format=json"], 1),
        (["copy", f"{tmp_path}/both.tar", f"oci:{tmp_path}/layout"], 2),
    ):
        lines = ocistream(*argv).lines()
        assert len(lines) == count, argv
        for line in lines:
            name, _, digest = line.partition("@sha256:")
            assert name.startswith(registry.host)
            assert len(digest) == 64


@pytest.mark.parametrize("end", ["-", "oci-archive:-", "DEV_STDOUT"])
def test_an_archive_is_never_written_to_a_terminal(registry: FaultyRegistry, dev_stdout: Path, end: str) -> None:
    registry.requests.clear()
    written = end.replace("DEV_STDOUT", str(dev_stdout))
    seen = on_terminal("pull", f"{registry.host}/app:1", "-o", written, streams=["stdout", "stderr"])
    assert seen.code == 2
    assert "not written to terminals" in seen.screen
    assert "oci-layout" not in seen.screen
    assert registry.requests == []


def test_a_terminal_given_as_a_path_is_refused_too(registry: FaultyRegistry) -> None:
    ours, theirs = os.openpty()
    try:
        path = os.ttyname(theirs)
        assertions.failure(ocistream("pull", f"{registry.host}/app:1", "-o", path), 2, path, "terminal")
        assertions.failure(ocistream("push", f"{registry.host}/app:2", "-i", path), 2, path, "terminal")
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    "argv", [["push", "HOST/app:2"], ["push", "HOST/app:2", "-i", "-"], ["copy", "-", "HOST/app:2"]]
)
def test_an_archive_is_never_read_from_a_terminal(registry: FaultyRegistry, argv: list[str]) -> None:
    registry.requests.clear()
    seen = on_terminal(*[word.replace("HOST", registry.host) for word in argv], streams=["stdin", "stderr"])
    assert seen.code == 2
    assert "stdin, which is a terminal" in seen.screen
    assert registry.requests == []


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        (["push", "HOST/app:2"], "push -i PATH"),
        (["verify"], "verify PATH"),
        (["inspect", "-"], "inspect PATH"),
        (["digest", "-"], "digest PATH"),
        (["tags", "-"], "tags PATH"),
        (["have", "-"], "have PATH"),
        (["copy", "-", "FOLDER/out.tar"], "copy PATH DST"),
        (["copy", "HOST/app:1", "-"], "copy SRC FILE"),
        (["pull", "HOST/app:1"], "pull -o FILE"),
    ],
)
@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "terminal"])
def test_the_hint_names_a_file_as_the_command_does(
    registry: FaultyRegistry, argv: list[str], usage: str, is_closed: bool, tmp_path: Path
) -> None:
    words = [word.replace("HOST", registry.host).replace("FOLDER", str(tmp_path)) for word in argv]
    stream = 1 if usage.endswith("FILE") else 0
    if is_closed:
        result = ocistream(*words, closed=[stream])
        code, said = result.code, result.err
    else:
        seen = on_terminal(*words, streams=[("stdin", "stdout")[stream], "stderr"])
        code, said = seen.code, seen.screen
    assert code == 2
    kind = "name an output file" if stream else "name a file or directory"
    assert f"{kind} (`{usage}`)" in " ".join(said.split())


@pytest.mark.uncounted
def test_quiet_prints_only_errors(registry: FaultyRegistry, tmp_path: Path) -> None:
    result = ocistream("pull", "-q", f"{registry.host}/app:1", "-o", tmp_path / "app.tar")
    assert (result.code, result.err) == (0, "")
    assert len(result.lines()) == 1
    assertions.failure(ocistream("pull", "-q", f"{registry.host}/gone:1", "-o", tmp_path / "app.tar"), 4, "gone:1")
    seen = on_terminal("pull", "-q", f"{registry.host}/app:1", "-o", tmp_path / "app.tar", streams=["stderr"])
    assert (seen.code, seen.screen) == (0, "")


def test_verbose_prints_each_blob_and_each_retry(registry: FaultyRegistry, tmp_path: Path) -> None:
    registry.faults = [Fault(refusal(503), "GET", "/blobs/")]
    result = succeed("pull", "-v", f"{registry.host}/app:1", "-o", f"{tmp_path}/layout/", no_waits=True)
    assert result.err.count("ocistream: copied sha256:") == 3
    assert f"http://{registry.host}/v2/app/blobs/sha256:" in result.err
    assert "answered 503; retrying in " in result.err
    again = ocistream("pull", "-v", f"{registry.host}/app:1", "-o", f"{tmp_path}/layout/")
    assert again.err.count("ocistream: skipped sha256:") == 3


def test_a_long_wait_is_reported(registry: FaultyRegistry, tmp_path: Path) -> None:
    registry.faults = [Fault(refusal(503, Retry_After="30"), "GET", "/manifests/")]
    with started_fork("pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar") as process:
        assert b"answered 503; retrying in 30.0 s (1 of 5)\n" in process.stderr.readline()


@pytest.mark.parametrize("verbosity", [[], ["-v"], ["-vv"]])
def test_every_line_on_stderr_is_json_with_log_format_json(
    registry: FaultyRegistry, tmp_path: Path, verbosity: list[str]
) -> None:
    argv = ["--log-format", "json", *verbosity]
    moved = ocistream("pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar", *argv)
    assert {line["level"] for line in assertions.json_lines(moved.err)} <= {"info", "debug"}
    failed = ocistream("push", "-i", tmp_path / "gone.tar", f"{registry.host}/app:1", *argv)
    first, *rest = assertions.json_lines(failed.err)
    assert (first["level"], first["exit_code"]) == ("error", 4)
    assert "gone.tar" in first["message"]
    assert len(rest) == (1 if verbosity == ["-vv"] else 0)


@pytest.mark.parametrize(
    "argv",
    [
        ["pull", "--log-format=json", "UPPER/CASE", "-o", "x.tar"],
        ["pull", "--log-format=json", "--no-such-option"],
        ["copy", "a", "--log-format", "json"],
        ["pull", "x", "--progress", "json", "--jobs", "many"],
    ],
)
def test_a_usage_error_is_json_too(argv: list[str]) -> None:
    result = ocistream(*argv)
    (line,) = assertions.json_lines(result.err)
    assert (result.code, line["exit_code"], line["level"]) == (2, 2, "error")
    assert line["hint"]


def test_json_messages_disable_the_bar(registry: FaultyRegistry, tmp_path: Path) -> None:
    seen = on_terminal("pull", "--log-format=json", f"{registry.host}/app:1", "-o", tmp_path / "x", streams=["stderr"])
    assert seen.code == 0
    (line,) = assertions.json_lines(seen.screen)
    assert line["message"].startswith("copied 3 blobs")


@pytest.mark.parametrize(
    "argv",
    [
        ["pull", "IMAGE", "-o", "DIR/app.tar"],
        ["pull", "--dry-run", "IMAGE", "-o", "DIR/app.tar"],
        ["push", "-i", "MADE", "--image", "app", "HOST/new:1"],
        ["copy", "IMAGE", "DIR/app.tar"],
        ["sync", "-q", "DIR/images.toml"],
        ["verify", "MADE"],
        ["verify", "--json", "MADE"],
        ["inspect", "IMAGE"],
        ["inspect", "--json", "IMAGE"],
        ["inspect", "--raw", "IMAGE"],
        ["inspect", "--format", "{digest}", "IMAGE"],
        ["digest", "IMAGE"],
        ["tags", "HOST/app"],
        ["have", "IMAGE"],
        ["rm", "MADE", "app"],
        ["gc", "MADE", "--older-than", "0"],
        ["config", "show"],
        ["completion", "bash"],
        ["serve", "MADE", "--listen", "127.0.0.1:0"],
        ["version"],
        ["--version"],
        ["help"],
        ["help", "pull"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "unwritable"])
def test_a_result_that_cannot_be_written_is_a_failure_unless_the_command_has_another_effect(
    registry: FaultyRegistry, layout: Layout, tmp_path: Path, argv: list[str], is_closed: bool
) -> None:
    (tmp_path / "images.toml").write_text(
        f'[[sync]]\nfrom = "{registry.host}/app:1"\nto = "oci:{tmp_path}/copied"\nplatforms = "all"\n'
    )
    layout.blob(b"a blob that no image needs", OCI_LAYER)
    texts = {"IMAGE": f"{registry.host}/app:1", "HOST": registry.host, "MADE": str(layout.path), "DIR": str(tmp_path)}
    words = [functools.reduce(lambda text, name: text.replace(name, texts[name]), texts, word) for word in argv]
    if is_closed:
        printing = ("config", "completion", "digest", "have", "help", "inspect", "tags", "version")
        if argv[0] in printing:
            assertions.failure(ocistream(*words, closed=[1]), 9, "stdout", "it is closed", "/dev/null")
        elif argv[0] != "serve":
            succeed(*words, closed=[1])
        return
    # Opened for reading, so each write fails.
    stdout = os.open(os.devnull, os.O_RDONLY)
    try:
        assertions.failure(ocistream(*words, stdout=stdout), 9, "cannot write to stdout")
    finally:
        os.close(stdout)


def test_a_needed_stream_that_is_closed_is_a_usage_error(registry: FaultyRegistry) -> None:
    for argv, closed in ((["pull", f"{registry.host}/app:1"], 1), (["push", f"{registry.host}/new:1"], 0)):
        assertions.failure(ocistream(*argv, closed=[closed]), 2, "closed")
    assert tags(registry.host, "new") == []


def test_no_secret_and_no_signed_query_is_printed(start: Start, layout: Layout, tmp_path: Path) -> None:
    registry = start(Fault(refusal(500), "GET", "signature=hunter2", times=None))
    seed(layout, small_image(layout), registry.host, "app", "1")
    blob = f"http://{registry.host}/v2/app/blobs/sha256:{'0' * 64}?signature=hunter2"
    registry.faults.append(Fault(redirect(blob), "GET", "/blobs/", times=None))
    result = ocistream(
        "pull", f"{registry.host}/app:1", "-o", tmp_path / "x.tar", "--retries=1", "-vv", "--username=me",
        env={"OCISTREAM_PASSWORD": "hunter2"}, no_waits=True,
    )  # fmt: skip
    assert result.code == 7
    assert "hunter2" not in result.err


def test_a_full_disk_for_stderr_does_not_change_the_exit_code(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app:1")
    # Without this variable, which some machines set, Python keeps what it could not write and retries at exit.
    line = ["env", "-u", "PYTHONUNBUFFERED", "sh", "-c", 'exec "$@" 2>/dev/full', "sh", *command()]
    copied = run([*line, "copy", str(layout.path), str(tmp_path / "app.tar")])
    assert (copied.code, copied.out.count(b"@sha256:")) == (0, 1)
    assert run([*line, "copy", str(tmp_path / "nothing.tar"), str(tmp_path / "other.tar")]).code == 4


def test_platform_all_and_one_platform_contradict(registry: FaultyRegistry) -> None:
    registry.requests.clear()
    for platforms in (["all", "linux/arm64"], ["linux/arm64", "all"]):
        options = [word for platform in platforms for word in ("--platform", platform)]
        for verb in (["pull"], ["inspect"]):
            assertions.failure(ocistream(*verb, f"{registry.host}/multi:1", *options), 2, "all", "linux/arm64")
    assert registry.requests == []
    succeed("inspect", f"{registry.host}/multi:1", "--platform", "all", "--platform", "all")
