"""What compare could have found: results made up from random numbers, for tests of what is drawn and written."""

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from fabricated import row
from PIL import Image

from segexp.compare.result import (
    Answer,
    ArmScore,
    Block,
    Comparison,
    Curve,
    Factorial,
    Interaction,
    Interval,
    Method,
    Metric,
    OverDatasets,
    Panel,
    Ranks,
    Result,
    Unscored,
    Verdict,
)
from segexp.records import write_table

DICE = Metric("dice", "Dice", higher_is_better=True, per_image=True, points=True, rope=0.01)

NAN = float("nan")


def make_interval(mean: float, se: float = 0.004, df: float = 4.0, p: float = 0.03) -> Interval:
    return Interval(mean, se, df, p, mean - 2.8 * se, mean + 2.8 * se, mean - 2.1 * se, mean + 2.1 * se)


def make_comparison(
    candidate: str, reference: str, mean: float, verdict: str = "", n_images: int = 60, seed: int = 0
) -> Comparison:
    """A comparison whose images scatter around ``mean``."""
    rng = np.random.default_rng(seed)
    before = np.clip(rng.beta(8, 2, n_images), 0, 1)
    after = np.clip(before + mean + rng.normal(0, 0.03, n_images), 0, 1)
    overall = make_interval(mean, 0.004)
    decided = "better" if overall.low > 0 else "worse" if overall.high < 0 else "inconclusive"
    return Comparison(
        candidate=candidate,
        reference=reference,
        method=Method.TWO_WAY,
        scope=Method.TWO_WAY.scope,
        paired=True,
        n_seeds=5,
        n_folds=0,
        n_images=n_images,
        n_groups=n_images,
        overall=overall,
        test_set=make_interval(mean, 0.002),
        p_holm=0.04 if decided != "inconclusive" else 0.6,
        verdict=Verdict(verdict or decided),
        minimum_detectable=0.014,
        target=0.01,
        seeds_needed=(9.0, 31.0),
        image_floor=0.006,
        wins=4.5,
        wins_low=0.4,
        wins_high=0.99,
        effect_size=mean / 0.008,
        seed_correlation=0.42,
        variance={"seed": 1e-5, "image": 2e-5, "residual": 9e-4},
        dropped="",
        warnings=(),
        units=tuple(f"image_{n:04}" for n in range(n_images)),
        candidate_N=after,
        reference_N=before,
    )


def make_arm(arm: str, mean: float, n_seeds: int = 5, directories: Sequence[str] = (), failed: int = 0) -> ArmScore:
    seeds = {str(n): mean + 0.004 * math.sin(n + len(arm)) for n in range(n_seeds)}
    return ArmScore(
        arm=arm,
        levels={"activation": arm},
        n_seeds=n_seeds,
        n_folds=0,
        n_images=60,
        n_groups=60,
        n_failed=failed,
        n_diverged=0,
        n_unfinished=0,
        mean=mean,
        interval=make_interval(mean, 0.01),
        seed_sd=0.0042,
        iqm=mean + 0.01,
        mean_failures_zero=mean * n_seeds / max(n_seeds + failed, 1),
        seeds=seeds,
        directories=tuple(directories),
    )


def make_block(
    arms: Mapping[str, float],
    reference: str,
    directories: Mapping[str, Sequence[str]] | None = None,
    n_images: int = 60,
    **conditions: str,
) -> Block:
    """Arms (arm -> mean score) of one data set, compared with one of them."""
    ranking = sorted(arms, key=lambda arm: -arms[arm])
    return Block(
        dataset="lesions",
        dataset_sha="d" * 64,
        conditions=conditions,
        ranking=tuple(make_arm(arm, arms[arm], directories=(directories or {}).get(arm, ())) for arm in ranking),
        comparisons=tuple(
            make_comparison(arm, reference, arms[arm] - arms[reference], n_images=n_images, seed=n)
            for n, arm in enumerate(ranking)
            if arm != reference
        ),
        factorials=(),
        warnings=("5 seeds of arctan, 4 of sigmoid: the common 4 are compared",),
    )


def make_factorial(rows: Sequence[str], columns: Sequence[str]) -> Factorial:
    rng = np.random.default_rng(1)
    means = 0.8 + 0.05 * rng.random((len(rows), len(columns)))
    means[-1, -1] = NAN
    levels = rows[1], columns[1], rows[0], columns[0]
    interaction = Interaction("activation", "loss", *levels, 5, make_interval(-0.013), 0.08)
    seeds = tuple(tuple(0 if math.isnan(v) else 5 for v in line) for line in means)
    cells = tuple(tuple(map(float, line)) for line in means)
    return Factorial("activation", "loss", tuple(rows), tuple(columns), cells, seeds, (interaction,))


def make_run(arm: str, seed: int, **changes: object) -> dict[str, object]:
    run_id = f"{zlib.crc32(f'{arm} {seed}'.encode('utf-8', 'replace')):08x}"
    row: dict[str, object] = {"run_id": run_id, "dataset": "lesions", "arm": arm, "seed": seed}
    row |= {"status": "done", "score": 0.8 + 0.001 * seed, "dice": 0.8, "iou": 0.7, "epochs": 40, "best_epoch": 31}
    row |= {"seconds": 81.5, "study": "default", "directory": f"lesions-unet-{arm}-s{seed}", "device_type": "cpu"}
    row |= {"host": "machine", "version_segexp": "0.1.0", "git_commit": "a" * 40, "fold": None, "error": ""}
    return row | {"started": "2024-01-01T00:00:00+00:00"} | changes


def make_answers(arms: Sequence[str], points: int = 40) -> tuple[Answer, ...]:
    """Second questions, with panels of every kind."""
    x = tuple(float(n) for n in range(1, points + 1))

    def curves(scale: float) -> tuple[Curve, ...]:
        lines = []
        for n, arm in enumerate(arms):
            y = tuple(scale * (0.85 - 0.4 * math.exp(-v / (5 + n % 5)) + 0.005 * math.sin(v + n)) for v in x)
            lines.append(Curve(arm, x, y, tuple(v - 0.02 for v in y), tuple(v + 0.02 for v in y)))
        return tuple(lines)

    share = tuple((n + 0.5) / 15 for n in range(15))
    reliable = tuple(Curve(arm, share, tuple(v ** (1 + 0.1 * n) for v in share)) for n, arm in enumerate(arms))
    points_of = tuple(Curve(arm, (0.01 * (n + 1), 0.02 * (n + 1)), (0.8, 0.81)) for n, arm in enumerate(arms))
    dice = Panel("val_dice", "validation Dice", "epoch", "Dice", curves(1))
    loss = Panel("val_loss", "validation loss", "epoch", "loss", curves(0.5), log_y=True)
    bins = Panel("reliability", "reliability", "predicted probability", "observed share", reliable, diagonal=True)
    dead = Panel("dead", "dead share and Dice", "dead share", "Dice", points_of, kind="points", log_x=True)
    times = tuple({"arm": arm, "epochs to 95 %": 12.5, "seconds": 40.0, "at the limit": False} for arm in arms)
    errors = tuple({"arm": arm, "NLL": 0.12, "ECE": 0.03} for arm in arms)
    return (
        Answer("convergence", "Convergence", times, (dice, loss), ("bands: least and largest of the seeds",)),
        Answer("calibration", "Calibration", errors, (bins,)),
        Answer("diagnostics", "Diagnostics", (), (dead,), ("no run has a warning",)),
        Answer("ranking", "Ranking stability", errors, ()),
    )


def make_result(n_arms: int = 4, n_seeds: int = 5, n_images: int = 60, blocks: Sequence[Block] = ()) -> Result:
    """Arms against sigmoid under two losses, everything else filled in as well."""
    named = ["sigmoid", "arctan", "normal_cdf", "softsign", *(f"arm_{n}" for n in range(n_arms))][:n_arms]
    means = {arm: 0.81 + 0.012 * math.sin(2.2 * n) for n, arm in enumerate(named)}
    made = tuple(blocks) or (
        make_block(means, "sigmoid", n_images=n_images, loss="dice"),
        make_block({arm: mean + 0.004 for arm, mean in means.items()}, "sigmoid", n_images=n_images, loss="ce"),
    )
    runs = [make_run(arm, seed) for arm in named for seed in range(n_seeds)]
    runs.append(make_run("sigmoid", 98, status="diverged", error="loss is nan in epoch 2", score=NAN, dice=NAN))
    first = made[0].comparisons[0]
    differences = {"lesions": 0.012, "nuclei": 0.004, "glands": -0.002}
    over = make_interval(0.0047), 0.4, ("3 data sets: fewer than 6",)
    p = ((1.0, 0.2, 0.01), (0.2, 1.0, 0.5), (0.01, 0.5, 1.0))
    return Result(
        metric=DICE,
        split="test",
        by=("activation",),
        reference={"activation": "sigmoid"},
        empty_policy="both empty: 1",
        n_runs=len(runs),
        blocks=made,
        over_datasets=(OverDatasets("arctan", "sigmoid", {"loss": "dice"}, differences, "t over data sets", *over),),
        ranks=Ranks({"arctan": 1.4, "normal_cdf": 2.1, "sigmoid": 2.5}, p),
        unscored=(Unscored("0badf00d", "lesions", "sigmoid", "98", "diverged", "loss is nan in epoch 2"),),
        warnings=("4 seeds: exploratory", "runs of two versions of torch"),
        headline=f"With loss=dice, {first.candidate} is {first.verdict}: +1.20 points of Dice over sigmoid, 95 % "
        "interval 0.08 to 2.32.",
        provenance={"segexp": "0.1.0", "hosts": ["machine"], "versions": {"torch": ["2.11.0", "2.12.0"]}, "runs": 21},
        runs=tuple(runs),
    )


def make_pictures(run_dir: Path, dice: Mapping[str, float], classes: int = 1, side: int = 48, seed: int = 0) -> None:
    """examples/, predictions/ and images.csv of a run: discs, found the better the higher the Dice."""
    rows = []
    for folder in ("examples", "predictions"):
        (run_dir / folder).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:side, :side]
    for n, (image_id, value) in enumerate(dice.items()):
        rng = np.random.default_rng([seed, n])
        distance = np.hypot(y - side * (0.4 + 0.03 * n), x - side * 0.5)
        truth = (distance < side / 4).astype(np.uint8)
        image = np.clip(60 + 110 * truth[..., None] + rng.normal(0, 18, (side, side, 3)), 0, 255)
        save(run_dir / "examples" / f"{image_id}.png", image)
        save(run_dir / "examples" / f"{image_id}_reference.png", truth)
        found = 255 / (1 + np.exp((distance - side / 4 * value) / (0.5 + 3 * (1 - value))))
        for c in range(1, classes + 1):
            name = f"{image_id}.png" if classes == 1 else f"{image_id}_class{c}.png"
            save(run_dir / "predictions" / name, found / c)
            rows.append(row("images", split="test", image_id=image_id, class_id=c, dice=value))
    write_table(run_dir / "images.csv", "images", rows)


def save(path: Path, pixels: "np.ndarray") -> None:
    Image.fromarray(np.round(pixels).astype(np.uint8)).save(path)
