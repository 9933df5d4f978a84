"""The result of `segexp compare` as plain data: commands print it, the report draws it, nothing here computes.

All values are in the metric's own unit (Dice and IoU in [0, 1]; points, which are hundredths, only where printed).
Differences are candidate minus reference, also where lower is better. NaN: undefined, or unknown from these runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from segexp.records.scores import POINTS, SCORES, Score

if TYPE_CHECKING:
    import numpy as np

    from segexp.records.runs import Run


ALPHA = 0.05

FEWEST_SEEDS = 3
"""With fewer seeds there is no test."""

FEW_SEEDS = 5
"""With fewer seeds a result is exploratory."""

FEWEST_UNITS = 5
"""With fewer images (groups) a result for new ones is exploratory: where images make most of the variance, the test
raises 22 % false alarms with 2, 11 % with 3 and 7 % with 4 (20,000 simulated studies of 5 seeds each)."""


NO_CLASS = -1


Each = Literal["image", "volume"]
"""What a row of images.csv is: an image, or with ``metrics.unit=case`` a volume."""


@dataclass(frozen=True)
class Metric:
    """The score that is compared. per_image: whether images.csv holds it; points: whether it is printed times 100.

    rope: half-width of the differences that are negligible, NaN where unknown; unit: of values that are not printed in
    points, "" for none; class_id: the only foreground class that is scored, NO_CLASS for all of them. own: the facts of
    a score that a plugin computed, as the runs recorded them.
    """

    name: str
    title: str
    higher_is_better: bool
    per_image: bool
    points: bool
    rope: float
    unit: str = ""
    class_id: int = NO_CLASS
    own: Score | None = None

    @property
    def score(self) -> Score:
        """Its row of the score table."""
        return self.own or SCORES[self.name]

    @classmethod
    def of(cls, score: Score, own: Score | None = None) -> "Metric":
        """The metric of a row of the score table."""
        points = score.unit == POINTS
        return cls(score.name, score.title, score.higher_is_better, score.per_image, points, score.negligible, own=own)


METRICS: dict[str, Metric] = {score.name: Metric.of(score) for score in SCORES.values() if score.compared}
"""The scores that can be compared. Only Dice and IoU have a customary negligible difference: one point."""


class Verdict(StrEnum):
    """The verdict on a candidate, as it is printed and stored."""

    BETTER = "better"
    BETTER_NEGLIGIBLE = "better, negligible"
    WORSE = "worse"
    WORSE_NEGLIGIBLE = "worse, negligible"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    NO_TEST = "no test"

    @property
    def negligible(self) -> bool:
        """Whether the difference is significant and negligible."""
        return self in _WORD

    @property
    def word(self) -> "Verdict":
        """The verdict without ", negligible"."""
        return _WORD.get(self, self)

    @property
    def significant(self) -> bool:
        """Whether the candidate is better or worse, negligibly or not."""
        return self.word in (Verdict.BETTER, Verdict.WORSE)


_WORD = {Verdict.BETTER_NEGLIGIBLE: Verdict.BETTER, Verdict.WORSE_NEGLIGIBLE: Verdict.WORSE}


class Method(StrEnum):
    """The procedure behind a verdict, as it is printed and stored. scope: to what a verdict of it generalises."""

    TWO_WAY = "two-way t over seeds and images", "new seeds and new test images, this training set"
    OUT_OF_FOLD = (f"{TWO_WAY[0]}, out-of-fold predictions", "new seeds and new test images, these training sets")
    OVER_SEEDS = "t over seeds", "new seeds, this training and test set"
    OVER_SEEDS_OF_FOLDS = "t over seeds, means over folds", "new seeds, these folds"
    UNPAIRED = "Welch over seeds, unpaired", "new seeds, this training and test set"
    OVER_FOLDS = "corrected resampled t over folds (Nadeau-Bengio)", "new training sets and new test images"
    OVER_SPLITS = "corrected resampled t over splits (Nadeau-Bengio)", "new training sets and new test images"
    NONE = "none", ""

    scope: str

    def __new__(cls, name: str, scope: str) -> "Method":
        method = str.__new__(cls, name)
        method._value_, method.scope = name, scope
        return method

    @property
    def resampled(self) -> bool:
        """Whether folds or splits are tested instead of seeds x images."""
        return self in (Method.OVER_FOLDS, Method.OVER_SPLITS)

    @property
    def paired(self) -> bool:
        return self not in (Method.UNPAIRED, Method.NONE)


@dataclass(frozen=True)
class ArmScore:
    """An arm's row of the ranking. levels: key -> value of the keys that make the arm, options included.

    n_seeds: seeds with a score; n_folds: folds of a cross-validation, 0 for none; n_splits: splits that are averaged, 0
    for none; n_failed, n_diverged, n_unfinished: runs without a score. mean: over seeds; over splits where several are
    pooled. In cross-validation: over the seeds that have all folds of the block, each
    scored on its out-of-fold predictions; without such seeds the mean of the folds, NaN where one is missing. seed_sd:
    sd over the same seeds. interval: of the mean, for new seeds and new test images (new seeds where the score has no
    value per image; new training sets where splits are averaged); NaN for fewer than 3 seeds. mean_failures_zero: the
    mean if failed and diverged runs score 0; NaN where the metric is not in [0, 1] or lower is better. iqm:
    interquartile mean over seeds x images. seeds: seed (or "fold f, seed s") -> score.
    directories: run directories behind the scores, in the order of seeds; empty for collected tables.
    """

    arm: str
    levels: Mapping[str, str]
    n_seeds: int
    n_folds: int
    n_images: int
    n_groups: int
    n_failed: int
    n_diverged: int
    n_unfinished: int
    mean: float
    interval: "Interval"
    seed_sd: float
    iqm: float
    mean_failures_zero: float
    seeds: Mapping[str, float]
    directories: tuple[str, ...] = ()
    n_splits: int = 0


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided intervals: low, high at 95 %, low90, high90 at 90 %.

    share, share_within: parts of alpha that a look of a sequential decision spends on a difference and on equivalence;
    1 elsewhere. p and the limits allow for them (`segexp.compare.sequential.at_look`).
    """

    mean: float
    se: float
    df: float
    p: float
    low: float
    high: float
    low90: float
    high90: float
    share: float = 1.0
    share_within: float = 1.0


@dataclass(frozen=True)
class Influence:
    """The result of a comparison without its most influential image (group) or seed. what: image, group or seed."""

    what: str
    name: str
    interval: Interval
    p_holm: float = math.nan
    verdict: Verdict = Verdict.NO_TEST


@dataclass(frozen=True)
class Comparison:
    """A candidate against its reference under the same conditions.

    scope: what the inference is for, as in `Method`; paired: whether seeds and images are pairs. overall: interval for
    new seeds and new test images (or new training sets); test_set: interval for new seeds on these images; the verdict
    rests on `deciding` and on p_holm, adjusted over everything that the headline may report: all blocks, data sets
    and metrics; p_block: over the comparisons of the data set. condition: the verdict holds unless this is so, "" for
    none. n_seeds: paired seeds (in every fold), or without pairs the seeds of the arm with fewer; n_folds: 0 without
    cross-validation; n_splits: splits that are averaged over their seeds, 0 for none.

    For one comparison before Holm's adjustment, with 80 % power: minimum_detectable: the difference found by as many
    seeds and images; seeds_needed: the range of seeds (per arm, where unpaired) that find ``target``, the rope, because
    variances are estimates; infinite where no number does, NaN where unknown; image_floor: the smallest difference
    found by infinitely many seeds on as many images, NaN where images add no variance; split_floor: by infinitely many
    splits of as many images; split_floor_se: their standard error. wins: seeds won by the candidate (ties half);
    wins_low, wins_high: exact 95 % interval of their share, NaN for folds and splits, because these share images.
    effect_size: mean over sd of the seeds' differences.
    seed_correlation: between the seeds' means of both arms. variance: components split, seed, image, residual.
    skewness: of the images' mean differences; influence: the result without the most influential image and seed.
    dropped: what was left out. new_training_sets: in cross-validation the test over folds, whose verdict is about new
    training sets; a family of its own for Holm's adjustment.

    pivot: shares of mean + se T(df), the pivot distribution of the deciding t, that are worse by more than the rope,
    within it and better by more; not a posterior of a model. NaN without a test or a rope.

    units, candidate_N, reference_N: names and mean values over seeds of the images (or groups) that both have. each:
    what is called an image here.
    """

    candidate: str
    reference: str
    method: Method
    scope: str
    paired: bool
    n_seeds: int
    n_folds: int
    n_images: int
    n_groups: int
    overall: Interval
    test_set: Interval
    p_holm: float
    verdict: Verdict
    minimum_detectable: float
    target: float
    seeds_needed: tuple[float, float]
    image_floor: float
    wins: float
    wins_low: float
    wins_high: float
    effect_size: float
    seed_correlation: float
    variance: Mapping[str, float]
    dropped: str
    warnings: tuple[str, ...]
    units: tuple[str, ...] = ()
    candidate_N: "np.ndarray | None" = None
    reference_N: "np.ndarray | None" = None
    p_block: float = math.nan
    condition: str = ""
    n_splits: int = 0
    split_floor: float = math.nan
    split_floor_se: float = math.nan
    skewness: float = math.nan
    influence: tuple[Influence, ...] = ()
    new_training_sets: "Comparison | None" = None
    each: Each = "image"
    pivot: Mapping[str, float] = field(default_factory=dict)

    @property
    def deciding(self) -> Interval:
        """The interval that the verdict rests on: ``overall``, or ``test_set`` where there is no ``overall``."""
        return self.test_set if math.isnan(self.overall.mean) else self.overall

    @property
    def unit(self) -> str:
        """What each value belongs to: an image, a volume, or a group of them (patient, video)."""
        return self.each if self.n_groups in (0, self.n_images) else "group"


@dataclass(frozen=True)
class Interaction:
    """Whether the gain of a level over its reference depends on the other factor.

    The contrast (a, b) - (a0, b) - (a, b0) + (a0, b0) for a = level of ``factor``, a0 = reference, b = other_level of
    ``other``, b0 = other_reference, by the two-way test on n_seeds seeds; Holm over all interactions of the block.
    """

    factor: str
    other: str
    level: str
    other_level: str
    reference: str
    other_reference: str
    n_seeds: int
    interval: Interval
    p_holm: float


@dataclass(frozen=True)
class Factorial:
    """A factorial table of two keys. means[i][j]: score of rows[i] with columns[j]; seeds[i][j]: seeds behind it."""

    row_factor: str
    column_factor: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    means: tuple[tuple[float, ...], ...]
    seeds: tuple[tuple[int, ...], ...]
    interactions: tuple[Interaction, ...]


@dataclass(frozen=True)
class Block:
    """Runs that may be compared: one data set, one split, equal conditions (key -> value of what else varies).

    ranking is ordered from the best mean to the worst; comparisons by candidate in the same order. each: what is
    scored.
    """

    dataset: str
    dataset_sha: str
    conditions: Mapping[str, str]
    ranking: tuple[ArmScore, ...]
    comparisons: tuple[Comparison, ...]
    factorials: tuple[Factorial, ...]
    warnings: tuple[str, ...]
    each: Each = "image"

    @property
    def n_pairs(self) -> int:
        """How many comparisons there are if every two of its arms, more than two, are compared; else 0."""
        n = len(self.comparisons)
        return n if n == math.comb(len(self.ranking), 2) > 1 else 0

    @property
    def title(self) -> str:
        """The data set and the conditions in one line."""
        return ", ".join([self.dataset, *(f"{key}={value}" for key, value in self.conditions.items())])

    @property
    def sequential(self) -> bool:
        """Whether looks of a sequential decision stand behind it: its intervals are repeated intervals."""
        return any(found.deciding.share < 1 for found in self.comparisons)

    @property
    def interval(self) -> str:
        """What the intervals of its comparisons are."""
        return "repeated interval" if self.sequential else "95 % interval"


@dataclass(frozen=True)
class OverDatasets:
    """A candidate against its reference across D data sets. differences: data set -> difference, one each.

    method: "Wilcoxon" or "t over data sets"; p_holm: over all such results of the call and, with fewer than six data
    sets, over the comparisons on single data sets as well, because the headline then reports both. prediction: where
    the difference on a new data set lies in 95 %.
    """

    candidate: str
    reference: str
    conditions: Mapping[str, str]
    differences: Mapping[str, float]
    method: str
    interval: Interval
    p_holm: float
    warnings: tuple[str, ...]
    prediction: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of arms over data sets, for a critical-difference diagram.

    ranks: arm -> mean rank, 1 is best; p: arm x arm, Holm-adjusted Wilcoxon.
    """

    ranks: Mapping[str, float]
    p: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Unscored:
    """A run without a score. state: a state of segexp.records.runs.STATES, or incomplete."""

    run_id: str
    dataset: str
    arm: str
    seed: str
    state: str
    reason: str


@dataclass(frozen=True)
class Result:
    """Everything `segexp compare` finds. headline: the answer in a sentence, or why there is none.

    by: keys that make an arm; reference: key -> value; blocks: in order of data set and conditions; warnings: the most
    important first; provenance: versions, code, devices, hosts, dates, counts; runs: one row of plain values per run,
    with its directory ("" or a name in collected tables) and the score under ``metric``; convergence: see
    `segexp.compare.warnings.convergence_of`. n_family: tests over which p_holm of the comparisons is adjusted, those of
    ``others`` included; others: the results for further metrics and classes of
    the same call, with their own warnings, without runs, unscored, provenance and convergence. loaded: all runs that
    were read, with their images.
    """

    metric: Metric
    split: str
    by: tuple[str, ...]
    reference: Mapping[str, str]
    empty_policy: str
    n_runs: int
    blocks: tuple[Block, ...]
    over_datasets: tuple[OverDatasets, ...]
    ranks: Ranks | None
    unscored: tuple[Unscored, ...]
    warnings: tuple[str, ...]
    headline: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[Mapping[str, Any], ...] = ()
    convergence: Mapping[str, Any] = field(default_factory=dict)
    n_family: int = 0
    others: "tuple[Result, ...]" = ()
    loaded: "Sequence[Run]" = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Curve:
    """A line, or points, of one arm. low, high: a band, empty for none; n: the number of values behind each point."""

    arm: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    n: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One axis of a figure. kind: line or points; diagonal: probabilities on both axes, with the line y = x.

    x_points, y_points: whether values are printed in points (times 100). y_from: the lowest value drawn, where the
    whole range would hide differences between arms; NaN for all. guide: a line without an arm, its title in ``arm``.
    x_names: of the places 1, 2, ... on the x axis, where they are no numbers.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    kind: str = "line"
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False
    x_points: bool = False
    y_points: bool = False
    y_from: float = math.nan
    guide: Curve | None = None
    x_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A secondary analysis: one row of plain values per arm, panels to draw, and notes for the reader.

    name: as in `--questions`; titles: column of a row -> title with its unit, where the score table has none. Values in
    points or % are shares, which are multiplied by 100 for printing.
    """

    name: str
    title: str
    rows: tuple[Mapping[str, Any], ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
