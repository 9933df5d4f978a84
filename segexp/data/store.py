"""The store: what runs read from images and masks, kept in the cache folder for later runs and for those beside them.

files   hash of the bytes of every pair, valid while size, mtime, ctime and inode of its files are as recorded
check   what the check of every pair found
images  every image and mask as the network takes them, in one file with offsets

The last two depend on these hashes, on the options of the data set, and on the code and the libraries that read it: a
changed file leads to other entries. A change that keeps size, times and inode of a file is not seen. No usual program
sets ctime, but it stays equal where the clock is set back, or where a file server reports old attributes.

Where the cache folder cannot be used, runs read their files themselves, with one warning.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from segexp.data.cache import Unusable, entry, find, limit, no_room, storing
from segexp.data.check import PairFacts
from segexp.data.image_set import (
    ADAPTERS,
    DatasetConfig,
    ImageSet,
    Pair,
    Stamp,
    fingerprint,
    pair_digest,
    stamp,
    watched,
)
from segexp.errors import DataChangedError
from segexp.records.process import heed_interrupts, usable_cores

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("segexp")

T = TypeVar("T")
U = TypeVar("U")

Arrays = Sequence["np.ndarray"]

Digests = list[tuple[str, bytes]]
"""Of every pair: a hash of the state of its files, and `pair_digest`."""

DESCRIPTIVE = (
    *("name", "root", "images", "masks", "limit", "spacing", "surface_tolerance", "class_names", "class_colors"),
    *("channel_names", "licence", "citation", "url", "download"),
)
"""Options that say where a data set is and what it is called, not how its files are read."""

LIBRARIES = ("numpy", "scipy", "pillow", "tifffile", "imagecodecs", "nibabel", "pydicom", "torch")

MEMORY = 4 * 2**30
"""Bytes of images that a process keeps where the cache folder cannot be used."""

TICK_S = 0.02
"""Resolution of the times of files: a second write that comes so soon may leave them as they are."""

MOST_THREADS = 8


def _stored(use: bool, call: Callable[[], T], otherwise: Callable[[], U]) -> T | U:
    """What the store has, or ``otherwise`` where it cannot be used, or has no room by $SEGEXP_CACHE_LIMIT=0."""
    try:
        if use and limit():
            return call()
    except Unusable as error:
        _warn(str(error))
    return otherwise()


@functools.cache
def _warn(problem: str) -> None:
    log.warning("nothing is kept in the cache: %s; each run reads its files itself (see `segexp data --help`)", problem)


def _sha(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()[:32]


@functools.cache
def _software(adapter: str) -> tuple[str, ...]:
    """Hash of the code that reads and checks images, and the versions of its libraries."""
    code = hashlib.sha256()
    module = sys.modules.get(ADAPTERS[adapter].open.__module__)
    for path in (*sorted(Path(__file__).parent.glob("*.py")), getattr(module, "__file__", None)):
        code.update(Path(path).read_bytes() if path else b"")
    versions = [code.hexdigest()]
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{library} {importlib.metadata.version(library)}")
    return tuple(versions)


# The check, and the hashes of files


def checked(
    image_set: ImageSet, dataset: DatasetConfig, check: Callable[[], PairFacts]
) -> tuple[ImageSet, PairFacts, str]:
    """The set as runs read it, what ``check`` finds, and the set's fingerprint; reads no file that is as it was.

    The set's ``content`` then stands for all that is read from it. Raises what ``check`` raises, and DataChangedError
    where a file changes meanwhile.
    """
    rows, once = range(len(image_set.image_ids)), functools.cache(check)
    options = [(key, value) for key, value in sorted(vars(dataset).items()) if key not in DESCRIPTIVE]
    reading = (_software(dataset.adapter), options, image_set.content, image_set.image_ids)
    files, stamps = [image_set.files(i) for i in rows], [stamp(image_set, i) for i in rows]
    use = bool(image_set.content) or all(files)

    key, states = _sha("files", reading, files), [_sha(sorted(one.items())) for one in stamps]
    before = _stored(use, lambda: find(key, _load_digests), lambda: None) or [("", b"")] * len(rows)
    new = [i for i in rows if before[i][0] != states[i]]
    try:
        digests = [digest for _, digest in before]
        for i, digest in zip(new, _hashed(image_set, stamps, new), strict=True):
            digests[i] = digest
    except OSError:
        once()  # names every file that cannot be read
        raise
    content = _sha("check", reading, digests, [[path.suffix for path in paths] for paths in files])
    about = {"content": content, "name": str(dataset.name), "location": image_set.location, "images": len(rows)}
    described = about | {"kind": "check", "geometry": ""}
    load = functools.partial(entry, content, described, _load_facts, lambda place: _save_facts(place, once()))
    facts = _stored(use, load, once)
    changed = [i for i in (rows if once.cache_info().currsize else new) if stamp(image_set, i) != stamps[i]]
    if changed:
        name = image_set.image_ids[changed[0]]
        raise DataChangedError(f"{image_set.location}: {name} changed while it was read: repeat the command")
    if new:
        _report_changes(image_set, [i for i in new if before[i][1] not in (b"", digests[i])])
        kept = list(zip(states, digests, strict=True))
        described = about | {"kind": "files", "geometry": ""}
        save = functools.partial(entry, key, described, _load_digests, lambda place: _save_digests(place, kept))
        _stored(use, functools.partial(save, renew=True), lambda: kept)
    known = dataclasses.replace(image_set, content=content if use else "", name=str(dataset.name))
    return watched(known, stamps, digests), facts, fingerprint(image_set, digests)


def _hashed(image_set: ImageSet, stamps: Sequence[Stamp], indices: Sequence[int]) -> Iterator[bytes]:
    """`pair_digest` of these pairs."""
    from concurrent.futures import ThreadPoolExecutor  # not for `list` and completion

    from tqdm import tqdm

    newest_ns = max((state[2] for i in indices for state in stamps[i].values() if state), default=0)  # ctime
    if abs(time.time() - newest_ns / 1e9) < TICK_S:
        time.sleep(TICK_S)
    with ThreadPoolExecutor(min(usable_cores(), MOST_THREADS)) as pool:
        hashed = pool.map(functools.partial(pair_digest, image_set), indices)
        yield from tqdm(hashed, "hashing files", len(indices), leave=False, unit="img", disable=None)


def _report_changes(image_set: ImageSet, changed: Sequence[int]) -> None:
    if changed:
        first, number = image_set.image_ids[changed[0]], len(image_set.image_ids)
        what = f"{len(changed)} of {number} images or masks have changed since they were last used (the first: {first})"
        log.warning("%s: %s; runs on them are new runs", image_set.location, what)


def _save_digests(place: Path, digests: Digests) -> None:
    import numpy as np

    states, hashes = (b"".join(part) for part in zip(*((bytes.fromhex(s), h) for s, h in digests), strict=True))
    arrays = (np.frombuffer(part, np.uint8).reshape(len(digests), -1) for part in (states, hashes))
    _save(place, dict(zip(("states", "hashes"), arrays, strict=True)))


def _load_digests(place: Path) -> Digests:
    content = _load(place)
    pairs = zip(content["states"], content["hashes"], strict=True)
    return [(state.tobytes().hex(), digest.tobytes()) for state, digest in pairs]


def _save_facts(place: Path, facts: PairFacts) -> None:
    """Arrays as such; tuples, texts, numbers and dicts with text keys as JSON. Raises TypeError for others."""
    import numpy as np

    values = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    others = {name: value for name, value in values.items() if name not in arrays}
    text = json.dumps(others)
    if repr(_tuples(json.loads(text))) != repr(others):
        raise TypeError(f"PairFacts: one of {', '.join(others)} cannot be kept as JSON")
    _save(place, {**arrays, "json": np.frombuffer(text.encode(), np.uint8)})


def _load_facts(place: Path) -> PairFacts:
    content: dict[str, Any] = _load(place)
    return PairFacts(**_tuples(json.loads(content.pop("json").tobytes())), **content)


def _tuples(value: Any) -> Any:
    """The value with tuples for lists."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _save(place: Path, arrays: Mapping[str, "np.ndarray"]) -> None:
    """Save arrays with their checksums."""
    import numpy as np

    with storing():
        np.savez(place / "content.npz", **arrays)  # type: ignore[arg-type]


def _load(place: Path) -> dict[str, "np.ndarray"]:
    """The arrays that `_save` saved. Raises errors of many kinds where they are damaged."""
    import numpy as np

    with np.load(place / "content.npz", allow_pickle=False) as content:
        return dict(content)


# Images

DTYPES = ("uint8", "uint16", "int16", "float32", "bool", "int8", "int32", "uint32", "int64", "float64")
"""Types of arrays by their number in an entry."""


def images_of(image_set: ImageSet, geometry: str, fit: Callable[[Pair], Arrays]) -> Callable[[int], Arrays]:
    """What ``fit`` makes of pair i: made once, for all images of the set, and then read from the store.

    fit: returns arrays of up to three dimensions, the image first for its alignment; their types and strides are kept.
    geometry: what ``fit`` depends on.
    """
    content, number = image_set.content, len(image_set.image_ids)
    key = _sha("images", content, image_set.image_ids, geometry)
    where = {"name": image_set.name, "location": image_set.location}
    about = {"kind": "images", "content": content, **where, "images": number, "geometry": geometry}

    def stored() -> Callable[[int], Arrays]:
        return _sound(entry(key, about, _Images, lambda place: _fill(place, image_set, fit)), make)

    def make(index: int) -> Arrays:
        return fit(image_set.read(index))

    return _stored(bool(content), stored, lambda: _in_memory(make))


def _in_memory(make: Callable[[int], Arrays]) -> Callable[[int], Arrays]:
    """``make`` that keeps what it made, up to `MEMORY`."""
    kept: dict[int, Arrays] = {}
    free = MEMORY

    def read(index: int) -> Arrays:
        nonlocal free
        if index in kept:
            return kept[index]
        arrays = make(index)
        size = sum(array.nbytes for array in arrays)
        if size <= free:
            free -= size
            kept[index] = arrays
        return arrays

    return read


def _sound(images: "_Images", make: Callable[[int], Arrays]) -> Callable[[int], Arrays]:
    """The images of an entry; a damaged one is made from its files, and the entry again by the next run."""
    damaged = False

    def read(index: int) -> Arrays:
        nonlocal damaged
        try:
            return images(index)
        except (OSError, ValueError) as error:
            if not damaged:
                damaged = True
                log.warning("%s is damaged (%s): files are read instead, the next run repairs it", images.path, error)
                with suppress(OSError):
                    (images.path.parent / "content.npz").unlink()
            return make(index)

    return read


class _Images:
    """The images of an entry, which stay readable when it is removed. Raises an error where they are damaged.

    They are read, not mapped: a file that is cut short under a mapping ends the process. The system keeps what was read
    in memory once, for all processes, as long as there is room.
    """

    def __init__(self, place: Path) -> None:
        content = _load(place)
        self.path = place / "images.bin"
        self._blocks_N5, self._rows = content["blocks_N5"], content["rows"]
        self._seen = bytearray(len(self._blocks_N5))
        self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size != self._blocks_N5[:, 1].sum():
            raise ValueError("it is cut short")

    def __call__(self, index: int) -> Arrays:
        """Writable arrays. The checksum is compared when a process first reads an image."""
        import numpy as np

        start, size, checksum, first, last = self._blocks_N5[index].tolist()
        block = bytearray()
        while len(block) < size and (part := os.pread(self._file, size - len(block), start + len(block))):
            block += part
        if len(block) != size or not (self._seen[index] or zlib.crc32(block) == checksum):
            raise ValueError(f"image {index} has another checksum")
        self._seen[index] = True
        arrays = []
        for at, kind, n_dims, *numbers in self._rows[first:last].tolist():
            shape, strides = numbers[:n_dims], numbers[3 : 3 + n_dims]
            arrays.append(np.ndarray(shape, DTYPES[kind], block, at, strides))
        return arrays


def _fill(place: Path, image_set: ImageSet, fit: Callable[[Pair], Arrays]) -> None:
    """Write the images of an entry: their bytes to images.bin. content.npz says where: start, size and checksum of the
    bytes of each image and its rows; a row for each array, with its place in these bytes, type, shape and strides."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from tqdm import tqdm

    blocks: list[tuple[int, ...]] = []
    rows: list[tuple[int, ...]] = []
    end, most, number = 0, limit(), len(image_set.image_ids)
    threads = min(usable_cores(), MOST_THREADS)
    with storing():
        file = (place / "images.bin").open("wb")
    bar = tqdm(total=number, desc="storing images", unit="img", leave=False, disable=None)
    with file, bar, ThreadPoolExecutor(threads) as pool:
        for start in range(0, number, threads):  # a few at a time, because sets may be larger than memory
            for pair in pool.map(image_set.read, range(start, min(start + threads, number))):
                block, first = bytearray(), len(rows)
                for array in fit(pair):
                    flat = array if _is_dense(array) else array.copy(order="K")
                    shape, strides = (tuple(values) + (0,) * (3 - flat.ndim) for values in (flat.shape, flat.strides))
                    rows.append((len(block), DTYPES.index(flat.dtype.name), flat.ndim, *shape, *strides))
                    block += flat.ravel(order="K").data.cast("B")
                with storing():
                    file.write(block)
                blocks.append((end, len(block), zlib.crc32(block), first, len(rows)))
                end += len(block)
                bar.update()
            heed_interrupts()
            if end > most or (len(blocks) > 16 and end / len(blocks) * number > 2 * most):
                raise no_room()
        with storing():
            file.flush()
    _save(place, {"blocks_N5": np.array(blocks, np.int64), "rows": np.array(rows, np.int64)})


def _is_dense(array: "np.ndarray") -> bool:
    """Whether the array's elements fill its memory, in any order of its dimensions."""
    return sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + array.itemsize == array.nbytes
