"""Fixtures of the quirk tests: registries with quirks, and commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.images import Layout, small_image
from tests.quirks.command_runner import Mover
from tests.quirks.interrupted_pushes import SIZE, Pushes
from tests.quirks.mirrors import Mirrored
from tests.quirks.quirky_registry import QuirkyRegistry, Tap, tapped
from tests.quirks.registry_models import PASSWORD, USER
from tests.quirks.upload_quirks import STORAGE
from tests.registry_http import seed
from tests.runner import Argument


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., QuirkyRegistry]]:
    """Return a function that starts a registry; its arguments are those of `QuirkyRegistry`.

    A registry with blobs or uploads on another host has a second server, whose `Tap` is `memory["tap"]`.
    """
    with contextlib.ExitStack() as stack:
        started: list[QuirkyRegistry] = []

        def start_one(*quirks: Any, **options: Any) -> QuirkyRegistry:
            path = tmp_path / f"served-{len(started)}"
            registry = stack.enter_context(QuirkyRegistry(path, *quirks, **options))
            started.append(registry)
            if any(quirk.elsewhere for quirk in quirks):
                storage = stack.enter_context(QuirkyRegistry(path, STORAGE))
                # Both servers share the uploads.
                storage.uploads = registry.uploads
                tap = stack.enter_context(tapped(storage.host))
                registry.memory |= {"storage": tap.url, "tap": tap}
            return registry

        yield start_one


@pytest.fixture
def mover(tmp_path: Path) -> Callable[..., Mover]:
    """Return a function that creates a `Mover`, which runs commands; its arguments are options of the commands.

    The commands have their own home directory, and use USER and PASSWORD unless `env` says otherwise.
    """
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    user = {"OCISTREAM_USERNAME": USER, "OCISTREAM_PASSWORD": PASSWORD}

    def make(
        *options: Argument, env: Mapping[str, str] | None = None, names: Mapping[str, int | str | None] | None = None
    ) -> Mover:
        return Mover(tmp_path, {**home, **(user if env is None else env)}, options, names or {})

    return make


@pytest.fixture
def pushes(start: Callable[..., QuirkyRegistry], mover: Callable[..., Mover], layout: Layout) -> Callable[..., Pushes]:
    """Return a function that starts a registry and returns pushes of an image with one large layer.

    Its arguments are those of `start` and the size of the layer.
    """

    def make(*quirks: Any, size: int = SIZE, **options: Any) -> Pushes:
        return Pushes(start(*quirks, **options), layout, layout.image([size], name="app"), mover())

    return make


@pytest.fixture
def mirrored(
    start: Callable[..., QuirkyRegistry], mover: Callable[..., Mover], layout: Layout
) -> Callable[..., Mirrored]:
    """Return a function that starts a registry with an image: a small one, or a given one."""

    def make(make_image: Callable[[Layout], dict[str, object]] = small_image) -> Mirrored:
        image = make_image(layout)
        registry = start()
        seed(layout, image, registry.host, "app", "1")
        registry.requests.clear()
        return Mirrored(start, layout, mover(env={}), image, registry)

    return make


@pytest.fixture
def tap() -> Iterator[Callable[[str], Tap]]:
    """Return a function that creates a proxy with a log (a tap) before a server at HOST:PORT."""
    with contextlib.ExitStack() as stack:
        yield lambda target: stack.enter_context(tapped(target))
