"""Each exit code with real causes. A failure is explained and leaves nothing visible."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import pytest

from tests.archives import check_blobs, files_in, index_in, items_of, small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.fixture_types import Start
from tests.faulty_registry import Fault, FaultyRegistry, Flip, refusal
from tests.images import Descriptor, Layout, small_image
from tests.runner import Argument, command, ocistream, run

MIB = 1 << 20
NO_DIGEST = f"sha256:{'0' * 64}"
#: The files of a registry before the first push.
EMPTY_LAYOUT = ["blobs", "index.json", "oci-layout"]


@pytest.fixture
def image(layout: Layout) -> Descriptor:
    """Return an image with a layer of 2 MiB, named `app` in the layout."""
    return layout.image([2 * MIB, b"a second one"], name="app")


# 1 -----------------------------------------------------------------------------------------------------------

#: An artificial bug, because no real one is known: a command whose module does not exist.
MISTAKE = "import sys; from ocistream import cli; cli.COMMANDS['pull'] = ('nowhere:pull', ''); sys.exit(cli.main(%s))"


def test_1_for_an_internal_error() -> None:
    result = run([sys.executable, "-P", "-c", MISTAKE % ["pull"]])
    assertions.failure(result, 1, "internal error: ModuleNotFoundError", "nowhere", "report it")


# 2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("pull", "IMAGE"),
        ("pull https://a.example/x", "without http://"),
        ("pull a..example/x", "a..example"),
        ("pull a.example/x --platform all --platform linux/amd64", "--platform all already includes 'linux/amd64'"),
        ("pull a.example/x --jobs 0", "--jobs"),
        ("pull a.example/x --retries 21", "--retries"),
        ("pull a.example/x --format zip", "--format"),
        ("pull a.example/x --format oci", "name a directory with -o"),
        ("pull a.example/x -o x.tar --result .", "--result"),
        ("pull a.example/x -o x.tar --username me", "--username needs a password"),
        ("pull a.example/x -o x.tar --password-stdin", "--username"),
        ("pull a.example/x b.example/y -o x.tar --username me", "a.example and b.example"),
        ("pull a.example/x a.example/y -o oci:x:both", "both"),
        ("push", "--to HOST[/PREFIX]"),
        ("push a.example/x --to a.example", "use either IMAGE or --to, not both"),
        ("push a.example/x --image a --image b", "--to HOST[/PREFIX]"),
        ("push --to a.example/UPPER", "UPPER"),
        ("push --to intranet", "intranet:443"),
        ("push --to a.example/x/../y", "'x/../y/x'"),
        ("push a.example/x -i oci:", "oci:PATH[:NAME]"),
        ("copy a.example/x", "DST"),
        ("copy a.example/x oci-archive:", "oci-archive:PATH[:NAME]"),
        ("copy oci:a oci:b --src-password-stdin --dest-password-stdin", "OCISTREAM_SRC_PASSWORD"),
        ("copy - a.example/x --dest-username me --dest-password-stdin", "both the archive and the password"),
        ("push a.example/x --username me --password-stdin", "both the archive and the password"),
        ("login not/a/host", "HOST[:PORT]"),
        ("login a.example", "--password-stdin"),
        ("login a.example -u me --password-stdin", "no password"),
        ("logout not/a/host", "HOST[:PORT]"),
    ],
)
def test_2_for_an_invalid_command_line(argv: str, words: str, folder: Path) -> None:
    assertions.failure(ocistream(*argv.split(), cwd=folder), 2, words)
    assertions.nothing_left(folder)


def test_2_for_a_directory_with_other_files(registry: FaultyRegistry, folder: Path) -> None:
    (folder / "letter.txt").write_text("Dear reader")
    assertions.failure(ocistream("pull", f"{registry.host}/app:1", "-o", folder), 2, "not an OCI layout")
    assertions.nothing_left(folder, "letter.txt")


# 3: tests/errors has the commonest causes of each code, tests/hostile those of 5 and 6, local_faults those of 9.


# 4 -----------------------------------------------------------------------------------------------------------


def test_4_for_a_missing_ca_file(registry: FaultyRegistry, folder: Path) -> None:
    result = ocistream(
        "pull", f"{registry.host}/app:1", "-o", folder / "app.tar", env={"SSL_CERT_FILE": str(folder / "ca.pem")}
    )
    assertions.failure(result, 4, "SSL_CERT_FILE", "ca.pem")
    assertions.nothing_left(folder)


# 5 -----------------------------------------------------------------------------------------------------------


def test_5_for_pull_and_6_for_push_in_a_pipe(registry: FaultyRegistry, start: Start) -> None:
    registry.faults = [Fault(Flip(MIB), "GET", "/blobs/", skip=1)]
    other = start()
    pull = ocistream("pull", f"{registry.host}/app:1")
    assert pull.code == 5
    assertions.failure(ocistream("push", f"{other.host}/app:1", stdin=pull.out), 6)
    assertions.no_image(other)


@pytest.mark.parametrize("content", [b"stray " * 1000, b'{"stray": 1}'])
def test_5_for_a_corrupt_unreferenced_blob_that_was_already_written_to_a_pipe(
    layout: Layout, image: Descriptor, folder: Path, content: bytes
) -> None:
    """The index comes last, so the blob is written before the index shows that no image needs it."""
    stray = layout.blob(content, "application/octet-stream")["digest"]
    layout.file(stray).write_bytes(content.replace(b"stray", b"other"))
    items = items_of(layout)
    assert items[-1][0] == "oci-layout"
    piped = tar_of(items)
    result = ocistream("copy", "-", "oci-archive:-", stdin=piped)
    assert result.code == 5, result.err
    assert stray in result.err
    assert "Traceback" not in result.err
    # The output is recognized as incomplete.
    (folder / "cut.tar").write_bytes(result.out)
    assert ocistream("verify", folder / "cut.tar").code == 6
    # A file can be rewound, so it does not keep the blob.
    succeed("copy", "-", folder / "app.tar", stdin=piped)
    files = files_in((folder / "app.tar").read_bytes())
    assert stray not in check_blobs(files)
    assert [entry["digest"] for entry in index_in(files)] == [image["digest"]]


@pytest.mark.parametrize("source", ["file", "pipe", "layout"])
def test_5_for_a_changed_byte_in_the_source(
    served: FaultyRegistry, layout: Layout, image: Descriptor, folder: Path, source: str
) -> None:
    archive = folder / "app.tar"
    archive.write_bytes(tar_of(small_first(layout)))
    layer = layout.read(image["digest"])["layers"][0]["digest"]
    damaged = layout.file(layer) if source == "layout" else archive
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    options: dict[str, list[Argument]] = {"layout": ["-i", layout.path], "file": ["-i", archive], "pipe": []}
    result = ocistream("push", *options[source], f"{served.host}/app:1", stdin=bytes(content))
    where = {"file": str(archive), "layout": str(layout.path), "pipe": ""}[source]
    assertions.failure(result, 5, layer, where)
    assert ("is damaged, or changed during the run: check it with `ocistream verify " in result.err) is bool(where)
    assertions.no_image(served)


# 6 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", ["oci:FOLDER/new", "-", "oci-archive:-", "FOLDER/new.tar", "docker-archive:FOLDER/new.tar"]
)
def test_6_for_a_missing_layer_before_anything_is_written(
    layout: Layout, image: Descriptor, folder: Path, end: str
) -> None:
    lost = layout.read(image["digest"])["layers"][1]["digest"]
    layout.file(lost).unlink()
    result = ocistream("copy", f"oci:{layout.path}", end.replace("FOLDER", str(folder)))
    assertions.failure(result, 6, lost)
    assertions.nothing_left(folder)


# 7 -----------------------------------------------------------------------------------------------------------


def test_retries_counts_attempts_after_the_first(registry: FaultyRegistry, folder: Path) -> None:
    registry.faults = [Fault(refusal(503), "GET", "/manifests/", times=None)]
    for retries in (0, 1):
        registry.requests.clear()
        result = ocistream("pull", f"{registry.host}/app:1", f"--retries={retries}", "-o", folder / "app.tar")
        assertions.failure(result, 7, "503")
        assert len(registry.requests) == 1 + retries


# 8 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("copy containers-storage:x oci:x", "containers-storage"),
        ("copy docker-daemon:x oci:x", "docker-daemon"),
        ("pull a.example/x@sha384:abcd -o x.tar", "sha384"),
    ],
)
def test_8_for_unsupported_input(argv: str, words: str, layout: Layout) -> None:
    small_image(layout, name="app")
    assertions.failure(ocistream(*argv.split(), cwd=layout.path), 8, words)
    assertions.nothing_left(layout.path, *EMPTY_LAYOUT)


@pytest.mark.parametrize(("tool", "magic"), [("xz", b"\xfd7zXZ\0"), ("lz4", b"\x04\x22\x4d\x18"), ("bzip2", b"BZh9")])
def test_8_for_an_unsupported_compression_names_the_file_and_its_tool(tool: str, magic: bytes, tmp_path: Path) -> None:
    (tmp_path / "my app").write_bytes(magic + os.urandom(2048))
    for name in ("verify", "inspect", "serve"):
        result = ocistream(name, "./my app", cwd=tmp_path)
        hint = (
            f"with {tool}, which is not supported\n  decompress it: `{tool} -dc 'my app' > NEW.tar`, and use NEW.tar\n"
        )
        assertions.failure(result, 8, "my app is compressed", hint)


def test_8_for_an_archive_that_is_compressed_twice(
    served: FaultyRegistry, layout: Layout, image: Descriptor, tmp_path: Path
) -> None:
    assert image
    twice = gzip.compress(gzip.compress(tar_of(small_first(layout))))
    (tmp_path / "app.tar.gz").write_bytes(twice)
    for argv, stdin in (
        (["push", "-i", "app.tar.gz", f"{served.host}/app:1"], None),
        (["push", f"{served.host}/app:1"], twice),
        (["verify", "app.tar.gz"], None),
    ):
        result = ocistream(*argv, stdin=stdin, cwd=tmp_path)
        assertions.failure(result, 8, "is compressed twice: with gzip", "gzip -dc ")
    succeed("verify", stdin=gzip.decompress(twice))


# 9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("image")
def test_9_if_the_disk_is_full_for_stdout(layout: Layout, dev_stdout: Path) -> None:
    for end in ("-", dev_stdout):
        result = ocistream("copy", layout.path, end, stdout=Path("/dev/full"))
        assertions.failure(result, 9, "cannot write", "No space left on device")


def test_9_for_a_loop_of_symbolic_links(registry: FaultyRegistry, folder: Path) -> None:
    loop = folder / "x.tar"
    loop.symlink_to("x.tar")
    image = f"{registry.host}/app:1"
    words = (str(loop), "Too many levels of symbolic links")
    assertions.failure(ocistream("pull", image, "-o", loop), 9, "cannot access", *words)
    assertions.failure(ocistream("pull", image, "-o", folder / "y.tar", "--result", loop), 9, "cannot access", *words)
    assertions.failure(ocistream("push", image, "-i", loop), 9, "cannot access", *words)
    assertions.failure(ocistream("pull", image, "-o", loop, "--result", loop), 2, "the archive itself")
    assertions.failure(ocistream("serve", loop, "--listen", "127.0.0.1:0"), 9, str(loop))
    assertions.nothing_left(folder, "x.tar")
    assert loop.is_symlink()


@pytest.mark.usefixtures("image")
def test_9_if_the_disk_is_full_for_result_lines(layout: Layout, folder: Path) -> None:
    result = ocistream("copy", layout.path, folder / "app.tar", stdout=Path("/dev/full"))
    assertions.failure(result, 9, "stdout", "No space left on device")


@pytest.mark.uncounted
def test_9_if_the_disk_is_full_for_help_and_version() -> None:
    for argv in (["--version"], ["--help"], ["pull", "--help"]):
        assertions.failure(ocistream(*argv, stdout=Path("/dev/full")), 9, "stdout", "No space left on device")


@pytest.mark.usefixtures("image")
def test_9_for_the_file_size_limit(layout: Layout, folder: Path) -> None:
    line = ["prlimit", f"--fsize={MIB // 2}", *command(), "copy", str(layout.path), str(folder / "app.tar")]
    without_coverage = dict.fromkeys(name for name in os.environ if name.startswith("COVERAGE_"))
    assertions.failure(run(line, env=without_coverage), 9, "app.tar", "too large")
    assertions.nothing_left(folder)


def test_9_for_an_unreadable_file(layout: Layout, image: Descriptor, served: FaultyRegistry) -> None:
    layout.file(image["digest"]).chmod(0)
    result = ocistream("push", "-i", layout.path, f"{served.host}/app:1", unprivileged=True)
    assertions.failure(result, 9, image["digest"], "Permission denied")
    assertions.no_image(served)


# Messages ------------------------------------------------------------------------------------------------------


def test_a_traceback_is_printed_only_with_vv() -> None:
    argv = ["push", "127.0.0.1:1/app:1", "-i", "/missing.tar"]
    assert "Traceback" not in ocistream(*argv, "-v").err
    assert "Traceback" in ocistream(*argv, "-vv").err
    for line in assertions.json_lines(ocistream(*argv, "-vv", "--log-format=json").err):
        assert line["level"] in {"error", "debug"}


def test_control_characters_in_image_names_are_not_printed(layout: Layout, folder: Path) -> None:
    descriptor = small_image(layout)
    layout.name(descriptor, f"real@{NO_DIGEST}\nfake\x1b[2J")
    assertions.failure(ocistream("copy", layout.path, folder / "app.tar"), 2, f"real@{NO_DIGEST}?fake?[2J")
    assert not (folder / "app.tar").exists()
