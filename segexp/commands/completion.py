"""`segexp completion SHELL`, and what its scripts call."""

from collections.abc import Sequence

from segexp.catalogue import nearest
from segexp.commands.shared import parser_of
from segexp.errors import DONE, UsageError


def command(words: Sequence[str]) -> int:
    """`segexp completion SHELL`."""
    from segexp.launch.completion import SHELLS, script

    epilog = 'bash: eval "$(segexp completion bash)"   zsh: eval "$(segexp completion zsh)"   '
    epilog += "fish: segexp completion fish | source"
    parser = parser_of("completion", "Print the completion script of a shell.", epilog)
    parser.add_argument("shell", metavar="bash|zsh|fish")
    options = parser.parse_args(list(words))
    if options.shell not in SHELLS:
        raise UsageError(f"unknown shell '{options.shell}'{nearest(options.shell, SHELLS)}")
    print(script(options.shell), end="")
    return DONE


def candidates(words: Sequence[str]) -> int:
    """Called by the completion scripts: the current word, then the words before it."""
    from segexp.launch.completion import complete

    current, *before = words or [""]
    print("\n".join(complete(before, current)))
    return DONE
