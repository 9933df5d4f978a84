"""The cache of images: damaged, evicted while it is used, too small, of changed files, or no folder at all.

Whatever happens to it, a run has the tables that it has without any cache.
"""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from reliability import STUDY, Ending, Said, ended, fault_class, said_by
from reliability.damage import DAMAGE

SIDE, IMAGES = 32, 12
TABLES = ("summary.csv", "images.csv", "epochs.csv", "split.csv", "objects.csv")
TRAINS_S = 60.0
"""Seconds of processor time that a run may take."""

WORDS = (
    *(
        "train",
        "activation=arctan",
        "dataset=folder",
        "dataset.root={own}/data",
        "outputs={own}/outputs",
        "trainer.epochs=1",
    ),
    *(word for word in STUDY if not word.startswith(("activation=", "seed=", "dataset.number", "trainer.epochs="))),
)


@contextmanager
def cached(place: Path, limit: str = "1GB") -> Iterator[None]:
    """Commands use this cache folder."""
    given = {"SEGEXP_CACHE": str(place), "SEGEXP_CACHE_LIMIT": limit}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _tables(own: Path) -> dict[str, bytes]:
    (run,) = (own / "outputs" / "s").glob("*-*") if (own / "outputs").exists() else (own,)
    return {name: (run / name).read_bytes() for name in TABLES if (run / name).exists()}


def _trained(own: Path, cache: Path, limit: str) -> Said:
    with cached(cache, limit):
        return said_by([word.format(own=own) for word in WORDS], seconds=TRAINS_S)


def prepare(made: Path) -> None:
    """A data set, the cache of a run on it, and the tables of a run without a cache, in ``true``."""
    for folder in ("images", "masks"):
        (made / "data" / folder).mkdir(parents=True)
        for n in range(IMAGES):
            pixels = np.frombuffer(random.Random(n).randbytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE)
            Image.fromarray(pixels if folder == "images" else pixels // 128).save(made / "data" / folder / f"{n}.png")
    for name, limit in (("true", "0"), ("warm", "1GB")):
        shutil.copytree(made / "data", made / name / "data")
        said = _trained(made / name, made / "cache", limit)
        if said.code != 0:
            raise RuntimeError(f"{name}: {said}")


def _damaged(draw: random.Random, own: Path) -> str:
    """A file of an entry changed, exchanged for a folder or a link, or gone; or an entry gone."""
    victim = draw.choice(sorted(path for path in (own / "cache").rglob("*") if path.is_file()))
    how = draw.choice(("changed", "changed", "changed", "gone", "folder", "link", "entry gone", "empty entry"))
    if how == "changed":
        victim.write_bytes(draw.choice(DAMAGE)(draw, victim.read_bytes()))
        return f"{victim.name} changed"
    if how in ("entry gone", "empty entry"):
        shutil.rmtree(victim.parent)
        if how == "empty entry":
            victim.parent.mkdir()
        return how
    victim.unlink()
    if how == "folder":
        victim.mkdir()
    elif how == "link":
        victim.symlink_to("/dev/zero")
    return f"{victim.name} {how}"


def _left(draw: random.Random, own: Path) -> str:
    """What a builder left that was killed, for entries that are there and for others."""
    store = own / "cache" / "store"
    for place in draw.sample(sorted(store.iterdir()), 2):
        (place.with_suffix(".partial")).mkdir()
        (place.with_suffix(".partial") / "images.bin").write_bytes(b"half")
        place.with_suffix(".lock").touch()
        place.rename(place.with_name(f"{place.name}.0123abcd.gone")) if draw.random() < 0.5 else None
    return "what a killed builder left"


def _elsewhere(draw: random.Random, own: Path) -> str:
    """No folder that can be used."""
    shutil.rmtree(own / "cache")
    how = draw.choice(("file", "link", "in a file", "store is a file"))
    if how == "link":
        (own / "cache").symlink_to("/proc/self")
    elif how == "store is a file":
        (own / "cache").mkdir()
        (own / "cache" / "store").write_text("x")
    else:
        (own / "cache").write_text("x")
    return f"the cache is a {how}"


def _edited(draw: random.Random, own: Path) -> str:
    """An image with other pixels, of the same size and time."""
    victim = draw.choice(sorted((own / "data" / "images").iterdir()))
    times, pixels = victim.stat(), np.array(Image.open(victim))
    Image.fromarray(255 - pixels).save(victim)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    return f"{victim.name} edited"


FAULTS: tuple[Callable[[random.Random, Path], str], ...] = (_damaged,) * 6 + (_left, _elsewhere, _edited)


@fault_class(
    "the cache of images damaged, evicted in use, too small, or unusable, and images that change", 500, prepare
)
def store(draw: random.Random, made: Path, own: Path) -> Ending:
    shutil.copytree(made / "warm" / "data", own / "data")
    shutil.copytree(made / "cache", own / "cache")
    fault = draw.choice((*FAULTS, None, None))
    what = fault(draw, own) if fault else ""
    limit = draw.choice(("0", "1KB", "30KB", "200KB", "1GB", "1GB")) if fault is not _elsewhere else "1GB"
    over = threading.Event()

    def evict() -> None:
        """As a process that makes room does."""
        while not over.wait(moments.random() * 0.2):
            for entry in sorted((own / "cache" / "store").glob("*")):
                if not entry.suffix and moments.random() < 0.5:
                    cache.discard(entry)

    from segexp.data import cache

    moments = random.Random(draw.random())
    evictor = threading.Thread(target=evict)
    if fault is None:
        what = "entries removed all the time"
        evictor.start()
    try:
        said = _trained(own, own / "cache", limit)
    finally:
        over.set()
        if fault is None:
            evictor.join()
    what = f"{what}, of at most {limit}"
    ending = ended(said, what)
    if ending.how != "same":
        return ending if ending.how != "refused" else Ending("lost", what, ending.seen)
    true = _tables(made / "true")
    if fault is _edited:
        (own / "true").mkdir()
        shutil.copytree(own / "data", own / "true" / "data")
        _trained(own / "true", own / "nowhere", "0")
        true = _tables(own / "true")
    found = _tables(own)
    if found != true:
        other = sorted(name for name in {*true, *found} if true.get(name) != found.get(name))
        return Ending("lie", what, f"other content: {other}\n{said.err[-600:]}")
    if limit == "0":  # the cache was not touched
        with cached(own / "cache"):
            said_by(["data", "clear"])
    litter = sorted(path.name for path in (own / "cache" / "store").glob("*.*")) if fault is not _elsewhere else []
    return Ending(
        "litter" if litter else "reported" if said.err.strip() else "same", what, "\n".join([*litter, said.err])
    )
