"""From run directories to verdicts and the headline: what is compared with what, and what does not change it."""

import csv
import json
import math
import re
import shutil
from dataclasses import make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from fabricated import make_plan, row, sealed
from made_scores import OTHERS, drawn, edit_record, make_arm, make_pair, make_run, only
from messages import mentions, one_mentions
from scipy import stats

from segexp import cli
from segexp.compare.blocks import key_of
from segexp.compare.result import Method, Result
from segexp.compare.statistics import one_sample, two_way
from segexp.compare.verdict import compare
from segexp.config import Config, TrainerConfig, canonical
from segexp.errors import UsageError
from segexp.losses import LOSSES
from segexp.records import flatten, write_table
from segexp.records.collected import collect, read_collected
from segexp.records.runs import column_of
from segexp.registry import NOT_NEGATIVE, Option, Since
from segexp.report.formats import as_json, comparisons_csv


def test_a_study_is_compared_by_the_procedure_of_the_kernel(tmp_path: Path):
    candidate_KN, reference_KN = (np.round(x * 1e5) / 1e5 for x in make_pair(tmp_path / "study", effect=0.02))
    result = compare([tmp_path])
    found = only(result)
    expected = two_way(candidate_KN - reference_KN).interval
    assert found.method == Method.TWO_WAY
    assert found.paired
    assert (found.overall.mean, found.overall.se) == pytest.approx((expected.mean, expected.se), rel=1e-9)
    assert (found.overall.p, found.overall.low) == pytest.approx((expected.p, expected.low), rel=1e-9)
    here = one_sample((candidate_KN - reference_KN).mean(axis=1))
    assert found.test_set.high == pytest.approx(here.high, rel=1e-9)
    assert (found.candidate, found.reference, found.verdict) == ("arctan", "sigmoid", "better")
    assert (found.n_seeds, found.n_images, found.n_groups) == (5, 60, 60)
    for part in ("arctan", "better", "+2.00", "[+1.49, +2.51]", found.scope, "p < 0.001", "5 seeds x 60 images"):
        assert part in result.headline
    best, other = result.blocks[0].ranking
    assert (best.arm, best.n_seeds) == ("arctan", 5)
    assert best.mean == pytest.approx(candidate_KN.mean())
    assert other.seed_sd == pytest.approx(reference_KN.mean(axis=1).std(ddof=1))
    assert found.candidate_N == pytest.approx(candidate_KN.mean(axis=0))
    assert result.warnings == ()


def test_runs_that_had_not_converged_are_the_first_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Those whose best epoch is the last one allowed; not those that patience stopped."""
    study = tmp_path / "study"
    make_pair(study, effect=0.02, summary={"best_epoch": 4})
    for arm in ("arctan", "sigmoid"):
        edit_record(study / f"run-{arm}0", summary={"best_epoch": 2})
        edit_record(study / f"run-{arm}1", summary={"best_epoch": 3, "epochs": 3})
    for run_dir, rise in (("arctan2", 0.01), ("arctan3", 0.03), ("arctan0", 0.5)):
        rows = [row("epochs", epoch=e, split="val", dice=0.1 * (e == 1) + rise * e) for e in range(1, 5)]
        write_table(study / f"run-{run_dir}" / "epochs.csv", "epochs", rows)
    result = compare([study])
    assert (result.convergence["runs"], result.convergence["best_is_last"]) == (10, 6)
    assert result.convergence["slope"] == pytest.approx(0.02)
    assert mentions(result.warnings[0], "6 of 10 runs", "+2.00 points", "trainer.epochs")
    assert cli.main(["compare", str(study)]) == 0
    assert "warning: 6 of 10 runs" in "\n".join(capsys.readouterr().out.splitlines()[:6])
    assert cli.main(["compare", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["convergence"]["best_is_last"] == 6


def test_second_runs_of_an_arm_and_seed_are_told_in_one_line(tmp_path: Path):
    """As after a change of the code: another run, the same configuration."""
    make_pair(tmp_path / "a", effect=0.02)
    expected = only(compare([tmp_path]))
    make_pair(tmp_path / "z", prefix="again")
    result = compare([tmp_path])
    found = only(result)
    assert (found.overall, found.n_seeds) == (expected.overall, 5)
    (warning,) = result.warnings
    assert mentions(warning, "10 repeated runs", *(f"againarctan{seed}" for seed in range(3)))
    assert [arm.n_unfinished for arm in result.blocks[0].ranking] == [0, 0]


def test_columns_are_shown_as_the_keys_they_come_from():
    keys = flatten(Config())
    assert [key_of(column_of(key)) for key in keys] == list(keys)


def test_groups_are_averaged_before_anything_else(tmp_path: Path):
    groups = [f"patient{n // 3}" for n in range(60)]
    candidate_KN, reference_KN = make_pair(tmp_path / "study", effect=0.01, groups=groups)
    found = only(compare([tmp_path]))
    differences = (candidate_KN - reference_KN).reshape(5, 20, 3).mean(axis=2)
    assert (found.n_images, found.n_groups) == (60, 20)
    assert found.overall.se == pytest.approx(two_way(differences).interval.se, rel=1e-3)


def _numbers(result: Result) -> Any:
    found = only(result)
    return (found.overall, found.test_set, found.p_holm, found.verdict, found.wins, found.variance)


def test_the_order_of_rows_and_of_paths_changes_nothing_and_that_of_arms_the_sign(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    before = _numbers(compare([tmp_path]))
    one, other = (only(compare([tmp_path], reference=f"activation={r}")) for r in ("sigmoid", "arctan"))
    assert (one.overall.mean, one.overall.low) == pytest.approx((-other.overall.mean, -other.overall.high))
    assert (one.verdict, other.verdict) == ("better", "worse")
    assert one.overall.p == pytest.approx(other.overall.p)
    for path in tmp_path.glob("*/*/images.csv"):
        header, *rows = path.read_text().splitlines()
        sealed(path, "\n".join([header, *reversed(rows)]) + "\n")
    assert _numbers(compare([tmp_path])) == before
    (tmp_path / "study").rename(tmp_path / "moved")
    runs = sorted((tmp_path / "moved").glob("run-*"))
    assert _numbers(compare([*runs[5:], *runs[:5]])) == before


def test_relabelling_and_units_change_nothing(tmp_path: Path):
    """Names of images and seeds, and a score half as large everywhere, leave p as it is."""
    a_KN, b_KN = drawn(5, 60, 0.01)
    for study, scale, first_seed in (("one", 1.0, 0), ("half", 0.5, 7)):
        for arm, values_KN in (("arctan", a_KN), ("sigmoid", b_KN)):
            for k, values_N in enumerate(values_KN):
                names = [f"{study}{n:03d}x" for n in range(60)]
                seed = first_seed + k
                rounded = np.round(values_N * 1e4) / 1e4 * scale
                make_run(tmp_path / study, f"{arm}{seed}", rounded, {"activation.name": arm}, seed, names=names)
    one, half = (only(compare([tmp_path / study], rope=rope)) for study, rope in (("one", 1.0), ("half", 0.5)))
    assert half.overall.p == pytest.approx(one.overall.p, rel=1e-6)
    assert half.overall.mean == pytest.approx(one.overall.mean / 2, rel=1e-6)
    assert half.verdict == one.verdict


def test_an_arm_that_has_nothing_to_do_with_it_changes_holm_only(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.008)
    before = only(compare([tmp_path]))
    third, _ = drawn(5, 60, 0.0, rng=9)
    make_arm(tmp_path / "study", "erf", third)
    (block,) = compare([tmp_path]).blocks
    (after,) = [c for c in block.comparisons if c.candidate == "arctan"]
    assert after.overall == before.overall
    assert after.test_set == before.test_set
    assert after.p_holm > before.p_holm


def test_candidates_are_held_against_the_reference_at_each_level_of_the_rest(tmp_path: Path):
    dice = make_pair(tmp_path / "study", effect=0.02, prefix="d")
    bce = make_pair(tmp_path / "study", effect=-0.02, prefix="b", config={"loss.name": "bce"}, rng=1)
    result = compare([tmp_path])
    (block,) = result.blocks
    pairs = {(c.candidate, c.reference): c.verdict for c in block.comparisons}
    assert pairs == {("arctan + dice", "sigmoid + dice"): "better", ("arctan + bce", "sigmoid + bce"): "worse"}
    assert result.reference == {"activation": "sigmoid"}
    against_one = compare([tmp_path], reference="activation=sigmoid,loss=bce").blocks[0].comparisons
    assert {c.reference for c in against_one} == {"sigmoid + bce"}
    assert len(against_one) == 3
    # What a factor gains may depend on the other.
    (table,) = block.factorials
    assert (table.row_factor, table.column_factor, table.rows) == ("activation", "loss", ("arctan", "sigmoid"))
    assert table.means[0][table.columns.index("dice")] == pytest.approx(dice[0].mean(), abs=1e-5)
    assert table.seeds == ((5, 5), (5, 5))
    (found,) = table.interactions
    assert (found.level, found.other_level) == ("arctan", "dice")
    expected = two_way((dice[0] - dice[1]) - (bce[0] - bce[1])).interval
    assert (found.interval.mean, found.interval.se) == pytest.approx((expected.mean, expected.se), rel=1e-3)
    assert found.p_holm < 0.05


def test_other_keys_that_vary_part_the_runs_and_holm_counts_all(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.006, prefix="s")
    alone = only(compare([tmp_path]))
    make_pair(tmp_path / "study", effect=0.0, prefix="f", config={"optimizer.lr": 0.01}, rng=5)
    result = compare([tmp_path])
    assert [block.conditions for block in result.blocks] == [{"optimizer.lr": "0.002"}, {"optimizer.lr": "0.01"}]
    assert [len(block.comparisons) for block in result.blocks] == [1, 1]
    (found,) = result.blocks[0].comparisons
    assert found.overall.p == alone.overall.p
    assert found.p_holm == pytest.approx(2 * alone.p_holm)
    by_rate = compare([tmp_path], by=["optimizer.lr"], reference="optimizer.lr=0.002")
    assert {(c.candidate, c.reference) for b in by_rate.blocks for c in b.comparisons} == {
        ("optimizer.lr=0.01", "optimizer.lr=0.002")
    }
    arms = [block.conditions["activation.name"] for block in by_rate.blocks]
    assert arms == ["arctan", "sigmoid"]


def test_values_may_be_written_otherwise_and_several_at_once(tmp_path: Path):
    make_pair(tmp_path / "s", n_images=8, config={"loss.name": "ce"})
    make_pair(tmp_path / "s", n_images=8, prefix="d", config={"optimizer.lr": 0.01})
    make_arm(tmp_path / "s", "laplace", drawn(5, 8)[0])
    assert compare([tmp_path], where={"loss": "bce"}, by=["activation"]).n_runs == 10
    by_loss = compare([tmp_path], reference="loss=nll", where={"optimizer.lr": "0.01,2e-3", "activation": "arctan"})
    assert by_loss.reference == {"loss": "ce"}
    by_rate = compare([tmp_path], by=["optimizer.lr"], reference="optimizer.lr=2e-3")
    assert by_rate.reference == {"optimizer.lr": "0.002"}
    assert compare([tmp_path], where={"optimizer.lr": "1e-2"}).n_runs == 10
    some = compare([tmp_path], where={"loss": "ce", "activation": "sigmoid, arctan", "seed": "0,1,2,3"})
    assert {arm.arm: arm.n_seeds for arm in some.blocks[0].ranking} == {"arctan": 4, "sigmoid": 4}
    with pytest.raises(UsageError, match=r"activation=laplac; .* laplace"):
        compare([tmp_path], where={"activation": "sigmoid,laplac"})


def test_options_are_named_where_they_vary(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.0, prefix="p", config={"activation.slope": 1.0})
    steep, _ = drawn(5, 60, rng=3)
    make_arm(tmp_path / "study", "arctan", steep, {"activation.slope": 2.0}, "steep")
    (block,) = compare([tmp_path]).blocks
    assert {arm.arm for arm in block.ranking} == {"sigmoid", "arctan slope=1.0", "arctan slope=2.0"}
    assert len(block.comparisons) == 2


def test_where_a_score_is_lower_better_the_verdict_turns(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.0)
    for path in tmp_path.glob("study/run-arctan*/images.csv"):
        sealed(path, path.read_text().replace(",2.0,0.1,", ",1.5,0.1,"))
    found = only(compare([tmp_path], metric="hd95"))
    assert found.overall.mean == -0.5
    assert found.verdict == "no test"  # not the least variation: no evidence of certainty
    assert found.wins == 5
    noise = np.random.default_rng(0)
    for path in tmp_path.glob("study/run-*/images.csv"):
        noisy = partial(
            re.sub, r",([\d.]+),0.1,", lambda hd95: f",{float(hd95[1]) + 0.1 * noise.standard_normal()},0.1,"
        )
        sealed(path, noisy(path.read_text()))
    found = only(compare([tmp_path], metric="hd95"))
    assert found.verdict == "better"
    assert math.isnan(compare([tmp_path], metric="hd95").metric.rope)


def test_a_score_without_values_per_image_speaks_of_this_test_set(tmp_path: Path):
    scores = np.random.default_rng(0).normal([[0.95], [0.9]], 0.01, (2, 6))
    for arm, values in zip(("arctan", "sigmoid"), scores, strict=True):
        for seed, auroc in enumerate(values):
            make_arm(tmp_path / "study", arm, [np.full(60, 0.5)], first_seed=seed, summary={"auroc": float(auroc)})
    result = compare([tmp_path], metric="auroc")
    found = only(result)
    expected = one_sample(scores[0] - scores[1])
    assert (found.method, found.scope) == (Method.OVER_SEEDS, Method.OVER_SEEDS.scope)
    assert found.scope in result.headline
    assert found.test_set.p == pytest.approx(expected.p)
    assert math.isnan(found.overall.p)
    assert found.verdict == "better"


@pytest.mark.parametrize(("n_seeds", "note"), [(2, "at least 3"), (3, "exploratory"), (4, "exploratory"), (5, "")])
def test_few_seeds(tmp_path: Path, n_seeds: int, note: str):
    make_pair(tmp_path / "study", n_seeds=n_seeds, effect=0.02)
    result = compare([tmp_path])
    found = only(result)
    assert (found.verdict == "no test") == math.isnan(found.overall.p) == (n_seeds < 3)
    assert [note in warning for warning in found.warnings] == [True] * bool(note)
    assert ("exploratory" in result.headline, "2 seeds" in result.headline) == (note == "exploratory", n_seeds == 2)
    assert not math.isnan(found.overall.mean)


def test_identical_arms(tmp_path: Path):
    dice_KN, _ = drawn(5, 60)
    for arm in ("arctan", "sigmoid"):
        make_arm(tmp_path / "study", arm, dice_KN)
    found = only(compare([tmp_path]))
    assert (found.overall.p, found.p_holm, found.verdict) == (1.0, 1.0, "equivalent")
    assert any("identical" in note for note in found.warnings)


def test_unequal_seeds_and_images_are_dropped_and_told(tmp_path: Path):
    candidate_KN, reference_KN = drawn(6, 60, 0.02)
    make_arm(tmp_path / "study", "arctan", candidate_KN)
    make_arm(tmp_path / "study", "sigmoid", reference_KN[:5, :55])
    result = compare([tmp_path])
    found = only(result)
    assert (found.n_seeds, found.n_images) == (5, 55)
    assert mentions(found.dropped, "seed 5", "candidate", "5 images")
    assert any("unequal seeds" in warning for warning in result.blocks[0].warnings)


@pytest.mark.parametrize(("change", "told"), [
    ({"init_sha": "other"}, "initial weights differ for seed 0, 1, 2, 3, 4"),
    ({"order_sha": "other"}, "batch order differ"),
])  # fmt: skip
def test_runs_that_began_differently_are_no_pairs(tmp_path: Path, change: dict[str, Any], told: str):
    candidate_KN, reference_KN = drawn(5, 60, 0.03)
    make_arm(tmp_path / "study", "arctan", candidate_KN, **change)
    make_arm(tmp_path / "study", "sigmoid", reference_KN)
    result = compare([tmp_path])
    found = only(result)
    assert (found.method, found.scope, found.paired) == (Method.UNPAIRED, Method.UNPAIRED.scope, False)
    assert found.scope in result.headline
    assert math.isnan(found.overall.p)
    assert found.test_set.mean == pytest.approx(float((candidate_KN - reference_KN).mean()), abs=1e-5)
    assert any(told in note for note in found.warnings)


def test_other_splits_are_never_paired(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    make_pair(tmp_path / "study", effect=0.02, rng=1, prefix="o", split_sha="6" * 64, config={"split.seed": 1})
    result = compare([tmp_path])
    assert len(result.blocks) == 2
    assert all(c.n_seeds == 5 for block in result.blocks for c in block.comparisons)
    make_pair(tmp_path / "same", effect=0.02, rng=1, prefix="p", split_sha="7" * 64)
    named = [b.conditions.get("split") for b in compare([tmp_path / "same", tmp_path / "study"]).blocks]
    assert named == ["55555555", "66666666", "77777777"]


def test_failed_and_diverged_runs_are_part_of_the_table(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    make_run(tmp_path / "study", "bad", None, {"activation.name": "arctan"}, 5, status="diverged")
    make_run(tmp_path / "study", "broken", None, {"activation.name": "arctan"}, 6, status="failed")
    result = compare([tmp_path])
    (arm,) = [a for a in result.blocks[0].ranking if a.arm == "arctan"]
    assert (arm.n_seeds, arm.n_failed, arm.n_diverged) == (5, 1, 1)
    assert arm.mean_failures_zero == pytest.approx(arm.mean * 5 / 7)
    assert {(u.run_id, u.state) for u in result.unscored} == {("bad", "diverged"), ("broken", "failed")}
    assert "loss is nan" in result.unscored[0].reason
    assert one_mentions(result.blocks[0].warnings, "1 of 12", "diverged")


def test_the_verdict_may_depend_on_empty_masks(tmp_path: Path):
    """Where the reference is empty one arm raises false alarms: only counting empty masks shows it."""
    for arm, false_alarms in (("arctan", 0), ("sigmoid", 40)):
        rng = np.random.default_rng(1)
        base_N = rng.uniform(0.7, 0.9, 60)
        for seed in range(5):
            dice_N = np.round(base_N + rng.normal(0, 0.01, 60), 4)
            run = make_run(tmp_path / "study", f"{arm}{seed}", dice_N, {"activation.name": arm}, seed)
            rows = run.joinpath("images.csv").read_text()
            for n in range(40):
                alarm = n < false_alarms - seed
                dice = "0.0" if alarm else ""
                rows += (
                    f"test,e{n:03d}x,1,,512,512,262144,0,{9 * alarm},0,{9 * alarm},0,{dice},{dice},,,0.1,0.05{OTHERS}\n"
                )
            sealed(run / "images.csv", rows)
            edit_record(run, n_rows_expected={"images": 100}, summary={"n_test": 100})
    found = only(compare([tmp_path]))
    assert found.n_images == 60
    assert any("metrics.empty_policy=both_empty_one" in w and w.endswith(": better") for w in found.warnings)


@pytest.mark.parametrize(("summary", "config", "told"), [
    ({"frac_tie": 0.02}, {}, ("2.00%", "tie")),
    ({"frac_clipped": 0.5}, {}, ("50.00%", "clipped")),
    ({"select_metric": "test_dice"}, {}, ("epoch", "test images")),
    ({"epochs": 4}, {"trainer.patience": 3}, ("10 of 10", "trainer.epochs", "trainer.patience")),
])  # fmt: skip
def test_what_the_records_warn_of(
    tmp_path: Path, summary: dict[str, Any], config: dict[str, Any], told: tuple[str, ...]
):
    make_pair(tmp_path / "study", effect=0.02, summary=summary, config=config)
    assert any(mentions(w, *told) for w in compare([tmp_path]).blocks[0].warnings)


@pytest.mark.parametrize(("older", "told"), [(0, False), (3, True), (10, False)])
def test_average_precision_of_earlier_versions_is_not_mixed_in_silence(tmp_path: Path, older: int, told: bool):
    """Runs of earlier versions have no ap_error. Runs without an ap do not count."""
    for n, arm in enumerate(("arctan", "sigmoid")):
        for seed, dice_N in enumerate(drawn(5, 30, 0.02)[n]):
            known = {} if 5 * n + seed < older else {"ap_error": 0.0}
            summary = {"ap": 0.9 + 0.01 * seed, **known}
            make_run(tmp_path / "study", f"{arm}{seed}", dice_N, {"activation.name": arm}, seed, summary=summary)
    make_run(tmp_path / "study", "none", None, {"activation.name": "sigmoid"}, 9, status="diverged")
    for metric, expected in (("ap", told), ("dice", False)):
        warnings = compare([tmp_path], metric=metric).blocks[0].warnings
        assert any(mentions(w, "ap of 3 of 10", "repeat") for w in warnings) == expected


def test_pairing_that_no_record_tells_is_assumed_and_told(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02, summary={"order_sha": ""})
    found = only(compare([tmp_path]))
    assert found.method == Method.TWO_WAY
    assert one_mentions(found.warnings, "10 of 10", "pairing is assumed")


def test_pairing_that_one_arm_does_not_tell_is_unknown_and_mixed_code_is_told(tmp_path: Path):
    make_pair(tmp_path / "study", n_images=20, effect=0.02)
    for path in tmp_path.glob("study/run-arctan*"):
        edit_record(path, init_sha="", summary={"init_sha": ""}, git={"commit": "b" * 40}, device={"type": "cuda"})
    result = compare([tmp_path])
    for mixed in ("aaaaaaaaaaaa, bbbbbbbbbbbb", "cpu, cuda"):
        assert any(mixed in w for w in result.blocks[0].warnings)
    found = only(result)
    assert found.method == Method.UNPAIRED
    assert one_mentions(found.warnings, "not recorded", "initial weights", *range(5))
    told = [*result.warnings, *result.blocks[0].warnings, *found.warnings]
    assert not any("assumed" in note or "differ" in note for note in told)


def test_compiled_and_uncompiled_losses_are_told_of_those_that_record_it(tmp_path: Path):
    make_pair(tmp_path / "study", n_images=20, effect=0.02)
    paths = sorted(tmp_path.glob("study/run-*"))
    for compiled, warned in ((True, False), (False, True)):
        edit_record(paths[0], device={"type": "cpu", "compiled": compiled})
        edit_record(paths[1], device={"type": "cpu", "compiled": True})
        collect(tmp_path / "study")
        for where in (tmp_path / "study", tmp_path / "study" / "runs.csv"):
            assert any("uncompiled" in line for line in compare([where]).blocks[0].warnings) == warned
    assert str(read_collected(tmp_path / "study" / "runs.csv")["compiled"].dtype) == "boolean"


def test_slices_without_groups_are_told(tmp_path: Path):
    names = [f"patient{n // 6:02d}_{n % 6:03d}" for n in range(60)]
    make_pair(tmp_path / "one", effect=0.02, names=names)
    assert one_mentions(compare([tmp_path / "one"]).blocks[0].warnings, "slices", "10 volumes")
    make_pair(tmp_path / "two", effect=0.02, names=names, groups=[name[:9] for name in names])
    assert not any("slices" in w for w in compare([tmp_path / "two"]).blocks[0].warnings)
    make_pair(tmp_path / "three", effect=0.02, names=[f"img_{n:03d}" for n in range(60)])
    assert not any("slices" in w for w in compare([tmp_path / "three"]).blocks[0].warnings)
    for table in (tmp_path / "one").glob("*/images.csv"):
        lines = table.read_text().splitlines()
        sealed(table, "\n".join(line.replace(",512,", f",{n},", 1) for n, line in enumerate(lines)) + "\n")
    assert not any("slices" in w for w in compare([tmp_path / "one"]).blocks[0].warnings), "of different sizes"


def test_candidates_on_fewer_data_sets_share_holm_with_the_others(tmp_path: Path):
    for d in range(8):
        shas: dict[str, Any] = {"dataset_sha": f"{d}" * 64, "split_sha": f"{d}" * 64}
        config = {"dataset.name": f"set{d}"}
        make_pair(tmp_path / f"d{d}", n_seeds=3, n_images=20, effect=0.02, rng=d, prefix=f"d{d}", config=config, **shas)
        make_arm(tmp_path / f"d{d}", "erf", drawn(3, 20, 0.02, rng=d)[0] if d else [], config, f"d{d}", **shas)
    result = compare([tmp_path / f"d{d}" for d in range(8)])
    assert {o.candidate: len(o.differences) for o in result.over_datasets} == {"arctan": 8, "erf": 7}
    assert {o.method for o in result.over_datasets} == {"Wilcoxon"}
    assert mentions(result.headline, "8 data sets", "arctan is better", "sigmoid", "Dice")
    assert all(o.p_holm > o.interval.p for o in result.over_datasets if o.candidate == "arctan")
    assert one_mentions(result.warnings, "7 of 8", "erf", "sigmoid")


def test_data_sets_at_other_sizes_are_other_conditions(tmp_path: Path):
    """What varies in one data set is a condition on all; nothing is mixed, nothing vanishes."""
    for d, size, effect in (("a", 64, 0.02), ("a", 128, -0.02), ("b", 64, 0.02)):
        config = {"dataset.name": d, "dataset.image_size": size}
        shas: dict[str, Any] = {"dataset_sha": d * 64, "split_sha": d * 64}
        make_pair(tmp_path / f"{d}{size}", effect=effect, prefix=f"{d}{size}", config=config, **shas)
    result = compare([tmp_path / name for name in ("a64", "a128", "b64")])
    sizes = [(b.dataset, b.conditions["dataset.image_size"]) for b in result.blocks]
    assert sizes == [("a", "64"), ("a", "128"), ("b", "64")]
    (over,) = result.over_datasets
    assert over.conditions == {"dataset.image_size": "64"}
    assert list(over.differences.values()) == pytest.approx([0.02, 0.02], abs=0.005)


def test_data_of_one_name_are_told_apart(tmp_path: Path):
    for sha in ("a", "b"):
        make_pair(tmp_path / sha, effect=0.02, prefix=sha, dataset_sha=sha * 64)
    names = [b.dataset for b in compare([tmp_path / "a", tmp_path / "b"]).blocks]
    assert names == ["lesions aaaaaaaa", "lesions bbbbbbbb"]


def test_a_key_that_older_runs_lack_parts_nothing(tmp_path: Path):
    candidate_KN, reference_KN = drawn(5, 60, 0.02)
    make_arm(tmp_path / "s", "arctan", candidate_KN, {"trainer.new": 1})
    make_arm(tmp_path / "s", "sigmoid", reference_KN)
    assert only(compare([tmp_path])).verdict == "better"


def test_a_run_older_than_an_option_has_its_value_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ema = ("ema", Annotated[float, NOT_NEGATIVE, Since(0.0)], 0.9)
    monkeypatch.setitem(canonical.SECTIONS, "trainer", make_dataclass("Later", [ema], bases=(TrainerConfig,)))
    option = Option("border", bool, True, since=Since(False))
    monkeypatch.setitem(LOSSES, "dice", replace(LOSSES["dice"], options=(*LOSSES["dice"].options, option)))
    make_pair(tmp_path / "s", 3, 8)
    for n, (rate, border) in enumerate(((0.0, False), (0.5, False), (0.0, True))):
        config = {"trainer.ema": rate, "loss.border": border}
        make_pair(tmp_path / "s", 3, 8, arms=("erf", "tanh"), prefix=f"later{n}", config=config)
    collect(tmp_path / "s", tmp_path / "tables")
    for path in (tmp_path / "s", tmp_path / "tables"):
        result = compare([path], by=["activation"], reference="activation=erf")
        assert {tuple(b.conditions.values()): sorted(arm.arm for arm in b.ranking) for b in result.blocks} == {
            ("false", "0.0"): ["arctan", "erf", "sigmoid", "tanh"],
            ("false", "0.5"): ["erf", "tanh"],
            ("true", "0.0"): ["erf", "tanh"],
        }
    assert compare([tmp_path / "s"], by=["activation"], where={"loss.border": "false"}).n_runs == 18


def test_hidden_and_output_activations_have_a_question_each(tmp_path: Path):
    for n, hidden in enumerate(("native", "gelu")):
        make_pair(tmp_path / "s", effect=0.02, prefix=hidden, rng=n, config={"hidden_activation.name": hidden})
    result = compare([tmp_path])
    assert result.reference == {"activation": "sigmoid", "hidden_activation": "native"}
    assert {(c.candidate, c.reference) for c in result.blocks[0].comparisons} == {
        ("native / arctan", "native / sigmoid"),
        ("gelu / arctan", "gelu / sigmoid"),
        ("gelu / sigmoid", "native / sigmoid"),
        ("gelu / arctan", "native / arctan"),
    }


@pytest.mark.parametrize(("key", "value", "pairs", "told"), [
    ("hidden_activation.name", "gelu", ["gelu / arctan", "native / arctan"], ["gelu / arctan: "]),
    ("optimizer.lr", 0.01, ["arctan"], ["arctan: ", " on lesions, optimizer.lr=0.01"]),
])  # fmt: skip
def test_an_arm_without_its_reference_is_told(tmp_path: Path, key: str, value: Any, pairs: list[str], told: list[str]):
    """In a block of its own; and gelu / arctan has native / arctan to be held against, but no gelu / sigmoid."""
    make_pair(tmp_path / "s", n_seeds=3, n_images=8, prefix="n")
    make_pair(tmp_path / "s", n_seeds=3, n_images=8, prefix="g", config={key: value})
    for run in tmp_path.glob("s/run-gsigmoid*"):
        shutil.rmtree(run)
    result = compare([tmp_path])
    assert sorted(c.candidate for block in result.blocks for c in block.comparisons) == pairs
    (warning,) = result.warnings
    assert all(part in warning for part in (*told, "activation=sigmoid"))


def test_interactions_that_agree_but_for_rounding_are_none(tmp_path: Path):
    candidate_KN, reference_KN = drawn(5, 60, 0.0)
    for loss, shift in (("dice", 0.0), ("ce", 0.1)):
        for arm, dice_KN in (("arctan", candidate_KN), ("sigmoid", reference_KN)):
            make_arm(tmp_path / "s", arm, np.round(dice_KN, 4) - shift, {"loss.name": loss}, loss)
    (found,) = compare([tmp_path]).blocks[0].factorials[0].interactions
    assert (found.interval.p, found.p_holm) == (1.0, 1.0)
    assert (found.reference, found.other_reference, found.n_seeds) == ("sigmoid", "ce", 5)


def test_the_usual_reference_is_that_of_the_name_too(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    found = only(compare([tmp_path], by=["activation.name"]))
    assert (found.reference, found.verdict) == ("activation.name=sigmoid", "better")


def test_without_the_usual_reference_one_is_asked_for(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02, arms=("arctan", "erf"))
    result = compare([tmp_path])
    assert result.blocks[0].comparisons == ()
    assert len(result.blocks[0].ranking) == 2
    assert "--reference activation=arctan" in result.headline
    assert only(compare([tmp_path], reference="activation=erf")).verdict == "better"


def test_a_tuned_run_that_is_the_fixed_one_counts_in_both(tmp_path: Path):
    study = tmp_path / "study"
    fixed = make_pair(study, effect=0.02)
    tuned_KN, _ = drawn(5, 60, 0.03, rng=4)
    make_arm(study, "arctan", tuned_KN, {"optimizer.lr": 0.01, "tuned": str(study / "tuned.yaml")}, "t")
    arms = [
        {"hidden_activation": "native", "activation": name, "loss": "dice", "lr": rate}
        for name, rate in (("arctan", 0.01), ("sigmoid", 0.002))
    ]
    (study / "tuned.yaml").write_text(json.dumps({"arms": arms, "context": {}}))
    result = compare([tmp_path])
    blocks = {block.conditions["optimizer.lr"]: block for block in result.blocks}
    assert set(blocks) == {"0.002", "tuned"}
    (of_tuned,) = blocks["tuned"].comparisons
    assert of_tuned.overall.mean == pytest.approx(float((tuned_KN - fixed[1]).mean()), abs=1e-5)
    assert result.n_runs == 15
    (study / "tuned.yaml").unlink()
    assert sum("tuned.yaml not found" in w for w in compare([tmp_path]).warnings) == 1


def overall_by_rate(result: Result) -> dict[str, Any]:
    return {block.conditions["optimizer.lr"]: c.overall for block in result.blocks for c in block.comparisons}


def test_a_tuned_run_that_is_a_fixed_one_in_another_study_counts_in_both(tmp_path: Path):
    tuning, tuned = tmp_path / "mine-tuning", tmp_path / "mine"
    for n, (prefix, rate) in enumerate((("a", 0.01), ("b", 0.1))):
        both = make_pair(tuning, effect=0.02, rng=n, prefix=prefix, config={"optimizer.lr": rate})
        make_arm(tuned, ("arctan", "sigmoid")[n], both[n], {"optimizer.lr": rate, "tuned": "/lost/tuned.yaml"}, prefix)
    collect(tmp_path, tmp_path / "tables")
    for paths in ([tuned, tuning], [tuning, tuned], [tmp_path / "tables"], [tmp_path / "tables", tuning]):
        result = compare(paths)
        found = overall_by_rate(result)
        assert (result.n_runs, "tuned" in found) == (20, True)
        assert {rate: found[rate] for rate in ("0.01", "0.1")} == overall_by_rate(compare([tuning]))
    # Where rates make arms, no run stands for two or repeats itself.
    assert not any("repeated" in warning for warning in compare([tmp_path], by=["optimizer.lr", "activation"]).warnings)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("reused", [True, False])
def test_rates_that_were_tuned_again_are_not_mixed_with_earlier_ones(known: bool, reused: bool, tmp_path: Path):
    """The rate counts that the file holds now, or where that is lost the newest; such a run may have a fixed rate."""
    study, file = tmp_path / "study", tmp_path / "elsewhere.yaml"
    arctan_KN, sigmoid_KN = drawn(5, 60, 0.02)
    make_arm(study, "sigmoid", sigmoid_KN, {"optimizer.lr": 0.01, "tuned": str(file)}, "s")
    make_arm(
        study, "arctan", arctan_KN[:3] - 0.1, {"optimizer.lr": 0.01, "tuned": str(file)}, "a", started="2024-01-01"
    )
    again = {"optimizer.lr": 0.1} if reused and known else {"optimizer.lr": 0.1, "tuned": str(file)}
    make_arm(study, "arctan", arctan_KN, again, "b", started="2024-01-02")
    if known:
        rates = (("arctan", 0.1), ("sigmoid", 0.01))
        arms = [{"hidden_activation": "native", "activation": arm, "loss": "dice", "lr": lr} for arm, lr in rates]
        file.write_text(json.dumps({"arms": arms, "context": {"dataset.name": "lesions"}}))
    result = compare([study])
    assert overall_by_rate(result)["tuned"].mean == pytest.approx(float((arctan_KN - sigmoid_KN).mean()), abs=1e-5)
    assert one_mentions(result.warnings, "3 runs of rates that were tuned before left out")


@pytest.mark.parametrize(("study", "config"), [
    ("b", {"dataset.name": "nuclei"}), ("a", {"dataset.name": "nuclei"}), ("a", {"optimizer.name": "sgd"}),
])  # fmt: skip
def test_runs_that_nobody_tuned_count_once(study: str, config: dict[str, Any], tmp_path: Path):
    """Their rate is, by chance, the one that was found elsewhere."""
    names = ("arctan", "sigmoid")
    arms = [{"hidden_activation": "native", "activation": name, "loss": "dice", "lr": 0.01} for name in names]
    (tmp_path / "tuned.yaml").write_text(json.dumps({"arms": arms, "context": {"dataset.name": "lesions"}}))
    of_all = {"optimizer.lr": 0.01, "optimizer.name": "adamw"}
    make_pair(tmp_path / "a", prefix="t", config={**of_all, "tuned": str(tmp_path / "tuned.yaml")})
    sha = ("d" if "optimizer.name" in config else "e") * 64
    make_pair(tmp_path / study, prefix="f", config={**of_all, **config}, dataset_sha=sha)
    assert len(compare([tmp_path]).blocks) == 2


def test_a_tuned_run_that_a_sweep_has_at_a_fixed_rate_counts_in_both(tmp_path: Path):
    _, sigmoid_KN = make_pair(tmp_path, config={"optimizer.lr": 0.01})
    make_arm(tmp_path, "sigmoid", sigmoid_KN, {"optimizer.lr": 0.1, "tuned": "/lost/tuned.yaml"}, "t")
    for run_dir in tmp_path.glob("run-arctan*"):
        edit_record(run_dir, config={"tuned": "/lost/tuned.yaml"})
    assert set(overall_by_rate(compare([tmp_path]))) == {"tuned"}
    for name, tuned in (("0", "/lost/tuned.yaml"), ("1", None), ("2", "/lost/tuned.yaml")):
        path = make_plan(tmp_path, *(f"arctan{seed}" for seed in range(5)), name=name)
        plan = json.loads(path.read_text())
        plan["runs"] = [one | {"config": one["config"] | {"tuned": tuned}} for one in plan["runs"]]
        path.write_text(json.dumps(plan))
    assert set(overall_by_rate(compare([tmp_path]))) == {"0.01", "tuned"}


@pytest.mark.parametrize(("words", "told"), [
    (["--by", "activatoin"], "no run has the key 'activatoin'; did you mean activation"),
    (["--by", "seed"], "--by seed"),
    (["--by", "backbone"], "only one arm, backbone=resnet18"),
    (["--reference", "loss=dice"], "(activation); `segexp compare` takes other keys with --by"),
    (["--metric", "dise"], "unknown metric 'dise'; did you mean dice?"),
    (["--rope", "-1"], "0 or more"),
    (["--split", "train"], "test or val"),
    (["--split", "val", "--metric", "auroc"], "measured on both: dice, iou, nsd"),
    (["--where", "activation"], "is not KEY=VALUE"),
    (["--where", "loss=ce", "--where", "loss=dice"], "no run has both"),
    (["--questions", "callibration"], "did you mean calibration?"),
    (["--csv", "--questions", "cost"], "--json"),
])  # fmt: skip
def test_bad_usage_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str):
    make_pair(tmp_path / "study", n_seeds=3)
    assert cli.main(["compare", str(tmp_path), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert captured.err.count("\n") == 1


def test_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_pair(tmp_path / "study", effect=0.02)
    make_pair(tmp_path / "study", effect=0.0, prefix="b", config={"loss.name": "bce"}, rng=1)
    shown = {}
    for form, *more in ([""], ["--json", "--questions", "objects"], ["--csv"], ["--markdown"], ["--latex"]):
        assert cli.main(["compare", str(tmp_path), *([form] if form else []), *more]) == 0
        shown[form] = capsys.readouterr().out
    told = json.loads(shown["--json"])
    assert told["questions"][0]["answers"][0]["name"] == "objects"
    assert told["blocks"][0]["comparisons"][0]["candidate"] in ("arctan + dice", "arctan + bce")
    rows = list(csv.DictReader(shown["--csv"].splitlines()))
    assert {row["verdict"] for row in rows} >= {"better"}
    assert float(rows[0]["p_holm"]) == pytest.approx(told["blocks"][0]["comparisons"][0]["p_holm"])
    assert "| candidate |" in shown["--markdown"]
    assert r"\toprule" in shown["--latex"]
    assert mentions(shown[""], "arctan + dice", "is better", "sigmoid + dice", "activation and loss")
    assert all(len(line) <= 200 for line in shown[""].splitlines())


def test_validation_scores_are_compared_with_a_warning(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    for path in tmp_path.glob("study/*/images.csv"):
        sealed(path, path.read_text().replace("test,", "val,"))
    result = compare([tmp_path], split="val")
    assert only(result).verdict == "better"
    assert "optimistic" in result.warnings[0]


def test_no_runs_at_all(tmp_path: Path):
    with pytest.raises(UsageError, match="holds no run"):
        compare([tmp_path])
    make_pair(tmp_path / "study", n_seeds=3)
    for path in tmp_path.glob("study/*/images.csv"):
        path.unlink()
    with pytest.raises(UsageError, match=r"6 runs.*images\.csv.*5 more"):
        compare([tmp_path])


# The headline
def test_of_many_none_is_named_for_being_the_best(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.03)
    for n in range(5):
        make_arm(tmp_path / "study", f"other{n}", drawn(5, 60, 0.03 + 0.01 * n)[0])
    headline = compare([tmp_path]).headline
    assert mentions(headline, "6 of 6", "significantly", "Dice", "6 better", "0 worse")
    assert "other" not in headline


def test_all_that_is_significant_is_named_where_it_is_little(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.03)
    make_arm(tmp_path / "study", "erf", drawn(5, 60, -0.03)[0])
    make_arm(tmp_path / "study", "laplace", drawn(5, 60, 0.0)[0])
    told = compare([tmp_path]).headline
    assert mentions(told, "arctan is better", "erf is worse", "1 equivalent", "1.00 points")
    assert "laplace" not in told


def test_why_there_is_no_answer(tmp_path: Path):
    for arm, dice in (("arctan", 0.8), ("sigmoid", 0.7)):
        make_arm(tmp_path / "same", arm, np.full((5, 60), dice))
    assert "do not vary" in compare([tmp_path / "same"]).headline
    make_pair(tmp_path / "lost", arms=("erf", "sigmoid"))
    make_arm(tmp_path / "lost", "arctan", [None] * 5, status="diverged")
    result = compare([tmp_path / "lost"])
    assert mentions(result.headline, "1 comparison", "not be tested")
    (of_lost,) = [c for c in result.blocks[0].comparisons if c.candidate == "arctan"]
    assert [mentions(note, "arctan", "no value of Dice", "5 diverged") for note in of_lost.warnings] == [True]
    assert of_lost.dropped == ""


@pytest.mark.parametrize(("metric", "rope"), [("dice", 1), ("ece15", 0.02)])
def test_the_pivot_distribution_beyond_and_within_the_rope(tmp_path: Path, metric: str, rope: float):
    """Oriented by the metric: a lower calibration error, which has no values of images, is better."""
    errors = {"arctan": (0.31, 0.33, 0.36, 0.30), "sigmoid": (0.29, 0.32, 0.31, 0.30)}
    for arm, dice_KN in zip(errors, drawn(4, 40, 0.006), strict=True):
        for seed, (dice_N, error) in enumerate(zip(dice_KN, errors[arm], strict=True)):
            make_run(tmp_path, f"{arm}{seed}", dice_N, {"activation.name": arm}, seed, summary={"ece15": error})
    result = compare([tmp_path], metric=metric, rope=rope)
    found = only(result)
    one, half = found.deciding, found.target
    below, above = stats.t.cdf((-half - one.mean) / one.se, one.df), stats.t.sf((half - one.mean) / one.se, one.df)
    worse, better = (below, above) if metric == "dice" else (above, below)
    expected = {"worse": worse, "within": 1 - below - above, "better": better}
    assert found.pivot == pytest.approx(expected, rel=1e-9)
    assert min(expected.values()) > 1e-4
    assert max(worse, better) > 1.5 * min(worse, better)
    printed = json.loads(as_json(result, []))["blocks"][0]["comparisons"][0]
    assert printed["pivot"] == pytest.approx(expected)
    (cells,) = csv.DictReader(comparisons_csv(result).splitlines())
    assert [float(cells[f"pivot_{part}"]) for part in expected] == pytest.approx(list(expected.values()))
    without = only(compare([tmp_path], metric=metric, rope=0))
    assert all(map(math.isnan, without.pivot.values()))


def test_a_table_of_two_factors_has_two_levels_of_each(tmp_path: Path):
    """gelu ran with arctan alone: no table of activations and losses at gelu, nor of what ran with sigmoid."""
    for loss in ("dice", "ce"):
        make_pair(tmp_path / "s", n_seeds=3, n_images=8, prefix=f"n{loss}", config={"loss.name": loss})
        config = {"loss.name": loss, "hidden_activation.name": "gelu"}
        make_arm(tmp_path / "s", "arctan", drawn(3, 8, 0.0)[0], config, f"g{loss}")
    found = [table for block in compare([tmp_path]).blocks for table in block.factorials]
    assert all(len(table.rows) == len(table.columns) == 2 for table in found)
    assert {(table.row_factor, table.column_factor) for table in found} == {
        ("activation", "loss, hidden_activation=native"),
        ("hidden_activation", "loss, activation=arctan"),
        ("hidden_activation", "activation, loss=dice"),
        ("hidden_activation", "activation, loss=ce"),
    }
