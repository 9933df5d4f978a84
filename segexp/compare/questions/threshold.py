"""How much does it matter where the probabilities are cut?

thresholds.csv holds Dice at thresholds on the log-odds, quantiles of each run's own validation pixels: no two runs
share them. Between two of them Dice is taken as linear in the log-odds, never beyond the outermost, where nothing is
known. Runs then meet at common thresholds: at probabilities, which is what a user sets, and at log-odds, which tell
thresholds apart that lie within a rounding of 0 or 1. Heads without probabilities are cut at a value, 1/2 by default.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segexp.compare.questions import question
from segexp.compare.questions.reading import BANDS, Reading, drawn, mean_and_sd, near_the_best
from segexp.compare.result import Answer, Curve, Panel
from segexp.records.runs import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PLATEAU = 0.01
"""A threshold is on the plateau where Dice is at most this much below the best."""

SOFTMAX = "under softmax the largest class decides, there is no threshold"

N_LOG_ODDS = 121
MOST_LOG_ODDS = 20.0
"""The log-odds drawn: at so many places, at most so far out (a probability of 2e-9)."""


@dataclass(frozen=True)
class Cut:
    """Dice of one run by threshold. evidence_T: ascending, 0 where p = 1/2; raw: a value less 1/2, not log-odds."""

    evidence_T: "np.ndarray"
    dice_T: "np.ndarray"
    raw: bool

    def at(self, evidence: "np.ndarray") -> "np.ndarray":
        """Dice at these thresholds; NaN beyond the outermost that were tried."""
        import numpy as np

        return np.interp(evidence, self.evidence_T, self.dice_T, left=np.nan, right=np.nan)

    def evidence_of(self, p: "np.ndarray") -> "np.ndarray":
        """The threshold on the evidence that is this probability (or value)."""
        import numpy as np

        return p - 0.5 if self.raw else np.log(p) - np.log1p(-p)

    def p_of(self, evidence: float) -> float:
        """The probability (or value) that is this threshold on the evidence."""
        return evidence + 0.5 if self.raw else (1 + math.tanh(evidence / 2)) / 2


TITLES = {
    "n_curves": "runs with curves",
    "dice_best": "Dice at the best threshold (points)",
    "regret": "regret of 0.5 (points)",
    "gain_tuned": "gain of the tuned threshold (points)",
    "threshold_tuned": "tuned threshold",
    "plateau_low": "plateau from",
    "plateau_high": "plateau to",
    "plateau_width": "plateau, width",
}
"""Column of a row -> title with its unit."""


@question
def threshold(arms: Mapping[str, Sequence[Path]], split: str = "test") -> Answer:
    """Dice against the threshold, what 0.5 gives away, and how wide the choice is.

    Rows: mean and sd over the n_curves runs that have thresholds. dice: at 0.5. dice_best: the best of the curve;
    regret: that less the Dice at 0.5, never negative, for it is chosen on the split itself. gain_tuned: Dice with the
    threshold tuned on validation less Dice (test only), which is what tuning brings. threshold_tuned, plateau_low,
    plateau_high, plateau_width: probabilities; the plateau are the thresholds around the best whose Dice is within
    `PLATEAU` of it.
    """
    import numpy as np

    reading = Reading(arms, split)
    read = reading.tables("thresholds", ("class_id", "threshold", "dice"), SOFTMAX, split=split)
    rows, cuts = [], {}
    for arm, runs in reading.runs.items():
        known = [(run, cut) for run, frame in read[arm] if (cut := _cut(reading, run, frame)) is not None]
        cuts[arm] = [cut for _, cut in known]
        plateaus = [_plateau(cut) for cut in cuts[arm]]
        default = [float(cut.at(np.zeros(1))[0]) for cut in cuts[arm]]
        best = [float(cut.dice_T.max()) for cut in cuts[arm]]
        test = split == "test"
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
        f"regret is the best Dice of the {split} images' own curve less the Dice at 0.5: a bound on what any threshold "
        "could bring. The gain is what the one tuned on validation does bring. The mean over classes is cut at one "
        "threshold for all.",
        BANDS,
        *reading.notes(),
    ]
    return Answer("threshold", "Threshold", tuple(rows), drawn(_panels(cuts)), tuple(notes), TITLES)


def _cut(reading: Reading, run: Run, thresholds: "pd.DataFrame") -> Cut | None:
    by_threshold = thresholds.groupby("threshold")["dice"].mean().dropna()  # over classes; those never seen are NaN
    if by_threshold.empty:
        reading.note("no Dice at any threshold, for no image holds a class", run)
        return None
    # Only what has probabilities has a temperature.
    return Cut(by_threshold.index.to_numpy(), by_threshold.to_numpy(), raw=math.isnan(run.number("temperature")))


def _plateau(cut: Cut) -> tuple[float, float]:
    """Lowest and highest threshold, as probabilities, around the best (of equals that nearest 1/2) that are within
    `PLATEAU` of it. Ends are interpolated, and at the outermost thresholds that were tried."""
    import numpy as np

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
    import numpy as np

    log_odds = {arm: [cut for cut in known if not cut.raw] for arm, known in cuts.items()}
    reach = max((float(np.abs(cut.evidence_T).max()) for known in log_odds.values() for cut in known), default=0.0)
    reach = min(math.ceil(reach), MOST_LOG_ODDS)
    p = np.linspace(0.01, 0.99, 99)
    evidence = np.linspace(-reach, reach, N_LOG_ODDS)
    raw = any(cut.raw for known in cuts.values() for cut in known)
    by_p = _curves(cuts, p, lambda cut: cut.at(cut.evidence_of(p)))
    by_evidence = _curves(log_odds, evidence, lambda cut: cut.at(evidence))
    return [
        Panel(
            name="threshold",
            title="Dice by threshold",
            x_label="threshold (probability)" if not raw else "threshold (probability, or value)",
            y_label="Dice",
            curves=by_p,
            y_points=True,
            y_from=near_the_best(by_p),
        ),
        Panel(
            name="threshold_log_odds",
            title="Dice by threshold on the log-odds",
            x_label="threshold (log-odds)",
            y_label="Dice",
            curves=by_evidence,
            y_points=True,
            y_from=near_the_best(by_evidence),
        ),
    ]


def _curves(
    cuts: Mapping[str, Sequence[Cut]], x: "np.ndarray", dice_at: "Callable[[Cut], np.ndarray]"
) -> tuple[Curve, ...]:
    """A curve for each arm with runs, where all of them have tried thresholds on either side: elsewhere the mean would
    be of other runs from place to place."""
    import numpy as np

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
