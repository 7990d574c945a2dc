"""Every command in the documentation and in `--help` works and prints the output that is shown.

The blocks of a document run in order, in one folder. A TOML block whose first line names a file in a comment is
appended to that file. If another test runs a block, a comment before the block names the test.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ocistream.cli.entry_point import COMMANDS, load_command
from tests.certificates import Certificate
from tests.docs_examples import ROOT, Block, blocks, is_like, turns
from tests.interop.docs_environment import World, script_of, world

DOCUMENTS: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "SECURITY.md"]
#: Languages of blocks that other tests check, or that need no check.
_OTHERS: Final = {"yaml", "json", "python"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[World]:
    """Return one environment for all documents; each has its own folder and HOME in it."""
    with world(tmp_path_factory.mktemp("world"), certificate) as made:
        yield made


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_document_print_what_it_shows(document: Path, here: World, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    certificate = here.certificate
    files = (
        *((certificate.file, "cert.pem"), (certificate.key_file, "key.pem")),
        *((here.key, "cosign.pub"), (here.trusted_root, "trusted_root.json")),
    )
    for source, name in files:
        (folder / name).write_bytes(source.read_bytes())
    for block in blocks(document.read_text()):
        where = f"{document.name}:{block.line}"
        if block.note:
            assert (ROOT / block.note).is_file(), where
        elif block.language == "sh":
            done = here.run(script_of(block.text), folder)
            assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{block.text}\n{done.stdout}"
        elif block.language == "console":
            _compare(block, here, folder, where)
        elif file := re.match(r"[^\n]*# (\S+\.toml)\b", block.text):
            with (folder / file[1]).open("a") as written:
                written.write(block.text)
        else:
            assert block.language in _OTHERS, f"{where}: no test checks this block"


#: Files for the examples of the help: archives, volumes, layouts, a cache, lists and credentials, local and behind ssh.
_PREPARATION: Final = """
ocistream pull --all -o app.tar registry.example.com/app:1
ocistream pull --split 2MiB -o 'app.%03d.tar' app:2
ocistream pull --cache cache/ -o images/ nginx:1
ocistream copy oci-archive:app.tar oci:images:app
ocistream copy oci-archive:app.tar oci:images:example.com/app:1
ocistream push -i app.tar registry.local:5000/app:1
ocistream pull nginx:1 | ssh host 'cat > app.tar; ocistream copy ./app.tar oci:images'
printf '%s\\n' '# a comment' nginx:1 redis:2 > k3s-images.txt
printf '[defaults]\\njobs = 2\\n' > config.toml
printf secret > token
mkdir -p ~/.local/share/bash-completion/completions ~/.zsh/completions ~/.config/fish/completions
"""
#: Examples that fail here: docker-registry 2.8 does not delete tags.
_OTHER_EXIT_CODES: Final = {"ocistream rm registry.example.com/app:1 registry.example.com/app:2": 8}


@pytest.fixture(scope="module")
def prepared(here: World, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of the examples of the help."""
    folder = tmp_path_factory.mktemp("help") / "work"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(certificate.file.read_bytes())
    (folder / "cosign.pub").write_bytes(here.key.read_bytes())
    (folder / "images.toml").write_text((load_command("sync").help or "").partition("# images.toml\n")[2])
    done = here.run(script_of(_PREPARATION), folder)
    assert done.returncode == 0, done.stdout
    return folder


# `serve` runs until it is stopped; docs/serve.md has its examples.
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_the_examples_of_the_help_run(name: str, here: World, prepared: Path, tmp_path: Path) -> None:
    # Each command gets a copy, so that no example sees files of another one.
    shutil.copytree(prepared.parent, tmp_path / "copy")
    text = (load_command(name).help or "").partition("\b\n")[2].partition("\b\n")[0]
    lines = [line.strip() for line in text.replace("\\\n", "").strip().splitlines()]
    assert lines
    for line in lines:
        done = here.run(f"set -o pipefail; export JOB_COMPLETION_INDEX=0\n{line}", tmp_path / "copy" / prepared.name)
        assert done.returncode == _OTHER_EXIT_CODES.get(line, 0), f"{line}\n{done.stdout}"


def _compare(block: Block, here: World, folder: Path, where: str) -> None:
    for line, shown in turns(block.text):
        done = here.run(f"set -o pipefail\n{line}", folder)
        assert is_like(done.stdout, shown), f"{where}: {line}\n{done.stdout}\n--- is shown as\n{shown}"


@pytest.mark.parametrize(
    ("said", "shown", "like"),
    [
        ("12 blobs, 2.1 GB", "3 blobs, 14.5 GB", True),
        ("a@sha256:0123456789abcdef", "a@sha256:ffffffffffffffff", True),
        ("a@sha256:0123456789abcdef", "a@sha256:…", True),
        ("one two", "one  two", True),
        ("one two", "one three", False),
        ("one", "", False),
        ("one\nmore", "one", False),
        ("one\nmore", "one\n…", True),
    ],
)
def test_output_matches_the_shown_output(said: str, shown: str, like: bool) -> None:
    assert is_like(said, shown) is like
