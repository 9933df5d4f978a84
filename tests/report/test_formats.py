"""Tables with their cells, and results as text, Markdown, LaTeX, CSV and JSON."""

import csv
import functools
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricated import make_run
from made_up_result import (
    DICE,
    NAN,
    make_answers,
    make_arm,
    make_block,
    make_factorial,
    make_interval,
    make_result,
)
from made_up_result import make_run as make_run_row
from messages import mentions, one_mentions

from segexp.compare.formatting import amount, difference, limits, mean_and_sd, p_value, score, signed, with_unit
from segexp.compare.questions import QUESTIONS, ask
from segexp.compare.result import (
    METRICS,
    Answer,
    Block,
    Comparison,
    Influence,
    Interval,
    Method,
    Metric,
    Result,
    Unscored,
    Verdict,
)
from segexp.report import tables
from segexp.report.formats import (
    arms_csv,
    as_json,
    as_latex,
    as_markdown,
    as_text,
    comparisons_csv,
    how_to_read,
    images_csv,
    latex,
    latex_text,
    markdown,
    runs_csv,
    text,
    warnings_of,
)
from segexp.report.tables import Table, answer, clean, notes_of, number, only_names, short, unique_labels

# Cells and labels
HD95 = Metric("hd95", "HD95", higher_is_better=False, per_image=True, points=False, rope=NAN)
PIXELS = replace(HD95, unit="pixels")
NONE = Interval(NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)

PAIR = make_block({"a": 0.8, "b": 0.82}, "a")
(FOUND,) = PAIR.comparisons


def block_of(*comparisons: Comparison, **changes: Any) -> Block:
    return replace(PAIR, comparisons=comparisons or PAIR.comparisons, **changes)


def comparisons(block: Block, metric: Metric, name: str) -> list[Table]:
    """The tables of comparisons that a reader sees, in their order."""
    return [t for t in (*tables.verdicts(block, metric, name), *tables.behind(block, metric, name)) if t.rows]


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(("shown", "expected"), [
    (score(DICE, 0.81234), "81.23"),
    (score(HD95, 5.31449), "5.314"),
    (score(DICE, NAN), "\u2013"),
    (difference(DICE, -0.0123), "\u22121.23"),
    (difference(DICE, 0.0123), "+1.23"),
    (difference(DICE, -0.00001), "0.00"),
    (difference(HD95, -0.0), "0.00"),
    (signed(-0.001), "0.00"),
    (amount(DICE, 0.0123), "+1.23 points"),
    (amount(DICE, 0.01, signed=False), "1.00 points"),
    (score(PIXELS, 12.0), "12.00"),
    (amount(PIXELS, -2.5), "\u22122.50 pixels"),
    (with_unit(PIXELS, "difference in"), "difference in HD95 (pixels)"),
    (with_unit(HD95), "HD95"),
    (number(12470000.0), "12470000"),
    (number(-0.123456), "\u22120.1235"),
    (number(True), "yes"),
    (limits(DICE, Interval(0, 1, 1, 1, -1e-6, 0.01, 0, 0)), "[0.00, +1.00]"),
    (p_value(0.0004), "<0.001"),
    (p_value(0.0497), "0.0497"),
    (p_value(0.04999), "0.0499"),
    (p_value(0.05), "0.0500"),
    (p_value(0.0449), "0.045"),
    (p_value(NAN), "\u2013"),
    (clean("a\nb\x1b[0m\ud800"), "a b\ufffd[0m\ufffd"),
    (short("x" * 50, 11), "xxxxxx\u2026xxxx"),
    (mean_and_sd(0.1633, 0.17, False), "0.16 \u00b1 0.17"),
    (mean_and_sd(83.9, 0.6234, True), "83.90 \u00b1 0.62"),
    (mean_and_sd(0.0249, 0.00081, False), "0.02490 \u00b1 0.00081"),
    (mean_and_sd(-0.02155, 0.1, True), "\u22120.02 \u00b1 0.10"),
    (mean_and_sd(0.0, 0.0, False), "0 \u00b1 0"),
    (mean_and_sd(12470000.0, 12.0, False), "12470000 \u00b1 12"),
    (mean_and_sd(0.5, 1e-12, False), "0.500000 \u00b1 0.000000"),
    (mean_and_sd(83.9, NAN, True), "83.90"),
    (mean_and_sd(NAN, NAN, True), "\u2013"),
    (only_names("/home/jo/my-study/run-1: no run.json", ["/srv/my data"]), "run-1: no run.json"),
    (only_names("cannot read '/data/x/image 1.png'", ["/srv/my data"]), "cannot read 'image 1.png'"),
    (only_names(r"C:\Users\jo\runs\a.csv is empty", ["/srv/my data"]), "a.csv is empty"),
    (
        only_names("outputs/mine/run-1: seeds/images, 1 / 2", ["/srv/my data"]),
        "outputs/mine/run-1: seeds/images, 1 / 2",
    ),
    (only_names("</script>", ["/srv/my data"]), "</script>"),
    (only_names("/srv/my data/study/x", ["/srv/my data"]), "study/x"),
    (latex_text("\u22121.2 \u00b1 0.3 \u2013"), r"$-$1.2 $\pm$ 0.3 --"),
])  # fmt: skip
def test_values_in_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_latex_prints_any_name() -> None:
    assert latex_text(r"a_b & 5 % of {$x^2} ~ #1 \n <|>") == (
        r"a\_b \& 5 \% of \{\$x\textasciicircum{}2\} \textasciitilde{} \#1 \textbackslash{}n "
        r"\textless{}\textbar{}\textgreater{}"
    )


def test_latex_has_a_column_for_each_cell_and_no_bracket_after_a_line() -> None:
    text = latex(comparisons(make_block({"a": 0.8, "b": 0.82}, "a"), DICE, "all")[0])
    lines = text.splitlines()
    (alignment,) = re.findall(r"\\begin{tabular}{(\w+)}", text)
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    cells = [len(re.split(r"(?<!\\)&", line)) for line in body if line != r"\midrule"]
    assert cells == [len(alignment)] * 2
    assert not any(re.match(r"\s*\[", line) for line in body)
    assert r"{[+0.88, +3.12]}" in text
    assert r"\label{tab:all}" in text
    assert r"\caption{Comparisons: lesions. " in text


def test_markdown_keeps_its_columns() -> None:
    table = Table("t", "a|b", (("x|y", "text"), ("n", "number")), (("1 | 2", "<b>"), ("line\nend", "&")), "note")
    lines = markdown(table).splitlines()
    assert lines[0] == "### a\\|b"
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines[2:6]] == [4] * 4
    assert mentions(lines[4], r"1 \| 2", "&lt;b&gt;")
    assert mentions(lines[5], "line end", "&amp;")


def column(table: Table, title: str) -> list[str]:
    (n,) = [n for n, (shown, _) in enumerate(table.columns) if shown == title]
    return [row[n] for row in table.rows]


def titles(table: Table) -> list[str]:
    return [title for title, _ in table.columns]


def unusual() -> Block:
    """A comparison of each scope: new images, these images (unpaired), new folds, nothing."""
    change = functools.partial(replace, FOUND)
    welch = {"scope": Method.UNPAIRED.scope, "method": Method.UNPAIRED, "paired": False, "wins": NAN}
    folds = {"scope": Method.OVER_FOLDS.scope, "method": Method.OVER_FOLDS, "n_seeds": 1, "n_folds": 5, "wins": 4.0}
    nothing = {"scope": "", "method": Method.NONE, "verdict": Verdict.NO_TEST, "n_seeds": 0, "wins": NAN}
    return block_of(
        FOUND,
        change(overall=NONE, **welch),
        change(test_set=NONE, **folds),
        change(overall=NONE, test_set=NONE, **nothing),
    )


def test_every_interval_says_what_it_is_for() -> None:
    verdicts, design, details = comparisons(unusual(), DICE, "all")
    wide, narrow, none = "[+0.88, +3.12]", "[+1.44, +2.56]", "\u2013"
    expected = {
        "inference for": ["new seeds and test images", "new seeds", "new training sets", none],
        "95 % interval": [wide, narrow, wide, none],
        "95 %, these images": [narrow, narrow, none, none],
        "difference (points)": ["+2.00", "+2.00", "+2.00", none],
    }
    assert {title: column(verdicts, title) for title in expected} == expected
    assert column(verdicts, "method")[1:3] == [Method.UNPAIRED, Method.OVER_FOLDS]
    assert "method" not in titles(comparisons(PAIR, DICE, "")[0])
    seeds, won = column(design, "seeds"), column(details, "seeds won")
    assert (seeds[:2], seeds[3:]) == (["5", "5"], [none])
    assert mentions(seeds[2], "1 seed", "5 folds")
    assert "before Holm" in design.note
    assert (won[0], won[1], won[3]) == ("4.5 of 5", none, none)
    assert mentions(won[2], "4 of 5", "folds")
    assert "unpaired" in verdicts.note
    assert "unpaired" not in comparisons(PAIR, DICE, "")[0].note


def test_the_numbers_behind_a_verdict() -> None:
    *_, details = comparisons(block_of(FOUND, replace(FOUND, variance={})), DICE, "all")
    expected = {
        "95 % of their share": ["40 to 99 %"] * 2,
        "standard error (points)": ["0.40"] * 2,
        "effect size": ["+2.50"] * 2,
        "correlation of seeds": ["+0.42"] * 2,
        "sd of seeds (points)": ["0.32", "\u2013"],
        "sd of the rest (points)": ["3.00", "\u2013"],
    }
    assert {title: column(details, title) for title in expected} == expected
    assert comparisons(make_block({"a": 0.8}, "a"), DICE, "all") == []
    *_, of_splits = comparisons(block_of(replace(FOUND, method=Method.OVER_SPLITS, n_splits=5)), DICE, "all")
    assert column(of_splits, "correlation of splits") == ["+0.42"]


def test_seeds_needed_are_a_number_none_or_unknown() -> None:
    never = replace(FOUND, seeds_needed=(math.inf, math.inf))
    unknown = replace(FOUND, seeds_needed=(NAN, NAN), image_floor=NAN)
    block = block_of(FOUND, never, unknown)
    _, design, _ = comparisons(block, DICE, "all")
    expected = {
        "seeds to find 1.00": ["9 to 31", "no number", "\u2013"],
        "image floor (points)": ["0.60", "0.60", "\u2013"],
    }
    assert {title: column(design, title) for title in expected} == expected
    _, design, _ = comparisons(block, HD95, "all")
    assert not any("seeds to find" in text for text in (*titles(design), design.note))


def test_the_ranking_has_failures_as_0_and_folds() -> None:
    assert "failures as 0" not in titles(tables.ranking(PAIR, DICE, "r"))
    folds = replace(make_arm("a", 0.8, 1), n_folds=5)
    failed = block_of(ranking=(PAIR.ranking[0], make_arm("c", 0.8, 4, failed=1), folds))
    table = tables.ranking(failed, DICE, "r")
    assert column(table, "failures as 0") == ["82.00", "64.00", "80.00"]
    assert column(table, "no score") == ["0", "1 failed", "0"]
    *plain, of_folds = column(table, "seeds")
    assert plain == ["5", "4"]
    assert mentions(of_folds, "1 seed", "5 folds")


def test_each_arm_has_its_interval() -> None:
    table = tables.ranking(PAIR, DICE, "r")
    assert column(table, "95 % interval") == ["[79.20, 84.80]", "[77.20, 82.80]"]
    unknown = block_of(ranking=(replace(PAIR.ranking[0], interval=NONE),))
    assert column(tables.ranking(unknown, DICE, "r"), "95 % interval") == ["\u2013"]
    (row, _) = records(arms_csv(make_result(blocks=(PAIR,))))
    assert (float(row["mean"]), float(row["low"]), float(row["high"])) == pytest.approx((0.82, 0.792, 0.848))
    assert (row["arm"], row["metric"], row["interval_for"]) == ("b", "dice", "new seeds and new test images")
    arm = make_arm("a", 0.8, 3)
    assert tables.interval_for([arm], replace(DICE, per_image=False)) == "new seeds"
    assert tables.interval_for([replace(arm, n_groups=1)], DICE) == "new seeds"
    # Averaged are splits, and folds of which no seed has all.
    seeds = {f"fold {n}, seed {n % 2}": 0.8 for n in range(3)}
    whole = {f"fold {n}, seed 0": 0.8 for n in range(3)}
    of_splits, of_folds = replace(arm, n_splits=3), replace(arm, n_folds=3, seeds=seeds)
    assert tables.interval_for([of_splits, of_folds], DICE) == Method.OVER_SPLITS.scope
    assert "seeds" in tables.interval_for([replace(of_folds, seeds=whole)], DICE)
    table = tables.ranking(block_of(ranking=(of_splits,)), DICE, "r")
    assert (column(table, "splits"), column(table, "seeds")) == (["3"], ["3"])
    assert "sd of splits" in titles(table)


def influenced() -> Comparison:
    """Better; inconclusive without one image; equivalent, with a condition, over everything in the call."""
    image = Influence("image", "image_0007", make_interval(0.004), 0.4, Verdict.INCONCLUSIVE)
    seed = Influence("seed", "3", make_interval(0.021), 0.02, Verdict.BETTER)
    return replace(FOUND, influence=(image, seed), skewness=-2.5, p_holm=0.04, p_block=0.02)


def test_verdicts_that_one_image_or_seed_decides_are_marked() -> None:
    block = block_of(influenced(), FOUND)
    _, table, *_ = comparisons(block, DICE, "all")
    (image,), (seed,) = column(table, "without image (points)"), column(table, "without seed (points)")
    assert mentions(image, "image_0007", "+0.40", "inconclusive", "changed")
    assert mentions(seed, "seed 3", "+2.10", "better")
    assert "changed" not in seed
    assert column(table, "skewness") == ["\u22122.50"]
    assert column(table, "images: fewer than") == ["3/60 = 5 %"]
    assert column(table, "seeds: fewer than") == ["3/5 = 60 %"]
    (note, *_) = notes_of(block)
    assert mentions(note, "image_0007", "inconclusive")
    assert not any("seed 3" in line for line in notes_of(block))
    row, other = records(comparisons_csv(make_result(blocks=(block,))))
    assert (row["influential_image"], row["verdict_without_image"]) == ("image_0007", "inconclusive")
    assert (float(row["mean_without_seed"]), other["influential_seed"]) == (0.021, "")


def test_p_within_the_data_set_is_shown_where_it_differs() -> None:
    table, *_ = comparisons(block_of(influenced()), DICE, "all")
    assert (column(table, "p, Holm"), column(table, "p, Holm here")) == (["0.040"], ["0.020"])
    table, *_ = comparisons(block_of(replace(FOUND, p_block=FOUND.p_holm)), DICE, "all")
    assert "p, Holm here" not in titles(table)


def test_equivalent_and_negligible_have_their_condition_beside_them() -> None:
    condition = "unless more than 3/60 of the images behave otherwise"
    same = replace(FOUND, verdict=Verdict.EQUIVALENT, condition=condition, candidate="c")
    table, *_ = comparisons(block_of(FOUND, same), DICE, "all")
    assert mentions(table.note, f"c: equivalent {condition}")
    assert tables.verdict(same) == f"equivalent ({condition})"
    assert condition in as_markdown(make_result(blocks=(block_of(same),)), [])


def of_splits(**changes: Any) -> Comparison:
    variance = {"split": 4e-4, "seed": NAN, "image": 9e-4, "residual": NAN}
    return replace(
        FOUND,
        method=Method.OVER_SPLITS,
        scope=Method.OVER_SPLITS.scope,
        variance=variance,
        split_floor=0.012,
        split_floor_se=0.004,
        n_splits=8,
        **changes,
    )


def test_several_splits_say_what_they_cannot_separate() -> None:
    verdicts, design, details = comparisons(block_of(of_splits()), DICE, "all")
    assert mentions(verdicts.note, "averaged", "seeds x images")
    assert column(verdicts, "inference for") == ["new training sets"]
    assert column(design, "splits") == ["8"]
    assert column(design, "split floor, standard error (points)") == ["0.40"]
    assert column(design, "split floor, difference (points)") == ["1.20"]
    assert not {"seeds to find 1.00", "image floor (points)"} & set(titles(design))
    parts = [column(details, f"sd of {part} (points)") for part in ("splits", "seeds", "images", "the rest")]
    assert parts == [["2.00"], ["\u2013"], ["3.00"], ["\u2013"]]


def test_the_split_floor_is_printed_where_folds_alone_are_tested() -> None:
    folds = replace(of_splits(), method=Method.OVER_FOLDS, n_splits=0, n_folds=5, n_seeds=1)
    _, design, _ = comparisons(block_of(folds), DICE, "all")
    assert column(design, "seeds") == ["1 seed x 5 folds"]
    assert column(design, "split floor, difference (points)") == ["1.20"]
    assert "split floor: " in design.note
    assert "splits" not in titles(design)


def test_cross_validation_has_verdicts_for_new_training_sets() -> None:
    over_folds = replace(
        of_splits(verdict=Verdict.INCONCLUSIVE), method=Method.OVER_FOLDS, n_splits=0, n_folds=5, p_holm=0.3
    )
    main, table, *_, details = comparisons(block_of(replace(FOUND, new_training_sets=over_folds), FOUND), DICE, "all")
    assert column(main, "verdict") == ["better", "better"]
    assert column(table, "verdict") == ["inconclusive"]
    assert (column(table, "splits"), column(table, "p, Holm")) == (["5 folds"], ["0.300"])
    assert column(table, "split floor, standard error (points)") == ["0.40"]
    assert column(details, "sd of splits (points)") == ["2.00", "\u2013"]
    assert column(details, "sd of seeds (points)") == ["0.32"] * 2
    assert len(comparisons(PAIR, DICE, "all")) == 3
    found = replace(FOUND, new_training_sets=replace(over_folds, condition="unless more"))
    (row,) = records(comparisons_csv(make_result(blocks=(block_of(found),))))
    assert (row["verdict"], row["new_sets_verdict"], row["new_sets_p_holm"]) == ("better", "inconclusive", "0.3")
    assert (row["new_sets_condition"], row["new_sets_mean"]) == ("unless more", row["mean"])


def test_five_lines_say_how_to_read_the_verdicts() -> None:
    result = replace(make_result(), n_family=12)
    lines = how_to_read(result)
    assert len(lines) == 5
    assert max(map(len, lines)) <= 148
    told = ("better", "inconclusive", "inference for", "12 comparisons", "not adjusted", "equivalent", "1.00 points")
    assert mentions(" ".join(lines), *told)
    assert max(map(len, how_to_read(replace(result, metric=HD95)))) <= 148
    assert "--rope" in how_to_read(replace(result, metric=HD95))[-1]
    for shown in (as_text(result, []), as_markdown(result, [])):
        assert [shown.count(tables.clean(line)) for line in lines] == [1] * 5


def test_what_a_verdict_depends_on_comes_before_the_details() -> None:
    block = replace(two_blocks().blocks[0], comparisons=(influenced(),))
    result = replace(make_result(blocks=(block,)), warnings=("5 of 10 runs had not converged",))
    order = (
        "not converged",
        "Comparisons",
        "Without the most influential",
        "without image image_0007",
        "What this design",
    )
    for shown in (as_text(result, []), as_markdown(result, []), as_latex(result, [])):
        assert all(part in shown for part in order)
        assert shown.index("not converged") < shown.index("Without the most") < shown.index("What this design")
        assert shown.index("without image image_0007") < shown.index("What this design") < shown.index("In detail")
    assert as_text(result, []).index("How to read this") < as_text(result, []).index("What this design")


def test_numbers_are_aligned_at_the_right() -> None:
    table = Table("t", "T", (("arm", "arm"), ("n", "number")), (("a", "5"), ("b", "12")))
    assert text(table, 80)[1].splitlines()[2:] == ["a     5", "b    12"]
    assert markdown(table).splitlines()[3] == "| --- | ---: |"


def test_two_factors_and_their_interaction() -> None:
    found = make_factorial(("sigmoid", "arctan"), ("dice", "ce"))
    means, table = tables.factorial(found, DICE, "f"), tables.interactions(found, DICE, "i", "lesions")
    assert re.fullmatch(r"8\d\.\d\d \(5\)", means.rows[0][1])
    assert means.rows[1][2] == "\u2013"
    assert table.rows[0][:2] == ("arctan against sigmoid", "ce against dice")
    assert column(table, "seeds") == ["5"]
    assert table.where == "lesions"


@pytest.mark.parametrize("limit", [8, 20, 34])
def test_different_names_have_different_labels(limit: int) -> None:
    names = [f"native / arctan_{kind}_of_the_same_kind / {loss}" for kind in "abc" for loss in ("dice", "ce")]
    labels = unique_labels(
        [*names, names[0], "x" * 90 + "1" + "x" * 40, "x" * 90 + "2" + "x" * 40, "a\x00", "a\x01"], limit
    )
    assert len(set(labels.values())) == len(labels) == 10
    assert max(len(line) for label in labels.values() for line in label.splitlines()) <= limit
    assert unique_labels(["short", "brief"], limit) == {"short": "short", "brief": "brief"}


def test_a_mean_and_its_sd_share_a_cell() -> None:
    rows = ({"arm": "a", "nll": 0.12345, "nll_sd": 0.0123, "n": 5}, {"arm": "b", "nll": NAN, "nll_sd": NAN, "n": 4})
    table = answer(Answer("q", "Q", rows, ()), "q")
    assert titles(table) == ["arm", "NLL", "n"]
    assert table.rows == (("a", "0.123 \u00b1 0.012", "5"), ("b", "\u2013", "4"))
    assert "standard deviation" in table.note
    # Values have the unit of their title.
    row = {"arm": "a", "dice": 0.8, "dice_sd": 0.123, "missed": 0.25, "ms": 523.3, "ms_sd": 383.6, "front": True}
    own = {"missed": "missed references (%)", "ms": "ms per step", "front": "on the front"}
    table = answer(Answer("q", "Q", (row,), (), titles=own), "q")
    assert titles(table) == ["arm", "Dice (points)", *own.values()]
    assert table.rows == (("a", "80.00 \u00b1 12.30", "25", "523 \u00b1 384", "yes"),)


def test_every_column_of_a_secondary_analysis_has_a_title(tmp_path: Path) -> None:
    """Rows have all their keys even for runs without data."""
    make_run(tmp_path, "0badf00d")
    (run_dir,) = (path for path in tmp_path.iterdir() if path.name[0] != ".")
    n_keys = 0
    for found in ask(list(QUESTIONS), {"a": [run_dir]}, "test"):
        keys = {key.removesuffix("_sd") for row in found.rows for key in row}
        assert keys <= {"arm", "n_runs", *found.titles, *METRICS}, found.name
        n_keys += len(keys)
    assert n_keys > 40


def test_a_note_that_comparisons_share_stands_once() -> None:
    block = make_block({"a": 0.8, "b": 0.82, "c": 0.83}, "a")
    first, second = block.comparisons
    both = (
        replace(first, warnings=("few images", "unpaired"), dropped=""),
        replace(second, warnings=("few images",), dropped="seed 3"),
    )
    shared, of_c, of_b, of_block = notes_of(replace(block, comparisons=both, warnings=("all of it",)))
    assert (shared, of_block) == ("few images", "all of it")
    assert mentions(of_c, "c", "a", "unpaired")
    assert mentions(of_b, "b", "a", "seed 3")


def test_csv_has_the_unit_of_the_metric_and_no_nan() -> None:
    result = make_result(n_arms=3)
    rows = records(comparisons_csv(result))
    assert len(rows) == 4
    assert float(rows[0]["mean"]) == result.blocks[0].comparisons[0].overall.mean
    assert rows[0]["conditions"] == "loss=dice"
    assert (rows[0]["scope"], rows[0]["n_folds"], rows[0]["wins_high"]) == (Method.TWO_WAY.scope, "0", "0.99")
    runs = records(runs_csv(result))
    assert runs[-1]["score"] == ""
    images = records(images_csv(result))
    assert len(images) == 4 * 60
    assert images[0]["image"] == "image_0000"


def test_csv_has_the_deciding_interval_and_all_warnings() -> None:
    first, second, *others = unusual().comparisons
    changes: dict[str, Any] = {"warnings": ("few", "unpaired"), "dropped": "seed 3", "seeds_needed": (12.0, math.inf)}
    block = block_of(first, replace(second, **changes), *others, warnings=("one", "two"))
    usual, welch, folds, nothing = records(comparisons_csv(make_result(blocks=(block,))))
    assert float(usual["se"]) == float(folds["se"]) == 0.004
    assert (float(welch["se"]), welch["scope"]) == (0.002, Method.UNPAIRED.scope)
    assert (welch["warnings"], welch["dropped"], welch["seeds_needed_high"]) == ("few; unpaired", "seed 3", "inf")
    assert welch["warnings_of_block"] == "one; two"
    assert (folds["n_seeds"], folds["n_folds"], folds["method"]) == ("1", "5", Method.OVER_FOLDS)
    assert (nothing["mean"], nothing["p"]) == ("", "")


def test_runs_csv_has_no_folders() -> None:
    run = make_run_row("arctan", 0, directory="/home/jo/outputs/mine/run-1", study="mine", error="no /home/jo/x.png")
    (row,) = records(runs_csv(replace(make_result(), runs=(run,))))
    assert (row["directory"], row["error"]) == ("mine/run-1", "no x.png")


# Whole results
def two_blocks() -> Result:
    """Two blocks with factors, warnings, and what no number of seeds finds."""
    blocks = []
    for loss in ("dice", "ce"):
        block = make_block({"sigmoid": 0.8, "arctan": 0.82}, "sigmoid", loss=loss)
        never = replace(block.comparisons[0], seeds_needed=(math.inf, math.inf), warnings=(f"a<b|{loss}",))
        both = (make_factorial(("sigmoid", "arctan"), ("x", "y")),) * 2
        blocks.append(replace(block, comparisons=(never,), factorials=both))
    result = make_result(blocks=blocks)
    versions = {"segexp": "0.1.0", "scipy": "1.2.3", "pandas": "4.5.6", "numpy": "7"}
    return replace(result, provenance={"compared with": versions})


def test_tables_for_a_paper_name_their_block() -> None:
    result = two_blocks()
    answers = [(block, list(make_answers(["arctan"]))) for block in result.blocks]
    latex = as_latex(result, answers)
    labels = re.findall(r"\\label{(.*?)}", latex)
    assert len(labels) == len(set(labels)) > 20
    captions = re.findall(r"\\caption{(.*)}", latex)
    assert sum("lesions, loss=ce" in caption for caption in captions) == (len(captions) - 2) // 2
    titles = re.findall(r"^### (.*)$", as_markdown(result, answers), re.MULTILINE)
    assert len(titles) == len(captions)
    assert "Comparisons: lesions, loss=ce" in titles


def test_markdown_holds_the_warnings() -> None:
    result = two_blocks()
    text = as_markdown(result, [])
    of_all, of_dice = text.partition("**Warnings**")[2], text.partition("**Warnings: lesions, loss=dice**")[2]
    assert of_all.split("\n")[2:4] == [f"- {warning}" for warning in result.warnings]
    assert one_mentions(of_dice.splitlines(), "arctan", "sigmoid", r"a&lt;b\|dice")


def test_text_explains_the_tables_of_several_blocks_once() -> None:
    result = two_blocks()
    notes = {table.note for block in result.blocks for t in tables.of_block(block, DICE, "") for table in t} - {""}
    text = " ".join(as_text(result, []).split())
    assert [text.count(note) for note in notes] == [1] * len(notes)


def test_text_ends_with_the_versions_that_decide_the_numbers() -> None:
    text = as_text(two_blocks(), [])
    *_, last = text.splitlines()
    assert mentions(last, "segexp 0.1.0", "numpy 7", "scipy 1.2.3")
    for policy in ("reference", "both_empty_one"):
        assert mentions(as_text(replace(two_blocks(), empty_policy=policy), []), f"metrics.empty_policy={policy}")
    assert "pandas" not in last
    for told in ("not adjusted", "before Holm", "test images", "no number", "In detail", "arctan against sigmoid"):
        assert told in text
    assert max(map(len, text.splitlines())) <= 150


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("20", 60), ("400", 150), ("", 150)])
def test_text_is_as_wide_as_the_terminal(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "from segexp.report.formats import WIDTH; print(WIDTH)"]
    found = subprocess.run(command, env={**os.environ, "COLUMNS": columns}, capture_output=True, text=True, check=True)
    assert int(found.stdout) == width
    monkeypatch.setattr("segexp.report.formats.WIDTH", width)
    sentences = [line for line in as_text(two_blocks(), []).splitlines() if not re.search(r"\S  | {5}", line)]
    assert max(map(len, sentences)) <= width


def test_json_tells_the_infinite_from_the_unknown() -> None:
    sizes = [replace(FOUND, seeds_needed=n) for n in ((12.0, math.inf), (NAN, NAN))]
    (found,) = json.loads(as_json(make_result(blocks=[block_of(*sizes)]), []))["blocks"]
    assert [c["seeds_needed"] for c in found["comparisons"]] == [[12.0, "infinite"], [None, None]]
    assert found["comparisons"][0]["scope"] == Method.TWO_WAY.scope


def test_every_warning_once_with_its_block() -> None:
    result = two_blocks()
    result = replace(result, blocks=tuple(replace(b, warnings=("odd",)) for b in result.blocks))
    told = warnings_of(result)
    assert told[:2] == list(result.warnings) != []
    assert [w for w in told if w.endswith("odd")] == ["lesions, loss=dice: odd", "lesions, loss=ce: odd"]
    assert as_latex(result, []).startswith(f"% warning: {told[0]}\n")


def test_pending_runs_are_named_so_on_the_screen_and_keep_their_stored_state() -> None:
    waiting = Unscored("0badf00d", "lesions", "arctan", "1", "not begun", "planned")
    result = replace(make_result(), unscored=(waiting,), runs=(make_run_row("arctan", 1, status="not begun"),))
    for shown in (as_text(result, []), as_markdown(result, []), as_latex(result, []), str(tables.runs(result, "r"))):
        assert "pending" in shown
        assert "not begun" not in shown
    assert json.loads(as_json(result, []))["unscored"][0]["state"] == "not begun"
    assert records(runs_csv(result))[0]["status"] == "not begun"
