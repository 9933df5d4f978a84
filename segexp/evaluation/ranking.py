"""AUROC and average precision of a stream of pixels, with a bound on the error, in bounded memory."""

import numpy as np

PENDING = 2**22
"""Values of a class that are kept until they are sorted into bins. With fewer pixels than this, scores are exact."""

BINS = 2**19
"""About as many bins remain when bins are merged. Average precision of 10^8 pixels is then known to 1e-5 or better."""


class Ranking:
    """Ranks the pixels of one class by evidence. Equal evidence is one threshold, however many pixels share it.

    Every value is its own bin until there are too many. Then neighbouring bins are merged so that none holds more than
    a fixed share of the pixels above it (1.5e-5 with 10^8 pixels); the topmost ones are not merged. A later value
    between the bins is a bin again. low_B, high_B: smallest and largest value of each bin, ascending; counts_B2:
    negatives and positives.
    """

    def __init__(self, pending: int = PENDING, bins: int = BINS) -> None:
        self._most_pending, self._most_bins = pending, bins
        self._pending: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._n_pending = 0
        self.low_B, self.high_B = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32)
        self.counts_B2 = np.empty((0, 2), dtype=np.int64)

    def add(self, evidence_P: np.ndarray, truth_P: np.ndarray) -> None:
        """Add P pixels: finite evidence in float32 or float64, and whether each is positive."""
        for pending, chosen in zip(self._pending, (~truth_P, truth_P), strict=True):
            pending.append(evidence_P[chosen])
        self._n_pending += len(evidence_P)
        if self._n_pending >= self._most_pending:
            self._sort_in()
            if len(self.high_B) > self._most_bins:
                self._merge()

    def scores(self) -> tuple[float, float, float]:
        """AUROC (ties count half), average precision, and the largest possible error of the latter.

        Average precision is the mean over positives of the precision at their evidence, as scikit-learn defines it.
        Of a bin with several values it is known to lie between that with the positives first and that with the
        negatives first; the middle is returned. NaN without pixels of both truths.
        """
        self._sort_in()
        # From the top: counts of each bin and of the bins above it.
        n_B, p_B = self.counts_B2[::-1].T.astype(np.float64)
        F_B, T_B = np.cumsum(n_B) - n_B, np.cumsum(p_B) - p_B
        n_negative, n_positive = n_B.sum(), p_B.sum()
        if n_negative == 0 or n_positive == 0:
            return float("nan"), float("nan"), float("nan")
        auroc = (n_B * (T_B + p_B / 2)).sum() / (n_negative * n_positive)
        hit, one_value_B = p_B > 0, (self.low_B == self.high_B)[::-1]
        n, p, F, T = n_B[hit], p_B[hit], F_B[hit], T_B[hit]
        tied = (T + p) / (T + p + F + n)
        highest = np.where(one_value_B[hit], tied, (T + p) / (T + p + F))
        lowest = np.where(one_value_B[hit], tied, (T + 1) / (T + 1 + F + n))
        middle, half_width = (highest + lowest) / 2, (highest - lowest) / 2
        return float(auroc), float((p * middle).sum() / n_positive), float((p * half_width).sum() / n_positive)

    def _sort_in(self) -> None:
        """Count the pending values in their bins; those in no bin become bins of their own."""
        new = []
        for truth, pending in enumerate(self._pending):
            values = np.sort(np.concatenate([*pending, np.empty(0, dtype=self.high_B.dtype)]))
            pending.clear()
            begin_B, end_B = np.searchsorted(values, self.low_B), np.searchsorted(values, self.high_B, side="right")
            self.counts_B2[:, truth] += end_B - begin_B
            taken_B = end_B > begin_B
            inside = np.zeros(len(values) + 1, dtype=np.int8)
            inside[begin_B[taken_B]] += 1
            inside[end_B[taken_B]] -= 1
            new.append(np.unique(values[np.cumsum(inside[:-1], dtype=np.int8) == 0], return_counts=True))
        self._n_pending = 0
        high_B = np.unique(np.concatenate([self.high_B, *(values for values, _ in new)]))
        low_B, counts_B2 = high_B.copy(), np.zeros((len(high_B), 2), dtype=np.int64)
        known = np.searchsorted(high_B, self.high_B)
        low_B[known], counts_B2[known] = self.low_B, self.counts_B2
        for truth, (values, counts) in enumerate(new):
            counts_B2[np.searchsorted(high_B, values), truth] += counts
        self.low_B, self.high_B, self.counts_B2 = low_B, high_B, counts_B2

    def _merge(self) -> None:
        """Merge neighbouring bins whose middle pixels, ranked from the top, are in the same cell.

        Cells are single ranks up to rank s, and of relative width 1 / s from there on: s (1 + ln(n / s)) cells in all.
        A bin as large as two cells, such as a frequent value, is left alone: its middle is in a cell of its own.
        """
        mass_B = self.counts_B2.sum(axis=1)
        n = int(mass_B.sum())
        s = float(self._most_bins)
        for _ in range(60):  # contracts by 1 / (1 + ln(n / s)) or faster
            s = self._most_bins / (1 + np.log(max(n / s, 1.0)))
        rank_B = np.cumsum(mass_B[::-1])[::-1] - mass_B / 2  # of the middle pixel of each bin
        cell_B = np.where(rank_B <= s, rank_B, s * (1 + np.log(np.maximum(rank_B, s) / s))).astype(np.int64)
        first = np.flatnonzero(np.diff(cell_B, prepend=-1))
        last = np.append(first[1:], len(cell_B)) - 1
        self.low_B, self.high_B = self.low_B[first], self.high_B[last]
        self.counts_B2 = np.add.reduceat(self.counts_B2, first, axis=0)
