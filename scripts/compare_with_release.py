"""Shows that this checkout writes what an earlier commit wrote: the same runs, made by both, compared file by file.

    python scripts/compare_with_release.py [--release 83d9e4b] [--keep DIR] [--only NAME,NAME]

Every case is one or several commands on small data, run once with the release and once with this checkout, in the same
folder, on one CPU thread. Then the new code continues, skips and reads what the release has begun. Prints one line per
case; the exit code is 1 when a table, an identity, a checkpoint, a key or a number differs. What may differ is listed
in `VOLATILE` (times, hosts, versions) and `WORDING` (sentences for people).
"""

import argparse
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent

VOLATILE = {"started", "finished", "seconds", "host", "pid", "git", "git_commit", "git_dirty", "git_diff_sha", "at"}
VOLATILE |= {
    "command",
    "created",
    "bytes",
    "provenance",
    "boot",
    "eta_s",
    "images_per_s",
    "versions",
    "device",
    "earlier_attempts",
    "sha256",
}
"""Keys of JSON files and columns of tables that hold a time, a host or what the run was made with."""

WORDING = {"warnings", "error", "reason", "warning", "note", "notes", "headline", "text", "claim", "verdict", "scope"}
WORDING |= {
    "warnings_of_runs",
    "problems",
    "title",
    "label",
    "labels",
    "caption",
    "missing",
    "question",
    "sentences",
    "to_decide",
    "line",
}
"""Keys whose values are sentences, which may be written better, and the line of a claim in its file."""

ADDED = {"notes", "hd95_missed", "limit", "background", "max_pixels", "allow_shared_groups", "keep_last", "figures"}
ADDED |= {"sha256", "wait", "class_names", "phase", "splits", "convergence", "method", "per_seed"}
ADDED |= {"n_train_groups", "n_test_groups", "ap_error", "nsd", "overflows_fp16"}
ADDED |= {"class_id", "interval", "p_block", "condition", "n_splits", "split_floor", "split_floor_se", "skewness"}
ADDED |= {"influence", "new_training_sets", "n_family", "others", "variant"}
ADDED |= {"mask_antialias", "mask_other", "orientation", "pages", "download", "regions", "channel_names", "normalise"}
ADDED |= {"class_colors", "licence", "citation", "url", "unit", "leave_one_group_out", "stratify", "image_hash", "data"}
ADDED |= {"object_f1_10", "object_f1_50", "sq", "pq", "n_test_cases", "distance_unit", "objects", "stored", "each"}
"""What this checkout records and the release did not: keys by their last part, columns as <key> or config_..._<key>."""


GONE_OR_NEW = ("checkpoints/last.pt", "objects.csv")
"""What a run that is done no longer keeps, and a table that it did not have."""

ANSWERED_ANEW = {"p_holm", "seeds_needed", "df", "slope", "slope_sd"}
"""What `compare` computes in another way: families, forecasts as ranges, degrees of freedom; no slope over one size."""

CLOSER = {"ap": 0.002, "auroc": 0.0001}
"""Scores that were rough: by how much they may differ."""

AS_BEFORE = "split.method=largest_first"
"""What the checkout needs to split groups as the release did."""


def is_added(name: str) -> bool:
    """Whether a dotted key or a column is one of `ADDED`."""
    return any(name.rpartition(".")[2] == a or (name.startswith("config_") and name.endswith(f"_{a}")) for a in ADDED)


TINY = (
    "dataset.image_size=32",
    "trainer.epochs=2",
    "trainer.batch_size=5",
    "trainer.device=cpu",
    "trainer.threads=1",
    "model.encoder_depth=3",
    "model.decoder_channels=[16,8,8]",
    "backbone.name=tu-resnet18",
)
EMBEDDED = (*TINY, "dataset.number=24")
FOLDER = (
    *TINY,
    "dataset=folder",
    "dataset.root=data",
    "dataset.mask_coding=index",
    "dataset.num_classes=3",
    "dataset.group_file=patients.csv",
    "dataset.group_column=patient",
)

SINGLE: dict[str, tuple[str, ...]] = {
    "binary": (*EMBEDDED, "activation=arctan", "loss=dice"),
    "softmax": (*FOLDER, "activation=normal_cdf", "loss=ce", "augment=medium"),
    "independent": (*FOLDER, "head.mode=independent", "activation=student_t3", "loss=dice_ce", "augment=strong"),
    "hidden": (*EMBEDDED, "hidden_activation=mish", "activation=sigmoid", "loss=tversky", "optimizer=sgd"),
    "diagnostics": (*EMBEDDED, "hidden_activation=prelu", "scheduler=plateau", "trainer.epochs=4", "init.bias=0.01"),
    "fold": (*FOLDER, "split.folds=3", "split.fold=1", "activation=loglog", "loss=ce", "dataset.fit=pad"),
    "regression": (*EMBEDDED, "activation=identity", "loss=mse", "metrics.empty_policy=both_empty_one", "seed=3"),
}
"""Runs of one command each."""

KILLED = (*EMBEDDED, "activation=laplace", "loss=dice", "trainer.epochs=12", "study.name=killed")
SWEEP = (*EMBEDDED, "activation=sigmoid,arctan", "loss=dice,bce", "seed=range(3)", "study.name=sweep")
TUNE = (*EMBEDDED, "activation=sigmoid,arctan", "loss=dice", "study.name=tuned")
QUESTIONS = "boundary,calibration,convergence,cost,diagnostics,objects,threshold"
SLOTS = ("hydra.launcher.n_jobs=1",)


class Version:
    """One of the two code bases. code: the folder that holds the package."""

    def __init__(self, name: str, code: Path, work: Path) -> None:
        self.name, self.work = name, work
        self.environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        words = (*words, AS_BEFORE) if self.name == "checkout" and "dataset=folder" in words else words
        command = [sys.executable, "-m", "segexp", *words]
        return subprocess.Popen(
            command, cwd=self.work, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __call__(self, *words: str, code: int = 0) -> str:
        """The standard output of a command, which must end with ``code``."""
        process = self.start(*words)
        out, err = process.communicate()
        if process.returncode != code:
            raise SystemExit(f"{self.name}: segexp {' '.join(words)}: exit code {process.returncode}\n{out}{err}")
        return out


def write_data(folder: Path) -> None:
    """24 images of three classes (squares in noise), two per patient, with a patient table."""
    drawn = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rows = []
    for number in range(24):
        mask = np.zeros((40, 48), np.uint8)
        for value in (1, 2):
            top, left = drawn.integers(2, 24, 2)
            mask[top : top + 10, left : left + 12] = value
        image = np.clip(drawn.normal(90, 25, mask.shape) + 50 * mask, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")
        rows.append([f"{number:03}", f"P{number // 2}"])
    with (folder / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["stem", "patient"], *rows])


def kill_midway(version: Version) -> None:
    """Begin the run `KILLED` and end it by SIGKILL after its second epoch at the earliest."""
    process = version.start("train", *KILLED)
    folder = version.work / "outputs" / "killed"
    while process.poll() is None and not list(folder.glob("*/checkpoints/last.pt")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads(next(folder.glob("*/run.json")).read_text())["status"] == "running", "the run ended too early"


def make_all(version: Version, only: Sequence[str]) -> None:
    """Every case with one version, into outputs/ of the working folder."""
    for name, words in SINGLE.items():
        if not only or name in only:
            version("train", *words, f"study.name={name}")
    if not only or "evaluate" in only:
        version("train", *SINGLE["binary"], "study.name=evaluate")
        run_dir = str(next((version.work / "outputs" / "evaluate").glob("*-*")))
        version("evaluate", run_dir, "--split", "val", "--threshold", "tuned", "--tta")
    if not only or "killed" in only:
        kill_midway(version)
        version("train", *KILLED)
    if not only or "tuned" in only:
        version("tune", *TUNE, "--rates", "1e-3,3e-3", *SLOTS)
        version("train", "-m", *TUNE, "seed=0,1", "tuned=outputs/tuned-tuning/tuned.yaml", *SLOTS)
    if not only or "sweep" in only:
        version("train", "-m", *SWEEP, *SLOTS)


def files_in(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two decoded JSON or YAML values differ, but for what is volatile or wording."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if key not in a and (is_added(key) or key in ("split.fractions", "split.seed")):
                continue  # the last two: the context of tuned.yaml
            if key not in a or key not in b:
                yield f"{where}.{key} only in the {'release' if key in a else 'checkout'}"
            elif key not in VOLATILE | WORDING | ANSWERED_ANEW and not is_closer(key, a[key], b[key]):
                yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}[{n}]")
    elif a != b and not (isinstance(a, float) and isinstance(b, float) and np.isnan(a) and np.isnan(b)):
        yield f"{where}: {str(a)[:60]!r} and {str(b)[:60]!r}"


def is_closer(name: str, a: Any, b: Any) -> bool:
    """Whether two values of a score, or their cells, differ no more than `CLOSER` allows."""
    try:
        return name in CLOSER and abs(float(a) - float(b)) <= CLOSER[name]
    except (TypeError, ValueError):
        return False


def state_differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two checkpoints differ, but for the time the epochs took, and the run that newer ones name."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield f"tensor {where}"
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() | {"identity"} == b.keys() | {"identity"}:
        for key in a:
            if key not in ("seconds", "timings", "images_per_s"):
                yield from state_differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from state_differences(x, y, f"{where}[{n}]")
    else:
        yield from differences(a, b, where)


def table_differences(a: bytes, b: bytes, collected: bool = False) -> list[str]:
    """Columns of two CSV files that differ, but for volatile ones; collected tables may order and add columns."""
    if a == b:
        return []
    tables = [list(csv.reader(io.StringIO(text.decode("utf-8-sig")))) for text in (a, b)]
    kept = [n for n, name in enumerate(tables[1][0]) if name in tables[0][0] or not is_added(name)]
    if collected:
        kept = [tables[1][0].index(name) for name in tables[0][0] if name in tables[1][0]]
    tables[1] = [[row[n] for n in kept] for row in tables[1]]
    if tables[0][0] != tables[1][0] or len(tables[0]) != len(tables[1]):
        return ["other columns or another number of rows"]
    wrong = {
        name
        for x, y in zip(*tables, strict=True)
        for name, u, v in zip(tables[0][0], x, y, strict=True)
        if u != v
        and name not in VOLATILE | WORDING
        and not is_closer(name, u, v)
        and not name.startswith(("version_", "device_"))
    }
    return [f"column {name}" for name in sorted(wrong)]


def compare_files(name: str, a: Path, b: Path) -> tuple[list[str], str]:
    """What differs between two files that must be equal, and how they were compared."""
    if name.endswith("timings.csv") or a.suffix in (".txt", ".log", ".out", ".db") or a.name == "lock":
        return [], "present"
    if a.suffix == ".csv":
        return table_differences(
            a.read_bytes(), b.read_bytes()
        ), "bytes" if a.read_bytes() == b.read_bytes() else "cells"
    if a.suffix == ".json":
        return list(differences(json.loads(a.read_text()), json.loads(b.read_text()))), "keys and values"
    if a.suffix == ".yaml":
        return list(differences(yaml.safe_load(a.read_text()), yaml.safe_load(b.read_text()))), "keys and values"
    if a.suffix == ".pt":
        return list(state_differences(*(torch.load(path, weights_only=True) for path in (a, b)))), "tensors"
    same = a.read_bytes() == b.read_bytes()
    if a.suffix == ".png" and not same:
        pixels = [np.asarray(Image.open(path)) for path in (a, b)]
        share = float((pixels[0] != pixels[1]).mean()) if pixels[0].shape == pixels[1].shape else 1.0
        return ([] if share < 0.05 else [f"{share:.1%} of the pixels differ"]), f"pixels ({share:.2%} differ: labels)"
    return ([] if same else ["other bytes"]), "bytes"


def compare_trees(old: Path, new: Path) -> int:
    """Print one line per study; returns how many files differ."""
    wrong = 0
    files = files_in(old), files_in(new)
    for study in sorted({name.split("/")[0] for name in (*files[0], *files[1])}):
        of_study = [{n: p for n, p in side.items() if n.split("/")[0] == study} for side in files]
        alone = sorted(of_study[0].keys() ^ of_study[1].keys())
        problems = [f"{name} only in one" for name in alone if not name.endswith(GONE_OR_NEW)]
        counts: dict[str, int] = {}
        for name in sorted(of_study[0].keys() & of_study[1].keys()):
            found, how = compare_files(name, of_study[0][name], of_study[1][name])
            counts[how] = counts.get(how, 0) + 1
            problems += [f"{name}: {what}" for what in found]
        shown = ", ".join(f"{count} by {how}" for how, count in sorted(counts.items()))
        print(f"{'DIFFERS' if problems else 'equal':8} {study:12} {shown}")
        for problem in problems[:20]:
            print(f"         {problem}")
        wrong += len(problems)
    return wrong


def tables_of(folder: Path) -> dict[str, bytes]:
    tables = {n: p for n, p in files_in(folder).items() if p.suffix == ".csv" and not n.endswith(GONE_OR_NEW)}
    return {n: p.read_bytes() for n, p in tables.items() if p.name != "timings.csv"}


def compare_answers(old: Version, new: Version) -> int:
    """Both versions read what the release has made: keys and numbers of every --json, and the collected tables."""
    wrong = 0
    run_a, run_b, *_ = sorted(str(p.parent) for p in (old.work / "outputs" / "sweep").glob("*/run.json"))
    asked = {
        "status": ("status", "outputs", "--json"),
        "show": ("show", run_a, "--json"),
        "diff": ("diff", run_a, run_b, "--json"),
        "compare": ("compare", "outputs/sweep", "--json"),
        "questions": ("compare", "outputs/sweep", "--json", "--questions", QUESTIONS),
        "nll on val": ("compare", "outputs/sweep", "--json", "--split", "val", "--metric", "nll"),
        "by loss": ("compare", "outputs/sweep", "--json", "--by", "loss", "--reference", "loss=dice"),
        "claims": ("compare", "outputs/sweep", "--json", "--claims", "nieradzik2021"),
        "list": ("list", "activations", "--json"),
    }
    for name, words in asked.items():
        problems = list(differences(*(json.loads(version(*words)) for version in (old, new))))
        print(f"{'DIFFERS' if problems else 'equal':8} --json of {name}")
        for problem in problems[:20]:
            print(f"         {problem}")
        wrong += len(problems)
    for version in (old, new):
        version("collect", "outputs/sweep", "-o", f"collected-{version.name}")
    for table in ("runs.csv", "images.csv"):
        a, b = ((old.work / f"collected-{version.name}" / table).read_bytes() for version in (old, new))
        problems = table_differences(a, b, collected=True)
        print(f"{'DIFFERS' if problems else 'equal':8} collect {table} {problems or ''}")
        wrong += len(problems)
    a, b = (json.loads(version("compare", "collected-release/runs.csv", "--json")) for version in (old, new))
    problems = list(differences(a, b))
    print(f"{'DIFFERS' if problems else 'equal':8} compare of collected tables {problems[:5] or ''}")
    return wrong + len(problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="83d9e4b", help="commit, or a folder with its files")
    parser.add_argument("--keep", type=Path, help="work in this new folder and keep it")
    parser.add_argument("--only", default="", help="names of cases, with commas; default: all")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="segexp-release-"))
    root.mkdir(parents=True, exist_ok=True)
    code, work = root / "code", root / "work"
    code.mkdir()
    if Path(options.release).is_dir():
        code = Path(options.release).resolve()
    else:
        archive = subprocess.run(
            ["git", "archive", options.release], cwd=REPOSITORY, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(code)], input=archive, check=True)
    write_data(work / "data")
    only = [name for name in options.only.split(",") if name]
    old, new = Version("release", code, work), Version("checkout", REPOSITORY, work)
    try:
        for version in (old, new):
            start = time.perf_counter()
            make_all(version, only)
            (work / "outputs").rename(root / version.name)
            print(f"made with the {version.name} in {time.perf_counter() - start:.0f} s", flush=True)
        wrong = compare_trees(root / "release", root / "checkout")
        if only:
            return int(wrong > 0)

        # What the release has begun, the checkout finishes: killed by one, continued by the other.
        kill_midway(old)
        new("train", *KILLED)
        expected, found = tables_of(root / "release" / "killed"), tables_of(work / "outputs" / "killed")
        crossed = expected.keys() == found.keys() and not any(table_differences(expected[n], found[n]) for n in found)
        print(f"{'equal' if crossed else 'DIFFERS':8} killed with the release, continued with the checkout")
        shutil.rmtree(work / "outputs")

        # What the release has finished, the checkout skips.
        shutil.copytree(root / "release", work / "outputs", symlinks=True)
        before = {n: p.stat().st_mtime_ns for n, p in files_in(work / "outputs").items() if "/.sweeps/" not in n}
        for name, words in SINGLE.items():
            new("train", *words, f"study.name={name}")
        new("train", "-m", *SWEEP, *SLOTS)
        after = {n: p.stat().st_mtime_ns for n, p in files_in(work / "outputs").items() if "/.sweeps/" not in n}
        print(f"{'equal' if before == after else 'DIFFERS':8} finished with the release, skipped by the checkout")
        wrong += (not crossed) + (before != after) + compare_answers(old, new)
        print("everything is as the release made it" if not wrong else f"{wrong} differences")
        return int(wrong > 0)
    finally:
        if options.keep is None:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
