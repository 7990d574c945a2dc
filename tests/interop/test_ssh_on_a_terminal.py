"""`pull | ssh host push` on one terminal, with real ssh and remote output on stderr."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.terminal import Screen, on_terminal
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.interop.process_limits import MIB
from tests.peers import ssh_server
from tests.registry_http import seed
from tests.runner import command


@pytest.mark.parametrize("columns", [40, *(pytest.param(columns, marks=pytest.mark.nightly) for columns in (80, 200))])
def test_no_line_of_either_process_is_truncated_or_overwritten(tmp_path: Path, layout: Layout, columns: int) -> None:
    image = layout.image([3 * MIB, 2 * MIB])
    with (
        FaultyRegistry(tmp_path / "near") as near,
        FaultyRegistry(tmp_path / "far") as far,
        ssh_server(tmp_path / "ssh") as ssh,
    ):
        seed(layout, image, near.host, "app", "1")
        push = shlex.join([*command(), "push", f"{far.host}/app:1"])
        talk = "for number in 1 2 3 4 5 6 7 8 9; do echo permission denied $number >&2; sleep 0.6; done"
        seen = on_terminal(
            *("pull", f"{near.host}/app:1", "--limit-rate=800k"),
            piped_into_program=[*ssh, f"({talk}) & {push}; wait; echo bye >&2"],
            size=(24, columns),
        )
    assert seen.code == 0
    lines = [line for line in Screen(columns, seen.screen).written if line]
    others = [line for line in lines if not re.match(r"ocistream: |127\.0\.0\.1:[0-9]+/app:1@sha256:", line)]
    # ssh warns about an unknown host.
    others = [line for line in others if not re.fullmatch(r"Warning: Permanently added .* known hosts\.", line)]
    assert others == [*(f"permission denied {number}" for number in range(1, 10)), "bye"]
    # The remote process prints only its result; the local process prints the progress.
    assert len([line for line in lines if re.fullmatch(r"127\.0\.0\.1:[0-9]+/app:1@sha256:[0-9a-f]{64}", line)]) == 1
    ours = [line for line in lines if line.startswith("ocistream: ")]
    assert ours[0] == "ocistream: 3 blobs, 5.2 MB in all"
    assert [line for line in ours[1:-1] if not re.match(r"ocistream: [0-9.]+ MB of 5\.2 MB, ", line)] == []
    assert len(ours) > 2
    assert ours[-1].startswith("ocistream: copied 3 blobs, 5.2 MB")
