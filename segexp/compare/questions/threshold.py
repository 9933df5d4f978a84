"""How sensitive is Dice to the threshold on the probabilities?

thresholds.csv holds Dice at thresholds on the log-odds, quantiles of each run's own validation pixels. Dice is
interpolated linearly in the log-odds, never beyond the outermost thresholds. Curves are drawn over probabilities and
over log-odds, which separate thresholds close to 0 or 1. Heads without probabilities have a threshold on their value,
1/2 by default.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from segexp.compare.questions import BANDS, Findings, Reading, mean_and_sd, near_the_best, question
from segexp.compare.result import Curve, Panel

PLATEAU = 0.01
"""Thresholds with a Dice at most this much below the best are on the plateau."""

SOFTMAX = "softmax predicts the class with the largest probability, without a threshold"

N_LOG_ODDS = 121
MOST_LOG_ODDS = 20.0
"""Number of log-odds on the axis, and their largest value (a probability of 1 - 2e-9)."""


@dataclass(frozen=True)
class Cut:
    """Dice of one run by threshold. evidence_T: ascending, 0 at p = 1/2; raw: values minus 1/2 instead of log-odds."""

    evidence_T: np.ndarray
    dice_T: np.ndarray
    raw: bool

    def at(self, evidence: np.ndarray) -> np.ndarray:
        """Dice at these thresholds; NaN beyond the outermost recorded ones."""
        return np.interp(evidence, self.evidence_T, self.dice_T, left=np.nan, right=np.nan)

    def evidence_of(self, p: np.ndarray) -> np.ndarray:
        """The threshold on the evidence for a probability (or value)."""
        return p - 0.5 if self.raw else np.log(p) - np.log1p(-p)

    def p_of(self, evidence: float) -> float:
        """The probability (or value) of a threshold on the evidence."""
        return evidence + 0.5 if self.raw else (1 + math.tanh(evidence / 2)) / 2


@question(
    "Threshold",
    {
        "n_curves": "runs with curves",
        "dice_best": "Dice at the best threshold (points)",
        "regret": "regret of 0.5 (points)",
        "gain_tuned": "gain of the tuned threshold (points)",
        "threshold_tuned": "tuned threshold",
        "plateau_low": "plateau from",
        "plateau_high": "plateau to",
        "plateau_width": "plateau, width",
    },
)
def threshold(reading: Reading) -> Findings:
    """Dice against the threshold, the loss at 0.5, and the width of the plateau around the best threshold.

    Rows: mean and sd over the n_curves runs that have thresholds. dice: at 0.5; dice_best: the best on the curve;
    regret: dice_best - dice, never negative because it is chosen on the split itself; gain_tuned: the gain of the
    threshold tuned on validation (test only). threshold_tuned, plateau_low, plateau_high, plateau_width: probabilities;
    the plateau are the thresholds around the best with a Dice within `PLATEAU` of it.
    """
    read = reading.rows("thresholds", ("class_id", "threshold", "dice"), SOFTMAX, split=reading.split)
    if reading.every and read.empty:
        return [], [], []  # the note of `Reading.rows` says why
    rows, cuts, found = [], {}, _cuts(reading, read)
    for arm, runs in reading.runs.items():
        known = [(run, found[run.path]) for run in runs if run.path in found]
        cuts[arm] = [cut for _, cut in known]
        plateaus = [_plateau(cut) for cut in cuts[arm]]
        default = [float(cut.at(np.zeros(1))[0]) for cut in cuts[arm]]
        best = [float(cut.dice_T.max()) for cut in cuts[arm]]
        test = reading.split == "test"
        rows.append(
            {"arm": arm, "n_runs": len(runs), "n_curves": len(known)}
            | mean_and_sd("dice", default)
            | mean_and_sd("dice_best", best)
            | mean_and_sd("regret", [b - d for b, d in zip(best, default, strict=True)])
            | mean_and_sd("gain_tuned", [run.number("dice_tuned") - run.number("dice") for run, _ in known if test])
            | mean_and_sd("threshold_tuned", [cut.p_of(run.number("threshold_tuned")) for run, cut in known])
            | mean_and_sd("plateau_low", [low for low, _ in plateaus])
            | mean_and_sd("plateau_high", [high for _, high in plateaus])
            | mean_and_sd("plateau_width", [high - low for low, high in plateaus])
        )
    notes = [
        f"regret: the best Dice on the curve of the {reading.split} images minus the Dice at 0.5. No threshold gains "
        "more. gain: with the threshold tuned on the validation images. All classes share one threshold.",
        BANDS,
    ]
    return rows, _panels(cuts), notes


def _cuts(reading: Reading, thresholds: pd.DataFrame) -> dict[Path, Cut]:
    """The curve of each run, by directory."""
    means = thresholds.groupby(["run", "threshold"])["dice"].mean()  # over classes; those never seen are NaN
    (number_R, evidence_R), dice_R = (means.index.get_level_values(n).to_numpy() for n in (0, 1)), means.to_numpy()
    numbers, starts = np.unique(number_R, return_index=True)
    cuts = {}
    for number, start, stop in zip(numbers, starts, [*starts, len(dice_R)][1:], strict=True):
        run, known = reading.every[number], start + np.flatnonzero(~np.isnan(dice_R[start:stop]))
        if not len(known):
            reading.note("no Dice at any threshold, because no image holds a class", run)
            continue
        # A run without temperature has no probabilities.
        cuts[run.path] = Cut(evidence_R[known], dice_R[known], raw=math.isnan(run.number("temperature")))
    return cuts


def _plateau(cut: Cut) -> tuple[float, float]:
    """Lowest and highest threshold, as probabilities, of the plateau around the best (if several are, the one nearest
    1/2). The ends are interpolated, and at most the outermost thresholds."""
    floor = cut.dice_T.max() - PLATEAU
    best = np.flatnonzero(cut.dice_T == cut.dice_T.max())
    middle = int(best[np.argmin(np.abs(cut.evidence_T[best]))])

    def end(step: int) -> float:
        i = middle
        while 0 <= i + step < len(cut.dice_T):
            inside, outside = cut.dice_T[i], cut.dice_T[i + step]
            if outside < floor:
                share = (inside - floor) / (inside - outside)
                return float(cut.evidence_T[i] + share * (cut.evidence_T[i + step] - cut.evidence_T[i]))
            i += step
        return float(cut.evidence_T[i])

    return cut.p_of(end(-1)), cut.p_of(end(1))


def _panels(cuts: Mapping[str, Sequence[Cut]]) -> list[Panel]:
    log_odds = {arm: [cut for cut in known if not cut.raw] for arm, known in cuts.items()}
    reach = max((float(np.abs(cut.evidence_T).max()) for known in log_odds.values() for cut in known), default=0.0)
    reach = min(math.ceil(reach), MOST_LOG_ODDS)
    p = np.linspace(0.01, 0.99, 99)
    evidence = np.linspace(-reach, reach, N_LOG_ODDS)
    raw = any(cut.raw for known in cuts.values() for cut in known)
    by_p = _curves(cuts, p, lambda cut: cut.at(cut.evidence_of(p)))
    by_evidence = _curves(log_odds, evidence, lambda cut: cut.at(evidence))
    shown = [
        ("threshold", "Dice by threshold", f"threshold (probability{', or value' * raw})", by_p),
        ("threshold_log_odds", "Dice by threshold on the log-odds", "threshold (log-odds)", by_evidence),
    ]
    return [
        Panel(name, title, x_label, "Dice", curves, y_points=True, y_from=near_the_best(curves))
        for name, title, x_label, curves in shown
    ]


def _curves(
    cuts: Mapping[str, Sequence[Cut]], x: np.ndarray, dice_at: Callable[[Cut], np.ndarray]
) -> tuple[Curve, ...]:
    """A curve for each arm, where all of its runs have thresholds on either side, so that the mean is over the same
    runs everywhere."""
    curves = []
    for arm, known in cuts.items():
        if not known:
            continue
        dice_RX = np.array([dice_at(cut) for cut in known])
        everywhere = ~np.isnan(dice_RX).any(axis=0)
        dice_RX = dice_RX[:, everywhere]
        lines = (x[everywhere], dice_RX.mean(axis=0), dice_RX.min(axis=0), dice_RX.max(axis=0))
        places, y, low, high = (tuple(line.tolist()) for line in lines)
        curves.append(Curve(arm, places, y, low, high, (float(len(known)),) * len(places)))
    return tuple(curves)
