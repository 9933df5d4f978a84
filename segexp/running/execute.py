"""Carry a prepared run out, or continue what an earlier attempt left, and record how it ended."""

import dataclasses
import logging
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segexp
from segexp.errors import BusyError, DivergedError, UsageError, first_line
from segexp.models.build import Built, build_warnings
from segexp.records import check_complete, read_run, write_atomic, write_json, write_table
from segexp.records.environment import environment_text
from segexp.records.lock import OwnedError, Ownership, ownership, signal_handlers
from segexp.running.build import initial_network, make_scorer, make_task, order_sha
from segexp.running.finalize import conclude, conclude_diverged
from segexp.running.prepare import RunSpec, config_yaml, split_rows
from segexp.running.provenance import first_record, now

if TYPE_CHECKING:
    import torch

    from segexp.data.batches import InputGeometry

log = logging.getLogger("segexp")


@dataclass(frozen=True)
class Outcome:
    """How a run ended. reason: one line where it did not end well. skipped: it was done before.

    diagnostics: what the hidden activations did on the validation images, as in run.json.
    """

    run_dir: Path
    status: str
    summary: dict[str, Any]
    reason: str = ""
    skipped: bool = False
    diagnostics: dict[str, Any] = field(default_factory=dict)


def execute(prepared: RunSpec) -> Outcome:
    """Carry the run out. Its directory says how it ended: done, diverged, failed or interrupted.

    Raises UsageError where it cannot begin, BusyError where another process is at it; KeyboardInterrupt after having
    recorded it. SIGTERM interrupts at once (finished epochs are kept), SIGUSR1 at the end of the epoch.
    """
    begun = time.perf_counter()
    finished = finished_before(prepared)
    if finished:
        return finished
    prepared = _with_its_threads(prepared)
    with build_warnings() as told:
        built, device, fit = initial_network(prepared)
    warnings = [*prepared.warnings, *dict.fromkeys(told), *built.warnings]
    run_dir = prepared.run_dir
    try:
        if prepared.config.resume == "restart":
            set_aside(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        with ownership(run_dir) as own, _log_file(run_dir / "log.txt"), _signals() as stop_requested:
            # Somebody else may have finished it between the first look and the lock.
            finished = finished_before(prepared)
            return finished or _recorded(prepared, built, device, fit, warnings, own, stop_requested, begun)
    except OwnedError as owner:
        raise BusyError(f"{run_dir} is being written by {owner}: wait for it or stop it") from None


def finished_before(prepared: RunSpec) -> Outcome | None:
    """The outcome of a run that is over; None where there is something to do. Honours ``resume``."""
    run_dir, resume = prepared.run_dir, prepared.config.resume
    if not (run_dir / "run.json").exists():
        return None
    record = read_run(run_dir)
    if record.get("identity") != prepared.identity:
        raise UsageError(f"{run_dir} holds another run (identity {str(record.get('identity'))[:16]}): move it away")
    if resume == "restart":
        return None
    if record["status"] in ("done", "diverged"):
        if record.get("versions", {}).get("segexp") != segexp.__version__:
            log.warning("%s was written by segexp %s", run_dir, record.get("versions", {}).get("segexp"))
        check_complete(run_dir, record)
        return _outcome(run_dir, record, skipped=True)
    if resume == "never":
        raise UsageError(f"{run_dir} is {record['status']} and resume=never: use resume=auto or resume=restart")
    return None


def _with_its_threads(prepared: RunSpec) -> RunSpec:
    """A run goes on with as many CPU threads as it began with, unless told otherwise: only then is it the same run to
    the last bit."""
    config = prepared.config
    threads = threads_begun_with(prepared.run_dir)
    if config.trainer.threads or config.resume == "restart" or threads is None:
        return prepared
    trainer = dataclasses.replace(config.trainer, threads=threads)
    return dataclasses.replace(prepared, config=dataclasses.replace(config, trainer=trainer))


def threads_begun_with(run_dir: Path) -> int | None:
    """CPU threads of a run that has a checkpoint to go on from; None where there is none, or it is unknown."""
    if not ((run_dir / "checkpoints" / "last.pt").exists() and (run_dir / "run.json").exists()):
        return None
    threads = read_run(run_dir).get("device", {}).get("threads")
    return threads if isinstance(threads, int) else None


def set_aside(run_dir: Path) -> None:
    """Nothing recorded is overwritten: an earlier attempt keeps its files under another name.

    Raises OwnedError when another process is at it.
    """
    if not (run_dir / "run.json").exists():
        return
    with ownership(run_dir):
        number = 1
        while (aside := run_dir.with_name(f"{run_dir.name}.old{number}")).exists():
            number += 1
        run_dir.rename(aside)
        (aside / "lock").unlink()
    log.warning("the earlier attempt is kept in %s", aside)


def record_death(run_dir: Path, reason: str, states: Sequence[str] = ("running",), status: str = "failed") -> None:
    """Write into the record of a run whose process died how that came, where its status is one of ``states``; nothing
    where it had not begun, or is alive."""
    try:
        with ownership(run_dir):
            record = read_run(run_dir)
            if record.get("status") in states:
                write_json(run_dir / "run.json", record | {"status": status, "error": reason, "finished": now()})
    except (FileNotFoundError, UsageError, OwnedError):
        return


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM ends a run at once, as Ctrl-C does; SIGUSR1 stops it after the epoch. Yields whether SIGUSR1 came."""
    asked: list[int] = []

    def interrupt(signum: int, frame: object) -> None:
        # Another one must not stop us from recording the first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers: dict[int, Any] = {signal.SIGTERM: interrupt}
    if hasattr(signal, "SIGUSR1"):
        handlers[signal.SIGUSR1] = lambda signum, frame: asked.append(signum)
    with signal_handlers(handlers):
        yield lambda: bool(asked)


def _recorded(
    prepared: RunSpec,
    built: Built,
    device: "torch.device",
    fit: "InputGeometry",
    warnings: list[str],
    own: Ownership,
    stop_requested: Callable[[], bool],
    begun: float,
) -> Outcome:
    """Run, and write how it ended into run.json whatever happens, unless the directory has become another's."""
    run_dir = prepared.run_dir
    earlier = read_run(run_dir) if (run_dir / "run.json").exists() else {}
    record = first_record(prepared, built, device, warnings)
    record |= {"attempts": earlier.get("attempts", 0) + 1, "seconds": earlier.get("seconds", 0.0)}
    if (run_dir / "checkpoints" / "last.pt").exists():
        _recall(record, earlier)
    for partial in run_dir.glob(".*.partial"):
        partial.unlink()  # of a process that was killed while it wrote
    write_atomic(run_dir / "config.yaml", config_yaml(prepared.config))
    write_atomic(run_dir / "environment.txt", environment_text())
    record["n_rows_expected"]["split"] = write_table(run_dir / "split.csv", "split", split_rows(prepared))
    write_json(run_dir / "run.json", record)
    (run_dir / "traceback.txt").unlink(missing_ok=True)
    log.info("run %s on %s: %s", prepared.run_id, device, run_dir)
    try:
        summary = _carry_out(prepared, built, device, fit, record, stop_requested)
        record |= {"status": "done", "summary": summary, "error": ""}
    except DivergedError as error:
        record |= {"status": "diverged", "error": str(error)}
        record["summary"] = conclude_diverged(prepared, record)
    except (KeyboardInterrupt, SystemExit):
        # SystemExit: how a cluster's launcher leaves when its job must make room.
        record |= {"status": "interrupted", "error": "interrupted; the same command continues it"}
        raise
    except UsageError as error:
        record |= {"status": "failed", "error": str(error)}
        raise
    except Exception as error:
        write_atomic(run_dir / "traceback.txt", traceback.format_exc())
        record |= {"status": "failed", "error": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        if own.lost:
            log.error("another process has taken %s over: nothing more is written there", run_dir)
        else:
            record["finished"] = now()
            record["seconds"] = round(record["seconds"] + time.perf_counter() - begun, 3)
            write_json(run_dir / "run.json", record)
            log.info("%s %s", record["status"], record["error"])
    return _outcome(run_dir, record)


def _recall(record: dict[str, Any], earlier: dict[str, Any]) -> None:
    """What the attempts before were made with; a warning where it is not what continues them."""
    made_with = {key: earlier.get(key) for key in ("versions", "git", "host", "device", "started", "finished")}
    record["earlier_attempts"] = [*earlier.get("earlier_attempts", []), made_with]
    before, now_ = earlier.get("versions") or {}, record["versions"]
    changed = [f"{name} {before.get(name)} -> {now_[name]}" for name in now_ if before.get(name) != now_[name]]
    commits = [(r.get("git") or {}).get("commit") for r in (earlier, record)]
    if commits[0] != commits[1]:
        changed.append(f"commit {str(commits[0])[:8]} -> {str(commits[1])[:8]}")
    if changed:
        record["warnings"].append(f"continued with other software than it began with: {', '.join(changed)}")
        log.warning("%s", record["warnings"][-1])


def _outcome(run_dir: Path, record: dict[str, Any], skipped: bool = False) -> Outcome:
    summary, diagnostics = record.get("summary", {}), record.get("diagnostics", {})
    return Outcome(run_dir, record["status"], summary, record.get("error", ""), skipped, diagnostics)


def _carry_out(
    prepared: RunSpec,
    built: Built,
    device: "torch.device",
    fit: "InputGeometry",
    record: dict[str, Any],
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    """Train, select, score and write every file; returns the summary row."""
    from segexp.training.loop import begin, restore, train, write_progress

    run_dir = prepared.run_dir
    scorer = make_scorer(prepared, built.network, device, fit)
    normalise = scorer.normalise
    record["normalisation"] = {"mean": normalise.mean_C, "std": normalise.std_C}
    task = make_task(scorer, built.sites)
    record["order_sha"] = order_sha(prepared)
    write_json(run_dir / "run.json", record)

    checkpoints = run_dir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    state = begin(prepared.config, task)
    if (checkpoints / "last.pt").exists():
        restore(task, state, checkpoints / "last.pt")
        log.info("continuing after epoch %d", state.epoch)
    extra = {"normalisation": {"mean": list(normalise.mean_C), "std": list(normalise.std_C)}}
    try:
        train(prepared.config, task, run_dir, state, extra, stop_requested)
    finally:
        record["n_rows_expected"] |= write_progress(run_dir, state)
    return conclude(scorer, task, state, record)
