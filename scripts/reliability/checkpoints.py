"""Checkpoints that are damaged, another run's, or not weights but code: nothing may run, and no score may change."""

import io
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reliability import Ending, ended, fault_class, runs_of, said_by, study
from reliability.damage import DAMAGE
from segexp.records import read_run, write_run

PAYLOAD = "open('executed', 'w').close()"


class _Code:
    """Its pickle writes a file when it is read."""

    def __init__(self, how: Callable[..., Any], *given: Any) -> None:
        self.how, self.given = how, given

    def __reduce__(self) -> Any:
        return self.how, self.given


def _code(draw: random.Random) -> Any:
    return draw.choice((_Code(exec, PAYLOAD), _Code(eval, PAYLOAD), _Code(os.system, "touch executed")))


def _other_run(draw: random.Random, data: bytes, other: bytes) -> bytes:
    return other


def _pickled(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """A plain pickle that runs code, in any protocol."""
    return pickle.dumps(draw.choice((_code(draw), {"model": _code(draw)})), draw.choice((0, 2, 4, 5)))


def _saved(draw: random.Random, data: bytes, of_other: bytes) -> bytes:
    """A checkpoint of torch, of the new or the old form, with code beside its weights or in place of them."""
    import torch

    whole = torch.load(io.BytesIO(data), weights_only=True)
    other: Any = draw.choice(([], None, -1, float("nan"), torch.zeros(3), "x"))
    whole[draw.choice((*whole, "more"))] = draw.choice((_code(draw), other))
    file = io.BytesIO()
    torch.save(whole, file, _use_new_zipfile_serialization=draw.random() < 0.7)
    return file.getvalue()


def _members(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """The archive with a member gone, doubled, of another name, exchanged, or a bomb."""
    file = io.BytesIO()
    how = draw.choice(("gone", "twice", "name", "code", "bomb", "outside"))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        victim = next(n for n in names if n.endswith("data.pkl")) if how == "code" else draw.choice(names)
        for name in names:
            content = old.read(name)
            if name != victim:
                new.writestr(name, content)
            elif how == "twice":
                new.writestr(name, content)
                new.writestr(f"{name}.more", content)
            elif how in ("name", "outside"):
                new.writestr("../../executed" if how == "outside" else f"{name}x", content)
            elif how == "code":
                new.writestr(name, pickle.dumps(_code(draw), 2))
            elif how == "bomb":
                new.writestr(name, bytes(3 * 10**8), zipfile.ZIP_DEFLATED)
        new.comment = zipfile.ZipFile(io.BytesIO(data)).comment
    return file.getvalue()


def _damaged(draw: random.Random, data: bytes, other: bytes) -> bytes:
    return draw.choice(DAMAGE)(draw, data)


WAYS = (_other_run, _pickled, _saved, _members, _damaged, _damaged)
READERS = (
    ["predict", "{run}", "{image}", "-o", "masks"],
    ["evaluate", "{run}", "--split", "val"],
    ["export", "{run}", "--format", "safetensors", "-o", "w.safetensors"],
    ["export", "{run}", "--format", "smp", "-o", "w"],
    ["train", "--from", "{run}", "outputs=outputs"],
    ["segexp.load", "{run}"],
)


def _load(words: list[str]) -> int:
    import segexp
    from segexp.errors import UsageError

    try:
        segexp.load(words[1])
    except UsageError as error:
        import sys

        print(f"segexp: {error}", file=sys.stderr)
        return 2
    return 0


def _results(own: Path, run: Path, command: str) -> dict[str, bytes]:
    """What a command wrote that depends on the weights."""
    at = {"predict": own / "masks", "evaluate": run / "evaluations", "train": run}.get(command, own / "w")
    endings = (".png", "images.csv", "summary.csv", ".safetensors")
    found = [*at.rglob("*"), *own.glob("w.*")] if at.exists() else [*own.glob("w.*")]
    return {path.name: path.read_bytes() for path in found if path.name.endswith(endings)}


@fault_class("checkpoints damaged, exchanged, or with code inside", 1500, study)
def checkpoints(draw: random.Random, prepared: Path, own: Path) -> Ending:
    from PIL import Image

    chosen, other = draw.sample(range(6), 2)
    command, way, seed = draw.choice(READERS), draw.choice(WAYS), draw.randrange(2**32)
    found = []
    for copy in ("whole", "damaged"):
        folder = own / copy
        shutil.copytree(prepared / "outputs", folder / "outputs")
        runs = runs_of(folder / "outputs")
        victim = runs[chosen] / "checkpoints" / "best.pt"
        if command[0] == "train":  # as if killed before it was done: only last.pt is there
            write_run(runs[chosen], read_run(runs[chosen]) | {"status": "interrupted"})
            victim = victim.rename(victim.with_name("last.pt"))
        if copy == "damaged":
            others = (runs[other] / "checkpoints" / "best.pt").read_bytes()
            victim.write_bytes(way(random.Random(seed), victim.read_bytes(), others))
        Image.effect_mandelbrot((32, 32), (-2, -1.5, 1, 1.5), 20).save(folder / "x.png")
        words = [word.format(run=runs[chosen], image=folder / "x.png") for word in command]
        said = said_by(words, folder, _load if command[0] == "segexp.load" else None)
        found.append((said, _results(folder, runs[chosen], command[0])))
    (_, true), (said, result) = found
    what = f"{way.__name__.strip('_')} {victim.name} of run {chosen}, then {' '.join(command[:3])}"
    if list(own.rglob("executed")):
        return Ending("escape", what, "code in a checkpoint was run")
    if said.code == 0 and result != true:
        return Ending("reported" if said.err.strip() else "lie", what, said.err)
    return ended(said, what)
