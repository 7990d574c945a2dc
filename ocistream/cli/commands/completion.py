"""`ocistream completion`: print the completion script of a shell, and answer that script's requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The variable that click uses for a program of this name.
COMPLETION_VARIABLE: Final = "_OCISTREAM_COMPLETE"
_PROGRAM: Final = "ocistream"
#: Replacements in the scripts of zsh and fish: these complete file names from the whole word, but a file name does not
#: begin with `--option=`.
_FILE_COMPLETION_FIXES: Final = {
    "_path_files": """[[ "$PREFIX" == --*=* ]] && compset -P 1 '*='; _path_files""",
    "__fish_complete_path $metadata[2]": (
        "set -l parts (string match -r '^(--[^=]+=)(.*)$' -- $metadata[2]); "
        "and printf '%s\\n' $parts[2](__fish_complete_path $parts[3]); or __fish_complete_path $metadata[2]"
    ),
}
_SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS), metavar="bash|zsh|fish")
def completion(shell: str) -> None:
    """Print the script that completes commands, options and files in a shell.

    The script runs the `ocistream` in PATH, so it stays valid after an update.

    \b
    ocistream completion bash \\
      > ~/.local/share/bash-completion/completions/ocistream
    ocistream completion zsh > ~/.zsh/completions/_ocistream  # in fpath
    ocistream completion fish > ~/.config/fish/completions/ocistream.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None, shell  # noqa: S101 - click has these three
    # Not `source()`, which first runs bash to check its version.
    script = completion_class(click.Group(), {}, _PROGRAM, COMPLETION_VARIABLE)
    text = script.source_template % script.source_vars()
    for original, replacement in _FILE_COMPLETION_FIXES.items():
        text = text.replace(original, replacement)
    click.echo(text)


def print_completions(group: click.Group, instruction: str) -> int:
    """Answer a completion script, which passes the typed words in the environment; return the exit code.

    As click does it, except for `--option=value`: bash passes that as three words and replaces only the last one. zsh
    and fish pass and replace one word.
    """
    shell, _, action = instruction.partition("_")
    completion_class = get_completion_class(shell)
    if completion_class is None or action != "complete":
        return 1
    script = completion_class(group, {}, _PROGRAM, COMPLETION_VARIABLE)
    words, word = _join_option_value(*script.get_completion_args())
    option, equals, _ = word.partition("=")
    prefix = f"{option}=" if shell != "bash" and equals and option.startswith("--") else ""
    items = script.get_completions(words, word)
    for item in items:
        item.value = prefix + item.value
    click.echo("\n".join(map(script.format_completion, items)))
    return 0


def _join_option_value(words: list[str], word: str) -> tuple[list[str], str]:
    """Join `--option`, `=` and the beginning of its value, which bash passes as separate words."""
    if word == "=" and words and words[-1].startswith("--"):
        return words[:-1], f"{words[-1]}="
    if len(words) > 1 and words[-1] == "=" and words[-2].startswith("--"):
        return words[:-2], f"{words[-2]}={word}"
    return words, word


def complete_commands(table: Iterable[tuple[str, str]], prefix: str) -> list[CompletionItem[str]]:
    """Return the commands of the table (name and help line) that begin with `beginning`.

    click would import every command to list them.
    """
    return [CompletionItem(name, help=help_line) for name, help_line in table if name.startswith(prefix)]
