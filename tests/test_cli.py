"""The command line: what it refuses and how, and its commands from words to exit codes."""

import errno
import importlib.metadata
import importlib.util
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from messages import mentions
from tiny import TINY, tiny_config, write_pairs

import segexp
from segexp import cli
from segexp.commands import COMMANDS, doctor, log_to_terminal
from segexp.errors import UsageError
from segexp.records import PROGRESS
from segexp.running import Outcome, config_yaml
from segexp.sweep import pool
from segexp.sweep.pool import Board, Ending, Task

Captured = pytest.CaptureFixture[str]


@contextmanager
def log_as_before() -> Iterator[None]:
    """The command line and Hydra set up logging for their process; other tests share this one."""
    loggers = [logging.getLogger(name) for name in (None, "segexp", "hydra")]
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]
    yield
    for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
        for handler in set(log.handlers) - set(handlers):
            handler.close()
        log.handlers[:], log.propagate, log.level = handlers, propagate, level


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    with log_as_before():
        yield


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder for runs that does not exist before one is begun."""
    return tmp_path / "outputs"


@pytest.fixture
def refusal(outputs: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that must be refused: exit code 2, one line on stderr, nothing written. Returns the line."""
    monkeypatch.chdir(outputs.parent)

    def refuse(*words: str) -> str:
        composed = words[0] == "train" or (words[0] == "tune" and any("=" in word for word in words))
        code = cli.main([*words, *([f"outputs={outputs}"] if composed and "--from" not in words else [])])
        printed = capsys.readouterr()
        assert code == 2, printed
        assert printed.err.startswith("segexp: ")
        assert len(printed.err.splitlines()) == 1
        assert "Traceback" not in printed.out
        assert {path.name for path in outputs.parent.iterdir()} <= {"junk", "config.yaml"}
        return printed.err

    return refuse


SMALL = ["dataset.number=12", "dataset.image_size=32"]

REFUSED: list[tuple[str, list[str]]] = [
    # command line, what the answer must name
    ("trian", ["'trian'", "train"]),
    ("frobnicate", ["'frobnicate'", ", ".join(COMMANDS)]),
    ("list activation", ["'activation'", "activations"]),
    ("list", ["activations, losses"]),
    ("list losses --json --markdown", ["--json", "--markdown"]),
    ("completion bsh", ["'bsh'", "bash"]),
    ("bench losses", ["'losses'", "activations"]),
    ("bench activations geluu", ["'geluu'", "gelu"]),
    ("bench activations native", ["native"]),
    ("bench activations --shape 8,64", ["--shape 8,64", "N,C,H,W"]),
    ("bench activations --shape 1000,1000,1000,1000", ["--shape 1000,1000,1000,1000"]),
    ("bench activations --rounds 0", ["--rounds", "'0'", "at least 1"]),
    ("bench activations --device gpu", ["--device", "'gpu'", "cuda"]),
    ("bench activations --csv /no/such/folder/x.csv", ["--csv", "/no/such/folder"]),
    ("doctor extra", ["extra", "segexp doctor --help"]),
    ("show", ["RUN_DIR", "segexp show --help"]),
    ("show /no/such/run", ["/no/such/run", "run.json"]),
    ("train --foo", ["--foo", "segexp train --help"]),
    ("train hidden_activation=softmax", ["hidden_activation=softmax", "head"]),
    ("train hidden_activation=relu hidden_activation.negative_slope=0.1", ["negative_slope", "leaky_relu"]),
    ("train init.gain=tanh", ["init.gain=tanh", "auto, relu"]),
    ("train hidden_activation=mish backbone.weights=imagenet", ["scope=decoder", "allow_mismatched_weights=true"]),
    ("train backbone=resnet19", ["'resnet19'", "resnet18", "backbone.name=resnet19"]),
    ("train loss=dice loss.smoth=1", ["'loss.smoth'", "loss.smooth"]),
    ("train +trainer.epochs=3", ["trainer.epochs=3"]),
    ("train trainer=3", ["trainer", "trainer.KEY=VALUE"]),
    ("train trainer.epochs=0", ["trainer.epochs=0", "at least 1"]),
    ("train dataset=folder", ["dataset.root", "dataset.root=VALUE"]),
    ("train dataset.adapter=folder", ["dataset.adapter", "dataset=folder"]),
    ("train activation=identity loss=dice", ["identity", "dice", "loss=mse", "activation=sigmoid|"]),
    ("train activation=softmax", ["activation=sigmoid", "binary"]),
    ("train seed=0,1", ["'seed=0,1'", "-m"]),
    ("train loss==dice", ["'=dice'", "dice"]),
    ("train loss", ["'loss'", "key=value"]),
    ("train activation.name=arctan", ["activation=arctan"]),
    ("train split.source=files", ["split.source=files", "split.source=fractions"]),
    ("train split.folds=500 split.fold=0", ["split.folds=500"]),
    ("train dataset.number=3", ["split.fractions"]),
    ("train backbone.weights=/no/such/file.pt", ["backbone.weights=/no/such/file.pt", "imagenet"]),
    ("train --config-dir /no/such/folder", ["--config-dir /no/such/folder"]),
    ("train --from /no/such/run", ["/no/such/run"]),
    ("train --no-wait seed=0", ["--no-wait", "-m"]),
    ("train sweep.pairs=[[sigmoid,bce]]", ["sweep.pairs", "-m"]),
    ("train tuned=/no/such.yaml", ["tuned=/no/such.yaml"]),
    ("train tuned=x.yaml optimizer.lr=1e-3", ["optimizer.lr"]),
    ("train -m seed=0,1 --no-wait", ["--no-wait", "submitit_slurm"]),
    ("train -m study=a,b", ["one sweep per study"]),
    ("train -m study=hidden budget=full,smoke", ["one sweep per budget"]),
    ("train -m sead=0,1", ["'sead'", "seed"]),
    ("train -m loss=dice,dicee", ["'dicee'", "dice"]),
    ("train -m seed=-1,-2", ["2 combinations", "seed=-1"]),
    ("curves -o c.png --output arctn", ["'arctn'", "arctan"]),
    ("curves -o c.png --output identity", ["identity"]),
    ("curves -o c.png --hidden relu,native", ["--hidden native"]),
    ("curves -o c.png --hidden geluu", ["'geluu'", "gelu"]),
    ("curves -o c.png --hidden relu,all", ["'all'"]),
    ("curves -o c.png --output sigmoid --hidden relu", ["--output", "--hidden"]),
    ("curves -o c.png -o c.jpg", ["'.jpg'", ".png", ".pdf", ".svg"]),
    ("curves -o c.png -o no/c.png", ["no/c.png"]),
    ("tune activation=sigmoid model=unet,fpn", ["model.name", "fpn and unet"]),
    ("tune activation=sigmoid optimizer.lr=1e-3", ["optimizer.lr", "--rates"]),
    ("tune sweep.pairs=[{activation:sigmoid,optimizer.lr:1e-3}]", ["optimizer.lr", "--rates"]),
    ("tune activation=sigmoid --rates 0,x", ["--rates 0,x"]),
    ("tune activation=sigmoid --rates 1e-3,nan", ["--rates 1e-3,nan"]),
    ("tune activation=sigmoid --trials 3 --rates 1e-3,1e-2", ["--trials", "--rates"]),
    ("tune activation=sigmoid --range 1e-3,1e-2", ["--range", "--trials", "--rates"]),
    ("tune activation=sigmoid --trials 2 --range 1e-2,1e-3", ["--range 1e-2,1e-3"]),
    ("tune activation=sigmoid --seeds 0,1", ["--seeds", "DIR", "'seed=0,1'"]),
    ("tune a --seeds 1.5", ["--seeds 1.5: whole"]),
    ("tune activation=sigmoid split.folds=2 split.fold=0,1", ["split.fold=0"]),
    ("tune /no/such/study", ["/no/such/study"]),
    ("tune a b", ["a and b"]),
    ("tune", ["nothing to tune"]),
    # known only to the libraries that build the network
    ("train dataset.image_size=50", ["dataset.image_size=50", "multiple of 32", "32 or 64"]),
    ("train backbone.name=resnet81", ["backbone.name=resnet81", "resnet18", "segexp list backbones"]),
    ("train backbone.weights=FILE", ["backbone.weights=", "weights"]),
]
REFUSED += [(f"train {override}", [override]) for override in (
    "+trainer.lrr=3", "++new=3", "~trainer.epochs", "trainer.epochs=three", "trainer.epochs=null", "optimizer.lr=fast",
    "seed=[1,2]", "split.fractions=half", "hidden_activation=glu", "init.bias=much",
)]  # fmt: skip
REFUSED += [(f"train {key}={wrong}", [f"'{wrong}'", meant]) for key, wrong, meant in (
    ("activation", "arctn", "arctan"), ("hidden_activation", "nativ", "native"), ("loss", "dicee", "dice"),
    ("optimizer", "adamv", "adamw"), ("scheduler", "cosin", "cosine"), ("dataset", "folders", "folder"),
    ("model", "unett", "unet"), ("augment", "lihgt", "light"), ("study", "defalt", "default"),
)]  # fmt: skip
if not torch.cuda.is_available():
    REFUSED.append(("train trainer.device=cuda", ["trainer.device=cuda", "segexp doctor"]))


@pytest.mark.parametrize(("line", "named"), REFUSED, ids=[line for line, _ in REFUSED])
def test_bad_usage_is_answered_in_one_line(
    line: str, named: list[str], refusal: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "junk").write_bytes(b"no weights")
    words = line.replace("FILE", str(tmp_path / "junk")).split()
    small = [
        o for o in SMALL if not any(o.split("=")[0] in w or w == "dataset=folder" or w[0] == "-" for w in words[1:])
    ]
    composed = words[0] == "train" or (words[0] == "tune" and any(word.startswith("activation=") for word in words))
    printed = refusal(*words, *(small if composed else []))
    assert [name for name in named if name not in printed] == []


@pytest.mark.parametrize(("change", "named"), [
    (None, ["config.yaml"]),
    ({"study": {"name": "${seed}"}}, ["study.name"]),
    ({"hydra": {"run": {"dir": "x"}}}, ["'hydra'"]),
    ({"trainer": {"epoch": 3}}, ["'trainer.epoch'", "trainer.epochs"]),
    ({"activation": {"name": "arctn"}}, ["'arctn'", "arctan"]),
])  # fmt: skip
def test_a_recorded_configuration_that_is_none(
    change: dict[str, Any] | None, named: list[str], refusal: Callable[..., str], tmp_path: Path
) -> None:
    if change is not None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"outputs": str(tmp_path / "outputs"), **change}))
    printed = refusal("train", "--from", str(tmp_path))
    assert [name for name in named if name not in printed] == []


@pytest.mark.parametrize("value", ["a\nb", "x" * 9000, "1," * 9000])
def test_a_value_with_line_breaks_or_of_any_length_is_answered_in_one_line(value: str, capsys: Captured) -> None:
    assert cli.main(["status", "outputs", value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 1100
    assert line.endswith("see `segexp status --help`")


def test_a_word_that_no_file_name_can_hold_is_refused(refusal: Callable[..., str]) -> None:
    for words in (["train", "--plugin", "a/\ud800"], ["status", "\udfffa"], ["data", "check", "/\ud800/b"]):
        assert "cannot be encoded" in refusal(*words)


def test_help_and_version(capsys: Captured) -> None:
    for words, code in (([], 2), (["--help"], 0), (["-h"], 0), (["help"], 0)):
        assert cli.main(words) == code
        assert capsys.readouterr().out == cli.HELP
    lines = cli.HELP.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [tuple(line.split(maxsplit=1)) for line in lines] == list(COMMANDS.items())
    for flag in ("--version", "-V"):
        assert cli.main([flag]) == 0
        assert capsys.readouterr().out == f"segexp {segexp.__version__}\n"
    for command in COMMANDS:
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main([command, "--help"])
        assert f"usage: segexp {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code", "line"), [
    (KeyboardInterrupt(), 130, "\nsegexp: interrupted\n"),
    (UsageError("what, where and the cure"), 2, "segexp: what, where and the cure\n"),
    (OSError(errno.ENOSPC, "No space left on device", "/full/disk"), 2,
     "segexp: No space left on device: /full/disk; free some space, then repeat the command\n"),
    (OSError(errno.EROFS, "Read-only file system", "/a"), 2,
     "segexp: Read-only file system: /a; change its permissions, or choose another place\n"),
    (OSError(errno.EISDIR, "Is a directory", "/a"), 2, "segexp: Is a directory: /a\n"),
])  # fmt: skip
def test_an_error_of_a_command_becomes_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(words: object) -> int:
        raise error

    monkeypatch.setattr("segexp.commands.show.command", fails)
    assert cli.main(["show"]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(("words", "code"), [
    (["--version"], 0), (["trian"], 2), pytest.param(["train", "sead=1"], 2, marks=pytest.mark.slow),
])  # fmt: skip
def test_as_a_process_it_ends_with_its_exit_code(words: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segexp"]
    assert subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, check=False).returncode == code


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """As `segexp list activations | head -1`."""
    line = f"'{sys.executable}' -m segexp list activations --json | head -1; exit ${{PIPESTATUS[0]}}"
    printed = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, "[\n", "")


# train


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs are not carried out: each ends as printed."""

    def end(status: str, **facts: Any) -> None:
        def execute(prepared: Any) -> Outcome:
            return Outcome(prepared.run_dir, status, facts.pop("summary", {}), **facts)

        monkeypatch.setattr("segexp.running.execute.execute", execute)

    return end


def test_a_run_that_is_done(ended: Callable[..., None], outputs: Path, capsys: Captured) -> None:
    summary = {"activation": "arctan", "dice": 0.51234, "iou": float("nan"), "best_epoch": 2, "epochs": 3}
    summary |= {"threshold_tuned": -0.25}
    ended("done", summary=summary, diagnostics={"dead_output": 0.123, "dead_gradient": None})
    assert cli.main(["train", *TINY, "activation=arctan", f"outputs={outputs}"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.search(r" 0\.5123 +dice$", printed.out, re.MULTILINE)
    assert re.search(r" - +iou$", printed.out, re.MULTILINE)
    named = ["arctan + dice_ce", "2 of 3", "-0.25", "12.3%", f"{outputs}/default/"]
    assert [text for text in named if text not in printed.out] == []


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_run_that_did_not_end_well(status: str, ended: Callable[..., None], outputs: Path, capsys: Captured) -> None:
    ended(status, reason="the reason")
    assert cli.main(["train", *TINY, f"outputs={outputs}"]) == 1
    printed = capsys.readouterr()
    assert status in printed.err
    assert printed.err.endswith("the reason\n")
    assert "traceback.txt" not in printed.out  # there is none where the reason is foreseen
    run_dir = Path(printed.out.split("run directory: ")[1].strip())
    run_dir.mkdir(parents=True)
    (run_dir / "traceback.txt").touch()
    assert cli.main(["train", *TINY, f"outputs={outputs}"]) == 1
    assert str(run_dir / "traceback.txt") in capsys.readouterr().out


def test_a_dry_run_shows_the_run_and_writes_nothing(outputs: Path, capsys: Captured) -> None:
    """Flags may stand anywhere among the overrides."""
    assert cli.main(["train", TINY[0], "--dry-run", *TINY[1:], "activation=probit", f"outputs={outputs}"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    shown = yaml.safe_load(printed.out.partition("\nlesions:")[0])
    assert (shown["activation"]["name"], shown["dataset"]["number"]) == ("normal_cdf", 24)
    assert [text for text in ("14 train", "4 val", "6 test", "32 px") if text not in printed.out] == []
    name = r"lesions-unet-tu_test_resnet-native-normal_cdf-dice_ce-s0-\w{8}"
    assert re.search(rf"{re.escape(str(outputs))}/default/{name}$", printed.out.strip())
    assert not outputs.exists()


def test_a_data_set_and_a_study_of_ones_own(outputs: Path, tmp_path: Path, capsys: Captured) -> None:
    for folder in ("configs/dataset", "configs/study"):
        (tmp_path / folder).mkdir(parents=True)
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (12, 40, 48), dtype=np.uint8)
    write_pairs(tmp_path, ((f"{i}.png", grey, (grey > 127) * 255) for i, grey in enumerate(pixels)))
    own = f"defaults: [folder]\nname: mine\nroot: {tmp_path}\nimage_size: 32\n"
    (tmp_path / "configs" / "dataset" / "mine.yaml").write_text(own)
    study = "# @package _global_\ndefaults:\n  - override /dataset: mine\n  - override /loss: dice\n"
    study += "study: {name: margins}\n"
    (tmp_path / "configs" / "study" / "margins.yaml").write_text(study)
    words = ["train", "--config-dir", str(tmp_path / "configs"), "study=margins", "--dry-run", f"outputs={outputs}"]
    assert cli.main([*words, *(o for o in TINY if not o.startswith("dataset."))]) == 0
    printed = capsys.readouterr().out
    assert mentions(printed, "mine", "7 train", "2 val", "3 test", "sigmoid + dice")
    assert f"{outputs}/margins/mine-unet-tu_test_resnet-" in printed


def test_a_recorded_run_again(outputs: Path, tmp_path: Path, capsys: Captured) -> None:
    config = tiny_config(outputs, "activation=arctan", "loss=dice", "loss.smooth=1", "study.name='a b'")
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert cli.main(["train", "--dry-run", "--from", str(tmp_path), "seed=7"]) == 0  # not where its author wrote
    shown = yaml.safe_load(capsys.readouterr().out.partition("\nlesions:")[0])
    wanted = {**yaml.safe_load(config_yaml(config)), "seed": 7, "outputs": str(Path("outputs").absolute())}
    assert shown == {**wanted, "trainer": {**wanted["trainer"], "format": "contiguous"}}  # what auto is for 32 px


def test_a_key_given_twice_is_reported(tmp_path: Path, capsys: Captured) -> None:
    words = ["train", "--dry-run", *SMALL, f"outputs={tmp_path}", "loss=dice", "seed=1", "loss=bce", "seed=1"]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if "twice" in line]
    assert [text for text in ("loss=dice", "loss=bce") if text not in line] == []
    assert "name: ce" in printed.out


# sweeps


def here(tasks: Sequence[Task], *_: Any, show: Callable[[Board], None], **__: Any) -> Board:
    """Each run in this process, without the seconds in which others start."""
    board = Board(len(tasks))
    for task in tasks:
        told: dict[str, str] = {}
        code = pool.run(task.payload, told.update)
        board.endings[task.name] = Ending(code, reason=told.get("reason", ""))
        show(board)
    return board


@pytest.fixture(scope="module", params=["here", pytest.param("in processes", marks=pytest.mark.slow)])
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The outputs of a small sweep over seeds, and what it printed. tests/sweep/test_pool.py is about its processes."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "here":
            patch.setattr("segexp.sweep.local.run_tasks", here)
        yield outputs_of_sweep(tmp_path_factory.mktemp("sweep") / "outputs")


def outputs_of_sweep(outputs: Path) -> Path:
    with log_as_before(), redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["train", "-m", *ONE_EPOCH, "seed=0,1", f"outputs={outputs}"]) == 0
    (outputs / "printed.txt").write_text(printed.getvalue())
    return outputs


ONE_EPOCH = [*(word for word in TINY if not word.startswith("trainer.epochs")), "trainer.epochs=1"]


def run_dirs(outputs: Path) -> list[Path]:
    return sorted(path.parent for path in outputs.glob("*/*/run.json"))


def rows_of(printed: str) -> list[str]:
    """Lines of the table of a sweep that begin a row."""
    table = printed.partition("\n-----")[2].partition("\nstudy: ")[0]
    return [line for line in table.splitlines()[1:] if re.search(r"\b(done|failed)\b", line)]


def test_a_sweep_makes_one_run_per_combination(swept: Path) -> None:
    printed = (swept / "printed.txt").read_text()
    assert [json.loads((d / "run.json").read_text())["config"]["seed"] for d in run_dirs(swept)] == [0, 1]
    assert [("done" in row, "done before" in row) for row in rows_of(printed)] == [(True, False)] * 2
    named = ["[2/2] done", f"study: {swept}/default", *(d.name for d in run_dirs(swept))]
    assert [text for text in named if text not in printed] == []


def test_the_logs_of_the_runs_of_a_sweep_hold_epochs_and_scoring(swept: Path) -> None:
    for run_dir in run_dirs(swept):
        log = (run_dir / "log.txt").read_text()
        assert mentions(
            log, "INFO epoch 1/1", "train loss", "val loss", "val dice", "best", "INFO scoring 4 val and 6 test"
        )
        assert not (run_dir / PROGRESS).exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_epochs_are_printed_where_no_bar_is_drawn(
    terminal: bool, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_as_before():
        log_to_terminal()
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: terminal)
        logging.getLogger("segexp").info("epoch 1/2")
        logging.getLogger("segexp").warning("careful")
    printed = capsys.readouterr()
    assert printed.out == "" if terminal else "epoch 1/2\n"
    assert printed.err == "segexp: careful\n"


def test_a_run_that_is_done_is_not_run_again(swept: Path, capsys: Captured) -> None:
    """Neither by the sweep nor as a single run, which has the same identity."""
    before = {path: path.stat().st_mtime_ns for d in run_dirs(swept) for path in d.rglob("*")}
    assert cli.main(["train", "-m", *ONE_EPOCH, "seed=0,1", f"outputs={swept}"]) == 0
    assert ["done before" in row for row in rows_of(capsys.readouterr().out)] == [True, True]
    assert cli.main(["train", *ONE_EPOCH, "seed=1", f"outputs={swept}"]) == 0
    assert str(run_dirs(swept)[1]) in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for d in run_dirs(swept) for path in d.rglob("*")} == before


@pytest.mark.parametrize(("override", "code", "named"), [
    ("activation=identity,sigmoid", 0, ["activation=identity", "loss=dice_ce"]),
    ("seed=0,-1", 1, ["seed=-1"]),
])  # fmt: skip
def test_a_wrong_combination_stops_no_other(
    override: str, code: int, named: list[str], swept: Path, capsys: Captured
) -> None:
    assert cli.main(["train", "-m", *ONE_EPOCH, override, f"outputs={swept}"]) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [text for text in named if text not in printed.out] == []
    assert ["done before" in row for row in rows_of(printed.out)] == [True]


# doctor


def test_doctor(capsys: Captured) -> None:
    code = cli.main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert {f["state"] for f in findings} <= {"ok", "note", "bad"}
    assert code == (1 if any(f["state"] == "bad" for f in findings) else 0)
    what = {f["what"]: f for f in findings}
    expected = {"segexp", "torch", "torchvision", "segmentation-models-pytorch", "hydra-core", "threads", "configs"}
    assert expected <= set(what)
    assert what["segexp"]["detail"].startswith(segexp.__version__)
    assert all(f["cure"] for f in findings if f["state"] == "bad")
    assert cli.main(["doctor"]) == code
    table = capsys.readouterr().out
    assert [name for name in what if not re.search(rf"^{re.escape(name)} ", table, re.MULTILINE)] == []


def test_doctor_survives_what_is_broken_or_missing(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = ["_torch", "_vision", "_device", "_configs"]
    for name in checks:

        def fails() -> Iterator[doctor.Finding]:
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
            yield

        fails.__name__ = name
        monkeypatch.setattr(doctor, name, fails)
    version = importlib.metadata.version

    def other(name: str) -> str:
        if name == "scipy":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "timm" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    assert cli.main(["doctor", "--json"]) == 1
    bad = {f["what"]: f for f in json.loads(capsys.readouterr().out) if f["state"] == "bad"}
    assert set(bad) == {"scipy", "timm", *(name.strip("_") for name in checks)}
    assert bad["scipy"]["cure"] == "pip install 'scipy>=1.13'"
    assert bad["timm"]["detail"].startswith("0.1 ")
    assert bad["torch"]["detail"] == "RuntimeError: operator torchvision::nms does not exist"
    assert all(f["cure"] for f in bad.values())


@pytest.mark.parametrize("library", [b"", b"no library"], ids=["without operators", "of another torch"])
def test_doctor_loads_the_operators_of_torchvision(
    library: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [found.state for found in doctor._vision()] == ["ok"]
    if library:
        (tmp_path / "_C.so").write_bytes(library)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (found,) = doctor._vision()
    assert (found.what, found.state) == ("torchvision", "bad")
    assert "torchvision" in found.cure
