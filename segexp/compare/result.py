"""What `segexp compare` finds, as plain data: the commands print it, the report draws it, nothing here computes.

All values are in the metric's own unit (Dice and IoU in [0, 1]; points, hundredths of it, only where printed), and
differences are candidate minus reference whichever way the metric points. NaN: not defined, or not answerable here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from segexp.records.scores import POINTS, SCORES

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Metric:
    """A score. per_image: whether images.csv holds it; rope: half-width of what is negligible, NaN where unknown.

    points: whether it is printed in points (times 100); unit: what else its values are measured in, "" for nothing.
    """

    name: str
    title: str
    higher_is_better: bool
    per_image: bool
    points: bool
    rope: float
    unit: str = ""


METRICS: dict[str, Metric] = {
    score.name: Metric(
        score.name, score.title, score.higher_is_better, score.per_image, score.unit == POINTS, score.negligible
    )
    for score in SCORES.values()
    if score.compared
}
"""Scores that can be compared. Only Dice and IoU have a usual size of what is negligible: one point."""


class Verdict(StrEnum):
    """What may be said of a candidate, as it is printed and written."""

    BETTER = "better"
    BETTER_NEGLIGIBLE = "better, negligible"
    WORSE = "worse"
    WORSE_NEGLIGIBLE = "worse, negligible"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    NO_TEST = "no test"

    @property
    def negligible(self) -> bool:
        """Whether it is a significant difference that is negligible."""
        return self in _WORD

    @property
    def word(self) -> "Verdict":
        """The verdict without its being negligible."""
        return _WORD.get(self, self)

    @property
    def significant(self) -> bool:
        """Whether it is better or worse, negligible or not."""
        return self.word in (Verdict.BETTER, Verdict.WORSE)


_WORD = {Verdict.BETTER_NEGLIGIBLE: Verdict.BETTER, Verdict.WORSE_NEGLIGIBLE: Verdict.WORSE}

TWO_WAY = "two-way t over seeds and images"
OUT_OF_FOLD = "two-way t over seeds and images, out-of-fold predictions"
OVER_SEEDS = "t over seeds"
OVER_SEEDS_OF_FOLDS = "t over seeds, means over folds"
UNPAIRED = "Welch over seeds, unpaired"
OVER_FOLDS = "corrected resampled t over folds (Nadeau-Bengio), weaker"
NONE = "none"

SCOPES = {
    TWO_WAY: "new seeds and new images",
    OUT_OF_FOLD: "new seeds and new images, these training folds",
    OVER_SEEDS: "new seeds, this test set",
    OVER_SEEDS_OF_FOLDS: "new seeds, these folds",
    UNPAIRED: "new seeds, this test set",
    OVER_FOLDS: "new folds of these images",
    NONE: "",
}
"""Procedures by their names, and of what the verdict of each speaks."""


@dataclass(frozen=True)
class ArmScore:
    """An arm's row of the ranking. levels: key -> value of what makes the arm, its options among them.

    n_seeds: seeds with a score; n_folds: folds of a cross-validation, 0 for none; n_failed, n_diverged, n_unfinished:
    runs without one. mean: over seeds; in cross-validation over those that have all folds of the block, each scored on
    its out-of-fold predictions; where none has, the mean of the folds, NaN where one is missing. seed_sd: sd of those
    seeds' scores. mean_failures_zero: the mean where failed and diverged runs score 0; NaN where the metric is not of
    [0, 1] or lower is better. iqm: interquartile mean over seeds x images. seeds: seed (or "fold f, seed s") -> score.
    directories: the run directories behind the scores, in the order of seeds; empty where they were read from collected
    tables.
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
    seed_sd: float
    iqm: float
    mean_failures_zero: float
    seeds: Mapping[str, float]
    directories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided intervals: low, high at 95 %, low90, high90 at 90 %."""

    mean: float
    se: float
    df: float
    p: float
    low: float
    high: float
    low90: float
    high90: float


@dataclass(frozen=True)
class Comparison:
    """A candidate against the reference under the same conditions.

    method: which procedure, in words; scope: of what the verdict speaks. paired: whether seeds and images were.
    overall: "new seeds and new images"; test_set: "new seeds, this test set"; the verdict rests on `deciding`, the
    first of them that there is. p_holm: adjusted over all comparisons of the data set. n_seeds: paired seeds, of every
    fold, or those of the arm with fewer where they are no pairs; n_folds: 0 for none.

    minimum_detectable: the difference found with 80 % power by as many seeds and images, by one comparison before
    Holm's adjustment; seeds_needed: how many seeds (of each arm, where they are no pairs) find a difference of
    ``target``, the ROPE's, so; infinite where no number does, NaN where it is not known; image_floor: the smallest
    detectable difference with endless seeds on as many images, NaN where no variance of images is seen. wins: how many
    seeds the candidate wins (ties half); wins_low, wins_high: the exact 95 % interval of their share. effect_size: mean
    over the sd of the differences of seeds. seed_correlation: between the arms' means of seeds. variance: components
    seed, image, residual.

    units, candidate_N, reference_N: names and mean values over seeds of the images (or groups) that both have.
    """

    candidate: str
    reference: str
    method: str
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
    seeds_needed: float
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

    @property
    def deciding(self) -> Interval:
        """The interval that the verdict rests on: new seeds and new images, or this test set where there is no more."""
        return self.test_set if math.isnan(self.overall.mean) else self.overall

    @property
    def weaker(self) -> bool:
        """Whether the procedure is weaker than seeds x images: folds are tested, not seeds."""
        return self.method == OVER_FOLDS


@dataclass(frozen=True)
class Interaction:
    """Whether what a candidate gains over the reference depends on the other factor: (a, b) - (a0, b) - (a, b0) +
    (a0, b0) for a = level of ``factor``, a0 = reference, b = other_level of ``other``, b0 = other_reference, by the
    same procedure on n_seeds seeds, and Holm over all interactions of the block."""

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
    """Two factors crossed. means[i][j]: score of rows[i] with columns[j]; seeds[i][j]: seeds behind it."""

    row_factor: str
    column_factor: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    means: tuple[tuple[float, ...], ...]
    seeds: tuple[tuple[int, ...], ...]
    interactions: tuple[Interaction, ...]


@dataclass(frozen=True)
class Block:
    """What may be compared: one data set, one split, equal conditions (key -> value of what else varies in the study).

    ranking is ordered from the best mean to the worst; comparisons by candidate in the same order.
    """

    dataset: str
    dataset_sha: str
    conditions: Mapping[str, str]
    ranking: tuple[ArmScore, ...]
    comparisons: tuple[Comparison, ...]
    factorials: tuple[Factorial, ...]
    warnings: tuple[str, ...]

    @property
    def title(self) -> str:
        """The data set and the conditions, in a line."""
        return ", ".join([self.dataset, *(f"{key}={value}" for key, value in self.conditions.items())])


@dataclass(frozen=True)
class OverDatasets:
    """A candidate against the reference over D data sets, one difference each. differences: data set -> difference.

    method: "Wilcoxon" or "t over data sets"; p_holm over the candidates.
    """

    candidate: str
    reference: str
    conditions: Mapping[str, str]
    differences: Mapping[str, float]
    method: str
    interval: Interval
    p_holm: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of arms over data sets (1 is best) for a critical-difference diagram.

    p: arm x arm, Holm-adjusted Wilcoxon; ranks: arm -> mean rank."""

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

    by: keys that make an arm; reference: key -> value; warnings: of everything, in order of weight; provenance:
    versions, code, devices, hosts, dates, counts. blocks in order of data set and conditions. runs: every run, a row of
    plain values each (`RUN_COLUMNS`).
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


RUN_COLUMNS = (
    "run_id",
    "dataset",
    "arm",
    "seed",
    "fold",
    "status",
    "score",
    "dice",
    "iou",
    "epochs",
    "best_epoch",
    "seconds",
    "study",
    "directory",
    "error",
    "device_type",
    "host",
    "version_segexp",
    "git_commit",
    "started",
)
"""What `Result.runs` says of a run. directory: its path, or its name where it was read from collected tables; score:
the metric that is compared."""


@dataclass(frozen=True)
class Curve:
    """A line, or points, of one arm. low, high: a band (over seeds), empty for none; n: what is behind each point."""

    arm: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    n: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """What one axis of a figure shows. kind: line or points; diagonal: probabilities on both axes, and y = x.

    x_points, y_points: whether values are printed in points (times 100). y_from: the lowest value that is drawn, where
    the whole range would hide what arms differ in; NaN for all. guide: a line that is no arm's, its name in ``arm``.
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


@dataclass(frozen=True)
class Answer:
    """A second question on the same runs: a row of plain values per arm, panels to draw, and what must be known to read
    them. name: as `--questions` takes it; titles: column of a row -> title with its unit, where it is no metric. Values
    in points or % are shares, which are multiplied by 100 where they are printed."""

    name: str
    title: str
    rows: tuple[Mapping[str, Any], ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
