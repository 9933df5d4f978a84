"""Splits: nothing lost, no group in two parts, steady, and independent of everything but their own seed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segexp.data.check import PairFacts, check_split
from segexp.data.file_set import FilesConfig, Item, image_set_of
from segexp.data.image_set import ImageSet, Pair
from segexp.data.split import count_groups, limited, make_split, shared_groups, slices_in, split_sha
from segexp.errors import UsageError

FRACTIONS = [0.6, 0.15, 0.25]


def image_set(number: int, groups: list[str] | None = None, declared: dict[str, str] | None = None) -> ImageSet:
    return ImageSet(
        image_ids=tuple(f"img_{i:03d}" for i in range(number)),
        group_ids=tuple(groups or [""] * number),
        channels=1,
        num_classes=2,
        read=lambda i: Pair(np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.uint8)),
        file_bytes=lambda i: [b""],
        declared_split=declared,
        location="memory",
    )


def facts_of(class_pixels_NC: np.ndarray) -> PairFacts:
    """Facts of images whose masks have these pixels per class."""
    kinds = ("",) * len(class_pixels_NC)
    names = tuple(f"sha{i}" for i in range(len(class_pixels_NC)))
    twos, zeros = np.full((len(kinds), 2), 4), np.zeros_like(class_pixels_NC)
    numbers = (twos, class_pixels_NC, names, class_pixels_NC, zeros, zeros, twos, twos)
    return PairFacts(*numbers, names, kinds, ("uint8",) * len(kinds), kinds, kinds, {})


@pytest.mark.parametrize("number", [7, 40, 101])
def test_every_image_is_in_one_part_and_fractions_hold(number: int) -> None:
    split = make_split(image_set(number), "auto", FRACTIONS, 0)
    assert sorted(i for part in split.values() for i in part) == list(range(number))
    for part, fraction in zip(split.values(), FRACTIONS, strict=True):
        assert abs(len(part) - fraction * number) < 1
    sizes = [len(split["test"]) for split in folds_of(image_set(number), 5)]
    assert max(sizes) - min(sizes) == (number % 5 > 0)


def test_split_moves_with_its_seed_alone() -> None:
    images = image_set(50)
    assert make_split(images, "auto", FRACTIONS, 3) == make_split(images, "auto", FRACTIONS, 3)
    assert make_split(images, "auto", FRACTIONS, 3) != make_split(images, "auto", FRACTIONS, 4)


def test_no_group_straddles_and_fractions_are_approached() -> None:
    rng = np.random.default_rng(0)
    groups = [f"patient{g}" for g in rng.integers(0, 25, 200)]
    images = image_set(200, groups)
    split = make_split(images, "auto", FRACTIONS, 0)
    homes: dict[str, set[str]] = {}
    for part, indices in split.items():
        for i in indices:
            homes.setdefault(groups[i], set()).add(part)
    assert all(len(parts) == 1 for parts in homes.values())
    for members, fraction in zip(split.values(), FRACTIONS, strict=True):
        assert abs(len(members) / 200 - fraction) < 0.06


def test_split_files_are_kept_and_a_missing_validation_part_is_cut_from_train() -> None:
    declared = {f"img_{i:03d}": "test" if i < 10 else "train" for i in range(50)}
    images = image_set(50, declared=declared)
    split = make_split(images, "auto", FRACTIONS, 0)
    assert split["test"] == list(range(10))
    assert len(split["val"]) == pytest.approx(40 * 0.15 / 0.75, abs=1)
    assert sorted(split["train"] + split["val"]) == list(range(10, 50))
    assert make_split(images, "fractions", FRACTIONS, 0)["test"] != list(range(10))
    groups = [f"g{i // 5}" for i in range(50)]
    split = make_split(image_set(50, groups, declared), "files", FRACTIONS, 0)
    assert not {groups[i] for i in split["train"]} & {groups[i] for i in split["val"]}
    assert split["val"]


def folds_of(images: ImageSet, folds: int, seed: int = 0) -> list[dict[str, list[int]]]:
    return [make_split(images, "auto", FRACTIONS, seed, folds, fold) for fold in range(folds)]


def random_groups(seed: int) -> tuple[int, int, list[str]]:
    """A number of folds, the size of the largest group, and groups (some images have none) for some images."""
    rng = np.random.default_rng(seed)
    folds = int(rng.integers(2, 8))
    number = int(rng.integers(8 * folds, 200))
    groups = [f"p{g}" if g else "" for g in rng.integers(0, max(4 * folds, number // 3), number)]
    largest = max([groups.count(g) for g in set(groups) - {""}] or [1])
    return folds, largest, groups


@pytest.mark.parametrize("seed", range(40))
def test_folds_test_every_image_once_and_split_no_group(seed: int) -> None:
    folds, largest, groups = random_groups(seed)
    number = len(groups)
    splits = folds_of(image_set(number, groups), folds, seed)
    assert sorted(i for split in splits for i in split["test"]) == list(range(number))
    sizes = [len(split["test"]) for split in splits]
    assert max(sizes) - min(sizes) <= largest
    for split in splits:
        assert sorted(i for part in split.values() for i in part) == list(range(number))
        named = [{groups[i] for i in part} - {""} for part in split.values()]
        assert not named[0] & named[1] | named[0] & named[2] | named[1] & named[2]
        rest = number - len(split["test"])
        assert abs(len(split["val"]) - rest * 0.15 / 0.75) <= largest


def test_folds_move_with_the_seed_of_the_split_and_with_names_not_places() -> None:
    images = image_set(60)
    assert folds_of(images, 5, 3) == folds_of(images, 5, 3)
    assert folds_of(images, 5, 3)[0] != folds_of(images, 5, 4)[0]
    renamed = ImageSet(**{**images.__dict__, "image_ids": tuple(reversed(images.image_ids))})
    for one, other in zip(folds_of(images, 5), folds_of(renamed, 5), strict=True):
        assert sorted(59 - i for i in other["test"]) == one["test"]


def test_images_are_cut_into_folds_whatever_split_files_call_test() -> None:
    declared = {f"img_{i:03d}": "test" if i < 10 else "train" for i in range(50)}
    assert folds_of(image_set(50, declared=declared), 5) == folds_of(image_set(50), 5)
    with_files = make_split(image_set(50, declared=declared), "fractions", FRACTIONS, 0, 5, 2)
    assert with_files == folds_of(image_set(50), 5)[2]


TWO_GROUPS = image_set(9, ["a"] * 5 + ["b"] * 4)
STRADDLING = image_set(6, ["g0"] * 6, {f"img_{i:03d}": "test" if i < 2 else "train" for i in range(6)})


@pytest.mark.parametrize(("images", "source", "fold", "reason"), [
    (STRADDLING, "auto", (), "g0.*split.source=fractions.*split.allow_shared_groups=true"),
    (image_set(10), "files", (), "no split files.*split.source=fractions"),
    (TWO_GROUPS, "auto", (), r"split is empty: memory .*9 images in 2 groups.*split.fractions"),
    (TWO_GROUPS, "auto", (3, 0), r"split.folds=3: memory .*2 groups .*fewer folds"),
    (TWO_GROUPS, "auto", (2, 0), "the val split is empty"),
])  # fmt: skip
def test_splits_that_cannot_be_made(images: ImageSet, source: str, fold: tuple[int, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make_split(images, source, FRACTIONS, 0, *fold)


def test_sha_tells_splits_and_groups_apart() -> None:
    images = image_set(20)
    first, second = (make_split(images, "auto", FRACTIONS, seed) for seed in (0, 1))
    assert split_sha(images, first) != split_sha(images, second)
    grouped = image_set(20, [f"g{i}" for i in range(20)])
    assert split_sha(images, first) != split_sha(grouped, first)


def test_a_part_without_foreground_is_refused_and_an_absent_class_is_told() -> None:
    images = image_set(4)
    pixels = np.array([[10, 6, 0], [10, 6, 0], [12, 4, 0], [16, 0, 0]])
    facts = facts_of(pixels)
    split = {"train": [0, 1], "val": [2], "test": [3]}
    with pytest.raises(UsageError, match=r"test .*split.seed"):
        check_split(images, facts, split)
    three = ImageSet(**{**images.__dict__, "num_classes": 3})
    pixels[3] = [10, 6, 0]
    assert [line for line in check_split(three, facts, split) if "class 2" in line] == ["class 2 occurs in no mask"]
    pixels[0] = [10, 4, 2]
    lines = [line for line in check_split(three, facts, split) if line.startswith("class 2 ")]
    assert ["val" in lines[0], "test" in lines[1], len(lines)] == [True, True, 2]


@pytest.mark.parametrize(("limit", "number"), [(10, 10), (0.25, 10), (500, 40)])
def test_a_limit_draws_that_many_images(limit: float, number: int) -> None:
    images = limited(image_set(40), limit, "auto", 0, None)
    assert len(images.image_ids) == len(set(images.image_ids)) == number
    notes = (f"dataset.limit={limit}: {number} of 40 images are used",)
    assert images.notes == (() if number == 40 else notes)
    assert (limited(image_set(40), limit, "auto", 1, None).image_ids == images.image_ids) == (number == 40)


def test_a_limit_keeps_groups_whole_and_takes_from_every_part_of_split_files() -> None:
    groups = [f"p{i // 5}" for i in range(40)]
    declared = {f"img_{i:03d}": "train" if i < 20 else "val" if i < 30 else "test" for i in range(40)}
    images = dataclasses.replace(image_set(40, groups, declared), file_bytes=lambda i: [str(i).encode()])
    few = limited(images, 2, "auto", 0, None)
    assert [few.group_ids.count(group) for group in set(few.group_ids)] == [5, 5, 5]
    assert list((few.declared_split or {}).values()) == ["train"] * 5 + ["val"] * 5 + ["test"] * 5
    assert [f"img_{int(b):03d}" for i in range(15) for b in few.file_bytes(i)] == list(few.image_ids)
    for source, folds in (("fractions", None), ("auto", 2)):
        assert len(limited(images, 2, source, 0, folds).image_ids) == 5, "drawn from all, whatever the files say"


def test_shared_groups_of_split_files_can_be_allowed() -> None:
    declared = {f"img_{i:03d}": ("train", "val", "test")[i % 3] for i in range(9)}
    images = image_set(9, ["g0", "g0", "g1", "g1", *"abcde"], declared)
    split = make_split(images, "auto", FRACTIONS, 0, allow_shared_groups=True)
    lines = shared_groups(images, split)
    for line, words in zip(lines, (("g1", "test", "train"), ("g0", "train", "val", "select")), strict=True):
        assert all(word in line for word in words)


SIZES = tuple(int(n) for n in np.linspace(1, 30, 40).round())
PATIENTS = image_set(sum(SIZES), [f"p{rank:02d}" for rank, size in enumerate(SIZES) for _ in range(size)])
FIRST_OF = np.cumsum((0, *SIZES[:-1]))
"""40 patients of 1 to 30 slices, and the first image of each."""


def inclusion(draws: int, fractions: Sequence[float], folds: int | None, most: int) -> np.ndarray:
    """How often each patient is in each part (of folds: in each fold), and no part is further than ``most`` images from
    its share."""
    counts = np.zeros((folds or 3, len(SIZES)))
    shares = [1 / folds] * folds if folds else list(fractions)
    for seed in range(draws):
        if folds:
            parts = [make_split(PATIENTS, "auto", list(fractions), seed, folds, fold)["test"] for fold in range(folds)]
        else:
            parts = list(make_split(PATIENTS, "auto", list(fractions), seed).values())
        for part, (indices, share) in enumerate(zip(parts, shares, strict=True)):
            counts[part] += np.isin(FIRST_OF, indices)
            assert abs(len(indices) - share * sum(SIZES)) <= most
    return counts / draws


@pytest.mark.parametrize(("fractions", "folds"), [
    ((0.6, 0.2, 0.2), None), pytest.param((0.6, 0.15, 0.25), None, marks=pytest.mark.slow),
])  # fmt: skip
def test_large_patients_are_as_likely_in_a_part_as_small_ones(fractions: Sequence[float], folds: int | None) -> None:
    shares_P40 = inclusion(1500, fractions, folds, max(SIZES))
    # Of 120 shares of 1,500 draws, each with a standard error of .013 at most.
    assert np.abs(shares_P40 - np.array(fractions)[:, None]).max() < 0.05
    assert np.abs(shares_P40[:, 20:].mean(1) - shares_P40[:, :20].mean(1)).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("fractions", "folds"), [((0.6, 0.2, 0.2), None), ((0.6, 0.15, 0.25), None), (FRACTIONS, 5)])
def test_inclusion_is_flat_over_size_ranks(fractions: Sequence[float], folds: int | None) -> None:
    # Of 120 or 200 shares of 5,000 draws, each with a standard error of .007 at most.
    shares_P40 = inclusion(5_000, fractions, folds, max(SIZES))
    assert np.abs(shares_P40 - (np.array(fractions)[:, None] if folds is None else 1 / folds)).max() < 0.03


@pytest.mark.parametrize("method", ["random", "largest_first"])
def test_the_split_of_images_without_groups_is_that_of_earlier_versions(method: str) -> None:
    images = image_set(12)
    split = make_split(images, "auto", FRACTIONS, 0, method=method)
    assert split == {"train": [0, 1, 2, 5, 6, 8, 11], "val": [3, 7], "test": [4, 9, 10]}
    assert split_sha(images, split).startswith("73cef738f257e4bf")
    folds = [make_split(images, "auto", FRACTIONS, 3, 3, fold, method=method)["test"] for fold in range(3)]
    assert folds == [[1, 4, 5, 11], [3, 6, 8, 10], [0, 2, 7, 9]]
    kept = limited(images, 5, "auto", 0, None, method).image_ids
    assert kept == ("img_000", "img_002", "img_003", "img_008", "img_010")


def test_largest_first_is_the_split_of_earlier_versions() -> None:
    images = image_set(30, [f"p{g}" if g else "" for g in np.random.default_rng(0).integers(0, 9, 30)])
    split = make_split(images, "auto", FRACTIONS, 0, method="largest_first")
    assert (split["val"], split["test"]) == ([6, 7, 11, 14, 19], [2, 5, 12, 17, 24, 26, 27])
    assert split_sha(images, split).startswith("9b6bb6f147d33fdc")
    folds = [make_split(images, "auto", FRACTIONS, 3, 3, fold, method="largest_first")["test"] for fold in range(3)]
    assert folds[0] == [1, 3, 4, 5, 7, 10, 13, 16, 18, 20]
    assert folds[1] == [0, 2, 9, 12, 17, 21, 23, 24, 25, 26]
    kept = limited(images, 5, "auto", 0, None, "largest_first").image_ids
    assert kept == ("img_006", "img_011", "img_014", "img_019", "img_023")
    assert make_split(images, "auto", FRACTIONS, 0) != split
    assert limited(images, 5, "auto", 0, None).image_ids != kept


@pytest.mark.parametrize("seed", range(20))
def test_no_part_is_empty_where_there_are_as_many_groups(seed: int) -> None:
    images = image_set(63, ["a", "b", "c", *["large"] * 60])
    assert all(make_split(images, "auto", FRACTIONS, seed).values())
    four = [make_split(images, "auto", [0.4, 0.3, 0.3], seed, 3, fold) for fold in range(3)]
    assert all(part for split in four for part in split.values())
    assert limited(image_set(9, ["large"] * 9), 0.1, "auto", seed, None).image_ids, "a single group is kept"


def test_each_seed_may_have_a_split_of_its_own() -> None:
    def split(run_seed: int, per_seed: bool = False) -> dict[str, list[int]]:
        return make_split(image_set(50), "auto", FRACTIONS, 0, per_seed=per_seed, run_seed=run_seed)

    assert split(0) == split(1)
    of_seeds = [split(seed, per_seed=True) for seed in range(3)]
    assert of_seeds[0] == split(0, per_seed=True)
    assert len({str(one) for one in of_seeds}) == 3
    folds = [make_split(image_set(20), "auto", FRACTIONS, 0, 4, f, per_seed=True, run_seed=1)["test"] for f in range(4)]
    assert sorted(i for fold in folds for i in fold) == list(range(20))
    assert folds != [make_split(image_set(20), "auto", FRACTIONS, 0, 4, fold)["test"] for fold in range(4)]


def test_a_split_per_seed_contradicts_files_that_name_the_test_images() -> None:
    images = image_set(20, declared={f"img_{i:03d}": "test" if i < 5 else "train" for i in range(20)})
    for source in ("auto", "files"):
        with pytest.raises(UsageError, match=r"split.per_seed.*split.source=fractions"):
            make_split(images, source, FRACTIONS, 0, per_seed=True)
    assert make_split(images, "fractions", FRACTIONS, 0, per_seed=True)["test"]
    assert make_split(images, "auto", FRACTIONS, 0, 4, 0, per_seed=True)["test"]


def test_an_image_without_a_group_counts_as_one() -> None:
    assert count_groups(image_set(6, ["a", "a", "", "", "b", "a"]), [0, 1, 2, 3, 5]) == 3


@pytest.mark.parametrize(("names", "volumes"), [
    ([f"patient{n // 6:02d}_{n % 6:03d}" for n in range(60)], 10),
    ([f"TCGA_CS_{4941 + n // 9}_slice{n % 9}" for n in range(27)], 3),
    ([f"{n // 4:02d}-{n % 4}" for n in range(12)], 3),
    ([f"img_{n:03d}" for n in range(60)], 0),
    ([f"lesion_{n:03d}" for n in range(60)], 0),
    ([f"{('benign', 'malignant', 'normal')[n % 3]}_{n:03d}" for n in range(60)], 0),
    ([f"{n:03d}" for n in range(60)], 0),
    ([f"patient{n:02d}_1" for n in range(60)], 0),
    ([f"ISIC_{n:07d}" for n in range(60)], 0),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_slices_of_volumes_are_recognised(names: list[str], volumes: int) -> None:
    assert slices_in(names) == slices_in(names, [(64, 48)] * len(names)) == volumes
    assert slices_in(names, [(50 + n, 64) for n in range(len(names))]) == 0, "the slices of a volume share a size"
    if volumes:
        by_volume = [(64, 40 + sum(map(ord, name.rstrip("0123456789")))) for name in names]
        assert slices_in(names, by_volume) == volumes, "volumes may differ in size"


def held(seed: int, number: int, *shares: float) -> list[frozenset[int]]:
    """The classes of some images: each image holds class c with the chance shares[c - 1]."""
    drawn = np.random.default_rng(seed).random((number, len(shares)))
    return [frozenset((np.flatnonzero(row < shares) + 1).tolist()) for row in drawn]


def stratified(images: ImageSet, classes: list[frozenset[int]], seed: int, *fold: int) -> dict[str, list[int]]:
    return make_split(images, "auto", FRACTIONS, seed, *fold, stratify=True, classes=classes)


def holders(indices: Sequence[int], classes: list[frozenset[int]], c: int, groups: Sequence[str] = ()) -> int:
    """Groups (without groups: images) among these that hold class c."""
    return len({groups[i] if groups else i for i in indices if c in classes[i]})


@pytest.mark.parametrize(("shares", "most"), [
    pytest.param((0.4,), 1, marks=pytest.mark.slow), ((0.5, 0.15, 0.1), 1.3),
])  # fmt: skip
def test_stratified_parts_have_their_share_of_each_class_in_1000_draws(shares: tuple[float, ...], most: float) -> None:
    """Unstratified draws miss it by several groups. Every image has the same chance to be in a part."""
    classes, images = held(5, 30, *shares), image_set(30)
    chance, worst, plain = np.zeros((30, 3)), 0.0, 0.0
    wanted = [[f * holders(range(30), classes, c) for f in FRACTIONS] for c in range(1, len(shares) + 1)]

    def miss(split: dict[str, list[int]]) -> float:
        return max(
            abs(holders(part, classes, c) - number)
            for c, numbers in enumerate(wanted, start=1)
            for part, number in zip(split.values(), numbers, strict=True)
        )

    for seed in range(1000):
        split = stratified(images, classes, seed)
        assert sorted(i for part in split.values() for i in part) == list(range(30))
        worst = max(worst, miss(split))
        for column, part in enumerate(split.values()):
            chance[part, column] += 1 / 1000
        if seed < 50:
            plain = max(plain, miss(make_split(images, "auto", FRACTIONS, seed)))
    assert worst <= most + 1e-9
    assert plain > 2
    assert np.abs(chance - FRACTIONS).max() < 0.09


def test_stratified_folds_and_validation_parts_of_whole_groups() -> None:
    groups = [f"P{i // 4:02d}" for i in range(120)]
    classes, images = held(1, 120, 0.3, 0.05), image_set(120, groups)
    folds = [stratified(images, classes, 3, 5, fold) for fold in range(5)]
    assert sorted(i for split in folds for i in split["test"]) == list(range(120))
    for c in (1, 2):
        number = holders(range(120), classes, c, groups)
        for split in folds:
            assert abs(holders(split["test"], classes, c, groups) - number / 5) <= 1
            rest = number - holders(split["test"], classes, c, groups)
            assert abs(holders(split["val"], classes, c, groups) - 0.2 * rest) <= 1
            assert not {groups[i] for i in split["test"]} & {groups[i] for i in split["train"] + split["val"]}
            assert not {groups[i] for i in split["val"]} & {groups[i] for i in split["train"]}


def test_stratifying_moves_with_the_seed_and_needs_something_to_draw() -> None:
    classes, images = held(1, 50, 0.5), image_set(50)
    assert stratified(images, classes, 3) == stratified(images, classes, 3)
    assert stratified(images, classes, 3) != stratified(images, classes, 4)
    declared = {name: ("train", "val", "test")[i % 3] for i, name in enumerate(images.image_ids)}
    with pytest.raises(UsageError, match=r"split.stratify=true has no effect.*split.source=fractions"):
        stratified(image_set(50, declared=declared), classes, 0)
    seeds = [
        make_split(images, "auto", FRACTIONS, 0, stratify=True, classes=classes, per_seed=True, run_seed=seed)["test"]
        for seed in range(3)
    ]
    assert len(set(map(tuple, seeds))) == 3


def test_each_group_is_left_out_once() -> None:
    groups = [f"P{i % 7}" for i in range(40)]
    images = image_set(40, groups)
    splits = [make_split(images, "auto", FRACTIONS, 0, fold=fold, leave_one_group_out=True) for fold in range(7)]
    assert [{groups[i] for i in split["test"]} for split in splits] == [{f"P{fold}"} for fold in range(7)]
    for split in splits:
        assert sorted(i for part in split.values() for i in part) == list(range(40))
        assert not {groups[i] for i in split["val"]} & {groups[i] for i in split["train"]}
    with pytest.raises(UsageError, match=r"7 groups \(P0, P1.*0 to 6.*split.fold=range\(7\)"):
        make_split(images, "auto", FRACTIONS, 0, fold=7, leave_one_group_out=True)
    with pytest.raises(UsageError, match=r"has a group.*dataset.group_file"):
        make_split(image_set(40, ["", *groups[1:]]), "auto", FRACTIONS, 0, fold=0, leave_one_group_out=True)
    per_seed = [
        make_split(images, "auto", FRACTIONS, 0, fold=2, leave_one_group_out=True, per_seed=True, run_seed=seed)
        for seed in range(8)
    ]
    assert {tuple(split["test"]) for split in per_seed} == {tuple(splits[2]["test"])}
    assert len({tuple(split["val"]) for split in per_seed}) > 1


def test_slices_of_a_volume_stay_together_where_groups_are_unknown(tmp_path: Path) -> None:
    """And all volumes of a patient where they are known."""
    options: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(FilesConfig))
    options |= {"name": "v", "root": str(tmp_path), "channels": 1, "num_classes": 2, "mask_coding": "binary"}
    config = FilesConfig(**options)

    def cases(group: str) -> list[set[str]]:
        items = [
            Item(f"c{c}_z{z}", (tmp_path,), (tmp_path,), slice=z, case=f"c{c}", group=group and f"{group}{c // 2}")
            for c in range(12)
            for z in range(5)
        ]
        found = image_set_of(config, tmp_path, items)
        split = make_split(found, "auto", FRACTIONS, 0)
        return [{found.image_ids[i].split("_")[0] for i in part} for part in split.values()]

    train, val, test = cases("")
    assert not train & val | train & test | val & test
    of_patients = [{int(case[1:]) // 2 for case in part} for part in cases("P")]
    assert not of_patients[0] & of_patients[1] | of_patients[0] & of_patients[2] | of_patients[1] & of_patients[2]
