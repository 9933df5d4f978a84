"""`segexp completion SHELL`, and what its scripts call."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from segexp.commands import COMMANDS, Parser
from segexp.commands.list import KINDS
from segexp.compare.questions import QUESTIONS
from segexp.config import CODE_GROUPS, YAML_GROUPS, Config, LocalOptions, alias_target, names_in
from segexp.config.canonical import CHOICES
from segexp.config.presets import configs_dir, preset_names, preset_values
from segexp.data import adapters
from segexp.errors import DONE, UsageError
from segexp.records.runs import RESUMABLE
from segexp.records.scores import SCORES, SPLITS
from segexp.registry import nearest

_SELECTION = ("--by", "--reference", "--where", "--metric", "--rope", "--split")

_FLAGS = {
    "train": ("-m", "--multirun", "--from", "--config-dir", "--dry-run", "--no-wait", "--help"),
    "status": ("--json", "--watch", "--help"),
    "resume": ("--only", "--config-dir", "--no-wait", "--help"),
    "collect": ("-o", "--out", "--help"),
    "report": ("-o", "--out", "--figures", "--tables", *_SELECTION, "--help"),
    "tune": ("--rates", "--trials", "--range", "--seeds", "-o", "--out", "--config-dir", "--help"),
    "evaluate": ("--split", "--threshold", "--dataset", "--resolution", "--tta", "--config-dir", "--help"),
    "curves": ("--output", "--hidden", "-o", "--out", "--help"),
    "bench": ("--json", "--csv", "--device", "--shape", "--rounds", "--help"),
    "list": ("--json", "--markdown", "--help"),
    "doctor": ("--json", "--help"),
    "show": ("--json", "--help"),
    "compare": (
        *(*_SELECTION, "--questions", "--claims"),
        *("--json", "--csv", "--markdown", "--latex", "--help"),
    ),
    "diff": ("--json", "--help"),
    "completion": ("--help",),
    "": ("--help", "--version"),
}

LAUNCHERS = ("local", "submitit_slurm", "slurm_gpu", "ray", "ray_half_gpu", "joblib")

SHELLS = ("bash", "zsh", "fish")


def complete(words: Sequence[str], current: str) -> list[str]:
    """Candidates for the word ``current`` after ``words`` (without "segexp" itself); each is the whole word."""
    if not words:
        return _matching((*COMMANDS, *_FLAGS[""]), current)
    command = words[0]
    if current.startswith("-"):
        return _matching(_FLAGS.get(command, ()), current)
    if command == "evaluate":
        return _evaluate(words, current)
    if command == "curves" and words[-1] in ("--output", "--hidden"):
        done, _, start = current.rpartition(",")
        names = CODE_GROUPS["activation"] if words[-1] == "--output" else [*_hidden(), *([] if done else ["all"])]
        return [f"{done},{name}" if done else name for name in _matching(names, start)]
    if command == "bench":
        return _bench(words, current)
    if command == "train":
        return [] if words[-1] in ("--from", "--config-dir") else _overrides(words[1:], current)
    if command == "tune":
        values = ("--config-dir", "--out", "-o", "--rates", "--trials", "--range", "--seeds")
        return [] if words[-1] in values else _overrides(words[1:], current)
    if command == "resume":
        return _resume(words, current)
    if command in ("compare", "report"):
        return _compare(words, current)
    if command == "list" and len(words) == 1:
        return _matching(KINDS, current)
    if command == "completion" and len(words) == 1:
        return _matching(SHELLS, current)
    return []


def _resume(words: Sequence[str], current: str) -> list[str]:
    """States after --only; else overrides that say where and how runs are carried out."""
    if words[-1] == "--only":
        return _matching(RESUMABLE, current)
    if words[-1] == "--config-dir" or len(words) == 1:
        return []
    return [c for c in _overrides(words[1:], current) if c.startswith(("hydra", "trainer.", "dataset."))]


def _compare(words: Sequence[str], current: str) -> list[str]:
    """Values of the flag before the word; several are separated by commas."""
    from segexp.compare.blocks import USUAL_REFERENCE

    values: dict[str, Sequence[str]] = {
        "--metric": tuple(score.name for score in SCORES.values() if score.compared),
        "--questions": (*QUESTIONS, "all"),
        "--split": SPLITS,
        "--by": tuple(CODE_GROUPS),
        "--reference": [f"{key}={level}" for key, level in USUAL_REFERENCE.items()],
        "--claims": preset_names("claims"),
    }
    done, _, start = current.rpartition(",")
    if words[-1] in ("--questions", "--by"):
        return [f"{done},{name}" if done else name for name in _matching(values[words[-1]], start)]
    return _matching(values.get(words[-1], ()), current)


def _evaluate(words: Sequence[str], current: str) -> list[str]:
    """Values of the flag before the word; else overrides, once the run is named."""
    values: dict[str, Sequence[str]] = {
        "--split": ("test", "val", "train", "all"),
        "--threshold": ("0.5", "tuned"),
        "--dataset": preset_names("dataset"),
        "--resolution": CHOICES["metrics.resolution"],
        "--config-dir": (),
    }
    if words[-1] in values:
        return _matching(values[words[-1]], current)
    overridable = ("dataset", "metrics", "split", "trainer")
    return [c for c in _overrides(words[1:], current) if c.startswith(overridable)] if len(words) > 1 else []


def _hidden() -> list[str]:
    """Hidden activations that are functions."""
    return [name for name, entry in CODE_GROUPS["hidden_activation"].items() if entry.make is not None]


def _bench(words: Sequence[str], current: str) -> list[str]:
    """What is measured, then names; values of the flag before the word."""
    if words[-1] == "--device":
        return _matching(("auto", "cpu", "cuda"), current)
    if words[-1] in ("--csv", "--shape", "--rounds"):
        return []
    if len(words) == 1:
        return _matching(("activations",), current)
    return [name for name in _matching(_hidden(), current) if name not in words]


def _matching(candidates: Any, start: str) -> list[str]:
    return [c for c in candidates if c.startswith(start)]


def _overrides(words: Sequence[str], current: str) -> list[str]:
    key, equals, value = current.partition("=")
    if not equals:
        return _keys(words, current)
    # After a comma the next value of a sweep begins.
    done, _, start = value.rpartition(",")
    prefix = f"{key}={done}," if done else f"{key}="
    taken = set(done.split(","))
    return [prefix + v for v in _matching(_values(words, key), start) if v not in taken]


def _keys(words: Sequence[str], start: str) -> list[str]:
    groups = (*CODE_GROUPS, *YAML_GROUPS)
    top = [f"{g}=" for g in groups] + [f"{k}=" for k in ("seed", "outputs", "resume", "tuned", "hydra/launcher")]
    # The options of a group of code are those of its member: they come up once that is chosen.
    undecided = [g for g in CODE_GROUPS if not _chosen(words, g, "")]
    sections = [
        f"{f.name}." for f in dataclasses.fields(Config) if f.name not in undecided and _section_keys(words, f.name)
    ]
    if "." not in start:
        return _matching([*top, *sections, "hydra.launcher."], start)
    if start.startswith("hydra."):
        return _matching([f"hydra.launcher.{f.name}=" for f in dataclasses.fields(LocalOptions)], start)
    section = start.split(".", maxsplit=1)[0]
    return _matching([f"{section}.{name}=" for name in _section_keys(words, section)], start)


def _type(name: str) -> Any:
    default = next(f for f in dataclasses.fields(Config) if f.name == name).default_factory
    return default


def _chosen(words: Sequence[str], group: str, default: str) -> str:
    """The member of a group named last on the command line, else the default."""
    given = [w.partition("=")[2].split(",")[0] for w in words if w.startswith(f"{group}=")]
    return given[-1] if given else default


def _members(words: Sequence[str], group: str) -> list[str]:
    """The member of a code group named on the command line, else all: whose options are meant."""
    names = names_in(group)
    chosen = _chosen(words, group, "")
    return [chosen] if chosen in names else names


def _section_keys(words: Sequence[str], section: str) -> list[str]:
    """Names of the keys below a section, those of the chosen member where it is a registry's."""
    if section in CODE_GROUPS:
        return list(
            dict.fromkeys(o.name for member in _members(words, section) for o in alias_target(section, member)[1])
        )
    if section == "dataset":
        adapter = adapters().get(_chosen(words, "dataset", "lesions"))
        configs = [adapter.config] if adapter else [entry.config for entry in adapters().values()]
        return list(dict.fromkeys(f.name for config in configs for f in dataclasses.fields(config)))
    fields = [f for f in dataclasses.fields(Config) if f.name == section]
    return (
        [f.name for f in dataclasses.fields(_type(section))]
        if fields and dataclasses.is_dataclass(_type(section))
        else []
    )


def _values(words: Sequence[str], key: str) -> list[str]:
    if key in CODE_GROUPS:
        return names_in(key)
    if key in YAML_GROUPS:
        return preset_names(key)
    if key in CHOICES:
        return list(CHOICES[key])
    if key == "hydra/launcher":
        return list(LAUNCHERS)
    group, _, name = key.partition(".")
    if group in CODE_GROUPS:
        for option in (o for member in _members(words, group) for o in alias_target(group, member)[1]):
            if option.name == name and (option.choices or option.range.words):
                return [str(c) for c in (*option.choices, *option.range.words)]
    if group == "dataset":
        path = configs_dir() / "dataset" / f"{_chosen(words, 'dataset', 'lesions')}.yaml"
        values = preset_values(path) if path.is_file() else {}
        return [values[name]] if values.get(name) else []
    return []


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
    # Readline replaces only what follows the last word break of the current word.
    local kept="${current%"${current##*[=:]}"}"
    if [[ -n "$kept" && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]]; then
        compopt -o nospace
    fi
    if [[ "${words[1]}" == @(diff|compare|report) ||
        "${words[-1]}" == @(--from|--config-dir|--out|status|resume|collect|tune|show|evaluate) ]]; then
        compopt -o dirnames
    fi
}
complete -F _segexp segexp
"""

_ZSH = """\
#compdef segexp
# segexp completion for zsh: eval "$(segexp completion zsh)", or put this into ~/.zshrc after compinit
_segexp() {
    local -a candidates unfinished finished
    candidates=("${(@f)$(segexp __complete "${words[CURRENT]}" "${(@)words[2,CURRENT-1]}" 2>/dev/null)}")
    unfinished=(${(M)candidates:#*[=.]})
    finished=(${candidates:#*[=.]})
    (( ${#unfinished} )) && compadd -S '' -- $unfinished
    (( ${#finished} )) && compadd -- $finished
    [[ "${words[2]}" == (diff|compare|report) ||
        "${words[CURRENT-1]}" == (--from|--config-dir|--out|status|resume|collect|tune|show|evaluate) ]] && _files -/
}
compdef _segexp segexp
"""

_FISH = """\
# segexp completion for fish: segexp completion fish | source
function __segexp_complete
    set -l words (commandline -opc)
    segexp __complete (commandline -ct) $words[2..-1] 2>/dev/null
end
complete -c segexp -f -a '(__segexp_complete)'
complete -c segexp -n '__fish_seen_subcommand_from status resume collect report compare tune show evaluate diff' -F
complete -c segexp -l from -r -F
complete -c segexp -l config-dir -r -F
"""


def script(shell: str) -> str:
    """The completion script of a shell."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]


def parser() -> Parser:
    epilog = 'bash: eval "$(segexp completion bash)"   zsh: eval "$(segexp completion zsh)"   '
    epilog += "fish: segexp completion fish | source"
    parser = Parser("completion", epilog)
    parser.add_argument("shell", metavar="bash|zsh|fish")
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp completion SHELL`."""
    options = parser().parse_args(list(words))
    if options.shell not in SHELLS:
        raise UsageError(f"unknown shell '{options.shell}'{nearest(options.shell, SHELLS)}")
    print(script(options.shell), end="")
    return DONE


def candidates(words: Sequence[str]) -> int:
    """Called by the completion scripts: the current word, then the words before it."""

    current, *before = words or [""]
    print("\n".join(complete(before, current)))
    return DONE
