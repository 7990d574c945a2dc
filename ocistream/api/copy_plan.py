"""Plan a copy: which images of which locations are copied, by which names, and what the options mean.

`pull`, `push`, `copy` and the Python API run these plans, so that options mean the same and have the same defaults.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ocistream.errors import IntegrityError, InvalidNameError, UsageError
from ocistream.layout.image_selection import (
    Selection,
    report_replaced_names,
    select_by_tag,
    select_existing_images,
    select_full_names,
    select_image_to_copy,
    select_named_images,
)
from ocistream.layout.index import image_names_of, is_printable_name, tag_of
from ocistream.locations import (
    Location,
    check_path_kind,
    is_directory,
    is_layout_destination,
    open_destination,
    open_sources,
)
from ocistream.oci.platforms import default_platform, parse_platform_choice
from ocistream.oci.reference import (
    DIGEST_HEX_LENGTHS,
    Reference,
    is_digest,
    is_repository,
    parse_digest,
    parse_reference,
    parse_registry,
    printable,
    without_password,
)
from ocistream.transfer.copy import Copy
from ocistream.transfer.interfaces import NullObserver

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from ocistream.api.options import CopyOptions
    from ocistream.layout.image_selection import ImageSelector
    from ocistream.locations import OpenContext
    from ocistream.oci.graph import Graph, Root
    from ocistream.oci.omitted_blobs import OmissionReason
    from ocistream.signatures.policy import TrustPolicy, TrustRule
    from ocistream.signatures.signers import Signer
    from ocistream.transfer.interfaces import Destination, Observer, Source
    from ocistream.transfer.recompress import RecompressionSettings
    from ocistream.transfer.report import Report

_SPLIT_HINT = "name the volumes with a template, such as app.%03d.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """A copy whose options are checked and whose locations are not open yet."""

    sources: tuple[Location, ...]
    #: A registry location without a reference if `target` names every image (`push --to`).
    destination: Location
    options: CopyOptions
    selection: Selection
    #: Returns the reference of each image in a registry; None if all use the destination's.
    target: Callable[[Root], Reference] | None = None
    #: Gives the only image its name at the destination.
    rename: Callable[[Graph], Graph] | None = None
    mount_from: tuple[str, ...] = ()
    recompression: RecompressionSettings | None = None
    #: Signers with the contents of their files; one of them must have signed each image. Empty if no signatures are
    #: required.
    signers: Mapping[Signer, str]
    #: The policy of the configuration; None if there is none.
    policy: TrustPolicy | None = None
    #: Whether another ocistream writes the destination (`copy --via`), with its own names and layers.
    is_remote: bool = False

    @property
    def local_source(self) -> Location | None:
        """The archive or layout that is the only source; None for registries and joined archives."""
        return self.sources[0] if len(self.sources) == 1 and self.sources[0].kind != "docker" else None

    @property
    def reads_archives(self) -> bool:
        """Whether a source is an archive."""
        return any(source.kind not in {"docker", "oci"} and not is_directory(source) for source in self.sources)

    @property
    def source_registries(self) -> set[str]:
        """The registries of the sources."""
        return {location.reference.registry for location in self.sources if location.reference}

    @property
    def destination_registries(self) -> set[str]:
        """The registry of the destination, if it is in one."""
        if self.destination.reference is not None:
            return {self.destination.reference.registry}
        if self.destination.kind == "docker":
            return {parse_registry(self.destination.text.partition("/")[0])}
        return set()

    def with_policy(self, policy: TrustPolicy | None) -> CopyPlan:
        """Return the plan with the policy of the configuration, if there is one."""
        if policy is None or not policy.rules:
            return self
        references = [location.reference for location in (*self.sources, self.destination)]
        # The names in an archive are not known yet; finding its signatures costs no request.
        needs = policy.needs_signatures(references, may_have_names=None in references[:-1])
        selection = replace(self.selection, with_signatures=self.selection.with_signatures or needs)
        return replace(self, policy=policy, selection=selection)

    def open(self, source_context: OpenContext, destination_context: OpenContext) -> tuple[Source, Destination]:
        """Open the source, then the destination, which creates a file.

        Raises:
            OcistreamError: a location cannot be opened, or the configuration forbids the push.
        """
        selection = self.selection
        if self.destination.kind == "docker":
            check_push = destination_context.registries().rules.check_push
            if self.destination.reference is not None:
                check_push(self.destination.reference)
            elif self.target is not None:
                selection = replace(selection, select=_check_each_push(selection.select, self.target, check_push))
        source = open_sources(self.sources, source_context, selection)
        try:
            destination = open_destination(
                self.destination,
                replace(
                    destination_context,
                    mount_from=self.mount_from,
                    target=self.target,
                    volume_size=self.options.split,
                ),
            )
        except BaseException:  # Ctrl-C included: the source holds open files and connections
            source.close()
            raise
        return source, destination

    def run(  # noqa: PLR0913 - all but the two locations are options, given by name
        self,
        source: Source,
        destination: Destination,
        observer: Observer | None = None,
        *,
        jobs: int,
        prefetch_memory: int,
        cancelled: threading.Event,
        find_omitted: Callable[[Graph], Mapping[str, OmissionReason]] | None = None,
        on_resolved: Callable[[Graph], None] = lambda _graph: None,
        dry_run: bool = False,
    ) -> Report:
        """Copy between the opened locations, which stay open.

        The options are those of `transfer.copy.Copy`. With `dry_run`, nothing is written; the destination was opened
        for that (`OpenContext.is_dry_run`).

        Raises:
            OcistreamError: the first failure; nothing new is visible in the destination.
        """

        def check_resolved(graph: Graph) -> None:
            on_resolved(graph)
            if self.recompression is not None:
                self._check_digest_stays(graph, self.recompression)

        plain_layer_recompression = None
        if self.compresses_plain_layers(can_omit=find_omitted is not None):
            plain_layer_recompression = _parse_recompression(self.options, self.options.compress or "gzip")
        signature_check = None
        if self.signers or self.policy is not None:
            from ocistream.signatures.check import SignatureCheck

            signature_check = SignatureCheck(
                self.signers, self._find_rules, self._find_names, is_local=self.local_source is not None
            )
        copy = Copy(
            source,
            destination,
            observer or NullObserver(),
            jobs=jobs,
            prefetch_memory=prefetch_memory,
            cancelled=cancelled,
            on_resolved=check_resolved,
            rename=self.rename or (lambda graph: graph),
            omit=find_omitted,
            recompression=self.recompression,
            plain_layer_recompression=plain_layer_recompression,
            signature_check=signature_check,
        )
        report = copy.run(dry_run=dry_run)
        # Where the only image gets the name that the user gave, its own name may be unusable.
        if self.target is None and (self.destination.kind == "docker" or self.destination.name is not None):
            report_replaced_names(report.source_graph.roots)
        return report

    def compresses_plain_layers(self, *, can_omit: bool) -> bool:
        """Return whether plain layers are recompressed if `docker save` wrote the source or one of several archives.

        If the copy can omit blobs, they keep their digests, since blobs are omitted by digest.
        """
        return self.reads_archives and (self.is_remote or not can_omit)

    def source_name(self, root: Root) -> str:
        """Return the name of an image at its source."""
        first = self.sources[0]
        if len(self.sources) == 1 and first.reference is not None and self.target is None:
            return str(first.reference)
        # If the image was renamed, its name is the one at the destination.
        return (root.origin if self.rename is not None else root.name or root.origin) or first.text

    def result_name(self, root: Root) -> str:
        """Return the name of an image in the results."""
        if self.target is not None:
            return self.target(root).name
        if self.destination.reference is not None:
            return self.destination.reference.name
        if self.is_remote and self.destination.name:
            return self.destination.name
        return root.name or root.origin or self.sources[0].text

    def _find_names(self, root: Root) -> Sequence[str]:
        """Return the name that an image gets at the destination, unless it keeps its own."""
        reference = self.target(root) if self.target is not None else self.destination.reference
        name = str(reference) if reference is not None else self.destination.name
        return () if name is None else (name,)

    def _find_rules(self, root: Root) -> Sequence[TrustRule]:
        """Return the rules for the repository that the image is read from, the names that it has, and its new name."""
        if self.policy is None:
            return ()
        digests = {root.descriptor.digest, root.chosen_platforms and root.chosen_platforms.index}
        references = [location.reference for location in self.sources if location.reference is not None]
        # The name of an image in the graph may lack the registry, if a digest was requested. If no source matches, the
        # rules of all sources hold: a check too many is safe.
        own = [item for item in references if item.name == root.name or (item.digest and item.digest in digests)]
        target = self.target(root) if self.target is not None else self.destination.reference
        return self.policy.find_for(root, image_names_of(root.descriptor), [*(own or references), target])

    def _check_digest_stays(self, graph: Graph, recompression: RecompressionSettings) -> None:
        """Refuse to recompress an image whose own digest the destination names, before a blob moves.

        The digest of the recompressed image may be named: the registry's destination checks that at the end.
        """
        digest = self.destination.reference.digest if self.destination.reference is not None else None
        if digest is None:
            return
        from ocistream.transfer.recompress import Recompressor

        recompressor = Recompressor(recompression)
        if digest in recompressor.find_changed_manifests(graph, recompressor.find_layers(graph)):
            msg = (
                f"{self.destination.text}: {digest} was requested, but recompressed layers give the image another "
                "digest"
            )
            raise IntegrityError(msg, hint="omit --compress, or push to a tag")


def plan_copy(
    sources: Sequence[Location],
    destination: Location,
    options: CopyOptions,
    *,
    only_this_platform: bool = False,
    select_one: ImageSelector = select_image_to_copy,
    is_remote: bool = False,
) -> CopyPlan:
    """Plan a copy to a destination.

    Without platforms in the options, all are copied; with `only_this_platform`, as for `pull`, and into a
    docker-archive, which has one image per name, linux on this machine's architecture. `select_one` selects the image
    where only one can be written. With `is_remote`, another ocistream writes the destination.

    Raises:
        UsageError: options or locations contradict each other.
        InvalidNameError: a name, platform or repository is malformed.
    """
    if options.images and any(location.kind == "docker" for location in sources):
        msg = "--image works only with archives and layouts"
        raise UsageError(msg, hint="name the image in the registry")
    is_one_platform = only_this_platform or (destination.kind == "docker-archive" and not is_remote)
    target = None
    select: ImageSelector = select_existing_images
    filter_tags = None
    if options.all_tags or options.tags:
        from ocistream.oci.tag_filters import glob_filter

        _check_repositories(sources, destination, options)
        filter_tags = glob_filter(options.tags)
        select = select_by_tag(filter_tags, None if options.tags else _untagged_hint(sources[0], destination))
        if destination.reference is not None:
            target = _build_tag_target(destination.reference)
            select = _require_distinct_targets(target, select)
    else:
        is_one_image = destination.kind == "docker" or destination.name is not None
        if is_one_image:
            _check_one_image(sources, destination, options)
        if options.images:
            select = select_named_images(options.images)
        elif is_one_image:
            select = select_one
    if not is_remote:
        # Before a request: a retry of a failed one may take minutes.
        check_path_kind(destination)
        _check_split(options, destination)
    return CopyPlan(
        sources=tuple(sources),
        destination=destination,
        options=options,
        selection=_build_selection(options, select, filter_tags, is_one_platform=is_one_platform),
        target=target,
        rename=_build_rename(destination.name, destination.kind) if destination.name and not is_remote else None,
        # A remote ocistream gets the option as it is.
        mount_from=()
        if is_remote
        else parse_mount_sources(options.mount_from, destination.reference.registry if destination.reference else None),
        recompression=None if is_remote else _choose_recompression(options, destination),
        signers=_load_signers(options),
        is_remote=is_remote,
    )


def plan_copy_to_prefix(sources: Sequence[Location], prefix: str, options: CopyOptions) -> CopyPlan:
    """Plan a copy of images under their own repositories and tags to `HOST[/PREFIX]`, as `push --to`.

    Raises:
        InvalidNameError: the prefix, a platform or a repository is malformed.
        UsageError: options contradict each other.
    """
    if any(location.kind == "docker" for location in sources):
        msg = "--to works only with archives and layouts"
        raise UsageError(msg, hint="copy images of registries one by one")
    target = _build_prefix_target(prefix)
    paths = ["FILE" if location.is_stream else printable(location.text, 1024) for location in sources]
    inputs = " ".join(f"-i {shlex.quote(path)}" for path in paths)
    command = f"ocistream push --image NAME {inputs} {printable(prefix).rstrip('/')}/REPOSITORY:TAG"
    select = _require_distinct_targets(target, select_full_names(options.images, command))
    return CopyPlan(
        sources=tuple(sources),
        destination=Location("docker", prefix),
        options=options,
        selection=_build_selection(options, select),
        target=target,
        mount_from=parse_mount_sources(options.mount_from, parse_registry(prefix.partition("/")[0])),
        recompression=_parse_recompression(options, options.compress),
        signers=_load_signers(options),
    )


def _load_signers(options: CopyOptions) -> dict[Signer, str]:
    """Read the files of signers before a location is opened."""
    signers = options.list_signers()
    if not signers:
        return {}
    # Imported here, because few copies check signatures.
    from ocistream.signatures.verifier_process import load_signers

    return load_signers(signers)


def _build_selection(
    options: CopyOptions,
    select: ImageSelector,
    filter_tags: Callable[[Sequence[str]], Sequence[str]] | None = None,
    *,
    is_one_platform: bool = False,
) -> Selection:
    return Selection(
        select,
        parse_platform_choice(options.platforms, default_platform() if is_one_platform else None),
        referrers="skip" if options.no_referrers else "copy",
        with_signatures=bool(options.list_signers()),
        tags=filter_tags,
    )


def _check_each_push(
    select: ImageSelector, target: Callable[[Root], Reference], check_push: Callable[[Reference], None]
) -> ImageSelector:
    """Return `select` with a check that the configuration allows the push of each selected image."""

    def select_and_check(roots: Sequence[Root], where: str) -> Sequence[Root]:
        selected = select(roots, where)
        for root in selected:
            check_push(target(root))
        return selected

    return select_and_check


def _check_one_image(sources: Sequence[Location], destination: Location, options: CopyOptions) -> None:
    """Raise UsageError if several images would get one name."""
    count = max(len(options.images), sum(location.kind == "docker" for location in sources))
    if count > 1:
        name = destination.name or destination.text
        msg = f"{count} images cannot all have the name {printable(name)!r}"
        raise UsageError(msg, hint="copy them one by one, or to a destination without a name")


def _check_repositories(sources: Sequence[Location], destination: Location, options: CopyOptions) -> None:
    """Raise UsageError if a location of a copy of many images names a single image."""
    if len(sources) > 1 or options.images:
        msg = "--all-tags and --tags need one source without selected images"
        raise UsageError(msg, hint="copy the sources one by one")
    for location in (*sources, destination):
        if location.name is not None or (location.reference is not None and not location.is_repository):
            option = "--all-tags" if options.all_tags else "--tags"
            msg = f"{printable(location.text)} names one image, but {option} copies several"
            raise UsageError(
                msg, hint=f"to copy several images, write {printable(location.text_without_image)}; or omit {option}"
            )


def _untagged_hint(source: Location, destination: Location) -> str:
    """Return how to copy images that have no tag."""
    if destination.reference is None:
        return "omit --all-tags to copy every image, also those without a tag"
    kind = "oci" if is_directory(source) else "oci-archive"
    text = printable(source.text if source.kind != "path" else f"{kind}:{source.text}")
    return f"copy them one by one, by digest: `ocistream copy {text}:DIGEST {printable(destination.text)}:TAG`"


def _check_split(options: CopyOptions, location: Location) -> None:
    """Raise UsageError if the archive cannot be cut into volumes, or its name has a place for a volume's number."""
    name = location.path.name if location.path is not None and not location.is_stream else ""
    if not options.split:
        if not name or is_layout_destination(location):
            return
        from ocistream.oci.volumes import is_template

        if is_template(name):
            msg = f"{printable(location.text)} has a %d for a volume number, but --split is missing"
            raise UsageError(msg, hint="add --split SIZE, or choose another name")
        return
    if location.is_stream or not name or is_layout_destination(location) or location.kind == "docker-archive":
        kinds = {"docker": "an image in a registry", "docker-archive": "a docker-archive"}
        kind = kinds.get(location.kind, "a layout directory")
        where = "stdout" if location.text == "-" else printable(location.text)
        what = "one stream" if location.is_stream else kind
        msg = f"--split writes the volumes of an OCI archive, but {where} is {what}"
        raise UsageError(msg, hint=_SPLIT_HINT)
    if options.compress is not None:
        msg = "--split does not work with --compress: the volumes depend on the sizes of all blobs"
        raise UsageError(msg, hint="omit one of them")


def _choose_recompression(options: CopyOptions, destination: Location) -> RecompressionSettings | None:
    """Return how to recompress layers, or None; the layers of a docker-archive are always uncompressed."""
    if destination.kind != "docker-archive":
        return _parse_recompression(options, options.compress)
    if options.compress not in {None, "none"}:
        msg = "layers of a docker-archive cannot be compressed"
        raise UsageError(msg, hint="omit --compress, or write an oci-archive: `docker load` reads it too")
    return _parse_recompression(options, "none")


def _parse_recompression(options: CopyOptions, text: str | None) -> RecompressionSettings | None:
    if text is None:
        return None
    from ocistream.transfer.recompress import parse_recompression

    return parse_recompression(text, options.max_ratio)


def parse_mount_sources(texts: Sequence[str], registry: str | None) -> tuple[str, ...]:
    """Return the repositories of --mount-from, each `REPO` or `HOST/REPO` in `registry`.

    `registry` is the destination's registry; None if the destination is not a registry.
    """
    if texts and registry is None:
        msg = "--mount-from needs a registry as the destination"
        raise UsageError(msg, hint="omit --mount-from: blobs are mounted only within a registry")
    return tuple(dict.fromkeys(_parse_mount_source(text, registry or "") for text in texts))


def _parse_mount_source(text: str, registry: str) -> str:
    first, slash, rest = text.partition("/")
    if slash and first and (first == registry or {".", ":"} & set(first) or first == "localhost"):
        # As in an image name: a first part that looks like a host is a host.
        if parse_registry(first) != registry:
            msg = f"--mount-from {printable(text)} is not in {registry}: blobs are mounted within one registry"
            raise UsageError(msg, hint=f"if the name only looks like a host, write {registry}/{printable(text)}")
        text = rest
    if not is_repository(text):
        msg = f"--mount-from {printable(text)!r} is not a repository"
        raise InvalidNameError(msg, hint="write REPO or HOST/REPO, without a tag")
    return text


def _build_rename(name: str, kind: str) -> Callable[[Graph], Graph]:
    """Return the function that gives the graph's only root its name at a destination of this kind.

    The caller has checked that there is one root. The function raises IntegrityError if the name has the digest of
    another image.
    """
    if not is_printable_name(name):
        msg = f"malformed name {printable(name)!r}"
        raise InvalidNameError(msg, hint="write it without spaces, such as app:1")
    _, at, digest = name.rpartition("@")
    if at and digest.partition(":")[0] in DIGEST_HEX_LENGTHS:
        parse_digest(digest)
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


def _require_distinct_targets(target: Callable[[Root], Reference], select: ImageSelector) -> ImageSelector:
    """Return `select` with a check that no two images get the same target: the second would replace the first.

    The selection raises UsageError if two do.
    """

    def select_and_check(roots: Sequence[Root], where: str) -> Sequence[Root]:
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

    return select_and_check


def _build_tag_target(repository: Reference) -> Callable[[Root], Reference]:
    """Return the function that names images within one repository: each keeps its tag."""

    def target(root: Root) -> Reference:
        return Reference(repository.registry, repository.repository, tag_of(root.name))

    return target


def _build_prefix_target(prefix: str) -> Callable[[Root], Reference]:
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
