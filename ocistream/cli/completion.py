"""`ocistream completion`: what makes a shell complete this command line; and the answers to that shell.

The scripts are click's. They run `ocistream` without arguments, with `_OCISTREAM_COMPLETE` in its environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["VARIABLE", "answer", "commands_like", "completion", "know_paths"]

#: As click has it for a program of this name.
VARIABLE: Final = "_OCISTREAM_COMPLETE"
_PROGRAM: Final = "ocistream"
_SHELLS: Final = ("bash", "zsh", "fish")
#: What of a metavar says that a file or directory may stand there. (END, SRC and DST may be images as well.)
_PATHS: Final = ("DIR", "DST", "END", "FILE", "PATH", "SRC")


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
    script = kind(click.Group(), {}, _PROGRAM, VARIABLE)
    click.echo(script.source_template % script.source_vars())


def answer(group: click.Group, instruction: str) -> int:
    """Answer a shell's script, which has put what is typed into the environment. Gives the exit code."""
    return shell_complete(group, {}, _PROGRAM, VARIABLE, instruction)


def commands_like(table: Iterable[tuple[str, str]], beginning: str) -> list[CompletionItem[str]]:
    """Give those of the commands (name and line) that begin so."""
    return [CompletionItem(name, help=line) for name, line in table if name.startswith(beginning)]


def know_paths(command: click.Command) -> None:
    """Say of a command's parameters where files may stand: to us they are text, since they may be other things too."""
    for parameter in command.params:
        metavar = parameter.metavar or ""
        if parameter.type is click.STRING and any(word in metavar for word in _PATHS):
            parameter.type = click.Path()
