"""Name the images of a copy at the destination: by tag, below a prefix, or by a new name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError, InvalidNameError, UsageError
from ocistream.layout.index import is_printable_name, tag_of
from ocistream.oci.reference import Reference, is_digest, parse_reference, parse_registry, printable, without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ocistream.layout.image_selection import ImageSelector
    from ocistream.oci.graph import Graph, Root


def build_rename(name: str, kind: str) -> Callable[[Graph], Graph]:
    """Return the function that gives the graph's only root its name at a destination of this kind.

    The caller has checked that there is one root. The function raises IntegrityError if the name has the digest of
    another image.
    """
    if not is_printable_name(name):
        msg = f"malformed name {printable(name)!r}"
        raise InvalidNameError(msg, hint="write it without spaces, such as app:1")
    digest = name.rpartition("@")[2]
    if kind == "docker-archive":
        reference = parse_reference(name)
        if reference.digest:
            msg = f"{name!r} has a digest, but images in a docker-archive have only tags"
            raise InvalidNameError(msg, hint="write it as app:1")
        name = reference.name

    def rename(graph: Graph) -> Graph:
        (root,) = graph.roots
        if is_digest(digest) and digest != root.descriptor.digest:
            msg = f"the image is {root.descriptor.digest}, not {digest} as in the name {printable(name)}"
            raise IntegrityError(msg, hint="correct the digest, or write a tag")
        # Keep the name at the source: hints may need it.
        return replace(graph, roots=(replace(root, name=name, origin=root.origin or root.name or ""),))

    return rename


def require_distinct_targets(target: Callable[[Root], Reference], select: ImageSelector) -> ImageSelector:
    """Return `select` with a check that no two images get the same target: the second would replace the first.

    The selection raises UsageError if two do.
    """

    def chosen(roots: Sequence[Root], where: str) -> Sequence[Root]:
        selected = select(roots, where)
        roots_by_target: dict[Reference, Root] = {}
        for root in selected:
            reference = target(root)
            if roots_by_target.setdefault(reference, root).descriptor.digest != root.descriptor.digest:
                both = f"{printable(roots_by_target[reference].name or '')} and {printable(root.name or '')}"
                msg = f"{both} would both become {reference.name}"
                hint = "push one of them with `ocistream push -i FILE --image NAME HOST/REPOSITORY:TAG`"
                raise UsageError(msg, hint=hint)
        return selected

    return chosen


def build_tag_target(repository: Reference) -> Callable[[Root], Reference]:
    """Return the function that names images within one repository: each keeps its tag."""

    def target(root: Root) -> Reference:
        return Reference(repository.registry, repository.repository, tag_of(root.name))

    return target


def build_prefix_target(prefix: str) -> Callable[[Root], Reference]:
    """Return the function that names images under `HOST[/PREFIX]`: each keeps its repository and tag."""
    scheme, separator, rest = prefix.partition("://")
    if separator:
        msg = f"malformed --to {printable(without_password(prefix))!r}: a URL is not a name"
        hint = f"write it without {printable(scheme)}://: --to {printable(without_password(rest))}"
        raise InvalidNameError(msg, hint=hint)
    host, _, path = prefix.rstrip("/").partition("/")
    registry = parse_registry(host)
    if {":", "@"} & set(path):
        msg = f"--to {printable(prefix)!r} has a tag or a digest"
        hint = f"write HOST[/PREFIX]: images keep their tags; for another name, push {printable(prefix)} without --to"
        raise InvalidNameError(msg, hint=hint)
    if parse_reference(f"{registry}/x/y").registry != registry:
        # In an image name this host would be a part of a repository on Docker Hub, and the images would go there.
        msg = f"--to {printable(host)!r} does not look like the host of a registry"
        raise InvalidNameError(msg, hint=f"write its port as well, such as {printable(host)}:443, or its full domain")

    def target(root: Root) -> Reference:
        reference = parse_reference(root.name or "")
        repository = (
            reference.repository.removeprefix("library/") if reference.registry == "docker.io" else reference.repository
        )
        return parse_reference(f"{registry}/{path + '/' if path else ''}{repository}:{reference.tag}")

    if path:
        parse_reference(f"{registry}/{path}/x")
    return target
