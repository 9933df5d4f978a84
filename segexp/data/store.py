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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from segexp.data.cache import Damaged, Unusable, check_size, entry, find, limit
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
from segexp.errors import DataChangedError, first_line
from segexp.records.process import heed_interrupts, usable_cores
from segexp.registry import cached_names
from segexp.registry.plugins import LOADED

log = logging.getLogger("segexp")

T = TypeVar("T")
U = TypeVar("U")

Arrays = Sequence[np.ndarray]

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

THREADS = 8
"""Most threads that hash or decode files."""


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


@cached_names
def _software(adapter: str) -> tuple[str, ...]:
    """Hash of the code that reads and checks images, and the versions of its libraries."""
    code = hashlib.sha256()
    module = sys.modules.get(ADAPTERS[adapter].open.__module__)
    for path in (*sorted(Path(__file__).parent.glob("*.py")), getattr(module, "__file__", None)):
        code.update(Path(path).read_bytes() if path else b"")
    if adapter in ADAPTERS.origins:
        code.update(LOADED[ADAPTERS.origins[adapter]].sha256.encode())
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
    rows = range(len(image_set.image_ids))
    options = [(key, value) for key, value in sorted(vars(dataset).items()) if key not in DESCRIPTIVE]
    reading = (_software(dataset.adapter), options, image_set.content, image_set.image_ids)
    files, stamps = [image_set.files(i) for i in rows], [stamp(image_set, i) for i in rows]
    use = bool(image_set.content) or all(files)

    def refuse_changes(read: Sequence[int]) -> None:
        for i in read:
            if stamp(image_set, i) != stamps[i]:
                name = image_set.image_ids[i]
                raise DataChangedError(f"{image_set.location}: {name} changed while it was read: repeat the command")

    @functools.cache
    def once() -> PairFacts:
        facts = check()
        refuse_changes(rows)  # before it is stored
        return facts

    key, states = _sha("files", reading, files), [_sha(sorted(one.items())) for one in stamps]
    before = _stored(use, lambda: find(key, lambda place: _load(place)[0]), lambda: None) or [["", ""]] * len(rows)
    new = [i for i in rows if before[i][0] != states[i]]
    digests = [bytes.fromhex(digest) for _, digest in before]
    try:
        for i, digest in zip(new, _hashed(image_set, stamps, new), strict=True):
            digests[i] = digest
    except OSError:
        once()  # names every file that cannot be read
        raise
    content = _sha("check", reading, digests, [[path.suffix for path in paths] for paths in files])
    about = {"content": content, "name": str(dataset.name), "location": image_set.location, "images": len(rows)}

    def stored_facts() -> PairFacts:
        return entry(content, about | {"kind": "check"}, _load_facts, lambda place: _save_facts(place, once()))

    def store_digests() -> object:
        pairs = [(state, digest.hex()) for state, digest in zip(states, digests, strict=True)]
        return entry(key, about | {"kind": "files"}, _load, lambda place: _save(place, pairs), renew=True)

    facts = _stored(use, stored_facts, once)
    refuse_changes(new)
    if changed := [image_set.image_ids[i] for i in new if before[i][1] not in ("", digests[i].hex())]:
        what = f"{len(changed)} of {len(rows)} images or their masks have changed since they were last used"
        log.warning("%s: %s (the first: %s); runs on them are new runs", image_set.location, what, changed[0])
    if new:
        _stored(use, store_digests, lambda: None)
    known = dataclasses.replace(image_set, content=content if use else "", name=str(dataset.name))
    return watched(known, stamps, digests), facts, fingerprint(image_set, digests)


def _hashed(image_set: ImageSet, stamps: Sequence[Stamp], indices: Sequence[int]) -> Iterator[bytes]:
    """`pair_digest` of these pairs, in threads."""
    newest_ns = max((state[2] for i in indices for state in stamps[i].values() if state), default=0)  # ctime
    if abs(time.time() - newest_ns / 1e9) < TICK_S:
        time.sleep(TICK_S)
    with ThreadPoolExecutor(min(usable_cores(), THREADS)) as pool:
        hashed = pool.map(functools.partial(pair_digest, image_set), indices)
        yield from tqdm(hashed, "hashing files", len(indices), leave=False, unit="img", disable=None)


def _save_facts(place: Path, facts: PairFacts) -> None:
    values = {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    _save(place, {name: value for name, value in values.items() if name not in arrays}, **arrays)


def _load_facts(place: Path) -> PairFacts:
    others, arrays = _load(place)
    fields = {**_tuples(others), **arrays}
    if fields.keys() != {field.name for field in dataclasses.fields(PairFacts)}:
        raise Damaged("it has other fields")
    return PairFacts(**fields)


def _tuples(value: Any) -> Any:
    """The value with tuples for lists."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _save(place: Path, value: Any, **arrays: np.ndarray) -> None:
    """Save a value of JSON and arrays, with their checksums. Raises TypeError for what JSON would change."""
    text = json.dumps(value)
    if repr(_tuples(json.loads(text))) != repr(_tuples(value)):
        raise TypeError(f"JSON cannot hold {text[:200]}")
    np.savez(place / "content.npz", **arrays, json=np.frombuffer(text.encode(), np.uint8))  # type: ignore[arg-type]


def _load(place: Path) -> tuple[Any, dict[str, Any]]:
    """The value, with lists for tuples, and the arrays of `_save`. Raises Damaged or OSError."""
    try:
        with np.load(place / "content.npz", allow_pickle=False) as content:
            arrays = dict(content)
        return json.loads(arrays.pop("json").tobytes()), arrays
    except OSError:
        raise
    except Exception as error:  # damaged archives raise errors of many kinds
        raise Damaged(first_line(error)) from error


# Images


def images_of(image_set: ImageSet, geometry: str, fit: Callable[[Pair], Arrays]) -> Callable[[int], Arrays]:
    """What ``fit`` makes of pair i: made once, for all images of the set, and then read from the store.

    fit: returns arrays of up to three dimensions, the image first for its alignment; their types and strides are kept.
    geometry: what ``fit`` depends on.
    """
    content, number = image_set.content, len(image_set.image_ids)
    key = _sha("images", content, image_set.image_ids, geometry)
    about = {"content": content, "name": image_set.name, "location": image_set.location, "images": number}
    about |= {"kind": "images", "geometry": geometry}

    def stored() -> Callable[[int], Arrays]:
        return entry(key, about, lambda place: _Images(place, make), lambda place: _fill(place, image_set, fit))

    def make(index: int) -> Arrays:
        return fit(image_set.read(index))

    return _stored(bool(content), stored, lambda: in_memory(make, MEMORY))


def in_memory(make: Callable[[int], Arrays], free: int) -> Callable[[int], Arrays]:
    """``make`` that keeps what it made, up to ``free`` bytes."""
    kept: dict[int, Arrays] = {}

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


class _Images:
    """Image i of an entry, or ``make(i)`` where the entry is damaged, which is reported once. The entry may be removed.

    Images are read, not mapped: a file that is cut short under a mapping ends the process. The system keeps what was
    read in memory once, for all processes, as long as there is room.
    """

    def __init__(self, place: Path, make: Callable[[int], Arrays]) -> None:
        """Raises Damaged or OSError where the entry is known to be damaged."""
        _, arrays = _load(place)
        self._place, self._make, self._damaged = place, make, False
        self._blocks_N5, self._rows = arrays["blocks_N5"], arrays["rows"]
        self._seen = bytearray(len(self._blocks_N5))
        self._file = os.open(place / "images.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size != self._blocks_N5[:, 1].sum():
            raise Damaged("images.bin is cut short")

    def __call__(self, index: int) -> Arrays:
        try:
            return self._stored(index)
        except (OSError, ValueError) as error:
            if not self._damaged:
                log.warning("%s is damaged (%s): files are read instead, the next run repairs it", self._place, error)
                self._damaged = True
                with suppress(OSError):
                    (self._place / "content.npz").unlink()
            return self._make(index)

    def _stored(self, index: int) -> Arrays:
        """Writable arrays. The checksum is compared when a process first reads an image."""
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
            arrays.append(np.ndarray(shape, chr(kind), block, at, strides))
        return arrays


def _fill(place: Path, image_set: ImageSet, fit: Callable[[Pair], Arrays]) -> None:
    """Write the images of an entry: their bytes to images.bin. content.npz says where: start, size and checksum of the
    bytes of each image and its rows; a row for each array, with its place in these bytes, type, shape and strides."""
    blocks: list[tuple[int, ...]] = []
    rows: list[tuple[int, ...]] = []
    end, number, threads = 0, len(image_set.image_ids), min(usable_cores(), THREADS)
    bar = tqdm(total=number, desc="storing images", unit="img", leave=False, disable=None)
    with (place / "images.bin").open("wb") as file, bar, ThreadPoolExecutor(threads) as pool:
        for start in range(0, number, threads):  # a few at a time, because sets may be larger than memory
            for pair in pool.map(image_set.read, range(start, min(start + threads, number))):
                block, first = bytearray(), len(rows)
                for array in fit(pair):
                    flat = array if _is_dense(array) else array.copy(order="K")
                    shape, strides = (tuple(values) + (0,) * (3 - flat.ndim) for values in (flat.shape, flat.strides))
                    rows.append((len(block), ord(flat.dtype.char), flat.ndim, *shape, *strides))
                    block += flat.ravel(order="K").data.cast("B")
                file.write(block)
                blocks.append((end, len(block), zlib.crc32(block), first, len(rows)))
                end += len(block)
                bar.update()
            heed_interrupts()
            check_size(max(end, end * number // len(blocks) // 4))  # the first images may be the largest
    _save(place, None, blocks_N5=np.array(blocks, np.int64), rows=np.array(rows, np.int64))


def _is_dense(array: np.ndarray) -> bool:
    """Whether the array's elements fill its memory, in any order of its dimensions."""
    return sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + array.itemsize == array.nbytes
