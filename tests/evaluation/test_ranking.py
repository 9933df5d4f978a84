"""AUROC and average precision against direct computation: ties, saturation, rare positives, any scale, any order."""

import functools
import tracemalloc

import numpy as np
import pytest
import torch

from segexp.activations.head import make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.evaluation.ranking import BINS, PENDING, Ranking

FINE = 1e-5
MONOTONE = [
    name
    for name, entry in OUTPUT_ACTIVATIONS.items()
    if entry.log_odds is not None and not entry.clips and "binary" in entry.modes
]


def exact(evidence: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """AUROC, ties half, and average precision as scikit-learn's average_precision_score defines it."""
    values, index = np.unique(evidence, return_inverse=True)
    negatives, positives = (np.bincount(index[truth == t], minlength=len(values)) for t in (False, True))
    above_n, above_p = (np.cumsum(counts[::-1])[::-1] for counts in (negatives, positives))
    below_n = negatives.sum() - above_n
    auroc = (positives * (below_n + negatives / 2)).sum() / positives.sum() / negatives.sum()
    return auroc, (positives * above_p / (above_p + above_n)).sum() / positives.sum()


def ranked(evidence: np.ndarray, truth: np.ndarray, batch: int, ranking: Ranking | None = None) -> Ranking:
    ranking = ranking or Ranking()
    for begin in range(0, len(truth), batch):
        ranking.add(evidence[begin : begin + batch], truth[begin : begin + batch])
    return ranking


def drawn(n: int = 4000, share: float = 0.2, gain: float = 1.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and standard normal evidence that is higher where it is positive."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < share
    return truth, rng.normal(0.0, 1.0, n) + gain * (truth - 0.5)


def test_by_hand() -> None:
    """Thresholds 3, 2, 1: precision 1/1, 2/3 (a tie of both truths), 3/5; of 3 x 2 pairs 4 + 1/2 are in order."""
    ranking = Ranking()
    ranking.add(np.array([1.0, 2.0, 3.0]), np.array([True, True, True]))
    ranking.add(np.array([2.0, 1.0, 0.0]), np.array([False, False, False]))
    assert ranking.scores() == pytest.approx(((2.5 + 1.5 + 3) / 9, (1 + 2 / 3 + 3 / 5) / 3, 0.0))


def hard_cases(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    truth, evidence = drawn(n)
    rare, high = drawn(n, 0.0)
    rare[:: n // 3] = True
    decades = np.sign(evidence) * np.float32(10) ** (np.abs(evidence) * 15 - 20).clip(-44, 38)
    of_image = np.repeat(np.random.default_rng(1).lognormal(0, 2, 40), n // 40)
    return {
        "within a thousandth": (truth, -2 + 1e-4 * evidence.clip(-5, 5)),
        "heavy overlap": drawn(n, 0.5, 0.0),
        "saturated": (truth, (30 * evidence).clip(-16.118, 16.118)),
        "few levels": (truth, np.round(2 * evidence)),
        "rare among the others": (rare, high),
        "rare at the top": (rare, high + 4.7 * rare),
        "all sizes of float32": (truth, decades),
        "images unlike one another": (truth, evidence * of_image + np.log(of_image)),
        "worst images first": (truth[(o := np.argsort(np.abs(evidence)))], evidence[o]),
    }


@pytest.mark.parametrize("case", hard_cases(40).keys())
def test_few_pixels_are_exact(case: str) -> None:
    truth, evidence = hard_cases(20_000)[case]
    evidence = evidence.astype(np.float32)
    auroc, ap, error = ranked(evidence, truth, 3000).scores()
    assert (auroc, ap, error) == pytest.approx((*exact(evidence, truth), 0.0), abs=1e-13)


@pytest.mark.parametrize("case", hard_cases(40).keys())
@pytest.mark.parametrize("bins", [30, 1000])
def test_merged_bins_know_their_error(case: str, bins: int) -> None:
    truth, evidence = hard_cases(20_000)[case]
    evidence = evidence.astype(np.float32)
    ranking = ranked(evidence, truth, 700, Ranking(pending=2000, bins=bins))
    auroc, ap, error = ranking.scores()
    wanted = exact(evidence, truth)
    assert abs(ap - wanted[1]) <= error + 1e-12
    assert auroc == pytest.approx(wanted[0], abs=0.2 if bins == 30 else 5e-3)
    assert len(ranking.high_B) <= 2 * bins + 2000 + 1
    assert ranking.counts_B2.sum(axis=0).tolist() == [(~truth).sum(), truth.sum()]
    assert (ranking.low_B[1:] > ranking.high_B[:-1]).all()


def test_a_frequent_value_stays_one_threshold() -> None:
    truth, evidence = drawn(20_000)
    evidence[::3] = 0.5
    ranking = ranked(evidence, truth, 700, Ranking(pending=2000, bins=100))
    ranking.scores()
    (at,) = np.flatnonzero((ranking.low_B <= 0.5) & (ranking.high_B >= 0.5))
    assert ranking.low_B[at] == ranking.high_B[at] == 0.5
    assert len(ranking.high_B) < 3000


@pytest.mark.parametrize("case", ["heavy overlap", "images unlike one another"])
def test_many_pixels_are_fine(case: str) -> None:
    """Merged as often as 10^8 pixels are, into fewer bins; the topmost values stay apart."""
    truth, evidence = hard_cases(800_000)[case]
    evidence = evidence.astype(np.float32)
    ranking = ranked(evidence, truth, 25_000, Ranking(pending=PENDING // 64, bins=BINS // 16))
    auroc, ap, error = ranking.scores()
    wanted = exact(evidence, truth)
    assert abs(ap - wanted[1]) < FINE
    assert abs(auroc - wanted[0]) < 8 * FINE
    assert 0 < error < 12 * FINE
    assert np.array_equal(ranking.high_B[-100:], np.unique(evidence)[-100:])


@pytest.mark.slow
@pytest.mark.parametrize("case", hard_cases(40).keys())
def test_ten_million_pixels_are_exact_to_a_hundred_thousandth(case: str) -> None:
    truth, evidence = hard_cases(10_000_000)[case]
    evidence = evidence.astype(np.float32)
    tracemalloc.start()
    ranking = ranked(evidence, truth, 1_000_000)
    auroc, ap, error = ranking.scores()
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    wanted = exact(evidence, truth)
    print(f"\n{case}: off by {ap - wanted[1]:.0e}, at most {error:.0e}, {megabytes:.0f} MB")
    assert abs(ap - wanted[1]) <= error + 1e-10
    assert error <= FINE
    assert abs(auroc - wanted[0]) < FINE
    assert megabytes < 400


def test_one_truth_or_nothing_cannot_be_ranked() -> None:
    assert np.isnan(Ranking().scores()).all()
    for truth in (np.ones(4, dtype=bool), np.zeros(4, dtype=bool)):
        assert np.isnan(ranked(np.arange(4.0), truth, 4).scores()).all()


@functools.cache
def of_drawn() -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    truth, evidence = drawn(seed=1)
    return truth, evidence, exact(evidence, truth)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MONOTONE)
def test_ranking_does_not_depend_on_the_activation(name: str, dtype: torch.dtype, scale: float) -> None:
    """A monotone map of the logits orders the pixels alike, where float32 probabilities would round to ties."""
    truth, evidence, wanted = of_drawn()
    logits = torch.tensor(evidence * scale, dtype=dtype).view(1, 1, 1, -1)
    prediction = make_head(OUTPUT_ACTIVATIONS[name], "binary")(logits)
    found = ranked(prediction.evidence_NFHW().flatten().numpy(), truth, 1000).scores()
    # Some logits of these two become ties: in float32 next to 0, where phi is 0.54 or -0.54, and beyond a size of 80.
    ties = name in ("cloglog", "loglog") and scale != 1
    assert found[:2] == pytest.approx(wanted, abs=3e-3 if ties else FINE)
