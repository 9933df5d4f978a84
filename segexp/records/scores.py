"""The score table: one row per score, read by the tables of a run, compare, report, show, completion and docs.

A new score touches two places: its computation (`segexp.evaluation.score`) and one row here.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from segexp.registry import Registry

SPLITS = ("test", "val")
"""The splits that every run is scored on. summary.csv holds the scores on test."""

POINTS, PIXELS = "points", "pixels"

Averaged = Literal["reference", "all", "empty_policy"]


@dataclass(frozen=True)
class Score:
    """A column of summary.csv. Values lie between 0 and ``highest``; NaN where the score is undefined.

    title: as tables show it, without the unit; detail: added to the title in the result table of a single run.
    unit: `POINTS` for shares that are printed times 100, `PIXELS` for distances (mm where ``dataset.spacing`` is set),
    "" for plain numbers. per_image: whether images.csv holds it as well, for each image and class. averaged: over which
    of these the mean is taken: where the reference holds the class, all, or as metrics.empty_policy says. in_result:
    whether the result table of `train`, `evaluate` and `show` lists it. compared: whether `compare --metric` accepts
    it. negligible: default of `compare --rope` in the score's own unit (not points), NaN for none. function: of a score
    of the user's own: (predicted_HW, reference_HW, valid_HW, probability_HW) -> its value for an image and a class.
    """

    name: str
    title: str
    detail: str = ""
    unit: str = ""
    highest: float = 1.0
    higher_is_better: bool = True
    per_image: bool = False
    averaged: Averaged = "reference"
    in_result: bool = True
    compared: bool = True
    negligible: float = math.nan
    kind: type = float
    function: Callable[..., float] | None = None


_LOWER, _UNBOUNDED = False, math.inf

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("dice", "Dice", "mean over images", POINTS, per_image=True, averaged="empty_policy", negligible=0.01),
        Score("iou", "IoU", "mean over images", POINTS, per_image=True, averaged="empty_policy", negligible=0.01),
        Score("dice_micro", "Dice, pixels pooled", unit=POINTS, negligible=0.01),
        Score("iou_micro", "IoU, pixels pooled", unit=POINTS, in_result=False, negligible=0.01),
        Score("dice_tuned", "Dice at the tuned threshold", unit=POINTS, negligible=0.01),
        Score("fp_rate_empty", "false alarms where absent", unit=POINTS, higher_is_better=_LOWER),
        # The number of images x classes behind Dice, which is no score.
        Score("n_gt_nonempty", "references", highest=_UNBOUNDED, in_result=False, compared=False, kind=int),
        Score("nsd", "normalised surface Dice by pixels", unit=POINTS, per_image=True),
        Score(
            "hd95", "Hausdorff distance 95 %", unit=PIXELS, highest=_UNBOUNDED, higher_is_better=_LOWER, per_image=True
        ),
        Score("nll", "NLL", highest=_UNBOUNDED, higher_is_better=_LOWER, per_image=True, averaged="all"),
        Score("brier", "Brier score", higher_is_better=_LOWER, per_image=True, averaged="all"),
        Score("ece15", "ECE (15 bins)", higher_is_better=_LOWER),
        Score("nll_t", "NLL after temperature", highest=_UNBOUNDED, higher_is_better=_LOWER, in_result=False),
        Score("brier_t", "Brier score after temperature", higher_is_better=_LOWER, in_result=False),
        Score("ece15_t", "ECE after temperature", higher_is_better=_LOWER, in_result=False),
        Score("auroc", "AUROC", unit=POINTS),
        Score("ap", "average precision", unit=POINTS),
        Score("frac_tie", "pixels on a tie", in_result=False, compared=False),
        Score("frac_clipped", "pixels with clipped probability", in_result=False, compared=False),
        Score("val_dice", "Dice on validation", unit=POINTS, in_result=False, negligible=0.01),
        # The number of images x classes whose HD95 is the diagonal of the image, because nothing was predicted.
        Score("hd95_missed", "objects missed", highest=_UNBOUNDED, in_result=False, compared=False, kind=int),
        # The numbers of groups in two parts of the split; an image without a group counts as one. They are no scores.
        Score("n_train_groups", "groups in train", highest=_UNBOUNDED, in_result=False, compared=False, kind=int),
        Score("n_test_groups", "groups in test", highest=_UNBOUNDED, in_result=False, compared=False, kind=int),
        # 0 where ap is exact. Runs without it have an ap from fixed bins, up to 0.0014 too low.
        Score("ap_error", "largest error of average precision", in_result=False, compared=False),
        # Of connected components, see segexp/evaluation/objects.py.
        Score("object_f1_10", "F1 of objects at IoU > 0.1", unit=POINTS, per_image=True, averaged="empty_policy"),
        Score("object_f1_50", "F1 of objects at IoU > 0.5", unit=POINTS, per_image=True, averaged="empty_policy"),
        Score("sq", "mean IoU of found objects", unit=POINTS, per_image=True, averaged="empty_policy", in_result=False),
        Score("pq", "panoptic quality", unit=POINTS, per_image=True, averaged="empty_policy"),
        # With metrics.unit=case the rows of images.csv are cases, and this is their number. The unit is mm or pixels.
        Score("n_test_cases", "volumes in test", highest=_UNBOUNDED, in_result=False, compared=False, kind=int),
        Score("distance_unit", "unit of distances", in_result=False, compared=False, kind=str),
        # Learned options of the output activation, empty where they are not learned. They are no scores.
        Score("learned_slope", "learned slope", highest=_UNBOUNDED, in_result=False, compared=False),
        Score("learned_tail", "learned tail", in_result=False, compared=False),
    )
}
"""In the order of their columns in summary.csv and images.csv: a new score goes last."""

OWN = "score_"
"""Begin of the columns of the scores that a plugin computes: score_mine. They are the last."""

OWN_SCORES: Registry[Score] = Registry("metrics.scores", dict.fromkeys(SCORES, "is always computed"))
"""The scores of loaded plugins, which a run computes where ``metrics.scores`` names them."""

_FACTS = ("title", "unit", "highest", "higher_is_better", "averaged", "negligible")


def facts_of(names: Iterable[str] | None) -> dict[str, dict[str, Any]]:
    """The entry ``scores`` of run.json: name of a score of the user's own -> its facts, so that readers need no plugin.
    Infinite and undefined numbers are null."""
    return {name: facts(OWN_SCORES[name]) for name in names or ()}


def facts(score: Score) -> dict[str, Any]:
    """The facts of a score that is none of `SCORES`; None for infinite and undefined numbers."""
    row = {key: getattr(score, key) for key in _FACTS}
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}


def recorded_scores(given: Any) -> dict[str, Score]:
    """Column -> score, from the entry ``scores`` of a record or its text in runs.csv. Raises ValueError for any other
    content."""
    try:
        given = json.loads(given) if isinstance(given, str) and given else given or {}
    except RecursionError:
        given = None
    if not isinstance(given, Mapping):
        raise ValueError("scores is not a mapping")
    found = {}
    for name, row in given.items():
        facts: Any = {key: row.get(key) if isinstance(row, Mapping) else None for key in _FACTS}
        texts = isinstance(facts["title"], str) and facts["unit"] in (POINTS, PIXELS, "")
        words = facts["averaged"] in get_args(Averaged) and type(facts["higher_is_better"]) is bool
        for key, usual in (("highest", math.inf), ("negligible", math.nan)):
            words &= facts[key] is None or type(facts[key]) in (int, float)
            facts[key] = usual if facts[key] is None or not words else float(facts[key])
        if not (str(name).isidentifier() and texts and words):
            raise ValueError(f"scores.{name} does not hold the facts of a score")
        facts["title"] = " ".join(facts["title"].split())[:80]
        found[OWN + str(name)] = Score(OWN + str(name), per_image=True, **facts)
    return found


PER_IMAGE = tuple(name for name, score in SCORES.items() if score.per_image)  # columns of images.csv that are scores

LEARNED = tuple(name for name in SCORES if name.startswith("learned_"))

LATER = tuple(name for name in SCORES if name not in ("dice", "iou"))
"""Scores that a table of an earlier version may lack; their columns are the last."""


UNKNOWN = "unknown"
"""``distance_unit`` of the results of other programs, which do not say it."""


def unit_of(score: Score, spacing: object, recorded: object) -> str:
    """The unit in which values of a score are printed. spacing: ``dataset.spacing`` of the run, recorded: its
    ``distance_unit``, which runs of earlier versions lack."""
    if score.unit == PIXELS and recorded == UNKNOWN:
        return ""
    return "mm" if score.unit == PIXELS and (spacing or recorded == "mm") else score.unit


def title_of(score: Score, nsd: object, unit: object) -> str:
    """The title of a score, which names the variant of normalised surface Dice. nsd, unit: ``metrics.nsd`` and
    ``metrics.unit`` of the run."""
    if score.name != "nsd":
        return score.title
    by = "contour length" if nsd == "surface" else "voxels" if unit == "case" else "pixels"
    return score.title.replace("pixels", by)


def result_rows(
    summary: Mapping[str, Any], split: str = "test", config: Mapping[str, Any] | None = None, own: Iterable[Score] = ()
) -> list[dict[str, str]]:
    """The result table of a run; a score that is missing or NaN shows as "-". config: dotted keys. own: scores of a
    plugin."""
    return [
        {
            f"{split} score": label_of(score, summary, config or {}),
            "value": shown_score(summary.get(score.name)),
            "column": score.name,
        }
        for score in (*SCORES.values(), *own)
        if score.in_result
    ]


def label_of(score: Score, summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Title, detail and unit of distances, for the result table of a single run. config: dotted keys."""
    title, unit = title_of(score, config.get("metrics.nsd"), config.get("metrics.unit")), ""
    if score.unit == PIXELS:
        unit = f" ({unit_of(score, config.get('dataset.spacing'), summary.get('distance_unit'))})"
    averaged = score.detail.replace("images", "volumes") if summary.get("n_test_cases") else score.detail
    return f"{title}, {averaged}{unit}" if averaged else title + unit


COLOR = re.compile("#[0-9a-fA-F]{6}")


def class_label(config: Mapping[str, Any], class_id: int) -> str:
    """The name of a class in ``dataset.class_names``, else "class 3". config: dotted keys."""
    names = config.get("dataset.class_names")
    return str(names[class_id]) if isinstance(names, list) and class_id < len(names) else f"class {class_id}"


def class_color(config: Mapping[str, Any], class_id: int) -> str:
    """The colour of a class in ``dataset.class_colors`` as "#rrggbb", else "". config: dotted keys."""
    colors = config.get("dataset.class_colors")
    color = str(colors[class_id]) if isinstance(colors, list) and class_id < len(colors) else ""
    return color if COLOR.fullmatch(color) else ""


def class_rows(
    images: Sequence[Mapping[str, str]], config: Mapping[str, Any], split: str = "test", own: Iterable[Score] = ()
) -> list[dict[str, str]]:
    """Scores of each class from the rows of images.csv, averaged as those of the run; none for a single class.

    references: images that hold the class. own: scores of a plugin. Raises ValueError for cells that are no numbers.
    """
    both_empty = config.get("metrics.empty_policy") == "both_empty_one"
    of_class: dict[int, list[Mapping[str, str]]] = {}
    for row in images:
        if row["split"] == split:
            of_class.setdefault(int(row["class_id"]), []).append(row)
    table = []
    for class_id, rows in sorted(of_class.items()) if len(of_class) > 1 else ():
        held = [row for row in rows if int(row["n_gt"]) > 0]
        cells = {f"{split} class": class_label(config, class_id), "references": str(len(held))}
        for score in (one for one in (*SCORES.values(), *own) if one.per_image and one.averaged != "all"):
            every = both_empty and score.averaged == "empty_policy"
            groups: dict[object, list[float]] = {}
            for n, row in enumerate(rows if every else held):
                groups.setdefault(row["group_id"] or n, []).append(float(row[score.name] or (1.0 if every else "nan")))
            means = [math.fsum(values) / len(values) for values in groups.values()]
            cells[score.name] = shown_score(math.fsum(means) / len(means) if means else None)
        table.append(cells)
    return table


def shown_score(value: float | None) -> str:
    """A score in the result table: four decimals, "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
