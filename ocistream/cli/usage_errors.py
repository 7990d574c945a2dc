"""Explain wrong command lines: two tables say what ocistream has instead of the words of other tools.

The tools are skopeo, crane, regctl, oras, docker and podman. Only an error imports this module.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

import click

from ocistream.cli.entry_point import COMMANDS, EXTRA_ARGUMENT, PROGRAM, LazyGroup, load_command
from ocistream.cli.parameter_types import describe_missing_key
from ocistream.cli.sides import SIDES, SYNC_FILE_TABLE
from ocistream.oci.reference import printable

if TYPE_CHECKING:
    from collections.abc import Collection

#: What to do about arguments that a command does not take, after the command with the arguments that it takes.
_EXTRA_ARGUMENT_NOTES: Final = {
    "copy": ", with one archive or image as SRC; `ocistream push -i 'app.*.tar' IMAGE` combines archives",
    "serve": ", with one layout directory or archive",
    "sync": ", with one TOML file; for two locations, use `ocistream copy SRC DST`",
}
#: Options of other tools; an option of ours that the command must have, the command, or ""; and what to do. {0} is the
#: side.
_OPTIONS: Final = (
    ("creds", "username", "use --{0}username, and --{0}password-file or --{0}password-stdin for the password"),
    ("password", "username", "a process list shows command lines: use --{0}password-file or --{0}password-stdin"),
    ("no-creds", "authfile", "use --{0}authfile with a file that has no login for this registry"),
    ("registry-config", "authfile", "use --{0}authfile FILE"),
    ("tls-verify", "insecure", "--{0}insecure disables certificate verification, --{0}plain-http uses HTTP"),
    ("ca-file cacert", "ca-cert", "use --{0}ca-cert FILE"),
    ("cert-file", "client-cert", "use --{0}client-cert FILE"),
    ("key-file", "client-key", "use --{0}client-key FILE"),
    ("override-os override-arch override-variant", "platform", "use --platform OS/ARCH[/VARIANT]"),
    ("os arch variant platforms", "platform", "use --platform OS/ARCH[/VARIANT]"),
    ("p", "platform", "use --platform for a platform, and --password-file or --password-stdin for a password"),
    ("p", "listen", "use --listen HOST:PORT; for a password, use --password-file"),
    ("p", "password-stdin", "a process list shows command lines: use --password-file or --password-stdin"),
    ("multi-arch all-platforms", "platform", "use --platform all, or --platform OS/ARCH for one platform"),
    ("a", "all-tags", "use --all for all platforms, --all-tags for all tags"),
    ("all-tags", "to", "use --to HOST[/PREFIX] to push every image of the archive"),
    ("a", "to", "omit the option: all platforms are pushed; --to HOST[/PREFIX] pushes every image of the archive"),
    ("all-tags", "output", "use `ocistream copy --all-tags HOST/REPO DST`"),
    ("a", "output", "use --all for all platforms; `ocistream copy --all-tags HOST/REPO DST` copies all tags"),
    ("tag tags t", "to", "the tag is a part of IMAGE: write HOST/REPOSITORY:TAG"),
    ("all a", "logout", "run `ocistream logout REGISTRY` for each registry that ~/.docker/config.json lists"),
    ("get-login", "", "no command prints the user name: read ~/.docker/config.json, or ask its credential helper"),
    ("source", "input", "use -i PATH for an archive or a layout; `ocistream copy SRC DST` copies from a registry"),
    ("parallel concurrency image-parallel-copies j", "jobs", "use --jobs N"),
    ("retry-times retry max-retries", "retries", "use --retries N"),
    ("retry-delay", "retries", "omit the option: the pause between retries grows by itself"),
    ("command-timeout timeout", "stall-timeout", "use --stall-timeout SECONDS, or `timeout TIME ocistream ...`"),
    ("oci-layout", "", "omit the option, and write the location as oci:DIR[:NAME]"),
    ("shared-blob-dir", "cache", "use --cache DIR"),
    ("cache-path c", "cache", "use --cache DIR"),
    ("compress compress-format compression-format", "compress", "use --compress gzip|zstd|none[:LEVEL]"),
    ("compress-level compression-level", "compress", "use --compress gzip:LEVEL or --compress zstd:LEVEL"),
    ("decompress", "compress", "use --compress none"),
    ("port p address addr bind", "listen", "use --listen HOST:PORT, such as --listen 127.0.0.1:5001"),
    ("check", "config", "use `ocistream config check [FILE]`"),
    ("require-signature", "key", "use --key FILE: each image must have a signature by this key"),
    ("key", "require-signature", "use --require-signature FILE"),
    ("disable-content-trust", "", "omit the option: ocistream does not use Docker Content Trust"),
    ("signature-policy policy", "", "omit the option: [trust] in ocistream's configuration file says who must sign"),
    ("force-compression", "compress", "omit the option: --compress recompresses layers that use another format"),
    ("format f", "input", "omit the option: the format of the archive is detected; manifests are pushed byte for byte"),
    ("format f", "deep", "omit the option: the format of an archive is detected; --json prints a JSON document"),
    (
        "format f",
        "via",
        "the location says the format: oci:DIR, oci-archive:FILE or docker-archive:FILE; manifests are not converted",
    ),
    ("additional-tag", "", "run the command again for each name: blobs that exist are not sent again"),
    (
        "preserve-digests",
        "",
        "omit the option: manifests are copied byte for byte; a notice names an image of `docker save` that changes",
    ),
    ("remove-signatures", "no-referrers", "use --no-referrers"),
    (
        "referrers digest-tags recursive r include-external force-recursive",
        "no-referrers",
        "omit the option: referrers are copied, unless --no-referrers is given",
    ),
    (
        "sign-by sign-by-sigstore sign-by-sigstore-private-key sign-passphrase-file sign-identity",
        "",
        "omit the option: sign with cosign or notation; signatures are copied with their image",
    ),
    (
        "encryption-key encrypt-layer decryption-key",
        "",
        "omit the option: layers are copied as they are, neither encrypted nor decrypted",
    ),
    ("no-tags n", "raw-config", "omit the option: `ocistream tags HOST/REPO` lists the tags"),
    ("insecure-policy", "", "omit the option: no signature policy is checked"),
    ("digestfile iidfile image-refs", "result", "use --result FILE; the digest is also printed on stdout"),
    ("output o", "via", "DST is the output, such as DST.tar or oci:DIR"),
    ("output o", "input", "push writes to a registry: write IMAGE, or --to HOST[/PREFIX]"),
    ("input i", "via", "SRC is the input, such as SRC.tar or oci:DIR"),
    ("input i", "output", "pull reads from registries: write the images, or --images FILE for a list of them"),
    ("input i", "", "omit the option, and write the archive or layout as an argument"),
    ("no-tty no-progress disable-progress", "progress", "use --progress none"),
    ("debug d verbosity log-level", "verbose", "use -v, or -vv for tracebacks too"),
    ("silent s", "quiet", "use -q"),
    ("src dest scoped src-yaml", "shard", "list the copies in a TOML file: `ocistream sync FILE`"),
    ("tags all-tags", "shard", "write tags = [...] in [[sync]] of the sync file; without it, all tags are copied"),
    ("platform all", "shard", 'write platforms = [...] or platforms = "all" in [[sync]] of the sync file'),
    ("no-referrers", "shard", "write referrers = false in [[sync]] of the sync file"),
    ("require-signature", "shard", "write [trust] in the configuration file, which is not the sync file"),
    ("keep-going skip-missing", "shard", "omit the option: a failed image does not stop the others"),
)
#: Commands of other tools: what to run, and a note after a semicolon.
_COMMANDS: Final = {
    "cp": "copy SRC DST",
    "image": "copy SRC DST; `ocistream inspect` and `ocistream digest` show an image",
    "tag": "copy HOST/REPO:TAG HOST/REPO:NEW; `ocistream tags HOST/REPO` lists tags",
    "retag": "copy HOST/REPO:TAG HOST/REPO:NEW; no blob is sent again",
    **dict.fromkeys(
        ("append", "edit", "flatten", "index", "mod", "mutate", "rebase"),
        "copy SRC DST; no command changes the content of an image",
    ),
    "save": "pull -o FILE IMAGE",
    "export": "pull -o FILE IMAGE",
    "download": "pull -o FILE IMAGE",
    "load": "push -i FILE IMAGE",
    "import": "push -i FILE IMAGE",
    "upload": "push -i FILE IMAGE",
    "ls": "tags HOST/REPO",
    "list": "tags HOST/REPO",
    "list-tags": "tags HOST/REPO",
    "repo": "tags HOST/REPO",
    "catalog": "tags HOST/REPO; no command lists the repositories of a registry",
    "resolve": "digest IMAGE",
    "manifest-digest": "digest LOCATION",
    "history": "inspect IMAGE",
    "images": "inspect DIR",
    "manifest": "inspect --raw IMAGE",
    "discover": "inspect IMAGE; it lists the referrers",
    "validate": "verify PATH",
    "delete": "rm HOST/REPO:TAG",
    "rmi": "rm DIR NAME; `ocistream rm HOST/REPO:TAG` deletes from a registry",
    "remove": "rm DIR NAME; `ocistream rm HOST/REPO:TAG` deletes from a registry",
    "prune": "gc DIR",
    "auth": "login REGISTRY",
    "registry": "serve DIR; `ocistream login REGISTRY` stores a credential",
}
#: Names of the sides in other tools.
_SIDES: Final = {"src": "src", "dest": "dest", "from": "src", "to": "dest"}


def suggest_command(name: str) -> str | None:
    """Return what to run instead of another tool's command, or None."""
    command, mark, note = _COMMANDS.get(name, "").partition("; ")
    return f"use `ocistream {command}`{mark}{note}" if command else None


def suggest_option(option_name: str, command: str, known: Collection[str]) -> str | None:
    """Return what to use instead of another tool's option, for a command with the options `known`; or None."""
    name = option_name.lstrip("-")
    prefix, _, rest = name.partition("-")
    side = _SIDES.get(prefix, "")
    for wanted, own_side in ((name, ""), (rest, f"{side}-")):
        for names, needed, hint in _OPTIONS:
            if wanted in names.split() and (needed in {"", command} or f"--{needed}" in known):
                has_side = bool(own_side) and f"--{own_side}{needed}" in known
                return hint.format(own_side if has_side else "")
        if not side:
            return None
    return f"use --{side}-{rest}" if f"--{side}-{rest}" in known else None


def describe_usage_error(error: click.ClickException) -> tuple[str, str | None]:
    """Return the message and the hint of an error that click raised."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption) and context is not None:
        hint = _suggest_known_option(error.option_name, context)
        if hint is not None:
            # Without the similar names that click appends: they would contradict the hint.
            return f"No such option {printable(error.option_name)!r}.", hint
    # Some messages of click have a line for each choice.
    message = " ".join(error.format_message().split())
    hint = f"see `{PROGRAM if context is None else context.command_path} --help`"
    if context is not None and message.startswith(EXTRA_ARGUMENT):
        arguments = [piece for piece in context.command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
        usage = " ".join([context.command_path, *arguments])
        hint = f"write `{usage}`{_EXTRA_ARGUMENT_NOTES.get(context.command.name or '', '')}"
    elif context is not None and isinstance(error, click.MissingParameter):
        hint = describe_missing_key(context.params.get("require_signature", ())) or hint
    return message, hint


def _suggest_known_option(option_name: str, context: click.Context) -> str | None:
    """Return what to write instead of an unknown option of a command; or None."""
    is_global = isinstance(context.command, LazyGroup)
    command = load_command("copy") if is_global else context.command
    known = {name: parameter for parameter in command.params for name in parameter.opts}
    if hint := suggest_option(option_name, command.name or "", known):
        return hint
    side, dash, name = option_name.removeprefix("--").partition("-")
    if dash and side in SIDES and (own := known.get(f"--{name}")):
        if command.name != "sync":
            return f"{context.command_path} reaches one registry: use --{name}"
        value = "true" if getattr(own, "is_flag", False) else "..."
        return f"write {name} = {value} in {SYNC_FILE_TABLE}; --{name} is for all registries"
    others = _find_commands_with(option_name)
    if is_global:
        global_options = [one for parameter in context.command.params for one in parameter.opts]
        close = difflib.get_close_matches(option_name, global_options, 1)
        if close and not others:
            return f"did you mean {close[0]}?"
        return f"options follow the command: see `{PROGRAM} COMMAND --help`"
    return f"{option_name} is an option of {', '.join(others)}" if others else None


def _find_commands_with(option_name: str) -> list[str]:
    """Return the commands that have an option."""
    commands = {name: load_command(name) for name in COMMANDS}
    return [name for name, command in commands.items() if any(option_name in one.opts for one in command.params)]
