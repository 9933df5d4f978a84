"""Images and masks that are edited while a run reads them: it has the results of the data as they were, or as they are,
or says that they changed; the same command again has those of the data as they are.
"""

import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from reliability import Ending, Said, ended, fault_class, said_by
from reliability.store import TABLES, TRAINS_S, WORDS, cached
from reliability.store import prepare as prepared

EPOCHS = "trainer.epochs=3"


def _trained(own: Path, limit: str) -> Said:
    words = [EPOCHS if word.startswith("trainer.epochs=") else word.format(own=own) for word in WORDS]
    with cached(own / "cache", limit):
        return said_by(words, seconds=TRAINS_S)


def _done(own: Path) -> list[dict[str, bytes]]:
    """The tables of each finished run."""
    runs = [path.parent for path in own.glob("outputs/s/*/run.json")]
    done = [run for run in runs if json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "done"]
    return [{name: (run / name).read_bytes() for name in TABLES if (run / name).exists()} for run in done]


def prepare(made: Path) -> None:
    """As for `store`; the tables of a run on its data, and how long that takes."""
    prepared(made)
    (made / "as it was").mkdir()
    shutil.copytree(made / "data", made / "as it was" / "data")
    begun = time.monotonic()
    if _trained(made / "as it was", "0").code != 0:
        raise RuntimeError("the run was not made")
    (made / "seconds").write_text(str(time.monotonic() - begun), encoding="utf-8")


def _inverted(victim: Path) -> None:
    pixels = np.array(Image.open(victim))
    Image.fromarray(pixels.max() - pixels).save(victim)


def _larger(victim: Path) -> None:
    pixels = np.array(Image.open(victim))
    Image.fromarray(np.pad(pixels, 3, mode="reflect")).save(victim)


def _half(victim: Path) -> None:
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])


EDITS: tuple[Callable[[Path], object], ...] = (_inverted, _inverted, _inverted, _larger, _half, Path.unlink)


@fault_class("images and masks edited at any moment of a run, which is then given again", 300, prepare)
def edits(draw: random.Random, made: Path, own: Path) -> Ending:
    shutil.copytree(made / "data", own / "data")
    limit, edit = draw.choice(("0", "1GB")), draw.choice(EDITS)
    victim = draw.choice(sorted((own / "data").rglob("*.png")))
    # Files are read in the first third.
    moment = draw.uniform(0, draw.choice((0.3, 1.0)) * float((made / "seconds").read_text(encoding="utf-8")))
    timer = threading.Timer(moment, edit, (victim,))
    timer.start()
    said = _trained(own, limit)
    timer.join()
    what = f"{victim.parent.name}/{victim.name} {edit.__name__.strip('_')} after {moment:.2f} s, cache of {limit}"
    before = _done(own)
    (own / "true").mkdir()
    shutil.copytree(own / "data", own / "true" / "data")
    again, fresh = _trained(own, limit), _trained(own / "true", "0")
    for one in (said, again):
        if one.fault:
            return Ending(one.fault.partition(":")[0], what, f"{one.fault[:1500]}\n{one.err[-600:]}")
    true = [_done(made / "as it was")[0], *_done(own / "true")]
    if again.code != fresh.code or any(tables not in true for tables in _done(own)):
        return Ending("lie", what, f"{said.err[-600:]}\n---\n{again.err[-600:]}\n---\n{fresh.err[-600:]}")
    if fresh.code == 0 and true[-1] not in _done(own):
        return Ending("lost", what, again.err[-600:])
    ending = ended(said, what)
    if ending.how == "refused" and victim.name not in said.err and victim.stem not in said.err:
        return Ending("lie", what, f"nothing names the file\n{ending.seen}")
    return ending if ending.how != "same" or before else Ending("lost", what, "no run is done")
