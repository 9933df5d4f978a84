"""How often `segexp compare` is wrong, and what it finds: simulated studies, as the tables of docs/comparing.md.

    python scripts/error_rates.py [--quick] [--only TABLE ...] [--repetitions N] [--seed S] [--processes P] [--write]

Each study is made up in memory and handed to `segexp.compare.verdict.compare`, the function behind the command;
verdicts and intervals are read from its result. Scores are in points (hundredths of Dice). Unless a setting says
otherwise, no arm is better than another, and an arm's score varies by 1 point (standard deviation) from seed to seed,
by 3 from image to image beyond what the image does to all arms, and by 5 from run to run and image to image.

The same seed gives the same numbers, whatever the number of processes. Arrays: A arms, the first the reference, K
seeds, N images, F classes, J splits. It takes 18 minutes of two cores; --quick takes a tenth of the studies.
--write puts the tables into the page; without it they are printed. Exit code 1: a rate is out of its bounds by more
than chance.
"""

import argparse
import math
import os
import sys
import textwrap
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import betaincinv
from tqdm import tqdm

from segexp.compare.result import ALPHA, Comparison, Result, Verdict
from segexp.compare.statistics import TwoWay, one_sample, seeds_needed
from segexp.compare.verdict import compare
from segexp.records.formatting import markdown_table
from segexp.records.runs import Run
from segexp.records.tables import Images, Layout, Loaded

PAGE = Path(__file__).resolve().parent.parent / "docs" / "comparing.md"
BEGIN, END = "<!-- tables of scripts/error_rates.py -->", "<!-- end of the tables -->"

REPETITIONS = 1000
CHUNK = 25
"""Studies that share one stream of random numbers."""

Rng = np.random.Generator
Events = Mapping[str, float | None]
"""What happened in a study: question -> answer (yes or no, or a number); None where the study does not count for it."""

Bounds = tuple[float, float] | None
"""The least and the largest rate allowed. None: no procedure covers this; the rate is there to be known."""

USUAL, STABLE = (1, 3, 5), (0.2, 0.6, 2)
"""Standard deviations of an arm's score in points, of seeds, images and the rest; those of arms that vary little."""

ARMS = ("sigmoid", "arctan", "normal_cdf", "softsign", "laplace", "student_t3")
ONE, ANY = "one candidate", "any of five"
ALL, SEEN, BARE = "all studies", "failure in the sample", "without a condition"
NEW, PLAIN, COVERED = "new training sets", "plain t", "covered"
TOGETHER, APART = "one call", "a call for each"


@dataclass(frozen=True)
class Setting:
    """One line of a table. study(rng, **options): simulates one study; required: question -> bounds of its rate."""

    name: str
    required: Mapping[str, Bounds]
    study: Callable[..., Events]
    options: Mapping[str, Any]


def setting(name: str, required: Mapping[str, Bounds], study: Callable[..., Events], **options: Any) -> Setting:
    """name: with the options in braces."""
    return Setting(name.format(**options), required, study, options)


@dataclass(frozen=True)
class Row:
    """What was counted: ``hits`` of ``n`` studies (or a sum over them, so that ``rate`` is a mean)."""

    table: str
    setting: str
    what: str
    hits: float
    n: int
    required: Bounds

    @property
    def rate(self) -> float:
        return self.hits / self.n if self.n else math.nan

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """The exact interval of the rate (Clopper-Pearson)."""
        low = betaincinv(self.hits, self.n - self.hits + 1, alpha / 2) if self.hits else 0.0
        high = betaincinv(self.hits + 1, self.n - self.hits, 1 - alpha / 2) if self.hits < self.n else 1.0
        return float(low), float(high)

    @property
    def failed(self) -> bool:
        """Whether the rate is out of its bounds by more than chance explains: once in 1,000 rows at a bound."""
        low, high = self.interval(0.002)
        return self.required is not None and (low > self.required[1] or high < self.required[0])


# Studies


def points(
    rng: Rng, A: int, K: int, N: int, sds: Sequence[float] = USUAL, noise: Callable[..., np.ndarray] | None = None
) -> np.ndarray:
    """Scores (A, K, N) in points. noise(rng, shape): what images and runs x images vary by, normal by default."""
    draw = noise or (lambda rng, shape: rng.normal(size=shape))
    seeds, images = sds[0] * rng.normal(size=(A, K, 1)), sds[1] * draw(rng, (A, 1, N))
    return 70 + rng.normal(0, 5, N) + seeds + images + sds[2] * draw(rng, (A, K, N))


def runs_of(
    scores: np.ndarray | Mapping[str, np.ndarray],
    groups: Sequence[str] = (),
    held_NF: np.ndarray | None = None,
    prefix: str = "",
    **cells: str,
) -> list[Run]:
    """The runs of a study. scores: (A, K, N) or (A, K, N, F) in points, of Dice or name -> scores; held_NF: where the
    reference masks hold a class; prefix: of the images' names; cells: more of each run's row."""
    named = scores if isinstance(scores, Mapping) else {"dice": scores}
    named = {name: (s if s.ndim == 4 else s[..., None]) / 100 for name, s in named.items()}
    A, K, N, F = next(iter(named.values())).shape
    held_NF = np.ones((N, F)) if held_NF is None else held_NF.astype(float)
    names = tuple(f"{prefix}i{n:05d}x" for n in range(N))
    layout = Layout(names, tuple(groups) or ("",) * N, tuple(range(1, F + 1)), held_NF)
    counts, made = np.zeros((N, F, 3)), []
    row = {"status": "done", "dataset": "d", "dataset_sha": "d", "split_sha": "s", **cells}
    for a, k in np.ndindex(A, K):
        arm = ARMS[a]
        run_id = "-".join([*cells.values(), arm, str(k)])
        own = {"run_id": run_id, "config_activation_name": arm, "config_seed": f"{k}", "seed": f"{k}"}
        own |= {"init_sha": f"init{k}", "order_sha": f"order{k}"}
        images = Images(layout, {name: values[a, k] for name, values in named.items()}, counts)
        made.append(Run(run_id, "done", Path(run_id), cells={**row, **own}, images=images))
    return made


def runs_of_splits(scores_J: Sequence[np.ndarray], n_train: int, folds: int) -> list[Run]:
    """The runs of several splits from the scores (A, K, N) of each. folds: of each cross-validation, 0 for none."""
    runs = []
    for j, scores in enumerate(scores_J):
        sizes = {"n_train": str(n_train), "n_test": str(scores.shape[2])}
        sizes |= {f"{column}_groups": size for column, size in sizes.items()}
        split, fold = divmod(j, folds or 1)
        which = {"fold": str(fold), "config_split_fold": str(fold)} if folds else {}
        cells = {"config_split_seed": str(split), "split_sha": f"s{j}", **which, **sizes}
        runs += runs_of(scores, (), None, f"part{j}", **cells)
    return runs


def compared(runs: Iterable[Run], metric: str | Sequence[str] = "dice") -> Result:
    return compare([], metric, loaded=Loaded(tuple(runs), ()))


def comparisons(result: Result) -> list[Comparison]:
    return [c for part in (result, *result.others) for block in part.blocks for c in block.comparisons]


def significant(result: Result) -> bool:
    """Whether any candidate is called better or worse."""
    return any(c.verdict.significant for c in comparisons(result))


def alarms(runs: Iterable[Run]) -> Events:
    """False alarms of one candidate, which Holm's correction leaves as it is, of any, and of any about new training
    sets (in cross-validation a verdict of its own)."""
    found = comparisons(compared(runs))
    first = next(c for c in found if c.candidate == ARMS[1])
    new = any((c.new_training_sets or c).verdict.significant for c in found)
    return {ONE: first.deciding.p < ALPHA, ANY: any(c.verdict.significant for c in found), NEW: new}


# The settings: functions of one study, and of the table that they make


def plain_study(rng: Rng, A: int = 6, **design: Any) -> Events:
    return alarms(runs_of(points(rng, A, **design)))


def normal() -> list[Setting]:
    """No arm is better; normal deviations."""
    required = {ONE: (0, 0.065), ANY: (0, 0.065)}
    sizes = [(K, N) for K in (3, 4, 5, 10) for N in (20, 30, 50, 100, 200)]
    return [setting("{K} seeds, {N} images", required, plain_study, K=K, N=N) for K, N in sizes]


def variances() -> list[Setting]:
    """No arm is better; other standard deviations of seeds, images and the rest."""
    shares = [(0, 0, 1), (0.3, 0.1, 1), (1, 1, 1), (0, 1, 1)]
    name, required = "{sds}: {K} seeds, {N} images", {ONE: (0, 0.065)}
    designs = [{"sds": sds, "K": K, "N": N} for sds in shares for K in (3, 4, 5, 10) for N in (50, 200)]
    return [setting(name, required, plain_study, A=2, **design) for design in designs]


def power_study(rng: Rng, K: int, N: int) -> Events:
    scores = points(rng, 2, K, N)
    scores[1] += 2
    (found,) = comparisons(compared(runs_of(scores)))
    return {"found": found.verdict.word == Verdict.BETTER}


def power() -> list[Setting]:
    """The candidate is better by 2 points: how often that is found."""
    least = {3: 0.0, 4: 0.0, 5: 0.5, 10: 0.8}
    return [setting("{K} seeds, {N} images", {"found": (low, 1)}, power_study, K=K, N=100) for K, low in least.items()]


def student(rng: Rng, shape: tuple[int, ...], df: float) -> np.ndarray:
    """Heavy tails with standard deviation 1."""
    return rng.standard_t(df, shape) * math.sqrt((df - 2) / df)


def heavy_study(rng: Rng, N: int, df: float) -> Events:
    return plain_study(rng, K=5, N=N, noise=partial(student, df=df))


def ties(rng: Rng, A: int, K: int, N: int) -> np.ndarray:
    """Most images are nearly perfect, many exactly; some fail."""
    scores = np.minimum(99 + points(rng, A, K, N, (0.3, 0.5, 1)) - 70, 100)
    return np.where(rng.random(scores.shape) < 0.02, rng.uniform(0, 50, scores.shape), scores)


def ties_study(rng: Rng, N: int) -> Events:
    return alarms(runs_of(ties(rng, 6, 5, N)))


def empty_masks(rng: Rng, A: int, K: int, N: int) -> list[Run]:
    held_NF = rng.random((N, 1)) < 0.3
    held_NF[:3] = True  # some images must have a score
    return runs_of(np.where(held_NF[:, 0], points(rng, A, K, N), np.nan), held_NF=held_NF)


def empty_study(rng: Rng, N: int) -> Events:
    return alarms(empty_masks(rng, 6, 5, N))


def unequal_study(rng: Rng, N: int) -> Events:
    runs = runs_of(points(rng, 6, 5, N))
    return alarms(r for r in runs if r.row["seed"] != "4" or r.row["config_activation_name"] == ARMS[0])


def patients(rng: Rng, A: int, K: int, grouped: bool = True) -> list[Run]:
    """20 patients of 1 to 30 slices; what an arm gains depends on the patient."""
    patient_N = np.repeat(np.arange(20), rng.integers(1, 31, 20))
    scores = points(rng, A, K, len(patient_N), (USUAL[0], 0, USUAL[2]))
    scores += rng.normal(0, USUAL[1], (A, 1, 20))[..., patient_N]
    return runs_of(scores, [f"patient{p}" for p in patient_N] if grouped else ())


def patients_study(rng: Rng, grouped: bool) -> Events:
    return alarms(patients(rng, 6, 5, grouped))


def class_scores(rng: Rng, A: int, N: int, K: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Scores (A, K, N, 3) and where the classes are: the third in 20 % of the images, the others in 90 %."""
    held_NF = rng.random((N, 3)) < (0.9, 0.9, 0.2)
    held_NF[:2] = True
    return np.where(held_NF, np.stack([points(rng, A, K, N) for _ in range(3)], axis=-1), np.nan), held_NF


def classes_study(rng: Rng, N: int) -> Events:
    scores, held_NF = class_scores(rng, 6, N)
    return alarms(runs_of(scores, held_NF=held_NF))


def other_data() -> list[Setting]:
    """No arm is better; 5 seeds; scores that are far from normal, incomplete or grouped."""
    required = {ONE: (0, 0.07), ANY: (0, 0.07)}
    heavy = "symmetric heavy tails (t, {df} degrees of freedom), {N} images"
    settings = [setting(heavy, required, heavy_study, N=N, df=df) for df in (2.5, 3) for N in (20, 30, 100)]
    titles: list[tuple[str, Callable[..., Events], Sequence[int]]] = [
        ("ties near 1, 2 % failures, {N} images", ties_study, (20, 30, 100)),
        ("70 % empty masks, {N} images", empty_study, (30, 100)),
        ("reference with 5 seeds, candidates with 4, {N} images", unequal_study, (30, 100)),
        ("3 classes, a rare one in 20 % of {N} images", classes_study, (30, 100)),
    ]
    settings += [setting(title, required, study, N=N) for title, study, sizes in titles for N in sizes]
    grouped = setting("20 patients of 1 to 30 slices, grouped", required, patients_study, grouped=True)
    without = setting("20 patients of 1 to 30 slices, not grouped", {ONE: None}, patients_study, grouped=False)
    return [*settings, grouped, without]


def folds_study(rng: Rng, K: int, gain: float) -> Events:
    """gain: standard deviation of what an arm gains on the training images of a fold."""
    folds = [points(rng, 6, K, 20) + rng.normal(0, gain, (6, 1, 1)) for _ in range(5)]
    return alarms(runs_of_splits(folds, 80, folds=5))


def fixed_split_study(rng: Rng, gain: float) -> Events:
    scores = points(rng, 2, 5, 100)
    scores[1] += rng.normal(0, gain)
    return alarms(runs_of(scores))


def training_sets() -> list[Setting]:
    """No arm is better over training sets, but it may gain on one: the standard deviation of these gains is given. A
    fold has 20 test images; a fixed split 100, 5 seeds and one candidate. "New training sets": any verdict about these.
    """
    limit, uncovered = (0, 0.07), {ONE: None}
    required = {ONE: limit, ANY: limit, NEW: limit}
    fixed, gains = "one fixed split, gains of {gain} points", "5 folds, {K} seeds, gains of {gain} points"
    return [
        *(setting("5 folds, {K} seeds in each", required, folds_study, K=K, gain=0) for K in (3, 5)),
        setting("5 folds, 1 seed in each", required, folds_study, K=1, gain=0),
        *(setting(fixed, uncovered, fixed_split_study, gain=gain) for gain in (0.5, 1, 2)),
        setting(gains, {ONE: None, ANY: None, NEW: limit}, folds_study, K=5, gain=2),
    ]


def learned_scores(rng: Rng, splits: Sequence[tuple[np.ndarray, np.ndarray]], K: int) -> list[np.ndarray]:
    """Dice (2, K, n_test) in points of two equally good learners for each split (train, test) of 40 new patients.

    A patient is an image of 40 pixels with 8 features, from which the foreground follows by a rule of its own. Each arm
    sees 4 of the features and learns a ridge regression from the training patients, weighted at random by the seed.
    """
    M, P, d = 40, 40, 4
    x_AMPd, rule_AMd = rng.normal(size=(2, M, P, d)), rng.normal(0.5, 1, (2, M, d))
    foreground_MP = np.einsum("ampd,amd->mp", x_AMPd, rule_AMd) + rng.normal(size=(M, P)) > 0
    gram_AMdd = np.einsum("ampd,ampe->amde", x_AMPd, x_AMPd)
    moment_AMd = np.einsum("ampd,mp->amd", x_AMPd, np.where(foreground_MP, 1.0, -1.0))
    scores = []
    for train, test in splits:
        weight_AKM = rng.exponential(size=(2, K, len(train)))
        gram_AKdd = np.einsum("akm,amde->akde", weight_AKM, gram_AMdd[:, train]) + 5 * np.eye(d)
        moment_AKd = np.einsum("akm,amd->akd", weight_AKM, moment_AMd[:, train])
        fit_AKd = np.linalg.solve(gram_AKdd, moment_AKd[..., None])[..., 0]
        predicted, truth = np.einsum("akd,ampd->akmp", fit_AKd, x_AMPd[:, test]) > 0, foreground_MP[test]
        size = predicted.sum(axis=-1) + truth.sum(axis=-1)
        scores.append(200 * (predicted & truth).sum(axis=-1) / np.maximum(size, 1))
    return scores


def plain_t(scores_J: Sequence[np.ndarray]) -> bool:
    """Student's t over splits or folds, as if they were independent."""
    return one_sample([(scores[1] - scores[0]).mean() for scores in scores_J]).p < ALPHA


def learned_study(rng: Rng, J: int, K: int, folds: int) -> Events:
    """60 % of the patients train, 20 % validate (not used here), 20 % test."""
    orders = [rng.permutation(40) for _ in range(J // (folds or 1))]
    orders = [np.roll(order, 8 * fold) for order in orders for fold in range(folds or 1)]
    scores = learned_scores(rng, [(order[:24], order[32:]) for order in orders], K)
    return {**alarms(runs_of_splits(scores, 24, folds)), PLAIN: plain_t(scores)}


def learners() -> list[Setting]:
    """Two equally good learners (ridge regressions on pixels), trained and tested on overlapping splits of the same 40
    patients. "Plain t": as if splits were independent. With J splits the standard
    error of the corrected test is the square root of 1 / J + 1 / 3, times the standard deviation between splits: .73
    for 5, .62 for 20, and no number of splits makes it smaller than .58.
    """
    required = {NEW: (0, 0.06), PLAIN: None}
    sizes = [(5, 1, 0), (10, 1, 0), (20, 1, 0), (5, 3, 0), (5, 1, 5), (5, 3, 5), (15, 1, 5)]
    names = {0: "{J} random splits, seeds of each: {K}", 5: "{J} folds ({folds} of each split), seeds of each: {K}"}
    return [setting(names[folds], required, learned_study, J=J, K=K, folds=folds) for J, K, folds in sizes]


def skewed(
    rng: Rng, K: int, N: int, share: float, loss: float, of_seeds: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The candidate loses on a share of the images (or seeds) and gains a little on the others, 0 on average. Returns
    the scores, and which images (or seeds) lose."""
    scores = points(rng, 2, K, N, USUAL if of_seeds else STABLE)
    fails = rng.random((K, 1) if of_seeds else N) < share
    scores[1] += np.where(fails, -loss, loss * share / (1 - share))
    return scores, fails


def skewed_study(rng: Rng, N: int, share: float, loss: float, K: int = 5, of_seeds: bool = False) -> Events:
    scores, fails = skewed(rng, K, N, share, loss, of_seeds)
    alarm = significant(compared(runs_of(scores)))
    return {ALL: alarm, SEEN: alarm if fails.any() else None}


def failures() -> list[Setting]:
    """Equal on average: the candidate fails rarely and gains a little otherwise. No test sees an absent failure."""
    required = {ALL: None, SEEN: (0, 0.07)}
    of_images = "{share:.0%} of images lose {loss} points, {N} images"
    sizes = [(20, 0.05, 20), (30, 0.05, 20), (100, 0.05, 20), (100, 0.02, 40)]
    images = [setting(of_images, required, skewed_study, N=N, share=share, loss=loss) for N, share, loss in sizes]
    of_seeds, options = "{share:.0%} of seeds lose {loss} points, {K} seeds", {"N": 100, "share": 0.1, "loss": 10}
    return [*images, *(setting(of_seeds, required, skewed_study, K=K, of_seeds=True, **options) for K in (5, 10))]


def equivalent(found: Comparison) -> bool:
    """Whether the candidate is called equivalent, or its difference negligible."""
    return found.verdict == Verdict.EQUIVALENT or found.verdict.negligible


def margin_study(rng: Rng, K: int, N: int) -> Events:
    scores = points(rng, 6, K, N, STABLE)
    scores[1:] += 1
    runs = runs_of(scores)
    one, all_five = (comparisons(compared(these)) for these in (runs[: 2 * K], runs))
    return {ONE: any(map(equivalent, one)), ANY: any(map(equivalent, all_five))}


def rare_failure_study(rng: Rng, N: int) -> Events:
    scores, fails = points(rng, 2, 5, N, STABLE), rng.random(N) < 0.02
    scores[1] -= 0.2 + 40 * fails
    (found,) = comparisons(compared(runs_of(scores)))
    said = equivalent(found)
    return {ALL: said, BARE: said and not found.condition, SEEN: said if fails.any() else None}


def equivalence() -> list[Setting]:
    """The true difference is exactly the margin of 1 point: how often it is called equivalent or negligible."""
    required, sizes = {ONE: (0, 0.07), ANY: (0, 0.07)}, [(3, 100), (5, 20), (5, 100), (10, 100)]
    return [setting("{K} seeds, {N} images", required, margin_study, K=K, N=N) for K, N in sizes]


def rare_failures() -> list[Setting]:
    """The true difference is the margin of 1 point, because 2 % of images lose 40 points and the others 0.2: how often
    it is called equivalent or negligible. "Without a condition": without "unless more than 3/N of the images behave
    otherwise".
    """
    small: dict[str, Bounds] = {ALL: None, BARE: (0, 0.07), SEEN: (0, 0.07)}
    large: dict[str, Bounds] = dict.fromkeys(small)
    sizes = [(20, small), (30, small), (100, small), (140, large), (200, large)]
    return [setting("{N} images", required, rare_failure_study, N=N) for N, required in sizes]


def metrics_study(rng: Rng, names: Sequence[str]) -> Events:
    """Scores with a correlation of .5."""
    shared = points(rng, 2, 5, 100)
    runs = runs_of({name: (points(rng, 2, 5, 100) + shared) / math.sqrt(2) for name in names})
    return {TOGETHER: significant(compared(runs, names)), APART: any(significant(compared(runs, n)) for n in names)}


def datasets_study(rng: Rng) -> Events:
    names = ("d1", "d2", "d3", "d4")
    result = compared(r for name in names for r in runs_of(points(rng, 6, 5, 100), dataset=name, dataset_sha=name))
    over = any(o.p_holm < ALPHA for o in result.over_datasets)
    return {TOGETHER: significant(result) or over, APART: any(c.p_block < ALPHA for c in comparisons(result))}


def looks_study(rng: Rng, most: int) -> Events:
    scores = points(rng, 2, most, 100)
    return {APART: any(significant(compared(runs_of(scores[:, :K]))) for K in range(5, most + 1))}


def families() -> list[Setting]:
    """No arm is better; 5 seeds, 100 images: any verdict where all answers come from one call, and where each comes
    from a call of its own (or the p-value of its own data set is read)."""
    scores, required = ("dice", "iou", "nsd", "hd95", "nll", "brier"), {TOGETHER: (0, 0.07), APART: None}
    looks = "1 score, 1 candidate, compared after each seed from 5 to {most}"
    return [
        setting("4 data sets, 5 candidates", required, datasets_study),
        setting("3 scores, 1 candidate", required, metrics_study, names=scores[:3]),
        setting("6 scores, 1 candidate", required, metrics_study, names=scores),
        *(setting(looks, {APART: None}, looks_study, most=most) for most in (10, 20)),
    ]


def class_coverage_study(rng: Rng, N: int) -> Events:
    """The candidate gains 0, 2 and 7 points on the three classes, 3 on average."""
    scores, held_NF = class_scores(rng, 2, N)
    scores[1] += (0, 2, 7)
    (found,) = comparisons(compared(runs_of(scores, held_NF=held_NF)))
    return {COVERED: found.overall.low <= 0.03 <= found.overall.high}


def mean_coverage_study(rng: Rng, K: int, N: int) -> Events:
    """An arm's own mean, 70 points."""
    arm = next(a for a in compared(runs_of(points(rng, 2, K, N))).blocks[0].ranking if a.arm == ARMS[1])
    return {COVERED: arm.interval.low <= 0.7 <= arm.interval.high}


def seeds_study(rng: Rng, K: int) -> Events:
    """Seeds to find 1 point on 100 images, against the number from the true variances (of differences, in points)."""
    sds, N = (1, 0.6, 2), 100
    (found,) = comparisons(compared(runs_of(points(rng, 2, K, N, sds))))
    seed, image, residual = (2 * sd**2 for sd in sds)
    needed = seeds_needed(TwoWay(found.overall, residual + N * seed, residual + K * image, residual, K, N), 1.0)
    low, high = found.seeds_needed
    return {COVERED: low <= (needed or math.inf) <= high}


def coverage() -> list[Setting]:
    """How often an interval holds the truth: 95 % intervals, and the range of seeds to find, which is an 80 % one."""
    classes, arms = (
        "difference of class means, a rare class in 20 % of {N} images",
        "an arm's mean, {K} seeds, {N} images",
    )
    sizes = [(K, N) for K in (3, 5, 10) for N in (20, 100)]
    return [
        *(setting(classes, {COVERED: (0.93, 0.96)}, class_coverage_study, N=N) for N in (30, 100)),
        *(setting(arms, {COVERED: (0.93, 1)}, mean_coverage_study, K=K, N=N) for K, N in sizes),
        *(setting("seeds to find, from {K} seeds", {COVERED: (0.75, 1)}, seeds_study, K=K) for K in (3, 5, 10)),
    ]


TABLES: Mapping[str, Callable[[], list[Setting]]] = {
    "normal scores": normal,
    "other variances": variances,
    "power": power,
    "other scores": other_data,
    "training sets": training_sets,
    "real learners": learners,
    "rare failures": failures,
    "equivalence": equivalence,
    "equivalence and rare failures": rare_failures,
    "several answers": families,
    "coverage": coverage,
}


# Counting and printing


def count(made: Setting, entropy: Sequence[int], n: int) -> tuple[dict[str, float], dict[str, float]]:
    """How often each question was answered with yes (or the sum of its numbers), and at all, in n studies."""
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    yes, answered = defaultdict[str, float](float), defaultdict[str, float](float)
    for _ in range(n):
        for what, happened in made.study(rng, **made.options).items():
            yes[what] += happened or 0
            answered[what] += happened is not None
    return yes, answered


def rows_of(tables: Mapping[str, Sequence[Setting]], repetitions: int, seed: int = 0, processes: int = 1) -> list[Row]:
    """The rows of these tables. processes: 1 counts in this process."""
    settings = [(table, made) for table, of_table in tables.items() for made in of_table]
    chunks = [min(CHUNK, repetitions - at) for at in range(0, repetitions, CHUNK)]
    jobs = [
        (made, (seed, zlib.crc32(f"{table}: {made.name}".encode()), chunk), size)
        for table, made in settings
        for chunk, size in enumerate(chunks)
    ]
    with ProcessPoolExecutor(processes) as pool:
        columns = zip(*jobs, strict=True)
        counted = map(count, *columns) if processes == 1 else pool.map(count, *columns, chunksize=4)
        found = iter(tqdm(counted, total=len(jobs), disable=not sys.stderr.isatty()))
        rows = []
        for table, made in settings:
            counts = [next(found) for _ in chunks]
            for what, required in made.required.items():
                yes, answered = (sum(each[which].get(what, 0) for each in counts) for which in (0, 1))
                rows.append(Row(table, made.name, what, yes, int(answered), required))
        return rows


def shown_rate(row: Row) -> str:
    low, high = row.interval()
    return f"{row.rate:.3f} ({low:.3f} to {high:.3f})" if row.n else "-"


def shown_bounds(required: Bounds) -> str:
    if required is None:
        return "not covered"
    low, high = required
    if required == (0, 1):
        return "any"
    return f"at most {high:g}" if low == 0 else f"at least {low:g}" if high == 1 else f"{low:g} to {high:g}"


def markdown(table: str, rows: Sequence[Row]) -> str:
    """A table: a line per setting, a column per question, with the bounds in the heading if all lines have the same."""
    bounds = {row.what: {shown_bounds(r.required) for r in rows if r.what == row.what} for row in rows}
    lines = []
    for name in dict.fromkeys(row.setting for row in rows):
        line = {"setting": name}
        for what, of_what in bounds.items():
            here = [row for row in rows if (row.setting, row.what) == (name, what)]
            own = f", {shown_bounds(here[0].required)}" if here and len(of_what) > 1 else ""
            heading = what if len(of_what) > 1 else f"{what}, {next(iter(of_what))}"
            line[heading] = "".join(map(shown_rate, here)) + own
        lines.append(line)
    return titled(table, TABLES[table].__doc__, lines)


def titled(table: str, says: str | None, lines: Sequence[Mapping[str, str]]) -> str:
    title = textwrap.fill(f"**{table.capitalize()}.** {' '.join((says or '').split())}", 140)
    return f"{title}\n\n{markdown_table(lines)}"


def main(
    description: str | None = __doc__,
    tables: Mapping[str, Callable[[], list[Setting]]] = TABLES,
    shown: Callable[[str, Sequence[Row]], str] = markdown,
    marks: tuple[str, str] = (BEGIN, END),
    n: int = REPETITIONS,
) -> int:
    """The command of a script. shown(table, rows): a table in Markdown; marks: around the tables in the page."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=list(tables), default=list(tables), metavar="TABLE")
    parser.add_argument("--repetitions", type=int, default=n, help="studies of each setting")
    parser.add_argument("--quick", action="store_true", help=f"{n // 10} studies of each setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"put all tables into {PAGE.name}")
    asked = parser.parse_args()
    if asked.write and asked.only != list(tables):
        parser.error("--write puts all tables into the page: leave --only out")
    repetitions = n // 10 if asked.quick else asked.repetitions
    rows = rows_of({table: tables[table]() for table in asked.only}, repetitions, asked.seed, asked.processes)
    in_words = [shown(table, [row for row in rows if row.table == table]) for table in asked.only]
    text = "\n\n".join([f"{repetitions} studies of each setting, seed {asked.seed}.", *in_words])
    if asked.write:
        (begin, end), page = marks, PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(begin)
        PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    else:
        print(text)
    failed = [row for row in rows if row.failed]
    for row in failed:
        said = f"{row.table}: {row.setting}, {row.what}: {shown_rate(row)}, required {shown_bounds(row.required)}"
        print(f"out of bounds: {said}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
