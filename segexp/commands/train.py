"""`segexp train`: one run, or a sweep of them."""

import math
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands import Overrides, Parser, add_config_dir, hidden_line, ignoring_closed_output, log_to_terminal
from segexp.errors import DONE, FAILED, INTERRUPTED, UsageError, printable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from segexp.config import Config, LocalOptions
    from segexp.running import Outcome, RunSpec
    from segexp.sweep.plan import Plan

EPILOG = """\
Settings are given as key=value in Hydra's grammar; quote lists and sweeps in the shell. Groups are dataset, model,
backbone, hidden_activation, activation (output), loss, optimizer, scheduler, augment and study. All other settings are
plain keys: seed, outputs, resume, head.mode, split.*, trainer.*, metrics.*. `--dry-run` prints all with their values.
study=NAME runs a prepared sweep (`segexp list studies`): budget=smoke takes minutes, budget=full is the whole sweep;
study=nieradzik2021 protocol=paper follows the paper where that is sound.

examples:
  segexp train activation=arctan loss=dice
  segexp train activation=normal_cdf loss=bce trainer.epochs=30 optimizer.lr=1e-3
  segexp train dataset=folder dataset.root=DIR dataset.image_size=256 backbone.name=efficientnet-b0
  segexp train dataset=folder dataset.root=DIR dataset.mask_coding=index dataset.num_classes=3
  segexp train -m activation=sigmoid,arctan loss=dice,bce 'seed=range(5)' study.name=...  (one run per combination)
  segexp train -m study=hidden budget=smoke                              (a small version of a prepared study)
  segexp train -m split.folds=5 'split.fold=range(5)' study.name=folds   (cross-validation; images of a patient stay
                                                                          in one fold)
  segexp train -m activation=sigmoid,arctan 'seed=range(5)' split.per_seed=true   (a split of the data for each seed)
  segexp train --from outputs/default/RUN seed=1                         (repeat a recorded run with another seed)

Repeat a command to continue: finished runs are skipped, interrupted and failed ones continue from their checkpoint.
"""


def parser() -> Parser:
    parser = Parser("train", EPILOG)
    add = parser.add_argument
    add(
        "overrides", nargs="*", metavar="key=value", help="settings that differ from the defaults", complete=Overrides()
    )
    add("-m", "--multirun", action="store_true", help="run a sweep: one run per combination of comma-separated values")
    add("--from", dest="recorded", type=Path, metavar="RUN_DIR", help="repeat a run below your outputs")
    add_config_dir(parser)
    add(
        "--dry-run",
        action="store_true",
        help="check configuration, data and network; of a sweep, estimate time and disk; train nothing",
    )
    add("--no-wait", action="store_true", help="with -m on a Slurm cluster: submit the runs and return")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()

    from segexp.config.arm import refuse_two_rates, with_tuned_rate
    from segexp.config.compose import (
        hydra_session,
        readable,
        recorded_in,
        recorded_overrides,
        refuse_several_values,
        typed_of,
        warn_repeated_keys,
    )
    from segexp.sweep.plan import base_of

    overrides = readable(options.overrides)
    warn_repeated_keys(overrides)
    refuse_two_rates(overrides)
    own = overrides
    if options.recorded is not None:
        overrides = recorded_overrides(options.recorded, overrides)
    with hydra_session(options.config_dir, options.allow_env) as extra:
        with recorded_in(options.recorded, own):
            base = base_of(overrides, extra)
        if options.multirun or str(base.hydra.mode) == "RunMode.MULTIRUN":
            return _sweep(overrides, base, extra, options.dry_run, wait=not options.no_wait)
        for key in ("pairs", "exclude"):
            if base.sweep[key] is not None:
                raise UsageError(f"sweep.{key} needs a sweep: add -m")
        if options.no_wait:
            raise UsageError("--no-wait needs a sweep: add -m and a launcher that queues runs")
        refuse_several_values(overrides)
        with recorded_in(options.recorded, own):
            config = typed_of(base, overrides)
        # A recorded run has its rate; the file it came from may be gone.
        if options.recorded is None or any(text.startswith("tuned=") for text in options.overrides):
            config = with_tuned_rate(config)
    if options.dry_run:
        return _dry_run(config)
    from segexp.records import has_figures

    outcome = _run(config)
    if outcome.status == "done" and config.trainer.figures and not has_figures(outcome.run_dir):
        from segexp.evaluation.pictures import try_to_draw_figures

        try_to_draw_figures(outcome.run_dir)
    _report(outcome, config)
    return DONE if outcome.status == "done" else FAILED


def _sweep(overrides: Sequence[str], base: "DictConfig", extra: Sequence[str], dry_run: bool, wait: bool) -> int:
    from segexp.sweep import carry_out, local_options, print_plan
    from segexp.sweep.plan import make_plan

    options = local_options(base, wait)
    with nullcontext() if dry_run else ignoring_closed_output():
        plan = make_plan(overrides, extra, base)
        print_plan(plan)
        if dry_run:
            return _estimate(plan, options)
        report = carry_out(plan, base, extra, wait=wait)
        print(f"\n{report.text()}")
        return report.exit_code


MOST_ROWS = 30
"""Rows of a table of arms or of networks; the others are counted."""


def _estimate(plan: "Plan", options: "LocalOptions | None") -> int:
    """Print what the sweep is and what it would cost; write nothing. Returns the exit code.

    options: of the local launcher; None if another one is chosen.
    """
    from segexp.records.formatting import duration, pluralize, size
    from segexp.sweep import split_finished
    from segexp.sweep.local import slots_for
    from segexp.sweep.plan import arms_of

    arms = arms_of(plan.jobs)
    print(f"\n{pluralize(len(arms), 'arm')}:")
    _print_table(arms)
    for study in dict.fromkeys(str(job.run_dir.parent) for job in plan.jobs):
        print(f"study: {study}")
    finished, left, problems = split_finished(plan.jobs)
    counts = f" ({', '.join(f'{n} {status}' for status, n in finished.items())})" if finished else ""
    print(f"{finished.total()} of {pluralize(len(plan.jobs), 'run')} finished{counts}, {len(left)} to do", flush=True)
    if left:
        from segexp.records.process import set_wait

        set_wait(left[0].spec.config.trainer.wait, 1)
        from segexp.sweep.estimate import estimate

        slots = None if options is None else slots_for(left, options)
        found = estimate(left, slots)
        problems += found.problems
        if found.rows:
            print("\nestimated from a timed step of each network:")
            _print_table(found.rows)
            seconds, n_bytes = (sum(part) for part in zip(*found.costs, strict=True))
            patience = any(job.spec.config.trainer.patience is not None for job in left)
            about = "at most" if patience else "about"
            if slots is None or found.wall_s is None:
                print(f"time: {about} {duration(seconds)} of machine time, as measured here; the launcher decides")
                print("  how many runs are carried out at once")
            else:
                print(f"time: {about} {duration(found.wall_s)} on this machine, {slots}")
            if patience:
                print("  trainer.patience may end runs earlier")
            n_bytes += min(len(left), len(slots.gpus) if slots else len(left)) * found.running_bytes
            run_dir = plan.jobs[0].run_dir.absolute()
            free = shutil.disk_usage(next(p for p in run_dir.parents if p.exists())).free
            print(f"disk: about {size(round(n_bytes))}, of {size(free)} free")
            if n_bytes > free:
                print("warning: the disk is too small")
        for note in found.notes:
            print(f"note: {note}")
    for problem in problems:
        print(f"will fail: {problem}")
    return FAILED if problems or plan.refused else DONE


def _print_table(rows: list[dict[str, Any]]) -> None:
    from segexp.records.formatting import text_table

    print(text_table(rows[:MOST_ROWS], width=160))
    if len(rows) > MOST_ROWS:
        print(f"... and {len(rows) - MOST_ROWS} more")


def _run(config: "Config") -> "Outcome":
    from segexp.records.process import set_wait
    from segexp.running import finished_before, prepare

    waiting = set_wait(config.trainer.wait, config.trainer.threads)  # before torch is loaded
    spec = prepare(config)
    finished = finished_before(spec)
    if finished and not (spec.run_dir / "lock").exists():  # else `execute` tidies up; torch takes a second to load
        _announce(spec)
        return finished
    print(waiting)
    _announce(spec)
    from segexp.running.execute import execute

    try:
        with ignoring_closed_output():
            return execute(spec)
    except KeyboardInterrupt:
        if not (spec.run_dir / "run.json").exists():
            raise
        kept = f"finished epochs are kept in {spec.run_dir}; repeat the command to continue"
        print(f"\nsegexp: interrupted; {kept}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _announce(spec: "RunSpec") -> None:
    from segexp.data.description import data_lines

    config, split = spec.config, spec.split
    print(
        f"{config.dataset.name}: {len(split['train'])} train, {len(split['val'])} val, "
        f"{len(split['test'])} test images; {config.model.name}/{config.backbone.name}, "
        f"{config.activation.name} + {config.loss.name}, seed {config.seed}"
    )
    for line in data_lines(spec.data):
        print(f"  {line}")
    for warning in spec.warnings:
        print(f"warning: {warning}")
    sys.stdout.flush()


def _dry_run(config: "Config") -> int:
    from segexp.records.plugins import plugin_lines
    from segexp.running import config_yaml, prepare, scoring_notes

    spec = prepare(config)
    print(config_yaml(spec.config))
    _announce(spec)
    for line in (*plugin_lines(spec.plugins), *scoring_notes(config, spec.image_set)):  # a run logs them
        print(line)
    from segexp.models.build import parameter_count
    from segexp.running.build import initial_network

    built, device, fit = initial_network(spec)
    print(f"{parameter_count(built.network):,} parameters on {device}, input {fit.size} px ({fit.how})")
    print(built.report.line())
    init = built.init
    gain = "as drawn" if init["gain_value"] is None else f"{init['gain_value']:.4g}"
    print(
        f"hidden layers: {init['layers_with_normalisation']} with normalisation, "
        f"{init['layers_without_normalisation']} without; gain {init['gain']} = {gain}: "
        f"{init['layers_scaled']} scaled; bias {init['bias']:g}: {init['layers_biased']} set"
    )
    for warning in built.warnings:
        print(f"warning: {warning}")
    print(f"run directory: {spec.run_dir}")
    return DONE


def _report(outcome: "Outcome", config: "Config") -> None:
    from segexp.commands import print_classes
    from segexp.records import flatten
    from segexp.records.formatting import text_table
    from segexp.records.scores import OWN_SCORES, result_rows

    if outcome.skipped:
        print(f"already {outcome.status}: nothing to do (resume=restart starts again)")
    if outcome.status == "done":
        summary = outcome.summary
        print()
        own = [OWN_SCORES[name] for name in config.metrics.scores or ()]
        print(text_table(result_rows(summary, config=flatten(config), own=own)))
        print_classes(outcome.run_dir, flatten(config), "test", own)
        tuned = summary.get("threshold_tuned")
        unit = "above 1/2" if summary["activation"] == "identity" else "in log-odds"
        where = f"; tuned threshold {tuned:+.3g} {unit}" if tuned is not None and not math.isnan(tuned) else ""
        print(f"\nweights of epoch {summary['best_epoch']} of {summary['epochs']}, chosen on validation{where}")
        print(hidden_line(outcome.diagnostics))
    else:
        print(printable(f"segexp: run {outcome.status}: {outcome.reason}"), file=sys.stderr)
    print(f"run directory: {outcome.run_dir}")
    if outcome.status == "done":
        print("  summary.csv images.csv objects.csv epochs.csv bins.csv thresholds.csv diagnostics.csv split.csv")
        figures = "samples.png diagnostics.png " * (outcome.run_dir / "samples.png").exists()
        print(f"  timings.csv {figures}predictions/ examples/ checkpoints/ config.yaml run.json log.txt")
    elif (outcome.run_dir / "traceback.txt").exists():
        print(f"  {outcome.run_dir / 'traceback.txt'}")
