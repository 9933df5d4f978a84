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

from segexp import cli
from segexp.commands import COMMANDS
from segexp.commands.completion import SHELLS, complete, script
from segexp.commands.list import KINDS
from segexp.config import CODE_GROUPS, YAML_GROUPS, Config, LocalOptions, alias_target, names_in
from segexp.config.canonical import CHOICES
from segexp.config.compose import compose, hydra_session
from segexp.config.presets import preset_names
from segexp.data import adapters
from segexp.records import flatten


@pytest.mark.parametrize(("words", "current", "expected"), [
    ([], "tr", ["train"]),
    ([], "--v", ["--version"]),
    (["train"], "act", ["activation="]),
    (["train"], "trainer.ep", ["trainer.epochs="]),
    (["train"], "tra", ["trainer."]),
    (["train"], "se", ["seed="]),
    (["train"], "activation=arc", ["activation=arctan"]),
    (["train", "activation=arctan"], "activation.pri", ["activation.prior_bias=", "activation.prior_bias_cap="]),
    (["train"], "loss=dice,j", ["loss=dice,jaccard"]),
    (["train"], "loss=dice,bce,j", ["loss=dice,bce,jaccard"]),
    (["train"], "loss=dice,jaccard,dice_c", ["loss=dice,jaccard,dice_ce"]),
    (["train"], "dataset=fo", ["dataset=folder"]),
    (["train"], "study=n", ["study=nieradzik2021"]),
    (["train", "study=hidden"], "budget=", ["budget=full", "budget=smoke"]),
    (["train"], "prot", ["protocol="]),
    (["train"], "split.fo", ["split.folds=", "split.fold="]),
    (["train"], "backbone=eff", ["backbone=efficientnet-b0"]),
    (["train"], "head.mode=so", ["head.mode=softmax"]),
    (["train"], "trainer.precision=", ["trainer.precision=fp32", "trainer.precision=bf16", "trainer.precision=fp16"]),
    (["train", "loss=dice"], "loss.sm", ["loss.smooth="]),
    (["train", "loss=mse"], "loss.", []),
    (["train", "loss=dice", "loss=mse"], "loss.", []),
    (["train"], "los", ["loss="]),
    (["train", "loss=dice"], "los", ["loss=", "loss."]),
    (["train"], "activation.slope=", ["activation.slope=native", "activation.slope=matched"]),
    (["train", "loss=dice"], "loss.reduction=im", ["loss.reduction=image"]),
    (["train", "dataset=folder"], "dataset.ro", ["dataset.root="]),
    (["train"], "dataset.ro", []),
    (["train"], "dataset.num", ["dataset.num_classes=", "dataset.number="]),
    (["train", "-m", "seed=1"], "optimizer=sg", ["optimizer=sgd"]),
    (["train"], "--fr", ["--from"]),
    (["train", "--from"], "out", []),
    (["train", "--from", "run"], "see", ["seed="]),
    (["train"], "nothing", []),
    (["train"], "nothing=", []),
    (["train"], "nothing.", []),
    (["list"], "act", ["activations"]),
    (["list", "losses"], "", []),
    (["list", "losses"], "--j", ["--json"]),
    (["completion"], "f", ["fish"]),
    (["show"], "", []),
    (["show"], "--", ["--json", "--help"]),
    (["status"], "--", ["--json", "--watch", "--help"]),
    (["status"], "out", []),
    (["diff", "a"], "", []),
    ([], "s", ["status", "show"]),
    (["doctor"], "--j", ["--json"]),
    (["report", "x", "--metric"], "dice_m", ["dice_micro"]),
    (["report", "x", "--split"], "", ["test", "val"]),
    (["report", "x", "--by"], "loss,act", ["loss,activation"]),
    (["report", "x", "--reference"], "act", ["activation=sigmoid"]),
    (["report", "x", "-o"], "r", []),
    (["compare", "x", "--reference"], "", ["activation=sigmoid", "hidden_activation=native"]),
    (["compare", "x", "--claims"], "n", ["nieradzik2021"]),
    (["compare", "x", "--questions"], "cost,al", ["cost,all"]),
    (["compare", "x"], "out", []),
    (["curves", "--hidden"], "relu,ge", ["relu,gelu"]),
    (["curves", "--hidden"], "al", ["all"]),
    (["curves", "--hidden"], "nat", []),
    (["curves", "--output"], "arc", ["arctan"]),
    (["bench"], "", ["activations"]),
    (["bench", "activations"], "ge", ["gelu"]),
    (["bench", "activations", "gelu"], "ge", []),
    (["bench", "activations", "gelu"], "nat", []),
    (["bench", "activations", "--device"], "c", ["cpu", "cuda"]),
    (["bench", "activations", "--csv"], "", []),
    (["nothing"], "", []),
    (["nothing"], "-", []),
])  # fmt: skip
def test_candidates(words: list[str], current: str, expected: list[str]) -> None:
    assert complete(words, current) == expected


def test_every_visible_command_is_offered_and_named_in_the_help() -> None:
    visible = list(COMMANDS)
    assert [c for c in complete([], "") if not c.startswith("-")] == visible
    assert [
        line.split()[0] for line in cli.HELP.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    ] == visible


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_is_offered(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = capsys.readouterr().out.partition("\noptions:\n")[2].partition("\n\n")[0]
    flags = {flag for line in options.splitlines() for flag in re.findall(r"(?<![\w-])-{1,2}[a-z][a-z-]*", line[:24])}
    assert {"-h", *complete([command], "-")} == flags


@pytest.mark.parametrize("dataset", adapters())
def test_every_key_is_offered(dataset: str) -> None:
    with hydra_session() as extra:
        config = compose([f"dataset={dataset}", *(["dataset.root=/x"] if dataset == "folder" else [])], extra)
    words = ["train", f"dataset={dataset}", *(f"{g}={getattr(config, g).name}" for g in CODE_GROUPS)]
    offered = {k for c in complete(words, "") for k in (complete(words, c) if c.endswith(".") else [c]) if k[0] != "-"}
    groups = {f"{group}=" for group in (*CODE_GROUPS, *YAML_GROUPS)}
    set_by_a_group = {f"{group}.name=" for group in (*CODE_GROUPS, "augment")} | {"dataset.adapter="}
    launcher = {"hydra/launcher=", *(f"hydra.launcher.{f.name}=" for f in dataclasses.fields(LocalOptions))}
    every = groups | launcher | {f"{key}=" for key in flatten(config)}
    assert every - set_by_a_group <= offered <= every


def test_every_section_leads_somewhere() -> None:
    assert [c for c in complete(["train"], "") if not complete(["train"], c) and c.endswith(".")] == []


@pytest.mark.parametrize("group", CODE_GROUPS)
def test_every_name_of_a_catalogue_is_offered(group: str) -> None:
    assert complete(["train"], f"{group}=") == [f"{group}={name}" for name in names_in(group)]


@pytest.mark.parametrize("group", YAML_GROUPS)
def test_every_preset_is_offered(group: str) -> None:
    assert complete(["train"], f"{group}=") == [f"{group}={name}" for name in preset_names(group)]


@pytest.mark.parametrize("key", CHOICES)
def test_every_valid_word_is_offered(key: str) -> None:
    assert complete(["train"], f"{key}=") == [f"{key}={word}" for word in CHOICES[key]]


@pytest.mark.parametrize(
    ("group", "name", "option"),
    [(g, n, o.name) for g in CODE_GROUPS for n in names_in(g) for o in alias_target(g, n)[1] if o.choices],
)
def test_every_choice_of_an_option_is_offered(group: str, name: str, option: str) -> None:
    choices = next(o.choices for o in alias_target(group, name)[1] if o.name == option)
    key = f"{group}.{option}"
    assert complete(["train", f"{group}={name}"], f"{key}=") == [f"{key}={choice}" for choice in choices]


def test_what_can_be_listed_and_the_shells_are_offered() -> None:
    assert complete(["list"], "") == list(KINDS)
    assert complete(["completion"], "") == list(SHELLS)


def test_what_stands_in_a_sweep_already_is_not_offered_again() -> None:
    assert "loss=dice,dice" not in complete(["train", "-m"], "loss=dice,")
    assert complete(["train", "-m"], "loss=dice,jac,jac") == ["loss=dice,jac,jaccard"]


def test_each_candidate_begins_with_what_was_typed() -> None:
    keys = [f.name for f in dataclasses.fields(Config)]
    for typed in ["", "d", "dataset", "dataset.", "dataset=", "loss=ce,", "trainer.p", *keys]:
        assert all(candidate.startswith(typed) for candidate in complete(["train"], typed))


def test_the_hidden_command_prints_one_candidate_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["__complete", "loss=dice", "train", "-m"]) == 0
    assert capsys.readouterr().out == "loss=dice\nloss=dice_ce\n"
    assert cli.main(["__complete", "--ver"]) == 0
    assert capsys.readouterr().out == "--version\n"
    assert cli.main(["__complete", "", "train", "--from"]) == 0
    assert capsys.readouterr().out.strip() == ""


# The scripts in their shells


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `segexp` is this one, and nobody's start-up files are read."""
    command = tmp_path / "bin" / "segexp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m segexp "$@"\n')
    command.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    path = f"{command.parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "INPUTRC": "/dev/null"}
    return {**kept, **home, "PATH": path, "TERM": "dumb", "PS1": "$ ", "LC_ALL": "C.UTF-8"}


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

    def read_until(self, pattern: str, seconds: float = 30.0) -> str:
        """What the last group of ``pattern`` matches in what the shell prints from now on."""
        seen, end = "", time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.outer], [], [], 0.1)[0]:
                seen += os.read(self.outer, 65536).decode(errors="replace")
            found = re.search(pattern, seen, flags=re.DOTALL)
            if found:
                return found[found.lastindex or 0]
        raise AssertionError(f"no {pattern!r} in {seen!r}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.outer)


@pytest.fixture
def bash(environment: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    """An interactive bash with the script loaded, and a key (C-x p) that prints the line as it stands."""
    found = shutil.which("bash")
    if found is None:
        pytest.skip("no bash here")
    terminal = Terminal([found, "--norc", "--noprofile", "-i"], environment, tmp_path)
    terminal.type('eval "$(segexp completion bash)"\n')
    terminal.type("""bind -x '"\\C-xp": printf "\\n<%s>\\n" "[$READLINE_LINE]"'\n""")
    terminal.type("printf '%s-%s\\n' ready now\n")
    terminal.read_until("ready-now")
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("typed", "becomes"), [
    ("segexp tr", "segexp train "),
    ("segexp list act", "segexp list activations "),
    ("segexp train act", "segexp train activation="),
    ("segexp train activation=arc", "segexp train activation=arctan "),
    ("segexp train loss=dice,j", "segexp train loss=dice,jaccard "),
    ("segexp train trainer.ep", "segexp train trainer.epochs="),
    ("segexp train tra", "segexp train trainer."),
    ("segexp train dataset=folder dataset.mask_c", "segexp train dataset=folder dataset.mask_co"),
    ("segexp train -m activation=arctan,sig", "segexp train -m activation=arctan,sigmoid "),
    ("segexp train backbone=eff", "segexp train backbone=efficientnet-b0 "),
    ("segexp train head.mode=ind", "segexp train head.mode=independent "),
    ("segexp train --config", "segexp train --config-dir "),
    ("segexp train --from my_r", "segexp train --from my_runs/"),
    ("segexp show my_r", "segexp show my_runs/"),
    ("segexp train nothing", "segexp train nothing"),
])  # fmt: skip
def test_tab_in_bash(typed: str, becomes: str, bash: Terminal, tmp_path: Path) -> None:
    (tmp_path / "my_runs").mkdir()
    (tmp_path / "my_runs.txt").touch()
    bash.type(f"{typed}\t\x18p")
    assert bash.read_until(r"<\[(segexp.*?)\]>") == becomes


def test_two_tabs_in_bash_list_the_candidates(bash: Terminal) -> None:
    bash.type("segexp train loss=\t\t")
    seen = bash.read_until(r"(?s)dice_ce.*$")
    assert seen
    bash.type("\x18p")
    assert bash.read_until(r"<\[(segexp.*?)\]>") == "segexp train loss="


def test_tab_in_a_bash_that_does_not_break_words_at_equals_signs(bash: Terminal) -> None:
    bash.type("COMP_WORDBREAKS=${COMP_WORDBREAKS//=}\n")
    bash.type("segexp train activation=arc\t\x18p")
    assert bash.read_until(r"<\[(segexp.*?)\]>") == "segexp train activation=arctan "


def test_tab_in_the_middle_of_a_line_in_bash(bash: Terminal) -> None:
    bash.type("segexp train loss=jac seed=1\x02\x02\x02\x02\x02\x02\x02\t\x18p")
    assert bash.read_until(r"<\[(segexp.*?)\]>").split() == ["segexp", "train", "loss=jaccard", "seed=1"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell)
    assert "segexp __complete" in script(shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_accepts_the_script(shell: str, environment: dict[str, str]) -> None:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} here")
    checked = subprocess.run(
        [found, "--no-execute" if shell == "fish" else "-n"],
        input=script(shell), capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(("typed", "candidates"), [
    ("segexp tr", {"train"}),
    ("segexp train act", {"activation="}),
    ("segexp train loss=dice,j", {"loss=dice,jaccard"}),
    ("segexp list act", {"activations"}),
    ("segexp train trainer.ep", {"trainer.epochs="}),
])  # fmt: skip
def test_tab_in_fish(typed: str, candidates: set[str], environment: dict[str, str]) -> None:
    found = shutil.which("fish")
    if found is None:
        pytest.skip("no fish here")
    told = subprocess.run(
        [found, "--no-config", "-c", f"segexp completion fish | source; complete --do-complete '{typed}'"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert set(told.stdout.split()) == candidates


@pytest.fixture
def zsh(environment: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    """An interactive zsh with the script loaded, and a key (C-x p) that prints the line as it stands."""
    found = shutil.which("zsh")
    if found is None:
        pytest.skip("no zsh here")
    terminal = Terminal([found, "-f", "-i"], environment, tmp_path)
    terminal.type('autoload -Uz compinit && compinit -u; eval "$(segexp completion zsh)"\n')
    terminal.type("tell() { print -r -- \"<[$BUFFER]>\" }; zle -N tell; bindkey '^Xp' tell\n")
    terminal.type("printf '%s-%s\\n' ready now\n")
    terminal.read_until("ready-now")
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("typed", "becomes"), [
    ("segexp tr", "segexp train "),
    ("segexp train act", "segexp train activation="),
    ("segexp train activation=arc", "segexp train activation=arctan "),
    ("segexp train loss=dice,j", "segexp train loss=dice,jaccard "),
    ("segexp train trainer.ep", "segexp train trainer.epochs="),
    ("segexp list act", "segexp list activations "),
])  # fmt: skip
def test_tab_in_zsh(typed: str, becomes: str, zsh: Terminal) -> None:
    zsh.type(f"{typed}\t\x18p")
    assert zsh.read_until(r"<\[(segexp.*?)\]>") == becomes


def test_no_candidate_is_broken_by_blanks() -> None:
    """The scripts split candidates at newlines only where the shell can; none holds a blank anyway."""
    everything = [c for words in (["train"], ["list"], []) for c in complete(words, "")]
    assert all(re.fullmatch(r"\S+", c) for c in everything)
    assert set(COMMANDS) <= set(everything)
