"""Defaults of options from variables and the configuration file, and options without defaults."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tests.cli import assertions
from tests.cli.assertions import succeed
from tests.cli.commands import commands, options
from tests.cli.fixture_types import Start
from tests.cli.user import User
from tests.faulty_auth import Basic
from tests.faulty_registry import Fault, FaultyRegistry, refusal
from tests.images import Layout, small_image
from tests.registry_http import basic, seed
from tests.runner import Result, ocistream

#: The options for which a user cannot set a default, by the reason.
REFUSED = {
    "it decides what is copied": [
        *("output", "input", "image", "to", "tags", "all", "all-tags", "via", "have", "base", "only", "among"),
        *("by-digest", "images"),
    ],
    "it is for one run": ["from-byte", "split", "result", "shard"],
    "it decides what is printed": ["access-log", "json", "raw", "raw-config"],
    "use `ocistream login`": [
        *("username", "password-stdin", "password-file", "src-username", "src-password-stdin", "src-password-file"),
        *("dest-username", "dest-password-stdin", "dest-password-file"),
    ],
    "use the variable REGISTRY_AUTH_FILE": ["authfile", "src-authfile", "dest-authfile"],
    "it is for one registry": [
        *("client-cert", "client-key", "insecure", "plain-http"),
        *("src-client-cert", "src-client-key", "src-insecure", "src-plain-http"),
        *("dest-client-cert", "dest-client-key", "dest-insecure", "dest-plain-http"),
    ],
    "a file cannot name another one": ["config"],
    "it decides which signatures are trusted": [
        *("key", "certificate-identity", "certificate-oidc-issuer", "trusted-root")
    ],
}
REASONS = {name: reason for reason, names in REFUSED.items() for name in names}

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def variable_of(option: str) -> str:
    return f"OCISTREAM_{option.replace('-', '_').upper()}"


class Owner(User):
    """A user with a registry that has `app:1`, and the same image in a layout."""

    def __init__(self, registry: FaultyRegistry, layout: Layout, home: Path) -> None:
        super().__init__(home)
        self.registry, self.layout = registry, layout.path
        seed(layout, small_image(layout, name="app"), registry.host, "app", "1")
        registry.requests.clear()

    def pull(self, *argv: str | Path, **env: str) -> Result:
        return self.run("pull", f"{self.registry.host}/app:1", "-o", self.home / "app.tar", *argv, **env)

    def push(self, *argv: str | Path, **env: str) -> Result:
        return self.run("push", "-i", self.layout, f"{self.registry.host}/new:1", *argv, **env)


@pytest.fixture
def user(served: FaultyRegistry, layout: Layout, tmp_path: Path) -> Owner:
    return Owner(served, layout, tmp_path / "home")


# -- precedence ---------------------------------------------------------------------------------------------------


def test_the_order_is_option_variable_command_table_general_table(user: Owner) -> None:
    user.configure("[defaults]", 'cache = "all"', "[defaults.pull]", 'cache = "~/pull"')
    kept = {
        "flag": user.home / "flag",
        "variable": user.home / "variable",
        "command": user.home / "pull",
        "all": user.file.parent / "all",
    }

    def made() -> set[str]:
        return {name for name, path in kept.items() if path.exists()}

    assertions.success(user.pull("--cache", kept["flag"], OCISTREAM_CACHE=str(kept["variable"])))
    assert made() == {"flag"}
    assertions.success(user.pull(OCISTREAM_CACHE=str(kept["variable"])))
    assert made() == {"flag", "variable"}
    assertions.success(user.pull(OCISTREAM_CACHE=""))
    assert made() == {"flag", "variable", "command"}
    assertions.success(user.run("copy", f"{user.registry.host}/app:1", f"oci:{user.home}/copied"))
    assert made() == set(kept)


def test_an_empty_variable_leaves_the_signature_check_of_the_file_on(user: Owner) -> None:
    user.configure("[defaults]", 'require-signature = "gone.pub"')
    assertions.failure(user.push(OCISTREAM_REQUIRE_SIGNATURE=""), 4, "gone.pub")
    user.configure()
    assertions.success(user.push(OCISTREAM_REQUIRE_SIGNATURE=""))


def test_a_configuration_on_a_pipe_sets_defaults_registries_and_the_policy(user: Owner) -> None:
    # A pipe can be read only once.
    cache, name = user.home / "cache", "gateway.example"
    lines = ["[defaults]", f'cache = "{cache}"', f'[registry."{name}"]', f'url = "{user.registry.url}"']

    def pull() -> Result:
        return ocistream(
            *("pull", f"{name}/app:1", "-o", user.home / "app.tar", "--config", "/dev/stdin"),
            stdin="\n".join(lines).encode(),
            env={"HOME": str(user.home), "XDG_CONFIG_HOME": None},
        )

    assertions.success(pull())
    assert cache.exists()
    lines += ["[trust]", f'"{name}" = "reject"']
    assertions.failure(pull(), 5, f"rejects the images of {name}")


def test_an_option_can_remove_a_default(user: Owner) -> None:
    user.configure("[defaults]", 'cache = "all"')
    assertions.success(user.pull("--cache", "", OCISTREAM_CACHE=str(user.home / "variable")))
    assert not (user.home / "variable").exists()
    assert not (user.file.parent / "all").exists()


def test_each_path_of_a_list_is_relative_to_the_file(user: Owner) -> None:
    user.configure("[defaults]", 'require-signature = ["missing.pem", "~/other.pem"]')
    assertions.failure(user.pull(), 4, f"cannot read the key {user.file.parent}/missing.pem")
    shown = user.run("config", "show", "pull").out.decode()
    assert f'require-signature = ["{user.file.parent}/missing.pem", "{user.home}/other.pem"]' in shown


def test_a_default_is_parsed_as_the_option(user: Owner) -> None:
    user.configure("[defaults]", 'upload = "chunk=1MiB"')
    assertions.success(user.push("--jobs=1"))
    assert all("Content-Range" in request.headers for request in user.registry.asked("PATCH"))
    user.registry.requests.clear()
    succeed("push", "-i", user.layout, f"{user.registry.host}/other:1")
    assert not any("Content-Range" in request.headers for request in user.registry.asked("PATCH"))


def test_a_variable_disables_a_switch_of_the_file(user: Owner) -> None:
    user.configure("[defaults]", "quiet = true")
    assert user.pull("--progress=plain").err == ""
    assert user.pull("--progress=plain", OCISTREAM_QUIET="0").err != ""


@pytest.mark.parametrize("is_variable", [True, False], ids=["variable", "file"])
@pytest.mark.parametrize(
    "argv",
    [
        ["pull", "IMAGE", "-o", "HOME/app.tar"],
        ["push", "-i", "MADE", "HOST/new:1"],
        ["copy", "IMAGE", "oci:HOME/copied"],
        ["sync", "HOME/images.toml"],
        ["gc", "MADE", "--older-than", "0"],
        ["rm", "MADE", "app"],
        ["rm", "IMAGE"],
    ],
    ids=" ".join,
)
def test_a_dry_run_that_is_a_default_changes_nothing(user: Owner, argv: list[str], is_variable: bool) -> None:
    image = f"{user.registry.host}/app:1"
    (user.home / "images.toml").write_text(f'[[sync]]\nfrom = "{image}"\nto = "oci:{user.home}/copied"\n')
    (user.layout / f"blobs/sha256/{'0' * 64}").write_bytes(b"a blob that no image needs")
    user.configure(*([] if is_variable else ["[defaults]", "dry-run = true"]))
    texts = {"IMAGE": image, "HOST": user.registry.host, "MADE": str(user.layout), "HOME": str(user.home)}
    words = [functools.reduce(lambda text, name: text.replace(name, texts[name]), texts, word) for word in argv]

    def state() -> object:
        files = [path for path in (*user.home.rglob("*"), *user.layout.rglob("*")) if ".local" not in path.parts]
        changes = [request for request in user.registry.requests if request.method not in {"GET", "HEAD"}]
        return files, (user.layout / "index.json").read_bytes(), changes

    before = state()
    given = assertions.success(user.run(*words, **({"OCISTREAM_DRY_RUN": "1"} if is_variable else {})))
    assert given.out == user.run(*words, "--dry-run").out != b""
    assert "has no effect" not in given.err
    assert state() == before
    # The variable can disable the default for one run.
    assertions.success(user.run(*words, OCISTREAM_DRY_RUN="0"))
    assert state() != before


def test_verbose_overrides_a_quiet_default(user: Owner) -> None:
    user.configure("[defaults]", "quiet = true", "verbose = 0")
    assert "OCISTREAM_CONFIG: /nowhere" in user.run("config", "check", OCISTREAM_CONFIG="/nowhere").err
    assert "is valid" in user.run("config", "check", user.file, "-v", OCISTREAM_QUIET="1").err
    assert user.run("config", "check", user.file, OCISTREAM_QUIET="1").err == ""
    assert user.run("config", "check", user.file, "-q", OCISTREAM_VERBOSE="1").err == ""


def test_a_repeatable_option_has_a_list_or_words(user: Owner) -> None:
    arm, s390 = "linux/arm64", "linux/s390x"
    user.configure("[defaults]", f'platform = ["{arm}", "{s390}"]')
    shown = json.loads(user.run("config", "show", "pull", "--json").out)
    assert shown["defaults"]["defaults.pull"]["platform"]["value"] == [arm, s390]
    shown = json.loads(user.run("config", "show", "pull", "--json", OCISTREAM_PLATFORM=f"{s390} {arm}").out)
    assert shown["defaults"]["defaults.pull"]["platform"]["value"] == [s390, arm]


def test_a_platform_that_no_option_names_is_announced(user: Owner) -> None:
    line = "--platform linux/amd64 is set by"
    user.configure("[defaults]", 'platform = ["linux/amd64"]')
    argv = ["inspect", str(user.layout)]
    assert f"{line} {user.file} [defaults]" in user.run(*argv).err
    assert f"{line} OCISTREAM_PLATFORM" in user.run(*argv, OCISTREAM_PLATFORM="linux/amd64").err
    for option in ("--platform=linux/amd64", "--quiet"):
        assert line not in user.run(*argv, option).err


def test_a_variable_names_the_configuration_file(user: Owner, tmp_path: Path) -> None:
    user.configure("[defaults]", "jobs = 99")
    other = tmp_path / "other.toml"
    other.write_text('[defaults]\ncache = "kept"')
    assertions.success(user.pull(OCISTREAM_CONFIG=str(other)))
    assert (tmp_path / "kept").exists()
    # The flag overrides the variable, even if the command does not use the file.
    assertions.success(user.pull("--config", other, OCISTREAM_CONFIG=str(user.file)))
    assertions.success(user.run("verify", user.home / "app.tar", OCISTREAM_CONFIG=str(other)))
    assertions.failure(user.pull(), 2, str(user.file))
    user.file.unlink()
    other.write_text("[defaults]\njobs = 99")
    assertions.failure(user.pull("--config", other), 2, str(other))
    assertions.failure(user.pull(f"--config={other}"), 2, str(other))
    assertions.failure(user.pull(OCISTREAM_CONFIG="/nowhere"), 4, "OCISTREAM_CONFIG: /nowhere: no such file")
    assertions.failure(user.pull("--config=/nowhere"), 4, "--config /nowhere: no such file")


def test_a_json_log_format_by_default_applies_to_usage_errors(user: Owner) -> None:
    for argv in (["pull", "--no-such-option"], ["no-such-command"]):
        (line,) = assertions.json_lines(user.run(*argv, OCISTREAM_LOG_FORMAT="json").err)
        assert line["exit_code"] == 2
    assert user.run("no-such-command", "--log-format=text", OCISTREAM_LOG_FORMAT="json").err.startswith("ocistream:")
    user.configure("[defaults]", 'log-format = "json"')
    (line,) = assertions.json_lines(user.pull("--no-such-option").err)
    assert line["exit_code"] == 2
    user.configure("[defaults]", 'progress = "json"')
    (line,) = assertions.json_lines(user.pull("--jobs=99").err)
    assert line["exit_code"] == 2


# -- invalid defaults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "line", "flag"),
    [
        ("defaults", "jobs = 99", "--jobs=99"),
        ("defaults.pull", "jobs = 8.5", "--jobs=8.5"),
        ("defaults", 'jobs = "many"', "--jobs=many"),
        ("defaults.pull", "retries = -1", "--retries=-1"),
        ("defaults", 'progress = "loud"', "--progress=loud"),
        ("defaults.pull", 'limit-rate = "quick"', "--limit-rate=quick"),
        ("defaults", 'memory = "1KiB"', "--memory=1KiB"),
        ("defaults.pull", "connect-timeout = nan", "--connect-timeout=nan"),
        ("defaults", "max-requests-per-second = 0", "--max-requests-per-second=0"),
        ("defaults.pull", 'platform = ["windows"]', "--platform=windows"),
        ("defaults", 'compress = "brotli"', "--compress=brotli"),
        ("defaults.pull", 'log-format = "xml"', "--log-format=xml"),
        ("defaults.pull", "max-ratio = 0", "--max-ratio=0"),
    ],
)
def test_an_invalid_default_has_the_same_error_as_the_flag(user: Owner, line: str, flag: str, table: str) -> None:
    key = line.partition(" ")[0]
    said = user.pull(flag).err.splitlines()[0].removeprefix("ocistream: error: ")
    # The default is named by its variable or its place in the file, not by the option.
    said = said.removeprefix(f"Invalid value for '--{key}': ")
    user.configure(f"[{table}]", line)
    assertions.failure(user.pull(), 2, f"{user.file} [{table}] {key}: {said}")
    user.configure("")
    value = flag.partition("=")[2]
    assertions.failure(user.pull(**{variable_of(key): value}), 2, f"{variable_of(key)}: {said}")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["jbos = 3"], ["defaults: jbos is not an option of any command", "did you mean jobs?"]),
        (["no_referrers = true"], ["no_referrers is not an option of any command", "did you mean no-referrers?"]),
        (["[defaults.pul]"], ["defaults: pul is a table, not a command", "did you mean pull?"]),
        (["[defaults.pull]", "retry = 1"], ["defaults, pull: retry is not an option of `ocistream pull`", "retries?"]),
        (["[defaults.pull]", "deep = true"], ["defaults, pull: deep is not an option of `ocistream pull`"]),
        (["pull = 1"], ["defaults: pull is not an option of any command"]),
        (['no-referrers = "yes"'], ["defaults: no-referrers is neither true nor false"]),
        (["jobs = true"], ["defaults: jobs is neither a string nor a number"]),
        (["jobs = [8]"], ["defaults: jobs is neither a string nor a number"]),
        (["platform = [1979-05-27]"], ["defaults: platform is neither a string nor a number"]),
        (["verbose = true"], ["defaults: verbose is not a whole number"]),
    ],
)
def test_an_invalid_value_is_reported_with_the_file_and_the_key(
    user: Owner, lines: list[str], words: list[str]
) -> None:
    user.configure("[defaults]", *lines)
    assertions.failure(user.pull(), 2, str(user.file), *words)


@pytest.mark.parametrize(("variable", "value"), [("NO_REFERRERS", "perhaps"), ("VERBOSE", "-1"), ("VERBOSE", "x")])
def test_an_invalid_variable_is_named(user: Owner, variable: str, value: str) -> None:
    assertions.failure(user.pull(**{f"OCISTREAM_{variable}": value}), 2, f"OCISTREAM_{variable}: '{value}'")


@pytest.mark.uncounted
def test_a_default_of_an_option_without_defaults_is_refused_with_the_reason(user: Owner) -> None:
    for turn, name in enumerate(REASONS):
        user.configure(("[defaults]", "[defaults.push]")[turn % 2], f'{name} = "x"')
        assertions.failure(user.push(), 2, f": {name} has no default", REASONS[name])


def test_variables_of_options_without_defaults_are_reported(user: Owner) -> None:
    refused = {variable_of(name): "nonsense" for name in REASONS if not name.endswith("username") and name != "config"}
    result = assertions.success(user.pull("--progress=none", **refused))
    for name, value in refused.items():
        assert result.err.count(f"the variable {name} has no effect: ") == 1
        assert value not in result.err
    assert f"OCISTREAM_PASSWORD_FILE has no effect: {REASONS['password-file']}" in result.err


def test_the_format_of_pull_is_not_that_of_inspect(user: Owner) -> None:
    user.configure("[defaults]", 'format = "docker-archive"')
    result = assertions.success(user.run("inspect", user.layout, OCISTREAM_FORMAT="docker-archive"))
    assert result.out.startswith(b"app  image")
    assert UNUSED not in result.err


UNUSED = "has no effect"


def test_a_misspelt_variable_is_named_with_the_right_one(user: Owner) -> None:
    result = user.pull(OCISTREAM_PASWORD="secret", OCISTREAM_JBOS="3", OCISTREAM_OTHER_THING="x", OCISTREAM_jobs="3")
    assertions.success(result)
    assert "the variable OCISTREAM_PASWORD has no effect: did you mean OCISTREAM_PASSWORD?" in result.err
    assert "the variable OCISTREAM_JBOS has no effect: did you mean OCISTREAM_JOBS?" in result.err
    assert "the variable OCISTREAM_jobs has no effect: did you mean OCISTREAM_JOBS?" in result.err
    assert "the variable OCISTREAM_OTHER_THING has no effect: ocistream has no such setting" in result.err
    assert "secret" not in result.err


def test_an_unused_variable_is_reported_as_other_lines_are(user: Owner) -> None:
    assert user.pull("-q", OCISTREAM_JBOS="3").err == ""
    assert user.pull(OCISTREAM_QUIET="1", OCISTREAM_JBOS="3").err == ""
    assert UNUSED in user.pull("-v", OCISTREAM_QUIET="1", OCISTREAM_JBOS="3").err
    lines = assertions.json_lines(user.pull("--log-format=json", OCISTREAM_JBOS="3").err)
    assert UNUSED in lines[0]["message"]
    for argv in (["config", "check"], ["config", "show"], ["verify", str(user.layout)]):
        result = assertions.success(user.run(*argv, OCISTREAM_JBOS="3"))
        assert result.err.count(UNUSED) == 1


def test_variables_with_a_use_are_not_reported(user: Owner) -> None:
    user.configure(f'[registry."{user.registry.host}"]', 'credentials = "env:OCISTREAM_CI"')
    used = {
        # Used by the registry's table, other commands, the tests, and Kubernetes for a Service named "ocistream".
        "OCISTREAM_CI_USERNAME": "me",
        "OCISTREAM_CI_PASSWORD": "x",
        "OCISTREAM_DEEP": "1",
        "OCISTREAM_SRC_USERNAME": "me",
        "OCISTREAM_FUZZ_SEED": "7",
        "OCISTREAM_SERVICE_HOST": "10.0.0.1",
        "OCISTREAM_PORT": "tcp://10.0.0.1:5000",
        "OCISTREAM_PORT_5000_TCP_ADDR": "10.0.0.1",
        "OCISTREAM_CACHE_SERVICE_PORT_HTTP": "5000",
        "OCISTREAM_EMPTY": "",
    }
    for result in (user.pull(**used), user.run("config", "show", **used)):
        assertions.success(result)
        assert UNUSED not in result.err


def test_options_of_other_commands_are_accepted(user: Owner) -> None:
    user.configure("[defaults]", 'cache = "x"', "deep = true", "[defaults.verify]", "deep = true")
    assertions.success(user.push())


def test_help_works_with_an_invalid_file(user: Owner) -> None:
    user.configure("[defaults")
    assertions.success(user.run("pull", "--help"))
    assertions.success(user.run("--version"))
    assertions.failure(user.run("verify", user.layout), 2, str(user.file), "is not TOML")


def test_shell_completion_reads_no_file(user: Owner) -> None:
    user.configure("[defaults")
    line = {"COMP_WORDS": "ocistream pull --plat", "COMP_CWORD": "2"}
    result = assertions.success(user.run(_OCISTREAM_COMPLETE="bash_complete", **line))
    assert (result.lines(), result.err) == (["plain,--platform"], "")


# -- registries ---------------------------------------------------------------------------------------------------


def test_the_configuration_names_the_source_of_a_password(start: Start, layout: Layout, user: Owner) -> None:
    guarded = start(auth=Basic("me", "right"))
    seed(layout, small_image(layout), guarded.host, "app", "1", headers=basic("me", "right"))
    argv = ["pull", f"{guarded.host}/app:1", "-o", str(user.home / "x.tar")]
    env = {"CI_USERNAME": "me", "CI_PASSWORD": "right"}
    assertions.failure(user.run(*argv, **env), 3)
    assert f"{guarded.host}: asking anonymously: no credentials were found" in user.run(*argv, "-v", **env).err
    user.configure(f'[registry."{guarded.host}"]', 'credentials = "env:CI"')
    result = assertions.success(user.run(*argv, "-v", **env))
    assert "CI_USERNAME, which the configuration names" in result.err
    # Without the variables, other sources are used, and this is reported.
    lacking = f"{guarded.host}: env:CI of the configuration has no credential for it"
    assert lacking in user.run(*argv).err
    assert lacking not in result.err
    user.file.rename(user.home / "other.toml")
    env["OCISTREAM_CONFIG"] = str(user.home / "other.toml")
    assertions.success(user.run(*argv, **env))
    env["CI_PASSWORD"] = "wrong"
    failed = user.run(*argv, **env)
    assertions.failure(failed, 3, "from CI_USERNAME, which the configuration names: they take precedence")
    assert "wrong" not in failed.err


def test_the_configuration_sets_the_profile_of_a_registry(start: Start, user: Owner) -> None:
    registry = start(Fault(refusal(405), "PATCH", times=None))
    argv = ["push", "-i", str(user.layout), f"{registry.host}/app:1"]
    # This profile states that the registry does not accept a PUT with a body, so the client does not try it.
    user.configure(f'[registry."{registry.host}"]', 'profile = "artifactory"')
    assertions.failure(user.run(*argv), 7, "405")
    user.configure("")
    assertions.success(user.run(*argv))


# -- documentation ------------------------------------------------------------------------------------------------


def with_default() -> dict[str, list[str]]:
    """Return every option that may have a default, with the commands that have it.

    --format of `inspect` differs from that of `pull`: it decides what is printed.
    """
    found: dict[str, list[str]] = {}
    for name in commands():
        if name != "config":
            for key in (option.removeprefix("--") for option in options(name) if option.startswith("--")):
                if key not in {"help", *REASONS} and (name, key) != ("inspect", "format"):
                    found.setdefault(key, []).append(name)
    return found


def test_the_page_lists_every_option_and_its_variable() -> None:
    # `config` and `completion` copy nothing and print no messages.
    count = len(commands()) - 2
    expected = [
        f"| `{key}` | `{variable_of(key)}` | {', '.join(names) if len(names) < count else 'all'} |"
        for key, names in with_default().items()
    ]
    expected.append("| (`--config`) | `OCISTREAM_CONFIG` | all |")
    text = PAGE.read_text()
    missing = [line for line in expected if line not in text]
    assert missing == []
    assert text.count("| `OCISTREAM_") == len(expected)


def test_options_without_defaults_exist() -> None:
    found = {option.removeprefix("--") for name in commands() for option in options(name)}
    assert set(REASONS) <= found


def test_no_variable_of_an_option_has_another_meaning() -> None:
    taken = {f"OCISTREAM_{side}{word}" for side in ("", "SRC_", "DEST_") for word in ("USERNAME", "PASSWORD")}
    assert taken.isdisjoint(map(variable_of, with_default()))
