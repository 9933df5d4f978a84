"""CSV, JSON, YAML and text that commands read, with content that nobody wrote: bombs, other versions, edited values.

`damage` flips bytes of any file of a run; here a file stays readable in its format, or is far larger than it looks.
"""

import csv
import difflib
import functools
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reliability import STUDY, Ending, Said, ended, fault_class, runs_of, said_by, study
from reliability.damage import DAMAGE, result_of, told

SMALL = (
    *(word for word in STUDY if not word.startswith(("activation=", "seed=", "study.name="))),
    *("activation=arctan", "study.name=fuzz"),
)
RECORD = (
    *(["status", "{study}"], ["compare", "{study}", "--json"], ["show", "{run}"], ["diff", "{run}", "{other}"]),
    *(["evaluate", "{run}"], ["collect", "{study}", "-o", "out"], ["report", "{study}", "-o", "out/page.html"]),
    *(
        ["card", "{run}", "-o", "out"],
        ["predict", "{run}", "x.png", "-o", "out"],
        ["train", "--from", "{run}", "--dry-run", "outputs=outputs"],
    ),
)
FOREIGN = ["compare", "table.csv", "--columns", "arm=model,seed=run,image=case,score=score", "--json"]
CLAIMS = ["compare", "{study}", "--claims", "claims.yaml"]
NOTE = ["report", "{study}", "--note", "note.md", "-o", "out/page.html"]
LISTED = ["data", "check", "manifest", "dataset.root=data", "dataset.manifest=manifest.csv", "split.seed=1"]
NNUNET = ["data", "check", "nnunet", "dataset.root=data", "split.seed=1"]

RECORDED: dict[str, tuple[list[str], ...]] = {
    "{run}/run.json": RECORD,
    "{run}/config.yaml": RECORD,
    **{f"{{run}}/{name}": RECORD for name in ("summary.csv", "images.csv", "epochs.csv", "split.csv")},
    **{f"{{run}}/{name}": RECORD[:7] for name in ("objects.csv", "thresholds.csv", "bins.csv", "diagnostics.csv")},
    **{f"{{run}}/{name}": RECORD[:7] for name in ("environment.txt", "timings.csv")},
    "{study}/.sweeps/plan-*.json": (*RECORD[:2], *RECORD[5:7], ["resume", "{study}"]),
    "{study}/.compared.json": (RECORD[1], RECORD[6]),
    **{f"{{study}}/{name}": (["compare", "{study}/runs.csv", "--json"],) for name in ("runs.csv", "images.csv")},
}
"""File -> the commands that read it. {run}: one of the study, {other}: another one."""

OWN: dict[str, tuple[list[str], ...]] = {
    "table.csv": (FOREIGN, ["report", *FOREIGN[1:4], "-o", "out/page.html"]),
    **{
        "claims.yaml": (CLAIMS,),
        "note.md": (NOTE,),
        "tuned.yaml": (["train", "--dry-run", *SMALL, "tuned=tuned.yaml"],),
    },
    **{"data/manifest.csv": (LISTED,), "data/dataset.json": (NNUNET,)},
}
"""Files that the user writes: what they say is what is asked, so another answer to another file is no lie."""


def prepare(folder: Path) -> None:
    """A study that was collected and compared, and beside it each file of `OWN`."""
    from segexp.config.arm import write_tuned

    study(folder)
    for command in ("collect", "compare"):
        said_by([command, str(folder / "outputs" / "s")])
    said_by(["train", "--dry-run", *SMALL], seconds=60)  # imports what would count as time of the first case
    images, labels = (folder / "data" / name for name in ("imagesTr", "labelsTr"))
    for made in (images, labels):
        made.mkdir(parents=True)
        for n in range(12):
            pixels = np.frombuffer(random.Random(n).randbytes(32 * 32), np.uint8).reshape(32, 32)
            pixels = pixels if made == images else pixels // 128
            Image.fromarray(pixels).save(made / f"c{n}{'_0000' * (made == images)}.png")
    rows = [f"imagesTr/c{n}_0000.png,labelsTr/c{n}.png" for n in range(12)]
    (folder / "data" / "manifest.csv").write_text("\n".join(["image,mask", *rows]) + "\n", encoding="utf-8")
    described = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".png"}
    described["numTraining"] = 12
    (folder / "data" / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    scores = [f"{arm},{seed},{n},{random.Random(f'{arm}{seed}{n}').random():.4f}"
              for arm in "ab" for seed in range(3) for n in range(6)]  # fmt: skip
    (folder / "table.csv").write_text("\n".join(["model,run,case,score", *scores]) + "\n", encoding="utf-8")
    claim = "{candidate: activation=arctan, reference: activation=sigmoid, metric: dice, relation: better}"
    (folder / "claims.yaml").write_text(f"claims:\n  - {claim}\n", encoding="utf-8")
    (folder / "note.md").write_text("# A note\n\nWith *text* and a [link](https://example.org).\n", encoding="utf-8")
    write_tuned(folder / "tuned.yaml", {"context": {}}, {("native", "arctan", "dice"): {"lr": 0.01}})
    Image.effect_mandelbrot((32, 32), (-2, -1.5, 1, 1.5), 20).save(folder / "x.png")


ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1,
        2,
        10**30,
        1e308,
        -0.5,
        float("nan"),
        float("inf"),
        "",
        " ",
        "nan",
        "1e999",
        "=1+1",
        "x" * 10**6,
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"": 0},
        {"_target_": "os.system"},
        "../../outside",
        "\0",
        "\ud800",
        "日本語",
        "a\nb",
        [1] * 10**5,
    ),
)


def edited_json(draw: random.Random, text: str) -> str:
    """A value, at any depth, removed, doubled, replaced, or of another version."""
    whole = json.loads(text)
    place: Any = whole
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return json.dumps(draw.choice(ODD))
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.7:
            place = place[key]
            continue
        break
    how = draw.choice(("gone", "odd", "odd", "near", "twice", "version"))
    if how == "gone":
        del place[key]
    elif how == "near" and isinstance(place[key], int | float):
        place[key] += draw.choice((1, -1, 0.125))
    elif how == "twice" and isinstance(place, list):
        place.append(place[key])
    elif how == "version" and isinstance(whole, dict):
        whole["schema_version"] = draw.choice((0, 1, 2, 3, 99, "1", None))
    else:
        place[key] = draw.choice(ODD)
    return json.dumps(whole)


def _csv(draw: random.Random, text: str) -> str:
    """A cell, a row, or a column, edited as a spreadsheet or another version would."""
    rows = list(csv.reader(io.StringIO(text)))
    row, column = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    how = draw.choice(("cell", "cell", "column gone", "column twice", "column new", "order", "row", "spreadsheet"))
    if how == "cell":
        rows[row][column:column + 1] = [str(draw.choice(ODD))]  # fmt: skip
    elif how == "column gone":
        rows = [[cell for n, cell in enumerate(cells) if n != column] for cells in rows]
    elif how == "column twice":
        rows = [[*cells, cells[column] if column < len(cells) else ""] for cells in rows]
    elif how == "column new":
        rows = [[*cells, "new" if n == 0 else "0.5"] for n, cells in enumerate(rows)]
    elif how == "order":
        rows = [cells[::-1] for cells in rows]
    elif how == "row":
        rows.insert(row, draw.choice(rows))
    file = io.StringIO()
    csv.writer(file, delimiter=";" if how == "spreadsheet" else ",", lineterminator="\n").writerows(rows)
    return file.getvalue()


def _lines(draw: random.Random, text: str) -> str:
    """YAML and plain text: the value of a line, or a line, edited."""
    lines = text.splitlines() or [""]
    at = draw.randrange(len(lines))
    key, colon, _ = lines[at].partition(": ")
    value = draw.choice(("null", "~", "[]", "{}", "*a", "&a [*a]", "!!python/object/apply:os.system [id]", "!!binary x",
                         "1:59:59", "0x10", "2026-01-01", ".nan", "1e999", "'", '"', "|", "- - -", "?", "9" * 5000,
                         "\t", "yes", "@", "%", "\x07", "é" * 10**5))  # fmt: skip
    lines[at] = f"{key}{colon or ' '}{value}" if draw.random() < 0.8 else value
    return "\n".join(lines) + "\n"


def _bomb(draw: random.Random, text: str) -> str:
    """Content that is far larger, deeper or wider than it looks."""
    levels = [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(9)]
    return draw.choice((
        "a0: &a0 [x]\n" + "\n".join(levels), "a: &a [*a]", "[" * 10**5, "{\"a\":" * 10**5, "- " * 10**5,
        "a:\n " * 10**4,
        '{"a": ' + "9" * 10**6 + "}", "{" + ", ".join(f'"k{n}": 0' for n in range(10**5)) + "}", '"' * 10**6 + text,
        text.rstrip("\n") + "," * 10**6, text + text.splitlines()[-1] * 10**4 if text.strip() else "x", "a" * 10**7,
        ",".join(f"c{n}" for n in range(10**5)) + "\n" + "0," * 10**5, text + "\n" * 10**6, "?" * 10**5, "&a " * 10**5,
        "<!--" * 10**5 + text, "[" * 10**4 + "](" * 10**4, "*" * 10**5, "`" * 10**5 + text, "#" * 10**5, "> " * 10**5,
    ))  # fmt: skip


def _encoded(draw: random.Random, text: str) -> bytes:
    """The same text as other programs save it."""
    encoding = draw.choice(("utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"))
    return text.replace("\n", draw.choice(("\n", "\r\n", "\r"))).encode(encoding, "replace")


FORMATS: dict[str, Callable[[random.Random, str], str]] = {".json": edited_json, ".csv": _csv}


def _changed(draw: random.Random, victim: Path) -> tuple[str, bytes]:
    """How a file was changed, and its new content."""
    data = victim.read_bytes()
    how = draw.choice(("edited", "edited", "edited", "bomb", "saved elsewhere", "damaged", "another file"))
    text = data.decode()
    if how == "edited":
        return how, FORMATS.get(victim.suffix, _lines)(draw, text).encode("utf-8", "surrogatepass")
    if how == "bomb":
        return how, _bomb(draw, text).encode()
    if how == "saved elsewhere":
        return how, _encoded(draw, text)
    if how == "damaged":
        return how, draw.choice(DAMAGE)(draw, data)
    others = sorted(path for path in victim.parent.iterdir() if path.is_file() and path != victim)
    return how, draw.choice(others).read_bytes() if others else b""


Answer = tuple[list[str], list[str], dict[str, bytes]]
"""What a command says of results, what it warns of, and what it writes."""


@functools.cache
def _true(prepared: Path, command: tuple[str, ...]) -> Answer:
    """The answer where nothing is changed."""
    own = prepared.with_name("true")
    shutil.copytree(prepared, own)
    try:
        return _answer(_said(own, list(command)), list(command), own)
    finally:
        shutil.rmtree(own)


def _answer(said: Said, command: list[str], own: Path) -> Answer:
    out = sorted(path for path in (own / "out").rglob("*") if path.is_file())
    written = {path.name: path.read_bytes().replace(str(own).encode(), b"OWN") for path in out}
    warned = [line.replace(str(own), "OWN") for line in told(said, command)]
    return result_of(said, command, own), warned, written


def _said(own: Path, command: list[str]) -> Said:
    run, other = runs_of(own / "outputs")[:2]
    return said_by([word.format(study=own / "outputs" / "s", run=run, other=other) for word in command], own)


@fault_class(
    "CSV, JSON, YAML and text edited, of other versions, or bombs, on every command that reads it", 3000, prepare
)
def readers(draw: random.Random, prepared: Path, own: Path) -> Ending:
    shutil.copytree(prepared, own, dirs_exist_ok=True, symlinks=True)
    name = draw.choice((*RECORDED, *RECORDED, *OWN, *("{run}/run.json",) * 12))
    command = draw.choice((RECORDED | OWN)[name])
    run = runs_of(own / "outputs")[0]
    pattern = name.format(run=run.relative_to(own), study=run.parent.relative_to(own))
    victim = draw.choice(sorted(own.glob(pattern)))
    how, content = _changed(draw, victim)
    victim.write_bytes(content)
    said = _said(own, command)
    what = f"{victim.name}: {how}, then {' '.join(command[:2])}"
    ending = ended(said, what)
    if ending.how != "same" or name in OWN:
        return ending
    now, before = _answer(said, command, own), _true(prepared, tuple(command))
    if (now[0], now[2]) == (before[0], before[2]):
        return ending
    shown, shown_before = ("".join(one[0]).encode() + b"".join(one[2].values()) for one in (now, before))
    # A page and the status name the file in a note; diff is asked what differs.
    named = shown.count(victim.name.encode()) > shown_before.count(victim.name.encode())
    reported = now[1] != before[1] or named or command[0] == "diff"
    other = sorted(path for path in {*now[2], *before[2]} if now[2].get(path) != before[2].get(path))
    lines = [*difflib.unified_diff(before[0], now[0], lineterm="", n=0), f"written: {other}"]
    return Ending("reported" if reported else "lie", what, "\n".join(lines)[:1500])
