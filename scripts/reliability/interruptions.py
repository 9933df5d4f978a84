"""Commands that are killed, or whose disk fails, at any moment: the same command again ends as if nothing had happened.

Tables, weights, masks and pages are the same bytes as those of a command that nothing happened to, and no other file is
left over.
"""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reliability import STUDY, Ending, Said, fault_class, runs_of, study
from reliability.injected import Fault, injected

RUN = (
    *("train", "activation=arctan", "loss=dice", "augment=medium", "trainer.epochs=3"),
    *(word for word in STUDY if not word.startswith(("activation=", "loss=", "seed=", "trainer.epochs="))),
)
IMAGES = "{made}/images"

ACTIVITIES: dict[str, tuple[str, ...]] = {
    "train": (*RUN, "trainer.keep_last=true", "outputs={own}/outputs"),
    "train without last.pt": (*RUN, "outputs={own}/outputs"),
    "train two runs": (
        *("train", "-m", "seed=0,1", "hydra.launcher.n_jobs=1", "outputs={own}/outputs"),
        *(word for word in STUDY if not word.startswith(("activation=", "seed="))),
    ),
    "collect": ("collect", "{study}"),
    "compare": ("compare", "{study}", "--json"),
    "report": ("report", "{study}", "-o", "{own}/report.html"),
    "evaluate": ("evaluate", "{run}", "--split", "val"),
    "predict": ("predict", "{run}", IMAGES, "-o", "{own}/masks", "--overlay", "--probabilities"),
    "export": ("export", "{run}", "--format", "safetensors", "-o", "{own}/network.safetensors"),
    "card": ("card", "{study}", "-o", "{own}/card"),
    "card of a run": ("card", "{run}", "-o", "{own}/card"),
}
"""{own}: a folder of the case, {study}: its copy of the prepared study, {run}: one of its runs."""

OTHERS = tuple(name for name in ACTIVITIES if not name.startswith("train"))

OFTEN = ("train",) * 10 + ("train without last.pt",) * 2 + OTHERS
"""From these a case draws: training has most moments."""

VOLATILE = ("log.txt", "timings.csv", ".compared.json", "traceback.txt", "said.", "plan-")
"""Beginnings of the names of files that hold times, or say what happened."""

OF_A_RUN = ("status", "summary", "diagnostics", "warnings", "n_rows_expected", "init_sha", "order_sha", "identity")
"""What is equal in run.json; the rest says when, how often and in which process."""


def words_of(activity: str, made: Path, own: Path) -> list[str]:
    place = own / "outputs" / "s"
    run = place / runs_of(made / "study" / "outputs")[0].name
    return [word.format(own=own, made=made, study=place, run=run) for word in ACTIVITIES[activity]]


def begin(activity: str, made: Path, own: Path) -> list[str]:
    """Make what the activity starts from; returns its command."""
    if not activity.startswith("train"):
        shutil.copytree(made / "study" / "outputs", own / "outputs", symlinks=True)
    return words_of(activity, made, own)


def ended(own: Path, said: Said | None = None) -> dict[str, str]:
    """Hash of everything below the folder that must be the same, and of the answer of `compare`."""
    found = {}
    for path in sorted(own.rglob("*")):
        name = str(path.relative_to(own))
        if path.name == "run.json":
            record = json.loads(path.read_text(encoding="utf-8"))
            content = json.dumps({key: record.get(key) for key in OF_A_RUN}, sort_keys=True).encode()
        elif not path.is_file() or path.name.startswith(VOLATILE) or path.parts[len(own.parts)] == "cache":
            content = b""
        elif path.suffix == ".pt":
            content = _tensors(path)
        else:
            content = path.read_bytes().replace(str(own).encode(), b"OWN")
        found[name] = hashlib.sha256(content).hexdigest()
    answer = said.out.replace(str(own), "OWN") if said and said.out.startswith("{") else ""
    return found | {"the answer": hashlib.sha256(answer.encode()).hexdigest()}


def _tensors(checkpoint: Path) -> bytes:
    import torch

    network: dict[str, Any] = torch.load(checkpoint, weights_only=True)["network"]
    return b"".join(name.encode() + np.asarray(value).tobytes() for name, value in sorted(network.items()))


def prepare(made: Path) -> None:
    """A study, and images to predict."""
    (made / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made / "images" / f"{number}.png")
    (made / "study").mkdir()
    study(made / "study")


def undisturbed(activity: str, made: Path) -> dict[str, Any]:
    """Files, number of calls and seconds of an activity that nothing happens to, carried out once."""
    kept = made / f"{activity}.json"
    if not kept.exists():
        own = made / activity
        own.mkdir()
        said, calls, seconds = injected(begin(activity, made, own), Fault(), own)
        if said.code != 0 or said.fault:
            raise RuntimeError(f"{activity}: {said}")
        kept.write_text(json.dumps({"files": ended(own, said), "calls": len(calls), "seconds": seconds}))
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def judged(activity: str, how: str, made: Path, own: Path, before: Said) -> Ending:
    """The same command again, without a fault, and what it leaves; before: what it said under the fault."""
    what = f"{activity}: {how}"
    said, _, _ = injected(words_of(activity, made, own), Fault(), own)
    if said.fault or said.code != 0:
        how = said.fault.partition(":")[0] or "lost"
        return Ending(how, what, f"again: exit code {said.code}\n{said.err[-800:]}\n{said.fault}")
    true = undisturbed(activity, made)["files"]
    found = ended(own, said)
    extra, missing = sorted(found.keys() - true.keys()), sorted(true.keys() - found.keys())
    extra = [name for name in extra if not Path(name).name.startswith(VOLATILE) and "/sweeps" not in name]
    missing = [name for name in missing if not Path(name).name.startswith(VOLATILE) and not name.startswith("cache/")]
    other = sorted(name for name in found.keys() & true.keys() if found[name] != true[name])
    seen = f"missing: {missing}\nother content: {other}\nleft over: {extra}\nbefore: {before.err[-600:]}"
    if missing or other:
        names = {Path(name).name for name in missing}
        told = not other and before.code == 0 and bool(before.err) and all(name in before.err for name in names)
        return Ending("reported" if told else "lost" if missing else "lie", what, seen)
    return Ending("litter" if extra else "same", what, seen if extra else "")


@fault_class("a command killed up to three times, at a system call or a time, then given again", 1000, prepare)
def kills(draw: random.Random, made: Path, own: Path) -> Ending:
    activity = draw.choice(OFTEN)
    whole = undisturbed(activity, made)
    words, told, said = begin(activity, made, own), [], Said(None, "", "")
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(("kill", "kill", "kill", "cpu", "wall"))
        at = draw.randint(1, whole["calls"]) if kind == "kill" else draw.uniform(0, whole["seconds"])
        said, calls, _ = injected(words, Fault(kind, at), own)
        place = " after ".join(reversed(calls[-2:])) or "before any change"
        told.append(f"{'killed' if (said.code or 0) < 0 else 'not killed'} ({kind} {at:.4g}) at {place}")
        if said.fault:
            return Ending(said.fault.partition(":")[0], f"{activity}: {told[-1]}", said.err[-800:])
    return judged(activity, "; ".join(told), made, own, said)


@fault_class("a command whose disk is full, fails, or takes half of each write, then given again", 1000, prepare)
def disk(draw: random.Random, made: Path, own: Path) -> Ending:
    activity, kind = draw.choice(OFTEN), draw.choice(("ENOSPC", "ENOSPC", "EIO", "short"))
    fault = Fault(kind, draw.randint(1, undisturbed(activity, made)["calls"]), draw.random() < 0.5)
    said, calls, _ = injected(begin(activity, made, own), fault, own)
    place = (calls[int(fault.at) - 1 : int(fault.at)] or ["a call that did not come"])[0]
    how = f"{kind}{' from then on' if fault.forever else ''} at {place}: exit code {said.code}"
    if said.fault:
        return Ending(said.fault.partition(":")[0], f"{activity}: {how}", said.err[-1500:])
    if said.code not in (0, 1, 2):
        return Ending("lost", f"{activity}: {how}", said.err[-800:])
    if said.code and not said.err.strip():
        return Ending("lie", f"{activity}: {how}, and nothing said", said.out[-800:])
    return judged(activity, how, made, own, said)
