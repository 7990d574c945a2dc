"""`ocistream verify`: check archives, layouts and images in registries, in one pass."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Final

import click

from ocistream.api.options import DECIDES_TRUST, SIGNATURES, SIGNED_BY_KEY, CopyOptions
from ocistream.cli.console import escape_ci_commands, sanitize_line
from ocistream.cli.options import (
    Option,
    RunOptions,
    command,
    credential_options,
    identity_options,
    json_option,
    network_options,
    options_of,
)
from ocistream.cli.parameter_types import FilePath, describe_layout_image
from ocistream.cli.report import format_result_line
from ocistream.errors import InvalidNameError, NotFoundError, OcistreamError, UnsupportedError
from ocistream.locations import check_repository, is_missing_image, parse_location, path_of
from ocistream.oci.omitted_blobs import VOLUME, group_by_reason
from ocistream.oci.reference import printable
from ocistream.sizes import format_count, format_size
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocistream.api.verification import VerifyResult, VolumeSet
    from ocistream.cli.context import CommandContext
    from ocistream.locations import Location

#: The most lines for names or for digests; the JSON has all of them, or their number.
_MAX_LINES: Final = 100
#: The most volumes that a line names.
_MAX_NAMES: Final = 20


@command(
    click.Argument(["paths"], nargs=-1, metavar="[LOCATION]...", type=FilePath()),
    Option(
        ["--key", "keys"],
        multiple=True,
        type=FilePath(),
        metavar="FILE",
        not_configurable=DECIDES_TRUST,
        section=SIGNATURES,
        help=SIGNED_BY_KEY,
    ),
    identity_options,
    Option(
        ["--deep"],
        is_flag=True,
        help="Also decompress layers and compare them with the diff_ids of their configs.",
    ),
    json_option("Print one JSON document."),
    options_of(CopyOptions, "max_ratio"),
    options_of(RunOptions, "progress"),
    credential_options,
    network_options,
)
def verify(
    context: CommandContext, paths: tuple[str, ...], *, keys: tuple[str, ...], deep: bool, as_json: bool
) -> None:
    """Verify archives and layouts offline, or images in registries, in one pass (default: stdin).

    Every blob is hashed, and every image must be complete. The last line begins with `ok`, or with `NOT ok`: exit code
    5 for wrong bytes or no valid signature, 6 for missing or malformed content. If an archive of `pull --have`, or one
    volume, omits blobs on purpose, the line begins with `ok, but incomplete`, and the exit code is 0. Platforms that
    `docker save` did not export are only counted.

    LOCATION is a path, or the name of an image with its registry's host, such as docker.io/library/nginx:1. Several
    files are verified as volumes of one archive: run `verify` once for each separate archive.

    \b
    ocistream verify app.tar
    ocistream verify app.000.tar app.001.tar
    ocistream verify --key cosign.pub registry.example.com/release:1
    ssh host cat app.tar | ocistream verify --deep
    """
    from ocistream.api.verification import open_locations, verify_source

    signers = context.copy_options.list_signers(keys)
    paths = paths or ("-",)
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(_print_error_as_json(paths))
        locations = [_find(path) for path in paths]
        registries = set[str]().union(*(location.registries for location in locations))
        source = stack.enter_context(
            contextlib.closing(open_locations(locations, context.build_open_context(registries=registries)))
        )
        # Opening stdin may silence the display.
        observer = stack.enter_context(context.console.show_progress(context.run_options.progress))
        result = verify_source(
            source,
            paths,
            deep=deep,
            max_ratio=context.copy_options.max_ratio,
            signers=signers,
            observer=observer,
            cancelled=context.cancelled,
        )
    if as_json:
        click.echo(escape_ci_commands(json.dumps(result.document(), indent=2)))
    else:
        click.echo("\n".join(map(sanitize_line, _format_lines(result))))
        # The first problem is the error.
        for line in _limit_lines([error.message for error in result.errors()[1:]]):
            context.console.info(line, level=-1)
    result.raise_for_findings()


def _find(text: str) -> Location:
    """Return a location: a path, or an image in a registry if the text begins with the registry's host.

    Raises:
        NotFoundError: the path does not exist, and could be meant as the name of an image.
        InvalidNameError: the text is only the name of a registry, or see `parse_location`.
        UnsupportedError: see `parse_location`.
    """
    location = parse_location(text, bare_is_path=True)
    if is_missing_image(location):
        return parse_location(text)
    if location.kind == "path" and not location.is_stream and not exists(path_of(location)):
        check_repository(text)
        with contextlib.suppress(InvalidNameError, UnsupportedError):
            if (reference := parse_location(text).reference) is not None:
                msg = f"cannot read {printable(text)}: no such file or directory"
                hint = f"check the path; for an image in a registry, write its host too: {reference}"
                raise NotFoundError(msg, hint=describe_layout_image(text) or hint)
    return location


@contextlib.contextmanager
def _print_error_as_json(paths: tuple[str, ...]) -> Iterator[None]:
    """Print an error that ends the run as a JSON document too, so that stdout is always JSON."""
    from ocistream.api.verification import format_paths

    try:
        yield
    except OcistreamError as error:
        click.echo(
            escape_ci_commands(json.dumps({"path": format_paths(paths), "ok": False, "error": error.message}, indent=2))
        )
        raise


def _format_lines(result: VerifyResult) -> Iterator[str]:
    """Return the result as lines for people."""
    findings = result.findings
    for root in result.intact_images():
        digest = None if root.is_synthesized else root.descriptor.digest
        yield format_result_line(root.name or "-", digest, findings.graph.image_id(root))
    for signature in result.signatures or ():
        if not signature.problem:
            names = f" as {', '.join(signature.names)}" if signature.names else ""
            image = printable(signature.root.name or signature.root.descriptor.digest)
            yield f"signed: {image} by {', '.join(printable(str(signer)) for signer in signature.signers)}{names}"
    if result.volumes:
        yield _format_volumes(result.volumes)
    sizes = {blob.digest: blob.size for blob in findings.omitted}
    for reason, digests in group_by_reason(
        {digest: findings.graph.omitted_from_source[digest] for digest in sizes}
    ).items():
        if result.volumes and reason.kind == VOLUME:
            continue
        size = sum(sizes[digest] for digest in digests)
        yield f"omitted {format_count(len(digests), 'blob')}, {format_size(size)}: {reason.describe()}"
    for index in findings.incomplete:
        name = printable(index.name or index.digest)
        yield from _limit_lines([f"not exported: {printable(missing)} of {name}" for missing in index.missing])
    verdict = "NOT ok"
    if result.ok:
        reasons = _describe_absent(result)
        verdict = f"ok, but incomplete ({', '.join(reasons)})" if reasons else "ok"
    yield f"{verdict}: {result.format}, {', '.join(_format_counts(result))}"


def _describe_absent(result: VerifyResult) -> list[str]:
    """Return what other volumes, or the destination, have instead of the archive."""
    reasons: list[str] = []
    if result.volumes and result.volumes.absent_names:
        reasons.append(_number_volumes(result.volumes))
    is_omitted = result.findings.graph.omitted_from_source
    count = sum(not result.volumes or is_omitted[blob.digest].kind != VOLUME for blob in result.findings.omitted)
    if count:
        reasons.append(f"{format_count(count, 'blob')} omitted")
    return reasons


def _format_counts(result: VerifyResult) -> list[str]:
    """Return the counts of the last line."""
    findings = result.findings
    referrers = sum(1 for root in findings.graph.roots if result.subject(root))
    parts = [format_count(len(findings.graph.roots) - referrers, "image")]
    referrers += len(findings.graph.separate_referrers)
    if referrers:
        parts.append(format_count(referrers, "referrer"))
    if findings.manifests:
        parts.append(format_count(findings.manifests, "manifest"))
    parts += [format_count(findings.blobs - findings.manifests, "blob"), format_size(findings.size)]
    if findings.unreferenced:
        parts.append(f"{format_count(findings.unreferenced, 'blob')} that no image needs")
    if findings.unpacked:
        parts.append(f"{format_count(findings.unpacked, 'layer')} unpacked")
    if count := sum(len(index.missing) for index in findings.incomplete):
        entries = format_count(count, "index entry", "index entries")
        parts.append(f"{entries} not exported (`docker save` omits other platforms)")
    if findings.parts:
        parts.append(format_count(findings.parts, "part of a split blob", "parts of split blobs"))
    if result.other_files:
        parts.append(format_count(result.other_files, "other file"))
    return parts


def _limit_lines(lines: list[str]) -> Iterator[str]:
    yield from lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
        yield f"... and {len(lines) - _MAX_LINES} more"


def _number_volumes(volumes: VolumeSet) -> str:
    """Return the numbers of the volumes, counted from 1."""
    numbers = ", ".join(str(volume.number + 1) for volume in volumes.present)
    return f"{'volume' if len(volumes.present) == 1 else 'volumes'} {numbers} of {volumes.present[0].total}"


def _format_volumes(volumes: VolumeSet) -> str:
    """Return the volumes as a line for people."""
    present = volumes.present
    description = str(present[0]) if len(present) == 1 else _number_volumes(volumes)
    if not volumes.absent_names:
        return f"{description}: all volumes"
    more_text = f" and {len(volumes.absent_names) - _MAX_NAMES} more" if len(volumes.absent_names) > _MAX_NAMES else ""
    names = ", ".join(printable(name) for name in volumes.absent_names[:_MAX_NAMES])
    return f"{description}; {names}{more_text} {'has' if len(volumes.absent_names) == 1 else 'have'} the rest"
