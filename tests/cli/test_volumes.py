"""Archives split into volumes: pull them, and push them in every order; missing, repeated and foreign volumes."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.archives import files_in
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.faulty_registry import Fault, FaultyRegistry, Stall, refusal
from tests.images import Descriptor, Layout
from tests.registry_http import manifest_digest, seed
from tests.runner import Argument, Result, ocistream, started_fork
from tests.volume_archives import OMITTED, Cut, notes_in, read_volumes

MIB: Final = 1 << 20
KIB: Final = 1 << 10
#: The second layer does not fit into one volume of `SIZE`: it begins in the first volume and ends in the second.
LAYERS: Final = [100 * KIB, 300 * KIB, 120 * KIB, 60 * KIB]
SIZE: Final = 256 * KIB
#: With this volume size no blob is split.
WHOLE: Final = 320 * KIB
NAMES: Final = ["app.000.tar", "app.001.tar", "app.002.tar"]
ORDERS: Final = list(itertools.permutations(range(3)))
_ONCE_FOR_EACH: Final = "several inputs are read as one set: run the command once for each"
#: Orders in which each volume is once the first and once the last.
SOME_ORDERS: Final = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    return layout.image(LAYERS)


@dataclasses.dataclass(frozen=True)
class CutOnce:
    """The image in three volumes: `paths` of `SIZE` bytes and `whole` of `WHOLE` bytes. Do not change the files.

    `other` is the second volume of another image, `other:1`.
    """

    registry: FaultyRegistry
    layout: Layout
    image: Descriptor
    paths: list[Path]
    whole: list[Path]
    other: Path


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CutOnce]:
    """Split the images once for all tests."""
    folder = tmp_path_factory.mktemp("cut")
    layout = Layout(folder / "made")
    image = layout.image(LAYERS)
    with FaultyRegistry(folder / "served") as registry:
        seed(layout, image, registry.host, "app", "1")
        for name in ("parts", "whole"):
            (folder / name).mkdir()
        paths, whole = split(registry, folder / "parts"), split(registry, folder / "whole", size=WHOLE)
        assert len(paths) == len(whole) == 3
        seed(layout, layout.image([9000, *LAYERS[1:]]), registry.host, "other", "1")
        argv: list[Argument] = ["-o", folder / "other.%03d.tar", "--split", str(SIZE)]
        succeed("pull", f"{registry.host}/other:1", *argv)
        yield CutOnce(registry, layout, image, paths, whole, folder / "other.001.tar")


def split(registry: FaultyRegistry, folder: Path, *argv: Argument, size: int = SIZE, name: str = "app") -> list[Path]:
    """Pull `app:1` into volumes of at most `size` bytes, and return them."""
    pulled = succeed("pull", f"{registry.host}/app:1", "-o", folder / f"{name}.%03d.tar", "--split", str(size), *argv)
    assert pulled.lines()[0].startswith(f"{registry.host}/app:1@sha256:")
    assertions.no_partial_files(folder)
    paths = sorted(folder.glob(f"{name}.*.tar"))
    assert all(path.stat().st_size <= size for path in paths)
    return paths


def push(target: FaultyRegistry, *paths: Path, argv: Sequence[Argument] = ()) -> Result:
    inputs = [argument for path in paths for argument in ("-i", path)]
    return ocistream("push", *inputs, *argv, f"{target.host}/app:1")


def is_there(target: FaultyRegistry, image: Descriptor, layout: Layout) -> None:
    """Assert that the image was pushed, with all of its blobs."""
    assert manifest_digest(target.host, "app", "1") == image["digest"]
    for blob in blobs_of(layout, image):
        assert (target.layout.path / "blobs" / blob.replace(":", "/")).read_bytes() == layout.file(blob).read_bytes()


def blobs_of(layout: Layout, image: Descriptor) -> list[str]:
    return [blob["digest"] for blob in layout.blobs(image)]


def layer(layout: Layout, image: Descriptor, number: int) -> str:
    digest: str = layout.read(image["digest"])["layers"][number]["digest"]
    return digest


# Pull ------------------------------------------------------------------------------------------------------------


def test_each_volume_is_a_layout_and_together_they_are_the_image(cut: CutOnce) -> None:
    assert [path.name for path in cut.paths] == NAMES
    together = read_volumes(cut.paths[::-1])
    for digest in (cut.image["digest"], *blobs_of(cut.layout, cut.image)):
        assert together[f"blobs/{digest.replace(':', '/')}"] == cut.layout.file(digest).read_bytes()
    # The second layer is split between the first two volumes.
    parts = [[name for name in files_in(path.read_bytes()) if name.startswith("parts/")] for path in cut.paths]
    assert [len(names) for names in parts] == [2, 2, 0]


def test_the_same_image_gives_the_same_volumes_byte_for_byte(cut: CutOnce, folder: Path) -> None:
    again = split(cut.registry, folder, "--jobs", "1")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in cut.paths]


def test_an_image_that_fits_one_volume_is_an_ordinary_archive(
    registry: FaultyRegistry, folder: Path, tmp_path: Path
) -> None:
    (path,) = split(registry, folder, size=MIB)
    assert path.name == "app.000.tar"
    whole = tmp_path / "whole.tar"
    succeed("pull", f"{registry.host}/app:1", "-o", whole)
    assert path.read_bytes() == whole.read_bytes()
    (path,) = split(registry, folder, size=whole.stat().st_size)
    assert path.read_bytes() == whole.read_bytes()
    assert len(split(registry, folder, size=whole.stat().st_size - 1)) == 2


def test_a_too_small_size_is_refused_with_the_minimum(registry: FaultyRegistry, folder: Path) -> None:
    argv: list[Argument] = ["pull", f"{registry.host}/app:1", "-o", folder / "app.%d.tar", "--split"]
    refused = ocistream(*argv, "1k")
    assertions.failure(refused, 2, "too small", "use at least ")
    assertions.nothing_left(folder)
    least = int(refused.err.split("use at least ")[1].split(" ")[0])
    assertions.failure(ocistream(*argv, str(least - 1)), 2, f"use at least {least}")
    succeed(*argv, str(least))
    paths = list(folder.iterdir())
    assert 2 < len(paths) <= 500
    assert max(path.stat().st_size for path in paths) <= least
    read_volumes(paths)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-o", "app.tar", "--split", "1GiB"], ["app.tar", "it has no %d", "%03d"]),
        (["-o", "app.%d.%d.tar", "--split", "1GiB"], ["it has 2 %d"]),
        (["-o", "app.%s.tar", "--split", "1GiB"], ["%s"]),
        (["-o", "app.%3d.tar", "--split", "1GiB"], ["%3"]),
        (["-o", "app.%%d.tar", "--split", "1GiB"], ["it has no %d"]),
        (["-o", "app.%d.tar%", "--split", "1GiB"], ["app.%d.tar%"]),
        (["-o", "app.%03d.tar"], ["--split SIZE"]),
        (["--split", "1GiB"], ["-", "%03d"]),
        (["-o", "app.%d/", "--split", "1GiB"], ["app.%d/", "%03d"]),
        (["-o", "app.%d.tar", "--split", "1GiB", "--format", "docker-archive"], ["%03d"]),
        (["-o", "app.%d.tar", "--split", "1GiB", "--format", "oci"], ["%03d"]),
        (["-o", "app.%d.tar", "--split", "0"], ["--split '0' is not a size"]),
        (["-o", "app.%d.tar", "--split", "-1"], ["--split '-1' is not a size"]),
        (["-o", "app.%d.tar", "--split", "many"], ["'many' is not a size"]),
        (["-o", "app.%d.tar", "--split", "1GiB", "--compress", "zstd"], ["--compress"]),
        (["-o", "app.%d.tar", "--split", "1GiB", "--from-byte", "7"], ["--from-byte"]),
        (["-o", "app.%d.tar", "--split", "1GiB", "--result", "app.7.tar"], ["--result app.7.tar"]),
    ],
)
def test_incompatible_options_are_refused(argv: list[str], words: list[str], folder: Path) -> None:
    assertions.failure(ocistream("pull", "127.0.0.1:1/app:1", *argv, cwd=folder), 2, *words)
    assertions.nothing_left(folder)


def test_a_percent_sign_may_be_in_a_name(registry: FaultyRegistry, folder: Path) -> None:
    argv: list[Argument] = ["pull", f"{registry.host}/app:1", "-o", folder / "100%%.%02d", "--split", str(SIZE)]
    succeed(*argv)
    assertions.nothing_left(folder, "100%.00", "100%.01", "100%.02")
    read_volumes(list(folder.iterdir()))
    succeed("pull", f"{registry.host}/app:1", "-o", folder / "100%.tar")


def test_an_invalid_file_name_is_refused_before_any_request(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, folder: Path
) -> None:
    (folder / "app.002.tar").mkdir()
    argv: list[Argument] = ["pull", f"{registry.host}/app:1", "-o", folder / "app.%03d.tar", "--split", str(SIZE)]
    assertions.failure(ocistream(*argv), 2, "app.002.tar")
    assertions.nothing_left(folder, "app.002.tar")
    assert not [request for request in registry.asked("GET", "/blobs/") if layer(layout, image, 0) in request.path]
    assertions.failure(ocistream(*argv[:3], folder / "none" / "app.%d.tar", *argv[4:]), 4, "none")


def test_volumes_of_an_earlier_set_stay_and_are_reported(registry: FaultyRegistry, folder: Path) -> None:
    (folder / "app.007.tar").write_bytes(b"of another day")
    argv: list[Argument] = ["pull", f"{registry.host}/app:1", "-o", folder / "app.%03d.tar", "--split", str(SIZE)]
    pulled = succeed(*argv)
    assert f"{folder / 'app.007.tar'} existed before and is not one of the new volumes (3): delete it\n" in pulled.err
    assert (folder / "app.007.tar").read_bytes() == b"of another day"


def test_copy_via_refuses_split() -> None:
    argv = ["copy", "127.0.0.1:1/app:1", "registry.local/app:1", "--via", "true", "--split", "1GiB"]
    assertions.failure(ocistream(*argv), 2, "--split", "--via")


@pytest.mark.uncounted
def test_copy_splits_archives(cut: CutOnce, folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    succeed("pull", f"{cut.registry.host}/app:1", "-o", whole)
    succeed("copy", whole, f"oci-archive:{folder}/app.%03d.tar", "--split", str(SIZE))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {p.name: p.read_bytes() for p in cut.paths}
    succeed("copy", "-", f"oci-archive:{folder}/b.%03d.tar", "--split", str(SIZE), stdin=whole)
    read_volumes(sorted(folder.glob("b.*")))


@pytest.mark.uncounted
def test_omitted_blobs_are_in_no_volume(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, folder: Path, target: FaultyRegistry, tmp_path: Path
) -> None:
    had = layer(layout, image, 1)
    have = tmp_path / "have.txt"
    have.write_text(f"# ocistream have 1\n# origin {target.host}/app\n# digests 1\n{had}\n")
    paths = split(registry, folder, "--have", have, size=200 * KIB)
    assert len(paths) == 2
    for path in paths:
        files = files_in(path.read_bytes())
        assert f"blobs/{had.replace(':', '/')}" not in files
        assert f"# have {target.host}/app\n{had}" in notes_in(files)["vnd.ocistream.omitted"]
    assertions.failure(push(target, *paths), 6, had)
    assertions.no_image(target)
    seed(layout, layout.image([layout.read(image["digest"])["layers"][1]]), target.host, "app", "base")
    assertions.success(push(target, *paths))
    is_there(target, image, layout)


# Resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *((0, signal.SIGKILL), (3, signal.SIGINT)),
        *(
            pytest.param(number, kind, marks=pytest.mark.nightly)
            for number, kind in itertools.product((1, 2), (signal.SIGINT, signal.SIGKILL))
        ),
    ],
)
def test_an_interrupted_pull_resumes_without_fetching_volumes_again(
    served: FaultyRegistry, layout: Layout, folder: Path, number: int, kind: int
) -> None:
    # At least 1 MiB of the blob has arrived when it stalls: a shorter partial blob is not kept.
    sizes = [3 * MIB, 5 * MIB, 3 * MIB, 3 * MIB + 7]
    image = layout.image(sizes)
    seed(layout, image, served.host, "app", "1")
    undisturbed = [path.read_bytes() for path in split(served, folder, size=4 * MIB)]
    for path in folder.iterdir():
        path.unlink()
    served.requests.clear()
    halted, after = layer(layout, image, number), sizes[number] - MIB // 2
    served.faults = [Fault(Stall(after=after), "GET", f"/blobs/{halted}")]
    argv: list[Argument] = ["pull", f"{served.host}/app:1", "-o", str(folder / "app.%03d.tar"), "--split", str(4 * MIB)]
    with started_fork(*argv, "--jobs", "1") as process:
        assertions.wait_for(lambda: [request for request in served.requests if request.fault])
        begun = [b for b in (path.stat().st_size for path in folder.glob(".app.*.partial")) if b]
        assertions.wait_for(
            lambda: sum(size_of(path) for path in folder.iterdir()) >= sum(sizes[:number]) + after - MIB
        )
        process.send_signal(kind)
        process.communicate(timeout=60)
    assert begun
    assert not list(folder.glob("app.*"))
    served.requests.clear()
    served.faults = []
    paths = split(served, folder, size=4 * MIB)
    assert [path.read_bytes() for path in paths] == undisturbed
    fetched = {request.path.rpartition("/")[2]: request.headers["Range"] for request in served.asked("GET", "/blobs/")}
    for before in range(number):
        assert layer(layout, image, before) not in fetched
    begin = int((fetched[halted] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    # The size of the files includes tar headers and manifests.
    assert begin >= after - MIB - 64 * KIB


def size_of(path: Path) -> int:
    return path.stat().st_size


# Push ------------------------------------------------------------------------------------------------------------


def test_volumes_are_pushed_in_every_order(cut: CutOnce, start: Start) -> None:
    for order in ORDERS:
        target = start()
        pushed = push(target, *(cut.paths[number] for number in order))
        assert pushed.lines() == [f"{target.host}/app:1@{cut.image['digest']}"], pushed.err
        is_there(target, cut.image, cut.layout)


def test_a_dry_run_of_a_volume_does_not_say_that_it_is_stored(cut: CutOnce, target: FaultyRegistry) -> None:
    result = push(target, cut.whole[1], argv=["--dry-run"])
    assertions.failure(result, 10, f"({NAMES[1]}) would be stored; still needed: {NAMES[0]}, {NAMES[2]}", "nothing was")
    assert "the registry keeps" not in result.err
    assert {request.method for request in target.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize("piped", [False, True])
def test_a_dry_run_of_a_part_says_what_the_real_run_does(cut: CutOnce, target: FaultyRegistry, piped: bool) -> None:
    for path in (cut.paths[1], cut.paths[0], cut.paths[2]):
        argv = ["push", *([] if piped else ["-i", str(path)]), f"{target.host}/app:1"]
        stdin = path.read_bytes() if piped else None
        dry, real = (ocistream(*argv, *option, stdin=stdin) for option in (["--dry-run"], []))
        error = real.err.splitlines()[0].replace("was not stored", "would not be stored")
        assertions.failure(dry, 10, error.replace("is stored", "would be stored") + "\n", "nothing was changed")
        assert ("a pipe gives only complete blobs" in dry.err) == (piped and path != cut.paths[2])


def test_a_dry_run_of_the_last_volumes_would_complete_the_image(cut: CutOnce, target: FaultyRegistry) -> None:
    assert push(target, cut.paths[0]).code == 10
    dry = assertions.success(push(target, *cut.paths[1:], argv=["--dry-run"]))
    assert "resumed from an earlier run" in dry.err
    real = push(target, *cut.paths[1:])
    assert [line.split()[-1] for line in dry.lines()] == real.lines()


def test_a_quoted_glob_means_all_its_files(cut: CutOnce, target: FaultyRegistry, folder: Path) -> None:
    for path in cut.paths:
        (folder / path.name).symlink_to(path)
    line = ["push", f"{target.host}/app:1", "-i"]
    succeed(*line, "app.0*.tar", cwd=folder)
    is_there(target, cut.image, cut.layout)
    assertions.failure(ocistream(*line, "none.*.tar", cwd=folder), 4, "no file matches none.*.tar")
    # A file whose name is exactly the glob takes precedence.
    (folder / "app.[0-9]*.tar").write_bytes(b"")
    assertions.failure(ocistream(*line, "app.[0-9]*.tar", cwd=folder), 6, "app.[0-9]*.tar")


def test_a_volume_without_its_own_option_gets_a_hint_with_the_command(cut: CutOnce, target: FaultyRegistry) -> None:
    host, [first, second, third] = target.host, [f"{path}" for path in cut.paths]
    assertions.failure(
        ocistream("push", "-i", first, second, f"{host}/app:1"),
        2,
        f"{second!r} is a path",
        f"`ocistream push -i {first} -i {second} {host}/app:1`",
    )
    assertions.failure(
        ocistream("push", first, "--to", host), 2, f"{first!r} is a path", f"`ocistream push -i {first} --to {host}`"
    )
    many = ocistream("push", "-i", first, second, third, first, f"{host}/app:1")
    assertions.failure(many, 2, "quote the glob", "-i 'app.*.tar'")
    two = ocistream("push", f"{host}/app:1", f"{host}/app:2")
    assertions.failure(two, 2, "push takes one IMAGE", f"'{host}/app:2'", "copy SRC DST")
    assert target.requests == []


@pytest.mark.uncounted
@pytest.mark.parametrize("order", SOME_ORDERS)
def test_volumes_are_pushed_one_by_one_in_any_order(cut: CutOnce, target: FaultyRegistry, order: Sequence[int]) -> None:
    needed = set(NAMES)
    for number in order[:-1]:
        needed.remove(NAMES[number])
        stored = f"error: incomplete: volume {number + 1} of 3 ({NAMES[number]}) is stored; still needed: "
        assertions.failure(push(target, cut.whole[number]), 10, stored + ", ".join(sorted(needed)))
        assertions.no_image(target)
    target.requests.clear()
    assertions.success(push(target, cut.whole[order[-1]]))
    is_there(target, cut.image, cut.layout)


def test_the_command_for_the_other_volumes_selects_the_same_images(cut: CutOnce, target: FaultyRegistry) -> None:
    selected = ["--image", f"{cut.registry.host}/app:1", "--platform", "linux/amd64"]
    refused = push(target, cut.whole[0], argv=selected)
    command = f"push -i {NAMES[1]} -i {NAMES[2]} {' '.join(selected)} {target.host}/app:1`"
    assertions.failure(refused, 10, f"run `ocistream {command}")


@pytest.mark.uncounted
@pytest.mark.parametrize("order", SOME_ORDERS)
def test_a_split_blob_is_pushed_volume_by_volume(cut: CutOnce, target: FaultyRegistry, order: Sequence[int]) -> None:
    results = [push(target, cut.paths[number]) for number in order]
    if order.index(0) < order.index(1):
        assert [result.code for result in results] == [10, 10, 0]
        needed = [name for name in NAMES if name != NAMES[order[0]]]
        needed = needed if order[0] == 0 else NAMES[:2]
        assert f"still needed: {', '.join(needed)}\n" in results[0].err
        assert f"still needed: {NAMES[order[2]]}\n" in results[1].err
    else:
        # The end of a blob came before its beginning: the message says so, and asks for the volume again.
        assert [result.code for result in results] == [10, 10, 10]
        needed = NAMES if order[0] == 1 else NAMES[:2]
        assertions.failure(
            results[order.index(1)],
            10,
            f"error: volume 1 of 3 ({NAMES[0]}) was not given, so "
            f"part of {NAMES[1]} was not stored: {NAMES[0]} must come first; still needed: {', '.join(needed)}\n",
            f"run `ocistream push {' '.join(f'-i {name}' for name in needed)} {target.host}/app:1`, or push them one",
        )
        assertions.failure(results[-1], 10, "still needed: app.0")
        assertions.no_image(target)
        assertions.success(push(target, cut.paths[1]))
    is_there(target, cut.image, cut.layout)
    sent = [request for request in target.requests if request.method == "PATCH"]
    assert sum(int(request.headers["Content-Length"] or 0) for request in sent) <= sum(LAYERS) + 4 * KIB


@pytest.mark.parametrize("number", [0, 1])
def test_a_layout_that_cannot_store_a_part_says_so(cut: CutOnce, tmp_path: Path, number: int) -> None:
    assertions.failure(
        ocistream("copy", cut.paths[number], f"{tmp_path}/copy/"),
        10,
        f"part of {NAMES[number]} was not stored: a layout stores only complete blobs; still needed: {NAMES[0]}, ",
        f"start `ocistream serve {tmp_path}/copy`, and run `ocistream push -i {NAMES[0]} ",
        " --to localhost:5000`",
    )


def test_a_layout_asks_for_one_push_if_a_missing_blob_is_split(cut: CutOnce, tmp_path: Path) -> None:
    def copy_last(paths: Sequence[Path], needed: str, hint: str) -> None:
        words = f"({NAMES[2]}) is stored; still needed: {needed}\n", hint
        assertions.failure(ocistream("copy", paths[2], f"{tmp_path}/copy/"), 10, *words)

    command = f"`ocistream push -i {NAMES[0]} -i {NAMES[1]} --to localhost:5000`"
    copy_last(cut.paths, f"{NAMES[0]}, {NAMES[1]}", f"start `ocistream serve {tmp_path}/copy`, and run {command}\n")
    copy_last(cut.whole, f"{NAMES[0]}, {NAMES[1]}", "copy keeps what was written: copy the needed volumes one by one\n")


def test_an_archive_needs_all_volumes_of_a_split_blob(cut: CutOnce, tmp_path: Path) -> None:
    for number, others in ((0, [1, 2]), (1, [0, 2]), (2, [0, 1])):
        needed = ", ".join(NAMES[other] for other in others)
        refused = ocistream("copy", cut.paths[number], f"oci-archive:{tmp_path}/copy.tar")
        assertions.failure(refused, 6, f"still needed: {needed}\n", "start `ocistream serve DIR`, push all volumes")
    assertions.nothing_left(tmp_path)


@pytest.mark.uncounted
def test_a_part_of_a_blob_is_sent_again_after_a_failure(cut: CutOnce, target: FaultyRegistry) -> None:
    target.faults = [Fault(refusal(503), "PATCH", larger_than=LAYERS[0])]
    assertions.failure(push(target, cut.paths[0]), 10, "still needed: app.001.tar, app.002.tar")
    assert [request.status for request in target.asked("PATCH") if request.fault] == [503]
    assertions.failure(push(target, cut.paths[1]), 10, "still needed: app.002.tar")
    assertions.success(push(target, cut.paths[2]))
    is_there(target, cut.image, cut.layout)


def test_an_interrupted_part_is_reported_and_resumed(cut: CutOnce, target: FaultyRegistry) -> None:
    target.faults = [Fault(refusal(503), "PATCH", larger_than=LAYERS[0], times=None)]
    argv = ["--retries", "0"]
    said = f"{target.host} may have stored a part of 1 blob: re-run the same command"
    assertions.failure(push(target, cut.paths[0], argv=argv), 7, said)
    target.faults = []
    assert [push(target, path).code for path in cut.paths] == [10, 10, 0]
    assert len(target.asked("GET", "/uploads/")) == 2
    is_there(target, cut.image, cut.layout)


@pytest.mark.uncounted
def test_a_missing_volume_is_named(cut: CutOnce, target: FaultyRegistry) -> None:
    refused = push(target, *cut.whole[1:])
    assertions.failure(refused, 10, f"2 of 3 volumes are stored; still needed: {NAMES[0]}", f"-i {NAMES[0]}")
    assertions.no_image(target)
    assert push(target, *cut.whole[1:]).err == refused.err
    # The registry keeps the blobs of the others: only the first volume is needed now.
    assertions.success(push(target, cut.whole[0]))
    is_there(target, cut.image, cut.layout)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_volume_may_be_given_twice(cut: CutOnce, folder: Path, target: FaultyRegistry, order: Sequence[int]) -> None:
    copy = folder / "the-same.tar"
    copy.write_bytes(cut.paths[order[0]].read_bytes())
    pushed = assertions.success(push(target, *(cut.paths[number] for number in order), copy, argv=["-v"]))
    assert f"{copy} is volume {order[0] + 1} of 3 ({NAMES[order[0]]}) again" in pushed.err
    is_there(target, cut.image, cut.layout)


def test_a_volume_of_another_image_is_refused_by_name(cut: CutOnce, target: FaultyRegistry, folder: Path) -> None:
    for order in SOME_ORDERS:
        refused = push(target, *(cut.other if number == 1 else cut.paths[number] for number in order))
        assertions.failure(
            refused,
            6,
            f"{cut.other} does not belong to the others: it is volume 2 of ",
            f"(other.001.tar) of {cut.registry.host}/other:1",
            f"of {cut.registry.host}/app:1",
            f"omit or delete {cut.other}: it is of another `pull --split`",
        )
    # A volume of the same image with another volume size does not belong either.
    cut_again = split(cut.registry, folder, size=SIZE + 4096, name="again")
    refused = push(target, cut.paths[0], cut_again[1], cut.paths[2])
    assertions.failure(refused, 6, "again.001.tar does not belong to the others")
    assert not target.asked("POST", "/uploads/")


def test_an_archive_and_the_archive_of_its_omitted_blobs_are_combined(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, folder: Path, target: FaultyRegistry
) -> None:
    some, rest, other = folder / "some.tar", folder / "rest.tar", folder / "other.tar"
    digest = layer(layout, image, 2)
    blobs = [f"--only={blob}" for blob in blobs_of(layout, image) if blob != digest]
    succeed("pull", f"{registry.host}/app:1", "-o", some, *blobs)
    succeed("pull", f"{registry.host}/app:1", "-o", rest, "--only", digest)
    assertions.failure(push(target, some), 6, digest)
    assertions.success(push(target, rest, some))
    is_there(target, image, layout)
    succeed("pull", f"{registry.host}/app:1", "-o", f"{folder}/directory/", *blobs)
    assert push(target, rest, folder / "directory").code == 0
    seed(layout, layout.image([b"another"]), registry.host, "other", "1")
    succeed("pull", f"{registry.host}/other:1", "-o", other)
    names = f"{registry.host}/app:1, {registry.host}/other:1"
    assertions.failure(push(target, some, other), 2, f"has 2 images\n  {_ONCE_FOR_EACH}; their images: {names}\n")
    refused = push(target, some, other, argv=["--image", f"{registry.host}/other:1"])
    assertions.failure(refused, 6, f"{some} does not list {registry.host}/other:1", _ONCE_FOR_EACH)


@pytest.mark.uncounted
def test_an_archive_of_the_missing_blobs_replaces_a_lost_volume(
    cut: CutOnce, folder: Path, target: FaultyRegistry
) -> None:
    rest = folder / "rest.tar"
    digests = [argument for number in (1, 2, 3) for argument in ("--only", layer(cut.layout, cut.image, number))]
    succeed("pull", f"{cut.registry.host}/app:1", "-o", rest, *digests)
    assertions.success(push(target, rest, cut.paths[0]))
    is_there(target, cut.image, cut.layout)


def test_only_seekable_inputs_are_joined(cut: CutOnce, target: FaultyRegistry, tmp_path: Path) -> None:
    packed, docker = tmp_path / "packed.tar.gz", tmp_path / "docker.tar"
    packed.write_bytes(gzip.compress(cut.paths[1].read_bytes()))
    succeed("copy", f"{cut.registry.host}/app:1", f"docker-archive:{docker}:app:1")
    for other, code, words in (
        (packed, 2, f"{packed} is compressed"),
        (Path("-"), 2, "- can be read only once"),
        (docker, 2, f"{docker} is a docker-archive"),
        (tmp_path / "none.tar", 4, "none.tar"),
    ):
        assertions.failure(push(target, cut.paths[0], other), code, words)


@pytest.mark.uncounted
def test_one_volume_alone_may_come_from_a_pipe(cut: CutOnce, target: FaultyRegistry) -> None:
    for path, code in zip(cut.whole, (10, 10, 0), strict=True):
        assert ocistream("push", f"{target.host}/app:1", stdin=path).code == code
    is_there(target, cut.image, cut.layout)


def test_a_part_of_a_blob_from_a_pipe_is_reported_as_not_stored(cut: CutOnce, target: FaultyRegistry) -> None:
    for number in (0, 1):
        pushed = ocistream("push", f"{target.host}/app:1", stdin=cut.paths[number])
        reason = f"part of {NAMES[number]} was not stored: a pipe gives only complete blobs; still needed:"
        assertions.failure(pushed, 10, f"{reason} {', '.join(NAMES)}\n")
    assert [push(target, path).code for path in cut.paths] == [10, 10, 0]
    is_there(target, cut.image, cut.layout)


def test_to_pushes_every_image_of_volumes(
    registry: FaultyRegistry, layout: Layout, image: Descriptor, folder: Path, target: FaultyRegistry
) -> None:
    seed(layout, layout.image([b"another"]), registry.host, "other", "2")
    images = [f"{registry.host}/app:1", f"{registry.host}/other:2"]
    succeed("pull", *images, "-o", folder / "two.%d", "--split", str(SIZE))
    inputs = [argument for path in sorted(folder.iterdir(), reverse=True) for argument in ("-i", path)]
    succeed("push", *inputs, "--to", target.host)
    is_there(target, image, layout)
    assert manifest_digest(target.host, "other", "2")


def test_a_name_in_a_volume_cannot_control_the_terminal(layout: Layout, folder: Path, target: FaultyRegistry) -> None:
    image = layout.image([b"layer"], name="v1")
    lacking = layer(layout, image, 0)
    omitted = f"# volume \x1b]0;owned\x07\u202eapp\n{lacking}"
    (path, _) = Cut(layout, 2, whole={lacking: 1}, notes={OMITTED: omitted}).write(folder)
    refused = push(target, path)
    assertions.failure(refused, 6, "?]0;owned??app")
    for said in (refused.err, ocistream("verify", path).out.decode(), ocistream("inspect", path).out.decode()):
        assert "\x1b" not in said
        assert "\u202e" not in said


# Verify and inspect ----------------------------------------------------------------------------------------------


def test_verify_names_the_volume(cut: CutOnce) -> None:
    for number, path in enumerate(cut.paths):
        seen = succeed("verify", path)
        others = ", ".join(name for name in NAMES if name != path.name)
        assert f"volume {number + 1} of 3 ({path.name}); {others} have the rest" in seen.lines()
        assert seen.lines()[-1].startswith(f"ok, but incomplete (volume {number + 1} of 3): OCI archive, 1 image")
        assert seen.lines()[-1].endswith("1 part of a split blob") == (number < 2)
        succeed("verify", stdin=path)
        shown = succeed("inspect", path)
        # The rest of the split blob is in the other of the first two volumes.
        assert f"(in the volume {NAMES[(1, 0, 0)[number]]})" in shown.out.decode()
        assert f"(in the volume {path.name})" not in shown.out.decode()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_verify_of_all_volumes_finds_the_image_complete(cut: CutOnce, order: Sequence[int]) -> None:
    seen = succeed("verify", "--deep", *(cut.paths[number] for number in order))
    assert "volumes 1, 2, 3 of 3: all volumes" in seen.lines()
    assert seen.lines()[-1].startswith("ok: ")
    document = json.loads(ocistream("verify", "--json", *(cut.paths[number] for number in order[:2])).out)
    assert document["ok"]
    assert document["volumes"]["present"] == sorted(NAMES[number] for number in order[:2])
    assert document["volumes"]["absent"] == [NAMES[order[2]]]


def damaged(volume: Path, folder: Path) -> Path:
    """Return a copy of a volume with a flipped byte in its first part of a blob."""
    content = bytearray(volume.read_bytes())
    content[content.index(b"parts/") + 2000] ^= 1
    (folder / volume.name).write_bytes(content)
    return folder / volume.name


@pytest.mark.parametrize("from_pipe", [False, True])
def test_verify_finds_a_flipped_byte_in_a_part(cut: CutOnce, folder: Path, from_pipe: bool) -> None:
    for path in (damaged(volume, folder) for volume in cut.paths[:2]):
        seen = ocistream("verify", stdin=path) if from_pipe else ocistream("verify", path)
        assert seen.code == 5
        assert "its part from byte" in seen.err
        assert from_pipe or f" in {path.name} is corrupt: " in seen.err


def test_a_damaged_part_is_named_and_nothing_becomes_visible(
    cut: CutOnce, folder: Path, target: FaultyRegistry
) -> None:
    wrong = damaged(cut.paths[1], folder)
    assertions.failure(push(target, cut.paths[0], wrong, cut.paths[2]), 5, f"{wrong} is damaged")
    assert push(target, cut.paths[0]).code == 10
    assertions.failure(push(target, wrong), 5, "its part from byte", " in app.001.tar is corrupt: ")
    assertions.no_image(target)
    for path in cut.paths:
        push(target, path)
    is_there(target, cut.image, cut.layout)


def test_a_layout_gets_volumes_one_by_one(cut: CutOnce, tmp_path: Path) -> None:
    codes = [ocistream("copy", path, f"{tmp_path}/copy/").code for path in cut.whole]
    assert codes == [10, 10, 0]
    succeed("verify", tmp_path / "copy")
