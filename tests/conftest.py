"""Fixtures for all tests.

They do not touch the user's HOME. Each peer has its files in a directory of the test run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import ocistream
from tests.certificates import Certificate, make_certificate
from tests.debian_image import DebianImage, debian_rootfs_image
from tests.faulty_registry import FaultyRegistry
from tests.images import Layout
from tests.peers import Dockerd, DockerRegistry, Nginx, Tools, docker_registry, dockerd, isolated_tools, nginx
from tests.token_server import TokenServer, token_server

# Before any suite imports the module.
pytest.register_assert_rewrite("tests.cli.assertions")

#: Variables with which a program could find the user's credentials, daemon or configuration.
_LEADING_OUT = (
    "BUILDAH_ISOLATION",
    "CONTAINERS_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINER_HOST",
    "DOCKER_AUTH_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_HOST",
    "DOCKER_TLS_VERIFY",
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "NETRC",
    "REGISTRY_AUTH_FILE",
    "SOURCE_DATE_EPOCH",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
)
#: All other variables with these prefixes set options.
_OF_TESTS = ("OCISTREAM_FUZZ_SEED", "OCISTREAM_TEST_MACHINE")
_UNIT_TESTS: Final = Path(__file__).with_name("unit")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option that selects the tests for a second Python and for coverage."""
    text = "no property tests; of a test with parameters only the first, except for unit tests"
    parser.addoption("--first-parameters", action="store_true", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select tests by `--first-parameters`."""
    if config.getoption("--first-parameters"):
        repeated = {item for item in items if _is_repetition(item)}
        items[:] = [item for item in items if item not in repeated]
        config.hook.pytest_deselected(items=list(repeated))


class _SysForThreads:
    """`sys` as `threading` uses it. Python 3.11 refuses a trace function while another thread installs one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    @staticmethod
    def settrace(function: Any) -> None:
        """Install coverage's trace function, after the other thread's."""
        for _ in range(1000):
            with contextlib.suppress(RuntimeError):
                sys.settrace(function)
                return
            time.sleep(0.001)


def pytest_configure() -> None:
    """Let coverage, if it runs, count branches of threads that start at the same time."""
    if "coverage" in sys.modules:
        threading._sys = _SysForThreads()  # type: ignore[attr-defined] # noqa: SLF001 - a defect of Python 3.11


def _is_repetition(item: Any) -> bool:
    """Return whether a second Python version need not run a test: it differs from another test only in parameters.

    Tests of compression take long, and their other parameters are levels and libraries.
    """
    if _is_property_test(item):
        return True
    runs_with_all = item.path.is_relative_to(_UNIT_TESTS) and item.path.stem != "test_compression"
    return not (runs_with_all or _has_first_parameters(item))


def _is_property_test(item: Any) -> bool:
    return bool(getattr(item.obj, "is_hypothesis_test", False))


def _has_first_parameters(item: Any) -> bool:
    return not (hasattr(item, "callspec") and any(item.callspec.indices.values()))


def pytest_report_header() -> str:
    """Print what is tested: the installed wheel, or a source tree."""
    return f"ocistream: {ocistream.__file__}"


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Set a HOME for the run, and remove variables that refer to other places."""
    home = tmp_path_factory.mktemp("home")
    runtime = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*_LEADING_OUT, *(name for name in os.environ if name.startswith("OCISTREAM_"))):
            if name in _OF_TESTS:
                continue
            patch.delenv(name, raising=False)
        # As for a user; containers of Python often set it.
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        # A proxy may be needed for package archives, but the peers are on this machine.
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        yield home


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Return a self-signed certificate for 127.0.0.1, for TLS and for signing tokens."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return an empty layout for new images."""
    return Layout(tmp_path / "made")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., FaultyRegistry]]:
    """Return a function that starts a registry in this process; its arguments are those of `FaultyRegistry`."""
    with contextlib.ExitStack() as stack:
        started: list[FaultyRegistry] = []

        def start_one(*faults: Any, **options: Any) -> FaultyRegistry:
            started.append(FaultyRegistry(tmp_path / f"served-{len(started)}", *faults, **options))
            return stack.enter_context(started[-1])

        yield start_one


@pytest.fixture
def served(start: Callable[..., FaultyRegistry]) -> FaultyRegistry:
    """Return an empty registry in this process, without authentication."""
    return start()


@pytest.fixture
def other(start: Callable[..., FaultyRegistry]) -> FaultyRegistry:
    """Return another empty registry in this process."""
    return start()


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[Callable[..., DockerRegistry]]:
    """Return a function that starts a docker-registry; its arguments are those of `docker_registry`."""
    with contextlib.ExitStack() as stack:
        started: list[DockerRegistry] = []

        def start(**options: object) -> DockerRegistry:
            folder = tmp_path / f"registry-{len(started)}"
            started.append(stack.enter_context(docker_registry(folder, **options)))  # type: ignore[arg-type]
            return started[-1]

        yield start


@pytest.fixture
def start_nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    """Return a function that starts an nginx; its arguments are those of `nginx`, without the folder."""
    with contextlib.ExitStack() as stack:
        started: list[Nginx] = []

        def start(server: str, **options: object) -> Nginx:
            folder = tmp_path / f"nginx-{len(started)}"
            started.append(stack.enter_context(nginx(folder, server, **options)))  # type: ignore[arg-type]
            return started[-1]

        yield start


@pytest.fixture
def registry(start_registry: Callable[..., DockerRegistry]) -> DockerRegistry:
    """Return an empty docker-registry without authentication."""
    return start_registry()


@pytest.fixture
def other_registry(start_registry: Callable[..., DockerRegistry]) -> DockerRegistry:
    """Return a second empty docker-registry without authentication."""
    return start_registry()


@pytest.fixture
def start_token_server(certificate: Certificate) -> Iterator[Callable[..., TokenServer]]:
    """Return a function that starts a token server; its arguments are those of `token_server`."""
    with contextlib.ExitStack() as stack:

        def start(**options: object) -> TokenServer:
            return stack.enter_context(token_server(certificate, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture(scope="session")
def docker_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """Return Docker's daemon, one for all tests. Its images stay, so each test uses its own names."""
    with dockerd(tmp_path_factory.mktemp("dockerd")) as daemon:
        yield daemon


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    """Return skopeo, umoci, podman and buildah, with storage for this test only."""
    with isolated_tools(tmp_path / "tools") as isolated:
        yield isolated


@pytest.fixture(scope="session")
def debian_image(pytestconfig: pytest.Config) -> DebianImage:
    """Return the Debian image, which is cached in .cache between runs. Do not change it."""
    return debian_rootfs_image(pytestconfig.rootpath / ".cache" / "tests")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore SIGINT and SIGHUP for child processes: a background shell or nohup ignores them."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)
