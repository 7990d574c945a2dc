"""Push big docker-archives from a pipe in bounded memory, without writing into files.

The archives are generated while they are read, so that they need no disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import pytest

from tests.archives import END
from tests.images import digest_of
from tests.interop.process_limits import BUDGET, COMPRESSING_BUDGET, MIB, assert_within_budget, no_files
from tests.peers import DockerRegistry, docker_registry
from tests.registry_http import get, manifest
from tests.runner import Result, command, run_measured

NAME: Final = "big.test/org/app:v1"


@pytest.fixture
def big_registry(tmp_path: Path) -> Iterator[DockerRegistry]:
    """Return a docker-registry whose storage is deleted at its end."""
    try:
        with docker_registry(tmp_path / "big") as registry:
            yield registry
    finally:
        shutil.rmtree(tmp_path / "big")


@pytest.mark.parametrize(
    ("mebibytes", "options", "budget"),
    [
        pytest.param(14, ("--compress=none",), BUDGET, id="as it is"),
        # tests/cli/test_recompression.py measures the memory of a push that compresses.
        pytest.param(256, ("--compress=none",), BUDGET, id="a GiB as it is", marks=pytest.mark.nightly),
        pytest.param(64, (), COMPRESSING_BUDGET, id="a quarter of one to gzip", marks=pytest.mark.nightly),
    ],
)
def test_a_docker_archive_of_four_layers_is_pushed_from_a_pipe(
    mebibytes: int, options: tuple[str, ...], budget: int, big_registry: DockerRegistry, tmp_path: Path
) -> None:
    with docker_save(tmp_path / "pipe", mebibytes) as diff_ids:
        pushed = push(tmp_path / "pipe", *options, f"{big_registry.host}/big:v1")
    assert_within_budget(pushed, budget=budget)
    document = json.loads(manifest(big_registry.host, "big", "v1") or b"")
    _, config = get(big_registry.host, f"/v2/big/blobs/{document['config']['digest']}")
    assert json.loads(config)["rootfs"]["diff_ids"] == diff_ids
    layers = [layer["digest"] for layer in document["layers"]]
    assert (layers == diff_ids) == bool(options)
    assert big_registry.blobs("big") == {*layers, document["config"]["digest"]}
    # gzip stores incompressible data uncompressed.
    assert all(layer["size"] >= mebibytes * MIB for layer in document["layers"])


def push(fifo: Path, *arguments: str) -> Result:
    return run_measured([*no_files(), *command(), "push", *arguments], stdin=fifo, env={"TMPDIR": "/nowhere"})


@contextlib.contextmanager
def docker_save(fifo: Path, mebibytes: int) -> Iterator[list[str]]:
    """Write an image of four layers of `mebibytes` each into a new FIFO, in the format of older `docker save`.

    Yield the layers' diff_ids, a list that is complete when the archive is.
    """
    os.mkfifo(fifo)
    diff_ids: list[str] = []

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), fifo.open("wb") as out:
            names = [f"{number:064x}/layer.tar" for number in range(4)]
            diff_ids.extend(layer(out, name, mebibytes, number) for number, name in enumerate(names))
            config = json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "config": {},
                    "rootfs": {"type": "layers", "diff_ids": diff_ids},
                }
            ).encode()
            named = f"{digest_of(config)[7:]}.json"
            entry(out, named, config)
            entry(out, "manifest.json", json.dumps([{"Config": named, "RepoTags": [NAME], "Layers": names}]).encode())
            out.write(END)

    writer = threading.Thread(target=write)
    writer.start()
    yield diff_ids
    writer.join()


def layer(out: IO[bytes], name: str, mebibytes: int, seed: int) -> str:
    """Write a layer of `mebibytes`, each of them different, and return its digest."""
    block = random.Random(seed).randbytes(MIB - 8)
    out.write(header(name, mebibytes * MIB))
    whole = hashlib.sha256()
    for number in range(mebibytes):
        for piece in (number.to_bytes(8), block):
            whole.update(piece)
            out.write(piece)
    return f"sha256:{whole.hexdigest()}"


def entry(out: IO[bytes], name: str, content: bytes) -> None:
    out.write(header(name, len(content)) + content + bytes(-len(content) % 512))


def header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)
