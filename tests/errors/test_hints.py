"""Hints for mistakes: further failures, each with its line of what to do."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.archives import small_first, tar_of
from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.errors.common_failures import PUBLIC_KEY, Place
from tests.faulty_auth import Basic
from tests.faulty_registry import Action, Drop, Fault, FaultyRegistry, Flip, Gzip, HangUp, Reply, refusal
from tests.http_doubles import unused_port
from tests.images import OCI_INDEX, Layout, small_image, two_platforms
from tests.raw_server import RawServer
from tests.registry_http import seed
from tests.runner import Argument, ocistream

_DIGEST = "sha256:" + 64 * "a"


def offline() -> dict[str, str]:
    """Return an environment whose proxy does not exist, so that no request leaves this machine."""
    return {"HTTPS_PROXY": f"http://127.0.0.1:{unused_port()}", "OCISTREAM_RETRIES": "0"}


def with_hub(registry: FaultyRegistry, folder: Path) -> Path:
    """Write a configuration that maps Docker Hub to a registry of the test, so that no request goes to Docker Hub."""
    config = folder / "config.toml"
    config.write_text(f'[registry."docker.io"]\nurl = "{registry.url}"\n')
    return config


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("pul app:1", 2, ["No such command 'pul'", "did you mean pull?"]),
        ("pull ''", 2, ["it is empty", "a shell variable empty"]),
        ("pull ./app.tar", 2, ["is a path, not the name of an image", "-o PATH"]),
        ("pull oci:layout:app:1", 2, ["'oci:layout:app:1' is a layout, not the name of an image", "ocistream copy"]),
        ("pull -", 2, ["is a path, not the name of an image", "-o PATH"]),
        ("pull app.tar", 2, ["app.tar", "-o PATH"]),
        ("push app.tar", 2, ["app.tar", "-i app.tar IMAGE"]),
        (
            "pull docker-daemon:app:1",
            8,
            ["the transport docker-daemon is not supported\n  `docker save IMAGE | ocistream push DST`"],
        ),
        ("push ./app.tar", 2, ["is a path, not the name of an image", "`ocistream push -i ./app.tar IMAGE`"]),
        ("push docker-archive:a.tar", 2, ["is an archive, not the name of an image", "-i docker-archive:a.tar"]),
        ("push", 2, ["IMAGE or --to HOST", "HOST/REPOSITORY:TAG"]),
        ("push --to localhost:5000/app:1", 2, ["has a tag or a digest", "push localhost:5000/app:1"]),
        (f"push --to localhost:5000/app@{_DIGEST}", 2, ["has a tag or a digest"]),
        ("push --to http://localhost:5000/p", 2, ["a URL is not a", "without http://: --to localhost:5000/p\n"]),
        ("push --to https://me:pw@host/p", 2, ["'https://...@host/p'", "without https://: --to ...@host/p\n"]),
        ("copy a b c", 2, ["extra argument (c)", "`ocistream copy SRC DST`, with one archive or image as SRC"]),
        ("serve a b", 2, ["extra argument (b)", "`ocistream serve [PATH]`, with one layout directory or arch"]),
        ("sync a b", 2, ["extra argument (b)", "sync FILE`, with one TOML file; for two locations, use `oci"]),
        ("inspect r.io/a:1 -u a:b", 2, ["needs a password", "the user name contains ':': omit the password"]),
        ("serve r.io/app:1", 4, ["no such file", "not an image: run `ocistream copy r.io/app:1 oci:DIR`, and serve"]),
        ("gc a b", 2, ["extra argument (b)", "write `ocistream gc DIR`\n"]),
        ("verify -i a.tar", 2, ["No such option", "omit the option, and write the archive or layout as an arg"]),
        ("inspect", 2, ["Missing argument 'LOCATION'", "write an image, a layout or an archive; - is stdin\n"]),
        ("pull --require-signature r.io/a:1", 2, ["argument 'IMAGE...'", "r.io/a:1 was read as the KEY of --r"]),
        ("copy --require-signature r.io/a:1 x", 2, ["argument 'DST'", "--require-signature KEY r.io/a:1\n"]),
        ("push -o x.tar localhost:1/a:1", 2, ["No such option", "write IMAGE, or --to HOST[/PREFIX]"]),
        ("pull -i x.tar", 2, ["No such option", "write the images, or --images FILE for a list of them"]),
        ("pull -p secret localhost:1/a:1", 2, ["No such option", "--password-file or --password-stdin"]),
        ("pull localhost:1/a:1 --insecure=true", 2, ["not take a value", "see `ocistream pull --help`"]),
        ("pull localhost:1/a:1 --stall-timeout=10s", 2, ["'10s' is not a number above 0, at most 86400, with"]),
        ("pull localhost:1/a:1 --connect-timeout=0", 2, ["'0' is not a number above 0, at most 86400, with"]),
        ("pull localhost:1/a:1 --have list.txt", 4, ["no such file", "check the path; a repository needs"]),
        ("copy dir:x oci:y", 8, ["transport dir", "`skopeo copy` copies between dir:... and oci-archive:F"]),
        ("copy docker-daemon:x:1 oci:y", 8, ["docker-daemon", "`docker save IMAGE | ocistream push DST`"]),
        ("inspect user:secret@host/x", 2, ["malformed image name '...@host/x': a user name is not", "--username"]),
        ("pull user@host/x:1", 2, ["malformed image name 'user@host/x:1': a user name is not part", "--username"]),
        ("pull localhost:1/a:1 --jobs=99", 2, ["'99' is not a whole number from 1 to 32", "pull --help"]),
        ("pull localhost:1/a:1 --jobs=foo", 2, ["'foo' is not a whole number from 1 to 32", "pull --help"]),
        ("pull localhost:1/a:1 --from-byte=-1", 2, ["'-1' is not a whole number of at least 0", "--help"]),
        ("pull localhost:1/a:1 --platform", 2, ["requires an argument", "see `ocistream pull --help`"]),
        ("pull localhost:1/a:1 --client-key=k", 2, ["--client-key needs --client-cert", "certificate of that"]),
        ("pull localhost:1/a:1 -u=a --password-file=no", 4, ["no such file", "check the path"]),
        ("verify localhost:1/app:1 app.tar", 2, ["other sources are files", "one command for registries"]),
        ("gc localhost:5000/app:1", 2, ["is in a registry, but this must be a layout directory", "themselves"]),
        ("gc nowhere", 4, ["no such directory", "check the path"]),
        ("rm app.tar", 2, ["app.tar' is an archive, but this must be a layout directory", "copy SRC oci:DIR"]),
        ("rm layout/", 2, ["Missing argument 'NAME'", "to delete everything, delete the directory"]),
        (
            "config nosuch.toml",
            2,
            ["'nosuch.toml' is neither show nor check", "write `ocistream config check nosuch.toml`"],
        ),
        ("serve --port 5001", 2, ["No such option", "use --listen HOST:PORT, such as --listen 127.0.0.1:5001"]),
        ("serve app.tar -p 5001", 2, ["No such option", "use --listen HOST:PORT; for a password, use"]),
        ("copy a b --preserve-digests", 2, ["No such option", "a notice names an image of `docker save`"]),
        ("push --to -i a.tar", 2, ["--to requires an argument, but the option -i follows", "write ./-i"]),
        ("pull localhost:1/a:1 -o=x", 2, ["-o=x has a = that would be a", "write -o x or --output=x\n"]),
        ("pull localhost:1/a:1 --platform x86_64", 2, ["malformed platform 'x86_64'", "such as linux/amd64"]),
        ("tags localhost:1/a:1", 2, ["localhost:1/a:1 is one image, not a", "write localhost:1/a\n"]),
        ("config pull", 2, ["'pull' is neither show nor check", "write `ocistream config show pull`"]),
        ("config --check", 2, ["No such option", "use `ocistream config check [FILE]`"]),
        ("verify --require-signature k", 2, ["No such option", "use --key FILE: each image must have a"]),
        ("verify --format=json", 2, ["No such option", "--json prints a JSON document"]),
        ("sync .", 9, ["cannot read .: Is a directory", "this is a directory: name a file"]),
        ("list localhost:1/app", 2, ["No such command", "use `ocistream tags HOST/REPO`"]),
        ("pull localhost:5000/app:a/b", 2, ["is not a tag", "128 characters"]),
        ("pull localhost:5000/app@sha256:abc", 2, ["malformed digest 'sha256:abc': 3 char", "64 hex digits"]),
        ("pull localhost:1/a:1 --only=sha256:12", 2, ["'sha256:12': 2 characters follow sha256:, not 64"]),
        ("pull localhost:1/a:1 --only=nowhere", 4, ["not a digest, and no such file", "with 64 hex digits"]),
        ("rm localhost:1/x", 4, ["localhost:1/x: no such directory, and a complete rep", "`ocistream tags loc"]),
        ("pull localhost:1/a:1 --split=1M", 2, ["--split writes the volumes of an OCI archive, but stdout is"]),
        ("pull localhost:1/a:1 --split=1M --result=r -o new/", 2, ["new/ is a layout", "app.%03d"]),
        ("pull localhost:1/a:1 --split=1M -o new/", 2, ["new/ is a layout directory", "app.%03d.tar"]),
        (
            "copy localhost:1/a:1 localhost:1/b --all-tags",
            2,
            ["localhost:1/a:1 names one image, but --all-tags copies", "write localhost:1/a; or omit --all-tags"],
        ),
        (
            "copy oci:in:v1 localhost:1/b '--tags=v*'",
            2,
            ["oci:in:v1 names one image, but --tags copies several", "write oci:in; or omit --tags"],
        ),
        ("pull localhost:1/a:1 --format=oci-archive -o new/", 2, ["new/: this is a directory, not an"]),
        (
            "pull localhost:1/a:1 --format=docker-archive -o new/",
            2,
            ["new/: this is a dir", "write a file as new.tar; for a layout, omit --format docker-archive\n"],
        ),
        ("copy localhost:1/a docker-archive:new/ --all-tags", 2, ["new/: this is a", "layout as oci:new\n"]),
        ("copy localhost:1/a oci-archive:new/:b", 2, ["new/:b: this is a directory, not an archive"]),
        ("pull 'app :1'", 2, ["is not a repository", "lower-case letters and digits"]),
        ("pull host.example:port/app", 2, ["is not a registry host", "HOST[:PORT]"]),
        ("inspect nowhere/", 4, ["cannot read nowhere: no such file or directory", "check the path"]),
        ("pull localhost:1/a:1 --upload=put", 2, ["No such option", "--upload is an option of push, copy\n"]),
        ("inspect oci:nowhere", 4, ["no such directory", "check the path"]),
        ("copy a.tar:app:2 oci:x", 2, ["'app:2' is not a tag", "for an archive, write oci-archive:a.tar:app:2 or"]),
        (
            "pull localhost:1/a:1 -o localhost:2/b:1",
            4,
            ["localhost:2/b:1: -o takes a path, and there is no", "run `ocistream copy IMAGE localhost:2/b:1`"],
        ),
        ("verify 'v.*.tar'", 4, ["no such file", "remove the quotes, or name the files"]),
        ("copy 'v.*.tar' oci:new", 4, ["read v.*.tar: no such file", "copy takes one SRC: write the name of"]),
        (
            "copy 'v.*.tar' localhost:1/a:1",
            4,
            ["read v.*.tar: no such file", "`ocistream push -i 'v.*.tar' localhost:1/a:1` takes a pattern in quotes"],
        ),
        (
            "copy --format=v2s2 localhost:1/a:1 localhost:1/b:1",
            2,
            ["docker-archive:FILE; manifests are not converted\n"],
        ),
        ("--verbose pull", 2, ["No such option '--verbose'", "options follow the command"]),
        ("--verison", 2, ["No such option '--verison'", "did you mean --version?\n"]),
        (
            "sync --src-plain-http s.toml",
            2,
            ['write plain-http = true in [registry."HOST"] of the sync file; --plain-http is for all registries\n'],
        ),
        ("sync --dest-ca-cert=x s.toml", 2, ['write ca-cert = ... in [registry."HOST"] of the sync file']),
        ("sync --tags=1 s.toml", 2, ["No such option", "write tags = [...] in [[sync]] of the sync file"]),
        ("sync --platform=all s.toml", 2, ["No such option", 'write platforms = [...] or platforms = "all"']),
        ("sync --no-referrers s.toml", 2, ["No such option", "write referrers = false in [[sync]]"]),
        ("sync --require-signature=k s.toml", 2, ["No such option", "write [trust] in the configuration"]),
        ("push localhost:1/a:1 --src-insecure", 2, ["No such option", "reaches one registry: use --insecure"]),
        ("inspect oci:.", 6, ["has no index.json", "name a directory"]),
        ("sync nowhere.toml", 4, ["no such file", "check the path"]),
        ("pull localhost:1/app:1 --config nowhere.toml", 4, ["no such file", "check the path"]),
        ("pull localhost:1/app:1 --ca-cert nowhere.pem", 4, ["no such file", "check the path"]),
        ("login localhost:1 --username=me --password-stdin", 2, ["stdin has no password", "printf"]),
        ("login localhost:1", 2, ["no terminal to ask for the user name", "use --username; for the password, u"]),
        ("verify https://r.io/app:1", 2, ["a URL is not a name", "without http:// or https://"]),
        (
            "copy x.tar localhost:1/new/",
            2,
            [
                "the / at its end means a directory",
                "the image, write localhost:1/new; for the directory, ./localhost:1/n",
            ],
        ),
        ("copy x.tar r.example/new/", 2, ["'r.example/new/'", "for the image, write r.example/new; for the d"]),
        ("pull -a localhost:1/a:1", 2, ["No such option", "use --all for all platforms"]),
        ("push -a localhost:1/a:1", 2, ["No such option", "omit the option: all platforms are pushed"]),
        ("push -t 1 localhost:1/a", 2, ["No such option", "the tag is a part of IMAGE: write HOST/REPOSITO"]),
        ("push -i a.tar a.tar", 2, ["'a.tar' is a path", "already an input: write the destination, `ocis"]),
        ("sync -", 4, ["-: no such file", "write /dev/stdin"]),
        ("sync --shard=1/0 s.toml", 2, ["--shard 1/0: no such shard", "N must be at least 1"]),
    ],
)
def test_the_error_for_a_mistake_says_what_to_type(tmp_path: Path, line: str, code: int, words: Sequence[str]) -> None:
    result = ocistream(*shlex.split(line), cwd=tmp_path)
    assertions.failure(result, code, *words)
    assert len(result.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("pull localhost:1/a:1 -o a.tar --output=b.tar", "--output is given 2 times: b.tar, the last"),
        ("push -i a.tar --to localhost:1/a --to localhost:1/b", "--to is given 2 times: localhost:1/b"),
        ("copy a.tar oci:b --via 'ssh a' --via 'ssh b'", "--via is given 2 times: ssh b, the last, counts"),
        ("pull localhost:1/app:1 --result a --result b", "--result is given 2 times: b, the last"),
        ("inspect a.tar --format json --format html", "--format is given 2 times: html, the last"),
        ("verify a.tar --certificate-identity a --certificate-identity b", "identity is given 2 times: b"),
        ("copy a.tar oci:b --dest-username a --dest-username b", "--dest-username is given 2 times: b"),
        ("tags localhost:1/app --config a.toml --config b.toml --retries=0", "--config is given 2 times: b.toml"),
    ],
)
def test_the_last_of_two_values_is_used_with_a_notice(tmp_path: Path, line: str, told: str) -> None:
    tmp_path.joinpath("b.toml").touch()
    result = ocistream(*shlex.split(line), cwd=tmp_path)
    assert result.code != 0
    assert told in result.err.splitlines()[0]


def test_an_option_with_a_default_may_be_given_again_and_any_option_with_the_same_value(layout: Layout) -> None:
    layout.name(small_image(layout), "app:1")
    config = layout.path.parent / "config.toml"
    config.touch()
    same: list[Argument] = ["--format", "{name}", "--config", config] * 2
    result = succeed("inspect", layout.path, *same, "--retries", "1", "--retries", "2")
    assert result.lines() == ["app:1"]


def test_the_error_for_a_host_of_dots_does_not_suggest_to_omit_the_last_dot() -> None:
    assert "last dot" not in ocistream("inspect", "docker://./app").err


@pytest.mark.parametrize(
    ("variable", "value", "code", "word"),
    [
        ("OCISTREAM_CONFIG", "/nowhere.toml", 4, "correct or unset that variable"),
        ("SSL_CERT_FILE", "/nowhere.pem", 4, "correct or unset that variable"),
        ("OCISTREAM_JOBS", "foo", 2, "error: OCISTREAM_JOBS: 'foo' is not a whole number from 1 to 32\n"),
        ("HTTPS_PROXY", "other://proxy", 7, "check the proxy in HTTPS_PROXY"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, value: str, code: int, word: str) -> None:
    image = f"registry.test:{unused_port()}/app:1"
    result = ocistream("pull", image, "-o", tmp_path / "x.tar", "--retries=0", env={variable: value})
    assertions.failure(result, code, word)


@pytest.mark.parametrize(
    ("action", "code", "word"),
    [
        (Reply(400, {}, b"<html>"), 7, "the answer may come from"),
        (Reply(301, {}, b""), 7, "the answer may come from"),
        (Reply(410, {}, b"<html>"), 7, "the answer may come from"),
        (Reply(401, {}, b"<html>"), 3, "the answer may come from"),
        (Reply(404, {}, b"\n<!DOCTYPE HTML><html>"), 4, "answered with a web page: check that it is a registry"),
        (Reply(501, {}, b"<html>"), 7, "the answer may come from"),
        (Reply(200, {"Content-Type": "text/html"}, b"\n<html>"), 6, "a login page"),
        (HangUp(), 7, "if the registry uses HTTPS here"),
    ],
)
def test_the_error_for_a_response_not_from_a_registry_says_so(
    place: Place, action: Action, code: int, word: str
) -> None:
    host = place.start(Fault(action, "GET", times=None)).host
    assertions.failure(ocistream("pull", f"{host}/app:1", "-o", place.out, "--retries=0"), code, word)
    assertions.failure(ocistream("inspect", f"{host}/app", "--retries=0"), code, word)


def test_the_error_for_a_registry_s_own_response_does_not_doubt_it(place: Place) -> None:
    pulled = place.start(Fault(refusal(400, "NAME_INVALID", "no"), "GET", times=None)).host
    pushed = place.start(Fault(Reply(400, {}, b""), "PUT", "/manifests/", times=None)).host
    for source, target in ((f"{pulled}/app:1", f"{pushed}/new:1"), (place.app, f"{pushed}/new:1")):
        result = ocistream("copy", source, target, "--retries=0")
        assertions.failure(result, 7, ": 400")
        assert "is it a registry" not in result.err


def test_the_error_for_plain_http_to_an_https_port_suggests_https(place: Place) -> None:
    host = place.start(tls=place.certificate).host.replace("127.0.0.1", "registry.test")
    argv = ["pull", f"{host}/app:1", "-o", str(place.out), "--retries=0", "--plain-http"]
    assertions.failure(ocistream(*argv, names={"registry.test": None}), 7, "omit --plain-http")


def test_the_error_for_a_wrong_password_at_login_suggests_access_tokens(place: Place, tmp_path: Path) -> None:
    host = place.start(auth=Basic("me", "hunter2")).host
    argv = ["login", host, "--username=me", "--password-stdin"]
    result = ocistream(*argv, stdin=b"other", env={"DOCKER_CONFIG": str(tmp_path / "docker")})
    assertions.failure(result, 3, "refused the user name or the password\n", "an access token instead of the password")


def test_every_error_about_docker_s_file_says_what_to_do(place: Place, tmp_path: Path) -> None:
    host = place.start(auth=Basic("me", "hunter2")).host
    for content in ("[]", "{", '{"auths": []}'):
        tmp_path.joinpath("config.json").write_text(content)
        argv = ["pull", f"{host}/app:1", "-o", str(place.out)]
        assertions.failure(ocistream(*argv, env={"DOCKER_CONFIG": str(tmp_path)}), 2, "config.json", "log in again")


def test_the_error_for_a_file_that_is_not_an_archive_says_what_it_looks_like(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "small.zip", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as file:
        file.writestr("a", bytes(2048))
    for name, content, word in [
        ("small.zip", None, "this is a zip file"),
        ("large.zip", None, "this is a zip file"),
        ("index.json", json.dumps({"schemaVersion": 2}).encode(), "this looks like JSON"),
        ("long.json", json.dumps({"schemaVersion": [2] * 1000}).encode(), "this looks like JSON"),
        ("page.html", b"<html>", "this looks like HTML"),
        ("short.tar", b"hello\n", "this looks like text: use an archive from"),
        ("long.tar", b"hello\n" * 1000, "this looks like text: use an archive from"),
        ("program", b"\x7fELF" + bytes(1000), "this is a program"),
    ]:
        if content is not None:
            tmp_path.joinpath(name).write_bytes(content)
        for piped in (False, True):
            argv = [] if piped else ["-i", str(tmp_path / name)]
            stdin = tmp_path.joinpath(name).read_bytes() if piped else None
            assertions.failure(ocistream("push", *argv, "localhost:1/app:1", stdin=stdin), 6, "no tar header", word)


def test_the_error_for_an_empty_file_says_that_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "e.tar").write_bytes(b"")
    assertions.failure(ocistream("verify", "e.tar", cwd=tmp_path), 6, "e.tar is empty\n", "create it again")
    (tmp_path / "list.txt").write_bytes(b"")
    assertions.failure(ocistream("pull", "--images", "list.txt", cwd=tmp_path), 2, "list.txt is empty\n")


def test_an_archive_that_ends_within_a_header_is_called_truncated() -> None:
    result = ocistream("push", "localhost:1/app:1", stdin=b"oci-layout" + bytes(100))
    assertions.failure(result, 6, "is truncated: it ends at byte 110")


@pytest.mark.parametrize("argv", [["push", "registry.test"], ["inspect", "registry.test"]])
def test_an_image_name_that_looks_like_a_host_gets_a_hint(tmp_path: Path, argv: Sequence[str]) -> None:
    stdin = b"" if argv[0] == "push" else None
    result = ocistream(*argv, cwd=tmp_path, stdin=stdin, env=offline())
    first, second = result.err.splitlines()
    assert first.startswith("ocistream: error: ")
    assert f"{argv[1]} means the image docker.io/library/{argv[1]}" in second
    assert second.endswith(f"write {argv[1]}/REPOSITORY[:TAG] for an image in that registry")


def test_a_new_file_whose_name_looks_like_a_host_is_told_how_to_write_it(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app")
    result = ocistream("copy", layout.path, "good.tarr", cwd=tmp_path, env=offline())
    assertions.failure(result, 7, "for a new file, write ./good.tarr or oci-archive:good.tarr\n")


@pytest.mark.parametrize("name", ["localhost", "localhost:5000", "127.0.0.1:5000", "registry.example.com:5000"])
@pytest.mark.parametrize("command", ["pull", "push", "copy", "inspect", "digest", "tags", "have", "verify"])
def test_a_registry_alone_is_not_an_image(tmp_path: Path, command: str, name: str) -> None:
    argv = [command, "oci:x", name] if command == "copy" else [command, name]
    result = ocistream(*argv, cwd=tmp_path, stdin=b"" if command == "push" else None, env=offline())
    assertions.failure(
        result,
        2,
        f"{name} is a registry, not an image\n",
        f"\n  write {name}/REPOSITORY, or {name}/REPOSITORY:TAG for one image; no command lists the repositories\n",
    )


@pytest.mark.parametrize("name", ["localhost:5000/", "127.0.0.1:5000/", "registry.example.com:5000/"])
def test_a_registry_with_a_slash_is_not_a_directory(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path / "x")
    layout.name(small_image(layout), "app:1")
    result = ocistream("copy", "oci:x", name, cwd=tmp_path)
    assertions.failure(
        result,
        2,
        f"{name} names a registry, but no image\n",
        f"write {name}REPOSITORY[:TAG], or ./{name} for a directory",
    )
    succeed("copy", "oci:x", f"./{name}", cwd=tmp_path)
    # Now the directory exists.
    succeed("inspect", name, cwd=tmp_path)


@pytest.mark.parametrize("argv", [["copy", "x:app", "new.tar"], ["inspect", "x:app"], ["verify", "x:app"]])
def test_the_error_for_the_image_of_a_layout_without_its_prefix_says_which_to_write(
    place: Place, tmp_path: Path, argv: Sequence[str]
) -> None:
    small_image(Layout(tmp_path / "x"), name="app")
    result = ocistream(*argv, "--config", with_hub(place.registry, tmp_path), cwd=tmp_path)
    assertions.failure(result, 4, "for the image app of the layout x, write oci:x:app\n")
    assert "./x:app" not in result.err


def test_a_full_image_name_may_look_like_a_registry() -> None:
    assertions.failure(ocistream("digest", "docker.io/library/localhost:5000", env=offline()), 7, "/library/localhost/")


@pytest.mark.parametrize("name", ["docker.io/library/nginx", "docker://nginx", "localhost:PORT/x"])
def test_a_full_name_gets_no_hint_about_its_registry(tmp_path: Path, name: str) -> None:
    result = ocistream("inspect", name.replace("PORT", str(unused_port())), cwd=tmp_path, env=offline())
    assertions.failure(result, 7, "connection refused")
    assert " means " not in result.err


@pytest.mark.parametrize("status", [401, 404])
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["inspect", "no/such"], "error: no file is called no/such, so it means docker.io/no/such:latest: "),
        (["inspect", "no/such"], "write HOST/no/such for another registry, or ./no/such for a path\n"),
        (["copy", "nosuch:1", "x.tar"], "nosuch:1 means docker.io/library/nosuch:1; write HOST/nosuch:1 for another"),
        (["copy", "nosuch:1", "x.tar"], "for another registry, or ./nosuch:1 for a path\n"),
        (["pull", "nosuch", "-o", "x.tar"], "nosuch means docker.io/library/nosuch:latest; write HOST/nosuch for"),
    ],
)
def test_a_name_without_a_registry_that_fails_is_explained(
    place: Place, tmp_path: Path, argv: Sequence[str], words: str, status: int
) -> None:
    config = with_hub(place.start(Fault(refusal(status, "DENIED"), "GET", times=None)), tmp_path)
    assertions.failure(ocistream(*argv, "--config", config, cwd=tmp_path), 3 if status == 401 else 4, words)


def test_sync_explains_a_destination_without_a_registry(place: Place, tmp_path: Path) -> None:
    config = with_hub(place.start(Fault(refusal(401, "DENIED"), times=None)), tmp_path)
    tmp_path.joinpath("s.toml").write_text(f'[[sync]]\nfrom = "{place.app}"\nto = "synced"\n')
    result = ocistream("sync", "s.toml", "--config", config, cwd=tmp_path)
    assert result.code == 3
    assert "; `to` names Docker Hub: write HOST/synced:1 for another registry, or oci:synced:1 for a " in result.err


def test_rm_explains_a_name_without_a_registry(place: Place, tmp_path: Path) -> None:
    words = "nosuch:1 means docker.io/library/nosuch:1; write HOST/nosuch:1 for another registry"
    result = ocistream("rm", "nosuch:1", "--config", with_hub(place.registry, tmp_path), cwd=tmp_path)
    assertions.failure(result, 4, words)


def test_the_error_for_another_failure_does_not_explain_a_name_without_a_registry(tmp_path: Path) -> None:
    result = ocistream("push", "-i", "nowhere.tar", "nosuch", cwd=tmp_path)
    assertions.failure(result, 4, "nowhere.tar")
    assert " means " not in result.err


def test_the_error_for_an_unsigned_index_says_which_digest_to_sign(place: Place, layout: Layout) -> None:
    index = two_platforms(layout)
    seed(layout, index, place.registry.host, "both", "1")
    options: list[Argument] = ["--require-signature", place.made("cosign.pub", PUBLIC_KEY.encode()), "-o", place.out]
    pull: list[Argument] = ["pull", f"{place.registry.host}/both:1", *options]
    hint = f"\n  sign the index {index['digest']}: then each of its platforms counts as signed\n"
    assertions.failure(ocistream(*pull, "--platform=linux/amd64"), 5, "it has no signature\n", hint)
    hint = "\n  sign this digest: then each platform of the index counts as signed\n"
    assertions.failure(ocistream(*pull, "--all"), 5, index["digest"], hint)


def test_the_error_for_an_index_without_platforms_suggests_to_omit_platform(layout: Layout, tmp_path: Path) -> None:
    image = {key: value for key, value in small_image(layout).items() if key != "platform"}
    layout.index([image], name="cache")
    result = ocistream("copy", "oci:made:cache", "oci:new", "--platform=linux/amd64", cwd=tmp_path)
    assertions.failure(result, 4, "none with a name (it may be a build cache): omit --platform\n")


def test_the_error_for_an_unsigned_image_does_not_suggest_an_impossible_platform(place: Place) -> None:
    key = place.made("cosign.pub", PUBLIC_KEY.encode())
    pull: list[Argument] = ["pull", place.app, "--require-signature", key, "-o", place.out]
    for argv in (["verify", "--key", key, place.app], [*pull, "--platform=all"], [*pull, "--platform=linux/amd64"]):
        result = ocistream(*argv)
        assert result.code == 5
        assert "it has no signature\n  sign this digest, or use the index that lists it" in result.err


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_error_for_a_missing_platform_in_a_sync_file_names_the_key(
    layout: Layout, tmp_path: Path, name: str
) -> None:
    small_image(layout, name="one")
    two_platforms(layout, name="two")
    file = tmp_path / "sync.toml"
    file.write_text(f"[[sync]]\nfrom = 'oci:made:{name}'\nto = 'oci:new'\nplatforms = ['linux/s390x']\n")
    result = ocistream("sync", file, cwd=tmp_path)
    assert result.code == 4
    assert ("omit `platforms`" if name == "one" else "choose one with `platforms`") in result.err


def test_a_truncated_compressed_archive_is_called_truncated(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app:1")
    cut = gzip.compress(tar_of(small_first(layout)))[:-100]
    hint = "the program that wrote it failed or was interrupted: pull or copy it again"
    (tmp_path / "app.tgz").write_bytes(cut)
    result = ocistream("copy", "app.tgz", "x.tar", cwd=tmp_path)
    assertions.failure(result, 6, ": app.tgz is truncated: its gzip stream ends too early\n", hint)
    result = ocistream("copy", "-", "x.tar", stdin=cut, cwd=tmp_path)
    assertions.failure(result, 6, ": the archive on stdin is truncated: its gzip stream ends too early\n", hint)


def test_the_error_for_an_image_missing_from_an_archive_names_the_archive(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app:1")
    for argv in (["push", "-i", "made", "localhost:1/x:1", "--image", "app:5"], ["copy", "oci:made:app:5", "x.tar"]):
        result = ocistream(*argv, cwd=tmp_path)
        assertions.failure(result, 4, ": made has no image 'app:5'\n", "its images are: app:1")


def test_the_error_for_a_lost_blob_of_a_layout_says_how_to_restore_it(layout: Layout) -> None:
    image = small_image(layout, name="app:1")
    layout.file(layout.read(image["digest"])["layers"][0]["digest"]).unlink()
    result = ocistream("verify", layout.path)
    assert result.code == 6
    assert "\n  pull the image again, or push it to a registry that already has these blobs\n" in result.err


@pytest.mark.parametrize("argv", [["inspect", "made/"], ["push", "-i", "made/", "localhost:1/app:1"]])
def test_a_layout_of_an_interrupted_pull_is_called_unfinished(
    layout: Layout, tmp_path: Path, argv: Sequence[str]
) -> None:
    small_image(layout, name="app:1")
    layout.path.joinpath("index.json").unlink()
    result = ocistream(*argv, cwd=tmp_path)
    assertions.failure(
        result, 6, "made is an unfinished OCI layout: it has no index.json", "re-run the command", "pull"
    )


def test_the_error_for_blobs_that_neither_side_has_says_why_they_were_omitted(place: Place, tmp_path: Path) -> None:
    succeed("pull", place.app, "--have", place.app.removesuffix(":1"), "-o", "d.tar", cwd=tmp_path)
    other = place.start()
    result = ocistream("push", "-i", "d.tar", f"{other.host}/app:1", cwd=tmp_path)
    said = re.escape(f" missing: they were omitted from d.tar (in {place.registry.host}/app), and the destination ")
    assertions.failure(
        result, 6, "does not have them; nothing was sent: sha256:", "fetch the missing blobs: `ocistream"
    )
    assert re.search(rf"error: \d+ blobs \(.*B\) are{said}", result.err), result.err


def test_a_push_of_existing_blobs_reports_them_without_a_rate(place: Place) -> None:
    push: list[Argument] = ["push", "-i", place.file, place.app.replace("app", "new")]
    first, second = ocistream(*push), ocistream(*push)
    assert re.search(r"copied 3 blobs, .* in .* s \(.*/s\)\n", first.err), first.err
    assert re.search(r"copied 0 blobs, 0 B, in [0-9.]+ s; 3 already at the destination \(.*\)\n", second.err), (
        second.err
    )


def test_an_index_does_not_fit_into_a_docker_archive(layout: Layout, tmp_path: Path) -> None:
    two_platforms(layout, name="app:1")
    copy: list[Argument] = ["copy", layout.path, f"docker-archive:{tmp_path}/x.tar"]
    said = "app:1 has several platforms, but a docker-archive has one image per name\n"
    assertions.failure(ocistream(*copy, "--all"), 8, said, "choose one with --platform")
    for options, verb in (["--dry-run"], "decompressed to a size"), ([], "decompressed"):
        result = succeed(*copy, "--platform=linux/amd64", *options)
        assert f"2 of them {verb}" in result.err


def test_the_error_for_a_path_below_a_file_says_so(place: Place) -> None:
    result = ocistream("pull", place.app, "-o", place.made("mk.py", b"") / "x.tar")
    assertions.failure(result, 9, "mk.py/x.tar: Not a directory", "a part of this path is a file, not a directory")


def test_the_error_for_a_service_without_http_shows_its_greeting() -> None:
    with RawServer(b"SSH-2.0-OpenSSH_9.6\r\n") as server:
        result = ocistream("inspect", f"{server.host}/app:1", "--retries=0")
    assertions.failure(result, 7, "the answer is not HTTP: SSH-2.0-OpenSSH_9.6\n", "another service than a registry")


def test_the_error_for_an_unknown_proxy_host_does_not_blame_the_registry() -> None:
    env = {"HTTPS_PROXY": "http://me:hunter2@nowhere.test:1"}
    result = ocistream("inspect", "registry.test/app:1", "--retries=0", env=env, names={"registry.test": None})
    assertions.failure(result, 7, "cannot connect to the proxy: the host name cannot be", "check the proxy in HTTPS")
    assert "hunter2" not in result.err


def test_the_error_for_a_wrong_password_with_username_mentions_stored_logins(place: Place) -> None:
    host = place.start(auth=Basic("me", "hunter2")).host
    argv = ["inspect", f"{host}/app:1", "--username=me", "--password-stdin"]
    hint = "the user name or password is wrong; stored logins are ignored while --username is given\n"
    assertions.failure(ocistream(*argv, stdin=b"other"), 3, f"{host} refused", hint)


def test_the_error_for_a_login_at_a_web_server_does_not_mention_a_repository(place: Place) -> None:
    host = place.start(Fault(Reply(404, {}, b"<html>"), "GET", times=None)).host
    argv = ["login", host, "--username=me", "--password-stdin"]
    assertions.failure(ocistream(*argv, stdin=b"x"), 4, "check that it is a registry, and its port\n")


@pytest.mark.parametrize(
    ("line", "content", "words"),
    [
        ("pull localhost:1/a:1 --config c.toml", b"jobs = [", ["is not TOML", "write text in quotes"]),
        (
            "pull localhost:1/a:1 --config c.toml",
            b"jobs = 3",
            ["unknown key 'jobs'\n", "put options under [defaults]", "allowed: defaults, "],
        ),
        (
            "pull localhost:1/a:1 --config c.toml",
            b"retrys = 3",
            ["unknown key 'retrys'\n", "  put options under [defaults]; did you mean retries?\n"],
        ),
        ("sync s.yml", b"registry.test:\n  images: {}\n", ["is not TOML", "this seems to be YAML"]),
        ("sync s.toml", b'[sync]\nfrom = "a"\n', ["sync is not a list", "write [[sync]] instead of [sync]"]),
        ("sync s.toml", b"[trust]\nkeys = ['k']\n", ["unknown key 'trust'", "write [trust] in the configuration file"]),
        ("sync s.toml", b"[[sync]]\nkeys = ['k']\n", ["unknown key 'keys'", "write [trust] in the configuration file"]),
        ("sync s.toml", b'[[sync]]\nfrom = ["a", "b"]\nto = "c"\n', ["from is neither", "write one [[sync]] for each"]),
        ("sync s.toml", b"from = 'a/b'\nto = 'oci:x'\n", ["\n  write [[sync]] above the keys of each copy\n"]),
        ("sync s.toml", b"[registry]\nplain-http = true\n", ["s.toml", '\n  name the registry: [registry."HOST"]\n']),
        ("sync s.toml", b"\xff\xfe\0", ["s.toml", "\n  this seems not to be text: name a TOML file\n"]),
        (
            "config check s.toml",
            b"[[sync]]\n",
            ["unknown key 'sync'", "a sync file", "`ocistream sync FILE --dry-run`"],
        ),
    ],
)
def test_the_error_for_a_mistake_in_a_toml_file_says_what_to_write(
    tmp_path: Path, line: str, content: bytes, words: Sequence[str]
) -> None:
    argv = line.split()
    (tmp_path / argv[-1]).write_bytes(content)
    assertions.failure(ocistream(*argv, cwd=tmp_path), 2, *words)


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_blob_that_every_attempt_truncates_at_the_same_byte_is_called_damaged(place: Place, cut: int) -> None:
    digest = place.layout.read(place.image["digest"])["layers"][0]["digest"]
    path = f"/blobs/{digest}"
    place.registry.faults += [Fault(Drop(cut), "GET", path, times=1), Fault(Drop(0), "GET", path, times=None)]
    result = ocistream("pull", place.app, "-o", place.out, "--retries=2")
    assertions.failure(result, 7, digest, "every try ended at this byte: the blob is probably damaged")


@pytest.mark.parametrize("kind", ["layer", "config", "manifest"])
@pytest.mark.parametrize("command", ["pull", "copy", "verify"])
def test_wrong_bytes_of_a_registry_are_not_called_a_damaged_archive(place: Place, command: str, kind: str) -> None:
    manifest = place.layout.read(place.image["digest"])
    digest = {"layer": manifest["layers"][1], "config": manifest["config"], "manifest": place.image}[kind]["digest"]
    index = place.layout.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [place.image]})
    seed(place.layout, index, place.registry.host, "app", "both")
    place.registry.faults = [Fault(Flip(5), "GET", digest, times=None)]
    repository = f"{place.registry.host}/app"
    targets: dict[str, list[Argument]] = {"pull": ["-o", place.out], "copy": [f"{place.start().host}/new:1"]}
    result = ocistream(command, f"{repository}:both", *targets.get(command, []))
    words = [f"error: {repository}", f"digest mismatch: expected {digest}, got ", "then push the image again\n"]
    if command != "verify":
        words += [f"error: {repository}: the registry sent wrong bytes: digest", "re-run the command; if the error "]
    assert result.code == 5
    for word in (*words, "ask the registry's operator to delete the damaged blob"):
        assert word in result.err
    assert "archive" not in result.err


@pytest.mark.parametrize("argv", [["verify"], ["push", "localhost:1/app:1", "-i"]])
def test_an_archive_with_a_damaged_index_is_named(layout: Layout, tmp_path: Path, argv: Sequence[str]) -> None:
    small_image(layout, name="app:1")
    items = [
        (name, (content or b"")[:-9] if name == "index.json" else content) for name, content in small_first(layout)
    ]
    (tmp_path / "app.tar").write_bytes(tar_of(items))
    hint = "the archive is damaged: copy or pull it again"
    result = ocistream(*argv, "app.tar", cwd=tmp_path)
    assertions.failure(result, 6, "error: app.tar: index.json is not valid JSON: ", hint)
    other = ocistream(*argv, "app.tar", *(["-i"] if "-i" in argv else []), "app.tar", cwd=tmp_path)
    assertions.failure(other, 6, "error: app.tar: index.json is not valid JSON: ", hint)


@pytest.mark.parametrize("command", ["inspect", "verify", "gc", "pull"])
def test_a_layout_with_a_damaged_index_is_told_what_to_do(place: Place, tmp_path: Path, command: str) -> None:
    small_image(Layout(tmp_path / "x"), name="app:1")
    index = tmp_path / "x" / "index.json"
    index.write_bytes(index.read_bytes()[:-9])
    argv: list[Argument] = ["pull", place.app, "-o", "x"] if command == "pull" else [command, "x"]
    hint = "  the layout is damaged: restore its index.json, or pull the images into a new directory\n"
    result = ocistream(*argv, cwd=tmp_path)
    assert result.code == 6
    assert "error: x: index.json is not valid JSON: " in result.err
    assert hint in result.err


def test_inspect_names_an_archive_with_a_damaged_config(layout: Layout, tmp_path: Path) -> None:
    config = layout.read(small_image(layout, name="app:1")["digest"])["config"]["digest"]
    items = [
        (name, b"{ " + (content or b"")[2:] if config[7:] in name else content) for name, content in small_first(layout)
    ]
    (tmp_path / "app.tar").write_bytes(tar_of(items))
    result = ocistream("inspect", "app.tar", cwd=tmp_path)
    assertions.failure(result, 5, "error: app.tar: digest mismatch: ", "check it with `ocistream verify app.tar`\n")


def test_the_error_for_blobs_that_both_sides_lack_names_the_image(place: Place, tmp_path: Path) -> None:
    digest = place.layout.read(place.image["digest"])["layers"][0]["digest"]
    items = [(name, content) for name, content in small_first(place.layout) if digest[7:] not in name]
    (tmp_path / "miss.tar").write_bytes(tar_of(items))
    result = ocistream("push", "-i", "miss.tar", f"{place.start().host}/new:1", cwd=tmp_path)
    assertions.failure(result, 6, f"has {digest}, for app of miss.tar\n  get the complete image\n")


def test_how_to_get_omitted_blobs_for_a_layout_is_a_complete_command(place: Place, tmp_path: Path) -> None:
    digest = place.layout.read(place.image["digest"])["layers"][0]["digest"]
    succeed("pull", place.app, "--only", digest, "-o", "part.tar", cwd=tmp_path)
    result = ocistream("copy", "part.tar", "oci:new", cwd=tmp_path)
    hint = f"get the complete image with `ocistream pull {place.app} -o FILE` (archives that --have or --base wrote"
    assertions.failure(result, 6, f"  {hint} lack blobs)\n")


def test_the_error_for_one_missing_image_of_several_lists_its_tags(place: Place) -> None:
    result = ocistream("pull", place.app, place.app.replace(":1", ":9"), "-o", place.out)
    assertions.failure(result, 4, "app:9 not found", "its tags are: 1\n")


@pytest.mark.parametrize("name", ["app.tar", "org/app.tar.gz", "APP.TGZ", "registry.example.com/app.tar.zst"])
@pytest.mark.parametrize("command", ["inspect", "copy", "have", "verify"])
def test_a_name_that_ends_like_an_archive_is_a_path(tmp_path: Path, command: str, name: str) -> None:
    result = ocistream(command, name, *(["oci:x"] if command == "copy" else []), cwd=tmp_path)
    assertions.failure(result, 4, f"cannot read {name}: no such file or directory")


@pytest.mark.parametrize("command", ["inspect", "copy", "have"])
def test_an_existing_directory_is_a_path_and_a_notice_says_so(layout: Layout, tmp_path: Path, command: str) -> None:
    small_image(layout, name="app")
    more = ["oci:x"] if command == "copy" else []
    result = succeed(command, "made", *more, cwd=tmp_path)
    assert "made is the directory ./made; for the image, write docker://made" in result.err
    refused = ocistream(command, "docker://made", *more, cwd=tmp_path, env=offline())
    assertions.failure(refused, 7, "/v2/library/made/")


def test_a_local_directory_does_not_affect_a_remote_destination(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app")
    result = ocistream("copy", "./made", "made", "--via", "true", cwd=tmp_path)
    assert "is the directory" not in result.err


# A blob that became shorter is a response that was cut.
@pytest.mark.parametrize(("path", "codes"), [("/manifests/", {6}), ("/blobs/", {5, 7})])
def test_an_answer_that_was_compressed_on_its_way_is_named(place: Place, path: str, codes: set[int]) -> None:
    place.registry.faults = [Fault(Gzip(), "GET", path, times=None)]
    result = ocistream("pull", place.app, "-o", place.out, "--retries=0")
    assert result.code in codes, result.err
    assert "127.0.0.1 sent a Content-Encoding, which changes blobs: check its proxy, or ask its operator" in result.err


def test_a_missing_file_whose_name_looks_like_a_host_is_called_missing(tmp_path: Path) -> None:
    result = ocistream("have", "none.txt", cwd=tmp_path, env=offline())
    assertions.failure(result, 7, "no file is called none.txt; none.txt means the image docker.io/library/none.txt")


def test_a_damaged_compressed_archive_is_told_what_to_do(layout: Layout, tmp_path: Path) -> None:
    small_image(layout, name="app")
    packed = bytearray(gzip.compress(tar_of(small_first(layout))))
    packed[-8] ^= 1
    (tmp_path / "app.tgz").write_bytes(packed)
    result = ocistream("verify", "app.tgz", cwd=tmp_path)
    assertions.failure(
        result, 6, "app.tgz: the gzip stream is malformed", "\n  it is damaged: fetch or write it again\n"
    )


def test_images_of_one_name_are_chosen_by_their_digests(layout: Layout, tmp_path: Path) -> None:
    images = [layout.image([size], name="app:1") for size in (4000, 5000)]
    result = ocistream("push", "-i", layout.path, "localhost:1/app:1", cwd=tmp_path)
    digests = ", ".join(image["digest"] for image in images)
    assertions.failure(result, 2, "has 2 images\n", f"choose one with --image, by its digest: {digests}\n")


@pytest.mark.parametrize("command", ["copy", "digest"])
def test_the_choice_of_an_image_lists_one_name_for_each(layout: Layout, tmp_path: Path, command: str) -> None:
    layout.name(small_image(layout, name="one"), "again")
    layout.image([5000], name="two")
    result = ocistream(command, "oci:made", *(["localhost:1/a"] if command == "copy" else []), cwd=tmp_path)
    more = ", or copy all with --all-tags" if command == "copy" else ""
    assertions.failure(result, 2, "made has 2 images\n", f"oci-archive:FILE:NAME{more}: one, two\n")


def test_archives_of_different_images_of_one_name_need_a_command_each(tmp_path: Path) -> None:
    images = [Layout(tmp_path / name).image([name.encode()], name="r.example/app:1") for name in ("one", "two")]
    digests = ", ".join(image["digest"] for image in images)
    for argv, said in (
        (["localhost:1/app:1"], "the combination of one and two has 2 images\n"),
        (["--to", "localhost:1"], "would both become localhost:1/app:1\n"),
    ):
        result = ocistream("push", "-i", "one", "-i", "two", *argv, cwd=tmp_path)
        assertions.failure(result, 2, said, f"run the command once for each; their images: {digests}\n")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("sync ''", "FILE"),
        ("config check ''", "FILE"),
        ("config show --config=", "--config"),
        ("pull --images=", "--images"),
        ("pull --have= app:1", "--have"),
        ("pull --result= app:1", "--result"),
        ("push -i '' app:1", "--input"),
        ("serve --tls-cert=", "--tls-cert"),
        ("verify --key= app.tar", "--key"),
        ("login --authfile= registry.example.com", "--authfile"),
    ],
)
def test_the_empty_name_of_a_file_is_an_error_of_the_command_line(tmp_path: Path, line: str, name: str) -> None:
    result = ocistream(*shlex.split(line), cwd=tmp_path)
    assertions.failure(result, 2, f"error: {name} is empty\n  is a shell variable unset?\n")
    assert not list(tmp_path.iterdir())
