"""The composition root: one `Config` -> one finished run directory.

prepare  reads and checks the data, splits them, and names the run (no torch)
execute  builds, trains, scores and records it, or continues what an earlier attempt left
"""

import dataclasses
import datetime
import functools
import importlib.metadata
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import segexp
from segexp.activations.head import logit_channels, make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config, arm_identity, flatten, identity, mode_of, params
from segexp.data import adapters
from segexp.data.check import PairFacts, check_pairs, check_split
from segexp.data.image_set import ImageSet, fingerprint
from segexp.data.split import Split, make_split, split_sha
from segexp.errors import DivergedError, UsageError
from segexp.losses import LOSSES
from segexp.models.build import (
    build_network,
    build_warnings,
    init_sha,
    parameter_count,
    stride_of,
    weights_sha,
)
from segexp.records import (
    SCHEMA_VERSION,
    OwnedError,
    check_complete,
    ownership,
    read_run,
    run_name,
    write_atomic,
    write_json,
    write_table,
)

if TYPE_CHECKING:
    import torch

    from segexp.data.batches import Fit, Normalisation, Read
    from segexp.evaluation.score import SplitScores
    from segexp.training.loop import Task, TrainingState

log = logging.getLogger("segexp")


@dataclass(frozen=True)
class Prepared:
    """A run before torch is imported: everything that decides its identity, and its directory."""

    config: Config
    image_set: ImageSet
    facts: PairFacts
    split: Split
    dataset_sha: str
    split_sha: str
    identity: str
    config_id: str
    run_dir: Path
    warnings: tuple[str, ...]

    @property
    def run_id(self) -> str:
        """First 8 hex digits of the identity."""
        return self.identity[:8]


@dataclass(frozen=True)
class Outcome:
    """How a run ended. reason: one line where it did not end well. skipped: it was done before."""

    run_dir: Path
    status: str
    summary: dict[str, Any]
    reason: str = ""
    skipped: bool = False


def prepare(config: Config) -> Prepared:
    """Open, check and split the data, and name the run. Raises UsageError before anything is written."""
    image_set = adapters()[config.dataset.adapter].open(config.dataset)
    facts = check_pairs(image_set, threads=config.trainer.threads or os.cpu_count() or 1)
    split = make_split(image_set, config.split.source, config.split.fractions, config.split.seed)
    warnings = check_split(image_set, facts, split)
    content = {
        "dataset": fingerprint(image_set),
        "split": split_sha(image_set, split),
        "weights": weights_sha(config.backbone),
    }
    run_identity = identity(config, content)
    parts = (str(config.dataset.name), config.backbone.name, config.hidden_activation.name, config.activation.name)
    name = run_name([*parts, config.loss.name, f"s{config.seed}"], run_identity[:8])
    return Prepared(
        config=config,
        image_set=image_set,
        facts=facts,
        split=split,
        dataset_sha=content["dataset"],
        split_sha=content["split"],
        identity=run_identity,
        config_id=arm_identity(config, content)[:8],
        run_dir=_directory(Path(config.outputs) / config.study.name, name, run_identity[:8]),
        warnings=(*image_set.notes, *warnings),
    )


def _directory(study: Path, name: str, run_id: str) -> Path:
    """The directory of this identity: the one that is there, whatever its data set was called then, or a new one."""
    return next((p for p in sorted(study.glob(f"*-{run_id}")) if (p / "run.json").exists()), study / name)


def execute(prepared: Prepared) -> Outcome:
    """Carry the run out. Its directory says how it ended: done, diverged, failed or interrupted.

    Raises UsageError where it cannot begin, OwnedError's line included; KeyboardInterrupt after having recorded it.
    """
    finished = _already_finished(prepared)
    if finished:
        return finished
    with build_warnings() as told:
        network, device, fit = initial_network(prepared)
    warnings = [*prepared.warnings, *dict.fromkeys(told)]
    run_dir = prepared.run_dir
    try:
        if prepared.config.resume == "restart" and (run_dir / "run.json").exists():
            with ownership(run_dir):
                _set_aside(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        with ownership(run_dir), _log_file(run_dir / "log.txt"), _terminate_as_interrupt():
            # Somebody else may have finished it between the first look and the lock.
            return _already_finished(prepared) or _recorded(prepared, network, device, fit, warnings)
    except OwnedError as owner:
        raise UsageError(f"{run_dir} is being written by {owner}: wait for it or stop it") from None


def _already_finished(prepared: Prepared) -> Outcome | None:
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
        return Outcome(run_dir, record["status"], record.get("summary", {}), record.get("error", ""), skipped=True)
    if resume == "never":
        raise UsageError(f"{run_dir} is {record['status']} and resume=never: use resume=auto or resume=restart")
    return None


def _set_aside(run_dir: Path) -> None:
    """Nothing recorded is overwritten: an earlier attempt keeps its files under another name."""
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.old{number}")).exists():
        number += 1
    run_dir.rename(aside)
    (aside / "lock").unlink()
    log.warning("the earlier attempt is kept in %s", aside)


def initial_network(prepared: Prepared) -> tuple["torch.nn.Module", "torch.device", "Fit"]:
    """The initial network on its device, and how images are fitted to it. Raises UsageError."""
    import torch

    config = prepared.config
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = _device(config.trainer.device)
    network = build_network(
        config.model,
        config.backbone,
        prepared.image_set.channels,
        logit_channels(config.dataset.num_classes, mode_of(config)),
        config.seed,
    )
    fit = _fit(prepared, stride_of(network))
    return network.to(device), device, fit


def _device(name: str) -> "torch.device":
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UsageError(f"trainer.device={name} is not available here; `segexp doctor` says why, or use auto")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def _fit(prepared: Prepared, stride: int) -> "Fit":
    """Check the input size against the network's stride."""
    from segexp.data.batches import Fit

    dataset = prepared.config.dataset
    size = dataset.image_size
    if size is None:
        if dataset.fit == "resize":
            raise UsageError("dataset.fit=resize needs a size: give dataset.image_size=N, or dataset.fit=pad")
        size = -(-int(prepared.facts.sizes_N2.max()) // stride) * stride
    if size % stride:
        below, above = size // stride * stride, -(-size // stride) * stride
        near = f"{below} or {above}" if below else str(above)
        raise UsageError(
            f"dataset.image_size={size} does not fit backbone.name={prepared.config.backbone.name} "
            f"with model.encoder_depth={prepared.config.model.encoder_depth}: it must be a multiple of {stride}, "
            f"such as {near}"
        )
    return Fit(dataset.fit, size, stride)


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
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does. Signals can only be handled in the main thread."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _recorded(
    prepared: Prepared, network: "torch.nn.Module", device: "torch.device", fit: "Fit", warnings: list[str]
) -> Outcome:
    """Run, and write how it ended into run.json whatever happens."""
    run_dir = prepared.run_dir
    record = _first_record(prepared, network, device, warnings)
    write_atomic(run_dir / "config.yaml", config_yaml(prepared.config))
    write_json(run_dir / "run.json", record)
    (run_dir / "traceback.txt").unlink(missing_ok=True)
    log.info("run %s on %s: %s", prepared.run_id, device, run_dir)
    try:
        summary = _carry_out(prepared, network, device, fit, record)
        record |= {"status": "done", "summary": summary, "error": ""}
    except DivergedError as error:
        record |= {"status": "diverged", "error": str(error)}
        record["summary"] = _write_diverged(prepared, record)
    except KeyboardInterrupt:
        record |= {"status": "interrupted", "error": "interrupted; the same command continues it"}
        raise
    except UsageError as error:
        record |= {"status": "failed", "error": str(error)}
        raise
    except Exception as error:
        write_atomic(run_dir / "traceback.txt", traceback.format_exc())
        line = (str(error).splitlines() or [""])[0]
        record |= {"status": "failed", "error": f"{type(error).__name__}: {line}"}
    finally:
        record["finished"] = _now()
        write_json(run_dir / "run.json", record)
        log.info("%s %s", record["status"], record["error"])
    return Outcome(run_dir, record["status"], record.get("summary", {}), record["error"])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def config_yaml(config: Config) -> str:
    """The resolved configuration as YAML, in the order of the typed tree."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=120)


def versions() -> dict[str, str]:
    """Versions of segexp, Python and the libraries that results depend on."""
    names = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "hydra-core", "omegaconf", "numpy", "scipy")
    found = {"segexp": segexp.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in names}


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that segexp runs from and whether files differ from it; None for an installed package."""
    checkout = Path(segexp.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    answers = []
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            asked = subprocess.run(["git", "-C", str(checkout), *question], capture_output=True, text=True, check=False)
        except OSError:
            return None
        if asked.returncode:
            return None
        answers.append(asked.stdout.strip())
    return {"commit": answers[0], "dirty": bool(answers[1])}


def _processor() -> str:
    """Name of the CPU; Python itself does not know it on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _first_record(
    prepared: Prepared, network: "torch.nn.Module", device: "torch.device", warnings: list[str]
) -> dict[str, Any]:
    import torch

    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "error": "",
        "run_id": prepared.run_id,
        "config_id": prepared.config_id,
        "identity": prepared.identity,
        "dataset_sha": prepared.dataset_sha,
        "split_sha": prepared.split_sha,
        "init_sha": init_sha(network),
        "config": flatten(prepared.config),
        "seeds": {
            "seed": prepared.config.seed,
            "split.seed": prepared.config.split.seed,
            "dataset.seed": getattr(prepared.config.dataset, "seed", None),
        },
        "versions": versions() | {"torch": torch.__version__},
        "git": git_state(),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
            "memory_format": "contiguous",
            "precision": prepared.config.trainer.precision,
        },
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": sys.argv,
        "started": _now(),
        "finished": None,
        "n_params": parameter_count(network),
        "swap_report": None,
        "warnings": warnings,
        "n_rows_expected": {},
    }


def _carry_out(
    prepared: Prepared, network: "torch.nn.Module", device: "torch.device", fit: "Fit", record: dict[str, Any]
) -> dict[str, Any]:
    """Train, select, score and write every file; returns the summary row."""
    from segexp.data.batches import make_reader, training_statistics
    from segexp.training.loop import begin, restore, train, write_progress

    run_dir = prepared.run_dir
    read = make_reader(prepared.image_set, fit)
    normalise = training_statistics(read, prepared.split["train"])
    record["normalisation"] = {"mean": normalise.mean_C, "std": normalise.std_C}
    task = _task(prepared, network, device, fit, read, normalise)
    record["order_sha"] = _order_sha(prepared)
    write_json(run_dir / "run.json", record)

    checkpoints = run_dir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    state = begin(prepared.config, task)
    if (checkpoints / "last.pt").exists():
        restore(task, state, checkpoints / "last.pt")
        log.info("continuing after epoch %d", state.epoch)
    extra = {"normalisation": {"mean": list(normalise.mean_C), "std": list(normalise.std_C)}}
    try:
        train(prepared.config, task, run_dir, state, extra)
    finally:
        record["n_rows_expected"] |= write_progress(run_dir, state)
    return _score(prepared, task, fit, read, normalise, state, record)


def _task(
    prepared: Prepared,
    network: "torch.nn.Module",
    device: "torch.device",
    fit: "Fit",
    read: "Read",
    normalise: "Normalisation",
) -> "Task":
    """Head, loss and batches of this run, as the training loop takes them."""
    from collections.abc import Iterable, Sequence

    from segexp.data.augment import make_augment
    from segexp.data.batches import training_batches
    from segexp.evaluation.predict import make_forward
    from segexp.evaluation.score import EpochScores, epoch_scores
    from segexp.training.loop import Batch, Task

    config, image_set = prepared.config, prepared.image_set
    head = make_head(OUTPUT_ACTIVATIONS[config.activation.name], mode_of(config), params(config.activation))
    loss_of = functools.partial(LOSSES[config.loss.name].function, **params(config.loss))
    augment = make_augment(config.augment, config.seed)

    def batches(epoch: int, batch_indices: Sequence[Sequence[int]]) -> Iterable[Batch]:
        return training_batches(
            image_set,
            read,
            fit,
            normalise,
            augment,
            batch_indices,
            seed=config.seed,
            epoch=epoch,
            workers=config.trainer.workers,
            pin_memory=device.type == "cuda",
        )

    def validate() -> EpochScores:
        network.eval()
        forward = make_forward(network, device, config.trainer.precision)
        scored = _predictions(prepared, forward, head, fit, read, normalise, "val", device)
        policy: Any = config.metrics.empty_policy
        return epoch_scores(scored, loss_of, config.dataset.num_classes, image_set.group_ids, policy)

    return Task(network, head, loss_of, prepared.split["train"], batches, validate, device)


def _predictions(
    prepared: Prepared,
    forward: Any,
    head: Any,
    fit: "Fit",
    read: "Read",
    normalise: "Normalisation",
    part: str | list[int],
    device: "torch.device",
) -> Any:
    """Predictions of a split (by name) or of single images (by index), at scoring resolution."""
    from segexp.data.batches import scoring_batches
    from segexp.evaluation.predict import predict

    members = prepared.split[part] if isinstance(part, str) else part
    config = prepared.config
    batches = scoring_batches(read, fit, normalise, members, prepared.facts.sizes_N2, config.trainer.batch_size)
    return predict(forward, head, batches, device, config.metrics.resolution)


def _order_sha(prepared: Prepared) -> str:
    """SHA-256 over the order of the first epoch's images: equal where two runs see the same batches."""
    import hashlib

    from segexp.data.batches import epoch_order

    order = epoch_order(prepared.split["train"], prepared.config.seed, 1)
    names = "\n".join(prepared.image_set.image_ids[i] for i in order)
    return hashlib.sha256(names.encode()).hexdigest()


def _score(
    prepared: Prepared,
    task: "Task",
    fit: "Fit",
    read: "Read",
    normalise: "Normalisation",
    state: "TrainingState",
    record: dict[str, Any],
) -> dict[str, Any]:
    """Score validation and, once, test with the selected weights; write tables and pictures."""
    from segexp.evaluation.predict import make_forward
    from segexp.evaluation.score import Conventions, best_threshold, fit_on_validation, split_scores
    from segexp.training.checkpoints import load_checkpoint

    config, image_set, run_dir = prepared.config, prepared.image_set, prepared.run_dir
    if state.best_epoch:
        best = load_checkpoint(run_dir / "checkpoints" / "best.pt", task.device)
        task.network.load_state_dict(best["network"])
    task.network.eval()
    forward = make_forward(task.network, task.device, config.trainer.precision)
    predictions = functools.partial(
        _predictions, prepared, forward, task.head, fit, read, normalise, device=task.device
    )
    mode, n_classes = mode_of(config), config.dataset.num_classes
    if config.metrics.resolution == "native" or fit.how == "pad":
        n_pixels = int(prepared.facts.sizes_N2[prepared.split["val"]].prod(axis=1).sum())
    else:
        n_pixels = len(prepared.split["val"]) * fit.size**2
    fitted = fit_on_validation(predictions("val"), n_classes, mode, n_pixels)
    spacing = config.dataset.spacing or [1.0, 1.0]
    policy: Any = config.metrics.empty_policy
    conventions = Conventions(
        num_classes=n_classes,
        mode=mode,
        empty_policy=policy,
        boundary_band=config.metrics.boundary_band,
        surface_tolerance=config.dataset.surface_tolerance,
        spacing=(spacing[0], spacing[1]),
    )
    scores = {
        part: split_scores(predictions(part), part, image_set.image_ids, image_set.group_ids, fitted, conventions)
        for part in ("val", "test")
    }
    chosen = best_threshold(scores["val"])
    summary = _identity_columns(prepared, state, record) | scores["test"].summary
    summary |= {
        "threshold_tuned": float("nan") if chosen is None else float(scores["val"].thresholds_T[chosen]),
        "dice_tuned": float("nan") if chosen is None else float(scores["test"].dice_T[chosen]),
        "temperature": fitted.temperature,
        "frac_clipped": 0.0,
        "val_dice": scores["val"].summary["dice"],
    }
    _write_scores(prepared, summary, scores, record)
    _draw(prepared, task, predictions, read, scores["test"], summary)
    return summary


def _identity_columns(prepared: Prepared, state: "TrainingState | None", record: dict[str, Any]) -> dict[str, Any]:
    """The columns of summary.csv that say what the run is."""
    config = prepared.config
    return {
        "run_id": prepared.run_id,
        "config_id": prepared.config_id,
        "schema_version": SCHEMA_VERSION,
        "dataset": config.dataset.name,
        "dataset_sha": prepared.dataset_sha,
        "split_sha": prepared.split_sha,
        "model": config.model.name,
        "backbone": config.backbone.name,
        "hidden_activation": config.hidden_activation.name,
        "activation": config.activation.name,
        "loss": config.loss.name,
        "seed": config.seed,
        "fold": None,
        "init_sha": record["init_sha"],
        "order_sha": record.get("order_sha", ""),
        "n_params": record["n_params"],
        "n_train": len(prepared.split["train"]),
        "n_val": len(prepared.split["val"]),
        "n_test": len(prepared.split["test"]),
        "epochs": state.epoch if state else None,
        "best_epoch": state.best_epoch if state else None,
        "select_metric": f"val_{config.trainer.select}",
        "empty_policy": config.metrics.empty_policy,
        "resolution": config.metrics.resolution,
    }


def _write_scores(
    prepared: Prepared, summary: dict[str, Any], scores: dict[str, "SplitScores"], record: dict[str, Any]
) -> None:
    run_dir = prepared.run_dir
    both = [scores["val"], scores["test"]]
    record["n_rows_expected"] |= {
        "images": write_table(run_dir / "images.csv", "images", [row for s in both for row in s.images]),
        "bins": write_table(run_dir / "bins.csv", "bins", [row for s in both for row in s.bins]),
        "thresholds": write_table(run_dir / "thresholds.csv", "thresholds", [r for s in both for r in s.thresholds]),
        "summary": write_table(run_dir / "summary.csv", "summary", [summary]),
    }


def _write_diverged(prepared: Prepared, record: dict[str, Any]) -> dict[str, Any]:
    """A diverged run has no scores: every score of its summary is NaN, its other tables are empty."""
    from segexp.records import COLUMNS

    known = _identity_columns(prepared, None, record)
    summary = {name: known.get(name) for name in COLUMNS["summary"]}
    for table in ("images", "bins", "thresholds"):
        record["n_rows_expected"][table] = write_table(prepared.run_dir / f"{table}.csv", table, [])
    record["n_rows_expected"]["summary"] = write_table(prepared.run_dir / "summary.csv", "summary", [summary])
    return summary


def _draw(
    prepared: Prepared, task: "Task", predictions: Any, read: "Read", test: "SplitScores", summary: dict[str, Any]
) -> None:
    """samples.png with the worst, median and best test image; probability maps of eight fixed ones."""
    import numpy as np

    from segexp.evaluation.pictures import (
        Example,
        draw_samples,
        fixed_choice,
        probability_map,
        save_maps,
        worst_median_best,
    )

    config, image_set = prepared.config, prepared.image_set
    folder = prepared.run_dir / "predictions"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for index in fixed_choice(image_set.image_ids, prepared.split["test"]):
        for scored in predictions([index]):
            save_maps(folder, image_set.image_ids[index], probability_map(scored.prediction, 0))
    examples = []
    for title, index, dice in worst_median_best(test.indices_N, test.image_scores_N):
        (scored,) = predictions([index])
        foreground = scored.prediction.foreground_NFHW()[0].cpu().numpy()
        predicted = np.zeros(foreground.shape[1:], dtype=np.uint8)
        for f, plane in enumerate(foreground):
            predicted[plane] = f + 1
        native = image_set.read(index)
        if config.metrics.resolution == "native":
            scale = 255 if native.image_HWC.dtype == np.uint8 else 65535
            picture = native.image_HWC / scale
        else:
            picture = read(index).image_CHW.permute(1, 2, 0).numpy()
        truth = scored.target_NHW[0].cpu().numpy()
        label = f"{title}: Dice {dice:.2f}\n{image_set.image_ids[index][:24]}"
        examples.append(Example(label, picture, truth, predicted, probability_map(scored.prediction, 0)))
    if examples:
        heading = (
            f"{config.dataset.name}: {config.activation.name} + {config.loss.name}, "
            f"test Dice {summary['dice']:.3f} ({len(prepared.split['test'])} images, seed {config.seed})"
        )
        draw_samples(prepared.run_dir / "samples.png", examples, heading)
