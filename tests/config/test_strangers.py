"""What a stranger's files, an unset variable or a slip may do: one line, exit code 2, and no secret in a record."""

import copy
import errno
import io
import json
import os
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fabricated import make_run
from timing import within

from segexp import cli
from segexp.compare.claims import read_claims
from segexp.config import preset_file
from segexp.config.arm import read_tuned
from segexp.config.compose import compose, hydra_session, parse_overrides, readable, recorded_tree, unknown_key
from segexp.errors import UsageError
from segexp.records import run_name
from segexp.records.files import read_json, read_yaml, shown_command
from segexp.training.checkpoint import save_checkpoint

Captured = pytest.CaptureFixture[str]

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS: dict[str, tuple[str | bytes, str]] = {
    "laughs": (LAUGHS, "100,000 values"),
    "merged": (MERGED, "100,000 values"),
    "cycle": ("a: &a [*a]\n", "100 levels"),
    "deep": ("a: " + "[" * 500, "not YAML"),
    "powers-of-60": ("a: 1" + ":1" * 1000, "400 digits"),
    "twice": ("a: 1\nb: 2\na: 3\n", "line 3: a is given twice"),
    "large": ("a: 1\n#" + "x" * 2**20, "1,048,576 bytes"),
    "not-utf-8": (b"a: 1\nb: \xff\n", "line 2"),
    "tab": ("a:\n\t- 1\n", "line 2"),
}


@pytest.mark.parametrize("name", [*YAMLS, "pipe"])
def test_no_yaml_file_takes_for_ever_wherever_it_is_read(name: str, tmp_path: Path) -> None:
    content, said = YAMLS.get(name, ("", "plain file"))
    for path in (tmp_path / "config.yaml", tmp_path / "dataset" / "x.yaml"):
        path.parent.mkdir(exist_ok=True)
        if name == "pipe":
            os.mkfifo(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path = tmp_path / "config.yaml"
    begun = time.process_time()
    for read in (read_yaml, read_tuned, read_claims, lambda path: recorded_tree(path.parent)):
        with pytest.raises(UsageError) as caught:
            read(path)
        assert said in str(caught.value)
        assert str(path) in str(caught.value)
    if name in ("laughs", "powers-of-60", "pipe"):
        with hydra_session(tmp_path, allow_env=True) as extra, pytest.raises(UsageError) as caught:
            compose(["dataset=x"], extra)
        assert ("unknown dataset 'x'" if name == "pipe" else said) in str(caught.value)
    assert within(time.process_time() - begun, 10)


@pytest.mark.parametrize(("content", "said"), [
    (b"[" * 10**5, "100 levels"),
    (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "100 levels"),
    (b'{"a": 1, "a": 2}', "'a' is given twice"),
    (b'{\n"a": "\xff"}', "line 2"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    (b"", "not JSON"),
])  # fmt: skip
def test_json_files_that_are_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_bytes(b'{"a": [[[{"b": null}]]], "c": {"a": 1}}')
    assert read_json(tmp_path / "run.json") == {"a": [[[{"b": None}]]], "c": {"a": 1}}


ODD: list[Any] = [None, {"a": {"b": 1}}, "\x1b[2J\ud800"]


@pytest.mark.parametrize("odd", [pytest.param(odd, id=ascii(odd)) for odd in ODD])
def test_one_bad_record_breaks_no_command_for_a_study(odd: Any, tmp_path: Path, capsys: Captured) -> None:
    """Every key of run.json in turn has an odd value."""
    study = tmp_path / "study"
    make_run(study, "aaaaaaaa")
    path = make_run(study, "bbbbbbbb", seed=1) / "run.json"
    record = json.loads(path.read_text())
    inner = [(key, name) for key, value in record.items() if isinstance(value, dict) for name in value]
    for key in [*((key, None) for key in record), *inner[:: len(inner) // 4]]:
        changed = copy.deepcopy(record)
        (changed if key[1] is None else changed[key[0]])[key[1] or key[0]] = odd
        path.write_text(json.dumps(changed))
        for words in (("status", str(study)), ("collect", str(study), "-o", str(tmp_path))):
            assert cli.main(words) < 2, (key, words)
            printed = capsys.readouterr()
            assert "unexpected" not in printed.err, (key, words)
            assert "\x1b" not in printed.out + printed.err
        assert "aaaaaaaa" in (tmp_path / "runs.csv").read_text()


SECRET = "hunter2"
LOOKS = {
    "plain": "${oc.env:SECRET}",
    "escaped": '"\\x24{oc.env:SECRET}"',
    "in braces of a sweep": "'$\\{oc.env:SECRET\\}'",
    "its name put together": '"${${.adapter}.env:SECRET}"',
    "inside another": '"${oc.select:a,${oc.env:SECRET}}"',
    "from text": '"${oc.decode:x}"',
    "blanks": '"${ oc.env : SECRET}"',
}


@pytest.mark.parametrize("how", LOOKS)
def test_a_strangers_configuration_reads_no_variable(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    preset = preset_file("dataset", "lesions_small").read_text().replace("name: null", "").replace("\nname:", "\n#")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "x.yaml").write_text(f"{preset}\nname: {LOOKS[how]}\n")
    with hydra_session(tmp_path) as extra, pytest.raises(UsageError, match=r"x\.yaml, line .*--allow-env") as caught:
        compose(["dataset=x"], extra)
    assert SECRET not in str(caught.value)
    if how == "plain":
        with hydra_session(tmp_path, allow_env=True) as extra:
            assert compose(["dataset=x"], extra).dataset.name == SECRET
        with hydra_session() as extra:  # typed by the user
            assert compose(["dataset.name=${oc.env:SECRET}"], extra).dataset.name == SECRET
        (tmp_path / "dataset" / "x.yaml").write_text(f"{preset}\nname: size-${{dataset.image_size}}\n")
        with hydra_session(tmp_path) as extra:
            assert compose(["dataset=x", "dataset.image_size=64"], extra).dataset.name == "size-64"


def test_a_record_masks_what_looks_like_a_secret() -> None:
    typed = ["segexp", "wandb.api_key=a b", "--token", "c", "uri=https://me:pw@host/x", "key=ghp_0123456789abcdef"]
    shown = shown_command([*typed, "x=0123456789abcdef0123456789abcdef", "author=me", "optimizer.lr=1e-3", "a@b"])
    masked = ["segexp", "wandb.api_key=***", "--token", "***", "uri=https://***@host/x", "key=***"]
    assert shown == [*masked, "x=***", "author=me", "optimizer.lr=1e-3", "a@b"]


@pytest.mark.parametrize("part", ["x", "-", "1", "_", "a-"])
def test_masking_a_long_word_takes_no_longer_than_its_length(part: str) -> None:
    begun = time.process_time()
    shown_command([part * 20_000])
    assert time.process_time() - begun < 2


TYPED = ["007", "1e3", "1.50", "1_000", "yes", "true", "NaN", "2024-01-01", "0x10", "Zoë", "日本", "a (1)", "a\\\\b"]


def test_text_is_recorded_as_it_was_typed() -> None:
    read = [one.value() for one in parse_overrides(readable([f"dataset.name={text}" for text in TYPED]))]
    assert [str(one) for one in read] == TYPED
    with hydra_session():
        config = compose(readable(["dataset.name=007", "study.name=1e3", "seed=007"]))
    assert (config.dataset.name, config.study.name, config.seed) == ("007", "1e3", 7)
    assert readable(["study.name=1.0,1.50", "dataset.name=null"]) == ["study.name=1.0,'1.50'", "dataset.name=null"]
    assert readable(["dataset.root=a\\ b", "dataset.root=a,b", "augment=none"])[0] == "dataset.root=a\\ b"


CURES = [
    ("dataset.root", "dataset=folder dataset.root=X"),
    *((key, "dataset=folder dataset.root=X") for key in ("data", "path")),
    *((key, "optimizer.lr") for key in ("lr", "learning_rate", "trainer.lr")),
    *((key, "trainer.epochs") for key in ("epochs", "max_epochs")),
    *((key, "trainer.batch_size") for key in ("batch", "bs", "trainer.batch", "batch_size")),
    *((key, "dataset.image_size") for key in ("size", "img_size", "image_size")),
    *((key, "backbone") for key in ("encoder", "encoder_name")),
    *((key, "backbone.weights") for key in ("weights", "pretrained", "model.weights")),
    *((key, "activation") for key in ("act", "output_activation")),
    ("hidden", "hidden_activation"),
    ("relu", "hidden_activation=relu"),
    ("gpu", "trainer.device"),
    ("num_workers", "trainer.workers"),
    ("fold", "split.fold"),
    ("classes", "dataset.num_classes"),
    ("images", "dataset=folder dataset.images=X"),
    ("optimizer.nesterov", "optimizer=sgd optimizer.nesterov=X"),
]


def test_keys_are_suggested_by_their_meaning() -> None:
    with hydra_session():
        said = {key: unknown_key(key, [f"{key}=X"]) for key, _ in CURES}
    assert said == {key: f"unknown key '{key}'; did you mean {cure}?" for key, cure in CURES}


SLIPS = [
    # command line, what the answer must name
    ("train dataset=folder dataset.root=${oc.env:NOPE}", ["dataset.root", "NOPE"]),
    ("train hydra.mode=${oc.env:NOPE}", ["hydra.mode", "NOPE"]),
    ("train -m study.name=${oc.env:NOPE} seed=0,1", ["study.name", "NOPE"]),
    ("train tuned=${oc.env:NOPE}", ["tuned", "NOPE"]),
    ("train study.name=${study.name}", ["study.name"]),
    ("train augment=[[1]]", ["augment=[[1]]"]),
    ("train dataset.spacing.0=x", ["dataset.spacing.0=x"]),
    ("train hydra=1", ["hydra.KEY"]),
    ("train activation=[1,2]", ["activation=[1,2]"]),
    ("train loss=sum loss.terms={1:1,ce:1}", ["loss '1'"]),
    ("train dataset=/my/images", ["dataset=folder dataset.root=/my/images"]),
    ("train activation=relu", ["hidden_activation=relu"]),
    ("train outputs=", ["outputs=", "variable"]),
    ("train dataset=folder dataset.root=", ["dataset.root=", "variable"]),
    ("train --from=", ["--from=", "variable"]),
    ("train -m seed=range(1000000000)", ["1,000,000,000", "100,000"]),
    ("train -m seed=range(1000) split.seed=range(1000)", ["1,000,000", "100,000"]),
    ("train dataset.name=\udcff", ["dataset.name", "UTF-8"]),
    ("train dataset.name=${dataset.name}", ["dataset.name=${dataset.name}"]),
]


@pytest.mark.parametrize(("line", "named"), SLIPS)
def test_slips_are_answered_in_one_line(line: str, named: list[str], tmp_path: Path, capsys: Captured) -> None:
    with mock.patch("segexp.commands.train.log_to_terminal"):
        code = cli.main([*line.split(), *(["outputs=" + str(tmp_path)] if "outputs" not in line else [])])
    err = capsys.readouterr().err
    assert code == 2
    assert len(err.splitlines()) == 1
    assert [name for name in named if name not in err] == []
    assert list(tmp_path.iterdir()) == []


def test_the_reason_of_an_error_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "x.yaml").write_text("# @package _global_\ntrainer: 5\n")
    with hydra_session(tmp_path) as extra, pytest.raises(UsageError, match=r"^study=x .*study/x.*int"):
        compose(["study=x"], extra)


def test_an_empty_argument_is_an_unset_variable(capsys: Captured) -> None:
    assert cli.main(["status", ""]) == 2
    assert "variable" in capsys.readouterr().err


def test_a_deleted_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setenv("PWD", str(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    assert cli.main(["train", "--dry-run"]) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err


def test_an_unforeseen_error_is_one_line_with_the_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with mock.patch("segexp.commands.list.command", side_effect=ZeroDivisionError("by \x1b[2J zero")):
        assert cli.main(["list"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (file,) = tmp_path.iterdir()
    assert str(file) in line
    assert "\\x1b" in line
    assert "Traceback" in file.read_text()


class FullDisk(io.BytesIO):
    """Refuses the first large write, as a full disk does; torch then writes an end to the archive, and complains."""

    def write(self, data: Any) -> int:
        if len(data) > 1000 and not self.getvalue().endswith(b"full"):
            super().write(b"full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_is_named_when_a_checkpoint_is_written(tmp_path: Path) -> None:
    with (
        mock.patch("segexp.records.owned.Folder.open", return_value=FullDisk()),
        mock.patch("os.fsync"),
        pytest.raises(OSError, match=r"No space left.*last\.pt"),
    ):
        save_checkpoint(tmp_path / "last.pt", {"a": torch.zeros(1000)})


def test_run_directories_are_visible_and_their_names_fit() -> None:
    assert run_name([".hidden", "unet"], "0123abcd") == "_hidden-unet-0123abcd"
    assert run_name(["..", "unet"], "0123abcd") == "___unet-0123abcd"
    for part in ("日" * 75, "日" * 500, "a" + "é" * 300):
        name = run_name([part, *["x" * 20] * 5], "0123abcd")
        assert len(f"{name}.old1".encode()) <= 255
        assert name.endswith("-0123abcd")


def test_a_name_is_derived_from_the_folder_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scans" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "scans" / "sub")
    with hydra_session():
        assert compose(["dataset=folder", "dataset.root=.."]).dataset.name == "scans"
        with pytest.raises(UsageError, match=r"dataset\.name"):
            compose(["dataset=folder", "dataset.root=/"])
