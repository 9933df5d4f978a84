"""`segexp tune`: the learning rate of each arm, found with the same budget, on validation."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands import Overrides, Parser, add_config_dir, log_to_terminal
from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED, UsageError

if TYPE_CHECKING:
    from segexp.sweep import SweptRun
    from segexp.sweep.tune import Search, Tuning

EPILOG = """\
An arm is a (hidden activation, output activation, loss). Every arm gets the same learning rates and seeds, and the rate
with the best mean validation Dice is chosen; test images are not used. The runs are saved in the study NAME-tuning:
repeat the command to continue a search that was stopped.

examples:
  segexp tune activation=sigmoid,arctan loss=dice,bce study.name=mine
  segexp tune outputs/mine --rates 1e-4,3e-4,1e-3,3e-3 --seeds 0,1,2
  segexp tune activation=sigmoid,arctan loss=dice --trials 8 --range 1e-5,1e-1      (Optuna)
then:
  segexp train -m activation=sigmoid,arctan loss=dice,bce 'seed=range(5)' tuned=outputs/mine-tuning/tuned.yaml
"""


def parser() -> Parser:
    parser = Parser("tune", EPILOG)
    add = parser.add_argument
    add(
        "what", nargs="*", metavar="DIR | key=value", complete=Overrides(), help="a study, or overrides as for train -m"
    )
    add("--rates", metavar="LR,LR,...", help="rates to try (default: 0.1, 0.3, 1, 3, 10 x optimizer.lr)")
    add("--trials", type=int, metavar="N", help="let Optuna choose N rates per arm")
    add("--range", metavar="LOW,HIGH", help="with --trials: lowest and highest rate (default: as --rates)")
    add("--seeds", metavar="S,S,...", help="with DIR: seeds to use (default: the two lowest)")
    add("-o", "--out", type=Path, metavar="FILE", help="default: tuned.yaml in the study of the search")
    add_config_dir(parser)
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()
    if not options.what:
        raise UsageError("nothing to tune: give a study's folder, or arms as in activation=sigmoid,arctan loss=dice")
    folders = [word for word in options.what if "=" not in word]
    if len(folders) > 1:
        raise UsageError(f"one study at a time, not {' and '.join(folders)}")
    seeds = None if options.seeds is None else _numbers("--seeds", options.seeds, int)
    if seeds is not None and not folders:
        raise UsageError("--seeds is for DIR; with overrides write 'seed=0,1'")

    from segexp.config.compose import hydra_session, readable
    from segexp.registry import plugins
    from segexp.sweep import local_options, print_plan
    from segexp.sweep.plan import Plan, base_of, tuning_jobs
    from segexp.sweep.tune import tune, tuning_plan, write_tuning

    search = _search(options)
    overrides = readable([word for word in options.what if "=" in word])
    launching = [o for o in overrides if o.startswith("hydra")]
    if folders and len(launching) < len(overrides):
        raise UsageError("a study's arms are tuned as they were recorded; only hydra.launcher.* can be given with DIR")
    with hydra_session(options.config_dir, options.allow_env) as extra:
        base = base_of(launching if folders else overrides, extra)
        local_options(base)
        plan = Plan(tuning_jobs(Path(folders[0]), seeds, extra)) if folders else tuning_plan(overrides, extra)
        print("per learning rate: ", end="")
        print_plan(plan)
        tuning = tune(plan.jobs, base, extra, search, print)
    if tuning.unfinished:
        return _print_unfinished(tuning.unfinished)
    path = (options.out or tuning.folder / "tuned.yaml").absolute()
    table = write_tuning(tuning, path, ["segexp", "tune", *words, *(f"--plugin={name}" for name in plugins.given())])
    return _print_result(tuning, path, table)


def _numbers(flag: str, text: str, kind: type[int] | type[float] = float) -> list[Any]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{flag} {text}: {'whole ' * (kind is int)}numbers, with commas between them")
    return numbers


def _search(options: Namespace) -> "Search":
    """What the options ask for. Raises UsageError."""
    from segexp.sweep.tune import Search

    if options.trials is not None and (options.rates is not None or options.trials < 1):
        raise UsageError("--trials N (1 or more) lets Optuna choose the rates: leave --rates out")
    if options.range is not None and options.trials is None:
        raise UsageError("--range needs --trials; set the rates of a grid with --rates")
    rates = bounds = None
    if options.rates is not None:
        rates = tuple(sorted(set(_numbers("--rates", options.rates))))
        if rates[0] <= 0 or len(rates) < 2:
            raise UsageError(f"--rates {options.rates}: two learning rates or more, all above 0")
    if options.range is not None:
        bounds = tuple(_numbers("--range", options.range))
        if len(bounds) != 2 or not 0 < bounds[0] < bounds[1]:
            raise UsageError(f"--range {options.range}: two learning rates above 0, the lower one first")
    return Search(rates, options.trials, bounds)


def _print_unfinished(runs: "Sequence[SweptRun]") -> int:
    """Print the runs without which no rate is chosen; returns the exit code."""
    from segexp.records.formatting import text_table

    print("\nno rate is chosen until these runs are done; repeat the command to continue:")
    rows = [{"run": r.label, "status": r.status, "reason": r.reason, "directory": r.run_dir.name} for r in runs]
    print(text_table(rows, width=160))
    return INTERRUPTED if {run.status for run in runs} <= {"interrupted", "pending"} else FAILED


def _print_result(tuning: "Tuning", path: Path, table: Path) -> int:
    from segexp.config.arm import arm_label
    from segexp.records.formatting import text_table
    from segexp.sweep.tune import table_of

    rows = table_of(tuning)
    for row in rows:
        for key in ("val_dice", "val_dice_sd"):
            row[key] = "" if row[key] is None else f"{row[key]:.4f}"
        row["chosen"] = "<-" if row["chosen"] else ""
    print(f"\n{text_table(rows, width=140)}")
    code = DONE
    for arm in tuning.trials:
        if tuning.best(arm) is None:
            print(f"no rate for {arm_label(arm)}: every rate diverged on some seed; try lower rates")
            code = FAILED
        elif edge := tuning.edge(arm):
            print(f"at the edge: {arm_label(arm)} is best at the {edge} rate; extend the range")
    print(f"all rates: {table}\nchosen: {path}\nuse: segexp train -m ... tuned={path}")
    return code if any(tuning.best(arm) for arm in tuning.trials) else REFUSED
