"""Progress on stderr: bar, plain lines, JSON events or nothing, with correct numbers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.archives import items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.cli.terminal import Screen, on_terminal, resize
from tests.docs_examples import ROOT, blocks, is_like
from tests.faulty_registry import Drop, Fault, FaultyRegistry, Stall
from tests.images import Descriptor, Layout
from tests.registry_http import seed
from tests.runner import ocistream, started_fork

MIB = 1 << 20


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with layers of 3 MiB, 2 MiB and a few bytes."""
    return layout.image([3 * MIB, 2 * MIB, b"small"], name="app")


@pytest.fixture
def total(layout: Layout, image: Descriptor) -> int:
    """Return the total size of all blobs of the image."""
    return sum(blob["size"] for blob in layout.blobs(image))


def events(*argv: object, stdin: bytes | None = None) -> list[dict[str, Any]]:
    """Run with progress as JSON, and return all objects from stderr."""
    result = succeed(*map(str, argv), "--progress", "json", stdin=stdin)
    return assertions.json_lines(result.err)


def check(lines: list[dict[str, Any]], total: int, how: set[str]) -> None:
    """Check that totals come first, that the bytes reach the total and do not exceed it, and each blob's status."""
    first, *rest = [line for line in lines if "event" in line]
    assert (first["event"], first["total"], first["blobs"]) == ("planned", total, 4)
    blobs = [line for line in rest if line["event"] == "blob"]
    assert {line["status"] for line in blobs} == how
    assert sum(line["size"] for line in blobs) == total
    moved = [line for line in rest if line["event"] == "progress"]
    assert {line["total"] for line in moved} == {total}
    assert max(line["bytes"] for line in moved) == moved[-1]["bytes"] == total


def test_json_progress_is_one_object_per_line_and_adds_up(registry: FaultyRegistry, total: int, tmp_path: Path) -> None:
    image = f"{registry.host}/app:1"
    for target in (tmp_path / "app.tar", f"{tmp_path}/layout/"):
        lines = events("pull", image, "-o", target)
        check(lines, total, {"copied"})
        assert lines[0]["images"] == [{"name": image, "digest": assertions.index_of(tmp_path / "app.tar")[0]["digest"]}]
        assert lines[-1]["message"].startswith("copied 4 blobs")


def test_progress_of_a_pipe_adds_up_in_every_order(
    served: FaultyRegistry, start: Start, layout: Layout, total: int
) -> None:
    check(events("push", f"{served.host}/app:1", stdin=tar_of(small_first(layout))), total, {"copied"})
    # Blobs that precede the index are copied before the total is known.
    lines = events("push", f"{start().host}/app:1", stdin=tar_of(items_of(layout)))
    done = [line for line in lines if line.get("event") == "progress"]
    assert done[-1] == {"event": "progress", "bytes": total, "total": total}


def test_a_restarted_download_is_not_counted_twice(
    registry: FaultyRegistry, start: Start, total: int, tmp_path: Path
) -> None:
    registry.faults = [Fault(Drop(MIB + 17), "GET", "/blobs/", times=2)]
    check(events("pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar"), total, {"copied"})
    other = start(Fault(Drop(0), "PATCH", larger_than=MIB))
    check(events("push", "-i", tmp_path / "app.tar", f"{other.host}/app:1"), total, {"copied"})


def test_an_image_without_blobs_has_a_total_too(served: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
    seed(layout, layout.index([]), served.host, "empty", "1")
    (first, last) = events("pull", f"{served.host}/empty:1", "--platform=all", "-o", tmp_path / "empty.tar")
    assert (first["total"], first["blobs"]) == (0, 0)
    assert last["message"].startswith("copied 0 blobs")


@pytest.mark.parametrize("columns", [40, 200])
def test_a_terminal_gets_a_bar_that_is_erased_at_the_end(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path, columns: int
) -> None:
    large = [layer["digest"] for layer in layout.read(image["digest"])["layers"] if layer["size"] > MIB]
    registry.faults = [Fault(Stall(after=3 * MIB // 2), "GET", "|".join(large), times=None)]
    seen = on_terminal(
        *("pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/layers/"),
        streams=["stderr"],
        size=(24, columns),
        # The two large layers have stalled; the small blobs are copied.
        moments=[("2 of 4 blobs: 2 copied", lambda _: registry.release())],
    )
    assert seen.code == 0
    assert all(re.search(rf"{digest[7:19]} +[0-9]+%\|", seen.screen) for digest in large)
    # The last drawing shows the complete size.
    *_, last = re.findall(r"([0-9]+)%\|[^|]*\| ([^\r\n\x1b]*)\x1b", seen.screen)
    assert last[0] == "100"
    assert last[1].startswith("5.2 MB of 5.2 MB")
    screen = Screen(columns, seen.screen)
    assert [line for line in screen.broken if not line.startswith("ocistream: ")] == []
    assert re.fullmatch(r"ocistream: copied 4 blobs, 5.2 MB, in [0-9.]+ s \([0-9.]+ [kM]B/s\)", "".join(screen.lines))


def test_a_bar_follows_the_size_of_its_terminal(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    largest = max(layout.read(image["digest"])["layers"], key=lambda layer: layer["size"])
    registry.faults = [Fault(Stall(after=3 * MIB // 2), "GET", largest["digest"], times=None)]
    narrow = "of 3.1 MB\x1b[K"  # the rate does not fit

    seen = on_terminal(
        *("pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/layers/"),
        streams=["stderr"],
        size=(24, 120),
        moments=[("B/s\x1b[K", lambda terminal: resize(terminal, 24, 42)), (narrow, lambda _: registry.release())],
    )
    assert seen.code == 0
    after = seen.screen.partition(narrow)[2]
    assert max(map(len, re.split(r"[\r\n]|\x1b\[[0-9]*[A-Z]", after.rpartition("ocistream: ")[0]))) < 42


def test_messages_do_not_break_the_bar(registry: FaultyRegistry, tmp_path: Path) -> None:
    argv = ["pull", "-v", f"{registry.host}/app:1", "-o", f"{tmp_path}/app.tar"]
    seen = on_terminal(*argv, streams=["stderr"], size=(24, 120))
    assert "%|" in seen.screen
    lines = Screen(120, seen.screen).lines
    assert [line for line in lines if not line.startswith("ocistream: ")] == [""]
    assert len([line for line in lines if line.startswith("ocistream: copied sha256:")]) == 4


def test_an_error_removes_the_bar(registry: FaultyRegistry, tmp_path: Path) -> None:
    registry.faults = [Fault(Drop(MIB), "GET", "/blobs/", times=None)]
    argv = ["pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/app.tar", "--retries=0"]
    seen = on_terminal(*argv, streams=["stderr"], size=(24, 400))
    assert seen.code == 7
    assert "%|" in seen.screen
    first, *others = Screen(400, seen.screen).lines
    assert first.startswith("ocistream: error: ")
    assert "%|" not in "".join(others)


def test_both_sides_of_a_pipe_share_one_bar(registry: FaultyRegistry, start: Start) -> None:
    registry.faults = [Fault(Stall(after=3 * MIB // 2), "GET", "/blobs/", times=None, skip=1)]
    seen = on_terminal(
        *("pull", "-v", f"{registry.host}/app:1", "--progress=bar"),
        piped_into=["push", "-v", f"{start().host}/app:1", "--progress=bar"],
        size=(24, 120),
        # The second side prints messages while the first one still draws.
        moments=[("ocistream: copied ", lambda _: None), ("%|", lambda _: registry.release())],
    )
    assert seen.code == 0
    *lines, last = Screen(120, seen.screen).lines
    assert last == ""
    assert [line for line in lines if not re.match(r"ocistream: |127\.0\.0\.1:[0-9]+/app:1@sha256:", line)] == []
    assert len([line for line in lines if line.startswith("ocistream: copied sha256:")]) == 8
    assert len([line for line in lines if line.startswith("ocistream: copied 4 blobs")]) == 2
    # There are never two bars.
    drawings = [found.end() for found in re.finditer(r"\x1b\[[0-9]+A", seen.screen)]
    assert drawings
    for end in drawings[-30:]:
        totals = [line for line in Screen(120, seen.screen[:end]).lines if re.match(r" *[0-9]+%\|", line)]
        assert len(totals) <= 1, totals


def test_a_broken_pipe_shows_the_cause_on_the_shared_terminal(registry: FaultyRegistry, start: Start) -> None:
    registry.faults = [Fault(Drop(MIB), "GET", "/blobs/", times=None)]
    seen = on_terminal(
        *("pull", f"{registry.host}/app:1", "--progress=bar", "--retries=0"),
        piped_into=["push", f"{start().host}/app:1", "--progress=bar"],
        size=(24, 300),
    )
    assert seen.code == 6
    assert "%|" in seen.screen
    lines = [line for line in Screen(300, seen.screen).lines if line and not line.startswith("  ")]
    assert sorted(line.partition(": error: ")[2].partition(" ")[0] for line in lines) == ["GET", "the"]
    assert "%|" not in "".join(Screen(300, seen.screen).lines)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "1"}])
def test_no_bar_is_drawn_on_a_dumb_terminal_or_in_ci(
    registry: FaultyRegistry, tmp_path: Path, env: dict[str, str]
) -> None:
    argv = ["pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/app.tar"]
    seen = on_terminal(*argv, streams=["stderr"], env=env)
    assert len(seen.screen.splitlines()) == 1


def test_without_a_terminal_no_control_characters_are_printed(registry: FaultyRegistry, tmp_path: Path) -> None:
    for kind in ("auto", "plain", "json", "none"):
        result = succeed("pull", "-v", f"{registry.host}/app:1", f"--progress={kind}", "-o", f"{tmp_path}/layout/")
        assert all(character.isprintable() or character == "\n" for character in result.err)


def test_a_bar_can_be_requested_without_a_terminal(registry: FaultyRegistry, tmp_path: Path) -> None:
    result = succeed("pull", f"{registry.host}/app:1", "--progress=bar", "-o", tmp_path / "app.tar")
    assert "5.2 MB of 5.2 MB" in result.err


@pytest.mark.usefixtures("image")
def test_a_bar_counts_bytes_before_the_total_is_known(served: FaultyRegistry, layout: Layout) -> None:
    argv = ["push", f"{served.host}/app:1", "--progress=bar"]
    result = succeed(*argv, stdin=tar_of(items_of(layout)))
    assert "100%" in result.err


def test_an_early_error_draws_no_bar(served: FaultyRegistry, tmp_path: Path) -> None:
    argv = ["pull", f"{served.host}/gone:1", "--progress=bar"]
    assertions.failure(ocistream(*argv, "-o", tmp_path / "x.tar"), 4, "gone:1")


@pytest.mark.parametrize("kind", ["plain", "none"])
def test_progress_none_draws_no_bar(registry: FaultyRegistry, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "app.tar"
    seen = on_terminal("pull", f"{registry.host}/app:1", f"--progress={kind}", "-o", target, streams=["stderr"])
    assert seen.screen.startswith("ocistream: copied 4 blobs")
    assert len(seen.screen.splitlines()) == 1


@pytest.mark.usefixtures("image")
def test_plain_progress_of_a_pipe_has_the_total_0_before_the_index_arrives(
    served: FaultyRegistry, layout: Layout
) -> None:
    argv = ["push", f"{served.host}/app:1", "--progress=plain", "--log-format=json"]
    with started_fork(*argv, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(tar_of(items_of(layout))[: 3 * MIB])
        process.stdin.flush()
        (line,) = assertions.json_lines(process.stderr.readline().decode())
        process.kill()
    assert line["total"] == 0


def test_plain_progress_prints_bytes_and_remaining_time(registry: FaultyRegistry, total: int, tmp_path: Path) -> None:
    registry.faults = [Fault(Stall(after=2 * MIB), "GET", "/blobs/", skip=1)]
    argv = ["pull", f"{registry.host}/app:1", "--jobs=1", "--progress=plain", "--log-format=json"]
    with started_fork(*argv, "-o", tmp_path / "app.tar") as process:
        plan, line = assertions.json_lines((process.stderr.readline() + process.stderr.readline()).decode())
        registry.release()
    assert plan["message"] == "4 blobs, 5.2 MB in all"
    assert line["total"] == total
    assert 2 * MIB < line["bytes"] < total
    assert re.fullmatch(r"2.1 MB of 5.2 MB, 40 %, [12] of 4 blobs, [0-9.]+ kB/s, [0-9]+ s left", line["message"])
    (shown,) = [block.text for block in blocks((ROOT / "docs/scripting.md").read_text()) if "blobs" in block.text]
    assert is_like(f"ocistream: {plan['message']}\nocistream: {line['message']}", shown)


GITLAB = r"\x1b\[0Ksection_{}:[0-9]+:ocistream_[0-9]+_[0-9]+{}\r\x1b\[0K{}"


@pytest.mark.parametrize(
    ("variable", "begin", "end", "option"),
    [
        ("GITHUB_ACTIONS", "::group::ocistream: 4 blobs", "::endgroup::", []),
        ("GITHUB_ACTIONS", "::group::ocistream: 4 blobs", "::endgroup::", ["-v"]),
        (
            "GITLAB_CI",
            GITLAB.format("start", r"\[collapsed=true\]", "ocistream: 4 blobs"),
            GITLAB.format("end", "", ""),
            ["--progress=plain"],
        ),
    ],
)
def test_the_log_of_a_ci_has_a_section_with_a_line_for_each_blob(
    registry: FaultyRegistry, tmp_path: Path, variable: str, begin: str, end: str, option: list[str]
) -> None:
    argv = ["pull", f"{registry.host}/app:1", *option, "-o", f"{tmp_path}/layers/"]
    result = succeed(*argv, env={variable: "true"})
    first, *blobs, last, summary = result.err.rstrip("\n").split("\n")[-7:]
    assert re.fullmatch(begin, first)
    assert re.fullmatch(end, last)
    assert all(re.match(r"  copied sha256:[0-9a-f]{64} \([0-9.]+ [kM]?B", line) for line in blobs)
    assert summary.startswith("ocistream: copied 4 blobs")
    assert len(result.err.split("\n")) == 8


def test_other_kinds_of_output_have_no_sections(registry: FaultyRegistry, tmp_path: Path) -> None:
    for option in ("--progress=json", "--progress=none", "-q", "--log-format=json", "--progress=bar"):
        argv = ["pull", f"{registry.host}/app:1", option, "-o", f"{tmp_path}/app.tar"]
        result = succeed(*argv, env={"GITHUB_ACTIONS": "true", "GITLAB_CI": "true"})
        assert "group::" not in result.err
        assert "section_" not in result.err


@pytest.mark.usefixtures("image")
def test_a_push_from_a_pipe_has_no_section(served: FaultyRegistry, layout: Layout) -> None:
    result = succeed("push", f"{served.host}/app:1", stdin=tar_of(items_of(layout)), env={"GITHUB_ACTIONS": "true"})
    assert "group::" not in result.err


@pytest.mark.parametrize("name", ["::add-mask::x", "##[add-mask]x", "###teamcity[b]"])
def test_an_image_name_cannot_be_a_command_to_a_ci_runner(layout: Layout, tmp_path: Path, name: str) -> None:
    layout.image([b"layer"], name=name)
    out = succeed("copy", layout.path, f"oci:{tmp_path}/out", env={"GITHUB_ACTIONS": "true"})
    # Errors that name the image, as text and as JSON.
    argv = ["copy", f"oci:{layout.path}:gone", f"oci:{tmp_path}/other"]
    errors = [ocistream(*argv), ocistream(*argv, "--log-format=json")]
    assert json.loads(errors[1].err)["message"] or json.loads(errors[1].err)["hint"]
    shown = [ocistream(*command, layout.path) for command in (["verify"], ["inspect"])]
    for result in [out, *errors, *shown]:
        # ocistream itself writes the lines that begin and end a section.
        lines = re.sub(r"::(end)?group::.*", "", result.out.decode() + result.err).splitlines()
        assert [line for line in lines if line.lstrip().startswith("::") or re.search(r"##[a-z]*\[", line)] == []
        assert "add-mask" in "".join(lines) or "b]" in "".join(lines)


@pytest.mark.uncounted
def test_json_keeps_names_that_look_like_commands(layout: Layout, tmp_path: Path) -> None:
    name = "##vso[x]"
    layout.image([b"layer"], name=name)
    result = tmp_path / "result.json"
    lines = events("copy", layout.path, f"oci:{tmp_path}/out", "--result", result)
    assert lines[0]["images"][0]["name"] == name
    assert json.loads(result.read_text())["images"][0]["name"] == name
    shown = [ocistream(*command, layout.path, "--json").out.decode() for command in (["verify"], ["inspect"])]
    assert [json.loads(text)["images"][0]["name"] for text in shown] == [name, name]
    # A CI runner that logs these documents runs no command.
    assert name not in "".join([result.read_text(), *shown])


@pytest.mark.usefixtures("image")
def test_unreferenced_blobs_are_not_in_the_total(layout: Layout, total: int) -> None:
    layout.blob(b"stray" * 1000, "text/plain")
    moved = [line for line in events("verify", layout.path) if line.get("event") == "progress"]
    assert {line["total"] for line in moved} == {total}
    assert [line["bytes"] for line in moved if line["bytes"] >= total] == [total]
    drawn = ocistream("verify", layout.path, "--progress=bar").err
    assert not re.search(r"\b6 of 4 blobs|\b1[0-9][1-9]%", drawn)


def test_the_total_is_printed_once(registry: FaultyRegistry, total: int, tmp_path: Path) -> None:
    events("pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/layout/")
    lines = events("pull", f"{registry.host}/app:1", "-o", f"{tmp_path}/layout/")
    assert [line["bytes"] for line in lines if line.get("event") == "progress"].count(total) == 1


def test_retries_and_failures_match_the_json_schema(registry: FaultyRegistry, start: Start, total: int) -> None:
    other = start(Fault(Drop(0), "PATCH", larger_than=MIB))
    registry.faults = [Fault(Drop(MIB + 17), "GET", "/blobs/")]
    check(events("copy", f"{registry.host}/app:1", f"{other.host}/app:1"), total, {"copied"})
    check(events("copy", f"{other.host}/app:1", f"{other.host}/new:1"), total, {"mounted"})
    check(events("copy", f"{other.host}/app:1", f"{other.host}/new:2"), total, {"skipped"})
    registry.faults = [Fault(Drop(MIB + 17), "GET", "/blobs/", times=None)]
    failed = ocistream("copy", f"{registry.host}/app:1", f"{start().host}/app:1", "--retries=0", "--progress=json")
    lines = assertions.json_lines(failed.err)
    assert lines[0]["event"] == "planned"
    assert (lines[-1]["level"], lines[-1]["exit_code"], failed.code) == ("error", 7, 7)
