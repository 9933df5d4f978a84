"""Candidates for half-typed words, and the scripts in the shells they are for."""

import dataclasses
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from timing import HANGS_S

from segexp import cli
from segexp.commands import COMMANDS, parser_of
from segexp.commands.completion import PATHS, SCRIPTS, complete
from segexp.commands.list import KINDS
from segexp.config import (
    CODE_GROUPS,
    LAUNCHERS,
    YAML_GROUPS,
    Config,
    LocalOptions,
    alias_target,
    names_in,
    preset_names,
)
from segexp.config.canonical import CHOICES
from segexp.config.compose import compose, hydra_session
from segexp.data import adapters
from segexp.records import flatten


def offered(words: list[str], current: str) -> list[str]:
    return complete(words, current)[0]


@pytest.mark.parametrize(("line", "expected"), [
    ("", {"tr": "train", "--v": "--version", "s": "status show"}),
    ("train", {"act": "activation=", "trainer.ep": "trainer.epochs=", "activation=arc": "activation=arctan",
        "loss=dice,j": "loss=dice,jaccard", "loss=dice,jaccard,dice_c": "loss=dice,jaccard,dice_ce",
        "split.fo": "split.folds= split.fold=", "los": "loss=",
        "activation.slope=": "activation.slope=native activation.slope=matched activation.slope=learned",
        "dataset.ro": "",
        "dataset.num": "dataset.num_classes= dataset.number=", "nothing.": ""}),
    ("train activation=arctan", {"activation.pri": "activation.prior_bias= activation.prior_bias_cap="}),
    ("train -m", {"loss=dice,jac,jac": "loss=dice,jac,jaccard", "loss=dice,dice_c": "loss=dice,dice_ce"}),
    ("train study=hidden", {"budget=": "budget=full budget=smoke"}),
    ("train loss=dice", {"loss.sm": "loss.smooth=", "los": "loss= loss."}),
    ("train loss=dice loss=mse", {"loss.": ""}),
    ("train dataset=folder", {"dataset.ro": "dataset.root="}),
    ("train --from run", {"see": "seed="}),
    ("resume x", {"hydra.la": "hydra.launcher.", "hydra.launcher.ru": "hydra.launcher.runs_per_gpu=", "loss": ""}),
    ("resume x --only", {"f": "failed"}),
    ("resume", {"trainer.ep": ""}),
    ("evaluate x", {"metrics.res": "metrics.resolution=", "loss": ""}),
    ("evaluate x --split", {"": "test val train all"}),
    ("evaluate x --threshold", {"t": "tuned"}),
    ("evaluate x --dataset", {"fo": "folder"}),
    ("evaluate x --resolution", {"": "native network"}),
    ("tune --rates", {"l": ""}),
    ("tune --rates 1e-3", {"los": "loss="}),
    ("list losses", {"": ""}),
    ("show", {"--": "--help --json"}),
    ("diff a", {"": ""}),
    ("report x --metric", {"dice_m": "dice_micro"}),
    ("compare x --metric", {"dice,io": "dice,iou dice,iou_micro"}),
    ("compare x --class", {"": "each"}),
    ("report x --by", {"loss,act": "loss,activation"}),
    ("report x --reference", {"act": "activation=sigmoid", "al": "all"}),
    ("compare x --claims", {"n": "nieradzik2021"}),
    ("compare x --questions", {"al": "all", "cost,b": "cost,boundary", "cost,al": ""}),
    ("curves --hidden", {"relu,selu,ge": "relu,selu,gelu relu,selu,gelu_tanh", "al": "all", "nat": ""}),
    ("curves --output", {"arc": "arctan"}),
    ("bench", {"": "activations"}),
    ("bench activations", {"gelu": "gelu gelu_tanh"}),
    ("bench activations gelu", {"gelu": "gelu_tanh", "nat": ""}),
    ("bench activations --device", {"c": "cpu cuda"}),
    ("bench activations --csv", {"": ""}),
    ("nothing", {"": ""}),
])  # fmt: skip
def test_candidates(line: str, expected: dict[str, str]) -> None:
    """For each word that is typed after the line, in order."""
    assert {current: " ".join(offered(line.split(), current)) for current in expected} == expected


@pytest.mark.parametrize(("lines", "is_path"), [
    (["train --from", "train --config-dir", "show", "diff a", "compare a b", "compare a --claims", "tune", "resume",
      "report a -o"], True),
    (["", "train", "show run", "compare a --metric", "tune --seeds", "resume study", "bench activations"], False),
])  # fmt: skip
def test_the_exit_code_says_where_a_path_may_stand(lines: list[str], is_path: bool) -> None:
    for line in lines:
        assert complete(line.split(), "")[1] == is_path, line
        assert cli.main(["__complete", "", *line.split()]) == (PATHS if is_path else 0)


def test_every_command_and_every_flag_of_its_help_is_offered() -> None:
    assert offered([], "") == [*COMMANDS, "--help", "--version"]
    for name, summary in COMMANDS.items():
        text = parser_of(name).format_help()
        assert summary[1:] in text
        options = text.partition("\noptions:\n")[2].partition("\n\n")[0]
        flags = re.findall(r"(?:^  |, )(-{1,2}[a-z][a-z-]*)", options, re.MULTILINE)
        assert sorted(flags) == sorted(["-h", *offered([name], "-")]), name


@pytest.mark.parametrize(
    "dataset", [pytest.param(d, marks=[pytest.mark.slow] * (d not in ("folder", "lesions"))) for d in adapters()]
)
def test_every_key_is_offered(dataset: str) -> None:
    with hydra_session() as extra:
        of_files = hasattr(adapters()[dataset].config, "root")  # with classes, so that no file is asked for them
        needed = ["dataset.root=/x", "dataset.num_classes=2"] if of_files else []
        config = compose([f"dataset={dataset}", *needed], extra)
    words = ["train", f"dataset={dataset}", *(f"{g}={getattr(config, g).name}" for g in CODE_GROUPS)]
    keys = {k for c in offered(words, "") for k in (offered(words, c) if c.endswith(".") else [c])}
    groups = {f"{group}=" for group in (*CODE_GROUPS, *YAML_GROUPS)}
    set_by_a_group = {f"{group}.name=" for group in (*CODE_GROUPS, "augment")} | {"dataset.adapter="}
    launcher = {"hydra/launcher=", *(f"hydra.launcher.{f.name}=" for f in dataclasses.fields(LocalOptions))}
    every = groups | launcher | {f"{key}=" for key in flatten(config)}
    assert every - set_by_a_group <= keys <= every


def test_values_come_from_the_registries_the_presets_and_the_schema() -> None:
    values = {group: names_in(group) for group in CODE_GROUPS} | {group: preset_names(group) for group in YAML_GROUPS}
    values |= {key: list(words) for key, words in CHOICES.items()}
    values |= {"hydra/launcher": [*LAUNCHERS, *preset_names("hydra/launcher")]}
    for key, words in values.items():
        assert words
        assert offered(["train"], f"{key}=") == [f"{key}={word}" for word in words]
    options = [(g, n, o) for g in CODE_GROUPS for n in names_in(g) for o in alias_target(g, n)[1] if o.choices]
    assert options
    for group, name, option in options:
        key = f"{group}.{option.name}"
        assert offered(["train", f"{group}={name}"], f"{key}=") == [f"{key}={choice}" for choice in option.choices]
    assert offered(["list"], "") == list(KINDS)
    assert offered(["completion"], "") == list(SCRIPTS)


@pytest.mark.slow
def test_each_candidate_begins_with_what_was_typed_and_holds_no_blank() -> None:
    keys = [f.name for f in dataclasses.fields(Config)]
    for typed in ["", "d", "dataset", "dataset.", "dataset=", "loss=ce,", "trainer.p", *keys]:
        for candidate in offered(["train"], typed):
            assert candidate.startswith(typed)
            assert re.fullmatch(r"\S+", candidate)
            assert offered(["train"], candidate) or not candidate.endswith(".")


def test_the_hidden_command_prints_one_candidate_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["__complete", "loss=dice_", "train", "-m"]) == 0
    assert capsys.readouterr().out == "loss=dice_plus_plus\nloss=dice_ce\n"


# The scripts in their shells


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a folder and a file whose names begin alike."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "my_runs").mkdir()
    (folder / "my_runs.txt").touch()
    return folder


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    """An environment in which `segexp` is this one, and nobody's start-up files are read."""
    command = home / "bin" / "segexp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segexp "$@"\n')
    command.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    path = f"{command.parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    folders = {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "ZDOTDIR": str(home), "INPUTRC": "/dev/null"}
    return {**kept, **folders, "PATH": path, "TERM": "dumb", "PS1": "$ ", "LC_ALL": "C.UTF-8"}


class Terminal:
    """A shell at a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.outer, inner = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=folder, start_new_session=True
        )
        os.close(inner)

    def type(self, keys: str) -> None:
        os.write(self.outer, keys.encode())

    def read_until(self, pattern: str, seconds: float = HANGS_S) -> str:
        """What the last group of ``pattern`` matches in what the shell prints from now on."""
        seen, end = "", time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.outer], [], [], 0.1)[0]:
                seen += os.read(self.outer, 65536).decode(errors="replace")
            found = re.search(pattern, seen, flags=re.DOTALL)
            if found:
                return found[found.lastindex or 0]
        raise AssertionError(f"no {pattern!r} in {seen!r}")

    def line_after(self, typed: str) -> str:
        """The line as it stands once ``typed`` has been typed; then the line is emptied."""
        self.type(f"{typed}\x18p")
        line = self.read_until(r"<\[(segexp.*?)\]>")
        self.type("\x05\x15")
        return line

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.outer)


def terminal_of(shell: str, options: list[str], setup: list[str], environment: dict[str, str]) -> Iterator[Terminal]:
    """An interactive shell with the script loaded, and a key (C-x p) that prints the line as it stands."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    terminal = Terminal([found, *options, "-i"], environment, Path(environment["HOME"]))
    for line in (*setup, "printf '%s-%s\\n' ready now"):
        terminal.type(f"{line}\n")
    terminal.read_until("ready-now")
    yield terminal
    terminal.close()


@pytest.fixture(scope="module")
def bash(environment: dict[str, str]) -> Iterator[Terminal]:
    setup = ['eval "$(segexp completion bash)"', r"""bind -x '"\C-xp": printf "\n<%s>\n" "[$READLINE_LINE]"'"""]
    yield from terminal_of("bash", ["--norc", "--noprofile"], setup, environment)


@pytest.fixture(scope="module")
def zsh(environment: dict[str, str]) -> Iterator[Terminal]:
    setup = ['autoload -Uz compinit && compinit -u; eval "$(segexp completion zsh)"']
    setup += ["shown() { print -r -- \"<[$BUFFER]>\" }; zle -N shown; bindkey '^Xp' shown"]
    yield from terminal_of("zsh", ["-f"], setup, environment)


TABS = [
    ("segexp tr", "segexp train "),
    ("segexp list act", "segexp list activations "),
    ("segexp train act", "segexp train activation="),
    ("segexp train activation=arc", "segexp train activation=arctan "),
    ("segexp train loss=dice,j", "segexp train loss=dice,jaccard "),
    ("segexp train trainer.ep", "segexp train trainer.epochs="),
]


@pytest.mark.parametrize(("typed", "becomes"), [
    *TABS,
    ("segexp train dataset=folder dataset.mask_c", "segexp train dataset=folder dataset.mask_co"),
    ("segexp train -m activation=arctan,hyperbolic_s", "segexp train -m activation=arctan,hyperbolic_secant "),
    ("segexp train backbone=eff", "segexp train backbone=efficientnet-b0 "),
    ("segexp train --from my_r", "segexp train --from my_runs/"),
    ("segexp train nothing", "segexp train nothing"),
])  # fmt: skip
def test_tab_in_bash(typed: str, becomes: str, bash: Terminal) -> None:
    assert bash.line_after(f"{typed}\t") == becomes


def test_two_tabs_in_bash_list_the_candidates(bash: Terminal) -> None:
    bash.type("segexp train loss=\t\t")
    assert bash.read_until(r"(?s)dice_ce.*$")
    assert bash.line_after("") == "segexp train loss="


def test_tab_in_the_middle_of_a_line_in_bash(bash: Terminal) -> None:
    line = bash.line_after("segexp train loss=jac seed=1\x02\x02\x02\x02\x02\x02\x02\t")
    assert line.split() == ["segexp", "train", "loss=jaccard", "seed=1"]


def test_tab_in_a_bash_that_does_not_break_words_at_equals_signs(bash: Terminal) -> None:
    bash.type("before=$COMP_WORDBREAKS; COMP_WORDBREAKS=${COMP_WORDBREAKS//=}\n")
    assert bash.line_after("segexp train activation=arc\t") == "segexp train activation=arctan "
    bash.type("COMP_WORDBREAKS=$before\n")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_command_prints_a_script_that_the_shell_accepts(
    shell: str, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    checked = subprocess.run(
        [found, "--no-execute" if shell == "fish" else "-n"],
        input=SCRIPTS[shell], capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(("typed", "becomes"), TABS)
def test_tab_in_fish(typed: str, becomes: str, environment: dict[str, str]) -> None:
    found = shutil.which("fish")
    if found is None:
        pytest.skip("no fish here")
    printed = subprocess.run(
        [found, "--no-config", "-c", f"segexp completion fish | source; complete --do-complete '{typed}'"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert printed.stdout.split() == [becomes.rsplit(maxsplit=1)[-1]]


@pytest.mark.parametrize(("typed", "becomes"), TABS)
def test_tab_in_zsh(typed: str, becomes: str, zsh: Terminal) -> None:
    assert zsh.line_after(f"{typed}\t") == becomes
