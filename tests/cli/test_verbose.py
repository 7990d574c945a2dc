"""Messages about choices, skips and replacements: with -v, or always if a user would not expect them."""

from __future__ import annotations

import ssl
from pathlib import Path

from tests.archives import items_of, tar_of
from tests.certificates import make_certificate
from tests.cli import assertions
from tests.cli.fixture_types import Start
from tests.cli.user import User
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import Layout, small_image, tar_layer, two_platforms
from tests.peers import need
from tests.registry_http import seed
from tests.runner import Argument, Result, command, ocistream, run
from tests.signed_image import signed


def told(result: Result) -> list[str]:
    assertions.success(result)
    return [line.removeprefix("ocistream: ") for line in result.err.splitlines()]


def test_referrers_that_only_a_mirror_was_asked_for(start: Start, layout: Layout, tmp_path: Path) -> None:
    registry, mirror = start(), start()
    found = signed(layout)
    found.seed(layout, registry.host, "app", "1")
    seed(layout, found.image, mirror.host, "hub/app", "1")
    seed(layout, found.signature, mirror.host, "hub/app")
    user = User(tmp_path / "home")
    user.configure(f'[registry."{registry.host}"]', f'mirrors = ["{mirror.host}/hub"]')
    argv: list[Argument] = ["pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar"]
    lists = f"the mirror {mirror.host}/hub/app lists the referrers of {registry.host}/app"
    said = f"{lists}; other sources were not asked for more"
    assert said in told(user.run(*argv, "-v"))
    assert said not in told(user.run(*argv))


def test_plain_http_that_registries_conf_allows(served: FaultyRegistry, layout: Layout, tmp_path: Path) -> None:
    seed(layout, small_image(layout), served.host, "app", "1")
    user = User(tmp_path / "home")
    user.write(".config/containers/registries.conf", "[[registry]]", f'location = "{served.host}"', "insecure = true")
    said = f"{served.host} does not support TLS: using plain HTTP, as registries.conf allows (insecure = true)"
    assert said in told(user.run("inspect", f"{served.host}/app:1", "-v"))
    # On loopback HTTP is the default.
    assert said not in told(ocistream("inspect", f"{served.host}/app:1", "-v"))


def test_mounts_that_are_refused_or_unsuccessful(start: Start, layout: Layout) -> None:
    layout.image([tar_layer({"number": str(number).encode()}) for number in range(8)], name="app")
    registry = start(Fault(refusal(403), "POST", "from=secret", times=None))
    for source, said in (
        ("secret", f"the registry refuses to mount blobs from {registry.host}/secret: uploading them"),
        ("empty", f"no longer trying to mount from {registry.host}/empty: it had none of the last 8"),
    ):
        for path in (registry.layout.path / "blobs").glob("*/*"):
            path.unlink()
        argv: list[Argument] = [
            "push",
            "-i",
            layout.path,
            f"{registry.host}/app:{source}",
            "--mount-from",
            source,
            "--jobs=1",
        ]
        assert said in told(ocistream(*argv, "-v"))


def test_an_image_under_the_tag_of_a_referrers_list(start: Start, layout: Layout, tmp_path: Path) -> None:
    registry = start(Fault(refusal(404), "GET", "/referrers/", times=None))
    image, other = small_image(layout), layout.image([b"other"])
    seed(layout, image, registry.host, "app", "1")
    tag = image["digest"].replace(":", "-")
    seed(layout, other, registry.host, "app", tag)
    assert (
        f"{registry.host}/app:{tag} must be the list of referrers of {image['digest']}, but is something else: "
        "it is not used"
    ) in told(ocistream("pull", f"{registry.host}/app:1", "-o", tmp_path / "app.tar"))


def test_other_ca_certificates_than_those_of_openssl(start: Start, tmp_path: Path) -> None:
    need("unshare", "mount", root=True)
    authority = make_certificate(tmp_path / "authority", "an authority")
    registry = start(tls=authority.issue(tmp_path / "server"))
    empty = tmp_path / "empty"
    empty.mkdir()
    places = ssl.get_default_verify_paths()
    hidden = [str(Path(places.openssl_cafile).parent)]
    argv = [*command(), "inspect", f"{registry.host}/app:1", f"--ca-cert={authority.file}", "-v"]
    env = {"SSL_CERT_FILE": None, "SSL_CERT_DIR": None}

    def said(*folders: str) -> str:
        hide = "".join(f"mount --bind {empty} {folder}; " for folder in folders if Path(folder).is_dir())
        result = run(["unshare", "--mount", "sh", "-c", f'{hide}exec "$@"', "sh", *argv], env=env)
        assert result.code == 4, result.err
        return result.err

    assert "CA certificates" not in said()
    assert "no CA certificates where OpenSSL searches: using those in /etc/ssl/certs/ca-certificates.crt" in said(
        *hidden
    )
    # certifi is installed with ocistream, so its certificates exist.
    assert "the system has no CA certificates: using those of the Python package certifi" in said(
        *hidden, "/etc/ssl", "/etc/pki"
    )


def test_one_platform_in_manifest_json(layout: Layout, tmp_path: Path) -> None:
    two_platforms(layout, name="app:1")
    said = (
        "manifest.json lists linux/amd64, one of 2 platforms of app:1: `docker load` before version 25 takes that one"
    )
    assert said in told(ocistream("copy", f"oci:{layout.path}", tmp_path / "app.tar", "-v"))
    assert said not in told(ocistream("copy", f"oci:{layout.path}", tmp_path / "app.tar"))


def test_one_image_without_a_platform_in_manifest_json(layout: Layout, tmp_path: Path) -> None:
    images = [small_image(layout, annotations={"number": f"{number}"}) for number in range(2)]
    layout.index([{key: image[key] for key in ("mediaType", "digest", "size")} for image in images], name="app:1")
    said = "manifest.json lists an image without a platform, one of 2 platforms of app:1"
    assert said in ocistream("copy", f"oci:{layout.path}", tmp_path / "app.tar", "-v").err


def test_fewer_clients_of_serve_than_usual(layout: Layout, tmp_path: Path) -> None:
    # Without an image the server exits at once.
    (tmp_path / "none.tar").write_bytes(tar_of(items_of(layout)))
    argv = [*command(), "serve", str(tmp_path / "none.tar"), "--listen=127.0.0.1:0"]
    result = run(["sh", "-c", 'ulimit -n 464; exec "$@"', "sh", *argv])
    assert result.code == 4
    said = "at most 100 clients connections instead of 500: the limit of open files is too low (`ulimit -n`)"
    assert f"ocistream: {said}\n" in result.err


def test_no_home_for_upload_records(served: FaultyRegistry, layout: Layout) -> None:
    small_image(layout, name="app")
    env: dict[str, str | None] = {"HOME": None, "XDG_STATE_HOME": None}
    argv: list[Argument] = ["push", "-i", layout.path, f"{served.host}/app:1", "-v"]
    said = "neither HOME nor XDG_STATE_HOME is set: interrupted uploads cannot be resumed"
    assert any(line.startswith(said) for line in told(ocistream(*argv, env=env)))
    assert not any(line.startswith(said) for line in told(ocistream(*argv)))
