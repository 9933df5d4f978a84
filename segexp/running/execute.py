"""Execute a run, or continue what an earlier attempt left, and record how it ended."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import segexp
from segexp.data.check import is_stored
from segexp.data.description import data_lines
from segexp.errors import BusyError, DataChangedError, DivergedError, UsageError, first_line, out_of_memory
from segexp.models.build import Built, build_warnings, init_sha, parameter_count
from segexp.records import PROGRESS, SCHEMA_VERSION, flatten, read_run, write_atomic, write_run, write_table
from segexp.records.files import shown_command
from segexp.records.owned import HAS_DIR_FD, Ownership, discard, open_atomic, open_file
from segexp.records.plugins import PLUGINS, plugin_lines, plugins_record
from segexp.records.process import OwnedError, environment_text, heed_interrupts, interruptible, ownership, waits
from segexp.records.scores import facts_of
from segexp.registry.plugins import LOADED, in_plugin, no_exit
from segexp.running import (
    Outcome,
    RunSpec,
    archive,
    config_yaml,
    finished_before,
    now,
    outcome_of,
    scoring_notes,
    split_rows,
    threads_begun_with,
)
from segexp.running.build import (
    InitialNetwork,
    head_record,
    initial_network,
    make_scorer,
    make_task,
    order_sha,
    threads_kept,
)
from segexp.running.finalize import finalize, finalize_diverged
from segexp.tracking import track
from segexp.training.checkpoint import Checkpoints
from segexp.training.loop import begin, restore, train, write_progress
from segexp.training.on_gpu import CAPTURED_ON, Captured

log = logging.getLogger("segexp")

Stop = Callable[[], bool]  # whether the run shall stop after its epoch

LIBRARIES = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "hydra-core", "omegaconf", "numpy", "scipy")
"""Libraries that results depend on: run.json has their versions."""


@no_exit()
@threads_kept()
def execute(spec: RunSpec) -> Outcome:
    """Execute the run. Its directory says how it ended: done, diverged, failed or interrupted.

    Raises UsageError where it cannot begin, BusyError where another process is writing it or has taken it over, and
    KeyboardInterrupt after recording the interruption. SIGTERM and Ctrl-C interrupt at the next step (finished epochs
    are kept), a second Ctrl-C at once, SIGUSR1 at the end of the epoch.
    """
    begun = time.perf_counter()
    finished = finished_before(spec)
    if finished:
        if (spec.run_dir / "lock").exists():  # it was killed when all was done
            with suppress(OwnedError, OSError), ownership(spec.run_dir):
                _remove_last(spec, finished.status, finished.summary)
        return finished
    config, threads = spec.config, threads_begun_with(spec.run_dir)
    if threads is not None and not config.trainer.threads and config.resume != "restart":
        # Continue with as many threads as it began with: other numbers of threads round differently.
        trainer = dataclasses.replace(config.trainer, threads=threads)
        spec = dataclasses.replace(spec, config=dataclasses.replace(config, trainer=trainer))
    with build_warnings() as caught:
        initial = initial_network(spec)
    warnings = [*spec.warnings, *dict.fromkeys(caught), *initial.built.warnings]
    run_dir = spec.run_dir
    try:
        if config.resume == "restart":
            archive(spec)
        run_dir.mkdir(parents=True, exist_ok=True)
        with interruptible() as stop_requested, ownership(run_dir) as own, _log_file(run_dir / "log.txt"):
            # Another process may have finished it since the check above.
            finished = finished_before(spec)
            return finished or _recorded(spec, initial, warnings, own, stop_requested, begun)
    except OwnedError as owner:
        raise BusyError(f"{run_dir} is being written by {owner}: wait for it or stop it") from None


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Continue the log in a copy: an earlier owner, which may still have it open, writes into a file without a name."""
    with open_atomic(path) as file:
        with suppress(FileNotFoundError), open_file(path) as earlier:
            shutil.copyfileobj(earlier, file)
        place = os.dup(file.fileno()) if HAS_DIR_FD else path
    stream = open(place, "a", encoding="utf-8")  # noqa: SIM115
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.INFO)  # workers of a sweep and Python programs have not chosen a level
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        stream.close()


def _recorded(
    spec: RunSpec, initial: InitialNetwork, warnings: list[str], own: Ownership, stop: Stop, begun: float
) -> Outcome:
    """Run, and write the end into run.json whatever happens, unless another process has taken the directory over."""
    run_dir = spec.run_dir
    earlier = read_run(run_dir) if (run_dir / "run.json").exists() else {}
    record = _first_record(spec, initial.built, initial.device, warnings)
    record |= {"attempts": (earlier.get("attempts") or 0) + 1, "seconds": earlier.get("seconds") or 0.0}
    first = (earlier.get("earlier_attempts") or [earlier])[0]  # of earlier versions, which recorded no "begun"
    record["begun"] = earlier.get("begun") or first.get("started") or record["started"]
    if (run_dir / "checkpoints" / "last.pt").exists():
        _add_earlier_attempt(record, earlier)
    _write_beginning(spec, initial, record)
    finish_tracking = track(run_dir, spec.config.tracking)
    try:
        try:
            summary = _train_and_score(spec, initial, record, stop)
        finally:
            heed_interrupts()  # rather than the error of a process of trainer.workers that the same signal ended
        record |= {"status": "done", "summary": summary, "error": ""}
    except DivergedError as error:
        record |= {"status": "diverged", "error": str(error)}
        record["summary"] = finalize_diverged(spec, record)
    except (KeyboardInterrupt, SystemExit):
        # A cluster's launcher raises SystemExit when its job must make room.
        record |= {"status": "interrupted", "error": "the same command continues it"}
        raise
    except DataChangedError as error:
        # From a process that loads images, it follows the lines of that process.
        record |= {"status": "failed", "error": str(error).splitlines()[-1].rpartition("DataChangedError: ")[2]}
    except UsageError as error:
        record |= {"status": "failed", "error": str(error)}
        raise
    except Exception as error:
        write_atomic(run_dir / "traceback.txt", traceback.format_exc())
        record |= {"status": "failed", "error": _why(error)}
    finally:
        if own.lost:
            raise own.taken_over() from None
        discard(run_dir / PROGRESS)
        record["finished"] = now()
        record["seconds"] = round(record["seconds"] + time.perf_counter() - begun, 3)
        write_run(run_dir, record)
        log.info("%s", ": ".join(filter(None, (record["status"], record["error"]))))
        if failures := finish_tracking():
            record["warnings"] += failures
            write_run(run_dir, record)
    _remove_last(spec, record["status"], record.get("summary", {}))
    return outcome_of(run_dir, record)


def _why(error: Exception) -> str:
    return out_of_memory(error) or in_plugin(error) or f"{type(error).__name__}: {first_line(error)}"


def _write_beginning(spec: RunSpec, initial: InitialNetwork, record: dict[str, Any]) -> None:
    """Write and log what is known before the first step."""
    run_dir = spec.run_dir
    discard(run_dir / PROGRESS)
    write_atomic(run_dir / "config.yaml", config_yaml(spec.config))
    write_atomic(run_dir / "environment.txt", environment_text())
    write_table(run_dir / "split.csv", "split", split_rows(spec), record)
    for plugin in (LOADED[name] for name in spec.plugins):
        for name, content in plugin.files.items():
            write_atomic(run_dir / PLUGINS / plugin.name / name, content)
    write_run(run_dir, record)
    discard(run_dir / "traceback.txt")
    log.info("run %s on %s: %s", spec.run_id, initial.device, run_dir)
    for line in data_lines(spec.data):
        log.info("data: %s", line, extra={"printed": True})  # the command prints them, once for a sweep
    for line in (*plugin_lines(spec.plugins), *record.get("notes", ())):
        log.info("%s", line)


def _remove_last(spec: RunSpec, status: str, summary: Mapping[str, Any]) -> None:
    """Nothing needs last.pt once a run is done, unless no epoch was the best."""
    if status == "done" and summary.get("best_epoch") and not spec.config.trainer.keep_last:
        discard(spec.run_dir / "checkpoints" / "last.pt")


def _add_earlier_attempt(record: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Keep what the attempts before were made with, and warn where the software has changed since."""
    made_with = {key: earlier.get(key) for key in ("versions", "git", "host", "device", "started", "finished")}
    record["earlier_attempts"] = [*(earlier.get("earlier_attempts") or []), made_with]
    before, after = earlier.get("versions") or {}, record["versions"]
    changed = [f"{name} {before.get(name)} -> {after[name]}" for name in after if before.get(name) != after[name]]
    began, now_at = (str((one.get("git") or {}).get("commit"))[:8] for one in (earlier, record))
    changed += [f"commit {began} -> {now_at}"] if began != now_at else []
    if changed:
        record["warnings"].append(f"continued with other software than it began with: {', '.join(changed)}")
        log.warning("%s", record["warnings"][-1])


@no_exit()
def _train_and_score(spec: RunSpec, initial: InitialNetwork, record: dict[str, Any], stop: Stop) -> dict[str, Any]:
    """Train, select, score and write every file; returns the summary row."""
    run_dir = spec.run_dir
    scorer = make_scorer(spec, initial)
    normalisation: dict[str, Any] = {"mean": list(scorer.normalise.mean_C), "std": list(scorer.normalise.std_C)}
    if is_stored(spec.facts):
        normalisation["stored"] = True
    record["normalisation"] = normalisation
    task = make_task(scorer, initial.built.sites)
    record["order_sha"] = order_sha(spec)
    record["device"]["resident_bytes"] = task.resident_bytes
    write_run(run_dir, record)

    extra = {"identity": spec.identity, "normalisation": normalisation}
    with Checkpoints(run_dir / "checkpoints", extra, spec.config.trainer.keep_last) as checkpoints:
        state = begin(spec.config, task)
        if (checkpoints.folder / "last.pt").exists():
            restore(task, state, checkpoints)
            log.info("continuing after epoch %d", state.epoch)
        try:
            train(spec.config, task, state, checkpoints, stop)
        finally:
            if task.compiled is not None:
                record["device"]["compiled"] = task.compiled
            if task.device.type in CAPTURED_ON:
                replayed = state.replayed
                record["device"]["captured"] = isinstance(replayed, Captured) and replayed.replay is not None
            write_progress(run_dir, state, record)
        state.replayed = state.passes  # scoring needs the memory of the graph, and of the gradients in it
        task.network.zero_grad(set_to_none=True)
        checkpoints.finish()
        return finalize(scorer, task, state, record, checkpoints.best)


def _first_record(spec: RunSpec, built: Built, device: torch.device, warnings: list[str]) -> dict[str, Any]:
    """The first content of run.json: configuration, identity, and what the run is made with."""
    return {
        "schema_version": SCHEMA_VERSION,
        "numerics": spec.numerics,
        "status": "running",
        "error": "",
        "run_id": spec.run_id,
        "config_id": spec.config_id,
        "identity": spec.identity,
        "dataset_sha": spec.dataset_sha,
        "split_sha": spec.split_sha,
        "init_sha": init_sha(built.network),
        "config": flatten(spec.config),
        "seeds": {
            "seed": spec.config.seed,
            "split.seed": spec.config.split.seed,
            "dataset.seed": getattr(spec.config.dataset, "seed", None),
        },
        "versions": {
            "segexp": segexp.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
            "torch": torch.__version__,
        },
        "git": git_state(),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "wait": waits(),
            "memory_format": spec.config.trainer.format,
            "precision": spec.config.trainer.precision,
        },
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": shown_command(sys.argv),
        "started": now(),
        "finished": None,
        "n_params": parameter_count(built.network),
        "head": head_record(spec),
        "input_size": built.size,
        "init": built.init,
        "swap_report": dataclasses.asdict(built.report),
        "data": spec.data,
        **({"plugins": used} if (used := plugins_record(spec.plugins)) else {}),
        **({"scores": scores} if (scores := facts_of(spec.config.metrics.scores)) else {}),
        "warnings": warnings,
        **({"notes": notes} if (notes := scoring_notes(spec.config, spec.image_set)) else {}),
        "n_rows_expected": {},
        "sha256": {},
    }


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that segexp runs from, whether tracked files are changed, and a hash of the changes.

    None for an installed package. Looked up once: a process runs what it has imported.
    """
    checkout = Path(segexp.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    diff = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD")
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), diff)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {
        "commit": commit.decode("ascii"),
        "dirty": bool(changes),
        "diff_sha": hashlib.sha256(changes).hexdigest() if changes else None,
    }


def _processor() -> str:
    """Name of the CPU, which Python does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
