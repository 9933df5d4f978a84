"""`segexp resume DIR`: finish the runs of a study without its original command line."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Overrides, Parser, add_config_dir, ignoring_closed_output, log_to_terminal
from segexp.errors import DONE, UsageError
from segexp.records.runs import RESUMABLE

EPILOG = """\
Runs every failed, interrupted, stale and pending run of the study with its recorded configuration. Finished runs are
not touched. Overrides change where and how runs are executed, not what they are: hydra.launcher.n_jobs=4,
hydra/launcher=submitit_slurm, trainer.device=cpu, or dataset.root=DIR where the images have moved.

examples:
  segexp resume outputs/outputs_vs_losses
  segexp resume outputs/outputs_vs_losses --only failed hydra.launcher.n_jobs=1
"""


def parser() -> Parser:
    parser = Parser("resume", EPILOG)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a study, a run directory, or an outputs folder")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="where and how the runs are executed",
        complete=Overrides(("hydra", "trainer.", "dataset.")),
    )
    add("--only", action="append", choices=list(RESUMABLE), default=[], help="only runs in this state")
    add_config_dir(parser)
    add("--no-wait", action="store_true", help="on a cluster: submit the runs and return")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()

    from segexp.config.compose import hydra_session, parse_overrides, readable
    from segexp.sweep import carry_out, local_options, print_plan
    from segexp.sweep.plan import base_of, resume_plan

    overrides = readable(options.overrides)
    with hydra_session(options.config_dir, options.allow_env) as extra:
        launching = [o for o in overrides if o.startswith("hydra")]
        base = base_of(launching, extra)
        local_options(base, not options.no_wait)
        for override in parse_overrides(overrides):
            if override.is_sweep_override() or override.key_or_group in ("study", "study.name", "outputs", "resume"):
                raise UsageError(f"'{override.input_line}': `segexp resume` cannot change this; leave it out")
        with ignoring_closed_output():
            plan = resume_plan(options.folder, options.only, [o for o in overrides if o not in launching], extra)
            print_plan(plan)
            if not plan.jobs:
                print("nothing to resume")
                return DONE
            report = carry_out(plan, base, extra, wait=not options.no_wait)
            print(f"\n{report.text()}")
            return report.exit_code
