"""`segexp completion SHELL`, and the candidates that its scripts ask for: read from the parsers of the commands."""

import argparse
import dataclasses
import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from segexp.commands import COMMANDS, Overrides, Parser, Values, parser_of, without_plugins
from segexp.errors import DONE, UsageError
from segexp.registry import Option, Registry, fields_of, nearest
from segexp.registry.plugins import from_environment, parts_in

PATHS = 3
"""Exit code of `segexp __complete` where the shell may offer directories as well."""


def complete(words: Sequence[str], current: str) -> tuple[list[str], bool]:
    """Candidates for the word ``current`` after ``words`` (without "segexp"), and whether a path may stand there."""
    words, named = without_plugins(words)
    if "" in named:  # the word after --plugin
        return sorted(glob.glob(f"{glob.escape(current)}*.py")), True
    if not words:
        return _starting((*COMMANDS, "--help", "--version"), current), False
    with _parts_of([*named, *from_environment()]):
        return _completed(words, current)


@contextmanager
def _parts_of(named: Sequence[str]) -> Iterator[None]:
    """Have entries of plugins in the registries, made from their text: nothing of a plugin is executed."""
    if not named:
        yield
        return
    from segexp.config import CODE_GROUPS, SHARED_OPTIONS
    from segexp.data.image_set import ADAPTERS, DatasetConfig
    from segexp.records.scores import OWN_SCORES
    from segexp.registry import adding_for

    registries: dict[str, Registry[Any]] = {**CODE_GROUPS, "dataset": ADAPTERS, "metrics.scores": OWN_SCORES}
    with adding_for("completion"):
        for part in (part for name in named for part in parts_in(name)):
            own = [Option(name, str, "", words) for name, words in part.options.items()]
            config = dataclasses.make_dataclass("Own", [(o.name, str, "") for o in own], bases=(DatasetConfig,))
            facts = {"name": part.name, "aliases": dict.fromkeys(part.aliases), "config": config, "preset": config()}
            entry = SimpleNamespace(**facts, options=(*SHARED_OPTIONS.get(part.group, ()), *own), make=config)
            with suppress(KeyError, UsageError):  # another decorator, a name that is taken
                registries[part.group].add(part.name, entry)
    try:
        yield
    finally:
        for registry in registries.values():
            registry.remove_plugin("completion")


def _completed(words: Sequence[str], current: str) -> tuple[list[str], bool]:
    if words[0] not in COMMANDS:
        return [], False
    parser = parser_of(words[0])
    action, before = _argument(parser, words[1:])
    if current.startswith("-") and (action is None or not action.option_strings):
        return _starting((flag for a in parser._actions for flag in a.option_strings if flag != "-h"), current), False
    if action is None:
        return [], False
    metavar = str(action.metavar)
    is_path = re.search("DIR|FILE|PATH|RUN", metavar) is not None
    values: Values = action.complete if action.choices is None else action.choices  # type: ignore[attr-defined]
    if isinstance(values, Overrides):
        return _overrides(words[1:], current, values.keys), is_path
    offered = [str(value) for value in (values() if callable(values) else values)]
    if "," not in metavar or not action.option_strings:
        return [value for value in _starting(offered, current) if value not in before], is_path
    done, comma, start = current.rpartition(",")
    taken = [*done.split(","), *(["all"] if comma else [])]
    return [f"{done}{comma}{value}" for value in _starting(offered, start) if value not in taken], is_path


def _argument(parser: Parser, words: Sequence[str]) -> tuple[argparse.Action | None, list[str]]:
    """The argument that the word after ``words`` belongs to, and the words that it has already."""
    options = {flag: action for action in parser._actions for flag in action.option_strings}
    typed: list[str] = []
    value_of: argparse.Action | None = None
    for word in words:
        if value_of is not None:
            value_of = None
        elif word in options:
            value_of = options[word] if options[word].nargs is None else None
        elif not word.startswith("-"):
            typed.append(word)
    if value_of is not None:
        return value_of, []
    for place, action in enumerate(action for action in parser._actions if not action.option_strings):
        if len(typed) <= place or action.nargs not in (None, "?"):
            return action, typed[place:]
    return None, []


def _starting(candidates: Iterable[str], start: str) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(start)]


def _overrides(words: Sequence[str], current: str, prefixes: tuple[str, ...]) -> list[str]:
    """Keys of the configuration, a section at a time; after the "=" their values, several after commas."""
    key, equals, value = current.partition("=")
    given = [word.partition("=") for word in words]
    keys = _keys({group: member.split(",")[0] for group, _, member in given})
    keys = {name: values for name, values in keys.items() if name.startswith(prefixes)}
    if equals:
        done, comma, start = value.rpartition(",")
        within = done.startswith("[")  # the values of a list are [value]
        values = _starting([word.removeprefix("[") if within else word for word in keys.get(key, ())], start)
        taken = done.strip("[").split(",")
        return [f"{key}={done}{comma}{value}" for value in values if value.strip("[]") not in taken]

    from segexp.config import CODE_GROUPS

    # The options of a registry's entry are offered once the entry is chosen.
    hidden = [f"{group}." for group in CODE_GROUPS if group not in (group for group, _, _ in given)]
    shown = []
    for name in keys:
        section = name[: name.rfind(".") + 1]
        if current.startswith(section):
            shown.append(f"{name}=")
        elif section not in hidden:
            shown.append(section)
    return _starting(dict.fromkeys(shown), current)


def _keys(chosen: dict[str, str]) -> dict[str, Sequence[str]]:
    """Every key that an override may set -> its known values. chosen: group -> its member on the command line."""
    from segexp import config
    from segexp.config.canonical import SECTIONS
    from segexp.records.scores import OWN_SCORES

    keys: dict[str, Sequence[str]] = {group: config.names_in(group) for group in config.CODE_GROUPS}
    keys |= {group: config.members_of(group) for group in config.YAML_GROUPS}
    keys["hydra/launcher"] = [*config.LAUNCHERS, *config.preset_names("hydra/launcher")]
    keys |= {f"hydra.launcher.{field.name}": () for field in dataclasses.fields(config.LocalOptions)}
    keys |= {option.name: option.choices for option in fields_of(config.Config) if option.name not in SECTIONS}
    keys["tracking"] = ["none", *config.TRACKERS, *(f"[{name}]" for name in config.TRACKERS)]
    keys["metrics.scores"] = [f"[{name}]" for name in OWN_SCORES]
    chosen = {"dataset": "lesions"} | chosen
    for section in SECTIONS:
        for option in _options(section, chosen.get(section, "")):
            words = [str(word) for word in (*option.choices, *option.range.words)]
            keys[f"{section}.{option.name}"] = keys.get(f"{section}.{option.name}") or words
    preset = config.configs_dir() / "dataset" / f"{chosen['dataset']}.yaml"
    for name, value in config.preset_values(preset).items() if preset.is_file() else ():
        if value and keys.get(f"dataset.{name}") == []:
            keys[f"dataset.{name}"] = [value]
    return keys


def _options(section: str, member: str) -> list[Option]:
    """The options of a section; where its members have options of their own, those of one member, or of all."""
    from segexp.config import CODE_GROUPS, alias_target, names_in
    from segexp.config.canonical import SECTIONS
    from segexp.data import adapters

    if section in CODE_GROUPS:
        names = [member] if member in names_in(section) else names_in(section)
        return [option for name in names for option in alias_target(section, name)[1]]
    kinds = [adapter.config for name, adapter in adapters().items() if member == name or member not in adapters()]
    return [option for kind in (kinds if section == "dataset" else [SECTIONS[section]]) for option in fields_of(kind)]


_BASH = """\
# segexp completion for bash: eval "$(segexp completion bash)", or put this into ~/.bashrc
_segexp() {
    local words cword current
    # "=" and ":" break words in bash; take the line apart at blanks alone.
    read -r -a words <<< "${COMP_LINE:0:COMP_POINT}"
    current=""
    if [[ "${COMP_LINE:COMP_POINT-1:1}" != " " ]]; then
        current="${words[-1]}"
        unset 'words[-1]'
    fi
    local IFS=$'\\n'
    COMPREPLY=($(segexp __complete "$current" "${words[@]:1}" 2>/dev/null))
    # Exit code 3: a path may stand here.
    (( $? == 3 )) && compopt -o dirnames
    # Readline replaces only what follows the last word break of the current word.
    local kept="${current%"${current##*[=:]}"}"
    if [[ -n "$kept" && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]]; then
        compopt -o nospace
    fi
}
complete -F _segexp segexp
"""

_ZSH = """\
#compdef segexp
# segexp completion for zsh: eval "$(segexp completion zsh)", or put this into ~/.zshrc after compinit
_segexp() {
    local -a candidates unfinished finished
    local printed code
    printed=$(segexp __complete "${words[CURRENT]}" "${(@)words[2,CURRENT-1]}" 2>/dev/null)
    code=$?  # 3: a path may stand here
    candidates=(${(f)printed})
    unfinished=(${(M)candidates:#*[=.]})
    finished=(${candidates:#*[=.]})
    (( ${#unfinished} )) && compadd -S '' -- $unfinished
    (( ${#finished} )) && compadd -- $finished
    (( code == 3 )) && _files -/
}
compdef _segexp segexp
"""

_FISH = """\
# segexp completion for fish: segexp completion fish | source
function __segexp_complete
    set -l words (commandline -opc)
    segexp __complete (commandline -ct) $words[2..-1] 2>/dev/null
    test $status -eq 3; and __fish_complete_directories (commandline -ct)
end
complete -c segexp -f -a '(__segexp_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

EPILOG = """\
bash: eval "$(segexp completion bash)"   zsh: eval "$(segexp completion zsh)"   fish: segexp completion fish | source
"""


def parser() -> Parser:
    parser = Parser("completion", EPILOG)
    parser.add_argument("shell", metavar="bash|zsh|fish", complete=SCRIPTS)
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    if options.shell not in SCRIPTS:
        raise UsageError(f"unknown shell '{options.shell}'{nearest(options.shell, SCRIPTS)}")
    print(SCRIPTS[options.shell], end="")
    return DONE


def candidates(words: Sequence[str]) -> int:
    """`segexp __complete CURRENT WORD...`, called by the scripts: prints the candidates for the current word."""
    current, *before = words or [""]
    found, is_path = complete(before, current)
    print("\n".join(found))
    return PATHS if is_path else DONE
