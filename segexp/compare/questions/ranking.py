"""How stable is the order of the arms? A bootstrap over seeds and images: descriptive, not a test."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from segexp.compare.blocks import RunKey, are_splits, by_number
from segexp.compare.formatting import with_unit
from segexp.compare.questions import Findings, Reading, question
from segexp.compare.result import ALPHA, FEWEST_SEEDS, METRICS, Curve, Panel
from segexp.compare.scorer import Runs, Scorer, complete_seeds, sizes
from segexp.records.formatting import pluralize

DRAWS, BATCH = 2000, 100
COLUMNS = {"mean": "mean", "rank": "rank", "rank_low": "from", "rank_high": "to (95 %)", "p_best": "P(best) (%)"}


@question("Ranking stability", COLUMNS)
def ranking(reading: Reading) -> Findings:
    """Mean and rank of each arm, the 95 % interval of its rank and the share of draws in which it is best, by
    `bootstrap` on the seeds (or folds, or splits) and images that all arms have."""
    if any(arm.interval.share < 1 for arm in reading.ranking):
        return [], [], ["No ranking: these intervals are for one look, and `segexp decide` has taken several."]
    scorer, arms = _scored(reading)
    reading.titles["mean"] = with_unit(scorer.metric, "mean")
    rows: list[dict[str, Any]] = [{"arm": arm, "n_runs": len(runs)} for arm, runs in reading.runs.items()]
    metrics = _of_metrics(reading)
    values, units, widened, left_out = _shared(arms, scorer)
    notes = [f"Left out, because not all arms have them: {left_out}."] if left_out else []
    counts = [pluralize(n, unit) for unit, n in units.items()]
    if min(units.values()) < FEWEST_SEEDS or math.isnan(widened):
        why = "the sizes of splits are unknown" if math.isnan(widened) else f"it needs {FEWEST_SEEDS} of each"
        return rows, metrics, [f"No ranking of {' and '.join(counts)} that all arms have: {why}.", *notes]
    values_AKN = values.reshape(len(arms), next(iter(units.values())), -1)
    found_4A = bootstrap(values_AKN, scorer.metric.higher_is_better, len(units) > 1, widened)
    for row, *numbers in zip(rows, values_AKN.mean(axis=(1, 2)), *found_4A, strict=True):
        row |= dict(zip(COLUMNS, map(float, numbers), strict=True))
    rows.sort(key=lambda row: (row["rank"], row["arm"]))
    ends = ("rank", "rank_low", "rank_high")
    curves = tuple(Curve(row["arm"], (n,), *((row[end],) for end in ends)) for n, row in enumerate(rows, start=1))
    panel = Panel("ranking", "Rank with 95 % interval", "arm, by its mean", "rank, 1 is best", curves, "points")
    about = f"Descriptive, not a test: {DRAWS} bootstrap draws over {' and '.join(counts)}, the same for all arms, "
    about += "widened for few seeds and many pairs: intervals of equal arms overlap in about 95 % of studies or more."
    return rows, [panel, *metrics], [about, *notes]


def _of_metrics(reading: Reading) -> list[Panel]:
    """The rank of each arm's mean under every metric that all runs have and that differs; of test images."""
    signs = {name: -1 if metric.higher_is_better else 1 for name, metric in METRICS.items() if reading.split == "test"}
    arms = {arm: runs for arm, runs in reading.runs.items() if runs}
    means = {arm: [s * np.mean([run.number(n) for run in arms[arm]]) for n, s in signs.items()] for arm in arms}
    ranked = pd.DataFrame(means, index=[*signs], dtype=float).dropna().rank(axis=1)
    ranked = ranked[ranked.nunique(axis=1) > 1]
    places = tuple(map(float, range(1, len(ranked) + 1)))
    curves = tuple(Curve(arm, places, tuple(ranked[arm])) for arm in arms)
    panel = Panel("metrics", "Rank under each metric (descriptive)", "metric", "rank, 1 is best", curves)
    return [replace(panel, x_names=tuple(ranked.index))] if len(ranked) > 1 else []


def _scored(reading: Reading) -> tuple[Scorer, dict[str, Runs]]:
    """arm -> its runs with a score, with their images; none of an arm with collected runs."""
    found = reading.images()
    arms: dict[str, Runs] = {key: {} for key in reading.runs}
    for arm in (arm for arm in reading.ranking if len(arm.directories) == len(arm.seeds) > 0):
        keys = (RunKey(*name.rpartition(", seed ")[::2]) for name in arm.seeds)  # ("fold 2", "0"), or ("", "0")
        of_keys = zip(keys, (Path(os.path.abspath(directory)) for directory in arm.directories), strict=True)
        arms[arm.arm] = {key: found[path] for key, path in of_keys if path in found}
    policy = next(filter(None, (run.row.get("empty_policy") for run in found.values())), "reference")
    return Scorer(reading.metric, cast(Any, policy)), arms


def _shared(arms: Mapping[str, Runs], scorer: Scorer) -> tuple[np.ndarray, dict[str, int], float, str]:
    """What all arms have: values of A x K x N (K seeds, or folds or splits where fewer than 3 seeds have all; N = 1
    without values per image), how many of each are drawn, by how much shared training images widen, what is left out.
    """
    every = set().union(*arms.values())
    common = sorted((key for key in every if all(key in runs for runs in arms.values())), key=by_number)
    folds = tuple(dict.fromkeys(key.fold for key in common))
    seeds, widened, dropped = complete_seeds(common, folds), 1.0, ""
    by_seed = len(seeds) >= FEWEST_SEEDS or not any(folds)
    parts = [[RunKey(fold, seed) for fold in folds] for seed in seeds]
    parts = parts if by_seed else [[key for key in common if key.fold == fold] for fold in folds]
    units = {"seed" if by_seed else "split" if are_splits(folds) else "fold": len(parts)}
    if by_seed and seeds and scorer.metric.per_image:
        found = scorer.out_of_fold({f: [runs[RunKey(f, s)] for runs in arms.values() for s in seeds] for f in folds})
        values, dropped = found.values_KU, found.dropped
        units["image" if len(found.units) == len(found.images) else "group"] = len(found.units)
    else:
        values = np.array([np.mean([scorer.score(of[key]) for key in part]) for of in arms.values() for part in parts])
    if not by_seed:
        n_test_F, n_train_F, _ = sizes([next(iter(arms.values()))[part[0]] for part in parts])
        widened = math.sqrt(1 + len(folds) * n_test_F.sum() / n_train_F.sum())  # as in `corrected_resampled`
    lacking = sorted(every.difference(*parts), key=by_number)
    left_out = [", ".join(filter(None, [fold, f"seed {seed}"])) for fold, seed in lacking]
    return values, units, widened, "; ".join(filter(None, [*left_out, dropped]))


def bootstrap(values_AKN: np.ndarray, higher_is_better: bool, crossed: bool, widened: float = 1.0) -> np.ndarray:
    """(4, A): the rank of each arm's mean (1 is best, ties averaged), the ends of its 95 % interval, and the share of
    draws in which it is best. Seeds and, if ``crossed``, images are drawn independently, the same for all arms
    ("pigeonhole" bootstrap, Owen 2007, doi:10.1214/07-AOAS122).

    Its variance is (K - 1) / K of the true one where seeds dominate, up to 3 times where the residual does. So the
    draws' deviations from the mean are multiplied by sqrt(n / (n - 1)) t(n - 1) / z with n = min(K, N), by ``widened``
    and, for the intervals, by Bonferroni's quantile over all pairs of arms over z.
    """
    A, K, N = values_AKN.shape
    rng = np.random.default_rng(17)
    flat = (-1 if higher_is_better else 1) * values_AKN.reshape(A * K, N).T
    mean_A = flat.mean(axis=0).reshape(A, K).mean(axis=1)
    draws = []
    for _ in range(DRAWS // BATCH):  # the counts of many images at once would fill the memory
        seeds_BK, images_BN = (rng.multinomial(n, np.full(n, 1 / n), BATCH) / n for n in (K, N))
        draws.append(np.einsum("bk,bak->ba", seeds_BK, (images_BN @ flat).reshape(BATCH, A, K)))
    n, z = min(K, N) if crossed else K, ndtri(1 - ALPHA / 2)
    away_BA = widened * math.sqrt(n / (n - 1)) * stdtrit(n - 1, 1 - ALPHA / 2) / z * (np.concatenate(draws) - mean_A)
    # Rounded, so that identical arms are tied.
    best_BA, joint_BA = (np.round(mean_A + by * away_BA, 10) for by in (1, ndtri(1 - ALPHA / max(A * (A - 1), 2)) / z))
    best_BA = best_BA == best_BA.min(axis=1, keepdims=True)
    ranks_BA, tail = np.sort(pd.DataFrame(joint_BA).rank(axis=1), axis=0), int(DRAWS * ALPHA / 2)
    best_A = (best_BA / best_BA.sum(axis=1, keepdims=True)).mean(axis=0)
    return np.array([pd.Series(np.round(mean_A, 10)).rank(), ranks_BA[tail], ranks_BA[-1 - tail], best_A])
