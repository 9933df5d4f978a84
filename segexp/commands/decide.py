"""`segexp decide`: which arm is better, with no more seeds than it takes."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segexp.commands import Overrides, Parser, add_config_dir, ignoring_closed_output, imported, log_to_terminal
from segexp.errors import DONE, FAILED, UsageError
from segexp.records.decision import STANDINGS
from segexp.records.formatting import pluralize

if TYPE_CHECKING:
    from segexp.compare.result import Comparison, Metric
    from segexp.config import LocalOptions
    from segexp.records.decision import Decision
    from segexp.sweep.decide import Arms, Found, Question

EPILOG = """\
All arms get the seeds of the first look. After each look, arms that are decided (better, worse or equivalent) and arms
that these seeds and images cannot decide get no more seeds; the others go on. All looks together give a false alarm in
at most 5 % of studies: each has its share of these 5 % (alpha), which `compare` and `report` use as well. From the
first look on the arms, looks, metric, rope and budget cannot be changed.
Use a study of its own (study.name=...). Repeat a command to continue after an interruption.

examples:
  segexp decide activation=sigmoid,arctan,normal_cdf loss=dice dataset=folder dataset.root=DIR --budget 8h
  segexp decide activation=sigmoid,arctan loss=dice --tune study.name=tuned      (a learning rate for each arm first)
  segexp decide hidden_activation=native,gelu,mish split.per_seed=true           (every seed draws its own split)
  segexp decide activation=sigmoid,arctan loss=dice --dry-run                    (runs and hours to expect)
"""


def parser() -> Parser:
    parser = Parser("decide", EPILOG)
    add = parser.add_argument
    add("overrides", nargs="+", metavar="key=value", help="arms and settings, as for train -m", complete=Overrides())
    add("--metric", default="dice", metavar="NAME", complete=_metrics, help="the score that decides (default: dice)")
    add("--reference", metavar="KEY=VALUE", help="the arm that the others are compared with (default: as in compare)")
    add("--rope", type=float, metavar="WIDTH", help="negligible difference, in points or the score's unit (Dice: 1)")
    add("--looks", metavar="K,K", help="seeds at each look (default: 5,8,12,18,27)")
    add("--max-seeds", type=int, metavar="K", help="seeds of the last look (default: 27)")
    add("--budget", metavar="AMOUNT", help="take the last look after 8h (hours), 40runs or 16gpuh (hours of all runs)")
    add("--tune", action="store_true", help="find a learning rate for each arm first, as `segexp tune` does")
    add("--dry-run", action="store_true", help="show looks, shares, and the runs and hours to expect; train nothing")
    add("-o", "--out", type=Path, metavar="FILE", help="the report (default: report.html in the study)")
    add_config_dir(parser)
    return parser


def _metrics() -> list[str]:
    return [score.name for score in imported("segexp.records.scores", "SCORES").values() if score.compared]


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()

    from segexp.config.compose import hydra_session, readable
    from segexp.report.page import refuse_foreign
    from segexp.sweep import local_options, print_plan
    from segexp.sweep.decide import Question, arms_of, budget_of, continued, decide, deciding, tuned
    from segexp.sweep.plan import base_of

    budget = None if options.budget is None else budget_of(options.budget)
    question = Question(_looks(options), options.metric, options.rope, options.reference, budget)
    overrides = readable(options.overrides)
    with hydra_session(options.config_dir, options.allow_env) as extra:
        base = base_of(overrides, extra)
        local = local_options(base)
        arms = arms_of(overrides, extra, question)
        report = options.out or arms.study / "report.html"
        refuse_foreign(report)
        continued(arms, question, but=("arms",) if options.tune else ())
        if options.dry_run:
            print_plan(arms.plan, "at most ")
            return _dry_run(arms, question, local)
        with ignoring_closed_output():
            if options.tune:
                path = tuned(overrides, extra, base)
                if path is None:
                    return FAILED
                overrides = [*overrides, f"tuned={path}"]
                base, arms = base_of(overrides, extra), arms_of(overrides, extra, question)
            print_plan(arms.plan, "at most ")
            with deciding(arms, question) as decision:
                found, decided, unfinished = decide(arms, question, decision, base, extra, _print_look)
            if unfinished is None and found is not None:
                return _print_end(found, decided, arms, question, report)
            assert unfinished is not None
            why = "no look is taken until these runs are done; finished epochs are kept: repeat the command to continue"
            print(f"\n{unfinished.text(blind=True)}\n\n{why}")
            return unfinished.exit_code


def _looks(options: Namespace) -> tuple[int, ...]:
    """Seeds at each look. Raises UsageError."""
    from segexp.compare.result import FEWEST_SEEDS
    from segexp.compare.sequential import LOOKS

    text, most = options.looks or ",".join(map(str, LOOKS)), options.max_seeds
    looks = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if looks[0] < FEWEST_SEEDS or looks != sorted(set(looks)):
        raise UsageError(f"--looks {text}: whole numbers that increase, the first {FEWEST_SEEDS} or more, as in 5,8,12")
    if most is None:
        return tuple(looks)
    if options.looks:
        raise UsageError(f"--max-seeds {most}: not together with --looks, whose last number is the most seeds")
    if most < looks[0]:
        raise UsageError(f"--max-seeds {most}: {looks[0]} or more, or fewer seeds at each look, as in --looks 3,4")
    return (*(k for k in looks if k < most), most)


def _print_look(found: "Found", decision: "Decision") -> None:
    look = decision.looks[-1]
    named: dict[str, list[str]] = {}
    for _, c, s in found.compared:
        named.setdefault(str(c.verdict) if s.state == "decided" else STANDINGS[s.state], []).append(c.candidate)
    most = 3 if len(found.result.blocks) == 1 else 0
    said = "; ".join(f"{what}: {', '.join(all) if len(all) <= most else len(all)}" for what, all in named.items())
    seeds = max(c.n_splits or c.n_seeds for _, c, _ in found.compared)
    goes = {(b.title, arm) for b, c, s in found.compared if s.state == "open" for arm in (c.candidate, c.reference)}
    which = f"look {look['look']} of {len(decision.design['looks'])}: {seeds} seeds, {look['share']:.0%} of alpha"
    print(f"{which}; {said}; {f'{len(goes)} arms go on' if goes else 'no arm goes on'}", flush=True)


def _print_end(found: "Found", decision: "Decision", arms: "Arms", question: "Question", report: Path) -> int:
    from segexp.compare.formatting import MINUS
    from segexp.report.formats import WIDTH, text
    from segexp.report.page import contents_of, write_page
    from segexp.report.tables import verdicts

    result, used = found.result, decision.used
    lost = {run_id: label for look in decision.looks for run_id, label in look["failed"].items() if run_id not in used}
    lines = ["", *sentences(found, question, decision)]
    lines += [f"warning: {warning}" for warning in result.warnings]
    if any(standing.state not in ("decided", "untested") for *_, standing in found.compared):
        cure = "next, in another study.name: more test images or, where these suffice, more seeds (--max-seeds)"
        lines += ["", f"undecided: any difference within the repeated interval remains possible; {cure}"]
    for block in result.blocks:
        title = [block.title] if len(result.blocks) > 1 else []
        lines += ["", *title, *text(verdicts(block, result.metric, "verdicts")[0], WIDTH)]
    saved = len(arms.plan.jobs) - len(used)
    lines += ["", f"runs: {len(used)} spent, {saved} saved against {question.looks[-1]} seeds for every arm"]
    lines += [f"failed twice, in no look: {label}" for label in lost.values()]
    print("\n".join(lines).replace(MINUS, "-"))
    page, *_ = write_page(report, contents_of(result))
    print(f"report: {page}")
    return FAILED if lost else DONE


def sentences(found: "Found", question: "Question", decision: "Decision") -> list[str]:
    """One for each candidate: what is known of it, and what would decide where nothing is."""
    from segexp.compare.formatting import amount, limits

    metric, several, lines = found.result.metric, len(found.result.blocks) > 1, []
    last = int(decision.looks[-1]["look"]) == len(question.looks)
    for block, c, standing in found.compared:
        where = f" on {block.title}" if several else ""
        n = pluralize(c.n_splits, "split") if c.n_splits else pluralize(c.n_seeds, "seed")
        shown = f"({amount(metric, c.deciding.mean)}, repeated interval {limits(metric, c.deciding)}, {n})"
        pair = f"{c.candidate} and {c.reference}"
        if c.verdict.significant:
            small = ", a negligible difference" if c.verdict.negligible else ""
            said = f"{c.candidate} is {c.verdict.word} than {c.reference}{where}{small} {shown}"
        elif standing.state == "decided":
            within = ", ".join(filter(None, [amount(metric, metric.rope, signed=False), c.condition]))
            said = f"{pair} are equivalent{where}, within {within} {shown}"
        elif standing.state == "untested":
            said = f"{pair} cannot be tested{where}: {c.warnings[0] if c.warnings else 'no scores'}"
        elif standing.state == "images":
            said = f"{pair}: not decidable on these images{where}; {_images(c, metric, question, decision)} {shown}"
        elif last:
            said = f"{pair}: not decided{where} {shown}"
        else:
            chance = f"the chance of a decision is {max(standing.power, 0.01):.0%}"
            said = f"{pair}: not decidable with up to {question.looks[-1]} seeds{where}; {chance} {shown}"
        lines.append(f"{said}.")
    return lines


def _images(found: "Comparison", metric: "Metric", question: "Question", decision: "Decision") -> str:
    """How many images would do, in words."""
    from segexp.compare.statistics import design_of, images_needed

    if found.n_splits:
        return "no number of splits of these images would do, more images are needed"
    level = decision.design["share"][-1] * decision.design["alpha"] / decision.design["comparisons"]
    n = images_needed(design_of(found, question.looks[-1]), metric.rope, level)
    return f"about {n} {found.unit}s would do" if n else "no number of images up to 10,000 would do"


def _dry_run(arms: "Arms", question: "Question", local: "LocalOptions | None") -> int:
    """Print looks, shares, and what to expect; write nothing."""
    from segexp.compare.formatting import amount
    from segexp.compare.sequential import shares, shares_within
    from segexp.records.formatting import duration, text_table
    from segexp.sweep.decide import expected, variances_of
    from segexp.sweep.estimate import estimate
    from segexp.sweep.local import slots_for

    n = len(question.looks)
    rows = [
        {"look": j + 1, "seeds": K, "of alpha": f"{share:.0%}", "for equivalence": f"{within:.0%}"}
        for j, (K, share, within) in enumerate(zip(question.looks, shares(n), shares_within(n), strict=True))
    ]
    print(f"\n{pluralize(arms.m, 'comparison')}, Holm's adjustment over all of them\n{text_table(rows)}", flush=True)
    first = arms.of_seed(range(len(arms.jobs)), 0)
    slots = None if local is None else slots_for(first, local)
    cost = estimate(first, slots)
    for problem in cost.problems:
        print(f"will fail: {problem}")
    code = FAILED if cost.problems else DONE
    seconds = math.fsum(s for s, _ in cost.costs) / max(len(cost.costs), 1) / (len(slots.gpus) if slots else 1)
    variances, metric = variances_of(arms, question), arms.metric(question)
    if variances is None or not metric.rope > 0:
        print(f"\nno forecast: the variances or the rope of {metric.title} are not known (--rope)")
        return code
    (sds, source), table, most = variances, [], pluralize(len(arms.plan.jobs), "run")
    for times in (0, 1, 2):
        runs, decided = expected(arms, question, sds, times * metric.rope, metric.rope)
        row = {"every candidate differs by": amount(metric, times * metric.rope, signed=False), "runs": f"{runs:.0f}"}
        table.append(row | {"time": duration(seconds * runs), "decided": f"{decided:.0%}"})
    print(f"\nto expect, of {most} at most, without --tune and --budget; variances: {source}\n{text_table(table)}")
    if decided < 0.5:
        few = f"{len(first[0].spec.split['test'])} test images and {question.looks[-1]} seeds are too few"
        print(f"{few} for such differences: more images, --max-seeds, or a larger --rope")
    return code
