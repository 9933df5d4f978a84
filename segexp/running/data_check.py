"""A data set read, checked and split as a run would, for a report: what a run refuses is listed, not raised."""

import functools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segexp.config import Config
from segexp.data.check import COMPARED, PairFacts, check_names, copies, inspect_pairs, unusable
from segexp.data.description import describe
from segexp.data.image_set import ImageSet, PairsError
from segexp.data.split import Split
from segexp.errors import printable
from segexp.records.formatting import pluralize
from segexp.running import checked_split, opened

MOST_ROWS = 8
"""Training images of a contact sheet."""

MOST_OTHERS = 2
"""Validation and test images of a contact sheet, each."""

MOST_READ = 200
"""Training images from which a contact sheet takes mean and standard deviation."""


@dataclass(frozen=True)
class DataCheck:
    """What was found. image_set, facts: of the usable images. split: empty where it is refused.

    bad: image id -> why it cannot be used. refused: why a run would not begin. copies: (image, image that it is a copy
    of, whether their pixels are identical), see `segexp.data.check.copies`.
    """

    config: Config
    image_set: ImageSet
    facts: PairFacts
    split: Split
    bad: dict[str, str]
    refused: tuple[str, ...]
    warnings: tuple[str, ...]
    copies: tuple[tuple[int, int, bool], ...]

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """The record of `describe`."""
        return describe(self.image_set, self.facts, self.config.dataset, self.split)

    @functools.cached_property
    def part_of(self) -> dict[int, str]:
        """Index -> part of the split, "" where the split is refused."""
        return defaultdict(str, {i: part for part, indices in self.split.items() for i in indices})

    def content(self) -> dict[str, Any]:
        """Everything, of plain types."""
        ids, facts = self.image_set.image_ids, self.facts
        return {
            "data": self.data,
            "refused": list(self.refused),
            "warnings": list(self.warnings),
            "bad": self.bad,
            "copies": [{"image": ids[i], "of": ids[j], "identical": same} for i, j, same in self.copies],
            "unused": dict(self.image_set.unused),
            "images": [
                {
                    "image": image_id,
                    "group": self.image_set.group_ids[i],
                    "part": self.part_of[i],
                    "height": int(facts.sizes_N2[i, 0]),
                    "width": int(facts.sizes_N2[i, 1]),
                    "dtype": facts.dtypes_N[i],
                    "range": facts.ranges_N2[i].tolist(),
                    "class_pixels": facts.class_pixels_NC[i].tolist(),
                    "objects": facts.objects_NC[i].tolist(),
                    "objects_gone": facts.gone_NC[i].tolist(),
                    "image_sha": facts.image_sha_N[i],
                    "image_hash": facts.image_hash_N[i],
                }
                for i, image_id in enumerate(ids)
            ],
        }


def check_data(config: Config) -> DataCheck:
    """Read and check the data set of a configuration. Raises UsageError where nothing of it can be read."""
    bad: dict[str, str] = {}
    _, image_set, options = opened(config, bad)
    image_set = _with_usable_names(image_set, bad)
    facts, problems = inspect_pairs(image_set, *options)
    number = len(image_set.image_ids) + len(bad)
    bad |= {image_set.image_ids[i]: problem for i, problem in problems.items()}
    if facts is None:
        raise unusable(bad, number)
    bad = {printable(name): problem for name, problem in bad.items()}
    image_set = image_set.subset([i for i in range(len(image_set.image_ids)) if i not in problems])
    refused: list[str] = []
    split, warnings = checked_split(config, image_set, facts, refused)
    found = [copy for part, other in COMPARED if split for copy in copies(image_set, facts, split[part], split[other])]
    for indices in split.values() or [list(range(len(image_set.image_ids)))]:
        found += _repeated(facts, indices)
    return DataCheck(config, image_set, facts, split, bad, tuple(refused), tuple(warnings), tuple(found))


def _with_usable_names(image_set: ImageSet, bad: dict[str, str]) -> ImageSet:
    """The images whose names can be names of files; the others are added to ``bad``."""
    try:
        check_names(image_set.image_ids)
    except PairsError as error:
        bad |= error.problems
        kept = [i for i, name in enumerate(image_set.image_ids) if name not in error.problems]
        return _with_usable_names(image_set.subset(kept), bad)
    return image_set


def _repeated(facts: PairFacts, indices: list[int]) -> list[tuple[int, int, bool]]:
    """Images of one part with the pixels of another one of it."""
    first: dict[str, int] = {}
    seen = [(i, first.setdefault(facts.image_sha_N[i], i), True) for i in indices if facts.image_sha_N[i]]
    return [(i, j, same) for i, j, same in seen if i != j]


def contact_sheet(found: DataCheck, path: Path) -> None:
    """Write a PNG of some images of each part, with their masks; of training also as it sees them in two epochs."""
    from segexp.data import batches
    from segexp.data.augment import make_augment
    from segexp.data.normalise import rule_of
    from segexp.data.normalise import shown as as_shown
    from segexp.evaluation.pictures import draw_sheet, fixed_choice, image_title

    config, image_set, dataset = found.config, found.image_set, found.config.dataset
    rule, train = rule_of(dataset.normalise), found.split.get("train") or [*range(len(image_set.image_ids))]
    chosen, side = _chosen(found, train), dataset.image_size or int(found.facts.sizes_N2.max())
    geometry = batches.InputGeometry(dataset.fit, side, 1, rule)
    read = batches.make_reader(image_set, geometry)
    normalise = batches.Normalisation((0.0,) * image_set.channels, (1.0,) * image_set.channels)
    if rule.name != "image":
        normalise = batches.training_statistics(read, train[:MOST_READ])
    images = (image_set, read, geometry, normalise, make_augment(config.augment, config.seed))

    parts = (found.split.get(part, []) for part in ("val", "test"))
    others = [i for part in parts for i in fixed_choice(image_set.image_ids, part)[:MOST_OTHERS]]
    rows: list[tuple[str, list[tuple[Any, Any]]]] = []
    for i in (*chosen, *others):
        pair = image_set.read(i)
        title, image_HWC = f"{image_set.image_ids[i]}\n{found.part_of[i]}", as_shown(pair.image_HWC)
        rows.append((title, [(image_HWC, None), (image_HWC, pair.mask_HW)]))
    for epoch in (1, 2):
        ((images_NCHW, masks_NHW, _),) = batches.training_batches(*images, epoch, [chosen], seed=config.seed)
        for (_, pictures), image_CHW, mask_HW in zip(rows, images_NCHW, masks_NHW, strict=False):
            # In the colours of the image: channels are normalised one by one.
            image_HWC = image_CHW.permute(1, 2, 0).numpy() * normalise.std_C + normalise.mean_C
            pictures.append((image_HWC, mask_HW.numpy().astype("uint8")))
    names = (dataset.class_names or [f"class {c}" for c in range(dataset.num_classes)])[1:]
    heading = f"{dataset.name}: {pluralize(len(image_set.image_ids), 'image')}"
    image = image_title(image_set.channels, dataset.channel_names)
    titles = (image, "mask", *(f"augment={config.augment.name}, epoch {epoch}" for epoch in (1, 2)))
    draw_sheet(path, rows, heading, titles, names, (dataset.class_colors or [])[1:], image_set.overlapping)


def _chosen(found: DataCheck, train: list[int]) -> list[int]:
    """Training images for a sheet, in an order by their names' hash; first one of each class."""
    from segexp.evaluation.pictures import fixed_choice

    image_ids, pixels_NC = found.image_set.image_ids, found.facts.class_pixels_NC
    of_classes = [[i for i in train if pixels_NC[i, c]] for c in range(1, pixels_NC.shape[1])]
    first = [fixed_choice(image_ids, indices)[0] for indices in of_classes if indices]
    return [*dict.fromkeys([*first, *fixed_choice(image_ids, train)])][:MOST_ROWS]
