"""The entry point `segexp COMMAND ...`: imports the module of the command, and nothing else."""

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import segexp
from segexp.commands import COMMANDS, load_plugins, module_of, without_plugins
from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED, PrintableStream, UsageError, one_line

_HELP = """\
segexp: which activation functions should my segmentation network use?

usage: segexp <command> [...]

commands:
{commands}

examples:
  segexp train activation=arctan loss=dice
  segexp train -m activation=sigmoid,arctan loss=dice,bce 'seed=range(5)'
  segexp train dataset=folder dataset.root=~/my_images trainer.epochs=20
  segexp train --plugin my_parts.py hidden_activation=mine
  segexp list activations
  segexp predict outputs/mine ~/new_images -o masks

`segexp <command> --help` shows the arguments of a command.
Exit codes: 0 done, 1 a run failed or diverged, 2 bad usage, 130 interrupted.
"""

HELP = _HELP.format(commands="\n".join(f"  {name:12} {summary}" for name, summary in COMMANDS.items()))
"""What `segexp --help` prints."""


_CURES = dict.fromkeys(("ENOSPC", "EDQUOT"), "; free some space, then repeat the command")
_CURES |= dict.fromkeys(("EACCES", "EPERM", "EROFS"), "; change its permissions, or choose another place")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    typed = list(sys.argv[1:] if argv is None else argv)
    words, named = (typed, []) if typed[:1] == ["__complete"] else without_plugins(typed)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE if words else REFUSED
    if words[0] in ("-V", "--version"):
        print(f"segexp {segexp.__version__}")
        return DONE
    if words[0] not in (*COMMANDS, "__complete"):
        from segexp.registry import nearest

        return _refuse(f"unknown command '{words[0]}'{nearest(words[0], COMMANDS)}")
    stdout, sys.stdout = sys.stdout, PrintableStream(sys.stdout)
    try:
        if words[0] == "__complete":
            from segexp.commands.completion import candidates

            return candidates(words[1:])
        from segexp.registry.plugins import no_exit

        _check_current_folder()
        _check_encodable(typed)
        load_plugins(words, named)
        with no_exit():
            code: int = importlib.import_module(module_of(words[0])).command(words[1:])
        return code
    except UsageError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("\nsegexp: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. Python would report it again when it closes stdout.
        sys.stderr.close()
        return DONE
    except OSError as error:
        # A folder that cannot be made, a full disk, a file that has gone: the system's message names the cause.
        from segexp.registry.plugins import in_plugin

        where = f": {error.filename}" if error.filename else ""
        cure = _CURES.get(errno.errorcode.get(error.errno or 0, ""), "")
        return _refuse(in_plugin(error) or f"{error.strerror or error}{where}{cure}")
    except Exception as error:
        from segexp.registry.plugins import explained, in_plugin

        _refuse(explained(error))
        return REFUSED if in_plugin(error) else FAILED
    finally:
        sys.stdout = stdout


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        where = os.environ.get("PWD", "")
        raise UsageError(f"the current folder {where} has been deleted: change to another one with cd") from None


def _check_encodable(words: Sequence[str]) -> None:
    """A lone surrogate, which only a program can give, is in no name of a file."""
    for word in words:
        try:
            os.fsencode(word)
        except UnicodeEncodeError as error:
            raise UsageError(f"{word}: character {error.start + 1} cannot be encoded: correct it") from None


def _refuse(message: str) -> int:
    print(f"segexp: {one_line(message)}", file=sys.stderr)
    return REFUSED
