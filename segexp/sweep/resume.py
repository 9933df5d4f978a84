"""The runs of a study as jobs, from their directories: to finish them, or to tune their arms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from segexp.config.arm import ARM_GROUPS, arm_of, conditions_of
from segexp.config.compose import compose_job, quoted, recorded_tree, tree_overrides, typed_of
from segexp.errors import UsageError
from segexp.records import check_numerics, flatten
from segexp.records.runs import FINAL, RESUMABLE, Run, runs_in, studies_in
from segexp.running import LoadedDataset
from segexp.sweep.plan import Job, LeftOut, Plan, spec_of
from segexp.sweep.tune import study_for


def resume_plan(folder: Path, only: Sequence[str], more: Sequence[str], extra: Sequence[str]) -> Plan:
    """The unfinished runs of a study, or of all studies of a folder, inside a `hydra_session`.

    only: names of `RESUMABLE`; empty for all of them. more: overrides for all runs, such as dataset.root where the
    images have moved; a run that they would change is refused. Raises UsageError where all runs are refused.
    """
    states = [state for name in only for state in RESUMABLE[name]]
    plan, images = Plan(), dict[str, LoadedDataset]()
    finished = 0
    for study in studies_in(folder):
        for run in runs_in(study):
            if run.state in FINAL:
                finished += 1
            elif run.state == "running":
                plan.notes.append(f"{run.path.name} is running: {run.owner} holds its lock")
            elif not states or run.state in states:
                try:
                    plan.jobs.append(_job(run, study.path, more, extra, images))
                except (UsageError, OSError) as error:
                    plan.refused.append(LeftOut(run.path.name, str(error)))
    if not plan.jobs and plan.refused:
        raise UsageError(plan.refused[0].reason)
    plan.notes.append(f"already finished: {finished}")
    return plan


def _job(run: Run, study: Path, more: Sequence[str], extra: Sequence[str], images: dict[str, LoadedDataset]) -> Job:
    """A run as a job again. Raises UsageError where it would not be the same run."""
    if run.record:
        check_numerics(run.record, run.path.name)
    job = _recorded_job(run, [*_place(study), *more], extra, images)
    if job.spec.run_id != run.run_id:
        raise UsageError(
            f"{run.path.name} would become another run ({job.spec.run_id}): its data, segexp or an override has "
            "changed; `segexp diff` shows what differs, `segexp train --from` starts a new run"
        )
    return job


def _place(study: Path) -> list[str]:
    """A study may have been moved since its runs were recorded."""
    return [f"outputs={quoted(str(study.parent))}", f"study.name={quoted(study.name)}"]


def _recorded_job(run: Run, more: Sequence[str], extra: Sequence[str], images: dict[str, LoadedDataset]) -> Job:
    if (run.path / "config.yaml").exists():
        tree, where = recorded_tree(run.path), str(run.path / "config.yaml")
    elif run.planned is not None:
        tree, where = yaml.safe_load(yaml.safe_dump(dict(run.planned.config))), f"the plan of {run.path.name}"
    else:
        raise UsageError(f"{run.path} holds no configuration: start its command again, or remove the folder")
    words = tree_overrides(tree, more, where)
    spec = spec_of(typed_of(compose_job(words, extra)), images)
    return Job(run.planned.overrides if run.planned else run.path.name, tuple(words), spec)


def tuning_jobs(folder: Path, seeds: Sequence[int] | None, extra: Sequence[str]) -> list[Job]:
    """One job per arm of a study and seed, in a study of its own beside it. seeds: None for the two lowest of its runs.

    An arm that was run under several conditions has a job for each, which the search refuses. Raises UsageError where
    the folder holds several studies, or no recorded run.
    """
    runs = [run for study in studies_in(folder) for run in runs_in(study)]
    if len({run.study for run in runs}) > 1:
        raise UsageError(f"{folder} holds several studies: name one")
    images: dict[str, LoadedDataset] = {}
    first: dict[Any, Run] = {}
    found: set[int] = set()
    for run in runs:
        if not run.record.get("config"):
            continue
        config = run.record["config"]
        found.add(int(config["seed"]))
        made_by = conditions_of(config) | {
            key: value for key, value in config.items() if key.split(".")[0] in ARM_GROUPS
        }
        first.setdefault(tuple(sorted((key, str(value)) for key, value in made_by.items())), run)
    if not first:
        raise UsageError(f"{folder} holds no recorded run to take arms from")
    jobs: dict[Any, Job] = {}
    for run in first.values():
        place = [f"outputs={quoted(str(run.path.parent.parent))}", f"study.name={quoted(study_for(run.study))}"]
        for seed in seeds or sorted(found)[:2]:
            job = _recorded_job(run, [*place, f"seed={seed}", "tuned=null"], extra, images)
            config = job.spec.config
            # A record of an earlier segexp may lack a key and mean the same.
            same = (arm_of(config), str(conditions_of(flatten(config))), seed)
            jobs.setdefault(same, Job(f"{', '.join(arm_of(config))} seed={seed}", job.overrides, job.spec))
    return list(jobs.values())
