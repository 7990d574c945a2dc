"""`ocistream completion`: print the completion script of a shell, and answer that script's requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["COMPLETION_VARIABLE", "complete_commands", "completion", "mark_path_parameters", "print_completions"]

#: As click has it for a program of this name.
COMPLETION_VARIABLE: Final = "_OCISTREAM_COMPLETE"
_PROGRAM: Final = "ocistream"
#: How zsh and fish look for files: such as begin with all of the word, of which `--option=` is no file's beginning.
_FILE_COMPLETION_FIXES: Final = {
    "_path_files": """[[ "$PREFIX" == --*=* ]] && compset -P 1 '*='; _path_files""",
    "__fish_complete_path $metadata[2]": (
        "set -l parts (string match -r '^(--[^=]+=)(.*)$' -- $metadata[2]); "
        "and printf '%s\\n' $parts[2](__fish_complete_path $parts[3]); or __fish_complete_path $metadata[2]"
    ),
}
_SHELLS: Final = ("bash", "zsh", "fish")
#: What of a metavar says that a file or directory may stand there. (END, SRC and DST may be images as well.)
_PATH_METAVARS: Final = ("DIR", "DST", "END", "FILE", "PATH", "SRC")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS), metavar="bash|zsh|fish")
def completion(shell: str) -> None:
    """Print the script that makes a shell complete commands, options and files.

    The script asks the `ocistream` that is in PATH, so that it need not be made anew when that one changes.

    \b
    ocistream completion bash > ~/.local/share/bash-completion/completions/ocistream
    ocistream completion zsh > ~/.zsh/completions/_ocistream     # a directory of fpath, before compinit
    ocistream completion fish > ~/.config/fish/completions/ocistream.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, shell  # noqa: S101 - click has these three
    # Not its `source`, which first runs a bash to see its version.
    script = kind(click.Group(), {}, _PROGRAM, COMPLETION_VARIABLE)
    text = script.source_template % script.source_vars()
    for theirs, ours in _FILE_COMPLETION_FIXES.items():
        text = text.replace(theirs, ours)
    click.echo(text)


def print_completions(group: click.Group, instruction: str) -> int:
    """Answer a shell's script, which has put what is typed into the environment. Gives the exit code.

    As click does it, but for `--option=value`: bash hands that over in three words and takes the last one back, the
    others in one, in the place of which they put what is answered.
    """
    shell, _, what = instruction.partition("_")
    kind = get_completion_class(shell)
    if kind is None or what != "complete":
        return 1
    script = kind(group, {}, _PROGRAM, COMPLETION_VARIABLE)
    words, word = _join_option_value(*script.get_completion_args())
    option, equals, _ = word.partition("=")
    before = f"{option}=" if shell != "bash" and equals and option.startswith("--") else ""
    items = script.get_completions(words, word)
    for item in items:
        item.value = before + item.value
    click.echo("\n".join(map(script.format_completion, items)))
    return 0


def _join_option_value(words: list[str], word: str) -> tuple[list[str], str]:
    """Put `--option`, `=` and the beginning of its value together."""
    if word == "=" and words and words[-1].startswith("--"):
        return words[:-1], f"{words[-1]}="
    if len(words) > 1 and words[-1] == "=" and words[-2].startswith("--"):
        return words[:-2], f"{words[-2]}={word}"
    return words, word


def complete_commands(table: Iterable[tuple[str, str]], beginning: str) -> list[CompletionItem[str]]:
    """Give those of the commands (name and line) that begin so."""
    return [CompletionItem(name, help=line) for name, line in table if name.startswith(beginning)]


def mark_path_parameters(command: click.Command) -> None:
    """Say of a command's parameters where files may stand: to us they are text, since they may be other things too."""
    for parameter in command.params:
        metavar = parameter.metavar or ""
        if parameter.type is click.STRING and any(word in metavar for word in _PATH_METAVARS):
            parameter.type = click.Path()
