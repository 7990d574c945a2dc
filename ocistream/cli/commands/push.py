"""`ocistream push`: push images of an archive or layout to a registry."""

from __future__ import annotations

import glob
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ocistream.api.copy_plan import plan_copy, plan_copy_to_prefix
from ocistream.api.options import SELECTION, SELECTS_CONTENT, CopyOptions
from ocistream.cli.options import (
    Option,
    RunOptions,
    all_platforms_option,
    command,
    compression_options,
    credential_options,
    identity_options,
    options_of,
    platform_option,
    transfer_options,
    upload_options,
)
from ocistream.cli.parameter_types import FilePath, describe_path, is_path, parse_image_name
from ocistream.cli.transfers import run_plan
from ocistream.errors import NotFoundError, UsageError
from ocistream.layout.image_selection import select_only_image
from ocistream.locations import Location, parse_local_location
from ocistream.oci.reference import printable
from ocistream.streams.paths import exists

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocistream.cli.context import CommandContext

#: With more archives, a shell has probably expanded a glob.
_MAX_ARCHIVES_IN_HINT: Final = 3


@command(
    click.Argument(["arguments"], nargs=-1, metavar="[IMAGE]"),
    Option(
        ["-i", "--input", "paths"],
        type=FilePath(),
        multiple=True,
        metavar="PATH",
        not_configurable=SELECTS_CONTENT,
        section=SELECTION,
        help="Archive, layout or quoted glob; repeatable for volumes.  [default: stdin]",
    ),
    options_of(CopyOptions, "images"),
    Option(
        ["--to", "prefix"],
        metavar="HOST[/PREFIX]",
        not_configurable=SELECTS_CONTENT,
        section=SELECTION,
        help="Push each image under its name, without the old host: HOST/PREFIX/REPO:TAG.",
    ),
    platform_option("all"),
    all_platforms_option,
    options_of(CopyOptions, "no_referrers", "require_signature"),
    identity_options,
    compression_options("Without it, plain docker-archive layers become gzip."),
    upload_options,
    credential_options,
    transfer_options,
    options_of(RunOptions, "dry_run"),
)
def push(context: CommandContext, arguments: tuple[str, ...], paths: tuple[str, ...], prefix: str | None) -> None:
    """Push the images of an archive to a registry.

    IMAGE (HOST/REPO:TAG) is the destination of the archive's only image, or of the one that --image names. --to pushes
    all images (or those of --image) and renames them: registry.example.com/team/app:1 becomes HOST/PREFIX/team/app:1,
    and nginx:1 becomes HOST/PREFIX/nginx:1. Two different images with the same new name are an error. With --to, an
    archive of `docker save` or skopeo must be an uncompressed file (-i FILE), because it lists its images at its end.

    Blobs that the registry has are not sent. Manifests and tags are pushed last. Re-run an interrupted push to resume
    it. Push volumes (`pull --split`) together in any order, or one by one in the order of their numbers: exit code 10
    means that some are still needed.

    \b
    ocistream pull app:2 | ocistream push registry.local:5000/app:2
    ocistream push -i app.tar --to registry.example.com/mirror
    ocistream push -i 'app.*.tar' registry.local:5000/app:2
    """
    _check_arguments(arguments, paths, prefix)
    image = arguments[0] if arguments else None
    if (image is None) == (prefix is None):
        both = image is not None
        msg = "use either IMAGE or --to, not both" if both else "push needs a destination: IMAGE or --to HOST[/PREFIX]"
        hint = "IMAGE (HOST/REPOSITORY:TAG) names one image; with --to, each image keeps its name from the archive"
        raise UsageError(msg, hint=hint)
    archives = [location for path in paths or ("-",) for location in _expand_glob(parse_local_location(path))]
    context.check_result(*archives)
    if image is None:
        plan = plan_copy_to_prefix(archives, prefix or "", context.copy_options)
    else:
        if len(context.copy_options.images) > 1:
            msg = "IMAGE names one image, but --image names several"
            raise UsageError(msg, hint="use --to HOST[/PREFIX] to push several")
        destination = Location("docker", image, reference=parse_image_name(image))
        plan = plan_copy(archives, destination, context.copy_options, select_one=select_only_image)
    run_plan(context, plan)


def _check_arguments(arguments: Sequence[str], paths: Sequence[str], prefix: str | None) -> None:
    """Raise UsageError, with the line to type, if an argument is a path or a second image."""
    # A single name is IMAGE, even if a file has this name. Of several names, that of a file is an archive.
    is_one_image = len(arguments) == 1 and prefix is None
    files = [text for text in arguments if is_path(text, may_exist=not is_one_image)]
    images = [text for text in arguments if text not in files]
    if files:
        targets = [*images[:1], *([] if prefix is None else ["--to", prefix])]
        inputs = [f"-i {shlex.quote(path)}" for path in (*paths, *files)]
        line = " ".join(["ocistream push", *inputs, *(map(shlex.quote, targets) if targets else ["IMAGE"])])
        hint = f"each archive follows -i: `{printable(line, 1024)}`"
        if set(files) <= set(paths) and not targets:
            hint = f"it is already an input: write the destination, `ocistream push -i {printable(files[0])} IMAGE`"
        if len(inputs) > _MAX_ARCHIVES_IN_HINT:
            hint = "quote the glob, so that ocistream expands it: `ocistream push -i 'app.*.tar' IMAGE`"
        raise UsageError(describe_path(files[0]), hint=hint)
    if len(images) > 1:
        msg = f"push takes one IMAGE, but {printable(images[1])!r} is a second one"
        raise UsageError(
            msg, hint="run push once for each destination; `ocistream copy SRC DST` copies between registries"
        )


def _expand_glob(location: Location) -> list[Location]:
    """Return the locations of the files that match; a path without a glob, or one that exists, is itself."""
    path = location.path
    if path is None or location.is_stream or not glob.has_magic(str(path)) or exists(path, follow=False):
        return [location]
    # Not `Path.glob`, which needs a relative pattern and its folder.
    matches = sorted(glob.glob(str(path)))  # noqa: PTH207 - see above
    if not matches:
        msg = f"no file matches {printable(str(path), 1024)}"
        raise NotFoundError(msg, hint="check the glob; relative paths start at the current directory")
    return [replace(location, text=match, path=Path(match)) for match in matches]
