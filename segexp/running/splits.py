"""The split of a run, and the study that already holds another split of the same images."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from segexp.config import Config, SplitConfig
from segexp.data.check import PairFacts
from segexp.data.image_set import ImageSet, fingerprint
from segexp.data.split import METHODS, Split, limited, make_split, split_sha
from segexp.errors import UsageError
from segexp.records import read_run
from segexp.registry import fields_of


def drawn_split(
    image_set: ImageSet, options: SplitConfig, seed: int, facts: PairFacts | None = None, first_class: int = 1
) -> Split:
    """The split of the run with this ``seed``; a stratified one needs the facts. Raises UsageError."""
    classes = None
    if facts is not None and options.stratify:
        classes = [frozenset(of_C[first_class:].nonzero()[0].tolist()) for of_C in facts.class_pixels_NC]
    return make_split(image_set, **vars(options), run_seed=seed, classes=classes)


def check_unit(config: Config, image_set: ImageSet, split: Split) -> None:
    """Raise UsageError where ``metrics.unit=case`` cannot score the volumes of these images."""
    if config.metrics.unit != "case":
        return
    where = image_set.location or config.dataset.name
    if not image_set.case_ids:
        raise UsageError(
            f"metrics.unit=case: {where} holds no volumes (no image is a slice of a case): set metrics.unit=image"
        )
    given, known = config.dataset.spacing, image_set.spacings
    thick = [bool(one and one[0]) for one, case in zip(known, image_set.case_ids, strict=False) if case]
    if (len(given) == 2 and not (thick and all(thick))) if given else not all(thick):
        shown = ",".join(f"{number:g}" for number in given) if given else "HEIGHT,WIDTH"
        raise UsageError(
            f"metrics.unit=case: the distance between slices of {where} is unknown: give it first, "
            f"dataset.spacing=[SLICES,{shown}]"
        )
    part_of: dict[str, str] = {}
    for part, indices in split.items():
        for case in {image_set.case_ids[i] for i in indices} - {""}:
            if part_of.setdefault(case, part) != part:
                raise UsageError(
                    f"metrics.unit=case: slices of {case} are in {part_of[case]} and in {part}: put whole volumes into "
                    "one part of the split, or set metrics.unit=image"
                )


def check_method(config: Config, whole: ImageSet, dataset_sha: str, drawn: str, study: Path) -> None:
    """Raise UsageError where the study holds a run on the split that the other ``split.method`` draws.

    whole: the data set before ``dataset.limit``, which draws groups too. dataset_sha, drawn: hashes of the images and
    of the split of the new run. The first run of the study on a split of either method decides.
    """
    # A stratified split has no method of before.
    if not any(whole.group_ids) or config.split.stratify:
        return
    ours, limit = config.split, config.dataset.limit
    options = {method: dataclasses.replace(ours, method=method) for method in METHODS}
    sets = {method: limited(whole, limit, **vars(options[method])) for method in METHODS}

    @functools.cache
    def sha(method: str, fold: int | None, seed: int) -> str:
        try:
            split = drawn_split(sets[method], dataclasses.replace(options[method], fold=fold), seed)
        except UsageError:  # a part would be empty
            return ""
        return split_sha(sets[method], split)

    @functools.cache
    def images_sha(method: str) -> str:
        return dataset_sha if method == ours.method or limit is None else fingerprint(sets[method])

    other = next(method for method in METHODS if method != ours.method)
    if sha(other, ours.fold, config.seed) in ("", drawn):
        return
    for held in _splits_in(study):
        seed = held.seed if ours.per_seed else config.seed
        if held.folds != ours.folds or held.split_sha != sha(held.method, held.fold, seed):
            continue
        if held.dataset_sha == images_sha(held.method):
            if held.method == ours.method:
                return
            raise UsageError(
                f"{held.run_dir} has the split that split.method={other} draws from these images; runs on another "
                f"split cannot be paired with it: add split.method={other} to continue the study, or name another one "
                f"(study.name={study.name}-{ours.method})"
            )


class _Held(NamedTuple):
    """What the record of a run says of its split."""

    run_dir: Path
    method: str
    folds: Any
    fold: int | None
    seed: int
    split_sha: str
    dataset_sha: str


def _splits_in(study: Path) -> Iterator[_Held]:
    """The splits of the runs of a study in order of their directories, but for archived and unreadable ones."""
    for name in sorted(os.listdir(study)) if study.is_dir() else ():
        if not re.search(r"\.old\d+$", name):
            with suppress(UsageError, OSError):
                held = _held(study / name)
                folded = held.folds is None or (type(held.fold) is int and 0 <= held.fold < held.folds)
                if held.method in METHODS and folded:
                    yield held


@functools.cache
def _held(run_dir: Path) -> _Held:
    """Raises UsageError where there is no record yet, which is not kept."""
    record = read_run(run_dir)
    config = record.get("config") or {}
    before = {option.name: option.since.before for option in fields_of(SplitConfig) if option.since}
    method, folds, fold = (config.get(f"split.{key}", before[key]) for key in ("method", "folds", "fold"))
    shas = (str(record.get(f"{key}_sha")) for key in ("split", "dataset"))
    return _Held(run_dir, method, folds, fold, config.get("seed", 0), *shas)
