"""Statistics over data sets: one value of each, never pooled seeds or images.

Axes: C candidates, A arms, D data sets. NaN is a mistake of the caller's, ValueError: only data sets that all arms have
can be compared.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from segexp.compare.paired import ALPHA, holm, one_sample, sign_flip_floor
from segexp.compare.result import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

WILCOXON = "Wilcoxon"
T = "t over data sets"


def over_datasets(differences: "Iterable[Sequence[float] | np.ndarray]") -> list[tuple[str, Interval, float, float]]:
    """(method, interval, p, p_holm) of every candidate from its differences to the reference, one of each data set.

    differences: C candidates x D data sets; D may differ, and the smallest decides for all. Wilcoxon's signed rank test
    where it can reach 5 % after Holm, 2^(1 - D) <= .05 / C (8 data sets for 6 candidates), else Student's t over the
    data sets. The interval is that of the t in either case, and its p is the method's, so the two may disagree by a
    little. D = 1: NaN, no test. Raises ValueError for anything but finite differences.
    """
    import numpy as np

    rows = [_finite(np.array([row], dtype=float))[0] for row in differences]
    if not rows:
        raise ValueError("no candidate")
    ranked = can_rank(len(rows), min(len(row) for row in rows))
    intervals = [one_sample(row) for row in rows]
    if ranked:
        intervals = [replace(interval, p=wilcoxon_p(row)) for interval, row in zip(intervals, rows, strict=True)]
    p = [interval.p for interval in intervals]
    adjusted = holm(p)
    method = WILCOXON if ranked else T
    return [(method, i, i.p, float(h)) for i, h in zip(intervals, adjusted, strict=True)]


def can_rank(n_comparisons: int, n_datasets: int) -> bool:
    """Whether signed ranks of so many data sets can be significant in the first step of Holm."""
    return sign_flip_floor(n_datasets) <= ALPHA / n_comparisons


def mean_ranks(scores_AD: "ArrayLike", higher_is_better: bool) -> "tuple[np.ndarray, np.ndarray]":
    """(ranks_A, p_AA) for a critical-difference diagram: mean ranks over data sets, 1 is best, ties averaged, and
    Wilcoxon's p of every two arms, Holm-adjusted over all pairs, 1 on the diagonal.

    With few data sets no p can be small: a diagram says something only where ``can_rank(A (A - 1) / 2, D)``.
    """
    import numpy as np
    from scipy.stats import rankdata

    scores = _finite(scores_AD)
    ranks = rankdata(-scores if higher_is_better else scores, axis=0).mean(axis=1)
    a, b = np.triu_indices(len(scores), k=1)
    p_AA = np.ones((len(scores), len(scores)))
    p_AA[a, b] = p_AA[b, a] = holm([wilcoxon_p(scores[i] - scores[j]) for i, j in zip(a, b, strict=True)])
    return ranks, p_AA


def wilcoxon_p(differences_D: "np.ndarray", alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
    """p of the signed rank test against 0 (two-sided, or that differences are greater); data sets without a
    difference are left out. Exact, also with ties for up to 13 data sets."""
    import numpy as np
    from scipy.stats import PermutationMethod, wilcoxon

    nonzero = differences_D[differences_D != 0]
    if len(nonzero) == 0:
        return 1.0
    ties = len(np.unique(abs(nonzero))) < len(nonzero)
    every_sign = PermutationMethod(n_resamples=2**13)  # all of them, none drawn; "auto" forgot ties once
    return float(
        wilcoxon(nonzero, alternative=alternative, method=every_sign if ties and len(nonzero) <= 13 else "auto").pvalue
    )


def _finite(values: "ArrayLike") -> "np.ndarray":
    import numpy as np

    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"a finite array of arms x data sets is needed, not one of shape {array.shape} with gaps")
    return array
