"""`Client`, and functions such as `copy` and `verify`, each of which uses a client of its own."""

from __future__ import annotations

import functools
import os
import threading
from contextlib import closing
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from ocistream import limits
from ocistream.api.arguments import (
    LocationArgument,
    check_call,
    check_credentials,
    check_environment,
    check_switches,
    check_texts,
    check_type,
    list_image_names,
    list_locations,
    list_paths,
    list_platforms,
    list_texts,
    optional_path,
)
from ocistream.api.copy_plan import plan_copy, plan_copy_to_prefix
from ocistream.api.options import (
    RATIO_RANGE,
    ClientOptions,
    CopyOptions,
    RegistryOptions,
    parse_client_options,
    parse_split,
)
from ocistream.api.registries import RegistryAccess, find_home, load_configuration
from ocistream.api.results import CopyResult, ImageResult, build_result
from ocistream.api.settings import RegistrySettings, TlsFiles, build_host_rules
from ocistream.errors import InvalidNameError, UsageError
from ocistream.oci.platforms import parse_platform_choice
from ocistream.oci.reference import Reference, check_reference, parse_reference
from ocistream.streams.synchronization import LinkedEvent, once
from ocistream.streams.workers import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from ocistream.api.arguments import LocationLike
    from ocistream.api.verification import VerifyResult
    from ocistream.auth.docker_config import Credential
    from ocistream.http.client import HttpClient
    from ocistream.locations import Location, OpenContext
    from ocistream.oci.descriptor import Platform
    from ocistream.transfer.interfaces import Observer
    from ocistream.transfer.report import Report

_P = ParamSpec("_P")
_R = TypeVar("_R")
Credentials: TypeAlias = "Credential | Mapping[str, Credential] | Callable[[str, str], Credential | None]"
#: One file or several.
_FilePaths: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"


class Client:
    """Copies, verifies and inspects images. Its calls share settings, connections and tokens, from any thread.

    Options have the names, meanings and defaults of the command line. Sizes and rates are numbers of bytes, or text
    such as "4GiB"; times are in seconds.

    `credentials` is one `Credential` for every registry that a call names, a mapping of hosts to credentials, or a
    function of registry and repository, which returns a credential, or None for anonymous access. Hosts without a
    credential in a mapping, and all hosts without `credentials`, use the variables and files of the command line.
    `registries` has the settings of single hosts, which replace `plain_http`, `insecure` and `tls`. `config` is a
    configuration file in place of ~/.config/ocistream/config.toml. `environment` replaces the variables of the process.

    The client is a context manager that closes the connections at the end.
    """

    def __init__(  # noqa: PLR0913 - options, given by name
        self,
        *,
        credentials: Credentials | None = None,
        registries: Mapping[str, RegistrySettings] | None = None,
        plain_http: bool = False,
        insecure: bool = False,
        tls: TlsFiles | None = None,
        retries: int = ClientOptions.retries,
        connect_timeout: float = ClientOptions.connect_timeout,
        stall_timeout: float = ClientOptions.stall_timeout,
        limit_rate: str | float | None = None,
        max_requests_per_second: float | None = None,
        mirrors: bool = True,
        upload: str = "auto",
        jobs: int = ClientOptions.jobs,
        memory: str | int = ClientOptions.memory,
        cache: str | os.PathLike[str] | None = None,
        config: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Check the settings; read no file, and send no request.

        Raises:
            UsageError: a setting is malformed or out of range.
        """
        check_switches(plain_http=plain_http, insecure=insecure, mirrors=mirrors)
        check_texts(upload=upload)
        check_type("tls", tls, (TlsFiles, type(None)), "TlsFiles")
        file = optional_path("config", config)
        self._options = parse_client_options(
            jobs=jobs,
            memory=memory,
            cache=optional_path("cache", cache),
            retries=retries,
            connect_timeout=connect_timeout,
            stall_timeout=stall_timeout,
            limit_rate=limit_rate,
            max_requests_per_second=max_requests_per_second,
            upload=upload,
        )
        env = os.environ if environment is None else environment
        check_environment(env)
        self._closed = threading.Event()
        self._access = RegistryAccess(
            self._options,
            env,
            functools.partial(load_configuration, None if file is None else Path(file), env),
            use_mirrors=mirrors,
            host_rules=build_host_rules({} if registries is None else registries),
        )
        self._registry_options = RegistryOptions(plain_http=plain_http, insecure=insecure, **asdict(tls or TlsFiles()))
        self._registry_options.load_tls_settings()
        check_credentials(credentials)
        self._credentials = credentials
        self._env = env
        #: Registries that calls named, as keys; a mirror from the configuration is none of them. (A dict is safe for
        #: several threads.)
        self._named_registries: dict[str, None] = {}
        self._http_client = once(self._create_http_client)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """Close all connections. Calls in other threads end with a CancelledError."""
        self._closed.set()
        self._access.close()

    def copy(  # noqa: PLR0913 - all but two are options, given by name
        self,
        source: LocationLike | Sequence[LocationLike],
        destination: LocationLike | None = None,
        *,
        to: str | None = None,
        name: str | None = None,
        format: str | None = None,  # noqa: A002 - the option's name
        platforms: str | Platform | Iterable[str | Platform] = (),
        images: str | Iterable[str] = (),
        all_tags: bool = False,
        tags: str | Iterable[str] = (),
        referrers: bool = True,
        require_signature: _FilePaths = (),
        certificate_identity: str | None = None,
        certificate_oidc_issuer: str | None = None,
        trusted_root: str | os.PathLike[str] | None = None,
        compress: str | None = None,
        max_ratio: int = limits.MAX_RATIO,
        split: str | int | None = None,
        mount_from: str | Iterable[str] = (),
        dry_run: bool = False,
        observer: Observer | None = None,
        cancelled: threading.Event | None = None,
    ) -> CopyResult:
        """Copy images from one or several locations to another. Nothing becomes visible before all blobs are verified.

        A location is text as on the command line, a path, a `Reference`, or a binary file object, which is read or
        written once and stays open. Several sources are images in registries, or archives and layouts that
        belong together. `to`, HOST[/PREFIX], is used instead of a destination: each image is pushed under its own name,
        such as nginx:1 to HOST/PREFIX/nginx:1.

        `name` is the image's name in a destination that is a path or a file object. `format` is what to write there:
        "oci" (a layout directory), "oci-archive" or "docker-archive". `platforms` is one platform, several, or "all".
        The default is all; for a docker-archive, it is linux on this machine's architecture. `images` are the names or
        digests of the images of an archive or layout to copy. With `dry_run`, nothing is changed, and the result is
        what would be copied. The other options are those of `ocistream copy`.

        The observer is called from several threads, never from the caller's. To stop the copy, set `cancelled` in
        another thread.

        Raises:
            CancelledError: `cancelled` was set, or the client was closed.
            OcistreamError: the first failure; nothing new is visible at the destination.
        """
        check_texts(
            to=to,
            name=name,
            format=format,
            certificate_identity=certificate_identity,
            certificate_oidc_issuer=certificate_oidc_issuer,
            compress=compress,
        )
        check_switches(all_tags=all_tags, referrers=referrers, dry_run=dry_run)
        RATIO_RANGE.check("max-ratio", max_ratio)
        options = CopyOptions(
            platforms=list_platforms("platforms", platforms),
            images=list_texts("images", images),
            all_tags=all_tags,
            tags=list_texts("tags", tags),
            no_referrers=not referrers,
            require_signature=list_paths("require_signature", require_signature),
            certificate_identity=certificate_identity,
            certificate_oidc_issuer=certificate_oidc_issuer,
            trusted_root=optional_path("trusted_root", trusted_root),
            compress=compress,
            max_ratio=max_ratio,
            split=0 if split is None else parse_split(split),
            mount_from=list_texts("mount_from", mount_from),
        )
        event = self._begin(cancelled, observer)
        sources = list_locations(source)
        locations = [argument.location for argument in sources]
        if (destination is None) == (to is None):
            msg = "use either a destination, or `to` for images that keep their names"
            raise UsageError(msg)
        if to is not None and (name is not None or format is not None):
            msg = "`name` and `format` are for a path, and `to` is a registry"
            raise UsageError(msg, hint="omit them")
        targets = [] if destination is None else [LocationArgument(destination)]
        for target in targets:
            target.set_name_and_format(name, format)
        plan = (
            plan_copy(locations, targets[0].location, options)
            if targets
            else plan_copy_to_prefix(locations, to or "", options)
        ).with_policy(self._access.load_trust_policy())
        destination_context = self._build_open_context(targets, event, plan.destination_registries)
        source_context = self._build_open_context(sources, event)
        self._check_environment_credential(plan.source_registries | plan.destination_registries)
        opened_source, opened_destination = plan.open(
            replace(source_context, is_dry_run=dry_run, max_ratio=max_ratio),
            replace(destination_context, is_dry_run=dry_run),
        )

        def run() -> Report:
            with closing(opened_source), closing(opened_destination):
                return plan.run(
                    opened_source,
                    opened_destination,
                    observer,
                    jobs=self._access.limit_jobs(plan.source_registries | plan.destination_registries),
                    prefetch_memory=self._options.prefetch_memory,
                    cancelled=event,
                    dry_run=dry_run,
                )

        return build_result(run_in_thread(run, event), plan)

    def verify(  # noqa: PLR0913 - all but one are options, given by name
        self,
        source: LocationLike | Sequence[LocationLike],
        *,
        deep: bool = False,
        keys: _FilePaths = (),
        certificate_identity: str | None = None,
        certificate_oidc_issuer: str | None = None,
        trusted_root: str | os.PathLike[str] | None = None,
        max_ratio: int = limits.MAX_RATIO,
        observer: Observer | None = None,
        cancelled: threading.Event | None = None,
    ) -> VerifyResult:
        """Verify archives or layouts that belong together, or images in registries. A text argument is a path.

        An image in a registry is a `Reference`, or text that begins with docker://. Every blob is hashed, and with
        `deep` layers are decompressed and checked against their configs. With `keys` (files of public keys), or
        `certificate_identity` with its issuer and trusted root, each image must be signed by one of these signers. The
        result has wrong, missing and malformed content; its `raise_for_findings()` raises the error of the command.

        Raises:
            CancelledError: `cancelled` was set, or the client was closed.
            OcistreamError: reading cannot continue.
        """
        from ocistream.api.verification import open_locations, verify_source
        from ocistream.signatures.signers import list_signers

        event = self._begin(cancelled, observer)
        check_texts(certificate_identity=certificate_identity, certificate_oidc_issuer=certificate_oidc_issuer)
        check_switches(deep=deep)
        RATIO_RANGE.check("max-ratio", max_ratio)
        root = optional_path("trusted_root", trusted_root)
        signers = list_signers(list_paths("keys", keys), certificate_identity, certificate_oidc_issuer, root)
        sources = list_locations(source, bare_is_path=True)
        locations = [argument.location for argument in sources]
        context = replace(self._build_open_context(sources, event), max_ratio=max_ratio)

        def run() -> VerifyResult:
            with closing(open_locations(locations, context)) as opened:
                return verify_source(
                    opened,
                    [location.text for location in locations],
                    deep=deep,
                    max_ratio=max_ratio,
                    signers=signers,
                    observer=observer,
                    cancelled=event,
                )

        return run_in_thread(run, event)

    def inspect(
        self,
        source: LocationLike,
        *,
        platforms: str | Platform | Iterable[str | Platform] = (),
        max_ratio: int = limits.MAX_RATIO,
        cancelled: threading.Event | None = None,
    ) -> dict[str, Any]:
        """Return what `ocistream inspect --json` prints: images with platforms and layers, or a repository's tags.

        No layer is fetched from a registry.

        Raises:
            CancelledError: `cancelled` was set, or the client was closed.
            OcistreamError: the location cannot be read.
        """
        from ocistream.api.inspection import inspect_location, to_plain_values

        location, context = self._begin_reading(source, max_ratio, cancelled)
        choice = parse_platform_choice(list_platforms("platforms", platforms))
        return run_in_thread(
            lambda: to_plain_values(inspect_location(location, context, choice)),
            context.cancelled,
        )

    def digest(
        self,
        source: LocationLike,
        *,
        platform: str | Platform | None = None,
        max_ratio: int = limits.MAX_RATIO,
        cancelled: threading.Event | None = None,
    ) -> str:
        """Return the digest of the only image of a location, or of the manifest for a platform of its index.

        A name without tag means the tag latest. A registry is asked by HEAD if that is enough.

        Raises:
            NotFoundError: the image or the platform does not exist.
            UnsupportedError: the image is in a docker-archive, which has no digests.
            CancelledError: `cancelled` was set, or the client was closed.
            OcistreamError: the location cannot be read, or has several images.
        """
        from ocistream.api.inspection import find_digest

        location, context = self._begin_reading(source, max_ratio, cancelled)
        choice = parse_platform_choice(() if platform is None else list_platforms("platform", platform))
        return run_in_thread(lambda: find_digest(location, context, choice), context.cancelled)

    def tags(
        self,
        source: LocationLike,
        *,
        max_ratio: int = limits.MAX_RATIO,
        cancelled: threading.Event | None = None,
    ) -> tuple[str, ...]:
        """Return the tags of a repository in a registry, or the names of the images of an archive or layout.

        Raises:
            NotFoundError: the repository does not exist.
            UnsupportedError: the registry has further tags that cannot be listed.
            CancelledError: `cancelled` was set, or the client was closed.
            OcistreamError: the location cannot be read, or is one image.
        """
        from ocistream.api.inspection import list_names

        location, context = self._begin_reading(source, max_ratio, cancelled)
        listed = run_in_thread(lambda: list_names(location, context), context.cancelled)
        if listed.incomplete_reason:
            raise listed.incomplete_error()
        return listed.names

    def delete(
        self,
        images: str | Reference | Iterable[str | Reference],
        *,
        by_digest: bool = False,
        cancelled: threading.Event | None = None,
    ) -> tuple[ImageResult, ...]:
        """Delete images from registries: HOST/REPO:TAG deletes the tag, HOST/REPO@DIGEST a manifest and all its tags.

        If one image does not exist, none is deleted. With `by_digest`, if a registry cannot delete a tag, its manifest
        is deleted, and so are all tags of that manifest.

        Raises:
            NotFoundError: an image does not exist; nothing was deleted.
            IntegrityError: a tag does not have the digest that was given with it; nothing was deleted.
            UnsupportedError: a registry does not delete.
            AuthenticationError: a registry denies the deletion.
            CancelledError: `cancelled` was set, or the client was closed.
            OcistreamError: the first failure; images before it are deleted.
        """
        from ocistream.registry.deletion import delete_images

        event = self._begin(cancelled)
        check_switches(by_digest=by_digest)
        references = [_parse_image_to_delete(image) for image in list_image_names(images)]
        registries = {reference.registry for reference in references}
        context = self._build_open_context([], event, registries)
        self._check_environment_credential(registries)
        deletions = delete_images(context.registries(), references, by_digest=by_digest)
        deleted = run_in_thread(lambda: list(deletions), event)
        return tuple(ImageResult(image.reference.name, image.digest) for image in deleted)

    def _begin(self, cancelled: threading.Event | None, observer: Observer | None = None) -> threading.Event:
        """Check what every call has, and return the event that cancels the call."""
        check_call(cancelled, observer)
        if self._closed.is_set():
            msg = "the client is closed"
            raise UsageError(msg)
        return LinkedEvent([self._closed, cancelled] if cancelled is not None else [self._closed])

    def _begin_reading(
        self, source: LocationLike, max_ratio: int, cancelled: threading.Event | None
    ) -> tuple[Location, OpenContext]:
        """Return the location of a call that reads only one, and its context."""
        event = self._begin(cancelled)
        RATIO_RANGE.check("max-ratio", max_ratio)
        argument = LocationArgument(source)
        return argument.location, replace(self._build_open_context([argument], event), max_ratio=max_ratio)

    def _build_open_context(
        self, arguments: Sequence[LocationArgument], cancelled: threading.Event, registries: Collection[str] = ()
    ) -> OpenContext:
        """Return the context of a call that names these locations, and further `registries`."""
        named = set(registries).union(*(argument.location.registries for argument in arguments))
        self._named_registries.update(dict.fromkeys(named))
        context = self._access.build_open_context(lambda: self._http_client().for_transfer(cancelled), cancelled)
        for argument in arguments:
            context = argument.bind(context)
        return context

    def _check_environment_credential(self, registries: Collection[str]) -> None:
        """Raise UsageError if the user name of the environment could be for several registries, as the command does."""
        if self._credentials is None and len(registries) > 1 and self._env.get("OCISTREAM_USERNAME"):
            msg = f"OCISTREAM_USERNAME cannot be used for {' and '.join(sorted(registries))}"
            raise UsageError(msg, hint="run `ocistream login` for each registry, or pass credentials by host")

    def _create_http_client(self) -> HttpClient:
        return self._access.create_client(self._registry_options, self._find_credential, cancelled=self._closed)

    def _find_credential(self, registry: str, repository: str) -> Credential | None:
        from ocistream.auth.credentials import Keychain
        from ocistream.auth.docker_config import Credential, normalize_host

        given = self._credentials
        if callable(given):
            found = given(registry, repository)
            check_type("credentials", found, (Credential, type(None)), "a function that returns a Credential or None")
            return found
        if given is not None and not isinstance(given, Credential):
            host = normalize_host(registry)
            for named, credential in given.items():
                if normalize_host(named) == host:
                    return credential
        keychain = Keychain(
            self._env,
            home=find_home(self._env),
            given=given if isinstance(given, Credential) else None,
            named_registries=frozenset(self._named_registries),
            configured=self._access.rules().credentials,
        )
        return keychain.find(registry, repository)


def _with_new_client(method: Callable[Concatenate[Client, _P], _R]) -> Callable[_P, _R]:
    """Return the method as a function that opens a client, and closes it at the end."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with Client() as client:
            return method(client, *args, **kwargs)

    own = signature(method)
    # `inspect` and `help` read this attribute; the type of functions does not declare it.
    call.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[parameter for name, parameter in own.parameters.items() if name != "self"]
    )
    return call


copy = _with_new_client(Client.copy)
verify = _with_new_client(Client.verify)
inspect = _with_new_client(Client.inspect)
digest = _with_new_client(Client.digest)
tags = _with_new_client(Client.tags)
delete = _with_new_client(Client.delete)


def _parse_image_to_delete(image: str | Reference) -> Reference:
    reference = parse_reference(image, default_tag=False) if isinstance(image, str) else check_reference(image)
    if reference.tag is None and reference.digest is None:
        msg = f"{reference} is a repository, not an image"
        raise InvalidNameError(msg, hint="write HOST/REPO:TAG or HOST/REPO@DIGEST")
    return reference
