"""What pull, push and copy have in common: open two ends, move, report, close."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream import transfer
from ocistream.cli.progress import progress
from ocistream.cli.report import check_result, print_results, summarize, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocistream.cli.options import Session
    from ocistream.graph import Graph, Root
    from ocistream.interfaces import Sink, Source
    from ocistream.stores import End

__all__ = ["move", "renamed"]


def move(
    session: Session,
    open_ends: Callable[[], tuple[Source, Sink]],
    label: Callable[[Root], str],
    *,
    to_stdout: bool = False,
    rename: Callable[[Graph], Graph] | None = None,
) -> None:
    """Move images, then print and write what was done.

    `label` names a root in the results. With `to_stdout` the archive is there, and no result lines are printed.

    Raises:
        OcistreamError: it failed, and nothing is visible at the destination.
    """
    result = session.options["result"]
    if result is not None:
        check_result(result)
    with contextlib.ExitStack() as stack:
        source, sink = open_ends()
        stack.callback(source.close)
        stack.callback(sink.close)
        with progress(session.options["progress"], session.console) as observer:
            report = transfer.copy(
                source, sink, observer, jobs=session.jobs, cancelled=session.cancelled, rename=rename
            )
    if result is not None:
        write_result(result, report, label, retried=session.retried)
    if not to_stdout:
        print_results(report, label)
    summarize(session.console, report)


def renamed(end: End) -> Callable[[Graph], Graph]:
    """Give the way to call a graph's root as the destination is called; that there is only one is seen to before."""

    def rename(graph: Graph) -> Graph:
        (root,) = graph.roots
        return replace(graph, roots=(replace(root, name=end.name),))

    return rename
